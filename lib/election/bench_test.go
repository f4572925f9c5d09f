package election

import (
	"testing"
	"time"
)

// round is the life of a pair between two adverts: the master sends one, the
// backup hears it.
type round struct {
	master, backup *Machine
	now            time.Duration
}

func newRound() *round {
	r := &round{master: New(upper), backup: New(signed)}
	r.master.Handle(0, ev(Resume))
	r.backup.Handle(0, ev(Start))
	return r
}

func (r *round) step() {
	r.now += time.Second
	r.master.Handle(r.now, ev(Tick))
	r.backup.Handle(r.now, advert(peer, 100))
}

func BenchmarkStep(b *testing.B) {
	b.ReportAllocs()
	r := newRound()
	for b.Loop() {
		r.step()
	}
	if r.master.State() != Master || r.backup.State() != Backup {
		b.Fatal("that was not the steady state")
	}
}

func TestStepDoesNotAllocate(t *testing.T) {
	r := newRound()
	if n := testing.AllocsPerRun(1000, r.step); n != 0 {
		t.Errorf("%v allocations a round of master and backup", n)
	}
	// A machine that is thrown back and forth does not allocate either: this is
	// what somebody without the password may do to an unsigned one.
	m, now := New(plain), time.Duration(0)
	m.Handle(now, ev(Start))
	if n := testing.AllocsPerRun(1000, func() {
		for _, on := range []Event{advert(peer, 0), ev(Tick), advert(peer, 1), slowAdvert(peer, 200), advert(self, 1), ev(Tick)} {
			now += 10 * time.Second
			m.Handle(now, on)
		}
	}); n != 0 {
		t.Errorf("%v allocations a promotion and demotion", n)
	}
}
