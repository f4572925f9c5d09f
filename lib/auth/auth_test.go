package auth

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

var (
	lb1 = netip.MustParseAddr("192.168.1.250")
	lb2 = netip.MustParseAddr("192.168.1.251")
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func newKey(t testing.TB, secret string) Key {
	t.Helper()
	k, err := NewKey(unhex(t, secret))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

const (
	secret      = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
	otherSecret = "ff0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
)

// keepalived's own test vectors.
var goldens = []struct {
	name         string
	msg, trailer string
	src          netip.Addr
	seq          Sequence
}{
	{
		"IPv4", "3133c80100644402 c0000264",
		"01010000 6800000080000000 1b84bc4e8e43892dc6d98448f8ee2265",
		netip.MustParseAddr("198.51.100.10"), 0x6800000080000000,
	}, {
		"IPv6", "3133c8010064a2e9 fe800000000000000000000000000100",
		"01010000 6800000080000000 c8c56146ebfd66ee10ec4d8186461b78",
		netip.MustParseAddr("fe80::10"), 0x6800000080000000,
	},
}

func TestGoldenPackets(t *testing.T) {
	k := newKey(t, secret)
	for _, g := range goldens {
		t.Run(g.name, func(t *testing.T) {
			msg, trailer := unhex(t, g.msg), unhex(t, g.trailer)
			if seq, err := k.Verify(msg, trailer, g.src); err != nil || seq != g.seq {
				t.Errorf("verified %#x, %v, want %#x", seq, err, g.seq)
			}
			if got, want := k.Append(slices.Clone(msg), KeyID, g.src, g.seq), append(msg, trailer...); !bytes.Equal(got, want) {
				t.Errorf("signed\n%x, want\n%x", got, want)
			}
		})
	}
}

// Go's sockets may report an IPv4 sender as an IPv4-mapped IPv6 address.
func TestMappedSource(t *testing.T) {
	g := goldens[0]
	if _, err := newKey(t, secret).Verify(unhex(t, g.msg), unhex(t, g.trailer), netip.AddrFrom16(g.src.As16())); err != nil {
		t.Error(err)
	}
}

// Each byte of message, trailer and source, changed to each other value, is
// refused for the reason that belongs to it. Only the checksum is not covered:
// a relay may rewrite it, and package vrrp checks it.
func TestEveryFlippedByteIsRefused(t *testing.T) {
	k := newKey(t, secret)
	for _, g := range goldens {
		msg, trailer, ip := unhex(t, g.msg), unhex(t, g.trailer), g.src.AsSlice()
		verify := func() error {
			src, _ := netip.AddrFromSlice(ip)
			_, err := k.Verify(msg, trailer, src)
			return err
		}
		flip := func(what string, b []byte, want func(i int) error) {
			for i := range b {
				for x := 1; x <= 0xff; x++ {
					b[i] ^= byte(x)
					if err := verify(); err != want(i) {
						t.Errorf("%s: byte %d of %s becomes %#x: %v, want %v", g.name, i, what, b[i], err, want(i))
					}
					b[i] ^= byte(x)
				}
			}
		}
		flip("the message", msg, func(i int) error {
			if i == 6 || i == 7 {
				return nil
			}
			return ErrMAC
		})
		flip("the trailer", trailer, func(i int) error {
			switch i {
			case 0:
				return ErrType
			case 1:
				return ErrKeyID
			case 2, 3:
				return ErrReserved
			}
			return ErrMAC
		})
		flip("the source", ip, func(int) error { return ErrMAC })
		if err := verify(); err != nil {
			t.Errorf("%s: %v after all bytes are back", g.name, err)
		}
	}
}

func TestRefusals(t *testing.T) {
	k := newKey(t, secret)
	g := goldens[0]
	msg, trailer := unhex(t, g.msg), unhex(t, g.trailer)
	edit := func(i int, v byte) []byte {
		b := slices.Clone(trailer)
		b[i] = v
		return b
	}
	tests := []struct {
		name         string
		key          Key
		msg, trailer []byte
		src          netip.Addr
		want         error
		reason       string
	}{
		{"no trailer", k, msg, nil, g.src, ErrUnsigned, "unsigned"},
		{"an empty trailer", k, msg, trailer[:0], g.src, ErrUnsigned, "unsigned"},
		{"a trailer one byte short", k, msg, trailer[:27], g.src, ErrLength, "bad-trailer-length"},
		{"a trailer one byte long", k, msg, append(slices.Clone(trailer), 0), g.src, ErrLength, "bad-trailer-length"},
		{"a trailer of one byte", k, msg, trailer[:1], g.src, ErrLength, "bad-trailer-length"},
		{"no message", k, nil, trailer, g.src, ErrLength, "bad-trailer-length"},
		{"half a header", k, msg[:7], trailer, g.src, ErrLength, "bad-trailer-length"},
		{"a challenge of a later version", k, msg, edit(0, 2), g.src, ErrType, "bad-trailer-type"},
		{"key ID 0", k, msg, edit(1, 0), g.src, ErrKeyID, "bad-key-id"},
		{"key ID 2, well signed", k, msg, k.Append(slices.Clone(msg), 2, g.src, g.seq)[len(msg):], g.src, ErrKeyID, "bad-key-id"},
		{"reserved bytes", k, msg, edit(3, 1), g.src, ErrReserved, "bad-trailer-reserved"},
		{"another password", newKey(t, otherSecret), msg, trailer, g.src, ErrMAC, "bad-signature"},
		{"the zero key", Key{}, msg, trailer, g.src, ErrMAC, "bad-signature"},
		{"another source", k, msg, trailer, lb1, ErrMAC, "bad-signature"},
		{"no source", k, msg, trailer, netip.Addr{}, ErrMAC, "bad-signature"},
		{"an address that was added", k, append(slices.Clone(msg), 10, 0, 0, 1), trailer, g.src, ErrMAC, "bad-signature"},
		{"all zero", k, msg, append([]byte{1, 1}, make([]byte, 26)...), g.src, ErrMAC, "bad-signature"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			seq, err := tt.key.Verify(tt.msg, tt.trailer, tt.src)
			if err != tt.want || seq != 0 {
				t.Errorf("got %#x, %v, want %v", seq, err, tt.want)
			}
			if got := Reason(err); got != tt.reason {
				t.Errorf("reason is %q, want %q", got, tt.reason)
			}
		})
	}
}

// A trailer that is wrong in every way is refused for the first of them.
func TestOrderOfRefusals(t *testing.T) {
	k, g := newKey(t, secret), goldens[0]
	msg := unhex(t, g.msg)
	good := unhex(t, g.trailer)
	bad := bytes.Repeat([]byte{9}, TrailerLen)
	for _, step := range []struct {
		repaired int // bytes of the trailer, from its start
		want     error
	}{{0, ErrType}, {1, ErrKeyID}, {2, ErrReserved}, {4, ErrMAC}, {27, ErrMAC}, {28, nil}} {
		copy(bad, good[:step.repaired])
		if _, err := k.Verify(msg, bad, g.src); err != step.want {
			t.Errorf("%d bytes right: %v, want %v", step.repaired, err, step.want)
		}
	}
}

func TestReasonOfOthers(t *testing.T) {
	if got := Reason(nil); got != "" {
		t.Errorf("nil: %q", got)
	}
	if got := Reason(errors.New("network is unreachable")); got != "other" {
		t.Errorf("another error: %q", got)
	}
	if got := Reason(fmt.Errorf("from 10.0.0.1: %w", ErrReplay)); got != "replay" {
		t.Errorf("wrapped: %q", got)
	}
}

// While a password changes, both keys are tried: one does not disturb the other.
func TestTwoKeys(t *testing.T) {
	now, next := newKey(t, secret), newKey(t, otherSecret)
	msg := unhex(t, goldens[0].msg)
	for _, signer := range []Key{now, next, now, next} {
		b := signer.Append(slices.Clone(msg), KeyID, lb1, 42)
		_, errNow := now.Verify(b[:len(msg)], b[len(msg):], lb1)
		_, errNext := next.Verify(b[:len(msg)], b[len(msg):], lb1)
		if (errNow == nil) == (errNext == nil) {
			t.Errorf("current key says %v, next key says %v, want exactly one to fit", errNow, errNext)
		}
	}
}

func FuzzVerify(f *testing.F) {
	for _, g := range goldens {
		f.Add(unhex(f, g.msg), unhex(f, g.trailer), g.src.AsSlice(), uint64(g.seq))
	}
	f.Add([]byte{0x31}, make([]byte, TrailerLen), []byte(nil), uint64(0))

	k := newKey(f, secret)
	f.Fuzz(func(t *testing.T, msg, trailer, ip []byte, seq uint64) {
		src, _ := netip.AddrFromSlice(ip)
		got, err := k.Verify(msg, trailer, src)
		if r := Reason(err); r == "other" || (err == nil) != (r == "") {
			t.Fatalf("error without a reason: %v", err)
		}
		if len(msg) < vrrpHeaderLen {
			if err == nil {
				t.Fatalf("%d bytes of message were accepted", len(msg))
			}
			return
		}
		if err == nil {
			if b := k.Append(slices.Clone(msg), KeyID, src, got); !bytes.Equal(b[len(msg):], trailer) {
				t.Fatalf("verified %x, but signs %x", trailer, b[len(msg):])
			}
		}
		signed := k.Append(slices.Clone(msg), KeyID, src, Sequence(seq))
		if got, err := k.Verify(signed[:len(msg)], signed[len(msg):], src); err != nil || uint64(got) != seq {
			t.Fatalf("what we signed verifies as %#x, %v, want %#x", got, err, seq)
		}
	})
}
