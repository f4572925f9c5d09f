// Package ledger keeps what a node knows of the configuration it holds: its
// identity, its version vector, and the digests of the trees that the vector
// stands for. It is one small file in the state directory, replaced by rename.
//
// # Order of writes
//
// Store returns when the record is on the disk: the new file is synced before it
// gets its name, the directory after. A caller stores
//
//   - on a master, the raised vector when the changed files of the tree are on
//     the disk, and before the peer hears of that vector. So the peer never knows of
//     a change of ours that we have forgotten, other than by a rollback;
//   - on a backup, the master's vector when the files that came are on the disk,
//     and the digest of the whole tree is the master's. So a vector never stands for
//     what the tree does not hold.
//
// If it is interrupted in between, the record is the old one and the tree is not
// what it says: the tree counts as touched, and the next comparison sees to it.
package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/durable"
	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"github.com/skudonet/skudonet-ce-cluster/lib/smallfile"
	"github.com/skudonet/skudonet-ce-cluster/lib/vector"
)

// Names in the state directory.
const (
	Name     = "ledger.json"
	badName  = Name + ".unreadable"
	lockName = "ledger.lock"
)

const maxSize = 1 << 20

// Record is what stands in the file.
type Record struct {
	ID      vector.ID       `json:"id"`
	Machine string          `json:"machine"` // /etc/machine-id of the system that ID was made for
	Vector  vector.Vector   `json:"vector"`
	Trees   map[string]Tree `json:"trees,omitempty"` // by the names of the roots
	Files   map[string]int  `json:"files,omitempty"` // how many files each of them had
}

// Tree is the tree that the vector stands for.
type Tree struct {
	Digest manifest.Digest `json:"digest"`
	Set    string          `json:"set"` // which files were looked at; another set has other digests
}

// Holds tells whether the record's vector stands for a tree of that digest.
func (r Record) Holds(root string, t Tree) bool {
	known, ok := r.Trees[root]
	return ok && known == t
}

// Renewed is r with a new identity. The vector stays.
func (r Record) Renewed() Record {
	r.ID = vector.NewID()
	return r
}

// Load reads the record in dir. A node without one gets an identity, which is
// stored. So does one whose record was made for another machine, or cannot be
// understood; the notice then says so.
func Load(dir, machine string) (r Record, notice string, err error) {
	path := filepath.Join(dir, Name)
	b, err := smallfile.Read(path, maxSize)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		r = Record{ID: vector.NewID(), Machine: machine, Vector: vector.Vector{}}
		return r, "", Store(dir, r)
	case err != nil:
		return r, "", err
	}
	if err = json.Unmarshal(b, &r); err == nil {
		err = errors.Join(r.ID.Check(), r.Vector.Check())
	}
	if err != nil {
		if err := os.Rename(path, filepath.Join(dir, badName)); err != nil {
			return Record{}, "", err
		}
		r = Record{ID: vector.NewID(), Machine: machine, Vector: vector.Vector{}}
		return r, fmt.Sprintf("%s cannot be understood (%v): kept as %s; this node counts as one that never took part", path, err, badName), Store(dir, r)
	}
	if r.Vector == nil {
		r.Vector = vector.Vector{}
	}
	if r.Machine != machine {
		r = r.Renewed()
		r.Machine = machine
		return r, "this disk was copied from another machine (its /etc/machine-id was another): this node takes a new identity, " + r.ID.Short(), Store(dir, r)
	}
	return r, "", nil
}

// Store puts r in dir, durably.
func Store(dir string, r Record) error {
	b, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(dir, Name), append(b, '\n'), 0o600)
}

// lockPoll is how often a lock that somebody has is tried again.
const lockPoll = 10 * time.Millisecond

// Lock makes the caller the only one who changes the record, until it calls
// unlock or ends. A master has it as long as it rules; "skd-inotify peer" for the
// moment of a change.
func Lock(ctx context.Context, dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, err
		}
		select {
		case <-time.After(lockPoll):
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("%s: another skd-inotify has it: %w", f.Name(), context.Cause(ctx))
		}
	}
}
