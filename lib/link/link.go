// Package link knows whether an interface can carry the election: that it
// exists, is up, has a carrier and holds the configured address. It follows the
// kernel's messages; it never polls.
package link

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Want is what an interface must have to carry the election.
type Want struct {
	Name  string
	Local []netip.Addr // the addresses that should be there
	// LinkLocal asks for a link-local address of IPv6 besides, other than those
	// in Not: adverts over multicast come from one (RFC 9568 section 5.1.2.1).
	LinkLocal bool
	Not       []netip.Addr

	prefer netip.Addr // the link-local address to stay with
}

// State is what is known of one interface and the addresses that should be on it.
type State struct {
	Name      string
	Index     int // 0: there is no such interface
	MAC       net.HardwareAddr
	Up        bool // administratively
	Carrier   bool // the cable, or what stands for it
	Local     []Local
	LinkLocal *Local // nil if none is wanted
}

// Local is an address that should be on the interface.
type Local struct {
	Addr   netip.Addr
	Prefix netip.Prefix // as it stands
	Use    Use
	Others []netip.Addr // what stands there of its family instead, at most a few, for the message

	deprecated bool // of IPv6: not for connections of the node's own
}

// Use tells what an address is good for.
type Use uint8

const (
	Absent    Use = iota
	Tentative     // of IPv6: Linux still looks for a duplicate (RFC 4862 section 5.4)
	Duplicate     // of IPv6: it found one
	Usable
)

// better tells whether a link-local address, which Linux lists after o, is rather the
// node's own. A virtual one of Skudonet came later, which is to say stands first, and
// as we add it it is deprecated; and a node stays with what it has.
func (l Local) better(o Local, prefer netip.Addr) bool {
	switch {
	case l.Use != o.Use:
		return l.Use > o.Use
	case l.deprecated != o.deprecated:
		return o.deprecated
	}
	return o.Addr != prefer
}

// Has tells whether the address is there and can be used.
func (l Local) Has() bool { return l.Use == Usable }

// Fault says in words why the interface cannot carry the election, or "" when
// it can. carrierOnly is true when nothing but the carrier is missing.
func (s State) Fault() (words string, carrierOnly bool) {
	noCarrier := fmt.Sprintf("%s has no carrier; check the cable and the switch port", s.Name)
	switch {
	case s.Index == 0:
		return fmt.Sprintf("there is no interface %s; is $interface right?", s.Name), false
	case !s.Up:
		return fmt.Sprintf("%s is down; waiting for: ip link set %s up", s.Name, s.Name), false
	}
	locals := s.Local
	if s.LinkLocal != nil {
		locals = append(slices.Clip(locals), *s.LinkLocal)
	}
	for i, l := range locals {
		switch {
		case l.Use == Tentative && !s.Carrier:
			return noCarrier, false
		case !l.Has():
			return l.fault(s.Name, i == len(s.Local)), false
		}
	}
	if !s.Carrier {
		return noCarrier, true
	}
	return "", false
}

func (l Local) fault(link string, linkLocal bool) string {
	name, family := fmt.Sprintf("$local_ip %s", l.Addr), "IPv4"
	if l.Addr.Is6() {
		family = "IPv6"
	}
	if linkLocal {
		name = fmt.Sprintf("the link-local address %s", l.Addr)
	}
	switch {
	case l.Use == Tentative:
		return fmt.Sprintf("%s is not usable on %s yet, because Linux looks for a duplicate of it first", name, link)
	case l.Use == Duplicate:
		return fmt.Sprintf("%s is not usable on %s, because another host has it", name, link)
	case linkLocal:
		return fmt.Sprintf("%s has no link-local IPv6 address, from which advertisements come; is net.ipv6.conf.%s.disable_ipv6 set?", link, link)
	case len(l.Others) == 0:
		return fmt.Sprintf("%s has no %s address, %s is expected there", link, family, name)
	}
	return fmt.Sprintf("%s is not on %s, which has %s", name, link, join(l.Others))
}

func join(addrs []netip.Addr) string {
	words := make([]string, len(addrs))
	for i, a := range addrs {
		words[i] = a.String()
	}
	return strings.Join(words, ", ")
}

// Addresses lists the addresses of an interface.
func Addresses(name string) ([]netip.Addr, error) {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return nil, err
	}
	list, err := addresses(l, netlink.FAMILY_ALL)
	if err != nil {
		return nil, err
	}
	addrs := make([]netip.Addr, 0, len(list))
	for _, a := range list {
		addrs = append(addrs, addrOf(a.IPNet))
	}
	return addrs, nil
}

// addresses lists those of an interface. For a while after thousands of IPv6 have
// come, somewhere, the list changes faster than it can be read.
func addresses(l netlink.Link, family int) (list []netlink.Addr, err error) {
	for pause := time.Millisecond; pause < 300*time.Millisecond; pause *= 2 {
		if list, err = netlink.AddrList(l, family); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
		time.Sleep(pause)
	}
	return list, err
}

// Look reads the present state of an interface.
func Look(want Want) (State, error) {
	s := State{Name: want.Name}
	families := []int{}
	add := func(family int) {
		if !slices.Contains(families, family) {
			families = append(families, family)
		}
	}
	for _, a := range want.Local {
		s.Local = append(s.Local, Local{Addr: a})
		if a.Is4() {
			add(netlink.FAMILY_V4)
		} else {
			add(netlink.FAMILY_V6)
		}
	}
	if want.LinkLocal {
		s.LinkLocal = &Local{}
		add(netlink.FAMILY_V6)
	}
	l, err := netlink.LinkByName(want.Name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return s, nil
	}
	if err != nil {
		return s, fmt.Errorf("look at interface %s: %w", want.Name, err)
	}
	s.setLink(l.Attrs())
	for _, family := range families {
		list, err := addresses(l, family)
		if err != nil {
			return s, fmt.Errorf("list the addresses of %s: %w", want.Name, err)
		}
		for _, a := range list {
			s.addAddress(want, prefix(a.IPNet), a.Flags)
		}
	}
	return s, nil
}

func (s *State) setLink(a *netlink.LinkAttrs) {
	s.Index, s.MAC = a.Index, a.HardwareAddr
	s.Up = a.RawFlags&unix.IFF_UP != 0
	s.Carrier = a.RawFlags&unix.IFF_LOWER_UP != 0 && a.RawFlags&unix.IFF_RUNNING != 0
}

const othersShown = 3

func (s *State) addAddress(want Want, p netip.Prefix, flags int) {
	use := Usable
	switch {
	case p.Addr().Is4():
	case flags&unix.IFA_F_DADFAILED != 0:
		use = Duplicate
	case flags&unix.IFA_F_TENTATIVE != 0:
		use = Tentative
	}
	linkLocal := p.Addr().Is6() && p.Addr().IsLinkLocalUnicast()
	for i := range s.Local {
		l := &s.Local[i]
		switch {
		case p.Addr() == l.Addr:
			l.Use, l.Prefix = use, p
		case p.Addr().Is4() == l.Addr.Is4() && linkLocal == (l.Addr.Is6() && l.Addr.IsLinkLocalUnicast()) && len(l.Others) < othersShown:
			l.Others = append(l.Others, p.Addr())
		}
	}
	if l := s.LinkLocal; l != nil && linkLocal && !slices.Contains(want.Not, p.Addr()) {
		c := Local{Addr: p.Addr(), Use: use, Prefix: p, deprecated: flags&unix.IFA_F_DEPRECATED != 0}
		if c.better(*l, want.prefer) {
			*l = c
		}
	}
}

func prefix(n *net.IPNet) netip.Prefix {
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(addrOf(n), ones)
}

func addrOf(n *net.IPNet) netip.Addr {
	ip, _ := netip.AddrFromSlice(n.IP)
	return ip.Unmap()
}

// Watcher tells of changes.
type Watcher struct {
	// State is called with the state of the cluster's interface: first as it
	// is, then whenever it has changed.
	State func(State)
	// Removed is called when any address was taken off any interface.
	Removed func(netip.Addr)
	// Links is called when a link appeared, vanished, or went up or down.
	Links func()
	// Trouble is called with an error that will be retried.
	Trouble func(error)
}

// The kernel's messages of some thousand addresses that come at once fit into
// this buffer; if they should not, everything is read anew.
const messageBuffer = 4 << 20

// Watch calls back until ctx ends, from one goroutine. It begins anew by itself
// when messages were lost.
func (w Watcher) Watch(ctx context.Context, want Want) {
	for delay := 10 * time.Millisecond; ctx.Err() == nil; delay = min(2*delay, 5*time.Second) {
		began := time.Now()
		err := w.watchOnce(ctx, want)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > 10*time.Second {
			delay = 10 * time.Millisecond
		}
		w.Trouble(fmt.Errorf("watch interface %s: %w; reading everything anew", want.Name, err))
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return
		}
	}
}

func (w Watcher) watchOnce(ctx context.Context, want Want) error {
	done := make(chan struct{})
	defer close(done)
	failed := make(chan error, 2)
	fail := func(err error) {
		select {
		case failed <- err:
		default:
		}
	}
	links := make(chan netlink.LinkUpdate, 64)
	if err := netlink.LinkSubscribeWithOptions(links, done, netlink.LinkSubscribeOptions{
		ErrorCallback: fail, ReceiveBufferSize: messageBuffer, ReceiveBufferForceSize: true}); err != nil {
		return err
	}
	addrs := make(chan netlink.AddrUpdate, 256)
	if err := netlink.AddrSubscribeWithOptions(addrs, done, netlink.AddrSubscribeOptions{
		ErrorCallback: fail, ReceiveBufferSize: messageBuffer, ReceiveBufferForceSize: true}); err != nil {
		return err
	}
	// Subscribed first, read second: no change falls in between.
	s, err := Look(want)
	if err != nil {
		return err
	}
	w.State(s)
	w.Links() // and whatever else changed while nobody watched
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-failed:
			return err
		case u, ok := <-links:
			if !ok {
				return errors.New("the kernel's messages about links ended")
			}
			w.Links()
			if u.Attrs().Name != want.Name && u.Attrs().Index != s.Index {
				continue
			}
		case u, ok := <-addrs:
			if !ok {
				return errors.New("the kernel's messages about addresses ended")
			}
			ip := addrOf(&u.LinkAddress)
			if !u.NewAddr {
				w.Removed(ip)
			}
			if u.LinkIndex != s.Index || !want.concerns(ip) {
				continue
			}
		}
		// A message is old news when several wait: what counts is what is there now.
		if s.LinkLocal != nil {
			want.prefer = s.LinkLocal.Addr
		}
		now, err := Look(want)
		if err != nil {
			return err
		}
		if !now.same(s) {
			w.State(now)
		}
		s = now
	}
}

func (w Want) concerns(ip netip.Addr) bool {
	return slices.Contains(w.Local, ip) || w.LinkLocal && ip.Is6() && ip.IsLinkLocalUnicast()
}

func (s State) same(o State) bool {
	return s.Index == o.Index && s.Up == o.Up && s.Carrier == o.Carrier && s.MAC.String() == o.MAC.String() &&
		slices.EqualFunc(s.Local, o.Local, Local.same) && (s.LinkLocal == nil || s.LinkLocal.same(*o.LinkLocal))
}

// SameLinkLocal tells whether o has the same link-local address.
func (s State) SameLinkLocal(o State) bool {
	return s.LinkLocal == nil || o.LinkLocal == nil || s.LinkLocal.Addr == o.LinkLocal.Addr
}

func (l Local) same(o Local) bool { return l.Addr == o.Addr && l.Use == o.Use && l.Prefix == o.Prefix }
