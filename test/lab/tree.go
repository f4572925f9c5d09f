package lab

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// RTTablesPath is where a node has the names of its routing tables.
const RTTablesPath = "/etc/iproute2/rt_tables"

// TreeDigest walks what is replicated of the machine and says what there is, by path: "." and all below it for the
// configuration tree, RTTablesPath for that file. A value is "d MODE UID GID", "f MODE UID GID SIZE SHA256" or
// "l UID GID TARGET". Times do not count, nor FIFOs, sockets and devices, nor what belongs to the node: local/ at the
// top, and if_*_conf without a colon anywhere.
//
// A path is left out, with all below it, if it or its last element matches a pattern of skip, as [path.Match] does. By
// intention nothing here is shared with the programs that are tested.
func (n *Node) TreeDigest(skip ...string) (map[string]string, error) {
	digest := map[string]string{}
	top := n.Root(TreePath)
	err := filepath.WalkDir(top, func(full string, entry fs.DirEntry, err error) error {
		name := "."
		if full != top {
			name = full[len(top)+1:]
		}
		switch {
		case name != "." && errors.Is(err, fs.ErrNotExist):
			return nil // Gone since its directory was read.
		case err != nil:
			return err
		case ofNode(name) || matches(name, skip):
			if entry.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		return describe(digest, name, full)
	})
	if err == nil && !matches(RTTablesPath, skip) {
		err = describe(digest, RTTablesPath, n.Root(RTTablesPath))
	}
	if err != nil {
		return nil, fmt.Errorf("%s: digest: %w", n.Name, err)
	}
	return digest, nil
}

func ofNode(name string) bool {
	base := path.Base(name)
	return name == "local" ||
		strings.HasPrefix(base, "if_") && strings.HasSuffix(base, "_conf") && len(base) >= len("if__conf") && !strings.Contains(base, ":")
}

func matches(name string, patterns []string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		whole, _ := path.Match(pattern, name)
		last, _ := path.Match(pattern, path.Base(name))
		return name != "." && (whole || last)
	})
}

func describe(digest map[string]string, name, full string) error {
	info, err := os.Lstat(full)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	stat := info.Sys().(*syscall.Stat_t)
	attributes := fmt.Sprintf("%04o %d %d", stat.Mode&0o7777, stat.Uid, stat.Gid)
	switch info.Mode().Type() {
	case fs.ModeDir:
		digest[name] = "d " + attributes
	case fs.ModeSymlink:
		target, err := os.Readlink(full)
		if err != nil {
			return gone(err)
		}
		digest[name] = fmt.Sprintf("l %d %d %q", stat.Uid, stat.Gid, target)
	case 0:
		file, err := os.OpenFile(full, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if err != nil {
			return gone(err)
		}
		defer file.Close()
		hash := sha256.New()
		size, err := io.Copy(hash, file)
		if err != nil {
			return err
		}
		digest[name] = fmt.Sprintf("f %s %d %x", attributes, size, hash.Sum(nil))
	}
	return nil
}

// gone takes what vanished or became something else since it was looked at as not there.
func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.EINVAL) {
		return nil
	}
	return err
}

// differences says what two digests do not have in common, a line or two for each path, the first twenty.
func differences(a, b *Node, of, against map[string]string) string {
	var text strings.Builder
	both := maps.Clone(of)
	maps.Copy(both, against)
	count := 0
	for _, name := range slices.Sorted(maps.Keys(both)) {
		x, y := of[name], against[name]
		if x == y {
			continue
		}
		if count++; count > 20 {
			continue
		}
		for _, side := range []struct{ node, has string }{{a.Name, x}, {b.Name, y}} {
			if side.has == "" {
				side.has = "nothing"
			}
			fmt.Fprintf(&text, "\n%q on %s: %s", name, side.node, side.has)
		}
	}
	if count > 20 {
		fmt.Fprintf(&text, "\nand %d more", count-20)
	}
	return text.String()
}

// compare says how the trees of two nodes differ, "" if they do not.
func compare(a, b *Node, skip []string) (string, error) {
	of, err := a.TreeDigest(skip...)
	if err != nil {
		return "", err
	}
	against, err := b.TreeDigest(skip...)
	return differences(a, b, of, against), err
}

// SameTrees fails the test if what is replicated is not the same on both nodes, as [Node.TreeDigest] sees it.
func SameTrees(t TB, a, b *Node, skip ...string) {
	t.Helper()
	text, err := compare(a, b, skip)
	if err != nil {
		t.Fatalf("%v", err)
	}
	if text != "" {
		t.Errorf("the trees differ:%s", text)
	}
}

// EventuallySameTrees waits until it is the same, and fails the test when that does not happen within the limit.
func EventuallySameTrees(t TB, limit time.Duration, a, b *Node, skip ...string) {
	t.Helper()
	begin := time.Now()
	for {
		look := time.Now()
		text, err := compare(a, b, skip)
		if err != nil {
			text = "\n" + err.Error()
		}
		if text == "" {
			return
		}
		if time.Since(begin) > limit {
			t.Fatalf("after %v the trees differ:%s", time.Since(begin).Round(time.Millisecond), text)
		}
		// A large tree takes its time to read, and others need the processor too.
		time.Sleep(max(2*time.Millisecond, 2*time.Since(look)))
	}
}
