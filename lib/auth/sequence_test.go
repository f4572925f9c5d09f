package auth

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
)

func TestAfter(t *testing.T) {
	tests := []struct {
		name     string
		s, other Sequence
		want     bool
	}{
		{"equal", 5, 5, false},
		{"newer", 6, 5, true},
		{"older", 5, 6, false},
		{"next second", 0x68000001_00000000, 0x68000000_ffffffff, true},
		{"wrapped", 0, math.MaxUint64, true},
		{"before the wrap", math.MaxUint64, 0, false},
		{"wrapped seconds, 2106", at(time.Unix(1<<32+1, 0)), at(time.Unix(1<<32-1, 0)), true},
		{"just under half way", 1<<63 - 1, 0, true},
		{"half way", 1 << 63, 0, false},
		{"half way, from the other side", 0, 1 << 63, false},
	}
	for _, tt := range tests {
		if got := tt.s.After(tt.other); got != tt.want {
			t.Errorf("%s: %#x after %#x is %v", tt.name, tt.s, tt.other, got)
		}
	}
}

func TestSequenceFields(t *testing.T) {
	s := NewSequence(time.Unix(0x68000000, 500_000_000), 0)
	for _, want := range []Sequence{0x68000000_8000_0000, 0x68000000_8000_0001, 0x68000000_8000_0002} {
		if got := s.Next(0); got != want {
			t.Errorf("got %#x, want %#x", got, want)
		}
	}
	if got, want := s.Next(750*time.Millisecond), Sequence(0x68000001_4000_0000); got != want {
		t.Errorf("0.75 s later: got %#x, want %#x", got, want)
	}
	// More packets in one tick than the counter holds go on in the next tick.
	s.last |= 0xffff
	if got, want := s.Next(750*time.Millisecond), Sequence(0x68000001_4001_0000); got != want {
		t.Errorf("after a full counter: got %#x, want %#x", got, want)
	}
}

// node is a sender whose true time is told by the test. It stores its floor a
// minute ahead, twice a minute, and crashes without storing anything.
type node struct {
	t *testing.T

	now    time.Time     // the true time
	wrong  time.Duration // what its wall clock is ahead of that
	stored Sequence

	source   *SequenceSource
	started  time.Time
	storedAt time.Time
	sent     Sequence
}

func newNode(t *testing.T, now time.Time) *node {
	return &node{t: t, now: now}
}

func (n *node) pass(d time.Duration) { n.now = n.now.Add(d) }

func (n *node) start() {
	n.source = NewSequence(n.now.Add(n.wrong), n.stored)
	n.started = n.now
	n.store()
}

func (n *node) store() {
	n.stored = n.source.Floor(n.now.Sub(n.started), MaxLead)
	n.storedAt = n.now
}

func (n *node) next() Sequence {
	if n.now.Sub(n.storedAt) >= MaxLead/2 {
		n.store()
	}
	seq := n.source.Next(n.now.Sub(n.started))
	if seq.After(n.stored) {
		n.t.Fatalf("sent %#x, above the floor %#x that a crash would leave", seq, n.stored)
	}
	return seq
}

// send sends one packet, which must be newer than the one before.
func (n *node) send() {
	n.t.Helper()
	seq := n.next()
	if n.sent != 0 && !seq.After(n.sent) {
		n.t.Fatalf("%v: sent %#x after %#x", n.now, seq, n.sent)
	}
	n.sent = seq
}

// sendFor sends once a second for a while.
func (n *node) sendFor(d time.Duration) {
	n.t.Helper()
	for ; d > 0; d -= time.Second {
		n.send()
		n.pass(time.Second)
	}
}

// lead is how far the last packet was ahead of the true time.
func (n *node) lead() time.Duration { return between(n.sent, at(n.now)) }

// tick is what the fraction of a sequence counts.
const tick = time.Second >> 16

// between is the time from b to a.
func between(a, b Sequence) time.Duration {
	d := int64(a - b)
	return time.Duration(d>>32)*time.Second + time.Duration(uint32(d))*time.Second>>32
}

var noon = time.Date(2026, 8, 1, 12, 0, 0, 123456789, time.UTC)

func TestSequenceFollowsARightClock(t *testing.T) {
	for _, start := range []time.Time{
		noon,
		time.Date(1970, 1, 1, 0, 0, 0, 0, time.UTC), // no battery
		time.Unix(1<<31-30, 0),                      // 2038
		time.Date(2050, 1, 1, 0, 0, 0, 0, time.UTC),
		time.Unix(1<<32-30, 0), // 2106: the seconds wrap
	} {
		n := newNode(t, start)
		n.start()
		for range 60 {
			n.send()
			if n.sent != at(n.now) {
				t.Fatalf("%v: sent %#x, want the clock, %#x", n.now, n.sent, at(n.now))
			}
			n.pass(time.Second)
		}
	}
}

func TestClockStepsChangeNothing(t *testing.T) {
	n := newNode(t, noon)
	n.start()
	for _, step := range []time.Duration{time.Hour, -24 * time.Hour, 40 * 365 * 24 * time.Hour, 0} {
		n.wrong = step
		n.sendFor(time.Minute)
		if got := n.lead(); got < -2*time.Second || got > 0 {
			t.Errorf("clock wrong by %v: the sequence is ahead by %v", step, got)
		}
	}
}

func TestRestartWithASlowClock(t *testing.T) {
	n := newNode(t, noon)
	n.start()
	n.sendFor(10 * time.Minute)
	for _, wrong := range []time.Duration{-time.Second, -time.Hour, -30 * 365 * 24 * time.Hour} {
		n.wrong = wrong
		for range 3 {
			n.start()
			n.sendFor(3 * time.Minute)
		}
	}
	// Far behind the floor it creeps.
	before := n.sent
	n.sendFor(10 * time.Second)
	if n.sent != before+10 {
		t.Errorf("10 packets moved the sequence by %d", n.sent-before)
	}
	n.wrong = 0
	n.start()
	n.send()
	if got := n.lead(); got < 0 || got > MaxLead {
		t.Errorf("after the clock was set right and a restart the sequence is ahead by %v", got)
	}
}

func TestRestartAfterAFastClock(t *testing.T) {
	n := newNode(t, noon)
	n.wrong = time.Hour
	n.start()
	n.sendFor(5 * time.Minute)
	n.wrong = 0
	n.start()
	n.sendFor(30 * time.Minute) // creeps: nobody may hear a lower number
	n.start()
	n.sendFor(40 * time.Minute)
	if got := n.lead(); got < -2*time.Second || got > 0 {
		t.Errorf("an hour later the sequence is ahead by %v, want it to follow the clock again", got)
	}
}

// However a node crashes, it is never more than a minute ahead of a right clock:
// that is how long it would be unheard if it then lost its floor.
func TestCrashLoop(t *testing.T) {
	for _, alive := range []time.Duration{time.Millisecond, 10 * time.Millisecond, time.Second, 29 * time.Second, 31 * time.Second} {
		n := newNode(t, noon)
		for range 5000 {
			n.start()
			if got := between(n.stored, at(n.now)); got > MaxLead+tick {
				t.Fatalf("restarted every %v: the floor is ahead by %v", alive, got)
			}
			n.send()
			n.pass(alive)
			n.send()
			n.pass(time.Millisecond) // what a restart takes at the very least
			if got := n.lead(); got > MaxLead+tick {
				t.Fatalf("restarted every %v: ahead by %v", alive, got)
			}
		}
	}
}

func TestLostFloor(t *testing.T) {
	n := newNode(t, noon)
	for range 100 { // a crash loop makes the lead as large as it gets
		n.start()
		n.send()
		n.pass(10 * time.Millisecond)
	}
	var peer Marks
	peer.Move(lb1, n.sent)

	n.stored = 0
	n.start()
	lost := n.now
	for n.sent = n.next(); peer.Check(lb1, n.sent) != nil; n.send() {
		if n.now.Sub(lost) > MaxLead {
			t.Fatalf("still unheard after %v", n.now.Sub(lost))
		}
		n.pass(time.Second)
	}
	if n.now == lost {
		t.Error("was heard at once: this test shows nothing")
	}
}

// Everything at once, for as long as the floor is kept: the sequence only grows.
func TestSequenceGrowsAcrossEverything(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 0))
		span := func(max time.Duration) time.Duration { return time.Duration(r.Int64N(int64(max))) }
		n := newNode(t, noon)
		n.start()
		for range 3000 {
			switch r.IntN(5) {
			case 0:
				n.start()
			case 1:
				n.wrong = span(2*time.Hour) - time.Hour
			case 2:
				n.pass(span(time.Hour)) // paused
			default:
				for range r.IntN(20) {
					n.send()
					n.pass(span(2 * time.Second))
				}
			}
		}
	}
}

func TestFloorCoversWhatMayBeSent(t *testing.T) {
	const lead = 2 * time.Second
	for name, floor := range map[string]Sequence{
		"on the clock":       0,
		"ahead of the clock": at(noon.Add(time.Hour)),
		"just ahead":         at(noon.Add(time.Second)),
	} {
		s := NewSequence(noon, floor)
		stored := s.Floor(0, lead)
		var last Sequence
		for now := time.Duration(0); now <= lead; now += time.Second / (maxRate - 1) {
			last = s.Next(now)
		}
		if last.After(stored) {
			t.Errorf("%s: sent %#x, stored %#x", name, last, stored)
		}
		burst := NewSequence(noon, floor)
		stored = burst.Floor(0, lead)
		for range maxRate {
			last = burst.Next(lead)
		}
		if last.After(stored) {
			t.Errorf("%s, all in one moment: sent %#x, stored %#x", name, last, stored)
		}
	}
}

func TestFloorLeadIsBounded(t *testing.T) {
	s := NewSequence(noon, 0)
	for lead, want := range map[time.Duration]time.Duration{-time.Hour: 0, 0: 0, time.Second: time.Second, time.Hour: MaxLead} {
		got := between(s.Floor(0, lead), at(noon))
		if got < want || got > want+time.Millisecond {
			t.Errorf("lead %v: floor is ahead by %v, want %v", lead, got, want)
		}
	}
}

func TestMarks(t *testing.T) {
	sender := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}) }
	var m Marks
	steps := []struct {
		name string
		src  netip.Addr
		seq  Sequence
		want error
	}{
		{"first", sender(1), 100, nil},
		{"equal", sender(1), 100, ErrReplay},
		{"older", sender(1), 99, ErrReplay},
		{"newer", sender(1), 101, nil},
		{"the one before, again", sender(1), 100, ErrReplay},
		{"much newer", sender(1), 1 << 62, nil},
		{"other sender, lower", sender(2), 7, nil},
		{"first sender, above the other's mark only", sender(1), 8, ErrReplay},
		{"other sender goes on", sender(2), 8, nil},
		{"up to the wrap", sender(1), 1 << 63, nil},
		{"up to the wrap", sender(1), math.MaxUint64, nil},
		{"wrapped", sender(1), 3, nil},
		{"before the wrap, again", sender(1), math.MaxUint64, ErrReplay},
		{"third sender starts at 0", sender(3), 0, nil},
		{"third sender repeats 0", sender(3), 0, ErrReplay},
		{"fourth sender", sender(4), 1, nil},
		{"fourth sender again", sender(4), 1, ErrReplay},
		{"fourth sender goes on", sender(4), 2, nil},
		{"an IPv4-mapped spelling", netip.AddrFrom16(sender(4).As16()), 2, ErrReplay},
	}
	run := func(t *testing.T, name string, src netip.Addr, seq Sequence, want error) {
		t.Helper()
		if err := m.Check(src, seq); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		} else if err == nil {
			m.Move(src, seq)
		}
	}
	for _, s := range steps {
		run(t, s.name, s.src, s.seq, s.want)
	}

	// After a restart the stored marks hold.
	stored, err := json.Marshal(maps.Collect(m.All()))
	if err != nil {
		t.Fatal(err)
	}
	var restored map[netip.Addr]Sequence
	if err := json.Unmarshal(stored, &restored); err != nil {
		t.Fatal(err)
	}
	m = Marks{}
	for src, seq := range restored {
		m.Move(src, seq)
	}
	run(t, "restored, equal", sender(1), 3, ErrReplay)
	run(t, "restored, newer", sender(1), 4, nil)

	// A mark is never lowered, so an old file does no harm to a running process.
	m.Move(sender(1), 1)
	run(t, "after an older mark was restored", sender(1), 4, ErrReplay)
	if got := len(maps.Collect(m.All())); got != maxSenders {
		t.Errorf("%d marks, want %d", got, maxSenders)
	}
}

// The fifth sender takes the place of the one that was silent for longest, and opens the door to nothing old.
func TestMoreSendersThanMarks(t *testing.T) {
	sender := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}) }
	var m Marks
	for i := range maxSenders {
		m.Move(sender(i), Sequence(100+i))
	}
	again := func() {
		t.Helper()
		stored := maps.Collect(m.All())
		m = Marks{}
		for src, seq := range stored {
			m.Move(src, seq)
		}
	}
	for i := maxSenders; i < 20; i++ {
		oldest := Sequence(100 + i - maxSenders)
		for what, src := range map[string]netip.Addr{"a new one": sender(i), "the one that is about to be given up": sender(i - maxSenders), "one that was": sender(0)} {
			if err := m.Check(src, oldest); err != ErrReplay {
				t.Errorf("%s says %d once more: %v", what, oldest, err)
			}
		}
		seq := Sequence(100 + i)
		if err := m.Check(sender(i), seq); err != nil {
			t.Fatalf("sender %d: %v", i, err)
		}
		m.Move(sender(i), seq)
		if err := m.Check(sender(i), seq); err != ErrReplay {
			t.Errorf("sender %d repeats itself: %v", i, err)
		}
		again()
	}
	if err := m.Check(sender(0), 1000); err != nil {
		t.Errorf("the first one returns: %v", err)
	}
}

// A forged packet is checked, and dropped when it does not verify: that alone
// must not move anything.
func TestCheckMovesNothing(t *testing.T) {
	var m Marks
	for i := range 10 {
		if err := m.Check(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), math.MaxInt64); err != nil {
			t.Error(err)
		}
	}
	if got := maps.Collect(m.All()); len(got) != 0 {
		t.Errorf("marks are %v", got)
	}
}

func TestMarksIgnoreZones(t *testing.T) {
	var m Marks
	m.Move(netip.MustParseAddr("fe80::1%eth0"), 5)
	if err := m.Check(netip.MustParseAddr("fe80::1"), 5); err != ErrReplay {
		t.Errorf("%v, want %v", err, ErrReplay)
	}
}

func ExampleMarks() {
	var m Marks
	peer := netip.MustParseAddr("192.168.1.251")
	for _, seq := range []Sequence{7, 8, 8} {
		if err := m.Check(peer, seq); err != nil {
			fmt.Println(seq, err)
			continue
		}
		m.Move(peer, seq) // after Verify
	}
	// Output: 8 auth: sequence is not above the last one of this sender
}
