// Package conf reads skudonet-cluster.conf: assignments in Perl's syntax,
// taken as data. It covers what Perl makes of a string or a number (perlop,
// "Quote and Quote-like Operators"; perldata), so that a file means here what
// it meant to the Perl programs of the 2.0 package; it runs no Perl, and knows
// no arrays, expressions or statements other than an assignment.
//
// Parse is pure; Load adds the file, and CheckHost the one check that needs the
// host, through a function that the caller brings.
package conf

import (
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// DefaultPath is where the package installs the configuration.
const DefaultPath = "/usr/local/skudonet/app/ucarp/etc/skudonet-cluster.conf"

const (
	maxFile  = 64 << 10 // bytes; a file beyond this is not a configuration
	maxValue = 4096     // bytes; keeps values that interpolate each other from growing without end
)

// Secret is a password. Everything that prints it shows asterisks instead, its
// length included; string(s) is the password itself.
type Secret string

const mask = "********"

// String returns asterisks.
func (Secret) String() string { return mask }

// GoString returns asterisks.
func (Secret) GoString() string { return mask }

// Format writes asterisks, whatever the verb.
func (Secret) Format(f fmt.State, _ rune) { io.WriteString(f, mask) }

// LogValue returns asterisks.
func (Secret) LogValue() slog.Value { return slog.StringValue(mask) }

// MarshalJSON returns asterisks.
func (Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + mask + `"`), nil }

// Protocol is that of the election.
type Protocol string

const (
	VRRP Protocol = "vrrp" // VRRPv3
	CARP Protocol = "carp" // as ucarp speaks it
	Auto Protocol = "auto" // VRRPv3, and CARP while the other node is still to be upgraded
)

const (
	hexPrefix        = "hex:"
	minKey, maxKey   = 32, 64 // bytes
	hexWords         = "hex: is followed by 64 to 128 hexadecimal digits"
	passwordOrHexKey = "any text; 8 characters or more are advised; or hex: and 64 to 128 hexadecimal digits"
)

// Key returns the key that a secret of the form hex:DIGITS is, as it stands,
// which is how keepalived has keys. Anything else is a password, and no key.
func (s Secret) Key() (key []byte, ok bool) {
	digits, ok := strings.CutPrefix(string(s), hexPrefix)
	if !ok {
		return nil, false
	}
	key, err := hex.DecodeString(digits)
	return key, err == nil && len(key) >= minKey && len(key) <= maxKey
}

// Transport says how advertisements travel.
type Transport string

const (
	Multicast Transport = "multicast" // IP protocol 112 to 224.0.0.18 and ff02::12
	Unicast   Transport = "unicast"   // IP protocol 112 to the peer
	UDP       Transport = "udp"       // UDP to the peer, for clouds that pass nothing else
)

// LinkLoss says what a master does when its interface has no carrier.
type LinkLoss string

const (
	LinkLossFault  LinkLoss = "fault"  // leave the election
	LinkLossIgnore LinkLoss = "ignore" // stay master: the peer's power-off looks the same on a crossover cable
)

// Config is one valid configuration file, defaults filled in. See Keys for the
// key behind each field.
type Config struct {
	Path string // as given to Parse

	Interface                    string
	LocalIP, RemoteIP, ClusterIP netip.Addr // of one family, all different
	Second                       Addresses  // of IPv6 where there are both families, and the others then of IPv4
	Password, PasswordNext       Secret     // empty: adverts unsigned; no second password
	VRID                         uint8      // 1 to 255
	Protocol                     Protocol

	Transport      Transport
	UDPPort        uint16
	Priority       uint8 // 1 to 254
	Preempt        bool
	AdvertInterval time.Duration // whole centiseconds, 10 ms to 40.95 s
	DeadRatio      int           // missed adverts, 1 to 100
	GARPRefresh    time.Duration // 0: off
	HookTimeout    time.Duration
	LinkLoss       LinkLoss

	StartHook, StopHook, AdvertisementHook string        // absolute paths
	ConfigDir, RTTables, ReplicatorLog     string        // absolute paths
	Rsync, RsyncArgs, Exclude              string        // as in the file
	SSHPort                                uint16        // 0: what root's ssh_config says, else 22
	SSHKey                                 string        // absolute path; empty: as ssh finds one
	VerifyInterval                         time.Duration // between full comparisons, 10 s to a day
	ArchiveKeep                            int           // archives of replaced configuration, 1 to 10000

	interfaceLine, localIPLine int // for CheckHost
}

// Addresses are those of one virtual router. There is one for each family.
type Addresses struct{ LocalIP, RemoteIP, ClusterIP netip.Addr }

// Families are the addresses, by family: one, or that of IPv4 and that of IPv6.
func (c Config) Families() []Addresses {
	list := []Addresses{{c.LocalIP, c.RemoteIP, c.ClusterIP}}
	if c.Second != (Addresses{}) {
		list = append(list, c.Second)
	}
	return list
}

// ClusterIPs are what $cluster_ip is, by family.
func (c Config) ClusterIPs() (list []netip.Addr) {
	for _, f := range c.Families() {
		list = append(list, f.ClusterIP)
	}
	return list
}

// Error is one thing wrong in the file.
type Error struct {
	File string // base name
	Line int    // 0 when no line is to blame, as for a key that is missing
	Key  string // without the $; empty when the line names none
	Text string
	Err  error // the cause, if there is one
}

// Error returns the sentence, as "skudonet-cluster.conf:12: $key: text".
func (e Error) Error() string { return sentence(e.File, e.Line, e.Key, e.Text) }

// Unwrap returns the cause.
func (e Error) Unwrap() error { return e.Err }

// Errors is everything wrong in one file, in the order of its lines; what has
// no line comes last.
type Errors []Error

// Error returns the sentences, one a line.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i := range e {
		lines[i] = e[i].Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap returns the single errors.
func (e Errors) Unwrap() []error {
	errs := make([]error, len(e))
	for i := range e {
		errs[i] = e[i]
	}
	return errs
}

// Notice is something the admin should know about a file that works.
type Notice struct {
	Line      int    // 0 when it is about the whole file
	Key, Text string // Key without the $, possibly empty

	file string
}

// String returns the sentence, as "skudonet-cluster.conf:12: $key: text".
func (n Notice) String() string { return sentence(n.file, n.Line, n.Key, n.Text) }

func sentence(file string, line int, key, text string) string {
	where := file
	if line > 0 {
		where = fmt.Sprintf("%s:%d", file, line)
	}
	if key != "" {
		where += ": $" + key
	}
	return where + ": " + text
}

// Load reads and parses the file at path. Beside Parse's notices it has one
// when other users can read or write the file. The error is Errors for what is
// wrong in the file, else that of the file system.
func Load(path string) (Config, []Notice, error) {
	f, err := os.Open(path)
	if err != nil {
		return Config{}, nil, fmt.Errorf("configuration: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return Config{}, nil, fmt.Errorf("configuration: %w", err)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return Config{}, nil, fmt.Errorf("configuration: %w", err)
	}
	if len(data) > maxFile {
		return Config{}, nil, fmt.Errorf("configuration: %s: larger than 64 KiB: not a configuration file", path)
	}
	cfg, notices, err := Parse(path, data)
	if mode := info.Mode(); mode.IsRegular() && mode.Perm()&0o077 != 0 {
		notices = slices.Insert(notices, 0, Notice{
			Text: fmt.Sprintf("mode %04o lets other users at the password: chmod 600 %s", mode.Perm(), path),
			file: filepath.Base(path),
		})
	}
	return cfg, notices, err
}

// CheckHost tells whether $local_ip is an address of $interface on this host,
// or both are. addrs lists the addresses of an interface, and fails when there is none of
// that name. The error is an Error that wraps the one of addrs.
func (c Config) CheckHost(addrs func(iface string) ([]netip.Addr, error)) error {
	file := filepath.Base(c.Path)
	have, err := addrs(c.Interface)
	if err != nil {
		return Error{file, c.interfaceLine, "interface", fmt.Sprintf("%q: %v", c.Interface, err), err}
	}
	names := make([]string, len(have))
	for i, a := range have {
		have[i] = a.Unmap().WithZone("")
		names[i] = have[i].String()
	}
	for _, f := range c.Families() {
		if slices.Contains(have, f.LocalIP) {
			continue
		}
		text := fmt.Sprintf("%q: not on %s, which has ", f.LocalIP, c.Interface)
		switch {
		case slices.Contains(have, f.RemoteIP):
			text += "$remote_ip: swap $local_ip and $remote_ip on this node"
		case len(names) > 0:
			text += strings.Join(names, ", ") + ": want this node's own address on that interface"
		default:
			text += "no address: configure it there first, or correct $interface"
		}
		return Error{File: file, Line: c.localIPLine, Key: "local_ip", Text: text}
	}
	return nil
}
