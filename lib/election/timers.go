package election

import "time"

// SkewTime is how much longer a backup of this priority waits than one of
// priority 256 would, for the interval of the master it listens to
// (RFC 9568 section 6.1). It is computed in nanoseconds: in centiseconds every
// skew of a 10 ms interval is 0, and all backups promote themselves together.
func SkewTime(priority uint8, interval time.Duration) time.Duration {
	return time.Duration(256-int(priority)) * interval / 256
}

// DownInterval is how long a backup hears nothing before it takes the master
// for dead: Active_Down_Interval of RFC 9568 section 6.1, with the RFC's factor
// 3 as deadRatio.
func DownInterval(priority uint8, interval time.Duration, deadRatio int) time.Duration {
	return time.Duration(deadRatio)*interval + SkewTime(priority, interval)
}

// Hesitation is how many down intervals a hesitant node waits before its first
// promotion. Two nodes that were never in a cluster start like this, so that the
// one that is not hesitant rules first.
const Hesitation = 3

const (
	handOverLimit = 3 * time.Second
	stopLimit     = time.Second

	// PreemptHold is how long a node that handed over does not preempt.
	PreemptHold = 30 * time.Second

	// goodbyeRepeat is the pause between the goodbyes of a master that is leaving,
	// where the peer takes over at once. Elsewhere it is an interval: each goodbye
	// restarts the skew timer of a plain RFC 9568 backup, which is shorter.
	goodbyeRepeat = 250 * time.Millisecond

	// reaction is what a successor may need beside its skew time.
	reaction = 200 * time.Millisecond

	// announceApart keeps a rival that repeats itself from turning every one of
	// its adverts into a burst of ours.
	announceApart = time.Second

	// answersAtMost bounds the adverts that answer others within one interval,
	// so that a flood of adverts is not answered with a flood.
	answersAtMost = 16
)

// leaveLimits are how long a master keeps the address for its successor: until it
// stays master, if it hands over, and until it leaves all the same, if it stops.
// A foreign program that hears a goodbye waits its skew time first, which is less
// than the interval. A ucarp runs its up script before it advertises.
func leaveLimits(speaks Dialect, foreign bool, interval time.Duration) (handOver, stop time.Duration) {
	switch {
	case speaks != VRRP:
		return ucarpSilence, ucarpSilence / 2
	case foreign:
		return max(handOverLimit, interval+reaction), max(stopLimit, interval+reaction)
	}
	return handOverLimit, stopLimit
}

// tieBreak is half a step of priority. The node with the lower address adds it
// to its first down interval, so that two equal nodes that start together (or
// get their link back together) do not promote themselves at the same instant.
func tieBreak(interval time.Duration) time.Duration { return interval / 512 }
