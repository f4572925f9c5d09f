package address

import (
	"errors"
	"io/fs"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"testing/fstest"
)

var (
	clusterIP = netip.MustParseAddr("192.168.77.100")
	cluster   = Address{netip.MustParsePrefix("192.168.77.100/24"), "eth0", "eth0:skd"}
	cluster6  = Address{netip.MustParsePrefix("fd77::100/64"), "eth0", "eth0:skd"}

	prefixes = []netip.Prefix{cluster.Prefix}
)

const nic = "[eth0]\naddr=192.168.77.11\ndhcp=\ngateway=192.168.77.1\nmac=\nmask=255.255.255.0\nname=eth0\nstatus=up\n"

// virtualFile is an interface file as Skudonet writes it.
func virtualFile(name, addr, status string) string {
	return "[" + name + "]\naddr=" + addr + "\ndhcp=\ngateway=\nmac=52:54:00:00:00:01\nmask=\nname=" + name + "\nstatus=" + status + "\n"
}

func files(content ...string) fstest.MapFS {
	m := fstest.MapFS{}
	for i := 0; i < len(content); i += 2 {
		m[content[i]] = &fstest.MapFile{Data: []byte(content[i+1]), Mode: 0o644}
	}
	return m
}

func TestWanted(t *testing.T) {
	web := Address{netip.MustParsePrefix("192.168.77.80/24"), "eth0", "eth0:web"}
	for _, tt := range []struct {
		name    string
		dir     fs.FS
		want    []Address
		notices []string // a piece of each
	}{
		{"no files", files(), []Address{cluster}, nil},
		{"no tree", fstest.MapFS{}, []Address{cluster}, nil},
		{"unreadable tree", brokenFS{}, []Address{cluster}, []string{"cannot list the configuration tree: disk on fire"}},
		{"a virtual interface", files("if_eth0_conf", nic, "if_eth0:web_conf", virtualFile("eth0:web", "192.168.77.80", "up")), []Address{cluster, web}, nil},
		{"one that is down", files("if_eth0_conf", nic, "if_eth0:web_conf", virtualFile("eth0:web", "192.168.77.80", "down")), []Address{cluster}, nil},
		{"the mask comes from the parent, a VLAN", files(
			"if_eth0.7_conf", "[eth0.7]\nmask=255.255.240.0\n",
			"if_eth0.7:a_conf", "[eth0.7:a]\naddr=10.7.0.9\nmask=255.0.0.0\nstatus=up\n"),
			[]Address{cluster, {netip.MustParsePrefix("10.7.0.9/20"), "eth0.7", "eth0.7:a"}}, nil},
		{"no parent file: its own mask", files("if_eth1:a_conf", "[eth1:a]\naddr=10.7.0.9\nmask=16\nstatus=up\n"),
			[]Address{cluster, {netip.MustParsePrefix("10.7.0.9/16"), "eth1", "eth1:a"}}, nil},
		{"no mask at all", files("if_eth1:a_conf", "[eth1:a]\naddr=10.7.0.9\nstatus=up\n"),
			[]Address{cluster, {netip.MustParsePrefix("10.7.0.9/32"), "eth1", "eth1:a"}}, nil},
		{"masks that are none", files(
			"if_eth1_conf", "[eth1]\naddr=10.7.0.1\nmask=255.0.255.0\n",
			"if_eth1:a_conf", "[eth1:a]\naddr=10.7.0.9\nmask=0.0.0.0\nstatus=up\n"),
			[]Address{cluster, {netip.MustParsePrefix("10.7.0.9/32"), "eth1", "eth1:a"}},
			[]string{`if_eth1_conf: mask "255.0.255.0"`, `if_eth1:a_conf: mask "0.0.0.0"`}},
		{"CRLF, BOM, spaces, comments, another section", files("if_eth0_conf", nic, "if_eth0:web_conf",
			"\ufeff# made by hand\r\n; yes\r\n[other]\r\naddr = 10.0.0.1\r\n [ eth0:web ] \r\n addr = 192.168.77.80 \r\nstatus = up\r\nnew_key = 1"),
			[]Address{cluster, web}, nil},
		{"$cluster_ip has a file", files("if_eth0_conf", nic, "if_eth0:vip_conf", virtualFile("eth0:vip", "192.168.77.100", "up")),
			[]Address{{cluster.Prefix, "eth0", "eth0:vip"}}, nil},
		{"$cluster_ip has a file on another link", files("if_eth1_conf", "[eth1]\nmask=16\n", "if_eth1:vip_conf", virtualFile("eth1:vip", "192.168.77.100", "up")),
			[]Address{{netip.MustParsePrefix("192.168.77.100/16"), "eth1", "eth1:vip"}}, nil},
		{"$cluster_ip is the NIC's own", files("if_eth0_conf", "[eth0]\naddr=192.168.77.100\nmask=255.255.255.0\n", "if_eth0:web_conf", virtualFile("eth0:web", "192.168.77.80", "up")),
			[]Address{web}, []string{"if_eth0_conf: 192.168.77.100 is $cluster_ip and the address of eth0 itself: left alone"}},
		{"$cluster_ip is down in its file", files("if_eth0_conf", nic, "if_eth0:vip_conf", virtualFile("eth0:vip", "192.168.77.100", "down")),
			[]Address{{cluster.Prefix, "eth0", "eth0:vip"}}, []string{`if_eth0:vip_conf: status is "down", but 192.168.77.100 is $cluster_ip`}},
		{"$cluster_ip has two files, the second is up", files("if_eth0_conf", nic,
			"if_eth0:a_conf", virtualFile("eth0:a", "192.168.77.100", "down"), "if_eth0:b_conf", virtualFile("eth0:b", "192.168.77.100", "up")),
			[]Address{{cluster.Prefix, "eth0", "eth0:b"}}, nil},
		{"$cluster_ip is first", files("if_eth0_conf", nic,
			"if_eth0:web_conf", virtualFile("eth0:web", "192.168.77.80", "up"), "if_eth0:zzz_conf", virtualFile("eth0:zzz", "192.168.77.100", "up")),
			[]Address{{cluster.Prefix, "eth0", "eth0:zzz"}, web}, nil},
		{"twice on a link", files("if_eth0_conf", nic,
			"if_eth0:web_conf", virtualFile("eth0:web", "192.168.77.80", "up"), "if_eth0:www_conf", virtualFile("eth0:www", "192.168.77.80", "up")),
			[]Address{cluster, web}, []string{"if_eth0:www_conf: addr 192.168.77.80 is in if_eth0:web_conf already"}},
		{"a NIC's own address", files("if_eth0_conf", nic, "if_eth0:web_conf", virtualFile("eth0:web", "192.168.77.11", "up")),
			[]Address{cluster}, []string{"if_eth0:web_conf: addr 192.168.77.11 is the address of eth0 itself: left alone"}},
		{"names that are not interface files", files(".if_eth0:1_conf.Xy12Zz", "junk", "if_eth0:1_conf~", "junk", "if__conf", "", "global.conf", "", "xif_eth0:1_conf", ""),
			[]Address{cluster}, nil},
		{"names that cannot be", files("if_:a_conf", "", "if_eth0:_conf", "", "if_eth0:a b_conf", "", "if_eth0:0123456789ab_conf", ""),
			[]Address{cluster}, []string{"if_:a_conf: want a name", "if_eth0:0123456789ab_conf: \"eth0:0123456789ab\" is longer", "if_eth0:_conf: want a name", `"eth0:a b" is no interface name`}},
		{"contents that cannot be used", files(
			"if_eth0:a_conf", "", "if_eth0:b_conf", "[eth0:b]\nstatus=up\n", "if_eth0:c_conf", virtualFile("eth0:c", "300.1.1.1", "up"),
			"if_eth0:d_conf", virtualFile("eth0:d", "fe80::1%eth0", "up"), "if_eth0:e_conf", virtualFile("eth0:e", "224.0.0.18", "up"),
			"if_eth0:f_conf", "\x00\xff", "if_eth0:g_conf", strings.Repeat("#\n", maxFile), "if_eth0:h_conf", virtualFile("eth0:other", "10.0.0.1", "up")),
			[]Address{cluster}, []string{"no section [eth0:a]", "eth0:b_conf: no addr", `addr "300.1.1.1"`, `addr "fe80::1%eth0": want it without a zone`, "addr 224.0.0.18",
				"line 1: want key=value", "no section [eth0:f]", "larger than 64 KiB", "no section [eth0:h]"}},
		{"a stray line costs nothing", files("if_eth0_conf", nic, "if_eth0:web_conf", virtualFile("eth0:web", "192.168.77.80", "up")+"<<<<<<< HEAD\n"),
			[]Address{cluster, web}, []string{"if_eth0:web_conf: line 9: want key=value; ignored"}},
		{"not a file", fstest.MapFS{"if_eth0:a_conf": {Mode: fs.ModeNamedPipe}, "if_eth0:b_conf/x": {}},
			[]Address{cluster}, []string{"if_eth0:a_conf: not a regular file", "if_eth0:b_conf: not a regular file"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, notices := Wanted(tt.dir, prefixes, "eth0")
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("addresses\n got %v\nwant %v", got, tt.want)
			}
			said := make([]string, len(notices))
			for i, n := range notices {
				said[i] = n.String()
			}
			if len(said) != len(tt.notices) {
				t.Fatalf("notices\n got %q\nwant %q", said, tt.notices)
			}
			for i, piece := range tt.notices {
				if !strings.Contains(said[i], piece) {
					t.Errorf("notice %d is %q, want %q in it", i, said[i], piece)
				}
			}
		})
	}
}

const nic6 = "[eth0]\naddr=fd77::11\ndhcp=\ngateway=fd77::1\nmac=\nmask=64\nname=eth0\nstatus=up\n"

func TestWantedOfIPv6(t *testing.T) {
	web := Address{netip.MustParsePrefix("fd77::80/64"), "eth0", "eth0:web"}
	webFile := virtualFile("eth0:web", "fd77:0:0::80", "up")
	only, both := []netip.Prefix{cluster6.Prefix}, []netip.Prefix{cluster.Prefix, cluster6.Prefix}
	for _, tt := range []struct {
		name    string
		cluster []netip.Prefix
		dir     fs.FS
		want    []Address
		notices []string
	}{
		{"no files", only, files(), []Address{cluster6}, nil},
		{"both families", both, files(), []Address{cluster, cluster6}, nil},
		{"a virtual interface on a NIC of IPv6", only, files("if_eth0_conf", nic6, "if_eth0:web_conf", webFile), []Address{cluster6, web}, nil},
		{"the parent's mask is of the other family", both, files("if_eth0_conf", nic, "if_eth0:web_conf", webFile,
			"if_eth0:x_conf", "[eth0:x]\naddr=fd77::81\nmask=64\nstatus=up\n", "if_eth0:y_conf", "[eth0:y]\naddr=192.168.77.81\nstatus=up\n"),
			[]Address{cluster, cluster6, {netip.MustParsePrefix("fd77::80/128"), "eth0", "eth0:web"},
				{netip.MustParsePrefix("fd77::81/64"), "eth0", "eth0:x"}, {netip.MustParsePrefix("192.168.77.81/24"), "eth0", "eth0:y"}}, nil},
		{"both have files, of which one is down", both, files("if_eth0_conf", nic6,
			"if_eth0:a_conf", virtualFile("eth0:a", "fd77::100", "down"), "if_eth1:b_conf", "[eth1:b]\naddr=192.168.77.100\nmask=16\nstatus=up\n"),
			[]Address{{netip.MustParsePrefix("192.168.77.100/16"), "eth1", "eth1:b"}, {cluster6.Prefix, "eth0", "eth0:a"}},
			[]string{`if_eth0:a_conf: status is "down", but fd77::100 is $cluster_ip`}},
		{"one is the NIC's own", both, files("if_eth0_conf", strings.Replace(nic6, "fd77::11", "fd77::100", 1)), []Address{cluster},
			[]string{"if_eth0_conf: fd77::100 is $cluster_ip and the address of eth0 itself: left alone"}},
		{"masks that are none", only, files("if_eth0_conf", strings.Replace(nic6, "mask=64", "mask=129", 1), "if_eth0:web_conf", webFile,
			"if_eth1:c_conf", "[eth1:c]\naddr=fd77::82\nmask=255.255.255.0\nstatus=up\n"),
			[]Address{cluster6, {netip.MustParsePrefix("fd77::80/128"), "eth0", "eth0:web"}, {netip.MustParsePrefix("fd77::82/128"), "eth1", "eth1:c"}},
			[]string{`if_eth0_conf: mask "129": want a number of bits like 64`, `if_eth1:c_conf: mask "255.255.255.0": want a number of bits like 64; taken as 128`}},
		{"addresses of no host", only, files("if_eth0:a_conf", virtualFile("eth0:a", "::", "up"), "if_eth0:b_conf", virtualFile("eth0:b", "ff02::12", "up")),
			[]Address{cluster6}, []string{"addr ::: no address of a host", "addr ff02::12: no address of a host"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, notices := Wanted(tt.dir, tt.cluster, "eth0")
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("addresses\n got %v\nwant %v", got, tt.want)
			}
			if len(notices) != len(tt.notices) {
				t.Fatalf("notices\n got %v\nwant %q", notices, tt.notices)
			}
			for i, piece := range tt.notices {
				if !strings.Contains(notices[i].String(), piece) {
					t.Errorf("notice %d is %q, want %q in it", i, notices[i], piece)
				}
			}
		})
	}
}

func TestClusterLabelFitsOrIsLeftOut(t *testing.T) {
	for iface, label := range map[string]string{"eth0": "eth0:skd", "enp0s31f6.1": "enp0s31f6.1:skd", "enp0s31f6.10": "", "fifteen-letters": ""} {
		got, _ := Wanted(files(), prefixes, iface)
		if got[0].Label != label {
			t.Errorf("on %s: label %q, want %q", iface, got[0].Label, label)
		}
	}
	for ip, want := range map[netip.Addr]int{clusterIP: 32, cluster6.Prefix.Addr(): 128} {
		if got, _ := Wanted(files(), []netip.Prefix{netip.PrefixFrom(ip, -1)}, "eth0"); got[0].Prefix.Bits() != want {
			t.Errorf("without a prefix length of the local address: %v, want /%d", got[0], want)
		}
	}
}

func TestString(t *testing.T) {
	if got, want := cluster.String(), "192.168.77.100/24 on eth0 (eth0:skd)"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := (Failure{Address{cluster.Prefix, "eth9", ""}, ErrNoLink}).Error(), "address 192.168.77.100/24 on eth9: no such interface"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func FuzzInterfaceFile(f *testing.F) {
	f.Add([]byte(virtualFile("eth0:web", "192.168.77.80", "up")), []byte(nic))
	f.Add([]byte("[eth0:web]\naddr=10.0.0.1\nmask=255.255.255.255\nstatus=up"), []byte("[eth0]\nmask=33\n"))
	f.Add([]byte("[]\n[eth0:web\n=\n[eth0:web]=\naddr==\n\xff\x00"), []byte("["))
	f.Add([]byte("[eth0:web]\naddr=::ffff:10.0.0.1%eth0\nstatus=up\n"), []byte(nil))
	f.Add([]byte("[eth0:web]\naddr=::ffff:10.0.0.1\nstatus=up\n"), []byte("[eth0]\nmask=0\n"))
	f.Add([]byte("[eth0:web]\naddr=fe80::1%\x00\nstatus=up\n"), []byte(nil))
	f.Fuzz(func(t *testing.T, virtual, parent []byte) {
		dir := files("if_eth0:web_conf", string(virtual), "if_eth0_conf", string(parent))
		got, notices := Wanted(dir, prefixes, "eth0")
		if len(got) == 0 || len(got) > 2 || got[0].Prefix.Addr() != clusterIP {
			t.Fatalf("got %v, want $cluster_ip and one more at most", got)
		}
		for _, a := range got {
			if !a.Prefix.IsValid() || a.Prefix.Addr().Zone() != "" || a.Prefix.Bits() < 1 || a.Link != "eth0" || len(a.Label) > maxName {
				t.Fatalf("%+v cannot be put on a link", a)
			}
		}
		for _, n := range notices {
			if n.File == "" || strings.ContainsAny(n.Text, "\n\x00") {
				t.Fatalf("notice %q does not fit a line of a log", n)
			}
		}
	})
}

type brokenFS struct{}

func (brokenFS) Open(string) (fs.File, error) { return nil, errors.New("disk on fire") }

func TestHolds(t *testing.T) {
	ip := netip.MustParseAddr("192.0.2.9")
	for name, c := range map[string]struct {
		tree fstest.MapFS
		want bool
	}{
		"nothing":         {fstest.MapFS{}, false},
		"up":              {files("if_eth0:a_conf", virtualFile("eth0:a", "192.0.2.9", "up")), true},
		"down":            {files("if_eth0:a_conf", virtualFile("eth0:a", "192.0.2.9", "down")), true},
		"another":         {files("if_eth0:a_conf", virtualFile("eth0:a", "192.0.2.8", "up")), false},
		"a NIC":           {files("if_eth0_conf", virtualFile("eth0", "192.0.2.9", "up")), false},
		"another section": {files("if_eth0:a_conf", virtualFile("eth0:b", "192.0.2.9", "up")), false},
	} {
		if got := Holds(c.tree, ip); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	if !Holds(files("if_eth0:a_conf", virtualFile("eth0:a", "192.0.2.9", "up")), netip.MustParseAddr("::ffff:192.0.2.9")) {
		t.Error("the IPv4-mapped form is another address")
	}
	six := files("if_eth0:a_conf", virtualFile("eth0:a", "2001:db8::9", "up"))
	if !Holds(six, ip, netip.MustParseAddr("2001:db8::9")) || Holds(six, ip, netip.MustParseAddr("2001:db8::8")) {
		t.Error("of two addresses, want the second one held, and only where it is")
	}
	if Holds(brokenFS{}, ip) {
		t.Error("a tree that cannot be read holds it")
	}
}
