package lab

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Terminal is a person at a terminal of a machine.
type Terminal struct {
	cmd  *Cmd
	keys *os.File // the side that a person looks at and types on
	gone chan struct{}

	mu     sync.Mutex
	screen strings.Builder
	looked int // so much of screen was seen by Expect
}

// Terminal starts a program, such as an interactive bash, on a new terminal of the machine.
func (n *Node) Terminal(name string, args ...string) (*Terminal, error) {
	keys, err := n.open("/dev/pts/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	line, err := n.otherSide(keys)
	if err != nil {
		keys.Close()
		return nil, fmt.Errorf("%s: terminal: %w", n.Name, err)
	}
	defer line.Close()
	t := &Terminal{cmd: n.Command(context.Background(), name, args...), keys: keys, gone: make(chan struct{})}
	t.cmd.Stdin, t.cmd.Stdout, t.cmd.Stderr = line, line, line
	t.cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, Setctty: true}
	if err := t.cmd.Start(); err != nil {
		keys.Close()
		return nil, err
	}
	n.lab.onClose(func() { t.Close() })
	go t.show()
	return t, nil
}

// otherSide opens the side of the terminal that programs have.
func (n *Node) otherSide(keys *os.File) (*os.File, error) {
	raw, err := keys.SyscallConn()
	if err != nil {
		return nil, err
	}
	var number int
	failed := raw.Control(func(fd uintptr) {
		if err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); err == nil {
			number, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		}
	})
	if failed != nil || err != nil {
		return nil, fmt.Errorf("unlock: %w", err)
	}
	return n.open(fmt.Sprintf("/dev/pts/%d", number), unix.O_RDWR|unix.O_NOCTTY, 0)
}

func (t *Terminal) show() {
	defer close(t.gone)
	text := make([]byte, 4096)
	for {
		size, err := t.keys.Read(text)
		t.mu.Lock()
		t.screen.Write(text[:size])
		t.mu.Unlock()
		if err != nil {
			t.cmd.Wait()
			return
		}
	}
}

// Type types a line and presses Enter.
func (t *Terminal) Type(line string) error {
	_, err := io.WriteString(t.keys, line+"\n")
	return err
}

// Screen is everything that was shown, what was typed included.
func (t *Terminal) Screen() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.screen.String()
}

// Expect waits for a text on the part of the screen that no Expect has passed yet, and gives that part up to the text.
func (t *Terminal) Expect(limit time.Duration, text string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	var before string
	err := Await(ctx, fmt.Sprintf("%q on the screen", text), func() (bool, string) {
		t.mu.Lock()
		defer t.mu.Unlock()
		rest := t.screen.String()[t.looked:]
		at := strings.Index(rest, text)
		if at < 0 {
			return false, fmt.Sprintf("%q", rest)
		}
		before = rest[:at]
		t.looked += at + len(text)
		return true, ""
	})
	return before, err
}

// Close hangs up.
func (t *Terminal) Close() {
	t.keys.SetReadDeadline(time.Now())
	t.cmd.Process.Kill()
	<-t.gone
	t.keys.Close()
}
