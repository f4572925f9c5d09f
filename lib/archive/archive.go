// Package archive keeps what was replaced or removed, so that it can be brought
// back. Each archive is a directory of the state directory's "archive":
//
//	2026-11-22T065301.123Z-conflict/
//	  manifest.json    Info: when, why, whose
//	  config/          the files of root "config" as they were: content, mode, owner
//	  config.manifest  what they are, in the form of package manifest
//
// # Order of writes
//
// An archive is written under a name that is none (partPrefix), and locked by its
// writer. Files, directories and manifests are on the disk before the directory
// gets its name, and the name is before Commit returns. So what has a name is
// whole, and who replaces something after Commit can lose nothing. What a crash
// leaves has no name and no lock; the next Open removes it.
//
// # Names
//
// A name begins with the time in UTC. No two have the same, and a later archive
// has a later one, also after the clock went backwards or within a millisecond: it
// is then the newest name's and a millisecond. Info.Made is what the clock said.
package archive

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/skudonet/skudonet-ce-cluster/lib/vector"
)

// Why something was replaced.
const (
	Conflict     = "conflict"      // both nodes ruled apart
	Repair       = "repair"        // somebody changed the backup, which was made the master's again
	Adopt        = "adopt"         // the master took over its peer's configuration
	FirstContact = "first-contact" // a node took part for the first time
	Restore      = "restore"       // another archive was restored
)

var reasons = []string{Conflict, Repair, Adopt, FirstContact, Restore}

// Whose something was: Info.Holds, and what Resolve is told.
const (
	Ours   = "ours"
	Theirs = "theirs"
)

// Info is what is known of an archive.
type Info struct {
	Name     string         `json:"-"`      // of its directory
	Made     time.Time      `json:"made"`   // in UTC, to the millisecond
	Reason   string         `json:"reason"` // one of the constants
	Peer     string         `json:"peer"`   // address of the other node
	Holds    string         `json:"holds"`  // Ours: what this node had; Theirs: what the peer had
	Ours     vector.Vector  `json:"ours"`   // at that moment
	Theirs   vector.Vector  `json:"theirs"`
	Whole    bool           `json:"whole"`              // all that was there, not only what was replaced
	Waiting  bool           `json:"waiting"`            // a conflict that nobody has resolved
	Ended    time.Time      `json:"ended,omitzero"`     // when a conflict was resolved: from then on its age counts
	Resolved string         `json:"resolved,omitempty"` // how it was: Ours, Theirs; empty if the other node knows
	ID       string         `json:"id,omitempty"`       // of a conflict, the same on both nodes
	Files    int            `json:"files"`              // that are no directories
	Bytes    int64          `json:"bytes"`              // that they take on a disk, in whole blocks of 4 KiB
	Roots    map[string]int `json:"roots"`              // entries by root, directories included
}

// longestWord is more than an address or an ID has, in bytes.
const longestWord = 128

// check tells whether i can stand in a manifest.json.
func (i *Info) check() error {
	word := func(name, s string) error {
		odd := func(r rune) bool { return !unicode.IsPrint(r) }
		if len(s) > longestWord || !utf8.ValidString(s) || strings.ContainsFunc(s, odd) {
			return fmt.Errorf("%s %.40q: want at most %d printable characters", name, s, longestWord)
		}
		return nil
	}
	for _, err := range []error{
		word("peer", i.Peer), word("id", i.ID),
		oneOf("reason", i.Reason, reasons...), oneOf("holds", i.Holds, Ours, Theirs), oneOf("resolved", i.Resolved, "", Ours, Theirs),
		i.Ours.Check(), i.Theirs.Check(),
	} {
		if err != nil {
			return err
		}
	}
	switch {
	case i.Made.Year() < 1970 || i.Made.Year() > 9999:
		return fmt.Errorf("made in the year %d", i.Made.Year())
	case i.Waiting && (i.Reason != Conflict || i.ID == "" || i.Resolved != ""):
		return errors.New("it waits, and is no unresolved conflict with an ID")
	case i.Files < 0 || i.Bytes < 0:
		return errors.New("a negative size")
	}
	for root, n := range i.Roots {
		if err := checkRoot(root); err != nil {
			return err
		}
		if n < 1 {
			return fmt.Errorf("root %s with %d entries", root, n)
		}
	}
	return nil
}

func oneOf(name, word string, want ...string) error {
	if !slices.Contains(want, word) {
		return fmt.Errorf("%s %.40q: want one of %q", name, word, want)
	}
	return nil
}

// checkRoot tells whether a root can be called that: it is part of file names.
func checkRoot(name string) error {
	odd := func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '_' && r != '-' }
	if name == "" || len(name) > 64 || strings.ContainsFunc(name, odd) {
		return fmt.Errorf("root %.40q: want small letters, digits, _ and -", name)
	}
	return nil
}

// parse reads the manifest.json of the archive name.
func parse(name string, b []byte) (Info, error) {
	var i Info
	if err := json.Unmarshal(b, &i); err != nil {
		return Info{}, err
	}
	if err := i.check(); err != nil {
		return Info{}, err
	}
	if _, reason, _ := splitName(name); reason != i.Reason {
		return Info{}, fmt.Errorf("reason %q is not that of the name", i.Reason)
	}
	i.Name = name
	return i, nil
}

func (i Info) encode() ([]byte, error) {
	b, err := json.MarshalIndent(i, "", "\t")
	return append(b, '\n'), err
}

// stamp is the time in a name.
const stamp = "2006-01-02T150405.000Z"

// splitName takes a name apart. Whatever begins with a time is an archive's name.
func splitName(name string) (at time.Time, reason string, ok bool) {
	if len(name) <= len(stamp) || name[len(stamp)] != '-' {
		return time.Time{}, "", false
	}
	at, err := time.Parse(stamp, name[:len(stamp)])
	return at, name[len(stamp)+1:], err == nil && at.Format(stamp) == name[:len(stamp)]
}

// nameAfter is the name of an archive that is made at made, when the newest name
// is last or "".
func nameAfter(last string, made time.Time, reason string) string {
	if at, _, ok := splitName(last); ok && !made.After(at) {
		made = at.Add(time.Millisecond)
	}
	return made.UTC().Format(stamp) + "-" + reason
}
