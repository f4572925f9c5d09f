// Package vector tells which of two configurations is the newer one: a version
// vector has one counter for each node that ever changed the tree. It is pure.
package vector

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
)

// ID is a node's identity: 32 hexadecimal digits, made at random. It belongs to
// one history of one disk: a copy of the disk needs another.
type ID string

// NewID is an identity that nobody has.
func NewID() ID {
	var b [16]byte
	rand.Read(b[:]) // never fails
	return ID(hex.EncodeToString(b[:]))
}

// Check tells whether id is one.
func (id ID) Check() error {
	b, err := hex.DecodeString(string(id))
	if err != nil || len(b) != 16 || hex.EncodeToString(b) != string(id) {
		return fmt.Errorf("node identity %.40q: want 32 hexadecimal digits", string(id))
	}
	return nil
}

// Short is enough of it for people.
func (id ID) Short() string { return string(id[:min(8, len(id))]) }

// Vector counts, for each node, the changes of the tree that were made there
// while it was master. A node that is not in it has made none. A Vector is not
// changed once it was made.
type Vector map[ID]uint64

// Order is how two vectors compare.
type Order int

// The orders.
const (
	Equal  Order = iota
	Ahead        // every counter is as high, and one is higher
	Behind       // the opposite
	Apart        // each has a counter that is higher
)

// String is a word for a log.
func (o Order) String() string {
	return [...]string{"equal", "ahead", "behind", "apart"}[o]
}

// Compare tells how v is to w.
func (v Vector) Compare(w Vector) Order {
	more, less := false, false
	for id, n := range v {
		more = more || n > w[id]
	}
	for id, n := range w {
		less = less || n > v[id]
	}
	switch {
	case more && less:
		return Apart
	case more:
		return Ahead
	case less:
		return Behind
	}
	return Equal
}

// Raised is v after one more change by id.
func (v Vector) Raised(id ID) Vector {
	w := v.clone()
	w[id]++
	return w
}

// Merged is the least vector that is not behind v or w.
func (v Vector) Merged(w Vector) Vector {
	m := v.clone()
	for id, n := range w {
		m[id] = max(m[id], n)
	}
	return m
}

func (v Vector) clone() Vector {
	if w := maps.Clone(v); w != nil {
		return w
	}
	return Vector{}
}

// maxNodes bounds what a peer may send: each re-installation of a node is one more.
const maxNodes = 1000

// Check tells whether v is one that a node could have written.
func (v Vector) Check() error {
	if len(v) > maxNodes {
		return fmt.Errorf("version vector of %d nodes: at most %d", len(v), maxNodes)
	}
	for id, n := range v {
		if err := id.Check(); err != nil {
			return err
		}
		if n == 0 || n > 1<<62 {
			return errors.New("version vector: a counter out of range")
		}
	}
	return nil
}
