package replication

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/archive"
	"github.com/skudonet/skudonet-ce-cluster/lib/fileset"
	"github.com/skudonet/skudonet-ce-cluster/lib/ledger"
	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"github.com/skudonet/skudonet-ce-cluster/lib/peer"
	"github.com/skudonet/skudonet-ce-cluster/lib/scan"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
	"github.com/skudonet/skudonet-ce-cluster/lib/vector"
	"github.com/skudonet/skudonet-ce-cluster/test/lab"
)

const stateDir = status.StateDir

// startsPath is where a node's Skudonet writes what is in the file "farm" whenever
// it starts.
const startsPath = "/var/log/skudonet-starts"

// realm is a pair of nodes of which either may rule. As skd-vrrpd would, a test
// writes their status files, and since when a master is one.
type realm struct {
	*pair
	a, b *ruler
}

// ruler is a node of it.
type ruler struct {
	*lab.Node
	r      *realm
	daemon *lab.Daemon // nil: its replicator does not run
}

// newRealm makes two backups with the same configuration that have never met.
func newRealm(t *testing.T, o lab.Options) *realm {
	t.Helper()
	t.Parallel()
	r := &realm{pair: &pair{Lab: lab.Test(t, o), t: t}}
	r.a, r.b = &ruler{Node: r.LB1, r: r}, &ruler{Node: r.LB2, r: r}
	r.check(r.ConnectSSH())
	for _, n := range r.both() {
		n.says(status.Backup)
		n.sh(`printf '#!/bin/sh\ncat /usr/local/skudonet/config/farm >>` + startsPath + `\n' >zlb-start; echo first >farm`)
	}
	return r
}

// startRealm is newRealm with a as master, and both in step.
func startRealm(t *testing.T, o lab.Options) *realm {
	t.Helper()
	r := newRealm(t, o)
	r.a.promote()
	r.a.inStep()
	return r
}

func (r *realm) both() []*ruler { return []*ruler{r.a, r.b} }

func (n *ruler) other() *ruler {
	if n == n.r.a {
		return n.r.b
	}
	return n.r.a
}

// in runs a subtest of the realm.
func (r *realm) in(name string, f func(t *testing.T)) {
	r.t.Helper()
	outer := r.t
	ok := outer.Run(name, func(t *testing.T) {
		r.t = t
		f(t)
	})
	if r.t = outer; !ok {
		outer.FailNow()
	}
}

// says writes the files of skd-vrrpd.
func (n *ruler) says(role string) {
	n.r.t.Helper()
	n.r.check(os.MkdirAll(n.Root(runDir), 0o755))
	n.r.check(status.Daemon{State: role, Since: status.Now()}.WriteFile(filepath.Join(n.Root(runDir), status.DaemonFile)))
	n.r.role(n.Node, role)
}

// promote makes the node master.
func (n *ruler) promote(env ...string) {
	n.r.t.Helper()
	n.says(status.Master)
	n.start(env...)
}

// rule makes the node a master that counts without having met its peer: one that
// has waited for it for a minute, without the minute.
func (n *ruler) rule() {
	n.r.t.Helper()
	n.says(status.Master)
	d, err := status.ReadDaemon(filepath.Join(n.Root(runDir), status.DaemonFile))
	n.r.check(err)
	n.r.check(n.WriteFile(runDir+"/inotify.established", fmt.Sprintf("%d\n", d.Since.Boot), 0o644))
	n.start()
}

// start starts the replicator.
func (n *ruler) start(env ...string) {
	n.r.t.Helper()
	n.r.run(n.Node, "rm", "-f", filepath.Join(runDir, status.ReplicatorFile)) // what an earlier one said
	d, err := n.Start(lab.DaemonSpec{Name: "skd-inotify", Args: []string{"skd-inotify"}, Env: env})
	n.r.check(err)
	n.daemon = d
	if len(env) == 0 {
		n.r.eventually("skd-inotify to begin on "+n.Name, func() (bool, string) { return n.status().State != "", d.Log() })
	}
}

// demote makes the node backup.
func (n *ruler) demote() {
	n.r.t.Helper()
	n.says(status.Backup)
	n.ended()
}

// ended waits for the end of the replicator.
func (n *ruler) ended() {
	n.r.t.Helper()
	if n.daemon == nil {
		return
	}
	n.r.eventually("the end of skd-inotify on "+n.Name, func() (bool, string) {
		select {
		case <-n.daemon.Done():
			return true, ""
		default:
			return false, n.log()
		}
	})
	n.daemon = nil
}

// kill ends the replicator at once.
func (n *ruler) kill() {
	n.r.t.Helper()
	n.r.check(n.daemon.Signal(unix.SIGKILL))
	n.ended()
}

// off cuts the node's power.
func (n *ruler) off() {
	n.r.t.Helper()
	n.r.check(n.PowerOff())
	n.daemon = nil
}

// on switches it on, as backup.
func (n *ruler) on() {
	n.r.t.Helper()
	n.r.check(n.PowerOn())
	_, err := n.StartSSH()
	n.r.check(err)
	n.says(status.Backup)
}

// sh runs a shell script in the node's configuration tree.
func (n *ruler) sh(script string) string {
	n.r.t.Helper()
	return n.r.run(n.Node, "sh", "-euc", "cd "+lab.TreePath+"\n"+script)
}

// ask runs skd-inotify, which must succeed.
func (n *ruler) ask(args ...string) string {
	n.r.t.Helper()
	return n.r.run(n.Node, "skd-inotify", args...)
}

// refuses runs skd-inotify, which must fail, and returns what it says.
func (n *ruler) refuses(args ...string) string {
	n.r.t.Helper()
	out, err := n.Run("skd-inotify", args...)
	var failed *exec.ExitError
	if !errors.As(err, &failed) {
		n.r.t.Errorf("skd-inotify %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return out
}

func (n *ruler) log() string {
	text, err := n.ReadFile(logPath)
	if err != nil {
		return err.Error()
	}
	return text
}

// saidOnce checks that the replicator's log has the words once. It is written beside the work.
func (n *ruler) saidOnce(words string) {
	n.r.t.Helper()
	said := 0
	n.r.eventually(fmt.Sprintf("%q in the log of %s", words, n.Name), func() (bool, string) {
		said = strings.Count(n.log(), words)
		return said > 0, n.log()
	})
	if said != 1 {
		n.r.t.Errorf("%s said %d times %q:\n%s", n.Name, said, words, n.log())
	}
}

// status is what the replicator says of itself.
func (n *ruler) status() (s status.Replicator) {
	data, err := os.ReadFile(filepath.Join(n.Root(runDir), status.ReplicatorFile))
	if err != nil || json.Unmarshal(data, &s) != nil {
		return status.Replicator{}
	}
	return s
}

// problem waits until the replicator reports a problem with all words.
func (n *ruler) problem(words ...string) {
	n.r.t.Helper()
	n.r.eventually("the problem "+strings.Join(words, ", ")+" on "+n.Name, func() (bool, string) {
		s := n.status()
		return slices.ContainsFunc(s.Problems, func(p status.Problem) bool {
			return len(matching(p.Text+" -> "+p.Remedy, words...)) == 1
		}), fmt.Sprintf("%s, %v", s.State, s.Problems)
	})
}

// inStep waits until the node, which rules, says that both have the same, without
// a problem but those that have one of the words; and checks that: the trees, and what both nodes' records stand for.
func (n *ruler) inStep(except ...string) {
	n.r.t.Helper()
	n.r.eventually("in step", func() (bool, string) {
		s := n.status()
		wrong := slices.ContainsFunc(s.Problems, func(p status.Problem) bool {
			return !slices.ContainsFunc(except, func(words string) bool { return strings.Contains(p.Text, words) })
		})
		if s.State != status.InStep || s.Pending != 0 || wrong {
			return false, fmt.Sprintf("%s, %v", s.State, s.Problems)
		}
		return n.r.agree()
	})
	lab.SameTrees(n.r.t, n.r.a.Node, n.r.b.Node)
}

// agree tells whether both records have one vector, for what the trees hold.
func (r *realm) agree() (bool, string) {
	a, b := r.a.record(), r.b.record()
	text := fmt.Sprintf("records:\n%+v\n%+v", a, b)
	if len(a.Vector) == 0 || a.ID == b.ID || a.Vector.Compare(b.Vector) != vector.Equal || !maps.Equal(a.Trees, b.Trees) {
		return false, text
	}
	for _, n := range r.both() {
		holds, err := n.digests()
		for root, tree := range a.Trees {
			if err != nil || holds[root] != tree.Digest || len(holds) != len(a.Trees) {
				return false, fmt.Sprintf("%s\n%s holds %v, %v", text, n.Name, holds, err)
			}
		}
	}
	return true, ""
}

// honest checks that no record claims what is not there: two records with one
// vector stand for the same trees.
func (r *realm) honest() {
	r.t.Helper()
	a, b := r.a.record(), r.b.record()
	if a.Vector.Compare(b.Vector) == vector.Equal && !maps.Equal(a.Trees, b.Trees) {
		r.t.Errorf("one vector for two configurations:\n%+v\n%+v", a, b)
	}
}

// record is what the node knows of its configuration.
func (n *ruler) record() ledger.Record {
	n.r.t.Helper()
	record, _, err := ledger.Peek(n.Root(stateDir))
	n.r.check(err)
	return record
}

// digests are those of the trees as they are.
func (n *ruler) digests() (map[string]manifest.Digest, error) {
	exclude, _, err := fileset.ParseList("--exclude if_eth0_conf", peer.ReadRules)
	all := map[string]manifest.Digest{}
	for name, root := range map[string]scan.Root{
		peer.ConfigRoot:   {Dir: n.Root(lab.TreePath), Set: fileset.New(exclude, exclude)},
		peer.RTTablesRoot: {Dir: n.Root(filepath.Dir(lab.RTTablesPath)), Set: fileset.Only(filepath.Base(lab.RTTablesPath))},
	} {
		root.Name = name
		tree := scan.New(root)
		if err == nil {
			_, err = tree.Scan(n.r.t.Context(), false)
		}
		all[name] = tree.Manifest().Digest()
	}
	return all, err
}

// raised waits until the node's record has a later vector than before.
func (n *ruler) raised(before ledger.Record) {
	n.r.t.Helper()
	n.r.eventually("the record of "+n.Name+" to be raised", func() (bool, string) {
		now := n.record()
		return now.Vector.Compare(before.Vector) == vector.Ahead, fmt.Sprintf("%v, %v", now.Vector, n.status().Problems)
	})
}

// edit changes the tree while the peer is away, and waits until that is recorded.
func (n *ruler) edit(script string) {
	n.r.t.Helper()
	before := n.record()
	n.sh(script)
	n.raised(before)
	n.r.eventually("the record to be of the tree on "+n.Name, func() (bool, string) {
		record := n.record()
		now, err := n.digests()
		return err == nil && record.Trees[peer.ConfigRoot].Digest == now[peer.ConfigRoot], fmt.Sprint(record, now, err)
	})
}

// past is what skd-inotify history lists, the newest first.
type past struct {
	Named string `json:"name"`
	archive.Info
}

func (n *ruler) history() (list []past) {
	n.r.t.Helper()
	out := n.ask("history", "--json")
	n.r.check(json.Unmarshal([]byte(out), &list))
	return list
}

// kept are the files that the archives hold: reason, whose, path and text.
func (n *ruler) kept() []string {
	n.r.t.Helper()
	list := []string{}
	for _, one := range n.history() {
		for path, text := range n.files(one) {
			list = append(list, fmt.Sprintf("%s %s %s=%s", one.Reason, one.Holds, path, text))
		}
	}
	slices.Sort(list)
	return list
}

// files are the regular files of the configuration that an archive holds.
func (n *ruler) files(of past) map[string]string {
	n.r.t.Helper()
	var shown struct {
		Entries map[string][]struct{ Path, Kind string }
	}
	n.r.check(json.Unmarshal([]byte(n.ask("history", "--json", of.Named)), &shown))
	files := map[string]string{}
	for _, e := range shown.Entries[peer.ConfigRoot] {
		if e.Kind == manifest.File.String() {
			text, err := n.ReadFile(filepath.Join(stateDir, archive.Dir, of.Named, peer.ConfigRoot, e.Path))
			n.r.check(err)
			files[e.Path] = strings.TrimSuffix(text, "\n")
		}
	}
	return files
}

// keeps checks what the node has archived.
func (n *ruler) keeps(want ...string) {
	n.r.t.Helper()
	if got := n.kept(); !slices.Equal(got, append([]string{}, want...)) {
		n.r.t.Errorf("%s has archived %q, want %q", n.Name, got, want)
	}
}

// file is the text of a file of the tree; "-" if there is none.
func (n *ruler) file(name string) string {
	n.r.t.Helper()
	text, err := n.ReadFile(filepath.Join(lab.TreePath, name))
	if errors.Is(err, fs.ErrNotExist) {
		return "-"
	}
	n.r.check(err)
	return strings.TrimSuffix(text, "\n")
}

// has checks files of the tree.
func (n *ruler) has(files keys) {
	n.r.t.Helper()
	for name, want := range files {
		if got := n.file(name); got != want {
			n.r.t.Errorf("%s of %s: %q, want %q", name, n.Name, got, want)
		}
	}
}

// starts is which farms the node's Skudonet was started with.
func (n *ruler) starts() []string {
	text, _ := n.ReadFile(startsPath)
	return strings.Fields(text)
}

// applied waits until the node's Skudonet was started with this farm, and nothing is owed to it.
func (n *ruler) applied(farm string) {
	n.r.t.Helper()
	n.r.eventually("Skudonet to be started on "+n.Name, func() (bool, string) {
		_, err := os.Lstat(n.Root(runDir + "/apply.pending"))
		all := n.starts()
		return errors.Is(err, fs.ErrNotExist) && len(all) > 0 && all[len(all)-1] == farm, fmt.Sprint(all, err)
	})
}

// clean checks that nothing half done is left.
func (r *realm) clean() {
	r.t.Helper()
	r.eventually("nothing half done to be left", func() (bool, string) {
		var left []string
		for _, n := range r.both() {
			// The directory for temporary files stays, empty.
			for _, pattern := range []string{"/usr/local/skudonet/.skudonet*.new", "/usr/local/skudonet/.skudonet*.tmp/*", "/etc/iproute2/.*", "/etc/.skudonet*.new", "/etc/.skudonet*.tmp/*",
				lab.TreePath + "/.*", stateDir + "/swap.json*", stateDir + "/archive/.*", stateDir + "/.*", stateDir + "/outgoing/*"} {
				list, _ := filepath.Glob(n.Root(pattern))
				for _, path := range list {
					left = append(left, n.Name+": "+strings.TrimPrefix(path, n.Root("/")))
				}
			}
		}
		return len(left) == 0, strings.Join(left, "\n")
	})
}
