// Package syslog is where the daemons log: the system's log under facility
// daemon, and standard error when that is a terminal or when there is no system
// log. A line is a sentence, with key=value facts behind it.
//
// Logging never waits for the log: a journal that hangs must not cost an advert.
// Lines that find the queue full are counted, and the count is logged.
package syslog

import (
	"fmt"
	"io"
	"log/slog"
	"log/syslog"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/logline"
)

// Sink is an open log.
type Sink struct {
	*logline.Queue

	tag    string
	system *syslog.Writer
	stderr io.Writer // nil: not there

	onStderr atomic.Bool
	retry    time.Time
}

// Open starts logging under a program's name.
func Open(tag string) *Sink {
	s := &Sink{tag: tag}
	if isTerminal(os.Stderr) {
		s.stderr = os.Stderr
	}
	s.dial()
	s.start()
	return s
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

const redialAfter = 10 * time.Second

func (s *Sink) dial() {
	s.retry = time.Now().Add(redialAfter)
	s.system, _ = syslog.New(syslog.LOG_DAEMON|syslog.LOG_INFO, s.tag)
	s.onStderr.Store(s.stderr != nil || s.system == nil)
}

func (s *Sink) start() {
	s.Queue = logline.NewQueue(s.write, "the system's log was not read")
}

// OnStderr tells whether the lines go to standard error.
func (s *Sink) OnStderr() bool { return s.onStderr.Load() }

func (s *Sink) write(l logline.Line) {
	if s.system == nil && time.Now().After(s.retry) {
		s.dial()
	}
	if s.system != nil {
		var err error
		switch {
		case l.Level >= slog.LevelError:
			err = s.system.Err(l.Text)
		case l.Level >= slog.LevelWarn:
			err = s.system.Warning(l.Text)
		default:
			err = s.system.Info(l.Text)
		}
		if err != nil {
			s.system.Close()
			s.system = nil
		}
	}
	switch {
	case s.stderr != nil:
		fmt.Fprintf(s.stderr, "%s %s\n", l.At.Format("15:04:05.000"), l.Text)
	case s.system == nil:
		fmt.Fprintf(os.Stderr, "%s %s: %s\n", l.At.Format(time.RFC3339Nano), s.tag, l.Text)
	}
}
