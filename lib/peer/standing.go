package peer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/address"
	"github.com/skudonet/skudonet-ce-cluster/lib/archive"
	"github.com/skudonet/skudonet-ce-cluster/lib/journal"
	"github.com/skudonet/skudonet-ce-cluster/lib/ledger"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
	"github.com/skudonet/skudonet-ce-cluster/lib/step"
	"github.com/skudonet/skudonet-ce-cluster/lib/swap"
)

// openState opens what this node knows of its configuration, and fills in h.
func (s *session) openState(ctx context.Context, h *hello) error {
	if err := os.MkdirAll(s.host.StateDir, 0o700); err != nil {
		return err
	}
	var err error
	if s.archives, err = archive.Open(s.host.StateDir); err != nil {
		return err
	}
	s.waiting = true // as far as we know
	// A master's daemon has the record, and has made it.
	if s.host.role() != status.Master {
		unlock, refusal := s.lockRecord(ctx)
		if refusal == nil {
			defer unlock()
			err = s.finish(ctx, h.notice)
		} else if !errors.Is(refusal, ErrMaster) {
			err = refusal
		}
		if err != nil {
			return err
		}
	}
	_, notice, err := ledger.Load(s.host.StateDir, s.host.Machine)
	if err != nil {
		return s.host.stateless(err)
	}
	if notice != "" {
		h.notice(notice)
	}
	for _, text := range h.Notices {
		s.host.log(text)
	}
	return nil
}

func (h *hello) notice(text string) { h.Notices = append(h.Notices, text) }

// recover finishes what this node's own daemon left half done when it ended
// during this session.
func (s *session) recover(ctx context.Context) *Error {
	if _, err := os.Lstat(filepath.Join(s.host.StateDir, journal.Name)); err != nil || s.host.role() == status.Master {
		return nil
	}
	unlock, refusal := s.lockRecord(ctx)
	if refusal != nil {
		return refusal
	}
	defer unlock()
	for _, r := range s.roots {
		r.walked = time.Time{}
	}
	if err := s.finish(ctx, s.host.log); err != nil {
		return &Error{Kind: kindFailed, Text: err.Error()}
	}
	return nil
}

// finish carries out what was begun before and interrupted: a journal changes the
// tree, which must not be looked at half changed. The lock of the record is held.
func (s *session) finish(ctx context.Context, notice func(string)) error {
	store := func(r ledger.Record) error {
		if err := ledger.Store(s.host.StateDir, r); err != nil {
			return s.host.stateless(err)
		}
		return nil
	}
	reason, problems, err := swap.Node{StateDir: s.host.StateDir, Archives: s.archives, Store: store}.Recover(ctx)
	for _, p := range problems {
		notice(fmt.Sprintf("%q in %s could not be changed: %v", p.Path, p.Root, p.Err))
	}
	if reason != "" && err == nil {
		notice("a change of the configuration that was interrupted is finished: " + reason)
	}
	return err
}

// standing answers what is known here at this moment.
func (s *session) standing() (any, *Error) {
	r, refusal := s.root(ConfigRoot)
	if refusal != nil {
		return nil, refusal
	}
	record, _, err := ledger.Load(s.host.StateDir, s.host.Machine)
	if err != nil {
		return nil, s.host.stateless(err)
	}
	a := Standing{ID: record.ID, Vector: record.Vector, Trees: record.Trees, Role: s.host.role(), Skudonet: s.host.skudonet(),
		Holder: address.Holds(os.DirFS(r.dir), s.clusterIPs...)}
	for _, i := range s.archives.Waiting() {
		a.Waiting = append(a.Waiting, i.ID)
	}
	return a, nil
}

// renew takes a new identity.
func (s *session) renew(ctx context.Context, q renewRequest) (any, *Error) {
	if refusal := s.ready(); refusal != nil {
		return nil, refusal
	}
	var a renewAnswer
	refusal := s.change(ctx, func(record ledger.Record) (ledger.Record, bool, error) {
		record = record.Renewed()
		a.ID = record.ID
		return record, true, nil
	})
	if refusal != nil {
		return nil, refusal
	}
	step.At("peer.renewed")
	s.host.log(fmt.Sprintf("this node takes a new identity, %s: %.500q", a.ID.Short(), q.Why))
	return a, nil
}

// ready refuses a change of what the node knows where that is not possible.
func (s *session) ready() *Error {
	if len(s.roots) == 0 {
		return refused("nothing is served here")
	}
	return s.host.mayChange()
}
