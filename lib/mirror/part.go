package mirror

import (
	"maps"
	"path"
	"slices"

	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"github.com/skudonet/skudonet-ce-cluster/lib/peer"
	"github.com/skudonet/skudonet-ce-cluster/lib/scan"
)

// part is a round's business with one root.
type part struct {
	Root
	index      int
	first      bool  // nothing was known of the tree before
	trouble    error // of this root: it is left alone
	postponed  bool  // because of another root's trouble
	same       bool  // before anything was sent
	theirs     *manifest.Manifest
	tree       *scan.Tree
	impatient  map[string]bool // send also while they are being written
	before     map[string]manifest.Entry
	wanted     map[string]bool // to send
	busy       map[string]bool
	except     map[string]bool // not compared: busy, unreadable or left
	left       []string
	forced     map[string]bool
	held       map[string]manifest.Entry // of the round's
	special    []string
	unreadable []failure
	failed     []failure
	refused    map[string]string // by the peer: removals and reads, with the reason
	sent       []string
	gone       []peer.Removal
	going      map[string]bool // the same
	said       error           // of rsync
	digest     manifest.Digest
	changes    map[string]manifest.Change
	repairs    map[string]bool
}

// remember keeps what is known of a path and of all below it, before a look
// changes that.
func (p *part) remember(path string) {
	m := p.tree.Manifest()
	if e, ok := m.Get(path); ok {
		p.before[path] = e
	}
	for _, below := range m.Below(path) {
		p.before[below], _ = m.Get(below)
	}
}

// note records a change for the log.
func (p *part) note(path string, to *manifest.Entry) {
	c := manifest.Change{Path: path, To: to}
	if from, ok := p.before[path]; ok {
		c.From = &from
	}
	if c.From == nil && c.To == nil {
		return
	}
	p.changes[path] = c
}

// remove has a path removed there that is not here.
func (p *part) remove(path string) {
	if p.going[path] {
		return
	}
	p.going[path] = true
	kind := p.before[path].Kind
	if kind == 0 {
		kind = manifest.File // It came and went between two looks.
	}
	p.gone = append(p.gone, peer.Removal{Path: peer.Name(path), Kind: byte(kind)})
	p.note(path, nil)
}

// skip leaves a path that cannot be read alone, here and there.
func (p *part) skip(path string, err error) {
	p.except[path] = true
	delete(p.wanted, path)
	p.unreadable = append(p.unreadable, failure{path, "cannot be read: " + reason(err)})
}

// excepted tells whether a path is not compared, or a directory above it.
func (p *part) excepted(path string) bool {
	for ; ; path = parent(path) {
		if p.except[path] {
			return true
		}
		if path == "." {
			return false
		}
	}
}

// exceptions are the paths that are not compared, or, if they are very many, their
// directories: then an equal digest says too little.
func (p *part) exceptions() (paths []string, wide bool) {
	list := p.except
	for ; ; wide = true {
		named := map[string]bool{}
		for path := range list {
			if manifest.CheckPath(path) == nil { // else it is in no manifest
				named[path] = true
			}
		}
		if len(named) <= maxExceptions {
			return slices.Sorted(maps.Keys(named)), wide
		}
		list = map[string]bool{}
		for path := range named {
			list[parent(path)] = true
		}
	}
}

const maxExceptions = 200

// result hands over what the engine has to know.
func (p *part) result(res *result, out *rootResult) {
	for path := range p.changes {
		if !p.except[path] && p.excepted(path) { // sent, but below what was not compared
			p.fail(path)
		}
	}
	out.busy = slices.Sorted(maps.Keys(p.busy))
	out.left = p.left
	out.failed = append(p.unreadable, p.failed...)
	out.digest, out.entries, out.trouble = p.digest, p.tree.Manifest().Len(), p.trouble
	if res.err != nil || p.trouble != nil {
		return
	}
	for _, path := range slices.Sorted(maps.Keys(p.changes)) {
		c := change{p.Name, p.changes[path]}
		if p.repairs[path] {
			res.fixed = append(res.fixed, c)
		} else {
			res.changes = append(res.changes, c)
		}
	}
}

func parent(p string) string { return path.Dir(p) }
