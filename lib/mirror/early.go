package mirror

import (
	"context"
	"io"
	"os"
	"slices"
	"sync"
)

// early is an rsync on the peer that was started before ours asked for it: with
// the words that ours will use, as they were the last time. Both start at the
// same time then.
type early struct {
	args   []string
	in     late
	out    late
	cancel context.CancelFunc
	done   chan struct{}
	exit   int
	err    error
}

// ahead starts one; nil if the words are not known yet.
func (p *connection) ahead(at *pushing) *early {
	args := p.words[at.root]
	if args == nil {
		return nil
	}
	mine := &pushing{root: at.root, why: at.why, said: at.said}
	ctx, cancel := context.WithCancel(at.ctx)
	mine.ctx = ctx
	e := &early{args: args, in: newLate(), out: newLate(), cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(e.done)
		e.exit, e.err = p.rsync(mine, args, &e.in, &e.out)
		e.in.Close()
		e.out.Close()
	}()
	return e
}

// take lets it go on with pipes, if it was started with these words; else it ends.
func (e *early) take(args []string, in, out *os.File) (exit int, err error, ok bool) {
	if e == nil {
		return 0, nil, false
	}
	if !slices.Equal(args, e.args) {
		e.end()
		return 0, nil, false
	}
	e.in.give(in)
	e.out.give(out)
	<-e.done
	return e.exit, e.err, true
}

// end ends it.
func (e *early) end() {
	if e != nil {
		e.cancel()
		e.in.Close()
		e.out.Close()
		<-e.done
	}
}

// late is a pipe that is given later: who reads or writes before waits. Close
// ends the waiting, and what is under way.
type late struct {
	once  *sync.Once
	ready chan struct{}
	file  *os.File
}

func newLate() late { return late{once: new(sync.Once), ready: make(chan struct{})} }

func (l *late) give(f *os.File) {
	l.once.Do(func() {
		l.file = f
		close(l.ready)
	})
}

func (l *late) Read(b []byte) (int, error) {
	if <-l.ready; l.file == nil {
		return 0, io.EOF
	}
	return l.file.Read(b)
}

func (l *late) Write(b []byte) (int, error) {
	if <-l.ready; l.file == nil {
		return 0, io.ErrClosedPipe
	}
	return l.file.Write(b)
}

func (l *late) Close() error {
	l.give(nil)
	if <-l.ready; l.file == nil {
		return nil
	}
	return l.file.Close()
}
