package tree

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"
)

const ms = time.Millisecond

func TestSettler(t *testing.T) {
	type step struct {
		at      time.Duration
		do      string // "touch", "hold" or "take"
		ready   []string
		overdue []string
	}
	x := []string{"x"}
	for name, steps := range map[string][]step{
		"once": {
			{at: 0, do: "touch"}, {at: 1 * ms, do: "take"}, {at: 2 * ms, do: "take", ready: x}, {at: 9 * ms, do: "take"},
		},
		"again while it waits": {
			{at: 0, do: "touch"}, {at: 1 * ms, do: "touch"}, {at: 2 * ms, do: "take"}, {at: 3 * ms, do: "take", ready: x},
		},
		"busy doubles": {
			{at: 0, do: "touch"}, {at: 2 * ms, do: "take", ready: x},
			{at: 3 * ms, do: "touch"}, {at: 6 * ms, do: "take"}, {at: 7 * ms, do: "take", ready: x},
			{at: 10 * ms, do: "touch"}, {at: 17 * ms, do: "take"}, {at: 18 * ms, do: "take", ready: x},
		},
		"left alone it falls back": {
			{at: 0, do: "touch"}, {at: 2 * ms, do: "take", ready: x},
			{at: 3 * ms, do: "touch"}, {at: 7 * ms, do: "take", ready: x},
			{at: 1008 * ms, do: "touch"}, {at: 1010 * ms, do: "take", ready: x},
		},
		"held": {
			{at: 0, do: "touch"}, {at: 2 * ms, do: "take", ready: x},
			{at: 2 * ms, do: "hold"}, {at: 11 * ms, do: "take"}, {at: 12 * ms, do: "take", ready: x},
			{at: 12 * ms, do: "hold"}, {at: 31 * ms, do: "take"}, {at: 32 * ms, do: "take", ready: x},
			{at: 32 * ms, do: "hold"}, {at: 72 * ms, do: "take", ready: x},
			{at: 72 * ms, do: "hold"}, {at: 152 * ms, do: "take", ready: x},
			{at: 152 * ms, do: "hold"}, {at: 251 * ms, do: "take"}, {at: 252 * ms, do: "take", ready: x},
			{at: 252 * ms, do: "hold"}, {at: 352 * ms, do: "take", ready: x},
		},
		"touched while held": {
			{at: 0, do: "touch"}, {at: 2 * ms, do: "take", ready: x}, {at: 2 * ms, do: "hold"},
			{at: 3 * ms, do: "touch"}, {at: 11 * ms, do: "touch"}, {at: 12 * ms, do: "take"}, {at: 13 * ms, do: "take", ready: x},
		},
		"touched before it is held": {
			{at: 0, do: "touch"}, {at: 2 * ms, do: "take", ready: x}, {at: 3 * ms, do: "touch"},
			{at: 4 * ms, do: "hold"}, {at: 13 * ms, do: "take"}, {at: 14 * ms, do: "take", ready: x},
		},
		"held without being touched": {
			{at: 0, do: "hold"}, {at: 9 * ms, do: "take"}, {at: 10 * ms, do: "take", ready: x},
		},
		"taken late but quiet": {
			{at: 0, do: "touch"}, {at: time.Minute, do: "take", ready: x},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var s Settler
			for i, step := range steps {
				switch step.do {
				case "touch":
					s.Touch(step.at, "x")
				case "hold":
					s.Hold(step.at, "x")
				case "take":
					ready, overdue := s.Take(step.at)
					if !slices.Equal(ready, step.ready) || !slices.Equal(overdue, step.overdue) {
						t.Fatalf("step %d: ready %q, overdue %q", i, ready, overdue)
					}
				}
			}
			if _, ok := s.Next(); ok || s.Len() != 0 {
				t.Errorf("%d are left", s.Len())
			}
		})
	}
}

func TestSettlerQuietGrowsUpToLongest(t *testing.T) {
	var s Settler
	now := time.Duration(0)
	var waits []time.Duration
	for range 9 {
		s.Touch(now, "x")
		at, _ := s.Next()
		waits = append(waits, at-now)
		now = at
		s.Take(now)
	}
	want := []time.Duration{2 * ms, 4 * ms, 8 * ms, 16 * ms, 32 * ms, 64 * ms, 128 * ms, 200 * ms, 200 * ms}
	if !slices.Equal(waits, want) {
		t.Errorf("waits %v, want %v", waits, want)
	}
}

func TestSettlerLimit(t *testing.T) {
	// Noisy all the time, but never found open.
	var s Settler
	var now time.Duration
	for ; now < 500*ms; now += ms {
		s.Touch(now, "x")
		if ready, overdue := s.Take(now); ready != nil || overdue != nil {
			t.Fatalf("taken at %v: %q %q", now, ready, overdue)
		}
	}
	if ready, overdue := s.Take(now); overdue != nil || len(ready) != 1 {
		t.Fatalf("ready %q, overdue %q", ready, overdue)
	}

	// Open all the time.
	s = Settler{}
	s.Touch(0, "x")
	for {
		now, _ = s.Next()
		ready, overdue := s.Take(now)
		if overdue != nil {
			break
		}
		if len(ready) != 1 || now > 5*time.Second {
			t.Fatalf("at %v: ready %q", now, ready)
		}
		s.Hold(now, "x")
	}
	if now != 5*time.Second {
		t.Errorf("overdue at %v", now)
	}
	// Found open once more, it gets its time anew: this must not become a busy loop.
	s.Hold(now, "x")
	if at, _ := s.Next(); at != now+10*ms {
		t.Errorf("held at %v, next at %v", now, at)
	}
}

// TestSettlerLosesNothing drives random sequences and checks what Settler promises.
func TestSettlerLosesNothing(t *testing.T) {
	for seed := range uint64(60) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		s := Settler{Quiet: 2 * ms, Longest: 50 * ms, Noise: 100 * ms, Limit: 300 * ms}
		type state struct{ first, last time.Duration }
		waits := make(map[string]state)
		take := func(now time.Duration) {
			ready, overdue := s.Take(now)
			for i, path := range append(slices.Clone(ready), overdue...) {
				st, ok := waits[path]
				late := i >= len(ready)
				switch {
				case !ok:
					t.Fatalf("seed %d: %s was taken without being touched", seed, path)
				case !late && now < st.last+s.Quiet && now < st.first+s.Noise:
					t.Fatalf("seed %d: %s was taken %v after its last touch", seed, path, now-st.last)
				case late && now < st.first+s.Limit:
					t.Fatalf("seed %d: %s is overdue after %v", seed, path, now-st.first)
				}
				delete(waits, path)
				if !late && rnd.IntN(3) == 0 { // found open
					s.Hold(now, path)
					waits[path] = state{st.first, now}
				}
			}
		}
		var now time.Duration
		advance := func(to time.Duration) { // as the engine does, never late
			for {
				at, ok := s.Next()
				if !ok || at > to {
					break
				}
				if at < now {
					t.Fatalf("seed %d: Next is %v ago", seed, now-at)
				}
				now = at
				take(now)
			}
			for path, st := range waits {
				if to > st.first+s.Limit {
					t.Fatalf("seed %d: %s waits for %v", seed, path, to-st.first)
				}
			}
			now = to
		}
		for range 3000 {
			advance(now + time.Duration(rnd.IntN(3000))*time.Microsecond)
			path := strconv.Itoa(rnd.IntN(1 + rnd.IntN(40)))
			s.Touch(now, path)
			st, ok := waits[path]
			if !ok {
				st.first = now
			}
			st.last = now
			waits[path] = st
			if s.Len() != len(waits) {
				t.Fatalf("seed %d: Len is %d, want %d", seed, s.Len(), len(waits))
			}
		}
		for len(waits) > 0 {
			at, ok := s.Next()
			if !ok {
				t.Fatalf("seed %d: lost %v", seed, waits)
			}
			advance(max(at, now))
		}
	}
}

func TestSettlerMemoryIsBounded(t *testing.T) {
	var s Settler
	for i := range 20_000 {
		s.Touch(0, strconv.Itoa(i))
	}
	ready, _ := s.Take(2 * ms)
	if len(ready) != 20_000 || s.Len() != 0 {
		t.Fatalf("%d are ready, %d wait", len(ready), s.Len())
	}
	if ready[0] != "0" || ready[19_999] != "19999" {
		t.Errorf("not in the order of the touches")
	}
	if len(s.recent) > memory || s.left.Len() != len(s.recent) {
		t.Errorf("%d and %d are remembered", len(s.recent), s.left.Len())
	}
	s.Touch(time.Hour, "x")
	s.Take(time.Hour + time.Second)
	if len(s.recent) != 1 {
		t.Errorf("%d are remembered after an hour", len(s.recent))
	}
}

func BenchmarkSettler(b *testing.B) {
	paths := make([]string, 20_000)
	for i := range paths {
		paths[i] = fmt.Sprintf("dir/%d", i)
	}
	for b.Loop() {
		var s Settler
		for i, path := range paths {
			s.Touch(time.Duration(i)*time.Microsecond, path)
			s.Next()
		}
		s.Take(time.Second)
	}
}

// TestSettlerInALoop drives it by a timer as the engine does, in virtual time.
func TestSettlerInALoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		changes := make(chan string)
		type sent struct {
			path string
			at   time.Duration
			late bool
		}
		var got []sent
		done := make(chan struct{})
		go func() {
			defer close(done)
			var s Settler
			timer := time.NewTimer(time.Hour)
			for {
				if at, ok := s.Next(); ok {
					timer.Reset(at - time.Since(start))
				} else {
					timer.Stop()
				}
				select {
				case path, ok := <-changes:
					if !ok {
						return
					}
					s.Touch(time.Since(start), path)
				case <-timer.C:
					now := time.Since(start)
					ready, overdue := s.Take(now)
					if ready == nil && overdue == nil {
						t.Errorf("woken at %v for nothing", now)
					}
					for _, path := range ready {
						if path == "open" && now < 100*ms {
							s.Hold(now, path)
							continue
						}
						got = append(got, sent{path, now, false})
					}
					for _, path := range overdue {
						got = append(got, sent{path, now, true})
					}
				}
			}
		}()
		changes <- "a"
		changes <- "open"
		time.Sleep(ms)
		changes <- "b"
		changes <- "a"
		time.Sleep(200 * ms)
		changes <- "b"
		time.Sleep(200 * ms)
		for range 700 { // 7 s of writes at 10 ms; each is quiet for less than the noise lasts
			changes <- "log"
			time.Sleep(10 * ms)
		}
		time.Sleep(time.Second)
		close(changes)
		<-done

		want := []sent{{"b", 3 * ms, false}, {"a", 3 * ms, false}, {"open", 152 * ms, false}, {"b", 205 * ms, false}}
		slices.SortStableFunc(got[:2], func(a, b sent) int { return int(b.path[0]) - int(a.path[0]) })
		if !slices.Equal(got[:4], want) {
			t.Errorf("sent %v, want %v", got[:4], want)
		}
		logs := got[4:]
		if len(logs) < 10 || len(logs) > 20 {
			t.Errorf("the busy file was sent %d times, want about two a second: %v", len(logs), logs)
		}
		if last := logs[len(logs)-1]; last.late || last.at < 7*time.Second {
			t.Errorf("the end of the busy file was not sent: %v", logs)
		}
	})
}

func TestPathsNamesSomeOfWhatWaits(t *testing.T) {
	var s Settler
	for _, p := range []string{"a", "b", "c"} {
		s.Touch(0, p)
	}
	if some := s.Paths(2); len(some) != 2 || some[0] == some[1] {
		t.Errorf("%q", some)
	}
	if all := s.Paths(9); len(all) != 3 {
		t.Errorf("%q", all)
	}
	if !s.Waits("a") || s.Waits("d") {
		t.Error("who waits?")
	}
	s.Take(time.Second)
	if none := s.Paths(9); len(none) != 0 {
		t.Errorf("%q", none)
	}
}
