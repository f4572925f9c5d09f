package neighbours

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/carp"
	"github.com/skudonet/skudonet-ce-cluster/test/lab"
)

var auto, onlyCARP = keys{"protocol": "auto"}, keys{"protocol": "carp"}

// A pair of version 2.0 is upgraded node by node while a client probes. What that costs is compared with what the same
// pair cost in an ordinary failover.
func TestLiveUpgrade(t *testing.T) {
	t.Parallel()
	t.Run("as version 2.0 runs it", func(t *testing.T) { newPair(t, auto).liveUpgrade(t) })
	t.Run("ucarp preempts", func(t *testing.T) { newPair(t, auto, "--preempt").liveUpgrade(t) })
}

func (p *pair) liveUpgrade(t *testing.T) {
	p.startUcarp(p.LB1)
	p.master(p.LB1)
	p.startUcarp(p.LB2)
	probe := p.probe()

	t.Log("an ordinary failover of ucarp")
	<-time.After(2 * time.Second)
	cut := time.Now()
	p.check(p.LB1.PowerOff())
	p.master(p.LB2)
	ordinary := p.outage(probe, cut, ucarpDown)
	p.boot(p.LB1)
	p.startUcarp(p.LB1)
	p.stays(p.LB2)
	probe.Stop()

	probe = p.probe()
	since := time.Now()
	wire := p.capture()
	t.Log("the backup is upgraded, and looked at")
	p.upgrade(p.LB1)
	p.logged(p.LB1, "192.168.77.12 is ucarp: speaking CARP beside VRRPv3 until it is upgraded")
	p.stays(p.LB2)
	if got := p.report(p.LB1); got.State != "backup" || got.Speaks != "vrrpv3 and carp" || got.Peer.Spoke != "carp" || !got.Peer.Verified || len(got.Faults) > 0 || len(got.Drops) > 0 ||
		len(got.Warnings) > 0 {
		t.Errorf("the upgraded backup says %+v", got)
	}

	t.Log("the master is upgraded: the other one takes over")
	p.upgrade(p.LB2)
	p.stays(p.LB1)
	p.backup(p.LB2)
	const over = "CARP is neither spoken nor heard any more, for good; now change the password: CARP let others test guesses"
	for _, n := range p.Nodes() {
		p.logged(n, over)
		p.saidOnce(n, over)
		if warned := p.report(n).Warnings; len(warned) != 1 || !strings.HasPrefix(warned[0].Text, "CARP is over") {
			t.Errorf("what %s warns of, as something is left to do: %v", n.Name, warned)
		}
	}
	now := time.Now()
	p.stays(p.LB1)
	if n := len(carps(wire, p.LB1, now)) + len(carps(wire, p.LB2, now)); n > 0 {
		t.Errorf("%d adverts of CARP after the end of the bridge", n)
	}
	if n := len(vrrps(wire, p.LB1, now)); n < 3 {
		t.Errorf("%d adverts of VRRPv3", n)
	}

	t.Log("and they hand over to each other as any two")
	p.check(p.daemons[p.LB1].Signal(unix.SIGUSR2))
	p.master(p.LB2)
	p.neverTwo(since, slack)
	r := probe.Stop()
	var total time.Duration
	for _, g := range r.Gaps {
		total += g.Length()
	}
	t.Logf("ucarp's own failover: %v; the whole upgrade: %v, in %v", ordinary, total, r.Gaps)
	if total > ordinary+r.Stall {
		t.Errorf("the upgrade cost %v, an ordinary failover of ucarp %v", total, ordinary)
	}
}

// The other way round: the master first, so that its ucarp hands over to the other one.
func TestLiveUpgradeOfTheMasterFirst(t *testing.T) {
	p := newPair(t, auto)
	p.startUcarp(p.LB1)
	p.master(p.LB1)
	p.startUcarp(p.LB2)
	probe, since := p.probe(), time.Now()
	<-time.After(2 * time.Second)

	t.Log("ucarp takes over from ucarp, because retire says goodbye for it")
	p.upgrade(p.LB1)
	p.master(p.LB2)
	p.outage(probe, since, 500*time.Millisecond+ucarpLag)
	p.backup(p.LB1)
	p.stays(p.LB2)

	t.Log("and we from ucarp")
	now := time.Now()
	p.upgrade(p.LB2)
	p.stays(p.LB1)
	p.outage(probe, now, 500*time.Millisecond)
	p.logged(p.LB2, "now change the password")
	p.neverTwo(since, 0)
	p.stays(p.LB1)
}

// What may happen to either node while the other one is still ucarp.
func TestBeside(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name  string
		keys  keys
		ucarp []string
		ours  int // lb1 or lb2: CARP's ties go to lb1
	}{
		{"auto", auto, nil, 2},
		{"auto, ucarp preempts", auto, []string{"--preempt"}, 1},
		{"carp", onlyCARP, nil, 1},
		{"carp, ucarp preempts", onlyCARP, []string{"--preempt"}, 2},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := newPair(t, row.keys, row.ucarp...)
			ours, old := p.LB1, p.LB2
			if row.ours == 2 {
				ours, old = old, ours
			}
			p.startUcarp(old)
			p.master(old)
			p.startOurs(ours)
			probe := p.probe()
			since := time.Now()

			t.Log("first backup: our restarts, a crash and a power cut go unnoticed")
			p.stays(old)
			p.check(p.daemons[ours].Stop())
			p.startOurs(ours)
			p.check(p.daemons[ours].Signal(unix.SIGKILL))
			p.stays(old)
			p.check(ours.PowerOff())
			p.boot(ours)
			p.startOurs(ours)
			p.stays(old)
			p.neverTwo(since, 0)
			p.outage(probe, since, 0)

			t.Log("ucarp loses its power: we take over, and it returns as backup")
			since = time.Now()
			p.check(old.PowerOff())
			p.master(ours)
			p.outage(probe, since, ourDown)
			since = time.Now()
			p.boot(old)
			p.startUcarp(old)
			p.stays(ours)

			t.Log("first master: its restart and a crash of ours go unnoticed")
			p.retire(old)
			p.startUcarp(old)
			p.stays(ours)
			p.check(p.daemons[ours].Signal(unix.SIGKILL))
			p.stays(ours)
			p.check(p.daemons[ours].Signal(unix.SIGHUP))
			p.stays(ours)
			p.neverTwo(since, 0)
			p.outage(probe, since, 0)

			t.Log("a hand-over: it has the address before we let it go")
			since = time.Now()
			if out, want := p.run(ours, "skd-vrrpd", "handover"), "this node is backup now: handed over to "+old.Addr(0).String(); out != want {
				t.Errorf("skd-vrrpd handover says %q, want %q", out, want)
			}
			p.master(old)
			p.outage(probe, since, 0)
			p.neverTwo(since, ucarpLag)
			p.stays(old)

			t.Log("ucarp is retired as a master: we take over at once, but for the half second in which it may start another script")
			since = time.Now()
			p.retire(old)
			p.master(ours)
			p.outage(probe, since, 500*time.Millisecond)
			p.startUcarp(old)
			p.stays(ours)
			p.neverTwo(since, 0)

			t.Log("we stop: it takes over at once")
			since = time.Now()
			p.check(p.daemons[ours].Stop())
			p.master(old)
			p.outage(probe, since, 0)
			p.neverTwo(since, ucarpLag)
			since = time.Now()
			p.startOurs(ours)
			p.stays(old)
			p.neverTwo(since, 0)

			t.Log("both lose their power, ours returns first")
			p.check(old.PowerOff())
			p.check(ours.PowerOff())
			p.boot(ours)
			p.startOurs(ours)
			p.master(ours)
			since = time.Now()
			p.boot(old)
			p.startUcarp(old)
			p.stays(ours)
			p.neverTwo(since, 0)

			t.Log("we lose it: ucarp takes over by its own timer, and we return as backup")
			since = time.Now()
			p.check(ours.PowerOff())
			p.master(old)
			p.outage(probe, since, ucarpDown)
			since = time.Now()
			p.boot(ours)
			p.startOurs(ours)
			p.stays(old)
			p.neverTwo(since, 0)
		})
	}
}

// Two that did not hear each other are one again, and agree which of them stays: that with the lower last octet.
func TestSplitAndHeal(t *testing.T) {
	t.Parallel()
	for _, ours := range []int{1, 2} {
		t.Run(fmt.Sprintf("ours is lb%d", ours), func(t *testing.T) {
			p := newPair(t, auto)
			if ours == 1 {
				p.startUcarp(p.LB2)
				p.master(p.LB2)
				p.startOurs(p.LB1)
			} else {
				p.startUcarp(p.LB1)
				p.master(p.LB1)
				p.startOurs(p.LB2)
			}
			p.splitAndHeal(ours == 2)
		})
	}
}

// splitAndHeal parts a pair of equal rank until both are master, and joins it again: lb1 wins. If we are on lb2, we say why.
func (p *pair) splitAndHeal(losing bool) {
	p.t.Helper()
	<-time.After(2 * time.Second)
	p.check(p.LB2.Isolate())
	p.eventually("two masters", func() (bool, string) {
		return p.LB1.Status() == "master" && p.LB2.Status() == "master", p.roles()
	})
	<-time.After(2 * time.Second)
	healed := time.Now()
	p.check(p.LB2.Heal())
	p.stays(p.LB1)
	// The winner's next advert, and what ucarp needs to notice it.
	p.neverTwo(healed, time.Second+ucarpLag+slack)
	if losing {
		p.logged(p.LB2, p.addr(p.LB1).String()+" has the same rank in CARP, and wins the tie by its last octet")
	}
	probe := p.probe()
	<-time.After(time.Second)
	if r := probe.Stop(); r.Sent-r.Answered > 5 {
		p.t.Errorf("after the heal %d of %d probes were lost", r.Sent-r.Answered, r.Sent)
	}
}

// A master that did not run for a while finds out that ucarp took over, before it says a word.
func TestStalledMaster(t *testing.T) {
	p := newPair(t, auto)
	p.startUcarp(p.LB2)
	p.master(p.LB2)
	p.startOurs(p.LB1)
	p.logged(p.LB1, "is ucarp")
	p.retire(p.LB2)
	p.startUcarp(p.LB2)
	p.stays(p.LB1)
	p.check(p.daemons[p.LB1].Signal(unix.SIGSTOP))
	p.eventually("ucarp as master", func() (bool, string) { return p.LB2.Status() == "master", p.roles() })
	<-time.After(2 * time.Second)
	wire, woken := p.capture(), time.Now()
	p.check(p.daemons[p.LB1].Signal(unix.SIGCONT))
	p.master(p.LB2)
	p.neverTwo(woken, slack) // the rival is in the socket already
	p.logged(p.LB1, "192.168.77.12 took over while this node did not run")
	probe := p.probe()
	p.stays(p.LB2)
	if r := probe.Stop(); r.Sent-r.Answered > 5 {
		t.Errorf("%d of %d probes were lost", r.Sent-r.Answered, r.Sent)
	}
	for _, c := range carps(wire, p.LB1, woken) {
		if ip, _ := c.IPv4(); ip.Payload[5] != 255 {
			t.Errorf("it advertised: %x", ip.Payload)
		}
	}
}

// A ucarp that was just promoted says nothing until its up script has returned, for seconds in version 2.0.
func TestStartBesideASlowUpScript(t *testing.T) {
	p := newPair(t, auto)
	p.script = "echo > /run/promoting; sleep 6"
	p.startUcarp(p.LB1)
	p.eventually("its promotion", func() (bool, string) { _, err := os.Stat(p.LB1.Root("/run/promoting")); return err == nil, "" })
	since := time.Now()
	p.startOurs(p.LB2)
	p.stays(p.LB1)
	<-time.After(ourFirst - silence)
	p.stays(p.LB1)
	p.neverTwo(since, 0)
}

// Nobody was there to be heard: a ucarp that starts later does not stay master beside us.
func TestUnknownPeer(t *testing.T) {
	p := newPair(t, auto)
	wire := p.capture()
	since := time.Now()
	p.startOurs(p.LB1)
	p.master(p.LB1)
	if n := len(carps(wire, p.LB1, since)); n > 0 {
		t.Errorf("%d adverts of CARP, and nobody there who speaks nothing else", n)
	}
	p.startUcarp(p.LB2)
	p.logged(p.LB1, "192.168.77.12 is ucarp")
	const became = "Switching to state: BACKUP"
	p.eventually("the second of ucarp's steps back, of which its start is the first", func() (bool, string) {
		return strings.Count(p.daemons[p.LB2].Log(), became) == 2, p.daemons[p.LB2].Log()
	})
	p.stays(p.LB1)
	// It hears us when it has said something itself.
	p.neverTwo(since, time.Second+ucarpLag+slack)
}

// After the end of the bridge, CARP is nothing: whoever recorded some cannot do anything with it.
func TestReplayAfterTheEnd(t *testing.T) {
	p := newPair(t, auto)
	wire := p.capture()
	p.startUcarp(p.LB1)
	p.master(p.LB1)
	p.startOurs(p.LB2)
	p.logged(p.LB2, "is ucarp")
	p.eventually("some adverts of ucarp", func() (bool, string) { return len(carps(wire, p.LB1, time.Time{})) > 5, "" })
	p.upgrade(p.LB1)
	p.master(p.LB2)
	for _, n := range p.Nodes() {
		p.logged(n, "now change the password")
	}
	var frames [][]byte
	for _, n := range p.Nodes() {
		for _, c := range carps(wire, n, time.Time{}) {
			frames = append(frames, c.Frame, retimed(c.Frame, 0, 1), retimed(c.Frame, 255, 255))
		}
	}
	if len(carps(wire, p.LB2, time.Time{})) == 0 {
		t.Error("we have not spoken CARP to a ucarp")
	}
	probe := p.probe()
	since := time.Now()
	for range 5 {
		p.replay(p.Client, frames...)
		<-time.After(700 * time.Millisecond)
	}
	p.stays(p.LB2)
	r := probe.Stop()
	if r.Sent-r.Answered > 5 {
		t.Errorf("%d of %d probes were lost", r.Sent-r.Answered, r.Sent)
	}
	p.neverTwo(since, 0)

	t.Log("nor does a restart make it listen again, nor a dead master seem alive")
	p.check(p.daemons[p.LB1].Stop())
	p.startOurs(p.LB1)
	p.eventually("adverts of the master", func() (bool, string) { r := p.report(p.LB1); return r.Received > 0, r.Reason })
	cut := time.Now()
	p.check(p.LB2.PowerOff())
	for p.LB1.Status() != "master" && time.Since(cut) < limit {
		p.replay(p.Client, frames...)
		<-time.After(100 * time.Millisecond)
	}
	if took := time.Since(cut); took > vrrpDown+2*time.Second { // if it obeyed any of that, it would not take over at all
		t.Errorf("took over after %v", took)
	}
	if n := len(carps(wire, p.LB1, since)) + len(carps(wire, p.LB2, since)); n > 0 {
		t.Errorf("%d adverts of CARP since", n)
	}
}

// A backup is silent, and the word by which it ends the bridge may be lost: then the replicator's connection ends it.
func TestTheEndOfTheBridgeBySSH(t *testing.T) {
	p := newPair(t, auto)
	p.check(p.ConnectSSH())
	wire := p.capture()
	p.startUcarp(p.LB1)
	p.master(p.LB1)
	p.startOurs(p.LB2)
	p.logged(p.LB2, "is ucarp")
	p.retire(p.LB1)
	p.check(p.LB1.Configure(keys{"protocol": "vrrp"})) // which has no bridge to end
	p.startOurs(p.LB1)
	p.stays(p.LB2)
	since := time.Now()
	p.eventually("CARP for a peer that needs it no more", func() (bool, string) { return len(carps(wire, p.LB2, since)) > 2, "" })
	_, err := p.LB2.Start(lab.DaemonSpec{Args: []string{"skd-inotify"}})
	p.check(err)
	p.logged(p.LB2, "192.168.77.11 answers over ssh as an upgraded node: CARP is neither spoken nor heard any more, for good")
	since = time.Now()
	p.stays(p.LB2)
	if n := len(carps(wire, p.LB2, since)); n > 0 {
		t.Errorf("%d adverts of CARP after the end of the bridge", n)
	}
}

// Others on the same wire: ignored, or reported once, and never obeyed.
func TestStrangers(t *testing.T) {
	p := newPair(t, auto)
	// The bridge is open, with a ucarp of our own; the machine of the client has those of others.
	p.startUcarp(p.LB1)
	p.master(p.LB1)
	p.startOurs(p.LB2)
	since := time.Now()
	for i, args := range [][]string{
		{"--vhid=1", "--pass=" + lab.Password, "--addr=192.168.77.100"},          // the same cluster, and none of its nodes
		{"--vhid=1", "--pass=another", "--addr=192.168.77.201", "--advskew=100"}, // another cluster with the same number
		{"--vhid=2", "--pass=" + lab.Password, "--addr=192.168.77.202"},
	} {
		_, err := p.Client.Start(lab.DaemonSpec{Name: fmt.Sprint("stranger-", i), Args: append([]string{"ucarp", "--interface=eth0",
			"--srcip=" + p.Client.Addr(0).String(), "--upscript=/bin/true", "--downscript=/bin/true", "--preempt", "--advbase=1"}, args...)})
		p.check(err)
	}
	const refused = "refused an advertisement from 192.168.77.50: it is not from $remote_ip"
	p.logged(p.LB2, refused)
	p.stays(p.LB1)
	p.saidOnce(p.LB2, refused)
	p.retire(p.LB1)
	p.startUcarp(p.LB1)
	p.stays(p.LB2)
	p.saidOnce(p.LB2, refused)
	p.neverTwo(since, 0)
}

// Version 2.0 can be set up to advertise over UDP, in a form that nobody has published.
func TestOverUDP(t *testing.T) {
	p := newPair(t, auto)
	since := time.Now()
	advert := `\x21\x01\x00\x07\x00\x01aa12345678abcdefghijklmnopqrst`
	_, err := p.LB1.Start(lab.DaemonSpec{Name: "udp", Args: []string{"bash", "-c",
		"while :; do printf '" + advert + "' > /dev/udp/192.168.77.12/3340; sleep 1; done"}})
	p.check(err)
	p.startOurs(p.LB2)
	const refused = "refused an advertisement from 192.168.77.11: it is CARP in UDP, which this program does not speak: upgrade both nodes in one sitting"
	p.logged(p.LB2, refused)
	<-time.After(ourFirst + ourDown)
	p.saidOnce(p.LB2, refused)
	p.saidOnce(p.LB2, "not becoming master while the peer 192.168.77.11 advertises what this node must not obey: it is CARP in UDP")
	if _, holds := p.watch.Last(p.LB2, func(c lab.Claim) bool { return c.Address }); holds || p.LB2.Status() != "backup" {
		t.Errorf("beside a master that it cannot hear, it is %q", p.LB2.Status())
	}
	p.neverTwo(since, 0)
}

// A ucarp with another password is neither obeyed nor fought.
func TestAnotherPassword(t *testing.T) {
	p := newPair(t, auto)
	p.startUcarp(p.LB1)
	p.master(p.LB1)
	p.check(p.LB2.Configure(keys{"protocol": "auto", "password": "another-password"}))
	since := time.Now()
	p.startOurs(p.LB2)
	const held = "not becoming master while the peer 192.168.77.11 advertises what this node must not obey: its CARP digest does not fit"
	p.logged(p.LB2, held)
	<-time.After(ourFirst)
	p.stays(p.LB1)
	p.saidOnce(p.LB2, held)
	p.neverTwo(since, 0)
}

// What is on the wire is what ucarp says, byte for byte, and what tcpdump and tshark understand.
func TestPackets(t *testing.T) {
	p := newPair(t, onlyCARP)
	wire := p.capture()
	p.startUcarp(p.LB1)
	p.master(p.LB1)
	p.startOurs(p.LB2)
	p.stays(p.LB1)
	p.retire(p.LB1)
	p.master(p.LB2)
	if out, err := p.LB2.Run("skd-vrrpd", "handover"); err == nil || !strings.Contains(out, "no successor within 10s, staying master") {
		t.Errorf("skd-vrrpd handover, without a peer: %v, %q", err, out)
	}
	p.stays(p.LB2)
	p.check(p.daemons[p.LB2].Stop())
	packets, err := wire.Stop()
	p.check(err)

	key, err := carp.NewKey(lab.Password, lab.ClusterIP)
	p.check(err)
	sent := map[string]int{}
	var last []byte
	for _, c := range packets {
		ip, ok := c.IPv4()
		if !ok {
			continue
		}
		var adv carp.Advertisement
		if err := adv.Unmarshal(ip.Payload); err != nil || key.Verify(ip.Payload) != nil {
			t.Fatalf("%s sent %x: %v, %v", c.Node, ip.Payload, err, key.Verify(ip.Payload))
		}
		if again := key.Append(nil, adv); !bytes.Equal(again, ip.Payload) {
			t.Errorf("%s sent %x, we would have written %x", c.Node, ip.Payload, again)
		}
		if ip.TTL != 255 || ip.Destination.String() != "224.0.0.18" || adv.VHID != 1 {
			t.Errorf("%s sent to %v with TTL %d, vhid %d", c.Node, ip.Destination, ip.TTL, adv.VHID)
		}
		sent[c.Node]++
		last = ip.Payload
	}
	if sent["lb1"] < 5 || sent["lb2"] < 3 {
		t.Errorf("adverts: %v", sent)
	}
	if last[2] != 255 || last[5] != 255 {
		t.Errorf("the last word of a stop is %x, want a goodbye", last)
	}
	decodedCARP(t, packets)
}
