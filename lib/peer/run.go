package peer

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/step"
)

const (
	rolePeriod    = 100 * time.Millisecond // how often the status file is read while rsync runs
	childrenLimit = time.Second            // how long the children of a killed rsync are waited for
)

// run is what the session's reader knows of an rsync: where its frames go.
type run struct {
	names    *ahead
	stdin    *inflow
	stdout   *outflow
	once     sync.Once
	canceled chan struct{}
}

func newRun() *run {
	return &run{names: newAhead(), stdin: newInflow(), stdout: newOutflow(), canceled: make(chan struct{})}
}

// take takes one of the small letters; without a run they are for one that is over.
func (r *run) take(f frame) error {
	if r == nil {
		return nil
	}
	switch f.kind {
	case frameNames:
		return r.names.put(f.body)
	case frameStdin:
		return r.stdin.put(f.body)
	case frameClose:
		r.stdin.end()
	case frameWindow:
		return r.stdout.grant(f.body)
	case frameCancel:
		r.once.Do(func() { close(r.canceled) })
	}
	return nil
}

// command checks the words that the master's rsync would have ssh run, and
// returns rsync's arguments. With fetch it sends, else it receives.
func command(words []string, fetch bool) ([]string, *Error) {
	if len(words) < 4 || filepath.Base(words[1]) != "rsync" || words[2] != "--server" {
		return nil, refused("%.200q is not the command of an rsync server", words)
	}
	args := words[2:]
	rest := args[1:]
	if fetch {
		if rest[0] != "--sender" {
			return nil, refused("%.200q is not the command of an rsync that sends", words)
		}
		rest = rest[1:]
	}
	for _, a := range rest {
		for _, never := range []string{"--sender", "--daemon", "--config", "--remove-s"} {
			if strings.HasPrefix(a, never) {
				return nil, refused("rsync %s is not run for another node", a)
			}
		}
	}
	if at := args[len(args)-1]; at != "." && at != "./" {
		return nil, refused("rsync of %.200q: only the root itself, ./, is carried", at)
	}
	return args, nil
}

// own adds to rsync's arguments what the master cannot know: where temporary files
// go, if temp is not "", and where what it replaces; and that errors are told to the
// client, not to a standard error that it does not see.
func (s *session) own(args []string, temp string, n *replacing) []string {
	var extra []string
	if temp != "" {
		extra = append(extra, "--temp-dir="+temp)
	}
	if n != nil {
		extra = append(extra, "--backup", "--backup-dir="+n.dir)
	}
	if s.aside {
		extra = append(extra, "--no-msgs2stderr")
	}
	at := 1
	if args[at] == "--sender" {
		at++ // it must stay the first but one
	}
	return slices.Insert(args, at, extra...)
}

// runRsync runs the server half of an rsync in a root.
func (s *session) runRsync(ctx context.Context, q rsyncRequest, r *run) (any, *Error) {
	root, refusal := s.root(q.Root)
	if refusal != nil {
		return nil, refusal
	}
	args, refusal := command(texts(q.Args), q.Fetch)
	if refusal == nil && !q.Fetch {
		refusal = s.host.mayChange()
	}
	if refusal != nil {
		return nil, refusal
	}
	if q.Fetch {
		return s.rsyncIn(ctx, root, s.own(args, "", nil), r, true)
	}
	if began, refusal := s.beforeRsync(ctx, root, q, r); refusal != nil || !began {
		return rsyncAnswer{ended}, refusal
	}
	a, refusal := s.rsyncIn(ctx, root, s.own(args, root.temp, root.replacing), r, false)
	empty(root.temp)
	if unkept := s.sift(ctx, root, q.Keep); refusal == nil {
		refusal = unkept
	}
	return a, refusal
}

func (s *session) rsyncIn(ctx context.Context, root *root, args []string, r *run, fetch bool) (any, *Error) {
	p, err := s.start(root.dir, args)
	if err != nil {
		if _, gone := os.Stat(root.dir); gone != nil {
			return nil, root.unreadable(gone)
		}
		return nil, &Error{Kind: kindFailed, Text: fmt.Sprintf("cannot run %s in %s: %v", s.rsync, root.dir, err),
			Remedy: "correct $rsync in this node's skudonet-cluster.conf, or install rsync (Debian: apt-get install rsync)"}
	}
	step.At("peer.rsync.started")
	if err := s.lock.note(p.cmd.Process.Pid); err != nil {
		p.end()
		return nil, &Error{Kind: kindFailed, Text: err.Error()}
	}
	defer s.lock.note(0)
	defer step.At("peer.rsync.ended")
	return s.carry(ctx, p, r, fetch)
}

// ended is the exit status of an rsync that was ended before it began.
const ended = 128 + int(unix.SIGKILL)

// beforeRsync takes the names of what rsync may write, and prepares for that. It
// returns false if the client has ended it already.
func (s *session) beforeRsync(ctx context.Context, root *root, q rsyncRequest, r *run) (bool, *Error) {
	if q.Names < 0 || q.Names > maxNamesAhead {
		return false, refused("%d bytes of paths: at most %d MiB are taken", q.Names, maxNamesAhead>>20)
	}
	data, ok := r.names.take(ctx, q.Names, r.canceled)
	if !ok {
		return false, nil
	}
	paths, refusal := divided(data, root.name)
	if refusal != nil {
		return false, refusal
	}
	switch {
	case q.Keep == nil:
		root.synced = false // it may write anything
	case len(paths) == 0:
		return false, refused("rsync in %s: what it replaces is to be archived, but no path is named", root.name)
	}
	return true, s.prepare(ctx, root, paths, q.Keep)
}

// carry moves the streams until the process has ended, or must be ended.
func (s *session) carry(ctx context.Context, p *process, r *run, fetch bool) (any, *Error) {
	stop := make(chan struct{})
	send := func(f frame) bool { return s.sendUntil(stop, f) }
	var in, out sync.WaitGroup
	in.Go(func() {
		r.stdin.drain(p.stdin, stop, send)
		p.stdin.Close()
	})
	out.Go(func() { r.stdout.pump(p.stdout, frameStdout, stop, send) })
	out.Go(func() { sendStderr(p.stderr, send) })
	through := make(chan struct{})
	go func() { out.Wait(); <-p.waited; close(through) }()

	tick := time.NewTicker(rolePeriod)
	defer tick.Stop()
	var refusal *Error
	for running := true; running; {
		select {
		case <-through:
			running = false
		case <-ctx.Done():
			running = false
		case <-r.canceled:
			running = false
		case <-tick.C:
			if !fetch {
				refusal = s.host.mayChange()
			}
			running = refusal == nil
		}
	}
	p.end()
	close(stop)
	p.closeStreams()
	in.Wait()
	<-through
	if refusal != nil {
		return nil, refusal
	}
	return rsyncAnswer{p.exit()}, nil
}

func (s *session) sendUntil(stop <-chan struct{}, f frame) bool {
	select {
	case s.sender.frames <- f:
		return true
	case <-stop:
		return false
	case <-s.over:
		return false
	}
}

// sendStderr sends the beginning of r and reads the rest.
func sendStderr(r io.Reader, send func(frame) bool) {
	left, cut := maxStderr, false
	buf := make([]byte, 4096)
	for {
		n, err := r.Read(buf)
		if n > 0 && !cut {
			send(frame{frameStderr, slices.Clone(buf[:min(n, left)])})
			if cut = n > left; cut {
				send(frame{frameStderr, []byte("\n[the rest is left out]\n")})
			}
			left -= min(n, left)
		}
		if err != nil {
			return
		}
	}
}

// process is a running rsync, in a process group of its own.
type process struct {
	cmd            *exec.Cmd
	stdin          *os.File
	stdout, stderr *os.File

	mu     sync.Mutex
	reaped bool
	waited chan struct{} // it has ended and was reaped
}

// environment is rsync's: nothing of the session's gets into it.
func environment() []string {
	home := os.Getenv("HOME")
	if home == "" {
		home = "/root"
	}
	return []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + home, "LC_ALL=C"}
}

func (s *session) start(dir string, args []string) (*process, error) {
	var files [6]*os.File // ours and rsync's end of each stream
	defer func() {
		for _, f := range files {
			f.Close() // of nil and of what was taken out below: nothing happens
		}
	}()
	for i := range 3 {
		var err error
		if files[2*i], files[2*i+1], err = os.Pipe(); err != nil {
			return nil, err
		}
	}
	cmd := exec.Command(s.rsync, args...)
	cmd.Dir, cmd.Env = dir, environment()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = files[0], files[3], files[5]
	cmd.ExtraFiles = []*os.File{s.lock.file}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	p := &process{cmd: cmd, waited: make(chan struct{})}
	started := make(chan error, 1)
	go p.live(started)
	if err := <-started; err != nil {
		return nil, err
	}
	p.stdin, p.stdout, p.stderr = files[1], files[2], files[4]
	files[1], files[2], files[4] = nil, nil, nil
	return p, nil
}

// live starts the process and waits for its end, all on one thread: the death of
// the thread that started it would be the death signal.
func (p *process) live(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := p.cmd.Start()
	started <- err
	if err != nil {
		return
	}
	defer close(p.waited)
	// As long as it is not reaped, its number is nobody else's.
	for unix.Waitid(unix.P_PID, p.cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	unix.Kill(-p.cmd.Process.Pid, unix.SIGKILL)
	p.cmd.Wait()
	p.reaped = true
}

func (p *process) signal(sig unix.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.reaped {
		unix.Kill(-p.cmd.Process.Pid, sig)
	}
}

// end ends the process if it has not ended yet. It needs no chance to tidy up: its
// temporary files are in a directory that is emptied after it. (On SIGTERM it
// would sleep for 0.4 s.)
func (p *process) end() {
	p.signal(unix.SIGKILL)
	<-p.waited
	p.childless()
}

// childless waits until its children are gone, too: a rename that was begun is done
// however it is ended.
func (p *process) childless() {
	raw, err := p.stderr.SyscallConn()
	if err != nil {
		return
	}
	raw.Control(func(fd uintptr) {
		for end := time.Now().Add(childrenLimit); ; {
			// Nothing is asked for: that nobody can write into it any more is told anyway.
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd)}}, int(time.Until(end).Milliseconds()))
			if n > 0 || err != unix.EINTR || time.Now().After(end) {
				return
			}
		}
	})
}

func (p *process) closeStreams() {
	p.stdin.Close()
	p.stdout.Close()
	p.stderr.Close()
}

// exit is its exit status, or 128 and the signal that ended it.
func (p *process) exit() int {
	if ws, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return p.cmd.ProcessState.ExitCode()
}
