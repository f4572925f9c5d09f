package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/bootclock"
	"github.com/skudonet/skudonet-ce-cluster/lib/node"
	"github.com/skudonet/skudonet-ce-cluster/lib/pidfile"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
)

const pidName = "vrrpd.pid"

func pidPath(places node.Places) string { return filepath.Join(places.RunDir, pidName) }

// life is what the pid file tells of the daemon.
type life int

const (
	stopped  life = iota
	dead          // and its pid file is left
	running       // also while it executes itself anew
	replaced      // a command is at work that keeps the daemon from starting
)

type process struct {
	life life
	pid  int    // of a running daemon, or of the command
	word string // the command, if life is replaced
}

const (
	lookFor   = 2 * time.Second // at something that is about to become clear
	lookAgain = 5 * time.Millisecond
)

// look finds out whether a daemon runs. The lock on the pid file decides; it
// waits while a daemon has not written its number yet, or has left the lock
// because it executes itself anew.
func look(places node.Places) (process, error) {
	for begun := time.Now(); ; time.Sleep(lookAgain) {
		p, clear, err := glance(places)
		switch {
		case err != nil || clear:
			return p, err
		case time.Since(begun) > lookFor && p.pid <= 0:
			return p, fmt.Errorf("%s is locked, but has no process number in it", pidPath(places))
		case time.Since(begun) > lookFor:
			return p, nil
		}
	}
}

func glance(places node.Places) (p process, clear bool, err error) {
	f, err := os.Open(pidPath(places))
	if errors.Is(err, fs.ErrNotExist) {
		return process{life: stopped}, true, nil
	} else if err != nil {
		return process{}, true, err
	}
	defer f.Close()
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
		return process{}, !errors.Is(err, unix.EINTR), fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	free := err == nil
	text, err := io.ReadAll(io.LimitReader(f, 64))
	if err != nil {
		return process{}, true, err
	}
	number, word, _ := strings.Cut(strings.TrimSpace(string(text)), " ")
	pid, _ := strconv.Atoi(number)
	switch {
	case free:
		// The number alone may be somebody else's by now.
		if d, err := status.ReadDaemon(filepath.Join(places.RunDir, status.DaemonFile)); err != nil || d.PID != pid || word != "" || !d.Alive() {
			return process{life: dead}, true, nil
		}
		return process{life: running, pid: pid}, false, nil
	case word != "":
		return process{life: replaced, pid: pid, word: word}, true, nil
	}
	return process{life: running, pid: pid}, pid > 0 && status.Alive(pid, bootclock.Now()), nil
}

// standIn is a command that holds the daemon's place, because it must not work
// beside one: whoever starts meanwhile is told so.
type standIn struct {
	file   *os.File
	before []byte // in the pid file
	found  bool   // there was one
}

// replace takes the daemon's place. The error is a *pidfile.Held if somebody was faster.
func replace(places node.Places, command string) (*standIn, error) {
	before, unread := os.ReadFile(pidPath(places))
	f, err := pidfile.Claim(pidPath(places))
	if err != nil {
		return nil, err
	}
	if _, err := f.WriteAt(fmt.Appendf(nil, "%d %s\n", os.Getpid(), command), 0); err != nil {
		f.Close()
		return nil, err
	}
	return &standIn{f, before, unread == nil}, nil
}

// leave gives the place back, with the pid file as it was.
func (s *standIn) leave() {
	if !s.found {
		s.vacate()
		return
	}
	if s.file.Truncate(0) == nil {
		s.file.WriteAt(s.before, 0)
	}
	s.file.Close()
}

// vacate gives it back without a pid file, as a daemon that stops does.
func (s *standIn) vacate() {
	os.Remove(s.file.Name()) // as long as it is ours
	s.file.Close()
}

// Exit statuses of pid beside 0, as the Linux Standard Base has them for the
// status of a service.
const (
	statusDead    = 1
	statusStopped = 3
	statusUnknown = 4
)

// printPID prints the number of the running daemon.
func printPID(c *cli.Context) error {
	p, err := look(places(c))
	switch {
	case err != nil:
		return cli.Exit(err, statusUnknown)
	case p.life == running:
		fmt.Println(p.pid)
		return nil
	case p.life == replaced:
		return cli.Exit(fmt.Sprintf("skd-vrrpd does not run; skd-vrrpd %s is at work, as process %d", p.word, p.pid), statusDead)
	case p.life == dead:
		return cli.Exit("skd-vrrpd is dead, and has left its pid file "+pidPath(places(c)), statusDead)
	}
	return cli.Exit("skd-vrrpd does not run", statusStopped)
}
