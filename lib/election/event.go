package election

import (
	"net/netip"
	"time"
)

// State is what the node is in the election. The names are the ones that users
// see; RFC 9568 calls Master "Active".
type State uint8

const (
	Init   State = iota // not taking part: not started yet, or stopped
	Backup              // listening
	Master              // carrying the addresses
	Fault               // the interface cannot carry the election
)

var stateNames = [...]string{"init", "backup", "master", "fault"}

func (s State) String() string { return stateNames[s] }

// EventKind says what happened.
type EventKind uint8

const (
	Start        EventKind = iota // begin as backup
	Resume                        // begin as master: a restart that the peer did not notice
	Tick                          // the deadline that Handle returned has come
	Advert                        // an advertisement was heard, and verified if the router is signed
	Unverifiable                  // an advertisement was heard that no key of ours verifies, or in a dialect that we do not speak
	LinkLost                      // the interface, its link or the configured address is gone
	CarrierLost                   // only the carrier is gone, and the configuration says to ignore that
	LinkBack                      // the interface is able to carry the election (again)
	HandOver                      // the admin wants the peer to be master
	Stop                          // the service stops
	CARPAdvert                    // a verified advertisement of CARP was heard from the peer
	PeerUpgraded                  // the peer is known, by other means, to run a program like this one
)

var eventNames = [...]string{"start", "resume", "tick", "advert", "unverifiable advert",
	"link lost", "carrier lost", "link back", "hand-over", "stop", "CARP advert", "peer upgraded"}

func (k EventKind) String() string { return eventNames[k] }

// Event is one input of the Machine. From, Priority, Interval, Forgotten and Rank
// belong to Advert, From and Timing to CARPAdvert, From, Claims and perhaps Interval
// to Unverifiable, Hesitant to Start.
type Event struct {
	Kind      EventKind
	From      netip.Addr
	Priority  uint8
	Interval  time.Duration
	Timing    Timing
	Hesitant  bool // wait longer for a master, before the first promotion, than one down interval: see Hesitation
	Claims    bool // it is signed with another key, for this virtual router's own address
	Forgotten bool // it may be of before the sender was forgotten: no proof of what that speaks now
	Rank      int  // breaks ties where it is not 0: positive if the sender's address is the higher one; else From and Config.Local do
}

// EffectKind says what is to be done.
type EffectKind uint8

const (
	SendAdvert      EffectKind = iota // with Priority, in Dialect; 0 is the goodbye
	RaiseGuard                        // let no ARP leave with a virtual address as sender
	LowerGuard                        // the opposite
	AddAddresses                      // bring the virtual addresses up
	RemoveAddresses                   // take them down
	Announce                          // start the schedule of gratuitous ARP
	StopAnnouncing                    // end it
	AnnounceSelf                      // announce the node's own address once
	Enter                             // State was entered, because of Reason: status file, log
	RunStartHook                      // the slow part of a promotion
	RunStopHook                       // the slow part of a demotion
	Note                              // nothing changed, but the admin should know: Reason
)

var effectNames = [...]string{"send", "guard up", "guard down", "add addresses", "remove addresses",
	"announce", "stop announcing", "announce self", "enter", "start hook", "stop hook", "note"}

func (k EffectKind) String() string { return effectNames[k] }

// Reason says why a state was entered, or what is worth noting.
type Reason uint8

const (
	NoReason         Reason = iota
	Started                 // the service started
	Resumed                 // the daemon restarted in time and goes on as master
	MasterSilent            // no advertisement for a down interval (After)
	Invited                 // the peer said a verified goodbye
	MasterLeft              // the master said goodbye and nobody of higher priority took over
	Preempted               // the master was of lower priority and preemption is on
	HigherPriority          // a rival has a higher priority
	HigherAddress           // a rival of equal priority has the higher address
	HandedOver              // the successor was heard
	ReplacedMeantime        // a rival was heard after a stall
	LinkFailed              // the link failed
	LinkReturned            // the link came back
	Stopping                // the service stops
	AddressOwner            // priority 255 needs no election
	LowerOctets             // a rival of equal rank wins CARP's tie-break

	Held         // a starting node hears From, which it cannot verify: promotion held
	Stalled      // the process did not run for After; silent for Interval, or until it is clear who is master
	StallOver    // nobody took over during the stall
	LateTimer    // a backup did not run for After; listening once more
	NoSuccessor  // nobody took over within the HandOverLimit
	NotMaster    // a hand-over was asked of a node that is not master
	AddressCopy  // somebody advertises from our own address
	LosingRival  // somebody of lower rank believes to be master
	CarrierGone  // no carrier, ignored as configured
	IntervalSeen // the master's interval differs from ours (Interval)
	UcarpHeard   // the peer speaks CARP, so CARP is spoken beside VRRPv3
	BridgeEnded  // the peer (From) was heard with VRRPv3, or is upgraded: CARP is neither spoken nor heard any more
)

// Effect is one thing to do. Priority belongs to SendAdvert, Dialect to that and
// to IntervalSeen, State to Enter, Reason, From, After and Interval to Enter and
// Note. Of a hesitant node that enters Backup, After is how long it waits for a
// master.
type Effect struct {
	Kind     EffectKind
	Priority uint8
	Dialect  Dialect
	State    State
	Reason   Reason
	From     netip.Addr
	After    time.Duration
	Interval time.Duration
}
