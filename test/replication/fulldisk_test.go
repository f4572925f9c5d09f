package replication

import (
	"fmt"
	"slices"
	"testing"

	"github.com/skudonet/skudonet-ce-cluster/test/lab"
)

// filler is the file that takes what is left of a node's disk.
const filler = "/filler"

// disk gives a directory of the node a disk of its own.
func (n *ruler) disk(dir, size string) {
	n.r.t.Helper()
	n.r.run(n.Node, "sh", "-euc", fmt.Sprintf(`mkdir -p %[1]s /tmp/was; cp -a %[1]s/. /tmp/was
		mount -t tmpfs -o size=%[2]s,mode=$(stat -c %%a %[1]s) tmpfs %[1]s; cp -a /tmp/was/. %[1]s; rm -r /tmp/was`, dir, size))
}

// fill leaves no space in a directory; empty makes it again.
func (n *ruler) fill(dir string) {
	n.r.t.Helper()
	n.r.run(n.Node, "sh", "-c", "head -c 100m /dev/zero >"+dir+filler+" 2>/dev/null; test -s "+dir+filler)
}

func (n *ruler) empty(dir string) { n.r.t.Helper(); n.r.run(n.Node, "rm", dir+filler) }

// A full disk below /var/lib: what cannot be archived is not replaced, what cannot
// be recorded is not claimed, and it all goes on when there is space.
func TestFullDiskForTheState(t *testing.T) {
	r := newRealm(t, lab.Options{})
	a, b := r.a, r.b
	for _, n := range r.both() {
		n.disk(stateDir, "256k")
	}
	a.promote()
	a.inStep()
	const archived, space = "cannot be archived", "make space"
	r.in("of the backup, which has something to archive", func(t *testing.T) {
		b.fill(stateDir)
		b.sh("echo mine >farm; echo mine >mine")
		a.refuses("sync")
		a.problem(archived)
		b.has(keys{"farm": "mine", "mine": "mine"})
		b.keeps()
		r.honest()
		b.empty(stateDir)
		a.inStep()
		b.has(keys{"farm": "first", "mine": "-"})
		b.keeps("repair ours farm=mine", "repair ours mine=mine")
	})
	r.in("of the backup, which has something to record", func(t *testing.T) {
		was := b.record()
		b.fill(stateDir)
		a.sh("echo 2 >farm")
		r.eventually("the change on the backup", func() (bool, string) { return b.file("farm") == "2", fmt.Sprint(a.status().Problems) })
		a.problem(stateDir)
		if now := b.record(); fmt.Sprint(now) != fmt.Sprint(was) {
			t.Errorf("the backup has recorded %v on a full disk", now)
		}
		r.honest()
		b.empty(stateDir)
		a.inStep()
	})
	r.in("of the master, which has something to record", func(t *testing.T) {
		was := a.record()
		a.fill(stateDir)
		a.sh("echo 3 >farm")
		r.eventually("the change on the backup", func() (bool, string) { return b.file("farm") == "3", fmt.Sprint(a.status().Problems) })
		a.problem("cannot be recorded", space)
		if now := fmt.Sprint(a.record(), b.record().Vector); now != fmt.Sprint(was, was.Vector) {
			t.Errorf("recorded: %v", now)
		}
		a.empty(stateDir)
		a.inStep()
		a.has(keys{"farm": "3"})
	})
	r.in("of the master, which adopts", func(t *testing.T) {
		n := len(a.history())
		r.ahead("echo theirs >farm; echo theirs >theirs")
		a.sh("echo mine >farm")
		a.fill(stateDir)
		a.promote()
		a.problem(archived, space)
		a.has(keys{"farm": "mine", "theirs": "-"})
		b.has(keys{"farm": "theirs"})
		a.empty(stateDir)
		a.inStep()
		a.has(keys{"farm": "theirs", "theirs": "theirs"})
		if kept := a.kept(); len(a.history()) != n+1 || !slices.Contains(kept, "adopt ours farm=mine") {
			t.Errorf("archived: %q", kept)
		}
	})
	for _, full := range r.both() {
		r.in("of "+full.Name+", which has to keep what a split brain has made", func(t *testing.T) {
			mine, theirs := "a when full is "+full.Name, "b when full is "+full.Name
			r.ahead("echo " + theirs + " >farm")
			r.check(b.SSHD().Stop())
			a.rule()
			a.edit("echo " + mine + " >farm")
			full.fill(stateDir)
			_, err := b.StartSSH()
			r.check(err)
			a.problem(archived)
			b.has(keys{"farm": theirs})
			r.honest()
			full.empty(stateDir)
			a.inStep("both nodes were master")
			for _, n := range r.both() {
				if w := n.waiting(); len(w) != 1 || n.files(w[0])["farm"] != theirs {
					t.Errorf("%s: %+v", n.Name, w)
				}
			}
			a.ask("resolve", "ours")
			a.inStep()
			r.nothingWaits()
		})
	}
	r.clean()
}

// A full disk of the tree: it is replaced as a whole or not at all.
func TestFullDiskForTheTree(t *testing.T) {
	const dir = "/usr/local/skudonet"
	r := newRealm(t, lab.Options{})
	a, b := r.a, r.b
	a.disk(dir, "3m")
	a.promote()
	a.inStep()
	r.in("of the master, which adopts", func(t *testing.T) {
		r.ahead("echo theirs >farm; head -c 1m /dev/urandom >big")
		a.fill(dir)
		a.promote()
		a.problem("no space left")
		a.has(keys{"farm": "first", "big": "-"})
		a.empty(dir)
		a.inStep()
		a.has(keys{"farm": "theirs"})
		a.keeps()
	})
	r.in("of the master, which restores", func(t *testing.T) {
		r.ahead("echo back >farm; rm big")
		a.sh("head -c 1m /dev/urandom >big; echo edited >farm")
		a.promote()
		a.inStep()
		last := a.history()[0].Named
		a.fill(dir)
		a.refuses("restore", last)
		a.has(keys{"farm": "back", "big": "-"})
		a.empty(dir)
		a.ask("restore", last)
		a.inStep()
		b.has(keys{"farm": "edited"})
	})
	r.clean()
}
