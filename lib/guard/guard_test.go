package guard

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

var (
	vip    = netip.MustParseAddr("10.1.0.7")
	own    = netip.MustParseAddr("10.1.0.1")   // the node's own address
	client = netip.MustParseAddr("10.1.0.50")  // somebody out there
	marker = netip.MustParseAddr("10.1.0.251") // an address that nobody guards
)

// namespace moves the test to a network namespace of its own. It ends with the thread, which dies with the test because it
// stays locked.
//
//	mv (macvlan) ── v0 ════ p0 (the wire, where we listen)
func namespace(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for a network namespace")
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skipf("no network namespace here: %v", err)
	}
	run(t, `ip link set lo up
		ip link add v0 type veth peer name p0; ip link set v0 up; ip link set p0 up
		ip link add mv link v0 type macvlan mode bridge; ip link set mv up
		ip addr add 10.1.0.1/24 dev v0; ip addr add 10.1.0.7/24 dev v0`)
	// Until the kernel has acted on the carrier, on a busy host only in a moment, frames are dropped without a word. It does so
	// with the lock that the last command waits for.
	run(t, `until [ "$(ip -o link show up | grep -c ' state UP ')" = 3 ]; do sleep 0.01; done; ip link set v0 up`)
}

func run(t testing.TB, script string) string {
	t.Helper()
	out, err := exec.Command("sh", "-euc", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
	return string(out)
}

func open(t testing.TB) *Guard {
	t.Helper()
	g, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return g
}

func raiseIt(t testing.TB, g *Guard, addrs ...netip.Addr) {
	t.Helper()
	if err := g.Raise(addrs); err != nil {
		t.Fatal(err)
	}
	wantStanding(t, g, true, addrs...)
}

func lowerIt(t testing.TB, g *Guard) {
	t.Helper()
	if err := g.Lower(); err != nil {
		t.Fatal(err)
	}
}

func wantStanding(t testing.TB, g *Guard, want bool, addrs ...netip.Addr) {
	t.Helper()
	if got, err := g.Standing(addrs); err != nil || got != want {
		t.Fatalf("standing: %v, %v; want %v", got, err, want)
	}
}

func many(n int) []netip.Addr {
	addrs := make([]netip.Addr, n)
	for i := range addrs {
		addrs[i] = netip.AddrFrom4([4]byte{10, 2, byte(i >> 8), byte(i)})
	}
	return addrs
}

// dropped adds up what the rules of all chains have dropped, as google/nftables sees it.
func dropped(t *testing.T) (n uint64) {
	t.Helper()
	c := &nftables.Conn{}
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyNetdev)
	if err != nil {
		t.Fatal(err)
	}
	for _, ch := range chains {
		rules, err := c.GetRules(ch.Table, ch)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rules {
			for _, e := range r.Exprs {
				if counter, ok := e.(*expr.Counter); ok {
					n += counter.Packets
				}
			}
		}
	}
	return n
}

// wire listens to the ARP frames that come out of p0.
type wire struct{ fd int }

func listen(t *testing.T) wire {
	t.Helper()
	fd := packetSocket(t, "p0", unix.SOCK_RAW, unix.ETH_P_ALL)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}); err != nil {
		t.Fatal(err)
	}
	return wire{fd}
}

// next returns the next frame that names ip.
func (w wire) next(t *testing.T, ip ...netip.Addr) netip.Addr {
	t.Helper()
	b := make([]byte, 2048)
	for {
		n, from, err := unix.Recvfrom(w.fd, b, 0)
		if err == unix.EINTR { // despite SA_RESTART, because of SO_RCVTIMEO
			continue
		}
		if err != nil {
			t.Fatalf("nothing from %v on the wire: %v", ip, err)
		}
		if from.(*unix.SockaddrLinklayer).Pkttype == unix.PACKET_OUTGOING || b[12] != 8 || b[13] != 6 {
			continue
		}
		for _, ip := range ip {
			if v := ip.As4(); bytes.Equal(b[28:32], v[:]) || bytes.Equal(b[42:min(n, 46)], v[:]) {
				return ip
			}
		}
	}
}

func packetSocket(t testing.TB, link string, typ, protocol int) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_PACKET, typ, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	l, err := net.InterfaceByName(link)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: l.Index, Protocol: uint16(protocol)<<8 | uint16(protocol)>>8}); err != nil {
		t.Fatal(err)
	}
	return fd
}

func arp(op uint16, sender, target netip.Addr) []byte {
	b := []byte{0, 1, 8, 0, 6, 4}
	b = binary.BigEndian.AppendUint16(b, op)
	b = append(append(b, 2, 0, 0, 0, 0, 1), sender.AsSlice()...)
	return append(append(b, 0, 0, 0, 0, 0, 0), target.AsSlice()...)
}

func frame(message []byte) []byte {
	return append([]byte{255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 1, 8, 6}, message...)
}

func transmit(t testing.TB, fd int, b []byte) {
	t.Helper()
	if err := unix.Send(fd, b, 0); err != nil && !errors.Is(err, unix.ENOBUFS) { // which is what a dropped frame may look like
		t.Fatal(err)
	}
}

// sendRaw sends a gratuitous ARP from a raw packet socket.
func sendRaw(t *testing.T, link string, protocol int, sender netip.Addr, options ...int) {
	fd := packetSocket(t, link, unix.SOCK_RAW, protocol)
	for _, o := range options {
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, o, 1); err != nil {
			t.Fatal(err)
		}
	}
	transmit(t, fd, frame(arp(1, sender, sender)))
}

type sender struct {
	name string
	send func(t *testing.T, link string)
}

// seen sends and waits until the virtual address is seen on the wire.
func (s sender) seen(t *testing.T, link string) {
	t.Helper()
	w := listen(t)
	s.send(t, link)
	w.next(t, vip)
}

var senders = []sender{
	{"the kernel answers", func(t *testing.T, _ string) {
		transmit(t, packetSocket(t, "p0", unix.SOCK_RAW, 0), frame(arp(1, client, vip)))
	}},
	{"the kernel asks", func(t *testing.T, _ string) {
		run(t, "ip neigh flush all")
		c, err := net.DialUDP("udp4", &net.UDPAddr{IP: vip.AsSlice()}, &net.UDPAddr{IP: client.AsSlice(), Port: 9})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
	}},
	{"arping -U", func(t *testing.T, link string) {
		if _, err := exec.LookPath("arping"); err != nil {
			t.Skip("no arping here")
		}
		run(t, "arping -U -c 1 -w 1 -I "+link+" -s 10.1.0.7 10.1.0.7 >/dev/null || true")
	}},
	{"raw socket", func(t *testing.T, link string) { sendRaw(t, link, 0, vip) }},
	{"raw socket for all protocols", func(t *testing.T, link string) { sendRaw(t, link, unix.ETH_P_ALL, vip) }},
	{"raw socket for ARP", func(t *testing.T, link string) { sendRaw(t, link, unix.ETH_P_ARP, vip) }},
	{"raw socket that says IP", func(t *testing.T, link string) { sendRaw(t, link, unix.ETH_P_IP, vip) }},
	{"raw socket past the queueing discipline", func(t *testing.T, link string) { sendRaw(t, link, 0, vip, unix.PACKET_QDISC_BYPASS) }},
	{"raw socket for ARP past the queueing discipline", func(t *testing.T, link string) {
		sendRaw(t, link, unix.ETH_P_ARP, vip, unix.PACKET_QDISC_BYPASS)
	}},
	{"raw socket that says IP past the queueing discipline", func(t *testing.T, link string) {
		sendRaw(t, link, unix.ETH_P_IP, vip, unix.PACKET_QDISC_BYPASS)
	}},
	{"cooked socket", func(t *testing.T, link string) {
		sendCooked(t, link, arp(2, vip, vip))
	}},
	// To the rules this looks as a raw frame on a VLAN without help from its NIC does: Linux takes the Ethernet header for the
	// message. No such link can be had everywhere.
	{"message where the network header is at the Ethernet header", func(t *testing.T, link string) {
		sendCooked(t, link, frame(arp(1, vip, vip)))
	}},
}

// sendCooked lets the kernel write the Ethernet header of an ARP message.
func sendCooked(t *testing.T, link string, message []byte) {
	fd := packetSocket(t, link, unix.SOCK_DGRAM, unix.ETH_P_ARP)
	l, err := net.InterfaceByName(link)
	if err != nil {
		t.Fatal(err)
	}
	to := &unix.SockaddrLinklayer{Ifindex: l.Index, Protocol: 0x0608, Halen: 6, Addr: [8]byte{255, 255, 255, 255, 255, 255}}
	if err := unix.Sendto(fd, message, 0, to); err != nil && !errors.Is(err, unix.ENOBUFS) {
		t.Fatal(err)
	}
}

func TestNothingLeavesThatNamesAVirtualAddress(t *testing.T) {
	for _, s := range senders {
		for _, link := range []string{"v0", "mv", "late"} {
			t.Run(s.name+" on "+link, func(t *testing.T) {
				namespace(t)
				g := open(t)
				if link == "late" {
					raiseIt(t, g, vip)
					run(t, "ip link add late link v0 type macvlan mode bridge; ip link set late up")
					wantStanding(t, g, false, vip)
					lowerIt(t, g)
				}
				s.seen(t, link)

				raiseIt(t, g, append(many(4000), vip)...)
				w := listen(t)
				before := dropped(t)
				s.send(t, link)
				for deadline := time.Now().Add(5 * time.Second); dropped(t) == before; runtime.Gosched() {
					if time.Now().After(deadline) {
						t.Fatal("no rule has dropped anything")
					}
				}
				sendRaw(t, link, 0, marker)
				if w.next(t, vip, marker) == vip {
					t.Error("it left the node")
				}
				transmit(t, packetSocket(t, "p0", unix.SOCK_RAW, 0), frame(arp(1, client, own)))
				w.next(t, own) // other ARP is answered

				lowerIt(t, g)
				wantStanding(t, g, false, vip)
				s.seen(t, link)
			})
		}
	}
}

func TestNoGapWhileItIsRaisedAgain(t *testing.T) {
	namespace(t)
	g := open(t)
	raiseIt(t, g, vip)
	w := listen(t)
	fd := packetSocket(t, "v0", unix.SOCK_RAW, 0)
	stop := make(chan struct{})
	var flood sync.WaitGroup
	sent := 0
	flood.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Send(fd, frame(arp(1, vip, vip)), 0)
				sent++
			}
		}
	})
	for i := range 200 {
		raiseIt(t, g, append(many(i), vip)...)
	}
	close(stop)
	flood.Wait()
	sendRaw(t, "v0", 0, marker)
	if w.next(t, vip, marker) == vip {
		t.Errorf("one of %d frames left the node", sent)
	}
}

func TestStandingSeesEveryHole(t *testing.T) {
	addrs := append(many(5000), vip, vip6)
	for _, tt := range []struct{ name, damage string }{
		{"set of IPv6 flushed", "nft flush set netdev skudonet-ce-cluster addresses6"},
		{"table deleted", "nft delete table netdev skudonet-ce-cluster"},
		{"ruleset flushed", "nft flush ruleset"},
		{"rules flushed", "nft flush chain netdev skudonet-ce-cluster egress"},
		{"a rule replaced", "nft replace rule netdev skudonet-ce-cluster egress handle $(nft -a list ruleset | sed -n 's/.*\"ARP\".*handle //p') accept"},
		{"set flushed", "nft flush set netdev skudonet-ce-cluster addresses"},
		{"an address less", "nft delete element netdev skudonet-ce-cluster addresses '{ 10.1.0.7 }'"},
		{"another address instead", "nft delete element netdev skudonet-ce-cluster addresses '{ 10.1.0.7 }'; nft add element netdev skudonet-ce-cluster addresses '{ 10.1.0.8 }'"},
		{"a link more", "ip link add x0 type veth peer name x1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			namespace(t)
			if _, err := exec.LookPath("nft"); err != nil {
				t.Skip("no nft here to do the damage")
			}
			g := open(t)
			wantStanding(t, g, false, addrs...)
			raiseIt(t, g, addrs...)
			wantStanding(t, g, false, addrs[1:]...)
			wantStanding(t, g, false, append(addrs, marker)...)
			run(t, tt.damage)
			wantStanding(t, g, false, addrs...)
			raiseIt(t, g, addrs...)
		})
	}
}

func TestAddressesOfAnyNumber(t *testing.T) {
	namespace(t)
	g := open(t)
	for _, n := range []int{0, 1, 2048, 2049, 4000, 20000, 3} {
		addrs := many(n)
		raiseIt(t, g, addrs...)
		slices.Reverse(addrs)
		wantStanding(t, g, true, append(addrs, addrs...)...)
	}
	raiseIt(t, g, vip, vip, netip.AddrFrom16(vip.As16()))
	wantStanding(t, g, true, vip)
	lowerIt(t, g)
	lowerIt(t, g)
}

func TestLinksOfAnyNumber(t *testing.T) {
	namespace(t)
	g := open(t)
	var script strings.Builder
	for i := range 150 {
		fmt.Fprintf(&script, "link add a%d type veth peer name b%d\n", i, i)
	}
	cmd := exec.Command("ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(script.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	raiseIt(t, g, vip)
	w := listen(t)
	sendRaw(t, "v0", 0, vip)
	sendRaw(t, "v0", 0, marker)
	if w.next(t, vip, marker) == vip {
		t.Error("with 300 links it left the node")
	}
	run(t, "ip link del a7")
	wantStanding(t, g, true, vip)
	run(t, "ip link set a8 name c8")
	if ok, err := g.Standing([]netip.Addr{vip}); err != nil {
		t.Fatal(ok, err)
	}
	raiseIt(t, g, vip)
}

func TestNoLinkButLoopback(t *testing.T) {
	namespace(t)
	run(t, "ip link del v0")
	g := open(t)
	raiseIt(t, g, vip)
	run(t, "ip link add v0 type veth peer name p0")
	wantStanding(t, g, false, vip)
}

func TestWhatStandsStandsOn(t *testing.T) {
	namespace(t)
	g := open(t)
	raiseIt(t, g, vip)
	if err := g.Raise([]netip.Addr{vip, {}}); err == nil || !strings.Contains(err.Error(), "an address is missing") {
		t.Errorf("raised no address: %v", err)
	}
	wantStanding(t, g, true, vip)
	g.Close()
	if err := g.Lower(); err == nil {
		t.Error("a closed guard was lowered")
	}
	next := open(t)
	wantStanding(t, next, true, vip)
	lowerIt(t, next)
	wantStanding(t, next, false, vip)
}

func TestFromSeveralGoroutines(t *testing.T) {
	namespace(t)
	g := open(t)
	addrs := many(100)
	// links() asks in the namespace of its thread, which only this goroutine is in: the others just lower.
	var lowering sync.WaitGroup
	for range 4 {
		lowering.Go(func() {
			for range 50 {
				if err := g.Lower(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 50 {
		if err := g.Raise(addrs); err != nil {
			t.Error(err)
		}
		if _, err := g.Standing(addrs); err != nil {
			t.Error(err)
		}
	}
	lowering.Wait()
}

// BenchmarkRaiseLower measures both sides of a promotion and a demotion.
func BenchmarkRaiseLower(b *testing.B) {
	for _, n := range []int{1, 100, 4000, 20000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			namespace(b)
			g, addrs := open(b), many(n)
			var raise, lower time.Duration
			for b.Loop() {
				start := time.Now()
				if err := g.Raise(addrs); err != nil {
					b.Fatal(err)
				}
				raised := time.Now()
				lowerIt(b, g)
				raise += raised.Sub(start)
				lower += time.Since(raised)
			}
			b.ReportMetric(float64(raise.Microseconds())/float64(b.N), "raise-µs/op")
			b.ReportMetric(float64(lower.Microseconds())/float64(b.N), "lower-µs/op")
		})
	}
}

func BenchmarkStanding(b *testing.B) {
	for _, n := range []int{1, 4000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			namespace(b)
			g, addrs := open(b), many(n)
			raiseIt(b, g, addrs...)
			for b.Loop() {
				wantStanding(b, g, true, addrs...)
			}
		})
	}
}
