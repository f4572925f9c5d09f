// Package e2e tests the programs as a user meets them: two nodes, a switch and
// a client in the lab, with real sockets, netlink and nftables. What is asserted
// was seen from outside: by a capture on the switch, by a client's probes, in
// the files and in the log.
package e2e

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/bootclock"
	"github.com/skudonet/skudonet-ce-cluster/lib/conf"
	"github.com/skudonet/skudonet-ce-cluster/lib/election"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
	"github.com/skudonet/skudonet-ce-cluster/test/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.RunTests(m, 4)) }

const (
	// limit is how long a test waits for something that takes no time.
	limit = 20 * time.Second
	// slack is what a busy host may add to a bound that the design gives.
	slack = 500 * time.Millisecond

	runDir   = status.RunDir
	hookDir  = "/usr/local/skudonet/app/ucarp/sbin/skudonet-ce-cluster-"
	hookLog  = "/var/log/hook-calls"
	callHook = "#!/bin/sh\necho %s >> " + hookLog + "\n"
)

type keys = map[string]string

// pair is two nodes whose daemons are supervised as systemd would.
type pair struct {
	*lab.Lab
	t     *testing.T
	vip   netip.Addr // the $cluster_ip that is watched and probed
	watch *lab.Watch

	mu      sync.Mutex
	conf    map[*lab.Node]keys
	daemons map[*lab.Node]*lab.Daemon
	began   map[*lab.Node]time.Duration // boot clock of the start of the last one
}

// newPair makes a lab for a test that may run beside others. Nothing is started.
// The hooks only write "start", "stop" or "advertisement" to hookLog; the interval is 0.2 s.
// changes are to the configuration of both nodes.
func newPair(t *testing.T, changes ...keys) *pair {
	t.Helper()
	t.Parallel()
	return newPairAlone(t, changes...)
}

// newPairAlone is newPair for a test that runs beside no other, because it needs the machine.
func newPairAlone(t *testing.T, changes ...keys) *pair {
	t.Helper()
	return pairOf(t, changes...).withPlainHooks()
}

// withPlainHooks gives the nodes hooks that only note that they were called.
func (p *pair) withPlainHooks() *pair {
	p.t.Helper()
	for _, n := range p.Nodes() {
		for _, event := range []string{"start", "stop", "advertisement"} {
			p.hook(n, event, fmt.Sprintf(callHook, event))
		}
	}
	return p
}

// newPairWithHooks is newPair with the hooks as they are shipped.
func newPairWithHooks(t *testing.T, changes ...keys) *pair {
	t.Helper()
	t.Parallel()
	return pairOf(t, changes...)
}

func pairOf(t *testing.T, changes ...keys) *pair {
	t.Helper()
	return pairIn(t, lab.IPv4, changes...)
}

func pairIn(t *testing.T, families lab.Families, changes ...keys) *pair {
	t.Helper()
	all := keys{"advert_interval": "0.2"}
	for _, c := range changes {
		maps.Copy(all, c)
	}
	l := lab.Test(t, lab.Options{Config: all, Families: families})
	vip := lab.ClusterIP
	if families == lab.IPv6 {
		vip = lab.ClusterIP6
	}
	return &pair{Lab: l, t: t, vip: vip, watch: l.Watch(vip), conf: map[*lab.Node]keys{}, daemons: map[*lab.Node]*lab.Daemon{}}
}

// startPair makes a pair, starts lb1 and then lb2, and returns when lb1 is master
// and lb2 has heard it.
func startPair(t *testing.T, changes ...keys) *pair {
	t.Helper()
	p := newPair(t, changes...)
	p.startBoth()
	return p
}

func (p *pair) startBoth() {
	p.t.Helper()
	p.start(p.LB1)
	p.waitStatus(p.LB1, "master")
	p.start(p.LB2)
	p.waitStatus(p.LB2, "backup")
	p.settled()
}

// boot powers the node on, and removes the status file, as a boot with the Debian package does. It returns the time.
func (p *pair) boot(n *lab.Node) time.Time {
	p.t.Helper()
	p.check(n.PowerOn())
	p.run(n, "rm", "-f", lab.StatusPath)
	p.eventually("no status of "+n.Name, func() (bool, string) {
		_, now := p.watch.Last(n, func(c lab.Claim) bool { return c.Power && c.Status == "" })
		return now, p.roles()
	})
	return time.Now()
}

// start starts the node's daemon, supervised.
func (p *pair) start(n *lab.Node) *lab.Daemon {
	p.t.Helper()
	return p.startAs(n, service(true, "skd-vrrpd"))
}

// service runs a program as systemd will: with priority over the tests, too.
func service(restart bool, program string) lab.DaemonSpec {
	return lab.DaemonSpec{Name: "skd-vrrpd", Args: []string{"nice", "-n", "-15", program}, Restart: restart}
}

// startAs starts it in another way.
func (p *pair) startAs(n *lab.Node, spec lab.DaemonSpec) *lab.Daemon {
	p.t.Helper()
	began := bootclock.Now()
	d, err := n.Start(spec)
	p.check(err)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.began == nil {
		p.began = map[*lab.Node]time.Duration{}
	}
	p.daemons[n], p.began[n] = d, began
	return d
}

// daemon is the one that was started last on the node.
func (p *pair) daemon(n *lab.Node) *lab.Daemon {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.daemons[n]
}

// ask has the daemon of the node write its report, if it is far enough to survive that signal.
func (p *pair) ask(n *lab.Node) {
	p.mu.Lock()
	d, began := p.daemons[n], p.began[n]
	p.mu.Unlock()
	if p.report(n).Started.Boot > began {
		d.Signal(unix.SIGUSR1)
	}
}

// signal sends one to the daemon of the node.
func (p *pair) signal(n *lab.Node, sig unix.Signal) {
	p.t.Helper()
	p.check(p.daemon(n).Signal(sig))
}

// stop ends the daemon gracefully, for good.
func (p *pair) stop(n *lab.Node) {
	p.t.Helper()
	p.check(p.daemon(n).Stop())
}

// configure changes keys in the node's configuration file, on top of what was changed before.
func (p *pair) configure(n *lab.Node, changes keys) {
	p.t.Helper()
	if p.conf[n] == nil {
		p.conf[n] = keys{}
	}
	maps.Copy(p.conf[n], changes)
	p.check(n.Configure(p.conf[n]))
}

// hook replaces one of the node's hook scripts (start, stop, advertisement).
func (p *pair) hook(n *lab.Node, event, script string) {
	p.t.Helper()
	p.check(n.WriteFile(hookDir+event, script, 0o755))
}

// hooks are the calls of the node's hooks so far, but for those of the advertisement hook.
func (p *pair) hooks(n *lab.Node) []string {
	text, _ := n.ReadFile(hookLog)
	var calls []string
	for _, call := range strings.Fields(text) {
		if call != "advertisement" {
			calls = append(calls, call)
		}
	}
	return calls
}

func (p *pair) check(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *pair) eventually(what string, look func() (bool, string)) {
	p.t.Helper()
	lab.Eventually(p.t, limit, what, look)
}

// run runs a command in the node and gives its output.
func (p *pair) run(n *lab.Node, name string, args ...string) string {
	p.t.Helper()
	out, err := n.Run(name, args...)
	p.check(err)
	return strings.TrimSpace(out)
}

// other is the peer of a node.
func (p *pair) other(n *lab.Node) *lab.Node {
	if n == p.LB1 {
		return p.LB2
	}
	return p.LB1
}

// forgetsNeighbours has the kernel of a node forget who is where, as it does when somebody was gone for a minute, and ask
// seldom from then on.
func (p *pair) forgetsNeighbours(n *lab.Node) {
	p.t.Helper()
	p.run(n, "sh", "-c", "for family in ipv4 ipv6; do echo 10000 > /proc/sys/net/$family/neigh/eth0/retrans_time_ms; done; ip neigh flush dev eth0")
	<-time.After(2 * 200 * time.Millisecond) // intervals, so that it has asked
}

// roles is what the status files say, lb1's first.
func (p *pair) roles() string { return fmt.Sprintf("%q/%q", p.LB1.Status(), p.LB2.Status()) }

func (p *pair) waitStatus(n *lab.Node, word string) {
	p.t.Helper()
	p.eventually(fmt.Sprintf("status %q on %s", word, n.Name), func() (bool, string) {
		// Seen by the watch, so that whoever asks it what came later does not get this.
		_, now := p.watch.Last(n, func(c lab.Claim) bool { return c.Status == word })
		return now, p.roles()
	})
}

// waitMaster waits until one node is master and has the address, and the other is backup, has it not, and has heard the
// master.
func (p *pair) waitMaster(n *lab.Node) {
	p.t.Helper()
	p.awaitReport(p.other(n), "backup of "+n.Name, func(r status.Daemon) (bool, string) { return p.follows(n, r) })
}

// settled is waitMaster for either node.
func (p *pair) settled() (master, backup *lab.Node) {
	p.t.Helper()
	var asked time.Time
	p.eventually("one master", func() (bool, string) {
		seen := ""
		for _, n := range p.Nodes() {
			if time.Since(asked) > 50*time.Millisecond {
				p.ask(p.LB1)
				p.ask(p.LB2)
				asked = time.Now()
			}
			var ok bool
			if ok, seen = p.follows(n, p.report(p.other(n))); ok {
				master, backup = n, p.other(n)
				return true, ""
			}
		}
		return false, seen
	})
	return master, backup
}

// follows tells whether a node is the only master, and its peer, which reports r, has heard it. All that the watch has
// seen, so that whoever asks the watch for what came later does not get this.
func (p *pair) follows(master *lab.Node, r status.Daemon) (bool, string) {
	isMaster := func(c lab.Claim) bool { return c.Address && c.Status == "master" }
	isBackup := func(c lab.Claim) bool { return !c.Address && c.Status == "backup" }
	_, one := p.watch.Last(master, isMaster)
	_, other := p.watch.Last(p.other(master), isBackup)
	return one && other && r.State == "backup" && r.Peer.LastHeard.Boot > r.Since.Boot,
		fmt.Sprintf("status %s, %s has the address: %v, %s has it: %v; the report of %s: %s, last heard %s", p.roles(),
			master.Name, p.holds(master), p.other(master).Name, p.holds(p.other(master)), p.other(master).Name, r.State,
			r.Peer.LastHeard.Time.Format(time.TimeOnly))
}

// awaitReport waits for something in the node's vrrpd.json, which the daemon is asked to write meanwhile: by itself it
// does so only now and then.
func (p *pair) awaitReport(n *lab.Node, what string, look func(status.Daemon) (bool, string)) {
	p.t.Helper()
	var asked time.Time
	p.eventually(n.Name+" "+what, func() (bool, string) {
		if time.Since(asked) > 50*time.Millisecond {
			asked = time.Now()
			p.ask(n)
		}
		return look(p.report(n))
	})
}

// holds says whether the node has $cluster_ip on an interface, as seen within the last millisecond or two.
func (p *pair) holds(n *lab.Node) bool {
	_, now := p.watch.Last(n, func(c lab.Claim) bool { return c.Address })
	return now
}

// report is what the node's vrrpd.json says; empty while there is none.
func (p *pair) report(n *lab.Node) status.Daemon {
	d, _ := status.ReadDaemon(n.Root(path.Join(runDir, status.DaemonFile)))
	return d
}

// fresh is report, written after this call: the daemon is asked to.
func (p *pair) fresh(n *lab.Node) status.Daemon {
	p.t.Helper()
	before := p.report(n).Updated
	p.signal(n, unix.SIGUSR1)
	p.eventually("a new vrrpd.json on "+n.Name, func() (bool, string) {
		now := p.report(n).Updated
		return now.Boot > before.Boot, now.Time.String()
	})
	return p.report(n)
}

// logged waits for words in the log of the node's daemon.
func (p *pair) logged(n *lab.Node, words string) {
	p.t.Helper()
	p.eventually(fmt.Sprintf("%q in the log of %s", words, n.Name), func() (bool, string) {
		return p.timesLogged(n, words) > 0, lastLine(p.daemon(n).Log())
	})
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}

// timesLogged counts the lines with these words in the log of the node's daemon.
func (p *pair) timesLogged(n *lab.Node, words string) (times int) {
	for line := range strings.Lines(p.daemon(n).Log()) {
		if strings.Contains(line, words) {
			times++
		}
	}
	return times
}

// saidOnce fails the test unless exactly one line of the node's log has these words. The log may come later than what it
// is about.
func (p *pair) saidOnce(n *lab.Node, words string) {
	p.t.Helper()
	p.logged(n, words)
	if times := p.timesLogged(n, words); times != 1 {
		p.t.Errorf("%s has logged %d times, want once: %s", n.Name, times, words)
	}
}

// neverTwo fails the test if since then both nodes had the address, or both status files said master, for longer than
// at most.
func (p *pair) neverTwo(since time.Time, atMost time.Duration) {
	p.t.Helper()
	if d := p.watch.TwoHolders(since); d > atMost {
		p.t.Errorf("both nodes had the address for %v, want at most %v", d, atMost)
	}
	if d := p.watch.TwoMasters(since); d > atMost {
		p.t.Errorf("both nodes said master for %v, want at most %v", d, atMost)
	}
}

// changes are the words that the node's status file has had since then, one after the other, without the one it had then.
func (p *pair) changes(n *lab.Node, since time.Time) []string {
	var words []string
	last := ""
	for _, c := range p.watch.Changes() {
		if c.Node != n.Name {
			continue
		}
		if c.At.After(since) && c.Status != last {
			words = append(words, c.Status)
		}
		last = c.Status
	}
	return words
}

// unchanged fails the test if a status file or the place of the address has changed since then.
func (p *pair) unchanged(since time.Time) {
	p.t.Helper()
	for _, c := range p.watch.Changes() {
		if c.At.After(since) {
			p.t.Errorf("%s changed %v later: address %v, status %q", c.Node, c.At.Sub(since).Round(time.Millisecond), c.Address, c.Status)
		}
	}
}

// configuration is the node's, as the daemon understands it.
func (p *pair) configuration(n *lab.Node) conf.Config {
	p.t.Helper()
	text, err := n.ReadFile(lab.ConfigPath)
	p.check(err)
	c, _, err := conf.Parse(lab.ConfigPath, []byte(text))
	p.check(err)
	return c
}

// down is the node's down interval while it listens to a master with the same interval.
func (p *pair) down(n *lab.Node) time.Duration {
	p.t.Helper()
	c := p.configuration(n)
	return election.DownInterval(c.Priority, c.AdvertInterval, c.DeadRatio)
}

func (p *pair) probe() *lab.Probe {
	p.t.Helper()
	return p.probeOf(p.vip)
}

func (p *pair) probeOf(addr netip.Addr) *lab.Probe {
	p.t.Helper()
	probe, err := p.Client.ProbeAddress(addr)
	p.check(err)
	p.eventually("answers from the address", func() (bool, string) {
		// Seen by the watch too, so that whoever asks it what came later does not get this.
		seen := addr != p.vip || p.holds(p.LB1) || p.holds(p.LB2)
		return seen && probe.Answering(), p.roles()
	})
	return probe
}

// capture records what both nodes send.
func (p *pair) capture(kinds lab.Kind) *lab.Capture {
	p.t.Helper()
	c, err := p.Capture(nil, lab.Sent, kinds)
	p.check(err)
	return c
}

// noLoss fails the test if a probe of the address was not answered.
func noLoss(t *testing.T, r lab.Report) {
	t.Helper()
	const underWay = 5 // when the probe was stopped
	if r.Err != nil {
		t.Error(r.Err)
	}
	if lost := r.Sent - r.Answered; lost > underWay {
		t.Errorf("%d of %d probes were not answered; longest gap %v, the probe's own stall %v", lost, r.Sent, r.Longest(), r.Stall)
	}
}

// outage fails the test if the address was silent for longer than a down interval since then, until n took over.
func (p *pair) outage(n *lab.Node, r lab.Report, since time.Time, down time.Duration) {
	p.t.Helper()
	if r.Err != nil {
		p.t.Error(r.Err)
	}
	gap, atMost := r.LongestSince(since), down
	// A daemon that the host kept from running for an interval or more has to do that.
	if p.timesLogged(n, "listening once more before taking over") > 0 {
		atMost += down
	}
	if gap.Open || gap.Length() > atMost+slack+r.Stall {
		p.t.Errorf("outage of %v, want at most %v and %v for a busy host", gap, atMost, slack+r.Stall)
	}
	p.t.Logf("outage %v, bound %v", gap, atMost)
}
