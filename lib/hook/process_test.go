package hook

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// deadline is how long a test waits for something that takes no time.
const deadline = 20 * time.Second

// log collects what hooks say.
type log struct {
	mu    sync.Mutex
	lines []string
	news  chan struct{}
}

func newLog() *log { return &log{news: make(chan struct{}, 1)} }

func (l *log) add(k Kind, line string) {
	l.mu.Lock()
	l.lines = append(l.lines, k.String()+": "+line)
	l.mu.Unlock()
	select {
	case l.news <- struct{}{}:
	default:
	}
}

func (l *log) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.lines)
}

// wait waits for a line that begins with prefix and returns the rest of it.
func (l *log) wait(t *testing.T, prefix string) string {
	t.Helper()
	for end := time.After(deadline); ; {
		for _, line := range l.all() {
			if rest, ok := strings.CutPrefix(line, prefix); ok {
				return rest
			}
		}
		select {
		case <-l.news:
		case <-end:
			t.Fatalf("no line %q; the log: %q", prefix, l.all())
		}
	}
}

// waitLines waits for so many lines: a busy host may take longer for them than a script's end waits.
func (l *log) waitLines(t *testing.T, count int) {
	t.Helper()
	for end := time.After(deadline); len(l.all()) < count; {
		select {
		case <-l.news:
		case <-end:
			t.Fatalf("want %d lines; the log: %q", count, l.all())
		}
	}
}

// write makes an executable script.
func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// execs runs a test with each of the real ones.
func execs(t *testing.T, test func(t *testing.T, exec func(grace time.Duration) Exec)) {
	t.Run("process", func(t *testing.T) { test(t, Process) })
	t.Run("transient", func(t *testing.T) {
		dir := needSystemd(t)
		test(t, func(grace time.Duration) Exec { return Transient(dir, grace) })
	})
}

// run runs one script as a start hook to its end.
func run(t *testing.T, exec Exec, script string, l *log) Completion {
	t.Helper()
	r := NewRunner(Options{Scripts: map[Kind]string{Start: script}, Log: l.add, Exec: exec, Timeout: deadline})
	r.Want(Start)
	wait(t, r)
	return r.Completed()
}

func wait(t *testing.T, r *Runner) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	if err := r.Wait(ctx); err != nil {
		t.Fatalf("hooks: %v", err)
	}
}

func alive(pid string) bool {
	n, err := strconv.Atoi(pid)
	if err != nil {
		panic(err)
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

func waitGone(t *testing.T, pid string) {
	t.Helper()
	for end := time.Now().Add(deadline); alive(pid); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("process %s is still there", pid)
		}
	}
}

func TestScripts(t *testing.T) { execs(t, testScripts) }

func testScripts(t *testing.T, exec func(time.Duration) Exec) {
	dir := t.TempDir()
	noexec := write(t, "plain", "#!/bin/sh\n")
	os.Chmod(noexec, 0o644)
	for _, tc := range []struct{ name, script, want string }{
		{"succeeds", write(t, "ok", "#!/bin/sh\nexit 0\n"), ""},
		{"fails", write(t, "fail", "#!/bin/sh\nexit 7\n"), "exit status 7"},
		{"dies", write(t, "die", "#!/bin/sh\nkill -9 $$\n"), "signal: killed"},
		{"missing", filepath.Join(dir, "none"), "no such file: restore it"},
		{"a directory", dir, "is a directory"},
		{"not executable", noexec, "not executable: chmod 755 " + noexec},
		{"no interpreter line", write(t, "text", "echo hello\n"), "begin it with #!/bin/sh"},
		{"interpreter missing", write(t, "odd", "#!/no/such/sh\n"), "interpreter that does not exist"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := run(t, exec(Grace), tc.script, newLog())
			switch {
			case tc.want == "" && c.Err != nil:
				t.Error(c.Err)
			case tc.want != "" && (c.Err == nil || !strings.Contains(c.Err.Error(), tc.want) || !strings.HasPrefix(c.Err.Error(), tc.script)):
				t.Errorf("error %v, want %s: …%s…", c.Err, tc.script, tc.want)
			}
		})
	}
}

func TestSurroundings(t *testing.T) { execs(t, testSurroundings) }

func testSurroundings(t *testing.T, exec func(time.Duration) Exec) {
	t.Setenv("SECRET", "must not be inherited")
	t.Setenv(execPID, strconv.Itoa(os.Getpid()))
	l := newLog()
	script := write(t, "show", `#!/bin/sh
echo "in $(pwd)"
read -r line || echo "stdin is empty"
env | sort
echo "group $(cut -d' ' -f5 /proc/$$/stat) of $$"
echo "flags $(sed -n 's/^flags:[[:space:]]*//p' /proc/$$/fdinfo/1)"
echo oops >&2
`)
	if c := run(t, exec(Grace), script, l); c.Err != nil {
		t.Fatal(c.Err)
	}
	l.wait(t, "start: oops") // the last line; a busy host may take longer for it than a script's end waits
	got := strings.Join(l.all(), "\n")
	for _, want := range []string{"start: in /", "start: stdin is empty", "start: PATH=" + Path, "start: SKD_STATE=master", "start: oops"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	for _, foreign := range []string{"SECRET", execPID, "INVOCATION_ID"} {
		if strings.Contains(got, foreign) {
			t.Errorf("%s reached the hook:\n%s", foreign, got)
		}
	}
	if g, pid, _ := strings.Cut(l.wait(t, "start: group "), " of "); g != pid {
		t.Errorf("process group %s of process %s: not its own", g, pid)
	}
	// A script whose output is not blocking loses part of it when we are slow.
	if flags, err := strconv.ParseInt(l.wait(t, "start: flags "), 8, 64); err != nil || flags&syscall.O_NONBLOCK != 0 {
		t.Errorf("standard output has flags %o, %v", flags, err)
	}
}

// Both the script and its child ignore SIGTERM; nothing may be left of them.
func TestHangingHookIsKilledWithItsChildren(t *testing.T) {
	execs(t, testHangingHookIsKilledWithItsChildren)
}

func testHangingHookIsKilledWithItsChildren(t *testing.T, exec func(time.Duration) Exec) {
	l := newLog()
	script := write(t, "hang", `#!/bin/sh
trap '' TERM
(trap '' TERM; while :; do sleep 1; done) &
echo "child $!"
echo "self $$"
while :; do sleep 1; done
`)
	r := NewRunner(Options{Scripts: map[Kind]string{Start: script, Stop: write(t, "stop", "#!/bin/sh\necho stopped\n")},
		Log: l.add, Exec: exec(time.Second), Timeout: time.Hour}) // in which a busy host also lets die what was killed
	t.Cleanup(func() { r.Close(context.Background()) })
	r.Want(Start)
	child, self := l.wait(t, "start: child "), l.wait(t, "start: self ")
	r.Want(Stop)
	wait(t, r)
	if c := r.Completed(); c.Kind != Stop || c.Err != nil {
		t.Errorf("last %+v, want a stop that is done", c)
	}
	l.wait(t, "stop: stopped")
	if alive(child) || alive(self) {
		t.Errorf("the start hook is still there: script %v, child %v", alive(self), alive(child))
	}
}

// The child gets its time to clean up although the script itself is gone at once.
func TestChildrenGetTheGraceToo(t *testing.T) { execs(t, testChildrenGetTheGraceToo) }

func testChildrenGetTheGraceToo(t *testing.T, exec func(time.Duration) Exec) {
	l := newLog()
	script := write(t, "start", `#!/bin/sh
sh -c 'trap "sleep 0.2; echo cleaned up; exit" TERM; echo ready; while :; do sleep 0.01; done'
`)
	r := NewRunner(Options{Scripts: map[Kind]string{Start: script}, Log: l.add, Exec: exec(Grace)})
	t.Cleanup(func() { r.Close(context.Background()) })
	r.Want(Start)
	l.wait(t, "start: ready")
	r.Cancel()
	wait(t, r)
	if !errors.Is(r.Completed().Err, ErrCancelled) {
		t.Errorf("error %v, want %v", r.Completed().Err, ErrCancelled)
	}
	l.wait(t, "start: cleaned up")
}

func TestTimeout(t *testing.T) { execs(t, testTimeout) }

func testTimeout(t *testing.T, exec func(time.Duration) Exec) {
	l := newLog()
	r := NewRunner(Options{Scripts: map[Kind]string{Start: write(t, "hang", "#!/bin/sh\necho $$; kill -STOP $$\n")},
		Log: l.add, Exec: exec(Grace), Timeout: 2 * time.Second}) // which must suffice for its first words
	r.Want(Start)
	wait(t, r)
	if !errors.Is(r.Completed().Err, ErrTimeout) {
		t.Errorf("error %v, want %v", r.Completed().Err, ErrTimeout)
	}
	if pid := l.wait(t, "start: "); alive(pid) {
		t.Errorf("process %s is still there", pid)
	}
}

// Skudonet's daemons are started from a hook where there is no systemd. They
// keep the hook's output open, live on, and may write to it.
func TestDaemonLeftBehind(t *testing.T) { execs(t, testDaemonLeftBehind) }

func testDaemonLeftBehind(t *testing.T, exec func(time.Duration) Exec) {
	l := newLog()
	script := write(t, "fork", `#!/bin/sh
(trap '' HUP; echo "pid $(sh -c 'echo $PPID')"; for i in $(seq 3000); do [ ! -e "$0.go" ] || break; sleep 0.01; done; echo later) &
exit 0
`)
	c := run(t, exec(Grace), script, l)
	if c.Err != nil || c.Took > 5*time.Second {
		t.Fatalf("after %s: %v", c.Took, c.Err)
	}
	pid := l.wait(t, "start: pid ")
	if !alive(pid) {
		t.Error("the daemon that the script left behind is dead")
	}
	os.WriteFile(script+".go", nil, 0o644)
	l.wait(t, "start: later")
	waitGone(t, pid)
}

func TestChattyHook(t *testing.T) { execs(t, testChattyHook) }

func testChattyHook(t *testing.T, exec func(time.Duration) Exec) {
	l := newLog()
	if c := run(t, exec(Grace), write(t, "chat", "#!/bin/sh\nseq 5000\nprintf '%05000d\\nend'  1\n"), l); c.Err != nil {
		t.Fatal(c.Err)
	}
	// Every line is either shown or counted.
	for end := time.After(deadline); ; {
		shown, hidden := 0, 0
		for _, line := range l.all() {
			var n int
			if _, err := fmt.Sscanf(line, "start: (%d lines not shown", &n); err == nil {
				hidden += n
			} else {
				shown++
			}
		}
		if shown+hidden == 5002 {
			if hidden == 0 || shown > burst+100 {
				t.Errorf("%d lines shown, %d counted; want about %d shown", shown, hidden, burst)
			}
			return
		}
		select {
		case <-l.news:
		case <-end:
			t.Fatalf("%d lines shown, %d counted, want 5002 together", shown, hidden)
		}
	}
}

func TestOutput(t *testing.T) {
	for _, tc := range []struct {
		name   string
		writes []string
		want   []string
	}{
		{"a line", []string{"one\n"}, []string{"one"}},
		{"parts", []string{"o", "ne\ntw", "o"}, []string{"one", "two"}},
		{"empty lines", []string{"\n\none\n \n"}, []string{"one"}},
		{"Skudonet's colours", []string{" \x1b[1;32m OK \x1b[0m \n"}, []string{"  OK"}},
		{"what could forge a log line", []string{"a\rb\x07\x9b\n\xff\t.\n"}, []string{"ab??", "? ."}},
		{"a long line", []string{strings.Repeat("x", maxLine), "yz", "z\nnext"}, []string{strings.Repeat("x", maxLine) + "…", "next"}},
		{"exactly as long as allowed", []string{strings.Repeat("x", maxLine) + "\n"}, []string{strings.Repeat("x", maxLine)}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var got []string
			o := newOutput(func(s string) { got = append(got, s) })
			for _, w := range tc.writes {
				if n, err := o.Write([]byte(w)); n != len(w) || err != nil {
					t.Fatalf("wrote %d, %v", n, err)
				}
			}
			o.finish()
			if !slices.Equal(got, tc.want) {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func FuzzOutput(f *testing.F) {
	f.Add([]byte("one\ntwo\r\n\x1b[1mthree"), 3)
	f.Add([]byte(strings.Repeat("x", 2*maxLine)+"\n"), 100)
	f.Fuzz(func(t *testing.T, data []byte, part int) {
		o := newOutput(func(s string) {
			if len(s) > 4*maxLine || strings.ContainsAny(s, "\x00\x1b\n\r") {
				t.Errorf("line %q", s)
			}
		})
		for chunk := range slices.Chunk(data, max(1, part&1023)) {
			o.Write(chunk)
		}
		o.finish()
	})
}

const (
	showNice    = "$(cut -d' ' -f19 /proc/PID/stat)"
	showScore   = "$(cat /proc/PID/oom_score_adj)"
	betterScore = "echo -900 >/proc/self/oom_score_adj"
)

// The daemon runs at nice -15 and OOM score adjustment -900; its hooks must not.
// The helper is this test binary, so that the test itself stays as it is.
func TestPriority(t *testing.T) {
	const key = "HOOK_TEST_PRIORITY"
	if script := os.Getenv(key); script != "" {
		way := Process(Grace)
		if dir := os.Getenv(key + "_DIR"); dir != "" {
			way = Transient(dir, Grace)
		}
		r := NewRunner(Options{Scripts: map[Kind]string{Start: script}, Exec: way, Log: func(_ Kind, s string) { fmt.Println(s) }})
		for range 20 { // from whatever thread
			r.Want(Start)
			r.Wait(context.Background())
		}
		out, _ := exec.Command("/bin/sh", "-c", os.Getenv(key+"_SHOW")).Output()
		os.Stdout.Write(out)
		os.Exit(0)
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: a process of nice -15")
	}
	for _, tc := range []struct {
		name, before, show, want string
		transient                bool
	}{
		{"nice", "", showNice, "-15", false},
		{"nice, transient", "", showNice, "-15", true},
		{"oom", betterScore, showScore, "-900", false},
		{"oom, transient", betterScore, showScore, "-900", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := ""
			if tc.transient {
				dir = needSystemd(t)
			}
			if err := exec.Command("/bin/sh", "-c", tc.before).Run(); err != nil {
				t.Skipf("%s is not permitted here (CAP_SYS_RESOURCE)", tc.before)
			}
			script := write(t, "show", "#!/bin/sh\necho hook "+strings.ReplaceAll(tc.show, "PID", "$$")+"\n")
			cmd := exec.Command("/bin/sh", "-c", tc.before+"\n"+`renice -15 -p $$ >/dev/null; exec "$0" -test.run='^TestPriority$'`, os.Args[0])
			cmd.Env = append(os.Environ(), key+"="+script, key+"_DIR="+dir, key+"_SHOW=echo daemon "+strings.ReplaceAll(tc.show, "PID", "$PPID"))
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if want := strings.Repeat("hook 0\n", 20) + "daemon " + tc.want + "\n"; string(out) != want {
				t.Errorf("got\n%swant\n%s", out, want)
			}
		})
	}
}
