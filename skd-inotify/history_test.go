package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/archive"
	"github.com/skudonet/skudonet-ce-cluster/lib/vector"
)

// The test binary is also the program.
func TestMain(m *testing.M) {
	if os.Getenv("SKD_INOTIFY_TEST") != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// self is the program.
var self = os.Args[0]

// run is what an admin in Berlin sees, or somebody else there.
func run(t *testing.T, as uint32, args ...string) (stdout, stderr string, exit int) {
	t.Helper()
	c := exec.Command(self, args...)
	c.Env = []string{"SKD_INOTIFY_TEST=1", "TZ=Europe/Berlin", "PATH=" + os.Getenv("PATH")}
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: as, Gid: as}}
	var out, said bytes.Buffer
	c.Stdout, c.Stderr = &out, &said
	err := c.Run()
	var ended *exec.ExitError
	if err != nil && !errors.As(err, &ended) {
		t.Fatal(err)
	}
	return out.String(), said.String(), c.ProcessState.ExitCode()
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// split is a state directory with one archive of each sort, and their names, the
// oldest first.
func split(t *testing.T) (state string, names []string) {
	t.Helper()
	dir := t.TempDir()
	state, tree := filepath.Join(dir, "state"), filepath.Join(dir, "tree")
	must(t, os.MkdirAll(filepath.Join(tree, "farm"), 0o755))
	must(t, os.Chmod(filepath.Join(tree, "farm"), 0o750))
	must(t, os.WriteFile(filepath.Join(tree, "farm/web \xff\n.cfg"), make([]byte, 1500), 0o640))
	must(t, os.Chown(filepath.Join(tree, "farm/web \xff\n.cfg"), 33, 34))
	must(t, os.Symlink("web.cfg", filepath.Join(tree, "farm/link")))
	must(t, os.WriteFile(filepath.Join(tree, "rt_tables"), []byte("1 x\n"), 0o600))
	s, err := archive.Open(state)
	must(t, err)
	for n, i := range []archive.Info{
		{Reason: archive.FirstContact, Holds: archive.Ours},
		{Reason: archive.Repair, Holds: archive.Ours},
		{Reason: archive.Restore, Holds: archive.Ours},
		{Reason: archive.Adopt, Holds: archive.Ours, Whole: true},
		{Reason: archive.Conflict, Holds: archive.Theirs, Whole: true, Waiting: true, ID: "c1"},
		{Reason: archive.Conflict, Holds: archive.Ours, Whole: true, Waiting: true, ID: "c2", Ours: vector.Vector{vector.NewID(): 1}},
	} {
		i.Peer, i.Made = "192.168.1.251", time.Date(2026, 7, 22, 6, 53, n, 123e6, time.UTC)
		w, err := s.Begin(i)
		must(t, err)
		for _, path := range []string{"farm", "farm/web \xff\n.cfg", "farm/link"} {
			must(t, w.Add("config", tree, path))
		}
		must(t, w.Add("rt_tables", tree, "rt_tables"))
		i, err = w.Commit()
		must(t, err)
		names = append(names, i.Name)
	}
	must(t, s.Resolve("c1", archive.Ours))
	return state, names
}

func TestHistory(t *testing.T) {
	state, names := split(t)
	const want = `2026-07-22T065305.123Z-conflict       2026-07-22 08:53:05 CEST  3 files, 12.0 KiB
    from this node, all it had: both nodes were master, apart from each other
    waiting for: skd-inotify resolve ours|theirs
2026-07-22T065304.123Z-conflict       2026-07-22 08:53:04 CEST  3 files, 12.0 KiB
    from 192.168.1.251, all it had: both nodes were master, apart from each other
    resolved: ours
2026-07-22T065303.123Z-adopt          2026-07-22 08:53:03 CEST  3 files, 12.0 KiB
    from this node, all it had: 192.168.1.251 had the newer configuration, which was taken over
2026-07-22T065302.123Z-restore        2026-07-22 08:53:02 CEST  3 files, 12.0 KiB
    from this node: an archive was restored in its place
2026-07-22T065301.123Z-repair         2026-07-22 08:53:01 CEST  3 files, 12.0 KiB
    from this node: it was changed here, and made the same as on the master, 192.168.1.251, again
2026-07-22T065300.123Z-first-contact  2026-07-22 08:53:00 CEST  3 files, 12.0 KiB
    from this node: at the first contact with 192.168.1.251, its configuration took the place
`
	for _, args := range [][]string{{"history", "--state-dir", state}, {"--state-dir", state, "history"}} {
		if out, said, exit := run(t, 0, args...); out != want || said != "" || exit != 0 {
			t.Errorf("%q: exit %d, %s\n%s\nwant\n%s", args, exit, said, out, want)
		}
	}
	out, said, exit := run(t, 0, "history", "--json", "--state-dir", state)
	var list []map[string]any
	if err := json.Unmarshal([]byte(out), &list); err != nil || exit != 0 || said != "" || len(list) != len(names) {
		t.Fatalf("exit %d, %v, %s\n%s", exit, err, said, out)
	}
	first := list[0]
	if first["name"] != names[5] || first["made"] != "2026-07-22T06:53:05.123Z" || first["waiting"] != true || first["files"] != 3.0 || first["reason"] != "conflict" ||
		first["holds"] != "ours" || first["peer"] != "192.168.1.251" || list[1]["resolved"] != "ours" {
		t.Errorf("%v", list[:2])
	}
}

func TestHistoryOfOne(t *testing.T) {
	state, names := split(t)
	const want = `2026-07-22T065301.123Z-repair         2026-07-22 08:53:01 CEST  3 files, 12.0 KiB
    from this node: it was changed here, and made the same as on the master, 192.168.1.251, again

config:
  directory  0750  0:0    -        farm
  symlink    -     0:0    -        farm/link -> web.cfg
  file       0640  33:34  1.5 KiB  "farm/web \xff\n.cfg"

rt_tables:
  file  0600  0:0  4 bytes  rt_tables
`
	for _, name := range []string{names[1], "2026-07-22T065301"} {
		if out, said, exit := run(t, 0, "history", "--state-dir", state, name); out != want || said != "" || exit != 0 {
			t.Errorf("%s: exit %d, %s\n%s\nwant\n%s", name, exit, said, out, want)
		}
	}
	out, _, exit := run(t, 0, "history", "--state-dir", state, "--json", names[1])
	var one struct {
		Name    string
		Entries map[string][]struct {
			Path, Kind, Mode, SHA256, Target string
			Raw                              []byte
			UID                              int
			Size                             int64
		}
	}
	if err := json.Unmarshal([]byte(out), &one); err != nil || exit != 0 || one.Name != names[1] || len(one.Entries["config"]) != 3 {
		t.Fatalf("exit %d, %v\n%s", exit, err, out)
	}
	link, web := one.Entries["config"][1], one.Entries["config"][2]
	if string(web.Raw) != "farm/web \xff\n.cfg" || web.Kind != "file" || web.Mode != "0640" || web.UID != 33 || web.Size != 1500 || len(web.SHA256) != 64 ||
		link.Target != "web.cfg" || link.Raw != nil || link.Mode != "" {
		t.Errorf("%+v, %+v", link, web)
	}

	for _, tc := range []struct {
		args []string
		exit int
		says string
	}{
		{[]string{"2026-07-22"}, 1, "more than one archive begins with \"2026-07-22\": " + names[5]},
		{[]string{"yesterday"}, 1, "no archive \"yesterday\"; there are: " + names[5]},
		{[]string{names[0], names[1]}, 2, "want one TIME at most"},
		{[]string{names[0], "--json"}, 2, "options before it"},
	} {
		if out, said, exit := run(t, 0, append([]string{"history", "--state-dir", state}, tc.args...)...); exit != tc.exit || !strings.Contains(said, tc.says) || out != "" {
			t.Errorf("%q: exit %d, %s%s", tc.args, exit, said, out)
		}
	}
}

// Looking changes nothing: no directory appears on a node that has none.
func TestHistoryOfNothing(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	for _, tc := range []struct {
		args      []string
		out, said string
		exit      int
	}{
		{nil, "nothing was replaced yet\n", "", 0},
		{[]string{"--json"}, "[]\n", "", 0},
		{[]string{"2026"}, "", "skd-inotify: history: no archive \"2026\": nothing was replaced yet\n", 1},
	} {
		out, said, exit := run(t, 0, append([]string{"history", "--state-dir", state}, tc.args...)...)
		if out != tc.out || said != tc.said || exit != tc.exit {
			t.Errorf("%q: exit %d, %q, %q", tc.args, exit, out, said)
		}
	}
	if _, err := os.Stat(state); !os.IsNotExist(err) {
		t.Errorf("the state directory: %v", err)
	}
	if _, err := archive.Open(state); err != nil {
		t.Fatal(err)
	}
	if out, said, exit := run(t, 0, "history", "--state-dir", state); exit != 0 || out != "nothing was replaced yet\n" || said != "" {
		t.Errorf("without an archive: exit %d, %q, %q", exit, out, said)
	}
}

func TestHistoryWithDamage(t *testing.T) {
	state, names := split(t)
	must(t, os.Remove(filepath.Join(state, archive.Dir, names[2], "manifest.json")))
	out, said, exit := run(t, 0, "history", "--state-dir", state)
	if exit != 1 || !strings.Contains(said, "archive "+names[2]+" is damaged: manifest.json is missing") || strings.Count(out, "\n    from ") != len(names)-1 || strings.Contains(out, names[2]) {
		t.Errorf("exit %d, %s\n%s", exit, said, out)
	}
	for _, name := range names {
		must(t, os.RemoveAll(filepath.Join(state, archive.Dir, name, "manifest.json")))
	}
	if out, said, exit := run(t, 0, "history", "--state-dir", state); exit != 1 || strings.Count(said, "is damaged") != len(names) || out != "" {
		t.Errorf("exit %d, %s\n%s", exit, said, out)
	}
}

func TestHistoryNeedsRoot(t *testing.T) {
	state, _ := split(t)
	must(t, os.Chmod(filepath.Dir(filepath.Dir(state)), 0o755))
	must(t, os.Chmod(filepath.Dir(state), 0o755))
	mine := filepath.Join(filepath.Dir(state), "skd-inotify")
	must(t, exec.Command("cp", self, mine).Run())
	must(t, os.Chmod(mine, 0o755))
	usual := self
	self = mine
	t.Cleanup(func() { self = usual })
	for _, mode := range []os.FileMode{0o755, 0o700} {
		must(t, os.Chmod(state, mode))
		if out, said, exit := run(t, 65534, "history", "--state-dir", state); exit != 1 || !strings.HasSuffix(said, "permission denied: run it as root\n") || out != "" {
			t.Errorf("state directory %v: exit %d, %q, %q", mode, exit, said, out)
		}
	}
}
