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
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// State is what is known of one interface and one address that should be on it.
type State struct {
	Name    string
	Index   int // 0: there is no such interface
	MAC     net.HardwareAddr
	Up      bool // administratively
	Carrier bool // the cable, or what stands for it
	Prefix  netip.Prefix
	Local   netip.Addr   // the address that should be there
	Has     bool         // it is; Prefix is its prefix
	Others  []netip.Addr // what stands there instead, at most a few, for the message
}

// Fault says in words why the interface cannot carry the election, or "" when
// it can. carrierOnly is true when nothing but the carrier is missing.
func (s State) Fault() (words string, carrierOnly bool) {
	switch {
	case s.Index == 0:
		return fmt.Sprintf("there is no interface %s; is $interface right?", s.Name), false
	case !s.Up:
		return fmt.Sprintf("%s is down; waiting for: ip link set %s up", s.Name, s.Name), false
	case !s.Has && len(s.Others) == 0:
		return fmt.Sprintf("%s has no IPv4 address, $local_ip %s is expected there", s.Name, s.Local), false
	case !s.Has:
		return fmt.Sprintf("$local_ip %s is not on %s, which has %s", s.Local, s.Name, join(s.Others)), false
	case !s.Carrier:
		return fmt.Sprintf("%s has no carrier; check the cable and the switch port", s.Name), true
	}
	return "", false
}

func join(addrs []netip.Addr) string {
	words := make([]string, len(addrs))
	for i, a := range addrs {
		words[i] = a.String()
	}
	return strings.Join(words, ", ")
}

// Addresses lists the IPv4 addresses of an interface.
func Addresses(name string) ([]netip.Addr, error) {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return nil, err
	}
	list, err := netlink.AddrList(l, netlink.FAMILY_V4)
	if err != nil {
		return nil, err
	}
	addrs := make([]netip.Addr, 0, len(list))
	for _, a := range list {
		if ip, ok := netip.AddrFromSlice(a.IP.To4()); ok {
			addrs = append(addrs, ip)
		}
	}
	return addrs, nil
}

// Look reads the present state of an interface.
func Look(name string, local netip.Addr) (State, error) {
	s := State{Name: name, Local: local}
	l, err := netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return s, nil
	}
	if err != nil {
		return s, fmt.Errorf("look at interface %s: %w", name, err)
	}
	s.setLink(l.Attrs())
	list, err := netlink.AddrList(l, netlink.FAMILY_V4)
	if err != nil {
		return s, fmt.Errorf("list the addresses of %s: %w", name, err)
	}
	for _, a := range list {
		s.addAddress(a.IPNet)
	}
	return s, nil
}

func (s *State) setLink(a *netlink.LinkAttrs) {
	s.Index, s.MAC = a.Index, a.HardwareAddr
	s.Up = a.RawFlags&unix.IFF_UP != 0
	s.Carrier = a.RawFlags&unix.IFF_LOWER_UP != 0 && a.RawFlags&unix.IFF_RUNNING != 0
}

const othersShown = 3

func (s *State) addAddress(n *net.IPNet) {
	p := prefix(n)
	switch {
	case p.Addr() == s.Local:
		s.Has, s.Prefix = true, p
	case len(s.Others) < othersShown:
		s.Others = append(s.Others, p.Addr())
	}
}

func prefix(n *net.IPNet) netip.Prefix {
	ip, _ := netip.AddrFromSlice(n.IP.To4())
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(ip, ones)
}

// Watcher tells of changes.
type Watcher struct {
	// State is called with the state of the cluster's interface: first as it
	// is, then whenever it has changed.
	State func(State)
	// Removed is called when any IPv4 address was taken off any interface.
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
func (w Watcher) Watch(ctx context.Context, name string, local netip.Addr) {
	for delay := 10 * time.Millisecond; ctx.Err() == nil; delay = min(2*delay, 5*time.Second) {
		began := time.Now()
		err := w.watchOnce(ctx, name, local)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > 10*time.Second {
			delay = 10 * time.Millisecond
		}
		w.Trouble(fmt.Errorf("watch interface %s: %w; reading everything anew", name, err))
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return
		}
	}
}

func (w Watcher) watchOnce(ctx context.Context, name string, local netip.Addr) error {
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
	s, err := Look(name, local)
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
			if u.Attrs().Name != name && u.Attrs().Index != s.Index {
				continue
			}
		case u, ok := <-addrs:
			if !ok {
				return errors.New("the kernel's messages about addresses ended")
			}
			ip, isV4 := netip.AddrFromSlice(u.LinkAddress.IP.To4())
			if !isV4 {
				continue
			}
			if !u.NewAddr {
				w.Removed(ip)
			}
			if u.LinkIndex != s.Index || ip != local {
				continue
			}
		}
		// A message is old news when several wait: what counts is what is there now.
		now, err := Look(name, local)
		if err != nil {
			return err
		}
		if !now.same(s) {
			w.State(now)
		}
		s = now
	}
}

func (s State) same(o State) bool {
	return s.Index == o.Index && s.Up == o.Up && s.Carrier == o.Carrier && s.Has == o.Has &&
		s.Prefix == o.Prefix && s.MAC.String() == o.MAC.String()
}
