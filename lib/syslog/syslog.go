// Package syslog is where the daemons log: the system's log under facility
// daemon, and standard error when that is a terminal or when there is no system
// log. A line is a sentence, with key=value facts behind it.
//
// Logging never waits for the log: a journal that hangs must not cost an advert.
// Lines that find the queue full are counted, and the count is logged.
package syslog

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"log/syslog"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const queued = 256

type line struct {
	at    time.Time
	level slog.Level
	text  string
	flush chan struct{}
}

// Sink is an open log.
type Sink struct {
	tag    string
	lines  chan line
	lost   atomic.Uint64
	system *syslog.Writer
	stderr io.Writer // nil: not there

	onStderr atomic.Bool
	retry    time.Time
}

// Open starts logging under a program's name.
func Open(tag string) *Sink {
	s := &Sink{tag: tag, lines: make(chan line, queued)}
	if isTerminal(os.Stderr) {
		s.stderr = os.Stderr
	}
	s.dial()
	go s.run()
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

// Logger returns a logger that writes to the sink.
func (s *Sink) Logger() *slog.Logger { return slog.New(handler{sink: s}) }

// OnStderr tells whether the lines go to standard error.
func (s *Sink) OnStderr() bool { return s.onStderr.Load() }

// Flush waits, at most for limit, until everything logged so far is written.
func (s *Sink) Flush(limit time.Duration) {
	done := make(chan struct{})
	timeout := time.After(limit)
	select {
	case s.lines <- line{flush: done}:
	case <-timeout:
		return
	}
	select {
	case <-done:
	case <-timeout:
	}
}

func (s *Sink) run() {
	for l := range s.lines {
		if n := s.lost.Swap(0); n > 0 {
			s.write(line{at: time.Now(), level: slog.LevelWarn, text: fmt.Sprintf("%d log lines were lost: the system's log was not read", n)})
		}
		if l.flush != nil {
			close(l.flush)
			continue
		}
		s.write(l)
	}
}

func (s *Sink) write(l line) {
	if s.system == nil && time.Now().After(s.retry) {
		s.dial()
	}
	if s.system != nil {
		var err error
		switch {
		case l.level >= slog.LevelError:
			err = s.system.Err(l.text)
		case l.level >= slog.LevelWarn:
			err = s.system.Warning(l.text)
		default:
			err = s.system.Info(l.text)
		}
		if err != nil {
			s.system.Close()
			s.system = nil
		}
	}
	switch {
	case s.stderr != nil:
		fmt.Fprintf(s.stderr, "%s %s\n", l.at.Format("15:04:05.000"), l.text)
	case s.system == nil:
		fmt.Fprintf(os.Stderr, "%s %s: %s\n", l.at.Format(time.RFC3339Nano), s.tag, l.text)
	}
}

// handler turns records into lines.
type handler struct {
	sink   *Sink
	suffix string
}

func (h handler) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelInfo }

func (h handler) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	b.WriteString(oneLine(r.Message))
	b.WriteString(h.suffix)
	r.Attrs(func(a slog.Attr) bool {
		b.WriteString(fact(a))
		return true
	})
	select {
	case h.sink.lines <- line{at: r.Time, level: r.Level, text: b.String()}:
	default:
		h.sink.lost.Add(1)
	}
	return nil
}

func (h handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	for _, a := range attrs {
		h.suffix += fact(a)
	}
	return h
}

// WithGroup is not used by the programs; groups have no place in such a line.
func (h handler) WithGroup(string) slog.Handler { return h }

func fact(a slog.Attr) string {
	v := a.Value.Resolve().String()
	if v == "" || strings.ContainsFunc(v, func(r rune) bool { return r <= ' ' || r == '"' || r == '=' || r == 0x7f }) {
		v = strconv.Quote(v)
	}
	return " " + a.Key + "=" + v
}

// oneLine keeps what comes from a packet or a hook from forging log lines.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\t' || r == 0x7f {
			return '?'
		}
		return r
	}, s)
}
