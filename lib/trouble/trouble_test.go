package trouble

import (
	"bytes"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
)

func TestEachConditionIsSaidOnce(t *testing.T) {
	var log bytes.Buffer
	l := New(slog.New(slog.NewTextHandler(&log, nil)))
	said := func(words string) int { return strings.Count(log.String(), words) }
	for range 3 {
		l.Check("disk", "no space: ", errors.New("full"))
		l.Advise("peer", "the peer is away", "switch it on")
	}
	if said("no space: full") != 1 || said("the peer is away; switch it on") != 1 {
		t.Error(log.String())
	}
	if got := l.Words(); !slices.Equal(got, []string{"no space: full", "the peer is away"}) {
		t.Errorf("%q", got)
	}
	if got := l.Items()[1]; got != (Item{"the peer is away", "switch it on"}) {
		t.Errorf("%+v", got)
	}
	l.Check("disk", "no space: ", errors.New("still full")) // other words are news
	l.Check("disk", "no space: ", nil)
	l.Clear("disk")
	if said("still full") != 2 || said("over: no space: still full") != 1 {
		t.Error(log.String())
	}
	l.Show("seen", "said elsewhere")
	if said("said elsewhere") != 0 || len(l.Items()) != 2 {
		t.Error(log.String())
	}
}
