package peer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/archive"
	"github.com/skudonet/skudonet-ce-cluster/lib/beside"
	"github.com/skudonet/skudonet-ce-cluster/lib/conf"
	"github.com/skudonet/skudonet-ce-cluster/lib/fileset"
	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"github.com/skudonet/skudonet-ce-cluster/lib/rsync"
	"github.com/skudonet/skudonet-ce-cluster/lib/scan"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
)

// Bounds of the archives on this node, beside $archive_keep.
const (
	archiveAge   = 30 * 24 * time.Hour
	archiveBytes = 512 << 20
)

// root is a root being served.
type root struct {
	name, dir, temp string
	set             *fileset.Set
	tree            *scan.Tree

	walked time.Time     // when the latest walk ended; zero: never
	took   time.Duration // how long it took

	trust   trust
	stand   standing        // the record's, when the tree was last compared with it
	settled manifest.Digest // of the tree when the intent was written with nothing in flight

	remembered manifest.Digest // of what was written down last
	wroteKnown time.Time       // when
	writing    time.Duration   // how long it took

	replacing *replacing // by the request under way; nil: nothing, or nobody wants it kept

	unsynced []string // written or removed, perhaps not on the disk yet
	synced   bool     // all else is on the disk
}

// openRoots reads this node's configuration and fills in h. The error is a
// problem of this node.
func (s *session) openRoots(ctx context.Context, g greeting, h *hello) error {
	c, _, err := conf.Load(s.host.ConfigPath)
	if err != nil {
		return err
	}
	own, rules, err := readRules(c.Exclude)
	if err != nil {
		return fmt.Errorf("$exclude: %w", err)
	}
	theirs, _, err := fileset.ParseList(string(g.Exclude), g.Rules.read)
	if err != nil {
		return fmt.Errorf("the other node's $exclude: %w", err)
	}
	h.Exclude, h.Rules = Name(c.Exclude), rules
	if err := s.openState(ctx, h); err != nil {
		return err
	}
	s.rsync, s.clusterIPs, s.remote = c.Rsync, c.ClusterIPs(), c.RemoteIP.String()
	s.limits = archive.Limits{Keep: c.ArchiveKeep, Age: archiveAge, Bytes: archiveBytes}
	if v, err := rsync.Version(ctx, c.Rsync); err == nil {
		h.Hello.Rsync, s.aside = v, rsync.ErrorsAside(v)
	}
	roots := []*root{
		{name: ConfigRoot, dir: c.ConfigDir, set: fileset.New(theirs, own)},
		{name: RTTablesRoot, dir: filepath.Dir(c.RTTables), set: fileset.Only(filepath.Base(c.RTTables))},
	}
	// A system may have come without /etc/iproute2; the tree is another matter,
	// because a missing one may be a file system that is not mounted.
	if err := os.Mkdir(roots[1].dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("the directory of $rttables: %w", err)
	}
	for _, r := range roots {
		if r.temp, err = makeTemp(r.dir); err != nil {
			return fmt.Errorf("%s: %w", r.dir, err)
		}
		r.tree = scan.New(scan.Root{Name: r.name, Dir: r.dir, Set: r.set})
		s.roots = append(s.roots, r)
		h.Roots = append(h.Roots, Root{Name: r.name, Dir: r.dir, Temp: r.temp})
		if s.host.role() == status.Master {
			continue
		}
		if refusal := s.siftRest(ctx, r, nil); refusal != nil { // the next request that replaces something tries it again
			h.notice(refusal.Error())
			s.host.log(refusal.Error())
		}
	}
	return nil
}

func (s *session) root(name string) (*root, *Error) {
	for _, r := range s.roots {
		if r.name == name {
			return r, nil
		}
	}
	return nil, refused("there is no root %.40q here", name)
}

// makeTemp makes a directory for temporary files that can be renamed into dir:
// beside it, or in it if it is a file system of its own. Nothing is in it but what
// was replaced and is not sifted.
func makeTemp(dir string) (string, error) {
	temp, err := beside.Dir(dir, fileset.TempName)
	if err != nil {
		return "", err
	}
	if info, err := os.Lstat(temp); err == nil && !info.IsDir() {
		if err := os.Remove(temp); err != nil {
			return "", err
		}
	}
	if err := os.Mkdir(temp, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	return temp, errors.Join(os.Chmod(temp, 0o700), empty(temp))
}

// empty removes what is left in the directory for temporary files, except what
// was replaced and is not sifted.
func empty(temp string) error {
	list, err := os.ReadDir(temp)
	for _, e := range list {
		if e.Name() != replacedName || !e.IsDir() {
			err = errors.Join(err, os.RemoveAll(filepath.Join(temp, e.Name())))
		}
	}
	return err
}

// walkShare: the tree is walked at most for 1/walkShare of the time.
const walkShare = 10

// due tells whether the tree may be walked without being asked for it: small
// trees always, large ones not all the time.
func (r *root) due() bool {
	return r.walked.IsZero() || time.Since(r.walked) >= walkShare*r.took
}

func (r *root) walk(ctx context.Context, read bool) (scan.Report, error) {
	began := time.Now()
	report, err := r.tree.Scan(ctx, read)
	r.trust.found(report.Changed)
	if err == nil {
		r.trust.landed()
		r.walked = time.Now()
		r.took = r.walked.Sub(began)
	}
	return report, err
}

// unreadable is the error for a root that cannot be read at all.
func (r *root) unreadable(err error) *Error {
	return &Error{Kind: kindFailed, Text: fmt.Sprintf("%s: %v", r.dir, err), Remedy: "is the file system mounted? otherwise correct skudonet-cluster.conf on this node"}
}
