package lab

import (
	"errors"
	"fmt"
	"os"
	"path"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// onThread runs f on a thread of its own, which ends with it: f may move it into other namespaces.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The main thread cannot end: it would be stuck in the namespace, and keep that alive.
			done <- onThread(f)
			runtime.UnlockOSThread()
			return
		}
		done <- f() // Ends locked, which ends the thread.
	}()
	return <-done
}

// enter moves the calling thread, which must be one of onThread, into namespaces of the process behind pidfd. With
// CLONE_NEWPID only the children of the thread get there.
func enter(pidfd, kinds int) error {
	if kinds&unix.CLONE_NEWNS != 0 {
		// setns refuses a mount namespace while threads share the current directory.
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
	}
	if err := unix.Setns(pidfd, kinds); err != nil {
		return fmt.Errorf("setns: %w", err)
	}
	return nil
}

const (
	netNamespace  = unix.CLONE_NEWNET
	allNamespaces = unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC
)

// within runs f on a thread in namespaces of the machine.
func (b *boot) within(kinds int, f func() error) error {
	return onThread(func() error {
		if err := enter(b.pidfd, kinds); err != nil {
			return err
		}
		return f()
	})
}

// within keeps the machine powered while f runs in its namespaces.
func (n *Node) within(kinds int, f func() error) error {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.boot == nil {
		return fmt.Errorf("%s: %w", n.Name, ErrNoPower)
	}
	return n.boot.within(kinds, f)
}

// ErrNoPower is what a machine says to everything while it is powered off.
var ErrNoPower = errors.New("has no power")

const searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// lookPath finds a program as a root shell in the calling thread's mount namespace would.
func lookPath(name string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for dir := range strings.SplitSeq(searchPath, ":") {
		file := path.Join(dir, name)
		if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return file, nil
		}
	}
	return "", fmt.Errorf("%s: no such program in %s", name, searchPath)
}
