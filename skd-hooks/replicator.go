package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/cmdline"
	"github.com/skudonet/skudonet-ce-cluster/lib/process"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
	"github.com/skudonet/skudonet-ce-cluster/lib/systemd"
)

const (
	replicatorUnit = "skdinotify.service"
	// environmentFile is where the unit looks, wherever the run directory is.
	environmentFile = status.RunDir + "/skdinotify.env"
)

// replicator is skd-inotify on this node, by which a master's changes reach the
// backup. It writes its pid file itself.
type replicator struct {
	program string            // beside this one
	places  map[string]string // absolute paths, by option
	pidFile string
}

func newReplicator(c *cli.Context) (replicator, error) {
	here, err := os.Executable()
	if err != nil {
		return replicator{}, err
	}
	r := replicator{program: filepath.Join(filepath.Dir(here), "skd-inotify"), places: map[string]string{}}
	for option := range cmdline.Variables {
		if r.places[option], err = filepath.Abs(cmdline.Option(c, option)); err != nil { // it runs elsewhere
			return replicator{}, err
		}
	}
	r.pidFile = filepath.Join(r.runDir(), "inotify.pid")
	return r, nil
}

func (r replicator) runDir() string { return r.places["run-dir"] }

// args are its arguments where no unit has them.
func (r replicator) args() (args []string) {
	for _, option := range slices.Sorted(maps.Keys(r.places)) {
		args = append(args, "--"+option, r.places[option])
	}
	return args
}

// environment is the unit's EnvironmentFile: what args says, for systemd. The
// error is a path that systemd would refuse, and all other lines with it.
func (r replicator) environment() (string, error) {
	var text strings.Builder
	for _, option := range slices.Sorted(maps.Keys(r.places)) {
		value, err := quote(r.places[option])
		if err != nil {
			return "", fmt.Errorf("--%s: %w", option, err)
		}
		fmt.Fprintf(&text, "%s=%s\n", cmdline.Variables[option], value)
	}
	return text.String(), nil
}

// quote returns text as it stands in an EnvironmentFile, see systemd.exec(5):
// within double quotes a backslash takes the meaning from four characters, and
// nothing else has one.
func quote(text string) (string, error) {
	odd := func(c rune) bool { return unicode.Is(unicode.Cc, c) && c < 0x80 && c != '\t' && c != '\n' }
	if !utf8.ValidString(text) || strings.ContainsFunc(text, odd) {
		return "", fmt.Errorf("%q: systemd takes no control characters and nothing but UTF-8", text)
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, `$`, `\$`, "`", "\\`").Replace(text) + `"`, nil
}

// writeEnvironment puts the environment where the unit looks, by rename.
func (r replicator) writeEnvironment() error {
	text, err := r.environment()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(environmentFile), 0o755); err != nil {
		return err
	}
	const written = environmentFile + ".new"
	err = os.WriteFile(written, []byte(text), 0o644)
	if err == nil {
		err = os.Chmod(written, 0o644) // whatever the umask
	}
	if err == nil {
		err = os.Rename(written, environmentFile)
	}
	if err != nil {
		os.Remove(written)
	}
	return err
}

// pid is the process that holds the pid file, 0 without one. The number alone
// proves nothing: it may be old and somebody else's by now, even that of a
// session of the same program. So one that nobody holds is wiped out, which
// start-stop-daemon needs too.
func (r replicator) pid() process.ID {
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
	if process.ID(pid).Executable() != r.program {
		return 0
	}
	return process.ID(pid)
}

// systemd tells whether it is the first process and knows the replicator.
func (r replicator) systemd(ctx context.Context) bool {
	return systemd.Booted() && command(ctx, "systemctl", "cat", replicatorUnit) == nil
}

// start starts it unless it runs, and waits for a moment until it does.
func (r replicator) start(ctx context.Context) (string, error) {
	if pid := r.pid(); pid != 0 {
		return fmt.Sprintf("runs already, as %v", pid), nil
	}
	if _, err := os.Stat(r.program); err != nil {
		return "", fmt.Errorf("no %s, so nothing reaches the backup: install skudonet-ce-cluster again", r.program)
	}
	systemd := r.systemd(ctx)
	var err error
	if systemd {
		if err = r.writeEnvironment(); err == nil {
			// It may be waiting for us.
			err = command(ctx, "systemctl", "--no-block", "start", replicatorUnit)
		}
	} else {
		err = command(ctx, "start-stop-daemon", append([]string{"--start", "--background", "--oknodo", "--pidfile", r.pidFile,
			"--exec", r.program, "--"}, r.args()...)...)
	}
	if err != nil {
		return "", err
	}
	const patience, pause = 2 * time.Second, 20 * time.Millisecond
	for began := time.Now(); time.Since(began) < patience; {
		if pid := r.pid(); pid != 0 {
			return fmt.Sprintf("started as %v", pid), nil
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

// stop ends it, however it was started. It waits for the process and never for
// systemd, which may be waiting for us.
func (r replicator) stop(ctx context.Context) (string, error) {
	running := []process.ID{r.pid()}
	var told error
	if r.systemd(ctx) {
		// Also when it does not run: a start may be waiting there.
		told = command(ctx, "systemctl", "--no-block", "stop", replicatorUnit)
		// It may be too young for a pid file. A start that found it dying would be lost.
		running = append(running, mainPID(ctx))
	}
	slices.Sort(running)
	found, err := process.Find(slices.Compact(running), func(id process.ID) bool { return id.Executable() == r.program })
	for _, h := range found {
		_, failed := h.End(ctx, 5*time.Second)
		err = errors.Join(err, failed)
		h.Close()
	}
	if err != nil || len(found) == 0 {
		return "", errors.Join(told, err)
	}
	return "stopped", told
}

// mainPID is the process of the unit, 0 without one.
func mainPID(ctx context.Context) process.ID {
	out, _ := output(ctx, "systemctl", "show", "--property=MainPID", "--value", replicatorUnit)
	pid, _ := strconv.Atoi(strings.TrimSpace(out))
	return process.ID(pid)
}

// command runs one; the error has what it said.
func command(ctx context.Context, name string, args ...string) error {
	_, err := output(ctx, name, args...)
	return err
}

// output is command's, with what it said.
func output(ctx context.Context, name string, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", name, err, strings.Join(strings.Fields(string(out)), " "))
	}
	return string(out), err
}
