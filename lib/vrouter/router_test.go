package vrouter

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/auth"
	"github.com/skudonet/skudonet-ce-cluster/lib/election"
	"github.com/skudonet/skudonet-ce-cluster/lib/link"
	"github.com/skudonet/skudonet-ce-cluster/lib/transport"
	"github.com/skudonet/skudonet-ce-cluster/lib/trouble"
	"github.com/skudonet/skudonet-ce-cluster/lib/vrrp"
)

// wire is a network of routers in one synctest bubble.
type wire struct {
	mu      sync.Mutex
	epoch   time.Time
	turn    sync.Mutex // orders what a test looked at before what a router does next, for the race detector
	members []*station
	lose    func(from, to netip.Addr) bool
	late    func(from netip.Addr) time.Duration
	sent    int
	tapped  [][]byte
}

const latency = 200 * time.Microsecond

type queued struct {
	src     netip.Addr
	payload []byte
	at      time.Duration
}

// station is one member: a Conn, a Host that notes what it is asked for, and
// the router between them.
type station struct {
	*wire
	addr     netip.Addr
	six      *station // the Conn of the second family, and nothing else
	queue    []queued
	ready    chan struct{}
	router   *Router
	troubles *trouble.List
	log      *bytes.Buffer
	cancel   context.CancelFunc

	master    bool
	guarded   bool
	guardless bool          // a guard that is to be raised never stands
	slow      time.Duration // of the addresses
	did       []string
	enters    []string
	kept      Record
	stored    Lasting
}

func newWire() *wire { return &wire{epoch: time.Now()} }

func (w *wire) now() time.Duration {
	w.turn.Lock()
	defer w.turn.Unlock()
	return time.Since(w.epoch) + time.Hour
}

// deliver carries a packet to everybody but its sender.
func (w *wire) deliver(sender *station, src netip.Addr, payload []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sent++
	w.tapped = append(w.tapped, bytes.Clone(payload))
	if len(w.tapped) > 1000 {
		w.tapped = w.tapped[500:]
	}
	delay := latency
	if w.late != nil {
		delay += w.late(src)
	}
	for _, m := range w.members {
		if m == sender || m.addr.Is4() != src.Is4() || w.lose != nil && w.lose(src, m.addr) {
			continue
		}
		b := bytes.Clone(payload)
		time.AfterFunc(delay, func() { m.enqueue(src, b) })
	}
}

func (s *station) enqueue(src netip.Addr, payload []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) < 100 { // as a socket's buffer
		s.queue = append(s.queue, queued{src, payload, s.now()})
	}
	select {
	case s.ready <- struct{}{}:
	default:
	}
}

func (s *station) Source() netip.Addr { return s.addr }
func (s *station) Destination() netip.Addr {
	if s.addr.Is6() {
		return transport.Group6
	}
	return transport.Group
}
func (s *station) Ready() <-chan struct{} { return s.ready }
func (s *station) Woken()                 {}
func (s *station) Close() error           { return nil }
func (s *station) Send(b []byte) error {
	if s.addr.Is6() {
		b = kernelSum(bytes.Clone(b), s.addr, s.Destination())
	}
	s.deliver(s, s.addr, b)
	return nil
}

// kernelSum writes the checksum of IPv6 as Linux does, over everything.
func kernelSum(b []byte, src, dst netip.Addr) []byte {
	b[6], b[7] = 0, 0
	sum := uint32(len(b) + 112)
	for _, words := range [][]byte{src.AsSlice(), dst.AsSlice(), b} {
		for ; len(words) > 1; words = words[2:] {
			sum += uint32(words[0])<<8 | uint32(words[1])
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	b[6], b[7] = byte(^sum>>8), byte(^sum)
	return b
}

func (s *station) Receive() (transport.Packet, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) == 0 {
		return transport.Packet{}, false, nil
	}
	q := s.queue[0]
	s.queue = s.queue[1:]
	return transport.Packet{Src: q.src, Dst: s.Destination(), TTL: 255, Payload: q.payload, Arrived: q.at}, true, nil
}

func (s *station) note(what string) { s.did = append(s.did, what) }

func (s *station) RaiseGuard()             { s.guarded = true; s.note("guard up") }
func (s *station) LowerGuard()             { s.guarded = false; s.note("guard down") }
func (s *station) AddAddresses()           { s.note("add") }
func (s *station) RemoveAddresses()        { s.note("remove") }
func (s *station) Announce()               { s.note("announce") }
func (s *station) StopAnnouncing()         { s.note("hush") }
func (s *station) AnnounceSelf(link.State) { s.note("announce self") }
func (s *station) RunStartHook()           { s.note("start hook") }
func (s *station) RunStopHook()            { s.note("stop hook") }
func (s *station) AfterGuard(f func()) {
	if !s.guardless {
		go f()
	}
}
func (s *station) AfterAddresses(f func()) { time.AfterFunc(s.slow, f) }
func (s *station) Publish(Report)          {}
func (s *station) Keep(r Record)           { s.kept = r }
func (s *station) Save(l Lasting)          { s.stored = l }
func (s *station) Link(link.State)         {}
func (s *station) Enter(st election.State) {
	s.master = st == election.Master
	s.enters = append(s.enters, st.String())
}

func secret(password string) auth.Key {
	key, err := auth.NewKey([]byte(fmt.Sprintf("%-32s", password)))
	if err != nil {
		panic(err)
	}
	return key
}

type setup struct {
	addr, peer string
	priority   uint8
	interval   time.Duration
	preempt    bool
	passwords  []string
	dialect    election.Dialect
	record     Record
	lasting    Lasting
	wall       time.Time
	hesitant   bool
	anyones    bool // the passwords are keys, which a third node may have
	next       bool // the second one is

	addr6, peer6 string // of IPv6, alone or besides
	linkLocal    string // from which adverts come then
}

var usable = link.State{Name: "eth0", Index: 2, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, Up: true, Carrier: true}

func (w *wire) join(o setup) *station {
	if o.priority == 0 {
		o.priority = 100
	}
	if o.interval == 0 {
		o.interval = time.Second
	}
	if o.wall.IsZero() {
		o.wall = time.Now()
	}
	s := &station{wire: w, ready: make(chan struct{}, 1), log: &bytes.Buffer{}}
	cfg := Config{
		Election: election.Config{Priority: o.priority, Interval: o.interval, DeadRatio: 3, Preempt: o.preempt,
			Signed: len(o.passwords) > 0, Foreign: len(o.passwords) == 0, Dialect: o.dialect},
		Interface: "eth0", VRID: 1, Started: o.wall, Hesitant: o.hesitant,
	}
	if o.addr != "" {
		s.addr = netip.MustParseAddr(o.addr)
		cfg.Election.Local, cfg.Election.Peer, cfg.ClusterIP = s.addr, netip.MustParseAddr(o.peer), netip.MustParseAddr(clusterIP)
	}
	conns := map[bool]*station{true: s} // by whether it is IPv4
	if o.addr6 != "" {
		six := Family{netip.MustParseAddr(o.addr6), netip.MustParseAddr(o.peer6), netip.MustParseAddr("2001:db8::100")}
		if o.addr == "" {
			cfg.Election.Local, cfg.Election.Peer, cfg.ClusterIP = six.Local, six.Peer, six.ClusterIP
			conns[false] = s
		} else {
			cfg.Second = six
			s.six = &station{wire: w, ready: make(chan struct{}, 1)}
			conns[false] = s.six
		}
		conns[false].addr = netip.MustParseAddr(o.linkLocal)
	}
	for _, p := range o.passwords {
		cfg.Keys = append(cfg.Keys, Key{secret(p), o.anyones || o.next && len(cfg.Keys) > 0})
		if o.dialect != election.VRRP {
			cfg.CARPKeys = append(cfg.CARPKeys, carpKey(p))
		}
	}
	logger := slog.New(slog.NewTextHandler(s.log, nil))
	s.troubles = trouble.New(logger)
	s.router = New(cfg, s, func(_ link.State, f Family) (Conn, error) { return conns[f.Local.Is4()], nil }, w.now, logger, s.troubles, o.record, o.lasting)
	w.mu.Lock()
	w.members = append(w.members, s)
	if s.six != nil {
		w.members = append(w.members, s.six)
	}
	w.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	go s.router.Run(ctx, nil, 0)
	s.router.Link(usable)
	return s
}

// kill ends a station at once, without a word.
func (s *station) kill() {
	s.cancel()
	s.mu.Lock()
	s.members = slices.DeleteFunc(s.members, func(o *station) bool { return o == s || o == s.six })
	s.mu.Unlock()
	synctest.Wait()
}

// pause keeps the router's goroutine from running, as a paused machine or SIGSTOP would.
func (s *station) pause(d time.Duration) { s.router.post(func() { time.Sleep(d) }) }

func (w *wire) after(d time.Duration) {
	w.turn.Lock()
	//lint:ignore SA2001 see turn
	w.turn.Unlock()
	time.Sleep(d)
	synctest.Wait()
}

func (w *wire) masters() (n int) {
	for _, m := range w.members {
		if m.master {
			n++
		}
	}
	return n
}

func (s *station) want(t *testing.T, state string) {
	t.Helper()
	if got := s.router.machine.State().String(); got != state {
		t.Fatalf("%s is %s, want %s; log:\n%s", s.addr, got, state, s.log)
	}
}

const a, b, c = "192.0.2.1", "192.0.2.2", "192.0.2.3"

var signed = []string{"correct horse battery"}

func TestADayOfAdverts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		one := w.join(setup{addr: a, peer: b, passwords: signed})
		two := w.join(setup{addr: b, peer: a, passwords: signed})
		w.after(24 * time.Hour)
		// The node with the higher address promotes itself first; the other hears it in time.
		two.want(t, "master")
		one.want(t, "backup")
		if got := strings.Join(two.enters, " "); got != "backup master" {
			t.Errorf("states of the master over the day: %s", got)
		}
		if got := strings.Join(one.enters, " "); got != "backup" {
			t.Errorf("states of the backup over the day: %s", got)
		}
		if w.sent < 86390 || w.sent > 86400 {
			t.Errorf("%d adverts in a day, want about 86396", w.sent)
		}
		one.kill()
		two.kill()
	})
}

// The node that the how-to means is master, although the other one was started
// first and would win the tie; and after that nobody hesitates.
func TestFirstStart(t *testing.T) {
	const words = "backup on eth0 vrid 1: the service started; first start: $cluster_ip is not a virtual interface here, so this node waits 10.828s"
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		two := w.join(setup{addr: b, peer: a, passwords: signed, hesitant: true})
		w.after(7 * time.Second)
		one := w.join(setup{addr: a, peer: b, passwords: signed})
		w.after(time.Minute)
		one.want(t, "master")
		if got := strings.Join(two.enters, " "); got != "backup" {
			t.Errorf("states of the hesitant node: %s", got)
		}
		if got := strings.Count(two.log.String(), words); got != 1 || strings.Contains(one.log.String(), "first start") {
			t.Errorf("said %d times, want once, and not by the other:\n%s\n%s", got, two.log, one.log)
		}
		last := one.kept.Sent
		one.kill()
		w.after(last + latency + election.DownInterval(100, time.Second, 3) + time.Microsecond - w.now())
		two.want(t, "master")
		record := two.kept
		two.kill()
		w.after(time.Second)
		again := w.join(setup{addr: b, peer: a, passwords: signed, hesitant: true, record: record})
		w.after(time.Millisecond)
		again.want(t, "master") // restarted in time
		if at := again.router.report().SinceBoot; at == 0 || at != record.SinceBoot {
			t.Errorf("master since %v of the boot clock, was %v", at, record.SinceBoot)
		}
		again.kill()
	})
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		alone := w.join(setup{addr: b, peer: a, passwords: signed, hesitant: true})
		w.after(3*election.DownInterval(100, time.Second, 3) - time.Microsecond)
		alone.want(t, "backup")
		w.after(2 * time.Microsecond)
		alone.want(t, "master")
		if !strings.Contains(alone.log.String(), "no advertisement from anybody for 10.828s") {
			t.Errorf("the log does not say why:\n%s", alone.log)
		}
		alone.kill()
	})
}

func TestPowerCut(t *testing.T) {
	for _, interval := range []time.Duration{time.Second, 100 * time.Millisecond, 10 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			w := newWire()
			one := w.join(setup{addr: a, peer: b, passwords: signed, interval: interval})
			two := w.join(setup{addr: b, peer: a, passwords: signed, interval: interval})
			w.after(4*interval + time.Second)
			two.want(t, "master")
			last := two.kept.Sent
			two.kill()
			down := election.DownInterval(100, interval, 3)
			w.after(last + latency + down - time.Microsecond - w.now())
			one.want(t, "backup")
			w.after(2 * time.Microsecond)
			one.want(t, "master")
			if !strings.Contains(one.log.String(), "master on eth0 vrid 1: no advertisement from 192.0.2.2 for") {
				t.Errorf("the log does not say why:\n%s", one.log)
			}
			one.kill()
		})
	}
}

func TestHandOverAndStopLeaveNoGap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		one := w.join(setup{addr: a, peer: b, passwords: signed})
		two := w.join(setup{addr: b, peer: a, passwords: signed})
		w.after(5 * time.Second)
		two.router.Do(HandOver)
		w.after(5 * time.Millisecond)
		one.want(t, "master")
		two.want(t, "backup")
		if !one.master || one.guarded || !two.guarded {
			t.Error("the guard stands on the wrong node")
		}
		w.after(time.Minute)
		one.want(t, "master")
		one.router.Do(Stop)
		w.after(5 * time.Millisecond)
		one.want(t, "init")
		two.want(t, "master")
		// Stopped: nobody is left to take over, so the address is kept for a second and no longer.
		two.router.Do(Stop)
		w.after(900 * time.Millisecond)
		two.want(t, "master")
		w.after(200 * time.Millisecond)
		two.want(t, "init")
		select {
		case <-two.router.stopped:
		default:
			t.Error("a stopped router does not return")
		}
	})
}

// Who is invited and told to leave in the same moment says that it has the address all the same: whoever invited it has
// it until then.
func TestWhoLeavesAtOnceHasTakenOver(t *testing.T) {
	for _, tc := range []struct {
		name     string
		one, two Command
		first    string
		others   string
	}{
		{"both are stopped", Stop, Stop, "init", "master"},
		{"the invited is stopped", HandOver, Stop, "master", "init"},
		{"it is handed back", HandOver, HandOver, "master", "backup"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWire()
				two := w.join(setup{addr: b, peer: a, passwords: signed})
				one := w.join(setup{addr: a, peer: b, passwords: signed})
				w.after(5 * time.Second)
				if two.master {
					one, two = two, one
				}
				defer one.kill()
				defer two.kill()
				two.slow = 10 * time.Millisecond
				one.router.Do(tc.one)
				w.after(5 * time.Millisecond)
				two.want(t, "master")
				two.router.Do(tc.two)
				w.after(500 * time.Millisecond)
				one.want(t, tc.first)
				two.want(t, tc.others)
				w.after(time.Second)
				if tc.one == Stop {
					two.want(t, "init")
				}
			})
		})
	}
}

// A guard that cannot be raised, for which the last goodbye waits, holds no stop up.
func TestStopWithoutAGuard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		one := w.join(setup{addr: a, peer: b, interval: 20 * time.Second})
		w.after(2 * time.Minute)
		one.want(t, "master")
		one.guardless = true
		one.router.Do(Stop)
		w.after(21 * time.Second) // nobody is there to take over
		one.want(t, "init")
		select {
		case <-one.router.stopped:
			t.Error("it did not wait for the guard")
		default:
		}
		w.after(2 * time.Second)
		select {
		case <-one.router.stopped:
		default:
			t.Error("it waits for ever")
			one.kill()
		}
	})
}

func TestHandOverWithoutSuccessor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		one := w.join(setup{addr: a, peer: b, passwords: signed})
		w.after(5 * time.Second)
		one.router.Do(HandOver)
		w.after(4 * time.Second)
		one.want(t, "master")
		if !strings.Contains(one.log.String(), "no successor within 3s, staying master") {
			t.Errorf("not said:\n%s", one.log)
		}
		if slices.Contains(one.did[5:], "guard up") {
			t.Errorf("the address was let go: %v", one.did)
		}
		one.kill()
	})
}

// A process that is stopped for twice the down interval finds its adverts
// missing and a rival in its queue: never two masters with the guard down.
func TestMasterStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		one := w.join(setup{addr: a, peer: b, passwords: signed})
		two := w.join(setup{addr: b, peer: a, passwords: signed})
		w.after(5 * time.Second)
		two.pause(7200 * time.Millisecond)
		w.after(7100 * time.Millisecond)
		one.want(t, "master")
		sent := w.sent
		w.after(200 * time.Millisecond)
		two.want(t, "backup")
		if w.sent > sent+3 {
			t.Errorf("%d adverts at the end of the stall, want at most the goodbye and its answer", w.sent-sent)
		}
		if !strings.Contains(two.log.String(), "took over while this node did not run") {
			t.Errorf("not said:\n%s", two.log)
		}
		// Alone, it listens for a down interval and goes on.
		one.kill()
		w.after(10 * time.Second)
		two.want(t, "master")
		two.pause(8 * time.Second)
		w.after(8*time.Second + time.Millisecond)
		if !two.guarded {
			t.Error("no guard while it is unclear who is master")
		}
		w.after(4 * time.Second)
		two.want(t, "master")
		if two.guarded {
			t.Error("still guarded after the listening")
		}
		two.kill()
	})
}

// A backup that did not run has adverts in its queue and an expired timer: the
// packets come first.
func TestBackupStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		one := w.join(setup{addr: a, peer: b, passwords: signed})
		two := w.join(setup{addr: b, peer: a, passwords: signed})
		w.after(5 * time.Second)
		for range 5 {
			one.pause(time.Duration(rand.IntN(20000)) * time.Millisecond)
			w.after(30 * time.Second)
			one.want(t, "backup")
			two.want(t, "master")
		}
		one.kill()
		two.kill()
	})
}

func TestThreeRouters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		for _, o := range []setup{{addr: a, peer: b}, {addr: b, peer: a, priority: 150}, {addr: c, peer: a, priority: 120}} {
			w.join(o)
		}
		for _, left := range []int{3, 2, 1} {
			w.after(20 * time.Second)
			if n := w.masters(); n != 1 || len(w.members) != left {
				t.Fatalf("%d masters among %d routers", n, len(w.members))
			}
			for _, m := range w.members {
				if m.master {
					m.kill()
					break
				}
			}
		}
	})
}

// A third one with the key of a pair. What the two that yield to it say to each other must not go on for ever.
func TestThreeRoutersWithOneKey(t *testing.T) {
	six3 := setup{addr6: "2001:db8::3", peer6: "2001:db8::1", linkLocal: "fe80::c"}
	for name, three := range map[string][]setup{
		"IPv4": {{addr: a, peer: b, passwords: signed}, {addr: b, peer: a, passwords: signed}, {addr: c, peer: a, passwords: signed}},
		"IPv6": {six1.with(signed, "", ""), six2.with(signed, "", ""), six3.with(signed, "", "")},
		"both": {six1.with(signed, a, b), six2.with(signed, b, a), six3.with(signed, c, a)},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWire()
				var routers []*station
				for _, o := range three {
					o.anyones = true
					routers = append(routers, w.join(o))
				}
				third := func(addr netip.Addr) bool {
					return addr == routers[2].addr || routers[2].six != nil && addr == routers[2].six.addr
				}
				ahead := time.Duration(0)
				w.late = func(netip.Addr) time.Duration { ahead += time.Nanosecond; return ahead } // nothing overtakes
				for range 20 {
					w.lose = func(src, dst netip.Addr) bool { return third(src) || third(dst) }
					w.after(time.Duration(10_000+rand.IntN(2000)) * time.Millisecond)
					if w.masters() != 2 {
						t.Fatalf("%d masters on both sides of a cut", w.masters())
					}
					w.lose = nil
					// Who yields may invite one that has not heard the third yet, which then yields as well.
					w.after(3 * time.Second)
					transitions := func() (n int) {
						for _, r := range routers {
							n += len(r.enters)
						}
						return n
					}
					before := transitions()
					w.after(10 * time.Second)
					if after := transitions(); w.masters() != 1 || after != before {
						for _, r := range routers {
							defer r.kill()
						}
						t.Fatalf("%d masters, after %d transitions since the network is whole", w.masters(), after-before)
					}
				}
				for _, r := range routers {
					r.kill()
				}
			})
		})
	}
}

// A third one with the configuration of a pair, whose password makes another key for it.
func TestThirdWithAnotherKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		one := w.join(setup{addr: a, peer: b, passwords: signed})
		w.after(5 * time.Second)
		two := w.join(setup{addr: b, peer: a, passwords: signed})
		third := w.join(setup{addr: c, peer: a, passwords: []string{"made of other addresses"}})
		w.after(time.Minute)
		one.want(t, "master")
		one.kill()
		w.after(time.Minute)
		two.want(t, "master")
		third.want(t, "backup")
		if n := strings.Count(third.log.String(), "not becoming master while the peer "+a+" advertises"); n != 1 {
			t.Errorf("said %d times that the promotion is held:\n%s", n, third.log)
		}
		two.kill()
		w.after(time.Minute)
		third.want(t, "master")
		one = w.join(setup{addr: a, peer: b, passwords: signed})
		w.after(time.Minute)
		one.want(t, "backup")
		if n := strings.Count(one.log.String(), "not becoming master while "+c+", which is not $remote_ip, advertises what this node must not obey: its signature does not fit"); n != 1 {
			t.Errorf("said %d times that the promotion is held:\n%s", n, one.log)
		}
		third.kill()
		w.after(10 * time.Second)
		one.want(t, "master")
		one.kill()
	})
}

// A one-way cut makes two masters; the heal must end it within an interval, and
// the survivor announces.
func TestSplitAndHeal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		one := w.join(setup{addr: a, peer: b, passwords: signed})
		two := w.join(setup{addr: b, peer: a, passwords: signed})
		w.after(5 * time.Second)
		for range 20 {
			w.lose = func(_, _ netip.Addr) bool { return true }
			w.after(time.Duration(5000+rand.IntN(2000)) * time.Millisecond)
			if w.masters() != 2 {
				t.Fatal("a split pair should have two masters")
			}
			two.did = nil
			w.lose = nil
			w.after(time.Second + 10*time.Millisecond)
			one.want(t, "backup")
			two.want(t, "master")
			if !slices.Contains(two.did, "announce") {
				t.Fatalf("the survivor did not announce after the heal: %v", two.did)
			}
		}
		one.kill()
		two.kill()
	})
}

func TestWrongPasswordIsHeldAndSaidOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		one := w.join(setup{addr: a, peer: b, passwords: signed})
		w.after(5 * time.Second)
		two := w.join(setup{addr: b, peer: a, passwords: []string{"another password"}})
		w.after(time.Hour)
		one.want(t, "master")
		two.want(t, "backup")
		if n := strings.Count(two.log.String(), "not becoming master"); n != 1 {
			t.Errorf("said %d times that the promotion is held:\n%s", n, two.log)
		}
		if n := strings.Count(two.log.String(), "refused an advertisement"); n < 1 || n > 7 {
			t.Errorf("%d lines about refused adverts in an hour", n)
		}
		// The true master dies: the held node takes over all the same.
		one.kill()
		w.after(10 * time.Second)
		two.want(t, "master")
		two.kill()
	})
}

func TestForgeriesAndReplaysChangeNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		one := w.join(setup{addr: a, peer: b, passwords: signed})
		two := w.join(setup{addr: b, peer: a, passwords: signed})
		w.after(20 * time.Second)
		recorded := slices.Clone(w.tapped)
		enters := len(one.enters) + len(two.enters)
		attacker := netip.MustParseAddr("192.0.2.66")
		for _, src := range []netip.Addr{attacker, one.addr, two.addr} {
			for _, priority := range []uint8{0, 1, 254, 255} {
				adv := vrrp.Advertisement{VRID: 1, Priority: priority, Interval: 10 * time.Millisecond, Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.100")}}
				plain, err := adv.Append(nil, src, transport.Group, vrrp.PseudoHeader)
				if err != nil {
					t.Fatal(err)
				}
				forged := secret("guess").Append(bytes.Clone(plain), auth.KeyID, src, auth.Sequence(time.Now().Unix()+1000)<<32)
				for range 50 {
					w.deliver(nil, src, plain)
					w.deliver(nil, src, forged)
				}
				for _, old := range recorded {
					w.deliver(nil, src, old)
				}
			}
			w.after(10 * time.Second)
		}
		two.want(t, "master")
		one.want(t, "backup")
		if got := len(one.enters) + len(two.enters); got != enters {
			t.Errorf("%d transitions under attack", got-enters)
		}
		if n := strings.Count(one.log.String(), "\n"); n > 60 {
			t.Errorf("%d log lines: an attacker can fill the disk\n%s", n, one.log)
		}
		one.kill()
		two.kill()
	})
}

func TestPasswordChangeOnALivePair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		join := func(addr, peer string, before *station, passwords ...string) *station {
			o := setup{addr: addr, peer: peer, passwords: passwords}
			if before != nil {
				before.kill()
				o.record, o.lasting = before.kept, before.stored
			}
			return w.join(o)
		}
		one, two := join(a, b, nil, "old password"), join(b, a, nil, "old password")
		w.after(5 * time.Second)
		for _, step := range [][]string{{"old password", "new password"}, {"new password", "old password"}, {"new password"}} {
			// Not at the instant of an advert: two packets of one instant overtake each other here.
			one = join(a, b, one, step...)
			w.after(20300 * time.Millisecond)
			two = join(b, a, two, step...)
			w.after(20300 * time.Millisecond)
			two.want(t, "master")
			one.want(t, "backup")
			for _, s := range []*station{one, two} {
				if len(s.enters) != 1 || len(s.router.drops.total) != 0 {
					t.Errorf("step %q on %s: states %v, refused %v", step, s.addr, s.enters, s.router.drops.total)
				}
			}
		}
		one.kill()
		two.kill()
	})
}

// The daemon of the master is killed and comes back in time: the peer does not
// notice. Later, it comes back as backup, and cleans up first.
func TestCrashAndResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		one := w.join(setup{addr: a, peer: b, passwords: signed})
		two := w.join(setup{addr: b, peer: a, passwords: signed})
		w.after(5500 * time.Millisecond)
		two.kill()
		w.after(700 * time.Millisecond)
		again := w.join(setup{addr: b, peer: a, passwords: signed, record: two.kept, lasting: two.stored})
		w.after(10 * time.Second)
		again.want(t, "master")
		one.want(t, "backup")
		if len(one.enters) != 1 {
			t.Errorf("the peer noticed: %v", one.enters)
		}
		again.kill()
		w.after(10 * time.Second)
		one.want(t, "master")
		late := w.join(setup{addr: b, peer: a, passwords: signed, record: again.kept, lasting: again.stored})
		w.after(time.Minute)
		late.want(t, "backup")
		if want := []string{"guard up", "remove", "stop hook"}; !slices.Equal(late.did, want) {
			t.Errorf("a late restart did %v, want %v", late.did, want)
		}
		one.kill()
		late.kill()
	})
}

// Two nodes whose clocks are hours apart, restarted with a clock that went
// back, and one that lost its state: all are heard.
func TestClocksDoNotMatter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		wall := time.Now()
		one := w.join(setup{addr: a, peer: b, passwords: signed, wall: wall.Add(-5 * time.Hour)})
		two := w.join(setup{addr: b, peer: a, passwords: signed, wall: wall})
		w.after(30 * time.Second)
		two.want(t, "master")
		two.kill()
		w.after(10 * time.Second)
		one.want(t, "master")
		// Rebooted without a battery: the wall clock says 2001.
		two.kept.BootID, two.kept.Sequence = "another boot", 0
		two = w.join(setup{addr: b, peer: a, passwords: signed, wall: time.Date(1990, 1, 1, 0, 0, 0, 0, time.UTC), lasting: two.stored})
		w.after(10 * time.Second)
		two.want(t, "backup")
		one.router.Do(HandOver)
		w.after(time.Second)
		two.want(t, "master")
		one.want(t, "backup")
		// Disk replaced, clock right: heard again within a minute.
		two.kill()
		w.after(10 * time.Second)
		one.want(t, "master")
		two = w.join(setup{addr: b, peer: a, passwords: signed, wall: time.Now(), priority: 200, preempt: true})
		w.after(90 * time.Second)
		two.want(t, "master")
		one.want(t, "backup")
		two.kill()
		// Disk replaced and clock behind: not heard, but shouted about.
		w.after(10 * time.Second)
		one.want(t, "master")
		// A packet that came twice, long ago, changes nothing in that.
		w.mu.Lock()
		repeated := slices.Clone(w.tapped)
		w.mu.Unlock()
		for _, packet := range repeated {
			w.deliver(nil, two.addr, packet)
		}
		w.after(time.Minute)
		two = w.join(setup{addr: b, peer: a, passwords: signed, wall: time.Now().Add(-time.Hour), priority: 200, preempt: true})
		w.after(20 * time.Second)
		if !strings.Contains(strings.Join(one.troubles.Words(), "\n"), "skd-vrrpd forget-peer") {
			t.Errorf("the remedy is not shown: %v", one.troubles.Words())
		}
		one.kill()
		two.kill()
	})
}

func TestLinkFaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		one := w.join(setup{addr: a, peer: b, passwords: signed})
		two := w.join(setup{addr: b, peer: a, passwords: signed})
		w.after(5 * time.Second)
		for name, broken := range map[string]link.State{
			"has no carrier":        {Name: "eth0", Index: 2, Up: true},
			"is down":               {Name: "eth0", Index: 2},
			"no interface eth0":     {Name: "eth0"},
			"is not on eth0, which": {Name: "eth0", Index: 2, Up: true, Carrier: true, Local: []link.Local{{Addr: two.addr, Others: []netip.Addr{one.addr}}}},
		} {
			master, other := one, two
			if two.master {
				master, other = two, one
			}
			master.router.Link(broken)
			w.after(10 * time.Second)
			master.want(t, "fault")
			other.want(t, "master")
			if !master.guarded || !strings.Contains(master.log.String(), name) {
				t.Errorf("%s: guard %v, log:\n%s", name, master.guarded, master.log)
			}
			recreated := usable
			recreated.Index = 9
			master.router.Link(recreated)
			w.after(10 * time.Second)
			master.want(t, "backup")
			if len(master.troubles.Words()) != 0 {
				t.Errorf("still shown: %v", master.troubles.Words())
			}
		}
		one.kill()
		two.kill()
	})
}

// Two masters that must not obey each other are shown on both for as long as that lasts.
func TestRivalThatMustNotBeObeyed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		one := w.join(setup{addr: a, peer: b, passwords: signed})
		w.after(5 * time.Second)
		w.lose = func(netip.Addr, netip.Addr) bool { return true }
		two := w.join(setup{addr: b, peer: a, passwords: []string{"changed on this node alone"}})
		w.after(5 * time.Second)
		w.lose = nil
		w.after(2 * time.Second)
		for _, s := range []*station{one, two} {
			s.want(t, "master")
			if words := strings.Join(s.troubles.Words(), "\n"); !strings.Contains(words, "advertises what this node must not obey, so both may be master: its signature does not fit") {
				t.Errorf("shown: %q", words)
			}
		}
		two.kill()
		w.after(40 * time.Second)
		if words := one.troubles.Words(); len(words) != 0 {
			t.Errorf("still shown: %q", words)
		}
		one.kill()
	})
}

// Another cluster with our number, where no password tells it from ours.
func TestAnotherRouterWithOurNumber(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		one := w.join(setup{addr: a, peer: b})
		w.after(10 * time.Second)
		hears := func(from string, priority uint8, list ...string) {
			adv := vrrp.Advertisement{VRID: 1, Priority: priority, Interval: time.Second}
			for _, addr := range list {
				adv.Addrs = append(adv.Addrs, netip.MustParseAddr(addr))
			}
			packet, err := adv.Append(nil, netip.MustParseAddr(from), transport.Group, vrrp.PseudoHeader)
			if err != nil {
				t.Fatal(err)
			}
			w.deliver(nil, netip.MustParseAddr(from), packet)
			w.after(100 * time.Millisecond)
		}
		const other = "192.0.2.200"
		for range 3 {
			hears(c, 254, other)
			hears(c, 0, other)
			one.want(t, "master")
		}
		if n := strings.Count(one.log.String(), "refused an advertisement from "+c+": it has our number and not our $cluster_ip"); n != 1 {
			t.Errorf("said %d times, want once:\n%s", n, one.log)
		}
		hears(c, 254, other, clusterIP) // a third router of ours, that has one more
		one.want(t, "backup")
		w.after(10 * time.Second)
		one.want(t, "master")
		hears(b, 254, other) // the peer, however it is configured
		one.want(t, "backup")
		one.kill()
	})
}

func TestStrangersAndMismatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		one := w.join(setup{addr: a, peer: b, passwords: signed})
		two := w.join(setup{addr: b, peer: a, passwords: signed, interval: 500 * time.Millisecond})
		w.after(time.Minute)
		two.want(t, "master")
		one.want(t, "backup")
		if n := strings.Count(one.log.String(), "following it"); n != 1 {
			t.Errorf("the interval is said %d times", n)
		}
		same := w.join(setup{addr: b, peer: a, passwords: signed}) // the same address on another node
		w.after(time.Minute)
		if !strings.Contains(two.log.String()+same.log.String(), "our own address") {
			t.Errorf("a copied address is not said:\n%s\n%s", two.log, same.log)
		}
		for _, s := range []*station{one, two, same} {
			s.kill()
		}
	})
}

// What a backup finds in its queue after a pause is old: a goodbye in it was
// meant for that time, and the one who said it may be master again.
func TestAnOldGoodbyeInvitesNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		one := w.join(setup{addr: a, peer: b, passwords: signed})
		two := w.join(setup{addr: b, peer: a, passwords: signed})
		w.after(5 * time.Second)
		one.pause(12 * time.Second)
		two.router.Do(Stop)
		w.after(2 * time.Second)
		two.kill()
		two = w.join(setup{addr: b, peer: a, passwords: signed, lasting: two.stored})
		w.after(20 * time.Second)
		two.want(t, "master")
		one.want(t, "backup")
		if len(one.enters) != 1 {
			t.Errorf("states of the paused backup: %v; log:\n%s", one.enters, one.log)
		}
		one.kill()
		two.kill()
	})
}

// A peer that still runs ucarp holds the promotion of an upgraded node.
func TestAnotherDialectHoldsAStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		one := w.join(setup{addr: a, peer: b, passwords: signed})
		carp := append([]byte{0x21, 1, 0, 7, 0, 1}, make([]byte, 30)...)
		for range 60 {
			w.deliver(nil, netip.MustParseAddr(b), carp)
			w.after(time.Second)
		}
		one.want(t, "backup")
		if said := strings.Join(one.troubles.Words(), "\n"); !strings.Contains(said, "not becoming master") || !strings.Contains(said, "ucarp") {
			t.Errorf("not said: %s", said)
		}
		w.after(5 * time.Second)
		one.want(t, "master")
		one.kill()
	})
}
