package keepalived

import (
	"bytes"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/skudonet/skudonet-ce-cluster/lib/announce"
	"github.com/skudonet/skudonet-ce-cluster/lib/vrrp"
	"github.com/skudonet/skudonet-ce-cluster/test/lab"
)

// Each advert that keepalived sends while it is master, and when it leaves, is read, says what it was told to say, and is
// written again byte for byte; and what we announce an address with is what it does.
func TestWire(t *testing.T) {
	const protocolVRRP = 112
	for _, row := range []struct {
		name     string
		families lab.Families
		unicast  bool
		more     []string // addresses
	}{
		{"multicast", lab.IPv4, false, nil},
		{"multicast, three addresses", lab.IPv4, false, []string{"192.168.77.101", "192.168.77.7"}},
		{"unicast", lab.IPv4, true, nil},
		{"multicast over IPv6", lab.IPv6, false, nil},
		{"multicast over IPv6, two addresses", lab.IPv6, false, []string{"fd77::101"}},
		{"unicast over IPv6", lab.IPv6, true, nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			var k theirs
			for _, addr := range row.more {
				k.more = append(k.more, addr+" dev eth0")
			}
			p := newPair(t, options{families: row.families, unicast: row.unicast, theirs: k})
			addrs := []netip.Addr{p.vip}
			for _, addr := range row.more {
				addrs = append(addrs, netip.MustParseAddr(addr))
			}
			source, group := p.addr(p.their), netip.MustParseAddr("224.0.0.18")
			if row.families == lab.IPv6 {
				group = netip.MustParseAddr("ff02::12")
				if !row.unicast {
					source = netip.MustParseAddr("fe80::ff:fe00:770b") // of the MAC address
				}
			}
			ttl := byte(255)
			if row.unicast {
				group = p.addr(p.our)
				if row.families == lab.IPv6 {
					ttl = 64 // so 2.2.7 has it, and no receiver in unicast may want 255
				}
			}
			mac := net.HardwareAddr{2, 0, 0, 0, 0x77, 11}

			wire, err := p.Capture(p.their, lab.Sent, lab.VRRP|lab.ARP|lab.NDP)
			p.check(err)
			p.start(p.their)
			p.holder(p.their)
			p.stays(p.their)
			p.stop(p.their)
			packets, err := wire.Stop()
			p.check(err)

			said := map[uint8]int{} // adverts by priority
			announced := map[netip.Addr]int{}
			for _, packet := range packets {
				var again []byte // as we would write it, with Ethernet's header
				var of netip.Addr
				if a, ok := packet.ARP(); ok && slices.Contains(addrs, a.Sender) {
					of, again = a.Sender, announce.AppendGARPRequest(nil, mac, a.Sender)
				} else if n, ok := packet.Neighbour(); ok && n.Type == 136 && slices.Contains(addrs, n.Target) {
					of, again = n.Target, announce.AppendNA(nil, mac, n.Target, false)
				}
				if of.IsValid() {
					announced[of]++
					if !bytes.Equal(packet.Frame, again) {
						t.Errorf("it announced %s with\n%x, we with\n%x", of, packet.Frame, again)
					}
					continue
				}
				ip, ok := packet.IPv4()
				if !ok {
					ip, ok = packet.IPv6()
				}
				if !ok || ip.Protocol != protocolVRRP {
					continue
				}
				if ip.Source != source || ip.Destination != group || ip.TTL != ttl {
					t.Errorf("from %v to %v with TTL %d; want %v, %v, %d", ip.Source, ip.Destination, ip.TTL, source, group, ttl)
				}
				var adv vrrp.Advertisement
				trailer, form, err := adv.Unmarshal(ip.Payload, ip.Source, ip.Destination)
				if err != nil || form != vrrp.PseudoHeader || trailer != nil {
					t.Fatalf("%x: %v, %v, trailer %x", ip.Payload, err, form, trailer)
				}
				if adv.VRID != 1 || adv.Interval != p.every || !slices.Equal(adv.Addrs, addrs) {
					t.Errorf("read %+v of %x, want the addresses %v", adv, ip.Payload, addrs)
				}
				if again, err := adv.Append(nil, ip.Source, ip.Destination, form); err != nil || !bytes.Equal(again, ip.Payload) {
					t.Errorf("wrote %x, %v, want %x", again, err, ip.Payload)
				}
				said[adv.Priority]++
			}
			if said[100] < 4 || said[0] == 0 || len(said) != 2 {
				t.Errorf("adverts by priority: %v; want some with 100, and 0 when it leaves", said)
			}
			for _, addr := range addrs {
				if announced[addr] == 0 {
					t.Errorf("%s was not announced: %v", addr, announced)
				}
			}
		})
	}
}
