package peer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/bootclock"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
)

const (
	lockName   = "peer.lock"
	lockGrace  = 3 * time.Second // from SIGTERM to SIGKILL
	lockKilled = 2 * time.Second // from SIGKILL to giving up
)

// lock is held by the one server that works, and by its rsync, so that nobody
// gets it before that is gone too. The file says who they are.
type lock struct{ file *os.File }

// takeLock takes the lock from whoever has it.
func takeLock(ctx context.Context, dir string) (*lock, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	l := &lock{f}
	if err := l.acquire(ctx); err != nil {
		f.Close()
		return nil, err
	}
	if err := l.note(0); err != nil {
		f.Close()
		return nil, err
	}
	return l, nil
}

// lockIfFree takes the lock unless somebody has it; then it is nil. Who holds it in
// this way is not to be ended, so the file names nobody.
func lockIfFree(dir string) (*lock, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = nil
		}
		return nil, err
	}
	if err := f.Truncate(0); err != nil {
		f.Close()
		return nil, err
	}
	return &lock{f}, nil
}

func (l *lock) acquire(ctx context.Context) error {
	var told holder
	var since time.Time
	killed := false
	for {
		err := unix.Flock(int(l.file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil || !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return err
		}
		now := l.holder()
		switch {
		case now.pid == os.Getpid():
			return fmt.Errorf("%s: another session of this process holds it", l.file.Name())
		case now.pid != told.pid || since.IsZero():
			told, since, killed = now, time.Now(), false
			now.signal(unix.SIGTERM, false)
		case !killed && time.Since(since) > lockGrace:
			killed = true
			now.signal(unix.SIGKILL, true)
		case time.Since(since) > lockGrace+lockKilled:
			return fmt.Errorf("%s: an older skd-inotify peer (process %d) does not end, even by SIGKILL", l.file.Name(), now.pid)
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// holder is what the file says of who holds the lock.
type holder struct {
	pid, group int           // of the server; of its rsync, 0: none runs
	asOf       time.Duration // by the boot clock
}

func (l *lock) holder() (h holder) {
	b := make([]byte, 100)
	n, _ := l.file.ReadAt(b, 0)
	if _, err := fmt.Sscanf(string(b[:n]), "%d %d %d\n", &h.pid, &h.group, &h.asOf); err != nil || h.pid <= 1 || h.group < 0 || h.group == 1 {
		return holder{}
	}
	return h
}

// signal sends to the server, if that is still who wrote the file, and perhaps
// to its rsync: while the lock is held, what is left of the two has it.
func (h holder) signal(sig unix.Signal, group bool) {
	if h.pid > 1 && status.Alive(h.pid, h.asOf) {
		unix.Kill(h.pid, sig)
	}
	if group && h.group > 1 {
		unix.Kill(-h.group, sig)
	}
}

// note writes who holds the lock.
func (l *lock) note(group int) error {
	text := fmt.Sprintf("%d %d %d\n", os.Getpid(), group, bootclock.Now())
	if _, err := l.file.WriteAt([]byte(text), 0); err != nil {
		return err
	}
	return l.file.Truncate(int64(len(text)))
}

// release gives the lock back. The file stays: removing it would let two
// processes hold two files of one name.
func (l *lock) release() { l.file.Close() }
