package peer

import (
	"os"
	"path/filepath"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"github.com/skudonet/skudonet-ce-cluster/lib/smallfile"
)

// Remember writes down what a tree consists of, so that a session which finds it
// changed knows where: by the digest in the record alone it could tell no more
// than that. It is a hint that is checked against the record, so it is not synced,
// and may be old or torn. A master calls it, too, some time after it has stored its
// record: what it ruled last is what the backup that it becomes accounts for.
func Remember(stateDir, root string, m *manifest.Manifest) error {
	b, err := m.AppendBinary(nil)
	if err != nil {
		return err
	}
	return overwrite(knownFile(stateDir, root), b)
}

// Disown forgets what was being written to a root. A master calls it before it
// changes anything: what its admin does is not what the last master sent.
func Disown(stateDir, root string) { os.Remove(intentFile(stateDir, root)) }

func knownFile(stateDir, root string) string {
	return filepath.Join(stateDir, "known-"+root)
}

// rememberShare: what the tree consists of is written down at most for
// 1/rememberShare of the time.
const rememberShare = 50

// remember is called when the record holds the tree. Small trees are written down
// at once, large ones not all the time.
func (r *root) remember(stateDir string, last bool) {
	m := r.tree.Manifest()
	if m.Digest() == r.remembered || !last && time.Since(r.wroteKnown) < rememberShare*r.writing {
		return
	}
	began := time.Now()
	if Remember(stateDir, r.name, m) == nil {
		r.remembered = m.Digest()
	}
	r.wroteKnown = time.Now()
	r.writing = r.wroteKnown.Sub(began)
}

func readKnown(stateDir, root string) (*manifest.Manifest, error) {
	b, err := smallfile.Read(knownFile(stateDir, root), maxManifest)
	if err != nil {
		return nil, err
	}
	return manifest.Parse(b)
}

// compareKnown trusts the tree in what is still as it was when the record was
// stored, and in what an earlier session may have changed.
func (r *root) compareKnown(stateDir string, flight []Name) {
	known, err := readKnown(stateDir, r.name)
	if err != nil || !r.stand.Known || known.Digest() != r.stand.Tree.Digest {
		return
	}
	r.trust.all(true)
	for _, c := range manifest.Diff(known, r.tree.Manifest()) {
		r.trust.set(c.Path, false)
	}
	for _, p := range flight {
		r.trust.set(string(p), true)
	}
}
