// Package node is the machine that an election runs on: it raises and lowers
// the guard, brings addresses up and down, announces them, keeps the files that
// other programs read, and runs the hooks. It is vrouter's Host.
//
// All of it happens in lanes beside the election, in the order it was asked
// for, is idempotent, is retried while it fails, and is repaired when somebody
// else undoes it: an address that vanishes from a master is put back, a guard
// that was flushed is raised again, and both follow Skudonet's files.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/address"
	"github.com/skudonet/skudonet-ce-cluster/lib/announce"
	"github.com/skudonet/skudonet-ce-cluster/lib/conf"
	"github.com/skudonet/skudonet-ce-cluster/lib/election"
	"github.com/skudonet/skudonet-ce-cluster/lib/guard"
	"github.com/skudonet/skudonet-ce-cluster/lib/hook"
	"github.com/skudonet/skudonet-ce-cluster/lib/link"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
	"github.com/skudonet/skudonet-ce-cluster/lib/trouble"
	"github.com/skudonet/skudonet-ce-cluster/lib/vrouter"
)

// Places are the files and directories that the programs share.
type Places struct {
	StatusFile string // /etc/skudonet-ce-cluster.status
	RunDir     string // emptied by a reboot
	StateDir   string // survives a reboot
}

// Node is one machine. Its methods are vrouter.Host.
type Node struct {
	conf     conf.Config
	places   Places
	log      *slog.Logger
	troubles *trouble.List
	started  status.Moment
	warnings []status.Problem

	// Notify, if not nil, is told in one line what the node is, when that changes.
	Notify func(string)

	guardLane, netLane, fileLane lane
	guard                        *guard.Guard
	record                       *recordFile
	transitions, announcements   *hook.Runner

	guarded    atomic.Bool // wanted: the guard is up
	carrying   atomic.Bool // wanted: the addresses are up
	announcing atomic.Bool // allowed: announcements leave

	carrier  bool // of the cluster's interface, as Link was told last
	saveLane lane // what may wait for a disk, so that the status and the hooks do not

	mu      sync.Mutex
	want    []address.Address
	wanted  map[netip.Addr]bool
	own     []netip.Prefix // the local addresses, whose prefix lengths are for a $cluster_ip without a file
	up      bool
	lacking map[netip.Addr]bool // wanted up, and could not be brought up
	lasting *vrouter.Lasting    // waits to be stored
	word    string              // of the status file
	report  vrouter.Report
	hooks   map[hook.Kind]status.Hook
	writing bool // a write of vrrpd.json is queued
	kicked  bool // a look at the addresses is queued
	closed  bool

	said     map[string]bool   // notices about interface files
	schedule announce.Schedule // netLane's
	running  map[string]bool   // netLane's: which links could carry frames at the last look
	timer    *time.Timer       // netLane's: the next burst
	left     []address.Address // netLane's: should be down, and could not be taken down
	failures int               // netLane's: in a row, for the backoff
	again    *time.Timer       // netLane's: the next look
	backoff  time.Duration     // guardLane's
	retry    *time.Timer       // guardLane's
	standing atomic.Value      // string: "up", "down" or "failed", what is known of the guard
}

// Open prepares the node and returns the record of the process before.
// Warnings are what the configuration is worth warning of.
func Open(c conf.Config, places Places, warnings []string, log *slog.Logger, troubles *trouble.List) (*Node, vrouter.Record, error) {
	n := &Node{conf: c, places: places, log: log, troubles: troubles, started: status.Now(),
		hooks: map[hook.Kind]status.Hook{}, said: map[string]bool{}, schedule: announce.Schedule{Refresh: c.GARPRefresh}}
	for _, w := range warnings {
		n.warnings = append(n.warnings, status.Problem{Text: w})
	}
	var record vrouter.Record
	var err error
	if n.record, record, err = openRecord(places.RunDir); err != nil {
		return nil, record, err
	}
	if n.guard, err = guard.Open(); err != nil {
		return nil, record, fmt.Errorf("open nftables: %w", err)
	}
	n.standing.Store("")
	n.reload()
	n.prepareHooks(record)
	return n, record, nil
}

// Run follows what others do to the configuration tree, the ruleset and the
// addresses, until ctx ends.
func (n *Node) Run(ctx context.Context) {
	go n.watchTree(ctx)
	go n.watchRules(ctx)
	<-ctx.Done()
}

// reload reads which addresses a master carries, and tells which it carried
// before, and whether everything could be read.
func (n *Node) reload() (old []address.Address, unread error) {
	n.mu.Lock()
	cluster := clusterPrefixes(n.conf, n.own)
	n.mu.Unlock()
	want, notices := address.Wanted(os.DirFS(n.conf.ConfigDir), cluster, n.conf.Interface)
	want, unread = keepUnread(want, n.addresses(), notices)
	n.troubles.Check("unread", "virtual interfaces in "+n.conf.ConfigDir+": ", unread)
	set := make(map[netip.Addr]bool, len(want))
	for _, a := range want {
		set[a.Prefix.Addr()] = true
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, notice := range notices {
		if words := notice.String(); !n.said[words] {
			n.said[words] = true
			n.log.Warn("virtual interface: " + words)
		}
	}
	old, n.want, n.wanted = n.want, want, set
	return old, unread
}

// clusterPrefixes gives each $cluster_ip the prefix length of the node's own
// address of that family, if it is known.
func clusterPrefixes(c conf.Config, own []netip.Prefix) (list []netip.Prefix) {
	for _, f := range c.Families() {
		bits := -1
		for _, p := range own {
			if p.Addr() == f.LocalIP {
				bits = p.Bits()
			}
		}
		list = append(list, netip.PrefixFrom(f.ClusterIP, bits))
	}
	return list
}

// keepUnread adds to want what was wanted before by files that cannot be read
// now: an unmounted tree must not take a live master's addresses away. The error
// says so if it was of consequence.
func keepUnread(want, before []address.Address, notices []address.Notice) ([]address.Address, error) {
	var unread error
	for _, notice := range notices {
		if !notice.Unread {
			continue
		}
		for _, a := range before {
			if (notice.File == "." || notice.File == "if_"+a.Label+"_conf") && !contains(want, a) {
				want = append(want, a)
				unread = errors.New("what was wanted by a file that cannot be read stays wanted; see the log for its name")
			}
		}
	}
	return want, unread
}

// contains tells whether list has the address on the same link, in whatever form.
func contains(list []address.Address, a address.Address) bool {
	return slices.ContainsFunc(list, func(b address.Address) bool { return a.Prefix.Addr() == b.Prefix.Addr() && a.Link == b.Link })
}

func (n *Node) addresses() []address.Address {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.want
}

// Link notes the cluster interface's state: its prefix length is $cluster_ip's
// where no file says otherwise. On a master that has become one without a
// carrier ($link_loss), the start hook has refused to start Skudonet; it gets
// another chance when the carrier is there.
func (n *Node) Link(s link.State) {
	if s.Carrier && !n.carrier && n.carrying.Load() {
		n.RunStartHook()
	}
	n.carrier = s.Carrier
	changed := false
	n.mu.Lock()
	for _, l := range s.Local {
		if l.Has() && !slices.Contains(n.own, l.Prefix) {
			n.own = append(slices.DeleteFunc(n.own, func(p netip.Prefix) bool { return p.Addr() == l.Addr }), l.Prefix)
			changed = true
		}
	}
	n.mu.Unlock()
	if changed {
		n.netLane.do(n.follow)
	}
}

// RaiseGuard lets no virtual address speak on the wire.
func (n *Node) RaiseGuard() {
	n.guarded.Store(true)
	n.guardLane.do(n.raise)
}

// LowerGuard lets them speak. What is asked for next waits for it.
func (n *Node) LowerGuard() {
	n.guarded.Store(false)
	done := make(chan struct{})
	n.guardLane.do(func() {
		defer close(done)
		n.lower()
	})
	n.netLane.do(func() { <-done })
}

// AfterGuard calls f when what was asked of the guard before has been tried.
func (n *Node) AfterGuard(f func()) { n.guardLane.do(f) }

// AfterAddresses calls f when what was asked of the addresses before has been tried.
func (n *Node) AfterAddresses(f func()) { n.netLane.do(f) }

// What is known of the guard, in vrrpd.json.
const (
	guardUp     = "up"
	guardDown   = "down"
	guardFailed = "failed"
)

const (
	readAgain  = time.Second // what could not be read
	firstRetry = 200 * time.Millisecond
	lastRetry  = 30 * time.Second
)

func (n *Node) raise() {
	if !n.guarded.Load() {
		return
	}
	var addrs []netip.Addr
	for _, a := range n.addresses() {
		addrs = append(addrs, a.Prefix.Addr())
	}
	n.guardDone(guardUp, "the guard cannot be raised, so this node may answer for addresses that the master carries; trying again: ",
		n.guard.Raise(addrs), n.raise)
}

func (n *Node) lower() {
	if n.guarded.Load() {
		return
	}
	n.guardDone(guardDown, "the guard cannot be lowered, so nobody hears of this node's addresses; trying again: ", n.guard.Lower(), n.lower)
}

// guardDone notes how it went, and tries again later if it did not.
func (n *Node) guardDone(state, words string, err error, again func()) {
	n.troubles.Check("guard", words, err)
	if n.retry != nil {
		n.retry.Stop()
	}
	failed := n.standing.Load() == guardFailed
	if err == nil {
		n.backoff = 0
		n.standing.Store(state)
		if failed && state == guardDown {
			n.netLane.do(n.begin) // what was announced before went unheard
		}
		return
	}
	n.standing.Store(guardFailed)
	n.backoff = min(max(2*n.backoff, firstRetry), lastRetry)
	n.retry = time.AfterFunc(n.backoff, func() { n.guardLane.do(again) })
	n.write()
}

// checkGuard raises the guard again when somebody removed it, or when links or
// addresses came that it does not cover.
func (n *Node) checkGuard() {
	if !n.guarded.Load() {
		return
	}
	var addrs []netip.Addr
	for _, a := range n.addresses() {
		addrs = append(addrs, a.Prefix.Addr())
	}
	switch standing, err := n.guard.Standing(addrs); {
	case err == nil && standing:
	default:
		if n.standing.Load() == guardUp {
			n.log.Info("the guard does not cover every address and interface any more; raising it again")
		}
		n.raise()
	}
}

// AddAddresses brings the virtual addresses up and keeps them up.
func (n *Node) AddAddresses() {
	n.carrying.Store(true)
	n.netLane.do(func() {
		if n.carrying.Load() {
			n.addressesUp(n.addresses())
		}
	})
}

// RemoveAddresses takes them down.
func (n *Node) RemoveAddresses() {
	n.carrying.Store(false)
	n.netLane.do(func() {
		if n.carrying.Load() {
			return
		}
		n.takeDown(n.addresses())
		n.upIs(false, nil)
	})
}

// addressesUp brings addresses up and tells whether any was missing.
func (n *Node) addressesUp(want []address.Address) (added int) {
	added, failed := address.Up(want)
	n.upIs(true, failed)
	n.failed("bringing virtual addresses up", failed)
	return added
}

// takeDown takes addresses down, with those that it could not take down before.
func (n *Node) takeDown(list []address.Address) {
	if len(list) == 0 && len(n.left) == 0 {
		return
	}
	_, failed := address.Down(append(slices.Clone(list), n.left...))
	n.left = n.left[:0]
	for _, f := range failed {
		n.left = append(n.left, f.Address)
	}
	n.failed("taking virtual addresses down", failed)
}

const failuresShown = 3

// failed says which addresses did not do as they should, and looks again later.
func (n *Node) failed(doing string, failed []address.Failure) {
	if len(failed) == 0 {
		n.failures = 0
		n.troubles.Clear("addresses " + doing)
		return
	}
	words := fmt.Sprintf("%s: %d failed; trying again: ", doing, len(failed))
	for i, f := range failed[:min(len(failed), failuresShown)] {
		if i > 0 {
			words += "; "
		}
		words += f.Error()
	}
	n.troubles.Set("addresses "+doing, words)
	n.failures++
	n.lookAgain(min(firstRetry<<min(n.failures, 10), lastRetry))
}

// lookAgain looks at everything again, once, after a while.
func (n *Node) lookAgain(after time.Duration) {
	if n.again != nil {
		n.again.Stop()
	}
	n.again = time.AfterFunc(after, func() { n.netLane.do(n.follow) })
}

// upIs notes, for vrrpd.json, what is up.
func (n *Node) upIs(up bool, failed []address.Failure) {
	lacking := map[netip.Addr]bool{}
	for _, f := range failed {
		lacking[f.Address.Prefix.Addr()] = true
	}
	n.mu.Lock()
	n.up, n.lacking = up, lacking
	n.mu.Unlock()
	n.write()
}

// follow makes the machine fit Skudonet's files again, and repairs what others undid.
func (n *Node) follow() {
	old, unread := n.reload()
	if unread != nil {
		n.lookAgain(readAgain)
	}
	want := n.addresses()
	// Also on a backup, where somebody may have started Skudonet: it takes down
	// only what has a file, and the guard is about to leave the address alone.
	gone := slices.DeleteFunc(slices.Clone(old), func(a address.Address) bool { return contains(want, a) })
	if n.carrying.Load() {
		n.left = slices.DeleteFunc(n.left, func(a address.Address) bool { return contains(want, a) })
	}
	n.takeDown(gone)
	n.guardLane.do(n.checkGuard)
	if !n.carrying.Load() {
		return
	}
	missing, err := address.Missing(want)
	n.troubles.Check("missing", "cannot see which addresses are up: ", err)
	returned := n.returned(want)
	added := 0
	if err != nil || len(missing) == 0 {
		n.failed("bringing virtual addresses up", nil)
	} else if added = n.addressesUp(missing); added > 0 {
		n.log.Info(fmt.Sprintf("brought up %s, missing on a master", names(missing)))
	}
	if added > 0 || returned {
		n.begin() // unless the node may not announce any more, or not yet
	}
}

// returned tells whether a link carries frames again, so that nobody there has
// heard of its addresses yet. For the cluster's own the election knows.
func (n *Node) returned(want []address.Address) (back bool) {
	now := map[string]bool{}
	for _, a := range want {
		if _, seen := now[a.Link]; seen || a.Link == n.conf.Interface {
			continue
		}
		l, err := netlink.LinkByName(a.Link)
		now[a.Link] = err == nil && l.Attrs().RawFlags&unix.IFF_RUNNING != 0
		was, seen := n.running[a.Link]
		back = back || now[a.Link] && seen && !was
	}
	n.running = now
	return back
}

func names(list []address.Address) string {
	s := ""
	for i, a := range list {
		switch {
		case i == failuresShown:
			return fmt.Sprintf("%s and %d more", s, len(list)-i)
		case i > 0:
			s += ", "
		}
		s += a.String()
	}
	return s
}

// settle gathers changes by others that come together. It also lets Skudonet,
// which takes an address down before it writes that it should be down, have its
// way mostly without a contradiction.
const settle = 30 * time.Millisecond

// Removed is told of each address that was taken off an interface.
func (n *Node) Removed(ip netip.Addr) {
	n.mu.Lock()
	ours := n.wanted[ip]
	n.mu.Unlock()
	if ours && n.carrying.Load() {
		n.kick()
	}
}

// Links is told when links came or went.
func (n *Node) Links() { n.kick() }

// kick looks at everything soon, once for many reasons.
func (n *Node) kick() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.kicked {
		return
	}
	n.kicked = true
	time.AfterFunc(settle, func() {
		n.mu.Lock()
		n.kicked = false
		closed := n.closed
		n.mu.Unlock()
		if !closed {
			n.netLane.do(n.follow)
		}
	})
}

// Enter writes the status file. A node in fault is a backup to those who read it.
func (n *Node) Enter(s election.State) {
	word := status.Backup // also while the service stops; Close removes the file
	if s == election.Master {
		word = status.Master
	}
	n.mu.Lock()
	n.word = word
	n.mu.Unlock()
	n.fileLane.do(n.writeStatus)
}

func (n *Node) writeStatus() {
	n.mu.Lock()
	word, closed := n.word, n.closed
	n.mu.Unlock()
	if closed {
		return
	}
	err := status.Write(n.places.StatusFile, word)
	n.troubles.Check("status", "the prompt and the replicator see an old status; trying again: ", err)
	if err != nil {
		time.AfterFunc(time.Second, func() { n.fileLane.do(n.writeStatus) })
	}
}

// Keep stores the record of this process where the next one finds it.
func (n *Node) Keep(r vrouter.Record) {
	r.Started = n.hasStarted()
	n.troubles.Check("record", "a crash of the daemon would cost a failover, because its state cannot be kept: ", n.record.write(r))
}

// Save stores what survives a reboot.
func (n *Node) Save(l vrouter.Lasting) {
	n.mu.Lock()
	queued := n.lasting != nil
	n.lasting = &l
	n.mu.Unlock()
	if queued {
		return
	}
	n.saveLane.do(func() {
		n.mu.Lock()
		l := *n.lasting
		n.lasting = nil
		n.mu.Unlock()
		n.troubles.Check("sequence", "after a reboot with a wrong clock the peer may not hear this node, because its sequence cannot be stored: ",
			WriteLasting(n.places.StateDir, l))
	})
}

// Close ends what a stopped service leaves: the hooks have had their time, the
// guard goes if nothing is left to guard, the status file is removed.
func (n *Node) Close(ctx context.Context) {
	n.netLane.waitFor(ctx) // which queues hooks in the next, which starts them
	n.fileLane.waitFor(ctx)
	if err := n.transitions.Wait(ctx); err != nil {
		n.log.Warn("the stop hook is still running; it is ended")
	}
	closing, cancel := context.WithTimeout(context.Background(), 2*hook.Grace)
	defer cancel()
	n.transitions.Close(closing)
	n.announcements.Close(closing)
	n.netLane.waitFor(closing)
	want := n.addresses()
	gone, err := address.Gone(want)
	switch {
	case err == nil && len(gone) == len(want):
		n.guarded.Store(false)
		n.guardLane.do(n.lower)
		n.guardLane.waitFor(closing)
	default:
		n.log.Warn("some virtual addresses are still up on this stopped node; the guard stays, so that they cannot disturb the master")
	}
	n.mu.Lock()
	n.closed = true
	n.mu.Unlock()
	n.fileLane.waitFor(closing)
	n.saveLane.waitFor(closing)
	if err := status.Remove(n.places.StatusFile); err != nil {
		n.log.Error(fmt.Sprintf("the status file cannot be removed, so the prompt is wrong: %v", err))
	}
	n.record.file.Close()
	os.Remove(filepath.Join(n.places.RunDir, recordName))
	n.writeReport()
}

// Flush waits a moment for the files, for a process that another one will follow.
func (n *Node) Flush() {
	ctx, cancel := context.WithTimeout(context.Background(), flushLimit)
	defer cancel()
	n.fileLane.waitFor(ctx)
}

const flushLimit = 100 * time.Millisecond

var _ vrouter.Host = (*Node)(nil)
