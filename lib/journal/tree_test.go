package journal

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/skudonet/skudonet-ce-cluster/lib/fileset"
	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"github.com/skudonet/skudonet-ce-cluster/lib/scan"
)

// files describes a tree: by its path each file, "MODE OWNER = content", symlink,
// "-> target", or directory, "MODE OWNER". The owner is user and group.
type files map[string]string

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// write makes what is described in dir.
func (f files) write(t testing.TB, dir string) {
	t.Helper()
	must(t, os.MkdirAll(dir, 0o755))
	for _, path := range slices.Sorted(maps.Keys(f)) {
		at := filepath.Join(dir, path)
		attributes, content, isFile := strings.Cut(f[path], " = ")
		if target, is := strings.CutPrefix(f[path], "-> "); is {
			must(t, os.Symlink(target, at))
			continue
		}
		if isFile {
			must(t, os.WriteFile(at, []byte(content), 0o600))
		} else {
			must(t, os.MkdirAll(at, 0o700))
		}
		var mode uint32
		var owner int
		if _, err := fmt.Sscanf(attributes, "%o %d", &mode, &owner); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		must(t, os.Chown(at, owner, owner))
		must(t, syscall.Chmod(at, mode))
	}
}

// describe is what dir holds, with "." and with what no set has.
func describe(t testing.TB, dir string) files {
	t.Helper()
	f := files{}
	must(t, filepath.WalkDir(dir, func(at string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		path, _ := filepath.Rel(dir, at)
		var st syscall.Stat_t
		if err := syscall.Lstat(at, &st); err != nil {
			return err
		}
		f[path] = fmt.Sprintf("%04o %d", st.Mode&0o7777, st.Uid)
		switch d.Type() {
		case 0:
			b, err := os.ReadFile(at)
			f[path] += " = " + string(b)
			return err
		case fs.ModeSymlink:
			target, err := os.Readlink(at)
			f[path] = "-> " + target
			return err
		case fs.ModeDir:
		default:
			f[path] = d.Type().String()
		}
		return nil
	}))
	return f
}

// differ says where two trees differ; empty if they do not.
func differ(got, want files) string {
	var lines []string
	for path := range got {
		if w := want[path]; got[path] != w {
			lines = append(lines, fmt.Sprintf("%s is %.60q, want %.60q", path, got[path], w))
		}
	}
	for path := range want {
		if got[path] == "" {
			lines = append(lines, fmt.Sprintf("%s is missing", path))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// with is f but for changes. An empty one takes the path out.
func (f files) with(changes files) files {
	g := maps.Clone(f)
	for path, what := range changes {
		g[path] = what
		if what == "" {
			delete(g, path)
		}
	}
	return g
}

func manifestOf(t testing.TB, dir string, set *fileset.Set) *manifest.Manifest {
	t.Helper()
	tree := scan.New(scan.Root{Name: "config", Dir: dir, Set: set})
	_, err := tree.Scan(t.Context(), true)
	must(t, err)
	return tree.Manifest()
}

// world is a tree, what it is to become, and the state directory.
type world struct {
	testing.TB
	top, state, tree, stage string
	old, fresh              files
}

// newWorld makes the tree, and stages what makes it the fresh one.
func newWorld(t testing.TB, old, fresh files) *world {
	top := t.TempDir()
	return newWorldIn(t, top, top+"/tree", old, fresh)
}

func newWorldIn(t testing.TB, top, tree string, old, fresh files) *world {
	t.Helper()
	w := &world{TB: t, top: top, state: top + "/state", tree: tree, old: old, fresh: fresh}
	must(t, os.MkdirAll(w.state, 0o700))
	old.write(t, w.tree)
	fresh.write(t, w.wanted())
	var err error
	w.stage, err = StageFor(w.state, w.tree)
	must(t, err)
	return w
}

func (w *world) wanted() string { return w.top + "/wanted" }

// plan stages what is new and returns the plan.
func (w *world) plan() Plan {
	w.Helper()
	changes := manifest.Diff(manifestOf(w.TB, w.tree, fileset.New()), manifestOf(w.TB, w.wanted(), fileset.New()))
	for _, c := range changes {
		if c.To == nil || c.To.Kind == manifest.Dir {
			continue
		}
		at := filepath.Join(w.stage, c.Path)
		must(w.TB, os.MkdirAll(filepath.Dir(at), 0o700))
		if c.To.Kind == manifest.Link {
			must(w.TB, os.Symlink(c.To.Target, at))
			continue
		}
		b, err := os.ReadFile(filepath.Join(w.wanted(), c.Path))
		must(w.TB, err)
		must(w.TB, os.WriteFile(at, b, 0o600))
	}
	return Plan{Reason: "adopt", Record: []byte(`{"x":1}`), Parts: []Part{{Root: "config", Dir: w.tree, Stage: w.stage, Changes: changes}}}
}

func (w *world) begin() *Journal {
	w.Helper()
	j, err := Begin(w.state, w.plan())
	must(w.TB, err)
	return j
}

// unexpected fails the test if anything is replaced that the plan does not know of.
func (w *world) unexpected(_, path string, e manifest.Entry) error {
	w.Errorf("%s: %+v counts as unexpected", path, e)
	return nil
}

// end checks that the tree is the wanted one, and that nothing is left when the
// journal has ended.
func (w *world) end(j *Journal, want files) {
	w.Helper()
	if d := differ(describe(w.TB, w.tree), want); d != "" {
		w.Errorf("the tree:\n%s", d)
	}
	must(w.TB, j.End())
	if list, _ := os.ReadDir(w.state); len(list) > 0 {
		w.Errorf("left in the state directory: %v", list)
	}
	if _, err := os.Lstat(filepath.Dir(w.stage)); !os.IsNotExist(err) {
		w.Errorf("the stage: %v", err)
	}
}

// untouched checks that the tree is the old one and that there is no journal.
func (w *world) untouched() {
	w.Helper()
	if d := differ(describe(w.TB, w.tree), w.old); d != "" {
		w.Errorf("the tree was changed:\n%s", d)
	}
	if j, err := Pending(w.state, nil); j != nil || err != nil {
		w.Errorf("pending: %v, %v", j, err)
	}
}

var (
	before = files{
		".": "0755 0", "same": "0644 0 = same", "same.d": "0755 0", "same.d/x": "0600 7 = x",
		"content": "0644 0 = old", "mode": "0644 0 = mode", "owner": "4755 0 = owner", "gone": "0644 0 = gone",
		"gone.d": "0755 0", "gone.d/a": "0755 0", "gone.d/a/f": "0644 0 = f", "gone.d/l": "-> f",
		"link": "-> a", "link2file": "-> a", "link2dir": "-> same.d", "linkgone": "-> same",
		"file2link": "0644 0 = file", "file2dir": "0644 0 = file",
		"dir2file": "0755 0", "dir2file/a": "0755 0", "dir2file/a/b": "0644 0 = b", "dir2link": "0700 0", "dir2link/x": "0644 0 = x",
		"dmode": "0755 0", "dmode/f": "0644 0 = f", "downer": "2755 0", "downer/s": "0755 0", "dboth": "0755 0", "dsame": "0755 0", "dsame/f": "0644 0 = old",
	}
	after = files{
		".": "0750 5", "same": "0644 0 = same", "same.d": "0755 0", "same.d/x": "0600 7 = x",
		"content": "0644 0 = new content", "mode": "6711 0 = mode", "owner": "4755 9 = owner",
		"link": "-> b", "link2file": "0640 8 = file", "link2dir": "0755 0", "link2dir/f": "0644 0 = f",
		"file2link": "-> same", "file2dir": "0555 3", "file2dir/a": "3770 3", "file2dir/a/b": "0600 0 = b",
		"dir2file": "0644 0 = file", "dir2link": "-> same.d",
		"dmode": "0500 0", "dmode/f": "0644 0 = other", "downer": "2755 6", "downer/s": "0755 6", "dboth": "1777 4", "dsame": "0755 0", "dsame/f": "0644 0 = new",
		"new": "0600 1 = new", "new.d": "2750 2", "new.d/e": "0755 0", "new.d/l": "-> ../same", "new\n\xff": "0644 0 = odd", "empty": "0644 0 = ",
	}
)
