package guard

import (
	"encoding/binary"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var (
	vip6    = netip.MustParseAddr("2001:db8::7")
	own6    = netip.MustParseAddr("2001:db8::1")
	client6 = netip.MustParseAddr("2001:db8::50")
	marker6 = netip.MustParseAddr("2001:db8::251")
	nobody6 = netip.IPv6Unspecified()
	nodes6  = netip.MustParseAddr("ff02::1")
)

// namespace6 is namespace with the addresses of IPv6.
func namespace6(t testing.TB) {
	t.Helper()
	namespace(t)
	run(t, `echo 0 > /proc/sys/net/ipv6/conf/v0/accept_dad
		ip addr add 2001:db8::1/64 dev v0 nodad; ip addr add 2001:db8::7/64 dev v0 nodad`)
}

// neighbour is a neighbour message, with the source's or target's hardware address in an option, from its IPv6 header on.
func neighbour(typ byte, src, dst, target netip.Addr) []byte {
	body := []byte{typ, 0, 0, 0, 0, 0, 0, 0}
	option := byte(1)
	if typ == neighborAdvertisement {
		body[4], option = 0x20, 2
	}
	if target.IsValid() {
		body = append(body, target.AsSlice()...)
	}
	body = append(body, option, 1, 2, 0, 0, 0, 0, 1)
	b := []byte{0x60, 0, 0, 0, 0, byte(len(body)), unix.IPPROTO_ICMPV6, 255}
	b = append(append(b, src.AsSlice()...), dst.AsSlice()...)
	sum := uint32(len(body)) + unix.IPPROTO_ICMPV6
	for words := append(slices.Clone(b[8:]), body...); len(words) > 0; words = words[2:] {
		sum += uint32(binary.BigEndian.Uint16(words))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(body[2:], ^uint16(sum))
	return append(b, body...)
}

// frame6 is one to everybody.
func frame6(packet []byte) []byte {
	return append([]byte{0x33, 0x33, 0, 0, 0, 1, 2, 0, 0, 0, 0, 1, 0x86, 0xdd}, packet...)
}

// solicited is the multicast address at which the owner of an address is asked.
func solicited(ip netip.Addr) netip.Addr {
	group, last := netip.MustParseAddr("ff02::1:ff00:0").As16(), ip.As16()
	copy(group[13:], last[13:])
	return netip.AddrFrom16(group)
}

// spoken is a neighbour message on the wire.
type spoken struct {
	typ         byte
	src, target netip.Addr
}

// next6 returns the next neighbour message that says where one of the addresses is, or looks for a duplicate of it.
func (w wire) next6(t *testing.T, ip ...netip.Addr) (netip.Addr, spoken) {
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
		if from.(*unix.SockaddrLinklayer).Pkttype == unix.PACKET_OUTGOING || n < 62 || b[12] != 0x86 || b[13] != 0xdd || b[20] != unix.IPPROTO_ICMPV6 {
			continue
		}
		s := spoken{typ: b[54], src: netip.AddrFrom16([16]byte(b[22:38]))}
		if s.typ == neighborSolicitation || s.typ == neighborAdvertisement {
			s.target = netip.AddrFrom16([16]byte(b[62:78]))
		}
		for _, ip := range ip {
			if s.src == ip || s.target == ip && (s.typ == neighborAdvertisement || s.src == nobody6) {
				return ip, s
			}
		}
	}
}

// solicit asks for an address from the wire, as often as a host that gets no answer, or an IPv6 that is not quite awake, needs.
func solicit(t *testing.T, ip netip.Addr) {
	fd := packetSocket(t, "p0", unix.SOCK_RAW, 0)
	for range 10 {
		transmit(t, fd, frame6(neighbour(neighborSolicitation, client6, solicited(ip), ip)))
		time.Sleep(50 * time.Millisecond)
	}
}

var senders6 = []sender{
	{"the kernel answers", func(t *testing.T, _ string) {
		solicit(t, vip6)
	}},
	{"the kernel asks", func(t *testing.T, _ string) {
		run(t, "ip -6 neigh flush all")
		c, err := net.DialUDP("udp6", &net.UDPAddr{IP: vip6.AsSlice()}, &net.UDPAddr{IP: client6.AsSlice(), Port: 9})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
	}},
	{"the kernel looks for duplicates", func(t *testing.T, _ string) {
		run(t, `ip addr del 2001:db8::7/64 dev v0; echo 1 > /proc/sys/net/ipv6/conf/v0/accept_dad; ip addr add 2001:db8::7/64 dev v0`)
	}},
	{"a raw socket advertises", func(t *testing.T, link string) { sendRaw6(t, link, neighborAdvertisement, vip6, vip6) }},
	{"a raw socket advertises from another address", func(t *testing.T, link string) {
		sendRaw6(t, link, neighborAdvertisement, own6, vip6)
	}},
	{"a raw socket solicits routers", func(t *testing.T, link string) { sendRaw6(t, link, routerSolicitation, vip6, netip.Addr{}) }},
	{"a cooked socket advertises, and says IPv4", func(t *testing.T, link string) {
		fd := packetSocket(t, link, unix.SOCK_DGRAM, unix.ETH_P_IP)
		l, err := net.InterfaceByName(link)
		if err != nil {
			t.Fatal(err)
		}
		to := &unix.SockaddrLinklayer{Ifindex: l.Index, Protocol: 0xdd86, Halen: 6, Addr: [8]byte{0x33, 0x33, 0, 0, 0, 1}}
		if err := unix.Sendto(fd, neighbour(neighborAdvertisement, vip6, nodes6, vip6), 0, to); err != nil && err != unix.ENOBUFS {
			t.Fatal(err)
		}
	}},
}

func sendRaw6(t *testing.T, link string, typ byte, src, target netip.Addr) {
	transmit(t, packetSocket(t, link, unix.SOCK_RAW, 0), frame6(neighbour(typ, src, nodes6, target)))
}

func TestNoNeighbourMessageLeavesThatNamesAVirtualAddress(t *testing.T) {
	for _, s := range senders6 {
		for _, link := range []string{"v0", "mv"} {
			t.Run(s.name+" on "+link, func(t *testing.T) {
				namespace6(t)
				g := open(t)
				w := listen(t)
				s.send(t, link)
				w.next6(t, vip6)

				raiseIt(t, g, append(many(1000), vip, vip6)...)
				wantStanding(t, g, false, append(many(1000), vip)...)
				w = listen(t)
				before := dropped(t)
				s.send(t, link)
				for deadline := time.Now().Add(5 * time.Second); dropped(t) == before; runtime.Gosched() {
					if time.Now().After(deadline) {
						t.Fatal("no rule has dropped anything")
					}
				}
				sendRaw6(t, link, neighborAdvertisement, marker6, marker6)
				if ip, what := w.next6(t, vip6, marker6); ip == vip6 {
					t.Errorf("it left the node: %+v", what)
				}
				lowerIt(t, g)
			})
		}
	}
}

// To the rules these look as raw frames on a VLAN do whose NIC writes no tags: Linux takes what is four bytes into the message for
// its beginning. On the wire they are nothing, so what counts is which rule has dropped them.
func TestRawFramesOnAVLAN(t *testing.T) {
	cut := func(message []byte) []byte { return message[4:] }
	padded := func(ip netip.Addr) []byte { return append(arp(1, ip, ip), make([]byte, 18)...) }
	for name, row := range map[string]struct {
		message []byte
		passes  []byte
	}{
		"ARP with padding":            {cut(padded(vip)), cut(padded(own))},
		"neighbour advertisement":     {cut(neighbour(neighborAdvertisement, own6, nodes6, vip6)), cut(neighbour(neighborAdvertisement, own6, nodes6, own6))},
		"from the virtual address":    {cut(neighbour(routerSolicitation, vip6, nodes6, netip.Addr{})), cut(neighbour(routerSolicitation, own6, nodes6, netip.Addr{}))},
		"duplicate address detection": {cut(neighbour(neighborSolicitation, nobody6, nodes6, vip6)), cut(neighbour(neighborSolicitation, own6, nodes6, vip6))},
	} {
		t.Run(name, func(t *testing.T) {
			namespace6(t)
			raiseIt(t, open(t), vip, vip6)
			before := dropped(t)
			sendCooked(t, "v0", row.passes)
			if n := dropped(t) - before; n != 0 {
				t.Errorf("dropped %d that name no virtual address", n)
			}
			sendCooked(t, "v0", row.message)
			if n := dropped(t) - before; n != 1 {
				t.Errorf("dropped %d, want 1", n)
			}
		})
	}
}

func TestOtherNeighbourMessagesPass(t *testing.T) {
	namespace6(t)
	raiseIt(t, open(t), vip, vip6)
	w := listen(t)
	for _, m := range []spoken{
		{neighborAdvertisement, own6, own6},
		{neighborSolicitation, own6, vip6}, // by this the node finds the master
		{neighborSolicitation, nobody6, own6},
		{routerSolicitation, own6, netip.Addr{}},
	} {
		sendRaw6(t, "v0", m.typ, m.src, m.target)
		ip := m.src
		if ip == nobody6 {
			ip = m.target
		}
		for {
			if _, got := w.next6(t, ip); got == m {
				break
			}
		}
	}
	solicit(t, own6)
	w.next6(t, own6)
}

// An address that somebody raises on a backup without nodad stays usable: the master's answer would spoil it.
func TestDuplicatesAreNotFound(t *testing.T) {
	namespace6(t)
	raiseIt(t, open(t), vip6)
	run(t, `ip addr del 2001:db8::7/64 dev v0; echo 1 > /proc/sys/net/ipv6/conf/v0/accept_dad
		ip addr add 2001:db8::7/64 dev p0 nodad; ip addr add 2001:db8::7/64 dev v0`)
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		out := run(t, "ip -6 -o addr show dev v0 to 2001:db8::7 -tentative")
		if out != "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(run(t, "ip -6 addr show dev v0"))
		}
	}
}
