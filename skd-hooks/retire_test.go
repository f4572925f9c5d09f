package main

import (
	"os/exec"
	"strings"
	"testing"
)

// hookHome has the scripts that version 2.0 gives to ucarp.
const hookHome = "/usr/local/skudonet/app/ucarp/sbin/"

func TestIsOurUcarp(t *testing.T) {
	for _, tc := range []struct {
		args string
		want bool
	}{
		{"-r 3 --interface=eth0 --pass=x --upscript=" + hookHome + "skudonet-ce-cluster-start --downscript=" + hookHome + "skudonet-ce-cluster-stop -B", true},
		{"--upscript " + hookHome + "skudonet-ce-cluster-start", true},
		{"-u " + hookHome + "skudonet-ce-cluster-start", true},
		{"-u" + hookHome + "skudonet-ce-cluster-start", true},
		{"-u /etc/up -d " + hookHome + "skudonet-ce-cluster-stop", true},
		{"--downscript=/root/skudonet-ce-cluster-stop", true},
		{"-u /usr/local/zevenet/app/ucarp/sbin/zevenet-ce-cluster-start", true},
		{"-u " + hookHome + "of-my-own", true},
		{"-u /etc/vip-up.sh -d /etc/vip-down.sh", false},
		{"--xparam=" + hookHome + "skudonet-ce-cluster-start -u /etc/vip-up.sh", false},
		{"-a 192.168.0.252 -p skudonet-ce-cluster-start", false},
		{"-u", false},
		{"", false},
	} {
		if got := isOurUcarp(strings.Fields("ucarp " + tc.args)); got != tc.want {
			t.Errorf("ucarp %s: %v, want %v", tc.args, got, tc.want)
		}
	}
}

func TestIsOldScript(t *testing.T) {
	const script = "/usr/local/skudonet/app/skdinotify/skdinotify.pl"
	for _, tc := range []struct {
		argv []string
		want bool
	}{
		{[]string{"/usr/bin/perl", script}, true},
		{[]string{"perl", "-w", script, "start"}, true},
		{[]string{"perl", "./skdinotify.pl"}, true},
		{[]string{script}, true}, // by $0
		{[]string{"perl", "-e", "sleep", script}, false},
		{[]string{"perl", "-we", "sleep", script}, false},
		{[]string{"perl", "/usr/bin/check", script}, false},
		{[]string{"perl", script + ".bak"}, false},
		{[]string{"perl"}, false},
	} {
		if got := isOldScript(tc.argv); got != tc.want {
			t.Errorf("%q: %v, want %v", tc.argv, got, tc.want)
		}
	}
}

// oldProcesses are what shall be retired, "ours", and what looks like it. Ucarp
// is a shell here, with ucarp's options behind those of its own.
const oldProcesses = `
mkdir -p /mnt/root /run/pids
cp /bin/sh /usr/local/bin/ucarp
cp /bin/sh /usr/local/bin/keepalived
printf '#!/usr/bin/perl\nfork; system("sleep", "600");\n' > /usr/local/bin/skdinotify.pl
chmod 755 /usr/local/bin/skdinotify.pl
hooks=/usr/local/skudonet/app/ucarp/sbin/skudonet-ce-cluster
run() { # NAME COMMAND...
	sh -c 'echo $$ > /run/pids/$1; shift; exec "$@"' sh "$@" < /dev/null > /dev/null 2>&1 &
}
run ours-1 /usr/local/bin/ucarp -c 'sleep 601; :' ucarp --upscript=$hooks-start
run wrapper sh -c '/usr/local/bin/ucarp "$@"; :' sh -c 'echo $$ > /run/pids/ours-2; sleep 602; :' ucarp -d $hooks-stop
run ours-3 /usr/local/bin/skdinotify.pl
run ours-4 perl -w /usr/local/bin/skdinotify.pl
run other-1 /usr/local/bin/ucarp -c 'sleep 603; :' ucarp -u /etc/vip-up.sh
run other-2 /usr/local/bin/keepalived -c 'sleep 604; :' ucarp -u $hooks-start
run other-3 perl -e 'sleep 605' /usr/local/bin/skdinotify.pl
run other-4 sh -c 'sleep 606; :' skdinotify.pl
for d in bin lib lib64 usr; do [ ! -e /$d ] || { mkdir /mnt/root/$d; mount --rbind /$d /mnt/root/$d; }; done
run other-5 chroot /mnt/root /usr/local/bin/ucarp -c 'sleep 607; :' ucarp -u $hooks-start
mkdir /run/bin; printf '#!/bin/sh\nsleep 609; :\n' > /run/bin/ucarp; chmod 755 /run/bin/ucarp
run other-7 /run/bin/ucarp -u $hooks-start
run other-6 unshare --pid --fork /usr/local/bin/ucarp -c 'sleep 608; :' ucarp -u $hooks-start
`

func TestRetire(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.equal("retire without anything", n.hooks(0, "retire"), "")
	if _, err := exec.LookPath("perl"); err != nil {
		t.Skip("needs perl")
	}
	n.sh(oldProcesses)
	// All have a sleep but the perl that sleeps by itself, and each replicator has two.
	n.wait(`test "$(pgrep -fx 'sleep 60[0-9]' | wc -l)" = 12 && test "$(cat /run/pids/* | wc -w)" = 12`)
	n.sh("mv /usr/local/bin/ucarp /run/old; rm /run/old") // as an upgrade does

	pid := func(name string) string { return n.sh("cat /run/pids/" + name) }
	out := n.hooks(0, "retire")
	for name, process := range map[string]string{"ours-1": "ucarp", "ours-2": "ucarp", "ours-3": "replicator", "ours-4": "replicator"} {
		n.contains(out, process+": stopped process "+pid(name)+", left running by version 2.0\n")
		n.sh("! readlink /proc/" + pid(name) + "/exe")
	}
	if strings.Count(out, "\n") != 4 || strings.LastIndex(out, "replicator: ") > strings.Index(out, "ucarp: ") {
		t.Errorf("want both replicators, and then the two of ucarp:\n%s", out)
	}
	for _, name := range strings.Fields(n.sh("cd /run/pids; echo other-*")) {
		n.sh("kill -0 " + pid(name) + " || { echo " + name + " is gone; exit 1; }")
	}
	n.equal("ucarp of somebody else, of a chroot and of a pid namespace", n.sh("ls -l /proc/*/exe 2> /dev/null | grep -c bin/ucarp"), "3")
	// What the replicators were running went with them.
	n.equal("their helpers", n.sh("pgrep -fxc 'sleep 600' || :"), "0")
	n.equal("retire once more", n.hooks(0, "retire"), "")
}

func TestRetireThatIsNotHeeded(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.sh(`cp /bin/sh /usr/local/bin/ucarp
/usr/local/bin/ucarp -c 'trap "" TERM; echo $$ > /run/pid; while :; do sleep 600; done' ucarp \
	-u ` + hookHome + `skudonet-ce-cluster-start > /dev/null 2>&1 &`)
	n.wait("test -s /run/pid")
	pid := n.sh("cat /run/pid")
	n.equal("it says", n.hooks(0, "retire"), "ucarp: killed process "+pid+", left running by version 2.0: no answer to SIGTERM for 10s\n")
	n.sh("! readlink /proc/" + pid + "/exe")
}

// The real one: its down script has run when retire is done, which it does not by
// SIGTERM alone. What the script starts meanwhile is found, too.
func TestRetireUcarp(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("ucarp"); err != nil {
		t.Skip("needs ucarp")
	}
	if _, err := exec.LookPath("perl"); err != nil {
		t.Skip("needs perl")
	}
	for _, options := range []string{"", "--shutdown"} {
		n := newNode(t)
		n.sh("mkdir -p " + hookHome + `
printf '#!/bin/sh\nip addr add "$2/24" dev "$1"; echo "start $*" >> /run/scripts\n' > ` + hookHome + `skudonet-ce-cluster-start
printf '#!/bin/sh\nsleep 1; ip addr del "$2/24" dev "$1"; echo "stop $*" >> /run/scripts; sh -c "echo \\$\\$ >/run/late; exec perl /run/skdinotify.pl" > /dev/null 2>&1 &\n' > ` + hookHome + `skudonet-ce-cluster-stop
chmod 755 ` + hookHome + `*; echo 'sleep 600' > /run/skdinotify.pl
ucarp -r 1 --interface=eth0 --srcip=192.168.0.250 --vhid=1 --pass=secret --addr=192.168.0.100 --neutral ` + options + ` \
	--upscript=` + hookHome + `skudonet-ce-cluster-start --downscript=` + hookHome + `skudonet-ce-cluster-stop -B`)
		n.wait("grep -q start /run/scripts && ! pgrep -P $(pidof ucarp)")
		n.contains(n.sh("ip addr show eth0"), "192.168.0.100/24")
		pid := n.sh("pidof ucarp")
		n.sh("echo master > /mnt/status")
		n.equal("it says", n.hooks(0, "retire"), "ucarp: stopped process "+pid+", left running by version 2.0\n"+
			"replicator: stopped process "+n.sh("cat /run/late")+", left running by version 2.0\n")
		n.sh("! readlink /proc/" + pid + "/exe; ! ip addr show eth0 | grep 192.168.0.100")
		n.sh("! test -e /mnt/status")
		n.equal("its scripts", n.sh("xargs < /run/scripts"), "start eth0 192.168.0.100 stop eth0 192.168.0.100")
	}
}
