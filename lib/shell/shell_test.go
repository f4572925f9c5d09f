package shell

import (
	"os/exec"
	"testing"
)

func TestQuote(t *testing.T) {
	for _, word := range []string{"", "plain", "two words", "it's", "''", "$HOME `id` \\ \" * ;", "-n", "a\nb", "\xff"} {
		out, err := exec.Command("/bin/sh", "-c", "printf %s "+Quote(word)).Output()
		if err != nil || string(out) != word {
			t.Errorf("%q becomes %q, %v", word, out, err)
		}
	}
}

func TestQuotesWhereNeeded(t *testing.T) {
	for in, want := range map[string]string{"": "''", "/a/b_c-1.pub": "/a/b_c-1.pub", "a b": "'a b'", "it's": `'it'\''s'`, "[::1]:22": "'[::1]:22'"} {
		if got := Quote(in); got != want {
			t.Errorf("Quote(%q) = %s, want %s", in, got, want)
		}
	}
}
