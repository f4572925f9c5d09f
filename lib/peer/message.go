package peer

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/skudonet/skudonet-ce-cluster/lib/ledger"
	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"github.com/skudonet/skudonet-ce-cluster/lib/vector"
)

// Protocol is the version of the protocol that this program speaks.
const Protocol = 2

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

	Notices []string `json:",omitempty"` // what happened there before this session could begin

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
type DigestRequest struct {
	Roots  []Look
	Set    string  `json:",omitempty"` // which files both nodes look at, as Commit has it; "": the server trusts nothing
	Commit *Commit `json:",omitempty"` // last: what the server has now
}

// Commit is what the server stores if it has exactly that, whole and without
// exceptions: that its configuration is the one that the vector stands for.
type Commit struct {
	Vector  vector.Vector
	Digests map[string]manifest.Digest // by the names of the roots
	Set     string                     // which files both nodes look at: other sets have other digests
	Waiting []string                   // conflicts that wait on the master; the server's other ones are resolved
}

// Keeping is what the server archives before something is written or removed.
// Without All it is what it cannot account for: see the package comment.
type Keeping struct {
	All    bool          // all that is replaced or removed
	Reason string        // of package archive
	Peer   string        // address of the client, for the archive
	Ours   vector.Vector // of the server, for the archive
	Theirs vector.Vector // of the client, likewise
	Paths  []Name        `json:"-"` // what rsync may write, at least one; only with RsyncOptions
}

// Look says what to do in one root before its digest is taken.
type Look struct {
	Root   string
	Remove []Removal `json:",omitempty"` // first: remove these
	Paths  []Name    `json:",omitempty"` // then look at these again, and read them
	Full   bool      `json:",omitempty"` // walk the whole tree
	Read   bool      `json:",omitempty"` // read every file of it; implies Full
	Except []Name    `json:",omitempty"` // the digest is as if these, with all below, were not there
	Keep   *Keeping  `json:",omitempty"` // what is archived before Remove
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
	Touched  bool      // there is something that neither the server's record nor a push accounts for; always, if no Set was named
	Problems []Problem `json:",omitempty"` // removals that failed and files that cannot be read, at most 50
	More     int       `json:",omitempty"` // problems beyond those
	Failed   string    `json:",omitempty"` // why there is no digest: the root itself cannot be read
}

// DigestAnswer is the answer to a DigestRequest.
type DigestAnswer struct {
	Roots        []RootDigest // in the order of the request
	Committed    bool         // the record is on the server's disk
	NotCommitted string       `json:",omitempty"` // why there was nothing to commit
}

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

// RsyncOptions say what Rsync is for.
type RsyncOptions struct {
	Fetch bool     // the server's files are sent, not written
	Keep  *Keeping // what is archived before rsync begins
}

type rsyncRequest struct {
	Root  string
	Args  []Name
	Fetch bool     `json:",omitempty"`
	Keep  *Keeping `json:",omitempty"`
	Names int      `json:",omitempty"` // bytes of the paths that follow
}

type rsyncAnswer struct{ Exit int }

type roleAnswer struct{ Role string }

// Standing is what the server's node knows of its configuration at this moment.
type Standing struct {
	ID       vector.ID
	Vector   vector.Vector
	Trees    map[string]ledger.Tree // that the vector stands for, by the names of the roots
	Holder   bool                   // its tree has an interface file with $cluster_ip
	Role     string
	Skudonet string   // version of Skudonet there, "" if unknown
	Waiting  []string // IDs of conflicts that nobody has resolved
}

type renewRequest struct{ Why string }

type renewAnswer struct{ ID vector.ID }

// KeepRequest has the server archive all it has of every root. Ours is the server's.
type KeepRequest struct {
	ID           string // of the conflict, the same on both nodes
	Reason       string // of package archive
	Peer         string // address of the client
	Ours, Theirs vector.Vector
}

// Kept is an archive that was made.
type Kept struct {
	Name  string
	Files int
}

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
