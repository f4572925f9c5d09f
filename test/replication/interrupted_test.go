package replication

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/archive"
	"github.com/skudonet/skudonet-ce-cluster/lib/ledger"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
	"github.com/skudonet/skudonet-ce-cluster/test/lab"
)

// stepsDir is what steps has made.
var stepsDir string

// steps is a directory with our programs, of which skd-inotify dies at the step
// that SKD_STEP names (package step).
var steps = sync.OnceValues(func() (dir string, err error) {
	module, err := lab.ModuleDir()
	if err != nil {
		return "", err
	}
	if dir, err = os.MkdirTemp("", "skd-steps"); err != nil {
		return "", err
	}
	stepsDir = dir
	programs, err := filepath.Glob(filepath.Join(module, "bin", "skd-*"))
	if err != nil || len(programs) == 0 {
		return dir, fmt.Errorf("no programs in bin: make build (%v)", err)
	}
	for _, cmd := range []*exec.Cmd{
		exec.Command("cp", append(programs, dir)...),
		exec.Command("go", "build", "-tags", "steps,urfave_cli_no_docs", "-o", dir, "./skd-inotify"),
	} {
		cmd.Dir, cmd.Env = module, append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return dir, fmt.Errorf("%v: %w: %s", cmd.Args, err, out)
		}
	}
	return dir, nil
})

// newSteps is newRealm with programs that can be killed at a step.
func newSteps(t *testing.T) *realm {
	t.Helper()
	dir, err := steps()
	if err != nil {
		t.Fatal(err)
	}
	r := newRealm(t, lab.Options{BinDir: dir})
	for _, n := range r.both() {
		// The next skd-inotify that the other node starts here gets the step, and how it ended is noted.
		r.check(n.WriteFile("/root/.bashrc", `if [ -e /run/step ]; then
			SKD_STEP=$(cat /run/step)
			rm /run/step
			export SKD_STEP
			eval "$BASH_EXECUTION_STRING"
			echo $? >/run/ended
			exit
		fi
		`, 0o644))
	}
	return r
}

// arm has the next skd-inotify peer on the node die at a step.
func (n *ruler) arm(step string) {
	n.r.t.Helper()
	n.r.check(n.WriteFile("/run/step", step, 0o644))
}

// died waits until it has.
func (n *ruler) died() {
	n.r.t.Helper()
	n.r.eventually("the death of skd-inotify peer on "+n.Name, func() (bool, string) {
		text, err := n.ReadFile("/run/ended")
		return strings.TrimSpace(text) == "137", fmt.Sprintf("%q, %v", text, err)
	})
	n.r.run(n.Node, "rm", "/run/ended")
	n.r.honest()
	n.r.check(n.other().daemon.Signal(unix.SIGUSR1)) // which looks for the peer at once
}

// dies waits until the replicator was killed at its step.
func (n *ruler) dies() {
	n.r.t.Helper()
	d := n.daemon
	n.ended()
	if end := d.Exits()[0].State.String(); end != "signal: killed" {
		n.r.t.Errorf("skd-inotify: %s", end)
	}
	n.r.honest()
}

// stops kills the replicator of a node that its peer then takes for a master all the same.
func (n *ruler) stops() {
	n.r.t.Helper()
	if n.daemon != nil {
		n.kill()
	}
}

// change is a script with a change of each sort: some files come, some go.
func change(i int) string {
	return fmt.Sprintf(`mkdir -p d%[1]d/sub; for f in 1 2 3 4 5 6; do echo %[1]d >d%[1]d/sub/$f; done; rm -rf d%[2]d; echo %[1]d >farm
		echo %[1]d >content; chmod 6%[3]d0 content; ln -sfn d%[1]d link; echo "30%[1]d x%[1]d" >>%[4]s`, i, i-1, i%8, lab.RTTablesPath)
}

// pushing is a realm in which a pushes one change after the other to b.
type pushing struct {
	*realm
	i     int // the last change
	first int // archives of b before it
}

func newPushing(t *testing.T) *pushing {
	t.Helper()
	p := &pushing{realm: newSteps(t)}
	p.a.promote()
	p.a.inStep()
	p.first = len(p.b.history())
	p.a.sh(p.next())
	p.arrived()
	return p
}

func (p *pushing) next() string { p.i++; return change(p.i) }

// arrived waits for the last change, and checks that nothing is archived: nothing was lost.
func (p *pushing) arrived() {
	p.t.Helper()
	p.a.inStep()
	p.b.has(keys{"content": fmt.Sprint(p.i), fmt.Sprintf("d%d/sub/6", p.i): fmt.Sprint(p.i), fmt.Sprintf("d%d/sub/6", p.i-1): "-"})
	if len(p.b.history()) != p.first || len(p.a.history()) != 0 {
		p.t.Errorf("archived on the backup: %q, on the master: %q", p.b.kept(), p.a.kept())
	}
	p.clean()
}

// A push that is killed at any of its steps, on either end, is completed, and
// archives nothing.
func TestKillAtEachStepOfTheFirstComparison(t *testing.T) {
	p := newPushing(t)
	a, b := p.a, p.b
	for _, step := range []string{"peer.intent", "peer.intent:2", "peer.rsync.started", "peer.rsync.ended", "peer.removing", "peer.removed",
		"peer.looked", "peer.looked:2", "peer.commit.synced", "peer.commit.stored", "peer.commit.forgotten", "peer.commit.resolved"} {
		p.in(step, func(t *testing.T) {
			a.stops()
			a.sh(p.next())
			b.arm(step)
			a.start()
			b.died()
			p.arrived()
		})
	}
	p.in("peer.archived: what was touched there is archived, at least once", func(t *testing.T) {
		a.stops()
		b.sh("echo mine >content")
		b.arm("peer.archived")
		a.start()
		b.died()
		a.inStep()
		kept := b.kept()
		if !slices.Contains(kept, "repair ours content=mine") || len(kept) > 2 {
			t.Errorf("archived: %q", kept)
		}
		b.has(keys{"content": fmt.Sprint(p.i)})
		p.clean()
	})
}

func TestKillAtEachStepOfAChange(t *testing.T) {
	p := newPushing(t)
	a, b := p.a, p.b
	for _, step := range []string{"peer.intent", "peer.rsync.started", "peer.rsync.ended", "peer.removing", "peer.removed",
		"peer.looked:2", "peer.commit.synced", "peer.commit.stored", "peer.commit.forgotten"} {
		p.in(step, func(t *testing.T) {
			a.stops()
			b.arm(step)
			a.start()
			p.eventually("the connection", func() (bool, string) {
				_, err := b.ReadFile("/run/step")
				return errors.Is(err, fs.ErrNotExist), a.log()
			})
			a.sh(p.next())
			b.died()
			p.arrived()
		})
	}
	for _, step := range []string{"mirror.synced", "mirror.recorded"} {
		p.in(step, func(t *testing.T) {
			a.stops()
			a.sh(p.next())
			a.start("SKD_STEP=" + step)
			a.dies()
			a.start()
			p.arrived()
		})
		p.in(step+" while the peer is away", func(t *testing.T) {
			a.stops()
			p.check(b.SSHD().Stop())
			a.start("SKD_STEP=" + step)
			a.sh(p.next())
			a.dies()
			a.start()
			_, err := b.StartSSH()
			p.check(err)
			p.check(a.daemon.Signal(unix.SIGUSR1)) // which looks for the peer at once
			p.arrived()
		})
	}
}

// ahead makes b the one that has ruled later than a, which was master and is down.
func (r *realm) ahead(script string) {
	r.t.Helper()
	r.a.stops()
	r.a.says(status.Master)
	r.b.rule()
	r.b.edit(script)
	r.b.demote()
}

// An adoption that is killed at any of its steps is completed, too.
func TestKillAtEachStepOfAnAdoption(t *testing.T) {
	r := newSteps(t)
	a, b := r.a, r.b
	a.promote()
	a.inStep()
	adopted := func(i int) {
		r.t.Helper()
		a.inStep()
		a.applied(fmt.Sprint(i))
		a.has(keys{"content": fmt.Sprint(i), fmt.Sprintf("d%d/sub/6", i): fmt.Sprint(i), fmt.Sprintf("d%d/sub/6", i-1): "-"})
		if !slices.Equal(a.kept(), []string{}) {
			r.t.Errorf("archived: %q", a.kept())
		}
		r.clean()
	}
	first := b.kept()
	steps := []string{"mirror.adopt.archived", "mirror.adopt.fetched", "swap.begun", "swap.applied", "swap.recorded"}
	for i, step := range steps {
		r.in(step, func(t *testing.T) {
			r.ahead(change(i + 1))
			a.promote("SKD_STEP=" + step)
			a.dies()
			a.start()
			adopted(i + 1)
		})
	}
	r.in("swap.begun, and the node returns as backup", func(t *testing.T) {
		i := len(steps) + 1
		r.ahead(change(i))
		a.promote("SKD_STEP=swap.begun")
		a.dies()
		a.says(status.Backup)
		a.arm("swap.applied")
		b.promote()
		a.died()
		b.inStep()
		a.has(keys{"content": fmt.Sprint(i), fmt.Sprintf("d%d/sub/6", i-1): "-"})
		b.demote()
		a.promote()
		a.inStep()
		a.keeps()
		r.clean()
	})
	if got := b.kept(); !slices.Equal(got, first) {
		t.Errorf("archived on the peer: %q", got)
	}
	r.in("what was edited here meanwhile is archived", func(t *testing.T) {
		for i, step := range steps[:3] {
			mine := fmt.Sprint("mine", i)
			r.ahead(change(20 + i))
			a.sh("echo " + mine + " >content")
			a.promote("SKD_STEP=" + step)
			a.dies()
			a.start()
			a.inStep()
			if kept := a.kept(); !slices.Contains(kept, "adopt ours content="+mine) {
				t.Errorf("%s: archived %q", step, kept)
			}
			a.has(keys{"content": fmt.Sprint(20 + i)})
		}
		r.clean()
	})
}

func TestKillAtEachStepOfARestore(t *testing.T) {
	r := newSteps(t)
	a, b := r.a, r.b
	a.promote()
	a.inStep()
	r.ahead("mkdir -p d/sub; echo theirs >d/sub/f; echo theirs >farm")
	a.sh("mkdir -p d/sub; echo mine >d/sub/f; echo mine >farm")
	a.promote()
	a.inStep()
	mine := a.history()[0].Named
	a.has(keys{"farm": "theirs", "d/sub/f": "theirs"})
	r.check(b.SSHD().Stop())
	_, err := b.StartSSH()
	r.check(err)
	for _, step := range []string{"mirror.restore.archived", "mirror.restore.staged", "swap.begun", "swap.applied", "swap.recorded"} {
		r.in(step, func(t *testing.T) {
			a.stops()
			a.start("SKD_STEP=" + step)
			a.inStep()
			if out := a.refuses("restore", mine); !strings.Contains(out, "the daemon ended meanwhile") {
				t.Errorf("restore says %q", out)
			}
			a.dies()
			a.start()
			a.inStep()
			begun := strings.HasPrefix(step, "swap")
			if got := a.file("d/sub/f"); begun != (got == "mine") || a.file("farm") != got {
				t.Errorf("d/sub/f is %q, farm %q", got, a.file("farm"))
			}
			a.ask("restore", mine)
			a.inStep()
			b.has(keys{"farm": "mine", "d/sub/f": "mine"})
			// It can be undone.
			at := slices.IndexFunc(a.history(), func(p past) bool { return p.Reason == archive.Restore && a.files(p)["farm"] == "theirs" })
			if at < 0 {
				t.Fatalf("archived: %q", a.kept())
			}
			a.ask("restore", a.history()[at].Named)
			a.inStep()
			b.has(keys{"farm": "theirs", "d/sub/f": "theirs"})
			r.clean()
		})
	}
}

// A conflict that is interrupted is archived once, on both nodes.
func TestKillAtEachStepOfAConflict(t *testing.T) {
	r := newSteps(t)
	a, b := r.a, r.b
	a.promote()
	a.inStep()
	i := 0
	settled := func() {
		r.t.Helper()
		a.inStep("both nodes were master")
		for _, n := range r.both() {
			n.has(keys{"farm": fmt.Sprint("a", i)})
			if w := n.waiting(); len(w) != 1 || n.files(w[0])["farm"] != fmt.Sprint("b", i) {
				r.t.Errorf("%s: %d conflicts wait: %+v", n.Name, len(w), w)
			}
		}
		a.ask("resolve", "ours")
		a.inStep()
		r.nothingWaits()
		r.clean()
	}
	split := func() {
		i++
		r.ahead(fmt.Sprintf("echo b%d >farm", i))
		r.check(b.SSHD().Stop())
		a.rule()
		a.edit(fmt.Sprintf("echo a%d >farm", i))
		a.kill()
		_, err := b.StartSSH()
		r.check(err)
	}
	for _, step := range []string{"mirror.conflict.archived", "mirror.conflict.kept", "mirror.recorded"} {
		r.in(step, func(t *testing.T) {
			split()
			a.start("SKD_STEP=" + step)
			a.dies()
			a.start()
			settled()
		})
	}
	for _, step := range []string{"peer.kept", "peer.intent", "peer.rsync.ended", "peer.commit.synced", "peer.commit.stored", "peer.commit.forgotten"} {
		r.in(step, func(t *testing.T) {
			split()
			b.arm(step)
			a.start()
			b.died()
			settled()
		})
	}
	r.in("peer.renewed, of a cloned disk", func(t *testing.T) {
		i++
		a.stops()
		record := a.record()
		r.check(ledger.Store(b.Root(stateDir), record))
		b.sh(fmt.Sprintf("echo b%d >farm", i))
		a.sh(fmt.Sprintf("echo a%d >farm", i))
		b.arm("peer.renewed")
		a.start()
		b.died()
		a.inStep("both nodes were master")
		// The other identity stays, whether or not the master has heard of it.
		if id := b.record().ID; id == record.ID || a.record().ID != record.ID {
			t.Errorf("%s and %s, was %s", a.record().ID, id, record.ID)
		}
		held := false
		for _, n := range r.both() {
			held = held || slices.ContainsFunc(n.history(), func(p past) bool { return n.files(p)["farm"] == fmt.Sprint("b", i) })
		}
		if !held {
			t.Errorf("what the clone had is in no archive: %q", b.kept())
		}
	})
}
