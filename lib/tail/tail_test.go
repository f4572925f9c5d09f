package tail

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
)

func TestBuffer(t *testing.T) {
	for _, tt := range []struct {
		writes         []string
		want, lastLine string
	}{
		{nil, "", ""},
		{[]string{"\n \n"}, "\n \n", ""},
		{[]string{"one\n", "two\n"}, "one\ntwo\n", "two"},
		{[]string{"one\r\n  two \r\n\n"}, "one\r\n  two \r\n\n", "two"},
		{[]string{strings.Repeat("x", 16)}, strings.Repeat("x", 16), strings.Repeat("x", 16)},
		{[]string{"y", strings.Repeat("x", 16)}, "…" + strings.Repeat("x", 16), strings.Repeat("x", 16)},
		{[]string{strings.Repeat("y", 100) + "0123456789\nabcde"}, "…0123456789\nabcde", "abcde"},
		{[]string{"0123456789\n", "ab\n", "cdef\n"}, "…3456789\nab\ncdef\n", "cdef"},
		{[]string{"\xff is wrong\n"}, "\xff is wrong\n", "? is wrong"},
		{[]string{"ä" + strings.Repeat("x", 15)}, "…\xa4" + strings.Repeat("x", 15), "?" + strings.Repeat("x", 15)},
	} {
		b := New(16)
		for _, text := range tt.writes {
			if n, err := io.WriteString(b, text); n != len(text) || err != nil {
				t.Errorf("%q: %d, %v", text, n, err)
			}
		}
		if got := b.String(); got != tt.want {
			t.Errorf("%.200q: String is %q, want %q", tt.writes, got, tt.want)
		}
		if got := b.LastLine(); got != tt.lastLine {
			t.Errorf("%.200q: LastLine is %q, want %q", tt.writes, got, tt.lastLine)
		}
	}
}

// An output without end takes no more memory than its end.
func TestMemoryIsBounded(t *testing.T) {
	b := New(1 << 10)
	if _, err := io.CopyN(b, endless{}, 64<<20); err != nil {
		t.Fatal(err)
	}
	if got := cap(b.kept); got > 256<<10 {
		t.Errorf("%d bytes are held", got)
	}
}

type endless struct{}

func (endless) Read(b []byte) (int, error) { return len(b), nil }

func TestReadWhileWritten(t *testing.T) {
	b := New(100)
	var writing sync.WaitGroup
	for i := range 4 {
		writing.Go(func() {
			for range 200 {
				fmt.Fprintf(b, "line of %d\n", i)
			}
		})
	}
	for range 200 {
		if s := b.LastLine(); s != "" && !strings.HasPrefix(s, "line of ") {
			t.Errorf("half of a write: %q", s)
		}
		_ = b.String()
	}
	writing.Wait()
}
