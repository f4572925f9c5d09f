package manifest

import (
	"iter"
	"strings"
)

// Change is a path that two manifests do not agree on.
type Change struct {
	Path string
	From *Entry // nil: the path is new
	To   *Entry // nil: the path was removed
}

// Diff returns what makes from into to, ordered by path. A path that is a file
// in one and a directory in the other is one Change.
func Diff(from, to *Manifest) []Change {
	var changes []Change
	a, stopA := iter.Pull(from.All())
	defer stopA()
	b, stopB := iter.Pull(to.All())
	defer stopB()
	old, isOld := a()
	now, isNow := b()
	for isOld || isNow {
		c := Change{}
		if isOld && (!isNow || old.Path <= now.Path) {
			e := old
			c.Path, c.From = e.Path, &e
		}
		if isNow && (!isOld || now.Path <= old.Path) {
			e := now
			c.Path, c.To = e.Path, &e
		}
		if c.From == nil || c.To == nil || *c.From != *c.To {
			changes = append(changes, c)
		}
		if c.From != nil {
			old, isOld = a()
		}
		if c.To != nil {
			now, isNow = b()
		}
	}
	return changes
}

// What says what differs: "new", "removed", "kind", or one or more of "content",
// "mode", "owner" and "target" with commas between.
func (c Change) What() string {
	switch {
	case c.From == nil:
		return "new"
	case c.To == nil:
		return "removed"
	case c.From.Kind != c.To.Kind:
		return "kind"
	}
	var what []string
	differ := func(word string, is bool) {
		if is {
			what = append(what, word)
		}
	}
	differ("content", c.From.Size != c.To.Size || c.From.Hash != c.To.Hash)
	differ("mode", c.From.Mode != c.To.Mode)
	differ("owner", c.From.UID != c.To.UID || c.From.GID != c.To.GID)
	differ("target", c.From.Target != c.To.Target)
	return strings.Join(what, ", ")
}
