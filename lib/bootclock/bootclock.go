// Package bootclock reads the clock that the election lives by: CLOCK_BOOTTIME.
// It never steps, and it goes on while the machine sleeps, so that a suspended
// node knows how long it was away, and a restarted daemon how long it was dead.
package bootclock

import (
	"time"

	"golang.org/x/sys/unix"
)

// Now is the time since the machine booted, suspensions included.
func Now() time.Duration { return read(unix.CLOCK_BOOTTIME) }

// Age is how long ago the kernel took a CLOCK_REALTIME time stamp. A step of
// the wall clock in between falsifies it; the caller bounds it.
func Age(stamp unix.Timespec) time.Duration {
	return read(unix.CLOCK_REALTIME) - time.Duration(stamp.Nano())
}

func read(clock int32) time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(clock, &ts); err != nil {
		panic("clock_gettime: " + err.Error()) // both clocks exist on every Linux that Go runs on
	}
	return time.Duration(ts.Nano())
}
