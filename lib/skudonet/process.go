package skudonet

import (
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/bootclock"
	"github.com/skudonet/skudonet-ce-cluster/lib/process"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
)

// Kinds of daemons that a stop of Skudonet ends. Others that belong to the
// product, such as its web server, go on.
const (
	nftlb    = "nftlb"
	proxy    = "proxy" // pound or zproxy
	guardian = "farmguardian"
)

// daemon is a process that Skudonet has left running.
type daemon struct {
	pid  int
	kind string
	farm string // that it works for; empty for nftlb
	name string // for people
}

// program is Skudonet's control program at work.
type program struct {
	pid    int
	action string // start, stop or restart
	name   string // for people
}

// look finds what runs of Skudonet, in this pid namespace: by what processes
// were started with, and by pid files for those that tell nothing by that.
func look() (daemons []daemon, controls []program, err error) {
	all, err := process.All()
	if err != nil {
		return nil, nil, err
	}
	for _, id := range all {
		argv := id.Arguments()
		if argv == nil {
			continue
		}
		d, c := role(argv)
		if d == nil && c == nil || !id.SameNamespace() { // a Skudonet in a container
			continue
		}
		if d != nil {
			d.pid = int(id)
			daemons = append(daemons, *d)
		} else {
			c.pid = int(id)
			controls = append(controls, *c)
		}
	}
	for _, d := range fromPidFiles("/run") {
		if !slices.ContainsFunc(daemons, func(other daemon) bool { return other.pid == d.pid }) {
			daemons = append(daemons, d)
		}
	}
	slices.SortFunc(daemons, func(a, b daemon) int { return a.pid - b.pid })
	return daemons, controls, nil
}

// role tells what a process with these arguments is to Skudonet. Scripts have
// their interpreter, and possibly an option for it, in front.
func role(argv []string) (*daemon, *program) {
	if base := path.Base(argv[0]); strings.HasPrefix(argv[0], home) {
		switch base {
		case "nftlb":
			return &daemon{kind: nftlb, name: base}, nil
		case "pound", "zproxy":
			f := slices.Index(argv, "-f")
			if f < 0 || f+1 == len(argv) {
				return nil, nil
			}
			if farm, ok := strings.CutSuffix(path.Base(argv[f+1]), "_proxy.cfg"); ok {
				return &daemon{kind: proxy, farm: farm, name: base + " of farm " + farm}, nil
			}
			return nil, nil
		}
	}
	for i := range min(3, len(argv)-1) {
		switch script, first := argv[i], argv[i+1]; script {
		case home + "bin/farmguardian":
			return &daemon{kind: guardian, farm: first, name: "farmguardian of farm " + first}, nil
		case control, initScript:
			if first == "start" || first == "stop" || first == "restart" {
				return nil, &program{action: first, name: script + " " + first}
			}
		}
	}
	return nil, nil
}

// fromPidFiles returns the daemons whose pid files lie in dir and that live. A
// number that somebody else has got since does not count.
func fromPidFiles(dir string) (daemons []daemon) {
	for _, pattern := range []struct{ suffix, kind string }{
		{"nftlb.pid", nftlb}, {"_proxy.pid", proxy}, {"_guardian.pid", guardian},
	} {
		files, _ := filepath.Glob(filepath.Join(dir, "*"+pattern.suffix))
		for _, file := range files {
			farm := strings.TrimSuffix(filepath.Base(file), pattern.suffix)
			if pattern.kind == nftlb && farm != "" {
				continue
			}
			info, err := os.Stat(file)
			if err != nil || !info.Mode().IsRegular() {
				continue
			}
			text, _ := os.ReadFile(file)
			fields := strings.Fields(string(text))
			if len(fields) == 0 {
				continue
			}
			pid, err := strconv.Atoi(fields[0])
			written := bootclock.Now() - time.Since(info.ModTime()) + time.Second // the file's clock ticks coarsely
			if err == nil && status.Alive(pid, written) {
				daemons = append(daemons, daemon{pid: pid, kind: pattern.kind, farm: farm, name: strings.TrimSuffix(filepath.Base(file), ".pid")})
			}
		}
	}
	return daemons
}
