package beside

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRenameWorks asks for the place, and puts a file from there into the tree.
func TestRenameWorks(t *testing.T) {
	top := t.TempDir()
	for _, dir := range []string{"plain", "mount", "bind", "links"} {
		if err := os.Mkdir(top+"/"+dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../plain", top+"/links/tree"); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", top+"/mount", "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("no mount: %v", err)
	}
	defer unix.Unmount(top+"/mount", unix.MNT_DETACH)
	if err := unix.Mount(top+"/bind", top+"/bind", "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(top+"/bind", unix.MNT_DETACH)
	for tree, want := range map[string]string{"plain": "", "links/tree": "", "mount": "/mount", "bind": "/bind"} {
		dir, err := Dir(top+"/"+tree, "x")
		if err != nil || dir != top+want+"/x" {
			t.Errorf("%s: %s, %v", tree, dir, err)
			continue
		}
		if err := os.WriteFile(dir, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(dir, top+"/"+tree+"/file"); err != nil {
			t.Errorf("%s: %v", tree, err)
		}
	}
	if dir, err := Dir(top+"/missing", "x"); !os.IsNotExist(err) {
		t.Errorf("of a tree that is not there: %s, %v", dir, err)
	}
}
