package journal

import (
	"crypto/sha256"
	"errors"
	"io"
	"os"

	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"github.com/skudonet/skudonet-ce-cluster/lib/scan/beneath"
	"golang.org/x/sys/unix"
)

var errUnsteady = errors.New("is being changed all the time: left as it is")

// of is what h makes of the content.
func (h Hash) of(root, path string, r io.Reader) (manifest.Hash, int64, error) {
	if h != nil {
		return h(root, path, r)
	}
	sum := sha256.New()
	n, err := io.Copy(sum, r)
	return manifest.Hash(sum.Sum(nil)), n, err
}

// meet is what is at the change's path now, nil for nothing. What is neither
// what the plan expects there nor what it wants has been handed to replaced by
// then, exactly as it is returned. The error is beneath.ErrKind for what is no
// part of any tree.
func (p *part) meet(at int, name string, c manifest.Change) (*manifest.Entry, error) {
	for range 5 {
		now, st, err := p.look(at, name, c.Path)
		switch {
		case errors.Is(err, unix.ENOENT):
			return nil, nil
		case err == errAgain:
			continue
		case err != nil:
			return nil, err
		}
		if p.replaced != nil && !expected(c, now) {
			if err := p.replaced(p.Root, c.Path, now); err != nil {
				return nil, stop{err}
			}
		}
		if again, err := beneath.Stat(at, name); err == nil && same(&again, &st) {
			return &now, nil
		}
	}
	return nil, errUnsteady
}

// errAgain is a path that was one thing and then another.
var errAgain = errors.New("changed meanwhile")

// look is what is at path. Hash and size are as in a manifest.
func (p *part) look(at int, name, path string) (e manifest.Entry, st unix.Stat_t, err error) {
	if st, err = beneath.Stat(at, name); err != nil {
		return e, st, err
	}
	if e, err = beneath.Entry(path, &st); err != nil {
		return e, st, err
	}
	switch e.Kind {
	case manifest.Link:
		if e.Target, err = beneath.Readlink(at, name); err == unix.EINVAL {
			err = errAgain
		}
	case manifest.File:
		var fd int
		if fd, st, err = beneath.File(at, name); errors.Is(err, beneath.ErrKind) {
			return e, st, errAgain
		} else if err != nil {
			return e, st, err
		}
		f := os.NewFile(uintptr(fd), path)
		defer f.Close()
		if e, err = beneath.Entry(path, &st); err == nil {
			e.Hash, e.Size, err = p.hash.of(p.Root, path, f)
		}
	}
	return e, st, err
}

// same tells whether nothing has happened to what was st. The times of a
// directory that this change has emptied are others.
func same(a, b *unix.Stat_t) bool {
	return a.Ino == b.Ino && a.Mode == b.Mode && a.Uid == b.Uid && a.Gid == b.Gid &&
		(a.Mode&unix.S_IFMT == unix.S_IFDIR || a.Size == b.Size && a.Mtim == b.Mtim && a.Ctim == b.Ctim)
}

// expected tells whether the plan accounts for e at the change's path: it is
// what was there, what shall be there, or a directory between the two.
func expected(c manifest.Change, e manifest.Entry) bool {
	switch {
	case c.From != nil && e == *c.From, c.To != nil && e == *c.To:
		return true
	case c.To == nil || c.To.Kind != manifest.Dir || e.Kind != manifest.Dir:
		return false
	}
	owned := e.UID == c.To.UID && e.GID == c.To.GID
	if c.From != nil && c.From.Kind == manifest.Dir {
		return owned && e.Mode == c.From.Mode
	}
	// As made gives it, of whichever group its parent has it in.
	return e.Mode&0o777 == made && (owned || e.UID == uint32(os.Geteuid()))
}

// made is the mode of a new directory until everything is in it.
const made = 0o700
