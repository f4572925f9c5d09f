package election

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

const ms = time.Millisecond

var (
	self    = netip.MustParseAddr("192.168.1.250")
	peer    = netip.MustParseAddr("192.168.1.251")
	lower   = netip.MustParseAddr("192.168.1.99") // as text it is the higher one
	higher  = netip.MustParseAddr("192.168.2.1")
	little  = netip.MustParseAddr("10.168.1.255") // higher for a little-endian machine
	signed  = Config{Priority: 100, Interval: time.Second, DeadRatio: 3, Local: self, Peer: peer, Signed: true}
	plain   = func() Config { c := signed; c.Signed, c.Foreign = false, true; return c }()
	foreign = func() Config { c := signed; c.Foreign = true; return c }()
	eager   = func() Config { c := signed; c.Preempt = true; return c }()
	owner   = func() Config { c := plain; c.Priority = 255; return c }()
	upper   = func() Config { c := signed; c.Local, c.Peer = peer, self; return c }()
)

// What priority 100 and 1 s amount to.
const (
	skew = 609_375 * time.Microsecond
	down = 3*time.Second + skew
	tie  = 1_953_125 * time.Nanosecond
)

// step is an event at its time.
type step struct {
	at time.Duration
	on Event
}

func ev(k EventKind) Event { return Event{Kind: k} }

func advert(from netip.Addr, priority uint8) Event {
	return Event{Kind: Advert, From: from, Priority: priority, Interval: time.Second}
}

// ranked is an advert over IPv6: its link-local source decides, not the peer's address.
func ranked(from netip.Addr, rank int) Event {
	e := advert(from, 100)
	e.Rank = rank
	return e
}

func slowAdvert(from netip.Addr, priority uint8) Event {
	return Event{Kind: Advert, From: from, Priority: priority, Interval: 2 * time.Second}
}

func hesitates() Event { return Event{Kind: Start, Hesitant: true} }

func stalled(after, silent time.Duration) Effect {
	return Effect{Kind: Note, Reason: Stalled, After: after, Interval: silent}
}
func unverifiable(from netip.Addr) Event { return Event{Kind: Unverifiable, From: from} }
func claim(from netip.Addr) Event        { return Event{Kind: Unverifiable, From: from, Claims: true} }

// Ways into each situation, with what the machine then waits for.
var (
	starting    = []step{{0, ev(Start)}}                                                          // down+tie
	listeningTo = []step{{0, ev(Start)}, {time.Second, advert(peer, 100)}}                        // 1s+down
	mastering   = []step{{0, ev(Resume)}}                                                         // 1s
	silent      = []step{{0, ev(Resume)}, {10 * time.Second, ev(Tick)}}                           // 10s+down
	handing     = []step{{0, ev(Resume)}, {500 * ms, ev(HandOver)}}                               // 750ms, 3.5s
	departing   = []step{{0, ev(Resume)}, {500 * ms, ev(Stop)}}                                   // 750ms, 1.5s
	hesitating  = []step{{0, hesitates()}}                                                        // 3*down+tie
	broken      = []step{{0, ev(Start)}, {time.Second, ev(LinkLost)}}                             // Never
	handedOver  = []step{{0, ev(Resume)}, {500 * ms, ev(HandOver)}, {501 * ms, advert(peer, 90)}} // 501ms+down
)

func after(given []step, more ...step) []step { return append(slices.Clone(given), more...) }

// Effects. An argument of enters and notes is From, After or (as every) Interval.
var (
	guardUp         = Effect{Kind: RaiseGuard}
	guardDown       = Effect{Kind: LowerGuard}
	addAddresses    = Effect{Kind: AddAddresses}
	removeAddresses = Effect{Kind: RemoveAddresses}
	announces       = Effect{Kind: Announce}
	stopsAnnouncing = Effect{Kind: StopAnnouncing}
	announcesSelf   = Effect{Kind: AnnounceSelf}
	startHook       = Effect{Kind: RunStartHook}
	stopHook        = Effect{Kind: RunStopHook}
	goodbye         = Effect{Kind: SendAdvert}
	advertises      = Effect{Kind: SendAdvert, Priority: 100}
)

type every time.Duration

func because(e Effect, details []any) Effect {
	for _, d := range details {
		switch d := d.(type) {
		case netip.Addr:
			e.From = d
		case time.Duration:
			e.After = d
		case every:
			e.Interval = time.Duration(d)
		}
	}
	return e
}

func enters(s State, why Reason, details ...any) Effect {
	return because(Effect{Kind: Enter, State: s, Reason: why}, details)
}

func notes(why Reason, details ...any) Effect {
	return because(Effect{Kind: Note, Reason: why}, details)
}

// promoted is every promotion: the advert before anything that the old master's
// address could contradict, the guard before the addresses. Only an invited node
// has the address before it says so, because the old master waits for that.
func promoted(why Effect) []Effect {
	if why.Reason == Invited {
		return []Effect{guardDown, addAddresses, advertises, announces, why, startHook}
	}
	return []Effect{advertises, guardDown, addAddresses, announces, why, startHook}
}

// demoted is a demotion of a master in full voice: the guard before the goodbye.
func demoted(why Effect) []Effect {
	return []Effect{guardUp, goodbye, stopsAnnouncing, why, removeAddresses, stopHook}
}

// outdone is a demotion without a password: a last advert, which a keepalived beats.
func outdone(last Effect, why Effect) []Effect { return slices.Insert(demoted(why), 1, last) }

// released is a demotion when the guard stands and nobody needs a goodbye.
func released(why Effect) []Effect {
	return []Effect{stopsAnnouncing, why, removeAddresses, stopHook}
}

var transitions = []struct {
	name  string
	cfg   Config
	given []step
	at    time.Duration
	on    Event
	want  []Effect
	then  situation
	next  time.Duration
}{
	// Init.
	{"a node starts as backup and tidies up", signed, nil, 5 * time.Second, ev(Start),
		[]Effect{guardUp, enters(Backup, Started), removeAddresses, stopHook}, inBackup, 5*time.Second + down + tie},
	{"of two equal nodes that start the one with the higher address waits less", upper, nil, 5 * time.Second, ev(Start),
		[]Effect{guardUp, enters(Backup, Started), removeAddresses, stopHook}, inBackup, 5*time.Second + down},
	{"the address owner starts as master", owner, nil, 0, ev(Start),
		[]Effect{{Kind: SendAdvert, Priority: 255}, guardDown, addAddresses, announces, enters(Master, AddressOwner), startHook},
		inMaster, time.Second},
	{"a restart that the peer did not notice goes on as master", signed, nil, 7 * time.Second, ev(Resume),
		promoted(enters(Master, Resumed)), inMaster, 8 * time.Second},
	{"a node that did not start is asked to hand over", signed, nil, 0, ev(HandOver),
		[]Effect{notes(NotMaster)}, inInit, Never},
	{"a node starts again after a stop", signed, after(listeningTo, step{2 * time.Second, ev(Stop)}), 3 * time.Second, ev(Start),
		[]Effect{guardUp, enters(Backup, Started), removeAddresses, stopHook}, inBackup, 3*time.Second + down + tie},

	// Backup, the timer.
	{"a starting node hears nobody", signed, starting, down + tie, ev(Tick),
		promoted(enters(Master, MasterSilent, down)), inMaster, down + tie + time.Second},
	{"the master of a backup falls silent", signed, listeningTo, time.Second + down, ev(Tick),
		promoted(enters(Master, MasterSilent, peer, down)), inMaster, 2*time.Second + down},
	{"the down interval is that of the master's adverts", plain, after(listeningTo, step{2 * time.Second, slowAdvert(peer, 100)}),
		2*time.Second + 2*down, ev(Tick), promoted(enters(Master, MasterSilent, peer, 2*down)), inMaster, 3*time.Second + 2*down},
	{"a backup is woken before its time", signed, listeningTo, time.Second + down - 1, ev(Tick), nil, inBackup, time.Second + down},
	{"a timer is late by an interval", signed, listeningTo, 2*time.Second + down, ev(Tick),
		promoted(enters(Master, MasterSilent, peer, down)), inMaster, 3*time.Second + down},
	{"a timer is late by more than an interval: the backup listens once more", signed, listeningTo, 2*time.Second + down + 1, ev(Tick),
		[]Effect{notes(LateTimer, time.Second+1)}, inBackup, 2*time.Second + 2*down + 1},
	{"a late timer is excused once", signed, after(listeningTo, step{10 * time.Second, ev(Tick)}), 20 * time.Second, ev(Tick),
		promoted(enters(Master, MasterSilent, peer, down)), inMaster, 21 * time.Second},
	{"a late timer is excused again after an advert", signed,
		after(listeningTo, step{10 * time.Second, ev(Tick)}, step{11 * time.Second, advert(peer, 100)}), 20 * time.Second, ev(Tick),
		[]Effect{notes(LateTimer, 9*time.Second-down)}, inBackup, 20*time.Second + down},
	{"a late timer of a preempting backup is excused once, although it hears the lower master", eager,
		after(starting, step{10 * time.Second, ev(Tick)}, step{11 * time.Second, advert(peer, 99)}), 20 * time.Second, ev(Tick),
		promoted(enters(Master, Preempted, peer)), inMaster, 21 * time.Second},
	{"a late timer is excused again after a fault of the link", signed,
		after(starting, step{10 * time.Second, ev(Tick)}, step{11 * time.Second, ev(LinkLost)}, step{12 * time.Second, ev(LinkBack)}),
		20 * time.Second, ev(Tick), []Effect{notes(LateTimer, 8*time.Second-down-tie)}, inBackup, 20*time.Second + down},

	// Backup, adverts.
	{"backup hears its master", signed, listeningTo, 2 * time.Second, advert(peer, 100), nil, inBackup, 2*time.Second + down},
	{"an advert that waited when the timer expired goes first", signed, listeningTo, 60 * time.Second, advert(peer, 100),
		nil, inBackup, 60*time.Second + down},
	{"backup hears a higher priority", signed, listeningTo, 2 * time.Second, advert(peer, 200), nil, inBackup, 2*time.Second + down},
	{"backup hears a lower priority without preemption", signed, listeningTo, 2 * time.Second, advert(peer, 99),
		nil, inBackup, 2*time.Second + down},
	{"backup hears its own priority from a lower address", signed, listeningTo, 2 * time.Second, advert(lower, 100),
		nil, inBackup, 2*time.Second + down},
	{"backup hears its own priority with preemption", eager, listeningTo, 2 * time.Second, advert(lower, 100),
		nil, inBackup, 2*time.Second + down},
	{"backup adopts another interval", signed, listeningTo, 2 * time.Second, slowAdvert(peer, 100),
		[]Effect{notes(IntervalSeen, peer, every(2*time.Second))}, inBackup, 2*time.Second + 2*down},
	{"backup hears the other interval again", signed, after(listeningTo, step{2 * time.Second, slowAdvert(peer, 100)}),
		4 * time.Second, slowAdvert(peer, 100), nil, inBackup, 4*time.Second + 2*down},
	{"backup hears its own interval again", signed, after(listeningTo, step{2 * time.Second, slowAdvert(peer, 100)}),
		4 * time.Second, advert(peer, 100), nil, inBackup, 4*time.Second + down},
	{"backup hears a lower priority with preemption: the timer runs on", eager, listeningTo, 2 * time.Second, advert(peer, 99),
		nil, inBackup, time.Second + down},
	{"backup preempts at the old deadline", eager, after(listeningTo, step{2 * time.Second, slowAdvert(peer, 99)}),
		time.Second + down, ev(Tick), promoted(enters(Master, Preempted, peer)), inMaster, 2*time.Second + down},
	{"a master that was to be preempted raises its priority", eager,
		after(listeningTo, step{2 * time.Second, advert(peer, 99)}, step{3 * time.Second, advert(peer, 100)}),
		3*time.Second + down, ev(Tick), promoted(enters(Master, MasterSilent, peer, down)), inMaster, 4*time.Second + down},
	{"the owner preempts whatever the configuration says", owner, after(broken, step{2 * time.Second, ev(LinkBack)}),
		3 * time.Second, advert(peer, 254), nil, inBackup, 2*time.Second + DownInterval(255, time.Second, 3) + tie},
	{"the owner does not preempt an owner", owner, after(handing, step{600 * ms, advert(peer, 255)}),
		40 * time.Second, advert(peer, 255), nil, inBackup, 40*time.Second + DownInterval(255, time.Second, 3)},
	{"somebody advertises from a backup's own address", eager, listeningTo, 2 * time.Second, advert(self, 200),
		[]Effect{notes(AddressCopy, self)}, inBackup, time.Second + down},
	{"somebody says goodbye from a backup's own address", plain, listeningTo, 2 * time.Second, advert(self, 0),
		[]Effect{notes(AddressCopy, self)}, inBackup, time.Second + down},

	// Backup, goodbyes.
	{"backup hears priority 0", plain, listeningTo, 2 * time.Second, advert(peer, 0), nil, inBackup, 2*time.Second + skew},
	{"backup hears priority 0 of a master with another interval", plain,
		after(listeningTo, step{2 * time.Second, slowAdvert(peer, 100)}), 3 * time.Second, advert(peer, 0),
		nil, inBackup, 3*time.Second + 2*skew},
	{"backup hears a verified priority 0 from the peer: an invitation", signed, listeningTo, 2 * time.Second, advert(peer, 0),
		promoted(enters(Master, Invited, peer)), inMaster, 3 * time.Second},
	{"a node that just started is invited", signed, starting, time.Second, advert(peer, 0),
		promoted(enters(Master, Invited, peer)), inMaster, 2 * time.Second},
	{"backup hears a verified priority 0 from somebody else", signed, listeningTo, 2 * time.Second, advert(higher, 0),
		nil, inBackup, 2*time.Second + skew},
	{"a peer that yields to somebody else invites nobody", signed, after(listeningTo, step{1500 * ms, advert(higher, 100)}), 2 * time.Second, advert(peer, 0),
		nil, inBackup, 2*time.Second + skew},
	{"a repeated goodbye does not make a backup wait longer", signed, after(listeningTo, step{1500 * ms, advert(higher, 100)}, step{2 * time.Second, advert(higher, 0)}),
		2250 * ms, advert(higher, 0), nil, inBackup, 2*time.Second + skew},
	{"nobody takes over after a goodbye", plain, after(listeningTo, step{2 * time.Second, advert(peer, 0)}),
		2*time.Second + skew, ev(Tick), promoted(enters(Master, MasterLeft, peer)), inMaster, 3*time.Second + skew},
	{"a starting node hears nothing but a goodbye", plain, after(starting, step{2 * time.Second, advert(peer, 0)}),
		2*time.Second + skew, ev(Tick), promoted(enters(Master, MasterLeft, peer)), inMaster, 3*time.Second + skew},
	{"a master that was to be preempted leaves", func() Config { c := eager; c.Signed, c.Foreign = false, true; return c }(),
		after(starting, step{time.Second, advert(peer, 99)}, step{2 * time.Second, advert(peer, 0)}),
		2*time.Second + skew, ev(Tick), promoted(enters(Master, MasterLeft, peer)), inMaster, 3*time.Second + skew},
	{"somebody of higher priority takes over after a goodbye", plain, after(listeningTo, step{2 * time.Second, advert(peer, 0)}),
		2*time.Second + ms, advert(higher, 200), nil, inBackup, 2*time.Second + ms + down},
	{"who took over after a goodbye falls silent", plain,
		after(listeningTo, step{2 * time.Second, advert(peer, 0)}, step{2*time.Second + ms, advert(higher, 200)}),
		2*time.Second + ms + down, ev(Tick), promoted(enters(Master, MasterSilent, higher, down)), inMaster, 3*time.Second + ms + down},

	// Backup, the held start.
	{"a starting node cannot verify its peer: promotion held", signed, starting, 3 * time.Second, unverifiable(peer),
		[]Effect{notes(Held, peer)}, inBackup, 3*time.Second + down},
	{"that is said once", signed, after(starting, step{3 * time.Second, unverifiable(peer)}), 4 * time.Second, unverifiable(peer),
		nil, inBackup, 4*time.Second + down},
	{"a held node no longer hears its peer", signed, after(starting, step{3 * time.Second, unverifiable(peer)}),
		3*time.Second + down, ev(Tick), promoted(enters(Master, MasterSilent, down)), inMaster, 4*time.Second + down},
	{"a held node is able to verify its peer", signed, after(starting, step{3 * time.Second, unverifiable(peer)}),
		4 * time.Second, advert(peer, 100), nil, inBackup, 4*time.Second + down},
	{"a held node that is started anew says it again", signed,
		after(starting, step{1 * time.Second, unverifiable(peer)}, step{2 * time.Second, ev(Stop)}, step{3 * time.Second, ev(Start)}),
		4 * time.Second, unverifiable(peer), []Effect{notes(Held, peer)}, inBackup, 4*time.Second + down},
	{"a node that verified its peer is held again when it is started anew", signed,
		after(listeningTo, step{2 * time.Second, ev(Stop)}, step{3 * time.Second, ev(Start)}),
		4 * time.Second, unverifiable(peer), []Effect{notes(Held, peer)}, inBackup, 4*time.Second + down},
	{"a stranger does not hold a start", signed, starting, 3 * time.Second, unverifiable(higher), nil, inBackup, down + tie},
	{"but one does that signs otherwise for our address", signed, starting, 3 * time.Second, claim(higher),
		[]Effect{notes(Held, higher)}, inBackup, 4*time.Second + down},
	{"nor does a node that cannot verify its peer race with one that can", signed, starting, 3 * time.Second, claim(peer),
		[]Effect{notes(Held, peer)}, inBackup, 4*time.Second + down},
	{"that holds no node that verified its peer", signed, listeningTo, 3 * time.Second, claim(higher), nil, inBackup, time.Second + down},
	{"nothing holds a node that verified its peer", signed, listeningTo, 3 * time.Second, unverifiable(peer),
		nil, inBackup, time.Second + down},
	{"nothing holds a node that verified a stranger with the password", signed, after(starting, step{time.Second, advert(higher, 1)}),
		3 * time.Second, unverifiable(peer), nil, inBackup, time.Second + down},
	{"nothing holds a node that was master", signed, after(mastering, step{500 * ms, ev(LinkLost)}, step{600 * ms, ev(LinkBack)}),
		3 * time.Second, unverifiable(peer), nil, inBackup, 600*ms + down + tie},
	{"a starting node without a password hears its peer speak another dialect: promotion held", plain, starting, 3 * time.Second, unverifiable(peer),
		[]Effect{notes(Held, peer)}, inBackup, 3*time.Second + down},

	// Backup, the hesitant start.
	{"a hesitant node waits for three down intervals", signed, nil, 5 * time.Second, hesitates(),
		[]Effect{guardUp, enters(Backup, Started, 3*down), removeAddresses, stopHook}, inBackup, 5*time.Second + 3*down + tie},
	{"of two hesitant nodes the one with the higher address waits less", upper, nil, 5 * time.Second, hesitates(),
		[]Effect{guardUp, enters(Backup, Started, 3*down), removeAddresses, stopHook}, inBackup, 5*time.Second + 3*down},
	{"a hesitant node is woken after one down interval", signed, hesitating, down + tie, ev(Tick), nil, inBackup, 3*down + tie},
	{"a hesitant node hears nobody", signed, hesitating, 3*down + tie, ev(Tick),
		promoted(enters(Master, MasterSilent, 3*down)), inMaster, 3*down + tie + time.Second},
	{"a hesitant node hears a master: the down interval is as ever", signed, hesitating, 2 * time.Second, advert(peer, 100),
		nil, inBackup, 2*time.Second + down},
	{"the master of a node that was hesitant falls silent", signed, after(hesitating, step{2 * time.Second, advert(peer, 100)}),
		2*time.Second + down, ev(Tick), promoted(enters(Master, MasterSilent, peer, down)), inMaster, 3*time.Second + down},
	{"a hesitant node wants to preempt: a down interval from the first advert", eager, hesitating, 2 * time.Second, advert(peer, 99),
		nil, inBackup, 2*time.Second + down},
	{"that one runs on", eager, after(hesitating, step{2 * time.Second, advert(peer, 99)}), 3 * time.Second, advert(peer, 99),
		nil, inBackup, 2*time.Second + down},
	{"a hesitant node hears an advert late: no later than it would have been", eager, hesitating, 3 * down, advert(peer, 99),
		nil, inBackup, 3*down + tie},
	{"a hesitant node is invited", signed, hesitating, time.Second, advert(peer, 0),
		promoted(enters(Master, Invited, peer)), inMaster, 2 * time.Second},
	{"a hesitant node cannot verify its peer: held, and no shorter", signed, hesitating, 3 * time.Second, unverifiable(peer),
		[]Effect{notes(Held, peer)}, inBackup, 3*down + tie},
	{"a hesitant node is held to the last", signed, hesitating, 3 * down, unverifiable(peer),
		[]Effect{notes(Held, peer)}, inBackup, 4 * down},
	{"a hesitant node hears its own address: still hesitant", signed, hesitating, time.Second, advert(self, 100),
		[]Effect{notes(AddressCopy, self)}, inBackup, 3*down + tie},
	{"a fault is no reason to hesitate less", signed, after(hesitating, step{time.Second, ev(LinkLost)}), 2 * time.Second, ev(LinkBack),
		[]Effect{enters(Backup, LinkReturned, 3*down), announcesSelf}, inBackup, 2*time.Second + 3*down + tie},
	{"who was master does not hesitate", signed, after(hesitating, step{3*down + tie, ev(Tick)}, step{12 * time.Second, ev(LinkLost)}),
		13 * time.Second, ev(LinkBack), []Effect{enters(Backup, LinkReturned), announcesSelf}, inBackup, 13*time.Second + down + tie},
	{"a later start does not hesitate", signed, after(hesitating, step{time.Second, ev(Stop)}), 2 * time.Second, ev(Start),
		[]Effect{guardUp, enters(Backup, Started), removeAddresses, stopHook}, inBackup, 2*time.Second + down + tie},
	{"the owner does not hesitate", owner, nil, 0, hesitates(),
		[]Effect{{Kind: SendAdvert, Priority: 255}, guardDown, addAddresses, announces, enters(Master, AddressOwner), startHook},
		inMaster, time.Second},

	// Backup, links and signals.
	{"a backup loses its link", signed, listeningTo, 2 * time.Second, ev(LinkLost),
		[]Effect{enters(Fault, LinkFailed)}, inFault, Never},
	{"a backup in step loses the carrier: the timer runs on", signed, listeningTo, 2 * time.Second, ev(CarrierLost),
		[]Effect{notes(CarrierGone)}, inBackup, time.Second + down},
	{"a backup without carrier takes over", signed, after(listeningTo, step{2 * time.Second, ev(CarrierLost)}),
		time.Second + down, ev(Tick), promoted(enters(Master, MasterSilent, peer, down)), inMaster, 2*time.Second + down},
	{"a backup whose master left loses the carrier", plain, after(listeningTo, step{2 * time.Second, advert(peer, 0)}),
		2*time.Second + ms, ev(CarrierLost), []Effect{notes(CarrierGone)}, inBackup, 2*time.Second + skew},
	{"a starting node has no carrier", signed, starting, time.Second, ev(CarrierLost),
		[]Effect{enters(Fault, LinkFailed)}, inFault, Never},
	{"a held node loses the carrier", signed, after(starting, step{time.Second, unverifiable(peer)}), 2 * time.Second, ev(CarrierLost),
		[]Effect{enters(Fault, LinkFailed)}, inFault, Never},
	{"a node that only wants to preempt loses the carrier", eager, after(starting, step{time.Second, advert(peer, 99)}),
		2 * time.Second, ev(CarrierLost), []Effect{enters(Fault, LinkFailed)}, inFault, Never},
	{"a node that heard nobody since its link came back loses the carrier", signed,
		after(listeningTo, step{2 * time.Second, ev(LinkLost)}, step{3 * time.Second, ev(LinkBack)}), 4 * time.Second, ev(CarrierLost),
		[]Effect{enters(Fault, LinkFailed)}, inFault, Never},
	{"the carrier of a backup is back", signed, after(listeningTo, step{2 * time.Second, ev(CarrierLost)}), 3 * time.Second, ev(LinkBack),
		nil, inBackup, time.Second + down},
	{"a backup is asked to hand over", signed, listeningTo, 2 * time.Second, ev(HandOver),
		[]Effect{notes(NotMaster)}, inBackup, time.Second + down},
	{"a backup stops without a goodbye", signed, listeningTo, 2 * time.Second, ev(Stop),
		[]Effect{enters(Init, Stopping), removeAddresses, stopHook}, inInit, Never},

	// Master, the timer.
	{"a master advertises", signed, mastering, time.Second, ev(Tick), []Effect{advertises}, inMaster, 2 * time.Second},
	{"a master is woken before its time", signed, mastering, time.Second - 1, ev(Tick), nil, inMaster, time.Second},
	{"a late advert does not delay the next", signed, mastering, 1900 * ms, ev(Tick), []Effect{advertises}, inMaster, 2 * time.Second},
	{"an advert later than an interval is not sent twice", signed, mastering, 2 * time.Second, ev(Tick),
		[]Effect{advertises}, inMaster, 3 * time.Second},
	{"a master advertises its own interval whatever it learned as backup", plain,
		after(listeningTo, step{2 * time.Second, slowAdvert(peer, 100)}, step{2*time.Second + 2*down, ev(Tick)}),
		3*time.Second + 2*down, ev(Tick), []Effect{advertises}, inMaster, 4*time.Second + 2*down},

	// Master, adverts.
	{"master hears priority 0", signed, mastering, 500 * ms, advert(peer, 0), []Effect{advertises, announces}, inMaster, 1500 * ms},
	{"master hears another priority 0", signed, after(mastering, step{500 * ms, advert(peer, 0)}), 501 * ms, advert(peer, 0),
		[]Effect{advertises, announces}, inMaster, 1501 * ms},
	{"master hears a verified priority 0 from somebody else", signed, mastering, 500 * ms, advert(lower, 0),
		[]Effect{advertises, announces}, inMaster, 1500 * ms},
	{"master hears an unsigned priority 0 within a second of its announcement", plain, mastering, 999 * ms, advert(peer, 0),
		[]Effect{advertises}, inMaster, 1999 * ms},
	{"master hears an unsigned priority 0 later", plain, mastering, time.Second, advert(peer, 0),
		[]Effect{advertises, announces}, inMaster, 2 * time.Second},
	{"master hears a higher priority", signed, mastering, 500 * ms, advert(lower, 101),
		demoted(enters(Backup, HigherPriority, lower)), inBackup, 500*ms + down},
	{"master yields to somebody with another interval", plain, mastering, 500 * ms, slowAdvert(peer, 101),
		append(outdone(advertises, enters(Backup, HigherPriority, peer)), notes(IntervalSeen, peer, every(2*time.Second))), inBackup, 500*ms + 2*down},
	{"master without a password hears its own priority from a higher address", plain, mastering, 500 * ms, advert(higher, 100),
		outdone(advertises, enters(Backup, HigherAddress, higher)), inBackup, 500*ms + down},
	{"who the master yielded to falls silent", signed, after(mastering, step{500 * ms, advert(peer, 101)}), 500*ms + down, ev(Tick),
		promoted(enters(Master, MasterSilent, peer, down)), inMaster, 1500*ms + down},
	{"who the master yielded to was in step when the carrier went", signed, after(mastering, step{500 * ms, advert(peer, 101)}),
		600 * ms, ev(CarrierLost), []Effect{notes(CarrierGone)}, inBackup, 500*ms + down},
	{"master hears its own priority from a higher address", signed, mastering, 500 * ms, advert(higher, 100),
		demoted(enters(Backup, HigherAddress, higher)), inBackup, 500*ms + down},
	{"master hears its own priority from an address of higher rank", signed, mastering, 500 * ms, ranked(lower, 1),
		demoted(enters(Backup, HigherAddress, lower)), inBackup, 500*ms + down},
	{"master hears its own priority from an address of lower rank", signed, mastering, 500 * ms, ranked(higher, -1),
		[]Effect{advertises}, inMaster, 1500 * ms},
	{"master hears its own priority from a lower address", signed, mastering, 500 * ms, advert(lower, 100),
		[]Effect{advertises}, inMaster, 1500 * ms},
	{"addresses compare as big-endian numbers", signed, mastering, 500 * ms, advert(little, 100),
		[]Effect{advertises}, inMaster, 1500 * ms},
	{"master hears a lower priority from a higher address", signed, mastering, 500 * ms, advert(higher, 99),
		[]Effect{advertises}, inMaster, 1500 * ms},
	{"master hears a lower priority a second after its announcement", signed, after(mastering, step{time.Second, ev(Tick)}),
		time.Second, advert(higher, 99), []Effect{advertises, notes(LosingRival, higher), announces}, inMaster, 2 * time.Second},
	{"a losing rival is answered at once, also right after an advert", signed, after(mastering, step{time.Second, ev(Tick)}),
		time.Second + 1, advert(higher, 99), []Effect{advertises, notes(LosingRival, higher), announces}, inMaster, 2*time.Second + 1},
	{"a losing rival that repeats itself is not announced against each time", signed,
		after(mastering, step{1500 * ms, advert(higher, 99)}), 2499 * ms, advert(higher, 99), []Effect{advertises}, inMaster, 3499 * ms},
	{"a losing rival of seventeen adverts in an interval gets sixteen answers", signed,
		after(mastering, slices.Repeat([]step{{500 * ms, advert(higher, 99)}}, 16)...), 501 * ms, advert(higher, 99), nil, inMaster, 1500 * ms},
	{"a goodbye counts among them", signed,
		after(mastering, slices.Repeat([]step{{500 * ms, advert(higher, 99)}}, 16)...), 501 * ms, advert(peer, 0), nil, inMaster, 1500 * ms},
	{"in the next interval it is answered again", signed,
		after(mastering, slices.Repeat([]step{{500 * ms, advert(lower, 0)}}, 17)...), time.Second, advert(peer, 99),
		[]Effect{advertises}, inMaster, 2 * time.Second},
	{"an owner yields to an owner of higher address", owner, []step{{0, ev(Start)}}, 500 * ms, advert(peer, 255),
		outdone(Effect{Kind: SendAdvert, Priority: 255}, enters(Backup, HigherAddress, peer)), inBackup, 500*ms + DownInterval(255, time.Second, 3)},
	{"somebody advertises from a master's own address", signed, mastering, 500 * ms, advert(self, 200),
		[]Effect{notes(AddressCopy, self)}, inMaster, time.Second},
	{"somebody says goodbye from a master's own address", signed, mastering, 500 * ms, advert(self, 0),
		[]Effect{notes(AddressCopy, self)}, inMaster, time.Second},

	// Master, links.
	{"a master loses its link", signed, mastering, 500 * ms, ev(LinkLost),
		demoted(enters(Fault, LinkFailed)), inFault, Never},
	{"a master loses the carrier", signed, mastering, 500 * ms, ev(CarrierLost), []Effect{notes(CarrierGone)}, inMaster, time.Second},
	{"the link of a master comes back", signed, mastering, 500 * ms, ev(LinkBack), []Effect{announces}, inMaster, time.Second},

	// Stall.
	{"a master did not run for a down interval: no stall yet", signed, mastering, down, ev(Tick),
		[]Effect{advertises}, inMaster, down + time.Second},
	{"a master did not run for longer: silence", signed, mastering, down + 1, ev(Tick),
		[]Effect{guardUp, stopsAnnouncing, stalled(down+1, down)}, inListening, 2*down + 1},
	{"a stalled master is told that the link is back", signed, mastering, 10 * time.Second, ev(LinkBack),
		[]Effect{guardUp, stopsAnnouncing, stalled(10*time.Second, down)}, inListening, 10*time.Second + down},
	{"a stalled master finds the advert of a lower rival", signed, mastering, 10 * time.Second, advert(lower, 1),
		[]Effect{guardUp, stopsAnnouncing, stalled(10*time.Second, down), goodbye, stopsAnnouncing,
			enters(Backup, ReplacedMeantime, lower), removeAddresses, stopHook}, inBackup, 10*time.Second + down},
	{"a stalled master finds a goodbye", signed, mastering, 10 * time.Second, advert(peer, 0),
		[]Effect{guardUp, stopsAnnouncing, stalled(10*time.Second, down), advertises, guardDown, announces, notes(StallOver)},
		inMaster, 11 * time.Second},
	{"a stalled master is asked to hand over", signed, mastering, 10 * time.Second, ev(HandOver),
		[]Effect{guardUp, stopsAnnouncing, stalled(10*time.Second, down), notes(NotMaster)}, inListening, 10*time.Second + down},
	{"a stalled master stops", signed, mastering, 10 * time.Second, ev(Stop),
		append([]Effect{guardUp, stopsAnnouncing, stalled(10*time.Second, down), goodbye}, released(enters(Init, Stopping))...),
		inInit, Never},
	{"a listening master is woken before its time", signed, silent, 10*time.Second + down - 1, ev(Tick), nil,
		inListening, 10*time.Second + down},
	{"nobody took over during the stall", signed, silent, 10*time.Second + down, ev(Tick),
		[]Effect{advertises, guardDown, announces, notes(StallOver)}, inMaster, 11*time.Second + down},
	{"a listening master stalls again", signed, silent, 60 * time.Second, ev(Tick),
		[]Effect{advertises, guardDown, announces, notes(StallOver)}, inMaster, 61 * time.Second},
	{"a listening master hears priority 0", signed, silent, 11 * time.Second, advert(peer, 0),
		[]Effect{advertises, guardDown, announces, notes(StallOver)}, inMaster, 12 * time.Second},
	{"a listening master hears priority 0 from somebody else", signed, silent, 11 * time.Second, advert(lower, 0),
		[]Effect{advertises, guardDown, announces, notes(StallOver)}, inMaster, 12 * time.Second},
	{"a listening master hears a lower priority", signed, silent, 11 * time.Second, advert(peer, 99),
		append([]Effect{goodbye}, released(enters(Backup, ReplacedMeantime, peer))...), inBackup, 11*time.Second + down},
	{"a listening master hears its own priority from a lower address", signed, silent, 11 * time.Second, advert(lower, 100),
		append([]Effect{goodbye}, released(enters(Backup, ReplacedMeantime, lower))...), inBackup, 11*time.Second + down},
	{"a listening master hears its own priority from a higher address", signed, silent, 11 * time.Second, advert(higher, 100),
		append([]Effect{goodbye}, released(enters(Backup, ReplacedMeantime, higher))...), inBackup, 11*time.Second + down},
	{"a listening master hears a higher priority", signed, silent, 11 * time.Second, advert(higher, 101),
		append([]Effect{goodbye}, released(enters(Backup, ReplacedMeantime, higher))...), inBackup, 11*time.Second + down},
	{"somebody advertises from a listening master's own address", signed, silent, 11 * time.Second, advert(self, 100),
		[]Effect{notes(AddressCopy, self)}, inListening, 10*time.Second + down},
	{"a listening master loses its link", signed, silent, 11 * time.Second, ev(LinkLost),
		released(enters(Fault, LinkFailed)), inFault, Never},
	{"a listening master loses the carrier", signed, silent, 11 * time.Second, ev(CarrierLost),
		[]Effect{notes(CarrierGone)}, inListening, 10*time.Second + down},
	{"a listening master is asked to hand over", signed, silent, 11 * time.Second, ev(HandOver),
		[]Effect{notes(NotMaster)}, inListening, 10*time.Second + down},
	{"a listening master stops, with a goodbye in case nobody took over", signed, silent, 11 * time.Second, ev(Stop),
		append([]Effect{goodbye}, released(enters(Init, Stopping))...), inInit, Never},
	{"a master that was stalled and demoted is promoted again in full", signed,
		after(silent, step{11 * time.Second, advert(peer, 100)}), 12 * time.Second, advert(peer, 0),
		promoted(enters(Master, Invited, peer)), inMaster, 13 * time.Second},

	// Hand-over.
	{"a master hands over: goodbye, and the address stays", signed, mastering, 500 * ms, ev(HandOver),
		[]Effect{stopsAnnouncing, goodbye}, inHandingOver, 750 * ms},
	{"a master hands over beside a program that waits its skew time: a goodbye in each interval", foreign, mastering, 500 * ms, ev(HandOver),
		[]Effect{stopsAnnouncing, goodbye}, inHandingOver, 1500 * ms},
	{"the goodbye of a hand-over is repeated", signed, handing, 750 * ms, ev(Tick), []Effect{goodbye}, inHandingOver, 1000 * ms},
	{"a master that hands over is woken before its time", signed, handing, 749 * ms, ev(Tick), nil, inHandingOver, 750 * ms},
	{"the last goodbye of a hand-over", signed, handing, 3400 * ms, ev(Tick), []Effect{goodbye}, inHandingOver, 3500 * ms},
	{"the successor is heard", signed, handing, 600 * ms, advert(peer, 100),
		demoted(enters(Backup, HandedOver, peer)), inBackup, 600*ms + down},
	{"the successor has a lower priority", signed, handing, 600 * ms, advert(peer, 1),
		demoted(enters(Backup, HandedOver, peer)), inBackup, 600*ms + down},
	{"the successor has a higher priority", signed, handing, 600 * ms, advert(peer, 200),
		demoted(enters(Backup, HandedOver, peer)), inBackup, 600*ms + down},
	{"the successor has a lower address", signed, handing, 600 * ms, advert(lower, 100),
		demoted(enters(Backup, HandedOver, lower)), inBackup, 600*ms + down},
	{"the successor was heard when the limit was over", signed, handing, 60 * time.Second, advert(peer, 100),
		demoted(enters(Backup, HandedOver, peer)), inBackup, 60*time.Second + down},
	{"somebody advertises from the address of a master that hands over", signed, handing, 600 * ms, advert(self, 100),
		[]Effect{notes(AddressCopy, self)}, inHandingOver, 750 * ms},
	{"no successor: it stays master", signed, handing, 3500 * ms, ev(Tick),
		[]Effect{advertises, announces, notes(NoSuccessor, 3*time.Second)}, inMaster, 4500 * ms},
	{"no successor, and the timer a down interval late", signed, handing, 3500*ms + down, ev(Tick),
		[]Effect{advertises, announces, notes(NoSuccessor, 3*time.Second)}, inMaster, 4500*ms + down},
	{"a master that hands over does not run for longer: silence", signed, handing, 3501*ms + down, ev(Tick),
		[]Effect{guardUp, stopsAnnouncing, stalled(down+ms, down)}, inListening, 3501*ms + 2*down},
	{"a second hand-over after one without successor", signed, after(handing, step{3500 * ms, ev(Tick)}), 4 * time.Second, ev(HandOver),
		[]Effect{stopsAnnouncing, goodbye}, inHandingOver, 4250 * ms},
	{"a master without successor yields as ever", signed, after(handing, step{3500 * ms, ev(Tick)}), 4 * time.Second, advert(peer, 101),
		demoted(enters(Backup, HigherPriority, peer)), inBackup, 4*time.Second + down},
	{"a master that hands over loses its link", signed, handing, 600 * ms, ev(LinkLost),
		append([]Effect{guardUp}, released(enters(Fault, LinkFailed))...), inFault, Never},
	{"a master that hands over is stopped", signed, handing, 600 * ms, ev(Stop), []Effect{goodbye}, inStopping, 850 * ms},
	{"a node that handed over does not preempt for 30 s", eager, handedOver, 501*ms + 30*time.Second - 1, advert(peer, 90),
		nil, inBackup, 501*ms + 30*time.Second - 1 + down},
	{"after 30 s it preempts again", eager, after(handedOver, step{20 * time.Second, advert(peer, 90)}), 501*ms + 30*time.Second, advert(peer, 90),
		nil, inBackup, 20*time.Second + down},
	{"an owner that handed over does not preempt for 30 s either", owner, handedOver, 20 * time.Second, advert(peer, 90),
		nil, inBackup, 20*time.Second + DownInterval(255, time.Second, 3)},
	{"within these 30 s it takes over from a dead successor", eager, handedOver, 501*ms + down, ev(Tick),
		promoted(enters(Master, MasterSilent, peer, down)), inMaster, 1501*ms + down},
	{"a node that yielded does not wait before it preempts", eager, after(mastering, step{500 * ms, advert(peer, 101)}),
		time.Second, advert(peer, 90), nil, inBackup, 500*ms + down},

	// Stop.
	{"a master stops: goodbye, and the address stays", signed, mastering, 500 * ms, ev(Stop), []Effect{stopsAnnouncing, goodbye}, inStopping, 750 * ms},
	{"a master stops beside one", foreign, mastering, 500 * ms, ev(Stop), []Effect{stopsAnnouncing, goodbye}, inStopping, 1500 * ms},
	{"and says its last goodbye", plain, departing, 1500 * ms, ev(Tick), []Effect{goodbye}, inStopping, 1700 * ms},
	{"the goodbye of a stop is repeated", signed, departing, 750 * ms, ev(Tick), []Effect{goodbye}, inStopping, 1000 * ms},
	{"a stopping master is woken before its time", signed, departing, 749 * ms, ev(Tick), nil, inStopping, 750 * ms},
	{"the successor of a stopping master is heard", signed, departing, 600 * ms, advert(peer, 100),
		demoted(enters(Init, Stopping, peer)), inInit, Never},
	{"the successor of a stopping master has a lower priority", signed, departing, 600 * ms, advert(peer, 1),
		demoted(enters(Init, Stopping, peer)), inInit, Never},
	{"the successor of a stopping master has a higher priority", signed, departing, 600 * ms, advert(peer, 200),
		demoted(enters(Init, Stopping, peer)), inInit, Never},
	{"the successor of a stopping master has a lower address", signed, departing, 600 * ms, advert(lower, 100),
		demoted(enters(Init, Stopping, lower)), inInit, Never},
	{"a master stops without a successor", signed, departing, 1500 * ms, ev(Tick), demoted(enters(Init, Stopping)), inInit, Never},
	{"an unsigned master stops without a successor", plain, departing, 1700 * ms, ev(Tick), demoted(enters(Init, Stopping)), inInit, Never},
	{"a stop ends, however late", signed, departing, 60 * time.Second, ev(Tick), demoted(enters(Init, Stopping)), inInit, Never},
	{"a stop during a hand-over has its own limit", signed, after(handing, step{3 * time.Second, ev(Stop)}), 3500 * ms, ev(Tick),
		[]Effect{goodbye}, inStopping, 3750 * ms},
	{"somebody advertises from the address of a stopping master", signed, departing, 600 * ms, advert(self, 100),
		[]Effect{notes(AddressCopy, self)}, inStopping, 750 * ms},
	{"a stopping master loses its link", signed, departing, 600 * ms, ev(LinkLost),
		append([]Effect{guardUp}, released(enters(Init, Stopping))...), inInit, Never},

	// Fault.
	{"the link comes back: a full down interval", signed, broken, 20 * time.Second, ev(LinkBack),
		[]Effect{enters(Backup, LinkReturned), announcesSelf}, inBackup, 20*time.Second + down + tie},
	{"the link of the owner comes back: backup as everybody", owner, broken, 20 * time.Second, ev(LinkBack),
		[]Effect{enters(Backup, LinkReturned), announcesSelf}, inBackup, 20*time.Second + DownInterval(255, time.Second, 3) + tie},
	{"what was learned before a fault is forgotten", plain,
		after(listeningTo, step{2 * time.Second, slowAdvert(peer, 100)}, step{3 * time.Second, ev(LinkLost)}), 20 * time.Second, ev(LinkBack),
		[]Effect{enters(Backup, LinkReturned), announcesSelf}, inBackup, 20*time.Second + down + tie},
	{"a node that handed over returns from a fault and hears nobody", signed,
		after(handedOver, step{time.Second, ev(LinkLost)}, step{2 * time.Second, ev(LinkBack)}), 2*time.Second + down + tie, ev(Tick),
		promoted(enters(Master, MasterSilent, down)), inMaster, 3*time.Second + down + tie},
	{"a node in fault is asked to hand over", signed, broken, 2 * time.Second, ev(HandOver), []Effect{notes(NotMaster)}, inFault, Never},
	{"a node in fault stops", signed, broken, 2 * time.Second, ev(Stop),
		[]Effect{enters(Init, Stopping), removeAddresses, stopHook}, inInit, Never},
}

var adverts = []Event{advert(peer, 0), advert(lower, 0), advert(peer, 99), advert(lower, 100), advert(peer, 100), advert(peer, 101), advert(self, 100)}

// ignored is what changes nothing: no effect, no transition, no other deadline.
var ignored = []struct {
	in     situation
	given  []step
	at     time.Duration
	events []Event
}{
	{inInit, nil, time.Second, append([]Event{ev(Tick), unverifiable(peer), ev(LinkLost), ev(CarrierLost), ev(LinkBack), ev(Stop)}, adverts...)},
	{inBackup, listeningTo, 2 * time.Second, []Event{ev(Start), ev(Resume), ev(Tick), unverifiable(peer), ev(LinkBack)}},
	{inMaster, mastering, 500 * ms, []Event{ev(Start), ev(Resume), ev(Tick), unverifiable(peer)}},
	{inListening, silent, 11 * time.Second, []Event{ev(Start), ev(Resume), ev(Tick), unverifiable(peer), ev(LinkBack)}},
	// Who leaves has said so; a link that flaps meanwhile changes nothing.
	{inHandingOver, handing, 600 * ms, []Event{ev(Start), ev(Resume), ev(Tick), unverifiable(peer), ev(CarrierLost), ev(LinkBack),
		ev(HandOver), advert(peer, 0), advert(lower, 0)}},
	{inStopping, departing, 600 * ms, []Event{ev(Start), ev(Resume), ev(Tick), unverifiable(peer), ev(CarrierLost), ev(LinkBack),
		ev(HandOver), ev(Stop), advert(peer, 0), advert(lower, 0)}},
	{inFault, broken, 2 * time.Second, append([]Event{ev(Start), ev(Resume), ev(Tick), unverifiable(peer), ev(LinkLost), ev(CarrierLost)}, adverts...)},
}

// sort of an event: what the machine has to tell apart.
func sortOf(m *Machine, on Event) string {
	if on.Kind != Advert {
		return on.Kind.String()
	}
	switch {
	case on.From == m.cfg.Local:
		return "advert from our address"
	case on.Priority == 0 && on.From == m.cfg.Peer:
		return "goodbye of the peer"
	case on.Priority == 0:
		return "goodbye of somebody else"
	case on.Priority < m.cfg.Priority:
		return "advert of lower priority"
	case on.Priority > m.cfg.Priority:
		return "advert of higher priority"
	case on.From.Less(m.cfg.Local):
		return "advert of equal priority and lower address"
	default:
		return "advert of equal priority and higher address"
	}
}

// stage brings a machine into a situation.
func stage(t *testing.T, cfg Config, given []step) *host {
	t.Helper()
	h := newHost(cfg)
	for _, s := range given {
		if _, err := h.handle(s.at, s.on); err != nil {
			t.Fatalf("given: %v", err)
		}
	}
	return h
}

func TestTransitions(t *testing.T) {
	covered := map[string]bool{}
	check := func(t *testing.T, cfg Config, given []step, at time.Duration, on Event, want []Effect, then situation, next func(*host) time.Duration) {
		h := stage(t, cfg, given)
		covered[fmt.Sprint(situationOf(h.m), ": ", sortOf(h.m, on))] = true
		wantNext := next(h)
		got, err := h.handle(at, on)
		if err != nil {
			t.Error(err)
		}
		if !slices.Equal(got, want) {
			t.Errorf("effects:\n got %s\nwant %s", list(got), list(want))
		}
		if is := situationOf(h.m); is != then {
			t.Errorf("is %v, want %v", is, then)
		}
		if h.next != wantNext {
			t.Errorf("next deadline %v, want %v", h.next, wantNext)
		}
	}
	for _, c := range transitions {
		t.Run(c.name, func(t *testing.T) {
			check(t, c.cfg, c.given, c.at, c.on, c.want, c.then, func(*host) time.Duration { return c.next })
		})
	}
	for _, c := range ignored {
		for _, on := range c.events {
			t.Run(fmt.Sprintf("%s ignores %s %d from %v", c.in, on.Kind, on.Priority, on.From), func(t *testing.T) {
				check(t, signed, c.given, c.at, on, nil, c.in, func(h *host) time.Duration { return h.next })
			})
		}
	}

	sorts := map[string]bool{}
	for _, on := range adverts {
		sorts[sortOf(New(signed), on)] = true
	}
	for k := Start; k <= Stop; k++ {
		if k != Advert {
			sorts[k.String()] = true
		}
	}
	for _, in := range situations {
		for s := range sorts {
			if pair := fmt.Sprint(in, ": ", s); !covered[pair] {
				t.Errorf("no row for %s", pair)
			}
		}
	}
	if want := len(situations) * (9 + 7); len(sorts)*len(situations) != want {
		t.Errorf("%d sorts of event, want 16", len(sorts))
	}
}

func list(effects []Effect) string {
	var b strings.Builder
	for _, e := range effects {
		fmt.Fprintf(&b, "[%s] ", show(e))
	}
	return b.String()
}
