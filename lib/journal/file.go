package journal

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"unicode/utf8"

	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"github.com/skudonet/skudonet-ce-cluster/lib/smallfile"
)

// version of the journal's form.
const version = 1

// maxSize of a journal in bytes. A tree of 20,000 files that is another one
// altogether takes 5 MB.
const maxSize = 1 << 30

// stored is the journal's form on the disk. It is one file, so that one rename
// is the commit point. The manifests are those of the changed paths alone.
type stored struct {
	Version int             `json:"version"`
	Reason  string          `json:"reason"`
	Record  json.RawMessage `json:"record,omitempty"`
	Parts   []storedPart    `json:"parts"`
}

type storedPart struct {
	Root  string `json:"root"`
	Dir   string `json:"dir"`
	Stage string `json:"stage"`
	From  []byte `json:"from"`
	To    []byte `json:"to"`
}

// encode checks the plan, puts its changes in order, and returns its form on the
// disk.
func (p *Plan) encode() ([]byte, error) {
	s := stored{Version: version, Reason: p.Reason, Record: p.Record}
	p.Parts = slices.Clone(p.Parts) // these are the caller's
	seen := make(map[string]bool)
	for i := range p.Parts {
		part := &p.Parts[i]
		switch {
		case !filepath.IsAbs(part.Dir) || !utf8.ValidString(part.Dir) || !utf8.ValidString(part.Root):
			return nil, fmt.Errorf("root %q in %q: want an absolute path", part.Root, part.Dir)
		case !isStage(part.Stage) || !utf8.ValidString(part.Stage):
			return nil, fmt.Errorf("root %s: %q is not a stage", part.Root, part.Stage)
		case seen["root "+part.Root] || seen["stage "+part.Stage]:
			return nil, fmt.Errorf("root %s: it or its stage is there twice", part.Root)
		}
		seen["root "+part.Root], seen["stage "+part.Stage] = true, true
		from, to, err := sides(part.Changes)
		if err != nil {
			return nil, fmt.Errorf("root %s: %w", part.Root, err)
		}
		part.Changes = manifest.Diff(from, to)
		one := storedPart{Root: part.Root, Dir: part.Dir, Stage: part.Stage}
		one.From, err = from.AppendBinary(nil)
		if err == nil {
			one.To, err = to.AppendBinary(nil)
		}
		if err != nil {
			return nil, fmt.Errorf("root %s: %w", part.Root, err)
		}
		s.Parts = append(s.Parts, one)
	}
	return json.Marshal(s)
}

// sides are the changes' From and To. The error names a change that makes no
// sense.
func sides(changes []manifest.Change) (from, to *manifest.Manifest, err error) {
	from, to = manifest.New(), manifest.New()
	named := make(map[string]bool, len(changes))
	for _, c := range changes {
		switch {
		case named[c.Path]:
			return nil, nil, fmt.Errorf("%q: is to be changed twice", c.Path)
		case c.From == nil && c.To == nil, c.From != nil && c.From.Path != c.Path, c.To != nil && c.To.Path != c.Path:
			return nil, nil, fmt.Errorf("%q: not a change of this path", c.Path)
		case c.Path == "." && c.To == nil:
			return nil, nil, errors.New("the directory itself cannot be removed")
		}
		named[c.Path] = true
		if c.From != nil {
			from.Set(*c.From)
		}
		if c.To != nil {
			to.Set(*c.To)
		}
	}
	for e := range to.All() {
		for _, dir := range above(e.Path) {
			if d, stays := to.Get(dir); named[dir] && (!stays || d.Kind != manifest.Dir) {
				return nil, nil, fmt.Errorf("%q: %q is to be no directory", e.Path, dir)
			}
		}
	}
	return from, to, nil
}

// above are the directories above path, but ".", from the top.
func above(path string) (dirs []string) {
	for i := range len(path) {
		if path[i] == '/' {
			dirs = append(dirs, path[:i])
		}
	}
	return dirs
}

// read is the plan in the file at path. The error wraps fs.ErrNotExist if there
// is none.
func read(path string) (p Plan, err error) {
	b, err := smallfile.Read(path, maxSize)
	if err != nil {
		return p, err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s: cannot be understood (%w): a change of the configuration was begun and cannot be finished; compare the configuration with the other node's, then remove this file", path, err)
		}
	}()
	var s stored
	if err := json.Unmarshal(b, &s); err != nil {
		return p, err
	}
	if s.Version != version {
		return p, fmt.Errorf("version %d: want %d; run the release that wrote it", s.Version, version)
	}
	p = Plan{Reason: s.Reason, Record: s.Record}
	for _, one := range s.Parts {
		from, err := manifest.Parse(one.From)
		if err != nil {
			return p, err
		}
		to, err := manifest.Parse(one.To)
		if err != nil {
			return p, err
		}
		p.Parts = append(p.Parts, Part{Root: one.Root, Dir: one.Dir, Stage: one.Stage, Changes: manifest.Diff(from, to)})
	}
	return p, nil
}
