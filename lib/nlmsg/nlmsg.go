// Package nlmsg writes and reads what goes over a netlink socket: messages, and
// the attributes in them, as linux/netlink.h has them. A body is whatever the
// family puts before its attributes.
package nlmsg

import (
	"bytes"
	"encoding/binary"
	"iter"

	"golang.org/x/sys/unix"
)

// Message is one that the kernel sent.
type Message struct {
	Type, Flags uint16
	Seq         uint32
	Body        []byte
}

// Errno is the error in an NLMSG_ERROR or NLMSG_DONE; 0 is none.
func (m Message) Errno() unix.Errno {
	if m.Type != unix.NLMSG_ERROR && m.Type != unix.NLMSG_DONE || len(m.Body) < 4 {
		return 0
	}
	return unix.Errno(-int32(binary.NativeEndian.Uint32(m.Body)))
}

// Parse yields the messages in b. It ends at one that is cut off.
func Parse(b []byte) iter.Seq[Message] {
	return func(yield func(Message) bool) {
		for len(b) >= unix.NLMSG_HDRLEN {
			n := int(binary.NativeEndian.Uint32(b))
			if n < unix.NLMSG_HDRLEN || n > len(b) {
				return
			}
			m := Message{binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint16(b[6:]), binary.NativeEndian.Uint32(b[8:]), b[unix.NLMSG_HDRLEN:n]}
			if !yield(m) {
				return
			}
			b = b[min(align(n), len(b)):]
		}
	}
}

// Attrs yields the attributes in b by type, without the flags in it. It ends at
// one that is cut off.
func Attrs(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofNlAttr {
			n := int(binary.NativeEndian.Uint16(b))
			if n < unix.SizeofNlAttr || n > len(b) {
				return
			}
			if !yield(binary.NativeEndian.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[unix.SizeofNlAttr:n]) {
				return
			}
			b = b[min(align(n), len(b)):]
		}
	}
}

// Attr returns the value of the first attribute of a type in b, or nil.
func Attr(b []byte, typ uint16) []byte {
	for t, v := range Attrs(b) {
		if t == typ {
			return v
		}
	}
	return nil
}

// String is the text in an attribute's value.
func String(value []byte) string { return string(bytes.TrimRight(value, "\x00")) }

// Append appends a message. Its flags get NLM_F_REQUEST; body appends what follows
// the header.
func Append(b []byte, typ, flags uint16, seq uint32, body func(b []byte) []byte) []byte {
	start := len(b)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = binary.NativeEndian.AppendUint16(b, flags|unix.NLM_F_REQUEST)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = body(b)
	binary.NativeEndian.PutUint32(b[start:], uint32(len(b)-start))
	return b
}

// AppendAttr appends an attribute.
func AppendAttr(b []byte, typ uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofNlAttr+len(value)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, value...)
	for range align(len(value)) - len(value) {
		b = append(b, 0)
	}
	return b
}

// AppendString appends an attribute that is a text.
func AppendString(b []byte, typ uint16, text string) []byte {
	return AppendAttr(b, typ, append([]byte(text), 0))
}

// AppendNested appends an attribute that holds those which body appends.
func AppendNested(b []byte, typ uint16, body func(b []byte) []byte) []byte {
	start := len(b)
	b = body(AppendAttr(b, typ|unix.NLA_F_NESTED, nil))
	binary.NativeEndian.PutUint16(b[start:], uint16(len(b)-start))
	return b
}

// align is where what follows n bytes begins.
func align(n int) int { return (n + 3) &^ 3 }
