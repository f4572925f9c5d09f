package neighbours

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/test/lab"
)

// ucarp takes over from a healthy master only if its own interval is strictly shorter: a tie with --preempt changes nothing.
func TestPreemption(t *testing.T) {
	t.Parallel()
	// CARP's ties go to lb1: who has the higher rank here would lose one.
	t.Run("ucarp takes over from us", func(t *testing.T) {
		p := newPair(t, keys{"protocol": "auto", "priority": "50"}, "--preempt")
		p.startUcarp(p.LB2)
		p.master(p.LB2)
		p.startOurs(p.LB1)
		p.logged(p.LB1, "is ucarp")
		p.retire(p.LB2)
		p.stays(p.LB1)
		probe, since := p.probe(), time.Now()
		p.startUcarp(p.LB2)
		p.master(p.LB2)
		p.logged(p.LB1, "192.168.77.12 has a higher rank in CARP")
		p.stays(p.LB2)
		p.neverTwo(since, ucarpLag)
		p.outage(probe, since, 0)
	})
	t.Run("we take over from ucarp", func(t *testing.T) {
		p := newPair(t, keys{"protocol": "auto", "preempt": "true"}, "--advskew=100")
		p.startUcarp(p.LB1)
		p.master(p.LB1)
		probe, since := p.probe(), time.Now()
		p.startOurs(p.LB2)
		p.master(p.LB2)
		p.logged(p.LB2, "192.168.77.11 has a lower rank in CARP, and $preempt is on")
		p.stays(p.LB2)

		t.Log("what the admin hands over is not taken back at once")
		p.run(p.LB2, "skd-vrrpd", "handover")
		p.master(p.LB1)
		p.stays(p.LB1)
		p.neverTwo(since, ucarpLag+slack) // ucarp has the address until it reads our advert
		p.outage(probe, since, 0)
	})
}

// A pair whose nodes differ in rank, and preempt, keeps its order through the upgrade of both.
func TestLiveUpgradeOfARankedPair(t *testing.T) {
	p := newPair(t, keys{"protocol": "auto", "preempt": "true"})
	p.check(p.LB2.Configure(keys{"priority": "50"}))
	p.ucarp = []string{"--preempt"}
	p.startUcarp(p.LB1)
	p.master(p.LB1)
	p.ucarp = []string{"--preempt", "--advskew=50"}
	p.startUcarp(p.LB2)
	<-time.After(2 * time.Second)

	t.Log("the backup")
	probe, since := p.probe(), time.Now()
	p.upgrade(p.LB2)
	p.stays(p.LB1)
	p.neverTwo(since, 0)
	p.outage(probe, since, 0)

	t.Log("the master: the backup takes over, and gives back what is not its own")
	since = time.Now()
	p.upgrade(p.LB1)
	p.logged(p.LB2, "192.168.77.11 hands over")
	p.logged(p.LB1, "192.168.77.12 has a lower priority than our 100, and $preempt is on")
	p.master(p.LB1)
	p.bridgeEnded()
	p.neverTwo(since, slack)
	p.outage(probe, since, 500*time.Millisecond)
}

// ucarp compares addresses from the last octet on, so we do: here a comparison of the whole ones ends the other way.
func TestTieOfTheLastOctet(t *testing.T) {
	t.Parallel()
	for _, ours := range []int{1, 2} {
		t.Run(fmt.Sprintf("ours is lb%d", ours), func(t *testing.T) {
			p := newPair(t, auto)
			p.move(netip.MustParsePrefix("192.168.78.5/16"), netip.MustParsePrefix("192.168.77.7/16"))
			mine, old := p.LB1, p.LB2
			if ours == 2 {
				mine, old = old, mine
			}
			p.startUcarp(old)
			p.master(old)
			p.startOurs(mine)
			p.splitAndHeal(ours == 2)
		})
	}
}

// move gives both nodes other addresses than the lab's.
func (p *pair) move(lb1, lb2 netip.Prefix) {
	p.t.Helper()
	p.moved = map[*lab.Node]netip.Addr{p.LB1: lb1.Addr(), p.LB2: lb2.Addr()}
	for n, to := range map[*lab.Node]netip.Prefix{p.LB1: lb1, p.LB2: lb2} {
		p.run(n, "ip", "address", "add", to.String(), "dev", "eth0")
		p.run(n, "ip", "address", "del", n.Addr(0).String()+"/24", "dev", "eth0")
		p.check(n.Configure(keys{"local_ip": p.addr(n).String(), "remote_ip": p.addr(p.other(n)).String()}))
	}
}

// A ucarp that was killed has told nobody, and as a master has left the address up. Whoever then starts the upgraded
// service there has neither two nodes with the address, nor clients that ask the wrong one.
func TestKilledUcarp(t *testing.T) {
	t.Parallel()
	t.Run("the master, and we took over", func(t *testing.T) {
		p := newPair(t, auto)
		p.startUcarp(p.LB1)
		p.master(p.LB1)
		p.startOurs(p.LB2)
		p.logged(p.LB2, "is ucarp")
		probe, since := p.ask(), time.Now()
		p.kill(p.LB1)
		p.eventually("our promotion", func() (bool, string) { return p.LB2.Status() == "master", p.roles() })
		p.answers(probe, p.LB2, time.Time{})
		p.leftUp(p.LB1)
		p.startKilled(p.LB1, probe)
		p.outage(probe, since, 0)
		p.bridgeEnded()
	})
	t.Run("the master, and nobody took over yet", func(t *testing.T) {
		p := newPair(t, auto)
		p.startUcarp(p.LB1)
		p.master(p.LB1)
		p.startUcarp(p.LB2)
		probe, since := p.ask(), time.Now()
		p.kill(p.LB1)
		p.leftUp(p.LB1)
		p.startKilled(p.LB1, probe)
		p.neverTwo(since, 0)
		p.outage(probe, since, ucarpDown)
		p.logged(p.LB1, "is ucarp")
	})
	t.Run("the backup", func(t *testing.T) {
		p := newPair(t, auto)
		p.startUcarp(p.LB1)
		p.master(p.LB1)
		p.startOurs(p.LB2)
		p.logged(p.LB2, "is ucarp")
		p.retire(p.LB1)
		p.startUcarp(p.LB1)
		p.stays(p.LB2)
		probe, since := p.ask(), time.Now()
		p.kill(p.LB1)
		p.stays(p.LB2)
		p.startKilled(p.LB1, probe)
		p.neverTwo(since, 0)
		p.answers(probe, p.LB2, since)
		p.outage(probe, since, 0)
		p.bridgeEnded()
	})
}

// kill ends ucarp as version 2.0 does, or the kernel: at once.
func (p *pair) kill(n *lab.Node) {
	p.t.Helper()
	p.check(p.daemons[n].Signal(unix.SIGKILL))
	<-p.daemons[n].Done()
}

// leftUp makes sure that a killed master has left the address.
func (p *pair) leftUp(n *lab.Node) {
	p.t.Helper()
	if _, has := p.watch.Last(n, func(c lab.Claim) bool { return c.Address }); !has {
		p.t.Fatalf("%s has the address no more: there is nothing to test", n.Name)
	}
}

// startKilled starts the upgraded service where ucarp was killed. The other node is master, or becomes it.
func (p *pair) startKilled(n *lab.Node, probe *lab.Probe) {
	p.t.Helper()
	p.upgrade(n)
	p.master(p.other(n))
	started, _ := p.watch.Last(n, func(c lab.Claim) bool { return c.Status == "backup" })
	p.neverTwo(started, slack)
	single := time.Now()
	// Who asks where the address is gets one answer.
	p.run(p.Client, "ip", "neighbour", "flush", "dev", "eth0")
	p.stays(p.other(n))
	p.neverTwo(single, 0)
	p.answers(probe, p.other(n), single)
}

// ask has the client ask who is there.
func (p *pair) ask() *lab.Probe {
	p.t.Helper()
	probe, err := p.Client.ProbeService(netip.AddrPortFrom(lab.ClusterIP, lab.ServicePort))
	p.check(err)
	p.eventually("answers from the address", func() (bool, string) { return probe.Answering(), p.roles() })
	return probe
}

// answers waits until the client gets answers of this node, and fails the test if those of another came later than that.
func (p *pair) answers(probe *lab.Probe, n *lab.Node, since time.Time) {
	p.t.Helper()
	p.eventually("answers of "+n.Name, func() (bool, string) {
		turns := probe.Report().Turns
		last := turns[len(turns)-1]
		return last.Name == n.Name && last.Answers > 100, fmt.Sprint(turns)
	})
	for _, turn := range probe.Report().Turns {
		if turn.Name != n.Name && !since.IsZero() && turn.To.After(since) {
			p.t.Errorf("%s gave %d answers, until %v after it should have been %s", turn.Name, turn.Answers, turn.To.Sub(since), n.Name)
		}
	}
}

func (p *pair) bridgeEnded() {
	p.t.Helper()
	for _, n := range p.Nodes() {
		p.logged(n, "now change the password")
	}
}
