package main

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/mirror"
	"github.com/skudonet/skudonet-ce-cluster/lib/remote"
)

// wire is a line to the other node: a socket at whose other end its program is
// started. It carries that one program.
type wire struct {
	conn *net.UnixConn
	done chan struct{}
	once sync.Once
}

// dialWire connects to the socket at path.
func dialWire(ctx context.Context, path string) (mirror.Line, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, &remote.Error{Kind: remote.Unreachable, Text: err.Error(), Err: err}
	}
	return &wire{conn: conn.(*net.UnixConn), done: make(chan struct{})}, nil
}

var errLost = &remote.Error{Kind: remote.Lost, Text: "the wire is cut", Err: io.ErrUnexpectedEOF}

func (w *wire) Start(string) (*mirror.Program, error) {
	return &mirror.Program{
		Stdin: closing{w}, Stdout: reading{w}, Stderr: strings.NewReader(""),
		Wait:  func() (int, error) { <-w.done; return -1, errLost },
		Close: w.Close,
	}, nil
}

func (w *wire) Done() <-chan struct{} { return w.done }

func (w *wire) Err() error {
	select {
	case <-w.done:
		return errLost
	default:
		return nil
	}
}

func (w *wire) Close() error {
	w.once.Do(func() { close(w.done) })
	return w.conn.Close()
}

// reading is the program's output, whose end is that of the wire.
type reading struct{ *wire }

func (r reading) Read(b []byte) (int, error) {
	n, err := r.conn.Read(b)
	if err != nil {
		r.once.Do(func() { close(r.done) })
		if !errors.Is(err, net.ErrClosed) {
			err = io.EOF
		}
	}
	return n, err
}

// closing is the program's input. It can be written to with a deadline, as a pipe can.
type closing struct{ *wire }

func (c closing) Write(b []byte) (int, error)        { return c.conn.Write(b) }
func (c closing) SetWriteDeadline(t time.Time) error { return c.conn.SetWriteDeadline(t) }
func (c closing) Close() error                       { return c.conn.CloseWrite() }
