package auth

import (
	"iter"
	"net/netip"
	"time"
)

// Sequence is the sequence field of the trailer: from the top 32 bits of
// seconds since 1970, 16 bits of binary fraction, 16 bits of counter. It is
// compared as one number that wraps (RFC 1982), and has to grow; it does not
// have to be right.
type Sequence uint64

// After tells whether s is newer than other. Of two that are exactly half the
// number space apart neither is.
func (s Sequence) After(other Sequence) bool { return int64(s-other) > 0 }

// at is the sequence of a moment, counter 0.
func at(t time.Time) Sequence {
	fraction := uint64(t.Nanosecond()) << 16 / uint64(time.Second)
	return Sequence(uint64(uint32(t.Unix()))<<32 | fraction<<16)
}

// MaxLead is how far a stored floor may be ahead of the clock. It bounds how
// long a node that lost its floor stays unheard.
const MaxLead = time.Minute

// maxRate is more packets a second than a router ever signs: 100 at the
// shortest interval, and an answer to each that it hears.
const maxRate = 4096

// SequenceSource numbers what one sender signs. The numbers follow the wall
// clock as it was at the start of the process, plus the time that has passed
// since, so a step of the clock changes nothing; and each is above the one
// before and above the floor that an earlier process stored, so they grow
// across restarts too. After a start with a clock behind the floor they creep
// up by one a packet until the clock has passed it.
//
// A SequenceSource is not safe for concurrent use.
type SequenceSource struct {
	start time.Time
	last  Sequence
}

// NewSequence starts at the wall clock time startWall with the stored floor, or
// 0 if there is none. Before the first packet store a new floor.
func NewSequence(startWall time.Time, floor Sequence) *SequenceSource {
	start := startWall.Round(0)
	if floor == 0 {
		// Not a number to compare with: from 2038 on the clock is more than half
		// the number space after 0, and would count as older.
		floor = at(start) - 1
	}
	return &SequenceSource{start, floor}
}

// Next is the sequence of the next packet, at a time since the start that the
// monotonic clock tells.
func (s *SequenceSource) Next(sinceStart time.Duration) Sequence {
	s.last++
	if now := at(s.start.Add(sinceStart)); now.After(s.last) {
		s.last = now
	}
	return s.last
}

// Floor is the value to store for the next process: nothing that Next returns
// until lead has passed, at most MaxLead, is above it. Store another before
// that.
//
// It is never further ahead of a right clock than MaxLead, rounded up to the
// next 1/65536 s, however often the process is restarted: what is already ahead
// is not given the lead once more, only room for the packets that may be sent
// meanwhile. That is 57 µs for a minute, and no restart is as quick.
func (s *SequenceSource) Floor(sinceStart, lead time.Duration) Sequence {
	lead = min(max(lead, 0), MaxLead)
	clock := at(s.start.Add(sinceStart+lead)) | 0xffff // all packets of that tick
	creep := s.last + Sequence(maxRate*lead/time.Second) + 1
	if creep.After(clock) {
		return creep
	}
	return clock
}

// maxSenders bounds Marks. A pair of nodes needs one or two.
const maxSenders = 4

// Marks remembers the newest verified sequence of each sender, of up to four. A
// fifth one takes the place of the one with the oldest sequence, and from then on
// nobody who is new counts below that: so a sender with ever new addresses is heard,
// and nothing that was said before is heard again.
// The zero value is ready to use. Marks is not safe for concurrent use.
type Marks struct {
	senders [maxSenders]mark
	floor   mark // of who is new, if a sender was given up; it has no address
}

type mark struct {
	src  netip.Addr
	seq  Sequence
	used bool
}

// Check returns nil if seq is newer than everything seen from src, and ErrReplay if
// it is not, or may not be.
func (m *Marks) Check(src netip.Addr, seq Sequence) error {
	if mk := m.find(src); mk.used && !seq.After(mk.seq) || mk.src != sender(src) && m.floor.used && !seq.After(m.floor.seq) {
		return ErrReplay
	}
	return nil
}

// Move raises the mark of src to seq. It is only for a sequence that Verify
// returned, or that an earlier process stored: else anybody could make a sender
// unheard. It never lowers a mark.
func (m *Marks) Move(src netip.Addr, seq Sequence) {
	mk := m.find(src)
	if mk.used && !seq.After(mk.seq) {
		return
	}
	if mk.used && mk.src != sender(src) && (!m.floor.used || mk.seq.After(m.floor.seq)) {
		m.floor = mark{seq: mk.seq, used: true}
	}
	*mk = mark{sender(src), seq, true}
}

// All yields the marks, to be stored and given to Move by the next process. The one
// without an address is that of whoever is new.
func (m *Marks) All() iter.Seq2[netip.Addr, Sequence] {
	return func(yield func(netip.Addr, Sequence) bool) {
		for _, mk := range append(m.senders[:], m.floor) {
			if mk.used && !yield(mk.src, mk.seq) {
				return
			}
		}
	}
}

// find returns the mark of src, else a free one, else the oldest.
func (m *Marks) find(src netip.Addr) *mark {
	if !src.IsValid() {
		return &m.floor
	}
	src = sender(src)
	oldest := &m.senders[0]
	for i := range m.senders { // Those in use come first.
		mk := &m.senders[i]
		if !mk.used || mk.src == src {
			return mk
		}
		if oldest.seq.After(mk.seq) {
			oldest = mk
		}
	}
	return oldest
}

// sender brings the ways to write one address together: a second spelling would
// be a second mark.
func sender(src netip.Addr) netip.Addr { return src.Unmap().WithZone("") }
