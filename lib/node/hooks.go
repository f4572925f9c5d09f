package node

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/conf"
	"github.com/skudonet/skudonet-ce-cluster/lib/hook"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
	"github.com/skudonet/skudonet-ce-cluster/lib/vrouter"
)

// prepareHooks makes the two lanes of hooks. When the process before had
// started Skudonet on this master, that need not be done again.
func (n *Node) prepareHooks(before vrouter.Record) {
	var last hook.Completion
	if before.Started {
		last.Kind = hook.Start
	}
	lane := func(scripts map[hook.Kind]string) *hook.Runner {
		opt := hookOptions(n.conf, n.places, n.log)
		opt.Scripts, opt.Last, opt.Began, opt.Done = scripts, last, n.hookBegan, n.hookDone
		return hook.NewRunner(opt)
	}
	n.transitions = lane(map[hook.Kind]string{hook.Start: n.conf.StartHook, hook.Stop: n.conf.StopHook})
	n.announcements = lane(map[hook.Kind]string{hook.Advertisement: n.conf.AdvertisementHook})
}

// hookOptions are those of every hook on this machine, whoever runs it.
func hookOptions(c conf.Config, places Places, log *slog.Logger) hook.Options {
	env := hook.Environment{
		Interface: c.Interface, ClusterIP: c.ClusterIP, ClusterIP6: c.Second.ClusterIP, Config: c.Path, ConfigDir: c.ConfigDir,
		StatusFile: places.StatusFile, RunDir: places.RunDir, StateDir: places.StateDir,
	}
	if exe, err := os.Executable(); err == nil {
		env.Programs = filepath.Dir(exe)
	}
	return hook.Options{
		Env: env.For, Timeout: c.HookTimeout, Exec: hook.Here(places.RunDir, hook.Grace),
		Log: func(k hook.Kind, line string) { log.Info(fmt.Sprintf("%s hook: %s", k, line)) },
	}
}

// RunStartHook starts Skudonet and the replicator, unless the process before
// has done that since the promotion.
func (n *Node) RunStartHook() {
	n.afterOthers(func() { // where a stop hook that is wanted before was wanted before
		if !n.hasStarted() {
			n.transitions.Want(hook.Start)
		}
	})
}

// afterOthers does f when the addresses are as asked before, and the status file
// says what a hook may ask it.
func (n *Node) afterOthers(f func()) {
	n.netLane.do(func() { n.fileLane.do(f) })
}

// hasStarted tells whether the start hook was the last to end, and ended well.
func (n *Node) hasStarted() bool {
	running, pending := n.transitions.Running()
	last := n.transitions.Completed()
	return running == hook.None && pending == hook.None && last.Kind == hook.Start && last.Err == nil
}

// RunStopHook stops them.
func (n *Node) RunStopHook() { n.runHook(n.transitions, hook.Stop) }

func (n *Node) runHook(r *hook.Runner, k hook.Kind) { n.afterOthers(func() { r.Want(k) }) }

// Idle tells whether no hook runs and nothing waits to be done, so that another
// process can follow.
func (n *Node) Idle() bool {
	// In the order in which they hand their work on, so that none of it is passed by.
	if n.netLane.busy() || n.guardLane.busy() || n.fileLane.busy() {
		return false
	}
	for _, r := range []*hook.Runner{n.transitions, n.announcements} {
		if running, pending := r.Running(); running != hook.None || pending != hook.None {
			return false
		}
	}
	return true
}

func (n *Node) hookBegan(k hook.Kind) {
	n.mu.Lock()
	n.hooks[k] = status.Hook{Name: k.String(), State: status.HookRunning, Since: status.Now()}
	n.mu.Unlock()
	n.write()
}

func (n *Node) hookDone(c hook.Completion) {
	n.mu.Lock()
	n.hooks[c.Kind] = outcome(c)
	n.mu.Unlock()
	switch key := "hook " + c.Kind.String(); {
	case c.Err == nil:
		n.troubles.Clear(key)
	case errors.Is(c.Err, hook.ErrSuperseded), errors.Is(c.Err, hook.ErrCancelled):
		n.log.Info(fmt.Sprintf("%s hook: %v", c.Kind, c.Err)) // nothing to mend
	default:
		n.troubles.Set(key, fmt.Sprintf("the %s hook failed: %v; see its output in the log, mend the script, then run it by hand", c.Kind, c.Err))
	}
	if c.Kind != hook.Advertisement {
		n.log.Info(fmt.Sprintf("%s hook ended", c.Kind), "took", c.Took.Round(time.Millisecond), "ok", c.Err == nil)
	}
	n.write()
}

// outcome is what vrrpd.json says of a hook that has just ended.
func outcome(c hook.Completion) status.Hook {
	h := status.Hook{Name: c.Kind.String(), State: status.HookDone, Since: status.Now(), Took: status.Seconds(c.Took)}
	if c.Err != nil {
		h.State, h.Error = status.HookFailed, c.Err.Error()
	}
	return h
}
