package journal

import (
	"errors"
	"fmt"
	"slices"

	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"github.com/skudonet/skudonet-ce-cluster/lib/scan/beneath"
	"golang.org/x/sys/unix"
)

var (
	errAbove = errors.New("the directory that it belongs in is gone")
	errSpent = errors.New("was changed after it had been put in place, or its new content was lost: left as it is")
)

// remove takes a path away. What is no part of any tree stays.
func (p *part) remove(c manifest.Change) error {
	at, name, err := beneath.Parent(p.tree, c.Path)
	if beneath.Gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(at)
	now, err := p.meet(at, name, c)
	if errors.Is(err, beneath.ErrKind) || err == nil && now == nil {
		return nil
	}
	if err != nil {
		return err
	}
	return p.unlink(at, name, now)
}

// unlink removes what is at a path. It is fine if it is gone.
func (p *part) unlink(at int, name string, e *manifest.Entry) error {
	step("remove %s %s", p.Root, e.Path)
	flags := 0
	if e.Kind == manifest.Dir {
		flags = unix.AT_REMOVEDIR
	}
	err := unix.Unlinkat(at, name, flags)
	switch {
	case err == unix.ENOTEMPTY || err == unix.EEXIST:
		return occupied(at, name)
	case err == unix.ENOENT:
		return nil
	case err != nil:
		return fmt.Errorf("cannot be removed: %w", err)
	}
	return nil
}

// occupied says what keeps a directory from being removed.
func occupied(at int, name string) error {
	fd, err := beneath.Dir(at, name)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	names, err := beneath.Names(fd, make([]byte, 8<<10))
	if err != nil {
		return err
	}
	if len(names) == 0 {
		return errUnsteady
	}
	return fmt.Errorf("a directory that cannot be removed: it holds %q, which is not part of this change", slices.Min(names))
}

// put makes a path what it shall be, but for the attributes of a directory.
func (p *part) put(c manifest.Change) error {
	at, name, err := beneath.Parent(p.tree, c.Path)
	if beneath.Gone(err) {
		return errAbove
	}
	if err != nil {
		return err
	}
	defer unix.Close(at)
	if c.To.Kind == manifest.Dir {
		now, err := p.meet(at, name, c)
		if err != nil {
			return inTheWay(err)
		}
		return p.mkdir(at, name, now, c.To)
	}
	from, staged, err := beneath.Parent(p.stage, c.Path)
	if err != nil {
		return err
	}
	defer unix.Close(from)
	if _, err := beneath.Stat(from, staged); beneath.Gone(err) {
		return p.done(at, name, c.To)
	} else if err != nil {
		return err
	}
	now, err := p.meet(at, name, c)
	if err != nil {
		return inTheWay(err)
	}
	if now != nil && *now == *c.To {
		return nil
	}
	if now != nil && now.Kind == manifest.Dir {
		if err := p.unlink(at, name, now); err != nil {
			return err
		}
	}
	step("rename %s %s", p.Root, c.Path)
	err = unix.Renameat(from, staged, at, name)
	if err == unix.EXDEV {
		return p.carry(from, staged, at, name, c.To)
	}
	if err != nil {
		return fmt.Errorf("cannot be put in place: %w", err)
	}
	return nil
}

func inTheWay(err error) error {
	if errors.Is(err, beneath.ErrKind) {
		return fmt.Errorf("something that is not replicated is in its place: %w", err)
	}
	return err
}

// done looks at a path whose staged file was put in place by an earlier Apply.
func (p *part) done(at int, name string, to *manifest.Entry) error {
	if now, _, err := p.look(at, name, to.Path); err != nil || now != *to {
		return errSpent
	}
	return nil
}

func (p *part) mkdir(at int, name string, now, to *manifest.Entry) error {
	if now != nil {
		if now.Kind == manifest.Dir {
			return nil
		}
		if err := p.unlink(at, name, now); err != nil {
			return err
		}
	}
	step("make %s %s", p.Root, to.Path)
	return unix.Mkdirat(at, name, made)
}

// attributes gives a directory its owner and mode.
func (p *part) attributes(c manifest.Change) error {
	at, name, err := beneath.Parent(p.tree, c.Path)
	if beneath.Gone(err) {
		return errAbove
	}
	if err != nil {
		return err
	}
	defer unix.Close(at)
	fd, err := beneath.Dir(at, name)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Uid != c.To.UID || st.Gid != c.To.GID {
		step("owner %s %s", p.Root, c.Path)
		if err := unix.Fchown(fd, int(c.To.UID), int(c.To.GID)); err != nil {
			return err
		}
	}
	if st.Mode&0o7777 != c.To.Mode {
		step("mode %s %s", p.Root, c.Path)
		return unix.Fchmod(fd, c.To.Mode)
	}
	return nil
}
