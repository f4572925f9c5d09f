package manifest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// Kind is what a path is. Other kinds than these three are not mirrored.
type Kind byte

// The kinds.
const (
	File Kind = 'f'
	Dir  Kind = 'd'
	Link Kind = 'l' // a symbolic link; it is never followed
)

// String is a word for an admin.
func (k Kind) String() string {
	switch k {
	case File:
		return "file"
	case Dir:
		return "directory"
	case Link:
		return "symlink"
	}
	return fmt.Sprintf("kind %q", byte(k))
}

// Hash is a SHA-256.
type Hash = [32]byte

// Entry is one path and all of it that is mirrored. Times are not.
type Entry struct {
	Path     string // relative to the root's directory, raw bytes; "." is the directory itself
	Kind     Kind
	Mode     uint32 // permission bits with setuid, setgid and sticky, at most 07777; 0 for a symlink
	UID, GID uint32
	Size     int64  // of a file, in bytes
	Hash     Hash   // of a file's content
	Target   string // of a symlink
}

// What the kernel accepts, without the final NUL.
const (
	longestPath   = 4095
	longestName   = 255
	longestTarget = 4095
)

// CheckPath tells whether path can stand in a manifest: relative and clean as
// path.Clean leaves it, inside the root, and something that the kernel takes.
// It may be "." and need not be UTF-8.
func CheckPath(path string) error {
	switch {
	case path == "":
		return errors.New("path is empty")
	case len(path) > longestPath:
		return fmt.Errorf("path of %d bytes: at most %d", len(path), longestPath)
	case strings.IndexByte(path, 0) >= 0:
		return fmt.Errorf("path %q: has a NUL", path)
	case path == ".":
		return nil
	}
	for name := range strings.SplitSeq(path, "/") {
		switch {
		case name == "" || name == "." || name == "..":
			return fmt.Errorf("path %q: not relative and clean", path)
		case len(name) > longestName:
			return fmt.Errorf("path %q: a name of %d bytes: at most %d", path, len(name), longestName)
		}
	}
	return nil
}

// check tells whether e is what a tree can hold.
func (e *Entry) check() error {
	if err := CheckPath(e.Path); err != nil {
		return err
	}
	ok := e.Mode <= 0o7777
	switch e.Kind {
	case File:
		ok = ok && e.Size >= 0
	case Dir:
	case Link:
		ok = e.Target != "" && len(e.Target) <= longestTarget && strings.IndexByte(e.Target, 0) < 0
	default:
		return fmt.Errorf("path %q: unknown %v", e.Path, e.Kind)
	}
	if !ok || e.Path == "." && e.Kind != Dir {
		return fmt.Errorf("path %q: impossible for a %v", e.Path, e.Kind)
	}
	return nil
}

// entry is an Entry without its path, which is the key of the map. A target is rare, so it is kept elsewhere: there
// may be very many entries.
type entry struct {
	hash     Hash
	target   *string // of a symlink
	size     int64
	uid, gid uint32
	mode     uint16
	kind     Kind
}

// pack leaves out what an entry of e's kind does not have.
func pack(e *Entry) entry {
	c := entry{kind: e.Kind, uid: e.UID, gid: e.GID}
	switch e.Kind {
	case File:
		c.mode, c.size, c.hash = uint16(e.Mode), e.Size, e.Hash
	case Link:
		c.target = new(e.Target)
	default:
		c.mode = uint16(e.Mode)
	}
	return c
}

func (c *entry) unpack(path string) Entry {
	e := Entry{Path: path, Kind: c.kind, Mode: uint32(c.mode), UID: c.uid, GID: c.gid, Size: c.size, Hash: c.hash}
	if c.target != nil {
		e.Target = *c.target
	}
	return e
}

func (c *entry) equal(d *entry) bool {
	if c.target == nil || d.target == nil {
		return *c == *d
	}
	same := *d
	same.target = c.target
	return *c == same && *c.target == *d.target
}

// append writes the entry: its form on the wire, and what the digest is made
// of. Every field has its length or its end, so no two entries look alike.
func (c *entry) append(b []byte, path string) []byte {
	b = append(b, byte(c.kind))
	b = appendText(b, path)
	b = binary.AppendUvarint(b, uint64(c.uid))
	b = binary.AppendUvarint(b, uint64(c.gid))
	if c.kind == Link {
		return appendText(b, *c.target)
	}
	b = binary.AppendUvarint(b, uint64(c.mode))
	if c.kind == File {
		b = binary.AppendUvarint(b, uint64(c.size))
		b = append(b, c.hash[:]...)
	}
	return b
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}
