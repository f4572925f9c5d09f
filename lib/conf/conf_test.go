package conf

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

const name = "/etc/x/skudonet-cluster.conf"

// minimal has all that is required, on lines 1 to 6.
const minimal = `$interface="eth0";
$local_ip="192.168.1.250";
$remote_ip="192.168.1.251";
$password="correct horse";
$cluster_id="1";
$cluster_ip="192.168.1.252";
`

var example = filepath.Join("..", "..", "etc", "skudonet-cluster.conf")

func ip(s string) netip.Addr { return netip.MustParseAddr(s) }

// want is what minimal means.
func want() Config {
	return Config{
		Path:      name,
		Interface: "eth0", LocalIP: ip("192.168.1.250"), RemoteIP: ip("192.168.1.251"), ClusterIP: ip("192.168.1.252"),
		Password: "correct horse", VRID: 1, Protocol: "vrrp",
		Transport: Multicast, UDPPort: 5112, Priority: 100,
		AdvertInterval: time.Second, DeadRatio: 3, GARPRefresh: time.Minute, HookTimeout: 2 * time.Minute, LinkLoss: LinkLossFault,
		StartHook:         "/usr/local/skudonet/app/ucarp/sbin/skudonet-ce-cluster-start",
		StopHook:          "/usr/local/skudonet/app/ucarp/sbin/skudonet-ce-cluster-stop",
		AdvertisementHook: "/usr/local/skudonet/app/ucarp/sbin/skudonet-ce-cluster-advertisement",
		ConfigDir:         "/usr/local/skudonet/config",
		RTTables:          "/etc/iproute2/rt_tables",
		ReplicatorLog:     "/var/log/skdinotify.log",
		Rsync:             "/usr/bin/rsync",
		RsyncArgs:         "-auzv --delete",
		VerifyInterval:    5 * time.Minute,
		ArchiveKeep:       50,
	}
}

func withoutLines(c Config) Config {
	c.interfaceLine, c.localIPLine = 0, 0
	return c
}

// diff names the fields that differ, passwords in clear.
func diff(got, want Config) string {
	got, want = withoutLines(got), withoutLines(want)
	var b strings.Builder
	g, w := reflect.ValueOf(got), reflect.ValueOf(want)
	for i := range g.NumField() {
		if f := g.Type().Field(i); f.IsExported() && !g.Field(i).Equal(w.Field(i)) {
			fmt.Fprintf(&b, "%s: got %v, want %v\n", f.Name, plain(g.Field(i)), plain(w.Field(i)))
		}
	}
	return b.String()
}

func plain(v reflect.Value) any {
	if s, ok := v.Interface().(Secret); ok {
		return string(s)
	}
	return v.Interface()
}

func sentences(notices []Notice) string {
	var b strings.Builder
	for _, n := range notices {
		fmt.Fprintln(&b, n)
	}
	return b.String()
}

func TestMinimal(t *testing.T) {
	got, notices, err := Parse(name, []byte(minimal))
	if err != nil || notices != nil {
		t.Fatal(err, notices)
	}
	if d := diff(got, want()); d != "" {
		t.Error(d)
	}
}

func TestExample(t *testing.T) {
	data, err := os.ReadFile(example)
	if err != nil {
		t.Fatal(err)
	}
	expect := want()
	expect.Password, expect.Exclude = "secret", "--exclude if_eth0_conf"
	check := func(data string) {
		t.Helper()
		got, notices, err := Parse(name, []byte(data))
		if err != nil {
			t.Fatal(err)
		}
		if d := diff(got, expect); d != "" {
			t.Error(d)
		}
		if len(notices) != 1 || notices[0].Key != "password" {
			t.Errorf("notices beside that about the password of the example:\n%s", sentences(notices))
		}
	}
	check(string(data))
	optional := regexp.MustCompile(`(?m)^#(\$\w+=)`)
	check(optional.ReplaceAllString(string(data), "$1"))

	for _, k := range Keys() {
		if k.Name != "ucarp" && !strings.Contains(string(data), "$"+k.Name+`="`+k.Default) {
			t.Errorf("the example lacks $%s with its default %q", k.Name, k.Default)
		}
	}
}

// The layout of a 2.0 file, with every key it can hold.
func TestWhole20File(t *testing.T) {
	got, notices, err := Parse(name, []byte(`#!/usr/bin/perl
$ucarp="/usr/local/zevenet/app/ucarp/sbin/ucarp";
$dead_ratio="2";
$interface="eth0.100";
$local_ip="10.0.0.1";
$remote_ip="10.0.0.2";
$password="secret";
$cluster_id="42";
$cluster_ip="10.0.0.3";
$up_script="/usr/local/zevenet/app/ucarp/sbin/zevenet-ce-cluster-start";
$down_script="/usr/local/zevenet/app/ucarp/sbin/skudonet-ce-cluster-stop";
$adver_script="/opt/mine/announce";
$configdir="/usr/local/zevenet/config/";
$rttables="/etc/iproute2/rt_tables";
$zeninolog="/var/log/zeninotify.log";
$rsync="rsync";
$rsync_args="-az";
$exclude="--exclude if_eth0_conf --exclude if_eth0.100_conf";
`))
	if err != nil {
		t.Fatal(err)
	}
	expect := want()
	expect.DeadRatio, expect.Interface, expect.VRID = 2, "eth0.100", 42
	expect.LocalIP, expect.RemoteIP, expect.ClusterIP = ip("10.0.0.1"), ip("10.0.0.2"), ip("10.0.0.3")
	expect.Password, expect.AdvertisementHook, expect.ReplicatorLog = "secret", "/opt/mine/announce", "/var/log/zeninotify.log"
	expect.Rsync, expect.RsyncArgs, expect.Exclude = "rsync", "-az", "--exclude if_eth0_conf --exclude if_eth0.100_conf"
	if d := diff(got, expect); d != "" {
		t.Error(d)
	}
	const say = `skudonet-cluster.conf:2: $ucarp: ignored: skd-vrrpd holds the election now
skudonet-cluster.conf:7: $password: that of the example, which everybody knows: choose your own, of 8 characters or more
skudonet-cluster.conf:10: /usr/local/zevenet is now /usr/local/skudonet: changed for $up_script, $down_script, $configdir
`
	if s := sentences(notices); s != say {
		t.Errorf("notices:\n%swant:\n%s", s, say)
	}
}

func TestAccepted(t *testing.T) {
	for _, tt := range []struct {
		name, add string // add comes after minimal, from line 7 on
		change    func(*Config)
		notices   string // without the file name
	}{
		{"trailing 1;", "1;\n", nil, ""},
		{"trailing 1 without semicolon", "1", nil, ""},
		{"last semicolon missing", `$priority="7" # high` + "\n\n# end", func(c *Config) { c.Priority = 7 }, ""},
		{"two on a line, empty statements", `;$priority="7";; $udp_port = 9 ;#`, func(c *Config) { c.Priority, c.UDPPort = 7, 9 }, ""},
		{"my, our, spaces, tabs", "\tmy $priority\t= '7' ;\nour\t$dead_ratio=10;", func(c *Config) { c.Priority, c.DeadRatio = 7, 10 }, ""},
		{"# inside a value", `$exclude="--exclude a#b"; # c`, func(c *Config) { c.Exclude = "--exclude a#b" }, ""},
		{"single quotes", `$password_next='a$b@c\n\'\\"d';`, func(c *Config) { c.PasswordNext = `a$b@c\n'\"d` }, ""},
		{"escapes", `$password_next="\\\"\$\@\n\t\x41\x{20ac}é\101";`, func(c *Config) { c.PasswordNext = "\\\"$@\n\tA€éA" }, ""},
		{"@ in double quotes", `$password_next="p@ssword";`, func(c *Config) { c.PasswordNext = "p@ssword" },
			":7: $password_next: @ is taken literally; Perl would see an array there: write \\@, or use single quotes\n"},
		{"q and qq", `$password_next=q{it's {"so"}}; $exclude=qq(--exclude "$interface");`,
			func(c *Config) { c.PasswordNext, c.Exclude = `it's {"so"}`, `--exclude "eth0"` }, ""},
		{"interpolation", "$base='/opt';\n" + `$up_script="$base/up"; $exclude="--exclude if_${interface}_conf --exclude if_$interface.7_conf";`,
			func(c *Config) {
				c.StartHook, c.Exclude = "/opt/up", "--exclude if_eth0_conf --exclude if_eth0.7_conf"
			},
			":7: $base: unknown key, only used in the values that name it\n"},
		{"a path by way of the old tree's name", `$zdir="/usr/local/zevenet"; $configdir="$zdir/config";`, nil,
			":7: /usr/local/zevenet is now /usr/local/skudonet: changed for $configdir\n" +
				":7: $zdir: unknown key, only used in the values that name it\n"},
		{"unknown keys, each said once", "$smtp_port=22;\n$colour='a';\n$colour='b';\n", nil,
			":7: $smtp_port: unknown key, ignored\n:8: $colour: unknown key, ignored\n"},
		{"duplicate: the last wins, also over a bad one", "$priority='x';\n$priority=8;\n$priority=9;\n", func(c *Config) { c.Priority = 9 },
			":8: $priority: set again: line 7 no longer counts\n:9: $priority: set again: line 8 no longer counts\n"},
		{"a value that names its old self", "$exclude='--exclude a'; $exclude=\"$exclude --exclude b\";", func(c *Config) { c.Exclude = "--exclude a --exclude b" },
			":7: $exclude: set again: line 7 no longer counts\n"},
		{"boolean word", "$preempt=yes;", func(c *Config) { c.Preempt = true }, ""},
		{"boolean 1", "$preempt='1';", func(c *Config) { c.Preempt = true }, ""},
		{"boolean TRUE", "$preempt=' TRUE ';", func(c *Config) { c.Preempt = true }, ""},
		{"boolean 0", "$preempt=0;", nil, ""},
		{"boolean no", `$preempt="no";`, nil, ""},
		{"spaces and zeros in a quoted number", `$priority=" 007 ";`, func(c *Config) { c.Priority = 7 }, ""},
		{"words in capitals", `$transport="UDP"; $link_loss="Ignore"; $protocol="VRRP";`, func(c *Config) { c.Transport, c.LinkLoss = UDP, LinkLossIgnore }, ""},
		{"carp", `$protocol="carp"; $advert_interval="40"; $password_next='0123456789abcdefghi';`, func(c *Config) {
			c.Protocol, c.AdvertInterval, c.PasswordNext = CARP, 40*time.Second, "0123456789abcdefghi"
		}, ""},
		{"auto", `$protocol="Auto";`, func(c *Config) { c.Protocol = Auto }, ""},
		{"unicast", `$transport="unicast";`, func(c *Config) { c.Transport = Unicast }, ""},
		{"advert interval, largest", `$advert_interval="40.95";`, func(c *Config) { c.AdvertInterval = 40950 * time.Millisecond }, ""},
		{"advert interval, half", `$advert_interval=.5;`, func(c *Config) { c.AdvertInterval = 500 * time.Millisecond }, ""},
		{"advert interval, smallest", `$advert_interval="0.010";`, func(c *Config) { c.AdvertInterval = 10 * time.Millisecond },
			":7: $advert_interval: under 0.1 seconds a node that is only busy can count as dead\n"},
		{"refresh off", `$garp_refresh="0";`, func(c *Config) { c.GARPRefresh = 0 }, ""},
		{"hook timeout", `$hook_timeout=3600;`, func(c *Config) { c.HookTimeout = time.Hour }, ""},
		{"dead ratio 1", `$dead_ratio=1;`, func(c *Config) { c.DeadRatio = 1 }, ":7: $dead_ratio: a single lost advert makes the backup take over: 2 or more is advised\n"},
		{"dead ratio 100", `$dead_ratio="100";`, func(c *Config) { c.DeadRatio = 100 }, ""},
		{"ssh port and key", `$ssh_port=2222; $ssh_key="/usr/local/zevenet/id//rsa";`, func(c *Config) { c.SSHPort, c.SSHKey = 2222, "/usr/local/skudonet/id/rsa" },
			":7: /usr/local/zevenet is now /usr/local/skudonet: changed for $ssh_key\n"},
		{"ssh port and key as ssh has them", `$ssh_port="0"; $ssh_key="";`, nil, ""},
		{"verify interval", `$verify_interval="10";`, func(c *Config) { c.VerifyInterval = 10 * time.Second }, ""},
		{"archives kept", `$archive_keep="10000";`, func(c *Config) { c.ArchiveKeep = 10000 }, ""},
		{"empty second password", `$password_next="";`, nil, ""},
		{"short passwords", `$password="1234567"; $password_next='€€€€€€€';`, func(c *Config) { c.Password, c.PasswordNext = "1234567", "€€€€€€€" },
			":7: $password: set again: line 4 no longer counts\n" +
				":7: $password: short enough to be guessed: choose one of 8 characters or more\n" +
				":7: $password_next: short enough to be guessed: choose one of 8 characters or more\n"},
		{"password Latin-1", "$password_next='contrase\xf1a';", func(c *Config) { c.PasswordNext = "contrase\xf1a" },
			":7: $password_next: not UTF-8: its bytes are used as they stand, so have the same ones on both nodes\n"},
		{"comment in Latin-1", "# configuraci\xf3n\n", nil, ""},
		{"empty password", "$password='';", func(c *Config) { c.Password = "" },
			":7: $password: set again: line 4 no longer counts\n" +
				":7: $password: empty: adverts go unsigned, and any host in the network can take the addresses\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			expect := want()
			if tt.change != nil {
				tt.change(&expect)
			}
			for form, data := range map[string]string{
				"as is":    minimal + tt.add,
				"CRLF":     strings.ReplaceAll(minimal+tt.add, "\n", "\r\n"),
				"BOM":      "\ufeff" + minimal + tt.add,
				"comments": strings.ReplaceAll(minimal, "\n", "# it's \"so\n") + tt.add,
			} {
				got, notices, err := Parse(name, []byte(data))
				if err != nil {
					t.Fatalf("%s: %v", form, err)
				}
				if d := diff(got, expect); d != "" {
					t.Errorf("%s:\n%s", form, d)
				}
				if s := strings.ReplaceAll(sentences(notices), "skudonet-cluster.conf", ""); s != tt.notices {
					t.Errorf("%s: notices:\n%swant:\n%s", form, s, tt.notices)
				}
			}
		})
	}
}

func TestRefused(t *testing.T) {
	long := strings.Repeat("x", 70)
	for _, tt := range []struct{ add, want string }{
		// Values.
		{`$cluster_id="300";`, `:7: $cluster_id: "300": want 1 to 255`},
		{`$cluster_id=0;`, `:7: $cluster_id: "0": want 1 to 255`},
		{`$cluster_id=-1;`, `:7: $cluster_id: "-1": want 1 to 255`},
		{`$cluster_id="";`, `:7: $cluster_id: "": want 1 to 255`},
		{`$priority=255;`, `:7: $priority: "255": want 1 to 254`},
		{`$priority="1.5";`, `:7: $priority: "1.5": want 1 to 254`},
		{`$udp_port=65536;`, `:7: $udp_port: "65536": want 1 to 65535`},
		{`$dead_ratio="101";`, `:7: $dead_ratio: "101": want 1 to 100`},
		{`$advert_interval="0";`, `:7: $advert_interval: "0": want 0.01 to 40.95 seconds`},
		{`$advert_interval="40.96";`, `:7: $advert_interval: "40.96": want 0.01 to 40.95 seconds`},
		{`$advert_interval="0.015";`, `:7: $advert_interval: "0.015": not a multiple of 0.01: want 0.01 to 40.95 seconds`},
		{`$advert_interval="1.0000000001";`, `:7: $advert_interval: "1.0000000001": not a multiple of 0.01: want 0.01 to 40.95 seconds`},
		{`$advert_interval="100m";`, `:7: $advert_interval: "100m": want 0.01 to 40.95 seconds`},
		{`$advert_interval="1e1";`, `:7: $advert_interval: "1e1": want 0.01 to 40.95 seconds`},
		{`$garp_refresh="-1";`, `:7: $garp_refresh: "-1": want 0 to 86400 seconds`},
		{`$garp_refresh="0.5";`, `:7: $garp_refresh: "0.5": not a multiple of 1: want 0 to 86400 seconds`},
		{`$hook_timeout="0";`, `:7: $hook_timeout: "0": want 1 to 3600 seconds`},
		{`$ssh_port="65536";`, `:7: $ssh_port: "65536": want 0 to 65535`},
		{`$ssh_port="";`, `:7: $ssh_port: "": want 0 to 65535`},
		{`$ssh_key="id_rsa";`, `:7: $ssh_key: "id_rsa": want an absolute path, or empty`},
		{`$ssh_key="/";`, `:7: $ssh_key: "/": not the root directory: want an absolute path, or empty`},
		{`$verify_interval="9";`, `:7: $verify_interval: "9": want 10 to 86400 seconds`},
		{`$verify_interval="86401";`, `:7: $verify_interval: "86401": want 10 to 86400 seconds`},
		{`$archive_keep="0";`, `:7: $archive_keep: "0": want 1 to 10000`},
		{`$archive_keep="10001";`, `:7: $archive_keep: "10001": want 1 to 10000`},
		{`$archive_keep="-1";`, `:7: $archive_keep: "-1": want 1 to 10000`},
		{`$preempt="maybe";`, `:7: $preempt: "maybe": want true or false`},
		{`$transport="udp"; $password="";`, `:7: $transport: "udp": want a $password with it, because hosts of any network can send to a UDP port`},
		{`$transport="tcp";`, `:7: $transport: "tcp": want multicast or unicast or udp`},
		{`$link_loss="";`, `:7: $link_loss: "": want fault or ignore`},
		{`$protocol="hsrp";`, `:7: $protocol: "hsrp": want vrrp or carp or auto`},
		{`$protocol="carp"; $password="0123456789abcdefghij";`, `:7: $password: longer than the 19 bytes that CARP can carry: want another one with $protocol "carp"`},
		{`$protocol="auto"; $password="0123456789abcdefghij";`, `:7: $password: longer than the 19 bytes that CARP can carry: want another one with $protocol "auto", or $protocol "vrrp" once both nodes are upgraded`},
		{`$protocol="carp"; $password="";`, `:7: $password: empty, and CARP has no unsigned form: want another one with $protocol "carp"`},
		{`$protocol="carp"; $password_next="0123456789abcdefghij";`, `:7: $password_next: longer than the 19 bytes that CARP can carry: want another one with $protocol "carp"`},
		{`$protocol="carp"; $password="hex:` + strings.Repeat("0f", 32) + `";`, `:7: $password: longer than the 19 bytes that CARP can carry: want another one with $protocol "carp"`},
		{`$protocol="carp"; $password="hex:00";`, `:7: $password: ********: hex: is followed by 64 to 128 hexadecimal digits: want any text; 8 characters or more are advised; or hex: and 64 to 128 hexadecimal digits`},
		{`$protocol="carp"; $local_ip="fd00::1"; $remote_ip="fd00::2"; $cluster_ip="fd00::3";`, `:7: $local_ip: "fd00::1": CARP is of IPv4, as ucarp has it: want an IPv4 address alone with $protocol "carp"`},
		{`$protocol="auto"; $local_ip="10.0.0.1 fd00::1"; $remote_ip="10.0.0.2 fd00::2"; $cluster_ip="10.0.0.3 fd00::3";`, `:7: $local_ip: "10.0.0.1 fd00::1": CARP is of IPv4, as ucarp has it: want an IPv4 address alone with $protocol "auto", or $protocol "vrrp" once both nodes are upgraded`},
		{`$protocol="carp"; $transport="unicast";`, `:7: $transport: "unicast": CARP is multicast: want "multicast" with $protocol "carp"`},
		{`$protocol="auto"; $advert_interval="1.5";`, `:7: $advert_interval: "1.5": CARP counts whole seconds: want 1 to 40 with $protocol "auto", or $protocol "vrrp" once both nodes are upgraded`},
		{`$local_ip="lb1";`, `:7: $local_ip: "lb1": want an IPv4 or IPv6 address, or one of each`},
		{`$local_ip="192.168.1.250/24";`, `:7: $local_ip: "192.168.1.250/24": goes without a mask: want an IPv4 or IPv6 address, or one of each`},
		{`$cluster_ip="2001:db8::1";`, `:7: $cluster_ip: "2001:db8::1": want the same as in $local_ip, an IPv4 address`},
		{`$remote_ip="192.168.1.251, 2001:db8::1";`, `:7: $remote_ip: "192.168.1.251, 2001:db8::1": want the same as in $local_ip, an IPv4 address`},
		{`$cluster_ip="::ffff:10.0.0.1";`, `:7: $cluster_ip: "::ffff:10.0.0.1": is written 10.0.0.1: want an IPv4 or IPv6 address, or one of each`},
		{`$local_ip="fe80::1%eth0";`, `:7: $local_ip: "fe80::1%eth0": goes without a zone: $interface says it: want an IPv4 or IPv6 address, or one of each`},
		{`$local_ip="10.0.0.1, 10.0.0.2";`, `:7: $local_ip: "10.0.0.1, 10.0.0.2": two of one family: want an IPv4 or IPv6 address, or one of each`},
		{`$local_ip="10.0.0.1, fd00::1, fd00::2";`, `:7: $local_ip: "10.0.0.1, fd00::1, fd00::2": want an IPv4 or IPv6 address, or one of each`},
		{`$local_ip=",";`, `:7: $local_ip: ",": want an IPv4 or IPv6 address, or one of each`},
		{`$local_ip="::";`, `:7: $local_ip: "::": not the address of a host: want an IPv4 or IPv6 address, or one of each`},
		{`$local_ip="::1";`, `:7: $local_ip: "::1": not the address of a host: want an IPv4 or IPv6 address, or one of each`},
		{`$local_ip="ff02::12";`, `:7: $local_ip: "ff02::12": not the address of a host: want an IPv4 or IPv6 address, or one of each`},
		{`$password="hex:00";`, `:7: $password: ********: hex: is followed by 64 to 128 hexadecimal digits: want any text; 8 characters or more are advised; or hex: and 64 to 128 hexadecimal digits`},
		{`$password_next="hex:` + strings.Repeat("0g", 32) + `";`, `:7: $password_next: ********: hex: is followed by 64 to 128 hexadecimal digits: want any text; 8 characters or more are advised; or hex: and 64 to 128 hexadecimal digits`},
		{`$remote_ip="224.0.0.18";`, `:7: $remote_ip: "224.0.0.18": not the address of a host: want an IPv4 or IPv6 address, or one of each`},
		{`$remote_ip="0.0.0.0";`, `:7: $remote_ip: "0.0.0.0": not the address of a host: want an IPv4 or IPv6 address, or one of each`},
		{`$interface="eth0:1";`, `:7: $interface: "eth0:1": a virtual interface: take the one that it stands on: want the name of a network interface`},
		{`$interface="abcdefghijklmnop";`, `:7: $interface: "abcdefghijklmnop": longer than 15 characters: want the name of a network interface`},
		{`$interface="eth 0";`, `:7: $interface: "eth 0": want the name of a network interface`},
		{`$interface="../x";`, `:7: $interface: "../x": want the name of a network interface`},
		{`$up_script="up.sh";`, `:7: $up_script: "up.sh": want an absolute path`},
		{`$up_script="/a\nb";`, `:7: $up_script: "/a\nb": want an absolute path`},
		{`$down_script="";`, `:7: $down_script: "": want an absolute path`},
		{`$configdir="/etc/..";`, `:7: $configdir: "/etc/..": not the root directory: want an absolute path`},
		{`$configdir="` + long + `";`, `:7: $configdir: "` + long[:64] + `"…: want an absolute path`},
		{`$configdir="a` + strings.Repeat("é", 40) + `";`, `:7: $configdir: "a` + strings.Repeat("é", 31) + `"…: want an absolute path`},
		{`$rsync="";`, `:7: $rsync: "": want a path, or a name that is found in PATH`},
		// Cross-checks.
		{`$remote_ip="192.168.1.250";`, `:7: $remote_ip: "192.168.1.250": the same as $local_ip: want the address of the other node`},
		{`$cluster_ip="192.168.1.250";`, `:7: $cluster_ip: "192.168.1.250": the same as $local_ip: want an address apart from those of the nodes`},
		{`$cluster_ip="192.168.1.251";`, `:7: $cluster_ip: "192.168.1.251": the same as $remote_ip: want an address apart from those of the nodes`},
		{`$local_ip="192.168.1.252";`, `:7: $local_ip: "192.168.1.252": the same as $cluster_ip: want an address apart from those of the nodes`},
		// Syntax.
		{`priority=1;`, `:7: want $name="value"; or a comment that starts with #`},
		{`use strict;`, `:7: want $name="value"; or a comment that starts with #`},
		{`@list=(1);`, `:7: want $name="value"; or a comment that starts with #`},
		{`$priority;`, `:7: $priority: want = after the name`},
		{`$priority=>1;`, `:7: $priority: want the value in straight quotes, "…" or '…'`},
		{`$priority=;`, `:7: $priority: want the value in straight quotes, "…" or '…'`},
		{`$preempt=Yes;`, `:7: $preempt: want the value in straight quotes, "…" or '…'`},
		{`$priority=010;`, `:7: $priority: want the value in straight quotes, "…" or '…'`},
		{`$priority=0x10;`, `:7: $priority: want the value in straight quotes, "…" or '…'`},
		{`$local_ip=10.0.0.1;`, `:7: $local_ip: want the value in straight quotes, "…" or '…'`},
		{`$interface=“eth0”;`, `:7: $interface: want the value in straight quotes, "…" or '…'`},
		{`$priority="7;`, `:7: $priority: the closing " is missing on this line`},
		{`$priority='7\';`, `:7: $priority: the closing ' is missing on this line`},
		{`$priority=q(7;`, `:7: $priority: the closing ) is missing on this line`},
		{`$exclude="a"b";`, `:7: $exclude: want ; after the value (a quote inside it is written \" or \')`},
		{`$exclude="a" . "b";`, `:7: $exclude: want ; after the value (a quote inside it is written \" or \')`},
		{"$priority=7\n$dead_ratio=2;", `:7: $priority: the ; at the end is missing`},
		{"1\n$dead_ratio=2;", `:7: the ; at the end is missing`},
		{`$exclude="\Qa\E";`, `:7: $exclude: an escape that is not read here (\l \u \L \U \Q \E \F \N \o \c): write the characters themselves, \\ for a backslash`},
		{`$exclude="\xg";`, `:7: $exclude: \x without a hexadecimal number`},
		{`$exclude="\x{d800}";`, `:7: $exclude: \x with a number that is no character`},
		{`$exclude="a\0";`, `:7: $exclude: holds a NUL character`},
		{`$exclude="$colour";`, `:7: $exclude: $colour is not set on an earlier line (the character $ is written \$)`},
		{`$exclude="${colour}";`, `:7: $exclude: $colour is not set on an earlier line (the character $ is written \$)`},
		{`$exclude="$interface's";`, `:7: $exclude: $interface's is not set on an earlier line (the character $ is written \$)`},
		{`$exclude="$cluster_ip::1";`, `:7: $exclude: $cluster_ip::1 is not set on an earlier line (the character $ is written \$)`},
		{`$exclude="a$";`, `:7: $exclude: a $ that begins no name: write \$, or use single quotes`},
		{`$exclude="$$";`, `:7: $exclude: a $ that begins no name: write \$, or use single quotes`},
		{`$exclude="$interface[0]";`, `:7: $exclude: a name followed by [ or {, to Perl the element of an array or hash: write ${name} before it, or \$ for the character`},
		{`$exclude="$interface->{a}";`, `:7: $exclude: a name followed by [ or {, to Perl the element of an array or hash: write ${name} before it, or \$ for the character`},
		{`$a="$exclude"; $exclude="$interface";`, `:7: $a: $exclude is not set on an earlier line (the character $ is written \$)`},
		{`$a='0123456789abcdef'; $a="$a$a$a$a$a$a$a$a"; $a="$a$a$a$a$a$a$a$a"; $a="$a$a$a$a$a";`, `:7: $a: longer than 4096 bytes`},
		// One cause, one error.
		{"$a=\"$b\";\n$exclude=\"$a\";", `:7: $a: $b is not set on an earlier line (the character $ is written \$)`},
		{"$interface=\"eth0;", `:7: $interface: the closing " is missing on this line`},
		{"\x00", `:7: a NUL byte: not a text file, or one saved as UTF-16: save it as UTF-8`},
	} {
		got, _, err := Parse(name, []byte(minimal+tt.add))
		if err == nil {
			t.Errorf("%s: accepted", tt.add)
			continue
		}
		if s := strings.TrimPrefix(err.Error(), "skudonet-cluster.conf"); s != tt.want {
			t.Errorf("%s:\n got %s\nwant %s", tt.add, s, tt.want)
		}
		if got != (Config{}) {
			t.Errorf("%s: an error, and a configuration beside it", tt.add)
		}
	}
}

func TestAllErrorsInOrder(t *testing.T) {
	_, notices, err := Parse("dir/a.conf", []byte(`$cluster_ip="10.0.0.1";
$remote_ip="10.0.0.1";
$priority="high";
what is this
$local_ip="10.0.0.1;
$transport='pigeon';
`))
	const say = `a.conf:2: $remote_ip: "10.0.0.1": the same as $cluster_ip: want an address apart from those of the nodes
a.conf:3: $priority: "high": want 1 to 254
a.conf:4: want $name="value"; or a comment that starts with #
a.conf:5: $local_ip: the closing " is missing on this line
a.conf:6: $transport: "pigeon": want multicast or unicast or udp
a.conf: $interface: not set: want the name of a network interface
a.conf: $cluster_id: not set: want 1 to 255`
	if err == nil || err.Error() != say {
		t.Errorf("got\n%v\nwant\n%s", err, say)
	}
	var one Error
	if !errors.As(err, &one) || one.Line != 2 || one.Key != "remote_ip" {
		t.Errorf("first error: %#v", one)
	}
	if s := sentences(notices); s != "a.conf: $password: empty: adverts go unsigned, and any host in the network can take the addresses\n" {
		t.Error(s)
	}
}

func TestEmptyFile(t *testing.T) {
	for _, data := range []string{"", "\n", "\ufeff", "1;", "# nothing"} {
		_, _, err := Parse(name, []byte(data))
		if errs := (Errors{}); !errors.As(err, &errs) || len(errs) != 5 {
			t.Errorf("%q: want the five required keys, got:\n%v", data, err)
		}
	}
}

// No way of printing a Config, and no message about a bad file, shows a password.
func TestPasswordHidden(t *testing.T) {
	const hush, next = "Tr0ub4dor", "Zw31tes"
	cfg, _, err := Parse(name, []byte(minimal+"$password='"+hush+"';\n$password_next='"+next+"';"))
	if err != nil || string(cfg.Password) != hush || string(cfg.PasswordNext) != next {
		t.Fatal("not parsed", err)
	}
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "cfg", cfg, "p", &cfg, "s", cfg.Password)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "cfg", cfg, "p", &cfg, "s", cfg.Password)
	j, err := json.Marshal(map[string]any{"cfg": cfg, "s": cfg.Password})
	if err != nil {
		t.Fatal(err)
	}
	log.Write(j)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "% X", "%d", "%10s"} {
		fmt.Fprintf(&log, verb+" "+verb+" "+verb, cfg, &cfg, cfg.PasswordNext)
	}
	log.WriteString(cfg.Password.String() + cfg.Password.GoString())
	for _, s := range []string{hush, next, fmt.Sprintf("%x", hush), fmt.Sprintf("% X", next)} {
		if strings.Contains(log.String(), s) {
			t.Errorf("%s shown in:\n%s", s, log.String())
		}
	}

	for _, line := range []string{
		`$password="Tr0ub4dor`, `$password=Tr0ub4dor;`, `$password="x"Tr0ub4dor";`, `$password="$Tr0ub4dor";`, `$password="a${Tr0ub4dor}";`,
		`$password="\QTr0ub4dor";`, `$password="Tr0ub4dor$";`, `$password="Tr0ub4dor\x{d800}";`, `$password="Tr0ub4dor\0";`, `$password 'Tr0ub4dor'`,
		`password="Tr0ub4dor"`, `my $password="Tr0ub4dor" or die;`, `$password_next="$Tr0ub4dor[1]";`,
		`$password="Tr0ub4dor"; $cluster_id="$password";`,
		`$password="Tr0ub4dor"; $a="x$password"; $local_ip="y$a";`,
		`$a="Tr0ub4dor"; $cluster_id="$a"; $password="$a";`,
		`$password="Tr0ub4dor"; $password="other"; $cluster_id="Tr0ub4dor";`,
		`$password="Tr0ub4dor@"; $password="@Tr0ub4dor";`, "$password='Tr0ub4dor\xff'; $priority=x;",
		`$password="Tr0ub4dor"; $configdir="` + strings.Repeat("x", 60) + `Tr0ub4dor";`,
	} {
		_, notices, err := Parse(name, []byte(minimal+line))
		if s := fmt.Sprint(err) + sentences(notices); strings.Contains(s, "Tr0ub") {
			t.Errorf("%s: shown in:\n%s", line, s)
		}
	}
}

func TestKeys(t *testing.T) {
	var c Config
	for _, k := range table(&c) {
		if k.Required != (k.set(k.Default) != nil) {
			t.Errorf("$%s: default %q does not fit", k.Name, k.Default)
		}
	}
	for _, k := range Keys() {
		if k.Name == "" || k.Range == "" || k.Meaning == "" || strings.Contains(k.Meaning, "\n") {
			t.Errorf("%+v: incomplete", k)
		}
		if k.Required && k.Default != "" {
			t.Errorf("$%s: required, with a default", k.Name)
		}
	}
}

func TestLoad(t *testing.T) {
	file := filepath.Join(t.TempDir(), "my.conf")
	if _, _, err := Load(file); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), file) {
		t.Errorf("missing file: %v", err)
	}
	if err := os.WriteFile(file, []byte(minimal), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, notices, err := Load(file)
	if err != nil || notices != nil || cfg.Path != file || cfg.VRID != 1 {
		t.Error(cfg, notices, err)
	}
	if err := os.Chmod(file, 0o640); err != nil {
		t.Fatal(err)
	}
	_, notices, err = Load(file)
	if want := "my.conf: mode 0640 lets other users at the password: chmod 600 " + file + "\n"; err != nil || sentences(notices) != want {
		t.Errorf("%v\n got %swant %s", err, sentences(notices), want)
	}
	if _, _, err := Load("/dev/zero"); err == nil || !strings.Contains(err.Error(), "larger than 64 KiB") {
		t.Errorf("endless file: %v", err)
	}
	if _, _, err := Load(t.TempDir()); err == nil {
		t.Error("a directory was read")
	}
}

func TestKeysAsTheyAre(t *testing.T) {
	digits := "000102030405060708090a0b0c0d0e0f101112131415161718191A1B1C1D1E1F"
	c, notices, err := Parse(name, []byte(strings.Replace(minimal, "correct horse", "hex:"+digits, 1)+`$password_next="hex:`+strings.Repeat("ff", 64)+`";`))
	if err != nil || len(notices) != 0 {
		t.Fatal(err, notices)
	}
	var want []byte
	for i := range 32 {
		want = append(want, byte(i))
	}
	if key, ok := c.Password.Key(); !ok || !slices.Equal(key, want) {
		t.Errorf("%x, %v", key, ok)
	}
	if key, ok := c.PasswordNext.Key(); !ok || len(key) != 64 {
		t.Errorf("%x, %v", key, ok)
	}
	for _, s := range []Secret{"", "hex", "a password", "hex:", Secret("hex:" + strings.Repeat("00", 31)), Secret("hex:" + strings.Repeat("00", 65))} {
		if _, ok := s.Key(); ok {
			t.Errorf("%q is a key", string(s))
		}
	}
}

func TestFamilies(t *testing.T) {
	file := func(local, remote, cluster string) string {
		return `$interface="eth0"; $cluster_id="1"; $password="long enough";` +
			"\n$local_ip=\"" + local + "\";\n$remote_ip=\"" + remote + "\";\n$cluster_ip=\"" + cluster + "\";\n"
	}
	v4, v6 := Addresses{ip("192.0.2.1"), ip("192.0.2.2"), ip("192.0.2.3")}, Addresses{ip("2001:db8::1"), ip("2001:db8::2"), ip("2001:db8::3")}
	linkLocal := Addresses{ip("fe80::1"), ip("fe80::2"), ip("2001:db8::3")}
	for _, tt := range []struct {
		text string
		want []Addresses
		err  string
	}{
		{text: file("192.0.2.1", "192.0.2.2", "192.0.2.3"), want: []Addresses{v4}},
		{text: file("2001:db8::1", "2001:DB8:0::2", " 2001:db8::3 "), want: []Addresses{v6}},
		{text: file("192.0.2.1, 2001:db8::1", "2001:db8::2 192.0.2.2", "192.0.2.3,2001:db8::3"), want: []Addresses{v4, v6}},
		{text: file("fe80::1", "fe80::2", "2001:db8::3"), want: []Addresses{linkLocal}},
		{text: file("fe80::1", "2001:db8::2", "2001:db8::3"), err: `:3: $remote_ip: "2001:db8::2": want a link-local address where $local_ip is one, and none where it is none`},
		{text: file("2001:db8::1", "192.0.2.2", "192.0.2.3"), err: `:3: $remote_ip: "192.0.2.2": want the same as in $local_ip, an IPv6 address
:4: $cluster_ip: "192.0.2.3": want the same as in $local_ip, an IPv6 address`},
		{text: file("192.0.2.1 2001:db8::1", "192.0.2.2 2001:db8::2", "192.0.2.3"), err: `:4: $cluster_ip: "192.0.2.3": want the same as in $local_ip, an IPv4 and an IPv6 address`},
		{text: file("192.0.2.1 2001:db8::1", "192.0.2.2 2001:db8::1", "192.0.2.3 2001:db8::3"), err: `:3: $remote_ip: "192.0.2.2 2001:db8::1": the same as $local_ip: want the address of the other node`},
		{text: file("192.0.2.1 2001:db8::1", "192.0.2.2 2001:db8::2", "192.0.2.3 2001:db8::2"), err: `:4: $cluster_ip: "192.0.2.3 2001:db8::2": the same as $remote_ip: want an address apart from those of the nodes`},
	} {
		got, _, err := Parse(name, []byte(tt.text))
		if tt.err != "" {
			file := "skudonet-cluster.conf"
			if want := file + strings.ReplaceAll(tt.err, "\n", "\n"+file); err == nil || err.Error() != want {
				t.Errorf("%s\n got %v\nwant %s", tt.text, err, want)
			}
			continue
		}
		if err != nil || !slices.Equal(got.Families(), tt.want) {
			t.Errorf("%s\n got %v, %v\nwant %v", tt.text, got.Families(), err, tt.want)
		}
	}
}

func TestCheckHostOfBothFamilies(t *testing.T) {
	cfg, _, err := Parse(name, []byte(strings.NewReplacer("192.168.1.250", "192.168.1.250, 2001:db8::1", "192.168.1.251", "192.168.1.251, 2001:db8::2",
		"192.168.1.252", "192.168.1.252, 2001:db8::3").Replace(minimal)))
	if err != nil {
		t.Fatal(err)
	}
	for have, want := range map[string]string{
		"192.168.1.250 2001:db8::1":          "",
		"fe80::1 2001:db8::2 192.168.1.250":  `$local_ip: "2001:db8::1": not on eth0, which has $remote_ip`,
		"192.168.1.250 fe80::1%eth0":         `$local_ip: "2001:db8::1": not on eth0, which has 192.168.1.250, fe80::1: want`,
		"2001:db8::1 192.168.1.249 10.0.0.1": `$local_ip: "192.168.1.250": not on eth0`,
	} {
		err := cfg.CheckHost(func(string) (list []netip.Addr, _ error) {
			for _, s := range strings.Fields(have) {
				list = append(list, ip(s))
			}
			return list, nil
		})
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", have, err, want)
		}
	}
}

func TestCheckHost(t *testing.T) {
	cfg, _, err := Parse(name, []byte("# x\n"+minimal))
	if err != nil {
		t.Fatal(err)
	}
	gone := errors.New("no such network interface")
	for _, tt := range []struct {
		have string
		err  error
		want string
	}{
		{have: "fe80::1 ::ffff:192.168.1.250", want: ""},
		{have: "192.168.1.7 fe80::1", want: `skudonet-cluster.conf:3: $local_ip: "192.168.1.250": not on eth0, which has 192.168.1.7, fe80::1: want this node's own address on that interface`},
		{have: "192.168.1.251", want: `skudonet-cluster.conf:3: $local_ip: "192.168.1.250": not on eth0, which has $remote_ip: swap $local_ip and $remote_ip on this node`},
		{have: "", want: `skudonet-cluster.conf:3: $local_ip: "192.168.1.250": not on eth0, which has no address: configure it there first, or correct $interface`},
		{err: gone, want: `skudonet-cluster.conf:2: $interface: "eth0": no such network interface`},
	} {
		err := cfg.CheckHost(func(iface string) (have []netip.Addr, _ error) {
			if iface != "eth0" {
				t.Errorf("asked for %s", iface)
			}
			for _, s := range strings.Fields(tt.have) {
				have = append(have, ip(s))
			}
			return have, tt.err
		})
		if got := fmt.Sprint(err); got != tt.want && (err != nil || tt.want != "") {
			t.Errorf("%q:\n got %s\nwant %s", tt.have, got, tt.want)
		}
		if tt.err != nil && !errors.Is(err, gone) {
			t.Errorf("%v does not wrap its cause", err)
		}
	}
}
