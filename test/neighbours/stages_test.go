package neighbours

import (
	"fmt"
	"path"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/status"
	"github.com/skudonet/skudonet-ce-cluster/test/lab"
)

const (
	isUcarp    = "is ucarp: speaking CARP beside VRRPv3"
	bridgeOver = "CARP is neither spoken nor heard any more"
	// The down interval with VRRPv3's defaults.
	vrrpDown = 3610 * time.Millisecond
	// Until one of two masters knows of the other one.
	untilHeard = time.Second + ucarpLag + slack
)

// stage is a pair somewhere on the bridge.
type stage struct {
	*pair
	first, last *lab.Node // to be upgraded
	ucarp       *lab.Node // which one is not yet
	master      *lab.Node
	wire        *lab.Capture
	over        time.Time // when both had said that the bridge is
	replayed    bool
}

func (s *stage) start(n *lab.Node) {
	s.t.Helper()
	if n == s.ucarp {
		s.startUcarp(n)
	} else {
		s.startOurs(n)
	}
}

// oursIsBackup is the stage at which each begins.
func (s *stage) oursIsBackup() {
	s.t.Helper()
	s.ucarp, s.master = s.last, s.last
	s.start(s.last)
	s.pair.master(s.last)
	s.start(s.first)
	s.logged(s.first, isUcarp)
}

func (s *stage) oursIsMaster() {
	s.t.Helper()
	s.oursIsBackup()
	s.retire(s.last)
	s.start(s.last)
	s.master = s.first
	s.pair.master(s.first)
}

// bridgeIsOpen has both nodes upgraded, and the master not know of it: a backup is silent, and its one word is lost.
func (s *stage) bridgeIsOpen() {
	s.t.Helper()
	s.oursIsBackup()
	s.retire(s.last)
	s.ucarp, s.master = nil, s.first
	s.pair.master(s.first)
	s.run(s.last, "nft", "add table ip lost; add chain ip lost out { type filter hook output priority 0; }; "+
		"add rule ip lost out ip protocol 112 @th,0,8 0x31 @th,16,8 0 counter drop")
	s.start(s.last)
	s.logged(s.last, bridgeOver)
	since := time.Now()
	s.eventually("CARP for a peer that needs it no more", func() (bool, string) { return len(carps(s.wire, s.first, since)) > 1, s.roles() })
	if strings.Contains(s.daemons[s.first].Log(), bridgeOver) {
		s.t.Fatalf("the bridge ended at both ends: %s", s.run(s.last, "nft", "list", "ruleset"))
	}
	s.run(s.last, "nft", "delete", "table", "ip", "lost")
}

func (s *stage) bridgeIsOver() {
	s.t.Helper()
	s.oursIsBackup()
	s.ucarp, s.master = nil, s.first
	s.upgrade(s.last)
	s.ends()
}

func (s *stage) ends() {
	s.t.Helper()
	s.logged(s.last, bridgeOver)
	s.logged(s.first, bridgeOver)
	s.over = time.Now()
}

// What happens to a node.

// restart is a stop and a start; that of version 2.0 has no better stop.
func (s *stage) restart(n *lab.Node) {
	s.t.Helper()
	if n == s.ucarp {
		s.check(s.daemons[n].Signal(unix.SIGKILL))
		<-s.daemons[n].Done()
	} else {
		s.check(s.daemons[n].Stop())
	}
	s.start(n)
}

// crash is one of ours, which is started again at once.
func (s *stage) crash(n *lab.Node) { s.t.Helper(); s.anew(n, unix.SIGKILL) }

func (s *stage) reload(n *lab.Node) { s.t.Helper(); s.anew(n, unix.SIGHUP) }

// anew returns when a signal has put another process, or program, in the place of ours.
func (p *pair) anew(n *lab.Node, sig unix.Signal) {
	p.t.Helper()
	read := func() status.Daemon {
		d, _ := status.ReadDaemon(n.Root(path.Join(status.RunDir, status.DaemonFile)))
		return d
	}
	before := read().Started
	p.check(p.daemons[n].Signal(sig))
	p.eventually("ours anew", func() (bool, string) { return read().Started.Boot > before.Boot, p.daemons[n].Log() })
}

func (s *stage) handOver(n *lab.Node) {
	s.t.Helper()
	s.run(n, "skd-vrrpd", "handover")
}

func (s *stage) powerCut(n *lab.Node) {
	s.t.Helper()
	s.check(n.PowerOff())
	s.pair.master(s.other(n))
	s.boot(n)
	s.start(n)
}

// powerCutOfBoth leaves a node alone with whoever recorded what ucarp has said.
func (s *stage) powerCutOfBoth(n *lab.Node) {
	s.t.Helper()
	s.check(n.PowerOff())
	s.check(s.other(n).PowerOff())
	s.boot(n)
	s.start(n)
	s.eventually("a master", func() (bool, string) {
		s.replayAll()
		<-time.After(100 * time.Millisecond)
		return n.Status() == "master", s.roles()
	})
	s.boot(s.other(n))
	s.start(s.other(n))
}

// replayAll has somebody send all CARP so far, also as it can be changed without the password.
func (s *stage) replayAll() {
	s.t.Helper()
	var frames [][]byte
	for _, n := range s.Nodes() {
		for _, c := range carps(s.wire, n, time.Time{}) {
			frames = append(frames, c.Frame, retimed(c.Frame, 0, 1), retimed(c.Frame, 255, 255))
		}
	}
	if len(frames) == 0 {
		s.t.Error("nobody has spoken CARP")
	}
	s.replay(s.Client, frames...)
	s.replayed = true
}

// Restart and power-off of either node at the stages of the bridge that TestBeside leaves out.
func TestStages(t *testing.T) {
	t.Parallel()
	const (
		backup = iota
		master
	)
	const (
		stays   = iota // the master, and it does not lose the address
		moves          // the other node is master then
		whoever        // is the quicker one
	)
	type step struct {
		of   int
		what func(*stage, *lab.Node)
		then int
		out  time.Duration // for which the client may hear nothing
		two  time.Duration // for which both may have the address
	}
	for _, row := range []struct {
		name  string
		first int // CARP's ties go to lb1, those of VRRPv3 to lb2
		at    func(*stage)
		steps []step
	}{
		{"backup of ucarp", 1, (*stage).oursIsBackup, []step{
			{backup, (*stage).reload, stays, 0, 0},
			{master, (*stage).restart, whoever, ucarpDown, untilHeard},
		}},
		{"backup of ucarp, lb2", 2, (*stage).oursIsBackup, []step{
			{backup, (*stage).reload, stays, 0, 0},
			{master, (*stage).restart, whoever, ucarpDown, untilHeard},
		}},
		{"master of ucarp", 2, (*stage).oursIsMaster, []step{
			{backup, (*stage).powerCut, stays, 0, 0},
			{backup, (*stage).restart, stays, 0, 0},
		}},
		{"bridge open, the new node", 2, (*stage).bridgeIsOpen, []step{
			{backup, (*stage).restart, stays, 0, 0},
			{backup, (*stage).crash, stays, 0, 0},
			{backup, (*stage).powerCut, stays, 0, 0},
			{master, (*stage).handOver, moves, 0, slack},
		}},
		{"bridge open, the old node", 1, (*stage).bridgeIsOpen, []step{
			{master, (*stage).crash, stays, 0, 0},
			{master, (*stage).restart, moves, 0, slack},
		}},
		{"bridge open, the old node loses its power", 2, (*stage).bridgeIsOpen, []step{
			{master, (*stage).powerCut, moves, vrrpDown, 0},
		}},
		{"bridge over", 2, (*stage).bridgeIsOver, []step{
			{backup, (*stage).powerCut, stays, 0, 0},
			{master, (*stage).crash, stays, 0, 0},
			{master, (*stage).restart, moves, 0, slack},
		}},
		{"bridge over, the old node loses its power", 1, (*stage).bridgeIsOver, []step{
			{master, (*stage).powerCut, moves, vrrpDown, 0},
		}},
		{"bridge over, both lose their power", 1, (*stage).bridgeIsOver, []step{
			{master, (*stage).powerCutOfBoth, stays, limit, 0},
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := newPair(t, auto)
			s := &stage{pair: p, first: p.LB1, last: p.LB2, wire: p.capture()}
			if row.first == 2 {
				s.first, s.last = s.last, s.first
			}
			row.at(s)
			probe := p.probe()
			for _, step := range row.steps {
				n, since := s.master, time.Now()
				if step.of == backup {
					n = p.other(n)
				}
				step.what(s, n)
				switch step.then {
				case moves:
					s.master = p.other(s.master)
				case whoever:
					s.master = s.only()
				}
				p.master(s.master)
				p.neverTwo(since, step.two)
				p.outage(probe, since, step.out)
			}
			if s.ucarp == nil && s.over.IsZero() {
				s.ends()
			}
			since := time.Now()
			for _, n := range p.Nodes() {
				if n == s.ucarp || s.replayed {
					continue
				}
				if faults := p.report(n).Faults; len(faults) > 0 {
					t.Errorf("the faults of %s: %v", n.Name, faults)
				}
			}
			if s.ucarp == nil {
				s.replayAll()
			}
			p.stays(s.master)
			p.neverTwo(since, 0)
			p.outage(probe, since, 0)
			if s.ucarp != nil {
				return
			}
			for _, n := range p.Nodes() {
				p.saidOnce(n, bridgeOver)
				if c := carps(s.wire, n, s.over); len(c) > 0 {
					t.Errorf("%s has sent %d adverts of CARP after the end, the first %v after it", n.Name, len(c), c[0].Time.Sub(s.over))
				}
			}
		})
	}
}

// only waits for a node to be the only master for longer than both may be until they know of each other.
func (p *pair) only() (master *lab.Node) {
	p.t.Helper()
	var since time.Time
	p.eventually("only one master", func() (bool, string) {
		for _, n := range p.Nodes() {
			_, one := p.watch.Last(n, func(c lab.Claim) bool { return c.Address && c.Status == "master" })
			_, other := p.watch.Last(p.other(n), func(c lab.Claim) bool { return !c.Address && c.Status != "master" })
			if one && other {
				if n != master {
					master, since = n, time.Now()
				}
				return time.Since(since) > untilHeard, p.roles()
			}
		}
		master = nil
		return false, p.roles()
	})
	return master
}

// Where $protocol is "vrrp", ucarp is nobody's master. That costs something, and the hint that says so is right.
func TestVRRPBesideUcarp(t *testing.T) {
	t.Parallel()
	const hint = "it is CARP, as ucarp speaks it: upgrade that node, or set $protocol \"auto\" here until it is"
	for _, row := range []struct {
		name  string
		ours  int
		first bool // ours starts first
	}{
		{"ours second", 2, false},
		{"ours first, wins the tie", 1, true},
		{"ours first, loses the tie", 2, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := newPair(t, keys{"protocol": "vrrp"})
			ours, old := p.LB1, p.LB2
			if row.ours == 2 {
				ours, old = old, ours
			}
			p.check(ours.WriteInterface("eth0:1", lab.ClusterIP, true)) // so that it waits no longer than it has to
			fault := func(words string) {
				t.Helper()
				p.logged(ours, "refused an advertisement from "+old.Addr(0).String()+": "+hint)
				p.saidOnce(ours, "refused an advertisement")
				p.eventually("the fault, and no other: "+words+hint, func() (bool, string) {
					faults := p.report(ours).Faults
					return len(faults) == 1 && faults[0].Text == words+hint, fmt.Sprint(faults)
				})
			}
			if row.first {
				p.startOurs(ours)
				p.master(ours)
				p.startUcarp(old)
				p.eventually("two masters", func() (bool, string) {
					for _, n := range p.Nodes() {
						if _, now := p.watch.Last(n, func(c lab.Claim) bool { return c.Address && c.Status == "master" }); !now {
							return false, p.roles()
						}
					}
					return true, ""
				})
				fault(old.Addr(0).String() + " advertises what this node must not obey, so both may be master: ")
			} else {
				p.startUcarp(old)
				p.master(old)
				since := time.Now()
				p.startOurs(ours)
				p.stays(old)
				p.neverTwo(since, 0)
				held := "not becoming master while the peer " + old.Addr(0).String() + " advertises what this node must not obey: "
				p.logged(ours, held+hint)
				fault(held)
				p.saidOnce(ours, held+hint)
			}

			since := time.Now()
			p.check(ours.Configure(auto))
			p.anew(ours, unix.SIGHUP)
			p.logged(ours, isUcarp)
			master := old
			if row.first {
				master = p.LB1
			}
			p.stays(master)
			if row.first {
				p.neverTwo(since, untilHeard)
			} else {
				p.neverTwo(since, 0)
			}
			want := "backup"
			if master == ours {
				want = "master"
			}
			if got := p.report(ours); got.State != want || got.Speaks != "vrrpv3 and carp" || len(got.Faults) > 0 {
				t.Errorf("with the hint followed, it says %+v", got)
			}
		})
	}
}
