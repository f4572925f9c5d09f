package mirror

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/skudonet/skudonet-ce-cluster/lib/fileset"
	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"github.com/skudonet/skudonet-ce-cluster/lib/peer"
	"github.com/skudonet/skudonet-ce-cluster/lib/rsync"
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

// Limits of one run of rsync from a stage, so that the copies stay small. A
// larger file than bigFile goes alone, and not by way of the memory.
const (
	batchFiles = 10_000
	batchBytes = 64 << 20
	bigFile    = 16 << 20
)

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

// part is a round's business with one root.
type part struct {
	Root
	index      int
	trouble    error // of this root on the peer: it is left alone
	tree       *scan.Tree
	impatient  map[string]bool // send also while they are being written
	before     map[string]manifest.Entry
	wanted     map[string]bool // to send
	busy       map[string]bool
	except     map[string]bool // not compared: busy, unreadable or left
	left       []string
	forced     map[string]bool
	held       map[string]manifest.Entry // of the round's
	special    []string
	unreadable []failure
	failed     []failure
	refused    map[string]string // by the peer: removals and reads, with the reason
	sent       []string
	gone       []peer.Removal
	going      map[string]bool // the same
	said       error           // of rsync
	digest     manifest.Digest
	changes    map[string]manifest.Change
	repairs    map[string]bool
}

// look sees what has changed here.
func (r *round) look(ctx context.Context, i int, w work) (*part, error) {
	t, rw := r.trees[i], w.roots[i]
	p := &part{Root: r.cfg.Roots[i], index: i, tree: t, impatient: map[string]bool{}, before: map[string]manifest.Entry{},
		wanted: map[string]bool{}, busy: map[string]bool{}, except: map[string]bool{}, refused: map[string]string{},
		left: rw.leave, forced: rw.forced, held: r.held[i], changes: map[string]manifest.Change{}, repairs: map[string]bool{}}
	for _, path := range rw.overdue {
		p.impatient[path] = true
	}
	for _, path := range rw.leave {
		p.except[path] = true
	}
	report, err := p.see(ctx, w, r.known[i], slices.Concat(rw.ready, rw.overdue))
	if r.known[i] = err == nil; err != nil {
		return nil, err
	}
	for _, path := range report.Changed {
		p.wanted[path] = true
	}
	for _, u := range report.Unreadable {
		p.skip(u.Path, u.Err)
	}
	for path := range rw.forced {
		if !p.excepted(path) {
			p.wanted[path] = true
		}
	}
	for _, s := range report.Special {
		p.special = append(p.special, fmt.Sprintf("%s (%v)", name(path.Join(p.Dir, s.Path)), s.Err))
	}
	return p, nil
}

// see has the tree looked at: all of it, or paths. What was seen counts only if
// the tree was there all the time.
func (p *part) see(ctx context.Context, w work, known bool, paths []string) (report scan.Report, err error) {
	all := w.full || !known
	var earlier []string
	for began := time.Now(); ; {
		if all {
			p.remember(".")
			report, err = p.tree.Scan(ctx, w.read)
		} else {
			for _, path := range paths {
				p.remember(path)
			}
			report, err = p.tree.Look(ctx, paths)
		}
		report.Changed = append(report.Changed, earlier...)
		switch {
		case ctx.Err() != nil:
			return report, ctx.Err()
		case err == nil:
			return report, nil
		case !errors.Is(err, scan.ErrAnchor):
			return report, &Trouble{fmt.Sprintf("%s cannot be read: %v", p.Dir, err), mounted}
		case time.Since(began) > anchorWait:
			return report, noAnchor(p.Dir)
		}
		all, earlier = true, report.Changed
		time.Sleep(anchorWait / 20)
	}
}

const mounted = "nothing is sent until it is there again: is a disk not mounted?"

func noAnchor(dir string) error { return &Trouble{dir + " has no " + anchor, mounted} }

// anchor is the file without which a tree is not Skudonet's configuration, but
// an empty mount point. Skudonet itself replaces it, which takes a moment.
const (
	anchor     = "global.conf"
	anchorWait = time.Second
)

// whole waits for the anchor, for a moment.
func whole(ctx context.Context, root Root) bool {
	for began := time.Now(); root.anchor() != ""; time.Sleep(anchorWait / 20) {
		info, err := os.Stat(path.Join(root.Dir, anchor))
		switch {
		case err == nil && info.Mode().IsRegular():
			return true
		case time.Since(began) > anchorWait || ctx.Err() != nil:
			return false
		}
	}
	return true
}

// anchor is the root's, if it has one.
func (r Root) anchor() string {
	if r.Name == peer.ConfigRoot {
		return anchor
	}
	return ""
}

func (p *part) remember(path string) {
	m := p.tree.Manifest()
	if e, ok := m.Get(path); ok {
		p.before[path] = e
	}
	for _, below := range m.Below(path) {
		p.before[below], _ = m.Get(below)
	}
}

// skip leaves a path that cannot be read alone, here and there.
func (p *part) skip(path string, err error) {
	p.except[path] = true
	delete(p.wanted, path)
	p.unreadable = append(p.unreadable, failure{path, "cannot be read: " + reason(err)})
}

// compare asks the peer what it has, and wants everything sent that differs.
func (r *round) compare(ctx context.Context, w work, parts []*part) error {
	r.say("comparing all files with the peer")
	answers, err := askDigest(ctx, w.peer, r.request(parts, true, w.read), wholeLimit)
	if err != nil {
		return err
	}
	for _, p := range parts {
		a, ok := p.answer(answers)
		if !ok {
			continue
		}
		p.refuse(a.Problems)
		p.digest = p.own()
		if p.equal(a) {
			clear(p.wanted)
			for path := range p.before {
				delete(p.before, path)
			}
			continue
		}
		if err := p.differences(ctx, w.peer, !w.fresh); err != nil {
			return err
		}
	}
	return nil
}

// differences wants exactly that sent in which the peer differs.
// With repair, what nobody changed here was changed there.
func (p *part) differences(ctx context.Context, with Peer, repair bool) error {
	changed := maps.Clone(p.wanted)
	limited, cancel := limit(ctx, wholeLimit)
	defer cancel()
	theirs, err := with.Manifest(limited, p.Name)
	if err != nil {
		return err
	}
	clear(p.wanted)
	clear(p.before)
	for _, c := range manifest.Diff(theirs, p.tree.Manifest()) {
		if p.excepted(c.Path) {
			continue
		}
		p.wanted[c.Path] = true
		if c.From != nil {
			p.before[c.Path] = *c.From
		}
		if repair && !changed[c.Path] {
			p.repairs[c.Path] = true
		}
	}
	return nil
}

func (p *part) excepted(path string) bool {
	for ; ; path = parent(path) {
		if p.except[path] {
			return true
		}
		if path == "." {
			return false
		}
	}
}

func (p *part) own() manifest.Digest {
	list, _ := p.exceptions()
	return p.tree.Manifest().DigestExcept(list)
}

func (p *part) equal(a peer.RootDigest) bool {
	_, wide := p.exceptions()
	return a.Digest == p.digest && !wide
}

// exceptions are the paths that are not compared, or, if they are very many, their
// directories: then an equal digest says too little.
func (p *part) exceptions() (paths []string, wide bool) {
	list := p.except
	for ; ; wide = true {
		named := map[string]bool{}
		for path := range list {
			if manifest.CheckPath(path) == nil { // else it is in no manifest
				named[path] = true
			}
		}
		if len(named) <= maxExceptions {
			return slices.Sorted(maps.Keys(named)), wide
		}
		list = map[string]bool{}
		for path := range named {
			list[parent(path)] = true
		}
	}
}

const maxExceptions = 200

// push sends what is wanted.
func (r *round) push(ctx context.Context, to Peer, p *part, res *result) error {
	names := slices.Sorted(maps.Keys(p.wanted))
	p.sent, p.gone, p.going, p.said = nil, nil, map[string]bool{}, nil
	var files []string
	for _, path := range names {
		if e, ok := p.tree.Manifest().Get(path); ok {
			files = append(files, path)
			p.note(path, &e)
		} else if !p.excepted(path) {
			p.remove(path)
		}
	}
	if first := p.inTheWay(); len(first) > 0 {
		req := peer.DigestRequest{Roots: []peer.Look{{Root: p.Name, Remove: first}}}
		if _, err := askDigest(ctx, to, req, answerLimit); err != nil {
			return err
		}
	}
	total := len(files)
	for len(files) > 0 {
		if total > few {
			r.say(fmt.Sprintf("sending %d files below %s, %d to go", total, p.Dir, len(files)))
		}
		source, batch, rest, err := r.batch(ctx, p, files)
		if err != nil {
			return err
		}
		files = rest
		if len(batch) == 0 {
			continue
		}
		res.runs++
		err = to.Push(ctx, Transfer{Root: p.Name, Source: source, Files: batch})
		var failed *rsync.Failure
		if errors.As(err, &failed) {
			p.said = err
		} else if err != nil {
			return err
		}
		p.sent = append(p.sent, batch...)
	}
	if total > 0 {
		for _, stage := range r.stages {
			if err := stage.Clear(); err != nil {
				return err
			}
		}
	}
	return nil
}

// remove has a path removed there that is not here.
func (p *part) remove(path string) {
	if p.going[path] {
		return
	}
	p.going[path] = true
	kind := p.before[path].Kind
	if kind == 0 {
		kind = manifest.File // It came and went between two looks.
	}
	p.gone = append(p.gone, peer.Removal{Path: peer.Name(path), Kind: byte(kind)})
	p.note(path, nil)
}

// note records a change for the log.
func (p *part) note(path string, to *manifest.Entry) {
	c := manifest.Change{Path: path, To: to}
	if from, ok := p.before[path]; ok {
		c.From = &from
	}
	if c.From == nil && c.To == nil {
		return
	}
	p.changes[path] = c
}

// inTheWay are the removals below what was a directory and is one no more: rsync
// would not replace it.
func (p *part) inTheWay() (first []peer.Removal) {
	for _, g := range p.gone {
		for dir := parent(string(g.Path)); dir != "."; dir = parent(dir) {
			if e, ok := p.tree.Manifest().Get(dir); ok && e.Kind != manifest.Dir {
				first = append(first, g)
				break
			}
		}
	}
	return first
}

// batch takes as many files as one run of rsync shall carry, and tells from where:
// from snapshots in memory or on disk, or from the tree itself.
func (r *round) batch(ctx context.Context, p *part, files []string) (source string, batch, rest []string, err error) {
	if r.cfg.Direct {
		return p.Dir, p.quiet(files), nil, nil
	}
	dirs := []string{r.cfg.MemoryStage, r.cfg.DiskStage}
	if e, ok := p.tree.Manifest().Get(files[0]); ok && e.Size > bigFile {
		dirs = dirs[1:]
	}
	for _, dir := range dirs {
		var stage *snapshot.Stage
		if stage, err = r.stage(dir); err == nil {
			batch, rest, err = r.copy(ctx, stage, p, files)
		}
		if err == nil {
			r.cfg.Troubles.Clear("stage")
			return stage.Dir(), batch, rest, nil
		}
		var lost *treeError
		if ctx.Err() != nil {
			return "", nil, nil, ctx.Err()
		} else if errors.As(err, &lost) {
			return "", nil, nil, err
		}
		if stage != nil {
			stage.Clear()
		}
	}
	r.cfg.Troubles.Advise("stage", "no snapshots of files: "+err.Error()+"; rsync reads them while they may be written", "make space there")
	return p.Dir, p.quiet(files), nil, nil
}

// quiet leaves out what is being written.
func (p *part) quiet(files []string) (quiet []string) {
	for _, file := range files {
		if !p.impatient[file] && snapshot.OpenForWriting(path.Join(p.Dir, file)) {
			p.hold(file)
			continue
		}
		quiet = append(quiet, file)
	}
	return quiet
}

// hold leaves a file for later.
func (p *part) hold(file string) {
	if was, ok := p.before[file]; ok && !p.forced[file] {
		p.held[file] = was
	}
	p.busy[file], p.except[file] = true, true
	delete(p.changes, file)
}

// rewritten tells whether a file has been written, but is what the peer has.
func (p *part) rewritten(e manifest.Entry) bool {
	was, ok := p.held[e.Path]
	if !ok && !p.forced[e.Path] {
		was, ok = p.before[e.Path]
	}
	delete(p.held, e.Path)
	return ok && was == e
}

func (r *round) stage(dir string) (*snapshot.Stage, error) {
	if s, ok := r.stages[dir]; ok {
		return s, s.Clear()
	}
	s, err := snapshot.Open(dir)
	if err == nil {
		r.stages[dir] = s
	}
	return s, err
}

// How often a file that is written for long is looked at, for a moment in which
// it is whole.
const (
	moments      = 100
	momentsApart = 2 * time.Millisecond
)

// copy makes snapshots. The error is one of the stage; what is wrong with a file
// concerns that file only.
func (r *round) copy(ctx context.Context, stage *snapshot.Stage, p *part, files []string) (batch, rest []string, err error) {
	size := int64(0)
	for i, path := range files {
		if ctx.Err() != nil {
			return nil, nil, ctx.Err()
		}
		big := false
		if e, ok := p.tree.Manifest().Get(path); ok {
			big = e.Size > bigFile
		}
		if len(batch) >= batchFiles || size >= batchBytes || big && i > 0 {
			return batch, files[i:], nil
		}
		e, err := stage.Copy(p.Dir, path, true)
		for tries := 0; p.impatient[path] && errors.Is(err, snapshot.ErrBusy); tries++ {
			// It may be free for moments only; if not, it is sent as it is.
			time.Sleep(momentsApart)
			e, err = stage.Copy(p.Dir, path, tries < moments)
		}
		switch {
		case err == nil:
			p.tree.Note(e)
			if p.rewritten(e) {
				delete(p.changes, path)
				break
			}
			p.note(path, &e)
			batch = append(batch, path)
			size += e.Size
		case errors.Is(err, snapshot.ErrBusy):
			p.hold(path)
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, snapshot.ErrKind):
			if err := p.vanished(ctx, path); err != nil {
				return nil, nil, err
			}
		case noSpace(err):
			return nil, nil, err
		default:
			p.skip(path, err)
			delete(p.changes, path)
		}
		if big {
			return batch, files[i+1:], nil
		}
	}
	return batch, nil, nil
}

// treeError is an error of the tree itself, in the middle of a round.
type treeError struct{ error }

func (t *treeError) Unwrap() error { return t.error }

// vanished looks again at what was there a moment ago.
func (p *part) vanished(ctx context.Context, path string) error {
	p.remember(path)
	report, err := p.tree.Look(ctx, []string{path})
	if err != nil {
		return &treeError{err}
	}
	for _, u := range report.Unreadable {
		p.skip(u.Path, u.Err)
	}
	for _, changed := range report.Changed {
		if _, ok := p.tree.Manifest().Get(changed); !ok && !p.excepted(changed) {
			p.remove(changed)
		}
	}
	return nil
}

// verify has the peer remove and look, and compares. It tells whether there is
// something to repair, which is then wanted.
func (r *round) verify(ctx context.Context, with Peer, parts []*part, try int, res *result) (again bool, err error) {
	answers, err := askDigest(ctx, with, r.request(parts, false, false), answerLimit)
	if err != nil {
		return false, err
	}
	for _, p := range parts {
		a, ok := p.answer(answers)
		if !ok {
			continue
		}
		res.partial = res.partial || !a.Walked
		p.refuse(a.Problems)
		p.digest = p.own()
		if p.equal(a) {
			clear(p.wanted)
			continue
		}
		if err := p.differences(ctx, with, true); err != nil {
			return false, err
		}
		if p.said == nil && try < attempts {
			again = again || len(p.wanted) > 0
			continue
		}
		for path := range p.wanted {
			p.fail(path)
		}
		clear(p.wanted)
	}
	return again, nil
}

// fail says why a path is not the same on the peer.
func (p *part) fail(path string) {
	words := "is different on the peer after it was sent; something there changes it"
	if p.excepted(path) {
		words = "not compared, because a directory above it is not the same"
	}
	if why, ok := p.refused[path]; ok {
		words = why
	} else if p.said != nil {
		words, _ = explain(p.said)
		if remedy := p.remedy(); remedy != "" {
			words += " (" + remedy + ")"
		}
	}
	p.failed = append(p.failed, failure{path, words})
	p.except[path] = true
	delete(p.changes, path)
}

// remedy is rsync's, without what is done anyway.
func (p *part) remedy() string {
	_, remedy := explain(p.said)
	if strings.HasSuffix(remedy, "tried again by itself") || strings.HasSuffix(remedy, "repeated by itself") {
		remedy, _, _ = strings.Cut(remedy, "; ")
		if strings.Contains(remedy, "by itself") {
			return ""
		}
	}
	return remedy
}

func (p *part) refuse(problems []peer.Problem) {
	for _, problem := range problems {
		p.refused[string(problem.Path)] = "on the peer: " + problem.Text
	}
}

// A peer that answers nothing for so long hangs, although its ssh may be alive.
const (
	answerLimit = time.Minute      // to a look at what was sent
	wholeLimit  = 10 * time.Minute // to a look at everything
)

func limit(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, d, fmt.Errorf("skd-inotify there has not answered for %v", d))
}

func askDigest(ctx context.Context, p Peer, q peer.DigestRequest, d time.Duration) ([]peer.RootDigest, error) {
	ctx, cancel := limit(ctx, d)
	defer cancel()
	return p.Digest(ctx, q)
}

// request asks for all digests, and to look again at what was sent.
func (r *round) request(parts []*part, full, read bool) (req peer.DigestRequest) {
	for _, p := range parts {
		except, _ := p.exceptions()
		look := peer.Look{Root: p.Name, Full: full, Read: read, Paths: peerNames(p.sent), Remove: p.gone,
			Except: peerNames(except)}
		req.Roots = append(req.Roots, look)
	}
	return req
}

func peerNames(paths []string) []peer.Name {
	names := make([]peer.Name, len(paths))
	for i, p := range paths {
		names[i] = peer.Name(p)
	}
	return names
}

// answer picks the one for this root, if there is one.
func (p *part) answer(answers []peer.RootDigest) (peer.RootDigest, bool) {
	for _, a := range answers {
		switch {
		case a.Root != p.Name:
		case a.Failed != "":
			p.trouble = &Trouble{p.Dir + " cannot be read on the peer: " + a.Failed, "is a disk not mounted there?"}
			return a, false
		default:
			return a, true
		}
	}
	p.trouble = &Trouble{"the peer does not answer for " + p.Dir, "see its skudonet-cluster.conf: $configdir, $rttables"}
	return peer.RootDigest{}, false
}

// result hands over what the engine has to know.
func (p *part) result(res *result, out *rootResult) {
	for path := range p.changes {
		if !p.except[path] && p.excepted(path) { // sent, but below what was not compared
			p.fail(path)
		}
	}
	out.busy = slices.Sorted(maps.Keys(p.busy))
	out.left = p.left
	out.failed = append(p.unreadable, p.failed...)
	out.digest, out.entries, out.trouble = p.digest, p.tree.Manifest().Len(), p.trouble
	if res.err != nil || p.trouble != nil {
		return
	}
	for _, path := range slices.Sorted(maps.Keys(p.changes)) {
		c := change{p.Name, p.changes[path]}
		if p.repairs[path] {
			res.fixed = append(res.fixed, c)
		} else {
			res.changes = append(res.changes, c)
		}
	}
}

// legacy has rsync alone do the work.
func (r *round) legacy(ctx context.Context, w work, res *result) error {
	var failed []error
	for i, root := range r.cfg.Roots {
		rw := w.roots[i]
		if !w.full && len(rw.ready)+len(rw.overdue) == 0 {
			continue
		}
		if !whole(ctx, root) {
			failed = append(failed, noAnchor(root.Dir))
			continue
		}
		t := Transfer{Root: root.Name, Source: root.Dir, Whole: true, Set: r.trees[i].Root().Set}
		if root.Only != "" {
			if _, err := os.Lstat(path.Join(root.Dir, root.Only)); err != nil {
				continue
			}
			t.Whole, t.Files = false, []string{root.Only}
		}
		r.say("sending everything below " + root.Dir)
		res.runs++
		if err := w.peer.Push(ctx, t); err != nil {
			failed = append(failed, err)
			continue
		}
		for _, path := range slices.Concat(rw.ready, rw.overdue) {
			res.changes = append(res.changes, change{root.Name, manifest.Change{Path: path}})
		}
	}
	if len(failed) > 0 {
		return failed[0] // the tree's, rather than rt_tables'
	}
	return nil
}

func parent(p string) string { return path.Dir(p) }

// name shows a path in words, whatever is in it. Of a long one the middle is left out.
func name(p string) string {
	const part = 100
	if len(p) > 2*part {
		p = strings.ToValidUTF8(p[:part], "") + "…" + strings.ToValidUTF8(p[len(p)-part:], "")
	}
	odd := func(r rune) bool { return r == ' ' || r == '"' || r == utf8.RuneError || !unicode.IsPrint(r) }
	if strings.ContainsFunc(p, odd) {
		return strconv.Quote(p)
	}
	return p
}
