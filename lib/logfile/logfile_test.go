package logfile

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

const long = 10 * time.Second

// open begins a log that says on the returned buffer what it cannot put into the
// file. It is tried again after again.
func open(path string, also io.Writer, again time.Duration) (*File, *buffer) {
	var instead buffer
	f := &File{path: path, also: also, instead: &instead, again: again}
	f.start()
	return f, &instead
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

func TestLines(t *testing.T) {
	defer unix.Umask(unix.Umask(0o077))
	path := filepath.Join(t.TempDir(), "skd-inotify.log")
	var also buffer
	f, instead := open(path, &also, long)
	log := f.Logger()
	log.Info("replicated", "files", 3)
	log.Warn("odd name \"a\nb\"")
	log.Error("cannot", "path", "a b")
	f.Flush(long)
	stamp := `\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}(Z|[+-]\d\d:\d\d) `
	want := regexp.MustCompile(`^` + stamp + "info replicated files=3\n" + stamp + "warning odd name \"a\\?b\"\n" +
		stamp + "error cannot path=\"a b\"\n$")
	if got := read(t, path); !want.MatchString(got) || also.String() != got || instead.String() != "" {
		t.Errorf("file %q\nalso %q\ninstead %q", got, also.String(), instead.String())
	}
	if info, _ := os.Stat(path); info.Mode() != mode {
		t.Errorf("mode %v", info.Mode())
	}
}

func TestAppendsAndKeepsTheMode(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	os.WriteFile(path, []byte("old\n"), 0o600)
	f, _ := open(path, nil, long)
	f.Logger().Info("new")
	f.Flush(long)
	if got := read(t, path); !strings.HasPrefix(got, "old\n") || !strings.HasSuffix(got, "info new\n") {
		t.Errorf("%q", got)
	}
	if info, _ := os.Stat(path); info.Mode() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
}

func TestReopen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	f, _ := open(path, nil, long)
	f.Logger().Info("one")
	f.Flush(long)
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	f.Logger().Info("two")
	f.Flush(long)
	f.Reopen()
	f.Flush(long)
	if _, err := os.Stat(path); err != nil {
		t.Error("not opened anew before there is a line:", err)
	}
	f.Logger().Info("three")
	f.Flush(long)
	if got := read(t, path+".1"); strings.Count(got, "\n") != 2 || !strings.HasSuffix(got, "two\n") {
		t.Errorf("old file: %q", got)
	}
	if got := read(t, path); strings.Count(got, "\n") != 1 || !strings.HasSuffix(got, "three\n") {
		t.Errorf("new file: %q", got)
	}
}

// What cannot be a log is said once; the lines are not lost; and once it can be
// written, it is.
func TestUnwritable(t *testing.T) {
	for name, put := range map[string]func(path string) error{
		"cannot open the log: .* is a symlink":        func(p string) error { return os.Symlink("/etc/passwd", p) },
		"cannot open the log: .* is no regular file":  func(p string) error { return unix.Mkfifo(p, 0o600) },
		"cannot open the log: .* is a directory":      func(p string) error { return os.Mkdir(p, 0o700) },
		"cannot open the log: .* no such file or dir": func(p string) error { return os.Remove(filepath.Dir(p)) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "log")
			path := filepath.Join(dir, "log")
			os.Mkdir(dir, 0o700)
			if err := put(path); err != nil {
				t.Fatal(err)
			}
			f, instead := open(path, nil, 0)
			f.Flush(long)
			if !regexp.MustCompile(" error " + name).MatchString(instead.String()) {
				t.Fatalf("at the start: %q", instead.String())
			}
			for i := range 3 {
				f.Logger().Info("line", "n", i)
			}
			f.Flush(long)
			if got := instead.String(); strings.Count(got, "\n") != 4 || !strings.HasSuffix(got, "info line n=2\n") {
				t.Errorf("meanwhile: %q", got)
			}
			os.Remove(path)
			os.MkdirAll(dir, 0o700)
			f.Logger().Info("back")
			f.Logger().Info("there")
			f.Flush(long)
			got := strings.Split(read(t, path), "\n")
			if len(got) != 4 || !strings.Contains(got[0], "3 lines are missing here") || !strings.HasSuffix(got[1], "info back") ||
				!strings.HasSuffix(got[2], "info there") {
				t.Errorf("afterwards: %q", got)
			}
			if strings.Contains(instead.String(), "back") {
				t.Error("a line of the file is on standard error, too")
			}
		})
	}
}

func TestRetriesNowAndThenOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	os.Mkdir(path, 0o700)
	f, _ := open(path, nil, time.Hour)
	f.Flush(long)
	os.Remove(path)
	f.Logger().Info("line")
	f.Flush(long)
	if _, err := os.Stat(path); err == nil {
		t.Error("tried again at once")
	}
	f.Reopen()
	f.Logger().Info("line")
	f.Flush(long)
	if got := read(t, path); !strings.HasSuffix(got, "info line\n") {
		t.Errorf("after Reopen: %q", got)
	}
}

// With a terminal each line is there once, whatever becomes of the file.
func TestAlsoWhileUnwritable(t *testing.T) {
	var also buffer
	f, instead := open("/dev/full", &also, 0)
	f.Logger().Info("one")
	f.Logger().Info("two")
	f.Flush(long)
	if got := also.String(); strings.Count(got, "\n") != 3 || strings.Count(got, "cannot write the log") != 1 || instead.String() != "" {
		t.Errorf("also %q, instead %q", got, instead.String())
	}
}

func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=4096"); err != nil {
		t.Skip("cannot mount a small filesystem:", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	path := filepath.Join(dir, "log")
	f, instead := open(path, nil, 0)
	pad := strings.Repeat("x", 700)
	for i := range 10 {
		f.Logger().Info("line", "n", i, "pad", pad)
	}
	f.Flush(long)
	if got := instead.String(); strings.Count(got, "no space left") != 1 {
		t.Errorf("said: %q", got)
	}
	before := strings.TrimSuffix(read(t, path), "\n")
	if err := unix.Mount("none", dir, "", unix.MS_REMOUNT, "size=65536"); err != nil {
		t.Fatal(err)
	}
	f.Logger().Info("room again")
	f.Flush(long)
	got, ok := strings.CutPrefix(read(t, path), before+"\n")
	if !ok || strings.Count(got, "\n") != 2 || !strings.Contains(got, "lines are missing here") || !strings.HasSuffix(got, "info room again\n") {
		t.Errorf("afterwards: %q", got)
	}
	for i := range 10 {
		n := fmt.Sprintf(" n=%d pad=%s\n", i, pad)
		if !strings.Contains(read(t, path), n) && !strings.Contains(instead.String(), n) {
			t.Errorf("line %d is nowhere", i)
		}
	}
}
