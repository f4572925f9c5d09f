// Package history plays random histories of two nodes, each with a seed of its
// own, and checks after every step that no configuration was lost. The trees, the
// engine, the protocol, rsync, the processes and their deaths are real; a unix
// socket takes the place of ssh.
//
// HISTORY_SEED=n plays one history, HISTORY_SEED=n-m all from n to m, SOAK=1 ten
// thousand. A seed stands for the same steps; when a killed program dies in them
// differs from run to run.
package history

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const (
	histories = 100
	soak      = 10_000
	abreast   = 3
	bound     = 30 * time.Second // for whatever must happen by itself
	clusterIP = "192.0.2.9"
)

var program string // of the nodes

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "history")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "node")
	build := exec.Command("go", "build", "-tags", "steps", "-o", program, "./node")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "%v: %v\n%s", build, err, out)
		return 1
	}
	return m.Run()
}

func TestHistories(t *testing.T) {
	first, count := uint64(1), uint64(histories)
	if os.Getenv("SOAK") != "" {
		count = soak
	}
	if text := os.Getenv("HISTORY_SEED"); text != "" {
		one, other, many := strings.Cut(text, "-")
		if !many {
			other = one
		}
		from, err1 := strconv.ParseUint(one, 10, 64)
		to, err2 := strconv.ParseUint(other, 10, 64)
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		first, count = from, to-from+1
	}
	seeds := make(chan uint64)
	var players sync.WaitGroup
	for range abreast {
		players.Go(func() {
			for seed := range seeds {
				t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { play(t, seed) })
			}
		})
	}
	for seed := first; seed < first+count && !t.Failed(); seed++ {
		seeds <- seed
	}
	close(seeds)
	players.Wait()
}

// history is one of them.
type history struct {
	t        *testing.T
	seed     uint64
	random   *rand.Rand
	dir      string
	a, b     *node
	cut      atomic.Bool // nothing gets from one node to the other
	calm     bool        // the nodes never rule apart
	armed    bool        // a program may die by itself
	step     int
	edits    []*edit
	vectors  map[string]string // what each vector that was seen stands for
	archives map[string]kept   // those that were read
	notes    []string
}

func play(t *testing.T, seed uint64) {
	h := &history{t: t, seed: seed, random: rand.New(rand.NewPCG(seed, 5)), dir: t.TempDir(), vectors: map[string]string{}, archives: map[string]kept{}}
	h.calm = seed%5 < 2
	h.a, h.b = h.newNode("a", "192.0.2.1", "192.0.2.2"), h.newNode("b", "192.0.2.2", "192.0.2.1")
	h.a.peer, h.b.peer = h.b, h.a
	go h.a.connect()
	go h.b.connect()
	defer h.close()
	h.found()
	h.a.powerOn()
	h.b.powerOn()
	h.promote(h.a)
	h.quiet()
	for h.step = 1; h.step <= 10+h.random.IntN(12); h.step++ {
		h.act()
		h.check()
	}
	h.quiet()
}

func (h *history) close() {
	for _, n := range []*node{h.a, h.b} {
		n.listen.Close()
		n.mu.Lock()
		n.on = false
		n.mu.Unlock()
		n.killAnswers()
		n.daemon.kill()
		n.killRest()
	}
	if h.t.Failed() {
		h.tell()
	}
}

func (h *history) nodes() []*node { return []*node{h.a, h.b} }

// chance is true once in n times.
func (h *history) chance(n int) bool { return h.random.IntN(n) == 0 }

func (h *history) note(format string, args ...any) {
	h.notes = append(h.notes, time.Now().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
}

func (h *history) must(err error) {
	h.t.Helper()
	if err != nil {
		h.fail("%v", err)
	}
}

func (h *history) fail(format string, args ...any) {
	h.t.Helper()
	h.t.Fatalf("seed %d, step %d: %s", h.seed, h.step, fmt.Sprintf(format, args...))
}

// tell says what has happened.
func (h *history) tell() {
	const steps, lines = 120, 60
	var text strings.Builder
	fmt.Fprintf(&text, "HISTORY_SEED=%d repeats it. Calm: %v. The last steps:\n%s\n", h.seed, h.calm, strings.Join(last(h.notes, steps), "\n"))
	for _, n := range h.nodes() {
		log, _ := os.ReadFile(n.log())
		fmt.Fprintf(&text, "--- log of %s\n%s\n", n, strings.Join(last(strings.Split(string(log), "\n"), lines), "\n"))
	}
	h.t.Log(text.String())
	if dir := os.Getenv("HISTORY_KEEP"); dir != "" {
		exec.Command("cp", "-a", h.dir, dir).Run()
	}
}

func last[T any](list []T, n int) []T { return list[max(0, len(list)-n):] }
