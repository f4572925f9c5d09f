package archive

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/durable"
)

// Limits bound what is kept. Zero is no limit.
type Limits struct {
	Keep  int // archives
	Age   time.Duration
	Bytes int64 // of all together
}

// Prune removes the oldest archives beyond the limits. It never removes a
// conflict that waits, which does not count either, nor one that is damaged. Repairs get
// what the others leave, at most half of Keep and Bytes, so that they never push
// another kind out. The newest repair and the newest of the others stay whatever
// their size. The error is about what could not be removed or read; the rest is.
func (s *Store) Prune(now time.Time, l Limits) (removed []Info, err error) {
	unlock, err := s.lock()
	if err != nil {
		return nil, err
	}
	list, err := s.List()
	errs := []error{err}
	for _, i := range l.surplus(now, list) {
		switch err := os.Rename(filepath.Join(s.dir, i.Name), s.removed(i)); {
		case err == nil:
			removed = append(removed, i)
		case !errors.Is(err, fs.ErrNotExist):
			errs = append(errs, err)
		}
	}
	// A crash must not leave parts of one under its name.
	if len(removed) > 0 {
		err = durable.SyncDir(s.dir)
	}
	unlock()
	if err != nil {
		return removed, errors.Join(append(errs, err)...)
	}
	for _, i := range removed {
		errs = append(errs, os.RemoveAll(s.removed(i)))
	}
	return removed, errors.Join(errs...)
}

// removed is where an archive is while it is removed.
func (s *Store) removed(i Info) string { return filepath.Join(s.dir, partPrefix+i.Name) }

// surplus is what of list, the newest first, is beyond the limits.
func (l Limits) surplus(now time.Time, list []Info) (beyond []Info) {
	var repairs, others []Info
	for _, i := range list {
		switch {
		case i.Waiting:
		case l.Age > 0 && now.Sub(i.since()) > l.Age:
			beyond = append(beyond, i)
		case i.Reason == Repair:
			repairs = append(repairs, i)
		default:
			others = append(others, i)
		}
	}
	keep, bytes := room(others, l.Keep, l.Bytes)
	beyond = append(beyond, others[keep:]...)
	count, space := l.Keep, l.Bytes
	if count > 0 {
		count = max(1, min(count/2, count-keep))
	}
	if space > 0 {
		space = max(1, min(space/2, space-bytes))
	}
	keep, _ = room(repairs, count, space)
	return append(beyond, repairs[keep:]...)
}

// since is when its age begins.
func (i Info) since() time.Time {
	if i.Ended.After(i.Made) {
		return i.Ended
	}
	return i.Made
}

// room is how many of list, the newest first, fit into count and space, which are
// no limits if 0, and how much they take. The first one fits.
func room(list []Info, count int, space int64) (keep int, bytes int64) {
	for n, i := range list {
		if n > 0 && (count > 0 && n >= count || space > 0 && bytes+i.Bytes > space) {
			return n, bytes
		}
		bytes += i.Bytes
	}
	return len(list), bytes
}
