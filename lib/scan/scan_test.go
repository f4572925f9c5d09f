package scan

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/fileset"
	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"golang.org/x/sys/unix"
)

// tree is a directory to play with, and the Tree that looks at it.
type tree struct {
	*testing.T
	*Tree
	dir string
}

func newTree(t *testing.T, set *fileset.Set) *tree {
	dir := t.TempDir()
	return &tree{t, New(Root{Name: "config", Dir: dir, Set: set}), dir}
}

func (t *tree) path(name string) string { return filepath.Join(t.dir, name) }

func (t *tree) must(err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (t *tree) mkdir(names ...string) {
	t.Helper()
	for _, name := range names {
		t.must(os.MkdirAll(t.path(name), 0o755))
	}
}

func (t *tree) write(name, content string) {
	t.Helper()
	t.must(os.WriteFile(t.path(name), []byte(content), 0o644))
}

// changed checks what a Scan or Look said, and that it was without problems.
func (t *tree) changed(r Report, err error) func(want ...string) {
	t.Helper()
	if err != nil || len(r.Unreadable)+len(r.Special) > 0 {
		t.Fatalf("unreadable %v, special %v, error %v", r.Unreadable, r.Special, err)
	}
	return func(want ...string) {
		t.Helper()
		if !slices.Equal(r.Changed, want) {
			t.Fatalf("changed %q, want %q", r.Changed, want)
		}
	}
}

func (t *tree) scan() func(want ...string) { t.Helper(); return t.changed(t.Scan(t.Context(), false)) }
func (t *tree) look(paths ...string) func(want ...string) {
	t.Helper()
	return t.changed(t.Look(t.Context(), paths))
}

// agrees checks the manifest against what a new Tree sees.
func (t *tree) agrees() {
	t.Helper()
	fresh := New(t.Root())
	if _, err := fresh.Scan(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if d := manifest.Diff(t.Manifest(), fresh.Manifest()); len(d) > 0 || t.Manifest().Digest() != fresh.Manifest().Digest() {
		t.Fatalf("the manifest is not the tree: %v", d)
	}
	if len(t.memory) != t.Manifest().Len() {
		t.Fatalf("%d memories of %d entries", len(t.memory), t.Manifest().Len())
	}
}

func TestScan(tt *testing.T) {
	t := newTree(tt, fileset.New())
	hostile := []string{"-rf", "a\nb", "q'\"$`\\", "\xff\xfe", strings.Repeat("x", 255), " ", "*"}
	t.mkdir("d/e", "local")
	t.write("d/e/f", "content")
	t.must(os.Chmod(t.path("d/e/f"), 0o4751|os.ModeSetuid))
	t.must(os.Chown(t.path("d/e/f"), 12, 34))
	t.must(unix.Chmod(t.path("d/e/f"), 0o6751))
	t.must(os.Symlink("/etc", t.path("d/link")))
	t.must(os.Lchown(t.path("d/link"), 5, 6))
	t.write("local/mine", "x")
	t.write("if_eth0_conf", "x")
	for _, name := range hostile {
		t.write(name, name)
	}
	want := append([]string{".", "d", "d/e", "d/e/f", "d/link"}, hostile...)
	slices.Sort(want)
	t.scan()(want...)
	f, _ := t.Manifest().Get("d/e/f")
	if f != (manifest.Entry{Path: "d/e/f", Kind: manifest.File, Mode: 0o6751, UID: 12, GID: 34, Size: 7, Hash: sha256.Sum256([]byte("content"))}) {
		t.Errorf("file: %+v", f)
	}
	l, _ := t.Manifest().Get("d/link")
	if l != (manifest.Entry{Path: "d/link", Kind: manifest.Link, UID: 5, GID: 6, Target: "/etc"}) {
		t.Errorf("link: %+v", l)
	}
	t.scan()()
	t.must(os.Chmod(t.path("d"), 0o700))
	t.must(os.Chtimes(t.path("d/e"), time.Time{}, time.Now())) // times do not count
	t.write("d/e/f", "CONTENT")
	t.must(os.Remove(t.path("-rf")))
	t.scan()("-rf", "d", "d/e/f")
	t.must(os.RemoveAll(t.path("d")))
	t.write("d", "now a file")
	t.scan()("d", "d/e", "d/e/f", "d/link")
	t.must(os.Remove(t.path("d")))
	t.must(os.Symlink("local", t.path("d")))
	t.scan()("d")
	t.agrees()
	r, err := t.Look(t.Context(), []string{"../etc", "/etc", "", "d"})
	if err != nil || len(r.Changed) > 0 || len(r.Unreadable) != 3 {
		t.Errorf("paths outside: %+v, %v", r, err)
	}
}

func TestTooDeep(tt *testing.T) {
	t := newTree(tt, fileset.New())
	name := strings.Repeat("x", 250)
	at, err := unix.Open(t.dir, unix.O_PATH, 0)
	t.must(err)
	for range 20 {
		t.must(unix.Mkdirat(at, name, 0o755))
		next, err := unix.Openat(at, name, unix.O_PATH, 0)
		unix.Close(at)
		at = next
		t.must(err)
	}
	unix.Close(at)
	r, err := t.Scan(t.Context(), false)
	if err != nil || len(r.Changed) != 17 || len(r.Unreadable) != 1 || r.Unreadable[0].Err != unix.ENAMETOOLONG {
		t.Errorf("%d changed, unreadable %v, %v", len(r.Changed), r.Unreadable, err)
	}
	if _, err := t.Manifest().AppendBinary(nil); err != nil {
		t.Error(err)
	}
	// Asked for by its name, it is too long as long as it is there.
	below := r.Unreadable[0].Path + "/" + name
	if r, err := t.Look(t.Context(), []string{below, below + "/" + name}); err != nil || len(r.Unreadable) != 1 || r.Unreadable[0].Err != unix.ENAMETOOLONG {
		t.Errorf("too long: unreadable %v, %v", r.Unreadable, err)
	}
	t.must(os.RemoveAll(t.path(strings.Repeat(name+"/", 15))))
	if r, err := t.Look(t.Context(), []string{below}); err != nil || len(r.Unreadable) != 0 || len(r.Changed) != 2 {
		t.Errorf("removed: changed %d, unreadable %v, %v", len(r.Changed), r.Unreadable, err)
	}
}

func TestOnlyOneFile(tt *testing.T) {
	t := newTree(tt, fileset.Only("rt_tables"))
	t.write("rt_tables", "1 a\n")
	t.write("other", "")
	t.mkdir("rt_tables.d")
	t.write("rt_tables.d/x", "")
	t.scan()("rt_tables")
	t.look("other", "rt_tables.d/x", ".", "rt_tables.d")()
	t.must(os.Chmod(t.dir, 0o700))
	t.write("rt_tables", "2 b\n")
	t.look("rt_tables")("rt_tables")
	t.must(os.Remove(t.path("rt_tables")))
	t.look("rt_tables")("rt_tables")
}

// TestSameSizeSameTime rewrites files with the size and mtime that they had, at
// once after a scan read them: the clock's tick must not hide it.
func TestSameSizeSameTime(tt *testing.T) {
	t := newTree(tt, fileset.New())
	for i := range 200 {
		t.write("f", fmt.Sprintf("%04d", i))
		when := time.Unix(1e9, 0)
		t.must(os.Chtimes(t.path("f"), when, when))
		t.must(ignore(t.Scan(t.Context(), false)))
		e, _ := t.Manifest().Get("f")
		if e.Hash != sha256.Sum256(fmt.Appendf(nil, "%04d", i)) {
			t.Fatalf("round %d: the scan did not see the new content", i)
		}
	}
}

func ignore(_ Report, err error) error { return err }

// TestReadsNoMoreThanNeeded takes the memory of unchanged files as true, and
// does not with full, nor what is doubtful.
func TestReadsNoMoreThanNeeded(tt *testing.T) {
	t := newTree(tt, fileset.New())
	t.write("f", "true")
	t.scan()(".", "f")
	if !t.memory["f"].doubtful {
		t.Error("a file that was just written is trusted")
	}
	old, now := unix.Stat_t{Size: 4, Ctim: unix.NsecToTimespec(int64(time.Hour))}, time.Unix(0, int64(time.Hour))
	if newMemory(&old, now.Add(racy), 4).doubtful {
		t.Error("an old file is doubtful")
	}
	if !newMemory(&old, now.Add(racy-1), 4).doubtful || !newMemory(&old, now.Add(-time.Hour), 4).doubtful || !newMemory(&old, now.Add(time.Hour), 3).doubtful {
		t.Error("a file that may change without a trace is trusted")
	}
	// Make the tree believe something wrong about a file that looks the same.
	forge := func() {
		e, _ := t.Manifest().Get("f")
		e.Hash[0]++
		t.Manifest().Set(e)
		t.memory["f"].doubtful = false
	}
	forge()
	t.scan()()
	t.changed(t.Scan(t.Context(), true))("f")
	forge()
	t.look("f")("f")
	forge()
	t.memory["f"].doubtful = true
	t.scan()("f")
	for _, change := range []func(m *memory){
		func(m *memory) { m.inode++ }, func(m *memory) { m.size++ }, func(m *memory) { m.ctime++ }, func(m *memory) { m.mtime++ },
		func(m *memory) { m.mode++ }, func(m *memory) { m.uid++ }, func(m *memory) { m.gid++ },
	} {
		forge()
		change(t.memory["f"])
		t.scan()("f")
	}
}

// farm is an L4 farm's file with one backend.
func farm(state string) string {
	return fmt.Sprintf(`{"farms": [{"name": "f", "backends": [{"name": "bck0", "state": %q}]}]}`, state)
}

// TestMeaningIsHashed lets farmguardian take a backend out and put it back, and then an admin.
func TestMeaningIsHashed(tt *testing.T) {
	t := newTree(tt, fileset.New())
	t.mkdir("d")
	t.write("f_l4xnat.cfg", farm("up"))
	t.write("d/f_l4xnat.cfg", farm("up"))
	t.scan()(".", "d", "d/f_l4xnat.cfg", "f_l4xnat.cfg")
	before := t.Manifest().Digest()
	t.write("f_l4xnat.cfg", farm("down"))
	t.scan()()
	t.look("f_l4xnat.cfg")()
	t.changed(t.Scan(t.Context(), true))()
	if t.Manifest().Digest() != before {
		t.Error("another digest")
	}
	// It is read no more often than another file, though its size is not that of the entry.
	e, _ := t.Manifest().Get("f_l4xnat.cfg")
	if m := t.memory["f_l4xnat.cfg"]; m.size != int64(len(farm("down"))) || e.Size == m.size {
		t.Errorf("size %d remembered, %d of the entry", m.size, e.Size)
	}
	e.Hash[0]++
	t.Manifest().Set(e)
	t.memory["f_l4xnat.cfg"].doubtful = false
	t.scan()()
	t.look("f_l4xnat.cfg")("f_l4xnat.cfg")
	t.write("f_l4xnat.cfg", farm("off"))
	t.scan()("f_l4xnat.cfg")
	t.write("d/f_l4xnat.cfg", farm("down")) // not where Skudonet has its farms
	t.scan()("d/f_l4xnat.cfg")
	t.agrees()

	of := newTree(tt, fileset.New())
	of.root.Name = "rt_tables"
	of.write("f_l4xnat.cfg", farm("up"))
	of.scan()(".", "f_l4xnat.cfg")
	of.write("f_l4xnat.cfg", farm("down"))
	of.scan()("f_l4xnat.cfg")
}

func TestNote(tt *testing.T) {
	t := newTree(tt, fileset.New())
	t.write("f", "1")
	t.mkdir("d/e")
	t.scan()(".", "d", "d/e", "f")
	e, _ := t.Manifest().Get("f")
	e.Hash[0]++
	t.Note(e)
	if got, _ := t.Manifest().Get("f"); got != e {
		t.Error("Note is not noted")
	}
	t.scan()("f") // and not trusted
	t.Note(manifest.Entry{Path: "d", Kind: manifest.File})
	if _, known := t.Manifest().Get("d/e"); known {
		t.Error("something is below a file")
	}
	t.Note(manifest.Entry{Path: "never", Kind: manifest.Link, Target: "x"})
	t.scan()("d", "d/e", "never")
	t.agrees()
}

func TestLook(tt *testing.T) {
	t := newTree(tt, fileset.New())
	t.scan()(".")
	t.mkdir("a/b/c")
	t.write("a/b/c/f", "1")
	t.write("a/other", "1")
	t.look("a/b/c/f")("a", "a/b", "a/b/c", "a/b/c/f") // new parents enter, their other content not yet
	t.look("a")("a/other")
	t.write("a/b/c/f", "2")
	t.write("a/other", "2")
	t.look("a/other")("a/other")
	t.look(".")("a/b/c/f")
	t.look("nothing", "a/b/c/f/below", "a/nothing/below")()
	t.must(os.Rename(t.path("a/b"), t.path("z")))
	t.look("a/b/c/f")("a/b", "a/b/c", "a/b/c/f")
	t.look("z")("z", "z/c", "z/c/f")
	// A directory that became a symlink to it: nothing is below.
	t.must(os.Rename(t.path("z"), t.path("y")))
	t.must(os.Symlink("y", t.path("z")))
	t.look("z/c/f", "y")("y", "y/c", "y/c/f", "z", "z/c", "z/c/f")
	if e, _ := t.Manifest().Get("z"); e.Kind != manifest.Link {
		t.Errorf("%+v", e)
	}
	t.must(os.RemoveAll(t.path("y")))
	t.write("y", "")
	t.look("y/c")("y", "y/c", "y/c/f")
	t.must(os.Remove(t.path("y")))
	t.mkdir("y/c")
	t.look("y/c")("y", "y/c")
	t.must(os.RemoveAll(t.path("y")))
	t.must(unix.Mkfifo(t.path("y"), 0o600))
	r, err := t.Look(t.Context(), []string{"y/c"})
	if err != nil || !slices.Equal(r.Changed, []string{"y", "y/c"}) || len(r.Special) != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	t.must(os.Remove(t.path("y")))
	t.agrees()
}

func TestLookAtHardLinks(tt *testing.T) {
	t := newTree(tt, fileset.New())
	t.mkdir("d")
	t.write("f", "1")
	t.write("other", "1")
	t.scan()(".", "d", "f", "other")
	t.must(os.Link(t.path("f"), t.path("d/g")))
	t.look("d/g")("d/g")
	t.write("f", "2") // in place
	t.look("f")("d/g", "f")
	e, _ := t.Manifest().Get("f")
	t.Note(e)
	t.write("d/g", "3")
	t.look("d/g")("d/g", "f")
	// Changed by a name that has gone, or has another file.
	t.write("f", "4")
	t.must(os.Remove(t.path("f")))
	t.look("f")("d/g", "f")
	t.must(os.Link(t.path("d/g"), t.path("h")))
	t.look("h")("h")
	t.write("h", "5")
	t.must(os.Remove(t.path("h")))
	t.write("h", "another")
	t.look("h")("d/g", "h")
	t.must(os.Remove(t.path("d/g")))
	t.look("h")() // alone by now
	t.look("d")("d/g")
	t.agrees()
}

func TestExcludedKind(tt *testing.T) {
	list, _, err := fileset.ParseList("--exclude=cache/ --exclude=*.tmp", nil)
	if err != nil {
		tt.Fatal(err)
	}
	t := newTree(tt, fileset.New(list))
	t.mkdir("d/cache")
	t.write("d/cache/x", "")
	t.write("d/y.tmp", "")
	t.scan()(".", "d")
	t.look("d/cache/x", "d/cache", "d/y.tmp", "d")()
	t.must(os.RemoveAll(t.path("d/cache")))
	t.write("d/cache", "a file is not excluded")
	t.look("d/cache/x")("d/cache")
	t.must(os.Remove(t.path("d/cache")))
	t.mkdir("d/cache")
	t.look("d/cache")("d/cache")
	t.agrees()
}

func TestSpecial(tt *testing.T) {
	t := newTree(tt, fileset.New())
	t.must(unix.Mkfifo(t.path("fifo"), 0o600))
	l, err := net.Listen("unix", t.path("socket"))
	t.must(err)
	defer l.Close()
	t.must(unix.Mknod(t.path("device"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
	t.mkdir("local")
	t.must(unix.Mkfifo(t.path("local/fifo"), 0o600))
	for range 2 { // named every time
		r, err := t.Scan(t.Context(), true)
		var got []string
		for _, p := range r.Special {
			got = append(got, fmt.Sprintf("%s: %v", p.Path, p.Err))
		}
		want := []string{
			"device: not a file, directory or symlink: a device",
			"fifo: not a file, directory or symlink: a FIFO",
			"socket: not a file, directory or symlink: a socket",
		}
		if err != nil || !slices.Equal(got, want) || len(r.Unreadable) > 0 || t.Manifest().Len() != 1 {
			t.Fatalf("%q, %+v, %v", got, r, err)
		}
	}
	r, err := t.Look(t.Context(), []string{"fifo", "fifo", "fifo/x"})
	if err != nil || len(r.Special) != 1 {
		t.Errorf("%+v, %v", r, err)
	}
}

// asNobody runs f without root's rights over files.
func asNobody(t *tree, f func()) {
	t.Helper()
	for dir := t.dir; dir != "/"; dir = filepath.Dir(dir) {
		if info, err := os.Stat(dir); err == nil && info.Mode()&1 == 0 {
			t.must(os.Chmod(dir, info.Mode()|0o755))
		}
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	_, err := unix.SetfsuidRetUid(65534)
	t.must(err)
	defer unix.SetfsuidRetUid(0)
	f()
}

func TestUnreadableIsNotDeleted(tt *testing.T) {
	if os.Getuid() != 0 {
		tt.Skip("needs root")
	}
	t := newTree(tt, fileset.New())
	t.mkdir("closed/in", "listed/in")
	t.write("closed/in/f", "1")
	t.write("listed/in/f", "1")
	t.write("f", "1")
	t.write("g", "1")
	asNobody(t, func() {
		t.scan()(".", "closed", "closed/in", "closed/in/f", "f", "g", "listed", "listed/in", "listed/in/f")
		before := t.Manifest().Digest()
		t.must(os.NewSyscallError("", restricted(t)))
		for _, look := range []func() (Report, error){
			func() (Report, error) { return t.Scan(t.Context(), false) },
			func() (Report, error) { return t.Scan(t.Context(), true) },
			func() (Report, error) { return t.Look(t.Context(), []string{"f", "closed", "listed", "g"}) },
		} {
			r, err := look()
			var got []string
			for _, p := range r.Unreadable {
				if !errors.Is(p.Err, unix.EACCES) {
					t.Errorf("%+v", p)
				}
				got = append(got, p.Path)
			}
			if err != nil || !slices.Equal(got, []string{"closed", "f", "listed/in"}) {
				t.Fatalf("unreadable %q, %v", got, err)
			}
		}
		if _, known := t.Manifest().Get("f"); known {
			t.Error("a file that cannot be read is in the manifest")
		}
		if got, want := t.Manifest().Below("closed"), []string{"closed/in", "closed/in/f"}; !slices.Equal(got, want) {
			t.Errorf("below a closed directory there is %q, want %q", got, want)
		}
		if got, want := t.Manifest().Below("listed"), []string{"listed/in", "listed/in/f"}; !slices.Equal(got, want) {
			t.Errorf("below a directory whose files cannot be examined there is %q, want %q", got, want)
		}
		r, err := t.Look(t.Context(), []string{"closed/in/f"})
		if err != nil || len(r.Changed) > 0 || len(r.Unreadable) != 1 || r.Unreadable[0].Path != "closed" {
			t.Errorf("below a closed directory: %+v, %v", r, err)
		}
		unix.SetfsuidRetUid(0)
		t.must(os.Chmod(t.path("f"), 0o644))
		t.must(os.Chmod(t.path("closed"), 0o755))
		t.must(os.Chmod(t.path("listed"), 0o755))
		unix.SetfsuidRetUid(65534)
		t.scan()("closed", "f", "listed")
		if t.Manifest().Digest() != before {
			t.Error("not as before")
		}
		// The root's directory itself.
		unix.SetfsuidRetUid(0)
		t.must(os.Chmod(t.dir, 0))
		unix.SetfsuidRetUid(65534)
		if r, err := t.Scan(t.Context(), false); err == nil || len(r.Changed) > 0 || t.Manifest().Digest() != before {
			t.Errorf("a closed root: %+v, %v", r, err)
		}
	})
	t.must(os.Chmod(t.dir, 0o755))
}

// restricted takes rights away: a file, a directory, and one that can be listed
// but not searched.
func restricted(t *tree) error {
	unix.SetfsuidRetUid(0)
	defer unix.SetfsuidRetUid(65534)
	return errors.Join(os.Chmod(t.path("f"), 0o600), os.Chmod(t.path("closed"), 0o700), os.Chmod(t.path("listed"), 0o744))
}

func TestRootGone(tt *testing.T) {
	t := newTree(tt, fileset.New())
	t.mkdir("d")
	t.write("d/f", "")
	t.scan()(".", "d", "d/f")
	t.must(os.RemoveAll(t.dir))
	for range 2 {
		r, err := t.Scan(t.Context(), true)
		if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), t.dir) || len(r.Changed) > 0 {
			t.Fatalf("%+v, %v", r, err)
		}
		if _, err = t.Look(t.Context(), []string{"d"}); err == nil || t.Manifest().Len() != 3 {
			t.Fatalf("Look: %v, %d entries left", err, t.Manifest().Len())
		}
	}
	t.mkdir(".")
	t.scan()("d", "d/f")
}

func TestAnchor(tt *testing.T) {
	dir := tt.TempDir()
	t := &tree{tt, New(Root{Name: "config", Dir: dir, Set: fileset.New(), Anchor: "global.conf"}), dir}
	t.write("f", "1")
	r, err := t.Scan(tt.Context(), false)
	if !errors.Is(err, ErrAnchor) || len(r.Changed) > 0 || t.Manifest().Len() > 0 {
		tt.Errorf("%v, %v", r, err)
	}
	t.must(os.Mkdir(t.path("global.conf"), 0o755))
	if _, err := t.Scan(tt.Context(), false); !errors.Is(err, ErrAnchor) {
		tt.Error(err)
	}
	t.must(os.Remove(t.path("global.conf")))
	t.write("global.conf", "")
	t.scan()(".", "f", "global.conf")
	t.must(os.Remove(t.path("f")))
	t.must(os.Remove(t.path("global.conf")))
	if _, err := t.Look(tt.Context(), []string{"f"}); !errors.Is(err, ErrAnchor) {
		tt.Error(err)
	}
	if _, ok := t.Manifest().Get("f"); !ok {
		tt.Error("what is not the tree was looked at")
	}
}

func TestContextEnds(tt *testing.T) {
	t := newTree(tt, fileset.New())
	t.write("f", "")
	t.scan()(".", "f")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	t.must(os.Remove(t.path("f")))
	if _, err := t.Scan(ctx, false); !errors.Is(err, context.Canceled) && err == nil {
		t.Errorf("Scan: %v", err)
	}
	t.write("big", "")
	t.must(os.Truncate(t.path("big"), 1<<42))
	ctx, cancel = context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := t.Scan(ctx, false); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a scan that reads a file of 4 TB: %v", err)
	}
	if _, known := t.Manifest().Get("big"); known {
		t.Error("a file that was not read to its end is known")
	}
}

func TestGrowingFileEnds(tt *testing.T) {
	t := newTree(tt, fileset.New())
	f, err := os.Create(t.path("log"))
	t.must(err)
	defer f.Close()
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	wg.Go(func() {
		line := []byte(strings.Repeat("x", 4096))
		for size := 0; ctx.Err() == nil && size < 16<<20; size += len(line) {
			f.Write(line)
		}
	})
	for range 10 {
		t.must(ignore(t.Look(t.Context(), []string{"log"})))
		e, _ := t.Manifest().Get("log")
		h := sha256.New()
		h.Write([]byte(strings.Repeat("x", int(e.Size))))
		if e.Hash != manifest.Hash(h.Sum(nil)) {
			t.Fatal("size and hash do not belong together")
		}
	}
	cancel()
	wg.Wait()
	t.must(ignore(t.Scan(t.Context(), false)))
	t.agrees()
}

// TestRestlessTree lets a directory turn into a symlink that leads outside and
// back all the time: nothing of the outside may ever enter.
func TestRestlessTree(tt *testing.T) {
	t := newTree(tt, fileset.New())
	outside := t.TempDir()
	t.must(os.MkdirAll(outside+"/e", 0o755))
	t.must(os.WriteFile(outside+"/e/secret", []byte("outside"), 0o644))
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		random := rand.New(rand.NewPCG(1, 1))
		for ctx.Err() == nil {
			at := t.path("d")
			switch random.IntN(5) {
			case 0:
				os.MkdirAll(at+"/e", 0o755)
				os.WriteFile(at+"/e/f", []byte("inside"), 0o644)
			case 1:
				os.Symlink(outside, at)
			case 2:
				os.WriteFile(at, nil, 0o644)
			case 3:
				unix.Mkfifo(at, 0o644)
			case 4:
				os.MkdirAll(at, 0o755)
				os.Symlink(outside+"/e", at+"/e")
			}
			runtime.Gosched()
			os.RemoveAll(at)
		}
	})
	paths := []string{"d/e/secret", "d/e", "d", "d/e/f", "."}
	for i := range 3000 {
		r, err := t.Look(t.Context(), paths[i%len(paths):][:1])
		if err != nil {
			t.Error(err)
			break
		}
		for _, p := range r.Unreadable {
			if p.Err != errUnsteady {
				t.Errorf("%+v", p)
			}
		}
		if _, known := t.Manifest().Get("d/e/secret"); known {
			t.Error("the scan followed a symlink")
			break
		}
	}
	cancel()
	wg.Wait()
	t.must(ignore(t.Scan(t.Context(), false)))
	t.agrees()
}

// TestAgainstFreshScan makes random changes and looks only at what was changed.
func TestAgainstFreshScan(tt *testing.T) {
	t := newTree(tt, fileset.New())
	random := rand.New(rand.NewPCG(3, 4))
	name := func() string {
		p := []string{}
		for range 1 + random.IntN(3) {
			p = append(p, []string{"a", "b", "c d", "-"}[random.IntN(4)])
		}
		return strings.Join(p, "/")
	}
	for round := range 300 {
		var touched []string
		for range 1 + random.IntN(6) {
			a, b := name(), name()
			switch random.IntN(7) {
			case 0:
				os.WriteFile(t.path(a), []byte(b), 0o644)
			case 1:
				os.MkdirAll(t.path(a), 0o755)
				touched = append(touched, strings.Split(a, "/")[0]) // as the watcher reports a new directory
			case 2:
				os.RemoveAll(t.path(a))
			case 3:
				os.Rename(t.path(a), t.path(b))
			case 4:
				os.Symlink(b, t.path(a))
			case 5:
				os.Chmod(t.path(a), os.FileMode(0o600+random.IntN(0o200)))
				touched = append(touched, ".")
			case 6:
				os.Lchown(t.path(a), random.IntN(3), random.IntN(3))
			}
			touched = append(touched, a, b)
		}
		if _, err := t.Look(t.Context(), touched); err != nil {
			t.Fatal(err)
		}
		if round%3 == 0 {
			t.must(ignore(t.Scan(t.Context(), false)))
		}
		t.agrees()
	}
}

// TestLargeTree changes something of every kind in a tree that is surveyed by two at a time.
func TestLargeTree(tt *testing.T) {
	t := &tree{tt, many(tt, few+200, 100), ""}
	t.dir = t.root.Dir
	t.must(os.Symlink("/etc", t.path("link")))
	t.write("directory-3/f_l4xnat.cfg", "x")
	for i := range 50 {
		t.mkdir(fmt.Sprintf("deep/%d/empty", i))
		t.write(fmt.Sprintf("deep/%d/f", i), "1")
	}
	t.must(ignore(t.Scan(t.Context(), false)))
	t.agrees()
	t.scan()()
	time.Sleep(2 * racy) // nothing is doubtful any more
	t.scan()()
	t.scan()()
	file := func(i int) string { return fmt.Sprintf("directory-%d/some-farm-%d_proxy.cfg", i/100, i) }
	want := []string{file(0), file(110), "directory-11", "link", "deep/7", "deep/7/empty", "deep/7/f", "deep/8/f", "deep/9", "deep/new", "deep/new/f", "new"}
	for i := 1100; i < 1200; i++ {
		want = append(want, file(i))
	}
	t.write(file(0), "changed")
	t.must(os.Chmod(t.path(file(110)), 0o600))
	t.must(os.RemoveAll(t.path("directory-11")))
	t.write("directory-11", "a file now")
	t.must(os.Remove(t.path("link")))
	t.must(os.Symlink("/usr", t.path("link")))
	t.must(os.RemoveAll(t.path("deep/7")))
	t.must(os.Remove(t.path("deep/8/f")))
	t.must(os.Symlink("f", t.path("deep/8/f")))
	t.must(os.Chmod(t.path("deep/9"), 0o700))
	t.mkdir("deep/new")
	t.write("deep/new/f", "1")
	t.write("new", "1")
	slices.Sort(want)
	t.scan()(want...)
	t.scan()()
	t.agrees()
	t.must(unix.Mkfifo(t.path("directory-5/fifo"), 0o600))
	if r, err := t.Scan(t.Context(), false); err != nil || len(r.Changed) > 0 || len(r.Special) != 1 || r.Special[0].Path != "directory-5/fifo" {
		t.Errorf("a FIFO: %+v, %v", r, err)
	}
	t.must(os.Remove(t.path("directory-5/fifo")))
	if open, err := os.ReadDir("/proc/self/fd"); err != nil || len(open) > 50 {
		t.Errorf("%d files are open, %v", len(open), err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	before := t.Manifest().Digest()
	if r, err := t.Scan(ctx, false); !errors.Is(err, context.Canceled) || len(r.Changed) > 0 || t.Manifest().Digest() != before {
		t.Errorf("a scan that is over before it begins: %+v, %v", r, err)
	}
}

// TestRestlessLargeTree scans while directories come, go and turn into symlinks that lead outside.
func TestRestlessLargeTree(tt *testing.T) {
	t := &tree{tt, many(tt, few+200, 20), ""}
	t.dir = t.root.Dir
	outside := t.TempDir()
	t.must(os.WriteFile(outside+"/secret", []byte("outside"), 0o644))
	t.must(ignore(t.Scan(t.Context(), false)))
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		random := rand.New(rand.NewPCG(5, 6))
		for ctx.Err() == nil {
			at, away := t.path(fmt.Sprintf("directory-%d", random.IntN(20))), t.path("away")
			if os.Rename(at, away) != nil {
				continue
			}
			os.Symlink(outside, at)
			runtime.Gosched()
			os.Remove(at)
			os.Rename(away, at)
		}
	})
	for range 30 {
		if _, err := t.Scan(t.Context(), false); err != nil {
			t.Error(err)
			break
		}
		for e := range t.Manifest().All() {
			if strings.HasSuffix(e.Path, "secret") {
				t.Error("the scan followed a symlink to", e.Path)
			}
		}
	}
	cancel()
	wg.Wait()
	t.must(ignore(t.Scan(t.Context(), false)))
	t.agrees()
}

// many makes n small files, so many in a directory.
func many(tb testing.TB, n, together int) *Tree {
	tb.Helper()
	dir := tb.TempDir()
	for i := range n {
		d := fmt.Sprintf("%s/directory-%d", dir, i/together)
		if i%together == 0 {
			if err := os.Mkdir(d, 0o755); err != nil {
				tb.Fatal(err)
			}
		}
		if err := os.WriteFile(fmt.Sprintf("%s/some-farm-%d_proxy.cfg", d, i), fmt.Appendf(nil, "######## file %d ########\n", i), 0o644); err != nil {
			tb.Fatal(err)
		}
	}
	return New(Root{Name: "config", Dir: dir, Set: fileset.New()})
}

// processor is the time that all threads of this process have used.
func processor(tb testing.TB) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkScan asks for the digest of a whole tree in which one file has changed.
func BenchmarkScan(b *testing.B) {
	for _, of := range []struct {
		name        string
		n, together int
		full        bool
	}{
		{"300", 300, 20, false}, {"20000", 20000, 20, false}, {"20000 in one directory", 20000, 20000, false},
		{"20000 full", 20000, 20, true},
	} {
		t := many(b, of.n, of.together)
		time.Sleep(racy)
		if _, err := t.Scan(b.Context(), false); err != nil {
			b.Fatal(err)
		}
		b.Run(of.name, func(b *testing.B) {
			began, i := processor(b), 0
			for b.Loop() {
				i++
				if err := os.WriteFile(t.root.Dir+"/directory-0/some-farm-7_proxy.cfg", fmt.Append(nil, i), 0o644); err != nil {
					b.Fatal(err)
				}
				before := t.Manifest().Digest()
				if _, err := t.Scan(b.Context(), of.full); err != nil || t.Manifest().Digest() == before {
					b.Fatal("no change seen", err)
				}
			}
			b.ReportMetric(float64((processor(b)-began).Microseconds())/1e3/float64(b.N), "CPU-ms/op")
		})
	}
}

// BenchmarkMemory is what a Tree of 20,000 files keeps.
func BenchmarkMemory(b *testing.B) {
	root := many(b, 20000, 20).root
	var before, after runtime.MemStats
	var kept uint64
	for b.Loop() {
		runtime.GC()
		runtime.ReadMemStats(&before)
		t := New(root)
		if _, err := t.Scan(b.Context(), false); err != nil {
			b.Fatal(err)
		}
		t.Manifest().Below("nothing")
		runtime.GC()
		runtime.ReadMemStats(&after)
		kept = after.HeapAlloc - before.HeapAlloc
		runtime.KeepAlive(t)
	}
	b.ReportMetric(float64(kept)/1e6, "MB")
}

func BenchmarkLook(b *testing.B) {
	t := many(b, 20000, 20)
	if _, err := t.Scan(b.Context(), false); err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	for b.Loop() {
		if _, err := t.Look(b.Context(), []string{"directory-7/some-farm-140_proxy.cfg"}); err != nil {
			b.Fatal(err)
		}
	}
}
