// Package neighbours tests the election beside programs that others wrote, as
// Debian ships them: in the lab, with real sockets, and a client that probes the
// address. What is asserted is who has the address over time, what the client saw,
// and for how long two had it.
package neighbours

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/carp"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
	"github.com/skudonet/skudonet-ce-cluster/test/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.RunTests(m, 6)) }

const (
	// limit is how long a test waits for something that takes no time, or one of ucarp's failovers.
	limit = 30 * time.Second
	// slack is what a busy host may add to a bound that a protocol gives.
	slack = 700 * time.Millisecond

	hooks   = "/usr/local/skudonet/app/ucarp/sbin/skudonet-ce-cluster-"
	secrets = "/etc/ucarp.password"

	// Ours: the down interval with CARP's defaults, and how long a node waits that has heard nobody.
	ourDown  = 3500 * time.Millisecond
	ourFirst = 13600 * time.Millisecond
	// What ucarp needs to react to a packet: it reads one a second from its capture.
	ucarpLag = 1200 * time.Millisecond
	// And until it has taken over from a dead master: 3 s after it noticed the last advert, at its next look at the clock.
	ucarpDown = 3*time.Second + ucarpLag + 2*time.Second
	// Longer than any of the two takes to miss the other.
	silence = 5 * time.Second
)

type keys = map[string]string

// pair is two nodes, with whatever runs on them.
type pair struct {
	*lab.Lab
	t       *testing.T
	watch   *lab.Watch
	daemons map[*lab.Node]*lab.Daemon
	ucarp   []string // options of its own
	script  string   // what ucarp's up script does first
	moved   map[*lab.Node]netip.Addr
	down    time.Duration
	every   time.Duration
}

func newPair(t *testing.T, changes keys, ucarp ...string) *pair {
	t.Helper()
	t.Parallel()
	if _, err := exec.LookPath("ucarp"); err != nil {
		t.Fatal("test/install-deps check installs ucarp: ", err)
	}
	l := lab.Test(t, lab.Options{Config: changes})
	p := &pair{Lab: l, t: t, watch: l.Watch(lab.ClusterIP), daemons: map[*lab.Node]*lab.Daemon{}, ucarp: ucarp, down: 3 * time.Second, every: time.Second}
	return p
}

func (p *pair) check(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *pair) run(n *lab.Node, name string, args ...string) string {
	p.t.Helper()
	out, err := n.Run(name, args...)
	if err != nil {
		p.t.Fatalf("%s: %s %v: %v\n%s", n.Name, name, args, err, out)
	}
	return strings.TrimSpace(out)
}

func (p *pair) other(n *lab.Node) *lab.Node {
	if n == p.LB1 {
		return p.LB2
	}
	return p.LB1
}

// addr is the node's own address, and what the adverts come from.
func (p *pair) addr(n *lab.Node) netip.Addr {
	if a, ok := p.moved[n]; ok {
		return a
	}
	return n.Addr(0)
}

// startUcarp starts it as version 2.0 does, which has an address and a status file brought by its scripts.
func (p *pair) startUcarp(n *lab.Node) {
	p.t.Helper()
	p.forgetStatus(n)
	p.check(n.WriteFile(secrets, lab.Password+"\n", 0o600))
	p.check(n.WriteFile(hooks+"start", fmt.Sprintf("#!/bin/sh\n%s\nip address add \"$2/24\" dev \"$1\"\necho master > %s.new; mv %[2]s.new %[2]s\n", p.script, lab.StatusPath), 0o755))
	p.check(n.WriteFile(hooks+"stop", fmt.Sprintf("#!/bin/sh\nip address del \"$2/24\" dev \"$1\" 2>/dev/null\necho backup > %s.new; mv %[1]s.new %[1]s\n", lab.StatusPath), 0o755))
	args := append([]string{"nice", "-n", "-15", "ucarp", "--interface=eth0", "--srcip=" + p.addr(n).String(), "--vhid=1", "--passfile=" + secrets,
		"--addr=" + lab.ClusterIP.String(), "--upscript=" + hooks + "start", "--downscript=" + hooks + "stop", "-r", "3"}, p.ucarp...)
	d, err := n.Start(lab.DaemonSpec{Name: "ucarp", Args: args})
	p.check(err)
	p.daemons[n] = d
	p.backup(n) // its down script runs first of all
}

// retire ends ucarp as the start of the upgraded service does.
func (p *pair) retire(n *lab.Node) {
	p.t.Helper()
	p.run(n, "skd-hooks", "retire")
	<-p.daemons[n].Done()
}

// startOurs starts the upgraded service.
func (p *pair) startOurs(n *lab.Node) {
	p.t.Helper()
	for _, event := range []string{"start", "stop", "advertisement"} {
		p.check(n.WriteFile(hooks+event, "#!/bin/sh\n", 0o755))
	}
	word := n.Status()
	p.eventually("the watch with what is there", func() (bool, string) {
		_, now := p.watch.Last(n, func(c lab.Claim) bool { return c.Status == word })
		return now, p.roles()
	})
	d, err := n.Start(lab.DaemonSpec{Name: "skd-vrrpd", Args: []string{"nice", "-n", "-15", "skd-vrrpd"}, Restart: true})
	p.check(err)
	p.daemons[n] = d
	p.backup(n) // whatever becomes of it; and whoever ended before has removed the status file
}

func (p *pair) upgrade(n *lab.Node) {
	p.t.Helper()
	p.retire(n)
	p.startOurs(n)
}

// boot powers a node on, without the status file of its last life.
func (p *pair) boot(n *lab.Node) {
	p.t.Helper()
	p.check(n.PowerOn())
	p.forgetStatus(n)
}

// forgetStatus removes the status file, and returns when the watch has seen that, so that whoever waits for a word does
// not get an old one.
func (p *pair) forgetStatus(n *lab.Node) {
	p.t.Helper()
	p.run(n, "rm", "-f", lab.StatusPath)
	p.eventually("no status of "+n.Name, func() (bool, string) {
		_, now := p.watch.Last(n, func(c lab.Claim) bool { return c.Power && c.Status == "" })
		return now, p.roles()
	})
}

func (p *pair) eventually(what string, look func() (bool, string)) {
	p.t.Helper()
	lab.Eventually(p.t, limit, what, look)
}

func (p *pair) roles() string { return fmt.Sprintf("%q/%q", p.LB1.Status(), p.LB2.Status()) }

// master waits until this node is master with the address, and the other has neither that nor a status of master.
func (p *pair) master(n *lab.Node) {
	p.t.Helper()
	p.eventually(n.Name+" as the only master", func() (bool, string) {
		_, one := p.watch.Last(n, func(c lab.Claim) bool { return c.Address && c.Status == "master" })
		_, other := p.watch.Last(p.other(n), func(c lab.Claim) bool { return !c.Address && c.Status != "master" })
		return one && other, p.roles()
	})
}

func (p *pair) backup(n *lab.Node) {
	p.t.Helper()
	p.eventually(n.Name+" as backup", func() (bool, string) {
		_, now := p.watch.Last(n, func(c lab.Claim) bool { return c.Status == "backup" })
		return now, p.roles()
	})
}

// stays lets time pass in which nothing may change.
func (p *pair) stays(n *lab.Node) {
	p.t.Helper()
	p.master(n)
	since := time.Now()
	<-time.After(silence)
	for _, c := range p.watch.Changes() {
		if c.At.After(since) {
			p.excuse()
			p.t.Errorf("%s changed %v later: address %v, status %q", c.Node, c.At.Sub(since).Round(time.Millisecond), c.Address, c.Status)
		}
	}
	p.master(n)
}

// excuse skips a test that is about to fail, if the host stood still for so long that a node could miss its master: an advert may have
// been due just before.
func (p *pair) excuse() {
	p.t.Helper()
	p.watch.Excuse(p.t, p.down-p.every)
}

// neverTwo fails the test if since then both nodes had the address for longer.
func (p *pair) neverTwo(since time.Time, atMost time.Duration) {
	p.t.Helper()
	if d := p.watch.TwoHolders(since); d > atMost {
		p.excuse()
		p.t.Errorf("both nodes had the address for %v, want at most %v", d, atMost)
	}
}

func (p *pair) probe() *lab.Probe {
	p.t.Helper()
	probe, err := p.Client.ProbeAddress(lab.ClusterIP)
	p.check(err)
	p.eventually("answers from the address", func() (bool, string) { return probe.Answering(), p.roles() })
	return probe
}

// outage waits for answers from the address, and fails the test if the client saw it silent for longer since then.
func (p *pair) outage(probe *lab.Probe, since time.Time, atMost time.Duration) time.Duration {
	p.t.Helper()
	p.eventually("answers from the address", func() (bool, string) { return probe.Answering(), p.roles() })
	r := probe.Report()
	gap := r.LongestSince(since)
	if r.Err != nil || gap.Length() > atMost+slack+r.Stall {
		p.t.Errorf("outage of %v, want at most %v and %v for a busy host; %v", gap, atMost, slack+r.Stall, r.Err)
	}
	return gap.Length()
}

func (p *pair) capture() *lab.Capture {
	p.t.Helper()
	c, err := p.Capture(nil, lab.Sent, lab.VRRP)
	p.check(err)
	return c
}

// carps are the adverts of CARP that a node has sent since then.
func carps(c *lab.Capture, n *lab.Node, since time.Time) []lab.Packet {
	return c.Select(func(p lab.Packet) bool {
		ip, ok := p.IPv4()
		return ok && p.Node == n.Name && p.Time.After(since) && carp.Looks(ip.Payload)
	})
}

// vrrps are those of VRRPv3.
func vrrps(c *lab.Capture, n *lab.Node, since time.Time) []lab.Packet {
	return c.Select(func(p lab.Packet) bool {
		ip, ok := p.IPv4()
		return ok && p.Node == n.Name && p.Time.After(since) && len(ip.Payload) > 8 && ip.Payload[0] == 0x31
	})
}

func (p *pair) logged(n *lab.Node, words string) {
	p.t.Helper()
	p.eventually(fmt.Sprintf("%q in the log of %s", words, n.Name), func() (bool, string) {
		return strings.Contains(p.daemons[n].Log(), words), p.daemons[n].Log()
	})
}

func (p *pair) saidOnce(n *lab.Node, words string) {
	p.t.Helper()
	if times := strings.Count(p.daemons[n].Log(), words); times != 1 {
		p.t.Errorf("%s has logged %d times, want once: %s\n%s", n.Name, times, words, p.daemons[n].Log())
	}
}

// report is what the node's vrrpd.json says, asked for now.
func (p *pair) report(n *lab.Node) status.Daemon {
	p.t.Helper()
	read := func() status.Daemon {
		d, _ := status.ReadDaemon(n.Root(path.Join(status.RunDir, status.DaemonFile)))
		return d
	}
	before := read().Updated
	p.check(p.daemons[n].Signal(unix.SIGUSR1))
	p.eventually("a new vrrpd.json on "+n.Name, func() (bool, string) {
		now := read().Updated
		return now.Boot > before.Boot, now.Time.String()
	})
	return read()
}

// replay has somebody on a machine send frames once more, as they are but for the MAC address, by which the switch
// would look for the true sender there.
func (p *pair) replay(n *lab.Node, frames ...[]byte) {
	p.t.Helper()
	done := make(chan error, 1)
	send := func() error {
		ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", n.PID()))
		if err != nil {
			return err
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		card, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		for _, frame := range frames {
			frame = slices.Concat(frame[:6], card.HardwareAddr, frame[12:])
			if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: card.Index}); err != nil {
				return err
			}
		}
		return nil
	}
	// The thread ends in the machine's network; the main one could not.
	var onThread func()
	onThread = func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread()
			go onThread()
			<-time.After(time.Millisecond)
			return
		}
		done <- send()
	}
	go onThread()
	p.check(<-done)
}

// retimed is a frame with an advert of CARP as somebody without the password can change it.
func retimed(frame []byte, base, skew byte) []byte {
	b := append([]byte(nil), frame...)
	message := b[34:]
	message[2], message[5], message[6], message[7] = skew, base, 0, 0
	var sum uint32
	for i := 0; i < carp.Len; i += 2 {
		sum += uint32(message[i])<<8 | uint32(message[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	message[6], message[7] = byte(^sum>>8), byte(^sum)
	return b
}
