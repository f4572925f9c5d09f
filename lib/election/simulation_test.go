package election

import (
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"
)

var (
	simRuns = flag.Int("election.runs", 2000, "simulated clusters in TestClusterHeals, and a quarter in its neighbours")
	simSeed = flag.Uint64("election.seed", 0, "simulate only this seed, and print what happens")
)

// simulation is a few machines on one network in virtual time: a loop that
// always does what is due first, and a random source that makes trouble.
type simulation struct {
	*rand.Rand
	now    time.Duration
	events []simEvent
	order  int
	nodes  []*simNode
	net    simNetwork
	ignore bool // $link_loss="ignore"
	err    error
	trace  *strings.Builder

	healed    time.Duration // nothing disturbs from here on
	settled   time.Duration // and it has done so for long enough
	strict    bool          // no transition after settled
	dualSince time.Duration // two masters since (Never: not two)
	dualLimit time.Duration
	enters    int

	carry func(*simNode, []Effect) // instead of send; see ucarp_test.go
	watch func()                   // another observer than look
}

type simEvent struct {
	at    time.Duration
	order int
	do    func()
}

type simNetwork struct {
	delay, jitter            time.Duration // at most: of a packet, of a timer
	loss, garbled, duplicate float64
	cut                      [3][3]bool // from, to
	ordered                  bool       // what was sent first arrives first
	last                     [3][3]time.Duration
}

type simPacket struct {
	ev  Event
	seq int
}

type simNode struct {
	*host
	id      int
	up      bool // the process runs
	paused  bool
	deaf    bool
	link    bool
	new     bool // has no record of a cluster: each start is a hesitant one
	tick    time.Duration
	packets []simPacket // that arrived during a pause
	others  []Event
	seq     int    // of the own adverts; grows across restarts
	marks   [3]int // what a signed receiver has seen of the others
}

func (n *simNode) active() bool { return n.up && !n.paused && n.speaks() }

func newSimulation(r *rand.Rand, cfgs []Config, delay, jitter time.Duration) *simulation {
	s := &simulation{Rand: r, healed: Never, settled: Never, dualSince: Never}
	s.net.delay, s.net.jitter = delay, jitter
	for i, cfg := range cfgs {
		s.nodes = append(s.nodes, &simNode{host: newHost(cfg), id: i, link: true, tick: Never})
	}
	return s
}

func simAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{192, 168, 1, byte(250 + i)}) }

// upTo is a random duration from 0 to d.
func (s *simulation) upTo(d time.Duration) time.Duration {
	return time.Duration(s.Int64N(int64(d) + 1))
}

func (s *simulation) logf(format string, args ...any) {
	if s.trace != nil {
		fmt.Fprintf(s.trace, "%14v  %s\n", s.now, fmt.Sprintf(format, args...))
	}
}

func (s *simulation) failf(format string, args ...any) {
	if s.err == nil {
		s.err = fmt.Errorf("at %v: %s", s.now, fmt.Sprintf(format, args...))
	}
}

func (s *simulation) at(t time.Duration, do func()) {
	s.order++
	s.events = append(s.events, simEvent{t, s.order, do})
}

func (s *simulation) run(until time.Duration) {
	for s.err == nil {
		first, when, order := -1, Never, 0
		for i, e := range s.events {
			if e.at < when || e.at == when && e.order < order {
				first, when, order = i, e.at, e.order
			}
		}
		var due *simNode
		for _, n := range s.nodes {
			if n.tick < when { // packets first
				due, when = n, n.tick
			}
		}
		if when > until {
			s.now = until
			return
		}
		s.now = when
		if due != nil {
			due.tick = Never
			s.handle(due, Event{Kind: Tick})
		} else {
			do := s.events[first].do
			last := len(s.events) - 1
			s.events[first] = s.events[last]
			s.events = s.events[:last]
			do()
		}
		if s.watch != nil {
			s.watch()
		} else {
			s.look()
		}
	}
}

// look is what an observer of the whole cluster would object to.
func (s *simulation) look() {
	masters, leaving := 0, 0
	for _, n := range s.nodes {
		if n.active() {
			masters++
			if n.m.Leaving() {
				leaving++
			}
		}
	}
	switch {
	case masters < 2 || leaving == masters:
		// Masters that all hand over wait for a successor, as long as they may.
		s.dualSince = Never
	case s.dualSince == Never:
		s.dualSince = s.now
	case s.now >= s.healed && s.now-max(s.dualSince, s.healed) > s.dualLimit:
		s.failf("two masters since %v, the limit is %v", s.dualSince, s.dualLimit)
	}
	if s.now > s.settled && masters == 0 {
		s.failf("no master")
	}
}

func (s *simulation) handle(n *simNode, ev Event) {
	if !n.up {
		return
	}
	before := situationOf(n.m)
	effects, err := n.host.handle(s.now, ev)
	if s.trace != nil && (ev.Kind != Tick || len(effects) > 0) {
		var words []string
		for _, e := range effects {
			words = append(words, show(e))
		}
		what := ev.Kind.String()
		switch ev.Kind {
		case Advert:
			what += fmt.Sprintf(" %d from %v", ev.Priority, ev.From)
		case CARPAdvert:
			what += fmt.Sprintf(" %d+%d from %v", ev.Timing.Base, ev.Timing.Skew, ev.From)
		}
		s.logf("%d %v: %s: %s", n.id, before, what, strings.Join(words, ", "))
	}
	if err != nil {
		s.failf("node %d: %v", n.id, err)
		return
	}
	for _, e := range effects {
		switch e.Kind {
		case SendAdvert:
			if s.carry == nil {
				s.send(n, e.Priority)
			}
		case Enter:
			s.enters++
			if s.strict && s.now > s.settled {
				s.failf("node %d enters %v, reason %d", n.id, e.State, e.Reason)
			}
		}
	}
	if s.carry != nil {
		s.carry(n, effects)
	}
	n.tick = Never
	if n.next != Never {
		n.tick = max(s.now, n.next) + s.upTo(s.net.jitter)
	}
}

func (s *simulation) send(n *simNode, priority uint8) {
	n.seq++
	if !n.link {
		return
	}
	p := simPacket{Event{Kind: Advert, From: n.m.cfg.Local, Priority: priority, Interval: n.m.cfg.Interval}, n.seq}
	for _, to := range s.nodes {
		if to == n || s.net.cut[n.id][to.id] || s.Float64() < s.net.loss {
			continue
		}
		p := p
		if n.m.cfg.Signed && s.Float64() < s.net.garbled {
			p.ev = Event{Kind: Unverifiable, From: n.m.cfg.Local}
		}
		arrival := s.now + s.upTo(s.net.delay)
		if s.net.ordered {
			arrival = max(arrival, s.net.last[n.id][to.id])
			s.net.last[n.id][to.id] = arrival
		}
		s.at(arrival, func() { s.receive(to, n.id, p) })
		if s.Float64() < s.net.duplicate {
			s.at(s.now+s.upTo(s.net.delay), func() { s.receive(to, n.id, p) })
		}
	}
}

func (s *simulation) receive(n *simNode, from int, p simPacket) {
	const queue = 64
	switch {
	case !n.link || !n.up:
	case n.paused:
		if !n.deaf && len(n.packets) < queue {
			n.packets = append(n.packets, p)
		}
	case n.m.cfg.Signed && p.ev.Kind == Advert && p.seq <= n.marks[from]:
	default:
		if p.ev.Kind == Advert {
			n.marks[from] = p.seq
		}
		s.handle(n, p.ev)
	}
}

func (s *simulation) tell(n *simNode, kind EventKind) {
	if n.paused {
		n.others = append(n.others, Event{Kind: kind})
		return
	}
	s.handle(n, Event{Kind: kind})
}

func (s *simulation) boot(n *simNode, kind EventKind) {
	s.logf("%d process starts", n.id)
	n.up = true
	s.handle(n, Event{Kind: kind, Hesitant: kind == Start && n.new})
	if !n.link {
		s.tell(n, s.linkLoss())
	}
}

func (s *simulation) linkLoss() EventKind {
	if s.ignore {
		return CarrierLost
	}
	return LinkLost
}

func (s *simulation) setLink(n *simNode, link bool) {
	if n.link == link {
		return
	}
	n.link = link
	s.logf("%d link: %v", n.id, link)
	if link {
		s.tell(n, LinkBack)
	} else {
		s.tell(n, s.linkLoss())
	}
}

// pause stops a node. Deaf, it loses what arrives meanwhile, as a suspended
// machine does; a stopped process finds it in its socket.
func (s *simulation) pause(n *simNode, deaf bool) {
	if !n.paused && n.up {
		s.logf("%d paused, deaf: %v", n.id, deaf)
		n.paused, n.deaf, n.tick = true, deaf, Never
	}
}

func (s *simulation) unpause(n *simNode) {
	if !n.paused {
		return
	}
	s.logf("%d runs again", n.id)
	n.paused = false
	packets, others := n.packets, n.others
	n.packets, n.others = nil, nil
	for _, p := range packets {
		from := int(p.ev.From.As4()[3]) - 250
		s.receive(n, from, p)
	}
	for _, ev := range others {
		s.handle(n, ev)
	}
	if n.next != Never {
		n.tick = max(s.now, n.next)
	}
}

func (s *simulation) crash(n *simNode) {
	if n.up && !n.paused {
		s.logf("%d crashes", n.id)
		n.up, n.tick = false, Never
	}
}

// revive restarts a crashed node: as master if that was so two intervals ago.
func (s *simulation) revive(n *simNode) {
	if n.up {
		return
	}
	kind := Start
	if situationOf(n.m) == inMaster && s.now-n.sent <= 2*n.m.cfg.Interval {
		kind = Resume
	}
	n.restart()
	s.boot(n, kind)
}

// begin starts a node whose service was stopped, once it is.
func (s *simulation) begin(n *simNode) {
	if n.up && !n.paused && n.m.State() == Init {
		s.boot(n, Start)
	}
}

// heal ends every trouble.
func (s *simulation) heal() {
	s.logf("heal")
	s.healed = s.now
	s.net.loss, s.net.garbled, s.net.duplicate, s.net.cut = 0, 0, 0, [3][3]bool{}
	for _, n := range s.nodes {
		s.setLink(n, true)
		s.unpause(n)
		s.revive(n)
		s.begin(n)
		if n.m.Leaving() {
			s.at(s.now+s.leaveLimit(handingOver)+s.upTo(time.Second), func() { s.begin(n) })
		}
	}
}

// disturb makes one trouble, for a while.
func (s *simulation) disturb(length time.Duration) {
	n := s.nodes[s.IntN(len(s.nodes))]
	other := s.nodes[s.IntN(len(s.nodes))]
	end := s.now + s.upTo(length)
	if s.IntN(3) == 0 {
		end = s.now + s.upTo(length/20)
	}
	troubled := func(undo func()) {
		s.at(end, func() {
			if s.now < s.healed {
				undo()
			}
		})
	}
	switch s.IntN(9) {
	case 0:
		s.logf("%d and %d cut", n.id, other.id)
		s.net.cut[n.id][other.id], s.net.cut[other.id][n.id] = true, true
		troubled(func() { s.net.cut[n.id][other.id], s.net.cut[other.id][n.id] = false, false })
	case 1:
		s.logf("%d cut towards %d", n.id, other.id)
		s.net.cut[n.id][other.id] = true
		troubled(func() { s.net.cut[n.id][other.id] = false })
	case 2:
		s.net.loss = s.Float64()
		s.logf("loss %.2f", s.net.loss)
		troubled(func() { s.net.loss = 0 })
	case 3:
		s.net.garbled, s.net.duplicate = s.Float64()/2, s.Float64()/2
		s.logf("garbled %.2f, duplicate %.2f", s.net.garbled, s.net.duplicate)
		troubled(func() { s.net.garbled, s.net.duplicate = 0, 0 })
	case 4:
		s.pause(n, s.IntN(2) == 0)
		troubled(func() { s.unpause(n) })
	case 5:
		s.crash(n)
		troubled(func() { s.revive(n) })
	case 6:
		s.tell(n, Stop)
		troubled(func() { s.begin(n) })
	case 7:
		s.tell(n, HandOver)
	case 8:
		s.setLink(n, false)
		troubled(func() { s.setLink(n, true) })
	}
}

// limits are what a cluster may need at most.
func (s *simulation) limits() (interval, down, wire time.Duration) {
	for _, n := range s.nodes {
		interval = max(interval, n.m.cfg.Interval)
	}
	for _, n := range s.nodes {
		own := DownInterval(n.m.cfg.Priority, interval, n.m.cfg.DeadRatio)
		if n.new {
			own *= Hesitation
		}
		down = max(down, own+tieBreak(interval))
	}
	return interval, down, 2*(s.net.delay+s.net.jitter) + time.Microsecond
}

// randomCluster draws two or three nodes and a network between them.
func randomCluster(r *rand.Rand) *simulation {
	n := 2 + r.IntN(3)/2
	logUniform := func() time.Duration {
		return time.Duration(math.Pow(100, r.Float64())) * 10 * time.Millisecond
	}
	base := Config{Interval: logUniform(), DeadRatio: 2 + r.IntN(4), Priority: 100,
		Signed: r.IntN(3) > 0}
	base.Foreign = !base.Signed || r.IntN(4) == 0
	sameInterval, samePriority, anyPreempt := r.IntN(4) > 0, r.IntN(2) == 0, r.IntN(2) == 0
	cfgs := make([]Config, n)
	shortest := time.Second
	for i := range cfgs {
		c := base
		if !sameInterval {
			c.Interval = logUniform()
		}
		if !samePriority {
			c.Priority = uint8(1 + r.IntN(254))
			if i == 0 && r.IntN(10) == 0 {
				c.Priority = 255
			}
		}
		c.Preempt = anyPreempt && r.IntN(2) == 0
		c.Local, c.Peer = simAddr(i), simAddr(0) // the third is one by mistake: nobody's peer
		if i == 0 {
			c.Peer = simAddr(1)
		}
		shortest = min(shortest, c.Interval)
		cfgs[i] = c
	}
	delay := time.Duration(r.Int64N(int64(min(shortest/4, 20*time.Millisecond))))
	jitter := time.Duration(r.Int64N(int64(shortest / 10)))
	s := newSimulation(r, cfgs, delay, jitter)
	s.ignore = r.IntN(3) == 0
	return s
}

// clusterHeals is one run of TestClusterHeals.
func clusterHeals(seed uint64, trace *strings.Builder) error {
	s := randomCluster(rand.New(rand.NewPCG(seed, 9568)))
	s.trace = trace
	for _, n := range s.nodes {
		n.new = s.IntN(4) == 0
	}
	s.describe()
	interval, down, wire := s.limits()
	s.dualLimit = interval + wire

	trouble := 2*down + s.upTo(10*down)
	for _, n := range s.nodes {
		s.at(s.upTo(down), func() { s.boot(n, Start) })
	}
	for range 1 + s.IntN(12) {
		s.at(s.upTo(trouble), func() { s.disturb(trouble / 4) })
	}
	s.at(trouble, s.heal)

	s.settled = trouble + s.leaveLimit(handingOver) + time.Second + 3*down + interval + 2*wire
	preempt := false
	for _, n := range s.nodes {
		preempt = preempt || n.m.cfg.Preempt || n.m.cfg.Priority == 255
	}
	s.strict = !preempt
	end := s.settled + 10*interval
	if preempt {
		end = s.settled + PreemptHold + 2*down
	}
	s.run(end)

	if s.err == nil {
		s.finally()
	}
	return s.err
}

func (s *simulation) describe() {
	for _, n := range s.nodes {
		s.logf("%d: new %v, %+v", n.id, n.new, n.m.cfg)
	}
	s.logf("delay up to %v, jitter up to %v, link loss ignored: %v", s.net.delay, s.net.jitter, s.ignore)
}

// finally is how a cluster that was left alone for long must be found.
func (s *simulation) finally() {
	var master *simNode
	masters := 0
	for _, n := range s.nodes {
		if n.active() {
			master = n
			masters++
		}
	}
	if masters != 1 {
		s.failf("%d masters in the end", masters)
		return
	}
	for _, n := range s.nodes {
		cfg := n.m.cfg
		switch {
		case n != master && n.m.State() != Backup:
			s.failf("node %d is %v in the end", n.id, n.m.State())
		case (cfg.Preempt || cfg.Priority == 255) && cfg.Priority > master.m.cfg.Priority:
			s.failf("node %d should have preempted", n.id)
		}
	}
}

// Whatever happens to two or three nodes: once it is over there is one master
// soon, and until then two for no longer than an interval.
func TestClusterHeals(t *testing.T) { simulate(t, *simRuns, clusterHeals) }

func simulate(t *testing.T, runs int, run func(seed uint64, trace *strings.Builder) error) {
	if *simSeed != 0 {
		var trace strings.Builder
		err := run(*simSeed, &trace)
		t.Logf("\n%s%v", trace.String(), err)
		return
	}
	for seed := range uint64(runs) {
		if err := run(seed+1, nil); err != nil {
			t.Fatalf("seed %d: %v\nsee what happens: go test -run %s -v -election.seed %d", seed+1, err, t.Name(), seed+1)
		}
	}
}

// calmCluster has started and agreed on a master: the time is now.
func calmCluster(seed uint64, trace *strings.Builder, change func(*simulation)) *simulation {
	s := randomCluster(rand.New(rand.NewPCG(seed, 5798)))
	s.trace = trace
	// An unsigned advert that arrives after the goodbye it was sent before takes
	// the goodbye back. No network of one hop does that.
	s.net.ordered = true
	change(s)
	interval, down, wire := s.limits()
	s.dualLimit = interval + wire
	s.describe()
	for _, n := range s.nodes {
		s.at(s.upTo(down), func() { s.boot(n, Start) })
	}
	s.run(4*down + 2*wire)
	s.healed, s.settled = s.now, s.now
	return s
}

func (s *simulation) master() *simNode {
	for _, n := range s.nodes {
		if n.active() {
			return n
		}
	}
	s.failf("no master")
	return s.nodes[0]
}

// While no packet is lost the address always has a node, whoever hands over or
// stops; and who handed over to a lower priority does not take it back at once.
func TestHandOverLeavesNoGap(t *testing.T) {
	simulate(t, *simRuns/4, func(seed uint64, trace *strings.Builder) error {
		s := calmCluster(seed, trace, func(*simulation) {})
		_, down, wire := s.limits()
		for i := 0; i < 5 && s.err == nil; i++ {
			s.run(s.now + s.upTo(2*down))
			s.calm()
			old := s.master()
			if s.IntN(2) == 0 && s.stopsInTime(old) {
				s.tell(old, Stop)
				s.run(s.now + s.leaveLimit(stopping) + wire)
				if old.m.State() != Init {
					s.failf("node %d did not stop", old.id)
				}
				s.begin(old)
				continue
			}
			s.tell(old, HandOver)
			s.run(s.now + s.leaveLimit(handingOver) + wire)
			if len(s.nodes) == 2 && old.m.State() != Backup {
				s.failf("node %d is %v after its hand-over", old.id, old.m.State())
			}
			if s.IntN(4) == 0 {
				s.run(s.now + PreemptHold + 3*down)
				s.finally()
			}
		}
		return s.err
	})
}

// leaveLimit is the longest time that any of the nodes keeps the address for a successor.
func (s *simulation) leaveLimit(how departure) (longest time.Duration) {
	for _, n := range s.nodes {
		longest = max(longest, n.m.leaveLimit(how))
	}
	return longest
}

// calm waits until nobody's advert is on its way to somebody whose mind it changes.
func (s *simulation) calm() {
	_, _, wire := s.limits()
	for enters := -1; enters != s.enters && s.err == nil; {
		enters = s.enters
		s.run(s.now + wire)
	}
}

// stopsInTime tells whether a backup hears the goodbye and waits its skew time
// while the master keeps the address. Who is its peer, and signed, does not wait.
func (s *simulation) stopsInTime(master *simNode) bool {
	wait := Never
	for _, n := range s.nodes {
		switch {
		case n == master || n.m.State() != Backup:
		case n.m.cfg.Signed && n.m.cfg.Peer == master.m.cfg.Local:
			return true
		default:
			wait = min(wait, SkewTime(n.m.cfg.Priority, master.m.cfg.Interval))
		}
	}
	_, _, wire := s.limits()
	return wait+wire < master.m.leaveLimit(stopping)
}

// A node that did not run for a while costs a failover only if it was master and
// its peer had to take over, and then the peer keeps the address.
func TestPausesAreForgiven(t *testing.T) {
	simulate(t, *simRuns/4, func(seed uint64, trace *strings.Builder) error {
		s := calmCluster(seed, trace, func(s *simulation) {
			s.nodes = s.nodes[:2]
			for _, n := range s.nodes {
				n.m.cfg.Preempt, n.m.cfg.Priority = false, min(n.m.cfg.Priority, 254)
				// A stalled master listens for its own down interval, so it hears
				// only a successor whose interval is not much longer.
				n.m.cfg.Interval = s.nodes[0].m.cfg.Interval
			}
		})
		_, down, wire := s.limits()
		s.dualLimit = 0
		for i := 0; i < 5 && s.err == nil; i++ {
			old := s.master()
			other := s.nodes[1-old.id]
			paused, length := other, s.upTo(20*down)
			failover, deaf, enters := false, s.IntN(2) == 0, s.enters
			unnoticed := min(old.m.DownInterval(), other.m.DownInterval()) - old.m.cfg.Interval - wire
			switch {
			case s.IntN(2) == 0:
				paused = old
				if failover = s.IntN(2) == 0 || unnoticed <= 0; failover {
					length = 2*down + s.upTo(10*down)
					s.settled = s.now + down + wire
				} else {
					length = s.upTo(unnoticed)
					s.settled = s.now + length
				}
			case deaf && length+old.m.cfg.Interval > unnoticed:
				// A timer that is not late, or a little, is no sign of deafness.
				length += 2 * down
			}
			s.pause(paused, deaf)
			s.run(s.now + length)
			s.unpause(paused)
			s.run(s.now + s.upTo(5*down) + wire)
			if !failover && s.enters != enters {
				s.failf("a pause of %v of node %d changed something", length, paused.id)
			}
			s.run(s.now + 3*down)
			if failover && (s.enters != enters+2 || s.master() != other) {
				s.failf("after a pause of %v node %d is master, %d transitions", length, s.master().id, s.enters-enters)
			}
		}
		return s.err
	})
}

// Two equal nodes that start at the same instant, or get their link back then,
// are never both master, unless the network is slower than the tie-break.
func TestEqualNodesDoNotCollide(t *testing.T) {
	for _, interval := range []time.Duration{10 * ms, 100 * ms, time.Second} {
		cfgs := make([]Config, 2)
		for i := range cfgs {
			cfgs[i] = signed
			cfgs[i].Interval, cfgs[i].Local, cfgs[i].Peer = interval, simAddr(i), simAddr(1-i)
		}
		third := tieBreak(interval) / 3
		s := newSimulation(rand.New(rand.NewPCG(1, uint64(interval))), cfgs, third, third)
		s.healed = 0 // no two masters from the beginning on
		for _, n := range s.nodes {
			s.at(0, func() { s.boot(n, Start) })
		}
		s.run(5 * interval)
		if s.err != nil || s.master() != s.nodes[1] {
			t.Fatalf("at %v: node %d is master, %v", interval, s.master().id, s.err)
		}
		for _, n := range s.nodes {
			s.setLink(n, false)
		}
		s.run(s.now + interval)
		for _, n := range s.nodes {
			s.setLink(n, true)
		}
		s.run(s.now + 5*interval)
		if s.err != nil || s.master() != s.nodes[1] {
			t.Errorf("at %v, link back: node %d is master, %v", interval, s.master().id, s.err)
		}
	}
}

// Two nodes are installed and started within two down intervals of each other,
// in any order: the one that has the address among its virtual interfaces is
// master, whatever its address, and nobody else ever was.
func TestHesitantNodeIsNotTheFirst(t *testing.T) {
	simulate(t, *simRuns/4, func(seed uint64, trace *strings.Builder) error {
		r := rand.New(rand.NewPCG(seed, 7))
		s := randomCluster(r)
		s.nodes = s.nodes[:2]
		s.trace, s.healed = trace, 0 // no two masters from the beginning on
		for _, n := range s.nodes {
			n.m.cfg.Priority, n.m.cfg.Interval, n.m.cfg.DeadRatio = 100, s.nodes[0].m.cfg.Interval, s.nodes[0].m.cfg.DeadRatio
		}
		first := s.nodes[r.IntN(2)]
		second := s.nodes[1-first.id]
		second.new = true
		s.describe()
		_, _, wire := s.limits()
		down := first.m.DownInterval()
		begin := s.upTo(2*down - wire - tieBreak(first.m.cfg.Interval))
		s.at(0, func() { s.boot(second, Start) })
		s.at(begin, func() { s.boot(first, Start) })
		s.run(begin + 5*down)
		if s.err == nil && (s.master() != first || s.enters != 3) {
			s.failf("node %d is master after %d transitions, want node %d after 3", s.master().id, s.enters, first.id)
		}
		return s.err
	})
}

// Nothing happens in a day in which nothing happens, and the adverts keep time.
func TestDayOfAdverts(t *testing.T) {
	s := newSimulation(rand.New(rand.NewPCG(1, 1)), []Config{signed, upper}, 300*time.Microsecond, 5*ms)
	for _, n := range s.nodes {
		s.at(0, func() { s.boot(n, Start) })
	}
	s.run(4 * time.Second)
	enters, sent := s.enters, s.master().seq
	s.run(4*time.Second + 24*time.Hour)
	if s.err != nil || s.enters != enters {
		t.Errorf("%d transitions in a day, %v", s.enters-enters, s.err)
	}
	if got := s.master().seq - sent; got != 86400 {
		t.Errorf("%d adverts in a day, want 86400", got)
	}
}

// However many adverts a node hears, it sends and announces little.
func TestFloodIsNotAnsweredWithAFlood(t *testing.T) {
	const apart, length = 10 * time.Microsecond, 10 * time.Second
	for _, c := range []struct {
		name   string
		cfg    Config
		events []Event
	}{
		{"goodbyes", plain, []Event{advert(peer, 0)}},
		{"verified goodbyes", signed, []Event{advert(peer, 0)}},
		{"a losing rival", plain, []Event{advert(peer, 1)}},
		{"a rival of lower address", plain, []Event{advert(lower, 100)}},
		{"our own address", plain, []Event{advert(self, 200)}},
		{"goodbyes and a losing rival", plain, []Event{advert(peer, 0), advert(lower, 1)}},
		{"adverts that nobody can verify", signed, []Event{unverifiable(peer), unverifiable(lower)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := stage(t, c.cfg, mastering)
			sent, announced := 0, 0
			for now, i := apart, 0; now <= length; now, i = now+apart, i+1 {
				on := c.events[i%len(c.events)]
				if h.next <= now {
					on = ev(Tick)
				}
				effects, err := h.handle(now, on)
				if err != nil {
					t.Fatal(err)
				}
				for _, e := range effects {
					switch e.Kind {
					case SendAdvert:
						sent++
					case Announce:
						announced++
					case Enter:
						t.Fatalf("at %v: %s", now, show(e))
					}
				}
			}
			intervals := int(length/c.cfg.Interval) + 1
			if most := intervals * (answersAtMost + 1); sent < intervals-1 || sent > most {
				t.Errorf("%d adverts in %v, want %d to %d", sent, length, intervals, most)
			}
			most := intervals
			if c.cfg.Signed {
				most = intervals * answersAtMost
			}
			if announced > most {
				t.Errorf("%d times announced in %v, want at most %d", announced, length, most)
			}
		})
	}
}
