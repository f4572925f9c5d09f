package mirror

import (
	"context"
	"os"
	"path"
	"slices"

	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
)

// legacy has rsync alone do the work.
func (r *round) legacy(ctx context.Context, w work, res *result) error {
	var failed []error
	for i, root := range r.cfg.Roots {
		rw := w.roots[i]
		if !w.full && len(rw.ready)+len(rw.overdue) == 0 {
			continue
		}
		if !anchored(ctx, root) {
			failed = append(failed, noAnchor(root.Dir))
			continue
		}
		t := Transfer{Root: root.Name, Source: root.Dir, Whole: true, Set: r.trees[i].Root().Set}
		if root.Only != "" {
			if _, err := os.Lstat(path.Join(root.Dir, root.Only)); err != nil {
				continue
			}
			t.Whole, t.Files = false, []string{root.Only}
		}
		r.say("sending everything below " + root.Dir)
		res.runs++
		if err := w.peer.Push(ctx, t); err != nil {
			failed = append(failed, err)
			continue
		}
		for _, path := range slices.Concat(rw.ready, rw.overdue) {
			res.changes = append(res.changes, change{root.Name, manifest.Change{Path: path}})
		}
	}
	if len(failed) > 0 {
		return failed[0] // the tree's, rather than rt_tables'
	}
	return nil
}
