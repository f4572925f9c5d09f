package lab

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// Syslog collects what programs of a machine say at /dev/log.
type Syslog struct {
	dev    *os.File // by number: /dev/log must not be looked up in the /dev of somebody else
	socket *net.UnixConn
	done   chan struct{}
	once   sync.Once

	mu    sync.Mutex
	lines []string
}

// Syslog gives the machine a syslog, until power-off or Close. Without one there is no /dev/log.
func (n *Node) Syslog() (*Syslog, error) {
	dev, err := n.open("/dev", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	name := fmt.Sprintf("/proc/self/fd/%d/log", dev.Fd())
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		dev.Close()
		return nil, fmt.Errorf("%s: syslog: %w", n.Name, err)
	}
	s := &Syslog{dev: dev, socket: socket, done: make(chan struct{})}
	n.lab.onClose(s.Close)
	go func() {
		defer close(s.done)
		message := make([]byte, 1<<16)
		for {
			size, err := socket.Read(message)
			if err != nil {
				return
			}
			s.mu.Lock()
			s.lines = append(s.lines, string(bytes.TrimRight(message[:size], "\n\x00")))
			s.mu.Unlock()
		}
	}()
	return s, nil
}

// Lines are the messages so far, each as it was sent: <PRI>TIME TAG: TEXT.
func (s *Syslog) Lines() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.lines)
}

// Close removes /dev/log.
func (s *Syslog) Close() {
	s.once.Do(func() {
		s.socket.Close()
		<-s.done
		unix.Unlinkat(int(s.dev.Fd()), "log", 0)
		s.dev.Close()
	})
}
