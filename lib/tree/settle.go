package tree

import (
	"container/heap"
	"container/list"
	"time"
)

// Settler says when a changed path may be sent: when it has been quiet for a
// while. A path that changes again and again has to be quiet for longer, so that a
// burst of writes is sent once; after Noise it is ready all the same. A path that
// was found open for writing waits until it is not, and at the latest until Limit
// after its first change.
//
// Times are durations on any monotonic clock. The zero value is ready for use; it
// is not for concurrent use.
type Settler struct {
	Quiet   time.Duration // how long a path must be quiet; 0: 2 ms
	Longest time.Duration // up to where Quiet doubles for a busy path; 0: 200 ms
	Noise   time.Duration // how long a path waits for quiet at most; 0: 0.5 s
	Limit   time.Duration // how long a path waits at most; 0: 5 s

	queue  queue
	paths  map[string]*unsettled
	order  uint64
	recent map[string]*list.Element // of *taken
	left   list.List                // the same, by time
}

const (
	memory    = 4096        // so many taken paths are remembered
	busy      = time.Second // a path that changes again this soon is a busy one
	firstHold = 10 * time.Millisecond
	lastHold  = 100 * time.Millisecond
)

// unsettled is a path that waits.
type unsettled struct {
	path  string
	first time.Duration // when it was touched first; Limit counts from here
	wait  time.Duration // its quiet time
	calm  time.Duration // when it will have been quiet
	hold  time.Duration // how long it was last held; 0: it was not
	again time.Duration // when a held one is looked at again
	due   time.Duration
	order uint64 // settles ties
	index int    // in the queue
}

// taken is what stays of a path that has left.
type taken struct {
	path    string
	at      time.Duration
	first   time.Duration
	wait    time.Duration
	hold    time.Duration
	overdue bool
}

// Touch tells that the path changed.
func (s *Settler) Touch(now time.Duration, path string) {
	u := s.paths[path]
	if u == nil {
		u = s.enter(now, path)
		if t := s.recall(path); t != nil && now-t.at <= busy {
			u.wait = max(s.quiet(), min(2*t.wait, s.longest()))
		}
	}
	u.calm = now + u.wait
	s.schedule(u)
}

// Hold tells that the path, just taken, was found open for writing. It will be ready again
// after 10 ms, at the next time 20 ms, up to 100 ms. The Limit counts from its first change.
func (s *Settler) Hold(now time.Duration, path string) {
	u := s.paths[path]
	if u == nil {
		u = s.enter(now, path)
	}
	if t := s.recall(path); t != nil && !t.overdue && now-t.at <= s.limit() && u.hold == 0 {
		u.first, u.hold, u.wait = min(u.first, t.first), t.hold, max(u.wait, t.wait)
	}
	u.hold = min(max(2*u.hold, firstHold), lastHold)
	u.again = now + u.hold
	s.schedule(u)
}

// Take returns the paths that are ready, and those that are overdue: at the Limit still held, and
// to be sent as they are. Both leave the settler.
func (s *Settler) Take(now time.Duration) (ready, overdue []string) {
	for len(s.queue) > 0 && s.queue[0].due <= now {
		u := heap.Pop(&s.queue).(*unsettled)
		delete(s.paths, u.path)
		late := u.hold > 0 && now >= u.first+s.limit()
		if late {
			overdue = append(overdue, u.path)
		} else {
			ready = append(ready, u.path)
		}
		s.remember(&taken{u.path, now, u.first, u.wait, u.hold, late})
	}
	return ready, overdue
}

// Next is when Take will return something; false if nothing waits.
func (s *Settler) Next() (at time.Duration, ok bool) {
	if len(s.queue) == 0 {
		return 0, false
	}
	return s.queue[0].due, true
}

// Len is the number of paths that wait.
func (s *Settler) Len() int { return len(s.queue) }

func (s *Settler) enter(now time.Duration, path string) *unsettled {
	if s.paths == nil {
		s.paths, s.recent = make(map[string]*unsettled), make(map[string]*list.Element)
	}
	s.order++
	u := &unsettled{path: path, first: now, wait: s.quiet(), calm: now, again: now, order: s.order}
	s.paths[path] = u
	heap.Push(&s.queue, u)
	return u
}

func (s *Settler) schedule(u *unsettled) {
	u.due = min(max(min(u.calm, u.first+s.noise()), u.again), u.first+s.limit())
	heap.Fix(&s.queue, u.index)
}

func (s *Settler) recall(path string) *taken {
	if e := s.recent[path]; e != nil {
		return e.Value.(*taken)
	}
	return nil
}

func (s *Settler) remember(t *taken) {
	if e := s.recent[t.path]; e != nil {
		e.Value = t
		s.left.MoveToBack(e)
	} else {
		s.recent[t.path] = s.left.PushBack(t)
	}
	for front := s.left.Front(); ; front = s.left.Front() {
		old := front.Value.(*taken)
		if len(s.recent) <= memory && t.at-old.at <= max(busy, s.limit()) {
			return
		}
		s.left.Remove(front)
		delete(s.recent, old.path)
	}
}

func (s *Settler) quiet() time.Duration   { return or(s.Quiet, 2*time.Millisecond) }
func (s *Settler) noise() time.Duration   { return or(s.Noise, 500*time.Millisecond) }
func (s *Settler) longest() time.Duration { return or(s.Longest, 200*time.Millisecond) }
func (s *Settler) limit() time.Duration   { return or(s.Limit, 5*time.Second) }

func or(d, otherwise time.Duration) time.Duration {
	if d > 0 {
		return d
	}
	return otherwise
}

// queue is a heap by due time.
type queue []*unsettled

func (q queue) Len() int { return len(q) }

func (q queue) Less(i, j int) bool {
	if q[i].due != q[j].due {
		return q[i].due < q[j].due
	}
	return q[i].order < q[j].order
}

func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

func (q *queue) Push(x any) {
	u := x.(*unsettled)
	u.index = len(*q)
	*q = append(*q, u)
}

func (q *queue) Pop() any {
	old := *q
	u := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	return u
}
