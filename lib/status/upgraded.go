package status

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/skudonet/skudonet-ce-cluster/lib/durable"
	"github.com/skudonet/skudonet-ce-cluster/lib/smallfile"
)

// upgradedFile is the file in the run directory by which the replicator tells the
// daemon that it has met the peer's skd-vrrpd. A backup is silent, so that the
// daemon itself may not know.
const upgradedFile = "peer-upgraded"

// NotePeerUpgraded tells the daemon of this node that skd-vrrpd runs on the peer.
// That it is installed there is not enough: ucarp goes on beside it until the
// service is started anew.
func NotePeerUpgraded(runDir string, peer netip.Addr) error {
	return durable.WriteFile(filepath.Join(runDir, upgradedFile), fmt.Appendln(nil, peer), 0o644)
}

// ForgetPeerUpgraded takes that back.
func ForgetPeerUpgraded(runDir string) error {
	err := os.Remove(filepath.Join(runDir, upgradedFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// PeerUpgraded tells whether that was said of this peer since the machine booted.
func PeerUpgraded(runDir string, peer netip.Addr) bool {
	b, err := smallfile.Read(filepath.Join(runDir, upgradedFile), 64)
	return err == nil && strings.TrimSpace(string(b)) == peer.String()
}
