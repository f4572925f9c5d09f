// Package vrrp reads and writes the VRRPv3 advertisement (RFC 9568, before it
// RFC 5798) for IPv4 and IPv6. A message has addresses of one family, that of
// the packet which carries it.
//
// It knows bytes only. The TTL is the receiver's to check, the meaning of a
// packet is the election's, and the authentication trailer that may follow the
// addresses is handed on unread.
package vrrp

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"
)

const (
	version           = 3
	typeAdvertisement = 1
	protocol          = 112

	headerLen  = 8
	addrLen4   = 4
	addrLen6   = 16
	trailerLen = 28 // keepalived's auth_hmac; nothing else may follow the addresses

	// The header counts the interval in hundredths of a second, in 12 bits.
	centisecond  = 10 * time.Millisecond
	intervalMask = 0x0fff
	maxInterval  = intervalMask * centisecond
)

// Advertisement is the one message of VRRPv3, RFC 9568 §5.1.
type Advertisement struct {
	VRID     uint8         // Virtual Router ID, 1 to 255
	Priority uint8         // 255 is the address owner, 0 is an active router that leaves
	Interval time.Duration // Max Advertise Interval, 10 ms to 40.95 s in steps of 10 ms
	Addrs    []netip.Addr  // the virtual addresses, 1 to 255
}

// Checksum says what the checksum of an advertisement covers.
type Checksum uint8

const (
	// PseudoHeader covers the pseudo-header and the message. Over IPv4 RFC 5798
	// was built this way by everybody, and a default keepalived takes nothing
	// else. Over IPv6 it is the only form (RFC 9568 §5.2.8), and covers a trailer
	// too: Linux computes it, as for any protocol, over all that follows the header.
	PseudoHeader Checksum = iota
	// MessageOnly covers the message alone: RFC 9568 §5.2.8 over IPv4, and what
	// is inside of a UDP datagram.
	MessageOnly
)

func (c Checksum) String() string {
	switch c {
	case PseudoHeader:
		return "pseudo-header"
	case MessageOnly:
		return "message-only"
	}
	return fmt.Sprintf("Checksum(%d)", uint8(c))
}

// Unmarshal reads the message at the start of an IP payload that went from src
// to dst. It returns what follows the last address, either nothing or the 28
// bytes of an authentication trailer, and the form of checksum that fitted.
// The addresses are of src's family. Where dst is not, or src is the zero Addr,
// which stands for IPv4, only MessageOnly can fit.
//
// Addrs is overwritten in place, so that a reused Advertisement costs no
// allocation; trailer is part of payload. A refused message leaves a as it was.
// The error is one of the package's sentinels, see Reason.
func (a *Advertisement) Unmarshal(payload []byte, src, dst netip.Addr) (trailer []byte, form Checksum, err error) {
	if len(payload) < headerLen {
		return nil, 0, ErrShort
	}
	if payload[0]>>4 != version {
		return nil, 0, foreign(payload)
	}
	if payload[0]&0x0f != typeAdvertisement {
		return nil, 0, ErrType
	}
	count := int(payload[3])
	if count == 0 {
		return nil, 0, ErrCount
	}
	v6 := isIPv6(src)
	addrLen := addrLen4
	if v6 {
		addrLen = addrLen6
	}
	end := headerLen + count*addrLen
	switch rest := len(payload) - end; {
	case rest < 0:
		return nil, 0, ErrShort
	case rest != 0 && rest != trailerLen:
		return nil, 0, ErrLength
	}
	msg := payload[:end]
	form, ok := verifyChecksum(payload, msg, src, dst)
	if !ok {
		return nil, 0, ErrChecksum
	}
	vrid := msg[1]
	if vrid == 0 {
		return nil, 0, ErrVRID
	}
	// keepalived 2.2.7 believes an interval of 0 and then changes state with
	// every packet (RFC 9568, erratum 8301). The upper 4 bits are reserved.
	cs := binary.BigEndian.Uint16(msg[4:]) & intervalMask
	if cs == 0 {
		return nil, 0, ErrInterval
	}

	a.VRID, a.Priority = vrid, msg[2]
	a.Interval = time.Duration(cs) * centisecond
	a.Addrs = a.Addrs[:0]
	b := msg[headerLen:]
	if v6 {
		for ; len(b) > 0; b = b[addrLen6:] {
			a.Addrs = append(a.Addrs, netip.AddrFrom16([16]byte(b)))
		}
	}
	for ; len(b) > 0; b = b[addrLen4:] {
		a.Addrs = append(a.Addrs, netip.AddrFrom4([4]byte(b)))
	}
	if end < len(payload) {
		trailer = payload[end:]
	}
	return trailer, form, nil
}

// Append appends the message to b, with the checksum in the given form for a
// packet from src to dst; MessageOnly does not look at them. Each destination
// of a PseudoHeader message needs a copy of its own. Over IPv6 that form is for
// a message without a trailer: the kernel sums up again what is sent with one.
// The error wraps ErrVRID, ErrCount, ErrInterval or ErrFamily, and b comes back
// as it was.
func (a *Advertisement) Append(b []byte, src, dst netip.Addr, form Checksum) ([]byte, error) {
	if a.VRID == 0 {
		return b, fmt.Errorf("%w: 0", ErrVRID)
	}
	if n := len(a.Addrs); n < 1 || n > 255 {
		return b, fmt.Errorf("%w: %d", ErrCount, n)
	}
	if a.Interval < centisecond || a.Interval > maxInterval || a.Interval%centisecond != 0 {
		return b, fmt.Errorf("%w: %v", ErrInterval, a.Interval)
	}
	v6 := isIPv6(a.Addrs[0])
	for _, addr := range a.Addrs {
		if !isOf(v6, addr) {
			return b, fmt.Errorf("%w: virtual address %v", ErrFamily, addr)
		}
	}
	if form == PseudoHeader && !(isOf(v6, src) && isOf(v6, dst)) {
		return b, fmt.Errorf("%w: from %v to %v", ErrFamily, src, dst)
	}

	start := len(b)
	b = append(b, version<<4|typeAdvertisement, a.VRID, a.Priority, uint8(len(a.Addrs)))
	b = binary.BigEndian.AppendUint16(b, uint16(a.Interval/centisecond))
	b = append(b, 0, 0)
	for _, addr := range a.Addrs {
		if v6 {
			ip := addr.As16()
			b = append(b, ip[:]...)
		} else {
			ip := addr.As4()
			b = append(b, ip[:]...)
		}
	}
	msg := b[start:]
	acc := sum(msg)
	switch {
	case form == MessageOnly:
	case v6:
		acc += pseudoHeaderSum6(src, dst, len(msg))
	default:
		acc += pseudoHeaderSum4(src, dst, len(msg))
	}
	binary.BigEndian.PutUint16(msg[6:], ^fold(acc))
	return b, nil
}

// verifyChecksum tells which form of checksum the message carries, if any.
func verifyChecksum(payload, msg []byte, src, dst netip.Addr) (Checksum, bool) {
	acc := sum(msg)
	switch {
	case isIPv4(src) && isIPv4(dst):
		if fold(acc+pseudoHeaderSum4(src, dst, len(msg))) == 0xffff {
			return PseudoHeader, true
		}
	case isIPv6(src) && isIPv6(dst):
		if fold(acc+sum(payload[len(msg):])+pseudoHeaderSum6(src, dst, len(payload))) == 0xffff {
			return PseudoHeader, true
		}
	}
	return MessageOnly, fold(acc) == 0xffff
}

// pseudoHeaderSum4 is the sum over source, destination, a zero byte, the
// protocol and the length of the message.
func pseudoHeaderSum4(src, dst netip.Addr, length int) uint32 {
	s, d := src.As4(), dst.As4()
	return sum(s[:]) + sum(d[:]) + protocol + uint32(length)
}

// pseudoHeaderSum6 is that of RFC 8200 §8.1: the same, but for the addresses
// and more zero bytes.
func pseudoHeaderSum6(src, dst netip.Addr, length int) uint32 {
	s, d := src.As16(), dst.As16()
	return sum(s[:]) + sum(d[:]) + protocol + uint32(length)
}

// sum adds up the 16-bit words of b. Its length is even, and some 4000 at most
// here, which a uint32 holds without a carry.
func sum(b []byte) (acc uint32) {
	for ; len(b) >= 2; b = b[2:] {
		acc += uint32(binary.BigEndian.Uint16(b))
	}
	return acc
}

// fold brings the carries of a one's complement sum back into 16 bits.
func fold(acc uint32) uint16 {
	for acc > 0xffff {
		acc = acc>>16 + acc&0xffff
	}
	return uint16(acc)
}

// isIPv4 also takes the IPv4-mapped form, in which Go's sockets may report a
// sender.
func isIPv4(addr netip.Addr) bool { return addr.Is4() || addr.Is4In6() }

func isOf(v6 bool, addr netip.Addr) bool {
	if v6 {
		return isIPv6(addr)
	}
	return isIPv4(addr)
}

func isIPv6(addr netip.Addr) bool { return addr.Is6() && !addr.Is4In6() }
