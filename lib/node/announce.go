package node

import (
	"fmt"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/address"
	"github.com/skudonet/skudonet-ce-cluster/lib/announce"
	"github.com/skudonet/skudonet-ce-cluster/lib/bootclock"
	"github.com/skudonet/skudonet-ce-cluster/lib/hook"
	"github.com/skudonet/skudonet-ce-cluster/lib/link"
)

// Announce begins the schedule of announcements anew.
func (n *Node) Announce() {
	n.announcing.Store(true)
	n.netLane.do(n.begin)
}

func (n *Node) begin() {
	n.schedule.Start(bootclock.Now())
	n.burst()
}

// StopAnnouncing ends it at once, in the middle of a burst if need be.
func (n *Node) StopAnnouncing() {
	n.announcing.Store(false)
	n.netLane.do(func() {
		if n.timer != nil {
			n.timer.Stop()
		}
	})
}

// burst announces every address once, and runs the admin's hook for it.
func (n *Node) burst() {
	if n.timer != nil {
		n.timer.Stop()
	}
	if !n.announcing.Load() {
		return
	}
	// An address without its link is not up, which is said already.
	targets, _ := announce.Targets(n.addresses())
	_, err := announce.Send(targets, func() bool { return !n.announcing.Load() })
	n.troubles.Check("announce", "some hosts may look for the addresses at the old place; announcing again as scheduled: ", err)
	n.runHook(n.announcements, hook.Advertisement)
	if next, more := n.schedule.Next(); more {
		n.timer = time.AfterFunc(max(0, next-bootclock.Now()), func() { n.netLane.do(func() { n.due(next) }) })
	}
}

// due is the time of a scheduled burst. When it is over for long, this process
// did not run: the election is given the time to find out who is master now.
func (n *Node) due(at time.Duration) {
	if bootclock.Now()-at <= n.conf.AdvertInterval {
		n.burst()
		return
	}
	n.timer = time.AfterFunc(n.conf.AdvertInterval, func() { n.netLane.do(n.burst) })
}

// AnnounceSelf tells the network where this node's own address is, so that a
// master that speaks unicast reaches it without asking.
func (n *Node) AnnounceSelf(s link.State) {
	var own []address.Address
	for _, l := range s.Local {
		own = append(own, address.Address{Prefix: l.Prefix, Link: s.Name})
	}
	n.netLane.do(func() {
		targets, err := announce.Targets(own)
		if err == nil {
			_, err = announce.Send(targets, func() bool { return false })
		}
		if err != nil {
			n.log.Warn(fmt.Sprintf("announcing our own address failed: %v", err))
		}
	})
}
