package archive

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/durable"
	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"github.com/skudonet/skudonet-ce-cluster/lib/snapshot"
)

// ErrHeld is a path that the archive has already, as something else: it takes a
// second archive.
var ErrHeld = errors.New("is in the archive already, with another content")

var errEnded = errors.New("the archive was committed or aborted")

const block = 4 << 10 // bytes

// Writer makes one archive. It is not for concurrent use. Every Writer ends with
// Commit or Abort; after either, Abort does nothing.
type Writer struct {
	store *Store
	info  Info
	dir   string
	lock  *os.File
	roots map[string]*root
	err   error // after which nothing goes
}

// root is what the archive has of one root so far.
type root struct {
	stage    *snapshot.Stage
	manifest *manifest.Manifest
	above    map[string]bool // directories that something is in
	bytes    int64
}

// Begin begins an archive. Of i it takes what a caller knows: all but the name
// and the sizes. Without Made it is made now.
func (s *Store) Begin(i Info) (*Writer, error) {
	if i.Made.IsZero() {
		i.Made = time.Now()
	}
	i.Made = i.Made.UTC().Truncate(time.Millisecond)
	i.Name, i.Files, i.Bytes, i.Roots = "", 0, 0, map[string]int{}
	if err := i.check(); err != nil {
		return nil, fmt.Errorf("archive: %w", err)
	}
	unlock, err := s.lock()
	if err != nil {
		return nil, s.explained(err)
	}
	defer unlock()
	w := &Writer{store: s, info: i, roots: map[string]*root{}}
	if w.dir, err = os.MkdirTemp(s.dir, partPrefix); err != nil {
		return nil, s.explained(err)
	}
	if w.lock, err = flock(w.dir, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		os.Remove(w.dir)
		return nil, err
	}
	return w, nil
}

// Add copies path of the directory dir as it is now: content, mode, owner. Of a
// directory it takes just that, without what is in it; of a symlink its target;
// it follows none. A path that does not exist is no error, nor is what is neither
// file, directory nor symlink: there is nothing to keep. A path that was added
// before is none either, unless it has changed: ErrHeld, and the Writer goes on. After any
// other error only Abort is left.
func (w *Writer) Add(rootName, dir, path string) error {
	if w.err != nil {
		return w.err
	}
	err := w.add(rootName, dir, path)
	if err != nil {
		err = fmt.Errorf("archive: %s: %w", rootName, w.store.explained(err))
		if !errors.Is(err, ErrHeld) {
			w.err = err
		}
	}
	return err
}

func (w *Writer) add(name, dir, path string) error {
	if err := errors.Join(checkRoot(name), manifest.CheckPath(path)); err != nil {
		return err
	}
	r := w.roots[name]
	if r == nil {
		stage, err := snapshot.Open(w.stage(name))
		if err != nil {
			return err
		}
		r = &root{stage: stage, manifest: manifest.New(), above: map[string]bool{}}
		w.roots[name] = r
	}
	from := snapshot.Root{Name: name, Dir: dir}
	if r.meets(path) {
		if done, err := w.again(r, from, path); done || err != nil {
			return err
		}
	}
	e, err := steady(r.stage, from, path)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, snapshot.ErrKind):
		return nil
	case err != nil:
		return err
	case r.above[path] && e.Kind != manifest.Dir:
		return fmt.Errorf("%q: changes all the while", path) // and what was below it is lost
	}
	r.enter(e)
	return nil
}

// meets tells whether the archive has path, or something that cannot be beside it.
func (r *root) meets(path string) bool {
	_, known := r.manifest.Get(path)
	return known || r.above[path] || r.blocks(path)
}

// blocks tells whether the archive has something else than a directory above path.
func (r *root) blocks(path string) bool {
	for up := parent(path); up != "."; up = parent(up) {
		if e, known := r.manifest.Get(up); known && e.Kind != manifest.Dir {
			return true
		}
	}
	return false
}

// again compares path, which meets, with what the archive has. It is not done
// with a directory in which other paths are.
func (w *Writer) again(r *root, from snapshot.Root, path string) (done bool, err error) {
	stage, err := snapshot.Open(w.stage(".again"))
	if err != nil {
		return false, err
	}
	e, err := steady(stage, from, path)
	if cerr := stage.Close(); cerr != nil {
		return false, cerr
	}
	held, known := r.manifest.Get(path)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, snapshot.ErrKind):
		return true, nil
	case err != nil:
		return false, err
	case known && held == e:
		return true, nil
	case known, r.blocks(path), e.Kind != manifest.Dir:
		return false, fmt.Errorf("%q %w", path, ErrHeld)
	}
	return false, nil
}

func (r *root) enter(e manifest.Entry) {
	r.manifest.Set(e)
	for up := parent(e.Path); up != "." && !r.above[up]; up = parent(up) {
		r.above[up] = true
	}
	switch e.Kind {
	case manifest.File:
		r.bytes += (e.Size + block - 1) / block * block
	case manifest.Dir:
		r.bytes += block
	}
}

func parent(p string) string { return path.Dir(p) }

// stage is where the copies of a root are until the archive is committed.
func (w *Writer) stage(name string) string { return filepath.Join(w.dir, name+".stage") }

// steady copies path to the stage. A file that somebody has open for writing is
// copied until two copies are the same, which is then a state that it was in.
func steady(s *snapshot.Stage, from snapshot.Root, path string) (manifest.Entry, error) {
	e, err := s.Copy(from, path, true)
	if !errors.Is(err, snapshot.ErrBusy) {
		return e, err
	}
	const tries = 20
	var last manifest.Entry
	for range tries {
		if e, err = s.Copy(from, path, false); err != nil || e == last {
			return e, err
		}
		last = e
	}
	return e, fmt.Errorf("%q: is being written all the while, tried %d times", path, tries)
}

// Empty tells whether there is nothing to commit.
func (w *Writer) Empty() bool {
	for _, r := range w.roots {
		if r.manifest.Len() > 0 {
			return false
		}
	}
	return true
}

// Commit returns when the archive is on the disk, whole and under its name.
// After an error there is none.
func (w *Writer) Commit() (Info, error) {
	if err := w.err; err != nil {
		w.Abort()
		return Info{}, err
	}
	err := w.commit()
	w.Abort() // there is nothing left if that went well
	if err != nil {
		return Info{}, fmt.Errorf("archive: %w", w.store.explained(err))
	}
	return w.info, nil
}

func (w *Writer) commit() error {
	for _, name := range slices.Sorted(maps.Keys(w.roots)) {
		if err := w.finish(name, w.roots[name]); err != nil {
			return err
		}
	}
	b, err := w.info.encode()
	if err != nil {
		return err
	}
	if err := durable.WriteFile(filepath.Join(w.dir, infoName), b, 0o600); err != nil { // which syncs the directory, too
		return err
	}
	unlock, err := w.store.lock()
	if err != nil {
		return err
	}
	defer unlock()
	names, err := w.store.names()
	if err != nil {
		return err
	}
	w.info.Name = nameAfter(slices.Concat(names, []string{""})[0], w.info.Made, w.info.Reason)
	if _, _, ok := splitName(w.info.Name); !ok {
		return fmt.Errorf("no later name than %s: rename or remove that archive", names[0])
	}
	named := filepath.Join(w.store.dir, w.info.Name)
	if err := os.Rename(w.dir, named); err != nil {
		return err
	}
	if err := durable.SyncDir(w.store.dir); err != nil {
		return errors.Join(err, os.Rename(named, w.dir))
	}
	return nil
}

// finish puts what there is of a root to its place, on the disk.
func (w *Writer) finish(name string, r *root) error {
	if r.manifest.Len() > 0 {
		b, err := r.manifest.AppendBinary(nil)
		if err != nil {
			return err
		}
		if err := durable.SyncFiles(r.stage.Dir(), append(r.manifest.Below("."), slices.Collect(maps.Keys(r.above))...)); err != nil {
			return err
		}
		place := filepath.Join(w.dir, name)
		if err := os.Rename(r.stage.Dir(), place); err != nil {
			return err
		}
		if err := durable.SyncDir(place); err != nil {
			return err
		}
		if err := durable.WriteFile(place+manifestSuffix, b, 0o600); err != nil {
			return err
		}
		w.info.Roots[name] = r.manifest.Len()
		w.info.Files += r.manifest.Files()
		w.info.Bytes += r.bytes
	}
	return r.stage.Close()
}

// Abort removes all that was copied.
func (w *Writer) Abort() {
	if w.lock == nil {
		return
	}
	os.RemoveAll(w.dir) // what stays is removed by the next Open
	w.lock.Close()
	w.lock, w.err = nil, errEnded
}
