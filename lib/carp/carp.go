// Package carp reads and writes the advertisement of CARP as ucarp 1.5.2 speaks
// it (ip_carp.h, carp.c), for IPv4 and one virtual address.
//
//	 0               1               2               3
//	+---------------+---------------+---------------+---------------+
//	| version 2, 1  | vhid          | advskew       | authlen 7     |
//	+---------------+---------------+---------------+---------------+
//	| pad 0         | advbase       | checksum                      |
//	+---------------+---------------+-------------------------------+
//	| counter, 64 bits                                              |
//	|                                                               |
//	+---------------------------------------------------------------+
//	| HMAC-SHA1, 20 bytes                                           |
//	|                              ...                              |
//	+---------------------------------------------------------------+
//
// The HMAC, keyed with the password itself, covers the first byte as two, the
// vhid, the virtual address and the counter. It covers neither advbase and
// advskew, by which CARP elects its master, nor the sender: whoever has captured
// one advertisement can change them. So this is a dialect for the time of an
// upgrade, and no protection.
//
// Nothing here reads a clock or a socket. The TTL, the destination and the
// sender are the caller's to check, what a packet means is the election's.
package carp

import (
	"crypto/hmac"
	"crypto/sha1"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"log/slog"
	"net/netip"
	"strings"
)

const (
	version           = 2
	typeAdvertisement = 1
	authLen           = 7 // the counter and the HMAC in words of 32 bits

	signedAt = 16
	// Len is the length of an advertisement in bytes.
	Len = signedAt + sha1.Size
)

// MaxPassword is the longest password that ucarp takes, in bytes.
const MaxPassword = 19

// Why an advertisement is refused. Unmarshal looks for them in this order.
var (
	ErrLength   = errors.New("carp: not 36 bytes")
	ErrVersion  = errors.New("carp: not version 2")
	ErrType     = errors.New("carp: not an advertisement")
	ErrAuthLen  = errors.New("carp: authentication is not 7 words long")
	ErrPad      = errors.New("carp: the pad byte is not 0")
	ErrVHID     = errors.New("carp: want a vhid of 1 to 255")
	ErrChecksum = errors.New("carp: wrong checksum")
	ErrMAC      = errors.New("carp: wrong digest: another password or virtual address, or a forgery")
	ErrRepeated = errors.New("carp: exact repetition of an earlier advertisement")
)

var reasons = []struct {
	err   error
	label string
}{
	{ErrLength, "bad-length"},
	{ErrVersion, "bad-version"},
	{ErrType, "bad-type"},
	{ErrAuthLen, "bad-authlen"},
	{ErrPad, "bad-pad"},
	{ErrVHID, "bad-vhid"},
	{ErrChecksum, "bad-checksum"},
	{ErrMAC, "carp-bad-digest"},
	{ErrRepeated, "carp-repeated"},
}

// Reason is a short, stable label for an error of this package, for counters:
// "carp-bad-digest". It is "" for nil and "other" for somebody else's error.
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

// Advertisement is the one message of CARP.
type Advertisement struct {
	VHID    uint8  // virtual host ID, 1 to 255
	Base    uint8  // advbase, in seconds
	Skew    uint8  // advskew, in 1/256 s
	Counter uint64 // what makes two digests differ; ucarp does not compare it
}

// Looks tells whether an IP payload is CARP's, right or wrong. VRRPv2 starts with
// the same byte; with a count of 7 addresses it would be 44 bytes long.
func Looks(payload []byte) bool {
	return len(payload) == Len && payload[0]>>4 == version && payload[3] == authLen
}

// Unmarshal reads an IP payload. It refuses more than ucarp does, which looks at
// neither type nor authlen nor pad and ignores what follows: nothing that ucarp
// sends differs in these. The digest is Key.Verify's. A refused message leaves a
// as it was. The error is one of the package's sentinels, see Reason.
func (a *Advertisement) Unmarshal(payload []byte) error {
	switch {
	case len(payload) != Len:
		return ErrLength
	case payload[0]>>4 != version:
		return ErrVersion
	case payload[0]&0x0f != typeAdvertisement:
		return ErrType
	case payload[3] != authLen:
		return ErrAuthLen
	case payload[4] != 0:
		return ErrPad
	case payload[1] == 0:
		return ErrVHID
	case sum(payload) != 0xffff:
		return ErrChecksum
	}
	*a = Advertisement{VHID: payload[1], Base: payload[5], Skew: payload[2], Counter: binary.BigEndian.Uint64(payload[8:])}
	return nil
}

// Key signs and verifies for one virtual address. It holds scratch space: a Key
// and its copies must not be used by two goroutines at once. A Key never shows
// what it holds when it is printed, logged or marshalled.
type Key struct {
	state *keyState
}

type keyState struct {
	hash hash.Hash // behind a pointer of its own, which fmt does not follow, see auth.Key
	addr [4]byte
	head [15]byte
	sum  [sha1.Size]byte
}

// CheckPassword tells why CARP cannot carry a password, or returns nil.
func CheckPassword(password string) error {
	switch {
	case password == "":
		return errors.New("empty, and CARP has no unsigned form")
	case len(password) > MaxPassword:
		return fmt.Errorf("longer than the %d bytes that CARP can carry", MaxPassword)
	case strings.Contains(password, "\x00"):
		return errors.New("has a NUL byte, at which it would end for ucarp")
	}
	return nil
}

// NewKey makes the key of one virtual address from the password. Both end up in
// the digest of each advertisement, so that a listener can test guesses at the
// password. The error is that of CheckPassword, or says that the address is none
// of IPv4.
func NewKey(password string, addr netip.Addr) (Key, error) {
	if err := CheckPassword(password); err != nil {
		return Key{}, fmt.Errorf("carp: the password is %w", err)
	}
	if addr = addr.Unmap(); !addr.Is4() {
		return Key{}, fmt.Errorf("carp: virtual address %v: want an IPv4 address", addr)
	}
	return Key{&keyState{hash: hmac.New(sha1.New, []byte(password)), addr: addr.As4()}}, nil
}

const hidden = "********"

// String hides the key.
func (k Key) String() string { return hidden }

// Format hides the key from every verb of package fmt.
func (k Key) Format(f fmt.State, _ rune) { io.WriteString(f, hidden) }

// LogValue hides the key from package log/slog.
func (k Key) LogValue() slog.Value { return slog.StringValue(hidden) }

// MarshalText hides the key from encoding/json and its like.
func (k Key) MarshalText() ([]byte, error) { return []byte(hidden), nil }

// Append appends the signed advertisement to b. It panics if k is the zero Key.
func (k Key) Append(b []byte, a Advertisement) []byte {
	start := len(b)
	b = append(b, version<<4|typeAdvertisement, a.VHID, a.Skew, authLen, 0, a.Base, 0, 0)
	b = binary.BigEndian.AppendUint64(b, a.Counter)
	b = append(b, k.digest(a.VHID, a.Counter)...)
	binary.BigEndian.PutUint16(b[start+6:], ^sum(b[start:]))
	return b
}

// Verify checks the digest of a message that Unmarshal has read. The error is
// ErrMAC; the zero Key verifies nothing. It does not know what was heard before:
// ask Memory.
func (k Key) Verify(payload []byte) error {
	if k.state == nil || len(payload) != Len ||
		!hmac.Equal(payload[signedAt:], k.digest(payload[1], binary.BigEndian.Uint64(payload[8:]))) {
		return ErrMAC
	}
	return nil
}

// digest stays valid until the next call.
func (k Key) digest(vhid uint8, counter uint64) []byte {
	s := k.state
	h := append(s.head[:0], version, typeAdvertisement, vhid)
	h = append(h, s.addr[:]...)
	h = binary.BigEndian.AppendUint64(h, counter)
	s.hash.Reset()
	s.hash.Write(h)
	return s.hash.Sum(s.sum[:0])
}

// sum is the one's complement sum over a message (RFC 1071).
func sum(b []byte) uint16 {
	var acc uint32
	for ; len(b) >= 2; b = b[2:] {
		acc += uint32(binary.BigEndian.Uint16(b))
	}
	for acc > 0xffff {
		acc = acc>>16 + acc&0xffff
	}
	return uint16(acc)
}

// remembered is how many advertisements a Memory holds: those of 18 hours at one
// a second.
const remembered = 1 << 16

// digestKept is how much of a digest tells it from another.
const digestKept = 8

// Memory knows which verified advertisements were heard before, whoever sent
// them. ucarp counts from where the last one that it heard ended, and backwards
// if it must, so that no counter can be too old; but it never says the same thing
// twice. The zero value is ready to use. A Memory is not safe for concurrent use.
type Memory struct {
	seen map[[digestKept]byte]struct{}
	ring [][digestKept]byte // in the order of arrival; next is the oldest once it is full
	next int
}

// Note returns ErrRepeated if a message with this digest was noted before, and
// notes it otherwise. It is only for what Verify has accepted: else anybody could
// make it forget. That advbase and advskew differ does not make it another.
func (m *Memory) Note(payload []byte) error {
	id := [digestKept]byte(payload[signedAt:])
	if _, ok := m.seen[id]; ok {
		return ErrRepeated
	}
	if m.seen == nil {
		m.seen = map[[digestKept]byte]struct{}{}
	}
	if len(m.ring) < remembered {
		m.ring = append(m.ring, id)
	} else {
		delete(m.seen, m.ring[m.next])
		m.ring[m.next] = id
		m.next = (m.next + 1) % remembered
	}
	m.seen[id] = struct{}{}
	return nil
}
