package neighbours

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/election"
	"github.com/skudonet/skudonet-ce-cluster/test/lab"
)

// Among ourselves there is no need to wait for seconds, but for a down interval that a busy host does not miss.
const (
	brisk     = 700 * time.Millisecond
	briskText = "0.7"
	hexKey    = "hex:000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
)

var briskDown = election.DownInterval(100, brisk, 3)

// cluster is nodes that share an address, on a wire with others. The watch is of that address, on all nodes of the lab.
type cluster struct {
	*pair
	nodes []*lab.Node
	kept  *lab.Node // has keepalived, which writes no status file
	lives int
}

func newWire(t *testing.T, o lab.Options, changes keys) *lab.Lab {
	t.Helper()
	t.Parallel()
	o.Config = keys{"advert_interval": briskText}
	maps.Copy(o.Config, changes)
	return lab.Test(t, o)
}

func newCluster(t *testing.T, l *lab.Lab, addr netip.Addr, nodes ...*lab.Node) *cluster {
	t.Helper()
	return &cluster{pair: &pair{Lab: l, t: t, watch: l.Watch(addr), daemons: map[*lab.Node]*lab.Daemon{}, down: briskDown, every: brisk}, nodes: nodes}
}

// start starts our daemon on nodes, as nearly together as can be.
func (c *cluster) start(nodes ...*lab.Node) {
	c.t.Helper()
	for _, n := range nodes {
		c.forgetStatus(n)
		for _, event := range []string{"start", "stop", "advertisement"} {
			c.check(n.WriteFile(hooks+event, "#!/bin/sh\n", 0o755))
		}
	}
	for _, n := range nodes {
		c.lives++ // each has a log of its own: what is said once is so in one life
		d, err := n.Start(lab.DaemonSpec{Name: fmt.Sprintf("skd-vrrpd-%d", c.lives), Args: []string{"nice", "-n", "-15", "skd-vrrpd"}, Restart: true})
		c.check(err)
		c.daemons[n] = d
	}
	for _, n := range nodes {
		c.eventually(n.Name+" in the election", func() (bool, string) {
			_, now := c.watch.Last(n, func(c lab.Claim) bool { return c.Status != "" })
			return now, c.roles()
		})
	}
}

func (c *cluster) stop(nodes ...*lab.Node) {
	c.t.Helper()
	for _, n := range nodes {
		c.check(c.daemons[n].Stop())
	}
}

func (c *cluster) roles() string {
	s := ""
	for _, n := range c.nodes {
		_, has := c.watch.Last(n, func(c lab.Claim) bool { return c.Address })
		s += fmt.Sprintf("%s %q, address %v; ", n.Name, n.Status(), has)
	}
	return s
}

// masters are the nodes that have the address or say that they are master.
func (c *cluster) masters() (list []*lab.Node) {
	for _, n := range c.nodes {
		if _, now := c.watch.Last(n, func(c lab.Claim) bool { return c.Address || c.Status == "master" }); now {
			list = append(list, n)
		}
	}
	return list
}

// only waits until one of some nodes, all if none is named, and no other one, is master with the address, and has been
// for an interval: of two backups whose timers end together both may be for a moment.
func (c *cluster) only(of ...*lab.Node) (master *lab.Node) {
	c.t.Helper()
	if len(of) == 0 {
		of = c.nodes
	}
	var since time.Time
	c.eventually("only one master", func() (bool, string) {
		list := c.masters()
		if len(list) != 1 {
			master = nil
			return false, c.roles()
		}
		if list[0] != master {
			master, since = list[0], time.Now()
		}
		_, whole := c.watch.Last(master, func(claim lab.Claim) bool { return claim.Address && (claim.Status == "master" || master == c.kept) })
		return whole && slices.Contains(of, master) && time.Since(since) > c.every, c.roles()
	})
	return master
}

// calm lets time pass, more than any node needs to miss its master, in which nothing may change.
func (c *cluster) calm() {
	c.t.Helper()
	c.only()
	since := time.Now()
	<-time.After(c.down + c.every)
	c.unchanged(since)
}

// unchanged fails the test if something has changed in the cluster since then.
func (c *cluster) unchanged(since time.Time) {
	c.t.Helper()
	for _, change := range c.watch.Changes() {
		ours := slices.ContainsFunc(c.nodes, func(n *lab.Node) bool { return n.Name == change.Node })
		if ours && change.At.After(since) {
			c.excuse()
			c.t.Errorf("%s changed %v later: address %v, status %q", change.Node, change.At.Sub(since).Round(time.Millisecond), change.Address, change.Status)
		}
	}
}

// gap fails the test if since then no node had the address for longer.
func (c *cluster) gap(since time.Time, atMost time.Duration) {
	c.t.Helper()
	if d := c.watch.NoHolder(since); d > atMost+slack {
		c.excuse()
		c.t.Errorf("nobody had the address for %v, want at most %v and %v for a busy host", d, atMost, slack)
	}
}

// failover cuts the power of the master, and gives the one of the others that takes over: not before it has missed the
// master for long enough, whatever others do at that moment.
func (c *cluster) failover(meanwhile ...func()) (successor *lab.Node) {
	c.t.Helper()
	old, cut := c.only(), time.Now()
	c.check(old.PowerOff())
	for _, f := range meanwhile {
		f()
	}
	successor = c.only(slices.DeleteFunc(slices.Clone(c.nodes), func(n *lab.Node) bool { return n == old })...)
	c.gap(cut, briskDown)
	c.neverTwo(cut, slack)
	if at, _ := c.watch.Last(successor, func(c lab.Claim) bool { return c.Address }); at.Sub(cut) < briskDown-brisk-slack { // its next advert may have been late
		c.t.Errorf("%s has taken over %v after the power cut", successor.Name, at.Sub(cut))
	}
	c.boot(old)
	c.start(old)
	if now := c.only(); now != successor {
		c.t.Errorf("%s is master when %s is back, it was %s", now.Name, old.Name, successor.Name)
	}
	return successor
}

var refused = regexp.MustCompile(`refused an advertisement from ([0-9a-f:.]+): (.*)`)

// reported fails the test unless each node has said of so many senders that it refuses them, in these words and no more
// than once in each life of the daemon.
func (c *cluster) reported(senders int, words string) {
	c.t.Helper()
	for _, n := range c.nodes {
		all := map[string]bool{}
		for life := range c.lives {
			text, err := n.ReadFile(fmt.Sprintf("/var/log/skd-vrrpd-%d.log", life+1))
			if err != nil {
				continue // another node's
			}
			said := map[string]int{}
			for _, m := range refused.FindAllStringSubmatch(text, -1) {
				if said[m[1]]++; !strings.HasPrefix(m[2], words) {
					c.t.Errorf("%s: %s, want %q", n.Name, m[0], words)
				}
				all[m[1]] = true
			}
			if slices.Max(append(slices.Collect(maps.Values(said)), 0)) > 1 || strings.Contains(text, "not becoming master") {
				c.t.Errorf("%s says of what it refuses:\n%s", n.Name, text)
			}
		}
		if len(all) != senders {
			c.t.Errorf("%s has reported %v, want %d", n.Name, all, senders)
		}
	}
}

// unseen fails the test if a node has noticed anybody but its peer.
func (c *cluster) unseen() {
	c.t.Helper()
	for _, n := range c.nodes {
		if r := c.report(n); len(r.Drops) > 0 || len(r.Faults) > 0 {
			c.t.Errorf("%s has refused %v, and complains of %v", n.Name, r.Drops, r.Faults)
		}
		if log := c.daemons[n].Log(); strings.Contains(log, "refused") || strings.Contains(log, "believes to be master") {
			c.t.Errorf("%s:\n%s", n.Name, log)
		}
	}
}

// Where everybody can verify everybody, a third node is one of the election.
var threes = map[string]struct {
	families lab.Families
	addr     netip.Addr
	password string
}{
	"unsigned":           {lab.IPv4, lab.ClusterIP, ""},
	"unsigned over IPv6": {lab.IPv6, lab.ClusterIP6, ""},
	"hex key":            {lab.IPv4, lab.ClusterIP, hexKey},
	"hex key over IPv6":  {lab.IPv6, lab.ClusterIP6, hexKey},
}

// newThree is a pair and a third node with the same configuration, by mistake: its $remote_ip is lb1, and nobody's is its own.
func newThree(t *testing.T, name string) *cluster {
	o := threes[name]
	l := newWire(t, lab.Options{Nodes: 3, Families: o.families}, keys{"password": o.password})
	return newCluster(t, l, o.addr, l.Nodes()...)
}

func TestThreeOfOurs(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name  string
		first int
	}{{"unsigned", 1}, {"unsigned", 3}, {"hex key", 1}, {"hex key", 2}, {"hex key", 3}, {"hex key over IPv6", 1}} {
		t.Run(fmt.Sprintf("%s, lb%d is first", row.name, row.first), func(t *testing.T) {
			c := newThree(t, row.name)
			master := c.nodes[row.first-1]
			rest := *c
			rest.nodes = slices.DeleteFunc(c.Nodes(), func(n *lab.Node) bool { return n == master })

			t.Log("who is first stays")
			since := time.Now()
			c.start(master)
			c.only(master)
			c.start(rest.nodes...)
			c.calm()
			c.neverTwo(since, 0)

			t.Log("a silent cut: the higher address of two masters stays")
			c.check(master.Isolate())
			rival := rest.only()
			healed := time.Now()
			c.check(master.Heal())
			if slices.Index(c.nodes, rival) >= row.first {
				master = rival
			}
			c.only(master)
			c.neverTwo(healed, brisk+slack)
			c.calm()

			t.Log("its power is cut: one of the others takes over")
			master = c.failover()
			c.calm()

			t.Log("it stops: so it does then")
			since = time.Now()
			c.stop(master)
			if c.only() == master {
				t.Errorf("%s has the address, and was stopped", master.Name)
			}
			c.gap(since, 0)
			c.neverTwo(since, slack)
			c.calm()
		})
	}
}

func TestThreeOfOursTogether(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"unsigned", "unsigned over IPv6", "hex key"} {
		t.Run(name, func(t *testing.T) {
			c := newThree(t, name)
			since := time.Now()
			c.start(c.nodes...)
			c.calm()
			t.Log("a power cut of the whole rack")
			for _, n := range c.nodes {
				c.check(n.PowerOff())
			}
			for _, n := range c.nodes {
				c.boot(n)
			}
			c.start(c.nodes...)
			c.calm()
			c.neverTwo(since, slack)
		})
	}
}

// With a password the third one cannot be verified, nor verify anybody: its key was made of other addresses. So it is not
// of the election, but must not become master beside it either, nor they beside the third.
func TestThirdWithThePassword(t *testing.T) {
	l := newWire(t, lab.Options{Nodes: 3}, nil)
	c := newCluster(t, l, lab.ClusterIP, l.Nodes()...)
	c.start(l.LB1)
	c.only(l.LB1)
	c.start(l.LB2, l.LB3)
	const held = "not becoming master while %s advertises what this node must not obey: its signature does not fit"
	byPeer := fmt.Sprintf(held, "the peer 192.168.77.11")
	c.logged(l.LB3, byPeer)
	c.calm()

	t.Log("the pair fails over without it, and hands over")
	if n := c.failover(); n != l.LB2 {
		t.Errorf("%s is master", n.Name)
	}
	c.calm()
	since := time.Now()
	c.check(c.daemons[l.LB2].Signal(unix.SIGUSR2))
	c.only(l.LB1)
	c.gap(since, 0)
	c.calm()
	c.saidOnce(l.LB3, byPeer)
	for _, n := range []*lab.Node{l.LB1, l.LB2} {
		if log := c.daemons[n].Log(); strings.Contains(log, "refused") {
			t.Errorf("%s has heard the third one:\n%s", n.Name, log)
		}
	}
	c.neverTwo(time.Time{}, slack) // a hand-over has two, a failover none

	t.Log("it is master when both are away, and they wait for it when they are back")
	c.stop(l.LB2, l.LB1)
	c.only(l.LB3)
	since = time.Now()
	c.start(l.LB1, l.LB2)
	byThird := fmt.Sprintf(held, "192.168.77.13, which is not $remote_ip,")
	c.logged(l.LB1, byThird)
	c.logged(l.LB2, byThird)
	c.calm()
	c.saidOnce(l.LB1, byThird)
	c.saidOnce(l.LB2, byThird)
	c.neverTwo(since, 0)
	c.stop(l.LB3)
	c.only(l.LB1, l.LB2)
}

// Two pairs of ours on a wire.
func TestTwoClusters(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name     string
		families lab.Families
		keys     keys
		unseen   bool
	}{
		{"another number", lab.IPv4, keys{"cluster_id": "2"}, true},
		{"another number, without a password", lab.IPv4, keys{"cluster_id": "2", "password": ""}, true},
		{"another password", lab.IPv4, keys{"password": "another-password"}, false},
		{"another password over IPv6", lab.IPv6, keys{"password": "another-password"}, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			all := keys{}
			if row.keys["password"] == "" {
				all = keys{"password": ""}
			}
			l := newWire(t, lab.Options{Nodes: 4, Families: row.families}, all)
			here, there := lab.ClusterIP, netip.MustParseAddr("192.168.77.200")
			if row.families == lab.IPv6 {
				here, there = lab.ClusterIP6, netip.MustParseAddr("fd77::200")
			}
			for n, peer := range map[*lab.Node]*lab.Node{l.LB3: l.LB4, l.LB4: l.LB3} {
				theirs := keys{"cluster_ip": there.String(), "remote_ip": peer.Addr(0).String()}
				if row.families == lab.IPv6 {
					theirs["remote_ip"] = peer.Addr6(0).String()
				}
				maps.Copy(theirs, row.keys)
				if err := n.Configure(theirs); err != nil {
					t.Fatal(err)
				}
				if err := n.WriteInterface("eth0:1", there, true); err != nil {
					t.Fatal(err)
				}
			}
			one, two := newCluster(t, l, here, l.LB1, l.LB2), newCluster(t, l, there, l.LB3, l.LB4)
			for _, c := range []*cluster{one, two} {
				c.start(c.nodes[0])
				c.only(c.nodes[0])
				c.start(c.nodes[1])
			}
			since := time.Now()
			one.calm()
			two.unchanged(since)

			t.Log("a power cut here is nothing to them")
			one.failover()
			two.unchanged(since)

			t.Log("nor is a stop there to us")
			since = time.Now()
			two.stop(l.LB3)
			two.only(l.LB4)
			two.gap(since, 0)
			one.unchanged(since)
			since = time.Now()
			two.start(l.LB3)
			two.calm()
			one.unchanged(since)
			for _, c := range []*cluster{one, two} {
				c.neverTwo(time.Time{}, slack)
				if row.unseen {
					c.unseen()
				} else {
					c.reported(2, "its signature does not fit: is $password the same on both nodes")
				}
			}
		})
	}
}

// keepalived starts Debian's on the machine of the client: a router of somebody else, which wants its own address with
// every means. It is its master when this returns.
func (p *pair) keepalived(version, vrid int, addr netip.Addr) *lab.Daemon {
	p.t.Helper()
	const dir = "/etc/keepalived"
	every := "0.2"
	if version == 2 {
		every = "1" // it knows whole seconds only
	}
	p.check(os.MkdirAll(p.Client.Root(dir), 0o755))
	p.check(p.Client.WriteFile(dir+"/keepalived.conf", fmt.Sprintf("global_defs {\n  router_id stranger\n  vrrp_version %d\n}\n"+
		"vrrp_instance stranger {\n  state MASTER\n  interface eth0\n  virtual_router_id %d\n  priority 254\n  advert_int %s\n"+
		"  virtual_ipaddress {\n    %s dev eth0\n  }\n}\n", version, vrid, every, addr), 0o644))
	p.run(p.Client, "rm", "-f", "/var/log/keepalived.log")
	d, err := p.Client.Start(lab.DaemonSpec{Name: "keepalived",
		Args: []string{"nice", "-n", "-15", "keepalived", "--dont-fork", "--log-console", "--log-detail", "--vrrp"}})
	p.check(err)
	p.eventually("the stranger as master", func() (bool, string) {
		return strings.Contains(d.Log(), "Entering MASTER STATE"), d.Log()
	})
	return d
}

// goodbyes are the adverts of priority 0 for our number that the machine of the client has sent.
func goodbyes(c *lab.Capture) []lab.Packet {
	return c.Select(func(p lab.Packet) bool {
		ip, ok := p.IPv4()
		if !ok {
			ip, ok = p.IPv6()
		}
		return ok && p.Node == "client" && len(ip.Payload) > 8 && ip.Payload[1] == 1 && ip.Payload[2] == 0
	})
}

// A router of somebody else that has our number, wins every election, and leaves at the worst moments.
func TestKeepalivedWithOurNumber(t *testing.T) {
	t.Parallel()
	const unsigned = "it is not signed: that router has no $password"
	for _, row := range []struct {
		name          string
		families      lab.Families
		password      string
		version       int
		ours, another string
		reported      string
	}{
		{"VRRPv3", lab.IPv4, lab.Password, 3, "192.168.77.100", "192.168.77.201", unsigned},
		{"VRRPv2", lab.IPv4, lab.Password, 2, "192.168.77.100", "192.168.77.201", "it is VRRP version 2: set version 3 on that router"},
		{"IPv6", lab.IPv6, lab.Password, 3, "fd77::100", "fd77::201", unsigned},
		{"without a password", lab.IPv4, "", 3, "192.168.77.100", "192.168.77.201",
			"it has our number and not our $cluster_ip: give one of the two clusters another $cluster_id"},
	} {
		t.Run(row.name, func(t *testing.T) {
			l := newWire(t, lab.Options{Families: row.families}, keys{"password": row.password})
			c := newCluster(t, l, netip.MustParseAddr(row.ours), l.Nodes()...)
			wire := c.capture()
			another := netip.MustParseAddr(row.another)

			t.Log("it is there first")
			stranger := c.keepalived(row.version, 1, another)
			c.start(l.LB1)
			c.only(l.LB1)
			c.start(l.LB2)
			c.calm()

			t.Log("it leaves when our master loses its power, and returns")
			c.failover(func() { c.check(stranger.Stop()) })
			c.eventually("its goodbye", func() (bool, string) { return len(goodbyes(wire)) > 0, stranger.Log() })
			stranger = c.keepalived(row.version, 1, another)
			c.calm()

			t.Log("our master stops beside it")
			since := time.Now()
			old := c.only()
			c.stop(old)
			if c.only() == old {
				t.Errorf("%s has the address, and was stopped", old.Name)
			}
			c.gap(since, 0)
			c.start(old)
			c.calm()

			t.Log("it leaves, and nothing else happens")
			c.check(stranger.Stop())
			c.calm()
			c.reported(1, row.reported)
			c.neverTwo(time.Time{}, slack)
		})
	}
}

// Who has another number is not seen at all, without a password either.
func TestKeepalivedWithAnotherNumber(t *testing.T) {
	l := newWire(t, lab.Options{}, keys{"password": ""})
	c := newCluster(t, l, lab.ClusterIP, l.Nodes()...)
	stranger := c.keepalived(3, 2, netip.MustParseAddr("192.168.77.201"))
	c.start(l.LB1)
	c.only(l.LB1)
	c.start(l.LB2)
	c.calm()
	c.failover(func() { c.check(stranger.Stop()) })
	c.keepalived(2, 2, netip.MustParseAddr("192.168.77.201"))
	c.calm()
	c.unseen()
	c.neverTwo(time.Time{}, slack)
}

// While the other node is ucarp, and we hear two dialects, too.
func TestKeepalivedBesideUcarp(t *testing.T) {
	p := newPair(t, auto)
	wire := p.capture()
	another := netip.MustParseAddr("192.168.77.201")
	stranger := p.keepalived(3, 1, another)
	p.startUcarp(p.LB1)
	p.master(p.LB1)
	since := time.Now()
	p.startOurs(p.LB2)
	const unsigned = "refused an advertisement from 192.168.77.50: it is not signed"
	p.logged(p.LB2, unsigned)
	p.logged(p.LB2, "192.168.77.11 is ucarp: speaking CARP beside VRRPv3 until it is upgraded")

	t.Log("it leaves, and returns with VRRPv2: that is nothing to either")
	p.check(stranger.Stop())
	p.eventually("its goodbye", func() (bool, string) { return len(goodbyes(wire)) > 0, stranger.Log() })
	stranger = p.keepalived(2, 1, another)
	const old = "refused an advertisement from 192.168.77.50: it is VRRP version 2: set version 3 on that router"
	p.logged(p.LB2, old)
	p.stays(p.LB1)
	p.neverTwo(since, 0)

	t.Log("ucarp loses its power, and finds its master when it is back")
	since = time.Now()
	p.check(p.LB1.PowerOff())
	p.check(stranger.Stop())
	p.master(p.LB2)
	if gap := p.watch.NoHolder(since); gap > ourDown+slack {
		p.excuse()
		t.Errorf("nobody had the address for %v, want at most %v", gap, ourDown)
	}
	p.keepalived(3, 1, another)
	p.boot(p.LB1)
	p.startUcarp(p.LB1)
	p.stays(p.LB2)
	p.neverTwo(since, 0)
	p.saidOnce(p.LB2, unsigned)
	p.saidOnce(p.LB2, old)

	t.Log("we stop: it takes over at once")
	since = time.Now()
	p.check(p.daemons[p.LB2].Stop())
	p.master(p.LB1)
	p.neverTwo(since, ucarpLag)
	p.startOurs(p.LB2)
	p.stays(p.LB1)
}
