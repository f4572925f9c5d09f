package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/cmdline"
	"github.com/skudonet/skudonet-ce-cluster/lib/skudonet"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
)

// apply restarts Skudonet on a master whose configuration was replaced under
// it. The status file alone tells it that the node is master no more: a demotion
// neither signals it nor waits for more than a stop.
func apply(c *cli.Context) error {
	ctx, file, dir := c.Context, cmdline.Option(c, "status-file"), cmdline.Option(c, "run-dir")
	word, err := role(file)
	if err != nil {
		return err
	}
	if word != status.Master {
		fmt.Printf("this node is %s: nothing to apply\n", word)
		return nil
	}
	cl, err := load(c)
	if err != nil {
		return err
	}
	// Who has started us, and reads what we say, may be ended before us.
	signal.Ignore(unix.SIGPIPE)
	if err := skudonet.Owe(dir); err != nil {
		return err
	}
	leaveReplicator(ctx)
	unlock, err := lock(ctx, dir)
	if err != nil {
		return err
	}
	defer unlock()
	err = restart(ctx, cl.skudonet(), file, dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return cli.Exit("", cmdline.Failed)
	}
	return nil
}

// restart is apply's work. The caller has the lock.
func restart(ctx context.Context, s *skudonet.Service, file, dir string) error {
	ruling, done := whileMaster(ctx, file)
	defer done()
	if ruling.Err() != nil {
		fmt.Println("this node is not master any more: nothing to apply")
		return skudonet.Settle(dir)
	}
	if err := s.Ready(); err != nil {
		return fmt.Errorf("skudonet: failed: it goes on with the old configuration: %w", err)
	}
	// Once more: a start that had the lock may have settled it.
	err := skudonet.Owe(dir)
	if err != nil {
		return err
	}
	// Also on a node that is demoted meanwhile.
	err = step{"skudonet", s.Stop}.do(ctx)
	if ruling.Err() == nil {
		// One that was not stopped may be up with the old configuration.
		err = errors.Join(err, step{"skudonet", s.Start}.do(ruling))
		if err == nil {
			err = skudonet.Settle(dir)
		}
		err = errors.Join(err, linksStep(s).do(ruling))
	}
	if ruling.Err() == nil || ctx.Err() != nil {
		return err
	}
	fmt.Println("this node is not master any more: stopping Skudonet again")
	return step{"skudonet", func(ctx context.Context) (string, error) { return stopForGood(ctx, s, dir) }}.do(ctx)
}

// startAsOwed starts Skudonet unless it is up. Where a restart is owed, one that
// is up may have the old configuration, or be half down: it is stopped first.
func startAsOwed(ctx context.Context, s *skudonet.Service, dir string) (string, error) {
	if !skudonet.Pending(dir) {
		return s.Start(ctx)
	}
	if err := s.Ready(); err != nil {
		return "", err
	}
	s.Say("its configuration was replaced, and the restart for that has not come to its end: restarting it")
	text, stopped := s.Stop(ctx)
	if stopped == nil {
		s.Say(text)
	}
	text, err := s.Start(ctx)
	if err = errors.Join(stopped, err); err == nil {
		err = skudonet.Settle(dir)
	}
	return text, err
}

// stopForGood stops Skudonet on a node that is to be backup, which owes no
// restart.
func stopForGood(ctx context.Context, s *skudonet.Service, dir string) (string, error) {
	text, err := s.Stop(ctx)
	if err == nil {
		err = skudonet.Settle(dir)
	}
	return text, err
}

// whileMaster returns a context that ends with ctx, and when the status file
// does not say master any more. It has ended when it returns if that is so
// already.
func whileMaster(ctx context.Context, file string) (ruling context.Context, done func()) {
	const pause = 20 * time.Millisecond
	ruling, done = context.WithCancel(ctx)
	look := func() bool {
		word, err := status.Read(file)
		if err != nil || word != status.Master {
			done()
		}
		return ruling.Err() == nil
	}
	if !look() {
		return ruling, done
	}
	go func() {
		tick := time.NewTicker(pause)
		defer tick.Stop()
		for look() {
			select {
			case <-tick.C:
			case <-ruling.Done():
			}
		}
	}()
	return ruling, done
}
