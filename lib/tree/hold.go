package tree

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// fsnotify knows a watch by the path it was added with, follows symlinks in
// this path, and keeps to it when the directory is renamed. So it gets paths of
// ours: /proc/self/fd/N, where N is open on the directory only while the watch
// is added, and afterwards serves as the name of the watch.
const prefix = "/proc/self/fd/"

func watchName(handle int) string { return prefix + strconv.Itoa(handle) }

// parseEvent splits the name of an event into the watch's number and the
// entry in its directory, "" for the directory itself.
func parseEvent(name string) (handle int, entry string, ok bool) {
	rest, ok := strings.CutPrefix(name, prefix)
	if !ok {
		return 0, "", false
	}
	number, entry, _ := strings.Cut(rest, "/")
	handle, err := strconv.Atoi(number)
	return handle, entry, err == nil
}

// numbers hands out the numbers of watches. A number given back is used again only
// after recycle, because an event may be on its way with it.
type numbers struct {
	top     int
	free    []int
	resting []int
}

// firstNumber is above the descriptors a small program has open.
const firstNumber = 64

func (n *numbers) take() int {
	if last := len(n.free) - 1; last >= 0 {
		number := n.free[last]
		n.free = n.free[:last]
		return number
	}
	n.top = max(n.top+1, firstNumber)
	return n.top
}

func (n *numbers) give(number int) { n.resting = append(n.resting, number) }

func (n *numbers) unused(number int) { n.free = append(n.free, number) }

func (n *numbers) recycle() {
	n.free = append(n.free, n.resting...)
	n.resting = n.resting[:0]
}

// hold adds a watch on an open directory and returns its number.
func (r *watched) hold(f *os.File) (int, error) {
	for {
		number := r.numbers.take()
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, number)
		if err == nil && fd != number { // taken by another part of the program
			unix.Close(fd)
			defer r.numbers.unused(number)
			continue
		}
		if err == nil {
			err = r.fs.Add(watchName(number))
			unix.Close(fd)
		} else if errors.Is(err, unix.EINVAL) { // the number is beyond the limit of open files
			err = unix.EMFILE
		}
		if err != nil {
			r.numbers.unused(number)
			return 0, err
		}
		return number, nil
	}
}

// release ends a watch. Its nodes are the caller's matter.
func (r *watched) release(w *watch) {
	// The error says that it ended by itself, with its directory.
	_ = r.fs.Remove(watchName(w.handle))
	r.numbers.give(w.handle)
	delete(r.handles, w.handle)
	delete(r.byID, w.id)
}

// openDir opens a directory, and nothing else: a FIFO or device is not touched.
func openDir(at int, name, path string, followLink bool) (*os.File, error) {
	flags := unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC | unix.O_NOFOLLOW
	if followLink {
		flags &^= unix.O_NOFOLLOW
	}
	for {
		fd, err := unix.Openat(at, name, flags, 0)
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), path), nil
		case !errors.Is(err, unix.EINTR):
			return nil, err
		}
	}
}

func identify(f *os.File) (id, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return id{}, err
	}
	return id{uint64(st.Dev), st.Ino}, nil
}

// noDirectory tells that an error means: there is no directory of that name (any more).
func noDirectory(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}

// instanceError explains why there is no inotify instance.
func instanceError(err error) error {
	if !errors.Is(err, unix.EMFILE) {
		return fmt.Errorf("cannot watch for changes: %w", err)
	}
	// The kernel has one error for two limits. With the open files at their limit, nothing opens.
	if f, err := os.Open("/"); err != nil {
		return fmt.Errorf("cannot watch for changes: %w", remedied(unix.EMFILE))
	} else {
		f.Close()
	}
	return fmt.Errorf("cannot watch for changes: %w: %s", err,
		limit("this user has all the inotify instances that", "max_user_instances"))
}

// remedied adds to an error what can be done about it.
func remedied(err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC):
		return fmt.Errorf("%w: %s", err, limit("this user has all the inotify watches that", "max_user_watches"))
	case errors.Is(err, unix.EMFILE):
		return fmt.Errorf("%w: raise the limit of open files, in the systemd unit LimitNOFILE=", err)
	}
	return err
}

// limit is the text for a sysctl that is too low.
func limit(what, name string) string {
	value := 0
	if b, err := os.ReadFile("/proc/sys/fs/inotify/" + name); err == nil {
		value, _ = strconv.Atoi(strings.TrimSpace(string(b)))
	}
	return limitText(what, "fs.inotify."+name, value)
}

func limitText(what, sysctl string, value int) string {
	better := max(2*value, 1024)
	return fmt.Sprintf("%s %s=%d allows; do: sysctl %s=%d; to keep it: /etc/sysctl.d/", what, sysctl, value, sysctl, better)
}
