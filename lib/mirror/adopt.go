package mirror

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/archive"
	"github.com/skudonet/skudonet-ce-cluster/lib/journal"
	"github.com/skudonet/skudonet-ce-cluster/lib/ledger"
	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"github.com/skudonet/skudonet-ce-cluster/lib/peer"
	"github.com/skudonet/skudonet-ce-cluster/lib/reconcile"
	"github.com/skudonet/skudonet-ce-cluster/lib/step"
	"github.com/skudonet/skudonet-ce-cluster/lib/swap"
	"github.com/skudonet/skudonet-ce-cluster/lib/vector"
)

// adopt makes our trees the same as the peer's. Everything that differs is brought
// beside the trees first, and compared with what the peer says it has; then it is
// moved into place, which an interruption does not leave half done.
func (r *round) adopt(ctx context.Context, w work, parts []*part, theirs peer.Standing, d reconcile.Decision, v vector.Vector, res *result) error {
	r.say("taking over the configuration of the peer")
	record := r.book.record
	record.Vector, record.Trees = v, maps.Clone(record.Trees)
	if record.Trees == nil {
		record.Trees = map[string]ledger.Tree{}
	}
	files := map[string]int{}
	record.Files = files
	var plan journal.Plan
	for _, p := range parts {
		changes, skipped, err := p.toBecome(ctx, w)
		var t *Trouble
		if errors.As(err, &t) {
			p.trouble = t
			for _, other := range able(parts) {
				other.postpone()
			}
			return nil
		} else if err != nil {
			return err
		}
		for _, path := range skipped {
			r.guard(p.Name, path)
		}
		record.Trees[p.Name] = ledger.Tree{Digest: p.theirs.Digest(), Set: r.set}
		files[p.Name] = p.theirs.Files()
		if len(changes) > 0 {
			plan.Parts = append(plan.Parts, journal.Part{Root: p.Name, Dir: p.Dir, Changes: changes})
		}
	}
	words := words(changesOf(plan))
	if d.Archive || !r.book.clean(parts, r.set) {
		info := archive.Info{Reason: archive.Adopt, Peer: r.cfg.Peer, Holds: archive.Ours, Ours: r.book.record.Vector, Theirs: theirs.Vector}
		if err := r.archiveReplaced(ctx, info, plan.Parts); err != nil {
			return err
		}
	}
	step.At("mirror.adopt.archived")
	if err := fetch(ctx, r.cfg.StateDir, w.peer, plan.Parts); err != nil {
		return err
	}
	step.At("mirror.adopt.fetched")
	var err error
	if plan.Record, err = json.Marshal(record); err != nil {
		return err
	}
	plan.Reason = archive.Adopt
	problems, err := r.swap(ctx, plan)
	if err != nil {
		return err
	}
	res.adopted = true
	r.book.wait()
	r.book.record = record
	for _, p := range problems { // What is left of ours there is not newer than the peer's.
		r.guard(p.Root, p.Path)
	}
	for _, p := range parts {
		if _, err := p.tree.Scan(ctx, false); err != nil {
			return &treeError{err}
		}
		p.want(manifest.Diff(p.theirs, p.tree.Manifest())) // what was changed here meanwhile
	}
	r.cfg.Log.Warn(fmt.Sprintf("took over the configuration of the peer %s, which was master while this node was away: %s", r.cfg.Peer, words))
	return nil
}

// toBecome is what makes our tree the peer's, but for paths that are skipped.
func (p *part) toBecome(ctx context.Context, w work) (changes []manifest.Change, skipped []string, err error) {
	limited, cancel := limit(ctx, wholeLimit)
	defer cancel()
	if p.theirs, err = w.peer.Manifest(limited, p.Name); err != nil {
		return nil, nil, err
	}
	if _, ok := p.theirs.Get(anchor); p.anchor() != "" && !ok {
		return nil, nil, &Trouble{"the peer's configuration is the newer one, but has no " + anchor, "is a disk not mounted there?"}
	}
	gone := 0
	for _, c := range manifest.Diff(p.tree.Manifest(), p.theirs) {
		if p.excepted(c.Path) && !p.busy[c.Path] {
			skipped = append(skipped, c.Path) // unreadable here: it could not be archived
			continue
		}
		if c.To == nil && c.From.Kind != manifest.Dir {
			gone++
		}
		changes = append(changes, c)
	}
	if left := p.theirs.Files(); gone >= manyGone && gone > left && !w.confirmed {
		return nil, nil, vanishedTrouble(p.Dir+" on the peer, whose configuration is the newer one,", gone)
	}
	return changes, skipped, nil
}

// fetch brings what is to be replaced beside the trees.
func fetch(ctx context.Context, stateDir string, from Peer, parts []journal.Part) error {
	for i := range parts {
		part := &parts[i]
		var err error
		if part.Stage, err = journal.StageFor(stateDir, part.Dir); err != nil {
			return err
		}
		var files []string
		for _, c := range part.Changes {
			if c.To != nil && c.To.Kind != manifest.Dir {
				files = append(files, c.Path)
			}
		}
		if len(files) == 0 {
			continue
		}
		if err := from.Fetch(ctx, part.Root, files, part.Stage); err != nil {
			return err
		}
	}
	return nil
}

// swap carries a plan out, and returns what of it could not be.
func (r *round) swap(ctx context.Context, plan journal.Plan) ([]journal.Problem, error) {
	problems, err := r.cfg.node().Do(ctx, plan)
	r.cfg.notReplaced(problems)
	return problems, err
}

// resume ends a swap that this process began and could not end, because a disk was
// full for example.
func (r *round) resume(ctx context.Context, res *result) error {
	if _, err := os.Lstat(filepath.Join(r.cfg.StateDir, journal.Name)); err != nil {
		return nil
	}
	r.book.wait()
	node := r.cfg.node()
	node.Store = func(record ledger.Record) error {
		err := r.cfg.Store(record)
		if err == nil {
			r.book.record = record
		}
		return err
	}
	reason, problems, err := node.Recover(ctx)
	for _, p := range problems {
		r.guard(p.Root, p.Path)
	}
	clear(r.known)
	r.met = false
	r.cfg.notReplaced(problems)
	if err != nil {
		return &Trouble{err.Error(), "mend that; it is tried again by itself"}
	}
	res.adopted = reason != "" && reason != archive.Restore
	return nil
}

// guard notes a path of ours that may be older than the peer's: what it replaces
// there is archived.
func (r *round) guard(root, path string) { r.guarded[root+"\x00"+path] = true }

// keepFor is what the peer archives before it changes paths.
func (r *round) keepFor(p *part, paths []string) *peer.Keeping {
	k := *r.keep
	for _, path := range paths {
		k.All = k.All || r.guarded[p.Name+"\x00"+path]
	}
	return &k
}

// node is where trees are replaced.
func (c Config) node() swap.Node {
	return swap.Node{StateDir: c.StateDir, Archives: c.Archives, Peer: c.Peer, Store: c.Store, Owe: c.Owe}
}

func (c Config) notReplaced(problems []journal.Problem) {
	for _, p := range problems {
		c.Log.Warn("not replaced: "+name(p.Path), "why", p.Err)
	}
}

// archiveReplaced keeps what a plan replaces or removes.
func (r *round) archiveReplaced(ctx context.Context, info archive.Info, parts []journal.Part) error {
	writer, err := r.cfg.Archives.Begin(info)
	if err != nil {
		return archiveTrouble(err)
	}
	defer writer.Abort()
	for _, part := range parts {
		for _, c := range part.Changes {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if c.From == nil {
				continue
			}
			if err := writer.Add(part.Root, part.Dir, c.Path); err != nil {
				return archiveTrouble(err)
			}
		}
	}
	return r.keepArchive(writer)
}

// keepArchive puts an archive that is not empty among the others.
func (r *round) keepArchive(writer *archive.Writer) error {
	if writer.Empty() {
		return nil
	}
	made, err := writer.Commit()
	if err != nil {
		return archiveTrouble(err)
	}
	r.cfg.Troubles.Clear("archive")
	r.cfg.Log.Info(fmt.Sprintf("archived %s as %s", count(made.Files, "file"), made.Name), "reason", made.Reason)
	r.crowded = true
	return nil
}

// prune removes what no limit allows any more. It is for the end of a round: the
// archive that is being restored may be the oldest one.
func (r *round) prune() {
	if !r.crowded {
		return
	}
	r.crowded = false
	removed, err := r.cfg.Archives.Prune(time.Now(), r.cfg.Limits)
	for _, i := range removed {
		r.cfg.Log.Info("removed the archive " + i.Name + ", which is past $archive_keep")
	}
	r.cfg.Troubles.Check("prune", "old archives cannot be removed: ", err)
}

func archiveTrouble(err error) error {
	return &Trouble{"what would be replaced cannot be archived, so nothing is replaced: " + err.Error(),
		"make space in /var/lib/skudonet-ce-cluster, or remove archives there"}
}

func changesOf(plan journal.Plan) (list []change) {
	for _, part := range plan.Parts {
		for _, c := range part.Changes {
			list = append(list, change{part.Root, c})
		}
	}
	return list
}

// Recover ends what an interruption left half done. It is for before the engine
// runs, and reports whether it changed a tree.
func Recover(ctx context.Context, c Config) (changed bool, err error) {
	reason, problems, err := c.node().Recover(ctx)
	c.notReplaced(problems)
	for _, root := range c.Roots {
		peer.Disown(c.StateDir, root.Name)
	}
	if err != nil || reason != "" {
		return reason != "", err
	}
	for _, root := range c.Roots { // what was staged, but not begun
		stage, err := journal.StageFor(c.StateDir, root.Dir)
		if err == nil {
			err = journal.Undo(c.StateDir, stage)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			c.Log.Warn("what was staged before an interruption stays there: " + err.Error())
		}
	}
	return false, nil
}
