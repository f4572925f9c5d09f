package node

import (
	"context"
	"sync"
)

// lane runs functions one after the other, beside the election: what may block
// (netlink, a disk, a list of thousands of addresses) never delays an advert.
// The zero value is ready; its goroutine lives only while there is work.
type lane struct {
	mu      sync.Mutex
	idle    sync.Cond
	queue   []func()
	running bool
}

// do queues f and returns at once.
func (l *lane) do(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.queue = append(l.queue, f)
	if !l.running {
		l.running = true
		go l.run()
	}
}

func (l *lane) run() {
	for {
		l.mu.Lock()
		if len(l.queue) == 0 {
			l.running = false
			if l.idle.L != nil {
				l.idle.Broadcast()
			}
			l.mu.Unlock()
			return
		}
		f := l.queue[0]
		l.queue[0] = nil
		l.queue = l.queue[1:]
		l.mu.Unlock()
		f()
	}
}

// busy tells whether anything is queued or being done.
func (l *lane) busy() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.running
}

// waitFor is wait, at most until ctx ends.
func (l *lane) waitFor(ctx context.Context) {
	done := make(chan struct{})
	go func() {
		l.wait()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// wait returns when everything queued so far, and what it queued, is done.
func (l *lane) wait() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.idle.L == nil {
		l.idle.L = &l.mu
	}
	for l.running {
		l.idle.Wait()
	}
}
