package status

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Stopped is the State of a Report on a node whose service does not run.
const Stopped = "stopped"

// Health of a node, which is also the exit status of skd-hooks status.
type Health int

const (
	Healthy  Health = 0 // running as it should
	Degraded Health = 1 // running with faults, or not although the status file says so
	Down     Health = 3 // stopped, in order
)

func (h Health) String() string {
	return map[Health]string{Healthy: "healthy", Degraded: "degraded", Down: Stopped}[h]
}

func (h Health) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// Report is what can be said about a node from its files.
type Report struct {
	State    string    `json:"state"`              // of the daemon, else of the status file, else Stopped
	Health   Health    `json:"health"`             // healthy, degraded or stopped
	Problems []Problem `json:"problems,omitempty"` // everything that makes it degraded
	Running  bool      `json:"running"`            // the daemon is alive
	Word     string    `json:"status_file"`        // master, backup, or nothing
	AsOf     Seconds   `json:"as_of_s"`            // how old the Daemon's knowledge is
	Daemon   *Daemon   `json:"daemon,omitempty"`   // the last that a daemon said since the boot
	now      Moment
}

// Inspect reads the status file and the Daemon file in runDir, and looks
// whether that daemon is alive.
func Inspect(statusFile, runDir string) Report {
	return inspect(statusFile, runDir, Now(), Daemon.Alive)
}

func inspect(statusFile, runDir string, now Moment, alive func(Daemon) bool) Report {
	r := Report{State: Stopped, now: now}
	word, err := Read(statusFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.problem("the status file cannot be read: "+err.Error(), "remove it and restart the service")
	}
	if r.Word = word; word != "" {
		r.State = word
	}
	d, err := ReadDaemon(filepath.Join(runDir, DaemonFile))
	if err == nil {
		r.Daemon, r.Running, r.AsOf = &d, alive(d), Seconds(max(0, d.Updated.Age(now)))
	} else if !errors.Is(err, fs.ErrNotExist) {
		r.problem("what the daemon says about itself cannot be read: "+err.Error(), "restart the service")
	}
	switch {
	case r.Running:
		r.State = d.State
		r.judge(d)
	case word != "":
		r.problem("the status file says "+word+", but skd-vrrpd is not running",
			"/etc/init.d/skudonet-ce-cluster start; why it ended is in /var/log/syslog")
	}
	switch {
	case len(r.Problems) > 0:
		r.Health = Degraded
	case r.State == Stopped:
		r.Health = Down
	}
	return r
}

// judge adds what is wrong with a daemon that runs: what it says itself, and
// what others did to the status file.
func (r *Report) judge(d Daemon) {
	r.Problems = append(r.Problems, d.Faults...)
	word := Backup
	if d.State == Master {
		word = Master
	}
	if d.State == Fault && len(d.Faults) == 0 {
		r.problem("out of the election: "+d.Reason, "")
	}
	if d.State != Init && r.Word != word {
		r.problem(fmt.Sprintf("the daemon is %s, but the status file says %q", d.State, r.Word),
			"see in /var/log/syslog whether it could be written; a restart of the service writes it again")
	}
}

func (r *Report) problem(text, remedy string) {
	r.Problems = append(r.Problems, Problem{Text: text, Remedy: remedy})
}

// WriteText writes the report for people.
func (r Report) WriteText(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	row := func(name, format string, args ...any) {
		fmt.Fprintf(t, "%s\t%s\n", name, fmt.Sprintf(format, args...))
	}
	d := r.Daemon
	switch {
	case d == nil:
		row("state", "%s", r.State)
	case r.Running:
		row("state", "%s since %s", r.State, r.when(d.Since))
		row("because", "%s", d.Reason)
	default:
		row("state", "%s; last known: %s since %s", r.State, d.State, r.when(d.Since))
	}
	row("health", "%s", r.Health)
	if d != nil {
		alive := "not running"
		if r.Running {
			alive = "running"
		}
		row("daemon", "skd-vrrpd %s, pid %d, %s; says this as of %s ago", d.Version, d.PID, alive, Age(time.Duration(r.AsOf)))
		r.election(row)
		r.activity(row)
	}
	rows := func(name string, problems []Problem) {
		for _, p := range problems {
			row(name, "%s", p.Text)
			if name = ""; p.Remedy != "" {
				row(name, "  -> %s", p.Remedy)
			}
		}
	}
	rows("problems", r.Problems)
	if d != nil {
		rows("warnings", d.Warnings)
	}
	return t.Flush()
}

type rowFunc = func(name, format string, args ...any)

// election writes what the node takes part in, and with whom.
func (r Report) election(row rowFunc) {
	d := r.Daemon
	signed := "unsigned"
	if d.Signed {
		signed = "signed"
	}
	row("election", "%s, VRID %d, priority %d, preemption %s, %s, %s, every %s, down interval %s", d.Interface, d.VRID,
		d.Priority, map[bool]string{true: "on", false: "off"}[d.Preempt], d.Transport, signed, d.AdvertInterval, d.DownInterval)
	switch d.Speaks {
	case SpeaksCARP:
		row("protocol", "CARP, which protects little")
	case SpeaksBoth:
		row("protocol", "VRRPv3, and CARP because the peer is ucarp: upgrade that node, too")
	}
	p := d.Peer
	name := p.Address
	if p.Second != "" {
		name += " and " + p.Second
	}
	if p.LastHeard.IsZero() {
		row("peer", "%s, not heard yet", name)
		return
	}
	proof := "not signed"
	if p.Verified {
		proof = "signature verified (" + p.Key + ")"
	}
	if p.Spoke == SpeaksCARP {
		row("peer", "%s, last heard %s, with CARP, every %s, digest verified (%s)", name, r.when(p.LastHeard), p.Interval, p.Key)
		return
	}
	row("peer", "%s, last heard %s, priority %d, every %s, %s", name, r.when(p.LastHeard), p.Priority, p.Interval, proof)
}

// activity writes what the node holds, does and has done.
func (r Report) activity(row rowFunc) {
	d := r.Daemon
	const shown = 16
	for i, a := range d.Addresses {
		name := ""
		if i == 0 {
			name = "addresses"
		}
		if i == shown {
			row(name, "and %d more (--json lists all)", len(d.Addresses)-shown)
			break
		}
		row(name, "%s %s, %s", a.Prefix, a.Label, map[bool]string{true: "up", false: "down"}[a.Up])
	}
	if d.Guard != "" {
		row("guard", "%s", d.Guard)
	}
	row("adverts", "%d sent, %d received", d.Sent, d.Received)
	var drops []string
	for _, reason := range slices.Sorted(maps.Keys(d.Drops)) {
		drops = append(drops, fmt.Sprintf("%s %d", reason, d.Drops[reason]))
	}
	if drops != nil {
		row("dropped", "%s", strings.Join(drops, ", "))
	}
	name := "hooks"
	for _, h := range d.Hooks {
		text := h.State
		if h.State != HookRunning {
			text += " after " + Age(time.Duration(h.Took))
		}
		row(name, "%s: %s, %s", h.Name, text, r.when(h.Since))
		name = ""
	}
}

// when is a moment for people. How long ago it was comes from the boot clock.
func (r Report) when(m Moment) string {
	return m.Time.Format("2006-01-02 15:04:05") + " (" + Age(m.Age(r.now)) + " ago)"
}

// Age is a duration for people, in its two largest units.
func Age(d time.Duration) string {
	units := []struct {
		size time.Duration
		name string
	}{{24 * time.Hour, "d"}, {time.Hour, "h"}, {time.Minute, "min"}, {time.Second, "s"}}
	for i, u := range units[:3] {
		if d >= u.size {
			v := units[i+1]
			return fmt.Sprintf("%d %s %d %s", d/u.size, u.name, d%u.size/v.size, v.name)
		}
	}
	if d < 10*time.Second {
		return fmt.Sprintf("%.1f s", max(0, d).Seconds())
	}
	return fmt.Sprintf("%d s", d/time.Second)
}
