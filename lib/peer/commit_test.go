package peer

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/skudonet/skudonet-ce-cluster/lib/archive"
	"github.com/skudonet/skudonet-ce-cluster/lib/journal"
	"github.com/skudonet/skudonet-ce-cluster/lib/ledger"
	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
	"github.com/skudonet/skudonet-ce-cluster/lib/vector"
)

func TestCommit(t *testing.T) {
	p := newPair(t, map[string]string{"a": "1"})
	r := p.record()
	want := ledger.Tree{Digest: local(t, p.src, "").Digest(), Set: someSet}
	if r.Vector[someID] != 1 || !r.Holds(ConfigRoot, want) || r.ID.Check() != nil || r.Machine != hostIn(p.dir).Machine {
		t.Errorf("%+v", r)
	}
	s, err := p.Standing(t.Context())
	must(t, err)
	if s.ID != r.ID || !maps.Equal(s.Vector, r.Vector) || s.Trees[ConfigRoot] != want {
		t.Errorf("%+v, the record is %+v", s, r)
	}
	p.open()
	if h := p.hello; h.ID != r.ID || !maps.Equal(h.Vector, r.Vector) || len(h.Notices) > 0 {
		t.Errorf("%+v", h)
	}
}

func TestNothingIsCommittedThatIsNotThere(t *testing.T) {
	p := newPair(t, map[string]string{"a": "1"})
	want := p.record()
	refused := func(name, words string, change func(q *DigestRequest)) {
		t.Helper()
		q := DigestRequest{Roots: []Look{{Root: ConfigRoot, Full: true}}, Set: someSet, Commit: &Commit{
			Vector: vector.Vector{someID: 2}, Digests: map[string]manifest.Digest{ConfigRoot: local(t, p.src, "").Digest()}, Set: someSet}}
		change(&q)
		a, err := p.Digest(t.Context(), q)
		text := a.NotCommitted
		if err != nil {
			text = err.Error()
		}
		if a.Committed || !strings.Contains(text, words) || errors.Is(err, ErrClosed) {
			t.Errorf("%s: %+v, %v", name, a, err)
		}
		if r := p.record(); !maps.Equal(r.Vector, want.Vector) || !maps.Equal(r.Trees, want.Trees) {
			t.Fatalf("%s: %+v", name, r)
		}
	}
	p.change(map[string]string{"b": "1"})
	refused("another digest", "not what the master has", func(*DigestRequest) {})
	os.Remove(filepath.Join(p.src, "b"))
	refused("with exceptions", "not what the master has", func(q *DigestRequest) {
		p.write("c", "only here")
		q.Roots[0].Except = names("c")
	})
	os.Remove(filepath.Join(p.tree, "c"))
	refused("a vector behind", "ahead", func(q *DigestRequest) { q.Commit.Vector = vector.Vector{} })
	refused("a vector apart", "apart", func(q *DigestRequest) { q.Commit.Vector = vector.Vector{vector.NewID(): 1} })
	refused("no vector", "node identity", func(q *DigestRequest) { q.Commit.Vector = vector.Vector{"x": 1} })
	refused("no set", "the set", func(q *DigestRequest) { q.Commit.Set = "" })
	refused("two sets", "the set", func(q *DigestRequest) { q.Set = "others" })
	refused("nothing", "nothing", func(q *DigestRequest) { q.Commit.Digests = nil })
	refused("a root that is not looked at", "not looked at", func(q *DigestRequest) { q.Commit.Digests[RTTablesRoot] = manifest.Digest{} })
	must(t, os.Rename(p.tree, p.tree+".away"))
	refused("no tree", "cannot be read", func(*DigestRequest) {})
	must(t, os.Rename(p.tree+".away", p.tree))
	p.committed()
}

func TestOwnDaemonHasTheRecord(t *testing.T) {
	p := newPair(t, map[string]string{"a": "1"})
	unlock, err := ledger.Lock(t.Context(), hostIn(p.dir).StateDir)
	must(t, err)
	if _, err := p.commit(); !errors.Is(err, ErrMaster) || errors.Is(err, ErrClosed) {
		t.Errorf("commit: %v", err)
	}
	if _, err := p.Renew(t.Context(), "why not"); !errors.Is(err, ErrMaster) {
		t.Errorf("renew: %v", err)
	}
	if s, err := p.Standing(t.Context()); err != nil || s.Vector[someID] != 1 {
		t.Errorf("%+v, %v", s, err)
	}
	unlock()
	p.committed()
}

func TestMasterRefusesAllThatChanges(t *testing.T) {
	p := newPair(t, map[string]string{"a": "1"})
	must(t, status.Write(hostIn(p.dir).StatusFile, status.Master))
	ctx := t.Context()
	for name, f := range map[string]func() error{
		"commit": func() error { _, err := p.commit(); return err },
		"remove": func() error { return p.remove(keepAs(archive.Repair), "a") },
		"rsync": func() error {
			_, err := p.Rsync(ctx, ConfigRoot, server, RsyncOptions{Keep: keepAs(archive.Repair)}, strings.NewReader(""), io.Discard, nil)
			return err
		},
		"renew": func() error { _, err := p.Renew(ctx, "why not"); return err },
		"keep":  func() error { _, err := p.Keep(ctx, KeepRequest{ID: "1", Reason: archive.Conflict}); return err },
	} {
		if err := f(); !errors.Is(err, ErrMaster) || errors.Is(err, ErrClosed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, f := range map[string]func() error{
		"standing": func() error {
			s, err := p.Standing(ctx)
			if err == nil && s.Role != status.Master {
				t.Errorf("%+v", s)
			}
			return err
		},
		"digest":   func() error { p.compare(); return nil },
		"manifest": func() error { _, err := p.Manifest(ctx, ConfigRoot); return err },
		"fetch": func() error {
			_, err := p.Rsync(ctx, ConfigRoot, fetching, RsyncOptions{Fetch: true}, strings.NewReader(""), io.Discard, nil)
			return err
		},
	} {
		if err := f(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	p.wantArchived()
}

func TestStanding(t *testing.T) {
	b := newBackup(t)
	b.write("if_eth0:vip_conf", "[eth0:vip]\naddr=192.0.2.8\nmask=24\nstatus=up\n")
	s := b.open("")
	a, err := s.Standing(t.Context())
	must(t, err)
	if a.ID != s.hello.ID || a.ID.Check() != nil || len(a.Vector) > 0 || len(a.Trees) > 0 || a.Holder || a.Role != status.Backup || len(a.Waiting) > 0 || a.Skudonet != "7.1.0" || s.hello.Skudonet != "7.1.0" {
		t.Errorf("%+v, %+v", a, s.hello)
	}
	b.write("if_eth0:vip_conf", "[eth0:vip]\naddr=192.0.2.9\nmask=24\nstatus=down\n")
	if a, err = s.Standing(t.Context()); err != nil || !a.Holder {
		t.Errorf("%+v, %v", a, err)
	}
	// The record is read anew.
	r := b.record()
	r.Vector = vector.Vector{someID: 7}
	must(t, ledger.Store(hostIn(b.dir).StateDir, r))
	if a, err = s.Standing(t.Context()); err != nil || a.Vector[someID] != 7 {
		t.Errorf("%+v, %v", a, err)
	}
}

func TestRenew(t *testing.T) {
	p := newPair(t, map[string]string{"a": "1"})
	was := p.record()
	id, err := p.Renew(t.Context(), "the disk is a copy")
	must(t, err)
	r := p.record()
	if id == was.ID || r.ID != id || !maps.Equal(r.Vector, was.Vector) || !maps.Equal(r.Trees, was.Trees) {
		t.Errorf("%s: %+v, was %+v", id, r, was)
	}
	if d := p.compare(); d.Touched {
		t.Error("the tree counts as touched")
	}
}

func TestNoticesOfTheRecord(t *testing.T) {
	p := newPair(t, map[string]string{"a": "1"})
	p.end()
	r := p.record()
	r.Machine = "another"
	must(t, ledger.Store(hostIn(p.dir).StateDir, r))
	p.open()
	if h := p.hello; h.ID == r.ID || len(h.Notices) != 1 || !strings.Contains(h.Notices[0], "copied from another machine") || h.Problem != "" {
		t.Errorf("%+v", h)
	}
}

func TestKeepConflict(t *testing.T) {
	b := newBackup(t, `$exclude="--exclude *.out";`)
	b.write("d/a", "theirs")
	b.write("x.out", "not replicated")
	b.write(filepath.Join(b.dir, "etc/iproute2/rt_tables"), "200 t\n")
	b.write(filepath.Join(b.dir, "etc/iproute2/rt_protos"), "not ours")
	must(t, os.Symlink("a", filepath.Join(b.tree, "d/l")))
	s := b.open("")
	q := KeepRequest{ID: "c1", Reason: archive.Conflict, Peer: "192.0.2.1", Ours: vector.Vector{someID: 3}, Theirs: vector.Vector{someID: 4}}
	kept, err := s.Keep(t.Context(), q)
	must(t, err)
	store, err := archive.Open(hostIn(b.dir).StateDir)
	must(t, err)
	i, err := store.Find(kept.Name)
	must(t, err)
	if i.ID != "c1" || !i.Waiting || !i.Whole || i.Reason != archive.Conflict || i.Holds != archive.Ours || i.Peer != q.Peer || !maps.Equal(i.Ours, q.Ours) || !maps.Equal(i.Theirs, q.Theirs) || kept.Files != 3 {
		t.Errorf("%+v, %+v", i, kept)
	}
	for root, want := range map[string][]string{ConfigRoot: {"d", "d/a", "d/l"}, RTTablesRoot: {"rt_tables"}} {
		_, m, err := store.Tree(i, root)
		must(t, err)
		if got := m.Below("."); !slices.Equal(got, want) {
			t.Errorf("%s: %q", root, got)
		}
	}
	// The answer was lost: it is asked again.
	if again, err := s.Keep(t.Context(), q); err != nil || again != kept {
		t.Errorf("%+v, %v", again, err)
	}
	if a, err := s.Standing(t.Context()); err != nil || !slices.Equal(a.Waiting, []string{"c1"}) {
		t.Errorf("%+v, %v", a, err)
	}
	// But what has changed since is not in it.
	b.write("d/a", "theirs again")
	if again, err := s.Keep(t.Context(), q); err != nil || again.Name == kept.Name {
		t.Errorf("%+v, %v", again, err)
	}
	q.ID = ""
	if _, err := s.Keep(t.Context(), q); err == nil || errors.Is(err, ErrClosed) {
		t.Errorf("without an ID: %v", err)
	}
}

func TestConflictsAreResolvedByCommit(t *testing.T) {
	p := newPair(t, map[string]string{"a": "1"})
	for _, id := range []string{"c1", "c2"} {
		_, err := p.Keep(t.Context(), KeepRequest{ID: id, Reason: archive.Conflict, Peer: "192.0.2.1"})
		must(t, err)
	}
	for _, c := range []struct {
		still []string
		want  []string
	}{{[]string{"c2", "c1"}, []string{"c2", "c1"}}, {[]string{"c2"}, []string{"c2"}}, {nil, nil}} {
		p.open()
		q := DigestRequest{Roots: []Look{{Root: ConfigRoot, Full: true}}, Set: someSet, Commit: &Commit{
			Vector: vector.Vector{someID: 1}, Digests: map[string]manifest.Digest{ConfigRoot: local(t, p.src, "").Digest()}, Set: someSet, Waiting: c.still}}
		a, err := p.Digest(t.Context(), q)
		must(t, err)
		s, err := p.Standing(t.Context())
		if err != nil || !a.Committed || !slices.Equal(s.Waiting, c.want) {
			t.Errorf("%q: waiting %q, %+v, %v", c.still, s.Waiting, a, err)
		}
	}
}

// begun is a journal that another program has begun and not ended: it makes the
// file "a" of the tree what text says.
func (p *pair) begun(text string, v vector.Vector) {
	p.t.Helper()
	state := hostIn(p.dir).StateDir
	stage, err := journal.StageFor(state, p.tree)
	must(p.t, err)
	p.write(filepath.Join(stage, "a"), text)
	p.change(map[string]string{"a": text})
	r := p.record()
	r.Vector, r.Trees = v, map[string]ledger.Tree{ConfigRoot: {Digest: local(p.t, p.src, "").Digest(), Set: someSet}}
	b, err := json.Marshal(r)
	must(p.t, err)
	_, err = journal.Begin(state, journal.Plan{Reason: archive.Adopt, Record: b, Parts: []journal.Part{{
		Root: ConfigRoot, Dir: p.tree, Stage: stage, Changes: manifest.Diff(local(p.t, p.tree, ""), local(p.t, p.src, ""))}}})
	must(p.t, err)
}

func TestJournalIsFinished(t *testing.T) {
	for name, session := range map[string]func(p *pair, begin func()){
		"before the session": func(p *pair, begin func()) {
			p.end()
			begin()
			p.open()
			if h := p.hello; len(h.Notices) != 1 || !strings.Contains(h.Notices[0], archive.Adopt) || h.Vector[someID] != 9 {
				p.t.Errorf("%+v", h)
			}
		},
		"in the session": func(_ *pair, begin func()) { begin() },
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, map[string]string{"a": "1", "b": "1"})
			session(p, func() { p.begun("adopted", vector.Vector{someID: 9}) })
			if d := p.compare(); d.Touched || d.Digest != local(t, p.src, "").Digest() {
				t.Errorf("%+v", d)
			}
			if r := p.record(); r.Vector[someID] != 9 {
				t.Errorf("%+v", r)
			}
			if _, err := os.Lstat(filepath.Join(hostIn(p.dir).StateDir, journal.Name)); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the journal: %v", err)
			}
			p.wantArchived()
		})
	}
}

func TestJournalOfAMasterIsLeftAlone(t *testing.T) {
	p := newPair(t, map[string]string{"a": "1"})
	must(t, status.Write(hostIn(p.dir).StatusFile, status.Master))
	p.begun("adopted", vector.Vector{someID: 9})
	p.compare()
	p.open()
	p.compare()
	if text, err := os.ReadFile(filepath.Join(p.tree, "a")); err != nil || string(text) != "1" {
		t.Errorf("%q, %v", text, err)
	}
	// Until it rules no more, and its daemon has ended.
	must(t, status.Write(hostIn(p.dir).StatusFile, status.Backup))
	unlock, err := ledger.Lock(t.Context(), hostIn(p.dir).StateDir)
	must(t, err)
	if _, err := p.Manifest(t.Context(), ConfigRoot); !errors.Is(err, ErrMaster) {
		t.Errorf("while its daemon is at work: %v", err)
	}
	unlock()
	p.compare()
	if text, err := os.ReadFile(filepath.Join(p.tree, "a")); err != nil || string(text) != "adopted" {
		t.Errorf("%q, %v", text, err)
	}
}

// What was changed by hand after the journal was begun is not lost.
func TestJournalArchivesWhatItMeets(t *testing.T) {
	p := newPair(t, map[string]string{"a": "1"})
	p.begun("adopted", vector.Vector{someID: 9})
	p.write("a", "touched")
	p.compare()
	p.wantArchived("a=touched")
}

func TestStateDirectoryCannotBeUsed(t *testing.T) {
	b := newBackup(t)
	b.write(hostIn(b.dir).StateDir, "a file")
	s := b.open("")
	if !strings.Contains(s.hello.Problem, "state") || len(s.hello.Roots) > 0 {
		t.Errorf("%+v", s.hello)
	}
	for name, f := range map[string]func(context.Context) error{
		"standing": func(ctx context.Context) error { _, err := s.Standing(ctx); return err },
		"renew":    func(ctx context.Context) error { _, err := s.Renew(ctx, ""); return err },
		"keep":     func(ctx context.Context) error { _, err := s.Keep(ctx, KeepRequest{ID: "1"}); return err },
	} {
		if err := f(t.Context()); err == nil || errors.Is(err, ErrClosed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What a master ruled last is what the backup that it becomes accounts for, but
// for what has changed since.
func TestRemember(t *testing.T) {
	files := map[string]string{"a": "1", "b": "1", "farm_state": "up"}
	p := strangers(t, files, files)
	state := hostIn(p.dir).StateDir
	must(t, os.Mkdir(state, 0o700))
	m := local(t, p.tree, "")
	must(t, ledger.Store(state, ledger.Record{ID: vector.NewID(), Machine: hostIn(p.dir).Machine, Vector: vector.Vector{someID: 1},
		Trees: map[string]ledger.Tree{ConfigRoot: {Digest: m.Digest(), Set: someSet}}}))
	must(t, Remember(state, ConfigRoot, m))
	p.write("farm_state", "down")
	p.open()
	if d := p.compare(); !d.Touched {
		t.Error("not touched")
	}
	p.change(map[string]string{"a": "2"})
	p.pushed(keepAs(archive.Repair), "a")
	p.wantArchived()
	p.pushed(keepAs(archive.Repair), "farm_state")
	p.wantArchived("farm_state=down")

	// An old one counts for nothing.
	p = newPair(t, files)
	p.end()
	must(t, Remember(hostIn(p.dir).StateDir, ConfigRoot, manifest.New()))
	p.write("farm_state", "down")
	p.open()
	p.compare()
	p.pushed(keepAs(archive.Repair), "a")
	p.wantArchived("a=1")
}
