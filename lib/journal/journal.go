// Package journal makes a tree into another one by renames that an interruption
// does not leave half done: a journal on the disk says what is to be done, and
// what was begun is finished, by whoever finds the journal.
//
// A caller finishes what is Pending, gets a stage (StageFor), puts the new files
// and symlinks into it, and calls Begin, Apply and End. Between Apply and End it
// stores what it has to say about the new tree, so that this is repeated after an
// interruption, too. One process does this at a time: it has ledger.Lock.
//
// # Order of writes
//
// What is at stake is a crash, of the process or of the machine, that leaves
// some writes on the disk and others not. Each line is on the disk before the
// next one begins:
//
//  1. The staged files, each with its content, mode and owner, and the
//     directories that they are in (fsync, syncfs if they are many).
//  2. The journal, swap.json in the state directory: written beside, synced,
//     renamed, the directory synced. This rename is the commit point. Before it,
//     the tree has not been touched, and the stage is all that there is to remove
//     (Undo). After it, everything that is needed to finish is on the disk.
//  3. The tree: removals, children first; then directories and files, parents
//     first; then modes and owners of directories, children first. Not one of
//     these is synced by itself, for none depends on another being on the disk:
//     after a crash, any of them may have happened or not. Each is one system call
//     that the file system does wholly or not at all, and each path
//     tells what is left to do: it is what it was, or what it shall be, or a
//     step of the few between the two. Then every directory that was changed is synced.
//  4. What the caller stores.
//  5. The end: the journal is removed, its directory synced. Only then may the
//     stage go. A journal without its stage would not know a file that
//     has been put in place from one whose content was lost; so if the stage is missing, nothing is done.
//
// A file is replaced by one rename of a complete file over it. Whoever reads has
// the old content or the new, and never finds nothing.
package journal

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/skudonet/skudonet-ce-cluster/lib/durable"
	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
)

// Name of the journal in the state directory.
const Name = "swap.json"

// ErrPending is a change that was begun and must be finished before another one.
var ErrPending = errors.New("a change of the configuration was begun and is not finished")

// Step is told each step before it is done. It is for tests, which interrupt
// there.
var Step func(name string)

func step(format string, args ...any) {
	if Step != nil {
		Step(fmt.Sprintf(format, args...))
	}
}

// Hash reads the content of a root's file and returns what stands for it in a
// manifest.
type Hash func(root, path string, r io.Reader) (manifest.Hash, int64, error)

// Plan is what shall be done.
type Plan struct {
	Reason string
	Parts  []Part
	Record json.RawMessage // for the caller: what it does when the tree is changed
	Hash   Hash            // nil: the content's SHA-256 and size. Not in the journal
}

// Part is what shall be done to one root. The content of a change's To lies in
// the stage at the change's path, if it is a file or a symlink. From is what is
// expected in the tree.
type Part struct {
	Root    string // its name
	Dir     string
	Stage   string // from StageFor
	Changes []manifest.Change
}

// Journal is a Plan that is on the disk.
type Journal struct {
	Plan     Plan // with the changes ordered by path
	stateDir string
	applied  bool
}

// Pending reads the journal in the state directory. It is nil if there is none.
func Pending(stateDir string, hash Hash) (*Journal, error) {
	p, err := read(filepath.Join(stateDir, Name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	p.Hash = hash
	return &Journal{Plan: p, stateDir: stateDir}, nil
}

// End removes the journal and the stages. Apply must have succeeded.
func (j *Journal) End() error {
	if !j.applied {
		return errors.New("journal: the change has not been made")
	}
	step("end")
	if err := drop(j.stateDir); err != nil {
		return err
	}
	for _, p := range j.Plan.Parts {
		step("clear %s", p.Root)
		if err := clearStage(p.Stage); err != nil {
			return err
		}
	}
	return nil
}

// Undo removes stages of a change that has not come to its Begin. The error
// wraps ErrPending if it has.
func Undo(stateDir string, stages ...string) error {
	if err := free(stateDir); err != nil {
		return err
	}
	for _, stage := range stages {
		if err := clearStage(stage); err != nil {
			return err
		}
	}
	return nil
}

// free tells that there is no journal.
func free(stateDir string) error {
	path := filepath.Join(stateDir, Name)
	_, err := os.Lstat(path)
	switch {
	case err == nil:
		return fmt.Errorf("%s: %w", path, ErrPending)
	case errors.Is(err, fs.ErrNotExist):
		return nil
	}
	return err
}

// drop removes the journal, durably.
func drop(stateDir string) error {
	if err := os.Remove(filepath.Join(stateDir, Name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return durable.SyncDir(stateDir)
}
