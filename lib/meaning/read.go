package meaning

import (
	"crypto/sha256"
	"io"
)

// Read reads the content of the file path in the tree that is named root, and
// returns hash and size of what it means.
func Read(root, path string, content io.Reader) (hash [sha256.Size]byte, size int64, err error) {
	var s Sum
	s.Begin(Of(root, path))
	if _, err = io.Copy(&s, content); err != nil {
		return hash, 0, err
	}
	size, hash = s.End()
	return hash, size, nil
}
