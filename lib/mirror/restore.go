package mirror

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/archive"
	"github.com/skudonet/skudonet-ce-cluster/lib/journal"
	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"github.com/skudonet/skudonet-ce-cluster/lib/snapshot"
	"github.com/skudonet/skudonet-ce-cluster/lib/step"
)

// errand is something that is done in the place of a round.
type errand struct {
	do     func(context.Context, *round) (words string, err error)
	answer chan outcome
}

type outcome struct {
	words string
	err   error
}

// Restore brings back what an archive holds: all of it, or only files, which are
// named below the configuration directory or by their whole paths. An archive of a
// whole tree also takes away what it does not have. What is replaced is archived.
// It returns what was done, in words. To the peer it is a change like any other.
func (e *Engine) Restore(ctx context.Context, name string, files []string) (string, error) {
	return e.errand(ctx, func(ctx context.Context, r *round) (string, error) {
		info, err := r.cfg.Archives.Find(name)
		if err != nil {
			return "", err
		}
		return r.restore(ctx, info, files, archive.Restore)
	})
}

// Resolve ends the waiting of a conflict: of the one that is named, or of the only
// one. With theirs the configuration that was not used comes back, and is used.
func (e *Engine) Resolve(ctx context.Context, name string, theirs bool) (string, error) {
	return e.errand(ctx, func(ctx context.Context, r *round) (string, error) {
		info, err := r.conflictNamed(name)
		if err != nil {
			return "", err
		}
		words, how := "the configuration stays as it is; the other one remains archived as "+info.Name, archive.Ours
		if theirs {
			how = archive.Theirs
			if words, err = r.restore(ctx, info, nil, archive.Conflict); err != nil {
				return "", err
			}
		}
		if theirs {
			r.cfg.Apply("a conflict was resolved")
		}
		if err := r.cfg.Archives.Resolve(info.ID, how); err != nil {
			return "", err
		}
		r.sayConflicts()
		r.resolved = true
		r.cfg.Log.Info("the conflict "+info.Name+" is resolved", "by", how)
		return words, nil
	})
}

func (e *Engine) errand(ctx context.Context, do func(context.Context, *round) (string, error)) (string, error) {
	x := &errand{do, make(chan outcome, 1)}
	e.post(x)
	select {
	case o := <-x.answer:
		return o.words, o.err
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

func (r *round) conflictNamed(name string) (archive.Info, error) {
	waiting := r.cfg.Archives.Waiting()
	switch {
	case name != "":
		info, err := r.cfg.Archives.Find(name)
		if err == nil && !info.Waiting {
			err = fmt.Errorf("%s is no conflict that waits", info.Name)
		}
		return info, err
	case len(waiting) == 0:
		return archive.Info{}, errors.New("no conflict waits")
	case len(waiting) > 1:
		var names []string
		for _, i := range waiting {
			names = append(names, i.Name)
		}
		return archive.Info{}, errors.New("several conflicts wait, so name one: " + strings.Join(names, ", "))
	}
	return waiting[0], nil
}

// restore swaps archived files into the trees.
func (r *round) restore(ctx context.Context, info archive.Info, files []string, reason string) (string, error) {
	if err := r.ownSet(); err != nil {
		return "", err
	}
	var plan journal.Plan
	chosen := newChoice(r.cfg.Roots, files)
	var sources []string
	for i, root := range r.cfg.Roots {
		dir, held, err := r.cfg.Archives.Tree(info, root.Name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return "", err
		}
		if _, err := r.trees[i].Scan(ctx, false); err != nil {
			return "", err
		}
		r.known[i] = false // What is about to change was not asked of the peer.
		changes := r.toRestore(i, dir, held, info.Whole && len(files) == 0, chosen)
		if len(changes) == 0 {
			continue
		}
		plan.Parts = append(plan.Parts, journal.Part{Root: root.Name, Dir: root.Dir, Changes: changes})
		sources = append(sources, dir)
	}
	if missing := chosen.missing(); missing != "" {
		return "", fmt.Errorf("%s does not hold %s; skd-inotify history %s lists what it holds", info.Name, missing, info.Name)
	}
	if len(plan.Parts) == 0 {
		return "everything is as in " + info.Name + " already", nil
	}
	all := changesOf(plan)
	keep := archive.Info{Reason: archive.Restore, Peer: info.Peer, Holds: archive.Ours, Ours: r.book.record.Vector, Theirs: info.Ours}
	if err := r.archiveReplaced(ctx, keep, plan.Parts); err != nil {
		return "", err
	}
	step.At("mirror.restore.archived")
	for i := range plan.Parts {
		if err := stageCopies(r.cfg.StateDir, &plan.Parts[i], sources[i]); err != nil {
			return "", err
		}
	}
	step.At("mirror.restore.staged")
	plan.Reason = reason
	problems, err := r.swap(ctx, plan)
	if err != nil {
		return "", err
	}
	if len(problems) > 0 {
		var list []string
		for _, p := range problems {
			list = append(list, fmt.Sprintf("%s (%v)", name(p.Path), p.Err))
		}
		return "", fmt.Errorf("restored, but for %s", sentence(list))
	}
	text := fmt.Sprintf("restored %s from %s: %s", count(len(all), "path"), info.Name, words(all))
	r.cfg.Log.Info(text)
	return text, nil
}

// toRestore is what makes the chosen part of a tree what an archive holds.
func (r *round) toRestore(i int, archived string, held *manifest.Manifest, whole bool, chosen *choice) (changes []manifest.Change) {
	tree, root := r.trees[i], r.cfg.Roots[i]
	now, set := tree.Manifest(), tree.Root().Set
	planned := map[string]bool{}
	for e := range held.All() {
		if e.Path == "." || !chosen.has(root.Name, e.Path) || set.Excluded(e.Path, e.Kind == manifest.Dir) {
			continue
		}
		to := e
		c := manifest.Change{Path: e.Path, To: &to}
		if from, ok := now.Get(e.Path); ok {
			c.From = &from
		}
		if c.From != nil && *c.From == to {
			continue
		}
		for dir := parent(e.Path); dir != "."; dir = parent(dir) {
			if from, ok := now.Get(dir); planned[dir] || ok && from.Kind == manifest.Dir {
				continue
			} else if whole && len(chosen.names) == 0 && isHeld(held, dir) {
				continue // It comes by itself.
			} else {
				planned[dir] = true
				up := manifest.Change{Path: dir, To: above(held, archived, dir)}
				if ok {
					up.From = &from
				}
				changes = append(changes, up)
			}
		}
		planned[e.Path] = true
		changes = append(changes, c)
	}
	for _, c := range slices.Clone(changes) {
		if c.From == nil || c.From.Kind != manifest.Dir || c.To.Kind == manifest.Dir {
			continue
		}
		for _, below := range now.Below(c.Path) { // it was a directory, and becomes something else
			from, _ := now.Get(below)
			planned[below] = true
			changes = append(changes, manifest.Change{Path: below, From: &from})
		}
	}
	if whole {
		for e := range now.All() {
			if _, ok := held.Get(e.Path); !ok && e.Path != "." && !planned[e.Path] {
				from := e
				changes = append(changes, manifest.Change{Path: e.Path, From: &from})
			}
		}
	}
	slices.SortFunc(changes, func(a, b manifest.Change) int { return strings.Compare(a.Path, b.Path) })
	return changes
}

func isHeld(m *manifest.Manifest, path string) bool {
	_, ok := m.Get(path)
	return ok
}

// above is a directory that a restored path needs: as the archive has it, also if
// it is no entry there.
func above(held *manifest.Manifest, archived, dir string) *manifest.Entry {
	if e, ok := held.Get(dir); ok && e.Kind == manifest.Dir {
		return &e
	}
	e := &manifest.Entry{Path: dir, Kind: manifest.Dir, Mode: 0o700}
	var st unix.Stat_t
	if unix.Lstat(filepath.Join(archived, dir), &st) == nil {
		e.Mode, e.UID, e.GID = st.Mode&0o7777, st.Uid, st.Gid
	}
	return e
}

// stageCopies copies what a part brings beside its tree.
func stageCopies(stateDir string, part *journal.Part, from string) (err error) {
	if part.Stage, err = journal.StageFor(stateDir, part.Dir); err != nil {
		return err
	}
	copies, err := snapshot.Open(part.Stage + ".copies")
	if err != nil {
		return err
	}
	defer copies.Close()
	for _, c := range part.Changes {
		if c.To == nil || c.To.Kind == manifest.Dir {
			continue
		}
		if _, err := copies.Copy(snapshot.Root{Name: part.Root, Dir: from}, c.Path, true); err != nil {
			return fmt.Errorf("%s: %w", filepath.Join(from, c.Path), err)
		}
	}
	if err := os.Remove(part.Stage); err != nil {
		return err
	}
	return os.Rename(copies.Dir(), part.Stage)
}

// choice is which files an admin named.
type choice struct {
	roots []Root
	names []string
	used  []bool
}

func newChoice(roots []Root, names []string) *choice {
	return &choice{roots, names, make([]bool, len(names))}
}

// has tells whether a path was named, or a directory above it; without names
// everything was.
func (c *choice) has(root, p string) bool {
	if len(c.names) == 0 {
		return true
	}
	found := false
	for i, n := range c.names {
		if at, rel := c.resolve(n); at == root && (rel == "." || p == rel || strings.HasPrefix(p, rel+"/")) {
			c.used[i], found = true, true
		}
	}
	return found
}

// resolve gives the root that a name means, and the path in it.
func (c *choice) resolve(name string) (root, rel string) {
	clean := path.Clean(name)
	for _, r := range c.roots {
		if rest, ok := strings.CutPrefix(clean, path.Clean(r.Dir)+"/"); ok && (r.Only == "" || rest == r.Only) {
			return r.Name, rest
		}
	}
	return c.roots[0].Name, clean
}

// missing is a name that nothing was found for.
func (c *choice) missing() string {
	for i, used := range c.used {
		if !used {
			return c.names[i]
		}
	}
	return ""
}
