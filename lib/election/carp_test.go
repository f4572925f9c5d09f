package election

import (
	"net/netip"
	"slices"
	"testing"
	"time"
)

var (
	// Peer is 192.168.1.251: the last octet decides, and ours is the lower one.
	carp      = func() Config { c := signed; c.Dialect = CARP; return c }()
	carpUpper = func() Config { c := upper; c.Dialect = CARP; return c }()
	carpEager = func() Config { c := eager; c.Dialect = CARP; return c }()
	carpLow   = func() Config { c := carp; c.Priority = 50; return c }()
	auto      = func() Config { c := signed; c.Dialect = Both; return c }()
	autoEager = func() Config { c := eager; c.Dialect = Both; return c }()
	bridge    = func() Config { c := auto; c.Ucarp = true; return c }()
)

const (
	carpDown  = 3 * time.Second // advskew is 0
	carpWait  = carpDown + 500*ms
	carpFirst = carpWait + 10*time.Second
	autoFirst = down + 10*time.Second // nothing is known of the peer
	carpLimit = 10 * time.Second      // of a hand-over; half of it is a stop's
)

func heardCARP(from netip.Addr, base, skew uint8) Event {
	return Event{Kind: CARPAdvert, From: from, Timing: Timing{base, skew}}
}

// in gives effects the dialect in which their adverts leave.
func in(d Dialect, effects ...Effect) []Effect {
	effects = slices.Clone(effects)
	for i, e := range effects {
		if e.Kind == SendAdvert {
			effects[i].Dialect = d
		}
	}
	return effects
}

// listeningToUcarp heard the peer's CARP.
var listeningToUcarp = []step{{0, ev(Start)}, {time.Second, heardCARP(peer, 1, 0)}} // 1s+carpWait

var carpTransitions = []struct {
	name  string
	cfg   Config
	given []step
	at    time.Duration
	on    Event
	want  []Effect
	then  situation
	next  time.Duration
}{
	// Start: a ucarp that runs its up script is silent.
	{"a node of CARP starts", carp, nil, 0, ev(Start), []Effect{guardUp, enters(Backup, Started), removeAddresses, stopHook}, inBackup, carpFirst},
	{"a node that loses CARP's ties starts", carpUpper, nil, 0, ev(Start), []Effect{guardUp, enters(Backup, Started), removeAddresses, stopHook}, inBackup, carpFirst + tie},
	{"a node that does not know its peer starts", auto, nil, 0, ev(Start), []Effect{guardUp, enters(Backup, Started), removeAddresses, stopHook}, inBackup, autoFirst + tie},
	{"ten seconds more than a master's silence are enough", carp, starting, carpFirst, ev(Tick), in(CARP, promoted(enters(Master, MasterSilent, carpFirst))...), inMaster, carpFirst + time.Second},
	{"nobody is known to be ucarp: VRRP alone", auto, starting, autoFirst + tie, ev(Tick), promoted(enters(Master, MasterSilent, autoFirst)), inMaster, autoFirst + tie + time.Second},
	{"it was ucarp before the restart: both", bridge, starting, carpFirst + tie, ev(Tick), in(Both, promoted(enters(Master, MasterSilent, carpFirst))...), inMaster, carpFirst + tie + time.Second},
	{"a master that resumes speaks both", bridge, nil, 0, ev(Resume), in(Both, promoted(enters(Master, Resumed))...), inMaster, time.Second},
	{"the link of a node of CARP comes back", carp, broken, 20 * time.Second, ev(LinkBack),
		[]Effect{enters(Backup, LinkReturned), announcesSelf}, inBackup, 20*time.Second + carpFirst},
	{"what cannot be verified holds a starting node", carp, starting, 11 * time.Second, unverifiable(peer), []Effect{notes(Held, peer)}, inBackup, 11*time.Second + carpWait},
	{"and never shortens the first wait", carp, starting, time.Second, unverifiable(peer), []Effect{notes(Held, peer)}, inBackup, carpFirst},

	{"a hesitant node of CARP starts", carp, nil, 0, hesitates(),
		[]Effect{guardUp, enters(Backup, Started, carpFirst+2*carpWait), removeAddresses, stopHook}, inBackup, carpFirst + 2*carpWait},
	{"it hears ucarp, and waits as ever", carp, []step{{0, hesitates()}}, time.Second, heardCARP(peer, 1, 0), nil, inBackup, time.Second + carpWait},

	// Backup.
	{"a ucarp master is heard", carp, starting, time.Second, heardCARP(peer, 1, 0), nil, inBackup, time.Second + carpWait},
	{"the peer turns out to be ucarp", auto, starting, time.Second, heardCARP(peer, 1, 0), []Effect{notes(UcarpHeard, peer)}, inBackup, time.Second + carpWait},
	{"again: no news", auto, listeningToUcarp, 2 * time.Second, heardCARP(peer, 1, 0), nil, inBackup, 2*time.Second + carpWait},
	{"a ucarp master of lower rank is left alone", carp, listeningToUcarp, 2 * time.Second, heardCARP(peer, 1, 100), nil, inBackup, 2*time.Second + carpWait},
	{"with preemption it is taken over from at once", carpEager, listeningToUcarp, 2 * time.Second, heardCARP(peer, 1, 1), in(CARP, promoted(enters(Master, Preempted, peer))...), inMaster, 3 * time.Second},
	{"one of equal rank is not", carpEager, listeningToUcarp, 2 * time.Second, heardCARP(peer, 1, 0), nil, inBackup, 2*time.Second + carpWait},
	{"one of higher rank is not", func() Config { c := carpLow; c.Preempt = true; return c }(), listeningToUcarp, 2 * time.Second, heardCARP(peer, 1, 49), nil, inBackup,
		2*time.Second + carpDown + 50*time.Second/256 + (time.Second+50*time.Second/256)/2},
	{"a master slower than our patience is as good as dead", carp, listeningToUcarp, 2 * time.Second, heardCARP(peer, 3, 1), in(CARP, promoted(enters(Master, MasterLeft, peer))...), inMaster, 3 * time.Second},
	{"one that is just quick enough is not", carp, listeningToUcarp, 2 * time.Second, heardCARP(peer, 3, 0),
		[]Effect{{Kind: Note, Reason: IntervalSeen, From: peer, Interval: 3 * time.Second, Dialect: CARP}}, inBackup, 2*time.Second + carpWait},
	{"CARP's goodbye", carp, listeningToUcarp, 2 * time.Second, heardCARP(peer, 255, 255), in(CARP, promoted(enters(Master, Invited, peer))...), inMaster, 3 * time.Second},
	{"a ucarp master dies", carp, listeningToUcarp, time.Second + carpWait, ev(Tick), in(CARP, promoted(enters(Master, MasterSilent, peer, carpWait))...), inMaster, 2*time.Second + carpWait},
	{"in auto both dialects are spoken then", auto, listeningToUcarp, time.Second + carpWait, ev(Tick), in(Both, promoted(enters(Master, MasterSilent, peer, carpWait))...), inMaster, 2*time.Second + carpWait},
	{"the timer is early", carp, listeningToUcarp, time.Second + carpDown, ev(Tick), nil, inBackup, time.Second + carpWait},
	{"the timer is late: it listens once more", carp, listeningToUcarp, 2*time.Second + carpWait + 1, ev(Tick), []Effect{notes(LateTimer, time.Second+1)}, inBackup, 2*time.Second + 1 + 2*carpWait},
	{"CARP of somebody else", carp, listeningToUcarp, 2 * time.Second, heardCARP(lower, 255, 255), nil, inBackup, time.Second + carpWait},
	{"VRRP where only CARP is spoken", carp, listeningToUcarp, 2 * time.Second, advert(peer, 200), nil, inBackup, time.Second + carpWait},
	{"CARP where only VRRP is spoken", signed, listeningTo, 2 * time.Second, heardCARP(peer, 255, 255), nil, inBackup, time.Second + down},

	// Master.
	{"ucarp of equal rank wins by a lower last octet", carpUpper, mastering, 500 * ms, heardCARP(self, 1, 0), in(CARP, demoted(enters(Backup, LowerOctets, self))...), inBackup, 500*ms + carpWait},
	{"ucarp of equal rank loses by a higher last octet", carp, mastering, 500 * ms, heardCARP(peer, 1, 0), in(CARP, advertises), inMaster, 1500 * ms},
	{"and a second later it is announced over", carp, after(mastering, step{500 * ms, heardCARP(peer, 1, 0)}), 1200 * ms, heardCARP(peer, 1, 0),
		in(CARP, advertises, notes(LosingRival, peer), announces), inMaster, 2200 * ms},
	{"ucarp of higher rank", carpLow, mastering, 500 * ms, heardCARP(peer, 1, 49), in(CARP, demoted(enters(Backup, HigherPriority, peer))...), inBackup,
		500*ms + carpDown + 50*time.Second/256 + (time.Second+50*time.Second/256)/2},
	{"the trick of advbase 0", carp, mastering, 500 * ms, heardCARP(peer, 0, 1), // CARP can do no better
		in(CARP, []Effect{guardUp, goodbye, stopsAnnouncing, enters(Backup, HigherPriority, peer), removeAddresses, stopHook,
			{Kind: Note, Reason: IntervalSeen, From: peer, Interval: time.Second / 256, Dialect: CARP}}...), inBackup, 500*ms + carpWait},
	{"ucarp of lower rank", carp, mastering, 500 * ms, heardCARP(peer, 1, 1), in(CARP, advertises), inMaster, 1500 * ms},
	{"a goodbye is answered", carp, after(mastering, step{time.Second, ev(Tick)}), 1500 * ms, heardCARP(peer, 255, 255), in(CARP, advertises, announces), inMaster, 2500 * ms},
	{"the interval of priority 50", carpLow, mastering, time.Second + 50*time.Second/256, ev(Tick), in(CARP, Effect{Kind: SendAdvert, Priority: 50}), inMaster, 2*time.Second + 100*time.Second/256},
	{"a master of VRRP learns that its rival is ucarp", auto, mastering, 500 * ms, heardCARP(peer, 1, 0), in(Both, notes(UcarpHeard, peer), advertises), inMaster, 1500 * ms},
	{"a master of both loses its link", bridge, mastering, 500 * ms, ev(LinkLost), in(Both, append([]Effect{guardUp, goodbye}, released(enters(Fault, LinkFailed))...)...), inFault, Never},
	{"a stall as long as ucarp's patience", carp, mastering, carpDown + 1, ev(Tick), []Effect{guardUp, stopsAnnouncing, stalled(carpDown+1, carpFirst)}, inListening, carpDown + 1 + carpFirst},
	{"ucarp took over meanwhile", carp, silent, 11 * time.Second, heardCARP(peer, 1, 0), in(CARP, append([]Effect{goodbye}, released(enters(Backup, ReplacedMeantime, peer))...)...), inBackup, 11*time.Second + carpWait},
	{"nobody took over, and somebody leaves", carp, silent, 11 * time.Second, heardCARP(peer, 255, 255), in(CARP, advertises, guardDown, announces, notes(StallOver)), inMaster, 12 * time.Second},

	// Leaving: ucarp takes its time.
	{"a stop in CARP", carp, mastering, 500 * ms, ev(Stop), in(CARP, stopsAnnouncing, goodbye), inStopping, 1500 * ms},
	{"in both", bridge, mastering, 500 * ms, ev(Stop), in(Both, stopsAnnouncing, goodbye), inStopping, 1500 * ms},
	{"the goodbye is repeated every second", carp, departing, 1500 * ms, ev(Tick), in(CARP, goodbye), inStopping, 2500 * ms},
	{"the successor is heard", carp, departing, 5 * time.Second, heardCARP(peer, 1, 0), in(CARP, demoted(enters(Init, Stopping, peer))...), inInit, Never},
	{"no successor in five seconds", carp, departing, 500*ms + carpLimit/2, ev(Tick), in(CARP, demoted(enters(Init, Stopping))...), inInit, Never},
	{"a hand-over to ucarp", bridge, handing, 4 * time.Second, heardCARP(peer, 1, 0), in(Both, demoted(enters(Backup, HandedOver, peer))...), inBackup, 4*time.Second + carpWait},
	{"a hand-over that nobody takes", bridge, handing, 500*ms + carpLimit, ev(Tick), in(Both, advertises, announces, notes(NoSuccessor, carpLimit)), inMaster, 1500*ms + carpLimit},
	{"another goodbye is no successor", carp, departing, 700 * ms, heardCARP(peer, 255, 255), nil, inStopping, 1500 * ms},

	// The end of the bridge.
	{"a backup hears its master with VRRP", auto, listeningToUcarp, 2 * time.Second, advert(peer, 100), []Effect{notes(BridgeEnded, peer), goodbye}, inBackup, 2*time.Second + down},
	{"with preemption no ucarp is waited for any more", autoEager, starting, time.Second, advert(peer, 99), []Effect{notes(BridgeEnded, peer), goodbye}, inBackup, time.Second + down},
	{"and the second advert changes nothing", autoEager, after(starting, step{time.Second, advert(peer, 99)}), 2 * time.Second, advert(peer, 99), nil, inBackup, time.Second + down},
	{"nor does the end, where ucarp was followed before", autoEager, listeningToUcarp, 2 * time.Second, advert(peer, 99), []Effect{notes(BridgeEnded, peer), goodbye}, inBackup, time.Second + carpWait},
	{"the master hears that from its backup", bridge, mastering, 500 * ms, advert(peer, 0), []Effect{notes(BridgeEnded, peer), advertises, announces}, inMaster, 1500 * ms},
	{"two masters, the other one upgraded as well", bridge, mastering, 500 * ms, advert(peer, 100),
		append([]Effect{notes(BridgeEnded, peer)}, demoted(enters(Backup, HigherAddress, peer))...), inBackup, 500*ms + down},
	{"VRRP of somebody else ends nothing", bridge, mastering, 500 * ms, advert(lower, 99), in(Both, advertises), inMaster, 1500 * ms},
	{"the peer answers over ssh", bridge, mastering, 500 * ms, ev(PeerUpgraded), []Effect{notes(BridgeEnded)}, inMaster, time.Second},
	{"VRRP alone from then on", bridge, after(mastering, step{500 * ms, ev(PeerUpgraded)}), time.Second, ev(Tick), []Effect{advertises}, inMaster, 2 * time.Second},
	{"also before anything was heard", auto, starting, time.Second, ev(PeerUpgraded), []Effect{notes(BridgeEnded)}, inBackup, autoFirst + tie},
	{"not while it is heard as a ucarp master", auto, listeningToUcarp, 2 * time.Second, ev(PeerUpgraded), nil, inBackup, time.Second + carpWait},
	{"in CARP there is no bridge to end", carp, mastering, 500 * ms, ev(PeerUpgraded), nil, inMaster, time.Second},
	{"a replayed advert after the end: backup", auto, after(listeningToUcarp, step{2 * time.Second, advert(peer, 100)}), 3 * time.Second, heardCARP(peer, 255, 255), nil, inBackup, 2*time.Second + down},
	{"a replayed advert after the end: master", bridge, after(mastering, step{500 * ms, ev(PeerUpgraded)}), 700 * ms, heardCARP(peer, 0, 1), nil, inMaster, time.Second},
}

func TestCARPTransitions(t *testing.T) {
	for _, c := range carpTransitions {
		t.Run(c.name, func(t *testing.T) {
			h := stage(t, c.cfg, c.given)
			got, err := h.handle(c.at, c.on)
			if err != nil {
				t.Error(err)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("effects:\n got %s\nwant %s", list(got), list(c.want))
			}
			if is := situationOf(h.m); is != c.then {
				t.Errorf("is %v, want %v", is, c.then)
			}
			if h.next != c.next {
				t.Errorf("next deadline %v, want %v", h.next, c.next)
			}
		})
	}
}

// With a dead ratio of one, CARP's down interval is the interval: a timer that is late by less is no stall.
func TestLateAdvertIsNoStall(t *testing.T) {
	cfg := carp
	cfg.DeadRatio = 1
	m := New(cfg)
	_, next := m.Handle(0, ev(Resume))
	for range 10 {
		now := next + 100*ms
		var effects []Effect
		if effects, next = m.Handle(now, ev(Tick)); m.Listening() || len(effects) != 1 || effects[0].Kind != SendAdvert {
			t.Fatalf("a timer that was 100 ms late: %v", effects)
		}
	}
	if m.Handle(next+2*time.Second, ev(Tick)); !m.Listening() {
		t.Error("one that was two seconds late is nothing")
	}
}

// Whatever the situation, after the end no advert of CARP does anything.
func TestAfterTheEndOfTheBridge(t *testing.T) {
	for in, given := range map[situation][]step{inInit: nil, inBackup: starting, inMaster: mastering, inListening: silent,
		inHandingOver: handing, inStopping: departing, inFault: broken} {
		for _, cfg := range []Config{signed, plain} {
			for _, timing := range []Timing{{0, 1}, {1, 0}, {1, 100}, {9, 0}, Goodbye} {
				h := stage(t, cfg, given)
				before, next := *h.m, h.next
				at := 600 * ms
				if len(given) > 0 {
					at = max(at, given[len(given)-1].at)
				}
				if got, err := h.handle(at, heardCARP(peer, timing.Base, timing.Skew)); err != nil || len(got) != 0 || h.next != next {
					t.Errorf("%v, %v: %v, %s, next %v, was %v", in, timing, err, list(got), h.next, next)
				}
				if h.m.state != before.state || h.m.proven != before.proven || h.m.cfg != before.cfg {
					t.Errorf("%v, %v: changed", in, timing)
				}
			}
		}
	}
}

func TestTimingOf(t *testing.T) {
	for _, c := range []struct {
		priority                 uint8
		interval                 time.Duration
		want                     Timing
		every, down, downWithTwo time.Duration
	}{
		{100, time.Second, Timing{1, 0}, time.Second, 3 * time.Second, 2 * time.Second},
		{254, time.Second, Timing{1, 0}, time.Second, 3 * time.Second, 2 * time.Second},
		{255, time.Second, Timing{1, 0}, time.Second, 3 * time.Second, 2 * time.Second},
		{99, time.Second, Timing{1, 1}, 1_003_906_250, 3_003_906_250, 2_003_906_250},
		{1, time.Second, Timing{1, 99}, 1_386_718_750, 3_386_718_750, 2_386_718_750},
		{100, 40 * time.Second, Timing{40, 0}, 40 * time.Second, 120 * time.Second, 80 * time.Second},
	} {
		got := TimingOf(c.priority, c.interval)
		if got != c.want || got.Interval() != c.every || got.Down(3) != c.down || got.Down(2) != c.downWithTwo {
			t.Errorf("priority %d, %v: %v, every %v, down %v and %v, want %+v", c.priority, c.interval, got, got.Interval(), got.Down(3), got.Down(2), c)
		}
	}
}

// As measured of ucarp on amd64, and as a little-endian comparison has it.
func TestOctetsLess(t *testing.T) {
	for _, c := range []struct {
		a, b string
		less bool
	}{
		{"10.0.1.5", "10.0.0.7", true}, {"10.0.0.7", "10.0.1.5", false},
		{"10.0.0.1", "10.0.0.2", true}, {"192.168.1.251", "192.168.1.250", false},
		{"1.0.0.0", "0.0.0.1", true}, {"9.9.9.9", "9.9.9.9", false}, {"200.1.1.1", "3.1.1.1", false},
	} {
		if got := octetsLess(netip.MustParseAddr(c.a), netip.MustParseAddr(c.b)); got != c.less {
			t.Errorf("%s before %s: %v, want %v", c.a, c.b, got, c.less)
		}
	}
}
