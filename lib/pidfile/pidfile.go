// Package pidfile keeps a daemon from running twice, and names its process. The
// lock on the file, not the file, tells a living daemon from a dead one.
package pidfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	tries = 100
	pause = 5 * time.Millisecond
)

// Held is the error for a lock that another process has.
type Held struct{ PID string }

func (h *Held) Error() string { return "as process " + h.PID }

// Claim locks the file at path, writes this process's number into it, and
// returns it open: the lock lasts as long as that. The error is a *Held if
// another process has the lock. A holder that is ending is given half a second, because a
// child of it, on its way to being another program, may still hold the lock.
func Claim(path string) (*os.File, error) {
	for n := 0; ; n++ {
		f, err := lock(path)
		if err == nil {
			if _, err = f.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0); err != nil {
				f.Close()
				return nil, err
			}
			return f, nil
		}
		var held *Held
		if n == tries || !errors.As(err, &held) && !errors.Is(err, errGone) && !errors.Is(err, unix.EINTR) {
			return nil, err
		}
		time.Sleep(pause)
	}
}

// errGone is for a file that is not at its path any more: its holder removed it
// at his end, and another one may be there by now.
var errGone = errors.New("removed while it was being locked")

// lock opens and locks the file, and empties it.
func lock(path string) (f *os.File, err error) {
	// Whoever may open a file may lock it: this one is for root alone.
	f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	if err := f.Chmod(0o600); err != nil { // one of an earlier version
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		pid, _ := io.ReadAll(io.LimitReader(f, 16))
		return nil, &Held{string(bytes.TrimSpace(pid))}
	} else if err != nil {
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	locked, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if there, err := os.Stat(path); err != nil || !os.SameFile(locked, there) {
		return nil, fmt.Errorf("lock %s: %w", path, errGone)
	}
	return f, f.Truncate(0)
}
