package lab

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// makerEnv has this program make a lab and wait, or leave it, instead of testing.
const makerEnv = "SKD_LAB_TEST_MAKER"

func TestMain(m *testing.M) {
	if id, keep, ok := strings.Cut(os.Getenv(makerEnv), " "); ok {
		l, err := New(Options{ID: id, Keep: keep == "keep", Out: os.Stdout})
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(l.LB1.PID())
		if keep == "keep" {
			err = l.Close()
		} else {
			_, err = os.Stdin.Read(make([]byte, 1))
		}
		if err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	if missing := Missing("ping", "ps", "logger", "ssh", "sshd"); len(missing) > 0 {
		fmt.Println("these tests need: apt-get install", strings.Join(missing, " "))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func run(t *testing.T, n *Node, name string, args ...string) string {
	t.Helper()
	out, err := n.Run(name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func replies(n *Node, addr netip.Addr) bool {
	_, err := n.Run("ping", "-c1", "-W1", addr.String())
	return err == nil
}

// wantReply has patience: the neighbour table retries once a second what failed before.
func wantReply(t *testing.T, from *Node, to netip.Addr) {
	t.Helper()
	Eventually(t, 5*time.Second, "a reply", func() (bool, string) {
		return replies(from, to), fmt.Sprintf("%s silent to %s", to, from.Name)
	})
}

// processes lists those whose first argument has the prefix.
func processes(t *testing.T, prefix string) (found []string) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	check(t, err)
	for _, file := range files {
		if text, err := os.ReadFile(file); err == nil && strings.HasPrefix(string(text), prefix) {
			found = append(found, file)
		}
	}
	return found
}

// namespaces reads the names of namespaces from their files in /proc, given as a pattern.
func namespaces(t *testing.T, pattern string) map[string]bool {
	t.Helper()
	files, err := filepath.Glob(pattern)
	check(t, err)
	found := map[string]bool{}
	for _, file := range files {
		if name, err := os.Readlink(file); err == nil {
			found[name] = true
		}
	}
	return found
}

func TestLeavesNothing(t *testing.T) {
	Test(t, Options{}).Close() // Go keeps a thread and some descriptors from the first time.
	files, _ := os.ReadDir("/proc/self/fd")

	l := Test(t, Options{Links: 2})
	_, err := l.LB1.Start(DaemonSpec{Args: []string{"sleep", "infinity"}, Restart: true})
	check(t, err)
	run(t, l.LB2, "sh", "-c", "setsid sleep infinity > /dev/null 2>&1 &")
	_, err = l.Client.ProbeAddress(l.LB1.Addr(0))
	check(t, err)
	_, err = l.Client.ProbeService(netip.AddrPortFrom(l.LB1.Addr(0), ServicePort))
	check(t, err)
	_, err = l.Capture(nil, Sent, All)
	check(t, err)
	_, err = l.LB1.Syslog()
	check(t, err)
	_, err = l.LB1.Terminal("bash")
	check(t, err)
	l.Watch(ClusterIP)
	ofProcess := func(pid int) map[string]bool { return namespaces(t, fmt.Sprintf("/proc/%d/ns/*", pid)) }
	own := ofProcess(l.LB2.PID())
	check(t, l.LB2.PowerOff())
	check(t, l.LB2.PowerOn())
	for _, n := range l.machines() {
		for name := range ofProcess(n.PID()) {
			own[name] = true
		}
	}
	for name := range ofProcess(os.Getpid()) {
		delete(own, name)
	}
	if len(own) < 4*5 {
		t.Errorf("%d namespaces of four machines: %v", len(own), own)
	}
	if mounts, _ := os.ReadFile("/proc/self/mountinfo"); bytes.Contains(mounts, []byte("/run/lb")) {
		t.Errorf("the host sees mounts of the lab:\n%s", mounts)
	}
	if len(processes(t, "skd-"+l.ID)) != 4 {
		t.Errorf("processes of the machines: %v, want 4", processes(t, "skd-"+l.ID))
	}
	check(t, l.Close())
	check(t, l.Close())

	if left := processes(t, "skd-"+l.ID); len(left) > 0 {
		t.Errorf("processes left: %v", left)
	}
	// A thread that ends is not gone at the moment when its work is done.
	Eventually(t, 5*time.Second, "no namespace left", func() (bool, string) {
		var left []string
		for name := range namespaces(t, "/proc/[0-9]*/task/*/ns/*") {
			if own[name] {
				left = append(left, name)
			}
		}
		return len(left) == 0, fmt.Sprint(left)
	})
	// Nor is who waits for a daemon that has ended.
	Eventually(t, 5*time.Second, "as many open files as before", func() (bool, string) {
		now, _ := os.ReadDir("/proc/self/fd")
		return len(now) == len(files), fmt.Sprintf("%d, want %d", len(now), len(files))
	})
	if _, err := l.LB1.Run("true"); !errors.Is(err, ErrNoPower) {
		t.Errorf("a command after Close: %v, want %v", err, ErrNoPower)
	}
}

// maker starts a process that makes a lab, and gives it with what it prints first.
func maker(t *testing.T, id, keep string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	program, err := os.Executable()
	check(t, err)
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), makerEnv+"="+id+" "+keep)
	out := new(bytes.Buffer)
	stdin, err := cmd.StdinPipe()
	check(t, err)
	t.Cleanup(func() { stdin.Close() })
	if keep == "keep" {
		cmd.Stdout = out
		if err := cmd.Run(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return cmd, out
	}
	stdout, err := cmd.StdoutPipe()
	check(t, err)
	check(t, cmd.Start())
	text := make([]byte, 1000)
	size, _ := stdout.Read(text)
	out.Write(text[:size])
	return cmd, out
}

func TestMakerKilled(t *testing.T) {
	Test(t, Options{})
	id := fmt.Sprintf("killed-%d", os.Getpid())
	cmd, out := maker(t, id, "wait")
	if len(processes(t, "skd-"+id)) != 4 {
		t.Fatalf("no lab: %s", out)
	}
	check(t, cmd.Process.Kill())
	cmd.Wait()
	Eventually(t, 5*time.Second, "the end of the machines", func() (bool, string) {
		left := processes(t, "skd-"+id)
		return len(left) == 0, fmt.Sprint(left)
	})
}

func TestKeepAndSweep(t *testing.T) {
	Test(t, Options{})
	id := fmt.Sprintf("kept-%d", os.Getpid())
	t.Cleanup(func() { Sweep(id) })
	_, out := maker(t, id, "keep")
	if len(processes(t, "skd-"+id)) != 4 {
		t.Fatalf("the lab is gone: %s", out)
	}
	var enter string
	for line := range strings.Lines(out.String()) {
		if strings.HasPrefix(line, "  lb2 ") {
			_, enter, _ = strings.Cut(strings.TrimSpace(line), " ")
		}
	}
	shell := exec.Command("sh", "-c", enter)
	shell.Stdin = strings.NewReader("hostname; ip -br addr show eth0\n")
	if answer, err := shell.CombinedOutput(); err != nil || !strings.Contains(string(answer), "lb2\n") ||
		!strings.Contains(string(answer), "192.168.77.12") {
		t.Errorf("%s: %v: %s", enter, err, answer)
	}
	// Another lab of the name takes its place.
	l := Test(t, Options{ID: id})
	wantReply(t, l.Client, l.LB2.Addr(0))
	if all := processes(t, "skd-"+id); len(all) != 4 {
		t.Errorf("%v, want the four of the new lab", all)
	}
	check(t, l.Close())
	check(t, Sweep(id))
}

func TestMachines(t *testing.T) {
	for _, copies := range []bool{false, true} {
		t.Run(fmt.Sprintf("copies=%v", copies), func(t *testing.T) {
			t.Parallel()
			bin := t.TempDir()
			check(t, os.WriteFile(bin+"/skd-thing", []byte("#!/bin/sh\necho thing\n"), 0o755))
			l := Test(t, Options{BinDir: bin, copies: copies})
			testMachine(t, l)
		})
	}
}

func testMachine(t *testing.T, l *Lab) {
	for _, n := range l.machines() {
		if got := run(t, n, "hostname"); got != n.Name {
			t.Errorf("hostname %q, want %q", got, n.Name)
		}
	}
	if got := run(t, l.LB1, "/usr/sbin/skd-thing"); got != "thing" {
		t.Errorf("a program of BinDir says %q", got)
	}
	if got := run(t, l.LB1, "sh", "-c", "command -v ip >/dev/null && cat /proc/1/cmdline | tr -d '\\0'"); got != "skd-"+l.ID+"-lb1" {
		t.Errorf("process 1 is %q", got)
	}
	var exit *exec.ExitError
	if _, err := l.LB1.Run("sh", "-c", "exit 7"); !errors.As(err, &exit) || exit.ExitCode() != 7 {
		t.Errorf("exit 7 came as %v", err)
	}
	// Every directory of its own, seen neither on the other node nor on the host; the rest cannot be written.
	for _, dir := range views {
		file := "/" + dir + "/lab-test-" + l.ID
		check(t, l.LB1.WriteFile(file, "1", 0o600))
		if got := run(t, l.LB1, "cat", file); got != "1" {
			t.Errorf("%s: %q, want 1", file, got)
		}
		if _, err := l.LB2.ReadFile(file); err == nil {
			t.Errorf("%s of lb1 is on lb2", file)
		}
		if _, err := os.Stat(file); err == nil {
			t.Errorf("%s of lb1 is on the host", file)
		}
	}
	for _, file := range []string{"/usr/sbin/x", "/usr/bin/x", "/srv/x", "/x"} {
		if _, err := l.LB1.Run("touch", file); err == nil {
			t.Errorf("%s could be written: on the host", file)
			os.Remove(file)
		}
	}
	check(t, l.LB1.WriteFile("/run/gone", "", 0o600))
	// A link leads to a file of the machine, never to one of the host.
	run(t, l.LB1, "ln", "-s", "/root/there", "/etc/link")
	check(t, l.LB1.WriteFile("/etc/link", "2", 0o600))
	if got := run(t, l.LB1, "cat", "/root/there"); got != "2" {
		t.Errorf("through a link: %q", got)
	}
	// Process 1 takes care of orphans.
	run(t, l.LB1, "sh", "-c", "sh -c 'sleep 0.01 &'")
	Eventually(t, 5*time.Second, "no zombie", func() (bool, string) {
		out := run(t, l.LB1, "ps", "-eo", "pid,stat,args")
		return !strings.Contains(out, "sleep") && !strings.Contains(out, "<defunct>"), out
	})
	if out, _ := l.LB1.Run("sh", "-c", "! command -v systemctl > /dev/null && echo offline || systemctl is-system-running"); strings.TrimSpace(out) != "offline" {
		t.Errorf("systemctl says %q", out)
	}

	check(t, l.LB1.PowerOff())
	if _, err := l.LB1.Run("true"); !errors.Is(err, ErrNoPower) {
		t.Errorf("a command without power: %v", err)
	}
	if text, err := l.LB1.ReadFile("/etc/lab-test-" + l.ID); text != "1" {
		t.Errorf("disk without power: %q, %v", text, err)
	}
	check(t, l.LB1.PowerOn())
	if got := run(t, l.LB1, "cat", "/var/lib/lab-test-"+l.ID); got != "1" {
		t.Errorf("disk after power-on: %q", got)
	}
	if got := run(t, l.LB1, "ls", "/run"); got != "" {
		t.Errorf("/run after power-on: %q", got)
	}
	for _, from := range l.machines() {
		for _, to := range l.machines() {
			wantReply(t, from, to.Addr(0))
		}
	}
}

func TestPowerOffIsSilent(t *testing.T) {
	t.Parallel()
	l := Test(t, Options{})
	capture, err := l.Capture(l.LB1, Sent, All)
	check(t, err)
	noise, err := l.LB1.Start(DaemonSpec{Args: []string{"ping", "-f", l.LB2.Addr(0).String()}})
	check(t, err)
	Eventually(t, 5*time.Second, "noise", func() (bool, string) {
		n := len(capture.Packets())
		return n > 100, fmt.Sprint(n, " packets")
	})
	witness, err := l.LB1.Start(DaemonSpec{Args: []string{"ip", "monitor", "link"}})
	check(t, err)
	Eventually(t, 5*time.Second, "a witness of changes", func() (bool, string) {
		run(t, l.LB1, "ip", "link", "set", "eth0", "alias", strconv.Itoa(len(witness.Log())))
		return strings.Contains(witness.Log(), "eth0"), witness.Log()
	})
	pid := noise.PID()
	check(t, l.LB1.PowerOff())
	off := time.Now()
	if strings.Contains(witness.Log(), "DOWN") {
		t.Errorf("the machine saw its cable go, when it should have been dead:\n%s", witness.Log())
	}
	if err := unix.Kill(pid, 0); err != unix.ESRCH {
		t.Errorf("process of a machine without power: %v", err)
	}
	<-noise.Done()
	if replies(l.LB2, l.LB1.Addr(0)) {
		t.Error("its kernel still answers")
	}
	packets, err := capture.Stop()
	check(t, err)
	for _, p := range packets {
		if p.Time.After(off) {
			t.Fatalf("a packet %v after power-off", p.Time.Sub(off))
		}
	}
}

func carrier(t *testing.T, n *Node) string {
	return run(t, n, "cat", "/sys/class/net/eth0/carrier")
}

func TestCables(t *testing.T) {
	t.Parallel()
	l := Test(t, Options{Links: 2})
	check(t, l.LB1.Cut())
	Eventually(t, 5*time.Second, "no carrier", func() (bool, string) { c := carrier(t, l.LB1); return c == "0", c })
	if replies(l.LB2, l.LB1.Addr(0)) {
		t.Error("a reply over a cut cable")
	}
	wantReply(t, l.LB2, l.LB1.Addr(1))
	check(t, l.LB1.Heal())
	wantReply(t, l.LB2, l.LB1.Addr(0))
	check(t, l.LB1.Isolate())
	if carrier(t, l.LB1) != "1" {
		t.Error("isolated, but no carrier")
	}
	if replies(l.LB2, l.LB1.Addr(0)) || replies(l.LB1, l.Switch.Addr(0)) {
		t.Error("a reply in spite of isolation")
	}
	run(t, l.LB1, "ip", "link", "set", "eth0", "down")
	run(t, l.LB1, "ip", "link", "set", "eth0", "up")
	if replies(l.LB2, l.LB1.Addr(0)) {
		t.Error("the isolation did not outlive a change of the carrier")
	}
	check(t, l.LB1.Cut())
	check(t, l.LB1.Heal())
	wantReply(t, l.LB2, l.LB1.Addr(0))
	mac := run(t, l.LB1, "cat", "/sys/class/net/eth0/address")
	check(t, l.LB1.Remove())
	if _, err := l.LB1.Run("ip", "link", "show", "eth0"); err == nil {
		t.Error("removed, and still there")
	}
	check(t, l.LB1.Insert())
	run(t, l.LB1, "ip", "link", "del", "eth1")
	check(t, l.LB1.Insert(1))
	if got := run(t, l.LB1, "cat", "/sys/class/net/eth0/address"); got != mac || got != "02:00:00:00:77:0b" {
		t.Errorf("MAC %s, before %s", got, mac)
	}
	wantReply(t, l.LB2, l.LB1.Addr(0))
	wantReply(t, l.LB2, l.LB1.Addr(1))
	run(t, l.LB1, "ip", "link", "del", "eth1")
	check(t, l.LB1.PowerOff())
	check(t, l.LB1.PowerOn())
	wantReply(t, l.LB2, l.LB1.Addr(1))
}

func TestProbeAddress(t *testing.T) {
	t.Parallel()
	l := Test(t, Options{})
	probe, err := l.Client.ProbeAddress(l.LB1.Addr(0))
	check(t, err)
	answering := func() {
		t.Helper()
		since := time.Now()
		Eventually(t, 5*time.Second, "answers", func() (bool, string) {
			return probe.AnsweredAfter(since) && probe.Answering(), fmt.Sprintf("%+v", probe.Report())
		})
	}
	answering()
	before := time.Now()
	check(t, l.LB1.Isolate())
	isolated := time.Now()
	time.Sleep(300 * time.Millisecond) // the outage that is to be measured
	heal := time.Now()
	check(t, l.LB1.Heal())
	healed := time.Now()
	answering()
	r := probe.Stop()
	t.Logf("%d of %d answered, stall %v, gaps %v; the outage was made to last %v to %v", r.Answered, r.Sent, r.Stall, r.Gaps,
		heal.Sub(isolated), healed.Sub(before))
	gap := r.LongestSince(isolated)
	late := r.Stall + 100*ProbeInterval // a busy kernel delivers late, too
	if gap.Open || gap.From.Before(before.Add(-late)) || gap.From.After(isolated.Add(late)) ||
		gap.To.Before(heal) || gap.To.After(healed.Add(late)) {
		t.Errorf("gap from %v to %v (%v): want within %v..%v to %v..%v", gap.From, gap.To, gap, before, isolated, heal, healed)
	}
	if r.Sent-r.Answered < gap.Lost {
		t.Errorf("%d lost in the gap, but %d in all", gap.Lost, r.Sent-r.Answered)
	}
	if again := probe.Stop(); again.Sent != r.Sent {
		t.Errorf("a second Stop: %d sent, want %d", again.Sent, r.Sent)
	}
}

func TestReport(t *testing.T) {
	begin := time.Now()
	at := func(ms int) time.Time { return begin.Add(time.Duration(ms) * time.Millisecond) }
	gap := func(from, to, lost int, open bool) Gap { return Gap{at(from), at(to), lost, open} }
	for _, test := range []struct {
		name     string
		asked    []int // when, in ms
		answered []int
		want     []Gap
	}{
		{"every attempt answered", []int{1, 2, 3}, []int{1, 2, 3}, nil},
		{"nothing asked, nothing missed", []int{1, 90}, []int{1, 90}, nil},
		{"a late answer is no outage", []int{1, 2, 3}, []int{1, 3, 3}, nil},
		{"lost, then answered", []int{1, 2, 3, 4, 5, 6}, []int{1, 6}, []Gap{gap(1, 6, 4, false)}},
		// The requests waited for the neighbour table, and were all sent when it knew.
		{"held back", []int{1, 2, 3, 4, 5, 6}, []int{1, 6, 6, 6, 6, 6}, []Gap{gap(1, 6, 4, false)}},
		{"silent at first", []int{1, 2, 3, 4}, []int{4}, []Gap{gap(0, 4, 3, false)}},
		{"two outages", []int{1, 2, 3, 4, 5, 6, 7, 8, 9}, []int{1, 5, 9}, []Gap{gap(1, 5, 3, false), gap(5, 9, 3, false)}},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newProbe()
			p.report.Start = begin
			asked := test.asked
			for _, answer := range test.answered {
				for len(asked) > 0 && asked[0] <= answer {
					p.pending = append(p.pending, at(asked[0]))
					asked = asked[1:]
				}
				p.answered(at(answer), "")
			}
			r := p.Report()
			if !slices.Equal(r.Gaps, test.want) || r.Answered != len(test.answered) {
				t.Errorf("gaps %v, %d answered, want %v, %d", r.Gaps, r.Answered, test.want, len(test.answered))
			}
		})
	}
	p := newProbe()
	p.pending = []time.Time{at(1), at(2)}
	p.report.LastAnswer = at(-1000)
	if g := p.Report().Longest(); !g.Open || g.From != at(-1000) || g.Lost != 1 {
		t.Errorf("an outage that is not over: %+v", g)
	}
}

func TestMissing(t *testing.T) {
	if got := Missing("sh", "no-such-program", "no-such-program"); !slices.Equal(got, []string{"no-such-program"}) {
		t.Errorf("missing: %v", got)
	}
}

func TestProbeService(t *testing.T) {
	t.Parallel()
	l := Test(t, Options{})
	run(t, l.LB1, "ip", "addr", "add", "192.168.77.100/24", "dev", "eth0")
	probe, err := l.Client.ProbeService(netip.AddrPortFrom(ClusterIP, ServicePort))
	check(t, err)
	by := func(name string) {
		t.Helper()
		Eventually(t, 5*time.Second, "answers by "+name, func() (bool, string) {
			turns := probe.Report().Turns
			return len(turns) > 0 && turns[len(turns)-1].Name == name && turns[len(turns)-1].Answers > 50, fmt.Sprint(turns)
		})
	}
	by("lb1")
	check(t, l.LB1.PowerOff())
	off := time.Now()
	run(t, l.LB2, "ip", "addr", "add", "192.168.77.100/24", "dev", "eth0")
	run(t, l.Client, "ip", "neigh", "flush", "dev", "eth0")
	by("lb2")
	r := probe.Stop()
	t.Logf("%d of %d answered, stall %v, gaps %v, turns %v", r.Answered, r.Sent, r.Stall, r.Gaps, r.Turns)
	if len(r.Turns) != 2 || !r.Turns[0].To.Before(off) || !r.Turns[1].From.After(off) {
		t.Errorf("turns %v around %v", r.Turns, off)
	}
	// It need not be the longest on a busy host.
	if i := slices.IndexFunc(r.Gaps, func(g Gap) bool { return g.To.Equal(r.Turns[1].From) }); i < 0 || r.Gaps[i].From.After(off) {
		t.Errorf("gaps %v, none from before %v to %v", r.Gaps, off, r.Turns[1].From)
	}
}

func TestWatch(t *testing.T) {
	t.Parallel()
	l := Test(t, Options{})
	w := l.Watch(ClusterIP)
	begin := time.Now()
	address := func(n *Node, verb string) {
		run(t, n, "ip", "addr", verb, "192.168.77.100/24", "dev", "eth0")
	}
	seen := func(n *Node, such Claim) time.Time {
		t.Helper()
		var at time.Time
		Eventually(t, 5*time.Second, fmt.Sprintf("%+v on %s", such, n.Name), func() (ok bool, _ string) {
			at, ok = w.Last(n, func(c Claim) bool { return c == such })
			return ok, fmt.Sprint(w.Changes())
		})
		return at
	}
	address(l.LB1, "add")
	check(t, l.LB1.WriteFile(StatusPath, "master\n", 0o644))
	seen(l.LB1, Claim{true, true, "master"})
	both := time.Now()
	address(l.LB2, "add")
	from := seen(l.LB2, Claim{true, true, ""})
	if from.Before(both) {
		t.Errorf("seen at %v, done after %v", from, both)
	}
	address(l.LB2, "del")
	until := seen(l.LB2, Claim{true, false, ""})
	if got := w.TwoHolders(begin); got != until.Sub(from) {
		t.Errorf("two holders for %v, want %v", got, until.Sub(from))
	}
	if got := w.TwoHolders(until); got != 0 {
		t.Errorf("two holders for %v after the end", got)
	}
	if got := w.TwoMasters(begin); got != 0 {
		t.Errorf("two masters for %v, there was one", got)
	}
	check(t, l.LB1.PowerOff())
	off := seen(l.LB1, Claim{})
	check(t, l.LB1.PowerOn())
	seen(l.LB1, Claim{true, false, "master"}) // The file is on the disk.
	address(l.LB2, "add")
	again := seen(l.LB2, Claim{true, true, ""})
	w.Stop()
	if got := w.NoHolder(until); got != again.Sub(off) {
		t.Errorf("no holder for %v, want %v: %v", got, again.Sub(off), w.Changes())
	}
}

// A third node and a fourth are nodes like the others.
func TestFurtherNodes(t *testing.T) {
	t.Parallel()
	if _, err := New(Options{Nodes: 5}); err == nil {
		t.Error("a lab with five nodes")
	}
	if l := Test(t, Options{}); l.LB3 != nil || len(l.Nodes()) != 2 {
		t.Errorf("%d nodes, two are the default", len(l.Nodes()))
	}
	l := Test(t, Options{Nodes: 4})
	if l.LB4.Addr(0).String() != "192.168.77.14" {
		t.Errorf("lb4 has %s", l.LB4.Addr(0))
	}
	wantReply(t, l.LB4, l.LB1.Addr(0))
	wantReply(t, l.LB3, l.LB4.Addr(0))
	text, err := l.LB3.ReadFile(ConfigPath)
	check(t, err)
	if !strings.Contains(text, `$local_ip="192.168.77.13";`) || !strings.Contains(text, `$remote_ip="192.168.77.11";`) {
		t.Errorf("lb3 is told:\n%s", text)
	}
	w := l.Watch(ClusterIP)
	begin := time.Now()
	for _, n := range []*Node{l.LB3, l.LB4} {
		run(t, n, "ip", "addr", "add", "192.168.77.100/24", "dev", "eth0")
		check(t, n.WriteFile(StatusPath, "master\n", 0o644))
		Eventually(t, 5*time.Second, "seen as a master with the address", func() (ok bool, _ string) {
			_, ok = w.Last(n, func(c Claim) bool { return c == Claim{true, true, "master"} })
			return ok, fmt.Sprint(w.Changes())
		})
	}
	check(t, l.LB4.PowerOff())
	Eventually(t, 5*time.Second, "seen without power", func() (ok bool, _ string) {
		_, ok = w.Last(l.LB4, func(c Claim) bool { return c == Claim{} })
		return ok, fmt.Sprint(w.Changes())
	})
	w.Stop()
	lb4, off := w.Last(l.LB4, func(c Claim) bool { return c.Address })
	if off {
		t.Error("lb4 has the address without power")
	}
	if two := w.TwoHolders(begin); two == 0 || two > time.Since(lb4) || w.TwoMasters(begin) == 0 {
		t.Errorf("two holders for %v, two masters for %v: %v", two, w.TwoMasters(begin), w.Changes())
	}
	if none := w.NoHolder(lb4); none != 0 {
		t.Errorf("no holder for %v, although lb3 was one", none)
	}
}

func TestCapture(t *testing.T) {
	t.Parallel()
	l := Test(t, Options{})
	sent, err := l.Capture(l.LB1, Sent, ARP)
	check(t, err)
	delivered, err := l.Capture(l.Client, Delivered, ICMP)
	check(t, err)
	run(t, l.LB1, "ip", "neigh", "flush", "dev", "eth0")
	run(t, l.LB1, "ping", "-c1", "-W10", l.Client.Addr(0).String())
	packets, err := sent.Stop()
	check(t, err)
	i := slices.IndexFunc(packets, func(p Packet) bool { m, _ := p.ARP(); return m.Request && m.Target == l.Client.Addr(0) })
	if i < 0 {
		t.Fatalf("no request for the client in %v", packets)
	}
	m, _ := packets[i].ARP()
	if m.Sender != l.LB1.Addr(0) || m.SenderMAC.String() != "02:00:00:00:77:0b" || m.To.String() != "ff:ff:ff:ff:ff:ff" ||
		m.Gratuitous() || packets[i].Node != "lb1" {
		t.Errorf("%+v from %s", m, packets[i].Node)
	}
	echoes, err := delivered.Stop()
	check(t, err)
	if len(echoes) != 1 {
		t.Fatalf("%d packets, want the one request", len(echoes))
	}
	ip, ok := echoes[0].IPv4()
	if !ok || ip.Source != l.LB1.Addr(0) || ip.Destination != l.Client.Addr(0) || ip.TTL != 64 || ip.Protocol != 1 ||
		len(ip.Payload) != 64 || internetChecksum(ip.Payload) != 0 {
		t.Errorf("%+v", ip)
	}
	var file bytes.Buffer
	check(t, WritePcap(&file, packets))
	if size := binary.LittleEndian.Uint32(file.Bytes()[24+8:]); int(size) != len(packets[0].Frame) {
		t.Errorf("the file says %d bytes, want %d", size, len(packets[0].Frame))
	}
}

func TestDaemon(t *testing.T) {
	t.Parallel()
	l := Test(t, Options{})
	d, err := l.LB1.Start(DaemonSpec{
		Name: "spin", Restart: true, Env: []string{"WORD=hello"},
		Args: []string{"sh", "-c", "echo $WORD; while :; do :; done"},
	})
	check(t, err)
	Eventually(t, 5*time.Second, "processor time", func() (bool, string) {
		cpu, err := d.CPU()
		return cpu > 10*time.Millisecond, fmt.Sprint(cpu, err)
	})
	if pss, err := d.PSS(); err != nil || pss < 100<<10 || pss > 10<<20 {
		t.Errorf("PSS of a shell: %d, %v", pss, err)
	}
	pid := d.PID()
	check(t, d.Signal(unix.SIGKILL))
	Eventually(t, 5*time.Second, "a restart", func() (bool, string) {
		return d.Starts() == 2 && d.PID() != pid && d.Log() == "hello\nhello\n", fmt.Sprint(d.Starts(), " starts, ", d.Log())
	})
	if exits := d.Exits(); len(exits) != 1 || exits[0].State.String() != "signal: killed" {
		t.Errorf("exits: %v", exits)
	}
	check(t, d.Stop())
	if d.Starts() != 2 || d.PID() != 0 {
		t.Errorf("after Stop: %d starts, process %d", d.Starts(), d.PID())
	}
	// What cannot run is given up.
	d, err = l.LB1.Start(DaemonSpec{Args: []string{"false"}, Restart: true})
	check(t, err)
	select {
	case <-d.Done():
	case <-time.After(5 * time.Second):
		t.Errorf("still at it after %d starts", d.Starts())
	}
	if _, err := l.LB1.Start(DaemonSpec{Args: []string{"no-such-program"}}); err == nil {
		t.Error("a program that does not exist was started")
	}
}

func TestSkudonet(t *testing.T) {
	t.Parallel()
	l := Test(t, Options{})
	skudonet := func(verb string) string { t.Helper(); return run(t, l.LB1, "/etc/init.d/skudonet", verb) }
	addresses := func() string { t.Helper(); return run(t, l.LB1, "ip", "addr", "show", "dev", "eth0") }
	global := func() unix.Stat_t {
		t.Helper()
		var s unix.Stat_t
		check(t, unix.Stat(l.LB1.Root(TreePath+"/global.conf"), &s))
		return s
	}
	const virtual = "inet 192.168.77.100/24 brd 192.168.77.255 scope global secondary noprefixroute eth0:1"
	before, text := global(), run(t, l.LB1, "cat", TreePath+"/global.conf")
	skudonet("start")
	skudonet("start")
	if got := addresses(); strings.Count(got, virtual) != 1 {
		t.Errorf("no %q after start in:\n%s", virtual, got)
	}
	started := global()
	if started.Ino == before.Ino {
		t.Error("start did not replace global.conf")
	}
	daemon := run(t, l.LB1, "cat", "/run/nftlb.pid")
	run(t, l.LB1, "kill", "-0", daemon)
	check(t, l.LB1.WriteInterface("eth0:2", netip.MustParseAddr("192.168.77.101"), false))
	skudonet("stop")
	skudonet("stop")
	if got := addresses(); strings.Contains(got, "192.168.77.100") || !strings.Contains(got, "192.168.77.11/24") {
		t.Errorf("after stop:\n%s", got)
	}
	if stopped := global(); stopped.Ino != started.Ino || stopped.Mtim == started.Mtim {
		t.Error("stop did not write global.conf in place")
	}
	if got := run(t, l.LB1, "cat", TreePath+"/global.conf"); got != text {
		t.Errorf("global.conf became\n%s", got)
	}
	if _, err := l.LB1.Run("kill", "-0", daemon); err == nil {
		t.Error("stop left the daemon")
	}
	check(t, l.LB1.WriteFile("/etc/default/skudonet-stub", "FAIL=start\n", 0o644))
	skudonet("start")
	if got := addresses(); strings.Contains(got, virtual) {
		t.Error("FAIL=start started")
	}
	check(t, l.LB1.WriteFile("/etc/default/skudonet-stub", "", 0o644))
	check(t, l.LB1.Cut())
	skudonet("start")
	check(t, l.LB1.Heal())
	if got := addresses(); strings.Contains(got, "state UP") {
		t.Errorf("started without carrier, the link should stay down:\n%s", got)
	}
}

func TestTerminal(t *testing.T) {
	t.Parallel()
	l := Test(t, Options{})
	term, err := l.LB2.Terminal("bash", "--norc")
	check(t, err)
	for _, step := range [][2]string{{"PS1='\\u@\\h> '", "root@lb2> "}, {"tty; echo $((6*7))", "42"}} {
		check(t, term.Type(step[0]))
		if _, err := term.Expect(5*time.Second, step[1]); err != nil {
			t.Fatal(err)
		}
	}
	if !strings.Contains(term.Screen(), "/dev/pts/0") {
		t.Errorf("the shell has no terminal: %q", term.Screen())
	}
	term.Close()
	term.Close()
}

func TestSyslog(t *testing.T) {
	t.Parallel()
	l := Test(t, Options{})
	log, err := l.LB1.Syslog()
	check(t, err)
	run(t, l.LB1, "logger", "-t", "somebody", "something")
	Eventually(t, 5*time.Second, "the message", func() (bool, string) {
		lines := log.Lines()
		return len(lines) == 1 && strings.HasSuffix(lines[0], "somebody: something"), fmt.Sprint(lines)
	})
	if _, err := os.Stat(l.LB2.Root("/dev/log")); err == nil {
		t.Error("lb2 has the log of lb1")
	}
	log.Close()
	if _, err := os.Stat(l.LB1.Root("/dev/log")); err == nil {
		t.Error("closed, and still there")
	}
}

func TestConfigure(t *testing.T) {
	t.Parallel()
	l := Test(t, Options{Config: map[string]string{"dead_ratio": "2"}})
	check(t, l.LB2.Configure(map[string]string{"password": `a"b'c$d`, "exclude": Omit, "advert_interval": "0.1"}))
	got, err := l.LB2.ReadFile(ConfigPath)
	check(t, err)
	var lines []string
	for line := range strings.Lines(got) {
		if !strings.HasPrefix(line, "#") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	want := []string{`$interface="eth0";`, `$local_ip="192.168.77.12";`, `$remote_ip="192.168.77.11";`,
		`$password='a"b\'c$d';`, `$cluster_id="1";`, `$cluster_ip="192.168.77.100";`,
		`$advert_interval="0.1";`, `$dead_ratio="2";`}
	if !slices.Equal(lines, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
	}
	if info, err := os.Stat(l.LB2.Root(ConfigPath)); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info, err)
	}
}

func TestCommandOutside(t *testing.T) {
	t.Parallel()
	l := Test(t, Options{})
	if err := l.LB1.Command(context.Background(), "true").Cmd.Run(); err == nil {
		t.Error("a command for lb1 ran on the host")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := l.LB1.Command(ctx, "sleep", "infinity")
	check(t, cmd.Start())
	cancel()
	if err := cmd.Wait(); err == nil {
		t.Error("sleep infinity ended")
	}
	out, err := l.LB1.Command(context.Background(), "sh", "-c", "echo $HOME $$; pwd; echo oops >&2; exit 3").Output()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || string(exit.Stderr) != "oops\n" {
		t.Errorf("%v", err)
	}
	fields := strings.Fields(string(out))
	if len(fields) != 3 || fields[0] != "/root" || fields[2] != "/root" {
		t.Errorf("%q", fields)
	}
	if pid, err := strconv.Atoi(fields[1]); err != nil || pid > 100 {
		t.Errorf("process %s, want one of the machine's few", fields[1])
	}
}

func BenchmarkLab(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("namespaces need root")
	}
	for b.Loop() {
		l, err := New(Options{})
		if err != nil {
			b.Fatal(err)
		}
		if err := l.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
