package vrouter

import (
	"net/netip"
	"time"
)

const (
	// sayAgain is how long a refusal of the same kind from the same sender
	// stays unsaid: a forger must not fill the disk.
	sayAgain = 10 * time.Minute
	// quiet is how long no refusal came before a sender counts as mended.
	quiet = 30 * time.Second
	// sendersKept bounds the memory that strangers can cost us. Beyond it they
	// share one entry.
	sendersKept = 16
)

// drops counts the advertisements that were refused, by reason, and decides
// which of them are said.
type drops struct {
	total   map[string]uint64
	senders map[netip.Addr]*refused
}

type refused struct {
	reasons map[string]*refusal
}

type refusal struct {
	count uint64
	said  time.Duration
	last  time.Duration
}

func newDrops() drops {
	return drops{total: map[string]uint64{}, senders: map[netip.Addr]*refused{}}
}

// count notes one refusal and tells whether to say it, and how many of this
// kind there have been since it was said last.
func (d *drops) count(now time.Duration, src netip.Addr, reason string) (say bool, since uint64) {
	d.total[reason]++
	s := d.senders[src]
	if s == nil {
		if len(d.senders) >= sendersKept {
			src = netip.Addr{}
		}
		if s = d.senders[src]; s == nil {
			s = &refused{reasons: map[string]*refusal{}}
			d.senders[src] = s
		}
	}
	r := s.reasons[reason]
	if r == nil {
		r = &refusal{said: now - sayAgain}
		s.reasons[reason] = r
	}
	r.count++
	r.last = now
	if now-r.said < sayAgain {
		return false, 0
	}
	since, r.count, r.said = r.count, 0, now
	return true, since
}

// mended tells, when a sender is accepted, for what it was refused before and
// no longer is, each reason once.
func (d *drops) mended(now time.Duration, src netip.Addr) []string {
	s := d.senders[src]
	if s == nil {
		return nil
	}
	var reasons []string
	for reason, r := range s.reasons {
		if now-r.last >= quiet {
			reasons = append(reasons, reason)
			delete(s.reasons, reason)
		}
	}
	if len(s.reasons) == 0 {
		delete(d.senders, src)
	}
	return reasons
}

// remedy says in words what a reason means and what to do about it.
func remedy(reason string) string {
	if words, ok := remedies[reason]; ok {
		return words
	}
	return "it is malformed"
}

var remedies = map[string]string{
	reasonTTL:       "its TTL is not 255, so it did not come from this network",
	reasonStranger:  "it is not from $remote_ip",
	reasonElsewhere: "it has our password and our $cluster_ip, and is not from $remote_ip: is $remote_ip right on both nodes?",
	reasonOwn:       "it carries our own address: is $local_ip the same on two nodes, or do frames loop in the network?",
	reasonStale:     "it is a goodbye from before this process was paused",
	reasonOver:      "it is CARP, which ended here when the other node was upgraded: a replay, or version 2.0 runs there again; in that case run here: skd-vrrpd forget-peer",
	reasonInUDP:     "it is CARP in UDP, which this program does not speak: upgrade both nodes in one sitting",
	reasonVRRP:      "it is VRRPv3, and $protocol is \"carp\" here: set the same on both nodes",
	reasonAnother:   "it has our number and not our $cluster_ip: give one of the two clusters another $cluster_id; if it is the other node, set the same $cluster_ip on both",
	"unsigned":      "it is not signed: that router has no $password, or does not sign; nobody takes the address without the password",
	"bad-signature": "its signature does not fit: is $password the same on both nodes, and are $local_ip, $remote_ip and $cluster_id " +
		"mirrored exactly? Otherwise somebody forges",
	"replay":          "its sequence was used before: a replay, or the sender lost its state and its clock is behind",
	"vrrpv2":          "it is VRRP version 2: set version 3 on that router",
	"carp":            "it is CARP, as ucarp speaks it: upgrade that node, or set $protocol \"auto\" here until it is",
	"carp-bad-digest": "its CARP digest does not fit: is $password the same on both nodes, and $cluster_ip? Otherwise somebody forges",
	"carp-repeated":   "it is the exact repetition of an earlier one: a replay, or frames loop in the network",
	"bad-checksum":    "its checksum is wrong: a faulty switch or network card, or a foreign program",
	"bad-interval":    "its advertisement interval is 0",
}

// Reasons of the receive ladder itself; the others are those of vrrp and auth.
const (
	reasonTTL       = "ttl"
	reasonStranger  = "not-the-peer"
	reasonElsewhere = "not-the-peer-with-our-password"
	reasonOwn       = "own-address"
	reasonStale     = "stale-goodbye"
	reasonOver      = "carp-over"
	reasonVRRP      = "vrrpv3"
	reasonInUDP     = "carp-in-udp"
	reasonAnother   = "another-address"
)
