// Package snapshot copies what is to be sent to a staging directory, so that
// what is sent is a whole state of each file and not a moment of its writing.
//
// A file is copied under a read lease (fcntl(2), F_SETLEASE): the kernel grants
// none while anybody has the file open for writing, and has whoever opens it for
// writing wait while there is one. So the lease is held for a moment at a time.
// Programs that open with O_NONBLOCK get EWOULDBLOCK instead of the wait.
package snapshot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"github.com/skudonet/skudonet-ce-cluster/lib/scan/beneath"
	"golang.org/x/sys/unix"
)

var (
	// ErrBusy is a file that somebody has open for writing.
	ErrBusy = errors.New("open for writing")
	// ErrKind is a path that is none of file, directory and symlink.
	ErrKind = beneath.ErrKind
)

// What is in a stage's directory, which nobody else may enter. The tree has
// the attributes of the root that it stands for.
const (
	tree   = "tree"
	fresh  = "new" // a file or symlink that is not complete yet
	remove = "old" // a directory that has to go
)

// Stage is a staging directory. It is not for concurrent use.
type Stage struct{ dir string }

// Open makes the directory dir, or empties it of what an earlier Stage left.
func Open(dir string) (*Stage, error) {
	s := &Stage{dir}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	info, err := os.Lstat(dir)
	if err == nil && !info.IsDir() {
		err = fmt.Errorf("%s: not a directory; remove it", dir)
	}
	if err == nil {
		err = os.Chmod(dir, 0o700)
	}
	if err == nil {
		err = s.Clear()
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Dir is where the copies are, at the paths that they have in their root.
func (s *Stage) Dir() string { return filepath.Join(s.dir, tree) }

// Clear removes all copies.
func (s *Stage) Clear() error {
	if err := s.empty(); err != nil {
		return err
	}
	return os.Mkdir(s.Dir(), 0o700)
}

// Close removes all copies and the directory itself.
func (s *Stage) Close() error {
	if err := s.empty(); err != nil {
		return err
	}
	return os.Remove(s.dir)
}

// empty removes what is ours, and nothing else should dir be the wrong one.
func (s *Stage) empty() error {
	for _, name := range []string{tree, fresh, remove} {
		if err := os.RemoveAll(filepath.Join(s.dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// Root is the directory of a tree, and the tree's name, such as "config".
type Root struct{ Name, Dir string }

// Copy puts path of root's directory into the stage, in place of an earlier
// copy, together with the directories above it: mode and owner alike, and the
// mtime of what is no directory. Of a directory it makes just that, without what
// is in it. No symlink is followed. The entry is what lies in the stage, with size and hash of what
// it means (package meaning).
//
// The error wraps ErrBusy while a file is open for writing, unless patient is
// false: then it copies what there is, at most as much as the file had when
// it was opened. It wraps fs.ErrNotExist if the path is gone, and ErrKind if it
// is nothing to copy. Any other error is about reading it, the root, or the stage.
// After an error an earlier copy of the path may still be there.
func (s *Stage) Copy(root Root, path string, patient bool) (manifest.Entry, error) {
	e, err := s.copy(root, path, patient)
	if beneath.Gone(err) {
		err = fs.ErrNotExist
	}
	if err != nil {
		return manifest.Entry{}, fmt.Errorf("copy %q: %w", path, err)
	}
	return e, nil
}

func (s *Stage) copy(root Root, path string, patient bool) (e manifest.Entry, err error) {
	if err := manifest.CheckPath(path); err != nil {
		return e, err
	}
	from, err := beneath.Top(root.Dir)
	if err != nil {
		return e, apart(err)
	}
	defer func() { unix.Close(from) }()
	stage, err := s.open()
	if err != nil {
		return e, ours(err)
	}
	defer unix.Close(stage)

	// Down both trees at the same time. When the copy is in its place, the
	// directories get their attributes.
	above := places{}
	defer above.close()
	to, err := above.down(stage, tree, from)
	if err != nil {
		return e, err
	}
	names := strings.Split(path, "/")
	last := len(names) - 1
	for _, name := range names[:last] {
		next, err := beneath.Dir(from, name)
		if err != nil {
			return e, err
		}
		unix.Close(from)
		from = next
		if to, err = above.down(to, name, from); err != nil {
			return e, err
		}
	}
	if path == "." {
		e, err = beneath.Entry(path, &above[0].st)
	} else {
		e, err = s.put(source{from, root.Name, names[last], path, patient}, stage, to)
	}
	if aerr := above.attributes(); err == nil {
		err = aerr
	}
	return e, err
}

// open opens the stage's directory, and makes it again if somebody cleaned up.
func (s *Stage) open() (int, error) {
	if _, err := os.Lstat(s.Dir()); errors.Is(err, fs.ErrNotExist) {
		if _, err := Open(s.dir); err != nil {
			return -1, err
		}
	}
	return beneath.Top(s.dir)
}

// ours is err as one about the stage.
func ours(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("staging directory: %w", apart(err))
}

// apart is an error that is not about the path, so that it never looks as if
// the path was gone.
func apart(err error) error {
	if beneath.Gone(err) {
		return errors.New(err.Error())
	}
	return err
}

// source is what is copied.
type source struct {
	at      int // its directory
	root    string
	name    string
	path    string
	patient bool
}

// put copies src into the directory to of the stage.
func (s *Stage) put(src source, stage, to int) (e manifest.Entry, err error) {
	// When it changes its kind in the middle, begin again.
	for range 5 {
		var st unix.Stat_t
		if st, err = beneath.Stat(src.at, src.name); err != nil {
			return e, err
		}
		if e, err = beneath.Entry(src.path, &st); err != nil {
			return e, err
		}
		switch {
		case e.Kind == manifest.Dir:
			if err = directory(to, src.name); err == nil {
				err = attributes(to, src.name, &st)
			}
			return e, ours(err)
		case e.Kind == manifest.Link:
			if e.Target, err = beneath.Readlink(src.at, src.name); err == unix.EINVAL {
				continue
			}
			if err != nil {
				return e, err
			}
			err = ours(symlink(e.Target, stage, &st))
		default:
			if e, err = src.file(stage); err == ErrKind {
				continue
			}
		}
		if err == nil {
			err = ours(s.replace(stage, to, src.name))
		}
		if err != nil {
			unix.Unlinkat(stage, fresh, 0)
		}
		return e, err
	}
	return e, errors.New("changes between file, directory and symlink all the time")
}

func symlink(target string, stage int, st *unix.Stat_t) error {
	unix.Unlinkat(stage, fresh, 0) // of a copy that was cut short
	if err := unix.Symlinkat(target, stage, fresh); err != nil {
		return err
	}
	return attributes(stage, fresh, st)
}

// replace moves the complete copy to its place. An earlier copy is removed
// first: ext4 writes a file that is renamed over another to the disk at once.
func (s *Stage) replace(stage, to int, name string) error {
	switch err := unix.Unlinkat(to, name, 0); err {
	case nil, unix.ENOENT:
	case unix.EISDIR:
		if err := unix.Renameat(to, name, stage, remove); err != nil {
			return err
		}
		if err := os.RemoveAll(filepath.Join(s.dir, remove)); err != nil {
			return err
		}
	default:
		return err
	}
	return unix.Renameat(stage, fresh, to, name)
}

// directory makes the directory name, unless there is one.
func directory(at int, name string) error {
	err := unix.Mkdirat(at, name, 0o700)
	if err != unix.EEXIST {
		return err
	}
	st, err := beneath.Stat(at, name)
	if err != nil || st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return err
	}
	if err := unix.Unlinkat(at, name, 0); err != nil {
		return err
	}
	return unix.Mkdirat(at, name, 0o700)
}

// attributes gives name what st has. The owner comes first: changing it takes
// the setuid bit away.
func attributes(at int, name string, st *unix.Stat_t) error {
	if err := unix.Fchownat(at, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := unix.Fchmodat(at, name, st.Mode&0o7777, 0); err != nil {
			return err
		}
	}
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, st.Mtim}
	return unix.UtimesNanoAt(at, name, times, unix.AT_SYMLINK_NOFOLLOW)
}

// places are the directories above a copy, from the top.
type places []place

type place struct {
	at   int // of the stage, the directory that it is in
	name string
	st   unix.Stat_t // of the one that it is like
	fd   int
	same bool // it is like it already
}

// down makes and opens the directory name, which is to be like the directory
// from.
func (p *places) down(at int, name string, from int) (int, error) {
	next := place{at: at, name: name}
	if err := unix.Fstat(from, &next.st); err != nil {
		return -1, err
	}
	err := directory(at, name)
	if err == nil {
		next.fd, err = beneath.Dir(at, name)
	}
	if err != nil {
		return -1, ours(err)
	}
	var st unix.Stat_t
	if unix.Fstat(next.fd, &st) == nil {
		next.same = st.Mode == next.st.Mode && st.Uid == next.st.Uid && st.Gid == next.st.Gid
	}
	*p = append(*p, next)
	return next.fd, nil
}

// attributes sets those of all places, the deepest first.
func (p places) attributes() error {
	for i := len(p) - 1; i >= 0; i-- {
		if p[i].same {
			continue
		}
		if err := attributes(p[i].at, p[i].name, &p[i].st); err != nil {
			return ours(err)
		}
	}
	return nil
}

func (p *places) close() {
	for _, place := range *p {
		unix.Close(place.fd)
	}
}
