package e2e

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/auth"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
	"github.com/skudonet/skudonet-ce-cluster/test/lab"
)

// leaks lists the places on the node where one of the secrets can be found: files, whoever may read them, and what /proc
// and ps tell of processes.
func (p *pair) leaks(n *lab.Node, secrets ...string) (found []string) {
	p.t.Helper()
	look := func(where string, text []byte) {
		for _, s := range secrets {
			if bytes.Contains(text, []byte(s)) {
				found = append(found, where)
			}
		}
	}
	root := n.Root("/")
	for _, dir := range []string{"run", "var", "etc", "tmp", "root", "dev/shm", "usr/local"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(file string, entry fs.DirEntry, err error) error {
			name := strings.TrimPrefix(file, root)
			// The other directories below /var are the host's.
			if entry != nil && entry.IsDir() && strings.Count(name, "/") == 2 && strings.HasPrefix(name, "/var/") && name != "/var/lib" && name != "/var/log" && name != "/var/tmp" {
				return filepath.SkipDir
			}
			if err != nil || !entry.Type().IsRegular() || name == lab.ConfigPath {
				return nil
			}
			text, err := os.ReadFile(file)
			if os.IsNotExist(err) { // replaced meanwhile
				return nil
			}
			look(name, text)
			return err
		})
		p.check(err)
	}
	processes, err := filepath.Glob(filepath.Join(root, "proc/[0-9]*"))
	p.check(err)
	for _, dir := range processes {
		for _, file := range []string{"cmdline", "environ", "comm"} {
			text, _ := os.ReadFile(filepath.Join(dir, file)) // it may have ended
			look(strings.TrimPrefix(dir, root)+"/"+file, text)
		}
	}
	look("ps", []byte(p.run(n, "ps", "-efww")))
	return found
}

func TestNoSecretAnywhere(t *testing.T) {
	const now, next, third = "Zx9.Muster-Kennwort@1", "Qw7.Muster-Kennwort@2", "Ab3.Muster-Kennwort@3"
	p := newPairWithHooks(t, keys{"password": now, "password_next": next})

	// A search that finds nothing proves nothing unless it can find.
	p.check(p.LB1.WriteFile("/run/planted", "a "+now+" b", 0o600))
	planted := p.startAs(p.LB1, lab.DaemonSpec{Args: []string{"sleep", "1000"}, Env: []string{"PLANTED=" + next}})
	if found := p.leaks(p.LB1, now, next); len(found) != 2 {
		t.Fatalf("found %v, want the two that were planted", found)
	}
	p.check(planted.Stop())
	p.run(p.LB1, "rm", "/run/planted")

	syslog, err := p.LB1.Syslog()
	p.check(err)
	p.startBoth()
	printed := ""
	say := func(n *lab.Node, name string, args ...string) {
		out, _ := n.Run(name, args...)
		printed += out
	}
	p.signal(p.LB1, unix.SIGUSR2)
	p.waitMaster(p.LB2)
	for _, n := range p.Nodes() {
		p.fresh(n)
		say(n, "skd-hooks", "status")
		say(n, "skd-hooks", "status", "--json")
		say(n, "skd-vrrpd", "-n")
		say(n, "skd-vrrpd", "forget-peer")
	}
	// It executes itself anew when its hook has ended, and reads the file before it forgets.
	for _, n := range p.Nodes() {
		p.eventually("the peer forgotten on "+n.Name, func() (bool, string) {
			_, err := os.Lstat(n.Root(filepath.Join(runDir, "forget-peer")))
			return os.IsNotExist(err), ""
		})
	}
	// A file whose mistake is in the password.
	right, err := p.LB2.ReadFile(lab.ConfigPath)
	p.check(err)
	for _, wrong := range [][2]string{
		{"$password_next='" + next + "';", "$password_next='" + next + "'.'x';"}, {"$password_next='" + next + "';", "$password_next='" + next},
		{"$password_next=", "$password_next "}, {"$password=", "password="}, {"$password=", "$pass word="},
		{"$password='" + now + "'", "$cluster_id='x';$password='" + now + "'"}, {"$password=", "$Password="},
	} {
		text := strings.Replace(right, wrong[0], wrong[1], 1)
		if text == right {
			t.Fatalf("no %s in\n%s", wrong[0], right)
		}
		p.check(p.LB2.WriteFile(lab.ConfigPath, text, 0o600))
		say(p.LB2, "skd-vrrpd", "-n")
	}
	p.check(p.LB2.WriteFile(lab.ConfigPath, strings.Replace(right, "$password=", "$password.=", 1), 0o600))
	before := p.timesLogged(p.LB2, "going on with the old one")
	p.signal(p.LB2, unix.SIGHUP)
	p.eventually("the old configuration kept", func() (bool, string) { return p.timesLogged(p.LB2, "going on with the old one") > before, "" })
	// A peer with another password.
	p.stop(p.LB1)
	p.configure(p.LB1, keys{"password": third, "password_next": lab.Omit})
	p.start(p.LB1)
	p.awaitReport(p.LB1, "not hearing its peer", func(d status.Daemon) (bool, string) { return len(d.Faults) > 0, fmt.Sprint(d.Drops) })

	for _, n := range p.Nodes() {
		if found := p.leaks(n, now, next, third); len(found) > 0 {
			t.Errorf("on %s a password is in %v", n.Name, found)
		}
		for _, file := range []string{"password.key", "password_next.key", "vrrpd.state"} {
			info, err := os.Stat(n.Root(filepath.Join(runDir, file)))
			if n == p.LB1 && file == "password_next.key" {
				if err == nil {
					t.Errorf("%s outlives its password", file)
				}
				continue
			}
			p.check(err)
			if info.Mode().Perm() != 0o600 {
				t.Errorf("%s has mode %v", file, info.Mode())
			}
		}
	}
	log := strings.Join(syslog.Lines(), "\n")
	if !strings.Contains(log, "skd-vrrpd") || !strings.Contains(log, "asked to hand over") {
		t.Errorf("syslog has\n%s", log)
	}
	for _, secret := range []string{now, next, third} {
		if strings.Contains(log+printed, secret) {
			t.Errorf("%s was said:\n%s\n%s", secret, log, printed)
		}
	}
}

// The control, a program of no secrets, shows what this host does when nobody prevents it.
func TestNoSecretFromMemory(t *testing.T) {
	p := newPair(t)
	// Capabilities by which Linux lets a process look into any other one.
	const unseeing = "--bounding-set=-sys_ptrace,-perfmon,-sys_admin"
	start := func(command string) *lab.Daemon {
		t.Helper()
		return p.startAs(p.LB1, lab.DaemonSpec{Name: "victim", Env: []string{"GOTRACEBACK=crash"},
			Args: []string{"sh", "-c", "ulimit -c unlimited; cd /var/tmp; exec setpriv " + unseeing + " " + command}})
	}
	dumps := func(d *lab.Daemon, sig unix.Signal) bool {
		t.Helper()
		p.check(d.Signal(sig))
		<-d.Done()
		exit := d.Exits()[0].State
		if ws := exit.Sys().(syscall.WaitStatus); !ws.Signaled() {
			t.Errorf("after %v it ended with %v", sig, exit)
		} else if !ws.CoreDump() {
			return false
		}
		return true
	}
	pid := func(name string) string {
		t.Helper()
		var found string
		p.eventually(name, func() (bool, string) {
			out, err := p.LB1.Run("pidof", "-s", name)
			found = strings.TrimSpace(out)
			return err == nil, out
		})
		return found
	}
	// Opens tells whether processes that are nobody's, and root's without those capabilities, get at memory and environment.
	opens := func(pid, file string) (nobody, root bool) {
		try := func(privileges ...string) bool {
			args := append(privileges, "sh", "-c", "exec 3< /proc/"+pid+"/"+file)
			_, err := p.LB1.Run("setpriv", args...)
			return err == nil
		}
		return try("--reuid=65534", "--regid=65534", "--clear-groups"), try(unseeing)
	}

	control := start("sleep 1000")
	sleeper := pid("sleep")
	for _, file := range []string{"mem", "environ"} {
		if nobody, root := opens(sleeper, file); nobody || !root {
			t.Errorf("%s of the control: open to nobody %v, to root %v; want only to root", file, nobody, root)
		}
	}
	dumpsHere := dumps(control, unix.SIGSEGV)
	if !dumpsHere {
		t.Log("this host writes no core files, so that the daemon writes none is no wonder")
	}
	p.run(p.LB1, "sh", "-c", "rm -f /var/tmp/core*")

	for _, sig := range []unix.Signal{unix.SIGSEGV, unix.SIGABRT} {
		d := start("skd-vrrpd")
		p.waitStatus(p.LB1, "master")
		daemon := pid("skd-vrrpd")
		for _, file := range []string{"mem", "environ", "maps"} {
			if nobody, root := opens(daemon, file); nobody || root {
				t.Errorf("%s of the daemon: open to nobody %v, to root without capabilities %v", file, nobody, root)
			}
		}
		if dumps(d, sig) {
			t.Errorf("%v dumps core", sig)
		}
		if out := p.run(p.LB1, "find", "/var/tmp", "-name", "core*"); out != "" {
			t.Errorf("%v leaves %s", sig, out)
		}
		if found := p.leaks(p.LB1, lab.Password); len(found) > 0 {
			t.Errorf("after %v the password is in %v", sig, found)
		}
		for _, file := range []string{"password.key", "vrrpd.state", "../../" + lab.ConfigPath} {
			if _, err := p.LB1.Run("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "cat", filepath.Join(runDir, file)); err == nil {
				t.Errorf("everybody can read %s", file)
			}
		}
		p.run(p.LB1, "rm", lab.StatusPath)
		p.waitStatus(p.LB1, "")
	}
}

func TestPrompt(t *testing.T) {
	p := newPair(t)
	people := map[*lab.Node]*lab.Terminal{}
	for _, n := range p.Nodes() {
		p.check(n.WriteFile("/root/.bashrc", "PS1='\\u@\\h> '\nPROMPT_COMMAND='echo \"<$?>\"'\n. <(skd-prompt bash)\n", 0o644))
		term, err := n.Terminal("bash", "-i")
		p.check(err)
		people[n] = term
	}
	// shows runs a command and wants its exit status, and the role behind it, on the screen.
	shows := func(n *lab.Node, command string, code int, role string) {
		t.Helper()
		if command != "" {
			p.check(people[n].Type(command))
		}
		seen, err := people[n].Expect(limit, "root@"+n.Name+"> ")
		p.check(err)
		if want := fmt.Sprintf("<%d>\r\n[%s] ", code, role); !strings.HasSuffix(seen, want) {
			t.Errorf("%s shows %q after %q, want %q before the prompt", n.Name, seen, command, want)
		}
	}
	both := func(ofLB1, ofLB2 string) {
		t.Helper()
		shows(p.LB1, "true", 0, ofLB1)
		shows(p.LB2, "false", 1, ofLB2)
	}
	shows(p.LB1, "", 0, "")
	shows(p.LB2, "", 0, "")
	p.startBoth()
	both("master", "backup")
	p.signal(p.LB1, unix.SIGUSR2)
	p.waitMaster(p.LB2)
	both("backup", "master")
	p.check(p.LB1.Cut())
	p.eventually("fault", func() (bool, string) { return p.report(p.LB1).State == "fault", p.report(p.LB1).State })
	both("backup", "master")
	p.check(p.LB1.Heal())
	p.stop(p.LB2)
	p.waitStatus(p.LB1, "master")
	both("master", "")
	p.stop(p.LB1)
	both("", "")
}

// A key that stands in the configuration as it is signs as keepalived's auth_hmac does with the same one.
func TestKeyAsItIs(t *testing.T) {
	secret := bytes.Repeat([]byte{0x5a, 0x01}, 20)
	p := newPair(t, keys{"password": "hex:" + hex.EncodeToString(secret)})
	key, err := auth.NewKey(secret)
	p.check(err)
	wire := p.capture(lab.VRRP)
	p.startBoth()
	p.signal(p.LB1, unix.SIGUSR2)
	p.waitMaster(p.LB2)
	p.logged(p.LB2, "192.168.77.11 hands over") // at once, because it was verified
	p.awaitAdverts(wire, p.LB2, 2)
	for _, a := range adverts(wire, p.LB2, time.Time{}) {
		if _, err := key.Verify(a.message[:len(a.message)-len(a.trailer)], a.trailer, a.ip.Source); err != nil {
			t.Fatalf("%x: %v", a.message, err)
		}
	}
	if _, err := os.Stat(p.LB1.Root(path.Join(runDir, "password.key"))); !os.IsNotExist(err) {
		t.Errorf("a file with a key that needs no deriving: %v", err)
	}
}
