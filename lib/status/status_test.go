package status

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestStatusFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "status")
	if _, err := Read(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	defer unix.Umask(unix.Umask(0o077))
	for _, word := range []string{Backup, Master, Master, Backup} {
		if err := Write(path, word); err != nil {
			t.Fatal(err)
		}
		if got, err := Read(path); got != word || err != nil {
			t.Errorf("read %q, %v; want %q", got, err, word)
		}
		if b, _ := os.ReadFile(path); string(b) != word+"\n" {
			t.Errorf("file %q, want the word and a newline", b)
		}
		if info, _ := os.Stat(path); info.Mode() != 0o644 {
			t.Errorf("mode %v, want -rw-r--r--", info.Mode())
		}
	}
	if err := Write(path, "fault"); err == nil {
		t.Error("a third word was written")
	}
	if err := Remove(path); err != nil {
		t.Error(err)
	}
	if err := Remove(path); err != nil {
		t.Errorf("removing it again: %v", err)
	}
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestStatusFileOdd(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "status")
	for _, text := range []string{"", "mast", "master\nbackup\n", "MASTER\n", " master\n", strings.Repeat("master\n", 1000)} {
		os.WriteFile(path, []byte(text), 0o644)
		if word, err := Read(path); word != "" || err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%.20q: %q, %v; want an error", text, word, err)
		}
	}
	for name, text := range map[string]string{"no newline": "master", "from another system": "backup\r\n"} {
		os.WriteFile(path, []byte(text), 0o644)
		if word, err := Read(path); err != nil || word != strings.TrimSpace(text) {
			t.Errorf("%s: %q, %v", name, word, err)
		}
	}
	for name, make := range map[string]func(string) error{
		"fifo":      func(p string) error { return unix.Mkfifo(p, 0o644) },
		"directory": func(p string) error { return os.Mkdir(p, 0o755) },
	} {
		p := filepath.Join(dir, name)
		if err := make(p); err != nil {
			t.Fatal(err)
		}
		if word, err := Read(p); word != "" || err == nil {
			t.Errorf("%s: %q, %v; want an error", name, word, err)
		}
	}
}

// On a full disk there is no room for a new file, but for the other word there is.
func TestStatusFileOnAFullDisk(t *testing.T) {
	dir := t.TempDir()
	mount := exec.Command("mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", dir)
	if os.Getenv("STATUS_TEST_MOUNT") == "" {
		cmd := exec.Command("unshare", "-m", os.Args[0], "-test.run=^TestStatusFileOnAFullDisk$")
		cmd.Env = append(os.Environ(), "STATUS_TEST_MOUNT=1")
		if err := exec.Command("unshare", "-m", "true").Run(); err != nil {
			t.Skip("needs root: a mount namespace of its own")
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s", out)
		}
		return
	}
	if out, err := mount.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() { unix.Unmount(dir, 0) })
	path := filepath.Join(dir, "status")
	if err := Write(path, Master); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "rest"), make([]byte, 1<<20), 0o644); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("filling the disk: %v", err)
	}
	if err := Write(path, Backup); err != nil {
		t.Error(err)
	}
	if word, err := Read(path); word != Backup || err != nil {
		t.Errorf("then the file says %q, %v", word, err)
	}
	if _, err := os.Stat(path + ".new"); err == nil {
		t.Error("the new file was left behind")
	}
	if err := Write(filepath.Join(dir, "other"), Backup); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("where no file was: %v, want no space", err)
	}
}

func sample() Daemon {
	at := func(boot time.Duration) Moment {
		return Moment{time.Date(2026, 8, 3, 12, 0, 0, 0, time.UTC).Add(boot), boot}
	}
	return Daemon{
		Version: "3.0.0", PID: 812, Started: at(10 * time.Second), Updated: at(4000 * time.Second),
		State: Master, Since: at(50 * time.Second), Reason: "no advertisement from 192.168.1.251 for 3.6s",
		Interface: "eth0", VRID: 1, Priority: 100, Transport: "multicast", Signed: true,
		AdvertInterval: Seconds(time.Second), DeadRatio: 3, DownInterval: Seconds(3609375 * time.Microsecond),
		Addresses: []Address{{"192.168.1.252/24", "eth0:cluster", true}, {"192.168.1.253/24", "eth0:web", true}},
		Guard:     "down",
		Peer:      Peer{Address: "192.168.1.251", LastHeard: at(46 * time.Second), Priority: 100, Interval: Seconds(time.Second), Verified: true, Key: "password"},
		Sent:      3950, Received: 36, Drops: map[string]uint64{"replay": 3, "bad-mac": 12},
		Hooks: []Hook{
			{Name: "start", State: HookDone, Since: at(52 * time.Second), Took: Seconds(1200 * time.Millisecond)},
			{Name: "advertisement", State: HookRunning, Since: at(3999 * time.Second)},
		},
		Warnings: []Problem{{"$password is \"secret\", which everybody knows", "set another one on both nodes"}},
	}
}

func TestDaemonFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), DaemonFile)
	if _, err := ReadDaemon(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	want := sample()
	if err := want.WriteFile(path); err != nil {
		t.Fatal(err)
	}
	got, err := ReadDaemon(path)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("read %+v, %v\nwrote %+v", got, err, want)
	}
	b, _ := os.ReadFile(path)
	for _, part := range []string{`"state": "master"`, `"down_interval_s": 3.609375`, `"time": "2026-08-03T12:00:50Z",` + "\n    " + `"boot_s": 50`, `"bad-mac": 12`} {
		if !strings.Contains(string(b), part) {
			t.Errorf("no %s in\n%s", part, b)
		}
	}
	for _, text := range []string{"", "{", `{"pid": "x"}`, `{"since": {"boot_s": "soon"}}`, `{"down_interval_s": 1e400}`, `[]`} {
		os.WriteFile(path, []byte(text), 0o644)
		if _, err := ReadDaemon(path); err == nil || !strings.HasPrefix(err.Error(), path) {
			t.Errorf("%s: error %v, want one that names the file", text, err)
		}
	}
}

func TestAlive(t *testing.T) {
	now := Now().Boot
	if !Alive(os.Getpid(), now) {
		t.Error("this process counts as dead")
	}
	if Alive(os.Getpid(), 0) {
		t.Error("this process counts as there when the machine booted")
	}
	// A name like this one must not shift the fields.
	cmd := exec.Command("/bin/sh", "-c", `cp /bin/sleep "$0/a) Z 1 (b" && exec "$0/a) Z 1 (b" 60`, t.TempDir())
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if !Alive(cmd.Process.Pid, Now().Boot) {
		t.Error("the child counts as dead")
	}
	if Alive(cmd.Process.Pid, now-time.Second) {
		t.Error("the child counts as older than it is")
	}
	cmd.Process.Kill()
	for deadline := time.Now().Add(10 * time.Second); Alive(cmd.Process.Pid, Now().Boot); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("a zombie counts as alive")
		}
	}
	cmd.Wait()
	if Alive(cmd.Process.Pid, Now().Boot) || Alive(0, now) || Alive(-1, now) {
		t.Error("nobody counts as alive")
	}
}

func TestReport(t *testing.T) {
	now := Moment{time.Date(2026, 8, 3, 13, 6, 42, 0, time.UTC), 4002 * time.Second}
	for _, tc := range []struct {
		name    string
		word    string // in the status file
		json    bool
		dead    bool
		change  func(*Daemon)
		state   string
		health  Health
		problem string
	}{
		{name: "master", word: Master, json: true, state: Master},
		{name: "backup", word: Backup, json: true, change: func(d *Daemon) { d.State = Backup }, state: Backup},
		{name: "never started", state: Stopped, health: Down},
		{name: "stopped", json: true, dead: true, change: func(d *Daemon) { d.State = Init }, state: Stopped, health: Down},
		{name: "daemon was killed", word: Master, json: true, dead: true, state: Master, health: Degraded,
			problem: "the status file says master, but skd-vrrpd is not running"},
		{name: "nothing but the status file", word: Backup, state: Backup, health: Degraded,
			problem: "the status file says backup, but skd-vrrpd is not running"},
		{name: "in fault", word: Backup, json: true, state: Fault, health: Degraded, problem: "eth0 has no carrier",
			change: func(d *Daemon) { d.State, d.Faults = Fault, []Problem{{Text: "eth0 has no carrier"}} }},
		{name: "in fault without a fault", word: Backup, json: true, state: Fault, health: Degraded, problem: "out of the election: ",
			change: func(d *Daemon) { d.State = Fault }},
		{name: "status file not writable", word: Backup, json: true, state: Master, health: Degraded,
			problem: `the daemon is master, but the status file says "backup"`},
		{name: "status file lost", json: true, state: Master, health: Degraded, problem: `the daemon is master, but the status file says ""`},
		{name: "an odd status file", word: "slave", json: true, state: Master, health: Degraded, problem: "the status file cannot be read"},
		{name: "about to begin", json: true, state: Init, change: func(d *Daemon) { d.State = Init }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			file := filepath.Join(dir, "status")
			if tc.word != "" {
				os.WriteFile(file, []byte(tc.word+"\n"), 0o644)
			}
			d := sample()
			if tc.change != nil {
				tc.change(&d)
			}
			if tc.json {
				if err := d.WriteFile(filepath.Join(dir, DaemonFile)); err != nil {
					t.Fatal(err)
				}
			}
			r := inspect(file, dir, now, func(Daemon) bool { return !tc.dead })
			if r.State != tc.state || r.Health != tc.health {
				t.Errorf("%s, %s; want %s, %s", r.State, r.Health, tc.state, tc.health)
			}
			switch {
			case tc.problem == "" && len(r.Problems) > 0:
				t.Errorf("problems %q, want none", r.Problems)
			case tc.problem != "" && (len(r.Problems) == 0 || !strings.HasPrefix(r.Problems[0].Text, tc.problem)):
				t.Errorf("problems %q, want %q", r.Problems, tc.problem)
			}
			var text strings.Builder
			if err := r.WriteText(&text); err != nil {
				t.Error(err)
			}
			if _, err := json.Marshal(r); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestReportText(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "status")
	now := Moment{time.Date(2026, 8, 3, 13, 6, 42, 0, time.UTC), 4002 * time.Second}
	show := func(alive bool) string {
		var b strings.Builder
		inspect(file, dir, now, func(Daemon) bool { return alive }).WriteText(&b)
		return b.String()
	}
	check := func(name, got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
		}
	}
	check("never started", show(false), "state    stopped\nhealth   stopped\n")

	Write(file, Master)
	d := sample()
	d.Faults = []Problem{{"nftables cannot be reached: operation not permitted", "is nf_tables loaded? modprobe nf_tables"}}
	d.WriteFile(filepath.Join(dir, DaemonFile))
	check("master", show(true), `state       master since 2026-08-03 12:00:50 (1 h 5 min ago)
because     no advertisement from 192.168.1.251 for 3.6s
health      degraded
daemon      skd-vrrpd 3.0.0, pid 812, running; says this as of 2.0 s ago
election    eth0, VRID 1, priority 100, preemption off, multicast, signed, every 1s, down interval 3.609375s
peer        192.168.1.251, last heard 2026-08-03 12:00:46 (1 h 5 min ago), priority 100, every 1s, signature verified (password)
addresses   192.168.1.252/24 eth0:cluster, up
            192.168.1.253/24 eth0:web, up
guard       down
adverts     3950 sent, 36 received
dropped     bad-mac 12, replay 3
hooks       start: done after 1.2 s, 2026-08-03 12:00:52 (1 h 5 min ago)
            advertisement: running, 2026-08-03 13:06:39 (3.0 s ago)
problems    nftables cannot be reached: operation not permitted
              -> is nf_tables loaded? modprobe nf_tables
warnings    $password is "secret", which everybody knows
              -> set another one on both nodes
`)
	for speaks, want := range map[string]string{
		SpeaksCARP: "protocol    CARP, which protects little\n",
		SpeaksBoth: "protocol    VRRPv3, and CARP because the peer is ucarp: upgrade that node, too\n",
	} {
		d.Speaks, d.Peer.Spoke, d.Peer.Priority = speaks, SpeaksCARP, 0
		d.WriteFile(filepath.Join(dir, DaemonFile))
		want += "peer        192.168.1.251, last heard 2026-08-03 12:00:46 (1 h 5 min ago), with CARP, every 1s, digest verified (password)\n"
		if got := show(true); !strings.Contains(got, want) {
			t.Errorf("%s: got\n%s\nwant\n%s", speaks, got, want)
		}
	}
	Remove(file)
	if got, want := show(false), "state       stopped; last known: master since 2026-08-03 12:00:50 (1 h 5 min ago)\n"; !strings.HasPrefix(got, want) {
		t.Errorf("stopped: got\n%s\nwant it to begin with\n%s", got, want)
	}
}

func TestAge(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0.0 s", 0: "0.0 s", 1234 * time.Millisecond: "1.2 s", 59 * time.Second: "59 s",
		60 * time.Second: "1 min 0 s", 3*time.Hour + 59*time.Second: "3 h 0 min", 50*time.Hour + time.Minute: "2 d 2 h",
	} {
		if got := Age(d); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
}

func FuzzReadDaemon(f *testing.F) {
	b, _ := json.Marshal(sample())
	f.Add(b)
	f.Add([]byte(`{"since":{"time":"x"}}`))
	path := filepath.Join(f.TempDir(), DaemonFile)
	f.Fuzz(func(t *testing.T, data []byte) {
		var d Daemon
		if json.Unmarshal(data, &d) != nil {
			return
		}
		if err := d.WriteFile(path); err != nil {
			t.Skip() // a year that RFC 3339 does not know
		}
		if again, err := ReadDaemon(path); err != nil || again.State != d.State {
			t.Errorf("%+v came back as %+v, %v", d, again, err)
		}
	})
}

func TestPeerUpgraded(t *testing.T) {
	dir, peer, other := t.TempDir(), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3")
	if PeerUpgraded(dir, peer) {
		t.Error("before it was noted")
	}
	if err := NotePeerUpgraded(dir, peer); err != nil {
		t.Fatal(err)
	}
	if !PeerUpgraded(dir, peer) || PeerUpgraded(dir, other) {
		t.Errorf("noted of %v: %v, of %v: %v", peer, PeerUpgraded(dir, peer), other, PeerUpgraded(dir, other))
	}
	for range 2 {
		if err := ForgetPeerUpgraded(dir); err != nil || PeerUpgraded(dir, peer) {
			t.Errorf("not forgotten: %v", err)
		}
	}
}
