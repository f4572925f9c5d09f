package history

import (
	"fmt"
	"strings"

	"github.com/skudonet/skudonet-ce-cluster/lib/status"
)

// edit is what somebody made of a place.
type edit struct {
	id    int
	step  int
	on    string
	at    place
	want  entry
	next  []*edit // made where this one was to be seen
	acked bool
	stood bool // seen in a tree after the step, acknowledged or not
}

func (e *edit) String() string {
	what := fmt.Sprintf("%c %03o %.60q", e.want.kind, e.want.mode, e.want.text)
	if e.want.kind == 0 {
		what = "removed"
	}
	return fmt.Sprintf("edit %d in step %d on %s: %s %q: %s", e.id, e.step, e.on, e.at.root, e.at.path, what)
}

// made notes what an edit on n has changed: before and after are the places that it touched.
func (h *history) made(n *node, before, after map[place]entry) {
	places := map[place]bool{}
	for p := range before {
		places[p] = true
	}
	for p := range after {
		places[p] = true
	}
	// A new master may take over the peer's configuration in the middle of this.
	var taken map[place]entry
	if n.role == status.Master && !n.established() {
		taken = n.peer.tree()
	}
	for p := range places {
		if before[p] == after[p] {
			continue
		}
		e := &edit{id: len(h.edits), step: h.step, on: n.name, at: p, want: after[p]}
		for _, earlier := range h.edits {
			if earlier.at == p && (earlier.want == before[p] || taken != nil && earlier.want == taken[p]) {
				earlier.next = append(earlier.next, e)
			}
		}
		h.edits = append(h.edits, e)
		h.note("  %v", e)
	}
}

// acknowledge notes what the node's record says that it has.
func (h *history) acknowledge(n *node) {
	if !n.clean() {
		return
	}
	t := n.tree()
	if !n.clean() { // It changed meanwhile.
		return
	}
	for _, e := range h.edits {
		if t[e.at] == e.want {
			e.acked = true
		}
	}
}

// stand notes what is in the node's tree. That is not to be lost either: whatever
// replaces it finds that no record accounts for it.
func (h *history) stand(n *node) {
	t := n.tree()
	for _, e := range h.edits {
		e.stood = e.stood || e.step > 0 && t[e.at] == e.want
	}
}

// scene is everything that is to be seen somewhere.
type scene struct {
	trees    []map[place]entry
	archives []kept
}

// shows tells whether the outcome of an edit is somewhere.
func (s scene) shows(e *edit) bool {
	for _, t := range s.trees {
		if t[e.at] == e.want {
			return true
		}
	}
	for _, k := range s.archives {
		if held, ok := k.entries[e.at]; ok && held == e.want || !ok && e.want.kind == 0 && k.Whole {
			return true
		}
	}
	return false
}

// accounts tells whether an edit, or what was made of it, is somewhere.
func (s scene) accounts(e *edit, known map[*edit]bool) bool {
	if found, ok := known[e]; ok {
		return found
	}
	known[e] = s.shows(e)
	for _, later := range e.next {
		if known[e] {
			break
		}
		// A removal that no record knows leaves no trace, and was the admin's wish.
		known[e] = later.want.kind == 0 && !later.acked || s.accounts(later, known)
	}
	return known[e]
}

// lost are the edits, acknowledged or seen to stand, that are nowhere. A removal
// that no record knows leaves no trace.
func (h *history) lost(s scene) (list []string) {
	known := map[*edit]bool{}
	for _, e := range h.edits {
		if (e.acked || e.stood && e.want.kind == 'f') && !s.accounts(e, known) {
			list = append(list, e.String())
		}
	}
	return list
}

// below tells whether p is dir or lies in it.
func (p place) below(dir place) bool {
	return p == dir || p.root == dir.root && strings.HasPrefix(p.path, dir.path+"/")
}
