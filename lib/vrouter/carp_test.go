package vrouter

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/carp"
	"github.com/skudonet/skudonet-ce-cluster/lib/election"
)

// ucarp is a model of ucarp 1.5.2 by its state machine: what is not in it is what
// a network in virtual time does not have.
type ucarp struct {
	*station
	key     carp.Key
	timing  election.Timing
	dead    int
	preempt bool
	lag     time.Duration // between the arrival of a packet and the reaction
	script  time.Duration // of the up script, in which it is deaf and dumb

	counter uint64
	heard   bool // an advert was, so that the counter counts
	due     time.Duration
	stop    context.CancelFunc
}

const clusterIP = "192.0.2.100"

// firstWait is for how long nobody is master when a node in CARP's dialects is
// alone from its start: ten seconds for a ucarp in its up script, after those in
// which that may take the master before for dead.
const firstWait = 13600 * time.Millisecond

func carpKey(password string) carp.Key {
	key, err := carp.NewKey(password, netip.MustParseAddr(clusterIP))
	if err != nil {
		panic(err)
	}
	return key
}

func (w *wire) ucarp(addr string, change ...func(*ucarp)) *ucarp {
	u := &ucarp{station: &station{wire: w, addr: netip.MustParseAddr(addr), ready: make(chan struct{}, 1), log: &bytes.Buffer{}},
		key: carpKey("ucarp password"), timing: election.Timing{Base: 1}, dead: 3, lag: 800 * time.Millisecond, script: 50 * time.Millisecond}
	for _, f := range change {
		f(u)
	}
	w.mu.Lock()
	w.members = append(w.members, u.station)
	w.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	u.stop = cancel
	u.due = w.now() + u.timing.Down(u.dead)
	go u.run(ctx)
	return u
}

func (u *ucarp) run(ctx context.Context) {
	for ctx.Err() == nil {
		now := u.now()
		select {
		case <-ctx.Done():
			return
		case <-u.ready:
			select {
			case <-time.After(u.lag):
			case <-ctx.Done():
			}
			for p, ok, _ := u.Receive(); ok && ctx.Err() == nil; p, ok, _ = u.Receive() {
				u.hear(p.Src, p.Payload)
			}
		case <-time.After(max(0, u.due-now)):
			if u.master {
				u.advertise(u.timing)
			} else {
				u.promote()
			}
		}
	}
}

func (u *ucarp) hear(src netip.Addr, payload []byte) {
	var adv carp.Advertisement
	if adv.Unmarshal(payload) != nil || u.key.Verify(payload) != nil {
		return
	}
	u.counter, u.heard = adv.Counter, true
	theirs := election.Timing{Base: adv.Base, Skew: adv.Skew}.Interval()
	switch ours := u.timing.Interval(); {
	case !u.master && (u.preempt && ours < theirs || u.timing.Down(u.dead) < theirs):
		u.promote()
	case !u.master:
		u.due = u.now() + u.timing.Down(u.dead)
	case ours > theirs || ours == theirs && src.As4()[3] < u.addr.As4()[3]:
		u.advertise(u.timing)
		u.master = false
		u.due = u.now() + u.timing.Down(u.dead)
	}
}

func (u *ucarp) promote() {
	time.Sleep(u.script)
	u.now()
	u.master = true
	u.advertise(u.timing)
}

func (u *ucarp) advertise(timing election.Timing) {
	if u.counter++; !u.heard {
		u.counter = rand.Uint64()
	}
	u.deliver(u.station, u.addr, u.key.Append(nil, carp.Advertisement{VHID: 1, Base: timing.Base, Skew: timing.Skew, Counter: u.counter}))
	u.due = u.now() + timing.Interval()
}

func (u *ucarp) kill() {
	u.stop()
	u.mu.Lock()
	u.members = slices.DeleteFunc(u.members, func(o *station) bool { return o == u.station })
	u.mu.Unlock()
	synctest.Wait()
}

// oneMaster fails the test unless for d, looked at every 10 ms, there is one master but for at most that much of it
// with none, and that much with two.
func (w *wire) oneMaster(t *testing.T, d, none, two time.Duration) {
	t.Helper()
	const look = 10 * time.Millisecond
	var without, doubled time.Duration
	for range d / look {
		w.after(look)
		switch w.masters() {
		case 0:
			without += look
		case 1:
		default:
			doubled += look
		}
	}
	if without > none || doubled > two {
		t.Errorf("in %v no master for %v, want at most %v; two for %v, want at most %v", d, without, none, doubled, two)
		for _, m := range w.members {
			t.Logf("log of %s:\n%s", m.addr, m.log)
		}
	}
}

func (w *wire) joinCARP(dialect election.Dialect, o setup) *station {
	o.dialect, o.passwords = dialect, []string{"ucarp password"}
	return w.join(o)
}

func TestBesideUcarp(t *testing.T) {
	for _, dialect := range []election.Dialect{election.CARP, election.Both} {
		for _, preempt := range []bool{false, true} {
			for _, ours := range []string{a, c} { // below and above ucarp's last octet
				t.Run(fmt.Sprintf("dialect %d, preempt %v, %s", dialect, preempt, ours), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						w := newWire()
						u := w.ucarp(b, func(u *ucarp) { u.preempt = preempt })
						w.after(5 * time.Second)
						one := w.joinCARP(dialect, setup{addr: ours, peer: b})
						w.oneMaster(t, time.Minute, 0, 0)
						if one.want(t, "backup"); !u.master {
							t.Fatal("ucarp is not master")
						}

						t.Log("ucarp dies, and returns")
						u.kill()
						w.oneMaster(t, 20*time.Second, 3600*time.Millisecond, 0)
						one.want(t, "master")
						u = w.ucarp(b, func(u *ucarp) { u.preempt = preempt })
						w.oneMaster(t, time.Minute, 0, 0)
						one.want(t, "master")

						w.after(300 * time.Millisecond) // Two packets of one instant may be delivered in either order.
						t.Log("we hand over: no moment without a master, and two for as long as the up script runs")
						one.router.Do(HandOver)
						w.oneMaster(t, 30*time.Second, 0, 20*time.Millisecond)
						if one.want(t, "backup"); !u.master {
							t.Fatal("ucarp did not take over")
						}

						t.Log("the power fails on both; ours returns first")
						one.kill()
						u.kill()
						one = w.joinCARP(dialect, setup{addr: ours, peer: b, lasting: one.stored})
						w.oneMaster(t, 20*time.Second, firstWait, 0)
						u = w.ucarp(b, func(u *ucarp) { u.preempt = preempt })
						w.oneMaster(t, time.Minute, 0, 0)
						one.want(t, "master")

						w.after(300 * time.Millisecond)
						t.Log("a stop makes ucarp master")
						one.router.Do(Stop)
						w.oneMaster(t, 30*time.Second, 0, 20*time.Millisecond)
						if one.want(t, "init"); !u.master {
							t.Fatal("ucarp did not take over")
						}
						u.kill()
					})
				})
			}
		}
	}
}

// Two of ours that speak CARP alone: ties go by the last octet.
func TestCARPPair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		one := w.joinCARP(election.CARP, setup{addr: a, peer: b})
		two := w.joinCARP(election.CARP, setup{addr: b, peer: a})
		w.oneMaster(t, time.Minute, firstWait, 0)
		one.want(t, "master")
		two.want(t, "backup")
		w.after(300 * time.Millisecond)
		one.router.Do(HandOver)
		w.oneMaster(t, time.Minute, 0, 10*time.Millisecond)
		two.want(t, "master")
		one.want(t, "backup")

		t.Log("a split and its heal")
		w.lose = func(_, _ netip.Addr) bool { return true }
		w.after(10 * time.Second)
		w.lose = nil
		w.oneMaster(t, 10*time.Second, 0, time.Second)
		one.want(t, "master")
		if !strings.Contains(two.log.String(), "has the same rank in CARP, and wins the tie by its last octet") {
			t.Errorf("not said why:\n%s", two.log)
		}
		two.kill()
		w.oneMaster(t, 10*time.Second, 0, 0)
		one.kill()
	})
}

func TestPriorityInCARP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		u := w.ucarp(b)
		w.after(5 * time.Second)
		low := w.joinCARP(election.CARP, setup{addr: a, peer: b, priority: 40})
		w.after(20 * time.Second)
		low.want(t, "backup")
		u.kill()
		w.after(10 * time.Second)
		low.want(t, "master")
		u = w.ucarp(b, func(u *ucarp) { u.preempt = true })
		w.oneMaster(t, 10*time.Second, 0, 100*time.Millisecond)
		if low.want(t, "backup"); !u.master {
			t.Error("a ucarp that preempts did not take over from a lower priority")
		}
		if !strings.Contains(low.log.String(), "has a higher rank in CARP") {
			t.Errorf("not said why:\n%s", low.log)
		}
		u.kill()
		low.kill()
	})
}

// A promoted ucarp is silent until its up script returns: nobody takes over meanwhile.
func TestSilenceOfAnUpScript(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		u := w.ucarp(b, func(u *ucarp) { u.script = 6 * time.Second })
		w.after(time.Second)
		one := w.joinCARP(election.Both, setup{addr: a, peer: b})
		w.after(30 * time.Second)
		if got := strings.Join(one.enters, " "); got != "backup" || !u.master {
			t.Errorf("we were %s, ucarp master: %v", got, u.master)
		}
		u.kill()
		one.kill()
	})
}

// isCARP tells whether one of the packets on the wire is an advert of CARP.
func (w *wire) isCARP() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.ContainsFunc(w.tapped, carp.Looks)
}

func (w *wire) forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tapped = nil
}

func TestBridge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		t.Log("nobody is known to be ucarp: no CARP leaves, which would let listeners test guesses")
		one := w.joinCARP(election.Both, setup{addr: a, peer: b})
		w.after(20 * time.Second)
		one.want(t, "master")
		if w.isCARP() {
			t.Error("CARP was spoken")
		}
		t.Log("a ucarp that starts then hears nobody, until we hear it")
		u := w.ucarp(b)
		w.oneMaster(t, 20*time.Second, 0, time.Second)
		one.want(t, "master")
		if !strings.Contains(one.log.String(), "192.0.2.2 is ucarp: speaking CARP beside VRRPv3 until it is upgraded") {
			t.Errorf("not said:\n%s", one.log)
		}
		w.forget()
		w.after(5 * time.Second)
		if !w.isCARP() {
			t.Error("no CARP is spoken to a ucarp")
		}

		t.Log("a crash does not forget it, nor does a reboot")
		record, lasting := one.kept, one.stored
		one.kill()
		one = w.joinCARP(election.Both, setup{addr: a, peer: b, record: record, lasting: lasting})
		w.oneMaster(t, 20*time.Second, 0, 0)
		one.want(t, "master")
		recorded := slices.Clone(w.tapped)

		t.Log("the other node is upgraded: one word of it ends the bridge on both")
		u.kill()
		two := w.joinCARP(election.Both, setup{addr: b, peer: a})
		w.oneMaster(t, 20*time.Second, 0, 0)
		w.forget()
		w.oneMaster(t, 20*time.Second, 0, 0)
		one.want(t, "master")
		two.want(t, "backup")
		if w.isCARP() {
			t.Error("CARP is spoken after the end of the bridge")
		}
		const words = "CARP is neither spoken nor heard any more, for good; now change the password: CARP let others test guesses"
		for _, s := range []*station{one, two} {
			if n := strings.Count(s.log.String(), words); n != 1 {
				t.Errorf("%s said %d times that the bridge has ended:\n%s", s.addr, n, s.log)
			}
			if !s.stored.Bridge.Ended {
				t.Errorf("%s does not remember it", s.addr)
			}
		}

		t.Log("what was recorded of CARP changes nothing, whoever sends it, also after a restart")
		enters := len(one.enters) + len(two.enters)
		for round := range 2 {
			for _, src := range []netip.Addr{one.addr, two.addr, u.addr, netip.MustParseAddr("192.0.2.66")} {
				for _, old := range recorded {
					if !carp.Looks(old) {
						continue
					}
					w.deliver(nil, src, old)
					for _, timing := range []election.Timing{{Base: 0, Skew: 1}, election.Goodbye} {
						w.deliver(nil, src, retimed(old, timing))
					}
					w.after(20 * time.Millisecond)
				}
			}
			w.after(5 * time.Second)
			one.want(t, "master")
			two.want(t, "backup")
			if got := len(one.enters) + len(two.enters); got != enters {
				t.Errorf("%d transitions", got-enters)
			}
			if round == 0 {
				lasting := two.stored
				two.kill()
				two = w.joinCARP(election.Both, setup{addr: b, peer: a, lasting: lasting})
				w.after(3 * time.Second)
				enters = len(one.enters) + len(two.enters)
			}
		}

		t.Log("the master dies, and a replay does not make it live")
		one.kill()
		down := election.DownInterval(100, time.Second, 3)
		for range 10 {
			for _, old := range recorded {
				if carp.Looks(old) {
					w.deliver(nil, one.addr, old)
				}
			}
			w.after(down / 10)
		}
		w.after(10 * time.Millisecond)
		two.want(t, "master")
		two.kill()
	})
}

// retimed is what somebody without the password can make of an advert of CARP.
func retimed(payload []byte, timing election.Timing) []byte {
	b := slices.Clone(payload)
	b[2], b[5], b[6], b[7] = timing.Skew, timing.Base, 0, 0
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	b[6], b[7] = byte(^sum>>8), byte(^sum)
	return b
}

// The peer goes back to version 2.0, and was forgotten for that: what is recorded of the time when it signed ends no bridge.
func TestForgottenPeerIsReplayed(t *testing.T) {
	for _, master := range []string{a, b} {
		t.Run(master+" becomes master", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWire()
				two := w.joinCARP(election.Both, setup{addr: b, peer: a})
				w.after(20 * time.Second)
				one := w.joinCARP(election.Both, setup{addr: a, peer: b})
				w.oneMaster(t, 10*time.Second, 0, 0)
				two.want(t, "master")
				recorded := slices.Clone(w.tapped[len(w.tapped)-5:])
				two.kill()
				w.after(10 * time.Second)
				one.want(t, "master")
				if !one.stored.Bridge.Ended || len(one.stored.Marks) == 0 {
					t.Fatalf("the bridge has not ended: %+v", one.stored)
				}

				back := func() *ucarp { return w.ucarp(b, func(u *ucarp) { u.preempt = master == b }) }
				one.kill()
				var u *ucarp
				if master == b {
					u = back()
					w.after(10 * time.Second)
				}
				record, lasting := Forget(one.kept, one.stored)
				one = w.joinCARP(election.Both, setup{addr: a, peer: b, record: record, lasting: lasting})
				w.after(20 * time.Second)
				if master == a {
					t.Log("before ucarp was heard it may be a peer whose clock is behind: obeyed, for as long as it goes on")
					w.deliver(nil, two.addr, recorded[0])
					w.after(10 * time.Second)
					recorded = recorded[1:]
					u = back()
				}
				w.after(20 * time.Second)
				enters := len(one.enters)
				replay := func() {
					t.Helper()
					for _, old := range recorded {
						w.deliver(nil, two.addr, old)
						w.oneMaster(t, 3*time.Second, 0, 0)
					}
					if u.master != (master == b) || len(one.enters) != enters {
						t.Errorf("ucarp is master: %v, and we were %v:\n%s", u.master, one.enters, one.log)
					}
					if b := one.stored.Bridge; b.Ended || !b.Ucarp {
						t.Errorf("the bridge ended: %+v", b)
					}
				}
				replay()
				t.Log("nor after a restart")
				record, lasting = one.kept, one.stored
				record.Marks, lasting.Marks = nil, nil // the newest is not what protects
				one.kill()
				one = w.joinCARP(election.Both, setup{addr: a, peer: b, record: record, lasting: lasting})
				w.after(5 * time.Second)
				enters = len(one.enters)
				replay()

				t.Log("an upgrade does")
				u.kill()
				two = w.joinCARP(election.Both, setup{addr: b, peer: a})
				w.after(30 * time.Second)
				if !one.stored.Bridge.Ended || one.stored.Bridge.Forgotten != 0 {
					t.Errorf("the bridge stays open: %+v\n%s", one.stored.Bridge, one.log)
				}
				two.kill()
				one.kill()
			})
		})
	}
}

func TestBridgeEndsBySSH(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		u := w.ucarp(b)
		w.after(5 * time.Second)
		one := w.joinCARP(election.Both, setup{addr: a, peer: b})
		w.after(5 * time.Second)
		t.Log("a node that is heard as a ucarp master is not upgraded")
		one.router.PeerUpgraded()
		w.after(5 * time.Second)
		if one.want(t, "backup"); one.stored.Bridge.Ended {
			t.Fatal("the bridge ended beside a ucarp that is master")
		}
		u.kill()
		w.after(10 * time.Second)
		one.want(t, "master")
		one.router.PeerUpgraded()
		w.after(time.Second)
		w.forget()
		w.after(10 * time.Second)
		if w.isCARP() || !one.stored.Bridge.Ended || !strings.Contains(one.log.String(), "192.0.2.2 answers over ssh as an upgraded node") {
			t.Errorf("the bridge goes on:\n%s", one.log)
		}
		t.Log("that belongs to this peer: another one may be ucarp")
		lasting := one.stored
		one.kill()
		one = w.joinCARP(election.Both, setup{addr: a, peer: c, lasting: lasting})
		u = w.ucarp(c)
		w.after(20 * time.Second)
		if one.want(t, "backup"); !u.master {
			t.Error("ucarp on the new peer is not heard")
		}
		one.kill()
		u.kill()
	})
}

func TestWhatCARPRefuses(t *testing.T) {
	for name, row := range map[string]struct {
		dialect election.Dialect
		u       func(*ucarp)
		src     string // instead of ucarp
		words   string
		state   string
	}{
		"another password": {election.CARP, func(u *ucarp) { u.key = carpKey("guess") }, "", "not becoming master while the peer 192.0.2.2 advertises what this node must not obey: its CARP digest does not fit", "backup"},
		"in both":          {election.Both, func(u *ucarp) { u.key = carpKey("guess") }, "", "its CARP digest does not fit", "backup"},
		"not the peer":     {election.CARP, func(u *ucarp) { u.key = carpKey("guess") }, c, "refused an advertisement from 192.0.2.3: it is not from $remote_ip", "master"},
		"the peer, under another address than $remote_ip": {election.Both, nil, c, "not becoming master while 192.0.2.3, which is not $remote_ip, advertises what this node must not obey: it has our password and our $cluster_ip", "backup"},
		"where VRRP is set": {election.VRRP, nil, "", "it is CARP, as ucarp speaks it: upgrade that node, or set $protocol", "backup"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWire()
				u := w.ucarp(b, func(u *ucarp) {
					if row.u != nil {
						row.u(u)
					}
					if row.src != "" {
						u.addr = netip.MustParseAddr(row.src)
					}
				})
				w.after(4 * time.Second)
				one := w.joinCARP(row.dialect, setup{addr: a, peer: b})
				w.after(20 * time.Second)
				if one.want(t, row.state); !strings.Contains(one.log.String(), row.words) {
					t.Errorf("not said:\n%s", one.log)
				}
				one.kill()
				u.kill()
			})
		})
	}
	t.Run("VRRPv3 where CARP is set", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWire()
			two := w.join(setup{addr: b, peer: a, passwords: signed})
			w.after(5 * time.Second)
			one := w.joinCARP(election.CARP, setup{addr: a, peer: b})
			w.after(20 * time.Second)
			if one.want(t, "backup"); !strings.Contains(one.log.String(), "it is VRRPv3, and $protocol is") {
				t.Errorf("not said:\n%s", one.log)
			}
			one.kill()
			two.kill()
		})
	})
}

// An exact repetition does not keep a dead ucarp alive, with whatever advbase and advskew.
func TestReplayedCARP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		u := w.ucarp(b)
		w.after(5 * time.Second)
		one := w.joinCARP(election.CARP, setup{addr: a, peer: b})
		w.after(10 * time.Second)
		w.forget()
		w.after(5 * time.Second)
		recorded := slices.Clone(w.tapped)
		for _, old := range recorded {
			w.deliver(nil, u.addr, retimed(old, election.Goodbye))
		}
		w.after(time.Second)
		one.want(t, "backup")
		u.kill()
		for range 40 {
			for _, old := range recorded {
				w.deliver(nil, u.addr, old)
				w.deliver(nil, u.addr, retimed(old, election.Timing{Base: 1, Skew: 1}))
			}
			w.after(100 * time.Millisecond)
		}
		one.want(t, "master")
		if !strings.Contains(one.log.String(), "exact repetition of an earlier one") {
			t.Errorf("not said:\n%s", one.log)
		}
		one.kill()
	})
}

// The digest of CARP covers neither its sender nor what it decides by, so that our
// own advert could come back as the peer's.
func TestReflectedCARP(t *testing.T) {
	for _, dialect := range []election.Dialect{election.CARP, election.Both} {
		synctest.Test(t, func(t *testing.T) {
			w := newWire()
			u := w.ucarp(b)
			w.after(5 * time.Second)
			one := w.joinCARP(dialect, setup{addr: a, peer: b})
			w.after(5 * time.Second)
			u.kill()
			w.after(10 * time.Second)
			one.want(t, "master")
			w.forget()
			w.after(5 * time.Second)
			for _, own := range slices.Clone(w.tapped) {
				if carp.Looks(own) {
					w.deliver(nil, u.addr, retimed(own, election.Timing{Base: 0, Skew: 1}))
				}
			}
			w.after(time.Second)
			if one.want(t, "master"); one.router.drops.total["carp-repeated"] < 5 {
				t.Errorf("dropped %v", one.router.drops.total)
			}
			one.kill()
		})
	}
}

// Whoever installs version 2.0 again after the end of the bridge has two masters,
// which nobody can help; but the log says why, also when the peer, a silent
// backup, was heard long ago.
func TestBackToUcarpAfterTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		one := w.joinCARP(election.Both, setup{addr: a, peer: b})
		w.after(20 * time.Second)
		two := w.joinCARP(election.Both, setup{addr: b, peer: a})
		w.after(20 * time.Second)
		one.want(t, "master")
		two.want(t, "backup")
		const words = "it is CARP, which ended here when the other node was upgraded: a replay, or version 2.0 runs there again"
		if strings.Contains(one.log.String()+two.log.String(), words) {
			t.Errorf("said too early:\n%s", one.log)
		}
		two.kill()
		u := w.ucarp(b)
		w.after(time.Minute)
		if n := strings.Count(one.log.String(), words); n != 1 {
			t.Errorf("said %d times:\n%s", n, one.log)
		}

		stored := one.stored
		one.kill()
		w.after(time.Minute)
		start := func() { one = w.joinCARP(election.Both, setup{addr: a, peer: b, lasting: stored}) }
		start()
		w.after(time.Minute)
		if one.want(t, "backup"); !strings.Contains(one.log.String(), "not becoming master while the peer "+b+" advertises") {
			t.Errorf("not held beside a master that it must not obey:\n%s", one.log)
		}
		one.kill()

		// What was recorded of it, though, holds a start for as long as it took to record, and no longer.
		w.forget()
		w.after(5 * time.Second)
		recorded := slices.Clone(w.tapped)
		u.kill()
		w.after(time.Minute)
		start()
		for range 100 {
			for _, advert := range recorded {
				w.deliver(nil, u.addr, advert)
			}
			w.after(100 * time.Millisecond)
		}
		one.want(t, "master")
		one.kill()

		// An admin who wants it back has the end forgotten.
		u = w.ucarp(b)
		w.after(10 * time.Second)
		stored.Bridge = Bridge{}
		start()
		w.after(time.Minute)
		one.want(t, "backup")
		u.kill()
		w.after(10 * time.Second)
		one.want(t, "master")
		one.kill()
	})
}

// A node of the bridge may change its password, as any other.
func TestPasswordNextInCARP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		u := w.ucarp(b, func(u *ucarp) { u.key = carpKey("the new one") })
		w.after(5 * time.Second)
		one := w.join(setup{addr: a, peer: b, dialect: election.CARP, passwords: []string{"ucarp password", "the new one"}})
		w.after(20 * time.Second)
		if one.want(t, "backup"); !one.router.peer.Next || !one.router.peer.CARP {
			t.Errorf("heard %+v", one.router.peer)
		}
		one.kill()
		u.kill()
	})
}

// CARP in UDP is not understood, but tells that the peer is there.
func TestCARPInUDP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		one := w.joinCARP(election.Both, setup{addr: a, peer: b})
		for range 60 {
			one.router.CARPInUDP()
			w.after(time.Second)
		}
		one.want(t, "backup")
		for _, words := range []string{"refused an advertisement from 192.0.2.2: it is CARP in UDP, which this program does not speak", "not becoming master while the peer 192.0.2.2"} {
			if n := strings.Count(one.log.String(), words); n != 1 {
				t.Errorf("said %d times: %s\n%s", n, words, one.log)
			}
		}
		w.after(10 * time.Second)
		one.want(t, "master")
		one.kill()
	})
}
