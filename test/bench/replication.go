package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	someFiles = 300
	muchFiles = 20_000
	rssAim    = 30 // MB, of each of our processes, with muchFiles
	runsAim   = 4  // of rsync, for a burst
	burstSize = 2000
)

// fillWith makes a tree of so many files, of which a third at the top unless they are too many for that.
func fillWith(files int) func(top string) error {
	return func(top string) error {
		if err := os.MkdirAll(filepath.Join(top, deep), 0o755); err != nil {
			return err
		}
		// As if both nodes had been the same for a while.
		old := time.Now().Add(-time.Hour).Truncate(time.Second)
		for i := range files {
			name := filepath.Join(top, topFile(i))
			if i >= someFiles/3 {
				dir := filepath.Join(top, fmt.Sprintf("certificates/%03d", i/100))
				name = filepath.Join(dir, fmt.Sprintf("%03d.pem", i%100))
				if err := os.MkdirAll(dir, 0o755); err != nil {
					return err
				}
			}
			text := fmt.Sprintf("%0*d\n", 100+i%1000, i)
			if err := errors.Join(os.WriteFile(name, []byte(text), 0o644), os.Chtimes(name, old, old)); err != nil {
				return err
			}
		}
		return nil
	}
}

const deep = "ipds/waf/sets"

// topFile is the name of one of the files at the top.
func topFile(i int) string { return fmt.Sprintf("farm%d_l4xnat.cfg", i%(someFiles/3)) }

// operation is one change, the i-th time, and how it is seen on the other side.
type operation struct {
	name string
	file func(i int) string // in the log
	do   func(top string, i int) error
	seen func(top string, i int) bool
}

func newFile(i int) string   { return fmt.Sprintf(deep+"/new%d.conf", i) }
func movedFile(i int) string { return fmt.Sprintf(deep+"/moved%d.conf", i) }

var operations = []operation{
	{"edit by rename", topFile, func(top string, i int) error {
		file := filepath.Join(top, topFile(i))
		return errors.Join(os.WriteFile(file+".tmp", fmt.Appendf(nil, "renamed %d\n", i), 0o644), os.Rename(file+".tmp", file))
	}, func(top string, i int) bool {
		return holds(filepath.Join(top, topFile(i)), fmt.Sprintf("renamed %d\n", i))
	}},
	{"edit in place", topFile, func(top string, i int) error {
		return os.WriteFile(filepath.Join(top, topFile(i)), fmt.Appendf(nil, "written in place %d\n", i), 0o644)
	}, func(top string, i int) bool {
		return holds(filepath.Join(top, topFile(i)), fmt.Sprintf("written in place %d\n", i))
	}},
	{"new file, deep", newFile, func(top string, i int) error {
		return os.WriteFile(filepath.Join(top, newFile(i)), fmt.Appendf(nil, "new %d\n", i), 0o644)
	}, func(top string, i int) bool { return holds(filepath.Join(top, newFile(i)), fmt.Sprintf("new %d\n", i)) }},
	{"rename", movedFile, func(top string, i int) error {
		return os.Rename(filepath.Join(top, newFile(i)), filepath.Join(top, movedFile(i)))
	}, func(top string, i int) bool {
		return !exists(filepath.Join(top, newFile(i))) && exists(filepath.Join(top, movedFile(i)))
	}},
	{"chmod", topFile, func(top string, i int) error { return os.Chmod(filepath.Join(top, topFile(i)), 0o600) }, func(top string, i int) bool {
		info, err := os.Lstat(filepath.Join(top, topFile(i)))
		return err == nil && info.Mode().Perm() == 0o600
	}},
	{"delete", movedFile, func(top string, i int) error { return os.Remove(filepath.Join(top, movedFile(i))) }, func(top string, i int) bool {
		return !exists(filepath.Join(top, movedFile(i)))
	}},
}

func holds(file, text string) bool {
	data, err := os.ReadFile(file)
	return err == nil && string(data) == text
}

func exists(file string) bool {
	_, err := os.Lstat(file)
	return err == nil
}

// change does one, and returns how long it took until it was seen, and until it was confirmed.
func (m *mirrored) change(o operation, i int) (visible, agreed time.Duration, err error) {
	m.markLog()
	began := time.Now()
	if err := o.do(m.here, i); err != nil {
		return 0, 0, err
	}
	err = soon(fmt.Sprintf("%s: %s of %s", m.name, o.name, o.file(i)), patience, func() bool { return o.seen(m.there, i) })
	visible = time.Since(began)
	if err == nil && m.replicator == inotify {
		err = m.confirms(o.file(i))
		agreed = time.Since(began)
	}
	if err == nil {
		err = m.resting()
	}
	// Apart from each other, and not in step with anything.
	time.Sleep(50*time.Millisecond + time.Duration(i%7)*3*time.Millisecond)
	return visible, agreed, err
}

func (b *bench) times(full, quick int) int {
	if b.quick {
		return quick
	}
	return full
}

// mirrors makes a pair for each replicator.
func (b *bench) mirrors(fill func(top string) error) (pairs []*mirrored, closeAll func(), err error) {
	closeAll = func() {
		for _, m := range pairs {
			m.close()
		}
	}
	for _, r := range b.replicators() {
		m, err := b.newMirrored(r, fill)
		if err != nil {
			closeAll()
			return nil, nil, err
		}
		pairs = append(pairs, m)
	}
	return pairs, closeAll, nil
}

func (b *bench) compareReplicators(title string) *comparison {
	var names []string
	for _, r := range b.replicators() {
		names = append(names, r.name)
	}
	return compareNames(title, names)
}

func each(figures []samples, what func(samples) samples) []samples {
	list := make([]samples, len(figures))
	for i, s := range figures {
		list[i] = what(s)
	}
	return list
}

func (c *comparison) medianAndTail(name string, figures []samples) {
	c.row(name, each(figures, samples.one))
	c.row("  95 of 100 within", each(figures, func(s samples) samples { return s.percentile(95) }))
}

func milliseconds(d time.Duration) float64 { return d.Seconds() * 1e3 }

// singleChanges measures one change at a time, by turns.
func (b *bench) singleChanges() error {
	pairs, done, err := b.mirrors(fillWith(someFiles))
	if err != nil {
		return err
	}
	defer done()
	n := b.times(60, 8)
	t := b.compareReplicators(fmt.Sprintf("one change in ms, in a tree of %d files, %d times", someFiles, n))
	edits := map[string][]samples{}
	for _, o := range operations {
		visible, agreed := make([]samples, len(pairs)), make([]samples, len(pairs))
		failed := make([]bool, len(pairs))
		for i := range n {
			b.progress("%s, %d", o.name, i)
			for p, m := range pairs {
				if failed[p] {
					continue
				}
				v, a, err := m.change(o, i)
				if err != nil {
					failed[p] = true
					t.note("failed: %v", err)
					continue
				}
				visible[p] = append(visible[p], milliseconds(v))
				if a > 0 {
					agreed[p] = append(agreed[p], milliseconds(a))
				}
			}
		}
		t.medianAndTail(o.name+", visible", visible)
		t.medianAndTail("  digests equal", agreed)
		if !slices.Contains(failed, true) && strings.HasPrefix(o.name, "edit") {
			edits[o.name] = visible
		}
	}
	for _, m := range pairs {
		if err := m.same(patience); err != nil {
			t.note("failed: %v", err)
		}
	}
	if err := b.plainSSH(t, pairs[len(pairs)-1]); err != nil {
		t.note("failed: ssh: %v", err)
	}
	t.note("Looked at every 0.2 ms. lsyncd: delay 0, and an ssh connection that is open. It does not compare.")
	t.write(b.out)
	for _, name := range slices.Sorted(maps.Keys(edits)) {
		if len(pairs) > 1 {
			ours, theirs := edits[name][0].median(), edits[name][1].median()
			b.aim(ours <= theirs, "%s: visible at lsyncd's median or under: %s and %s ms", name, number(ours), number(theirs))
		}
	}
	return nil
}

// plainSSH says what the least is that anything can cost that starts a program there.
func (b *bench) plainSSH(t *comparison, m *mirrored) error {
	if m.replicator == inotify { // without lsyncd there is no shared connection yet
		if err := openConnection(m.lab); err != nil {
			return err
		}
	}
	var open, fresh, local samples
	for _, way := range []struct {
		to      *samples
		n       int
		program []string
	}{
		{&local, b.times(60, 8), []string{"true"}},
		{&open, b.times(60, 8), append(append([]string{"ssh"}, shared(m.lab)...), "true")},
		{&fresh, b.times(20, 4), []string{"ssh", "root@" + m.lab.LB2.Addr(0).String(), "true"}},
	} {
		for range way.n {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			began := time.Now()
			err := m.lab.LB1.Command(ctx, way.program[0], way.program[1:]...).Run()
			took := time.Since(began)
			cancel()
			if err != nil {
				return err
			}
			*way.to = append(*way.to, milliseconds(took))
		}
	}
	t.note("A plain “ssh HOST true”: %s ms over an open connection, %s over a fresh one; “true” alone: %s.",
		number(open.median()), number(fresh.median()), number(local.median()))
	return nil
}

// burst writes many files at once, in new directories.
func burst(top string, round int) error {
	for i := range burstSize {
		dir := filepath.Join(top, fmt.Sprintf("burst%d/%02d", round, i/100))
		if i%100 == 0 {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%02d.html", i%100)), fmt.Appendf(nil, "%0200d\n", i), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// arrived counts what has come of it, as cheaply as it can be done.
func arrived(top string, round int) (count int) {
	for i := range burstSize / 100 {
		entries, _ := os.ReadDir(filepath.Join(top, fmt.Sprintf("burst%d/%02d", round, i)))
		count += len(entries)
	}
	return count
}

// effort is what something took besides time.
type effort struct {
	runs int
	cpu  time.Duration
}

// during measures f, and what comes after it until all is quiet.
func (m *mirrored) during(f func() error) (e effort, err error) {
	runs, err := m.runs(m)
	if err != nil {
		return e, err
	}
	cpu, err := m.processors()
	if err != nil {
		return e, err
	}
	if err := f(); err != nil {
		return e, err
	}
	if err := m.quiet(); err != nil {
		return e, err
	}
	now, err := m.processors()
	if err != nil {
		return e, err
	}
	after, err := m.runs(m)
	return effort{after - runs, now - cpu}, err
}

const cpuNote = "CPU: of everything that ran on both nodes, with ssh and sshd, until all was quiet again."

// bursts measures many files at once.
func (b *bench) bursts() error {
	pairs, done, err := b.mirrors(fillWith(someFiles))
	if err != nil {
		return err
	}
	defer done()
	var took, runs, cpu [2][]samples // new, removed
	for i := range took {
		took[i], runs[i], cpu[i] = make([]samples, len(pairs)), make([]samples, len(pairs)), make([]samples, len(pairs))
	}
	for round := range b.repeats {
		for p, m := range pairs {
			for step, act := range []func() error{
				func() error { return burst(m.here, round) },
				func() error { return os.RemoveAll(filepath.Join(m.here, fmt.Sprintf("burst%d", round))) },
			} {
				b.progress("%s: burst %d", m.name, round+1)
				var until time.Duration
				e, err := m.during(func() error {
					began := time.Now()
					if err := act(); err != nil {
						return err
					}
					there := func() bool { return arrived(m.there, round) == burstSize }
					if step == 1 {
						there = func() bool { return !exists(filepath.Join(m.there, fmt.Sprintf("burst%d", round))) }
					}
					err := soon(m.name+": a burst", startLimit, there)
					until = time.Since(began)
					if err == nil {
						err = m.same(startLimit) // Reading all would slow down what is measured.
					}
					return err
				})
				if err != nil {
					return err
				}
				took[step][p] = append(took[step][p], milliseconds(until))
				runs[step][p] = append(runs[step][p], float64(e.runs))
				cpu[step][p] = append(cpu[step][p], milliseconds(e.cpu))
			}
		}
	}
	t := b.compareReplicators(fmt.Sprintf("a burst of %d files", burstSize))
	for step, name := range []string{"new", "removed"} {
		t.row(name+": ms until the last one is", took[step])
		t.row("  runs of rsync", runs[step])
		t.row("  CPU ms", cpu[step])
	}
	t.note("Then the trees were identical. " + cpuNote)
	t.write(b.out)
	most := slices.Max(runs[0][0])
	b.aim(most <= runsAim, "a burst of %d files in at most %d runs of rsync: %s", burstSize, runsAim, number(most))
	if len(pairs) > 1 {
		ours, theirs := cpu[0][0].median(), cpu[0][1].median()
		b.aim(ours <= theirs, "CPU of the burst at lsyncd's or under: %s and %s ms", number(ours), number(theirs))
	}
	return nil
}

// rates measures changes that follow each other.
func (b *bench) rates() error {
	const every = time.Second / 20
	n := b.times(600, 100)
	pairs, done, err := b.mirrors(fillWith(someFiles))
	if err != nil {
		return err
	}
	defer done()
	t := b.compareReplicators(fmt.Sprintf("%g changes a second for %s", 1/every.Seconds(), time.Duration(n)*every))
	for _, kind := range []struct {
		name  string
		files int
	}{{"of 50 files by turns", 50}, {"of one file", 1}} {
		lags, never := make([]samples, len(pairs)), make([]samples, len(pairs))
		runs, cpu := make([]samples, len(pairs)), make([]samples, len(pairs))
		for p, m := range pairs {
			b.progress("%s: changes %s", m.name, kind.name)
			var all samples
			e, err := m.during(func() (err error) {
				all, err = m.lags(n, kind.files, every)
				return err
			})
			if err != nil {
				return err
			}
			lags[p], never[p] = all, samples{float64(n - len(all))}
			runs[p], cpu[p] = samples{float64(e.runs)}, samples{milliseconds(e.cpu)}
		}
		t.medianAndTail(kind.name+": ms until visible", lags)
		t.row("  all within", each(lags, func(s samples) samples { return s.percentile(100) }))
		t.row("  never visible", never)
		t.row("  runs of rsync", runs)
		t.row("  CPU ms", cpu)
	}
	t.note("Never visible: neither the change itself nor a later one of the same file. " + cpuNote)
	t.write(b.out)
	return nil
}

// lags makes n changes, and returns after how long each of them, or a later one of the same file, was seen. Those that
// never were are missing.
func (m *mirrored) lags(n, files int, every time.Duration) (samples, error) {
	text := func(i int) string { return fmt.Sprintf("change %d\n", i) }
	recorder, err := m.lab.LB2.RecordTree()
	if err != nil {
		return nil, err
	}
	defer recorder.Stop()
	changed := make([]time.Time, n)
	for i, due := 0, time.Now(); i < n; i, due = i+1, due.Add(every) {
		time.Sleep(time.Until(due))
		file := filepath.Join(m.here, topFile(i%files))
		changed[i] = time.Now()
		if err := errors.Join(os.WriteFile(file+".tmp", []byte(text(i)), 0o644), os.Rename(file+".tmp", file)); err != nil {
			return nil, err
		}
	}
	const limit = 3 * time.Second
	soon("the last changes", limit, func() bool {
		for i := n - files; i < n; i++ {
			if !holds(filepath.Join(m.there, topFile(i%files)), text(i)) {
				return false
			}
		}
		return true
	})
	if err := recorder.Stop(); err != nil {
		return nil, err
	}
	seen := make([]time.Time, n)
	at := map[[32]byte]int{}
	for i := range n {
		at[digest(text(i))] = i
	}
	for f := range files {
		for _, c := range recorder.Contents(topFile(f)) {
			if i, ok := at[c.SHA256]; ok && c.At.After(changed[i]) {
				seen[i] = c.At
			}
		}
	}
	var lags samples
	for i := range n {
		later := i
		for later < n && seen[later].IsZero() {
			later += files
		}
		if later < n {
			lags = append(lags, milliseconds(seen[later].Sub(changed[i])))
		}
	}
	return lags, nil
}

// manyFiles measures a large tree.
func (b *bench) manyFiles() error {
	replicators := b.replicators()
	start, cpu, visible, agreed := make([]samples, len(replicators)), make([]samples, len(replicators)), make([]samples, len(replicators)), make([]samples, len(replicators))
	var rss, pss [2][]samples
	for i := range rss {
		rss[i], pss[i] = make([]samples, len(replicators)), make([]samples, len(replicators))
	}
	t := b.compareReplicators(fmt.Sprintf("%d files", muchFiles))
	for p, r := range replicators {
		m, err := b.newMirrored(r, fillWith(muchFiles))
		if err != nil {
			return err
		}
		err = func() error {
			defer m.close()
			for range b.repeats {
				b.progress("%s: start", m.name)
				if err := m.daemon.Stop(); err != nil {
					return err
				}
				if err := m.quiet(); err != nil {
					return err
				}
				before, err := m.processors()
				if err != nil {
					return err
				}
				took, err := m.start()
				if err != nil {
					return err
				}
				after, err := m.processors()
				if err != nil {
					return err
				}
				start[p] = append(start[p], milliseconds(took))
				cpu[p] = append(cpu[p], milliseconds(after-before))
			}
			for i := range b.times(30, 4) {
				b.progress("%s: change %d", m.name, i)
				v, a, err := m.change(operations[0], i)
				if err != nil {
					return err
				}
				visible[p] = append(visible[p], milliseconds(v))
				if a > 0 {
					agreed[p] = append(agreed[p], milliseconds(a))
				}
			}
			mem, err := m.memory()
			for i := range mem.rss {
				if mem.rss[i] > 0 {
					rss[i][p], pss[i][p] = append(rss[i][p], mem.rss[i]), append(pss[i][p], mem.pss[i])
				}
			}
			return err
		}()
		if err != nil {
			return err
		}
	}
	t.row("start until in step with the same, ms", start)
	t.row("  CPU ms", cpu)
	t.medianAndTail(operations[0].name+": ms until visible", visible)
	t.medianAndTail("  digests equal", agreed)
	for i, node := range []string{"master", "backup"} {
		t.row("RSS MB on the "+node, rss[i])
		t.row("  PSS MB", pss[i])
	}
	t.note(cpuNote + " Memory: of skd-inotify, of lsyncd and its lasting ssh; sshd not counted.")
	t.write(b.out)
	for i, node := range []string{"master", "backup"} {
		if all := rss[i][0]; len(all) > 0 {
			b.aim(all.median() < rssAim, "%d files under %d MB on the %s: %s MB", muchFiles, rssAim, node, number(all.median()))
		}
	}
	return nil
}
