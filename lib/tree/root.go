package tree

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
)

// watched is one root with its inotify instance.
//
// It must know at any time which directory a watch belongs to, and which path that
// directory has. Two rules make this hold while directories are renamed under our
// feet, and events tell of it late:
//
//   - A directory is opened without following symlinks, and the watch is put on
//     what is open, so that no rename comes between (see hold).
//   - A directory's watch is in place before its entries are read. Whatever
//     is renamed after the reading is told by an event, and an event about a name,
//     of its coming or going, makes everything below it forgotten and what is
//     there now watched afresh. Looked at also when it goes, because of two names that are
//     exchanged each one goes, and one does so after it came. And afresh even if the
//     directory has a watch: this may be about to end, as fsnotify ends the watch
//     of a renamed directory when it gets to the event.
type watched struct {
	index int
	root  Root
	fs    *fsnotify.Watcher
	out   *Watcher
	lost  chan struct{} // holds one word: the kernel dropped events

	mu      sync.Mutex
	above   []*node // the directories from "/" to the parent of the root
	top     *node   // the root itself
	byID    map[id]*watch
	handles map[int]*watch
	numbers numbers
	blind   map[*node]error
	told    bool // of being blind
}

// node is a place: a directory that was seen there.
type node struct {
	parent   *node
	name     string
	next     string // above the root: the one name there that matters
	children map[string]*node
	skipped  bool   // the set leaves it out; it is known only to tell a directory from a file when it goes
	watch    *watch // nil if it has none
}

// watch is one inotify watch. It has several places for as long as an event about a
// rename is on its way, or if the directory is mounted in several places.
type watch struct {
	id     id
	handle int
	nodes  []*node
}

// id is a directory's identity as long as it exists.
type id struct{ dev, ino uint64 }

func newWatched(index int, root Root, fs *fsnotify.Watcher, out *Watcher) *watched {
	return &watched{
		index: index, root: root, fs: fs, out: out, lost: make(chan struct{}, 1),
		top: &node{}, byID: make(map[id]*watch), handles: make(map[int]*watch), blind: make(map[*node]error),
	}
}

// drain takes fsnotify's errors. It does nothing else, because fsnotify may hold its
// lock while it hands one over.
func (r *watched) drain() {
	for err := range r.fs.Errors {
		switch {
		case errors.Is(err, fsnotify.ErrEventOverflow):
			select {
			case r.lost <- struct{}{}:
			default:
			}
		case errors.Is(err, unix.EINVAL): // the watch of a directory that has just been removed
		default:
			r.out.putTrouble(fmt.Errorf("watching %s: %w", r.root.Dir, err))
		}
	}
}

// follow handles the events.
func (r *watched) follow() {
	for {
		select {
		case e, ok := <-r.fs.Events:
			if !ok {
				return
			}
			r.handle(e)
		case <-r.lost:
			r.begin()
			r.putAll()
		}
	}
}

// begin watches everything afresh.
func (r *watched) begin() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.look(nil)
}

// refresh watches what is not watched and should be.
func (r *watched) refresh() {
	r.mu.Lock()
	defer r.mu.Unlock()
	alive := make(map[string]bool)
	for _, name := range r.fs.WatchList() {
		alive[name] = true
	}
	r.look(alive)
}

// handle does what one event asks for.
func (r *watched) handle(e fsnotify.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	handle, name, ok := parseEvent(e.Name)
	w := r.handles[handle]
	// One event at most is on its way with a number given back before: this one.
	r.numbers.recycle()
	if !ok || w == nil {
		return
	}
	for _, n := range append([]*node(nil), w.nodes...) {
		if n.watch == nil { // forgotten meanwhile
			continue
		}
		if name == "" {
			r.self(n, e.Op)
		} else {
			r.entry(n, name, e.Op)
		}
	}
	r.complain()
}

// self handles an event of a watched directory itself.
func (r *watched) self(n *node, op fsnotify.Op) {
	switch gone := op.Has(fsnotify.Remove) || op.Has(fsnotify.Rename); {
	case gone && (n.next != "" || n == r.top):
		r.look(nil)
		r.putAll()
	case gone:
		r.appear(n.parent, n.name, true)
	case n.next == "" && r.root.File == "":
		r.put(n.path())
	}
}

// entry handles an event of a name in a watched directory.
func (r *watched) entry(n *node, name string, op fsnotify.Op) {
	comes, goes := op.Has(fsnotify.Create), op.Has(fsnotify.Remove) || op.Has(fsnotify.Rename)
	switch {
	case n.next != "":
		if name == n.next && (comes || goes) {
			r.look(nil)
			r.putAll()
		}
	case r.root.File != "":
		if name == r.root.File {
			r.put(name)
		}
	case comes || goes:
		r.appear(n, name, goes && n.children[name] != nil)
	case !r.skip(n.at(name), n.children[name] != nil):
		r.put(n.at(name))
	}
}

// appear looks at a name that may be a directory now, or another one than before, or
// none any more. If there is none, wasDir tells what it was.
func (r *watched) appear(parent *node, name string, wasDir bool) {
	if old := parent.children[name]; old != nil {
		r.forget(old)
	}
	path := parent.at(name)
	f, err := r.open(parent, name)
	switch {
	case err == nil && r.skip(path, true):
		f.Close()
		parent.child(name).skipped = true
		return
	case err == nil:
		r.visit(parent.child(name), f, nil)
	case !noDirectory(err):
		r.blind[parent.child(name)] = err
	case r.skip(path, wasDir):
		return
	}
	r.put(path)
}

// look watches the directories above the root, and the root with all below. With
// alive, the names of the watches that exist, it keeps what is right and
// reports what was not; without it starts anew and reports nothing.
func (r *watched) look(alive map[string]bool) {
	if alive == nil {
		for _, n := range r.above {
			r.forget(n)
		}
		r.forget(r.top)
	}
	names := strings.Split(strings.Trim(r.root.Dir, "/"), "/")
	dir := "/"
	for i, name := range names {
		if name == "" { // the root is "/"
			break
		}
		if i == len(r.above) {
			r.above = append(r.above, &node{next: name})
		}
		r.stand(r.above[i], dir, alive, func(f *os.File) {
			r.attach(r.above[i], f)
			f.Close()
		})
		dir = filepath.Join(dir, name)
	}
	r.stand(r.top, dir, alive, func(f *os.File) { r.visit(r.top, f, alive) })
	r.complain()
}

// stand makes the node n stand for the directory there is at path, with renew if it is not the one it was.
func (r *watched) stand(n *node, path string, alive map[string]bool, renew func(*os.File)) {
	f, err := openDir(unix.AT_FDCWD, path, path, true)
	if err != nil {
		had := n.watch != nil
		r.forget(n)
		if !noDirectory(err) {
			r.blind[n] = err
		}
		if had {
			r.putAll()
		}
		return
	}
	delete(r.blind, n)
	same := r.stands(n, f, alive)
	if same && n != r.top {
		f.Close()
		return
	}
	renew(f)
	if !same && alive != nil && n.watch != nil {
		r.putAll()
	}
}

// stands tells whether the node has a live watch on just this directory.
func (r *watched) stands(n *node, f *os.File, alive map[string]bool) bool {
	if n.watch == nil || !alive[watchName(n.watch.handle)] {
		return false
	}
	i, err := identify(f)
	return err == nil && i == n.watch.id
}

// visit watches the directory f, which is at n, and everything below, and closes f.
// With alive it keeps the watches that are right, and reports what was not.
func (r *watched) visit(n *node, f *os.File, alive map[string]bool) {
	defer f.Close()
	delete(r.blind, n)
	same := r.stands(n, f, alive)
	if !same {
		r.attach(n, f)
	}
	if r.root.File != "" {
		return
	}
	if !same && alive != nil && n != r.top && n.watch != nil {
		defer func() { r.put(n.path()) }() // after all below is watched
	}
	entries, err := f.ReadDir(-1)
	if err != nil && !noDirectory(err) {
		r.blind[n] = err
	}
	seen := make(map[string]bool)
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		name := e.Name()
		if r.skip(n.at(name), true) {
			seen[name] = true
			n.child(name).skipped = true
			continue
		}
		below, err := openDir(int(f.Fd()), name, f.Name()+"/"+name, false)
		switch {
		case err == nil:
			seen[name] = true
			r.visit(n.child(name), below, alive)
		case !noDirectory(err):
			seen[name] = true
			r.blind[n.child(name)] = err
		}
	}
	for name, child := range n.children {
		if !seen[name] && !child.skipped { // of a skipped one's end an event will tell
			r.forget(child)
			r.put(n.at(name))
		}
	}
}

// attach puts a new watch on the directory f, which is at n.
func (r *watched) attach(n *node, f *os.File) {
	r.detach(n)
	i, err := identify(f)
	if err != nil {
		r.blind[n] = err
		return
	}
	w := r.byID[i]
	if w == nil {
		w = &watch{id: i}
	} else { // the same directory elsewhere, mostly where it was before a rename
		r.release(w)
		for _, other := range w.nodes {
			if other.next == "" && r.root.File == "" {
				r.put(other.path()) // what happened between the two watches
			}
		}
	}
	w.nodes = append(w.nodes, n)
	w.handle, err = r.hold(f)
	if err != nil {
		for _, each := range w.nodes {
			each.watch = nil
			if !noDirectory(err) { // an event about its end is on its way
				r.blind[each] = err
			}
		}
		return
	}
	for _, each := range w.nodes {
		each.watch = w
	}
	r.byID[i], r.handles[w.handle] = w, w
}

// detach takes the node from its watch, and ends a watch without nodes.
func (r *watched) detach(n *node) {
	w := n.watch
	if w == nil {
		return
	}
	n.watch = nil
	for i, each := range w.nodes {
		if each == n {
			w.nodes = append(w.nodes[:i], w.nodes[i+1:]...)
			break
		}
	}
	if len(w.nodes) == 0 {
		r.release(w)
	}
}

// forget drops the node, its watch, and all below.
func (r *watched) forget(n *node) {
	r.detach(n)
	delete(r.blind, n)
	for _, child := range n.children {
		r.forget(child)
	}
	n.children = nil
	if n.parent != nil && n.parent.children[n.name] == n {
		delete(n.parent.children, n.name)
	}
}

// open opens a directory in n; no symlink below the root is followed.
func (r *watched) open(n *node, name string) (*os.File, error) {
	var parent *os.File
	var err error
	if n == r.top {
		parent, err = openDir(unix.AT_FDCWD, r.root.Dir, r.root.Dir, true)
	} else {
		parent, err = r.open(n.parent, n.name)
	}
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	return openDir(int(parent.Fd()), name, parent.Name()+"/"+name, false)
}

func (r *watched) skip(path string, dir bool) bool {
	return r.root.Skip != nil && r.root.Skip(path, dir)
}

func (r *watched) put(path string) { r.out.put(Event{Root: r.index, Path: path}) }

func (r *watched) putAll() { r.out.put(Event{Root: r.index, Path: ".", All: true}) }

// complain tells once that the watcher has become blind.
func (r *watched) complain() {
	if len(r.blind) == 0 {
		r.told = false
	} else if !r.told {
		r.told = true
		r.out.putTrouble(r.blindness())
	}
}

// sightless is Blind for this root.
func (r *watched) sightless() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.blindness()
}

// blindness names the first of the directories that are not watched, and why.
func (r *watched) blindness() error {
	var path string
	var why error
	for n, err := range r.blind {
		if p := r.full(n); why == nil || p < path {
			path, why = p, err
		}
	}
	switch len(r.blind) {
	case 0:
		return nil
	case 1:
		return fmt.Errorf("cannot watch the directory %q: %w", path, remedied(why))
	}
	return fmt.Errorf("cannot watch %d directories, the first is %q: %w", len(r.blind), path, remedied(why))
}

// full is the absolute path of a node.
func (r *watched) full(n *node) string {
	dir := "/"
	for i, each := range r.above {
		if each == n {
			return dir
		}
		dir = filepath.Join(dir, r.above[i].next)
	}
	return filepath.Join(r.root.Dir, n.path())
}

// path is relative to the root.
func (n *node) path() string {
	if n.parent == nil {
		return "."
	}
	return n.parent.at(n.name)
}

// at is the path of a name in the directory.
func (n *node) at(name string) string {
	if n.parent == nil {
		return name
	}
	return n.path() + "/" + name
}

// child is the node of a name in the directory, a new one if there is none.
func (n *node) child(name string) *node {
	c := n.children[name]
	if c == nil {
		if n.children == nil {
			n.children = make(map[string]*node)
		}
		c = &node{parent: n, name: name}
		n.children[name] = c
	}
	return c
}
