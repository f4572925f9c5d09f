package replication

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/archive"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
	"github.com/skudonet/skudonet-ce-cluster/lib/vector"
	"github.com/skudonet/skudonet-ce-cluster/test/lab"
)

// The same vector, the same trees: nothing happens.
func TestEqualNodesStayAsTheyAre(t *testing.T) {
	r := startRealm(t, lab.Options{})
	first := [2]string{fmt.Sprint(r.a.record()), fmt.Sprint(r.b.record())}
	a, b := r.a, r.b
	a.kill()
	a.promote()
	a.inStep()
	r.check(a.daemon.Signal(unix.SIGUSR1))
	a.ask("sync")
	a.demote()
	b.promote()
	b.inStep()
	if now := [2]string{fmt.Sprint(a.record()), fmt.Sprint(b.record())}; now != first {
		t.Errorf("the records are %v, were %v", now, first)
	}
	if n := b.status().Runs; n != 0 {
		t.Errorf("%d runs of rsync", n)
	}
	b.keeps()
	if all := append(a.kept(), append(a.starts(), b.starts()...)...); slices.ContainsFunc(all, func(s string) bool { return !strings.HasPrefix(s, archive.FirstContact) }) {
		t.Errorf("archived on a, or started: %q", all)
	}
	r.clean()
}

func TestTouchedBackup(t *testing.T) {
	r := startRealm(t, lab.Options{})
	a, b := r.a, r.b
	a.sh("mkdir farms; echo 1 >farms/a; echo 1 >mode; echo 1 >gone; ln -s farms link")
	a.inStep()
	was := a.record()
	r.in("what was touched there is restored, and archived there", func(t *testing.T) {
		b.sh("echo tampered >farms/a; chmod 600 mode; rm gone link; ln -s mode link; mkdir own; echo mine >own/file")
		a.ask("sync")
		a.inStep()
		a.has(keys{"farms/a": "1", "mode": "1", "gone": "1", "own/file": "-"})
		a.keeps()
		b.keeps("repair ours farms/a=tampered", "repair ours mode=1", "repair ours own/file=mine")
		if now := a.record(); now.Vector.Compare(was.Vector) != vector.Equal {
			t.Errorf("a repair has raised the vector: %v, was %v", now.Vector, was.Vector)
		}
		if text := b.ask("history"); !strings.Contains(text, "it was changed here, and made the same as on the master, "+a.Addr(0).String()+", again") {
			t.Errorf("history on the backup says:\n%s", text)
		}
		r.clean()
	})
	r.in("what was changed here while the replicator was down is a change", func(t *testing.T) {
		n := len(b.history())
		a.kill()
		a.sh("echo 2 >farms/a")
		a.start()
		a.inStep()
		b.has(keys{"farms/a": "2"})
		if more := len(b.history()) - n; more != 0 {
			t.Errorf("%d archives of what was only old", more)
		}
	})
	r.in("what a killed session had replaced here is kept by the daemon of a node that rules", func(t *testing.T) {
		const replaced = "../.skudonet-ce-cluster.tmp/replaced"
		a.kill()
		a.sh("mkdir -p -m 700 " + replaced + "/farms; echo left >" + replaced + "/farms/a; cp -a mode " + replaced)
		a.start()
		a.inStep()
		a.keeps("repair ours farms/a=left")
		a.has(keys{"farms/a": "2"})
		a.sh("! test -e " + replaced)
	})
	r.in("a repair that does not hold is left alone, until the next change", func(t *testing.T) {
		n := len(b.history())
		left := "left alone there, because something there changes it again: mode"
		for try := 1; try <= 2; try++ {
			b.sh(fmt.Sprintf("echo b%d >mode", try))
			a.ask("sync")
			b.has(keys{"mode": "1"})
		}
		b.sh("echo b3 >mode")
		for range 3 {
			r.check(a.daemon.Signal(unix.SIGUSR1))
			a.problem(left)
		}
		b.has(keys{"mode": "b3"})
		if more := len(b.history()) - n; more != 2 {
			t.Errorf("%d archives of two repairs", more)
		}
		if text, err := a.Run("skd-inotify", "status"); err == nil || !strings.Contains(text, left) {
			t.Errorf("status, %v:\n%s", err, text)
		}
		a.sh("echo 3 >other")
		a.inStep()
		b.has(keys{"mode": "1", "other": "3"})
		for _, text := range []string{"b4", "b5", "b6"} {
			b.sh("echo " + text + " >mode")
			a.ask("sync") // an admin's word is a reason to try
			b.has(keys{"mode": "1"})
		}
		a.inStep()
		if !slices.Contains(b.kept(), "repair ours mode=b4") || !slices.Contains(b.kept(), "repair ours mode=b3") {
			t.Errorf("archived on the backup: %q", b.kept())
		}
		r.clean()
	})
}

// apart is a sequence of edits of each kind, each of which a stale master has
// undone: files that were made, removed, changed, their modes, kinds and owners.
const apart = `echo made >made; mkdir -p new/dir; echo made >new/dir/file; rm removed; rm -r gone; chmod 600 mode; echo later >farm
	chown 12:34 owner; rm kind; mkdir kind; echo in >kind/file; ln -sfn made link; printf '201\ttable_b\n' >>` + lab.RTTablesPath

const before = `mkdir -p gone/deep; for f in removed gone/deep/file mode owner kind untouched; do echo 1 >$f; done; ln -s removed link`

// undone checks that a node has all of apart.
func (n *ruler) undone() {
	n.r.t.Helper()
	n.has(keys{"made": "made", "new/dir/file": "made", "removed": "-", "gone/deep/file": "-", "mode": "1", "kind/file": "in", "untouched": "1", "farm": "later"})
	n.sh("test $(stat -c %a mode) = 600; test $(stat -c %u:%g owner) = 12:34; test $(readlink link) = made; ! test -e gone; grep -q table_b " + lab.RTTablesPath)
}

func TestStaleMasterReturns(t *testing.T) {
	start := func(t *testing.T) *realm {
		r := newRealm(t, lab.Options{})
		for _, n := range r.both() {
			n.sh(before)
		}
		r.a.promote()
		r.a.inStep()
		r.check(r.LB1.PowerOff())
		r.a.daemon = nil
		r.b.rule()
		r.b.edit(apart)
		return r
	}
	nothingLost := func(r *realm) {
		r.t.Helper()
		for _, n := range r.both() {
			n.undone()
			n.keeps()
		}
		r.clean()
	}
	t.Run("as backup", func(t *testing.T) {
		r := start(t)
		r.a.on()
		r.check(r.b.daemon.Signal(unix.SIGUSR1))
		r.b.inStep()
		nothingLost(r)
		if len(r.a.starts()) != 0 {
			t.Error("Skudonet was started on a backup")
		}
		// And it takes over as if nothing had been.
		r.b.demote()
		r.a.promote()
		r.a.inStep()
		r.a.sh("echo next >farm")
		r.a.inStep()
		r.b.has(keys{"farm": "next"})
		r.b.keeps()
	})
	t.Run("as master", func(t *testing.T) {
		r := start(t)
		r.b.demote()
		r.a.on()
		r.a.promote()
		r.a.inStep()
		r.a.applied("later")
		nothingLost(r)
		r.a.saidOnce("took over the configuration of the peer")
		if len(r.b.starts()) != 0 {
			t.Errorf("Skudonet of the peer started with %q", r.b.starts())
		}
		r.a.sh("echo next >farm")
		r.a.inStep()
		r.b.has(keys{"farm": "next"})
	})
	t.Run("as master, without its peer, and was edited", func(t *testing.T) {
		r := start(t)
		r.b.off()
		r.a.on()
		was := r.a.record()
		r.a.promote()
		r.a.problem("is not reached")
		r.a.sh("echo early >farm; echo early >untouched")
		r.a.refuses("sync")
		if now := r.a.record(); now.Vector.Compare(was.Vector) != vector.Equal {
			t.Errorf("raised before the first comparison: %v", now.Vector)
		}
		r.b.on()
		r.check(r.a.daemon.Signal(unix.SIGUSR1))
		r.a.inStep()
		r.a.applied("later")
		for _, n := range r.both() {
			n.undone()
		}
		r.b.keeps()
		kept := r.a.kept()
		for _, want := range []string{"adopt ours farm=early", "adopt ours untouched=early"} {
			if !slices.Contains(kept, want) {
				t.Errorf("archived: %q, not %q", kept, want)
			}
		}
		r.clean()
	})
}

// The node that rules keeps its own, and the other configuration can be had back.
func TestSplitBrain(t *testing.T) {
	r := startRealm(t, lab.Options{})
	a, b := r.a, r.b
	// What the admin of each node did.
	ours := keys{"farm": "ours", "ours": "1", "theirs": "-"}
	theirs := keys{"farm": "theirs", "ours": "-", "theirs": "1"}
	var conflict string
	r.in("both rule, apart", func(t *testing.T) {
		r.check(b.Isolate())
		b.rule()
		b.edit("echo theirs >farm; echo 1 >theirs")
		a.edit("echo ours >farm; echo 1 >ours")
		r.check(b.Heal())
	})
	r.in("both rule, together: neither destroys anything", func(t *testing.T) {
		for _, n := range r.both() {
			r.check(n.daemon.Signal(unix.SIGUSR1))
			n.problem("master too", "skd-hooks status")
			if out := n.refuses("sync"); !strings.Contains(out, "master too") {
				t.Errorf("sync says %q", out)
			}
		}
		a.has(ours)
		b.has(theirs)
		a.keeps()
		r.honest()
	})
	r.in("one yields: the live master's configuration stays", func(t *testing.T) {
		b.demote()
		r.check(a.daemon.Signal(unix.SIGUSR1))
		a.inStep("both nodes were master")
		a.has(ours)
		a.problem("both nodes were master apart", "skd-inotify resolve theirs")
		var names []string
		for _, n := range r.both() {
			waiting := n.waiting()
			if len(waiting) != 1 || !waiting[0].Whole || waiting[0].Reason != archive.Conflict {
				t.Fatalf("%s: %+v", n.Name, waiting)
			}
			names = append(names, waiting[0].Named)
			held := n.files(waiting[0])
			if held["farm"] != "theirs" || held["theirs"] != "1" || held["global.conf"] == "" || held["ours"] != "" {
				t.Errorf("%s has archived %q", n.Name, held)
			}
			if text := n.ask("history"); !strings.Contains(text, "both nodes were master") || !strings.Contains(text, "waiting for: skd-inotify resolve ours|theirs") {
				t.Errorf("history on %s:\n%s", n.Name, text)
			}
		}
		conflict = names[0]
		a.saidOnce("this node's configuration stays; the other one is archived on both nodes")
		if a.history()[0].Holds != archive.Theirs {
			t.Errorf("%+v", a.history()[0])
		}
		if text, err := a.Run("skd-inotify", "status"); err == nil || !strings.Contains(text, conflict) {
			t.Errorf("status, %v:\n%s", err, text)
		}
		a.keepsWhole(1)
		b.keepsWhole(1)
		r.check(a.daemon.Signal(unix.SIGUSR1)) // again: it is the same conflict
		a.ask("sync")
		a.kill()
		a.start()
		a.inStep("both nodes were master")
		a.keepsWhole(1)
		b.keepsWhole(1)
		if len(a.starts()) != 0 {
			t.Error("Skudonet was restarted")
		}
	})
	r.in("the other one is wanted after all", func(t *testing.T) {
		if out := b.refuses("resolve", "theirs"); !strings.Contains(out, "run this on the master") {
			t.Errorf("on the backup: %s", out)
		}
		a.ask("resolve", "theirs")
		a.applied("theirs")
		a.inStep()
		a.has(theirs)
		r.nothingWaits()
		if text := a.ask("history"); !strings.Contains(text, "resolved: theirs") {
			t.Errorf("history:\n%s", text)
		}
	})
	r.in("and that is undone", func(t *testing.T) {
		last := a.history()[0]
		if last.Reason != archive.Restore {
			t.Fatalf("%+v", last)
		}
		a.ask("restore", last.Named)
		a.inStep()
		a.has(keys{"farm": "ours", "ours": "1"})
		// The archive has what was replaced; what was not there before came by resolve.
		a.ask("restore", conflict, "theirs")
		a.inStep()
		b.has(keys{"theirs": "1", "farm": "ours"})
		if out := a.refuses("resolve", "theirs"); !strings.Contains(out, "no conflict waits") {
			t.Errorf("resolve says %q", out)
		}
		r.clean()
	})
	r.in("the other way round, and all stays as it is", func(t *testing.T) {
		b.rule() // a goes on, and cannot know
		b.edit("echo b >farm")
		a.edit("echo a >farm")
		a.demote()
		r.check(b.daemon.Signal(unix.SIGUSR1))
		b.inStep("both nodes were master")
		a.has(keys{"farm": "b"})
		mine := b.waiting()
		if len(mine) != 1 || b.files(mine[0])["farm"] != "a" || len(a.waiting()) != 1 {
			t.Fatalf("%+v", mine)
		}
		b.ask("resolve", "ours", mine[0].Named)
		b.inStep()
		b.has(keys{"farm": "b"})
		r.nothingWaits()
		if len(b.starts()) != 0 {
			t.Error("Skudonet was restarted")
		}
		r.clean()
	})
}

func (n *ruler) waiting() []past {
	n.r.t.Helper()
	return slices.DeleteFunc(n.history(), func(p past) bool { return !p.Waiting })
}

// nothingWaits waits until no conflict does, on either node.
func (r *realm) nothingWaits() {
	r.t.Helper()
	r.eventually("the end of the conflict", func() (bool, string) {
		all := append(r.a.waiting(), r.b.waiting()...)
		return len(all) == 0, fmt.Sprint(all)
	})
}

// keepsWhole checks how many whole configurations the node has archived.
func (n *ruler) keepsWhole(want int) {
	n.r.t.Helper()
	if got := slices.DeleteFunc(n.history(), func(p past) bool { return !p.Whole }); len(got) != want {
		n.r.t.Errorf("%s has archived %d whole configurations, want %d: %+v", n.Name, len(got), want, got)
	}
}

func TestFirstContact(t *testing.T) {
	r := newRealm(t, lab.Options{})
	a, b := r.a, r.b
	for _, n := range r.both() {
		n.sh("cp -a . ../new")
	}
	// anew has both nodes be as if just installed, each with something of its own.
	anew := func(holders ...*ruler) {
		for _, n := range r.both() {
			if n.daemon != nil {
				n.demote()
			}
		}
		r.noSession()
		for _, n := range r.both() {
			r.run(n.Node, "sh", "-euc", "cd /usr/local/skudonet; rm -rf "+stateDir+"/* "+startsPath+" config; cp -a new config; echo "+n.Name+" >config/of-"+n.Name+"; echo "+n.Name+" >config/farm")
			if !slices.Contains(holders, n) {
				n.sh("rm if_eth0:1_conf")
			}
		}
	}
	for _, c := range []struct {
		name    string
		holders []*ruler
	}{
		{"the master has the virtual interface", []*ruler{a}},
		{"both have it", []*ruler{a, b}},
	} {
		r.in(c.name, func(t *testing.T) {
			anew(c.holders...)
			a.promote()
			a.inStep()
			b.has(keys{"farm": "lb1", "of-lb1": "lb1", "of-lb2": "-"})
			a.keeps()
			b.keeps("first-contact ours farm=lb2", "first-contact ours of-lb2=lb2")
			if len(a.starts()) != 0 {
				t.Error("Skudonet was restarted")
			}
		})
	}
	r.in("the peer has it: it is the one that counts", func(t *testing.T) {
		anew(b)
		a.promote()
		a.inStep()
		a.applied("lb2")
		a.has(keys{"of-lb1": "-", "of-lb2": "lb2"})
		b.keeps()
		a.keeps("adopt ours farm=lb1", "adopt ours of-lb1=lb1")
	})
	r.in("neither has it: nothing is sent", func(t *testing.T) {
		anew()
		a.promote()
		a.problem("first contact", "sync --confirm")
		if out := a.refuses("sync"); !strings.Contains(out, "first contact") {
			t.Errorf("sync says %q", out)
		}
		a.sh("echo more >more")
		a.problem("first contact")
		b.has(keys{"farm": "lb2", "of-lb1": "-", "of-lb2": "lb2", "more": "-"})
		a.ask("sync", "--confirm")
		a.inStep()
		b.has(keys{"farm": "lb1", "of-lb2": "-", "more": "more"})
		b.keeps("first-contact ours farm=lb2", "first-contact ours of-lb2=lb2")
	})
	r.in("a node that was installed anew takes over what the other has", func(t *testing.T) {
		a.demote()
		r.noSession()
		r.run(a.Node, "sh", "-euc", "cd /usr/local/skudonet; rm -rf "+stateDir+"/* config; cp -a new config; echo own >config/own")
		a.promote()
		a.inStep()
		a.applied("lb1")
		a.has(keys{"own": "-", "more": "more"})
		if !slices.Contains(a.kept(), "adopt ours own=own") {
			t.Errorf("archived: %q", a.kept())
		}
		r.clean()
	})
}

// sessions lists the ends of a master's connection on a node.
func (r *realm) sessions(n *ruler) (pids []string) {
	return (&trial{r.pair}).pids(n.Node, "/usr/sbin/skd-inotify peer")
}

// noSession waits until the last one has ended, and so writes nothing any more.
func (r *realm) noSession() {
	r.t.Helper()
	r.eventually("no session", func() (bool, string) {
		all := append(r.sessions(r.a), r.sessions(r.b)...)
		return len(all) == 0, fmt.Sprint(all)
	})
}

// image copies what a snapshot of the machine would have, and back.
const (
	image    = "mkdir -p /var/tmp/image; rm -rf /var/tmp/image/*; cp -a /usr/local/skudonet/config /var/tmp/image; cp -a " + stateDir + " /var/tmp/image/state"
	rollBack = "rm -rf /usr/local/skudonet/config " + stateDir + "; cp -a /var/tmp/image/config /usr/local/skudonet; cp -a /var/tmp/image/state " + stateDir
)

func TestRollback(t *testing.T) {
	r := startRealm(t, lab.Options{})
	a, b := r.a, r.b
	rolled := func(loser *ruler, words string, lost keys) {
		r.t.Helper()
		a.inStep("both nodes were master")
		id := loser.record().ID
		a.saidOnce(words)
		// The later configuration was the peer's alone, or is the one that stays.
		for _, n := range r.both() {
			waiting := n.waiting()
			if len(waiting) != 1 {
				r.t.Fatalf("%s: %+v", n.Name, waiting)
			}
			held := n.files(waiting[0])
			for name, want := range lost {
				if held[name] != want {
					r.t.Errorf("%s has archived %q in %s, want %q", n.Name, held[name], name, want)
				}
			}
		}
		a.ask("resolve", "ours")
		a.inStep()
		if loser.record().ID != id {
			r.t.Error("another identity again")
		}
		r.nothingWaits()
	}
	r.in("of the master", func(t *testing.T) {
		r.run(a.Node, "sh", "-euc", image)
		a.sh("echo later >farm; echo later >later")
		a.inStep()
		was := a.record().ID
		a.demote()
		r.run(a.Node, "sh", "-euc", rollBack)
		a.promote()
		rolled(a, "was its disk or its snapshot an older one?", keys{"farm": "later", "later": "later"})
		if a.record().ID == was {
			t.Error("it has the same identity")
		}
		a.has(keys{"farm": "first"})
	})
	r.in("of the backup, which has been master", func(t *testing.T) {
		a.demote()
		b.promote()
		b.inStep()
		r.run(b.Node, "sh", "-euc", image)
		b.sh("echo theirs >farm")
		b.inStep()
		b.demote()
		a.promote()
		a.inStep()
		a.demote()
		r.noSession()
		was := b.record().ID
		r.run(b.Node, "sh", "-euc", rollBack+"; echo by hand >/usr/local/skudonet/config/hand")
		a.promote()
		rolled(b, "its disk or its snapshot is an older one", keys{"farm": "first", "hand": "by hand"})
		if b.record().ID == was {
			t.Error("it has the same identity")
		}
		a.has(keys{"farm": "theirs"})
		r.clean()
	})
}

func TestClonedDisk(t *testing.T) {
	clone := func(r *realm) {
		record, err := r.a.ReadFile(stateDir + "/ledger.json")
		r.check(err)
		r.check(r.b.WriteFile(stateDir+"/ledger.json", record, 0o600))
	}
	t.Run("of the same machine-id", func(t *testing.T) {
		r := startRealm(t, lab.Options{})
		r.a.kill()
		clone(r)
		r.b.sh("echo own >own")
		was := r.a.record()
		r.a.start()
		r.a.inStep("both nodes were master")
		r.a.saidOnce("its disk is a copy of this node's")
		if r.a.record().ID != was.ID {
			t.Errorf("%v, was %v", r.a.record().ID, was.ID)
		}
		for _, n := range r.both() {
			if w := n.waiting(); len(w) != 1 || n.files(w[0])["own"] != "own" {
				t.Errorf("%s: %+v", n.Name, w)
			}
		}
	})
	t.Run("of another machine", func(t *testing.T) {
		r := newRealm(t, lab.Options{})
		r.check(r.b.WriteFile("/etc/machine-id", "0123456789abcdef0123456789abcdef\n", 0o444))
		r.a.promote()
		r.a.inStep()
		r.a.kill()
		clone(r)
		r.a.start()
		r.a.inStep() // the digests are the same, so there is nothing to settle
		if r.b.record().Machine != "0123456789abcdef0123456789abcdef" || len(r.b.waiting())+len(r.a.waiting()) != 0 {
			t.Errorf("%+v", r.b.record())
		}
		r.a.saidOnce("this disk was copied from another machine")
	})
}

func TestVanishedTree(t *testing.T) {
	r := startRealm(t, lab.Options{})
	a, b := r.a, r.b
	a.sh("mkdir d; for i in $(seq 29); do echo $i >d/f$i; done")
	a.inStep()
	vanish := func() {
		was := a.record()
		a.sh("mv d ../d")
		a.problem("most files vanished", "29 are gone", "sync --confirm")
		if out := a.refuses("sync"); !strings.Contains(out, "29 are gone") {
			r.t.Errorf("sync says %q", out)
		}
		b.has(keys{"d/f1": "1", "d/f29": "29"})
		if now := a.record(); now.Vector.Compare(was.Vector) != vector.Equal {
			r.t.Errorf("recorded: %v, was %v", now.Vector, was.Vector)
		}
	}
	r.in("and came back", func(t *testing.T) {
		vanish()
		a.sh("mv ../d .")
		a.inStep()
	})
	r.in("while the replicator was down", func(t *testing.T) {
		a.kill()
		a.sh("mv d ..")
		a.start()
		a.problem("most files vanished", "29 are gone")
		b.has(keys{"d/f1": "1", "d/f29": "29"})
		a.sh("mv ../d .")
		a.inStep()
	})
	r.in("and what an admin has confirmed ends with the command", func(t *testing.T) {
		b.says(status.Master)
		b.Run("kill", append([]string{"-KILL"}, r.sessions(b)...)...) // some may have ended by themselves
		a.problem("master too")
		a.sh("mv d ../d")
		if out := a.refuses("sync", "--confirm"); !strings.Contains(out, "master too") {
			t.Errorf("sync says %q", out)
		}
		b.says(status.Backup)
		r.check(a.daemon.Signal(unix.SIGUSR1))
		a.problem("most files vanished", "29 are gone")
		b.has(keys{"d/f1": "1", "d/f29": "29"})
		a.sh("mv ../d .")
		a.inStep()
	})
	r.in("and is really meant", func(t *testing.T) {
		vanish()
		a.ask("sync", "--confirm")
		a.inStep()
		b.has(keys{"d/f1": "-", "d/f29": "-"})
	})
	r.in("without global.conf", func(t *testing.T) {
		a.sh("mv global.conf ..")
		a.problem("global.conf")
		a.refuses("sync")
		if b.file("global.conf") == "-" {
			t.Error("removed on the backup")
		}
		a.sh("mv ../global.conf .")
		a.inStep()
	})
	r.in("the other node's, which would be adopted", func(t *testing.T) {
		a.sh("mv ../d .")
		a.inStep()
		a.kill() // its status still says master, so the peer records for itself
		b.rule()
		b.edit("echo 1 >alone")
		b.sh("mv d ..")
		b.problem("most files vanished")
		before := b.record()
		b.sh("mkdir away; echo 1 >away/1")
		b.refuses("sync", "--confirm") // nobody is there to send to
		if b.record().Vector.Compare(before.Vector) != vector.Equal {
			t.Error("recorded what was not confirmed")
		}
		b.demote()
		a.promote()
		a.problem("most files vanished", "on the peer, whose configuration is the newer one", "29 are gone")
		a.has(keys{"d/f1": "1", "d/f29": "29", "alone": "-"})
		b.sh("mv ../d .")
		a.inStep()
		a.has(keys{"d/f1": "1", "d/f29": "29", "alone": "1", "away/1": "1"})
	})
}

func TestVersionsOfSkudonet(t *testing.T) {
	r := newRealm(t, lab.Options{})
	a, b := r.a, r.b
	version := func(n *ruler, is string) {
		r.check(n.WriteFile("/usr/local/sbin/dpkg-query", "#!/bin/sh\nprintf "+is+"\n", 0o755))
	}
	version(a, "7.1.0")
	version(b, "7.2.0")
	a.promote()
	a.problem("7.1.0 here", "7.2.0 on the peer", "upgrade")
	skew := "Skudonet is version"
	a.inStep(skew)
	// An upgrade there has changed a file, and made one.
	b.sh("echo '# 7.2' >>global.conf; echo 1 >migrated")
	r.check(a.daemon.Signal(unix.SIGUSR1))
	a.problem("left alone there", "global.conf", "migrated")
	if out := a.refuses("sync"); !strings.Contains(out, "left alone on the peer: global.conf, migrated") {
		t.Errorf("sync says %q", out)
	}
	a.sh("echo next >farm")
	r.eventually("the change on the peer", func() (bool, string) { return b.file("farm") == "next", fmt.Sprint(a.status().Problems) })
	version(a, "7.2.0")
	a.kill()
	a.start()
	a.inStep()
	b.has(keys{"farm": "next", "migrated": "-"})
	for _, want := range []string{"repair ours migrated=1"} {
		if kept := b.kept(); !slices.Contains(kept, want) {
			t.Errorf("archived: %q, not %q", kept, want)
		}
	}
	if s := a.status(); slices.ContainsFunc(s.Problems, func(p status.Problem) bool { return strings.Contains(p.Text, skew) }) {
		t.Errorf("%v", s.Problems)
	}
	if _, err := a.ReadFile(filepath.Join(stateDir, "swap.json")); err == nil {
		t.Error("a journal is left")
	}
}
