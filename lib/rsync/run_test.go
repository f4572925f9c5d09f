package rsync

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/control"
)

// TestMain is also the program that rsync calls.
func TestMain(m *testing.M) {
	if os.Getenv(SocketVariable) != "" {
		syscall.Exit(Rsh(os.Args[2:])) // os.Exit waits for a second under the race detector
	}
	os.Exit(m.Run())
}

// backup is a daemon and its peer in one: calls are answered by really running
// `rsync --server` in dir.
type backup struct {
	dir, socket string

	mu   sync.Mutex
	news string // what it says beside
	exit int    // added to rsync's
	args [][]string
	gone int
}

// say sets what is answered beside rsync's own.
func (b *backup) say(news string, exit int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.news, b.exit = news, exit
}

func newBackup(t *testing.T) *backup {
	t.Helper()
	if _, err := exec.LookPath("rsync"); err != nil {
		t.Skip("no rsync here")
	}
	b := &backup{dir: filepath.Join(t.TempDir(), "peer tree"), socket: filepath.Join(t.TempDir(), "socket")}
	if err := os.Mkdir(b.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := control.Listen(b.socket)
	if err != nil {
		t.Fatal(err)
	}
	var calls sync.WaitGroup
	t.Cleanup(func() { l.Close(); calls.Wait() })
	calls.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			calls.Go(func() { b.serve(c) })
		}
	})
	return b
}

func (b *backup) serve(c *control.Call) {
	defer c.Close()
	b.mu.Lock()
	b.args = append(b.args, c.Args)
	news, exit := b.news, b.exit
	b.mu.Unlock()
	if c.Command != "rsh" || len(c.Files) != 2 || len(c.Args) < 3 || c.Args[0] != "peer" || c.Args[1] != "rsync" || c.Args[2] != "--server" {
		c.Reply(control.Reply{Text: fmt.Sprintf("unexpected: %q", c.Args), Exit: 99, Done: true})
		return
	}
	if news != "" {
		c.Reply(control.Reply{Text: news})
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "rsync", c.Args[2:]...)
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = b.dir, c.Files[0], c.Files[1], &stderr
	go func() {
		select {
		case <-c.Gone():
			cancel()
		case <-ctx.Done():
		}
	}()
	cmd.Run()
	select {
	case <-c.Gone():
		b.mu.Lock()
		b.gone++
		b.mu.Unlock()
	default:
	}
	c.Files[1].Close()
	c.Reply(control.Reply{Text: stderr.String(), Exit: cmd.ProcessState.ExitCode() + exit, Done: true})
}

func (b *backup) runner() Runner {
	return Runner{Shell: []string{os.Args[0], "rsh"}, Socket: b.socket}
}

func run1(t *testing.T, r Runner, j Job) Result {
	t.Helper()
	res, err := r.Run(context.Background(), j)
	if err != nil {
		t.Fatalf("%v\n%s", err, res.Stderr)
	}
	return res
}

// tree lists a directory: path, mode, owner, and content or target.
func tree(t *testing.T, dir string) []string {
	t.Helper()
	var list []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		var what string
		switch d.Type() {
		case 0:
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			what = string(b)
		case fs.ModeSymlink:
			what, _ = os.Readlink(path)
		}
		list = append(list, fmt.Sprintf("%q %o %d:%d %q", strings.TrimPrefix(path, dir), st.Mode, st.Uid, st.Gid, what))
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	return list
}

func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func same(t *testing.T, a, b string) {
	t.Helper()
	if x, y := tree(t, a), tree(t, b); !slices.Equal(x, y) {
		t.Errorf("the trees differ:\n%s\n\n%s", strings.Join(x, "\n"), strings.Join(y, "\n"))
	}
}

var hostile = []string{
	"-rf", "--delete", "new\nline", `quo"te'`, "two  spaces ", " ", "#comment", ";semi", "raw\xff\xfe", "a:b", "peer:./x", "*", "[a]", "$(id)", "`id`", "~",
	"\\n", "-", "...", "\x01\x1b[2J", strings.Repeat("n", 255), "sub dir\n/-deep/\xff/file", "+ rule", "- rule", "{a,b}",
}

func TestNamedFiles(t *testing.T) {
	b := newBackup(t)
	src := filepath.Join(t.TempDir(), "stage")
	var names []string
	for i, name := range hostile {
		write(t, src, map[string]string{name: fmt.Sprint("content ", i)})
		for dir := filepath.Dir(name); dir != "."; dir = filepath.Dir(dir) {
			names = append(names, dir)
		}
		names = append(names, name)
	}
	write(t, src, map[string]string{"empty": "", "mode": "secret", "not named": "x", "sub dir\n/not named either": "x"})
	for path, mode := range map[string]os.FileMode{"mode": 0o600, "empty": 0o755 | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky,
		"sub dir\n/-deep": 0o700 | fs.ModeSetgid} {
		if err := os.Chmod(filepath.Join(src, path), mode); err != nil {
			t.Fatal(err)
		}
	}
	os.Symlink("/etc/passwd", filepath.Join(src, "link"))
	os.Symlink("nowhere\n\xff", filepath.Join(src, "-dangling"))
	os.MkdirAll(filepath.Join(src, "dir of others/inner"), 0o2750)
	os.Chmod(src, 0o750)
	if os.Geteuid() == 0 {
		os.Lchown(filepath.Join(src, "link"), 1234, 5678)
		os.Lchown(filepath.Join(src, "mode"), 54321, 12345)
		os.Chmod(filepath.Join(src, "mode"), 0o600)
		os.Chown(filepath.Join(src, "dir of others"), 1, 2)
	}
	names = append(names, "empty", "mode", "link", "-dangling", "dir of others", "dir of others/inner", ".")
	write(t, b.dir, map[string]string{"on the peer only": "stays"})
	temp := filepath.Join(t.TempDir(), "temp-of-peer")
	os.Mkdir(temp, 0o700)

	res := run1(t, b.runner(), Job{Source: src + "/", Files: names, TempDir: temp})
	if res.Exit != 0 || res.Stderr != "" || res.Took <= 0 {
		t.Errorf("%+v", res)
	}
	if got, _ := os.ReadFile(filepath.Join(b.dir, "on the peer only")); string(got) != "stays" {
		t.Error("something was deleted")
	}
	os.Remove(filepath.Join(b.dir, "on the peer only"))
	os.Remove(filepath.Join(src, "not named"))
	os.Remove(filepath.Join(src, "sub dir\n/not named either"))
	same(t, src, b.dir)
	if info, _ := os.Stat(b.dir); info.Mode().Perm() != 0o750 {
		t.Errorf("mode of the top: %v", info.Mode())
	}
	if got := b.args[0]; !slices.Equal(got[1:3], []string{"rsync", "--server"}) || got[len(got)-1] != "./" {
		t.Errorf("the peer's command line: %q", got)
	}
}

func TestFetch(t *testing.T) {
	b := newBackup(t)
	into := filepath.Join(t.TempDir(), "stage")
	os.Mkdir(into, 0o700)
	var names []string
	for i, name := range hostile {
		write(t, b.dir, map[string]string{name: fmt.Sprint("content ", i)})
		names = append(names, name)
	}
	os.Symlink("/etc/passwd", filepath.Join(b.dir, "link"))
	os.Chmod(filepath.Join(b.dir, "raw\xff\xfe"), 0o600)
	names = append(names, "link")
	run1(t, b.runner(), Job{Source: into, Files: names, Fetch: true})
	same(t, b.dir, into)

	write(t, b.dir, map[string]string{"not named": "x"})
	run1(t, b.runner(), Job{Source: into, Files: []string{"link"}, Fetch: true})
	if _, err := os.Lstat(filepath.Join(into, "not named")); err == nil {
		t.Error("more was fetched than was named")
	}
	_, err := b.runner().Run(context.Background(), Job{Source: into, Files: []string{"gone"}, Fetch: true})
	var f *Failure
	if !errors.As(err, &f) || f.Exit == 0 {
		t.Errorf("a file that is not there: %v", err)
	}
	if _, err := b.runner().Run(context.Background(), Job{Source: into, Whole: true, Fetch: true}); err == nil {
		t.Error("a whole tree is fetched")
	}
}

// Same size, same time: what is named is sent.
func TestSameSizeAndTime(t *testing.T) {
	b := newBackup(t)
	src := t.TempDir()
	now := time.Now()
	for _, text := range []string{"one", "two"} {
		write(t, src, map[string]string{"file": text})
		os.Chtimes(filepath.Join(src, "file"), now, now)
		run1(t, b.runner(), Job{Source: src, Files: []string{"file"}})
		same(t, src, b.dir)
	}
}

func TestWholeTree(t *testing.T) {
	b := newBackup(t)
	src := t.TempDir()
	for i, name := range hostile {
		write(t, src, map[string]string{name: fmt.Sprint(i)})
	}
	write(t, src, map[string]string{"local/here": "x", "same": "abc"})
	write(t, b.dir, map[string]string{"local/there": "stays", "gone": "x", "gone dir/deep/file": "x", "same": "xyz"})
	now := time.Now()
	for _, dir := range []string{src, b.dir} { // only the content tells
		os.Chtimes(filepath.Join(dir, "same"), now, now)
	}
	run1(t, b.runner(), Job{Source: src, Whole: true, Filters: []string{"--filter=- /local/"}})
	if got, _ := os.ReadFile(filepath.Join(b.dir, "local/there")); string(got) != "stays" {
		t.Error("a filtered file was deleted")
	}
	os.RemoveAll(filepath.Join(b.dir, "local"))
	os.RemoveAll(filepath.Join(src, "local"))
	same(t, src, b.dir)

	dest := filepath.Join(t.TempDir(), "other  dest 'x'")
	os.Mkdir(dest, 0o755)
	run1(t, b.runner(), Job{Source: src, Whole: true, Dest: dest})
	same(t, src, dest)
}

// A slip must not empty the peer.
func TestJobsThatAreRefused(t *testing.T) {
	b := newBackup(t)
	src := t.TempDir()
	write(t, b.dir, map[string]string{"file": "stays"})
	for _, j := range []Job{
		{}, {Source: src}, {Source: src, Files: []string{}}, {Whole: true}, {Source: "/", Whole: true}, {Source: "//", Whole: true},
		{Source: "relative", Whole: true}, {Source: src, Whole: true, Files: []string{"x"}},
	} {
		if _, err := b.runner().Run(context.Background(), j); err == nil {
			t.Errorf("%+v: no error", j)
		}
	}
	_, err := b.runner().Run(context.Background(), Job{Source: src + "/none", Whole: true})
	var f *Failure
	if !errors.As(err, &f) || f.Exit == 0 || f.Text == "" {
		t.Errorf("a source that is not there: %v", err)
	}
	if got := tree(t, b.dir); len(got) != 1 {
		t.Errorf("%q", got)
	}
}

// Our executable may stand anywhere.
func TestShellWithOddPath(t *testing.T) {
	t.Parallel()
	b := newBackup(t)
	src := t.TempDir()
	for i, name := range []string{"two  spaces", `it's`, `a "b" c`, `'`, `"'"`, "-e", "back\\slash", "$HOME `id`"} {
		dir := filepath.Join(t.TempDir(), name)
		os.Mkdir(dir, 0o755)
		program := filepath.Join(dir, name)
		if err := os.Symlink(os.Args[0], program); err != nil {
			t.Fatal(err)
		}
		write(t, src, map[string]string{"file": fmt.Sprint(i)})
		r := b.runner()
		r.Shell = []string{program, "rsh"}
		run1(t, r, Job{Source: src, Files: []string{"file"}})
		same(t, src, b.dir)
	}
}

func TestQuote(t *testing.T) {
	for want, words := range map[string][]string{
		"/usr/bin/skd-inotify rsh":     {"/usr/bin/skd-inotify", "rsh"},
		"'/a b/skd-inotify' rsh":       {"/a b/skd-inotify", "rsh"},
		`'it''s' '' 'a"b'`:             {"it's", "", `a"b`},
		"'''' ''''''":                  {"'", "''"},
		"/raw\xff/skd-inotify '--x y'": {"/raw\xff/skd-inotify", "--x y"},
	} {
		if got := quote(words); got != want {
			t.Errorf("%q: %s, want %s", words, got, want)
		}
	}
}

// Without the caller's environment rsync does what we say.
func TestEnvironment(t *testing.T) {
	b := newBackup(t)
	src := t.TempDir()
	write(t, src, map[string]string{"file": "x"})
	t.Setenv("RSYNC_RSH", "/bin/false")
	t.Setenv("RSYNC_PROTECT_ARGS", "0")
	t.Setenv("RSYNC_PARTIAL_DIR", "x")
	run1(t, b.runner(), Job{Source: src, Files: []string{"file"}})
	same(t, src, b.dir)
}

func TestExitStatus(t *testing.T) {
	b := newBackup(t)
	b.say("told\x00 on the way\n", 7)
	src := t.TempDir()
	write(t, src, map[string]string{"file": "x"})
	res, err := b.runner().Run(context.Background(), Job{Source: src, Files: []string{"file"}})
	var f *Failure
	if !errors.As(err, &f) || res.Exit != 7 || f.Exit != 7 || f.Text == "" || !strings.Contains(res.Stderr, "told\x00 on the way\n") {
		t.Errorf("%+v, %v", res, err)
	}
	b.say("", 0)
	res, err = b.runner().Run(context.Background(), Job{Source: src, Files: []string{"file", "vanished"}})
	if !errors.As(err, &f) || f.Exit != 23 {
		t.Errorf("a missing file: %+v, %v", res, err)
	}
	same(t, src, b.dir)
}

func TestStderrIsBounded(t *testing.T) {
	b := newBackup(t)
	b.say(strings.Repeat("line\n", 10_000)+"the end", 0)
	src := t.TempDir()
	write(t, src, map[string]string{"file": "x"})
	res := run1(t, b.runner(), Job{Source: src, Files: []string{"file"}})
	if n := len(res.Stderr); n > keptStderr+len("…") || n < keptStderr || !strings.HasSuffix(res.Stderr, "the end\n") {
		t.Errorf("%d bytes", n)
	}
}

func TestNoProgram(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"plain": "x"})
	for program, want := range map[string]string{
		"no-such-rsync":                         "there is no program no-such-rsync: install it (Debian: apt-get install rsync)",
		filepath.Join(dir, "none"):              "there is no program " + filepath.Join(dir, "none") + ": install it",
		filepath.Join(dir, "plain"):             "chmod 755",
		filepath.Join(dir, "none", "no", "way"): "install it",
	} {
		res, err := Runner{Program: program, Shell: []string{"false"}}.Run(context.Background(), Job{Source: dir, Files: []string{"plain"}})
		var f *Failure
		if !errors.As(err, &f) || res.Exit != -1 || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", program, err, want)
		}
	}
}

// alive lists the processes of a group that are not zombies.
func alive(group int) (pids []string) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		var state string
		var ppid, pgrp int
		fmt.Sscan(string(b[bytes.LastIndexByte(b, ')')+1:]), &state, &ppid, &pgrp)
		if pgrp == group && state != "Z" {
			pids = append(pids, path)
		}
	}
	return pids
}

// slow is a job that takes a minute, and a function that waits until the peer has
// something of it.
func slow(t *testing.T, b *backup) (Runner, Job, func()) {
	t.Helper()
	src := t.TempDir()
	if err := os.WriteFile(filepath.Join(src, "big"), bytes.Repeat([]byte("0123456789abcdef"), 1<<18), 0o644); err != nil {
		t.Fatal(err)
	}
	temp := t.TempDir()
	r := b.runner()
	r.Policy.Args = []string{"--bwlimit=64"}
	return r, Job{Source: src, Files: []string{"big"}, TempDir: temp}, func() {
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
			if names, _ := os.ReadDir(temp); len(names) > 0 {
				return
			}
		}
		t.Error("the transfer did not begin")
	}
}

func TestEndInTheMiddle(t *testing.T) {
	t.Parallel()
	b := newBackup(t)
	r, j, begun := slow(t, b)
	ctx, cancel := context.WithCancelCause(context.Background())
	go func() { begun(); cancel(errors.New("the node is no master any more")) }()
	res, err := r.Run(ctx, j)
	var f *Failure
	if !errors.As(err, &f) || res.Exit != 20 || !strings.Contains(err.Error(), "no master any more") || !errors.Is(err, context.Cause(ctx)) {
		t.Errorf("%+v, %v", res, err)
	}
	if res.Took > 10*time.Second {
		t.Errorf("took %v", res.Took)
	}
	if got := tree(t, b.dir); len(got) > 0 {
		t.Errorf("left on the peer: %q", got)
	}
	if _, err := r.Run(ctx, j); !errors.Is(err, context.Cause(ctx)) {
		t.Errorf("begun after the end: %v", err)
	}
}

// The whole group ends, also what does not care about SIGTERM.
func TestStubbornProgramIsKilled(t *testing.T) {
	t.Parallel()
	src := t.TempDir()
	pid := filepath.Join(src, "pid")
	program := filepath.Join(src, "rsync")
	script := "#!/bin/sh\ntrap '' TERM\nsleep 300 &\necho $$ >" + pid + ".new; mv " + pid + ".new " + pid + "\nwait\nsleep 300\n"
	if err := os.WriteFile(program, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var group int
	go func() {
		defer cancel()
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
			if b, err := os.ReadFile(pid); err == nil {
				fmt.Sscan(string(b), &group)
				return
			}
		}
	}()
	res, err := Runner{Program: program, Shell: []string{"false"}}.Run(ctx, Job{Source: src, Files: []string{"x"}})
	if res.Exit != 128+9 || !errors.Is(err, context.Canceled) {
		t.Errorf("%+v, %v", res, err)
	}
	dies(t, group)
}

// dies waits for the end of a group that was killed.
func dies(t *testing.T, group int) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); len(alive(group)) > 0 && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
	}
	if group == 0 || len(alive(group)) > 0 {
		t.Errorf("group %d: %q are alive", group, alive(group))
	}
}

// What a program leaves behind in its group when it ends is ended, too.
func TestStragglersAreKilled(t *testing.T) {
	src := t.TempDir()
	pid := filepath.Join(src, "pid")
	program := filepath.Join(src, "rsync")
	if err := os.WriteFile(program, []byte("#!/bin/sh\nsleep 300 &\necho $$ >"+pid+"\nexit 0\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := (Runner{Program: program, Shell: []string{"false"}}).Run(context.Background(), Job{Source: src, Files: []string{"x"}}); err != nil {
		t.Error(err)
	}
	var group int
	text, _ := os.ReadFile(pid)
	fmt.Sscan(string(text), &group)
	dies(t, group)
}
