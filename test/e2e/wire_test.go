package e2e

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/conf"
	"github.com/skudonet/skudonet-ce-cluster/lib/vrrp"
	"github.com/skudonet/skudonet-ce-cluster/test/lab"
)

const (
	protocolVRRP = 112
	udpPort      = 5112
)

var group = netip.MustParseAddr("224.0.0.18")

// advert is an advertisement on the wire.
type advert struct {
	lab.Packet
	ip      lab.IPPacket
	message []byte // with its trailer
	trailer []byte
	vrrp.Advertisement
}

// readAdvert reads a packet of any transport.
func readAdvert(p lab.Packet) (a advert, ok bool) {
	if a.ip, ok = p.IPv4(); !ok {
		if a.ip, ok = p.IPv6(); !ok {
			return a, false
		}
	}
	a.Packet, a.message = p, a.ip.Payload
	switch {
	case a.ip.Protocol == protocolVRRP:
	case a.ip.Protocol == unix.IPPROTO_UDP && len(a.message) > 8 && binary.BigEndian.Uint16(a.message[2:]) == udpPort:
		a.message = a.message[8:]
	default:
		return a, false
	}
	var err error
	a.trailer, _, err = a.Unmarshal(a.message, a.ip.Source, a.ip.Destination)
	return a, err == nil
}

// adverts are those that the machine has sent in the capture since then.
func adverts(c *lab.Capture, n *lab.Node, since time.Time) (list []advert) {
	for _, p := range c.Packets() {
		if p.Node == n.Name && p.Time.After(since) {
			if a, ok := readAdvert(p); ok {
				list = append(list, a)
			}
		}
	}
	return list
}

// claims are those that are no goodbyes.
func claims(c *lab.Capture, n *lab.Node, since time.Time) (list []advert) {
	for _, a := range adverts(c, n, since) {
		if a.Priority > 0 {
			list = append(list, a)
		}
	}
	return list
}

// awaitAdverts waits until the machine has sent so many adverts from now on: time enough for what must not happen.
func (p *pair) awaitAdverts(c *lab.Capture, n *lab.Node, count int) {
	p.t.Helper()
	since := time.Now()
	p.eventually(fmt.Sprintf("%d adverts of %s", count, n.Name), func() (bool, string) {
		seen := len(claims(c, n, since))
		return seen >= count, fmt.Sprint(seen)
	})
}

// pass lets time pass in which something must not happen, and nothing else tells that it is over.
func pass(d time.Duration) { <-time.After(d) }

// speakers are the machines that have said by ARP since then that they have $cluster_ip, one after the other.
func speakers(c *lab.Capture, since time.Time) (names []string) {
	for _, p := range c.Packets() {
		if a, ok := p.ARP(); ok && p.Time.After(since) && a.Sender == lab.ClusterIP {
			if len(names) == 0 || names[len(names)-1] != p.Node {
				names = append(names, p.Node)
			}
		}
	}
	return names
}

// announced tells whether the machine has announced $cluster_ip since then.
func announced(c *lab.Capture, n *lab.Node, since time.Time) bool {
	for _, p := range c.Packets() {
		if a, ok := p.ARP(); ok && p.Node == n.Name && p.Time.After(since) && a.Sender == lab.ClusterIP && a.Gratuitous() {
			return true
		}
	}
	return false
}

// intruder puts frames on a machine's cable.
type intruder struct {
	t   *testing.T
	fd  int
	mac net.HardwareAddr
}

// newIntruder is somebody with root on the machine, which is in the same network.
func newIntruder(t *testing.T, n *lab.Node) *intruder {
	t.Helper()
	i := &intruder{t: t}
	if err := i.start(n); err != nil {
		t.Fatalf("a socket on %s: %v", n.Name, err)
	}
	t.Cleanup(func() { unix.Close(i.fd) })
	return i
}

// start opens the socket on a thread of its own, which ends in the machine's network. The main thread could not end.
func (i *intruder) start(n *lab.Node) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			done <- i.start(n)
			runtime.UnlockOSThread()
			return
		}
		done <- i.enter(n)
	}()
	return <-done
}

func (i *intruder) enter(n *lab.Node) error {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", n.PID()))
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return err
	}
	card, err := net.InterfaceByName("eth0")
	if n.Name == "switch" {
		card, err = net.InterfaceByName("br0")
	}
	if err != nil {
		return err
	}
	i.mac = card.HardwareAddr
	if i.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
		return err
	}
	return unix.Bind(i.fd, &unix.SockaddrLinklayer{Ifindex: card.Index})
}

// frame is an Ethernet frame with an IPv4 packet to everybody. To a single address the switch floods it too.
func (i *intruder) frame(src, dst netip.Addr, ttl, protocol byte, payload []byte) []byte {
	to := net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	if ip := dst.As4(); dst.IsMulticast() {
		to = net.HardwareAddr{1, 0, 0x5e, ip[1] & 0x7f, ip[2], ip[3]}
	} else if ip[2] == 77 {
		to = net.HardwareAddr{2, 0, 0, 0, 0x77, ip[3]}
	}
	b := append(append([]byte(to), i.mac...), 8, 0)
	header := []byte{0x45, 0xc0, 0, 0, 0, 0, 0, 0, ttl, protocol, 0, 0}
	binary.BigEndian.PutUint16(header[2:], uint16(20+len(payload)))
	header = append(append(header, src.AsSlice()...), dst.AsSlice()...)
	binary.BigEndian.PutUint16(header[10:], checksum(header))
	return append(append(b, header...), payload...)
}

// checksum is that of RFC 1071, of an even number of bytes.
func checksum(b []byte) uint16 {
	sum := uint32(0)
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// datagram puts a message into UDP, without a checksum.
func datagram(message []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, udpPort)
	b = binary.BigEndian.AppendUint16(b, udpPort)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(message)))
	return append(append(b, 0, 0), message...)
}

func (i *intruder) send(frame []byte) {
	i.t.Helper()
	if err := unix.Send(i.fd, frame, 0); err != nil && err != unix.ENOBUFS {
		i.t.Fatalf("send as intruder: %v", err)
	}
}

// advertise sends a message to the group, as src.
func (i *intruder) advertise(src netip.Addr, message []byte) {
	i.t.Helper()
	i.send(i.frame(src, group, 255, protocolVRRP, message))
}

// ask sends an ARP request for an address to everybody.
func (i *intruder) ask(src, addr netip.Addr) { i.t.Helper(); i.send(i.arp(src, make([]byte, 6), addr)) }

// announce sends gratuitous ARP for an address.
func (i *intruder) announce(addr netip.Addr) { i.t.Helper(); i.send(i.arp(addr, i.mac, addr)) }

func (i *intruder) arp(sender netip.Addr, targetMAC net.HardwareAddr, target netip.Addr) []byte {
	b := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, i.mac...)
	b = append(b, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1)
	b = append(append(b, i.mac...), sender.AsSlice()...)
	return append(append(b, targetMAC...), target.AsSlice()...)
}

// guarded fails the test unless the node is silent about $cluster_ip, even when it has it and a program announces it.
func (p *pair) guarded(n *lab.Node) {
	p.t.Helper()
	wire := p.capture(lab.ARP)
	inside, outside := newIntruder(p.t, n), newIntruder(p.t, p.Client)
	p.run(n, "ip", "addr", "add", lab.ClusterIP.String()+"/32", "dev", "lo")
	since := time.Now()
	for _, addr := range []netip.Addr{lab.ClusterIP, n.Addr(0)} { // the second shows that the first would have passed
		inside.announce(addr)
		outside.ask(p.Client.Addr(0), addr)
	}
	p.eventually(n.Name+" speaking for itself", func() (bool, string) {
		heard := 0
		for _, packet := range wire.Packets() {
			if a, ok := packet.ARP(); ok && packet.Node == n.Name && a.Sender == n.Addr(0) {
				heard++
			}
		}
		return heard >= 2, fmt.Sprint(heard)
	})
	p.run(n, "ip", "addr", "del", lab.ClusterIP.String()+"/32", "dev", "lo")
	if slices.Contains(speakers(wire, since), n.Name) {
		p.t.Errorf("%s spoke for the address although it is backup", n.Name)
	}
}

// message is an advert as the node would send it to the group, unsigned.
func message(t *testing.T, c conf.Config, src netip.Addr, priority byte) []byte {
	t.Helper()
	a := vrrp.Advertisement{VRID: c.VRID, Priority: priority, Interval: c.AdvertInterval, Addrs: []netip.Addr{c.ClusterIP}}
	b, err := a.Append(nil, src, group, vrrp.PseudoHeader)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// summed corrects the checksum of a message, by the form that covers nothing else.
func summed(message []byte, length int) []byte {
	binary.BigEndian.PutUint16(message[6:], 0)
	binary.BigEndian.PutUint16(message[6:], checksum(message[:length]))
	return message
}
