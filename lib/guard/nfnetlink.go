package guard

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/nlmsg"
)

// nfnetlink is a NETLINK_NETFILTER socket. google/nftables knows neither chains with several links nor how to ask for one
// acknowledgement instead of one a message, so the messages are built here.
type nfnetlink struct {
	fd  int
	seq uint32
	in  []byte
}

// Constants of linux/netfilter/nf_tables.h and of nft(8) that x/sys/unix does not name.
const (
	nftaTableUserdata = 6
	nftaHookDevs      = 4
	nftaDeviceName    = 1
	nftTypeIPv4Addr   = 7
	nftTypeIPv6Addr   = 8
)

const genmsgLen = 4 // struct nfgenmsg

// A transaction is one sendmsg, and thousands of addresses are many times the usual buffer. It is a limit and takes no memory.
const sendBuffer = 32 << 20

func dial(groups uint32) (*nfnetlink, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("nfnetlink socket: %w", err)
	}
	err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups})
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("nfnetlink socket: %w", err)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, sendBuffer)
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5})
	return &nfnetlink{fd: fd, in: make([]byte, 64<<10)}, nil
}

// close may be called again: the number of the file may be another's by then.
func (c *nfnetlink) close() error {
	fd := c.fd
	if c.fd = -1; fd < 0 {
		return nil
	}
	return unix.Close(fd)
}

// batch is a transaction: the kernel carries out all of it or nothing.
type batch struct {
	b    []byte
	what []string // by sequence number, for errors
	last int      // where the last message starts
}

func newBatch() *batch {
	t := &batch{}
	t.message("begin", unix.NFNL_MSG_BATCH_BEGIN, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, nil)
	return t
}

func (t *batch) add(what string, typ, flags uint16, body func(b []byte) []byte) {
	t.message(what, unix.NFNL_SUBSYS_NFTABLES<<8|typ, flags, unix.NFPROTO_NETDEV, 0, body)
}

// end closes the transaction and asks for an acknowledgement of its last message. The kernel answers when all is committed.
func (t *batch) end() {
	flags := t.b[t.last+6:]
	binary.NativeEndian.PutUint16(flags, binary.NativeEndian.Uint16(flags)|unix.NLM_F_ACK)
	t.message("end", unix.NFNL_MSG_BATCH_END, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, nil)
}

func (t *batch) message(what string, typ, flags uint16, family uint8, resource uint16, body func(b []byte) []byte) {
	t.last = len(t.b)
	t.b = appendMessage(t.b, typ, flags, uint32(len(t.what)), family, resource, body)
	t.what = append(t.what, what)
}

func appendMessage(b []byte, typ, flags uint16, seq uint32, family uint8, resource uint16, body func(b []byte) []byte) []byte {
	return nlmsg.Append(b, typ, flags, seq, func(b []byte) []byte {
		b = append(b, family, unix.NFNETLINK_V0)
		b = binary.BigEndian.AppendUint16(b, resource)
		if body != nil {
			b = body(b)
		}
		return b
	})
}

// commit sends a transaction. The kernel has carried it out, or refused it, when sendmsg returns, and the answers are queued.
func (c *nfnetlink) commit(t *batch) error {
	if err := c.send(t.b); err != nil {
		return fmt.Errorf("nf_tables: %w", err)
	}
	acknowledged := false
	var refused error
	for {
		b, err := c.receive(unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EAGAIN):
			if refused == nil && !acknowledged {
				refused = errors.New("nf_tables: no answer")
			}
			return refused
		case err != nil:
			refused = errors.Join(refused, fmt.Errorf("nf_tables: %w", err))
			if !errors.Is(err, unix.ENOBUFS) {
				return refused
			}
		}
		for m := range nlmsg.Parse(b) {
			switch errno := m.Errno(); {
			case m.Type != unix.NLMSG_ERROR:
			case errno == 0:
				acknowledged = true
			case refused == nil: // what fails after the first mostly fails because of it
				refused = fmt.Errorf("nf_tables: %s: %w", t.name(m.Seq), errno)
			}
		}
	}
}

func (t *batch) name(seq uint32) string {
	if int(seq) < len(t.what) {
		return t.what[seq]
	}
	return "transaction"
}

var errChanging = errors.New("nf_tables: the ruleset changes faster than it can be read")

// dump asks for a list, again if the ruleset changed meanwhile, and hands over the attributes of each entry. reset comes before
// each attempt.
func (c *nfnetlink) dump(typ uint16, body func(b []byte) []byte, reset func(), entry func(attrs []byte)) error {
	for range 5 {
		reset()
		complete, err := c.dumpOnce(typ, body, entry)
		if err != nil {
			return fmt.Errorf("nf_tables: %w", err)
		}
		if complete {
			return nil
		}
	}
	return errChanging
}

func (c *nfnetlink) dumpOnce(typ uint16, body func(b []byte) []byte, entry func([]byte)) (complete bool, err error) {
	c.seq++
	if err := c.send(appendMessage(nil, unix.NFNL_SUBSYS_NFTABLES<<8|typ, unix.NLM_F_DUMP, c.seq, unix.NFPROTO_NETDEV, 0, body)); err != nil {
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
			switch {
			case m.Type == unix.NLMSG_DONE && m.Errno() == 0:
				return complete, nil
			case m.Type == unix.NLMSG_DONE || m.Type == unix.NLMSG_ERROR:
				return false, m.Errno()
			case len(m.Body) >= genmsgLen:
				entry(m.Body[genmsgLen:])
			}
		}
	}
}

func (c *nfnetlink) send(b []byte) error {
	for {
		err := unix.Sendto(c.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if err != unix.EINTR {
			return err
		}
	}
}

func (c *nfnetlink) receive(flags int) ([]byte, error) {
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

func appendUint32(b []byte, typ uint16, v uint32) []byte {
	return nlmsg.AppendAttr(b, typ, binary.BigEndian.AppendUint32(nil, v))
}
