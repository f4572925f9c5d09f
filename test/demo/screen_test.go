package main

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/skudonet/skudonet-ce-cluster/test/lab"
)

var zero = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func at(seconds float64) time.Time { return zero.Add(time.Duration(seconds * float64(time.Second))) }

func TestWrap(t *testing.T) {
	for _, c := range []struct {
		text string
		want []string
	}{
		{"", []string{""}},
		{"one  two\n", []string{"one two"}},
		{"one two three", []string{"one two", "three"}},
		{"äöü äöüß", []string{"äöü äöüß"}}, // columns, not bytes
		{"a /usr/local/sbin b", []string{"a", "/usr/loc", "al/sbin", "b"}},
	} {
		if got := wrap(c.text, 8); !slices.Equal(got, c.want) {
			t.Errorf("wrap(%q) = %q, want %q", c.text, got, c.want)
		}
	}
}

func TestParseLog(t *testing.T) {
	got := parseLog("2026-03-01T12:00:01.5Z skd-vrrpd: master on eth0 vrid 1: no advertisement from anybody for 3.609s\n" +
		"panic: oops\n\ngoroutine 1 [running]:\n2026-03-01T13:00:02+01:00 skd-vrrpd: stopped\n")
	want := []entry{{at(1.5), "master on eth0 vrid 1: no advertisement from anybody for 3.609s"}, {at(2), "stopped"}}
	if !slices.EqualFunc(got, want, func(a, b entry) bool { return a.at.Equal(b.at) && a.text == b.text }) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestTimelineIsInOrder(t *testing.T) {
	var out bytes.Buffer
	s := screen{out: &out, began: zero}
	s.event(at(2), "lb1", "second")
	s.note("theory", "about the second")
	s.event(at(1), "lb2", "first")
	s.flush()
	const want = "" +
		"   1.000  lb2     first\n" +
		"   2.000  lb1     second\n" +
		"          theory  about the second\n"
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
}

// report has lb1 from second 1 to 10 with an outage of 2 s, then lb2 until 20; the first answer of lb2 crossed one of lb1.
var report = lab.Report{
	Start: zero, End: at(20),
	Turns: []lab.Turn{
		{Name: "lb1", From: at(1), To: at(10)}, {Name: "lb2", From: at(10), To: at(10.001)},
		{Name: "lb1", From: at(10.002), To: at(10.003)}, {Name: "lb2", From: at(10.004), To: at(20)},
	},
	Gaps: []lab.Gap{{From: zero, To: at(1)}, {From: at(4), To: at(6)}, {From: at(15), To: at(15.01)}},
}

func TestInTurn(t *testing.T) {
	if got := inTurn(report.Turns); !slices.Equal(got, []string{"lb1", "lb2"}) {
		t.Errorf("got %v", got)
	}
}

func TestChart(t *testing.T) {
	got := chart(report, zero, []mark{{at(0), "1"}, {at(4.1), "2"}, {at(19.9), "3"}}, 20)
	want := []row{
		{"step", "1   2              3"},
		{"lb1", "·███··████··········"},
		{"lb2", "··········██████████"},
		{"second", "0    5    10   15"},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%q, want\n%q", got, want)
	}
}

func TestSummary(t *testing.T) {
	lines := []line{
		{1, "election", "lb1 in 3611.3 ms (+ 250)", "lb1 in 3612.4 ms", true},
		{1, "prompts", "lb1 master, lb2 backup", "[master] root@lb1>  [backup] root@lb2>", true},
		{2, "outage, TCP service", "3609.4 ms (+ 250)", strings.Repeat("very long ", 20), false},
		{0, "who answered", "lb1, lb2", "lb1, lb2", true},
	}
	var out bytes.Buffer
	s := screen{out: &out, began: zero}
	if s.summary(lines) {
		t.Error("the summary held although a line did not")
	}
	text := out.String()
	if !strings.Contains(text, "NOT OK") || !strings.Contains(text, "1 of 4 lines did not hold") {
		t.Errorf("no word of what did not hold:\n%s", text)
	}
	for l := range strings.Lines(text) {
		if utf8.RuneCountInString(strings.TrimRight(l, "\n")) > width {
			t.Errorf("longer than %d columns: %s", width, l)
		}
	}
	if !s.summary(slices.DeleteFunc(lines, func(l line) bool { return !l.ok })) {
		t.Error("the summary did not hold although every line did")
	}
}

func TestParseReplicatorLog(t *testing.T) {
	got := parseReplicatorLog("2026-03-01T12:00:01.500Z info replicated 1 change: global.conf content took=8.1ms\n" +
		"something else\n2026-03-01T13:00:02.000+01:00 warning lost: a reason\n")
	want := []entry{{at(1.5), "replicated 1 change: global.conf content took=8.1ms"}, {at(2), "lost: a reason"}}
	if !slices.EqualFunc(got, want, func(a, b entry) bool { return a.at.Equal(b.at) && a.text == b.text }) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestOutputBreaksBehindTheNames(t *testing.T) {
	var out bytes.Buffer
	s := screen{out: &out}
	s.output("state     in step\npeer      "+strings.Repeat("word ", 20)+"\n          more\n", 10)
	want := "  state     in step\n  peer      " + strings.Repeat("word ", 16) + "word\n            word word word\n            more\n"
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
	for l := range strings.Lines(out.String()) {
		if len(l)-1 > width {
			t.Errorf("longer than %d columns: %s", width, l)
		}
	}
}
