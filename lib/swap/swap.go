// Package swap replaces parts of a node's configuration by what was staged beside
// it: the journal (package journal), and what belongs to it. What came into the
// way since the plan was made is archived; the record says what the new tree is;
// and a restart of Skudonet is owed before the journal ends.
package swap

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/skudonet/skudonet-ce-cluster/lib/archive"
	"github.com/skudonet/skudonet-ce-cluster/lib/journal"
	"github.com/skudonet/skudonet-ce-cluster/lib/ledger"
	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"github.com/skudonet/skudonet-ce-cluster/lib/meaning"
	"github.com/skudonet/skudonet-ce-cluster/lib/step"
	"github.com/skudonet/skudonet-ce-cluster/lib/vector"
)

// Node is where it happens. Who calls has ledger.Lock.
type Node struct {
	StateDir string
	Archives *archive.Store
	Peer     string                    // address of the other node, for archives; "" if unknown
	Store    func(ledger.Record) error // puts the record on the disk
	Owe      func() error              // notes that Skudonet has to apply the new tree; nil: it does not run here
}

// Do carries out a plan. Paths that could not be changed are returned. After an
// error, Recover goes on where it ended, or nothing has been changed.
func (n Node) Do(ctx context.Context, plan journal.Plan) ([]journal.Problem, error) {
	if len(plan.Parts) == 0 {
		return nil, n.record(plan.Record)
	}
	plan.Hash = meaning.Read
	j, err := journal.Begin(n.StateDir, plan)
	if err != nil {
		return nil, err
	}
	step.At("swap.begun")
	return n.finish(ctx, j)
}

// Recover finishes what was interrupted, and returns for what reason it had been
// begun; "" if nothing was.
func (n Node) Recover(ctx context.Context) (reason string, problems []journal.Problem, err error) {
	j, err := journal.Pending(n.StateDir, meaning.Read)
	if err != nil || j == nil {
		return "", nil, err
	}
	if problems, err = n.finish(ctx, j); err != nil {
		err = fmt.Errorf("a change of the configuration that was interrupted (%s) cannot be finished: %w", j.Plan.Reason, err)
	}
	return j.Plan.Reason, problems, err
}

func (n Node) finish(ctx context.Context, j *journal.Journal) ([]journal.Problem, error) {
	problems, err := n.apply(ctx, j)
	if err != nil {
		return problems, err
	}
	step.At("swap.applied")
	if err := n.record(j.Plan.Record); err != nil {
		return problems, err
	}
	step.At("swap.recorded")
	if n.Owe != nil && j.Plan.Reason != archive.Restore { // which leaves it to the admin
		if err := n.Owe(); err != nil {
			return problems, err
		}
	}
	return problems, j.End()
}

// apply changes the tree. What is neither what the plan replaces nor what it
// brings is archived.
func (n Node) apply(ctx context.Context, j *journal.Journal) ([]journal.Problem, error) {
	dirs := map[string]string{}
	for _, p := range j.Plan.Parts {
		dirs[p.Root] = p.Dir
	}
	return j.Apply(ctx, func(root, path string, _ manifest.Entry) error {
		// On the disk before it is replaced, so each in an archive of its own.
		w, err := n.Archives.Begin(archive.Info{Reason: archive.Adopt, Peer: n.Peer, Holds: archive.Ours})
		if err != nil {
			return err
		}
		defer w.Abort()
		if err := w.Add(root, dirs[root], path); err != nil || w.Empty() {
			return err
		}
		_, err = w.Commit()
		return err
	})
}

func (n Node) record(text json.RawMessage) error {
	if len(text) == 0 {
		return nil
	}
	var r ledger.Record
	if err := json.Unmarshal(text, &r); err != nil {
		return fmt.Errorf("what was to be recorded: %w", err)
	}
	// It may have been interrupted long ago.
	if now, ok, err := ledger.Peek(n.StateDir); err != nil || ok && r.Vector.Compare(now.Vector) == vector.Behind {
		return err
	}
	return n.Store(r)
}
