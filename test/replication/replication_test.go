// Package replication tests skd-inotify as an admin meets it: two nodes with
// real sshd and rsync in the lab, changes on the master, and an independent walk
// over both trees. What a backup may never have, torn or temporary files, is
// looked for by a recorder that sees every name and content which appears there.
package replication

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/status"
	"github.com/skudonet/skudonet-ce-cluster/test/lab"
)

func TestMain(m *testing.M) {
	exit := lab.RunTests(m, 3)
	os.RemoveAll(stepsDir)
	os.Exit(exit)
}

const (
	// limit is how long a test waits for something that takes moments.
	limit   = 30 * time.Second
	logPath = "/var/log/skdinotify.log"
	runDir  = status.RunDir
)

type keys = map[string]string

// pair is a master that replicates to a backup. There is no election: the status
// files are written by the tests.
type pair struct {
	*lab.Lab
	t      *testing.T
	daemon *lab.Daemon
}

// newPair makes two nodes that trust each other's ssh, lb1 with the status
// master and lb2 with backup. Nothing of ours runs yet. changes are to the
// configuration of both nodes.
func newPair(t *testing.T, changes ...keys) *pair {
	t.Helper()
	t.Parallel()
	all := keys{}
	for _, c := range changes {
		for k, v := range c {
			all[k] = v
		}
	}
	p := &pair{Lab: lab.Test(t, lab.Options{Config: all}), t: t}
	t.Cleanup(p.stacks)
	p.check(p.ConnectSSH())
	p.role(p.LB1, status.Master)
	p.role(p.LB2, status.Backup)
	return p
}

// startPair is newPair with the replicator running and in step.
func startPair(t *testing.T, changes ...keys) *pair {
	t.Helper()
	p := newPair(t, changes...)
	p.start()
	p.inStep()
	return p
}

func (p *pair) check(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

// stacks has the replicator write into its log what it is doing, if the test has failed.
func (p *pair) stacks() {
	if p.t.Failed() && p.daemon != nil && p.daemon.Signal(unix.SIGQUIT) == nil {
		select {
		case <-p.daemon.Done():
		case <-time.After(2 * time.Second):
		}
	}
}

// role writes a node's status file as skd-vrrpd does; "" removes it.
func (p *pair) role(n *lab.Node, word string) {
	p.t.Helper()
	if word == "" {
		p.run(n, "rm", "-f", lab.StatusPath)
		return
	}
	p.run(n, "sh", "-c", fmt.Sprintf("echo %s >%s.new && mv %[2]s.new %[2]s", word, lab.StatusPath))
}

// start starts the replicator on lb1.
func (p *pair) start(args ...string) *lab.Daemon {
	p.t.Helper()
	p.run(p.LB1, "rm", "-f", filepath.Join(runDir, status.ReplicatorFile)) // what an earlier one said
	d, err := p.LB1.Start(lab.DaemonSpec{Name: "skd-inotify", Args: append([]string{"skd-inotify"}, args...)})
	p.check(err)
	p.daemon = d
	return d
}

// run runs a command in a node, which must succeed.
func (p *pair) run(n *lab.Node, name string, args ...string) string {
	p.t.Helper()
	out, err := n.Run(name, args...)
	p.check(err)
	return out
}

// sh runs a shell script in the master's configuration tree.
func (p *pair) sh(script string) string {
	p.t.Helper()
	return p.run(p.LB1, "sh", "-euc", "cd "+lab.TreePath+"\n"+script)
}

// status is what skd-inotify status --json says on lb1.
func (p *pair) status() (s status.Replication) {
	p.t.Helper()
	data, err := os.ReadFile(filepath.Join(p.LB1.Root(runDir), status.ReplicatorFile))
	if err != nil {
		return s
	}
	var r status.Replicator
	if json.Unmarshal(data, &r) == nil {
		s.State, s.Problems, s.Replicator = r.State, r.Problems, &r
	}
	return s
}

// inStep waits until the replicator says that both nodes have the same, and
// checks that.
func (p *pair) inStep(skip ...string) {
	p.t.Helper()
	p.eventually("in step", func() (bool, string) {
		s := p.status()
		return s.State == status.InStep && s.Replicator.Pending == 0, fmt.Sprintf("%s, %v", s.State, s.Problems)
	})
	lab.EventuallySameTrees(p.t, limit, p.LB1, p.LB2, skip...)
}

// same waits until both nodes have the same.
func (p *pair) same(skip ...string) {
	p.t.Helper()
	lab.EventuallySameTrees(p.t, limit, p.LB1, p.LB2, skip...)
}

// problem waits until the replicator reports a problem that contains all words.
func (p *pair) problem(words ...string) {
	p.t.Helper()
	p.eventually("the problem "+strings.Join(words, ", "), func() (bool, string) {
		s := p.status()
		for _, problem := range s.Problems {
			text, all := problem.Text+" -> "+problem.Remedy, true
			for _, w := range words {
				all = all && strings.Contains(text, w)
			}
			if all {
				return true, ""
			}
		}
		return false, fmt.Sprintf("%s, %v", s.State, s.Problems)
	})
}

// noProblem waits until there is none.
func (p *pair) noProblem() {
	p.t.Helper()
	p.eventually("no problem", func() (bool, string) {
		s := p.status()
		return len(s.Problems) == 0 && s.Replicator != nil, fmt.Sprintf("%s, %v", s.State, s.Problems)
	})
}

func (p *pair) eventually(what string, look func() (bool, string)) {
	p.t.Helper()
	lab.Eventually(p.t, limit, what, look)
}

// log is the replicator's log on lb1.
func (p *pair) log() string {
	p.t.Helper()
	text, err := p.LB1.ReadFile(logPath)
	if err != nil {
		return err.Error()
	}
	return text
}
