package mirror

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/archive"
	"github.com/skudonet/skudonet-ce-cluster/lib/peer"
	"github.com/skudonet/skudonet-ce-cluster/lib/remote"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
	"github.com/skudonet/skudonet-ce-cluster/lib/vector"
)

// inOurTree and inTheirs write a file without anybody seeing it.
func (w *world) inOurs(path, text string) {
	w.t.Helper()
	w.must(os.MkdirAll(filepath.Dir(filepath.Join(w.ours, path)), 0o755))
	w.must(os.WriteFile(filepath.Join(w.ours, path), []byte(text), 0o644))
}

func (w *world) inTheirs(path, text string) {
	w.t.Helper()
	w.must(os.MkdirAll(filepath.Dir(filepath.Join(w.theirs, path)), 0o755))
	w.must(os.WriteFile(filepath.Join(w.theirs, path), []byte(text), 0o644))
}

// history gives both nodes vectors, as after a common past.
func (w *world) history(ours, theirs func(a, b vector.ID) vector.Vector) {
	a, b := w.record.ID, w.standing.ID
	w.record.Vector, w.standing.Vector = ours(a, b), theirs(a, b)
}

func both(n uint64) func(a, b vector.ID) vector.Vector {
	return func(a, b vector.ID) vector.Vector { return vector.Vector{a: n, b: n} }
}

// vectors checks that the disks of both nodes have one vector, for trees that are there.
func (w *world) vectors() {
	w.t.Helper()
	if o := w.record.Vector.Compare(w.standing.Vector); o != vector.Equal || len(w.record.Vector) == 0 {
		w.t.Errorf("our vector %v is %s to theirs, %v", w.record.Vector, o, w.standing.Vector)
	}
	if w.record.Trees["config"] != w.standing.Trees["config"] {
		w.t.Errorf("the vector stands for %v here, for %v there", w.record.Trees, w.standing.Trees)
	}
}

// held is what the archives have: reason, whose, and text by path.
func (w *world) held() (list []string) {
	w.t.Helper()
	all, err := w.archives.List()
	w.must(err)
	for _, i := range all {
		dir, m, err := w.archives.Tree(i, "config")
		w.must(err)
		for e := range m.All() {
			if text, err := os.ReadFile(filepath.Join(dir, e.Path)); err == nil {
				list = append(list, fmt.Sprintf("%s %s %s=%s", i.Reason, i.Holds, e.Path, text))
			}
		}
	}
	slices.Sort(list)
	return list
}

func TestOneChangeRaisesBothVectors(t *testing.T) {
	play(t, nil, func(w *world) {
		before := w.record.Vector[w.record.ID]
		for i := range 3 {
			w.write("a", fmt.Sprint(i))
			w.pass(time.Second)
		}
		w.vectors()
		if n := w.record.Vector[w.record.ID]; n != before+3 || len(w.record.Vector) != 1 {
			t.Errorf("three changes: %v, before %d", w.record.Vector, before)
		}
		at := w.record
		w.write("a", "2") // rewritten, but the same
		w.pass(10 * time.Minute)
		if w.record.Vector.Compare(at.Vector) != vector.Equal {
			t.Errorf("without a change: %v, was %v", w.record.Vector, at.Vector)
		}
		if len(w.held()) != 0 {
			t.Errorf("archived: %q", w.held())
		}
	})
}

func TestThePeerThatMissedChangesGetsThem(t *testing.T) {
	play(t, func(w *world) {
		w.inOurs("new", "1")
		w.inTheirs("old", "0")
		w.history(func(a, b vector.ID) vector.Vector { return vector.Vector{a: 2, b: 1} }, both(1))
	}, func(w *world) {
		w.same()
		w.vectors()
		for _, k := range w.keepings {
			if k.All {
				t.Errorf("the peer was to keep what is only old: %+v", k)
			}
		}
	})
}

func TestThePeersNewerConfigurationIsTakenOver(t *testing.T) {
	play(t, func(w *world) {
		w.inTheirs("new", "1")
		w.inTheirs("d/deep", "2")
		w.inTheirs("global.conf", "$x=9;\n")
		w.inOurs("removed-there", "x")
		w.history(both(1), func(a, b vector.ID) vector.Vector { return vector.Vector{a: 1, b: 2} })
	}, func(w *world) {
		w.same()
		w.vectors()
		if got := content(t, w.ours); got["/new"] != "1" || got["/d/deep"] != "2" || got["/global.conf"] != "$x=9;\n" || len(got) != 3 {
			t.Errorf("%q", got)
		}
		if len(w.pushes) != 0 || w.applied != 1 || w.said("took over the configuration of the peer") != 1 {
			t.Errorf("%v, applied %d times", w.pushes, w.applied)
		}
		// This tree was not what the record stood for: what was replaced is kept.
		if got := w.held(); !slices.Equal(got, []string{"adopt ours global.conf=$x=1;\n", "adopt ours removed-there=x"}) {
			t.Errorf("archived: %q", got)
		}
		w.write("after", "1")
		w.pass(time.Second)
		w.same()
		w.vectors()
	})
}

func TestAChangeDuringATakeOverIsAChangeLikeAnyOther(t *testing.T) {
	play(t, func(w *world) {
		w.inTheirs("new", "1")
		w.history(both(1), func(a, b vector.ID) vector.Vector { return vector.Vector{a: 1, b: 2} })
		w.disturb = func() { w.inOurs("late", "2"); w.disturb = nil }
	}, func(w *world) {
		w.same()
		w.vectors()
		if got := content(t, w.ours); got["/new"] != "1" || got["/late"] != "2" {
			t.Errorf("%q", got)
		}
		// The peer's tree was not what its vector stood for, so this node raised it once for that.
		if v := w.record.Vector; v[w.record.ID] != 3 || v[w.standing.ID] != 2 {
			t.Errorf("one vector stands for two configurations: %v", v)
		}
	})
}

func TestAnEstablishedMasterKeepsItsConfiguration(t *testing.T) {
	for name, ours := range map[string]func(a, b vector.ID) vector.Vector{
		"the peer is ahead": both(1),
		"both ruled":        func(a, b vector.ID) vector.Vector { return vector.Vector{a: 3, b: 1} },
	} {
		t.Run(name, func(t *testing.T) {
			play(t, func(w *world) {
				w.config.Established = true
				w.inOurs("ours", "1")
				w.inTheirs("theirs", "2")
				w.inTheirs("global.conf", "$x=9;\n")
				w.history(ours, func(a, b vector.ID) vector.Vector { return vector.Vector{a: 1, b: 2} })
			}, func(w *world) {
				w.same()
				w.vectors()
				if got := content(t, w.ours); got["/ours"] != "1" || got["/theirs"] != "" {
					t.Errorf("%q", got)
				}
				if got := w.held(); !slices.Equal(got, []string{"conflict theirs global.conf=$x=9;\n", "conflict theirs theirs=2"}) {
					t.Errorf("archived: %q", got)
				}
				if len(w.kept) != 1 || w.kept[0].ID != w.archives.Waiting()[0].ID || !slices.Equal(w.standing.Waiting, []string{w.kept[0].ID}) {
					t.Errorf("kept on the peer: %+v, waiting there: %v", w.kept, w.standing.Waiting)
				}
				if w.applied != 0 || len(w.state.Problems) != 1 || !strings.Contains(w.state.Problems[0].Remedy, "skd-inotify resolve theirs") {
					t.Errorf("applied %d times; %v", w.applied, w.state.Problems)
				}
				w.pass(time.Hour)
				if len(w.kept) != 1 || len(w.archives.Waiting()) != 1 {
					t.Errorf("archived again: %d", len(w.kept))
				}
				// The admin wants the other one after all, and then not.
				w.mu.Unlock()
				words, err := w.engine.Resolve(w.t.Context(), "", true)
				w.mu.Lock()
				w.must(err)
				w.pass(time.Second)
				w.same()
				w.vectors()
				if got := content(t, w.ours); got["/theirs"] != "2" || got["/ours"] != "" || w.applied != 1 || !strings.Contains(words, "restored 3 paths") {
					t.Errorf("%q, applied %d times, %q", got, w.applied, words)
				}
				if len(w.state.Problems) != 0 || len(w.standing.Waiting) != 0 || len(w.archives.Waiting()) != 0 {
					t.Errorf("%v, waiting there: %v", w.state.Problems, w.standing.Waiting)
				}
				all, _ := w.archives.List()
				w.mu.Unlock()
				_, err = w.engine.Restore(w.t.Context(), all[0].Name, nil)
				w.mu.Lock()
				w.must(err)
				w.pass(time.Second)
				w.same()
				if got := content(t, w.ours); got["/ours"] != "1" || got["/global.conf"] != "$x=1;\n" {
					t.Errorf("the restoration was not undone: %q", got)
				}
			})
		})
	}
}

func TestResolveOursLeavesAllAsItIs(t *testing.T) {
	play(t, func(w *world) {
		w.config.Established = true
		w.inTheirs("theirs", "2")
		w.history(both(1), func(a, b vector.ID) vector.Vector { return vector.Vector{a: 1, b: 2} })
	}, func(w *world) {
		w.mu.Unlock()
		_, err := w.engine.Resolve(w.t.Context(), "", false)
		w.mu.Lock()
		w.must(err)
		w.pass(time.Second)
		w.same()
		if len(w.state.Problems) != 0 || len(w.standing.Waiting) != 0 || content(t, w.ours)["/theirs"] != "" || w.applied != 0 {
			t.Errorf("%v, waiting there: %v", w.state.Problems, w.standing.Waiting)
		}
		w.mu.Unlock()
		_, err = w.engine.Resolve(w.t.Context(), "", true)
		w.mu.Lock()
		if err == nil || !strings.Contains(err.Error(), "no conflict waits") || len(w.held()) != 2 {
			t.Errorf("%v; %q", err, w.held())
		}
	})
}

func TestAMasterWhosePeerBecomesMasterGoesOnRecording(t *testing.T) {
	play(t, nil, func(w *world) {
		w.hello.Role, w.roundError = status.Master, peer.ErrMaster
		w.write("a", "1")
		w.pass(5 * time.Second)
		before := w.record.Vector[w.record.ID]
		w.write("a", "2")
		w.pass(5 * time.Second)
		if n := w.record.Vector[w.record.ID]; n != before+1 {
			t.Errorf("the change is not recorded: %d, was %d", n, before)
		}
		if w.said("it says that it is master too") != 1 {
			t.Error("the admin is not told, or too often")
		}
		w.hello.Role, w.roundError = status.Backup, nil
		w.engine.Poke()
		w.pass(time.Minute)
		w.same()
		w.vectors()
		if len(w.state.Problems) != 0 {
			t.Errorf("%v", w.state.Problems)
		}
	})
}

func TestATouchedBackupIsRepairedAndKeepsWhatItHad(t *testing.T) {
	play(t, nil, func(w *world) {
		w.inTheirs("global.conf", "tampered")
		at := w.record.Vector
		w.pass(5 * time.Minute)
		w.same()
		w.vectors()
		if w.record.Vector.Compare(at) != vector.Equal {
			t.Error("a repair is no change")
		}
		if last := w.keepings[len(w.keepings)-1]; !last.All || last.Reason != archive.Repair {
			t.Errorf("%+v", last)
		}
	})
}

func TestARepairThatDoesNotHoldIsLeftAlone(t *testing.T) {
	play(t, nil, func(w *world) {
		w.write("b", "ours")
		w.pass(time.Second)
		w.pushes = nil
		w.disturb = func() { w.inTheirs("b", "mine") }
		w.inTheirs("b", "mine")
		w.pass(5 * time.Minute)
		first := len(w.pushes)
		if first == 0 || first > attempts {
			t.Errorf("%d transfers", first)
		}
		w.disturb = nil // what changes it does so between the comparisons
		w.pass(30 * time.Minute)
		if len(w.pushes) != first || !strings.Contains(fmt.Sprint(w.state.Problems), "left alone there, because something there changes it again: b") {
			t.Errorf("%d transfers, %v", len(w.pushes)-first, w.state.Problems)
		}
		w.write("other", "1") // the next real change
		w.pass(time.Second)
		w.same()
		w.vectors()
		w.pass(time.Second)
		if len(w.state.Problems) != 0 {
			t.Errorf("%v", w.state.Problems)
		}
		// What changes it again and again, though each repair holds for a while.
		before := len(w.pushes)
		for range 6 {
			w.inTheirs("b", "mine")
			w.pass(5 * time.Minute)
		}
		if n := len(w.pushes) - before; n != 0 && n != repairs {
			t.Errorf("repaired %d times", n)
		}
	})
}

func TestWhatIsChangedWhileThePeerIsAwayCounts(t *testing.T) {
	play(t, nil, func(w *world) {
		w.dialError = &remote.Error{Kind: remote.Unreachable, Text: "no route to host"}
		w.peer.lose()
		w.pass(time.Second)
		at := w.record.Vector
		w.write("a", "1")
		w.pass(time.Second)
		if w.record.Vector.Compare(at) != vector.Ahead || w.said("recorded 1 change, which the peer gets when it is back: a new") != 1 {
			t.Errorf("%v, was %v", w.record.Vector, at)
		}
		w.pass(10 * time.Minute)
		if w.state.Pending != 1 || w.state.Oldest.IsZero() || w.state.State != status.Connecting {
			t.Errorf("%+v", w.state)
		}
		w.dialError = nil
		w.pass(10 * time.Second)
		w.same()
		w.vectors()
		if w.state.Pending != 0 || w.state.State != status.InStep {
			t.Errorf("%+v", w.state)
		}
	})
}

func TestChangesCountThoughTheNodesCannotBeCompared(t *testing.T) {
	play(t, nil, func(w *world) {
		at := w.record.Vector
		w.roundError = errors.New("what would be replaced cannot be archived")
		w.engine.Compare()
		w.pass(time.Second)
		w.write("a", "1")
		w.pass(30 * time.Second)
		if w.record.Vector.Compare(at) != vector.Ahead {
			t.Errorf("not recorded: %v", w.record.Vector)
		}
		w.roundError = nil
		w.pass(30 * time.Second)
		w.same()
		w.vectors()
	})
}

func TestNothingCountsBeforeTheFirstComparison(t *testing.T) {
	play(t, func(w *world) {
		w.history(both(1), func(a, b vector.ID) vector.Vector { return vector.Vector{a: 1, b: 2} })
		w.dialError = &remote.Error{Kind: remote.Unreachable, Text: "no route to host"}
	}, func(w *world) {
		w.write("early", "1")
		w.pass(50 * time.Second)
		if w.record.Vector.Compare(vector.Vector{w.record.ID: 1, w.standing.ID: 1}) != vector.Equal {
			t.Errorf("raised before the first comparison: %v", w.record.Vector)
		}
		w.pass(20 * time.Second) // given up
		if w.record.Vector[w.record.ID] != 2 || w.said("from here on this node's configuration counts") != 1 {
			t.Errorf("%v", w.record.Vector)
		}
		w.inTheirs("theirs", "2")
		w.dialError = nil
		w.pass(10 * time.Second)
		w.same()
		w.vectors()
		if got := w.held(); len(w.kept) != 1 || !slices.Contains(got, "conflict theirs theirs=2") || content(t, w.ours)["/early"] != "1" {
			t.Errorf("%q", got)
		}
	})
}

func TestFirstContact(t *testing.T) {
	for name, holder := range map[string]bool{"we have the address": true, "nobody has it": false} {
		t.Run(name, func(t *testing.T) {
			play(t, func(w *world) {
				w.config.Holder = func() bool { return holder }
				w.standing.Holder = false
				w.inTheirs("theirs", "1")
			}, func(w *world) {
				if !holder {
					w.write("a", "1")
					w.pass(10 * time.Minute)
					if len(w.pushes) != 0 || content(t, w.theirs)["/theirs"] != "1" || !strings.Contains(fmt.Sprint(w.state.Problems), "sync --confirm") {
						t.Fatalf("%v; %v", w.pushes, w.state.Problems)
					}
					w.mu.Unlock()
					err := w.engine.Sync(w.t.Context(), true, func(string) {})
					w.mu.Lock()
					w.must(err)
				}
				w.same()
				w.vectors()
				if k := w.keepings[0]; !k.All || k.Reason != archive.FirstContact {
					t.Errorf("%+v", k)
				}
			})
		})
	}
}

func TestRollback(t *testing.T) {
	play(t, func(w *world) {
		w.inTheirs("later", "1")
		w.history(both(1), func(a, b vector.ID) vector.Vector { return vector.Vector{a: 7, b: 1} })
	}, func(w *world) {
		w.same()
		if w.record.ID == w.config.Record.ID || w.said("was its disk or its snapshot an older one?") != 1 {
			t.Error("the rolled back node keeps its identity, or nothing is said")
		}
		if got := w.held(); len(w.kept) != 1 || !slices.Contains(got, "conflict theirs later=1") {
			t.Errorf("%q", got)
		}
		w.vectors()
	})
	play(t, func(w *world) {
		w.standing.ID = w.record.ID
		w.history(both(1), both(1))
	}, func(w *world) {
		if w.standing.ID == w.record.ID || w.said("its disk is a copy of this node's") != 1 || len(w.kept) != 0 {
			t.Error("a cloned node keeps its identity, or nothing is said")
		}
	})
}

func TestMostFilesAtOnceAreNotRemoved(t *testing.T) {
	fill := func(w *world) {
		for i := range 20 {
			w.inOurs(fmt.Sprint("f", i), "x")
			w.inTheirs(fmt.Sprint("f", i), "x")
		}
	}
	vanish := func(w *world) {
		for i := range 15 {
			w.remove(fmt.Sprint("f", i))
		}
	}
	t.Run("connected", func(t *testing.T) {
		play(t, fill, func(w *world) {
			at := w.record.Vector
			vanish(w)
			w.pass(time.Second)
			w.write("other", "1")
			w.pass(10 * time.Minute)
			if got := content(t, w.theirs); len(got) != 21 || w.record.Vector.Compare(at) != vector.Equal {
				t.Fatalf("%d files are left there, %v", len(got), w.record.Vector)
			}
			if !strings.Contains(fmt.Sprint(w.state.Problems), "15 are gone") || w.said("most files vanished") != 1 {
				t.Errorf("%v", w.state.Problems)
			}
			w.mu.Unlock()
			err := w.engine.Sync(w.t.Context(), true, func(string) {})
			w.mu.Lock()
			w.must(err)
			w.same()
			w.vectors()
		})
	})
	t.Run("while the peer is away, and back", func(t *testing.T) {
		play(t, fill, func(w *world) {
			w.dialError = errors.New("no route to host")
			w.peer.lose()
			w.pass(time.Second)
			at := w.record.Vector
			vanish(w)
			w.pass(10 * time.Minute)
			if w.record.Vector.Compare(at) != vector.Equal {
				t.Errorf("recorded: %v, was %v", w.record.Vector, at)
			}
			w.dialError = nil
			w.pass(time.Minute)
			if got := content(t, w.theirs); len(got) != 21 {
				t.Fatalf("%d files are left there", len(got))
			}
			for i := range 15 { // mounted again
				w.write(fmt.Sprint("f", i), "x")
			}
			w.pass(2 * time.Minute)
			w.same()
			w.vectors()
			if len(w.state.Problems) != 0 {
				t.Errorf("%v", w.state.Problems)
			}
		})
	})
	t.Run("before the replicator was started, and the peer is away", func(t *testing.T) {
		play(t, func(w *world) {
			fill(w)
			w.config.Established = true
			w.history(both(1), both(1))
			w.record.Files = map[string]int{"config": 50}
			w.dialError = errors.New("no route to host")
		}, func(w *world) {
			w.pass(10 * time.Minute)
			if w.record.Vector.Compare(w.standing.Vector) != vector.Equal {
				t.Errorf("recorded: %v", w.record.Vector)
			}
			if !strings.Contains(fmt.Sprint(w.state.Problems), "29 are gone") {
				t.Errorf("%v", w.state.Problems)
			}
		})
	})
	t.Run("the peer's newer tree is not adopted", func(t *testing.T) {
		play(t, func(w *world) {
			fill(w)
			for i := range 15 {
				w.must(os.Remove(filepath.Join(w.theirs, fmt.Sprint("f", i))))
			}
			w.history(both(1), func(a, b vector.ID) vector.Vector { return vector.Vector{a: 1, b: 2} })
		}, func(w *world) {
			w.pass(10 * time.Second)
			if got := content(t, w.ours); len(got) != 21 || len(w.pushes) != 0 {
				t.Errorf("%d files are left here", len(got))
			}
		})
	})
}

func TestARecordThatCannotBeWritten(t *testing.T) {
	play(t, nil, func(w *world) {
		at := w.standing.Vector
		w.storeError = errors.New("no space left on device")
		w.write("a", "1")
		w.pass(time.Second)
		w.same() // the files go on, the claim does not
		if w.standing.Vector.Compare(at) != vector.Equal {
			t.Error("the peer knows of a change that this node has not recorded")
		}
		w.pass(10 * time.Second)
		if !strings.Contains(fmt.Sprint(w.state.Problems), "cannot be recorded: no space left on device") {
			t.Errorf("%v", w.state.Problems)
		}
		w.storeError = nil
		w.pass(15 * time.Second)
		w.vectors()
		if len(w.state.Problems) != 0 {
			t.Errorf("%v", w.state.Problems)
		}
	})
}

func TestOtherVersionOfSkudonet(t *testing.T) {
	play(t, func(w *world) {
		w.config.Skudonet, w.standing.Skudonet = "7.1.0", "7.2.0"
		w.history(both(1), both(1))
	}, func(w *world) {
		w.inTheirs("migrated", "by 7.2")
		w.pass(10 * time.Minute)
		if content(t, w.theirs)["/migrated"] == "" || !strings.Contains(fmt.Sprint(w.state.Problems), "7.1.0 here and 7.2.0 on the peer") {
			t.Errorf("%v", w.state.Problems)
		}
		w.write("real", "1")
		w.pass(time.Second)
		if content(t, w.theirs)["/real"] != "1" {
			t.Error("a real change does not arrive")
		}
	})
}

func TestRestoreFiles(t *testing.T) {
	play(t, func(w *world) {
		w.inOurs("d/keep", "k")
		w.inOurs("d/f", "old")
		w.inTheirs("d/f", "newer")
		w.inTheirs("d/keep", "k")
		w.history(both(1), func(a, b vector.ID) vector.Vector { return vector.Vector{a: 1, b: 2} })
	}, func(w *world) {
		all, err := w.archives.List()
		w.must(err)
		restore := func(files ...string) error {
			w.mu.Unlock()
			defer w.mu.Lock()
			_, err := w.engine.Restore(w.t.Context(), all[0].Name, files)
			return err
		}
		if err := restore("d/keep"); err == nil || !strings.Contains(err.Error(), "does not hold d/keep") {
			t.Errorf("%v", err)
		}
		w.must(os.RemoveAll(filepath.Join(w.ours, "d")))
		w.must(restore("d"))
		w.pass(time.Second)
		w.same()
		w.vectors()
		if got := content(t, w.ours); got["/d/f"] != "old" {
			t.Errorf("%q", got)
		}
		if err := restore(filepath.Join(w.ours, "d/f")); err != nil {
			t.Error(err)
		}
		_, err = os.Stat(filepath.Join(w.base, "state", "swap.json"))
		if err == nil {
			t.Error("a journal is left")
		}
	})
}

func TestTheOldestArchiveIsRestoredBeforeItGoes(t *testing.T) {
	play(t, func(w *world) {
		w.config.Limits.Keep = 1
		w.inOurs("f", "old")
		w.inTheirs("f", "newer")
		w.history(both(1), func(a, b vector.ID) vector.Vector { return vector.Vector{a: 1, b: 2} })
	}, func(w *world) {
		all, err := w.archives.List()
		w.must(err)
		w.pass(2 * time.Hour) // past the limit of age, too
		w.mu.Unlock()
		_, err = w.engine.Restore(w.t.Context(), all[0].Name, nil)
		w.mu.Lock()
		w.must(err)
		w.pass(time.Second)
		w.same()
		if got := content(t, w.ours)["/f"]; got != "old" {
			t.Errorf("%q", got)
		}
		if left, _ := w.archives.List(); len(left) != 1 || left[0].Name == all[0].Name {
			t.Errorf("archives: %v", left)
		}
	})
}

func TestATakeOverThatCouldNotEndGoesOn(t *testing.T) {
	play(t, func(w *world) {
		w.inTheirs("new", "1")
		w.history(both(1), func(a, b vector.ID) vector.Vector { return vector.Vector{a: 1, b: 2} })
		w.storeError = errors.New("no space left on device")
	}, func(w *world) {
		w.pass(20 * time.Second)
		if w.applied != 0 || len(w.pushes) != 0 || !strings.Contains(fmt.Sprint(w.state.Problems), "no space left") {
			t.Errorf("applied %d times, %v, %v", w.applied, w.pushes, w.state.Problems)
		}
		w.storeError = nil
		w.pass(30 * time.Second)
		w.same()
		w.vectors()
		if got := content(t, w.ours)["/new"]; got != "1" || w.applied != 1 || len(w.state.Problems) != 0 {
			t.Errorf("%q, applied %d times, %v", got, w.applied, w.state.Problems)
		}
	})
}

func TestSkudonetAppliesWhatWasTakenOverThoughThePeerIsGone(t *testing.T) {
	play(t, func(w *world) {
		w.inTheirs("new", "1")
		w.history(both(1), func(a, b vector.ID) vector.Vector { return vector.Vector{a: 1, b: 2} })
		w.disturb = func() { w.roundError = errors.New("the cable was cut") } // after the files came
	}, func(w *world) {
		w.pass(time.Second)
		if got := content(t, w.ours)["/new"]; got != "1" || w.applied != 1 {
			t.Errorf("%q, applied %d times", got, w.applied)
		}
	})
}

func TestWhatCouldNotBeTakenOverIsKeptThere(t *testing.T) {
	play(t, func(w *world) {
		w.inTheirs("new", "1")
		w.inTheirs("odd", "of the peer")
		w.must(syscall.Mkfifo(filepath.Join(w.ours, "odd"), 0o600))
		w.history(both(1), func(a, b vector.ID) vector.Vector { return vector.Vector{a: 1, b: 2} })
	}, func(w *world) {
		w.pass(10 * time.Second)
		_, err := os.Stat(filepath.Join(w.theirs, "odd"))
		kept := slices.ContainsFunc(w.keepings, func(k peer.Keeping) bool { return k.All })
		if err != nil && !kept {
			t.Error("the peer's newer file is gone, and nobody has it")
		}
		if got, err := os.ReadFile(filepath.Join(w.ours, "new")); string(got) != "1" {
			t.Errorf("%q, %v", got, err)
		}
	})
}
