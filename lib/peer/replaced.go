package peer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/archive"
	"github.com/skudonet/skudonet-ce-cluster/lib/beside"
	"github.com/skudonet/skudonet-ce-cluster/lib/fileset"
	"github.com/skudonet/skudonet-ce-cluster/lib/ledger"
	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"github.com/skudonet/skudonet-ce-cluster/lib/scan"
	"github.com/skudonet/skudonet-ce-cluster/lib/scan/beneath"
	"github.com/skudonet/skudonet-ce-cluster/lib/snapshot"
	"github.com/skudonet/skudonet-ce-cluster/lib/step"
)

// replacedName is the directory, in that for temporary files, where what a request
// replaces or removes lies until it was compared with what was known of it.
const replacedName = "replaced"

// writersLimit is how long the writers of replaced files are waited for, all together.
var writersLimit = 500 * time.Millisecond

// fresh is how close to the noting of a stamp the latest change may be without
// the file being read: a later one may have left the same times.
const fresh = 2 * time.Second

// stamp is what tells whether a path was changed. A rename and a link change the
// ctime, so that tells nothing.
type stamp struct {
	dev, ino       uint64
	size           int64
	mode, uid, gid uint32
	mtime          unix.Timespec
}

func stampOf(st *unix.Stat_t) stamp {
	return stamp{st.Dev, st.Ino, st.Size, st.Mode, st.Uid, st.Gid, st.Mtim}
}

// replacing is what a request does with paths of a root.
type replacing struct {
	dir   string // where they go
	noted map[string]stamp
	fresh map[string]bool // those whose stamp alone tells too little

	lost map[string]bool    // archived before
	kept *manifest.Manifest // as this
}

// replaced is where what is replaced in a root lies.
func (r *root) replaced() string { return filepath.Join(r.temp, replacedName) }

// below examines a path below top.
func below(top int, path string) (unix.Stat_t, error) {
	at, name, err := beneath.Parent(top, path)
	if err != nil {
		return unix.Stat_t{}, err
	}
	defer unix.Close(at)
	return beneath.Stat(at, name)
}

// note is to be called before paths are looked at.
func (r *root) note(paths []string) (*replacing, error) {
	n := &replacing{dir: r.replaced(), noted: make(map[string]stamp, len(paths)), fresh: map[string]bool{}}
	top, err := beneath.Top(r.dir)
	if err != nil {
		return nil, err
	}
	defer unix.Close(top)
	since := time.Now().Add(-fresh).UnixNano()
	for _, p := range paths {
		st, err := below(top, p)
		if err != nil || st.Mode&unix.S_IFMT == unix.S_IFDIR {
			continue
		}
		n.noted[p] = stampOf(&st)
		if st.Ctim.Nano() > since {
			n.fresh[p] = true
		}
	}
	return n, nil
}

// take removes a path, the name in at: it is renamed, for what somebody writes
// into it meanwhile.
func (n *replacing) take(top, at int, name, path string) error {
	if n == nil {
		return unix.Unlinkat(at, name, 0)
	}
	to := filepath.Join(n.dir, path)
	err := unix.Renameat(at, name, unix.AT_FDCWD, to)
	if err == unix.ENOENT {
		if err = n.makeAbove(top, path); err == nil {
			err = unix.Renameat(at, name, unix.AT_FDCWD, to)
		}
	}
	if err == nil || beneath.Gone(err) {
		return err
	}
	// A mount within the tree, a disk without room for a directory.
	st, err := beneath.Stat(at, name)
	if err != nil {
		return err
	}
	if was, ok := n.noted[path]; !ok || was != stampOf(&st) {
		return errors.New("it was changed in this moment")
	}
	return unix.Unlinkat(at, name, 0)
}

// makeAbove makes the directories that path is to be in, with mode and owner of
// the tree's.
func (n *replacing) makeAbove(top int, path string) error {
	if err := os.MkdirAll(n.dir, 0o700); err != nil {
		return err
	}
	at, err := beneath.Dir(top, ".")
	if err != nil {
		return err
	}
	defer func() { unix.Close(at) }()
	for i := range len(path) {
		if path[i] != '/' {
			continue
		}
		next, err := beneath.Dir(at, filepath.Base(path[:i]))
		if err != nil {
			return err
		}
		unix.Close(at)
		at = next
		var st unix.Stat_t
		if err := unix.Fstat(at, &st); err != nil {
			return err
		}
		dir := filepath.Join(n.dir, path[:i])
		if err := os.Mkdir(dir, 0o700); errors.Is(err, fs.ErrExist) {
			continue
		} else if err != nil {
			return err
		}
		if err := errors.Join(os.Lchown(dir, int(st.Uid), int(st.Gid)), unix.Chmod(dir, st.Mode&0o7777)); err != nil {
			return err
		}
	}
	return nil
}

// sift drops what a request has replaced or removed, if it is what was known of it,
// and archives everything else. Whatever ended the request, it is called.
func (s *session) sift(ctx context.Context, r *root, k *Keeping) *Error {
	n := r.replacing
	r.replacing = nil
	if n == nil {
		return nil
	}
	same := func(path string, e manifest.Entry) bool {
		was, ok := r.tree.Manifest().Get(path)
		if n.lost[path] {
			was, ok = n.kept.Get(path)
		}
		return ok && was == e
	}
	return s.siftWith(ctx, r, k, n, same, fmt.Sprintf("which were changed in the moment when the master %s replaced them", k.Peer))
}

// Sift archives what a session has left that was killed before it had compared what
// it had replaced. A master calls it, as no session may come after; one that is
// still there does it by itself.
func Sift(ctx context.Context, h Host, a *archive.Store, limits archive.Limits, peer string, roots ...scan.Root) error {
	var left []*root
	for _, at := range roots {
		temp, err := beside.Dir(at.Dir, fileset.TempName)
		if err != nil {
			continue // nor can anything be there
		}
		r := &root{name: at.Name, dir: at.Dir, temp: temp, set: at.Set, tree: scan.New(at)}
		if _, err := os.Lstat(r.replaced()); err == nil {
			left = append(left, r)
		}
	}
	if len(left) == 0 {
		return nil
	}
	l, err := lockIfFree(h.RunDir)
	if err != nil || l == nil {
		return err
	}
	defer l.release()
	s := &session{host: h, archives: a, limits: limits, remote: peer}
	var failed []error
	for _, r := range left {
		if refusal := s.siftRest(ctx, r, nil); refusal != nil {
			failed = append(failed, refusal)
		}
	}
	return errors.Join(failed...)
}

// siftRest does the same with what an earlier request has left, because it was
// interrupted or had no room for an archive.
func (s *session) siftRest(ctx context.Context, r *root, k *Keeping) *Error {
	if _, err := os.Lstat(r.replaced()); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	record, _, err := ledger.Load(s.host.StateDir, s.host.Machine)
	if err != nil {
		return s.host.stateless(err)
	}
	if k == nil {
		k = &Keeping{Reason: archive.Repair, Peer: s.remote, Ours: record.Vector}
	}
	known := manifest.New()
	if m, err := readKnown(s.host.StateDir, r.name); err == nil && record.Trees[r.name].Digest == m.Digest() {
		known = m
	}
	now := scan.New(r.tree.Root())
	same := func(path string, e manifest.Entry) bool {
		if was, ok := known.Get(path); ok && was == e {
			return true
		}
		if _, err := now.Look(ctx, []string{path}); err != nil {
			return false
		}
		is, ok := now.Manifest().Get(path)
		return ok && is == e
	}
	return s.siftWith(ctx, r, k, &replacing{dir: r.replaced()}, same, "which were replaced when this was interrupted")
}

func (s *session) siftWith(ctx context.Context, r *root, k *Keeping, n *replacing, same func(string, manifest.Entry) bool, why string) *Error {
	left, err := n.list()
	if err == nil && left == nil {
		return nil
	}
	ctx = context.WithoutCancel(ctx) // the session may be over, what it has replaced is not
	var dropped []string
	if err == nil {
		n.await(left)
		left, dropped, err = r.changed(ctx, n, left, same)
	}
	if err == nil && len(left) > 0 {
		var i archive.Info
		i, err = s.fill(ctx, archive.Info{Reason: k.Reason, Peer: k.Peer, Holds: archive.Ours, Ours: k.Ours, Theirs: k.Theirs},
			func(w *archive.Writer) error { return s.add(ctx, w, r.name, n.dir, left) })
		if err == nil && i.Name != "" {
			s.host.log(fmt.Sprintf("archived %d files as %s (%s), %s", i.Files, i.Name, i.Reason, why))
		}
	}
	if err != nil {
		for _, p := range dropped {
			os.Remove(filepath.Join(n.dir, p))
		}
	} else {
		step.At("peer.sifted")
		err = r.drop(n.dir, len(dropped)+len(left))
	}
	if err != nil {
		return &Error{Kind: kindFailed, Text: fmt.Sprintf("what was replaced in %s, and had been changed in that moment, cannot be archived: %v", r.dir, err),
			Remedy: "it is tried again, and stays in " + n.dir + " until then"}
	}
	return nil
}

// drop removes a directory with so many files. Of many it is done aside: the client
// waits for the end of an rsync, but not for long.
func (r *root) drop(dir string, files int) error {
	if files <= manyPaths {
		return os.RemoveAll(dir)
	}
	away, err := os.MkdirTemp(r.temp, "dropped")
	if err == nil {
		err = os.Rename(dir, filepath.Join(away, replacedName))
	}
	if err != nil {
		return os.RemoveAll(dir)
	}
	go os.RemoveAll(away) // if that is interrupted, it is a temporary file like any other
	return nil
}

// list is everything that lies there, directories aside; nil if nothing was ever put there.
func (n *replacing) list() (paths []string, err error) {
	err = filepath.WalkDir(n.dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && path == n.dir {
			return nil
		}
		if err != nil {
			return err
		}
		if paths == nil {
			paths = []string{}
		}
		if !d.IsDir() {
			paths = append(paths, strings.TrimPrefix(path, n.dir+"/"))
		}
		return nil
	})
	return paths, err
}

// await waits for those who still write into what lies there, for a moment.
func (n *replacing) await(paths []string) {
	busy := func(p string) bool { return snapshot.OpenForWriting(filepath.Join(n.dir, p)) }
	idle := func(p string) bool { return !busy(p) }
	paths = slices.DeleteFunc(slices.Clone(paths), idle)
	for end := time.Now().Add(writersLimit); len(paths) > 0 && time.Now().Before(end); paths = slices.DeleteFunc(paths, idle) {
		time.Sleep(5 * time.Millisecond)
	}
}

// changed parts what lies there into what somebody has changed, and the rest.
func (r *root) changed(ctx context.Context, n *replacing, paths []string, same func(string, manifest.Entry) bool) (changed, rest []string, err error) {
	var doubtful []string
	for _, p := range paths {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(n.dir, p), &st); err != nil {
			return nil, nil, err
		}
		was, noted := n.noted[p]
		if noted && was == stampOf(&st) && !n.fresh[p] {
			rest = append(rest, p)
		} else {
			doubtful = append(doubtful, p)
		}
	}
	if len(doubtful) == 0 {
		return nil, rest, nil
	}
	top, err := beneath.Top(r.dir)
	if err != nil {
		return nil, nil, err
	}
	defer unix.Close(top)
	lying := scan.New(scan.Root{Name: r.name, Dir: n.dir, Set: r.set})
	if _, err := lying.Look(ctx, doubtful); err != nil {
		return nil, nil, err
	}
	for _, p := range doubtful {
		// rsync links it there, and may have been ended before it replaced it.
		var there unix.Stat_t
		here, err := below(top, p)
		if err == nil {
			err = unix.Lstat(filepath.Join(n.dir, p), &there)
		}
		linked := err == nil && here.Dev == there.Dev && here.Ino == there.Ino
		if e, ok := lying.Manifest().Get(p); linked || ok && same(p, e) {
			rest = append(rest, p)
		} else {
			changed = append(changed, p)
		}
	}
	return changed, rest, nil
}
