package peer

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/archive"
	"github.com/skudonet/skudonet-ce-cluster/lib/ledger"
	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
	"github.com/skudonet/skudonet-ce-cluster/lib/vector"
)

const (
	someID  = vector.ID("0123456789abcdef0123456789abcdef")
	someSet = "all files"
)

// fetching are the words of an rsync that fetches.
var fetching = []string{"peer", "rsync", "--server", "--sender", "-r", ".", "./"}

// stateNames lists the backup's state directory.
func stateNames(t *testing.T, dir string) (list []string) {
	t.Helper()
	entries, err := os.ReadDir(hostIn(dir).StateDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

// pair is a master, which has a tree and counts, and the backup that it talks to.
type pair struct {
	*backup
	*served
	t     *testing.T
	src   string
	count uint64
}

// newPair has both nodes hold the same files, which the backup's record says.
func newPair(t *testing.T, files map[string]string) *pair {
	t.Helper()
	p := strangers(t, files, files)
	p.open()
	p.compare()
	p.committed()
	return p
}

// strangers have never met.
func strangers(t *testing.T, ours, theirs map[string]string) *pair {
	t.Helper()
	p := &pair{backup: newBackup(t), t: t}
	p.src = p.source(ours)
	for name, text := range theirs {
		p.backup.write(name, text)
	}
	return p
}

func (p *pair) open() {
	p.t.Helper()
	p.end()
	p.served = p.backup.open("")
}

// end ends the session, if there is one.
func (p *pair) end() {
	p.t.Helper()
	if p.served != nil {
		p.served.Close()
		if err := <-p.ended; err != nil {
			p.t.Error(err)
		}
		p.served = nil
	}
}

// change changes a file of the master.
func (p *pair) change(files map[string]string) {
	p.t.Helper()
	for name, text := range files {
		p.write(filepath.Join(p.src, name), text)
	}
}

func (p *pair) compare() RootDigest {
	p.t.Helper()
	a, err := p.Digest(p.t.Context(), DigestRequest{Roots: []Look{{Root: ConfigRoot, Full: true}}, Set: someSet})
	must(p.t, err)
	return a.Roots[0]
}

func keepAs(reason string) *Keeping { return &Keeping{Reason: reason, Peer: "192.0.2.1"} }

// push sends files; the backup looks at them.
func (p *pair) push(k *Keeping, paths ...string) *transfer {
	p.t.Helper()
	k.Paths = names(paths...)
	x := p.carry(p.t.Context(), p.t, ConfigRoot, p.src, strings.Join(paths, "\x00"), RsyncOptions{Keep: k}, "--ignore-times")
	x.wait(p.t)
	return x
}

func (p *pair) pushed(k *Keeping, paths ...string) {
	p.t.Helper()
	if x := p.push(k, paths...); x.err != nil || x.exit != 0 || x.local != nil {
		p.t.Fatalf("exit %d, %v, %v, %s", x.exit, x.err, x.local, &x.stderr)
	}
}

func (p *pair) remove(k *Keeping, paths ...string) error {
	for _, path := range paths {
		os.Remove(filepath.Join(p.src, path))
	}
	_, err := p.Digest(p.t.Context(), DigestRequest{Roots: []Look{{Root: ConfigRoot, Remove: removals(manifest.File, paths...), Keep: k}}, Set: someSet})
	return err
}

// commit tells the backup what the master has, by a vector that has grown by one.
func (p *pair) commit() (DigestAnswer, error) {
	p.count++
	return p.Digest(p.t.Context(), DigestRequest{Roots: []Look{{Root: ConfigRoot, Full: true}, {Root: RTTablesRoot}}, Set: someSet, Commit: &Commit{
		Vector: vector.Vector{someID: p.count}, Digests: map[string]manifest.Digest{ConfigRoot: local(p.t, p.src, "").Digest()}, Set: someSet}})
}

func (p *pair) committed() {
	p.t.Helper()
	a, err := p.commit()
	must(p.t, err)
	if !a.Committed || a.NotCommitted != "" || a.Roots[0].Touched {
		p.t.Fatalf("%+v", a)
	}
}

// archived is what the backup's archives hold of files and links: "path=content" and
// "path->target", sorted.
func (b *backup) archived() (list []string) {
	b.t.Helper()
	store, err := archive.Open(hostIn(b.dir).StateDir)
	must(b.t, err)
	infos, err := store.List()
	must(b.t, err)
	for _, i := range infos {
		dir, m, err := store.Tree(i, ConfigRoot)
		must(b.t, err)
		for e := range m.All() {
			switch e.Kind {
			case manifest.File:
				text, err := os.ReadFile(filepath.Join(dir, e.Path))
				must(b.t, err)
				list = append(list, e.Path+"="+string(text))
			case manifest.Link:
				list = append(list, e.Path+"->"+e.Target)
			}
		}
	}
	slices.Sort(list)
	return list
}

func (b *backup) wantArchived(want ...string) {
	b.t.Helper()
	if got := b.archived(); !slices.Equal(got, want) {
		b.t.Errorf("archived: %q, want %q", got, want)
	}
}

func (b *backup) record() (r ledger.Record) {
	b.t.Helper()
	text, err := os.ReadFile(filepath.Join(hostIn(b.dir).StateDir, ledger.Name))
	must(b.t, err)
	must(b.t, json.Unmarshal(text, &r))
	return r
}

func TestWhatTheRecordAccountsForIsNotArchived(t *testing.T) {
	p := newPair(t, map[string]string{"a": "1", "b": "1", "d/c": "1"})
	p.change(map[string]string{"a": "2", "new": "1"})
	p.pushed(keepAs(archive.Repair), "a", "new")
	must(t, p.remove(keepAs(archive.Repair), "b"))
	p.change(map[string]string{"a": "3"})
	p.pushed(keepAs(archive.Repair), "a") // before the record says anything about 2
	p.committed()
	p.open()
	if d := p.compare(); d.Touched {
		t.Error("touched, says the next session")
	}
	p.change(map[string]string{"d/c": "2"})
	p.pushed(keepAs(archive.Repair), "d/c")
	p.committed()
	p.wantArchived()
}

func TestTouchedFileIsArchivedBeforeItIsReplaced(t *testing.T) {
	for name, notice := range map[string]func(p *pair){
		"nobody has noticed":      func(*pair) {},
		"noticed by a comparison": func(p *pair) { p.compare() },
		"noticed by a look":       func(p *pair) { p.digest(p.t, Look{Paths: names("a", "gone")}) },
		"before the session": func(p *pair) {
			p.open()
			p.compare()
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, map[string]string{"a": "1", "gone": "1", "b": "1"})
			p.write("a", "touched")
			p.write("gone", "touched too")
			notice(p)
			k := keepAs(archive.Repair)
			k.Ours, k.Theirs = vector.Vector{someID: 1}, vector.Vector{someID: 2}
			p.pushed(k, "a")
			must(t, p.remove(k, "gone"))
			p.wantArchived("a=touched", "gone=touched too")
			p.committed()
			p.pushed(k, "a")
			p.wantArchived("a=touched", "gone=touched too")
			store, err := archive.Open(hostIn(p.dir).StateDir)
			must(t, err)
			list, err := store.List()
			must(t, err)
			i := list[0]
			if i.Reason != archive.Repair || i.Peer != "192.0.2.1" || i.Holds != archive.Ours || i.Whole || i.Waiting || !maps.Equal(i.Ours, k.Ours) || !maps.Equal(i.Theirs, k.Theirs) {
				t.Errorf("%+v", i)
			}
		})
	}
}

func TestTouchedFileIsNotForgotten(t *testing.T) {
	for name, again := range map[string]func(p *pair){
		"in this session": func(*pair) {},
		"in the next one": func(p *pair) {
			p.open()
			p.compare()
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, map[string]string{"a": "1", "b": "1"})
			p.write("a", "touched")
			if d := p.compare(); !d.Touched {
				t.Error("not touched, says the comparison")
			}
			p.change(map[string]string{"b": "2"})
			p.pushed(keepAs(archive.Repair), "b")
			if d := p.compare(); !d.Touched {
				t.Error("not touched any more")
			}
			p.wantArchived()
			again(p)
			p.change(map[string]string{"b": "3"})
			p.pushed(keepAs(archive.Repair), "b")
			p.wantArchived()
			p.pushed(keepAs(archive.Repair), "a")
			p.wantArchived("a=touched")
			p.committed()
		})
	}
}

// What was pushed, but not recorded, is known to the next session as it was left.
func TestTouchedBetweenSessions(t *testing.T) {
	p := newPair(t, map[string]string{"a": "1", "b": "1"})
	p.change(map[string]string{"a": "2"})
	p.pushed(keepAs(archive.Repair), "a")
	p.compare() // and no commit
	p.open()
	if d := p.compare(); d.Touched {
		t.Error("what was pushed counts as touched")
	}
	p.end()
	p.write("a", "touched")
	p.open()
	if d := p.compare(); !d.Touched {
		t.Error("not touched")
	}
	p.pushed(keepAs(archive.Repair), "a")
	p.wantArchived("a=touched")
}

// interrupt pushes a file and half of another one, and kills the backup's program.
func (p *pair) interrupt() {
	p.t.Helper()
	p.end()
	cmd, s := p.openProcess()
	p.served = s
	p.compare()
	p.change(map[string]string{"a": "2", "dir/new": "1", "dir/zlong": strings.Repeat("0123456789abcdef", 400_000)})
	k := keepAs(archive.Repair)
	k.Paths = names("a", "dir/new", "dir/zlong")
	x := p.carry(p.t.Context(), p.t, ConfigRoot, p.src, "a\x00dir/new\x00dir/zlong", RsyncOptions{Keep: k}, "--bwlimit=20", "--whole-file", "--ignore-times")
	until(p.t, "the second file", func() bool {
		list, _ := os.ReadDir(p.root(p.t, ConfigRoot).Temp)
		return p.exists("dir/new") && len(list) > 0
	})
	must(p.t, cmd.Process.Kill())
	x.wait(p.t)
	cmd.Wait()
	p.served = p.backup.open("")
}

func TestInterruptedPush(t *testing.T) {
	t.Parallel()
	p := newPair(t, map[string]string{"a": "1", "dir/zlong": "short", "other": "1"})
	p.interrupt()
	if d := p.compare(); d.Touched {
		t.Error("touched")
	}
	if a, err := p.commit(); err != nil || a.Committed || !strings.Contains(a.NotCommitted, "not what the master has") {
		t.Errorf("half a push is committed: %+v, %v", a, err)
	}
	if v := p.record().Vector; v[someID] != 1 {
		t.Errorf("the record says %v", v)
	}
	p.pushed(keepAs(archive.Repair), "a", "dir/new", "dir/zlong", "other")
	p.wantArchived()
	p.committed()
}

func TestInterruptedPushAndATouchedFile(t *testing.T) {
	t.Parallel()
	p := newPair(t, map[string]string{"a": "1", "dir/zlong": "short", "other": "1"})
	p.interrupt()
	p.write("other", "touched")
	if d := p.compare(); !d.Touched {
		t.Error("not touched")
	}
	p.pushed(keepAs(archive.Repair), "other")
	p.wantArchived("other=touched")
}

func TestInterruptedPushBesideAKnownTouchedFile(t *testing.T) {
	t.Parallel()
	p := newPair(t, map[string]string{"a": "1", "dir/zlong": "short", "other": "1", "dir/x": "1"})
	p.write("other", "touched")
	p.compare()
	p.interrupt()
	if d := p.compare(); !d.Touched {
		t.Error("not touched")
	}
	p.pushed(keepAs(archive.Repair), "a", "dir/new", "dir/zlong")
	p.wantArchived()
	p.pushed(keepAs(archive.Repair), "other")
	p.wantArchived("other=touched")
	p.committed()
}

// A note of what was pushed before must not excuse what happened later.
func TestNoteOfAnOldPushExcusesNothing(t *testing.T) {
	p := newPair(t, map[string]string{"a": "1", "b": "1"})
	p.change(map[string]string{"a": "2"})
	p.pushed(keepAs(archive.Repair), "a")
	note := intentFile(hostIn(p.dir).StateDir, ConfigRoot)
	text, err := os.ReadFile(note)
	must(t, err)
	p.committed()
	if now, err := os.ReadFile(note); err != nil || len(now) > 1 {
		t.Errorf("the note after the commit: %q, %v", now, err)
	}
	p.end()
	must(t, os.WriteFile(note, text, 0o600)) // as if the disk had not heard of its end
	p.write("a", "touched")
	p.open()
	if d := p.compare(); !d.Touched {
		t.Error("not touched")
	}
	p.pushed(keepAs(archive.Repair), "a")
	p.wantArchived("a=touched")
}

func TestDamagedNote(t *testing.T) {
	for name, damage := range map[string]func(text []byte) []byte{
		"empty":   func([]byte) []byte { return nil },
		"a part":  func(text []byte) []byte { return text[:len(text)-1] },
		"a bit":   func(text []byte) []byte { text[len(text)/2] ^= 1; return text },
		"a tail":  func(text []byte) []byte { return append(text, "}"...) },
		"no JSON": func([]byte) []byte { return sealed([]byte("{")) },
		"a list":  func([]byte) []byte { return sealed([]byte("[]")) },
		"nothing": func([]byte) []byte { return sealed([]byte("{}")) },
	} {
		p := newPair(t, map[string]string{"a": "1"})
		p.change(map[string]string{"a": "2"})
		p.pushed(keepAs(archive.Repair), "a")
		p.end()
		note := intentFile(hostIn(p.dir).StateDir, ConfigRoot)
		text, err := os.ReadFile(note)
		must(t, err)
		must(t, os.WriteFile(note, damage(text), 0o600))
		p.open()
		if d := p.compare(); !d.Touched {
			t.Errorf("%s: not touched", name)
		}
	}
}

func TestFirstContact(t *testing.T) {
	p := strangers(t, map[string]string{"a": "ours", "b": "ours", "new": "ours"}, map[string]string{"a": "theirs", "b": "ours", "gone": "theirs", "d/e": "theirs"})
	p.open()
	p.compare()
	k := keepAs(archive.FirstContact)
	p.pushed(k, "a", "new")
	must(t, p.remove(k, "gone", "d/e"))
	p.wantArchived("a=theirs", "d/e=theirs", "gone=theirs")
	p.pushed(k, "a", "new") // they are ours by now
	p.wantArchived("a=theirs", "d/e=theirs", "gone=theirs")
	p.remove(k, "d")
	p.digest(t, Look{Remove: removals(manifest.Dir, "d")})
	p.committed()
	p.change(map[string]string{"b": "2"})
	p.pushed(k, "b")
	p.wantArchived("a=theirs", "d/e=theirs", "gone=theirs")
}

// A record for other files than both nodes look at says nothing about these.
func TestAnotherSet(t *testing.T) {
	p := newPair(t, map[string]string{"a": "1"})
	p.open()
	a, err := p.Digest(t.Context(), DigestRequest{Roots: []Look{{Root: ConfigRoot, Full: true}}, Set: "others"})
	must(t, err)
	if !a.Roots[0].Touched {
		t.Error("not touched")
	}
	p.change(map[string]string{"a": "2"})
	p.pushed(keepAs(archive.Repair), "a")
	p.wantArchived("a=1")
}

func TestKeepAll(t *testing.T) {
	p := newPair(t, map[string]string{"a": "1", "b": "1", "c": "1"})
	k := keepAs(archive.Conflict)
	k.All = true
	p.change(map[string]string{"a": "2", "new-here": "1"})
	p.pushed(k, "a", "new-here", "c")
	must(t, p.remove(k, "b"))
	p.wantArchived("a=1", "b=1", "c=1")
}

func TestWithoutKeepNothingIsArchived(t *testing.T) {
	p := strangers(t, map[string]string{"a": "2"}, map[string]string{"a": "1", "b": "1"})
	p.open()
	p.carry(t.Context(), t, ConfigRoot, p.src, "a", RsyncOptions{}, "--ignore-times").wait(t)
	must(t, p.remove(nil, "b"))
	p.wantArchived()
	p.committed()
}

func TestArchiveImpossible(t *testing.T) {
	p := newPair(t, map[string]string{"a": "1", "gone": "1"})
	dir := filepath.Join(hostIn(p.dir).StateDir, archive.Dir)
	must(t, unix.Mount("none", dir, "tmpfs", 0, "size=64k"))
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	big := strings.Repeat("touched ", 40<<10)
	p.write("a", big)
	p.write("gone", big)
	p.change(map[string]string{"a": "2"})
	x := p.push(keepAs(archive.Repair), "a")
	if x.err == nil || errors.Is(x.err, ErrClosed) || errors.Is(x.err, ErrMaster) || !strings.Contains(x.err.Error(), "make room") || !strings.Contains(x.err.Error(), "nothing was changed") {
		t.Errorf("%v", x.err)
	}
	if err := p.remove(keepAs(archive.Repair), "gone"); err == nil || !strings.Contains(err.Error(), "make room") {
		t.Errorf("remove: %v", err)
	}
	for _, path := range []string{"a", "gone"} {
		if text, err := os.ReadFile(filepath.Join(p.tree, path)); err != nil || string(text) != big {
			t.Errorf("%s is now %d bytes, %v", path, len(text), err)
		}
	}
	if list, _ := os.ReadDir(dir); len(list) > 0 {
		t.Errorf("left behind: %v", list)
	}
	must(t, unix.Mount("none", dir, "", unix.MS_REMOUNT, "size=8m"))
	p.pushed(keepAs(archive.Repair), "a")
	must(t, p.remove(keepAs(archive.Repair), "gone"))
	p.wantArchived("a="+big, "gone="+big)
	p.committed()
}

// A full disk in the state directory costs the note, not the push.
func TestNoteImpossible(t *testing.T) {
	p := newPair(t, map[string]string{"a": "1"})
	note := intentFile(hostIn(p.dir).StateDir, ConfigRoot)
	must(t, unix.Mkfifo(note, 0o600))
	p.change(map[string]string{"a": "2"})
	p.pushed(keepAs(archive.Repair), "a")
	must(t, os.Remove(note))
	p.committed()
	p.wantArchived()
}

func TestManyPathsToRsync(t *testing.T) {
	t.Parallel()
	files := map[string]string{}
	var paths []string
	for i := range 2000 {
		paths = append(paths, fmt.Sprintf("d%d/%s\xff%d", i%10, strings.Repeat("n", 100), i))
		files[paths[i]] = "1"
	}
	p := newPair(t, files)
	p.write(paths[7], "touched")
	for _, path := range paths {
		files[path] = "2"
	}
	p.change(files)
	p.pushed(keepAs(archive.Repair), paths...)
	p.wantArchived(paths[7] + "=touched")
	p.committed()
}

func TestPathsToRsyncRefused(t *testing.T) {
	p := newPair(t, map[string]string{"a": "1"})
	for _, bad := range []string{"../x", "/etc/passwd", "", "a//b"} {
		k := keepAs(archive.Repair)
		k.Paths = names("a", bad)
		_, err := p.Rsync(t.Context(), ConfigRoot, server, RsyncOptions{Keep: k}, strings.NewReader(""), io.Discard, nil)
		if err == nil || errors.Is(err, ErrClosed) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := p.Role(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := p.Rsync(t.Context(), ConfigRoot, server, RsyncOptions{Keep: keepAs(archive.Repair)}, strings.NewReader(""), io.Discard, nil); err == nil || !strings.Contains(err.Error(), "no path") {
		t.Errorf("no path at all: %v", err)
	}
	k := keepAs("no such reason")
	k.All, k.Paths = true, names("a")
	if _, err := p.Rsync(t.Context(), ConfigRoot, server, RsyncOptions{Keep: k}, strings.NewReader(""), io.Discard, nil); err == nil || !strings.Contains(err.Error(), "no such reason") {
		t.Errorf("reason: %v", err)
	}
}

// The names are many, and the master gives up before the last of them.
func TestCancelBeforeRsyncBegins(t *testing.T) {
	b := newBackup(t)
	s := b.open("")
	k, err := s.begin(t.Context(), frameRsync, rsyncRequest{Root: ConfigRoot, Args: names(server...), Keep: keepAs(archive.Repair), Names: 100}, nil)
	must(t, err)
	s.sender.send(frame{frameNames, []byte("a\x00")})
	s.sender.send(frame{kind: frameCancel})
	f, err := s.wait(t.Context(), k)
	s.finish()
	if err != nil || !strings.Contains(string(f.body), "137") {
		t.Errorf("%s, %v", f.body, err)
	}
	if role, err := s.Role(t.Context()); err != nil || role != status.Backup {
		t.Errorf("after it: %q, %v", role, err)
	}
	if _, err := s.Rsync(t.Context(), ConfigRoot, server, RsyncOptions{}, strings.NewReader(""), io.Discard, nil); err != nil {
		t.Error(err)
	}
}

func TestFetch(t *testing.T) {
	b := newBackup(t)
	b.write("d/a", "theirs")
	b.write("b", "not asked for")
	must(t, os.Symlink("a", filepath.Join(b.tree, "d/l")))
	s := b.open("")
	must(t, status.Write(hostIn(b.dir).StatusFile, status.Master))
	to := t.TempDir()
	x := s.carry(t.Context(), t, ConfigRoot, to, "d/a\x00d/l", RsyncOptions{Fetch: true})
	x.wait(t)
	if x.err != nil || x.exit != 0 || x.local != nil {
		t.Fatalf("exit %d, %v, %v, %s", x.exit, x.err, x.local, &x.stderr)
	}
	text, err := os.ReadFile(filepath.Join(to, "d/l"))
	if _, missing := os.Lstat(filepath.Join(to, "b")); err != nil || string(text) != "theirs" || missing == nil {
		t.Errorf("%q, %v, %v", text, err, missing)
	}
	for _, c := range []struct {
		fetch bool
		args  []string
	}{{true, server}, {false, fetching}, {true, slices.Insert(slices.Clone(fetching), 4, "--remove-source-files")}, {true, slices.Insert(slices.Clone(fetching), 3, "-r")},
		{true, append(slices.Clone(fetching[:6]), "/etc")}, {true, slices.Insert(slices.Clone(fetching), 4, "--sender")}} {
		_, err := s.Rsync(t.Context(), ConfigRoot, c.args, RsyncOptions{Fetch: c.fetch}, strings.NewReader(""), io.Discard, nil)
		var refusal *Error
		if !errors.As(err, &refusal) || refusal.Kind != kindRefused {
			t.Errorf("%v %q: %v", c.fetch, c.args, err)
		}
	}
	if !b.exists("d/a") {
		t.Error("what was fetched is gone")
	}
}

// steps is this test as a program that can be killed at a step.
var steps struct {
	once sync.Once
	dir  string
	err  error
}

func withSteps(t *testing.T) string {
	t.Helper()
	steps.once.Do(func() {
		if steps.dir, steps.err = os.MkdirTemp("", "peer"); steps.err != nil {
			return
		}
		if out, err := exec.Command("go", "test", "-c", "-tags", "steps", "-o", filepath.Join(steps.dir, "program"), ".").CombinedOutput(); err != nil {
			steps.err = fmt.Errorf("%w: %s", err, out)
		}
	})
	must(t, steps.err)
	return filepath.Join(steps.dir, "program")
}

func TestKilledAtEachStep(t *testing.T) {
	t.Parallel()
	program := withSteps(t)
	for _, at := range []string{"peer.archived", "peer.intent", "peer.intent:2", "peer.rsync.started", "peer.rsync.ended", "peer.sifted", "peer.removing", "peer.removed", "peer.sifted:2", "peer.looked:2", "peer.looked:3",
		"peer.commit.synced", "peer.commit.forgotten", "peer.commit.stored", "peer.commit.resolved"} {
		t.Run(at, func(t *testing.T) {
			before := map[string]string{"a": "1", "b": "1", "gone": "1", "gone-too": "1", "touched": "1"}
			p := newPair(t, before)
			p.end()
			p.write("touched", "by an admin")
			p.change(map[string]string{"a": "2", "b": "2", "new": "2"})
			p.round(program, at)
			// No admin's file is lost, and no vector stands for what is not there.
			p.wantSafe()
			if _, err := p.round(program, ""); err != nil {
				t.Fatalf("the next round: %v", err)
			}
			// Killed when the archive was there, and nothing else, it is made once more.
			if got := slices.Compact(p.archived()); !slices.Equal(got, []string{"touched=by an admin"}) {
				t.Errorf("archived: %q", got)
			}
			r := p.record()
			if d := local(t, p.tree, "").Digest(); r.Vector[someID] != 2 || !r.Holds(ConfigRoot, ledger.Tree{Digest: d, Set: someSet}) || d != local(t, p.src, "").Digest() {
				t.Errorf("%+v", r)
			}
		})
	}
}

// round is what a master does with a backup that is killed at a step.
func (p *pair) round(program, at string) (DigestAnswer, error) {
	p.t.Helper()
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), "PEER_TEST=serve", "PEER_TEST_DIR="+p.dir, "SKD_STEP="+at)
	in, err := cmd.StdinPipe()
	must(p.t, err)
	out, err := cmd.StdoutPipe()
	must(p.t, err)
	must(p.t, cmd.Start())
	defer cmd.Wait()
	defer cmd.Process.Kill()
	c, hello, err := Open(p.t.Context(), out, in, "")
	must(p.t, err)
	defer c.Close()
	p.served = &served{Client: c, hello: hello}
	p.count = 1
	if _, err := p.Digest(p.t.Context(), DigestRequest{Roots: []Look{{Root: ConfigRoot, Full: true}}, Set: someSet}); err != nil {
		return DigestAnswer{}, err
	}
	if x := p.push(keepAs(archive.Repair), "a", "b", "new", "touched"); x.err != nil {
		return DigestAnswer{}, x.err
	}
	if err := p.remove(keepAs(archive.Repair), "gone", "gone-too"); err != nil {
		return DigestAnswer{}, err
	}
	a, err := p.commit()
	if err == nil && !a.Committed {
		err = errors.New(a.NotCommitted)
	}
	return a, err
}

func (p *pair) wantSafe() {
	p.t.Helper()
	text, _ := os.ReadFile(filepath.Join(p.tree, "touched"))
	if string(text) != "by an admin" && !slices.Contains(p.archived(), "touched=by an admin") {
		p.t.Errorf("the admin's file is lost: it is %q, archived are %q", text, p.archived())
	}
	r := p.record()
	if r.Vector[someID] == 2 && !r.Holds(ConfigRoot, ledger.Tree{Digest: local(p.t, p.tree, "").Digest(), Set: someSet}) {
		p.t.Error("the record claims what the tree does not hold")
	}
}
