package keepalived

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/test/lab"
)

const key = "hex:000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"

// signs skips a test where keepalived knows no auth_hmac of the form that is spoken here.
func signs(t *testing.T) {
	t.Helper()
	out, err := exec.Command(program, "--version").CombinedOutput()
	var major, minor, patch int
	if _, scanned := fmt.Sscanf(string(out), "Keepalived v%d.%d.%d", &major, &minor, &patch); err != nil || scanned != nil {
		t.Fatalf("%s --version: %v, %v:\n%s", program, err, scanned, out)
	}
	if major*10000+minor*100+patch < 20402 {
		t.Skipf("keepalived %d.%d.%d signs nothing, 2.4.2 and later do: KEEPALIVED=/path/of/one runs this", major, minor, patch)
	}
}

// introduce has a keepalived that returns be known to the kernel of its peer, as ours sees to itself.
func (p *pair) introduce(n *lab.Node) {
	p.t.Helper()
	if n == p.their && p.unicast {
		_, err := n.Run("ping", "-c", "1", p.addr(p.our).String())
		p.check(err)
	}
}

// With one key both obey each other as they do unsigned, and a keepalived with another key is obeyed by nobody.
func TestSigned(t *testing.T) {
	signs(t)
	hmac := []string{"key 1 " + key, "active_key 1", "anti_replay monotonic"}
	for name, o := range map[string]options{
		"multicast":         {},
		"each second":       {every: time.Second}, // so that keepalived's skew time is longer than our pauses between goodbyes
		"unicast over IPv6": {families: lab.IPv6, unicast: true, oursFirst: true},
	} {
		t.Run(name, func(t *testing.T) {
			o.ours, o.theirs = keys{"password": key}, theirs{hmac: hmac}
			p := newPair(t, o)
			began := time.Now()
			for _, first := range []*lab.Node{p.our, p.their} {
				second := p.other(first)
				p.start(first)
				p.holder(first)
				p.start(second)
				p.stays(first)
				probe := p.probe()
				t.Logf("%s, which is master, stops", first.Name)
				since := time.Now()
				p.stop(first)
				p.holder(second)
				p.outage(probe, since, p.skew(second))
				p.start(first)
				p.stays(second)
				t.Log("either loses its power as master, and returns before its stored floor is over")
				for _, master := range []*lab.Node{second, first} {
					successor := p.other(master)
					since = time.Now()
					p.check(master.PowerOff())
					p.holder(successor)
					p.outage(probe, since, p.down(successor))
					p.check(master.PowerOn())
					p.introduce(master)
					p.start(master)
					p.stays(successor)
				}
				probe.Stop()
				p.stop(first)
				p.stop(second)
			}
			p.neverTwo(began, time.Second+slack)

			t.Log("a hand-over by the admin")
			p.start(p.our)
			p.holder(p.our)
			p.start(p.their)
			p.stays(p.our)
			probe := p.probe()
			since := time.Now()
			p.check(p.vrrpd.Signal(unix.SIGUSR2))
			p.holder(p.their)
			p.outage(probe, since, slack)
			p.stays(p.their)
			if log := p.vrrpd.Log(); strings.Contains(log, "refused an advertisement") {
				t.Errorf("an advert of keepalived was refused:\n%s", log)
			}
			if r := p.report(); !r.Signed || !r.Peer.Verified {
				t.Errorf("signed: %v, verified: %v", r.Signed, r.Peer.Verified)
			}

			t.Log("another key there")
			p.stop(p.their)
			p.holder(p.our)
			p.configure(theirs{priority: 200, preempt: true, every: p.every, hmac: []string{"key 1 " + key[:len(key)-2] + "ff", "active_key 1", "anti_replay monotonic"}})
			p.start(p.their)
			p.logged("refused an advertisement from")
			<-time.After(p.down(p.our))
			if !p.holds(p.our) {
				t.Error("a keepalived with another key took the address of the master")
			}
		})
	}
}
