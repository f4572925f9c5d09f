package peer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/durable"
	"github.com/skudonet/skudonet-ce-cluster/lib/ledger"
	"github.com/skudonet/skudonet-ce-cluster/lib/step"
	"github.com/skudonet/skudonet-ce-cluster/lib/vector"
)

// check refuses a Commit that no server carries out.
func (c *Commit) check(q DigestRequest) *Error {
	if c.Set == "" || q.Set != "" && q.Set != c.Set {
		return refused("a commit of the set %.40q, of which %.40q is looked at", c.Set, q.Set)
	}
	if len(c.Digests) == 0 {
		return refused("a commit of nothing")
	}
	for root := range c.Digests {
		if !slices.ContainsFunc(q.Roots, func(l Look) bool { return l.Root == root }) {
			return refused("a commit of the root %.40q, which is not looked at", root)
		}
	}
	if err := c.Vector.Check(); err != nil {
		return refused("a commit: %v", err)
	}
	return nil
}

// commit stores that the configuration here is the one that the vector stands
// for, if it is. The trees were looked at.
func (s *session) commit(ctx context.Context, c *Commit, a *DigestAnswer) *Error {
	for _, d := range a.Roots {
		r, _ := s.root(d.Root)
		want, named := c.Digests[d.Root]
		switch {
		case !named:
		case d.Failed != "":
			a.NotCommitted = r.dir + " cannot be read"
		case r.tree.Manifest().Digest() != want:
			a.NotCommitted = r.dir + " is not what the master has"
		}
	}
	if a.NotCommitted != "" {
		return nil
	}
	for root := range c.Digests {
		if err := s.sync(root); err != nil {
			return &Error{Kind: kindFailed, Text: "not committed: " + err.Error()}
		}
	}
	step.At("peer.commit.synced")
	same := false
	refusal := s.change(ctx, func(record ledger.Record) (ledger.Record, bool, error) {
		if o := record.Vector.Compare(c.Vector); o != vector.Equal && o != vector.Behind {
			a.NotCommitted = fmt.Sprintf("the vector of this node is %v, compared with the one to be stored", o)
			return record, false, nil
		}
		trees, files := map[string]ledger.Tree{}, map[string]int{}
		for root, d := range c.Digests {
			trees[root] = ledger.Tree{Digest: d, Set: c.Set}
			r, _ := s.root(root)
			files[root] = r.tree.Manifest().Files()
		}
		same = record.Vector.Compare(c.Vector) == vector.Equal && maps.Equal(record.Trees, trees)
		record.Vector, record.Trees, record.Files = c.Vector, trees, files
		return record, !same, nil
	})
	if refusal != nil || a.NotCommitted != "" {
		return refusal
	}
	step.At("peer.commit.stored")
	for root := range c.Digests {
		// If the record is the same as before, the note still belongs to it.
		r, _ := s.root(root)
		if err := r.forget(s.host.StateDir, same); err != nil {
			return s.host.stateless(err)
		}
		r.settled = c.Digests[root]
	}
	step.At("peer.commit.forgotten")
	a.Committed = true
	if err := s.resolve(c.Waiting); err != nil {
		s.host.log("a conflict that is resolved cannot be marked so: " + err.Error())
	}
	step.At("peer.commit.resolved")
	return nil
}

// sync returns when what came into a root is on the disk.
func (s *session) sync(name string) error {
	r, _ := s.root(name)
	var err error
	switch {
	case r.synced:
		err = durable.SyncFiles(r.dir, r.unsynced)
	default:
		// What an earlier session, or an rsync of which no paths are known, has
		// written may not be there either.
		err = syncAll(r.dir)
	}
	if err == nil {
		r.synced, r.unsynced = true, nil
	}
	return err
}

func syncAll(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	return nil
}

// resolve ends the waiting of the conflicts that wait no more on the master.
func (s *session) resolve(waiting []string) error {
	if !s.waiting {
		return nil
	}
	left := false
	for _, i := range s.archives.Waiting() {
		if slices.Contains(waiting, i.ID) {
			left = true
		} else if err := s.archives.Resolve(i.ID, ""); err != nil {
			return err
		}
	}
	s.waiting = left
	return nil
}

// lockLimit is how long another may have the record to itself before it is
// taken for this node's own daemon, which rules.
const lockLimit = time.Second

// change changes the record, if f says so.
func (s *session) change(ctx context.Context, f func(ledger.Record) (ledger.Record, bool, error)) *Error {
	unlock, refusal := s.lockRecord(ctx)
	if refusal != nil {
		return refusal
	}
	defer unlock()
	if refusal := s.host.mayChange(); refusal != nil {
		return refusal
	}
	record, _, err := ledger.Load(s.host.StateDir, s.host.Machine)
	changed := false
	if err == nil {
		record, changed, err = f(record)
	}
	if err == nil && changed {
		err = ledger.Store(s.host.StateDir, record)
	}
	if err != nil {
		return s.host.stateless(err)
	}
	return nil
}

func (s *session) lockRecord(ctx context.Context) (unlock func(), refusal *Error) {
	limited, cancel := context.WithTimeout(ctx, lockLimit)
	defer cancel()
	unlock, err := ledger.Lock(limited, s.host.StateDir)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return nil, &Error{Kind: kindMaster, Text: "this node's own skd-inotify is at work, as that of a master",
			Remedy: "if there should be one master only, see skd-hooks status on both nodes"}
	case err != nil:
		return nil, s.host.stateless(err)
	}
	return unlock, nil
}

// stateless is the error for a state directory that cannot be used.
func (h Host) stateless(err error) *Error {
	return &Error{Kind: kindFailed, Text: "the record of this node's configuration: " + err.Error(), Remedy: "make room in " + h.StateDir + ", or mend it"}
}
