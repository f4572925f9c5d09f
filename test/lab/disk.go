package lab

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

//go:embed stub
var stub embed.FS

// furnish fills the new disk of a machine: names, Skudonet's stand-in and configuration tree, the hooks, the
// cluster's configuration.
func (n *Node) furnish() error {
	hosts := "127.0.0.1\tlocalhost\n"
	for _, other := range n.lab.machines() {
		hosts += fmt.Sprintf("%s\t%s\n", other.Addr(0), other.Name)
	}
	root := n.rootDir()
	files := []struct {
		path, text string
		mode       fs.FileMode
	}{
		{"/etc/hostname", n.Name + "\n", 0o644},
		{"/etc/hosts", hosts, 0o644},
	}
	for _, dir := range []string{"bin", "sbin", "lib", "share"} {
		if err := os.MkdirAll(filepath.Join(root, "usr/local", dir), 0o755); err != nil {
			return err
		}
	}
	if n == n.lab.Client {
		return writeAll(root, files)
	}
	for _, dir := range []string{"bin", "share", "backups", "config/certificates", "config/local", "config/ipds/waf/sets",
		"app/ucarp/etc", "app/ucarp/sbin", "app/skdinotify"} {
		if err := os.MkdirAll(filepath.Join(root, "usr/local/skudonet", dir), 0o755); err != nil {
			return err
		}
	}
	for _, dir := range []string{"/etc/init.d", "/etc/network", "/etc/default", "/etc/iproute2"} {
		if err := os.MkdirAll(root+dir, 0o755); err != nil {
			return err
		}
	}
	stubFile := func(name string) string {
		text, err := stub.ReadFile("stub/" + name)
		if err != nil {
			panic(err)
		}
		return string(text)
	}
	files = append(files, []struct {
		path, text string
		mode       fs.FileMode
	}{
		{"/etc/init.d/skudonet", stubFile("init"), 0o755},
		{"/usr/local/skudonet/bin/skudonet", stubFile("skudonet"), 0o755},
		{"/usr/local/skudonet/bin/stubd", stubFile("stubd"), 0o755},
		{"/usr/local/skudonet/share/global.conf", stubFile("global.conf"), 0o644},
		{TreePath + "/global.conf", stubFile("global.conf"), 0o644},
		{TreePath + "/zlb-start", "#!/bin/bash\n# called at the end of a start\n", 0o755},
		{TreePath + "/zlb-stop", "#!/bin/bash\n# called at the end of a stop\n", 0o755},
		// As Skudonet leaves them once it owns the NICs.
		{RTTablesPath, "255\tlocal\n254\tmain\n253\tdefault\n0\tunspec\n200\ttable_eth0\n", 0o644},
		{"/etc/network/interfaces", "#zenmodified\nauto lo\niface lo inet loopback\n", 0o644},
	}...)
	if err := writeAll(root, files); err != nil {
		return err
	}
	for link := range n.lab.options.Links {
		name := fmt.Sprintf("eth%d", link)
		addr := n.Addr(link)
		if n.lab.options.Families == IPv6 {
			addr = n.Addr6(link)
		}
		if err := n.WriteInterface(name, addr, true); err != nil {
			return err
		}
	}
	cluster := ClusterIP
	if n.lab.options.Families == IPv6 {
		cluster = ClusterIP6
	}
	if err := n.WriteInterface("eth0:1", cluster, true); err != nil {
		return err
	}
	if err := n.installHooks(root); err != nil {
		return err
	}
	return n.Configure(nil)
}

func writeAll(root string, files []struct {
	path, text string
	mode       fs.FileMode
}) error {
	for _, f := range files {
		if err := writeIn(root, f.path, f.text, f.mode); err != nil {
			return err
		}
	}
	return nil
}

func (n *Node) installHooks(root string) error {
	if n.lab.options.HooksDir == "" {
		return nil
	}
	for _, event := range []string{"start", "stop", "advertisement"} {
		name := "skudonet-ce-cluster-" + event
		text, err := os.ReadFile(filepath.Join(n.lab.options.HooksDir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if err := writeIn(root, "/usr/local/skudonet/app/ucarp/sbin/"+name, string(text), 0o755); err != nil {
			return err
		}
	}
	return nil
}

// WriteInterface writes the file of a network interface (eth0) or a virtual one (eth0:1) into Skudonet's tree. It
// changes no address by itself.
func (n *Node) WriteInterface(name string, addr netip.Addr, up bool) error {
	status := "down"
	if up {
		status = "up"
	}
	mask := "255.255.255.0"
	if addr.Is6() {
		mask = "64"
	}
	text := fmt.Sprintf("[%s]\naddr=%s\ndhcp=false\ngateway=\nmac=\nmask=%s\nname=%s\nstatus=%s\n",
		name, addr, mask, name, status)
	return n.WriteFile(fmt.Sprintf("%s/if_%s_conf", TreePath, name), text, 0o644)
}

// addresses is what stands in the configuration for a pair of addresses.
func (l *Lab) addresses(v4, v6 netip.Addr) string {
	switch l.options.Families {
	case IPv6:
		return v6.String()
	case Both:
		return v4.String() + ", " + v6.String()
	}
	return v4.String()
}

// Omit as a value for [Node.Configure] leaves the key out.
const Omit = "\x00"

// Configure writes the node's skudonet-cluster.conf: the plain file of version 2.0 with the lab's addresses, what
// Options.Config says, and on top the given keys (without the $) and values.
func (n *Node) Configure(changes map[string]string) error {
	peer := n.lab.LB1
	if n == peer {
		peer = n.lab.LB2
	}
	plain := [][3]string{
		{"interface", "eth0", "the interface that has local_ip, and sees remote_ip"},
		{"local_ip", n.lab.addresses(n.Addr(0), n.Addr6(0)), "this node"},
		{"remote_ip", n.lab.addresses(peer.Addr(0), peer.Addr6(0)), "the other node"},
		{"password", Password, "of the cluster's protocol"},
		{"cluster_id", "1", "one number per cluster and network"},
		{"cluster_ip", n.lab.addresses(ClusterIP, ClusterIP6), "the address that moves"},
		{"exclude", "--exclude if_eth0_conf", "not replicated"},
	}
	values := maps.Clone(n.lab.options.Config)
	if values == nil {
		values = map[string]string{}
	}
	maps.Copy(values, changes)
	var text strings.Builder
	assign := func(key, value string) {
		if value != Omit {
			fmt.Fprintf(&text, "$%s=%s;\n", key, perlString(value))
		}
	}
	for _, line := range plain {
		key, value := line[0], line[1]
		if v, ok := values[key]; ok {
			value = v
			delete(values, key)
		}
		fmt.Fprintf(&text, "#%s\n", line[2])
		assign(key, value)
	}
	for _, key := range slices.Sorted(maps.Keys(values)) {
		assign(key, values[key])
	}
	return n.WriteFile(ConfigPath, text.String(), 0o600)
}

// perlString quotes as version 2.0 did, and with single quotes where Perl would see more than text.
func perlString(value string) string {
	if !strings.ContainsAny(value, "\"$@\\") {
		return `"` + value + `"`
	}
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(value) + "'"
}
