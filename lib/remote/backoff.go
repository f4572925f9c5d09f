package remote

import "time"

// Backoff is how long to wait before trying again: Min at first, then twice as
// long each time, up to Max. Not for concurrent use.
type Backoff struct {
	Min, Max time.Duration // Min above 0

	last time.Duration // without the jitter; 0: none yet
}

// Next returns the next wait, made up to 20 % shorter or longer by random, which
// is in [0,1).
func (b *Backoff) Next(random float64) time.Duration {
	switch {
	case b.last == 0:
		b.last = min(b.Min, b.Max)
	case b.last < b.Max/2:
		b.last *= 2
	default:
		b.last = b.Max
	}
	return time.Duration(float64(b.last) * (0.8 + 0.4*random))
}

// Reset makes the next wait the first again.
func (b *Backoff) Reset() { b.last = 0 }
