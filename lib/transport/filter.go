package transport

import "golang.org/x/net/bpf"

// The offsets of fields in a VRRP message, and of the message in a UDP datagram.
const (
	vridOffset     = 1
	checksumOffset = 6
	udpHeader      = 8
)

// rawFilter passes IP protocol 112 packets for one virtual router, whatever
// their version, so that a misconfigured neighbour on our VRID is still seen.
// A raw socket's filter sees the packet from its IP header on.
func rawFilter(vrid uint8) []bpf.Instruction {
	return []bpf.Instruction{
		bpf.LoadMemShift{Off: 0}, // X = length of the IP header
		bpf.LoadIndirect{Off: vridOffset, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(vrid), SkipFalse: 1},
		bpf.RetConstant{Val: maxPacket},
		bpf.RetConstant{Val: 0},
	}
}

// raw6Filter does the same for IPv6, where the filter sees the message first.
func raw6Filter(vrid uint8) []bpf.Instruction {
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: vridOffset, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(vrid), SkipFalse: 1},
		bpf.RetConstant{Val: maxPacket},
		bpf.RetConstant{Val: 0},
	}
}

// udpFilter does the same for a UDP socket, whose filter sees the UDP header first.
func udpFilter(vrid uint8) []bpf.Instruction {
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: udpHeader + vridOffset, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(vrid), SkipFalse: 1},
		bpf.RetConstant{Val: maxPacket},
		bpf.RetConstant{Val: 0},
	}
}

// deafFilter keeps anything from queueing on a socket that only sends.
func deafFilter() []bpf.Instruction {
	return []bpf.Instruction{bpf.RetConstant{Val: 0}}
}
