package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const long = 10 * time.Second

// TestMain is also the program that calls from a process of its own.
func TestMain(m *testing.M) {
	if path := os.Getenv("CONTROL_TEST_CALL"); path != "" {
		Do(context.Background(), path, Request{Command: "wait"}, nil)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func listen(t *testing.T) (*Listener, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "socket")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l, path
}

func accept(t *testing.T, l *Listener) *Call {
	t.Helper()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

type answer struct {
	reply Reply
	err   error
}

func call(path string, r Request, progress func(Reply)) <-chan answer {
	a := make(chan answer, 1)
	go func() {
		reply, err := Do(context.Background(), path, r, progress)
		a <- answer{reply, err}
	}()
	return a
}

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

func waitFor(t *testing.T, what string, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(long):
		t.Fatal("not in time: " + what)
	}
}

func TestCall(t *testing.T) {
	l, path := listen(t)
	inR, inW := pipe(t)
	outR, outW := pipe(t)
	args := []string{"--server", "", "a b\n", "raw \xff\xfe", strings.Repeat("long", 5000)}
	var news []Reply
	got := call(path, Request{Command: "rsh", Args: args, Files: []*os.File{inR, outW}}, func(r Reply) { news = append(news, r) })
	c := accept(t, l)
	if c.Command != "rsh" || !reflect.DeepEqual(c.Args, args) || len(c.Files) != 2 {
		t.Fatalf("%s %q %d files", c.Command, c.Args, len(c.Files))
	}
	fmt.Fprint(inW, "through two pipes")
	inW.Close()
	if _, err := io.Copy(c.Files[1], c.Files[0]); err != nil {
		t.Error(err)
	}
	// Nobody else has the end any more, the caller neither.
	c.Files[1].Close()
	if b, err := io.ReadAll(outR); string(b) != "through two pipes" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	big := strings.Repeat("x", maxReply/2)
	for _, r := range []Reply{{Text: "one"}, {Text: "two\nlines"}, {Text: big}, {Text: "end", Exit: 23, Done: true}} {
		if err := c.Reply(r); err != nil {
			t.Error(err)
		}
	}
	a := <-got
	if a.err != nil || a.reply != (Reply{Text: "end", Exit: 23, Done: true}) {
		t.Errorf("%+v", a)
	}
	if want := []Reply{{Text: "one"}, {Text: "two\nlines"}, {Text: big}}; !reflect.DeepEqual(news, want) {
		t.Errorf("%d news", len(news))
	}
	if err := c.Reply(Reply{Done: true}); err == nil {
		t.Error("an answer after the last one")
	}
	waitFor(t, "the caller has hung up", c.Gone())
}

// A received pipe that nobody writes to must not hold a reader that Close cannot end.
func TestCloseEndsAReadOfAFile(t *testing.T) {
	l, path := listen(t)
	r, _ := pipe(t)
	call(path, Request{Command: "rsh", Files: []*os.File{r}}, nil)
	c := accept(t, l)
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.Files[0].Read(make([]byte, 1))
	}()
	time.Sleep(10 * time.Millisecond)
	c.Close()
	waitFor(t, "the read ends", done)
}

func TestFilesThatNobodyTakesAreClosed(t *testing.T) {
	l, path := listen(t)
	r, w := pipe(t)
	got := call(path, Request{Command: "rsh", Files: []*os.File{w}}, nil)
	c := accept(t, l)
	c.Close()
	if b, err := io.ReadAll(r); len(b) > 0 || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	if a := <-got; !errors.Is(a.err, io.ErrUnexpectedEOF) {
		t.Errorf("%v", a.err)
	}
}

func TestGone(t *testing.T) {
	l, path := listen(t)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "CONTROL_TEST_CALL="+path)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := accept(t, l)
	select {
	case <-c.Gone():
		t.Error("gone too early")
	case <-time.After(20 * time.Millisecond):
	}
	cmd.Process.Kill()
	cmd.Wait()
	waitFor(t, "the caller is missed", c.Gone())
	if err := c.Reply(Reply{Done: true}); err == nil {
		t.Error("an answer to nobody")
	}
}

func TestContext(t *testing.T) {
	l, path := listen(t)
	ctx, cancel := context.WithCancelCause(context.Background())
	go func() {
		c := accept(t, l)
		cancel(errors.New("enough"))
		<-c.Gone()
	}()
	if _, err := Do(ctx, path, Request{Command: "wait"}, nil); err == nil || err.Error() != "enough" {
		t.Error(err)
	}
}

func TestNoDaemon(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	r, w := pipe(t)
	if _, err := Do(context.Background(), path, Request{Command: "x", Files: []*os.File{w}}, nil); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if b, err := io.ReadAll(r); len(b) > 0 || err != nil {
		t.Error("the file was not closed")
	}
	stale(t, path)
	if _, err := Do(context.Background(), path, Request{Command: "x"}, nil); !errors.Is(err, unix.ECONNREFUSED) {
		t.Error(err)
	}
}

// stale leaves a socket behind, as a daemon that was killed.
func stale(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
}

func TestListen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "socket")
	stale(t, path)
	l, err := Listen(path)
	if err != nil {
		t.Fatal("stale socket:", err)
	}
	if info, _ := os.Stat(path); info.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), "another daemon listens on") {
		t.Errorf("second: %v", err)
	}
	go call(path, Request{Command: "still"}, nil)
	if c := accept(t, l); c.Command != "still" {
		t.Errorf("the first one heard %q", c.Command)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); !slices.Equal(left, []string{path + ".lock"}) {
		t.Errorf("left behind: %v", left)
	}
	os.WriteFile(path, []byte("precious"), 0o600)
	if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), "something else is there") {
		t.Errorf("a file: %v", err)
	}
	if _, err := Listen(filepath.Join(dir, "none", "socket")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
	if _, err := Listen(filepath.Join(dir, strings.Repeat("x", 108))); err == nil || !strings.Contains(err.Error(), "at most 107") {
		t.Errorf("a long path: %v", err)
	}
}

// Of many that start at once over a stale socket, one listens.
func TestListenAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	stale(t, path)
	const n = 8
	got := make(chan *Listener, n)
	for range n {
		go func() {
			l, err := Listen(path)
			if err != nil && !strings.Contains(err.Error(), "another daemon listens") {
				t.Error(err)
			}
			got <- l
		}()
	}
	var one *Listener
	for range n {
		if l := <-got; l != nil {
			if one != nil {
				t.Error("two listen")
			}
			one = l
			defer l.Close()
		}
	}
	call(path, Request{Command: "x"}, nil)
	accept(t, one)
}

// A listener whose socket was replaced does not remove the other one's.
func TestCloseKeepsAnothersSocket(t *testing.T) {
	l, path := listen(t)
	os.Remove(path)
	other, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	l.Close()
	call(path, Request{Command: "x"}, nil)
	accept(t, other)
}

// Callers that say nothing or nonsense get an answer or none, and nobody waits for them.
func TestOddCallers(t *testing.T) {
	l, path := listen(t)
	dial := func() *net.UnixConn {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c.(*net.UnixConn)
	}
	r, w := pipe(t)
	rights := func(n int) []byte {
		fds := make([]int, n)
		for i := range fds {
			fds[i] = int(w.Fd())
		}
		return unix.UnixRights(fds...)
	}
	dial() // silent
	dial().Close()
	dial().Write([]byte(`{"Command":"half`))
	for text, files := range map[string]int{
		"\n": 0, "nonsense\n": 0, "{}\n": 0, "[]\n": 0, `{"Command":"x","Args":["not base64!"]}` + "\n": 0,
		`{"Command":"x","Files":-1}` + "\n": 0, `{"Command":"x","Files":9}` + "\n": 0,
		`{"Command":"x","Files":2}` + "\n": 1, `{"Command":"x"}` + "\n": 2, `{"Command":"x","Files":3}` + "\n": 4, "{}": 3,
		strings.Repeat("x", maxRequest+5<<10): 1, "{\"Command\":\"x\"}\nmore": 0,
	} {
		c := dial()
		if _, _, err := c.WriteMsgUnix([]byte(text), rights(files), nil); err != nil {
			t.Errorf("%.30q: %v", text, err)
		}
		c.CloseWrite()
		c.SetReadDeadline(time.Now().Add(long))
		b, err := io.ReadAll(c)
		if err != nil && !errors.Is(err, syscall.ECONNRESET) || len(b) > 0 && !bytes.Contains(b, []byte(`"Exit":1,"Done":true`)) {
			t.Errorf("%.30q with %d files: %q, %v", text, files, b, err)
		}
	}
	got := call(path, Request{Command: "sane"}, nil)
	c := accept(t, l)
	if c.Command != "sane" {
		t.Errorf("accepted %q", c.Command)
	}
	c.Reply(Reply{Done: true})
	if a := <-got; a.err != nil {
		t.Error(a.err)
	}
	w.Close()
	if b, err := io.ReadAll(r); len(b) > 0 || err != nil { // ends: no copy of w is open any more
		t.Errorf("%q, %v", b, err)
	}
	began := time.Now()
	if l.Close(); time.Since(began) > requestWithin/2 {
		t.Error("Close waited for a silent caller")
	}
}

func TestRequestTooLarge(t *testing.T) {
	_, path := listen(t)
	r, w := pipe(t)
	for _, q := range []Request{
		{Command: "x", Args: []string{strings.Repeat("x", maxRequest)}},
		{Command: "x", Files: []*os.File{r, w, r, w}},
	} {
		if _, err := Do(context.Background(), path, q, nil); err == nil || !strings.Contains(err.Error(), "at most") {
			t.Error(err)
		}
	}
}

func TestOtherUsersAreRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	l, path := listen(t)
	os.Chmod(path, 0o666) // as if the mode did not help
	for dir := filepath.Dir(path); dir != "/" && dir != os.TempDir(); dir = filepath.Dir(dir) {
		os.Chmod(dir, 0o755)
	}
	program := filepath.Join(filepath.Dir(path), "caller")
	b, err := os.ReadFile(os.Args[0])
	if err != nil || os.WriteFile(program, b, 0o755) != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program)
	cmd.Env = []string{"CONTROL_TEST_CALL=" + path}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	select {
	case c := <-l.calls:
		t.Errorf("accepted %q", c.Command)
	default:
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"Command":"rsh","Args":["YQ=="],"Files":2}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		r, files, err := decode(line)
		if err != nil {
			return
		}
		if r.Command == "" || files < 0 || files > maxFiles {
			t.Fatalf("%+v, %d files", r, files)
		}
		b, err := encode(r)
		if err != nil {
			return // an odd command grows when it is written
		}
		again, _, err := decode(b)
		if err != nil || !reflect.DeepEqual(again, r) {
			t.Errorf("%+v became %+v, %v", r, again, err)
		}
	})
}
