package vrouter

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
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
func (r *Router) receive(l *leg, p transport.Packet) {
	if p.Src == l.source {
		// Not verified on purpose: our own adverts, sent back by a loop, are validly signed.
		if l.source.Is6() {
			r.copy(p.Src)
		} else { // those of a copy do not come here, see Copied
			r.drop(p.Src, reasonOwn)
		}
		return
	}
	if r.cfg.Kind == transport.Multicast && p.TTL != multicastTTL {
		r.drop(p.Src, reasonTTL)
		return
	}
	if r.cfg.Kind != transport.Multicast && p.Src != l.Peer {
		r.drop(p.Src, reasonStranger)
		return
	}
	switch hears := r.machine.Hears(); {
	case hears != election.VRRP && carp.Looks(p.Payload):
		r.receiveCARP(p)
		return
	case r.carpOver() && carp.Looks(p.Payload):
		r.uncalledFor(p)
		return
	case hears == election.CARP && len(p.Payload) > 0 && p.Payload[0]>>4 == 3:
		r.drop(p.Src, reasonVRRP)
		r.unverifiable(election.Event{From: r.named(l, p.Src)}, reasonVRRP)
		return
	}
	trailer, _, err := r.heard.Unmarshal(p.Payload, p.Src, p.Dst)
	if err == nil && r.heard.VRID != r.cfg.VRID {
		return // the socket's filter came later than the packet
	}
	if err != nil {
		r.drop(p.Src, vrrp.Reason(err))
		if errors.Is(err, vrrp.ErrVersion) {
			r.unverifiable(election.Event{From: r.named(l, p.Src)}, vrrp.Reason(err))
		}
		return
	}
	from := r.sender(l, p.Src)
	var seq auth.Sequence
	if r.signed() {
		message := p.Payload[:len(p.Payload)-len(trailer)]
		if seq, err = r.verify(l, message, trailer, p.Src); err != nil {
			r.drop(p.Src, auth.Reason(err))
			if !errors.Is(err, auth.ErrReplay) {
				claims := errors.Is(err, auth.ErrMAC) && slices.Contains(r.heard.Addrs, l.ClusterIP)
				r.unverifiable(election.Event{From: from, Interval: r.heard.Interval, Claims: claims}, auth.Reason(err))
			}
			return
		}
		from = r.named(l, r.signer(l, from))
	}
	if from != r.cfg.Election.Peer && !slices.Contains(r.heard.Addrs, l.ClusterIP) {
		r.drop(p.Src, reasonAnother)
		return
	}
	if stale := r.now - p.Arrived; r.heard.Priority == 0 && stale > r.machine.MasterInterval() {
		// Said before this process was paused: whoever was invited took over long ago.
		r.drop(p.Src, reasonStale)
		return
	}
	r.accept(l, p.Src, from, seq, trailer != nil)
}

// named is the address by which the election knows a sender: the peer has one
// name in both families.
func (r *Router) named(l *leg, src netip.Addr) netip.Addr {
	if src == l.Peer {
		return r.cfg.Election.Peer
	}
	return src
}

// sender is named for a sender whose advert was read. One that comes from a
// link-local address, as over IPv6 most do, does not tell whose it is. Whoever
// advertises $cluster_ip is taken for the peer, then: without a signature any
// host of the network could as well send from the peer's address. Only a goodbye
// is not the peer's if another one advertised last: of three such routers, two
// would hand the address to each other for ever.
func (r *Router) sender(l *leg, src netip.Addr) netip.Addr {
	if l.fromLinkLocal && src.IsLinkLocalUnicast() && slices.Contains(r.heard.Addrs, l.ClusterIP) {
		if r.heard.Priority == 0 && l.master.IsValid() && l.master != src {
			return src
		}
		return r.cfg.Election.Peer
	}
	return r.named(l, src)
}

// rank tells who wins a tie, as election.Event has it. Both ends must find the
// same in whichever family they hear each other first, so a pair with two goes
// by the configured addresses of the first.
func (r *Router) rank(l *leg, src, from netip.Addr) int {
	if from == r.cfg.Election.Peer && (len(r.legs) > 1 || !l.fromLinkLocal) || l == r.legs[0] && !l.fromLinkLocal {
		return 0
	}
	return src.Compare(l.source)
}

// unverifiable tells the election that a router is there which it must not obey.
func (r *Router) unverifiable(ev election.Event, reason string) {
	r.strange, ev.Kind = reason, election.Unverifiable
	r.handle(ev)
	if ev.From == r.cfg.Election.Peer || ev.Claims {
		r.rival(ev.From, reason)
	}
}

// rival shows, on a master, that somebody else is master of our address whom
// it must not obey. The refusal has said it. A flood of such adverts costs no words.
func (r *Router) rival(who netip.Addr, reason string) {
	if r.machine.State() != election.Master {
		return
	}
	known := r.rivalHeard != 0
	r.rivalHeard = r.now
	if !known {
		r.troubles.Show("rival", fmt.Sprintf("%s advertises what this node must not obey, so both may be master: %s", who, remedy(reason)))
		r.publish()
	}
}

// verify tries the password in force and the next one, and moves the sender's
// mark only when everything else fitted.
func (r *Router) verify(l *leg, message, trailer []byte, src netip.Addr) (seq auth.Sequence, err error) {
	if trailer == nil {
		return 0, auth.ErrUnsigned
	}
	for i, key := range r.keys {
		if seq, err = key.Verify(message, trailer, src); !errors.Is(err, auth.ErrMAC) {
			r.nextKey, r.anyones = i > 0, key.Anyones
			break
		}
	}
	if err != nil {
		return 0, err
	}
	sender := r.signer(l, src)
	err = r.marks.Check(sender, seq)
	if r.own.said(src, seq) || r.machine.Speaks() != election.VRRP && r.bridge.wasForgotten(seq) {
		err = auth.ErrReplay
	}
	if err != nil {
		if src == l.Peer || l.fromLinkLocal {
			r.behind(src, seq)
		}
		return 0, err
	}
	r.marks.Move(sender, seq)
	return seq, nil
}

// signer is the address by which the mark of whoever signed an advert is kept. A
// link-local address may be another one after each boot, and nobody but the peer
// has a key that was made of its address and ours.
func (r *Router) signer(l *leg, src netip.Addr) netip.Addr {
	if l.fromLinkLocal && !r.anyones {
		return l.Peer
	}
	return src
}

// behind shouts when the peer itself, and not a replay of one packet, stays
// below its mark: its sequence grows, and nothing newer is heard from it.
func (r *Router) behind(src netip.Addr, seq auth.Sequence) {
	anew := r.behindSince == 0 || r.now-r.behindAt > quiet
	if !anew && !seq.After(r.behindSeq) {
		return
	}
	if anew {
		r.behindSince = r.now
	}
	r.behindSeq, r.behindAt = seq, r.now
	if r.now-r.behindSince > r.machine.DownInterval() {
		r.troubles.Set("behind", fmt.Sprintf("the peer %s knows the password, but counts below what it used before, so it is not heard: "+
			"it lost its state while its clock is behind; set its clock, or run here: skd-vrrpd forget-peer", src))
	}
}

// accept hands a valid advert of VRRPv3 to the election and notes what it says of its sender.
func (r *Router) accept(l *leg, src, from netip.Addr, seq auth.Sequence, signed bool) {
	r.mended(src)
	if r.heard.Priority != 0 {
		l.master = src
	}
	isPeer := from == r.cfg.Election.Peer
	if isPeer && !signed {
		r.troubles.Clear("unsigned")
	}
	if signed && !r.signed() {
		r.troubles.Set("unsigned", fmt.Sprintf("%s signs its advertisements and $password is empty here; obeyed, "+
			"but it does not obey us: set the same $password on both nodes", src))
	}
	switch same := len(r.heard.Addrs) == 1 && r.heard.Addrs[0] == l.ClusterIP; {
	case !isPeer:
	case !same:
		remedy := "set the same $cluster_ip on both nodes"
		if !r.signed() {
			remedy = "a keepalived drops ours for that: list $cluster_ip alone under virtual_ipaddress there, and others under virtual_ipaddress_excluded"
		}
		r.troubles.Set(l.addresses, fmt.Sprintf("%s advertises %s and our $cluster_ip is %s; obeyed, but %s",
			src, addressList(r.heard.Addrs), l.ClusterIP, remedy))
	default:
		r.troubles.Clear(l.addresses)
	}
	if isPeer {
		r.heardIn(l)
	}
	if r.signed() && len(r.legs) > 1 && r.toldBefore(l, isPeer, seq) {
		return
	}
	r.heardFrom(Peer{Addr: src, Heard: r.now, Priority: r.heard.Priority, Interval: r.heard.Interval, Verified: r.signed(), Next: r.nextKey},
		election.Event{Kind: election.Advert, From: from, Priority: r.heard.Priority, Interval: r.heard.Interval,
			Forgotten: r.bridge.wasForgotten(seq), Rank: r.rank(l, src, from)})
}

// toldBefore tells whether a verified advert came in the other family before, or
// what was said after it did. Who may be of many that share a key is known by his
// name in the other family, or by the sequence that both copies have.
func (r *Router) toldBefore(l *leg, isPeer bool, seq auth.Sequence) bool {
	if !r.anyones {
		if isPeer && r.heardSeq != 0 && !seq.After(r.heardSeq) {
			return true
		}
		if isPeer {
			r.heardSeq = seq
		}
		return false
	}
	for src, last := range r.marks.All() {
		switch {
		case !src.IsValid() || src.Is4() == l.ClusterIP.Is4():
		case last == seq, isPeer && src == r.cfg.Election.Peer && !seq.After(last):
			return true
		}
	}
	return false
}

// mended says that a sender is accepted again.
func (r *Router) mended(src netip.Addr) {
	for _, reason := range r.drops.mended(r.now, src) {
		r.log.Info(fmt.Sprintf("advertisements from %s are accepted again (were refused: %s)", src, reason))
	}
}

// heardFrom hands an advert to the election, and notes it if it is the peer's.
func (r *Router) heardFrom(peer Peer, ev election.Event) {
	if ev.From == r.cfg.Election.Peer {
		r.recv++
		r.behindSince = 0
		r.troubles.Clear("behind")
		r.troubles.Clear("held")
		if r.now-r.peer.Heard > r.machine.Silence() || peer.Next != r.peer.Next || peer.CARP != r.peer.CARP {
			defer r.publish() // The replicator waits for the peer's return, an admin for the other password.
		}
		r.peer = peer
	}
	r.handle(ev)
	r.keep()
}

// heardIn notes that the peer was heard in one family, and says it if it is not
// in the other one: the election needs no more than one, but something is wrong,
// and the day may come on which the other one fails too.
func (r *Router) heardIn(l *leg) {
	if len(r.legs) == 1 {
		return
	}
	down := r.machine.DownInterval()
	if r.now-l.heard > down {
		l.began = r.now
	}
	l.heard = r.now
	other := r.legs[0]
	if l == other {
		other = r.legs[1]
	}
	switch {
	case r.now-other.heard <= down:
		r.troubles.Clear(l.deaf)
		r.troubles.Clear(other.deaf)
	case r.now-l.began > down:
		r.troubles.Set(other.deaf, fmt.Sprintf("the peer is heard over %s, but not over %s; the election goes on, "+
			"but see whether the network between the nodes passes %s, and whether both have the same families in $local_ip, $remote_ip and $cluster_ip",
			l.name, other.name, other.name))
	}
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
		if r.now-r.published >= publishEvery {
			r.publish() // for its counters: a node that hears nothing else has no other occasion
		}
		return
	}
	if since > 1 {
		words = fmt.Sprintf("%s (%d since this was said last)", words, since)
	}
	r.log.Warn(words, "reason", reason)
	r.publish()
}
