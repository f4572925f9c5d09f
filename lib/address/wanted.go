// Package address knows the virtual addresses of a cluster node and puts them on its links.
//
// Wanted reads them from Skudonet's configuration tree: the files if_PARENT:NAME_conf, one INI section each, as Skudonet CE 7
// reads them, plus $cluster_ip. Up, Down and Missing compare that with the kernel and change it by rtnetlink(7), thousands of
// addresses in a few system calls, in the form that Skudonet itself uses:
//
//	ip addr add A/M broadcast + dev PARENT label PARENT:NAME noprefixroute
//	ip addr add A/M dev PARENT noprefixroute nodad preferred_lft 0
//
// The second is for IPv6, which knows no labels. Skudonet says nothing of the last two words there: with them a node does not
// choose the address for connections of its own, which would end when it moves. Linux never does that with those of IPv4.
//
// The package announces nothing (lib/announce), and sets no NIC address.
package address

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/bits"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// Address is one virtual address and where it belongs.
type Address struct {
	Prefix netip.Prefix // the address itself with its prefix length, not masked
	Link   string       // the link that carries it, Skudonet's parent interface
	Label  string       // Skudonet's name for it, such as eth0:web; empty means the link's name
}

func (a Address) String() string {
	if a.Label == "" || a.Label == a.Link {
		return fmt.Sprintf("%s on %s", a.Prefix, a.Link)
	}
	return fmt.Sprintf("%s on %s (%s)", a.Prefix, a.Link, a.Label)
}

// Notice is something odd in an interface file that the admin should know and that stops nothing.
type Notice struct {
	File   string // its name in the configuration tree, "." for the tree itself
	Text   string
	Unread bool // nothing is known of it, which is not to say that its address is not wanted
}

func (n Notice) String() string { return n.File + ": " + n.Text }

const (
	maxName = 15       // IFNAMSIZ less its NUL, for links and labels
	maxFile = 64 << 10 // real interface files have some 100 bytes
)

// Wanted returns the addresses that a master carries: every virtual interface in the configuration tree dir with status up,
// and those of cluster always. The prefix length is that of the parent's own file, as in Skudonet, where that has an address of
// the same family, else the mask in the virtual interface's file, else that of a single host. The addresses of cluster come
// first; one that no file has is put on iface as it stands in cluster, as a single host if its prefix is not valid.
// The address of a NIC itself is in no list, not even as one of cluster: who moved it would cut the node off.
//
// A file that cannot be used is left out with a notice. Who holds addresses from before keeps those of an Unread one.
func Wanted(dir fs.FS, cluster []netip.Prefix, iface string) ([]Address, []Notice) {
	t := readTree(dir)
	files := make([]*virtual, len(cluster)) // that have them
	var rest []Address
	type place struct {
		ip   netip.Addr
		link string
	}
	seen := map[place]string{}
	for _, v := range t.virtual {
		ip := v.address.Prefix.Addr()
		for i, c := range cluster {
			if ip == c.Addr().Unmap() && (files[i] == nil || v.up() && !files[i].up()) {
				files[i] = &v
			}
		}
		if !v.up() {
			continue
		}
		if nic, ok := t.nic[ip]; ok {
			t.notice(v.file, "addr %s is the address of %s itself: left alone", ip, nic)
			continue
		}
		at := place{ip, v.address.Link}
		if first, twice := seen[at]; twice {
			t.notice(v.file, "addr %s is in %s already", ip, first)
			continue
		}
		seen[at] = v.file
		rest = append(rest, v.address)
	}
	want := make([]Address, 0, len(cluster)+len(rest))
	for i, c := range cluster {
		ip, file := c.Addr().Unmap(), files[i]
		if nic, ok := t.nic[ip]; ok {
			t.notice(fileOf(nic), "%s is $cluster_ip and the address of %s itself: left alone; are $cluster_ip and $local_ip exchanged?", ip, nic)
			continue
		}
		switch {
		case file == nil:
			bits := c.Bits()
			if bits < 1 {
				bits = ip.BitLen()
			}
			a := Address{netip.PrefixFrom(ip, bits), iface, iface + ":skd"}
			if len(a.Label) > maxName {
				a.Label = ""
			}
			want = append(want, a)
			continue
		case !file.up():
			t.notice(file.file, "status is %q, but %s is $cluster_ip: a master brings it up all the same", file.status, ip)
		}
		want = append(want, file.address)
	}
	first := want
	for _, a := range rest {
		if !slices.ContainsFunc(first, func(c Address) bool { return a.Link == c.Link && a.Prefix.Addr() == c.Prefix.Addr() }) {
			want = append(want, a)
		}
	}
	return want, t.notices
}

// Holds tells whether a virtual interface in the configuration tree dir has one
// of the addresses, whatever its status.
func Holds(dir fs.FS, ips ...netip.Addr) bool {
	return slices.ContainsFunc(readTree(dir).virtual, func(v virtual) bool {
		return slices.ContainsFunc(ips, func(ip netip.Addr) bool { return ip.Unmap() == v.address.Prefix.Addr() })
	})
}

// tree is what the interface files of one configuration tree say.
type tree struct {
	dir     fs.FS
	virtual []virtual             // usable, in the order of their names
	nic     map[netip.Addr]string // the addresses of NICs and VLANs, which are not ours to move
	bits    map[string]mask       // of NICs and VLANs
	notices []Notice
}

// mask is a prefix length of addresses with so many bits.
type mask struct{ bits, of int }

type virtual struct {
	file    string
	address Address
	status  string
}

func (v virtual) up() bool { return v.status == "up" }

func (t *tree) notice(file, format string, args ...any) {
	t.notices = append(t.notices, Notice{File: file, Text: fmt.Sprintf(format, args...)})
}

// unread notes a file that could not be read, or was found half written.
func (t *tree) unread(file string, err error) {
	t.notices = append(t.notices, Notice{file, err.Error(), !errors.Is(err, fs.ErrNotExist)})
}

func readTree(dir fs.FS) *tree {
	t := &tree{dir: dir, nic: map[netip.Addr]string{}, bits: map[string]mask{}}
	entries, err := fs.ReadDir(dir, ".")
	if err != nil {
		t.notices = append(t.notices, Notice{".", fmt.Sprintf("cannot list the configuration tree: %v", cause(err)), true})
	}
	var labels []string
	for _, e := range entries {
		name, ok := strings.CutPrefix(e.Name(), "if_")
		if !ok {
			continue
		}
		if name, ok = strings.CutSuffix(name, "_conf"); !ok || name == "" {
			continue
		}
		if strings.Contains(name, ":") {
			labels = append(labels, name)
			continue
		}
		t.readNIC(name)
	}
	for _, label := range labels {
		t.readVirtual(label)
	}
	return t
}

func fileOf(name string) string { return "if_" + name + "_conf" }

func (t *tree) readNIC(name string) {
	f, err := t.read(name)
	if err != nil {
		t.unread(fileOf(name), err)
		return
	}
	of := 32
	if ip, err := netip.ParseAddr(f.addr); err == nil {
		ip = ip.Unmap()
		t.nic[ip] = name
		of = ip.BitLen()
	}
	if f.mask == "" {
		return
	}
	n, err := maskBits(f.mask, of)
	if err != nil {
		t.notice(fileOf(name), "%v", err)
		return
	}
	t.bits[name] = mask{n, of}
}

func (t *tree) readVirtual(label string) {
	file := fileOf(label)
	link, suffix, _ := strings.Cut(label, ":")
	switch {
	case link == "" || suffix == "":
		t.notice(file, "want a name like if_eth0:web_conf")
		return
	case len(label) > maxName:
		t.notice(file, "%q is longer than the %d characters that Linux allows", label, maxName)
		return
	case strings.ContainsFunc(label, func(r rune) bool { return r == '/' || !unicode.IsGraphic(r) || unicode.IsSpace(r) }):
		t.notice(file, "%q is no interface name", label)
		return
	}
	f, err := t.read(label)
	if err != nil {
		t.unread(file, err)
		return
	}
	ip, err := netip.ParseAddr(f.addr)
	ip = ip.Unmap()
	switch {
	case f.addr == "":
		t.notice(file, "no addr")
		return
	case err != nil:
		t.notice(file, "addr %q: want an IPv4 or IPv6 address", f.addr)
		return
	case ip.Zone() != "":
		t.notice(file, "addr %q: want it without a zone: the interface is in the name of the file", f.addr)
		return
	case ip.IsUnspecified() || ip.IsMulticast() || ip == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		t.notice(file, "addr %s: no address of a host", ip)
		return
	}
	m := t.bits[link]
	if m.of != ip.BitLen() {
		m = mask{ip.BitLen(), ip.BitLen()}
		if f.mask != "" {
			n, err := maskBits(f.mask, m.of)
			if err == nil {
				m.bits = n
			} else {
				t.notice(file, "%v; taken as %d", err, m.bits)
			}
		}
	}
	t.virtual = append(t.virtual, virtual{file, Address{netip.PrefixFrom(ip, m.bits), link, label}, f.status})
}

// read returns what the file of the interface says. A line that is neither section nor assignment is said and skipped: the
// rest may still name an address that this node has to keep silent about.
func (t *tree) read(name string) (fields, error) {
	file := fileOf(name)
	// A FIFO would block for ever when opened.
	info, err := fs.Stat(t.dir, file)
	if err != nil {
		return fields{}, cause(err)
	}
	if !info.Mode().IsRegular() {
		return fields{}, errors.New("not a regular file")
	}
	r, err := t.dir.Open(file)
	if err != nil {
		return fields{}, cause(err)
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err != nil {
		return fields{}, cause(err)
	}
	if len(data) > maxFile {
		return fields{}, fmt.Errorf("larger than %d KiB: no interface file", maxFile>>10)
	}
	f, line, err := parse(data, name)
	if line > 0 {
		t.notice(file, "line %d: want key=value; ignored", line)
	}
	return f, err
}

// cause drops operation and path from the error of a file: a notice begins with the name.
func cause(err error) error {
	if p := (*fs.PathError)(nil); errors.As(err, &p) {
		return p.Err
	}
	return err
}

// fields is what concerns us in an interface file, as written.
type fields struct{ addr, mask, status string }

// parse returns the values of the section called name, and the first line that says nothing (0 if there is none).
func parse(data []byte, name string) (f fields, oddLine int, err error) {
	var found, here bool
	n := 0
	for line := range bytes.Lines(bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))) {
		n++
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' || line[0] == ';' {
			continue
		}
		if line[0] == '[' && line[len(line)-1] == ']' {
			here = string(bytes.TrimSpace(line[1:len(line)-1])) == name
			found = found || here
			continue
		}
		key, value, ok := bytes.Cut(line, []byte("="))
		if !ok {
			if oddLine == 0 {
				oddLine = n
			}
			continue
		}
		if !here {
			continue
		}
		v := string(bytes.TrimSpace(value))
		switch string(bytes.TrimSpace(key)) {
		case "addr":
			f.addr = v
		case "mask":
			f.mask = v
		case "status":
			f.status = v
		}
	}
	if !found {
		return fields{}, oddLine, fmt.Errorf("no section [%s]", name)
	}
	return f, oddLine, nil
}

// maskBits reads 255.255.255.0 or 24, and for addresses of 128 bits 64 alone.
func maskBits(s string, of int) (int, error) {
	if n, err := strconv.ParseUint(s, 10, 8); err == nil && n >= 1 && n <= uint64(of) {
		return int(n), nil
	}
	if of != 32 {
		return 0, fmt.Errorf("mask %q: want a number of bits like 64", s)
	}
	if m, err := netip.ParseAddr(s); err == nil && m.Is4() {
		b := m.As4()
		v := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
		if n := bits.LeadingZeros32(^v); n > 0 && bits.TrailingZeros32(v) == 32-n {
			return n, nil
		}
	}
	return 0, fmt.Errorf("mask %q: want one like 255.255.255.0 or 24", s)
}
