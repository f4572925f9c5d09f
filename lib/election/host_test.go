package election

import (
	"fmt"
	"time"
)

// situation is a state with the sub-states of a master told apart.
type situation string

const (
	inInit        situation = "init"
	inBackup      situation = "backup"
	inMaster      situation = "master"
	inListening   situation = "listening"
	inHandingOver situation = "handing over"
	inStopping    situation = "stopping"
	inFault       situation = "fault"
)

var situations = []situation{inInit, inBackup, inMaster, inListening, inHandingOver, inStopping, inFault}

func situationOf(m *Machine) situation {
	switch {
	case m.Listening():
		return inListening
	case m.Leaving() && m.leaving == stopping:
		return inStopping
	case m.Leaving():
		return inHandingOver
	}
	return situation(m.State().String())
}

// host carries out the effects of a machine the way a node would, and finds
// fault with what no node should ever be told to do.
type host struct {
	m    *Machine
	next time.Duration // what Handle returned last

	guard      bool
	addresses  bool
	announcing bool
	hook       EffectKind // the one that was run last
	sent       time.Duration
}

func newHost(cfg Config) *host { return &host{m: New(cfg), next: Never, guard: true} }

// restart is a crash: what the kernel holds stays, what the process knew is gone.
func (h *host) restart() {
	h.m, h.next, h.announcing = New(h.m.cfg), Never, false
}

// speaks tells whether the node answers for the virtual addresses.
func (h *host) speaks() bool { return h.m.State() == Master && !h.m.Listening() }

func (h *host) handle(now time.Duration, ev Event) ([]Effect, error) {
	was, before := h.m.State(), h.next
	effects, next := h.m.Handle(now, ev)
	h.next = next
	if err := h.carryOut(now, was, effects); err != nil {
		return effects, fmt.Errorf("%v at %v, %v: %w", situationOf(h.m), now, ev.Kind, err)
	}
	switch h.m.State() {
	case Init, Fault:
		if next != Never {
			return effects, fmt.Errorf("%v waits for %v", h.m.State(), next)
		}
	case Backup, Master:
		if next == Never {
			return effects, fmt.Errorf("%v after %v waits for no time", situationOf(h.m), ev.Kind)
		}
	}
	// A deadline in the past is one that was due before the event and still is;
	// a tick always moves on, or the loop around the machine would spin.
	if next <= now && (ev.Kind == Tick || next != before) {
		return effects, fmt.Errorf("%v at %v, %v: next deadline %v", situationOf(h.m), now, ev.Kind, next)
	}
	return effects, nil
}

func (h *host) carryOut(now time.Duration, was State, effects []Effect) error {
	is, fresh := h.m.State(), was == Init
	entered := false
	for i, e := range effects {
		fault := func(why string) error { return fmt.Errorf("effect %d, %v: %s", i, show(e), why) }
		switch e.Kind {
		case SendAdvert:
			switch {
			case e.Priority == 0 && was != Master && !(i > 0 && effects[i-1].Reason == BridgeEnded):
				return fault("goodbye of a node that was not master")
			case e.Priority == h.m.cfg.Priority && !h.m.cfg.Signed && was == Master && h.m.state == Backup && effects[i+1] == goodbye:
				// the advert that a keepalived beats
			case e.Priority != 0 && (e.Priority != h.m.cfg.Priority || situationOf(h.m) != inMaster):
				return fault("adverts belong to masters that stay")
			}
			h.sent = now
		case RaiseGuard:
			if h.guard && !fresh {
				return fault("it stands already")
			}
			h.guard = true
		case LowerGuard:
			if !h.guard && !fresh {
				return fault("it is down already")
			}
			h.guard = false
		case AddAddresses:
			if h.guard {
				return fault("behind the guard")
			}
			h.addresses = true
		case RemoveAddresses:
			if !h.guard {
				return fault("without the guard")
			}
			h.addresses = false
		case Announce:
			if h.guard || !h.addresses {
				return fault("nothing to announce")
			}
			h.announcing = true
		case StopAnnouncing:
			h.announcing = false
		case AnnounceSelf:
			if is != Backup {
				return fault("not a backup")
			}
		case Enter:
			if entered || e.State == was || e.State != is || e.Reason == NoReason {
				return fault(fmt.Sprintf("from %v, now %v", was, is))
			}
			entered = true
		case RunStartHook:
			if is != Master || h.hook == RunStartHook && !fresh {
				return fault("started already")
			}
			h.hook = RunStartHook
		case RunStopHook:
			if is == Master {
				return fault("of a master")
			}
			h.hook = RunStopHook
		case Note:
			if e.Reason == NoReason {
				return fault("says nothing")
			}
		}
	}
	switch {
	case was != is && !entered:
		return fmt.Errorf("%v became %v without a word", was, is)
	case fresh && is == Init:
		return nil
	case h.guard == h.speaks():
		return fmt.Errorf("guard standing: %v", h.guard)
	case h.addresses != (is == Master):
		return fmt.Errorf("addresses up: %v", h.addresses)
	case h.announcing != (h.speaks() && !h.m.Leaving()):
		return fmt.Errorf("announcing: %v", h.announcing)
	case (h.hook == RunStartHook) != (is == Master):
		return fmt.Errorf("last hook: %v", h.hook)
	}
	return nil
}

func show(e Effect) string {
	s := e.Kind.String()
	switch e.Kind {
	case SendAdvert:
		s += fmt.Sprintf(" %d", e.Priority)
	case Enter, Note:
		if e.Kind == Enter {
			s += " " + e.State.String()
		}
		s += fmt.Sprintf(" reason %d", e.Reason)
		if e.From.IsValid() {
			s += " from " + e.From.String()
		}
		if e.After != 0 {
			s += " after " + e.After.String()
		}
		if e.Interval != 0 {
			s += " interval " + e.Interval.String()
		}
	}
	return s
}
