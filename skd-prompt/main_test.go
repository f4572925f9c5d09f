package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/status"
)

// program is skd-prompt as users run it.
var program string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "skd-prompt")
	if err != nil {
		panic(err)
	}
	program = filepath.Join(dir, "skd-prompt")
	out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput()
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s", out)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// deadline is how long a test waits for something that takes no time.
const deadline = 20 * time.Second

func run(t *testing.T, args ...string) (stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(deadline, func() { cmd.Process.Kill() })
	defer timer.Stop()
	if err := cmd.Wait(); err != nil {
		t.Errorf("skd-prompt %q: %v, want exit status 0", args, err)
	}
	return out.String(), errs.String()
}

func TestPrompt(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o644); err != nil {
		t.Fatal(err)
	}
	huge := file("huge", "master\n")
	if err := os.Truncate(huge, 1<<40); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ name, file, want string }{
		{"master", file("master", "master\n"), "[master] "},
		{"backup", file("backup", "backup\n"), "[backup] "},
		{"stopped", filepath.Join(dir, "none"), "[] "},
		{"garbage", file("garbage", "\x1b]0;\a"), "[] "},
		{"empty", file("empty", ""), "[] "},
		{"huge", huge, "[] "},
		{"a fifo that nobody writes to", fifo, "[] "},
		{"a directory", dir, "[] "},
		{"a device", "/dev/zero", "[] "},
		{"a terminal", "/dev/ptmx", "[] "},
	} {
		if out, errs := run(t, "--status-file", tc.file); out != tc.want || errs != "" {
			t.Errorf("%s: %q, %q; want %q", tc.name, out, errs, tc.want)
		}
	}
	master := filepath.Join(dir, "master")
	for _, args := range [][]string{{"--status-file=" + master}, {"-status-file", master}, {"--bogus", "--status-file", master}} {
		if out, _ := run(t, args...); out != "[master] " {
			t.Errorf("%q: %q", args, out)
		}
	}
	if out, errs := run(t, "--status-file"); !strings.HasPrefix(out, "[") || !strings.Contains(errs, "--help") {
		t.Errorf("flag without a value: %q, %q", out, errs)
	}
	if out, _ := run(t, "--version"); !strings.HasPrefix(out, "skd-prompt version ") || strings.Count(out, "\n") != 1 {
		t.Errorf("version %q", out)
	}
	if out, _ := run(t, "--help"); !strings.Contains(out, "skd-prompt bash") || strings.Count(out, "\n") > 24 {
		t.Errorf("help %q", out)
	}
	if out, err := exec.Command("/bin/sh", "-c", program+" >/dev/full").CombinedOutput(); err != nil {
		t.Errorf("nobody takes the output: %v, %s", err, out)
	}
}

// Other shells read the same files.
func TestSnippetInOtherShells(t *testing.T) {
	lines, _ := run(t, "bash")
	for _, shell := range [][]string{{"dash"}, {"sh", "-eu"}, {"bash", "-eu"}, {"bash", "--posix"}} {
		if _, err := exec.LookPath(shell[0]); err != nil {
			continue
		}
		show := `echo "${PROMPT_COMMAND-none}, ${PS1-none}, ${__skd-none}"`
		say := func(script string) string {
			cmd := exec.Command(shell[0], shell[1:]...)
			cmd.Stdin = strings.NewReader(script)
			out, err := cmd.CombinedOutput()
			return fmt.Sprint(string(out), err)
		}
		if got, want := say(lines+show), say(show); got != want {
			t.Errorf("%q says %q, want what it says without the snippet, %q", shell, got, want)
		}
	}
	if _, err := exec.LookPath("shellcheck"); err == nil {
		cmd := exec.Command("shellcheck", "-s", "bash", "-")
		cmd.Stdin = strings.NewReader(lines)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	}
}

// terminal is an interactive bash on a terminal of its own.
type terminal struct {
	t    *testing.T
	tty  *os.File
	mu   sync.Mutex
	seen string
	news chan struct{}
}

// open starts bash with rc as its .bashrc.
func open(t *testing.T, rc string) *terminal {
	t.Helper()
	if _, err := exec.LookPath("bash"); err != nil {
		t.Skip("needs bash")
	}
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("needs a terminal: %v", err)
	}
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile("/dev/pts/"+strconv.Itoa(number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	home := t.TempDir()
	file := filepath.Join(home, "bashrc")
	if err := os.WriteFile(file, []byte(rc), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("bash", "--noprofile", "--noediting", "--rcfile", file, "-i")
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=" + home, "TERM=dumb", "HISTFILE="}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	slave.Close()
	term := &terminal{t: t, tty: master, news: make(chan struct{}, 1)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 4096)
		for {
			n, err := master.Read(b)
			term.mu.Lock()
			term.seen += strings.ReplaceAll(string(b[:n]), "\r", "")
			term.mu.Unlock()
			select {
			case term.news <- struct{}{}:
			default:
			}
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		master.Close()
		<-done
	})
	return term
}

// expect waits until bash has printed want, and forgets everything before.
func (term *terminal) expect(want string) {
	term.t.Helper()
	for end := time.After(deadline); ; {
		term.mu.Lock()
		_, rest, ok := strings.Cut(term.seen, want)
		if ok {
			term.seen = rest
		}
		seen := term.seen
		term.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-term.news:
		case <-end:
			term.t.Fatalf("bash did not print %q but %q", want, seen)
		}
	}
}

// do types a command and waits for its output and the prompt after it.
func (term *terminal) do(command, output, prompt string) {
	term.t.Helper()
	if _, err := term.tty.WriteString(command + "\n"); err != nil {
		term.t.Fatal(err)
	}
	term.expect("\n" + output + prompt)
}

func TestInteractiveBash(t *testing.T) {
	for _, tc := range []struct {
		name, before, after string
		counts              bool // the admin's own command counts its runs in n
	}{
		{name: "plain"},
		{name: "a string", before: "PROMPT_COMMAND='n=$((n+1))'", counts: true},
		{name: "a string that ends with a semicolon", before: "PROMPT_COMMAND='n=$((n+1)); '", counts: true},
		{name: "an array", before: "PROMPT_COMMAND=(: 'n=$((n+1))')", counts: true},
		{name: "assigned later", after: "PROMPT_COMMAND='n=$((n+1))'", counts: true},
		{name: "prefixed later", after: "PROMPT_COMMAND='n=$((n+1))'${PROMPT_COMMAND:+;$PROMPT_COMMAND}", counts: true},
		{name: "exported", before: "export PROMPT_COMMAND='n=$((n+1))'", counts: true},
		{name: "read-only", before: "readonly PROMPT_COMMAND='n=$((n+1)) # for r in PROMPT_COMMAND'", counts: true},
		{name: "says r and PROMPT_COMMAND", before: "PROMPT_COMMAND='n=$((n+1)) # for r in PROMPT_COMMAND'", counts: true},
		{name: "builds PS1 itself", before: `PROMPT_COMMAND='n=$((n+1)); PS1="here> "'`, counts: true},
		{name: "unset variables are errors", before: "set -u"},
		{name: "sourced twice", before: "LOAD"},
		{name: "sourced twice, read-only", before: "readonly PROMPT_COMMAND=:\nLOAD"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "the node's status")
			load := fmt.Sprintf(`eval "$(%s --status-file %s bash)"`, program, quote(file))
			rc := strings.Join([]string{"n=0", "PS1='here> '", tc.before, load, tc.after, ""}, "\n")
			term := open(t, strings.ReplaceAll(rc, "LOAD", load))
			term.expect("[] here> ")
			write(t, file, status.Backup)
			term.do("true", "", "[backup] here> ")
			write(t, file, status.Master)
			term.do("(exit 7)", "", "[master] here> ")
			term.do("echo status $?", "status 7\n", "[master] here> ")
			term.do("(exit 3) | (exit 4)", "", "[master] here> ")
			term.do("echo pipe ${PIPESTATUS[*]}", "pipe 3 4\n", "[master] here> ")
			rounds := "0 rounds\n"
			if tc.counts {
				rounds = "6 rounds\n"
			}
			term.do("echo $n rounds", rounds, "[master] here> ")
			if err := status.Remove(file); err != nil {
				t.Fatal(err)
			}
			term.do("", "", "[] here> ")
		})
	}
}

func TestInteractiveBashOverTime(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file, copied := filepath.Join(dir, "status"), filepath.Join(dir, "skd-prompt")
	if err := exec.Command("cp", program, copied).Run(); err != nil {
		t.Fatal(err)
	}
	write(t, file, status.Master)
	term := open(t, fmt.Sprintf("PS1='here> '\neval \"$(%s --status-file %s bash)\"\n", copied, file))
	term.expect("[master] here> ")
	term.do("PS1='other> '", "", "[master] other> ")
	term.do("PS1='[master] more> '", "", "[master] more> ")
	term.do("PATH=; skd-prompt() { echo no; }", "", "[master] more> ")
	term.do("set -eu", "", "[master] more> ")
	term.do("! true", "", "[master] more> ")
	write(t, file, status.Backup)
	term.do("echo still there", "still there\n", "[backup] more> ")
	// The package is removed while the shell goes on.
	if err := os.Remove(copied); err != nil {
		t.Fatal(err)
	}
	term.do("set +eu", "", "more> ")
	term.do("echo calm", "calm\n", "more> ")
}

func write(t *testing.T, file, word string) {
	t.Helper()
	if err := status.Write(file, word); err != nil {
		t.Fatal(err)
	}
}

func BenchmarkProcess(b *testing.B) {
	for b.Loop() {
		if err := exec.Command(program).Run(); err != nil {
			b.Fatal(err)
		}
	}
}
