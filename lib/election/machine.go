// Package election decides which node is master: the state machine of RFC 9568
// section 6.4 for one virtual router, with what a pair of nodes that share a
// password may do better (a verified goodbye is an invitation, a planned
// hand-over keeps the address until the successor is heard) and with what a
// real machine needs besides (stalls, resumption after a crash, link faults).
// It also speaks CARP, as ucarp 1.5.2 does, alone or beside VRRPv3 while the other
// node of the pair is still to be upgraded.
//
// It is pure: no clock, socket, file, goroutine or log. Time comes in with each
// event and goes out as the next deadline; everything else that should happen
// comes out as ordered effects. It imports no other package of the project.
package election

import (
	"math"
	"net/netip"
	"time"
)

// Never is the deadline of a machine that waits for no time.
const Never = time.Duration(math.MaxInt64)

// Config is one node's part in one virtual router.
type Config struct {
	Priority  uint8         // 1 to 254; 255 is the address owner of RFC 9568
	Interval  time.Duration // own advertisement interval
	DeadRatio int           // missed advertisements until the master counts as dead
	Preempt   bool          // take over from a healthy master of lower priority
	Local     netip.Addr    // breaks ties
	Peer      netip.Addr    // the one configured peer
	Signed    bool          // every Advert event was verified with the password
	Foreign   bool          // the peer may be another program, which waits its skew time after a goodbye
	Dialect   Dialect
	Ucarp     bool // Both: the peer was ucarp when it was heard last
}

type departure uint8

const (
	staying departure = iota
	handingOver
	stopping
)

// Machine is one node's election. It is not safe for concurrent use.
type Machine struct {
	cfg    Config // Dialect becomes VRRP when a bridge has ended
	timing Timing // what we say with CARP
	state  State

	interval time.Duration // of the master that a backup listens to (Active_Adver_Interval)
	deadline time.Duration // down interval of a backup, next advert of a master, end of listening
	sent     time.Duration // when a master last advertised

	heard     bool       // the backup was in step with a master
	left      bool       // that master said goodbye, the backup's deadline is a skew time
	outranked bool       // the backup lets its timer run out on a master of lower priority
	from      netip.Addr // the master a backup listens to
	proven    bool       // a valid advert was heard since the start, or we were master
	held      bool       // the promotion is held, and that was noted
	excused   bool       // a late timer was excused once
	hesitant  bool       // started so, and neither heard a valid advert nor was master since
	holdUntil time.Duration

	listening bool // a master after a stall: silent until it is clear who is master
	leaving   departure
	leaveBy   time.Duration
	limit     time.Duration // between the first goodbye and leaveBy
	announced time.Duration // when the last schedule of announcements was started

	answers      int // adverts that answered others since answersSince
	answersSince time.Duration

	effects []Effect
}

// New returns a machine in Init. It waits for Start or Resume.
func New(cfg Config) *Machine {
	return &Machine{cfg: cfg, timing: TimingOf(cfg.Priority, cfg.Interval), interval: cfg.Interval, deadline: Never, leaveBy: Never,
		effects: make([]Effect, 0, 16)}
}

// State is the machine's state.
func (m *Machine) State() State { return m.state }

// Leaving tells whether a master is handing over or stopping.
func (m *Machine) Leaving() bool { return m.leaving != staying }

// Listening tells whether a master is silent after a stall.
func (m *Machine) Listening() bool { return m.listening }

// MasterInterval is the advertisement interval in force: the learned one on a
// backup, the own one on a master.
func (m *Machine) MasterInterval() time.Duration {
	if m.state == Backup {
		return m.interval
	}
	return m.ownInterval()
}

// patience is how long a backup waits that heard nobody yet, or nobody any more.
func (m *Machine) patience() time.Duration {
	if m.hesitant {
		return Hesitation * m.Silence()
	}
	return m.Silence()
}

// DownInterval is the down interval in force on this node.
func (m *Machine) DownInterval() time.Duration {
	if m.Speaks() != VRRP {
		return m.timing.Down(m.cfg.DeadRatio)
	}
	return DownInterval(m.cfg.Priority, m.MasterInterval(), m.cfg.DeadRatio)
}

// Handle takes one event at the time now and returns what is to be done, in
// this order, and when to come back with Tick (Never: only with another event).
// now must not run backwards and should go on while the machine is suspended
// (CLOCK_BOOTTIME). The effects are valid until the next call.
func (m *Machine) Handle(now time.Duration, ev Event) (effects []Effect, next time.Duration) {
	m.effects = m.effects[:0]
	if m.state == Master && !m.listening && m.leaving == staying {
		if silent := now - m.sent; silent > m.stall() {
			m.listen(now, silent)
		}
	}
	if m.known(now, ev) {
		m.handle(now, ev)
	}
	return m.effects, min(m.deadline, m.leaveBy)
}

// stall is for how long a master may have said nothing until it must assume that
// it was replaced. An advert that is only late is none, even where one that is missed
// counts: CARP's down interval is then no longer than the one between two.
func (m *Machine) stall() time.Duration { return max(m.DownInterval(), m.ownInterval()*3/2) }

func (m *Machine) handle(now time.Duration, ev Event) {
	switch m.state {
	case Init:
		m.handleInit(now, ev)
	case Backup:
		m.handleBackup(now, ev)
	case Master:
		switch {
		case m.listening:
			m.handleListening(now, ev)
		case m.leaving != staying:
			m.handleLeaving(now, ev)
		default:
			m.handleMaster(now, ev)
		}
	case Fault:
		m.handleFault(now, ev)
	}
}

func (m *Machine) handleInit(now time.Duration, ev Event) {
	switch ev.Kind {
	case Start:
		if m.cfg.Priority == 255 {
			m.promote(now, Effect{Reason: AddressOwner})
			return
		}
		// Whatever a dead master left behind on this node goes first.
		m.do(Effect{Kind: RaiseGuard})
		m.proven, m.held, m.hesitant = false, false, ev.Hesitant
		m.enterBackup(now, Effect{Reason: Started})
		m.do(Effect{Kind: RemoveAddresses}, Effect{Kind: RunStopHook})
	case Resume:
		m.promote(now, Effect{Reason: Resumed})
	case HandOver:
		m.note(Effect{Reason: NotMaster})
	}
}

func (m *Machine) handleBackup(now time.Duration, ev Event) {
	switch ev.Kind {
	case Tick:
		if now >= m.deadline {
			m.masterSilent(now)
		}
	case Advert:
		m.backupHears(now, ev)
	case CARPAdvert:
		m.backupHearsCARP(now, ev)
	case Unverifiable:
		// Two nodes whose passwords or dialects differ must not both be master
		// because one of them was restarted, nor a third that has by mistake the
		// configuration of a pair, whose keys are not its own. A node that has once
		// verified its peer, or was master, cannot be held this way.
		if !m.proven && (ev.From == m.cfg.Peer || ev.Claims) {
			wait := m.Silence()
			if ev.Interval > 0 { // that router may be slower than this one
				wait = max(wait, DownInterval(m.cfg.Priority, ev.Interval, m.cfg.DeadRatio))
			}
			if ev.Claims {
				wait += m.interval // whoever obeys that router takes over before this one, and is heard
			}
			m.deadline = max(m.deadline, now+wait)
			if !m.held {
				m.held = true
				m.note(Effect{Reason: Held, From: ev.From})
			}
		}
	case LinkLost:
		m.fail(Effect{Reason: LinkFailed})
	case CarrierLost:
		// On a crossover cable the peer's power-off looks like this. Only a
		// backup that heard its master until now may conclude that it died.
		if m.heard {
			m.note(Effect{Reason: CarrierGone})
			return
		}
		m.fail(Effect{Reason: LinkFailed})
	case HandOver:
		m.note(Effect{Reason: NotMaster})
	case Stop:
		m.stopped()
	}
}

func (m *Machine) backupHears(now time.Duration, ev Event) {
	if m.isCopy(ev) {
		return
	}
	m.proven = true
	m.decide(now)
	switch {
	case ev.Priority == 0 && m.invites(ev):
		m.promote(now, Effect{Reason: Invited, From: ev.From})
	case ev.Priority == 0:
		if !m.left || ev.From != m.from { // signed, it comes more than once
			m.deadline = now + SkewTime(m.cfg.Priority, m.interval)
		}
		m.left, m.outranked, m.from = true, false, ev.From
	case m.preempts(now) && ev.Priority < m.cfg.Priority:
		// Not listened to: the timer runs on, and we take over when it ends.
		m.outranked, m.from = true, ev.From
	default:
		m.follow(now, ev)
	}
}

// invites tells whether a goodbye is an invitation: it is the peer's, and no third
// router is master. Where one is, a peer that yields to it has nothing to give away,
// and two nodes would invite each other for ever.
func (m *Machine) invites(ev Event) bool {
	return m.cfg.Signed && ev.From == m.cfg.Peer && (ev.From == m.from || !m.from.IsValid())
}

// decide ends the hesitation: the other node takes part, so from here on the
// down interval is that of any backup.
func (m *Machine) decide(now time.Duration) {
	if m.hesitant {
		m.hesitant = false
		m.deadline = min(m.deadline, now+m.Silence())
	}
}

// follow makes the sender of the advert the master that the backup listens to.
func (m *Machine) follow(now time.Duration, ev Event) {
	if ev.Interval != m.interval && ev.Interval != m.cfg.Interval {
		m.note(Effect{Reason: IntervalSeen, From: ev.From, Interval: ev.Interval})
	}
	m.interval = ev.Interval
	m.inStep(now, ev.From)
}

// inStep restarts the timer of a backup that has heard its master.
func (m *Machine) inStep(now time.Duration, from netip.Addr) {
	m.deadline = now + m.Silence()
	m.heard, m.left, m.outranked, m.excused, m.from = true, false, false, false, from
}

func (m *Machine) preempts(now time.Duration) bool {
	return now >= m.holdUntil && (m.cfg.Preempt || m.cfg.Priority == 255)
}

func (m *Machine) masterSilent(now time.Duration) {
	// A node that did not run (a paused virtual machine) heard nothing because
	// it did not listen. It listens once more; only once, so that a machine
	// that is always late still takes over.
	if late := now - m.deadline; late > m.interval && !m.excused {
		m.excused = true
		m.deadline = now + m.Silence()
		m.note(Effect{Reason: LateTimer, After: late})
		return
	}
	reason := Effect{Reason: MasterSilent, From: m.from, After: m.Silence()}
	if !m.from.IsValid() {
		reason.After = m.firstPatience()
	}
	switch {
	case m.outranked:
		reason = Effect{Reason: Preempted, From: m.from}
	case m.left:
		reason = Effect{Reason: MasterLeft, From: m.from}
	}
	m.promote(now, reason)
}

func (m *Machine) handleMaster(now time.Duration, ev Event) {
	switch ev.Kind {
	case Tick:
		if now < m.deadline {
			return
		}
		due := m.deadline
		m.advertise(now)
		if next := due + m.ownInterval(); next > now {
			m.deadline = next // no drift from late wake-ups
		}
	case Advert:
		m.masterHears(now, ev)
	case CARPAdvert:
		m.masterHearsCARP(now, ev)
	case LinkLost:
		m.do(Effect{Kind: RaiseGuard})
		m.say(0)
		m.release(Fault, Effect{Reason: LinkFailed})
		m.deadline = Never
	case CarrierLost:
		m.note(Effect{Reason: CarrierGone})
	case LinkBack:
		m.announce(now)
	case HandOver:
		m.leave(now, handingOver)
	case Stop:
		m.leave(now, stopping)
	}
}

func (m *Machine) masterHears(now time.Duration, ev Event) {
	if m.isCopy(ev) {
		return
	}
	switch {
	case ev.Priority == 0:
		if m.answer(now) && (m.cfg.Signed || now-m.announced >= announceApart) {
			m.announce(now)
		}
	case ev.Priority > m.cfg.Priority:
		m.yield(now, ev, HigherPriority)
	case ev.Priority == m.cfg.Priority && m.outranks(ev):
		m.yield(now, ev, HigherAddress)
	default:
		m.contest(now, ev)
	}
}

// contest answers a rival that should yield.
func (m *Machine) contest(now time.Duration, ev Event) {
	m.answer(now)
	if now-m.announced >= announceApart {
		m.note(Effect{Reason: LosingRival, From: ev.From})
		m.announce(now)
	}
}

// listen silences a master that was stalled for longer than the down interval:
// somebody else probably is master by now.
func (m *Machine) listen(now, silent time.Duration) {
	m.listening = true
	m.deadline = now + m.firstPatience()
	m.do(Effect{Kind: RaiseGuard}, Effect{Kind: StopAnnouncing})
	m.note(Effect{Reason: Stalled, After: silent, Interval: m.firstPatience()})
}

func (m *Machine) handleListening(now time.Duration, ev Event) {
	switch ev.Kind {
	case Tick:
		if now >= m.deadline {
			m.goOn(now)
		}
	case Advert, CARPAdvert:
		switch {
		case m.isCopy(ev):
		case ev.isGoodbye():
			m.goOn(now)
		default:
			m.yield(now, ev, ReplacedMeantime)
		}
	case LinkLost:
		m.listening = false
		m.release(Fault, Effect{Reason: LinkFailed})
		m.deadline = Never
	case CarrierLost:
		m.note(Effect{Reason: CarrierGone})
	case HandOver:
		m.note(Effect{Reason: NotMaster})
	case Stop:
		m.listening = false
		m.say(0) // nobody may have taken over
		m.release(Init, Effect{Reason: Stopping})
		m.deadline = Never
	}
}

func (m *Machine) goOn(now time.Duration) {
	m.listening = false
	m.advertise(now)
	m.do(Effect{Kind: LowerGuard})
	m.announce(now)
	m.note(Effect{Reason: StallOver})
}

// leave starts a departure: goodbye first, the address stays until the
// successor is heard or the limit is over. It is the successor's to announce.
func (m *Machine) leave(now time.Duration, how departure) {
	if m.leaving == staying {
		m.do(Effect{Kind: StopAnnouncing})
	}
	m.leaving, m.limit = how, m.leaveLimit(how)
	m.leaveBy = now + m.limit
	m.goodbye(now)
}

func (m *Machine) goodbye(now time.Duration) {
	m.say(0)
	switch {
	case m.Speaks() != VRRP:
		m.deadline = now + m.timing.Interval() // ucarp would work off a faster series for long after
	case m.cfg.Foreign:
		m.deadline = now + max(goodbyeRepeat, m.cfg.Interval)
	default:
		m.deadline = now + goodbyeRepeat
	}
}

func (m *Machine) handleLeaving(now time.Duration, ev Event) {
	switch ev.Kind {
	case Tick:
		switch {
		case now < m.leaveBy:
			if now >= m.deadline {
				m.goodbye(now)
			}
		case m.leaving == stopping:
			m.depart(now, Effect{Reason: Stopping})
		case now-m.leaveBy > m.DownInterval():
			late := now - m.leaveBy
			m.leaving, m.leaveBy = staying, Never
			m.listen(now, late)
		default:
			m.leaving, m.leaveBy = staying, Never
			m.advertise(now)
			m.announce(now)
			m.note(Effect{Reason: NoSuccessor, After: m.limit})
		}
	case Advert, CARPAdvert:
		if m.isCopy(ev) || ev.isGoodbye() {
			return
		}
		if m.leaving == stopping {
			m.depart(now, Effect{Reason: Stopping, From: ev.From})
			return
		}
		m.leaving, m.leaveBy = staying, Never
		m.holdUntil = now + PreemptHold
		m.yield(now, ev, HandedOver)
	case LinkLost:
		stop := m.leaving == stopping
		m.leaving, m.leaveBy, m.deadline = staying, Never, Never
		m.do(Effect{Kind: RaiseGuard})
		if stop {
			m.release(Init, Effect{Reason: Stopping})
		} else {
			m.release(Fault, Effect{Reason: LinkFailed})
		}
	case Stop:
		if m.leaving == handingOver {
			m.leave(now, stopping)
		}
	}
}

// depart ends a stop. The last goodbye, sent once nothing of ours answers for
// the address any more, makes the successor announce again.
func (m *Machine) depart(now time.Duration, why Effect) {
	m.leaving, m.leaveBy, m.deadline = staying, Never, Never
	m.do(Effect{Kind: RaiseGuard})
	m.say(0)
	m.release(Init, why)
}

// yield makes a master a backup of the rival it heard. The goodbye makes the
// survivor announce once more, now that our guard stands. A keepalived does so only
// for an advert that loses against its own. Signed, that would have a third router
// with the key follow us for a moment, so that the goodbye invites it.
func (m *Machine) yield(now time.Duration, ev Event, why Reason) {
	if !m.listening {
		m.do(Effect{Kind: RaiseGuard})
	}
	if !m.cfg.Signed && m.Speaks() == VRRP && (why == HigherPriority || why == HigherAddress) {
		m.say(m.cfg.Priority)
	}
	m.listening = false
	m.say(0)
	m.release(Backup, Effect{Reason: why, From: ev.From})
	if ev.Kind == CARPAdvert {
		m.followCARP(now, ev)
	} else {
		m.follow(now, ev)
	}
}

// release is what every demotion shares, after the guard is up.
func (m *Machine) release(to State, why Effect) {
	m.do(Effect{Kind: StopAnnouncing})
	m.enter(to, why)
	m.do(Effect{Kind: RemoveAddresses}, Effect{Kind: RunStopHook})
}

func (m *Machine) promote(now time.Duration, why Effect) {
	if why.Reason == Invited {
		// The old master keeps the address until it hears us: we have it first,
		// and no client is without it in between.
		m.do(Effect{Kind: LowerGuard}, Effect{Kind: AddAddresses})
		m.advertise(now)
	} else {
		// RFC order: the advert first, so that an old master drops the address
		// before our announcements go out.
		m.advertise(now)
		m.do(Effect{Kind: LowerGuard}, Effect{Kind: AddAddresses})
	}
	m.announce(now)
	m.enter(Master, why)
	m.do(Effect{Kind: RunStartHook})
	m.proven, m.hesitant = true, false
}

func (m *Machine) handleFault(now time.Duration, ev Event) {
	switch ev.Kind {
	case LinkBack:
		m.enterBackup(now, Effect{Reason: LinkReturned})
		m.do(Effect{Kind: AnnounceSelf})
	case HandOver:
		m.note(Effect{Reason: NotMaster})
	case Stop:
		m.stopped()
	}
}

// enterBackup begins listening with a full down interval of our own.
func (m *Machine) enterBackup(now time.Duration, why Effect) {
	if m.hesitant {
		why.After = m.firstPatience()
	}
	m.enter(Backup, why)
	m.interval = m.ownInterval()
	m.heard, m.left, m.outranked, m.excused, m.from = false, false, false, false, netip.Addr{}
	m.deadline = now + m.firstPatience()
	if m.losesTies() {
		m.deadline += tieBreak(m.interval)
	}
}

func (m *Machine) fail(why Effect) {
	m.enter(Fault, why)
	m.deadline = Never
}

// stopped ends a node that is not master: as for a demotion, once more.
func (m *Machine) stopped() {
	m.enter(Init, Effect{Reason: Stopping})
	m.do(Effect{Kind: RemoveAddresses}, Effect{Kind: RunStopHook})
	m.deadline = Never
}

func (m *Machine) advertise(now time.Duration) {
	m.say(m.cfg.Priority)
	m.sent = now
	m.deadline = now + m.ownInterval()
}

func (m *Machine) say(priority uint8) {
	m.do(Effect{Kind: SendAdvert, Priority: priority, Dialect: m.Speaks()})
}

// answer advertises at once because of what somebody else sent, unless that was
// done too often within one interval.
func (m *Machine) answer(now time.Duration) bool {
	if now-m.answersSince >= m.ownInterval() {
		m.answers, m.answersSince = 0, now
	}
	if m.answers == answersAtMost {
		return false
	}
	m.answers++
	m.advertise(now)
	return true
}

func (m *Machine) announce(now time.Duration) {
	m.do(Effect{Kind: Announce})
	m.announced = now
}

// outranks tells whether the sender of an advert has the higher address.
func (m *Machine) outranks(ev Event) bool {
	if ev.Rank != 0 {
		return ev.Rank > 0
	}
	return ev.From.Compare(m.cfg.Local) > 0
}

// isCopy tells whether somebody advertises from our own address, which changes
// nothing but is said.
func (m *Machine) isCopy(ev Event) bool {
	if ev.From != m.cfg.Local {
		return false
	}
	m.note(Effect{Reason: AddressCopy, From: ev.From})
	return true
}

func (m *Machine) enter(s State, why Effect) {
	m.state = s
	why.Kind, why.State = Enter, s
	m.do(why)
}

func (m *Machine) note(n Effect) {
	n.Kind = Note
	m.do(n)
}

func (m *Machine) do(e ...Effect) { m.effects = append(m.effects, e...) }
