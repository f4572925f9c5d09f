// Package control is the daemon's private socket: its own program asks it
// something there, and hands it open files.
//
// A request is one line of JSON, with the files beside it (SCM_RIGHTS); the
// answers are lines of JSON, the last one of which says so. The socket is for
// root alone: by its mode, and by what the kernel says about the caller.
package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// SocketName is the name of skd-inotify's socket in the run directory.
const SocketName = "inotify.sock"

// Request is what a caller wants. A Command of the daemon, its Args (any bytes),
// and at most three Files.
type Request struct {
	Command string
	Args    []string
	Files   []*os.File
}

// Reply is an answer. Replies that are not Done are news on the way; the one
// that is Done is the last, and Exit the exit status that the caller's process
// should have.
type Reply struct {
	Text string `json:",omitempty"`
	Exit int
	Done bool
}

const (
	maxFiles   = 3
	maxRequest = 64 << 10 // bytes of the line
	maxReply   = 1 << 20

	requestWithin = 5 * time.Second  // from connecting to the end of the request
	replyWithin   = 10 * time.Second // how long a caller may leave an answer unread
)

// request is a Request on the wire. Args are bytes because JSON knows no strings
// that are not UTF-8. Files is how many come along: the kernel drops those that
// the receiver has no room for.
type request struct {
	Command string
	Args    [][]byte `json:",omitempty"`
	Files   int      `json:",omitempty"`
}

func encode(r Request) ([]byte, error) {
	if len(r.Files) > maxFiles {
		return nil, fmt.Errorf("request %s: %d files, at most %d can be handed over", r.Command, len(r.Files), maxFiles)
	}
	w := request{Command: r.Command, Files: len(r.Files)}
	for _, a := range r.Args {
		w.Args = append(w.Args, []byte(a))
	}
	b, err := json.Marshal(w)
	if err != nil {
		return nil, err
	}
	if len(b) >= maxRequest {
		return nil, fmt.Errorf("request %s: %d bytes, at most %d can be sent", r.Command, len(b), maxRequest)
	}
	return append(b, '\n'), nil
}

// decode reads a request's line, and tells how many files belong to it.
func decode(line []byte) (r Request, files int, err error) {
	var w request
	if err := json.Unmarshal(line, &w); err != nil {
		return r, 0, fmt.Errorf("request: %w", err)
	}
	if w.Command == "" {
		return r, 0, errors.New("request: no command")
	}
	if w.Files < 0 || w.Files > maxFiles {
		return r, 0, fmt.Errorf("request %.40q: %d files, want 0 to %d", w.Command, w.Files, maxFiles)
	}
	r.Command = w.Command
	for _, a := range w.Args {
		r.Args = append(r.Args, string(a))
	}
	return r, w.Files, nil
}

// inbox collects a request and the files that come with it.
type inbox struct {
	line  []byte
	files []*os.File
}

// fill reads until a line is complete.
func (in *inbox) fill(c *net.UnixConn) error {
	buf := make([]byte, 4<<10)
	oob := make([]byte, unix.CmsgSpace(maxFiles*4))
	for {
		n, oobn, flags, _, err := c.ReadMsgUnix(buf, oob)
		// Even with an error: whatever has arrived is open, and ours to close.
		ferr := in.takeFiles(oob[:oobn])
		switch {
		case err != nil:
			return err
		case n == 0:
			return io.ErrUnexpectedEOF
		case ferr != nil:
			return ferr
		case flags&unix.MSG_CTRUNC != 0 || len(in.files) > maxFiles:
			return errors.New("request: files were lost on the way: too many, or too many open here")
		}
		in.line = append(in.line, buf[:n]...)
		if in.line[len(in.line)-1] == '\n' {
			return nil
		}
		if len(in.line) > maxRequest {
			return fmt.Errorf("request: more than %d bytes", maxRequest)
		}
	}
}

func (in *inbox) takeFiles(oob []byte) error {
	if len(oob) == 0 {
		return nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return err
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue // credentials, for example
		}
		for _, fd := range fds {
			in.files = append(in.files, adopt(fd))
		}
	}
	return nil
}

// adopt makes a received descriptor a file of ours. Reading a pipe or a socket
// must be something that Close ends; that takes one that does not block.
func adopt(fd int) *os.File {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err == nil {
		if kind := st.Mode & unix.S_IFMT; kind == unix.S_IFIFO || kind == unix.S_IFSOCK {
			unix.SetNonblock(fd, true)
		}
	}
	return os.NewFile(uintptr(fd), "file of a caller")
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
