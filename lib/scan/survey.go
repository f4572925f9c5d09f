package scan

import (
	"slices"
	"sync"
	"sync/atomic"

	"github.com/skudonet/skudonet-ce-cluster/lib/scan/beneath"
	"golang.org/x/sys/unix"
)

// A survey compares a whole tree with what is known of it, by examining alone. It changes nothing but the walk
// of what is as it was; everything else it puts down as a doubt, to be looked at one by one.
//
// Nearly all of its time is spent in the kernel, so a large tree is surveyed by two at a time. They share a
// stack of tasks, and a directory is closed when its last task is done: what is open at a time grows with the
// depth of the tree, not with its size.
type survey struct {
	*look
	mutex  sync.Mutex
	ready  sync.Cond // there may be something on the stack, or all is done
	stack  []task
	atWork int
	doubts []string
}

// few is how many entries one can survey before a second one is at work.
const few = 1000

// share is how many names are a task.
const share = 128

// folder is an open directory.
type folder struct {
	fd    int
	path  string
	tasks int
}

// task is a part of a folder's names to compare, or a directory there to go into.
type task struct {
	in    *folder
	names []string
	dir   string
}

// survey compares names, which are all of those at the top, and everything below with what is known. The doubts are
// sorted; what is below one of them was not looked at.
func (l *look) survey(names []string) (doubts []string, err error) {
	at, err := beneath.Dir(l.fd, ".")
	if err != nil {
		return nil, err
	}
	s := &survey{look: l}
	s.ready.L = &s.mutex
	s.list(&folder{fd: at, path: "."}, names)
	var second sync.WaitGroup
	if l.manifest.Len() > few {
		second.Go(func() { s.work(make([]byte, len(l.space))) })
	}
	s.work(l.space)
	second.Wait()
	slices.Sort(s.doubts)
	return s.doubts, l.ctx.Err()
}

// list makes tasks of a directory's names, and closes it if there are none.
func (s *survey) list(f *folder, names []string) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	f.tasks++
	for part := range slices.Chunk(names, share) {
		s.push(task{in: f, names: part})
	}
	s.leave(f)
}

// push puts a task on the stack; the mutex is held.
func (s *survey) push(t task) {
	t.in.tasks++
	s.stack = append(s.stack, t)
	s.ready.Signal()
}

// leave is the end of a task in f; the mutex is held.
func (s *survey) leave(f *folder) {
	if f.tasks--; f.tasks == 0 {
		unix.Close(f.fd)
	}
}

// work does tasks until none is left. Space is memory to work with.
func (s *survey) work(space []byte) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	for {
		for len(s.stack) == 0 && s.atWork > 0 {
			s.ready.Wait()
		}
		if len(s.stack) == 0 {
			s.ready.Broadcast()
			return
		}
		t := s.stack[len(s.stack)-1]
		s.stack = s.stack[:len(s.stack)-1]
		s.atWork++
		s.mutex.Unlock()
		var dirs, doubts []string
		switch {
		case s.ctx.Err() != nil:
		case t.dir == "":
			dirs, doubts = s.compare(t.in, t.names)
		default:
			doubts = s.enterDir(t.in, t.dir, space)
		}
		s.mutex.Lock()
		s.atWork--
		s.doubts = append(s.doubts, doubts...)
		for _, dir := range dirs {
			s.push(task{in: t.in, dir: dir})
		}
		s.leave(t.in)
	}
}

// enterDir makes tasks of a directory that is as it was.
func (s *survey) enterDir(f *folder, name string, space []byte) (doubts []string) {
	path := join(f.path, name)
	fd, err := beneath.Dir(f.fd, name)
	if err != nil {
		return []string{path}
	}
	names, err := beneath.Names(fd, space)
	if err != nil {
		unix.Close(fd)
		return []string{path}
	}
	s.list(&folder{fd: fd, path: path}, names)
	return nil
}

// compare examines names in f. It returns the directories that are as they
// were, and the paths of which that cannot be said.
func (s *survey) compare(f *folder, names []string) (dirs, doubts []string) {
	for _, name := range names {
		path := join(f.path, name)
		st, err := beneath.Stat(f.fd, name)
		if beneath.Gone(err) {
			continue // if it is known, the sweep finds that out
		}
		m := s.memory[path]
		if m == nil && err == nil && s.root.Set.Skip(path, st.Mode&unix.S_IFMT == unix.S_IFDIR) {
			continue
		}
		if m == nil || err != nil || !m.still(&st) {
			doubts = append(doubts, path)
			continue
		}
		atomic.StoreUint32(&m.walk, s.walk) // a listing may have a name twice
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			dirs = append(dirs, name)
		}
	}
	return dirs, doubts
}

// settle looks at the doubts one by one.
func (l *look) settle(doubts []string) error {
	at, above := -1, ""
	leave := func() {
		if at >= 0 {
			unix.Close(at)
		}
	}
	defer func() { leave() }()
	for _, path := range doubts {
		if dir := path[:len(path)-len(base(path))]; at < 0 || dir != above {
			leave()
			var err error
			if at, _, err = beneath.Parent(l.fd, path); err != nil { // at is -1 then
				if err := l.lost(path, err); err != nil {
					return err
				}
				continue
			}
			above = dir
		}
		if err := l.entry(at, path); err != nil {
			return err
		}
	}
	return nil
}

// lost deals with a path whose directory cannot be opened.
func (l *look) lost(path string, err error) error {
	if beneath.Gone(err) {
		return l.gone(path)
	}
	l.unreadable(path, err)
	return nil
}

// join is the path of a name in a directory.
func join(dir, name string) string {
	if dir == "." {
		return name
	}
	return dir + "/" + name
}
