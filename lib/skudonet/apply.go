package skudonet

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// pendingName, in the run directory, is the mark of a restart that is owed. A
// reboot takes it away, and starts Skudonet.
const pendingName = "apply.pending"

// Pending tells whether Skudonet has yet to be restarted for a configuration
// that was replaced under it: the restart is under way, has failed, or was
// killed in the middle, and then Skudonet may be down.
func Pending(runDir string) bool {
	_, err := os.Lstat(filepath.Join(runDir, pendingName))
	return err == nil
}

// Owe notes that Skudonet has to be restarted. Pending says so until Settle.
func Owe(runDir string) error {
	return os.WriteFile(filepath.Join(runDir, pendingName), nil, 0o600)
}

// Settle notes that it has been, or is down because the node is backup: a start
// reads the configuration as it is then.
func Settle(runDir string) error {
	err := os.Remove(filepath.Join(runDir, pendingName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
