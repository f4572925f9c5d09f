package peer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/fileset"
	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
)

func (b *backup) source(files map[string]string) string {
	b.t.Helper()
	dir := filepath.Join(b.dir, "source")
	for name, text := range files {
		b.write(filepath.Join(dir, name), text)
	}
	must(b.t, os.MkdirAll(dir, 0o755))
	return dir
}

func TestRsync(t *testing.T) {
	t.Parallel()
	b := newBackup(t)
	odd := "-o'\n\xff\" $x"
	big := strings.Repeat("0123456789abcdef", 200_000) // more than a window
	b.write("d/there", "old")
	b.write("other", "untouched")
	src := b.source(map[string]string{"d/there": "new", "d/e/big": big, odd: "odd", "not-named": "x"})
	s := b.open("")
	x := s.rsync(t.Context(), t, ConfigRoot, src, strings.Join([]string{"d/there", "d/e/big", odd}, "\x00"), "--ignore-times")
	x.wait(t)
	if x.err != nil || x.exit != 0 || x.local != nil || x.stderr.Len() > 0 {
		t.Fatalf("exit %d, %v, %v, %s", x.exit, x.err, x.local, &x.stderr)
	}
	d := s.digest(t, Look{Paths: names("d", odd)})
	want := local(t, src, "--exclude not-named")
	got, err := s.Manifest(t.Context(), ConfigRoot)
	must(t, err)
	changes := manifest.Diff(want, got)
	if len(changes) != 1 || changes[0].Path != "other" {
		t.Errorf("differs: %v", changes)
	}
	if d.Digest != got.Digest() {
		t.Error("digest and manifest differ")
	}
	noTemp(t, s.root(t, ConfigRoot).Temp)
	// And the session goes on, in the other root.
	must(t, os.MkdirAll(filepath.Join(b.dir, "rt"), 0o755))
	b.write(filepath.Join(b.dir, "rt/rt_tables"), "200 table_eth0\n")
	x = s.rsync(t.Context(), t, RTTablesRoot, filepath.Join(b.dir, "rt"), "rt_tables")
	x.wait(t)
	text, err := os.ReadFile(filepath.Join(b.dir, "etc/iproute2/rt_tables"))
	if x.err != nil || x.exit != 0 || string(text) != "200 table_eth0\n" {
		t.Errorf("rt_tables: %v %d %q %v", x.err, x.exit, text, err)
	}
}

func TestRsyncFails(t *testing.T) {
	t.Parallel()
	b := newBackup(t)
	src := b.source(map[string]string{"a": "1", "b": "2"})
	must(t, os.MkdirAll(filepath.Join(b.tree, "a/full"), 0o755)) // a directory with something in it
	s := b.open("")
	x := s.rsync(t.Context(), t, ConfigRoot, src, "a\x00b")
	x.wait(t)
	if x.err != nil || x.exit == 0 || x.local == nil {
		t.Errorf("exit %d, %v, %v", x.exit, x.err, x.local)
	}
	if !b.exists("b") {
		t.Error("the other file did not arrive")
	}
	if x.stderr.Len() > 0 || !strings.Contains(fmt.Sprint(x.local), "code 23") {
		t.Errorf("the client was not told: %v, on standard error %q", x.local, &x.stderr)
	}
	noTemp(t, s.root(t, ConfigRoot).Temp)
	// Wrong options are told on standard error.
	var stderr bytes.Buffer
	exit, err := s.Rsync(t.Context(), ConfigRoot, []string{"peer", "rsync", "--server", "--no-such-option", ".", "./"}, RsyncOptions{}, strings.NewReader(""), io.Discard, &stderr)
	if err != nil || exit == 0 || !strings.Contains(stderr.String(), "no-such-option") {
		t.Errorf("exit %d, %v, %q", exit, err, &stderr)
	}
}

func TestRsyncRefused(t *testing.T) {
	b := newBackup(t)
	s := b.open("")
	run := func(root string, args ...string) error {
		_, err := s.Rsync(t.Context(), root, args, RsyncOptions{}, strings.NewReader(""), io.Discard, nil)
		return err
	}
	for _, args := range [][]string{
		nil, {"peer"}, {"peer", "rsync"}, {"peer", "rsync", "--server"}, {"peer", "sh", "--server", ".", "./"}, {"peer", "rsync", "-a", "--server", ".", "./"},
		{"peer", "rsync", "--server", "--sender", "-r", ".", "./"}, {"peer", "rsync", "--server", "-r", "--sender", ".", "./"}, {"peer", "rsync", "--server", "--daemon", ".", "."},
		{"peer", "rsync", "--server", "-r", ".", "/etc"}, {"peer", "rsync", "--server", "-r", ".", "../"}, {"peer", "myrsync", "--server", "-r", ".", "./"},
	} {
		if err := run(ConfigRoot, args...); err == nil || errors.Is(err, ErrClosed) || errors.Is(err, ErrMaster) {
			t.Errorf("%q: %v", args, err)
		}
	}
	fine := []string{"peer", "rsync", "--server", "-r", ".", "./"}
	if err := run("nowhere", fine...); err == nil || errors.Is(err, ErrClosed) {
		t.Errorf("no root: %v", err)
	}
	must(t, status.Write(hostIn(b.dir).StatusFile, status.Master))
	if err := run(ConfigRoot, fine...); !errors.Is(err, ErrMaster) {
		t.Errorf("a master: %v", err)
	}
	must(t, status.Remove(hostIn(b.dir).StatusFile))
	if err := run(ConfigRoot, fine...); err != nil {
		t.Errorf("a stopped node: %v", err)
	}
}

func TestNoRsync(t *testing.T) {
	b := newBackup(t, `$rsync="/no/such/rsync";`)
	s := b.open("")
	_, err := s.Rsync(t.Context(), ConfigRoot, []string{"peer", "rsync", "--server", ".", "./"}, RsyncOptions{}, strings.NewReader(""), io.Discard, nil)
	if s.hello.Rsync != "" || err == nil || errors.Is(err, ErrClosed) || !strings.Contains(err.Error(), "/no/such/rsync") {
		t.Errorf("%q, %v", s.hello.Rsync, err)
	}
}

// program makes a shell script that stands in for rsync.
func (b *backup) program(script string) string {
	path := filepath.Join(b.dir, "rsync")
	b.write(path, "#!/bin/sh\n[ \"$1\" = --version ] && exec rsync --version\n"+script)
	must(b.t, os.Chmod(path, 0o755))
	return path
}

var server = []string{"peer", "rsync", "--server", ".", "./"}

func TestHowRsyncIsRun(t *testing.T) {
	t.Setenv("SECRET", "of the session")
	b := newBackup(t)
	b.configure(fmt.Sprintf("$rsync=%q;", b.program("pwd; umask; echo \"$@\"; env; cat; echo err >&2; exit 23\n")))
	s := b.open("")
	var out, stderr bytes.Buffer
	exit, err := s.Rsync(t.Context(), ConfigRoot, server, RsyncOptions{}, strings.NewReader("from stdin\n"), &out, &stderr)
	if err != nil || exit != 23 || stderr.String() != "err\n" {
		t.Errorf("%d, %v, %q", exit, err, &stderr)
	}
	for _, want := range []string{b.tree + "\n", "0022\n", "--server --temp-dir=", fileset.TempName + " --no-msgs2stderr . ./\n", "LC_ALL=C\n", "\nfrom stdin\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in %q", want, &out)
		}
	}
	if strings.Contains(out.String(), "SECRET") {
		t.Errorf("environment: %s", &out)
	}
	b.program("kill -9 $$\n")
	if exit, err = s.Rsync(t.Context(), ConfigRoot, server, RsyncOptions{}, strings.NewReader(""), io.Discard, nil); err != nil || exit != 128+9 {
		t.Errorf("killed: %d, %v", exit, err)
	}
}

func TestStderrIsBounded(t *testing.T) {
	b := newBackup(t)
	b.configure(fmt.Sprintf("$rsync=%q;", b.program("head -c 1000000 /dev/zero | tr '\\0' x >&2\n")))
	var stderr bytes.Buffer
	s := b.open("")
	exit, err := s.Rsync(t.Context(), ConfigRoot, server, RsyncOptions{}, strings.NewReader(""), io.Discard, &stderr)
	if err != nil || exit != 0 || stderr.Len() > maxStderr+100 || !strings.Contains(stderr.String(), "left out") {
		t.Errorf("%d, %v, %d bytes", exit, err, stderr.Len())
	}
}

// Neither direction may hold up the other, however much is under way.
func TestStreamsAreIndependent(t *testing.T) {
	t.Parallel()
	const size = 8 << 20
	b := newBackup(t)
	// It writes all before it reads anything, then reads all and counts it.
	b.configure(fmt.Sprintf("$rsync=%q;", b.program(fmt.Sprintf("head -c %d /dev/zero; wc -c >&2\n", size))))
	s := b.open("")
	var out bytes.Buffer
	var stderr bytes.Buffer
	exit, err := s.Rsync(t.Context(), ConfigRoot, server, RsyncOptions{}, io.LimitReader(zeros{}, size), &out, &stderr)
	if err != nil || exit != 0 || out.Len() != size || strings.TrimSpace(stderr.String()) != strconv.Itoa(size) {
		t.Errorf("%d, %v: %d bytes out, %q in", exit, err, out.Len(), &stderr)
	}
	// One that takes nothing does not hold up its own end.
	b.program("exit 5\n")
	if exit, err := s.Rsync(t.Context(), ConfigRoot, server, RsyncOptions{}, io.LimitReader(zeros{}, size), &out, nil); err != nil || exit != 5 {
		t.Errorf("%d, %v", exit, err)
	}
	if role, err := s.Role(t.Context()); err != nil || role != status.Backup {
		t.Errorf("after it: %q, %v", role, err)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// slow starts a transfer that takes minutes, and waits until it is under way.
func (b *backup) slow(ctx context.Context, s *served) *transfer {
	b.t.Helper()
	src := b.source(map[string]string{"long": strings.Repeat("0123456789abcdef", 400_000)})
	x := s.rsync(ctx, b.t, ConfigRoot, src, "long", "--bwlimit=20", "--whole-file")
	temp := s.root(b.t, ConfigRoot).Temp
	until(b.t, "a temporary file", func() bool { list, _ := os.ReadDir(temp); return len(list) > 0 })
	return x
}

// rsyncs lists processes that run in the backup's tree.
func (b *backup) rsyncs() (pids []string) {
	dirs, _ := filepath.Glob("/proc/[0-9]*/cwd")
	for _, d := range dirs {
		if to, err := os.Readlink(d); err == nil && to == b.tree {
			pids = append(pids, strings.Split(d, "/")[2])
		}
	}
	return pids
}

func (b *backup) nothingLeft(s *served) {
	b.t.Helper()
	until(b.t, "rsync's end", func() bool { return len(b.rsyncs()) == 0 })
	noTemp(b.t, b.tree, s.root(b.t, ConfigRoot).Temp)
}

func TestBecomesMasterInMidTransfer(t *testing.T) {
	t.Parallel()
	b := newBackup(t)
	s := b.open("")
	x := b.slow(t.Context(), s)
	must(t, status.Write(hostIn(b.dir).StatusFile, status.Master))
	x.wait(t)
	if !errors.Is(x.err, ErrMaster) || errors.Is(x.err, ErrClosed) {
		t.Errorf("%v", x.err)
	}
	b.nothingLeft(s)
	if role, err := s.Role(t.Context()); err != nil || role != status.Master {
		t.Errorf("after it: %q, %v", role, err)
	}
}

func TestCancel(t *testing.T) {
	t.Parallel()
	b := newBackup(t)
	s := b.open("")
	ctx, cancel := context.WithCancelCause(t.Context())
	x := b.slow(ctx, s)
	reason := errors.New("enough")
	cancel(reason)
	x.wait(t)
	if !errors.Is(x.err, reason) {
		t.Errorf("%v", x.err)
	}
	b.nothingLeft(s)
	if _, err := s.Role(t.Context()); err != nil {
		t.Errorf("after it: %v", err)
	}
}

func TestCancelReachesOneThatIgnoresTERM(t *testing.T) {
	t.Parallel()
	b := newBackup(t)
	b.configure(fmt.Sprintf("$rsync=%q;", b.program("trap '' TERM; echo up; while :; do sleep 0.1; done\n")))
	s := b.open("")
	ctx, cancel := context.WithCancel(t.Context())
	out, in := io.Pipe()
	go func() { io.ReadFull(out, make([]byte, 3)); cancel(); io.Copy(io.Discard, out) }()
	if _, err := s.Rsync(ctx, ConfigRoot, server, RsyncOptions{}, io.LimitReader(zeros{}, 8<<20), in, nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	b.nothingLeft(s)
	if _, err := s.Role(t.Context()); err != nil {
		t.Errorf("after it: %v", err)
	}
	in.Close()
}

func TestClientGoesAway(t *testing.T) {
	t.Parallel()
	b := newBackup(t)
	s := b.open("")
	x := b.slow(t.Context(), s)
	s.Close()
	if err := <-s.ended; err != nil {
		t.Errorf("Serve: %v", err)
	}
	x.wait(t)
	if !errors.Is(x.err, ErrClosed) {
		t.Errorf("%v", x.err)
	}
	b.nothingLeft(s)
}

func TestServerGoesAway(t *testing.T) {
	t.Parallel()
	b := newBackup(t)
	s := b.open("")
	x := b.slow(t.Context(), s)
	s.stop()
	x.wait(t)
	if !errors.Is(x.err, ErrClosed) {
		t.Errorf("%v", x.err)
	}
	wait(t, s.Done())
	b.nothingLeft(s)
}

// process starts the server as a process of its own.
func (b *backup) process(env ...string) (*exec.Cmd, io.WriteCloser, io.ReadCloser) {
	b.t.Helper()
	self, err := os.Executable()
	must(b.t, err)
	cmd := exec.Command(self)
	cmd.Env = append(append(os.Environ(), "PEER_TEST=serve", "PEER_TEST_DIR="+b.dir), env...)
	in, err := cmd.StdinPipe()
	must(b.t, err)
	out, err := cmd.StdoutPipe()
	must(b.t, err)
	must(b.t, cmd.Start())
	b.t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd, in, out
}

func (b *backup) openProcess() (*exec.Cmd, *served) {
	b.t.Helper()
	cmd, in, out := b.process()
	c, h, err := Open(b.t.Context(), out, in, "")
	must(b.t, err)
	b.t.Cleanup(c.Close)
	return cmd, &served{Client: c, hello: h}
}

func TestNewerSessionEndsTheOlder(t *testing.T) {
	t.Parallel()
	b := newBackup(t)
	older, first := b.openProcess()
	x := b.slow(t.Context(), first)
	_, second := b.openProcess()
	x.wait(t)
	if !errors.Is(x.err, ErrClosed) {
		t.Errorf("the older: %v", x.err)
	}
	older.Wait()
	b.nothingLeft(second)
	if _, err := second.Role(t.Context()); err != nil {
		t.Errorf("the newer: %v", err)
	}
}

func TestNewerSessionKillsTheOlder(t *testing.T) {
	t.Parallel()
	b := newBackup(t)
	must(t, os.MkdirAll(hostIn(b.dir).RunDir, 0o755))
	older, in, out := b.process("PEER_TEST_DEAF=1")
	defer in.Close()
	io.ReadFull(out, make([]byte, 1))
	began := time.Now()
	_, s := b.openProcess()
	if took := time.Since(began); took < lockGrace {
		t.Errorf("killed after %v already", took)
	}
	older.Wait()
	if ws := older.ProcessState.String(); !strings.Contains(ws, "killed") {
		t.Errorf("the older: %s", ws)
	}
	if _, err := s.Role(t.Context()); err != nil {
		t.Error(err)
	}
}

// What a killed server leaves may still change the tree, so nobody gets the lock
// before that is gone too.
func TestKilledServer(t *testing.T) {
	t.Parallel()
	b := newBackup(t)
	older, first := b.openProcess()
	x := b.slow(t.Context(), first)
	must(t, older.Process.Kill())
	x.wait(t)
	if !errors.Is(x.err, ErrClosed) {
		t.Errorf("%v", x.err)
	}
	_, second := b.openProcess()
	if left := b.rsyncs(); len(left) > 0 {
		t.Errorf("rsync %v still runs beside the newer session", left)
	}
	b.nothingLeft(second)
}

func TestSIGTERM(t *testing.T) {
	t.Parallel()
	b := newBackup(t)
	cmd, s := b.openProcess()
	x := b.slow(t.Context(), s)
	must(t, cmd.Process.Signal(unix.SIGTERM))
	x.wait(t)
	wait(t, s.Done())
	b.nothingLeft(s)
	until(t, "the end of the directory", func() bool { _, err := os.Lstat(s.root(t, ConfigRoot).Temp); return err != nil })
}

// A server whose client is gone gets a broken pipe, and must still clean up.
func TestBrokenPipe(t *testing.T) {
	t.Parallel()
	b := newBackup(t)
	cmd, in, out := b.process()
	c, h, err := Open(t.Context(), struct{ io.Reader }{out}, in, "")
	must(t, err)
	defer c.Close()
	s := &served{Client: c, hello: h}
	x := b.slow(t.Context(), s)
	out.Close() // its standard input stays open
	cmd.Wait()
	b.nothingLeft(s)
	if _, err := os.Lstat(s.root(t, ConfigRoot).Temp); err == nil {
		t.Error("the directory for temporary files is still there")
	}
	c.Close()
	x.wait(t)
}

func TestNoGoroutineIsLeft(t *testing.T) {
	before := runtime.NumGoroutine()
	b := newBackup(t)
	b.configure(fmt.Sprintf("$rsync=%q;", b.program("cat\n")))
	s := b.open("")
	for range 3 {
		r, w, err := os.Pipe()
		must(t, err)
		w.Write([]byte("some"))
		ctx, cancel := context.WithCancel(t.Context())
		go func() { time.Sleep(20 * time.Millisecond); cancel() }()
		s.Rsync(ctx, ConfigRoot, server, RsyncOptions{}, r, io.Discard, nil) // ended while it waits for more
		r.Close()
		w.Close()
	}
	s.digest(t, Look{Full: true})
	s.Close()
	<-s.ended
	until(t, "the goroutines' end", func() bool { return runtime.NumGoroutine() <= before+1 }) // os/signal keeps one
}
