package skudonet

import (
	"context"
	"os"
	"path/filepath"
	"testing"
)

func TestVersion(t *testing.T) {
	for _, tc := range []struct{ name, script, want string }{
		{"installed", `[ "$*" = '-W -f ${Version} skudonet' ] && printf 7.1.0`, "7.1.0"},
		{"an older dpkg ends the line", `echo 1:7.1.0~rc1-2+b1`, "1:7.1.0~rc1-2+b1"},
		{"not installed", `echo "dpkg-query: no packages found matching skudonet" >&2; exit 1`, ""},
		{"dpkg is broken", `echo 7.1.0; exit 2`, ""},
		{"not a version", `printf '7.1.0\n7.2.0'`, ""},
		{"no version", `printf ''`, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "dpkg-query"), []byte("#!/bin/sh\n"+tc.script+"\n"), 0o755); err != nil {
				t.Fatal(err)
			}
			t.Setenv("PATH", dir)
			if got := Version(context.Background()); got != tc.want {
				t.Errorf("%q, want %q", got, tc.want)
			}
		})
	}
	t.Run("no dpkg", func(t *testing.T) {
		t.Setenv("PATH", t.TempDir())
		if got := Version(context.Background()); got != "" {
			t.Errorf("%q", got)
		}
	})
	t.Run("dpkg hangs", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "dpkg-query"), []byte("#!/bin/sh\nprintf 7.1.0\nexec /bin/sleep 60\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		t.Setenv("PATH", dir)
		if got := Version(context.Background()); got != "" {
			t.Errorf("%q", got)
		}
	})
}
