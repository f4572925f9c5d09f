package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/cmdline"
	"github.com/skudonet/skudonet-ce-cluster/lib/conf"
	"github.com/skudonet/skudonet-ce-cluster/lib/node"
	"github.com/skudonet/skudonet-ce-cluster/lib/pidfile"
	"github.com/skudonet/skudonet-ce-cluster/lib/syslog"
)

// logged runs a command that a boot or a unit starts, so that what it does is
// found where the daemon's own lines are.
func logged(c *cli.Context, run func(*cli.Context, *slog.Logger) error) error {
	sink := syslog.Open(program)
	defer sink.Flush(time.Second)
	err := run(c, sink.Logger())
	if err != nil && !sink.OnStderr() { // where main prints it
		sayAll(sink.Logger(), err)
	}
	return err
}

// survey looks for what a daemon has left, with as much of the configuration as
// is right.
func survey(c *cli.Context, log *slog.Logger) *node.Remains {
	cfg, err := conf.Salvage(c.String("config"))
	if err != nil {
		for line := range strings.Lines(err.Error()) {
			log.Warn(strings.TrimSuffix(line, "\n"))
		}
		log.Warn("going on with what is right of the configuration")
	}
	return node.Survey(cfg, places(c), log)
}

// raiseGuard keeps this node silent until a daemon runs. It is for a boot, which
// it must not hold up: what stands in its way is said, and no more.
func raiseGuard(c *cli.Context, log *slog.Logger) error {
	places := places(c)
	p, err := look(places)
	if err == nil && (p.life == running || p.life == replaced) {
		log.Info(fmt.Sprintf("nothing done: process %d of skd-vrrpd is at work, and sees to the guard", p.pid))
		return nil
	}
	r := survey(c, log)
	// Where the run directory cannot be written no daemon can start either.
	if os.MkdirAll(places.RunDir, 0o755) == nil {
		place, err := replace(places, "guard")
		var held *pidfile.Held
		switch {
		case errors.As(err, &held):
			log.Info("nothing done: skd-vrrpd has just started, and sees to the guard")
			return nil
		case err == nil:
			defer place.leave()
		}
	}
	guarded, err := r.Guard()
	switch {
	case err != nil:
		return fmt.Errorf("the guard cannot be raised, so this node may answer for addresses that the master carries: %w", err)
	case guarded == 0:
		log.Info("no virtual address is known; nothing to guard")
	default:
		log.Info(fmt.Sprintf("the guard keeps this node silent about %d virtual addresses until it is master", guarded))
	}
	return nil
}

// silence raises the guard on a node that is still one of the cluster, unless
// its addresses are up: then somebody may be served by it.
func silence(r *node.Remains, log *slog.Logger) error {
	idle, err := r.Idle()
	switch {
	case err != nil:
		return err
	case !idle:
		log.Info("nothing is left of a daemon: nothing to clean up")
		return nil
	}
	if _, err := r.Guard(); err != nil {
		return err
	}
	log.Info("nothing to clean up; the guard keeps this node silent until the service runs again")
	return nil
}

// clean does away with what a daemon has left that ended for good.
func clean(c *cli.Context, log *slog.Logger) error {
	places, how := places(c), node.Stopped
	switch failed, disabled := c.Bool("failed"), c.Bool("disabled"); {
	case failed && disabled:
		return cmdline.UsageError(program, errors.New("clean: want --failed or --disabled, not both"))
	case failed:
		how = node.Failed
	case disabled:
		how = node.Disabled
	}
	p, err := look(places)
	switch {
	case err != nil:
		return err
	case p.life == running:
		return fmt.Errorf("skd-vrrpd runs here, as process %d: stop it first; nothing was done", p.pid)
	case p.life == replaced:
		return fmt.Errorf("skd-vrrpd %s is at work here, as process %d; nothing was done", p.word, p.pid)
	}
	left, err := node.Left(places)
	switch {
	case err != nil:
		return err
	case !left && how != node.Failed:
		log.Info("nothing is left of a daemon: nothing to clean up")
		return nil
	case !left: // a restart ended the last one well, and the next one did not start
		return silence(survey(c, log), log)
	}
	if err := os.MkdirAll(places.RunDir, 0o755); err != nil {
		return err
	}
	place, err := replace(places, "clean")
	var held *pidfile.Held
	switch {
	case errors.As(err, &held):
		return fmt.Errorf("skd-vrrpd has just started, %w; nothing was done", err)
	case err != nil:
		return err
	}
	defer place.vacate()
	r := survey(c, log)
	ctx, done := signal.NotifyContext(c.Context, unix.SIGTERM, unix.SIGINT)
	defer done()
	log.Info("cleaning up what a daemon has left that ended")
	if err := r.Clean(ctx, how); err != nil {
		return cli.Exit(err, cmdline.Failed) // whatever the exit status of a script in it
	}
	if how == node.Failed {
		log.Info("cleaned up; the guard keeps this node silent until the service runs again")
	} else {
		log.Info("cleaned up")
	}
	return nil
}
