package ledger

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

func TestPeek(t *testing.T) {
	dir := t.TempDir()
	names := func() (list []string) {
		t.Helper()
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			list = append(list, e.Name())
		}
		return list
	}
	if r, found, err := Peek(dir); found || err != nil || names() != nil {
		t.Errorf("no record: %+v, %v, %v, and %q", r, found, err, names())
	}
	if _, found, err := Peek(dir + "/none"); found || err != nil {
		t.Errorf("no directory: %v, %v", found, err)
	}
	first, _ := load(t, dir, "m1")
	first.Vector = first.Vector.Raised(first.ID)
	if err := Store(dir, first); err != nil {
		t.Fatal(err)
	}
	if r, found, err := Peek(dir); !reflect.DeepEqual(r, first) || !found || err != nil {
		t.Errorf("%+v, %v, %v, want %+v", r, found, err, first)
	}
	before := names()
	for _, text := range []string{"", "{", "{}", `{"id": "0"}`} {
		if err := os.WriteFile(filepath.Join(dir, Name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, found, err := Peek(dir); found || err == nil {
			t.Errorf("%q is taken for a record", text)
		}
	}
	if !reflect.DeepEqual(names(), before) {
		t.Errorf("in the directory: %q, before %q", names(), before)
	}
}
