// Package mirror keeps the peer's configuration the same as ours: it takes what
// the watcher saw, waits until it is quiet, sends it, and compares digests.
//
// One goroutine, Run, decides; one round is at work at a time, beside it, and
// alone touches the trees. A third keeps the connection (connect.go). A round
// (round.go) looks at what has changed in each root (look.go, part.go), sends it
// in batches of snapshots (push.go, batch.go), and has the peer confirm that it
// has the same (confirm.go). The Peer over ssh is in carrier.go and early.go; for
// one without our program there are legacy.go and plain.go.
//
// A round that compares everything first asks whose configuration counts (meet.go):
// that may be the peer's (adopt.go), or both nodes ruled apart (conflict.go). What
// this node's tree stands for is in the record (book.go), which is raised with each
// change, also while the peer is away (alone.go). Replaced files come back from
// archives (restore.go).
//
// What must be sent again is never forgotten: a path leaves the engine only when
// the digests of both nodes were equal with it, and after a round that broke, or
// a connection that was lost, everything is compared.
package mirror

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/archive"
	"github.com/skudonet/skudonet-ce-cluster/lib/fileset"
	"github.com/skudonet/skudonet-ce-cluster/lib/ledger"
	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"github.com/skudonet/skudonet-ce-cluster/lib/peer"
	"github.com/skudonet/skudonet-ce-cluster/lib/remote"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
	"github.com/skudonet/skudonet-ce-cluster/lib/tree"
	"github.com/skudonet/skudonet-ce-cluster/lib/trouble"
	"github.com/skudonet/skudonet-ce-cluster/lib/vector"
)

// Peer is the other node, connected.
type Peer interface {
	Hello() peer.Hello
	Legacy() bool // no skd-inotify there: only Push works, and nothing can be compared
	Standing(context.Context) (peer.Standing, error)
	Renew(ctx context.Context, why string) (vector.ID, error)
	Keep(context.Context, peer.KeepRequest) (peer.Kept, error)
	Digest(context.Context, peer.DigestRequest) (peer.DigestAnswer, error)
	Manifest(ctx context.Context, root string) (*manifest.Manifest, error)
	// Push runs rsync. An *rsync.Failure says that it did not carry everything.
	Push(context.Context, Transfer) error
	// Fetch has rsync bring files of a root into a directory.
	Fetch(ctx context.Context, root string, files []string, into string) error
	Done() <-chan struct{}
	Err() error
	Close() error
}

// Transfer is one run of rsync.
type Transfer struct {
	Root   string   // name
	Source string   // directory
	Files  []string // below Source
	Whole  bool     // instead: everything of Set, and what is not there is removed
	Set    *fileset.Set
	Keep   *peer.Keeping // what the peer archives before
}

// Root is a directory to replicate.
type Root struct {
	Name string // "config" or "rt_tables"
	Dir  string
	Only string // if set, only this file of Dir
}

// Config says what is replicated, whereto, and with what.
type Config struct {
	Roots   []Root // in the order of the watcher's
	Exclude string // $exclude
	Peer    string // address, for words
	Local   string // this node's, as the peer names it
	Version string

	StateDir    string // for an adoption that is under way
	Record      ledger.Record
	Store       func(ledger.Record) error // puts the record on the disk
	Archives    *archive.Store
	Limits      archive.Limits
	Holder      func() bool   // the tree has $cluster_ip as a virtual interface
	Skudonet    string        // its version here, "" if unknown
	Established bool          // the node was compared with its peer since its promotion, by an earlier run
	GiveUp      time.Duration // how long that comparison is waited for
	OnEstablish func()
	Owe         func() error     // notes that Skudonet has to apply a tree that is being replaced
	Apply       func(why string) // has it do so; does not wait

	MemoryStage string // directory for snapshots, on a tmpfs
	DiskStage   string // the same for large ones, and for when the other is full
	Direct      bool   // rsync reads the trees themselves: its options ask for what a snapshot does not carry
	Verify      time.Duration

	Dial    func(context.Context) (Peer, error)
	Blind   func() error // why changes are not seen, if they are not
	Refresh func()       // look for what is not watched
	Publish func(status.Replicator)

	Log      *slog.Logger
	Troubles *trouble.List
}

// Times of the engine. Those of the settler are its own.
const (
	quiet      = time.Millisecond       // a path is sent when it has been so for this long
	together   = quiet / 2              // what is ready this much later goes along: both names of a rename
	few        = 16                     // so many changed paths are sent as soon as they are quiet
	lull       = 15 * time.Millisecond  // more of them wait for the end of the burst
	burstLimit = 300 * time.Millisecond // but not longer
	blindEvery = 10 * time.Second       // between comparisons while changes are not seen
	quickCheck = time.Second            // until a big tree of the peer, which was not walked after a change, is
	retryMin   = time.Second
	retryMax   = time.Minute      // of a path
	roundMax   = 10 * time.Second // of a round that broke, or was not recorded
	manyPaths  = 50_000           // more than these are not remembered one by one
	publishGap = 200 * time.Millisecond
	shownPaths = 20
)

// Engine mirrors the roots. Make it with New.
type Engine struct {
	cfg   Config
	start time.Time
	wake  chan struct{}
	poked chan struct{}

	mu   sync.Mutex // guards mail and said
	mail []any
	said string // what the round says of itself while it lasts

	// What follows belongs to Run.
	roots    []*root
	round    *round // trees and stage; the running round's alone
	peer     Peer
	running  context.CancelFunc // of the round at work; nil without one
	full     bool               // everything must be compared
	renewing bool               // the connection is being closed on purpose
	fresh    bool               // for the first time with this connection
	seen     map[string]bool    // special files, said
	read     bool               // and read
	retryAt  time.Duration      // no round before
	delay    time.Duration      // the last wait for a retry
	verify   time.Duration      // when everything is compared for good measure
	burst    struct{ from, last time.Duration }
	oldest   status.Moment // of the changes that no round has taken
	sending  status.Moment // of those that a round has, or that were not confirmed
	flying   work          // of the round at work
	waiters  []*waiter
	errands  []*errand
	done     chan result

	established bool // see package reconcile

	state     status.Replicator
	stale     bool          // state has changed since it was published
	published time.Duration // when
}

// root is what the engine knows of one directory.
type root struct {
	Root
	settler tree.Settler
	forced  map[string]bool   // to send whatever a look says: they were not confirmed
	parked  map[string]string // of these, what failed, and why
	retry   time.Duration     // when parked paths are tried again; 0: none
	delay   time.Duration
	away    bool // here or there nothing can be done in it; everything is compared at retry
}

// waiter wants to know when both nodes have the same.
type waiter struct {
	full    bool // after a comparison of everything
	confirm bool // whatever looks odd
	started bool // the round in question is at work
	answer  chan error
}

// Messages to Run.
type (
	connected    struct{ peer Peer }
	disconnected struct {
		peer Peer // nil if there was none
		err  error
	}
	given struct{ *waiter }
	asked struct{} // to compare everything
)

// New makes an engine. Nothing happens before Run.
func New(c Config) *Engine {
	e := &Engine{cfg: c, start: time.Now(), wake: make(chan struct{}, 1), poked: make(chan struct{}, 1), done: make(chan result, 1)}
	for _, r := range c.Roots {
		e.roots = append(e.roots, &root{Root: r, settler: tree.Settler{Quiet: quiet}, forced: map[string]bool{}, parked: map[string]string{}})
	}
	e.round = newRound(e)
	e.established = c.Established
	e.state = status.Replicator{Version: c.Version, Started: status.Now()}
	e.state.Peer.Address = c.Peer
	return e
}

func (e *Engine) now() time.Duration { return time.Since(e.start) }

// Changed takes an event of the watcher. It never waits.
func (e *Engine) Changed(ev tree.Event) { e.post(ev) }

// Poke tells that the peer may be reachable again.
func (e *Engine) Poke() {
	select {
	case e.poked <- struct{}{}:
	default:
	}
}

// Sync compares everything, sends what differs, and returns when both nodes have
// the same, or with what is in the way. With confirm also that is sent which an
// admin had to confirm.
func (e *Engine) Sync(ctx context.Context, confirm bool, progress func(string)) error {
	e.Poke()
	return e.wait(ctx, &waiter{full: true, confirm: confirm}, progress)
}

// Flush returns when everything seen so far is on the peer.
func (e *Engine) Flush(ctx context.Context) error {
	return e.wait(ctx, new(waiter), func(string) {})
}

// Compare has everything compared, without waiting for it.
func (e *Engine) Compare() {
	e.Poke()
	e.post(asked{})
}

func (e *Engine) wait(ctx context.Context, w *waiter, progress func(string)) error {
	w.answer = make(chan error, 1)
	e.post(given{w})
	said := ""
	tick := time.NewTicker(publishGap)
	defer tick.Stop()
	for {
		select {
		case err := <-w.answer:
			return err
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
			e.mu.Lock()
			words := e.said
			e.mu.Unlock()
			if words != "" && words != said {
				said = words
				progress(words)
			}
		}
	}
}

func (e *Engine) post(m any) {
	e.mu.Lock()
	e.mail = append(e.mail, m)
	e.mu.Unlock()
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

func (e *Engine) say(words string) {
	e.mu.Lock()
	e.said = words
	e.mu.Unlock()
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// Run mirrors until ctx ends. Then nothing is being sent any more.
func (e *Engine) Run(ctx context.Context) {
	var connecting sync.WaitGroup
	ctx, stop := context.WithCancel(ctx)
	connecting.Go(func() { e.connect(ctx) })
	defer func() {
		stop()
		if e.running != nil {
			<-e.done
		}
		connecting.Wait()
		e.round.close()
		for _, w := range e.waiters {
			w.answer <- errStopped
		}
		for _, x := range e.errands {
			x.answer <- outcome{err: errStopped}
		}
	}()
	e.full = true
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		next := e.begin(ctx)
		e.publish(&next)
		timer.Reset(next)
		select {
		case <-ctx.Done():
			return
		case <-e.wake:
		case <-timer.C:
		case r := <-e.done:
			e.finished(r)
		}
		e.collect()
	}
}

var errStopped = errors.New("skd-inotify is stopping")

// collect takes the mail.
func (e *Engine) collect() {
	e.mu.Lock()
	mail := e.mail
	e.mail = nil
	e.mu.Unlock()
	now := e.now()
	for _, m := range mail {
		switch m := m.(type) {
		case tree.Event:
			e.touched(now, m)
		case connected:
			e.up(m.peer)
		case disconnected:
			e.down(m)
		case given:
			e.waiters = append(e.waiters, m.waiter)
		case asked:
			e.compare(true)
		case *errand:
			e.errands = append(e.errands, m)
		}
	}
}

func (e *Engine) touched(now time.Duration, ev tree.Event) {
	if e.oldest.IsZero() {
		e.oldest = status.Now()
	}
	e.stale = true
	r := e.roots[ev.Root]
	if ev.All || r.settler.Len() > manyPaths {
		e.compare(false)
		return
	}
	if e.burst.from == 0 {
		e.burst.from = now
	}
	e.burst.last = now
	delete(r.parked, ev.Path)
	r.settler.Touch(now, ev.Path)
}

// compare asks for a round over everything.
func (e *Engine) compare(read bool) {
	e.full, e.read = true, e.read || read
}

func (e *Engine) up(p Peer) {
	h := p.Hello()
	e.peer, e.stale = p, true
	e.state.Peer.Version, e.state.Peer.Weak, e.state.Peer.Since = h.Version, p.Legacy(), status.Now()
	e.cfg.Troubles.Clear("peer")
	e.full, e.fresh, e.retryAt, e.delay = true, true, 0, 0
	if p.Legacy() {
		e.cfg.Troubles.Advise("weak", "the peer "+e.cfg.Peer+" has no skd-inotify (version 2.0?): rsync alone does the work, and nothing tells whether both nodes have the same",
			"install this version of skudonet-ce-cluster on "+e.cfg.Peer)
		return
	}
	e.cfg.Troubles.Clear("weak")
	e.cfg.Log.Info("connected to the peer "+e.cfg.Peer, "version", h.Version, "role", h.Role, "rsync", h.Rsync)
	for _, text := range h.Notices {
		e.cfg.Log.Warn("the peer " + e.cfg.Peer + " says: " + text)
	}
}

func (e *Engine) down(m disconnected) {
	e.stale = true
	words, remedy := explain(m.err)
	if m.peer == nil {
		prefix := "cannot replicate to the peer " + e.cfg.Peer + ": "
		var failed *remote.Error
		if errors.As(m.err, &failed) {
			prefix = "the peer " + e.cfg.Peer + " is not reached: "
		}
		e.cfg.Troubles.Advise("peer", prefix+words, remedy)
		e.answer(func(w *waiter) bool { return true }, errors.New(words+andRemedy(remedy)))
		return
	}
	if e.renewing {
		e.renewing = false
	} else {
		e.cfg.Troubles.Advise("peer", "the connection to the peer "+e.cfg.Peer+" is lost: "+words, remedy)
	}
	if e.peer == m.peer {
		e.peer, e.state.Peer.Since = nil, status.Moment{}
	}
	e.answer(func(w *waiter) bool { return !w.full }, errors.New(words+andRemedy(remedy)))
	e.compare(false)
}

// answer ends those waiters, who find the state published.
func (e *Engine) answer(which func(*waiter) bool, err error) {
	if slices.ContainsFunc(e.waiters, which) {
		e.published = 0
		e.publish(new(time.Duration))
	}
	e.waiters = slices.DeleteFunc(e.waiters, func(w *waiter) bool {
		if which(w) {
			w.answer <- err
			return true
		}
		return false
	})
}

// begin starts a round if there is reason for one, and tells how long to wait
// for the next look.
func (e *Engine) begin(ctx context.Context) (wait time.Duration) {
	const long = time.Hour
	if e.running != nil {
		return long
	}
	now := e.now()
	if len(e.errands) > 0 {
		e.run(ctx, work{errand: e.errands[0], began: time.Now(), roots: make([]rootWork, len(e.roots))})
		e.errands = e.errands[1:]
		e.compare(false)
		return long
	}
	if !e.established && e.peer == nil && now >= e.cfg.GiveUp {
		e.cfg.Log.Info(fmt.Sprintf("the peer %s was not reached for %s since this node became master: from here on this node's configuration counts", e.cfg.Peer, e.cfg.GiveUp))
		e.establish()
	}
	if e.peer == nil && !e.established {
		e.answer(func(w *waiter) bool { return !w.full }, e.notConnected())
		return e.cfg.GiveUp - now
	}
	hurry, wantFull, confirmed := false, false, false
	for _, w := range e.waiters {
		if !w.started && e.peer != nil {
			hurry, wantFull, confirmed = true, wantFull || w.full, confirmed || w.confirm
			// What changed a moment ago may not have been reported yet: look for it.
			e.full = true
		}
	}
	if wantFull {
		e.compare(true)
	}
	if e.peer == nil { // Those who wait for the peer wait for the connection.
		e.answer(func(w *waiter) bool { return !w.full }, e.notConnected())
		hurry = false
	}
	at := e.due(now)
	if hurry {
		at = now
	}
	if at > now {
		return at - now
	}
	if e.peer != nil && e.peer.Legacy() && e.verify > 0 && now >= e.verify {
		e.verify = now + e.cfg.Verify
		e.renewing = true // The next connection sees whether it has been upgraded.
		e.peer.Close()
		return long
	}
	w := e.gather(now, hurry)
	if w.empty() && !w.full {
		return max(time.Millisecond, e.due(now)-now)
	}
	if e.peer != nil {
		for _, waiter := range e.waiters {
			waiter.started = true
		}
		w.asked, w.confirmed = wantFull, confirmed
	}
	if w.full {
		e.cfg.Refresh()
	}
	if e.sending.IsZero() {
		e.sending = e.oldest
	}
	e.oldest = status.Moment{}
	e.run(ctx, w)
	return long
}

// run has a round at work.
func (e *Engine) run(ctx context.Context, w work) {
	ctx, e.running = context.WithCancel(ctx)
	e.stale, e.flying = true, w
	go func() { e.done <- e.round.do(ctx, w) }()
}

func (e *Engine) notConnected() error {
	return errors.New("the peer " + e.cfg.Peer + " is not connected")
}

func (e *Engine) establish() {
	if !e.established {
		e.established = true
		e.cfg.OnEstablish()
	}
}

// due is when the next round should begin.
func (e *Engine) due(now time.Duration) time.Duration {
	const never = time.Duration(1<<63 - 1)
	at := never
	if e.full {
		at = now
	}
	if e.verify > 0 {
		at = min(at, e.verify)
	}
	count := 0
	for _, r := range e.roots {
		if ready, ok := r.settler.Next(); ok {
			count += r.settler.Len()
			at = min(at, ready)
		}
		if r.retry > 0 {
			at = min(at, r.retry)
		}
	}
	if count > few && !e.full {
		at = max(at, min(e.burst.last+lull, e.burst.from+burstLimit))
	}
	return max(at, e.retryAt)
}

// gather takes what a round shall do out of the engine.
func (e *Engine) gather(now time.Duration, hurry bool) work {
	if e.verify > 0 && now >= e.verify {
		e.verify = now + e.cfg.Verify
		e.full = true
	}
	for _, r := range e.roots {
		e.full = e.full || r.away && now >= r.retry
	}
	w := work{peer: e.peer, full: e.full, read: e.full && e.read, fresh: e.fresh, established: e.established, began: time.Now()}
	e.full, e.read, e.burst.from, e.burst.last = false, false, 0, 0
	for _, r := range e.roots {
		var rw rootWork
		rw.ready, rw.overdue = r.settler.Take(now + together)
		if r.retry > 0 && (now >= r.retry || hurry || w.full) {
			clear(r.parked)
			r.retry = 0
		}
		for p := range r.forced { // What is sent is looked at before.
			if _, waits := r.parked[p]; !waits && !slices.Contains(rw.overdue, p) {
				rw.ready = append(rw.ready, p)
			}
		}
		rw.forced = maps.Clone(r.forced)
		for p := range r.parked {
			rw.leave = append(rw.leave, p)
		}
		w.roots = append(w.roots, rw)
	}
	return w
}

// settled tells whether nothing is left to do.
func (e *Engine) settled() bool {
	for _, r := range e.roots {
		if r.settler.Len() > 0 || len(r.forced) > 0 || r.away {
			return false
		}
	}
	return !e.full && e.running == nil
}

// sent tells whether what is not confirmed waits for a retry, and for nothing else.
func (e *Engine) sent() bool {
	return !slices.ContainsFunc(e.roots, func(r *root) bool { return len(r.forced) > len(r.parked) })
}

// flushed tells whether nothing is on its way either.
func (e *Engine) flushed() bool {
	return e.sent() && !e.full && e.running == nil && !slices.ContainsFunc(e.roots, func(r *root) bool { return r.settler.Len() > 0 })
}

// failures are the paths that wait for a retry, in words.
func (e *Engine) failures() (failed []string) {
	for _, r := range e.roots {
		for _, path := range slices.Sorted(maps.Keys(r.parked)) {
			failed = append(failed, name(path)+": "+r.parked[path])
		}
	}
	return failed
}

// finished takes the outcome of a round.
func (e *Engine) finished(r result) {
	e.running()
	e.running, e.flying = nil, work{}
	e.stale = true
	now := e.now()
	e.mu.Lock()
	e.said = ""
	e.mu.Unlock()
	e.state.Runs += r.runs
	if r.adopted {
		e.cfg.Apply("the configuration of the peer was taken over")
	}
	if r.errand {
		return
	}
	if r.err != nil {
		e.broken(now, r)
		return
	}
	e.retryAt, e.delay = 0, 0
	e.cfg.Troubles.Clear("round")
	if at := now + e.interval(r); r.full || e.verify == 0 || at < e.verify {
		e.verify = at
	}
	e.fresh = e.fresh && !(r.full && r.peer == e.peer)
	if r.met || r.peer != nil && r.peer.Legacy() {
		e.establish()
	}
	failed := slices.Concat(e.troubled(now, r), e.keep(now, r), r.alone)
	e.report(r)
	for i := range r.roots {
		if r.peer != nil && !e.state.Peer.Weak && r.roots[i].trouble == nil {
			e.noteRoot(i, r.roots[i])
		}
	}
	if !slices.ContainsFunc(e.roots, func(r *root) bool { return len(r.forced) > 0 || r.away }) {
		e.sending = status.Moment{}
		if r.peer != nil && !e.state.Peer.Weak {
			e.state.InStepAt = status.Now()
		}
	} else if e.sending.IsZero() {
		e.sending = status.Now()
	}
	e.answer(func(w *waiter) bool {
		return w.started && (w.full && e.sent() || e.flushed())
	}, e.verdict(failed))
}

// interval is the time until everything is compared again.
func (e *Engine) interval(r result) time.Duration {
	every := e.cfg.Verify
	if e.cfg.Blind() != nil {
		every = min(every, blindEvery)
	}
	if r.partial && !r.full {
		every = min(every, quickCheck)
	}
	if r.pending {
		every = min(every, roundMax)
	}
	return every
}

// broken is a round that did not come to its end.
func (e *Engine) broken(now time.Duration, r result) {
	e.delay = min(max(2*e.delay, retryMin), roundMax)
	e.retryAt = now + e.delay
	e.compare(false)
	for _, w := range e.waiters {
		if w.full && e.peer != r.peer { // The next connection's round is theirs.
			w.started = false
		}
	}
	if r.peer != nil {
		select {
		case <-r.peer.Done(): // The connection's end says more.
			return
		default:
		}
	}
	if r.peer != nil && r.peer == e.peer && errors.Is(r.err, peer.ErrMaster) {
		e.renewing = true // Without the connection, what changes here is recorded. The next one is refused, and says why.
		e.peer.Close()
		return
	}
	if errors.Is(r.err, context.Canceled) {
		return
	}
	words, remedy := explain(r.err)
	prefix := "replication to " + e.cfg.Peer + " failed: "
	if r.peer == nil {
		prefix = "changes cannot be recorded: "
	}
	e.cfg.Troubles.Advise("round", prefix+words, remedy)
	e.answer(func(w *waiter) bool { return w.started }, errors.New(words+andRemedy(remedy)))
}

// troubled sees to roots in which nothing could be done.
func (e *Engine) troubled(now time.Duration, r result) (failed []string) {
	for i, got := range r.roots {
		key := "root " + e.roots[i].Name
		root := e.roots[i]
		if root.away = got.trouble != nil; !root.away {
			e.cfg.Troubles.Clear(key)
			continue
		}
		if root.retry == 0 {
			root.delay = min(max(2*root.delay, retryMin), retryMax)
			root.retry = now + root.delay
		}
		words, remedy := explain(got.trouble)
		e.cfg.Troubles.Advise(key, words, remedy)
		failed = append(failed, words)
	}
	return failed
}

// keep puts what was not confirmed where the next rounds find it, and returns
// what failed, in words.
func (e *Engine) keep(now time.Duration, r result) (failed []string) {
	for i, got := range r.roots {
		root := e.roots[i]
		if got.trouble != nil {
			continue // Everything will be compared.
		}
		root.forced = map[string]bool{}
		for _, p := range got.busy {
			root.forced[p] = true
			root.settler.Hold(now, p)
		}
		for _, p := range got.left {
			root.forced[p] = true
		}
		for _, f := range got.failed {
			root.forced[f.path] = true
			if !root.settler.Waits(f.path) { // else it has changed since, and is tried at once
				root.parked[f.path] = f.words
			}
			failed = append(failed, name(f.path)+": "+f.words)
		}
		if len(got.failed) > 0 {
			root.delay = min(max(2*root.delay, retryMin), retryMax)
			root.retry = now + root.delay
		} else if len(root.parked) == 0 {
			root.delay, root.retry = 0, 0
		}
	}
	return failed
}

func (e *Engine) verdict(failed []string) error {
	switch {
	case len(failed) > 0:
		return errors.New(sentence(failed))
	case e.state.Peer.Weak:
		return ErrNotCompared
	}
	return nil
}

// ErrNotCompared is what Sync and Flush return when everything was sent to a peer
// that cannot compare.
var ErrNotCompared = errors.New("everything was sent, but not compared: the peer has no skd-inotify")

func (e *Engine) noteRoot(i int, r rootResult) {
	for len(e.state.Roots) <= i {
		e.state.Roots = append(e.state.Roots, status.ReplicatedRoot{})
	}
	e.state.Roots[i] = status.ReplicatedRoot{Name: e.roots[i].Name, Dir: e.roots[i].Dir, Entries: r.entries, Digest: r.digest.String()}
}

// publish writes the state if it has changed, not too often.
func (e *Engine) publish(next *time.Duration) {
	now := e.now()
	e.mu.Lock()
	words := e.said
	e.mu.Unlock()
	if words != e.state.Progress {
		e.state.Progress, e.stale = words, true
	}
	if !e.stale {
		return
	}
	if gap := e.published + publishGap - now; gap > 0 && e.published > 0 {
		*next = min(*next, gap)
		return
	}
	e.stale, e.published = false, now
	s := e.state
	s.Updated, s.State, s.Oldest = status.Now(), e.word(), e.sending
	if s.Oldest.IsZero() {
		s.Oldest = e.oldest
	}
	s.Pending, s.Paths = e.pending()
	s.Problems = nil
	for _, item := range e.cfg.Troubles.Items() {
		s.Problems = append(s.Problems, status.Problem{Text: item.Words, Remedy: item.Remedy})
	}
	if s.State != e.state.State {
		e.state.State, e.state.Since = s.State, s.Updated
		s.Since = s.Updated
	}
	e.cfg.Publish(s)
}

func (e *Engine) word() string {
	switch {
	case e.peer == nil:
		return status.Connecting
	case e.running != nil && e.flying.full:
		return status.Comparing
	case e.running != nil:
		return status.Replicating
	case !e.settled():
		return status.Waiting
	case e.state.Peer.Weak:
		return status.Waiting
	}
	return status.InStep
}

// pending counts the paths that are not confirmed, and names some.
func (e *Engine) pending() (count int, some []string) {
	for i, r := range e.roots {
		all := map[string]bool{}
		if e.running != nil {
			for _, p := range e.flying.roots[i].ready {
				all[p] = true
			}
		}
		maps.Copy(all, r.forced)
		for _, p := range r.settler.Paths(shownPaths) {
			all[p] = true
		}
		count += max(len(all), r.settler.Len())
		for _, p := range slices.Sorted(maps.Keys(all)) {
			if len(some) < shownPaths {
				some = append(some, name(p))
			}
		}
	}
	return count, some
}
