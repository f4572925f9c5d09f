package rsync

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/tail"
)

// SocketVariable is the environment variable that tells Rsh where the daemon listens.
const SocketVariable = "SKD_INOTIFY_SOCKET"

// Runner is how rsync is run here.
type Runner struct {
	Program string   // $rsync; "" is "rsync", looked for in PATH
	Shell   []string // what rsync calls instead of ssh: our own executable and "rsh"
	Socket  string   // the daemon's control socket, for Rsh
	Policy  Policy
	TempDir string // for Jobs that have none
}

// Job is one run of rsync: either of the named Files, or Whole.
type Job struct {
	Source string   // directory, absolute
	Files  []string // relative to Source; directories without what is in them

	// Fetch brings the Files from Dest into Source instead.
	Fetch bool

	// Whole mirrors all of Source with Filters (rsync options), and deletes on
	// the other side what is not in Source. It is for peers without our program.
	Whole   bool
	Filters []string

	Dest    string // directory on the peer; "" is "./", where our peer starts rsync
	TempDir string // on the peer, outside of Dest, on the same filesystem; "" is the Runner's, or the other side's choice
}

// Result is what came of a run.
type Result struct {
	Exit   int    // of rsync; 128 and the signal's number if that ended it
	Stderr string // the last 16 KiB
	Took   time.Duration
}

// Failure is a run that did not succeed. Text is a sentence, Remedy what an
// admin can do, or "".
type Failure struct {
	Exit   int // -1: rsync did not run
	Text   string
	Remedy string
	Err    error // the cause, if it was not rsync's own
}

func (f *Failure) Error() string {
	if f.Remedy == "" {
		return f.Text
	}
	return f.Text + ": " + f.Remedy
}

func (f *Failure) Unwrap() error { return f.Err }

const (
	grace      = 2 * time.Second // from SIGTERM to SIGKILL, and from there to giving up
	keptStderr = 16 << 10
)

// Run runs rsync and waits for its end. An exit status other than 0 is a
// *Failure, beside the Result. When ctx ends, rsync and its children get SIGTERM,
// and after two seconds SIGKILL; the error then wraps the cause.
func (r Runner) Run(ctx context.Context, j Job) (Result, error) {
	if err := j.check(); err != nil {
		return Result{Exit: -1}, err
	}
	top, rest := j.split()
	if top == nil || rest == nil {
		return r.run(ctx, j)
	}
	before, err := r.run(ctx, *rest)
	if err != nil {
		return before, err
	}
	res, err := r.run(ctx, *top)
	res.Stderr = before.Stderr + res.Stderr
	res.Took += before.Took
	return res, err
}

// split parts the top directory, nil if it is not named, from the other files,
// nil if there are none. It goes alone because rsync takes "." for the directory
// with all its files, and a filter against that hits named files, too.
func (j Job) split() (top, rest *Job) {
	one, others := j, j
	one.Files, others.Files = nil, nil
	for _, name := range j.Files {
		if name == "." {
			one.Files = []string{"."}
		} else {
			others.Files = append(others.Files, name)
		}
	}
	if one.Files != nil {
		top = &one
	}
	if others.Files != nil {
		rest = &others
	}
	return top, rest
}

func (r Runner) run(ctx context.Context, j Job) (Result, error) {
	began := time.Now()
	stderr := tail.New(keptStderr)
	cmd := &exec.Cmd{
		Args:  append([]string{r.program()}, r.args(j)...),
		Env:   r.env(),
		Dir:   "/",
		Stdin: strings.NewReader(j.list()), Stderr: stderr,
		SysProcAttr: ownGroup(),
		WaitDelay:   grace, // for a stray process that holds standard error
	}
	var err error
	if cmd.Path, err = exec.LookPath(r.program()); err == nil {
		err = run(ctx, cmd)
	}
	res := Result{Exit: -1, Stderr: stderr.String(), Took: time.Since(began)}
	if cmd.ProcessState != nil {
		res.Exit = exitStatus(cmd.ProcessState)
	}
	switch {
	case res.Exit == 0: // Wait may still complain about a list that was not read to its end
		return res, nil
	case errors.Is(err, errSurvived):
		return res, &Failure{Exit: res.Exit, Text: err.Error(), Err: err}
	case ctx.Err() != nil:
		cause := context.Cause(ctx)
		return res, &Failure{Exit: res.Exit, Text: "rsync was ended: " + cause.Error(), Err: cause}
	case res.Exit < 0:
		return res, notRun(r.program(), err)
	}
	f := &Failure{Exit: res.Exit}
	f.Text, f.Remedy = Explain(res.Exit, res.Stderr)
	return res, f
}

// notRun says why there was nothing to wait for.
func notRun(program string, err error) *Failure {
	f := &Failure{Exit: -1, Text: fmt.Sprintf("cannot run %s: %v", program, err), Err: err}
	switch {
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, fs.ErrNotExist):
		f.Text = fmt.Sprintf("there is no program %s", program)
		f.Remedy = "install it (Debian: apt-get install rsync), or correct $rsync in skudonet-cluster.conf"
	case errors.Is(err, fs.ErrPermission):
		f.Remedy = "chmod 755 " + program + ", or correct $rsync in skudonet-cluster.conf"
	}
	return f
}

func (r Runner) program() string {
	if r.Program == "" {
		return "rsync"
	}
	return r.Program
}

// check keeps a slip elsewhere from emptying the peer.
func (j Job) check() error {
	switch {
	case !filepath.IsAbs(j.Source) || filepath.Clean(j.Source) == "/":
		return fmt.Errorf("rsync from %q: want an absolute directory that is not /", j.Source)
	case j.Whole && j.Files != nil:
		return fmt.Errorf("rsync from %s: the whole tree, or files of it, not both", j.Source)
	case j.Fetch && j.Whole:
		return fmt.Errorf("rsync into %s: only named files are fetched", j.Source)
	case !j.Whole && len(j.Files) == 0:
		return fmt.Errorf("rsync from %s: no files named", j.Source)
	}
	return nil
}

// args are rsync's. Of the peer's directories only mode and owner count, never
// times: they would not stay, because files are put into them by rename.
func (r Runner) args(j Job) []string {
	var a []string
	if j.Whole {
		// -s: names go through the connection, not through a shell's command line.
		a = append(a, "-s", "-rlptgo", "--delete", "--checksum")
		a = append(a, j.Filters...)
	} else {
		a = append(a, "-lptgoI", "--dirs", "--from0", "--files-from=-")
		if len(j.Files) == 1 && j.Files[0] == "." {
			a = append(a, "--filter=- /*") // nothing of what is in it
		}
	}
	a = append(a, "--numeric-ids", "--no-D", "--omit-dir-times", "--omit-link-times", "--timeout=60")
	if temp := first(j.TempDir, r.TempDir); temp != "" && !j.Fetch {
		a = append(a, "--temp-dir="+temp)
	}
	a = append(a, r.Policy.Args...)
	here, there := strings.TrimRight(j.Source, "/")+"/", "peer:"+first(j.Dest, "./")
	if j.Fetch {
		here, there = there, here
	}
	return append(a, "-e", quote(r.Shell), here, there)
}

func first(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// list is what --files-from reads: names that end in NUL, each of which begins
// with "./", so that none is empty or looks like something else.
func (j Job) list() string {
	var b strings.Builder
	for _, name := range j.Files {
		b.WriteString("./")
		b.WriteString(name)
		b.WriteByte(0)
	}
	return b.String()
}

// quote writes words as rsync's -e wants them: cut at spaces, except within
// quotes, where a doubled quote stands for one.
func quote(words []string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		if w == "" || strings.ContainsAny(w, ` '"`) {
			w = "'" + strings.ReplaceAll(w, "'", "''") + "'"
		}
		quoted[i] = w
	}
	return strings.Join(quoted, " ")
}

// env leaves out what would make rsync behave otherwise: RSYNC_RSH and the like.
func (r Runner) env() []string {
	env := []string{"LC_ALL=C", SocketVariable + "=" + r.Socket}
	for _, v := range [][2]string{{"PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, {"HOME", "/root"}} {
		env = append(env, v[0]+"="+first(os.Getenv(v[0]), v[1]))
	}
	return env
}

// errSurvived is a process that does not even die of SIGKILL.
var errSurvived = errors.New("rsync does not die of SIGKILL; it hangs in the kernel (see ps -o pid,stat,wchan,cmd)")

// ownGroup is for run: a group to end at once, which does not outlive us.
func ownGroup() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}

// run starts a command that has ownGroup and waits for it. Nothing of the group
// is left afterwards.
func run(ctx context.Context, cmd *exec.Cmd) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	started := make(chan error, 1)
	ended := make(chan struct{})
	go func() {
		// Pdeathsig is sent when the thread that forks ends: it stays.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			waitUnreaped(cmd.Process.Pid)
			close(ended)
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	group := -cmd.Process.Pid
	select {
	case <-ended:
	case <-ctx.Done():
		unix.Kill(group, unix.SIGTERM)
		unix.Kill(group, unix.SIGCONT) // what is stopped does not see a SIGTERM
		if !within(grace, ended) {
			unix.Kill(group, unix.SIGKILL)
			if !within(grace, ended) {
				return errSurvived
			}
		}
	}
	// Not reaped yet, the leader keeps the group's number from being given away.
	unix.Kill(group, unix.SIGKILL)
	return cmd.Wait()
}

// waitUnreaped waits until a child has ended.
func waitUnreaped(pid int) {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

func within(limit time.Duration, done <-chan struct{}) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
		return false
	}
}

func exitStatus(p *os.ProcessState) int {
	if w, ok := p.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		return 128 + int(w.Signal())
	}
	return p.ExitCode()
}
