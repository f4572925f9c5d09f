package hook

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/systemd"
)

// needSystemd skips a test where no systemd can start services, and returns a
// directory for FIFOs.
func needSystemd(t *testing.T) string {
	t.Helper()
	if !systemd.Booted() {
		t.Skip("needs systemd as the first process, as in a booted node of the test bed")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: a system service")
	}
	return t.TempDir()
}

func TestMainOfService(t *testing.T) {
	for told, want := range map[string]bool{"812": true, "811": false, "": false} {
		if got := mainOfService(812, told); got != want {
			t.Errorf("812, told %q: %v, want %v", told, got, want)
		}
	}
}

// The words are those of os/exec, for whoever searches the log for them.
func TestEnded(t *testing.T) {
	for words, want := range map[string]string{
		"exited\n0\n":  "<nil>",
		"exited 7\n":   "exit status 7",
		"exited 255\n": "exit status 255",
		"killed KILL":  "signal: killed",
		"killed TERM":  "signal: terminated",
		"dumped SEGV":  "signal: segmentation fault (core dumped)",
		"killed RTMIN": "signal: RTMIN",
		" \n":          `ended in a way that systemd calls ""`,
		"exited x":     `ended in a way that systemd calls "exited x"`,
	} {
		if got := fmt.Sprint(ended(words)); got != want {
			t.Errorf("%q: %q, want %q", words, got, want)
		}
	}
}

func TestUnitName(t *testing.T) {
	const dir = "/run/skudonet-ce-cluster/hook-812-31337"
	for script, want := range map[string]string{
		"/usr/local/skudonet/app/ucarp/sbin/skudonet-ce-cluster-start": "skudonet-ce-cluster-hook-start-812-31337.service",
		"/root/my hook@1.sh":           "skudonet-ce-cluster-hook-my_hook_1.sh-812-31337.service",
		"/" + strings.Repeat("ä", 120): "skudonet-ce-cluster-hook-" + strings.Repeat("_", 50) + "-812-31337.service",
	} {
		got := unitName(script, dir)
		if got != want {
			t.Errorf("%s: %s, want %s", script, got, want)
		}
		if !ours(got, 812) || ours(got, 31337) {
			t.Errorf("%s: named by 812 %v, by 31337 %v", got, ours(got, 812), ours(got, 31337))
		}
	}
}

// A service that systemd starts when we have given up must find nothing to
// write to, so that no script runs twice.
func TestRevoke(t *testing.T) {
	for _, began := range []bool{false, true} {
		u := &unit{dir: t.TempDir() + "/hook"}
		os.Mkdir(u.dir, 0o700)
		writer, err := u.open()
		if err != nil {
			t.Fatal(err)
		}
		output := filepath.Join(u.dir, outputName)
		if began {
			w, err := os.OpenFile(output, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			fmt.Fprintln(w, "hello")
		}
		writer.Close()
		if got := u.revoke(); got == began {
			t.Errorf("revoked %v of a service that has begun %v", got, began)
		}
		// As systemd does: it would make a file, not a directory.
		f, err := os.OpenFile(output, os.O_WRONLY|os.O_CREATE|unix.O_NONBLOCK, 0o644)
		if began != (err == nil) {
			t.Errorf("opened afterwards: %v, of a service that has begun %v", err, began)
		}
		f.Close()
		u.close()
		u.output.Close()
		if left, _ := filepath.Glob(filepath.Dir(u.dir) + "/*"); len(left) != 0 {
			t.Errorf("left behind: %v", left)
		}
	}
}

// tools puts scripts into a directory that is all of PATH.
func tools(t *testing.T, scripts map[string]string) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range scripts {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir)
}

func TestSystemdRefuses(t *testing.T) {
	script := write(t, "ok", "#!/bin/sh\necho hello\n")
	for name, tc := range map[string]struct {
		tools map[string]string
		want  string
	}{
		"systemd refuses": {map[string]string{"systemd-run": "#!/bin/sh\necho 'Failed to start transient service unit: Refused' >&2\nexit 1\n"},
			"Failed to start transient service unit: Refused"},
		"no systemd-run": {nil, "executable file not found"},
	} {
		t.Run(name, func(t *testing.T) {
			tools(t, tc.tools)
			dir, l := t.TempDir(), newLog()
			way := Transient(dir, Grace)
			for lines := 2; lines <= 3; lines++ {
				if c := run(t, way, script, l); c.Err != nil {
					t.Fatal(c.Err)
				}
				l.waitLines(t, lines)
			}
			got := l.all()
			if len(got) != 3 || !strings.Contains(got[0], tc.want) || got[1] != "start: hello" || got[2] != "start: hello" {
				t.Errorf("log %q; want one line with %q, then hello twice", got, tc.want)
			}
			if left, _ := os.ReadDir(dir); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func TestServiceOfItsOwn(t *testing.T) {
	dir, l := needSystemd(t), newLog()
	odd := []string{"PATH=" + Path, `ODD=a %n $HOME ${HOME} "q" 'r' \n ;`}
	script := write(t, "skudonet-ce-cluster-start", "#!/bin/sh\nsed -n 's/^0:/in /p' /proc/self/cgroup\nprintf 'odd %s\\n' \"$ODD\"\nsystemctl daemon-reload\nexit 7\n")
	r := NewRunner(Options{Scripts: map[Kind]string{Start: script}, Env: func(Kind) []string { return odd }, Log: l.add, Exec: Transient(dir, Grace)})
	r.Want(Start)
	wait(t, r)
	if got := fmt.Sprint(r.Completed().Err); !strings.HasSuffix(got, "exit status 7") {
		t.Errorf("error %s", got)
	}
	unit := filepath.Base(l.wait(t, "start: in "))
	if want := fmt.Sprintf("%sstart-%d-", unitPrefix, os.Getpid()); !strings.HasPrefix(unit, want) {
		t.Errorf("in %s, want %s...", unit, want)
	}
	if got := l.wait(t, "start: odd "); "ODD="+got != odd[1] {
		t.Errorf("the environment arrived as %s, want %s", got, odd[1])
	}
	for end := time.Now().Add(deadline); ; time.Sleep(10 * time.Millisecond) {
		out, err := exec.Command("systemctl", "show", "--property=LoadState", "--value", unit).Output()
		if err == nil && string(out) == "not-found\n" {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%s is still there: %s, %v", unit, out, err)
		}
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// Whatever becomes of systemctl, a script that is to end does.
func TestEndWithoutSystemctl(t *testing.T) {
	for name, scripts := range map[string]map[string]string{
		"missing": nil,
		"hangs":   {"systemctl": "#!/bin/sh\nexec /bin/sleep 1000\n"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, l := needSystemd(t), newLog()
			script := write(t, "hang", "#!/bin/sh\n(trap '' TERM; while :; do sleep 1; done) >/dev/null 2>&1 &\necho \"child $!\"\nwait\n")
			r := NewRunner(Options{Scripts: map[Kind]string{Start: script}, Log: l.add, Exec: Transient(dir, 100*time.Millisecond)})
			r.Want(Start)
			child := l.wait(t, "start: child ")
			tools(t, scripts)
			r.Cancel()
			wait(t, r)
			if err := r.Completed().Err; !errors.Is(err, ErrCancelled) {
				t.Errorf("error %v, want %v", err, ErrCancelled)
			}
			if alive(child) {
				t.Error("the script's child is still there")
			}
		})
	}
}

// A daemon that was killed while a hook ran is followed by one that runs a hook.
func TestLeftovers(t *testing.T) {
	const key = "HOOK_TEST_LEFTOVERS"
	if script := os.Getenv(key); script != "" {
		r := NewRunner(Options{Scripts: map[Kind]string{Start: script}, Exec: Transient(os.Getenv(key+"_DIR"), Grace),
			Log: func(_ Kind, s string) { fmt.Println(s) }})
		r.Want(Start)
		r.Wait(context.Background())
		r.Want(Start)
		r.Wait(context.Background())
		os.Exit(1) // it is to be killed
	}
	dir := needSystemd(t)
	// The first run leaves a daemon, the second one lasts.
	script := write(t, "long", `#!/bin/sh
if mkdir "$0.once" 2>/dev/null; then
	sleep 1000 >/dev/null 2>&1 &
	echo "daemon $!"
else
	echo "hook $$"
	exec sleep 1000
fi
`)
	cmd := exec.Command(os.Args[0], "-test.run=^TestLeftovers$")
	cmd.Env = append(os.Environ(), key+"="+script, key+"_DIR="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	var daemon, hook string
	if _, err := fmt.Fscanf(out, "daemon %s\nhook %s\n", &daemon, &hook); err != nil {
		rest, _ := io.ReadAll(out)
		t.Fatalf("%v: %s", err, rest)
	}
	t.Cleanup(func() {
		if pid, err := strconv.Atoi(daemon); err == nil {
			unix.Kill(pid, unix.SIGKILL)
		}
	})
	cmd.Process.Kill()
	cmd.Wait()
	if !alive(hook) {
		t.Fatal("the hook died with its daemon; this test tests nothing")
	}
	l := newLog()
	if c := run(t, Transient(dir, Grace), write(t, "next", "#!/bin/sh\necho next\n"), l); c.Err != nil {
		t.Fatal(c.Err)
	}
	if alive(hook) {
		t.Error("the hook of the earlier life still runs beside that of this one")
	}
	if !alive(daemon) {
		t.Error("what an earlier hook left behind was killed")
	}
	said := l.wait(t, "start: (ended "+unitPrefix+"long-"+strconv.Itoa(cmd.Process.Pid))
	l.wait(t, "start: next")
	if got := l.all(); len(got) != 2 {
		t.Errorf("log %q, want two lines; said %q", got, said)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}
