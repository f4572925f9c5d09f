// Package manifest is what a tree consists of: paths with kind, mode, owner and
// content, never times. Two nodes compare their manifests by a digest and, when
// that differs, entry by entry.
//
// It is pure: package scan makes a manifest of a tree on a disk.
package manifest

import (
	"iter"
	"slices"
	"strings"
)

// Manifest is a set of entries, at most one for a path. It does not insist that
// the directories of a path are in it, too. It is not for concurrent use.
type Manifest struct {
	entries map[string]*entry
	files   int // entries other than directories
	sum     sum

	// The paths in order, made up to date by order when somebody asks.
	sorted []string
	added  []string // not yet in sorted
	stale  bool     // sorted or added hold paths that have left
}

// New is an empty manifest.
func New() *Manifest { return &Manifest{entries: make(map[string]*entry)} }

// Set puts e in place of what was known of e.Path, and tells whether that made a
// difference. Fields that e's kind does not have are ignored. It does not
// check e: see CheckPath.
func (m *Manifest) Set(e Entry) (changed bool) {
	next := pack(&e)
	c, known := m.entries[e.Path]
	if known {
		if c.equal(&next) {
			return false
		}
		m.leave(e.Path, c)
	} else {
		c = new(entry)
		m.entries[e.Path] = c
		m.added = append(m.added, e.Path)
	}
	*c = next
	m.sum.add(c.sum(e.Path))
	if c.kind != Dir {
		m.files++
	}
	return true
}

// Remove takes path out, not what is below it, and tells whether it was there.
func (m *Manifest) Remove(path string) bool {
	c, known := m.entries[path]
	if !known {
		return false
	}
	m.leave(path, c)
	delete(m.entries, path)
	m.stale = true
	return true
}

// leave takes an entry out of the sums.
func (m *Manifest) leave(path string, c *entry) {
	m.sum.subtract(c.sum(path))
	if c.kind != Dir {
		m.files--
	}
}

// Get returns what is known of path.
func (m *Manifest) Get(path string) (Entry, bool) {
	c, known := m.entries[path]
	if !known {
		return Entry{}, false
	}
	return c.unpack(path), true
}

// Len is the number of entries.
func (m *Manifest) Len() int { return len(m.entries) }

// Files is the number of entries that are not directories.
func (m *Manifest) Files() int { return m.files }

// Below returns all paths below dir in order, without dir itself. Below "." is
// everything else.
func (m *Manifest) Below(dir string) []string {
	if dir != "." {
		return slices.Clone(m.below(dir))
	}
	all := slices.Clone(m.order())
	return slices.DeleteFunc(all, func(path string) bool { return path == "." })
}

// All goes through the entries, ordered by the bytes of their paths. Changes to
// the manifest meanwhile are allowed; paths that enter are not seen.
func (m *Manifest) All() iter.Seq[Entry] {
	return func(yield func(Entry) bool) {
		for _, path := range m.order() {
			if c, known := m.entries[path]; known && !yield(c.unpack(path)) {
				return
			}
		}
	}
}

// below is the part of the order below dir, which is not ".": in the order of
// bytes, paths that begin alike stand together.
func (m *Manifest) below(dir string) []string {
	all := m.order()
	prefix := dir + "/"
	begin, _ := slices.BinarySearch(all, prefix)
	end := begin
	for end < len(all) && strings.HasPrefix(all[end], prefix) {
		end++
	}
	return all[begin:end]
}

// order is the paths in order. The slice is never written to again, so it may
// be read while the manifest changes.
func (m *Manifest) order() []string {
	if len(m.added) == 0 && !m.stale {
		return m.sorted
	}
	slices.Sort(m.added)
	old, added := m.sorted, m.added
	merged := make([]string, 0, len(m.entries))
	for len(old) > 0 || len(added) > 0 {
		from := &old
		if len(old) == 0 || len(added) > 0 && added[0] < old[0] {
			from = &added
		}
		path := (*from)[0]
		*from = (*from)[1:]
		if m.stale {
			// A path that left and came back may be there twice.
			if _, known := m.entries[path]; !known || len(merged) > 0 && merged[len(merged)-1] == path {
				continue
			}
		}
		merged = append(merged, path)
	}
	m.sorted, m.added, m.stale = merged, nil, false
	return merged
}
