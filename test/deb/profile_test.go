package deb_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// What login shells read does its work in an interactive bash, and no harm elsewhere.
func TestProfile(t *testing.T) {
	dir := unpack(t, built[0].deb(t, ""))
	content, err := os.ReadFile(filepath.Join(dir, "etc/profile.d/"+name+".sh"))
	if err != nil {
		t.Fatal(err)
	}
	const installed = "/usr/bin/skd-prompt"
	if !strings.Contains(string(content), installed) {
		t.Fatalf("it does not call %s:\n%s", installed, content)
	}
	here, gone, failing := filepath.Join(t.TempDir(), "here"), filepath.Join(t.TempDir(), "gone"), filepath.Join(t.TempDir(), "failing")
	write(t, here, strings.ReplaceAll(string(content), installed, filepath.Join(dir, installed)))
	write(t, gone, strings.ReplaceAll(string(content), installed, "/nonexistent/skd-prompt"))
	write(t, failing, strings.ReplaceAll(string(content), installed, "/bin/false"))

	const look = `; echo "${PROMPT_COMMAND[112]-nothing}"`
	for _, c := range []struct {
		name  string
		shell []string
		file  string
		then  string
		want  string
	}{
		{"interactive bash", []string{"bash", "--norc", "-i"}, here, look, "__skd_prompt\n"},
		{"bash that runs a script", []string{"bash"}, here, look, "nothing\n"},
		{"bash without the program", []string{"bash", "--norc", "-i"}, gone, look, "nothing\n"},
		{"bash with a broken program", []string{"bash", "--norc", "-i"}, failing, look, "nothing\n"},
		{"sh", []string{"sh"}, here, "; echo on", "on\n"},
		{"interactive sh", []string{"sh", "-i"}, here, "; echo on", "on\n"},
		{"zsh", []string{"zsh", "-f"}, here, "; echo on", "on\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := exec.LookPath(c.shell[0]); err != nil {
				t.Skip("no", c.shell[0], "here")
			}
			// Twice, and by somebody who stops at the first thing that is wrong.
			script := "set -eu; . '" + c.file + "'; . '" + c.file + "'" + c.then
			cmd := exec.Command(c.shell[0], append(c.shell[1:], "-c", script)...)
			cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "PS1=$ ", "HOME=/nonexistent"}
			var complaints strings.Builder
			cmd.Stderr = &complaints
			out, err := cmd.Output()
			if err != nil || string(out) != c.want || strings.Contains(complaints.String(), "skd") {
				t.Errorf("%v: %q, want %q; said %q", err, out, c.want, complaints.String())
			}
		})
	}
}
