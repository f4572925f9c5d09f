package journal

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"github.com/skudonet/skudonet-ce-cluster/lib/scan/beneath"
	"golang.org/x/sys/unix"
)

// Problem is a path that is not as the plan wants it, and why.
type Problem struct {
	Root, Path string
	Err        error
}

// Apply carries the plan out, or what is left of it, and returns when the result
// is on the disk. Paths that cannot be changed are returned; they do not keep it
// from changing the others. With an error, what is left is to be done by another
// Apply: the disk may be full, or the context's end have come.
//
// The plan wins over what somebody did to a path since it was made. But before
// that is replaced or removed, replaced gets it, if it is not nil; its error ends Apply.
func (j *Journal) Apply(ctx context.Context, replaced func(root, path string, e manifest.Entry) error) ([]Problem, error) {
	parts := make([]part, 0, len(j.Plan.Parts))
	defer func() {
		for _, p := range parts {
			p.close()
		}
	}()
	for _, plan := range j.Plan.Parts {
		p := part{Part: plan, hash: j.Plan.Hash, replaced: replaced, failed: make(map[string]bool)}
		if err := p.open(); err != nil {
			return nil, err
		}
		parts = append(parts, p)
	}
	var problems []Problem
	for i := range parts {
		err := parts[i].apply(ctx)
		problems = append(problems, parts[i].problems...)
		if err != nil {
			return problems, err
		}
	}
	j.applied = true
	return problems, nil
}

// part is a Part that is being carried out.
type part struct {
	Part
	hash        Hash
	replaced    func(root, path string, e manifest.Entry) error
	tree, stage int // the directories
	problems    []Problem
	failed      map[string]bool // their paths
}

func (p *part) open() (err error) {
	if p.tree, err = beneath.Top(p.Dir); err != nil {
		return fmt.Errorf("%w; is its file system mounted? a change of the configuration waits for it", err)
	}
	if p.stage, err = beneath.Top(p.Stage); err != nil {
		unix.Close(p.tree)
		return fmt.Errorf("%w; is the file system of %s mounted? a change of the configuration waits for it; if that directory is lost, compare the configuration with the other node's and remove %s from the state directory", err, p.Dir, Name)
	}
	return nil
}

func (p *part) close() {
	unix.Close(p.tree)
	unix.Close(p.stage)
}

func (p *part) apply(ctx context.Context) error {
	all := p.Changes
	for _, c := range slices.Backward(all) {
		if c.To != nil {
			continue
		}
		if err := p.try(ctx, c, p.remove); err != nil {
			return err
		}
	}
	for _, c := range all {
		if c.To == nil {
			continue
		}
		if err := p.try(ctx, c, p.put); err != nil {
			return err
		}
	}
	for _, c := range slices.Backward(all) {
		if c.To == nil || c.To.Kind != manifest.Dir || p.failed[c.Path] {
			continue
		}
		if err := p.try(ctx, c, p.attributes); err != nil {
			return err
		}
	}
	step("sync %s", p.Root)
	if err := syncDirs(p.tree, p.touched()); err != nil {
		return fmt.Errorf("%s: %w", p.Dir, err)
	}
	return nil
}

// try does one thing to one path. An error of the path alone is kept.
func (p *part) try(ctx context.Context, c manifest.Change, do func(manifest.Change) error) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	err := do(c)
	if err == nil {
		return nil
	}
	if stops(err) {
		return fmt.Errorf("%s: %q: %w", p.Dir, c.Path, err)
	}
	p.failed[c.Path] = true
	p.problems = append(p.problems, Problem{p.Root, c.Path, err})
	return nil
}

// stop is an error that is not about the path.
type stop struct{ error }

func (s stop) Unwrap() error { return s.error }

// stops tells whether the next path would fail as well.
func stops(err error) bool {
	if errors.As(err, new(stop)) {
		return true
	}
	return slices.ContainsFunc([]error{unix.ENOSPC, unix.EDQUOT, unix.EIO, unix.EROFS, unix.ENOMEM, unix.EMFILE, unix.ENFILE},
		func(e error) bool { return errors.Is(err, e) })
}

// touched are the directories in which something may have changed.
func (p *part) touched() map[string]bool {
	dirs := make(map[string]bool)
	for _, c := range p.Changes {
		dir := "."
		if up := above(c.Path); len(up) > 0 {
			dir = up[len(up)-1]
		}
		dirs[dir] = true
		if c.To != nil && c.To.Kind == manifest.Dir {
			dirs[c.Path] = true
		}
	}
	return dirs
}
