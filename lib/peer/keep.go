package peer

import (
	"context"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/archive"
	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"github.com/skudonet/skudonet-ce-cluster/lib/scan"
	"github.com/skudonet/skudonet-ce-cluster/lib/scan/beneath"
	"github.com/skudonet/skudonet-ce-cluster/lib/step"
)

// prepare is done before paths of a root are written or removed: what cannot be
// accounted for is archived, and then it is noted that they are on the way. After
// an error nothing may be changed; else sift is to follow.
func (s *session) prepare(ctx context.Context, r *root, paths []string, k *Keeping) *Error {
	r.replacing = nil
	if k != nil {
		if refusal := s.siftRest(ctx, r, k); refusal != nil {
			return refusal
		}
		n, err := r.note(paths)
		if err != nil {
			return r.unreadable(err)
		}
		lost, err := r.unaccounted(ctx, paths, k.All)
		if err != nil {
			return r.unreadable(err)
		}
		if refusal := s.archive(ctx, r, n, lost, k); refusal != nil {
			return refusal
		}
		r.replacing = n
	}
	r.trust.depart(paths)
	if r.unsynced = append(r.unsynced, paths...); len(r.unsynced) > manyPaths {
		r.unsynced, r.synced = nil, false
	}
	if r.intend(s.host.StateDir, s.set) != nil {
		// Without it an interruption costs archives that nobody needs, no more.
		r.forget(s.host.StateDir, false)
	}
	step.At("peer.intent")
	return nil
}

// manyPaths: to look at more of them the tree is walked, which reads less.
const manyPaths = 500

// unaccounted are those of paths that are not accounted for at this moment;
// with all, it is all of them. Some may not exist.
func (r *root) unaccounted(ctx context.Context, paths []string, all bool) ([]string, error) {
	if all {
		return paths, nil
	}
	top, err := beneath.Top(r.dir)
	if err != nil {
		return nil, err
	}
	defer unix.Close(top)
	var look []string
	for _, p := range paths {
		// Looking at a directory is looking at all that is in it.
		if e, _ := r.tree.Manifest().Get(p); r.trust.accounted(p) && (e.Kind != manifest.Dir || !isDir(top, p)) {
			look = append(look, p)
		}
	}
	if len(look) > manyPaths {
		_, err = r.walk(ctx, false)
	} else if len(look) > 0 {
		_, err = r.look(ctx, look)
	}
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(slices.Clone(paths), r.trust.accounted), nil
}

func isDir(top int, path string) bool {
	st, err := below(top, path)
	return err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
}

// archive keeps what there is of paths, and notes what that is.
func (s *session) archive(ctx context.Context, r *root, n *replacing, paths []string, k *Keeping) *Error {
	if len(paths) == 0 {
		return nil
	}
	i, err := s.fill(ctx, archive.Info{Reason: k.Reason, Peer: k.Peer, Holds: archive.Ours, Ours: k.Ours, Theirs: k.Theirs},
		func(w *archive.Writer) error { return s.add(ctx, w, r.name, r.dir, paths) })
	n.lost, n.kept = make(map[string]bool, len(paths)), manifest.New()
	for _, p := range paths {
		n.lost[p] = true
	}
	if err == nil && i.Name != "" {
		_, n.kept, err = s.archives.Tree(i, r.name)
	}
	if err != nil {
		return &Error{Kind: kindFailed, Text: fmt.Sprintf("nothing was changed, because what is to be replaced in %s cannot be archived: %v", r.dir, err)}
	}
	if i.Name != "" {
		s.host.log(fmt.Sprintf("archived %d files as %s (%s), before the master %s replaces them", i.Files, i.Name, i.Reason, i.Peer))
	}
	return nil
}

// fill makes an archive, unless it would be empty.
func (s *session) fill(ctx context.Context, i archive.Info, add func(*archive.Writer) error) (archive.Info, error) {
	w, err := s.archives.Begin(i)
	if err != nil {
		return i, err
	}
	defer w.Abort()
	if err := add(w); err != nil || w.Empty() {
		return i, err
	}
	if i, err = w.Commit(); err == nil {
		step.At("peer.archived")
		if _, err := s.archives.Prune(time.Now(), s.limits); err != nil {
			s.host.log("archives that are too old or too many: " + err.Error())
		}
	}
	return i, err
}

func (s *session) add(ctx context.Context, w *archive.Writer, root, dir string, paths []string) error {
	for _, p := range slices.Sorted(slices.Values(paths)) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := w.Add(root, dir, p); err != nil {
			return err
		}
	}
	return nil
}

// keep archives all there is, as a conflict that waits. If that was done before
// under the same ID, and nothing has changed since, it was the same request.
func (s *session) keep(ctx context.Context, q KeepRequest) (any, *Error) {
	if refusal := s.ready(); refusal != nil {
		return nil, refusal
	}
	for _, r := range s.roots {
		if _, err := r.walk(ctx, false); err != nil {
			return nil, r.unreadable(err)
		}
	}
	for _, i := range s.archives.Waiting() {
		if i.ID == q.ID && s.same(i) {
			return Kept{i.Name, i.Files}, nil
		}
	}
	i := archive.Info{Reason: q.Reason, Peer: q.Peer, Holds: archive.Ours, Ours: q.Ours, Theirs: q.Theirs, Whole: true, Waiting: true, ID: q.ID}
	i, err := s.fill(ctx, i, func(w *archive.Writer) error {
		for _, r := range s.roots {
			if err := s.add(ctx, w, r.name, r.dir, r.paths()); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, &Error{Kind: kindFailed, Text: fmt.Sprintf("the configuration here cannot be archived: %v", err)}
	}
	s.waiting = true
	step.At("peer.kept")
	return Kept{i.Name, i.Files}, nil
}

// same tells whether an archive has all that there is now.
func (s *session) same(i archive.Info) bool {
	for _, r := range s.roots {
		_, m, err := s.archives.Tree(i, r.name)
		if err != nil && r.tree.Manifest().Len() > 0 || err == nil && m.Digest() != r.tree.Manifest().Digest() {
			return false
		}
	}
	return true
}

// paths are all of the tree's.
func (r *root) paths() (all []string) {
	for e := range r.tree.Manifest().All() {
		all = append(all, e.Path)
	}
	return all
}

// look looks at paths again, and notes what somebody else has changed.
func (r *root) look(ctx context.Context, paths []string) (scan.Report, error) {
	report, err := r.tree.Look(ctx, paths)
	r.trust.found(report.Changed)
	if err == nil {
		r.trust.landed(paths...)
	}
	return report, err
}
