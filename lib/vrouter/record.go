package vrouter

import (
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
	Identity string                       `json:"identity"` // of the virtual router on this node, see Config.Identity
	BootID   string                       `json:"boot_id"`
	Master   bool                         `json:"master"`   // and neither leaving nor in doubt
	Started  bool                         `json:"started"`  // the start hook has ended since the promotion
	Sent     time.Duration                `json:"sent"`     // boot clock of the last advert
	Interval time.Duration                `json:"interval"` // that the adverts promised
	Since    time.Time                    `json:"since"`    // of the state
	Reason   string                       `json:"reason"`
	Sequence auth.Sequence                `json:"sequence"` // the last one used
	Marks    map[netip.Addr]auth.Sequence `json:"marks"`
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
	// Bridge stays as it is while the dialect is not both.
	Bridge Bridge `json:"bridge,omitzero"`
}

// BootID identifies this boot of the machine.
func BootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
