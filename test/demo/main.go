// Demo shows a cluster at work: two nodes, a switch and a client in a lab, what
// happens to them, and what the client and the prompts saw of it. A table at the
// end holds that against what was to be expected; the exit status is 1 if a line
// of it did not hold. Nothing is left behind, unless -keep asks for the lab.
//
// It needs the programs that "make build" puts into bin. It measures one run on
// this machine and compares with nothing else: that is what test/bench is for.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/test/lab"
)

const (
	exitFailed      = 1
	exitUsage       = 2
	exitInterrupted = 130 // as a shell counts it
)

// limit of a whole run, of which a quiet machine needs a quarter.
const limit = 2 * time.Minute

func main() {
	keep := flag.Bool("keep", false, "leave the lab running, and say how to enter and how to end it")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "demo: %q: want no argument\n", flag.Arg(0))
		os.Exit(exitUsage)
	}
	interrupted, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	context.AfterFunc(interrupted, stop) // The second Ctrl-C is the system's: the lab ends with this program however it ends.
	ctx, cancel := context.WithTimeout(interrupted, limit)
	defer cancel()
	held, err := run(ctx, newScreen(os.Stdout), *keep)
	switch {
	case interrupted.Err() != nil:
		fmt.Fprintln(os.Stderr, "demo: interrupted; the lab is gone")
		os.Exit(exitInterrupted)
	case err != nil:
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(exitFailed)
	case !held:
		os.Exit(exitFailed)
	}
}

// run tells whether every line of the summary held.
func run(ctx context.Context, s *screen, keep bool) (held bool, err error) {
	if err := built(); err != nil {
		return false, err
	}
	s.begin()
	l, err := lab.New(lab.Options{Keep: keep, Out: io.Discard})
	if err != nil {
		return false, err
	}
	defer func() {
		end := l.Close
		if keep && (err != nil || ctx.Err() == context.Canceled) {
			// Nobody asked to keep half a run. The other machines end with the switch.
			end = func() error { return unix.Kill(l.Switch.PID(), unix.SIGKILL) }
		}
		if e := end(); err == nil {
			err = e
		}
	}()
	d, err := prepare(l, s)
	if err != nil {
		return false, err
	}
	held = d.play(ctx)
	if keep && ctx.Err() != context.Canceled {
		d.leave(ctx)
	}
	return held, nil
}

func built() error {
	module, err := lab.ModuleDir()
	if err != nil {
		return err
	}
	for _, name := range []string{"skd-vrrpd", "skd-inotify", "skd-hooks", "skd-prompt"} {
		if _, err := os.Stat(filepath.Join(module, "bin", name)); err != nil {
			return fmt.Errorf("%w; run make build first", err)
		}
	}
	return nil
}
