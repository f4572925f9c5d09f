package auth_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/auth"
	"github.com/skudonet/skudonet-ce-cluster/lib/vrrp"
)

// The two halves of a received packet together: what package vrrp reads, this
// package verifies.

var (
	node  = netip.MustParseAddr("192.168.1.250")
	group = netip.MustParseAddr("224.0.0.18")
	adv   = vrrp.Advertisement{
		VRID: 1, Priority: 100, Interval: time.Second,
		Addrs: []netip.Addr{netip.MustParseAddr("192.168.1.252"), netip.MustParseAddr("10.0.0.1")},
	}
)

func key(t testing.TB) auth.Key {
	t.Helper()
	k, err := auth.NewKey([]byte("thirty-two bytes and a few more of them"))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func send(k auth.Key, buf []byte, seq auth.Sequence) ([]byte, error) {
	b, err := adv.Append(buf, node, group, vrrp.PseudoHeader)
	if err != nil {
		return nil, err
	}
	return k.Append(b, auth.KeyID, node, seq), nil
}

func receive(k auth.Key, got *vrrp.Advertisement, payload []byte, src netip.Addr) (auth.Sequence, error) {
	trailer, _, err := got.Unmarshal(payload, src, group)
	if err != nil {
		return 0, err
	}
	return k.Verify(payload[:len(payload)-len(trailer)], trailer, src)
}

func TestTrailerFitsBehindTheMessage(t *testing.T) {
	k := key(t)
	payload, err := send(k, nil, 42)
	if err != nil {
		t.Fatal(err)
	}
	var got vrrp.Advertisement
	seq, err := receive(k, &got, payload, node)
	if err != nil || seq != 42 || got.VRID != adv.VRID || !slices.Equal(got.Addrs, adv.Addrs) {
		t.Errorf("received %+v, %d, %v", got, seq, err)
	}
	if _, err := receive(k, &got, payload[:len(payload)-auth.TrailerLen], node); err != auth.ErrUnsigned {
		t.Errorf("without its trailer: %v, want %v", err, auth.ErrUnsigned)
	}
}

// keepalived's own test vectors as packets, both ways: what is read of them is what was signed, and what is written of that has the
// same bytes.
func TestPublishedPackets(t *testing.T) {
	secret := make([]byte, 32)
	for i := range secret {
		secret[i] = byte(i)
	}
	k, err := auth.NewKey(secret)
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range []struct {
		packet        string
		src, dst, vip string
		form          vrrp.Checksum
	}{
		{"3133c80100644402c0000264" + "010100006800000080000000" + "1b84bc4e8e43892dc6d98448f8ee2265", "198.51.100.10", "224.0.0.18", "192.0.2.100", vrrp.MessageOnly},
		{"3133c8010064a2e9fe800000000000000000000000000100" + "010100006800000080000000" + "c8c56146ebfd66ee10ec4d8186461b78", "fe80::10", "fe80::20", "fe80::100",
			vrrp.PseudoHeader},
	} {
		packet, err := hex.DecodeString(g.packet)
		if err != nil {
			t.Fatal(err)
		}
		src, dst := netip.MustParseAddr(g.src), netip.MustParseAddr(g.dst)
		want := vrrp.Advertisement{VRID: 51, Priority: 200, Interval: time.Second, Addrs: []netip.Addr{netip.MustParseAddr(g.vip)}}

		var got vrrp.Advertisement
		trailer, form, err := got.Unmarshal(packet, src, dst)
		if err != nil || form != g.form || !reflect.DeepEqual(got, want) {
			t.Fatalf("read %+v, %v, %v; want %+v, %v", got, form, err, want, g.form)
		}
		seq, err := k.Verify(packet[:len(packet)-len(trailer)], trailer, src)
		if err != nil || seq != 0x6800000080000000 {
			t.Errorf("sequence %#x, %v", uint64(seq), err)
		}

		again, err := want.Append(nil, src, dst, g.form)
		if err != nil {
			t.Fatal(err)
		}
		again = k.Append(again, auth.KeyID, src, seq)
		if src.Is6() {
			sumAsLinux(again, src, dst)
		}
		if !bytes.Equal(again, packet) {
			t.Errorf("wrote\n%x, want\n%x", again, packet)
		}
	}
}

// sumAsLinux writes the checksum of a packet of IPv6, which is the kernel's to make: it covers all that follows the header.
func sumAsLinux(b []byte, src, dst netip.Addr) {
	b[6], b[7] = 0, 0
	s, d := src.As16(), dst.As16()
	sum := uint32(len(b) + 112)
	for _, words := range [][]byte{s[:], d[:], b} {
		for ; len(words) > 1; words = words[2:] {
			sum += uint32(binary.BigEndian.Uint16(words))
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(b[6:], ^uint16(sum))
}

func TestEveryFlippedByteOfAPacketIsRefused(t *testing.T) {
	k := key(t)
	payload, err := send(k, nil, 42)
	if err != nil {
		t.Fatal(err)
	}
	ip := node.As4()
	var got vrrp.Advertisement
	for what, b := range map[string][]byte{"payload": payload, "source": ip[:]} {
		for i := range b {
			for x := 1; x <= 0xff; x++ {
				b[i] ^= byte(x)
				if _, err := receive(k, &got, payload, netip.AddrFrom4(ip)); err == nil {
					t.Errorf("byte %d of the %s as %#x was accepted", i, what, b[i])
				}
				b[i] ^= byte(x)
			}
		}
	}
	if _, err := receive(k, &got, payload, netip.AddrFrom4(ip)); err != nil {
		t.Errorf("%v after all bytes are back", err)
	}
}

// Who knows the protocol repairs the checksum; the signature still holds the
// packet.
func TestRepairedChecksumDoesNotHelp(t *testing.T) {
	k := key(t)
	payload, err := send(k, nil, 42)
	if err != nil {
		t.Fatal(err)
	}
	forged := adv
	forged.Priority = 255
	b, err := forged.Append(nil, node, group, vrrp.PseudoHeader)
	if err != nil {
		t.Fatal(err)
	}
	b = append(b, payload[len(payload)-auth.TrailerLen:]...)
	var got vrrp.Advertisement
	if _, err := receive(k, &got, b, node); err != auth.ErrMAC {
		t.Errorf("%v, want %v", err, auth.ErrMAC)
	}
}

// An IPv4 message sent on by a relay may carry the other form of checksum; the
// signature holds for both, so it serves all destinations.
func TestOneSignatureServesBothForms(t *testing.T) {
	k := key(t)
	payload, err := send(k, nil, 42)
	if err != nil {
		t.Fatal(err)
	}
	b, err := adv.Append(nil, node, netip.Addr{}, vrrp.MessageOnly)
	if err != nil {
		t.Fatal(err)
	}
	b = append(b, payload[len(payload)-auth.TrailerLen:]...)
	var got vrrp.Advertisement
	if seq, err := receive(k, &got, b, node); err != nil || seq != 42 {
		t.Errorf("%d, %v", seq, err)
	}
}

func TestNothingIsAllocated(t *testing.T) {
	k := key(t)
	stranger, err := auth.NewKey(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 0, 128)
	payload, err := send(k, nil, 42)
	if err != nil {
		t.Fatal(err)
	}
	source := auth.NewSequence(time.Unix(1785585600, 0), 0)
	var got vrrp.Advertisement
	var marks auth.Marks
	for name, f := range map[string]func() error{
		"send": func() error { _, err := send(k, buf, source.Next(time.Second)); return err },
		"receive": func() error {
			seq, err := receive(k, &got, payload, node)
			if err != nil {
				return err
			}
			if err := marks.Check(node, seq); err != nil && err != auth.ErrReplay {
				return err
			}
			marks.Move(node, seq)
			return nil
		},
		"a forgery": func() error {
			if _, err := receive(stranger, &got, payload, node); err != auth.ErrMAC {
				return fmt.Errorf("%v, want %v", err, auth.ErrMAC)
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

// BenchmarkReceive parses and verifies one signed packet.
func BenchmarkReceive(b *testing.B) {
	k := key(b)
	payload, err := send(k, nil, 42)
	if err != nil {
		b.Fatal(err)
	}
	var got vrrp.Advertisement
	b.ReportAllocs()
	for b.Loop() {
		if _, err := receive(k, &got, payload, node); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkSend writes and signs one packet.
func BenchmarkSend(b *testing.B) {
	k := key(b)
	source := auth.NewSequence(time.Unix(1785585600, 0), 0)
	buf := make([]byte, 0, 128)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := send(k, buf, source.Next(0)); err != nil {
			b.Fatal(err)
		}
	}
}
