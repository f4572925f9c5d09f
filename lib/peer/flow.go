package peer

import (
	"encoding/binary"
	"errors"
	"io"
	"sync"
)

var errWindow = errors.New("more data than was granted")

// inflow is the bounded queue between the session's reader, which never waits,
// and a stream that takes its time.
type inflow struct {
	mu    sync.Mutex
	data  []byte
	room  int // bytes the other side may still send
	ended bool
	wake  chan struct{} // something was put
}

func newInflow() *inflow { return &inflow{room: window, wake: make(chan struct{}, 1)} }

// put takes what came.
func (q *inflow) put(b []byte) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(b) > q.room {
		return errWindow
	}
	q.room -= len(b)
	if !q.ended {
		q.data = append(q.data, b...)
	}
	notify(q.wake)
	return nil
}

// end tells that no more comes.
func (q *inflow) end() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ended = true
	notify(q.wake)
}

// drain writes to w what comes until its end, and grants as much anew. A writer
// that fails gets no more; what comes is granted as before, so that the other
// side is not held up. It returns when it is through, or when stop is closed.
func (q *inflow) drain(w io.Writer, stop <-chan struct{}, grant func(frame) bool) {
	var spare []byte
	var failed bool
	taken := 0
	for {
		q.mu.Lock()
		data, ended := q.data, q.ended
		q.data = spare[:0]
		q.mu.Unlock()
		if len(data) > 0 {
			if !failed {
				_, err := w.Write(data)
				failed = err != nil
			}
			if taken += len(data); taken >= window/4 {
				q.mu.Lock()
				q.room += taken
				q.mu.Unlock()
				if !grant(windowFrame(taken)) {
					return
				}
				taken = 0
			}
			spare = data
			continue
		}
		if ended {
			return
		}
		spare = data
		select {
		case <-q.wake:
		case <-stop:
			return
		}
	}
}

// outflow counts what may still be sent.
type outflow struct {
	mu   sync.Mutex
	room int
	wake chan struct{} // something was granted
}

func newOutflow() *outflow { return &outflow{room: window, wake: make(chan struct{}, 1)} }

// grant takes the body of a window frame.
func (o *outflow) grant(body []byte) error {
	if len(body) != 4 {
		return errors.New("a window frame without its 4 bytes")
	}
	n := binary.BigEndian.Uint32(body)
	o.mu.Lock()
	defer o.mu.Unlock()
	if uint64(o.room)+uint64(n) > window {
		return errors.New("more window than there is")
	}
	o.room += int(n)
	notify(o.wake)
	return nil
}

// wait returns how many bytes may be sent, at least one; 0: stop was closed.
func (o *outflow) wait(stop <-chan struct{}) int {
	for {
		o.mu.Lock()
		n := o.room
		o.mu.Unlock()
		if n > 0 {
			return n
		}
		select {
		case <-o.wake:
		case <-stop:
			return 0
		}
	}
}

// pump sends what r gives, as frames of a kind, until r ends or stop is closed.
func (o *outflow) pump(r io.Reader, kind byte, stop <-chan struct{}, send func(frame) bool) {
	// Two buffers: the writer has let go of one when it takes the other.
	var buffers [2][maxData / 2]byte
	for i := 0; ; i = 1 - i {
		room := o.wait(stop)
		if room == 0 {
			return
		}
		buf := buffers[i][:min(room, len(buffers[i]))]
		n, err := r.Read(buf)
		if n > 0 {
			o.mu.Lock()
			o.room -= n
			o.mu.Unlock()
			if !send(frame{kind, buf[:n]}) {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func windowFrame(n int) frame {
	return frame{frameWindow, binary.BigEndian.AppendUint32(nil, uint32(n))}
}

func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
