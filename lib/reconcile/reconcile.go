// Package reconcile decides whose configuration counts when a master meets its
// peer. It is pure: what is known of both nodes in, a decision out.
//
// The words: a node's vector (package vector) names the configuration that it
// has taken part in; its tree is clean if it is still the one that the vector was
// stored with. A master is established once it has been compared with its peer
// since its promotion, or has given up waiting for that; before, it may have missed
// what the peer did as master.
package reconcile

import "github.com/skudonet/skudonet-ce-cluster/lib/vector"

// Node is what decides about one of the two.
type Node struct {
	ID     vector.ID
	Vector vector.Vector // empty: it has never taken part
	Clean  bool
	Holder bool // its tree has $cluster_ip as a virtual interface
}

// Meeting is the comparison of both nodes, as the master sees it.
type Meeting struct {
	Ours, Theirs Node
	Same         bool // both trees mean the same
	Established  bool
}

// Verdict is what the master does.
type Verdict int

// The verdicts.
const (
	InStep   Verdict = iota // nothing
	Push                    // make the peer's tree the same as ours
	Adopt                   // make our tree the same as the peer's
	Conflict                // archive the peer's tree whole, on both nodes, then Push
	Hold                    // send nothing until an admin has made clear which node counts
)

// String is a word for a log.
func (v Verdict) String() string {
	return [...]string{"in step", "push", "adopt", "conflict", "hold"}[v]
}

// Reason is why.
type Reason string

// The reasons.
const (
	Equal         Reason = "equal"          // the same vector
	Newer         Reason = "newer"          // one vector is ahead
	Split         Reason = "split"          // both nodes ruled apart
	FirstContact  Reason = "first-contact"  // a node has never taken part
	OurRollback   Reason = "our-rollback"   // the peer knows of changes of ours that we do not
	TheirRollback Reason = "their-rollback" // the opposite
	Clone         Reason = "clone"          // both have one identity
)

// Decision is a verdict and what belongs to it. Whatever it is, the vector of
// both nodes is then the merged one of the two.
type Decision struct {
	Verdict Verdict
	Reason  Reason
	Archive bool // Push, Adopt: keep everything that is replaced, also what is known to be old
	Raise   bool // the merged vector has one more change by us: no vector stands for this tree yet

	// This node must take a new identity first: another history counts under its name.
	RenewOurs, RenewTheirs bool
}

// Decide gives the decision for a meeting.
func Decide(m Meeting) Decision {
	d := Decision{Reason: m.reason(), Raise: !m.Ours.Clean}
	d.RenewOurs = d.Reason == OurRollback
	d.RenewTheirs = d.Reason == TheirRollback || d.Reason == Clone
	if m.Same {
		if !m.Theirs.Clean && m.Ours.Vector.Compare(m.Theirs.Vector) == vector.Behind {
			d.Raise = true // theirs stands for another tree
		}
		return d
	}
	switch d.Reason {
	case Equal:
		// Somebody touched a tree. If it was ours and we rule, that is a change like
		// any other; else what the peer has may be worth something.
		d.Verdict, d.Archive = Push, m.Ours.Clean || !m.Established
	case Newer:
		switch behind := m.Ours.Vector.Compare(m.Theirs.Vector) == vector.Behind; {
		case !behind:
			d.Verdict = Push
		case !m.Established:
			d.Verdict, d.Raise = Adopt, !m.Theirs.Clean
		default:
			d.Verdict, d.Reason, d.Raise = Conflict, Split, true
		}
	case FirstContact:
		m.first(&d)
	default:
		d.Verdict, d.Raise = Conflict, true
	}
	return d
}

func (m Meeting) reason() Reason {
	ours, theirs := m.Ours, m.Theirs
	switch {
	case ours.ID == theirs.ID:
		return Clone
	case theirs.Vector[ours.ID] > ours.Vector[ours.ID] && len(ours.Vector) > 0:
		return OurRollback
	case ours.Vector[theirs.ID] > theirs.Vector[theirs.ID] && len(theirs.Vector) > 0:
		return TheirRollback
	case len(ours.Vector) == 0 || len(theirs.Vector) == 0:
		return FirstContact
	}
	switch ours.Vector.Compare(theirs.Vector) {
	case vector.Equal:
		return Equal
	case vector.Apart:
		return Split
	}
	return Newer
}

// first decides when a node has no vector: it is new, or was installed anew. The
// node that has $cluster_ip is the one that the how-to sets up first.
func (m Meeting) first(d *Decision) {
	d.Archive, d.Raise = true, true
	weKnow, theyKnow := len(m.Ours.Vector) > 0, len(m.Theirs.Vector) > 0
	switch {
	case m.Theirs.Holder && !m.Ours.Holder && !weKnow, theyKnow && !m.Established, theyKnow && !m.Ours.Holder:
		d.Verdict, d.Raise = Adopt, !theyKnow || !m.Theirs.Clean
	case theyKnow:
		d.Verdict = Conflict
	case m.Ours.Holder, weKnow:
		d.Verdict = Push
	default:
		d.Verdict, d.Archive, d.Raise = Hold, false, false
	}
}
