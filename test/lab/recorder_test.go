package lab

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestRecordTree(t *testing.T) {
	t.Parallel()
	l := Test(t, Options{})
	sh := func(script string) { t.Helper(); run(t, l.LB1, "sh", "-ec", "cd "+TreePath+"; "+script) }
	record := func() *Recorder {
		t.Helper()
		r, err := l.LB1.RecordTree()
		check(t, err)
		return r
	}
	sh("mkdir -p a/b; echo old > a/b/f; mkdir ../outside")
	before := record()
	check(t, before.Stop())
	for _, name := range []string{".", "a/b/f", "certificates", "if_eth0_conf"} {
		if !slices.Contains(before.Names(), name) {
			t.Errorf("%q is not among %q", name, before.Names())
		}
	}

	r := record()
	// A file that is written in place may have been seen empty too.
	sees := func(name string, texts ...string) {
		t.Helper()
		var want [][32]byte
		for _, text := range texts {
			want = append(want, sha256.Sum256([]byte(text)))
		}
		Eventually(t, 5*time.Second, fmt.Sprintf("%q", name), func() (bool, string) {
			var got [][32]byte
			for _, c := range r.Contents(name) {
				if c.Size > 0 {
					got = append(got, c.SHA256)
				}
			}
			return slices.Equal(got, want), fmt.Sprintf("%d contents, want %d", len(got), len(want))
		})
	}
	// Whole by nature, torn, and the same again.
	sh("echo new > ../outside/f; mv ../outside/f a/b/f")
	sees("a/b/f", "old\n", "new\n")
	sh("printf half > a/b/torn")
	sees("a/b/torn", "half")
	sh("echo whole >> a/b/torn")
	sees("a/b/torn", "half", "halfwhole\n")
	sh("echo new > ../outside/f; mv ../outside/f a/b/f; chmod 600 a/b/f")
	// New directories, at once and with what is in them; below renamed ones.
	sh("mkdir -p n/e/w; echo 1 > n/e/w/f; ln -s nowhere n/link; mkfifo n/fifo")
	sees("n/e/w/f", "1\n")
	sh("mv n m; echo 2 > m/e/w/g")
	sees("m/e/w/g", "2\n")
	sees("m/e/w/f", "1\n")
	// What left the tree is of no interest; what comes back is.
	sh("mv m ../outside/m; sleep 0.2; echo 3 > ../outside/m/e/w/h; sleep 0.2; rm ../outside/m/e/w/h; mv ../outside/m back; echo 4 > back/e/i")
	sees("back/e/i", "4\n")
	sees("back/e/w/g", "2\n")
	sh(`echo 5 > "$(printf 'odd\n\377')"`)
	sees("odd\n\xff", "5\n")
	// A temporary file for the shortest of times.
	sh("mkdir x; touch x/.tmp; rm -r x")
	// The disk outlives the power.
	check(t, l.LB1.PowerOff())
	check(t, l.LB1.PowerOn())
	sh("echo 6 > after")
	check(t, r.Stop())
	check(t, r.Stop())
	sh("echo 7 > late")
	sees("after", "6\n")
	sees("a/b/f", "old\n", "new\n")

	names := r.Names()
	for _, name := range []string{"n/link", "n/fifo", "m", "m/e/w", "m/e/w/f", "back/e/w/g", "x"} {
		if !slices.Contains(names, name) {
			t.Errorf("%q is not among %q", name, names)
		}
	}
	for _, name := range names {
		if strings.HasSuffix(name, "/h") || name == "late" {
			t.Errorf("%q was never in the tree", name)
		}
	}
	if got := failure(t, func(t TB) {
		r.OnlyNames(t, func(name string) bool { return name != "n/fifo" })
		r.OnlyNames(t, func(name string) bool { return true })
	}); got != "lb1: \"n/fifo\" was in the tree\n" {
		t.Errorf("names: %s", got)
	}
	r.OnlyContents(t, "a/b/f", "new\n", "old\n", "never\n")
	if got := failure(t, func(t TB) { r.OnlyContents(t, "a/b/torn", "halfwhole\n") }); !strings.Contains(got, `"a/b/torn" held, at `) ||
		!strings.Contains(got, ", 4 bytes that are none of its 1 whole contents") {
		t.Errorf("torn: %s", got)
	}
	if got := failure(t, func(t TB) { r.OnlyContents(t, "absent", "") }); got != "lb1: nobody could read \"absent\"\n" {
		t.Errorf("absent: %s", got)
	}
}

// A stream of replacements and of names: nothing is lost, nothing whole is seen torn.
func TestRecordReplacements(t *testing.T) {
	t.Parallel()
	l := Test(t, Options{})
	r, err := l.LB1.RecordTree()
	check(t, err)
	const count = 100
	run(t, l.LB1, "sh", "-ec", fmt.Sprintf(`cd %s; mkdir ../stage
		for i in $(seq %d); do yes $i | head -n 2000 > ../stage/f; mv ../stage/f f; mkdir d$i; : > d$i/e; done`, TreePath, count))
	var whole []string
	for i := range count {
		whole = append(whole, strings.Repeat(fmt.Sprintln(i+1), 2000))
	}
	r.OnlyContents(t, "f", whole...)
	names := r.Names()
	for i := range count {
		if name := fmt.Sprintf("d%d/e", i+1); !slices.Contains(names, name) {
			t.Fatalf("%s is missing", name)
		}
	}
	seen := r.Contents("f")
	if last := seen[len(seen)-1]; last.SHA256 != sha256.Sum256([]byte(whole[count-1])) {
		t.Error("the last content was not seen")
	}
	t.Logf("%d of %d contents seen", len(seen), count)
}

// Mounts in a machine need nothing but its own mount.
func TestMounts(t *testing.T) {
	t.Parallel()
	l := Test(t, Options{})
	const dir = TreePath + "/small"
	run(t, l.LB1, "mkdir", dir)
	run(t, l.LB1, "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", dir)
	if out, err := l.LB1.Run("dd", "if=/dev/zero", "of="+dir+"/fill", "bs=1k", "count=1000"); err == nil || !strings.Contains(out, "No space left") {
		t.Errorf("a disk of 64 kB took a megabyte: %s", out)
	}
	if _, err := l.LB1.ReadFile(dir + "/fill"); err != nil {
		t.Error(err)
	}
	run(t, l.LB1, "mount", "-o", "remount,ro", dir)
	if out, err := l.LB1.Run("touch", dir+"/x"); err == nil || !strings.Contains(out, "Read-only") {
		t.Errorf("written to a read-only disk: %s", out)
	}
	run(t, l.LB1, "umount", dir)
	// What is there already, read-only.
	run(t, l.LB1, "mount", "--bind", TreePath, TreePath)
	run(t, l.LB1, "mount", "-o", "remount,bind,ro", TreePath)
	if err := l.LB1.WriteFile(TreePath+"/x", "", 0o600); err == nil {
		t.Error("written to a read-only tree")
	}
	run(t, l.LB1, "umount", TreePath)
	check(t, l.LB1.WriteFile(TreePath+"/x", "", 0o600))
}
