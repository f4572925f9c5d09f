// Package hook runs the admin's scripts for a node that was promoted or demoted,
// beside the timers of the election and never in their way: one at a time in a
// lane, each with a limit, its output handed on line by line. A lane keeps only
// the last wish, and a demotion ends a start hook that still runs.
//
// What the scripts do is theirs. The package neither retries a hook that failed
// nor knows what the node is; it runs what is wanted and says how it ended.
package hook

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// Kind is one of the three hooks.
type Kind uint8

const (
	None          Kind = iota
	Start              // the node was promoted
	Stop               // the node was demoted, or the service starts or stops
	Advertisement      // the addresses are to be announced
)

var kindNames = [...]string{"none", "start", "stop", "advertisement"}

func (k Kind) String() string { return kindNames[k] }

// Why a hook was ended before its time; errors.Is finds them in Completion.Err.
var (
	ErrTimeout    = errors.New("took longer than $hook_timeout and was ended")
	ErrSuperseded = errors.New("ended, because the node was demoted meanwhile")
	ErrCancelled  = errors.New("ended, because it is not wanted any more")
)

// Completion is how a hook ended.
type Completion struct {
	Kind Kind // None as long as no hook has ended
	Took time.Duration
	Err  error // nil when the script returned 0
}

// Exec runs one script to its end and hands its output on by line. When ctx
// ends it ends the script, and all that the script is waiting for, and returns.
// A test in virtual time brings its own; Process is the real one.
type Exec func(ctx context.Context, script string, env []string, line func(string)) error

// Options of a Runner. Only Scripts is needed.
type Options struct {
	Scripts map[Kind]string     // paths; a hook without one is done at once
	Env     func(Kind) []string // whole environment of a script; nil: Environment{}.For
	Timeout time.Duration       // of one script; 0: none
	Exec    Exec                // nil: Process(Grace)
	Log     func(Kind, string)  // a line of output; also called after the end, when a script has left a daemon behind that writes
	Began   func(Kind)          // a script is about to run
	Done    func(Completion)    // it has ended; the next one waits for the return of this call
	Last    Completion          // what Completed says until a hook has ended: from an earlier life of the daemon
}

// Grace is the time between SIGTERM and SIGKILL.
const Grace = 3 * time.Second

// Runner is a lane: it runs one hook at a time. Start and Stop belong into one
// Runner, Advertisement into another one.
type Runner struct {
	opt Options

	mu      sync.Mutex
	running Kind
	ending  bool // what runs does not count as an answer to a wish any more
	pending Kind
	end     context.CancelCauseFunc
	idle    chan struct{} // closed when nothing runs
	last    Completion
	closed  bool
}

// NewRunner returns a lane where nothing runs.
func NewRunner(opt Options) *Runner {
	if opt.Env == nil {
		opt.Env = Environment{}.For
	}
	if opt.Exec == nil {
		opt.Exec = Process(Grace)
	}
	if opt.Log == nil {
		opt.Log = func(Kind, string) {}
	}
	if opt.Began == nil {
		opt.Began = func(Kind) {}
	}
	if opt.Done == nil {
		opt.Done = func(Completion) {}
	}
	return &Runner{opt: opt, last: opt.Last}
}

// Want asks for a hook and returns at once. While another one runs, the wish
// waits, in place of an earlier one; Stop also ends a running Start. A wish for
// what is running already is met by that, except for Advertisement, which runs
// once more: its addresses may have changed since.
func (r *Runner) Want(k Kind) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.closed || k == None:
	case r.running == None:
		r.idle = make(chan struct{})
		go r.run(k, r.begin(k))
	case r.running == k && !r.ending && k != Advertisement:
		r.pending = None
	default:
		r.pending = k
		if r.running == Start && !r.ending {
			r.ending = true
			r.end(ErrSuperseded)
		}
	}
}

// Cancel forgets what waits and ends what runs, without waiting for its end.
func (r *Runner) Cancel() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pending = None
	if r.running != None && !r.ending {
		r.ending = true
		r.end(ErrCancelled)
	}
}

// Close is Cancel for good, and waits for the end.
func (r *Runner) Close(ctx context.Context) error {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.Cancel()
	return r.Wait(ctx)
}

// Wait returns when nothing runs and nothing waits, or with the error of ctx.
func (r *Runner) Wait(ctx context.Context) error {
	r.mu.Lock()
	idle := r.idle
	if r.running == None {
		idle = nil
	}
	r.mu.Unlock()
	if idle == nil {
		return nil
	}
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Running says which hook runs and which one waits, None for none.
func (r *Runner) Running() (running, pending Kind) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.running, r.pending
}

// Completed is how the last hook that has ended did so. Its Kind and Err tell a
// daemon that starts again (Options.Last) whether the slow part of the last
// transition is still to be done.
func (r *Runner) Completed() Completion {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last
}

// begin marks k as running. The caller holds mu.
func (r *Runner) begin(k Kind) context.Context {
	ctx, end := context.WithCancelCause(context.Background())
	r.running, r.ending, r.end = k, false, end
	return ctx
}

// run runs k and then whatever waits.
func (r *Runner) run(k Kind, ctx context.Context) {
	for {
		c := r.once(k, ctx)
		r.mu.Lock()
		// From here on a wish for k is a new one, and there is nothing to end.
		r.ending, r.last = true, c
		r.mu.Unlock()
		r.opt.Done(c)

		r.mu.Lock()
		r.end(nil)
		k, r.pending = r.pending, None
		if k == None {
			r.running = None
			close(r.idle)
			r.mu.Unlock()
			return
		}
		ctx = r.begin(k)
		r.mu.Unlock()
	}
}

func (r *Runner) once(k Kind, ctx context.Context) Completion {
	script := r.opt.Scripts[k]
	if script == "" {
		return Completion{Kind: k}
	}
	if r.opt.Timeout > 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeoutCause(ctx, r.opt.Timeout, ErrTimeout)
		defer stop()
	}
	began := time.Now()
	r.opt.Began(k)
	err := r.opt.Exec(ctx, script, r.opt.Env(k), func(line string) { r.opt.Log(k, line) })
	if err != nil {
		// A script that was ended tells no more than that by its exit status.
		if cause := context.Cause(ctx); cause != nil && !errors.Is(err, ErrSurvived) {
			err = cause
		}
		err = fmt.Errorf("%s: %w", script, err)
	}
	return Completion{Kind: k, Took: time.Since(began), Err: err}
}

// The variables that a hook finds in its environment beside PATH.
const (
	EnvState      = "SKD_STATE"       // master or backup: what the node has become
	EnvInterface  = "SKD_INTERFACE"   // $interface
	EnvClusterIP  = "SKD_CLUSTER_IP"  // $cluster_ip; where it has both families, the IPv4 address
	EnvClusterIP6 = "SKD_CLUSTER_IP6" // and the IPv6 address then
	EnvConfig     = "SKD_CONFIG"      // path of skudonet-cluster.conf
	EnvConfigDir  = "SKD_CONFIG_DIR"  // $configdir, Skudonet's configuration tree
	EnvStatusFile = "SKD_STATUS_FILE" // path of the status file
	EnvRunDir     = "SKD_RUN_DIR"     // directory of what only the daemon knows
	EnvStateDir   = "SKD_STATE_DIR"   // directory of what survives a reboot
)

// Path is where hooks find programs.
const Path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Environment is what the hooks are told. Nothing else is in their environment,
// and no secret is ever in it.
type Environment struct {
	Programs   string // directory of our own programs, in front of Path if it is not in it
	Interface  string
	ClusterIP  netip.Addr
	ClusterIP6 netip.Addr // of a pair with both families
	Config     string
	ConfigDir  string
	StatusFile string
	RunDir     string
	StateDir   string
}

// For returns the environment of one hook. Empty fields are left out.
func (e Environment) For(k Kind) []string {
	state := "master"
	if k == Stop {
		state = "backup"
	}
	path := Path
	if e.Programs != "" && !slices.Contains(filepath.SplitList(Path), e.Programs) {
		path = e.Programs + ":" + Path
	}
	address := func(ip netip.Addr) string {
		if !ip.IsValid() {
			return ""
		}
		return ip.String()
	}
	env := []string{"PATH=" + path, "HOME=/root", "LANG=C.UTF-8"}
	for _, v := range [][2]string{{EnvState, state}, {EnvInterface, e.Interface}, {EnvClusterIP, address(e.ClusterIP)},
		{EnvClusterIP6, address(e.ClusterIP6)}, {EnvConfig, e.Config}, {EnvConfigDir, e.ConfigDir},
		{EnvStatusFile, e.StatusFile}, {EnvRunDir, e.RunDir}, {EnvStateDir, e.StateDir}} {
		if v[1] != "" && !strings.ContainsRune(v[1], 0) {
			env = append(env, v[0]+"="+v[1])
		}
	}
	return env
}
