package vrrp

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"
)

// packet is one of IP protocol 112 in a capture.
type packet struct {
	at       time.Duration // since the start of the capture
	src, dst netip.Addr
	payload  []byte
}

// readCapture reads the IPv4 packets of protocol 112 from a little-endian pcap
// file with microseconds, on Ethernet.
func readCapture(t *testing.T, name string) (packets []packet) {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	const ethernet = 1
	le := binary.LittleEndian
	if le.Uint32(b) != 0xa1b2c3d4 || le.Uint32(b[20:]) != ethernet {
		t.Fatalf("%s: not a pcap file of the expected kind", name)
	}
	var start time.Duration
	for b = b[24:]; len(b) > 0; {
		at := time.Duration(le.Uint32(b))*time.Second + time.Duration(le.Uint32(b[4:]))*time.Microsecond
		n := le.Uint32(b[8:])
		frame := b[16 : 16+n]
		b = b[16+n:]
		if start == 0 {
			start = at
		}
		if binary.BigEndian.Uint16(frame[12:]) != 0x0800 || frame[14+9] != protocol {
			continue
		}
		ip := frame[14:]
		packets = append(packets, packet{
			at:      at - start,
			src:     netip.AddrFrom4([4]byte(ip[12:])),
			dst:     netip.AddrFrom4([4]byte(ip[16:])),
			payload: ip[4*(ip[0]&0x0f) : binary.BigEndian.Uint16(ip[2:])],
		})
	}
	return packets
}

// Every advertisement that keepalived sent is read, says what the setup says,
// and is written again byte for byte.
func TestCapturesOfKeepalived(t *testing.T) {
	tests := []struct {
		file  string
		addrs []netip.Addr
		who   []string // sender and priority, in order, repetitions left out
	}{
		{
			"keepalived-vrrp3-ipv4-mcast.pcap", addrs("10.77.0.100", "10.77.0.101"),
			[]string{"10.77.0.2 100", "10.77.0.1 150", "10.77.0.2 100"},
		}, {
			"keepalived-graceful-stop.pcap", addrs("10.77.0.100"),
			[]string{"10.77.0.1 150", "10.77.0.1 0", "10.77.0.2 100"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.file, func(t *testing.T) {
			var who []string
			for i, p := range readCapture(t, tt.file) {
				var adv Advertisement
				trailer, form, err := adv.Unmarshal(p.payload, p.src, p.dst)
				if err != nil {
					t.Fatalf("packet %d: %v", i, err)
				}
				if form != PseudoHeader || trailer != nil {
					t.Errorf("packet %d: checksum %v, trailer %x", i, form, trailer)
				}
				if adv.VRID != 51 || adv.Interval != time.Second || !slices.Equal(adv.Addrs, tt.addrs) {
					t.Errorf("packet %d: read %+v", i, adv)
				}
				if got, err := adv.Append(nil, p.src, p.dst, form); err != nil || !bytes.Equal(got, p.payload) {
					t.Errorf("packet %d: wrote %x, %v, want %x", i, got, err, p.payload)
				}
				who = append(who, fmt.Sprint(p.src, " ", adv.Priority))
			}
			if who = slices.Compact(who); !slices.Equal(who, tt.who) {
				t.Errorf("heard %q, want %q", who, tt.who)
			}
		})
	}
}

func TestCaptureOfUcarp(t *testing.T) {
	packets := readCapture(t, "ucarp-steady.pcap")
	if len(packets) < 25 {
		t.Errorf("%d packets, want 25 seconds of them", len(packets))
	}
	for i, p := range packets {
		var adv Advertisement
		if _, _, err := adv.Unmarshal(p.payload, p.src, p.dst); err != ErrCARP {
			t.Errorf("packet %d: %v, want %v", i, err, ErrCARP)
		}
	}
}
