package address

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/nlmsg"
)

// Failure is an address that could not be brought up or taken down, and why.
type Failure struct {
	Address Address
	Err     error
}

func (f Failure) Error() string { return fmt.Sprintf("address %s: %v", f.Address, f.Err) }

func (f Failure) Unwrap() error { return f.Err }

// ErrNoLink says that the link of an address does not exist on this node.
var ErrNoLink = errors.New("no such interface")

// Missing returns those of want that do not stand. An address that stands on its link with another prefix length or label,
// as somebody else may have added it, is there. One of IPv6 that is tentative, or was found to be a duplicate (RFC 4862 §5.4), is
// not: nobody can use it.
func Missing(want []Address) ([]Address, error) { return without(want, (*state).stands) }

// Gone returns those of want that do not stand at all. One of IPv6 that is tentative does: it is about to be used.
func Gone(want []Address) ([]Address, error) { return without(want, (*state).has) }

// without returns those of want that the kernel is without.
func without(want []Address, has func(*state, Address) bool) (list []Address, err error) {
	c, err := dial()
	if err != nil {
		return nil, err
	}
	defer c.close()
	now, err := c.look(want)
	if err != nil {
		return nil, err
	}
	for _, a := range want {
		if !has(now, a) {
			list = append(list, a)
		}
	}
	return list, nil
}

// Up adds what is missing of want, looks afterwards, and returns how many came to stand and which do not. It changes no
// address that is there already, in whatever form, but replaces one of IPv6 that nobody can use.
func Up(want []Address) (added int, failed []Failure) {
	c, err := dial()
	if err != nil {
		return 0, all(want, err)
	}
	defer c.close()
	before, err := c.look(want)
	if err != nil {
		return 0, all(want, err)
	}
	var add []Address
	for _, a := range want {
		switch {
		case before.stands(a):
		case before.links[a.Link].index == 0:
			failed = append(failed, Failure{a, ErrNoLink})
		case !a.Prefix.IsValid() || len(a.Label) > maxName:
			failed = append(failed, Failure{a, unix.EINVAL})
		default:
			add = append(add, a)
		}
	}
	if len(add) == 0 {
		return 0, failed
	}
	if useless := before.useless(add); len(useless) > 0 {
		// What the kernel refuses is refused again, or stands, below.
		_, _ = c.remove(useless)
	}
	refused, sendErr := c.batch(len(add), unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, func(b []byte, i int) []byte {
		return appendNew(b, add[i], before.links[add[i].Link].index)
	})
	after, err := c.look(want)
	if err != nil {
		return 0, append(failed, all(add, err)...)
	}
	for i, a := range add {
		if after.stands(a) {
			added++
			continue
		}
		failed = append(failed, Failure{a, reason(refused[i], sendErr, "gone again as soon as it was added")})
	}
	return added, failed
}

// Down removes every address of want from its link, however it stands there, looks afterwards, and returns how many went and
// which still stand. Other addresses stay, also where Linux would take them along: those in the same prefix, when the one that
// goes is the prefix's primary and promote_secondaries is 0.
func Down(want []Address) (removed int, failed []Failure) {
	c, err := dial()
	if err != nil {
		return 0, all(want, err)
	}
	defer c.close()
	before, err := c.look(want)
	if err != nil {
		return 0, all(want, err)
	}
	ours := map[place]Address{}
	for _, a := range want {
		if p, ok := before.place(a); ok {
			ours[p] = a
		}
	}
	remove, promote := before.removal(func(p place) bool { _, ok := ours[p]; return ok })
	if len(remove) == 0 {
		return 0, nil
	}
	if len(promote) > 0 {
		if err := c.setPromotion(promote, 1); err != nil {
			// Better an address too many, said aloud, than a NIC without its own.
			keep := map[int32]bool{}
			for _, link := range promote {
				keep[link] = true
			}
			err = fmt.Errorf("left standing, because addresses that must stay would go with it: cannot set promote_secondaries: %w", err)
			safe := remove[:0:0]
			for _, s := range remove {
				if keep[s.link] {
					failed = append(failed, Failure{ours[s.place], err})
				} else {
					safe = append(safe, s)
				}
			}
			remove, promote = safe, nil
		}
	}
	refused, sendErr := c.remove(remove)
	if len(promote) > 0 {
		_ = c.setPromotion(promote, 0)
	}
	after, err := c.look(want)
	if err != nil {
		for _, s := range remove {
			failed = append(failed, Failure{ours[s.place], err})
		}
		return 0, failed
	}
	gone := map[place]bool{}
	for i, s := range remove {
		if gone[s.place] {
			continue // it stood twice, with different prefix lengths
		}
		gone[s.place] = true
		if _, there := after.standing[s.place]; !there {
			removed++
			continue
		}
		failed = append(failed, Failure{ours[s.place], reason(refused[i], sendErr, "back again as soon as it was removed")})
	}
	return removed, failed
}

func (c *rtnl) remove(list []entry) (map[int]error, error) {
	return c.batch(len(list), unix.RTM_DELADDR, 0, func(b []byte, i int) []byte {
		e := list[i]
		b = appendIfAddrmsg(b, familyOf(e.ip), e.bits, e.link)
		b = appendAddr(b, unix.IFA_LOCAL, e.ip)
		return appendAddr(b, unix.IFA_ADDRESS, e.peer)
	})
}

func all(want []Address, err error) []Failure {
	failed := make([]Failure, len(want))
	for i, a := range want {
		failed[i] = Failure{a, err}
	}
	return failed
}

func reason(refused, sendErr error, otherwise string) error {
	switch {
	case refused != nil:
		return refused
	case sendErr != nil:
		return sendErr
	}
	return errors.New(otherwise)
}

// place tells addresses apart: one address may stand on several links.
type place struct {
	link int32
	ip   netip.Addr
}

// entry is an address as the kernel lists it.
type entry struct {
	place
	peer      netip.Addr // the address itself, except on a point-to-point link
	bits      int
	secondary bool // of IPv4
	unusable  bool // of IPv6: it may be, or is, a duplicate
}

type link struct {
	index   int32
	promote bool // its own promote_secondaries; conf/all is another
}

// state is what the kernel has, all links at one moment.
type state struct {
	links    map[string]link
	entries  []entry        // in the kernel's order: on each link primaries first
	standing map[place]bool // false, and there: unusable
}

func (s *state) place(a Address) (place, bool) {
	l, ok := s.links[a.Link]
	return place{l.index, a.Prefix.Addr().Unmap()}, ok
}

func (s *state) stands(a Address) bool {
	p, ok := s.place(a)
	return ok && s.standing[p]
}

func (s *state) has(a Address) bool {
	p, ok := s.place(a)
	_, there := s.standing[p]
	return ok && there
}

// useless returns the entries that are where these addresses should stand, and are of no use.
func (s *state) useless(list []Address) (entries []entry) {
	at := map[place]bool{}
	for _, a := range list {
		if p, ok := s.place(a); ok {
			at[p] = true
		}
	}
	for _, e := range s.entries {
		if e.unusable && at[e.place] {
			entries = append(entries, e)
		}
	}
	return entries
}

// removal returns the entries to remove, in an order that costs the kernel least, and the links where Linux would take others
// along unless it is told to promote them.
//
// Secondaries go first: removing a primary makes the kernel delete its secondaries or, with promotion, make the next one
// primary and write its routes anew, for each removal again.
func (s *state) removal(ours func(place) bool) (remove []entry, promote []int32) {
	type network struct {
		link   int32
		prefix netip.Prefix
	}
	survivors := map[network]bool{}
	var primaries []entry
	for _, e := range s.entries {
		switch {
		case !ours(e.place):
			if e.secondary {
				survivors[network{e.link, netip.PrefixFrom(e.peer, e.bits).Masked()}] = true
			}
		case e.secondary:
			remove = append(remove, e)
		default:
			primaries = append(primaries, e)
		}
	}
	told := map[int32]bool{}
	for _, l := range s.links {
		told[l.index] = l.promote
	}
	for _, e := range primaries {
		if survivors[network{e.link, netip.PrefixFrom(e.peer, e.bits).Masked()}] && !told[e.link] {
			told[e.link] = true
			promote = append(promote, e.link)
		}
	}
	return append(remove, primaries...), promote
}

// look reads the links, and the addresses of the families that are in list.
func (c *rtnl) look(list []Address) (*state, error) {
	s := &state{}
	var families []byte
	for _, a := range list {
		if f := familyOf(a.Prefix.Addr()); !slices.Contains(families, f) {
			families = append(families, f)
		}
	}
	err := c.dump(unix.RTM_GETLINK, func(b []byte) []byte {
		b = append(b, make([]byte, unix.SizeofIfInfomsg)...)
		return nlmsg.AppendAttr(b, unix.IFLA_EXT_MASK, binary.NativeEndian.AppendUint32(nil, rtextFilterSkipStats))
	}, func() { s.links = map[string]link{} }, s.addLink)
	if err != nil {
		return nil, err
	}
	for _, family := range families {
		before := s.entries
		err = c.dump(unix.RTM_GETADDR, func(b []byte) []byte {
			return appendIfAddrmsg(b, family, 0, 0)
		}, func() { s.entries = before }, s.addEntry)
		if err != nil {
			return nil, err
		}
	}
	s.standing = make(map[place]bool, len(s.entries))
	for _, e := range s.entries {
		s.standing[e.place] = s.standing[e.place] || !e.unusable
	}
	return s, nil
}

func (s *state) addLink(b []byte) {
	if len(b) < unix.SizeofIfInfomsg {
		return
	}
	l := link{index: int32(binary.NativeEndian.Uint32(b[4:]))}
	var name string
	for typ, v := range nlmsg.Attrs(b[unix.SizeofIfInfomsg:]) {
		switch typ {
		case unix.IFLA_IFNAME:
			name = nlmsg.String(v)
		case unix.IFLA_AF_SPEC:
			l.promote = promotes(v)
		}
	}
	s.links[name] = l
}

func (s *state) addEntry(b []byte) {
	if len(b) < unix.SizeofIfAddrmsg || b[0] != unix.AF_INET && b[0] != unix.AF_INET6 {
		return
	}
	v6, flags := b[0] == unix.AF_INET6, b[2]
	e := entry{bits: int(b[1])}
	if v6 {
		e.unusable = flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0
	} else {
		e.secondary = flags&unix.IFA_F_SECONDARY != 0
	}
	e.link = int32(binary.NativeEndian.Uint32(b[4:]))
	for typ, v := range nlmsg.Attrs(b[unix.SizeofIfAddrmsg:]) {
		ip, ok := netip.AddrFromSlice(v)
		if !ok || ip.Is6() != v6 {
			continue
		}
		switch typ {
		case unix.IFA_LOCAL:
			e.ip = ip
		case unix.IFA_ADDRESS:
			e.peer = ip
		}
	}
	if v6 && !e.ip.IsValid() {
		e.ip = e.peer // it has IFA_LOCAL only on a point-to-point link
	}
	s.entries = append(s.entries, e)
}

// appendNew appends what ip-address(8) sends for an address of Skudonet. "broadcast +" sets none below /31.
func appendNew(b []byte, a Address, link int32) []byte {
	ip, bits := a.Prefix.Addr(), a.Prefix.Bits()
	b = appendIfAddrmsg(b, familyOf(ip), bits, link)
	b = appendAddr(b, unix.IFA_LOCAL, ip)
	b = appendAddr(b, unix.IFA_ADDRESS, ip)
	if ip.Is6() {
		// struct ifa_cacheinfo: preferred for no time, valid for ever.
		lifetimes := binary.NativeEndian.AppendUint64(binary.NativeEndian.AppendUint32(make([]byte, 4), math.MaxUint32), 0)
		b = nlmsg.AppendAttr(b, unix.IFA_CACHEINFO, lifetimes)
		return nlmsg.AppendAttr(b, unix.IFA_FLAGS, binary.NativeEndian.AppendUint32(nil, unix.IFA_F_NOPREFIXROUTE|unix.IFA_F_NODAD))
	}
	if bits <= 30 {
		v := ip.As4()
		host := ^uint32(0) >> bits
		b = nlmsg.AppendAttr(b, unix.IFA_BROADCAST, binary.BigEndian.AppendUint32(nil, binary.BigEndian.Uint32(v[:])|host))
	}
	if a.Label != "" {
		b = nlmsg.AppendString(b, unix.IFA_LABEL, a.Label)
	}
	return nlmsg.AppendAttr(b, unix.IFA_FLAGS, binary.NativeEndian.AppendUint32(nil, unix.IFA_F_NOPREFIXROUTE))
}

// Constants of linux/rtnetlink.h, if_link.h and ip.h that x/sys/unix does not name.
const (
	rtextFilterSkipStats     = 1 << 3
	iflaInetConf             = 1
	ipv4PromoteSecondaries   = 20
	promoteSecondariesOffset = 4 * (ipv4PromoteSecondaries - 1)
)

// promotes reads promote_secondaries of one link from its IFLA_AF_SPEC.
func promotes(spec []byte) bool {
	for family, v := range nlmsg.Attrs(spec) {
		if family != unix.AF_INET {
			continue
		}
		for typ, values := range nlmsg.Attrs(v) {
			if typ == iflaInetConf && len(values) >= promoteSecondariesOffset+4 {
				return binary.NativeEndian.Uint32(values[promoteSecondariesOffset:]) != 0
			}
		}
	}
	return false
}

// setPromotion sets promote_secondaries of links through netlink, which also works where /proc/sys is read-only.
func (c *rtnl) setPromotion(links []int32, value uint32) error {
	refused, err := c.batch(len(links), unix.RTM_SETLINK, 0, func(b []byte, i int) []byte {
		b = append(b, unix.AF_UNSPEC, 0, 0, 0)
		b = binary.NativeEndian.AppendUint32(b, uint32(links[i]))
		b = append(b, make([]byte, unix.SizeofIfInfomsg-8)...)
		return nlmsg.AppendNested(b, unix.IFLA_AF_SPEC, func(b []byte) []byte {
			return nlmsg.AppendNested(b, unix.AF_INET, func(b []byte) []byte {
				return nlmsg.AppendNested(b, iflaInetConf, func(b []byte) []byte {
					return nlmsg.AppendAttr(b, ipv4PromoteSecondaries, binary.NativeEndian.AppendUint32(nil, value))
				})
			})
		})
	})
	for _, why := range refused {
		err = errors.Join(err, why)
	}
	return err
}
