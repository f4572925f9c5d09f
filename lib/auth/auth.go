// Package auth signs VRRP advertisements with the 28-byte trailer that
// keepalived 2.4.2 and later call auth_hmac (draft-cassen-vrrp-auth-hmac), and
// keeps the sequence numbers and marks that make a replayed one useless.
//
//	 0               1               2               3
//	+---------------+---------------+-------------------------------+
//	| type 1        | key ID        | reserved, 0                   |
//	+---------------+---------------+-------------------------------+
//	| sequence: 32-bit seconds, 16-bit fraction, 16-bit counter     |
//	|                                                               |
//	+---------------------------------------------------------------+
//	| HMAC-SHA256, the first 16 bytes                               |
//	+---------------------------------------------------------------+
//
// The HMAC covers the IP version, the VRRP version, the VRID, the source
// address, the message with its checksum read as zero, and the trailer up to
// the HMAC. It does not cover the checksum, which package vrrp checks, nor the
// destination, so that one signature serves every peer.
//
// Nothing here reads a clock, a file or a socket: the caller brings the time,
// stores the floor, the marks and the key cache, and decides what a refusal
// means.
package auth

import (
	"crypto/hmac"
	"encoding/binary"
	"errors"
	"net/netip"
)

const (
	// TrailerLen is the length of the trailer in bytes.
	TrailerLen = 28
	// KeyID is the key ID of all our keys. A password that is being changed is
	// told from the old one by trying both keys, not by a number that two
	// nodes would have to agree on.
	KeyID = 1

	typeHMACSHA256 = 1

	signedLen     = 12 // the part of the trailer that the HMAC covers
	macLen        = 16
	vrrpHeaderLen = 8
	checksumAt    = 6
)

// Why an advertisement is refused. Verify looks for the first six in this
// order; the last one is Marks'.
var (
	ErrUnsigned = errors.New("auth: advertisement is not signed")
	ErrLength   = errors.New("auth: message or trailer has the wrong length")
	ErrType     = errors.New("auth: unknown type of trailer, want 1 (HMAC-SHA256)")
	ErrKeyID    = errors.New("auth: unknown key ID, want 1")
	ErrReserved = errors.New("auth: reserved bytes of the trailer are not zero")
	ErrMAC      = errors.New("auth: wrong signature: another password, other node addresses, or a forgery")
	ErrReplay   = errors.New("auth: sequence is not above the last one of this sender")
)

var reasons = []struct {
	err   error
	label string
}{
	{ErrUnsigned, "unsigned"},
	{ErrLength, "bad-trailer-length"},
	{ErrType, "bad-trailer-type"},
	{ErrKeyID, "bad-key-id"},
	{ErrReserved, "bad-trailer-reserved"},
	{ErrMAC, "bad-signature"},
	{ErrReplay, "replay"},
}

// Reason is a short, stable label for an error of this package, for counters:
// "bad-signature". It is "" for nil and "other" for somebody else's error.
func Reason(err error) string {
	if err == nil {
		return ""
	}
	for _, r := range reasons {
		if errors.Is(err, r.err) {
			return r.label
		}
	}
	return "other"
}

// Append appends the trailer to the VRRP message msg, which must be complete,
// for a packet that leaves from src. It allocates only when msg has no room for
// TrailerLen more bytes. Append panics if k is the zero Key or msg is shorter
// than a VRRP header: sending such a packet unsigned would be worse.
func (k Key) Append(msg []byte, keyID uint8, src netip.Addr, seq Sequence) []byte {
	n := len(msg)
	b := append(msg, typeHMACSHA256, keyID, 0, 0)
	b = binary.BigEndian.AppendUint64(b, uint64(seq))
	return append(b, k.mac(b[:n], b[n:], src)...)
}

// Verify checks the trailer of the VRRP message msg that came from src, and
// returns its sequence. It does not know which sequences were seen before: ask
// Marks. The zero Key verifies nothing. The error is one of the package's
// sentinels.
func (k Key) Verify(msg, trailer []byte, src netip.Addr) (Sequence, error) {
	switch {
	case len(trailer) == 0:
		return 0, ErrUnsigned
	case len(msg) < vrrpHeaderLen || len(trailer) != TrailerLen:
		return 0, ErrLength
	case trailer[0] != typeHMACSHA256:
		return 0, ErrType
	case trailer[1] != KeyID:
		return 0, ErrKeyID
	case trailer[2] != 0 || trailer[3] != 0:
		return 0, ErrReserved
	case k.IsZero() || !hmac.Equal(trailer[signedLen:], k.mac(msg, trailer[:signedLen], src)):
		return 0, ErrMAC
	}
	return Sequence(binary.BigEndian.Uint64(trailer[4:])), nil
}

// mac computes the 16 bytes that end the trailer. They stay valid until the
// next call.
func (k Key) mac(msg, signed []byte, src netip.Addr) []byte {
	s, src := k.state, src.Unmap()
	s.pseudo = [20]byte{0: 6, 1: msg[0] >> 4, 2: msg[1]}
	if src.Is4() {
		s.pseudo[0] = 4
		ip := src.As4()
		copy(s.pseudo[4:], ip[:])
	} else {
		ip := src.As16()
		copy(s.pseudo[4:], ip[:])
	}

	s.hash.Reset()
	s.hash.Write(s.pseudo[:])
	s.hash.Write(msg[:checksumAt])
	s.hash.Write(zeros[:2])
	s.hash.Write(msg[checksumAt+2:])
	s.hash.Write(signed)
	s.hash.Write(zeros[:macLen])
	return s.hash.Sum(s.sum[:0])[:macLen]
}

// zeros stands for the checksum and for the HMAC itself.
var zeros [macLen]byte
