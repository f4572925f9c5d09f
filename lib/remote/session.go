package remote

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"golang.org/x/crypto/ssh"
)

// Session is one command on the peer. Close must be called in the end.
//
// Stdout and Stderr must both be read: about 2 MiB of what nobody reads stop
// the command. They end with io.EOF also when the connection was lost; only
// Wait tells the difference.
type Session struct {
	Stdin          io.WriteCloser // Close sends the end of the file
	Stdout, Stderr io.Reader

	conn   *Conn
	remote *ssh.Session
	cut    []func(error) // end our side of the three streams

	once   sync.Once
	closed chan struct{}
	ended  chan struct{} // exit and err are set
	exit   int
	err    error
}

// Start runs command by the login shell of the peer's user, without a terminal.
// It waits for the peer's answer, at most until the connection is given up.
func (c *Conn) Start(command string) (*Session, error) {
	remote, err := c.client.NewSession()
	if err != nil {
		if refused, ok := errors.AsType[*ssh.OpenChannelError](err); ok {
			return nil, &Error{Kind: Protocol, Err: err,
				Text:   fmt.Sprintf("%s refuses a session: %s", c.target, refused.Message),
				Remedy: "on " + c.target.host + ", raise MaxSessions in /etc/ssh/sshd_config"}
		}
		return nil, c.broken()
	}
	s := &Session{conn: c, remote: remote, closed: make(chan struct{}), ended: make(chan struct{})}
	stdin, err := remote.StdinPipe()
	if err != nil {
		remote.Close()
		return nil, err
	}
	stdout, err := remote.StdoutPipe()
	if err != nil {
		remote.Close()
		return nil, err
	}
	stderr, err := remote.StderrPipe()
	if err != nil {
		remote.Close()
		return nil, err
	}
	if err := remote.Start(command); err != nil {
		remote.Close()
		if c.alive() {
			return nil, &Error{Kind: Protocol, Err: err,
				Text: fmt.Sprintf("%s does not run commands: %v", c.target, err)}
		}
		return nil, c.broken()
	}
	s.Stdin = s.feed(stdin)
	s.Stdout = s.drain(stdout)
	s.Stderr = s.drain(stderr)
	go s.wait()
	return s, nil
}

// The pipes between let Close end a read or write that waits for the peer.

func (s *Session) feed(to io.WriteCloser) io.WriteCloser {
	r, w := io.Pipe()
	s.cut = append(s.cut, func(err error) { r.CloseWithError(err) })
	go func() {
		_, err := io.Copy(to, r)
		to.Close()
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrClosedPipe
		}
		r.CloseWithError(err)
	}()
	return w
}

func (s *Session) drain(from io.Reader) io.Reader {
	r, w := io.Pipe()
	s.cut = append(s.cut, func(err error) { w.CloseWithError(err) })
	go func() {
		_, err := io.Copy(w, from)
		w.CloseWithError(err)
	}()
	return r
}

func (s *Session) wait() {
	defer close(s.ended)
	err := s.remote.Wait()
	if status, ok := errors.AsType[*ssh.ExitError](err); ok {
		s.exit = status.ExitStatus() // 128+n for a signal
		return
	}
	if err == nil {
		return
	}
	s.exit = -1
	if s.conn.alive() {
		s.err = &Error{Kind: Protocol, Err: err,
			Text: fmt.Sprintf("%s ended the command without an exit status", s.conn.target)}
		return
	}
	s.err = s.conn.broken()
}

// Wait waits for the end of the command and returns its exit status, 128+n
// after signal n. The error tells that there is none: net.ErrClosed after
// Close, else an *Error. What Stdout and Stderr hold can still be read then.
func (s *Session) Wait() (exit int, err error) {
	select {
	case <-s.ended:
		return s.exit, s.err
	case <-s.closed:
	}
	select {
	case <-s.ended: // it was first
		return s.exit, s.err
	default:
		return -1, fmt.Errorf("session with %s: %w", s.conn.target, net.ErrClosed)
	}
}

// Close ends the session at once, whatever the peer does: reads, writes and
// Wait return. The command loses its pipes; it gets no signal.
func (s *Session) Close() error {
	s.once.Do(func() {
		close(s.closed)
		for _, cut := range s.cut {
			cut(net.ErrClosed)
		}
		// The message may wait for a peer that does not read.
		go s.remote.Close()
	})
	return nil
}

// alive asks the peer. The answer comes after all that it said before.
func (c *Conn) alive() bool {
	_, _, err := c.client.SendRequest(keepalive, true, nil)
	return err == nil
}

// broken returns why the connection ended, after something has shown that it did.
func (c *Conn) broken() error {
	c.client.Close()
	<-c.done
	return c.Err()
}
