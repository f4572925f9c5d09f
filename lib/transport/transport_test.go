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
		h.ip("addr", "add", h.addr.String()+"/24", "dev", "eth0")
		h.ip("link", "set", "eth0", "up")
	}
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
	for name, kind := range map[string]Kind{"multicast": Multicast, "unicast": Unicast, "udp": UDP} {
		t.Run(name, func(t *testing.T) {
			one, two := pair(t)
			a, b := one.open(kind, two), two.open(kind, one)
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
				after := bootclock.Now()
				if !bytes.Equal(p.Payload, message) || p.Src != one.addr || p.TTL != 255 {
					t.Fatalf("got %+v, want the message of VRID 7 from %s with TTL 255", p, one.addr)
				}
				if want := b.cfg.Local; kind == Multicast && p.Dst != Group || kind != Multicast && p.Dst != want {
					t.Errorf("destination %s", p.Dst)
				}
				if p.Arrived < before-time.Millisecond || p.Arrived > after {
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

// A packet that waits while nobody reads tells how long it has waited.
func TestArrivalTime(t *testing.T) {
	one, two := pair(t)
	a, b := one.open(Multicast, two), two.open(Multicast, one)
	if err := a.Send([]byte{0x31, 7, 100, 1, 0, 100, 0, 0}); err != nil {
		t.Fatal(err)
	}
	sent := bootclock.Now()
	time.Sleep(300 * time.Millisecond) // the packet's wait is what is measured
	if p := next(t, b); p.Arrived > sent+100*time.Millisecond {
		t.Errorf("arrived %s after it was sent", p.Arrived-sent)
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
