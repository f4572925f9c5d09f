package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// port of the switch, for a link of a machine.
type port struct {
	node *Node
	link int
}

// cable is what was once plugged into a port.
type cable struct {
	port
	off time.Time // the machine lost its power, zero while it has some
}

// silence notes that nothing that comes from the machine's cables from now on was sent by it.
func (l *Lab) silence(n *Node) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.cables {
		if c.node == n && c.off.IsZero() {
			c.off = now
		}
	}
}

// mac is fixed, so that captures read well and a machine keeps its MAC over a power cut.
func (n *Node) mac(link int) net.HardwareAddr {
	return net.HardwareAddr{2, 0, 0, 0, 0x77 + byte(link), n.host}
}

func (n *Node) portName(link int) string { return n.Name + "-" + interfaceName(link) }

func interfaceName(link int) string { return fmt.Sprintf("eth%d", link) }

func bridgeName(link int) string { return fmt.Sprintf("br%d", link) }

// quarantine is a bridge that is down, for isolated ports: it forwards nothing, whatever happens to their carrier. (A
// port of br0 that was merely disabled would be enabled again by the next change of its carrier.)
const quarantine = "quarantine"

// layBridges runs in the switch's network.
func (l *Lab) layBridges() error {
	if err := raise("lo"); err != nil {
		return err
	}
	for link := range l.options.Links {
		if err := addBridge(bridgeName(link), l.Switch.mac(link)); err != nil {
			return err
		}
		if err := setAddr(bridgeName(link), l.Switch.Addr(link)); err != nil {
			return err
		}
		if err := l.setAddr6(bridgeName(link), l.Switch.Addr6(link)); err != nil {
			return err
		}
	}
	return addBridge(quarantine, nil)
}

func addBridge(name string, mac net.HardwareAddr) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = name, mac
	// Without a querier in the network a snooping bridge forgets who wants multicast.
	snooping := false
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}); err != nil {
		return fmt.Errorf("bridge %s: %w", name, err)
	}
	return nil
}

func raise(name string) error {
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		return fmt.Errorf("%s up: %w", name, err)
	}
	return nil
}

// setAddr raises an interface and gives it its own address.
func setAddr(name string, addr netip.Addr) error {
	if err := raise(name); err != nil {
		return err
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	ipNet := net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(24, 32)}
	if addr.Is6() {
		ipNet.Mask = net.CIDRMask(64, 128)
	}
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: &ipNet}); err != nil {
		return fmt.Errorf("%s: add %s: %w", name, addr, err)
	}
	return nil
}

// setAddr6 gives an interface its address of IPv6, in a lab that has that. Without a search for duplicates, which takes
// a second or two, it can be used at once.
func (l *Lab) setAddr6(name string, addr netip.Addr) error {
	if l.options.Families == IPv4 {
		return nil
	}
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/accept_dad", []byte("0"), 0); err != nil {
		return err
	}
	// A link-local address that was made before is tentative still.
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetDown(link)
	}
	if err != nil {
		return err
	}
	return setAddr(name, addr)
}

// plug gives the machine its interface for a link, a cable and a port on the switch.
func (n *Node) plug(b *boot, link int) error {
	err := n.lab.Switch.within(netNamespace, func() error {
		bridge, err := netlink.LinkByName(bridgeName(link))
		if err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MasterIndex = n.portName(link), bridge.Attrs().Index
		veth := &netlink.Veth{
			LinkAttrs: attrs, PeerName: interfaceName(link), PeerHardwareAddr: n.mac(link),
			PeerNamespace: netlink.NsPid(b.pid),
		}
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("cable: %w", err)
		}
		n.lab.mu.Lock()
		n.lab.cables[veth.Attrs().Index] = &cable{port: port{n, link}}
		n.lab.wired[port{n, link}] = true
		n.lab.mu.Unlock()
		return netlink.LinkSetUp(veth)
	})
	if err != nil {
		return err
	}
	err = b.within(netNamespace, func() error {
		if err := raise("lo"); err != nil {
			return err
		}
		if err := n.lab.setAddr6(interfaceName(link), n.Addr6(link)); err != nil {
			return err
		}
		if err := setAddr(interfaceName(link), n.Addr(link)); err != nil {
			return err
		}
		if link > 0 {
			return nil
		}
		return netlink.RouteReplace(&netlink.Route{Gw: n.lab.Switch.Addr(0).AsSlice()})
	})
	if err != nil {
		return err
	}
	return n.settle(b, link)
}

// settle waits until frames pass between the machine and the switch: the kernel tells the bridge of a carrier in its own
// time.
func (n *Node) settle(b *boot, link int) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return Await(ctx, "the carrier", func() (ok bool, seen string) {
		err := b.within(netNamespace, func() error {
			card, err := netlink.LinkByName(interfaceName(link))
			if err != nil {
				return err
			}
			flags := card.Attrs().RawFlags
			if flags&unix.IFF_UP == 0 {
				ok = true // The machine itself has set it down.
				return nil
			}
			// The bridge knows best: what the link says of itself may be old news.
			const forwarding = "3"
			state, err := n.lab.Switch.ReadFile("/sys/class/net/" + n.portName(link) + "/brport/state")
			state = strings.TrimSpace(state)
			ok = flags&unix.IFF_LOWER_UP != 0 && card.Attrs().OperState == netlink.OperUp && state == forwarding
			seen = fmt.Sprintf("card %s, port in state %s of linux/if_bridge.h", card.Attrs().OperState, state)
			return err
		})
		if err != nil {
			return false, err.Error()
		}
		return ok, seen
	})
}

// onPorts runs f in the switch's network for the machine's port of each link, eth0 if none is named.
func (n *Node) onPorts(links []int, f func(port netlink.Link, link int) error) error {
	return n.lab.Switch.within(netNamespace, func() error {
		for _, link := range orFirst(links) {
			found, err := netlink.LinkByName(n.portName(link))
			if err == nil {
				err = f(found, link)
			}
			if err != nil {
				return fmt.Errorf("%s: %s: %w", n.Name, interfaceName(link), err)
			}
		}
		return nil
	})
}

func orFirst(links []int) []int {
	if len(links) == 0 {
		return []int{0}
	}
	return links
}

// cables are the machine's links that have a port on the switch.
func (n *Node) cables() (links []int) {
	n.lab.mu.Lock()
	defer n.lab.mu.Unlock()
	for p := range n.lab.wired {
		if p.node == n {
			links = append(links, p.link)
		}
	}
	return links
}

// Cut pulls the cable of links, counted from 0; eth0 if none is named: the machine sees no carrier.
func (n *Node) Cut(links ...int) error {
	return n.onPorts(links, func(port netlink.Link, _ int) error { return netlink.LinkSetDown(port) })
}

// Isolate has the switch drop every frame from and to links of the machine, eth0 if none is named. The machine keeps its
// carrier.
func (n *Node) Isolate(links ...int) error {
	return n.onPorts(links, func(port netlink.Link, _ int) error { return join(port, quarantine) })
}

func join(port netlink.Link, bridge string) error {
	to, err := netlink.LinkByName(bridge)
	if err != nil || to.Attrs().Index == port.Attrs().MasterIndex {
		return err
	}
	return netlink.LinkSetMaster(port, to)
}

// Heal undoes [Node.Cut] and [Node.Isolate]. When it returns, frames pass, unless the machine has set its interface
// down.
func (n *Node) Heal(links ...int) error {
	err := n.onPorts(links, func(port netlink.Link, link int) error {
		if err := join(port, bridgeName(link)); err != nil {
			return err
		}
		return netlink.LinkSetUp(port)
	})
	if err != nil {
		return err
	}
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.boot == nil {
		return fmt.Errorf("%s: %w", n.Name, ErrNoPower)
	}
	for _, link := range orFirst(links) {
		if err := n.settle(n.boot, link); err != nil {
			return fmt.Errorf("%s: %s: %w", n.Name, interfaceName(link), err)
		}
	}
	return nil
}

// Remove takes the network cards of links, eth0 if none is named, out of the machine: the interfaces disappear.
func (n *Node) Remove(links ...int) error {
	n.lab.mu.Lock()
	for _, link := range orFirst(links) {
		delete(n.lab.wired, port{n, link})
	}
	n.lab.mu.Unlock()
	return n.onPorts(links, func(found netlink.Link, _ int) error { return netlink.LinkDel(found) })
}

// Insert undoes [Node.Remove]: interfaces of the same name and MAC, up, with the machine's own address.
func (n *Node) Insert(links ...int) error {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.boot == nil {
		return fmt.Errorf("%s: %w", n.Name, ErrNoPower)
	}
	for _, link := range orFirst(links) {
		if err := n.plug(n.boot, link); err != nil {
			return fmt.Errorf("%s: %s: %w", n.Name, interfaceName(link), err)
		}
	}
	return nil
}
