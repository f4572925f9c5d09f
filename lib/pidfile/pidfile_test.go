package pidfile

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestClaim(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.pid")
	if err := os.WriteFile(path, []byte("99999999 left by a dead one\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := Claim(path)
	if err != nil {
		t.Fatal(err)
	}
	text, _ := os.ReadFile(path)
	if string(text) != fmt.Sprintf("%d\n", os.Getpid()) {
		t.Errorf("%q", text)
	}
	if _, err := Claim(path); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("as process %d", os.Getpid())) {
		t.Errorf("claimed twice: %v", err)
	}
	f.Close()
	if f, err := Claim(path); err != nil {
		t.Error(err)
	} else {
		f.Close()
	}
	if _, err := Claim(path + "/x"); err == nil {
		t.Error("claimed below a file")
	}
}
