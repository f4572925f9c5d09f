package installed

import (
	"slices"
	"testing"
	"time"
)

// At no moment do two nodes speak for the address, whoever boots.
func TestReboot(t *testing.T) {
	b := cluster(t)
	w, r := b.capture(), b.watch()

	// The backup, with the virtual interface in its tree. While its Skudonet starts, the guard has to stand already: the
	// stand-in reads this file first of all, and waits.
	began := time.Now()
	b.write(lb2, "/etc/default/skudonet-stub", `[ "$1" = start ] && [ ! -e /var/tmp/go ] && { : > /var/tmp/waits; until [ -e /var/tmp/go ]; do sleep 0.1; done; }`+"\n")
	done := make(chan struct{})
	go func() { defer close(done); b.reboot(lb2) }()
	b.eventually("the start of Skudonet at boot", func() (bool, string) { return b.exists(lb2, "/var/tmp/waits"), "" })
	if !b.guarded(lb2) {
		t.Error("Skudonet starts at boot before the guard stands")
	}
	b.write(lb2, "/var/tmp/go", "")
	<-done
	b.settled(lb1)
	w.claimed(began, lb1)
	t.Logf("reboot of the backup:\n%s", r.story(began))
	b.inStep(lb1)

	// The master.
	began = time.Now()
	p := b.ping()
	b.reboot(lb1)
	b.settled(lb2)
	b.survived(p, "reboot of the master", began, 10*time.Second)
	w.claimed(began, lb1, lb2)
	t.Logf("reboot of the master:\n%s", r.story(began))
	b.inStep(lb2)
	b.replicates(lb2)

	// Both at once. Either may be the master before, between and after; nobody is it twice.
	began = time.Now()
	b.reboot(lb1, lb2)
	b.eventually("a master", func() (bool, string) {
		return slices.Contains([]string{b.status(lb1), b.status(lb2)}, "master"), r.story(began)
	})
	master := lb1
	if b.status(lb2) == "master" {
		master = lb2
	}
	b.settled(master)
	b.answers()
	w.claimed(began, r.masters(began)...)
	if two := r.twoMasters(began); two > time.Second {
		t.Errorf("both status files said master for %v", two)
	}
	t.Logf("reboot of both:\n%s", r.story(began))
	b.inStep(master)
}

// What takes a node from the network, without a word.
func TestOutages(t *testing.T) {
	b := cluster(t)
	w, p, r := b.capture(), b.ping(), b.watch()
	const bound = 15 * time.Second // three adverts and a half, on a busy host

	began := time.Now()
	b.powerOff(lb1)
	b.eventually("master on lb2", func() (bool, string) { return b.status(lb2) == "master", r.story(began) })
	b.survived(p, "power-off of the master", began, bound)
	b.write(lb2, tree+"/zlb-start", "#!/bin/bash\n# changed while lb1 was off\n")
	b.powerOn(lb1)
	b.settled(lb2)
	w.claimed(began, lb1, lb2)
	t.Logf("power-off of the master:\n%s", r.story(began))
	b.inStep(lb2)
	b.says(b.read(lb1, tree+"/zlb-start"), "changed while lb1 was off")

	began = time.Now()
	b.do("cut", lb2)
	b.eventually("master on lb1", func() (bool, string) { return b.status(lb1) == "master", r.story(began) })
	b.eventually("no master on lb2", func() (bool, string) { return b.status(lb2) == "backup" && !b.holds(lb2), r.story(began) })
	b.survived(p, "cut of the master's cable", began, bound)
	b.do("heal", lb2)
	b.settled(lb1)
	w.claimed(began, lb2, lb1)
	t.Logf("cut of the master's cable:\n%s", r.story(began))
	b.inStep(lb1)

	// The switch drops everything: both have to believe that they are alone, and agree when it is over.
	began = time.Now()
	b.do("isolate", lb1)
	b.eventually("master on lb2", func() (bool, string) { return b.status(lb2) == "master", r.story(began) })
	b.survived(p, "isolation of the master", began, bound)
	healed := time.Now()
	b.do("heal", lb1)
	b.eventually("one master", func() (bool, string) {
		return b.status(lb1) != b.status(lb2) && b.status(lb1) != "" && b.status(lb2) != "", r.story(began)
	})
	master := lb1
	if b.status(lb2) == "master" {
		master = lb2
	}
	b.settled(master)
	b.survived(p, "heal", healed, bound)
	time.Sleep(2 * time.Second) // and it stays like that
	b.settled(master)
	t.Logf("isolation of the master:\n%s", r.story(began))
	if last := w.claimants(healed); len(last) == 0 || last[len(last)-1] != master {
		t.Errorf("after the heal the address was claimed by %v, and %s is master", last, master)
	}
	b.inStep(master)
	b.replicates(master)

	// A node that stands still and comes back is not master any more.
	began = time.Now()
	b.do("freeze", master)
	b.eventually("master on "+other[master], func() (bool, string) { return b.status(other[master]) == "master", r.story(began) })
	b.do("thaw", master)
	b.settled(other[master])
	b.survived(p, "freeze of the master", began, bound)
	t.Logf("freeze of the master:\n%s", r.story(began))
}
