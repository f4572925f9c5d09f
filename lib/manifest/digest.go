package manifest

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/bits"
	"strings"
)

// Digest stands for a whole manifest: equal for equal entries, different for
// any others.
type Digest [32]byte

// String is hexadecimal.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// MarshalText is String; JSON uses it.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads 64 hexadecimal digits.
func (d *Digest) UnmarshalText(text []byte) error {
	if len(text) != hex.EncodedLen(len(d)) {
		return fmt.Errorf("digest of %d characters: want %d", len(text), hex.EncodedLen(len(d)))
	}
	_, err := hex.Decode(d[:], text)
	return err
}

// Digest is that of all entries. It costs the same for any size of manifest.
func (m *Manifest) Digest() Digest { return m.sum.digest(len(m.entries)) }

// DigestExcept is the Digest as if paths and everything below them were not
// there. Its cost grows with what is left out, not with what stays.
func (m *Manifest) DigestExcept(paths []string) Digest {
	except := make(map[string]bool, len(paths))
	for _, path := range paths {
		except[path] = true
	}
	if except["."] {
		return sum{}.digest(0)
	}
	rest, count := m.sum, len(m.entries)
	drop := func(path string) {
		if c, known := m.entries[path]; known {
			rest.subtract(c.sum(path))
			count--
		}
	}
	for path := range except {
		if parentIn(except, path) {
			continue // left out already
		}
		drop(path)
		for _, path := range m.below(path) {
			drop(path)
		}
	}
	return rest.digest(count)
}

// parentIn tells whether a directory above path is in set.
func parentIn(set map[string]bool, path string) bool {
	for {
		i := strings.LastIndexByte(path, '/')
		if i < 0 {
			return false
		}
		if path = path[:i]; set[path] {
			return true
		}
	}
}

// sum is a sum of SHA-256s modulo 2^256, least significant word first. Unlike a
// hash over all entries it needs no order, and an entry can leave it again.
type sum [4]uint64

func (s *sum) add(t sum) {
	var carry uint64
	for i := range s {
		s[i], carry = bits.Add64(s[i], t[i], carry)
	}
}

func (s *sum) subtract(t sum) {
	var borrow uint64
	for i := range s {
		s[i], borrow = bits.Sub64(s[i], t[i], borrow)
	}
}

// digest hashes the sum with the count. It is part of the protocol: two nodes
// of different versions need the same.
func (s sum) digest(count int) Digest {
	b := make([]byte, 0, 64)
	b = append(b, "skudonet-ce-cluster manifest 1\x00"...)
	b = binary.LittleEndian.AppendUint64(b, uint64(count))
	for _, word := range s {
		b = binary.LittleEndian.AppendUint64(b, word)
	}
	return sha256.Sum256(b)
}

// sum is what the entry adds.
func (c *entry) sum(path string) (s sum) {
	var space [192]byte
	h := sha256.Sum256(c.append(space[:0], path))
	for i := range s {
		s[i] = binary.LittleEndian.Uint64(h[8*i:])
	}
	return s
}
