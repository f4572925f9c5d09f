package snapshot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/fileset"
	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"github.com/skudonet/skudonet-ce-cluster/lib/scan"
	"golang.org/x/sys/unix"
)

// TestMain makes the test's program the writer of TestHammered, too.
func TestMain(m *testing.M) {
	if path := os.Getenv("SNAPSHOT_TEST_REWRITE"); path != "" {
		rewrite(path)
	}
	os.Exit(m.Run())
}

// stage is a root and a Stage for it.
type stage struct {
	*testing.T
	*Stage
	root string
}

func newStage(t *testing.T) *stage {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	s, err := Open(filepath.Join(t.TempDir(), "stage"))
	if err != nil {
		t.Fatal(err)
	}
	return &stage{t, s, t.TempDir()}
}

func (s *stage) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func (s *stage) path(name string) string { return filepath.Join(s.root, name) }
func (s *stage) copyOf(name string) string {
	return filepath.Join(s.Dir(), name)
}

func (s *stage) write(name string, content []byte) {
	s.Helper()
	s.must(os.MkdirAll(filepath.Dir(s.path(name)), 0o755))
	s.must(os.WriteFile(s.path(name), content, 0o644))
}

// take copies path and checks that the copy, the entry and the original agree.
func (s *stage) take(path string) manifest.Entry {
	s.Helper()
	e, err := s.Copy(Root{Dir: s.root}, path, true)
	if err != nil {
		s.Fatal(err)
	}
	for _, dir := range []string{s.root, s.Dir()} {
		seen := scan.New(scan.Root{Dir: dir, Set: fileset.New()})
		if _, err := seen.Look(s.Context(), []string{path}); err != nil {
			s.Fatal(err)
		}
		if path == "." {
			continue // has other content
		}
		if got, _ := seen.Manifest().Get(path); got != e {
			s.Fatalf("in %s there is\n%+v, the copy's entry is\n%+v", dir, got, e)
		}
	}
	for ; path != "."; path = filepath.Dir(path) {
		s.alike(path)
	}
	s.alike(".")
	return e
}

// alike checks owner and mode of a copy, and the mtime of what is no directory.
func (s *stage) alike(path string) {
	s.Helper()
	a, err := os.Lstat(s.path(path))
	s.must(err)
	b, err := os.Lstat(s.copyOf(path))
	s.must(err)
	x, y := a.Sys().(*syscall.Stat_t), b.Sys().(*syscall.Stat_t)
	if x.Mode != y.Mode || x.Uid != y.Uid || x.Gid != y.Gid || !a.IsDir() && x.Mtim != y.Mtim {
		s.Errorf("%q is %v of %d:%d from %v, the copy %v of %d:%d from %v", path,
			a.Mode(), x.Uid, x.Gid, a.ModTime(), b.Mode(), y.Uid, y.Gid, b.ModTime())
	}
}

func TestCopy(t *testing.T) {
	s := newStage(t)
	long := strings.Repeat("x", 255)
	names := []string{"-rf", "a\nb", "q'\"$`\\", "\xff\xfe", long, "d e/-f/" + long + "/" + long, "*"}
	for i, name := range names {
		s.write(name, []byte(name))
		s.must(os.Chtimes(s.path(name), time.Time{}, time.Unix(int64(1e9+i), 123456789)))
	}
	s.write("empty", nil)
	s.write("large", bytes.Repeat([]byte("large"), 1<<20/4))
	s.write("just", bytes.Repeat([]byte("x"), whole))
	for name, mode := range map[string]uint32{"d e": 0o3751, "d e/-f": 0o700, "-rf": 0o6755, "*": 0, "empty": 0o4711} {
		s.must(os.Chown(s.path(name), 12, 34))
		s.must(unix.Chmod(s.path(name), mode))
	}
	s.must(os.Chtimes(s.path("d e"), time.Time{}, time.Unix(1e9, 0)))
	s.must(os.Symlink("/etc/passwd", s.path("d e/link")))
	s.must(os.Lchown(s.path("d e/link"), 5, 6))
	s.must(os.Symlink("nowhere", s.path("-link")))
	s.must(os.Chmod(s.root, 0o750))
	for _, name := range append(names, "empty", "large", "just", "d e/link", "-link", "d e", ".") {
		s.take(name)
	}
	for _, name := range names { // over the earlier copies
		s.write(name, []byte("new "+name))
		s.take(name)
	}
	if info, err := os.Stat(filepath.Dir(s.Dir())); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("others may enter the stage: %v, %v", info.Mode(), err)
	}
	if _, err := os.Lstat(s.copyOf("d e/-f/nothing")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	s.must(s.Clear())
	if left, err := os.ReadDir(s.Dir()); err != nil || len(left) > 0 {
		t.Errorf("after Clear: %v, %v", left, err)
	}
	s.take("d e")
	if left, _ := os.ReadDir(s.copyOf("d e")); len(left) > 0 {
		t.Errorf("a directory was copied with %v", left)
	}
	s.must(s.Close())
	if _, err := os.Lstat(filepath.Dir(s.Dir())); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after Close: %v", err)
	}
}

func TestCopyChangesKind(t *testing.T) {
	s := newStage(t)
	outside := t.TempDir()
	make := map[string]func(){
		"file":      func() { s.write("a", []byte("file")) },
		"directory": func() { s.write("a/b/c", []byte("below")) },
		"symlink":   func() { s.must(os.Symlink(outside, s.path("a"))) },
	}
	for from := range make {
		for to := range make {
			for _, kind := range []string{from, to} {
				s.must(os.RemoveAll(s.path("a")))
				make[kind]()
				s.take("a")
				if kind == "directory" {
					s.take("a/b/c")
				}
			}
		}
	}
	if left, _ := os.ReadDir(outside); len(left) > 0 {
		t.Errorf("the stage wrote through a symlink: %v", left)
	}
	left, err := os.ReadDir(filepath.Dir(s.Dir()))
	if err != nil || len(left) != 1 {
		t.Errorf("beside the tree the stage has %v, %v", left, err)
	}
}

func TestCopyRefuses(t *testing.T) {
	s := newStage(t)
	outside := t.TempDir()
	s.must(os.WriteFile(outside+"/secret", nil, 0o600))
	s.must(os.Symlink(outside, s.path("link")))
	s.write("file", nil)
	s.must(unix.Mkfifo(s.path("fifo"), 0o600))
	l, err := net.Listen("unix", s.path("socket"))
	s.must(err)
	defer l.Close()
	for _, patient := range []bool{true, false} {
		for path, want := range map[string]error{
			"nothing": fs.ErrNotExist, "nothing/below": fs.ErrNotExist, "file/below": fs.ErrNotExist,
			"link/secret": fs.ErrNotExist, "fifo/below": fs.ErrNotExist, "fifo": ErrKind, "socket": ErrKind,
		} {
			if e, err := s.Copy(Root{Dir: s.root}, path, patient); !errors.Is(err, want) || e != (manifest.Entry{}) {
				t.Errorf("%s: %+v, %v; want %v", path, e, err, want)
			}
		}
		for _, path := range []string{"", "..", "../x", "/etc/passwd", "a\x00"} {
			if _, err := s.Copy(Root{Dir: s.root}, path, patient); err == nil || errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%q: %v", path, err)
			}
		}
	}
	if _, err := s.Copy(Root{Dir: s.root + "-gone"}, "file", true); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a root that is gone looks like a file that is gone: %v", err)
	}
	// Somebody cleaned up.
	s.must(os.RemoveAll(filepath.Dir(s.Dir())))
	s.take("file")
	s.must(os.RemoveAll(s.Dir()))
	s.take("file")
}

func TestOpen(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"tree/a/b", "old/x", "other"} {
		os.MkdirAll(filepath.Join(dir, name), 0o755)
	}
	os.WriteFile(filepath.Join(dir, "new"), nil, 0o644)
	os.Chmod(dir, 0o777)
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	left, _ := os.ReadDir(dir)
	if len(left) != 2 || left[0].Name() != "other" || left[1].Name() != "tree" {
		t.Errorf("left is %v; want what is not ours, and an empty tree", left)
	}
	if left, _ := os.ReadDir(s.Dir()); len(left) > 0 {
		t.Errorf("leftovers: %v", left)
	}
	if info, _ := os.Stat(dir); info.Mode().Perm() != 0o700 {
		t.Errorf("mode %v", info.Mode())
	}
	file := filepath.Join(t.TempDir(), "file")
	os.WriteFile(file, nil, 0o644)
	if _, err := Open(file); err == nil {
		t.Error("a file is taken as directory")
	}
	link := filepath.Join(t.TempDir(), "link")
	os.Symlink(dir, link)
	if _, err := Open(link); err == nil {
		t.Error("a symlink is taken as directory")
	}
	if _, err := Open("/nowhere/at/all"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

func TestOpenWriter(t *testing.T) {
	s := newStage(t)
	s.write("f", []byte("before"))
	if OpenForWriting(s.path("f")) || OpenForWriting(s.path("nothing")) || OpenForWriting(s.root) {
		t.Error("nobody has it open for writing")
	}
	s.take("f")
	w, err := os.OpenFile(s.path("f"), os.O_WRONLY|os.O_APPEND, 0)
	s.must(err)
	defer w.Close()
	w.WriteString(" and ha")
	if !OpenForWriting(s.path("f")) {
		t.Error("somebody has it open for writing")
	}
	if _, err := s.Copy(Root{Dir: s.root}, "f", true); !errors.Is(err, ErrBusy) {
		t.Errorf("%v, want %v", err, ErrBusy)
	}
	if b, _ := os.ReadFile(s.copyOf("f")); string(b) != "before" {
		t.Errorf("the earlier copy is %q now", b)
	}
	e, err := s.Copy(Root{Dir: s.root}, "f", false)
	if err != nil || e.Size != 13 || e.Hash != sha256.Sum256([]byte("before and ha")) {
		t.Errorf("%+v, %v", e, err)
	}
	w.WriteString("lf")
	s.must(w.Close())
	s.take("f")
	r, err := os.Open(s.path("f"))
	s.must(err)
	defer r.Close()
	s.take("f") // readers do not matter
}

// TestWriterDuringCopy opens a large file for writing again and again while it
// is copied: the writer hardly waits, the copy gives way, and the process
// survives the signal.
func TestWriterDuringCopy(t *testing.T) {
	s := newStage(t)
	s.write("big", bytes.Repeat([]byte("0123456789abcdef"), 64<<20/16))
	var worst time.Duration
	for range 5 {
		result := make(chan error, 1)
		go func() {
			for {
				if _, err := s.Copy(Root{Dir: s.root}, "big", true); err != nil {
					result <- err
					return
				}
			}
		}()
		waitForLease(t)
		begin := time.Now()
		w, err := os.OpenFile(s.path("big"), os.O_WRONLY, 0)
		took := time.Since(begin)
		s.must(err)
		err = <-result
		w.Close()
		worst = max(worst, took)
		if !errors.Is(err, ErrBusy) {
			t.Fatalf("%v, want %v", err, ErrBusy)
		}
	}
	t.Logf("the longest that a writer waited: %v", worst)
	if worst > 5*time.Second { // the kernel's patience is 45 s
		t.Error("a copy does not give way to a writer")
	}
	if left, _ := os.ReadDir(filepath.Dir(s.Dir())); len(left) != 1 {
		t.Errorf("left beside the tree: %v", left)
	}
	// Not patient, it gives the lease back and goes on.
	var opened atomic.Bool
	result := make(chan error, 1)
	go func() {
		for {
			last := opened.Load()
			e, err := s.Copy(Root{Dir: s.root}, "big", false)
			if err == nil && e.Size != 64<<20 {
				err = fmt.Errorf("%d bytes", e.Size)
			}
			if err != nil || last {
				result <- err
				return
			}
		}
	}()
	waitForLease(t)
	w, err := os.OpenFile(s.path("big"), os.O_WRONLY, 0)
	s.must(err)
	defer w.Close()
	opened.Store(true)
	s.must(<-result)
}

// waitForLease waits until the process has a lease.
func waitForLease(t *testing.T) {
	t.Helper()
	me := fmt.Sprintf(" %d ", os.Getpid())
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		b, err := os.ReadFile("/proc/locks")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			if strings.Contains(line, "LEASE") && strings.Contains(line, me) {
				return
			}
		}
	}
	t.Fatal("no lease within 5 s")
}

// The two contents of the hammered file; both take several writes.
var contents = [2][]byte{bytes.Repeat([]byte("A"), 100_001), bytes.Repeat([]byte("B"), 70_003)}

// rewrite is a program that writes a file anew all the time, as bad programs do.
func rewrite(path string) {
	for i := 0; ; i++ {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		for c := range slices.Chunk(contents[i%2], 17_000) {
			if _, err := f.Write(c); err != nil {
				os.Exit(1)
			}
		}
		f.Close()
		time.Sleep(time.Duration(i%3) * 200 * time.Microsecond)
		if os.Getppid() == 1 {
			os.Exit(1)
		}
	}
}

// TestHammered copies a file that another process writes again and again: a
// copy is one of its whole states, always.
func TestHammered(t *testing.T) {
	s := newStage(t)
	s.write("f", contents[0])
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), "SNAPSHOT_TEST_REWRITE="+s.path("f"))
	cmd.Stderr = os.Stderr
	s.must(cmd.Start())
	defer cmd.Wait()
	defer cancel()
	good := [2]int{}
	busy := 0
	for deadline := time.Now().Add(20 * time.Second); good[0]+good[1] < 500 && time.Now().Before(deadline); {
		e, err := s.Copy(Root{Dir: s.root}, "f", true)
		if errors.Is(err, ErrBusy) {
			busy++
			time.Sleep(100 * time.Microsecond)
			continue
		}
		s.must(err)
		got, err := os.ReadFile(s.copyOf("f"))
		s.must(err)
		if e.Hash != sha256.Sum256(got) || e.Size != int64(len(got)) {
			t.Fatal("the entry is not what lies in the stage")
		}
		switch {
		case bytes.Equal(got, contents[0]):
			good[0]++
		case bytes.Equal(got, contents[1]):
			good[1]++
		default:
			t.Fatalf("torn: %d bytes, %d A, %d B", len(got), bytes.Count(got, []byte("A")), bytes.Count(got, []byte("B")))
		}
	}
	t.Logf("%d copies of A, %d of B, %d times busy", good[0], good[1], busy)
	if good[0] == 0 || good[1] == 0 {
		t.Error("not both states were seen")
	}
}

// TestReplaced copies a file that is replaced by rename all the time, as good
// programs do: never busy, never gone, never torn.
func TestReplaced(t *testing.T) {
	s := newStage(t)
	s.write("f", contents[0])
	var end atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; !end.Load(); i++ {
			os.WriteFile(s.path("next"), contents[i%2], 0o644)
			os.Rename(s.path("next"), s.path("f"))
		}
	})
	defer wg.Wait()
	defer end.Store(true)
	for range 300 {
		_, err := s.Copy(Root{Dir: s.root}, "f", true)
		s.must(err)
		got, err := os.ReadFile(s.copyOf("f"))
		s.must(err)
		if !bytes.Equal(got, contents[0]) && !bytes.Equal(got, contents[1]) {
			t.Fatalf("torn: %d bytes", len(got))
		}
	}
}

// TestWithoutLeases is as on a filesystem that knows none: a change during the
// copy is seen by the file's times.
func TestWithoutLeases(t *testing.T) {
	s := newStage(t)
	s.write("f", []byte("content"))
	s.write("big", make([]byte, 32<<20))
	for _, name := range []string{"f", "big"} {
		s.must(os.Chown(s.path(name), 12, 34)) // not ours, so a lease takes a capability
	}
	runtime.LockOSThread() // it is this thread's
	defer runtime.UnlockOSThread()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	s.must(unix.Capget(&header, &caps[0]))
	without := caps
	without[0].Effective &^= 1 << unix.CAP_LEASE
	s.must(unix.Capset(&header, &without[0]))
	defer unix.Capset(&header, &caps[0])

	w, err := os.OpenFile(s.path("f"), os.O_WRONLY, 0)
	s.must(err)
	defer w.Close()
	if OpenForWriting(s.path("f")) {
		t.Error("this can not be known")
	}
	s.take("f")
	w, err = os.OpenFile(s.path("big"), os.O_WRONLY, 0)
	s.must(err)
	defer w.Close()
	var end atomic.Bool
	var wg sync.WaitGroup
	writing := make(chan bool)
	wg.Go(func() {
		for i := 0; !end.Load(); i++ {
			w.WriteAt([]byte{byte(i)}, int64(i%32)<<20)
			if i == 0 {
				close(writing)
			}
		}
	})
	<-writing
	_, err = s.Copy(Root{Dir: s.root}, "big", true)
	end.Store(true)
	wg.Wait()
	if !errors.Is(err, ErrBusy) {
		t.Errorf("a file that changes during the copy: %v, want %v", err, ErrBusy)
	}
	s.take("big")
}

func TestDiskFull(t *testing.T) {
	s := newStage(t)
	small := t.TempDir()
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("no mount: %v", err)
	}
	defer unix.Unmount(small, unix.MNT_DETACH)
	var err error
	s.Stage, err = Open(small + "/stage")
	s.must(err)
	s.write("f", []byte("before"))
	s.take("f")
	for _, size := range []int{whole * 3 / 2, 4 << 20} {
		fill := min(size, whole)
		s.must(os.WriteFile(small+"/fill", make([]byte, 1<<20-fill), 0o600))
		s.write("f", make([]byte, size))
		_, err := s.Copy(Root{Dir: s.root}, "f", true)
		if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "staging") {
			t.Fatalf("%v, want %v", err, unix.ENOSPC)
		}
		if b, err := os.ReadFile(s.copyOf("f")); string(b) != "before" {
			t.Errorf("the earlier copy is %q, %v", b, err)
		}
		if left, _ := os.ReadDir(small + "/stage"); len(left) != 1 {
			t.Errorf("beside the tree the stage has %v", left)
		}
	}
	s.must(os.Remove(small + "/fill"))
	s.write("f", make([]byte, whole))
	s.take("f")
}

// TestEntryIsOfMeaning copies what farmguardian has changed: letter by letter, with the entry it had before, and
// the one that a scan finds.
func TestEntryIsOfMeaning(t *testing.T) {
	s := newStage(t)
	root := Root{Name: "config", Dir: s.root}
	take := func(state string) manifest.Entry {
		content := fmt.Appendf(nil, `{"farms": [{"name": "f", "backends": [{"name": "bck0", "state": %q}]}]}`, state)
		s.write("f_l4xnat.cfg", content)
		e, err := s.Copy(root, "f_l4xnat.cfg", true)
		s.must(err)
		copied, err := os.ReadFile(s.copyOf("f_l4xnat.cfg"))
		s.must(err)
		if !bytes.Equal(copied, content) {
			t.Errorf("the copy is %q, want %q", copied, content)
		}
		tree := scan.New(scan.Root{Name: root.Name, Dir: root.Dir, Set: fileset.New()})
		if _, err := tree.Scan(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		if seen, _ := tree.Manifest().Get(e.Path); seen != e {
			t.Errorf("the copy's entry is %+v, a scan's %+v", e, seen)
		}
		return e
	}
	up := take("up")
	if down := take("down"); down != up {
		t.Errorf("%+v became %+v", up, down)
	}
	if off := take("off"); off == up {
		t.Error("maintenance is no change")
	}
}

func BenchmarkCopy(b *testing.B) {
	root := b.TempDir()
	s, err := Open(filepath.Join(b.TempDir(), "stage"))
	if err != nil {
		b.Fatal(err)
	}
	for _, size := range []int{4 << 10, 8 << 20} {
		os.MkdirAll(root+"/a/b", 0o755)
		os.WriteFile(root+"/a/b/f", make([]byte, size), 0o644)
		b.Run(fmt.Sprintf("%d KiB", size>>10), func(b *testing.B) {
			b.SetBytes(int64(size))
			for b.Loop() {
				if _, err := s.Copy(Root{Dir: root}, "a/b/f", true); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
