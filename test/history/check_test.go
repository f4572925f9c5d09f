package history

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/archive"
	"github.com/skudonet/skudonet-ce-cluster/lib/control"
	"github.com/skudonet/skudonet-ce-cluster/lib/journal"
	"github.com/skudonet/skudonet-ce-cluster/lib/vector"
)

// check is for after every step: nothing that was acknowledged is lost, and no
// vector stands for two configurations.
func (h *history) check() {
	for _, n := range h.nodes() {
		h.collect(n)
		h.standsFor(n)
		h.acknowledge(n)
		h.stand(n)
	}
	h.kept(scene{trees: []map[place]entry{h.a.tree(), h.b.tree()}})
	h.peaceful()
}

// kept looks whether everything acknowledged is in the scene or in an archive. A
// configuration on its way from one place to the other may be overlooked by one look.
func (h *history) kept(s scene) {
	lost := h.lost(h.archived(s))
	if len(lost) > 0 {
		lost = h.lost(h.archived(scene{trees: append(s.trees, h.a.tree(), h.b.tree())}))
	}
	if len(lost) > 0 {
		h.fail("edited, and nowhere:\n%s", strings.Join(lost, "\n"))
	}
}

// archived is the scene with all that is kept aside. What is replaced gets from the tree to
// the replaced, and from there to the archives.
func (h *history) archived(s scene) scene {
	s.trees = append(slices.Clone(s.trees), h.a.replaced(), h.b.replaced())
	s.archives = append(h.a.archives(), h.b.archives()...)
	return s
}

// standsFor checks that the node's vector names one configuration only.
func (h *history) standsFor(n *node) {
	r := n.record()
	if len(r.Vector) == 0 || len(r.Trees) < 2 {
		return
	}
	v, err := json.Marshal(r.Vector)
	h.must(err)
	trees, err := json.Marshal(r.Trees)
	h.must(err)
	if was, ok := h.vectors[string(v)]; ok && was != string(trees) {
		h.fail("the vector %s stands for two configurations, lately on %s: %s and %s", v, n, was, trees)
	}
	h.vectors[string(v)] = string(trees)
}

// peaceful checks that a calm history makes no conflict.
func (h *history) peaceful() {
	for _, k := range h.archived(scene{}).archives {
		if h.calm && k.Reason == archive.Conflict {
			h.fail("a conflict, on %s: %s, although the nodes never ruled apart", k.on, k.Name)
		}
	}
}

// unneeded looks for archives of what nobody has replaced, which a calm history has
// no reason for; now is the tree of both nodes.
func (h *history) unneeded(now map[place]entry) {
	for _, k := range h.archived(scene{}).archives {
		if !h.calm || k.Reason == archive.FirstContact {
			continue
		}
		for _, e := range h.edits {
			if e.acked && e.want.kind != 0 && e.want.kind != 'd' && len(e.next) == 0 && now[e.at] == e.want && k.entries[e.at] == e.want {
				h.fail("%s on %s has what is not replaced: %v", k.Name, k.on, e)
			}
		}
	}
}

// master is the node that rules, if it is one.
func (h *history) master() *node {
	var found *node
	for _, n := range h.nodes() {
		if n.on && n.role == "master" {
			if found != nil {
				return nil
			}
			found = n
		}
	}
	return found
}

// quiet lets the nodes come together, with one master, and checks what must hold then.
func (h *history) quiet() {
	h.note("quiet")
	h.cut.Store(false)
	for _, n := range h.nodes() {
		if !n.on {
			n.powerOn()
		}
		n.mu.Lock()
		n.daemonStep, n.peerStep = "", ""
		n.mu.Unlock()
	}
	if h.a.role == "master" && h.b.role == "master" {
		h.demote(h.either())
	}
	m := h.master()
	if m == nil {
		m = h.either()
		h.promote(m)
	}
	began := time.Now()
	compared := time.Time{}
	h.wait(m, "the nodes do not come together", func() string {
		why := h.together()
		if why != "" && m.daemon.alive() && time.Since(compared) > time.Second { // what the backup's admin did is not looked for all the time
			compared = time.Now()
			m.daemon.cmd.Process.Signal(unix.SIGUSR1)
		}
		return why
	})
	h.conflicts(began)
	for _, n := range h.nodes() {
		h.standsFor(n)
		h.acknowledge(n)
	}
	now := m.tree()
	h.kept(scene{trees: []map[place]entry{now}})
	h.peaceful()
	h.unneeded(now)
	h.note("together: %v", m.record().Vector)
	if len(m.waiting()) > 0 && h.chance(2) {
		h.resolve(m)
	}
}

// conflicts checks that what both nodes have met since began waits on both. Before,
// something may have come between.
func (h *history) conflicts(began time.Time) {
	if h.armed {
		return
	}
	a, b := h.a.waiting(), h.b.waiting()
	for _, n := range h.nodes() {
		for _, k := range n.archives() {
			if k.Waiting && k.Made.After(began) && !(slices.Contains(a, k.ID) && slices.Contains(b, k.ID)) {
				h.fail("the conflict %s waits on %s only", k.Name, n)
			}
		}
	}
}

// resolve ends a conflict, and looks whether what that replaces can be brought back.
func (h *history) resolve(m *node) {
	how := []string{archive.Ours, archive.Theirs}[h.random.IntN(2)]
	waiting := slices.DeleteFunc(m.archives(), func(k kept) bool { return !k.Waiting })
	name := waiting[0].Name
	h.note("%s: resolve %s %s", m, how, name)
	before := m.tree()
	h.wait(m, "the conflict is not resolved", func() string {
		ctx, cancel := context.WithTimeout(h.t.Context(), bound)
		defer cancel()
		r, err := control.Do(ctx, m.path("run", control.SocketName), control.Request{Command: "resolve", Args: []string{how, name}}, nil)
		switch {
		case err != nil: // The daemon has just been started.
			return err.Error()
		case r.Exit != 0:
			h.fail("resolve %s %s: %s", how, name, r.Text)
		}
		return ""
	})
	after := m.tree()
	h.made(m, before, after)
	s := h.archived(scene{trees: []map[place]entry{after}})
	for p, e := range before {
		if e.kind != 'd' && !s.shows(&edit{at: p, want: e}) {
			h.fail("resolve %s has replaced %q, which is in no archive", how, p.path)
		}
	}
	if how == archive.Ours && !maps.Equal(before, after) {
		h.fail("resolve ours has changed the tree")
	}
	id := waiting[0].ID
	h.wait(m, "the nodes do not come together after resolve "+how, func() string {
		if slices.Contains(h.a.waiting(), id) || slices.Contains(h.b.waiting(), id) {
			return id + " waits although it is resolved"
		}
		return h.together()
	})
}

// together tells what is still in the way of both nodes being in step; "" if nothing is.
func (h *history) together() string {
	a, b := h.a.record(), h.b.record()
	switch {
	case h.a.unfinished() || h.b.unfinished():
		return "a change of the configuration is not finished"
	case a.Vector.Compare(b.Vector) != vector.Equal || len(a.Vector) == 0:
		return fmt.Sprintf("the vectors are %v and %v", a.Vector, b.Vector)
	case !maps.Equal(a.Trees, b.Trees):
		return fmt.Sprintf("the records claim %v and %v", a.Trees, b.Trees)
	case !h.a.clean() || !h.b.clean():
		return fmt.Sprintf("the records claim %v, but the trees are %v and %v", recorded(a), h.a.digests(), h.b.digests())
	case !maps.Equal(h.a.tree(), h.b.tree()):
		return "the digests are equal, the trees are not"
	}
	return ""
}

// waiting are the conflicts that no admin has resolved.
func (n *node) waiting() (ids []string) {
	for _, k := range n.archives() {
		if k.Waiting {
			ids = append(ids, k.ID)
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// wait waits until reason gives none, while the daemon of the master m is kept running.
func (h *history) wait(m *node, what string, reason func() string) {
	began, beaten := time.Now(), time.Time{}
	for {
		if time.Since(beaten) > 300*time.Millisecond {
			beaten = time.Now()
			h.a.beat()
			h.b.beat()
		}
		m.startDaemon()
		h.standsFor(h.a)
		h.standsFor(h.b)
		why := reason()
		if why == "" {
			return
		}
		if time.Since(began) > bound {
			h.fail("%s within %v: %s", what, bound, why)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// unfinished tells whether a configuration is being replaced.
func (n *node) unfinished() bool {
	_, err := os.Lstat(filepath.Join(n.state(), journal.Name))
	return err == nil
}
