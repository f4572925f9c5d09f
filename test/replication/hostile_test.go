package replication

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/control"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
	"github.com/skudonet/skudonet-ce-cluster/test/lab"
)

// What lies in the tree, or does not, on bad days.

// at is the host's path of something in a node's configuration tree.
func at(n *lab.Node, file string) string { return n.Root(lab.TreePath) + "/" + file }

// exists tells whether there is something in a node's tree.
func exists(n *lab.Node, file string) bool {
	_, err := os.Lstat(at(n, file))
	return err == nil
}

func (p *pair) reaches(file, text string) {
	p.t.Helper()
	p.eventually(fmt.Sprintf("%q on the peer", file), func() (bool, string) {
		info, err := os.Lstat(at(p.LB2, file))
		if err != nil || !info.Mode().IsRegular() {
			return false, fmt.Sprint(info, err)
		}
		data, err := os.ReadFile(at(p.LB2, file))
		return err == nil && string(data) == text, fmt.Sprintf("%q, %v", data, err)
	})
}

func (p *pair) goes(file string) {
	p.t.Helper()
	p.eventually(fmt.Sprintf("no %q on the peer", file), func() (bool, string) { return !exists(p.LB2, file), "" })
}

// startAs starts the replicator by way of a shell script on lb1.
func (p *pair) startAs(script string) {
	p.t.Helper()
	d, err := p.LB1.Start(lab.DaemonSpec{Name: "skd-inotify", Args: []string{"sh", "-euc", script}})
	p.check(err)
	p.daemon = d
}

// compareNow has everything compared, and gives what the command says and whether both
// nodes have the same.
func (p *pair) compareNow() (string, bool) {
	out, err := p.LB1.Run("skd-inotify", "sync")
	return out, err == nil
}

// said tells how often the log has the words.
func (p *pair) said(words string) int { return strings.Count(p.log(), words) }

// unprivileged runs the replicator as a root that cannot read everything.
const unprivileged = "exec setpriv --bounding-set -dac_override,-dac_read_search skd-inotify"

func TestUnreadableIsNamedAndMended(t *testing.T) {
	p := newPair(t)
	p.sh("mkdir -p shut/below; echo old >shut/below/file; echo old >secret; echo 1 >other")
	p.startAs(unprivileged)
	p.inStep()
	p.sh("chmod 0 secret shut; echo 2 >other; mkdir new; echo 1 >new/file")
	p.reaches("other", "2\n")
	p.reaches("new/file", "1\n")
	p.problem("secret", "cannot be read")
	p.problem("shut", "cannot be read")
	if out, ok := p.compareNow(); ok || !strings.Contains(out, "secret") {
		t.Errorf("sync says %q", out)
	}
	for _, s := range p.status().Problems {
		if s.Remedy == "" {
			t.Errorf("the problem %q has no remedy", s.Text)
		}
	}
	p.reaches("secret", "old\n") // what the peer has is left alone
	p.reaches("shut/below/file", "old\n")
	p.sh("echo 3 >other; rm -r new") // and the rest goes on
	p.reaches("other", "3\n")
	p.goes("new")
	p.sh("chmod 600 secret; chmod 700 shut; echo new >shut/below/file")
	p.inStep()
	p.noProblem()
}

func TestFlushDoesNotWaitForWhatCannotBeSent(t *testing.T) {
	p := newPair(t)
	p.startAs(unprivileged)
	p.inStep()
	p.sh("echo 1 >secret; chmod 0 secret")
	p.problem("secret")
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	before := p.status().Replicator.Runs
	cpu, err := p.daemon.CPU()
	p.check(err)
	last, err := control.Do(ctx, filepath.Join(p.LB1.Root(runDir), control.SocketName), control.Request{Command: "flush"}, func(control.Reply) {})
	after, _ := p.daemon.CPU()
	if err != nil || last.Exit == 0 || !strings.Contains(last.Text, "secret") {
		t.Errorf("flush: %+v, %v; %v of processor time, %d runs of rsync meanwhile", last, err, after-cpu, p.status().Replicator.Runs-before)
	}
}

func TestVanishingDirectory(t *testing.T) {
	p := startPair(t)
	p.sh(`mkdir stay; for i in $(seq 100); do echo >stay/$i; done # so that not most files vanish
	for i in $(seq 40); do
		mkdir -p van/ish/$i; for f in 1 2 3 4 5 6 7 8; do echo $i >van/ish/$i/$f; done
		if [ $((i % 3)) = 0 ]; then mv van/ish van.$i; rm -rf van.$((i-3)) ; else rm -rf van/ish/$((i-1)); fi
		if [ $((i % 7)) = 0 ]; then rm -rf van; fi
	done`)
	p.inStep()
	p.noProblem()
}

func TestSpecialFilesAreNamedAndLeftOut(t *testing.T) {
	p := newPair(t)
	tree := at(p.LB1, "")
	p.check(unix.Mkfifo(tree+"fifo", 0o644))
	p.start()
	p.inStep("fifo")
	p.problem("fifo", "FIFO")

	p.sh("echo 1 >became; mkdir d; echo 1 >d/file; echo 1 >plain")
	p.inStep()
	p.sh("rm became; mkfifo became; mknod dev c 1 3; mkfifo d/pipe; echo 2 >plain; echo 2 >d/file")
	l, err := net.Listen("unix", filepath.Join(p.LB1.Root("/run"), "s"))
	p.check(err)
	defer l.Close()
	// A socket's path is short; it is born elsewhere and moved in, which needs the same filesystem.
	p.sh("perl -MIO::Socket::UNIX -e 'IO::Socket::UNIX->new(Local => \"sock\", Listen => 1) or die'")
	p.reaches("plain", "2\n")
	p.reaches("d/file", "2\n")
	p.goes("became") // it is a file no more
	p.compareNow()
	for _, name := range []string{"became", "dev", "d/pipe", "sock", "fifo"} {
		p.problem(path.Base(name))
		if exists(p.LB2, name) {
			t.Errorf("%s is on the peer", name)
		}
	}
	if n := p.said("not replicated, because"); n > 6 {
		t.Errorf("special files were named %d times:\n%s", n, p.log())
	}
	p.inStep()

	// What the peer has of the kind where we have a file, or below what is removed here.
	p.check(unix.Mkfifo(at(p.LB2, "here"), 0o644))
	p.check(unix.Mkfifo(at(p.LB2, "d/theirs"), 0o644))
	p.sh("rm -f became dev d/pipe sock fifo; echo 3 >here")
	p.reaches("here", "3\n")
	p.sh("rm -r d")
	p.goes("d/file")
	p.problem("d", "theirs")
	p.check(os.Remove(at(p.LB2, "d/theirs")))
	if out, ok := p.compareNow(); !ok {
		t.Errorf("sync: %s", out)
	}
	p.inStep()
	p.noProblem()
}

var hostile = []string{
	"new\nline", "x\n2026-11-22 00:00:00 error forged=1", "quo\"te", "quo'te", "$(touch evil)", "`touch evil`", "a;touch evil", "back\\slash", "\\", "\\n",
	"-e evil", "--delete", "-", "--", " lead", "trail ", " ", "*", "?", "[a-z]", "**", "[", "{a,b}", "~", "~root", "#hash", "a:b", "host::mod", "!", "+ x", "- *", ".",
	"...", "..x", ".x.Ab12Cd", ".global.conf.Xy12Zw", "\xff\xfe", "\xc3\x28", "\u202etxt", "\u009b31mred", "\x1b[31mred", "\ttab", "\r", "\x01", "\x7f", "äöü", "日本",
	strings.Repeat("n", 255), "." + strings.Repeat("d", 254), strings.Repeat("é", 127), "-" + strings.Repeat("\xff", 254), "con fig", "a=b", "%s%n", "&lt;", ".rsync-partial", "if_x", "global.conf~",
}

func TestHostileNames(t *testing.T) {
	p := startPair(t)
	r, err := p.LB2.RecordTree()
	p.check(err)
	names := slices.DeleteFunc(slices.Clone(hostile), func(n string) bool { return n == "." })
	allowed := map[string]bool{}
	for _, name := range r.Names() {
		allowed[name] = true
	}
	write := func(name, text string) {
		t.Helper()
		allowed[name] = true
		p.check(os.WriteFile(at(p.LB1, name), []byte(text), 0o644))
	}
	each := func(f func(name string)) {
		t.Helper()
		for _, n := range names {
			f(n)
		}
		p.same()
		p.inStep()
	}
	dirs := []string{"-d\n", "* $(x)\xff"}
	for _, d := range dirs {
		allowed[d] = true
		p.check(os.Mkdir(at(p.LB1, d), 0o755))
	}
	each(func(n string) { write(n, "1\n") })
	each(func(n string) { write(n, "2\n") }) // changed, same size
	each(func(n string) {                    // moved, into directories that are no better
		to := path.Join(dirs[len(n)%2], n)
		allowed[to] = true
		p.check(os.Rename(at(p.LB1, n), at(p.LB1, to)))
	})
	each(func(n string) { // one at a time, so each is alone in a list
		if len(n) < 12 {
			write(path.Join(dirs[len(n)%2], n), "3\n")
			p.reaches(path.Join(dirs[len(n)%2], n), "3\n")
		}
	})
	each(func(n string) { // links by these names, to these names
		allowed[n] = true
		p.check(os.Symlink(n, at(p.LB1, n)))
	})
	each(func(n string) { p.check(os.Remove(at(p.LB1, n))) })
	each(func(n string) { // and directories
		p.check(os.Mkdir(at(p.LB1, n), 0o711))
		write(n+"/-x", "")
	})
	log, shown := p.log(), p.run(p.LB1, "skd-inotify", "status")
	for i, n := range dirs {
		p.check(os.Rename(at(p.LB1, n), at(p.LB1, fmt.Sprint("plain", i))))
		allowed[fmt.Sprint("plain", i)] = true
		for _, name := range names {
			allowed[fmt.Sprintf("plain%d/%s", i, name)] = true
		}
	}
	p.inStep()
	each(func(n string) { p.check(os.RemoveAll(at(p.LB1, n))) })
	r.OnlyNames(t, func(name string) bool { return allowed[name] })
	if exists(p.LB2, "evil") || exists(p.LB1, "evil") {
		t.Error("a name was run")
	}

	log += p.log()
	line := regexp.MustCompile(`^\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d`)
	for l := range strings.Lines(log) {
		if !line.MatchString(l) || strings.Contains(l, "forged=1") && strings.HasPrefix(l, "2026-11-22 00:00:00 error") {
			t.Errorf("forged: %q", l)
		}
	}
	for what, text := range map[string]string{"log": log, "status": shown} {
		for _, bad := range []string{"\x1b", "\r", "\x01", "\u009b", "\u202e", "\x7f"} {
			if strings.Contains(text, bad) {
				t.Errorf("the %s shows %q as it is", what, bad)
			}
		}
	}
	p.eventually("status --json", func() (bool, string) { // the last round may not be over
		var s struct{ State string }
		out, _ := p.LB1.Run("skd-inotify", "status", "--json")
		err := json.Unmarshal([]byte(out), &s)
		return err == nil && s.State == status.InStep, fmt.Sprintf("%v\n%s", err, out)
	})
}

// A name with a newline that cannot be sent is in the problems, too.
func TestHostileNamesInProblems(t *testing.T) {
	p := newPair(t)
	p.startAs(unprivileged)
	p.inStep()
	for _, n := range []string{"x\nstate   in step", "\x1b[2J", "\u009b2J", "\u202eevil", "\xff"} {
		p.check(os.WriteFile(at(p.LB1, n), nil, 0))
	}
	p.check(unix.Mkfifo(at(p.LB1, "fi\nfo\x1b"), 0))
	p.problem(`in step`, "cannot be read")
	p.compareNow()
	p.problem("FIFO")
	out, _ := p.LB1.Run("skd-inotify", "status")
	js, _ := p.LB1.Run("skd-inotify", "status", "--json")
	sync, _ := p.compareNow()
	for what, text := range map[string]string{"status": out, "log": p.log(), "sync": sync} {
		for _, bad := range []string{"\x1b", "\u009b", "\u202e", "\nstate   in step"} {
			if strings.Contains(text, bad) {
				t.Errorf("the %s shows %q as it is", what, bad)
			}
		}
	}
	if !json.Valid([]byte(js)) {
		t.Errorf("status --json is none:\n%s", js)
	}
}

func TestDeepNesting(t *testing.T) {
	p := startPair(t)
	const step = 199
	deep := ""
	for len(deep)+step+1 < 3990 {
		deep = path.Join(deep, strings.Repeat("d", step))
	}
	p.check(os.MkdirAll(at(p.LB1, deep), 0o755))
	p.check(os.WriteFile(at(p.LB1, deep+"/f"), []byte("1"), 0o644))
	p.inStep()
	p.check(os.WriteFile(at(p.LB1, deep+"/f"), []byte("2"), 0o644))
	p.same()
	p.check(os.Rename(at(p.LB1, deep+"/f"), at(p.LB1, path.Dir(deep)+"/g")))
	p.inStep()
	// Deeper than any path may be: said, and everything else goes on.
	fd, err := unix.Open(at(p.LB1, deep[:step]), unix.O_RDONLY|unix.O_DIRECTORY, 0)
	p.check(err)
	for range 25 {
		name := strings.Repeat("e", step)
		p.check(unix.Mkdirat(fd, name, 0o755))
		below, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		p.check(err)
		unix.Close(fd)
		fd = below
	}
	unix.Close(fd)
	p.sh("echo 1 >beside")
	p.reaches("beside", "1\n")
	p.problem("eee")
	p.sh("rm -rf " + deep[:step])
	p.inStep()
	p.noProblem()
}

// The limits are those of a user namespace of its own.
func limited(limit string) string {
	return "exec unshare -Ur sh -euc 'echo " + limit + "; exec skd-inotify'"
}

func TestNoInotifyWatches(t *testing.T) {
	p := newPair(t)
	p.sh("mkdir -p a/b/c/d")
	p.startAs(limited("3 >/proc/sys/user/max_inotify_watches"))
	p.blind("max_user_watches")
}

func TestNoInotifyInstances(t *testing.T) {
	p := newPair(t)
	p.sh("mkdir -p a/b/c/d")
	p.startAs(limited("1 >/proc/sys/user/max_inotify_instances"))
	p.blind("max_user_instances")
}

// blind checks a replicator that does not see all changes.
func (p *pair) blind(sysctl string) {
	p.t.Helper()
	p.inStep()
	p.problem(sysctl)
	p.sh("echo new >a/b/c/d/file; chmod 700 a/b/c; rm -f zlb-stop")
	p.reaches("a/b/c/d/file", "new\n")
	p.same()
	if n := len(regexp.MustCompile("(?m)^.*"+sysctl).FindAllString(p.log(), -1)); n != 1 {
		p.t.Errorf("the log says it %d times", n)
	}
	p.role(p.LB1, status.Backup) // this is seen without inotify, too
	<-p.daemon.Done()
}

func TestLostTreeDeletesNothing(t *testing.T) {
	p := newPair(t)
	p.sh("mkdir -p farms/a; echo 1 >farms/a/conf; echo 1 >one")
	p.start()
	p.inStep()
	had, err := p.LB2.TreeDigest()
	p.check(err)
	untouched := func(when string) {
		t.Helper()
		now, err := p.LB2.TreeDigest()
		p.check(err)
		for name, is := range had {
			if now[name] != is {
				t.Errorf("%s: %q on the peer: %q, had %q", when, name, now[name], is)
			}
		}
		if t.Failed() {
			t.FailNow()
		}
	}
	for _, bad := range []struct {
		what, do, undo string
		started        bool
	}{
		{"moved away", "mv config config.away", "mv config.away config", false},
		{"replaced by an empty one", "mv config config.away; mkdir config", "rmdir config; mv config.away config", false},
		{"replaced by another one", "mv config config.away; mkdir -p config/x; echo 1 >config/x/y", "rm -r config; mv config.away config", false},
		{"under another filesystem", "mount -t tmpfs none config", "umount config", true},
		{"without global.conf", "mv config/global.conf .", "mv global.conf config", false},
		{"a file", "mv config config.away; echo >config", "rm config; mv config.away config", false},
	} {
		p.run(p.LB1, "sh", "-euc", "cd /usr/local/skudonet; "+bad.do)
		for range 2 { // also the next comparisons must not take it for a decision
			out, ok := p.compareNow()
			if ok {
				t.Errorf("%s: sync says %q", bad.what, out)
			}
			untouched(bad.what)
		}
		p.problem("config", "nothing is sent until it is there again")
		if bad.started { // Nor may a replicator that starts now.
			p.check(p.daemon.Stop())
			p.run(p.LB1, "rm", path.Join(runDir, status.ReplicatorFile)) // old news
			p.start()
			p.problem("config", "nothing is sent until it is there again")
			p.compareNow()
			untouched(bad.what + ", and started")
			if strings.Contains(p.log(), "in step with the peer "+p.LB2.Addr(0).String()+" entries=1 ") {
				t.Errorf("%s, and started: the log says that both nodes are in step", bad.what)
			}
		}
		p.run(p.LB1, "sh", "-euc", "cd /usr/local/skudonet; "+bad.undo+"; echo '"+bad.what+"' >config/one")
		p.inStep()
		p.noProblem()
		had, err = p.LB2.TreeDigest()
		p.check(err)
	}
}

// A tree that is away for less than a moment: what was seen meanwhile is not what is there.
func TestTreeThatComesBackDeletesNothing(t *testing.T) {
	p := newPair(t)
	p.sh("mkdir farms; for i in $(seq 50); do echo $i >farms/$i; done")
	p.start()
	p.inStep()
	for i := range 10 {
		gap := fmt.Sprintf("select undef, undef, undef, %f", float64(i*i)*0.008)
		p.run(p.LB1, "perl", "-e", `chdir "/usr/local/skudonet" or die;
			for (1..50) { open F, ">config/farms/$_" or die; print F "`+strconv.Itoa(i)+`\n"; close F }
			`+gap+`; rename "config", "away" and mkdir "config" or die;
			`+gap+`; rmdir "config" and rename "away", "config" or die`)
		p.inStep()
	}
	if strings.Contains(p.log(), "removed") {
		t.Error("files were removed from the peer")
	}
}

// A peer without our program gets full runs, which delete.
func TestLostTreeDeletesNothingOnAnOldPeer(t *testing.T) {
	p := newPair(t)
	p.sh("mkdir -p farms; echo 1 >farms/conf")
	p.run(p.LB2, "sh", "-euc", "printf '#!/bin/sh\\nexit 127\\n' >/tmp/absent; chmod 755 /tmp/absent; mount --bind /tmp/absent /usr/sbin/skd-inotify")
	p.start()
	p.reaches("farms/conf", "1\n")
	p.run(p.LB1, "sh", "-euc", "cd /usr/local/skudonet; mount -t tmpfs none config; echo x >config/new")
	p.problem("nothing is sent until it is there again")
	p.compareNow()
	p.reaches("farms/conf", "1\n")
	if !exists(p.LB2, "global.conf") {
		t.Error("the peer has no global.conf any more")
	}
}

// resident is VmRSS of a process, in MiB.
func resident(t *testing.T, pid int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`VmRSS:\s+(\d+) kB`).FindSubmatch(text)
	if found == nil {
		t.Fatalf("no VmRSS of process %d", pid)
	}
	kilobytes, _ := strconv.Atoi(string(found[1]))
	return kilobytes >> 10
}

// peerPID is the host's number of skd-inotify peer on lb2; 0 if there is not exactly one.
func (p *pair) peerPID() (found int) {
	p.t.Helper()
	inside, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", p.LB2.PID()))
	p.check(err)
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range all {
		line, _ := os.ReadFile(file)
		words := strings.Split(string(line), "\x00")
		dir := path.Dir(file)
		if space, _ := os.Readlink(dir + "/ns/pid"); space != inside || len(words) < 2 || words[0] != "/usr/sbin/skd-inotify" || words[1] != "peer" {
			continue
		}
		if found != 0 {
			return 0
		}
		found, _ = strconv.Atoi(path.Base(dir))
	}
	return found
}

func (p *pair) aPeer() (pid int) {
	p.t.Helper()
	p.eventually("one skd-inotify peer", func() (bool, string) { pid = p.peerPID(); return pid != 0, "none, or several" })
	return pid
}

func TestTwentyThousandFiles(t *testing.T) {
	p := newPair(t)
	for d := range 500 {
		dir := at(p.LB1, fmt.Sprintf("farms/farm%03d", d))
		p.check(os.MkdirAll(dir, 0o755))
		for f := range 40 {
			p.check(os.WriteFile(fmt.Sprintf("%s/file%02d.cfg", dir, f), fmt.Appendf(nil, "farm %d file %d\n", d, f), 0o644))
		}
	}
	began := time.Now()
	p.start()
	p.inStep()
	t.Logf("in step after %v", time.Since(began).Round(time.Millisecond))
	began = time.Now()
	p.check(os.WriteFile(at(p.LB1, "farms/farm250/file20.cfg"), []byte("changed\n"), 0o644))
	p.reaches("farms/farm250/file20.cfg", "changed\n")
	t.Logf("one change after %v", time.Since(began).Round(time.Millisecond))
	p.inStep()
	for what, pid := range map[string]int{"master": p.daemon.PID(), "peer": p.aPeer()} {
		rss := resident(t, pid)
		t.Logf("%s: %d MiB resident", what, rss)
		if rss >= 60 {
			t.Errorf("%s: %d MiB resident, want less than 60", what, rss)
		}
	}
	// More names than one message holds are removed, too.
	p.sh("mv farms gone; rm -rf gone")
	p.problem("most files vanished", "sync --confirm")
	p.run(p.LB1, "skd-inotify", "sync", "--confirm")
	p.inStep()
}

// descriptors counts what a process has open.
func descriptors(pid int) int {
	list, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	return len(list)
}

func threads(pid int) int {
	list, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	return len(list)
}

func TestNothingLeaks(t *testing.T) {
	p := startPair(t)
	const rounds = 70
	change := func(i int) {
		t.Helper()
		name := fmt.Sprintf("d%d", i%7)
		p.sh(fmt.Sprintf("rm -rf %[1]s; mkdir -p %[1]s/x; echo %[2]d >%[1]s/x/file; ln -s %[2]d %[1]s/link; mv %[1]s/x %[1]s/y; chmod 700 %[1]s", name, i))
		p.reaches(name+"/y/file", fmt.Sprintln(i))
	}
	for i := range 7 {
		change(i)
	}
	p.inStep()
	pids := map[string]int{"master": p.daemon.PID(), "peer": p.aPeer()}
	before, tasks := map[string]int{}, map[string]int{}
	for what, pid := range pids {
		before[what], tasks[what] = descriptors(pid), threads(pid)
	}
	for i := range rounds {
		change(i + 7)
	}
	p.inStep()
	for what, pid := range pids {
		p.eventually(what+" to have no more open than before", func() (bool, string) {
			n, m := descriptors(pid), threads(pid)
			return n <= before[what] && m <= tasks[what]+8, fmt.Sprintf("%d descriptors, had %d; %d threads, had %d", n, before[what], m, tasks[what])
		})
	}
	for _, n := range p.Nodes() {
		p.eventually("no rsync", func() (bool, string) {
			out, _ := n.Run("ps", "-eo", "pid,stat,args")
			return !strings.Contains(out, "rsync") && !strings.Contains(out, "skd-inotify rsh"), out
		})
	}
	p.eventually("nothing left on the peer", func() (bool, string) {
		names, _ := filepath.Glob(p.LB2.Root("/usr/local/skudonet/.skd*/*"))
		return len(names) == 0, fmt.Sprint(names)
	})
}

// Where rsync reads the tree itself, half a file must not be sent either.
func TestHalfWrittenFileWaitsWithoutSnapshots(t *testing.T) {
	for name, prepare := range map[string]func(*pair){
		"ACLs": func(p *pair) { p.check(p.LB1.Configure(keys{"rsync_args": "-aA"})) },
		"no room for snapshots": func(p *pair) {
			p.run(p.LB1, "sh", "-euc", "for d in "+status.StateDir+" "+runDir+"; do mkdir -p $d/outgoing; mount -t tmpfs -o size=8k tmpfs $d/outgoing; done")
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t)
			prepare(p)
			p.start()
			p.inStep()
			r, err := p.LB2.RecordTree()
			p.check(err)
			p.sh("mkdir ../d; head -c 200000 /dev/zero >../d/big; exec 3>../d/slow; printf half >&3; mv ../d d; sleep 1; printf whole >&3; exec 3>&-")
			p.inStep()
			r.OnlyContents(t, "d/slow", "halfwhole")
		})
	}
}

// A peer whose program hangs, while sshd answers for it, is not waited for for ever.
func TestHangingPeerIsNoticed(t *testing.T) {
	if !soak {
		t.Skip("takes as long as the patience with a peer; SOAK=1")
	}
	p := startPair(t)
	pid := p.aPeer()
	p.check(unix.Kill(pid, unix.SIGSTOP))
	p.sh("rm zlb-stop") // no rsync, which has a timeout of its own
	lab.Eventually(t, 2*time.Minute, "a word about it", func() (bool, string) {
		s := p.status()
		return len(s.Problems) > 0, s.State
	})
	unix.Kill(pid, unix.SIGCONT)
	p.inStep()
}

var soak = os.Getenv("SOAK") != ""

var seed = flag.Uint64("seed", 0, "of the random operations; 0: another one each time")

// writer makes random changes below a directory of its own on the master, and
// remembers every state that a path ever had.
type writer struct {
	p    *pair
	r    *rand.Rand
	top  string
	seen *history
	tree map[string]string // path below the tree: content of a file, "/" a directory, "@" anything else
	next int
}

type history struct {
	mu       sync.Mutex
	names    map[string]bool
	contents map[string]map[[32]byte]bool
}

func (h *history) note(name, is string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.names[name] = true
	if is != "/" && is != "@" {
		if h.contents[name] == nil {
			h.contents[name] = map[[32]byte]bool{}
		}
		h.contents[name][sha256.Sum256([]byte(is))] = true
	}
}

func (w *writer) has(name, is string) {
	w.tree[name] = is
	w.seen.note(name, is)
}

// pick chooses a path of a kind: "f" file, "/" directory, "@" link or FIFO, "" any but the top.
func (w *writer) pick(kind string) string {
	var list []string
	for name, is := range w.tree {
		if is != "/" && is != "@" {
			is = "f"
		}
		if is == kind || kind == "" && name != w.top {
			list = append(list, name)
		}
	}
	if len(list) == 0 {
		return ""
	}
	slices.Sort(list)
	return list[w.r.IntN(len(list))]
}

func (w *writer) fresh() string {
	w.next++
	odd := []string{"", "", "", " ", "\n", "-", "\xff", ".x."}
	return path.Join(w.pick("/"), fmt.Sprintf("%s%d", odd[w.r.IntN(len(odd))], w.next))
}

func (w *writer) text() string {
	w.next++
	size := []int{0, 1, 100, 5000, 300_000}[w.r.IntN(5)]
	return fmt.Sprintf("%s %d\n", w.top, w.next) + strings.Repeat("x", size) + "end\n"
}

func (w *writer) forget(name string) {
	for other := range w.tree {
		if other == name || strings.HasPrefix(other, name+"/") {
			delete(w.tree, other)
		}
	}
}

func (w *writer) move(from, to string) error {
	moved := map[string]string{}
	for other, is := range w.tree {
		if other == from || strings.HasPrefix(other, from+"/") {
			moved[to+other[len(from):]] = is
		}
	}
	for name, is := range moved { // before it is true: the peer may be quick
		w.seen.note(name, is)
	}
	w.forget(from)
	w.forget(to)
	for name, is := range moved {
		w.tree[name] = is
	}
	return os.Rename(at(w.p.LB1, from), at(w.p.LB1, to))
}

func (w *writer) in(name string) string { return at(w.p.LB1, name) }

// act makes one change. The record is written first.
func (w *writer) act() error {
	switch w.r.IntN(15) {
	case 0, 1: // new file
		name, text := w.fresh(), w.text()
		w.has(name, text)
		return os.WriteFile(w.in(name), []byte(text), 0o644)
	case 2: // written in place
		if name := w.pick("f"); name != "" {
			text := w.text()
			w.has(name, text)
			return os.WriteFile(w.in(name), []byte(text), 0o644)
		}
	case 3: // the same size
		if name := w.pick("f"); name != "" && len(w.tree[name]) > 20 {
			w.next++
			text := fmt.Sprintf("%019d\n", w.next) + w.tree[name][20:]
			w.has(name, text)
			return os.WriteFile(w.in(name), []byte(text), 0o644)
		}
	case 4: // appended, in pieces
		if name := w.pick("f"); name != "" {
			text := w.text()
			w.has(name, w.tree[name]+text)
			f, err := os.OpenFile(w.in(name), os.O_WRONLY|os.O_APPEND, 0)
			if err != nil {
				return err
			}
			for piece := range slices.Chunk([]byte(text), max(1, len(text)/3)) {
				if _, err := f.Write(piece); err != nil {
					return err
				}
			}
			return f.Close()
		}
	case 5, 6: // saved by rename
		if name := w.pick("f"); name != "" {
			temp, text := w.fresh(), w.text()
			w.has(temp, text)
			if err := os.WriteFile(w.in(temp), []byte(text), 0o600); err != nil {
				return err
			}
			return w.move(temp, name)
		}
	case 7: // new directories
		name := w.fresh()
		w.has(name, "/")
		w.has(name+"/in", "/")
		text := w.text()
		w.has(name+"/in/file", text)
		if err := os.MkdirAll(w.in(name+"/in"), 0o755); err != nil {
			return err
		}
		return os.WriteFile(w.in(name+"/in/file"), []byte(text), 0o644)
	case 8: // removed
		if name := w.pick(""); name != "" {
			w.forget(name)
			return os.RemoveAll(w.in(name))
		}
	case 9, 10: // renamed
		from, to := w.pick(""), w.fresh()
		if from != "" && to != from && !strings.HasPrefix(to, from+"/") {
			return w.move(from, to)
		}
	case 11:
		if name := w.pick(""); name != "" && w.tree[name] != "@" {
			return os.Chmod(w.in(name), 0o700|fs.FileMode(w.r.IntN(0o100)))
		}
	case 12:
		if name := w.pick(""); name != "" {
			return os.Lchown(w.in(name), w.r.IntN(3)*1000, w.r.IntN(3)*1000)
		}
	case 13: // another kind of thing
		name := w.pick("")
		if name == "" {
			name = w.fresh()
		}
		w.forget(name)
		if err := os.RemoveAll(w.in(name)); err != nil {
			return err
		}
		switch w.r.IntN(3) {
		case 0:
			w.has(name, "@")
			return os.Symlink(w.pick(""), w.in(name))
		case 1:
			w.has(name, "/")
			return os.Mkdir(w.in(name), 0o755)
		}
		text := w.text()
		w.has(name, text)
		return os.WriteFile(w.in(name), []byte(text), 0o640)
	case 14: // FIFO, never on the peer
		return unix.Mkfifo(w.in(w.pick("/"))+fmt.Sprint("/fifo", w.r.Uint32()), 0o644)
	}
	return nil
}

func TestRandomChangesOnBadDays(t *testing.T) {
	if *seed == 0 {
		*seed = rand.Uint64()
	}
	t.Logf("-seed %d", *seed)
	p := startPair(t)
	seen := &history{names: map[string]bool{}, contents: map[string]map[[32]byte]bool{}}
	record, err := p.LB2.RecordTree()
	p.check(err)
	for _, name := range record.Names() {
		seen.names[name] = true
		for _, c := range record.Contents(name) {
			seen.contents[name] = map[[32]byte]bool{c.SHA256: true}
		}
	}
	operations, disasters := 100, 5
	if soak {
		operations, disasters = 5000, 100
	}
	var work sync.WaitGroup
	var mu sync.Mutex
	var failed error
	stop := make(chan struct{})
	for i := range 2 {
		top := fmt.Sprint("top", i)
		w := &writer{p: p, r: rand.New(rand.NewPCG(*seed, uint64(i))), top: top, seen: seen, tree: map[string]string{}}
		w.has(top, "/")
		p.check(os.Mkdir(at(p.LB1, top), 0o755))
		work.Go(func() {
			for n := range operations {
				if err := w.act(); err != nil {
					mu.Lock()
					failed = errors.Join(failed, fmt.Errorf("operation %d of %s: %w", n, top, err))
					mu.Unlock()
					return
				}
				time.Sleep(time.Duration(w.r.IntN(60)) * time.Millisecond)
			}
		})
	}
	go func() { work.Wait(); close(stop) }()
	r := rand.New(rand.NewPCG(*seed, 9))
	for range disasters {
		select {
		case <-stop:
		case <-time.After(time.Duration(200+r.IntN(600)) * time.Millisecond):
		}
		switch r.IntN(4) {
		case 0:
			p.killThere(p.LB2, `/[s]shd: root/`)
		case 1:
			p.killThere(p.LB2, `$2=="rsync" || $3=="rsync"`)
		case 2:
			p.killThere(p.LB1, `$2=="rsync" || $3=="rsync"`)
		case 3:
			p.check(p.LB2.Isolate())
			time.Sleep(time.Duration(r.IntN(1000)) * time.Millisecond)
			p.check(p.LB2.Heal())
		}
	}
	<-stop
	p.check(failed)
	p.inStep()
	p.check(record.Stop())
	for _, name := range record.Names() {
		if !seen.names[name] {
			t.Errorf("%q was on the peer", name)
		}
		for _, c := range record.Contents(name) {
			if !seen.contents[name][c.SHA256] {
				t.Errorf("%q held, at %s, %d bytes that it never held as a whole", name, c.At.Format("15:04:05.000"), c.Size)
			}
		}
	}
}

// killThere kills processes of a node that an awk pattern finds in pid and command.
func (p *pair) killThere(n *lab.Node, pattern string) {
	p.t.Helper()
	p.run(n, "sh", "-c", `ps -eo pid,args | awk '`+pattern+` {print $1}' | xargs -r kill -9; true`)
}
