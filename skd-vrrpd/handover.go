package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/bootclock"
	"github.com/skudonet/skudonet-ce-cluster/lib/node"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
)

const (
	answerPoll  = 20 * time.Millisecond
	answerSlack = 5 * time.Second // for a daemon that lives
)

// handOver asks the daemon to hand over, and waits for what becomes of it.
func handOver(c *cli.Context) error {
	places := places(c)
	p, err := look(places)
	switch {
	case err != nil:
		return err
	case p.life != running:
		return errors.New("skd-vrrpd does not run here: nothing to hand over")
	}
	d, err := status.ReadDaemon(filepath.Join(places.RunDir, status.DaemonFile))
	if err != nil {
		return err
	}
	if d.State != status.Master {
		fmt.Printf("not master: this node is %s (%s); nothing to hand over\n", d.State, d.Reason)
		return nil
	}
	if err := unix.Kill(p.pid, unix.SIGUSR2); err != nil {
		return fmt.Errorf("tell process %d: %w", p.pid, err)
	}
	reason, err := outcome(places, p.pid)
	if err != nil {
		return err
	}
	fmt.Println("this node is backup now: " + reason)
	return nil
}

// outcome waits until the master is none any more, and returns why, or until it
// has given up. While it waits for a successor its record does not say master,
// because a daemon that was restarted then would not go on as one.
func outcome(places node.Places, pid int) (reason string, err error) {
	leaving := false
	most := flushLimit + answerSlack
	for begun := time.Now(); time.Since(begun) < most; time.Sleep(answerPoll) {
		record, unread := node.ReadRecord(places.RunDir)
		// After the record: a master that has just become backup is seen as that.
		d, err := status.ReadDaemon(filepath.Join(places.RunDir, status.DaemonFile))
		switch {
		case err != nil:
			return "", err
		case d.State == status.Backup:
			return d.Reason, nil
		case d.State != status.Master:
			return "", fmt.Errorf("this node is not master any more, but not because it handed over: %s (%s)", d.State, d.Reason)
		case !status.Alive(pid, bootclock.Now()):
			return "", errors.New("skd-vrrpd ended meanwhile")
		case unread == nil && !record.Master:
			leaving = true
		case unread == nil && leaving:
			return "", fmt.Errorf("no successor within %s, staying master; is the peer running?", d.HandOverLimit)
		}
		most = max(most, flushLimit+time.Duration(d.HandOverLimit)+answerSlack) // it may have noticed meanwhile that the peer is ucarp
	}
	return "", fmt.Errorf("still master after %s, and skd-vrrpd does not say why; see its log", most)
}
