package conf

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unicode"
)

const sbin = "/usr/local/skudonet/app/ucarp/sbin/"

// Key describes one key of the file.
type Key struct {
	Name     string // without the $
	Default  string // as it would stand in the file; empty for a required key
	Range    string // what values are accepted
	Meaning  string // one line
	Required bool
	Secret   bool // the value is never printed
}

// Keys lists every key that Parse knows, in the order in which the example file
// and the manual have them.
func Keys() []Key {
	var list []Key
	for _, k := range table(new(Config)) {
		k.Key.Range = k.want
		list = append(list, k.Key)
	}
	return list
}

type key struct {
	Key
	reader
}

// reader takes one kind of value into a field of a Config.
type reader struct {
	want string // completes "want …"
	path bool
	set  func(value string) error // errRange, or the reason for which the value is refused
}

var errRange = errors.New("out of range")

// table is the one description of the keys, bound to the fields of c.
func table(c *Config) []key {
	return []key{
		{Key{Name: "interface", Required: true, Meaning: "network interface that carries $local_ip"}, link(&c.Interface)},
		{Key{Name: "local_ip", Required: true, Meaning: "this node's own address on $interface"}, addresses(&c.LocalIP, &c.Second.LocalIP)},
		{Key{Name: "remote_ip", Required: true, Meaning: "the other node's own address"}, addresses(&c.RemoteIP, &c.Second.RemoteIP)},
		{Key{Name: "password", Secret: true, Meaning: "signs the adverts, the same on both nodes; empty: unsigned, plain RFC 9568"}, secret(&c.Password)},
		{Key{Name: "cluster_id", Required: true, Meaning: "VRRP's virtual router ID, unique in the network"}, number(&c.VRID, 1, 255)},
		{Key{Name: "cluster_ip", Required: true, Meaning: "virtual address of the cluster"}, addresses(&c.ClusterIP, &c.Second.ClusterIP)},
		{Key{Name: "exclude", Meaning: "files that are not replicated"}, text(&c.Exclude, `rsync options: "--exclude A --exclude B"`)},

		{Key{Name: "protocol", Default: "vrrp", Meaning: "election protocol; carp is that of ucarp, auto speaks it until the other node is upgraded"}, word(&c.Protocol, VRRP, CARP, Auto)},
		{Key{Name: "transport", Default: "multicast", Meaning: "how adverts travel; unicast and udp go to $remote_ip"}, word(&c.Transport, Multicast, Unicast, UDP)},
		{Key{Name: "udp_port", Default: "5112", Meaning: "port of transport udp, the same on both nodes"}, number(&c.UDPPort, 1, 65535)},
		{Key{Name: "priority", Default: "100", Meaning: "the higher one becomes master when both nodes start"}, number(&c.Priority, 1, 254)},
		{Key{Name: "preempt", Default: "false", Meaning: "may this node, with the higher priority, take over from a healthy master"}, boolean(&c.Preempt)},
		{Key{Name: "advert_interval", Default: "1", Meaning: "seconds from one advert of the master to the next; whole ones with protocol carp or auto"}, seconds(&c.AdvertInterval, 10*time.Millisecond, 40950*time.Millisecond, 10*time.Millisecond)},
		{Key{Name: "dead_ratio", Default: "3", Meaning: "missed adverts until the master counts as dead, the same on both nodes"}, number(&c.DeadRatio, 1, 100)},
		{Key{Name: "password_next", Secret: true, Meaning: "accepted beside $password while the password is being changed"}, secret(&c.PasswordNext)},
		{Key{Name: "garp_refresh", Default: "60", Meaning: "seconds between a master's refreshing announcements, 0 = off"}, seconds(&c.GARPRefresh, 0, 24*time.Hour, time.Second)},
		{Key{Name: "hook_timeout", Default: "120", Meaning: "seconds until a hook is ended"}, seconds(&c.HookTimeout, time.Second, time.Hour, time.Second)},
		{Key{Name: "link_loss", Default: "fault", Meaning: "without carrier: fault leaves the election, ignore stays master"}, word(&c.LinkLoss, LinkLossFault, LinkLossIgnore)},

		{Key{Name: "up_script", Default: sbin + "skudonet-ce-cluster-start", Meaning: "hook: this node became master"}, path(&c.StartHook)},
		{Key{Name: "down_script", Default: sbin + "skudonet-ce-cluster-stop", Meaning: "hook: this node became backup"}, path(&c.StopHook)},
		{Key{Name: "adver_script", Default: sbin + "skudonet-ce-cluster-advertisement", Meaning: "hook: addresses are being announced"}, path(&c.AdvertisementHook)},
		{Key{Name: "configdir", Default: "/usr/local/skudonet/config", Meaning: "configuration tree, replicated to the backup"}, path(&c.ConfigDir)},
		{Key{Name: "rttables", Default: "/etc/iproute2/rt_tables", Meaning: "routing table names, replicated too"}, path(&c.RTTables)},
		{Key{Name: "zeninolog", Default: "/var/log/skdinotify.log", Meaning: "the replicator's log"}, path(&c.ReplicatorLog)},
		{Key{Name: "rsync", Default: "/usr/bin/rsync", Meaning: "rsync program"}, program(&c.Rsync)},
		{Key{Name: "rsync_args", Default: "-auzv --delete", Meaning: "options of rsync"}, text(&c.RsyncArgs, "rsync options")},
		{Key{Name: "ssh_port", Default: "0", Meaning: "port of the peer's sshd, 0 = what root's ssh_config says, else 22"}, number(&c.SSHPort, 0, 65535)},
		{Key{Name: "ssh_key", Meaning: "root's private key for the peer; empty: as ssh finds one"}, pathOrNone(&c.SSHKey)},
		{Key{Name: "verify_interval", Default: "300", Meaning: "seconds between full comparisons of the two trees"}, seconds(&c.VerifyInterval, 10*time.Second, 24*time.Hour, time.Second)},
		{Key{Name: "archive_keep", Default: "50", Meaning: "archives of replaced configuration that are kept (also 30 days, 512 MiB)"}, number(&c.ArchiveKeep, 1, 10000)},
		{Key{Name: "ucarp", Meaning: "the 2.0 package's election program; ignored"}, text(new(string), "anything")},
	}
}

func text[T ~string](field *T, want string) reader {
	return reader{want: want, set: func(v string) error {
		*field = T(v)
		return nil
	}}
}

func secret(field *Secret) reader {
	return reader{want: passwordOrHexKey, set: func(v string) error {
		if _, ok := Secret(v).Key(); !ok && strings.HasPrefix(v, hexPrefix) {
			return errors.New(hexWords)
		}
		*field = Secret(v)
		return nil
	}}
}

func number[T uint8 | uint16 | int](field *T, low, high uint64) reader {
	return reader{want: fmt.Sprintf("%d to %d", low, high), set: func(v string) error {
		n, err := strconv.ParseUint(strings.TrimSpace(v), 10, 64)
		if err != nil || n < low || n > high {
			return errRange
		}
		*field = T(n)
		return nil
	}}
}

// seconds reads a decimal number of seconds, exactly, that is a multiple of unit.
func seconds(field *time.Duration, low, high, unit time.Duration) reader {
	show := func(d time.Duration) string { return strconv.FormatFloat(d.Seconds(), 'f', -1, 64) }
	want := fmt.Sprintf("%s to %s seconds", show(low), show(high))
	return reader{want: want, set: func(v string) error {
		v = strings.TrimSpace(v)
		d, err := time.ParseDuration(v + "s")
		if err != nil || strings.Trim(v, "0123456789.") != "" || d < low || d > high {
			return errRange
		}
		// What ParseDuration cuts off below a nanosecond is not a multiple either.
		_, decimals, _ := strings.Cut(v, ".")
		if d%unit != 0 || len(strings.TrimRight(decimals, "0")) > 9 {
			return fmt.Errorf("not a multiple of %s", show(unit))
		}
		*field = d
		return nil
	}}
}

func boolean(field *bool) reader {
	return reader{want: "true or false", set: func(v string) error {
		switch strings.ToLower(strings.TrimSpace(v)) {
		case "true", "1", "yes":
			*field = true
		case "false", "0", "no":
			*field = false
		default:
			return errRange
		}
		return nil
	}}
}

func word[T ~string](field *T, words ...T) reader {
	names := make([]string, len(words))
	for i, w := range words {
		names[i] = string(w)
	}
	return reader{want: strings.Join(names, " or "), set: func(v string) error {
		for _, w := range words {
			if strings.EqualFold(strings.TrimSpace(v), string(w)) {
				*field = w
				return nil
			}
		}
		return errRange
	}}
}

// addresses reads one address, or one of each family, in either order: that of
// IPv4 is the first field's then.
func addresses(first, second *netip.Addr) reader {
	return reader{want: "an IPv4 or IPv6 address, or one of each", set: func(v string) error {
		words := strings.FieldsFunc(v, func(r rune) bool { return r == ',' || unicode.IsSpace(r) })
		var list []netip.Addr
		for _, w := range words {
			a, err := address(w)
			if err != nil {
				return err
			}
			list = append(list, a)
		}
		switch {
		case len(list) == 0 || len(list) > 2:
			return errRange
		case len(list) == 2 && list[0].Is4() == list[1].Is4():
			return errors.New("two of one family")
		case len(list) == 2 && list[1].Is4():
			list[0], list[1] = list[1], list[0]
		}
		*first, *second = list[0], netip.Addr{}
		if len(list) == 2 {
			*second = list[1]
		}
		return nil
	}}
}

func address(v string) (netip.Addr, error) {
	a, err := netip.ParseAddr(v)
	switch {
	case err != nil && strings.Contains(v, "/"):
		return a, errors.New("goes without a mask")
	case err != nil:
		return a, errRange
	case a.Zone() != "":
		return a, errors.New("goes without a zone: $interface says it")
	case a.Is4In6():
		return a, fmt.Errorf("is written %s", a.Unmap())
	case a.IsUnspecified(), a.IsMulticast(), a.IsLoopback() && a.Is6(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return a, errors.New("not the address of a host")
	}
	return a, nil
}

// link reads the name of an interface by the kernel's rule (dev_valid_name).
func link(field *string) reader {
	return reader{want: "the name of a network interface", set: func(v string) error {
		v = strings.TrimSpace(v)
		odd := func(r rune) bool {
			return r == '/' || !unicode.IsPrint(r) || unicode.IsSpace(r) || r == unicode.ReplacementChar
		}
		switch {
		case v == "" || v == "." || v == ".." || strings.ContainsFunc(v, odd):
			return errRange
		case len(v) > 15:
			return errors.New("longer than 15 characters")
		case strings.Contains(v, ":"):
			return errors.New("a virtual interface: take the one that it stands on")
		}
		*field = v
		return nil
	}}
}

func path(field *string) reader {
	return reader{want: "an absolute path", path: true, set: func(v string) error {
		if !filepath.IsAbs(v) || strings.ContainsFunc(v, unicode.IsControl) {
			return errRange
		}
		if v = filepath.Clean(v); v == "/" {
			return errors.New("not the root directory")
		}
		*field = v
		return nil
	}}
}

func pathOrNone(field *string) reader {
	r := path(field)
	set := r.set
	r.want += ", or empty"
	r.set = func(v string) error {
		if v == "" {
			*field = ""
			return nil
		}
		return set(v)
	}
	return r
}

// program reads a path or, as the 2.0 programs ran it through a shell, a name.
func program(field *string) reader {
	return reader{want: "a path, or a name that is found in PATH", set: func(v string) error {
		if v == "" || strings.ContainsFunc(v, unicode.IsControl) {
			return errRange
		}
		*field = v
		return nil
	}}
}

// moved gives the present place of a path of the times when the product was
// called Zevenet: the tree has another name, and so have the hooks.
func moved(v string) (string, bool) {
	rest, ok := strings.CutPrefix(filepath.Clean(v), "/usr/local/zevenet/")
	if !ok {
		return v, false
	}
	dir, base := filepath.Split(rest)
	if hook, ok := strings.CutPrefix(base, "zevenet-ce-cluster-"); ok {
		base = "skudonet-ce-cluster-" + hook
	}
	return "/usr/local/skudonet/" + dir + base, true
}
