package vector

import (
	"maps"
	"math/rand/v2"
	"testing"
)

// some are vectors over few nodes with small counters, so that all orders occur.
func some(r *rand.Rand) Vector {
	v := Vector{}
	for _, id := range []ID{"a", "b", "c"} {
		if n := r.Uint64N(3); n > 0 {
			v[id] = n
		}
	}
	return v
}

var opposite = map[Order]Order{Equal: Equal, Ahead: Behind, Behind: Ahead, Apart: Apart}

func TestCompareIsAPartialOrder(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	seen := map[Order]int{}
	for range 20_000 {
		u, v, w := some(r), some(r), some(r)
		o := u.Compare(v)
		seen[o]++
		if back := v.Compare(u); back != opposite[o] {
			t.Fatalf("%v is %v to %v, which is %v to it", u, o, v, back)
		}
		if (o == Equal) != maps.Equal(u, v) {
			t.Fatalf("%v and %v are %v", u, v, o)
		}
		if o == Ahead && v.Compare(w) == Ahead && u.Compare(w) != Ahead {
			t.Fatalf("%v is ahead of %v, that of %v, but not the first of the last", u, v, w)
		}
		m := u.Merged(v)
		for _, x := range []Vector{u, v} {
			if o := m.Compare(x); o != Equal && o != Ahead {
				t.Fatalf("merged %v is %v to %v", m, o, x)
			}
		}
		if o == Ahead && m.Compare(u) != Equal {
			t.Fatalf("merging %v with the older %v gives %v", u, v, m)
		}
		if !maps.Equal(m, v.Merged(u)) {
			t.Fatalf("merging %v and %v depends on the order", u, v)
		}
		// Whoever makes a change is ahead of what it was, and no other's change hides that.
		x := u.Raised("a")
		if x.Compare(u) != Ahead || u["a"]+1 != x["a"] {
			t.Fatalf("%v raised is %v", u, x)
		}
		if u.Raised("a").Compare(u.Raised("b")) != Apart {
			t.Fatalf("two nodes changed %v, and that is not apart", u)
		}
	}
	if len(seen) != 4 {
		t.Errorf("not every order was seen: %v", seen)
	}
}

func TestNewID(t *testing.T) {
	a, b := NewID(), NewID()
	if a == b || a.Check() != nil || len(a.Short()) != 8 {
		t.Errorf("%q, %q", a, b)
	}
}

func TestCheck(t *testing.T) {
	id := NewID()
	for _, bad := range []Vector{{"x": 1}, {id[:31]: 1}, {"ABCDEFABCDEFABCDEFABCDEFABCDEFAB": 1}, {id: 0}, {id: 1 << 63}} {
		if bad.Check() == nil {
			t.Errorf("%v is accepted", bad)
		}
	}
	if err := (Vector{id: 7}).Check(); err != nil {
		t.Error(err)
	}
	many := Vector{}
	for range maxNodes + 1 {
		many[NewID()] = 1
	}
	if many.Check() == nil {
		t.Error("too many nodes are accepted")
	}
}
