package history

import (
	"context"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/skudonet/skudonet-ce-cluster/lib/archive"
	"github.com/skudonet/skudonet-ce-cluster/lib/fileset"
	"github.com/skudonet/skudonet-ce-cluster/lib/ledger"
	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"github.com/skudonet/skudonet-ce-cluster/lib/peer"
	"github.com/skudonet/skudonet-ce-cluster/lib/scan"
)

// entry is what a path is, as an admin sees it. The zero entry is nothing.
type entry struct {
	kind byte // f, d, l
	mode fs.FileMode
	text string
}

// place is a path of a root.
type place struct{ root, path string }

// revision is the admin's part of a farm's file; the rest of it changes by itself.
var revision = regexp.MustCompile(`"rev": "[^"]*"`)

// look is what there is at path.
func look(path string) (e entry) {
	info, err := os.Lstat(path)
	if err != nil {
		return entry{}
	}
	switch {
	case info.IsDir():
		return entry{'d', info.Mode().Perm(), ""}
	case info.Mode()&fs.ModeSymlink != 0:
		target, _ := os.Readlink(path)
		return entry{'l', 0, target}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return entry{}
	}
	text := string(b)
	if strings.HasSuffix(path, "_l4xnat.cfg") {
		text = revision.FindString(text)
	}
	return entry{'f', info.Mode().Perm(), text}
}

// all is everything below dir, by relative path. The programs' own directories are left out.
func all(dir, root string, into map[place]entry) {
	filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return nil
		}
		if name := d.Name(); name == fileset.TempName || name == fileset.StageName {
			return filepath.SkipDir
		}
		rel, _ := filepath.Rel(dir, path)
		if e := look(path); e.kind != 0 {
			into[place{root, rel}] = e
		}
		return nil
	})
}

// tree is what a node's configuration is.
func (n *node) tree() map[place]entry {
	t := map[place]entry{}
	all(n.config(), peer.ConfigRoot, t)
	if e := look(n.rtTables()); e.kind != 0 {
		t[place{peer.RTTablesRoot, filepath.Base(n.rtTables())}] = e
	}
	return t
}

// replaced is what lies beside the trees until it was compared with what was known of it.
func (n *node) replaced() map[place]entry {
	t := map[place]entry{}
	all(n.path("tree", fileset.TempName, "replaced"), peer.ConfigRoot, t)
	all(n.path("etc", fileset.TempName, "replaced"), peer.RTTablesRoot, t)
	return t
}

// at is the path of a place on this node.
func (n *node) at(p place) string {
	if p.root == peer.RTTablesRoot {
		return filepath.Join(filepath.Dir(n.rtTables()), p.path)
	}
	return filepath.Join(n.config(), p.path)
}

// digests are those that the programs give the trees.
func (n *node) digests() map[string]manifest.Digest {
	list := map[string]manifest.Digest{}
	for _, r := range []scan.Root{
		{Name: peer.ConfigRoot, Dir: n.config(), Set: fileset.New()},
		{Name: peer.RTTablesRoot, Dir: filepath.Dir(n.rtTables()), Set: fileset.Only(filepath.Base(n.rtTables()))},
	} {
		t := scan.New(r)
		if _, err := t.Scan(context.Background(), false); err != nil {
			return nil
		}
		list[r.Name] = t.Manifest().Digest()
	}
	return list
}

// record is the node's, as it is on the disk.
func (n *node) record() ledger.Record {
	r, _, err := ledger.Peek(n.state())
	n.h.must(err)
	return r
}

// recorded are the digests that the record claims.
func recorded(r ledger.Record) map[string]manifest.Digest {
	list := map[string]manifest.Digest{}
	for name, t := range r.Trees {
		list[name] = t.Digest
	}
	return list
}

// clean tells whether the record is that of the tree.
func (n *node) clean() bool {
	r := recorded(n.record())
	return len(r) == 2 && maps.Equal(r, n.digests())
}

// kept is an archive.
type kept struct {
	archive.Info
	on      *node
	entries map[place]entry
}

// archives are all that the node has.
func (n *node) archives() (list []kept) {
	store, err := archive.Open(n.state())
	n.h.must(err)
	infos, err := store.List()
	n.h.must(err)
	for _, i := range infos {
		k, ok := n.h.archives[n.name+i.Name]
		if !ok {
			k = kept{on: n, entries: map[place]entry{}}
			for root := range i.Roots {
				dir, m, err := store.Tree(i, root)
				n.h.must(err)
				for e := range m.All() {
					k.entries[place{root, e.Path}] = look(filepath.Join(dir, e.Path))
				}
			}
			n.h.archives[n.name+i.Name] = k
		}
		k.Info = i
		list = append(list, k)
	}
	return list
}
