package peer

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
)

// magic begins what the server writes.
const magic = "\x00skd-inotify peer 1\n"

// Types of frames; see the package comment.
const (
	frameHello    = 'H'
	frameDigest   = 'D'
	frameManifest = 'M'
	frameRsync    = 'R'
	frameRole     = 'S'
	frameVector   = 'V'
	frameRenew    = 'N'
	frameKeep     = 'K'
	frameAnswer   = 'A'
	frameError    = 'E'

	framePiece  = 'm'
	frameNames  = 'n'
	frameStdin  = 'i'
	frameClose  = 'c'
	frameCancel = 'x'
	frameStdout = 'o'
	frameStderr = 'e'
	frameWindow = 'w'
)

const (
	headerSize = 5
	maxData    = 64 << 10
	maxControl = 1 << 20
	window     = 512 << 10 // bytes of one of rsync's streams that are under way
)

type frame struct {
	kind byte
	body []byte
}

func longest(kind byte) int {
	switch kind {
	case framePiece, frameNames, frameStdin, frameStdout, frameStderr:
		return maxData
	case frameClose, frameCancel:
		return 0
	case frameWindow:
		return 4
	}
	return maxControl
}

func isRequest(kind byte) bool { return 'A' <= kind && kind <= 'Z' }

// appendFrame appends the encoded frame to b.
func appendFrame(b []byte, f frame) []byte {
	b = append(b, f.kind)
	b = binary.BigEndian.AppendUint32(b, uint32(len(f.body)))
	return append(b, f.body...)
}

// readFrame reads one frame. The error is io.EOF only between two frames.
func readFrame(r io.Reader) (frame, error) {
	var head [headerSize]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return frame{}, err
	}
	kind, size := head[0], binary.BigEndian.Uint32(head[1:])
	if !isRequest(kind) && (kind < 'a' || kind > 'z') {
		return frame{}, fmt.Errorf("not a frame: type %#02x", kind)
	}
	if size > uint32(longest(kind)) {
		return frame{}, fmt.Errorf("frame %q of %d bytes: at most %d are allowed", kind, size, longest(kind))
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(r, body); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return frame{}, err
	}
	return frame{kind, body}, nil
}

const (
	maxNoise = 64 << 10
	tailKept = 512
)

// skipNoise reads up to and including the magic line. It returns the end of
// what stood before it.
func skipNoise(r *bufio.Reader) (tail []byte, err error) {
	matched := 0 // bytes of the magic
	for n := 0; n < maxNoise+len(magic); n++ {
		c, err := r.ReadByte()
		if err != nil {
			return append(tail, magic[:matched]...), err
		}
		// The first byte of the magic is nowhere else in it.
		if c != magic[matched] && matched > 0 {
			tail = append(tail, magic[:matched]...)
			matched = 0
		}
		if c == magic[matched] {
			if matched++; matched == len(magic) {
				return tail, nil
			}
			continue
		}
		if tail = append(tail, c); len(tail) > 2*tailKept {
			tail = append(tail[:0], tail[len(tail)-tailKept:]...)
		}
	}
	return tail, fmt.Errorf("more than %d KiB of other output came first", maxNoise>>10)
}

// sender writes frames from one goroutine, so that nobody who has something to
// say hangs in a write to a connection that is dead.
type sender struct {
	frames chan frame
	done   <-chan struct{} // the session is over: nobody waits for the writer any more
	ended  chan struct{}   // run has returned
}

func newSender(done <-chan struct{}) *sender {
	return &sender{frames: make(chan frame), done: done, ended: make(chan struct{})}
}

// send hands f over to the writer; false: the session is over.
func (s *sender) send(f frame) bool {
	select {
	case s.frames <- f:
		return true
	case <-s.done:
		return false
	}
}

// run writes until the session is over or last was closed, or w fails.
func (s *sender) run(w io.Writer, last <-chan struct{}) error {
	defer close(s.ended)
	var buf []byte
	for {
		select {
		case f := <-s.frames:
			buf = appendFrame(buf[:0], f)
			if _, err := w.Write(buf); err != nil {
				return err
			}
		case <-last:
			return nil
		case <-s.done:
			return nil
		}
	}
}
