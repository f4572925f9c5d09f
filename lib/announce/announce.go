// Package announce tells the neighbours on a link that a virtual address is here now.
//
// It has the frames of gratuitous ARP (RFC 826, RFC 5227 §3) and of unsolicited neighbour advertisements (RFC 4861 §7.2.6), the
// schedule by which they are repeated, and a Sender that puts them on the wire from packet sockets, thousands in a burst, so that
// the addresses need not stand yet and the kernel's own ARP settings do not matter.
//
// The package does not know who is master: it asks before each frame whether to go on.
package announce

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

const (
	arpRequest = 1
	arpReply   = 2
)

var broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// AppendGARPRequest appends the Ethernet frame (42 bytes, without padding) of a gratuitous ARP request from mac for ip, an IPv4
// address. Linux neighbours, among many, update an existing entry from this form even within their locktime.
func AppendGARPRequest(b []byte, mac net.HardwareAddr, ip netip.Addr) []byte {
	return appendARP(b, arpRequest, mac, ip, broadcast)
}

// AppendGARPReply appends the frame of a gratuitous ARP reply, for those that learn from replies only. The target's hardware
// address is mac too: Linux takes no other reply for gratuitous (arp_is_garp in net/ipv4/arp.c).
func AppendGARPReply(b []byte, mac net.HardwareAddr, ip netip.Addr) []byte {
	return appendARP(b, arpReply, mac, ip, mac)
}

func appendARP(b []byte, operation uint16, mac net.HardwareAddr, ip netip.Addr, target net.HardwareAddr) []byte {
	v4 := ip.As4()
	b = slices.Grow(b, 42)
	b = append(append(b, broadcast...), mac...)
	b = binary.BigEndian.AppendUint16(b, unix.ETH_P_ARP)
	b = binary.BigEndian.AppendUint16(b, unix.ARPHRD_ETHER)
	b = binary.BigEndian.AppendUint16(b, unix.ETH_P_IP)
	b = append(b, 6, 4)
	b = binary.BigEndian.AppendUint16(b, operation)
	b = append(append(b, mac...), v4[:]...)
	return append(append(b, target...), v4[:]...)
}

// allNodes is ff02::1, every host on the link.
var allNodes = [16]byte{0: 0xff, 1: 0x02, 15: 1}

const (
	hopLimit = 255 // of every neighbour message, RFC 4861 §7.1

	neighborAdvertisement = 136
	naLen                 = 32 // with the option
	naRouter              = 0x80
	naOverride            = 0x20
	targetLinkLayer       = 2 // option, RFC 4861 §4.6.1
)

// AppendNA appends the Ethernet frame (86 bytes) of an unsolicited neighbour advertisement from mac for ip, an IPv6 address, with
// ip as its source too, so that a socket of the kernel, for which the address must stand, could not send it. router says that the
// host forwards: hosts that used it as their router, and hear otherwise, use it no more (RFC 4861 §7.2.5).
func AppendNA(b []byte, mac net.HardwareAddr, ip netip.Addr, router bool) []byte {
	v6 := ip.As16()
	flags := byte(naOverride)
	if router {
		flags |= naRouter
	}
	b = slices.Grow(b, 14+40+naLen)
	b = append(append(b, 0x33, 0x33, 0, 0, 0, 1), mac...)
	b = binary.BigEndian.AppendUint16(b, unix.ETH_P_IPV6)
	b = append(b, 6<<4, 0, 0, 0, 0, naLen, unix.IPPROTO_ICMPV6, hopLimit)
	b = append(append(b, v6[:]...), allNodes[:]...)
	start := len(b)
	b = append(b, neighborAdvertisement, 0, 0, 0, flags, 0, 0, 0)
	b = append(b, v6[:]...)
	b = append(append(b, targetLinkLayer, 1), mac...)
	binary.BigEndian.PutUint16(b[start+2:], checksum(b[start-32:]))
	return b
}

// checksum is that of an ICMPv6 message behind its two addresses, RFC 8200 §8.1.
func checksum(b []byte) uint16 {
	sum := uint32(len(b)-32) + unix.IPPROTO_ICMPV6
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
