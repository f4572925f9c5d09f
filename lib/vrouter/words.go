package vrouter

import (
	"fmt"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/election"
)

// why says the reason of a transition, for the log, status and vrrpd.json.
func (r *Router) why(e election.Effect) string {
	switch e.Reason {
	case election.Started:
		return "the service started" + hesitation(e)
	case election.Resumed:
		return "the daemon restarted in time and goes on"
	case election.MasterSilent:
		if e.From.IsValid() {
			return fmt.Sprintf("no advertisement from %s for %s", e.From, short(e.After))
		}
		return fmt.Sprintf("no advertisement from anybody for %s", short(e.After))
	case election.Invited:
		return fmt.Sprintf("%s hands over", e.From)
	case election.MasterLeft:
		if r.peer.CARP {
			return fmt.Sprintf("%s advertises so seldom that it counts as dead", e.From)
		}
		return fmt.Sprintf("%s left", e.From)
	case election.Preempted:
		if r.peer.CARP {
			return fmt.Sprintf("%s has a lower rank in CARP, and $preempt is on", e.From)
		}
		return fmt.Sprintf("%s has a lower priority than our %d, and $preempt is on", e.From, r.cfg.Election.Priority)
	case election.HigherPriority:
		if r.peer.CARP {
			return fmt.Sprintf("%s has a higher rank in CARP", e.From)
		}
		return fmt.Sprintf("%s has a higher priority", e.From)
	case election.HigherAddress:
		return fmt.Sprintf("%s has the same priority and the higher address", e.From)
	case election.HandedOver:
		return fmt.Sprintf("handed over to %s", e.From)
	case election.ReplacedMeantime:
		return fmt.Sprintf("%s took over while this node did not run", e.From)
	case election.LinkFailed:
		return r.fault
	case election.LinkReturned:
		return "the link is back" + hesitation(e)
	case election.Stopping:
		return "the service stops"
	case election.LowerOctets:
		return fmt.Sprintf("%s has the same rank in CARP, and wins the tie by its last octet", e.From)
	case election.AddressOwner:
		return "priority 255 owns the address"
	}
	return "unknown reason"
}

// hesitation says why a node that was never in a cluster waits longer.
func hesitation(e election.Effect) string {
	if e.After == 0 {
		return ""
	}
	return "; " + fmt.Sprintf("first start: $cluster_ip is not a virtual interface here, so this node waits %s for a node where it is", short(e.After))
}

// note says what did not change the state but is worth a line.
func (r *Router) note(e election.Effect) {
	switch e.Reason {
	case election.Held:
		who := fmt.Sprintf("the peer %s", e.From)
		if e.From != r.cfg.Election.Peer {
			who = fmt.Sprintf("%s, which is not $remote_ip,", e.From)
		}
		r.troubles.Set("held", fmt.Sprintf("not becoming master while %s advertises what this node must not obey: %s", who, remedy(r.strange)))
	case election.Stalled:
		r.log.Warn(fmt.Sprintf("this process did not run for %s, longer than the down interval; silent for %s, to hear whether somebody took over",
			short(e.After), short(e.Interval)))
	case election.StallOver:
		r.log.Info("nobody took over during the stall; going on as master")
	case election.LateTimer:
		r.log.Warn(fmt.Sprintf("the down interval ended %s ago while this process did not run; listening once more before taking over", short(e.After)))
	case election.NoSuccessor:
		r.log.Warn(fmt.Sprintf("no successor within %s, staying master; is the peer running?", short(e.After)))
	case election.NotMaster:
		r.log.Info(fmt.Sprintf("nothing to hand over: this node is not master (%s)", r.machine.State()))
	case election.LosingRival:
		if r.rivalSaid == 0 || r.now-r.rivalSaid >= sayAgain {
			r.rivalSaid = r.now
			r.log.Warn(fmt.Sprintf("%s believes to be master too, with a lower rank; told so", e.From))
		}
	case election.CarrierGone:
		r.log.Warn(r.fault + "; ignored, because $link_loss is \"ignore\"")
	case election.UcarpHeard:
		r.log.Info(fmt.Sprintf("%s is ucarp: speaking CARP beside VRRPv3 until it is upgraded", e.From))
		r.bridge = Bridge{Peer: r.cfg.peerName(), Ucarp: true, Forgotten: r.bridge.Forgotten}
		r.save()
	case election.BridgeEnded:
		const over = "CARP is neither spoken nor heard any more, for good; now change the password: CARP let others test guesses"
		if e.From.IsValid() {
			r.log.Warn(fmt.Sprintf("%s speaks VRRPv3: %s", e.From, over))
		} else {
			r.log.Warn(fmt.Sprintf("%s answers over ssh as an upgraded node: %s", r.cfg.Election.Peer, over))
		}
		r.bridge = Bridge{Peer: r.cfg.peerName(), Ended: true}
		r.save()
	case election.IntervalSeen:
		if e.Dialect == election.CARP && r.saidInterval != e.Interval {
			r.saidInterval = e.Interval
			r.log.Warn(fmt.Sprintf("%s advertises every %s (CARP) and our $advert_interval is %s: set the same on both nodes, because CARP does not follow it",
				e.From, e.Interval, r.cfg.Election.Interval))
		}
		if r.saidInterval != e.Interval {
			r.saidInterval = e.Interval
			r.log.Warn(fmt.Sprintf("%s advertises every %s and our $advert_interval is %s; following it, but set the same on both nodes",
				e.From, e.Interval, r.cfg.Election.Interval))
		}
	}
}

// short rounds a duration to what a reader wants to know.
func short(d time.Duration) time.Duration {
	if d < time.Second {
		return d.Round(100 * time.Microsecond)
	}
	return d.Round(time.Millisecond)
}
