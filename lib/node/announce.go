package node

import (
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/skudonet/skudonet-ce-cluster/lib/announce"
	"github.com/skudonet/skudonet-ce-cluster/lib/bootclock"
	"github.com/skudonet/skudonet-ce-cluster/lib/hook"
	"github.com/skudonet/skudonet-ce-cluster/lib/link"
)

// Announce begins the schedule of announcements anew.
func (n *Node) Announce() {
	n.announcing.Store(true)
	n.netLane.do(func() {
		n.schedule.Start(bootclock.Now())
		n.burst()
	})
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
	_, err := announce.Send(n.targets(), func() bool { return !n.announcing.Load() })
	n.troubles.Check("announce", "some hosts may look for the addresses at the old place; announcing again as scheduled: ", err)
	n.runHook(n.announcements, hook.Advertisement)
	if next, more := n.schedule.Next(); more {
		n.timer = time.AfterFunc(max(0, next-bootclock.Now()), func() { n.netLane.do(n.burst) })
	}
}

// targets are the addresses with the link and MAC that each is announced from.
func (n *Node) targets() []announce.Target {
	want := n.addresses()
	type port struct {
		index int
		mac   net.HardwareAddr
	}
	ports := map[string]port{}
	targets := make([]announce.Target, 0, len(want))
	for _, a := range want {
		p, ok := ports[a.Link]
		if !ok {
			if l, err := netlink.LinkByName(a.Link); err == nil {
				p = port{l.Attrs().Index, l.Attrs().HardwareAddr}
			}
			ports[a.Link] = p
		}
		if p.index != 0 && len(p.mac) == 6 {
			targets = append(targets, announce.Target{Link: p.index, MAC: p.mac, Addr: a.Prefix.Addr()})
		}
	}
	return targets
}

// AnnounceSelf tells the network where this node's own address is, so that a
// master that speaks unicast reaches it without asking.
func (n *Node) AnnounceSelf(s link.State) {
	n.netLane.do(func() {
		_, err := announce.Send([]announce.Target{{Link: s.Index, MAC: s.MAC, Addr: s.Local}}, func() bool { return false })
		if err != nil {
			n.log.Warn(fmt.Sprintf("announcing our own address %s failed: %v", netip.Addr(s.Local), err))
		}
	})
}
