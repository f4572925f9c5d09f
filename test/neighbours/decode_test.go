package neighbours

import (
	"encoding/binary"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/auth"
	"github.com/skudonet/skudonet-ce-cluster/lib/carp"
	"github.com/skudonet/skudonet-ce-cluster/test/lab"
)

const (
	protocolVRRP = 112
	udpPort      = 5112
	ethernet     = 14 // bytes of its header
	headerUDP    = 8
)

// decoded has tcpdump and tshark read packets, and gives the different things that each of them says, in order and
// without what differs from packet to packet.
func decoded(t *testing.T, packets []lab.Packet, tcpdump, tshark []string) (dumped, dissected []string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "packets.pcap")
	f, err := os.Create(file)
	if err == nil {
		err = lab.WritePcap(f, packets)
		f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	run := func(name string, args ...string) []string {
		t.Helper()
		var complaints strings.Builder
		command := exec.Command(name, args...)
		command.Stderr = &complaints
		out, err := command.Output()
		if err != nil {
			t.Fatalf("%s (test/install-deps check installs it): %v\n%s", name, err, &complaints)
		}
		return strings.Split(strings.TrimRight(string(out), "\n"), "\n")
	}
	distinct := map[string]bool{}
	var text string
	for _, line := range append(run("tcpdump", append(tcpdump, "-tnvvr", file)...), "") {
		if indented := strings.TrimLeft(line, " \t"); indented != line {
			text += " " + indented
			continue
		}
		if text != "" {
			distinct[ofOnePacket.ReplaceAllString(text, "$1$2")] = true
		}
		text = line
	}
	dumped = slices.Sorted(maps.Keys(distinct))

	clear(distinct)
	args := append(tshark, "-nr", file, "-o", "ip.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE", "-T", "fields", "-E", "aggregator=+")
	for _, field := range fields {
		args = append(args, "-e", field)
	}
	for _, line := range run("tshark", args...) {
		var said []string
		for i, value := range strings.Split(line, "\t") {
			if value != "" {
				said = append(said, fields[i]+" "+value)
			}
		}
		distinct[ofOnePacket.ReplaceAllString(strings.Join(said, ", "), "$1$2")] = true
	}
	return dumped, slices.Sorted(maps.Keys(distinct))
}

// ofOnePacket is what differs from packet to packet.
var ofOnePacket = regexp.MustCompile(`\bid \d+, (offset)|flowlabel 0x[0-9a-f]+, |(cksum) [0-9a-f]+| \[should be 0x[0-9a-f]+\]`)

// fields are what tshark is asked for. The last two are its complaints.
var fields = []string{
	"ip.src", "ip.dst", "ip.ttl", "ip.checksum.status", "ipv6.src", "ipv6.dst", "ipv6.hlim",
	"udp.srcport", "udp.dstport", "udp.checksum.status",
	"vrrp.version", "vrrp.type", "vrrp.virt_rtr_id", "vrrp.prio", "vrrp.short_adver_int", "vrrp.addr_count", "vrrp.ip_addr", "vrrp.ipv6_addr",
	"vrrp.checksum.status",
	"carp.version", "carp.type", "carp.vhid", "carp.adver_int", "carp.advskew", "carp.authlen", "carp.counter", "carp.checksum.status",
	"eth.dst", "arp.opcode", "arp.src.hw_mac", "arp.src.proto_ipv4", "arp.dst.hw_mac", "arp.dst.proto_ipv4",
	"icmpv6.type", "icmpv6.checksum.status", "icmpv6.nd.na.target_address", "icmpv6.nd.na.flag", "icmpv6.opt.linkaddr",
	"_ws.malformed", "_ws.expert.message",
}

// same fails the test unless a tool said just that.
func same(t *testing.T, tool string, got, want []string) {
	t.Helper()
	if slices.Sort(want); !slices.Equal(got, want) {
		t.Errorf("%s says\n\t%s\nwant\n\t%s", tool, strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

// advert is one of lb1, as the tools should tell it.
type advert struct {
	from, to string
	ttl      int
	udp      bool
	priority int
	trailer  int    // bytes behind it
	bad      string // which of tcpdump and tshark find its checksum wrong
}

func (a advert) byTcpdump() string {
	head, size, addr := "IP (tos 0xc0, ttl %d, offset 0, flags [DF], proto %s, length %d)", 12+a.trailer, lab.ClusterIP
	six := strings.Contains(a.from, ":")
	if six {
		head, size, addr = "IP6 (class 0xc0, hlim %d, next-header %s payload length: %d)", 24+a.trailer, lab.ClusterIP6
	}
	length, protocol := size, "VRRP (112)"
	if a.udp {
		length, protocol = size+8, "UDP (17)"
	}
	if !six {
		length += 20
	}
	head = fmt.Sprintf(head, a.ttl, protocol, length)
	if a.udp {
		return fmt.Sprintf("%s %s.5112 > %s.5112: [udp sum ok] UDP, length %d", head, a.from, a.to, size)
	}
	var off, bad string
	if a.ttl != 255 {
		off = fmt.Sprintf("(ttl %d), ", a.ttl)
	}
	if strings.Contains(a.bad, "tcpdump") {
		bad = "(bad vrrp cksum), "
	}
	return fmt.Sprintf("%s %s > %s: VRRPv3, Advertisement, %svrid 1, prio %d, intvl 20cs, length %d, %saddrs: %s", head, a.from, a.to, off, a.priority, size, bad, addr)
}

func (a advert) byTshark() string {
	ip, addr := fmt.Sprintf("ip.src %s, ip.dst %s, ip.ttl %d, ip.checksum.status 1, ", a.from, a.to, a.ttl), "vrrp.ip_addr "+lab.ClusterIP.String()
	if strings.Contains(a.from, ":") {
		ip, addr = fmt.Sprintf("ipv6.src %s, ipv6.dst %s, ipv6.hlim %d, ", a.from, a.to, a.ttl), "vrrp.ipv6_addr "+lab.ClusterIP6.String()
	}
	mac := ", eth.dst " + map[string]string{"224.0.0.18": "01:00:5e:00:00:12", "ff02::12": "33:33:00:00:00:12",
		"192.168.77.12": "02:00:00:00:77:0c", "fd77::c": "02:00:00:00:77:0c"}[a.to]
	if a.udp {
		return ip + "udp.srcport 5112, udp.dstport 5112, udp.checksum.status 1" + mac
	}
	status := "1" + mac
	if strings.Contains(a.bad, "tshark") {
		status = "0" + mac + ", _ws.expert.message Bad checksum"
	}
	return fmt.Sprintf("%svrrp.version 3, vrrp.type 1, vrrp.virt_rtr_id 1, vrrp.prio %d, vrrp.short_adver_int 20, vrrp.addr_count 1, %s, vrrp.checksum.status %s",
		ip, a.priority, addr, status)
}

// announced is what the tools should say of how lb1 makes the addresses known.
var (
	announcedByTcpdump = []string{
		"ARP, Ethernet (len 6), IPv4 (len 4), Request who-has 192.168.77.100 (ff:ff:ff:ff:ff:ff) tell 192.168.77.100, length 28",
		"ARP, Ethernet (len 6), IPv4 (len 4), Reply 192.168.77.100 is-at 02:00:00:00:77:0b, length 28",
		"IP6 (hlim 255, next-header ICMPv6 (58) payload length: 32) fd77::100 > ff02::1: [icmp6 sum ok] ICMP6, neighbor advertisement, length 32, " +
			"tgt is fd77::100, Flags [override] destination link-address option (2), length 8 (1): 02:00:00:00:77:0b 0x0000:  0200 0000 770b",
	}
	announcedByTshark = []string{
		"eth.dst ff:ff:ff:ff:ff:ff, arp.opcode 1, arp.src.hw_mac 02:00:00:00:77:0b, arp.src.proto_ipv4 192.168.77.100, " +
			"arp.dst.hw_mac ff:ff:ff:ff:ff:ff, arp.dst.proto_ipv4 192.168.77.100",
		"eth.dst ff:ff:ff:ff:ff:ff, arp.opcode 2, arp.src.hw_mac 02:00:00:00:77:0b, arp.src.proto_ipv4 192.168.77.100, " +
			"arp.dst.hw_mac 02:00:00:00:77:0b, arp.dst.proto_ipv4 192.168.77.100",
		"ipv6.src fd77::100, ipv6.dst ff02::1, ipv6.hlim 255, eth.dst 33:33:00:00:00:01, icmpv6.type 136, icmpv6.checksum.status 1, " +
			"icmpv6.nd.na.target_address fd77::100, icmpv6.nd.na.flag 0x20000000, icmpv6.opt.linkaddr 02:00:00:00:77:0b",
	}
)

// What a master says until it has left is what tcpdump and tshark understand, in each transport and both families.
// CARP is in TestPackets.
func TestDecoded(t *testing.T) {
	const four, six = "192.168.77.11", "fd77::b"
	for _, row := range []struct {
		name      string
		transport string
		password  string
		sent      []advert
		bare      []advert
		tshark    []string // to read those
	}{
		{"multicast unsigned", "multicast", "",
			[]advert{{from: four, to: "224.0.0.18", ttl: 255}, {from: "fe80::ff:fe00:770b", to: "ff02::12", ttl: 255}}, nil, nil},
		{"unicast unsigned", "unicast", "",
			[]advert{{from: four, to: "192.168.77.12", ttl: 255}, {from: six, to: "fd77::c", ttl: 255}}, nil, nil},
		// Neither tool knows the trailer. Over IPv4 it is outside of the checksum, as keepalived has it, but both count it, so
		// that their complaint must be: without the trailer they have none. Over IPv6 it is inside.
		{"multicast signed", "multicast", lab.Password,
			[]advert{{from: four, to: "224.0.0.18", ttl: 255, trailer: auth.TrailerLen, bad: "tcpdump, tshark"},
				{from: "fe80::ff:fe00:770b", to: "ff02::12", ttl: 255, trailer: auth.TrailerLen}},
			[]advert{{from: four, to: "224.0.0.18", ttl: 255}}, nil},
		{"unicast signed", "unicast", lab.Password,
			[]advert{{from: four, to: "192.168.77.12", ttl: 255, trailer: auth.TrailerLen, bad: "tcpdump, tshark"},
				{from: six, to: "fd77::c", ttl: 255, trailer: auth.TrailerLen}},
			[]advert{{from: four, to: "192.168.77.12", ttl: 255}}, nil},
		// Neither tool can be told to look for VRRP in UDP. Taken out of it, an advert has the checksum of RFC 9568, without
		// addresses, which tshark knows over IPv4 and tcpdump does not know.
		{"UDP", "udp", lab.Password,
			[]advert{{from: four, to: "192.168.77.12", ttl: 64, udp: true, trailer: auth.TrailerLen}, {from: six, to: "fd77::c", ttl: 64, udp: true, trailer: auth.TrailerLen}},
			[]advert{{from: four, to: "192.168.77.12", ttl: 64, bad: "tcpdump"}}, []string{"-o", "vrrp.v3_checksum_as_in_v2:TRUE"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			l := lab.Test(t, lab.Options{Families: lab.Both, Config: keys{"transport": row.transport, "password": row.password, "advert_interval": "0.2"}})
			p := &pair{Lab: l, t: t, watch: l.Watch(lab.ClusterIP), daemons: map[*lab.Node]*lab.Daemon{}}
			// A virtual cable leaves the checksum of UDP to be made by somebody who never comes.
			p.run(p.LB1, "ethtool", "-K", "eth0", "tx", "off")
			wire, err := p.Capture(p.LB1, lab.Sent, lab.VRRP|lab.UDP|lab.ARP|lab.NDP)
			p.check(err)
			p.startOurs(p.LB1)
			p.master(p.LB1)
			p.eventually("some adverts", func() (bool, string) { return len(wire.Select(isAdvert)) >= 6, "" })
			p.check(p.daemons[p.LB1].Stop())
			packets, err := wire.Stop()
			p.check(err)

			tell := func(packets []lab.Packet, adverts []advert, options, byTcpdump, byTshark []string) {
				t.Helper()
				for _, a := range adverts {
					for _, a.priority = range []int{100, 0} {
						byTcpdump, byTshark = append(byTcpdump, a.byTcpdump()), append(byTshark, a.byTshark())
					}
				}
				gotTcpdump, gotTshark := decoded(t, packets, nil, options)
				same(t, "tcpdump", gotTcpdump, slices.Compact(byTcpdump)) // of what is in UDP, it does not tell the priority
				same(t, "tshark", gotTshark, slices.Compact(byTshark))
			}
			tell(slices.DeleteFunc(slices.Clone(packets), func(p lab.Packet) bool { return !isAdvert(p) && !announces(p) }), row.sent, nil,
				slices.Clone(announcedByTcpdump), slices.Clone(announcedByTshark))
			if row.bare != nil {
				tell(bare(packets), row.bare, row.tshark, nil, nil)
			}
		})
	}
}

func announces(p lab.Packet) bool {
	if a, ok := p.ARP(); ok {
		return a.Sender == lab.ClusterIP
	}
	n, ok := p.Neighbour()
	return ok && n.Speaks(lab.ClusterIP6)
}

func isAdvert(p lab.Packet) bool {
	ip, ok := p.IPv4()
	if !ok {
		ip, ok = p.IPv6()
	}
	return ok && (ip.Protocol == protocolVRRP || isUDP(ip))
}

func isUDP(ip lab.IPPacket) bool {
	return ip.Protocol == unix.IPPROTO_UDP && len(ip.Payload) > headerUDP && binary.BigEndian.Uint16(ip.Payload[2:]) == udpPort
}

// bare are the adverts of one address over IPv4 as unsigned ones, in IP itself: without a trailer, and without a header of UDP.
func bare(packets []lab.Packet) (list []lab.Packet) {
	const header, message = 20, 8 + 4
	for _, p := range packets {
		ip, ok := p.IPv4()
		if !ok || !isAdvert(p) {
			continue
		}
		if isUDP(ip) {
			ip.Payload = ip.Payload[headerUDP:]
		}
		p.Frame = slices.Concat(p.Frame[:ethernet+header], ip.Payload[:message])
		b := p.Frame[ethernet:][:header]
		b[9] = protocolVRRP
		binary.BigEndian.PutUint16(b[2:], header+message)
		binary.BigEndian.PutUint16(b[10:], 0)
		sum := uint32(0)
		for i := 0; i < header; i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
		for sum > 0xffff {
			sum = sum>>16 + sum&0xffff
		}
		binary.BigEndian.PutUint16(b[10:], ^uint16(sum))
		list = append(list, p)
	}
	return list
}

// decodedCARP fails the test unless both tools tell the adverts of CARP as they are, and do not complain.
func decodedCARP(t *testing.T, packets []lab.Packet) {
	t.Helper()
	var byTcpdump, byTshark []string
	for _, p := range packets {
		ip, _ := p.IPv4()
		var adv carp.Advertisement
		if err := adv.Unmarshal(ip.Payload); err != nil {
			t.Fatal(err)
		}
		byTcpdump = append(byTcpdump, fmt.Sprintf("IP (tos %#x, ttl 255, offset 0, flags [DF], proto VRRP (112), length 56) %v > 224.0.0.18: "+
			"CARPv2-advertise 36: vhid=1 advbase=%d advskew=%d authlen=7 counter=%d", p.Frame[ethernet+1], ip.Source, adv.Base, adv.Skew, adv.Counter))
		byTshark = append(byTshark, fmt.Sprintf("ip.src %v, ip.dst 224.0.0.18, ip.ttl 255, ip.checksum.status 1, carp.version 2, carp.type 1, carp.vhid 1, "+
			"carp.adver_int %d, carp.advskew %d, carp.authlen 7, carp.counter %d, carp.checksum.status 1, eth.dst 01:00:5e:00:00:12", ip.Source, adv.Base, adv.Skew, adv.Counter))
	}
	gotTcpdump, gotTshark := decoded(t, packets, []string{"-T", "carp"}, []string{"-d", "ip.proto==112,carp"})
	same(t, "tcpdump", gotTcpdump, byTcpdump)
	same(t, "tshark", gotTshark, byTshark)
}
