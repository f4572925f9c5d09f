package transport

import (
	"os"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// copyPause is the least time between two calls of Config.Copied.
const copyPause = time.Second

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

// watchCopies makes the socket that notices another node with our address. A
// packet socket, because Linux takes a packet from an address of its own for a
// martian and shows it to no other.
func (c *Conn) watchCopies() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	const ipInNetworkOrder = unix.ETH_P_IP>>8 | unix.ETH_P_IP&0xff<<8
	if err = setFilter(fd, copyFilter(c.cfg.Local.As4(), c.cfg.VRID)); err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: ipInNetworkOrder, Ifindex: c.cfg.Index})
	}
	if err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("packet socket", err)
	}
	f := os.NewFile(uintptr(fd), "copies")
	go func() {
		b := make([]byte, 1)
		for {
			if _, err := f.Read(b); err != nil {
				return
			}
			c.cfg.Copied()
			select {
			case <-time.After(copyPause):
			case <-c.done:
				return
			}
		}
	}()
	return f, nil
}
