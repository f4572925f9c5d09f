package node

import (
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skudonet/skudonet-ce-cluster/lib/conf"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
)

// What is known comes from three places, each of which may be missing.
func TestSurvey(t *testing.T) {
	cluster := netip.MustParseAddr("192.168.1.252")
	whole := conf.Config{Interface: "eth0", ClusterIP: cluster}
	const web, file = "192.168.1.253/24 on eth0 (eth0:web)", "[eth0:web]\naddr=192.168.1.253\nmask=255.255.255.0\nstatus=up\n"
	said := &status.Daemon{Interface: "eth1", Addresses: []status.Address{
		{Prefix: "192.168.1.252/24", Label: "eth0:skd"}, {Prefix: "192.168.1.253/24", Label: "eth0:web"}, {Prefix: "10.0.0.1/8"}, {Prefix: "nonsense"}}}
	for name, c := range map[string]struct {
		conf  conf.Config
		said  *status.Daemon
		tree  bool
		known string
		iface string
		ip    netip.Addr
	}{
		"nothing":            {known: ""},
		"configuration":      {conf: whole, known: "192.168.1.252/32 on eth0 (eth0:skd)", iface: "eth0", ip: cluster},
		"tree":               {tree: true, known: web},
		"the last daemon":    {said: said, known: "192.168.1.252/24 on eth0 (eth0:skd), " + web + ", 10.0.0.1/8 on eth1", iface: "eth1", ip: cluster},
		"all, and no double": {conf: whole, said: said, tree: true, known: "192.168.1.252/32 on eth0 (eth0:skd), " + web + ", 10.0.0.1/8 on eth1", iface: "eth0", ip: cluster},
		"both families": {conf: conf.Config{Interface: "eth0", ClusterIP: cluster, Second: conf.Addresses{ClusterIP: netip.MustParseAddr("fd77::100")}},
			said:  &status.Daemon{Interface: "eth0", Addresses: []status.Address{{Prefix: "fd77::100/64", Label: "eth0:skd"}, {Prefix: "fd77::80/64", Label: "eth0:web"}}},
			known: "192.168.1.252/32 on eth0 (eth0:skd), fd77::100/128 on eth0 (eth0:skd), fd77::80/64 on eth0 (eth0:web)", iface: "eth0", ip: cluster},
	} {
		dir := t.TempDir()
		c.conf.ConfigDir = dir
		if c.tree {
			os.WriteFile(filepath.Join(dir, "if_eth0:web_conf"), []byte(file), 0o644)
		}
		if c.said != nil {
			if err := c.said.WriteFile(filepath.Join(dir, status.DaemonFile)); err != nil {
				t.Fatal(err)
			}
		}
		r := Survey(c.conf, Places{RunDir: dir}, slog.New(slog.DiscardHandler))
		if got := names(r.known); got != c.known {
			t.Errorf("%s: %s, want %s", name, got, c.known)
		}
		if r.conf.Interface != c.iface || r.conf.ClusterIP != c.ip {
			t.Errorf("%s: $interface %q, $cluster_ip %s; want %q, %s", name, r.conf.Interface, r.conf.ClusterIP, c.iface, c.ip)
		}
	}
}

func TestSurveySaysWhatItCannotRead(t *testing.T) {
	dir := t.TempDir()
	os.WriteFile(filepath.Join(dir, status.DaemonFile), []byte("{half"), 0o644)
	var log strings.Builder
	r := Survey(conf.Config{ConfigDir: filepath.Join(dir, "none")}, Places{RunDir: dir}, slog.New(slog.NewTextHandler(&log, nil)))
	for _, words := range []string{"what the last daemon said cannot be read", "cannot list the configuration tree"} {
		if !strings.Contains(log.String(), words) {
			t.Errorf("the log does not say %q:\n%s", words, log.String())
		}
	}
	if n, err := r.Guard(); n != 0 || err != nil {
		t.Errorf("a guard for %d addresses, %v; want none", n, err)
	}
}
