package mirror

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/fileset"
	"github.com/skudonet/skudonet-ce-cluster/lib/ledger"
	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"github.com/skudonet/skudonet-ce-cluster/lib/peer"
	"github.com/skudonet/skudonet-ce-cluster/lib/scan"
	"github.com/skudonet/skudonet-ce-cluster/lib/snapshot"
)

// work is what one round shall do.
type work struct {
	peer        Peer // nil: there is none, so changes are only recorded
	full        bool // compare everything
	read        bool // and read it
	fresh       bool // for the first time since the peer was reached
	established bool
	asked       bool // an admin wants both nodes to have the same
	confirmed   bool // and that, however odd it looks
	errand      *errand
	began       time.Time
	roots       []rootWork
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
	pending bool // what was sent could not be recorded
	errand  bool // it was one
	met     bool // it was decided whose configuration counts
	adopted bool // it was the peer's
	runs    uint64
	took    time.Duration
	changes []change // that are on the peer now
	fixed   []change // that nobody made here: the peer differed
	roots   []rootResult
	special []string // left out: neither file nor directory nor link
	alone   []string // that an admin asked for, and that was left alone there all the same, in words
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
	agree  string                      // both $exclude that the trees were made with
	set    string                      // name of the set of files that they make
	stages map[string]*snapshot.Stage

	book     *book
	met      bool             // since the connection it was decided whose configuration counts
	keep     *peer.Keeping    // what the peer archives
	waiting  []string         // conflicts that no admin has resolved
	resolved bool             // the peer must hear of a conflict that was
	lost     map[string]error // most files vanished while there was no peer: the trouble, by root
	stubborn stubborn
	guarded  map[string]bool // root and path: what they replace on the peer is archived
	crowded  bool            // archives were made
}

func newRound(e *Engine) *round {
	return &round{cfg: e.cfg, say: e.say, stages: map[string]*snapshot.Stage{}, book: newBook(e.cfg), stubborn: newStubborn(), guarded: map[string]bool{}}
}

func (r *round) close() {
	r.book.wait()
	r.remember()
	for _, s := range r.stages {
		s.Close()
	}
}

// remember writes down what the trees consist of, for the backup that this node may
// become: if somebody changes a tree, it then knows what is old.
func (r *round) remember() {
	for i, t := range r.trees {
		if r.known[i] && r.book.failed == nil && r.book.record.Holds(t.Root().Name, ledger.Tree{Digest: t.Manifest().Digest(), Set: r.set}) {
			err := peer.Remember(r.cfg.StateDir, t.Root().Name, t.Manifest())
			r.cfg.Troubles.Check("remember", "what this node's configuration consists of is not written down: ", err)
		}
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
	defer r.prune()
	res.err = r.resume(ctx, &res)
	if w.errand != nil && res.err != nil {
		w.errand.answer <- outcome{err: res.err}
		res.errand = true
		return res
	} else if res.err != nil {
		return res
	}
	if w.errand != nil {
		words, err := w.errand.do(ctx, r)
		w.errand.answer <- outcome{words, err}
		res.errand = true
		return res
	}
	if w.peer == nil {
		res.err = r.ownSet()
	} else {
		res.err = r.fileSet(w.peer.Hello(), w.fresh)
	}
	if res.err != nil {
		return res
	}
	if w.peer != nil && w.peer.Legacy() {
		res.err = r.legacy(ctx, w, &res)
		return res
	}
	if !w.full && w.peer != nil && !r.met {
		w.full, res.full = true, true
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
	r.book.retry()
	switch {
	case w.peer == nil:
		r.alone(w, parts, &res)
	case w.full:
		res.err = r.meet(ctx, w, parts, &res)
	default:
		r.change(w, parts)
	}
	if w.peer != nil && res.err == nil {
		res.err = r.send(ctx, w, parts, &res)
	} else if w.peer != nil && w.established && w.full && ctx.Err() == nil {
		// The nodes could not be compared, so perhaps not for long. What is done here counts.
		if err := r.enter(w, able(parts)); err != nil {
			r.cfg.Troubles.Advise("record", err.Error(), "")
		}
	}
	for _, p := range parts {
		p.result(&res, &res.roots[p.index])
	}
	res.pending = r.book.failed != nil
	if names := r.leftAlone(); w.asked && len(names) > 0 {
		res.alone = []string{"left alone on the peer: " + sentence(names)}
	}
	return res
}

// send pushes what is wanted until the peer has it, or it is clear that it will not.
func (r *round) send(ctx context.Context, w work, parts []*part, res *result) error {
	parts = slices.DeleteFunc(able(parts), func(p *part) bool { return p.postponed })
	again := len(parts) > 0
	for try := 1; again; try++ {
		for _, p := range parts {
			if p.trouble != nil {
				continue
			}
			if err := r.push(ctx, w.peer, p, res); err != nil {
				return err
			}
		}
		var err error
		if again, err = r.verify(ctx, w.peer, parts, try, res); err != nil {
			return err
		}
	}
	return nil
}

// fileSet makes the trees anew if other files are left out than before. The files
// that the lists name are read at each new connection, as the peer does.
func (r *round) fileSet(h peer.Hello, fresh bool) error {
	if r.trees != nil && !fresh {
		return nil
	}
	ours, err := readExclude(r.cfg.Exclude, peer.ReadRules)
	if err != nil {
		return &Trouble{"$exclude: " + err.Error(), "correct it in skudonet-cluster.conf"}
	}
	theirs, err := readExclude(h.Exclude, h.ReadFile)
	if err != nil {
		return &Trouble{"$exclude of the peer: " + err.Error(), "correct it in the peer's skudonet-cluster.conf"}
	}
	r.makeTrees(ours, theirs)
	return nil
}

// ownSet is fileSet without a peer: as long as it was never heard of, its $exclude
// is taken to be the same as ours.
func (r *round) ownSet() error {
	if r.trees != nil {
		return nil
	}
	ours, err := readExclude(r.cfg.Exclude, peer.ReadRules)
	if err != nil {
		return &Trouble{"$exclude: " + err.Error(), "correct it in skudonet-cluster.conf"}
	}
	r.makeTrees(ours, ours)
	return nil
}

// exclude is one $exclude.
type exclude struct {
	list fileset.List
	text string // it, and the files that it names
}

func readExclude(text string, read func(string) ([]byte, error)) (x exclude, err error) {
	var all strings.Builder
	fmt.Fprintf(&all, "%q", text)
	x.list, _, err = fileset.ParseList(text, func(path string) ([]byte, error) {
		text, err := read(path)
		fmt.Fprintf(&all, "%q", text)
		return text, err
	})
	x.text = all.String()
	return x, err
}

func (r *round) makeTrees(one, other exclude) {
	texts := []string{one.text, other.text}
	if r.trees != nil && r.agree == strings.Join(texts, "\n") {
		return
	}
	r.trees, r.known, r.agree = nil, make([]bool, len(r.cfg.Roots)), strings.Join(texts, "\n")
	slices.Sort(texts) // Both nodes, and either as master, give it the same name.
	sum := sha256.Sum256([]byte(strings.Join(slices.Compact(texts), "\n")))
	r.set = hex.EncodeToString(sum[:8])
	r.held = nil
	for _, root := range r.cfg.Roots {
		set := fileset.New(one.list, other.list)
		if root.Only != "" {
			set = fileset.Only(root.Only)
		}
		r.held = append(r.held, map[string]manifest.Entry{})
		r.trees = append(r.trees, scan.New(scan.Root{Name: root.Name, Dir: root.Dir, Set: set, Anchor: root.anchor()}))
	}
}
