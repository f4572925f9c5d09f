package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ProbeInterval is the time between two attempts of a probe.
const ProbeInterval = time.Millisecond

// shortestGap is what goes into a report's list: a single late answer on a busy host does not.
const shortestGap = 3 * ProbeInterval

// Probe asks something of an address every [ProbeInterval], the way a client would: the machine's own neighbour table
// decides where to, and learns as ever.
type Probe struct {
	stop chan struct{}
	done chan struct{}
	once sync.Once

	mu      sync.Mutex
	report  Report
	pending []time.Time // attempts since the last answer
}

// Report is what a probe has seen.
type Report struct {
	Start, End     time.Time // End is the time of the report
	Sent, Answered int
	LastAnswer     time.Time
	// Gaps are the times without an answer, of 3 ms and more, in order.
	Gaps []Gap
	// Turns tell who answered (only a probe of the service knows).
	Turns []Turn
	// Stall is the longest time that the probe itself was kept from asking: the host was busy. A gap counts only if
	// something was asked meanwhile, but its length is no more exact than this.
	Stall time.Duration
	// Err ended the probe early.
	Err error

	longest Gap
}

// Gap is a time without an answer, from the last answer before it to the first after it.
type Gap struct {
	From, To time.Time
	Lost     int  // attempts in between that were not answered, or not before To
	Open     bool // no answer came until the report
}

// Length of the gap.
func (g Gap) Length() time.Duration { return g.To.Sub(g.From) }

func (g Gap) String() string {
	text := fmt.Sprintf("%.1f ms, %d lost", float64(g.Length())/float64(time.Millisecond), g.Lost)
	if g.Open {
		text += ", not over"
	}
	return text
}

// Turn is a time in which one machine gave all answers.
type Turn struct {
	Name     string
	From, To time.Time // of its first and last answer
	Answers  int
}

// Longest is the longest gap, also one below what Gaps lists; zero when every attempt was answered at once.
func (r Report) Longest() Gap { return r.longest }

// LongestSince is the longest gap that was not over at the given time.
func (r Report) LongestSince(t time.Time) Gap {
	var longest Gap
	for _, g := range r.Gaps {
		if g.To.After(t) && g.Length() > longest.Length() {
			longest = g
		}
	}
	return longest
}

func newProbe() *Probe {
	return &Probe{stop: make(chan struct{}), done: make(chan struct{}), report: Report{Start: time.Now()}}
}

// launch runs loop on a thread in the network of the machine until Stop.
func (p *Probe) launch(n *Node, loop func() error) error {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.boot == nil {
		return fmt.Errorf("%s: %w", n.Name, ErrNoPower)
	}
	entered := make(chan struct{})
	go func() {
		defer close(p.done)
		err := n.boot.within(netNamespace, func() error {
			close(entered)
			favour()
			return loop()
		})
		p.mu.Lock()
		p.report.Err = err
		p.mu.Unlock()
	}()
	select {
	case <-entered:
	case <-p.done:
		return p.report.Err
	}
	n.lab.onClose(func() { p.Stop() })
	return nil
}

// favour lets the calling thread, which must be one of onThread, run before others: the host has two processors,
// perhaps, and they are busy. (With automatic groups, nice alone would favour it only among the threads of its session.)
func favour() {
	realTime := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1, Flags: unix.SCHED_FLAG_RESET_ON_FORK}
	if unix.SchedSetAttr(0, &realTime, 0) != nil {
		unix.Setpriority(unix.PRIO_PROCESS, 0, -15)
	}
	unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
}

// Stop ends the probe. Later calls give the same report.
func (p *Probe) Stop() Report {
	p.once.Do(func() {
		close(p.stop)
		<-p.done
		p.mu.Lock()
		defer p.mu.Unlock()
		p.report = p.snapshot()
		p.pending = nil
	})
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.report.clone()
}

// Report is what the probe has seen so far.
func (p *Probe) Report() Report {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.report.End.IsZero() {
		return p.report.clone()
	}
	return p.snapshot()
}

// Answering says whether the latest attempts were answered.
func (p *Probe) Answering() bool { return p.AnsweredAfter(time.Now().Add(-20 * ProbeInterval)) }

// AnsweredAfter says whether an answer has come since.
func (p *Probe) AnsweredAfter(t time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.report.LastAnswer.After(t)
}

func (r Report) clone() Report {
	r.Gaps, r.Turns = slices.Clone(r.Gaps), slices.Clone(r.Turns)
	return r
}

func (p *Probe) snapshot() Report {
	r := p.report.clone()
	r.End = time.Now()
	// The latest attempt may still be answered.
	if lost := len(p.pending) - 1; lost > 0 {
		r.addGap(Gap{From: p.lastSign(), To: r.End, Lost: lost, Open: true})
	}
	return r
}

func (r *Report) addGap(g Gap) {
	if g.Length() >= shortestGap {
		r.Gaps = append(r.Gaps, g)
	}
	if g.Length() > r.longest.Length() {
		r.longest = g
	}
}

func (p *Probe) lastSign() time.Time {
	if p.report.LastAnswer.IsZero() {
		return p.report.Start
	}
	return p.report.LastAnswer
}

// asked notes an attempt that was due at a certain time.
func (p *Probe) asked(due time.Time) {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.report.Sent++
	p.report.Stall = max(p.report.Stall, now.Sub(due))
	p.pending = append(p.pending, now)
}

// answered notes an answer. Whether it was to the last attempt or to an older one that had waited for the neighbour
// table does not matter: there was silence until now.
func (p *Probe) answered(at time.Time, name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	asked := 0
	for asked < len(p.pending) && !p.pending[asked].After(at) {
		asked++
	}
	if asked > 1 {
		p.report.addGap(Gap{From: p.lastSign(), To: at, Lost: asked - 1})
	}
	p.pending = append(p.pending[:0], p.pending[asked:]...)
	p.report.Answered++
	p.report.LastAnswer = at
	if name == "" {
		return
	}
	if last := len(p.report.Turns) - 1; last >= 0 && p.report.Turns[last].Name == name {
		p.report.Turns[last].To = at
		p.report.Turns[last].Answers++
		return
	}
	p.report.Turns = append(p.report.Turns, Turn{name, at, at, 1})
}

// pace calls ask at each interval, and look whenever fd has something to read: after a stall before it asks again, so
// that an answer that has waited for us is not taken for one that was late.
func (p *Probe) pace(fd int, ask func() error, look func() error) error {
	for due := time.Now(); ; {
		select {
		case <-p.stop:
			return nil
		default:
		}
		timeout := unix.NsecToTimespec(int64(max(0, time.Until(due))))
		ready, err := unix.Ppoll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, &timeout, nil)
		if err != nil && err != unix.EINTR {
			return err
		}
		if ready > 0 {
			if err := look(); err != nil {
				return err
			}
		}
		if time.Until(due) > 0 {
			continue
		}
		p.asked(due)
		if err := ask(); err != nil {
			return err
		}
		// What was due during a stall is left out: asking in bursts would tell nothing.
		for time.Until(due) <= 0 {
			due = due.Add(ProbeInterval)
		}
	}
}

// ProbeAddress sends an ICMP echo request from the machine every millisecond. Answers are timed by the kernel.
func (n *Node) ProbeAddress(addr netip.Addr) (*Probe, error) {
	p := newProbe()
	var fd int
	err := n.within(netNamespace, func() (err error) {
		fd, err = echoSocket(addr.Is6())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("probe of %s: %w", addr, err)
	}
	var to unix.Sockaddr
	request, isReply := echoRequest6, isEchoReply6
	if addr.Is6() {
		to = &unix.SockaddrInet6{Addr: addr.As16()}
	} else {
		to, request, isReply = &unix.SockaddrInet4{Addr: addr.As4()}, echoRequest, isEchoReply
	}
	id := uint16(rand.Uint32())
	sequence := uint16(0)
	packet, control := make([]byte, 1500), make([]byte, 128)
	ask := func() error {
		sequence++
		// While the neighbour is unknown this fails in many ways, all of which are silence to a client.
		unix.Sendto(fd, request(id, sequence), 0, to)
		return nil
	}
	look := func() error {
		for {
			size, used, _, _, err := unix.Recvmsg(fd, packet, control, unix.MSG_DONTWAIT)
			if err != nil {
				return nil // Nothing more; or the news of a request that found no neighbour.
			}
			if isReply(packet[:size], id) {
				p.answered(arrival(control[:used]), "")
			}
		}
	}
	err = p.launch(n, func() error {
		defer unix.Close(fd)
		return p.pace(fd, ask, look)
	})
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("probe of %s: %w", addr, err)
	}
	return p, nil
}

func echoSocket(v6 bool) (int, error) {
	if v6 {
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
		if err == nil {
			onlyEchoReply := unix.ICMPv6Filter{Data: [8]uint32{^uint32(0), ^uint32(0), ^uint32(0), ^uint32(0), ^uint32(1 << (echoReply6 % 32)), ^uint32(0), ^uint32(0), ^uint32(0)}}
			err = errors.Join(unix.SetsockoptICMPv6Filter(fd, unix.IPPROTO_ICMPV6, unix.ICMPV6_FILTER, &onlyEchoReply), stamp(fd))
			if err != nil {
				unix.Close(fd)
			}
		}
		return fd, err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
	if err != nil {
		return -1, err
	}
	const icmpFilter, onlyEchoReply = 1, ^(1 << 0)
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_RAW, icmpFilter, onlyEchoReply),
		stamp(fd))
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// stamp has the kernel time what arrives.
func stamp(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1) }

func echoRequest(id, sequence uint16) []byte {
	const echo = 8
	b := make([]byte, 0, 16)
	b = append(b, echo, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, id)
	b = binary.BigEndian.AppendUint16(b, sequence)
	b = append(b, "skd-lab."...)
	binary.BigEndian.PutUint16(b[2:], internetChecksum(b))
	return b
}

// Types of ICMPv6, RFC 4443 §4.
const (
	echo6      = 128
	echoReply6 = 129
)

// echoRequest6 goes without a checksum, which is the kernel's to write.
func echoRequest6(id, sequence uint16) []byte {
	b := binary.BigEndian.AppendUint16([]byte{echo6, 0, 0, 0}, id)
	return append(binary.BigEndian.AppendUint16(b, sequence), "skd-lab."...)
}

// isEchoReply6 looks at a packet without its IPv6 header, which the kernel keeps.
func isEchoReply6(packet []byte, id uint16) bool {
	return len(packet) >= 8 && packet[0] == echoReply6 && binary.BigEndian.Uint16(packet[4:]) == id
}

func isEchoReply(packet []byte, id uint16) bool {
	if len(packet) < 20 {
		return false
	}
	message := packet[min(len(packet), int(packet[0]&0xf)*4):]
	return len(message) >= 8 && message[0] == 0 && binary.BigEndian.Uint16(message[4:]) == id
}

// internetChecksum is that of RFC 1071.
func internetChecksum(b []byte) uint16 {
	sum := uint32(0)
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// arrival is the kernel's time stamp of a packet, or now, when it has none yet.
func arrival(control []byte) time.Time {
	messages, err := unix.ParseSocketControlMessage(control)
	if err == nil {
		for _, m := range messages {
			if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SO_TIMESTAMPNS && len(m.Data) >= 16 {
				return time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:])))
			}
		}
	}
	return time.Now()
}

// patience is how long an attempt to reach the service may last. Once the service is back, a younger one succeeds.
const patience = 100 * time.Millisecond

// ProbeService opens a TCP connection from the machine every millisecond, and reads who answers. Answers are timed by
// the kernel.
func (n *Node) ProbeService(addr netip.AddrPort) (*Probe, error) {
	p := newProbe()
	to := &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}
	err := p.launch(n, func() error {
		poll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
		if err != nil {
			return err
		}
		defer unix.Close(poll)
		// The kernel times packets while somebody wants that, and takes a while to begin with it.
		stamped, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(stamped)
		if err := stamp(stamped); err != nil {
			return err
		}
		open := attempts{poll: poll, since: map[int]time.Time{}}
		defer open.closeUntil(time.Now().Add(time.Hour))
		ask := func() error {
			open.closeUntil(time.Now().Add(-patience))
			return open.connect(to)
		}
		look := func() error {
			return open.read(p.answered)
		}
		return p.pace(poll, ask, look)
	})
	if err != nil {
		return nil, fmt.Errorf("probe of %s: %w", addr, err)
	}
	return p, nil
}

// attempts are connections that were begun and not answered.
type attempts struct {
	poll  int
	since map[int]time.Time
	order []attempt
}

type attempt struct {
	fd    int
	since time.Time
}

func (a *attempts) connect(to unix.Sockaddr) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	// Closing is a reset, so that no port stays taken.
	unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	stamp(fd)
	if err := unix.Connect(fd, to); err != nil && err != unix.EINPROGRESS {
		unix.Close(fd)
		return nil
	}
	if err := unix.EpollCtl(a.poll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}); err != nil {
		unix.Close(fd)
		return err
	}
	now := time.Now()
	a.since[fd] = now
	a.order = append(a.order, attempt{fd, now})
	return nil
}

func (a *attempts) read(answered func(at time.Time, name string)) error {
	var events [64]unix.EpollEvent
	var name, control [128]byte
	count, err := unix.EpollWait(a.poll, events[:], 0)
	if err != nil && err != unix.EINTR {
		return err
	}
	type answer struct {
		at   time.Time
		name string
	}
	var answers []answer
	for _, event := range events[:max(count, 0)] {
		size, used, _, _, err := unix.Recvmsg(int(event.Fd), name[:], control[:], 0)
		if err == unix.EAGAIN {
			continue
		}
		if size > 0 {
			answers = append(answers, answer{arrival(control[:used]), string(name[:size])})
		}
		a.close(int(event.Fd))
	}
	slices.SortFunc(answers, func(a, b answer) int { return a.at.Compare(b.at) })
	for _, a := range answers {
		answered(a.at, a.name)
	}
	return nil
}

func (a *attempts) close(fd int) {
	// A process that is just being forked may have the connection too, and epoll would go on to report it, by a number
	// that is somebody else's by then.
	unix.EpollCtl(a.poll, unix.EPOLL_CTL_DEL, fd, nil)
	unix.Close(fd)
	delete(a.since, fd)
}

func (a *attempts) closeUntil(limit time.Time) {
	for len(a.order) > 0 && a.order[0].since.Before(limit) {
		// The number may belong to a younger attempt by now.
		if first := a.order[0]; a.since[first.fd] == first.since {
			a.close(first.fd)
		}
		a.order = a.order[1:]
	}
}
