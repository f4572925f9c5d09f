// Package transport carries VRRP messages: over multicast (224.0.0.18 or
// ff02::12, IP protocol 112), over unicast to the one peer, or over UDP where a
// cloud lets nothing else pass. A Conn is of one family. It knows sockets, not
// messages: what it delivers is neither parsed nor verified, but for the
// checksum of IP protocol 112 over IPv6, which is the kernel's.
//
// Reading is done by the caller, without blocking, so that a caller whose timer
// has expired can first see everything that arrived before the deadline. A
// goroutine only tells when there is something to read.
package transport

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/bootclock"
)

// Kind is how adverts travel.
type Kind uint8

const (
	Multicast Kind = iota // IP protocol 112 to the group
	Unicast               // IP protocol 112 to the peer
	UDP                   // UDP to the peer
)

// The multicast groups of VRRP (RFC 9568 sections 5.1.1.2 and 5.1.2.2).
var (
	Group  = netip.AddrFrom4([4]byte{224, 0, 0, 18})
	Group6 = netip.AddrFrom16([16]byte{0: 0xff, 1: 0x02, 15: 0x12})
)

const (
	protocolVRRP = 112
	ttl          = 255
	tos          = 0xc0 // internetwork control; also sets the queueing priority

	// maxPacket holds the longest advert (255 IPv6 addresses and a trailer)
	// with the longest IP header. What is longer is cut, and then refused.
	maxPacket = 60 + 8 + 255*16 + 28

	// receiveBuffer holds some thousand packets: a flood of garbage must not
	// push the peer's adverts out during the milliseconds until we run. A longer
	// queue would only be staler news.
	receiveBuffer = 1 << 20
)

// Config says where to send and what to listen for.
type Config struct {
	Kind      Kind
	Interface string
	Index     int        // of the interface
	Local     netip.Addr // the source of what is sent; link-local for Multicast over IPv6
	Peer      netip.Addr // Unicast and UDP; also where InUDP is set
	Port      uint16     // UDP
	VRID      uint8

	// Copied, if not nil, is called, now and then, when adverts arrive over
	// Multicast that claim to be from Local. Over IPv6 they are received.
	Copied func()
	// InUDP, if not nil, is called, now and then, when the peer advertises with CARP
	// in UDP instead of over Multicast. CARP is of IPv4.
	InUDP func()
}

// Packet is one message as it arrived. Payload is valid until the next Receive.
type Packet struct {
	Src, Dst netip.Addr
	TTL      uint8 // 255 where the transport does not tell (UDP)
	Payload  []byte
	Arrived  time.Duration // boot clock, from the kernel's time stamp
}

// Conn is an open transport. Send, Receive and Close belong to one goroutine.
type Conn struct {
	cfg     Config
	dst     netip.Addr
	to      unix.Sockaddr
	in, out *socket // the same one but for multicast
	notices []*os.File

	ready chan struct{}
	rearm chan struct{}
	done  chan struct{}
	once  sync.Once

	idle     bool // the queue was empty at emptied, and the watcher waits
	emptied  time.Duration
	hopLimit uint8      // of the last packet, if it was one of IPv6
	to6      netip.Addr // its destination
	buf      [maxPacket]byte
	oob      [128]byte
}

// socket is a descriptor for our own calls, which never block, and the file
// by which the runtime's poller knows it.
type socket struct {
	fd   int
	file *os.File
}

// Open binds the sockets. It fails while the interface or the local address
// does not exist.
func Open(cfg Config) (*Conn, error) {
	c := &Conn{cfg: cfg, dst: cfg.Peer, ready: make(chan struct{}), rearm: make(chan struct{}, 1), done: make(chan struct{})}
	var err error
	switch cfg.Kind {
	case Multicast:
		if c.dst = Group; c.v6() {
			c.dst = Group6
		}
		if c.in, err = c.openGroup(); err == nil {
			c.out, err = c.openRaw(deafFilter())
		}
		if err == nil && cfg.Copied != nil && !c.v6() {
			err = c.addNotice(copyFilter(cfg.Local.As4(), cfg.VRID), cfg.Copied)
		}
		if err == nil && cfg.InUDP != nil && !c.v6() {
			err = c.addNotice(carpInUDPFilter(cfg.Peer.As4(), cfg.VRID), cfg.InUDP)
		}
	case Unicast:
		c.in, err = c.openRaw(c.rawFilter())
		c.out = c.in
	case UDP:
		c.in, err = c.openUDP()
		c.out = c.in
	}
	if err != nil {
		c.closeSockets()
		return nil, fmt.Errorf("open the election's socket on %s: %w", cfg.Interface, err)
	}
	port := cfg.Port
	if cfg.Kind != UDP {
		port = 0 // for a raw socket of IPv6 it would be another protocol
	}
	c.to = c.sockaddr(c.dst, port)
	c.idle, c.emptied = true, bootclock.Now()
	go c.watch()
	if cfg.Kind != Multicast {
		c.introduce()
	}
	return c, nil
}

func (c *Conn) v6() bool { return c.cfg.Local.Is6() }

func (c *Conn) rawFilter() []bpf.Instruction {
	if c.v6() {
		return raw6Filter(c.cfg.VRID)
	}
	return rawFilter(c.cfg.VRID)
}

// openGroup makes the socket that hears the group on one interface and nothing else.
func (c *Conn) openGroup() (*socket, error) {
	return c.open(unix.SOCK_RAW, protocolVRRP, c.dst, 0, c.rawFilter(), func(fd int) error {
		// Without this a socket hears the groups that any process joined.
		if c.v6() {
			if err := setOptions(fd, unix.IPPROTO_IPV6, option{unix.IPV6_MULTICAST_ALL, 0}); err != nil {
				return err
			}
			return unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, unix.IPV6_ADD_MEMBERSHIP,
				&unix.IPv6Mreq{Multiaddr: Group6.As16(), Interface: uint32(c.cfg.Index)})
		}
		if err := setOptions(fd, unix.IPPROTO_IP, option{unix.IP_MULTICAST_ALL, 0}); err != nil {
			return err
		}
		return unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP,
			&unix.IPMreqn{Multiaddr: Group.As4(), Ifindex: int32(c.cfg.Index)})
	})
}

// openRaw makes the socket that sends from the local address and, for unicast,
// receives at it.
func (c *Conn) openRaw(filter []bpf.Instruction) (*socket, error) {
	return c.open(unix.SOCK_RAW, protocolVRRP, c.cfg.Local, 0, filter, func(fd int) error {
		if c.v6() {
			return setOptions(fd, unix.IPPROTO_IPV6, option{unix.IPV6_MULTICAST_IF, c.cfg.Index}, option{unix.IPV6_MULTICAST_HOPS, ttl},
				option{unix.IPV6_MULTICAST_LOOP, 0}, option{unix.IPV6_UNICAST_HOPS, ttl}, option{unix.IPV6_TCLASS, tos})
		}
		if err := unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_IF,
			&unix.IPMreqn{Address: c.cfg.Local.As4(), Ifindex: int32(c.cfg.Index)}); err != nil {
			return err
		}
		return setOptions(fd, unix.IPPROTO_IP, option{unix.IP_MULTICAST_TTL, ttl}, option{unix.IP_MULTICAST_LOOP, 0},
			option{unix.IP_TTL, ttl}, option{unix.IP_TOS, tos})
	})
}

// openUDP makes an unconnected socket: a connected one would report the peer's
// closed port as an error of ours.
func (c *Conn) openUDP() (*socket, error) {
	return c.open(unix.SOCK_DGRAM, unix.IPPROTO_UDP, c.cfg.Local, c.cfg.Port, udpFilter(c.cfg.VRID), func(fd int) error {
		if c.v6() {
			return setOptions(fd, unix.IPPROTO_IPV6, option{unix.IPV6_TCLASS, tos})
		}
		return setOptions(fd, unix.IPPROTO_IP, option{unix.IP_TOS, tos})
	})
}

type option struct{ name, value int }

func setOptions(fd, level int, list ...option) error {
	for _, o := range list {
		if err := unix.SetsockoptInt(fd, level, o.name, o.value); err != nil {
			return err
		}
	}
	return nil
}

// sockaddr is an address in the kernel's form. One that is link-local, of a host
// or a group, exists once on each link.
func (c *Conn) sockaddr(addr netip.Addr, port uint16) unix.Sockaddr {
	if !c.v6() {
		return &unix.SockaddrInet4{Addr: addr.As4(), Port: int(port)}
	}
	sa := &unix.SockaddrInet6{Addr: addr.As16(), Port: int(port)}
	if addr.IsLinkLocalUnicast() || addr.IsLinkLocalMulticast() {
		sa.ZoneId = uint32(c.cfg.Index)
	}
	return sa
}

func (c *Conn) open(typ, proto int, bind netip.Addr, port uint16, filter []bpf.Instruction, more func(fd int) error) (*socket, error) {
	family := unix.AF_INET
	if c.v6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, typ|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	err = c.prepare(fd, filter, more)
	if err == nil && c.v6() && typ == unix.SOCK_RAW {
		// What the header of IPv4 tells comes beside the message here, and the
		// checksum in it is the kernel's, to write and to check.
		err = os.NewSyscallError("setsockopt", setOptions(fd, unix.IPPROTO_IPV6, option{unix.IPV6_RECVHOPLIMIT, 1},
			option{unix.IPV6_RECVPKTINFO, 1}, option{unix.IPV6_CHECKSUM, checksumOffset}))
	}
	if err == nil {
		err = os.NewSyscallError("bind "+netip.AddrPortFrom(bind, port).String(), unix.Bind(fd, c.sockaddr(bind, port)))
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &socket{fd, os.NewFile(uintptr(fd), "election")}, nil
}

func (c *Conn) prepare(fd int, filter []bpf.Instruction, more func(fd int) error) error {
	// The filter stands before the socket is bound, so that nothing foreign is queued.
	if err := setFilter(fd, filter); err != nil {
		return os.NewSyscallError("setsockopt SO_ATTACH_FILTER", err)
	}
	if err := unix.BindToDevice(fd, c.cfg.Interface); err != nil {
		return os.NewSyscallError("setsockopt SO_BINDTODEVICE", err)
	}
	// The usual limit of a system (net.core.rmem_max) is lower.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer); err != nil {
		return os.NewSyscallError("setsockopt SO_RCVBUFFORCE", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1); err != nil {
		return os.NewSyscallError("setsockopt SO_TIMESTAMPNS", err)
	}
	return os.NewSyscallError("setsockopt", more(fd))
}

func setFilter(fd int, program []bpf.Instruction) error {
	raw, err := bpf.Assemble(program)
	if err != nil {
		return err
	}
	filter := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		filter[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
}

// Source is where adverts come from, and Destination where they go: both are
// part of the checksum, and the source of the signature.
func (c *Conn) Source() netip.Addr { return c.cfg.Local }

// Destination is the group or the peer.
func (c *Conn) Destination() netip.Addr { return c.dst }

// Ready delivers a value when there is something to Receive after an empty queue.
func (c *Conn) Ready() <-chan struct{} { return c.ready }

func (c *Conn) watch() {
	raw, err := c.in.file.SyscallConn()
	if err != nil {
		return
	}
	poll := []unix.PollFd{{Events: unix.POLLIN}}
	for {
		// The runtime's poller reports edges: what is already there is asked for.
		err := raw.Read(func(fd uintptr) bool {
			poll[0].Fd = int32(fd)
			n, err := unix.Poll(poll, 0)
			return n > 0 && err == nil
		})
		if err != nil {
			return
		}
		select {
		case c.ready <- struct{}{}:
		case <-c.done:
			return
		}
		select {
		case <-c.rearm:
		case <-c.done:
			return
		}
	}
}

// Receive returns the next packet that waits, or false when there is none.
// An error is the socket's (the network is down, say), not the sender's.
func (c *Conn) Receive() (Packet, bool, error) {
	var (
		n, oobn int
		from    unix.Sockaddr
		err     error
	)
	for {
		n, oobn, _, from, err = unix.Recvmsg(c.in.fd, c.buf[:], c.oob[:], unix.MSG_DONTWAIT)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	now := bootclock.Now()
	if err != nil {
		c.emptied = now
		if !c.idle {
			c.idle = true
			c.rearm <- struct{}{}
		}
		if errors.Is(err, unix.EAGAIN) {
			return Packet{}, false, nil
		}
		return Packet{}, false, os.NewSyscallError("recvmsg", err)
	}
	p := Packet{TTL: ttl, Dst: c.cfg.Local, Payload: c.buf[:n], Arrived: now - c.beside(c.oob[:oobn], now)}
	switch sa := from.(type) {
	case *unix.SockaddrInet4:
		p.Src = netip.AddrFrom4(sa.Addr)
		if c.cfg.Kind != UDP {
			p.TTL, p.Dst, p.Payload = splitHeader(c.buf[:n])
		}
	case *unix.SockaddrInet6:
		p.Src = netip.AddrFrom16(sa.Addr)
		if c.cfg.Kind != UDP {
			p.TTL, p.Dst = c.hopLimit, c.to6
		}
	}
	return p, true, nil
}

// Woken must be called by who took a value from Ready: the watcher then waits
// until a Receive has found the queue empty or failed.
func (c *Conn) Woken() { c.idle = false }

// splitHeader takes the IPv4 header, which a raw socket delivers, off a packet.
func splitHeader(b []byte) (ttl uint8, dst netip.Addr, payload []byte) {
	if len(b) < 20 {
		return 0, netip.Addr{}, nil
	}
	header := int(b[0]&0x0f) * 4
	if header < 20 || header > len(b) {
		return 0, netip.Addr{}, nil
	}
	return b[8], netip.AddrFrom4([4]byte(b[16:20])), b[header:]
}

// beside reads what came beside a packet. It returns how long that has waited, by
// the kernel's time stamp: at most since the queue was last seen empty.
func (c *Conn) beside(oob []byte, now time.Duration) (age time.Duration) {
	c.hopLimit, c.to6 = 0, netip.Addr{}
	for len(oob) > 0 {
		header, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			break
		}
		switch {
		case header.Level == unix.SOL_SOCKET && header.Type == unix.SO_TIMESTAMPNS && len(data) >= 16:
			stamp := unix.Timespec{Sec: int64(binary.NativeEndian.Uint64(data)), Nsec: int64(binary.NativeEndian.Uint64(data[8:]))}
			age = max(0, min(bootclock.Age(stamp), now-c.emptied))
		case header.Level == unix.IPPROTO_IPV6 && header.Type == unix.IPV6_HOPLIMIT && len(data) >= 4:
			c.hopLimit = uint8(binary.NativeEndian.Uint32(data))
		case header.Level == unix.IPPROTO_IPV6 && header.Type == unix.IPV6_PKTINFO && len(data) >= 16:
			c.to6 = netip.AddrFrom16([16]byte(data))
		}
		oob = rest
	}
	return age
}

// Send sends one message to the group or the peer.
func (c *Conn) Send(message []byte) error {
	for {
		err := unix.Sendto(c.out.fd, message, unix.MSG_DONTWAIT, c.to)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ECONNREFUSED):
			return nil // the peer's daemon is down, which is for the election to find out
		default:
			return os.NewSyscallError("sendto "+c.dst.String(), err)
		}
	}
}

// Close closes the sockets and ends the watcher.
func (c *Conn) Close() error {
	c.once.Do(func() { close(c.done) })
	return c.closeSockets()
}

func (c *Conn) closeSockets() error {
	var err error
	for _, f := range c.notices {
		err = errors.Join(err, f.Close())
	}
	for _, s := range []*socket{c.in, c.out} {
		if s == nil {
			continue
		}
		if cerr := s.file.Close(); cerr != nil && !errors.Is(cerr, os.ErrClosed) {
			err = errors.Join(err, cerr)
		}
	}
	return err
}
