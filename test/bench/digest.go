package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/fileset"
	"github.com/skudonet/skudonet-ce-cluster/lib/scan"
)

// The aims of a tree's digest, in ms.
const (
	someDigestAim = 2
	muchDigestAim = 50
	fullDigestAim = 2000
)

// holdTree, in the environment, is the directory of a tree to hold in memory, for digestMemory.
const holdTree = "SKD_BENCH_HOLD_TREE"

// digests measures how long a node looks at its own tree, and what it keeps of it.
func (b *bench) digests() error {
	t := table{title: "digest of a tree", headings: []string{"ms"}}
	for _, row := range []struct {
		name  string
		files int
		full  bool
		aim   float64
	}{
		{fmt.Sprintf("%d files, one changed", someFiles), someFiles, false, someDigestAim},
		{fmt.Sprintf("%d files, one changed", muchFiles), muchFiles, false, muchDigestAim},
		{fmt.Sprintf("%d files, all read", muchFiles), muchFiles, true, fullDigestAim},
	} {
		b.progress("digest: %s", row.name)
		ms, err := b.digest(row.files, row.full)
		if err != nil {
			return err
		}
		t.add(row.name, ms.String())
		b.aim(ms.median() < row.aim, "digest of %s, under %g ms: %s ms", row.name, row.aim, number(ms.median()))
	}
	rss, pss, err := b.digestMemory()
	if err != nil {
		return err
	}
	t.note("RSS of a process that holds the tree of %d files: %s MB, PSS %s MB", muchFiles, number(rss), number(pss))
	t.write(b.out)
	b.aim(rss < rssAim, "a tree of %d files under %d MB: %s MB", muchFiles, rssAim, number(rss))
	return nil
}

// newTree is a tree of so many files in a directory that is to be removed.
func newTree(files int) (*scan.Tree, error) {
	dir, err := os.MkdirTemp("", "skd-bench-")
	if err != nil {
		return nil, err
	}
	return treeOf(dir), fillWith(files)(dir)
}

func treeOf(dir string) *scan.Tree {
	return scan.New(scan.Root{Name: "config", Dir: dir, Set: fileset.New()})
}

// digest repeats a change of one file and the scan that sees it.
func (b *bench) digest(files int, full bool) (ms samples, err error) {
	tree, err := newTree(files)
	if err != nil {
		return nil, err
	}
	dir := tree.Root().Dir
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	ctx := context.Background()
	for range 2 { // the second one has nothing to read
		if _, err := tree.Scan(ctx, false); err != nil {
			return nil, err
		}
		time.Sleep(100 * time.Millisecond) // the kernel's clock has ticked
	}
	for i := range b.repeats {
		before := tree.Manifest().Digest()
		if err := os.WriteFile(filepath.Join(dir, topFile(1)), fmt.Appendf(nil, "change %d", i), 0o644); err != nil {
			return nil, err
		}
		began := time.Now()
		_, err := tree.Scan(ctx, full)
		after := tree.Manifest().Digest()
		ms = append(ms, milliseconds(time.Since(began)))
		if err != nil {
			return nil, err
		}
		if after == before {
			return nil, errors.New("digest: the change was not seen")
		}
	}
	return ms, nil
}

// digestMemory is what a process uses that does nothing but hold a large tree, in MB.
func (b *bench) digestMemory() (rss, pss float64, err error) {
	tree, err := newTree(muchFiles)
	if err != nil {
		return 0, 0, err
	}
	dir := tree.Root().Dir
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	program, err := os.Executable()
	if err != nil {
		return 0, 0, err
	}
	holder := exec.Command(program)
	holder.Env = append(os.Environ(), holdTree+"="+dir)
	holder.Stderr = os.Stderr
	in, err := holder.StdinPipe()
	if err != nil {
		return 0, 0, err
	}
	out, err := holder.StdoutPipe()
	if err != nil {
		return 0, 0, err
	}
	if err := holder.Start(); err != nil {
		return 0, 0, err
	}
	_, err = io.ReadFull(out, make([]byte, 1))
	text, readErr := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", holder.Process.Pid))
	in.Close()
	if err := errors.Join(err, readErr, holder.Wait()); err != nil {
		return 0, 0, fmt.Errorf("a process that holds a tree: %w", err)
	}
	return megabytes(text, "Rss"), megabytes(text, "Pss"), nil
}

// hold has a tree's digest ten times, says so, and keeps the tree until its standard input ends.
func hold(dir string) error {
	tree := treeOf(dir)
	for range 10 {
		if _, err := tree.Scan(context.Background(), false); err != nil {
			return err
		}
	}
	if _, err := os.Stdout.Write([]byte{'\n'}); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, os.Stdin)
	runtime.KeepAlive(tree)
	return err
}
