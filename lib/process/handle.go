package process

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// ErrGone is the error for a process that has ended.
var ErrGone = errors.New("has ended")

// ErrSurvived is a process that does not even die of SIGKILL: it hangs in the
// kernel, on a dead file server for example.
var ErrSurvived = errors.New("does not die of SIGKILL; it hangs in the kernel (see ps -o pid,stat,wchan,cmd)")

// Handle stays with one process, whoever gets its number later (pidfd_open(2),
// Linux 5.3). Use it from one goroutine.
type Handle struct {
	ID
	fd int
}

// Open returns a Handle for the process that has the number now. The error is
// ErrGone if there is none.
func Open(id ID) (*Handle, error) {
	fd, err := unix.PidfdOpen(int(id), 0)
	if errors.Is(err, unix.ESRCH) {
		return nil, ErrGone
	} else if err != nil {
		return nil, fmt.Errorf("%v: pidfd_open: %w", id, err)
	}
	return &Handle{id, fd}, nil
}

// Find opens the processes for which is says true, but those that have ended
// meanwhile. The caller closes them.
func Find(list []ID, is func(ID) bool) (found []*Handle, err error) {
	for _, id := range list {
		if !is(id) {
			continue
		}
		h, err := Open(id)
		if errors.Is(err, ErrGone) {
			continue
		} else if err != nil {
			return found, err
		}
		// Now it can be asked without another one answering.
		if !is(id) || !h.Alive() {
			h.Close()
			continue
		}
		found = append(found, h)
	}
	return found, nil
}

// Close forgets the process and leaves it alone.
func (h *Handle) Close() { unix.Close(h.fd) }

// Alive tells whether the process has not ended. A zombie has.
func (h *Handle) Alive() bool { return !h.Wait(context.Background(), 0) }

// Signal sends a signal. The error is ErrGone if the process has ended.
func (h *Handle) Signal(sig unix.Signal) error {
	if !h.Alive() { // a zombie would take it
		return ErrGone
	}
	err := unix.PidfdSendSignal(h.fd, sig, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return ErrGone
	} else if err != nil {
		return fmt.Errorf("%v: %s: %w", h.ID, unix.SignalName(sig), err)
	}
	return nil
}

// Wait waits for the end of the process, until ctx or the patience ends. It tells
// whether it has ended.
func (h *Handle) Wait(ctx context.Context, patience time.Duration) bool {
	const slice = 100 * time.Millisecond // how long an end of ctx may go unseen
	for deadline := time.Now().Add(patience); ; {
		left := min(time.Until(deadline), slice)
		p := []unix.PollFd{{Fd: int32(h.fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, int(max(left, 0).Milliseconds()))
		switch {
		case n == 1:
			return true
		case err != nil && !errors.Is(err, unix.EINTR):
			return false
		case ctx.Err() != nil || !time.Now().Before(deadline):
			return false
		}
	}
}

// End ends the process by SIGTERM or, if it has not ended after grace, by
// SIGKILL, and tells by which. It returns when the process is gone, with
// ErrSurvived if that does not come about, or with the error of ctx.
func (h *Handle) End(ctx context.Context, grace time.Duration) (killed bool, err error) {
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		killed = sig == unix.SIGKILL
		err := h.Signal(sig)
		if err == nil {
			h.Signal(unix.SIGCONT) // what is stopped does not see a SIGTERM
		} else if errors.Is(err, ErrGone) {
			return false, nil
		} else {
			return false, err
		}
		if h.Wait(ctx, grace) {
			return killed, nil
		}
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
	}
	return killed, fmt.Errorf("%v: %w", h.ID, ErrSurvived)
}
