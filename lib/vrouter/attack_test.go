package vrouter

import (
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/auth"
	"github.com/skudonet/skudonet-ce-cluster/lib/carp"
	"github.com/skudonet/skudonet-ce-cluster/lib/election"
	"github.com/skudonet/skudonet-ce-cluster/lib/link"
	"github.com/skudonet/skudonet-ce-cluster/lib/transport"
	"github.com/skudonet/skudonet-ce-cluster/lib/trouble"
	"github.com/skudonet/skudonet-ce-cluster/lib/vrrp"
)

// Garbage at 20,000 packets a second, in bursts that overflow the queue now and
// then: adverts leave in time, nothing changes, and the log stays short.
func TestFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		one := w.join(setup{addr: a, peer: b, passwords: signed})
		two := w.join(setup{addr: b, peer: a, passwords: signed})
		w.after(5 * time.Second)
		sent := w.sent
		sources := []netip.Addr{one.addr, two.addr, netip.MustParseAddr("192.0.2.66")}
		for range 10_000 {
			for range 20 {
				garbage := make([]byte, rand.IntN(80))
				for i := range garbage {
					garbage[i] = byte(rand.Uint32())
				}
				if rand.IntN(2) == 0 && len(garbage) > 1 {
					garbage[0], garbage[1] = 0x31, 1
				}
				w.deliver(nil, sources[rand.IntN(len(sources))], garbage)
				sent++
			}
			w.after(time.Millisecond)
		}
		two.want(t, "master")
		one.want(t, "backup")
		if adverts := w.sent - sent; adverts < 9 || adverts > 11 {
			t.Errorf("%d adverts in ten seconds of flood", adverts)
		}
		if lines := strings.Count(one.log.String(), "\n") + strings.Count(two.log.String(), "\n"); lines > 120 {
			t.Errorf("%d log lines", lines)
		}
		one.kill()
		two.kill()
	})
}

// mute is a Host that does nothing.
type mute struct{}

func (mute) RaiseGuard()             {}
func (mute) LowerGuard()             {}
func (mute) AddAddresses()           {}
func (mute) RemoveAddresses()        {}
func (mute) Announce()               {}
func (mute) StopAnnouncing()         {}
func (mute) AnnounceSelf(link.State) {}
func (mute) RunStartHook()           {}
func (mute) RunStopHook()            {}
func (mute) Enter(election.State)    {}
func (mute) AfterGuard(func())       {}
func (mute) AfterAddresses(func())   {}
func (mute) Publish(Report)          {}
func (mute) Keep(Record)             {}
func (mute) Save(Lasting)            {}
func (mute) Link(link.State)         {}

// The node under attack, its peer, and where adverts of IPv6 come from.
var (
	cluster, cluster6 = netip.MustParseAddr(clusterIP), netip.MustParseAddr("2001:db8::100")
	self, self6       = netip.MustParseAddr(a), netip.MustParseAddr("2001:db8::1")
	peer, peer6       = netip.MustParseAddr(b), netip.MustParseAddr("2001:db8::2")
	linkLocal         = netip.MustParseAddr("fe80::b")
)

// target is a node that was just started, in the given families and dialect.
func target(dialect election.Dialect, families ...Family) *Router {
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	cfg := Config{Interface: "eth0", VRID: 1, ClusterIP: families[0].ClusterIP, Keys: []Key{{Key: secret("the password")}}, Started: time.Unix(1e9, 0),
		Election: election.Config{Priority: 100, Interval: time.Second, DeadRatio: 3, Local: families[0].Local, Peer: families[0].Peer,
			Signed: true, Dialect: dialect}}
	if len(families) > 1 {
		cfg.Second = families[1]
	}
	if dialect != election.VRRP {
		cfg.CARPKeys = []carp.Key{carpKey("the password")}
	}
	r := New(cfg, mute{}, nil, func() time.Duration { return time.Hour }, log, trouble.New(log), Record{}, Lasting{})
	r.now = time.Hour
	r.start(election.Start)
	return r
}

var (
	ofIPv4 = Family{self, peer, cluster}
	ofIPv6 = Family{self6, peer6, cluster6}
)

// promote lets the node become master, because it hears nobody.
func (r *Router) promote() {
	r.now = r.deadline
	r.handle(election.Event{Kind: election.Tick})
}

// hear has a packet of the peer arrive in the first family.
func (r *Router) hear(payload []byte) {
	p := transport.Packet{Src: peer, Dst: transport.Group, TTL: 255, Payload: payload, Arrived: r.now}
	if r.legs[0].ClusterIP.Is6() {
		p.Src, p.Dst = linkLocal, transport.Group6
	}
	r.receive(r.legs[0], p)
}

// standing is all that a packet which counts could change.
type standing struct {
	state         election.State
	speaks, hears election.Dialect
	deadline      time.Duration
	received      uint64
	peer          Peer
	marks         auth.Marks
	sequence      auth.Sequence
	bridge        Bridge
}

func (r *Router) standing() standing {
	return standing{r.machine.State(), r.machine.Speaks(), r.machine.Hears(), r.deadline, r.recv, r.peer, r.marks, r.heardSeq, r.bridge}
}

// untouched fails the test unless a packet changes nothing, and is counted as refused so many times.
func (r *Router) untouched(t *testing.T, payload []byte, refused uint64, what string, i int) {
	t.Helper()
	before, drops := r.standing(), total(r.drops.total)
	r.hear(payload)
	if now := r.standing(); now != before {
		t.Errorf("%s %d, %x: %+v\nbecomes %+v", what, i, payload, before, now)
	}
	if n := total(r.drops.total) - drops; n != refused {
		t.Errorf("%s %d, %x: %d refusals counted, want %d: %v", what, i, payload, n, refused, r.drops.total)
	}
}

// signedAdvert is one of the peer, as it leaves its kernel.
func signedAdvert(t testing.TB, key auth.Key, six bool, priority uint8, seq auth.Sequence) []byte {
	t.Helper()
	adv, src, dst := vrrp.Advertisement{VRID: 1, Priority: priority, Interval: time.Second, Addrs: []netip.Addr{cluster}}, peer, transport.Group
	if six {
		adv.Addrs[0], src, dst = cluster6, linkLocal, transport.Group6
	}
	b, err := adv.Append(nil, src, dst, vrrp.PseudoHeader)
	if err != nil {
		t.Fatal(err)
	}
	return summed(key.Append(b, auth.KeyID, src, seq), six, auth.TrailerLen)
}

// summed corrects the checksum of an advert with a trailer of so many bytes, which it covers over IPv6 alone.
func summed(b []byte, six bool, trailer int) []byte {
	if six {
		return kernelSum(b, linkLocal, transport.Group6)
	}
	kernelSum(b[:len(b)-trailer], peer, transport.Group)
	return b
}

// Each byte of a signed advert, as each other value, makes it one that changes nothing, be the node backup or master, and
// be the advert a goodbye or one that a master would yield to; also where somebody corrects the checksum. The advert itself
// counts after all of them.
func TestEachMutatedByte(t *testing.T) {
	const checksum = 6 // and the byte after it
	for _, six := range []bool{false, true} {
		for _, master := range []bool{false, true} {
			for _, priority := range []uint8{0, 200} {
				t.Run(fmt.Sprintf("IPv6 %v, master %v, priority %d", six, master, priority), func(t *testing.T) {
					r := target(election.VRRP, ofIPv4)
					if six {
						r = target(election.VRRP, ofIPv6)
					}
					key := secret("the password")
					if master {
						r.promote()
					} else {
						r.hear(signedAdvert(t, key, six, 100, 1))
						if r.recv != 1 {
							t.Fatalf("an advert of the peer was refused: %v", r.drops.total)
						}
					}
					genuine := signedAdvert(t, key, six, priority, 2)
					for i := range genuine {
						for x := 1; x <= 0xff; x++ {
							packet := slices.Clone(genuine)
							packet[i] ^= byte(x)
							r.untouched(t, packet, 1, "byte", i)
							if i == checksum || i == checksum+1 {
								continue
							}
							refused := uint64(1)
							if i == 1 && packet[i] != 0 {
								refused = 0 // of another virtual router, which is nobody's fault
							}
							r.untouched(t, summed(packet, six, auth.TrailerLen), refused, "checksum corrected, byte", i)
						}
					}
					before := r.standing()
					r.hear(genuine)
					if r.standing() == before || r.machine.State() == election.Master && priority != 0 {
						t.Errorf("the advert itself does not count: %+v, %v", r.standing(), r.drops.total)
					}
				})
			}
		}
	}
}

// The same for CARP, whose digest covers neither advskew nor advbase. Where either is changed, with a checksum that fits, what is
// left to tell it is that nobody says the same digest twice: who has heard the original does not obey the forgery. Who has
// not would, which is why CARP is for the time of an upgrade.
func TestEachMutatedByteOfCARP(t *testing.T) {
	const vhid, skew, base, checksum = 1, 2, 5, 6
	key := carpKey("the password")
	advert := func(counter uint64) []byte {
		return key.Append(nil, carp.Advertisement{VHID: 1, Base: 1, Counter: counter})
	}
	for _, dialect := range []election.Dialect{election.CARP, election.Both} {
		for _, master := range []bool{false, true} {
			t.Run(fmt.Sprintf("dialect %d, master %v", dialect, master), func(t *testing.T) {
				begin := func() *Router {
					r := target(dialect, ofIPv4)
					if master {
						r.promote()
					} else if r.hear(advert(1)); r.recv != 1 {
						t.Fatalf("an advert of the peer was refused: %v", r.drops.total)
					}
					return r
				}
				r, genuine := begin(), advert(2)
				open := map[int]int{}
				var forged [][]byte
				for i := range genuine {
					for x := 1; x <= 0xff; x++ {
						packet := slices.Clone(genuine)
						packet[i] ^= byte(x)
						r.untouched(t, packet, 1, "byte", i)
						packet = retimed(packet, election.Timing{Base: packet[base], Skew: packet[skew]}) // the checksum is right now
						switch {
						case i == checksum || i == checksum+1:
						case i == skew || i == base:
							forged = append(forged, packet)
							if r := begin(); r.counts(packet) {
								open[i]++
							}
						case i == vhid && packet[i] != 0:
							r.untouched(t, packet, 0, "checksum corrected, byte", i) // of another virtual router
						default:
							r.untouched(t, packet, 1, "checksum corrected, byte", i)
						}
					}
				}
				if open[skew] != 0xff || open[base] != 0xff {
					t.Errorf("of the 255 other values of advskew and of advbase, %d and %d count where the original was not heard", open[skew], open[base])
				}
				heard := r.recv
				if r.hear(genuine); r.recv != heard+1 {
					t.Errorf("the advert itself does not count: %v", r.drops.total)
				}
				for i, packet := range forged {
					r.untouched(t, packet, 1, "after the original, forgery", i)
				}
				if n := r.drops.total["carp-repeated"]; n != uint64(len(forged)) {
					t.Errorf("%d of %d are refused as repeated: %v", n, len(forged), r.drops.total)
				}
			})
		}
	}
}

// counts tells whether the node believes a packet.
func (r *Router) counts(packet []byte) bool {
	before := r.recv
	r.hear(packet)
	return r.recv > before
}

// Whatever arrives, without the password nothing changes.
func FuzzReceive(f *testing.F) {
	guess := secret("guess")
	for _, six := range []bool{false, true} {
		for _, priority := range []uint8{0, 255} {
			b := signedAdvert(f, guess, six, priority, 1<<62)
			f.Add(b)
			f.Add(summed(slices.Clone(b[:len(b)-auth.TrailerLen]), six, 0))
		}
	}
	for _, timing := range []election.Timing{{Base: 1}, {Skew: 1}, election.Goodbye} {
		f.Add(carpKey("guess").Append(nil, carp.Advertisement{VHID: 1, Base: timing.Base, Skew: timing.Skew, Counter: 7}))
	}
	f.Add([]byte{0x21, 1, 0, 7, 0, 1, 35: 0})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, packet []byte) {
		for name, r := range map[string]*Router{
			"IPv6": target(election.VRRP, ofIPv6), "both families": target(election.VRRP, ofIPv4, ofIPv6),
			"CARP": target(election.CARP, ofIPv4), "both dialects": target(election.Both, ofIPv4), "IPv4": target(election.VRRP, ofIPv4),
			"the bridge is open": target(election.Both, ofIPv4), "master": target(election.VRRP, ofIPv4, ofIPv6),
			"master, the bridge is open": target(election.Both, ofIPv4),
		} {
			if strings.Contains(name, "bridge") {
				r.hear(carpKey("the password").Append(nil, carp.Advertisement{VHID: 1, Base: 1, Counter: 7}))
			}
			if strings.Contains(name, "master") {
				r.promote()
			}
			before := r.standing()
			if (before.speaks == election.Both) != strings.Contains(name, "bridge") || (before.state == election.Master) != strings.Contains(name, "master") {
				t.Fatalf("%s: the target is %+v", name, before)
			}
			for range 2 {
				for _, l := range r.legs {
					p := transport.Packet{Src: peer, Dst: transport.Group, TTL: 255, Payload: packet, Arrived: r.now}
					if l.ClusterIP.Is6() {
						p.Src, p.Dst = linkLocal, transport.Group6
					}
					r.receive(l, p)
				}
			}
			now := r.standing()
			if now.state == election.Backup && now.received == 0 {
				before.deadline = now.deadline // who was just started waits for whom it cannot verify
			}
			if now != before {
				t.Errorf("%s: after %x %+v\nbecomes %+v", name, packet, before, now)
			}
		}
	})
}
