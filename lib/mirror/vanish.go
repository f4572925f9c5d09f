package mirror

import (
	"fmt"

	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
)

// manyGone is the number of files from which on it matters that most are gone.
const manyGone = 10

// vanished tells whether most files of a root went at once. That looks like a disk
// that is not mounted, or an accident: nothing is sent before an admin has
// confirmed it. All roots wait.
func (r *round) vanished(w work, parts []*part) bool {
	if w.confirmed {
		return false
	}
	found := false
	for _, p := range parts {
		gone := p.gonefiles()
		if left := p.tree.Manifest().Files(); gone >= manyGone && gone > left {
			p.trouble, found = vanishedTrouble(p.Dir, gone), true
		}
	}
	for _, p := range parts {
		if found && p.trouble == nil {
			p.postpone()
		}
	}
	return found
}

// fewer tells whether most of the files that the record was stored with are gone.
// It is for a tree of which nothing else is known.
func (b *book) fewer(parts []*part) (found bool) {
	for _, p := range parts {
		left := p.tree.Manifest().Files()
		if gone := b.record.Files[p.Name] - left; p.first && gone >= manyGone && gone > left {
			p.trouble, found = vanishedTrouble(p.Dir, gone), true
		}
	}
	return found
}

func (p *part) gonefiles() (gone int) {
	for path := range p.wanted {
		if _, ok := p.tree.Manifest().Get(path); ok {
			continue
		}
		if was, ok := p.before[path]; ok && was.Kind != manifest.Dir {
			gone++
		}
	}
	return gone
}

func vanishedTrouble(dir string, gone int) *Trouble {
	return &Trouble{fmt.Sprintf("most files vanished from %s at once: %d are gone, fewer are left; nothing is sent", dir, gone),
		"if a disk is not mounted, mount it; if that is what you want: skd-inotify sync --confirm"}
}
