package mirror

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/fileset"
	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"github.com/skudonet/skudonet-ce-cluster/lib/peer"
	"github.com/skudonet/skudonet-ce-cluster/lib/scan"
	"github.com/skudonet/skudonet-ce-cluster/lib/snapshot"
)

// work is what one round shall do.
type work struct {
	peer  Peer
	full  bool // compare everything
	read  bool // and read it
	fresh bool // for the first time since the peer was reached
	began time.Time
	roots []rootWork
}

type rootWork struct {
	ready   []string        // changed, and quiet
	overdue []string        // not quiet for too long: sent as they are
	forced  map[string]bool // of these, send whatever a look says
	leave   []string        // do not send, do not compare
}

func (w work) empty() bool {
	for _, r := range w.roots {
		if len(r.ready)+len(r.overdue) > 0 {
			return false
		}
	}
	return true
}

// result is what became of it.
type result struct {
	peer    Peer
	err     error // the round broke: what it had to do must be done again
	full    bool
	fresh   bool
	partial bool // the peer has looked at the changed paths only
	runs    uint64
	took    time.Duration
	changes []change // that are on the peer now
	fixed   []change // that nobody made here: the peer differed
	roots   []rootResult
	special []string // left out: neither file nor directory nor link
}

type rootResult struct {
	busy    []string // open for writing: not sent
	left    []string
	failed  []failure
	digest  manifest.Digest
	entries int
	trouble error // nothing could be done in this root
}

type failure struct{ path, words string }

// change is one path of a root.
type change struct {
	root string
	manifest.Change
}

// round does one after the other; Engine.begin sees to that.
type round struct {
	cfg    Config
	say    func(string)
	trees  []*scan.Tree
	known  []bool                      // the tree's manifest is whole
	held   []map[string]manifest.Entry // what the peer has of files that are being written
	agree  string                      // the peer's $exclude that the trees were made with
	stages map[string]*snapshot.Stage
}

func newRound(e *Engine) *round {
	return &round{cfg: e.cfg, say: e.say, stages: map[string]*snapshot.Stage{}}
}

func (r *round) close() {
	for _, s := range r.stages {
		s.Close()
	}
}

// attempts at making a file the same. The second is a repair.
const attempts = 2

func (r *round) do(ctx context.Context, w work) (res result) {
	res.peer, res.full, res.fresh, res.roots = w.peer, w.full, w.fresh, make([]rootResult, len(w.roots))
	defer func() { res.took = time.Since(w.began) }()
	defer func() {
		if res.err != nil { // What the manifests say may not have been seen to the end.
			clear(r.known)
		}
	}()
	if res.err = r.fileSet(w.peer.Hello(), w.fresh); res.err != nil {
		return res
	}
	if w.peer.Legacy() {
		res.err = r.legacy(ctx, w, &res)
		return res
	}
	var parts []*part
	for i := range w.roots {
		whole := r.known[i]
		p, err := r.look(ctx, i, w)
		var t *Trouble
		if errors.As(err, &t) {
			res.roots[i].trouble = t
			continue
		} else if err != nil {
			res.err = err
			return res
		}
		if !whole { // What was not known must not be taken for removed.
			w.full, res.full = true, true
		}
		parts = append(parts, p)
		res.special = append(res.special, p.special...)
	}
	if len(parts) == 0 {
		return res
	}
	if w.full {
		res.err = r.compare(ctx, w, parts)
	}
	for try := 1; res.err == nil; try++ {
		for _, p := range parts {
			if p.trouble != nil {
				continue
			}
			if res.err = r.push(ctx, w.peer, p, &res); res.err != nil {
				break
			}
		}
		again := false
		if res.err == nil {
			again, res.err = r.verify(ctx, w.peer, parts, try, &res)
		}
		if !again {
			break
		}
	}
	for _, p := range parts {
		p.result(&res, &res.roots[p.index])
	}
	return res
}

// fileSet makes the trees anew if other files are left out than before. The files
// that the lists name are read at each new connection, as the peer does.
func (r *round) fileSet(h peer.Hello, fresh bool) error {
	if r.trees != nil && !fresh {
		return nil
	}
	var agree strings.Builder
	reading := func(read func(string) ([]byte, error)) func(string) ([]byte, error) {
		return func(path string) ([]byte, error) {
			text, err := read(path)
			fmt.Fprintf(&agree, "%q", text)
			return text, err
		}
	}
	fmt.Fprintf(&agree, "%q", h.Exclude)
	ours, _, err := fileset.ParseList(r.cfg.Exclude, reading(peer.ReadRules))
	if err != nil {
		return &Trouble{"$exclude: " + err.Error(), "correct it in skudonet-cluster.conf"}
	}
	theirs, _, err := fileset.ParseList(h.Exclude, reading(h.ReadFile))
	if err != nil {
		return &Trouble{"$exclude of the peer: " + err.Error(), "correct it in the peer's skudonet-cluster.conf"}
	}
	if r.trees != nil && r.agree == agree.String() {
		return nil
	}
	r.trees, r.known, r.agree = nil, make([]bool, len(r.cfg.Roots)), agree.String()
	r.held = nil
	for _, root := range r.cfg.Roots {
		set := fileset.New(ours, theirs)
		if root.Only != "" {
			set = fileset.Only(root.Only)
		}
		r.held = append(r.held, map[string]manifest.Entry{})
		r.trees = append(r.trees, scan.New(scan.Root{Name: root.Name, Dir: root.Dir, Set: set, Anchor: root.anchor()}))
	}
	return nil
}
