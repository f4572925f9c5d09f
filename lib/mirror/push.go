package mirror

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"github.com/skudonet/skudonet-ce-cluster/lib/peer"
	"github.com/skudonet/skudonet-ce-cluster/lib/rsync"
)

// push sends what is wanted.
func (r *round) push(ctx context.Context, to Peer, p *part, res *result) error {
	names := slices.Sorted(maps.Keys(p.wanted))
	p.sent, p.gone, p.going, p.said = nil, nil, map[string]bool{}, nil
	var files []string
	for _, path := range names {
		if e, ok := p.tree.Manifest().Get(path); ok {
			files = append(files, path)
			p.note(path, &e)
		} else if !p.excepted(path) {
			p.remove(path)
		}
	}
	if first := p.inTheWay(); len(first) > 0 {
		req := peer.DigestRequest{Roots: []peer.Look{{Root: p.Name, Remove: first, Keep: r.keeping(p, first)}}, Set: r.set}
		if _, err := askDigest(ctx, to, req, answerLimit); err != nil {
			return err
		}
	}
	total := len(files)
	for len(files) > 0 {
		if total > few {
			r.say(fmt.Sprintf("sending %d files below %s, %d to go", total, p.Dir, len(files)))
		}
		source, batch, rest, err := r.batch(ctx, p, files)
		if err != nil {
			return err
		}
		files = rest
		if len(batch) == 0 {
			continue
		}
		res.runs++
		keep := r.keepFor(p, batch)
		keep.Paths = peerNames(batch)
		err = to.Push(ctx, Transfer{Root: p.Name, Source: source, Files: batch, Keep: keep})
		var failed *rsync.Failure
		if errors.As(err, &failed) {
			p.said = err
		} else if err != nil {
			return err
		}
		p.sent = append(p.sent, batch...)
	}
	if total > 0 {
		for _, stage := range r.stages {
			if err := stage.Clear(); err != nil {
				return err
			}
		}
	}
	return nil
}

// inTheWay are the removals below what was a directory and is one no more: rsync
// would not replace it.
func (p *part) inTheWay() (first []peer.Removal) {
	for _, g := range p.gone {
		for dir := parent(string(g.Path)); dir != "."; dir = parent(dir) {
			if e, ok := p.tree.Manifest().Get(dir); ok && e.Kind != manifest.Dir {
				first = append(first, g)
				break
			}
		}
	}
	return first
}
