package announce

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"reflect"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/address"
)

var (
	mac = net.HardwareAddr{0xce, 0xb1, 0x9b, 0x77, 0xd8, 0x05}
	vip = netip.MustParseAddr("10.0.0.100")

	vip6 = netip.MustParseAddr("2001:db8::100")
)

func TestFrames(t *testing.T) {
	const ethernet = "ffffffffffff" + "ceb19b77d805" + "0806"
	for _, tt := range []struct {
		name string
		got  []byte
		want string
	}{
		{"request, as keepalived sends it", AppendGARPRequest(nil, mac, vip), ethernet + "0001080006040001ceb19b77d8050a000064ffffffffffff0a000064"},
		{"reply, to ourselves", AppendGARPReply(nil, mac, vip), ethernet + "0001080006040002ceb19b77d8050a000064ceb19b77d8050a000064"},
		{"neighbour advertisement, as keepalived sends it", AppendNA(nil, mac, vip6, false), "333300000001" + "ceb19b77d805" + "86dd" +
			"6000000000203aff20010db8000000000000000000000100ff0200000000000000000000000000018800b6fe20000000" +
			"20010db80000000000000000000001000201ceb19b77d805"},
		{"neighbour advertisement of a router", AppendNA(nil, mac, vip6, true)[56:62], "36fea0000000"},
		{"appended", AppendGARPRequest([]byte{0xab}, mac, vip)[:2], "abff"},
	} {
		if got := hex.EncodeToString(tt.got); got != tt.want {
			t.Errorf("%s:\n got %s\nwant %s", tt.name, got, tt.want)
		}
	}
	buffer := make([]byte, 0, 42)
	if n := testing.AllocsPerRun(100, func() { AppendGARPReply(buffer, mac, vip) }); n != 0 {
		t.Errorf("%v allocations a frame", n)
	}
	buffer = make([]byte, 0, 86)
	if n := testing.AllocsPerRun(100, func() { AppendNA(buffer, mac, vip6, true) }); n != 0 {
		t.Errorf("%v allocations a neighbour advertisement", n)
	}
}

// Every gratuitous ARP that keepalived sent is what we send for the same address. ucarp's differs in the target's hardware address
// alone, which is its own, and which Linux does not look at in a request.
func TestCaptures(t *testing.T) {
	const targetMAC, length = 32, 42
	for _, tt := range []struct {
		file string
		want map[string]int // by address, at least
	}{
		{"keepalived-vrrp3-ipv4-mcast.pcap", map[string]int{"10.77.0.100": 10, "10.77.0.101": 10}},
		{"keepalived-graceful-stop.pcap", map[string]int{"10.77.0.100": 10}},
		{"ucarp-steady.pcap", map[string]int{"10.77.0.100": 1}},
	} {
		b, err := os.ReadFile("../vrrp/testdata/" + tt.file)
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]int{}
		for b = b[24:]; len(b) > 0; {
			n := binary.LittleEndian.Uint32(b[8:])
			frame := b[16 : 16+n]
			b = b[16+n:]
			if binary.BigEndian.Uint16(frame[12:]) != unix.ETH_P_ARP || string(frame[28:32]) != string(frame[38:42]) {
				continue
			}
			mac, ip := net.HardwareAddr(frame[22:28]), netip.AddrFrom4([4]byte(frame[28:32]))
			want := AppendGARPRequest(nil, mac, ip)
			if strings.HasPrefix(tt.file, "ucarp") {
				copy(want[targetMAC:], mac)
			}
			if string(frame[:length]) != string(want) {
				t.Errorf("%s has\n%x, we send\n%x", tt.file, frame, want)
			}
			got[ip.String()]++
		}
		for ip, n := range tt.want {
			if got[ip] < n {
				t.Errorf("%s has %d of %s, want %d", tt.file, got[ip], ip, n)
			}
		}
	}
}

func TestSchedule(t *testing.T) {
	for _, tt := range []struct {
		refresh time.Duration
		want    []time.Duration // in seconds after the start
	}{
		{60 * time.Second, []time.Duration{1, 2, 3, 5, 65, 125, 185}},
		{time.Second, []time.Duration{1, 2, 3, 5, 6, 7, 8}},
		{0, []time.Duration{1, 2, 3, 5}},
	} {
		s := Schedule{Refresh: tt.refresh}
		for _, start := range []time.Duration{0, 1000 * time.Second, 1002 * time.Second} { // a new start forgets the one before
			s.Start(start)
			var got []time.Duration
			for range tt.want {
				at, more := s.Next()
				if !more {
					break
				}
				got = append(got, (at-start)/time.Second)
			}
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("refresh %v, started at %v: then at %d s, want %d", tt.refresh, start, got, tt.want)
			}
			if _, more := s.Next(); more != (tt.refresh > 0) {
				t.Errorf("refresh %v: more to come is %v", tt.refresh, more)
			}
		}
	}
}

// namespace moves the test to a network namespace of its own, with links v0 and v1, whose other ends, the wires, are pv0 and pv1. It
// ends with the thread, which dies with the test because it stays locked.
func namespace(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for a network namespace")
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skipf("no network namespace here: %v", err)
	}
	// Until the kernel has acted on the carrier, on a busy host only in a moment, frames are dropped without a word. It does so
	// with the lock that the last command waits for.
	run(t, `for l in v0 v1; do ip link add $l type veth peer name p$l; ip link set $l up; ip link set p$l up; done
		until [ "$(ip -o link show up | grep -c ' state UP ')" = 4 ]; do sleep 0.01; done; ip link set v0 up`)
}

func run(t testing.TB, script string) {
	t.Helper()
	if out, err := exec.Command("sh", "-euc", script).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
}

func index(t testing.TB, link string) int {
	t.Helper()
	l, err := net.InterfaceByName(link)
	if err != nil {
		t.Fatal(err)
	}
	return l.Index
}

func targetsOn(link, n int) []Target {
	targets := make([]Target, n)
	for i := range targets {
		targets[i] = Target{Link: link, MAC: mac, Addr: netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})}
	}
	return targets
}

// wire records the ARP frames that come out of the other end of a link.
type wire struct {
	t  *testing.T
	fd int
}

func listen(t *testing.T, link string) wire {
	t.Helper()
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}),
		unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: index(t, "p"+link), Protocol: 0x0608}))
	if err != nil {
		t.Fatal(err)
	}
	return wire{t, fd}
}

// wantFrames waits for the request and the reply of every target, in any order, and for nothing else.
func (w wire) wantFrames(targets []Target) {
	w.t.Helper()
	want := map[string]bool{}
	for _, t := range targets {
		want[string(AppendGARPRequest(nil, t.MAC, t.Addr))] = true
		want[string(AppendGARPReply(nil, t.MAC, t.Addr))] = true
	}
	for len(want) > 0 {
		frame := w.next()
		if !want[frame] {
			w.t.Fatalf("a frame that should not be, or not again: %x", frame)
		}
		delete(want, frame)
	}
	w.wantNothing()
}

func (w wire) next() string {
	w.t.Helper()
	b := make([]byte, 2048)
	n, _, err := unix.Recvfrom(w.fd, b, 0)
	for err == unix.EINTR { // despite SA_RESTART, because of SO_RCVTIMEO
		n, _, err = unix.Recvfrom(w.fd, b, 0)
	}
	if err != nil {
		w.t.Fatalf("no more frames: %v", err)
	}
	return string(b[:n])
}

func (w wire) wantNothing() {
	w.t.Helper()
	b := make([]byte, 2048)
	if n, _, err := unix.Recvfrom(w.fd, b, unix.MSG_DONTWAIT); err != unix.EAGAIN {
		w.t.Fatalf("one more frame: %x, %v", b[:max(n, 0)], err)
	}
}

func never() bool { return false }

func wantSent(t *testing.T, targets []Target, want int) {
	t.Helper()
	if sent, err := Send(targets, never); sent != want || err != nil {
		t.Fatalf("%d sent, %v; want %d", sent, err, want)
	}
}

func TestSend(t *testing.T) {
	for _, n := range []int{1, 4000} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			namespace(t)
			a, b := listen(t, "v0"), listen(t, "v1")
			onA, onB := targetsOn(index(t, "v0"), n), targetsOn(index(t, "v1"), 1)
			onB[0].Addr = netip.AddrFrom16(vip.As16())
			wantSent(t, append(onA, onB...), n+1)
			onB[0].Addr = vip
			a.wantFrames(onA)
			b.wantFrames(onB)
		})
	}
}

// A Linux neighbour that knows the address at another MAC believes the advertisement.
func TestNeighboursLearnIPv6(t *testing.T) {
	namespace(t)
	run(t, `ip link set pv0 down; sysctl -qw net.ipv6.conf.pv0.accept_dad=0; ip link set pv0 up
		ip -6 addr add 2001:db8::1/64 dev pv0 nodad; ip -6 neigh add 2001:db8::100 lladdr 02:00:00:00:00:99 nud stale dev pv0`)
	target := Target{Link: index(t, "v0"), MAC: mac, Addr: vip6}
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) { // the first ones come before IPv6 is ready there
		wantSent(t, []Target{target, {Link: target.Link, MAC: mac, Addr: vip}}, 2)
		out, _ := exec.Command("ip", "-6", "neigh", "show", vip6.String(), "dev", "pv0").CombinedOutput()
		if strings.Contains(string(out), mac.String()) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the neighbour knows: %s", out)
		}
	}
}

func TestTargetsOfIPv6(t *testing.T) {
	namespace(t)
	run(t, "sysctl -qw net.ipv6.conf.v1.forwarding=1")
	var list []address.Address
	for _, link := range []string{"v0", "v1"} {
		list = append(list, address.Address{Prefix: netip.PrefixFrom(vip6, 64), Link: link})
	}
	targets, err := Targets(list)
	if err != nil || len(targets) != 2 || targets[0].Router || !targets[1].Router || targets[1].Addr != vip6 || targets[1].Link != index(t, "v1") {
		t.Errorf("%+v, %v; want a host on v0 and a router on v1", targets, err)
	}
}

func TestRequestsLeaveBeforeReplies(t *testing.T) {
	namespace(t)
	w := listen(t, "v0")
	targets := targetsOn(index(t, "v0"), 3)
	wantSent(t, targets, 3)
	for _, form := range []func([]byte, net.HardwareAddr, netip.Addr) []byte{AppendGARPRequest, AppendGARPReply} {
		for _, target := range targets {
			if got, want := w.next(), form(nil, target.MAC, target.Addr); got != string(want) {
				t.Errorf("got %x, want %x", got, want)
			}
		}
	}
}

func TestSendNothing(t *testing.T) {
	wantSent(t, nil, 0)
}

func TestStopEndsTheBurst(t *testing.T) {
	namespace(t)
	w := listen(t, "v0")
	targets := targetsOn(index(t, "v0"), 4000)
	for _, tt := range []struct {
		asked int64 // stop says true the time after
		sent  int
	}{{0, 0}, {1, 0}, {3999, 0}, {4010, 10}} {
		var asked atomic.Int64
		sent, err := Send(targets, func() bool { return asked.Add(1) > tt.asked })
		if sent != tt.sent || err != nil {
			t.Errorf("stopped after %d frames: %d sent, %v; want %d", tt.asked, sent, err, tt.sent)
		}
		for range tt.asked {
			w.next()
		}
		w.wantNothing()
	}
}

func TestOneLinkFails(t *testing.T) {
	namespace(t)
	w := listen(t, "v0")
	down, good := targetsOn(index(t, "v1"), 10), targetsOn(index(t, "v0"), 10)
	run(t, "ip link set v1 down")
	gone := targetsOn(9999, 2)
	bad := []Target{{Link: index(t, "v0"), MAC: mac}, {Link: index(t, "v0"), Addr: vip6}}
	var mixed []Target
	for i := range good {
		mixed = append(mixed, down[i], good[i])
	}
	sent, err := Send(append(append(mixed, gone...), bad...), never)
	if sent != len(good) || !errors.Is(err, unix.ENETDOWN) || !errors.Is(err, unix.ENODEV) {
		t.Errorf("%d sent, %v; want %d and two links that failed", sent, err, len(good))
	}
	for _, piece := range []string{"announce on v1: network is down", "announce on link 9999: no such device", "announce invalid IP from", "announce 2001:db8::100 from", "want an address and an Ethernet link"} {
		if err == nil || !strings.Contains(err.Error(), piece) {
			t.Errorf("%q is not in: %v", piece, err)
		}
	}
	w.wantFrames(good)
}

func TestFullSocketIsWaitedFor(t *testing.T) {
	namespace(t)
	shape(t, "v0", "rate 10mbit burst 1600 limit 10000000")
	w := listen(t, "v0")
	targets := targetsOn(index(t, "v0"), 1000)
	wantSent(t, targets, len(targets))
	w.wantFrames(targets)
}

// The queue holds 47 frames, so most of the burst is refused at first. Newer kernels may also drop one without saying so, when
// another processor is busy with the queue.
func TestFullQueueIsWaitedFor(t *testing.T) {
	namespace(t)
	shape(t, "v0", "rate 10mbit burst 1600 limit 2000")
	w := listen(t, "v0")
	targets := targetsOn(index(t, "v0"), 1000)
	wantSent(t, targets, len(targets))
	for range targets {
		w.next()
	}
}

func TestStuckLinkHoldsNobodyUp(t *testing.T) {
	for _, tt := range []struct {
		name, limit string
		want        error
	}{
		{"dropping", "limit 2000", unix.ENOBUFS},
		{"keeping", "limit 10000000", unix.EAGAIN},
	} {
		t.Run(tt.name, func(t *testing.T) {
			namespace(t)
			shape(t, "v0", "rate 8bit burst 1600 "+tt.limit)
			w := listen(t, "v1")
			stuck, good := targetsOn(index(t, "v0"), 1000), targetsOn(index(t, "v1"), 1000)
			sent, err := Send(append(stuck, good...), never)
			if sent != len(good) || !errors.Is(err, tt.want) {
				t.Errorf("%d sent, %v; want %d and %v", sent, err, len(good), tt.want)
			}
			w.wantFrames(good)
		})
	}
}

func shape(t *testing.T, link, how string) {
	t.Helper()
	if out, err := exec.Command("tc", strings.Fields("qdisc add dev "+link+" root tbf "+how)...).CombinedOutput(); err != nil {
		t.Skipf("no queueing discipline that can be full: %v: %s", err, out)
	}
}

func TestSocketsReceiveNothing(t *testing.T) {
	namespace(t)
	fd, err := open(index(t, "pv0"))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	w := listen(t, "v0")
	targets := targetsOn(index(t, "v0"), 100)
	wantSent(t, targets, len(targets))
	w.wantFrames(targets)
	wire{t, fd}.wantNothing()
}

func BenchmarkSend(b *testing.B) {
	for _, n := range []int{1, 100, 1000, 4000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			namespace(b)
			targets := targetsOn(index(b, "v0"), n)
			for b.Loop() {
				if sent, err := Send(targets, never); sent != n || err != nil {
					b.Fatal(sent, err)
				}
			}
		})
	}
}

func BenchmarkFrame(b *testing.B) {
	buffer := make([]byte, 0, 42)
	for b.Loop() {
		AppendGARPRequest(buffer, mac, vip)
	}
}
