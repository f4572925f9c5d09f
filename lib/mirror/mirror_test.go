package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/archive"
	"github.com/skudonet/skudonet-ce-cluster/lib/fileset"
	"github.com/skudonet/skudonet-ce-cluster/lib/ledger"
	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"github.com/skudonet/skudonet-ce-cluster/lib/peer"
	"github.com/skudonet/skudonet-ce-cluster/lib/remote"
	"github.com/skudonet/skudonet-ce-cluster/lib/rsync"
	"github.com/skudonet/skudonet-ce-cluster/lib/scan"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
	"github.com/skudonet/skudonet-ce-cluster/lib/tree"
	"github.com/skudonet/skudonet-ce-cluster/lib/trouble"
	"github.com/skudonet/skudonet-ce-cluster/lib/vector"
	"golang.org/x/sys/unix"
)

// world is an engine in virtual time with two real trees. The peer's half is
// played by the test, with the product's own scan; rsync by copying files.
//
// The test's body holds mu, but for the time that it lets pass.
type world struct {
	t          *testing.T
	mu         sync.Mutex
	ours       string
	theirs     string
	engine     *Engine
	log        bytes.Buffer
	logMu      sync.Mutex
	began      time.Time
	dialed     []time.Duration
	dialError  error
	hello      peer.Hello
	weak       bool
	pushes     []push
	pushTakes  time.Duration
	refuse     func(path string) error // of the peer, for a file
	disturb    func()                  // after each transfer
	peer       *fakePeer
	blind      error
	state      status.Replicator
	roundError error
	standing   peer.Standing // of the peer's node
	kept       []peer.KeepRequest
	keepings   []peer.Keeping
	record     ledger.Record // of ours, on the disk
	storeError error
	archives   *archive.Store
	config     Config
	applied    int
	base       string
}

type push struct {
	at    time.Duration
	files []string
	whole bool
}

func (w *world) Write(b []byte) (int, error) {
	w.logMu.Lock()
	defer w.logMu.Unlock()
	return w.log.Write(b)
}

func (w *world) said(words string) int {
	w.logMu.Lock()
	defer w.logMu.Unlock()
	return strings.Count(w.log.String(), words)
}

// play runs a test in virtual time: two equal trees, an engine that is in step.
func play(t *testing.T, change func(*world), test func(*world)) {
	t.Helper()
	base := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, base: base, ours: filepath.Join(base, "ours"), theirs: filepath.Join(base, "theirs"), began: time.Now()}
		w.record = ledger.Record{ID: vector.NewID(), Vector: vector.Vector{}}
		w.standing = peer.Standing{ID: vector.NewID(), Vector: vector.Vector{}, Holder: true}
		w.must(os.Mkdir(filepath.Join(base, "state"), 0o700))
		var err error
		w.archives, err = archive.Open(filepath.Join(base, "state"))
		w.must(err)
		w.hello = peer.Hello{Protocol: 1, Version: "1", Role: status.Backup, Rsync: "3.2.7"}
		for _, dir := range []string{w.ours, w.theirs} {
			w.must(os.Mkdir(dir, 0o755))
			w.must(os.WriteFile(filepath.Join(dir, "global.conf"), []byte("$x=1;\n"), 0o644))
		}
		log := slog.New(slog.NewTextHandler(w, nil))
		w.config = Config{
			Local: "us", StateDir: filepath.Join(base, "state"), Archives: w.archives, Limits: archive.Limits{Keep: 50, Age: time.Hour, Bytes: 1 << 30},
			Store: w.store, Holder: func() bool { return true }, GiveUp: time.Minute, OnEstablish: func() {},
			Owe: func() error { return nil }, Apply: func(string) { locked(w, func() any { w.applied++; return nil }) },
			Roots: []Root{{Name: peer.ConfigRoot, Dir: w.ours}}, Peer: "peer", Version: "1",
			MemoryStage: filepath.Join(base, "stage"), DiskStage: filepath.Join(base, "disk"), Verify: 5 * time.Minute,
			Dial: w.dial, Refresh: func() {},
			Blind:   func() error { return locked(w, func() error { return w.blind }) },
			Publish: func(s status.Replicator) { locked(w, func() any { w.state = s; return nil }) },
			Log:     log, Troubles: trouble.New(log),
		}
		if change != nil {
			change(w)
		}
		w.config.Record = w.record
		w.engine = New(w.config)
		w.mu.Lock()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); w.engine.Run(ctx) }()
		defer func() {
			w.mu.Unlock()
			cancel()
			<-ended
			if t.Failed() {
				t.Log(w.log.String())
			}
		}()
		w.pass(time.Second)
		test(w)
	})
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) now() time.Duration { return time.Since(w.began) }

// pass lets time go by.
func (w *world) pass(d time.Duration) {
	w.mu.Unlock()
	defer w.mu.Lock()
	time.Sleep(d)
	synctest.Wait()
}

func (w *world) sync() error {
	w.mu.Unlock()
	defer w.mu.Lock()
	return w.engine.Sync(w.t.Context(), false, func(string) {})
}

func (w *world) store(r ledger.Record) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.storeError == nil {
		w.record = r
	}
	return w.storeError
}

func (w *world) flush(ctx context.Context) error {
	w.mu.Unlock()
	defer w.mu.Lock()
	return w.engine.Flush(ctx)
}

// locked lets the engine at the world.
func locked[T any](w *world, f func() T) T {
	w.mu.Lock()
	defer w.mu.Unlock()
	return f()
}

func (w *world) dial(context.Context) (Peer, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.dialed = append(w.dialed, w.now())
	if w.dialError != nil {
		return nil, w.dialError
	}
	w.peer = &fakePeer{world: w, tree: scan.New(scan.Root{Name: peer.ConfigRoot, Dir: w.theirs, Set: fileset.New()}), legacy: w.weak, done: make(chan struct{})}
	return w.peer, nil
}

// write changes a file of ours, as the watcher sees it.
func (w *world) write(path, text string) {
	w.t.Helper()
	w.must(os.MkdirAll(filepath.Dir(filepath.Join(w.ours, path)), 0o755))
	w.must(os.WriteFile(filepath.Join(w.ours, path), []byte(text), 0o644))
	w.engine.Changed(tree.Event{Path: path})
}

func (w *world) remove(path string) {
	w.t.Helper()
	w.must(os.RemoveAll(filepath.Join(w.ours, path)))
	w.engine.Changed(tree.Event{Path: path})
}

// same checks that both trees are alike.
func (w *world) same() {
	w.t.Helper()
	one, other := content(w.t, w.ours), content(w.t, w.theirs)
	if !maps.Equal(one, other) {
		w.t.Errorf("at %v the trees differ:\n%q\n%q", w.now(), one, other)
	}
}

func content(t *testing.T, dir string) map[string]string {
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		files[path[len(dir):]] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// fakePeer is a backup.
type fakePeer struct {
	*world
	tree   *scan.Tree
	legacy bool
	done   chan struct{}
	once   sync.Once
	err    error
}

func (p *fakePeer) Hello() peer.Hello     { return locked(p.world, func() peer.Hello { return p.hello }) }
func (p *fakePeer) Legacy() bool          { return p.legacy }
func (p *fakePeer) Done() <-chan struct{} { return p.done }
func (p *fakePeer) Err() error            { return p.err }

func (p *fakePeer) Close() error {
	p.once.Do(func() { close(p.done) })
	return nil
}

// lose breaks the connection.
func (p *fakePeer) lose() {
	p.err = &remote.Error{Kind: remote.Lost, Text: "the cable was cut"}
	p.Close()
}

func (p *fakePeer) Digest(ctx context.Context, q peer.DigestRequest) (peer.DigestAnswer, error) {
	select {
	case <-p.done:
		return peer.DigestAnswer{}, p.err
	default:
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.roundError != nil {
		return peer.DigestAnswer{}, p.roundError
	}
	look := q.Roots[0]
	if look.Keep != nil {
		p.keepings = append(p.keepings, *look.Keep)
	}
	d := peer.RootDigest{Root: look.Root, Role: status.Backup, Walked: true}
	slices.SortFunc(look.Remove, func(a, b peer.Removal) int { return bytes.Compare(b.Path, a.Path) })
	for _, r := range look.Remove {
		if err := manifest.CheckPath(string(r.Path)); err != nil {
			return peer.DigestAnswer{}, err
		}
		if err := os.Remove(filepath.Join(p.theirs, string(r.Path))); err != nil && !errors.Is(err, fs.ErrNotExist) {
			d.Problems = append(d.Problems, peer.Problem{Path: r.Path, Text: err.Error()})
		}
	}
	if _, err := p.tree.Scan(ctx, true); err != nil {
		d.Failed = err.Error()
	}
	var except []string
	for _, name := range look.Except {
		except = append(except, string(name))
	}
	d.Digest, d.Entries = p.tree.Manifest().DigestExcept(except), p.tree.Manifest().Len()
	whole := p.tree.Manifest().Digest()
	a := peer.DigestAnswer{}
	if q.Commit != nil && q.Commit.Digests[look.Root] == whole {
		p.standing.Vector, p.standing.Waiting, a.Committed = q.Commit.Vector, q.Commit.Waiting, true
		p.standing.Trees = map[string]ledger.Tree{look.Root: {Digest: whole, Set: q.Commit.Set}}
	}
	d.Touched = p.standing.Trees[look.Root] != ledger.Tree{Digest: whole, Set: q.Set}
	a.Roots = []peer.RootDigest{d}
	return a, nil
}

func (p *fakePeer) Standing(context.Context) (peer.Standing, error) {
	return locked(p.world, func() peer.Standing { return p.standing }), nil
}

func (p *fakePeer) Renew(context.Context, string) (vector.ID, error) {
	return locked(p.world, func() vector.ID { p.standing.ID = vector.NewID(); return p.standing.ID }), nil
}

func (p *fakePeer) Keep(_ context.Context, q peer.KeepRequest) (peer.Kept, error) {
	return locked(p.world, func() peer.Kept { p.kept = append(p.kept, q); return peer.Kept{Name: "kept"} }), nil
}

func (p *fakePeer) Fetch(_ context.Context, root string, files []string, into string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, path := range files {
		info, err := os.Lstat(filepath.Join(p.theirs, path))
		if err != nil {
			return &rsync.Failure{Exit: 23, Text: err.Error()}
		}
		to := filepath.Join(into, path)
		if info.IsDir() {
			err = os.MkdirAll(to, info.Mode().Perm())
		} else {
			var text []byte
			text, err = os.ReadFile(filepath.Join(p.theirs, path))
			err = errors.Join(err, os.MkdirAll(filepath.Dir(to), 0o755), os.WriteFile(to, text, info.Mode().Perm()), os.Chmod(to, info.Mode().Perm()))
		}
		if err != nil {
			return err
		}
	}
	if p.disturb != nil {
		p.disturb()
	}
	return nil
}

func (p *fakePeer) Manifest(context.Context, string) (*manifest.Manifest, error) {
	b, err := p.tree.Manifest().AppendBinary(nil)
	if err != nil {
		return nil, err
	}
	return manifest.Parse(b)
}

func (p *fakePeer) Push(ctx context.Context, t Transfer) error {
	p.mu.Lock()
	p.pushes = append(p.pushes, push{p.now(), t.Files, t.Whole})
	if t.Keep != nil {
		p.keepings = append(p.keepings, *t.Keep)
	}
	takes := p.pushTakes
	p.mu.Unlock()
	select {
	case <-time.After(takes):
	case <-ctx.Done():
		return ctx.Err()
	case <-p.done:
		return &rsync.Failure{Exit: 12, Text: "the connection was closed"}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	files := t.Files
	if t.Whole {
		for path := range content(p.t, t.Source) {
			files = append(files, path)
		}
	}
	failed := error(nil)
	for _, path := range files {
		if p.refuse != nil && p.refuse(path) != nil {
			failed = &rsync.Failure{Exit: 23, Text: p.refuse(path).Error()}
			continue
		}
		info, err := os.Lstat(filepath.Join(t.Source, path))
		if err != nil {
			return &rsync.Failure{Exit: 23, Text: err.Error()}
		}
		to := filepath.Join(p.theirs, path)
		if info.IsDir() {
			os.Mkdir(to, 0o755)
			continue
		}
		text, err := os.ReadFile(filepath.Join(t.Source, path))
		if err == nil {
			err = errors.Join(os.MkdirAll(filepath.Dir(to), 0o755), os.WriteFile(to, text, info.Mode().Perm()), os.Chmod(to, info.Mode().Perm()))
		}
		if err != nil {
			return &rsync.Failure{Exit: 23, Text: err.Error()}
		}
	}
	if p.disturb != nil {
		p.disturb()
	}
	return failed
}

func TestEqualTreesNeedNothing(t *testing.T) {
	play(t, nil, func(w *world) {
		w.pass(time.Second)
		if len(w.pushes) != 0 || w.state.State != status.InStep || w.said("in step with the peer peer") != 1 {
			t.Errorf("%v, %q", w.pushes, w.state.State)
		}
	})
}

func TestOneChangeIsSentWhenItIsQuiet(t *testing.T) {
	play(t, nil, func(w *world) {
		at := w.now()
		w.write("a/b/c", "1")
		w.pass(50 * time.Millisecond)
		w.same()
		if len(w.pushes) != 1 || !slices.Equal(w.pushes[0].files, []string{"a", "a/b", "a/b/c"}) || w.pushes[0].at-at != quiet {
			t.Errorf("%v, changed at %v", w.pushes, at)
		}
		w.remove("a")
		w.pass(50 * time.Millisecond)
		w.same()
		if len(w.pushes) != 1 || w.said("replicated 3 changes: a new, a/b new, a/b/c new") != 1 || w.said("replicated 3 changes: a removed") != 1 {
			t.Errorf("%v", w.pushes)
		}
		w.write("global.conf", "$x=1;\n") // rewritten, but the same
		w.pass(time.Second)
		if len(w.pushes) != 1 {
			t.Errorf("nothing had changed: %v", w.pushes)
		}
	})
}

func TestABurstIsFewTransfers(t *testing.T) {
	play(t, func(w *world) { w.pushTakes = 30 * time.Millisecond }, func(w *world) {
		for i := range 2000 {
			w.write(fmt.Sprintf("f%d", i), "x")
			if i%10 == 0 {
				w.pass(time.Millisecond)
			}
		}
		w.pass(time.Second)
		w.same()
		if len(w.pushes) > 4 {
			t.Errorf("%d transfers", len(w.pushes))
		}
	})
}

func TestARestlessFileIsSentNowAndThen(t *testing.T) {
	play(t, nil, func(w *world) {
		for i := range 10_000 {
			w.write("log", fmt.Sprint(i))
			w.pass(time.Millisecond)
		}
		n := len(w.pushes)
		if n < 5 || n > 25 {
			t.Errorf("%d transfers in 10 s: want about two a second", n)
		}
		w.pass(time.Second)
		w.same()
	})
}

func TestAChangeDuringItsTransferIsSentAgain(t *testing.T) {
	play(t, func(w *world) { w.pushTakes = time.Second }, func(w *world) {
		w.write("a", "1")
		w.pass(500 * time.Millisecond)
		w.write("a", "2")
		w.write("b", "2")
		w.pass(3 * time.Second)
		w.same()
		if len(w.pushes) != 2 {
			t.Errorf("%v", w.pushes)
		}
	})
}

func TestAFileBeingWrittenHoldsUpNoOther(t *testing.T) {
	play(t, nil, func(w *world) {
		f, err := os.Create(filepath.Join(w.ours, "slow"))
		w.must(err)
		defer f.Close()
		fmt.Fprint(f, "half")
		w.engine.Changed(tree.Event{Path: "slow"})
		w.write("quick", "1")
		w.pass(time.Second)
		if got := content(t, w.theirs); got["/quick"] != "1" || got["/slow"] != "" || len(got) != 2 {
			t.Errorf("%q", got)
		}
		if w.state.State != status.Waiting || w.state.Pending != 1 {
			t.Errorf("%q, %d pending", w.state.State, w.state.Pending)
		}
		w.pass(3 * time.Second)
		fmt.Fprint(f, " and whole")
		w.must(f.Close())
		w.engine.Changed(tree.Event{Path: "slow"})
		w.pass(200 * time.Millisecond)
		w.same()
		g, err := os.OpenFile(filepath.Join(w.ours, "slow"), os.O_WRONLY|os.O_APPEND, 0)
		w.must(err)
		defer g.Close()
		fmt.Fprint(g, " for ever")
		w.engine.Changed(tree.Event{Path: "slow"})
		w.pass(4 * time.Second)
		if got := content(t, w.theirs)["/slow"]; got != "half and whole" {
			t.Errorf("%q", got)
		}
		w.pass(2 * time.Second)
		w.same() // after five seconds it goes as it is
	})
}

func TestAFileThatIsWrittenAndTheSameIsNotSent(t *testing.T) {
	play(t, nil, func(w *world) {
		f, err := os.OpenFile(filepath.Join(w.ours, "global.conf"), os.O_WRONLY|os.O_TRUNC, 0)
		w.must(err)
		w.engine.Changed(tree.Event{Path: "global.conf"})
		w.pass(50 * time.Millisecond) // seen empty, and open
		fmt.Fprint(f, "$x=1;\n")
		w.must(f.Close())
		w.engine.Changed(tree.Event{Path: "global.conf"})
		w.pass(time.Second)
		w.same()
		if len(w.pushes) != 0 || w.said("replicated") != 0 || w.state.State != status.InStep {
			t.Errorf("%v, %q", w.pushes, w.state.State)
		}
		w.write("global.conf", "$x=2;\n")
		w.pass(time.Second)
		w.same()
	})
}

func TestAFailingFileWaitsAloneAndIsSaidOnce(t *testing.T) {
	play(t, nil, func(w *world) {
		w.refuse = func(path string) error {
			if path == "bad" {
				return errors.New("no space left on the peer")
			}
			return nil
		}
		w.write("bad", "1")
		at := w.now()
		w.pass(100 * time.Millisecond)
		w.write("good", "1")
		w.pass(100 * time.Millisecond)
		if content(t, w.theirs)["/good"] != "1" {
			t.Error("a file that fails holds up others")
		}
		w.pass(20 * time.Second)
		var tries []time.Duration
		for _, p := range w.pushes {
			if slices.Contains(p.files, "bad") {
				tries = append(tries, (p.at - at).Round(100*time.Millisecond))
			}
		}
		if want := []time.Duration{0, time.Second, 3 * time.Second, 7 * time.Second, 15 * time.Second}; !slices.Equal(tries, want) {
			t.Errorf("tried after %v, want %v", tries, want)
		}
		if w.said("not the same on the peer: bad: no space left on the peer") != 1 || len(w.state.Problems) != 1 || w.state.State != status.Waiting {
			t.Errorf("%v, %q", w.state.Problems, w.state.State)
		}
		if err := w.sync(); err == nil || !strings.Contains(err.Error(), "bad: no space left") {
			t.Errorf("sync: %v", err)
		}
		w.refuse = nil
		if err := w.sync(); err != nil {
			t.Errorf("sync: %v", err)
		}
		w.same()
		w.pass(time.Second)
		if len(w.state.Problems) != 0 || w.state.State != status.InStep || w.said("over: not the same") != 1 {
			t.Errorf("%v, %q", w.state.Problems, w.state.State)
		}
	})
}

func TestChangesWhileThePeerIsAwayArrive(t *testing.T) {
	play(t, nil, func(w *world) {
		w.dialError = &remote.Error{Kind: remote.Unreachable, Text: "no route to host", Remedy: "is it switched on?"}
		w.peer.lose()
		w.pass(time.Second)
		w.write("a", "1")
		w.remove("global.conf")
		w.write("global.conf", "$x=2;\n")
		w.pass(2 * time.Minute)
		if w.state.State != status.Connecting || w.state.Pending == 0 || w.state.Oldest.IsZero() || w.said("no route to host") != 1 {
			t.Errorf("%q, %d pending; said %d times", w.state.State, w.state.Pending, w.said("no route to host"))
		}
		for i := range w.dialed[2:] {
			if gap := w.dialed[i+2] - w.dialed[i+1]; gap > 7*time.Second {
				t.Errorf("%v between two attempts", gap)
			}
		}
		if err := w.flush(w.t.Context()); err == nil {
			t.Error("flushed without a peer")
		}
		w.dialError = nil
		w.engine.Poke()
		w.pass(100 * time.Millisecond)
		w.same()
		w.pass(time.Second)
		if w.state.State != status.InStep || len(w.state.Problems) != 0 {
			t.Errorf("%q %v", w.state.State, w.state.Problems)
		}
	})
}

func TestAConnectionLostInATransferIsNoLoss(t *testing.T) {
	play(t, func(w *world) { w.pushTakes = time.Second }, func(w *world) {
		w.write("a", "1")
		w.pass(500 * time.Millisecond)
		w.peer.lose()
		w.pass(10 * time.Second)
		w.same()
		if len(w.dialed) != 2 {
			t.Errorf("dialed at %v", w.dialed)
		}
	})
}

func TestWhoeverNeedsAnAdminIsAskedRarely(t *testing.T) {
	play(t, func(w *world) {
		w.dialError = &remote.Error{Kind: remote.KeyRefused, Text: "the key is refused", Remedy: "append it"}
	}, func(w *world) {
		w.pass(10 * time.Minute)
		if n := len(w.dialed); n > 20 || w.said("the key is refused; append it") != 1 {
			t.Errorf("%d attempts in ten minutes, said %d times", n, w.said("the key is refused; append it"))
		}
	})
}

func TestAMasterIsNotPushedTo(t *testing.T) {
	play(t, func(w *world) { w.hello.Role = status.Master }, func(w *world) {
		w.write("a", "1")
		w.pass(time.Minute)
		if len(w.pushes) != 0 || w.said("it says that it is master too") != 1 {
			t.Errorf("%v", w.pushes)
		}
		w.hello.Role = status.Backup
		w.pass(10 * time.Second)
		w.same()
	})
}

func TestWhatChangesOnThePeerIsRepaired(t *testing.T) {
	play(t, nil, func(w *world) {
		w.must(os.WriteFile(filepath.Join(w.theirs, "global.conf"), []byte("tampered"), 0o644))
		w.must(os.WriteFile(filepath.Join(w.theirs, "extra"), nil, 0o644))
		w.pass(5 * time.Minute)
		w.same()
		if w.said("the peer differed in 2 files, made the same again: extra removed, global.conf content") != 1 || w.said("replicated") != 0 {
			t.Error("not said as what it was")
		}
		// And what does not hold is reported by name, and does not go round and round.
		w.disturb = func() { os.WriteFile(filepath.Join(w.theirs, "a"), []byte("mine"), 0o644) }
		w.write("a", "1")
		w.write("b", "1")
		before := len(w.pushes)
		w.pass(10 * time.Second)
		if n := len(w.pushes) - before; n > 10 || content(t, w.theirs)["/b"] != "1" || w.said("not the same on the peer: a: is different on the peer after it was sent") != 1 {
			t.Errorf("%d transfers", n)
		}
	})
}

func TestAnEmptyMountPointIsNotSent(t *testing.T) {
	play(t, func(w *world) {
		w.must(os.Rename(w.ours, w.ours+".away"))
		w.must(os.Mkdir(w.ours, 0o755))
	}, func(w *world) {
		w.pass(time.Minute)
		if content(t, w.theirs)["/global.conf"] == "" || w.said("has no global.conf") != 1 {
			t.Error("the peer's files were removed, or nothing was said")
		}
		w.must(os.Remove(w.ours))
		w.must(os.Rename(w.ours+".away", w.ours))
		w.write("a", "1")
		w.pass(time.Minute)
		w.same()
		if w.state.State != status.InStep {
			t.Errorf("%q", w.state.State)
		}
	})
}

func TestWithoutEyesEverythingIsComparedOften(t *testing.T) {
	play(t, func(w *world) { w.blind = errors.New("no watches: raise fs.inotify.max_user_watches") }, func(w *world) {
		w.must(os.WriteFile(filepath.Join(w.ours, "unseen"), []byte("1"), 0o644))
		w.pass(11 * time.Second)
		w.same()
		if w.said("no watches") != 1 {
			t.Errorf("said %d times", w.said("no watches"))
		}
	})
}

func TestAPeerWithoutTheProgramGetsEverything(t *testing.T) {
	play(t, func(w *world) { w.weak = true }, func(w *world) {
		w.write("a", "1")
		w.pass(100 * time.Millisecond)
		w.same()
		if n := len(w.pushes); n != 2 || !w.pushes[1].whole || w.said("nothing tells whether both nodes have the same") != 1 || w.said("replicated 1 change") != 0 {
			t.Errorf("%v", w.pushes)
		}
		if w.state.State == status.InStep {
			t.Error("in step, though nothing was compared")
		}
		w.weak = false // upgraded
		w.pass(6 * time.Minute)
		if w.state.State != status.InStep {
			t.Errorf("%q", w.state.State)
		}
	})
}

func TestFlushWaitsForWhatWasSeen(t *testing.T) {
	play(t, func(w *world) { w.pushTakes = 300 * time.Millisecond }, func(w *world) {
		at := w.now()
		w.must(w.flush(w.t.Context()))
		if w.now() != at {
			t.Errorf("nothing to do took %v", w.now()-at)
		}
		w.write("a", "1")
		w.must(w.flush(w.t.Context()))
		w.same()
		if took := w.now() - at; took > 400*time.Millisecond {
			t.Errorf("took %v", took)
		}
		ctx, cancel := context.WithTimeout(w.t.Context(), 100*time.Millisecond)
		defer cancel()
		w.write("a", "2")
		if err := w.flush(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
	})
}

func TestABrokenRoundIsTriedAgain(t *testing.T) {
	play(t, nil, func(w *world) {
		w.roundError = errors.New("something odd")
		w.write("a", "1")
		w.pass(20 * time.Second)
		if w.said("replication to peer failed: something odd") != 1 {
			t.Errorf("said %d times", w.said("something odd"))
		}
		w.roundError = nil
		w.pass(20 * time.Second)
		w.same()
		if w.state.State != status.InStep || len(w.state.Problems) != 0 {
			t.Errorf("%q %v", w.state.State, w.state.Problems)
		}
	})
}

func TestComparisonsAreNotPutOffByChanges(t *testing.T) {
	play(t, nil, func(w *world) {
		w.must(os.WriteFile(filepath.Join(w.ours, "missed"), []byte("1"), 0o644)) // without an event
		for i := range 6 {
			w.write("busy", fmt.Sprint(i))
			w.pass(time.Minute)
		}
		if content(t, w.theirs)["/missed"] != "1" {
			t.Error("not compared within $verify_interval")
		}
	})
}

func TestSyncWaitsForAFileBeingWritten(t *testing.T) {
	play(t, nil, func(w *world) {
		f, err := os.Create(filepath.Join(w.ours, "slow"))
		w.must(err)
		fmt.Fprint(f, "half")
		w.engine.Changed(tree.Event{Path: "slow"})
		answer := make(chan error, 1)
		go func() { answer <- w.engine.Sync(w.t.Context(), false, func(string) {}) }()
		w.pass(time.Second)
		select {
		case err := <-answer:
			t.Errorf("in step with a file that was not sent: %v", err)
		default:
		}
		fmt.Fprint(f, " and whole")
		w.must(f.Close())
		w.engine.Changed(tree.Event{Path: "slow"})
		w.pass(time.Second)
		select {
		case err := <-answer:
			w.must(err)
		default:
			t.Error("no answer")
		}
		w.same()
	})
}

func TestWhatIsBelowAnUncomparedDirectoryIsNotCalledReplicated(t *testing.T) {
	play(t, nil, func(w *world) {
		w.refuse = func(path string) error { return map[string]error{"d": errors.New("operation not permitted")}[path] }
		w.must(os.Mkdir(filepath.Join(w.ours, "d"), 0o700))
		w.engine.Changed(tree.Event{Path: "d"})
		w.pass(100 * time.Millisecond)
		w.refuse = func(string) error { return errors.New("operation not permitted") }
		w.write("d/x", "1")
		w.pass(100 * time.Millisecond)
		if w.said("replicated") != 0 {
			t.Error("said to be replicated")
		}
		w.refuse = nil
		w.pass(2 * time.Minute)
		w.same()
	})
}

// A path that is too long can neither be sent nor stay in the way when it is gone, whichever name the watcher saw last.
func TestTooLongAPathGoes(t *testing.T) {
	play(t, nil, func(w *world) {
		name := strings.Repeat("x", 199)
		long := strings.Repeat(name+"/", 22) + name
		at, err := unix.Open(w.ours, unix.O_PATH, 0)
		w.must(err)
		for range strings.Split(long, "/") {
			w.must(unix.Mkdirat(at, name, 0o755))
			next, err := unix.Openat(at, name, unix.O_PATH, 0)
			unix.Close(at)
			at = next
			w.must(err)
		}
		unix.Close(at)
		for _, path := range []string{name, long} {
			w.engine.Changed(tree.Event{Path: path})
			w.pass(time.Second)
		}
		if w.state.State != status.Waiting || w.said("too long") == 0 {
			t.Errorf("%s with too long a path", w.state.State)
		}
		w.pass(20 * time.Second) // until it is tried rarely: not in the round of the removal
		w.remove(name)
		w.pass(2 * retryMax)
		if w.state.State != status.InStep || len(w.state.Problems) > 0 || w.said("replication to peer failed") > 0 {
			t.Errorf("%s, %v after it went", w.state.State, w.state.Problems)
		}
		w.same()
	})
}
