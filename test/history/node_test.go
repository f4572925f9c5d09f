package history

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/status"
)

// node is one machine: a directory with a configuration, and processes.
type node struct {
	h      *history
	name   string
	dir    string
	peer   *node
	on     bool
	role   string
	since  status.Moment
	giveUp time.Duration
	heard  status.Moment

	daemon     *process
	daemonStep string // where the next daemon dies
	peerStep   string // where the next program that answers the master dies

	mu      sync.Mutex
	answers []*answer
	listen  net.Listener
}

func (n *node) path(parts ...string) string {
	return filepath.Join(append([]string{n.dir}, parts...)...)
}
func (n *node) config() string   { return n.path("tree", "config") }
func (n *node) rtTables() string { return n.path("etc", "iproute2", "rt_tables") }
func (n *node) log() string      { return n.path("log") }
func (n *node) state() string    { return n.path("state") }
func (n *node) String() string   { return n.name }

func (h *history) newNode(name string, local, remote string) *node {
	n := &node{h: h, name: name, dir: filepath.Join(h.dir, name)}
	for _, d := range []string{n.config(), filepath.Dir(n.rtTables()), n.path("run"), n.state()} {
		h.must(os.MkdirAll(d, 0o755))
	}
	conf := fmt.Sprintf("$interface=\"eth0\";\n$local_ip=%q;\n$remote_ip=%q;\n$cluster_ip=%q;\n$cluster_id=\"1\";\n$configdir=%q;\n$rttables=%q;\n",
		local, remote, clusterIP, n.config(), n.rtTables())
	h.must(os.WriteFile(n.path("skudonet-cluster.conf"), []byte(conf), 0o644))
	var err error
	n.listen, err = net.Listen("unix", n.path("wire"))
	h.must(err)
	return n
}

// process is a program of a node.
type process struct {
	cmd   *exec.Cmd
	ended chan struct{}
	err   error
}

// start runs the node program. It writes to the node's log.
func (n *node) start(mode, step string, files ...*os.File) (*process, error) {
	log, err := os.OpenFile(n.log(), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	fmt.Fprintf(log, "--- %s %s SKD_STEP=%s\n", time.Now().Format("15:04:05.000"), mode, step)
	p := &process{cmd: exec.Command(program, mode, n.dir), ended: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), "SKD_STEP="+step, marker+n.dir)
	if mode == "master" {
		p.cmd.Env = append(p.cmd.Env, "HISTORY_GIVEUP="+n.giveUp.String())
	}
	p.cmd.Stderr = log
	var alive io.Closer
	if len(files) == 2 {
		p.cmd.Stdin, p.cmd.Stdout = files[0], files[1]
	} else if alive, err = p.cmd.StdinPipe(); err != nil { // closed when this test is gone
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		p.err = p.cmd.Wait()
		if alive != nil {
			alive.Close()
		}
		close(p.ended)
	}()
	return p, nil
}

func (p *process) alive() bool {
	if p == nil {
		return false
	}
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

func (p *process) kill() {
	if p != nil {
		p.cmd.Process.Kill()
		<-p.ended
	}
}

// killed tells whether a process that has ended was killed, and did not fail.
func (p *process) killed() bool {
	var exit *exec.ExitError
	return p.err == nil || errors.As(p.err, &exit) && exit.Sys().(syscall.WaitStatus).Signaled()
}

// answer is what answers the other node's master, at the end of its wire.
type answer struct {
	conn *net.UnixConn
	*process
}

// connect leads a master's wire to a program on the other node, as sshd does.
func (n *node) connect() {
	for {
		conn, err := n.listen.Accept()
		if err != nil {
			return
		}
		if err := n.peer.serve(conn.(*net.UnixConn)); err != nil {
			fmt.Fprintln(os.Stderr, "history:", err)
		}
	}
}

func (n *node) serve(conn *net.UnixConn) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.on || n.h.cut.Load() {
		return conn.Close()
	}
	f, err := conn.File()
	if err != nil {
		conn.Close()
		return err
	}
	defer f.Close()
	p, err := n.start("peer", n.peerStep, f, f)
	n.peerStep = ""
	if err != nil {
		conn.Close()
		return err
	}
	a := &answer{conn, p}
	n.answers = append(n.answers, a)
	go func() {
		<-p.ended
		conn.Close()
	}()
	return nil
}

// hangUp ends the wires that lead to this node, with nothing more getting through.
func (n *node) hangUp() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, a := range n.answers {
		if raw, err := a.conn.SyscallConn(); err == nil && a.alive() {
			raw.Control(func(fd uintptr) { unix.Shutdown(int(fd), unix.SHUT_RDWR) })
		}
	}
}

// killAnswers kills what answers here, and nothing that it has started.
func (n *node) killAnswers() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, a := range n.answers {
		if a.alive() {
			a.kill()
		}
	}
	n.answers = nil
}

// startDaemon starts the replicator as the start hook does.
func (n *node) startDaemon() {
	n.h.collect(n)
	if n.daemon.alive() {
		return
	}
	var err error
	n.daemon, err = n.start("master", n.daemonStep)
	n.daemonStep = ""
	n.h.must(err)
}

// stopDaemon stops it as the stop hook does.
func (n *node) stopDaemon() {
	if n.daemon.alive() {
		n.daemon.cmd.Process.Signal(unix.SIGTERM)
		select {
		case <-n.daemon.ended:
		case <-time.After(bound):
			n.h.fail("the daemon of %s does not stop", n)
		}
	}
	n.h.collect(n)
}

// collect looks how a daemon has ended.
func (h *history) collect(n *node) {
	if n.daemon == nil || n.daemon.alive() {
		return
	}
	if !n.daemon.killed() {
		h.fail("the daemon of %s failed: %v", n, n.daemon.err)
	}
	n.daemon = nil
}

// become changes the role, in the files by which all programs learn of it.
func (n *node) become(role string) {
	n.role, n.since = role, status.Now()
	n.beat()
	n.h.must(status.Write(n.path("status"), role))
}

// beat is what skd-vrrpd notes with each advertisement of the peer.
func (n *node) beat() {
	if !n.on {
		return
	}
	if n.peer.on && !n.h.cut.Load() {
		n.heard = status.Now()
	}
	d := status.Daemon{State: n.role, Since: n.since, Updated: status.Now(), Peer: status.Peer{LastHeard: n.heard}}
	n.h.must(d.WriteFile(n.path("run", status.DaemonFile)))
}

// powerOff kills everything on the node at once, and empties what does not survive.
func (n *node) powerOff() {
	n.mu.Lock()
	n.on = false
	n.mu.Unlock()
	n.killAnswers()
	n.daemon.kill()
	n.daemon = nil
	n.killRest()
	n.role = ""
	n.h.must(os.RemoveAll(n.path("run")))
	n.h.must(os.RemoveAll(n.path("status")))
}

func (n *node) powerOn() {
	n.h.must(os.MkdirAll(n.path("run"), 0o755))
	n.mu.Lock()
	n.on = true
	n.mu.Unlock()
	n.become(status.Backup)
}

const marker = "HISTORY_NODE="

// killRest kills the rsyncs and -e programs that a killed program has left.
func (n *node) killRest() {
	for began := time.Now(); ; time.Sleep(time.Millisecond) {
		left := n.processes()
		if len(left) == 0 {
			return
		}
		for _, pid := range left {
			unix.Kill(pid, unix.SIGKILL)
		}
		if time.Since(began) > bound {
			n.h.fail("processes of %s cannot be killed: %v", n, left)
		}
	}
}

// processes are those that were started by this node's programs.
func (n *node) processes() (pids []int) {
	all, err := os.ReadDir("/proc")
	n.h.must(err)
	for _, e := range all {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		env, err := os.ReadFile(filepath.Join("/proc", e.Name(), "environ"))
		if err != nil || len(env) == 0 { // gone, or a zombie
			continue
		}
		cwd, _ := os.Readlink(filepath.Join("/proc", e.Name(), "cwd"))
		if bytes.Contains(env, []byte(marker+n.dir+"\x00")) || strings.HasPrefix(cwd, n.dir+"/") {
			pids = append(pids, pid)
		}
	}
	return pids
}
