package election

import (
	"net/netip"
	"slices"
	"time"
)

// Dialect is what an election speaks.
type Dialect uint8

const (
	VRRP Dialect = iota // VRRPv3 alone
	CARP                // CARP alone, as ucarp 1.5.2 speaks it
	// Both hears both, and speaks CARP beside VRRPv3 while the peer is known to
	// speak nothing else. It ends, and is VRRP from then on, when the peer was heard
	// with VRRPv3.
	Both
)

// Timing is how CARP says in one what VRRP says in two, the interval and the
// rank: an advert every advbase + advskew/256 seconds. The shorter one ranks
// higher (ucarp 1.5.2 carp.c).
type Timing struct {
	Base uint8 // advbase, in seconds
	Skew uint8 // advskew, in 1/256 s
}

// Goodbye takes ucarp's branch for a master that is about to time out: a backup
// takes over at once. ucarp itself never says it.
var Goodbye = Timing{Base: 255, Skew: 255}

// TimingOf is what stands in CARP for a priority and an interval: advbase is the
// interval in seconds. advskew is 0 from priority 100 on, which is what version
// 2.0 gave both of its nodes, so that the default ranks as these do; below it is
// one for each that is missing, up to 99.
func TimingOf(priority uint8, interval time.Duration) Timing {
	return Timing{Base: uint8(max(1, interval/time.Second)), Skew: 100 - min(100, priority)}
}

// Interval is the time from one advert to the next.
func (t Timing) Interval() time.Duration { return time.Duration(t.Base)*time.Second + t.skew() }

// Down is how long ucarp with this timing hears nothing before it takes the
// master for dead.
func (t Timing) Down(deadRatio int) time.Duration {
	return time.Duration(deadRatio)*time.Duration(t.Base)*time.Second + t.skew()
}

func (t Timing) skew() time.Duration { return time.Duration(t.Skew) * time.Second / 256 }

// ucarpSilence is how long a ucarp that was just promoted may be silent: it
// advertises when its up script has returned, which in version 2.0 starts a load
// balancer, and notices what it hears up to a second late.
const ucarpSilence = 10 * time.Second

// Speaks is the dialect in which the next advert leaves.
func (m *Machine) Speaks() Dialect {
	if m.cfg.Dialect == Both && !m.cfg.Ucarp {
		return VRRP
	}
	return m.cfg.Dialect
}

// Hears is the dialect that is listened to.
func (m *Machine) Hears() Dialect { return m.cfg.Dialect }

// ownInterval is how often this node advertises as master.
func (m *Machine) ownInterval() time.Duration {
	if m.cfg.Dialect == CARP {
		return m.timing.Interval()
	}
	return m.cfg.Interval
}

// Silence is how long a backup waits for a master that it has heard. For CARP it
// is half an interval longer than the formula has it: an advert is due at the very
// end of that, and ucarp, for which its own deadline is the first look at the
// clock after it, is never that quick either.
func (m *Machine) Silence() time.Duration {
	if m.Speaks() == VRRP {
		return m.DownInterval()
	}
	return m.DownInterval() + m.timing.Interval()/2
}

// firstPatience is how long a node waits that has heard nobody yet. Beside ucarp
// it may have been the master itself, a moment ago: then ucarp first takes it for
// dead, and then is silent.
func (m *Machine) firstPatience() time.Duration {
	if m.cfg.Dialect == VRRP {
		return m.patience()
	}
	return m.patience() + ucarpSilence
}

// LongestLeave is the longest time for which a machine of this configuration keeps
// the address for a successor, in whichever dialect.
func (c Config) LongestLeave() time.Duration {
	longest, _ := leaveLimits(VRRP, c.Foreign, c.Interval)
	if c.Dialect != VRRP {
		besideUcarp, _ := leaveLimits(CARP, c.Foreign, c.Interval)
		longest = max(longest, besideUcarp)
	}
	return longest
}

// HandOverLimit is how long a master that hands over waits for a successor before it stays master.
func (m *Machine) HandOverLimit() time.Duration { return m.leaveLimit(handingOver) }

// leaveLimit is how long the address is kept for a successor.
func (m *Machine) leaveLimit(how departure) time.Duration {
	handOver, stop := leaveLimits(m.Speaks(), m.cfg.Foreign, m.cfg.Interval)
	if how == stopping {
		return stop
	}
	return handOver
}

// losesTies tells which node of two equal ones yields to the other.
func (m *Machine) losesTies() bool {
	if m.cfg.Dialect == CARP {
		return octetsLess(m.cfg.Peer, m.cfg.Local)
	}
	return m.cfg.Local.Less(m.cfg.Peer)
}

// octetsLess orders addresses the way of CARP's tie-break. ucarp compares them as
// host integers: on little-endian machines, which are all that it runs on here,
// the last octet decides. Both nodes must agree, so they are compared that way.
func octetsLess(a, b netip.Addr) bool {
	x, y := a.As4(), b.As4()
	slices.Reverse(x[:])
	slices.Reverse(y[:])
	return slices.Compare(x[:], y[:]) < 0
}

// isGoodbye tells whether an advert says that its sender leaves.
func (e Event) isGoodbye() bool {
	if e.Kind == CARPAdvert {
		return e.Timing == Goodbye
	}
	return e.Priority == 0
}

// known takes from an event what it says about the peer's dialect, and tells
// whether the event is one for this machine.
func (m *Machine) known(now time.Duration, ev Event) bool {
	active := m.state == Backup || m.state == Master
	switch {
	case ev.Kind == CARPAdvert && (m.cfg.Dialect == VRRP || ev.From != m.cfg.Peer):
		return false
	case ev.Kind == CARPAdvert && m.cfg.Dialect == Both && !m.cfg.Ucarp && active:
		m.cfg.Ucarp = true
		m.note(Effect{Reason: UcarpHeard, From: ev.From})
	case ev.Kind == Advert && m.cfg.Dialect == CARP:
		return false
	case ev.Kind == Advert && m.cfg.Dialect == Both && m.cfg.Signed && ev.From == m.cfg.Peer && active && !ev.Forgotten:
		m.endBridge(now, ev.From)
	case ev.Kind == PeerUpgraded:
		// A master that is heard with CARP is no such thing yet, whatever else its node says.
		if m.cfg.Dialect == Both && !(m.state == Backup && m.heard && m.cfg.Ucarp) {
			m.endBridge(now, netip.Addr{})
		}
		return false
	}
	return true
}

// endBridge ends the time of two dialects for good. A backup is silent otherwise,
// and its master would speak CARP until the roles change; so it says once, signed,
// that it is there and not master.
func (m *Machine) endBridge(now time.Duration, heard netip.Addr) {
	m.cfg.Dialect, m.cfg.Ucarp = VRRP, false
	m.note(Effect{Reason: BridgeEnded, From: heard})
	if m.state == Backup && heard.IsValid() {
		m.deadline = min(m.deadline, now+m.patience()) // no silent ucarp to wait for: a master may die, or be preempted
		m.say(0)
	}
}

func (m *Machine) backupHearsCARP(now time.Duration, ev Event) {
	m.proven = true
	m.decide(now)
	switch theirs := ev.Timing.Interval(); {
	case ev.isGoodbye():
		// One of ours keeps the address until it hears us.
		m.promote(now, Effect{Reason: Invited, From: ev.From})
	case m.DownInterval() < theirs:
		m.promote(now, Effect{Reason: MasterLeft, From: ev.From})
	case m.preempts(now) && m.timing.Interval() < theirs:
		m.promote(now, Effect{Reason: Preempted, From: ev.From})
	default:
		m.followCARP(now, ev)
	}
}

// followCARP is follow for CARP, where a backup learns no interval.
func (m *Machine) followCARP(now time.Duration, ev Event) {
	if ev.Timing.Base != m.timing.Base {
		m.note(Effect{Reason: IntervalSeen, From: ev.From, Interval: ev.Timing.Interval(), Dialect: CARP})
	}
	m.interval = m.timing.Interval()
	m.inStep(now, ev.From)
}

func (m *Machine) masterHearsCARP(now time.Duration, ev Event) {
	switch ours, theirs := m.timing.Interval(), ev.Timing.Interval(); {
	case ev.isGoodbye():
		if m.answer(now) && now-m.announced >= announceApart {
			m.announce(now)
		}
	case theirs < ours:
		m.yield(now, ev, HigherPriority)
	case theirs == ours && octetsLess(ev.From, m.cfg.Local):
		m.yield(now, ev, LowerOctets)
	default:
		m.contest(now, ev)
	}
}
