package beneath

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func TestNothingIsFollowed(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(dir+"/a/b", 0o755))
	must(os.WriteFile(dir+"/a/b/file", nil, 0o644))
	must(os.WriteFile(outside+"/file", nil, 0o644))
	must(os.Symlink(outside, dir+"/link"))
	must(os.Symlink(outside+"/file", dir+"/filelink"))
	must(unix.Mkfifo(dir+"/fifo", 0o600))
	l, err := net.Listen("unix", dir+"/socket")
	must(err)
	defer l.Close()
	must(os.Symlink(dir, outside+"/top"))

	top, err := Top(outside + "/top") // here a link is fine
	must(err)
	defer unix.Close(top)
	for _, name := range []string{"link", "filelink", "fifo", "socket", "nothing"} {
		if fd, err := Dir(top, name); err == nil || !Gone(err) {
			t.Errorf("Dir(%s): %d, %v", name, fd, err)
		}
	}
	for _, name := range []string{"link", "filelink", "fifo", "socket", "a"} {
		if fd, _, err := File(top, name); !errors.Is(err, ErrKind) {
			t.Errorf("File(%s): %d, %v", name, fd, err)
		}
	}
	for path, name := range map[string]string{".": ".", "a": "a", "a/b": "b", "a/b/file": "file", "nothing": "nothing"} {
		at, got, err := Parent(top, path)
		if err != nil || got != name {
			t.Errorf("Parent(%s): %q, %v", path, got, err)
			continue
		}
		want, _ := os.Stat(filepath.Join(dir, filepath.Dir(path)))
		f := os.NewFile(uintptr(at), path)
		if info, err := f.Stat(); err != nil || !os.SameFile(info, want) {
			t.Errorf("Parent(%s) is another directory", path)
		}
		f.Close()
	}
	for _, path := range []string{"link/file", "nothing/x", "a/b/file/x", "fifo/x"} {
		if fd, _, err := Parent(top, path); err == nil || !Gone(err) {
			t.Errorf("Parent(%s): %d, %v", path, fd, err)
		}
	}
	at, err := Dir(top, ".")
	must(err)
	defer unix.Close(at)
	names, err := Names(at, make([]byte, 1<<12))
	slices.Sort(names)
	if want := []string{"a", "fifo", "filelink", "link", "socket"}; err != nil || !slices.Equal(names, want) {
		t.Errorf("Names: %q, %v", names, err)
	}
	if target, err := Readlink(top, "link"); err != nil || target != outside {
		t.Errorf("Readlink: %q, %v", target, err)
	}
}
