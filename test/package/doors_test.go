package installed

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// The init script and systemctl are two doors to one service.
func TestTwoDoors(t *testing.T) {
	b := cluster(t)
	w, began := b.capture(), time.Now()

	const running, stopped = "running", "stopped"
	for _, node := range []string{lb2, lb1} {
		role := b.status(node)
		if node == lb1 {
			// Alone, the master stays what it is whatever is done to it.
			b.run(lb2, script+" stop")
		}
		var before string
		for _, step := range []struct {
			command string
			exit    int
			state   string
			same    bool // the process goes on
		}{
			{script + " start", 0, running, true},
			{"systemctl start " + service, 0, running, true},
			{script + " force-reload", 0, running, true},
			{"systemctl reload " + service, 0, running, true},
			{"systemctl restart " + service, 0, running, false},
			{script + " restart", 0, running, false},
			{script + " stop", 0, stopped, false},
			{"systemctl stop " + service, 0, stopped, false},
			{script + " stop", 0, stopped, false},
			{script + " force-reload", 7, stopped, false},
			{script + " handover", 7, stopped, false},
			{"systemctl start " + service, 0, running, false},
			{"systemctl stop " + service, 0, stopped, false},
			{script + " start", 0, running, false},
			{"systemctl stop " + service, 0, stopped, false},
			{script + " restart", 0, running, false},
			{script + " stop", 0, stopped, false},
			{"systemctl restart " + service, 0, running, false},
			{script + " fly", 2, running, true},
			{script, 2, running, true},
			{script + " start now", 2, running, true},
		} {
			before = b.mainPID(node)
			b.exits(node, step.exit, step.command)
			what := fmt.Sprintf("%s: after %q", node, step.command)
			pid := b.mainPID(node)
			active := b.tries(node, "systemctl is-active --quiet "+service)
			status := b.tries(node, script+" status")
			switch step.state {
			case running:
				if pid == "0" || active != 0 || status != 0 {
					t.Errorf("%s: pid %s, is-active exits %d, status exits %d; want it running", what, pid, active, status)
				}
				if step.same && pid != before {
					t.Errorf("%s: process %s, it was %s: want it left alone", what, pid, before)
				}
				b.eventually(what+" its role", func() (bool, string) { return b.status(node) == role, b.status(node) })
			case stopped:
				if pid != "0" || active != 3 || status != 3 {
					t.Errorf("%s: pid %s, is-active exits %d, status exits %d; want it stopped", what, pid, active, status)
				}
				if word := b.status(node); word != "" {
					t.Errorf("%s: the status file says %q", what, word)
				}
				if b.holds(node) {
					t.Errorf("%s: the address is still there", what)
				}
			}
			if t.Failed() {
				t.FailNow()
			}
		}
	}
	b.run(lb2, script+" start")
	b.settled(lb1)
	b.inStep(lb1)
	w.claimed(began, lb1)

	// Whom nothing may be asked of.
	b.run(lb2, "useradd --no-create-home somebody")
	b.says(b.exits(lb2, 4, "setpriv --reuid=somebody --clear-groups "+script+" stop"), "only root")
}

// tries is the exit status of a script.
func (b *bed) tries(node, script string) int {
	b.t.Helper()
	_, code := b.try(node, script)
	return code
}

// Parameters that the admin writes into run_cluster() hold whatever the door, for the replicator too.
func TestParameters(t *testing.T) {
	b := cluster(t)
	b.run(lb2, script+" stop")
	b.run(lb1, script+" stop")
	for _, node := range nodes {
		b.run(node, "mkdir /etc/cluster && mv "+conffile+" /etc/cluster/our.conf")
		b.run(node, `sed -i 's|"--config=.*"|"--config=/etc/cluster/our.conf", "--status-file=/etc/cluster/status"|' `+script)
		b.run(node, script+" run -n")
	}
	here := func(node, word string) {
		t.Helper()
		b.eventually(word+" in /etc/cluster/status of "+node, func() (bool, string) {
			text := b.read(node, "/etc/cluster/status")
			return text == word+"\n", text
		})
	}
	for _, door := range []string{script, "systemctl"} {
		call := func(action string) string {
			if door == "systemctl" {
				return "systemctl " + action + " " + service
			}
			return script + " " + action
		}
		for _, node := range nodes {
			b.run(node, call("start"))
			here(node, map[string]string{lb1: "master", lb2: "backup"}[node])
			if text := b.read(node, statusFile); text != "" {
				t.Errorf("%s: %s says %q; the parameters name another file", door, statusFile, text)
			}
		}
		b.answers()
		b.replicates(lb1)
		b.run(lb1, script+" status")
		b.run(lb1, script+" force-reload")
		b.run(lb1, script+" handover")
		here(lb2, "master")
		b.replicates(lb2)
		for _, node := range nodes {
			b.run(node, call("stop"))
			b.exits(node, 3, script+" status")
			b.exits(node, 1, "test -e /etc/cluster/status")
			if b.holds(node) {
				t.Errorf("%s: %s has the address after a stop", door, node)
			}
		}
	}
}

// Whoever starts, stops or restarts Skudonet by whatever door, or upgrades it, does not disturb the cluster.
func TestSkudonetUnderUs(t *testing.T) {
	b := cluster(t)
	w, r, began := b.capture(), b.watch(), time.Now()
	const (
		init = "/etc/init.d/skudonet "
		unit = "systemctl %s skudonet"
	)
	var steps []string
	for _, a := range []string{"stop", "start", "restart"} {
		steps = append(steps, init+a, fmt.Sprintf(unit, a))
	}
	// Stopped by one door and started by the other, in both orders.
	steps = append(steps, init+"stop", fmt.Sprintf(unit, "start"), fmt.Sprintf(unit, "stop"), init+"start",
		"apt-get -y install --reinstall skudonet")
	for _, node := range []string{lb2, lb1} {
		for _, step := range steps {
			b.run(node, step)
			if strings.HasSuffix(step, "stop") || strings.HasSuffix(step, "stop skudonet") {
				continue
			}
			b.settledRoles(lb1)
			b.answers()
		}
	}
	b.settledRoles(lb1)
	b.replicates(lb1)
	if changes := r.since(began); len(changes) != 1 {
		t.Errorf("the roles changed:\n%s", r.story(began))
	}
	w.claimed(began, lb1)
	b.run(lb1, "pgrep -f /usr/local/skudonet/bin/stubd || pgrep -x sleep")

	// And the cluster afterwards: all doors still lead to the right end.
	p, then := b.ping(), time.Now()
	b.run(lb1, script+" handover")
	b.settled(lb2)
	b.survived(p, "handover", then, 5*time.Second)
	w.claimed(began, lb1, lb2)
}

// settledRoles is settled, but for the address of the backup, which Skudonet may raise there behind the guard.
func (b *bed) settledRoles(master string) {
	b.t.Helper()
	b.eventually(master+" as the only master", func() (bool, string) {
		ok := b.status(master) == "master" && b.status(other[master]) == "backup" && b.holds(master) && b.guarded(other[master])
		return ok, fmt.Sprintf("status %s %q, %s %q, address on the master: %v, guard of the backup: %v", lb1, b.status(lb1), lb2,
			b.status(lb2), b.holds(master), b.guarded(other[master]))
	})
}
