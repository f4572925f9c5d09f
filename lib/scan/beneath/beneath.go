// Package beneath opens and examines paths below a directory, one name after
// the other, so that no symbolic link is followed, whoever changes the tree
// meanwhile. Only the directory at the top may be reached through links.
//
// Directories are plain file descriptors; whoever opened one closes it.
package beneath

import (
	"errors"
	"fmt"
	"strings"

	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"golang.org/x/sys/unix"
)

// ErrKind is a path that is neither a file nor a directory nor a symlink, or
// not the one of them that was to be opened.
var ErrKind = errors.New("not a file, directory or symlink")

// Top opens the directory that everything else is beneath.
func Top(dir string) (int, error) {
	fd, err := openat(unix.AT_FDCWD, dir, unix.O_DIRECTORY)
	if err != nil {
		return -1, fmt.Errorf("%s: %w", dir, err)
	}
	return fd, nil
}

// Dir opens the directory name of the directory at. A symlink is ENOTDIR.
func Dir(at int, name string) (int, error) {
	return openat(at, name, unix.O_DIRECTORY|unix.O_NOFOLLOW)
}

// Parent opens the directory that path is in and returns it with path's last
// name. Of "." it is top itself and ".". The error wraps ENOENT or ENOTDIR
// where there is no such directory.
func Parent(top int, path string) (at int, name string, err error) {
	if at, err = Dir(top, "."); err != nil {
		return -1, "", err
	}
	for {
		name, rest, more := strings.Cut(path, "/")
		if !more {
			return at, name, nil
		}
		next, err := Dir(at, name)
		unix.Close(at)
		if err != nil {
			return -1, "", err
		}
		at, path = next, rest
	}
}

// File opens a regular file for reading and examines it. It never blocks:
// ErrKind if name is something else by now, also a symlink.
func File(at int, name string) (int, unix.Stat_t, error) {
	var st unix.Stat_t
	fd, err := openat(at, name, unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY)
	switch {
	case err == unix.ELOOP || err == unix.ENXIO: // a symlink; a socket
		return -1, st, ErrKind
	case err != nil:
		return -1, st, err
	}
	if err = unix.Fstat(fd, &st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = ErrKind
	}
	if err != nil {
		unix.Close(fd)
		return -1, st, err
	}
	return fd, st, nil
}

// Stat examines name itself, not what it may point to.
func Stat(at int, name string) (st unix.Stat_t, err error) {
	err = again(func() error { return unix.Fstatat(at, name, &st, unix.AT_SYMLINK_NOFOLLOW) })
	return st, err
}

// Readlink is the target of the symlink name.
func Readlink(at int, name string) (string, error) {
	var b [4096]byte // longer than any target
	n, err := unix.Readlinkat(at, name, b[:])
	if err != nil {
		return "", err
	}
	return string(b[:n]), nil
}

// Names lists the directory fd, which must be freshly opened, without order.
// Space is memory to work with, a few KiB at least.
func Names(fd int, space []byte) ([]string, error) {
	var names []string
	for {
		var n int
		err := again(func() (err error) { n, err = unix.ReadDirent(fd, space); return err })
		if err != nil {
			return nil, err
		}
		if n <= 0 {
			return names, nil
		}
		_, _, names = unix.ParseDirent(space[:n], -1, names)
	}
}

// Read is read(2).
func Read(fd int, b []byte) (n int, err error) {
	err = again(func() (err error) { n, err = unix.Read(fd, b); return err })
	return n, err
}

// Entry is what st says about path; hash and target are the caller's to fill
// in. The error is ErrKind, with the word for what it is.
func Entry(path string, st *unix.Stat_t) (manifest.Entry, error) {
	e := manifest.Entry{Path: path, Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		e.Kind, e.Size = manifest.File, st.Size
	case unix.S_IFDIR:
		e.Kind = manifest.Dir
	case unix.S_IFLNK:
		e.Kind, e.Mode = manifest.Link, 0
	default:
		return e, fmt.Errorf("%w: a %s", ErrKind, word(st.Mode))
	}
	return e, nil
}

func word(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFIFO:
		return "FIFO"
	case unix.S_IFSOCK:
		return "socket"
	case unix.S_IFCHR, unix.S_IFBLK:
		return "device"
	}
	return "strange thing"
}

// Gone tells whether err says that a path does not exist, also because
// something above it is not a directory.
func Gone(err error) bool { return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) }

func openat(at int, name string, flags int) (fd int, err error) {
	err = again(func() (err error) {
		fd, err = unix.Openat(at, name, unix.O_RDONLY|unix.O_CLOEXEC|flags, 0)
		return err
	})
	return fd, err
}

// again calls f until no signal interrupts it.
func again(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}
