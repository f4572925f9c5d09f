package e2e

import (
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/election"
	"github.com/skudonet/skudonet-ce-cluster/test/lab"
)

func TestStartOrders(t *testing.T) {
	p := newPair(t)
	wire := p.capture(lab.ARP | lab.VRRP)
	for _, first := range p.Nodes() {
		since := time.Now()
		p.start(first)
		p.waitStatus(first, "master")
		p.start(p.other(first))
		p.waitMaster(first)
		p.awaitAdverts(wire, first, 5)
		p.neverTwo(since, 0)
		if got := speakers(wire, since); !slices.Equal(got, []string{first.Name}) {
			t.Errorf("%s was first, and %v spoke for the address", first.Name, got)
		}
		p.stop(p.other(first))
		p.stop(first)
	}
	// The same instant: first as exactly as a machine allows, then with the second while the first waits.
	for _, gap := range []time.Duration{0, 0, 0, 20 * time.Millisecond, p.down(p.LB1) / 2} {
		since := time.Now()
		started := make(chan *lab.Daemon)
		for _, n := range p.Nodes() {
			go func() { started <- p.start(n) }()
			pass(gap)
		}
		<-started
		<-started
		master, backup := p.settled()
		p.awaitAdverts(wire, master, 5)
		if len(p.changes(master, since)) > 3 || len(p.changes(backup, since)) > 3 {
			t.Errorf("%v apart: lb1 said %q, lb2 %q", gap, p.changes(p.LB1, since), p.changes(p.LB2, since))
		}
		p.neverTwo(since, 200*time.Millisecond+slack)
		p.stop(backup)
		p.stop(master)
	}
}

func TestHandOver(t *testing.T) {
	p := startPair(t, keys{"advert_interval": "1"}) // a down interval would be noticed
	probe := p.probe()
	wire := p.capture(lab.ARP | lab.VRRP)
	since := time.Now()
	for _, from := range []*lab.Node{p.LB1, p.LB2, p.LB1} {
		to := p.other(from)
		began := time.Now()
		p.signal(from, unix.SIGUSR2)
		p.waitMaster(to)
		p.logged(to, "master on eth0 vrid 1: "+from.Addr(0).String()+" hands over")
		p.logged(from, "backup on eth0 vrid 1: handed over to "+to.Addr(0).String())
		p.neverTwo(began, slack) // it keeps the address until the successor is heard
		if got := p.changes(to, began); !slices.Equal(got, []string{"master"}) {
			t.Errorf("the successor said %q", got)
		}
	}
	if r := probe.Stop(); r.Longest().Length() > slack+r.Stall {
		t.Errorf("a hand-over cost %v", r.Longest())
	}
	p.eventually("lb2, lb1 and lb2 speak for the address, in this order", func() (bool, string) {
		got := speakers(wire, since)
		return slices.Equal(got, []string{"lb2", "lb1", "lb2"}) || slices.Equal(got, []string{"lb1", "lb2", "lb1", "lb2"}), strings.Join(got, ", ")
	})
	p.signal(p.LB1, unix.SIGUSR2)
	p.logged(p.LB1, "nothing to hand over: this node is not master (backup)")
	p.awaitAdverts(wire, p.LB2, 2)
	if p.LB2.Status() != "master" {
		t.Error("a hand-over that was asked of the backup has moved the master")
	}
}

func TestHandOverWithoutSuccessor(t *testing.T) {
	p := newPair(t)
	p.start(p.LB1)
	p.waitStatus(p.LB1, "master")
	probe := p.probe()
	wire := p.capture(lab.VRRP)
	since := time.Now()
	p.signal(p.LB1, unix.SIGUSR2)
	p.logged(p.LB1, "no successor within 3s, staying master")
	p.awaitAdverts(wire, p.LB1, 3)
	p.unchanged(since)
	noLoss(t, probe.Stop())
}

func TestStop(t *testing.T) {
	p := startPair(t, keys{"advert_interval": "1"})
	probe := p.probe()
	since := time.Now()
	stopped := p.daemon(p.LB1)
	p.stop(p.LB1)
	p.waitStatus(p.LB2, "master")
	p.logged(p.LB2, "master on eth0 vrid 1: 192.168.77.11 hands over")
	p.eventually("answers", func() (bool, string) { return probe.AnsweredAfter(time.Now().Add(-5 * time.Millisecond)), p.roles() })
	if r := probe.Report(); r.Longest().Length() > slack+r.Stall {
		t.Errorf("the stop cost %v", r.Longest())
	}
	p.leftNothing(p.LB1, stopped)
	if got := p.hooks(p.LB1); !slices.Equal(got, []string{"stop", "start", "stop"}) {
		t.Errorf("hooks of the stopped node: %q", got)
	}
	p.neverTwo(since, slack)

	t.Log("a node without a peer stops as well")
	stopped = p.daemon(p.LB2)
	p.stop(p.LB2)
	p.leftNothing(p.LB2, stopped)

	t.Log("a backup")
	p.startBoth()
	stopped, since = p.daemon(p.LB2), time.Now()
	p.stop(p.LB2)
	p.leftNothing(p.LB2, stopped)
	if got := p.changes(p.LB1, since); got != nil {
		t.Errorf("the stop of the backup changed the master to %q", got)
	}
}

// leftNothing fails the test unless the service has ended well on the node, and left no trace but the log.
func (p *pair) leftNothing(n *lab.Node, d *lab.Daemon) {
	p.t.Helper()
	if exits := d.Exits(); len(exits) != 1 || !exits[0].State.Success() {
		p.t.Errorf("%s: the daemon ended %d times, lastly with %v", n.Name, len(exits), exits)
	}
	if _, err := os.Stat(n.Root(lab.StatusPath)); !os.IsNotExist(err) {
		p.t.Errorf("%s: status file: %v, %q", n.Name, err, n.Status())
	}
	if out := p.run(n, "ip", "-4", "addr"); strings.Contains(out, lab.ClusterIP.String()) {
		p.t.Errorf("%s still has the address:\n%s", n.Name, out)
	}
	if out := p.run(n, "nft", "list", "tables"); out != "" {
		p.t.Errorf("%s still has the guard: %s", n.Name, out)
	}
	if out, err := n.Run("skd-hooks", "status"); err == nil || !strings.Contains(out, "stopped") {
		p.t.Errorf("%s: skd-hooks status: %v: %s", n.Name, err, out)
	}
}

func TestPriority(t *testing.T) {
	p := newPair(t)
	p.configure(p.LB2, keys{"priority": "150"})
	p.start(p.LB1)
	p.waitStatus(p.LB1, "master")
	p.start(p.LB2)
	wire := p.capture(lab.ARP | lab.VRRP)

	t.Log("without $preempt a higher priority waits")
	p.waitMaster(p.LB1)
	since := time.Now()
	p.awaitAdverts(wire, p.LB1, 6)
	p.unchanged(since)

	t.Log("with $preempt it takes over, without an outage")
	probe := p.probe()
	p.configure(p.LB2, keys{"preempt": "true"})
	p.signal(p.LB2, unix.SIGHUP)
	p.waitMaster(p.LB2)
	p.logged(p.LB2, "master on eth0 vrid 1: 192.168.77.11 has a lower priority than our 150, and $preempt is on")
	p.logged(p.LB1, "backup on eth0 vrid 1: 192.168.77.12 has a higher priority")
	p.neverTwo(since, 200*time.Millisecond+slack)

	t.Log("what it handed over it does not take back at once")
	p.signal(p.LB2, unix.SIGUSR2)
	p.waitMaster(p.LB1)
	since = time.Now()
	p.awaitAdverts(wire, p.LB1, 12)
	p.unchanged(since)
	if r := probe.Stop(); r.Longest().Length() > slack+r.Stall {
		t.Errorf("outage of %v", r.Longest())
	}

	t.Log("when both start, the higher priority wins")
	p.stop(p.LB1)
	p.stop(p.LB2)
	p.start(p.LB1)
	p.start(p.LB2)
	p.waitMaster(p.LB2)
}

func TestTransports(t *testing.T) {
	for _, row := range []struct {
		name     string
		changes  keys
		kind     lab.Kind
		protocol byte
		to       func(from *lab.Node, p *pair) netip.Addr
	}{
		{"multicast", nil, lab.VRRP, protocolVRRP, func(*lab.Node, *pair) netip.Addr { return group }},
		{"multicast unsigned", keys{"password": ""}, lab.VRRP, protocolVRRP, func(*lab.Node, *pair) netip.Addr { return group }},
		{"unicast", keys{"transport": "unicast"}, lab.VRRP, protocolVRRP, func(n *lab.Node, p *pair) netip.Addr { return p.other(n).Addr(0) }},
		{"udp", keys{"transport": "udp"}, lab.UDP, unix.IPPROTO_UDP, func(n *lab.Node, p *pair) netip.Addr { return p.other(n).Addr(0) }},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := newPair(t, row.changes)
			wire := p.capture(row.kind | lab.ARP)
			since := time.Now()
			p.startBoth()
			p.neverTwo(since, 0)
			probe := p.probe()
			for _, from := range []*lab.Node{p.LB1, p.LB2} {
				p.signal(from, unix.SIGUSR2)
				p.waitMaster(p.other(from))
				p.logged(from, "handed over to "+p.other(from).Addr(0).String())
			}
			if r := probe.Report(); r.Longest().Length() > slack+r.Stall {
				t.Errorf("a hand-over cost %v", r.Longest())
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
				list := adverts(wire, n, since)
				if len(list) == 0 {
					t.Errorf("%s has sent no advert", n.Name)
				}
				for _, a := range list {
					if a.ip.Source != n.Addr(0) || a.ip.Destination != row.to(n, p) || a.ip.Protocol != row.protocol ||
						row.protocol == protocolVRRP && a.ip.TTL != 255 {
						t.Fatalf("%s sent %v to %v, protocol %d, TTL %d", n.Name, a.ip.Source, a.ip.Destination, a.ip.Protocol, a.ip.TTL)
					}
					if signed := row.changes["password"] == "" && row.name != "multicast unsigned"; (len(a.trailer) > 0) != signed {
						t.Fatalf("%s sent a trailer of %d bytes", n.Name, len(a.trailer))
					}
				}
			}
		})
	}
}

// What should be the same on both nodes and is not.
func TestMismatch(t *testing.T) {
	t.Run("interval", func(t *testing.T) {
		p := newPair(t)
		p.configure(p.LB2, keys{"advert_interval": "0.4"})
		p.startBoth()
		wire := p.capture(lab.VRRP)
		since := time.Now()
		p.awaitAdverts(wire, p.LB1, 10)
		p.unchanged(since)
		p.saidOnce(p.LB2, "192.168.77.11 advertises every 200ms and our $advert_interval is 400ms; following it")

		probe, cut := p.probe(), time.Now()
		p.check(p.LB1.PowerOff())
		p.waitStatus(p.LB2, "master")
		p.eventually("answers", func() (bool, string) { return probe.Answering(), p.roles() })
		p.outage(p.LB2, probe.Stop(), cut, election.DownInterval(100, 200*time.Millisecond, 3))

		t.Log("the slower one as master")
		p.boot(p.LB1)
		p.start(p.LB1)
		p.waitMaster(p.LB2)
		since = time.Now()
		p.awaitAdverts(wire, p.LB2, 6)
		p.unchanged(since)
		p.saidOnce(p.LB1, "192.168.77.12 advertises every 400ms and our $advert_interval is 200ms; following it")
	})
	t.Run("dead ratio", func(t *testing.T) {
		p := newPair(t)
		p.configure(p.LB1, keys{"dead_ratio": "2"})
		p.configure(p.LB2, keys{"dead_ratio": "10"})
		p.startBoth()
		wire := p.capture(lab.VRRP)
		since := time.Now()
		p.awaitAdverts(wire, p.LB1, 12)
		p.unchanged(since)
		heard, err := p.Capture(p.LB2, lab.Delivered, lab.VRRP)
		p.check(err)
		p.awaitAdverts(wire, p.LB1, 1)
		probe, cut := p.probe(), time.Now()
		p.check(p.LB1.PowerOff())
		p.waitStatus(p.LB2, "master")
		p.eventually("answers", func() (bool, string) { return probe.Answering(), p.roles() })
		r := probe.Stop()
		p.outage(p.LB2, r, cut, election.DownInterval(100, 200*time.Millisecond, 10))
		packets, err := heard.Stop()
		p.check(err)
		if gap, last := r.LongestSince(cut), packets[len(packets)-1].Time; gap.To.Sub(last) < 10*200*time.Millisecond {
			t.Errorf("took over %v after the last advert, with a dead ratio of 10; outage %v", gap.To.Sub(last), gap)
		}
	})
	t.Run("cluster address", func(t *testing.T) {
		p := newPair(t)
		p.configure(p.LB2, keys{"cluster_ip": "192.168.77.101"})
		p.startBoth()
		wire := p.capture(lab.VRRP)
		since := time.Now()
		p.awaitAdverts(wire, p.LB1, 8)
		p.unchanged(since)
		const words = "192.168.77.11 advertises 192.168.77.100 and our $cluster_ip is 192.168.77.101; obeyed, but set the same $cluster_ip on both nodes"
		p.saidOnce(p.LB2, words)
		if out, err := p.LB2.Run("skd-hooks", "status"); err == nil || !strings.Contains(out, words) {
			t.Errorf("skd-hooks status: %v: %s", err, out)
		}
	})
	t.Run("one without password", func(t *testing.T) {
		p := newPair(t)
		p.configure(p.LB2, keys{"password": ""})
		p.startBoth()
		wire := p.capture(lab.VRRP)
		since := time.Now()
		p.awaitAdverts(wire, p.LB1, 8)
		p.unchanged(since)
		p.saidOnce(p.LB2, "192.168.77.11 signs its advertisements and $password is empty here; obeyed")
	})
	t.Run("password", func(t *testing.T) {
		p := newPair(t)
		p.configure(p.LB2, keys{"password": "another-9xQ4-password"})
		p.start(p.LB1)
		p.waitStatus(p.LB1, "master")
		probe := p.probe()
		wire := p.capture(lab.ARP | lab.VRRP)
		since := time.Now()
		p.start(p.LB2)
		const held = "not becoming master while the peer 192.168.77.11 advertises what this node must not obey: its signature does not fit"
		p.logged(p.LB2, held)
		p.awaitAdverts(wire, p.LB1, 10)
		p.saidOnce(p.LB2, held)
		p.saidOnce(p.LB2, "refused an advertisement from 192.168.77.11: its signature does not fit")
		if out, err := p.LB2.Run("skd-hooks", "status"); err == nil || !strings.Contains(out, held) || !strings.Contains(out, "bad-signature") {
			t.Errorf("skd-hooks status: %v: %s", err, out)
		}
		if got := p.changes(p.LB2, since); !slices.Equal(got, []string{"backup"}) {
			t.Errorf("the node with the wrong password said %q", got)
		}
		if list := adverts(wire, p.LB2, since); list != nil {
			t.Errorf("it has sent %d adverts", len(list))
		}

		t.Log("mended, it is a backup like any other")
		p.configure(p.LB2, keys{"password": lab.Password})
		p.signal(p.LB2, unix.SIGHUP)
		p.waitMaster(p.LB1)
		p.awaitAdverts(wire, p.LB1, 5)
		if got := p.changes(p.LB1, since); got != nil {
			t.Errorf("the master said %q", got)
		}
		noLoss(t, probe.Stop())
		if got := p.fresh(p.LB2); len(got.Faults) != 0 || !got.Peer.Verified {
			t.Errorf("after the password was mended: %+v", got)
		}
	})
	t.Run("password, both start", func(t *testing.T) {
		p := newPair(t)
		p.configure(p.LB2, keys{"password": "another-9xQ4-password"})
		since := time.Now()
		p.start(p.LB1)
		p.waitStatus(p.LB1, "backup")
		pass(p.down(p.LB1) / 2) // in the same instant they could not know of each other
		p.start(p.LB2)
		p.eventually("one master", func() (bool, string) { return p.LB1.Status() == "master" || p.LB2.Status() == "master", p.roles() })
		pass(2 * p.down(p.LB1))
		p.neverTwo(since, 200*time.Millisecond+slack)
	})
	t.Run("both with the same local address in the file", func(t *testing.T) {
		p := newPair(t)
		p.configure(p.LB2, keys{"local_ip": "192.168.77.11", "remote_ip": "192.168.77.12"}) // copied, not swapped
		p.start(p.LB1)
		p.waitStatus(p.LB1, "master")
		since := time.Now()
		wire := p.capture(lab.VRRP)
		p.start(p.LB2)
		p.logged(p.LB2, "fault on eth0 vrid 1: $local_ip 192.168.77.11 is not on eth0, which has 192.168.77.12")
		p.awaitAdverts(wire, p.LB1, 8)
		if got := p.changes(p.LB2, since); !slices.Equal(got, []string{"backup"}) {
			t.Errorf("the node with the copied file said %q", got)
		}
		if got := p.changes(p.LB1, since); got != nil {
			t.Errorf("the master said %q", got)
		}
	})
}

func TestPasswordChange(t *testing.T) {
	p := startPair(t, keys{"advert_interval": "0.5"}) // two of them are the time for a new process
	probe := p.probe()
	wire := p.capture(lab.ARP | lab.VRRP)
	since := time.Now()
	const fresh = "new-4Gk8-password"
	pids := map[*lab.Node]int{p.LB1: p.daemon(p.LB1).PID(), p.LB2: p.daemon(p.LB2).PID()}
	for _, changes := range []keys{
		{"password_next": fresh},
		{"password": fresh, "password_next": lab.Password},
		{"password_next": lab.Omit},
	} {
		for _, n := range p.Nodes() {
			p.configure(n, changes)
			p.hangUp(n)
			p.awaitAdverts(wire, p.LB1, 3)
			for _, m := range p.Nodes() {
				if got := p.fresh(m); len(got.Drops) != 0 || len(got.Faults) != 0 || m == p.LB2 && !got.Peer.Verified {
					t.Errorf("after %s has got %v, %s says %+v", n.Name, changes, m.Name, got)
				}
			}
		}
	}
	p.unchanged(since)
	noLoss(t, probe.Stop())
	for _, n := range p.Nodes() {
		if d := p.daemon(n); d.PID() != pids[n] || d.Starts() != 1 {
			t.Errorf("%s: process %d, was %d", n.Name, d.PID(), pids[n])
		}
	}

	t.Log("the old password is of no use any more")
	p.configure(p.LB2, keys{"password": lab.Password})
	p.hangUp(p.LB2)
	p.logged(p.LB2, "refused an advertisement from 192.168.77.11: its signature does not fit")
	if p.LB2.Status() == "master" {
		t.Error("with the old password lb2 became master")
	}
}

// hangUp has the daemon execute itself anew, and waits until it has.
func (p *pair) hangUp(n *lab.Node) {
	p.t.Helper()
	before := p.report(n).Started
	p.signal(n, unix.SIGHUP)
	p.eventually(n.Name+" executed anew", func() (bool, string) {
		now := p.report(n).Started
		return now.Boot > before.Boot, now.Time.String()
	})
}

func TestHangUp(t *testing.T) {
	const program = "/usr/local/sbin/skd-vrrpd"
	p := newPair(t, keys{"advert_interval": "0.5"}) // two of them are the time for a new process
	for _, n := range p.Nodes() {
		p.run(n, "cp", "/usr/sbin/skd-vrrpd", program)
		p.startAs(n, service(true, program))
	}
	master, backup := p.settled()
	probe := p.probe()
	wire := p.capture(lab.ARP | lab.VRRP)
	since, pid := time.Now(), p.daemon(master).PID()

	t.Log("a master goes on as the same process")
	became := p.fresh(master).Since
	for range 3 {
		p.hangUp(master)
		p.awaitAdverts(wire, master, 2)
	}
	p.logged(master, "goes on")
	if got := p.fresh(master); !got.Since.Time.Equal(became.Time) || got.Reason == "the daemon restarted in time and goes on" {
		t.Errorf("it says it is master since %v because %s, and was since %v", got.Since.Time, got.Reason, became.Time)
	}

	t.Log("another program in the file is executed")
	p.check(master.WriteFile(program+".new", "#!/bin/sh\ntouch /var/log/replaced\nexec /usr/sbin/skd-vrrpd \"$@\"\n", 0o755))
	p.run(master, "mv", program+".new", program)
	p.hangUp(master)
	if _, err := os.Stat(master.Root("/var/log/replaced")); err != nil {
		t.Errorf("the replaced program was not executed: %v", err)
	}

	t.Log("a changed configuration is obeyed")
	p.configure(master, keys{"advert_interval": "0.4"})
	p.hangUp(master)
	p.awaitAdverts(wire, master, 3)
	if list := claims(wire, master, since); list[len(list)-1].Interval != 400*time.Millisecond {
		t.Errorf("it advertises an interval of %v, want 400 ms", list[len(list)-1].Interval)
	}

	t.Log("a wrong one is not, nor is that of another virtual router")
	for _, bad := range []struct {
		changes keys
		words   []string
	}{
		{keys{"priority": "300", "transport": "pigeon"}, []string{`$priority: "300"`, `$transport: "pigeon"`, "the configuration is wrong; going on with the old one"}},
		{keys{"priority": "100", "transport": "multicast", "cluster_id": "2"}, []string{"the configuration describes another virtual router"}},
	} {
		started := p.fresh(master).Started
		p.configure(master, bad.changes)
		p.signal(master, unix.SIGHUP)
		for _, words := range bad.words {
			p.logged(master, words)
		}
		p.awaitAdverts(wire, master, 3)
		if got := p.fresh(master); got.Started.Boot != started.Boot {
			t.Error("it has executed itself anew")
		}
	}

	t.Log("a backup stays backup")
	p.hangUp(backup)
	p.waitMaster(master)
	p.awaitAdverts(wire, master, 5)

	p.unchanged(since)
	noLoss(t, probe.Stop())
	if d := p.daemon(master); d.PID() != pid || d.Starts() != 1 {
		t.Errorf("process %d in its life %d, was %d", d.PID(), d.Starts(), pid)
	}
	if got := p.hooks(master); !slices.Equal(got, []string{"stop", "start"}) {
		t.Errorf("hooks of the master: %q", got)
	}
}
