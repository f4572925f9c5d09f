package neighbours

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/carp"
	"github.com/skudonet/skudonet-ce-cluster/test/lab"
)

// Whatever number and password a ucarp has that can be configured here as well, each of the two understands the other.
func TestOtherNumbersAndPasswords(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		vhid     uint8
		password string
	}{
		{255, "x"},
		{2, "nineteen bytes: é#"},
	} {
		t.Run(fmt.Sprintf("%d and %d bytes", row.vhid, len(row.password)), func(t *testing.T) {
			const passfile = "/etc/other.password"
			p := newPair(t, keys{"protocol": "auto", "cluster_id": fmt.Sprint(row.vhid), "password": row.password},
				fmt.Sprintf("--vhid=%d", row.vhid), "--passfile="+passfile)
			p.check(p.LB1.WriteFile(passfile, row.password+"\n", 0o600))
			wire := p.capture()
			p.startUcarp(p.LB1)
			p.master(p.LB1)
			p.startOurs(p.LB2)
			p.logged(p.LB2, "192.168.77.11 is ucarp")
			p.stays(p.LB1)
			p.retire(p.LB1)
			p.master(p.LB2)
			since := time.Now()
			p.startUcarp(p.LB1)
			p.stays(p.LB2)
			p.neverTwo(since, 0)

			packets, err := wire.Stop()
			p.check(err)
			key, err := carp.NewKey(row.password, lab.ClusterIP)
			p.check(err)
			sent := map[string]int{}
			for _, c := range packets {
				ip, ok := c.IPv4()
				if !ok || !carp.Looks(ip.Payload) {
					continue
				}
				var adv carp.Advertisement
				if err := adv.Unmarshal(ip.Payload); err != nil || adv.VHID != row.vhid {
					t.Fatalf("%s sent %x: vhid %d, %v", c.Node, ip.Payload, adv.VHID, err)
				}
				if again := key.Append(nil, adv); !bytes.Equal(again, ip.Payload) {
					t.Errorf("%s sent %x, we would have written %x", c.Node, ip.Payload, again)
				}
				sent[c.Node]++
			}
			if sent["lb1"] < 3 || sent["lb2"] < 3 {
				t.Errorf("adverts: %v", sent)
			}
		})
	}
}

// Each waits for as many adverts as it was told to, whatever the other one was told.
func TestDeadRatios(t *testing.T) {
	t.Parallel()
	for _, row := range []struct{ ours, ucarp int }{{10, 3}, {3, 10}} {
		t.Run(fmt.Sprintf("%d and ucarp's %d", row.ours, row.ucarp), func(t *testing.T) {
			p := newPair(t, keys{"protocol": "auto", "dead_ratio": fmt.Sprint(row.ours)}, fmt.Sprintf("--deadratio=%d", row.ucarp))
			p.startUcarp(p.LB1)
			p.master(p.LB1)
			p.startOurs(p.LB2)
			p.logged(p.LB2, "192.168.77.11 is ucarp")
			p.stays(p.LB1)
			probe := p.probe()

			dies := func(n *lab.Node, ratio int, late time.Duration) {
				t.Helper()
				since := time.Now()
				p.check(n.PowerOff())
				p.master(p.other(n))
				// The last advert was up to an interval ago.
				gap, least := p.outage(probe, since, time.Duration(ratio)*time.Second+late), time.Duration(ratio-1)*time.Second
				if gap < least {
					t.Errorf("a failover within %v, want %v at least", gap, least)
				}
			}
			dies(p.LB1, row.ours, ourDown-3*time.Second)
			p.boot(p.LB1)
			p.startUcarp(p.LB1)
			since := time.Now()
			p.stays(p.LB2)
			p.neverTwo(since, 0)
			dies(p.LB2, row.ucarp, ucarpDown-3*time.Second)
		})
	}
}

// The up script of version 2.0 started Skudonet, which takes seconds, before it put the address up; and ucarp says
// nothing until it has returned.
func TestHandOverToASlowUpScript(t *testing.T) {
	t.Parallel()
	master := func(t *testing.T, seconds int) *pair {
		p := newPair(t, auto)
		p.script = fmt.Sprintf("sleep %d", seconds)
		p.startOurs(p.LB1)
		p.master(p.LB1)
		p.startUcarp(p.LB2)
		p.logged(p.LB1, "192.168.77.12 is ucarp")
		p.eventually("ucarp stepping back", func() (bool, string) {
			log := p.daemons[p.LB2].Log()
			return strings.Count(log, "Switching to state: BACKUP") == 2, log
		})
		p.stays(p.LB1)
		return p
	}
	t.Run("in time", func(t *testing.T) {
		p := master(t, 3)
		probe, since := p.probe(), time.Now()
		if out, want := p.run(p.LB1, "skd-vrrpd", "handover"), "this node is backup now: handed over to 192.168.77.12"; out != want {
			t.Errorf("skd-vrrpd handover says %q, want %q", out, want)
		}
		p.master(p.LB2)
		p.stays(p.LB2)
		p.outage(probe, since, 0)
		p.neverTwo(since, ucarpLag+slack)
	})
	t.Run("too late", func(t *testing.T) {
		p := master(t, 14)
		probe, since := p.probe(), time.Now()
		if out, err := p.LB1.Run("skd-vrrpd", "handover"); err == nil || !strings.Contains(out, "no successor within 10s, staying master") {
			t.Errorf("skd-vrrpd handover: %v, %q", err, out)
		}
		p.eventually("the end of the script", func() (bool, string) { return p.LB2.Status() == "master", p.roles() })
		p.eventually("one master", func() (bool, string) { return strings.Count(p.roles(), "master") == 1, p.roles() })
		p.outage(probe, since, 0)
		if p.LB1.Status() == "master" {
			p.stays(p.LB1)
		} else {
			p.stays(p.LB2)
		}
		p.neverTwo(since, time.Second+ucarpLag+slack)
	})
}
