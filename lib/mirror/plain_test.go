package mirror

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestNoiseBeforeTheMarkIsSkipped(t *testing.T) {
	const mark = "\n" + plainMark + "\n"
	long := strings.Repeat("x", 10_000)
	for name, tt := range map[string]struct{ said, want string }{
		"none":                    {mark + "rsync\x00\n\nspeaks", "rsync\x00\n\nspeaks"},
		"nothing after it":        {mark, ""},
		"lines":                   {"Welcome!\n\nYou have mail.\n" + mark + "rsync", "rsync"},
		"a line without its end":  {"$ " + mark + "rsync", "rsync"},
		"a line of 10 kB":         {long + mark + "rsync", "rsync"},
		"many lines":              {strings.Repeat("x\n", 30_000) + mark + "rsync", "rsync"},
		"the mark ends a line":    {"this is " + plainMark + "\n" + mark + "rsync", "rsync"},
		"it ends a line of 8 KiB": {strings.Repeat("x", 8192) + plainMark + "\n" + mark + "rsync", "rsync"},
		"the mark is said twice":  {mark + plainMark + "\nrsync", plainMark + "\nrsync"},
		"the session ends before": {"rsync: not found\n", ""},
		"it ends in the mark":     {"\n" + plainMark, ""},
	} {
		for how, reader := range map[string]io.Reader{
			"at once": strings.NewReader(tt.said), "byte by byte": iotest.OneByteReader(strings.NewReader(tt.said)),
		} {
			if got, err := io.ReadAll(marked(reader)); err != nil || string(got) != tt.want {
				t.Errorf("%s, %s: %.100q, %v, want %q", name, how, got, err, tt.want)
			}
		}
	}
}

// endless says the same again and again, and counts what was taken.
type endless struct {
	text  string
	taken int
}

func (e *endless) Read(b []byte) (int, error) {
	for n := 0; n < len(b); {
		n += copy(b[n:], e.text)
	}
	e.taken += len(b)
	return len(b), nil
}

// What never comes to the mark is given to rsync, which says what is wrong.
func TestEndlessNoiseIsNotKept(t *testing.T) {
	for _, text := range []string{"x", "x\n"} {
		from := &endless{text: text}
		r := marked(from)
		if from.taken < mostNoise || from.taken > mostNoise+64<<10 {
			t.Errorf("%q: %d bytes were read for the mark", text, from.taken)
		}
		b := make([]byte, 10_000)
		if _, err := io.ReadFull(r, b); err != nil || len(bytes.Trim(b, text)) > 0 {
			t.Errorf("%q: then %.50q, %v", text, b, err)
		}
	}
}
