// Package announce tells the neighbours on a link that a virtual address is here now.
//
// It has the frames of gratuitous ARP (RFC 826, RFC 5227 §3), the schedule by which they are repeated, and a Sender that puts
// them on the wire from packet sockets, thousands in a burst, so that the addresses need not stand yet and the kernel's own ARP
// settings do not matter.
//
// The package does not know who is master: it asks before each frame whether to go on. It speaks for IPv4 addresses only.
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
