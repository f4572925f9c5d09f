// Package status is what a node tells about itself in files: the status file
// with one word that prompts, scripts and the replicator read, and the JSON
// file in which skd-vrrpd says the rest (Daemon). Report puts both together for
// an admin, without asking the daemon anything.
//
// It does not decide anything about the election and keeps no state.
package status

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/smallfile"
)

// The two words of the status file.
const (
	Master = "master"
	Backup = "backup"
)

// Where the programs look unless told otherwise.
const (
	StatusFile = "/etc/skudonet-ce-cluster.status"
	RunDir     = "/run/skudonet-ce-cluster"
	StateDir   = "/var/lib/skudonet-ce-cluster"
)

// longest is more than any status file of ours holds, word and newline.
const longest = 32

// Write makes path say s, Master or Backup, with mode 0644. A reader sees the
// old word or the new one, never a part. Where no new file can be made (a full
// disk), the old one is overwritten in place, which both words' equal length
// makes just as safe: a status that lies is worse than one that is hard to write.
func Write(path, s string) error {
	if s != Master && s != Backup {
		return fmt.Errorf("status %q: want %s or %s", s, Master, Backup)
	}
	err := replace(path, []byte(s+"\n"))
	if err != nil && overwrite(path, s+"\n") == nil {
		return nil
	}
	return err
}

// Read returns the word in the status file at path. Without a file the error
// wraps fs.ErrNotExist: the service is stopped. It never blocks, whatever the
// path names.
func Read(path string) (string, error) {
	b, err := smallfile.Read(path, longest)
	if err != nil {
		return "", err
	}
	s := strings.TrimRight(string(b), "\r\n")
	if s != Master && s != Backup {
		return "", fmt.Errorf("%s: %q: want %s or %s", path, s, Master, Backup)
	}
	return s, nil
}

// Remove takes the status file away. It is fine if there is none.
func Remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// replace puts data at path by rename. The name of the new file is always the
// same, so that a crash in between leaves one stray file at most.
func replace(path string, data []byte) error {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o644)
	if err != nil {
		return err
	}
	err = f.Chmod(0o644) // whatever the umask
	if err == nil {
		_, err = f.Write(data)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		os.Remove(tmp)
	}
	return err
}

func overwrite(path, word string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Size() != int64(len(word)) {
		return fmt.Errorf("%s: not a status file", path)
	}
	_, err = f.WriteAt([]byte(word), 0)
	return err
}
