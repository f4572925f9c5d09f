package peer

import (
	"maps"

	"github.com/skudonet/skudonet-ce-cluster/lib/ledger"
	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
)

// trust is what the server knows of where the content of a tree comes from: a
// path is accounted for if it is as the record has it, or as this session has
// written it. It holds only the paths that differ from the rule, usually none.
type trust struct {
	weighed bool            // the tree was compared with the record
	rule    bool            // whether a path is accounted for that is not in odd
	odd     map[string]bool // paths of which the opposite is true

	// Written or removed by this session, and not looked at since: what the next
	// look finds there is ours.
	flight map[string]bool
}

func (t *trust) accounted(path string) bool { return t.rule != t.odd[path] }

func (t *trust) set(path string, accounted bool) {
	switch {
	case accounted == t.rule:
		delete(t.odd, path)
	case t.odd == nil:
		t.odd = map[string]bool{path: true}
	default:
		t.odd[path] = true
	}
}

// all makes one rule for every path.
func (t *trust) all(accounted bool) { t.rule, t.odd = accounted, nil }

// whole tells whether all of the tree is accounted for.
func (t *trust) whole() bool { return t.rule && len(t.odd) == 0 }

// depart notes what is about to be written or removed. It is accounted for, or
// was archived.
func (t *trust) depart(paths []string) {
	if t.flight == nil {
		t.flight = make(map[string]bool, len(paths))
	}
	for _, p := range paths {
		t.set(p, true)
		t.flight[p] = true
	}
}

// found notes what a look has found changed. What this session did not change
// somebody else did.
func (t *trust) found(changed []string) {
	for _, p := range changed {
		if !t.flight[p] {
			t.set(p, false)
		}
	}
}

// landed notes that paths were looked at; without any, everything was.
func (t *trust) landed(paths ...string) {
	if len(paths) == 0 {
		t.flight = nil
	}
	for _, p := range paths {
		delete(t.flight, p)
	}
}

// weigh compares the tree, which was walked, with the record. A tree that is not
// what the record holds is trusted only in what was noted before accounts for.
func (s *session) weigh(r *root) {
	if s.set == "" || r.walked.IsZero() {
		return
	}
	record, _, err := ledger.Load(s.host.StateDir, s.host.Machine)
	if err != nil {
		r.trust.weighed = false
		r.trust.all(false)
		return
	}
	now := stand(record, r.name)
	if record.Holds(r.name, ledger.Tree{Digest: r.tree.Manifest().Digest(), Set: s.set}) {
		r.trust.all(true)
		r.remember(s.host.StateDir, false)
	} else if !r.trust.weighed || !now.equal(r.stand) {
		r.stand = now
		r.trust.all(false)
		r.explain(s.host.StateDir, s.set)
	}
	r.trust.weighed, r.stand = true, now
}

// standing of a root is what the record says of it.
type standing struct {
	Vector map[string]uint64
	Known  bool
	Tree   ledger.Tree
}

func stand(record ledger.Record, root string) standing {
	n := standing{Vector: make(map[string]uint64, len(record.Vector))}
	for id, count := range record.Vector {
		n.Vector[string(id)] = count
	}
	n.Tree, n.Known = record.Trees[root]
	return n
}

func (n standing) equal(m standing) bool {
	return n.Known == m.Known && n.Tree == m.Tree && maps.Equal(n.Vector, m.Vector)
}

// rest is the digest of the tree without exactly these paths, whatever is below them.
func rest(m *manifest.Manifest, without map[string]bool) manifest.Digest {
	exact := true
	list := make([]string, 0, len(without))
	for path := range without {
		list = append(list, path)
		if e, _ := m.Get(path); e.Kind != manifest.Dir {
			continue
		}
		for _, below := range m.Below(path) {
			exact = exact && without[below]
		}
	}
	if exact {
		return m.DigestExcept(list)
	}
	left := manifest.New()
	for e := range m.All() {
		if !without[e.Path] {
			left.Set(e)
		}
	}
	return left.Digest()
}
