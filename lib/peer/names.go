package peer

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
)

// joined is the paths as they travel beside a request: a NUL ends each.
func joined(paths []Name) []byte {
	n := len(paths)
	for _, p := range paths {
		n += len(p)
	}
	b := make([]byte, 0, n)
	for _, p := range paths {
		b = append(append(b, p...), 0)
	}
	return b
}

// divided is the opposite. It refuses what is no path of a root.
func divided(b []byte, root string) ([]string, *Error) {
	paths := make([]string, 0, bytes.Count(b, []byte{0}))
	for len(b) > 0 {
		p, rest, ended := bytes.Cut(b, []byte{0})
		if err := manifest.CheckPath(string(p)); err != nil || !ended {
			return nil, refused("rsync of %.200q in %s: %v", p, root, cmp.Or(err, errNoEnd))
		}
		paths = append(paths, string(p))
		b = rest
	}
	return paths, nil
}

var errNoEnd = errors.New("the path has no end")

// maxNamesAhead bounds what a client may send of them, in bytes: more than a
// tree that this program can hold.
const maxNamesAhead = 16 << 20

// ahead collects the paths that come before an rsync begins.
type ahead struct {
	mu   sync.Mutex
	data []byte
	wake chan struct{} // something came
}

func newAhead() *ahead { return &ahead{wake: make(chan struct{}, 1)} }

func (a *ahead) put(b []byte) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.data)+len(b) > maxNamesAhead {
		return fmt.Errorf("more than %d MiB of paths", maxNamesAhead>>20)
	}
	a.data = append(a.data, b...)
	notify(a.wake)
	return nil
}

// take waits until size bytes have come, or returns false when canceled is
// closed or ctx ends.
func (a *ahead) take(ctx context.Context, size int, canceled <-chan struct{}) ([]byte, bool) {
	for {
		a.mu.Lock()
		data := a.data
		a.mu.Unlock()
		if len(data) >= size {
			return data[:size], true
		}
		select {
		case <-a.wake:
		case <-canceled:
			return nil, false
		case <-ctx.Done():
			return nil, false
		}
	}
}
