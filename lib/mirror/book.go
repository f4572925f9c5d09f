package mirror

import (
	"maps"
	"slices"

	"github.com/skudonet/skudonet-ce-cluster/lib/durable"
	"github.com/skudonet/skudonet-ce-cluster/lib/ledger"
	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"github.com/skudonet/skudonet-ce-cluster/lib/step"
	"github.com/skudonet/skudonet-ce-cluster/lib/vector"
)

// book is this node's record, and what the peer's was when it was last heard of.
type book struct {
	record ledger.Record
	theirs vector.Vector
	put    func(ledger.Record) error
	saving chan error // of the write under way; nil: none
	failed error      // the disk does not have the record
}

func newBook(c Config) *book { return &book{record: c.Record, put: c.Store} }

// clean tells whether the record's vector stands for what the trees hold.
func (b *book) clean(parts []*part, set string) bool {
	for _, p := range parts {
		if !b.record.Holds(p.Name, p.stands(set)) {
			return false
		}
	}
	return true
}

func (p *part) stands(set string) ledger.Tree {
	return ledger.Tree{Digest: p.tree.Manifest().Digest(), Set: set}
}

// write has the vector stand for what the trees hold, once the changed files are
// on the disk. The disk works while rsync does; wait tells when it is done.
func (b *book) write(v vector.Vector, parts []*part, set string) {
	b.wait()
	b.record.Vector, b.record.Trees = v, maps.Clone(b.record.Trees)
	if b.record.Trees == nil {
		b.record.Trees = map[string]ledger.Tree{}
	}
	files := map[string]int{}
	for _, p := range parts {
		b.record.Trees[p.Name] = p.stands(set)
		files[p.Name] = p.tree.Manifest().Files()
	}
	b.record.Files = files
	changed := map[string][]string{}
	for _, p := range parts {
		changed[p.Dir] = slices.Sorted(maps.Keys(p.wanted))
	}
	b.save(func() error {
		for dir, paths := range changed {
			if err := durable.SyncFiles(dir, paths); err != nil {
				return err
			}
		}
		step.At("mirror.synced")
		return nil
	})
}

// save stores the record after what has to be done before.
func (b *book) save(before func() error) {
	r := b.record
	saving := make(chan error, 1)
	b.saving = saving
	go func() {
		err := before()
		if err == nil {
			err = b.put(r)
			step.At("mirror.recorded")
		}
		saving <- err
	}()
}

// retry stores again what the disk did not take.
func (b *book) retry() {
	if b.wait() != nil {
		b.save(func() error { return nil })
	}
}

// renew takes a new identity.
func (b *book) renew() error {
	b.wait()
	b.record = b.record.Renewed()
	b.save(func() error { return nil })
	return b.wait()
}

// wait returns when nothing is being written any more, and why the disk does not
// have the record, if it has not.
func (b *book) wait() error {
	if b.saving != nil {
		b.failed = <-b.saving
		b.saving = nil
	}
	return b.failed
}

// digests are those of whole trees.
func digests(parts []*part) map[string]manifest.Digest {
	all := map[string]manifest.Digest{}
	for _, p := range parts {
		all[p.Name] = p.tree.Manifest().Digest()
	}
	return all
}
