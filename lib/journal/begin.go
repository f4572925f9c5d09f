package journal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/skudonet/skudonet-ce-cluster/lib/durable"
	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"github.com/skudonet/skudonet-ce-cluster/lib/scan/beneath"
	"golang.org/x/sys/unix"
)

// Begin looks whether all that the plan needs is in the stages, gives it its
// modes and owners, syncs it and writes the journal. From then on the plan is
// carried out, not undone. After an error nothing is changed, and Undo removes
// the stages.
func Begin(stateDir string, p Plan) (*Journal, error) {
	if err := free(stateDir); err != nil {
		return nil, err
	}
	b, err := p.encode()
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	for i := range p.Parts {
		if err := p.Parts[i].prepare(p.Hash); err != nil {
			return nil, fmt.Errorf("%w; nothing was changed", err)
		}
	}
	step("write")
	if err := durable.WriteFile(filepath.Join(stateDir, Name), b, 0o600); err != nil {
		// It may have got its name already.
		if err := drop(stateDir); err != nil {
			return nil, fmt.Errorf("the journal of a change cannot be removed: remove it: %w", err)
		}
		return nil, fmt.Errorf("the journal cannot be written: %w; nothing was changed", err)
	}
	step("written")
	return &Journal{Plan: p, stateDir: stateDir}, nil
}

// prepare makes the stage complete and durable.
func (p *Part) prepare(hash Hash) error {
	tree, err := beneath.Top(p.Dir)
	if err != nil {
		return err
	}
	unix.Close(tree)
	stage, err := beneath.Top(p.Stage)
	if err != nil {
		return err
	}
	defer unix.Close(stage)

	var staged []*manifest.Entry
	dirs := map[string]bool{".": true}
	for _, c := range p.Changes {
		if c.To == nil || c.To.Kind == manifest.Dir {
			continue
		}
		staged = append(staged, c.To)
		for _, dir := range above(c.Path) {
			dirs[dir] = true
		}
	}
	for _, e := range staged {
		step("verify %s %s", p.Root, e.Path)
		if err := p.verify(stage, e, hash, len(staged) <= few); err != nil {
			return fmt.Errorf("%s: %q: %w", p.Stage, e.Path, err)
		}
	}
	step("sync stage %s", p.Root)
	if len(staged) > few {
		return unix.Syncfs(stage)
	}
	if err := syncDirs(stage, dirs); err != nil {
		return err
	}
	all := filepath.Dir(p.Stage)
	return errors.Join(durable.SyncDir(all), durable.SyncDir(filepath.Dir(all)))
}

// verify compares what is staged with e, and gives it e's mode and owner. It
// syncs a file, if it is to.
func (p *Part) verify(stage int, e *manifest.Entry, hash Hash, sync bool) error {
	at, name, err := beneath.Parent(stage, e.Path)
	if err != nil {
		return err
	}
	defer unix.Close(at)
	if e.Kind == manifest.Link {
		target, err := beneath.Readlink(at, name)
		switch {
		case err == unix.EINVAL:
			return errors.New("not a symlink")
		case err != nil:
			return err
		case target != e.Target:
			return fmt.Errorf("leads to %q: want %q", target, e.Target)
		}
		return unix.Fchownat(at, name, int(e.UID), int(e.GID), unix.AT_SYMLINK_NOFOLLOW)
	}
	fd, st, err := beneath.File(at, name)
	if errors.Is(err, beneath.ErrKind) {
		return errors.New("not a file")
	}
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), e.Path)
	defer f.Close()
	if st.Nlink != 1 {
		return errors.New("has other names: want a file of its own") // which mode and owner would change, too
	}
	sum, size, err := hash.of(p.Root, e.Path, f)
	if err != nil {
		return err
	}
	if sum != e.Hash || size != e.Size {
		return fmt.Errorf("is not the file that it should be: %d bytes, %x, want %d bytes, %x", size, sum[:4], e.Size, e.Hash[:4])
	}
	// The owner comes first: changing it takes the setuid bit away.
	if err := f.Chown(int(e.UID), int(e.GID)); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, e.Mode); err != nil {
		return err
	}
	if sync {
		return f.Sync()
	}
	return nil
}
