package e2e

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/status"
	"github.com/skudonet/skudonet-ce-cluster/test/lab"
)

// world is what a program could have changed on the node: addresses, rules, files, processes; one a line.
func (p *pair) world(n *lab.Node) []string {
	p.t.Helper()
	return strings.Split(p.run(n, "sh", "-c", `
ip -o -4 addr
nft list ruleset
find /etc -maxdepth 1 -printf '%y %m %s %T@ %p\n'
find /run /tmp /root /usr/local /var/lib /var/tmp -printf '%y %m %s %T@ %p\n'
ps -e -o comm= | grep skd | sort`), "\n")
}

// unharmed runs a command that must exit so, with all of these words, and change nothing on the node.
func (p *pair) unharmed(n *lab.Node, code int, words []string, command ...string) string {
	p.t.Helper()
	before := p.world(n)
	out, got := p.exitCode(n, command[0], command[1:]...)
	if got != code {
		p.t.Errorf("%q exits %d, want %d:\n%s", command, got, code, out)
	}
	for _, w := range words {
		if !strings.Contains(out, w) {
			p.t.Errorf("%q does not say %q:\n%s", command, w, out)
		}
	}
	after := p.world(n)
	for sign, lists := range map[string][2][]string{"-": {before, after}, "+": {after, before}} {
		for _, line := range lists[0] {
			if !slices.Contains(lists[1], line) {
				p.t.Errorf("%q has changed the node: %s %s", command, sign, line)
			}
		}
	}
	return out
}

func TestUsage(t *testing.T) {
	p := newPair(t)
	const screen = 40 // lines
	for program, usage := range map[string][][]string{
		"skd-vrrpd": {{"--nothing"}, {"nothing"}, {"-c"}, {"--run-dir"}, {"-n", "nothing"}, {"forget-peer", "--nothing"}, {"forget-peer", "nothing"}},
		"skd-hooks": {{}, {"--nothing"}, {"nothing"}, {"start", "nothing"}, {"stop", "--nothing"}, {"advertisement", "nothing"},
			{"status", "--nothing"}, {"status", "nothing"}, {"--status-file"}},
		"skd-prompt": nil, // never fails
	} {
		out := p.unharmed(p.LB1, 0, []string{program, "--version", "--status-file"}, program, "--help")
		if lines := strings.Count(out, "\n"); lines > screen {
			t.Errorf("%s --help has %d lines, want at most %d", program, lines, screen)
		}
		for _, line := range strings.Split(out, "\n") {
			if len([]rune(line)) > 130 {
				t.Errorf("%s --help has a line of %d characters: %s", program, len(line), line)
			}
		}
		if out := p.unharmed(p.LB1, 0, []string{program + " version "}, program, "--version"); strings.Count(out, "\n") != 1 {
			t.Errorf("%s --version says\n%s\nwant one line", program, out)
		}
		for _, args := range usage {
			out := p.unharmed(p.LB1, 2, []string{program + ": "}, append([]string{program}, args...)...)
			if strings.Count(out, "\n") != 1 {
				t.Errorf("%s %q says\n%s\nwant one line", program, args, out)
			}
		}
	}
	if out := p.unharmed(p.LB1, 0, []string{"[] ", "skd-prompt: --nothing: unknown"}, "skd-prompt", "--nothing"); strings.Contains(out, "panic") {
		t.Error(out)
	}
}

func TestWrongConfiguration(t *testing.T) {
	p := newPair(t)
	const wrong = `$interface="eth0";
$local_ip="192.168.77.11";
$remote_ip="192.168.77.11";
$password="not-to-be-seen";
$cluster_id="300";
$cluster_ip="here";
$advert_interval="0";
$hook_timeout=;
this is no line
`
	errors := []string{
		`skudonet-cluster.conf:3: $remote_ip: `, `skudonet-cluster.conf:5: $cluster_id: "300": want 1 to 255`, `skudonet-cluster.conf:6: $cluster_ip: "here": want an IPv4 or IPv6 address, or one of each`,
		`skudonet-cluster.conf:7: $advert_interval: "0": want 0.01 to 40.95 seconds`, `skudonet-cluster.conf:8: $hook_timeout: `, `skudonet-cluster.conf:9: `,
	}
	p.check(p.LB1.WriteFile(lab.ConfigPath, wrong, 0o600))
	for _, args := range [][]string{{"skd-vrrpd"}, {"skd-vrrpd", "-n"}, {"skd-vrrpd", "-c", lab.ConfigPath, "-n"}} {
		out := p.unharmed(p.LB1, 2, errors, args...)
		for _, e := range errors {
			if strings.Count(out, e) != 1 {
				t.Errorf("%q says %d times, want once: %s\n%s", args, strings.Count(out, e), e, out)
			}
		}
		if strings.Contains(out, "not-to-be-seen") {
			t.Errorf("%q prints the password:\n%s", args, out)
		}
	}
	// What ran before, and was not stopped in order, is not touched either.
	p.check(p.LB1.WriteFile(lab.StatusPath, "master\n", 0o644))
	p.run(p.LB1, "ip", "addr", "add", lab.ClusterIP.String()+"/24", "dev", "eth0")
	p.run(p.LB1, "nft", "add", "table", "netdev", "skudonet-ce-cluster")
	p.unharmed(p.LB1, 2, errors, "skd-vrrpd")

	for name, c := range map[string]struct {
		changes keys
		code    int
		words   string
	}{
		"right":             {nil, 0, "the configuration is right"},
		"swapped addresses": {keys{"local_ip": "192.168.77.12", "remote_ip": "192.168.77.11"}, 2, "swap $local_ip and $remote_ip on this node"},
		"another's address": {keys{"local_ip": "192.168.77.13"}, 2, `$local_ip: "192.168.77.13": not on eth0, which has 192.168.77.11`},
		"no such interface": {keys{"interface": "eth5"}, 2, `$interface: "eth5": `},
		"the same twice":    {keys{"cluster_ip": "192.168.77.11"}, 2, "$cluster_ip: "},
		"a weak password":   {keys{"password": "secret"}, 0, "$password: "},
		"an unknown key":    {keys{"colour": "red"}, 0, "$colour: "},
	} {
		p.check(p.LB2.Configure(nil))
		p.conf[p.LB1] = nil
		p.configure(p.LB1, c.changes)
		if out := p.unharmed(p.LB1, c.code, []string{c.words}, "skd-vrrpd", "-n"); c.code == 2 && strings.Contains(out, "is right") {
			t.Errorf("%s: %s", name, out)
		}
	}
	p.unharmed(p.LB1, 2, []string{"/nowhere.conf"}, "skd-vrrpd", "-c", "/nowhere.conf", "-n")
	p.unharmed(p.LB1, 2, []string{"/nowhere.conf"}, "skd-vrrpd", "-c", "/nowhere.conf")
}

func TestInterfaceAppearsLater(t *testing.T) {
	p := newPair(t)
	p.check(p.LB1.Remove())
	p.start(p.LB1)
	p.logged(p.LB1, "there is no interface eth0; is $interface right?")
	p.eventually("fault", func() (bool, string) { return p.report(p.LB1).State == "fault", p.report(p.LB1).State })
	p.statusSays(p.LB1, 1, "fault since", "there is no interface eth0")
	if word := p.LB1.Status(); word != "backup" {
		t.Errorf("status %q in fault, want backup", word)
	}
	p.check(p.LB1.Insert())
	p.waitStatus(p.LB1, "master")
	p.probe()
	p.statusSays(p.LB1, 0, "master since")
	p.saidOnce(p.LB1, "fault on eth0 vrid 1: there is no interface eth0")
}

func TestSecondInstance(t *testing.T) {
	p := startPair(t)
	sent := p.capture(lab.VRRP)
	before := p.report(p.LB1)
	out, code := p.exitCode(p.LB1, "skd-vrrpd")
	if want := fmt.Sprintf("another skd-vrrpd runs here already, as process %d", before.PID); code != 1 || strings.Count(out, want) != 1 {
		t.Errorf("a second one exits %d and says\n%s\nwant 1 and once: %s", code, out, want)
	}
	p.awaitAdverts(sent, p.LB1, 3)
	if after := p.fresh(p.LB1); after.PID != before.PID || after.State != "master" || after.Since != before.Since {
		t.Errorf("the first one was %+v and is %+v", before, after)
	}
	p.signal(p.LB1, unix.SIGUSR1) // by the number in the pid file, as a script does
	if pid := p.run(p.LB1, "cat", runDir+"/vrrpd.pid"); pid != fmt.Sprint(before.PID) {
		t.Errorf("the pid file says %s, want %d", pid, before.PID)
	}
}

func TestHangUpWhileHookRuns(t *testing.T) {
	p := newPair(t, keys{"hook_timeout": "2"})
	sent := p.capture(lab.VRRP)
	const waits = "#!/bin/sh\nwhile [ ! -e /tmp/go ]; do sleep 0.02; done\n"
	const later = "executing anew when the running hook has ended"
	p.hook(p.LB1, "start", waits)
	p.start(p.LB1)
	p.waitStatus(p.LB1, "master")
	p.waitReport(p.LB1, "the start hook", runs("start"))
	p.signal(p.LB1, unix.SIGHUP)
	p.logged(p.LB1, later)
	p.configure(p.LB1, keys{"cluster_id": "none"}) // after the daemon has looked at it
	p.check(p.LB1.WriteFile("/tmp/go", "", 0o644))
	p.logged(p.LB1, "the configuration is wrong; going on with the old one")
	p.awaitAdverts(sent, p.LB1, 3)
	if starts := p.daemon(p.LB1).Starts(); starts != 1 || p.LB1.Status() != "master" {
		t.Errorf("%d starts, status %s", starts, p.roles())
	}

	p.hook(p.LB2, "stop", waits)
	p.start(p.LB2)
	p.waitStatus(p.LB2, "backup")
	p.waitReport(p.LB2, "the stop hook", runs("stop"))
	p.signal(p.LB2, unix.SIGHUP)
	p.logged(p.LB2, later)
	p.stop(p.LB2)
	if starts := p.timesLogged(p.LB2, "started on eth0"); starts != 1 {
		t.Errorf("started %d times although it was asked to stop meanwhile", starts)
	}
}

// runs tells whether the hook of an event is at work.
func runs(event string) func(status.Daemon) bool {
	return func(d status.Daemon) bool {
		return slices.ContainsFunc(d.Hooks, func(h status.Hook) bool { return h.Name == event && h.State == status.HookRunning })
	}
}

// noSpace says how to take the space of a directory of the node away and give it back.
func (p *pair) noSpace(n *lab.Node, dir string) (fill, free func()) {
	p.t.Helper()
	p.run(n, "mkdir", "-p", dir)
	p.run(n, "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", dir)
	return func() { n.Run("dd", "if=/dev/zero", "of="+dir+"/fill", "bs=4k") }, func() { p.run(n, "rm", dir+"/fill") }
}

func TestUnwritableFiles(t *testing.T) {
	p := newPair(t)
	sent := p.capture(lab.VRRP)
	readOnly := "/var/tmp/read-only"
	p.run(p.LB2, "mkdir", readOnly)
	p.run(p.LB2, "mount", "-t", "tmpfs", "-o", "ro", "tmpfs", readOnly)
	lb2Status := readOnly + "/status"
	// A directory in place of the file, and a file system that is read-only.
	p.run(p.LB1, "mkdir", "-p", lab.StatusPath+"/x")
	fillState, freeState := p.noSpace(p.LB1, status.StateDir)
	fillRun, freeRun := p.noSpace(p.LB2, runDir)
	fillState()

	const status, sequence, news = "the prompt and the replicator see an old status; trying again: ",
		"its sequence cannot be stored: ", "skd-hooks status shows old news: "
	p.start(p.LB1)
	p.logged(p.LB1, status)
	p.logged(p.LB1, sequence)
	p.probe()
	p.startAs(p.LB2, lab.DaemonSpec{Args: []string{"skd-vrrpd", "--status-file", lb2Status}})
	p.logged(p.LB2, status)
	p.waitReport(p.LB1, "its troubles", hasFaults(2))
	p.statusSays(p.LB1, 1, "master since", status, sequence)
	p.waitReport(p.LB2, "its troubles", hasFaults(1))
	if out, code := p.exitCode(p.LB2, "skd-hooks", "--status-file", lb2Status, "status"); code != 1 || !strings.Contains(out, status) {
		t.Errorf("status of lb2 exits %d:\n%s", code, out)
	}
	fillRun()
	p.signal(p.LB2, unix.SIGUSR1)
	p.logged(p.LB2, news)
	p.awaitAdverts(sent, p.LB1, 8) // it tries again meanwhile
	for _, words := range []string{status, sequence} {
		p.saidOnce(p.LB1, words)
	}
	for _, words := range []string{status, news} {
		p.saidOnce(p.LB2, words)
	}

	p.run(p.LB1, "rm", "-r", lab.StatusPath)
	p.run(p.LB2, "mount", "-o", "remount,rw", readOnly)
	freeState()
	freeRun()
	p.waitStatus(p.LB1, "master")
	p.eventually("the status of lb2", func() (bool, string) {
		text, err := p.LB2.ReadFile(lb2Status)
		return text == "backup\n", fmt.Sprint(err)
	})
	p.signal(p.LB2, unix.SIGUSR1)
	p.logged(p.LB2, "over: "+news)
	p.signal(p.LB1, unix.SIGUSR2) // a transition is stored
	p.logged(p.LB1, "over: ")
	p.waitReport(p.LB2, "no trouble", hasFaults(0))
	p.waitReport(p.LB1, "no trouble", hasFaults(0))
	p.eventually("the status of the successor", func() (bool, string) {
		text, err := p.LB2.ReadFile(lb2Status)
		return text == "master\n", fmt.Sprint(text, err)
	})
}

func hasFaults(count int) func(status.Daemon) bool {
	return func(d status.Daemon) bool { return len(d.Faults) == count }
}

func TestUnwritableRunDirectory(t *testing.T) {
	p := newPair(t)
	p.check(p.LB1.WriteFile("/root/file", "", 0o644))
	for _, dir := range []string{"/proc/nothing", "/root/file/nothing", "/root/file"} {
		p.unharmed(p.LB1, 1, []string{strings.TrimSuffix(dir, "/nothing")}, "skd-vrrpd", "--run-dir", dir)
	}
	fill, _ := p.noSpace(p.LB1, "/var/tmp/full")
	fill()
	out, code := p.exitCode(p.LB1, "skd-vrrpd", "--run-dir", "/var/tmp/full")
	if code != 1 || !strings.Contains(out, "/var/tmp/full") || !strings.Contains(out, "no space left on device") {
		t.Errorf("with a full run directory it exits %d and says\n%s", code, out)
	}
}

func TestTwoDaemonsShareFiles(t *testing.T) {
	p := newPair(t)
	n := p.LB1
	p.run(n, "ip", "netns", "add", "other")
	p.run(n, "ip", "link", "add", "pair0", "type", "veth", "peer", "name", "pair0", "netns", "other")
	for i, enter := range [][]string{{"ip"}, {"ip", "-n", "other"}} {
		for _, args := range [][]string{{"addr", "add", fmt.Sprintf("10.0.0.%d/24", i+1), "dev", "pair0"}, {"link", "set", "pair0", "up"}} {
			p.run(n, enter[0], append(enter[1:], args...)...)
		}
	}
	// The hook finds its own places in the environment.
	p.hook(n, "start", "#!/bin/sh\nskd-hooks status > $SKD_RUN_DIR/seen\n")
	p.hook(n, "advertisement", "#!/bin/sh\n")
	daemons := map[string]*lab.Daemon{}
	places := func(name string) []string {
		return []string{"--status-file", "/root/" + name + ".status", "--run-dir", "/run/" + name, "--state-dir", "/var/lib/" + name}
	}
	for i, name := range []string{"a", "b"} {
		conf := keys{"interface": "pair0", "local_ip": fmt.Sprintf("10.0.0.%d", i+1), "remote_ip": fmt.Sprintf("10.0.0.%d", 2-i), "password": "of-both-of-them",
			"cluster_id": "7", "cluster_ip": "10.0.0.100", "advert_interval": "0.2", "configdir": "/root/" + name + ".tree"}
		var text strings.Builder
		for _, k := range slices.Sorted(maps.Keys(conf)) {
			fmt.Fprintf(&text, "$%s=\"%s\";\n", k, conf[k])
		}
		p.check(n.WriteFile("/root/"+name+".conf", text.String(), 0o600))
		p.run(n, "mkdir", conf["configdir"])
		args := append([]string{"skd-vrrpd", "-c", "/root/" + name + ".conf"}, places(name)...)
		if name == "b" {
			args = append([]string{"ip", "netns", "exec", "other"}, args...)
		}
		var err error
		daemons[name], err = n.Start(lab.DaemonSpec{Name: name, Args: args})
		p.check(err)
		word := map[string]string{"a": "master", "b": "backup"}[name]
		p.eventually(name+" "+word, func() (bool, string) {
			text, _ := n.ReadFile("/root/" + name + ".status")
			return text == word+"\n", text
		})
	}
	prompt := func(name string) string { return p.run(n, "skd-prompt", places(name)[:2]...) }
	if a, b := prompt("a"), prompt("b"); a != "[master]" || b != "[backup]" {
		t.Errorf("prompts %q and %q", a, b)
	}
	for name, words := range map[string]string{"a": "master since", "b": "backup since"} {
		p.eventually("status of "+name, func() (bool, string) { // which comes after the word in the status file
			out, code := p.exitCode(n, "skd-hooks", append(places(name), "status")...)
			return code == 0 && strings.Contains(out, words), fmt.Sprintf("exits %d:\n%s", code, out)
		})
	}
	p.eventually("what the start hook of a saw", func() (bool, string) {
		text, err := n.ReadFile("/run/a/seen")
		return strings.Contains(text, "master since"), fmt.Sprint(text, err)
	})
	if out := p.run(n, "skd-vrrpd", append(places("b"), "forget-peer")...); !strings.Contains(out, "was told") {
		t.Errorf("forget-peer says %s", out)
	}
	p.check(daemons["a"].Stop())
	p.eventually("b master", func() (bool, string) { return prompt("b") == "[master]", prompt("b") })
	if a := prompt("a"); a != "[]" {
		t.Errorf("prompt of a stopped one %q", a)
	}
	if p.LB1.Status() != "" {
		t.Errorf("the default status file says %q", p.LB1.Status())
	}
	for _, dir := range []string{status.RunDir, status.StateDir} {
		if _, err := n.Run("test", "-e", dir); err == nil {
			t.Errorf("%s was made", dir)
		}
	}
}
