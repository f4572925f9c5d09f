package installed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/test/lab"
)

const (
	// limit is how long a test waits for something that takes seconds at most.
	limit = 45 * time.Second

	network = "192.168.85"
	lb1     = "lb1"
	lb2     = "lb2"
	virtual = network + ".100" // $cluster_ip
	device  = "eth0:web"       // the virtual interface that has it
)

var (
	nodes     = []string{lb1, lb2}
	addresses = map[string]string{lb1: network + ".11", lb2: network + ".12"}
	macs      = map[string]string{"02:77:00:00:00:0b": lb1, "02:77:00:00:00:0c": lb2}
	other     = map[string]string{lb1: lb2, lb2: lb1}
)

// testbed is a command of the script of that name, which says what there is.
func testbed(id string, words ...string) *exec.Cmd {
	cmd := exec.Command("../testbed/testbed", words...)
	cmd.Env = append(os.Environ(), "TESTBED_ID="+id, "TESTBED_NET="+network, "TERM=dumb")
	// What a shell of it has started goes with it, not before it.
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// bed is a test bed: two Debian 12 systems, lb1 and lb2, a switch and a client.
type bed struct {
	t    *testing.T
	id   string
	root map[string]string // the nodes' root directories, as they are seen here
	off  sync.Map          // nodes without power
}

var beds atomic.Int32

// newID names a test bed of this run.
func newID() string { return fmt.Sprintf("pk%d-%d", os.Getpid(), beds.Add(1)) }

// boot boots a test bed, with Skudonet's stand-in and the package under test in its repository, for a test that may
// run beside others. It is gone when the test has ended.
func boot(t *testing.T, options ...string) *bed {
	t.Helper()
	if impossible != "" {
		t.Skip(impossible)
	}
	t.Parallel()
	b := &bed{t: t, id: newID(), root: map[string]string{}}
	t.Cleanup(func() {
		if t.Failed() {
			b.logNodes()
		}
		if out, err := testbed(b.id, "down").CombinedOutput(); err != nil {
			t.Errorf("testbed down: %v\n%s", err, out)
		}
	})
	b.do(append([]string{"up", "--debs", deb}, options...)...)
	for _, node := range nodes {
		b.root[node] = b.do("root", node)
	}
	return b
}

// do runs a command of the test bed, and gives what it prints.
func (b *bed) do(words ...string) string {
	b.t.Helper()
	out, err := output(testbed(b.id, words...))
	if err != nil {
		b.t.Fatalf("testbed %s: %v", strings.Join(words, " "), err)
	}
	return out
}

// output runs a command, and gives what it prints; what it complains of is in the error.
func output(cmd *exec.Cmd) (string, error) {
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%w\n%s", err, complaints.Bytes())
	}
	return strings.TrimSpace(string(out)), err
}

// try runs a shell script in a node and gives all that it prints, and its exit status.
func (b *bed) try(node, script string) (string, int) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := testbed(b.id, "exec", node, "sh", "-c", script)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	stop := context.AfterFunc(ctx, func() { cmd.Process.Kill() })
	defer stop()
	err := cmd.Wait()
	if ctx.Err() != nil {
		b.t.Fatalf("%s: does not end: %s\n%s", node, script, out.String())
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		b.t.Fatalf("%s: %s: %v", node, script, err)
	}
	return strings.TrimSpace(out.String()), cmd.ProcessState.ExitCode()
}

// run is try for a script that has to succeed.
func (b *bed) run(node, script string) string {
	b.t.Helper()
	return b.exits(node, 0, script)
}

// exits is try for a script that has to end with a certain exit status.
func (b *bed) exits(node string, want int, script string) string {
	b.t.Helper()
	out, code := b.try(node, script)
	if code != want {
		b.t.Fatalf("%s: %s: exit status %d, want %d; it printed:\n%s", node, script, code, want, out)
	}
	return out
}

// says fails the test unless a text that somebody reads has all these words.
func (b *bed) says(text string, words ...string) {
	b.t.Helper()
	for _, w := range words {
		if !strings.Contains(text, w) {
			b.t.Errorf("does not say %q:\n%s", w, text)
		}
	}
}

// powerOff takes a node's power at once, so that it sends nothing any more.
func (b *bed) powerOff(node string) {
	b.t.Helper()
	b.off.Store(node, true)
	b.do("power-off", node)
}

func (b *bed) powerOn(node string) {
	b.t.Helper()
	// A status file that the last life has left says nothing; the boot removes it before any service starts.
	b.do("power-on", node)
	b.off.Delete(node)
}

// reboot boots nodes anew, all at the same time.
func (b *bed) reboot(which ...string) {
	b.t.Helper()
	var all sync.WaitGroup
	failed := make(chan error, len(which))
	for _, node := range which {
		all.Go(func() {
			if _, err := output(testbed(b.id, "reboot", node)); err != nil {
				failed <- fmt.Errorf("reboot of %s: %w", node, err)
			}
		})
	}
	all.Wait()
	close(failed)
	for err := range failed {
		b.t.Error(err)
	}
}

// read gives a file of a node, "" if it is not there.
func (b *bed) read(node, path string) string {
	text, _ := os.ReadFile(b.root[node] + path)
	return string(text)
}

func (b *bed) exists(node, path string) bool {
	_, err := os.Lstat(b.root[node] + path)
	return err == nil
}

func (b *bed) write(node, path, text string) {
	b.t.Helper()
	if err := os.WriteFile(b.root[node]+path, []byte(text), 0o644); err != nil {
		b.t.Fatal(err)
	}
}

// client runs a program of this host as the client.
func (b *bed) client(words ...string) error {
	_, err := output(testbed(b.id, append([]string{"exec", "client"}, words...)...))
	return err
}

// eventually waits until look says true, and fails the test when that does not happen. It is asked four times a second,
// because each answer may cost a process or two.
func (b *bed) eventually(what string, look func() (bool, string)) {
	b.t.Helper()
	for begin := time.Now(); ; time.Sleep(250 * time.Millisecond) {
		ok, seen := look()
		if ok {
			return
		}
		if time.Since(begin) > limit {
			b.t.Fatalf("waited %v for %s, saw last: %s", limit, what, seen)
		}
	}
}

// until waits until a script succeeds in a node.
func (b *bed) until(node, what, script string) {
	b.t.Helper()
	b.eventually(what+" on "+node, func() (bool, string) {
		out, code := b.try(node, script)
		return code == 0, fmt.Sprintf("%s: exit status %d: %s", script, code, out)
	})
}

var ofInterest = regexp.MustCompile(`(?i)skd|skudonet|failed|error`)

// logNodes puts what the nodes have logged about us into the test's log.
func (b *bed) logNodes() {
	dir := b.t.TempDir()
	if out, err := testbed(b.id, "logs", dir).CombinedOutput(); err != nil {
		b.t.Logf("testbed logs: %v\n%s", err, out)
	}
	for _, node := range nodes {
		var lines []string
		for line := range strings.Lines(readAll(filepath.Join(dir, node+".journal"))) {
			if ofInterest.MatchString(line) {
				lines = append(lines, line)
			}
		}
		lines = lines[max(0, len(lines)-250):]
		b.t.Logf("%s, journal:\n%s", node, strings.Join(lines, ""))
		b.t.Logf("%s, skdinotify.log:\n%s", node, tail(b.read(node, "/var/log/skdinotify.log"), 5000))
		b.t.Logf("%s, apt:\n%s", node, tail(readAll(filepath.Join(dir, node+".apt")), 2000))
	}
}

func readAll(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

func tail(text string, size int) string { return text[max(0, len(text)-size):] }

// terminal is a person who has logged in at a node.
type terminal struct {
	b    *bed
	node string
	cmd  *exec.Cmd
	keys io.WriteCloser

	mu     sync.Mutex
	screen bytes.Buffer
	looked int // so much was seen by expect
}

// login logs in over the network, as root, with a login shell.
func (b *bed) login(node string) *terminal {
	b.t.Helper()
	s := &terminal{b: b, node: node, cmd: testbed(b.id, "ssh", node)}
	s.cmd.Stdout, s.cmd.Stderr = s, s
	keys, err := s.cmd.StdinPipe()
	if err == nil {
		err = s.cmd.Start()
	}
	if err != nil {
		b.t.Fatal(err)
	}
	s.keys = keys
	b.t.Cleanup(func() {
		s.cmd.Process.Kill()
		s.cmd.Wait()
	})
	return s
}

func (s *terminal) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.screen.Write(p)
}

// types a line and presses Enter.
func (s *terminal) types(line string) { io.WriteString(s.keys, line+"\n") }

// expect waits for a text on the part of the screen that no expect has passed yet.
func (s *terminal) expect(text string) {
	s.b.t.Helper()
	lab.Eventually(s.b.t, limit, fmt.Sprintf("%q at a terminal of %s", text, s.node), func() (bool, string) {
		s.mu.Lock()
		defer s.mu.Unlock()
		rest := s.screen.String()[s.looked:]
		at := strings.Index(rest, text)
		if at < 0 {
			return false, fmt.Sprintf("%q", rest)
		}
		s.looked += at + len(text)
		return true, ""
	})
}
