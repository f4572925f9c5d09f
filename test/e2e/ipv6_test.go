package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/announce"
	"github.com/skudonet/skudonet-ce-cluster/test/lab"
)

var group6 = netip.MustParseAddr("ff02::12")

// newPair6 is newPair for a cluster with IPv6.
func newPair6(t *testing.T, families lab.Families, changes ...keys) *pair {
	t.Helper()
	t.Parallel()
	return pairIn(t, families, changes...).withPlainHooks()
}

// speakers6 are the machines that have said by neighbour messages since then that they have the address, one after the other.
func speakers6(c *lab.Capture, addr netip.Addr, since time.Time) (names []string) {
	for _, p := range c.Packets() {
		if n, ok := p.Neighbour(); ok && p.Time.After(since) && n.Speaks(addr) {
			if len(names) == 0 || names[len(names)-1] != p.Node {
				names = append(names, p.Node)
			}
		}
	}
	return names
}

// linkLocal is the machine's own link-local address.
func (p *pair) linkLocal(n *lab.Node) netip.Addr {
	p.t.Helper()
	fields := strings.Fields(p.run(n, "ip", "-6", "-o", "addr", "show", "dev", "eth0", "scope", "link"))
	if i := slices.Index(fields, "inet6"); i >= 0 {
		if prefix, err := netip.ParsePrefix(fields[i+1]); err == nil {
			return prefix.Addr()
		}
	}
	p.t.Fatalf("%s has no link-local address: %q", n.Name, fields)
	return netip.Addr{}
}

func TestIPv6Transports(t *testing.T) {
	for _, row := range []struct {
		name      string
		changes   keys
		kind      lab.Kind
		protocol  byte
		multicast bool
	}{
		{"multicast", nil, lab.VRRP, protocolVRRP, true},
		{"multicast unsigned", keys{"password": ""}, lab.VRRP, protocolVRRP, true},
		{"unicast", keys{"transport": "unicast"}, lab.VRRP, protocolVRRP, false},
		{"udp", keys{"transport": "udp"}, lab.UDP, unix.IPPROTO_UDP, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := newPair6(t, lab.IPv6, row.changes)
			signed := row.name != "multicast unsigned"
			wire := p.capture(row.kind | lab.NDP)
			since := time.Now()
			p.startBoth()
			p.neverTwo(since, 0)
			probe := p.probe()
			for _, from := range []*lab.Node{p.LB1, p.LB2} {
				p.signal(from, unix.SIGUSR2)
				p.waitMaster(p.other(from))
				p.logged(from, "handed over to "+p.other(from).Addr6(0).String())
			}
			if r := probe.Report(); r.Longest().Length() > slack+r.Stall {
				t.Errorf("a hand-over cost %v", r.Longest())
			}
			sources := map[*lab.Node]netip.Addr{p.LB1: p.LB1.Addr6(0), p.LB2: p.LB2.Addr6(0)}
			if row.multicast {
				sources = map[*lab.Node]netip.Addr{p.LB1: p.linkLocal(p.LB1), p.LB2: p.linkLocal(p.LB2)}
			}
			cut := time.Now()
			p.check(p.LB1.PowerOff())
			p.waitStatus(p.LB2, "master")
			p.eventually("answers", func() (bool, string) { return probe.AnsweredAfter(cut.Add(p.down(p.LB2) / 2)), p.roles() })
			p.outage(p.LB2, probe.Stop(), cut, p.down(p.LB2))
			p.forgetsNeighbours(p.LB2)
			back := p.boot(p.LB1)
			p.start(p.LB1)
			p.waitMaster(p.LB2)
			p.awaitAdverts(wire, p.LB2, 5)
			p.neverTwo(back, 0)

			for _, n := range p.Nodes() {
				to := group6
				if !row.multicast {
					to = p.other(n).Addr6(0)
				}
				list := adverts(wire, n, since)
				if len(list) == 0 {
					t.Errorf("%s has sent no advert", n.Name)
				}
				for _, a := range list {
					if a.ip.Source != sources[n] || a.ip.Destination != to || a.ip.Protocol != row.protocol ||
						row.protocol == protocolVRRP && a.ip.TTL != 255 || !slices.Equal(a.Addrs, []netip.Addr{lab.ClusterIP6}) {
						t.Fatalf("%s sent %v from %v to %v, protocol %d, hop limit %d", n.Name, a.Addrs, a.ip.Source, a.ip.Destination, a.ip.Protocol, a.ip.TTL)
					}
					if (len(a.trailer) > 0) != signed {
						t.Fatalf("%s sent a trailer of %d bytes", n.Name, len(a.trailer))
					}
				}
			}
			if got := speakers6(wire, lab.ClusterIP6, back); slices.Contains(got, "lb1") {
				t.Errorf("the returned backup spoke for the address: %v", got)
			}
		})
	}
}

func TestIPv6Announcements(t *testing.T) {
	p := newPair6(t, lab.IPv6, keys{"advert_interval": "1", "garp_refresh": "2"})
	p.check(p.LB1.WriteInterface("eth0:web", netip.MustParseAddr("fd77::80"), true))
	wire := p.capture(lab.NDP)
	p.start(p.LB1)
	p.waitStatus(p.LB1, "master")
	p.eventually("a refreshing announcement", func() (bool, string) {
		n := 0
		for _, packet := range wire.Packets() {
			if m, ok := packet.Neighbour(); ok && m.Target == lab.ClusterIP6 {
				n++
			}
		}
		return n >= 6, fmt.Sprint(n)
	})
	var said []time.Time
	for _, packet := range wire.Packets() {
		if m, ok := packet.Neighbour(); ok && m.Target == lab.ClusterIP6 {
			said = append(said, packet.Time)
		}
	}
	busy := slack + p.watch.Stall()
	if took := said[5].Sub(said[0]); took < 7*time.Second-busy || took > 8*time.Second+busy {
		t.Errorf("six announcements within %v; want them at 0, 1, 2, 3, 5 and 7 s", took)
	}
	mac := []byte{2, 0, 0, 0, 0x77, 11}
	seen := map[netip.Addr]int{}
	for _, packet := range wire.Packets() {
		m, ok := packet.Neighbour()
		if !ok || m.Type != 136 || packet.Node != "lb1" {
			continue
		}
		ip, _ := packet.IPv6()
		if m.Source != m.Target || ip.Destination != netip.MustParseAddr("ff02::1") || ip.TTL != 255 || m.Flags != 0x20 ||
			!slices.Equal([]byte(m.MAC), mac) || !slices.Equal([]byte(m.From), mac) {
			t.Errorf("announced by %+v to %v, hop limit %d", m, ip.Destination, ip.TTL)
		}
		seen[m.Target]++
	}
	if web := seen[netip.MustParseAddr("fd77::80")]; web < 5 || seen[lab.ClusterIP6] < 6 {
		t.Errorf("announced so many times: %v", seen)
	}
	for _, m := range wire.Packets() {
		if n, ok := m.Neighbour(); ok && n.Type == 135 && n.Source.IsUnspecified() && n.Target == lab.ClusterIP6 {
			t.Error("a search for duplicates of the address has left the node")
		}
	}
	p.run(p.LB1, "ip", "-6", "addr", "del", "fd77::80/64", "dev", "eth0")
	p.logged(p.LB1, "brought up fd77::80/64 on eth0 (eth0:web), missing on a master")
	standing := p.run(p.LB1, "ip", "-6", "addr", "show", "dev", "eth0", "to", lab.ClusterIP6.String())
	if !strings.Contains(standing, "fd77::100/64 scope global nodad deprecated noprefixroute") {
		t.Errorf("the address stands as %s", standing)
	}
}

// Whatever is done on the backup, a client goes to the master, and never learns another MAC.
func TestIPv6Guard(t *testing.T) {
	t.Parallel()
	p := pairIn(t, lab.IPv6) // with the shipped hooks
	sent := p.capture(lab.NDP)
	p.startBoth()
	p.logged(p.LB2, "stop hook ended")
	probe := p.probe()
	since := time.Now()
	learned := func() string {
		return p.run(p.Client, "ip", "-6", "neigh", "show", lab.ClusterIP6.String(), "dev", "eth0")
	}
	const ofMaster, ofBackup = "02:00:00:00:77:0b", "02:00:00:00:77:0c"

	p.waitGuard(p.LB2, "fd77::100")
	p.run(p.LB2, "/etc/init.d/skudonet", "start")
	p.eventually("the address on the backup", func() (bool, string) { return p.holds(p.LB2), p.roles() })
	// A client that knows nothing asks everybody.
	p.run(p.Client, "ip", "-6", "neigh", "flush", "dev", "eth0")
	p.run(p.Client, "ping", "-6", "-c", "2", "-i", "0.2", lab.ClusterIP6.String())
	if got := learned(); !strings.Contains(got, ofMaster) {
		t.Errorf("the client knows %s", got)
	}
	// From packet sockets too.
	inside := newIntruder(t, p.LB2)
	inside.advertise6(lab.ClusterIP6)
	inside.advertise6(p.LB2.Addr6(0)) // what passes shows that what came before did not
	p.eventually("an advertisement of the backup's own address", func() (bool, string) {
		return slices.Contains(speakers6(sent, p.LB2.Addr6(0), since), "lb2"), ""
	})
	if got := speakers6(sent, lab.ClusterIP6, since); slices.Contains(got, "lb2") {
		t.Errorf("spoke for the address: %v", got)
	}
	if got := learned(); !strings.Contains(got, ofMaster) {
		t.Errorf("the client knows %s", got)
	}
	noLoss(t, probe.Stop())

	t.Log("when the backup becomes master, the client follows at once")
	probe = p.probe()
	cut := time.Now()
	p.check(p.LB1.PowerOff())
	p.waitStatus(p.LB2, "master")
	p.eventually("answers", func() (bool, string) { return probe.AnsweredAfter(cut.Add(p.down(p.LB2) / 2)), p.roles() })
	p.outage(p.LB2, probe.Stop(), cut, p.down(p.LB2))
	if got := learned(); !strings.Contains(got, ofBackup) {
		t.Errorf("the client knows %s", got)
	}
}

// split is the longest time since then that one node had the address of one family, and the other one that of the other.
func split(four, six *lab.Watch, since time.Time) (longest time.Duration) {
	type at struct {
		lab.Change
		six bool
	}
	var all []at
	for _, c := range four.Changes() {
		all = append(all, at{c, false})
	}
	for _, c := range six.Changes() {
		all = append(all, at{c, true})
	}
	slices.SortStableFunc(all, func(a, b at) int { return a.At.Compare(b.At) })
	holds := map[string][2]bool{}
	var from time.Time
	for _, c := range all {
		has := holds[c.Node]
		if c.six {
			has[1] = c.Address
		} else {
			has[0] = c.Address
		}
		holds[c.Node] = has
		one, two := holds["lb1"], holds["lb2"]
		apart := one[0] && !one[1] && two[1] && !two[0] || one[1] && !one[0] && two[0] && !two[1]
		switch {
		case apart && from.IsZero():
			from = c.At
		case !apart && !from.IsZero():
			if c.At.After(since) {
				longest = max(longest, c.At.Sub(from))
			}
			from = time.Time{}
		}
	}
	if !from.IsZero() {
		longest = max(longest, time.Since(from))
	}
	return longest
}

func TestBothFamilies(t *testing.T) {
	p := newPair6(t, lab.Both, keys{"advert_interval": "0.5"}) // two of them are the time for a new process
	six := p.Watch(lab.ClusterIP6)
	wire := p.capture(lab.VRRP | lab.ARP | lab.NDP)
	began := time.Now()
	p.startBoth()
	four, other := p.probe(), p.probeOf(lab.ClusterIP6)
	answers := func(since time.Time) {
		t.Helper()
		p.eventually("answers in both families", func() (bool, string) {
			return four.AnsweredAfter(since) && other.AnsweredAfter(since), p.roles()
		})
	}

	t.Log("a hand-over takes both")
	for _, from := range []*lab.Node{p.LB1, p.LB2} {
		p.signal(from, unix.SIGUSR2)
		p.waitMaster(p.other(from))
	}
	for _, r := range []lab.Report{four.Report(), other.Report()} {
		if r.Longest().Length() > slack+r.Stall {
			t.Errorf("a hand-over cost %v", r.Longest())
		}
	}

	t.Log("a master that executes itself anew stays one")
	again := time.Now()
	p.signal(p.LB1, unix.SIGHUP)
	p.logged(p.LB1, "the daemon restarted in time and goes on")
	p.awaitAdverts(wire, p.LB1, 10)
	p.unchanged(again)

	t.Log("a network that loses one family costs nothing but a line in the log")
	for _, family := range []struct{ table, says string }{{"ip6", "the peer is heard over IPv4, but not over IPv6"}, {"ip", "the peer is heard over IPv6, but not over IPv4"}} {
		since := time.Now()
		rules := "add table " + family.table + " deaf; add chain " + family.table + " deaf in { type filter hook input priority 0; }; " +
			"add rule " + family.table + " deaf in meta l4proto 112 drop"
		p.run(p.LB2, "nft", rules)
		p.logged(p.LB2, family.says)
		p.awaitAdverts(wire, p.LB1, 10)
		p.unchanged(since)
		p.run(p.LB2, "nft", "delete", "table", family.table, "deaf")
		p.logged(p.LB2, "over: "+family.says)
	}

	t.Log("what takes the node out of one family takes it out of both")
	since := time.Now()
	p.run(p.LB1, "ip", "-6", "addr", "del", p.LB1.Addr6(0).String()+"/64", "dev", "eth0")
	p.waitStatus(p.LB2, "master")
	p.logged(p.LB1, "fault on eth0 vrid 1: $local_ip fd77::b is not on eth0, which has fd77::100")
	answers(time.Now())
	p.logged(p.LB2, "192.168.77.11 hands over") // said over IPv4, so that nobody waits
	p.run(p.LB1, "ip", "-6", "addr", "add", p.LB1.Addr6(0).String()+"/64", "dev", "eth0", "nodad")
	p.waitMaster(p.LB2)
	p.neverTwo(since, slack)

	t.Log("two masters that meet are one again, in both families")
	p.check(p.LB1.Isolate())
	p.waitStatus(p.LB1, "master")
	p.check(p.LB1.Heal())
	p.settled()
	answers(time.Now())

	t.Log("a power cut")
	master, backup := p.settled()
	cut := time.Now()
	p.check(master.PowerOff())
	p.waitStatus(backup, "master")
	answers(cut.Add(p.down(backup) / 2))
	p.outage(backup, four.Stop(), cut, p.down(backup))
	p.outage(backup, other.Stop(), cut, p.down(backup))

	if d := split(p.watch, six, began); d > slack {
		t.Errorf("one node had the address of one family and its peer that of the other for %v", d)
	}
	// One of the last pair may still be under way.
	p.eventually("as many adverts of lb2 over IPv6 as over IPv4", func() (bool, string) {
		count := map[bool]int{}
		for _, a := range adverts(wire, p.LB2, began) {
			count[a.ip.Source.Is6()]++
		}
		return count[true] > 0 && count[true] == count[false], fmt.Sprintf("%d over IPv6, %d over IPv4", count[true], count[false])
	})
	out := p.run(backup, "skd-hooks", "status")
	for _, words := range []string{"192.168.77.100/24", "fd77::100/64", "192.168.77."} {
		if !strings.Contains(out, words) {
			t.Errorf("no %q in\n%s", words, out)
		}
	}
	if r := p.report(backup); r.Peer.Address != master.Addr(0).String() || r.Peer.Second != master.Addr6(0).String() {
		t.Errorf("the peer in vrrpd.json: %+v", r.Peer)
	}
}

// The same election over every way that adverts can go, in both families at once.
func TestBothFamiliesByEveryTransport(t *testing.T) {
	for _, row := range []struct {
		name    string
		changes keys
		proto   string // of what carries adverts, for nft
	}{
		{"multicast unsigned", keys{"password": ""}, "112"},
		{"unicast", keys{"transport": "unicast"}, "112"},
		{"unicast unsigned", keys{"transport": "unicast", "password": ""}, "112"},
		{"udp", keys{"transport": "udp"}, "udp"},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := newPair6(t, lab.Both, row.changes)
			six := p.Watch(lab.ClusterIP6)
			began := time.Now()
			p.startBoth()
			four, other := p.probe(), p.probeOf(lab.ClusterIP6)
			answers := func(since time.Time) {
				t.Helper()
				p.eventually("answers in both families", func() (bool, string) {
					return four.AnsweredAfter(since) && other.AnsweredAfter(since), p.roles()
				})
			}

			t.Log("a hand-over takes both")
			for _, from := range []*lab.Node{p.LB1, p.LB2} {
				p.signal(from, unix.SIGUSR2)
				p.waitMaster(p.other(from))
			}
			answers(time.Now())
			for _, r := range []lab.Report{four.Report(), other.Report()} {
				if r.Longest().Length() > slack+r.Stall {
					t.Errorf("a hand-over cost %v", r.Longest())
				}
			}

			t.Log("a backup that hears one family only stays one")
			since := time.Now()
			p.run(p.LB2, "nft", "add table ip deaf; add chain ip deaf in { type filter hook input priority 0; }; add rule ip deaf in meta l4proto "+row.proto+" drop")
			p.logged(p.LB2, "the peer is heard over IPv6, but not over IPv4")
			p.run(p.LB2, "nft", "delete", "table", "ip", "deaf")
			p.logged(p.LB2, "over: the peer is heard over IPv6, but not over IPv4")
			p.unchanged(since)

			t.Log("two masters that meet are one again, in both families")
			p.check(p.LB2.Isolate())
			p.waitStatus(p.LB2, "master")
			p.check(p.LB2.Heal())
			master, backup := p.settled()
			answers(time.Now())

			t.Log("a power cut, and the return")
			cut := time.Now()
			p.check(master.PowerOff())
			p.waitStatus(backup, "master")
			answers(cut.Add(p.down(backup) / 2))
			p.outage(backup, four.Stop(), cut, p.down(backup))
			p.outage(backup, other.Stop(), cut, p.down(backup))
			p.forgetsNeighbours(backup)
			back := p.boot(master)
			p.start(master)
			p.waitMaster(backup)
			p.neverTwo(back, 0)
			if d := split(p.watch, six, began); d > slack {
				t.Errorf("one node had the address of one family and its peer that of the other for %v", d)
			}
		})
	}
}

// The node's addresses are tentative for a while after a boot, and after the interface was set down they are gone.
func TestIPv6WithDuplicateAddressDetection(t *testing.T) {
	p := newPair6(t, lab.IPv6)
	// For so long that the daemon is there before the search is over.
	p.run(p.LB1, "sh", "-c", `echo 1 > /proc/sys/net/ipv6/conf/eth0/accept_dad; echo 3 > /proc/sys/net/ipv6/conf/eth0/dad_transmits
		ip link set eth0 down; ip link set eth0 up; ip addr add fd77::b/64 dev eth0`)
	p.start(p.LB1)
	p.logged(p.LB1, "is not usable on eth0 yet, because Linux looks for a duplicate of it first")
	p.waitStatus(p.LB1, "master")
	p.start(p.LB2)
	p.waitMaster(p.LB1)
	p.check(p.LB1.Cut())
	p.waitStatus(p.LB2, "master")
	p.logged(p.LB1, "fault on eth0 vrid 1: eth0 has no carrier")
	p.check(p.LB1.Heal())
	p.waitMaster(p.LB2) // its addresses are as they were
	p.signal(p.LB2, unix.SIGUSR2)
	p.waitMaster(p.LB1)
	p.run(p.LB1, "sh", "-c", "ip link set eth0 down; ip link set eth0 up")
	p.waitStatus(p.LB2, "master")
	p.logged(p.LB1, "eth0 has no IPv6 address, $local_ip fd77::b is expected there")
	p.run(p.LB1, "ip", "addr", "add", "fd77::b/64", "dev", "eth0")
	p.waitMaster(p.LB2)
}

func TestReplicationOverIPv6(t *testing.T) {
	t.Parallel()
	p := pairIn(t, lab.IPv6)
	p.check(p.ConnectSSH())
	p.startBoth()
	p.inStep(p.LB1)
	p.replicationSays(p.LB1, 0, "fd77::c")
	p.check(p.LB1.WriteFile(lab.TreePath+"/farm_proxy.cfg", "Service\n", 0o644))
	p.inStep(p.LB1)
	p.signal(p.LB1, unix.SIGUSR2)
	p.waitMaster(p.LB2)
	p.inStep(p.LB2)
	p.replicationSays(p.LB2, 0, "fd77::b")
}

// advertise6 sends an unsolicited neighbour advertisement for an address.
func (i *intruder) advertise6(addr netip.Addr) {
	i.t.Helper()
	i.send(announce.AppendNA(nil, i.mac, addr, false))
}
