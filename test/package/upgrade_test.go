package installed

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// give copies a file of this host into a node.
func (b *bed) give(node, file, path string) {
	b.t.Helper()
	if out, err := exec.Command("cp", file, b.root[node]+path).CombinedOutput(); err != nil {
		b.t.Fatalf("cp: %v\n%s", err, out)
	}
}

// From version 2.0, enabled, edited and running, whether dpkg knew its files as conffiles or not.
func TestUpgradeFromVersion2(t *testing.T) {
	for variant, door := range map[string]string{"conffiles": script + " start", "plain": "systemctl restart " + service} {
		t.Run(variant, func(t *testing.T) {
			const hooks = "/usr/local/skudonet/app/ucarp/sbin/" + service
			b := boot(t, "--debian", "ucarp")
			dir := t.TempDir()
			if out, err := exec.Command("v2/mkv2", dir, variant).CombinedOutput(); err != nil {
				t.Fatalf("mkv2: %v\n%s", err, out)
			}
			b.give(lb1, filepath.Join(dir, service+"_2.0_all.deb"), "/root/v2.deb")
			b.run(lb1, "dpkg -i /root/v2.deb")
			b.virtualInterface(lb1)
			b.setUp(lb1)
			b.run(lb1, `sed -i "s/^\$enable_cluster=.*/\$enable_cluster = 'true' ;/" `+script)
			b.run(lb1, "echo 'echo mine' >> "+hooks+"-start")
			b.run(lb1, "systemctl daemon-reload && systemctl enable "+service+" && systemctl start "+service)
			const old = "pidof ucarp && pgrep -f skdinotify.pl"
			b.until(lb1, "version 2.0 as master", old)
			conf, init, start := b.read(lb1, conffile), b.read(lb1, script), b.read(lb1, hooks+"-start")

			out := b.run(lb1, "apt-get -y install "+service+" </dev/null")
			if !strings.Contains("\n"+out+"\n", "\nCompleting the Skudonet CE Cluster installation...\n") {
				t.Errorf("apt-get does not end with the promised line:\n%s", out)
			}
			if n := strings.Count(out, "yours was edited"); n != 1 {
				t.Errorf("%d notices of edited files, want that of the start hook:\n%s", n, out)
			}
			b.run(lb1, old) // it runs until the admin starts or stops the service
			if added, rest, _ := strings.Cut(b.read(lb1, conffile), "\n$protocol=\"auto\";\n"); rest != conf || strings.Contains(added, "\n") || b.read(lb1, conffile+".2.0") != conf {
				t.Errorf("the configuration is not what it was, with the protocol at its top:\n%s", b.read(lb1, conffile))
			}
			b.says(out, "$protocol=\"auto\" speaks with its ucarp until it is upgraded")
			if modes := b.run(lb1, "stat -c %a "+conffile+" "+conffile+".2.0"); modes != "600\n600" {
				t.Errorf("modes of the configuration and its copy: %q", modes)
			}
			if b.read(lb1, script+".2.0") != init || b.read(lb1, hooks+"-start.2.0") != start {
				t.Error("version 2.0's scripts were not set aside as they were")
			}
			b.says(b.read(lb1, script), "\n$enable_cluster=\"true\";\n", "/usr/sbin/skd-vrrpd")
			b.says(b.read(lb1, hooks+"-start"), "skd-hooks start")
			b.run(lb1, "! grep PROMPT_COMMAND /root/.bashrc")
			b.run(lb1, "systemctl is-enabled "+service+" "+service+"-guard")

			b.run(lb1, door)
			b.eventually("master on lb1", func() (bool, string) { return b.status(lb1) == "master", b.status(lb1) })
			b.answers()
			b.run(lb1, "! pidof ucarp && ! pgrep -f skdinotify[.]pl")
		})
	}
}

// A pair of version 2.0, one node after the other, as the manual says, while a client pings. It costs no more than one
// of 2.0's own failovers.
func TestLiveUpgradeFromVersion2(t *testing.T) {
	b := boot(t, "--debian", "ucarp")
	b.do("ssh-keys")
	dir := t.TempDir()
	if out, err := exec.Command("v2/mkv2", dir, "plain").CombinedOutput(); err != nil {
		t.Fatalf("mkv2: %v\n%s", err, out)
	}
	b.virtualInterface(lb1)
	b.write(lb2, tree+"/if_"+device+"_conf", b.read(lb1, tree+"/if_"+device+"_conf"))
	for _, node := range nodes {
		b.give(node, filepath.Join(dir, service+"_2.0_all.deb"), "/root/v2.deb")
		b.run(node, "dpkg -i /root/v2.deb")
		b.setUp(node)
		b.run(node, `sed -i 's/^\$enable_cluster=.*/$enable_cluster="true";/' `+script)
		b.run(node, "systemctl daemon-reload && systemctl enable "+service+" && systemctl start "+service)
		if node == lb1 {
			b.eventually("master on lb1", func() (bool, string) { return b.status(lb1) == "master", b.status(lb1) })
		}
	}
	b.settled(lb1)
	p, r := b.ping(), b.watch()

	began := time.Now()
	b.run(lb1, "systemctl stop "+service)
	b.eventually("master on lb2", func() (bool, string) { return b.status(lb2) == "master", r.story(began) })
	b.survived(p, "a failover of version 2.0", began, 15*time.Second)
	ordinary := p.outage(began)
	b.run(lb1, "systemctl start "+service)
	b.settled(lb2)

	upgrade := func(node string) {
		b.run(node, "apt-get -y install "+service+" </dev/null")
		b.run(node, "skd-vrrpd -n && "+script+" restart")
	}
	began = time.Now()
	upgrade(lb1)
	b.until(lb1, "ucarp on the peer", "journalctl -t skd-vrrpd | grep 'is ucarp: speaking CARP beside VRRPv3 until it is upgraded'")
	time.Sleep(5 * time.Second) // longer than any of the two takes to miss the other
	b.settled(lb2)
	if got := r.masters(began); len(got) != 1 {
		t.Errorf("the upgrade of the backup changed the master: %v\n%s", got, r.story(began))
	}
	upgrade(lb2)
	b.settled(lb1)
	for _, node := range nodes {
		b.until(node, "the end of CARP", "journalctl -t skd-vrrpd | grep 'now change the password'")
	}
	b.survived(p, "the upgrade", began, ordinary)
	b.inStep(lb1)
	b.run(lb1, "skd-vrrpd handover")
	b.settled(lb2)
	b.survived(p, "the upgrade and a hand-over", began, ordinary)
	if total := p.total(began); total > ordinary {
		t.Errorf("the upgrade and a hand-over cost the client %v in all, and one failover of version 2.0 %v", total, ordinary)
	}
	if two := r.twoMasters(began); two > time.Second {
		t.Errorf("both status files said master for %v", two)
	}
	t.Logf("the upgrade:\n%s", r.story(began))
}

// Ours on a running master: the new program goes on where the old one was.
func TestUpgradeOfARunningMaster(t *testing.T) {
	b := cluster(t)
	dir := t.TempDir()
	next := filepath.Join(dir, "next.deb")
	for _, step := range [][]string{
		{"dpkg-deb", "--raw-extract", deb, dir + "/tree"},
		{"sed", "-i", "s/^Version: .*/Version: 99.0/", dir + "/tree/DEBIAN/control"},
		{"sh", "-c", "echo '# a later version' >> " + dir + "/tree/usr/local/skudonet/app/ucarp/sbin/skudonet-ce-cluster-start"},
		{"dpkg-deb", "--root-owner-group", "-Zgzip", "--build", dir + "/tree", next},
	} {
		if out, err := exec.Command(step[0], step[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", step[0], err, out)
		}
	}
	w, p, r := b.capture(), b.ping(), b.watch()
	for _, node := range nodes {
		began := time.Now()
		b.give(node, next, "/root/next.deb")
		pid := b.mainPID(node)
		skudonet, _ := b.try(node, "pgrep -x stubd")
		b.run(node, "dpkg -i /root/next.deb </dev/null")
		b.until(node, "the new program", fmt.Sprintf("! readlink /proc/%s/exe | grep deleted", pid))
		if now := b.mainPID(node); now != pid {
			t.Errorf("%s: the daemon is process %s now, was %s", node, now, pid)
		}
		if now, _ := b.try(node, "pgrep -x stubd"); now != skudonet {
			t.Errorf("%s: Skudonet is process %q now, was %q", node, now, skudonet)
		}
		b.settled(lb1)
		b.survived(p, "upgrade of "+node, began, 5*time.Second)
		w.claimed(began, lb1)
		if two := r.twoMasters(began); two > 0 {
			t.Errorf("%s: two masters for %v\n%s", node, two, r.story(began))
		}
	}
	b.inStep(lb1)
	b.replicates(lb1)
}
