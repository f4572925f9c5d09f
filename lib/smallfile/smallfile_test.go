package smallfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestRead(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	for name, text := range map[string]string{"empty": "", "full": "12345678", "long": "123456789"} {
		if err := os.WriteFile(path(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(path("fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("full", path("link")); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"empty": "", "full": "12345678", "link": "12345678"} {
		if got, err := Read(path(name), 8); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	for name, want := range map[string]string{"long": "larger than 8 bytes", "fifo": "not a regular file", ".": "not a regular file"} {
		if got, err := Read(path(name), 8); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), filepath.Base(path(name))) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if _, err := Read("/dev/zero", 8); err == nil {
		t.Error("read from a device")
	}
	if _, err := Read(path("none"), 8); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}
