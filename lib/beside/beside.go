// Package beside finds the place for a directory from which files can be renamed
// into a tree, and which a reader of the tree does not meet.
package beside

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Dir is the path of the directory name for the tree: beside the tree, or in it
// if the tree is a mount of its own. It makes nothing. Links that lead to the tree
// are followed.
func Dir(tree, name string) (string, error) {
	real, err := filepath.EvalSymlinks(tree)
	if err != nil {
		return "", err
	}
	at := filepath.Dir(real)
	same, err := sameMount(at, real)
	if err != nil {
		return "", err
	}
	if !same {
		at = real
	}
	return filepath.Join(at, name), nil
}

// sameMount tells whether a file can be renamed from one directory to the other.
func sameMount(a, b string) (bool, error) {
	var x, y unix.Statx_t
	for path, st := range map[string]*unix.Statx_t{a: &x, b: &y} {
		if err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_BASIC_STATS|unix.STATX_MNT_ID, st); err != nil {
			return false, &os.PathError{Op: "stat", Path: path, Err: err}
		}
	}
	return x.Dev_major == y.Dev_major && x.Dev_minor == y.Dev_minor && x.Mnt_id == y.Mnt_id, nil
}
