package installed

import (
	"regexp"
	"strings"
	"testing"
	"time"
)

// What apt and dpkg, the journal and the mere passing of time leave on any system.
var elsewhere = regexp.MustCompile(`^/(proc|sys|dev|run|tmp)/|^/var/(log|cache|tmp|backups)/|^/var/lib/(apt|dpkg|systemd|logrotate)/|` +
	`^/usr/local/skudonet/config/|^/etc/rc[0-9S]\.d/|^/root/\.(ssh|bash_history)`)

// files are all names on a node's disk, but for those that come and go anyhow.
func (b *bed) files(node string) map[string]bool {
	b.t.Helper()
	all := map[string]bool{}
	for name := range strings.Lines(b.run(node, "find / -xdev -ignore_readdir_race")) {
		if name = strings.TrimSpace(name); !elsewhere.MatchString(name) {
			all[name] = true
		}
	}
	return all
}

// skudonets is what is in Skudonet's tree on a node, with contents, owners and modes.
func (b *bed) skudonets(node string) string {
	b.t.Helper()
	return b.run(node, "cd "+tree+" && find . -printf '%p %y %m %u %g\n' | sort && find . -type f -exec sha256sum {} + | sort")
}

func TestRemoveAndPurge(t *testing.T) {
	b := boot(t)
	before := map[string]map[string]bool{}
	for _, node := range nodes {
		b.run(node, "apt-get -y install rsync")
		b.run(node, "printf '# mine\\nalias ll=\"ls -l\"\\n' > /root/.bashrc && chmod 600 /root/.bashrc")
		before[node] = b.files(node)
	}
	b.do("ssh-keys")
	b.virtualInterface(lb1)
	for _, node := range nodes {
		b.run(node, "apt-get -y install "+service)
		b.setUp(node)
		// So often a master looks whether the program is back on a peer that had none.
		b.run(node, "echo '$verify_interval=\"10\";' >> "+conffile)
		b.enable(node)
	}
	for _, node := range nodes {
		b.run(node, script+" start")
		b.eventually("a role of "+node, func() (bool, string) { return node == lb2 || b.status(node) == "master", "" })
	}
	b.settled(lb1)
	b.inStep(lb1)
	w, p, r := b.capture(), b.ping(), b.watch()

	// Removed from the master: the peer has the address.
	began, content := time.Now(), b.skudonets(lb1)
	b.run(lb1, "apt-get -y remove "+service)
	b.eventually("master on lb2", func() (bool, string) { return b.status(lb2) == "master", r.story(began) })
	b.survived(p, "removal on the master", began, 5*time.Second)
	w.claimed(began, lb1, lb2)
	// The new master may be mirroring into it already: by a session that began before the program went, or a plain rsync,
	// whose mark is in its command.
	b.exits(lb1, 1, "ps -ef | grep -Ev 'grep|skd-inotify peer|rsync begins' | grep -E 'skd-|skdinotify'")
	if b.holds(lb1) || b.status(lb1) != "" || b.guarded(lb1) {
		t.Errorf("after the removal: address %v, status %q, guard %v", b.holds(lb1), b.status(lb1), b.guarded(lb1))
	}
	if now := b.skudonets(lb1); now != content {
		t.Errorf("the removal changed Skudonet's tree:\n%s\nit was\n%s", now, content)
	}
	// debhelper takes the script's x bit away; whoever insists is told why nothing happens.
	b.says(b.exits(lb1, 5, "perl "+script+" start"), "not installed")
	b.exits(lb1, 0, "perl "+script+" stop")
	b.run(lb1, "systemctl is-system-running")
	s := b.login(lb1)
	s.expect("root@lb1")
	if strings.Contains(s.screen.String(), "[] ") {
		t.Error("the prompt still shows the cluster")
	}

	// Installed again: as it was, but nothing runs until it is started.
	b.run(lb1, "apt-get -y install "+service)
	b.says(b.read(lb1, conffile), "three small words")
	b.exits(lb1, 3, script+" status")
	b.exits(lb1, 3, "systemctl is-active "+service)
	b.run(lb1, script+" start")
	b.settled(lb2)
	b.inStep(lb2)

	// Purged, first from the backup.
	for _, node := range nodes {
		began, content := time.Now(), b.skudonets(node)
		b.run(node, "apt-get -y purge "+service)
		if now := b.skudonets(node); now != content {
			t.Errorf("%s: the purge changed Skudonet's tree:\n%s\nit was\n%s", node, now, content)
		}
		if node == lb1 {
			b.survived(p, "purge on the backup", began, unnoticed)
			w.claimed(began, lb2)
		}
		after := b.files(node)
		for name := range after {
			if !before[node][name] {
				t.Errorf("%s: the purge left %s", node, name)
			}
		}
		for name := range before[node] {
			if !after[name] && !strings.HasPrefix(name, "/var/") {
				t.Errorf("%s: the purge took away %s", node, name)
			}
		}
		for _, left := range []string{"/var/log/skdinotify.log", "/var/lib/systemd/deb-systemd-helper-enabled/" + service + ".service.dsh-also",
			"/run/skudonet-ce-cluster"} {
			b.exits(node, 1, "test -e "+left)
		}
		b.run(node, "! find /etc/rc?.d -name '*skudonet-ce-cluster' | grep .")
		if text := b.read(node, "/root/.bashrc"); text != "# mine\nalias ll=\"ls -l\"\n" {
			t.Errorf("%s: /root/.bashrc is now:\n%s", node, text)
		}
		if out := b.run(node, "stat -c '%a %U' /root/.bashrc"); out != "600 root" {
			t.Errorf("%s: /root/.bashrc is now %s", node, out)
		}
		b.run(node, "systemctl is-system-running")
		if b.guarded(node) {
			t.Errorf("%s: the guard still stands", node)
		}
	}
	// Once more, with nothing there.
	b.run(lb1, "apt-get -y purge "+service)
	b.run(lb1, "apt-get -y install "+service)
	b.run(lb1, "apt-get -y purge "+service)
}
