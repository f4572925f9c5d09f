package lab

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ClusterIP is the $cluster_ip of the lab, ClusterIP6 that of one with IPv6.
var (
	ClusterIP  = netip.MustParseAddr("192.168.77.100")
	ClusterIP6 = netip.MustParseAddr("fd77::100")
)

// Families are the address families of a cluster.
type Families uint8

// Families. The machines have addresses of IPv4 in any case.
const (
	IPv4 Families = iota
	IPv6
	Both
)

const (
	// ServicePort is the TCP port at which every machine answers with its name, at any of its addresses.
	ServicePort = 80
	// ConfigPath is where a node has its skudonet-cluster.conf.
	ConfigPath = "/usr/local/skudonet/app/ucarp/etc/skudonet-cluster.conf"
	// StatusPath is where a node keeps its status file.
	StatusPath = "/etc/skudonet-ce-cluster.status"
	// TreePath is a node's configuration tree of Skudonet.
	TreePath = "/usr/local/skudonet/config"
	// Password is the $password of the lab unless Options.Config has another.
	Password = "lab-7dK2-password"
)

// ErrUnsupported is wrapped by what [New] says on a host that cannot have a lab.
var ErrUnsupported = errors.New("no lab possible on this host")

// Options of a lab. The zero value is a good one.
type Options struct {
	// ID names the lab to its user (processes are called skd-ID-lb1 and so on) and to [Sweep]. A lab that still has
	// the name is ended first. Default: a random one.
	ID string
	// BinDir holds the programs to test. Default: bin of the module that the working directory is in, if it exists.
	BinDir string
	// HooksDir holds the three hook scripts. Default: hooks of that module, if it exists.
	HooksDir string
	// Nodes is the number of nodes, 2 (the default) to 4. Of lb3 and lb4 the configuration has lb1 as the peer, until
	// Configure says otherwise.
	Nodes int
	// Links is the number of networks, 1 (the default) or 2.
	Links int
	// Families are those of $local_ip, $remote_ip and $cluster_ip. Machines with IPv6 look for no duplicates.
	Families Families
	// Config has keys and values for skudonet-cluster.conf of all nodes, as for [Node.Configure].
	Config map[string]string
	// Keep lets Close leave everything running, with instructions how to get in written to Out.
	Keep bool
	// Out is where Close with Keep writes. Default: standard error.
	Out io.Writer

	copies bool // as on a host without overlayfs
}

// Lab is a set of running machines. Its methods, and those of what it contains, may be used by several goroutines.
type Lab struct {
	ID                       string
	LB1, LB2, Client, Switch *Node
	LB3, LB4                 *Node // nil without Options.Nodes

	options   Options
	name      *os.File // the bound socket whose name is the lab's
	leash     *os.File // the switch lives while we hold this end
	nodeLeash *os.File // the switch holds the other end of this, a node lives while it does
	mu        sync.Mutex
	cables    map[int]*cable // by interface index on the switch, also those that are gone
	wired     map[port]bool
	closers   []func()
	closed    bool
}

// New makes a lab and switches everything on. Nothing runs in it but the machines.
func New(options Options) (_ *Lab, err error) {
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("%w: namespaces need root", ErrUnsupported)
	}
	if missing := Missing(); len(missing) > 0 {
		return nil, fmt.Errorf("the lab needs programs: apt-get install %s", strings.Join(missing, " "))
	}
	if err := options.complete(); err != nil {
		return nil, err
	}
	l := &Lab{ID: options.ID, options: options, cables: map[int]*cable{}, wired: map[port]bool{}}
	l.Switch = &Node{Name: "switch", host: 1, lab: l}
	l.LB1 = &Node{Name: "lb1", host: 11, lab: l}
	l.LB2 = &Node{Name: "lb2", host: 12, lab: l}
	if options.Nodes > 2 {
		l.LB3 = &Node{Name: "lb3", host: 13, lab: l}
	}
	if options.Nodes > 3 {
		l.LB4 = &Node{Name: "lb4", host: 14, lab: l}
	}
	l.Client = &Node{Name: "client", host: 50, lab: l}
	defer func() {
		if err != nil {
			l.end()
			err = fmt.Errorf("lab %s: %w", l.ID, err)
		}
	}()
	if l.name, err = sweep(l.ID); err != nil {
		return nil, err
	}
	if err := l.bootSwitch(); err != nil {
		return nil, err
	}
	machines := append(l.Nodes(), l.Client)
	failed := make(chan error)
	for _, n := range machines {
		go func() {
			err := n.furnish()
			if err == nil {
				err = n.PowerOn()
			}
			failed <- err
		}()
	}
	for range machines {
		err = errors.Join(err, <-failed)
	}
	if err != nil {
		return nil, err
	}
	return l, nil
}

func (o *Options) complete() error {
	if o.Nodes == 0 {
		o.Nodes = 2
	}
	if o.Nodes < 2 || o.Nodes > 4 {
		return fmt.Errorf("lab with %d nodes: want 2 to 4", o.Nodes)
	}
	switch o.Links {
	case 0:
		o.Links = 1
	case 1, 2:
	default:
		return fmt.Errorf("lab with %d links: want 1 or 2", o.Links)
	}
	if o.ID == "" {
		random := make([]byte, 4)
		rand.Read(random)
		o.ID = hex.EncodeToString(random)
	}
	if o.Out == nil {
		o.Out = os.Stderr
	}
	for dir, value := range map[string]*string{"bin": &o.BinDir, "hooks": &o.HooksDir} {
		if *value == "" {
			if module, err := ModuleDir(); err == nil {
				if info, err := os.Stat(filepath.Join(module, dir)); err == nil && info.IsDir() {
					*value = filepath.Join(module, dir)
				}
			}
			continue
		}
		full, err := filepath.Abs(*value)
		if err != nil {
			return err
		}
		if _, err := os.Stat(full); err != nil {
			return err
		}
		*value = full
	}
	return nil
}

// ModuleDir is the directory with the go.mod above the working directory.
func ModuleDir() (string, error) {
	dir, err := os.Getwd()
	for ; err == nil; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == "/" {
			return "", errors.New("not in a Go module")
		}
	}
	return "", err
}

// Nodes gives lb1, lb2 and, with Options.Nodes, lb3 and lb4.
func (l *Lab) Nodes() []*Node { return []*Node{l.LB1, l.LB2, l.LB3, l.LB4}[:l.options.Nodes] }

func (l *Lab) machines() []*Node { return append(l.Nodes(), l.Client, l.Switch) }

// Close ends every process of the lab, and with them its namespaces, mounts and files; with Options.Keep it only lets
// go. A second Close does nothing.
func (l *Lab) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	closers := l.closers
	l.mu.Unlock()
	for _, f := range closers {
		f()
	}
	if l.options.Keep {
		return l.letGo()
	}
	return l.end()
}

// onClose has f called at the beginning of Close.
func (l *Lab) onClose(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closers = append(l.closers, f)
}

func (l *Lab) letGo() error {
	var text strings.Builder
	fmt.Fprintf(&text, "The lab %s stays. To get in:\n", l.ID)
	for _, n := range l.machines() {
		if pid := n.PID(); pid != 0 {
			fmt.Fprintf(&text, "  %-7s nsenter -t %d -m -u -i -n -p --wd=/ env HOME=/root PATH=%s bash\n", n.Name, pid, searchPath)
		}
	}
	fmt.Fprintf(&text, "To end it: kill -KILL %d\n", l.Switch.PID())
	if _, err := l.leash.Write([]byte{'k'}); err != nil {
		return fmt.Errorf("lab %s: cannot keep it: %w", l.ID, err)
	}
	_, err := io.WriteString(l.options.Out, text.String())
	return err
}

func (l *Lab) end() error {
	var boots []*boot
	for _, n := range l.machines() {
		if b := n.forget(); b != nil {
			b.kill()
			boots = append(boots, b)
		}
	}
	for _, b := range boots {
		b.end()
	}
	for _, f := range []*os.File{l.leash, l.nodeLeash, l.name} {
		if f != nil {
			f.Close()
		}
	}
	if l.name == nil {
		return nil
	}
	name, err := awaitFree(l.ID)
	if err != nil {
		return err
	}
	return name.Close()
}

// socketName is what a lab is known by: a name in the abstract space of unix sockets ends with its last holder.
func socketName(id string) unix.Sockaddr { return &unix.SockaddrUnix{Name: "@skd-lab-" + id} }

func claim(id string) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, socketName(id)); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("claim the name: %w", err)
	}
	return os.NewFile(uintptr(fd), "lab "+id), nil
}

// awaitFree claims the name once its last holder is gone.
func awaitFree(id string) (*os.File, error) {
	for deadline := time.Now().Add(5 * time.Second); ; {
		f, err := claim(id)
		if !errors.Is(err, unix.EADDRINUSE) {
			return f, err
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("lab %s: processes of it are still there after 5 s", id)
		}
		time.Sleep(time.Millisecond)
	}
}

// Sweep ends the lab of that name, if there is one, whoever made it.
func Sweep(id string) error {
	name, err := sweep(id)
	if err != nil {
		return err
	}
	return name.Close()
}

// sweep does that and keeps the name: a process that was just being forked could still hold one that is given up and
// claimed again.
func sweep(id string) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	// Refused, and not in use: no such lab. Refused, and in use: its switch is gone, its nodes are about to follow.
	if err := unix.Connect(fd, socketName(id)); err == nil {
		peer, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil {
			return nil, err
		}
		if err := unix.Kill(int(peer.Pid), unix.SIGKILL); err != nil && err != unix.ESRCH {
			return nil, fmt.Errorf("end the switch of lab %s, process %d: %w", id, peer.Pid, err)
		}
	}
	return awaitFree(id)
}
