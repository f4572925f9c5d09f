package transport

import (
	"os"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// noticePause is the least time between two calls of Config.Copied, or of Config.InUDP.
const noticePause = time.Second

// copyFilter passes what arrived (and was not sent) with our own address as the
// source of an advert for our VRID. The socket's filter sees the IP header first.
func copyFilter(local [4]byte, vrid uint8) []bpf.Instruction {
	source := uint32(local[0])<<24 | uint32(local[1])<<16 | uint32(local[2])<<8 | uint32(local[3])
	return []bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtType},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.PACKET_OUTGOING, SkipTrue: 8},
		bpf.LoadAbsolute{Off: 9, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: protocolVRRP, SkipFalse: 6},
		bpf.LoadAbsolute{Off: 12, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: source, SkipFalse: 4},
		bpf.LoadMemShift{Off: 0},
		bpf.LoadIndirect{Off: vridOffset, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(vrid), SkipFalse: 1},
		bpf.RetConstant{Val: 1},
		bpf.RetConstant{Val: 0},
	}
}

// carpInUDPFilter passes UDP from the peer that has an advert of CARP for our VRID
// in it, to whatever address and port.
func carpInUDPFilter(peer [4]byte, vrid uint8) []bpf.Instruction {
	const (
		carpVersion = 0x21 // and type
		carpAuthLen = 7
		fragment    = 0x1fff
	)
	source := uint32(peer[0])<<24 | uint32(peer[1])<<16 | uint32(peer[2])<<8 | uint32(peer[3])
	return []bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtType},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.PACKET_OUTGOING, SkipTrue: 14},
		bpf.LoadAbsolute{Off: 9, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.IPPROTO_UDP, SkipFalse: 12},
		bpf.LoadAbsolute{Off: 12, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: source, SkipFalse: 10},
		bpf.LoadAbsolute{Off: 6, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: fragment, SkipTrue: 8},
		bpf.LoadMemShift{Off: 0},
		bpf.LoadIndirect{Off: udpHeader, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: carpVersion, SkipFalse: 5},
		bpf.LoadIndirect{Off: udpHeader + vridOffset, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(vrid), SkipFalse: 3},
		bpf.LoadIndirect{Off: udpHeader + 3, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: carpAuthLen, SkipFalse: 1},
		bpf.RetConstant{Val: 1},
		bpf.RetConstant{Val: 0},
	}
}

// notice makes a socket that calls noticed when something arrives that the filter
// passes. A packet socket: Linux takes a packet from an address of its own for a
// martian and shows it to no other, and one to a port that nobody has to nobody.
func (c *Conn) notice(filter []bpf.Instruction, noticed func()) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	const ipInNetworkOrder = unix.ETH_P_IP>>8 | unix.ETH_P_IP&0xff<<8
	if err = setFilter(fd, filter); err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: ipInNetworkOrder, Ifindex: c.cfg.Index})
	}
	if err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("packet socket", err)
	}
	f := os.NewFile(uintptr(fd), "notices")
	go func() {
		b := make([]byte, 1)
		for {
			if _, err := f.Read(b); err != nil {
				return
			}
			noticed()
			select {
			case <-time.After(noticePause):
			case <-c.done:
				return
			}
		}
	}()
	return f, nil
}

func (c *Conn) addNotice(filter []bpf.Instruction, noticed func()) error {
	f, err := c.notice(filter, noticed)
	if err == nil {
		c.notices = append(c.notices, f)
	}
	return err
}
