package manifest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// header begins every manifest on the wire; its last byte is the version.
const header = "skdm\x01"

// AppendBinary appends the manifest in the form that Parse reads: a header, the
// number of entries, the entries in order. The error names an entry that no
// tree can hold.
func (m *Manifest) AppendBinary(b []byte) ([]byte, error) {
	b = append(b, header...)
	b = binary.AppendUvarint(b, uint64(len(m.entries)))
	for _, path := range m.order() {
		c := m.entries[path]
		e := c.unpack(path)
		if err := e.check(); err != nil {
			return nil, fmt.Errorf("manifest: %w", err)
		}
		b = c.append(b, path)
	}
	return b, nil
}

// Parse reads what AppendBinary wrote, and nothing else: every manifest has one
// form only. It takes foreign input: it never needs more than some thirty times
// the memory of b, and keeps nothing of b.
func Parse(b []byte) (*Manifest, error) {
	if len(b) < len(header) || string(b[:len(header)-1]) != header[:len(header)-1] {
		return nil, errors.New("manifest: no header: this is something else")
	}
	if v := b[len(header)-1]; v != header[len(header)-1] {
		return nil, fmt.Errorf("manifest: version %d: want %d; run the same release on both nodes", v, header[len(header)-1])
	}
	p := parser{rest: b[len(header):]}
	count := p.number(math.MaxInt64)
	m := New()
	last := ""
	for ; count > 0 && p.err == nil; count-- {
		e := p.entry()
		if p.err != nil {
			break
		}
		if err := e.check(); err != nil {
			return nil, fmt.Errorf("manifest: %w", err)
		}
		if e.Path <= last {
			return nil, fmt.Errorf("manifest: path %q after %q: not in order", e.Path, last)
		}
		last = e.Path
		m.Set(e)
	}
	if p.err == nil && len(p.rest) > 0 {
		p.err = fmt.Errorf("%d bytes too many", len(p.rest))
	}
	if p.err != nil {
		return nil, fmt.Errorf("manifest: after %q: %w", last, p.err)
	}
	return m, nil
}

// parser takes fields off rest. After the first error it gives zeros.
type parser struct {
	rest []byte
	err  error
}

func (p *parser) entry() Entry {
	e := Entry{Kind: Kind(p.bytes(1)[0])}
	e.Path = p.text(longestPath)
	e.UID = uint32(p.number(math.MaxUint32))
	e.GID = uint32(p.number(math.MaxUint32))
	if e.Kind == Link {
		e.Target = p.text(longestTarget)
		return e
	}
	e.Mode = uint32(p.number(0o7777))
	if e.Kind == File {
		e.Size = int64(p.number(math.MaxInt64))
		copy(e.Hash[:], p.bytes(len(e.Hash)))
	}
	return e
}

func (p *parser) text(longest uint64) string { return string(p.bytes(int(p.number(longest)))) }

// bytes are the next n, at most longestPath.
func (p *parser) bytes(n int) []byte {
	if p.err == nil && n > len(p.rest) {
		p.err = errors.New("it ends too early")
	}
	if p.err != nil {
		return make([]byte, n)
	}
	b := p.rest[:n]
	p.rest = p.rest[n:]
	return b
}

// number reads a varint in its shortest form.
func (p *parser) number(most uint64) uint64 {
	if p.err != nil {
		return 0
	}
	v, n := binary.Uvarint(p.rest)
	switch {
	case n == 0:
		p.err = errors.New("it ends too early")
	case n < 0 || v > most || n > 1 && p.rest[n-1] == 0:
		p.err = errors.New("a number out of range")
	default:
		p.rest = p.rest[n:]
		return v
	}
	return 0
}
