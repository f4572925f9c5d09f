package tree

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// mounts tells when something is mounted or unmounted, of which inotify says nothing.
type mounts struct {
	// A bare descriptor: the kernel tells each open file once, and an os.File's own poller would take it.
	info       int
	stop, ends *os.File // a pipe; closing ends makes follow return
}

// mountRest is for how many milliseconds a change of the mounts is the last one looked at.
const mountRest = 100

// openMounts returns nil where the kernel does not tell. Then Refresh finds it.
func openMounts() *mounts {
	info, err := unix.Open("/proc/self/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	stop, ends, err := os.Pipe()
	if err != nil {
		unix.Close(info)
		return nil
	}
	return &mounts{info: info, stop: stop, ends: ends}
}

// follow calls changed after each change, at most once in mountRest, until close.
func (m *mounts) follow(changed func()) {
	defer unix.Close(m.info)
	defer m.stop.Close()
	end := unix.PollFd{Fd: int32(m.stop.Fd()), Events: unix.POLLIN}
	for {
		fds := []unix.PollFd{{Fd: int32(m.info), Events: unix.POLLPRI}, end}
		_, err := unix.Poll(fds, -1)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil || fds[1].Revents != 0:
			return
		}
		// The word comes before the change is complete; a read waits until it is.
		var some [64]byte
		_, _ = unix.Pread(m.info, some[:], 0)
		changed()
		_, _ = unix.Poll([]unix.PollFd{end}, mountRest)
	}
}

func (m *mounts) close() { m.ends.Close() }
