package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// Do sends a request to the daemon that listens on path and returns its last
// answer. Those before it go to progress, which may be nil. The files are handed
// over: when Do returns, and already while it waits, they are closed here.
//
// Where no daemon listens the error wraps fs.ErrNotExist or ECONNREFUSED. If the
// daemon goes away in between it wraps io.ErrUnexpectedEOF.
func Do(ctx context.Context, path string, r Request, progress func(Reply)) (Reply, error) {
	last, err := do(ctx, path, r, progress)
	closeAll(r.Files)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return last, err
}

func do(ctx context.Context, path string, r Request, progress func(Reply)) (Reply, error) {
	line, err := encode(r)
	if err != nil {
		return Reply{}, err
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return Reply{}, fmt.Errorf("the daemon's socket: %w", err)
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Now()) })()
	if err := send(c.(*net.UnixConn), line, r); err != nil {
		return Reply{}, lost(path, err)
	}
	closeAll(r.Files)
	answers := bufio.NewScanner(c)
	answers.Buffer(nil, maxReply)
	for answers.Scan() {
		var reply Reply
		if err := json.Unmarshal(answers.Bytes(), &reply); err != nil {
			return Reply{}, fmt.Errorf("answer of the daemon on %s: %w", path, err)
		}
		if reply.Done {
			return reply, nil
		}
		if progress != nil {
			progress(reply)
		}
	}
	return Reply{}, lost(path, answers.Err())
}

// lost is the error when the connection ends before the last answer.
func lost(path string, err error) error {
	if err == nil || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) {
		return fmt.Errorf("the daemon on %s went away before it had answered: %w", path, io.ErrUnexpectedEOF)
	}
	return fmt.Errorf("ask the daemon on %s: %w", path, err)
}

// send writes the line, with the files beside its first part.
func send(c *net.UnixConn, line []byte, r Request) error {
	var rights []byte
	if len(r.Files) > 0 {
		fds := make([]int, len(r.Files))
		for i, f := range r.Files {
			fds[i] = int(f.Fd())
		}
		rights = unix.UnixRights(fds...)
	}
	n, _, err := c.WriteMsgUnix(line, rights, nil)
	if err == nil && n < len(line) {
		_, err = c.Write(line[n:])
	}
	return err
}
