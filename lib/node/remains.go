package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/address"
	"github.com/skudonet/skudonet-ce-cluster/lib/conf"
	"github.com/skudonet/skudonet-ce-cluster/lib/guard"
	"github.com/skudonet/skudonet-ce-cluster/lib/hook"
	"github.com/skudonet/skudonet-ce-cluster/lib/smallfile"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
	"github.com/skudonet/skudonet-ce-cluster/lib/vrouter"
)

// Remains is what may be on this machine of a daemon that ended for good, and
// how to do without a daemon what it does at its start and at its stop. No
// daemon may run meanwhile.
type Remains struct {
	conf   conf.Config
	places Places
	log    *slog.Logger
	last   *status.Daemon    // what the last daemon said since the boot; nil if nothing
	known  []address.Address // the virtual addresses
}

// Survey finds out which virtual addresses this machine may have: those of
// Skudonet's files, $cluster_ip, and those that the last daemon had. c may be
// what could be salvaged of a broken configuration; what it lacks is taken from
// what the last daemon said.
func Survey(c conf.Config, places Places, log *slog.Logger) *Remains {
	r := &Remains{conf: c, places: places, log: log}
	var had []address.Address
	d, err := status.ReadDaemon(filepath.Join(places.RunDir, status.DaemonFile))
	switch {
	case err == nil:
		r.last = &d
		had = addressesOf(d)
	case !errors.Is(err, fs.ErrNotExist):
		log.Warn(fmt.Sprintf("what the last daemon said cannot be read: %v", err))
	}
	if r.last != nil && r.conf.Interface == "" {
		r.conf.Interface = d.Interface
	}
	if len(had) > 0 && !r.conf.ClusterIP.IsValid() {
		r.conf.ClusterIP = had[0].Prefix.Addr() // which is first in every list
	}
	// How an address is taken down or kept silent does not depend on its prefix length.
	want, notices := address.Wanted(os.DirFS(c.ConfigDir), clusterPrefixes(c, nil), r.conf.Interface)
	for _, notice := range notices {
		log.Warn("virtual interface: " + notice.String())
	}
	for _, a := range append(want, had...) {
		if a.Prefix.Addr().IsValid() && !contains(r.known, a) {
			r.known = append(r.known, a)
		}
	}
	return r
}

// addressesOf are the virtual addresses in a vrrpd.json, with the links that their labels name.
func addressesOf(d status.Daemon) (list []address.Address) {
	for _, a := range d.Addresses {
		prefix, err := netip.ParsePrefix(a.Prefix)
		link, _, _ := strings.Cut(a.Label, ":")
		if link == "" {
			link = d.Interface
		}
		if err == nil {
			list = append(list, address.Address{Prefix: prefix, Link: link, Label: a.Label})
		}
	}
	return list
}

// Left tells whether a daemon has left anything here: a status file, its record, or a guard.
func Left(places Places) (bool, error) {
	for _, path := range []string{places.StatusFile, filepath.Join(places.RunDir, recordName)} {
		if _, err := os.Lstat(path); err == nil {
			return true, nil
		} else if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
			return false, err
		}
	}
	g, err := guard.Open()
	if err != nil {
		return false, err
	}
	defer g.Close()
	return g.Present()
}

// Guard raises the guard for every address that is known, and returns how many
// those are. If none is, what stands is left as it is.
func (r *Remains) Guard() (guarded int, err error) {
	if len(r.known) == 0 {
		return 0, nil
	}
	g, err := guard.Open()
	if err != nil {
		return 0, err
	}
	defer g.Close()
	addrs := make([]netip.Addr, len(r.known))
	for i, a := range r.known {
		addrs[i] = a.Prefix.Addr()
	}
	return len(addrs), g.Raise(addrs)
}

// Idle tells whether a daemon ran here since the boot, and none of the virtual
// addresses is up: a guard then silences nobody who serves, only whoever starts
// Skudonet here while the peer has the addresses.
func (r *Remains) Idle() (bool, error) {
	if r.last == nil || len(r.known) == 0 {
		return false, nil
	}
	gone, err := address.Gone(r.known)
	return err == nil && len(gone) == len(r.known), err
}

// Ending says what becomes of the guard in the end.
type Ending int

const (
	Stopped  Ending = iota // goes if every virtual address is down, as when a daemon stops
	Failed                 // stays: the node is still one of the cluster
	Disabled               // goes: it is none any more
)

// Clean does what a daemon does when it stops: guard up, addresses down, stop
// hook. Each step is tried whatever became of those before; the error is of all
// that failed. The end of ctx ends the hook, and the guard stays.
func (r *Remains) Clean(ctx context.Context, how Ending) error {
	var failed []error
	try := func(what string, err error) {
		if err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", what, err))
		}
	}
	_, err := r.Guard()
	try("the guard cannot be raised, so this node may answer for addresses that the master carries", err)
	// Before all that takes time: should this be interrupted, the next daemon goes on with nothing of the last one.
	try("the next daemon may go on as this one", os.RemoveAll(filepath.Join(r.places.RunDir, recordName)))
	// Before the addresses: the replicator stops by itself when it is gone.
	try("the status file cannot be removed, so the prompt is wrong", status.Remove(r.places.StatusFile))
	removed, up := address.Down(r.known)
	if removed > 0 {
		r.log.Info(fmt.Sprintf("took %d virtual addresses down", removed))
	}
	for _, f := range up {
		try("take down", f)
	}
	stop := r.runStopHook(ctx)
	if stop.Err != nil {
		failed = append(failed, fmt.Errorf("the stop hook failed: %w; see its output in the log, mend the script, then run it by hand", stop.Err))
	}
	gone, err := address.Gone(r.known)
	try("cannot see which addresses are up", err)
	if err == nil && len(gone) < len(r.known) && how != Disabled {
		r.log.Warn(fmt.Sprintf("some virtual addresses are still up: %s; the guard keeps them silent",
			names(slices.DeleteFunc(slices.Clone(r.known), func(a address.Address) bool { return contains(gone, a) }))))
	}
	standing := guardUp
	if how == Disabled || how == Stopped && len(failed) == 0 && len(gone) == len(r.known) {
		standing = guardDown
		if err := lowerGuard(); err != nil {
			standing = guardFailed
			try("the guard cannot be lowered, so nobody hears of this node's addresses", err)
		}
	}
	try("skd-hooks status shows old news", r.report(standing, gone, stop))
	return errors.Join(failed...)
}

func lowerGuard() error {
	g, err := guard.Open()
	if err != nil {
		return err
	}
	defer g.Close()
	return g.Lower()
}

// runStopHook runs it as the daemon would.
func (r *Remains) runStopHook(ctx context.Context) hook.Completion {
	opt := hookOptions(r.conf, r.places, r.log)
	opt.Scripts = map[hook.Kind]string{hook.Stop: r.conf.StopHook}
	hooks := hook.NewRunner(opt)
	hooks.Want(hook.Stop)
	if err := hooks.Wait(ctx); err != nil {
		ending, cancel := context.WithTimeout(context.Background(), 3*hook.Grace)
		defer cancel()
		if hooks.Close(ending) != nil {
			return hook.Completion{Kind: hook.Stop, Err: err}
		}
	}
	return hooks.Completed()
}

// report writes the last vrrpd.json on, as a daemon that stops does.
func (r *Remains) report(standing string, gone []address.Address, stop hook.Completion) error {
	if r.last == nil {
		return nil
	}
	d, now := *r.last, status.Now()
	d.PID, d.Updated = os.Getpid(), now
	d.State, d.Since, d.Reason = status.Init, now, "cleaned up after the daemon ended"
	d.Guard, d.Faults, d.Addresses = standing, nil, nil
	for _, a := range r.known {
		d.Addresses = append(d.Addresses, status.Address{Prefix: a.Prefix.String(), Label: a.Label, Up: !contains(gone, a)})
	}
	d.Hooks = slices.DeleteFunc(d.Hooks, func(h status.Hook) bool { return h.Name == stop.Kind.String() })
	d.Hooks = append(d.Hooks, outcome(stop))
	return d.WriteFile(filepath.Join(r.places.RunDir, status.DaemonFile))
}

// ReadRecord reads what the daemon keeps for the next one. While it writes, the
// error may be that of half a record.
func ReadRecord(runDir string) (vrouter.Record, error) {
	var r vrouter.Record
	b, err := smallfile.Read(filepath.Join(runDir, recordName), maxRecord)
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal(b, &r)
}
