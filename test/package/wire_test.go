package installed

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/test/lab"
)

// wire is a capture of all ARP at the switch, while the client asks everybody for the virtual address several times
// a second: whoever would answer, or announces, is seen.
type wire struct {
	t *testing.T

	mu     sync.Mutex
	claims []claim
}

// claim is an ARP message with the virtual address as its sender.
type claim struct {
	at   time.Time
	node string
}

func (b *bed) capture() *wire {
	b.t.Helper()
	w := &wire{t: b.t}
	dump := testbed(b.id, "exec", "switch", "tcpdump", "--immediate-mode", "-n", "-i", "br0", "-U", "-w", "-", "arp")
	packets, err := dump.StdoutPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	complaints, err := dump.StderrPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	b.start(dump)
	line, err := bufio.NewReader(complaints).ReadString('\n')
	if err != nil || !strings.Contains(line, "listening") {
		b.t.Fatalf("tcpdump: %q, %v", line, err)
	}
	go io.Copy(io.Discard, complaints)
	go w.record(packets)
	b.start(testbed(b.id, "exec", "client", "sh", "-c",
		"while :; do arping -q -b -f -c 1 -w 1 -I eth0 "+virtual+"; sleep 0.2; done"))
	return w
}

// start starts what runs until the test ends.
func (b *bed) start(cmd *exec.Cmd) {
	b.t.Helper()
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		cmd.Process.Signal(unix.SIGTERM)
		cmd.Wait()
	})
}

// record reads a capture in pcap's format, of this machine's byte order, with microseconds.
func (w *wire) record(in io.Reader) {
	r := bufio.NewReader(in)
	if _, err := r.Discard(24); err != nil {
		return
	}
	var head [16]byte
	for {
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return
		}
		field := func(i int) int64 { return int64(binary.NativeEndian.Uint32(head[4*i:])) }
		p := lab.Packet{Time: time.Unix(field(0), field(1)*1000), Frame: make([]byte, field(2))}
		if _, err := io.ReadFull(r, p.Frame); err != nil {
			return
		}
		arp, ok := p.ARP()
		if !ok || arp.Sender.String() != virtual {
			continue
		}
		node, known := macs[arp.SenderMAC.String()]
		if !known {
			node = arp.SenderMAC.String()
		}
		w.mu.Lock()
		w.claims = append(w.claims, claim{p.Time, node})
		w.mu.Unlock()
	}
}

// overlap is how long a master that hands over, and keeps the address until it hears its successor, may answer beside it.
const overlap = 200 * time.Millisecond

// claimants are the nodes that spoke for the address since then, each as often as it has taken over from another one.
func (w *wire) claimants(since time.Time) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var list []string
	var taken time.Time
	for _, c := range w.claims {
		n := len(list)
		switch {
		case !c.at.After(since) || n > 0 && c.node == list[n-1]:
		case n > 1 && c.node == list[n-2] && c.at.Sub(taken) < overlap:
		default:
			list, taken = append(list, c.node), c.at
		}
	}
	return list
}

// claimed fails the test unless exactly these nodes spoke for the address since then, one after the other: a node that
// speaks while another one is master stands in the list twice. The first one, which was master then, may have been cut
// off before it spoke again.
func (w *wire) claimed(since time.Time, want ...string) {
	w.t.Helper()
	asked := time.Now()
	lab.Eventually(w.t, limit, "a claim of "+want[len(want)-1], func() (bool, string) {
		w.mu.Lock()
		defer w.mu.Unlock()
		n := len(w.claims)
		return n > 0 && w.claims[n-1].at.After(asked), fmt.Sprint(n, " claims")
	})
	got := w.claimants(since)
	if !slices.Equal(got, want) && (len(want) < 2 || !slices.Equal(got, want[1:])) {
		w.t.Errorf("on the wire, the address was claimed by %v, want %v; the moments: %s", got, want, w.changes(since))
	}
}

func (w *wire) changes(since time.Time) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var text strings.Builder
	last := ""
	for _, c := range w.claims {
		if c.at.After(since) && c.node != last {
			fmt.Fprintf(&text, "%s at %.3fs; ", c.node, c.at.Sub(since).Seconds())
			last = c.node
		}
	}
	return text.String()
}

// pings is a client that pings the virtual address fifty times a second.
type pings struct {
	mu      sync.Mutex
	answers []time.Time
}

func (b *bed) ping() *pings {
	b.t.Helper()
	p := &pings{}
	cmd := testbed(b.id, "exec", "client", "ping", "-n", "-D", "-i", "0.02", virtual)
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	b.start(cmd)
	go func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if !strings.Contains(lines.Text(), "bytes from") {
				continue
			}
			stamp, _, _ := strings.Cut(strings.TrimPrefix(lines.Text(), "["), "]")
			seconds, err := strconv.ParseFloat(stamp, 64)
			if err != nil {
				continue
			}
			p.mu.Lock()
			p.answers = append(p.answers, time.UnixMicro(int64(seconds*1e6)))
			p.mu.Unlock()
		}
	}()
	b.eventually("an answer from "+virtual, func() (bool, string) { return p.last().After(time.Time{}), "" })
	return p
}

// last is the time of the last answer.
func (p *pings) last() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.answers) == 0 {
		return time.Time{}
	}
	return p.answers[len(p.answers)-1]
}

// outage is the longest time without an answer since then.
func (p *pings) outage(since time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	last, longest := since, time.Duration(0)
	for _, at := range p.answers {
		if at.After(since) {
			longest = max(longest, at.Sub(last))
			last = at
		}
	}
	return max(longest, time.Since(last)).Round(time.Millisecond)
}

// total is the time without an answer since then, in gaps that are no mere stumble of a busy machine.
func (p *pings) total(since time.Time) (sum time.Duration) {
	const stumble = 150 * time.Millisecond
	p.mu.Lock()
	defer p.mu.Unlock()
	last := since
	for _, at := range p.answers {
		if at.After(since) {
			if gap := at.Sub(last); gap > stumble {
				sum += gap
			}
			last = at
		}
	}
	return sum.Round(time.Millisecond)
}

// unnoticed is an outage of a client that nothing of ours makes: what a busy host may stand still, and less than a failover takes.
const unnoticed = 2 * time.Second

// survived waits until the address answers again, says how long it did not since then, and fails the test if that was
// longer than at most.
func (b *bed) survived(p *pings, what string, since time.Time, atMost time.Duration) {
	b.t.Helper()
	b.eventually("answers again", func() (bool, string) {
		return time.Since(p.last()) < time.Second && p.last().After(since), p.last().String()
	})
	outage := p.outage(since)
	b.t.Logf("%s: the client's outage was %v", what, outage)
	if outage > atMost {
		b.t.Errorf("%s: the client's outage was %v, want at most %v", what, outage, atMost)
	}
}

// roles notes what the status files of a test bed say, a hundred times a second.
type roles struct {
	mu    sync.Mutex
	notes []note
}

type note struct {
	at   time.Time
	word map[string]string // of each node; "off" without power, "" without a status file
}

func (b *bed) watch() *roles {
	r := &roles{}
	done, gone := make(chan struct{}), make(chan struct{})
	b.t.Cleanup(func() { close(done); <-gone })
	go func() {
		defer close(gone)
		for tick := time.NewTicker(10 * time.Millisecond); ; {
			now := note{time.Now(), map[string]string{}}
			for _, node := range nodes {
				now.word[node] = b.status(node)
			}
			r.mu.Lock()
			if n := len(r.notes); n == 0 || r.notes[n-1].word[lb1] != now.word[lb1] || r.notes[n-1].word[lb2] != now.word[lb2] {
				r.notes = append(r.notes, now)
			}
			r.mu.Unlock()
			select {
			case <-tick.C:
			case <-done:
				return
			}
		}
	}()
	return r
}

// since is what the status files said from then on: the first note is as of that time.
func (r *roles) since(then time.Time) []note {
	r.mu.Lock()
	defer r.mu.Unlock()
	from := 0
	for i, n := range r.notes {
		if !n.at.After(then) {
			from = i
		}
	}
	return slices.Clone(r.notes[from:])
}

// story tells it.
func (r *roles) story(then time.Time) string {
	var text strings.Builder
	for _, n := range r.since(then) {
		fmt.Fprintf(&text, "%6.2fs lb1 %q lb2 %q\n", max(0, n.at.Sub(then).Seconds()), n.word[lb1], n.word[lb2])
	}
	return text.String()
}

// masters are the nodes that were master since then, one after the other.
func (r *roles) masters(then time.Time) []string {
	var list []string
	was := map[string]string{}
	for _, n := range r.since(then) {
		for _, node := range nodes {
			if n.word[node] == "master" && was[node] != "master" {
				list = append(list, node)
			}
		}
		was = n.word
	}
	return list
}

// twoMasters is for how long both files said master since then.
func (r *roles) twoMasters(then time.Time) (long time.Duration) {
	list := r.since(then)
	for i, n := range list {
		end := time.Now()
		if i+1 < len(list) {
			end = list[i+1].at
		}
		if n.word[lb1] == "master" && n.word[lb2] == "master" {
			long += end.Sub(n.at)
		}
	}
	return long
}
