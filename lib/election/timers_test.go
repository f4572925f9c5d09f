package election

import (
	"testing"
	"time"
)

// The intervals are what RFC 9568 gives in exact arithmetic, cut to whole
// nanoseconds. A machine that counts in centiseconds or whole seconds fails.
func TestIntervals(t *testing.T) {
	for _, c := range []struct {
		priority   uint8
		interval   time.Duration
		ratio      int
		skew, down time.Duration
	}{
		{1, time.Second, 3, 996_093_750, 3_996_093_750},
		{100, time.Second, 3, 609_375_000, 3_609_375_000},
		{254, time.Second, 3, 7_812_500, 3_007_812_500},
		{255, time.Second, 3, 3_906_250, 3_003_906_250},
		{1, 100 * time.Millisecond, 3, 99_609_375, 399_609_375},
		{100, 100 * time.Millisecond, 3, 60_937_500, 360_937_500},
		{254, 100 * time.Millisecond, 3, 781_250, 300_781_250},
		{255, 100 * time.Millisecond, 3, 390_625, 300_390_625},
		{1, 10 * time.Millisecond, 3, 9_960_937, 39_960_937},
		{100, 10 * time.Millisecond, 3, 6_093_750, 36_093_750},
		{254, 10 * time.Millisecond, 3, 78_125, 30_078_125},
		{255, 10 * time.Millisecond, 3, 39_062, 30_039_062},
		// The ends of the 12-bit field and of $dead_ratio.
		{1, 40950 * time.Millisecond, 3, 40_790_039_062, 163_640_039_062},
		{100, time.Second, 2, 609_375_000, 2_609_375_000},
		{100, time.Second, 10, 609_375_000, 10_609_375_000},
		{1, 40950 * time.Millisecond, 255, 40_790_039_062, 10_483_040_039_062},
	} {
		if got := SkewTime(c.priority, c.interval); got != c.skew {
			t.Errorf("SkewTime(%d, %v) = %d ns, want %d", c.priority, c.interval, got, c.skew)
		}
		if got := DownInterval(c.priority, c.interval, c.ratio); got != c.down {
			t.Errorf("DownInterval(%d, %v, %d) = %d ns, want %d", c.priority, c.interval, c.ratio, got, c.down)
		}
	}
}

// Whatever the interval, a higher priority waits less, and the tie-break of two
// equal nodes never reorders two that are not equal.
func TestPriorityDecidesWhoWaitsLess(t *testing.T) {
	for _, interval := range []time.Duration{10 * time.Millisecond, time.Second, 40950 * time.Millisecond} {
		if tieBreak(interval) <= 0 {
			t.Errorf("at %v two equal nodes promote themselves together", interval)
		}
		for p := uint8(1); p < 255; p++ {
			lower, higher := DownInterval(p, interval, 3), DownInterval(p+1, interval, 3)
			if higher+tieBreak(interval) >= lower {
				t.Errorf("at %v priority %d waits %v with the tie-break, %d only %v",
					interval, p+1, higher+tieBreak(interval), p, lower)
			}
		}
	}
}

// Nobody gives up before the slowest successor has waited, and ours and ucarp have what they need.
func TestLeaveLimits(t *testing.T) {
	for _, c := range []struct {
		speaks         Dialect
		foreign        bool
		interval       time.Duration
		handOver, stop time.Duration
	}{
		{VRRP, false, time.Second, 3 * time.Second, time.Second},
		{VRRP, false, 40950 * time.Millisecond, 3 * time.Second, time.Second},
		{VRRP, true, 10 * time.Millisecond, 3 * time.Second, time.Second},
		{VRRP, true, time.Second, 3 * time.Second, 1200 * time.Millisecond},
		{VRRP, true, 40950 * time.Millisecond, 41150 * time.Millisecond, 41150 * time.Millisecond},
		{CARP, false, time.Second, 10 * time.Second, 5 * time.Second},
		{Both, true, time.Second, 10 * time.Second, 5 * time.Second},
	} {
		if handOver, stop := leaveLimits(c.speaks, c.foreign, c.interval); handOver != c.handOver || stop != c.stop {
			t.Errorf("leaveLimits(%d, %v, %v) = %v, %v, want %v, %v", c.speaks, c.foreign, c.interval, handOver, stop, c.handOver, c.stop)
		}
	}
}
