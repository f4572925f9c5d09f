package mirror

import (
	"maps"
	"slices"
)

// alone is a round without a peer: what changed is recorded, so that it counts
// when the peer is back, and is kept for then.
func (r *round) alone(w work, parts []*part, res *result) {
	if res.err = r.enter(w, parts); res.err != nil {
		return
	}
	for _, p := range parts {
		for path := range p.wanted {
			e, ok := p.tree.Manifest().Get(path)
			was, had := p.before[path]
			switch {
			case p.first, ok == had && e == was: // waits since an earlier round
			case ok:
				p.note(path, &e)
			default:
				p.note(path, nil)
			}
		}
		p.left = append(p.left, slices.Sorted(maps.Keys(p.wanted))...)
	}
}

// enter records what the trees hold, if that is new, without the peer.
func (r *round) enter(w work, parts []*part) error {
	clean := r.book.clean(parts, r.set)
	if clean || w.confirmed {
		r.lost = nil
	} else if r.vanished(w, parts) || r.book.fewer(parts) {
		r.lost = map[string]error{}
		for _, p := range parts {
			r.lost[p.Name] = p.trouble
		}
	}
	for _, p := range parts {
		if p.trouble == nil {
			p.trouble = r.lost[p.Name]
		}
	}
	if clean {
		if err := r.book.wait(); err != nil {
			return recordTrouble(err)
		}
		return nil
	}
	if r.lost != nil || len(parts) < len(r.cfg.Roots) || len(r.book.record.Vector) == 0 && !r.cfg.Holder() {
		return nil // The last: a node that never took part does not begin with what it happens to have.
	}
	r.book.write(r.book.record.Vector.Raised(r.book.record.ID), parts, r.set)
	if err := r.book.wait(); err != nil {
		return recordTrouble(err)
	}
	r.cfg.Troubles.Clear("record")
	return nil
}
