package status

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/smallfile"
)

// ReplicatorFile is the name of the Replicator file in the run directory.
const ReplicatorFile = "inotify.json"

// States of a Replicator.
const (
	Connecting  = "connecting"  // no connection to the peer
	Comparing   = "comparing"   // all files of both nodes are being compared
	Replicating = "replicating" // changes are on their way
	Waiting     = "waiting"     // for a file that is being written, or to repeat what failed
	InStep      = "in step"     // both nodes have the same
)

// Replicator is what skd-inotify knows, as it stands in its JSON file. The names
// of the fields in the file are an interface to monitoring: they stay.
type Replicator struct {
	Version string `json:"version"` // of skd-inotify
	PID     int    `json:"pid"`
	Started Moment `json:"started"`
	Updated Moment `json:"updated"` // this file: everything in it is as of then

	State    string `json:"state"`    // Connecting, Comparing, Replicating, Waiting or InStep
	Since    Moment `json:"since"`    // when that state was entered
	Progress string `json:"progress"` // of a long transfer or comparison, in words

	Peer struct {
		Address string `json:"address"`
		Version string `json:"version"` // of its skd-inotify; empty if it has none (2.0), or was not reached yet
		Since   Moment `json:"connected_since,omitzero"`
		Weak    bool   `json:"not_compared"` // it cannot compare: what arrived there is not verified
	} `json:"peer"`

	InStepAt Moment   `json:"in_step_at,omitzero"` // when both nodes were last known to have the same
	Pending  int      `json:"pending"`             // changed paths that are not confirmed
	Paths    []string `json:"pending_paths,omitempty"`
	Oldest   Moment   `json:"oldest_pending,omitzero"` // since when the peer is behind

	Roots []ReplicatedRoot `json:"roots,omitempty"`
	Last  *Transfer        `json:"last_transfer,omitempty"`
	Runs  uint64           `json:"runs"` // of rsync, since Started

	Problems []Problem `json:"problems,omitempty"`
}

// ReplicatedRoot is one directory that is replicated, as last seen.
type ReplicatedRoot struct {
	Name    string `json:"name"`
	Dir     string `json:"dir"`
	Entries int    `json:"entries"`
	Digest  string `json:"digest"`
}

// Transfer is one that has ended well.
type Transfer struct {
	At      Moment  `json:"at"`
	Took    Seconds `json:"took_s"` // from the first change until both nodes had the same
	Changes int     `json:"changes"`
	Words   string  `json:"what"`
}

// ReadReplicator reads what WriteFile wrote. Without a file the error wraps
// fs.ErrNotExist: skd-inotify has not run since the machine booted.
func ReadReplicator(path string) (Replicator, error) {
	b, err := smallfile.Read(path, maxJSON)
	if err != nil {
		return Replicator{}, err
	}
	var r Replicator
	if err := json.Unmarshal(b, &r); err != nil {
		return Replicator{}, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}

// WriteFile puts r at path by rename, mode 0644.
func (r Replicator) WriteFile(path string) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return replace(path, append(b, '\n'))
}

// Alive tells whether the process that wrote r is running.
func (r Replicator) Alive() bool { return Alive(r.PID, r.Updated.Boot) }

// Replication is what can be said about a node's replicator from its files.
type Replication struct {
	State      string      `json:"state"`  // of the replicator, else Stopped
	Health     Health      `json:"health"` // healthy, degraded or stopped
	Running    bool        `json:"running"`
	Word       string      `json:"status_file"` // master, backup, or nothing
	AsOf       Seconds     `json:"as_of_s"`     // how old the Replicator's knowledge is
	Behind     Seconds     `json:"behind_s"`    // for how long the peer has been missing a change; 0 in step
	Problems   []Problem   `json:"problems,omitempty"`
	Replicator *Replicator `json:"replicator,omitempty"`
	now        Moment
}

// InspectReplication reads the status file and the Replicator file in runDir, and
// looks whether that replicator is alive.
func InspectReplication(statusFile, runDir string) Replication {
	return inspectReplication(statusFile, runDir, Now(), Replicator.Alive)
}

func inspectReplication(statusFile, runDir string, now Moment, alive func(Replicator) bool) Replication {
	s := Replication{State: Stopped, now: now}
	s.Word, _ = Read(statusFile)
	r, err := ReadReplicator(filepath.Join(runDir, ReplicatorFile))
	switch {
	case err == nil:
		s.Replicator, s.Running, s.AsOf = &r, alive(r), Seconds(max(0, r.Updated.Age(now)))
	case !errors.Is(err, fs.ErrNotExist):
		s.problem("what the replicator says about itself cannot be read: "+err.Error(), "restart the service")
	}
	if s.Running {
		s.State = r.State
		s.Problems = append(s.Problems, r.Problems...)
		if !r.Oldest.IsZero() {
			s.Behind = Seconds(max(0, r.Oldest.Age(now)))
		}
	} else if s.Word == Master {
		s.problem("this node is master, but skd-inotify is not running: changes do not reach the backup",
			"skd-hooks start; why it ended is at the end of its log")
	}
	switch {
	case len(s.Problems) > 0:
		s.Health = Degraded
	case !s.Running:
		s.Health = Down
	}
	return s
}

func (s *Replication) problem(text, remedy string) {
	s.Problems = append(s.Problems, Problem{Text: text, Remedy: remedy})
}

// WriteText writes it for people.
func (s Replication) WriteText(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	row := func(name, format string, args ...any) {
		fmt.Fprintf(t, "%s\t%s\n", name, fmt.Sprintf(format, args...))
	}
	when := Report{now: s.now}.when
	r := s.Replicator
	switch {
	case s.Running:
		row("state", "%s since %s", s.State, when(r.Since))
	case s.Word == Backup:
		row("state", "stopped: this node is backup, the replicator runs on the master")
	default:
		row("state", "stopped")
	}
	row("health", "%s", s.Health)
	if r != nil {
		s.detail(row, when)
	}
	for i, p := range s.Problems {
		row([]string{"problems", ""}[min(i, 1)], "%s", p.Text)
		if p.Remedy != "" {
			row("", "  -> %s", p.Remedy)
		}
	}
	return t.Flush()
}

func (s Replication) detail(row rowFunc, when func(Moment) string) {
	r := s.Replicator
	switch {
	case r.Peer.Since.IsZero() && s.Running:
		row("peer", "%s, not connected", r.Peer.Address)
	case r.Peer.Weak:
		row("peer", "%s, connected since %s; it cannot compare (no skd-inotify there)", r.Peer.Address, when(r.Peer.Since))
	case s.Running:
		row("peer", "%s, skd-inotify %s, connected since %s", r.Peer.Address, r.Peer.Version, when(r.Peer.Since))
	}
	if !r.InStepAt.IsZero() {
		row("in step", "last seen %s", when(r.InStepAt))
	}
	if r.Progress != "" && s.Running {
		row("progress", "%s", r.Progress)
	}
	switch {
	case r.Pending > 0 && !r.Oldest.IsZero():
		row("pending", "%d, the oldest since %s: %s", r.Pending, when(r.Oldest), list(r.Paths, r.Pending))
	case r.Pending > 0:
		row("pending", "%d: %s", r.Pending, list(r.Paths, r.Pending))
	case s.Running:
		row("pending", "nothing")
	}
	for i, root := range r.Roots {
		row([]string{"replicated", ""}[min(i, 1)], "%s: %d entries, digest %.12s", root.Dir, root.Entries, root.Digest)
	}
	if r.Last != nil {
		row("last transfer", "%s, took %s: %s", when(r.Last.At), r.Last.Took, r.Last.Words)
	}
	row("replicator", "skd-inotify %s, pid %d, %d runs of rsync; says this as of %s ago", r.Version, r.PID, r.Runs, Age(time.Duration(s.AsOf)))
}

// list names some of count paths.
func list(paths []string, count int) string {
	text := strings.Join(paths, ", ")
	if more := count - len(paths); more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}
