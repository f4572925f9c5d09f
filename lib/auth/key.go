package auth

import (
	"bytes"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"log/slog"
	"net/netip"
)

// Limits of a key, in bytes; the trailer's specification sets them.
const (
	minKeyLen = 32
	maxKeyLen = 64
)

// rounds makes a guess at the password cost what it costs us, once for every
// advertisement that an eavesdropper holds.
const rounds = 600_000

// Key signs and verifies. It holds the prepared state of its HMAC and scratch
// space, so that neither allocates; copies of a Key share them, therefore a Key
// and its copies must not be used by two goroutines at once. A Key never shows
// what it holds when it is printed, logged or marshalled.
type Key struct {
	state *keyState
}

type keyState struct {
	// fmt calls no Format on a Key in an unexported field, and for a verb that
	// does not fit it follows one pointer, state. It does not follow a second.
	secret *[]byte
	hash   hash.Hash
	pseudo [20]byte
	sum    [sha256.Size]byte
}

// NewKey makes a Key of 32 to 64 secret bytes.
func NewKey(secret []byte) (Key, error) {
	if n := len(secret); n < minKeyLen || n > maxKeyLen {
		return Key{}, fmt.Errorf("auth: a key of %d bytes: want %d to %d", n, minKeyLen, maxKeyLen)
	}
	secret = bytes.Clone(secret)
	s := &keyState{secret: &secret, hash: hmac.New(sha256.New, secret)}
	s.hash.Reset() // prepares the state that later Resets go back to
	return Key{s}, nil
}

// DeriveKey makes the key of one virtual router from its password, by
// PBKDF2-HMAC-SHA256. The salt names the product, the VRID and the addresses a
// and b of the two nodes in either order, so that both nodes find the same key
// and no two clusters share one. It takes a good part of a second of CPU time
// on a small machine; see MarshalCache.
func DeriveKey(password string, vrid uint8, a, b netip.Addr) Key {
	secret, err := pbkdf2.Key(sha256.New, password, salt(vrid, a, b), rounds, minKeyLen)
	if err != nil {
		panic(err) // only for lengths and hashes that are constants here
	}
	k, err := NewKey(secret)
	if err != nil {
		panic(err)
	}
	return k
}

// salt is part of the wire format: two nodes of different versions need the
// same key.
func salt(vrid uint8, a, b netip.Addr) []byte {
	a, b = a.Unmap(), b.Unmap()
	if b.Less(a) {
		a, b = b, a
	}
	low, high := a.As16(), b.As16()
	s := append([]byte("skudonet-ce-cluster\x00"), vrid)
	return append(append(s, low[:]...), high[:]...)
}

// IsZero tells whether k is the zero Key, which verifies nothing.
func (k Key) IsZero() bool { return k.state == nil }

const hidden = "********"

// String hides the key.
func (k Key) String() string { return hidden }

// Format hides the key from every verb of package fmt.
func (k Key) Format(f fmt.State, _ rune) { io.WriteString(f, hidden) }

// LogValue hides the key from package log/slog.
func (k Key) LogValue() slog.Value { return slog.StringValue(hidden) }

// MarshalText hides the key from encoding/json and its like.
func (k Key) MarshalText() ([]byte, error) { return []byte(hidden), nil }

// ErrCache is a key cache that cannot be used; derive the key again.
var ErrCache = errors.New("auth: key cache is damaged or was made from another password, VRID or pair of nodes")

var cacheHeader = fmt.Sprintf("skudonet-ce-cluster key, pbkdf2-hmac-sha256, %d rounds", rounds)

// MarshalCache returns the derived key as a file that saves the next start the
// derivation. It holds the key, and lets its reader test guesses at the
// password cheaply: it is for a file that only root reads, and that a reboot
// removes. The zero Key has no cache: it panics.
func (k Key) MarshalCache(password string, vrid uint8, a, b netip.Addr) []byte {
	tag := hmac.New(sha256.New, *k.state.secret)
	io.WriteString(tag, "key cache\x00")
	tag.Write(salt(vrid, a, b))
	io.WriteString(tag, password)
	return fmt.Appendf(nil, "%s\n%x\n%x\n", cacheHeader, *k.state.secret, tag.Sum(nil))
}

// ParseCache reads what MarshalCache wrote for the same password, VRID and pair
// of node addresses. Anything else is ErrCache.
func ParseCache(data []byte, password string, vrid uint8, a, b netip.Addr) (Key, error) {
	lines := bytes.Split(data, []byte("\n"))
	if len(lines) != 4 {
		return Key{}, ErrCache
	}
	secret, err := hex.DecodeString(string(lines[1]))
	if err != nil {
		return Key{}, ErrCache
	}
	k, err := NewKey(secret)
	if err != nil || !hmac.Equal(data, k.MarshalCache(password, vrid, a, b)) {
		return Key{}, ErrCache
	}
	return k, nil
}
