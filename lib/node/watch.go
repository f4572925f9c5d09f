package node

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/skudonet/skudonet-ce-cluster/lib/guard"
)

const watchAgain = 5 * time.Second

// watchTree follows the virtual interfaces in Skudonet's configuration tree.
func (n *Node) watchTree(ctx context.Context) {
	for ctx.Err() == nil {
		err := n.watchTreeOnce(ctx)
		if ctx.Err() != nil {
			return
		}
		n.troubles.Set("tree", fmt.Sprintf("changes of virtual interfaces in %s are seen late: %v", n.conf.ConfigDir, err))
		select {
		case <-time.After(watchAgain):
			n.netLane.do(n.follow)
		case <-ctx.Done():
		}
	}
}

func (n *Node) watchTreeOnce(ctx context.Context) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	defer w.Close()
	if err := w.Add(n.conf.ConfigDir); err != nil {
		return err
	}
	n.troubles.Clear("tree")
	n.netLane.do(n.follow) // what changed before the watch stood
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-w.Errors:
			return err
		case ev := <-w.Events:
			if ev.Name == n.conf.ConfigDir && ev.Has(fsnotify.Remove|fsnotify.Rename) {
				return fmt.Errorf("%s is gone", ev.Name)
			}
			if strings.HasPrefix(filepath.Base(ev.Name), "if_") && ev.Op != fsnotify.Chmod {
				n.kick()
			}
		}
	}
}

// watchRules notices when somebody flushes the ruleset that the guard is part of.
func (n *Node) watchRules(ctx context.Context) {
	for ctx.Err() == nil {
		err := guard.Watch(ctx, func() { n.guardLane.do(n.checkGuard) })
		if ctx.Err() != nil {
			return
		}
		n.troubles.Set("rules", fmt.Sprintf("a flush of the nftables ruleset would go unnoticed: %v", err))
		select {
		case <-time.After(watchAgain):
			n.troubles.Clear("rules")
			n.guardLane.do(n.checkGuard)
		case <-ctx.Done():
		}
	}
}
