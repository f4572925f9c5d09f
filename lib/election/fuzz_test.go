package election

import (
	"testing"
	"time"
)

// FuzzMachine feeds any events at any times. The first bytes are the
// configuration, then four bytes are an event: what, from whom, and when, as a
// mantissa and an exponent or as a distance to the deadline.
func FuzzMachine(f *testing.F) {
	const (
		start, resume, tick, heard, unread, lost, noCarrier, back, over, stop = 0, 1, 2, 3, 4, 5, 6, 7, 8, 9
		carp, upgraded                                                        = 10, 11
		due                                                                   = 0xf0 // at the deadline
	)
	head := func(priority, flags byte) []byte { return []byte{priority, 100, 3, flags} }
	seed := func(head []byte, events ...[4]byte) {
		for _, e := range events {
			head = append(head, e[:]...)
		}
		f.Add(head)
	}
	seed(head(100, 1), [4]byte{start}, [4]byte{tick, 0, 0, due}, [4]byte{tick, 0, 0, due}, [4]byte{over}, [4]byte{heard, 1, 100, 1}, [4]byte{tick, 0, 0, due})
	seed(head(100, 0), [4]byte{resume}, [4]byte{tick, 0, 255, 40}, [4]byte{heard, 1, 99, 1}, [4]byte{heard, 1, 0, 1}, [4]byte{tick, 0, 0, due})
	seed(head(200, 3), [4]byte{start}, [4]byte{unread, 1, 0, 20}, [4]byte{heard, 1, 100, 9}, [4]byte{noCarrier}, [4]byte{lost}, [4]byte{back}, [4]byte{stop})
	seed(head(255, 2), [4]byte{start}, [4]byte{heard, 3, 255, 9}, [4]byte{stop}, [4]byte{tick, 0, 0, due}, [4]byte{tick, 0, 0, due + 4})
	seed(head(100, 1), [4]byte{resume}, [4]byte{stop}, [4]byte{tick, 0, 255, 40}, [4]byte{start}, [4]byte{heard, 1, 0, 1})

	seed(head(100, 5), [4]byte{start}, [4]byte{lost}, [4]byte{back}, [4]byte{unread, 1, 0, 20}, [4]byte{heard, 1, 99, 9}, [4]byte{tick, 0, 0, due})
	// Alone with ucarp, and beside it until it is upgraded.
	seed(head(100, 1|8), [4]byte{start}, [4]byte{tick, 0, 0, due}, [4]byte{carp, 1, 0, 1}, [4]byte{over}, [4]byte{carp, 1, 1, 1}, [4]byte{carp, 1, 255, 1})
	seed(head(100, 1|16), [4]byte{start}, [4]byte{carp, 1, 1, 1}, [4]byte{stop}, [4]byte{heard, 1, 100, 1}, [4]byte{tick, 0, 0, due})
	seed(head(100, 1|16|64), [4]byte{resume}, [4]byte{carp, 1, 0, 1}, [4]byte{upgraded}, [4]byte{tick, 0, 0, due}, [4]byte{upgraded}, [4]byte{carp, 1, 0, 1})

	f.Add([]byte("\xff0\x00@10002000700\xff0020002"))                                            // one missed advert counts
	f.Add([]byte("d\x00\x01\x11\x00\x00\x00d\n\x01\x04\xf0\td\x0e\x00\x03\x01\x00\x01\x02\x03")) // ucarp's successor has longer

	f.Fuzz(func(t *testing.T, data []byte) {
		next := func() (b byte) {
			if len(data) > 0 {
				b, data = data[0], data[1:]
			}
			return b
		}
		centiseconds := func(b byte) time.Duration { return time.Duration(1+int(b)*16) * 10 * time.Millisecond } // to 40.81 s
		cfg := Config{Priority: max(1, next()), Interval: centiseconds(next()), DeadRatio: max(1, int(next())), Local: self, Peer: peer}
		flags := next()
		cfg.Signed, cfg.Preempt = flags&1 != 0, flags&2 != 0
		hesitant := flags&4 != 0
		cfg.Dialect, cfg.Ucarp = Dialect(flags>>3%3), flags&64 != 0

		h := newHost(cfg)
		var now time.Duration
		step := func(on Event) {
			t.Helper()
			effects, err := h.handle(now, on)
			if err != nil {
				t.Fatal(err)
			}
			if len(effects) > 12 {
				t.Fatalf("%d effects of one event: %s", len(effects), list(effects))
			}
		}
		for len(data) > 0 {
			what, who, mantissa, exponent := next(), next(), next(), next()
			if exponent >= due {
				if h.next != Never {
					now = max(now, h.next+time.Duration(int(exponent)-due)*cfg.Interval)
				}
			} else {
				now += time.Duration(mantissa) << (exponent % 41) // to 78 h
			}
			from := []Event{advert(self, mantissa), advert(peer, mantissa), advert(lower, mantissa), advert(higher, mantissa)}[who%4]
			from.Kind, from.Interval, from.Hesitant = EventKind(what%12), centiseconds(who), hesitant
			if from.Timing = (Timing{Base: mantissa, Skew: who &^ 3}); mantissa == 255 {
				from.Timing = Goodbye
			}
			step(from)
		}

		// Left alone with its timer, it comes to rest: a backup becomes master, a
		// departure ends, a silence ends.
		for range 2 + int(ucarpSilence/goodbyeRepeat) {
			if h.next == Never {
				break
			}
			now = max(now, h.next)
			step(ev(Tick))
		}
		if is := situationOf(h.m); is != inMaster && is != inInit && is != inFault {
			t.Fatalf("left alone it stays %v", is)
		}
	})
}
