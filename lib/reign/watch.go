package reign

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/status"
	"github.com/skudonet/skudonet-ce-cluster/lib/tree"
)

// poll is how often the files are read where the kernel gives no watches.
const poll = time.Second

// Watch ends ctx when the node is master no more, and calls heard when the peer is
// heard again by this node's skd-vrrpd. It returns what stops it.
func (n Node) Watch(ctx context.Context, end context.CancelCauseFunc, heard func()) (stop func()) {
	look := make(chan struct{}, 1)
	seen := func(tree.Event) {
		select {
		case look <- struct{}{}:
		default:
		}
	}
	w, err := tree.Watch([]tree.Root{
		{Dir: filepath.Dir(n.StatusFile), File: filepath.Base(n.StatusFile)},
		{Dir: n.RunDir, File: status.DaemonFile},
	}, seen, func(error) {})
	var going sync.WaitGroup
	going.Go(func() {
		tick := time.NewTicker(poll)
		defer tick.Stop()
		var last time.Duration
		for {
			word, rerr := status.Read(n.StatusFile)
			if word != status.Master && (rerr == nil || errors.Is(rerr, fs.ErrNotExist)) {
				end(fmt.Errorf("this node is not master any more, the status file says %q", word))
				return
			}
			if r, err := status.ReadDaemon(filepath.Join(n.RunDir, status.DaemonFile)); err == nil && r.Peer.LastHeard.Boot > last {
				if last > 0 {
					heard()
				}
				last = r.Peer.LastHeard.Boot
			}
			select {
			case <-ctx.Done():
				return
			case <-look:
			case <-tick.C:
			}
		}
	})
	return func() {
		end(nil)
		going.Wait()
		if err == nil {
			w.Close()
		}
	}
}
