package e2e

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/status"
	"github.com/skudonet/skudonet-ce-cluster/test/lab"
)

// Somebody in the network who has no password, but everything that was ever on the wire.
func TestForgery(t *testing.T) {
	p := startPair(t)
	wire := p.capture(lab.VRRP)
	since := time.Now()
	for _, n := range p.Nodes() { // so that both have claimed the address, and said goodbye
		p.awaitAdverts(wire, n, 2)
		p.signal(n, unix.SIGUSR2)
		p.waitMaster(p.other(n))
	}
	p.awaitAdverts(wire, p.LB1, 2)
	recorded, goodbye := map[*lab.Node]advert{}, map[*lab.Node]advert{}
	for _, n := range p.Nodes() {
		for _, a := range adverts(wire, n, since) {
			if a.Priority > 0 {
				recorded[n] = a
			} else {
				goodbye[n] = a
			}
		}
		if recorded[n].trailer == nil || goodbye[n].trailer == nil {
			t.Fatalf("%s has sent no advert or no goodbye", n.Name)
		}
	}

	c := p.configuration(p.LB1)
	stranger := newIntruder(t, p.Client)
	plain := func(priority byte) func(*lab.Node) []byte {
		return func(as *lab.Node) []byte { return message(t, c, as.Addr(0), priority) }
	}
	const header, signed = 12, 12 + 28 // lengths of a message with one address
	// alter gives a signed advert of the node with some bytes changed.
	alter := func(change func(b []byte) []byte) func(*lab.Node) []byte {
		return func(as *lab.Node) []byte {
			source, ok := recorded[as]
			if !ok { // the stranger under its own name
				source = recorded[p.LB1]
			}
			return change(summed(slices.Clone(source.message), header))
		}
	}
	setByte := func(at int, value byte) func(b []byte) []byte {
		return func(b []byte) []byte { b[at] = value; return summed(b, header) }
	}
	forgeries := []struct {
		name, reason string
		ttl          byte
		forge        func(as *lab.Node) []byte
	}{
		{"unsigned goodbye", "unsigned", 255, plain(0)},
		{"unsigned, equal priority", "unsigned", 255, plain(100)},
		{"unsigned address owner", "unsigned", 255, plain(255)},
		{"signed, priority lowered to a goodbye", "bad-signature", 255, alter(setByte(2, 0))},
		{"signed, priority raised", "bad-signature", 255, alter(setByte(2, 255))},
		{"signed, longer interval", "bad-signature", 255, alter(setByte(4, 0x0f))},
		{"signed, later sequence", "bad-signature", 255, alter(func(b []byte) []byte { b[header+4]++; return b })},
		{"signature of zeros", "bad-signature", 255, alter(func(b []byte) []byte { clear(b[header+12:]); return setByte(2, 0)(b) })},
		{"another type of trailer", "bad-trailer-type", 255, alter(func(b []byte) []byte { b[header]++; return b })},
		{"another key", "bad-key-id", 255, alter(func(b []byte) []byte { b[header+1]++; return b })},
		{"reserved bytes of the trailer", "bad-trailer-reserved", 255, alter(func(b []byte) []byte { b[header+3]++; return b })},
		{"signature cut", "bad-length", 255, alter(func(b []byte) []byte { return b[:signed-1] })},
		{"from another network", "ttl", 254, plain(255)},
		{"wrong checksum", "bad-checksum", 255, alter(func(b []byte) []byte { b[7]++; return b })},
		{"interval 0", "bad-interval", 255, alter(func(b []byte) []byte { b[4], b[5] = 0, 0; return summed(b, header) })},
		{"no address", "bad-count", 255, alter(func(b []byte) []byte { b[3] = 0; return summed(b, header) })},
		{"fewer addresses than said", "short", 255, alter(func(b []byte) []byte { b[3] = 255; return b })},
		{"another type of message", "bad-type", 255, alter(func(b []byte) []byte { b[0] = 0x32; return b })},
		{"VRRPv2", "vrrpv2", 255, func(*lab.Node) []byte {
			return []byte{0x21, 1, 255, 1, 0, 1, 0, 0, 192, 168, 77, 100, 0, 0, 0, 0, 0, 0, 0, 0}
		}},
		{"CARP", "carp", 255, func(*lab.Node) []byte { return append([]byte{0x21, 1, 0, 7, 0, 1, 0, 0}, make([]byte, 28)...) }},
		{"VRRP of the future", "bad-version", 255, func(*lab.Node) []byte { return append([]byte{0x41, 1, 255, 1}, make([]byte, 8)...) }},
	}

	probe := p.probe()
	before := map[*lab.Node]map[string]uint64{p.LB1: p.fresh(p.LB1).Drops, p.LB2: p.fresh(p.LB2).Drops}
	calm := time.Now()
	want := map[string]uint64{}
	const times = 3
	for _, f := range forgeries {
		for range times {
			// To each node as its peer, and as somebody else. (Its own address as a source the kernel itself refuses; a socket
			// apart notices it, once a second.)
			for _, as := range []*lab.Node{p.LB1, p.LB2, p.Client} {
				stranger.send(stranger.frame(as.Addr(0), group, f.ttl, protocolVRRP, f.forge(as)))
			}
		}
		want[f.reason] += 2 * times
	}
	for range times {
		for _, as := range p.Nodes() {
			stranger.advertise(as.Addr(0), recorded[as].message)
			stranger.advertise(as.Addr(0), goodbye[as].message)
		}
	}
	want["replay"] = 2 * times
	for _, n := range p.Nodes() {
		p.awaitReport(n, "having counted every forgery", func(r status.Daemon) (bool, string) {
			got := maps.Clone(r.Drops)
			delete(got, "own-address")
			for reason, number := range before[n] {
				if got[reason] -= number; got[reason] == 0 {
					delete(got, reason)
				}
			}
			return maps.Equal(got, want), fmt.Sprintf("%v, want %v", got, want)
		})
		for reason := range want {
			for _, as := range []*lab.Node{p.other(n), p.Client} {
				from := fmt.Sprintf("refused an advertisement from %s:", as.Addr(0))
				times := func() (said int) {
					for line := range strings.Lines(p.daemon(n).Log()) {
						if strings.Contains(line, from) && strings.HasSuffix(line, " reason="+reason+"\n") {
							said++
						}
					}
					return said
				}
				if reason == "replay" && as == p.Client {
					continue
				}
				// The log may come later than the counters.
				p.eventually(n.Name+" saying "+reason, func() (bool, string) { return times() > 0, lastLine(p.daemon(n).Log()) })
				if said := times(); said != 1 {
					t.Errorf("%s has said %d times, want once: %s ... reason=%s", n.Name, said, from, reason)
				}
			}
		}
	}
	p.awaitAdverts(wire, p.LB1, 6)
	p.unchanged(calm)
	noLoss(t, probe.Stop())

	t.Log("nothing of it has done lasting harm")
	p.signal(p.LB1, unix.SIGUSR2)
	p.waitMaster(p.LB2)
	p.logged(p.LB1, "handed over to 192.168.77.12")
}

// Old adverts of a dead master must not keep it alive.
func TestReplayDoesNotKeepMasterAlive(t *testing.T) {
	p := startPair(t)
	wire := p.capture(lab.VRRP)
	since := time.Now()
	p.awaitAdverts(wire, p.LB1, 10)
	stranger := newIntruder(t, p.Client)
	probe := p.probe()
	old := claims(wire, p.LB1, since)
	next := 0
	defer repeatedly(10*time.Millisecond, func() {
		stranger.send(old[next%len(old)].Frame)
		next++
	})()
	cut := time.Now()
	p.check(p.LB1.PowerOff())
	p.waitStatus(p.LB2, "master")
	p.eventually("answers", func() (bool, string) { return probe.Answering(), p.roles() })
	p.outage(p.LB2, probe.Stop(), cut, p.down(p.LB2))
	p.awaitReport(p.LB2, "having counted the replays", func(r status.Daemon) (bool, string) {
		return r.Drops["replay"] > 10, fmt.Sprint(r.Drops)
	})
}

// A router that somebody set up with our VRID, without a password.
func TestStranger(t *testing.T) {
	p := newPair(t)
	wire := p.capture(lab.VRRP | lab.ARP)
	stranger := newIntruder(t, p.Client)
	c := p.configuration(p.LB1)
	priority := byte(100)
	defer repeatedly(c.AdvertInterval/4, func() {
		stranger.advertise(p.Client.Addr(0), message(t, c, p.Client.Addr(0), priority))
		priority ^= 100 ^ 255
	})()
	p.startBoth()
	since := time.Now()
	p.awaitAdverts(wire, p.LB1, 10)
	p.unchanged(since)
	p.check(p.LB1.PowerOff())
	p.waitStatus(p.LB2, "master")
	p.saidOnce(p.LB2, "refused an advertisement from 192.168.77.50: it is not signed: that router has no $password")
}

// repeatedly calls f until the function that it returns is called.
func repeatedly(every time.Duration, f func()) (stop func()) {
	end, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			f()
			select {
			case <-tick.C:
			case <-end:
				return
			}
		}
	}()
	return func() { close(end); <-done }
}

// Garbage, forgeries and replays, 50,000 a second or what the processor makes.
func TestFlood(t *testing.T) {
	const lasting = 3 * time.Second
	for _, row := range []struct {
		name    string
		changes keys
		kind    lab.Kind
		wrap    func(i *intruder, src, dst netip.Addr, message []byte) []byte
	}{
		{"multicast", nil, lab.VRRP, func(i *intruder, src, _ netip.Addr, message []byte) []byte {
			return i.frame(src, group, 255, protocolVRRP, message)
		}},
		{"udp", keys{"transport": "udp"}, lab.UDP, func(i *intruder, src, dst netip.Addr, message []byte) []byte {
			return i.frame(src, dst, 255, unix.IPPROTO_UDP, datagram(message))
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := newPairAlone(t, keys{"advert_interval": "0.5", "dead_ratio": "5"}, row.changes)
			p.startBoth()
			wire := p.capture(row.kind)
			begin := time.Now()
			p.awaitAdverts(wire, p.LB1, 3)
			recorded := claims(wire, p.LB1, begin)[0]
			c := p.configuration(p.LB1)

			switched := newIntruder(t, p.Switch)
			var frames [][]byte
			for round := range 1000 {
				src, dst := p.LB1.Addr(0), p.LB2.Addr(0)
				if round%2 == 1 {
					src, dst = dst, src
				}
				if round%7 == 0 {
					src = netip.AddrFrom4([4]byte{192, 168, 77, byte(20 + rand.IntN(200))})
				}
				noise := make([]byte, 8+rand.IntN(100))
				for i := range noise {
					noise[i] = byte(rand.Uint32())
				}
				noise[1] = c.VRID
				m := noise
				switch round % 5 {
				case 1:
					m[0] = 0x31
				case 2:
					m = message(t, c, src, byte(round))
				case 3: // a whole one, with a signature that has to be computed to be refused
					m = append(message(t, c, src, byte(round)), 1, 1, 0, 0)
					m = append(m, make([]byte, 24)...)
					binary.BigEndian.PutUint32(m[16:], uint32(time.Now().Unix())+1000)
				case 4:
					m, src = recorded.message, p.LB1.Addr(0)
				}
				frames = append(frames, row.wrap(switched, src, dst, m))
			}
			probe := p.probe()
			heard := p.fresh(p.LB2).Received
			since, sent := time.Now(), 0
			for burst := since; time.Since(since) < lasting; burst = burst.Add(time.Millisecond) {
				for range 50 {
					switched.send(frames[sent%len(frames)])
					sent++
				}
				pass(time.Until(burst))
			}
			ended := time.Now()
			heard = p.fresh(p.LB2).Received - heard
			p.awaitAdverts(wire, p.LB1, 4)
			p.unchanged(since)
			t.Logf("%d packets in %v; %v", sent, ended.Sub(since), probe.Stop().Longest())

			list := claims(wire, p.LB1, begin)
			during := slices.DeleteFunc(slices.Clone(list), func(a advert) bool { return a.Time.Before(since) || a.Time.After(ended) })
			if len(during)/2 > int(heard) {
				t.Errorf("of the %d adverts during the flood the backup has heard %d", len(during), heard)
			}
			for i := range list[1:] {
				if gap := list[i+1].Time.Sub(list[i].Time); gap > 2*c.AdvertInterval+p.watch.Stall() {
					t.Errorf("%v between two adverts, during the flood: %v", gap, list[i].Time.After(since) && list[i].Time.Before(ended))
				}
			}
			for _, n := range p.Nodes() {
				dropped := uint64(0)
				for _, number := range p.fresh(n).Drops {
					dropped += number
				}
				if dropped < 1000 {
					t.Errorf("%s has refused only %d", n.Name, dropped)
				}
				if lines := strings.Count(p.daemon(n).Log(), "\n"); lines > 500 {
					t.Errorf("%s has logged %d lines", n.Name, lines)
				} else {
					t.Logf("%s refused %d and logged %d lines", n.Name, dropped, lines)
				}
			}
			// They can still do what they are for.
			p.signal(p.LB1, unix.SIGUSR2)
			p.waitMaster(p.LB2)
		})
	}
}
