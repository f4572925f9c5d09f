package main

import (
	"crypto/sha256"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/test/lab"
)

func digest(text string) [sha256.Size]byte { return sha256.Sum256([]byte(text)) }

// kind is one sort of change. before makes what it needs in a directory of its own, which both nodes have when the
// change is made there. Both are shell scripts; $OUT is a directory outside of the tree, on the same file system.
type kind struct{ name, before, change string }

var kinds = []kind{
	{"new file", "", "echo new >file"},
	{"new file in new directories", "", "mkdir -p a/b/c; echo new >a/b/c/file"},
	{"new empty directory", "", "mkdir dir"},
	{"edit in place", "echo old >file", "echo longer text >file"},
	{"edit by rename", "echo old >file", "echo longer text >.file.swp; mv .file.swp file"},
	{"edit with a backup copy", "echo old >file", "mv file file~; echo longer text >file; rm file~"},
	{"same size, same second", "echo aaaa >file; touch -d 2026-01-02T03:04:05 file", "echo bbbb >file; touch -d 2026-01-02T03:04:05 file"},
	{"truncated", "echo old >file", ": >file"},
	{"older file restored", "echo old >old; touch -d 2025-01-02 old; echo newer >file", "cp -p old file"},
	{"renamed file", "echo old >file", "mv file other"},
	{"renamed over another", "echo old >file; echo else >other", "mv file other"},
	{"renamed directory", "mkdir -p dir/sub; echo old >dir/sub/file", "mv dir other"},
	{"moved in from outside", "", "mkdir -p $OUT/dir/sub; echo new >$OUT/dir/sub/file; mv $OUT/dir ."},
	{"moved out", "mkdir dir; echo old >dir/file", "mv dir $OUT/gone"},
	{"deleted file", "echo old >file", "rm file"},
	{"deleted directory", "mkdir -p dir/sub; echo old >dir/sub/file", "rm -r dir"},
	{"chmod of a file", "echo old >file", "chmod 600 file"},
	{"chmod of a directory", "mkdir dir", "chmod 700 dir"},
	{"chown", "echo old >file", "chown 33:33 file"},
	{"new symlink", "echo old >file", "ln -s file link"},
	{"other symlink", "echo old >file; ln -s file link", "ln -sfn /etc/hostname link"},
	{"directory in place of a file", "echo old >thing", "rm thing; mkdir thing; echo new >thing/file"},
	{"strange name", "", `echo new >"$(printf -- '-a b\n"c*\377')"`},
	{"rt_tables by rename", "", "cp -p RT RT.new; echo '201 table_eth1' >>RT.new; mv RT.new RT"},
}

// kinds counts which of them never arrive by themselves.
func (b *bench) kinds() error {
	pairs, done, err := b.mirrors(fillWith(someFiles))
	if err != nil {
		return err
	}
	defer done()
	limit := 3 * time.Second
	t := b.compareReplicators(fmt.Sprintf("%d kinds of change", len(kinds)))
	counts := make([]samples, len(pairs))
	for p, m := range pairs {
		var lost []string
		for i, k := range kinds {
			b.progress("%s: %s", m.name, k.name)
			arrives, err := m.arrives(i, k, limit)
			if err != nil {
				return err
			}
			if !arrives {
				lost = append(lost, k.name)
			}
		}
		counts[p] = samples{float64(len(lost))}
		if lost != nil {
			t.note("%s loses: %s", m.name, strings.Join(lost, ", "))
		}
		if p == 0 {
			b.aim(len(lost) == 0, "none of %d kinds of change lost: %d", len(kinds), len(lost))
		}
	}
	t.row("lost", counts)
	t.note("Lost: not the same on the backup after %s. Each in a directory of its own, when all was the same and quiet.", limit)
	t.write(b.out)
	return nil
}

// arrives tells whether a change does.
func (m *mirrored) arrives(i int, k kind, limit time.Duration) (bool, error) {
	const out = "/usr/local/skudonet/outside"
	dir := fmt.Sprintf("kind%d", i)
	path := filepath.Join(lab.TreePath, dir)
	script := func(text string) error {
		text = strings.ReplaceAll(text, "RT", lab.RTTablesPath)
		_, err := m.lab.LB1.Run("sh", "-euc", fmt.Sprintf("OUT=%s; mkdir -p $OUT; cd %s\n%s", out, path, text))
		return err
	}
	if _, err := m.lab.LB1.Run("mkdir", path); err != nil {
		return false, err
	}
	err := script(k.before)
	if err == nil {
		err = m.resting()
	}
	if err != nil {
		return false, err
	}
	// What was lost before may not arrive by itself now, nor what is prepared here.
	var skip []string
	for other := range i {
		skip = append(skip, fmt.Sprintf("kind%d", other))
	}
	if m.sameBut(skip, limit) != nil {
		return false, nil // What was to be changed did not arrive.
	}
	if err := m.quiet(); err != nil {
		return false, err
	}
	if err := script(k.change); err != nil {
		return false, err
	}
	return m.sameBut(skip, limit) == nil, nil
}
