package peer

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/archive"
	"github.com/skudonet/skudonet-ce-cluster/lib/fileset"
	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"github.com/skudonet/skudonet-ce-cluster/lib/scan"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
)

// patiently has the writers of what is replaced waited for, however slow the machine is.
func patiently(t *testing.T) {
	was := writersLimit
	writersLimit = 20 * time.Second
	t.Cleanup(func() { writersLimit = was })
}

// held is a file of the backup that an admin has open for writing.
func (p *pair) held(path string, flags int) *os.File {
	p.t.Helper()
	f, err := os.OpenFile(filepath.Join(p.tree, path), os.O_WRONLY|flags, 0)
	must(p.t, err)
	p.t.Cleanup(func() { f.Close() })
	return f
}

// onceReplaced calls f when path of the backup is another file, or none.
func (p *pair) onceReplaced(path string, f func()) (done <-chan struct{}) {
	was, err := os.Lstat(filepath.Join(p.tree, path))
	must(p.t, err)
	c := make(chan struct{})
	go func() {
		defer close(c)
		for range 4000 {
			if now, err := os.Lstat(filepath.Join(p.tree, path)); err != nil || !os.SameFile(was, now) {
				break
			}
			time.Sleep(5 * time.Millisecond)
		}
		f()
	}()
	return c
}

// replace has the master replace or remove a file of the backup.
func (p *pair) replace(how, path string) error {
	if how == "removed" {
		return p.remove(keepAs(archive.Repair), path)
	}
	p.change(map[string]string{path: "2"})
	x := p.push(keepAs(archive.Repair), path)
	if x.err == nil && (x.exit != 0 || x.local != nil) {
		return fmt.Errorf("exit %d, %v, %s", x.exit, x.local, &x.stderr)
	}
	return x.err
}

func (p *pair) wantNothingLeft() {
	p.t.Helper()
	noTemp(p.t, filepath.Join(p.dir, "tree/.skudonet-ce-cluster.tmp"))
}

func TestWrittenWhileItIsReplaced(t *testing.T) {
	patiently(t)
	for _, how := range []string{"replaced", "removed"} {
		t.Run(how, func(t *testing.T) {
			const path = "d/e \xff\n/a"
			p := newPair(t, map[string]string{path: "1", "other": "1"})
			// The master accounts for what is there until then.
			f := p.held(path, 0)
			done := p.onceReplaced(path, func() { f.WriteString("late"); f.Close() })
			must(t, p.replace(how, path))
			wait(t, done)
			p.wantArchived(path + "=late")
			p.committed()
			p.wantNothingLeft()
		})
		t.Run(how+", nothing written", func(t *testing.T) {
			p := newPair(t, map[string]string{"d/a": "1", "other": "1"})
			f := p.held("d/a", 0)
			done := p.onceReplaced("d/a", func() { f.Close() })
			must(t, p.replace(how, "d/a"))
			wait(t, done)
			p.wantArchived()
			p.committed()
		})
		t.Run(how+", half of it archived", func(t *testing.T) {
			p := newPair(t, map[string]string{"a": "1", "other": "1"})
			f := p.held("a", os.O_TRUNC)
			f.WriteString("half")
			done := p.onceReplaced("a", func() { f.WriteString(" and half"); f.Close() })
			must(t, p.replace(how, "a"))
			wait(t, done)
			p.wantArchived("a=half", "a=half and half")
			p.committed()
		})
	}
}

// Whoever never closes the file holds nobody up.
func TestWriterThatStays(t *testing.T) {
	p := newPair(t, map[string]string{"a": "1", "b": "1"})
	f := p.held("a", os.O_TRUNC)
	f.WriteString("so far")
	must(t, p.replace("removed", "a"))
	p.wantArchived("a=so far")
	p.committed()
}

func TestReplacedAndNoRoomForTheArchive(t *testing.T) {
	patiently(t)
	for _, how := range []string{"replaced", "removed"} {
		for _, when := range []string{"in this session", "in the next one"} {
			t.Run(how+", room "+when, func(t *testing.T) {
				p := newPair(t, map[string]string{"a": "1", "b": "1", "c": "1"})
				dir := filepath.Join(hostIn(p.dir).StateDir, archive.Dir)
				must(t, unix.Mount("none", dir, "tmpfs", 0, "size=64k"))
				t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
				big := strings.Repeat("late ", 40<<10)
				f := p.held("a", 0)
				done := p.onceReplaced("a", func() { f.WriteString(big); f.Close() })
				err := p.replace(how, "a")
				wait(t, done)
				aside := filepath.Join(p.root(t, ConfigRoot).Temp, "replaced")
				if err == nil || !strings.Contains(err.Error(), "make room") || !strings.Contains(err.Error(), aside) {
					t.Errorf("%v", err)
				}
				if err := p.replace("replaced", "b"); err == nil || !strings.Contains(err.Error(), "make room") {
					t.Errorf("the next request: %v", err)
				}
				p.end()
				if text, err := os.ReadFile(filepath.Join(aside, "a")); err != nil || string(text) != big {
					t.Errorf("%d bytes, %v", len(text), err)
				}
				if when == "in this session" {
					p.open()
				}
				must(t, unix.Mount("none", dir, "", unix.MS_REMOUNT, "size=8m"))
				if when == "in the next one" {
					p.open()
				} else {
					p.compare()
					must(t, p.replace("replaced", "b"))
				}
				p.wantArchived("a=" + big)
				p.wantNothingLeft()
			})
		}
	}
}

// stopped starts the backup's program, which stops at a step, has a master do something with
// it, and calls then as soon as it has stopped. Then returns whether the program goes on.
func (p *pair) stopped(at string, do func() error, then func() bool) error {
	p.t.Helper()
	p.end()
	cmd := exec.Command(withSteps(p.t))
	cmd.Env = append(os.Environ(), "PEER_TEST=serve", "PEER_TEST_DIR="+p.dir, "SKD_STOP="+at)
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
	defer func() { p.served = nil }()
	p.compare()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 4000 {
			stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", cmd.Process.Pid))
			if err != nil {
				break
			}
			if _, state, _ := bytes.Cut(stat, []byte(") ")); state[0] == 'T' {
				if !then() {
					cmd.Process.Kill()
				}
				cmd.Process.Signal(unix.SIGCONT)
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
		p.t.Errorf("does not stop at %s", at)
	}()
	err = do()
	wait(p.t, done)
	return err
}

func TestChangedInTheMomentOfItsReplacement(t *testing.T) {
	for _, c := range []struct{ how, at string }{{"replaced", "peer.intent"}, {"replaced", "peer.rsync.started"}, {"removed", "peer.intent"}} {
		for name, edit := range map[string]func(p *pair, path string){
			"in place": func(p *pair, path string) { must(p.t, os.WriteFile(path, []byte("edited"), 0o600)) },
			"in place, as long and as old as before": func(p *pair, path string) {
				info, err := os.Lstat(path)
				must(p.t, err)
				must(p.t, os.WriteFile(path, []byte("edited"), 0o600))
				must(p.t, os.Chtimes(path, info.ModTime(), info.ModTime()))
			},
			"by an editor": func(p *pair, path string) {
				must(p.t, os.WriteFile(path+"~", []byte("edited"), 0o600))
				must(p.t, os.Rename(path+"~", path))
			},
		} {
			t.Run(c.how+" after "+c.at+" "+name, func(t *testing.T) {
				p := newPair(t, map[string]string{"d/a": "before", "other": "1"})
				must(t, p.stopped(c.at, func() error { return p.replace(c.how, "d/a") },
					func() bool { edit(p, filepath.Join(p.tree, "d/a")); return true }))
				p.wantArchived("d/a=edited")
				p.open()
				p.wantArchived("d/a=edited")
				p.wantNothingLeft()
			})
		}
	}
}

// Links, other kinds and odd names.
func TestWhateverIsReplaced(t *testing.T) {
	p := newPair(t, map[string]string{"to-link": "1", "d/\n\xff $x": "1", "-v": "1", "d/e/f/g": "1", "untouched": "1"})
	for _, dir := range []string{p.src, p.tree} {
		must(t, os.Symlink("1", filepath.Join(dir, "link")))
		must(t, os.Symlink("1", filepath.Join(dir, "to-file")))
	}
	p.committed()
	paths := []string{"to-link", "d/\n\xff $x", "-v", "d/e/f/g", "link", "to-file", "untouched"}
	must(t, p.stopped("peer.rsync.started", func() error {
		for _, path := range paths {
			must(t, os.Remove(filepath.Join(p.src, path)))
			p.change(map[string]string{path: "2"})
		}
		for _, path := range []string{"to-link", "link"} {
			must(t, os.Remove(filepath.Join(p.src, path)))
			must(t, os.Symlink("2", filepath.Join(p.src, path)))
		}
		x := p.push(keepAs(archive.Repair), paths...)
		if x.exit != 0 || x.local != nil {
			t.Errorf("exit %d, %v, %s", x.exit, x.local, &x.stderr)
		}
		return x.err
	}, func() bool {
		for _, path := range paths[:4] {
			p.backup.write(path, "edited")
		}
		for _, path := range paths[4:6] {
			must(t, os.Remove(filepath.Join(p.tree, path)))
			must(t, os.Symlink("edited", filepath.Join(p.tree, path)))
		}
		return true
	}))
	p.open()
	p.compare()
	p.committed()
	p.wantArchived("-v=edited", "d/\n\xff $x=edited", "d/e/f/g=edited", "link->edited", "to-file->edited", "to-link=edited")
	p.wantNothingLeft()
}

func TestKilledWithSomethingReplaced(t *testing.T) {
	for _, c := range []struct{ how, at string }{{"replaced", "peer.rsync.ended"}, {"removed", "peer.removed"}} {
		for name, late := range map[string]bool{"changed": true, "as it was": false} {
			t.Run(c.how+", "+name, func(t *testing.T) {
				p := newPair(t, map[string]string{"d/a": "1", "other": "1"})
				f := p.held("d/a", 0)
				err := p.stopped(c.at, func() error { return p.replace(c.how, "d/a") }, func() bool {
					if late {
						f.WriteString("late")
					}
					f.Close()
					return false
				})
				if err == nil {
					t.Error("it was not killed")
				}
				p.wantArchived()
				p.open()
				if late {
					p.wantArchived("d/a=late")
				} else {
					p.wantArchived()
				}
				p.wantNothingLeft()
				p.compare()
				p.committed()
			})
		}
	}
}

// Of a node that is promoted before the next session its own daemon does it.
func TestSiftOfAMaster(t *testing.T) {
	p := newPair(t, map[string]string{"d/a": "1", "other": "1"})
	f := p.held("d/a", 0)
	if p.stopped("peer.rsync.ended", func() error { return p.replace("replaced", "d/a") }, func() bool { f.WriteString("late"); f.Close(); return false }) == nil {
		t.Error("it was not killed")
	}
	h := hostIn(p.dir)
	must(t, status.Write(h.StatusFile, status.Master))
	p.open()
	p.wantArchived() // by a session with a master
	store, err := archive.Open(h.StateDir)
	must(t, err)
	sift := func() error {
		return Sift(t.Context(), h, store, archive.Limits{Keep: 10}, "192.0.2.1", scan.Root{Name: ConfigRoot, Dir: p.tree, Set: fileset.New()})
	}
	must(t, sift())
	p.wantArchived() // beside a session
	p.end()
	must(t, sift())
	p.wantArchived("d/a=late")
	must(t, status.Write(h.StatusFile, status.Backup))
	p.open()
	p.compare()
	p.committed()
	p.wantArchived("d/a=late")
	p.wantNothingLeft()
}

// An rsync that was ended between its link and its rename has replaced nothing.
func TestLinkedAndNotReplaced(t *testing.T) {
	s, r := of(t, 2)
	const path = "d0/farm-1_l4xnat.cfg"
	if refusal := s.prepare(t.Context(), r, []string{path}, keepAs(archive.Repair)); refusal != nil {
		t.Fatal(refusal)
	}
	must(t, os.MkdirAll(filepath.Join(r.replaced(), "d0"), 0o755))
	must(t, os.Link(filepath.Join(r.dir, path), filepath.Join(r.replaced(), path)))
	must(t, os.WriteFile(filepath.Join(r.dir, path), []byte("edited"), 0o600))
	if refusal := s.sift(t.Context(), r, keepAs(archive.Repair)); refusal != nil {
		t.Fatal(refusal)
	}
	if list, err := s.archives.List(); err != nil || len(list) > 0 {
		t.Errorf("archived: %+v, %v", list, err)
	}
	noTemp(t, r.temp)
}

// In a mount of its own within the tree nothing can be renamed out of it.
func TestReplacedInAnotherMount(t *testing.T) {
	p := newPair(t, map[string]string{"m/a": "1", "m/gone": "1", "other": "1"})
	m := filepath.Join(p.tree, "m")
	must(t, unix.Mount(m, m, "", unix.MS_BIND, ""))
	t.Cleanup(func() { unix.Unmount(m, unix.MNT_DETACH) })
	must(t, p.replace("replaced", "m/a"))
	must(t, p.replace("removed", "m/gone"))
	p.committed()
	p.wantArchived()
	must(t, os.WriteFile(filepath.Join(m, "a"), []byte("touched"), 0o600))
	must(t, p.replace("replaced", "m/a"))
	p.wantArchived("m/a=touched")
	p.wantNothingLeft()
}

// What it costs to set aside a thousand files that rsync replaces, beside the same
// without it. Those that have changed just now are read.
func BenchmarkReplace(b *testing.B) {
	s, r := of(b, 1000)
	var paths []string
	for e := range r.tree.Manifest().All() {
		if e.Kind == manifest.File {
			paths = append(paths, e.Path)
		}
	}
	src := filepath.Join(b.TempDir(), "src")
	if out, err := exec.Command("cp", "-r", r.dir, src).CombinedOutput(); err != nil {
		b.Fatal(err, string(out))
	}
	replace := func(aside bool) {
		args := []string{"-rI", "--whole-file"}
		if aside {
			n, err := r.note(paths)
			if err != nil {
				b.Fatal(err)
			}
			r.replacing = n
		}
		args = append(args, s.own([]string{"", "--temp-dir=" + r.temp}, "", r.replacing)[1:]...)
		if out, err := exec.Command("rsync", append(args, src+"/", r.dir+"/")...).CombinedOutput(); err != nil {
			b.Fatal(err, string(out))
		}
		if refusal := s.sift(b.Context(), r, keepAs(archive.Repair)); refusal != nil {
			b.Fatal(refusal)
		}
	}
	for name, c := range map[string]struct {
		aside bool
		age   time.Duration
	}{"overwritten": {false, 0}, "set aside": {true, fresh}, "set aside, changed just now": {true, 0}} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				if _, err := r.walk(b.Context(), false); err != nil {
					b.Fatal(err)
				}
				time.Sleep(c.age)
				b.StartTimer()
				replace(c.aside)
			}
		})
	}
}
