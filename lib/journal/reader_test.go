package journal

import (
	"encoding/binary"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestReaderSeesOldOrNew reads a file all the while it is replaced, and has the
// kernel tell everything that happens to its name.
func TestReaderSeesOldOrNew(t *testing.T) {
	const size = 256 << 10
	content := func(b string) string { return "0644 0 = " + strings.Repeat(b, size) }
	w := newWorld(t, files{".": "0755 0", "f": content("a"), "l": "-> a"}, files{".": "0755 0", "f": content("b"), "l": "-> b"})
	in, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	must(t, err)
	defer unix.Close(in)
	_, err = unix.InotifyAddWatch(in, w.tree, unix.IN_MODIFY|unix.IN_CREATE|unix.IN_DELETE|unix.IN_MOVED_TO|unix.IN_MOVED_FROM)
	must(t, err)

	var end atomic.Bool
	var reader sync.WaitGroup
	var reads atomic.Int64
	reader.Go(func() {
		for !end.Load() {
			b, err := os.ReadFile(w.tree + "/f")
			if err != nil || len(b) != size || strings.Trim(string(b), "a") != "" && strings.Trim(string(b), "b") != "" {
				t.Errorf("%d bytes, %v", len(b), err)
				return
			}
			if target, err := os.Readlink(w.tree + "/l"); err != nil || target != "a" && target != "b" {
				t.Errorf("%q, %v", target, err)
				return
			}
			reads.Add(1)
		}
	})
	const times = 20
	for i := range times {
		for seen := reads.Load(); reads.Load() == seen && !t.Failed(); { // both run
		}
		j := w.begin()
		if problems, err := j.Apply(t.Context(), w.unexpected); err != nil || len(problems) > 0 {
			t.Fatalf("%v, %v", problems, err)
		}
		must(t, j.End())
		next := []string{"a", "b"}[i%2]
		must(t, os.WriteFile(w.wanted()+"/f", []byte(strings.Repeat(next, size)), 0o644))
		must(t, os.Remove(w.wanted()+"/l"))
		must(t, os.Symlink(next, w.wanted()+"/l"))
		w.stage, err = StageFor(w.state, w.tree)
		must(t, err)
	}
	end.Store(true)
	reader.Wait()

	moved := map[string]int{}
	for name, mask := range events(t, in) {
		for _, m := range mask {
			if m != unix.IN_MOVED_TO {
				t.Errorf("%s: event %#x, want a rename over it only", name, m)
			}
			moved[name]++
		}
	}
	if moved["f"] != times || moved["l"] != times || len(moved) != 2 {
		t.Errorf("renamed over: %v, want f and l %d times", moved, times)
	}
}

// events are those that wait to be read, by name.
func events(t *testing.T, fd int) map[string][]uint32 {
	t.Helper()
	all := map[string][]uint32{}
	b := make([]byte, 64<<10)
	for {
		n, err := unix.Read(fd, b)
		if err == unix.EAGAIN {
			return all
		}
		must(t, err)
		for rest := b[:n]; len(rest) > 0; {
			const head = int(unsafe.Sizeof(unix.InotifyEvent{}))
			mask, length := binary.NativeEndian.Uint32(rest[4:]), int(binary.NativeEndian.Uint32(rest[12:]))
			name := strings.TrimRight(string(rest[head:head+length]), "\x00")
			all[name] = append(all[name], mask)
			rest = rest[head+length:]
		}
	}
}
