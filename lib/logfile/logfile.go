// Package logfile is a log in a file of its own:
//
//	2026-01-02T15:04:05.000+01:00 warning a sentence key=value
//
// A log that cannot be written neither stops the program nor makes it wait:
// its lines go to standard error, that is said once, and it is tried again.
package logfile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/logline"
)

const (
	layout     = "2006-01-02T15:04:05.000Z07:00"
	mode       = 0o640
	retryAfter = 10 * time.Second
)

// File is an open log, or one that is being tried again.
type File struct {
	*logline.Queue

	path    string
	also    io.Writer
	instead io.Writer // where lines go while the file cannot be written and there is no also
	again   time.Duration
	reopen  atomic.Bool

	// What follows belongs to the goroutine that writes.
	file    *os.File // nil: not open
	retry   time.Time
	failing bool
	missing int  // lines that are not in the file
	partial bool // the file ends in the middle of a line
}

// Open begins to log to path, which is created with mode 0640, and is a regular
// file (not a symlink) or a device such as /dev/null. Lines also go to also, a
// terminal, unless it is nil.
func Open(path string, also io.Writer) *File {
	f := &File{path: path, also: also, instead: os.Stderr, again: retryAfter}
	f.start()
	return f
}

func (f *File) start() {
	f.Queue = logline.NewQueue(f.write, f.path+" took too long to write")
	f.Reopen()
}

// Reopen opens the file anew: logrotate has moved it away.
func (f *File) Reopen() {
	f.reopen.Store(true)
	f.Do(f.open) // if there is no room, the next line does it
}

// open opens the file if it is not open, or has to be opened anew. It is retried
// from time to time.
func (f *File) open() {
	if f.reopen.Swap(false) {
		f.close()
		f.retry = time.Time{}
	}
	if f.file != nil || time.Now().Before(f.retry) {
		return
	}
	file, size, err := openAppend(f.path)
	if err != nil {
		f.fail(fmt.Errorf("cannot open the log: %w", err))
		return
	}
	f.file, f.partial = file, f.partial && size > 0
}

// openAppend does not block, whatever is at path.
func openAppend(path string) (f *os.File, size int64, err error) {
	const flags = os.O_WRONLY | os.O_APPEND | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY
	file, err := os.OpenFile(path, flags, 0)
	if errors.Is(err, fs.ErrNotExist) {
		file, err = os.OpenFile(path, flags|os.O_CREATE|os.O_EXCL, mode)
		if err == nil {
			file.Chmod(mode) // whatever the umask
		}
	}
	switch {
	case errors.Is(err, unix.ELOOP):
		return nil, 0, fmt.Errorf("%s is a symlink: name the file itself", path)
	case errors.Is(err, unix.ENXIO):
		return nil, 0, fmt.Errorf("%s is no regular file: remove it", path)
	case err != nil:
		return nil, 0, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() && info.Mode()&fs.ModeCharDevice == 0 {
		err = fmt.Errorf("%s is no regular file: remove it", path)
	}
	if err != nil {
		file.Close()
		return nil, 0, err
	}
	return file, info.Size(), nil
}

func (f *File) close() {
	if f.file != nil {
		f.file.Close()
		f.file = nil
	}
}

// fail puts the next attempt off. It is said at the first one only.
func (f *File) fail(err error) {
	f.close()
	f.retry = time.Now().Add(f.again)
	if !f.failing {
		f.failing = true
		f.elsewhere(logline.Line{At: time.Now(), Level: slog.LevelError,
			Text: fmt.Sprintf("%v; until it can be written again, its lines go to standard error only", err)})
	}
}

func (f *File) write(l logline.Line) {
	f.open()
	if f.failing && f.file != nil && f.append(f.gap()) {
		f.failing, f.missing = false, 0
	}
	inFile := f.file != nil && f.append(l)
	if !inFile {
		f.missing++
	}
	if f.also != nil || !inFile {
		f.elsewhere(l)
	}
}

// gap is the line that stands for the missing ones.
func (f *File) gap() logline.Line {
	return logline.Line{At: time.Now(), Level: slog.LevelWarn,
		Text: fmt.Sprintf("this log could not be written for a while; %d lines are missing here, they went to standard error", f.missing)}
}

// append adds a line to the file, in one write, so that lines of two programs
// do not mix.
func (f *File) append(l logline.Line) bool {
	b := make([]byte, 0, 256)
	if f.partial {
		b = append(b, '\n')
	}
	n, err := f.file.Write(format(b, l))
	if err != nil {
		f.partial = f.partial || n > 0
		f.fail(fmt.Errorf("cannot write the log: %w", err))
		return false
	}
	f.partial = false
	return true
}

func (f *File) elsewhere(l logline.Line) {
	w := f.also
	if w == nil {
		w = f.instead
	}
	w.Write(format(nil, l))
}

func format(b []byte, l logline.Line) []byte {
	b = l.At.AppendFormat(b, layout)
	b = append(b, ' ')
	b = append(b, word(l.Level)...)
	b = append(b, ' ')
	b = append(b, l.Text...)
	return append(b, '\n')
}

func word(l slog.Level) string {
	switch {
	case l >= slog.LevelError:
		return "error"
	case l >= slog.LevelWarn:
		return "warning"
	}
	return "info"
}
