// Package tail keeps the end of an output of which nobody knows how long it gets.
package tail

import (
	"bytes"
	"strings"
	"sync"
)

// Buffer takes everything that is written to it, and keeps the end. Its methods
// may be called from everywhere. Make it with New.
type Buffer struct {
	limit int
	mu    sync.Mutex
	kept  []byte
	cut   bool
}

// New makes a Buffer that keeps the last limit bytes.
func New(limit int) *Buffer { return &Buffer{limit: limit} }

// Write never fails.
func (t *Buffer) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.kept = append(t.kept, b...)
	if over := len(t.kept) - t.limit; over > 0 {
		t.kept = append(t.kept[:0], t.kept[over:]...)
		t.cut = true
	}
	return len(b), nil
}

// String is what was kept, with "…" in front if that is not all.
func (t *Buffer) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.cut {
		return "…" + string(t.kept)
	}
	return string(t.kept)
}

// LastLine is the last line that is not empty, without the space around it, and
// with "?" for what is not UTF-8.
func (t *Buffer) LastLine() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	text := bytes.TrimSpace(t.kept)
	line := bytes.TrimSpace(text[bytes.LastIndexByte(text, '\n')+1:])
	return strings.ToValidUTF8(string(line), "?")
}
