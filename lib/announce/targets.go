package announce

import (
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"

	"github.com/skudonet/skudonet-ce-cluster/lib/address"
)

// Targets finds where each address is announced: its link's index and MAC, now.
// The error says which addresses are left out because their link is not there
// or has no MAC.
func Targets(list []address.Address) ([]Target, error) {
	links := map[string]*netlink.LinkAttrs{}
	routers := map[string]bool{}
	targets := make([]Target, 0, len(list))
	var failed []error
	for _, a := range list {
		l, looked := links[a.Link]
		if !looked {
			if found, err := netlink.LinkByName(a.Link); err == nil && len(found.Attrs().HardwareAddr) == 6 {
				l = found.Attrs()
			}
			links[a.Link] = l
		}
		if l == nil {
			failed = append(failed, fmt.Errorf("%s: no Ethernet interface %s", a, a.Link))
			continue
		}
		t := Target{Link: l.Index, MAC: l.HardwareAddr, Addr: a.Prefix.Addr().Unmap()}
		if t.Addr.Is6() {
			forwards, looked := routers[a.Link]
			if !looked {
				forwards = forwardsIPv6(a.Link)
				routers[a.Link] = forwards
			}
			t.Router = forwards
		}
		targets = append(targets, t)
	}
	return targets, errors.Join(failed...)
}

// forwardsIPv6 tells whether the kernel's own advertisements on the link say that it is a router.
func forwardsIPv6(link string) bool {
	value, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + link + "/forwarding")
	return err == nil && len(value) > 0 && value[0] != '0'
}
