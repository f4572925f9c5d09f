package ledger

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/skudonet/skudonet-ce-cluster/lib/smallfile"
)

// Peek reads the record in dir and changes nothing there. It tells whether there
// is one; the error is that it cannot be read or understood, which Load mends.
func Peek(dir string) (r Record, found bool, err error) {
	path := filepath.Join(dir, Name)
	b, err := smallfile.Read(path, maxSize)
	if errors.Is(err, fs.ErrNotExist) {
		return Record{}, false, nil
	} else if err != nil {
		return Record{}, false, err
	}
	if err = json.Unmarshal(b, &r); err == nil {
		err = errors.Join(r.ID.Check(), r.Vector.Check())
	}
	if err != nil {
		return Record{}, false, fmt.Errorf("%s: %w", path, err)
	}
	return r, true, nil
}
