package reconcile

import (
	"math/rand/v2"
	"testing"

	"github.com/skudonet/skudonet-ce-cluster/lib/vector"
)

const a, b = vector.ID("a"), vector.ID("b")

type v = vector.Vector

func TestDecide(t *testing.T) {
	clean := func(id vector.ID, w v) Node { return Node{ID: id, Vector: w, Clean: true} }
	dirty := func(id vector.ID, w v) Node { return Node{ID: id, Vector: w} }
	holder := func(n Node) Node { n.Holder = true; return n }
	for _, tc := range []struct {
		name        string
		ours        Node
		theirs      Node
		same        bool
		established bool
		want        Decision
	}{
		{"in step", clean(a, v{a: 1}), clean(b, v{a: 1}), true, true, Decision{InStep, Equal, false, false, false, false}},
		{"in step, but stored with another tree", dirty(a, v{a: 1}), clean(b, v{a: 1}), true, true, Decision{InStep, Equal, false, true, false, false}},
		{"the same made twice", clean(a, v{a: 2}), clean(b, v{a: 1, b: 1}), true, false, Decision{InStep, Split, false, false, false, false}},

		{"the backup was touched", clean(a, v{a: 1}), dirty(b, v{a: 1}), false, true, Decision{Push, Equal, true, false, false, false}},
		{"the backup was touched before a failover", dirty(a, v{b: 1}), clean(b, v{b: 1}), false, false, Decision{Push, Equal, true, true, false, false}},
		{"changed while the replicator was down", dirty(a, v{a: 1}), clean(b, v{a: 1}), false, true, Decision{Push, Equal, false, true, false, false}},

		{"the peer missed a change", clean(a, v{a: 2}), clean(b, v{a: 1}), false, true, Decision{Push, Newer, false, false, false, false}},
		{"and another one", dirty(a, v{a: 2}), clean(b, v{a: 1}), false, false, Decision{Push, Newer, false, true, false, false}},
		{"the peer ruled while we were away", clean(a, v{a: 1}), clean(b, v{a: 1, b: 1}), false, false, Decision{Adopt, Newer, false, false, false, false}},
		{"and changed something in its last moment", clean(a, v{a: 1}), dirty(b, v{a: 1, b: 1}), false, false, Decision{Adopt, Newer, false, true, false, false}},
		{"and has it back since, so both have the same", clean(a, v{a: 1}), dirty(b, v{a: 1, b: 1}), true, false, Decision{InStep, Newer, false, true, false, false}},
		{"the peer is ahead of an established master", clean(a, v{a: 1}), clean(b, v{a: 1, b: 1}), false, true, Decision{Conflict, Split, false, true, false, false}},
		{"both ruled", clean(a, v{a: 2}), clean(b, v{a: 1, b: 1}), false, false, Decision{Conflict, Split, false, true, false, false}},

		{"first contact, ours has the address", holder(clean(a, nil)), clean(b, nil), false, false, Decision{Push, FirstContact, true, true, false, false}},
		{"first contact, both have it", holder(clean(a, nil)), holder(clean(b, nil)), false, true, Decision{Push, FirstContact, true, true, false, false}},
		{"first contact, theirs has it", clean(a, nil), holder(clean(b, nil)), false, true, Decision{Adopt, FirstContact, true, true, false, false}},
		{"first contact, nobody has it", clean(a, nil), clean(b, nil), false, true, Decision{Hold, FirstContact, false, false, false, false}},
		{"we were installed anew", clean(a, nil), clean(b, v{b: 4}), false, false, Decision{Adopt, FirstContact, true, false, false, false}},
		{"and have been master for long", clean(a, nil), clean(b, v{b: 4}), false, true, Decision{Adopt, FirstContact, true, false, false, false}},
		{"with a configuration put there by hand", holder(clean(a, nil)), clean(b, v{b: 4}), false, true, Decision{Conflict, FirstContact, true, true, false, false}},
		{"the peer was installed anew", clean(a, v{a: 4}), clean(b, nil), false, true, Decision{Push, FirstContact, true, true, false, false}},
		{"the peer was installed anew, and has the address", clean(a, v{a: 4}), holder(clean(b, nil)), false, true, Decision{Push, FirstContact, true, true, false, false}},

		{"our disk is an older one", clean(a, v{a: 2}), clean(b, v{a: 3}), false, false, Decision{Conflict, OurRollback, false, true, true, false}},
		{"the peer's disk is an older one", clean(a, v{a: 2, b: 3}), clean(b, v{a: 2, b: 2}), false, true, Decision{Conflict, TheirRollback, false, true, false, true}},
		{"and has our tree nevertheless", clean(a, v{a: 2, b: 3}), clean(b, v{a: 2, b: 2}), true, true, Decision{InStep, TheirRollback, false, false, false, true}},
		{"a cloned disk", clean(a, v{a: 2}), clean(a, v{a: 2}), true, true, Decision{InStep, Clone, false, false, false, true}},
		{"a cloned disk that went its own way", clean(a, v{a: 2}), clean(a, v{a: 2}), false, true, Decision{Conflict, Clone, false, true, false, true}},
	} {
		if got := Decide(Meeting{tc.ours, tc.theirs, tc.same, tc.established}); got != tc.want {
			t.Errorf("%s:\n got %+v\nwant %+v", tc.name, got, tc.want)
		}
	}
}

// Whatever meets: nothing that only one node knows of is overwritten without an archive.
func TestNothingUnknownIsOverwritten(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	some := func() v {
		w := v{}
		for _, id := range []vector.ID{a, b, "c"} {
			if n := r.Uint64N(4); n > 0 {
				w[id] = n
			}
		}
		return w
	}
	flip := func() bool { return r.IntN(2) == 0 }
	seen := map[Verdict]int{}
	for range 100_000 {
		m := Meeting{Node{a, some(), flip(), flip()}, Node{b, some(), flip(), flip()}, r.IntN(8) == 0, flip()}
		if r.IntN(20) == 0 {
			m.Theirs.ID = a
		}
		d := Decide(m)
		seen[d.Verdict]++
		order := m.Ours.Vector.Compare(m.Theirs.Vector)
		first := len(m.Ours.Vector) == 0 || len(m.Theirs.Vector) == 0
		switch {
		case d.Verdict == Push && !d.Archive && (order == vector.Behind || order == vector.Apart || first):
			t.Fatalf("%+v: overwrites what only the peer knows", m)
		case d.Verdict == Push && !d.Archive && order == vector.Equal && !(m.Established && !m.Ours.Clean):
			t.Fatalf("%+v: overwrites what may be a change of the peer's", m)
		case d.Verdict == Adopt && !d.Archive && order != vector.Behind:
			t.Fatalf("%+v: gives away what only we know", m)
		case d.Verdict == Adopt && m.Established && !first:
			t.Fatalf("%+v: a ruling master changes its configuration", m)
		case m.Same && d.Verdict != InStep || !m.Same && d.Verdict == InStep:
			t.Fatalf("%+v: %v", m, d)
		case first && !m.Ours.Holder && len(m.Ours.Vector) == 0 && d.Verdict == Push:
			t.Fatalf("%+v: a node without the address pushes at first contact", m)
		case d.RenewOurs && d.RenewTheirs:
			t.Fatalf("%+v: both take a new identity", m)
		case d.Verdict == Conflict && !d.Raise:
			t.Fatalf("%+v: the outcome has no vector of its own", m)
		}
	}
	if len(seen) != 5 {
		t.Errorf("not every verdict was seen: %v", seen)
	}
}
