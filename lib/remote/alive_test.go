package remote

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

func TestBackoff(t *testing.T) {
	b := Backoff{Min: 100 * time.Millisecond, Max: time.Second}
	next := func(random float64, want time.Duration) {
		t.Helper()
		if got := b.Next(random); got.Round(time.Microsecond) != want {
			t.Errorf("Next(%v) = %s, want %s", random, got, want)
		}
	}
	for range 2 {
		for _, ms := range []time.Duration{100, 200, 400, 800, 1000, 1000, 1000} {
			next(0.5, ms*time.Millisecond)
		}
		b.Reset()
	}
	next(0, 80*time.Millisecond)
	next(0.75, 220*time.Millisecond)
	b = Backoff{Min: time.Second, Max: 1<<63 - 1}
	for range 100 {
		if got := b.Next(0); got <= 0 {
			t.Fatalf("overflow: %s", got)
		}
	}
	b = Backoff{Min: time.Hour, Max: time.Minute}
	next(0.5, time.Minute)
}

// wire is one direction of a connection in memory, which takes whatever is
// written.
type wire struct {
	mu     sync.Mutex
	more   *sync.Cond
	data   []byte
	closed bool
}

func newWire() *wire {
	w := &wire{}
	w.more = sync.NewCond(&w.mu)
	return w
}

func (w *wire) Read(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.data) == 0 && !w.closed {
		w.more.Wait()
	}
	if len(w.data) == 0 {
		return 0, io.EOF
	}
	n := copy(b, w.data)
	w.data = w.data[n:]
	return n, nil
}

func (w *wire) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return 0, io.ErrClosedPipe
	}
	w.data = append(w.data, b...)
	w.more.Broadcast()
	return len(b), nil
}

func (w *wire) Close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	w.more.Broadcast()
}

// end is one end of two wires.
type end struct {
	net.Conn // for the addresses
	in, out  *wire
}

func (e end) Read(b []byte) (int, error)  { return e.in.Read(b) }
func (e end) Write(b []byte) (int, error) { return e.out.Write(b) }
func (e end) Close() error                { e.in.Close(); e.out.Close(); return nil }
func (e end) SetDeadline(time.Time) error { return nil }

// peer is a server in the same bubble of time.
type peer struct {
	*ssh.ServerConn
	asked chan *ssh.Request // keepalives; nobody has answered
}

// pair connects to a peer that lets everybody in and does only what the test does.
func pair(t *testing.T) (*Conn, *peer) {
	t.Helper()
	hostKey, _ := ssh.NewSignerFromKey(newEd25519())
	home := t.TempDir()
	os.Mkdir(filepath.Join(home, ".ssh"), 0o700)
	write(t, filepath.Join(home, ".ssh/known_hosts"), knownhosts.Line([]string{"192.0.2.1"}, hostKey.PublicKey())+"\n", 0o600)
	writeKey(t, filepath.Join(home, ".ssh/id_ed25519"), newEd25519(), "")
	s, err := Config{Host: netip.MustParseAddr("192.0.2.1"), Home: home, ConfigFiles: []string{}}.settings()
	if err != nil {
		t.Fatal(err)
	}
	address, _ := net.Pipe()
	there, back := newWire(), newWire()
	p := &peer{asked: make(chan *ssh.Request, 100)}
	accepted := make(chan error, 1)
	go func() {
		config := &ssh.ServerConfig{PublicKeyCallback: func(ssh.ConnMetadata, ssh.PublicKey) (*ssh.Permissions, error) { return nil, nil }}
		config.AddHostKey(hostKey)
		conn, channels, requests, err := ssh.NewServerConn(end{address, there, back}, config)
		p.ServerConn = conn
		accepted <- err
		if err != nil {
			return
		}
		go func() {
			for r := range requests {
				p.asked <- r
			}
		}()
		for c := range channels {
			c.Reject(ssh.Prohibited, "no")
		}
	}()
	conn, err := s.handshake(t.Context(), end{address, back, there}, usual)
	if err != nil {
		t.Fatal(describe(err))
	}
	if err := <-accepted; err != nil {
		t.Fatal(err)
	}
	return conn, p
}

func TestAliveWhileAnswering(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn, p := pair(t)
		defer conn.Close()
		for range 20 {
			began := time.Now()
			r := <-p.asked
			if d := time.Since(began); d != usual.ask || r.Type != keepalive || !r.WantReply {
				t.Errorf("asked %s after %s", r.Type, d)
			}
			r.Reply(false, nil)
		}
		if err := conn.Err(); err != nil {
			t.Error(err)
		}
	})
}

func TestLostWithoutAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn, _ := pair(t)
		began := time.Now()
		<-conn.Done()
		if d := time.Since(began); d != usual.ask+usual.patience {
			t.Errorf("given up after %s", d)
		}
		if e, ok := errors.AsType[*Error](conn.Err()); !ok || e.Kind != Lost || !strings.Contains(e.Text, "no sign of life for 45s") {
			t.Errorf("Err: %v", conn.Err())
		}
	})
}

// A link so slow that the answer waits behind other data is alive.
func TestAliveWhileMoving(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn, p := pair(t)
		for range 10 {
			time.Sleep(40 * time.Second)
			if _, _, err := p.SendRequest("something", false, nil); err != nil {
				t.Fatal(err)
			}
			if err := conn.Err(); err != nil {
				t.Fatal(err)
			}
		}
		if n := len(p.asked); n != 1 {
			t.Errorf("%d questions while one was open", n)
		}
		began := time.Now()
		<-conn.Done()
		if d := time.Since(began); d != usual.patience {
			t.Errorf("given up %s after the last byte", d)
		}
	})
}

func TestPeerClosesInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn, p := pair(t)
		p.Close()
		<-conn.Done()
		if got, want := fmt.Sprint(conn.Err()), "connection to root@192.0.2.1 lost: the other side closed the connection"; got != want {
			t.Errorf("Err: %s, want %s", got, want)
		}
	})
}
