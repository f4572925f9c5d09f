package rsync

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestParseVersion(t *testing.T) {
	for text, want := range map[string]string{
		"rsync  version 3.2.7  protocol version 31\nCopyright …": "3.2.7",
		"rsync  version 3.5.0  protocol version 32\n":            "3.5.0",
		"rsync  version v3.2.3  protocol version 31\n":           "3.2.3",
		"rsync version 2.6.9 compatible\nopenrsync":              "2.6.9",
		"motd\nrsync  version 3.4.0pre1  protocol version 32\n":  "3.4.0pre1",
		"version 3.2.7": "",
		"":              "",
		"rsync  version x" + strings.Repeat("9", 100) + ".1": "",
	} {
		if got, ok := parseVersion(text); got != want || ok != (want != "") {
			t.Errorf("%q: %q, %v, want %q", text, got, ok, want)
		}
	}
}

func TestCheckVersion(t *testing.T) {
	for v, want := range map[string]string{
		"3.1.0": "", "3.1": "", "3.1.3pre1": "", "3.2.7": "", "3.5.0": "", "4.0": "", "10.0.0": "",
		"3.0.9": "omit-link-times", "2.6.9": "omit-link-times", "3": "omit-link-times",
		"": "not a version", "x.y": "not a version", "3.x.1": "not a version", "99999999999999999999.1": "not a version", "-3.1": "not a version",
	} {
		err := CheckVersion(v)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "install")) {
			t.Errorf("%q: %v, want %q", v, err, want)
		}
	}
}

func TestErrorsAside(t *testing.T) {
	for v, want := range map[string]bool{"3.1.3": false, "3.2.2": false, "3.2.3": true, "3.2.7": true, "3.10.0": true, "4.0": true, "": false, "x": false} {
		if ErrorsAside(v) != want {
			t.Errorf("%q: want %v", v, want)
		}
	}
}

func TestVersionOfPrograms(t *testing.T) {
	if _, err := exec.LookPath("rsync"); err == nil {
		v, err := Version(t.Context(), "rsync")
		if err != nil || CheckVersion(v) != nil {
			t.Errorf("the rsync here: %q, %v, %v", v, err, CheckVersion(v))
		}
	}
	if _, err := Version(t.Context(), "/nowhere/rsync"); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "install") {
		t.Errorf("no program: %v", err)
	}
	if _, err := Version(t.Context(), "/bin/true"); err == nil || !strings.Contains(err.Error(), "/bin/true") {
		t.Errorf("another program: %v", err)
	}
	script := filepath.Join(t.TempDir(), "rsync")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho 'rsync  version 3.0.6  protocol version 30'\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if v, err := Version(t.Context(), script); v != "3.0.6" || err != nil {
		t.Errorf("an old one: %q, %v", v, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Version(ctx, script); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %v", err)
	}
}
