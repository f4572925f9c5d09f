package deb_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// What README says about the repository, with an apt that knows no other one and
// keeps all its files in a directory of the test.
func TestRepository(t *testing.T) {
	for _, tool := range []string{"apt-ftparchive", "gpg", "gpgv", "apt-get"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("no", tool, "here (test/install-deps deb)")
		}
	}
	b, home := built[0], t.TempDir()
	mkrepo := func() string {
		cmd := exec.Command("debian/mkrepo")
		cmd.Dir = b.dir
		cmd.Env = append(os.Environ(), "REPO_GNUPGHOME="+filepath.Join(home, "gnupg"))
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return string(out)
	}
	repo := filepath.Join(b.dir, "dist/repo")
	key := filepath.Join(repo, name+".gpg")

	if out := mkrepo(); !strings.Contains(out, "made the key") {
		t.Errorf("the key that it made is not mentioned: %q", out)
	}
	before, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	if out := mkrepo(); strings.Contains(out, "made the key") {
		t.Errorf("the second time: %q", out)
	}
	if after, err := os.ReadFile(key); err != nil || string(after) != string(before) {
		t.Error("the public key is another one the second time:", err)
	}
	stable := filepath.Join(repo, "dists/stable")
	output(t, "gpgv", "--keyring", key, stable+"/InRelease")
	output(t, "gpgv", "--keyring", key, stable+"/Release.gpg", stable+"/Release")
	if left, _ := filepath.Glob(repo + "/.new*"); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	if info, err := os.Stat(filepath.Join(home, "gnupg")); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the key's directory: %v, %v", info, err)
	}

	source := filepath.Join(home, "skudonet.sources")
	write(t, source, "Types: deb\nURIs: file:"+repo+"\nSuites: stable\nComponents: main\nSigned-By: "+key+"\n")
	write(t, filepath.Join(home, "status"), "")
	for _, dir := range []string{"state/lists/partial", "cache/archives/partial", "etc"} {
		if err := os.MkdirAll(filepath.Join(home, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	apt := func(command string, args ...string) string {
		args = append([]string{
			"-o", "Dir::Etc=" + home + "/etc", "-o", "Dir::Etc::SourceList=" + source, "-o", "Dir::Etc::SourceParts=/dev/null",
			"-o", "Dir::State=" + home + "/state", "-o", "Dir::State::Status=" + home + "/status",
			"-o", "Dir::Cache=" + home + "/cache", "-o", "APT::Sandbox::User=root",
		}, args...)
		return output(t, command, args...)
	}
	apt("apt-get", "update", "--error-on=any")
	const synopsis = "Skudonet Load Balancer Community Edition Cluster Service"
	if got, want := apt("apt-cache", "search", name), name+" - "+synopsis+"\n"; got != want {
		t.Errorf("apt-cache search: %q, want %q", got, want)
	}
	shown := apt("apt-cache", "show", name)
	for _, want := range []string{
		"Package: " + name, "Version: " + version(t), "Section: admin", "Priority: optional", "Description: " + synopsis,
	} {
		if !strings.Contains(shown, want+"\n") {
			t.Errorf("apt-cache show lacks %q:\n%s", want, shown)
		}
	}

	// A repository that somebody has changed is refused.
	release := filepath.Join(stable, "InRelease")
	content, err := os.ReadFile(release)
	if err != nil {
		t.Fatal(err)
	}
	write(t, release, strings.Replace(string(content), "Origin: Skudonet", "Origin: Somebody", 1))
	if exec.Command("gpgv", "--keyring", key, release).Run() == nil {
		t.Error("a changed InRelease has a good signature")
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}
