package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/status"
	"github.com/skudonet/skudonet-ce-cluster/test/lab"
)

func TestPowerCut(t *testing.T) {
	p := startPair(t)
	address := p.probe()
	service, err := p.Client.ProbeService(netip.AddrPortFrom(lab.ClusterIP, lab.ServicePort))
	p.check(err)
	wire := p.capture(lab.ARP | lab.VRRP)
	p.eventually("an answer of the service", func() (bool, string) { return service.Answering(), "" })

	cut := time.Now()
	p.check(p.LB1.PowerOff())
	gone := time.Now() // lb1 may have said something until now
	p.waitStatus(p.LB2, "master")
	p.eventually("answers", func() (bool, string) {
		served, _ := servedBy(service, p.LB2)
		return served && address.Answering(), p.roles()
	})
	bound := p.down(p.LB2)
	p.outage(p.LB2, address.Report(), cut, bound)
	p.outage(p.LB2, service.Report(), cut, bound)
	p.logged(p.LB2, "master on eth0 vrid 1: no advertisement from 192.168.77.11 for 721.9ms")
	p.eventually("an announcement of the new master", func() (bool, string) { return announced(wire, p.LB2, cut), "" })
	p.neverTwo(cut, 0)

	back := p.boot(p.LB1)
	p.start(p.LB1)
	p.waitMaster(p.LB2)
	p.awaitAdverts(wire, p.LB2, 8)
	if got := p.changes(p.LB1, back); !slices.Equal(got, []string{"backup"}) {
		t.Errorf("the returned node's status file said %q", got)
	}
	if got := p.changes(p.LB2, back); got != nil {
		t.Errorf("the master's status file changed to %q when the old one returned", got)
	}
	if got := speakers(wire, gone); !slices.Equal(got, []string{"lb2"}) {
		t.Errorf("%v spoke for the address after the power cut", got)
	}
	if r := address.Report(); r.LongestSince(back).Length() > slack+r.Stall {
		t.Errorf("the return of the old master cost %v", r.LongestSince(back))
	}
	if turns := service.Stop().Turns; len(turns) != 2 || turns[0].Name != "lb1" || turns[1].Name != "lb2" {
		t.Errorf("the service was given by %+v, want lb1, then lb2", turns)
	}
	if got := p.hooks(p.LB1); !slices.Equal(got, []string{"stop", "start", "stop"}) {
		t.Errorf("hooks of the node that lost power: %q", got)
	}
	p.neverTwo(back, 0)
}

// The switch loses a node's frames while its carrier stays: both are master until it heals. Then one of them has to
// yield, and the other to announce the address once more.
func TestSilentCutAndHeal(t *testing.T) {
	const heals = 10 // twice
	for _, row := range []struct {
		name     string
		priority string // of lb1
		survivor func(*pair) *lab.Node
	}{
		{"higher address survives", "100", func(p *pair) *lab.Node { return p.LB2 }},
		{"higher priority survives", "150", func(p *pair) *lab.Node { return p.LB1 }},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := newPair(t)
			survivor := row.survivor(p)
			loser := p.other(survivor)
			p.configure(p.LB1, keys{"priority": row.priority})
			p.start(survivor)
			p.waitStatus(survivor, "master")
			p.start(loser)
			p.settled()
			sent := p.capture(lab.ARP | lab.VRRP)
			heard, err := p.Capture(loser, lab.Delivered, lab.VRRP)
			p.check(err)
			service, err := p.Client.ProbeService(netip.AddrPortFrom(lab.ClusterIP, lab.ServicePort))
			p.check(err)
			for round := range heals {
				// The client goes to the loser when it is the survivor that is cut off, and has to come back.
				isolated := p.Nodes()[round%2]
				p.check(isolated.Isolate())
				p.waitStatus(loser, "master")
				p.eventually("two masters", func() (bool, string) { return p.holds(loser) && p.holds(survivor), p.roles() })
				if isolated == survivor {
					p.eventually("the client at "+loser.Name, func() (bool, string) { return servedBy(service, loser) })
				}
				healed := time.Now()
				p.check(isolated.Heal())
				whole := time.Now()
				p.waitMaster(survivor)
				p.neverTwo(whole, 200*time.Millisecond+slack)
				p.eventually("an announcement of the survivor", func() (bool, string) {
					return announced(sent, survivor, healed), fmt.Sprintf("heal %d", round+1)
				})
				p.eventually("the client at the survivor", func() (bool, string) { return servedBy(service, survivor) })
				if got := p.changes(survivor, healed); got != nil {
					t.Errorf("heal %d: the survivor's status file changed to %q", round+1, got)
				}
				if said := claims(sent, loser, firstAdvert(heard, healed)); len(said) > 1 {
					t.Errorf("heal %d: the loser claimed the address %d times more after it could hear the survivor", round+1, len(said))
				}
			}
		})
	}
}

// servedBy tells whether the last answers were the node's.
func servedBy(service *lab.Probe, n *lab.Node) (bool, string) {
	turns := service.Report().Turns
	if len(turns) == 0 {
		return false, "nobody answered"
	}
	last := turns[len(turns)-1]
	return last.Name == n.Name && service.Answering(), last.Name
}

// firstAdvert is when the first one after since was captured; now, if none was.
func firstAdvert(c *lab.Capture, since time.Time) time.Time {
	for _, p := range c.Packets() {
		if _, ok := readAdvert(p); ok && p.Time.After(since) {
			return p.Time
		}
	}
	return time.Now()
}

func TestCarrierLossOnMaster(t *testing.T) {
	p := startPair(t)
	probe := p.probe()
	wire := p.capture(lab.ARP | lab.VRRP)
	cut := time.Now()
	p.check(p.LB1.Cut())
	gone := time.Now()            // lb1 may have said something until now
	p.waitStatus(p.LB1, "backup") // what others read
	p.logged(p.LB1, "fault on eth0 vrid 1: eth0 has no carrier")
	p.awaitReport(p.LB1, "in fault", func(r status.Daemon) (bool, string) { return r.State == "fault", r.State })
	if out, err := p.LB1.Run("skd-hooks", "status"); err == nil || !strings.Contains(out, "out of the election: eth0 has no carrier") {
		t.Errorf("skd-hooks status, %v:\n%s", err, out)
	}
	p.waitStatus(p.LB2, "master")
	p.eventually("answers", func() (bool, string) { return probe.Answering() && p.holds(p.LB2), p.roles() })
	p.outage(p.LB2, probe.Report(), cut, p.down(p.LB2))
	p.neverTwo(cut, 0)

	healed := time.Now()
	p.check(p.LB1.Heal())
	p.logged(p.LB1, "backup on eth0 vrid 1: the link is back")
	p.waitMaster(p.LB2)
	p.awaitAdverts(wire, p.LB2, 8)
	p.unchanged(healed)
	if got := speakers(wire, gone); !slices.Equal(got, []string{"lb2"}) {
		t.Errorf("%v spoke for the address", got)
	}
	if r := probe.Stop(); r.LongestSince(healed).Length() > slack+r.Stall {
		t.Errorf("the return of the link cost %v", r.LongestSince(healed))
	}
	if got := p.hooks(p.LB1); !slices.Equal(got, []string{"stop", "start", "stop"}) {
		t.Errorf("hooks of lb1: %q", got)
	}
}

func TestCarrierLossOnBackup(t *testing.T) {
	p := startPair(t)
	probe := p.probe()
	wire := p.capture(lab.VRRP)
	cut := time.Now()
	p.check(p.LB2.Cut())
	p.logged(p.LB2, "fault on eth0 vrid 1: eth0 has no carrier")
	p.awaitAdverts(wire, p.LB1, 8)
	p.check(p.LB2.Heal())
	p.logged(p.LB2, "backup on eth0 vrid 1: the link is back")
	p.waitMaster(p.LB1)
	p.awaitAdverts(wire, p.LB1, 8)
	p.unchanged(cut)
	noLoss(t, probe.Stop())
	if list := adverts(wire, p.LB2, cut); list != nil {
		t.Errorf("the backup has sent %d adverts", len(list))
	}
	// It is as useful as before.
	p.check(p.LB1.PowerOff())
	p.waitStatus(p.LB2, "master")
}

// On a crossover cable the power-off of one node takes the carrier of the other.
func TestCarrierLossIgnored(t *testing.T) {
	p := startPair(t, keys{"link_loss": "ignore"})
	t.Log("a backup that heard its master until the link went takes over")
	p.check(p.LB1.PowerOff())
	p.check(p.LB2.Cut())
	p.waitStatus(p.LB2, "master")
	p.saidOnce(p.LB2, `eth0 has no carrier; check the cable and the switch port; ignored, because $link_loss is "ignore"`)

	t.Log("a node that starts without carrier does not")
	since := p.boot(p.LB1)
	p.check(p.LB1.Cut())
	p.start(p.LB1)
	p.logged(p.LB1, "fault on eth0 vrid 1: eth0 has no carrier")
	pass(2 * p.down(p.LB1))
	if got := p.changes(p.LB1, since); !slices.Equal(got, []string{"backup"}) {
		t.Errorf("without carrier lb1 said %q", got)
	}

	t.Log("the master stays master")
	if got := p.changes(p.LB2, since); got != nil {
		t.Errorf("without carrier the master said %q", got)
	}
	wire := p.capture(lab.ARP)
	p.check(p.LB2.Heal())
	p.eventually("an announcement on the link that is back", func() (bool, string) { return announced(wire, p.LB2, since), "" })
	p.check(p.LB1.Heal())
	p.waitMaster(p.LB2)
	if got := p.changes(p.LB2, since); got != nil {
		t.Errorf("with the carrier back the master said %q", got)
	}
}

func TestKilledDaemonGoesOn(t *testing.T) {
	p := startPair(t, keys{"advert_interval": "0.5"}) // two of them are the time for a new process
	probe := p.probe()
	wire := p.capture(lab.ARP | lab.VRRP)
	p.waitHookDone(p.LB1, "start")
	p.awaitAdverts(wire, p.LB1, 2) // with which that is noted
	since, before, peer := time.Now(), p.fresh(p.LB1), p.fresh(p.LB2)
	kill := func(n *lab.Node) {
		t.Helper()
		last := p.report(n).Started
		p.signal(n, unix.SIGKILL)
		p.eventually("a new process", func() (bool, string) {
			now := p.report(n).Started
			return now.Boot > last.Boot, now.Time.String()
		})
	}
	const kills = 5
	for range kills {
		kill(p.LB1)
		p.awaitAdverts(wire, p.LB1, 2)
	}
	if times := p.timesLogged(p.LB1, "master on eth0 vrid 1: the daemon restarted in time and goes on"); times != kills {
		t.Errorf("it has said %d times that it goes on, want %d", times, kills)
	}
	if got := p.fresh(p.LB1); got.State != "master" || got.Reason != before.Reason || !got.Since.Time.Equal(before.Since.Time) {
		t.Errorf("it says that it is %s since %v because %s; was since %v because %s",
			got.State, got.Since.Time, got.Reason, before.Since.Time, before.Reason)
	}
	if got := p.fresh(p.LB2); got.Since != peer.Since || len(got.Drops) != 0 || len(got.Faults) != 0 {
		t.Errorf("the peer has noticed: %+v", got)
	}

	t.Log("nor does a master notice the death of its backup's")
	kill(p.LB2)
	p.waitMaster(p.LB1)
	p.awaitAdverts(wire, p.LB1, 5)
	p.unchanged(since)
	noLoss(t, probe.Stop())
	if got := p.hooks(p.LB1); !slices.Equal(got, []string{"stop", "start"}) {
		t.Errorf("hooks of the master: %q: one that has run need not run again", got)
	}
	if got := speakers(wire, since); len(got) > 1 {
		t.Errorf("%v spoke for the address", got)
	}
}

func TestKilledDaemonTooLate(t *testing.T) {
	p := newPair(t)
	once := service(false, "skd-vrrpd")
	dead := p.startAs(p.LB1, once)
	p.waitStatus(p.LB1, "master")
	p.start(p.LB2)
	p.settled()
	wire := p.capture(lab.ARP | lab.VRRP)
	p.signal(p.LB1, unix.SIGKILL)
	<-dead.Done()
	p.waitStatus(p.LB2, "master")
	if !p.holds(p.LB1) {
		t.Fatal("the address is gone from the node whose daemon died: this test tests nothing")
	}

	// Whatever the dead master left has to go, without anybody being disturbed by it.
	since := time.Now()
	p.startAs(p.LB1, once)
	p.waitMaster(p.LB2)
	p.awaitAdverts(wire, p.LB2, 8)
	if got := p.changes(p.LB2, since); got != nil {
		t.Errorf("the master's status file changed to %q", got)
	}
	if got := p.changes(p.LB1, since); !slices.Equal(got, []string{"backup"}) {
		t.Errorf("the status file of the node that came back said %q", got)
	}
	p.guarded(p.LB1)
	if list := adverts(wire, p.LB1, since); list != nil {
		t.Errorf("the node that came back has sent %d adverts", len(list))
	}
	if got := p.hooks(p.LB1); !slices.Equal(got, []string{"stop", "start", "stop"}) {
		t.Errorf("hooks of the node that came back: %q", got)
	}
}

func TestStoppedMasterIsReplaced(t *testing.T) {
	p := startPair(t)
	probe := p.probe()
	wire := p.capture(lab.ARP | lab.VRRP)
	p.signal(p.LB1, unix.SIGSTOP)
	p.waitStatus(p.LB2, "master")
	p.awaitAdverts(wire, p.LB2, 5) // that is one down interval more
	resumed := time.Now()
	p.signal(p.LB1, unix.SIGCONT)
	p.waitMaster(p.LB2)
	p.awaitAdverts(wire, p.LB2, 5)

	p.logged(p.LB1, "this process did not run for")
	p.logged(p.LB1, "backup on eth0 vrid 1: 192.168.77.12 took over while this node did not run")
	if got := p.changes(p.LB2, resumed); got != nil {
		t.Errorf("the new master's status file changed to %q when the old one went on", got)
	}
	if list := claims(wire, p.LB1, resumed); list != nil {
		t.Errorf("the old master claimed the address %d times when it went on", len(list))
	}
	if announced(wire, p.LB1, resumed) {
		t.Error("the old master announced the address when it went on")
	}
	p.neverTwo(resumed, slack)
	p.guarded(p.LB1)
	if got := p.hooks(p.LB1); !slices.Equal(got, []string{"stop", "start", "stop"}) {
		t.Errorf("hooks of the old master: %q", got)
	}
	if r := probe.Stop(); r.Longest().Length() > p.down(p.LB2)+slack+r.Stall {
		t.Errorf("outage of %v", r.Longest())
	}
}

func TestStoppedMasterAloneGoesOn(t *testing.T) {
	p := newPair(t)
	p.start(p.LB1)
	p.waitStatus(p.LB1, "master")
	probe := p.probe()
	wire := p.capture(lab.ARP | lab.VRRP)
	since := time.Now()
	p.signal(p.LB1, unix.SIGSTOP)
	pass(2 * p.down(p.LB1))
	p.signal(p.LB1, unix.SIGCONT)
	p.logged(p.LB1, "this process did not run for")
	p.logged(p.LB1, "nobody took over during the stall; going on as master")
	p.awaitAdverts(wire, p.LB1, 3)
	p.eventually("an announcement", func() (bool, string) { return announced(wire, p.LB1, since), "" })
	p.unchanged(since)
	if r := probe.Stop(); r.Longest().Length() > slack+r.Stall {
		t.Errorf("the pause cost %v, although the kernel answers", r.Longest())
	}
}

func TestStoppedBackupDoesNotTakeOver(t *testing.T) {
	p := startPair(t)
	probe := p.probe()
	wire := p.capture(lab.VRRP)
	since := time.Now()
	for range 3 {
		p.signal(p.LB2, unix.SIGSTOP)
		p.awaitAdverts(wire, p.LB1, 8) // two down intervals
		p.signal(p.LB2, unix.SIGCONT)
		p.awaitAdverts(wire, p.LB1, 4)
	}
	p.unchanged(since)
	noLoss(t, probe.Stop())
	if list := adverts(wire, p.LB2, since); list != nil {
		t.Errorf("the backup has sent %d adverts", len(list))
	}

	t.Log("when the master died meanwhile, it listens once more, and takes over")
	p.check(p.LB1.Isolate()) // so that no last advert waits in the socket
	p.signal(p.LB2, unix.SIGSTOP)
	p.check(p.LB1.PowerOff())
	pass(2 * p.down(p.LB2))
	p.signal(p.LB2, unix.SIGCONT)
	p.logged(p.LB2, "listening once more before taking over")
	p.waitStatus(p.LB2, "master")
}

func TestInterfaceComesAndGoes(t *testing.T) {
	for _, row := range []struct {
		name     string
		away     func(*pair, *lab.Node)
		back     func(*pair, *lab.Node)
		complain string
	}{
		{"deleted and recreated",
			func(p *pair, n *lab.Node) { p.check(n.Remove()) },
			func(p *pair, n *lab.Node) { p.check(n.Insert()) },
			"fault on eth0 vrid 1: there is no interface eth0"},
		{"down and up",
			func(p *pair, n *lab.Node) { p.run(n, "ip", "link", "set", "eth0", "down") },
			func(p *pair, n *lab.Node) { p.run(n, "ip", "link", "set", "eth0", "up") },
			"fault on eth0 vrid 1: eth0 is down; waiting for: ip link set eth0 up"},
		{"address removed and added",
			func(p *pair, n *lab.Node) { p.run(n, "ip", "addr", "del", n.Addr(0).String()+"/24", "dev", "eth0") },
			func(p *pair, n *lab.Node) { p.run(n, "ip", "addr", "add", n.Addr(0).String()+"/24", "dev", "eth0") },
			"expected there"},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := startPair(t)
			wire := p.capture(lab.ARP | lab.VRRP)
			t.Log("on the backup")
			since := time.Now()
			row.away(p, p.LB2)
			p.logged(p.LB2, row.complain)
			p.awaitAdverts(wire, p.LB1, 6)
			row.back(p, p.LB2)
			p.logged(p.LB2, "backup on eth0 vrid 1: the link is back")
			p.waitMaster(p.LB1)
			p.awaitAdverts(wire, p.LB1, 6)
			p.unchanged(since)
			p.guarded(p.LB2)

			t.Log("on the master")
			since = time.Now()
			row.away(p, p.LB1)
			p.logged(p.LB1, row.complain)
			p.waitStatus(p.LB1, "backup")
			p.waitStatus(p.LB2, "master")
			row.back(p, p.LB1)
			p.logged(p.LB1, "backup on eth0 vrid 1: the link is back")
			p.waitMaster(p.LB2)
			p.awaitAdverts(wire, p.LB2, 6)
			if got := p.changes(p.LB2, since); !slices.Equal(got, []string{"master"}) {
				t.Errorf("lb2's status file said %q", got)
			}
			p.neverTwo(since, slack)
			p.guarded(p.LB1)

			t.Log("what came back does all its work")
			probe := p.probe()
			since = time.Now()
			p.check(p.LB2.PowerOff())
			p.waitStatus(p.LB1, "master")
			p.eventually("answers", func() (bool, string) { return probe.AnsweredAfter(since.Add(p.down(p.LB1) / 2)), p.roles() })
			p.outage(p.LB1, probe.Stop(), since, p.down(p.LB1))
		})
	}
}
