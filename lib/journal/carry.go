package journal

import (
	"io"
	"os"

	"github.com/skudonet/skudonet-ce-cluster/lib/fileset"
	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"github.com/skudonet/skudonet-ce-cluster/lib/scan/beneath"
	"golang.org/x/sys/unix"
)

// carry puts a staged file in place where something is mounted inside the tree:
// by a copy in the same directory, under a name that is part of no set. The copy
// is on the disk before it gets its name, and has it before the staged one goes.
func (p *part) carry(from int, staged string, at int, name string, to *manifest.Entry) error {
	const copied = fileset.StageName
	step("copy %s %s", p.Root, to.Path)
	if err := unix.Unlinkat(at, copied, 0); err != nil && err != unix.ENOENT { // one that was cut short
		return err
	}
	err := duplicate(from, staged, at, copied, to)
	if err == nil {
		step("rename the copy %s %s", p.Root, to.Path)
		err = unix.Renameat(at, copied, at, name)
	}
	if err != nil {
		unix.Unlinkat(at, copied, 0)
		return err
	}
	if err := unix.Fsync(at); err != nil {
		return err
	}
	step("remove the staged %s %s", p.Root, to.Path)
	return unix.Unlinkat(from, staged, 0)
}

// duplicate makes a copy of a staged file or symlink, with mode and owner.
func duplicate(from int, staged string, at int, name string, e *manifest.Entry) error {
	if e.Kind == manifest.Link {
		if err := unix.Symlinkat(e.Target, at, name); err != nil {
			return err
		}
		return unix.Fchownat(at, name, int(e.UID), int(e.GID), unix.AT_SYMLINK_NOFOLLOW)
	}
	fd, _, err := beneath.File(from, staged)
	if err != nil {
		return err
	}
	in := os.NewFile(uintptr(fd), staged)
	defer in.Close()
	fd, err = unix.Openat(at, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	out := os.NewFile(uintptr(fd), name)
	defer out.Close()
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	if err := out.Chown(int(e.UID), int(e.GID)); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, e.Mode); err != nil {
		return err
	}
	return out.Sync()
}
