package peer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/ledger"
	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"github.com/skudonet/skudonet-ce-cluster/lib/scan"
	"github.com/skudonet/skudonet-ce-cluster/lib/scan/beneath"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
	"github.com/skudonet/skudonet-ce-cluster/lib/step"
)

func (s *session) digest(ctx context.Context, q DigestRequest) (any, *Error) {
	removals := false
	seen := map[string]bool{}
	for _, l := range q.Roots {
		if _, refusal := s.root(l.Root); refusal != nil {
			return nil, refusal
		}
		if seen[l.Root] {
			return nil, refused("the root %s is named twice", l.Root)
		}
		seen[l.Root] = true
		if refusal := l.check(); refusal != nil {
			return nil, refusal
		}
		removals = removals || len(l.Remove) > 0
	}
	if q.Commit != nil {
		if refusal := q.Commit.check(q); refusal != nil {
			return nil, refusal
		}
	}
	if removals || q.Commit != nil {
		if refusal := s.host.mayChange(); refusal != nil {
			return nil, refusal
		}
	}
	s.agree(q)
	a := DigestAnswer{Roots: []RootDigest{}}
	for _, l := range q.Roots {
		r, _ := s.root(l.Root)
		d, refusal := s.look(ctx, r, l)
		if refusal != nil {
			return nil, refusal
		}
		a.Roots = append(a.Roots, d)
	}
	step.At("peer.looked")
	if q.Commit != nil {
		if refusal := s.commit(ctx, q.Commit, &a); refusal != nil {
			return nil, refusal
		}
	}
	for i := range a.Roots {
		d := &a.Roots[i]
		r, _ := s.root(d.Root)
		if d.Failed == "" {
			s.weigh(r)
			if d.Role != status.Master {
				s.settle(r)
			}
		}
		d.Touched = !r.trust.whole()
	}
	return a, nil
}

// agree notes which files both nodes look at. If it is not what it was, what was
// known of the trees is void.
func (s *session) agree(q DigestRequest) {
	set := q.Set
	if q.Commit != nil {
		set = q.Commit.Set
	}
	if set == "" || set == s.set {
		return
	}
	s.set = set
	for _, r := range s.roots {
		r.trust.weighed = false
		r.trust.all(false)
	}
}

// settle notes what is known of a tree that the record does not hold, for a
// session that comes after this one.
func (s *session) settle(r *root) {
	now := r.tree.Manifest().Digest()
	switch {
	case !r.trust.rule || !r.trust.weighed || len(r.trust.flight) > 0 || now == r.settled:
	case r.trust.whole() && r.stand.Tree == ledger.Tree{Digest: now, Set: s.set}:
		r.forget(s.host.StateDir, false)
		r.settled = now
	case r.intend(s.host.StateDir, s.set) == nil:
		r.settled = now
	}
}

// check refuses names that are none.
func (l *Look) check() *Error {
	for _, list := range [][]Name{l.Paths, l.Except} {
		for _, p := range list {
			if err := manifest.CheckPath(string(p)); err != nil {
				return refused("%.200q in %s: %v", p, l.Root, err)
			}
		}
	}
	for _, x := range l.Remove {
		if err := manifest.CheckPath(string(x.Path)); err != nil {
			return refused("remove %.200q from %s: %v", x.Path, l.Root, err)
		}
		if string(x.Path) == "." {
			return refused("remove %s itself: never", l.Root)
		}
		if k := manifest.Kind(x.Kind); k != manifest.File && k != manifest.Dir && k != manifest.Link {
			return refused("remove %.200q from %s: unknown kind %q", x.Path, l.Root, x.Kind)
		}
	}
	return nil
}

// look does what l says in one root.
func (s *session) look(ctx context.Context, r *root, l Look) (RootDigest, *Error) {
	d := RootDigest{Root: r.name, Role: s.host.role()}
	failed := func(err error) (RootDigest, *Error) {
		d.Failed = strconv.Quote(r.dir) + ": " + err.Error()
		return d, nil
	}
	paths := texts(l.Paths)
	for p := range r.trust.flight {
		paths = append(paths, p)
	}
	if len(l.Remove) > 0 {
		if !r.trust.weighed && s.set != "" {
			if _, err := r.walk(ctx, false); err != nil {
				return failed(err)
			}
			s.weigh(r)
		}
		var gone []string
		for _, x := range l.Remove {
			gone = append(gone, string(x.Path))
		}
		if refusal := s.prepare(ctx, r, gone, l.Keep); refusal != nil {
			return d, refusal
		}
		paths = append(paths, gone...)
		refusal, err := s.removeAll(ctx, r, l.Remove, &d)
		step.At("peer.removed")
		if unkept := s.sift(ctx, r, l.Keep); refusal == nil {
			refusal = unkept
		}
		switch {
		case refusal != nil:
			return d, refusal
		case err != nil:
			return failed(err)
		}
	}
	var report scan.Report
	var err error
	if len(paths) > 0 {
		slices.Sort(paths)
		if report, err = r.look(ctx, slices.Compact(paths)); err != nil {
			return failed(err)
		}
	}
	if l.Full || l.Read || r.due() {
		if report, err = r.walk(ctx, l.Read); err != nil {
			return failed(err)
		}
		d.Walked = true
	}
	for _, p := range report.Unreadable {
		d.add(p.Path, p.Err.Error())
	}
	m := r.tree.Manifest()
	d.Entries = m.Len()
	d.Digest = m.Digest()
	if len(l.Except) > 0 {
		d.Digest = m.DigestExcept(texts(l.Except))
	}
	return d, nil
}

func (s *session) removeAll(ctx context.Context, r *root, list []Removal, d *RootDigest) (*Error, error) {
	slices.SortFunc(list, childrenFirst)
	list = slices.CompactFunc(list, func(a, b Removal) bool { return bytes.Equal(a.Path, b.Path) })
	top, err := beneath.Top(r.dir)
	if err != nil {
		return nil, err
	}
	defer unix.Close(top)
	for i, x := range list {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if i%64 == 0 {
			if refusal := s.host.mayChange(); refusal != nil {
				return refusal, nil
			}
		}
		if i == 1 {
			step.At("peer.removing")
		}
		if err := r.remove(top, string(x.Path)); err != nil {
			d.add(string(x.Path), err.Error())
		}
	}
	return nil, nil
}

// remove removes one path below top. It is fine if there is none. What is not
// part of the tree stays: excluded paths, and FIFOs, sockets and devices.
func (r *root) remove(top int, path string) error {
	at, name, err := beneath.Parent(top, path)
	if beneath.Gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(at)
	st, err := beneath.Stat(at, name)
	if beneath.Gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	kind := st.Mode & unix.S_IFMT
	if r.set.Excluded(path, kind == unix.S_IFDIR) {
		return errors.New("not removed: it is not replicated")
	}
	switch kind {
	case unix.S_IFDIR:
		err = unix.Unlinkat(at, name, unix.AT_REMOVEDIR)
	case unix.S_IFREG, unix.S_IFLNK:
		err = r.replacing.take(top, at, name, path)
	}
	switch {
	case beneath.Gone(err):
		return nil
	case err == unix.ENOTEMPTY || err == unix.EEXIST:
		return r.occupied(at, name, path)
	case err != nil:
		return fmt.Errorf("cannot be removed: %w", err)
	}
	return nil
}

// occupied says why a directory could not be removed.
func (r *root) occupied(at int, name, path string) error {
	dir, err := beneath.Dir(at, name)
	if err != nil {
		return errors.New("a directory that is not empty")
	}
	defer unix.Close(dir)
	names, err := beneath.Names(dir, make([]byte, 32<<10))
	if err != nil || len(names) == 0 {
		return errors.New("a directory that is not empty")
	}
	slices.Sort(names)
	for _, n := range names {
		if st, err := beneath.Stat(dir, n); err == nil && r.set.Excluded(path+"/"+n, st.Mode&unix.S_IFMT == unix.S_IFDIR) {
			return fmt.Errorf("a directory that is not empty: it holds %q, which is not replicated", n)
		}
	}
	return fmt.Errorf("a directory that is not empty: it holds %q", names[0])
}
