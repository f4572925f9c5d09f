// Package scan finds out what a tree on this disk consists of and keeps a
// manifest of it. It follows no symbolic link below the root's directory, opens
// nothing that could block, and copes with a tree that changes under its eyes.
//
// What cannot be read is never taken for deleted: a directory that cannot be
// listed keeps what the manifest knew below it. A file that cannot be read
// leaves the manifest, but is named in the Report, so that the peer's copy can be
// left alone.
//
// Size and hash of a file are those of what it means (package meaning). Whether it must be read again is decided
// as git's index decides: it is not if inode, size, ctime and mtime are what they were, unless its latest change was so
// near to the reading that one more could have left the same times. What a whole tree has in common with its
// manifest is found by examining alone (survey); the rest is looked at one by one.
package scan

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/fileset"
	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"github.com/skudonet/skudonet-ce-cluster/lib/scan/beneath"
	"golang.org/x/sys/unix"
)

// Root is a tree to mirror: what Set does not leave out of the directory Dir. Of
// a set of named files (fileset.Only) the directory itself is no part.
type Root struct {
	Name, Dir string
	Set       *fileset.Set
	Anchor    string // if set, a file in Dir without which Dir is not the tree, but perhaps an empty mount point
}

// ErrAnchor is a directory in which the root's Anchor is missing.
var ErrAnchor = errors.New("not the tree")

// Tree is a Root with its manifest, and remembers of every file what tells
// whether it must be read again. It is not for concurrent use.
type Tree struct {
	root     Root
	top      bool // "." is part of the tree
	manifest *manifest.Manifest
	memory   map[string]*memory // of the manifest's paths
	walk     uint32             // number of the latest walk
}

// memory is what a path looked like when it was read. A directory has neither inode, size nor times.
type memory struct {
	inode        uint64
	size         int64 // in bytes, not that of its meaning
	ctime, mtime int64 // ns
	uid, gid     uint32
	walk         uint32
	mode         uint16 // with the kind
	doubtful     bool   // a change may have left no trace: read it again
	linked       bool   // the inode has other names
}

// racy is how close to the reading of a file its latest change may lie without
// a later one looking the same: many times the kernel's clock tick.
const racy = 50 * time.Millisecond

// Report is what one look at a tree brought.
type Report struct {
	Changed    []string  // paths that entered, left or changed in the manifest, sorted
	Unreadable []Problem // files and directories that could not be read
	Special    []Problem // FIFOs, sockets and devices: left out
}

// Problem is a path and what is wrong with it.
type Problem struct {
	Path string
	Err  error
}

// New is a Tree of which nothing is known yet.
func New(r Root) *Tree {
	// A set that leaves out whatever name comes along is one of named files.
	const anything = "\x7f"
	return &Tree{
		root:     r,
		top:      !r.Set.Skip(anything, true) || !r.Set.Skip(anything, false),
		manifest: manifest.New(),
		memory:   make(map[string]*memory),
	}
}

// Root is what New was given.
func (t *Tree) Root() Root { return t.root }

// Manifest is what the tree consists of, as of the latest look. It stays the
// Tree's own: it changes with every look, and nobody else may change it.
func (t *Tree) Manifest() *manifest.Manifest { return t.manifest }

// Scan walks the whole tree and reads the files that may have changed, or every
// file if full. There is an error only if the root's directory cannot be read
// or vanishes (the manifest then keeps what it knew), or if ctx ends: the Report
// then tells what was changed so far, and nothing was removed. Or it wraps
// ErrAnchor: with an empty Report nothing was looked at, else it went meanwhile
// and the manifest may lack what is there.
func (t *Tree) Scan(ctx context.Context, full bool) (Report, error) {
	return t.look(ctx, []string{"."}, full)
}

// Look examines paths only, and reads their files in any case; a directory is
// examined with everything below it. What does not exist leaves the manifest,
// with everything below. Directories above a path enter if they were not
// known. The other names of a hard link are examined too: a change by way of one
// is one of all. A path that leads outside is among the unreadable ones; of one that is too long, the
// directory above it that is not is examined. Errors are those of Scan.
func (t *Tree) Look(ctx context.Context, paths []string) (Report, error) {
	return t.look(ctx, paths, true)
}

// Note records an entry that was seen in another way. Scan does not trust it
// for long: it reads the file again.
func (t *Tree) Note(e manifest.Entry) {
	l := look{Tree: t}
	m := memory{doubtful: true}
	if old := t.memory[e.Path]; old != nil {
		m.inode, m.linked = old.inode, old.linked
	}
	l.enter(e, m)
}

// starts are where to look for paths, each once, without what is below another one: a directory is
// looked at with everything below it, and what is below no directory is not there.
func starts(paths []string) []string {
	listed := make(map[string]bool, len(paths))
	for _, path := range paths {
		listed[nameable(path)] = true
	}
	var kept []string
	for path := range listed {
		covered := listed["."] && path != "."
		for i := len(path) - 1; i > 0 && !covered; i-- {
			covered = path[i] == '/' && listed[path[:i]]
		}
		if !covered {
			kept = append(kept, path)
		}
	}
	slices.Sort(kept)
	return kept
}

// nameable is path, or where nobody could name that to the kernel, the deepest directory above it that can be named.
func nameable(path string) string {
	for len(path) >= unix.PathMax {
		i := strings.LastIndexByte(path, '/')
		if i < 0 {
			break
		}
		path = path[:i]
	}
	return path
}

func (t *Tree) look(ctx context.Context, paths []string, read bool) (Report, error) {
	l := look{Tree: t, ctx: ctx, read: read, space: make([]byte, 64<<10)}
	var err error
	if l.fd, err = beneath.Top(t.root.Dir); err != nil {
		return Report{}, err
	}
	defer unix.Close(l.fd)
	if err := l.anchored(); err != nil {
		return Report{}, err
	}
	before := t.walk
	for _, path := range starts(paths) {
		if err := manifest.CheckPath(path); err != nil {
			l.unreadable(path, err)
			continue
		}
		if err = l.path(path); err != nil {
			break
		}
	}
	for _, path := range l.otherNames(before) {
		if err == nil {
			err = l.path(path)
		}
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", t.root.Dir, err)
	} else {
		err = l.anchored() // also of the directory that was looked at, whatever has its name by now
	}
	return l.r.inOrder(), err
}

func (l *look) anchored() error {
	var st unix.Stat_t
	if l.root.Anchor == "" || unix.Fstatat(l.fd, l.root.Anchor, &st, 0) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG {
		return nil
	}
	return fmt.Errorf("%s has no %s: %w", l.root.Dir, l.root.Anchor, ErrAnchor)
}

// inOrder is r sorted, with everything said once.
func (r Report) inOrder() Report {
	slices.Sort(r.Changed)
	return Report{slices.Compact(r.Changed), once(r.Unreadable), once(r.Special)}
}

func once(p []Problem) []Problem {
	slices.SortStableFunc(p, func(a, b Problem) int { return strings.Compare(a.Path, b.Path) })
	return slices.CompactFunc(p, func(a, b Problem) bool { return a.Path == b.Path })
}
