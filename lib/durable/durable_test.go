package durable

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

func TestWriteFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	for _, text := range []string{"one", "another", ""} {
		if err := WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		info, serr := os.Stat(path)
		if err != nil || serr != nil || string(got) != text || info.Mode().Perm() != 0o600 {
			t.Errorf("%q, %v, %v, want %q", got, err, info.Mode(), text)
		}
	}
	if list, _ := os.ReadDir(filepath.Dir(path)); len(list) != 1 {
		t.Errorf("left behind: %v", list)
	}
}

func TestFailureChangesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := WriteFile(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path+suffix, 0o700); err != nil { // the new file cannot be written
		t.Fatal(err)
	}
	if err := WriteFile(path, []byte("new"), 0o600); err == nil {
		t.Error("written where nothing can be")
	}
	if got, _ := os.ReadFile(path); string(got) != "old" {
		t.Errorf("it is now %q", got)
	}
}

func TestSyncFiles(t *testing.T) {
	dir := t.TempDir()
	var many []string
	for i := range 2 * fewFiles {
		many = append(many, fmt.Sprint(i))
	}
	if err := os.WriteFile(filepath.Join(dir, "0"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("nowhere", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for _, paths := range [][]string{nil, {".", "0", "gone", "d/gone", "0/gone", "link", "link/gone"}, many} {
		if err := SyncFiles(dir, paths); err != nil {
			t.Errorf("%d paths: %v", len(paths), err)
		}
	}
	if err := SyncFiles(filepath.Join(dir, "none"), many); err == nil {
		t.Error("a tree that is not there is on the disk")
	}
}
