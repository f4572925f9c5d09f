package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// longestPath is what a socket's address holds.
const longestPath = 107

// Listener is the daemon's end of the socket.
type Listener struct {
	socket *net.UnixListener
	path   string
	file   fs.FileInfo // of path, as made here
	calls  chan *Call
	ctx    context.Context // ends when the listener is closed
	end    context.CancelFunc
	wg     sync.WaitGroup
}

// Listen makes the socket, with mode 0600, in a directory that exists. A socket
// that a daemon has left behind is replaced. If one listens there, that is the
// error.
func Listen(path string) (*Listener, error) {
	if len(path) > longestPath {
		return nil, fmt.Errorf("control socket %s: the path has %d bytes, at most %d can be: choose a shorter run directory",
			path, len(path), longestPath)
	}
	l, err := listenOnce(path)
	// What a killed daemon was just starting may not have closed its socket yet.
	for began := time.Now(); errors.Is(err, errTaken) && time.Since(began) < time.Second; l, err = listenOnce(path) {
		time.Sleep(10 * time.Millisecond)
	}
	return l, err
}

// errTaken is wrapped by the error if somebody listens already.
var errTaken = errors.New("another daemon listens")

func listenOnce(path string) (*Listener, error) {
	unlock, err := lock(path)
	if err != nil {
		return nil, fmt.Errorf("control socket %s: %w", path, err)
	}
	defer unlock()
	if err := clear(path); err != nil {
		return nil, err
	}
	c := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		// Before it is bound: then it never has another mode.
		if cerr := raw.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }); cerr != nil {
			return cerr
		}
		return err
	}}
	s, err := c.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	l := &Listener{socket: s.(*net.UnixListener), path: path, calls: make(chan *Call)}
	l.ctx, l.end = context.WithCancel(context.Background())
	l.socket.SetUnlinkOnClose(false)
	if l.file, err = os.Lstat(path); err != nil {
		l.socket.Close()
		return nil, fmt.Errorf("control socket: %w", err)
	}
	l.wg.Go(l.accept)
	return l, nil
}

// lock makes sure that two daemons that start at once do not both find the same
// socket stale. Whoever may open a file may lock it, so this one is for root alone.
func lock(path string) (unlock func(), err error) {
	d, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	for range 200 {
		err = unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { d.Close() }, nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	d.Close()
	return nil, fmt.Errorf("another program holds a lock on %s.lock: %w", path, err)
}

// clear removes a socket that nobody listens on.
func clear(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("control socket %s: something else is there: remove it", path)
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		c.Close()
	}
	if !errors.Is(err, syscall.ECONNREFUSED) { // EAGAIN: it listens, and is busy
		return fmt.Errorf("%w on %s: end it first", errTaken, path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("control socket: %w", err)
	}
	return nil
}

// accept takes connections; what each has to say is read beside the others.
func (l *Listener) accept() {
	for {
		c, err := l.socket.AcceptUnix()
		if err == nil {
			l.wg.Go(func() { l.receive(c) })
			continue
		}
		select {
		case <-l.ctx.Done():
			return
		case <-time.After(50 * time.Millisecond): // too many open files, for example
		}
	}
}

// receive reads one caller's request and hands it to Accept.
func (l *Listener) receive(conn *net.UnixConn) {
	c := &Call{conn: conn, gone: make(chan struct{})}
	if err := allowed(conn); err != nil {
		c.refuse(err)
		return
	}
	conn.SetReadDeadline(time.Now().Add(requestWithin))
	// Closing the listener does not wait for a silent caller.
	stop := context.AfterFunc(l.ctx, func() { conn.SetReadDeadline(time.Now()) })
	var in inbox
	err := in.fill(conn)
	stop()
	c.Files = in.files
	if err == nil {
		var files int
		c.Request, files, err = decode(in.line)
		c.Files = in.files
		if err == nil && files != len(in.files) {
			err = fmt.Errorf("request %.40q: %d files of %d arrived", c.Command, len(in.files), files)
		}
	}
	if err != nil {
		c.refuse(err)
		return
	}
	conn.SetReadDeadline(time.Time{})
	go c.watch()
	select {
	case l.calls <- c:
	case <-c.gone:
		c.Close()
	case <-l.ctx.Done():
		c.Close()
	}
}

// allowed asks the kernel who called.
func allowed(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) {
		cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return err
	}
	if cerr != nil {
		return cerr
	}
	if cred.Uid != 0 && cred.Uid != uint32(os.Geteuid()) {
		return fmt.Errorf("uid %d: only root may talk to the daemon", cred.Uid)
	}
	return nil
}

// Accept returns the next complete call. After Close the error wraps
// net.ErrClosed; there is no other one.
func (l *Listener) Accept() (*Call, error) {
	select {
	case c := <-l.calls:
		return c, nil
	case <-l.ctx.Done():
		return nil, fmt.Errorf("control socket %s: %w", l.path, net.ErrClosed)
	}
}

// Close stops listening and removes the socket. Calls that Accept has returned
// live on.
func (l *Listener) Close() error {
	if l.ctx.Err() != nil {
		return nil
	}
	var err error
	if now, lerr := os.Lstat(l.path); lerr == nil && os.SameFile(now, l.file) {
		err = os.Remove(l.path)
	}
	l.end()
	err = errors.Join(err, l.socket.Close())
	l.wg.Wait()
	return err
}

// Call is a caller's request and the way back to him. Close ends it.
type Call struct {
	Request // its Files are closed by Close; who keeps them longer sets Files to nil

	conn *net.UnixConn
	gone chan struct{}

	mu   sync.Mutex
	done bool
}

// watch notices that the caller has gone. He has nothing to say any more, so
// that whatever is read here is the end.
func (c *Call) watch() {
	defer close(c.gone)
	c.conn.Read(make([]byte, 1))
}

// Reply sends an answer. It fails if the caller has gone, or has left his
// answers unread for ten seconds, and after one that was Done.
func (c *Call) Reply(r Reply) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done {
		return fmt.Errorf("answer to %s: the last one was sent already", c.Command)
	}
	b, err := json.Marshal(r)
	if err == nil && len(b) >= maxReply {
		err = fmt.Errorf("%d bytes, at most %d can be sent", len(b), maxReply)
	}
	if err != nil {
		return fmt.Errorf("answer to %s: %w", c.Command, err)
	}
	c.done = r.Done
	c.conn.SetWriteDeadline(time.Now().Add(replyWithin))
	if _, err := c.conn.Write(append(b, '\n')); err != nil {
		c.done = true // the caller may have seen a part
		return fmt.Errorf("answer to %s: %w", c.Command, err)
	}
	return nil
}

// refuse ends a call that is none.
func (c *Call) refuse(err error) {
	c.Reply(Reply{Text: err.Error(), Exit: 1, Done: true})
	c.Close()
}

// Gone is closed when the caller's process has ended or has hung up.
func (c *Call) Gone() <-chan struct{} { return c.gone }

// Close hangs up and closes the files.
func (c *Call) Close() {
	c.conn.Close()
	closeAll(c.Files)
}
