package lab

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Recorder sees what others could see in a node's configuration tree: every name that appears, and what the files hold
// at each change. It hears of every change; a content that is replaced before it is read, within a fraction of a
// millisecond, is not seen.
type Recorder struct {
	node   *Node
	top    *os.File // the tree, by number: its path ends with the machine's power
	events int      // inotify
	wake   *os.File // to be closed by Stop
	done   chan struct{}
	once   sync.Once

	watched map[int32]string // directories, by watch descriptor
	moving  string           // directory that was renamed, if the next event is to tell whereto
	cookie  uint32           // of that rename

	mu       sync.Mutex
	names    map[string]bool
	contents map[string][]Content
	err      error
}

// Content is what a file was seen to hold.
type Content struct {
	At     time.Time
	Size   int64
	SHA256 [sha256.Size]byte
}

// The kernel forgets a file that is deleted, not the one who holds it open.
const recorded = unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_MOVED_FROM | unix.IN_MODIFY | unix.IN_CLOSE_WRITE |
	unix.IN_ATTRIB | unix.IN_ONLYDIR | unix.IN_DONT_FOLLOW | unix.IN_EXCL_UNLINK

// RecordTree begins to record, with what is there already, until Stop. It goes on over [Node.PowerOff] and PowerOn.
func (n *Node) RecordTree() (*Recorder, error) {
	top, err := n.open(TreePath, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	r := &Recorder{node: n, top: top, done: make(chan struct{}), watched: map[int32]string{},
		names: map[string]bool{}, contents: map[string][]Content{}}
	if r.events, err = unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK); err != nil {
		top.Close()
		return nil, fmt.Errorf("record the tree of %s: inotify: %w", n.Name, err)
	}
	slept, wake, err := os.Pipe()
	if err != nil {
		top.Close()
		unix.Close(r.events)
		return nil, err
	}
	r.wake = wake
	r.walk(".")
	n.lab.onClose(func() { r.Stop() })
	go r.run(slept)
	return r, nil
}

func (r *Recorder) run(slept *os.File) {
	defer close(r.done)
	defer slept.Close()
	defer r.top.Close()
	defer unix.Close(r.events)
	buffer := make([]byte, 1<<16)
	poll := []unix.PollFd{{Fd: int32(r.events), Events: unix.POLLIN}, {Fd: int32(slept.Fd()), Events: unix.POLLIN}}
	for {
		size, err := unix.Read(r.events, buffer)
		switch {
		case err == nil:
			r.heard(buffer[:size])
		case err == unix.EINTR:
		case err != unix.EAGAIN:
			r.fail(err)
			return
		case poll[1].Revents != 0:
			return // Stop, and nothing is left of what came before it.
		default:
			if _, err := unix.Poll(poll, -1); err != nil && err != unix.EINTR {
				r.fail(err)
				return
			}
		}
	}
}

func (r *Recorder) heard(buffer []byte) {
	for len(buffer) >= unix.SizeofInotifyEvent {
		wd := int32(binary.NativeEndian.Uint32(buffer))
		mask := binary.NativeEndian.Uint32(buffer[4:])
		cookie := binary.NativeEndian.Uint32(buffer[8:])
		end := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(buffer[12:]))
		name, _, _ := bytes.Cut(buffer[unix.SizeofInotifyEvent:end], []byte{0})
		buffer = buffer[end:]
		r.event(wd, mask, cookie, string(name))
	}
	r.moved("") // Whereto would have been told at once.
}

func (r *Recorder) event(wd int32, mask, cookie uint32, name string) {
	if mask&unix.IN_Q_OVERFLOW != 0 {
		r.fail(errors.New("events were lost: the kernel's queue was full"))
		return
	}
	dir, ok := r.watched[wd]
	if mask&unix.IN_IGNORED != 0 {
		delete(r.watched, wd)
		return
	}
	file := path.Join(dir, name)
	if r.moving != "" && mask&unix.IN_MOVED_TO != 0 && cookie == r.cookie && ok {
		r.moved(file)
	} else {
		r.moved("")
	}
	if !ok || name == "" {
		return
	}
	switch {
	case mask&unix.IN_ISDIR == 0 && mask&unix.IN_MOVED_FROM == 0:
		r.see(file)
	case mask&(unix.IN_CREATE|unix.IN_MOVED_TO) != 0:
		r.walk(file)
	case mask&unix.IN_MOVED_FROM != 0:
		r.moving, r.cookie = file, cookie
	}
}

// moved has the watches below a renamed directory follow it or, when it left the tree, end.
func (r *Recorder) moved(to string) {
	for wd, dir := range r.watched {
		below, ok := strings.CutPrefix(dir+"/", r.moving+"/")
		switch {
		case r.moving == "" || !ok:
		case to != "":
			r.watched[wd] = path.Join(to, below)
		default:
			unix.InotifyRmWatch(r.events, uint32(wd))
			delete(r.watched, wd)
		}
	}
	r.moving = ""
}

func (r *Recorder) path(name string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", r.top.Fd(), name)
}

// walk watches a directory and all below it, and sees what is there.
func (r *Recorder) walk(dir string) {
	r.note(dir)
	wd, err := unix.InotifyAddWatch(r.events, r.path(dir), recorded)
	if err != nil {
		if err != unix.ENOENT && err != unix.ENOTDIR {
			r.fail(fmt.Errorf("watch %q: %w", dir, err))
		}
		return
	}
	r.watched[int32(wd)] = dir
	entries, _ := os.ReadDir(r.path(dir)) // An error: it is gone again.
	for _, entry := range entries {
		if file := path.Join(dir, entry.Name()); entry.IsDir() {
			r.walk(file)
		} else {
			r.see(file)
		}
	}
}

// see notes a file, and what it holds if it is a regular one.
func (r *Recorder) see(file string) {
	r.note(file)
	fd, err := unix.Openat(int(r.top.Fd()), file, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	var stat unix.Stat_t
	if unix.Fstat(fd, &stat) != nil || stat.Mode&unix.S_IFMT != unix.S_IFREG {
		return
	}
	f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return
	}
	defer f.Close()
	hash := sha256.New()
	size, err := io.Copy(hash, f)
	if err != nil {
		r.fail(fmt.Errorf("read %q: %w", file, err))
		return
	}
	content := Content{At: time.Now(), Size: size, SHA256: [sha256.Size]byte(hash.Sum(nil))}
	r.mu.Lock()
	defer r.mu.Unlock()
	if seen := r.contents[file]; len(seen) == 0 || seen[len(seen)-1].SHA256 != content.SHA256 {
		r.contents[file] = append(seen, content)
	}
}

func (r *Recorder) note(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.names[name] = true
}

func (r *Recorder) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil {
		r.err = fmt.Errorf("record the tree of %s: %w", r.node.Name, err)
	}
}

// Stop ends the record, which then has everything that happened before. The error says why it may have gaps.
func (r *Recorder) Stop() error {
	r.once.Do(func() {
		r.wake.Close()
		<-r.done
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// Names lists every path that has been in the tree since the beginning, relative to it, sorted; "." is the tree.
func (r *Recorder) Names() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Sorted(maps.Keys(r.names))
}

// Contents lists what the file of a path was seen to hold, oldest first, without repetitions in a row.
func (r *Recorder) Contents(file string) []Content {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.contents[file])
}

// OnlyNames stops the record and fails the test for each name that was in the tree and is not allowed.
func (r *Recorder) OnlyNames(t TB, allowed func(name string) bool) {
	t.Helper()
	if err := r.Stop(); err != nil {
		t.Errorf("%v", err)
	}
	for _, name := range r.Names() {
		if !allowed(name) {
			t.Errorf("%s: %q was in the tree", r.node.Name, name)
		}
	}
}

// OnlyContents stops the record and fails the test for each content of a file that is not one of the given whole ones.
// One that was never seen at all is a failure too.
func (r *Recorder) OnlyContents(t TB, file string, whole ...string) {
	t.Helper()
	if err := r.Stop(); err != nil {
		t.Errorf("%v", err)
	}
	seen := r.Contents(file)
	if len(seen) == 0 {
		t.Errorf("%s: nobody could read %q", r.node.Name, file)
	}
	for _, content := range seen {
		if !slices.ContainsFunc(whole, func(text string) bool { return sha256.Sum256([]byte(text)) == content.SHA256 }) {
			t.Errorf("%s: %q held, at %s, %d bytes that are none of its %d whole contents", r.node.Name, file,
				content.At.Format("15:04:05.000"), content.Size, len(whole))
		}
	}
}
