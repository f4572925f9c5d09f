package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// master makes the node one, with Skudonet up.
func (n *node) master() {
	n.t.Helper()
	n.sh("echo master > /mnt/status")
	n.hooks(0, "start")
	n.calls()
}

// begin runs skd-hooks beside the test. The function waits for its end and
// returns what it has printed.
func (n *node) begin(want int, verb string) (end func() string) {
	n.t.Helper()
	ended := make(chan string, 1)
	go func() { ended <- n.hooks(want, verb) }()
	return func() string { return <-ended }
}

// owes tells whether a restart is owed.
func (n *node) owes(want bool) {
	n.t.Helper()
	n.equal("restart owed", n.sh("test -e /run/skudonet-ce-cluster/apply.pending && echo true || echo false"), map[bool]string{true: "true", false: "false"}[want])
}

func TestApply(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.master()
	replicator := n.sh("cat /run/skudonet-ce-cluster/inotify.pid")
	n.sh("rm /usr/local/skudonet/config/shop_proxy.cfg; ip link set cable1 down")
	n.contains(n.hooks(0, "apply"), "skudonet: stopped in ", "\nskudonet: started by /etc/init.d/skudonet start in ",
		"\nlinks: set up again, where Skudonet found no carrier: eth1\n")
	n.equal("calls", n.calls(), "stop, start, started")
	n.equal("daemons of the new configuration", n.daemons(), "nftlb")
	n.contains(n.sh("ip -4 addr show eth0"), "192.168.0.252/24")
	n.owes(false)
	n.equal("replicator", n.sh("cat /run/skudonet-ce-cluster/inotify.pid; cat /proc/"+replicator+"/comm"), replicator+"\nskd-inotify")
}

func TestApplyOnNoMaster(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.equal("of a stopped node", n.hooks(0, "apply"), "this node is stopped: nothing to apply\n")
	n.sh("echo backup > /mnt/status")
	n.equal("of a backup", n.hooks(0, "apply"), "this node is backup: nothing to apply\n")
	n.sh("echo leader > /mnt/status")
	n.contains(n.hooks(1, "apply"), `/mnt/status: "leader": want master or backup`)
	n.equal("calls", n.calls(), "")
	n.owes(false)
}

func TestApplyTwice(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.master()
	n.sh("echo SLOW=2 > /run/behave")
	first := n.begin(0, "apply")
	n.wait("grep -q start /run/calls")
	n.contains(n.hooks(0, "apply"), "another skd-hooks is at work; waiting for it", "skudonet: stopped in", "skudonet: started by")
	first()
	n.equal("calls", n.calls(), "stop, start, started, stop, start, started")
	n.equal("daemons", n.daemons(), "nftlb pound")
	n.owes(false)
}

// Demoted while Skudonet starts: the stop hook waits for no more than a stop.
func TestStopDuringApply(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.master()
	n.sh("echo SLOW=3 > /run/behave")
	apply := n.begin(0, "apply")
	n.wait("grep -q start /run/calls")
	n.sh("echo backup > /mnt/status")
	n.contains(n.hooks(0, "stop"), "another skd-hooks is at work; waiting for it", "skudonet: stopped in ")
	n.contains(apply(), "this node is not master any more: stopping Skudonet again", "another start or stop of Skudonet is under way", "skudonet: stopped in ")
	n.equal("calls", n.calls(), "stop, start, started, stop, stop")
	n.equal("daemons", n.daemons(), "")
	n.owes(false)
}

// Demoted while Skudonet stops: it is not started any more.
func TestDemotedWhileApplyStops(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.master()
	n.sh("echo SLOW_STOP=2 > /run/behave")
	apply := n.begin(0, "apply")
	n.wait("grep -q stop /run/calls")
	n.sh("echo backup > /mnt/status")
	n.contains(apply(), "this node is not master any more")
	if calls := n.calls(); strings.Contains(calls, "start") {
		t.Errorf("started on a backup: %s", calls)
	}
	n.equal("daemons", n.daemons(), "")
	n.owes(false)
}

// A start that hangs is no reason for a demotion to wait.
func TestDemotedWhileApplyHangs(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.master()
	n.sh("echo HANG=600 > /run/behave")
	apply := n.begin(0, "apply")
	n.wait("grep -q start /run/calls")
	n.sh("echo backup > /mnt/status")
	n.contains(apply(), "is at it for more than 15s: sending SIGTERM", "skudonet: stopped in ")
	n.equal("daemons", n.daemons(), "")
}

// A demotion is under way when the configuration is to be applied.
func TestApplyDuringStop(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.master()
	n.sh("echo SLOW_STOP=3 > /run/behave")
	stop := n.begin(0, "stop") // by hand, with the word still there
	n.wait("grep -q stop /run/calls")
	apply := n.begin(0, "apply")
	n.wait("test -e /run/skudonet-ce-cluster/apply.pending")
	n.sh("echo backup > /mnt/status")
	stop()
	n.contains(apply(), "this node is not master any more: nothing to apply")
	n.equal("calls", n.calls(), "stop")
	n.owes(false)
}

// numbered is an apply whose process number is in a file.
func (n *node) numbered() *exec.Cmd {
	return n.command("/bin/sh", "-c", "echo $$ >/run/apply.pid; exec "+program+" -c /mnt/skudonet-cluster.conf --status-file /mnt/status apply")
}

// Killed in the middle, it leaves Skudonet down on a master, and a mark for who
// comes next.
func TestApplyIsKilled(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.master()
	kill := func(at string) {
		t.Helper()
		cmd := n.numbered()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		n.wait("grep -q '^" + at + "' /run/calls")
		n.sh("kill -9 $(cat /run/apply.pid)")
		cmd.Wait()
		n.owes(true)
	}
	n.sh("echo SLOW_STOP=2 > /run/behave")
	kill("stop")
	n.contains(n.hooks(0, "start"), "its configuration was replaced, and the restart for that has not come to its end", "skudonet: started by")
	n.equal("calls of a start", n.calls(), "stop, stop, start, started")
	n.equal("daemons", n.daemons(), "nftlb pound")
	n.owes(false)
	n.contains(n.hooks(0, "start"), "is up already")

	n.sh("echo SLOW=2 > /run/behave")
	kill("start")
	n.hooks(0, "apply")
	n.equal("calls of another apply", n.calls(), "stop, start, started, stop, start, started")
	n.owes(false)

	// One that waited for a start, which has settled what it owed itself.
	n.sh("echo SLOW=3 > /run/behave; touch /run/skudonet-ce-cluster/apply.pending")
	start := n.begin(0, "start")
	n.wait("grep -q start /run/calls")
	waiting := n.numbered()
	if err := waiting.Start(); err != nil {
		t.Fatal(err)
	}
	n.contains(start(), "its configuration was replaced")
	n.wait("test $(grep -c stop /run/calls) = 2")
	n.sh("kill -9 $(cat /run/apply.pid)")
	waiting.Wait()
	n.owes(true)

	n.sh("echo backup > /mnt/status")
	n.hooks(0, "stop")
	n.owes(false)
}

// What cannot be started again is not stopped.
func TestApplyWithoutCarrier(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.master()
	n.sh("ip link set cable0 down")
	n.contains(n.hooks(1, "apply"), "it goes on with the old configuration: eth0 has no carrier")
	n.contains(n.hooks(1, "start"), "skudonet: failed: eth0 has no carrier")
	n.equal("calls", n.calls(), "")
	n.equal("daemons", n.daemons(), "nftlb pound")
	n.owes(true)
	n.sh("ip link set cable0 up")
	n.hooks(0, "start")
	n.equal("calls with one", n.calls(), "stop, start, started")
	n.owes(false)
}

func TestApplyFails(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.master()
	n.sh("echo STUCK=1 > /run/behave")
	n.contains(n.hooks(1, "apply"), "skudonet: failed: still running after", "skudonet: started by")
	n.owes(true) // with what runs of the old configuration
	n.sh("echo FAIL=1 > /run/behave")
	n.contains(n.hooks(1, "apply"), "skudonet: failed: started by /etc/init.d/skudonet start, but ", "192.168.0.252/24 on eth0 (eth0:web) is not up")
	n.owes(true)
	n.sh(": > /run/behave")
	n.hooks(0, "apply")
	n.owes(false)
	n.sh("sed -i /cluster_ip/d /mnt/skudonet-cluster.conf; : > /run/calls")
	n.contains(n.hooks(2, "apply"), "$cluster_ip")
	n.equal("calls with a wrong configuration", n.calls(), "")
}

func TestInUnit(t *testing.T) {
	for text, want := range map[string]bool{
		"0::/system.slice/skdinotify.service\n":                                true,
		"9:name=systemd:/system.slice/skdinotify.service\n4:memory:/x\n":       true,
		"4:memory:/system.slice/skdinotify.service\n0::/init.scope\n":          false,
		"0::/system.slice/skudonet-ce-cluster-apply-7.scope\n":                 false,
		"0::/user.slice/user-0.slice/session-1.scope\n":                        false,
		"0::/system.slice/myskdinotify.service\n":                              false,
		"0::/system.slice/skdinotify.service/child\n9:name=systemd:/\n1:cpu:/": false,
		"": false,
	} {
		if got := inUnit(text, replicatorUnit); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}

// In the replicator's service, which systemd ends as a whole, it does not stay.
func TestApplyLeavesTheReplicatorsService(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	var tree string
	for _, root := range []string{"/sys/fs/cgroup/systemd", "/sys/fs/cgroup"} {
		if _, err := os.Stat(filepath.Join(root, "cgroup.procs")); err == nil {
			tree = root
			break
		}
	}
	service := filepath.Join(tree, "skd-hooks-test-"+n.pid, replicatorUnit)
	if err := os.MkdirAll(service, 0o755); tree == "" || err != nil {
		t.Skipf("needs a place for a control group: %v", err)
	}
	t.Cleanup(func() {
		n.sh("xargs -n1 kill < " + service + "/cgroup.procs || true")
		n.wait("! grep -q . " + service + "/cgroup.procs")
		os.Remove(service)
		os.Remove(filepath.Dir(service))
	})
	n.sh("mkdir -p /run/systemd/system; echo LOAD=not-found > /run/behave")
	n.master()
	apply := func(busctl string) string {
		t.Helper()
		n.sh("cat > /usr/local/bin/busctl <<'E'\n#!/bin/sh\n" + busctl + "\nE\nchmod 755 /usr/local/bin/busctl; : > /run/calls")
		cmd := n.command("/bin/sh", "-c", "echo 0 > "+service+"/cgroup.procs; exec "+program+" -c /mnt/skudonet-cluster.conf --status-file /mnt/status apply")
		return n.finish(0, cmd)
	}
	// Numbers are those of the node's own processes there as here.
	out := apply(`echo "$*" > /run/busctl; for p; do [ "$last" != 1 ] || break; last=$p; done; echo "$p" > ` + tree + `/cgroup.procs`)
	if strings.Contains(out, "still in") {
		t.Errorf("it says\n%s", out)
	}
	n.contains(n.sh("cat /run/busctl"), "StartTransientUnit ssa(sv)a(sa(sv)) skudonet-ce-cluster-apply-")
	n.equal("left in the service", n.sh("wc -l < "+service+"/cgroup.procs"), "0")
	n.contains(n.calls(), "start, started")

	out = apply(`echo "Failed to connect to bus" >&2; exit 1`)
	n.contains(out, "still in skdinotify.service, which may end before this does: busctl: exit status 1: Failed to connect to bus", "skudonet: started by")
	n.owes(false)
}

// Who started it has ended, and nobody reads what it says.
func TestApplyUnread(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.master()
	cmd := n.command(program, "-c", "/mnt/skudonet-cluster.conf", "--status-file", "/mnt/status", "apply")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	cmd.Stdout, cmd.Stderr = w, w
	err = cmd.Run()
	w.Close()
	if err != nil {
		t.Error(err)
	}
	n.equal("calls", n.calls(), "stop, start, started")
	n.owes(false)
}
