package journal

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// small mounts a file system with little space.
func small(t *testing.T, dir, options string) {
	t.Helper()
	must(t, os.MkdirAll(dir, 0o755))
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Skipf("no mount: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
}

// fill writes to a file until the file system is full.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4<<10))
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
}

func TestStateDirectoryFull(t *testing.T) {
	top := t.TempDir()
	small(t, top+"/state", "size=64k")
	w := newWorldIn(t, top, top+"/tree", before, after)
	fill(t, w.state+"/fill")
	if _, err := Begin(w.state, w.plan()); !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), w.state) || !strings.Contains(err.Error(), "nothing was changed") {
		t.Fatalf("%v, want %v", err, unix.ENOSPC)
	}
	w.untouched()
	if list, _ := os.ReadDir(w.state); len(list) != 1 {
		t.Errorf("left in the state directory: %v", list)
	}
	must(t, Undo(w.state, w.stage))
	must(t, os.Remove(w.state+"/fill"))
	var err error
	w.stage, err = StageFor(w.state, w.tree)
	must(t, err)
	j := w.begin()
	if problems, err := j.Apply(t.Context(), w.unexpected); err != nil || len(problems) > 0 {
		t.Fatalf("%v, %v", problems, err)
	}
	w.end(j, after)
}

// TestStageFull: a file that was staged as far as the space went is not taken.
func TestStageFull(t *testing.T) {
	top := t.TempDir()
	small(t, top+"/disk", "size=64k")
	w := newWorldIn(t, top, top+"/disk/tree", files{".": "0755 0", "f": "0644 0 = old"}, files{".": "0755 0", "f": "0644 0 = " + strings.Repeat("x", 128<<10)})
	stage := w.stage
	w.stage = top + "/elsewhere"
	plan := w.plan()
	w.stage, plan.Parts[0].Stage = stage, stage
	fill(t, stage+"/f")
	_, err := Begin(w.state, plan)
	if err == nil || !strings.Contains(err.Error(), `"f": is not the file`) {
		t.Errorf("%v", err)
	}
	w.untouched()
	must(t, Undo(w.state, w.stage))
}

// TestTreeFull has no room for another directory. The rest is done when there is.
func TestTreeFull(t *testing.T) {
	top := t.TempDir()
	small(t, top+"/disk", "size=1m,nr_inodes=64")
	fresh := files{".": "0755 0", "d": "0750 3", "d/f": "0644 0 = f", "z": "0644 0 = new"}
	w := newWorldIn(t, top, top+"/disk/tree", files{".": "0755 0", "z": "0644 0 = old"}, fresh)
	j := w.begin()
	must(t, os.Mkdir(top+"/disk/fill", 0o755))
	var err error
	for i := 0; err == nil; i++ {
		err = os.WriteFile(fmt.Sprintf("%s/disk/fill/%d", top, i), nil, 0o600)
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	if problems, err := j.Apply(t.Context(), w.unexpected); !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), `"d"`) || len(problems) > 0 {
		t.Fatalf("%v, %v, want %v", problems, err, unix.ENOSPC)
	}
	if j.End() == nil {
		t.Error("ended")
	}
	must(t, os.RemoveAll(top+"/disk/fill"))
	if problems, err := j.Apply(t.Context(), w.unexpected); err != nil || len(problems) > 0 {
		t.Fatalf("%v, %v", problems, err)
	}
	w.end(j, fresh)
}

// What changes in a tree with something mounted at "in".
var (
	mounted = files{".": "0755 0", "f": "0644 0 = old", "in": "0755 0", "in/f": "0644 0 = old", "in/gone": "0644 0 = gone", "in/l": "-> a", "in/k": "0644 0 = k"}
	remade  = files{".": "0755 0", "f": "0644 0 = new", "in": "0755 0", "in/f": "4755 7 = new", "in/l": "-> b", "in/d": "0755 0", "in/d/f": "0644 0 = f", "in/k": "-> k"}
)

// TestMounts has a tree that is a file system of its own, and another one
// mounted in it.
func TestMounts(t *testing.T) {
	top := t.TempDir()
	tree := top + "/tree"
	small(t, tree, "size=1m,mode=755")
	small(t, tree+"/in", "size=1m,mode=755")
	w := newWorldIn(t, top, tree, mounted, remade)
	if !strings.HasPrefix(w.stage, tree+"/") {
		t.Fatalf("staged at %s", w.stage)
	}
	j := w.begin()
	must(t, os.WriteFile(tree+"/in/.skudonet-ce-cluster.new", []byte("cut short"), 0o600))
	for range 2 {
		if problems, err := j.Apply(t.Context(), w.unexpected); err != nil || len(problems) > 0 {
			t.Fatalf("%v, %v", problems, err)
		}
	}
	must(t, j.End())
	if d := differ(describe(t, tree), remade); d != "" {
		t.Error(d)
	}
	if err := unix.Unmount(tree+"/in", 0); err != nil {
		t.Errorf("still in use: %v", err)
	}
}
