package history

import (
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/status"
)

// Where programs may die, by package step.
var (
	daemonSteps = []string{"mirror.synced", "mirror.recorded", "mirror.adopt.archived", "mirror.adopt.fetched", "swap.begun", "swap.applied",
		"swap.recorded", "mirror.conflict.archived", "mirror.conflict.kept"}
	peerSteps = []string{"swap.applied", "peer.kept", "peer.archived", "peer.intent", "peer.rsync.started", "peer.rsync.ended", "peer.removing",
		"peer.removed", "peer.sifted", "peer.looked", "peer.commit.synced", "peer.commit.forgotten", "peer.commit.stored", "peer.commit.resolved"}
)

// giveUps of a master that may wait for its peer, and of one that is alone.
const (
	patient   = time.Minute
	impatient = 300 * time.Millisecond
)

func (n *node) established() bool {
	_, err := os.Lstat(n.path("run", "inotify.established"))
	return n.role == status.Master && err == nil
}

func (h *history) either() *node { return h.nodes()[h.random.IntN(2)] }

// promote makes a node master, as skd-vrrpd and the start hook do.
func (h *history) promote(n *node) {
	n.giveUp = impatient
	if reachable := !h.cut.Load() && n.peer.on && n.peer.role != status.Master; reachable && (h.calm || h.chance(2)) {
		n.giveUp = patient
	}
	h.note("%s becomes master, gives up after %v", n, n.giveUp)
	h.must(rm(n.path("run", "inotify.established")))
	n.become(status.Master)
	h.rewrite(n)
	n.startDaemon()
}

// demote makes it backup.
func (h *history) demote(n *node) {
	h.note("%s becomes backup", n)
	n.become(status.Backup)
	n.stopDaemon()
	h.rewrite(n)
}

// rewrite is what Skudonet does to its files in its start and stop: the same
// again, in place or by rename, and a backend's state.
func (h *history) rewrite(n *node) {
	name := filepath.Join(n.config(), "global.conf")
	if b, err := os.ReadFile(name); err == nil && h.chance(2) {
		if h.chance(2) {
			h.must(os.WriteFile(name, b, 0o644))
		} else {
			h.must(replace(name, string(b)))
		}
	}
	if h.chance(2) {
		h.flip(n)
	}
}

// flip is what farmguardian does: a backend goes up or down.
func (h *history) flip(n *node) {
	farms, _ := filepath.Glob(filepath.Join(n.config(), "*_l4xnat.cfg"))
	for _, name := range farms {
		b, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		up, down := `"bck0", "state": "up"`, `"bck0", "state": "down"`
		text := strings.NewReplacer(up, down, down, up).Replace(string(b))
		if h.chance(2) {
			h.must(os.WriteFile(name, []byte(text), 0o644))
		} else {
			h.must(replace(name, text))
		}
	}
}

func replace(name, text string) error {
	mode := os.FileMode(0o644)
	if info, err := os.Lstat(name); err == nil {
		mode = info.Mode().Perm()
	}
	if err := os.WriteFile(name+".new", []byte(text), mode); err != nil {
		return err
	}
	if err := os.Chmod(name+".new", mode); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}

// act is one step.
func (h *history) act() {
	rulers := h.rulers()
	switch h.random.IntN(16) {
	case 0, 1, 2, 3:
		for _, n := range rulers {
			for range 1 + h.random.IntN(3) {
				h.edit(n)
			}
		}
	case 4, 5:
		for _, n := range rulers {
			h.edit(n)
			h.recorded(n)
		}
	case 6:
		if m := h.master(); m != nil {
			h.edit(m)
			h.quiet()
		}
	case 7:
		h.cutOrHeal()
	case 8:
		h.kill()
	case 9:
		h.arm()
	case 10:
		h.reboot()
	case 11, 12:
		h.exchange()
	case 13:
		if !h.calm {
			h.split()
		} else {
			h.failover()
		}
	case 14:
		h.mistake()
	case 15:
		for _, n := range rulers {
			if n.established() {
				h.note("%s: Skudonet and farmguardian at work", n)
				h.rewrite(n)
			}
			if n.daemon.alive() && h.chance(2) {
				n.daemon.cmd.Process.Signal(unix.SIGUSR1)
			}
		}
	}
	for _, n := range h.nodes() {
		h.collect(n)
		if n.on && n.role == status.Master && n.daemon == nil && h.chance(2) {
			h.note("%s: the daemon is started again", n)
			n.startDaemon()
		}
	}
}

func (h *history) rulers() (list []*node) {
	for _, n := range h.nodes() {
		if n.on && n.role == status.Master {
			list = append(list, n)
		}
	}
	return list
}

// recorded waits until what n has is acknowledged. One that still waits for its peer records nothing.
func (h *history) recorded(n *node) {
	if !n.established() && n.giveUp == patient && (h.cut.Load() || !n.peer.on || n.peer.role == status.Master) {
		return
	}
	h.note("%s: waits for the acknowledgement", n)
	h.wait(n, n.name+" does not record its changes", func() string {
		if n.clean() {
			return ""
		}
		return "the record is that of another tree"
	})
	h.acknowledge(n)
}

func (h *history) cutOrHeal() {
	if h.cut.Load() {
		h.note("healed")
		h.cut.Store(false)
		h.a.beat()
		h.b.beat()
		return
	}
	if h.calm && !h.settled() {
		return
	}
	h.note("cut")
	h.cut.Store(true)
	h.a.hangUp()
	h.b.hangUp()
}

// settled makes sure that a calm history's master has heard of what the other did.
func (h *history) settled() bool {
	m := h.master()
	if m == nil {
		return false
	}
	if !m.established() {
		if h.cut.Load() || !m.peer.on {
			return false
		}
		h.wait(m, m.name+" is not compared with its peer", func() string {
			if m.established() {
				return ""
			}
			return "not established"
		})
	}
	return true
}

// kill kills a program, and not what it has started.
func (h *history) kill() {
	n := h.either()
	if h.chance(2) {
		h.edit(n)
	}
	if n.role == status.Master && n.daemon.alive() {
		time.Sleep(time.Duration(h.random.IntN(60)) * time.Millisecond)
		h.note("%s: the daemon is killed", n)
		n.daemon.kill()
		n.daemon = nil
		return
	}
	h.note("%s: what answers is killed", n)
	n.killAnswers()
}

// arm has a program die at a certain place.
func (h *history) arm() {
	count := []string{"", "", ":2", ":3"}[h.random.IntN(4)]
	m := h.master()
	if m == nil {
		return
	}
	h.armed = true
	if h.chance(2) {
		m.daemonStep = daemonSteps[h.random.IntN(len(daemonSteps))] + count
		h.note("%s: the daemon dies at %s", m, m.daemonStep)
		m.daemon.kill()
		m.daemon = nil
		m.startDaemon()
	} else {
		m.peer.mu.Lock()
		m.peer.peerStep = peerSteps[h.random.IntN(len(peerSteps))] + count
		h.note("%s: what answers dies at %s", m.peer, m.peer.peerStep)
		m.peer.mu.Unlock()
		m.peer.killAnswers()
		m.beat()
	}
	if h.chance(2) {
		h.edit(m)
	}
}

// reboot takes the power from a node for a moment.
func (h *history) reboot() {
	n := h.either()
	if !n.on {
		return
	}
	wasMaster := n.role == status.Master
	if h.calm && wasMaster && (!h.settled() || h.cut.Load() || !n.peer.on) {
		return // What it has recorded, and the other does not know, would be missed.
	}
	h.note("%s: power off, and on", n)
	n.powerOff()
	if !wasMaster || h.calm || h.chance(2) {
		n.powerOn()
		if wasMaster && n.peer.role != status.Master && h.chance(2) {
			h.promote(n.peer)
		}
		return
	}
	if n.peer.on && n.peer.role != status.Master {
		h.promote(n.peer)
	}
}

// exchange makes the other node master.
func (h *history) exchange() {
	m := h.master()
	if m == nil {
		for _, n := range h.nodes() {
			if n.on && n.peer.role != status.Master && n.role != status.Master {
				if h.calm && (h.cut.Load() || !n.peer.on) {
					continue
				}
				h.promote(n)
				return
			}
		}
		return
	}
	if !m.peer.on {
		h.note("%s: power on", m.peer)
		m.peer.powerOn()
		return
	}
	if h.calm && (h.cut.Load() || !h.settled()) {
		return
	}
	if h.chance(2) {
		h.edit(m)
	}
	h.demote(m)
	h.promote(m.peer)
}

// failover has the backup follow a master that fails, when it has missed nothing.
func (h *history) failover() {
	m := h.master()
	if m == nil {
		return
	}
	h.quiet()
	h.note("%s: power off", m)
	m.powerOff()
	h.promote(m.peer)
}

// split makes both nodes masters, apart or side by side.
func (h *history) split() {
	m := h.master()
	if m == nil || !m.peer.on {
		return
	}
	if h.chance(4) {
		h.note("two masters side by side")
	} else if !h.cut.Load() {
		h.cutOrHeal()
	}
	h.promote(m.peer)
	if h.chance(3) { // Only one of them changes anything, and the other one stays.
		one := h.either()
		h.wait(one.peer, one.peer.name+" does not give up", func() string {
			if one.peer.established() || one.peer.giveUp == patient { // which may take longer
				return ""
			}
			return "it waits for its peer"
		})
		h.edit(one)
		h.recorded(one)
		h.demote(one)
		h.quiet()
		return
	}
	for _, n := range h.nodes() {
		if h.chance(3) {
			continue
		}
		h.edit(n)
		if h.chance(2) {
			h.recorded(n)
		}
	}
	if h.chance(2) {
		h.note("healed, with two masters")
		h.cut.Store(false)
		h.a.beat()
		h.b.beat()
		time.Sleep(time.Duration(h.random.IntN(200)) * time.Millisecond)
		if h.chance(2) {
			h.demote(h.either())
		}
	}
}

// mistake is an edit on a backup.
func (h *history) mistake() {
	for _, n := range h.nodes() {
		if n.on && n.role == status.Backup {
			h.note("%s: edited, although it is backup", n)
			h.edit(n)
		}
	}
}
