// Package process finds the processes of this system that run a certain program,
// and ends them without ever hitting another one that has got the number since.
//
// What /proc says of a process may be out of date when it is read, and is empty
// for one that has ended. Who wants to act on it opens the process first: what is
// read while the Handle is alive is about that process and no other.
package process

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ID is the number of a process in the pid namespace of /proc.
type ID int

// All returns the numbers of all processes, threads not counted.
func All() ([]ID, error) {
	proc, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer proc.Close()
	names, err := proc.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var all []ID
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			all = append(all, ID(pid))
		}
	}
	return all, nil
}

func (id ID) path(name string) string { return "/proc/" + strconv.Itoa(int(id)) + "/" + name }

// Name is the short name that the kernel keeps: the first 15 bytes of that of the
// executable or script, or what the process has made of it. It is the cheapest
// thing to ask, and proves nothing.
func (id ID) Name() string {
	// Not os.ReadFile: a system may have thousands of processes.
	fd, err := unix.Open(id.path("comm"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	var name [16]byte
	n, _ := unix.Read(fd, name[:])
	return strings.TrimSuffix(string(name[:max(n, 0)]), "\n")
}

// Executable is the path of the program that it runs, as it was when it started:
// an upgrade may have put another file there. Empty for kernel threads and
// zombies.
func (id ID) Executable() string {
	path, _ := os.Readlink(id.path("exe"))
	return strings.TrimSuffix(path, " (deleted)")
}

// Arguments is what it was started with, or has written there itself. Nil for
// kernel threads and zombies.
func (id ID) Arguments() []string {
	text, err := os.ReadFile(id.path("cmdline"))
	if err != nil || len(text) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00")
}

// Children are the processes that it has started and not waited for yet.
func (id ID) Children() (children []ID) {
	tasks, _ := filepath.Glob(id.path("task/*/children"))
	for _, file := range tasks {
		text, _ := os.ReadFile(file)
		for _, field := range strings.Fields(string(text)) {
			if pid, err := strconv.Atoi(field); err == nil {
				children = append(children, ID(pid))
			}
		}
	}
	return children
}

// Descendants are its children, and theirs.
func (id ID) Descendants() (all []ID) {
	for _, child := range id.Children() {
		all = append(append(all, child), child.Descendants()...)
	}
	return all
}

// Catches tells whether it has a handler for a signal. One that has none and does
// not ignore it is ended by most of them.
func (id ID) Catches(sig unix.Signal) bool {
	text, _ := os.ReadFile(id.path("status"))
	_, mask, _ := strings.Cut(string(text), "\nSigCgt:")
	mask, _, _ = strings.Cut(mask, "\n")
	bits, err := strconv.ParseUint(strings.TrimSpace(mask), 16, 64)
	return err == nil && bits>>(sig-1)&1 == 1
}

// SameNamespace tells whether it lives in the pid namespace of this process, and
// not in a container below it. When that cannot be known it counts as being here.
func (id ID) SameNamespace() bool {
	here, err := os.Readlink("/proc/self/ns/pid")
	there, otherErr := os.Readlink(id.path("ns/pid"))
	return err != nil || otherErr != nil || here == there
}

// SameRoot tells whether it has the root directory of this process. One in a
// chroot has not, nor one in a container that shares its pids with the host.
func (id ID) SameRoot() bool {
	var here, there unix.Stat_t
	return unix.Stat("/", &here) == nil && unix.Stat(id.path("root/"), &there) == nil &&
		here.Dev == there.Dev && here.Ino == there.Ino
}

// WithoutChildren drops those that another one of the list has started: copies
// of a program that are just on their way to being another one.
func WithoutChildren(list []ID) []ID {
	var children []ID
	for _, id := range list {
		children = append(children, id.Children()...)
	}
	return slices.DeleteFunc(list, func(id ID) bool { return slices.Contains(children, id) })
}

func (id ID) String() string { return fmt.Sprintf("process %d", int(id)) }
