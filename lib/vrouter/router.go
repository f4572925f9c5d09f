// Package vrouter runs one virtual router: it feeds the election with packets,
// time and link changes, and carries out what the election decides.
//
// One goroutine owns the state machine. It never does what may block: adverts
// are sent from it, everything else goes to a Host, which does it beside the
// timers. When a deadline and packets are both there, the packets that arrived
// before the deadline come first, so that a process that was paused does not
// take a live master for dead.
//
// Where a pair has addresses of both families there are two virtual routers on
// the wire (RFC 9568 section 1.5) and one election. Each advert goes out once in
// each family, what is heard in either counts, and what keeps one from being
// sent takes the node out of both: so the addresses cannot part.
package vrouter

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/auth"
	"github.com/skudonet/skudonet-ce-cluster/lib/carp"
	"github.com/skudonet/skudonet-ce-cluster/lib/election"
	"github.com/skudonet/skudonet-ce-cluster/lib/link"
	"github.com/skudonet/skudonet-ce-cluster/lib/transport"
	"github.com/skudonet/skudonet-ce-cluster/lib/trouble"
	"github.com/skudonet/skudonet-ce-cluster/lib/vrrp"
)

// Config is one virtual router on this node.
type Config struct {
	Election   election.Config
	Interface  string
	VRID       uint8
	ClusterIP  netip.Addr
	Second     Family // of a pair with both families: IPv6, and what Election and ClusterIP say is IPv4
	Kind       transport.Kind
	IgnoreLink bool       // $link_loss is "ignore"
	Hesitant   bool       // never in a cluster, and $cluster_ip is not among its virtual interfaces: a start hesitates
	Keys       []Key      // the password's, then the next password's; none: unsigned
	CARPKeys   []carp.Key // likewise, where the election's dialect is not VRRP, and the family IPv4 alone
	Started    time.Time  // wall clock at the start, the base of the sequence
}

// Key is what adverts are signed with.
type Key struct {
	auth.Key
	Anyones bool // the password is the key as it stands, which says nothing of the nodes that have it
}

// Identity names the virtual router on this node: a record of another one is of
// no use to it.
func (c Config) Identity() string {
	s := fmt.Sprintf("%s vrid %d", c.Interface, c.VRID)
	for _, f := range c.Families() {
		s += fmt.Sprintf(" %s %s %s", f.Local, f.Peer, f.ClusterIP)
	}
	return s
}

// Family is what the virtual router is in one address family.
type Family struct{ Local, Peer, ClusterIP netip.Addr }

// Families are one or two.
func (c Config) Families() []Family {
	list := []Family{{c.Election.Local, c.Election.Peer, c.ClusterIP}}
	if c.Second != (Family{}) {
		list = append(list, c.Second)
	}
	return list
}

// FromLinkLocal tells whether adverts of the family come from link-local
// addresses that the configuration does not name: RFC 9568 section 5.1.2.1 has
// them come from one over IPv6.
func (c Config) FromLinkLocal(f Family) bool {
	return c.Kind == transport.Multicast && f.Local.Is6() && !f.Local.IsLinkLocalUnicast()
}

// Conn is an open transport; see transport.Conn.
type Conn interface {
	Source() netip.Addr
	Destination() netip.Addr
	Ready() <-chan struct{}
	Woken()
	Receive() (transport.Packet, bool, error)
	Send(message []byte) error
	Close() error
}

// Host does what an election has decided to the machine that it runs on. The
// methods return at once; what they ask for is done in the order of the calls,
// beside the timers, retried while it fails, and repaired when others undo it.
type Host interface {
	RaiseGuard()
	LowerGuard()
	AddAddresses()
	RemoveAddresses()
	Announce()
	StopAnnouncing()
	AnnounceSelf(link.State)
	RunStartHook()
	RunStopHook()
	// Enter is told each state: it keeps the status file.
	Enter(election.State)
	// AfterGuard calls f, from anywhere, when the guard stands as asked before.
	AfterGuard(f func())
	// AfterAddresses does so when the addresses are up as asked before.
	AfterAddresses(f func())
	// Publish is told what vrrpd.json says.
	Publish(Report)
	// Keep stores what a restarted daemon goes on with. It is called with each
	// advert and must not block.
	Keep(Record)
	// Save stores what survives a reboot.
	Save(Lasting)
	// Link is told each state of the cluster's interface.
	Link(link.State)
}

// Report is what only the election knows.
type Report struct {
	State     election.State
	Leaving   bool
	Listening bool
	Since     time.Time
	SinceBoot time.Duration
	Reason    string
	Peer      Peer
	Interval  time.Duration
	Silence   time.Duration // after which a backup takes its master for dead
	HandOver  time.Duration // for which a master that hands over waits
	Speaks    election.Dialect
	CARPOver  bool // although it is configured, because the peer is upgraded
	Drops     map[string]uint64
	Sent      uint64
	Received  uint64
	Now       time.Duration // boot clock of the report
}

// Command is what an admin's signal asks for.
type Command uint8

const (
	HandOver Command = iota // SIGUSR2
	Stop                    // SIGTERM
	Tell                    // SIGUSR1: state to log and vrrpd.json
	Leave                   // stop without a word: the next process goes on
)

// Router is one running virtual router.
type Router struct {
	cfg      Config
	host     Host
	open     func(link.State, Family) (Conn, error)
	clock    func() time.Duration
	log      *slog.Logger
	troubles *trouble.List

	commands chan Command
	posted   chan func()
	links    chan link.State
	stopped  chan struct{}

	machine  *election.Machine
	timer    *time.Timer
	deadline time.Duration
	now      time.Duration // of the event that is handled

	legs    []*leg // all have a Conn or none has, but in a fault
	state   link.State
	fault   string // why the link cannot carry the election
	started bool   // the machine was
	owed    int    // goodbyes that wait for the guard

	began    time.Duration
	bootID   string
	keys     []Key
	sequence *auth.SequenceSource
	used     auth.Sequence
	nextKey  bool // the last verified advert was signed with $password_next
	anyones  bool // and that is anyone's key
	marks    auth.Marks
	own      sources
	carped   carp.Memory
	bridge   Bridge
	record   Record // of the process before us, until the start

	heard      vrrp.Advertisement
	heardSeq   auth.Sequence // of the last advert of the peer that the election was told of
	peer       Peer
	drops      drops
	sent, recv uint64

	since        time.Time
	sinceBoot    time.Duration
	reason       string
	published    time.Duration
	saved        time.Duration
	lastSent     time.Duration
	saidInterval time.Duration
	rivalSaid    time.Duration
	rivalHeard   time.Duration // when one was that must not be obeyed
	copied       time.Duration // when an advert from our own address was seen last
	strange      string        // why the last unverifiable advert was so
	behindSince  time.Duration
	behindAt     time.Duration // when behindSeq was heard
	behindSeq    auth.Sequence
}

// leg is what the router has of one family.
type leg struct {
	Family
	fromLinkLocal bool
	conn          Conn
	source        netip.Addr // of our adverts
	own           vrrp.Advertisement
	frame         []byte
	master        netip.Addr    // who advertised last, and meant to stay
	more          bool          // the last look at the socket ended before its end
	heard         time.Duration // when the peer was heard last
	began         time.Duration // since when it is heard without a gap
	name          string

	receiving, addresses, deaf string // keys of troubles
}

func newLeg(cfg Config, f Family) *leg {
	l := &leg{Family: f, fromLinkLocal: cfg.FromLinkLocal(f), source: f.Local, name: "IPv4",
		own: vrrp.Advertisement{VRID: cfg.VRID, Interval: cfg.Election.Interval, Addrs: []netip.Addr{f.ClusterIP}}}
	if f.ClusterIP.Is6() {
		l.name = "IPv6"
	}
	l.receiving, l.addresses, l.deaf = "receive "+l.name, "addresses "+l.name, "deaf "+l.name
	return l
}

// How often what changes with each advert is written out.
const (
	publishEvery  = 10 * time.Second
	floorEvery    = auth.MaxLead / 2
	marksEvery    = 5 * time.Minute
	packetsAWake  = 64 // then timers and signals have their turn
	reopenAfter   = time.Second
	leaveLater    = 100 * time.Millisecond
	guardLimit    = 2 * time.Second
	watchdogParts = 2
)

// New prepares a virtual router. open makes a transport for one family on an
// interface that can carry it; clock is the boot clock; record and lasting are what the process
// before left behind.
func New(cfg Config, host Host, open func(link.State, Family) (Conn, error), clock func() time.Duration,
	log *slog.Logger, troubles *trouble.List, record Record, lasting Lasting) *Router {
	r := &Router{
		cfg: cfg, host: host, open: open, clock: clock, log: log, troubles: troubles,
		commands: make(chan Command, 8), posted: make(chan func(), 64), links: make(chan link.State, 8), stopped: make(chan struct{}),
		machine: election.New(cfg.remembered(lasting.Bridge)), deadline: election.Never, bridge: lasting.Bridge,
		began: clock(), bootID: BootID(), keys: cfg.Keys, record: record, drops: newDrops(),
	}
	for _, f := range cfg.Families() {
		r.legs = append(r.legs, newLeg(cfg, f))
	}
	floor := lasting.Floor
	if record.Sequence != 0 && (floor == 0 || record.BootID == r.bootID || record.Sequence.After(floor)) {
		// In the same boot the exact number is known; a floor would only run ahead.
		floor = record.Sequence
	}
	r.sequence = auth.NewSequence(cfg.Started, floor)
	r.used = floor
	for _, marks := range []map[netip.Addr]auth.Sequence{lasting.Marks, record.Marks} {
		for src, seq := range marks {
			r.marks.Move(src, seq)
		}
	}
	r.own = lasting.Own
	if record.BootID == r.bootID && len(record.Own) > 0 {
		r.own = record.Own // which knows exactly
	}
	for src, seq := range r.marks.All() {
		isPeer := slices.ContainsFunc(r.legs, func(l *leg) bool { return l.Peer == src })
		if isPeer && (r.heardSeq == 0 || seq.After(r.heardSeq)) {
			r.heardSeq = seq
		}
	}
	return r
}

// Do carries out a command in the router's own time. It returns at once.
func (r *Router) Do(c Command) {
	select {
	case r.commands <- c:
	case <-r.stopped:
	}
}

// Link tells the router the state of its interface.
func (r *Router) Link(s link.State) {
	select {
	case r.links <- s:
	case <-r.stopped:
	}
}

// Copied tells the router that somebody advertises from its own address.
func (r *Router) Copied() { r.post(func() { r.copy(r.cfg.Election.Local) }) }

func (r *Router) copy(own netip.Addr) {
	r.copied = r.now
	r.drop(own, reasonOwn)
	r.troubles.Show("copy", fmt.Sprintf("another node advertises from our address %s: %s", own, remedies[reasonOwn]))
}

func (r *Router) post(f func()) {
	select {
	case r.posted <- f:
	case <-r.stopped:
	}
}

// Run runs the election until Stop or Leave, and tells which: left. alive, if not nil, is called at
// least every aliveEvery: it feeds the watchdog.
func (r *Router) Run(ctx context.Context, alive func(), aliveEvery time.Duration) (left bool) {
	defer close(r.stopped)
	r.timer = time.NewTimer(time.Hour)
	defer r.timer.Stop()
	var beat <-chan time.Time
	if alive != nil && aliveEvery > 0 {
		t := time.NewTicker(aliveEvery)
		defer t.Stop()
		beat = t.C
	}
	defer r.closeLegs()
	always := make(chan struct{})
	close(always)
	for {
		var ready [2]<-chan struct{}
		var more <-chan struct{}
		for i, l := range r.legs {
			if l.conn != nil {
				ready[i] = l.conn.Ready()
			}
			if l.more {
				more = always
			}
		}
		select {
		case <-ctx.Done():
			return false
		case <-ready[0]:
			r.now = r.clock()
			r.legs[0].conn.Woken()
			r.drain(r.legs[0])
		case <-ready[1]:
			r.now = r.clock()
			r.legs[1].conn.Woken()
			r.drain(r.legs[1])
		case <-more:
			r.now = r.clock()
			for _, l := range r.legs {
				if l.more {
					r.drain(l)
				}
			}
		case <-r.timer.C:
		case s := <-r.links:
			r.now = r.clock()
			r.linkIs(s)
		case c := <-r.commands:
			r.now = r.clock()
			if c == Leave {
				if r.leave() {
					return true
				}
				continue
			}
			r.command(c)
		case f := <-r.posted:
			r.now = r.clock()
			f()
		case <-beat:
			alive()
		}
		r.tick()
		if r.started && r.machine.State() == election.Init && r.owed <= 0 {
			return false
		}
	}
}

// leave prepares for the next process: it is given as much time as a fresh
// advert buys. A master in doubt, or about to leave the election, first ends that.
func (r *Router) leave() bool {
	if !r.started {
		return true // what the process before has left still stands
	}
	if r.machine.Leaving() || r.machine.Listening() {
		time.AfterFunc(leaveLater, func() { r.Do(Leave) })
		return false
	}
	if r.machine.State() == election.Master {
		r.send(r.cfg.Election.Priority)
	}
	r.keep()
	return true
}

func (r *Router) command(c Command) {
	switch c {
	case HandOver:
		r.log.Info("asked to hand over to the peer")
		r.handle(election.Event{Kind: election.HandOver})
	case Stop:
		if !r.started {
			r.start(election.Start) // so that a stop does what it always does
		}
		r.handle(election.Event{Kind: election.Stop})
	case Tell:
		rep := r.report()
		r.log.Info(fmt.Sprintf("%s on %s vrid %d since %s: %s", rep.State, r.cfg.Interface, r.cfg.VRID,
			rep.Since.Format(time.DateTime), rep.Reason), "sent", rep.Sent, "received", rep.Received, "dropped", total(rep.Drops))
		r.publish()
	}
}

func total(m map[string]uint64) (n uint64) {
	for v := range maps.Values(m) {
		n += v
	}
	return n
}

// drain hands the election what waits in a socket, up to a bound.
func (r *Router) drain(l *leg) {
	l.more = false
	for range packetsAWake {
		if !r.receiveOne(l, nil) {
			return
		}
	}
	l.more = true
}

// receiveOne handles one packet that waits, if there is one, and tells when it
// arrived.
func (r *Router) receiveOne(l *leg, arrived *time.Duration) bool {
	if l.conn == nil {
		return false
	}
	p, ok, err := l.conn.Receive()
	if err != nil {
		r.troubles.Set(l.receiving, fmt.Sprintf("receiving on %s fails: %v; still trying", r.cfg.Interface, err))
		return false
	}
	if !ok {
		return false
	}
	r.troubles.Clear(l.receiving)
	if arrived != nil {
		*arrived = p.Arrived
	}
	r.receive(l, p)
	return true
}

// tick lets the election's deadline happen if it is over, but not before what
// arrived earlier was heard.
func (r *Router) tick() {
	for _, l := range r.legs {
		for range packetsAWake {
			if r.now = r.clock(); r.now < r.deadline {
				break
			}
			var arrived time.Duration
			if !r.receiveOne(l, &arrived) || arrived > r.deadline {
				break
			}
		}
	}
	if r.now = r.clock(); r.now >= r.deadline {
		r.handle(election.Event{Kind: election.Tick})
	}
	if r.deadline == election.Never {
		r.timer.Stop()
		return
	}
	r.timer.Reset(max(0, r.deadline-r.clock()))
}

// isOpen tells whether there are sockets.
func (r *Router) isOpen() bool {
	return slices.ContainsFunc(r.legs, func(l *leg) bool { return l.conn != nil })
}

func (r *Router) openLegs(s link.State) error {
	for _, l := range r.legs {
		conn, err := r.open(s, l.Family)
		if err != nil {
			r.closeLegs()
			return err
		}
		if now := conn.Source(); now != l.source {
			r.own = r.own.with(l.source, r.used)
			l.source = now
		}
		l.conn = conn
	}
	return nil
}

func (r *Router) closeLegs() {
	for _, l := range r.legs {
		l.close()
	}
}

func (l *leg) close() {
	if l.conn != nil {
		l.conn.Close()
	}
	l.conn, l.more = nil, false
}

// closeLost closes what a fault has taken. A family that is left can still say
// goodbye for both.
func (r *Router) closeLost(s link.State) {
	for i, l := range r.legs {
		lost := !s.Up || !s.Carrier || s.Index != r.state.Index || i >= len(s.Local) || !s.Local[i].Has()
		if lost || l.fromLinkLocal && (s.LinkLocal == nil || !s.LinkLocal.Has() || !s.SameLinkLocal(r.state)) {
			l.close()
		}
	}
}

// linkIs acts on a state of the interface: sockets first, then the election.
func (r *Router) linkIs(s link.State) {
	before, inFault := r.fault, r.machine.State() == election.Fault
	words, carrierOnly := s.Fault()
	usable := words == "" || carrierOnly && r.cfg.IgnoreLink
	r.host.Link(s)
	if r.isOpen() && (!usable || s.Index != r.state.Index || before != "" || !s.SameLinkLocal(r.state)) {
		// Sockets of an interface that was deleted are deaf for ever, and one
		// bound to an address that went and came back is not worth trusting.
		if !usable && r.started {
			r.fault = words
			r.troubles.Show("link", outOfElection+words) // published with the transition
			r.handle(election.Event{Kind: election.LinkLost})
		}
		if usable {
			r.closeLegs()
		} else {
			r.closeLost(s)
		}
	}
	r.state, r.fault = s, words
	if usable && !r.isOpen() {
		if err := r.openLegs(s); err != nil {
			r.fault = err.Error()
			usable = false
			time.AfterFunc(reopenAfter, func() { r.post(func() { r.retryLink(s) }) })
		}
	}
	switch {
	case usable:
		r.troubles.Clear("link")
	case inFault:
		if r.troubles.Set("link", outOfElection+r.fault); r.reason != r.fault {
			r.reason = r.fault
			r.publish()
		}
	default:
		r.troubles.Show("link", outOfElection+r.fault) // the transition says it
	}
	switch {
	case !r.started && usable && r.record.Resumes(r.cfg.Identity(), r.bootID, r.now):
		r.start(election.Resume)
	case !r.started:
		r.start(election.Start)
	}
	switch {
	case !usable:
		r.handle(election.Event{Kind: election.LinkLost})
	case carrierOnly:
		r.handle(election.Event{Kind: election.CarrierLost})
	case before != "":
		r.handle(election.Event{Kind: election.LinkBack})
	}
}

const outOfElection = "out of the election: "

func (r *Router) retryLink(s link.State) {
	if !r.isOpen() && r.state.Index == s.Index {
		r.linkIs(r.state)
	}
}

func (r *Router) start(how election.EventKind) {
	r.started = true
	if how == election.Resume {
		r.since, r.sinceBoot, r.reason = r.record.Since, r.record.SinceBoot, r.record.Reason
	}
	r.save()
	r.handle(election.Event{Kind: how, Hesitant: how == election.Start && r.cfg.Hesitant})
}

// handle is the only way into the machine, and carries out what comes out of it.
func (r *Router) handle(ev election.Event) {
	if !r.started {
		return
	}
	effects, next := r.machine.Handle(r.now, ev)
	r.deadline = next
	for i, e := range effects {
		if e.Kind == election.SendAdvert && e.Priority != 0 && i > 0 && effects[i-1].Kind == election.AddAddresses {
			r.host.AfterAddresses(func() { r.post(r.arrival) })
			continue
		}
		r.carryOut(e)
	}
}

// arrival tells the old master, which keeps the address until it hears this,
// that we have it, also if we are leaving already: a goodbye does not tell it.
func (r *Router) arrival() {
	if r.machine.State() == election.Master && !r.machine.Listening() {
		r.send(r.cfg.Election.Priority)
	}
}

func (r *Router) carryOut(e election.Effect) {
	switch e.Kind {
	case election.SendAdvert:
		if e.Priority == 0 || r.machine.State() != election.Master {
			// A goodbye, and the last advert of who yields unsigned, say that nothing of ours
			// answers for the address; so they wait for the guard, if one is being raised.
			r.owed++
			r.host.AfterGuard(func() { r.post(func() { r.farewell(e.Priority) }) })
			return
		}
		r.send(e.Priority)
	case election.RaiseGuard:
		r.host.RaiseGuard()
	case election.LowerGuard:
		r.host.LowerGuard()
	case election.AddAddresses:
		r.host.AddAddresses()
	case election.RemoveAddresses:
		r.host.RemoveAddresses()
	case election.Announce:
		r.host.Announce()
	case election.StopAnnouncing:
		r.host.StopAnnouncing()
	case election.AnnounceSelf:
		if r.cfg.Kind != transport.Multicast {
			r.host.AnnounceSelf(r.state)
		}
	case election.RunStartHook:
		r.host.RunStartHook()
	case election.RunStopHook:
		r.host.RunStopHook()
	case election.Enter:
		r.enter(e)
	case election.Note:
		r.note(e)
		r.publish()
	}
}

func (r *Router) enter(e election.Effect) {
	if e.Reason != election.Resumed || r.since.IsZero() || r.sinceBoot == 0 {
		r.since, r.sinceBoot, r.reason = time.Now(), r.now, r.why(e)
	}
	r.log.Info(fmt.Sprintf("%s on %s vrid %d: %s", e.State, r.cfg.Interface, r.cfg.VRID, r.why(e)))
	if e.State == election.Master {
		r.troubles.Clear("held")
		for _, l := range r.legs {
			r.troubles.Clear(l.deaf) // who is backup is silent
		}
	} else {
		r.rivalHeard = 0
		r.troubles.Clear("rival")
	}
	if e.State == election.Init {
		// The last goodbye may wait for a guard that never comes up.
		time.AfterFunc(guardLimit, func() { r.post(func() { r.owed = 0 }) })
	}
	r.host.Enter(e.State)
	r.publish()
	r.keep()
	r.save()
}

// farewell sends the advert of a node that leaves or yields, unless it became master meanwhile.
func (r *Router) farewell(priority uint8) {
	r.owed--
	if r.machine.State() != election.Master || r.machine.Leaving() {
		r.send(priority)
	}
}

// send sends an advert in each family. A signed one has the same sequence in
// both: the receiver knows by it that it has heard this one already.
func (r *Router) send(priority uint8) {
	if !r.isOpen() {
		return
	}
	dialect := r.machine.Speaks()
	if r.signed() && dialect != election.CARP {
		r.used = r.sequence.Next(r.now - r.began)
	}
	var failed error
	for _, l := range r.legs {
		if l.conn == nil {
			continue // see closeLost
		}
		if err := r.sendIn(l, dialect, priority); err != nil {
			failed = err
			continue
		}
		r.sent++
	}
	r.troubles.Check("send", fmt.Sprintf("sending on %s fails; still trying: ", r.cfg.Interface), failed)
	r.lastSent = r.now
	r.keep()
	if r.now-r.saved >= floorEvery {
		r.save()
	}
}

// sendIn sends it in one. VRRPv3 goes first: who understands both takes CARP for
// over then.
func (r *Router) sendIn(l *leg, dialect election.Dialect, priority uint8) error {
	if dialect != election.CARP {
		if err := r.sendVRRP(l, priority); err != nil {
			return err
		}
	}
	if dialect == election.VRRP {
		return nil
	}
	l.frame = r.appendCARP(l.frame[:0], priority)
	// The digest does not say who sent it: ours must not come back as the peer's.
	_ = r.carped.Note(l.frame)
	return l.conn.Send(l.frame)
}

func (r *Router) sendVRRP(l *leg, priority uint8) error {
	l.own.Priority = priority
	form := vrrp.PseudoHeader
	if r.cfg.Kind == transport.UDP {
		form = vrrp.MessageOnly // addresses are not ours to predict behind a cloud's network
	}
	frame, err := l.own.Append(l.frame[:0], l.source, l.conn.Destination(), form)
	if err != nil {
		return fmt.Errorf("cannot make an advertisement: %w", err)
	}
	if r.signed() {
		frame = r.keys[0].Append(frame, auth.KeyID, l.source, r.used)
	}
	l.frame = frame
	return l.conn.Send(frame)
}

func (r *Router) signed() bool { return len(r.keys) > 0 }

// keep stores what a restarted daemon goes on with, and now and then the rest.
func (r *Router) keep() {
	r.host.Keep(Record{
		Identity: r.cfg.Identity(), BootID: r.bootID,
		Master:   r.machine.State() == election.Master && !r.machine.Leaving() && !r.machine.Listening(),
		Sent:     r.lastSent,
		Interval: r.cfg.Election.Interval,
		Since:    r.since, SinceBoot: r.sinceBoot, Reason: r.reason,
		Sequence: r.used, Marks: maps.Collect(r.marks.All()), Own: r.sources(r.used),
	})
	if r.copied != 0 && r.now-r.copied > quiet {
		r.copied = 0
		r.troubles.Clear("copy")
	}
	if r.rivalHeard != 0 && r.now-r.rivalHeard > quiet {
		r.rivalHeard = 0
		r.troubles.Clear("rival")
	}
	if r.now-r.published >= publishEvery {
		r.publish()
	}
	if r.now-r.saved >= marksEvery {
		r.save()
	}
}

func (r *Router) save() {
	r.saved = r.now
	floor := r.sequence.Floor(r.now-r.began, auth.MaxLead)
	r.host.Save(Lasting{Floor: floor, Marks: maps.Collect(r.marks.All()), Own: r.sources(floor), Bridge: r.bridge})
}

func (r *Router) publish() {
	r.published = r.now
	r.host.Publish(r.report())
}

func (r *Router) report() Report {
	return Report{
		State: r.machine.State(), Leaving: r.machine.Leaving(), Listening: r.machine.Listening(),
		Since: r.since, SinceBoot: r.sinceBoot, Reason: r.reason, Peer: r.peer,
		Interval: r.machine.MasterInterval(), Silence: r.machine.Silence(), HandOver: r.machine.HandOverLimit(),
		Speaks: r.machine.Speaks(), CARPOver: r.carpOver(),
		Drops: maps.Clone(r.drops.total), Sent: r.sent, Received: r.recv, Now: r.now,
	}
}
