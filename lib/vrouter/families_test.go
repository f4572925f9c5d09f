package vrouter

import (
	"bytes"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/auth"
	"github.com/skudonet/skudonet-ce-cluster/lib/link"
	"github.com/skudonet/skudonet-ce-cluster/lib/transport"
	"github.com/skudonet/skudonet-ce-cluster/lib/vrrp"
)

// The configured addresses and the link-local ones are in opposite orders.
var (
	six1 = setup{addr6: "2001:db8::1", peer6: "2001:db8::2", linkLocal: "fe80::b"}
	six2 = setup{addr6: "2001:db8::2", peer6: "2001:db8::1", linkLocal: "fe80::a"}
)

// with adds passwords and, if they are wanted, addresses of IPv4.
func (o setup) with(passwords []string, addr, peer string) setup {
	o.passwords, o.addr, o.peer = passwords, addr, peer
	return o
}

func (s *station) count(what string) (n int) {
	for _, did := range s.did {
		if did == what {
			n++
		}
	}
	return n
}

// Adverts come from link-local addresses that no configuration names; the peer is known by the password.
func TestIPv6(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		one, two := w.join(six1.with(signed, "", "")), w.join(six2.with(signed, "", ""))
		w.after(time.Minute)
		two.want(t, "master")
		one.want(t, "backup")
		if heard := one.router.report().Peer; !heard.Verified || w.now()-heard.Heard > 2*time.Second {
			t.Errorf("the backup's peer: %+v", heard)
		}
		two.router.Do(HandOver)
		w.after(5 * time.Millisecond)
		one.want(t, "master")
		two.want(t, "backup")
		if !strings.Contains(one.log.String(), "2001:db8::2 hands over") {
			t.Errorf("the peer is not named as it is configured:\n%s", one.log)
		}
		one.kill()
		w.after(10 * time.Second)
		two.want(t, "master")
		if !strings.Contains(two.log.String(), "no advertisement from 2001:db8::1 for") {
			t.Errorf("the log does not say why:\n%s", two.log)
		}
		// A node whose password differs must not become master beside its peer because it was restarted.
		one = w.join(six1.with([]string{"another password"}, "", ""))
		w.after(time.Minute)
		one.want(t, "backup")
		if !strings.Contains(one.log.String(), "not becoming master while the peer 2001:db8::1") && !strings.Contains(one.log.String(), "not becoming master while the peer 2001:db8::2") {
			t.Errorf("the promotion is not held:\n%s", one.log)
		}
		one.kill()
		two.kill()
	})
}

// Unsigned routers go by the addresses that adverts come from, as RFC 9568 has it; and a pair that heals ends with one master.
func TestTiesOverIPv6(t *testing.T) {
	for name, row := range map[string]struct {
		passwords  []string
		addr, peer string
		winner     string // "one" or "two"
	}{
		"unsigned":               {nil, "", "", "one"},
		"signed":                 {signed, "", "", "one"},
		"both families":          {signed, a, b, "two"},
		"both families unsigned": {nil, a, b, "two"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWire()
				one, two := w.join(six1.with(row.passwords, row.addr, row.peer)), w.join(six2.with(row.passwords, row.peer, row.addr))
				w.after(5 * time.Second)
				w.lose = func(netip.Addr, netip.Addr) bool { return true }
				w.after(10 * time.Second)
				one.want(t, "master")
				two.want(t, "master")
				changes := len(one.enters) + len(two.enters)
				w.lose = nil
				w.after(1100 * time.Millisecond)
				winner, loser := one, two
				if row.winner == "two" {
					winner, loser = two, one
				}
				winner.want(t, "master")
				loser.want(t, "backup")
				w.after(time.Minute)
				if n := len(one.enters) + len(two.enters) - changes; n != 1 {
					t.Errorf("%d changes of state after the network healed: %v, %v", n, one.enters, two.enters)
				}
				one.kill()
				two.kill()
			})
		})
	}
}

// One election decides for both families. Either is enough to be heard in, and that one is not is said.
func TestBothFamilies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		one, two := w.join(six1.with(signed, a, b)), w.join(six2.with(signed, b, a))
		w.after(10 * time.Second)
		two.want(t, "master")
		one.want(t, "backup")
		for _, cut := range []struct {
			v4   bool
			says string
		}{{true, "the peer is heard over IPv6, but not over IPv4"}, {false, "the peer is heard over IPv4, but not over IPv6"}} {
			w.lose = func(from, _ netip.Addr) bool { return from.Is4() == cut.v4 }
			w.after(time.Minute)
			two.want(t, "master")
			one.want(t, "backup")
			if words := strings.Join(one.troubles.Words(), "\n"); !strings.Contains(words, cut.says) {
				t.Errorf("trouble is %q, want %q", words, cut.says)
			}
			if n := strings.Count(one.log.String(), "level=WARN msg=\""+cut.says); n != 1 {
				t.Errorf("said %d times: %s\n%s", n, cut.says, one.log)
			}
			w.lose = nil
			w.after(10 * time.Second)
			if words := one.troubles.Words(); len(words) != 0 {
				t.Errorf("still shown: %v", words)
			}
		}

		// A hand-over is one: the goodbye that comes in the other family does not announce again.
		announced := one.count("announce")
		two.router.Do(HandOver)
		w.after(100 * time.Millisecond)
		one.want(t, "master")
		two.want(t, "backup")
		// Once for the promotion, and once for the old master's goodbye when its guard stood.
		if n := one.count("announce") - announced; n != 2 {
			t.Errorf("announced %d times, want 2", n)
		}
		one.kill()
		w.after(10 * time.Second)
		two.want(t, "master")
		if got := strings.Join(two.enters, " "); got != "backup master backup master" {
			t.Errorf("states: %s", got)
		}
		two.kill()
	})
}

// An advert goes out in each family with its own addresses and checksum, and one sequence.
func TestAnAdvertInBothFamilies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		one := w.join(six1.with(signed, a, b))
		w.after(10 * time.Second)
		one.want(t, "master")
		key := secret(signed[0])
		var last auth.Sequence
		for i := 0; i+1 < len(w.tapped); i += 2 {
			var seqs []auth.Sequence
			for j, want := range []struct{ src, dst, addr string }{{a, "224.0.0.18", "192.0.2.100"}, {"fe80::b", "ff02::12", "2001:db8::100"}} {
				src, packet := netip.MustParseAddr(want.src), w.tapped[i+j]
				var adv vrrp.Advertisement
				if _, _, err := adv.Unmarshal(packet, src, netip.MustParseAddr(want.dst)); err != nil {
					t.Fatalf("%x: %v", packet, err)
				}
				if !slices.Equal(adv.Addrs, []netip.Addr{netip.MustParseAddr(want.addr)}) {
					t.Errorf("advertises %v, want %s", adv.Addrs, want.addr)
				}
				cut := len(packet) - auth.TrailerLen
				seq, err := key.Verify(packet[:cut], packet[cut:], src)
				if err != nil {
					t.Fatal(err)
				}
				seqs = append(seqs, seq)
			}
			if seqs[0] != seqs[1] || !seqs[0].After(last) {
				t.Errorf("sequences %x after %x", seqs, last)
			}
			last = seqs[0]
		}
		one.kill()
	})
}

// What was sent in one family is no use in the other, nor a second time.
func TestReplayInBothFamilies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		one, two := w.join(six1.with(signed, a, b)), w.join(six2.with(signed, b, a))
		w.after(10 * time.Second)
		two.want(t, "master")
		w.mu.Lock()
		old := w.tapped[:8]
		w.mu.Unlock()
		two.kill()
		for range 100 {
			for _, packet := range old {
				for _, src := range []netip.Addr{two.addr, two.six.addr} {
					w.deliver(nil, src, packet)
				}
			}
			w.after(100 * time.Millisecond)
		}
		one.want(t, "master")
		one.kill()
	})
}

// One family is slower. What it brings late is not news of a master that has just left.
func TestHandOverWithASlowFamily(t *testing.T) {
	for _, slow4 := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			w := newWire()
			w.late = func(from netip.Addr) time.Duration {
				if from.Is4() == slow4 {
					return 5 * time.Millisecond
				}
				return 0
			}
			one, two := six1.with(signed, a, b), six2.with(signed, b, a)
			one.interval, two.interval = 100*time.Millisecond, 100*time.Millisecond
			from, to := w.join(two), w.join(one)
			w.after(5 * time.Second)
			from.want(t, "master")
			for i := range 20 {
				before := len(from.enters) + len(to.enters)
				w.after(time.Duration(i) * 5 * time.Millisecond)
				from.router.Do(HandOver)
				w.after(2 * time.Second)
				from.want(t, "backup")
				to.want(t, "master")
				if n := len(from.enters) + len(to.enters) - before; n != 2 {
					t.Errorf("hand-over %d took %d changes of state: %v, %v", i, n, from.enters, to.enters)
				}
				from, to = to, from
			}
			from.kill()
			to.kill()
		})
	}
}

// What was recorded in a family that does not pass any more is as old as in the other one.
func TestReplayInTheFamilyThatDoesNotPass(t *testing.T) {
	for name, anyones := range map[string]bool{"password": false, "key": true} {
		t.Run(name, func(t *testing.T) { replayInTheFamilyThatDoesNotPass(t, anyones) })
	}
}

func replayInTheFamilyThatDoesNotPass(t *testing.T, anyones bool) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		first1, first2 := six1.with(signed, a, b), six2.with(signed, b, a)
		first1.anyones, first2.anyones = anyones, anyones
		one, two := w.join(first1), w.join(first2)
		w.after(10 * time.Second)
		two.want(t, "master")
		only4 := func(from, _ netip.Addr) bool { return from.Is6() }
		w.lose = only4
		w.after(10 * time.Second)
		goodbye := func() [][]byte {
			from := w.sent
			two.router.Do(HandOver)
			w.after(100 * time.Millisecond)
			one.want(t, "master")
			w.mu.Lock()
			recorded := slices.Clone(w.tapped[len(w.tapped)-(w.sent-from):])
			w.mu.Unlock()
			one.router.Do(HandOver)
			w.after(time.Minute)
			two.want(t, "master")
			return recorded
		}
		first, second := goodbye(), goodbye()
		w.after(24 * time.Hour)
		replay := func(recorded [][]byte) {
			t.Helper()
			before := len(one.enters) + len(two.enters)
			w.lose = nil
			for _, packet := range recorded {
				w.deliver(two.six, two.six.addr, packet)
			}
			w.lose = only4
			w.after(10 * time.Second)
			if n := len(one.enters) + len(two.enters) - before; n != 0 {
				t.Errorf("%d changes of state: %v, %v", n, one.enters, two.enters)
			}
		}
		replay(first)
		t.Log("nor after a restart")
		again := first1
		again.record, again.lasting = one.kept, one.stored
		one.kill()
		one = w.join(again)
		synctest.Wait()
		replay(second)
		one.kill()
		two.kill()
	})
}

// A node's own adverts from a link-local address that it has no more are not its peer's.
func TestOwnAdvertsFromAnEarlierAddress(t *testing.T) {
	for name, anyones := range map[string]bool{"password": false, "key": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWire()
				setup := six1.with(signed, "", "")
				setup.anyones = anyones
				one := w.join(setup)
				w.after(20 * time.Second)
				one.want(t, "master")
				w.mu.Lock()
				recorded := slices.Clone(w.tapped)
				w.mu.Unlock()
				was := one.addr
				setup.linkLocal, setup.lasting = "fe80::1", one.stored
				one.kill()
				w.after(time.Minute)
				one = w.join(setup)
				w.after(20 * time.Second)
				one.want(t, "master")
				for _, packet := range recorded {
					w.deliver(nil, was, packet)
				}
				w.after(5 * time.Second)
				if got := strings.Join(one.enters, " "); got != "backup master" {
					t.Errorf("states: %s", got)
				}
				if n := one.router.drops.total["replay"]; n != uint64(len(recorded)) {
					t.Errorf("%d of %d refused: %v", n, len(recorded), one.router.drops.total)
				}
				one.kill()
			})
		})
	}
}

// Nor are they if the two nodes have exchanged their addresses: the key is the same.
func TestOwnAdvertsAfterAnExchange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		one := w.join(setup{addr: b, peer: a, passwords: signed})
		w.after(20 * time.Second)
		one.want(t, "master")
		w.mu.Lock()
		recorded := slices.Clone(w.tapped)
		w.mu.Unlock()
		stored := one.stored
		one.kill()
		w.after(time.Minute)
		one = w.join(setup{addr: a, peer: b, passwords: signed, lasting: stored})
		w.after(20 * time.Second)
		one.want(t, "master")
		for _, packet := range recorded {
			w.deliver(nil, netip.MustParseAddr(b), packet)
		}
		w.after(5 * time.Second)
		if got := strings.Join(one.enters, " "); got != "backup master" {
			t.Errorf("states: %s", got)
		}
		two := w.join(setup{addr: b, peer: a, passwords: signed})
		w.after(time.Minute)
		if heard := one.router.peer.Heard; two.master == one.master || heard == 0 && one.router.machine.State().String() == "backup" {
			t.Errorf("masters: %v, %v", one.master, two.master)
		}
		one.kill()
		two.kill()
	})
}

// While a password is exchanged for a key that others have, too, those are not the peer.
func TestOthersHaveTheNextKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		both := []string{signed[0], "a key of many"}
		one, two := six1.with(both, "", ""), six2.with(both, "", "")
		one.next, two.next = true, true
		backup, master := w.join(two), w.join(one)
		w.after(10 * time.Second)
		if !master.master {
			backup, master = master, backup
		}
		master.want(t, "master")
		third := netip.MustParseAddr("fe80::99")
		adv := vrrp.Advertisement{VRID: 1, Priority: 0, Interval: time.Second, Addrs: []netip.Addr{netip.MustParseAddr("2001:db8::100")}}
		message, err := adv.Append(nil, third, transport.Group6, vrrp.PseudoHeader)
		if err != nil {
			t.Fatal(err)
		}
		seq := auth.NewSequence(time.Now().Add(time.Hour), 0).Next(0)
		w.deliver(nil, third, kernelSum(secret(both[1]).Append(message, auth.KeyID, third, seq), third, transport.Group6))
		w.after(10 * time.Second)
		backup.want(t, "backup")
		master.want(t, "master")
		if got := strings.Join(backup.enters, " "); got != "backup" {
			t.Errorf("states of the backup: %s", got)
		}
		if n := total(backup.router.drops.total); n > 0 {
			t.Errorf("refused: %v", backup.router.drops.total)
		}
		backup.kill()
		master.kill()
	})
}

// A peer that has addresses of one family only, as while the other is being added node by node, is one all the same.
func TestTheOtherNodeHasOneFamily(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		one, two := w.join(six1.with(signed, a, b)), w.join(setup{addr: b, peer: a, passwords: signed})
		w.after(20 * time.Second)
		two.want(t, "master")
		one.want(t, "backup")
		if words := strings.Join(one.troubles.Words(), "\n"); !strings.Contains(words, "not over IPv6") {
			t.Errorf("not said: %q", words)
		}
		two.router.Do(HandOver)
		w.after(10 * time.Second)
		one.want(t, "master")
		two.want(t, "backup")
		one.kill()
		two.kill()
	})
}

// A master that loses its address of one family says goodbye in the other one, so that nobody waits for a down interval.
func TestGoodbyeInTheFamilyThatIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		state := func(six link.Use) link.State {
			s := usable
			s.Local = []link.Local{{Use: link.Usable}, {Use: six}}
			s.LinkLocal = &link.Local{Addr: netip.MustParseAddr("fe80::a"), Use: link.Usable}
			return s
		}
		one, two := w.join(six1.with(signed, a, b)), w.join(six2.with(signed, b, a))
		two.router.Link(state(link.Usable))
		w.after(10 * time.Second)
		two.want(t, "master")
		two.router.Link(state(link.Absent))
		w.after(5 * time.Millisecond)
		two.want(t, "fault")
		one.want(t, "master")
		w.after(10 * time.Second)
		two.router.Link(state(link.Usable))
		w.after(10 * time.Second)
		two.want(t, "backup")
		one.want(t, "master")
		if words := append(one.troubles.Words(), two.troubles.Words()...); len(words) != 0 {
			t.Errorf("still shown: %v", words)
		}
		one.kill()
		w.after(10 * time.Second)
		two.want(t, "master")
		two.kill()
	})
}

// A copy of our link-local address is heard, unlike one of IPv4.
func TestACopyOfTheLinkLocalAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		one := w.join(six1.with(signed, "", ""))
		w.after(10 * time.Second)
		w.mu.Lock()
		advert := bytes.Clone(w.tapped[len(w.tapped)-1])
		w.mu.Unlock()
		w.deliver(nil, one.addr, advert)
		w.after(time.Second)
		one.want(t, "master")
		if words := strings.Join(one.troubles.Words(), "\n"); !strings.Contains(words, "another node advertises from our address fe80::b") {
			t.Errorf("not said: %q", words)
		}
		one.kill()
	})
}

// The link-local address changes with the network card: sockets follow, and the node stays what it is.
func TestAnotherLinkLocalAddress(t *testing.T) {
	for name, anyones := range map[string]bool{"password": false, "key": true} {
		t.Run(name, func(t *testing.T) { anotherLinkLocalAddress(t, anyones) })
	}
}

func anotherLinkLocalAddress(t *testing.T, anyones bool) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		state := func(linkLocal string) link.State {
			s := usable
			s.LinkLocal = &link.Local{Addr: netip.MustParseAddr(linkLocal), Use: link.Usable}
			return s
		}
		opened := 0
		pair := []setup{six1.with(signed, "", ""), six2.with(signed, "", "")}
		pair[0].anyones, pair[1].anyones = anyones, anyones
		one, two := w.join(pair[0]), w.join(pair[1])
		two.router.Link(state("fe80::a"))
		w.after(10 * time.Second)
		before := two.router.open
		two.router.open = func(s link.State, f Family) (Conn, error) {
			opened++
			two.addr = s.LinkLocal.Addr
			return before(s, f)
		}
		w.mu.Lock()
		old := bytes.Clone(w.tapped[len(w.tapped)-1])
		w.mu.Unlock()
		for i, addr := range []string{"fe80::c", "fe80::d", "fe80::e", "fe80::f", "fe80::10", "fe80::11"} {
			two.router.Link(state(addr))
			w.after(20 * time.Second)
			two.want(t, "master")
			one.want(t, "backup")
			if opened != i+1 || two.router.legs[0].source != netip.MustParseAddr(addr) {
				t.Errorf("opened %d times, source %v", opened, two.router.legs[0].source)
			}
		}
		w.deliver(nil, netip.MustParseAddr("fe80::a"), old)
		w.after(time.Second)
		if n := one.router.drops.total["replay"]; n != 1 || len(one.router.drops.total) != 1 {
			t.Errorf("refused: %v, want an advert from the first address as a replay", one.router.drops.total)
		}
		if got := strings.Join(one.enters, " "); got != "backup" {
			t.Errorf("states of the backup: %s", got)
		}
		one.kill()
		two.kill()
	})
}

// Over unicast and UDP adverts come from the configured address, and nobody else's count.
func TestStrangersOverUnicastIPv6(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		one := w.join(six1.with(nil, "", ""))
		w.after(10 * time.Second)
		one.router.post(func() {
			one.router.cfg.Kind = transport.Unicast
			one.router.legs[0].fromLinkLocal = false
		})
		adv := vrrp.Advertisement{VRID: 1, Priority: 254, Interval: time.Second, Addrs: []netip.Addr{netip.MustParseAddr("2001:db8::100")}}
		for _, tt := range []struct{ src, want string }{{"2001:db8::3", "master"}, {"fe80::2", "master"}, {"2001:db8::2", "backup"}} {
			src := netip.MustParseAddr(tt.src)
			b, err := adv.Append(nil, src, transport.Group6, vrrp.PseudoHeader)
			if err != nil {
				t.Fatal(err)
			}
			w.deliver(nil, src, b)
			w.after(time.Second)
			one.want(t, tt.want)
		}
		one.kill()
	})
}
