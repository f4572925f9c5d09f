package rsync

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestExplain(t *testing.T) {
	const some = "rsync error: some files/attrs were not transferred (see previous errors) (code 23) at main.c(1394) [sender=3.5.0]\n"
	for _, tt := range []struct {
		name         string
		exit         int
		stderr       string
		text, remedy string // the remedy: its beginning; "-" none
	}{
		// These are what rsync really said.
		{"full disk", 11, "rsync: [receiver] write failed on \"/cfg/certificates/x.pem\": No space left on device (28)\n" +
			"rsync error: error in file IO (code 11) at receiver.c(657) [receiver=3.5.0]\n",
			`no space left on the peer: "/cfg/certificates/x.pem"`, "free space (and inodes: df -i) there; it is tried again"},
		{"full disk, rsync 3.1", 11, "rsync: write failed on \"/cfg/x\": No space left on device (28)\n" +
			"rsync error: error in file IO (code 11) at receiver.c(393) [receiver=3.1.3]\nrsync: [sender] write error: Broken pipe (32)\n",
			`no space left on the peer: "/cfg/x"`, "free space"},
		{"read-only", 23, "rsync: [receiver] mkstemp \"/ro/.a.66pygm\" failed: Read-only file system (30)\n" +
			"rsync: [generator] recv_generator: mkdir \"/ro/certificates\" failed: Read-only file system (30)\n" +
			"*** Skipping any contents from this failed directory ***\n" + some,
			`the filesystem is read-only on the peer: "/ro/.a" and 1 more`, "see with dmesg there"},
		{"no temp-dir", 1, "The temp-dir does not exist: /var/tmp/x y\nrsync error: syntax or usage error (code 1) at main.c(1056) [Receiver=3.5.0]\n",
			"the directory for temporary files is missing on the peer: /var/tmp/x y", "mkdir -m 700 it there"},
		{"no directory", 11, "rsync: [Receiver] mkdir \"/none/at/all\" failed: No such file or directory (2)\n" +
			"rsync error: error in file IO (code 11) at main.c(808) [Receiver=3.5.0]\n",
			`missing on the peer: "/none/at/all"`, "it is tried again"},
		{"gone here", 23, "rsync: [sender] link_stat \"/stage/gone\" failed: No such file or directory (2)\n" + some, `missing here: "/stage/gone"`, "it is tried again"},
		{"gone here, old", 23, "rsync: link_stat \"/stage/gone\" failed: No such file or directory (2)\n", `missing here: "/stage/gone"`, "it is tried again"},
		{"no rsync", 127, "sh: 1: rsync: not found\nrsync: connection unexpectedly closed (0 bytes received so far) [sender]\n" +
			"rsync error: remote command not found (code 127) at io.c(285) [sender=3.5.0]\n",
			"there is no rsync on the peer", "install it there (Debian: apt-get install rsync), or correct $rsync in"},
		{"noise", 2, "protocol version mismatch -- is your shell clean?\n(see the rsync manpage for an explanation)\n" +
			"rsync error: protocol incompatibility (code 2) at compat.c(625) [sender=3.5.0]\n",
			"on the peer something is printed before rsync speaks", "root's shell start files"},
		{"ended at once", 12, "rsync: connection unexpectedly closed (0 bytes received so far) [sender]\n" +
			"rsync error: error in rsync protocol data stream (code 12) at io.c(285) [sender=3.5.0]\n",
			"the peer's rsync did not start, or ended at once", "see the peer's log"},
		{"killed over there", 12, "rsync: connection unexpectedly closed (49 bytes received so far) [sender]\n" +
			"rsync error: error in rsync protocol data stream (code 12) at io.c(285) [sender=3.5.0]\n",
			"the connection to the peer's rsync was lost in the middle", "see the peer's log"},
		{"told to end over there", 20, "rsync error: received SIGINT, SIGTERM, or SIGHUP (code 20) at io.c(586) [generator=3.5.0]\nrsync: [sender] write error: Broken pipe (32)\n",
			"rsync was told to end (SIGTERM or the like) on the peer", "-"},
		{"told to end here", 20, "rsync error: received SIGINT, SIGTERM, or SIGHUP (code 20) at rsync.c(874) [sender=3.5.0]\n",
			"rsync was told to end (SIGTERM or the like) here", "-"},
		{"timeout", 30, "[sender] io timeout after 1 seconds -- exiting\nrsync error: timeout in data send/receive (code 30) at io.c(248) [sender=3.5.0]\n",
			"nothing came from the peer for too long", "see whether the peer"},
		{"option unknown here", 1, "rsync: --nonsense: unknown option\nrsync error: syntax or usage error (code 1) at main.c(1886) [client=3.5.0]\n",
			"rsync does not know the option --nonsense", "take it out of $rsync_args"},
		{"option unknown there", 12, "rsync: --fancy-new: unknown option\nrsync error: syntax or usage error (code 1) at main.c(1886) [client=3.5.0]\n" +
			"rsync: connection unexpectedly closed (0 bytes received so far) [sender]\nrsync error: error in rsync protocol data stream (code 12) at io.c(285) [sender=3.5.0]\n",
			"the peer's rsync does not know the option --fancy-new", "take it out of $rsync_args"},
		{"option invalid", 1, "rsync: --bwlimit=xyz is invalid\nrsync error: syntax or usage error (code 1) at main.c(1886) [client=3.5.0]\n",
			"rsync does not accept its options: --bwlimit=xyz is invalid", "correct $rsync_args"},
		{"in the way", 23, "could not make way for new regular file: dir\n" + some,
			"on the peer a directory that is not empty is where something else belongs: dir", "it holds files of the peer's own"},
		{"no shell", 14, "rsync: [sender] Failed to exec ./nothing: No such file or directory (2)\nrsync error: error in IPC code (code 14) at pipe.c(85) [sender=3.5.0]\n" +
			"rsync: connection unexpectedly closed (0 bytes received so far) [sender]\n",
			"missing here: Failed to exec ./nothing", "it is tried again"},
		{"immutable", 23, "rsync: [receiver] mkstemp \"/cfg/imm/.f.yKc7v9\" failed: Operation not permitted (1)\n" + some,
			`operation not permitted on the peer: "/cfg/imm/.f"`, "see with lsattr there"},
		{"immutable directory", 23, "rsync: [receiver] rename \"/cfg/tmp/f.yKc7v9\" -> \"imm/f\": Operation not permitted (1)\n" + some,
			`operation not permitted on the peer: "imm/f"`, "see with lsattr there"},
		{"not root there", 23, "rsync: [receiver] mkstemp \"/cfg/.f.KDcD0Z\" failed: Permission denied (13)\n" + some,
			`permission denied on the peer: "/cfg/.f"`, "skd-inotify must run as root there"},
		{"not root here", 23, "rsync: [sender] send_files failed to open \"/stage/a\": Permission denied (13)\n" + some,
			`permission denied here: "/stage/a"`, "skd-inotify must run as root here"},
		{"name too long", 3, "rsync: [Receiver] ERROR: cannot stat destination \"/cfg/xxx\": File name too long (36)\n",
			`the name is too long on the peer: "/cfg/xxx"`, "give it a shorter name"},
		{"vanished", 24, "file has vanished: \"/cfg/van/1\"\nfile has vanished: \"/cfg/van/10\"\n" +
			"rsync warning: some files vanished before they could be transferred (code 24) at main.c(1338) [sender=3.5.0]\n",
			`files vanished while they were sent: "/cfg/van/1" and maybe more`, "-"},
		{"odd name", 23, "rsync: [receiver] mkstemp \"/cfg/a\": b (1)\\#012.x\" failed: Disk quota exceeded (122)\n" + some,
			`disk quota exceeded on the peer: "/cfg/a": b (1)\#012.x"`, "raise the quota or free space there"},

		// And these follow from the manual.
		{"first cause", 23, "rsync: [receiver] mkstemp \"/t/.a\" failed: No such file or directory (2)\nrsync: [generator] mkdir \"/t\" failed: Input/output error (5)\n",
			`input/output error on the peer: "/t"`, "see with dmesg there"},
		{"other number", 23, "rsync: [receiver] rename \"/t/.a\" -> \"a\": Is a directory (21)\n", `Is a directory on the peer: "/t/.a" -> "a"`, "it is tried again"},
		{"no daemon", 255, "skd-inotify rsh: no daemon listens on /run/x\nrsync: connection unexpectedly closed (0 bytes received so far) [sender]\n" +
			"rsync error: unexplained error (code 255) at io.c(285) [sender=3.5.0]\n",
			"rsync did not reach the daemon: no daemon listens on /run/x", "it is tried again"},
		{"partial", 23, "something odd\n" + some, "rsync could not transfer everything: something odd", "it is tried again"},
		{"killed here", 137, "", "rsync was killed", "see with dmesg"},
		{"crashed here", 139, "", "rsync was ended by signal 11 (segmentation fault)", "it is tried again"},
		{"no message", 12, "", "the connection to the peer's rsync was lost in the middle", "see the peer's log"},
		{"unknown status", 77, "oops\n", "rsync ended with status 77: oops", "it is tried again"},
		{"no file, silent", 126, "", "the peer's rsync cannot be executed", "check $rsync in"},
		{"connection", 255, "", "the connection to the peer failed", "it is tried again"},
	} {
		text, remedy := Explain(tt.exit, tt.stderr)
		if text != tt.text {
			t.Errorf("%s: text   %s\n want %s", tt.name, text, tt.text)
		}
		if tt.remedy == "-" && remedy != "" || tt.remedy != "-" && !strings.HasPrefix(remedy, tt.remedy) {
			t.Errorf("%s: remedy %s\n want %s", tt.name, remedy, tt.remedy)
		}
	}
}

// What the installed rsync says today is understood too.
func TestExplainRealFailures(t *testing.T) {
	if _, err := exec.LookPath("rsync"); err != nil {
		t.Skip("no rsync here")
	}
	dir := t.TempDir()
	for _, d := range []string{"src/sub", "full", "ro", "dest"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, content := range map[string][]byte{
		"src/sub/x.pem": bytes.Repeat([]byte("0123456789abcdef"), 20000),
		"sh":            []byte("#!/bin/sh\nshift\nexec \"$@\"\n"),
		"none":          []byte("#!/bin/sh\nPATH=/nowhere\nrsync --server\n"),
		"noisy":         []byte("#!/bin/sh\necho Welcome to this machine\nshift\nexec \"$@\"\n"),
		"kill":          []byte("#!/bin/sh\nhead -c 4 >/dev/null\nkill -9 $$\n"),
		"silent":        []byte("#!/bin/sh\nexec sleep 3\n"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	mounts := exec.Command("unshare", "-m", "mount", "-t", "tmpfs", "none", dir+"/full").Run() == nil
	for _, tt := range []struct {
		shell, dest, setup, text string
		options                  string
	}{
		{"sh", "full", "mount -t tmpfs -o size=64k none full &&", `no space left on the peer: "`, ""},
		{"sh", "ro", "mount --bind ro ro && mount -o remount,ro,bind ro &&", "the filesystem is read-only on the peer", ""},
		{"sh", "dest", "", "the directory for temporary files is missing on the peer: /nowhere", "--temp-dir=/nowhere"},
		{"none", "dest", "", "there is no rsync on the peer", ""},
		{"noisy", "dest", "", "on the peer something is printed before rsync speaks", ""},
		{"kill", "dest", "", "the peer's rsync did not start, or ended at once", ""},
		{"silent", "dest", "", "nothing came from the peer for too long", "--timeout=1"},
	} {
		run := "cd '" + dir + "' && " + tt.setup + " exec rsync -rlpt " + tt.options + " -e ./" + tt.shell + " src/ peer:" + dir + "/" + tt.dest + "/"
		cmd := exec.Command("sh", "-c", run)
		if tt.setup != "" {
			if !mounts {
				t.Logf("%s: no mounts here", tt.text)
				continue
			}
			cmd = exec.Command("unshare", "-m", "sh", "-c", run)
		}
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		err := cmd.Run()
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			t.Errorf("%s: %v", tt.text, err)
			continue
		}
		if text, _ := Explain(exit.ExitCode(), stderr.String()); !strings.HasPrefix(text, tt.text) {
			t.Errorf("got %s\nwant %s…\nfrom %d %s", text, tt.text, exit.ExitCode(), stderr.String())
		}
	}
}

func FuzzExplain(f *testing.F) {
	f.Add(23, "rsync: [receiver] mkstemp \"/t/.a\" failed: Read-only file system (30)\n")
	f.Add(1, "rsync: --x: unknown option\nrsync: connection unexpectedly closed (0 bytes received so far) [sender]")
	f.Add(24, "file has vanished: \"\x1b[31m\xff\"\r\n")
	f.Fuzz(func(t *testing.T, exit int, stderr string) {
		text, remedy := Explain(exit, stderr)
		if text == "" || strings.ContainsAny(text+remedy, "\n\r\x1b\x00") || !utf8.ValidString(text) || len(text) > 3000 {
			t.Errorf("%d %q: %q, %q", exit, stderr, text, remedy)
		}
		if strings.Contains(remedy, "%s") || strings.Contains(remedy, "$$") {
			t.Errorf("%d %q: remedy %q", exit, stderr, remedy)
		}
	})
}
