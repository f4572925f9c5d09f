// Package durable writes files that are on the disk when it returns.
package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// suffix of the new file. It is always the same, so that a crash in between
// leaves one stray file at most.
const suffix = ".new"

// WriteFile puts data at path by rename. After a crash, path has the old content
// or the new; after WriteFile has returned, the new.
func WriteFile(path string, data []byte, mode fs.FileMode) error {
	fresh := path + suffix
	f, err := os.OpenFile(fresh, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(mode) // whatever the umask
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(fresh, path)
	}
	if err != nil {
		os.Remove(fresh)
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// SyncDir makes the names in dir durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// fewFiles are synced one by one; more of them with everything else on that
// filesystem.
const fewFiles = 64

// SyncFiles returns when what the paths below dir are is on the disk. A path that
// is not there is: its directory says so.
func SyncFiles(dir string, paths []string) error {
	if len(paths) > fewFiles {
		d, err := os.Open(dir)
		if err != nil {
			return err
		}
		defer d.Close()
		if err := unix.Syncfs(int(d.Fd())); err != nil {
			return fmt.Errorf("%s: %w", dir, err)
		}
		return nil
	}
	dirs := map[string]bool{}
	for _, p := range paths {
		dirs[path.Dir(p)] = true
		file, err := os.OpenFile(filepath.Join(dir, p), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if noFile(err) {
			continue
		}
		if err == nil {
			err = file.Sync()
			file.Close()
		}
		if err != nil {
			return err
		}
	}
	for d := range dirs {
		if err := SyncDir(filepath.Join(dir, d)); err != nil && !noFile(err) {
			return err
		}
	}
	return nil
}

// noFile tells whether there is no file or directory: nothing, or a link.
func noFile(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO)
}
