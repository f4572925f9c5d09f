package announce

import "time"

// offsets from the start at which a master announces: again and again while switches learn and a rival may still be talking.
var offsets = [...]time.Duration{0, 1 * time.Second, 2 * time.Second, 3 * time.Second, 5 * time.Second}

// Schedule says when to announce: at 0, 1, 2, 3 and 5 s, then every Refresh. It has no clock: times are durations since whatever
// the caller counts from.
type Schedule struct {
	Refresh time.Duration // 0 = never after 5 s
	start   time.Duration
	sent    int
}

// Start begins anew. The first announcement is due now.
func (s *Schedule) Start(now time.Duration) { s.start, s.sent = now, 0 }

// Next is told that the announcement that was due has been sent, and says when the next one is, and false if there is none.
func (s *Schedule) Next() (at time.Duration, more bool) {
	s.sent++
	if s.sent < len(offsets) {
		return s.start + offsets[s.sent], true
	}
	refreshes := time.Duration(s.sent - len(offsets) + 1)
	return s.start + offsets[len(offsets)-1] + refreshes*s.Refresh, s.Refresh > 0
}
