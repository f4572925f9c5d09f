package mirror

import (
	"maps"
	"slices"
)

// alone is a round without a peer: what changed is recorded, so that it counts
// when the peer is back, and is kept for then.
func (r *round) alone(w work, parts []*part, res *result) {
	clean := r.book.clean(parts, r.set)
	r.lost = !clean && !w.confirmed && (r.vanished(w, parts) || r.lost)
	if !r.lost && !clean && len(parts) == len(r.cfg.Roots) {
		r.book.write(r.book.record.Vector.Raised(r.book.record.ID), parts, r.set)
		if err := r.book.wait(); err != nil {
			res.err = recordTrouble(err)
			return
		}
		r.cfg.Troubles.Clear("record")
	}
	for _, p := range parts {
		for path := range p.wanted {
			e, ok := p.tree.Manifest().Get(path)
			if ok {
				p.note(path, &e)
			} else {
				p.note(path, nil)
			}
		}
		p.left = append(p.left, slices.Sorted(maps.Keys(p.wanted))...)
	}
}
