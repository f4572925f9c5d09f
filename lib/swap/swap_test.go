package swap

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/skudonet/skudonet-ce-cluster/lib/archive"
	"github.com/skudonet/skudonet-ce-cluster/lib/journal"
	"github.com/skudonet/skudonet-ce-cluster/lib/ledger"
	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"github.com/skudonet/skudonet-ce-cluster/lib/meaning"
	"github.com/skudonet/skudonet-ce-cluster/lib/vector"
)

// ground is a node with a tree of the files a and b.
type ground struct {
	*testing.T
	Node
	tree   string
	record ledger.Record
	owed   int
	full   error // of Store
}

func newGround(t *testing.T) *ground {
	g := &ground{T: t, tree: filepath.Join(t.TempDir(), "config")}
	g.StateDir = t.TempDir()
	g.must(os.Mkdir(g.tree, 0o755))
	var err error
	g.Archives, err = archive.Open(g.StateDir)
	g.must(err)
	g.Store = func(r ledger.Record) error {
		if g.full == nil {
			g.record = r
		}
		return g.full
	}
	g.Owe = func() error { g.owed++; return nil }
	for _, name := range []string{"a", "b"} {
		g.must(os.WriteFile(filepath.Join(g.tree, name), []byte("old "+name), 0o644))
	}
	return g
}

func (g *ground) must(err error) {
	g.Helper()
	if err != nil {
		g.Fatal(err)
	}
}

func (g *ground) entry(dir, name string) *manifest.Entry {
	g.Helper()
	f, err := os.Open(filepath.Join(dir, name))
	g.must(err)
	defer f.Close()
	e := &manifest.Entry{Path: name, Kind: manifest.File, Mode: 0o644}
	e.Hash, e.Size, err = meaning.Read("config", name, f)
	g.must(err)
	return e
}

// plan replaces a and removes b, and makes the record one of the vector v.
func (g *ground) plan(reason string, v vector.Vector) journal.Plan {
	g.Helper()
	stage, err := journal.StageFor(g.StateDir, g.tree)
	g.must(err)
	g.must(os.WriteFile(filepath.Join(stage, "a"), []byte("new a"), 0o644))
	record, err := json.Marshal(ledger.Record{ID: vector.NewID(), Vector: v})
	g.must(err)
	return journal.Plan{Reason: reason, Record: record, Parts: []journal.Part{{Root: "config", Dir: g.tree, Stage: stage, Changes: []manifest.Change{
		{Path: "a", From: g.entry(g.tree, "a"), To: g.entry(stage, "a")},
		{Path: "b", From: g.entry(g.tree, "b")},
	}}}}
}

func (g *ground) replaced() bool {
	text, err := os.ReadFile(filepath.Join(g.tree, "a"))
	_, gone := os.Stat(filepath.Join(g.tree, "b"))
	return err == nil && string(text) == "new a" && errors.Is(gone, fs.ErrNotExist)
}

func TestWhatIsReplacedIsRecordedAndOwed(t *testing.T) {
	for reason, owed := range map[string]int{archive.Adopt: 1, archive.Conflict: 1, archive.Restore: 0} {
		g := newGround(t)
		v := vector.Vector{vector.NewID(): 3}
		problems, err := g.Do(t.Context(), g.plan(reason, v))
		g.must(err)
		if !g.replaced() || g.record.Vector.Compare(v) != vector.Equal || g.owed != owed || problems != nil {
			t.Errorf("%s: replaced %v, %v recorded, owed %d times, %v", reason, g.replaced(), g.record.Vector, g.owed, problems)
		}
		if reason, _, err := g.Recover(t.Context()); reason != "" || err != nil {
			t.Errorf("%s is left to be finished: %v", reason, err)
		}
	}
}

func TestWhatCannotBeRecordedIsFinishedLater(t *testing.T) {
	g := newGround(t)
	g.full = errors.New("no space left on device")
	if _, err := g.Do(t.Context(), g.plan(archive.Adopt, vector.Vector{vector.NewID(): 3})); !errors.Is(err, g.full) || g.owed != 0 {
		t.Fatalf("%v, owed %d times", err, g.owed)
	}
	g.full = nil
	reason, _, err := g.Recover(t.Context())
	if reason != archive.Adopt || err != nil || len(g.record.Vector) != 1 || g.owed != 1 || !g.replaced() {
		t.Errorf("%q, %v, recorded %v, owed %d times", reason, err, g.record.Vector, g.owed)
	}
}

func TestWhatCameInTheWayIsArchived(t *testing.T) {
	g := newGround(t)
	plan := g.plan(archive.Adopt, nil)
	g.must(os.WriteFile(filepath.Join(g.tree, "b"), []byte("edited meanwhile"), 0o644))
	_, err := g.Do(t.Context(), plan)
	g.must(err)
	all, err := g.Archives.List()
	g.must(err)
	if !g.replaced() || len(all) != 1 {
		t.Fatalf("replaced %v, %d archives", g.replaced(), len(all))
	}
	dir, _, err := g.Archives.Tree(all[0], "config")
	g.must(err)
	if text, err := os.ReadFile(filepath.Join(dir, "b")); string(text) != "edited meanwhile" {
		t.Errorf("%q, %v", text, err)
	}
}

func TestNothingToReplace(t *testing.T) {
	g := newGround(t)
	v := vector.Vector{vector.NewID(): 1}
	record, err := json.Marshal(ledger.Record{Vector: v})
	g.must(err)
	_, err = g.Do(t.Context(), journal.Plan{Reason: archive.Adopt, Record: record})
	g.must(err)
	if g.record.Vector.Compare(v) != vector.Equal || g.owed != 0 {
		t.Errorf("recorded %v, owed %d times", g.record.Vector, g.owed)
	}
}
