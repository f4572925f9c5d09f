package replication

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/status"
	"github.com/skudonet/skudonet-ce-cluster/test/lab"
)

const (
	partName = ".skudonet-ce-cluster.tmp"
	partPath = "/usr/local/skudonet/" + partName // beside the tree
)

// slow makes a transfer of a big file last for seconds.
var slow = keys{"rsync_args": "-a --bwlimit=400"}

const bigSize = 1_200_000

// trial is a pair on bad days.
type trial struct{ *pair }

func newTrial(t *testing.T, changes ...keys) *trial {
	t.Helper()
	// The default, without what is said of it.
	return &trial{newPair(t, append([]keys{{"rsync_args": "-az --delete"}}, changes...)...)}
}

func startTrial(t *testing.T, changes ...keys) *trial {
	t.Helper()
	p := newTrial(t, changes...)
	p.start()
	p.inStep()
	return p
}

// badDay is something that goes wrong, and what is said about it.
type badDay struct {
	name  string
	begin func()
	words []string // in one problem and its remedy
	end   func()
}

// live has the replicator start on each of these days, work on when it is over,
// and say it once.
func (p *trial) live(days ...badDay) {
	for _, d := range days {
		ok := p.t.Run(d.name, func(t *testing.T) {
			defer p.as(t)()
			p.stop()
			mark := len(p.log())
			end := p.mend(d.end)
			d.begin()
			p.put("made-before", d.name)
			p.start()
			p.problem(d.words...)
			p.put("made-meanwhile", d.name)
			p.syncFails(d.words[0])
			p.saidOnce(mark, d.words...)
			p.shown(d.words...)
			end()
			p.over(mark, d.words[0])
		})
		if !ok {
			return
		}
	}
}

// mend returns f for one call, which comes at the end of the test otherwise.
func (p *trial) mend(f func()) func() {
	f = sync.OnceFunc(f)
	p.t.Cleanup(f)
	return f
}

// as has the pair report to a subtest, until the returned function is called.
func (p *trial) as(t *testing.T) func() {
	outer := p.t
	p.t = t
	return func() { p.t = outer }
}

// over waits until both nodes have the same and no problem is left.
func (p *trial) over(mark int, word string) {
	p.t.Helper()
	p.inStep()
	p.noProblem()
	p.eventually("the end of the problem in the log", func() (bool, string) {
		since := p.log()[mark:]
		return len(matching(since, " info over: ", word)) > 0, since
	})
	if out, code := p.exit(p.LB1, "skd-inotify", "status"); strings.Contains(out, "problems") {
		p.t.Errorf("status, exit status %d, still has:\n%s", code, out)
	}
}

// saidOnce checks that one warning of the log, after mark, has all words. The log is written beside the work.
func (p *trial) saidOnce(mark int, words ...string) {
	p.t.Helper()
	since := ""
	p.eventually(fmt.Sprintf("the warning %q", words), func() (bool, string) {
		since = p.log()[mark:]
		return len(matching(since, append([]string{" warning "}, words...)...)) > 0, since
	})
	if found := matching(since, append([]string{" warning "}, words...)...); len(found) != 1 {
		p.t.Errorf("said %d times: %q:\n%s", len(found), words, since)
	}
}

func matching(text string, words ...string) (found []string) {
	for line := range strings.Lines(text) {
		all := true
		for _, w := range words {
			all = all && strings.Contains(line, w)
		}
		if all {
			found = append(found, line)
		}
	}
	return found
}

// shown checks that skd-inotify status has the words, and is not content.
func (p *trial) shown(words ...string) {
	p.t.Helper()
	p.eventually("the problem in skd-inotify status", func() (bool, string) {
		out, code := p.exit(p.LB1, "skd-inotify", "status")
		all := code == 1 && strings.Contains(out, "degraded")
		for _, w := range words {
			all = all && strings.Contains(out, w)
		}
		return all, fmt.Sprintf("exit status %d:\n%s", code, out)
	})
}

// exit runs a command and gives its output and exit status.
func (p *trial) exit(n *lab.Node, name string, args ...string) (string, int) {
	p.t.Helper()
	out, err := n.Run(name, args...)
	var failed *exec.ExitError
	if errors.As(err, &failed) {
		return out, failed.ExitCode()
	}
	p.check(err)
	return out, 0
}

// syncFails checks that skd-inotify sync fails and says why.
func (p *trial) syncFails(words ...string) {
	p.t.Helper()
	out, code := p.exit(p.LB1, "skd-inotify", "sync")
	if code != 1 {
		p.t.Errorf("sync: exit status %d: %s", code, out)
	}
	for _, w := range words {
		if !strings.Contains(out, w) {
			p.t.Errorf("sync does not say %q: %s", w, out)
		}
	}
}

func (p *trial) stop() {
	p.t.Helper()
	if p.daemon != nil {
		p.check(p.daemon.Stop())
		p.daemon = nil
	}
}

// put replaces a file of the master's tree as a whole.
func (p *trial) put(name, text string) {
	p.t.Helper()
	const aside = "/usr/local/skudonet/aside"
	p.check(p.LB1.WriteFile(aside, text, 0o644))
	p.check(os.Rename(p.LB1.Root(aside), p.LB1.Root(lab.TreePath+"/"+name)))
}

// has tells whether a file of the peer's tree is this.
func (p *trial) has(name, text string) bool {
	got, err := p.LB2.ReadFile(lab.TreePath + "/" + name)
	return err == nil && got == text
}

// arrives waits until a file of the peer's tree is this.
func (p *trial) arrives(name, text string) {
	p.t.Helper()
	p.eventually(name+" on the peer", func() (bool, string) {
		got, err := p.LB2.ReadFile(lab.TreePath + "/" + name)
		return got == text && err == nil, fmt.Sprintf("%.60q, %v", got, err)
	})
}

// pids lists the processes of a node whose command lines have the words.
func (p *trial) pids(n *lab.Node, words ...string) (pids []string) {
	p.t.Helper()
	for _, line := range matching(p.run(n, "ps", "-eo", "pid=,args="), words...) {
		pids = append(pids, strings.Fields(line)[0])
	}
	return pids
}

// signal sends to one of them, which must be there.
func (p *trial) signal(n *lab.Node, sig string, words ...string) {
	p.t.Helper()
	pids := p.pids(n, words...)
	if len(pids) == 0 {
		p.t.Fatalf("%s: no process %q", n.Name, words)
	}
	p.run(n, "kill", "-"+sig, pids[0])
}

// partial tells whether the peer has received a part of a file.
func (p *trial) partial() bool {
	list, _ := os.ReadDir(p.LB2.Root(partPath))
	for _, e := range list {
		if info, err := e.Info(); err == nil && info.Size() > 0 {
			return true
		}
	}
	return false
}

// sending puts a big file, and returns what it holds while it is being sent.
func (p *trial) sending() string {
	p.t.Helper()
	text := noise(bigSize)
	p.put("big", text)
	p.eventually("a transfer to be under way", func() (bool, string) { return p.partial(), p.log() })
	return text
}

// noise cannot be compressed.
func noise(size int) string {
	random := rand.NewChaCha8([32]byte([]byte(fmt.Sprintf("%032x", rand.Uint64()))))
	b := make([]byte, size)
	random.Read(b)
	return string(b)
}

// recorded begins a record of the peer's tree, which is checked at the end of the
// test: only names of the master's tree, and whole contents of big.
func (p *trial) recorded(bigs *[]string) *lab.Recorder {
	p.t.Helper()
	r, err := p.LB2.RecordTree()
	p.check(err)
	p.t.Cleanup(func() {
		r.OnlyNames(p.t, func(name string) bool {
			base := filepath.Base(name)
			return base == "big" || !strings.HasPrefix(base, ".") && !strings.Contains(base, "big") || name == "."
		})
		if bigs != nil {
			r.OnlyContents(p.t, "big", *bigs...)
		}
	})
	return r
}

// tidy checks that the peer's directory for temporary files is empty.
func (p *trial) tidy() {
	p.t.Helper()
	p.eventually("no temporary files on the peer", func() (bool, string) {
		list, _ := os.ReadDir(p.LB2.Root(partPath))
		return len(list) == 0, fmt.Sprint(list)
	})
}

func (p *trial) conf(n *lab.Node, changes keys) { p.t.Helper(); p.check(n.Configure(changes)) }

func TestPeerThatIsAwayGetsEverythingWhenItIsBack(t *testing.T) {
	p := newTrial(t)
	p.recorded(nil)
	p.live(
		badDay{"no sshd", func() { p.check(p.LB2.SSHD().Stop()) }, []string{"refused", "not reached", "start the ssh server"},
			func() { _, err := p.LB2.StartSSH(); p.check(err) }},
		badDay{"no way", func() { p.check(p.LB2.Isolate()) }, []string{"192.168.77.12", "not reached"},
			func() { p.check(p.LB2.Heal()) }},
		badDay{"no power", func() { p.check(p.LB2.PowerOff()) }, []string{"192.168.77.12", "not reached"},
			func() {
				p.check(p.LB2.PowerOn())
				_, err := p.LB2.StartSSH()
				p.check(err)
			}},
	)
}

func TestPowerCutOfThePeerWhileInStep(t *testing.T) {
	p := startTrial(t)
	p.sh("mkdir gone; echo 1 >gone/a; echo 1 >kept")
	p.inStep()
	mark := len(p.log())
	p.check(p.LB2.PowerOff())
	p.sh("rm -r gone; echo 2 >kept; mkdir -p new/deep; echo 3 >new/deep/er; chmod 600 global.conf")
	p.problem("192.168.77.12")
	p.check(p.LB2.PowerOn())
	_, err := p.LB2.StartSSH()
	p.check(err)
	p.over(mark, "192.168.77.12")
	p.arrives("new/deep/er", "3\n")
}

func TestWhatSSHRefusesIsSaidAndTriedAgain(t *testing.T) {
	p := newTrial(t)
	const known, authorized, daemon = "/root/.ssh/known_hosts", "/root/.ssh/authorized_keys", "/etc/ssh/sshd_config"
	aside := func(n *lab.Node, file, instead string) (begin, end func()) {
		var was string
		return func() {
				var err error
				was, err = n.ReadFile(file)
				p.check(err)
				p.check(n.WriteFile(file, instead, 0o600))
			}, func() {
				p.check(n.WriteFile(file, was, 0o600))
			}
	}
	restart := func(f func()) func() {
		return func() {
			p.check(p.LB2.SSHD().Stop())
			f()
			_, err := p.LB2.StartSSH()
			p.check(err)
		}
	}
	p.run(p.LB1, "sh", "-ec", "ssh-keygen -q -t ed25519 -N '' -f /tmp/other; ssh-keygen -q -t ecdsa -N '' -f /tmp/other2")
	changed := ""
	for _, file := range []string{"/tmp/other.pub", "/tmp/other2.pub"} {
		key, err := p.LB1.ReadFile(file)
		p.check(err)
		changed += "192.168.77.12 " + key
	}
	unknownBegin, unknownEnd := aside(p.LB1, known, "")
	changedBegin, changedEnd := aside(p.LB1, known, changed)
	refusedBegin, refusedEnd := aside(p.LB2, authorized, "")
	passwordBegin, passwordEnd := aside(p.LB2, daemon, "HostKey /etc/ssh/ssh_host_ed25519_key\nPermitRootLogin yes\nPubkeyAuthentication no\nPasswordAuthentication yes\nUsePAM no\n")
	phrase := func(from, to string) func() {
		return func() {
			p.run(p.LB1, "ssh-keygen", "-q", "-p", "-P", from, "-N", to, "-f", "/root/.ssh/id_ed25519")
		}
	}
	p.live(
		badDay{"unknown host key", unknownBegin, []string{"not in known_hosts", "fingerprint"}, unknownEnd},
		badDay{"changed host key", changedBegin, []string{"host key has changed", "ssh-keygen -R"}, changedEnd},
		badDay{"key is refused", refusedBegin, []string{"key", "authorized_keys"}, refusedEnd},
		badDay{"passwords only", restart(passwordBegin), []string{"password"}, restart(passwordEnd)},
		badDay{"passphrase", phrase("", "secret"), []string{"passphrase"}, phrase("secret", "")},
	)
}

func TestNoiseOfTheShellIsSkipped(t *testing.T) {
	p := newTrial(t)
	p.recorded(nil)
	for name, rc := range map[string]string{
		"text":   "echo Welcome to lb2; echo 'and on standard error' >&2\n",
		"binary": "printf '\\0\\1\\377\\n\\0no newline'\n",
		"much":   "head -c 50000 /dev/zero | tr '\\0' x\n",
		"lines":  "seq 5000\n",
	} {
		t.Run(name, func(t *testing.T) {
			defer p.as(t)()
			p.stop()
			mark := len(p.log())
			p.check(p.LB2.WriteFile("/root/.bashrc", rc, 0o644))
			p.put("noise", name)
			p.start()
			p.inStep()
			p.put("noise", "after "+name)
			p.arrives("noise", "after "+name)
			p.noProblem()
			if said := matching(p.log()[mark:], " warning "); len(said) > 0 {
				t.Error(said)
			}
		})
	}
	bashrc := func(text string) func() { return func() { p.check(p.LB2.WriteFile("/root/.bashrc", text, 0o644)) } }
	p.live(
		badDay{"too much", bashrc("head -c 200000 /dev/zero | tr '\\0' x\n"), []string{"skd-inotify peer"}, bashrc("")},
		badDay{"the shell ends", bashrc("echo not today >&2; exit 1\n"), []string{"exit status 1", "not today"}, bashrc("")},
	)
}

// oldRsync is one from before 3.1.0.
const oldRsync = `#!/bin/sh
for a; do
	case $a in
	--version) echo 'rsync  version 3.0.9  protocol version 30'; exit 0;;
	--omit-link-times) echo "rsync: $a: unknown option" >&2; echo 'rsync error: syntax or usage error (code 1) at main.c(1439) [client=3.0.9]' >&2; exit 1;;
	-*J*) echo "rsync: on remote machine: $a: unknown option" >&2; exit 1;;
	esac
done
exec /usr/bin/rsync "$@"
`

func TestMissingAndOldRsync(t *testing.T) {
	p := newTrial(t)
	p.recorded(nil)
	const old = "/usr/local/bin/rsync-old"
	for _, n := range p.Nodes() {
		p.check(n.WriteFile(old, oldRsync, 0o755))
		p.check(n.WriteFile("/usr/local/bin/rsync-plain", "no program", 0o644))
	}
	uses := func(n *lab.Node, program string) func() { return func() { p.conf(n, keys{"rsync": program}) } }
	normal := func(n *lab.Node) func() { return func() { p.conf(n, nil) } }
	here := func(d badDay) {
		t.Run(d.name, func(t *testing.T) {
			defer p.as(t)()
			p.stop()
			end := p.mend(func() {
				p.stop() // It reads its configuration at start only.
				d.end()
				p.start()
			})
			mark := len(p.log())
			d.begin()
			p.start()
			p.put("made-meanwhile", d.name)
			p.problem(d.words...)
			p.syncFails(d.words[0])
			p.saidOnce(mark, d.words...)
			p.shown(d.words...)
			end()
			p.inStep()
			p.noProblem()
		})
	}
	p.live(
		badDay{"missing there", uses(p.LB2, "/nonexistent/rsync"), []string{"rsync", "peer", "skudonet-cluster.conf"}, normal(p.LB2)},
		badDay{"not executable there", uses(p.LB2, "/usr/local/bin/rsync-plain"), []string{"rsync", "peer", "skudonet-cluster.conf"}, normal(p.LB2)},
		badDay{"old there", uses(p.LB2, old), []string{"rsync", "peer", "install"}, normal(p.LB2)},
	)
	here(badDay{"missing here", uses(p.LB1, "/nonexistent/rsync"), []string{"there is no program /nonexistent/rsync", "install"}, normal(p.LB1)})
	here(badDay{"not executable here", uses(p.LB1, "/usr/local/bin/rsync-plain"), []string{"cannot run /usr/local/bin/rsync-plain", "chmod"}, normal(p.LB1)})
	here(badDay{"old here", uses(p.LB1, old), []string{"rsync", "install"}, normal(p.LB1)})
}

func TestPeerWithAWrongConfigurationGetsNothing(t *testing.T) {
	p := newTrial(t)
	p.recorded(nil)
	normal := func() { p.conf(p.LB2, nil) }
	p.live(
		badDay{"wrong", func() { p.check(p.LB2.WriteFile(lab.ConfigPath, "$local_ip=\"nonsense\";\n", 0o600)) }, []string{"it takes nothing", "skudonet-cluster.conf"}, normal},
		badDay{"missing", func() { p.run(p.LB2, "rm", lab.ConfigPath) }, []string{"it takes nothing", "skudonet-cluster.conf"}, normal},
		badDay{"no tree", func() { p.run(p.LB2, "mv", lab.TreePath, lab.TreePath+".away") }, []string{lab.TreePath, "no such file"},
			func() { p.run(p.LB2, "mv", lab.TreePath+".away", lab.TreePath) }},
	)
}

// disk gives the peer's Skudonet a disk of its own, of three megabytes.
func (p *trial) disk() {
	p.t.Helper()
	p.run(p.LB2, "sh", "-euc", `cp -a /usr/local/skudonet /tmp/skudonet
		mount -t tmpfs -o size=3m,mode=755 tmpfs /usr/local/skudonet
		cp -a /tmp/skudonet/. /usr/local/skudonet/`)
}

// retried waits until something was tried some more times.
func (p *trial) retried(times uint64) {
	p.t.Helper()
	from := p.status().Replicator.Runs
	p.eventually("it to be tried again", func() (bool, string) {
		s := p.status()
		return s.Replicator.Runs >= from+times, fmt.Sprintf("%d runs, %s, %v", s.Replicator.Runs-from, s.State, s.Problems)
	})
}

func TestTroubleWithThePeersDisk(t *testing.T) {
	p := newTrial(t)
	p.disk()
	var bigs []string
	p.recorded(&bigs)
	bigs = append(bigs, noise(200_000))
	p.put("big", bigs[0])
	p.sh("mkdir frozen; echo 1 >frozen/file; echo 1 >frozen/goes")
	p.start()
	p.inStep()

	readOnly := func() { p.run(p.LB2, "mount", "-o", "remount,ro", "/usr/local/skudonet") }
	writable := func() { p.run(p.LB2, "mount", "-o", "remount,rw", "/usr/local/skudonet") }

	t.Run("full", func(t *testing.T) {
		defer p.as(t)()
		mark := len(p.log())
		end := p.mend(func() { p.run(p.LB2, "rm", "/usr/local/skudonet/filler") })
		p.exit(p.LB2, "sh", "-c", "cat /dev/zero >/usr/local/skudonet/filler")
		bigs = append(bigs, noise(400_000))
		p.put("big", bigs[1])
		p.problem("big", "no space left", "free space")
		p.retried(2)
		p.saidOnce(mark, "no space left", "free space")
		p.shown("big", "no space left", "free space")
		p.syncFails("no space left")
		if !p.has("big", bigs[0]) {
			t.Error("the peer has not kept the older file")
		}
		end()
		p.over(mark, "no space left")
		p.tidy()
	})
	t.Run("one directory is read-only", func(t *testing.T) {
		defer p.as(t)()
		mark := len(p.log())
		dir := lab.TreePath + "/frozen"
		end := p.mend(func() { p.run(p.LB2, "umount", dir) })
		p.run(p.LB2, "sh", "-euc", "mount --bind "+dir+" "+dir+"; mount -o remount,bind,ro "+dir)
		p.sh("echo 2 >frozen/file")
		p.problem("frozen/file", "read-only")
		for _, text := range []string{"a", "b", "c"} {
			p.put("other", text)
			p.arrives("other", text)
		}
		p.retried(2)
		p.saidOnce(mark, "frozen/file", "read-only")
		p.shown("frozen/file", "read-only")
		p.sh("rm frozen/goes")
		p.problem("frozen/goes")
		p.put("other", "d")
		p.arrives("other", "d")
		end()
		p.over(mark, "frozen")
	})
	t.Run("the whole tree is read-only", func(t *testing.T) {
		defer p.as(t)()
		mark := len(p.log())
		end := p.mend(writable)
		readOnly()
		p.put("other", "e")
		p.problem("read-only")
		p.retried(2)
		p.saidOnce(mark, "other", "read-only")
		p.syncFails("read-only")
		end()
		p.over(mark, "read-only")
	})
	t.Run("the whole tree is read-only at the start", func(t *testing.T) {
		defer p.as(t)()
		p.live(badDay{"read-only", readOnly, []string{"read-only"}, writable})
	})
	t.Run("the tree goes away and comes back", func(t *testing.T) {
		defer p.as(t)()
		mark := len(p.log())
		end := p.mend(func() { p.run(p.LB2, "mv", lab.TreePath+".away", lab.TreePath) })
		p.run(p.LB2, "mv", lab.TreePath, lab.TreePath+".away")
		p.put("other", "f")
		p.problem(lab.TreePath, "mounted")
		p.syncFails(lab.TreePath)
		if _, err := os.Lstat(p.LB2.Root(lab.TreePath)); err == nil {
			t.Error("a tree was made where none was mounted")
		}
		p.saidOnce(mark, lab.TreePath+" cannot be read on the peer", "mounted")
		end()
		p.over(mark, lab.TreePath)
	})
}

func TestTreeOnAFullDiskOfItsOwn(t *testing.T) {
	p := newTrial(t)
	p.run(p.LB2, "mount", "-t", "tmpfs", "-o", "size=1m,mode=755", "tmpfs", lab.TreePath)
	p.start()
	p.inStep(partName)
	mark := len(p.log())
	text := noise(1_500_000)
	p.put("large", text)
	p.problem("large", "no space left")
	p.put("small", "1")
	p.arrives("small", "1")
	p.saidOnce(mark, "large", "no space left")
	p.run(p.LB2, "mount", "-o", "remount,size=4m", lab.TreePath)
	p.eventually("in step", func() (bool, string) { return p.has("large", text), p.log()[mark:] })
	p.inStep(partName)
	p.noProblem()
}

func TestMasterIsNeverPushedTo(t *testing.T) {
	p := newTrial(t, slow)
	var bigs []string
	p.recorded(&bigs)
	p.live(badDay{"both are master", func() { p.role(p.LB2, status.Master) }, []string{"master too", "skd-hooks status"}, func() {
		if p.has("made-before", "both are master") || p.has("made-meanwhile", "both are master") {
			p.t.Error("something was pushed to a master")
		}
		p.role(p.LB2, status.Backup)
	}})
	t.Run("the peer becomes master in mid-transfer", func(t *testing.T) {
		defer p.as(t)()
		mark := len(p.log())
		bigs = append(bigs, p.sending())
		p.role(p.LB2, status.Master)
		p.noRsync()
		if p.has("big", bigs[0]) {
			t.Error("the transfer went on")
		}
		p.problem("master too", "skd-hooks status")
		p.syncFails("master too")
		p.tidy()
		p.saidOnce(mark, "master too")
		p.role(p.LB2, status.Backup)
		p.over(mark, "master too")
	})
	for _, word := range []string{status.Backup, ""} {
		t.Run(fmt.Sprintf("our status file says %q in mid-transfer", word), func(t *testing.T) {
			defer p.as(t)()
			bigs = append(bigs, p.sending())
			p.role(p.LB1, word)
			select {
			case <-p.daemon.Done():
			case <-time.After(limit):
				t.Fatal("skd-inotify goes on")
			}
			if end := p.daemon.Exits()[0].State; end.ExitCode() != 0 {
				t.Error(end)
			}
			p.noRsync()
			p.put("big2", "later")
			p.tidy()
			if p.has("big", bigs[len(bigs)-1]) || p.has("big2", "later") {
				t.Error("it was pushed although this node is not master")
			}
			p.role(p.LB1, status.Master)
			p.sh("rm big2")
			p.start()
			p.inStep()
		})
	}
}

// noRsync waits until none runs on either node.
func (p *trial) noRsync() {
	p.t.Helper()
	p.eventually("no rsync", func() (bool, string) {
		all := append(p.pids(p.LB1, "/rsync -"), p.pids(p.LB2, "/rsync --server")...)
		return len(all) == 0, fmt.Sprint(all)
	})
}

func TestKillInMidTransfer(t *testing.T) {
	p := startTrial(t, slow)
	var bigs []string
	p.recorded(&bigs)
	for name, kill := range map[string]func(){
		"rsync here":       func() { p.signal(p.LB1, "KILL", "/usr/bin/rsync -") },
		"rsync there":      func() { p.signal(p.LB2, "KILL", "/usr/bin/rsync --server") },
		"skd-inotify peer": func() { p.signal(p.LB2, "KILL", "/usr/sbin/skd-inotify peer") },
		"sshd's session":   func() { p.signal(p.LB2, "KILL", "sshd", "@notty") },
		"skd-inotify":      func() { p.check(p.daemon.Signal(unix.SIGKILL)); <-p.daemon.Done(); p.start() },
		"all of the peer's at once": func() {
			all := append(p.pids(p.LB2, "--server"), p.pids(p.LB2, "/usr/sbin/skd-inotify peer")...)
			p.run(p.LB2, "sh", "-c", "kill -KILL "+strings.Join(all, " ")+" || true") // one may end by itself when another one has
		},
	} {
		t.Run(name, func(t *testing.T) {
			defer p.as(t)()
			bigs = append(bigs, p.sending())
			before := len(bigs) - 2
			kill()
			if before >= 0 && !p.has("big", bigs[before]) {
				t.Error("the peer has not kept the older file")
			}
			p.inStep()
			p.noProblem()
			p.tidy()
		})
	}
}

func TestCableCutInMidTransfer(t *testing.T) {
	p := startTrial(t, slow)
	var bigs []string
	p.recorded(&bigs)
	bigs = append(bigs, p.sending())
	p.check(p.LB2.Cut())
	p.check(p.LB2.Heal())
	p.inStep()
	mark := len(p.log())
	bigs = append(bigs, p.sending())
	p.check(p.LB2.Cut())
	p.sh("echo meanwhile >other")
	p.problem("lost")
	p.saidOnce(mark, "lost")
	p.check(p.LB2.Heal())
	p.inStep()
	p.noProblem()
	p.tidy()
}

func TestLinkThatLosesPackets(t *testing.T) {
	p := startTrial(t)
	r := p.recorded(nil)
	p.run(p.LB2, "sh", "-euc", `nft add table ip lossy
		nft add chain ip lossy in '{ type filter hook input priority 0; }'
		nft add rule ip lossy in ip saddr 192.168.77.11 numgen random mod 10 '<' 3 drop`)
	var texts []string
	for i := range 30 {
		texts = append(texts, fmt.Sprintf("%d\n", i))
		p.sh(fmt.Sprintf("mkdir -p d%d; echo %d >d%d/f; echo %[2]d >same", i%7, i, i%7))
	}
	lab.Eventually(t, 2*limit, "in step", func() (bool, string) {
		s := p.status()
		return s.State == status.InStep && p.has("same", texts[29]), fmt.Sprintf("%s, %v", s.State, s.Problems)
	})
	p.inStep()
	p.noProblem()
	r.OnlyContents(t, "same", texts...)
}

func TestChangesThatOutrunTheLink(t *testing.T) {
	p := startTrial(t, keys{"rsync_args": "-a --bwlimit=200"})
	r := p.recorded(nil)
	const files = 4
	var texts []string
	for i := range 40 {
		texts = append(texts, noise(40_000)) // All of them would take the link eight seconds.
		p.put(fmt.Sprintf("file%d", i%files), texts[i])
		if i%10 == 9 {
			p.eventually("something of it to be sent", func() (bool, string) {
				return p.partial() || p.status().Replicator.Pending == 0, p.log()
			})
		}
	}
	p.inStep()
	p.noProblem()
	for i := range files {
		r.OnlyContents(t, fmt.Sprintf("file%d", i), texts...)
	}
}

func TestSSHDThatHangs(t *testing.T) {
	p := startTrial(t)
	p.recorded(nil)
	mark := len(p.log())
	p.signal(p.LB2, "STOP", "sshd", "@notty")
	p.sh("echo 1 >hanging")
	p.eventually("the change to be pending", func() (bool, string) {
		s := p.status()
		return s.Replicator.Pending > 0 || s.State == status.Replicating, s.State
	})
	p.signal(p.LB2, "CONT", "sshd", "@notty")
	p.inStep()
	p.noProblem()
	if said := matching(p.log()[mark:], " warning "); len(said) > 0 {
		t.Error(said)
	}
	p.check(p.LB2.SSHD().Signal(unix.SIGSTOP))
	p.signal(p.LB2, "KILL", "sshd", "@notty")
	p.sh("echo 2 >hanging")
	p.problem("not reached", "192.168.77.12")
	p.check(p.LB2.SSHD().Signal(unix.SIGCONT))
	p.inStep()
	p.noProblem()
}

func TestCommandsInEachState(t *testing.T) {
	p := newTrial(t)
	says := func(n *lab.Node, want int, words []string, args ...string) {
		t.Helper()
		p.eventually(strings.Join(args, " "), func() (bool, string) {
			out, code := p.exit(n, "skd-inotify", args...)
			return code == want && len(matching(strings.ReplaceAll(out, "\n", " "), words...)) > 0, fmt.Sprintf("exit status %d: %s", code, out)
		})
	}
	health := func(n *lab.Node, want status.Health) {
		t.Helper()
		out, code := p.exit(n, "skd-inotify", "status", "--json")
		var r struct{ Health string }
		if err := json.Unmarshal([]byte(out), &r); err != nil || r.Health != want.String() || code != int(want) {
			t.Errorf("%s: status --json: exit status %d, want %d, %v:\n%s", n.Name, code, want, err, out)
		}
	}
	// Stopped.
	p.role(p.LB1, "")
	says(p.LB1, 1, []string{"stopped"}, "sync")
	says(p.LB1, 3, []string{"stopped"}, "status")
	health(p.LB1, status.Down)
	if out, code := p.exit(p.LB1, "skd-inotify"); code != 0 || !strings.Contains(out, "not master") {
		t.Errorf("without a status file: exit status %d: %s", code, out)
	}
	// Backup.
	says(p.LB2, 1, []string{"backup", "on the master"}, "sync")
	says(p.LB2, 3, []string{"backup"}, "status")
	health(p.LB2, status.Down)
	// Master, but it does not run.
	p.role(p.LB1, status.Master)
	says(p.LB1, 1, []string{"not running", "skd-hooks start"}, "sync")
	says(p.LB1, 1, []string{"not running", "skd-hooks start"}, "status")
	health(p.LB1, status.Degraded)
	// In step.
	first := p.start()
	p.inStep()
	says(p.LB1, 0, []string{"both nodes have the same"}, "sync")
	says(p.LB1, 0, []string{"in step", "healthy", "skd-inotify", lab.TreePath}, "status")
	health(p.LB1, status.Healthy)
	// A second one.
	out, code := p.exit(p.LB1, "skd-inotify")
	if code != 1 || !strings.Contains(out, "another skd-inotify runs here already") {
		t.Errorf("a second one: exit status %d: %s", code, out)
	}
	p.sh("echo 1 >after-the-second")
	p.arrives("after-the-second", "1\n")
	if first.Starts() != 1 || first.PID() == 0 {
		t.Error("the first one has not survived the second")
	}
	says(p.LB1, 0, []string{"both nodes have the same"}, "sync")
	// Killed: what it leaves behind is in nobody's way.
	p.check(first.Signal(unix.SIGKILL))
	<-first.Done()
	for _, name := range []string{"inotify.pid", "inotify.sock"} {
		if _, err := os.Lstat(p.LB1.Root(runDir + "/" + name)); err != nil {
			t.Error("nothing stale to test with: ", err)
		}
	}
	says(p.LB1, 1, []string{"not running", "skd-hooks start"}, "sync")
	says(p.LB1, 1, []string{"not running", "skd-hooks start"}, "status")
	p.sh("echo 2 >after-the-second")
	p.start()
	p.inStep()
	says(p.LB1, 0, []string{"both nodes have the same"}, "sync")
	// The peer is away.
	p.check(p.LB2.SSHD().Stop())
	p.signal(p.LB2, "KILL", "sshd", "@notty")
	says(p.LB1, 1, []string{"refused"}, "sync")
	says(p.LB1, 1, []string{"degraded", "not connected", "refused"}, "status")
	health(p.LB1, status.Degraded)
}

func TestLogIsReopenedAndItsLossDoesNotStopReplication(t *testing.T) {
	const dir, file = "/var/log/replicator", "/var/log/replicator/log"
	p := newTrial(t, keys{"zeninolog": file})
	p.run(p.LB1, "mkdir", dir)
	p.start()
	p.inStep()
	logged := func(words string) {
		t.Helper()
		p.eventually(words+" in the log", func() (bool, string) {
			text, err := p.LB1.ReadFile(file)
			return strings.Contains(text, words), fmt.Sprintf("%v, %s", err, text)
		})
	}
	p.run(p.LB1, "mv", file, file+".1")
	p.check(p.daemon.Signal(unix.SIGHUP))
	p.eventually("a new log", func() (bool, string) { _, err := p.LB1.ReadFile(file); return err == nil, fmt.Sprint(err) })
	p.sh("echo 1 >rotated")
	logged("replicated 1 change: rotated ") // new, or, if it went across before the echo, with another content
	if old, err := p.LB1.ReadFile(file + ".1"); err != nil || strings.Contains(old, "rotated") {
		t.Errorf("the old log still grows, %v:\n%s", err, old)
	}
	for i, mount := range []string{
		"mount -t tmpfs -o size=4k tmpfs " + dir + "; cat /dev/zero >" + dir + "/filler || true",
		"mount -t tmpfs -o ro tmpfs " + dir,
	} {
		p.run(p.LB1, "sh", "-c", mount)
		p.check(p.daemon.Signal(unix.SIGHUP))
		text := fmt.Sprintf("%d\n", i)
		p.eventually("lines on standard error", func() (bool, string) {
			p.sh("date +%N >ticks")
			return strings.Count(p.daemon.Log(), "standard error only") == i+1, p.daemon.Log()
		})
		p.put("meanwhile", text)
		p.arrives("meanwhile", text)
		p.inStep()
		p.run(p.LB1, "umount", "-l", dir)
		p.check(p.daemon.Signal(unix.SIGHUP))
		p.eventually("the log to go on", func() (bool, string) {
			p.sh("date +%N >ticks")
			log, err := p.LB1.ReadFile(file)
			return strings.Count(log, "could not be written for a while") == i+1, fmt.Sprintf("%v, %s", err, log)
		})
	}
	p.inStep()
}

// uninstall leaves the peer without our programs; sshd needs itself.
func (p *trial) uninstall() (install func()) {
	p.t.Helper()
	p.run(p.LB2, "sh", "-euc", "mkdir /tmp/sbin; cp -p /usr/sbin/sshd /tmp/sbin; mount --bind /tmp/sbin /usr/sbin")
	return func() { p.run(p.LB2, "umount", "-l", "/usr/sbin") }
}

func TestPeerWithoutOurProgram(t *testing.T) {
	p := newTrial(t)
	p.uninstall()
	p.recorded(nil)
	hostile := []string{"new\nline", "quo'te\"s", "-rf", "sp ace $HOME `id`", "*?[a]", "\xff\xfe"}
	p.run(p.LB2, "sh", "-euc", "cd "+lab.TreePath+"; echo own >local/own; echo own >if_eth7_conf; echo old >only-there")
	p.start()
	p.problem("no skd-inotify", "version 2.0", "install")
	for _, name := range hostile {
		p.put(name, "1")
	}
	p.sh("mkdir -p a/b; echo 1 >a/b/c; ln -s /etc/passwd link; chmod 600 global.conf")
	p.same()
	p.sh("rm -r a 'new\nline'; echo 2 >-- ./-rf; mv link renamed")
	p.same()
	p.saidOnce(0, "no skd-inotify", "install")
	p.shown("cannot compare", "install")
	for _, name := range []string{"local/own", "if_eth7_conf"} {
		if !p.has(name, "own\n") {
			t.Errorf("%s belongs to the peer and is gone", name)
		}
	}
	p.eventually("what was sent, in the log", func() (bool, string) {
		return strings.Contains(p.log(), "sent, not compared"), p.log()
	})
	if strings.Contains(p.log(), " replicated ") {
		t.Error("it says replicated, but nothing was compared:", p.log())
	}
	p.tidy()
	// What rsync cannot do there is told, although nothing is compared.
	p.sh("mkdir frozen; echo 1 >frozen/file")
	p.same()
	dir := lab.TreePath + "/frozen"
	p.run(p.LB2, "sh", "-euc", "mount --bind "+dir+" "+dir+"; mount -o remount,bind,ro "+dir)
	p.sh("echo 2 >frozen/file")
	p.problem("read-only", "frozen")
	p.run(p.LB2, "umount", dir)
	p.same()
}

func TestProgramThatIsInstalledOnThePeerIsNoticed(t *testing.T) {
	p := newTrial(t, keys{"verify_interval": "10"})
	install := p.uninstall()
	p.start()
	p.problem("no skd-inotify")
	p.same()
	p.eventually("another look for the program", func() (bool, string) {
		log := p.LB2.SSHD().Log()
		return strings.Count(log, "Accepted publickey") > 1, log
	})
	p.put("still-without", "1")
	p.arrives("still-without", "1")
	install()
	p.over(0, "no skd-inotify")
	if lost := matching(p.log(), " warning ", "lost"); len(lost) > 0 {
		t.Error("looking for the program is told as trouble:", lost)
	}
	p.sh("echo 3 >compared")
	p.eventually("a comparison", func() (bool, string) { return strings.Contains(p.log(), "replicated 1 change: compared"), p.log() })
}

func TestProgramOnThePeerThatCannotRun(t *testing.T) {
	p := newTrial(t)
	p.recorded(nil)
	p.check(p.LB2.WriteFile("/tmp/empty", "", 0o644))
	p.live(badDay{"not executable", func() { p.run(p.LB2, "mount", "--bind", "/tmp/empty", "/usr/sbin/skd-inotify") },
		[]string{"exit status 126", "by hand"}, func() { p.run(p.LB2, "umount", "/usr/sbin/skd-inotify") }})
}
