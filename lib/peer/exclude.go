package peer

import (
	"fmt"
	"io/fs"

	"github.com/skudonet/skudonet-ce-cluster/lib/fileset"
	"github.com/skudonet/skudonet-ce-cluster/lib/smallfile"
)

const maxRules = 256 << 10 // bytes in all files that one $exclude names

// ruleFiles are the files that an $exclude names. The rules in them are part of
// the file set, and the other node cannot read them, so they travel with it.
type ruleFiles []ruleFile

type ruleFile struct {
	Path Name
	Text []byte
}

func (list ruleFiles) read(path string) ([]byte, error) {
	for _, f := range list {
		if string(f.Path) == path {
			return f.Text, nil
		}
	}
	return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
}

// ReadRules reads a file that this node's $exclude names. It is what
// fileset.ParseList wants.
func ReadRules(path string) ([]byte, error) { return smallfile.Read(path, maxRules) }

// readRules parses this node's $exclude and collects the files that it names.
func readRules(exclude string) (list fileset.List, files ruleFiles, err error) {
	total := 0
	list, _, err = fileset.ParseList(exclude, func(path string) ([]byte, error) {
		text, err := ReadRules(path)
		if err != nil {
			return nil, err
		}
		if total += len(text); total > maxRules {
			return nil, fmt.Errorf("%s: more than %d KiB of rules", path, maxRules>>10)
		}
		files = append(files, ruleFile{Name(path), text})
		return text, nil
	})
	return list, files, err
}
