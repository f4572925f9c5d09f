package lab

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Claim is what one node says of itself.
type Claim struct {
	Power   bool
	Address bool   // has the address, on some interface
	Status  string // the word in the status file
}

// Change is the moment when the claim of a node was seen to be another.
type Change struct {
	At   time.Time
	Node string
	Claim
}

// Watch looks every millisecond at what the nodes claim.
type Watch struct {
	addr netip.Addr
	stop chan struct{}
	done chan struct{}
	once sync.Once
	eyes []*eye

	mu      sync.Mutex
	changes []Change
	stall   time.Duration
	end     time.Time
}

// eye is kept on one node. What it holds open belongs to one boot.
type eye struct {
	node   *Node
	boot   *boot
	routes int // netlink socket in the node's network
	root   int // the node's files
	last   Claim
}

// Watch begins to watch who has the address, and what the status files say.
func (l *Lab) Watch(addr netip.Addr) *Watch {
	w := &Watch{addr: addr, stop: make(chan struct{}), done: make(chan struct{})}
	for _, n := range l.Nodes() {
		w.eyes = append(w.eyes, &eye{node: n})
	}
	w.look(true)
	l.onClose(func() { w.Stop() })
	go onThread(w.run)
	return w
}

func (w *Watch) run() error {
	defer close(w.done)
	favour()
	for due := time.Now(); ; {
		select {
		case <-w.stop:
			for _, e := range w.eyes {
				e.shut()
			}
			return nil
		default:
		}
		w.mu.Lock()
		w.stall = max(w.stall, time.Since(due))
		w.mu.Unlock()
		w.look(false)
		for due = due.Add(ProbeInterval); time.Until(due) <= 0; {
			due = due.Add(ProbeInterval)
		}
		wait := unix.NsecToTimespec(int64(time.Until(due)))
		unix.Nanosleep(&wait, nil)
	}
}

// Stall is the longest time that the watch itself was kept from looking: the host was busy, for the nodes as well.
func (w *Watch) Stall() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stall
}

// Excuse skips a test that is about to fail, if the host has stood still for longer than a down interval of the nodes: then a
// change of roles was right.
func (w *Watch) Excuse(t TB, down time.Duration) {
	t.Helper()
	if stall := w.Stall(); stall > down {
		t.Skipf("this host stood still for %v, which is longer than a down interval, %v", stall, down)
	}
}

func (w *Watch) look(first bool) {
	for _, e := range w.eyes {
		claim := e.claim(w.addr)
		if claim == e.last && !first {
			continue
		}
		e.last = claim
		w.mu.Lock()
		w.changes = append(w.changes, Change{time.Now(), e.node.Name, claim})
		w.mu.Unlock()
	}
}

func (e *eye) claim(addr netip.Addr) Claim {
	e.node.mu.RLock()
	defer e.node.mu.RUnlock()
	if e.node.boot != e.boot {
		e.shut()
		e.open()
	}
	if e.boot == nil {
		return Claim{}
	}
	claim := Claim{Power: true, Address: e.isLocal(addr)}
	file, err := unix.Openat(e.root, StatusPath[1:], unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		var text [64]byte
		size, _ := unix.Read(file, text[:])
		unix.Close(file)
		claim.Status = string(bytes.TrimSpace(text[:max(size, 0)]))
	}
	return claim
}

// isLocal asks for the route to addr, which costs the same however many addresses there are.
func (e *eye) isLocal(addr netip.Addr) bool {
	var buffer [4096]byte
	size := addr.BitLen() / 8
	family := byte(unix.AF_INET)
	if addr.Is6() {
		family = unix.AF_INET6
	}
	request := binary.NativeEndian.AppendUint32(buffer[:0], uint32(unix.SizeofNlMsghdr+unix.SizeofRtMsg+unix.SizeofRtAttr+size))
	request = binary.NativeEndian.AppendUint16(request, unix.RTM_GETROUTE)
	request = binary.NativeEndian.AppendUint16(request, unix.NLM_F_REQUEST)
	request = append(request, 0, 0, 0, 0, 0, 0, 0, 0)
	request = append(request, family, byte(addr.BitLen()), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	request = binary.NativeEndian.AppendUint16(request, uint16(unix.SizeofRtAttr+size))
	request = binary.NativeEndian.AppendUint16(request, unix.RTA_DST)
	request = append(request, addr.AsSlice()...)
	if unix.Send(e.routes, request, 0) != nil {
		return false
	}
	size, _, err := unix.Recvfrom(e.routes, buffer[:], 0)
	const routeType = unix.SizeofNlMsghdr + 7
	return err == nil && size > routeType && binary.NativeEndian.Uint16(buffer[4:]) == unix.RTM_NEWROUTE &&
		buffer[routeType] == unix.RTN_LOCAL
}

func (e *eye) open() {
	b := e.node.boot
	if b == nil {
		return
	}
	root, err := unix.Open(fmt.Sprintf("/proc/%d/root", b.pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	var routes int
	err = b.within(netNamespace, func() (err error) {
		if routes, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE); err != nil {
			return err
		}
		return unix.Connect(routes, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	})
	if err != nil {
		unix.Close(root)
		return
	}
	e.boot, e.root, e.routes = b, root, routes
}

func (e *eye) shut() {
	if e.boot != nil {
		unix.Close(e.root)
		unix.Close(e.routes)
	}
	e.boot = nil
}

// Changes lists what was seen, oldest first, beginning with the state at the start.
func (w *Watch) Changes() []Change {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.changes)
}

// Stop ends the watch and gives all changes.
func (w *Watch) Stop() []Change {
	w.once.Do(func() {
		close(w.stop)
		<-w.done
		w.mu.Lock()
		w.end = time.Now()
		w.mu.Unlock()
	})
	return w.Changes()
}

// Longest is the longest time, not counting what was before since, during which the claims of lb1 and lb2 were such.
func (w *Watch) Longest(since time.Time, such func(lb1, lb2 Claim) bool) time.Duration {
	return w.longest(since, func(claims []Claim) bool { return such(claims[0], claims[1]) })
}

// longest is Longest for the claims of all nodes.
func (w *Watch) longest(since time.Time, such func([]Claim) bool) time.Duration {
	changes := w.Changes()
	w.mu.Lock()
	end := w.end
	w.mu.Unlock()
	if end.IsZero() {
		end = time.Now()
	}
	claims := make([]Claim, len(w.eyes))
	var longest time.Duration
	var from time.Time // when it became such; zero while it is not
	for i, c := range changes {
		claims[slices.IndexFunc(w.eyes, func(e *eye) bool { return e.node.Name == c.Node })] = c.Claim
		if i < len(claims)-1 {
			continue // The other nodes' states at the start are still to come.
		}
		switch {
		case !such(claims):
			from = time.Time{}
			continue
		case from.IsZero():
			from = c.At
		}
		until := end
		if i+1 < len(changes) {
			until = changes[i+1].At
		}
		if from.Before(since) {
			from = since
		}
		longest = max(longest, until.Sub(from))
	}
	return longest
}

// TwoMasters is the longest time since then with two status files or more saying master.
func (w *Watch) TwoMasters(since time.Time) time.Duration {
	return w.longest(since, func(all []Claim) bool {
		return count(all, func(c Claim) bool { return c.Status == "master" }) > 1
	})
}

// TwoHolders is the longest time since then with the address on two nodes or more.
func (w *Watch) TwoHolders(since time.Time) time.Duration {
	return w.longest(since, func(all []Claim) bool { return count(all, holds) > 1 })
}

// NoHolder is the longest time since then with the address on no node.
func (w *Watch) NoHolder(since time.Time) time.Duration {
	return w.longest(since, func(all []Claim) bool { return count(all, holds) == 0 })
}

func holds(c Claim) bool { return c.Address }

func count(claims []Claim, such func(Claim) bool) (n int) {
	for _, c := range claims {
		if such(c) {
			n++
		}
	}
	return n
}

// Last is the time when a node's claim last became such, and whether it is such now.
func (w *Watch) Last(n *Node, such func(Claim) bool) (at time.Time, now bool) {
	for _, c := range w.Changes() {
		if c.Node != n.Name {
			continue
		}
		is := such(c.Claim)
		if is && !now {
			at = c.At
		}
		now = is
	}
	return at, now
}
