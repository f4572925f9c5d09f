package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/skudonet/skudonet-ce-cluster/lib/cmdline"
	"golang.org/x/sys/unix"
)

const replicatorUnit = "skdinotify.service"

// replicator is skd-inotify on this node, by which a master's changes reach the
// backup. It writes its pid file itself.
type replicator struct {
	program string // beside this one
	pidFile string
	args    []string
}

func newReplicator(c *cli.Context) (replicator, error) {
	here, err := os.Executable()
	if err != nil {
		return replicator{}, err
	}
	r := replicator{program: filepath.Join(filepath.Dir(here), "skd-inotify")}
	place := func(flag string) string {
		var full string
		if err == nil {
			full, err = filepath.Abs(cmdline.Option(c, flag)) // it runs elsewhere
		}
		return full
	}
	r.pidFile = filepath.Join(place("run-dir"), "inotify.pid")
	r.args = []string{"-c", place("config"), "--status-file", place("status-file"),
		"--run-dir", place("run-dir"), "--state-dir", place("state-dir")}
	return r, err
}

// pid is the process that holds the pid file, 0 without one. The number alone
// proves nothing: it may be old and somebody else's by now, even that of a
// session of the same program. So one that nobody holds is wiped out, which
// start-stop-daemon needs too.
func (r replicator) pid() int {
	f, err := os.OpenFile(r.pidFile, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return 0
	}
	defer f.Close()
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
		f.Truncate(0)
		return 0
	}
	text, err := io.ReadAll(io.LimitReader(f, 16))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0
	}
	program, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	// An upgrade replaces the file of a program that runs.
	if err != nil || strings.TrimSuffix(program, " (deleted)") != r.program {
		return 0
	}
	return pid
}

// systemd tells whether it is the first process and knows the replicator.
func (r replicator) systemd(ctx context.Context) bool {
	info, err := os.Lstat("/run/systemd/system")
	return err == nil && info.IsDir() && command(ctx, "systemctl", "cat", replicatorUnit) == nil
}

// start starts it unless it runs, and waits for a moment until it does.
func (r replicator) start(ctx context.Context) (string, error) {
	if pid := r.pid(); pid != 0 {
		return fmt.Sprintf("runs already, as process %d", pid), nil
	}
	if _, err := os.Stat(r.program); err != nil {
		return "", fmt.Errorf("no %s, so nothing reaches the backup: install skudonet-ce-cluster again", r.program)
	}
	systemd := r.systemd(ctx)
	var err error
	if systemd {
		// It may be waiting for us.
		err = command(ctx, "systemctl", "--no-block", "start", replicatorUnit)
	} else {
		err = command(ctx, "start-stop-daemon", append([]string{"--start", "--background", "--oknodo", "--pidfile", r.pidFile,
			"--exec", r.program, "--"}, r.args...)...)
	}
	if err != nil {
		return "", err
	}
	const patience, pause = 2 * time.Second, 20 * time.Millisecond
	for began := time.Now(); time.Since(began) < patience; {
		if pid := r.pid(); pid != 0 {
			return fmt.Sprintf("started as process %d", pid), nil
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
	if systemd && command(ctx, "systemctl", "is-failed", "--quiet", replicatorUnit) != nil {
		return "systemd starts it later; see systemctl status " + replicatorUnit, nil
	}
	return "", fmt.Errorf("started, but not running after %v; its log says why ($zeninolog, /var/log/skdinotify.log by default)", patience)
}

// stop ends it, however it was started.
func (r replicator) stop(ctx context.Context) (string, error) {
	var told error
	if r.systemd(ctx) {
		// Also when it does not run: a start may be waiting there.
		told = command(ctx, "systemctl", "--no-block", "stop", replicatorUnit)
	}
	if r.pid() == 0 {
		return "", told
	}
	if err := command(ctx, "start-stop-daemon", "--stop", "--oknodo", "--pidfile", r.pidFile, "--exec", r.program,
		"--retry", "TERM/5/KILL/2"); err != nil {
		return "", err
	}
	return "stopped", told
}

// command runs one; the error has what it said.
func command(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, strings.Join(strings.Fields(string(out)), " "))
	}
	return nil
}
