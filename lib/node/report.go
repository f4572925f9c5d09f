package node

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/bootclock"
	"github.com/skudonet/skudonet-ce-cluster/lib/election"
	"github.com/skudonet/skudonet-ce-cluster/lib/hook"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
	"github.com/skudonet/skudonet-ce-cluster/lib/version"
	"github.com/skudonet/skudonet-ce-cluster/lib/vrouter"
)

// Publish notes what the election knows, and writes vrrpd.json.
func (n *Node) Publish(r vrouter.Report) {
	n.mu.Lock()
	changed := n.report.State != r.State || n.report.Reason != r.Reason
	n.report = r
	n.mu.Unlock()
	if changed && n.Notify != nil {
		n.Notify(fmt.Sprintf("%s on %s vrid %d: %s", r.State, n.conf.Interface, n.conf.VRID, r.Reason))
	}
	n.write()
}

// write queues a write of vrrpd.json, once for many changes.
func (n *Node) write() {
	n.mu.Lock()
	queued := n.writing
	n.writing = true
	n.mu.Unlock()
	if !queued {
		n.fileLane.do(n.writeReport)
	}
}

func (n *Node) writeReport() {
	n.mu.Lock()
	n.writing = false
	d := n.daemon()
	n.mu.Unlock()
	err := d.WriteFile(filepath.Join(n.places.RunDir, status.DaemonFile))
	n.troubles.Check("report", "skd-hooks status shows old news: ", err)
}

var spoken = map[election.Dialect]string{election.VRRP: status.SpeaksVRRP, election.CARP: status.SpeaksCARP, election.Both: status.SpeaksBoth}

// daemon puts together what vrrpd.json says. The caller holds mu.
func (n *Node) daemon() status.Daemon {
	r := n.report
	d := status.Daemon{
		Version: version.Version, PID: os.Getpid(), Started: n.started, Updated: status.Now(),
		State: r.State.String(), Since: status.Moment{Time: r.Since, Boot: r.SinceBoot}, Reason: r.Reason,
		Interface: n.conf.Interface, VRID: n.conf.VRID, Priority: n.conf.Priority, Preempt: n.conf.Preempt,
		Protocol: string(n.conf.Protocol), Speaks: spoken[r.Speaks], Transport: string(n.conf.Transport), Signed: n.conf.Password != "",
		AdvertInterval: status.Seconds(n.conf.AdvertInterval), DeadRatio: n.conf.DeadRatio,
		DownInterval: status.Seconds(r.Silence), HandOverLimit: status.Seconds(r.HandOver),
		Peer: status.Peer{Address: n.conf.RemoteIP.String()},
		Sent: r.Sent, Received: r.Received, Drops: r.Drops, Warnings: slices.Clone(n.warnings),
	}
	if r.CARPOver {
		d.Warnings = append(d.Warnings, status.Problem{Text: "CARP is over, and the line of $protocol is not needed any more",
			Remedy: "remove that line, force-reload, and change $password, because CARP let others test guesses: skudonet-ce-cluster(7), UPGRADING"})
	}
	if second := n.conf.Second.RemoteIP; second.IsValid() {
		d.Peer.Second = second.String()
	}
	d.Guard, _ = n.standing.Load().(string)
	for _, a := range n.want {
		d.Addresses = append(d.Addresses, status.Address{Prefix: a.Prefix.String(), Label: a.Label, Up: n.up && !n.lacking[a.Prefix.Addr()]})
	}
	if r.Peer.Heard != 0 {
		ago := bootclock.Now() - r.Peer.Heard // the report may be old
		d.Peer.LastHeard = status.Moment{Time: time.Now().Add(-ago), Boot: r.Peer.Heard}
		d.Peer.Priority, d.Peer.Interval, d.Peer.Verified = r.Peer.Priority, status.Seconds(r.Peer.Interval), r.Peer.Verified
		d.Peer.Spoke = status.SpeaksVRRP
		if r.Peer.CARP {
			d.Peer.Spoke = status.SpeaksCARP
		}
		switch {
		case r.Peer.Verified && r.Peer.Next:
			d.Peer.Key = "password_next"
		case r.Peer.Verified:
			d.Peer.Key = "password"
		}
	}
	for _, k := range []hook.Kind{hook.Start, hook.Stop, hook.Advertisement} {
		if h, ok := n.hooks[k]; ok {
			d.Hooks = append(d.Hooks, h)
		}
	}
	for _, words := range n.troubles.Words() {
		d.Faults = append(d.Faults, status.Problem{Text: words})
	}
	return d
}
