package e2e

import (
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/test/lab"
)

// Signals come when they like, also while the program executes itself anew: a
// storm of them neither ends a master nor keeps it from stopping in order.
func TestASignalStormEndsInAStop(t *testing.T) {
	p := newPair(t, keys{"advert_interval": "1", "dead_ratio": "5"})
	n := p.LB1
	d := p.startAs(n, lab.DaemonSpec{Args: []string{"skd-vrrpd"}})
	p.waitStatus(n, "master")
	for i := range 40 {
		p.signal(n, unix.SIGHUP)
		if i%4 == 0 {
			p.signal(n, unix.SIGUSR1)
		}
		time.Sleep(15 * time.Millisecond) // the distance is what is tested
	}
	p.logged(n, "the daemon restarted in time and goes on")
	select {
	case <-d.Done():
		t.Fatalf("the daemon ended: %v", d.Exits()[0].State)
	default:
	}
	p.waitStatus(n, "master")
	// The last of the storm may still be under way, and what comes in the first
	// milliseconds of a process has its default action.
	starts, since := 0, time.Now()
	p.eventually("the end of the storm", func() (bool, string) {
		if now := p.timesLogged(n, "started on"); now != starts {
			starts, since = now, time.Now()
		}
		return time.Since(since) > time.Second, fmt.Sprint(starts)
	})
	p.signal(n, unix.SIGTERM)
	p.eventually("the end of the daemon", func() (bool, string) {
		select {
		case <-d.Done():
			return true, ""
		default:
			return false, lastLine(d.Log())
		}
	})
	if code := d.Exits()[0].State.ExitCode(); code != 0 {
		t.Errorf("exit status %d, want 0", code)
	}
	if n.Status() != "" {
		t.Errorf("status %q after the stop", n.Status())
	}
}

// A shorter interval in the new configuration does not make the last advert,
// which promised the old one, late.
func TestReExecWithAShorterInterval(t *testing.T) {
	p := startPair(t, keys{"advert_interval": "1"})
	p.configure(p.LB1, keys{"advert_interval": "0.2"})
	since := time.Now()
	p.signal(p.LB1, unix.SIGHUP)
	p.logged(p.LB1, "the daemon restarted in time and goes on")
	p.waitMaster(p.LB1)
	if words := p.changes(p.LB2, since); len(words) > 0 {
		t.Errorf("the peer became %v", words)
	}
}
