// Package logline is what the programs' logs have in common: a line is a
// sentence with key=value facts behind it, harmless for a log and a terminal
// whatever came from a packet, a hook or a file's name, and logging never waits
// for the log.
package logline

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Line is one line for a log. Text has no newline.
type Line struct {
	At    time.Time
	Level slog.Level
	Text  string
}

const queued = 256

// Queue is lines on their way to a log. Its methods do not wait, except Flush.
type Queue struct {
	items chan item
	lost  atomic.Uint64
}

// item is a line, or something to do between two lines.
type item struct {
	line Line
	do   func()
}

// NewQueue begins to write lines, one after the other and beside the program.
// Lines that find 256 waiting are lost and counted; the count is logged, with
// the reason why.
func NewQueue(write func(Line), why string) *Queue {
	q := &Queue{items: make(chan item, queued)}
	go func() {
		for i := range q.items {
			if n := q.lost.Swap(0); n > 0 {
				write(Line{At: time.Now(), Level: slog.LevelWarn, Text: fmt.Sprintf("%d log lines were lost: %s", n, why)})
			}
			if i.do != nil {
				i.do()
			} else {
				write(i.line)
			}
		}
	}()
	return q
}

// Put has a line written.
func (q *Queue) Put(l Line) {
	select {
	case q.items <- item{line: l}:
	default:
		q.lost.Add(1)
	}
}

// Do has f called between two lines, and tells whether that will be: not if the
// queue is full.
func (q *Queue) Do(f func()) bool {
	select {
	case q.items <- item{do: f}:
		return true
	default:
		return false
	}
}

// Flush waits, at most for limit, until everything logged so far is written.
func (q *Queue) Flush(limit time.Duration) {
	done := make(chan struct{})
	timeout := time.After(limit)
	select {
	case q.items <- item{do: func() { close(done) }}:
	case <-timeout:
		return
	}
	select {
	case <-done:
	case <-timeout:
	}
}

// Logger returns a logger that puts lines into the queue, from level info on.
func (q *Queue) Logger() *slog.Logger { return slog.New(handler{queue: q}) }

// handler turns records into lines.
type handler struct {
	queue  *Queue
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
	h.queue.Put(Line{At: r.Time, Level: r.Level, Text: b.String()})
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

// fact is " key=value", with a value that is no plain word in quotes.
func fact(a slog.Attr) string {
	v := a.Value.Resolve().String()
	plain := func(r rune) bool { return strconv.IsPrint(r) && r != ' ' && r != '"' && r != '=' && r != '\uFFFD' }
	if v == "" || strings.ContainsFunc(v, func(r rune) bool { return !plain(r) }) {
		v = strconv.Quote(v)
	}
	return " " + a.Key + "=" + v
}

// oneLine keeps what comes from outside from forging log lines and from driving
// a terminal.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r != '\t' && !strconv.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}
