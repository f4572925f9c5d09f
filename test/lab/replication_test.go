package lab

import (
	"crypto/sha256"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// sshOptions never ask, and leave known_hosts as it is.
var sshOptions = []string{"-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", "UpdateHostKeys=no",
	"-o", "ConnectTimeout=5"}

func TestConnectSSH(t *testing.T) {
	t.Parallel()
	l := Test(t, Options{})
	begin := time.Now()
	check(t, l.ConnectSSH())
	t.Logf("connected in %v", time.Since(begin))
	reach := func(from, to *Node, more ...string) (string, error) {
		args := slices.Concat(sshOptions, more, []string{"root@" + to.Addr(0).String(), "hostname; echo $PATH $HOME"})
		out, err := from.Run("ssh", args...)
		return strings.TrimSpace(out), err
	}
	for i, from := range l.Nodes() {
		to := l.Nodes()[1-i]
		for _, algorithm := range []string{"ssh-ed25519", "ecdsa-sha2-nistp256"} {
			out, err := reach(from, to, "-o", "HostKeyAlgorithms="+algorithm)
			check(t, err)
			if want := to.Name + "\n" + searchPath + " /root"; out != want {
				t.Errorf("%s: %q, want %q", algorithm, out, want)
			}
		}
	}
	if key, other := run(t, l.LB1, "cat", "/etc/ssh/ssh_host_ed25519_key.pub"), run(t, l.LB2, "cat", "/etc/ssh/ssh_host_ed25519_key.pub"); key == other {
		t.Error("both nodes have the same host key")
	}
	if log, err := l.LB2.ReadFile("/var/log/sshd.log"); !strings.Contains(log, "Accepted publickey for root from 192.168.77.11") {
		t.Errorf("%v: sshd says\n%s", err, log)
	}
	if _, err := reach(l.Client, l.LB1); err == nil {
		t.Error("a stranger got in")
	}

	check(t, l.LB2.SSHD().Stop())
	if _, err := reach(l.LB1, l.LB2); err == nil {
		t.Error("stopped, and still there")
	}
	check(t, l.LB2.PowerOff())
	if _, err := l.LB2.StartSSH(); err == nil {
		t.Error("started without power")
	}
	check(t, l.LB2.PowerOn())
	// What a test changes stays.
	config := run(t, l.LB2, "cat", "/etc/ssh/sshd_config")
	check(t, l.LB2.WriteFile("/etc/ssh/sshd_config", config+"\nBanner /etc/hostname\n", 0o600))
	_, err := l.LB2.StartSSH()
	check(t, err)
	if out, err := reach(l.LB1, l.LB2); err != nil || strings.Count(out, "lb2\n") != 2 {
		t.Errorf("after power-on, with a banner: %q, %v", out, err)
	}
	check(t, l.LB2.SSHD().Stop())
	check(t, l.LB2.WriteFile("/etc/ssh/sshd_config", "Nonsense yes\n", 0o600))
	if _, err := l.LB2.StartSSH(); err == nil || !strings.Contains(err.Error(), "Nonsense") {
		t.Errorf("a wrong configuration: %v", err)
	}
}

// collector is a test that may fail.
type collector struct {
	*testing.T
	said string
}

func (c *collector) Errorf(format string, args ...any) { c.said += fmt.Sprintf(format, args...) + "\n" }
func (c *collector) Fatalf(format string, args ...any) {
	c.Errorf(format, args...)
	runtime.Goexit()
}

func failure(t *testing.T, f func(TB)) string {
	c := &collector{T: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(c)
	}()
	<-done
	return c.said
}

func TestTrees(t *testing.T) {
	t.Parallel()
	l := Test(t, Options{})
	differ := func(skip ...string) string {
		t.Helper()
		return failure(t, func(t TB) { SameTrees(t, l.LB1, l.LB2, skip...) })
	}
	// What differs from the beginning belongs to the nodes.
	SameTrees(t, l.LB1, l.LB2)
	if a, b := run(t, l.LB1, "cat", TreePath+"/if_eth0_conf"), run(t, l.LB2, "cat", TreePath+"/if_eth0_conf"); a == b {
		t.Errorf("both nodes have the interface\n%s", a)
	}
	run(t, l.LB1, "sh", "-c", "cd "+TreePath+"; echo 1 > local/x; mkdir -p d/e; echo 1 > d/if_vlan.5_conf; mkfifo fifo")
	if got := differ("d"); got != "" {
		t.Errorf("what belongs to a node, is skipped or is no file: %s", got)
	}
	digest, err := l.LB1.TreeDigest()
	check(t, err)
	for name, want := range map[string]string{
		".": "d 0755 0 0", "d/e": "d 0755 0 0", "local": "", "local/x": "", "if_eth0_conf": "", "d/if_vlan.5_conf": "", "fifo": "",
		"zlb-stop": fmt.Sprintf("f 0755 0 0 42 %x", sha256.Sum256([]byte("#!/bin/bash\n# called at the end of a stop\n"))),
	} {
		if digest[name] != want {
			t.Errorf("%s: %q, want %q", name, digest[name], want)
		}
	}
	if digest["if_eth0:1_conf"] == "" || digest[RTTablesPath] == "" {
		t.Error("what is replicated is not in the digest")
	}
	run(t, l.LB2, "mkdir", "-p", TreePath+"/d/e")
	SameTrees(t, l.LB1, l.LB2)

	const undo = "cd " + TreePath + "; rm -rf x; chown 0:0 zlb-start . d; chmod 755 zlb-start . d; touch x; ln -s a d/link -f; "
	run(t, l.LB1, "sh", "-c", undo)
	for _, change := range []string{
		"echo > x", "echo 2 >> global.conf; cp --preserve=all global.conf x", "chmod 4755 zlb-start", "chmod 700 .", "chown 1 d",
		"chgrp 1 zlb-start", "chown -h 1 d/link", "ln -sfn b d/link", "rm x; mkdir x", "rm x; mkfifo x", "rm x; ln -s y x",
		"touch d/.new", "printf 'a\\nb' > \"$(printf 'd/\\377\\n')\"", "rmdir d/e", "echo 9 nine >> " + RTTablesPath,
	} {
		run(t, l.LB2, "sh", "-c", undo)
		run(t, l.LB2, "sh", "-c", "cd "+TreePath+"; "+change)
		if got := differ(); !strings.Contains(got, " on lb1: ") || !strings.Contains(got, " on lb2: ") {
			t.Errorf("%s: no difference: %q", change, got)
		}
		run(t, l.LB2, "sh", "-c", "rm -rf "+TreePath+"/d/.new; find "+TreePath+"/d -type f ! -name .new -delete; mkdir -p "+TreePath+"/d/e")
		for _, file := range []string{TreePath + "/global.conf", RTTablesPath} {
			text, err := l.LB1.ReadFile(file)
			check(t, err)
			check(t, l.LB2.WriteFile(file, text, 0o644))
		}
	}
	run(t, l.LB2, "sh", "-c", undo)
	SameTrees(t, l.LB1, l.LB2)
	run(t, l.LB2, "sh", "-c", "cd "+TreePath+"; for i in $(seq 30); do echo $i > many$i; done")
	if got := differ(); strings.Count(got, "\n") != 42 || !strings.Contains(got, "\nand 10 more\n") {
		t.Errorf("many differences:\n%s", got)
	}
	go l.LB2.Run("sh", "-c", "sleep 0.05; rm "+TreePath+"/many*")
	EventuallySameTrees(t, 5*time.Second, l.LB1, l.LB2)
	if got := differ(); got != "" {
		t.Error(got)
	}
	run(t, l.LB2, "touch", TreePath+"/more")
	got := failure(t, func(t TB) { EventuallySameTrees(t, 20*time.Millisecond, l.LB1, l.LB2) })
	if !strings.Contains(got, `"more" on lb1: nothing`) {
		t.Errorf("never the same: %s", got)
	}
}
