// Package tree sees changes in directory trees as they happen, by fsnotify, and
// says when a changed path has come to rest (Settler).
//
// What inotify cannot see, nobody is told of: writes through mmap, and changes on
// the far side of a network filesystem. For these there is the full comparison.
package tree

import (
	"fmt"
	"path/filepath"
	"sync"

	"github.com/fsnotify/fsnotify"
)

// Root is a directory to watch with everything below it.
type Root struct {
	Dir  string                           // its path; symlinks in it are followed, below it none is
	Skip func(path string, dir bool) bool // what is left out, by relative path; nil: nothing. Asked from several goroutines
	File string                           // if set, only this file of Dir matters, and no subdirectories
}

// Event says that something changed.
type Event struct {
	Root int    // index of the root
	Path string // relative to the root, "." for itself; a directory means: with everything below
	All  bool   // events were lost, or the root is another one: compare everything. Path is "."
}

// maxPending is how many distinct events wait for a slow sink. Beyond that one
// All for each root takes their place, so that memory stays bounded.
const maxPending = 8192

// Watcher watches roots. Its methods may be called from any goroutine, also from
// sink; only Close must not be called from there.
type Watcher struct {
	roots  []*watched
	sink   func(Event)
	report func(error)
	mounts *mounts
	wake   chan struct{} // holds one word: there is something to deliver
	done   chan struct{}
	once   sync.Once
	wg     sync.WaitGroup

	mu       sync.Mutex
	pending  map[Event]bool // what is in events
	events   []Event
	troubles []error
}

// Watch begins to watch. Sink gets the events, and trouble what prevents a full
// view, both from one goroutine and perhaps before Watch returns. An event is
// not repeated while the same one waits for delivery. A directory that cannot be
// watched is a trouble, see Blind, and a root that does not exist is not even that:
// it is reported when it appears. The error is for no inotify instance at all.
func Watch(roots []Root, sink func(Event), trouble func(error)) (*Watcher, error) {
	w := &Watcher{
		sink: sink, report: trouble, wake: make(chan struct{}, 1), done: make(chan struct{}),
		pending: make(map[Event]bool),
	}
	for i, root := range roots {
		dir, err := filepath.Abs(root.Dir)
		if err != nil {
			w.Close()
			return nil, fmt.Errorf("the path of %s: %w", root.Dir, err)
		}
		root.Dir = dir
		fs, err := fsnotify.NewWatcher()
		if err != nil {
			w.Close()
			return nil, instanceError(err)
		}
		r := newWatched(i, root, fs, w)
		w.roots = append(w.roots, r)
		w.wg.Go(r.drain)
	}
	for _, r := range w.roots {
		r.begin()
		w.wg.Go(r.follow)
	}
	w.mounts = openMounts()
	if w.mounts != nil {
		w.wg.Go(func() { w.mounts.follow(w.Refresh) })
	}
	w.wg.Go(w.deliver)
	return w, nil
}

// Blind returns nil, or why not everything is watched and what to do about it.
// Changes are then found by comparison only.
func (w *Watcher) Blind() error {
	for _, r := range w.roots {
		if err := r.sightless(); err != nil {
			return err
		}
	}
	return nil
}

// Refresh walks the roots, watches what should be watched and is not, and
// reports what it found changed. It is quiet when nothing was amiss.
func (w *Watcher) Refresh() {
	select {
	case <-w.done:
		return
	default:
	}
	for _, r := range w.roots {
		r.refresh()
	}
}

// Close ends the watching. After it sink is not called any more.
func (w *Watcher) Close() error {
	var first error
	w.once.Do(func() {
		close(w.done)
		if w.mounts != nil {
			w.mounts.close()
		}
		for _, r := range w.roots {
			if err := r.fs.Close(); err != nil && first == nil {
				first = err
			}
		}
		w.wg.Wait()
	})
	return first
}

// put queues an event for the sink.
func (w *Watcher) put(e Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.pending[e] {
		return
	}
	if len(w.events) >= maxPending {
		w.events = nil
		clear(w.pending)
		for i := range w.roots {
			w.append(Event{Root: i, Path: ".", All: true})
		}
	} else {
		w.append(e)
	}
	w.rouse()
}

func (w *Watcher) append(e Event) {
	w.pending[e] = true
	w.events = append(w.events, e)
}

func (w *Watcher) putTrouble(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.troubles = append(w.troubles, err)
	w.rouse()
}

func (w *Watcher) rouse() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// deliver hands on what was queued; no lock is held while it does.
func (w *Watcher) deliver() {
	for {
		select {
		case <-w.done:
			return
		case <-w.wake:
		}
		w.mu.Lock()
		events, troubles := w.events, w.troubles
		w.events, w.troubles = nil, nil
		clear(w.pending)
		w.mu.Unlock()
		for _, err := range troubles {
			w.report(err)
		}
		for _, e := range events {
			select {
			case <-w.done:
				return
			default:
				w.sink(e)
			}
		}
	}
}
