package tree

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience bounds every wait; nothing here depends on how fast it is.
const patience = 20 * time.Second

// seen collects what a Watcher reports.
type seen struct {
	mu       sync.Mutex
	events   []Event
	troubles []error
	last     time.Time
}

func (s *seen) sink(e Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, e)
	s.last = time.Now()
}

func (s *seen) trouble(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.troubles = append(s.troubles, err)
}

func (s *seen) has(e Event) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Contains(s.events, e)
}

func (s *seen) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = nil
}

func (s *seen) all() []Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.events)
}

// wait waits for an event of the first root.
func (s *seen) wait(t *testing.T, path string) {
	t.Helper()
	s.waitFor(t, Event{Path: path})
}

func (s *seen) waitAll(t *testing.T) {
	t.Helper()
	s.waitFor(t, Event{Path: ".", All: true})
}

func (s *seen) waitFor(t *testing.T, e Event) {
	t.Helper()
	if !until(func() bool { return s.has(e) }) {
		t.Fatalf("%+v was not reported, but %+v", e, s.all())
	}
}

// quiet waits until nothing has been reported for a while.
func (s *seen) quiet() {
	start := time.Now()
	until(func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return min(time.Since(s.last), time.Since(start)) > 60*time.Millisecond
	})
}

// rewrite writes a file until that is reported; an All of before may still have been on its way.
func (s *seen) rewrite(t *testing.T, dir, path string) {
	t.Helper()
	if !until(func() bool {
		write(t, dir+"/"+path, "x")
		return s.has(Event{Path: path})
	}) {
		t.Fatalf("%s was not reported, but %+v", path, s.all())
	}
}

// settle waits until all that happened so far in the first root has been reported, and forgets it.
func (s *seen) settle(t *testing.T, dir string) {
	t.Helper()
	for i := 0; ; i++ { // one that is new
		name := fmt.Sprintf("probe-settle-%d", i)
		if unix.Mknod(dir+"/"+name, unix.S_IFREG|0o644, 0) == nil {
			s.wait(t, name)
			s.reset()
			return
		}
	}
}

func until(ok func() bool) bool {
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if ok() {
			return true
		}
	}
	return ok()
}

func start(t *testing.T, roots ...Root) (*Watcher, *seen) {
	t.Helper()
	s := &seen{last: time.Now()}
	w, err := Watch(roots, s.sink, s.trouble)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := w.Blind(); err != nil {
		t.Fatal(err)
	}
	return w, s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(text), 0o644))
}

func TestEveryChangeIsReported(t *testing.T) {
	t.Parallel()
	dir, away := t.TempDir(), t.TempDir()
	must(t, os.MkdirAll(dir+"/a/b/c", 0o755))
	write(t, dir+"/a/file", "1")
	write(t, dir+"/a/b/c/deep", "1")
	write(t, away+"/outside", "1")
	must(t, os.Mkdir(away+"/dir", 0o755))
	must(t, os.MkdirAll(away+"/tree/sub", 0o755))
	odd := "-new\nline \"'\xff\xfe" + strings.Repeat("x", 235)
	must(t, os.Symlink(away+"/dir", dir+"/dirlink"))
	_, s := start(t, Root{Dir: dir})

	steps := []struct {
		what string
		do   func() error
		want []string
	}{
		{"write", func() error { return os.WriteFile(dir+"/a/file", []byte("2"), 0o644) }, []string{"a/file"}},
		{"write deep", func() error { return os.WriteFile(dir+"/a/b/c/deep", []byte("2"), 0o644) }, []string{"a/b/c/deep"}},
		{"create", func() error { return os.WriteFile(dir+"/top", nil, 0o644) }, []string{"top"}},
		{"odd name", func() error { return os.WriteFile(dir+"/a/"+odd, nil, 0o644) }, []string{"a/" + odd}},
		{"chmod file", func() error { return os.Chmod(dir+"/a/file", 0) }, []string{"a/file"}},
		{"write with mode 000", func() error { return os.WriteFile(dir+"/a/file", []byte("3"), 0o644) }, []string{"a/file"}},
		{"chown", func() error { return os.Lchown(dir+"/a/file", os.Getuid(), os.Getgid()) }, []string{"a/file"}},
		{"chmod directory", func() error { return os.Chmod(dir+"/a/b", 0o700) }, []string{"a/b"}},
		{"chmod root", func() error { return os.Chmod(dir, 0o700) }, []string{"."}},
		{"rename", func() error { return os.Rename(dir+"/top", dir+"/a/b/top") }, []string{"top", "a/b/top"}},
		{"hard link", func() error { return os.Link(dir+"/a/file", dir+"/hard") }, []string{"hard"}},
		{"remove", func() error { return os.Remove(dir + "/a/b/top") }, []string{"a/b/top"}},
		{"dangling link", func() error { return os.Symlink("nowhere", dir+"/dangling") }, []string{"dangling"}},
		{"link to itself", func() error { return os.Symlink("loop", dir+"/loop") }, []string{"loop"}},
		{"fifo", func() error { return unix.Mkfifo(dir+"/a/fifo", 0o644) }, []string{"a/fifo"}},
		{"chmod fifo", func() error { return os.Chmod(dir+"/a/fifo", 0o600) }, []string{"a/fifo"}},
		{"mkdir", func() error { return os.Mkdir(dir+"/new", 0o755) }, []string{"new"}},
		{"create in it", func() error { return os.WriteFile(dir+"/new/x", nil, 0o644) }, []string{"new/x"}},
		{"mkdir -p", func() error { return os.MkdirAll(dir+"/p/q/r", 0o755) }, []string{"p"}},
		{"create in p/q/r", func() error { return os.WriteFile(dir+"/p/q/r/x", nil, 0o644) }, []string{"p/q/r/x"}},
		{"move in", func() error { return os.Rename(away+"/tree", dir+"/tree") }, []string{"tree"}},
		{"create in it", func() error { return os.WriteFile(dir+"/tree/sub/x", nil, 0o644) }, []string{"tree/sub/x"}},
		{"rename directory", func() error { return os.Rename(dir+"/a", dir+"/new/z") }, []string{"a", "new/z"}},
		{"write in it", func() error { return os.WriteFile(dir+"/new/z/b/c/deep", []byte("4"), 0o644) },
			[]string{"new/z/b/c/deep"}},
		{"swap directories", func() error {
			return unix.Renameat2(unix.AT_FDCWD, dir+"/p/q", unix.AT_FDCWD, dir+"/new/z", unix.RENAME_EXCHANGE)
		}, []string{"p/q", "new/z"}},
		{"write in one", func() error { return os.WriteFile(dir+"/p/q/b/c/deep", []byte("5"), 0o644) }, []string{"p/q/b/c/deep"}},
		{"write in the other", func() error { return os.WriteFile(dir+"/new/z/r/x", []byte("5"), 0o644) }, []string{"new/z/r/x"}},
		{"directory becomes a link", func() error {
			return errors.Join(os.RemoveAll(dir+"/p"), os.Symlink(away+"/dir", dir+"/p"))
		}, []string{"p"}},
		{"rmdir", func() error { return os.RemoveAll(dir + "/tree") }, []string{"tree"}},
	}
	for _, step := range steps {
		s.settle(t, dir)
		must(t, step.do())
		for _, path := range step.want {
			s.wait(t, path)
		}
	}

	// Symlinks are not followed, and what left the tree is not watched any more.
	must(t, os.Rename(dir+"/new", away+"/new"))
	s.wait(t, "new")
	s.settle(t, dir)
	write(t, away+"/dir/x", "")
	write(t, away+"/new/x", "2")
	write(t, away+"/outside", "2")
	write(t, dir+"/end", "")
	s.wait(t, "end")
	for _, e := range s.all() {
		if e != (Event{Path: "end"}) {
			t.Errorf("reported %+v", e)
		}
	}
}

func TestSkip(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	must(t, os.MkdirAll(dir+"/local/deep", 0o755))
	must(t, os.MkdirAll(dir+"/sub", 0o755))
	skip := func(path string, isDir bool) bool { // local/ and *.tmp
		return path == "local" && isDir || strings.HasSuffix(path, ".tmp") || path == "late" && isDir
	}
	w, s := start(t, Root{Dir: dir, Skip: skip})
	write(t, dir+"/local/x", "")
	write(t, dir+"/local/deep/x", "")
	must(t, os.Chmod(dir+"/local", 0o700))
	write(t, dir+"/sub/x.tmp", "")
	must(t, os.Mkdir(dir+"/late", 0o755))
	must(t, os.Mkdir(dir+"/late/deep", 0o755))
	must(t, os.Mkdir(dir+"/dir.tmp", 0o755))
	s.quiet()
	write(t, dir+"/late/deep/x", "")
	write(t, dir+"/dir.tmp/x", "")
	must(t, os.RemoveAll(dir+"/local"))
	must(t, os.RemoveAll(dir+"/dir.tmp"))
	w.Refresh()
	write(t, dir+"/sub/x", "")
	s.wait(t, "sub/x")
	for _, e := range s.all() {
		if e != (Event{Path: "sub/x"}) {
			t.Errorf("reported %+v", e)
		}
	}
	write(t, dir+"/local", "") // now a file
	s.wait(t, "local")
	for _, name := range w.roots[0].fs.WatchList() {
		if !strings.HasPrefix(name, prefix) {
			t.Errorf("a watch %q", name)
		}
	}
}

func TestOneFile(t *testing.T) {
	t.Parallel()
	dir, away := t.TempDir(), t.TempDir()
	must(t, os.Mkdir(dir+"/rt_tables.d", 0o755))
	write(t, dir+"/rt_tables", "1")
	_, s := start(t, Root{Dir: away}, Root{Dir: dir, File: "rt_tables"})
	file := Event{Root: 1, Path: "rt_tables"}
	for i, do := range []func() error{
		func() error { return os.WriteFile(dir+"/rt_tables", []byte("2"), 0o644) },
		func() error { return os.Chmod(dir+"/rt_tables", 0o600) },
		func() error {
			return errors.Join(os.WriteFile(dir+"/x", nil, 0o644), os.Rename(dir+"/x", dir+"/rt_tables"))
		},
		func() error {
			return errors.Join(os.Symlink(away+"/x", dir+"/link"), os.Rename(dir+"/link", dir+"/rt_tables"))
		},
		func() error { return os.Remove(dir + "/rt_tables") },
	} {
		s.quiet()
		s.reset()
		must(t, do())
		s.waitFor(t, file)
		t.Logf("change %d was seen", i)
	}
	write(t, dir+"/other", "")
	write(t, dir+"/rt_tables.d/x", "")
	must(t, os.Mkdir(dir+"/sub", 0o755))
	must(t, os.Chmod(dir, 0o700))
	s.quiet()
	for _, e := range s.all() {
		if e != file {
			t.Errorf("reported %+v", e)
		}
	}
	must(t, os.RemoveAll(dir))
	s.waitFor(t, Event{Root: 1, Path: ".", All: true})
	s.quiet()
	s.reset()
	must(t, os.Mkdir(dir, 0o755))
	s.waitFor(t, Event{Root: 1, Path: ".", All: true})
	if !until(func() bool { // as in rewrite
		write(t, dir+"/rt_tables", "3")
		return s.has(file)
	}) {
		t.Fatalf("the file was not reported, but %+v", s.all())
	}
}

func TestRootGoesAndComes(t *testing.T) {
	t.Parallel()
	top := t.TempDir()
	dir := top + "/a/b/root"
	must(t, os.MkdirAll(dir+"/sub", 0o755))
	w, s := start(t, Root{Dir: dir})
	check := func(path string) {
		t.Helper()
		s.waitAll(t)
		s.quiet()
		s.reset()
		s.rewrite(t, dir, path)
		s.quiet()
		s.reset()
	}
	must(t, os.Rename(dir, top+"/away"))
	s.waitAll(t)
	s.quiet()
	s.reset()
	write(t, top+"/away/sub/x", "x")
	s.quiet()
	for _, e := range s.all() {
		if !e.All {
			t.Errorf("from afar: %+v", e)
		}
	}
	must(t, os.Rename(top+"/away", dir))
	check("sub/back")

	must(t, os.RemoveAll(dir))
	s.waitAll(t)
	s.quiet()
	s.reset()
	must(t, os.MkdirAll(dir+"/sub2", 0o755))
	check("sub2/x")

	must(t, os.RemoveAll(top+"/a"))
	s.waitAll(t)
	s.quiet()
	s.reset()
	if err := w.Blind(); err != nil {
		t.Error(err)
	}
	must(t, os.Mkdir(top+"/a", 0o755))
	must(t, os.Mkdir(top+"/a/b", 0o755))
	s.quiet()
	must(t, os.Mkdir(dir, 0o755))
	check("x")

	must(t, os.Mkdir(top+"/other", 0o755))
	must(t, unix.Renameat2(unix.AT_FDCWD, top+"/other", unix.AT_FDCWD, dir, unix.RENAME_EXCHANGE))
	check("y")

	must(t, os.Rename(top+"/a", top+"/c"))
	s.waitAll(t)
	s.quiet()
	s.reset()
	must(t, os.Symlink("c", top+"/a")) // symlinks in the root's own path are followed
	check("z")
	must(t, os.Remove(top+"/a"))
	must(t, os.MkdirAll(dir, 0o755))
	check("new")
}

func TestMounts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	must(t, os.MkdirAll(dir+"/sub/dir", 0o755))
	_, s := start(t, Root{Dir: dir})
	for event, path := range map[Event]string{{Path: ".", All: true}: dir, {Path: "sub"}: dir + "/sub"} {
		for _, change := range []func() error{
			func() error { return unix.Mount("none", path, "tmpfs", 0, "size=64k") },
			// MNT_DETACH, because the walk that follows the mount may still be at it
			func() error { return unix.Unmount(path, unix.MNT_DETACH) },
		} {
			s.quiet()
			s.reset()
			if err := change(); err != nil {
				t.Skipf("mounting is not possible here: %v", err)
			}
			t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
			s.waitFor(t, event)
			s.quiet()
			s.reset()
			s.rewrite(t, dir, filepath.Join(event.Path, "x"))
		}
	}
}

func TestBindMountIsSeenInBothPlaces(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	must(t, os.MkdirAll(dir+"/one", 0o755))
	must(t, os.MkdirAll(dir+"/two", 0o755))
	if err := unix.Mount(dir+"/one", dir+"/two", "", unix.MS_BIND, ""); err != nil {
		t.Skipf("mounting is not possible here: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir+"/two", unix.MNT_DETACH) })
	w, s := start(t, Root{Dir: dir})
	write(t, dir+"/one/x", "")
	s.wait(t, "one/x")
	s.wait(t, "two/x")
	s.settle(t, dir)
	w.Refresh()
	s.quiet()
	if got := s.all(); len(got) != 0 {
		t.Errorf("Refresh reports %+v", got)
	}
}

func TestRefreshFindsAndIsQuiet(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	must(t, os.MkdirAll(dir+"/a/b", 0o755))
	w, s := start(t, Root{Dir: dir})
	w.Refresh()
	s.quiet()
	if got := s.all(); len(got) != 0 {
		t.Errorf("Refresh reports %+v", got)
	}
	// A watch that got lost.
	r := w.roots[0]
	r.mu.Lock()
	must(t, r.fs.Remove(watchName(r.top.children["a"].children["b"].watch.handle)))
	r.mu.Unlock()
	w.Refresh()
	s.wait(t, "a/b")
	write(t, dir+"/a/b/x", "")
	s.wait(t, "a/b/x")
}

func TestSlowSinkGetsAll(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	const most = 2 * maxPending // what the sink got at once, and what waits
	s := &seen{}
	block := make(chan struct{})
	w, err := Watch([]Root{{Dir: dir}}, func(e Event) { <-block; s.sink(e) }, s.trouble)
	must(t, err)
	defer w.Close()
	for i := range most + 2000 {
		must(t, unix.Mknod(dir+"/"+strconv.Itoa(i), unix.S_IFREG|0o644, 0))
	}
	close(block)
	s.waitAll(t)
	must(t, os.Mkdir(dir+"/dir", 0o755))
	s.wait(t, "dir")
	write(t, dir+"/dir/x", "")
	s.wait(t, "dir/x")
	if n := len(s.all()); n > most {
		t.Errorf("%d events were kept", n)
	}
}

func TestKernelOverflow(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	most := queueLength(t)
	w, s := start(t, Root{Dir: dir})
	r := w.roots[0]
	r.mu.Lock() // no event is read any more
	must(t, os.Mkdir(dir+"/before", 0o755))
	for i := range most + 5000 {
		must(t, unix.Mknod(dir+"/"+strconv.Itoa(i), unix.S_IFREG|0o644, 0))
	}
	must(t, os.MkdirAll(dir+"/lost/deep", 0o755))
	r.mu.Unlock()
	s.waitAll(t)
	s.quiet()
	s.reset()
	s.rewrite(t, dir, "lost/deep/x") // All may come before the walk has got there
	s.rewrite(t, dir, "before/x")
	if err := w.Blind(); err != nil {
		t.Error(err)
	}
}

func queueLength(t *testing.T) int {
	b, err := os.ReadFile("/proc/sys/fs/inotify/max_queued_events")
	must(t, err)
	most, err := strconv.Atoi(strings.TrimSpace(string(b)))
	must(t, err)
	if most > 100_000 {
		t.Skipf("the queue of this kernel is too long to fill: %d", most)
	}
	return most
}

func TestRepeatsAreReportedOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir+"/x", "")
	w, s := start(t, Root{Dir: dir})
	s.quiet()
	w.mu.Lock() // a sink that is a moment late
	f, err := os.OpenFile(dir+"/x", os.O_WRONLY, 0)
	must(t, err)
	for i := range 3000 {
		if i%2 == 0 {
			must(t, f.Chmod(os.FileMode(0o600+i%64)))
		} else {
			_, err = f.WriteString("x")
			must(t, err)
		}
	}
	must(t, f.Close())
	w.mu.Unlock()
	s.wait(t, "x")
	s.quiet()
	if n := len(s.all()); n > 1500 {
		t.Errorf("reported %d times", n)
	}
}

func TestCloseEndsReports(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var w *Watcher
	s := &seen{}
	w, err := Watch([]Root{{Dir: dir}}, s.sink, s.trouble)
	must(t, err)
	for i := range 500 {
		must(t, os.MkdirAll(fmt.Sprintf("%s/%d/x", dir, i), 0o755))
	}
	must(t, w.Close())
	n := len(s.all())
	write(t, dir+"/x", "")
	w.Refresh()
	must(t, w.Close())
	if got := len(s.all()); got != n {
		t.Errorf("%d events after Close", got-n)
	}
}

// TestStorm renames directories into each other from several goroutines, and after each
// storm wants every change reported by its right path.
func TestStorm(t *testing.T) {
	t.Parallel()
	for seed := range uint64(3) {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			t.Parallel()
			storm(t, seed)
		})
	}
}

func storm(t *testing.T, seed uint64) {
	dir, away := t.TempDir(), t.TempDir()
	w, s := start(t, Root{Dir: dir})
	for round := range 3 {
		var wg sync.WaitGroup
		for g := range 4 {
			wg.Go(func() {
				rnd := rand.New(rand.NewPCG(seed, uint64(round*100+g)))
				for range 500 {
					disturb(rnd, dir, away)
				}
			})
		}
		if round == 1 {
			wg.Go(func() {
				for range 20 {
					w.Refresh()
				}
			})
		}
		wg.Wait()
		for probe := fmt.Sprintf("probe-%d", round); ; probe += "-again" {
			s.settle(t, dir)
			dirs, want := touchEverything(t, dir, probe)
			lost := false // the queue was too short for the storm; All covers what happened till now
			for _, path := range want {
				if !until(func() bool {
					lost = s.has(Event{Path: ".", All: true})
					return lost || s.has(Event{Path: path})
				}) {
					t.Fatalf("seed %d round %d: %s was not reported, but %+v", seed, round, path, s.all())
				}
			}
			if lost {
				continue
			}
			for _, e := range s.all() {
				if !e.All && !slices.Contains(want, e.Path) {
					t.Errorf("seed %d round %d: wrongly reported %+v", seed, round, e)
				}
			}
			bookkeeping(t, w.roots[0], dirs)
			break
		}
		if err := w.Blind(); err != nil {
			t.Errorf("seed %d round %d: %v", seed, round, err)
		}
	}
}

// touchEverything writes every file and makes one in every directory; it returns the number of
// directories and the paths to be reported.
func touchEverything(t *testing.T, dir, probe string) (dirs int, want []string) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		switch {
		case e.IsDir():
			dirs++
			path += "/" + probe
		case !e.Type().IsRegular() || strings.HasPrefix(e.Name(), "probe"):
			return nil
		}
		rel, err := filepath.Rel(dir, path)
		want = append(want, rel)
		return errors.Join(err, os.WriteFile(path, []byte("touched"), 0o644))
	}))
	return dirs, want
}

// disturb does one random thing; that most of them fail now and then is part of it.
func disturb(rnd *rand.Rand, dir, away string) {
	name := func() string {
		path := dir
		for range 1 + rnd.IntN(4) {
			path += "/" + string(rune('a'+rnd.IntN(4)))
		}
		return path
	}
	switch rnd.IntN(12) {
	case 0, 1, 2:
		_ = os.Mkdir(name(), 0o755)
	case 3:
		_ = os.MkdirAll(name(), 0o755)
	case 4, 5:
		_ = os.Rename(name(), name())
	case 6, 7:
		_ = unix.Renameat2(unix.AT_FDCWD, name(), unix.AT_FDCWD, name(), unix.RENAME_EXCHANGE)
	case 8:
		_ = os.WriteFile(name(), []byte("x"), 0o644)
	case 9:
		_ = os.Symlink(dir+"/a", name())
	case 10:
		if rnd.IntN(6) == 0 {
			_ = os.RemoveAll(name())
		} else {
			_ = os.Remove(name())
		}
	case 11: // out and in again, under another name
		out := fmt.Sprintf("%s/%d", away, rnd.IntN(3))
		_ = os.Rename(name(), out)
		_ = os.Rename(out, name())
	}
}

func FuzzParseEvent(f *testing.F) {
	f.Add(64, "name\xff\n")
	f.Add(0, "")
	f.Fuzz(func(t *testing.T, number int, entry string) {
		name := watchName(number)
		if entry != "" {
			name += "/" + entry
		}
		got, gotEntry, ok := parseEvent(name)
		if !ok || got != number || gotEntry != entry {
			t.Errorf("%q: %d %q %v", name, got, gotEntry, ok)
		}
		parseEvent(entry) // whatever it is
	})
}

// bookkeeping wants no more watches and nodes than directories.
func bookkeeping(t *testing.T, r *watched, dirs int) {
	t.Helper()
	dirs += len(r.above)
	r.mu.Lock()
	defer r.mu.Unlock()
	nodes := len(r.above)
	var count func(n *node)
	count = func(n *node) {
		nodes++
		for _, child := range n.children {
			count(child)
		}
	}
	count(r.top)
	if got := len(r.fs.WatchList()); got != dirs || len(r.byID) != dirs || len(r.handles) != dirs || nodes != dirs {
		t.Errorf("%d directories, but %d watches, %d known by identity, %d by number, %d nodes",
			dirs, got, len(r.byID), len(r.handles), nodes)
	}
	if r.numbers.top > firstNumber+10*dirs+2000 {
		t.Errorf("watch numbers up to %d for %d directories", r.numbers.top, dirs)
	}
}
