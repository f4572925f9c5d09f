package announce

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Target is an address to announce, and where.
type Target struct {
	Link   int              // index
	MAC    net.HardwareAddr // of the link
	Addr   netip.Addr
	Router bool // the link forwards IPv6, which an advertisement of an IPv6 address has to say
}

// patience is how long a burst waits on one link, all in all, for a full queue to drain. A thousand addresses take 10 ms at
// 100 Mbit/s: a link that is full for a second leads nowhere, and the schedule repeats the burst.
const patience = time.Second

// Send sends one burst: a gratuitous ARP request or a neighbour advertisement for every target, then an ARP reply for every one of
// IPv4. It returns for how many all have left. The links are served side by side, so that one that fails or is slow does not hold up the others; err joins all
// failures. A full queue is waited for, up to a second a link.
//
// stop is asked before each frame, from several goroutines, and ends the burst when it says true. That is no error.
//
// Send works in the network namespace of the calling thread.
func Send(targets []Target, stop func() bool) (sent int, err error) {
	var failures []error
	byLink := map[int]*burst{}
	var bursts []*burst
	for _, t := range targets {
		if t.Addr = t.Addr.Unmap(); !t.Addr.IsValid() || len(t.MAC) != 6 {
			failures = append(failures, fmt.Errorf("announce %s from %q on %s: want an address and an Ethernet link", t.Addr, t.MAC, name(t.Link)))
			continue
		}
		b := byLink[t.Link]
		if b == nil {
			b = &burst{link: t.Link, patience: patience}
			b.fd, b.err = open(t.Link)
			byLink[t.Link] = b
			bursts = append(bursts, b)
		}
		b.targets = append(b.targets, t)
	}

	var links sync.WaitGroup
	for _, b := range bursts {
		if b.err == nil {
			links.Go(func() { b.run(stop) })
		}
	}
	links.Wait()

	for _, b := range bursts {
		sent += b.sent
		if b.err != nil {
			failures = append(failures, fmt.Errorf("announce on %s: %w", name(b.link), b.err))
		}
	}
	return sent, errors.Join(failures...)
}

func open(link int) (int, error) {
	// Protocol 0: nothing is ever received.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("packet socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: link}); err != nil {
		closeLater(fd)
		return -1, err
	}
	// Before the bulk in queueing disciplines that know priorities. Without it announcing works as well.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PRIORITY, prioControl)
	return fd, nil
}

const prioControl = 7 // TC_PRIO_CONTROL of linux/pkt_sched.h

// closeLater closes a packet socket without making the caller wait: Linux takes an RCU grace period for it, 10 to 20 ms.
func closeLater(fd int) { go unix.Close(fd) }

func name(link int) string {
	if l, err := net.InterfaceByIndex(link); err == nil {
		return l.Name
	}
	return fmt.Sprintf("link %d", link)
}

// burst is what is sent on one link.
type burst struct {
	link     int
	fd       int
	targets  []Target
	patience time.Duration
	sent     int
	err      error
}

func (b *burst) run(stop func() bool) {
	defer closeLater(b.fd)
	frame := make([]byte, 0, 96)
	// All requests before all replies: the last address is announced first after half the time.
	for _, t := range b.targets {
		if t.Addr.Is4() {
			frame = AppendGARPRequest(frame[:0], t.MAC, t.Addr)
		} else {
			frame = AppendNA(frame[:0], t.MAC, t.Addr, t.Router)
		}
		if !b.transmit(frame, stop) {
			return
		}
	}
	for _, t := range b.targets {
		if t.Addr.Is4() && !b.transmit(AppendGARPReply(frame[:0], t.MAC, t.Addr), stop) {
			return
		}
		b.sent++
	}
}

// transmit reports whether the kernel took the frame.
func (b *burst) transmit(frame []byte, stop func() bool) bool {
	for !stop() {
		err := unix.Send(b.fd, frame, unix.MSG_DONTWAIT)
		switch {
		case err == nil:
			return true
		case err == unix.EINTR:
		case (err == unix.EAGAIN || err == unix.ENOBUFS) && b.patience > 0:
			b.wait(err)
		default:
			b.err = err
			return false
		}
	}
	return false
}

// wait waits until sending may work again, some milliseconds at most.
func (b *burst) wait(err error) {
	start := time.Now()
	if err == unix.EAGAIN { // the socket's own share of the queue is full, and it says when it is not
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(b.fd), Events: unix.POLLOUT}}, 5)
	} else {
		time.Sleep(time.Millisecond)
	}
	b.patience -= max(time.Since(start), time.Microsecond)
}
