package mirror

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"github.com/skudonet/skudonet-ce-cluster/lib/scan"
)

// look sees what has changed here.
func (r *round) look(ctx context.Context, i int, w work) (*part, error) {
	t, rw := r.trees[i], w.roots[i]
	p := &part{Root: r.cfg.Roots[i], index: i, tree: t, first: t.Manifest().Len() == 0, impatient: map[string]bool{}, before: map[string]manifest.Entry{},
		wanted: map[string]bool{}, busy: map[string]bool{}, except: map[string]bool{}, refused: map[string]string{},
		left: rw.leave, forced: rw.forced, held: r.held[i], changes: map[string]manifest.Change{}, repairs: map[string]bool{}}
	for _, path := range rw.overdue {
		p.impatient[path] = true
	}
	for _, path := range rw.leave {
		p.except[path] = true
	}
	if !w.full {
		for path := range r.stubborn.alone[p.Name] {
			p.except[path] = true
		}
	}
	report, err := p.see(ctx, w, r.known[i], slices.Concat(rw.ready, rw.overdue))
	if r.known[i] = err == nil; err != nil {
		return nil, err
	}
	for _, path := range report.Changed {
		p.wanted[path] = true
	}
	for _, u := range report.Unreadable {
		p.skip(u.Path, u.Err)
	}
	for path := range rw.forced {
		if !p.excepted(path) && manifest.CheckPath(path) == nil { // Too long a path was never sent; it is gone.
			p.wanted[path] = true
		}
	}
	for _, s := range report.Special {
		p.special = append(p.special, fmt.Sprintf("%s (%v)", name(path.Join(p.Dir, s.Path)), s.Err))
	}
	return p, nil
}

// see has the tree looked at: all of it, or paths. What was seen counts only if
// the tree was there all the time.
func (p *part) see(ctx context.Context, w work, known bool, paths []string) (report scan.Report, err error) {
	all := w.full || !known
	var earlier []string
	for began := time.Now(); ; {
		if all {
			p.remember(".")
			report, err = p.tree.Scan(ctx, w.read)
		} else {
			for _, path := range paths {
				p.remember(path)
			}
			report, err = p.tree.Look(ctx, paths)
		}
		report.Changed = append(report.Changed, earlier...)
		switch {
		case ctx.Err() != nil:
			return report, ctx.Err()
		case err == nil:
			return report, nil
		case !errors.Is(err, scan.ErrAnchor):
			return report, &Trouble{fmt.Sprintf("%s cannot be read: %v", p.Dir, err), mounted}
		case time.Since(began) > anchorWait:
			return report, noAnchor(p.Dir)
		}
		all, earlier = true, report.Changed
		time.Sleep(anchorWait / 20)
	}
}
