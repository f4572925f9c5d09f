// Package keepalived tests skd-vrrpd beside the keepalived of Debian: one node
// of the lab runs ours, the other one keepalived, in either order of their
// addresses, and a client probes the address that they share.
package keepalived

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/election"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
	"github.com/skudonet/skudonet-ce-cluster/test/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.RunTests(m, 4)) }

const (
	limit = 20 * time.Second
	// slack is what a busy host may add to a bound of the protocol.
	slack  = 500 * time.Millisecond
	config = "/etc/keepalived/keepalived.conf"
	hooks  = "/usr/local/skudonet/app/ucarp/sbin/skudonet-ce-cluster-"
)

// program is Debian's, or another one for its answers to the same questions.
var program = cmp.Or(os.Getenv("KEEPALIVED"), "keepalived")

type keys = map[string]string

// options of a pair. The zero value is multicast over IPv4, 0.2 s, and equal priorities.
type options struct {
	families  lab.Families
	unicast   bool
	oursFirst bool // our node has the lower address
	ours      keys // on top of what the rest says
	every     time.Duration
	theirs    theirs
}

// theirs is what keepalived is told.
type theirs struct {
	every    time.Duration // if it differs
	priority int           // 100
	preempt  bool
	old      bool     // no word about the version, for which it speaks VRRPv2
	more     []string // further lines of virtual_ipaddress
	hmac     []string // lines of auth_hmac, if any
}

// pair is a node of ours and one with keepalived. Nothing is started.
type pair struct {
	*lab.Lab
	options
	t           *testing.T
	our, their  *lab.Node
	vip         netip.Addr
	watch       *lab.Watch
	vrrpd, kept *lab.Daemon // the last ones that were started
}

func newPair(t *testing.T, o options) *pair {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		t.Fatal("test/install-deps check installs keepalived: ", err)
	}
	t.Parallel()
	if o.every == 0 {
		o.every = 200 * time.Millisecond
	}
	if o.theirs.every == 0 {
		o.theirs.every = o.every
	}
	if o.theirs.priority == 0 {
		o.theirs.priority = 100
	}
	all := keys{"password": "", "advert_interval": fmt.Sprint(o.every.Seconds())}
	if o.unicast {
		all["transport"] = "unicast"
	}
	maps.Copy(all, o.ours)
	l := lab.Test(t, lab.Options{Families: o.families, Config: all})
	p := &pair{Lab: l, options: o, t: t, our: l.LB2, their: l.LB1, vip: lab.ClusterIP}
	if o.oursFirst {
		p.our, p.their = l.LB1, l.LB2
	}
	if o.families == lab.IPv6 {
		p.vip = lab.ClusterIP6
	}
	p.watch = l.Watch(p.vip)
	for _, event := range []string{"start", "stop", "advertisement"} {
		p.check(p.our.WriteFile(hooks+event, "#!/bin/sh\n", 0o755))
	}
	p.configure(o.theirs)
	return p
}

func (p *pair) check(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

// configure writes keepalived's configuration.
func (p *pair) configure(k theirs) {
	p.t.Helper()
	var b strings.Builder
	b.WriteString("global_defs {\n  router_id lab\n")
	if !k.old {
		b.WriteString("  vrrp_version 3\n")
	}
	every := fmt.Sprint(k.every.Seconds())
	if k.old {
		every = "1" // it knows whole seconds only
	}
	b.WriteString("}\n")
	vips := []netip.Addr{p.vip}
	if p.families == lab.Both {
		vips = append(vips, lab.ClusterIP6)
		b.WriteString("vrrp_sync_group lab {\n  group {\n    lab-24\n    lab-64\n  }\n}\n")
	}
	for _, vip := range vips {
		p.instance(&b, k, vip, every)
	}
	p.check(os.MkdirAll(p.their.Root(path.Dir(config)), 0o755))
	p.check(p.their.WriteFile(config, b.String(), 0o644))
}

// instance writes one virtual router.
func (p *pair) instance(b *strings.Builder, k theirs, vip netip.Addr, every string) {
	bits := 24
	if vip.Is6() {
		bits = 64
	}
	fmt.Fprintf(b, "vrrp_instance lab-%d {\n  state BACKUP\n  interface eth0\n  virtual_router_id 1\n  priority %d\n  advert_int %s\n", bits, k.priority, every)
	if !k.preempt {
		b.WriteString("  nopreempt\n")
	}
	if p.unicast {
		fmt.Fprintf(b, "  unicast_src_ip %s\n  unicast_peer {\n    %s\n  }\n", p.addr(p.their), p.addr(p.our))
	}
	if k.hmac != nil {
		fmt.Fprintf(b, "  auth_hmac {\n    %s\n  }\n", strings.Join(k.hmac, "\n    "))
	}
	fmt.Fprintf(b, "  virtual_ipaddress {\n    %s/%d dev eth0\n", vip, bits)
	for _, line := range k.more {
		b.WriteString("    " + line + "\n")
	}
	b.WriteString("  }\n}\n")
}

// addr is a node's own address.
func (p *pair) addr(n *lab.Node) netip.Addr {
	if p.families == lab.IPv6 {
		return n.Addr6(0)
	}
	return n.Addr(0)
}

func (p *pair) startOurs() {
	p.t.Helper()
	d, err := p.our.Start(lab.DaemonSpec{Name: "skd-vrrpd", Args: []string{"nice", "-n", "-15", "skd-vrrpd"}, Restart: true})
	p.check(err)
	p.vrrpd = d
}

func (p *pair) startTheirs() {
	p.t.Helper()
	d, err := p.their.Start(lab.DaemonSpec{Name: "keepalived",
		Args: []string{"nice", "-n", "-15", program, "--dont-fork", "--log-console", "--log-detail", "--vrrp"}})
	p.check(err)
	p.kept = d
}

// start starts the program of a node, and returns when it takes part in the election.
func (p *pair) start(n *lab.Node) {
	p.t.Helper()
	name, words, start := "keepalived", "Entering BACKUP STATE (init)", p.startTheirs
	if n == p.our {
		name, words, start = "skd-vrrpd", "backup on eth0 vrid 1: the service started", p.startOurs
	}
	times := func() int { // the log is that of all its lives
		log, _ := n.ReadFile("/var/log/" + name + ".log")
		return strings.Count(log, words)
	}
	before := times()
	start()
	lab.Eventually(p.t, limit, fmt.Sprintf("%q from %s, once more", words, name), func() (bool, string) { return times() > before, "" })
}

// stop ends it as an admin does.
func (p *pair) stop(n *lab.Node) {
	p.t.Helper()
	if n == p.our {
		p.check(p.vrrpd.Stop())
	} else {
		p.check(p.kept.Stop())
	}
}

func (p *pair) other(n *lab.Node) *lab.Node {
	if n == p.our {
		return p.their
	}
	return p.our
}

func (p *pair) holds(n *lab.Node) bool {
	_, now := p.watch.Last(n, func(c lab.Claim) bool { return c.Address })
	return now
}

// holder waits until the node, and nobody else, has the address.
func (p *pair) holder(n *lab.Node) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	err := lab.Await(ctx, "the address on "+n.Name+" alone", func() (bool, string) {
		return p.holds(n) && !p.holds(p.other(n)), fmt.Sprintf("ours (%s) %v, keepalived %v; ours said last: %s; keepalived: %s", p.our.Name,
			p.holds(p.our), p.holds(p.their), last(p.vrrpd), last(p.kept))
	})
	if err != nil {
		p.excuse() // who is master at the wrong time may stay it
		p.t.Fatal(err)
	}
}

// rules makes our node master while keepalived takes part and hears it. At 10 ms a busy host lets any backup take over now and then;
// keepalived leaves and returns then.
func (p *pair) rules() {
	p.t.Helper()
	lab.Eventually(p.t, limit, "our node as master beside keepalived", func() (bool, string) {
		<-time.After(p.every + 200*time.Millisecond)
		if p.holds(p.our) && !p.holds(p.their) {
			return true, ""
		}
		if !p.holds(p.our) {
			p.stop(p.their)
			p.holder(p.our)
			p.start(p.their)
		}
		return false, last(p.vrrpd)
	})
}

func last(d *lab.Daemon) string {
	if d == nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(d.Log()), "\n")
	return lines[len(lines)-1]
}

// both waits until both nodes have the address.
func (p *pair) both() {
	p.t.Helper()
	lab.Eventually(p.t, limit, "the address on both", func() (bool, string) {
		return p.holds(p.our) && p.holds(p.their), fmt.Sprintf("ours said last: %s; keepalived: %s", last(p.vrrpd), last(p.kept))
	})
}

// stays fails the test if the place of the address changes within some intervals of either node.
func (p *pair) stays(n *lab.Node) {
	p.t.Helper()
	since := time.Now()
	<-time.After(6*max(p.every, p.options.theirs.every) + 200*time.Millisecond)
	had := map[string]bool{}
	for _, c := range p.watch.Changes() {
		if c.At.After(since) && c.Address != had[c.Node] {
			p.excuse()
			p.t.Errorf("%s changed after %v: address %v", c.Node, c.At.Sub(since), c.Address)
		}
		had[c.Node] = c.Address
	}
	if !p.holds(n) || p.holds(p.other(n)) {
		p.t.Errorf("%s has the address: %v, the other one: %v", n.Name, p.holds(n), p.holds(p.other(n)))
	}
}

// logged waits for words in the log of our daemon.
func (p *pair) logged(words string) {
	p.t.Helper()
	lab.Eventually(p.t, limit, fmt.Sprintf("%q in our log", words), func() (bool, string) {
		return strings.Contains(p.vrrpd.Log(), words), last(p.vrrpd)
	})
}

// neverTwo fails the test if both had the address for longer since then.
func (p *pair) neverTwo(since time.Time, atMost time.Duration) {
	p.t.Helper()
	if d := p.watch.TwoHolders(since); d > atMost {
		p.excuse()
		p.t.Errorf("both had the address for %v, want at most %v", d, atMost)
	}
}

// report is what our vrrpd.json says.
func (p *pair) report() status.Daemon {
	p.t.Helper()
	r, err := status.ReadDaemon(p.our.Root(path.Join(status.RunDir, status.DaemonFile)))
	p.check(err)
	return r
}

// learned waits until our node is backup and goes by the interval of the other one, which it hears, and says so. At 10 ms a busy
// host lets any backup take over now and then; it is told to hand back then.
func (p *pair) learned() {
	p.t.Helper()
	lab.Eventually(p.t, limit, fmt.Sprintf("our node as backup that goes by %v", p.options.theirs.every), func() (bool, string) {
		p.check(p.vrrpd.Signal(unix.SIGUSR1))
		<-time.After(100 * time.Millisecond)
		r := p.report()
		if r.State == status.Master {
			p.check(p.vrrpd.Signal(unix.SIGUSR2))
			<-time.After(500 * time.Millisecond)
		}
		return r.State == status.Backup && time.Duration(r.Peer.Interval) == p.options.theirs.every && same(time.Duration(r.DownInterval), p.down(p.our)),
			fmt.Sprintf("%s, which hears %+v; its down interval is %v", r.State, r.Peer, r.DownInterval)
	})
}

// same allows for the decimals of a file.
func same(a, b time.Duration) bool { return (a - b).Abs() < time.Microsecond }

func (p *pair) probe() *lab.Probe {
	p.t.Helper()
	probe, err := p.Client.ProbeAddress(p.vip)
	p.check(err)
	lab.Eventually(p.t, limit, "answers", func() (bool, string) { return probe.Answering(), "" })
	return probe
}

// outage waits for answers, and fails the test if there were none for longer than at most since then.
func (p *pair) outage(probe *lab.Probe, since time.Time, atMost time.Duration) {
	p.t.Helper()
	lab.Eventually(p.t, limit, "answers again", func() (bool, string) {
		r := probe.Report()
		return probe.Answering() && r.LastAnswer.After(since), fmt.Sprint(r.Longest())
	})
	r := probe.Report()
	gap := r.LongestSince(since)
	if r.Err != nil || gap.Length() > atMost+slack+r.Stall {
		p.excuse()
		p.t.Errorf("outage of %v, %v; want at most %v and %v for a busy host", gap, r.Err, atMost, slack+r.Stall)
	}
	p.t.Logf("outage %v, bound %v", gap, atMost)
}

// down and skew are a node's intervals of RFC 9568 section 6.1, while it listens to its peer.
func (p *pair) down(n *lab.Node) time.Duration {
	if n == p.our {
		return election.DownInterval(100, p.options.theirs.every, 3)
	}
	return election.DownInterval(uint8(p.options.theirs.priority), p.every, 3)
}

// excuse skips a test that is about to fail, if the host stood still for so long that either node could miss the other: an advert may
// have been due just before.
func (p *pair) excuse() {
	p.t.Helper()
	p.watch.Excuse(p.t, min(p.down(p.our)-p.options.theirs.every, p.down(p.their)-p.every))
}

func (p *pair) skew(n *lab.Node) time.Duration {
	if n == p.our {
		return election.SkewTime(100, p.options.theirs.every)
	}
	return election.SkewTime(uint8(p.options.theirs.priority), p.every)
}

func TestTransitions(t *testing.T) {
	for name, o := range map[string]options{
		"multicast":           {},
		"unicast":             {unicast: true, oursFirst: true},
		"multicast over IPv6": {families: lab.IPv6, oursFirst: true},
		"unicast over IPv6":   {families: lab.IPv6, unicast: true},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, o)
			began := time.Now()
			for _, first := range []*lab.Node{p.our, p.their} {
				second := p.other(first)
				t.Logf("%s is first, and stays", first.Name)
				p.start(first)
				p.holder(first)
				p.start(second)
				p.stays(first)
				probe := p.probe()
				t.Log("it stops: its goodbye costs the other one's skew time")
				since := time.Now()
				p.stop(first)
				p.holder(second)
				p.outage(probe, since, p.skew(second))
				p.start(first)
				p.stays(second)
				t.Log("the other one loses its power")
				since = time.Now()
				p.check(second.PowerOff())
				p.holder(first)
				p.outage(probe, since, p.down(first))
				p.check(second.PowerOn())
				if second == p.our {
					_, err := second.Run("rm", "-f", lab.StatusPath)
					p.check(err)
				}
				probe.Stop()
				p.stop(first)
			}
			// A goodbye lets ours keep the address for a moment longer than keepalived waits.
			p.neverTwo(began, time.Second+slack)

			t.Log("a hand-over by the admin")
			p.start(p.our)
			p.holder(p.our)
			p.start(p.their)
			p.stays(p.our)
			probe := p.probe()
			since := time.Now()
			p.check(p.vrrpd.Signal(unix.SIGUSR2))
			p.holder(p.their)
			p.outage(probe, since, slack)
			p.logged("handed over to " + p.addr(p.their).String())
			p.stays(p.their)
			if strings.Contains(p.vrrpd.Log(), "refused an advertisement") {
				t.Errorf("an advert of keepalived was refused:\n%s", p.vrrpd.Log())
			}
			r := p.report()
			if r.Received == 0 || r.Peer.Address != p.addr(p.their).String() {
				t.Errorf("what our node says of its peer: %+v", r.Peer)
			}
			t.Log("that anybody could do so is said")
			const unsigned = "empty: adverts go unsigned, and any host in the network can take the addresses"
			p.logged("$password: " + unsigned)
			if warned := fmt.Sprint(r.Warnings); r.Signed || r.Peer.Verified || !strings.Contains(warned, unsigned) {
				t.Errorf("signed: %v, verified: %v, warnings: %s", r.Signed, r.Peer.Verified, warned)
			}
		})
	}
}

func TestPreemption(t *testing.T) {
	for name, o := range map[string]options{"IPv4": {}, "IPv6": {families: lab.IPv6}} {
		t.Run(name, func(t *testing.T) {
			t.Log("keepalived preempts, as it does by default")
			o.theirs = theirs{priority: 150, preempt: true}
			p := newPair(t, o)
			p.start(p.our)
			p.holder(p.our)
			probe := p.probe()
			since := time.Now()
			p.start(p.their)
			p.holder(p.their)
			p.logged("has a higher priority")
			p.outage(probe, since, slack)
			p.neverTwo(since, slack)
			p.stays(p.their)
			p.stop(p.their)
			p.holder(p.our)

			t.Log("ours does with $preempt")
			p.stop(p.our)
			p.configure(theirs{priority: 90, every: p.every})
			p.start(p.their)
			p.holder(p.their)
			held := time.Now()
			lab.Eventually(t, limit, "answers of keepalived", func() (bool, string) { return probe.AnsweredAfter(held), "" }) // it was silent on purpose
			p.check(p.our.Configure(keys{"preempt": "true"}))
			since = time.Now()
			p.start(p.our)
			p.holder(p.our)
			p.logged("has a lower priority than our 100, and $preempt is on")
			p.outage(probe, since, slack)
			p.neverTwo(since, slack)
			p.stays(p.our)
		})
	}
}

// Two masters that meet: the higher priority stays, and with equal ones the higher address.
func TestSilentCutAndHeal(t *testing.T) {
	for _, row := range []struct {
		name string
		options
		ours bool // ours stays master
		cut  bool // ours was it before, and is cut off
	}{
		{"equal priorities, our address is higher", options{}, true, false},
		{"equal priorities, their address is higher", options{oursFirst: true}, false, false},
		{"our priority is higher", options{oursFirst: true, theirs: theirs{priority: 90}}, true, false},
		{"their priority is higher", options{theirs: theirs{priority: 110}}, false, false},
		{"IPv6, our link-local address is higher", options{families: lab.IPv6}, true, false},
		{"IPv6, their link-local address is higher", options{families: lab.IPv6, oursFirst: true}, false, false},
		{"unicast, our address is higher", options{unicast: true}, true, false},
		{"unicast, their address is higher", options{unicast: true, oursFirst: true}, false, false},
		{"unicast over IPv6, our address is higher", options{families: lab.IPv6, unicast: true}, true, false},
		{"unicast over IPv6, their address is higher", options{families: lab.IPv6, unicast: true, oursFirst: true}, false, false},
		{"ours is cut off, our address is higher", options{}, true, true},
		{"ours is cut off, their address is higher", options{oursFirst: true}, false, true},
		{"ours is cut off, our priority is higher", options{oursFirst: true, theirs: theirs{priority: 90}}, true, true},
		{"ours is cut off, their priority is higher", options{theirs: theirs{priority: 110}}, false, true},
		{"ours is cut off, IPv6, their link-local address is higher", options{families: lab.IPv6, oursFirst: true}, false, true},
		{"ours is cut off, unicast, our address is higher", options{unicast: true}, true, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := newPair(t, row.options)
			master := p.their
			if row.cut {
				master = p.our
			}
			p.start(master)
			p.holder(master)
			p.start(p.other(master))
			p.stays(master)
			probe := p.probe()
			since := time.Now()
			p.check(master.Isolate())
			p.both()
			p.outage(probe, since, p.down(p.other(master)))
			since = time.Now()
			p.check(master.Heal())
			winner := p.their
			if row.ours {
				winner = p.our
			}
			p.holder(winner)
			p.neverTwo(since, 2*p.every+slack)
			p.stays(winner)
			// The survivor announces again when it has met the other one, so a client that went there comes to it; ours a second
			// after its last announcement.
			p.outage(probe, since, 2*p.every+time.Second)
		})
	}
}

// A goodbye costs the skew time of whoever hears it, and a hand-over nothing, at any interval. At 1 s somebody who does not
// hear it would need four times as long.
func TestGoodbyes(t *testing.T) {
	for _, every := range []time.Duration{time.Second, 10 * time.Millisecond} {
		t.Run(every.String(), func(t *testing.T) {
			p := newPair(t, options{every: every, theirs: theirs{every: every}})
			p.start(p.their)
			p.holder(p.their)
			p.start(p.our)
			p.learned()
			probe := p.probe()
			// passed waits until the other node has the address, and measures that, too: ours keeps it meanwhile.
			passed := func(to *lab.Node, since time.Time, outage time.Duration) {
				t.Helper()
				p.holder(to)
				at, _ := p.watch.Last(to, func(c lab.Claim) bool { return c.Address })
				if took := at.Sub(since); took > p.skew(to)+slack {
					p.excuse()
					t.Errorf("%s had the address after %v, want at most %v", to.Name, took, p.skew(to)+slack)
				}
				p.outage(probe, since, outage)
				p.neverTwo(since, slack)
			}

			t.Log("theirs")
			since := time.Now()
			p.stop(p.their)
			passed(p.our, since, p.skew(p.our))
			p.start(p.their)

			t.Log("a hand-over")
			p.rules()
			since = time.Now()
			p.check(p.vrrpd.Signal(unix.SIGUSR2))
			passed(p.their, since, 0)
			p.logged("handed over to " + p.addr(p.their).String())

			t.Log("ours")
			p.stop(p.their)
			p.holder(p.our)
			p.start(p.their)
			p.rules()
			since = time.Now()
			p.stop(p.our)
			passed(p.their, since, p.skew(p.their))
		})
	}
}

// Each node follows the interval of the master that it hears.
func TestIntervals(t *testing.T) {
	for _, row := range []struct{ ours, theirs time.Duration }{
		{time.Second, time.Second},
		{100 * time.Millisecond, 100 * time.Millisecond},
		{10 * time.Millisecond, 10 * time.Millisecond},
		{100 * time.Millisecond, time.Second},
		{time.Second, 100 * time.Millisecond},
		{10 * time.Millisecond, 100 * time.Millisecond},
		{100 * time.Millisecond, 10 * time.Millisecond},
	} {
		t.Run(fmt.Sprintf("%v and %v", row.ours, row.theirs), func(t *testing.T) {
			// At 10 ms a busy host is late now and then, and then the master changes; what counts is what becomes of it.
			const least = 100 * time.Millisecond
			p := newPair(t, options{every: row.ours, theirs: theirs{every: row.theirs}})
			p.start(p.their)
			p.holder(p.their)
			p.start(p.our)
			// A router that starts waits by its own interval until it has heard another one, so that ours may be master for a while.
			p.learned()
			if row.ours != row.theirs {
				p.logged(fmt.Sprintf("advertises every %v and our $advert_interval is %v", row.theirs, row.ours))
			}
			if row.theirs >= least {
				p.stays(p.their)
			}
			probe := p.probe()
			since := time.Now()
			p.check(p.their.PowerOff())
			p.holder(p.our)
			p.outage(probe, since, p.down(p.our))
			p.check(p.their.PowerOn())
			p.start(p.their)
			if row.ours >= least {
				<-time.After(election.DownInterval(100, row.theirs, 3) + slack) // likewise; ours has the higher address
				p.holder(p.our)
				p.stays(p.our)
			}
			since = time.Now()
			p.check(p.our.PowerOff())
			p.holder(p.their)
			p.outage(probe, since, p.down(p.their))
		})
	}
}

// One election of ours stands beside two of keepalived, which it holds together itself.
func TestBothFamilies(t *testing.T) {
	p := newPair(t, options{families: lab.Both, theirs: theirs{priority: 90}})
	six := p.Watch(lab.ClusterIP6)
	together := func(n *lab.Node) {
		t.Helper()
		p.holder(n)
		lab.Eventually(t, limit, "the address of IPv6 on "+n.Name+" alone", func() (bool, string) {
			has := func(c lab.Claim) bool { return c.Address }
			_, one := six.Last(n, has)
			_, other := six.Last(p.other(n), has)
			return one && !other, fmt.Sprint(one, other)
		})
	}
	p.start(p.our)
	together(p.our)
	p.start(p.their)
	p.stays(p.our)
	t.Log("hand-over, and back by a goodbye of theirs")
	p.check(p.vrrpd.Signal(unix.SIGUSR2))
	together(p.their)
	p.stays(p.their)
	p.stop(p.their)
	together(p.our)
	p.start(p.their)
	t.Log("power cuts")
	p.stays(p.our)
	p.check(p.our.PowerOff())
	together(p.their)
	p.check(p.our.PowerOn())
	p.start(p.our)
	p.stays(p.their)
	p.check(p.their.PowerOff())
	together(p.our)
	if log := p.vrrpd.Log(); strings.Contains(log, "refused an advertisement") {
		t.Errorf("an advert of keepalived was refused:\n%s", log)
	}
}

// A keepalived up to 2.2.8 drops adverts with another list of addresses than its own. It cannot be made to hear us, but our
// log says why there are two masters, or why it takes over.
func TestAddressListMismatch(t *testing.T) {
	p := newPair(t, options{theirs: theirs{more: []string{"192.168.77.101/24 dev eth0"}}})
	p.start(p.their)
	p.holder(p.their)
	p.start(p.our)
	p.logged("192.168.77.11 advertises 192.168.77.100, 192.168.77.101 and our $cluster_ip is 192.168.77.100; obeyed, but a keepalived drops ours for that")
	p.stays(p.their)
	p.stop(p.their)
	p.holder(p.our)
	p.configure(theirs{priority: 100, every: p.every, more: []string{"}", "virtual_ipaddress_excluded {", "192.168.77.101/24 dev eth0"}})
	p.start(p.their)
	p.stays(p.our)
	p.check(p.vrrpd.Signal(unix.SIGUSR2))
	p.holder(p.their)
	p.logged("over: 192.168.77.11 advertises 192.168.77.100, 192.168.77.101")
	p.stays(p.their)
}

// Nor does it hear that we are master already. Our log says why there are two then.
func TestTwoMastersByAddressList(t *testing.T) {
	p := newPair(t, options{theirs: theirs{more: []string{"192.168.77.101/24 dev eth0"}}})
	p.start(p.our)
	p.holder(p.our)
	p.start(p.their)
	p.both()
	const hint = "192.168.77.11 advertises 192.168.77.100, 192.168.77.101 and our $cluster_ip is 192.168.77.100; obeyed, but a keepalived drops ours for that: " +
		"list $cluster_ip alone under virtual_ipaddress there, and others under virtual_ipaddress_excluded"
	p.logged(hint)
	t.Log("the hint is right")
	p.stop(p.their)
	p.configure(theirs{priority: 100, every: p.every, more: []string{"}", "virtual_ipaddress_excluded {", "192.168.77.101/24 dev eth0"}})
	p.start(p.their)
	p.stays(p.our)
}

// It cannot sign: with a password on our side nobody is obeyed, and nobody fought.
func TestWithAPassword(t *testing.T) {
	p := newPair(t, options{ours: keys{"password": lab.Password}})
	began := time.Now()
	p.start(p.their)
	p.holder(p.their)
	p.start(p.our)
	const unsigned = "it is not signed: that router has no $password, or does not sign"
	p.logged("refused an advertisement from 192.168.77.11: " + unsigned)
	p.logged("not becoming master while the peer 192.168.77.11 advertises what this node must not obey: " + unsigned)
	p.stays(p.their)
	p.neverTwo(began, 0)
	t.Log("without one it takes part")
	p.stop(p.our)
	p.check(p.our.Configure(keys{"password": ""}))
	p.start(p.our)
	p.stop(p.their)
	p.holder(p.our)
}

// Neither obeys the other: the one that starts second becomes master beside ours, which says why, and what to do is right.
func TestTwoMastersUnheard(t *testing.T) {
	for _, row := range []struct {
		name string
		options
		reason string
		mend   func(*pair)
	}{
		{"VRRPv2", options{every: time.Second, theirs: theirs{old: true}}, "it is VRRP version 2: set version 3 on that router", func(p *pair) {
			p.stop(p.their)
			p.configure(theirs{priority: 100, every: p.every})
			p.start(p.their)
		}},
		{"a password on our side", options{ours: keys{"password": lab.Password}}, "it is not signed: that router has no $password, or does not sign", func(p *pair) {
			p.check(p.our.Configure(keys{"password": ""}))
			before := p.report().Started
			p.check(p.vrrpd.Signal(unix.SIGHUP)) // a master stays master, and has the higher address
			lab.Eventually(p.t, limit, "ours anew", func() (bool, string) { return p.report().Started.Boot > before.Boot, last(p.vrrpd) })
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := newPair(t, row.options)
			p.start(p.our)
			p.holder(p.our)
			p.start(p.their)
			p.both()
			refused := "refused an advertisement from 192.168.77.11: " + row.reason
			p.logged(refused)
			<-time.After(3 * time.Second) // some of keepalived's adverts, to be said nothing of
			if !p.holds(p.our) || !p.holds(p.their) {
				t.Errorf("ours has the address: %v, keepalived: %v", p.holds(p.our), p.holds(p.their))
			}
			if log := p.vrrpd.Log(); strings.Count(log, refused) != 1 {
				t.Errorf("want once: %s\n%s", refused, log)
			}
			both := "192.168.77.11 advertises what this node must not obey, so both may be master: " + row.reason
			if faults := p.report().Faults; !slices.ContainsFunc(faults, func(f status.Problem) bool { return strings.HasPrefix(f.Text, both) }) {
				t.Errorf("what status complains of: %+v", faults)
			}
			if out, err := p.our.Run("skd-hooks", "status"); err == nil || !strings.Contains(out, "so both may be master") {
				t.Errorf("skd-hooks status, %v:\n%s", err, out)
			}

			t.Log("the hint is right")
			row.mend(p)
			mended := time.Now()
			p.holder(p.our)
			p.neverTwo(mended, 2*p.every+slack)
			p.stays(p.our)
		})
	}
}

// Without a word about it keepalived speaks VRRPv2, once a second.
func TestVersion2(t *testing.T) {
	p := newPair(t, options{every: time.Second, theirs: theirs{old: true}})
	p.start(p.their)
	p.holder(p.their)
	p.start(p.our)
	p.logged("refused an advertisement from 192.168.77.11: it is VRRP version 2: set version 3 on that router")
	p.logged("not becoming master while the peer 192.168.77.11 advertises what this node must not obey: it is VRRP version 2: set version 3 on that router")
	<-time.After(3 * p.down(p.our))
	p.neverTwo(time.Time{}, 0)
	t.Log("the hint is right")
	p.stop(p.their)
	p.configure(theirs{priority: 100, every: p.every})
	p.start(p.their)
	p.holder(p.our)
	p.stays(p.our)
}
