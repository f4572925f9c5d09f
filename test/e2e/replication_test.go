package e2e

import (
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/fileset"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
	"github.com/skudonet/skudonet-ce-cluster/test/lab"
)

const (
	replicatorLog = "/var/log/skdinotify.log"
	// flush is how long skd-vrrpd waits at most for the replicator when it leaves.
	flush = 2 * time.Second
)

var secondIP = netip.MustParseAddr("192.168.77.101")

// replicating is a pair with the shipped hooks and ssh between the nodes, lb1 master and both in step.
func replicating(t *testing.T, changes ...keys) *pair {
	t.Helper()
	p := newPairWithHooks(t, changes...)
	p.check(p.ConnectSSH())
	p.startBoth()
	p.inStep(p.LB1)
	return p
}

// shown is what an admin who looks for the replicator finds on the node.
func (p *pair) shown(n *lab.Node) []string {
	p.t.Helper()
	var lines []string
	for line := range strings.Lines(p.run(n, "ps", "-ef")) {
		if strings.Contains(line, "skdinotify") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

// replicator is the node's own number of its replicator's process, "" without one.
func (p *pair) replicator(n *lab.Node) string {
	p.t.Helper()
	lines := p.shown(n)
	if len(lines) == 0 {
		return ""
	}
	return strings.Fields(lines[0])[1]
}

func (p *pair) waitReplicator(n *lab.Node, runs bool) {
	p.t.Helper()
	p.eventually(fmt.Sprintf("a replicator on %s: %v", n.Name, runs), func() (bool, string) {
		lines := p.shown(n)
		return len(lines) > 0 == runs, strings.Join(lines, "\n") + p.replicatorLog(n)
	})
}

// replication is what the node's inotify.json says; empty while there is none.
func (p *pair) replication(n *lab.Node) status.Replicator {
	r, _ := status.ReadReplicator(n.Root(path.Join(runDir, status.ReplicatorFile)))
	return r
}

// inStep waits until the replicator of the node that runs now says so, and both nodes have the same.
func (p *pair) inStep(n *lab.Node) {
	p.t.Helper()
	p.eventually(n.Name+" in step", func() (bool, string) {
		r := p.replication(n)
		return r.State == status.InStep && r.Pending == 0 && fmt.Sprint(r.PID) == p.replicator(n),
			fmt.Sprintf("%q, %d pending %q, problems %v", r.State, r.Pending, r.Paths, r.Problems)
	})
	lab.EventuallySameTrees(p.t, limit, p.LB1, p.LB2)
}

// replicationSays fails the test unless skd-inotify status exits so, with all of these words.
func (p *pair) replicationSays(n *lab.Node, code int, words ...string) {
	p.t.Helper()
	out, got := p.exitCode(n, "skd-inotify", "status")
	if got != code {
		p.t.Errorf("skd-inotify status of %s exits %d, want %d\n%s", n.Name, got, code, out)
	}
	for _, w := range words {
		if !strings.Contains(out, w) {
			p.t.Errorf("skd-inotify status of %s does not say %q\n%s", n.Name, w, out)
		}
	}
}

func (p *pair) replicatorLog(n *lab.Node) string {
	text, _ := n.ReadFile(replicatorLog)
	return text
}

// noted waits for words in the log of the node's replicator.
func (p *pair) noted(n *lab.Node, words string) {
	p.t.Helper()
	p.eventually(fmt.Sprintf("%q in the replicator's log of %s", words, n.Name), func() (bool, string) {
		text := p.replicatorLog(n)
		return strings.Contains(text, words), text
	})
}

// write writes a file in the node's tree, within a fraction of a millisecond.
func (p *pair) write(n *lab.Node, name, text string) {
	p.t.Helper()
	p.check(n.WriteFile(path.Join(lab.TreePath, name), text, 0o644))
}

// change runs a shell script in the node's tree.
func (p *pair) change(n *lab.Node, script string) {
	p.t.Helper()
	p.run(n, "sh", "-euc", "cd "+lab.TreePath+"\n"+script)
}

// content is what a file in the node's tree holds.
func (p *pair) content(n *lab.Node, name string) string {
	text, err := n.ReadFile(path.Join(lab.TreePath, name))
	if err != nil {
		return err.Error()
	}
	return text
}

func (p *pair) waitContent(n *lab.Node, name, text string) {
	p.t.Helper()
	p.eventually(name+" on "+n.Name, func() (bool, string) {
		have := p.content(n, name)
		return have == text, have
	})
}

// tree is what the node has of what is replicated.
func (p *pair) tree(n *lab.Node) map[string]string {
	p.t.Helper()
	digest, err := n.TreeDigest()
	p.check(err)
	return digest
}

// unaltered fails the test if the node's tree is not what it was.
func (p *pair) unaltered(n *lab.Node, was map[string]string) {
	p.t.Helper()
	now := p.tree(n)
	for name, what := range was {
		if now[name] != what {
			p.t.Errorf("%s on %s was %q and is %q", name, n.Name, what, now[name])
		}
	}
	for name := range now {
		if was[name] == "" {
			p.t.Errorf("%s has appeared on %s", name, n.Name)
		}
	}
}

// wanted tells which names may appear: those of that tree, and what each node has for itself.
func (p *pair) wanted(tree map[string]string) func(name string) bool {
	return func(name string) bool { return tree[name] != "" || name == "local" || name == "if_eth0_conf" }
}

func (p *pair) record(n *lab.Node) *lab.Recorder {
	p.t.Helper()
	r, err := n.RecordTree()
	p.check(err)
	return r
}

// bootAll powers the node on as boot does, and starts its sshd and skd-vrrpd.
func (p *pair) bootAll(n *lab.Node) {
	p.t.Helper()
	p.boot(n)
	_, err := n.StartSSH()
	p.check(err)
	p.start(n)
}

// signalAll sends one to each process of the node that ps shows with these words. It returns how many have got it: one may
// have ended meanwhile.
func (p *pair) signalAll(n *lab.Node, sig, words string) (count int) {
	p.t.Helper()
	for line := range strings.Lines(p.run(n, "ps", "-eo", "pid,args")) {
		if strings.Contains(line, words) {
			if _, err := n.Run("kill", "-"+sig, strings.Fields(line)[0]); err == nil {
				count++
			}
		}
	}
	return count
}

// cutSSH ends the node's sshd with all its sessions.
func (p *pair) cutSSH(n *lab.Node) {
	p.t.Helper()
	p.check(n.SSHD().Stop())
	p.signalAll(n, "KILL", "sshd: root")
}

func TestReplicationThroughAPowerCut(t *testing.T) {
	p := newPairWithHooks(t)
	p.check(p.ConnectSSH())
	p.replicationSays(p.LB1, 3, "stopped")
	p.startBoth()
	p.inStep(p.LB1)
	p.step("on the master and nowhere on the backup", func(t *testing.T) {
		p.eventually("one replicator on lb1", func() (bool, string) { // which a child of it is too, until it executes rsync
			found := p.shown(p.LB1)
			return len(found) == 1, fmt.Sprintf("%q", found)
		})
		if found := p.shown(p.LB2); len(found) != 0 {
			t.Errorf("lb2 shows %q", found)
		}
		p.replicationSays(p.LB1, 0, "in step since", "192.168.77.12, skd-inotify", "nothing")
		p.replicationSays(p.LB2, 3, "stopped: this node is backup, the replicator runs on the master")
		if out, code := p.exitCode(p.LB2, "skd-inotify", "sync"); code != 1 || !strings.Contains(out, "this node is backup; run this on the master") {
			t.Errorf("skd-inotify sync on a backup exits %d: %s", code, out)
		}
	})

	answers := func(addr netip.Addr, n *lab.Node) {
		t.Helper()
		p.run(p.Client, "ip", "neigh", "flush", "all")
		service, err := p.Client.ProbeService(netip.AddrPortFrom(addr, lab.ServicePort))
		p.check(err)
		defer service.Stop()
		p.eventually(fmt.Sprintf("%s at %s", addr, n.Name), func() (bool, string) { return servedBy(service, n) })
	}
	var before map[string]string
	p.step("everything is on the new master", func(t *testing.T) {
		p.check(p.LB1.WriteInterface("eth0:2", secondIP, true)) // and skd-vrrpd brings it up
		p.change(p.LB1, `mkdir -p farms/web/deep certificates; echo 1 >farms/web/deep/f; echo 2 >certificates/c; ln -s deep/f farms/web/l
			mkdir gone; echo 3 >gone/f; echo node >local/node; echo node >if_eth9_conf; echo '201 table_eth9' >>`+lab.RTTablesPath)
		answers(secondIP, p.LB1)
		p.inStep(p.LB1)
		for round := range 3 {
			p.write(p.LB1, "last", fmt.Sprint(round))
			p.waitContent(p.LB2, "last", fmt.Sprint(round))
		}
		p.inStep(p.LB1)
		before = p.tree(p.LB1)
		cut := time.Now()
		p.check(p.LB1.PowerOff())
		p.waitStatus(p.LB2, "master")
		p.neverTwo(cut, 0)
		p.waitSkudonet(p.LB2, true)
		p.waitVirtuals(p.LB2, "eth0:1 192.168.77.100", "eth0:2 192.168.77.101")
		answers(secondIP, p.LB2)
		p.waitReplicator(p.LB2, true)
		p.unaltered(p.LB2, before)
		if text := p.content(p.LB2, "if_eth9_conf"); !strings.Contains(text, "no such file") {
			t.Errorf("what belongs to lb1 is on lb2: %q", text)
		}
		p.eventually("the words for a peer that is away", func() (bool, string) {
			out, code := p.exitCode(p.LB2, "skd-inotify", "status")
			return code == 1 && strings.Contains(out, "the peer 192.168.77.11 is not reached"), out
		})
	})

	p.step("the old one gets what it has missed", func(t *testing.T) {
		p.change(p.LB2, `echo 2 >farms/web/deep/f; mv farms/web farms/shop; rm -r gone; mkdir meanwhile; echo 4 >meanwhile/f; rm certificates/c`)
		before = p.tree(p.LB2)
		seen := p.record(p.LB2)
		p.bootAll(p.LB1)
		p.waitMaster(p.LB2)
		p.inStep(p.LB2)
		p.unaltered(p.LB2, before)
		p.check(seen.Stop())
		seen.OnlyNames(t, p.wanted(before))
		if found := p.shown(p.LB1); len(found) != 0 {
			t.Errorf("lb1 shows %q", found)
		}
		if times := strings.Count(p.replicatorLog(p.LB1), "started: this node is master"); times != 1 {
			t.Errorf("the replicator of lb1 has started %d times, want only before the power cut", times)
		}
		if text := p.content(p.LB1, "if_eth9_conf"); text != "node\n" {
			t.Errorf("what belongs to lb1 is not there any more: %q", text)
		}
	})
	p.step("and can be master again", func(t *testing.T) {
		p.write(p.LB2, "last", "again")
		p.inStep(p.LB2)
		p.signal(p.LB2, unix.SIGUSR2)
		p.waitMaster(p.LB1)
		p.inStep(p.LB1)
		p.waitHookDone(p.LB2, "stop") // in which Skudonet writes its file in place
		p.unaltered(p.LB1, p.tree(p.LB2))
		answers(secondIP, p.LB1)
		p.waitReplicator(p.LB2, false)
	})
}

func TestPowerCutInMidTransfer(t *testing.T) {
	p := newPairWithHooks(t, keys{"rsync_args": "-auzv --delete --bwlimit=1000"})
	p.check(p.ConnectSSH())
	p.write(p.LB1, "large", "small\n")
	p.startBoth()
	p.inStep(p.LB1)
	was := p.tree(p.LB2)
	seen := p.record(p.LB2)
	p.change(p.LB1, "head -c 6000000 /dev/urandom >../large; mv ../large large")
	large := p.content(p.LB1, "large")
	arriving := func() string {
		out, _ := p.LB2.Run("find", path.Join(path.Dir(lab.TreePath), fileset.TempName), "-type", "f")
		return out
	}
	p.eventually("a part of the file on its way", func() (bool, string) { return arriving() != "", p.run(p.LB2, "ps", "-ef") })
	p.check(p.LB1.PowerOff())
	p.waitStatus(p.LB2, "master")
	p.waitSkudonet(p.LB2, true)
	p.unaltered(p.LB2, was)

	p.bootAll(p.LB1)
	p.waitMaster(p.LB2)
	p.inStep(p.LB2)
	// If lb1 had recorded the change, lb2 has taken it over; if not, lb1 has archived it.
	if have := p.content(p.LB2, "large"); have != large {
		p.unaltered(p.LB2, was)
		p.run(p.LB1, "sh", "-c", "test $(wc -c </var/lib/skudonet-ce-cluster/archive/*-repair/config/large) = 6000000")
	}
	// Who has served lb1 before the power cut still waits for the rest.
	p.signal(p.LB2, unix.SIGUSR2)
	p.waitMaster(p.LB1)
	p.inStep(p.LB1)
	p.write(p.LB1, "large", "changed\n")
	p.waitContent(p.LB2, "large", "changed\n")
	p.eventually("nothing left over", func() (bool, string) { left := arriving(); return left == "", left })
	p.check(seen.Stop())
	seen.OnlyNames(t, p.wanted(was))
	seen.OnlyContents(t, "large", "small\n", large, "changed\n")
}

func TestHandOverTakesTheLastChangeAlong(t *testing.T) {
	p := replicating(t)
	probe := p.probe()
	from, to := p.LB1, p.LB2
	turn := func() { from, to = to, from }
	// leave changes something, has the master leave at once, and waits for the successor.
	leave := func(name string, how func()) {
		p.t.Helper()
		p.write(from, name, name)
		began := time.Now()
		how()
		p.waitMaster(to)
		p.neverTwo(began, slack)
	}
	p.step("hand-over", func(t *testing.T) {
		// So soon after the change that its event may still be on the way.
		for round := range 6 {
			p.inStep(from)
			name := fmt.Sprint("last-", round)
			leave(name, func() { p.signal(from, unix.SIGUSR2) })
			if have := p.content(to, name); have != name {
				t.Errorf("%s has handed over without %s: %s", from.Name, name, have)
			}
			p.waitReplicator(to, true)
			p.waitReplicator(from, false)
			turn()
		}
		p.inStep(from)
		if n := p.timesLogged(p.LB1, "leaving although") + p.timesLogged(p.LB2, "leaving although"); n != 0 {
			t.Errorf("warned %d times", n)
		}
	})
	p.step("stop", func(t *testing.T) {
		for round := range 2 {
			p.inStep(from)
			name := fmt.Sprint("last-of-all-", round)
			p.write(from, name, name)
			p.check(p.daemon(from).Signal(unix.SIGTERM))
			p.waitStatus(to, "master")
			if have := p.content(to, name); have != name {
				t.Errorf("%s has stopped without %s: %s", from.Name, name, have)
			}
			p.waitReplicator(from, false)
			p.stop(from)
			p.replicationSays(from, 3, "stopped")
			p.start(from)
			p.waitMaster(to)
			turn()
		}
		p.inStep(from)
	})
	if r := probe.Stop(); r.Longest().Length() > slack+r.Stall {
		t.Errorf("the address was silent for %v", r.Longest())
	}
	const warning = "leaving although the peer may not have the last changes: "
	p.step("not delayed by a peer without sshd", func(t *testing.T) {
		p.cutSSH(to)
		p.eventually("a connection that is lost", func() (bool, string) {
			r := p.replication(from)
			return r.State == status.Connecting && len(r.Problems) == 1, fmt.Sprint(r.State, r.Problems)
		})
		began := time.Now()
		leave("not-taken-along", func() { p.signal(from, unix.SIGUSR2) })
		at, _ := p.watch.Last(to, func(c lab.Claim) bool { return c.Status == "master" })
		if took := at.Sub(began); took > flush {
			t.Errorf("it took %v to hand over", took)
		}
		p.logged(from, warning+"not in step with "+to.Addr(0).String()+": ")
		_, err := to.StartSSH()
		p.check(err)
		turn()
		p.inStep(from)
	})
	p.step("delayed a little by a peer that does not answer", func(t *testing.T) {
		if p.signalAll(to, "STOP", "skd-inotify peer") == 0 {
			t.Fatal("nobody answers the master")
		}
		began := time.Now()
		leave("perhaps-taken-along", func() { p.signal(from, unix.SIGUSR2) })
		at, _ := p.watch.Last(to, func(c lab.Claim) bool { return c.Status == "master" })
		if took := at.Sub(began); took > flush+2*slack {
			t.Errorf("it took %v to hand over", took)
		}
		p.logged(from, warning+"the replicator does not answer: ")
		p.waitReplicator(from, false)
		p.signalAll(to, "CONT", "skd-inotify peer")
		turn()
		p.inStep(from)
	})
}

func TestDemotedReplicatorEndsByItself(t *testing.T) {
	p := newPairWithHooks(t)
	p.hook(p.LB1, "stop", "#!/bin/sh\nexit 0\n")
	p.check(p.ConnectSSH())
	p.startBoth()
	p.inStep(p.LB1)
	p.signal(p.LB1, unix.SIGUSR2)
	p.waitMaster(p.LB2)
	p.waitReplicator(p.LB1, false)
	p.noted(p.LB1, `stopped: this node is not master any more, the status file says "backup"`)
	p.inStep(p.LB2)

	// What somebody changes on a backup goes nowhere.
	seen := p.record(p.LB2)
	p.write(p.LB1, "on-the-backup", "1")
	p.change(p.LB1, "rm zlb-stop")
	p.run(p.LB2, "skd-inotify", "sync")
	lab.SameTrees(t, p.LB1, p.LB2)
	p.check(seen.Stop())
	if slices.Contains(seen.Names(), "on-the-backup") {
		t.Error("a backup has pushed a file")
	}
	if text := p.content(p.LB1, "zlb-stop"); !strings.HasPrefix(text, "#!/bin/bash") {
		t.Errorf("the master has not restored what a backup has lost: %s", text)
	}

	// Nor does what was under way at the demotion, wherever it hangs.
	p.signal(p.LB2, unix.SIGUSR2)
	p.waitMaster(p.LB1)
	p.inStep(p.LB1)
	p.hook(p.LB2, "start", "#!/bin/sh\nexit 0\n") // it would make the nodes the same
	p.signalAll(p.LB2, "STOP", "skd-inotify peer")
	p.waitHookDone(p.LB2, "stop") // in which Skudonet writes its file in place
	was := p.tree(p.LB2)
	seen = p.record(p.LB2)
	p.write(p.LB1, "under-way", "1")
	p.signal(p.LB1, unix.SIGUSR2)
	p.waitMaster(p.LB2)
	p.waitReplicator(p.LB1, false)
	p.signalAll(p.LB2, "CONT", "skd-inotify peer")
	p.eventually("the end of who answered the old master", func() (bool, string) {
		out := p.run(p.LB2, "ps", "-ef")
		return !strings.Contains(out, "skd-inotify peer") && !strings.Contains(out, "rsync"), out
	})
	p.check(seen.Stop())
	if slices.Contains(seen.Names(), "under-way") {
		t.Error("a node that was demoted has pushed a file to the master")
	}
	p.unaltered(p.LB2, was)
}

func TestTwoMastersPushNothing(t *testing.T) {
	p := replicating(t)
	drop := func(n *lab.Node) {
		p.run(n, "nft", "add table ip deaf; add chain ip deaf in { type filter hook input priority 0; }; add rule ip deaf in ip protocol 112 drop")
	}
	was := map[*lab.Node]map[string]string{}
	seen := map[*lab.Node]*lab.Recorder{}
	pid := p.replicator(p.LB1)
	p.step("neither to the other", func(t *testing.T) {
		drop(p.LB1)
		drop(p.LB2)
		p.waitStatus(p.LB2, "master")
		p.waitSkudonet(p.LB2, true)
		p.waitReplicator(p.LB2, true)
		for _, n := range p.Nodes() {
			seen[n] = p.record(n)
			p.change(n, "echo "+n.Name+" >both; echo "+n.Name+" >only-"+n.Name)
			was[n] = p.tree(n)
		}
		refused := func() {
			p.t.Helper()
			for _, n := range p.Nodes() {
				p.eventually("the words of "+n.Name, func() (bool, string) {
					out, code := p.exitCode(n, "skd-inotify", "status")
					return code == 1 && strings.Contains(out, "it says that it is master too") && strings.Contains(out, "skd-hooks status on both nodes"), out
				})
				if out, code := p.exitCode(n, "skd-inotify", "sync"); code != 1 || !strings.Contains(out, "master") {
					p.t.Errorf("skd-inotify sync of %s exits %d: %s", n.Name, code, out)
				}
			}
		}
		refused()
		// No way between them for a while.
		p.check(p.LB1.Isolate())
		for _, n := range p.Nodes() {
			p.change(n, "rm zlb-stop; echo "+n.Name+" again >both; echo "+n.Name+" >later-"+n.Name)
			was[n] = p.tree(n)
		}
		p.check(p.LB1.Heal())
		refused()
		for _, n := range p.Nodes() {
			p.unaltered(n, was[n])
		}
		if p.LB1.Status() != "master" || p.LB2.Status() != "master" || p.replicator(p.LB1) != pid {
			t.Errorf("status %s, replicator of lb1 %s, was %s", p.roles(), p.replicator(p.LB1), pid)
		}
		for n, r := range seen {
			p.check(r.Stop())
			if n == p.LB2 && slices.ContainsFunc(r.Names(), func(name string) bool { return strings.HasSuffix(name, "-lb1") }) {
				t.Errorf("lb1 has pushed to the other master: %q", r.Names())
			}
		}
	})
	p.step("until one is backup again", func(t *testing.T) {
		for _, n := range p.Nodes() {
			p.run(n, "nft", "delete table ip deaf")
		}
		p.waitMaster(p.LB2) // the higher address
		p.inStep(p.LB2)
		p.waitReplicator(p.LB1, false)
		// It has only just become master, and was never compared: lb1's changes count, and its own are kept.
		if have := p.content(p.LB2, "both"); have != "lb1 again\n" {
			t.Errorf("both nodes have %q", have)
		}
		for name, want := range map[string]string{"both": "lb2 again\n", "only-lb2": "lb2\n", "later-lb2": "lb2\n"} {
			have, err := p.LB2.Run("sh", "-c", "cat /var/lib/skudonet-ce-cluster/archive/*-adopt/config/"+name)
			if err != nil || strings.TrimSpace(have) != strings.TrimSpace(want) {
				t.Errorf("archived on lb2 is %q as %s, want %q: %v", have, name, want, err)
			}
		}
	})
}

func TestReplicatorOutlivesTheElectionsDaemon(t *testing.T) {
	p := replicating(t, keys{"advert_interval": "0.5"}) // two of them are the time for a new process
	pid, connected := p.replicator(p.LB1), p.replication(p.LB1).Peer.Since
	undisturbed := func(name string) {
		p.t.Helper()
		p.write(p.LB1, name, name)
		p.waitContent(p.LB2, name, name)
		p.inStep(p.LB1)
		if r := p.replication(p.LB1); p.replicator(p.LB1) != pid || r.Peer.Since != connected || len(p.shown(p.LB2)) != 0 {
			p.t.Errorf("process %s, connected since %v; was %s since %v; lb2 shows %q", p.replicator(p.LB1), r.Peer.Since.Time, pid, connected.Time, p.shown(p.LB2))
		}
	}
	p.step("executed anew", func(t *testing.T) {
		for _, n := range p.Nodes() {
			p.signal(n, unix.SIGHUP)
			p.eventually("the next "+n.Name, func() (bool, string) { return p.timesLogged(n, "started on eth0") == 2, lastLine(p.daemon(n).Log()) })
		}
		p.waitMaster(p.LB1)
		undisturbed("after-hangup")
	})
	p.step("killed and supervised", func(t *testing.T) {
		sent := p.capture(lab.VRRP)
		p.awaitAdverts(sent, p.LB1, 2)
		p.signal(p.LB1, unix.SIGKILL)
		p.eventually("the next lb1", func() (bool, string) {
			return p.timesLogged(p.LB1, "started on eth0") == 3, lastLine(p.daemon(p.LB1).Log())
		})
		p.waitMaster(p.LB1)
		undisturbed("after-kill")
	})
}

// Without systemd nothing restarts it: that it is missing must be said, and the
// remedy that is given must help.
func TestReplicatorThatIsKilled(t *testing.T) {
	p := replicating(t)
	kill := func() {
		t.Helper()
		pid := p.replicator(p.LB1)
		p.run(p.LB1, "kill", "-KILL", pid)
		// Its name goes before it does.
		p.eventually("the end of process "+pid, func() (bool, string) {
			_, err := p.LB1.Run("ps", "-p", pid)
			return err != nil, ""
		})
	}
	kill()
	p.replicationSays(p.LB1, 1, "stopped", "this node is master, but skd-inotify is not running: changes do not reach the backup", "skd-hooks start")
	if out, code := p.exitCode(p.LB1, "skd-inotify", "sync"); code != 1 || !strings.Contains(out, "skd-hooks start") {
		t.Errorf("skd-inotify sync exits %d: %s", code, out)
	}
	p.change(p.LB1, "echo 1 >meanwhile; mv zlb-stop moved")
	p.run(p.LB1, "skd-hooks", "start")
	p.inStep(p.LB1)
	p.replicationSays(p.LB1, 0, "in step since")

	// A hand-over meets the socket of one that is dead, and loses no time.
	kill()
	began := time.Now()
	p.signal(p.LB1, unix.SIGUSR2)
	p.waitMaster(p.LB2)
	if at, _ := p.watch.Last(p.LB2, func(c lab.Claim) bool { return c.Status == "master" }); at.Sub(began) > flush {
		t.Errorf("it took %v to hand over", at.Sub(began))
	}
	p.inStep(p.LB2)
	p.replicationSays(p.LB1, 3, "this node is backup")
}

func TestRebootOfBothNodes(t *testing.T) {
	p := replicating(t)
	p.change(p.LB1, "mkdir -p farms/web; echo 1 >farms/web/f; ln -s f farms/web/l; chmod 600 farms/web/f; rm zlb-start")
	p.inStep(p.LB1)
	was := p.tree(p.LB1)
	for _, first := range []*lab.Node{p.LB2, p.LB1} {
		for _, n := range p.Nodes() {
			p.check(n.PowerOff())
		}
		seen := map[*lab.Node]*lab.Recorder{}
		for _, n := range p.Nodes() {
			p.unaltered(n, was)
			p.boot(n)
			seen[n] = p.record(n)
			_, err := n.StartSSH()
			p.check(err)
			p.run(n, "/etc/init.d/skudonet", "start") // as at boot
		}
		p.start(first)
		p.waitStatus(first, "master")
		p.start(p.other(first))
		p.waitMaster(first)
		p.inStep(first)
		p.waitHookDone(p.other(first), "stop") // in which Skudonet writes its file in place
		for n, r := range seen {
			p.unaltered(n, was)
			p.check(r.Stop())
			r.OnlyNames(t, p.wanted(was))
		}
		p.waitReplicator(p.other(first), false)
	}
}

func TestReplicatorThatHangs(t *testing.T) {
	p := replicating(t)
	p.run(p.LB1, "kill", "-STOP", p.replicator(p.LB1))
	probe := p.probe()
	began := time.Now()
	p.signal(p.LB1, unix.SIGUSR2)
	p.waitMaster(p.LB2)
	if at, _ := p.watch.Last(p.LB2, func(c lab.Claim) bool { return c.Status == "master" }); at.Sub(began) > flush+2*slack {
		t.Errorf("it took %v to hand over", at.Sub(began))
	}
	p.neverTwo(began, slack)
	p.logged(p.LB1, "leaving although the peer may not have the last changes: the replicator does not answer")
	if r := probe.Stop(); r.Longest().Length() > slack+r.Stall {
		t.Errorf("the address was silent for %v", r.Longest())
	}
	p.inStep(p.LB2) // while the old one still hangs, or no more
	p.waitReplicator(p.LB1, false)
	p.waitSkudonet(p.LB1, false)
	p.waitReport(p.LB1, "the end of the stop hook", func(r status.Daemon) bool {
		return slices.ContainsFunc(r.Hooks, func(h status.Hook) bool { return h.Name == "stop" && h.State == status.HookDone })
	})
	p.statusSays(p.LB1, 0, "backup since", "healthy")
	want := p.tree(p.LB2)
	p.signal(p.LB2, unix.SIGUSR2)
	p.waitMaster(p.LB1)
	p.inStep(p.LB1)
	p.unaltered(p.LB1, want)
}
