package hook

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/process"
)

// ErrSurvived is a script, or a child of it, that does not even die of SIGKILL:
// it hangs in the kernel, on a dead file server for example.
var ErrSurvived = process.ErrSurvived

// trailing is how long the output of a script that has ended is waited for. A
// daemon that the script has left behind may hold it open for ever.
const trailing = 200 * time.Millisecond

// Process returns the Exec that runs scripts as processes: in a group of their
// own, in /, with nothing on standard input, and with the nice value and OOM
// score of any other process although the daemon's are better. To end a script
// its group gets SIGTERM, and SIGKILL when anything of it is left after grace.
// What a script leaves behind when it returns by itself is left alone, and its
// output still read.
func Process(grace time.Duration) Exec {
	return func(ctx context.Context, script string, env []string, line func(string)) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		cmd, err := start(func() *exec.Cmd {
			return &exec.Cmd{Path: script, Args: []string{script}, Env: env, Dir: "/", Stdout: w, Stderr: w,
				SysProcAttr: &syscall.SysProcAttr{Setpgid: true}}
		})
		w.Close()
		if err != nil {
			r.Close()
			return explain(script, err)
		}
		silent := make(chan struct{})
		go func() {
			defer close(silent)
			defer r.Close()
			out := newOutput(line)
			io.Copy(out, r)
			out.finish()
		}()
		waited := make(chan error, 1)
		go func() { waited <- cmd.Wait() }()
		select {
		case err = <-waited:
		case <-ctx.Done():
			err = context.Cause(ctx)
			if !end(cmd.Process.Pid, waited, grace) {
				err = ErrSurvived
			}
		}
		select {
		case <-silent:
		case <-time.After(trailing):
		}
		return err
	}
}

// start starts a command with nice 0 and, where the daemon's is below that, an
// OOM score adjustment of 0.
func start(command func() *exec.Cmd) (cmd *exec.Cmd, err error) {
	// Busy is a script that an editor is writing, or that a process which is
	// just being forked elsewhere has not closed yet.
	for try := 0; try == 0 || try < 10 && errors.Is(err, syscall.ETXTBSY); try++ {
		time.Sleep(time.Duration(min(try, 1)) * 20 * time.Millisecond)
		cmd = command()
		done := make(chan struct{})
		go func() { defer close(done); err = startAtNice0(cmd) }()
		<-done
	}
	if err == nil {
		normalScore(cmd.Process.Pid)
	}
	return cmd, err
}

// startAtNice0 needs a goroutine of its own, and ends its thread. A nice value
// belongs to a thread and is inherited from the one that forks; by ending the
// thread nobody has to be allowed to raise its priority again.
func startAtNice0(cmd *exec.Cmd) (err error) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() { // the main thread would not end, and its nice value shows in ps
		defer runtime.UnlockOSThread()
		done := make(chan struct{})
		go func() { defer close(done); err = startAtNice0(cmd) }()
		<-done
		return err
	}
	unix.Setpriority(unix.PRIO_PROCESS, 0, 0)
	return cmd.Start()
}

// normalScore takes a better OOM score adjustment than 0 from a child.
func normalScore(pid int) {
	path := "/proc/" + strconv.Itoa(pid) + "/oom_score_adj"
	if b, err := os.ReadFile(path); err == nil && len(b) > 0 && b[0] == '-' {
		os.WriteFile(path, []byte("0"), 0)
	}
}

// end ends the process group of pid, whose Wait reports on waited. It tells
// whether that succeeded.
func end(pid int, waited <-chan error, grace time.Duration) bool {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	leader := false
	// gone waits until the leader was reaped and nothing of its group is left.
	// As long as something is, the number of the group is not given away again.
	gone := func() bool {
		for deadline := time.Now().Add(grace); time.Now().Before(deadline); {
			if leader && errors.Is(unix.Kill(-pid, 0), unix.ESRCH) {
				return true
			}
			select {
			case <-waited:
				leader, waited = true, nil
			case <-tick.C:
			}
		}
		return false
	}
	unix.Kill(-pid, unix.SIGTERM)
	unix.Kill(-pid, unix.SIGCONT) // what is stopped does not see a SIGTERM
	if gone() {
		return true
	}
	unix.Kill(-pid, unix.SIGKILL)
	return gone() || leader
}

// explain says what an admin can do about a script that cannot be run.
func explain(script string, err error) error {
	info, serr := os.Stat(script)
	switch {
	case errors.Is(serr, fs.ErrNotExist):
		return errors.New("no such file: restore it, or correct the path in skudonet-cluster.conf")
	case serr == nil && info.IsDir():
		return errors.New("is a directory: correct the path in skudonet-cluster.conf")
	case errors.Is(err, fs.ErrNotExist):
		return errors.New("its first line names an interpreter that does not exist")
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("not executable: chmod 755 %s", script)
	case errors.Is(err, syscall.ENOEXEC):
		return errors.New("its first line names no interpreter: begin it with #!/bin/sh")
	}
	return err
}
