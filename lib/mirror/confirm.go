package mirror

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"github.com/skudonet/skudonet-ce-cluster/lib/peer"
)

// verify has the peer remove and look, and compares. It tells whether there is
// something to repair, which is then wanted.
func (r *round) verify(ctx context.Context, with Peer, parts []*part, try int, res *result) (again bool, err error) {
	req := r.request(parts, false, false)
	req.Commit = r.commit(parts)
	answer, err := askDigest(ctx, with, req, answerLimit)
	if err != nil {
		return false, err
	}
	r.committed(req.Commit, answer)
	for _, p := range parts {
		a, ok := p.answer(answer.Roots)
		if !ok {
			continue
		}
		res.partial = res.partial || !a.Walked
		p.refuse(a.Problems)
		p.digest = p.own()
		if p.equal(a) {
			clear(p.wanted)
			continue
		}
		if err := p.differences(ctx, with, true); err != nil {
			return false, err
		}
		if p.said == nil && try < attempts {
			again = again || len(p.wanted) > 0
			continue
		}
		for path := range p.wanted {
			if _, refused := p.refused[path]; p.repairs[path] && p.said == nil && !refused {
				r.unrepaired(p, path)
			} else {
				p.fail(path)
			}
		}
		clear(p.wanted)
	}
	return again, nil
}

// differences wants exactly that sent in which the peer differs.
// With repair, what nobody changed here was changed there.
func (p *part) differences(ctx context.Context, with Peer, repair bool) error {
	changed := maps.Clone(p.wanted)
	limited, cancel := limit(ctx, wholeLimit)
	defer cancel()
	var err error
	if p.theirs, err = with.Manifest(limited, p.Name); err != nil {
		return err
	}
	p.want(manifest.Diff(p.theirs, p.tree.Manifest()))
	for path := range p.wanted {
		if repair && !changed[path] {
			p.repairs[path] = true
		}
	}
	return nil
}

// want wants these differences sent, and nothing else.
func (p *part) want(list []manifest.Change) {
	clear(p.wanted)
	clear(p.before)
	for _, c := range list {
		if p.excepted(c.Path) {
			continue
		}
		p.wanted[c.Path] = true
		if c.From != nil {
			p.before[c.Path] = *c.From
		}
	}
}

func (p *part) own() manifest.Digest {
	list, _ := p.exceptions()
	return p.tree.Manifest().DigestExcept(list)
}

func (p *part) equal(a peer.RootDigest) bool {
	_, wide := p.exceptions()
	return a.Digest == p.digest && !wide
}

// request asks for all digests, and to look again at what was sent.
func (r *round) request(parts []*part, full, read bool) (req peer.DigestRequest) {
	req.Set = r.set
	for _, p := range parts {
		except, _ := p.exceptions()
		look := peer.Look{Root: p.Name, Full: full, Read: read, Paths: peerNames(p.sent), Remove: p.gone,
			Except: peerNames(except), Keep: r.keeping(p, p.gone)}
		req.Roots = append(req.Roots, look)
	}
	return req
}

// keeping is what the peer archives before a removal.
func (r *round) keeping(p *part, gone []peer.Removal) *peer.Keeping {
	if len(gone) == 0 {
		return nil
	}
	var paths []string
	for _, g := range gone {
		paths = append(paths, string(g.Path))
	}
	return r.keepFor(p, paths)
}

// commit has the peer record that its trees are what our vector stands for. It is
// nil if there is nothing new to record, or if we have not recorded it ourselves.
func (r *round) commit(parts []*part) *peer.Commit {
	if !r.book.due() && !r.resolved || len(parts) < len(r.cfg.Roots) {
		return nil
	}
	for _, p := range parts {
		if len(p.except) > 0 || p.trouble != nil {
			return nil
		}
	}
	if err := r.book.wait(); err != nil {
		t := recordTrouble(err)
		r.cfg.Troubles.Advise("record", t.Text, t.Remedy)
		return nil
	}
	r.cfg.Troubles.Clear("record")
	if !r.book.clean(parts, r.set) {
		return nil // It has changed again meanwhile; the next round's vector stands for that.
	}
	return &peer.Commit{Vector: r.book.record.Vector, Digests: digests(parts), Set: r.set, Waiting: r.waiting}
}

func (r *round) committed(asked *peer.Commit, answer peer.DigestAnswer) {
	if asked == nil {
		return
	}
	if answer.Committed {
		r.book.theirs, r.resolved = asked.Vector, false
	}
}

func peerNames(paths []string) []peer.Name {
	names := make([]peer.Name, len(paths))
	for i, p := range paths {
		names[i] = peer.Name(p)
	}
	return names
}

// answer picks the one for this root, if there is one.
func (p *part) answer(answers []peer.RootDigest) (peer.RootDigest, bool) {
	for _, a := range answers {
		switch {
		case a.Root != p.Name:
		case a.Failed != "":
			p.trouble = &Trouble{p.Dir + " cannot be read on the peer: " + a.Failed, "is a disk not mounted there?"}
			return a, false
		default:
			return a, true
		}
	}
	p.trouble = &Trouble{"the peer does not answer for " + p.Dir, "see its skudonet-cluster.conf: $configdir, $rttables"}
	return peer.RootDigest{}, false
}

func (p *part) refuse(problems []peer.Problem) {
	for _, problem := range problems {
		p.refused[string(problem.Path)] = "on the peer: " + problem.Text
	}
}

// fail says why a path is not the same on the peer.
func (p *part) fail(path string) {
	words := "is different on the peer after it was sent; something there changes it"
	if p.excepted(path) {
		words = "not compared, because a directory above it is not the same"
	}
	if why, ok := p.refused[path]; ok {
		words = why
	} else if p.said != nil {
		words, _ = explain(p.said)
		if remedy := p.remedy(); remedy != "" {
			words += " (" + remedy + ")"
		}
	}
	p.failed = append(p.failed, failure{path, words})
	p.except[path] = true
	delete(p.changes, path)
}

// remedy is rsync's, without what is done anyway.
func (p *part) remedy() string {
	_, remedy := explain(p.said)
	if strings.HasSuffix(remedy, "tried again by itself") || strings.HasSuffix(remedy, "repeated by itself") {
		remedy, _, _ = strings.Cut(remedy, "; ")
		if strings.Contains(remedy, "by itself") {
			return ""
		}
	}
	return remedy
}

// A peer that answers nothing for so long hangs, although its ssh may be alive.
const (
	answerLimit = time.Minute      // to a look at what was sent
	wholeLimit  = 10 * time.Minute // to a look at everything
)

func limit(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, d, fmt.Errorf("skd-inotify there has not answered for %v", d))
}

func askDigest(ctx context.Context, p Peer, q peer.DigestRequest, d time.Duration) (peer.DigestAnswer, error) {
	ctx, cancel := limit(ctx, d)
	defer cancel()
	return p.Digest(ctx, q)
}
