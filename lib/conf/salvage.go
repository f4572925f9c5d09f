package conf

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/skudonet/skudonet-ce-cluster/lib/smallfile"
)

// Salvage is Load for those who have to go on with a file that is broken or
// missing: a boot, and whoever cleans up. The Config has what is right of the
// file, the default of every other key, and nothing where a required key is
// wrong or missing. The error says what is wrong, as that of Load does.
//
// Of a file with errors it takes $cluster_ip only where $local_ip tells it from
// the node's own address: who takes that away cuts the node off.
func Salvage(path string) (Config, error) {
	data, err := smallfile.Read(path, maxFile)
	if err != nil {
		cfg, _, _ := parse(path, nil)
		return cfg, fmt.Errorf("configuration: %w", err)
	}
	cfg, _, errs := parse(path, data)
	if len(errs) == 0 {
		return cfg, nil
	}
	ours := []netip.Addr{cfg.LocalIP, cfg.RemoteIP, cfg.Second.LocalIP, cfg.Second.RemoteIP}
	if !cfg.LocalIP.IsValid() || slices.Contains(ours, cfg.ClusterIP) {
		cfg.ClusterIP = netip.Addr{}
	}
	if !cfg.Second.LocalIP.IsValid() || slices.Contains(ours, cfg.Second.ClusterIP) {
		cfg.Second.ClusterIP = netip.Addr{}
	}
	return cfg, errs
}
