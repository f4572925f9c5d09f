package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"unicode"
	"unicode/utf8"

	"github.com/urfave/cli/v2"

	"github.com/skudonet/skudonet-ce-cluster/lib/archive"
	"github.com/skudonet/skudonet-ce-cluster/lib/cmdline"
	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
)

// historyCommand is the command, with its one argument.
func historyCommand() *cli.Command {
	c := cmdline.Command(program, "history", "list what was replaced on this node, or the files of one archive", history, cmdline.JSON())
	c.ArgsUsage, c.Action = "[TIME]", history
	return c
}

// history prints the archives of this node, or what is in one of them.
func history(c *cli.Context) error {
	if c.Args().Len() > 1 {
		return cmdline.UsageError(program, fmt.Errorf("history: %q: want one TIME at most, and options before it", c.Args().Get(1)))
	}
	store, err := openArchives(cmdline.Option(c, "state-dir"))
	var report interface{ WriteText(io.Writer) error }
	var damaged error
	switch name := c.Args().First(); {
	case err != nil:
	case name != "" && store == nil:
		err = fmt.Errorf("no archive %q: nothing was replaced yet", name)
	case name != "":
		report, err = unpack(store, name)
	case store == nil:
		report = replacements{}
	default:
		var all replacements
		if all, damaged = past(store); len(all) == 0 {
			err = damaged
		}
		report = all
	}
	if err != nil {
		return fmt.Errorf("skd-inotify: history: %w", err)
	}
	health := 0
	if damaged != nil {
		fmt.Fprintln(os.Stderr, "skd-inotify: history:", damaged)
		health = cmdline.Failed
	}
	return cmdline.Show(c, report, health)
}

// openArchives returns nil if the node has never had an archive. It makes nothing.
func openArchives(state string) (s *archive.Store, err error) {
	if _, err = os.Stat(filepath.Join(state, archive.Dir)); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil {
		s, err = archive.Open(state)
	}
	if errors.Is(err, fs.ErrPermission) {
		err = fmt.Errorf("%w: run it as root", err)
	}
	return s, err
}

// replacement is an archive as it is shown.
type replacement struct {
	Name string `json:"name"`
	archive.Info
}

// replacements are all of them, the newest first.
type replacements []replacement

// past is what there is; the error names what is damaged.
func past(store *archive.Store) (replacements, error) {
	all, damaged := store.List()
	shown := replacements{}
	for _, i := range all {
		shown = append(shown, replacement{i.Name, i})
	}
	return shown, damaged
}

// WriteText writes them for people.
func (rs replacements) WriteText(w io.Writer) error {
	if len(rs) == 0 {
		_, err := fmt.Fprintln(w, "nothing was replaced yet")
		return err
	}
	for _, r := range rs {
		if err := r.WriteText(w); err != nil {
			return err
		}
	}
	return nil
}

// WriteText writes two lines, or three.
func (r replacement) WriteText(w io.Writer) error {
	const indent = "\n    "
	var b strings.Builder
	fmt.Fprintf(&b, "%-36s  %s  %d files, %s", r.Name, r.Made.Local().Format("2006-01-02 15:04:05 MST"), r.Files, inUnits(r.Bytes))
	peer := r.Peer
	if peer == "" {
		peer = "the other node"
	}
	whose := "from this node"
	if r.Holds == archive.Theirs {
		whose = "from " + peer
	}
	if r.Whole {
		whose += ", all it had"
	}
	b.WriteString(indent + whose + ": " + strings.ReplaceAll(why[r.Reason], "PEER", peer))
	switch {
	case r.Waiting:
		b.WriteString(indent + "waiting for: skd-inotify resolve ours|theirs")
	case r.Resolved != "":
		b.WriteString(indent + "resolved: " + r.Resolved)
	}
	_, err := fmt.Fprintln(w, b.String())
	return err
}

// why is the words for the reasons.
var why = map[string]string{
	archive.Conflict:     "both nodes were master, apart from each other",
	archive.Repair:       "it was changed here, and made the same as on the master, PEER, again",
	archive.Adopt:        "PEER had the newer configuration, which was taken over",
	archive.FirstContact: "at the first contact with PEER, its configuration took the place",
	archive.Restore:      "an archive was restored in its place",
}

// opened is an archive with what is in it.
type opened struct {
	replacement
	Entries map[string][]file `json:"entries"` // by root
}

// file is one path of an archive.
type file struct {
	Path   string `json:"path"`
	Raw    []byte `json:"raw,omitempty"` // the path, where it is not UTF-8
	Kind   string `json:"kind"`
	Mode   string `json:"mode,omitempty"` // octal
	UID    uint32 `json:"uid"`
	GID    uint32 `json:"gid"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256,omitempty"`
	Target string `json:"target,omitempty"`
}

func unpack(store *archive.Store, name string) (o opened, err error) {
	i, err := store.Find(name)
	if err != nil {
		return o, err
	}
	o = opened{replacement{i.Name, i}, map[string][]file{}}
	for root := range i.Roots {
		_, m, err := store.Tree(i, root)
		if err != nil {
			return o, err
		}
		for e := range m.All() {
			o.Entries[root] = append(o.Entries[root], fileOf(e))
		}
	}
	return o, nil
}

func fileOf(e manifest.Entry) file {
	f := file{Path: e.Path, Kind: e.Kind.String(), UID: e.UID, GID: e.GID, Size: e.Size, Target: e.Target}
	if !utf8.ValidString(e.Path) {
		f.Raw = []byte(e.Path)
	}
	if e.Kind != manifest.Link {
		f.Mode = fmt.Sprintf("%04o", e.Mode)
	}
	if e.Kind == manifest.File {
		f.SHA256 = fmt.Sprintf("%x", e.Hash)
	}
	return f
}

// WriteText writes the archive's own lines and a table for each root.
func (o opened) WriteText(w io.Writer) error {
	if err := o.replacement.WriteText(w); err != nil {
		return err
	}
	for _, root := range slices.Sorted(maps.Keys(o.Entries)) {
		fmt.Fprintf(w, "\n%s:\n", root)
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		for _, f := range o.Entries[root] {
			mode, size, name := f.Mode, "-", legible(f.Path)
			switch f.Kind {
			case manifest.File.String():
				size = inUnits(f.Size)
			case manifest.Link.String():
				mode, name = "-", name+" -> "+legible(f.Target)
			}
			fmt.Fprintf(t, "  %s\t%s\t%d:%d\t%s\t%s\n", f.Kind, mode, f.UID, f.GID, size, name)
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	return nil
}

// legible is a path as it is, or in quotes with escapes.
func legible(path string) string {
	odd := func(r rune) bool { return !unicode.IsPrint(r) || r == '"' || r == '\\' }
	if strings.ContainsFunc(path, odd) || !utf8.ValidString(path) {
		return strconv.Quote(path)
	}
	return path
}

// inUnits is a number of bytes for people.
func inUnits(n int64) string {
	if n < 1<<10 {
		return fmt.Sprintf("%d bytes", n)
	}
	size, unit := float64(n)/(1<<10), "KiB"
	for _, next := range []string{"MiB", "GiB"} {
		if size >= 1<<10 {
			size, unit = size/(1<<10), next
		}
	}
	return fmt.Sprintf("%.1f %s", size, unit)
}
