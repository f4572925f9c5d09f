package installed

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// The product's how-to, command by command, from two fresh systems to a pair.
func TestHowTo(t *testing.T) {
	b := boot(t)

	// 1. apt-get install
	for _, node := range nodes {
		b.says(b.run(node, "apt-cache search skudonet-ce-cluster"),
			"skudonet-ce-cluster - Skudonet Load Balancer Community Edition Cluster Service")
		b.says(b.run(node, "apt-cache show skudonet-ce-cluster"), "Section: admin", "Priority: optional",
			"Depends:", "rsync", "skudonet (>= 7.0.0)")
		if out := b.run(node, "apt-get -y install skudonet-ce-cluster"); !strings.Contains("\n"+out+"\n",
			"\nCompleting the Skudonet CE Cluster installation...\n") {
			t.Errorf("apt-get on %s does not end with the promised line:\n%s", node, out)
		}
		b.exits(node, 3, "systemctl is-active skudonet-ce-cluster")
		b.exits(node, 1, "systemctl is-enabled skudonet-ce-cluster")
		b.exits(node, 1, "ps -ef | grep -v grep | grep -E 'skd-|skdinotify'")
		b.run(node, "systemctl is-system-running")
	}
	prompt := map[string]*terminal{}
	for _, node := range nodes {
		prompt[node] = b.login(node)
		prompt[node].expect("[] root@" + node)
	}

	// 2. the configuration on both nodes, swapped
	b.run(lb1, `sed -i 's/^$local_ip=.*/$local_ip="192.168.85.11";/' `+conffile)
	b.run(lb1, `sed -i 's/^$remote_ip=.*/$remote_ip="192.168.85.12";/' `+conffile)
	b.run(lb2, `sed -i 's/^$local_ip=.*/$local_ip="192.168.85.12";/' `+conffile)
	b.run(lb2, `sed -i 's/^$remote_ip=.*/$remote_ip="192.168.85.11";/' `+conffile)
	for _, node := range nodes {
		b.run(node, `sed -i 's/^$password=.*/$password="three small words";/' `+conffile)
		b.run(node, `sed -i 's/^$cluster_ip=.*/$cluster_ip="192.168.85.100";/' `+conffile)
		if mode := b.run(node, "stat -c %a "+conffile); mode != "600" {
			t.Errorf("%s of %s has mode %s, want 600: it holds a password", conffile, node, mode)
		}
	}

	// 3. root logs in from each node to the other without a password
	for _, node := range nodes {
		b.run(node, `ssh-keygen -q -t rsa -N "" -f /root/.ssh/id_rsa`)
	}
	for _, node := range nodes {
		key := b.run(other[node], "cat /root/.ssh/id_rsa.pub")
		b.run(node, fmt.Sprintf("echo '%s' >> /root/.ssh/authorized_keys", key))
	}
	for _, node := range nodes {
		b.run(node, "ssh -o StrictHostKeyChecking=accept-new "+addresses[other[node]]+" true")
	}

	// 4. the virtual interface, on the future master
	b.virtualInterface(lb1)
	b.answers()

	// 5. not enabled, it says so, and starts nothing
	for _, node := range nodes {
		b.says(b.run(node, script+" start"), "not enabled")
		b.run(node, "systemctl start skudonet-ce-cluster")
		b.exits(node, 3, "systemctl is-active skudonet-ce-cluster")
		b.exits(node, 1, "systemctl is-failed skudonet-ce-cluster")
		b.exits(node, 3, script+" status")
	}
	b.answers()
	for _, node := range nodes {
		b.run(node, `sed -i 's/$enable_cluster="false";/$enable_cluster="true";/' /etc/init.d/skudonet-ce-cluster`)
		// 6.
		b.run(node, "systemctl enable skudonet-ce-cluster")
		b.run(node, "systemctl is-enabled skudonet-ce-cluster")
	}
	// 7.
	for _, node := range nodes {
		b.run(node, "/etc/init.d/skudonet-ce-cluster stop")
		b.run(node, "/etc/init.d/skudonet-ce-cluster start")
		b.eventually("a role of "+node, func() (bool, string) {
			return node == lb2 || b.status(node) == "master", b.status(node)
		})
	}
	b.settled(lb1)
	b.answers()

	// 8. the prompts, in the shells that were open already, and in new ones
	for node, word := range map[string]string{lb1: "[master]", lb2: "[backup]"} {
		want := fmt.Sprintf("%s root@%s", word, node)
		s := prompt[node]
		s.types("true")
		s.expect(want)
		for _, shell := range []string{"su -", "bash", "bash --login"} {
			s.types(shell)
			s.expect(want)
			s.types("echo shell $((6 * 7))")
			s.expect("shell 42")
			s.expect(want)
			s.types("exit")
			s.expect(want)
		}
		if text := b.read(node, statusFile); text != strings.Trim(word, "[]")+"\n" {
			t.Errorf("%s of %s: %q", statusFile, node, text)
		}
	}
	b.until(lb1, "the replicator, which the start hook starts", "ps -ef | grep -v grep | grep skdinotify")
	b.exits(lb2, 1, "ps -ef | grep -v grep | grep skdinotify")
	b.inStep(lb1)
	b.eventually("the virtual interface's file on the backup", func() (bool, string) {
		text := b.read(lb2, tree+"/if_"+device+"_conf")
		return text == b.read(lb1, tree+"/if_"+device+"_conf"), text
	})
	if b.holds(lb2) {
		t.Error("the backup has the virtual address, too")
	}
	b.replicates(lb1)
	b.until(lb1, "words about it", "grep replicated /var/log/skdinotify.log") // when the backup has answered
	b.says(b.read(lb2, "/var/log/syslog"), "skd-vrrpd", "backup")
	b.says(b.read(lb2, tree+"/if_eth0_conf"), addresses[lb2])

	// What a stop shows.
	b.run(lb2, "systemctl stop skudonet-ce-cluster")
	prompt[lb2].types("true")
	prompt[lb2].expect("[] root@lb2")
	b.exits(lb2, 1, "test -e "+statusFile)
	b.run(lb2, script+" start")
	b.settled(lb1)

	t.Log(b.run(lb1, "systemd-analyze security --no-pager skudonet-ce-cluster.service | tail -n 1"))
}

// A master that leaves hands the address over; the other one takes up replication from there.
func TestHandoverAndBack(t *testing.T) {
	b := cluster(t)
	w, p, r := b.capture(), b.ping(), b.watch()
	master := lb1
	for _, door := range []string{script + " handover", "systemctl stop " + service, script + " restart", script + " stop"} {
		began := time.Now()
		b.run(master, door)
		if strings.Contains(door, " stop") {
			b.eventually("master on "+other[master], func() (bool, string) { return b.status(other[master]) == "master", r.story(began) })
			b.run(master, script+" start")
		}
		b.settled(other[master])
		b.survived(p, door, began, 5*time.Second)
		w.claimed(began, master, other[master])
		if two := r.twoMasters(began); two > time.Second {
			t.Errorf("%s: both status files said master for %v\n%s", door, two, r.story(began))
		}
		master = other[master]
		b.inStep(master)
		b.replicates(master)
	}
	b.says(b.run(other[master], script+" handover"), "not master")
	b.settled(master)
}
