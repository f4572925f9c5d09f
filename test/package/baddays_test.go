package installed

import (
	"fmt"
	"testing"
	"time"
)

const (
	breakIt = `sed -i 's/^\$cluster_id=.*/$cluster_id="300";/' ` + conffile
	mendIt  = `sed -i 's/^\$cluster_id=.*/$cluster_id="1";/' ` + conffile
)

// says where the configuration is broken, and why
var complaint = []string{"skudonet-cluster.conf:", "$cluster_id", "300", "want 1 to 255"}

// failed waits until the service has failed, for good.
func (b *bed) failed(node string) {
	b.t.Helper()
	b.until(node, "a failed service", "systemctl is-failed --quiet "+service)
	restarts := b.run(node, "systemctl show -P NRestarts "+service)
	time.Sleep(2 * time.Second)
	b.run(node, "systemctl is-failed --quiet "+service)
	if now := b.run(node, "systemctl show -P NRestarts "+service); now != restarts {
		b.t.Errorf("%s: systemd goes on trying: %s restarts, then %s", node, restarts, now)
	}
}

// gone waits until a node has lost the address and says nothing in its prompt; with the guard, it is silent, too.
func (b *bed) gone(node string, guard bool) {
	b.t.Helper()
	b.eventually("a clean "+node, func() (bool, string) {
		holds, guarded, word := b.holds(node), b.guarded(node), b.status(node)
		return !holds && word == "" && (guarded || !guard),
			fmt.Sprintf("address: %v, guard: %v, status file: %q", holds, guarded, word)
	})
}

// The first start on a node that carries traffic, with a broken configuration, changes nothing there.
func TestBrokenAtFirstStart(t *testing.T) {
	b := boot(t, "--install", service)
	b.virtualInterface(lb1)
	b.setUp(lb1)
	b.enable(lb1)
	b.run(lb1, breakIt)
	p, began := b.ping(), time.Now()
	for _, door := range []string{script + " start", "systemctl start " + service, script + " restart"} {
		out, code := b.try(lb1, door)
		if code == 0 {
			t.Errorf("%s: exit status 0 with a broken configuration", door)
		}
		if door != "systemctl start "+service {
			b.says(out, complaint...)
		}
		b.failed(lb1)
		if mode := b.exists(lb1, statusFile); mode {
			t.Errorf("%s: there is a status file", door)
		}
		b.exits(lb1, 3, script+" status")
	}
	b.says(b.run(lb1, "journalctl --no-pager -u "+service), complaint...)
	b.says(b.run(lb1, "systemctl status --no-pager --full "+service+" || true"), complaint...)
	b.survived(p, "three starts with a broken configuration", began, unnoticed)

	b.run(lb1, mendIt)
	b.run(lb1, script+" start")
	b.eventually("master on lb1", func() (bool, string) { return b.status(lb1) == "master", b.status(lb1) })
	b.answers()
}

// A running cluster whose configuration is broken meanwhile goes on, until somebody insists.
func TestBrokenLater(t *testing.T) {
	b := cluster(t)
	w, p, began := b.capture(), b.ping(), time.Now()
	b.run(lb1, breakIt)
	for _, door := range []string{script + " force-reload", "systemctl reload " + service, script + " restart"} {
		pid := b.mainPID(lb1)
		out, code := b.try(lb1, door)
		if code == 0 {
			t.Errorf("%s: exit status 0 with a broken configuration:\n%s", door, out)
		}
		if door != "systemctl reload "+service {
			b.says(out, complaint...)
		}
		if now := b.mainPID(lb1); now != pid {
			t.Errorf("%s: process %s, it was %s", door, now, pid)
		}
		b.settled(lb1)
	}
	b.survived(p, "three reloads with a broken configuration", began, unnoticed)
	w.claimed(began, lb1)

	// systemctl restart stops first. What it cannot start leaves the address to the peer, and is silent.
	then := time.Now()
	if out, code := b.try(lb1, "systemctl restart "+service); code == 0 {
		t.Errorf("systemctl restart: exit status 0 with a broken configuration:\n%s", out)
	}
	b.failed(lb1)
	b.gone(lb1, false)
	b.eventually("master on lb2", func() (bool, string) { return b.status(lb2) == "master", b.status(lb2) })
	b.survived(p, "restart with a broken configuration", then, 5*time.Second)
	w.claimed(then, lb1, lb2)
	b.says(b.run(lb1, "journalctl --no-pager -u "+service), complaint...)

	// It is silent after a reboot, too, though its Skudonet raises the address.
	then = time.Now()
	b.reboot(lb1)
	b.failed(lb1)
	if !b.guarded(lb1) {
		t.Error("after a reboot with a broken configuration there is no guard")
	}
	w.claimed(then, lb2)

	// The way out of it: mend it, and start.
	b.run(lb1, mendIt)
	b.run(lb1, script+" start")
	b.settled(lb2)
	b.inStep(lb2)
	w.claimed(then, lb2)
}

// A crash of the daemon is not a failure of the node, but one that it cannot recover from is.
func TestCrash(t *testing.T) {
	b := cluster(t)
	w, p, r := b.capture(), b.ping(), b.watch()
	kill := func(signal string) string {
		pid := b.mainPID(lb1)
		// Right after an advert: a daemon that starts within two intervals of it goes on, and a busy systemd needs most of that.
		b.run(lb1, `at() { stat -c %y /run/skudonet-ce-cluster/vrrpd.state; }
			was=$(at); for i in $(seq 500); do [ "$(at)" = "$was" ] || break; sleep 0.01; done
			kill -`+signal+" "+pid)
		return pid
	}
	replaced := func(pid string) {
		t.Helper()
		b.eventually("another process", func() (bool, string) {
			out, _ := b.try(lb1, "systemctl is-active --quiet "+service+" && systemctl show -P MainPID "+service)
			return out != "" && out != "0" && out != pid, out
		})
	}

	began := time.Now()
	skudonet := b.run(lb1, "cat /run/nftlb.pid")
	replaced(kill("KILL"))
	replaced(kill("ABRT")) // ends as a panic does
	b.settled(lb1)
	b.replicates(lb1)
	b.survived(p, "two crashes of the master's daemon", began, unnoticed)
	w.claimed(began, lb1)
	if got := r.since(began); len(got) != 1 {
		t.Errorf("two crashes of the master's daemon changed the roles:\n%s", r.story(began))
	}
	if now := b.run(lb1, "cat /run/nftlb.pid"); now != skudonet {
		t.Errorf("Skudonet was restarted: process %s, it was %s", now, skudonet)
	}

	// Stopped, as a hang is: the peer takes over, and the watchdog brings the daemon back.
	began = time.Now()
	pid := kill("STOP")
	b.eventually("master on lb2", func() (bool, string) { return b.status(lb2) == "master", r.story(began) })
	replaced(pid)
	b.settled(lb2)
	b.survived(p, "hang of the master's daemon", began, 15*time.Second)
	t.Logf("hang of the master's daemon:\n%s", r.story(began))
	b.inStep(lb2)
	b.run(lb2, script+" handover")
	b.settled(lb1)
	b.inStep(lb1)

	// Crashed with a configuration that is broken meanwhile.
	began = time.Now()
	b.run(lb1, breakIt)
	kill("KILL")
	b.failed(lb1)
	b.gone(lb1, true)
	b.eventually("master on lb2", func() (bool, string) { return b.status(lb2) == "master", r.story(began) })
	b.survived(p, "crash with a broken configuration", began, 15*time.Second)
	w.claimed(began, lb1, lb2)
	b.exits(lb1, 1, "pgrep -x skd-inotify")
	b.run(lb1, mendIt)
	b.run(lb1, script+" start")
	b.settled(lb2)
	b.run(lb2, script+" handover")
	b.settled(lb1)
	b.inStep(lb1)

	// It dies again and again: systemd gives up, and the peer has the address.
	began = time.Now()
	b.eventually("the limit of restarts", func() (bool, string) {
		out, _ := b.try(lb1, "systemctl kill --kill-whom=main --signal=KILL "+service+" 2> /dev/null; systemctl is-failed "+service)
		return out == "failed", out
	})
	b.gone(lb1, true)
	b.eventually("master on lb2", func() (bool, string) { return b.status(lb2) == "master", r.story(began) })
	b.survived(p, "crashes without end", began, 15*time.Second)
	w.claimed(began, lb1, lb2)
	t.Logf("crashes without end:\n%s", r.story(began))
	b.run(lb1, script+" start")
	b.settled(lb2)
}

// What an admin does to a node on the worst of days: the words have to help, and the end has to be right.
func TestOddities(t *testing.T) {
	soak(t)
	b := cluster(t)
	handover := func(from string) {
		t.Helper()
		b.run(from, script+" handover")
		b.settled(other[from])
		b.answers()
		b.quiet()
	}
	logged := func(words string) {
		t.Helper()
		b.until(lb2, "words about it", "journalctl --no-pager --boot --unit="+service+" | grep -i '"+words+"'")
	}

	// A hook that is gone is said; the address moves all the same.
	const hook = "/usr/local/skudonet/app/ucarp/sbin/skudonet-ce-cluster-start"
	b.quiet()
	b.run(lb2, "mv "+hook+" /root/hook")
	handover(lb1)
	logged("skudonet-ce-cluster-start.*no such file")
	b.run(lb2, "mv /root/hook "+hook)
	handover(lb2)

	// Without Skudonet's service the election goes on.
	b.run(lb2, "mv /etc/init.d/skudonet /root/ && systemctl daemon-reload")
	handover(lb1)
	logged("start hook.*skudonet.*failed")
	b.run(lb2, "mv /root/skudonet /etc/init.d/ && systemctl daemon-reload")
	handover(lb2)

	// With a read-only /etc too, though the prompt cannot know.
	b.run(lb2, script+" stop")
	b.run(lb2, "mount --bind /etc /etc && mount -o remount,ro,bind /etc")
	b.run(lb2, script+" start")
	logged("read-only file system")
	b.says(b.exits(lb2, 1, "skd-hooks status"), "read-only file system", "backup")
	b.run(lb1, script+" handover")
	b.eventually("the address on lb2", func() (bool, string) { return b.holds(lb2) && !b.holds(lb1), "" })
	b.answers()
	b.run(lb2, "umount --lazy /etc")
	b.settled(lb2) // without a restart
}

// quiet waits until no hook runs, and Skudonet is neither being started nor stopped.
func (b *bed) quiet() {
	b.t.Helper()
	for _, node := range nodes {
		b.until(node, "no hook at work", "! systemctl list-units --no-legend '"+service+"-hook-*' | grep . && ! systemctl list-jobs --no-legend | grep .")
	}
}
