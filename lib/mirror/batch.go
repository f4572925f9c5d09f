package mirror

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"github.com/skudonet/skudonet-ce-cluster/lib/snapshot"
)

// Limits of one run of rsync from a stage, so that the copies stay small. A
// larger file than bigFile goes alone, and not by way of the memory.
const (
	batchFiles = 10_000
	batchBytes = 64 << 20
	bigFile    = 16 << 20
)

// batch takes as many files as one run of rsync shall carry, and tells from where:
// from snapshots in memory or on disk, or from the tree itself.
func (r *round) batch(ctx context.Context, p *part, files []string) (source string, batch, rest []string, err error) {
	if r.cfg.Direct {
		return p.Dir, p.quiet(files), nil, nil
	}
	dirs := []string{r.cfg.MemoryStage, r.cfg.DiskStage}
	if e, ok := p.tree.Manifest().Get(files[0]); ok && e.Size > bigFile {
		dirs = dirs[1:]
	}
	for _, dir := range dirs {
		var stage *snapshot.Stage
		if stage, err = r.stage(dir); err == nil {
			batch, rest, err = r.copy(ctx, stage, p, files)
		}
		if err == nil {
			r.cfg.Troubles.Clear("stage")
			return stage.Dir(), batch, rest, nil
		}
		var lost *treeError
		if ctx.Err() != nil {
			return "", nil, nil, ctx.Err()
		} else if errors.As(err, &lost) {
			return "", nil, nil, err
		}
		if stage != nil {
			stage.Clear()
		}
	}
	r.cfg.Troubles.Advise("stage", "no snapshots of files: "+err.Error()+"; rsync reads them while they may be written", "make space there")
	return p.Dir, p.quiet(files), nil, nil
}

func (r *round) stage(dir string) (*snapshot.Stage, error) {
	if s, ok := r.stages[dir]; ok {
		return s, s.Clear()
	}
	s, err := snapshot.Open(dir)
	if err == nil {
		r.stages[dir] = s
	}
	return s, err
}

// How often a file that is written for long is looked at, for a moment in which
// it is whole.
const (
	moments      = 100
	momentsApart = 2 * time.Millisecond
)

// copy makes snapshots. The error is one of the stage; what is wrong with a file
// concerns that file only.
func (r *round) copy(ctx context.Context, stage *snapshot.Stage, p *part, files []string) (batch, rest []string, err error) {
	size := int64(0)
	for i, path := range files {
		if ctx.Err() != nil {
			return nil, nil, ctx.Err()
		}
		big := false
		if e, ok := p.tree.Manifest().Get(path); ok {
			big = e.Size > bigFile
		}
		if len(batch) >= batchFiles || size >= batchBytes || big && i > 0 {
			return batch, files[i:], nil
		}
		e, err := stage.Copy(snapshot.Root{Name: p.Name, Dir: p.Dir}, path, true)
		for tries := 0; p.impatient[path] && errors.Is(err, snapshot.ErrBusy); tries++ {
			// It may be free for moments only; if not, it is sent as it is.
			time.Sleep(momentsApart)
			e, err = stage.Copy(snapshot.Root{Name: p.Name, Dir: p.Dir}, path, tries < moments)
		}
		switch {
		case err == nil:
			p.tree.Note(e)
			if p.rewritten(e) {
				delete(p.changes, path)
				break
			}
			p.note(path, &e)
			batch = append(batch, path)
			size += e.Size
		case errors.Is(err, snapshot.ErrBusy):
			p.hold(path)
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, snapshot.ErrKind):
			if err := p.vanished(ctx, path); err != nil {
				return nil, nil, err
			}
		case noSpace(err):
			return nil, nil, err
		default:
			p.skip(path, err)
			delete(p.changes, path)
		}
		if big {
			return batch, files[i+1:], nil
		}
	}
	return batch, nil, nil
}

// quiet leaves out what is being written.
func (p *part) quiet(files []string) (quiet []string) {
	for _, file := range files {
		if !p.impatient[file] && snapshot.OpenForWriting(path.Join(p.Dir, file)) {
			p.hold(file)
			continue
		}
		quiet = append(quiet, file)
	}
	return quiet
}

// hold leaves a file for later.
func (p *part) hold(file string) {
	if was, ok := p.before[file]; ok && !p.forced[file] {
		p.held[file] = was
	}
	p.busy[file], p.except[file] = true, true
	delete(p.changes, file)
}

// rewritten tells whether a file has been written, but is what the peer has.
func (p *part) rewritten(e manifest.Entry) bool {
	was, ok := p.held[e.Path]
	if !ok && !p.forced[e.Path] {
		was, ok = p.before[e.Path]
	}
	delete(p.held, e.Path)
	return ok && was == e
}

// vanished looks again at what was there a moment ago.
func (p *part) vanished(ctx context.Context, path string) error {
	p.remember(path)
	report, err := p.tree.Look(ctx, []string{path})
	if err != nil {
		return &treeError{err}
	}
	for _, u := range report.Unreadable {
		p.skip(u.Path, u.Err)
	}
	for _, changed := range report.Changed {
		if _, ok := p.tree.Manifest().Get(changed); !ok && !p.excepted(changed) {
			p.remove(changed)
		}
	}
	return nil
}

// treeError is an error of the tree itself, in the middle of a round.
type treeError struct{ error }

func (t *treeError) Unwrap() error { return t.error }
