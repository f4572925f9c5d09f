package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/status"
	"github.com/skudonet/skudonet-ce-cluster/test/lab"
)

// waitHooks waits until exactly these calls have happened on the node.
func (p *pair) waitHooks(n *lab.Node, want ...string) {
	p.t.Helper()
	p.eventually(fmt.Sprintf("calls %v on %s", want, n.Name), func() (bool, string) {
		have := p.hooks(n)
		return slices.Equal(have, want), fmt.Sprint(have)
	})
}

// waitHookDone waits until the node's vrrpd.json says that the last call of a hook has ended well. (waitHooks sees that it
// was called.)
func (p *pair) waitHookDone(n *lab.Node, event string) {
	p.t.Helper()
	p.waitReport(n, "the end of the "+event+" hook", func(r status.Daemon) bool {
		return slices.ContainsFunc(r.Hooks, func(h status.Hook) bool { return h.Name == event && h.State == status.HookDone })
	})
}

// exitCode runs a command on the node and gives its output with its exit status.
func (p *pair) exitCode(n *lab.Node, name string, args ...string) (string, int) {
	p.t.Helper()
	out, err := n.Run(name, args...)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return out, exit.ExitCode()
	}
	p.check(err)
	return out, 0
}

// statusSays fails the test unless skd-hooks status exits so, with all of these words.
func (p *pair) statusSays(n *lab.Node, code int, words ...string) {
	p.t.Helper()
	out, got := p.exitCode(n, "skd-hooks", "status")
	if got != code {
		p.t.Errorf("status of %s exits %d, want %d\n%s", n.Name, got, code, out)
	}
	for _, w := range words {
		if !strings.Contains(out, w) {
			p.t.Errorf("status of %s does not say %q\n%s", n.Name, w, out)
		}
	}
}

func TestHookEnvironment(t *testing.T) {
	p := newPair(t)
	for _, n := range p.Nodes() {
		for _, event := range []string{"start", "stop", "advertisement"} {
			// By renames, because the advertisement hook is called again and again.
			p.hook(n, event, fmt.Sprintf(`#!/bin/sh
cd /var/log
tr '\0' '\n' < /proc/$$/environ > new-env-%[1]s
ip -o -4 addr > new-addr-%[1]s
cat /etc/skudonet-ce-cluster.status > new-status-%[1]s
for file in env addr status; do mv new-$file-%[1]s $file-%[1]s; done
echo %[1]s >> %[2]s
`, event, hookLog))
		}
	}
	p.startBoth()
	p.waitHooks(p.LB1, "stop", "start")
	p.waitHooks(p.LB2, "stop")

	read := func(n *lab.Node, file string) string {
		t.Helper()
		text, err := n.ReadFile("/var/log/" + file)
		p.check(err)
		return strings.TrimSpace(text)
	}
	environment := func(state string) []string {
		return []string{"HOME=/root", "LANG=C.UTF-8", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
			"SKD_CLUSTER_IP=192.168.77.100", "SKD_CONFIG=" + lab.ConfigPath, "SKD_CONFIG_DIR=" + lab.TreePath, "SKD_INTERFACE=eth0",
			"SKD_RUN_DIR=" + status.RunDir, "SKD_STATE=" + state, "SKD_STATE_DIR=" + status.StateDir, "SKD_STATUS_FILE=" + lab.StatusPath}
	}
	p.eventually("the advertisement hook", func() (bool, string) {
		_, err := p.LB1.ReadFile("/var/log/status-advertisement")
		return err == nil, fmt.Sprint(err)
	})
	for event, word := range map[string]string{"stop": "backup", "start": "master", "advertisement": "master"} {
		have := strings.Split(read(p.LB1, "env-"+event), "\n")
		slices.Sort(have)
		if want := environment(word); !slices.Equal(have, want) {
			t.Errorf("%s hook has\n%s\nwant\n%s", event, strings.Join(have, "\n"), strings.Join(want, "\n"))
		}
		if got := read(p.LB1, "status-"+event); got != word {
			t.Errorf("%s hook found status %q, want %q", event, got, word)
		}
		if got := strings.Contains(read(p.LB1, "addr-"+event), lab.ClusterIP.String()); got != (word == "master") {
			t.Errorf("%s hook found the address up: %v", event, got)
		}
	}
	if _, err := p.LB2.ReadFile("/var/log/env-advertisement"); err == nil {
		t.Error("the advertisement hook ran on a backup")
	}

	p.signal(p.LB1, unix.SIGUSR2)
	p.waitMaster(p.LB2)
	p.waitHooks(p.LB2, "stop", "start")
	p.waitHooks(p.LB1, "stop", "start", "stop")
	if strings.Contains(read(p.LB1, "addr-stop"), lab.ClusterIP.String()) {
		t.Error("the stop hook after a demotion found the address up")
	}
	p.stop(p.LB2)
	p.waitStatus(p.LB1, "master")
	p.waitHooks(p.LB2, "stop", "start", "stop")
	p.waitHooks(p.LB1, "stop", "start", "stop", "start")
}

func TestBadHooks(t *testing.T) {
	const interval, dir = 200 * time.Millisecond, "/usr/local/skudonet/hooks"
	p := newPair(t)
	p.run(p.LB1, "mkdir", "-p", dir+"/is-a-directory")
	sent := p.capture(lab.VRRP)
	const failed, hangs = "the %s hook failed: %s: ", "#!/bin/sh\ntrap '' TERM\nsleep 1000 & wait\nsleep 1000\n"
	for _, c := range []struct {
		name, key, script, words string
		mode                     uint32
		check                    func()
	}{
		{name: "fails", key: "up_script", script: "#!/bin/sh\nexit 3\n", words: "exit status 3"},
		{name: "fails-each-time", key: "adver_script", script: "#!/bin/sh\nexit 4\n", words: "exit status 4"},
		{name: "hangs", key: "up_script", script: hangs, words: "took longer than $hook_timeout and was ended", check: func() {
			if out := p.run(p.LB1, "ps", "-ef"); strings.Contains(out, "sleep 1000") {
				p.t.Errorf("the hook goes on:\n%s", out)
			}
		}},
		{name: "hangs-on-the-way-down", key: "down_script", script: hangs, words: "took longer than $hook_timeout and was ended", check: func() {
			p.eventually("the start hook behind the stop hook", func() (bool, string) {
				have := p.hooks(p.LB1)
				return len(have) > 0 && have[len(have)-1] == "start", fmt.Sprint(have)
			})
		}},
		{name: "fails-on-the-way-down", key: "down_script", script: "#!/bin/sh\nexit 5\n", words: "exit status 5"},
		{name: "missing", key: "up_script", words: "no such file: restore it, or correct the path in skudonet-cluster.conf"},
		{name: "is-a-directory", key: "up_script", words: "is a directory: correct the path"},
		{name: "not-executable", key: "up_script", script: "#!/bin/sh\n", mode: 0o644, words: "not executable: chmod 755 " + dir + "/not-executable"},
		{name: "no-interpreter", key: "up_script", script: "#!/bin/none\n", words: "its first line names an interpreter that does not exist"},
		{name: "leaves-a-daemon", key: "up_script", script: "#!/bin/sh\nsleep 2000 &\necho left\n", check: func() {
			if out := p.run(p.LB1, "ps", "-ef"); !strings.Contains(out, "sleep 2000") {
				p.t.Errorf("the daemon that the hook has left is gone:\n%s", out)
			}
		}},
		{name: "prints-megabytes", key: "up_script", script: "#!/bin/sh\nhead -c 2000000 /dev/zero | tr '\\0' x\nyes | head -n 200000\n", check: func() {
			p.logged(p.LB1, "lines not shown: too many at once")
			if size := len(p.daemon(p.LB1).Log()); size > 1<<20 {
				p.t.Errorf("%d bytes in the log", size)
			}
		}},
	} {
		p.step(c.name, func(t *testing.T) {
			script := path.Join(dir, c.name)
			if c.script != "" {
				if c.mode == 0 {
					c.mode = 0o755
				}
				p.check(p.LB1.WriteFile(script, c.script, 0o644))
				p.run(p.LB1, "chmod", fmt.Sprintf("%o", c.mode), script)
			}
			p.conf[p.LB1] = nil
			p.configure(p.LB1, keys{c.key: script})
			if c.script == hangs {
				p.configure(p.LB1, keys{"hook_timeout": "1"})
			}
			since := time.Now()
			d := p.startAs(p.LB1, lab.DaemonSpec{Args: []string{"skd-vrrpd"}})
			p.waitStatus(p.LB1, "master")
			event := map[string]string{"up_script": "start", "down_script": "stop", "adver_script": "advertisement"}[c.key]
			if c.words != "" {
				words := fmt.Sprintf(failed, event, script) + c.words
				p.logged(p.LB1, words)
				if c.key == "adver_script" {
					p.awaitAdverts(sent, p.LB1, 8) // it has run at 1 s, too
				}
				p.saidOnce(p.LB1, words)
				p.waitReport(p.LB1, words, func(r status.Daemon) bool { return len(r.Faults) == 1 })
				p.statusSays(p.LB1, 1, "master since", "degraded", words)
			} else {
				p.eventually("the end of the hook", func() (bool, string) {
					r := p.report(p.LB1)
					i := slices.IndexFunc(r.Hooks, func(h status.Hook) bool { return h.Name == event })
					return i >= 0 && r.Hooks[i].State == status.HookDone, fmt.Sprintf("%+v", r.Hooks)
				})
				p.statusSays(p.LB1, 0, "master since", "healthy")
			}
			if c.check != nil {
				c.check()
			}
			p.awaitAdverts(sent, p.LB1, 3)
			if longest, busy := apart(claims(sent, p.LB1, since)), slack+p.watch.Stall(); longest > interval+busy {
				t.Errorf("two adverts were %v apart, want %v and at most %v for a busy host", longest, interval, busy)
			}
			// Faster than a stop: the next one begins as backup all the same.
			p.check(d.Signal(unix.SIGKILL))
			<-d.Done()
			p.run(p.LB1, "rm", "-r", runDir+"/vrrpd.state", lab.StatusPath)
			p.waitStatus(p.LB1, "")
		})
	}
}

func TestDemotionEndsStartHook(t *testing.T) {
	p := newPair(t)
	// The script itself ends when it is told to, but not what it is waiting for.
	p.hook(p.LB1, "start", "#!/bin/sh\ntrap 'echo told >> "+hookLog+"; exit 1' TERM\necho start >> "+hookLog+"\n(trap '' TERM; exec sleep 1000) &\nwait\n")
	p.startBoth()
	p.waitHooks(p.LB1, "stop", "start")
	p.signal(p.LB1, unix.SIGUSR2)
	p.waitMaster(p.LB2)
	p.waitHooks(p.LB1, "stop", "start", "told", "stop")
	if out := p.run(p.LB1, "ps", "-ef"); strings.Contains(out, "sleep 1000") {
		t.Errorf("the stop hook ran beside what the start hook had begun:\n%s", out)
	}
	p.logged(p.LB1, hookDir+"start: ended, because the node was demoted meanwhile")
	p.statusSays(p.LB1, 0, "backup since", "healthy")

	// Only the last wish counts: what is neither running nor wanted any more is left out.
	p.hook(p.LB1, "stop", "#!/bin/sh\necho stop >> "+hookLog+"\nwhile [ ! -e /tmp/go ]; do sleep 0.02; done\n")
	p.hook(p.LB1, "start", fmt.Sprintf(callHook, "start"))
	p.signal(p.LB2, unix.SIGUSR2)
	p.waitMaster(p.LB1)
	p.waitHooks(p.LB1, "stop", "start", "told", "stop", "start")
	for range 2 {
		p.signal(p.LB1, unix.SIGUSR2)
		p.waitMaster(p.LB2)
		p.signal(p.LB2, unix.SIGUSR2)
		p.waitMaster(p.LB1)
	}
	p.check(p.LB1.WriteFile("/tmp/go", "", 0o644))
	p.waitHooks(p.LB1, "stop", "start", "told", "stop", "start", "stop", "start")
}

func TestSlowStopHook(t *testing.T) {
	p := startPair(t, keys{"hook_timeout": "3", "advert_interval": "0.5"}) // two of them are the time for a new process
	ended := func(n *lab.Node) {
		p.t.Helper()
		exits := p.daemon(n).Exits()
		if len(exits) != 1 || exits[0].State.ExitCode() != 0 {
			p.t.Errorf("%s ended as %v", n.Name, exits)
		}
		if n.Status() != "" {
			p.t.Errorf("status %q after a stop", n.Status())
		}
	}
	p.step("a slow one is waited for", func(t *testing.T) {
		p.hook(p.LB1, "stop", "#!/bin/sh\nwhile [ ! -e /tmp/go ]; do sleep 0.02; done\necho slow >> "+hookLog+"\n")
		stopped := make(chan error)
		go func() { stopped <- p.daemon(p.LB1).Stop() }()
		p.waitStatus(p.LB2, "master") // which does not wait for the hook
		p.check(p.LB1.WriteFile("/tmp/go", "", 0o644))
		p.check(<-stopped)
		p.waitHooks(p.LB1, "stop", "start", "slow")
		ended(p.LB1)
	})
	p.step("until $hook_timeout", func(t *testing.T) {
		p.configure(p.LB2, keys{"hook_timeout": "1"})
		p.signal(p.LB2, unix.SIGHUP)
		p.eventually("the daemon after SIGHUP", func() (bool, string) { return p.timesLogged(p.LB2, "started on eth0") == 2, "" })
		p.hook(p.LB2, "stop", "#!/bin/sh\ntrap '' TERM\necho stop >> "+hookLog+"\nsleep 1000 & wait\nsleep 1000\n")
		p.stop(p.LB2)
		p.waitHooks(p.LB2, "stop", "start", "stop")
		if out := p.run(p.LB2, "ps", "-ef"); strings.Contains(out, "sleep 1000") {
			t.Errorf("the hook goes on:\n%s", out)
		}
		p.saidOnce(p.LB2, "the stop hook failed: "+hookDir+"stop: took longer than $hook_timeout and was ended")
		ended(p.LB2)
	})
}

func TestHooksAfterCrash(t *testing.T) {
	p := startPair(t, keys{"advert_interval": "0.5"}) // two of them are the time for a new process
	sent := p.capture(lab.VRRP)
	crash := func() {
		t.Helper()
		before := p.timesLogged(p.LB1, "the daemon restarted in time and goes on")
		p.signal(p.LB1, unix.SIGKILL)
		p.eventually("a daemon that goes on", func() (bool, string) {
			return p.timesLogged(p.LB1, "the daemon restarted in time and goes on") == before+1, lastLine(p.daemon(p.LB1).Log())
		})
		p.awaitAdverts(sent, p.LB1, 3)
	}
	p.waitHookDone(p.LB1, "start")
	p.awaitAdverts(sent, p.LB1, 2) // which is noted with an advert
	crash()
	if have := p.hooks(p.LB1); !slices.Equal(have, []string{"stop", "start"}) {
		t.Errorf("calls %v: a start hook that had completed has nothing to do", have)
	}

	p.hook(p.LB1, "start", "#!/bin/sh\necho again >> "+hookLog+"\nwhile [ ! -e /tmp/go ]; do sleep 0.02; done\n")
	p.signal(p.LB1, unix.SIGUSR2)
	p.waitMaster(p.LB2)
	p.signal(p.LB2, unix.SIGUSR2)
	p.waitMaster(p.LB1)
	p.waitHooks(p.LB1, "stop", "start", "stop", "again")
	p.awaitAdverts(sent, p.LB1, 2)
	crash()
	p.waitHooks(p.LB1, "stop", "start", "stop", "again", "again")
	p.check(p.LB1.WriteFile("/tmp/go", "", 0o644))
	p.waitReport(p.LB1, "the start hook's end", func(r status.Daemon) bool { return len(r.Hooks) > 0 && r.Hooks[0].State == status.HookDone })
	p.awaitAdverts(sent, p.LB1, 2)
	crash()
	p.waitHooks(p.LB1, "stop", "start", "stop", "again", "again")
	if have := p.LB2.Status(); have != "backup" {
		t.Errorf("the peer of a daemon that crashed is %s", have)
	}
}

// skudonetRuns tells whether the stand-in's daemon lives on the node.
func (p *pair) skudonetRuns(n *lab.Node) bool {
	_, err := n.Run("sh", "-c", "kill -0 $(cat /run/nftlb.pid)")
	return err == nil
}

func (p *pair) waitSkudonet(n *lab.Node, runs bool) {
	p.t.Helper()
	p.eventually(fmt.Sprintf("Skudonet on %s running: %v", n.Name, runs), func() (bool, string) {
		return p.skudonetRuns(n) == runs, lastLine(p.daemon(n).Log())
	})
}

// isUp tells whether an interface is up, with or without a carrier.
func (p *pair) isUp(n *lab.Node, link string) bool {
	p.t.Helper()
	return strings.Contains(p.run(n, "ip", "-o", "link", "show", "dev", link), ",UP")
}

func TestSkudonet(t *testing.T) {
	p := twoLinks(t, keys{"advert_interval": "0.2", "link_loss": "ignore"})
	for _, n := range p.Nodes() { // as at boot
		p.run(n, "/etc/init.d/skudonet", "start")
		if !p.skudonetRuns(n) {
			t.Fatal("the stand-in does not start")
		}
	}
	p.startBoth()
	p.step("on the master and not on the backup", func(t *testing.T) {
		p.waitSkudonet(p.LB1, true)
		p.waitSkudonet(p.LB2, false)
		p.waitVirtuals(p.LB2)
		p.waitVirtuals(p.LB1, "eth0:1 192.168.77.100")
	})
	p.step("started on the new master, where another NIC has no carrier", func(t *testing.T) {
		p.check(p.LB2.Cut(1))
		p.check(p.LB1.PowerOff())
		p.waitStatus(p.LB2, "master")
		p.waitSkudonet(p.LB2, true)
		p.logged(p.LB2, "start hook: links: set up again, where Skudonet found no carrier: eth1")
		p.waitReport(p.LB2, "the end of the start hook", func(r status.Daemon) bool { return r.Hooks[0].State == status.HookDone })
		if !p.isUp(p.LB2, "eth1") {
			t.Errorf("eth1 was left down:\n%s", p.run(p.LB2, "ip", "link"))
		}
		p.check(p.LB2.Heal(1))
		p.run(p.Client, "ping", "-c1", "-W5", p.LB2.Addr(1).String())
	})
	p.step("stopped on the demoted one", func(t *testing.T) {
		p.check(p.LB1.PowerOn())
		p.run(p.LB1, "/etc/init.d/skudonet", "start")
		p.start(p.LB1)
		p.waitSkudonet(p.LB1, false)
		p.eventually("lb1 without the address", func() (bool, string) { return !p.holds(p.LB1), "" })
		p.waitMaster(p.LB2)
		p.signal(p.LB2, unix.SIGUSR2)
		p.waitMaster(p.LB1)
		p.waitSkudonet(p.LB2, false)
		p.waitSkudonet(p.LB1, true)
	})
	p.step("never without a carrier on the cluster's interface", func(t *testing.T) {
		p.check(p.LB2.Cut())
		p.waitStatus(p.LB2, "master") // $link_loss is ignore, and it had heard its master until then
		const words = "eth0 has no carrier, and Skudonet's start would set it down for good: not started"
		p.logged(p.LB2, words)
		p.waitReport(p.LB2, "the failure", func(r status.Daemon) bool { return len(r.Faults) > 0 })
		p.statusSays(p.LB2, 1, "the start hook failed")
		if p.skudonetRuns(p.LB2) || !p.isUp(p.LB2, "eth0") {
			t.Errorf("Skudonet runs: %v, eth0 is up: %v", p.skudonetRuns(p.LB2), p.isUp(p.LB2, "eth0"))
		}
	})
	p.step("but when the carrier is back", func(t *testing.T) {
		p.check(p.LB2.Heal())
		p.waitMaster(p.LB2) // the higher address
		p.waitSkudonet(p.LB2, true)
		p.waitSkudonet(p.LB1, false)
		p.waitReport(p.LB2, "no fault", func(r status.Daemon) bool { return len(r.Faults) == 0 })
	})
}

func TestStatus(t *testing.T) {
	p := newPair(t)
	var report struct {
		State, Health string
		Running       bool
		Problems      []status.Problem
		Word          string `json:"status_file"`
		Daemon        *status.Daemon
	}
	asJSON := func(n *lab.Node, code int) {
		t.Helper()
		out, got := p.exitCode(n, "skd-hooks", "status", "--json")
		report.Daemon, report.Problems = nil, nil
		if err := json.Unmarshal([]byte(out), &report); err != nil || got != code {
			t.Errorf("status --json of %s exits %d, want %d; %v:\n%s", n.Name, got, code, err, out)
		}
	}
	p.statusSays(p.LB1, 3, "stopped")
	asJSON(p.LB1, 3)
	if report.State != "stopped" || report.Health != "stopped" || report.Running || report.Daemon != nil {
		t.Errorf("before the first start: %+v", report)
	}

	p.startBoth()
	p.waitHooks(p.LB1, "stop", "start")
	p.waitHookDone(p.LB1, "start")
	p.waitHookDone(p.LB2, "stop")
	p.fresh(p.LB1)
	p.statusSays(p.LB1, 0, "master since", "no advertisement from anybody for", "healthy", "eth0, VRID 1, priority 100, preemption off, multicast, signed, every 200ms",
		"192.168.77.12, not heard yet", "192.168.77.100/24 eth0:1, up", "start: done after")
	asJSON(p.LB1, 0)
	if d := report.Daemon; report.State != "master" || report.Word != "master" || report.Health != "healthy" || !report.Running || d == nil ||
		d.State != "master" || d.VRID != 1 || len(d.Addresses) != 1 || !d.Addresses[0].Up || d.Guard != "down" || d.Sent == 0 {
		t.Errorf("of a master: %+v, daemon %+v", report, d)
	}
	p.fresh(p.LB2)
	p.statusSays(p.LB2, 0, "backup since", "the service started", "192.168.77.11, last heard", "signature verified (password)", "192.168.77.100/24 eth0:1, down", "stop: done after")
	asJSON(p.LB2, 0)
	if d := report.Daemon; report.State != "backup" || report.Word != "backup" || d == nil || d.Peer.Address != "192.168.77.11" || !d.Peer.Verified || d.Guard != "up" || d.Received == 0 {
		t.Errorf("of a backup: %+v, daemon %+v", report, d)
	}

	// A stranger that does not know the password.
	stranger := newIntruder(t, p.Client)
	for range 3 {
		stranger.advertise(p.Client.Addr(0), message(t, p.configuration(p.LB1), p.Client.Addr(0), 200))
	}
	p.eventually("drops by reason", func() (bool, string) {
		d := p.fresh(p.LB2)
		var all uint64
		for _, n := range d.Drops {
			all += n
		}
		return all >= 3, fmt.Sprint(d.Drops)
	})
	p.statusSays(p.LB2, 0, "dropped")

	p.check(p.LB2.Cut())
	p.eventually("fault", func() (bool, string) { return p.report(p.LB2).State == "fault", p.report(p.LB2).State })
	p.statusSays(p.LB2, 1, "fault since", "eth0 has no carrier; check the cable and the switch port", "degraded")
	asJSON(p.LB2, 1)
	if report.State != "fault" || report.Word != "backup" || len(report.Problems) != 1 {
		t.Errorf("in fault: %+v", report)
	}
	p.check(p.LB2.Heal())
	p.waitMaster(p.LB1)
	p.statusSays(p.LB2, 0, "the link is back", "healthy")

	p.stop(p.LB2)
	p.statusSays(p.LB2, 3, "stopped; last known:", "not running")
	asJSON(p.LB2, 3)
	if report.State != "stopped" || report.Running || report.Daemon == nil || report.Daemon.State != "init" {
		t.Errorf("after a stop: %+v, daemon %+v", report, report.Daemon)
	}

	// Somebody else's hand on the status file.
	p.check(p.LB1.WriteFile(lab.StatusPath, "backup\n", 0o644))
	p.statusSays(p.LB1, 1, `the daemon is master, but the status file says "backup"`)
	p.check(p.LB1.WriteFile(lab.StatusPath, "master\n", 0o644))
	p.statusSays(p.LB1, 0)

	before := p.report(p.LB2).Started
	d := p.startAs(p.LB2, lab.DaemonSpec{Args: []string{"skd-vrrpd"}})
	p.eventually("lb2 backup again", func() (bool, string) {
		r := p.report(p.LB2)
		return r.Started != before && r.State == "backup", r.State
	})
	p.check(d.Signal(unix.SIGKILL))
	<-d.Done()
	p.statusSays(p.LB2, 1, "backup; last known: backup since", "the status file says backup, but skd-vrrpd is not running", "/etc/init.d/skudonet-ce-cluster start")
	asJSON(p.LB2, 1)
	if report.State != "backup" || report.Health != "degraded" || report.Running {
		t.Errorf("of a daemon that died: %+v", report)
	}
}
