package vrouter

import (
	"maps"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/auth"
)

// Record is what a restarted daemon needs to go on where the last one ended. It
// lies in the run directory, which a reboot empties, and is written with each
// advert that is sent or accepted.
type Record struct {
	Identity  string                       `json:"identity"` // of the virtual router on this node, see Config.Identity
	BootID    string                       `json:"boot_id"`
	Master    bool                         `json:"master"`               // and neither leaving nor in doubt
	Started   bool                         `json:"started"`              // the start hook has ended since the promotion
	Sent      time.Duration                `json:"sent"`                 // boot clock of the last advert
	Interval  time.Duration                `json:"interval"`             // that the adverts promised
	Since     time.Time                    `json:"since"`                // of the state
	SinceBoot time.Duration                `json:"since_boot,omitempty"` // boot clock of it
	Reason    string                       `json:"reason"`
	Sequence  auth.Sequence                `json:"sequence"` // the last one used
	Marks     map[netip.Addr]auth.Sequence `json:"marks"`
	Own       sources                      `json:"own,omitempty"` // the last one used, by source
}

// Resumes tells whether the daemon that left this record died so little time
// ago that the peer has not noticed: two of the intervals that it advertised.
func (r Record) Resumes(identity, bootID string, now time.Duration) bool {
	return r.Master && r.Identity == identity && r.BootID == bootID && now >= r.Sent && now-r.Sent <= 2*r.Interval
}

// Lasting is what must survive a reboot: the sequence below which this node
// never signs again, what it has seen of others, and which dialect the peer speaks.
type Lasting struct {
	Floor auth.Sequence                `json:"floor"`
	Marks map[netip.Addr]auth.Sequence `json:"marks"`
	Own   sources                      `json:"own,omitempty"` // a floor, by source
	// Bridge stays as it is while the dialect is not both.
	Bridge Bridge `json:"bridge,omitzero"`
}

// sources are the addresses that this node's own adverts came from, with a sequence
// that none of them is above: both nodes sign with one key, so that what a node said
// from an address that it has no more could be sent to it as its peer's.
type sources map[netip.Addr]auth.Sequence

// sourcesKept bounds them; a link-local address changes with the network card.
const sourcesKept = 16

// with returns the sources with one more, if it has signed anything.
func (s sources) with(src netip.Addr, seq auth.Sequence) sources {
	if seq == 0 || !src.IsValid() {
		return s
	}
	all := sources{}
	maps.Copy(all, s)
	if was, ok := all[src]; !ok || seq.After(was) {
		all[src] = seq
	}
	if len(all) > sourcesKept {
		oldest := src
		for a, seq := range all {
			if all[oldest].After(seq) {
				oldest = a
			}
		}
		delete(all, oldest)
	}
	return all
}

// said tells whether an advert from there can be one of these.
func (s sources) said(src netip.Addr, seq auth.Sequence) bool {
	last, ok := s[src]
	return ok && !seq.After(last)
}

// sources are those before, and the ones of now up to this sequence.
func (r *Router) sources(last auth.Sequence) sources {
	all := r.own
	for _, l := range r.legs {
		if r.signed() {
			all = all.with(l.source, last)
		}
	}
	return all
}

// BootID identifies this boot of the machine.
func BootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
