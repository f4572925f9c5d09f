package skudonet

import (
	"bytes"
	"encoding/json"
	"io"
	"io/fs"
	"path"
	"strings"
)

// farm is a farm that Skudonet starts by itself and that a daemon works for.
type farm struct {
	name   string
	daemon string // nftlb or proxy
}

// runs tells whether d is the daemon of the farm: nftlb serves all L4 farms, a
// proxy one HTTP farm.
func (f farm) runs(d daemon) bool {
	return f.daemon == nftlb && d.kind == nftlb || f.daemon == proxy && d.kind == proxy && d.farm == f.name
}

// farms lists the farms that are up in the configuration tree. A file that
// cannot be read is none: Skudonet does not start it either.
func farms(tree fs.FS) []farm {
	var list []farm
	for _, file := range match(tree, "*_l4xnat.cfg") {
		if l4IsUp(read(tree, file)) {
			list = append(list, farm{strings.TrimSuffix(file, "_l4xnat.cfg"), nftlb})
		}
	}
	for _, file := range match(tree, "*_proxy.cfg") {
		if httpIsUp(read(tree, file)) {
			list = append(list, farm{strings.TrimSuffix(file, "_proxy.cfg"), proxy})
		}
	}
	return list
}

// l4IsUp reads the JSON of nftlb: {"farms": [{"name": "web", "state": "up", …}]}.
func l4IsUp(text []byte) bool {
	var file struct {
		Farms []struct{ State string }
	}
	return json.Unmarshal(text, &file) == nil && len(file.Farms) > 0 && file.Farms[0].State == "up"
}

// httpIsUp looks at the last line: that of a farm that was stopped is #down.
func httpIsUp(text []byte) bool {
	text = bytes.TrimSpace(text)
	last := text[bytes.LastIndexByte(text, '\n')+1:]
	return len(text) > 0 && !bytes.HasPrefix(last, []byte("#down"))
}

// links lists the NICs and VLANs that are up in the configuration tree.
func links(tree fs.FS) []string {
	var list []string
	for _, file := range match(tree, "if_*_conf") {
		name := strings.TrimSuffix(strings.TrimPrefix(file, "if_"), "_conf")
		if !strings.Contains(name, ":") && linkIsUp(read(tree, file), name) {
			list = append(list, name)
		}
	}
	return list
}

// linkIsUp reads an INI file: status=up in the section of the interface.
func linkIsUp(text []byte, name string) bool {
	section := ""
	for line := range bytes.Lines(text) {
		line := string(bytes.TrimSpace(line))
		if strings.HasPrefix(line, "[") {
			section = strings.Trim(line, "[]")
		}
		key, value, _ := strings.Cut(line, "=")
		if section == name && strings.TrimSpace(key) == "status" {
			return strings.TrimSpace(value) == "up"
		}
	}
	return false
}

func match(tree fs.FS, pattern string) []string {
	entries, _ := fs.ReadDir(tree, ".")
	var list []string
	for _, e := range entries {
		if ok, _ := path.Match(pattern, e.Name()); !ok {
			continue
		}
		// A FIFO would block for ever when opened.
		if info, err := fs.Stat(tree, e.Name()); err == nil && info.Mode().IsRegular() {
			list = append(list, e.Name())
		}
	}
	return list
}

func read(tree fs.FS, file string) []byte {
	f, err := tree.Open(file)
	if err != nil {
		return nil
	}
	defer f.Close()
	text, _ := io.ReadAll(io.LimitReader(f, 16<<20))
	return text
}
