package mirror

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/skudonet/skudonet-ce-cluster/lib/archive"
	"github.com/skudonet/skudonet-ce-cluster/lib/journal"
	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"github.com/skudonet/skudonet-ce-cluster/lib/peer"
	"github.com/skudonet/skudonet-ce-cluster/lib/reconcile"
	"github.com/skudonet/skudonet-ce-cluster/lib/step"
)

// conflict keeps the peer's configuration whole, on both nodes, before it is
// replaced by ours.
func (r *round) conflict(ctx context.Context, with Peer, parts []*part, theirs peer.Standing, d reconcile.Decision) error {
	r.say("keeping the configuration of the peer, which was changed apart from ours")
	limited, cancel := limit(ctx, wholeLimit)
	defer cancel()
	for _, p := range parts {
		if p.theirs != nil {
			continue
		}
		var err error
		if p.theirs, err = with.Manifest(limited, p.Name); err != nil {
			return err
		}
	}
	id := conflictID(theirs, parts)
	// The peer first: if it has become master, it refuses, and nothing has happened.
	known := slices.ContainsFunc(r.cfg.Archives.Waiting(), func(i archive.Info) bool { return i.ID == id })
	if !slices.Contains(theirs.Waiting, id) {
		_, err := with.Keep(limited, peer.KeepRequest{ID: id, Reason: archive.Conflict, Peer: r.cfg.Local, Ours: theirs.Vector, Theirs: r.book.record.Vector})
		if err != nil {
			return err
		}
	}
	step.At("mirror.conflict.kept")
	if !known {
		info := archive.Info{Reason: archive.Conflict, ID: id, Waiting: true, Whole: true, Holds: archive.Theirs, Peer: r.cfg.Peer,
			Ours: r.book.record.Vector, Theirs: theirs.Vector}
		if err := r.archiveTheirs(ctx, with, parts, info); err != nil {
			return err
		}
	}
	step.At("mirror.conflict.archived")
	if !known {
		r.cfg.Log.Warn(fmt.Sprintf("this node and the peer %s were both master, apart from each other: this node's configuration stays; the other one is archived on both nodes", r.cfg.Peer),
			"reason", d.Reason, "remedy", "skd-inotify history; skd-inotify resolve ours|theirs")
	}
	r.sayConflicts()
	return nil
}

// conflictID is the same whenever the same configuration of the peer is met, so
// that a conflict that was interrupted is archived once.
func conflictID(theirs peer.Standing, parts []*part) string {
	digests := map[string]manifest.Digest{}
	for _, p := range parts {
		digests[p.Name] = p.theirs.Digest()
	}
	text, err := json.Marshal([]any{theirs.Vector, digests})
	if err != nil {
		panic(err) // maps of numbers and text
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:16])
}

// archiveTheirs fetches all that the peer has into an archive here.
func (r *round) archiveTheirs(ctx context.Context, with Peer, parts []*part, info archive.Info) error {
	writer, err := r.cfg.Archives.Begin(info)
	if err != nil {
		return archiveTrouble(err)
	}
	defer writer.Abort()
	for _, p := range parts {
		var files []string
		for e := range p.theirs.All() {
			if e.Path != "." {
				files = append(files, e.Path)
			}
		}
		if len(files) == 0 {
			continue
		}
		stage, err := journal.StageFor(r.cfg.StateDir, p.Dir)
		if err != nil {
			return archiveTrouble(err)
		}
		defer journal.Undo(r.cfg.StateDir, stage)
		if err := with.Fetch(ctx, p.Name, files, stage); err != nil {
			return err
		}
		for _, path := range files {
			if err := writer.Add(p.Name, stage, path); err != nil {
				return archiveTrouble(err)
			}
		}
	}
	return r.keepArchive(writer)
}

// conflictsOf are the conflicts that wait, as far as this node knows: its own, and
// those of the peer's that were not resolved here.
func (r *round) conflictsOf(theirs []string) []string {
	var waiting []string
	for _, i := range r.cfg.Archives.Waiting() {
		waiting = append(waiting, i.ID)
	}
	list, _ := r.cfg.Archives.List()
	for _, id := range theirs {
		if !slices.ContainsFunc(list, func(i archive.Info) bool { return i.ID == id }) {
			waiting = append(waiting, id)
		}
	}
	slices.Sort(waiting)
	return slices.Compact(waiting)
}

// sayConflicts shows what waits for an admin.
func (r *round) sayConflicts() {
	var names []string
	for _, i := range r.cfg.Archives.Waiting() {
		names = append(names, i.Name)
	}
	if len(names) == 0 {
		r.cfg.Troubles.Clear("conflict")
		return
	}
	r.cfg.Troubles.Advise("conflict", "both nodes were master apart; the configuration that is not used is archived, and waits: "+strings.Join(names, ", "),
		"see skd-inotify history NAME; then skd-inotify resolve ours (all stays as it is), or skd-inotify resolve theirs (bring it back)")
}
