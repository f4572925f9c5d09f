package hook

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/shell"
	"github.com/skudonet/skudonet-ce-cluster/lib/systemd"
	"github.com/skudonet/skudonet-ce-cluster/lib/tail"
)

// Here returns the Exec that fits where this process runs. The main process of
// a systemd service, which may be sandboxed, gets Transient; any other Process.
// dir is Transient's.
func Here(dir string, grace time.Duration) Exec {
	if mainOfService(os.Getpid(), os.Getenv(execPID)) && systemd.Booted() {
		return Transient(dir, grace)
	}
	return Process(grace)
}

// execPID is how systemd tells a process that it was executed by systemd
// itself; see systemd.exec(5). It survives an exec, and is inherited by
// children, who then find another number than their own.
const execPID = "SYSTEMD_EXEC_PID"

func mainOfService(pid int, told string) bool { return told == strconv.Itoa(pid) }

// unitPrefix begins the names of the services that scripts run as.
const unitPrefix = "skudonet-ce-cluster-hook-"

// How long systemd may take for what is normally a matter of milliseconds.
const (
	startLimit   = 10 * time.Second // to start a script
	controlLimit = 2 * time.Second  // to do what systemctl asks
	reportLimit  = 5 * time.Second  // to say how a script ended whose output has ended
)

// Transient returns the Exec that runs each script as a systemd service of its
// own, made for this one run: outside the sandbox of the caller, its nice
// value, OOM score and cgroup, and also while the machine shuts down. Output
// and exit status come back through FIFOs under dir, so that neither the bus
// daemon nor systemd-run has to stay: a machine that shuts down ends them early.
//
// To end a script all of its service gets SIGTERM, and SIGKILL when anything is
// left after grace. What a script leaves behind when it returns by itself is
// left alone, and its output still read. Scripts that an earlier process had
// started, and did not live to end, are ended before the first one runs.
//
// Where systemd does not start the service, the script runs as by Process.
func Transient(dir string, grace time.Duration) Exec {
	t := &transient{dir: dir, grace: grace, direct: Process(grace), failed: true}
	return t.exec
}

type transient struct {
	dir    string
	grace  time.Duration
	direct Exec

	first  sync.Once // ends what an earlier process left
	mu     sync.Mutex
	failed bool // a script may have, so that its service is still listed
	said   bool // that scripts run inside the sandbox
}

func (t *transient) exec(ctx context.Context, script string, env []string, line func(string)) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	t.first.Do(func() { endLeftovers(t.dir, t.grace, line) })
	info, err := os.Stat(script)
	visible := err == nil && !info.IsDir() && unix.Access(script, unix.X_OK) == nil
	u, err := t.start(command(script, visible), script, env)
	if err != nil {
		if say := t.refused(err); say != "" {
			line(say)
		}
		return t.direct(ctx, script, env, line)
	}
	t.note(func() { t.said = false })
	err = u.wait(ctx, line, t.grace)
	if err != nil {
		t.note(func() { t.failed = true })
	}
	if !visible && (errors.Is(err, errDenied) || errors.Is(err, errNotFound)) {
		// Either the shell or the script says so by its exit status. Process cannot
		// execute what is not visible, and knows why.
		if why := t.direct(ctx, script, env, line); why != nil {
			return fmt.Errorf("%w; if its output does not tell why: %w", err, why)
		}
		return nil
	}
	return err
}

// command is what systemd-run is told to run. It would look for the script
// itself, in a sandbox that may hide it (in /root or /tmp); then a shell does.
func command(script string, visible bool) []string {
	if visible {
		return []string{script}
	}
	// systemd expands variables in the arguments.
	return []string{"/bin/sh", "-c", strings.ReplaceAll("exec "+shell.Quote(script), "$", "$$")}
}

// What a shell says by its exit status of a program that it cannot execute.
const (
	errDenied   = exitStatus(126)
	errNotFound = exitStatus(127)
)

// exitStatus is that of a script that failed, in the words of os/exec.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

func (t *transient) note(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f()
}

// errExecute is a script that systemd could not execute. Nor can Process, and
// it knows why.
var errExecute = errors.New("cannot be executed")

// refused returns what is to be said of systemd's refusal, once for many.
func (t *transient) refused(err error) (say string) {
	t.note(func() {
		if !errors.Is(err, errExecute) && !t.said {
			t.said = true
			say = fmt.Sprintf("(runs inside the sandbox of skd-vrrpd, because systemd does not start it: %v)", err)
		}
	})
	return say
}

// unit is a script that runs as a service.
type unit struct {
	name   string
	script string
	dir    string   // of the FIFOs
	output *os.File // what the script writes
	status *os.File // how it ended
}

// start starts a script, or makes sure that it does not run.
func (t *transient) start(command []string, script string, env []string) (*unit, error) {
	t.note(func() {
		if t.failed {
			t.failed = false
			control("reset-failed", unitPrefix+"*") // a daemon that it has left keeps it in the list
		}
	})
	dir, err := os.MkdirTemp(t.dir, fmt.Sprintf("%s%d-", dirPrefix, os.Getpid()))
	if err != nil {
		return nil, err
	}
	u := &unit{name: unitName(script, dir), dir: dir, script: script}
	writer, err := u.open()
	if err == nil {
		err = u.run(command, env)
		// From here on the output ends when the script, and what it left, closes it.
		writer.Close()
	}
	switch {
	case err == nil:
		return u, nil
	case u.output != nil && !u.revoke():
		return u, nil // slowly, but it runs
	}
	if _, told := u.told(); told {
		err = errExecute
	}
	u.close()
	if u.output != nil {
		u.output.Close()
	}
	return nil, err
}

// dirPrefix begins the names of the directories with the FIFOs of one script.
// The number of the process that runs it follows, and a random one.
const dirPrefix = "hook-"

// unitName tells in a listing which script it is. It has the numbers of the
// directory and is as unique: the name of a service that has ended is not free
// while a daemon of it runs.
func unitName(script, dir string) string {
	base := strings.TrimPrefix(filepath.Base(script), "skudonet-ce-cluster-")
	numbers := strings.TrimPrefix(filepath.Base(dir), dirPrefix)
	return unitPrefix + notInName.ReplaceAllString(base[:min(len(base), 100)], "_") + "-" + numbers + ".service"
}

// ours tells whether a unit or directory was named by the process pid.
func ours(name string, pid int) bool {
	parts := strings.Split(name, "-")
	return len(parts) > 2 && parts[len(parts)-2] == strconv.Itoa(pid)
}

var notInName = regexp.MustCompile(`[^a-zA-Z0-9._-]`)

// The names in a unit's directory.
const (
	outputName = "output"
	statusName = "status"
)

// open makes the FIFOs, and returns a writer of the output that holds it open.
func (u *unit) open() (writer *os.File, err error) {
	output, status := filepath.Join(u.dir, outputName), filepath.Join(u.dir, statusName)
	if err = errors.Join(unix.Mkfifo(output, 0o600), unix.Mkfifo(status, 0o600)); err != nil {
		return nil, err
	}
	// Not blocking are only our own ends.
	if u.output, err = os.OpenFile(output, os.O_RDONLY|unix.O_NONBLOCK, 0); err != nil {
		return nil, err
	}
	if writer, err = os.OpenFile(output, os.O_WRONLY|unix.O_NONBLOCK, 0); err != nil {
		return nil, err
	}
	// Also for writing, so that there is no end before the first word.
	if u.status, err = os.OpenFile(status, os.O_RDWR|unix.O_NONBLOCK, 0); err != nil {
		writer.Close()
	}
	return writer, err
}

// run has systemd start the script, and returns when it is executed.
func (u *unit) run(command, env []string) error {
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	said := tail.New(1 << 12)
	cmd := tool(ctx, "systemd-run", u.arguments(command, env)...)
	cmd.Stdout, cmd.Stderr = said, said
	err := cmd.Run()
	if ctx.Err() != nil {
		return fmt.Errorf("no answer within %s", startLimit)
	}
	if text := clean(said.LastLine()); err != nil && text != "" {
		return errors.New(text)
	}
	return err
}

// arguments are systemd-run's. They need no more than systemd's own socket:
// its --wait and --pipe would need the bus daemon.
func (u *unit) arguments(command, env []string) []string {
	// Without a $: what systemd writes down for one, it does not read again after a daemon-reload.
	report := "/bin/sh -c " + quote("printenv EXIT_CODE EXIT_STATUS >"+shell.Quote(filepath.Join(u.dir, statusName)))
	args := []string{"--quiet", "--collect", "--no-ask-password", "--unit=" + u.name,
		"--description=Hook " + u.script + " of the Skudonet CE cluster"}
	for _, p := range []string{
		"Type=exec",              // started means executed
		"DefaultDependencies=no", // so that it may start while the machine shuts down
		"KillMode=process",       // what it leaves behind lives on
		"OOMPolicy=continue",     // nor does one of its children take the others along
		"IgnoreSIGPIPE=no",       // like any process
		"LogLevelMax=notice",     // each start and end is in our own log
		"UnsetEnvironment=INVOCATION_ID " + execPID,
		"StandardOutput=file:" + filepath.Join(u.dir, outputName),
		"StandardError=inherit",
		"ExecStopPost=" + report,
		// Not for the script: whoever opens a FIFO that we have died on waits.
		"TimeoutStartSec=" + startLimit.String(), "TimeoutStopSec=" + reportLimit.String(),
	} {
		args = append(args, "--property="+p)
	}
	for _, v := range env {
		args = append(args, "--setenv="+v)
	}
	return append(append(args, "--"), command...)
}

// quote makes a word of a systemd command line of s.
func quote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, `$`, `$$`, `%`, `%%`).Replace(s) + `"`
}

// revoke takes the FIFOs from where a service that systemd starts after all
// would look for its output; it then cannot start. It tells whether that came
// in time, before a service opened them; if not, they are where they were.
func (u *unit) revoke() bool {
	hidden := u.dir + ".revoked"
	if os.Rename(u.dir, hidden) != nil {
		return true
	}
	if !u.silent() {
		return os.Rename(hidden, u.dir) != nil
	}
	u.dir = hidden
	return true
}

// silent tells whether nobody can write to the output.
func (u *unit) silent() (yes bool) {
	if c, err := u.output.SyscallConn(); err == nil {
		c.Control(func(fd uintptr) {
			poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			if n, err := unix.Poll(poll, 0); err == nil && n > 0 {
				yes = poll[0].Revents&unix.POLLHUP != 0
			}
		})
	}
	return yes
}

// told returns how the script ended, if systemd has said so.
func (u *unit) told() (error, bool) {
	if u.status == nil {
		return nil, false
	}
	u.status.SetReadDeadline(time.Now())
	b := make([]byte, 256)
	n, err := u.status.Read(b)
	if err != nil || n == 0 {
		return nil, false
	}
	return ended(string(b[:n])), true
}

// close takes away everything but the output, which may go on. In this order: a
// FIFO without a reader would be waited for.
func (u *unit) close() {
	os.RemoveAll(u.dir)
	if u.status != nil {
		u.status.Close()
	}
}

// wait returns when the script has ended, or was ended with ctx.
func (u *unit) wait(ctx context.Context, line func(string), grace time.Duration) error {
	silent := make(chan struct{})
	defer func() {
		u.close()
		go func() { <-silent; u.output.Close() }() // not before: what tells how it ended opens it once more
	}()
	go func() {
		defer close(silent)
		out := newOutput(line)
		io.Copy(out, u.output)
		out.finish()
	}()
	waited := make(chan error, 1)
	go func() {
		b := make([]byte, 256)
		n, err := u.status.Read(b) // what was written at once
		if err == nil {
			err = ended(string(b[:n]))
		}
		waited <- err
	}()
	var err error
	quiet, untold := silent, (<-chan time.Time)(nil)
wait:
	for {
		select {
		case err = <-waited:
			break wait
		case <-quiet:
			quiet = nil
			untold = time.After(reportLimit)
		case <-untold:
			if u.empty() {
				err = errors.New("ended, but systemd did not say how")
				break wait
			}
			untold = time.After(reportLimit)
		case <-ctx.Done():
			err = context.Cause(ctx)
			if !u.end(waited, grace) {
				err = ErrSurvived
			}
			break wait
		}
	}
	select {
	case <-silent:
	case <-time.After(trailing):
	}
	return err
}

// ended translates $EXIT_CODE and $EXIT_STATUS (systemd.exec(5)) into what the
// wait for a child says.
func ended(words string) error {
	words = strings.Join(strings.Fields(words), " ")
	code, status, _ := strings.Cut(words, " ")
	number, err := strconv.Atoi(status)
	signal := "signal: " + status
	if s := unix.SignalNum("SIG" + status); s != 0 {
		signal = "signal: " + s.String()
	}
	switch {
	case code == "exited" && status == "0":
		return nil
	case code == "exited" && err == nil:
		return exitStatus(number)
	case code == "killed":
		return errors.New(signal)
	case code == "dumped":
		return errors.New(signal + " (core dumped)")
	}
	return fmt.Errorf("ended in a way that systemd calls %q", words)
}

// end ends everything of the service, whose end is reported on waited, if by
// anyone. It tells whether that succeeded.
func (u *unit) end(waited <-chan error, grace time.Duration) bool {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	told := waited == nil
	gone := func(toldToo bool) bool {
		for deadline := time.Now().Add(grace); ; {
			if (told || !toldToo) && u.empty() {
				return true
			}
			if time.Now().After(deadline) {
				return false
			}
			select {
			case <-waited:
				told, waited = true, nil
			case <-tick.C:
			}
		}
	}
	signalAll(u.name, unix.SIGTERM)
	signalAll(u.name, unix.SIGCONT) // what is stopped does not see a SIGTERM
	if gone(true) {
		return true
	}
	signalAll(u.name, unix.SIGKILL)
	return gone(false)
}

// signalAll signals all processes of a service: by systemd, which may signal
// everybody, or where that fails ourselves.
func signalAll(name string, s unix.Signal) {
	if control("kill", "--kill-whom=all", "--signal="+unix.SignalName(s), name) == nil {
		return
	}
	for _, pid := range processes(name) {
		unix.Kill(pid, s)
	}
}

// control runs systemctl. None of what is asked of it here queues a job.
func control(args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), controlLimit)
	defer cancel()
	return tool(ctx, "systemctl", append([]string{"--quiet", "--no-ask-password"}, args...)...).Run()
}

// tool returns a command of systemd's, which is killed with ctx.
func tool(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env, cmd.Dir = []string{"PATH=" + Path, "LANG=C.UTF-8"}, "/"
	cmd.WaitDelay = time.Second
	return cmd
}

// leftovers lets one lane of this process end them, not two.
var leftovers sync.Mutex

// endLeftovers ends the scripts that an earlier process started and did not
// live to end: nobody reads their output, so that they may break off anywhere,
// and what they do is asked for again. Services that are over, and have left a
// daemon behind, stay.
func endLeftovers(dir string, grace time.Duration, line func(string)) {
	leftovers.Lock()
	defer leftovers.Unlock()
	stale, _ := filepath.Glob(filepath.Join(dir, dirPrefix+"*"))
	for _, d := range stale {
		if !ours(filepath.Base(d), os.Getpid()) {
			os.RemoveAll(d) // first: nobody may wait for a reader
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), controlLimit)
	defer cancel()
	out, err := tool(ctx, "systemctl", "list-units", "--plain", "--full", "--no-legend", "--no-pager",
		"--state=activating,active,deactivating", unitPrefix+"*").Output()
	if err != nil {
		return
	}
	for row := range strings.Lines(string(out)) {
		name, _, _ := strings.Cut(strings.TrimSpace(row), " ")
		if !strings.HasPrefix(name, unitPrefix) || ours(name, os.Getpid()) {
			continue
		}
		u := unit{name: name}
		if u.end(nil, grace) {
			line(fmt.Sprintf("(ended %s, which an earlier process had started)", name))
		} else {
			line(fmt.Sprintf("(%s, which an earlier process had started, %v)", name, ErrSurvived))
		}
	}
}

// empty tells whether no process of the service is left.
func (u *unit) empty() bool { return len(processes(u.name)) == 0 }

// processes are those of a service: their numbers, from its cgroup.
func processes(name string) (pids []int) {
	// The one hierarchy that Debian has, and systemd's own of older layouts.
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/systemd"} {
		b, _ := os.ReadFile(filepath.Join(root, "system.slice", name, "cgroup.procs"))
		for field := range strings.FieldsSeq(string(b)) {
			if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}
