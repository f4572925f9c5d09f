package tree

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestLimitText(t *testing.T) {
	got := limitText("this user has all the inotify watches that", "fs.inotify.max_user_watches", 8192)
	want := "this user has all the inotify watches that fs.inotify.max_user_watches=8192 allows; " +
		"do: sysctl fs.inotify.max_user_watches=16384; to keep it: /etc/sysctl.d/"
	if got != want {
		t.Errorf("got %q", got)
	}
}

// inNamespace runs the test again in a user namespace of its own, which has limits of
// its own. It returns true there.
func inNamespace(t *testing.T) bool {
	t.Helper()
	const sign = "TREE_TEST_IN_NAMESPACE"
	if os.Getenv(sign) == t.Name() {
		return true
	}
	t.Parallel()
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), sign+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	switch {
	case err == nil && strings.Contains(string(out), "--- SKIP"):
		t.Skipf("in the namespace: %s", out)
	case err == nil:
	case cmd.ProcessState == nil: // not started
		t.Skipf("no user namespace here: %v", err)
	default:
		t.Errorf("in the namespace: %v\n%s", err, out)
	}
	return false
}

func setLimit(t *testing.T, name string, value int) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/user/"+name, fmt.Append(nil, value), 0o644); err != nil {
		t.Skipf("no limit can be set in the namespace: %v", err)
	}
}

func TestTooFewWatches(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	dir := t.TempDir()
	for i := range 20 {
		must(t, os.MkdirAll(fmt.Sprintf("%s/%02d/sub", dir, i), 0o755))
	}
	above := strings.Count(dir, "/")
	setLimit(t, "max_inotify_watches", above+30)
	s := &seen{last: time.Now()}
	w, err := Watch([]Root{{Dir: dir}}, s.sink, s.trouble)
	must(t, err)
	defer w.Close()
	blind := w.Blind()
	if blind == nil {
		t.Fatal("30 watches were enough for 41 directories")
	}
	for _, want := range []string{"cannot watch 11 directories", dir + "/", "sysctl fs.inotify.max_user_watches=", "/etc/sysctl.d/"} {
		if !strings.Contains(blind.Error(), want) {
			t.Errorf("%q does not say %q", blind, want)
		}
	}
	w.Refresh() // nothing to be had
	w.Refresh()
	s.quiet()
	if got := s.all(); len(got) != 0 {
		t.Errorf("reported %+v", got)
	}
	told := func() int { s.mu.Lock(); defer s.mu.Unlock(); return len(s.troubles) }
	if !until(func() bool { return told() == 1 }) {
		t.Errorf("trouble was told %d times", told())
	}

	setLimit(t, "max_inotify_watches", above+100)
	w.Refresh()
	if err := w.Blind(); err != nil {
		t.Fatal(err)
	}
	if !until(func() bool { return len(s.all()) == 11 }) {
		t.Errorf("%d directories reported: %+v", len(s.all()), s.all())
	}
	for i := range 20 {
		path := fmt.Sprintf("%02d/sub/x", i)
		write(t, dir+"/"+path, "")
		s.wait(t, path)
	}

	// Less again, while the watcher runs; this time removed directories make room.
	setLimit(t, "max_inotify_watches", above+41)
	must(t, os.Mkdir(dir+"/more", 0o755))
	s.wait(t, "more")
	if !until(func() bool { return w.Blind() != nil && told() == 2 }) {
		t.Fatalf("Blind %v, told %d times", w.Blind(), told())
	}
	must(t, os.RemoveAll(dir+"/00"))
	s.wait(t, "00")
	// The kernel gives the watches of removed directories back in its own time.
	if !until(func() bool { w.Refresh(); return w.Blind() == nil }) {
		t.Errorf("blind though there is room: %v", w.Blind())
	}
	write(t, dir+"/more/x", "")
	s.wait(t, "more/x")
}

func TestNoWatchAtAll(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	dir := t.TempDir()
	must(t, os.Mkdir(dir+"/sub", 0o755))
	setLimit(t, "max_inotify_watches", 0)
	s := &seen{last: time.Now()}
	w, err := Watch([]Root{{Dir: dir}}, s.sink, s.trouble)
	must(t, err)
	defer w.Close()
	if w.Blind() == nil {
		t.Fatal("not blind")
	}
	w.Refresh()
	s.quiet()
	if got := s.all(); len(got) != 0 {
		t.Errorf("reported %+v", got)
	}
	setLimit(t, "max_inotify_watches", 100)
	w.Refresh()
	s.waitAll(t)
	s.quiet()
	s.reset()
	if err := w.Blind(); err != nil {
		t.Error(err)
	}
	w.Refresh()
	write(t, dir+"/sub/x", "")
	s.wait(t, "sub/x")
	if s.has(Event{Path: ".", All: true}) {
		t.Error("everything is reported again and again")
	}
}

func TestNoInstance(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	setLimit(t, "max_inotify_instances", 1)
	roots := []Root{{Dir: t.TempDir()}, {Dir: t.TempDir()}}
	s := &seen{}
	_, err := Watch(roots, s.sink, s.trouble)
	if err == nil {
		t.Fatal("two roots with one instance")
	}
	for _, want := range []string{"fs.inotify.max_user_instances=", "sysctl ", "/etc/sysctl.d/"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
	w, err := Watch(roots[:1], s.sink, s.trouble) // the first one was given back
	if !until(func() bool {
		if err != nil {
			w, err = Watch(roots[:1], s.sink, s.trouble)
		}
		return err == nil
	}) {
		t.Fatal(err)
	}
	must(t, w.Close())
}

func TestTooFewOpenFiles(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	dir := t.TempDir()
	for i := range 100 {
		must(t, os.Mkdir(fmt.Sprintf("%s/%d", dir, i), 0o755))
	}
	var was unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &was))
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: firstNumber + 50, Max: was.Max}))
	s := &seen{}
	w, err := Watch([]Root{{Dir: dir}}, s.sink, s.trouble)
	must(t, err)
	defer w.Close()
	if err := w.Blind(); err == nil || !strings.Contains(err.Error(), "LimitNOFILE=") {
		t.Errorf("Blind: %v", err)
	}
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &was))
	w.Refresh()
	if err := w.Blind(); err != nil {
		t.Error(err)
	}
	write(t, dir+"/99/x", "")
	s.wait(t, "99/x")
}
