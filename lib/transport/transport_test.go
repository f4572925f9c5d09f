package transport

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/bootclock"
)

// host is a network namespace with a thread in it, joined to another one by a
// cable called eth0.
type host struct {
	t     *testing.T
	addr  netip.Addr
	calls chan func()
	ns    *os.File
}

func newHost(t *testing.T, addr string) *host {
	t.Helper()
	h := &host{t: t, addr: netip.MustParseAddr(addr), calls: make(chan func())}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread and its namespace end together
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			h.ns, err = os.Open("/proc/thread-self/ns/net")
		}
		ready <- err
		for f := range h.calls {
			f()
		}
	}()
	if err := <-ready; err != nil {
		t.Skipf("no network namespace here (needs root): %v", err)
	}
	t.Cleanup(func() { close(h.calls); h.ns.Close() })
	return h
}

func (h *host) do(f func()) {
	done := make(chan struct{})
	h.calls <- func() { defer close(done); f() }
	<-done
}

func (h *host) ip(args ...string) {
	h.t.Helper()
	h.do(func() {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			h.t.Errorf("ip %v: %v: %s", args, err, out)
		}
	})
}

// pair returns two hosts on one cable.
func pair(t *testing.T) (a, b *host) {
	t.Helper()
	a, b = newHost(t, "10.9.0.1"), newHost(t, "10.9.0.2")
	cable(t, a, b)
	return a, b
}

func cable(t *testing.T, a, b *host) {
	t.Helper()
	a.do(func() {
		err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "eth0",
			PeerNamespace: netlink.NsFd(int(b.ns.Fd()))})
		if err != nil {
			t.Fatalf("no cable: %v", err)
		}
	})
	for _, h := range []*host{a, b} {
		h.has()
		h.ip("link", "set", "eth0", "up")
	}
	// Until the kernel has acted on the carrier, on a busy host only in a moment, frames are dropped without a word. It does so
	// with the lock that the last command waits for.
	for _, h := range []*host{a, b} {
		h.do(func() {
			const script = "until ip -o link show eth0 | grep -q ' state UP '; do sleep 0.01; done; ip link set eth0 up"
			if out, err := exec.Command("sh", "-euc", script).CombinedOutput(); err != nil {
				h.t.Errorf("no carrier: %v: %s", err, out)
			}
		})
	}
}

// has gives the host its address.
func (h *host) has() {
	h.t.Helper()
	if h.addr.Is4() {
		h.ip("addr", "add", h.addr.String()+"/24", "dev", "eth0")
	} else {
		h.ip("addr", "add", h.addr.String()+"/64", "dev", "eth0", "nodad")
	}
}

// pair6 returns two hosts on one cable that have link-local addresses alone, or another one too.
func pair6(t *testing.T, kind Kind) (a, b *host) {
	t.Helper()
	prefix := "fe80::"
	if kind == UDP {
		prefix = "2001:db8::"
	}
	a, b = newHost(t, prefix+"1"), newHost(t, prefix+"2")
	cable(t, a, b)
	return a, b
}

func (h *host) open(kind Kind, peer *host) *Conn {
	h.t.Helper()
	var (
		c   *Conn
		err error
	)
	h.do(func() {
		l, lerr := netlink.LinkByName("eth0")
		if lerr != nil {
			err = lerr
			return
		}
		c, err = Open(Config{Kind: kind, Interface: "eth0", Index: l.Attrs().Index, Local: h.addr, Peer: peer.addr, Port: 5112, VRID: 7})
	})
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { c.Close() })
	return c
}

// next waits for a packet as a router does.
func next(t *testing.T, c *Conn) Packet {
	t.Helper()
	deadline := time.After(5 * time.Second)
	for {
		p, ok, err := c.Receive()
		if err != nil {
			t.Fatal(err)
		}
		if ok {
			return p
		}
		select {
		case <-c.Ready():
			c.Woken()
		case <-deadline:
			t.Fatal("no packet within 5 s")
		}
	}
}

func none(t *testing.T, c *Conn, what string) {
	t.Helper()
	if p, ok, _ := c.Receive(); ok {
		t.Errorf("%s was delivered: %+v", what, p)
	}
}

func TestPacketsTravelBothWays(t *testing.T) {
	for name, row := range map[string]struct {
		kind Kind
		pair func(t *testing.T) (a, b *host)
		to   netip.Addr // the zero Addr is the receiver
	}{
		"multicast": {Multicast, pair, Group}, "unicast": {Unicast, pair, netip.Addr{}}, "udp": {UDP, pair, netip.Addr{}},
		"multicast over IPv6": {Multicast, func(t *testing.T) (a, b *host) { return pair6(t, Multicast) }, Group6},
		"unicast over IPv6":   {Unicast, func(t *testing.T) (a, b *host) { return pair6(t, Unicast) }, netip.Addr{}},
		"udp over IPv6":       {UDP, func(t *testing.T) (a, b *host) { return pair6(t, UDP) }, netip.Addr{}},
	} {
		t.Run(name, func(t *testing.T) {
			kind := row.kind
			one, two := row.pair(t)
			a, b := one.open(kind, two), two.open(kind, one)
			meet(t, a, b)
			meet(t, b, a)
			for i := range 50 {
				message := bytes.Repeat([]byte{0x31, 7, byte(i)}, 12)
				foreign := bytes.Repeat([]byte{0x31, 8, byte(i)}, 12)
				before := bootclock.Now()
				for _, m := range [][]byte{foreign, message} {
					if err := a.Send(m); err != nil {
						t.Fatal(err)
					}
				}
				p := next(t, b)
				for len(p.Payload) == len(hello) { // the last one may be late
					p = next(t, b)
				}
				after := bootclock.Now()
				if kind != UDP && one.addr.Is6() && len(p.Payload) == len(message) {
					if !sumsUp(p) {
						t.Errorf("the checksum of %x is not the kernel's", p.Payload)
					}
					copy(p.Payload[6:8], message[6:8])
				}
				if !bytes.Equal(p.Payload, message) || p.Src != one.addr || p.TTL != 255 {
					t.Fatalf("got %+v, want the message of VRID 7 from %s with TTL 255", p, one.addr)
				}
				if p.Dst != row.to && (row.to.IsValid() || p.Dst != two.addr) {
					t.Errorf("destination %s", p.Dst)
				}
				// Two clocks are read one after the other, and the machine may be busy.
				if p.Arrived < before-50*time.Millisecond || p.Arrived > after {
					t.Errorf("arrived at %s, sent after %s and read before %s", p.Arrived, before, after)
				}
				if err := b.Send(message); err != nil {
					t.Fatal(err)
				}
				if p := next(t, a); p.Src != two.addr {
					t.Fatalf("answer from %s", p.Src)
				}
			}
			none(t, a, "our own advert")
			none(t, b, "an advert of another VRID")
		})
	}
}

var hello = []byte{0x31, 7, 1, 1, 0, 100, 0, 0}

// meet sends until something arrives, and takes all of it: while two kernels ask each
// other for their addresses a packet may be lost.
func meet(t *testing.T, from, to *Conn) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; {
		if err := from.Send(hello); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
		if _, ok, _ := to.Receive(); ok {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("nothing arrives")
		}
	}
	time.Sleep(50 * time.Millisecond)
	for more := true; more; {
		_, more, _ = to.Receive()
	}
}

// sumsUp tells whether the checksum of IPv6 covers all that a packet carries, RFC 8200 section 8.1.
func sumsUp(p Packet) bool {
	src, dst := p.Src.As16(), p.Dst.As16()
	sum := uint32(len(p.Payload) + protocolVRRP)
	for _, b := range [][]byte{src[:], dst[:], p.Payload} {
		for ; len(b) > 1; b = b[2:] {
			sum += uint32(b[0])<<8 | uint32(b[1])
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return sum == 0xffff
}

// Over IPv6 the kernel looks at the checksum, and we at the hop limit, which it hands on.
func TestPacketsOfOthersOverIPv6(t *testing.T) {
	one, two := pair6(t, Multicast)
	a, b := one.open(Multicast, two), two.open(Multicast, one)
	message := []byte{0x31, 7, 100, 1, 0, 100, 0, 0}
	off := func(name, value int) {
		t.Helper()
		if err := unix.SetsockoptInt(a.out.fd, unix.IPPROTO_IPV6, name, value); err != nil {
			t.Fatal(err)
		}
	}
	off(unix.IPV6_CHECKSUM, -1)
	if err := a.Send(message); err != nil { // with a checksum of 0
		t.Fatal(err)
	}
	off(unix.IPV6_CHECKSUM, checksumOffset)
	off(unix.IPV6_MULTICAST_HOPS, 254)
	if err := a.Send(message); err != nil {
		t.Fatal(err)
	}
	if p := next(t, b); p.TTL != 254 || p.Dst != Group6 || !sumsUp(p) {
		t.Errorf("got %+v, want a hop limit of 254", p)
	}
	none(t, b, "a packet with a wrong checksum")
	off(unix.IPV6_MULTICAST_LOOP, 1)
	if err := a.Send(message); err != nil {
		t.Fatal(err)
	}
	if p := next(t, a); p.Src != a.Source() {
		t.Errorf("got %+v; want our own, which is how a copy of our address is noticed", p)
	}
}

// A packet that waits while nobody reads tells how long it has waited. The first
// one may not: the kernel takes a moment to begin with time stamps.
func TestArrivalTime(t *testing.T) {
	for name, hosts := range map[string]func(*testing.T) (a, b *host){
		"IPv4": pair,
		"IPv6": func(t *testing.T) (a, b *host) { return pair6(t, Multicast) },
	} {
		t.Run(name, func(t *testing.T) {
			one, two := hosts(t)
			a, b := one.open(Multicast, two), two.open(Multicast, one)
			var late time.Duration
			for range 3 {
				if err := a.Send([]byte{0x31, 7, 100, 1, 0, 100, 0, 0}); err != nil {
					t.Fatal(err)
				}
				sent := bootclock.Now()
				time.Sleep(300 * time.Millisecond) // the packet's wait is what is measured
				if late = next(t, b).Arrived - sent; late <= 100*time.Millisecond {
					return
				}
			}
			t.Errorf("arrived %s after it was sent", late)
		})
	}
}

// Multicast and unicast do not hear each other, so a misconfigured pair is not
// half right.
func TestTransportsStayApart(t *testing.T) {
	one, two := pair(t)
	for _, kinds := range [][2]Kind{{Unicast, Multicast}, {Multicast, Unicast}, {UDP, Multicast}, {UDP, Unicast}, {Unicast, UDP}} {
		a, b := one.open(kinds[0], two), two.open(kinds[1], one)
		if err := a.Send([]byte{0x31, 7, 100, 1, 0, 100, 0, 0}); err != nil {
			t.Fatal(err)
		}
		probe := two.open(kinds[0], one) // its delivery shows that the first packet has passed
		if err := a.Send([]byte{0x31, 7, 100, 1, 0, 100, 0, 0}); err != nil {
			t.Fatal(err)
		}
		next(t, probe)
		none(t, b, "a packet of another transport")
		a.Close()
		b.Close()
		probe.Close()
	}
}

func TestOpenFailsWithoutTheAddress(t *testing.T) {
	one, two := pair(t)
	one.ip("addr", "flush", "dev", "eth0")
	one.do(func() {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			t.Fatal(err)
		}
		for _, kind := range []Kind{Multicast, Unicast, UDP} {
			c, err := Open(Config{Kind: kind, Interface: "eth0", Index: l.Attrs().Index, Local: one.addr, Peer: two.addr, Port: 5112, VRID: 7})
			if !errors.Is(err, unix.EADDRNOTAVAIL) {
				t.Errorf("transport %d: %v, want EADDRNOTAVAIL", kind, err)
				c.Close()
			}
		}
	})
}

// The membership survives a link that goes down and comes back; a deleted
// interface needs a new Conn, which works on the new one.
func TestLinkDownAndRecreated(t *testing.T) {
	one, two := pair(t)
	a, b := one.open(Multicast, two), two.open(Multicast, one)
	message := []byte{0x31, 7, 100, 1, 0, 100, 0, 0}
	one.ip("link", "set", "eth0", "down")
	if err := a.Send(message); err == nil {
		t.Error("sending on a link that is down succeeds")
	}
	one.ip("link", "set", "eth0", "up")
	if err := a.Send(message); err != nil {
		t.Fatal(err)
	}
	drain := next(t, b)
	if !bytes.Equal(drain.Payload, message) {
		t.Fatalf("got %x", drain.Payload)
	}
	one.ip("link", "del", "eth0")
	if err := a.Send(message); err == nil {
		t.Error("sending on a deleted interface succeeds")
	}
	cable(t, one, two)
	a, b = one.open(Multicast, two), two.open(Multicast, one)
	if err := a.Send(message); err != nil {
		t.Fatal(err)
	}
	next(t, b)
}

// A master goes on sending to a peer that has no power, until its kernel asks only now and then where that is. The peer, when
// it is back, must not have to wait until it is asked.
func TestReturnedPeerIsSentToAtOnce(t *testing.T) {
	for name, of := range map[string]struct {
		kind Kind
		v6   bool
	}{"unicast": {Unicast, false}, "udp": {UDP, false}, "unicast over IPv6": {Unicast, true}, "udp over IPv6": {UDP, true}} {
		t.Run(name, func(t *testing.T) {
			master, back, family := newHost(t, "10.9.0.1"), newHost(t, "10.9.0.2"), "ipv4"
			if of.v6 {
				master, back, family = newHost(t, "2001:db8::1"), newHost(t, "2001:db8::2"), "ipv6"
			}
			cable(t, master, back)
			master.do(func() { // It asks once, and not again during this test.
				if err := os.WriteFile("/proc/sys/net/"+family+"/neigh/eth0/retrans_time_ms", []byte("600000"), 0); err != nil {
					t.Error(err)
				}
			})
			m := master.open(of.kind, back)
			back.ip("addr", "flush", "dev", "eth0") // so nobody answers
			master.ip("neigh", "flush", "dev", "eth0")
			message := []byte{0x31, 7, 100, 1, 0, 100, 0, 0}
			if err := m.Send(message); err != nil {
				t.Fatal(err)
			}
			back.ip("neigh", "flush", "dev", "eth0") // it was without power
			back.has()
			b := back.open(of.kind, master)
			// The one that waited was dropped with the question, or comes first.
			deadline := time.Now().Add(3 * time.Second) // before the kernel looks again whether an old answer still holds
			for got := false; !got; {
				if time.Now().After(deadline) {
					t.Fatal("nothing is sent to the peer that is back")
				}
				if err := m.Send(message); err != nil {
					t.Fatal(err)
				}
				time.Sleep(20 * time.Millisecond)
				_, got, _ = b.Receive()
			}
		})
	}
}

// Two nodes with one address: the kernel drops the other's adverts unseen, but
// each of the two is told.
func TestACopyOfOurAddressIsNoticed(t *testing.T) {
	one, two := newHost(t, "10.9.0.1"), newHost(t, "10.9.0.1")
	cable(t, one, two)
	noticed := make(chan struct{}, 10)
	open := func(h *host, copied func()) (c *Conn) {
		h.do(func() {
			l, err := netlink.LinkByName("eth0")
			if err == nil {
				c, err = Open(Config{Kind: Multicast, Interface: "eth0", Index: l.Attrs().Index, Local: h.addr, VRID: 7, Copied: copied})
			}
			if err != nil {
				t.Fatal(err)
			}
		})
		t.Cleanup(func() { c.Close() })
		return c
	}
	a := open(one, func() { t.Error("our own adverts are taken for a copy's") })
	open(two, func() { noticed <- struct{}{} })
	if err := a.Send([]byte{0x31, 8, 100, 1, 0, 100, 0, 0}); err != nil { // another VRID
		t.Fatal(err)
	}
	select {
	case <-noticed:
		t.Error("an advert of another VRID counts")
	case <-time.After(50 * time.Millisecond):
	}
	if err := a.Send([]byte{0x31, 7, 100, 1, 0, 100, 0, 0}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-noticed:
	case <-time.After(5 * time.Second):
		t.Error("not noticed")
	}
}

func TestCARPInUDPIsNoticed(t *testing.T) {
	one, two := newHost(t, "10.9.0.1"), newHost(t, "10.9.0.2")
	cable(t, one, two)
	noticed := make(chan struct{}, 10)
	two.do(func() {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			t.Fatal(err)
		}
		c, err := Open(Config{Kind: Multicast, Interface: "eth0", Index: l.Attrs().Index, Local: two.addr, Peer: one.addr, VRID: 7,
			InUDP: func() { noticed <- struct{}{} }})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	})
	send := func(message []byte) {
		one.do(func() {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			// Whatever port, and whether somebody has it.
			if err := unix.Sendto(fd, message, 0, &unix.SockaddrInet4{Addr: two.addr.As4(), Port: 1234}); err != nil {
				t.Fatal(err)
			}
		})
	}
	send([]byte{0x21, 8, 0, 7})
	send([]byte("hello"))
	select {
	case <-noticed:
		t.Error("something else counts")
	case <-time.After(50 * time.Millisecond):
	}
	send([]byte{0x21, 7, 0, 7, 0, 1})
	select {
	case <-noticed:
	case <-time.After(5 * time.Second):
		t.Error("not noticed")
	}
}

func TestFilters(t *testing.T) {
	header := func(words int, rest ...byte) []byte {
		return append(append([]byte{byte(0x40 | words)}, make([]byte, 4*words-1)...), rest...)
	}
	theirs := [4]byte{10, 9, 0, 1}
	set := func(b []byte, at int, v byte) []byte { b[at] = v; return b }
	inUDP := func(message ...byte) []byte {
		b := header(6, append([]byte{0, 1, 0, 2, 0, 12, 0, 0}, message...)...)
		b[9] = 17
		copy(b[12:], theirs[:])
		return b
	}
	for _, row := range []struct {
		name    string
		program []bpf.Instruction
		packet  []byte
		passes  bool
	}{
		{"our VRID", rawFilter(7), header(5, 0x31, 7, 1, 1), true},
		{"our VRID behind IP options", rawFilter(7), header(15, 0x31, 7, 1, 1), true},
		{"our VRID in another version", rawFilter(7), header(5, 0x21, 7, 1, 1), true},
		{"another VRID", rawFilter(7), header(5, 0x31, 8, 1, 1), false},
		{"no message", rawFilter(7), header(5), false},
		{"IPv6, our VRID", raw6Filter(7), []byte{0x31, 7, 1, 1}, true},
		{"IPv6, another VRID", raw6Filter(7), []byte{0x31, 8, 1, 1}, false},
		{"IPv6, no message", raw6Filter(7), []byte{0x31}, false},
		{"UDP, our VRID", udpFilter(7), []byte{0, 1, 0, 2, 0, 12, 0, 0, 0x31, 7, 1, 1}, true},
		{"UDP, another VRID", udpFilter(7), []byte{0, 1, 0, 2, 0, 12, 0, 0, 0x31, 8, 1, 1}, false},
		{"UDP, empty", udpFilter(7), []byte{0, 1, 0, 2, 0, 8, 0, 0}, false},
		// What comes before asks the kernel for the packet's direction, which this machine does not know.
		{"CARP in UDP", carpInUDPFilter(theirs, 7)[2:], inUDP(0x21, 7, 0, 7), true},
		{"CARP in UDP, another VRID", carpInUDPFilter(theirs, 7)[2:], inUDP(0x21, 8, 0, 7), false},
		{"VRRPv3 in UDP", carpInUDPFilter(theirs, 7)[2:], inUDP(0x31, 7, 100, 1), false},
		{"VRRPv2 in UDP", carpInUDPFilter(theirs, 7)[2:], inUDP(0x21, 7, 100, 1), false},
		{"CARP in UDP from somebody else", carpInUDPFilter([4]byte{10, 9, 0, 2}, 7)[2:], inUDP(0x21, 7, 0, 7), false},
		{"CARP in TCP", carpInUDPFilter(theirs, 7)[2:], set(inUDP(0x21, 7, 0, 7), 9, 6), false},
		{"a later fragment", carpInUDPFilter(theirs, 7)[2:], set(inUDP(0x21, 7, 0, 7), 7, 1), false},
		{"an empty datagram", carpInUDPFilter(theirs, 7)[2:], inUDP(), false},
		{"the deaf one", deafFilter(), header(5, 0x31, 7, 1, 1), false},
	} {
		vm, err := bpf.NewVM(row.program)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := vm.Run(row.packet); err != nil || (n > 0) != row.passes {
			t.Errorf("%s: passes %v (%v), want %v", row.name, n > 0, err, row.passes)
		}
	}
}

func FuzzSplitHeader(f *testing.F) {
	f.Add([]byte{0x45, 19: 0, 20: 1})
	f.Add([]byte{0x4f, 59: 0})
	f.Add([]byte{0x40})
	f.Fuzz(func(t *testing.T, b []byte) {
		_, dst, payload := splitHeader(b)
		if len(payload) > len(b) || payload != nil && !dst.Is4() {
			t.Errorf("%x: payload %x to %s", b, payload, dst)
		}
	})
}
