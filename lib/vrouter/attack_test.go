package vrouter

import (
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

// Whatever arrives, without the password nothing changes.
func FuzzReceive(f *testing.F) {
	cluster := netip.MustParseAddr("192.0.2.100")
	peer := netip.MustParseAddr(b)
	adv := vrrp.Advertisement{VRID: 1, Priority: 255, Interval: time.Second, Addrs: []netip.Addr{cluster}}
	plain, err := adv.Append(nil, peer, transport.Group, vrrp.PseudoHeader)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(plain)
	six := netip.MustParseAddr("2001:db8::100")
	adv6 := vrrp.Advertisement{VRID: 1, Priority: 0, Interval: time.Second, Addrs: []netip.Addr{six}}
	linkLocal := netip.MustParseAddr("fe80::b")
	plain6, err := adv6.Append(nil, linkLocal, transport.Group6, vrrp.PseudoHeader)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(plain6)
	f.Add(secret("guess").Append(slices.Clone(plain6), auth.KeyID, linkLocal, 1<<62))
	f.Add(secret("guess").Append(slices.Clone(plain), auth.KeyID, peer, 1<<62))
	f.Add([]byte{0x21, 1, 0, 7, 0, 1, 35: 0})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, packet []byte) {
		log := slog.New(slog.NewTextHandler(io.Discard, nil))
		cfg := Config{Interface: "eth0", VRID: 1, ClusterIP: cluster, Keys: []Key{{Key: secret("the password")}}, Started: time.Unix(1e9, 0),
			Election: election.Config{Priority: 100, Interval: time.Second, DeadRatio: 3, Local: netip.MustParseAddr(a), Peer: peer, Signed: true},
			Second:   Family{netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2"), six}}
		r := New(cfg, mute{}, nil, func() time.Duration { return time.Hour }, log, trouble.New(log), Record{}, Lasting{})
		r.now = time.Hour
		r.start(election.Start)
		for range 2 {
			r.receive(r.legs[0], transport.Packet{Src: peer, Dst: transport.Group, TTL: 255, Payload: packet, Arrived: time.Hour})
			r.receive(r.legs[1], transport.Packet{Src: linkLocal, Dst: transport.Group6, TTL: 255, Payload: packet, Arrived: time.Hour})
		}
		if state := r.machine.State(); state != election.Backup || r.recv != 0 {
			t.Errorf("%s after %x, %d accepted", state, packet, r.recv)
		}
		for src := range r.marks.All() {
			t.Errorf("a mark for %s", src)
		}
	})
}
