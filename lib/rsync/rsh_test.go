package rsync

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/control"
)

// rsh is our program, called by hand.
func rsh(socket string, args ...string) (*exec.Cmd, *bytes.Buffer) {
	cmd := exec.Command(os.Args[0], append([]string{"rsh"}, args...)...)
	cmd.Env = []string{SocketVariable + "=" + socket}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	return cmd, &stderr
}

func listen(t *testing.T) (*control.Listener, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "socket")
	l, err := control.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l, path
}

func TestRshWithoutDaemon(t *testing.T) {
	cmd, stderr := rsh(filepath.Join(t.TempDir(), "none"), "peer", "rsync")
	cmd.Run()
	if cmd.ProcessState.ExitCode() != 255 || strings.Count(stderr.String(), "\n") != 1 || !strings.Contains(stderr.String(), "no daemon listens on") {
		t.Errorf("%v %q", cmd.ProcessState, stderr)
	}
}

func TestRshByHand(t *testing.T) {
	t.Setenv(SocketVariable, "")
	if exit := Rsh(nil); exit != 255 {
		t.Errorf("exit %d", exit)
	}
}

func TestRsh(t *testing.T) {
	l, path := listen(t)
	cmd, stderr := rsh(path, "peer", "rsync", "--server", "", "a b", "\xff")
	cmd.Stdin = strings.NewReader("hello")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.Command != "rsh" || strings.Join(c.Args, "|") != "peer|rsync|--server||a b|\xff" {
		t.Errorf("%s %q", c.Command, c.Args)
	}
	if _, err := io.Copy(c.Files[1], c.Files[0]); err != nil {
		t.Error(err)
	}
	c.Files[1].Close()
	// rsync sees the end when the daemon closes, not only when the process ends.
	if b, err := io.ReadAll(out); string(b) != "hello" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	c.Reply(control.Reply{Text: "one\n"})
	c.Reply(control.Reply{Text: "two", Exit: 12, Done: true})
	cmd.Wait()
	if cmd.ProcessState.ExitCode() != 12 || stderr.String() != "one\ntwo\n" {
		t.Errorf("%v %q", cmd.ProcessState, stderr)
	}
}

func TestRshEndsWithTheDaemon(t *testing.T) {
	l, path := listen(t)
	cmd, stderr := rsh(path, "peer", "rsync")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	cmd.Wait()
	if cmd.ProcessState.ExitCode() != 255 || strings.Count(stderr.String(), "\n") != 1 || !strings.Contains(stderr.String(), "went away") {
		t.Errorf("%v %q", cmd.ProcessState, stderr)
	}
}

// The daemon that dies in a transfer does not leave rsync hanging.
func TestRsyncEndsWithTheDaemon(t *testing.T) {
	l, path := listen(t)
	src := t.TempDir()
	write(t, src, map[string]string{"file": "x"})
	go func() {
		if c, err := l.Accept(); err == nil {
			c.Close()
		}
	}()
	res, err := Runner{Shell: []string{os.Args[0], "rsh"}, Socket: path}.Run(context.Background(), Job{Source: src, Files: []string{"file"}})
	var f *Failure
	// rsync may be through before its remote shell has said why.
	said := strings.Contains(res.Stderr, "went away") || strings.Contains(res.Stderr, "connection unexpectedly closed")
	if !errors.As(err, &f) || res.Exit <= 0 || !said {
		t.Errorf("%+v, %v", res, err)
	}
}

func TestKilledRshIsNoticed(t *testing.T) {
	t.Parallel()
	b := newBackup(t)
	r, j, begun := slow(t, b)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { begun(); cancel() }()
	r.Run(ctx, j)
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		b.mu.Lock()
		gone := b.gone
		b.mu.Unlock()
		if gone == 1 {
			return
		}
	}
	t.Error("the daemon still waits")
}

// BenchmarkRsh measures from fork to the daemon's having the request.
func BenchmarkRsh(b *testing.B) {
	path := filepath.Join(b.TempDir(), "socket")
	l, err := control.Listen(path)
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	for b.Loop() {
		cmd, _ := rsh(path, "peer", "rsync", "--server", "-s", ".")
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		c, err := l.Accept()
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		c.Reply(control.Reply{Done: true})
		cmd.Wait()
		c.Close()
		b.StartTimer()
	}
}
