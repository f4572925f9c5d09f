package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/address"
	"github.com/skudonet/skudonet-ce-cluster/lib/archive"
	"github.com/skudonet/skudonet-ce-cluster/lib/ledger"
	"github.com/skudonet/skudonet-ce-cluster/lib/mirror"
	"github.com/skudonet/skudonet-ce-cluster/lib/skudonet"
	"github.com/skudonet/skudonet-ce-cluster/lib/smallfile"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
	"github.com/skudonet/skudonet-ce-cluster/lib/tail"
)

const (
	// giveUp is how long a new master waits for the first comparison with its
	// peer. One that starts later than this is taken for one that was cut off.
	giveUp = time.Minute
	// lockLimit is how long the end of a "skd-inotify peer" is waited for, which
	// served the master before.
	lockLimit = 10 * time.Second

	archiveAge   = 30 * 24 * time.Hour
	archiveBytes = 512 << 20

	establishedName = "inotify.established"
	machineID       = "/etc/machine-id"
)

// machine is what systemd calls this system; empty where there is no such file.
func machine() string {
	b, err := smallfile.Read(machineID, 4096)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// reign adds to c what a master needs to know whose configuration counts. What an
// interruption left half done is finished first. The record is this process's until
// the function that is returned is called.
func (d *service) reign(ctx context.Context, c mirror.Config) (mirror.Config, func(), error) {
	limited, cancel := context.WithTimeoutCause(ctx, lockLimit, errors.New("it does not end"))
	defer cancel()
	unlock, err := ledger.Lock(limited, d.stateDir)
	if err != nil {
		return c, nil, err
	}
	c.StateDir = d.stateDir
	c.Store = func(r ledger.Record) error { return ledger.Store(d.stateDir, r) }
	c.Limits = archive.Limits{Keep: d.conf.ArchiveKeep, Age: archiveAge, Bytes: archiveBytes}
	c.Holder = func() bool { return address.Holds(os.DirFS(d.conf.ConfigDir), d.conf.ClusterIPs()...) }
	c.Skudonet = skudonet.Version(ctx)
	c.Established, c.OnEstablish, c.GiveUp = d.established()
	c.Owe, c.Apply = func() error { return skudonet.Owe(d.runDir) }, d.apply
	changed := false
	if c.Archives, err = archive.Open(d.stateDir); err == nil {
		changed, err = mirror.Recover(ctx, c)
	}
	notice := ""
	if err == nil {
		c.Record, notice, err = ledger.Load(d.stateDir, machine())
	}
	if err != nil {
		unlock()
		return c, nil, err
	}
	if notice != "" {
		d.log.Warn(notice)
	}
	if changed {
		d.log.Warn("finished what was interrupted: the configuration was being replaced")
	}
	if changed || skudonet.Pending(d.runDir) {
		d.apply("the configuration was replaced before an interruption")
	}
	return c, unlock, nil
}

// established tells whether an earlier run was compared with the peer since this
// node's promotion, and returns what notes that this one was.
func (d *service) established() (before bool, note func(), limit time.Duration) {
	path := filepath.Join(d.runDir, establishedName)
	since := ""
	if r, err := status.ReadDaemon(filepath.Join(d.runDir, status.DaemonFile)); err == nil && r.State == status.Master {
		since = fmt.Sprintf("%d\n", r.Since.Boot)
	}
	text, err := smallfile.Read(path, 4096)
	before = err == nil && since != "" && string(text) == since
	return before, func() {
		if err := os.WriteFile(path, []byte(since), 0o644); err != nil && !errors.Is(err, fs.ErrNotExist) {
			d.log.Warn("a restart of this program will be taken for a promotion", "why", err)
		}
	}, giveUp
}

// apply has Skudonet apply a configuration that was replaced under it. Nothing waits
// for that: it takes seconds, and whoever stops this program may have to be
// through first.
func (d *service) apply(why string) {
	d.log.Info("Skudonet is started again, because " + why)
	go func() {
		said := tail.New(4096)
		cmd := exec.Command("skd-hooks", "-c", d.config, "--status-file", d.statusFile, "--run-dir", d.runDir, "--state-dir", d.stateDir, "apply")
		cmd.Stdout, cmd.Stderr = said, said
		if err := cmd.Run(); err != nil {
			d.log.Error("Skudonet could not be started again: "+said.LastLine(), "why", err, "remedy", "skd-hooks apply")
			return
		}
		d.log.Info("Skudonet has the configuration that was replaced")
	}()
}
