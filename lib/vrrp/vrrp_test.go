package vrrp

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

var (
	src   = netip.MustParseAddr("10.0.1.5")
	group = netip.MustParseAddr("224.0.0.18")
)

// signed6 is keepalived's own vector: over IPv6 the checksum covers the trailer.
var signed6 = golden{
	packet: "31 33 c8 01 0064 a2e9 fe800000000000000000000000000100",
	src:    netip.MustParseAddr("fe80::10"), dst: netip.MustParseAddr("fe80::20"), form: PseudoHeader,
	trailer: "01010000 6800000080000000 c8c56146ebfd66ee10ec4d8186461b78",
	adv:     Advertisement{VRID: 51, Priority: 200, Interval: time.Second, Addrs: addrs("fe80::100")},
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func addrs(ss ...string) (list []netip.Addr) {
	for _, s := range ss {
		list = append(list, netip.MustParseAddr(s))
	}
	return list
}

type golden struct {
	name     string
	packet   string
	src, dst netip.Addr
	form     Checksum
	trailer  string
	adv      Advertisement
}

var goldens = []golden{
	{
		name:   "keepalived 2.2.7",
		packet: "31 2a 64 01 0064 7478 0a000064",
		src:    src, dst: group, form: PseudoHeader,
		adv: Advertisement{VRID: 42, Priority: 100, Interval: time.Second, Addrs: addrs("10.0.0.100")},
	}, {
		name:   "checksum of RFC 9568",
		packet: "31 2a 64 01 0064 600c 0a000064",
		src:    src, dst: group, form: MessageOnly,
		adv: Advertisement{VRID: 42, Priority: 100, Interval: time.Second, Addrs: addrs("10.0.0.100")},
	}, {
		name:   "priority 0",
		packet: "31 2a 00 01 0064 d878 0a000064",
		src:    src, dst: group, form: PseudoHeader,
		adv: Advertisement{VRID: 42, Priority: 0, Interval: time.Second, Addrs: addrs("10.0.0.100")},
	}, {
		name:   "signed, keepalived's own vector",
		packet: "31 33 c8 01 0064 4402 c0000264",
		src:    netip.MustParseAddr("198.51.100.10"), dst: group, form: MessageOnly,
		trailer: "01010000 6800000080000000 1b84bc4e8e43892dc6d98448f8ee2265",
		adv:     Advertisement{VRID: 51, Priority: 200, Interval: time.Second, Addrs: addrs("192.0.2.100")},
	}, {
		name:   "two addresses, keepalived 2.2.7",
		packet: "31 33 64 02 0064 6a21 0a4d0064 0a4d0065",
		src:    netip.MustParseAddr("10.77.0.2"), dst: group, form: PseudoHeader,
		adv: Advertisement{VRID: 51, Priority: 100, Interval: time.Second, Addrs: addrs("10.77.0.100", "10.77.0.101")},
	}, {
		name:   "IPv6, keepalived 2.2.7",
		packet: "31 2a c8 02 000a 9bef fe800000000000000000000000000042 20010db8000000000000000000000100",
		src:    netip.MustParseAddr("fe80::ccb1:9bff:fe77:d805"), dst: netip.MustParseAddr("ff02::12"), form: PseudoHeader,
		adv: Advertisement{VRID: 42, Priority: 200, Interval: 100 * time.Millisecond, Addrs: addrs("fe80::42", "2001:db8::100")},
	}, {
		name:   "IPv6 in UDP",
		packet: "31 2a 64 01 0064 3bb7 20010db8000000000000000000000100",
		src:    netip.MustParseAddr("2001:db8::1"), dst: netip.MustParseAddr("2001:db8::2"), form: MessageOnly,
		adv: Advertisement{VRID: 42, Priority: 100, Interval: time.Second, Addrs: addrs("2001:db8::100")},
	}, {
		name:   "every field at its maximum",
		packet: "31 ff ff 01 0fff beff ffffffff",
		src:    src, dst: group, form: MessageOnly,
		adv: Advertisement{VRID: 255, Priority: 255, Interval: 40950 * time.Millisecond, Addrs: addrs("255.255.255.255")},
	},
}

func TestGoldenPackets(t *testing.T) {
	var adv Advertisement // reused, as a receiver does
	for _, g := range goldens {
		t.Run(g.name, func(t *testing.T) {
			msg, trailer := unhex(t, g.packet), unhex(t, g.trailer)
			payload := slices.Concat(msg, trailer)

			rest, form, err := adv.Unmarshal(payload, g.src, g.dst)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(adv, g.adv) {
				t.Errorf("read %+v, want %+v", adv, g.adv)
			}
			if form != g.form {
				t.Errorf("checksum is %v, want %v", form, g.form)
			}
			if !bytes.Equal(rest, trailer) || (rest == nil) != (len(trailer) == 0) {
				t.Errorf("trailer is %x, want %x", rest, trailer)
			}

			got, err := g.adv.Append([]byte("before"), g.src, g.dst, g.form)
			if err != nil {
				t.Fatal(err)
			}
			if want := append([]byte("before"), msg...); !bytes.Equal(got, want) {
				t.Errorf("wrote %x, want %x", got, want)
			}
		})
	}
}

func TestChecksumOfIPv6CoversTheTrailer(t *testing.T) {
	msg, trailer := unhex(t, signed6.packet), unhex(t, signed6.trailer)
	var adv Advertisement
	rest, form, err := adv.Unmarshal(slices.Concat(msg, trailer), signed6.src, signed6.dst)
	if err != nil || form != PseudoHeader || !bytes.Equal(rest, trailer) || !reflect.DeepEqual(adv, signed6.adv) {
		t.Errorf("read %+v, %v, trailer %x, %v", adv, form, rest, err)
	}
	if _, _, err := adv.Unmarshal(msg, signed6.src, signed6.dst); err != ErrChecksum {
		t.Errorf("without its trailer: %v, want %v", err, ErrChecksum)
	}
	trailer[20] ^= 1
	if _, _, err := adv.Unmarshal(slices.Concat(msg, trailer), signed6.src, signed6.dst); err != ErrChecksum {
		t.Errorf("with a flipped bit in the trailer: %v, want %v", err, ErrChecksum)
	}
	// The kernel corrects the checksum when it sends; everything else is ours.
	got, err := signed6.adv.Append(nil, signed6.src, signed6.dst, PseudoHeader)
	if copy(got[6:8], msg[6:8]); err != nil || !bytes.Equal(got, msg) {
		t.Errorf("wrote %x, %v, want %x", got, err, msg)
	}
}

// In unicast the destination is part of the sum: a copy for one peer is no copy
// for another.
func TestChecksumCoversTheDestination(t *testing.T) {
	adv := goldens[0].adv
	dst := netip.MustParseAddr("10.0.1.6")
	msg, err := adv.Append(nil, src, dst, PseudoHeader)
	if err != nil {
		t.Fatal(err)
	}
	var got Advertisement
	if _, form, err := got.Unmarshal(msg, src, dst); err != nil || form != PseudoHeader {
		t.Errorf("for the peer it was made for: %v, %v", form, err)
	}
	if _, _, err := got.Unmarshal(msg, src, group); !errors.Is(err, ErrChecksum) {
		t.Errorf("for another destination: %v, want %v", err, ErrChecksum)
	}
}

// Go's sockets may report an IPv4 sender as an IPv4-mapped IPv6 address.
func TestMappedAddresses(t *testing.T) {
	var adv Advertisement
	mapped := func(a netip.Addr) netip.Addr { return netip.AddrFrom16(a.As16()) }
	if _, form, err := adv.Unmarshal(unhex(t, goldens[0].packet), mapped(src), mapped(group)); err != nil || form != PseudoHeader {
		t.Errorf("%v, %v", form, err)
	}
}

func TestWithoutAddressesOnlyMessageOnlyFits(t *testing.T) {
	var adv Advertisement
	if _, _, err := adv.Unmarshal(unhex(t, goldens[0].packet), netip.Addr{}, group); !errors.Is(err, ErrChecksum) {
		t.Errorf("pseudo-header: %v, want %v", err, ErrChecksum)
	}
	if _, form, err := adv.Unmarshal(unhex(t, goldens[1].packet), netip.Addr{}, netip.Addr{}); err != nil || form != MessageOnly {
		t.Errorf("message-only: %v, %v", form, err)
	}
}

func TestReservedBitsAreIgnored(t *testing.T) {
	for _, form := range []Checksum{PseudoHeader, MessageOnly} {
		msg, err := goldens[0].adv.Append(nil, src, group, form)
		if err != nil {
			t.Fatal(err)
		}
		msg[4] |= 0xf0
		setChecksum(msg, form)
		var adv Advertisement
		_, got, err := adv.Unmarshal(msg, src, group)
		if err != nil || got != form || !reflect.DeepEqual(adv, goldens[0].adv) {
			t.Errorf("%v: read %+v, %v, %v", form, adv, got, err)
		}
	}
}

// minusZero has a checksum of 0xffff where we would write 0: the other zero of
// one's complement, and as right.
const minusZero = "31 01 01 01 000a ffff cdf30000"

func TestMinusZeroIsAChecksum(t *testing.T) {
	var adv Advertisement
	if _, form, err := adv.Unmarshal(unhex(t, minusZero), src, group); err != nil || form != MessageOnly {
		t.Errorf("%v, %v", form, err)
	}
}

// setChecksum repairs the checksum of a message from src to group.
func setChecksum(msg []byte, form Checksum) {
	msg[6], msg[7] = 0, 0
	acc := sum(msg)
	if form == PseudoHeader {
		acc += pseudoHeaderSum4(src, group, len(msg))
	}
	binary.BigEndian.PutUint16(msg[6:], ^fold(acc))
}

func TestRefusals(t *testing.T) {
	good := "312a6401006474780a000064"
	// Edits of the good packet, with a checksum that is right for it.
	edit := func(f func(b []byte)) []byte {
		b := unhex(t, good)
		f(b)
		setChecksum(b, PseudoHeader)
		return b
	}
	tests := []struct {
		name    string
		payload []byte
		want    error
		reason  string
	}{
		{"nothing", nil, ErrShort, "short"},
		{"one byte short of a header", unhex(t, good[:14]), ErrShort, "short"},
		{"a header alone", unhex(t, good[:16]), ErrShort, "short"},
		{"one byte short of its address", unhex(t, good[:22]), ErrShort, "short"},
		{"counts more addresses than it has", edit(func(b []byte) { b[3] = 255 }), ErrShort, "short"},
		{"version 4", edit(func(b []byte) { b[0] = 0x41 }), ErrVersion, "bad-version"},
		{"version 0", edit(func(b []byte) { b[0] = 0x01 }), ErrVersion, "bad-version"},
		{"VRRPv2, one address", unhex(t, "212a640100010000 0a000064 0000000000000000"), ErrVRRPv2, "vrrpv2"},
		{"VRRPv2, as long as CARP", unhex(t, "212a640500010000"+strings.Repeat("0a000064", 5)+"0000000000000000"), ErrVRRPv2, "vrrpv2"},
		{"VRRPv2, seven addresses", unhex(t, "212a640700010000"+strings.Repeat("0a000064", 7)+"0000000000000000"), ErrVRRPv2, "vrrpv2"},
		{"CARP from ucarp", unhex(t, "212a00070001a30b8c12381cb39f886493986f9244f55695756c6594ef05e4c37b1d72f1"), ErrCARP, "carp"},
		{"CARP that leaves", unhex(t, "212aff0700fff6f60000000000000002741a44efd3c399a7f6e9388b560c0abd3424fcfd"), ErrCARP, "carp"},
		{"type 2", edit(func(b []byte) { b[0] = 0x32 }), ErrType, "bad-type"},
		{"no addresses", edit(func(b []byte) { b[3] = 0 }), ErrCount, "bad-count"},
		{"one address more than it counts", unhex(t, good+"0a000065"), ErrLength, "bad-length"},
		{"padding of Ethernet", unhex(t, good+strings.Repeat("00", 14)), ErrLength, "bad-length"},
		{"VRRPv2's authentication data", unhex(t, good+strings.Repeat("00", 8)), ErrLength, "bad-length"},
		{"a trailer one byte short", unhex(t, good+strings.Repeat("00", 27)), ErrLength, "bad-length"},
		{"a trailer one byte long", unhex(t, good+strings.Repeat("00", 29)), ErrLength, "bad-length"},
		{"IPv6 addresses", unhex(t, "312ac802000a9beffe80000000000000000000000000004220010db8000000000000000000000100"), ErrLength, "bad-length"},
		{"checksum 0", unhex(t, "312a6401006400000a000064"), ErrChecksum, "bad-checksum"},
		{"checksum off by one", unhex(t, "312a6401006474790a000064"), ErrChecksum, "bad-checksum"},
		{"VRID 0", edit(func(b []byte) { b[1] = 0 }), ErrVRID, "bad-vrid"},
		{"interval 0", edit(func(b []byte) { b[4], b[5] = 0, 0 }), ErrInterval, "bad-interval"},
		{"interval 0 behind reserved bits", edit(func(b []byte) { b[4], b[5] = 0xf0, 0 }), ErrInterval, "bad-interval"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := Advertisement{VRID: 7, Priority: 8, Interval: time.Second, Addrs: addrs("192.0.2.7")}
			adv := before
			adv.Addrs = slices.Clone(before.Addrs)
			trailer, _, err := adv.Unmarshal(tt.payload, src, group)
			if err != tt.want {
				t.Fatalf("error is %v, want %v", err, tt.want)
			}
			if got := Reason(err); got != tt.reason {
				t.Errorf("reason is %q, want %q", got, tt.reason)
			}
			if trailer != nil || !reflect.DeepEqual(adv, before) {
				t.Errorf("left %+v and trailer %x behind", adv, trailer)
			}
		})
	}
}

// A message that is wrong in every way is refused for the first of them.
func TestOrderOfRefusals(t *testing.T) {
	b := unhex(t, "42 00 64 00 0000 dead 0a000064 00")
	for _, step := range []struct {
		repair func()
		want   error
	}{
		{func() {}, ErrVersion},
		{func() { b[0] = 0x32 }, ErrType},
		{func() { b[0] = 0x31 }, ErrCount},
		{func() { b[3] = 1 }, ErrLength},
		{func() { b = b[:12] }, ErrChecksum},
		{func() { setChecksum(b, PseudoHeader) }, ErrVRID},
		{func() { b[1] = 42; setChecksum(b, PseudoHeader) }, ErrInterval},
		{func() { b[5] = 100; setChecksum(b, PseudoHeader) }, nil},
	} {
		step.repair()
		var adv Advertisement
		if _, _, err := adv.Unmarshal(b, src, group); err != step.want {
			t.Errorf("%x: %v, want %v", b, err, step.want)
		}
	}
}

// A VRRPv2 router and ucarp are told apart, yet both are the wrong version.
func TestNeighboursAreNamed(t *testing.T) {
	for _, tt := range []struct {
		err  error
		name string
	}{{ErrVRRPv2, "VRRPv2"}, {ErrCARP, "CARP"}} {
		if !errors.Is(tt.err, ErrVersion) || !strings.Contains(tt.err.Error(), tt.name) {
			t.Errorf("%q: want it to wrap ErrVersion and say %s", tt.err, tt.name)
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
	if got := Reason(fmt.Errorf("from 10.0.0.1: %w", ErrCARP)); got != "carp" {
		t.Errorf("wrapped: %q", got)
	}
}

// One flipped byte never goes unnoticed, whichever form the sender used.
func TestEveryFlippedByteIsRefused(t *testing.T) {
	for _, form := range []Checksum{PseudoHeader, MessageOnly} {
		good, err := goldens[4].adv.Append(nil, src, group, form)
		if err != nil {
			t.Fatal(err)
		}
		for i := range good {
			for x := 1; x <= 0xff; x++ {
				bad := slices.Clone(good)
				bad[i] ^= byte(x)
				var adv Advertisement
				if _, _, err := adv.Unmarshal(bad, src, group); err == nil {
					t.Errorf("%v: byte %d from %#x to %#x was accepted", form, i, good[i], bad[i])
				}
			}
		}
	}
}

func TestAppendRefuses(t *testing.T) {
	v6 := netip.MustParseAddr("fe80::1")
	tests := []struct {
		name     string
		edit     func(a *Advertisement)
		src, dst netip.Addr
		want     error
		says     string
	}{
		{"VRID 0", func(a *Advertisement) { a.VRID = 0 }, src, group, ErrVRID, "0"},
		{"no address", func(a *Advertisement) { a.Addrs = nil }, src, group, ErrCount, "0"},
		{"256 addresses", func(a *Advertisement) { a.Addrs = slices.Repeat(a.Addrs, 256) }, src, group, ErrCount, "256"},
		{"interval 0", func(a *Advertisement) { a.Interval = 0 }, src, group, ErrInterval, "0s"},
		{"5 ms", func(a *Advertisement) { a.Interval = 5 * time.Millisecond }, src, group, ErrInterval, "5ms"},
		{"15 ms", func(a *Advertisement) { a.Interval = 15 * time.Millisecond }, src, group, ErrInterval, "15ms"},
		{"40.96 s", func(a *Advertisement) { a.Interval = 40960 * time.Millisecond }, src, group, ErrInterval, "40.96s"},
		{"IPv6 address from IPv4", func(a *Advertisement) { a.Addrs = []netip.Addr{v6} }, src, group, ErrFamily, "10.0.1.5"},
		{"both families", func(a *Advertisement) { a.Addrs = append(slices.Clone(a.Addrs), v6) }, src, group, ErrFamily, "fe80::1"},
		{"both families, IPv6 first", func(a *Advertisement) { a.Addrs = []netip.Addr{v6, src} }, v6, v6, ErrFamily, "10.0.1.5"},
		{"no address at all", func(a *Advertisement) { a.Addrs = make([]netip.Addr, 1) }, src, group, ErrFamily, "invalid"},
		{"IPv6 source", func(*Advertisement) {}, v6, group, ErrFamily, "fe80::1"},
		{"no destination", func(*Advertisement) {}, src, netip.Addr{}, ErrFamily, "invalid"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			adv := goldens[0].adv
			tt.edit(&adv)
			b, err := adv.Append([]byte("before"), tt.src, tt.dst, PseudoHeader)
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error is %v, want %v with %q", err, tt.want, tt.says)
			}
			if string(b) != "before" {
				t.Errorf("buffer is %q", b)
			}
		})
	}
	if _, err := goldens[0].adv.Append(nil, v6, netip.Addr{}, MessageOnly); err != nil {
		t.Errorf("message-only does not need source and destination: %v", err)
	}
}

func TestMostAddresses(t *testing.T) {
	want := Advertisement{VRID: 1, Priority: 1, Interval: 10 * time.Millisecond}
	for i := range 255 {
		want.Addrs = append(want.Addrs, netip.AddrFrom4([4]byte{255, 255, 255, byte(i)}))
	}
	for _, form := range []Checksum{PseudoHeader, MessageOnly} {
		b, err := want.Append(nil, src, group, form)
		if err != nil {
			t.Fatal(err)
		}
		var got Advertisement
		if _, f, err := got.Unmarshal(b, src, group); err != nil || f != form || !reflect.DeepEqual(got, want) {
			t.Errorf("%v: %v, %v", form, f, err)
		}
	}
}

func TestNothingIsAllocated(t *testing.T) {
	payload := append(unhex(t, goldens[4].packet), make([]byte, trailerLen)...)
	payload6 := append(unhex(t, signed6.packet), unhex(t, signed6.trailer)...)
	carp := unhex(t, "212a00070001a30b8c12381cb39f886493986f9244f55695756c6594ef05e4c37b1d72f1")
	var adv Advertisement
	buf := make([]byte, 0, 64)
	for name, f := range map[string]func() error{
		"Unmarshal": func() error { _, _, err := adv.Unmarshal(payload, goldens[4].src, group); return err },
		"Append":    func() error { _, err := goldens[4].adv.Append(buf, src, group, PseudoHeader); return err },
		"Unmarshal of IPv6": func() error {
			_, _, err := adv.Unmarshal(payload6, signed6.src, signed6.dst)
			return err
		},
		"Append of IPv6": func() error {
			_, err := signed6.adv.Append(buf, signed6.src, signed6.dst, PseudoHeader)
			return err
		},
		"a refusal": func() error {
			if _, _, err := adv.Unmarshal(carp, src, group); Reason(err) != "carp" {
				return fmt.Errorf("%v, want %v", err, ErrCARP)
			}
			return nil
		},
	} {
		if err := f(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if n := testing.AllocsPerRun(100, func() { f() }); n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
}

func FuzzUnmarshal(f *testing.F) {
	for _, g := range append(slices.Clone(goldens), signed6) {
		f.Add(append(unhex(f, g.packet), unhex(f, g.trailer)...), g.src.AsSlice(), g.dst.AsSlice())
	}
	// 7 addresses that are not there; reserved bits; a checksum of minus zero.
	f.Add(unhex(f, "212a00070001a30b8c12381cb39f886493986f9244f55695756c6594ef05e4c37b1d72f1"), src.AsSlice(), group.AsSlice())
	f.Add(unhex(f, "312a6401f064700b0a000064"), src.AsSlice(), group.AsSlice())
	f.Add(unhex(f, minusZero), src.AsSlice(), group.AsSlice())

	f.Fuzz(func(t *testing.T, payload, s, d []byte) {
		src, _ := netip.AddrFromSlice(s)
		dst, _ := netip.AddrFromSlice(d)
		var adv Advertisement
		trailer, form, err := adv.Unmarshal(payload, src, dst)
		if err != nil {
			if r := Reason(err); r == "" || r == "other" {
				t.Fatalf("error without a reason: %v", err)
			}
			if !reflect.DeepEqual(adv, Advertisement{}) {
				t.Fatalf("refused, but left %+v", adv)
			}
			return
		}
		msg := payload[:len(payload)-len(trailer)]
		got, err := adv.Append(nil, src, dst, form)
		if err != nil {
			t.Fatalf("parsed %+v does not marshal: %v", adv, err)
		}
		if isIPv6(src) && form == PseudoHeader && len(trailer) > 0 {
			if msg[4]&0xf0 != 0 {
				return
			}
			copy(got[6:8], msg[6:8]) // the kernel's
			got = append(got, trailer...)
			msg = payload
		}
		// Reserved bits are not kept, and of the two zeros of one's complement
		// only one is written.
		same := slices.Clone(msg)
		if same[4]&0xf0 != 0 || binary.BigEndian.Uint16(same[6:]) == 0xffff {
			same[4] &= 0x0f
			copy(same[6:8], got[6:8])
		}
		if !bytes.Equal(got, same) {
			t.Fatalf("%x\nmarshals to\n%x, %v", msg, got, form)
		}
		var again Advertisement
		if _, _, err := again.Unmarshal(got, src, dst); err != nil || !reflect.DeepEqual(again, adv) {
			t.Fatalf("%+v\ncomes back as\n%+v, %v", adv, again, err)
		}
	})
}

func BenchmarkUnmarshal(b *testing.B) {
	payload := unhex(b, goldens[0].packet)
	var adv Advertisement
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := adv.Unmarshal(payload, src, group); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppend(b *testing.B) {
	buf := make([]byte, 0, 64)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := goldens[0].adv.Append(buf, src, group, PseudoHeader); err != nil {
			b.Fatal(err)
		}
	}
}
