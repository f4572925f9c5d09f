package peer

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"github.com/skudonet/skudonet-ce-cluster/lib/smallfile"
)

// intent is what is noted in the state directory of a root whose tree is not, or
// soon will not be, what the record holds. A session that finds it knows what the
// one before has done. It is no more than a hint that is checked: it is not synced.
type intent struct {
	Stand    standing        // the record's, to which it belongs
	Set      string          // as in DigestRequest
	Rest     manifest.Digest // of the tree without the paths in both lists
	Paths    []Name          // may be written or removed
	Doubtful []Name          // cannot be accounted for
}

// maxIntent is more than one for all paths of any tree takes.
const maxIntent = 64 << 20

func intentFile(stateDir, root string) string { return filepath.Join(stateDir, "intent-"+root) }

// intend notes what is in flight. Of a tree that is not trusted nothing is said.
func (r *root) intend(stateDir, set string) error {
	if !r.trust.rule || !r.trust.weighed {
		return r.forget(stateDir, false)
	}
	without := maps.Clone(r.trust.flight)
	if without == nil {
		without = map[string]bool{}
	}
	maps.Copy(without, r.trust.odd)
	b, err := json.Marshal(intent{Stand: r.stand, Set: set, Rest: rest(r.tree.Manifest(), without),
		Paths: pathNames(r.trust.flight), Doubtful: pathNames(r.trust.odd)})
	if err != nil {
		return err
	}
	r.settled = manifest.Digest{}
	return overwrite(intentFile(stateDir, r.name), sealed(b))
}

// sealed is b behind its checksum, so that a mixture of two is neither.
func sealed(b []byte) []byte {
	sum := sha256.Sum256(b)
	return append(sum[:], b...)
}

// unsealed is what was sealed; nil if it was not.
func unsealed(b []byte) []byte {
	if len(b) < sha256.Size || sha256.Sum256(b[sha256.Size:]) != [sha256.Size]byte(b) {
		return nil
	}
	return b[sha256.Size:]
}

// overwrite puts data at path, and does not wait for the disk. It neither makes a
// new file nor empties the old one, for which a file system may take a
// millisecond; so an interruption leaves a mixture of old and new.
func overwrite(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Truncate(int64(len(data)))
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// forget ends the note; durably if sync.
func (r *root) forget(stateDir string, sync bool) error {
	r.settled = manifest.Digest{}
	f, err := os.OpenFile(intentFile(stateDir, r.name), os.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write([]byte{'-'}); err != nil {
		return err
	}
	if err := f.Truncate(1); err != nil || !sync {
		return err
	}
	return f.Sync()
}

// explain trusts the tree in what was noted before accounts for.
func (r *root) explain(stateDir, set string) {
	var i intent
	b, err := smallfile.Read(intentFile(stateDir, r.name), maxIntent)
	if err != nil || json.Unmarshal(unsealed(b), &i) != nil || i.Set != set || !i.Stand.equal(r.stand) {
		i = intent{}
	}
	without := map[string]bool{}
	for _, list := range [][]Name{i.Paths, i.Doubtful} {
		for _, p := range list {
			without[string(p)] = true
		}
	}
	if i.Set == "" || rest(r.tree.Manifest(), without) != i.Rest {
		if r.stand.Tree.Set == set {
			r.compareKnown(stateDir, i.Paths)
		}
		return
	}
	r.trust.all(true)
	for _, p := range i.Doubtful {
		r.trust.set(string(p), false)
	}
}

func pathNames(set map[string]bool) []Name {
	names := make([]Name, 0, len(set))
	for _, p := range slices.Sorted(maps.Keys(set)) {
		names = append(names, Name(p))
	}
	return names
}
