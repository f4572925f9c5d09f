package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/guard"
	"github.com/skudonet/skudonet-ce-cluster/test/lab"
)

// broken is a configuration that no daemon starts with. The hooks, the tree and $cluster_ip can be known all the same.
const broken = `$interface="eth0";
$local_ip="192.168.77.11";
$remote_ip="192.168.77.12;
$cluster_id="300";
$cluster_ip="192.168.77.100";
$hook_timeout="10";
this is no line
`

// says runs a command that must exit so, with all of these words, and gives what it said.
func (p *pair) says(n *lab.Node, code int, words []string, command ...string) string {
	p.t.Helper()
	out, got := p.exitCode(n, command[0], command[1:]...)
	if got != code {
		p.t.Errorf("%q on %s exits %d, want %d:\n%s", command, n.Name, got, code, out)
	}
	for _, w := range words {
		if !strings.Contains(out, w) {
			p.t.Errorf("%q on %s does not say %q:\n%s", command, n.Name, w, out)
		}
	}
	return out
}

// once starts the daemon as nobody starts it again.
func (p *pair) once(n *lab.Node) *lab.Daemon {
	p.t.Helper()
	return p.startAs(n, lab.DaemonSpec{Args: []string{"skd-vrrpd"}})
}

// kill ends a daemon that nobody starts again.
func (p *pair) kill(d *lab.Daemon) {
	p.t.Helper()
	p.check(d.Signal(unix.SIGKILL))
	<-d.Done()
}

// hasStatus tells whether there is a status file, as the watch sees it.
func (p *pair) hasStatus(n *lab.Node) bool {
	_, now := p.watch.Last(n, func(c lab.Claim) bool { return c.Status != "" })
	return now
}

// gone fails the test if one of these files is there.
func (p *pair) gone(n *lab.Node, files ...string) {
	p.t.Helper()
	for _, file := range files {
		if _, err := os.Lstat(n.Root(file)); !os.IsNotExist(err) {
			p.t.Errorf("%s is there on %s: %v", file, n.Name, err)
		}
	}
}

// hasGuard tells whether the guard's table is there.
func (p *pair) hasGuard(n *lab.Node) bool {
	p.t.Helper()
	return strings.Contains(p.ruleset(n), guard.Table)
}

// silentAbout fails the test if the node has said one of the addresses since then. That it was asked for its own shows
// that it would have been heard.
func (p *pair) silentAbout(c *lab.Capture, n *lab.Node, since time.Time, addrs ...netip.Addr) {
	p.t.Helper()
	asked := time.Now()
	p.run(p.Client, "arping", "-c1", "-w10", "-f", "-I", "eth0", n.Addr(0).String())
	p.eventually(n.Name+" speaking for itself", func() (bool, string) {
		own := c.Select(func(f lab.Packet) bool {
			a, ok := f.ARP()
			return ok && f.Node == n.Name && a.Sender == n.Addr(0) && f.Time.After(asked)
		})
		return len(own) > 0, ""
	})
	for _, f := range c.Packets() {
		if a, ok := f.ARP(); ok && f.Node == n.Name && f.Time.After(since) && slices.Contains(addrs, a.Sender) {
			p.t.Errorf("%s said %+v", n.Name, a)
		}
	}
}

// provoke has whoever is on the node and its network do what would make it speak for the address.
func (p *pair) provoke(n *lab.Node, addr netip.Addr) {
	n.Run("arping", "-U", "-c1", "-w1", "-I", "eth0", addr.String()) // nobody answers, which is a failure to it
	p.Client.Run("arping", "-c1", "-w1", "-I", "eth0", addr.String())
}

func TestPID(t *testing.T) {
	p := newPair(t)
	const pidFile = runDir + "/vrrpd.pid"
	n := p.LB1
	p.unharmed(n, 3, []string{"skd-vrrpd does not run"}, "skd-vrrpd", "pid")
	d := p.once(n)
	p.waitStatus(n, "master")
	pid := fmt.Sprint(p.fresh(n).PID)
	if out := p.says(n, 0, nil, "skd-vrrpd", "pid"); out != pid+"\n" {
		t.Errorf("it prints %q, want %s", out, pid)
	}
	for again := range 3 { // which leaves the lock for a moment
		p.signal(n, unix.SIGHUP)
		for p.timesLogged(n, "started on eth0") < again+2 && !t.Failed() {
			if out := p.says(n, 0, nil, "skd-vrrpd", "pid"); out != pid+"\n" {
				t.Errorf("executing itself anew it is %q, want %s", out, pid)
			}
		}
	}
	p.kill(d)
	p.says(n, 1, []string{"skd-vrrpd is dead", pidFile}, "skd-vrrpd", "pid")

	// Somebody else has got the number since.
	p.run(n, "sh", "-c", "setsid sleep 1000 > /dev/null 2>&1 & echo $! > "+pidFile)
	foreign := p.run(n, "cat", pidFile)
	p.unharmed(n, 1, []string{"skd-vrrpd is dead"}, "skd-vrrpd", "pid")
	p.run(n, "sed", "-i", `s/"pid": .*/"pid": `+foreign+`,/`, runDir+"/vrrpd.json")
	if p.report(n).PID == 0 {
		t.Fatal("vrrpd.json cannot be read")
	}
	p.unharmed(n, 1, []string{"skd-vrrpd is dead"}, "skd-vrrpd", "pid")
	p.unharmed(n, 1, []string{"skd-vrrpd does not run here"}, "skd-vrrpd", "handover")
	p.run(n, "kill", "-0", foreign)

	p.run(n, "rm", lab.StatusPath, runDir+"/vrrpd.state")
	p.eventually("no status", func() (bool, string) { return !p.hasStatus(n), "" })
	p.once(n)
	p.waitStatus(n, "master")
	p.stop(n)
	p.unharmed(n, 3, []string{"skd-vrrpd does not run"}, "skd-vrrpd", "pid")
}

func TestHandOverCommand(t *testing.T) {
	p := startPair(t)
	p.says(p.LB2, 0, []string{"not master: this node is backup (the service started)"}, "skd-vrrpd", "handover")
	if p.roles() != `"master"/"backup"` {
		t.Errorf("asking the backup has changed the roles to %s", p.roles())
	}
	p.says(p.LB1, 0, []string{"this node is backup now: handed over to " + p.LB2.Addr(0).String()}, "skd-vrrpd", "handover")
	if p.report(p.LB1).State != "backup" {
		t.Errorf("it said so too early: %s", p.report(p.LB1).State)
	}
	p.waitMaster(p.LB2)
	p.says(p.LB2, 0, []string{"this node is backup now: handed over to " + p.LB1.Addr(0).String()}, "skd-vrrpd", "handover")
	p.waitMaster(p.LB1)

	p.stop(p.LB2)
	p.says(p.LB2, 1, []string{"skd-vrrpd does not run here"}, "skd-vrrpd", "handover")
	since := time.Now()
	p.says(p.LB1, 1, []string{"no successor within 3s, staying master; is the peer running?"}, "skd-vrrpd", "handover")
	if took := time.Since(since); took < 3*time.Second {
		t.Errorf("it answers after %v, before it can know", took)
	}
	p.unchanged(since)
}

func TestGuardCommand(t *testing.T) {
	p := newPairWithHooks(t)
	n := p.LB1
	sent := p.capture(lab.ARP)
	p.check(n.WriteInterface("eth0:web", webIP, true))
	p.check(n.WriteFile(lab.ConfigPath, broken, 0o600))
	since := time.Now()

	// As at boot: the guard, then Skudonet, then a daemon that does not start, for good.
	p.says(n, 0, []string{`skudonet-cluster.conf:4: $cluster_id: "300": want 1 to 255`, "silent about 2 virtual addresses"}, "skd-vrrpd", "guard")
	p.says(n, 3, nil, "skd-vrrpd", "pid")
	p.run(n, "/etc/init.d/skudonet", "start")
	p.waitVirtuals(n, "eth0:1 192.168.77.100", "eth0:web 192.168.77.101")
	p.provoke(n, webIP)
	p.provoke(n, lab.ClusterIP)
	p.silentAbout(sent, n, since, webIP, lab.ClusterIP)
	p.says(n, 2, nil, "skd-vrrpd")
	p.says(n, 0, []string{"stop hook: skudonet: stopped", "cleaned up"}, "skd-vrrpd", "clean", "--failed")
	p.waitVirtuals(n)
	p.waitGuard(n, webIP.String(), lab.ClusterIP.String())
	if p.skudonetRuns(n) {
		t.Error("Skudonet runs on a node whose service has failed")
	}

	t.Log("without a configuration, and with nothing but $cluster_ip")
	p.run(n, "nft", "flush", "ruleset")
	p.run(n, "rm", lab.ConfigPath)
	p.says(n, 0, []string{"no such file", "silent about 2 virtual addresses"}, "skd-vrrpd", "guard")
	p.waitGuard(n, webIP.String(), lab.ClusterIP.String())
	p.run(n, "nft", "flush", "ruleset")
	p.check(n.Configure(nil))
	p.run(n, "mv", lab.TreePath, "/usr/local/aside")
	p.says(n, 0, []string{"cannot list the configuration tree", "silent about 1 virtual addresses"}, "skd-vrrpd", "guard")
	p.waitGuard(n, lab.ClusterIP.String())
	p.run(n, "mv", "/usr/local/aside", lab.TreePath)

	t.Log("not on a master")
	p.start(n)
	p.waitStatus(n, "master")
	p.waitSkudonet(n, true) // so that the stop hook of the start takes no address away any more
	p.waitVirtuals(n, "eth0:1 192.168.77.100", "eth0:web 192.168.77.101")
	p.says(n, 0, []string{"nothing done: process"}, "skd-vrrpd", "guard")
	if have := p.virtuals(n); len(have) != 2 || p.hasGuard(n) {
		t.Errorf("the master is guarded: %v, has %v", p.hasGuard(n), have)
	}
}

func TestCleanAfterAKilledMaster(t *testing.T) {
	p := newPairWithHooks(t)
	n := p.LB1
	sent := p.capture(lab.ARP)
	p.check(n.WriteInterface("eth0:web", webIP, true))
	p.check(n.WriteInterface("eth0:old", dbIP, true))
	d := p.once(n)
	p.waitStatus(n, "master")
	p.waitSkudonet(n, true)
	since := time.Now()
	p.says(n, 1, []string{"skd-vrrpd runs here, as process", "nothing was done"}, "skd-vrrpd", "clean")
	p.says(n, 1, []string{"skd-vrrpd runs here, as process"}, "skd-vrrpd", "clean", "--disabled")
	p.unchanged(since)

	p.kill(d)
	p.check(n.WriteFile(lab.ConfigPath, broken, 0o600))
	p.run(n, "rm", lab.TreePath+"/if_eth0:old_conf") // only the dead daemon knew of it
	p.says(n, 0, []string{"skudonet-cluster.conf:4: ", "stop hook: skudonet: stopped", "cleaned up"}, "skd-vrrpd", "clean", "--failed")
	since = time.Now()
	p.gone(n, lab.StatusPath, runDir+"/vrrpd.pid", runDir+"/vrrpd.state")
	p.waitVirtuals(n)
	if p.skudonetRuns(n) {
		t.Error("Skudonet still runs")
	}
	p.waitGuard(n, lab.ClusterIP.String(), webIP.String(), dbIP.String())
	p.says(n, 3, []string{"stopped; last known: init", "eth0:web, down", "guard       up", "stop: done after"}, "skd-hooks", "status")
	p.run(n, "/etc/init.d/skudonet", "start")
	p.waitVirtuals(n, "eth0:1 192.168.77.100", "eth0:web 192.168.77.101")
	p.provoke(n, webIP)
	p.provoke(n, lab.ClusterIP)
	p.silentAbout(sent, n, since, webIP, lab.ClusterIP)

	// It is as after a stop.
	p.check(n.Configure(nil))
	p.once(n)
	p.waitStatus(n, "master")
	p.waitVirtuals(n, "eth0:1 192.168.77.100", "eth0:web 192.168.77.101")
	p.logged(n, "backup on eth0 vrid 1: the service started")
	if p.timesLogged(n, "the daemon restarted in time and goes on") > 0 || p.hasGuard(n) {
		t.Errorf("what was cleaned up goes on; guard %v", p.hasGuard(n))
	}
}

func TestCleanWhereNothingIsLeft(t *testing.T) {
	p := newPairWithHooks(t)
	n := p.LB1
	p.run(n, "/etc/init.d/skudonet", "start") // without a cluster, as on any node before it is enabled
	nothing := []string{"nothing is left of a daemon"}
	for _, how := range [][]string{nil, {"--failed"}, {"--disabled"}} {
		p.unharmed(n, 0, nothing, append([]string{"skd-vrrpd", "clean"}, how...)...)
	}
	p.check(n.WriteFile(lab.ConfigPath, broken, 0o600))
	p.unharmed(n, 0, nothing, "skd-vrrpd", "clean")
	for _, wrong := range [][]string{{"clean", "--failed", "--disabled"}, {"clean", "--nothing"}, {"clean", "nothing"},
		{"pid", "nothing"}, {"handover", "--nothing"}, {"guard", "nothing"}} {
		out := p.unharmed(n, 2, []string{"skd-vrrpd: "}, append([]string{"skd-vrrpd"}, wrong...)...)
		if strings.Count(out, "\n") != 1 {
			t.Errorf("%q says\n%s\nwant one line", wrong, out)
		}
	}
	if !p.skudonetRuns(n) {
		t.Error("Skudonet was stopped")
	}
	p.check(n.Configure(nil))
	p.once(n)
	p.waitStatus(n, "master")
	p.stop(n)
	p.unharmed(n, 0, nothing, "skd-vrrpd", "clean")

	// A restart that ended the daemon well, with a configuration that the next one did not start with.
	p.says(n, 0, []string{"the guard keeps this node silent until the service runs again"}, "skd-vrrpd", "clean", "--failed")
	p.waitGuard(n, lab.ClusterIP.String())
	p.says(n, 0, []string{"cleaned up"}, "skd-vrrpd", "clean")
	if p.hasGuard(n) {
		t.Error("the guard stays after a stop")
	}
	// Unless it serves somebody.
	p.run(n, "/etc/init.d/skudonet", "start")
	p.unharmed(n, 0, nothing, "skd-vrrpd", "clean", "--failed")
}

func TestCleanRunsTheStopHook(t *testing.T) {
	p := newPair(t)
	n := p.LB1
	const env = "#!/bin/sh\nenv | sort > /var/log/env-%s\nip -4 addr > /var/log/addr-%s\necho stop >> " + hookLog + "\n"
	by := func(who string) string { return fmt.Sprintf(env, who, who) }
	read := func(file string) string {
		p.t.Helper()
		text, err := n.ReadFile(path.Join("/var/log", file))
		p.check(err)
		return text
	}
	dies := func() {
		p.t.Helper()
		d := p.once(n)
		p.waitStatus(n, "master")
		p.fresh(n)
		p.waitHookDone(n, "start") // and the stop hook before it
		p.kill(d)
	}
	p.step("with the environment that the daemon gives it", func(t *testing.T) {
		p.hook(n, "stop", by("daemon"))
		dies()
		p.hook(n, "stop", by("clean"))
		p.says(n, 0, []string{"cleaned up"}, "skd-vrrpd", "clean")
		if clean, daemon := read("env-clean"), read("env-daemon"); clean != daemon {
			t.Errorf("by clean:\n%s\nby the daemon:\n%s", clean, daemon)
		}
		if addrs := read("addr-clean"); strings.Contains(addrs, lab.ClusterIP.String()) {
			t.Errorf("the hook found the address up:\n%s", addrs)
		}
		if p.hasGuard(n) {
			t.Error("the guard stays although every address is down")
		}
	})
	p.step("also without a configuration", func(t *testing.T) {
		dies()
		p.run(n, "rm", lab.ConfigPath, "/var/log/env-clean")
		p.says(n, 0, []string{"cleaned up"}, "skd-vrrpd", "clean")
		if clean, daemon := read("env-clean"), read("env-daemon"); clean != daemon {
			t.Errorf("by clean:\n%s\nby the daemon:\n%s", clean, daemon)
		}
		p.check(n.Configure(nil))
		p.configure(n, nil)
	})
	p.step("and keeps the guard if that fails", func(t *testing.T) {
		dies()
		p.hook(n, "stop", "#!/bin/sh\necho cannot\nexit 5\n")
		p.says(n, 1, []string{"stop hook: cannot", "the stop hook failed: " + hookDir + "stop: exit status 5"}, "skd-vrrpd", "clean")
		p.waitVirtuals(n)
		p.gone(n, lab.StatusPath)
		p.waitGuard(n, lab.ClusterIP.String())
	})
	p.step("or if it has left an address up", func(t *testing.T) {
		p.hook(n, "stop", "#!/bin/sh\nip addr replace "+lab.ClusterIP.String()+"/24 dev eth0\n")
		p.says(n, 0, []string{"some virtual addresses are still up: 192.168.77.100/", "cleaned up"}, "skd-vrrpd", "clean")
		p.waitGuard(n, lab.ClusterIP.String())
	})
	p.step("but not on a node that is none of the cluster any more", func(t *testing.T) {
		p.says(n, 0, []string{"cleaned up"}, "skd-vrrpd", "clean", "--disabled")
		if p.hasGuard(n) {
			t.Error("the guard stays")
		}
		p.run(n, "ip", "addr", "del", lab.ClusterIP.String()+"/24", "dev", "eth0")
		p.unharmed(n, 0, []string{"nothing is left"}, "skd-vrrpd", "clean", "--disabled")
	})
	p.step("and lets no daemon start meanwhile", func(t *testing.T) {
		p.hook(n, "stop", fmt.Sprintf(callHook, "stop"))
		dies()
		p.hook(n, "stop", "#!/bin/sh\necho begun\nwhile [ ! -e /tmp/go ]; do sleep 0.02; done\n")
		cleaning, err := n.Start(lab.DaemonSpec{Name: "clean", Args: []string{"skd-vrrpd", "clean", "--failed"}})
		p.check(err)
		p.eventually("the stop hook", func() (bool, string) { return strings.Contains(cleaning.Log(), "begun"), cleaning.Log() })
		p.gone(n, lab.StatusPath) // before the hook
		p.says(n, 1, []string{"another skd-vrrpd runs here already, as process", "clean"}, "skd-vrrpd")
		p.says(n, 1, []string{"skd-vrrpd clean is at work"}, "skd-vrrpd", "pid")
		p.says(n, 1, []string{"skd-vrrpd clean is at work here"}, "skd-vrrpd", "clean")
		p.says(n, 0, []string{"nothing done"}, "skd-vrrpd", "guard")
		p.check(n.WriteFile("/tmp/go", "", 0o644))
		<-cleaning.Done()
		if exits := cleaning.Exits(); len(exits) != 1 || !exits[0].State.Success() {
			t.Errorf("it ended as %v:\n%s", exits, cleaning.Log())
		}
		p.says(n, 3, nil, "skd-vrrpd", "pid")
		if !p.hasGuard(n) {
			t.Error("no guard on a node whose service has failed")
		}
	})
	p.step("until somebody ends it", func(t *testing.T) {
		p.run(n, "rm", "/tmp/go")
		cleaning, err := n.Start(lab.DaemonSpec{Name: "ended", Args: []string{"skd-vrrpd", "clean", "--failed"}})
		p.check(err)
		p.eventually("the stop hook", func() (bool, string) { return strings.Contains(cleaning.Log(), "begun"), cleaning.Log() })
		p.check(cleaning.Signal(unix.SIGTERM))
		<-cleaning.Done()
		if exits := cleaning.Exits(); exits[0].State.ExitCode() != 1 || !strings.Contains(cleaning.Log(), "the stop hook failed: ") {
			t.Errorf("it ended as %v:\n%s", exits, cleaning.Log())
		}
		if out := p.run(n, "ps", "-ef"); strings.Contains(out, "sleep 0.02") {
			t.Errorf("the hook goes on:\n%s", out)
		}
	})
}
