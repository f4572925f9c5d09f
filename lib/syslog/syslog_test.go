package syslog

import (
	"bytes"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"
)

type buffer struct {
	mu   sync.Mutex
	b    bytes.Buffer
	hold chan struct{}
}

func (b *buffer) Write(p []byte) (int, error) {
	if b.hold != nil {
		<-b.hold
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func open(w *buffer) *Sink {
	s := &Sink{tag: "test", stderr: w, retry: time.Now().Add(time.Hour)}
	s.start()
	return s
}

func TestLines(t *testing.T) {
	var b buffer
	s := open(&b)
	log := s.Logger().With("vrid", 1)
	log.Info("master on eth0: no advertisement", "from", "10.0.0.1", "error", errors.New("two words"), "empty", "")
	log.Warn("a packet said \"evil\nskd-vrrpd: forged line\x1b[2J\"")
	log.Debug("not shown")
	s.Flush(10 * time.Second)
	want := []string{
		`master on eth0: no advertisement vrid=1 from=10.0.0.1 error="two words" empty=""`,
		`a packet said "evil?skd-vrrpd: forged line?[2J" vrid=1`,
	}
	got := strings.Split(strings.TrimSpace(b.String()), "\n")
	if len(got) != len(want) {
		t.Fatalf("got %q", got)
	}
	for i := range want {
		if _, text, _ := strings.Cut(got[i], " "); text != want[i] {
			t.Errorf("got  %q\nwant %q", text, want[i])
		}
	}
}

// A log that hangs costs lines, not time.
func TestAHangingLogDoesNotBlock(t *testing.T) {
	b := buffer{hold: make(chan struct{})}
	s := open(&b)
	log := s.Logger()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 10_000 {
			log.Info("line")
		}
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("logging waits for the log")
	}
	close(b.hold)
	s.Flush(5 * time.Second)
	log.Info("after")
	s.Flush(5 * time.Second)
	if !strings.Contains(b.String(), "log lines were lost") {
		t.Errorf("lost lines are not said")
	}
}
