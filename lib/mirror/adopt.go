package mirror

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/archive"
	"github.com/skudonet/skudonet-ce-cluster/lib/journal"
	"github.com/skudonet/skudonet-ce-cluster/lib/ledger"
	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"github.com/skudonet/skudonet-ce-cluster/lib/meaning"
	"github.com/skudonet/skudonet-ce-cluster/lib/peer"
	"github.com/skudonet/skudonet-ce-cluster/lib/reconcile"
	"github.com/skudonet/skudonet-ce-cluster/lib/step"
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
	var plan journal.Plan
	for _, p := range parts {
		changes, err := p.toBecome(ctx, w)
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
		record.Trees[p.Name] = ledger.Tree{Digest: p.theirs.Digest(), Set: r.set}
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
	if err := r.swap(ctx, plan); err != nil {
		return err
	}
	r.book.wait()
	r.book.record = record
	for _, p := range parts {
		if _, err := p.tree.Scan(ctx, false); err != nil {
			return &treeError{err}
		}
		p.want(manifest.Diff(p.theirs, p.tree.Manifest())) // what was changed here meanwhile
	}
	r.cfg.Log.Warn(fmt.Sprintf("took over the configuration of the peer %s, which was master while this node was away: %s", r.cfg.Peer, words))
	res.adopted = true
	return nil
}

// toBecome is what makes our tree the peer's.
func (p *part) toBecome(ctx context.Context, w work) ([]manifest.Change, error) {
	limited, cancel := limit(ctx, wholeLimit)
	defer cancel()
	var err error
	if p.theirs, err = w.peer.Manifest(limited, p.Name); err != nil {
		return nil, err
	}
	if _, ok := p.theirs.Get(anchor); p.anchor() != "" && !ok {
		return nil, &Trouble{"the peer's configuration is the newer one, but has no " + anchor, "is a disk not mounted there?"}
	}
	var changes []manifest.Change
	gone := 0
	for _, c := range manifest.Diff(p.tree.Manifest(), p.theirs) {
		if p.excepted(c.Path) && !p.busy[c.Path] {
			continue // unreadable here: it could not be archived
		}
		if c.To == nil && c.From.Kind != manifest.Dir {
			gone++
		}
		changes = append(changes, c)
	}
	if left := p.theirs.Files(); gone >= manyGone && gone > left && !w.confirmed {
		return nil, vanishedTrouble(p.Dir+" on the peer, whose configuration is the newer one,", gone)
	}
	return changes, nil
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

// swap carries a plan out. What stands in the way, and is neither what the plan
// replaces nor what it brings, is archived.
func (r *round) swap(ctx context.Context, plan journal.Plan) error {
	if len(plan.Parts) == 0 {
		return finishRecord(r.cfg, plan.Record)
	}
	plan.Hash = meaning.Read
	j, err := journal.Begin(r.cfg.StateDir, plan)
	if err != nil {
		return err
	}
	step.At("mirror.swap.begun")
	return finish(ctx, r.cfg, j)
}

// finish ends a plan that was begun, now or before an interruption.
func finish(ctx context.Context, cfg Config, j *journal.Journal) error {
	late := lateArchive{cfg: cfg, dirs: map[string]string{}}
	for _, root := range cfg.Roots {
		late.dirs[root.Name] = root.Dir
	}
	problems, err := j.Apply(ctx, late.add)
	if cerr := late.close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	for _, p := range problems {
		cfg.Log.Warn("not replaced: "+name(p.Path), "why", p.Err)
	}
	step.At("mirror.swap.applied")
	if err := finishRecord(cfg, j.Plan.Record); err != nil {
		return err
	}
	step.At("mirror.swap.recorded")
	if j.Plan.Reason != archive.Restore { // which leaves it to the admin
		if err := cfg.Owe(); err != nil {
			return err
		}
	}
	return j.End()
}

func finishRecord(cfg Config, text json.RawMessage) error {
	if text == nil {
		return nil
	}
	var record ledger.Record
	if err := json.Unmarshal(text, &record); err != nil {
		return err
	}
	return cfg.Store(record)
}

// lateArchive is for what changed while a plan was made.
type lateArchive struct {
	cfg    Config
	dirs   map[string]string
	writer *archive.Writer
}

func (l *lateArchive) add(root, path string, _ manifest.Entry) error {
	if l.writer == nil {
		var err error
		if l.writer, err = l.cfg.Archives.Begin(archive.Info{Reason: archive.Adopt, Peer: l.cfg.Peer, Holds: archive.Ours}); err != nil {
			return err
		}
	}
	return l.writer.Add(root, l.dirs[root], path)
}

func (l *lateArchive) close() error {
	if l.writer == nil {
		return nil
	}
	_, err := l.writer.Commit()
	return err
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
	r.prune()
	return nil
}

// prune removes what no limit allows any more.
func (r *round) prune() {
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
	j, err := journal.Pending(c.StateDir, meaning.Read)
	if err != nil || j == nil {
		return false, err
	}
	return true, finish(ctx, c, j)
}
