package snapshot

import (
	"os"

	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"github.com/skudonet/skudonet-ce-cluster/lib/meaning"
	"github.com/skudonet/skudonet-ce-cluster/lib/scan/beneath"
	"golang.org/x/sys/unix"
)

// A file up to whole bytes is read at once, and written when the lease is given
// back. A larger one is copied in pieces, after each of which a writer can get
// in. Both take some tenths of a millisecond.
const (
	whole = 512 << 10
	piece = 128 << 10
)

// file copies a file to the stage's directory, under the name fresh.
func (src source) file(stage int) (e manifest.Entry, err error) {
	in, _, err := beneath.File(src.at, src.name)
	if err == unix.EAGAIN {
		return e, ErrBusy // somebody has a write lease
	}
	if err != nil {
		return e, err
	}
	defer unix.Close(in)      // gives back the lease, too
	out, err := create(stage) // before the lease, which is for reading only
	if err != nil {
		return e, ours(err)
	}
	defer out.Close()
	l := takeLease(in)
	if l == denied && src.patient {
		return e, ErrBusy
	}
	var st unix.Stat_t
	if err := unix.Fstat(in, &st); err != nil { // as it is under the lease
		return e, err
	}

	var sum meaning.Sum
	sum.Begin(meaning.Of(src.root, src.path))
	length := min(st.Size, whole)
	if st.Size > whole {
		length = piece
	}
	space := make([]byte, length)
	for rest := st.Size; rest > 0; {
		n, err := beneath.Read(in, space[:min(rest, int64(len(space)))])
		if err != nil {
			return e, err
		}
		if rest -= int64(n); n == 0 {
			rest = 0 // it became shorter
		}
		if l == held {
			waits := writerWaits(in)
			if waits && src.patient {
				return e, ErrBusy
			}
			if waits || rest == 0 {
				l = letGo(in)
			}
		}
		sum.Write(space[:n])
		if _, err := out.Write(space[:n]); err != nil {
			return e, ours(err)
		}
	}
	if l == unknown && src.patient {
		var now unix.Stat_t
		if err := unix.Fstat(in, &now); err != nil {
			return e, err
		}
		if now.Size != st.Size || now.Mtim != st.Mtim || now.Ctim != st.Ctim || sum.Len() != st.Size {
			return e, ErrBusy
		}
	}
	if err := attributes(stage, fresh, &st); err != nil {
		return e, ours(err)
	}
	if err := out.Close(); err != nil {
		return e, ours(err)
	}
	e, err = beneath.Entry(src.path, &st)
	e.Size, e.Hash = sum.End()
	return e, err
}

// create makes the file fresh.
func create(stage int) (*os.File, error) {
	unix.Unlinkat(stage, fresh, 0) // of a copy that was cut short
	fd, err := unix.Openat(stage, fresh, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), fresh), nil
}

// lease is how things stand with the lease of an open file.
type lease int

const (
	held    lease = iota
	denied        // somebody has the file open for writing
	given         // it is given back
	unknown       // this filesystem knows no leases
)

// takeLease takes a read lease of fd, which must be open for reading only. When
// a writer comes, the kernel sends a SIGIO, which Go programs ignore.
func takeLease(fd int) lease {
	_, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_RDLCK)
	switch err {
	case nil:
		return held
	case unix.EAGAIN:
		return denied
	}
	return unknown
}

// writerWaits tells whether somebody waits for the lease to be given back.
func writerWaits(fd int) bool {
	kind, err := unix.FcntlInt(uintptr(fd), unix.F_GETLEASE, 0)
	return err != nil || kind != unix.F_RDLCK
}

func letGo(fd int) lease {
	unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_UNLCK)
	return given
}

// OpenForWriting tells whether anybody has the file open for writing. It is
// false where the filesystem knows no leases, and for what is no file.
func OpenForWriting(path string) bool {
	fd, _, err := beneath.File(unix.AT_FDCWD, path)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return takeLease(fd) == denied
}
