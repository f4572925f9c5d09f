package lab

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Kind selects frames for a capture; kinds are added with |.
type Kind uint

// Kinds of frames. All includes what has no kind of its own.
const (
	ARP Kind = 1 << iota
	VRRP
	ICMP
	UDP
	TCP
	NDP // ICMPv6 of any type
	All
)

// Direction is seen from the machines: what they send, or what the switch delivers to them.
type Direction int

// Directions. An isolated machine's frames still count as sent; they are not delivered to anybody.
const (
	Sent Direction = iota
	Delivered
)

// Packet is one frame on the cable of a machine.
type Packet struct {
	Time  time.Time // the kernel's, when the frame passed the port
	Node  string    // whose cable
	Link  int
	Frame []byte // Ethernet
}

// Capture records frames at the ports of the switch.
type Capture struct {
	lab    *Lab
	node   *Node
	socket *os.File
	raw    syscall.RawConn
	done   chan struct{}
	once   sync.Once

	frame   [1 << 16]byte
	control [128]byte

	mu      sync.Mutex
	packets []Packet
	dropped int
}

// Capture records frames of these kinds that the machine sends, or that are delivered to it; of every machine, if node
// is nil. It has begun when this returns.
func (l *Lab) Capture(node *Node, direction Direction, kinds Kind) (*Capture, error) {
	var fd int
	err := l.Switch.within(netNamespace, func() (err error) {
		fd, err = captureSocket(direction, kinds)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("capture: %w", err)
	}
	c := &Capture{lab: l, node: node, socket: os.NewFile(uintptr(fd), "capture"), done: make(chan struct{})}
	if c.raw, err = c.socket.SyscallConn(); err != nil {
		return nil, err
	}
	l.onClose(func() { c.Stop() })
	go func() {
		defer close(c.done)
		c.raw.Read(func(fd uintptr) bool {
			c.record(int(fd))
			return false
		})
	}()
	return c, nil
}

// record takes what the socket has at the moment.
func (c *Capture) record(fd int) {
	for {
		size, used, _, from, err := unix.Recvmsg(fd, c.frame[:], c.control[:], 0)
		if err == unix.EAGAIN {
			return
		}
		address, ok := from.(*unix.SockaddrLinklayer)
		if err != nil || !ok {
			continue // A port that goes down says so, once.
		}
		c.lab.mu.Lock()
		var at cable
		if known := c.lab.cables[address.Ifindex]; known != nil {
			at = *known
		}
		c.lab.mu.Unlock()
		stamp := arrival(c.control[:used])
		if at.node == nil || c.node != nil && at.node != c.node || !at.off.IsZero() && stamp.After(at.off) {
			continue
		}
		packet := Packet{stamp, at.node.Name, at.link, bytes.Clone(c.frame[:size])}
		c.mu.Lock()
		c.packets = append(c.packets, packet)
		c.mu.Unlock()
	}
}

func captureSocket(direction Direction, kinds Kind) (int, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	filter, err := assemble(direction, kinds)
	if err == nil {
		program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
		err = errors.Join(
			unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &program),
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20),
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
			unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_ALL)}))
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func networkOrder(v uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return binary.NativeEndian.Uint16(b[:])
}

// protocols by kind.
var protocols = map[Kind]uint32{VRRP: 112, ICMP: unix.IPPROTO_ICMP, UDP: unix.IPPROTO_UDP, TCP: unix.IPPROTO_TCP, NDP: unix.IPPROTO_ICMPV6}

// assemble makes the kernel's filter, so that a probe's thousands of frames do not have to be looked at here.
func assemble(direction Direction, kinds Kind) ([]unix.SockFilter, error) {
	const etherType, ipProtocol, nextHeader = 12, 14 + 9, 14 + 6
	outgoing := bpf.JumpTest(bpf.JumpEqual)
	if direction == Sent {
		outgoing = bpf.JumpNotEqual // The machines' sending is the switch's receiving.
	}
	accept, refuse := bpf.RetConstant{Val: 1 << 16}, bpf.RetConstant{Val: 0}
	equal := func(value uint32) []bpf.Instruction {
		return []bpf.Instruction{bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: value, SkipTrue: 1}, accept}
	}
	program := []bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtType},
		bpf.JumpIf{Cond: outgoing, Val: unix.PACKET_OUTGOING, SkipTrue: 1},
		refuse,
	}
	if kinds&All != 0 {
		program = append(program, accept)
	}
	program = append(program, bpf.LoadAbsolute{Off: etherType, Size: 2})
	if kinds&ARP != 0 {
		program = append(program, equal(unix.ETH_P_ARP)...)
	}
	program = append(program,
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.ETH_P_IP, SkipTrue: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.ETH_P_IPV6, SkipTrue: 3},
		refuse,
		bpf.LoadAbsolute{Off: ipProtocol, Size: 1},
		bpf.Jump{Skip: 1},
		bpf.LoadAbsolute{Off: nextHeader, Size: 1})
	for kind, protocol := range protocols {
		if kinds&kind != 0 {
			program = append(program, equal(protocol)...)
		}
	}
	raw, err := bpf.Assemble(append(program, refuse))
	if err != nil {
		return nil, err
	}
	filter := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		filter[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	return filter, nil
}

// Packets is what was recorded so far, in order of time.
func (c *Capture) Packets() []Packet {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.packets)
}

// Select gives the packets so far that are such.
func (c *Capture) Select(such func(Packet) bool) []Packet {
	return slices.DeleteFunc(c.Packets(), func(p Packet) bool { return !such(p) })
}

// Stop ends the recording and gives everything. The packets are incomplete if the error is not nil.
func (c *Capture) Stop() ([]Packet, error) {
	c.once.Do(func() {
		c.socket.SetReadDeadline(time.Now())
		<-c.done
		c.raw.Control(func(fd uintptr) {
			c.record(int(fd))
			if stats, err := unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
				c.dropped = int(stats.Drops)
			}
		})
		c.socket.Close()
	})
	if c.dropped > 0 {
		return c.Packets(), fmt.Errorf("capture: %d packets came faster than they could be recorded", c.dropped)
	}
	return c.Packets(), nil
}

// WritePcap writes packets as a pcap file with times in nanoseconds.
func WritePcap(w io.Writer, packets []Packet) error {
	const ethernet = 1
	b := binary.LittleEndian.AppendUint32(nil, 0xa1b23c4d)
	b = append(b, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, 1<<16)
	b = binary.LittleEndian.AppendUint32(b, ethernet)
	for _, p := range packets {
		b = binary.LittleEndian.AppendUint32(b, uint32(p.Time.Unix()))
		b = binary.LittleEndian.AppendUint32(b, uint32(p.Time.Nanosecond()))
		b = binary.LittleEndian.AppendUint32(b, uint32(len(p.Frame)))
		b = binary.LittleEndian.AppendUint32(b, uint32(len(p.Frame)))
		b = append(b, p.Frame...)
	}
	_, err := w.Write(b)
	return err
}

// ARPMessage is an ARP message for IPv4 over Ethernet (RFC 826), with the addresses of its frame.
type ARPMessage struct {
	From, To             net.HardwareAddr // of the frame
	Request              bool             // else a reply
	SenderMAC, TargetMAC net.HardwareAddr
	Sender, Target       netip.Addr
}

// Gratuitous says whether the message announces its sender (RFC 5227 §3).
func (a ARPMessage) Gratuitous() bool { return a.Sender == a.Target }

// ARP reads the packet as one.
func (p Packet) ARP() (ARPMessage, bool) {
	f := p.Frame
	if len(f) < 42 || binary.BigEndian.Uint16(f[12:]) != unix.ETH_P_ARP || !bytes.Equal(f[14:20], []byte{0, 1, 8, 0, 6, 4}) {
		return ARPMessage{}, false
	}
	return ARPMessage{
		From: f[6:12], To: f[:6], Request: f[21] == 1,
		SenderMAC: f[22:28], Sender: netip.AddrFrom4([4]byte(f[28:32])),
		TargetMAC: f[32:38], Target: netip.AddrFrom4([4]byte(f[38:42])),
	}, true
}

// IPPacket is the part of a packet that tests ask about.
type IPPacket struct {
	Source, Destination netip.Addr
	TTL, Protocol       byte
	Payload             []byte
}

// IPv4 reads the packet as one.
func (p Packet) IPv4() (IPPacket, bool) {
	f := p.Frame
	if len(f) < 34 || binary.BigEndian.Uint16(f[12:]) != unix.ETH_P_IP || f[14]>>4 != 4 {
		return IPPacket{}, false
	}
	ip := f[14:]
	header, total := int(ip[0]&0xf)*4, int(binary.BigEndian.Uint16(ip[2:]))
	if header < 20 || total < header || len(ip) < total {
		return IPPacket{}, false
	}
	return IPPacket{
		Source: netip.AddrFrom4([4]byte(ip[12:16])), Destination: netip.AddrFrom4([4]byte(ip[16:20])),
		TTL: ip[8], Protocol: ip[9], Payload: ip[header:total],
	}, true
}

// IPv6 reads the packet as one of IPv6 without extension headers.
func (p Packet) IPv6() (IPPacket, bool) {
	f := p.Frame
	if len(f) < 54 || binary.BigEndian.Uint16(f[12:]) != unix.ETH_P_IPV6 || f[14]>>4 != 6 {
		return IPPacket{}, false
	}
	ip := f[14:]
	length := int(binary.BigEndian.Uint16(ip[4:]))
	if len(ip) < 40+length {
		return IPPacket{}, false
	}
	return IPPacket{
		Source: netip.AddrFrom16([16]byte(ip[8:24])), Destination: netip.AddrFrom16([16]byte(ip[24:40])),
		TTL: ip[7], Protocol: ip[6], Payload: ip[40 : 40+length],
	}, true
}

// Neighbour is a neighbour message (RFC 4861 §4) with the addresses of its frame.
type Neighbour struct {
	From, To net.HardwareAddr // of the frame
	Type     byte             // 133 router solicitation, 135 solicitation, 136 advertisement
	Flags    byte             // of an advertisement: 0x80 router, 0x40 solicited, 0x20 override
	Source   netip.Addr       // of the packet
	Target   netip.Addr
	MAC      net.HardwareAddr // in the option, if there is one
}

// Neighbour reads the packet as one.
func (p Packet) Neighbour() (Neighbour, bool) {
	ip, ok := p.IPv6()
	if !ok || ip.Protocol != unix.IPPROTO_ICMPV6 || len(ip.Payload) < 8 || ip.Payload[0] < 133 || ip.Payload[0] > 137 {
		return Neighbour{}, false
	}
	n := Neighbour{From: p.Frame[6:12], To: p.Frame[:6], Type: ip.Payload[0], Flags: ip.Payload[4], Source: ip.Source}
	options := ip.Payload[8:]
	if n.Type == 135 || n.Type == 136 {
		if len(options) < 16 {
			return Neighbour{}, false
		}
		n.Target = netip.AddrFrom16([16]byte(options))
		options = options[16:]
	}
	if len(options) >= 8 && (options[0] == 1 || options[0] == 2) {
		n.MAC = options[2:8]
	}
	return n, true
}

// Speaks tells whether the message says where its addresses are: that of a target only an advertisement does.
func (n Neighbour) Speaks(addr netip.Addr) bool {
	return n.Source == addr || n.Type == 136 && n.Target == addr
}
