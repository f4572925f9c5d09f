package ledger

import (
	"context"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"github.com/skudonet/skudonet-ce-cluster/lib/vector"
)

func load(t *testing.T, dir, machine string) (Record, string) {
	t.Helper()
	r, notice, err := Load(dir, machine)
	if err != nil {
		t.Fatal(err)
	}
	return r, notice
}

func TestIdentityIsStable(t *testing.T) {
	dir := t.TempDir()
	first, notice := load(t, dir, "m1")
	if first.ID.Check() != nil || len(first.Vector) != 0 || notice != "" {
		t.Fatalf("%+v, %q", first, notice)
	}
	first.Vector = first.Vector.Raised(first.ID)
	first.Trees = map[string]Tree{"config": {manifest.Digest{1}, "all"}}
	if err := Store(dir, first); err != nil {
		t.Fatal(err)
	}
	again, notice := load(t, dir, "m1")
	if !reflect.DeepEqual(again, first) || notice != "" {
		t.Errorf("%+v, %q, want %+v", again, notice, first)
	}
	if !again.Holds("config", Tree{manifest.Digest{1}, "all"}) || again.Holds("config", Tree{manifest.Digest{1}, "some"}) ||
		again.Holds("config", Tree{manifest.Digest{2}, "all"}) || again.Holds("rt_tables", Tree{}) {
		t.Error("Holds is wrong")
	}
	info, err := os.Stat(filepath.Join(dir, Name))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

func TestCopiedDisk(t *testing.T) {
	dir := t.TempDir()
	first, _ := load(t, dir, "m1")
	first.Vector = first.Vector.Raised(first.ID)
	if err := Store(dir, first); err != nil {
		t.Fatal(err)
	}
	copied, notice := load(t, dir, "m2")
	if copied.ID == first.ID || !strings.Contains(notice, "copied") || copied.Vector.Compare(first.Vector) != vector.Equal {
		t.Errorf("%+v, %q", copied, notice)
	}
	if again, notice := load(t, dir, "m2"); again.ID != copied.ID || notice != "" {
		t.Errorf("the second time: %+v, %q", again, notice)
	}
}

func TestUnreadable(t *testing.T) {
	for _, text := range []string{"", "{", `{"id":"x"}`, `{"id":"0123456789abcdef0123456789abcdef","vector":{"y":1}}`} {
		dir := t.TempDir()
		path := filepath.Join(dir, Name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		r, notice := load(t, dir, "m1")
		if r.ID.Check() != nil || len(r.Vector) != 0 || !strings.Contains(notice, "cannot be understood") {
			t.Errorf("%q: %+v, %q", text, r, notice)
		}
		if kept, err := os.ReadFile(filepath.Join(dir, badName)); err != nil || string(kept) != text {
			t.Errorf("%q: kept %q, %v", text, kept, err)
		}
	}
}

func TestLock(t *testing.T) {
	dir := t.TempDir()
	unlock, err := Lock(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Lock(short, dir); err == nil {
		t.Error("two have the lock")
	}
	unlock()
	second, err := Lock(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	second()
}
