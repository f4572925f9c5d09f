package journal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/skudonet/skudonet-ce-cluster/lib/fileset"
	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"golang.org/x/sys/unix"
)

func TestEveryKindOfChange(t *testing.T) {
	for _, tt := range []struct {
		name       string
		old, fresh files
	}{
		{"there", before, after},
		{"and back", after, before},
		{"from nothing", files{".": "0755 0"}, after},
		{"to nothing", before, files{".": "0755 0"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, tt.old, tt.fresh)
			j := w.begin()
			for range 2 { // the second one has nothing to do
				problems, err := j.Apply(t.Context(), w.unexpected)
				if err != nil || len(problems) > 0 {
					t.Fatalf("%v, %v", problems, err)
				}
			}
			w.end(j, tt.fresh)
		})
	}
}

func TestManyFiles(t *testing.T) {
	old, fresh := files{".": "0755 0"}, files{".": "0755 0"}
	for i := range 3 * few {
		dir := fmt.Sprintf("d%d", i)
		old[dir], fresh[dir] = "0755 0", "0755 0"
		old[dir+"/f"], fresh[dir+"/f"] = "0644 0 = old", "0644 0 = new"
		fresh[dir+"/new"] = "0644 0 = new"
	}
	w := newWorld(t, old, fresh)
	j := w.begin()
	if problems, err := j.Apply(t.Context(), w.unexpected); err != nil || len(problems) > 0 {
		t.Fatalf("%v, %v", problems, err)
	}
	w.end(j, fresh)
}

func TestTwoRoots(t *testing.T) {
	w := newWorld(t, before, after)
	rt := w.top + "/iproute2"
	files{".": "0755 0", "rt_tables": "0644 0 = old", "other": "0644 0 = other"}.write(t, rt)
	from := manifestOf(t, rt, fileset.Only("rt_tables"))
	stage, err := StageFor(w.state, rt)
	must(t, err)
	must(t, os.WriteFile(stage+"/rt_tables", []byte("new"), 0o600))
	must(t, os.Mkdir(w.top+"/rt", 0o755))
	must(t, os.WriteFile(w.top+"/rt/rt_tables", []byte("new"), 0o644))
	plan := w.plan()
	plan.Parts = append(plan.Parts, Part{Root: "rt_tables", Dir: rt, Stage: stage,
		Changes: manifest.Diff(from, manifestOf(t, w.top+"/rt", fileset.Only("rt_tables")))})
	_, err = Begin(w.state, plan)
	must(t, err)

	j, err := Pending(w.state, nil)
	must(t, err)
	if j.Plan.Reason != "adopt" || string(j.Plan.Record) != `{"x":1}` || len(j.Plan.Parts) != 2 || j.Plan.Parts[1].Root != "rt_tables" || j.Plan.Parts[1].Dir != rt {
		t.Errorf("pending is %+v", j.Plan)
	}
	if problems, err := j.Apply(t.Context(), w.unexpected); err != nil || len(problems) > 0 {
		t.Fatalf("%v, %v", problems, err)
	}
	if d := differ(describe(t, rt), files{".": "0755 0", "rt_tables": "0644 0 = new", "other": "0644 0 = other"}); d != "" {
		t.Error(d)
	}
	w.end(j, after)
}

func TestBeginRefuses(t *testing.T) {
	hash := func(_, _ string, r io.Reader) (manifest.Hash, int64, error) {
		return manifest.Hash{}, 0, errors.New("cannot be hashed")
	}
	entry := func(path string, k manifest.Kind) *manifest.Entry {
		return &manifest.Entry{Path: path, Kind: k, Mode: 0o755}
	}
	add := func(c manifest.Change) func(*world, *Plan) {
		return func(_ *world, p *Plan) { p.Parts[0].Changes = append(p.Parts[0].Changes, c) }
	}
	write := func(text string) func(*world, *Plan) {
		return func(w *world, _ *Plan) { must(w.TB, os.WriteFile(w.stage+"/f", []byte(text), 0o600)) }
	}
	instead := func(make func(path string) error) func(*world, *Plan) {
		return func(w *world, _ *Plan) {
			must(w.TB, os.Remove(w.stage+"/f"))
			must(w.TB, make(w.stage+"/f"))
		}
	}
	for _, tt := range []struct {
		name  string
		spoil func(*world, *Plan)
		want  string
	}{
		{"other content", write("neW"), `"f": is not the file that it should be`},
		{"cut short", write("ne"), `"f": is not the file that it should be: 2 bytes`},
		{"missing", instead(func(string) error { return nil }), `"f": no such file`},
		{"a directory", instead(func(p string) error { return os.Mkdir(p, 0o700) }), `"f": not a file`},
		{"a symlink to the right content", instead(func(p string) error { return os.Symlink("../../wanted/f", p) }), `"f": not a file`},
		{"a FIFO", instead(func(p string) error { return unix.Mkfifo(p, 0o600) }), `"f": not a file`},
		{"another name of a file", func(w *world, _ *Plan) { must(w.TB, os.Link(w.stage+"/f", w.top+"/f")) }, "other names"},
		{"a link elsewhere", func(w *world, _ *Plan) {
			must(w.TB, os.Remove(w.stage+"/d/l"))
			must(w.TB, os.Symlink("/etc", w.stage+"/d/l"))
		}, `"d/l": leads to "/etc": want "f"`},
		{"a file for a link", func(w *world, _ *Plan) {
			must(w.TB, os.Remove(w.stage+"/d/l"))
			must(w.TB, os.WriteFile(w.stage+"/d/l", nil, 0o600))
		}, `"d/l": not a symlink`},
		{"through a link", func(w *world, _ *Plan) {
			must(w.TB, os.Rename(w.stage+"/d", w.top+"/d"))
			must(w.TB, os.Symlink(w.top+"/d", w.stage+"/d"))
		}, `"d/l": not a directory`},
		{"hash fails", func(_ *world, p *Plan) { p.Hash = hash }, "cannot be hashed"},
		{"no tree", func(w *world, _ *Plan) { must(w.TB, os.Rename(w.tree, w.tree+".away")) }, "tree: no such file"},
		{"relative", func(_ *world, p *Plan) { p.Parts[0].Dir = "tree" }, "absolute"},
		{"no stage", func(w *world, p *Plan) { p.Parts[0].Stage = w.wanted() }, "not a stage"},
		{"a root twice", func(_ *world, p *Plan) { p.Parts = append(p.Parts, p.Parts[0]) }, "twice"},
		{"a path twice", add(manifest.Change{Path: "f", To: entry("f", manifest.Dir)}), "twice"},
		{"outside", add(manifest.Change{Path: "../x", To: entry("../x", manifest.Dir)}), `path "../x"`},
		{"outside, removed", add(manifest.Change{Path: "../tree", From: entry("../tree", manifest.Dir)}), `path "../tree"`},
		{"absolute", add(manifest.Change{Path: "/x", From: entry("/x", manifest.File)}), `path "/x"`},
		{"no change", add(manifest.Change{Path: "x"}), `"x": not a change`},
		{"of another path", add(manifest.Change{Path: "x", From: entry("y", manifest.Dir)}), `"x": not a change`},
		{"unknown kind", add(manifest.Change{Path: "x", To: entry("x", 'p')}), "kind"},
		{"no top", add(manifest.Change{Path: ".", From: entry(".", manifest.Dir)}), "cannot be removed"},
		{"below a file", add(manifest.Change{Path: "f/x", To: entry("f/x", manifest.Dir)}), `"f" is to be no directory`},
		{"record", func(_ *world, p *Plan) { p.Record = []byte("{") }, "JSON"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, files{".": "0755 0", "f": "0644 0 = old"},
				files{".": "0755 0", "f": "0644 0 = new", "d": "0755 0", "d/l": "-> f"})
			plan := w.plan()
			tt.spoil(w, &plan)
			j, err := Begin(w.state, plan)
			if j != nil || err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("%v, want %q", err, tt.want)
			}
			if _, err := os.Lstat(w.tree); err != nil {
				must(t, os.Rename(w.tree+".away", w.tree))
			}
			w.untouched()
			must(t, Undo(w.state, w.stage))
			if _, err := os.Lstat(filepath.Dir(w.stage)); !os.IsNotExist(err) {
				t.Errorf("the stage is still there: %v", err)
			}
		})
	}
}

func TestOnlyOne(t *testing.T) {
	w := newWorld(t, before, after)
	plan := w.plan()
	j, err := Begin(w.state, plan)
	must(t, err)
	if _, err := Begin(w.state, plan); !errors.Is(err, ErrPending) {
		t.Errorf("a second Begin: %v", err)
	}
	if _, err := StageFor(w.state, w.tree); !errors.Is(err, ErrPending) {
		t.Errorf("another stage: %v", err)
	}
	if err := Undo(w.state, w.stage); !errors.Is(err, ErrPending) {
		t.Errorf("Undo: %v", err)
	}
	if err := j.End(); err == nil {
		t.Error("ended before it was applied")
	}
	if _, err := j.Apply(t.Context(), w.unexpected); err != nil {
		t.Fatal(err)
	}
	w.end(j, after)
}

func TestUndoRemovesStagesOnly(t *testing.T) {
	w := newWorld(t, before, after)
	for _, path := range []string{w.tree, "/", w.stage + "/..", w.stage + "/x", ""} {
		if err := Undo(w.state, path); err == nil {
			t.Errorf("%q is taken for a stage", path)
		}
	}
	w.untouched()
}

func TestMeaning(t *testing.T) {
	// What stands for a file is its first line.
	first := func(root, path string, r io.Reader) (manifest.Hash, int64, error) {
		if root != "config" || path != "f" && path != "g" {
			t.Errorf("asked for the hash of %s %s", root, path)
		}
		b, err := io.ReadAll(r)
		line, _, _ := strings.Cut(string(b), "\n")
		h, n, _ := Hash(nil).of(root, path, strings.NewReader(line))
		return h, n, err
	}
	entry := func(path, line string) *manifest.Entry {
		h, n, _ := first("config", path, strings.NewReader(line))
		return &manifest.Entry{Path: path, Kind: manifest.File, Mode: 0o644, Size: n, Hash: h}
	}
	w := newWorld(t, files{".": "0755 0", "f": "0644 0 = old\nstate", "g": "0644 0 = new\nours"}, files{})
	for _, name := range []string{"f", "g"} {
		must(t, os.WriteFile(w.stage+"/"+name, []byte("new\ntheirs"), 0o600))
	}
	_, err := Begin(w.state, Plan{Hash: first, Parts: []Part{{Root: "config", Dir: w.tree, Stage: w.stage, Changes: []manifest.Change{
		{Path: "f", From: entry("f", "old"), To: entry("f", "new")},
		{Path: "g", From: entry("g", "old"), To: entry("g", "new")}, // somebody was faster
	}}}})
	must(t, err)
	j, err := Pending(w.state, first)
	must(t, err)
	if problems, err := j.Apply(t.Context(), w.unexpected); err != nil || len(problems) > 0 {
		t.Fatalf("%v, %v", problems, err)
	}
	w.end(j, files{".": "0755 0", "f": "0644 0 = new\ntheirs", "g": "0644 0 = new\nours"})
}

func TestChangedSincePlanned(t *testing.T) {
	w := newWorld(t, before, after)
	j := w.begin()
	edits := files{
		"content": "0644 0 = theirs", "mode": "0600 0 = mode", "gone": "0644 0 = kept?", "new": "0644 0 = came",
		"link": "-> elsewhere", "file2dir": "0644 0 = edited", "gone.d/a/f": "-> x", "dboth": "0711 0", "gone.d": "0777 0",
		"file2link": "0755 0", "new.d": "0644 0 = a file", "dir2file": "0644 0 = one already",
		"owner":    "4755 9 = owner",                                              // as wanted
		"linkgone": "", "mode ": "", "dir2link/x": "", "dir2link": "", "same": "", // gone already; same is not in the plan
	}
	now := before.with(edits).with(files{"dir2file/a": "", "dir2file/a/b": ""})
	must(t, os.RemoveAll(w.tree))
	now.write(t, w.tree)

	got := map[string]string{}
	replaced := func(root, path string, e manifest.Entry) error {
		if there, known := describe(t, w.tree)[path]; root != "config" || !known {
			t.Errorf("%s %s is gone when it is told", root, path)
		} else {
			got[path] = there
		}
		return nil
	}
	problems, err := j.Apply(t.Context(), replaced)
	if err != nil || len(problems) > 0 {
		t.Fatalf("%v, %v", problems, err)
	}
	want := files{}
	for _, path := range []string{"content", "mode", "gone", "new", "link", "file2dir", "gone.d/a/f", "dboth", "gone.d", "file2link", "new.d", "dir2file"} {
		want[path] = edits[path]
	}
	if d := differ(got, want); d != "" {
		t.Errorf("told before it was replaced:\n%s", d)
	}
	w.end(j, after.with(files{"same": ""}))
}

func TestReplacedFails(t *testing.T) {
	w := newWorld(t, before, after)
	j := w.begin()
	must(t, os.WriteFile(w.tree+"/content", []byte("theirs"), 0o644))
	full := errors.New("the archive is full")
	if _, err := j.Apply(t.Context(), func(string, string, manifest.Entry) error { return full }); !errors.Is(err, full) {
		t.Fatalf("%v, want %v", err, full)
	}
	if b, _ := os.ReadFile(w.tree + "/content"); string(b) != "theirs" {
		t.Errorf("it is now %q", b)
	}
	if j.End() == nil {
		t.Error("ended")
	}
	if problems, err := j.Apply(t.Context(), nil); err != nil || len(problems) > 0 {
		t.Fatalf("%v, %v", problems, err)
	}
	w.end(j, after)
}

// TestEditedWhileTold changes a file after it was archived.
func TestEditedWhileTold(t *testing.T) {
	w := newWorld(t, before, after)
	j := w.begin()
	must(t, os.WriteFile(w.tree+"/content", []byte("1"), 0o644))
	var told []string
	replaced := func(_, path string, _ manifest.Entry) error {
		b, err := os.ReadFile(w.tree + "/" + path)
		told = append(told, string(b))
		if len(told) == 1 {
			return errors.Join(err, os.WriteFile(w.tree+"/content", []byte("22"), 0o644))
		}
		return err
	}
	if problems, err := j.Apply(t.Context(), replaced); err != nil || len(problems) > 0 || !slices.Equal(told, []string{"1", "22"}) {
		t.Fatalf("told %q, %v, %v", told, problems, err)
	}
	w.end(j, after)
}

func TestWhatIsNotInThePlan(t *testing.T) {
	w := newWorld(t, before, after)
	j := w.begin()
	for _, path := range []string{"gone.d/a/if_eth0_conf", "dir2file/a/local.txt", "dir2link/if_eth1_conf"} {
		must(t, os.WriteFile(w.tree+"/"+path, []byte("ours"), 0o600))
	}
	must(t, os.Remove(w.tree+"/content"))
	must(t, unix.Mkfifo(w.tree+"/content", 0o600))
	must(t, os.Remove(w.tree+"/gone"))
	must(t, unix.Mkfifo(w.tree+"/gone", 0o600))
	outside := w.top + "/outside"
	must(t, os.Rename(w.tree+"/dsame", outside))
	must(t, os.Symlink(outside, w.tree+"/dsame"))
	must(t, os.RemoveAll(w.tree+"/dmode"))

	problems, err := j.Apply(t.Context(), nil)
	must(t, err)
	want := map[string]string{
		"gone.d": "holds \"a\"", "gone.d/a": "holds \"if_eth0_conf\"", "dir2file": "holds \"a\"", "dir2file/a": "holds \"local.txt\"", "dir2link": "holds \"if_eth1_conf\"",
		"content": "a FIFO", "dsame/f": "gone",
	}
	for _, p := range problems {
		if w := want[p.Path]; w == "" || p.Root != "config" || !strings.Contains(p.Err.Error(), w) {
			t.Errorf("%s: %v, want %q", p.Path, p.Err, w)
		}
		delete(want, p.Path)
	}
	if len(want) > 0 {
		t.Errorf("nothing about %v", want)
	}
	if d := differ(describe(t, outside), files{".": "0755 0", "f": "0644 0 = old"}); d != "" {
		t.Errorf("outside of the tree:\n%s", d)
	}
	w.end(j, after.with(files{
		"gone.d": "0755 0", "gone.d/a": "0755 0", "gone.d/a/if_eth0_conf": "0600 0 = ours",
		"dir2file": "0755 0", "dir2file/a": "0755 0", "dir2file/a/local.txt": "0600 0 = ours",
		"dir2link": "0700 0", "dir2link/if_eth1_conf": "0600 0 = ours",
		"content": "p---------", "gone": "p---------", "dsame": "-> " + outside, "dsame/f": "",
	}))
}

// TestEditedAfterwards: what an admin does after a path was put in place is not
// undone by who finishes the rest.
func TestEditedAfterwards(t *testing.T) {
	w := newWorld(t, before, after)
	j := w.begin()
	_, err := j.Apply(t.Context(), w.unexpected)
	must(t, err)
	must(t, os.WriteFile(w.tree+"/content", []byte("edited"), 0o644))
	j, err = Pending(w.state, nil)
	must(t, err)
	problems, err := j.Apply(t.Context(), w.unexpected)
	if err != nil || len(problems) != 1 || problems[0].Path != "content" || !strings.Contains(problems[0].Err.Error(), "left as it is") {
		t.Errorf("%v, %v", problems, err)
	}
	w.end(j, after.with(files{"content": "0644 0 = edited"}))
}

func TestCancelled(t *testing.T) {
	w := newWorld(t, before, after)
	j := w.begin()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	defer func() { Step = nil }()
	Step = func(name string) {
		if strings.HasPrefix(name, "rename") {
			cancel()
		}
	}
	if _, err := j.Apply(ctx, w.unexpected); !errors.Is(err, context.Canceled) {
		t.Fatalf("%v, want %v", err, context.Canceled)
	}
	Step = nil
	if problems, err := j.Apply(t.Context(), w.unexpected); err != nil || len(problems) > 0 {
		t.Fatalf("%v, %v", problems, err)
	}
	w.end(j, after)
}

// TestVanished: a tree or a stage that is not there is a file system that is not
// mounted. Nothing is taken for done or gone.
func TestVanished(t *testing.T) {
	w := newWorld(t, before, after)
	j := w.begin()
	for _, dir := range []string{w.tree, w.stage} {
		must(t, os.Rename(dir, dir+".away"))
		if problems, err := j.Apply(t.Context(), w.unexpected); err == nil || !strings.Contains(err.Error(), "mounted") {
			t.Errorf("without %s: %v, %v", dir, problems, err)
		}
		must(t, os.Rename(dir+".away", dir))
		if d := differ(describe(t, w.tree), before); d != "" {
			t.Errorf("without %s:\n%s", dir, d)
		}
	}
	if problems, err := j.Apply(t.Context(), w.unexpected); err != nil || len(problems) > 0 {
		t.Fatalf("%v, %v", problems, err)
	}
	w.end(j, after)
}

func TestUnreadableJournal(t *testing.T) {
	w := newWorld(t, before, after)
	w.begin()
	path := w.state + "/" + Name
	whole, err := os.ReadFile(path)
	must(t, err)
	for name, text := range map[string]string{
		"empty":           "",
		"cut short":       string(whole[:len(whole)/2]),
		"another version": strings.Replace(string(whole), `"version":1`, `"version":2`, 1),
		"no manifest":     strings.Replace(string(whole), `"to":"`, `"to":"AAAA`, 1),
	} {
		must(t, os.WriteFile(path, []byte(text), 0o600))
		if j, err := Pending(w.state, nil); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, %v", name, j, err)
		}
	}
	must(t, os.WriteFile(path, whole, 0o600))
	if j, err := Pending(w.state, nil); err != nil || len(j.Plan.Parts) != 1 {
		t.Errorf("the rows above are wrong for another reason than they say: %v", err)
	}
}

func BenchmarkChange300Files(b *testing.B) {
	old, fresh := files{".": "0755 0"}, files{".": "0755 0"}
	for i := range 300 {
		path := fmt.Sprintf("farm-%d.cfg", i)
		old[path], fresh[path] = "0644 0 = "+strings.Repeat("old", 500), "0644 0 = "+strings.Repeat("new", 500)
	}
	w := newWorld(b, old, fresh)
	for b.Loop() {
		b.StopTimer()
		var err error
		w.stage, err = StageFor(w.state, w.tree)
		must(b, err)
		plan := w.plan()
		b.StartTimer()
		j, err := Begin(w.state, plan)
		must(b, err)
		problems, err := j.Apply(b.Context(), nil)
		if err != nil || len(problems) > 0 {
			b.Fatalf("%v, %v", problems, err)
		}
		must(b, j.End())
		b.StopTimer()
		old, fresh = fresh, old
		must(b, os.RemoveAll(w.wanted()))
		fresh.write(b, w.wanted())
		b.StartTimer()
	}
}
