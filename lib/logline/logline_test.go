package logline

import (
	"errors"
	"log/slog"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// collect gives a queue, and a function that returns what was written to it.
func collect() (*Queue, func() []Line) {
	var lines []Line
	q := NewQueue(func(l Line) { lines = append(lines, l) }, "nobody read it")
	return q, func() []Line {
		got := make(chan []Line, 1)
		for !q.Do(func() { got <- append([]Line(nil), lines...) }) {
			time.Sleep(time.Millisecond)
		}
		return <-got
	}
}

func TestLines(t *testing.T) {
	q, lines := collect()
	log := q.Logger().With("root", "config")
	log.Info("replicated", "files", 3, "error", errors.New("two words"), "empty", "")
	log.Warn("a name is \"evil\n2026-01-01 error forged\x1b[2J\u009b2J\u202e\"")
	log.Error("cannot read", "path", "a\nb", "raw", "x\xff", "c1", "a\u009bb", "plain", "farm_ü.cfg")
	log.WithGroup("g").Info("no groups", "k", 1)
	log.Debug("not shown")
	want := []Line{
		{Level: slog.LevelInfo, Text: `replicated root=config files=3 error="two words" empty=""`},
		{Level: slog.LevelWarn, Text: `a name is "evil?2026-01-01 error forged?[2J?2J?" root=config`},
		{Level: slog.LevelError, Text: `cannot read root=config path="a\nb" raw="x\xff" c1="a\u009bb" plain=farm_ü.cfg`},
		{Level: slog.LevelInfo, Text: `no groups root=config k=1`},
	}
	got := lines()
	if len(got) != len(want) {
		t.Fatalf("got %q", got)
	}
	for i, w := range want {
		if got[i].Text != w.Text || got[i].Level != w.Level {
			t.Errorf("got  %v %q\nwant %v %q", got[i].Level, got[i].Text, w.Level, w.Text)
		}
		if time.Since(got[i].At) > time.Minute {
			t.Errorf("time %v", got[i].At)
		}
	}
}

// A log that hangs costs lines, not time.
func TestAHangingLogDoesNotBlock(t *testing.T) {
	hold := make(chan struct{})
	var texts []string
	q := NewQueue(func(l Line) { <-hold; texts = append(texts, l.Text) }, "nobody read it")
	for range 2 * queued {
		q.Put(Line{Text: "line"})
	}
	if q.Do(func() {}) {
		t.Error("something found a place in a full queue")
	}
	q.Flush(time.Millisecond) // gives up
	close(hold)
	q.Flush(10 * time.Second)
	q.Put(Line{Text: "after"})
	q.Flush(10 * time.Second)
	lost := 0
	for _, text := range texts {
		if n, ok := strings.CutSuffix(text, " log lines were lost: nobody read it"); ok {
			k, _ := strconv.Atoi(n)
			lost += k
		}
	}
	if n := len(texts); lost < queued-1 || texts[n-1] != "after" {
		t.Errorf("%d lines lost, said; last %q", lost, texts[n-1])
	}
}

func FuzzText(f *testing.F) {
	f.Add("a sentence", "value")
	f.Add("a\nb\r\x00\x1b[2J\x7f", "\xff\u2028\" =")
	f.Fuzz(func(t *testing.T, message, value string) {
		text := oneLine(message) + fact(slog.String("key", value))
		if !utf8.ValidString(text) {
			t.Errorf("%q is not UTF-8", text)
		}
		for _, r := range text {
			if r != '\t' && !strconv.IsPrint(r) {
				t.Fatalf("%q in %q", r, text)
			}
		}
		quoted := strings.TrimPrefix(fact(slog.String("key", value)), " key=")
		if back, err := strconv.Unquote(quoted); quoted != value && (err != nil || back != value) {
			t.Errorf("%q became %q", value, quoted)
		}
	})
}
