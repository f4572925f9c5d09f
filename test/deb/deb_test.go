// Package deb_test builds the Debian package as "make deb" does, twice and in
// different surroundings, and looks at what came out.
package deb_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	name    = "skudonet-ce-cluster"
	root    = "../.."
	product = "./usr/local/skudonet/app/"
)

// built are two builds of the same source; see TestMain.
var built [2]build

// build is a copy of the source, with dist/ in it.
type build struct{ dir string }

func TestMain(m *testing.M) {
	for _, tool := range []string{"dpkg-buildpackage", "dh", "git", "rsync"} {
		if _, err := exec.LookPath(tool); err != nil {
			fmt.Println("skipped: the package cannot be built here: no", tool, "(test/install-deps deb)")
			return
		}
	}
	temp, err := os.MkdirTemp("", "skd-deb")
	if err == nil {
		err = buildTwice(temp)
	}
	code := 1
	if err == nil {
		code = m.Run()
	} else {
		fmt.Fprintln(os.Stderr, err)
	}
	os.RemoveAll(temp)
	os.Exit(code)
}

// buildTwice fills built. What differs are the directory, the times and modes of
// the files, and what the builder has set for itself.
func buildTwice(temp string) error {
	built = [2]build{{filepath.Join(temp, "one")}, {filepath.Join(temp, "elsewhere/and/deeper")}}
	for _, b := range built { // first both: somebody may be editing
		if err := b.copySource(); err != nil {
			return err
		}
	}
	for i, b := range built {
		cmd := exec.Command("sh", "-c", "umask 022 && exec debian/mkdeb")
		cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "TZ=UTC")
		if i == 1 {
			old := time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)
			err := filepath.WalkDir(b.dir, func(path string, _ os.DirEntry, err error) error {
				if err == nil {
					err = os.Chtimes(path, old, old)
				}
				return err
			})
			if err != nil {
				return err
			}
			cmd = exec.Command("sh", "-c", "chmod -R go-rwx . && umask 077 && exec debian/mkdeb")
			cmd.Env = append(os.Environ(), "LC_ALL=C", "TZ=Asia/Tokyo", "GOFLAGS=-tags=builder", "GOAMD64=v2",
				"VERSION=0", "CGO_ENABLED=1", "LDFLAGS=-s", "GO=/nonexistent")
		}
		cmd.Dir = b.dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("debian/mkdeb: %w\n%s", err, out)
		}
	}
	return nil
}

// copySource copies what git knows or would add, into a repository that knows
// none of it yet.
func (b build) copySource() error {
	if err := os.MkdirAll(b.dir, 0o755); err != nil {
		return err
	}
	const script = `git ls-files -z --cached --others --exclude-standard |
		rsync -a --from0 --files-from=- --ignore-missing-args . "$1" && git init --quiet "$1"`
	cmd := exec.Command("sh", "-c", script, "sh", b.dir)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("copy the source: %w\n%s", err, out)
	}
	return nil
}

// deb is the package that was built, for arch or, if that is empty, for this machine.
func (b build) deb(t *testing.T, arch string) string {
	t.Helper()
	if arch == "" {
		arch = strings.TrimSpace(output(t, "dpkg", "--print-architecture"))
	}
	return filepath.Join(b.dir, "dist", name+"_"+version(t)+"_"+arch+".deb")
}

// version is the one of the changelog.
func version(t *testing.T) string {
	t.Helper()
	return strings.TrimSpace(output(t, "dpkg-parsechangelog", "--file", filepath.Join(root, "debian/changelog"), "--show-field", "Version"))
}

// output runs a command that has to succeed.
func output(t *testing.T, command string, args ...string) string {
	t.Helper()
	cmd := exec.Command(command, args...)
	var complaints strings.Builder
	cmd.Stderr = &complaints
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", cmd, err, out, complaints.String())
	}
	return string(out)
}

// unpack writes what a package installs below a new directory.
func unpack(t *testing.T, deb string) string {
	t.Helper()
	dir := t.TempDir()
	output(t, "dpkg-deb", "--extract", deb, dir)
	return dir
}

func field(t *testing.T, deb, field string) string {
	t.Helper()
	return strings.TrimSpace(output(t, "dpkg-deb", "--field", deb, field))
}

func TestReproducible(t *testing.T) {
	var bytesOf [2][]byte
	for i, b := range built {
		var err error
		if bytesOf[i], err = os.ReadFile(b.deb(t, "")); err != nil {
			t.Fatal(err)
		}
	}
	if bytes.Equal(bytesOf[0], bytesOf[1]) {
		return
	}
	t.Error("two builds of the same source differ")
	one, two := contents(t, built[0].deb(t, "")), contents(t, built[1].deb(t, ""))
	for path, file := range one {
		if two[path] != file {
			t.Errorf("%s differs: mode %o and %o, time %v and %v, %d and %d bytes", path, file.mode, two[path].mode,
				file.time, two[path].time, len(file.content), len(two[path].content))
		}
	}
}

// file is an entry of the package.
type file struct {
	kind    byte
	mode    int64
	owner   string
	link    string
	time    time.Time
	content string
}

// contents is what a package installs, by path ("./etc").
func contents(t *testing.T, deb string) map[string]file {
	t.Helper()
	files := map[string]file{}
	r := tar.NewReader(strings.NewReader(output(t, "dpkg-deb", "--fsys-tarfile", deb)))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = file{h.Typeflag, h.Mode, h.Uname + ":" + h.Gname, h.Linkname, h.ModTime, string(content)}
	}
}

func TestLayout(t *testing.T) {
	checkLayout(t, built[0].deb(t, ""))
}

func checkLayout(t *testing.T, deb string) {
	t.Helper()
	want := map[string]int64{
		"./usr/sbin/skd-vrrpd":                             0o755,
		"./usr/sbin/skd-inotify":                           0o755,
		"./usr/sbin/skd-hooks":                             0o755,
		"./usr/bin/skd-prompt":                             0o755,
		"./etc/init.d/" + name:                             0o755,
		"./etc/logrotate.d/" + name:                        0o644,
		"./etc/profile.d/" + name + ".sh":                  0o644,
		"./lib/systemd/system/" + name + ".service":        0o644,
		"./lib/systemd/system/" + name + "-guard.service":  0o644,
		"./lib/systemd/system/" + name + "-failed.service": 0o644,
		"./lib/systemd/system/skdinotify.service":          0o644,
		"./usr/lib/tmpfiles.d/" + name + ".conf":           0o644,
		product + "skdinotify/skdinotify":                  0o777, // a symlink
		product + "ucarp/etc/skudonet-cluster.conf":        0o600,
		product + "ucarp/sbin/" + name + "-start":          0o755,
		product + "ucarp/sbin/" + name + "-stop":           0o755,
		product + "ucarp/sbin/" + name + "-advertisement":  0o755,
		"./usr/share/man/man7/" + name + ".7.gz":           0o644,
		"./usr/share/lintian/overrides/" + name:            0o644,
		"./usr/share/doc/" + name + "/copyright":           0o644,
		"./usr/share/doc/" + name + "/changelog.gz":        0o644,
		"./usr/share/doc/" + name + "/README.md.gz":        0o644,
		"./usr/share/doc/" + name + "/ARCHITECTURE.md.gz":  0o644,
		"./usr/share/man/man1/skd-prompt.1.gz":             0o644,
		"./usr/share/man/man5/skudonet-cluster.conf.5.gz":  0o644,
		"./usr/share/man/man8/skd-hooks.8.gz":              0o644,
		"./usr/share/man/man8/skd-inotify.8.gz":            0o644,
		"./usr/share/man/man8/skd-vrrpd.8.gz":              0o644,
	}
	files := contents(t, deb)
	for path, mode := range want {
		f, ok := files[path]
		switch {
		case !ok:
			t.Errorf("%s is not in the package", path)
		case f.mode != mode || f.owner != "root:root":
			t.Errorf("%s has mode %o and owner %s, want %o and root:root", path, f.mode, f.owner, mode)
		}
	}
	for path, f := range files {
		if _, ok := want[path]; !ok && f.kind != tar.TypeDir {
			t.Errorf("%s is in the package", path)
		}
		if f.kind == tar.TypeDir {
			mode := int64(0o755)
			if path == "./var/lib/"+name+"/" {
				mode = 0o700
			}
			if f.mode != mode || f.owner != "root:root" {
				t.Errorf("%s has mode %o and owner %s, want %o and root:root", path, f.mode, f.owner, mode)
			}
		}
	}
	if _, ok := files["./var/lib/"+name+"/"]; !ok {
		t.Error("the state directory is not in the package")
	}
	link := files[product+"skdinotify/skdinotify"].link
	if target := filepath.Join(product+"skdinotify", link); "./"+target != "./usr/sbin/skd-inotify" {
		t.Errorf("skdinotify points to %s (%s)", link, target)
	}
}

// What the admin may edit survives an upgrade.
func TestConffiles(t *testing.T) {
	deb := built[0].deb(t, "")
	got := strings.Fields(output(t, "dpkg-deb", "--info", deb, "conffiles"))
	want := []string{"/etc/init.d/" + name, "/etc/logrotate.d/" + name, "/etc/profile.d/" + name + ".sh"}
	for _, path := range []string{"etc/skudonet-cluster.conf", "sbin/" + name + "-start", "sbin/" + name + "-stop", "sbin/" + name + "-advertisement"} {
		want = append(want, strings.TrimPrefix(product, ".")+"ucarp/"+path)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("conffiles: %v\nwant %v", got, want)
	}
}

// What the preinst puts in place before dpkg looks is what dpkg then brings.
func TestPreinstCarries(t *testing.T) {
	deb := built[0].deb(t, "")
	preinst := output(t, "dpkg-deb", "--info", deb, "preinst")
	carried := 0
	for path, file := range contents(t, deb) {
		if path == "./etc/init.d/"+name || strings.HasPrefix(path, product+"ucarp/") && file.kind == tar.TypeReg {
			carried++
			if !strings.Contains(preinst, "\n"+file.content) {
				t.Errorf("the preinst carries another %s", path)
			}
		}
	}
	if carried != 5 {
		t.Errorf("found %d files for the preinst to carry, want the init script, three hooks and the configuration", carried)
	}
}

func TestFields(t *testing.T) {
	deb := built[0].deb(t, "")
	for key, want := range map[string]string{
		"Package":  name,
		"Version":  version(t),
		"Section":  "admin",
		"Priority": "optional",
	} {
		if got := field(t, deb, key); got != want {
			t.Errorf("%s: %q, want %q", key, got, want)
		}
	}
	synopsis, _, _ := strings.Cut(field(t, deb, "Description"), "\n")
	if want := "Skudonet Load Balancer Community Edition Cluster Service"; synopsis != want {
		t.Errorf("synopsis %q, want %q", synopsis, want)
	}
	depends := strings.Split(field(t, deb, "Depends"), ", ")
	for _, want := range []string{"skudonet (>= 7.0.0)", "rsync"} {
		if !slices.Contains(depends, want) {
			t.Errorf("Depends: %v lacks %s", depends, want)
		}
	}
	// The version of the package that it replaces.
	if exec.Command("dpkg", "--compare-versions", version(t), "gt", "2.0").Run() != nil {
		t.Errorf("version %s is not above 2.0", version(t))
	}
}

func TestLintian(t *testing.T) {
	if _, err := exec.LookPath("lintian"); err != nil {
		t.Skip("no lintian here (test/install-deps deb)")
	}
	cmd := exec.Command("lintian", "-EvIL", "+pedantic", "--no-cfg", "--show-overrides", built[0].deb(t, ""))
	out, _ := cmd.CombinedOutput() // its status also counts what does not matter here
	checked := false
	for line := range strings.Lines(string(out)) {
		switch kind, tag, _ := strings.Cut(strings.TrimSpace(line), ":"); {
		case kind == "E" || kind == "W" || kind == "I" && strings.Contains(tag, "unused-override"):
			t.Errorf("lintian: %s", line)
		case kind == "O": // an override is in use
			checked = true
		}
	}
	if !checked {
		t.Errorf("lintian did not look at the package:\n%s", out)
	}
}

// The other architecture: its Go packages are compiled from scratch, which takes
// minutes.
func TestArm64(t *testing.T) {
	if os.Getenv("SOAK") == "" {
		t.Skip("the other architecture is built with SOAK=1")
	}
	cmd := exec.Command("debian/mkdeb", "arm64")
	cmd.Dir = built[0].dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	deb := built[0].deb(t, "arm64")
	checkLayout(t, deb)
	checkPrograms(t, deb)
	checkCopyright(t, deb)
}

// A toolchain that is too old is said to be, before anything is built.
func TestToolchainTooOld(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "debian"), 0o755); err != nil {
		t.Fatal(err)
	}
	script, err := os.ReadFile(filepath.Join(root, "debian/find-go"))
	if err != nil {
		t.Fatal(err)
	}
	for path, content := range map[string]string{
		"debian/find-go": string(script),
		"bin/go":         "#!/bin/sh\necho go version go1.19.8 linux/amd64\n",
		"go.mod":         "module m\n\ngo 999.1\n",
	} {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(filepath.Join(dir, "debian/find-go"))
	cmd.Env = append(os.Environ(), "PATH="+filepath.Join(dir, "bin")+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "Go 999.1 or newer is needed") || !strings.Contains(string(out), "is 1.19.8;") {
		t.Errorf("%v: %q", err, out)
	}
}
