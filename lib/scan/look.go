package scan

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"github.com/skudonet/skudonet-ce-cluster/lib/meaning"
	"github.com/skudonet/skudonet-ce-cluster/lib/scan/beneath"
	"golang.org/x/sys/unix"
)

var (
	errRemoved  = errors.New("the directory was removed while it was looked at")
	errUnsteady = errors.New("changes between file, directory and symlink all the time")
)

// look is one Scan or Look.
type look struct {
	*Tree
	ctx   context.Context
	read  bool // read the files that look the same, too
	fd    int  // the root's directory
	r     Report
	space []byte
	sum   meaning.Sum
	inode map[uint64]bool // those that were looked at and have other names
}

// path looks at one path, by way of the directories above it.
func (l *look) path(path string) error {
	l.walk++
	if path == "." {
		return l.whole()
	}
	at, err := beneath.Dir(l.fd, ".")
	if err != nil {
		return err
	}
	defer func() { unix.Close(at) }()
	for i := range len(path) {
		if path[i] != '/' {
			continue
		}
		dir := path[:i]
		next, err := beneath.Dir(at, base(dir))
		switch {
		case beneath.Gone(err):
			return l.entry(at, dir) // what is there instead decides about everything below
		case err != nil:
			l.unreadable(dir, err)
			return nil
		}
		unix.Close(at)
		at = next
		if l.root.Set.Skip(dir, true) {
			l.remove(dir)
			return nil
		}
		if err := l.parent(at, dir); err != nil {
			l.unreadable(dir, err)
			return nil
		}
	}
	if err := l.entry(at, path); err != nil {
		return err
	}
	if e, _ := l.manifest.Get(path); e.Kind != manifest.Dir {
		return nil
	}
	return l.sweep(path)
}

// parent makes a directory known above a path that is looked at.
func (l *look) parent(fd int, path string) error {
	if e, known := l.manifest.Get(path); known && e.Kind == manifest.Dir {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	e, err := beneath.Entry(path, &st)
	if err == nil {
		l.enter(e, attributes(&st))
	}
	return err
}

// whole looks at everything.
func (l *look) whole() error {
	at, err := beneath.Dir(l.fd, ".")
	if err != nil {
		return err
	}
	defer unix.Close(at)
	names, err := beneath.Names(at, l.space)
	if err != nil {
		return err
	}
	if err := l.alive(); err != nil {
		return err
	}
	if l.top {
		var st unix.Stat_t
		if err := unix.Fstat(at, &st); err != nil {
			return err
		}
		e, _ := beneath.Entry(".", &st)
		l.enter(e, attributes(&st))
	}
	if !l.read && l.manifest.Len() > 0 {
		if names, err = l.survey(names); err != nil {
			return err
		}
	}
	if err := l.settle(names); err != nil {
		return err
	}
	return l.sweep(".")
}

// entry looks at path, which is in the directory at, and at everything below.
func (l *look) entry(at int, path string) error {
	if len(path) >= unix.PathMax {
		l.unreadable(path, unix.ENAMETOOLONG) // nobody could name it to the kernel, nor a manifest hold it
		return nil
	}
	// When it changes its kind in the middle, begin again.
	for range 5 {
		if err := l.ctx.Err(); err != nil {
			return err
		}
		st, err := beneath.Stat(at, base(path))
		if beneath.Gone(err) {
			return l.gone(path)
		}
		if err != nil {
			l.unreadable(path, err)
			return nil
		}
		if l.root.Set.Skip(path, st.Mode&unix.S_IFMT == unix.S_IFDIR) {
			l.remove(path)
			return nil
		}
		e, err := beneath.Entry(path, &st)
		if err != nil {
			l.remove(path)
			l.r.Special = append(l.r.Special, Problem{path, err})
			return nil
		}
		again := false
		switch e.Kind {
		case manifest.File:
			again = l.file(at, path, &st)
		case manifest.Link:
			again = l.link(at, e, &st)
		default:
			again, err = l.dir(at, e, &st)
		}
		if err == nil {
			err = l.ctx.Err()
		}
		if err != nil || !again {
			return err
		}
	}
	l.unreadable(path, errUnsteady)
	return nil
}

// file looks at a file that was st a moment ago, and reads it if need be.
func (l *look) file(at int, path string, st *unix.Stat_t) (again bool) {
	if m := l.memory[path]; !l.read && m != nil && m.still(st) {
		m.walk = l.walk
		return false
	}
	now := time.Now()
	fd, opened, err := beneath.File(at, base(path))
	if err != nil {
		return l.refused(path, err)
	}
	defer unix.Close(fd)
	e, err := beneath.Entry(path, &opened)
	if err == nil {
		l.sum.Begin(meaning.Of(l.root.Name, path))
		err = l.content(fd, opened.Size)
	}
	if err != nil {
		return l.refused(path, err)
	}
	m := newMemory(&opened, now, l.sum.Len())
	e.Size, e.Hash = l.sum.End()
	l.linked(&m)
	l.enter(e, m)
	return false
}

// linked remembers an inode that has other names.
func (l *look) linked(m *memory) {
	if m.linked {
		if l.inode == nil {
			l.inode = make(map[uint64]bool)
		}
		l.inode[m.inode] = true
	}
}

// otherNames are the known ones of what was looked at by one name since the walk before.
func (l *look) otherNames(before uint32) (paths []string) {
	if len(l.inode) == 0 {
		return nil
	}
	for path, m := range l.memory {
		if m.walk <= before && l.inode[m.inode] {
			paths = append(paths, path)
		}
	}
	slices.Sort(paths)
	return paths
}

// content reads size bytes at most, what the file had when it was opened: a
// file that grows all the while still has an end.
func (l *look) content(fd int, size int64) error {
	for l.sum.Len() < size {
		if err := l.ctx.Err(); err != nil {
			return err
		}
		n, err := beneath.Read(fd, l.space[:min(size-l.sum.Len(), int64(len(l.space)))])
		if err != nil {
			return err
		}
		if n == 0 {
			break // it became shorter
		}
		l.sum.Write(l.space[:n])
	}
	return nil
}

// link looks at a symlink that was st a moment ago.
func (l *look) link(at int, e manifest.Entry, st *unix.Stat_t) (again bool) {
	now := time.Now()
	var err error
	if e.Target, err = beneath.Readlink(at, base(e.Path)); err != nil {
		return l.refused(e.Path, err)
	}
	l.enter(e, newMemory(st, now, int64(len(e.Target))))
	return false
}

// dir looks at a directory, that was st a moment ago, and everything in it. Errors are those that end the
// whole look.
func (l *look) dir(at int, e manifest.Entry, st *unix.Stat_t) (again bool, err error) {
	fd, err := beneath.Dir(at, base(e.Path))
	if !beneath.Gone(err) {
		l.enter(e, attributes(st))
	}
	if err != nil {
		return l.refused(e.Path, err), nil
	}
	defer unix.Close(fd)
	names, err := beneath.Names(fd, l.space)
	if err != nil {
		return l.refused(e.Path, err), nil // removed meanwhile, or an error of the disk
	}
	for _, name := range names {
		if err := l.entry(fd, e.Path+"/"+name); err != nil {
			return false, err
		}
	}
	return false, nil
}

// sweep looks once more at everything known below dir that did not show up: a
// directory that changes while it is listed may hide a name that it has.
func (l *look) sweep(dir string) error {
	for _, path := range l.manifest.Below(dir) {
		m := l.memory[path]
		if m == nil || m.walk == l.walk {
			continue // left in the meantime, or was there
		}
		at, _, err := beneath.Parent(l.fd, path)
		if err != nil {
			err = l.lost(path, err)
		} else {
			err = l.entry(at, path)
			unix.Close(at)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// refused deals with an error about something that was there a moment ago:
// again if it may be something else by now.
func (l *look) refused(path string, err error) (again bool) {
	if beneath.Gone(err) || errors.Is(err, beneath.ErrKind) || err == unix.EINVAL {
		return true
	}
	if l.ctx.Err() == nil {
		l.unreadable(path, err)
	}
	return false
}

// unreadable names a problem. A directory keeps what is known of it and below.
func (l *look) unreadable(path string, err error) {
	l.r.Unreadable = append(l.r.Unreadable, Problem{path, err})
	e, known := l.manifest.Get(path)
	if !known {
		return
	}
	if e.Kind != manifest.Dir {
		l.remove(path)
		return
	}
	l.memory[path].walk = l.walk
	for _, path := range l.manifest.Below(path) {
		l.memory[path].walk = l.walk
	}
}

// enter makes e the truth about its path.
func (l *look) enter(e manifest.Entry, m memory) {
	if old, known := l.manifest.Get(e.Path); known && old.Kind == manifest.Dir && e.Kind != manifest.Dir {
		l.removeBelow(e.Path)
	}
	if l.manifest.Set(e) {
		l.r.Changed = append(l.r.Changed, e.Path)
	}
	kept := l.memory[e.Path]
	if kept == nil {
		kept = new(memory)
		l.memory[e.Path] = kept
	}
	l.linked(kept)
	*kept = m
	kept.walk = l.walk
}

// gone removes a path that does not exist, unless it was the root that went.
func (l *look) gone(path string) error {
	if err := l.alive(); err != nil {
		return err
	}
	l.remove(path)
	return nil
}

// alive tells whether the root's directory still exists. If not, it has no
// files either, but that is not what the administrator means by it.
func (l *look) alive() error {
	var st unix.Stat_t
	if err := unix.Fstat(l.fd, &st); err != nil {
		return err
	}
	if st.Nlink == 0 {
		return errRemoved
	}
	return nil
}

// remove takes out path with everything below it.
func (l *look) remove(path string) {
	if _, known := l.manifest.Get(path); known {
		l.removeBelow(path)
		l.drop(path)
	}
}

func (l *look) removeBelow(path string) {
	for _, path := range l.manifest.Below(path) {
		l.drop(path)
	}
}

func (l *look) drop(path string) {
	l.manifest.Remove(path)
	l.linked(l.memory[path])
	delete(l.memory, path)
	l.r.Changed = append(l.r.Changed, path)
}

// base is the last name of path.
func base(path string) string { return path[strings.LastIndexByte(path, '/')+1:] }

// attributes is the memory of a directory that was st; what is in it is remembered by itself.
func attributes(st *unix.Stat_t) memory {
	return memory{mode: uint16(st.Mode), uid: st.Uid, gid: st.Gid}
}

// newMemory is of a file or symlink that was st when it was opened, after the time now, and
// of which size bytes were read.
func newMemory(st *unix.Stat_t, now time.Time, size int64) memory {
	m := attributes(st)
	m.inode, m.size, m.ctime, m.mtime = st.Ino, st.Size, st.Ctim.Nano(), st.Mtim.Nano()
	m.doubtful = size != st.Size || m.ctime > now.Add(-racy).UnixNano()
	m.linked = st.Nlink > 1
	return m
}

// still tells whether what looks like st is what it was: a directory but for what is in it.
func (m *memory) still(st *unix.Stat_t) bool {
	if m.doubtful || m.mode != uint16(st.Mode) || m.uid != st.Uid || m.gid != st.Gid {
		return false
	}
	return st.Mode&unix.S_IFMT == unix.S_IFDIR ||
		m.inode == st.Ino && m.size == st.Size && m.ctime == st.Ctim.Nano() && m.mtime == st.Mtim.Nano()
}
