package carp

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
)

func key(t testing.TB, password, addr string) Key {
	t.Helper()
	k, err := NewKey(password, netip.MustParseAddr(addr))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// golden are advertisements that ucarp sent, or that were computed by its rules.
var golden = []struct {
	name, password, addr string
	adv                  Advertisement
	packet               string
}{
	{"captured from ucarp", "secret", "10.0.0.100", Advertisement{VHID: 42, Base: 1, Counter: 0x8c12381cb39f8864},
		"212a00070001a30b8c12381cb39f886493986f9244f55695756c6594ef05e4c37b1d72f1"},
	{"counter 1", "secret", "10.0.0.100", Advertisement{VHID: 42, Base: 1, Counter: 1},
		"212a0007000180340000000000000001f809cae0eaa08edb948b44c29e6dd47a311ba4df"},
	{"advskew 100", "secret", "10.0.0.100", Advertisement{VHID: 42, Base: 1, Skew: 100, Counter: 0x0102030405060708},
		"212a64070001ed96010203040506070883b8ad7758fa4650f580dba9bc41a848252151d1"},
	{"goodbye", "secret", "10.0.0.100", Advertisement{VHID: 42, Base: 255, Skew: 255, Counter: 2},
		"212aff0700fff6f60000000000000002741a44efd3c399a7f6e9388b560c0abd3424fcfd"},
	{"longest password", "0123456789abcdefghi", "192.0.2.1", Advertisement{VHID: 7, Base: 1, Counter: 1},
		"21070007000150820000000000000001be74781c86268ef0ba8a2556f20ee89f9b99ec9b"},
}

func TestGolden(t *testing.T) {
	for _, g := range golden {
		t.Run(g.name, func(t *testing.T) {
			k, packet := key(t, g.password, g.addr), unhex(t, g.packet)
			if got := k.Append([]byte("before"), g.adv); !bytes.Equal(got, append([]byte("before"), packet...)) {
				t.Errorf("wrote %x, want %x", got[6:], packet)
			}
			var adv Advertisement
			if err := adv.Unmarshal(packet); err != nil || adv != g.adv {
				t.Errorf("read %+v, %v, want %+v", adv, err, g.adv)
			}
			if err := k.Verify(packet); err != nil {
				t.Error(err)
			}
			for what, other := range map[string]Key{
				"password": key(t, g.password[1:], g.addr), "virtual address": key(t, g.password, "10.0.0.101"), "zero key": {},
			} {
				if err := other.Verify(packet); err != ErrMAC {
					t.Errorf("another %s: %v, want %v", what, err, ErrMAC)
				}
			}
			if !Looks(packet) {
				t.Error("does not look like CARP")
			}
		})
	}
}

// read is what a receiver does before it believes a packet.
func read(k Key, packet []byte) error {
	var adv Advertisement
	if err := adv.Unmarshal(packet); err != nil {
		return err
	}
	return k.Verify(packet)
}

func TestEachMutatedByteIsRefused(t *testing.T) {
	for _, g := range golden {
		k := key(t, g.password, g.addr)
		for i := range Len {
			for flip := 1; flip < 256; flip++ {
				packet := unhex(t, g.packet)
				packet[i] ^= byte(flip)
				if read(k, packet) == nil {
					t.Errorf("%s: byte %d with %02x flipped is accepted", g.name, i, flip)
				}
			}
		}
	}
}

// What CARP's digest leaves open is advbase and advskew alone: everything else is
// refused also with a checksum that fits.
func TestMutationsWithARightChecksum(t *testing.T) {
	g := golden[0]
	k := key(t, g.password, g.addr)
	want := map[int]error{0: ErrVersion, 1: ErrMAC, 2: nil, 3: ErrAuthLen, 4: ErrPad, 5: nil}
	for i := range Len {
		if i == 6 || i == 7 {
			continue
		}
		packet := unhex(t, g.packet)
		packet[i] ^= 0x41
		binary.BigEndian.PutUint16(packet[6:], 0)
		binary.BigEndian.PutUint16(packet[6:], ^sum(packet))
		if i >= 8 {
			want[i] = ErrMAC
		}
		if err := read(k, packet); err != want[i] {
			t.Errorf("byte %d: %v, want %v", i, err, want[i])
		}
	}
}

func TestRefusals(t *testing.T) {
	valid := func() []byte { return unhex(t, golden[0].packet) }
	set := func(i int, v byte) []byte { b := valid(); b[i] = v; return b }
	for _, c := range []struct {
		name   string
		packet []byte
		want   error
	}{
		{"nothing", nil, ErrLength},
		{"cut short", valid()[:35], ErrLength},
		{"one byte more", append(valid(), 0), ErrLength},
		{"VRRPv3 of seven addresses", append([]byte{0x31, 42, 100, 7}, make([]byte, 32)...), ErrVersion},
		{"another type", set(0, 0x22), ErrType},
		{"authlen", set(3, 8), ErrAuthLen},
		{"demotion counter of OpenBSD", set(4, 1), ErrPad},
		{"vhid 0", set(1, 0), ErrVHID},
		{"checksum", set(6, 0), ErrChecksum},
	} {
		adv := Advertisement{VHID: 9}
		if err := adv.Unmarshal(c.packet); err != c.want {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		if adv != (Advertisement{VHID: 9}) {
			t.Errorf("%s: a refused message was read as %+v", c.name, adv)
		}
		if Reason(c.want) == "other" {
			t.Errorf("%s: no label", c.name)
		}
	}
	if Looks(append(valid(), make([]byte, 8)...)) || Looks(nil) {
		t.Error("VRRPv2 with seven addresses looks like CARP")
	}
	if Reason(nil) != "" || Reason(errors.New("x")) != "other" {
		t.Error("labels of what is not ours")
	}
}

func TestPassword(t *testing.T) {
	for _, c := range []struct{ password, want string }{
		{"s", ""}, {"0123456789abcdefghi", ""}, {"äöüäöüäöü", ""},
		{"", "no unsigned form"},
		{"0123456789abcdefghij", "longer than the 19 bytes"},
		{"äöüäöüäöüä", "longer than the 19 bytes"},
		{"a\x00b", "NUL"},
	} {
		_, err := NewKey(c.password, netip.MustParseAddr("192.0.2.1"))
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q", c.password, err, c.want)
		}
		if err != nil && c.password != "" && strings.Contains(err.Error(), c.password) {
			t.Errorf("%v: shows the password", err)
		}
	}
	if _, err := NewKey("secret", netip.MustParseAddr("2001:db8::1")); err == nil {
		t.Error("IPv6 is accepted")
	}
	if k := key(t, "secret", "::ffff:10.0.0.100"); k.Verify(unhex(t, golden[0].packet)) != nil {
		t.Error("an IPv4-mapped address is another one")
	}
}

func TestKeyIsNotShown(t *testing.T) {
	k := key(t, "hunter2hunter2", "192.0.2.1")
	for _, s := range []string{fmt.Sprint(k), fmt.Sprintf("%+v", &k), fmt.Sprintf("%#v", struct{ K Key }{k}), fmt.Sprint(struct{ k Key }{k}), fmt.Sprintf("%x", k)} {
		if strings.Contains(s, "hunter2") || strings.Contains(s, hex.EncodeToString([]byte("hunter2"))) {
			t.Error(s)
		}
	}
	if b, err := k.MarshalText(); err != nil || string(b) != hidden || k.LogValue().String() != hidden {
		t.Error("shown when it is marshalled or logged")
	}
}

func TestMemory(t *testing.T) {
	k := key(t, "secret", "192.0.2.1")
	packet := func(counter uint64, skew uint8) []byte {
		return k.Append(nil, Advertisement{VHID: 1, Base: 1, Skew: skew, Counter: counter})
	}
	var m Memory
	for _, c := range []struct {
		counter uint64
		skew    uint8
		want    error
	}{
		{100, 0, nil}, {101, 0, nil}, {7, 0, nil}, // ucarp counts backwards when it hears somebody
		{100, 0, ErrRepeated}, {7, 0, ErrRepeated},
		{101, 1, ErrRepeated}, // with another advskew and a right checksum
		{102, 0, nil},
	} {
		if err := m.Note(packet(c.counter, c.skew)); err != c.want {
			t.Errorf("counter %d, advskew %d: %v, want %v", c.counter, c.skew, err, c.want)
		}
	}
	// The oldest one goes when there are too many, and no other.
	for i := range uint64(remembered - 3) {
		if err := m.Note(packet(1000+i, 0)); err != nil {
			t.Fatal(err)
		}
	}
	if len(m.seen) != remembered || len(m.ring) != remembered {
		t.Errorf("%d and %d are remembered, want %d", len(m.seen), len(m.ring), remembered)
	}
	if err := m.Note(packet(101, 0)); err != ErrRepeated {
		t.Errorf("the second oldest: %v", err)
	}
	if err := m.Note(packet(100, 0)); err != nil {
		t.Errorf("the oldest: %v", err)
	}
}

// Every advertisement of a real ucarp is read, and written again byte for byte.
func TestCaptureOfUcarp(t *testing.T) {
	b, err := os.ReadFile("../vrrp/testdata/ucarp-steady.pcap")
	if err != nil {
		t.Fatal(err)
	}
	k, read := key(t, "secret", "10.77.0.100"), 0
	var m Memory
	for b = b[24:]; len(b) > 0; {
		n := binary.LittleEndian.Uint32(b[8:])
		frame := b[16 : 16+n]
		b = b[16+n:]
		const etherType, ipProtocol = 12, 14 + 9
		if binary.BigEndian.Uint16(frame[etherType:]) != 0x0800 || frame[ipProtocol] != 112 {
			continue
		}
		payload := frame[34 : 14+binary.BigEndian.Uint16(frame[16:])]
		var adv Advertisement
		if err := adv.Unmarshal(payload); err != nil {
			t.Fatal(err)
		}
		if adv.VHID != 1 || adv.Base != 1 || adv.Skew != 0 {
			t.Errorf("read %+v", adv)
		}
		if err := errors.Join(k.Verify(payload), m.Note(payload)); err != nil {
			t.Error(err)
		}
		if got := k.Append(nil, adv); !bytes.Equal(got, payload) {
			t.Errorf("wrote %x, want %x", got, payload)
		}
		read++
	}
	if read < 25 {
		t.Errorf("%d advertisements, want 25 seconds of them", read)
	}
}

func TestNothingAllocates(t *testing.T) {
	k, packet := key(t, "secret", "10.0.0.100"), unhex(t, golden[0].packet)
	buf := make([]byte, 0, Len)
	var adv Advertisement
	if n := testing.AllocsPerRun(100, func() {
		if adv.Unmarshal(packet) != nil || k.Verify(packet) != nil {
			t.Fatal("refused")
		}
		buf = k.Append(buf[:0], adv)
	}); n != 0 {
		t.Errorf("%v allocations an advertisement", n)
	}
}

// FuzzUnmarshal: no input makes it panic, and what is read and verified is written again byte for byte.
func FuzzUnmarshal(f *testing.F) {
	for _, g := range golden {
		f.Add(unhex(f, g.packet))
	}
	f.Add([]byte{})
	k := key(f, "secret", "10.0.0.100")
	f.Fuzz(func(t *testing.T, payload []byte) {
		var adv Advertisement
		if err := adv.Unmarshal(payload); err != nil {
			if adv != (Advertisement{}) || Reason(err) == "other" {
				t.Fatalf("refused with %v, and read %+v", err, adv)
			}
			return
		}
		if !Looks(payload) {
			t.Fatal("read, and does not look like CARP")
		}
		written := k.Append(nil, adv)
		// A one's complement sum has two zeros.
		if !bytes.Equal(written[:6], payload[:6]) || !bytes.Equal(written[8:signedAt], payload[8:signedAt]) {
			t.Fatalf("wrote %x of %x", written, payload)
		}
		if k.Verify(payload) == nil && !bytes.Equal(written, payload) {
			t.Fatalf("verified %x, and wrote %x", payload, written)
		}
	})
}
