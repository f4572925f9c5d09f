package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Node is one machine.
type Node struct {
	Name string

	host byte // last octet of its addresses
	lab  *Lab
	ssh  sshServer

	power   sync.Mutex   // one at a time switches it on or off
	mu      sync.RWMutex // held for reading while boot is used
	boot    *boot        // nil without power
	daemons []*Daemon
}

// boot is the time from power-on to power-off.
type boot struct {
	pid   int
	pidfd int
	gone  chan struct{}
}

// Addr is the machine's address on network link, counted from 0.
func (n *Node) Addr(link int) netip.Addr {
	return netip.AddrFrom4([4]byte{192, 168, byte(77 + 100*link), n.host})
}

// Addr6 is the machine's own address of IPv6 on the network link, in a lab with [Options.Families].
func (n *Node) Addr6(link int) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x77, 7: byte(link), 15: n.host})
}

// PID is the host's number of the machine's first process, 0 without power.
func (n *Node) PID() int {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.boot == nil {
		return 0
	}
	return n.boot.pid
}

func (l *Lab) bootSwitch() error {
	leash, leashHeld, err := os.Pipe()
	if err != nil {
		return err
	}
	defer leash.Close()
	l.leash = leashHeld
	nodeLeash, nodeLeashHeld, err := os.Pipe()
	if err != nil {
		return err
	}
	defer nodeLeashHeld.Close()
	l.nodeLeash = nodeLeash
	spec := bootSpec{Host: "switch", BinDir: l.options.BinDir, Copies: l.options.copies}
	for _, n := range append(l.Nodes(), l.Client) {
		spec.Disks = append(spec.Disks, n.Name)
	}
	b, err := l.start(spec, "/proc/self/exe", leash, nodeLeashHeld)
	if err != nil {
		return err
	}
	l.Switch.boot = b
	return b.within(netNamespace, l.layBridges)
}

// PowerOn boots the machine from its disk: new processes, a new network, an empty /run. It does not start Skudonet.
func (n *Node) PowerOn() error {
	n.power.Lock()
	defer n.power.Unlock()
	if n.PID() != 0 {
		return fmt.Errorf("%s: has power already", n.Name)
	}
	var b *boot
	err := n.lab.Switch.within(unix.CLONE_NEWNS, func() (err error) {
		b, err = n.lab.start(bootSpec{Host: n.Name}, "/run/init", n.lab.nodeLeash, nil)
		return err
	})
	if err != nil {
		return err
	}
	for link := range n.lab.options.Links {
		if err := n.plug(b, link); err != nil {
			b.end()
			return fmt.Errorf("%s: %s: %w", n.Name, interfaceName(link), err)
		}
	}
	n.mu.Lock()
	n.boot = b
	n.mu.Unlock()
	return nil
}

// start runs a first process and waits until it is done with its preparations.
func (l *Lab) start(spec bootSpec, program string, leash, held *os.File) (*boot, error) {
	text, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	report, reportEnd, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer report.Close()
	b := &boot{pidfd: -1, gone: make(chan struct{})}
	cmd := &exec.Cmd{
		Path:       program,
		Args:       []string{"skd-" + l.ID + "-" + spec.Host},
		Env:        []string{bootEnv + "=" + string(text), "GOMAXPROCS=2", "PATH=" + searchPath},
		Dir:        "/",
		ExtraFiles: []*os.File{leash, reportEnd, l.name},
		SysProcAttr: &unix.SysProcAttr{
			Setsid: true,
			PidFD:  &b.pidfd,
			Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS |
				unix.CLONE_NEWIPC,
		},
	}
	if held != nil {
		cmd.ExtraFiles = append(cmd.ExtraFiles, held)
	}
	err = cmd.Start()
	reportEnd.Close()
	if err != nil {
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EINVAL) {
			err = fmt.Errorf("%w: new namespaces: %w", ErrUnsupported, err)
		}
		return nil, err
	}
	b.pid = cmd.Process.Pid
	go func() {
		cmd.Wait()
		close(b.gone)
	}()
	said, err := io.ReadAll(report)
	if err == nil && string(said) != ready {
		err = errors.New(string(said))
	}
	if err != nil {
		b.end()
		return nil, fmt.Errorf("%s does not boot: %w", spec.Host, err)
	}
	return b, nil
}

// PowerOff cuts the power: from this moment nothing leaves the machine, no process of it lives, and its memory (/run,
// the network configuration) is gone. Its disk stays. Daemons are not started again at power-on.
func (n *Node) PowerOff() error {
	if n == n.lab.Switch {
		return errors.New("the lab needs its switch")
	}
	n.power.Lock()
	defer n.power.Unlock()
	// First of all, for killing takes its time. The machine must not notice: by a carrier that goes it would learn of its
	// own end, and write on its disk what no machine could.
	cables := n.cables()
	for _, link := range cables {
		if err := n.Isolate(link); err != nil && !isGone(err) {
			return err
		}
	}
	n.lab.silence(n)
	b := n.forget()
	if b == nil {
		return fmt.Errorf("%s: %w", n.Name, ErrNoPower)
	}
	b.end()
	for _, link := range cables {
		// The kernel may have removed the cable with the machine's network, or the machine its own card before.
		if err := n.Remove(link); err != nil && !isGone(err) {
			return err
		}
	}
	return nil
}

func isGone(err error) bool {
	var missing netlink.LinkNotFoundError
	return errors.As(err, &missing) || errors.Is(err, unix.ENODEV)
}

// forget makes the machine one without power, for everybody else.
func (n *Node) forget() *boot {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, d := range n.daemons {
		d.powerless()
	}
	b := n.boot
	n.boot, n.daemons = nil, nil
	return b
}

func (b *boot) kill() { unix.PidfdSendSignal(b.pidfd, unix.SIGKILL, nil, 0) }

// end kills the machine and waits until all of it is gone. Nobody else may use b any more.
func (b *boot) end() {
	b.kill()
	select {
	case <-b.gone:
	case <-time.After(time.Second):
		// Every process was killed, but somebody has not waited for a Command yet, so the namespace has to linger.
	}
	unix.Close(b.pidfd)
}

// Cmd is an [exec.Cmd] of which Start, Run, Output and CombinedOutput work inside a machine. Its Process is a process of
// the host, so signals and Wait are as usual.
type Cmd struct {
	*exec.Cmd
	node *Node
}

var errOutside = errors.New("lab: this Cmd must be started by its own methods, to run in the machine")

// Command prepares a command in the machine, with the environment of root's shell and in root's home directory.
func (n *Node) Command(ctx context.Context, name string, args ...string) *Cmd {
	c := exec.CommandContext(ctx, "/", args...)
	c.Path, c.Args[0], c.Err = name, name, errOutside
	c.Env = environment()
	c.Dir = "/root"
	return &Cmd{Cmd: c, node: n}
}

func environment() []string {
	return []string{"PATH=" + searchPath, "HOME=/root", "USER=root", "LOGNAME=root", "SHELL=/bin/bash",
		"LANG=C.UTF-8", "TERM=dumb"}
}

// Start is as that of exec.Cmd.
func (c *Cmd) Start() error {
	return c.node.within(allNamespaces, func() (err error) {
		if c.Path, err = lookPath(c.Path); err != nil {
			return fmt.Errorf("%s: %w", c.node.Name, err)
		}
		c.Err = nil
		return c.Cmd.Start()
	})
}

// Run is as that of exec.Cmd.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Output is as that of exec.Cmd.
func (c *Cmd) Output() ([]byte, error) {
	var out, complaints bytes.Buffer
	c.Stdout = &out
	if c.Stderr == nil {
		c.Stderr = &complaints
	}
	err := c.Run()
	if exit, ok := err.(*exec.ExitError); ok {
		exit.Stderr = complaints.Bytes()
	}
	return out.Bytes(), err
}

// CombinedOutput is as that of exec.Cmd.
func (c *Cmd) CombinedOutput() ([]byte, error) {
	var out bytes.Buffer
	c.Stdout = &out
	c.Stderr = &out
	err := c.Run()
	return out.Bytes(), err
}

// Run runs a command in the machine, half a minute at most, and gives what it wrote. The error has that too.
func (n *Node) Run(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	out, err := n.Command(ctx, name, args...).CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s: %s %s: %w: %s", n.Name, name, strings.Join(args, " "), err,
			strings.TrimSpace(string(out)))
	}
	return string(out), nil
}

// Root gives the host's path of a file of the machine, for reading and for tests that make sockets or pipes there.
// Without power only the disk is there: /etc, /usr/local and so on. A link with an absolute target does not lead where
// the machine would see it: [Node.ReadFile] and [Node.WriteFile] follow it as the machine does.
func (n *Node) Root(file string) string { return path.Join(n.rootDir(), file) }

func (n *Node) rootDir() string {
	if pid := n.PID(); pid != 0 {
		return fmt.Sprintf("/proc/%d/root", pid)
	}
	return fmt.Sprintf("/proc/%d/root/run/%s", n.lab.Switch.PID(), n.Name)
}

func (n *Node) open(file string, flags int, mode os.FileMode) (*os.File, error) {
	return openIn(n.rootDir(), file, flags, mode)
}

func openIn(root, file string, flags int, mode os.FileMode) (*os.File, error) {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: root, Err: err}
	}
	defer unix.Close(dir)
	how := unix.OpenHow{Flags: uint64(flags) | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT}
	if flags&unix.O_CREAT != 0 {
		how.Mode = uint64(mode.Perm())
	}
	fd, err := unix.Openat2(dir, file, &how)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path.Join(root, file), Err: err}
	}
	return os.NewFile(uintptr(fd), path.Join(root, file)), nil
}

// ReadFile reads a file of the machine.
func (n *Node) ReadFile(file string) (string, error) {
	f, err := n.open(file, unix.O_RDONLY, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	data, err := io.ReadAll(f)
	return string(data), err
}

// WriteFile writes a file of the machine and sets its mode. The directory must be there.
func (n *Node) WriteFile(file, text string, mode os.FileMode) error {
	return writeIn(n.rootDir(), file, text, mode)
}

func writeIn(root, file, text string, mode os.FileMode) error {
	f, err := openIn(root, file, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = io.WriteString(f, text)
	return errors.Join(err, f.Chmod(mode), f.Close())
}

// Status is the word in the status file, "" when there is none.
func (n *Node) Status() string {
	text, _ := n.ReadFile(StatusPath)
	return strings.TrimSpace(text)
}
