// Package reign is what a node's replicator holds while the node is master: its
// record, its archives, and whether it has been compared with the peer since the
// promotion; and the end of it.
package reign

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/address"
	"github.com/skudonet/skudonet-ce-cluster/lib/archive"
	"github.com/skudonet/skudonet-ce-cluster/lib/conf"
	"github.com/skudonet/skudonet-ce-cluster/lib/fileset"
	"github.com/skudonet/skudonet-ce-cluster/lib/ledger"
	"github.com/skudonet/skudonet-ce-cluster/lib/mirror"
	"github.com/skudonet/skudonet-ce-cluster/lib/peer"
	"github.com/skudonet/skudonet-ce-cluster/lib/scan"
	"github.com/skudonet/skudonet-ce-cluster/lib/skudonet"
	"github.com/skudonet/skudonet-ce-cluster/lib/smallfile"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
)

const (
	// lockLimit is how long the end of a "skd-inotify peer" is waited for, which
	// served the master before.
	lockLimit = 10 * time.Second

	archiveAge   = 30 * 24 * time.Hour
	archiveBytes = 512 << 20

	establishedName = "inotify.established"
)

// Node is where it happens.
type Node struct {
	StateDir, RunDir, StatusFile string
	Machine                      string // contents of /etc/machine-id; "" if there is none
	Conf                         conf.Config
	Apply                        func(why string) // has Skudonet apply a tree that was replaced; does not wait
	Log                          *slog.Logger
}

// Begin adds to c what a master needs to know whose configuration counts. What an
// interruption left half done is finished first. The record is this process's until
// end is called.
func (n Node) Begin(ctx context.Context, c mirror.Config) (settings mirror.Config, end func(), err error) {
	limited, cancel := context.WithTimeoutCause(ctx, lockLimit, errors.New("it does not end"))
	defer cancel()
	unlock, err := ledger.Lock(limited, n.StateDir)
	if err != nil {
		return c, nil, err
	}
	c.StateDir = n.StateDir
	c.Store = func(r ledger.Record) error { return ledger.Store(n.StateDir, r) }
	c.Limits = archive.Limits{Keep: n.Conf.ArchiveKeep, Age: archiveAge, Bytes: archiveBytes}
	c.Holder = func() bool { return address.Holds(os.DirFS(n.Conf.ConfigDir), n.Conf.ClusterIPs()...) }
	c.Established, c.OnEstablish = n.established()
	c.Owe, c.Apply = func() error { return skudonet.Owe(n.RunDir) }, n.Apply
	changed := false
	if c.Archives, err = archive.Open(n.StateDir); err == nil {
		changed, err = mirror.Recover(ctx, c)
	}
	notice := ""
	if err == nil {
		c.Record, notice, err = ledger.Load(n.StateDir, n.Machine)
	}
	if err != nil {
		unlock()
		return c, nil, err
	}
	if notice != "" {
		n.Log.Warn(notice)
	}
	if err := n.sift(ctx, c); err != nil {
		n.Log.Warn(err.Error())
	}
	if changed {
		n.Log.Warn("finished what was interrupted: the configuration was being replaced")
	}
	if changed || skudonet.Pending(n.RunDir) {
		n.Apply("the configuration was replaced before an interruption")
	}
	return c, unlock, nil
}

// sift keeps what a session of the former master has left when it was killed.
func (n Node) sift(ctx context.Context, c mirror.Config) error {
	h := peer.Host{StateDir: n.StateDir, RunDir: n.RunDir, Machine: n.Machine, Log: func(text string) { n.Log.Info(text) }}
	var roots []scan.Root
	for _, r := range c.Roots {
		at := scan.Root{Name: r.Name, Dir: r.Dir, Set: fileset.New()}
		if r.Only != "" {
			at.Set = fileset.Only(r.Only)
		}
		roots = append(roots, at)
	}
	return peer.Sift(ctx, h, c.Archives, c.Limits, c.Peer, roots...)
}

// established tells whether an earlier run was compared with the peer since this
// node's promotion, and returns what notes that this one was.
func (n Node) established() (before bool, note func()) {
	path := filepath.Join(n.RunDir, establishedName)
	since := ""
	if r, err := status.ReadDaemon(filepath.Join(n.RunDir, status.DaemonFile)); err == nil && r.State == status.Master {
		since = fmt.Sprintf("%d\n", r.Since.Boot)
	}
	text, err := smallfile.Read(path, 4096)
	before = err == nil && since != "" && string(text) == since
	return before, func() {
		if err := os.WriteFile(path, []byte(since), 0o644); err != nil && !errors.Is(err, fs.ErrNotExist) {
			n.Log.Warn("a restart of this program will be taken for a promotion", "why", err)
		}
	}
}
