package vrouter

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/skudonet/skudonet-ce-cluster/lib/auth"
	"github.com/skudonet/skudonet-ce-cluster/lib/carp"
	"github.com/skudonet/skudonet-ce-cluster/lib/election"
	"github.com/skudonet/skudonet-ce-cluster/lib/transport"
)

// Bridge is what a node in both dialects knows of its peer, and must not forget.
type Bridge struct {
	Peer  string `json:"peer,omitempty"`  // whom it is about, see peerName
	Ucarp bool   `json:"ucarp,omitempty"` // it was ucarp when it was heard last
	Ended bool   `json:"ended,omitempty"` // it is upgraded: CARP is over
	// Forgotten is the newest sequence that anybody had used when the peer was forgotten.
	Forgotten auth.Sequence `json:"forgotten,omitempty"`
}

// Forget takes from what an earlier process left what that knew of the peer, as the
// admin asks where the peer goes back to ucarp, or lost its state.
func Forget(record Record, lasting Lasting) (Record, Lasting) {
	newest := lasting.Bridge.Forgotten
	for _, marks := range []map[netip.Addr]auth.Sequence{lasting.Marks, record.Marks} {
		for _, seq := range marks {
			if newest == 0 || seq.After(newest) {
				newest = seq
			}
		}
	}
	record.Marks, record.Own = nil, nil
	return record, Lasting{Floor: lasting.Floor, Bridge: Bridge{Forgotten: newest}}
}

// wasForgotten tells whether an advert may be one of before the peer was forgotten.
// It is no proof of an upgrade then. Beside a ucarp, which will never sign one that
// counts above it, it is a replay.
func (b Bridge) wasForgotten(seq auth.Sequence) bool {
	return b.Forgotten != 0 && !seq.After(b.Forgotten)
}

// peerName tells one peer of a virtual router from another.
func (c Config) peerName() string {
	return fmt.Sprintf("%s vrid %d %s", c.Election.Peer, c.VRID, c.ClusterIP)
}

// remembered is the configuration with what an earlier process has learned of
// the peer. It does not count for another peer.
func (c Config) remembered(b Bridge) election.Config {
	e := c.Election
	if e.Dialect == election.Both && b.Peer == c.peerName() {
		e.Ucarp = b.Ucarp
		if b.Ended {
			e.Dialect = election.VRRP
		}
	}
	return e
}

// PeerUpgraded tells the router that the peer runs a program like this one,
// although it is silent. It returns at once.
func (r *Router) PeerUpgraded() {
	r.post(func() { r.handle(election.Event{Kind: election.PeerUpgraded}) })
}

// CARPInUDP tells the router that the peer advertises with CARP in UDP, as version
// 2.0 can be set up to, and as nobody else does. Its form is not known; what it
// means is that the peer is there.
func (r *Router) CARPInUDP() {
	r.post(func() {
		if r.machine.Hears() == election.VRRP {
			return // the bridge has ended: CARP is nothing, in whatever it comes
		}
		r.drop(r.cfg.Election.Peer, reasonInUDP)
		r.unverifiable(election.Event{From: r.cfg.Election.Peer}, reasonInUDP)
	})
}

// receiveCARP is the rest of the ladder for what looks like CARP, where CARP is
// heard: over IPv4, which is all that a router in its dialects has.
func (r *Router) receiveCARP(p transport.Packet) {
	if p.Src != r.cfg.Election.Peer {
		r.receiveStrangeCARP(p)
		return
	}
	var heard carp.Advertisement
	if err := heard.Unmarshal(p.Payload); err != nil {
		r.drop(p.Src, carp.Reason(err))
		return
	}
	if heard.VHID != r.cfg.VRID {
		return // the socket's filter came later than the packet
	}
	next, err := r.digest(p.Payload)
	if err != nil {
		r.drop(p.Src, carp.Reason(err))
		r.unverifiable(election.Event{From: p.Src}, carp.Reason(err))
		return
	}
	if err := r.carped.Note(p.Payload); err != nil {
		r.drop(p.Src, carp.Reason(err))
		return
	}
	timing := election.Timing{Base: heard.Base, Skew: heard.Skew}
	if timing == election.Goodbye && r.now-p.Arrived > r.machine.MasterInterval() {
		r.drop(p.Src, reasonStale)
		return
	}
	r.mended(p.Src)
	r.heardFrom(Peer{Addr: p.Src, Heard: r.now, Interval: timing.Interval(), CARP: true, Verified: true, Next: next},
		election.Event{Kind: election.CARPAdvert, From: p.Src, Timing: timing})
}

// receiveStrangeCARP refuses what is not from $remote_ip. Where it has our password,
// and our address, that may be wrong here: ucarp does not know of it.
func (r *Router) receiveStrangeCARP(p transport.Packet) {
	if _, err := r.digest(p.Payload); err != nil || r.carped.Note(p.Payload) != nil {
		r.drop(p.Src, reasonStranger)
		return
	}
	r.drop(p.Src, reasonElsewhere)
	r.unverifiable(election.Event{From: p.Src, Claims: true}, reasonElsewhere)
}

// digest verifies that of an advert with either password, and tells whether it was the next one.
func (r *Router) digest(payload []byte) (next bool, err error) {
	err = carp.ErrMAC
	for i, key := range r.cfg.CARPKeys {
		if err = key.Verify(payload); err == nil {
			return i > 0, nil
		}
	}
	return false, err
}

// uncalledFor is CARP that came although it is over: a replay, or a peer that has
// not noticed yet. It is obeyed by nobody; only where the peer is not heard otherwise
// somebody may have installed the old version again. So that is said, and holds a
// node that starts: but each advert once, as a recorded one is nobody's sign of life.
func (r *Router) uncalledFor(p transport.Packet) {
	peer := r.cfg.Election.Peer
	if p.Src == peer && r.peer.Heard != 0 && !r.peer.CARP && r.now-r.peer.Heard <= r.machine.DownInterval() {
		r.drops.total[reasonOver]++
		return
	}
	if p.Src != peer {
		r.drop(p.Src, reasonStranger)
		return
	}
	r.drop(p.Src, reasonOver)
	r.rival(peer, reasonOver)
	if _, err := r.digest(p.Payload); err == nil && r.carped.Note(p.Payload) == nil {
		r.unverifiable(election.Event{From: peer}, reasonOver)
	}
}

// carpOver tells whether CARP is configured, and over.
func (r *Router) carpOver() bool {
	return r.cfg.Election.Dialect == election.Both && r.machine.Hears() == election.VRRP
}

// appendCARP makes the advert that says the same as one of VRRP with this priority.
func (r *Router) appendCARP(b []byte, priority uint8) []byte {
	timing := election.Goodbye
	if priority != 0 {
		timing = election.TimingOf(priority, r.cfg.Election.Interval)
	}
	// Fresh each time: the peer counts on from the last counter that it heard, and
	// equal counters have equal digests (ucarp 1.5.2 carp.c).
	var counter [8]byte
	rand.Read(counter[:])
	return r.cfg.CARPKeys[0].Append(b, carp.Advertisement{VHID: r.cfg.VRID, Base: timing.Base, Skew: timing.Skew,
		Counter: binary.BigEndian.Uint64(counter[:])})
}
