package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/guard"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
	"github.com/skudonet/skudonet-ce-cluster/test/lab"
)

// step is a subtest on the same pair. They run one after the other.
func (p *pair) step(name string, f func(t *testing.T)) {
	p.t.Helper()
	parent := p.t
	defer func() { p.t = parent }()
	parent.Run(name, func(t *testing.T) {
		p.t = t
		f(t)
	})
}

// twoLinks is newPair with a second network on eth1.
func twoLinks(t *testing.T, changes keys) *pair {
	t.Helper()
	t.Parallel()
	l := lab.Test(t, lab.Options{Links: 2, Config: changes})
	return &pair{Lab: l, t: t, vip: lab.ClusterIP, watch: l.Watch(lab.ClusterIP), conf: map[*lab.Node]keys{}, daemons: map[*lab.Node]*lab.Daemon{}}
}

// speak is a Perl program that announces addresses from a packet socket, as request and as reply: speak LINK ADDRESS...
// With LINK=OTHER it prints how many of its frames arrive at OTHER.
const speak = `
my ($link, $other) = split /=/, shift;
sub fact { open my $f, "<", "/sys/class/net/$_[0]/$_[1]" or die "$_[0]: $!"; <$f> =~ s/\n//r }
my $index = fact($link, "ifindex");
my $mac = pack "H*", fact($link, "address") =~ s/://gr;
socket my $s, 17, 3, 0 or die $!;
if ($other) {
	socket STDIN, 17, 3, 0x0608 or die $!;
	bind STDIN, pack("SnlSCCa8", 17, 0x0806, fact($other, "ifindex"), 0, 0, 0, "") or die $!;
}
for (@ARGV) {
	my $ip = pack "C4", split /\./;
	for my $op (1, 2) {
		my $arp = pack("nnCCn", 1, 0x800, 6, 4, $op) . $mac . $ip . "\xff" x 6 . $ip;
		send $s, "\xff" x 6 . $mac . "\x08\x06$arp", 0, pack("SnlSCCa8", 17, 0x0806, $index, 1, 0, 6, "\xff" x 6);
	}
}
exit unless $other;
my ($count, $wanted) = (0, "");
vec($wanted, fileno STDIN, 1) = 1;
$count++ while select(my $ready = $wanted, undef, undef, 1) > 0 and defined recv STDIN, my $frame, 100, 0x40;
print $count;
`

// waitReport waits until the node's vrrpd.json is such.
func (p *pair) waitReport(n *lab.Node, what string, such func(status.Daemon) bool) {
	p.t.Helper()
	p.awaitReport(n, what, func(r status.Daemon) (bool, string) { return such(r), fmt.Sprintf("%+v", r) })
}

// garps are the gratuitous ARP messages for an address that a node has sent since then.
func garps(c *lab.Capture, n *lab.Node, ip netip.Addr, since time.Time) (found []lab.Packet) {
	return c.Select(func(p lab.Packet) bool {
		a, ok := p.ARP()
		return ok && a.Gratuitous() && a.Sender == ip && p.Node == n.Name && p.Time.After(since)
	})
}

// announced waits until the node has announced the address as request and as reply.
func (p *pair) announced(c *lab.Capture, n *lab.Node, ip netip.Addr, since time.Time) {
	p.t.Helper()
	p.eventually(fmt.Sprintf("gratuitous ARP for %s from %s", ip, n.Name), func() (bool, string) {
		var request, reply bool
		for _, f := range garps(c, n, ip, since) {
			a, _ := f.ARP()
			request, reply = request || a.Request, reply || !a.Request
		}
		return request && reply, fmt.Sprintf("request %v, reply %v", request, reply)
	})
}

var (
	webIP = netip.MustParseAddr("192.168.77.101")
	dbIP  = netip.MustParseAddr("192.168.177.60") // on eth1
)

// ruleset is the node's, as nft shows it.
func (p *pair) ruleset(n *lab.Node) string {
	p.t.Helper()
	return p.run(n, "nft", "list", "ruleset")
}

// waitGuard waits until the guard stands with all of these words in it.
func (p *pair) waitGuard(n *lab.Node, words ...string) {
	p.t.Helper()
	p.eventually("the guard on "+n.Name, func() (bool, string) {
		text := p.ruleset(n)
		for _, w := range append(words, "table netdev "+guard.Table) {
			if !strings.Contains(text, w) {
				return false, fmt.Sprintf("no %q in %q", w, text)
			}
		}
		return true, ""
	})
}

func TestGuard(t *testing.T) {
	p := newPairWithHooks(t)
	for _, n := range p.Nodes() {
		p.check(n.WriteInterface("eth0:web", webIP, true))
	}
	sent := p.capture(lab.ARP)
	p.startBoth()
	p.logged(p.LB2, "stop hook ended")
	service, err := p.Client.ProbeService(netip.AddrPortFrom(lab.ClusterIP, lab.ServicePort))
	p.check(err)
	p.eventually("a service", func() (bool, string) { return service.Answering(), p.roles() })

	// From is what lb2 says while f runs of the addresses.
	from := func(f func(), addrs ...netip.Addr) (said []lab.ARPMessage) {
		t.Helper()
		began := time.Now()
		f()
		// What comes last and may pass: when it is there, everything before it is.
		asked := time.Now()
		p.LB2.Run("arping", "-c1", "-w2", "-f", "-I", "eth0", p.Client.Addr(0).String())
		p.eventually("a question from the node's own address", func() (own bool, seen string) {
			said = nil
			for _, frame := range sent.Packets() {
				a, ok := frame.ARP()
				if !ok || frame.Node != p.LB2.Name || frame.Time.Before(began) {
					continue
				}
				own = own || a.Sender == p.LB2.Addr(0) && frame.Time.After(asked)
				if slices.Contains(addrs, a.Sender) {
					said = append(said, a)
				}
			}
			return own, ""
		})
		return said
	}
	silent := func(what string, f func(), addrs ...netip.Addr) {
		t.Helper()
		if said := from(f, addrs...); len(said) > 0 {
			p.t.Errorf("%s: the backup said %+v", what, said)
		}
	}
	packetSocket := func(n *lab.Node, addrs ...netip.Addr) func() {
		return func() {
			args := []string{"-e", speak, "eth0"}
			for _, a := range addrs {
				args = append(args, a.String())
			}
			p.run(n, "perl", args...)
		}
	}

	p.step("somebody starts Skudonet on the backup", func(t *testing.T) {
		silent("start", func() { p.run(p.LB2, "/etc/init.d/skudonet", "start") }, lab.ClusterIP, webIP)
		for _, ip := range []netip.Addr{lab.ClusterIP, webIP} {
			if !strings.Contains(p.run(p.LB2, "ip", "addr"), ip.String()+"/24") {
				t.Fatalf("%s is not up on the backup, so nothing is tested here", ip)
			}
		}
		silent("arping -U and -A", func() {
			// Nobody answers, which is a failure to it.
			p.LB2.Run("arping", "-U", "-c1", "-w1", "-I", "eth0", lab.ClusterIP.String())
			p.LB2.Run("arping", "-A", "-c1", "-w1", "-I", "eth0", webIP.String())
		}, lab.ClusterIP, webIP)
		silent("packet socket", packetSocket(p.LB2, lab.ClusterIP, webIP), lab.ClusterIP, webIP)
		silent("a kernel that looks for a neighbour from the address", func() {
			p.LB2.Run("ping", "-c1", "-W1", "-I", webIP.String(), "192.168.77.77")
		}, lab.ClusterIP, webIP)
		silent("a client's question", func() {
			p.run(p.Client, "arping", "-c1", "-w10", "-I", "eth0", webIP.String())
		}, lab.ClusterIP, webIP)
	})
	p.step("the ruleset is flushed", func(t *testing.T) {
		for _, args := range [][]string{{"flush", "ruleset"}, {"delete", "table", "netdev", guard.Table},
			{"delete", "element", "netdev", guard.Table, "addresses", "{ " + webIP.String() + " }"}, {"flush", "table", "netdev", guard.Table}} {
			p.run(p.LB2, "nft", args...)
			p.waitGuard(p.LB2, lab.ClusterIP.String(), webIP.String(), "drop")
			silent(strings.Join(args, " "), packetSocket(p.LB2, lab.ClusterIP, webIP), lab.ClusterIP, webIP)
		}
	})
	p.step("a new interface", func(t *testing.T) {
		p.run(p.LB2, "ip", "link", "add", "new0", "type", "veth", "peer", "name", "new1")
		p.run(p.LB2, "ip", "link", "set", "new1", "up")
		p.run(p.LB2, "ip", "link", "set", "new0", "up")
		p.waitGuard(p.LB2, "new0", "new1")
		hear := func(ip netip.Addr) string { return p.run(p.LB2, "perl", "-e", speak, "new0=new1", ip.String()) }
		if got := hear(p.LB2.Addr(0)); got != "2" {
			t.Errorf("%s of the 2 frames with the node's own address arrived", got)
		}
		if got := hear(webIP); got != "0" {
			t.Errorf("%s frames with %s arrived", got, webIP)
		}
	})
	p.step("files of virtual interfaces come and go", func(t *testing.T) {
		ip := netip.MustParseAddr("192.168.77.150")
		began := time.Now()
		packetSocket(p.LB2, ip)()
		p.eventually("an address that is not virtual said twice", func() (bool, string) {
			said := len(garps(sent, p.LB2, ip, began))
			return said == 2, fmt.Sprint(said)
		})
		p.check(p.LB2.WriteInterface("eth0:new", ip, true))
		p.waitGuard(p.LB2, ip.String())
		silent("new virtual interface", packetSocket(p.LB2, ip), ip)
		p.run(p.LB2, "ip", "addr", "add", ip.String()+"/24", "dev", "eth0", "label", "eth0:new")
		p.run(p.LB2, "rm", path.Join(lab.TreePath, "if_eth0:new_conf"))
		p.eventually("the guard without "+ip.String(), func() (bool, string) {
			text := p.ruleset(p.LB2)
			return !strings.Contains(text, ip.String()), text
		})
		p.waitVirtuals(p.LB2, "eth0:1 "+lab.ClusterIP.String(), "eth0:web "+webIP.String()) // nor the address that nobody else takes down
		p.waitGuard(p.LB2, lab.ClusterIP.String(), webIP.String())
	})
	p.step("the client talks to the master all the while", func(t *testing.T) {
		for _, turn := range service.Stop().Turns {
			if turn.Name != p.LB1.Name {
				t.Errorf("%s answered %d times", turn.Name, turn.Answers)
			}
		}
	})
	p.step("none on the master", func(t *testing.T) {
		if text := p.ruleset(p.LB1); strings.Contains(text, guard.Table) {
			t.Errorf("lb1 is master with\n%s", text)
		}
		began := time.Now()
		packetSocket(p.LB1, webIP)()
		p.announced(sent, p.LB1, webIP, began)
	})
	p.step("stays after a stop while an address is up", func(t *testing.T) {
		p.hook(p.LB2, "stop", "#!/bin/sh\nip addr add "+lab.ClusterIP.String()+"/24 dev eth0\n")
		p.stop(p.LB2)
		p.waitGuard(p.LB2, lab.ClusterIP.String())
		silent("after a stop", packetSocket(p.LB2, lab.ClusterIP), lab.ClusterIP)
		p.saidOnce(p.LB2, "the guard stays")
	})
	p.step("goes with a stop otherwise", func(t *testing.T) {
		p.hook(p.LB2, "stop", "#!/bin/sh\nexec skd-hooks stop\n")
		p.start(p.LB2)
		p.waitStatus(p.LB2, "backup")
		p.waitGuard(p.LB2, lab.ClusterIP.String(), webIP.String())
		p.stop(p.LB2)
		if text := p.ruleset(p.LB2); strings.Contains(text, guard.Table) {
			t.Errorf("lb2 is stopped with\n%s\nand addresses\n%s", text, p.run(p.LB2, "ip", "-o", "-4", "addr"))
		}
	})
	p.step("falls with a promotion, returns with a demotion", func(t *testing.T) {
		p.start(p.LB2)
		p.waitMaster(p.LB1)
		p.waitGuard(p.LB2, webIP.String())
		began := time.Now()
		p.stop(p.LB1)
		p.waitStatus(p.LB2, "master")
		p.announced(sent, p.LB2, webIP, began)
		if text := p.ruleset(p.LB2); strings.Contains(text, guard.Table) {
			t.Errorf("lb2 is master with\n%s", text)
		}
		p.start(p.LB1)
		p.waitMaster(p.LB2)
		p.waitGuard(p.LB1, webIP.String())
	})
}

// virtual is a virtual address as the kernel has it.
type virtual struct {
	Local, Broadcast, Label, Scope string
	PrefixLen                      int
	Secondary, NoPrefixRoute       bool
}

// virtuals lists the node's addresses that are not its own, by label.
func (p *pair) virtuals(n *lab.Node) map[string]virtual {
	p.t.Helper()
	var links []struct {
		AddrInfo []virtual `json:"addr_info"`
	}
	p.check(json.Unmarshal([]byte(p.run(n, "ip", "-j", "-4", "addr")), &links))
	found := map[string]virtual{}
	for _, l := range links {
		for _, a := range l.AddrInfo {
			if a.Local != n.Addr(0).String() && a.Local != n.Addr(1).String() && a.Label != "lo" {
				found[a.Label+" "+a.Local] = a
			}
		}
	}
	return found
}

// waitVirtuals waits until the node has exactly these virtual addresses ("eth0:1 192.168.77.100").
func (p *pair) waitVirtuals(n *lab.Node, want ...string) {
	p.t.Helper()
	slices.Sort(want)
	p.eventually(fmt.Sprintf("%v on %s", want, n.Name), func() (bool, string) {
		var have []string
		for name := range p.virtuals(n) {
			have = append(have, name)
		}
		slices.Sort(have)
		return slices.Equal(have, want), fmt.Sprint(have)
	})
}

func TestAddresses(t *testing.T) {
	p := twoLinks(t, keys{"advert_interval": "0.2", "up_script": "/bin/true", "down_script": "/bin/true", "adver_script": "/bin/true"})
	for _, n := range p.Nodes() {
		p.check(n.WriteInterface("eth0:web", webIP, true))
		p.check(n.WriteInterface("eth0:off", netip.MustParseAddr("192.168.77.102"), false))
		p.check(n.WriteInterface("eth1:db", dbIP, true))
	}
	const cluster, web, ofDB = "eth0:1 192.168.77.100", "eth0:web 192.168.77.101", "eth1:db 192.168.177.60"
	p.run(p.LB2, "/etc/init.d/skudonet", "start")
	bySkudonet := p.virtuals(p.LB2)
	p.run(p.LB2, "/etc/init.d/skudonet", "stop")
	sent := p.capture(lab.ARP)
	p.startBoth()

	p.step("in the form that Skudonet gives them", func(t *testing.T) {
		p.waitVirtuals(p.LB1, cluster, web, ofDB)
		p.waitVirtuals(p.LB2)
		for name, have := range p.virtuals(p.LB1) {
			if want := bySkudonet[name]; have != want || !want.NoPrefixRoute {
				t.Errorf("%s:\n%+v, by Skudonet\n%+v", name, have, want)
			}
		}
		for _, ip := range []netip.Addr{lab.ClusterIP, webIP, dbIP} {
			p.announced(sent, p.LB1, ip, time.Time{})
		}
	})

	const fresh = "eth0:new 192.168.77.150"
	ip, next := netip.MustParseAddr("192.168.77.150"), netip.MustParseAddr("192.168.77.151")
	p.step("a file appears, by rename", func(t *testing.T) {
		since := time.Now()
		p.check(p.LB1.WriteInterface("eth0:new", ip, true))
		p.run(p.LB1, "mv", lab.TreePath+"/if_eth0:new_conf", "/usr/local/skudonet/staged")
		p.waitVirtuals(p.LB1, cluster, web, ofDB)
		p.run(p.LB1, "mv", "/usr/local/skudonet/staged", lab.TreePath+"/if_eth0:new_conf")
		p.waitVirtuals(p.LB1, cluster, web, ofDB, fresh)
		p.announced(sent, p.LB1, ip, since)
	})
	p.step("a file is edited", func(t *testing.T) {
		since := time.Now()
		p.check(p.LB1.WriteInterface("eth0:new", next, true))
		p.waitVirtuals(p.LB1, cluster, web, ofDB, "eth0:new 192.168.77.151")
		p.announced(sent, p.LB1, next, since)
	})
	p.step("status becomes down, and up", func(t *testing.T) {
		p.check(p.LB1.WriteInterface("eth0:new", next, false))
		p.waitVirtuals(p.LB1, cluster, web, ofDB)
		since := time.Now()
		p.check(p.LB1.WriteInterface("eth0:off", netip.MustParseAddr("192.168.77.102"), true))
		p.waitVirtuals(p.LB1, cluster, web, ofDB, "eth0:off 192.168.77.102")
		p.announced(sent, p.LB1, netip.MustParseAddr("192.168.77.102"), since)
	})
	p.step("a file is removed", func(t *testing.T) {
		p.run(p.LB1, "rm", lab.TreePath+"/if_eth0:off_conf")
		p.waitVirtuals(p.LB1, cluster, web, ofDB)
	})
	p.step("the file of $cluster_ip is removed", func(t *testing.T) {
		probe := p.probe()
		since := time.Now()
		p.run(p.LB1, "rm", lab.TreePath+"/if_eth0:1_conf")
		p.check(p.LB1.WriteInterface("eth0:new", ip, true)) // seen later
		p.waitVirtuals(p.LB1, cluster, web, ofDB, fresh)
		p.unchanged(since)
		noLoss(t, probe.Stop())
		p.check(p.LB1.WriteInterface("eth0:1", lab.ClusterIP, true))
		p.run(p.LB1, "rm", lab.TreePath+"/if_eth0:new_conf")
		p.waitVirtuals(p.LB1, cluster, web, ofDB)
	})
	p.step("somebody takes an address away", func(t *testing.T) {
		for _, a := range []struct {
			ip   netip.Addr
			link string
		}{{webIP, "eth0"}, {lab.ClusterIP, "eth0"}, {dbIP, "eth1"}} {
			since := time.Now()
			p.run(p.LB1, "ip", "addr", "del", a.ip.String()+"/24", "dev", a.link)
			p.announced(sent, p.LB1, a.ip, since)
			p.waitVirtuals(p.LB1, cluster, web, ofDB)
		}
	})
	p.step("somebody flushes all", func(t *testing.T) {
		since := time.Now()
		p.run(p.LB1, "ip", "addr", "flush", "dev", "eth0", "label", "eth0:*")
		p.announced(sent, p.LB1, webIP, since)
		p.announced(sent, p.LB1, lab.ClusterIP, since)
		p.waitVirtuals(p.LB1, cluster, web, ofDB)
		if p.LB1.Status() != "master" || p.LB2.Status() != "backup" {
			t.Errorf("status %s", p.roles())
		}
	})
	p.step("files that are none", func(t *testing.T) {
		bad := map[string]string{
			"eth0:empty":       "",
			"eth0:other":       "[eth0:web]\naddr=192.168.77.160\nmask=255.255.255.0\nstatus=up\n",
			"eth0:words":       "[eth0:words]\naddr=here\nstatus=up\n",
			"eth0:six":         "[eth0:six]\naddr=fe80::1%eth0\nstatus=up\n",
			"eth0:none":        "[eth0:none]\nstatus=up\n",
			"eth0:much":        strings.Repeat("x", 1<<20),
			"eth0:bytes":       "\x00\xff\xfe[=\n",
			"eth0:of-too-long": "[eth0:of-too-long]\naddr=192.168.77.161\nstatus=up\n",
			"eth0:host":        "[eth0:host]\naddr=192.168.77.11\nstatus=up\n",
			"eth0:twice":       "[eth0:twice]\naddr=192.168.77.101\nstatus=up\n",
			":x":               "[:x]\naddr=192.168.77.162\nstatus=up\n",
		}
		// Put there in one piece each: half a file is another mistake, and said as well.
		const stage = "/usr/local/skudonet/stage"
		p.run(p.LB1, "mkdir", stage)
		for name, text := range bad {
			p.check(p.LB1.WriteFile(fmt.Sprintf("%s/if_%s_conf", stage, name), text, 0o644))
		}
		p.run(p.LB1, "sh", "-c", "mv "+stage+"/* "+lab.TreePath)
		p.run(p.LB1, "mkdir", lab.TreePath+"/if_eth0:dir_conf")
		p.run(p.LB1, "mkfifo", lab.TreePath+"/if_eth0:fifo_conf")
		p.run(p.LB1, "ln", "-s", "nowhere", lab.TreePath+"/if_eth0:link_conf")
		for _, name := range []string{"eth0:dir", "eth0:fifo", "eth0:link"} {
			bad[name] = ""
		}
		p.check(p.LB1.WriteInterface("eth0:new", ip, true)) // a good one among them, seen later
		p.waitVirtuals(p.LB1, cluster, web, ofDB, fresh)
		p.check(p.LB1.WriteInterface("eth0:new", next, true))
		p.waitVirtuals(p.LB1, cluster, web, ofDB, "eth0:new 192.168.77.151")
		for name := range bad {
			p.saidOnce(p.LB1, "if_"+name+"_conf")
		}
	})
	p.step("an interface that is not there", func(t *testing.T) {
		p.check(p.LB1.WriteInterface("eth7:x", netip.MustParseAddr("192.168.78.1"), true))
		p.logged(p.LB1, "no such interface")
		p.waitReport(p.LB1, "a fault that names eth7", func(r status.Daemon) bool {
			return len(r.Faults) == 1 && strings.Contains(r.Faults[0].Text, "eth7")
		})
		p.run(p.LB1, "ip", "link", "add", "eth7", "type", "veth", "peer", "name", "far7")
		p.run(p.LB1, "ip", "link", "set", "far7", "up")
		p.waitVirtuals(p.LB1, cluster, web, ofDB, "eth0:new 192.168.77.151", "eth7:x 192.168.78.1")
		p.run(p.LB1, "ip", "link", "set", "eth7", "up")
		p.waitReport(p.LB1, "no fault", func(r status.Daemon) bool { return len(r.Faults) == 0 })
	})
	p.step("$cluster_ip has no file where it goes", func(t *testing.T) {
		p.run(p.LB2, "rm", lab.TreePath+"/if_eth0:1_conf")
		p.waitReport(p.LB2, "another name for it", func(r status.Daemon) bool {
			return slices.Contains(r.Addresses, status.Address{Prefix: "192.168.77.100/24", Label: "eth0:skd"})
		})
		p.stop(p.LB1)
		p.waitStatus(p.LB2, "master")
		p.waitVirtuals(p.LB2, "eth0:skd 192.168.77.100", web, ofDB)
		if a := p.virtuals(p.LB2)["eth0:skd 192.168.77.100"]; a.PrefixLen != 24 || a.Broadcast != "192.168.77.255" {
			t.Errorf("%+v, want the prefix length of the node's own address", a)
		}
		p.waitVirtuals(p.LB1)
	})
}

// apart is the longest time between two adverts.
func apart(sent []advert) (longest time.Duration) {
	for i := range sent[1:] {
		longest = max(longest, sent[i+1].Time.Sub(sent[i].Time))
	}
	return longest
}

func TestThousandsOfAddresses(t *testing.T) {
	const addresses, interval, attempts = 2000, 50 * time.Millisecond, 5
	p := newPair(t, keys{"advert_interval": "0.05", "dead_ratio": "20"})
	want := map[netip.Addr]bool{lab.ClusterIP: true}
	for i := range addresses {
		ip := netip.AddrFrom4([4]byte{10, 77, byte(i / 250), byte(i%250 + 1)})
		want[ip] = true
		for _, n := range p.Nodes() {
			p.check(n.WriteInterface(fmt.Sprintf("eth0:a%d", i), ip, true))
		}
	}
	p.startBoth()
	sent := p.capture(lab.ARP | lab.VRRP)
	from, to := p.LB1, p.LB2
	for i := 1; ; i++ {
		since := time.Now()
		p.signal(from, unix.SIGUSR2)
		p.waitStatus(to, "master")
		var last time.Time
		p.eventually("all announced", func() (bool, string) {
			said, done := map[netip.Addr]int{}, 0
			for _, f := range sent.Packets() {
				if a, ok := f.ARP(); ok && f.Node == to.Name && f.Time.After(since) && a.Gratuitous() && want[a.Sender] {
					if said[a.Sender]++; said[a.Sender] == 2 { // as request and as reply
						done++
						last = f.Time
					}
				}
			}
			return done == len(want), fmt.Sprint(done)
		})
		if have := len(p.virtuals(to)); have != len(want) {
			t.Errorf("%d addresses up on %s, want %d", have, to.Name, len(want))
		}
		p.eventually(from.Name+" without addresses", func() (bool, string) {
			have := len(p.virtuals(from))
			return have == 0, fmt.Sprint(have)
		})
		p.awaitAdverts(sent, to, 10)
		list := claims(sent, to, since)
		longest, took, meanwhile := apart(list), last.Sub(list[0].Time), 0
		for _, a := range list[1:] {
			if a.Time.Before(last) {
				meanwhile++
			}
		}
		t.Logf("all announced within %v, %d adverts meanwhile, at most %v apart", took, meanwhile, longest)
		// A busy host makes single adverts late, and the addresses take longer. Were those in the way, there would be none.
		if longest <= interval+interval/2 || took > 4*interval && meanwhile >= int(took/interval)/2 {
			break
		}
		if i == attempts {
			t.Errorf("adverts were late in each of %d takeovers", attempts)
			break
		}
		from, to = to, from
	}
	p.stop(to)
	if have := p.virtuals(to); len(have) > 0 {
		t.Errorf("%d addresses are up after a stop", len(have))
	}
}

func TestAnnouncements(t *testing.T) {
	const tolerance = 400 * time.Millisecond
	p := twoLinks(t, keys{"advert_interval": "0.2", "garp_refresh": "2", "up_script": "/bin/true", "down_script": "/bin/true", "adver_script": "/bin/true"})
	for _, n := range p.Nodes() {
		p.check(n.WriteInterface("eth0:web", webIP, true))
		p.check(n.WriteInterface("eth1:db", dbIP, true))
	}
	sent := p.capture(lab.ARP)
	schedule := []time.Duration{0, time.Second, 2 * time.Second, 3 * time.Second, 5 * time.Second, 7 * time.Second}
	follows := func(n *lab.Node, since time.Time, schedule []time.Duration) {
		t.Helper()
		for _, ip := range []netip.Addr{lab.ClusterIP, webIP} {
			var frames []lab.Packet
			p.eventually(fmt.Sprintf("all announcements of %s by %s", ip, n.Name), func() (bool, string) {
				frames = garps(sent, n, ip, since)
				// A goodbye that follows a promotion begins the schedule anew.
				for len(frames) > 2 && frames[2].Time.Sub(frames[0].Time) < tolerance {
					frames = frames[2:]
				}
				return len(frames) >= 2*len(schedule), fmt.Sprint(len(frames))
			})
			for i, f := range frames[:2*len(schedule)] {
				want, at := schedule[i/2], f.Time.Sub(frames[0].Time)
				if busy := tolerance + p.watch.Stall(); at < want-busy || at > want+busy {
					t.Errorf("%s: announcement %d of %s %v after the first, want %v", n.Name, i+1, ip, at, want)
				}
				a, _ := f.ARP()
				broadcast, mac := "ff:ff:ff:ff:ff:ff", a.From.String()
				target := map[bool]string{true: broadcast, false: mac}[a.Request]
				if a.Request != (i%2 == 0) || a.To.String() != broadcast || a.SenderMAC.String() != mac || a.TargetMAC.String() != target {
					t.Errorf("%s: announcement %d of %s is %+v", n.Name, i+1, ip, a)
				}
			}
		}
	}
	p.startBoth()
	follows(p.LB1, time.Time{}, schedule)
	for _, ip := range []netip.Addr{lab.ClusterIP, webIP} {
		if said := garps(sent, p.LB2, ip, time.Time{}); len(said) > 0 {
			t.Errorf("the backup announced %s %d times", ip, len(said))
		}
	}

	// A link other than the cluster's comes back.
	p.check(p.LB1.Cut(1))
	p.eventually("that the kernel says so, which may take it a second", func() (bool, string) {
		state := p.run(p.LB1, "cat", "/sys/class/net/eth1/operstate")
		return strings.TrimSpace(state) != "up", state
	})
	p.run(p.LB1, "rm", lab.TreePath+"/if_eth0:web_conf")
	p.waitVirtuals(p.LB1, "eth0:1 192.168.77.100", "eth1:db 192.168.177.60") // the daemon has looked since
	since := time.Now()
	p.check(p.LB1.Heal(1))
	p.announced(sent, p.LB1, dbIP, since)
	p.eventually("the beginning of a schedule", func() (bool, string) {
		frames := garps(sent, p.LB1, dbIP, since)
		for i := range max(0, len(frames)-2) {
			if frames[i+2].Time.Sub(frames[i].Time) < 2*time.Second-tolerance {
				return true, ""
			}
		}
		return false, fmt.Sprint(len(frames))
	})

	since = time.Now()
	p.signal(p.LB1, unix.SIGUSR2)
	p.waitMaster(p.LB2)
	handed := time.Now()
	follows(p.LB2, since, schedule[:4])
	for _, ip := range []netip.Addr{lab.ClusterIP, webIP} {
		if said := garps(sent, p.LB1, ip, handed); len(said) > 0 {
			t.Errorf("lb1 announced %s %d times after it had handed over", ip, len(said))
		}
	}
}
