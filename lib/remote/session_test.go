package remote

import (
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/shell"
)

// run runs a command to its end.
func run(t *testing.T, c *Conn, command, input string) (out, errs string, exit int, err error) {
	t.Helper()
	s, err := c.Start(command)
	if err != nil {
		return "", "", -1, err
	}
	defer s.Close()
	go func() { io.WriteString(s.Stdin, input); s.Stdin.Close() }()
	told := make(chan string, 1)
	go func() { b, _ := io.ReadAll(s.Stderr); told <- string(b) }()
	b, _ := io.ReadAll(s.Stdout)
	exit, err = s.Wait()
	return string(b), <-told, exit, err
}

func TestSession(t *testing.T) {
	t.Parallel()
	conn := newLab(t, "ed25519").dial()
	big := strings.Repeat("0123456789abcdef", 3<<16) // 3 MiB, more than a window
	odd := "it's $HOME, 'so' `id` \"x\" \\ * ~ ;\n# \xff"
	for _, c := range []struct {
		command, input, out, errs string
		exit                      int
	}{
		{"cat; echo oops >&2", "a\nb", "a\nb", "oops\n", 0},
		{"cat", big, big, "", 0},
		{"exit 23", "", "", "", 23},
		{"kill -KILL $$", "", "", "", 137},
		{"kill -TERM $$", "", "", "", 143},
		{"no-such-program 2>/dev/null", "", "", "", 127},
		{"tty", "", "not a tty\n", "", 1},
		{"printf '%s|' " + shell.Quote(odd) + " " + shell.Quote("") + " " + shell.Quote("'"), "", odd + "||'|", "", 0},
		// The input is closed long before the output ends.
		{"cat >/dev/null; sleep 0.1; echo late", "x", "late\n", "", 0},
	} {
		out, errs, exit, err := run(t, conn, c.command, c.input)
		if out != c.out || errs != c.errs || exit != c.exit || err != nil {
			t.Errorf("%q: out %.40q, err %.40q, exit %d, %v", c.command, out, errs, exit, err)
		}
	}
	if err := conn.Err(); err != nil {
		t.Errorf("Err of a connection that stands: %v", err)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	closesSoon(t, "Done", conn.Done())
	if err := conn.Err(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Err after Close: %v", err)
	}
	if _, err := conn.Start("true"); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Start after Close: %v", err)
	}
	conn.Close()
}

func TestSessionsSideBySide(t *testing.T) {
	t.Parallel()
	conn := newLab(t, "ed25519").dial()
	lasting, err := conn.Start("cat")
	if err != nil {
		t.Fatal(err)
	}
	defer lasting.Close()
	for _, word := range []string{"one", "two"} {
		if out, _, exit, err := run(t, conn, "echo "+word, ""); out != word+"\n" || exit != 0 || err != nil {
			t.Errorf("beside another: %q %d %v", out, exit, err)
		}
		io.WriteString(lasting.Stdin, word)
		b := make([]byte, 3)
		if _, err := io.ReadFull(lasting.Stdout, b); err != nil || string(b) != word {
			t.Errorf("the lasting one: %q %v", b, err)
		}
	}
}

func TestOutputAfterWait(t *testing.T) {
	t.Parallel()
	conn := newLab(t, "ed25519").dial()
	s, err := conn.Start("echo out; echo err >&2; exit 3")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for range 2 {
		if exit, err := s.Wait(); exit != 3 || err != nil {
			t.Errorf("Wait: %d %v", exit, err)
		}
	}
	out, _ := io.ReadAll(s.Stdout)
	errs, _ := io.ReadAll(s.Stderr)
	if string(out) != "out\n" || string(errs) != "err\n" {
		t.Errorf("out %q, err %q", out, errs)
	}
}

// Close ends reads, a write and Wait, even if the peer does nothing any more.
func TestSessionClose(t *testing.T) {
	t.Parallel()
	l := newLab(t, "ed25519")
	conn := l.dial()
	s, err := conn.Start("sleep 1000")
	if err != nil {
		t.Fatal(err)
	}
	defer l.signal(syscall.SIGCONT)
	l.signal(syscall.SIGSTOP)
	done := make(chan error, 4)
	go func() { _, err := io.Copy(io.Discard, s.Stdout); done <- err }()
	go func() { _, err := io.Copy(io.Discard, s.Stderr); done <- err }()
	go func() { _, err := io.Copy(s.Stdin, zeros{}); done <- err }()
	go func() { _, err := s.Wait(); done <- err }()
	time.Sleep(20 * time.Millisecond)
	s.Close()
	s.Close()
	for range 4 {
		select {
		case err := <-done:
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("after Close: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("Close did not end everything")
		}
	}
	if err := conn.Err(); err != nil {
		t.Errorf("the connection: %v", err)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func TestKilled(t *testing.T) {
	t.Parallel()
	l := newLab(t, "ed25519")
	conn := l.dial()
	s, err := conn.Start("cat")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	l.signal(syscall.SIGKILL)
	closesSoon(t, "Done after kill -9", conn.Done())
	e, ok := errors.AsType[*Error](conn.Err())
	if !ok || e.Kind != Lost || !strings.Contains(e.Text, "root@127.0.0.1") {
		t.Errorf("Err: %v", conn.Err())
	}
	if exit, err := s.Wait(); exit != -1 || err != conn.Err() {
		t.Errorf("Wait: %d %v", exit, err)
	}
	if _, err := conn.Start("true"); err != conn.Err() {
		t.Errorf("Start: %v", err)
	}
}

// A stopped peer still acknowledges what the kernel takes, so that only the
// questions of ssh notice.
func TestStopped(t *testing.T) {
	t.Parallel()
	l := newLab(t, "ed25519")
	c := l.client()
	c.pace = &pace{time.Minute, time.Minute, 50 * time.Millisecond, 2 * time.Second}
	conn := l.dialAs(c)
	s, err := conn.Start("cat")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	go io.Copy(s.Stdin, zeros{}) // blocks: nobody takes it
	defer l.signal(syscall.SIGCONT)
	l.signal(syscall.SIGSTOP)
	closesSoon(t, "Done while the peer is stopped", conn.Done())
	if e, ok := errors.AsType[*Error](conn.Err()); !ok || e.Kind != Lost || !strings.Contains(e.Text, "no sign of life") {
		t.Errorf("Err: %v", conn.Err())
	}
	if _, err := s.Wait(); err != conn.Err() {
		t.Errorf("Wait: %v", err)
	}
}

func TestSessionRefused(t *testing.T) {
	t.Parallel()
	conn := newLab(t, "ed25519", "MaxSessions 1").dial()
	s, err := conn.Start("cat")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	_, err = conn.Start("true")
	if e, ok := errors.AsType[*Error](err); !ok || e.Kind != Protocol || !strings.Contains(e.Remedy, "MaxSessions") {
		t.Errorf("second session: %v", err)
	}
}

// Not parallel: it counts goroutines.
func TestNothingLeaks(t *testing.T) {
	l := newLab(t, "ed25519")
	before := runtime.NumGoroutine()
	for range 3 {
		conn := l.dial()
		if _, _, exit, err := run(t, conn, "true", ""); exit != 0 || err != nil {
			t.Fatal(exit, err)
		}
		s, err := conn.Start("cat")
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
		conn.Close()

		c := l.client()
		c.KeyFile = "/nowhere"
		refuse(t, c, KeyRefused)
		c.Port = 1
		refuse(t, c, Unreachable)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := Dial(ctx, l.client()); !errors.Is(err, context.Canceled) {
			t.Errorf("Dial: %v", err)
		}
	}
	waitFor(t, "goroutines end", func() bool { return runtime.NumGoroutine() <= before })
}
