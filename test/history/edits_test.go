package history

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/peer"
)

// rm removes a file that may not be there.
func rm(path string) error {
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// farm is an L4 farm's file. Only its revision is the admin's in these histories.
func farm(rev string) string {
	return fmt.Sprintf("{\n\t\"farms\": [\n\t\t{\n\t\t\t\"name\": \"web\",\n\t\t\t\"rev\": %q,\n\t\t\t\"state\": \"up\",\n\t\t\t\"backends\": [\n"+
		"\t\t\t\t{ \"name\": \"bck0\", \"state\": \"up\" },\n\t\t\t\t{ \"name\": \"bck1\", \"state\": \"up\" }\n\t\t\t]\n\t\t}\n\t]\n}\n", rev)
}

// found gives the nodes what they have before they ever meet.
func (h *history) found() {
	write := func(n *node, path, text string) {
		path = filepath.Join(n.config(), path)
		h.must(os.MkdirAll(filepath.Dir(path), 0o755))
		h.must(os.WriteFile(path, []byte(text), 0o644))
	}
	for _, n := range h.nodes() {
		write(n, "global.conf", "$first=1;\n")
		h.must(os.WriteFile(n.rtTables(), []byte("255 local\n"), 0o644))
	}
	holder := h.a
	if h.chance(4) {
		holder = h.b
	}
	write(holder, "if_eth0:skd_conf", "[eth0:skd]\naddr="+clusterIP+"\nmask=255.255.255.0\nname=eth0:skd\nstatus=up\n")
	write(holder, "web_l4xnat.cfg", farm("first"))
	for i := range 12 {
		write(holder, fmt.Sprintf("%s/file%d.cfg", []string{".", "certificates", "ipds/waf/sets", "stats"}[i%4], i), fmt.Sprintf("first %d\n", i))
	}
	if h.chance(2) { // The other one has something of its own.
		write(holder.peer, "certificates/file1.cfg", "another first 1\n")
		write(holder.peer, "old_status.cfg", "of the other\n")
	}
	for _, n := range h.nodes() {
		for p, e := range n.tree() {
			h.edits = append(h.edits, &edit{id: len(h.edits), on: n.name, at: p, want: e})
		}
	}
}

const (
	smallest = 16 // a tree with fewer entries does not lose any
	largest  = 45
)

// edit changes something on n, as an admin or Skudonet's pages do.
func (h *history) edit(n *node) {
	if !n.on {
		return
	}
	before := n.tree()
	token := fmt.Sprintf("e%06d", len(h.edits))
	var files, dirs []place
	for p, e := range before {
		switch {
		case p.path == "if_eth0:skd_conf" || p.root != peer.ConfigRoot:
		case e.kind == 'd':
			dirs = append(dirs, p)
		default:
			files = append(files, p)
		}
	}
	byName := func(a, b place) int { return strings.Compare(a.path, b.path) }
	slices.SortFunc(files, byName)
	slices.SortFunc(dirs, byName)
	if len(files) == 0 {
		return
	}
	file := files[h.random.IntN(len(files))]
	dir := place{peer.ConfigRoot, "."}
	if len(dirs) > 0 && !h.chance(3) {
		dir = dirs[h.random.IntN(len(dirs))]
	}
	fresh := place{peer.ConfigRoot, filepath.Join(dir.path, []string{"", "a b ", "\xff", "-", "ü"}[h.random.IntN(5)]+token+".cfg")}
	regular := before[file].kind == 'f' && !strings.HasSuffix(file.path, "_l4xnat.cfg")
	vital := file.path == "global.conf"
	touched := []place{file}
	name := n.at(file)
	was, _ := os.ReadFile(name)
	kind := h.random.IntN(15)
	if len(before) > largest {
		kind = 4
	}
	var err error
	switch {
	case kind <= 1: // a new file, perhaps written slowly
		touched = []place{fresh}
		err = h.slowly(n.at(fresh), token+" is new\n")
	case kind == 2 && regular:
		err = os.WriteFile(name, []byte(token+" in place\n"), 0o644)
	case kind == 3 && regular: // as an editor saves
		err = replace(name, token+" by an editor\n")
	case kind == 4 && !vital && len(before) > smallest:
		err = os.Remove(name)
	case kind == 5 && !vital && len(dirs) > 0 && len(before) > smallest+8:
		touched = []place{dir}
		if dir.path != "." {
			err = os.RemoveAll(n.at(dir))
		}
	case kind == 6 && !vital:
		touched = append(touched, fresh)
		err = os.Rename(name, n.at(fresh))
	case kind == 7 && dir.path != ".":
		to := place{peer.ConfigRoot, "moved-" + token}
		touched = []place{dir, to}
		err = os.Rename(n.at(dir), n.at(to))
	case kind == 8 && regular:
		err = os.Chmod(name, []os.FileMode{0o600, 0o640, 0o644, 0o755}[h.random.IntN(4)])
	case kind == 9:
		fresh.path += ".d"
		touched = []place{fresh}
		err = os.Mkdir(n.at(fresh), 0o755)
	case kind == 10:
		touched = []place{fresh}
		err = os.Symlink("to-"+token, n.at(fresh))
	case kind == 11 && regular: // twice, as long as before, and as old as before
		var info os.FileInfo
		if info, err = os.Lstat(name); err == nil {
			for _, end := range []string{"x", "y"} {
				text := []byte(token + end + strings.Repeat("-", max(0, len(was)-len(token)-1)))
				err = errors.Join(err, os.WriteFile(name, text, 0o644), os.Chtimes(name, info.ModTime(), info.ModTime()))
			}
		}
	case kind == 12 && regular && !vital && len(before) > smallest: // another kind
		if err = os.Remove(name); err == nil {
			err = errors.Join(os.Mkdir(name, 0o755), os.WriteFile(filepath.Join(name, token), []byte(token), 0o600))
		}
	case kind == 13:
		touched = []place{{peer.RTTablesRoot, filepath.Base(n.rtTables())}}
		err = replace(n.rtTables(), "255 local\n100 "+token+"\n")
	default:
		touched = []place{{peer.ConfigRoot, "web_l4xnat.cfg"}}
		err = replace(n.at(touched[0]), farm(token))
	}
	// The other node's configuration may have come into this one meanwhile.
	if err != nil && !slices.ContainsFunc([]error{fs.ErrNotExist, fs.ErrExist, unix.ENOTDIR, unix.EISDIR}, func(e error) bool { return errors.Is(err, e) }) {
		h.must(err)
	}
	if h.chance(4) { // a clock that is wrong
		at := []time.Time{time.Unix(0, 0), time.Now().AddDate(30, 0, 0), time.Now().Add(-time.Hour)}[h.random.IntN(3)]
		if look(n.at(touched[0])).kind == 'f' {
			os.Chtimes(n.at(touched[0]), at, at)
		}
	}
	after := n.tree()
	within := func(t map[place]entry) map[place]entry {
		some := map[place]entry{}
		for p, e := range t {
			if slices.ContainsFunc(touched, p.below) {
				some[p] = e
			}
		}
		return some
	}
	h.made(n, within(before), within(after))
}

// slowly writes a file in two halves.
func (h *history) slowly(name, text string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	half := len(text) / 2
	if _, err := f.WriteString(text[:half]); err != nil {
		return err
	}
	if h.chance(3) {
		time.Sleep(5 * time.Millisecond)
	}
	_, err = f.WriteString(text[half:])
	return err
}
