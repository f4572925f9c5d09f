package nlmsg

import (
	"bytes"
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"
)

// two is a message with attributes of all kinds, and a short one.
func two() []byte {
	b := Append(nil, unix.RTM_NEWLINK, unix.NLM_F_CREATE, 7, func(b []byte) []byte {
		b = AppendAttr(b, 1, []byte{1, 2, 3, 4, 5})
		b = AppendString(b, 2, "eth0")
		b = AppendNested(b, 3, func(b []byte) []byte {
			b = AppendAttr(b, 4, nil)
			return AppendString(b, 5, "inner")
		})
		return AppendString(b, 2, "not the first")
	})
	return Append(b, unix.RTM_GETLINK, 0, 8, func(b []byte) []byte { return append(b, 9) })
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	var got []Message
	for m := range Parse(two()) {
		got = append(got, m)
	}
	if len(got) != 2 {
		t.Fatalf("%d messages: %v", len(got), got)
	}
	if m := got[0]; m.Type != unix.RTM_NEWLINK || m.Flags != unix.NLM_F_CREATE|unix.NLM_F_REQUEST || m.Seq != 7 {
		t.Errorf("the first is %+v", m)
	}
	if m := got[1]; m.Type != unix.RTM_GETLINK || m.Flags != unix.NLM_F_REQUEST || m.Seq != 8 || !bytes.Equal(m.Body, []byte{9}) {
		t.Errorf("the second is %+v", m)
	}
	body := got[0].Body
	if v := Attr(body, 1); !bytes.Equal(v, []byte{1, 2, 3, 4, 5}) {
		t.Errorf("bytes: %v", v)
	}
	if s := String(Attr(body, 2)); s != "eth0" {
		t.Errorf("text: %q", s)
	}
	if s := String(Attr(Attr(body, 3), 5)); s != "inner" {
		t.Errorf("nested text: %q", s)
	}
	if v := Attr(Attr(body, 3), 4); v == nil || len(v) != 0 {
		t.Errorf("an empty one: %v", v)
	}
	if v := Attr(body, 6); v != nil {
		t.Errorf("one that is not there: %v", v)
	}
	var types []uint16
	for typ := range Attrs(body) {
		if types = append(types, typ); typ == 3 {
			break
		}
	}
	if len(types) != 3 {
		t.Errorf("types up to 3: %v", types)
	}
}

// The bytes are those of the kernel's headers, as seen on a little endian machine.
func TestBytes(t *testing.T) {
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		t.Skip("big endian")
	}
	got := Append(nil, 0x1234, 0x0400, 5, func(b []byte) []byte { return AppendString(b, 3, "lo") })
	want := []byte{24, 0, 0, 0, 0x34, 0x12, 1, 4, 5, 0, 0, 0, 0, 0, 0, 0, 7, 0, 3, 0, 'l', 'o', 0, 0}
	if !bytes.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

func TestErrno(t *testing.T) {
	refused := binary.NativeEndian.AppendUint32(nil, ^uint32(unix.EPERM)+1)
	for _, tt := range []struct {
		m    Message
		want unix.Errno
	}{
		{Message{Type: unix.NLMSG_ERROR, Body: refused}, unix.EPERM},
		{Message{Type: unix.NLMSG_DONE, Body: refused}, unix.EPERM},
		{Message{Type: unix.NLMSG_ERROR, Body: make([]byte, 4)}, 0},
		{Message{Type: unix.NLMSG_DONE}, 0},
		{Message{Type: unix.RTM_NEWADDR, Body: refused}, 0},
	} {
		if got := tt.m.Errno(); got != tt.want {
			t.Errorf("%+v: %v, want %v", tt.m, got, tt.want)
		}
	}
}

// What is cut off anywhere is not read beyond its end, and never yields more.
func FuzzParse(f *testing.F) {
	f.Add(two())
	for i := range two() {
		f.Add(two()[:i])
	}
	f.Add([]byte{4, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		size := 0
		for m := range Parse(b) {
			_ = m.Errno()
			size += unix.NLMSG_HDRLEN + len(m.Body)
			inner := 0
			for _, v := range Attrs(m.Body) {
				inner += unix.SizeofNlAttr + len(v)
				_ = String(Attr(v, 1))
			}
			if inner > len(m.Body) {
				t.Errorf("%d bytes of attributes in %d", inner, len(m.Body))
			}
		}
		if size > len(b) {
			t.Errorf("%d bytes of messages in %d", size, len(b))
		}
	})
}
