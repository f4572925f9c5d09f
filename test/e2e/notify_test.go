package e2e

import (
	"fmt"
	"os"
	"path"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/test/lab"
)

const (
	notifySocket = "/run/notify"
	notifyLog    = "/var/log/notify-messages"

	// A notify socket as systemd has one: each message becomes lines of the log.
	notifyListener = `use Socket; socket(my $s, PF_UNIX, SOCK_DGRAM, 0) or die; bind($s, sockaddr_un("` + notifySocket + `")) or die;
		open(my $f, ">>", "` + notifyLog + `") or die; $f->autoflush(1);
		while (1) { recv($s, my $m, 4096, 0); print $f "$m\n" }`
)

// What systemd is told: that the daemon is ready, what the node is, that it is
// alive, that it executes itself anew, that it stops.
func TestSystemdIsTold(t *testing.T) {
	p := newPair(t, keys{"advert_interval": "0.5"}) // two of them are the time for a new process
	n := p.LB1
	_, err := n.Start(lab.DaemonSpec{Name: "notify", Args: []string{"perl", "-MIO::Handle", "-e", notifyListener}})
	p.check(err)
	p.eventually("the notify socket", func() (bool, string) {
		_, err := os.Stat(n.Root(notifySocket))
		return err == nil, fmt.Sprint(err)
	})
	messages := func() string { text, _ := n.ReadFile(notifyLog); return text }
	told := func(what string) {
		t.Helper()
		p.eventually(what+" told to systemd", func() (bool, string) { return strings.Contains(messages(), what), messages() })
	}

	d := p.startAs(n, lab.DaemonSpec{Args: []string{"skd-vrrpd"}, Restart: true,
		Env: []string{"NOTIFY_SOCKET=" + notifySocket, "WATCHDOG_USEC=200000"}})
	told("READY=1")
	told("STATUS=backup on eth0 vrid 1: the service started")
	told("STATUS=master on eth0 vrid 1: no advertisement")

	beats := func() int { return strings.Count(messages(), "WATCHDOG=1") }
	seen := beats()
	p.eventually("five beats of the watchdog", func() (bool, string) { return beats() >= seen+5, fmt.Sprint(beats()) })
	p.signal(n, unix.SIGSTOP)
	pass(slack) // for what was under way
	stopped := beats()
	pass(slack)
	if now := beats(); now > stopped {
		t.Errorf("%d beats of a stopped daemon", now-stopped)
	}
	p.signal(n, unix.SIGCONT)
	p.eventually("the beats of a daemon that goes on", func() (bool, string) { return beats() > stopped+2, fmt.Sprint(beats()) })
	p.waitStatus(n, "master")

	pid := d.PID()
	p.signal(n, unix.SIGHUP)
	told("RELOADING=1")
	p.eventually("ready again", func() (bool, string) { return strings.Count(messages(), "READY=1") == 2, messages() })
	p.logged(n, "the daemon restarted in time and goes on")
	if d.PID() != pid {
		t.Errorf("the process is another one: %d, was %d", d.PID(), pid)
	}
	p.stop(n)
	told("STOPPING=1")
	if _, err := os.Stat(n.Root(path.Join(runDir, "vrrpd.pid"))); !os.IsNotExist(err) {
		t.Errorf("a stopped daemon leaves its pid file: %v", err)
	}
}
