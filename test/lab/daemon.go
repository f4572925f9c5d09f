package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"regexp"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// DaemonSpec says what [Node.Start] runs.
type DaemonSpec struct {
	Name    string   // of the output's file, /var/log/NAME.log in the machine. Default: the program's
	Args    []string // the program and its arguments
	Env     []string // on top of that of a root shell
	Restart bool     // start it again, at once, whenever it ends without having been told to by Stop
}

// Daemon is a supervised process. The supervisor is in this program: with Options.Keep the daemons go on, unsupervised.
type Daemon struct {
	Name    string
	LogPath string // in the machine

	node *Node
	spec DaemonSpec
	done chan struct{}

	mu       sync.Mutex
	cmd      *Cmd // nil between a death and the next life
	starts   int
	exits    []Exit
	stopping bool
}

// Exit is one end of a daemon's process.
type Exit struct {
	At    time.Time
	State *os.ProcessState
}

// A program that cannot even start would be restarted for ever: that many early ends in a row are enough.
const (
	earlyEnd      = 50 * time.Millisecond
	earlyEndLimit = 5
)

// Start runs a daemon in the machine.
func (n *Node) Start(spec DaemonSpec) (*Daemon, error) {
	if len(spec.Args) == 0 {
		return nil, errors.New("a daemon needs a program")
	}
	if spec.Name == "" {
		spec.Name = path.Base(spec.Args[0])
	}
	d := &Daemon{Name: spec.Name, LogPath: "/var/log/" + spec.Name + ".log", node: n, spec: spec, done: make(chan struct{})}
	if err := d.spawn(); err != nil {
		return nil, err
	}
	n.mu.Lock()
	n.daemons = append(n.daemons, d)
	n.mu.Unlock()
	go d.supervise()
	return d, nil
}

func (d *Daemon) spawn() error {
	log, err := d.node.open(d.LogPath, unix.O_WRONLY|unix.O_CREAT|unix.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := d.node.Command(context.Background(), d.spec.Args[0], d.spec.Args[1:]...)
	cmd.Env = append(cmd.Env, d.spec.Env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = "/"
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	d.mu.Lock()
	d.cmd = cmd
	d.starts++
	d.mu.Unlock()
	return nil
}

func (d *Daemon) supervise() {
	defer close(d.done)
	early := 0
	for born := time.Now(); ; born = time.Now() {
		d.mu.Lock()
		cmd := d.cmd
		d.mu.Unlock()
		cmd.Wait()
		exit := Exit{time.Now(), cmd.ProcessState}
		d.mu.Lock()
		d.cmd = nil
		d.exits = append(d.exits, exit)
		again := d.spec.Restart && !d.stopping
		d.mu.Unlock()
		if exit.At.Sub(born) < earlyEnd && exit.State.Exited() {
			early++
		} else {
			early = 0
		}
		if !again || early == earlyEndLimit || d.spawn() != nil {
			return
		}
		d.mu.Lock()
		if d.stopping && d.cmd != nil {
			d.cmd.Process.Signal(unix.SIGTERM) // Stop came between death and birth.
		}
		d.mu.Unlock()
	}
}

// powerless ends the supervision; the process dies with its machine.
func (d *Daemon) powerless() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stopping = true
}

// PID is the host's number of the process, 0 while there is none.
func (d *Daemon) PID() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cmd == nil {
		return 0
	}
	return d.cmd.Process.Pid
}

// Signal sends one to the process.
func (d *Daemon) Signal(sig unix.Signal) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cmd == nil {
		return fmt.Errorf("%s: %s: %w", d.node.Name, d.Name, os.ErrProcessDone)
	}
	return d.cmd.Process.Signal(sig)
}

// Stop sends SIGTERM and waits for the end, which is not followed by a restart. After ten seconds it kills, and says so.
func (d *Daemon) Stop() error {
	d.mu.Lock()
	d.stopping = true
	if d.cmd != nil {
		d.cmd.Process.Signal(unix.SIGTERM)
	}
	d.mu.Unlock()
	select {
	case <-d.done:
		return nil
	case <-time.After(10 * time.Second):
		d.Signal(unix.SIGKILL)
		<-d.done
		return fmt.Errorf("%s: %s did not end within 10 s of SIGTERM", d.node.Name, d.Name)
	}
}

// Done is closed when the process has ended and will not be restarted.
func (d *Daemon) Done() <-chan struct{} { return d.done }

// Starts counts the processes so far.
func (d *Daemon) Starts() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.starts
}

// Exits lists their ends, oldest first.
func (d *Daemon) Exits() []Exit {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]Exit(nil), d.exits...)
}

// Log is what the daemon has written to standard output and error, in all its lives.
func (d *Daemon) Log() string {
	text, err := d.node.ReadFile(d.LogPath)
	if err != nil {
		return err.Error()
	}
	return text
}

// CPU is the processor time of the present process, all threads, to the nanosecond.
func (d *Daemon) CPU() (time.Duration, error) {
	pid := d.PID()
	if pid == 0 {
		return 0, os.ErrProcessDone
	}
	// The clock of another process, as clock_getcpuclockid(3) makes it.
	const scheduled = 2
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^pid)<<3|scheduled, &t); err != nil {
		return 0, fmt.Errorf("processor time of %s: %w", d.Name, err)
	}
	return time.Duration(t.Nano()), nil
}

var pssLine = regexp.MustCompile(`(?m)^Pss:\s+(\d+) kB$`)

// PSS is the proportional set size of the present process, in bytes.
func (d *Daemon) PSS() (int64, error) {
	pid := d.PID()
	if pid == 0 {
		return 0, os.ErrProcessDone
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, err
	}
	match := pssLine.FindSubmatch(text)
	if match == nil {
		return 0, fmt.Errorf("no Pss of process %d", pid)
	}
	kilobytes, err := strconv.ParseInt(string(match[1]), 10, 64)
	return kilobytes << 10, err
}
