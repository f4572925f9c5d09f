package address

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/nlmsg"
)

// rtnl is a NETLINK_ROUTE socket that carries many requests in one system call, for which no library at hand is made.
type rtnl struct {
	fd  int
	seq uint32
	out []byte
	in  []byte
}

const (
	// Requests in one sendmsg. The kernel refuses more than SO_SNDBUF, which is 208 KiB unless somebody changed it.
	batchBytes = 128 << 10
	// Dumps come in datagrams of 32 KiB at most.
	receiveBytes = 64 << 10
)

func dial() (*rtnl, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("rtnetlink socket: %w", err)
	}
	// Without the two, the reasons of thousands of refusals do not fit the queue. The dump that follows finds the addresses anyway.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20)
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5})
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("rtnetlink socket: %w", err)
	}
	return &rtnl{fd: fd, in: make([]byte, receiveBytes)}, nil
}

func (c *rtnl) close() { unix.Close(c.fd) }

// request appends a message to c.out. body appends what follows the header.
func (c *rtnl) request(typ, flags uint16, body func(b []byte) []byte) {
	c.seq++
	c.out = nlmsg.Append(c.out, typ, flags, c.seq, body)
}

func (c *rtnl) send() error {
	defer func() { c.out = c.out[:0] }()
	for {
		err := unix.Sendto(c.fd, c.out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if err != unix.EINTR {
			return err
		}
	}
}

// batch sends n requests without waiting for an answer to each, and returns why the kernel refused one, by its number.
// It asks for no acknowledgements: the kernel works the requests off inside sendmsg and answers only those it refuses.
func (c *rtnl) batch(n int, typ, flags uint16, body func(b []byte, i int) []byte) (map[int]error, error) {
	first := c.seq + 1
	refused := map[int]error{}
	for i := range n {
		c.request(typ, flags, func(b []byte) []byte { return body(b, i) })
		if len(c.out) < batchBytes && i < n-1 {
			continue
		}
		if err := c.send(); err != nil {
			return refused, fmt.Errorf("rtnetlink: %w", err)
		}
		for {
			b, err := c.receive(unix.MSG_DONTWAIT)
			if err != nil {
				break // EAGAIN: all read. ENOBUFS: some reasons are lost.
			}
			for m := range nlmsg.Parse(b) {
				if errno := m.Errno(); errno != 0 {
					refused[int(m.Seq-first)] = errno
				}
			}
		}
	}
	return refused, nil
}

var errChanging = errors.New("rtnetlink: the list changes faster than it can be read")

// dump asks for a list, again if it changed while the kernel was writing it, and hands over each entry. reset comes before
// the first entry of every attempt. For a while after thousands of addresses of IPv6 have come, the kernel works on one after the
// other and takes each for a change, so the attempts are spread over half a second.
func (c *rtnl) dump(typ uint16, body func(b []byte) []byte, reset func(), entry func(body []byte)) error {
	for pause := time.Duration(0); pause < 300*time.Millisecond; pause = max(2*pause, time.Millisecond) {
		time.Sleep(pause)
		reset()
		complete, err := c.dumpOnce(typ, body, entry)
		if err != nil {
			return fmt.Errorf("rtnetlink: %w", err)
		}
		if complete {
			return nil
		}
	}
	return errChanging
}

func (c *rtnl) dumpOnce(typ uint16, body func(b []byte) []byte, entry func([]byte)) (complete bool, err error) {
	c.request(typ, unix.NLM_F_DUMP, body)
	if err := c.send(); err != nil {
		return false, err
	}
	complete = true
	for {
		b, err := c.receive(0)
		if err != nil {
			return false, err
		}
		for m := range nlmsg.Parse(b) {
			if m.Seq != c.seq {
				continue
			}
			if m.Flags&unix.NLM_F_DUMP_INTR != 0 {
				complete = false
			}
			switch m.Type {
			case unix.NLMSG_DONE:
				return complete, nil
			case unix.NLMSG_ERROR:
				return false, m.Errno()
			default:
				entry(m.Body)
			}
		}
	}
}

func (c *rtnl) receive(flags int) ([]byte, error) {
	for {
		n, _, err := unix.Recvfrom(c.fd, c.in, flags)
		if err == nil {
			return c.in[:n], nil
		}
		if err != unix.EINTR {
			return nil, err
		}
	}
}

func appendAddr(b []byte, typ uint16, ip netip.Addr) []byte {
	if ip.Is6() {
		v := ip.As16()
		return nlmsg.AppendAttr(b, typ, v[:])
	}
	v := ip.As4()
	return nlmsg.AppendAttr(b, typ, v[:])
}

func appendIfAddrmsg(b []byte, family byte, bits int, link int32) []byte {
	b = append(b, family, byte(bits), 0, unix.RT_SCOPE_UNIVERSE)
	return binary.NativeEndian.AppendUint32(b, uint32(link))
}

func familyOf(ip netip.Addr) byte {
	if ip.Is6() {
		return unix.AF_INET6
	}
	return unix.AF_INET
}
