package announce

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"

	"github.com/skudonet/skudonet-ce-cluster/lib/address"
)

// Targets finds where each address is announced: its link's index and MAC, now.
// The error says which addresses are left out because their link is not there
// or has no MAC.
func Targets(list []address.Address) ([]Target, error) {
	links := map[string]*netlink.LinkAttrs{}
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
		targets = append(targets, Target{Link: l.Index, MAC: l.HardwareAddr, Addr: a.Prefix.Addr()})
	}
	return targets, errors.Join(failed...)
}
