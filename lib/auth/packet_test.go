package auth_test

import (
	"fmt"
	"net/netip"
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
