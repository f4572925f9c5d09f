package peer

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
)

// Protocol is the version of the protocol that this program speaks.
const Protocol = 1

// Names of the roots.
const (
	ConfigRoot   = "config"    // $configdir
	RTTablesRoot = "rt_tables" // the directory of $rttables, of which only that file counts
)

// Roles that a node tells beside the two words of the status file.
const (
	RoleStopped = "stopped" // there is no status file
	RoleUnknown = "unknown" // the status file cannot be read; nothing is taken from the master then
)

// Name is a path or an argument; it need not be UTF-8.
type Name []byte

// Hello is what the server says of itself when the session begins.
type Hello struct {
	Protocol int    // the one that is spoken from here on
	Version  string // of the program
	Role     string // status.Master, status.Backup, RoleStopped or RoleUnknown
	Elects   bool   // skd-vrrpd runs there: its ucarp, if it ever had one, does not any more
	Exclude  string // its $exclude
	Roots    []Root // none if there is a Problem
	Rsync    string // version of its rsync, "" if that cannot be run
	Problem  string // why nothing can be replicated to it, with the remedy; "" is well

	rules ruleFiles
}

// ReadFile returns the contents of a file that Exclude names, as it is on the
// server. It is what fileset.ParseList wants.
func (h Hello) ReadFile(path string) ([]byte, error) { return h.rules.read(path) }

// hello is a Hello as it travels: $exclude need not be UTF-8.
type hello struct {
	Hello
	Exclude Name
	Rules   ruleFiles `json:",omitempty"`
}

// Root is a root as it is on the server.
type Root struct {
	Name string // ConfigRoot or RTTablesRoot
	Dir  string
	Temp string // directory for rsync's temporary files: outside the file set, on the same file system
}

// greeting is the client's hello.
type greeting struct {
	Protocols []int
	Version   string
	Exclude   Name
	Rules     ruleFiles `json:",omitempty"`
}

// DigestRequest asks for the digests of some roots, each named once.
type DigestRequest struct{ Roots []Look }

// Look says what to do in one root before its digest is taken.
type Look struct {
	Root   string
	Remove []Removal `json:",omitempty"` // first: remove these
	Paths  []Name    `json:",omitempty"` // then look at these again, and read them
	Full   bool      `json:",omitempty"` // walk the whole tree
	Read   bool      `json:",omitempty"` // read every file of it; implies Full
	Except []Name    `json:",omitempty"` // the digest is as if these, with all below, were not there
}

// Removal is a path that the master no longer has.
type Removal struct {
	Path Name
	Kind byte // what the master believes is there: a manifest.Kind
}

// RootDigest is the answer for one root.
type RootDigest struct {
	Root     string
	Role     string // of the node, when the root was looked at
	Digest   manifest.Digest
	Entries  int       // in the whole manifest
	Walked   bool      // the whole tree was walked for this answer
	Problems []Problem `json:",omitempty"` // removals that failed and files that cannot be read, at most 50
	More     int       `json:",omitempty"` // problems beyond those
	Failed   string    `json:",omitempty"` // why there is no digest: the root itself cannot be read
}

type digestAnswer struct{ Roots []RootDigest }

// Problem is something that is wrong with one path.
type Problem struct {
	Path Name
	Text string
}

const (
	maxProblems    = 50
	maxProblemText = 500
)

// add notes a problem, within bounds.
func (d *RootDigest) add(path, text string) {
	if len(d.Problems) == maxProblems {
		d.More++
		return
	}
	if len(text) > maxProblemText {
		text = text[:maxProblemText] + "…"
	}
	d.Problems = append(d.Problems, Problem{Name(path), strings.ToValidUTF8(text, "?")})
}

type manifestRequest struct{ Root string }

type manifestAnswer struct{ Digest manifest.Digest }

type rsyncRequest struct {
	Root string
	Args []Name
}

type rsyncAnswer struct{ Exit int }

type roleAnswer struct{ Role string }

// Kinds of an Error.
const (
	kindVersion = "version"
	kindMaster  = "master"
	kindUnknown = "unknown"
	kindRefused = "refused" // the request is not one that is ever granted
	kindFailed  = "failed"
	kindEnded   = "ended" // not the request but the session
)

// Error is what the server answers to a request that it did not carry out.
type Error struct {
	Kind   string // of the failure: errors.Is tells the Err… of this package by it
	Text   string // what and where
	Remedy string `json:",omitempty"` // what to do about it
}

// Error returns text and remedy.
func (e *Error) Error() string {
	if e.Remedy == "" {
		return e.Text
	}
	return e.Text + ": " + e.Remedy
}

// Is tells whether e is ErrVersion, ErrMaster, ErrUnknown or ErrClosed.
func (e *Error) Is(target error) bool {
	switch target {
	case ErrVersion:
		return e.Kind == kindVersion
	case ErrMaster:
		return e.Kind == kindMaster
	case ErrUnknown:
		return e.Kind == kindUnknown
	case ErrClosed:
		return e.Kind == kindEnded
	}
	return false
}

// What can be told from an error by errors.Is.
var (
	ErrAbsent  = errors.New("no skd-inotify peer there")                  // the program is missing, or did not start
	ErrVersion = errors.New("no protocol in common")                      // both programs are there, too far apart
	ErrMaster  = errors.New("the peer is master")                         // and takes nothing from us
	ErrUnknown = errors.New("the peer's version does not know this")      // a request of a later version
	ErrClosed  = errors.New("the session with skd-inotify peer is ended") // before or during the request
)

func refused(format string, args ...any) *Error {
	return &Error{Kind: kindRefused, Text: fmt.Sprintf(format, args...)}
}

// encode makes a frame of v, which always can be encoded.
func encode(kind byte, v any) (frame, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return frame{}, err
	}
	if len(b) > longest(kind) {
		return frame{}, fmt.Errorf("%d bytes in one message, at most %d are allowed", len(b), longest(kind))
	}
	return frame{kind, b}, nil
}

// decode reads the JSON object of a frame.
func decode(f frame, v any) error {
	if err := json.Unmarshal(f.body, v); err != nil {
		return fmt.Errorf("frame %q: %w", f.kind, err)
	}
	return nil
}

func texts(names []Name) []string {
	list := make([]string, len(names))
	for i, n := range names {
		list[i] = string(n)
	}
	return list
}
