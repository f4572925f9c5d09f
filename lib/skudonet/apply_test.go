package skudonet

import "testing"

func TestPending(t *testing.T) {
	dir := t.TempDir()
	for _, step := range []struct {
		name string
		do   func(string) error
		want bool
	}{
		{"nothing is owed", Settle, false},
		{"owed", Owe, true},
		{"owed again", Owe, true},
		{"done", Settle, false},
	} {
		if err := step.do(dir); err != nil {
			t.Errorf("%s: %v", step.name, err)
		}
		if got := Pending(dir); got != step.want {
			t.Errorf("%s: pending %v", step.name, got)
		}
	}
	if Owe(dir+"/none") == nil || Pending(dir+"/none") {
		t.Error("a mark in no directory")
	}
}
