package mirror

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/skudonet/skudonet-ce-cluster/lib/archive"
	"github.com/skudonet/skudonet-ce-cluster/lib/peer"
	"github.com/skudonet/skudonet-ce-cluster/lib/reconcile"
	"github.com/skudonet/skudonet-ce-cluster/lib/vector"
)

// meet compares both nodes as a whole, decides whose configuration counts, and
// sees to what that takes, up to what is to be sent: that is then wanted.
func (r *round) meet(ctx context.Context, w work, parts []*part, res *result) error {
	r.met = false
	same, touched, err := r.compare(ctx, w, parts)
	if err != nil {
		return err
	}
	parts = able(parts)
	if !slices.ContainsFunc(parts, func(p *part) bool { return p.Name == peer.ConfigRoot }) {
		for _, p := range parts {
			p.postpone()
		}
		return nil
	}
	theirs, err := r.standing(ctx, w.peer)
	if err != nil {
		return err
	}
	ours := r.book.record
	d := reconcile.Decide(reconcile.Meeting{
		Ours:        reconcile.Node{ID: ours.ID, Vector: ours.Vector, Clean: r.book.clean(parts, r.set), Holder: r.cfg.Holder()},
		Theirs:      reconcile.Node{ID: theirs.ID, Vector: theirs.Vector, Clean: !touched, Holder: theirs.Holder},
		Same:        same,
		Established: w.established,
	})
	if d.Verdict == reconcile.Hold && w.confirmed {
		d.Verdict, d.Archive, d.Raise = reconcile.Push, true, true
	}
	r.skew(theirs)
	if err := r.renew(ctx, w.peer, d); err != nil {
		return err
	}
	v := ours.Vector.Merged(theirs.Vector)
	if d.Raise {
		v = v.Raised(r.book.record.ID)
	}
	if err := v.Check(); err != nil {
		return &Trouble{"the record of the peer " + r.cfg.Peer + " does not fit ours: " + err.Error(), "see ledger.json in /var/lib/skudonet-ce-cluster there"}
	}
	if len(parts) < len(r.cfg.Roots) && (d.Verdict == reconcile.Adopt || d.Verdict == reconcile.Conflict) {
		for _, p := range parts { // A vector stands for all of them.
			p.postpone()
		}
		return nil
	}
	repair := d.Reason == reconcile.Equal && !d.Raise
	r.keep = &peer.Keeping{All: d.Archive, Reason: reasonFor(d), Peer: r.cfg.Local, Ours: theirs.Vector, Theirs: v}
	switch d.Verdict {
	case reconcile.Hold:
		for _, p := range parts {
			p.trouble = firstContact(r.cfg.Peer)
		}
		return nil
	case reconcile.Adopt:
		if err := r.adopt(ctx, w, parts, theirs, d, v, res); err != nil || !res.adopted {
			return err
		}
		if !r.book.clean(parts, r.set) { // An admin was at work meanwhile.
			v = v.Raised(r.book.record.ID)
		}
	case reconcile.Push, reconcile.Conflict:
		for _, p := range parts {
			if err := p.differences(ctx, w.peer, repair); err != nil {
				return err
			}
		}
		if r.vanished(w, parts) {
			return nil
		}
		if d.Verdict == reconcile.Conflict {
			if err := r.conflict(ctx, w.peer, parts, theirs, d); err != nil {
				return err
			}
		}
		if repair {
			r.leaveStubborn(parts, r.skewed(theirs), w.asked)
		} else {
			r.noStubborn(parts)
		}
	case reconcile.InStep:
		r.noStubborn(parts)
	}
	if !r.book.clean(parts, r.set) || v.Compare(r.book.record.Vector) != vector.Equal {
		r.book.write(v, parts, r.set)
	}
	r.book.heard(theirs, parts, r.set)
	r.waiting = r.conflictsOf(theirs.Waiting)
	for _, id := range theirs.Waiting {
		r.resolved = r.resolved || !slices.Contains(r.waiting, id)
	}
	r.sayConflicts()
	r.met, res.met, r.lost = true, true, nil
	return nil
}

// compare asks the peer what it has. Wanted is then what was wanted in roots that
// differ; differences will say more.
func (r *round) compare(ctx context.Context, w work, parts []*part) (same, touched bool, err error) {
	r.say("comparing all files with the peer")
	answer, err := askDigest(ctx, w.peer, r.request(parts, true, w.read), wholeLimit)
	if err != nil {
		return false, false, err
	}
	same = true
	for _, p := range parts {
		a, ok := p.answer(answer.Roots)
		if !ok {
			continue
		}
		p.refuse(a.Problems)
		p.digest = p.own()
		if p.same = p.equal(a); p.same {
			clear(p.wanted)
			clear(p.before)
		}
		same, touched = same && p.same, touched || a.Touched
	}
	return same, touched, nil
}

func (r *round) standing(ctx context.Context, of Peer) (peer.Standing, error) {
	ctx, cancel := limit(ctx, answerLimit)
	defer cancel()
	return of.Standing(ctx)
}

// able are the parts that can be seen to.
func able(parts []*part) []*part {
	return slices.DeleteFunc(slices.Clone(parts), func(p *part) bool { return p.trouble != nil })
}

// postpone leaves what is wanted for later.
func (p *part) postpone() {
	p.left = append(p.left, slices.Sorted(maps.Keys(p.wanted))...)
	clear(p.wanted)
	p.postponed = true
}

// change is what meet is to a round that sends what has just changed here.
func (r *round) change(w work, parts []*part) {
	if r.vanished(w, parts) {
		r.met = false
		return
	}
	r.keep = &peer.Keeping{Reason: archive.Repair, Peer: r.cfg.Local, Ours: r.book.theirs, Theirs: r.book.record.Vector}
	if !r.book.clean(parts, r.set) {
		r.book.write(r.book.record.Vector.Raised(r.book.record.ID), parts, r.set)
		r.noStubborn(parts)
	}
}

func reasonFor(d reconcile.Decision) string {
	if d.Reason == reconcile.FirstContact {
		return archive.FirstContact
	}
	return archive.Repair
}

func firstContact(address string) *Trouble {
	return &Trouble{"first contact with " + address + ": nothing tells which node has the configuration that counts, so nothing is sent",
		"create $cluster_ip as a virtual interface in Skudonet on that node; or, if it is this one: skd-inotify sync --confirm"}
}

// renew gives a node another identity if two histories count under its name.
func (r *round) renew(ctx context.Context, with Peer, d reconcile.Decision) error {
	switch {
	case d.RenewOurs:
		was := r.book.record.ID
		if err := r.book.renew(); err != nil {
			return recordTrouble(err)
		}
		r.cfg.Log.Warn(fmt.Sprintf("the peer %s knows of later changes made by this node than this node does: was its disk or its snapshot an older one? "+
			"Both configurations are kept, and this node takes a new identity", r.cfg.Peer), "was", was.Short(), "is", r.book.record.ID.Short())
	case d.RenewTheirs:
		ctx, cancel := limit(ctx, answerLimit)
		defer cancel()
		id, err := with.Renew(ctx, string(d.Reason))
		if err != nil {
			return err
		}
		why := "its disk or its snapshot is an older one: this node knows of later changes of it than it does"
		if d.Reason == reconcile.Clone {
			why = "its disk is a copy of this node's"
		}
		r.cfg.Log.Warn("the peer " + r.cfg.Peer + " takes a new identity, " + id.Short() + ", because " + why)
	}
	return nil
}

// skew tells of different versions of Skudonet.
func (r *round) skew(theirs peer.Standing) {
	if r.skewed(theirs) {
		r.cfg.Troubles.Advise("skudonet", fmt.Sprintf("Skudonet is version %s here and %s on the peer %s: what an upgrade changed there is left alone", r.cfg.Skudonet, theirs.Skudonet, r.cfg.Peer),
			"upgrade the other node, too")
	} else {
		r.cfg.Troubles.Clear("skudonet")
	}
}

func (r *round) skewed(theirs peer.Standing) bool {
	return r.cfg.Skudonet != "" && theirs.Skudonet != "" && r.cfg.Skudonet != theirs.Skudonet
}

func recordTrouble(err error) *Trouble {
	return &Trouble{"what this node's configuration is cannot be recorded: " + err.Error(), "make space in /var/lib/skudonet-ce-cluster; until then the peer has the files, but no proof of how new they are"}
}

// heard notes the peer's vector, if it stands for what both nodes have.
func (b *book) heard(s peer.Standing, parts []*part, set string) {
	b.theirs = s.Vector
	for _, p := range parts {
		if s.Trees[p.Name] != p.stands(set) {
			b.theirs = nil
		}
	}
}

// due tells whether the peer's record is not ours.
func (b *book) due() bool {
	return len(b.theirs) == 0 || b.theirs.Compare(b.record.Vector) != vector.Equal
}
