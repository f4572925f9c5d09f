package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/skudonet/skudonet-ce-cluster/lib/beside"
	"github.com/skudonet/skudonet-ce-cluster/lib/fileset"
	"golang.org/x/sys/unix"
)

// StageFor makes an empty directory for what is to be put into the tree dir, and
// which only root may enter. What an earlier one held is removed; the error wraps
// ErrPending if that may still be needed.
func StageFor(stateDir, dir string) (string, error) {
	if err := free(stateDir); err != nil {
		return "", err
	}
	all, err := beside.Dir(dir, fileset.StageName)
	if err != nil {
		return "", err
	}
	if err := os.Mkdir(all, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	info, err := os.Lstat(all)
	if err == nil && !info.IsDir() {
		err = fmt.Errorf("%s: not a directory; remove it", all)
	}
	if err == nil {
		err = os.Chmod(all, 0o700)
	}
	if err != nil {
		return "", err
	}
	// Two trees may stand side by side.
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return "", err
	}
	stage := filepath.Join(all, filepath.Base(real))
	if err := os.RemoveAll(stage); err != nil {
		return "", err
	}
	return stage, os.Mkdir(stage, 0o700)
}

// isStage tells whether path is one that StageFor makes.
func isStage(path string) bool {
	return filepath.IsAbs(path) && filepath.Clean(path) == path && filepath.Base(filepath.Dir(path)) == fileset.StageName
}

// clearStage removes a stage with all that is in it.
func clearStage(stage string) error {
	if !isStage(stage) {
		return fmt.Errorf("%q: not a stage", stage)
	}
	if err := os.RemoveAll(stage); err != nil {
		return err
	}
	// Another tree's stage may be there still.
	err := os.Remove(filepath.Dir(stage))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}
