// Package remote keeps one ssh connection to the peer, as root's own ssh would
// make it with BatchMode: it reads ssh_config, known_hosts, keys and agent like
// OpenSSH, never asks anything, and never accepts a host key that is not known.
//
// Dial makes the connection, Start runs commands over it. A peer that is gone
// is noticed within the times below, and Done tells. Nothing here dials again;
// Backoff says how long the caller should wait before it does.
package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/shell"
)

// Config is where to connect. What root's ssh_config says of Host comes before
// Port and KeyFile.
type Config struct {
	Host    netip.Addr // the peer, as Host lines of ssh_config name it
	Port    uint16     // 0: 22
	KeyFile string     // private key; "": the usual names in ~/.ssh
	Home    string     // of the local user; "": $HOME, else /root

	// ConfigFiles are read in this order at every Dial; the first value of a
	// key wins. A missing file is fine. Nil: ~/.ssh/config, /etc/ssh/ssh_config.
	ConfigFiles []string

	pace *pace // nil: usual
}

// pace is how long things may take.
type pace struct {
	connect   time.Duration // TCP
	handshake time.Duration // from there to the end of the authentication
	ask       time.Duration // between two questions whether the peer is alive
	patience  time.Duration // without an answer, or any other byte
}

var usual = pace{5 * time.Second, 10 * time.Second, 15 * time.Second, 45 * time.Second}

// What the kernel does by itself: an idle connection is probed, and what was
// sent must be acknowledged in time.
const (
	probeIdle     = 5 * time.Second
	probeInterval = 2 * time.Second
	probeCount    = 3
	unackedLimit  = 15 * time.Second
)

const keepalive = "keepalive@openssh.com"

// Kind says what went wrong.
type Kind string

const (
	Unreachable    Kind = "unreachable"      // no connection, or no ssh handshake in time
	HostKeyUnknown Kind = "host key unknown" // known_hosts has no key, or none of this type
	HostKeyChanged Kind = "host key changed" // known_hosts has another key
	HostKeyRevoked Kind = "host key revoked" // known_hosts has it as @revoked
	KeyRefused     Kind = "key refused"      // the peer takes none of our keys
	KeyLocked      Kind = "key locked"       // so it does, and a key of ours has a passphrase
	Settings       Kind = "settings"         // ssh_config is broken
	Protocol       Kind = "protocol"         // whatever answers there does not do what is needed
	Lost           Kind = "lost"             // the connection broke
)

// Error is why there is no connection, for an admin to read.
type Error struct {
	Kind    Kind
	Text    string   // what and where, in one line
	Remedy  string   // what to do, with the commands; may be empty
	Notices []string // of Dial, as Conn.Notices
	Err     error    // the cause, if there is one
}

// Error returns the text, without the remedy.
func (e *Error) Error() string { return e.Text }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Conn is a connection. Its methods may be called from everywhere.
type Conn struct {
	client  *ssh.Client
	target  target
	notices []string
	read    *atomic.Int64 // when the last byte came, since began
	began   time.Time

	done   chan struct{}
	mu     sync.Mutex
	reason error // why we ended it, if we did
	err    error // set before done is closed
}

// Dial connects and authenticates. It takes at most 5 s for the connection
// (ConnectTimeout of ssh_config, if set) and 10 s for the rest. The error is an
// *Error; it wraps that of ctx when ctx ended.
func Dial(ctx context.Context, c Config) (*Conn, error) {
	p := usual
	if c.pace != nil {
		p = *c.pace
	}
	s, err := c.settings()
	if err == nil {
		if s.connectTimeout > 0 {
			p.connect = s.connectTimeout
		}
		var conn *Conn
		if conn, err = s.dial(ctx, p); err == nil {
			return conn, nil
		}
	}
	if e, ok := errors.AsType[*Error](err); ok {
		e.Notices = s.notices
	}
	return nil, err
}

func (s *settings) dial(ctx context.Context, p pace) (*Conn, error) {
	dialer := net.Dialer{
		Timeout:         p.connect,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: probeIdle, Interval: probeInterval, Count: probeCount},
		Control: func(_, _ string, raw syscall.RawConn) (err error) {
			cerr := raw.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(unackedLimit.Milliseconds()))
			})
			return errors.Join(cerr, err)
		},
	}
	socket, err := dialer.DialContext(ctx, "tcp", s.target.address())
	if err != nil {
		return nil, s.target.unreachable(ctx, err, p.connect)
	}
	return s.handshake(ctx, socket, p)
}

// handshake makes an ssh connection of a TCP connection, or closes it.
func (s *settings) handshake(ctx context.Context, socket net.Conn, p pace) (*Conn, error) {
	socket.SetDeadline(time.Now().Add(p.handshake))
	stop := context.AfterFunc(ctx, func() { socket.Close() })
	defer stop()
	known := readKnownHosts(slices.Concat(s.userKnown, s.globalKnown))
	s.notices = append(s.notices, known.notices...)
	// An agent that asks somebody may answer late or never; the peer waits meanwhile.
	ring := s.readKeys(ctx, time.Now().Add(p.handshake/2))
	defer ring.close()
	s.notices = append(s.notices, ring.notices...)

	w := &watched{Conn: socket, began: time.Now()}
	host := hostCheck{known: known, target: s.target, alias: s.hostKeyAlias}
	var talk dialogue
	sc, channels, requests, err := ssh.NewClientConn(w, s.target.address(), &ssh.ClientConfig{
		User:              s.target.user,
		HostKeyCallback:   host.check,
		HostKeyAlgorithms: host.algorithms(s.hostKeyAlgorithms),
		AuthCallback:      ring.next(&talk),
	})
	if err == nil && !stop() {
		sc.Close() // ctx has ended in this very moment
		err = context.Cause(ctx)
	}
	if err != nil {
		socket.Close()
		return nil, s.explain(ctx, err, &host, &talk, ring, p.handshake)
	}
	socket.SetDeadline(time.Time{})

	conn := &Conn{
		client:  ssh.NewClient(sc, channels, requests),
		target:  s.target,
		notices: s.notices,
		read:    &w.last,
		began:   w.began,
		done:    make(chan struct{}),
	}
	go conn.wait()
	go conn.keepAlive(p.ask, p.patience)
	return conn, nil
}

// explain makes an Error of a handshake that failed.
func (s *settings) explain(
	ctx context.Context, err error, host *hostCheck, talk *dialogue, ring *keyring, limit time.Duration,
) error {
	closed := errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE)
	none, mismatch := errors.AsType[*ssh.AlgorithmNegotiationError](err)
	switch {
	case ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded):
		return s.target.unreachable(ctx, err, limit)
	case host.failed != nil:
		return host.failed
	case talk.begun && !closed:
		return s.refused(err, talk, ring)
	case mismatch:
		return &Error{Kind: Protocol, Err: err,
			Text: fmt.Sprintf("%s: no %s algorithm in common; there: %s", s.target, none.What,
				strings.Join(none.RequestedAlgorithms, ",")),
			Remedy: "update the ssh server of " + s.target.host + ", or allow there one of: " +
				strings.Join(none.SupportedAlgorithms, ",")}
	case closed:
		return &Error{Kind: Unreachable, Err: err,
			Text:   fmt.Sprintf("%s closed the connection during the ssh handshake", s.target),
			Remedy: "on " + s.target.host + ", look at: journalctl -u ssh"}
	}
	return &Error{Kind: Protocol, Err: err,
		Text: fmt.Sprintf("%s does not speak ssh as expected: %v", s.target, err),
		Remedy: fmt.Sprintf("is port %d that of the ssh server? Try: %s", s.target.port,
			s.target.command())}
}

// target is whom we talk to.
type target struct {
	user string
	host string // what is dialled
	port uint16
	name string // the host as an admin gives it to ssh
	key  string // of $ssh_key, if it counts
}

func (t target) address() string { return hostPort(t.host, t.port) }

func hostPort(host string, port uint16) string { return net.JoinHostPort(host, fmt.Sprint(port)) }

// String returns "root@192.0.2.1", with the port unless it is 22.
func (t target) String() string {
	if t.port == 22 {
		return t.user + "@" + t.host
	}
	return fmt.Sprintf("%s@%s port %d", t.user, t.host, t.port)
}

// command is what an admin may try by hand.
func (t target) command() string { return "ssh -o BatchMode=yes" + t.options() + " true" }

func (t target) options() string {
	var b strings.Builder
	if t.port != 22 {
		fmt.Fprintf(&b, " -p %d", t.port)
	}
	if t.key != "" {
		b.WriteString(" -i " + shell.Quote(t.key))
	}
	return b.String() + " " + shell.Quote(t.user+"@"+t.name)
}

func (t target) unreachable(ctx context.Context, err error, limit time.Duration) error {
	e := &Error{Kind: Unreachable, Err: err}
	timeout, isNet := errors.AsType[net.Error](err)
	_, unknownName := errors.AsType[*net.DNSError](err)
	switch {
	case ctx.Err() != nil:
		e.Err = context.Cause(ctx)
		e.Text = fmt.Sprintf("%s: given up: %v", t, e.Err)
	case unknownName:
		e.Text = fmt.Sprintf("%s: %v", t, err)
		e.Remedy = "correct HostName in ssh_config, or give an address there"
	case errors.Is(err, unix.ECONNREFUSED):
		e.Text = fmt.Sprintf("%s: connection refused", t)
		e.Remedy = fmt.Sprintf("on %s, start the ssh server (systemctl start ssh), or correct the port, here %d",
			t.host, t.port)
	case isNet && timeout.Timeout():
		e.Text = fmt.Sprintf("%s: no answer within %s", t, limit)
		e.Remedy = fmt.Sprintf("is %s up, and does a firewall let port %d through? Try: %s", t.host, t.port, t.command())
	default:
		cause := err
		if op, ok := errors.AsType[*net.OpError](err); ok {
			cause = op.Err
		}
		e.Text = fmt.Sprintf("%s: %v", t, cause)
		e.Remedy = "check the network between both nodes; try: " + t.command()
	}
	return e
}

// watched knows when the last byte came.
type watched struct {
	net.Conn
	began time.Time
	last  atomic.Int64
}

func (w *watched) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	if n > 0 {
		w.last.Store(int64(time.Since(w.began)))
	}
	return n, err
}

// Notices tells what in ssh_config, known_hosts and the keys is not honoured,
// once each, with file and line.
func (c *Conn) Notices() []string { return slices.Clone(c.notices) }

// Done is closed when the connection has ended, by either side.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err is nil before Done; then it is net.ErrClosed after Close, or an *Error of
// kind Lost.
func (c *Conn) Err() error {
	select {
	case <-c.done:
		return c.err
	default:
		return nil
	}
}

// Close ends the connection and all its sessions. It is fine to call it twice.
func (c *Conn) Close() error {
	c.end(net.ErrClosed)
	<-c.done
	return nil
}

// end closes the connection and notes why, unless that is known already.
func (c *Conn) end(reason error) {
	c.mu.Lock()
	if c.reason == nil {
		c.reason = reason
	}
	c.mu.Unlock()
	c.client.Close()
}

func (c *Conn) wait() {
	err := c.client.Wait()
	c.client.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.reason != nil:
		c.err = c.reason
	case errors.Is(err, io.EOF) || err == nil:
		c.err = c.lost("the other side closed the connection", err)
	case errors.Is(err, net.ErrClosed):
		c.err = c.lost("it cannot be written to", err)
	default:
		cause := err
		if op, ok := errors.AsType[*net.OpError](err); ok {
			cause = op.Err
		}
		c.err = c.lost(cause.Error(), err)
	}
	close(c.done)
}

func (c *Conn) lost(why string, err error) error {
	return &Error{Kind: Lost, Text: fmt.Sprintf("connection to %s lost: %s", c.target, why), Err: err}
}

// keepAlive asks now and then whether the peer is there, and gives up when
// neither an answer nor anything else came for the length of patience.
func (c *Conn) keepAlive(ask, patience time.Duration) {
	for {
		if !c.sleep(ask) {
			return
		}
		answer := make(chan error, 1)
		go func() {
			_, _, err := c.client.SendRequest(keepalive, true, nil)
			answer <- err
		}()
		asked := time.Since(c.began)
		for waiting := true; waiting; {
			heard := max(asked, time.Duration(c.read.Load()))
			rest := heard + patience - time.Since(c.began)
			if rest <= 0 {
				c.end(c.lost(fmt.Sprintf("no sign of life for %s", patience), nil))
				return
			}
			timer := time.NewTimer(rest)
			select {
			case <-answer:
				waiting = false
			case <-c.done:
				timer.Stop()
				return
			case <-timer.C:
			}
			timer.Stop()
		}
	}
}

// sleep tells whether the connection still stands after d.
func (c *Conn) sleep(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-c.done:
		return false
	}
}

// home is the local user's directory.
func (c Config) home() string {
	if c.Home != "" {
		return c.Home
	}
	if h := os.Getenv("HOME"); filepath.IsAbs(h) {
		return h
	}
	return "/root"
}
