package mirror

import (
	"context"
	"os"
	"path"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/peer"
)

// anchor is the file without which a tree is not Skudonet's configuration, but
// an empty mount point. Skudonet itself replaces it, which takes a moment.
const (
	anchor     = "global.conf"
	anchorWait = time.Second
)

// anchor is the root's, if it has one.
func (r Root) anchor() string {
	if r.Name == peer.ConfigRoot {
		return anchor
	}
	return ""
}

// anchored waits for the anchor, for a moment.
func anchored(ctx context.Context, root Root) bool {
	for began := time.Now(); root.anchor() != ""; time.Sleep(anchorWait / 20) {
		info, err := os.Stat(path.Join(root.Dir, anchor))
		switch {
		case err == nil && info.Mode().IsRegular():
			return true
		case time.Since(began) > anchorWait || ctx.Err() != nil:
			return false
		}
	}
	return true
}

const mounted = "nothing is sent until it is there again: is a disk not mounted?"

func noAnchor(dir string) error { return &Trouble{dir + " has no " + anchor, mounted} }
