package journal

import (
	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/scan/beneath"
)

// few is up to how many files or directories are synced one by one. Each takes
// the disk some milliseconds; more of them are synced with their file system.
const few = 64

// syncDirs makes the names in the directories below top durable. It is fine if
// a directory is gone.
func syncDirs(top int, dirs map[string]bool) error {
	synced := make(map[uint64]bool) // file systems
	for dir := range dirs {
		if err := syncDir(top, dir, len(dirs) > few, synced); err != nil {
			return err
		}
	}
	return nil
}

func syncDir(top int, dir string, whole bool, synced map[uint64]bool) error {
	at, name, err := beneath.Parent(top, dir)
	if beneath.Gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(at)
	fd, err := beneath.Dir(at, name)
	if beneath.Gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if !whole {
		return unix.Fsync(fd)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || synced[st.Dev] {
		return err
	}
	synced[st.Dev] = true
	return unix.Syncfs(fd)
}
