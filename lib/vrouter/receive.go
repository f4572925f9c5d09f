package vrouter

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/auth"
	"github.com/skudonet/skudonet-ce-cluster/lib/carp"
	"github.com/skudonet/skudonet-ce-cluster/lib/election"
	"github.com/skudonet/skudonet-ce-cluster/lib/transport"
	"github.com/skudonet/skudonet-ce-cluster/lib/vrrp"
)

const multicastTTL = 255

// Peer is what was heard of the other node last.
type Peer struct {
	Addr     netip.Addr
	Heard    time.Duration // boot clock; 0 is never
	Priority uint8
	Interval time.Duration
	CARP     bool // which knows no priority
	Verified bool
	Next     bool // with $password_next
}

// receive is the ladder that a packet climbs before the election sees it:
// cheap refusals first, the signature, and only then what moves the mark.
func (r *Router) receive(p transport.Packet) {
	if p.Src == r.cfg.Election.Local {
		// Not verified on purpose: our own adverts, sent back by a loop, are validly signed.
		r.drop(p.Src, reasonOwn)
		return
	}
	if r.cfg.Kind == transport.Multicast && p.TTL != multicastTTL {
		r.drop(p.Src, reasonTTL)
		return
	}
	if r.cfg.Kind != transport.Multicast && p.Src != r.cfg.Election.Peer {
		r.drop(p.Src, reasonStranger)
		return
	}
	switch hears := r.machine.Hears(); {
	case hears != election.VRRP && carp.Looks(p.Payload):
		r.receiveCARP(p)
		return
	case r.carpOver() && carp.Looks(p.Payload):
		r.uncalledFor(p.Src)
		return
	case hears == election.CARP && len(p.Payload) > 0 && p.Payload[0]>>4 == 3:
		r.drop(p.Src, reasonVRRP)
		r.unverifiable(p.Src, reasonVRRP)
		return
	}
	trailer, _, err := r.heard.Unmarshal(p.Payload, p.Src, p.Dst)
	if err == nil && r.heard.VRID != r.cfg.VRID {
		return // the socket's filter came later than the packet
	}
	if err != nil {
		r.drop(p.Src, vrrp.Reason(err))
		if errors.Is(err, vrrp.ErrVersion) {
			r.unverifiable(p.Src, vrrp.Reason(err))
		}
		return
	}
	if r.signed() {
		message := p.Payload[:len(p.Payload)-len(trailer)]
		if err := r.verify(message, trailer, p.Src); err != nil {
			r.drop(p.Src, auth.Reason(err))
			if !errors.Is(err, auth.ErrReplay) {
				r.unverifiable(p.Src, auth.Reason(err))
			}
			return
		}
	}
	if stale := r.now - p.Arrived; r.heard.Priority == 0 && stale > r.machine.MasterInterval() {
		// Said before this process was paused: whoever was invited took over long ago.
		r.drop(p.Src, reasonStale)
		return
	}
	r.accept(p.Src, trailer != nil)
}

// unverifiable tells the election that a router is there which it must not obey.
func (r *Router) unverifiable(src netip.Addr, reason string) {
	r.strange = reason
	r.handle(election.Event{Kind: election.Unverifiable, From: src})
}

// verify tries the password in force and the next one, and moves the sender's
// mark only when everything else fitted.
func (r *Router) verify(message, trailer []byte, src netip.Addr) error {
	if trailer == nil {
		return auth.ErrUnsigned
	}
	var (
		seq auth.Sequence
		err error
	)
	for i, key := range r.keys {
		if seq, err = key.Verify(message, trailer, src); !errors.Is(err, auth.ErrMAC) {
			r.nextKey = i > 0
			break
		}
	}
	if err != nil {
		return err
	}
	if err := r.marks.Check(src, seq); err != nil {
		r.behind(src, seq)
		return err
	}
	r.marks.Move(src, seq)
	return nil
}

// behind shouts when the peer itself, and not a replay of one packet, stays
// below its mark: its sequence grows, and nothing newer is heard from it.
func (r *Router) behind(src netip.Addr, seq auth.Sequence) {
	if src != r.cfg.Election.Peer || !seq.After(r.behindSeq) {
		return
	}
	if r.behindSince == 0 {
		r.behindSince = r.now
	}
	r.behindSeq = seq
	if r.now-r.behindSince > r.machine.DownInterval() {
		r.troubles.Set("behind", fmt.Sprintf("the peer %s knows the password, but counts below what it used before, so it is not heard: "+
			"it lost its state while its clock is behind; set its clock, or run here: skd-vrrpd forget-peer", src))
	}
}

// accept hands a valid advert of VRRPv3 to the election and notes what it says of its sender.
func (r *Router) accept(src netip.Addr, signed bool) {
	if src == r.cfg.Election.Peer && !signed {
		r.troubles.Clear("unsigned")
	}
	if signed && !r.signed() {
		r.troubles.Set("unsigned", fmt.Sprintf("%s signs its advertisements and $password is empty here; obeyed, "+
			"but it does not obey us: set the same $password on both nodes", src))
	}
	switch same := len(r.heard.Addrs) == 1 && r.heard.Addrs[0] == r.cfg.ClusterIP; {
	case src != r.cfg.Election.Peer:
	case !same:
		r.troubles.Set("addresses", fmt.Sprintf("%s advertises %s and our $cluster_ip is %s; obeyed, "+
			"but set the same $cluster_ip on both nodes", src, addressList(r.heard.Addrs), r.cfg.ClusterIP))
	default:
		r.troubles.Clear("addresses")
	}
	r.heardFrom(src, Peer{Addr: src, Heard: r.now, Priority: r.heard.Priority, Interval: r.heard.Interval, Verified: r.signed(), Next: r.nextKey},
		election.Event{Kind: election.Advert, From: src, Priority: r.heard.Priority, Interval: r.heard.Interval})
}

// heardFrom hands an advert to the election, and notes it if it is the peer's.
func (r *Router) heardFrom(src netip.Addr, peer Peer, ev election.Event) {
	for _, reason := range r.drops.mended(r.now, src) {
		r.log.Info(fmt.Sprintf("advertisements from %s are accepted again (were refused: %s)", src, reason))
	}
	if src == r.cfg.Election.Peer {
		r.recv++
		r.behindSince = 0
		r.troubles.Clear("behind")
		r.troubles.Clear("held")
		if r.now-r.peer.Heard > r.machine.DownInterval() {
			defer r.publish() // The replicator waits for the peer's return.
		}
		r.peer = peer
	}
	r.handle(ev)
	r.keep()
}

const addressesShown = 4

func addressList(addrs []netip.Addr) string {
	s := ""
	for i, a := range addrs {
		switch {
		case i == addressesShown:
			return fmt.Sprintf("%s and %d more", s, len(addrs)-i)
		case i > 0:
			s += ", "
		}
		s += a.String()
	}
	return s
}

// drop counts a refusal and says it, but not each time.
func (r *Router) drop(src netip.Addr, reason string) {
	r.refuse(src, reason, fmt.Sprintf("refused an advertisement from %s: %s", src, remedy(reason)))
}

func (r *Router) refuse(src netip.Addr, reason, words string) {
	say, since := r.drops.count(r.now, src, reason)
	if !say {
		return
	}
	if since > 1 {
		words = fmt.Sprintf("%s (%d since this was said last)", words, since)
	}
	r.log.Warn(words, "reason", reason)
	r.publish()
}
