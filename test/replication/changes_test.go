package replication

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/status"
	"github.com/skudonet/skudonet-ce-cluster/test/lab"
)

// kind is one kind of change. Its scripts run in a directory of the tree that has
// its name, or in that of rt_tables; ../../out is on the same disk, outside the tree.
type kind struct {
	name   string
	before string                      // is on both nodes when change begins
	there  string                      // on the backup, behind the replicator's back
	change string                      // the change
	later  string                      // another, after that has arrived
	moment map[string]string           // by path, what a file held for a moment only
	after  func(t *testing.T, p *pair) // what equal trees do not show
}

const rtDir = "/etc/iproute2"

var content = []kind{
	{name: "edit", before: "echo 1 >f", change: "echo 2 >f"},
	{name: "edit-within", before: "seq 3000 >f", change: "printf abc | dd of=f conv=notrunc bs=1 seek=5000 status=none"},
	{name: "append", before: "echo 1 >f", change: "echo 2 >>f"},
	{name: "append-long", before: "seq 9000 >f", change: "seq 9 >>f"},
	{name: "truncate", before: "echo 1 >f", change: ": >f"},
	{name: "shorten", before: "seq 3000 >f", change: "truncate -s 100 f"},
	{name: "new", change: "echo 1 >f"},
	{name: "new-empty", change: ": >f"},
	{name: "new-hidden", change: "echo 1 >.f"},
	{name: "deep", change: "mkdir -p a/b/c/d/e/f/g/h/i/j; echo 1 >a/b/c/d/e/f/g/h/i/j/f; echo 2 >a/b/c/f", later: "echo 3 >a/b/c/d/e/f/g/h/i/j/f; echo 4 >a/b/c/d/g"},
	{name: "delete", before: "echo 1 >f; echo 2 >g", change: "rm f"},
	{name: "delete-and-new", before: "echo 1 >f", change: "rm f; echo 2 >f"},
	{name: "same-size-same-time", before: "echo 1 >f; touch -d @1000000000 f", change: "echo 2 >f; touch -d @1000000000 f"},
	{name: "same-size-same-time-renamed", before: "echo 1 >f; touch -d @1000000000 f", change: "echo 2 >../../out/s; touch -d @1000000000 ../../out/s; mv ../../out/s f"},
	{name: "older", before: "echo longer >f", change: "echo 1 >../../out/old; touch -d @1000000000 ../../out/old; cp -p ../../out/old f", after: sameTime("older/f")},
	{name: "older-same-size", before: "echo 1 >f", change: "echo 2 >../../out/old2; touch -d @1000000000 ../../out/old2; cp -p ../../out/old2 f", after: sameTime("older-same-size/f")},
	{name: "from-the-future", before: "echo 1 >f; touch -d @4000000000 f", change: "echo 22 >f", after: sameTime("from-the-future/f")},
	{name: "touched", before: "echo 1 >f; touch -d @1000000000 f", change: "touch f"},
	{name: "time", change: "echo 1 >../../out/time; touch -d '2020-02-02 02:02:02.123456789' ../../out/time; mv ../../out/time f", after: sameTime("time/f")},
	{name: "hard-link", before: "echo 1 >f", change: "ln f g; ln f h", later: "rm f"},
	{name: "hard-link-parted", before: "echo 1 >f; ln f g", change: "echo 2 >h; mv h f"},
	{name: "hard-link-edited", before: "mkdir d; echo 1 >f; ln f d/g", change: "echo 2 >>f"},
	{name: "odd-names", change: `echo 1 >-n; echo 2 >' a  b '; echo 3 >'q"'\'; echo 4 >'*?[x]'; echo 5 >"$(printf 'l\nf\377')"; echo 6 >'\#1'; echo 7 >'# x'; echo 8 >'; x'; mkdir -- -d; echo 9 >-d/--delete`},
}

var moves = []kind{
	{name: "rename", before: "echo 1 >f", change: "mv f g", later: "echo 2 >g"},
	{name: "rename-elsewhere", before: "mkdir d; echo 1 >f", change: "mv f d/g"},
	{name: "rename-over", before: "echo 1 >f; echo 2 >g", change: "mv f g"},
	{name: "rename-circle", before: "echo 1 >f; echo 2 >g", change: "mv f t; mv g f; mv t g"},
	{name: "rename-into-new", before: "echo 1 >f", change: "mkdir -p d/e; mv f d/e/f"},
	{name: "rename-case", before: "echo 1 >f", change: "mv f F"},
	{name: "rename-dir-over-empty", before: "mkdir -p d/s e; echo 1 >d/s/f", change: "mv -T d e", later: "echo 2 >e/s/f"},
	{name: "new-dir", change: "mkdir d"},
	{name: "rename-dir", before: "mkdir d; echo 1 >d/f", change: "mv d e; echo 2 >e/g; echo 3 >e/f", later: "echo 4 >e/f; rm e/g; mkdir e/h"},
	{name: "rename-dir-twice", before: "mkdir -p d/s; echo 1 >d/s/f", change: "mv d e; mv e g", later: "echo 2 >g/s/f"},
	{name: "rename-dir-and-new", before: "mkdir -p d/s; echo 1 >d/s/f", change: "mv d e; mkdir -p d/s; echo 2 >d/s/f", later: "echo 3 >e/s/f; echo 4 >d/s/f"},
	{
		name:   "rename-300",
		before: "for s in 1 2 3; do mkdir -p d/s$s/deep; for i in $(seq 100); do echo $s $i >d/s$s/f$i; done; done; echo 1 >d/s1/deep/f",
		change: "mv d e; echo 2 >e/s1/f1; echo 3 >e/s2/deep/f", later: "echo 4 >e/s2/f2; echo 5 >e/s1/deep/f; mv e/s3 e/s2/deep/s3; echo 6 >e/s2/deep/s3/f7",
	},
	{name: "swap-dirs", before: "mkdir a b; echo 1 >a/f; echo 2 >b/f; echo 3 >b/g", change: "mv a t; mv b a; mv t b", later: "echo 4 >a/f; echo 5 >b/f"},
	{name: "nest", before: "mkdir a b; echo 1 >a/f; echo 2 >b/f", change: "mv a b/a; mv b c; mkdir a; mv c a/b", later: "echo 3 >a/b/a/f"},
	{name: "out-of-the-tree", before: "mkdir -p d/s; echo 1 >d/s/f", change: "mv d ../../out/left", later: "echo 2 >../../out/left/s/f; echo 3 >../../out/left/g; echo 4 >f"},
	{name: "out-and-in", before: "mkdir -p d/s; echo 1 >d/s/f", change: "mv d ../../out/away; echo 2 >../../out/away/s/f; mv ../../out/away e", later: "echo 3 >e/s/f"},
	{name: "from-outside", change: "mkdir -p ../../out/in/s; echo 1 >../../out/in/s/f; mv ../../out/in d", later: "echo 2 >d/s/f; echo 3 >d/s/g"},
	{name: "delete-empty-dir", before: "mkdir d", change: "rmdir d"},
	{name: "delete-deep", before: "mkdir -p a/b/c/d/e; echo 1 >a/f; echo 2 >a/b/c/f; echo 3 >a/b/c/d/e/f; ln -s f a/b/l", change: "rm -r a"},
	{name: "delete-and-new-dir", before: "mkdir -p d/s; echo 1 >d/s/f", change: "rm -r d; mkdir -p d/s; echo 2 >d/s/g", later: "echo 3 >d/s/g"},
	{name: "copied", before: "mkdir -p d/s; echo 1 >d/f; ln -s f d/l; touch -d @1000000000 d/f; echo 2 >d/s/f; chmod 2750 d/s", change: "cp -a d e", after: sameTime("copied/e/f")},
}

var attributes = []kind{
	{name: "chmod", before: "echo 1 >f; touch -d @1000000000 f", change: "chmod 640 f"},
	{name: "chmod-dir", before: "mkdir d; echo 1 >d/f", change: "chmod 700 d"},
	{name: "chmod-000", before: "echo 1 >f; mkdir d; echo 2 >d/f", change: "chmod 0 f d", later: "chmod 600 f; echo 3 >f; chmod 0 f; echo 4 >d/f"},
	{name: "chmod-of-many", before: "mkdir d; for i in $(seq 40); do echo $i >d/$i; done", change: "chmod -R go-rwx d"},
	{name: "read-only", before: "mkdir d; echo 1 >d/f", change: "chmod 400 d/f; chmod 500 d", later: "echo 2 >d/f; echo 3 >d/g"},
	{name: "setuid", before: "echo 1 >f", change: "chmod 4755 f", later: "chown 33:33 f"},
	{name: "setuid-new", change: "echo 1 >f; chown 33:34 f; chmod 6711 f", later: "echo 2 >f"},
	{name: "sticky", before: "mkdir d", change: "chmod 1777 d"},
	{name: "setgid-dir", before: "mkdir d; chgrp 33 d", change: "chmod 2775 d; echo 1 >d/f", later: "mkdir d/e"},
	{name: "chown", before: "echo 1 >f", change: "chown 33 f"},
	{name: "chgrp", before: "echo 1 >f", change: "chgrp 33 f"},
	{name: "chown-unknown", before: "echo 1 >f", change: "chown 54321:65432 f"},
	{name: "chown-dir", before: "mkdir d; echo 1 >d/f", change: "chown 33:33 d"},
	{name: "chown-link", before: "echo 1 >f; ln -s f l", change: "chown -h 33:33 l"},
	{name: "chmod-and-edit", before: "echo 1 >f", change: "chmod 600 f; echo 2 >f; chmod 644 f"},
	{name: "the-tree-itself", change: "chmod 2711 ..; chown 33:33 ..", after: func(t *testing.T, p *pair) {
		if got := strings.TrimSpace(p.run(p.LB2, "stat", "-c", "%a %u %g", lab.TreePath)); got != "2711 33 33" {
			t.Errorf("the tree of lb2 has %s", got)
		}
	}},
}

// Nothing may be written to where links lead, on either node.
var links = []kind{
	{name: "link", before: "echo 1 >f", change: "ln -s f l"},
	{name: "link-dangling", change: "ln -s nowhere l"},
	{name: "link-to-dir", before: "mkdir d; echo 1 >d/f", change: "ln -s d l", later: "echo 2 >l/f"},
	{name: "link-outside", change: "ln -s /root/outside l; ln -s /root/outside/f m; ln -s ../../../../../root/outside n"},
	{name: "link-to-itself", change: "ln -s . l; ln -s m m"},
	{name: "link-retargeted", before: "echo 1 >f; ln -s f l", change: "ln -sf g l", later: "ln -sfn /root/outside l"},
	{name: "link-renamed", before: "ln -s f l", change: "mv l m"},
	{name: "link-deleted", before: "ln -s /root/outside l; ln -s /root/outside/f m", change: "rm l m"},
	{name: "link-in-the-way", before: "mkdir d; echo 1 >d/f; echo 2 >d/g", there: "rm -r d; ln -s /root/outside d", change: "echo 3 >d/f"},
	{name: "link-in-the-way-deeper", before: "mkdir -p d/e; echo 1 >d/e/f; echo 2 >d/e/g", there: "rm -r d/e; ln -s /root/outside d/e", change: "rm d/e/f; echo 3 >d/e/h"},
	{name: "link-in-the-way-removal", before: "mkdir d; echo 1 >d/f; echo 2 >d/g", there: "rm -r d; ln -s /root/outside d", change: "rm d/f"},
	{name: "link-in-the-way-chmod", before: "mkdir d; echo 1 >d/f", there: "rm -r d; ln -s /root/outside d", change: "chmod 700 d; chown 33 d"},
	{name: "link-for-file", before: "echo 1 >f", there: "rm f; ln -s /root/outside/f f", change: "echo 2 >f"},
	{name: "dir-in-the-way", before: "ln -s a l", there: "rm l; mkdir -p ../../out/l/e; echo 1 >../../out/l/e/f; mv ../../out/l l", change: "ln -sfn /root/outside l"},
	{name: "dir-for-file", before: "echo 1 >f", there: "rm f; mkdir -p ../../out/f/e; echo 1 >../../out/f/e/f; mv ../../out/f f", change: "echo 2 >f"},
}

// outside is where links lead to: nothing of it may change.
const outside = "mkdir -p /root/outside/e; echo outside >/root/outside/f; echo outside >/root/outside/e/f; chmod 751 /root/outside"
const lookOutside = "cd /root/outside; stat -c '%n %F %a %u %g %s' $(find . | sort); cat f e/f"

// replaced are file, directory and symlink, replaced by each other.
func replaced() (all []kind) {
	things := map[string][2]string{
		"file": {"echo 1 >x", "echo 2 >x"},
		"dir":  {"mkdir -p x/e/g; echo 1 >x/f; echo 2 >x/e/f; ln -s f x/l", "mkdir -p x/e/h; echo 3 >x/f; echo 4 >x/h; ln -s h x/e/l"},
		"link": {"ln -s /root/outside x", "ln -s /root/outside/e x"},
	}
	for from, of := range things {
		for to, by := range things {
			all = append(all, kind{name: from + "-to-" + to, before: of[0], change: "rm -r x; " + by[1]})
			// The same by renames, as a deployment does it.
			all = append(all, kind{name: from + "-to-" + to + "-renamed", before: of[0] + "; mkdir n; cd n; " + by[1], change: "mv x o; mv n/x x; rm -r o", later: "echo 5 >g"})
		}
	}
	slices.SortFunc(all, func(a, b kind) int { return strings.Compare(a.name, b.name) })
	return all
}

// editors save as these programs do. Files that are there for a moment only
// need not arrive.
var editors = []kind{
	{
		name: "vim", before: "echo 1 >x", moment: map[string]string{".x.swp": "swap", "4913": ""},
		change: "printf swap >.x.swp; : >4913; chmod 644 4913; rm 4913; mv x x~; echo 2 >x; chmod 644 x; rm x~; rm .x.swp",
	},
	{name: "vim-open", before: "echo 1 >x", change: "printf swap >.x.swp", later: "rm .x.swp"},
	{name: "emacs", before: "echo 1 >x", change: "ln -s me@lb1.1:2 .#x; echo 2 >'#x#'; mv x x~; echo 2 >x; rm '#x#' .#x"},
	{name: "nano", before: "echo 1 >x", moment: map[string]string{".x.swp": "nano"}, change: "printf nano >.x.swp; echo 2 >x; rm .x.swp"},
	{name: "joe", before: "echo 1 >x", change: "cp -p x x~; echo 2 >x"},
	{name: "kate", before: "echo 1 >x", change: "echo 2 >x.AbC123; mv x.AbC123 x"},
	{name: "sed-i", before: "echo 1 >x; chmod 640 x", change: "sed -i s/1/2/ x"},
	{name: "sed-i-backup", before: "echo 1 >x", change: "sed -i.bak s/1/2/ x"},
	{name: "perl-i", before: "echo 1 >x", change: "perl -pi -e s/1/2/ x"},
	{name: "tie-file", before: "seq 2000 >x", change: `perl -MTie::File -e 'tie my @l, "Tie::File", "x" or die; $l[7] = "a longer line"; $l[1000] = "x"; splice @l, 1500, 20; untie @l'`},
	{
		name: "git", moment: map[string]string{".git/objects/ab/tmp_obj_aB3dE6": "object"}, before: "mkdir -p .git/objects; printf i1 >.git/index; echo 1 >x",
		change: "mkdir .git/objects/ab; cd .git/objects/ab; printf object >tmp_obj_aB3dE6; chmod 444 tmp_obj_aB3dE6; ln tmp_obj_aB3dE6 cdef; rm tmp_obj_aB3dE6; cd ../..; printf i2 >index.lock; mv index.lock index; cd ..; rm x; echo 2 >x",
	},
	{name: "dpkg", before: "echo 1 >x", change: "echo 2 >x.dpkg-new; ln x x.dpkg-tmp; mv x.dpkg-new x; rm x.dpkg-tmp"},
	{name: "hidden-temporary", before: "echo 1 >x", change: "echo 2 >.x.Xy12Zz; mv .x.Xy12Zz x"},
	{name: "unlink-and-write", before: "echo 1 >x", change: "rm x; cp /etc/hostname x"},
}

// rtTables are the changes of rt_tables.
var rtTables = []kind{
	{name: "edit", change: "echo '201 table_eth1' >>rt_tables"},
	{name: "sed-i", change: "sed -i s/200/210/ rt_tables"},
	{name: "perl-i", change: "perl -pi -e s/210/211/ rt_tables"},
	{name: "same-size", change: "sed -i s/211/212/ rt_tables", later: "sed -i s/212/213/ rt_tables"},
	{name: "mode", change: "chmod 600 rt_tables; chown 33:33 rt_tables", later: "chmod 644 rt_tables; chown 0:0 rt_tables"},
	{name: "older", change: "echo '1 a' >/root/old; touch -d @1000000000 /root/old; cp -p /root/old rt_tables"},
	{name: "deleted", change: "cp rt_tables /root/rt; rm rt_tables", later: "cp /root/rt rt_tables"},
	// It is a link on the backup too, as everywhere: what it leads to is that node's own.
	{name: "link", change: "mv rt_tables /root/mine; ln -s /root/mine rt_tables", later: "rm rt_tables; mv /root/mine rt_tables"},
	{name: "truncated", change: ": >rt_tables", later: "echo '255 local' >rt_tables"},
	{name: "neighbours", change: "echo 1 >mine; mkdir mine.d; echo '9 x' >mine.d/rt_tables; echo '254 main' >>rt_tables", later: "rm -r mine mine.d; echo '0 unspec' >>rt_tables"},
	{name: "directory-renamed", change: "mv $PWD ../moved; mv ../moved $PWD; cd $PWD; echo '253 default' >>rt_tables", later: "echo '252 x' >>rt_tables"},
}

// sameTime is the check that a file has its time on the backup too.
func sameTime(path string) func(*testing.T, *pair) {
	return func(t *testing.T, p *pair) {
		t.Helper()
		var times []time.Time
		for _, n := range p.Nodes() {
			info, err := os.Lstat(n.Root(filepath.Join(lab.TreePath, path)))
			if err != nil {
				t.Fatal(err)
			}
			times = append(times, info.ModTime())
		}
		if !times[0].Equal(times[1]) {
			t.Errorf("%s is of %v on lb1 and of %v on lb2", path, times[0], times[1])
		}
	}
}

// witness knows every name that was in the master's tree, and every whole content,
// and holds what appeared on the backup against that.
type witness struct {
	p           *pair
	here, there *lab.Recorder
	named       map[string]bool            // last elements of paths
	whole       map[[32]byte]bool          // of any file
	at          map[string]map[string]bool // digest by path
}

// watch begins to record. Without names, the test names what was on the master itself.
func (p *pair) watch(names bool) *witness {
	p.t.Helper()
	w := &witness{p: p, named: map[string]bool{}, whole: map[[32]byte]bool{}, at: map[string]map[string]bool{}}
	var err error
	if names {
		w.here, err = p.LB1.RecordTree()
		p.check(err)
	}
	w.pause(p.LB2)
	w.name("local", "if_eth0_conf")
	w.there, err = p.LB2.RecordTree()
	p.check(err)
	w.pause(p.LB1)
	return w
}

// pause takes what a node has now: nobody is writing there.
func (w *witness) pause(n *lab.Node) {
	w.p.t.Helper()
	digest, err := n.TreeDigest()
	w.p.check(err)
	for name, what := range digest {
		w.held(name, what[strings.LastIndexByte(what, ' ')+1:])
	}
}

func (w *witness) held(name, hash string) {
	w.named[filepath.Base(name)] = true
	if w.at[name] == nil {
		w.at[name] = map[string]bool{}
	}
	w.at[name][hash] = true
}

// moments adds what a kind's files held for a moment.
func (w *witness) moments(k kind) {
	for name, text := range k.moment {
		w.held(filepath.Join(k.name, name), fmt.Sprintf("%x", sha256.Sum256([]byte(text))))
	}
}

// name adds names that may be there for too short a time to be recorded.
func (w *witness) name(names ...string) {
	for _, name := range names {
		w.named[name] = true
	}
}

// allow adds contents that any file may have had.
func (w *witness) allow(texts ...string) {
	for _, text := range texts {
		w.whole[sha256.Sum256([]byte(text))] = true
	}
}

// saw ends the record and fails the test for whatever should not have been seen.
func (w *witness) saw() {
	t := w.p.t
	t.Helper()
	if w.here != nil {
		w.p.check(w.here.Stop())
		for _, name := range w.here.Names() {
			w.named[filepath.Base(name)] = true
		}
	}
	// Not the whole path: below a directory that is renamed at once, nobody sees all of them.
	w.there.OnlyNames(t, func(name string) bool { return w.named[filepath.Base(name)] })
	hashes := map[string]bool{}
	for hash := range w.whole {
		hashes[fmt.Sprintf("%x", hash)] = true
	}
	for _, all := range w.at {
		for hash := range all {
			hashes[hash] = true
		}
	}
	empty := sha256.Sum256(nil)
	for _, name := range w.there.Names() {
		if name == "if_eth0_conf" {
			continue // of the node
		}
		for _, c := range w.there.Contents(name) {
			hash := fmt.Sprintf("%x", c.SHA256)
			// An empty file is whole only where it was meant to be: that is how torn ones begin.
			if c.SHA256 == empty && !w.whole[empty] && !w.at[name][hash] || !hashes[hash] {
				t.Errorf("lb2: %q held, at %s, %d bytes that it never held on lb1", name, c.At.Format("15:04:05.000"), c.Size)
			}
		}
	}
}

// at runs a script for a kind, in its directory of a node.
func (p *pair) at(n *lab.Node, dir string, kinds []kind, script func(kind) string) {
	p.t.Helper()
	var all strings.Builder
	for _, k := range kinds {
		if text := script(k); text != "" {
			fmt.Fprintf(&all, "(cd %s\n%s\n)\n", filepath.Join(dir, k.name), text)
		}
	}
	p.run(n, "sh", "-euc", all.String())
}

// prepare has both nodes where the changes begin.
func (p *pair) prepare(kinds []kind) {
	p.t.Helper()
	for _, n := range p.Nodes() {
		p.run(n, "sh", "-euc", outside)
	}
	p.at(p.LB1, lab.TreePath+"/..", []kind{{name: "."}}, func(kind) string { return "mkdir -p out" })
	p.at(p.LB1, lab.TreePath, []kind{{name: "."}}, func(kind) string {
		var names []string
		for _, k := range kinds {
			names = append(names, k.name)
		}
		return "mkdir -p " + strings.Join(names, " ")
	})
	p.at(p.LB1, lab.TreePath, kinds, func(k kind) string { return k.before })
}

func everyKind() []kind {
	return slices.Concat(content, moves, attributes, links, replaced(), editors)
}

// outsideUntouched fails the test if something was written through a link.
func (p *pair) outsideUntouched() {
	p.t.Helper()
	fresh := p.run(p.Client, "sh", "-euc", outside+"\n"+lookOutside)
	for _, n := range p.Nodes() {
		if got := p.run(n, "sh", "-euc", lookOutside); got != fresh {
			p.t.Errorf("%s: what links lead to was written to:\n%s\nwant\n%s", n.Name, got, fresh)
		}
	}
}

// settled has everything compared, so that trees which are the same by luck do not count.
func (p *pair) settled() {
	p.t.Helper()
	p.run(p.LB1, "skd-inotify", "sync")
	lab.SameTrees(p.t, p.LB1, p.LB2)
}

func TestKindsOfChange(t *testing.T) {
	for name, kinds := range map[string][]kind{
		"content": content, "moves": moves, "attributes": attributes, "links": links, "replaced": replaced(), "editors": editors,
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t)
			p.prepare(kinds)
			p.start()
			p.inStep()
			w := p.watch(true)
			for _, k := range kinds {
				t.Run(k.name, func(t *testing.T) {
					p := &pair{Lab: p.Lab, t: t, daemon: p.daemon}
					w.moments(k)
					one := []kind{k}
					if k.there != "" {
						p.at(p.LB2, lab.TreePath, one, func(k kind) string { return k.there })
						w.pause(p.LB2)
					}
					for _, script := range []string{k.change, k.later} {
						p.at(p.LB1, lab.TreePath, one, func(kind) string { return script })
						w.pause(p.LB1)
						p.same()
					}
					if k.after != nil {
						k.after(t, p)
					}
				})
			}
			p.settled()
			w.saw()
			p.outsideUntouched()
			if s := p.status(); len(s.Problems) > 0 {
				t.Errorf("problems: %v", s.Problems)
			}
		})
	}
}

func TestKindsOfChangeOfRTTables(t *testing.T) {
	// The other place is for the recorder, which knows the tree only.
	for _, dir := range []string{rtDir, lab.TreePath} {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			p := newPair(t, keys{"rttables": dir + "/rt_tables", "configdir": "/usr/local/skudonet/tree"})
			for _, n := range p.Nodes() {
				p.run(n, "sh", "-euc", "mkdir /usr/local/skudonet/tree; cd "+lab.TreePath+"; cp global.conf ../tree; cp -n "+lab.RTTablesPath+" "+dir)
			}
			p.start()
			p.inStep()
			list := func() string { return p.run(p.LB2, "ls", "-A", dir) }
			before := list()
			w := p.watch(true)
			for _, k := range rtTables {
				t.Run(k.name, func(t *testing.T) {
					p := &pair{Lab: p.Lab, t: t, daemon: p.daemon}
					for _, script := range []string{k.change, k.later} {
						p.run(p.LB1, "sh", "-euc", "cd "+dir+"\n"+script)
						w.pause(p.LB1)
						p.same("mine", "mine.d")
						if after := list(); after != before && k.name != "deleted" {
							t.Errorf("lb2 has\n%swant\n%s", after, before)
						}
					}
				})
			}
			p.settled()
			w.saw()
		})
	}
}

// All kinds at once: in a moment, and while the backup or we were not there.
func TestAllKindsAtOnce(t *testing.T) {
	for name, around := range map[string][2]func(*pair){
		"in a moment": {func(*pair) {}, func(*pair) {}},
		"while the backup was off": {
			func(p *pair) { p.check(p.LB2.PowerOff()) },
			func(p *pair) {
				p.check(p.LB2.PowerOn())
				_, err := p.LB2.StartSSH()
				p.check(err)
			},
		},
		"while the network was": {
			func(p *pair) { p.check(p.LB2.Isolate()) },
			func(p *pair) { p.check(p.LB2.Heal()) },
		},
		"while the replicator was": {
			func(p *pair) { p.check(p.daemon.Stop()) },
			func(p *pair) { p.start() },
		},
		"while the replicator slept": {
			func(p *pair) { p.check(p.daemon.Signal(unix.SIGSTOP)) },
			func(p *pair) { p.check(p.daemon.Signal(unix.SIGCONT)) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			kinds := everyKind()
			p := newPair(t)
			p.prepare(kinds)
			p.start()
			p.inStep()
			w := p.watch(true)
			around[0](p)
			for _, k := range kinds {
				w.moments(k)
			}
			p.at(p.LB1, lab.TreePath, kinds, func(k kind) string { return k.change })
			p.run(p.LB1, "sh", "-euc", "sed -i s/200/210/ "+lab.RTTablesPath)
			w.pause(p.LB1)
			around[1](p)
			p.same()
			p.at(p.LB1, lab.TreePath, kinds, func(k kind) string { return k.later })
			w.pause(p.LB1)
			p.same()
			p.settled()
			w.saw()
			p.outsideUntouched()
			for _, k := range kinds {
				if k.after != nil {
					k.after(t, p)
				}
			}
		})
	}
}

// More events than the kernel's queue takes, and kinds among them.
func TestQueueOverflow(t *testing.T) {
	p := newPair(t)
	p.prepare(moves)
	p.start()
	p.inStep()
	w := p.watch(false)
	p.check(p.daemon.Signal(unix.SIGSTOP))
	text, err := os.ReadFile("/proc/sys/fs/inotify/max_queued_events")
	p.check(err)
	queue, err := strconv.Atoi(strings.TrimSpace(string(text)))
	p.check(err)
	p.sh(fmt.Sprintf(`mkdir many; perl -e 'for (0..%d) { open F, ">many/$_" or die; close F; $_ %% 50 and unlink "many/$_" }'`, max(queue, 20_000)))
	p.at(p.LB1, lab.TreePath, moves, func(k kind) string { return k.change })
	w.pause(p.LB1)
	p.check(p.daemon.Signal(unix.SIGCONT))
	p.same()
	p.at(p.LB1, lab.TreePath, moves, func(k kind) string { return k.later })
	w.pause(p.LB1)
	p.same()
	p.settled()
	w.saw()
}

func TestSameSizeEditsWithinASecond(t *testing.T) {
	p := startPair(t)
	w := p.watch(true)
	for i := range 20 {
		p.sh(fmt.Sprintf("echo %c >f; echo %[1]c >../g; mv ../g g", 'a'+i))
		w.pause(p.LB1)
		p.same()
	}
	p.settled()
	w.saw()
}

func TestManySmallChanges(t *testing.T) {
	p := startPair(t)
	w := p.watch(true)
	var script strings.Builder
	for i := range 300 {
		fmt.Fprintf(&script, "echo %d >f%d\n", i, i%37)
		w.allow(fmt.Sprintln(i))
	}
	p.sh(script.String() + "rm f3 f5; mv f7 f3; chmod 600 f9")
	w.pause(p.LB1)
	p.same()
	p.settled()
	w.saw()
}

func TestBurstOf2000Files(t *testing.T) {
	p := startPair(t)
	w := p.watch(true)
	p.sh("mkdir burst; cd burst; perl -e 'for (1..2000) { mkdir \"d\" . $_ % 20; open F, \">d\" . $_ % 20 . \"/f$_\" or die; print F \"file $_\\n\" x 50; close F }'")
	w.pause(p.LB1)
	p.same()
	p.sh("perl -e 'for (glob \"burst/*/*\") { open F, \">>$_\" or die; print F \"more\\n\"; close F }'")
	w.pause(p.LB1)
	p.same()
	p.sh("rm -r burst")
	p.problem("most files vanished", "sync --confirm") // and an admin says that it is no accident
	p.run(p.LB1, "skd-inotify", "sync", "--confirm")
	p.same()
	p.settled()
	w.saw()
}

// Skudonet changes a farm's file a line at a time.
func TestFileWritten192TimesInARow(t *testing.T) {
	p := startPair(t)
	const name = "farm_proxy.cfg"
	var lines []string
	for i := range 192 {
		lines = append(lines, fmt.Sprintf("line %d", i))
	}
	text := func() string { return strings.Join(lines, "\n") + "\n" }
	p.check(p.LB1.WriteFile(lab.TreePath+"/"+name, text(), 0o644))
	p.same()
	w := p.watch(true)
	for i := range lines {
		lines[i] = fmt.Sprintf("a longer line %d", i)
		w.allow(text())
	}
	p.sh(`perl -e 'for my $n (0..191) { open F, "+<", "` + name + `" or die; my @l = <F>; $l[$n] = "a longer line $n\n"; seek F, 0, 0; print F @l; truncate F, tell F; close F }'`)
	w.pause(p.LB1)
	p.same()
	p.settled()
	w.saw()
	if runs := p.status().Replicator.Runs; runs >= 192 {
		t.Errorf("192 writes in a row took %d runs of rsync", runs)
	}
}

// writeSlowly writes pieces into a new file of the master, which stays open.
func (p *pair) writeSlowly(name string, more func(i int) bool) (whole string) {
	p.t.Helper()
	f, err := os.Create(p.LB1.Root(filepath.Join(lab.TreePath, name)))
	p.check(err)
	defer f.Close()
	var text bytes.Buffer
	for i := 0; more(i); i++ {
		piece := strings.Repeat(fmt.Sprintf("piece %d\n", i), 100)
		text.WriteString(piece)
		_, err := f.WriteString(piece)
		p.check(err)
		time.Sleep(50 * time.Millisecond)
	}
	p.check(f.Close())
	return text.String()
}

func TestSlowlyWrittenFileIsNeverVisibleHalf(t *testing.T) {
	p := startPair(t)
	w := p.watch(true)
	begin := time.Now()
	whole := p.writeSlowly("slow", func(i int) bool {
		if i == 20 {
			p.sh("echo 1 >quick") // does not wait for it
		}
		return time.Since(begin) < 3*time.Second
	})
	if took := time.Since(begin); took > 4500*time.Millisecond {
		t.Skipf("writing took %v on this machine: half of it may be sent", took)
	}
	w.pause(p.LB1)
	p.same()
	w.allow("1\n", whole)
	p.settled()
	w.saw()
}

func TestFileThatIsWrittenForLongArrivesNevertheless(t *testing.T) {
	p := startPair(t)
	begin := time.Now()
	arrived := false
	p.writeSlowly("endless", func(int) bool {
		text, err := p.LB2.ReadFile(lab.TreePath + "/endless")
		arrived = err == nil && text != ""
		return !arrived && time.Since(begin) < limit
	})
	if !arrived {
		t.Errorf("after %v of writing nothing of it has arrived", time.Since(begin))
	}
	p.same()
	p.settled()
}

func TestEditDuringATransfer(t *testing.T) {
	p := startPair(t, keys{"rsync_args": "-a --delete --bwlimit=8m"})
	p.sh("mkdir d; echo 1 >d/f; echo 1 >other")
	p.same()
	w := p.watch(true)
	p.sh("head -c 60M /dev/urandom >../big; mv ../big big")
	w.pause(p.LB1)
	p.eventually("a transfer under way", func() (bool, string) {
		s := p.status()
		return s.State == status.Replicating, s.State
	})
	p.sh("printf changed | dd of=big conv=notrunc bs=1 seek=30000000 status=none")
	p.sh("echo 2 >other; mv d e; echo 2 >e/f; mkdir -p n/m; echo 2 >n/m/f; rm global.conf; echo new >global.conf")
	if _, err := p.LB2.ReadFile(lab.TreePath + "/big"); err == nil {
		t.Error("the transfer was over before anything was changed")
	}
	w.pause(p.LB1) // reads all of big, which takes a while
	p.same()
	p.sh("echo more >>big; echo 3 >other")
	w.pause(p.LB1)
	p.same()
	p.settled()
	w.saw()
}

func TestTightLoopOfRewrites(t *testing.T) {
	for name, script := range map[string]string{
		"in place":   `open F, ">", "f" or die; $s = $n % 2 ? "A" : "B"; print F $s x 1000 for 1..200; close F`,
		"by renames": `open F, ">", "../new" or die; $s = $n % 2 ? "A" : "B"; print F $s x 1000 for 1..200; close F; rename "../new", "f" or die`,
		// The one who reads sees a moment of every write.
		"without truncating": `open F, $n == 1 ? ">" : "+<", "f" or die; $s = $n % 2 ? "A" : "B"; print F $s x 1000 for 1..200; close F`,
	} {
		t.Run(name, func(t *testing.T) {
			p := startPair(t)
			w := p.watch(true)
			w.allow(strings.Repeat("A", 200_000), strings.Repeat("B", 200_000))
			p.sh(`perl -e 'use Time::HiRes "time"; $end = time + 3; while (time < $end) { $n++; ` + script + ` }'`)
			w.pause(p.LB1)
			p.same()
			p.settled()
			w.saw()
		})
	}
}

func TestSkudonetsRewriteWithoutChangeIsNoChange(t *testing.T) {
	p := startPair(t)
	w := p.watch(true)
	for i := range 3 {
		p.run(p.LB1, "/etc/init.d/skudonet", "stop")
		p.run(p.LB1, "/etc/init.d/skudonet", "start")
		p.sh(fmt.Sprintf("echo %d >mark", i))
		w.pause(p.LB1)
		p.same()
	}
	p.settled()
	w.saw()
	for line := range strings.Lines(p.log()) {
		if strings.Contains(line, "replicated ") && strings.Contains(line, "global.conf") {
			t.Errorf("nothing changed, and the log says: %s", line)
		}
	}
	if !strings.Contains(p.log(), "replicated 1 change: mark") {
		t.Errorf("the log does not have the change of mark:\n%s", p.log())
	}
}

// own are the files that belong to each node.
var own = []string{"local/x", "local/d/y", "if_eth0_conf", "if_eth0.100_conf", "d/if_bond0_conf"}

// keepsOwn fails the test unless the node still has what it wrote.
func (p *pair) keepsOwn(n *lab.Node) {
	p.t.Helper()
	for _, name := range own {
		if text, err := n.ReadFile(filepath.Join(lab.TreePath, name)); err != nil || text != n.Name+"\n" {
			p.t.Errorf("%s: %s holds %q, %v", n.Name, name, text, err)
		}
	}
}

func TestFilesOfTheNodeNeverCross(t *testing.T) {
	for _, exclude := range []string{"--exclude if_eth0_conf", "", "--include=if_*_conf"} {
		t.Run("exclude "+exclude, func(t *testing.T) {
			p := newPair(t, keys{"exclude": exclude})
			p.sh("mkdir d; echo 1 >d/f")
			p.start()
			p.inStep()
			writeOwn := func(n *lab.Node) {
				p.run(n, "sh", "-euc", "cd "+lab.TreePath+"; mkdir -p local/d; for f in "+strings.Join(own, " ")+"; do echo "+n.Name+" >$f; done")
			}
			for _, n := range p.Nodes() {
				writeOwn(n)
			}
			p.sh("echo 2 >d/f; echo virtual >if_eth0:1_conf; echo virtual >d/if_eth0.100:7_conf; echo 1 >locals; mkdir d/local; echo 1 >d/local/x")
			p.same()
			if text, _ := p.LB2.ReadFile(lab.TreePath + "/if_eth0:1_conf"); text != "virtual\n" {
				t.Errorf("the virtual interface has not crossed: %q", text)
			}
			if text, _ := p.LB2.ReadFile(lab.TreePath + "/d/local/x"); text != "1\n" {
				t.Errorf("only local/ at the top belongs to the node: %q", text)
			}
			for _, n := range p.Nodes() {
				p.keepsOwn(n)
			}
			// Into what belongs to the node, and out of it.
			p.sh("mkdir local/in; echo 1 >local/in/f; mv local/in in; mkdir out; echo 1 >out/f; mv if_eth0:1_conf if_eth0:2_conf")
			p.same()
			p.sh("mv out local/out; echo 2 >local/out/f; echo 2 >in/f; mv if_eth0:2_conf if_eth2_conf; echo 3 >d/f")
			p.same()
			for _, name := range []string{"local/in", "local/out", "if_eth2_conf", "out", "if_eth0:2_conf"} {
				if out, err := p.LB2.Run("ls", "-d", filepath.Join(lab.TreePath, name)); err == nil {
					t.Errorf("lb2 has %s", out)
				}
			}
			p.sh("rm -r local/out if_eth2_conf")
			// Only the backup has them, and everything is compared.
			p.sh("rm -r local if_eth0_conf if_eth0.100_conf d/if_bond0_conf; chmod 700 d")
			p.same()
			p.settled()
			p.keepsOwn(p.LB2)
			p.check(p.daemon.Stop())
			p.run(p.LB1, "rm", filepath.Join(runDir, status.ReplicatorFile)) // old news
			p.start()
			p.inStep()
			p.settled()
			p.keepsOwn(p.LB2)
			// Only the master has them.
			writeOwn(p.LB1)
			p.run(p.LB2, "sh", "-euc", "cd "+lab.TreePath+"; rm -r local if_eth0_conf if_eth0.100_conf d/if_bond0_conf")
			p.sh("echo 3 >d/f")
			p.same()
			p.settled()
			for _, name := range own {
				if text, err := p.LB2.ReadFile(filepath.Join(lab.TreePath, name)); err == nil {
					t.Errorf("%s has crossed: %q", name, text)
				}
			}
			p.keepsOwn(p.LB1)
		})
	}
}

func TestDirectoryWithAFileOfTheBackupStays(t *testing.T) {
	p := startPair(t)
	p.sh("mkdir d; echo 1 >d/f")
	p.same()
	p.run(p.LB2, "sh", "-c", "echo mine >"+lab.TreePath+"/d/if_eth9_conf")
	p.sh("rm -r d")
	p.same("d")
	p.problem("d: ")
	if text, err := p.LB2.ReadFile(lab.TreePath + "/d/if_eth9_conf"); text != "mine\n" {
		t.Errorf("the backup's own file: %q, %v", text, err)
	}
	if text, err := p.LB2.ReadFile(lab.TreePath + "/d/f"); err == nil {
		t.Errorf("the other file is there still: %q", text)
	}
	p.run(p.LB2, "rm", lab.TreePath+"/d/if_eth9_conf")
	p.noProblem()
	p.same()
}

// What either node excludes is left alone on both.
func TestExclude(t *testing.T) {
	p := newPair(t)
	p.check(p.LB1.Configure(keys{"exclude": `--exclude 'a b' --exclude="*.log" --exclude /top`}))
	p.check(p.LB2.Configure(keys{"exclude": "--exclude /own/ --exclude=*.tmp"}))
	excluded := []string{"a b/f", "d/a b", "x.log", "d/y.log", "top", "own/f", "d/z.tmp"}
	included := []string{"a", "b", "d/top", "d/own/f", "x.logs", "own2/f"}
	write := func(n *lab.Node, names []string) {
		t.Helper()
		for _, name := range names {
			name = filepath.Join(lab.TreePath, name)
			p.run(n, "mkdir", "-p", filepath.Dir(name))
			p.check(n.WriteFile(name, n.Name, 0o644))
		}
	}
	holds := func(n *lab.Node, names []string, want string) {
		t.Helper()
		for _, name := range names {
			if text, _ := n.ReadFile(filepath.Join(lab.TreePath, name)); text != want {
				t.Errorf("%s: %s holds %q, want %q", n.Name, name, text, want)
			}
		}
	}
	skip := []string{"a b", "*.log", "top", "own", "*.tmp"}
	write(p.LB2, excluded)
	write(p.LB1, included)
	p.start()
	p.inStep(skip...)
	write(p.LB1, excluded[:3])
	write(p.LB1, excluded[3:])
	p.sh("echo mark >mark")
	p.same(skip...)
	p.run(p.LB1, "skd-inotify", "sync")
	holds(p.LB1, excluded, "lb1")
	holds(p.LB2, excluded, "lb2")
	holds(p.LB2, included, "lb1")
	p.sh("rm -r 'a b' 'd/a b' *.log d/*.log own d/*.tmp")
	p.sh("echo mark2 >mark")
	p.same(skip...)
	p.run(p.LB1, "skd-inotify", "sync")
	holds(p.LB2, excluded, "lb2")
	lab.SameTrees(t, p.LB1, p.LB2, skip...)
}

func TestTouchedFilesAreNotSent(t *testing.T) {
	p := startPair(t)
	runs := func() (n uint64) {
		if r := p.status().Replicator; r != nil {
			n = r.Runs
		}
		return n
	}
	p.sh("echo 1 >f")
	p.same()
	p.eventually("a run of rsync", func() (bool, string) { return runs() == 1, fmt.Sprint(runs()) })
	p.sh("touch f zlb-start; cat f >/dev/null; echo 1 >f; cp f ../f; mv ../f f")
	p.settled()
	p.sh("echo 2 >f")
	p.same()
	p.eventually("another run of rsync", func() (bool, string) { return runs() > 1, fmt.Sprint(runs()) })
	if n := runs(); n != 2 {
		t.Errorf("%d runs of rsync for nothing", n-2)
	}
}

// A command that runs on in the master while the test does something else.
func (p *pair) background(script string) (wait func()) {
	p.t.Helper()
	c := p.LB1.Command(context.Background(), "sh", "-euc", "cd "+lab.TreePath+"\n"+script)
	p.check(c.Start())
	return func() {
		p.t.Helper()
		p.check(c.Wait())
	}
}

// Directories are made, renamed and deleted faster than anybody can look.
func TestRestlessDirectories(t *testing.T) {
	p := startPair(t)
	w := p.watch(true)
	wait := p.background(`for i in $(seq 150); do mkdir -p r/a/b; echo $i >r/a/b/f; mv r/a r/c; echo $i.0 >r/c/g; mv r s; mkdir r; mv s/c r/c; rm -r s; mv r/c/b r/b$i; [ $((i % 3)) = 0 ] || rm -r r/b$i; rm -r r/c; done`)
	for i := range 150 {
		w.name(fmt.Sprintf("b%d", i+1))
		w.allow(fmt.Sprintln(i+1), fmt.Sprintf("%d.0\n", i+1))
	}
	w.name("r", "s", "a", "b", "c", "f", "g")
	wait()
	w.pause(p.LB1)
	p.same()
	p.settled()
	w.saw()
}

func TestChangesDuringTheFirstComparison(t *testing.T) {
	p := newPair(t)
	p.sh("mkdir many; cd many; perl -e 'for (1..1500) { mkdir \"d\" . $_ % 50; open F, \">d\" . $_ % 50 . \"/f$_\" or die; print F \"file $_\\n\" x 20; close F }'")
	w := p.watch(true)
	w.pause(p.LB1)
	p.start()
	for i := range 40 {
		p.sh(fmt.Sprintf("cd many; n=%d; echo $n >d$n/f$n; mv d$n/f%d e$n; rm d$n/f%d; mkdir n$n; mv d$n n$n/d", i+1, i+51, i+101))
		w.allow(fmt.Sprintln(i + 1))
	}
	w.pause(p.LB1)
	p.same()
	p.settled()
	w.saw()
}

// Whatever comes, in whatever order: the seed that fails is in the log.
func TestRandomChanges(t *testing.T) {
	for range 2 {
		t.Run("", func(t *testing.T) {
			p := startPair(t)
			// So many others that never most of the tree goes at once.
			p.sh("mkdir others; for i in $(seq 200); do echo $i >others/$i; done")
			p.inStep()
			w := p.watch(false)
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			random := rand.New(rand.NewPCG(seed, 0))
			top := p.LB1.Root(lab.TreePath + "/random")
			p.check(os.Mkdir(top, 0o755))
			w.name("random")
			names := []string{"a", "b", "c", "d", "e"}
			w.name(names...)
			some := func() string {
				file := top
				for range 1 + random.IntN(3) {
					file = filepath.Join(file, names[random.IntN(len(names))])
				}
				return file
			}
			// What cannot be done, as there is no such directory or file, is not.
			one := func(i int) {
				file, other := some(), some()
				text := fmt.Sprintf("content %d\n", i)
				switch random.IntN(10) {
				case 0, 1:
					os.MkdirAll(file, 0o755)
				case 2, 3, 4:
					if os.WriteFile(file, []byte(text), 0o644) == nil {
						w.allow(text)
					}
				case 5, 6:
					os.Rename(file, other)
				case 7:
					os.RemoveAll(file)
				case 8:
					os.Lchown(file, random.IntN(3), random.IntN(3))
					if info, err := os.Lstat(file); err == nil && info.Mode()&os.ModeSymlink == 0 {
						os.Chmod(file, os.FileMode(random.IntN(0o1000)))
					}
				default:
					if random.IntN(2) == 0 {
						os.Symlink(names[random.IntN(len(names))], file)
					} else {
						os.Link(file, other)
					}
				}
			}
			for i := range 1500 {
				one(i)
				switch random.IntN(100) {
				case 0:
					p.same()
				case 1, 2, 3:
					time.Sleep(time.Duration(random.IntN(30)) * time.Millisecond)
				}
			}
			w.pause(p.LB1)
			p.same()
			p.settled()
			w.saw()
			if s := p.status(); len(s.Problems) > 0 {
				t.Errorf("problems: %v", s.Problems)
			}
		})
	}
}

// renameat2(2) swaps two directories, or a file and a directory, at once.
func TestExchange(t *testing.T) {
	p := startPair(t)
	p.sh("mkdir -p a/s b; echo 1 >a/s/f; echo 2 >b/g; echo 3 >f")
	p.same()
	w := p.watch(true)
	for _, swap := range [][2]string{{"a", "b"}, {"a", "f"}, {"b/s", "f/g"}} {
		p.check(unix.Renameat2(unix.AT_FDCWD, p.LB1.Root(filepath.Join(lab.TreePath, swap[0])),
			unix.AT_FDCWD, p.LB1.Root(filepath.Join(lab.TreePath, swap[1])), unix.RENAME_EXCHANGE))
		w.pause(p.LB1)
		p.same()
		p.sh("for d in $(find a b f -type d); do echo " + swap[0] + swap[1] + " >$d/new; done")
		w.pause(p.LB1)
		p.same()
	}
	p.settled()
	w.saw()
}
