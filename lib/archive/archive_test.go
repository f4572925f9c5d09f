package archive

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/fileset"
	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"github.com/skudonet/skudonet-ce-cluster/lib/scan"
	"github.com/skudonet/skudonet-ce-cluster/lib/vector"
)

// The test binary is also a writer that is killed.
func TestMain(m *testing.M) {
	if dir := os.Getenv("ARCHIVE_TEST_DIR"); dir != "" {
		s, err := Open(dir)
		if err == nil {
			var w *Writer
			if w, err = s.Begin(conflict()); err == nil {
				err = w.Add("config", filepath.Join(dir, "tree"), "file")
			}
		}
		fmt.Println("ready", err)
		unix.Pause()
	}
	os.Exit(m.Run())
}

var made = time.Date(2026, 11, 22, 6, 53, 1, 123e6, time.UTC)

func conflict() Info {
	id := vector.NewID()
	return Info{Made: made, Reason: Conflict, Peer: "192.168.1.251", Holds: Ours, Waiting: true, Whole: true, ID: "c1",
		Ours: vector.Vector{id: 3}, Theirs: vector.Vector{vector.NewID(): 7}}
}

func because(reason string) Info { return Info{Made: made, Reason: reason, Holds: Ours} }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// place is a state directory, and a tree beside it.
type place struct {
	*testing.T
	*Store
	state, tree string
}

func newPlace(t *testing.T) *place {
	t.Helper()
	dir := t.TempDir()
	p := &place{T: t, state: filepath.Join(dir, "state"), tree: filepath.Join(dir, "tree")}
	must(t, os.Mkdir(p.tree, 0o755))
	p.open()
	return p
}

func (p *place) open() {
	p.Helper()
	s, err := Open(p.state)
	must(p.T, err)
	p.Store = s
}

func (p *place) write(path, text string) {
	p.Helper()
	path = filepath.Join(p.tree, path)
	must(p.T, os.MkdirAll(filepath.Dir(path), 0o755))
	must(p.T, os.WriteFile(path, []byte(text), 0o644))
}

func (p *place) begin(i Info) *Writer {
	p.Helper()
	w, err := p.Begin(i)
	must(p.T, err)
	p.Cleanup(w.Abort)
	return w
}

// archive makes one of some paths of the tree.
func (p *place) archive(i Info, paths ...string) Info {
	p.Helper()
	w := p.begin(i)
	for _, path := range paths {
		must(p.T, w.Add("config", p.tree, path))
	}
	i, err := w.Commit()
	must(p.T, err)
	return i
}

func (p *place) names() []string {
	p.Helper()
	list, err := p.List()
	must(p.T, err)
	return namesOf(list)
}

func namesOf(list []Info) []string {
	names := []string{}
	for _, i := range list {
		names = append(names, i.Name)
	}
	return names
}

// on is what lies in the archives' directory, under whatever name.
func (p *place) on() []string {
	p.Helper()
	list, err := os.ReadDir(filepath.Join(p.state, Dir))
	must(p.T, err)
	names := []string{}
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

// entries are those of a directory as it is.
func entries(t *testing.T, dir string) map[string]manifest.Entry {
	t.Helper()
	tree := scan.New(scan.Root{Dir: dir, Set: fileset.New()})
	r, err := tree.Scan(t.Context(), true)
	must(t, err)
	if len(r.Unreadable) > 0 {
		t.Fatal(r.Unreadable)
	}
	return of(tree.Manifest())
}

func of(m *manifest.Manifest) map[string]manifest.Entry {
	all := map[string]manifest.Entry{}
	for e := range m.All() {
		all[e.Path] = e
	}
	return all
}

// holds tells that an archive holds want and nothing else: in what it says, and on the disk.
func (p *place) holds(i Info, want map[string]manifest.Entry) {
	p.Helper()
	dir, m, err := p.Tree(i, "config")
	must(p.T, err)
	if got := of(m); !maps.Equal(got, want) {
		p.Errorf("the manifest has\n%v\nwant\n%v", got, want)
	}
	there := entries(p.T, dir)
	for path, e := range want {
		if there[path] != e {
			p.Errorf("%q is %+v, want %+v", path, there[path], e)
		}
	}
}

// A whole tree comes out as it went in, whatever is in it.
func TestWholeTree(t *testing.T) {
	p := newPlace(t)
	p.write("global.conf", "$a=1;\n")
	p.write("empty", "")
	p.write("certificates/web.pem", strings.Repeat("key", 500_000))
	p.write("odd/with\nnewline", "1")
	p.write("odd/\xff\xfe not utf-8", "2")
	p.write("odd/ -rf *", "3")
	p.write("modes/secret", "4")
	p.write("modes/setuid", "5")
	p.write("modes/none", "6")
	for path, mode := range map[string]uint32{"modes/secret": 0o600, "modes/setuid": 0o4755, "modes/none": 0, "modes": 0o1770, "certificates": 0o500} {
		if strings.HasSuffix(path, "setuid") {
			must(t, os.Chown(filepath.Join(p.tree, path), 33, 34))
		}
		must(t, unix.Chmod(filepath.Join(p.tree, path), mode))
	}
	must(t, os.Symlink("/etc/passwd", p.tree+"/absolute"))
	must(t, os.Symlink("nowhere", p.tree+"/odd/dangling"))
	must(t, os.Lchown(p.tree+"/odd/dangling", 7, 8))
	must(t, os.Mkdir(p.tree+"/nothing in it", 0o711))
	must(t, os.Chown(p.tree, 9, 10))
	want := entries(t, p.tree)
	must(t, unix.Mkfifo(p.tree+"/fifo", 0o600))

	w := p.begin(conflict())
	for path := range want {
		must(t, w.Add("config", p.tree, path))
	}
	for _, path := range []string{"fifo", "gone", "gone/too", "empty/not a directory", "absolute/x"} {
		if err := w.Add("config", p.tree, path); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	must(t, w.Add("rt_tables", p.tree, "gone"))
	i, err := w.Commit()
	must(t, err)
	p.holds(i, want)
	if _, _, err := p.Tree(i, "rt_tables"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a root of which nothing was kept: %v", err)
	}

	// 5 directories, 1 empty file, 7 small ones, 1,500,000 bytes, 2 symlinks.
	if i.Name != "2026-11-22T065301.123Z-conflict" || i.Files != 11 || i.Bytes != 5*block+7*block+367*block || i.Roots["config"] != len(want) {
		t.Errorf("%+v, of %d entries", i, len(want))
	}
	list, err := p.List()
	if err != nil || len(list) != 1 || !reflect.DeepEqual(list[0], i) {
		t.Errorf("listed: %+v, %v; want %+v", list, err, i)
	}
	if info, err := os.Stat(filepath.Join(p.state, Dir)); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the archives are %v, %v", info.Mode(), err)
	}
	// Whoever opens it next has it private again.
	must(t, os.Chmod(filepath.Join(p.state, Dir), 0o755))
	p.open()
	if info, err := os.Stat(filepath.Join(p.state, Dir)); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the archives are %v, %v", info.Mode(), err)
	}
	// It is a copy: what happens to the tree does not touch it.
	must(t, os.Truncate(p.tree+"/global.conf", 0))
	p.holds(i, want)
}

// Only what was added is in it, and a link above a path is not followed.
func TestOnlyWhatWasAdded(t *testing.T) {
	p := newPlace(t)
	p.write("farm/a", "1")
	p.write("farm/b", "2")
	must(t, os.Chmod(p.tree+"/farm", 0o750))
	must(t, os.Symlink("farm", p.tree+"/link"))
	all := entries(t, p.tree)
	i := p.archive(because(Repair), "farm/a", "link/b")
	p.holds(i, map[string]manifest.Entry{"farm/a": all["farm/a"]})
	dir, _, err := p.Tree(i, "config")
	must(t, err)
	if got := entries(t, dir); len(got) != 3 || got["farm"] != all["farm"] {
		t.Errorf("on the disk are %v", got)
	}
}

func TestRefused(t *testing.T) {
	p := newPlace(t)
	p.write("file", "x")
	for _, i := range []Info{
		{Reason: "because", Holds: Ours}, {Reason: Repair}, {Reason: Repair, Holds: Ours, Waiting: true, ID: "1"}, {Reason: Conflict, Holds: Ours, Waiting: true},
		{Reason: Repair, Holds: Ours, Peer: "a\x1b[2J"}, {Reason: Repair, Holds: Ours, Ours: vector.Vector{"x": 1}},
	} {
		if w, err := p.Begin(i); err == nil {
			w.Abort()
			t.Errorf("%+v is accepted", i)
		}
	}
	for _, of := range [][2]string{{"config", "../file"}, {"config", "/etc/passwd"}, {"config", ""}, {"../x", "file"}, {"", "file"}, {"a.manifest", "file"}} {
		w := p.begin(because(Repair))
		if err := w.Add(of[0], p.tree, of[1]); err == nil {
			t.Errorf("%q is accepted", of)
		}
		w.Abort()
	}
	w := p.begin(because(Repair))
	if err := w.Add("config", p.tree+"/none", "file"); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a tree that is not there: %v", err)
	}
	if i, err := w.Commit(); err == nil {
		t.Errorf("committed after that: %+v", i)
	}
	if on := p.on(); len(on) > 0 {
		t.Errorf("left behind: %q", on)
	}
}

// A path that is added again is kept once, and never lost for another state of it.
func TestAddedTwice(t *testing.T) {
	p := newPlace(t)
	p.write("file", "first")
	p.write("dir/below", "x")
	first := entries(t, p.tree)
	w := p.begin(because(Repair))
	add := func(path string) error { return w.Add("config", p.tree, path) }
	for _, path := range []string{"file", "dir/below", "file", "dir"} {
		must(t, add(path))
	}
	p.write("file", "later")
	if err := add("file"); !errors.Is(err, ErrHeld) {
		t.Errorf("another content: %v", err)
	}
	must(t, os.RemoveAll(p.tree+"/dir"))
	must(t, add("dir"))
	p.write("dir", "a file by now")
	if err := add("dir"); !errors.Is(err, ErrHeld) {
		t.Errorf("a file in place of a directory: %v", err)
	}
	must(t, os.Remove(p.tree+"/file"))
	must(t, add("file"))
	p.write("file/below", "y")
	if err := add("file/below"); !errors.Is(err, ErrHeld) {
		t.Errorf("a directory in place of a file: %v", err)
	}
	i, err := w.Commit()
	must(t, err)
	delete(first, ".")
	p.holds(i, first)
}

// A file that somebody writes to while it is copied is archived as it was at one
// moment, or not at all.
func TestFileThatChanges(t *testing.T) {
	p := newPlace(t)
	const size = 4 << 20
	p.write("file", string(make([]byte, size)))
	f, err := os.OpenFile(p.tree+"/file", os.O_WRONLY, 0)
	must(t, err)
	defer f.Close()

	// One that is open and rests is copied.
	i := p.archive(because(Repair), "file")
	p.holds(i, map[string]manifest.Entry{"file": entries(t, p.tree)["file"]})

	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for n := uint64(1); ; n++ {
			select {
			case <-end:
				return
			default:
				count := binary.LittleEndian.AppendUint64(nil, n)
				f.WriteAt(count, 0)
				f.WriteAt(count, size-8)
			}
		}
	}()
	w := p.begin(because(Repair))
	err = w.Add("config", p.tree, "file")
	close(end)
	<-ended
	if err != nil {
		if !strings.Contains(err.Error(), "being written") {
			t.Error(err)
		}
		return
	}
	i, err = w.Commit()
	must(t, err)
	dir, _, err := p.Tree(i, "config")
	must(t, err)
	b, err := os.ReadFile(dir + "/file")
	must(t, err)
	if len(b) != size {
		t.Fatalf("%d bytes", len(b))
	}
	if begin, end := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[size-8:]); begin-end > 1 {
		t.Errorf("%d at the beginning, %d at the end: it never was like that", begin, end)
	}
}

// Where the disk is full, nothing is listed, and the space is there again.
func TestFullDisk(t *testing.T) {
	p := newPlace(t)
	must(t, unix.Mount("tmpfs", p.state, "tmpfs", 0, "size=1m"))
	t.Cleanup(func() { unix.Unmount(p.state, unix.MNT_DETACH) })
	p.open()
	p.write("small", "x")
	p.write("large", strings.Repeat("x", 2<<20))
	kept := p.archive(because(Repair), "small")
	free := func() uint64 {
		var st unix.Statfs_t
		must(t, unix.Statfs(p.state, &st))
		return st.Bfree
	}
	before := free()

	w := p.begin(because(Repair))
	must(t, w.Add("config", p.tree, "small"))
	err := w.Add("config", p.tree, "large")
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "make room on the filesystem of "+p.state) {
		t.Errorf("Add: %v", err)
	}
	if again := w.Add("config", p.tree, "small"); again == nil {
		t.Error("it goes on after that")
	}
	if i, err := w.Commit(); err == nil {
		t.Errorf("committed as %s", i.Name)
	}
	if free() != before {
		t.Errorf("%d blocks are free, %d were", free(), before)
	}

	// Full at the last moment.
	w = p.begin(because(Repair))
	must(t, w.Add("config", p.tree, "small"))
	fill, err := os.Create(p.state + "/fill")
	must(t, err)
	for err == nil {
		_, err = fill.Write(make([]byte, 4<<10))
	}
	fill.Close()
	if i, err := w.Commit(); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("committed as %q: %v", i.Name, err)
	}
	if names := p.names(); !slices.Equal(names, []string{kept.Name}) {
		t.Errorf("listed: %q", names)
	}
	if on := p.on(); len(on) != 1 {
		t.Errorf("on the disk: %q", on)
	}
	must(t, os.Remove(p.state+"/fill"))
	if free() != before {
		t.Errorf("in the end %d blocks are free, %d were", free(), before)
	}
	p.archive(because(Repair), "small")
}

// On a disk that cannot be written any more, what there is can be read.
func TestReadOnlyDisk(t *testing.T) {
	p := newPlace(t)
	must(t, unix.Mount("tmpfs", p.state, "tmpfs", 0, "size=1m"))
	t.Cleanup(func() { unix.Unmount(p.state, unix.MNT_DETACH) })
	p.open()
	p.write("file", "x")
	i := p.archive(because(Repair), "file")
	must(t, unix.Mount("", p.state, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	p.open()
	p.holds(i, map[string]manifest.Entry{"file": entries(t, p.tree)["file"]})
	if w, err := p.Begin(because(Repair)); err == nil {
		w.Abort()
		t.Error("an archive was begun there")
	}
}

// What a writer left that was killed is removed; one that lives goes on.
func TestKilledWriter(t *testing.T) {
	p := newPlace(t)
	p.write("file", "x")
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), "ARCHIVE_TEST_DIR="+filepath.Dir(p.tree))
	c.Stderr = os.Stderr
	out, err := c.StdoutPipe()
	must(t, err)
	must(t, c.Start())
	defer c.Process.Kill()
	p.state = filepath.Dir(p.tree)
	said := make([]byte, 100)
	n, _ := out.Read(said)
	if text := string(said[:n]); text != "ready <nil>\n" {
		t.Fatal(text)
	}
	p.open()
	if on := p.on(); len(on) != 1 {
		t.Fatalf("beside a writer that lives: %q", on)
	}
	if names := p.names(); len(names) > 0 {
		t.Errorf("listed before it was committed: %q", names)
	}
	must(t, c.Process.Signal(syscall.SIGKILL))
	c.Wait()
	must(t, os.Mkdir(filepath.Join(p.state, Dir, partPrefix+"2026-11-22T065301.123Z-repair"), 0o700))
	p.open()
	if on := p.on(); len(on) > 0 {
		t.Errorf("left behind: %q", on)
	}
}

func TestAbort(t *testing.T) {
	p := newPlace(t)
	p.write("file", "x")
	w := p.begin(because(Repair))
	if !w.Empty() {
		t.Error("not empty at the beginning")
	}
	must(t, w.Add("config", p.tree, "gone"))
	if !w.Empty() {
		t.Error("not empty with what does not exist")
	}
	must(t, w.Add("config", p.tree, "file"))
	if w.Empty() {
		t.Error("empty with a file")
	}
	w.Abort()
	w.Abort()
	if on := p.on(); len(on) > 0 {
		t.Errorf("left behind: %q", on)
	}
	if _, err := w.Commit(); err == nil || w.Add("config", p.tree, "file") == nil {
		t.Error("it goes on after the end")
	}
	done := p.archive(because(Repair), "file")
	if names := p.names(); !slices.Equal(names, []string{done.Name}) {
		t.Errorf("%q", names)
	}
}

// Later archives have later names, whatever the clock does.
func TestNames(t *testing.T) {
	p := newPlace(t)
	first := p.archive(because(Restore))
	same := p.archive(because(Conflict))
	early := because(Adopt)
	early.Made = made.Add(-time.Hour)
	back := p.archive(early)
	late := because(Repair)
	late.Made = made.Add(time.Second).In(time.FixedZone("", 3600)).Add(300 * time.Microsecond)
	last := p.archive(late)
	want := []string{"2026-11-22T065302.123Z-repair", "2026-11-22T065301.125Z-adopt", "2026-11-22T065301.124Z-conflict", "2026-11-22T065301.123Z-restore"}
	if got := p.names(); !slices.Equal(got, want) || !slices.Equal(namesOf([]Info{last, back, same, first}), want) {
		t.Errorf("%q, want %q", got, want)
	}
	if !back.Made.Equal(early.Made) {
		t.Errorf("made %v, want %v", back.Made, early.Made)
	}
	now := time.Now()
	if i := p.archive(Info{Reason: Repair, Holds: Theirs}); i.Made.Before(now.Add(-time.Millisecond)) || i.Made.After(time.Now()) {
		t.Errorf("made %v, it is %v", i.Made, now)
	}
}

func TestNoLaterName(t *testing.T) {
	p := newPlace(t)
	i := because(Repair)
	i.Made = time.Date(9999, 12, 31, 23, 59, 59, 999e6, time.UTC)
	last := p.archive(i)
	if i, err := p.begin(because(Repair)).Commit(); err == nil || !strings.Contains(err.Error(), last.Name) {
		t.Errorf("%q, %v", i.Name, err)
	}
	if names := p.names(); len(names) != 1 {
		t.Errorf("%q", names)
	}
}

func TestFind(t *testing.T) {
	p := newPlace(t)
	if _, err := p.Find("2026"); err == nil || !strings.Contains(err.Error(), "none at all") {
		t.Errorf("without archives: %v", err)
	}
	a, b := p.archive(because(Repair)), p.archive(because(Conflict))
	for text, want := range map[string]Info{a.Name: a, "2026-11-22T065301.123Z": a, "2026-11-22T065301.123Z-r": a, "2026-11-22T065301.124": b, b.Name: b} {
		if i, err := p.Find(text); err != nil || !reflect.DeepEqual(i, want) {
			t.Errorf("%q: %+v, %v", text, i, err)
		}
	}
	for _, text := range []string{"2026-11-22T0653", "", "2027", a.Name + "x", ".", "../archive/" + a.Name, a.Name + "/"} {
		if i, err := p.Find(text); err == nil || !strings.Contains(err.Error(), a.Name) || !strings.Contains(err.Error(), b.Name) {
			t.Errorf("%q: %+v, %v", text, i, err)
		}
	}
}

// A damaged archive is named, by its name and with the reason; it hides no other.
func TestDamaged(t *testing.T) {
	p := newPlace(t)
	p.write("file", "x")
	good := p.archive(because(Restore), "file")
	damages := map[string]func(dir string) error{
		"is missing":         func(dir string) error { return os.Remove(dir + "/manifest.json") },
		"unexpected end":     func(dir string) error { return os.Truncate(dir+"/manifest.json", 20) },
		"invalid character":  func(dir string) error { return os.WriteFile(dir+"/manifest.json", []byte("no"), 0o600) },
		"want one of":        func(dir string) error { return os.WriteFile(dir+"/manifest.json", []byte("{}"), 0o600) },
		"not that of the na": func(dir string) error { return os.Rename(dir, strings.Replace(dir, "-repair", "-adopt", 1)) },
		"not a regular file": func(dir string) error {
			return errors.Join(os.Remove(dir+"/manifest.json"), unix.Mkfifo(dir+"/manifest.json", 0o600))
		},
	}
	names := map[string]string{}
	for why, damage := range damages {
		i := p.archive(because(Repair), "file")
		names[why] = strings.TrimSuffix(i.Name, "-repair")
		must(t, damage(filepath.Join(p.state, Dir, i.Name)))
	}
	for _, foreign := range []string{"lost+found", "notes", "2026-11-22"} {
		must(t, os.Mkdir(filepath.Join(p.state, Dir, foreign), 0o700))
	}
	list, err := p.List()
	if got := namesOf(list); !slices.Equal(got, []string{good.Name}) || err == nil {
		t.Fatalf("%q, %v", got, err)
	}
	lines := strings.Split(err.Error(), "\n")
	for why, name := range names {
		if !slices.ContainsFunc(lines, func(line string) bool { return strings.Contains(line, name) && strings.Contains(line, why) }) {
			t.Errorf("%s (%s) is not named:\n%v", name, why, err)
		}
		if i, err := p.Find(name); err == nil {
			t.Errorf("found: %+v", i)
		}
	}
	if len(lines) != len(damages) {
		t.Errorf("%d lines:\n%v", len(lines), err)
	}
	p.holds(good, map[string]manifest.Entry{"file": entries(t, p.tree)["file"]})

	for what, damage := range map[string]func(dir string) error{
		"manifest lost":  func(dir string) error { return os.Remove(dir + "/config.manifest") },
		"manifest cut":   func(dir string) error { return os.Truncate(dir+"/config.manifest", 10) },
		"another's":      func(dir string) error { return os.WriteFile(dir+"/config.manifest", []byte("skdm\x01\x00"), 0o600) },
		"directory lost": func(dir string) error { return os.RemoveAll(dir + "/config") },
	} {
		i := p.archive(because(Repair), "file")
		must(t, damage(filepath.Join(p.state, Dir, i.Name)))
		if _, _, err := p.Tree(i, "config"); err == nil || errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), i.Name) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if removed, err := p.Prune(made.Add(1000*time.Hour), Limits{Keep: 1, Age: time.Hour, Bytes: 1}); err == nil || len(p.on()) != len(damages)+3 {
		t.Errorf("pruned %q, %v; there are %q", namesOf(removed), err, p.on())
	}
}

func TestResolve(t *testing.T) {
	p := newPlace(t)
	a := p.archive(conflict())
	theirs := conflict()
	theirs.Holds = Theirs
	b := p.archive(theirs)
	other := conflict()
	other.ID = "c2"
	c := p.archive(other)
	if got := namesOf(p.Waiting()); !slices.Equal(got, []string{c.Name, b.Name, a.Name}) {
		t.Fatalf("waiting: %q", got)
	}
	if p.Resolve("c1", "mine") == nil {
		t.Error("a word that means nothing is accepted")
	}
	for _, step := range []struct {
		id, how string
		waiting []string
	}{
		{"none", Ours, []string{c.Name, b.Name, a.Name}},
		{"c1", Theirs, []string{c.Name}},
		{"c1", Ours, []string{c.Name}},
		{"c2", "", []string{}},
	} {
		must(t, p.Resolve(step.id, step.how))
		p.open()
		if got := namesOf(p.Waiting()); !slices.Equal(got, step.waiting) {
			t.Errorf("after %s %s: waiting: %q, want %q", step.id, step.how, got, step.waiting)
		}
	}
	a.Waiting, a.Resolved = false, Theirs
	got, err := p.Find(a.Name)
	if time.Since(got.Ended) > time.Minute { // from now on its age counts
		t.Errorf("resolved at %v", got.Ended)
	}
	a.Ended = got.Ended
	if err != nil || !reflect.DeepEqual(got, a) {
		t.Errorf("%+v, %v, want %+v", got, err, a)
	}
}

// made is an archive that Prune only has to read of.
func (p *place) pretend(i Info, age time.Duration, bytes int64) string {
	p.Helper()
	i.Made = made.Add(-age)
	i.Name = i.Made.Format(stamp) + "-" + i.Reason
	i.Bytes = bytes
	b, err := i.encode()
	must(p.T, err)
	dir := filepath.Join(p.state, Dir, i.Name)
	must(p.T, os.MkdirAll(dir+"/config", 0o700))
	must(p.T, os.WriteFile(dir+"/manifest.json", b, 0o600))
	return i.Name
}

func TestPrune(t *testing.T) {
	type sort struct {
		reason  string
		waiting bool
		bytes   int64
	}
	r, o, w := sort{reason: Repair, bytes: 10}, sort{reason: Adopt, bytes: 10}, sort{Conflict, true, 1000}
	large, largeRepair := sort{reason: Restore, bytes: 1000}, sort{reason: Repair, bytes: 1000}
	for _, tc := range []struct {
		name   string
		l      Limits
		before []sort // the newest first, a day apart
		stays  []int
	}{
		{"no limits", Limits{}, []sort{r, o, w, r}, []int{0, 1, 2, 3}},
		{"nothing is there", Limits{Keep: 1, Age: 1, Bytes: 1}, nil, []int{}},
		{"count", Limits{Keep: 3}, []sort{o, o, o, o, o}, []int{0, 1, 2}},
		{"age", Limits{Age: 50 * time.Hour}, []sort{o, r, o, o, r}, []int{0, 1, 2}},
		{"bytes", Limits{Bytes: 30}, []sort{o, o, o, o}, []int{0, 1, 2}},
		{"no smaller one behind one that does not fit", Limits{Bytes: 100}, []sort{o, large, o}, []int{0}},
		{"the newest stays, however large", Limits{Bytes: 100}, []sort{large, o}, []int{0}},
		{"also a repair", Limits{Bytes: 100}, []sort{largeRepair, r, o}, []int{0, 2}},
		{"a conflict that waits", Limits{Keep: 1, Age: time.Hour, Bytes: 100}, []sort{o, w, o, w}, []int{0, 1, 3}},
		{"waiting ones do not count", Limits{Keep: 2}, []sort{w, w, o, o, o}, []int{0, 1, 2, 3}},
		{"repairs have half", Limits{Keep: 4}, []sort{r, r, r, r, r}, []int{0, 1}},
		{"and half of the bytes", Limits{Bytes: 40}, []sort{r, r, r, r, r}, []int{0, 1}},
		{"churn of repairs", Limits{Keep: 4}, []sort{r, r, r, r, r, r, r, r, o, o, o}, []int{0, 8, 9, 10}},
		{"churn, by bytes", Limits{Bytes: 50}, []sort{r, r, r, r, r, o, o, o}, []int{0, 1, 5, 6, 7}},
		{"the newest repair stays", Limits{Keep: 2}, []sort{o, o, o, r, r}, []int{0, 1, 3}},
		{"one alone", Limits{Keep: 1}, []sort{r, r, o, o}, []int{0, 2}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newPlace(t)
			var all, want []string
			for n, s := range tc.before {
				i := because(s.reason)
				if s.waiting {
					i = conflict()
				}
				all = append(all, p.pretend(i, time.Duration(n)*24*time.Hour, s.bytes))
			}
			for _, n := range tc.stays {
				want = append(want, all[n])
			}
			removed, err := p.Prune(made, tc.l)
			must(t, err)
			if got := p.names(); !slices.Equal(got, want) && len(want) > 0 {
				t.Errorf("there are %q, want %q", got, want)
			}
			if len(removed) != len(all)-len(want) || len(p.on()) != len(want) {
				t.Errorf("removed %q of %q, on the disk are %q", namesOf(removed), all, p.on())
			}
		})
	}
}

// An archive whose time has not come yet is not old.
func TestPruneAfterAWrongClock(t *testing.T) {
	p := newPlace(t)
	future := p.pretend(because(Adopt), -10_000*time.Hour, 1)
	fresh := p.archive(because(Adopt))
	if _, err := p.Prune(made, Limits{Keep: 1, Age: time.Hour}); err != nil {
		t.Fatal(err)
	}
	if got := p.names(); !slices.Equal(got, []string{fresh.Name}) {
		t.Errorf("there are %q: want the later one, %s, not %s", got, fresh.Name, future)
	}
}

// Several writers, readers and pruners at the same time, as of several processes.
func TestSideBySide(t *testing.T) {
	p := newPlace(t)
	p.write("file", "x")
	const writers, each = 4, 8
	failed := make(chan error, writers)
	for range writers {
		go func() {
			failed <- func() error {
				for range each {
					s, err := Open(p.state)
					if err != nil {
						return err
					}
					w, err := s.Begin(because(Repair))
					if err != nil {
						return err
					}
					if err := w.Add("config", p.tree, "file"); err != nil {
						return err
					}
					if _, err := s.List(); err != nil {
						return err
					}
					if _, err := w.Commit(); err != nil {
						return err
					}
					if _, err := s.Prune(made, Limits{Keep: 2 * writers}); err != nil {
						return err
					}
				}
				return nil
			}()
		}()
	}
	for range writers {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
	last := fmt.Sprintf("%s-repair", made.Add((writers*each-1)*time.Millisecond).Format(stamp))
	if names := p.names(); len(names) != writers || names[0] != last || len(p.on()) != writers {
		t.Errorf("there are %q, on the disk %q; want %d, the newest %s", names, p.on(), writers, last)
	}
}

func FuzzParse(f *testing.F) {
	full := conflict()
	full.Roots = map[string]int{"config": 3}
	for _, i := range []Info{full, because(Conflict)} {
		b, err := i.encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"reason":"conflict","holds":"ours","made":"1970-01-01T00:00:00Z","roots":{"..":1}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		i, err := parse("2026-11-22T065301.123Z-conflict", b)
		if err != nil {
			return
		}
		for root := range i.Roots {
			if strings.ContainsAny(root, "./") || root == "" {
				t.Errorf("root %q", root)
			}
		}
		again, err := i.encode()
		if err != nil {
			t.Fatal(err)
		}
		if back, err := parse(i.Name, again); err != nil || !reflect.DeepEqual(plain(back), plain(i)) {
			t.Errorf("%+v became %+v, %v", i, back, err)
		}
	})
}

// plain is i without what JSON has two forms for: nothing and empty, and the zone of a time.
func plain(i Info) Info {
	i.Made = i.Made.UTC()
	if len(i.Roots) == 0 {
		i.Roots = nil
	}
	if len(i.Ours) == 0 {
		i.Ours = nil
	}
	if len(i.Theirs) == 0 {
		i.Theirs = nil
	}
	return i
}

func BenchmarkArchive(b *testing.B) {
	for _, files := range []int{1, 300, 20_000} {
		b.Run(fmt.Sprint(files, " files"), func(b *testing.B) {
			state, tree := b.TempDir(), b.TempDir()
			paths := make([]string, files)
			for n := range paths {
				paths[n] = fmt.Sprintf("%d/%d", n/100, n)
				path := filepath.Join(tree, paths[n])
				if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, make([]byte, 500), 0o644)); err != nil {
					b.Fatal(err)
				}
			}
			s, err := Open(state)
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				w, err := s.Begin(Info{Reason: Adopt, Holds: Ours})
				if err != nil {
					b.Fatal(err)
				}
				for _, path := range paths {
					if err := w.Add("config", tree, path); err != nil {
						b.Fatal(err)
					}
				}
				if _, err := w.Commit(); err != nil {
					b.Fatal(err)
				}
				if _, err := s.Prune(time.Now(), Limits{Keep: 1}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
