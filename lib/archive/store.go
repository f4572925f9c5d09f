package archive

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/durable"
	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"github.com/skudonet/skudonet-ce-cluster/lib/smallfile"
)

// Dir is the directory below the state directory.
const Dir = "archive"

// Names in Dir and in an archive.
const (
	partPrefix     = ".part-" // of what is no archive yet, or no more
	infoName       = "manifest.json"
	manifestSuffix = ".manifest" // after a root's name
)

// What is read at most, in bytes.
const (
	maxInfo     = 1 << 20
	maxManifest = 256 << 20
)

// Store is the archives of a node. Other processes may use the same at the same time.
type Store struct{ dir string }

// Open makes the directory, 0700, and removes what a crash left.
func Open(stateDir string) (*Store, error) {
	s := &Store{filepath.Join(stateDir, Dir)}
	unlock, err := s.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	info, err := os.Stat(s.dir)
	if err == nil && info.Mode().Perm() != 0o700 {
		err = os.Chmod(s.dir, 0o700)
	}
	if err == nil {
		err = s.removeParts()
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// lock makes the caller the only one who gives names in the directory.
func (s *Store) lock() (unlock func(), err error) {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, err
	}
	d, err := flock(s.dir, unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	return func() { d.Close() }, nil
}

// flock locks the directory dir until it is closed.
func flock(dir string, how int) (*os.File, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for err = unix.EINTR; err == unix.EINTR; {
		err = unix.Flock(int(d.Fd()), how)
	}
	if err != nil {
		d.Close()
		return nil, &fs.PathError{Op: "flock", Path: dir, Err: err}
	}
	return d, nil
}

// removeParts removes what no writer has locked. The directory must be locked.
func (s *Store) removeParts() error {
	all, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	for _, e := range all {
		if !strings.HasPrefix(e.Name(), partPrefix) {
			continue
		}
		part := filepath.Join(s.dir, e.Name())
		d, err := flock(part, unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		err = os.RemoveAll(part)
		d.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// names are those of the archives, the newest first.
func (s *Store) names() ([]string, error) {
	d, err := os.Open(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	names = slices.DeleteFunc(names, func(name string) bool { _, _, ok := splitName(name); return !ok })
	slices.SortFunc(names, func(a, b string) int { return strings.Compare(b, a) })
	return names, nil
}

// read reads the Info of an archive. The error wraps fs.ErrNotExist if there is
// none of that name.
func (s *Store) read(name string) (Info, error) {
	dir := filepath.Join(s.dir, name)
	b, err := smallfile.Read(filepath.Join(dir, infoName), maxInfo)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(dir); err != nil {
			return Info{}, err
		}
		err = errors.New(infoName + " is missing")
	}
	var i Info
	if err == nil {
		i, err = parse(name, b)
	}
	if err != nil {
		return Info{}, fmt.Errorf("archive %s is damaged: %w; take from %s what you need, then remove it", name, err, dir)
	}
	return i, nil
}

// List is all archives, the newest first. The error names those that are
// damaged; the others are returned with it.
func (s *Store) List() ([]Info, error) {
	names, err := s.names()
	if err != nil {
		return nil, err
	}
	var list []Info
	var damaged []error
	for _, name := range names {
		switch i, err := s.read(name); {
		case err == nil:
			list = append(list, i)
		case !errors.Is(err, fs.ErrNotExist): // not one that was pruned just now
			damaged = append(damaged, err)
		}
	}
	return list, errors.Join(damaged...)
}

// Waiting is the conflicts that nobody has resolved, the newest first.
func (s *Store) Waiting() []Info {
	list, _ := s.List()
	return slices.DeleteFunc(list, func(i Info) bool { return !i.Waiting })
}

// Find returns the archive of that name, or the only one whose name begins like that.
func (s *Store) Find(name string) (Info, error) {
	all, err := s.names()
	if err != nil {
		return Info{}, err
	}
	if slices.Contains(all, name) {
		return s.read(name)
	}
	var found []string
	for _, n := range all {
		if name != "" && strings.HasPrefix(n, name) {
			found = append(found, n)
		}
	}
	switch {
	case len(found) == 1:
		return s.read(found[0])
	case len(found) > 1:
		return Info{}, fmt.Errorf("more than one archive begins with %q: %s", name, some(found))
	case len(all) == 0:
		return Info{}, fmt.Errorf("no archive %q: there is none at all", name)
	}
	return Info{}, fmt.Errorf("no archive %q; there are: %s", name, some(all))
}

// some names a few of names.
func some(names []string) string {
	const few = 10
	if more := len(names) - few; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:few], ", "), more)
	}
	return strings.Join(names, ", ")
}

// Tree is what the archive has of a root: the directory that the files are in,
// and the entries. Directories above an entry are there with mode and owner, also
// those that are no entries. The error wraps fs.ErrNotExist if it has nothing of root.
func (s *Store) Tree(i Info, root string) (dir string, m *manifest.Manifest, err error) {
	entries, ok := i.Roots[root]
	if !ok {
		return "", nil, fmt.Errorf("archive %s has nothing of %q: %w", i.Name, root, fs.ErrNotExist)
	}
	dir = filepath.Join(s.dir, i.Name, root)
	b, err := smallfile.Read(dir+manifestSuffix, maxManifest)
	if err == nil {
		m, err = manifest.Parse(b)
	}
	if err == nil && m.Len() != entries {
		err = fmt.Errorf("%d entries, want %d", m.Len(), entries)
	}
	if err == nil {
		var info fs.FileInfo
		if info, err = os.Lstat(dir); err == nil && !info.IsDir() {
			err = fmt.Errorf("%s: not a directory", dir)
		}
	}
	if err != nil {
		return "", nil, fmt.Errorf("archive %s is damaged: %s: %v", i.Name, root, err)
	}
	return dir, m, nil
}

// Resolve ends the waiting of the conflict id. How is Ours or Theirs, or empty
// where only the other node knows. It is no error if nothing waits.
func (s *Store) Resolve(id, how string) error {
	if err := oneOf("resolved", how, "", Ours, Theirs); err != nil {
		return err
	}
	unlock, err := s.lock()
	if err != nil {
		return err
	}
	defer unlock()
	for _, i := range s.Waiting() {
		if i.ID != id {
			continue
		}
		i.Waiting, i.Resolved, i.Ended = false, how, time.Now().UTC().Truncate(time.Millisecond)
		b, err := i.encode()
		if err == nil {
			err = durable.WriteFile(filepath.Join(s.dir, i.Name, infoName), b, 0o600)
		}
		if err != nil {
			return s.explained(err)
		}
	}
	return nil
}

// explained is err with what to do if there is no space.
func (s *Store) explained(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w; make room on the filesystem of %s", err, s.dir)
	}
	return err
}
