// Package guard keeps a node that is not master silent about the virtual addresses.
//
// Skudonet raises its virtual addresses at boot and whenever somebody starts it, on every node. The guard is a small nftables
// table, `netdev skudonet-ce-cluster`, that lets no ARP message leave with one of them as its sender, and no neighbour message of
// IPv6 (RFC 4861) that speaks for one: not from the kernel, not from packet sockets, on no link. It hooks egress of every link of the network namespace except loopback, which Linux can since
// 5.16, and speaks nfnetlink itself, so that nft(8) need not be installed, and one transaction replaces the whole.
//
// The table outlives the process that raised it, as it must. nftables binds a chain to the links that exist: for one that comes
// later Standing says false until somebody calls Raise again. The package decides nothing about when.
package guard

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"

	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/nlmsg"
)

// Table is the name of the guard's table, of family netdev.
const Table = "skudonet-ce-cluster"

const (
	set4    = "addresses"
	set6    = "addresses6"
	chain   = "egress"
	comment = "this node is not master: nothing leaves that names a virtual address as its own"

	// The kernel takes 255 links in one chain.
	chainLinks = 200
	// An attribute holds 64 KiB, and an element takes 16 bytes, one of IPv6 28.
	messageElements = 2048
)

// rules of each chain. For IPv4 they look at one thing, the sender address of an ARP message, wherever Linux may have put it. The
// first meets nearly all of them. A packet socket may name another protocol than it sends, or (PACKET_QDISC_BYPASS) come without the
// place of its Ethernet header, so the second goes by what is in the message alone. And for the short frame of a raw packet
// socket on a VLAN whose NIC writes no tags, Linux takes the beginning of the Ethernet header for that of the message
// (packet_snd in net/packet/af_packet.c); for a longer one, what follows four bytes into the message.
//
// For IPv6 they go by what is in the message alone, behind a header without extensions, as all neighbour messages are. They look
// at the source of any of them, because most carry the source's hardware address in an option, and at the target of an
// advertisement. A solicitation with one of the addresses as its target passes, for that is how this node finds the master, unless
// it has no source: then it looks for duplicates of the address, because somebody has raised it here without nodad, and the
// master's answer would leave it unusable on this node for good.
var rules = slices.Concat([]rule{
	{"ARP", []expr.Any{
		&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: 1}, equal(0x08, 0x06),
		network(14, 4), isGuarded, &expr.Counter{}, drop,
	}},
	{"ARP that is called something else", []expr.Any{
		network(0, 6), equal(0, 1, 8, 0, 6, 4),
		network(14, 4), isGuarded, &expr.Counter{}, drop,
	}},
	{"raw ARP on a VLAN", []expr.Any{
		network(12, 8), equal(0x08, 0x06, 0, 1, 8, 0, 6, 4),
		network(28, 4), isGuarded, &expr.Counter{}, drop,
	}},
	{"raw ARP with padding on a VLAN", []expr.Any{
		network(0, 2), equal(6, 4),
		network(10, 4), isGuarded, &expr.Counter{}, drop,
	}},
}, neighbourRules(0, ""), neighbourRules(4, ", raw on a VLAN"))

// neighbourRules are those for neighbour messages of which this many bytes are cut off.
func neighbourRules(cut uint32, where string) []rule {
	source, target := network(8-cut, 16), network(48-cut, 16)
	return []rule{
		{"neighbour message from a virtual address" + where, append(icmp6(cut, routerSolicitation, redirect),
			source, isGuarded6, &expr.Counter{}, drop,
		)},
		{"neighbour advertisement" + where, append(icmp6(cut, neighborAdvertisement, neighborAdvertisement),
			target, isGuarded6, &expr.Counter{}, drop,
		)},
		{"duplicate address detection" + where, append(icmp6(cut, neighborSolicitation, neighborSolicitation),
			source, equal(make([]byte, 16)...), target, isGuarded6, &expr.Counter{}, drop,
		)},
	}
}

// Types of ICMPv6, RFC 4861 §4; router advertisement, 134, lies between.
const (
	routerSolicitation    = 133
	neighborSolicitation  = 135
	neighborAdvertisement = 136
	redirect              = 137
)

// icmp6 matches IPv6 packets with an ICMPv6 message of these types. Of one that is cut
// the version is not there.
func icmp6(cut uint32, first, last byte) []expr.Any {
	match := []expr.Any{network(6-cut, 1), equal(unix.IPPROTO_ICMPV6)}
	if cut == 0 {
		match = append(match, network(0, 1), &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{0xf0}, Xor: []byte{0}}, equal(6<<4))
	}
	return append(match, network(40-cut, 1), &expr.Cmp{Op: expr.CmpOpGte, Register: 1, Data: []byte{first}}, &expr.Cmp{Op: expr.CmpOpLte, Register: 1, Data: []byte{last}})
}

type rule struct {
	name  string // shown by nft list ruleset as the rule's comment
	exprs []expr.Any
}

var (
	isGuarded  = &expr.Lookup{SourceRegister: 1, SetName: set4}
	isGuarded6 = &expr.Lookup{SourceRegister: 1, SetName: set6}
	drop       = &expr.Verdict{Kind: expr.VerdictDrop}
)

// network loads n bytes at an offset from the network header.
func network(offset, n uint32) expr.Any {
	return &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: n}
}

func equal(b ...byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: b} }

// Guard is an open nfnetlink socket. It may be used by several goroutines.
type Guard struct {
	mu    sync.Mutex
	nft   *nfnetlink
	lower *batch // ready to send: lowering is the first act of a promotion
}

// Open opens the socket, in the network namespace of the calling thread. It changes nothing.
func Open() (*Guard, error) {
	nft, err := dial(0)
	if err != nil {
		return nil, fmt.Errorf("guard: %w", err)
	}
	g := &Guard{nft: nft, lower: newBatch()}
	g.lower.deleteTable()
	g.lower.end()
	return g, nil
}

// Close closes the socket. What stands, stands on.
func (g *Guard) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.nft.close()
}

// Raise guards exactly addrs on all links that exist now, in one transaction that replaces what stood before.
// After an error what stood before still stands.
func (g *Guard) Raise(addrs []netip.Addr) error {
	guarded, err := normal(addrs)
	if err != nil {
		return fmt.Errorf("guard: %w", err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	// A link that goes between our look and the transaction makes it fail before Linux 6.16: look again.
	for range 5 {
		var names []string
		if names, err = links(); err != nil {
			return fmt.Errorf("guard: links: %w", err)
		}
		now, _ := g.hooks() // not knowing them is no reason not to raise
		if err = g.nft.commit(raise(guarded, names, after(now))); !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
			break
		}
	}
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) {
		err = fmt.Errorf("%w: it takes Linux 5.16 or newer with CONFIG_NF_TABLES_NETDEV and CONFIG_NETFILTER_EGRESS", err)
	}
	if err != nil {
		return fmt.Errorf("guard: %w", err)
	}
	return nil
}

// Lower takes the guard away. It is no error if there is none.
func (g *Guard) Lower() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.nft.commit(g.lower); err != nil {
		return fmt.Errorf("guard: %w", err)
	}
	return nil
}

// Present reports whether there is a guard at all, whatever it covers.
func (g *Guard) Present() (bool, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	found := false
	err := g.nft.dump(unix.NFT_MSG_GETTABLE, nil, func() { found = false }, func(b []byte) {
		found = found || nlmsg.String(nlmsg.Attr(b, unix.NFTA_TABLE_NAME)) == Table
	})
	if err != nil {
		return false, fmt.Errorf("guard: %w", err)
	}
	return found, nil
}

// Standing reports whether the guard stands as Raise(addrs) would leave it: exactly these addresses, all rules, all links.
// Whoever gets an error does not know, and raises.
func (g *Guard) Standing(addrs []netip.Addr) (bool, error) {
	guarded, err := normal(addrs)
	if err != nil {
		return false, fmt.Errorf("guard: %w", err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	names, err := links()
	if err != nil {
		return false, fmt.Errorf("guard: links: %w", err)
	}
	ok, err := g.standing(guarded, names)
	switch {
	case errors.Is(err, unix.ENOENT): // the table or one of its sets
		return false, nil
	case err != nil:
		return false, fmt.Errorf("guard: %w", err)
	}
	return ok, nil
}

func (g *Guard) standing(addrs []netip.Addr, links []string) (bool, error) {
	now, err := g.hooks()
	if err != nil || !covers(now, links) {
		return false, err
	}
	if ok, err := g.hasRules(len(now)); err != nil || !ok {
		return false, err
	}
	for _, s := range sets(addrs) {
		if ok, err := g.holds(s); err != nil || !ok {
			return false, err
		}
	}
	return true, nil
}

// normal sorts, and drops duplicates.
func normal(addrs []netip.Addr) ([]netip.Addr, error) {
	n := make([]netip.Addr, len(addrs))
	for i, ip := range addrs {
		if n[i] = ip.Unmap().WithZone(""); !n[i].IsValid() {
			return nil, errors.New("an address is missing")
		}
	}
	slices.SortFunc(n, netip.Addr.Compare)
	return slices.Compact(n), nil
}

// family is one of the sets: nftables has one type of key in each.
type family struct {
	set      string
	id       uint32 // in the transaction
	typ, len uint32 // of a key
	addrs    []netip.Addr
}

// sets are the sets that hold sorted addresses; in that order those of IPv4 come first.
func sets(addrs []netip.Addr) [2]family {
	n := slices.IndexFunc(addrs, netip.Addr.Is6)
	if n < 0 {
		n = len(addrs)
	}
	return [...]family{{set4, 1, nftTypeIPv4Addr, 4, addrs[:n]}, {set6, 2, nftTypeIPv6Addr, 16, addrs[n:]}}
}

// links returns the names of all links but loopback, whose packets never leave.
func links() ([]string, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, l := range all {
		if l.Flags&net.FlagLoopback == 0 {
			names = append(names, l.Name)
		}
	}
	return names, nil
}

func chainName(i int) string {
	if i == 0 {
		return chain
	}
	return chain + "-" + strconv.Itoa(i+1)
}

// after returns a priority behind that of the chains that stand. Both hook a packet while the transaction is carried out: the old
// chain lets it pass from the moment on in which the new one stops it, so the packet has to meet the old one first. The other
// way round one got away in 60,000 that were sent during 200 transactions.
func after(now []hook) int32 {
	priority := int32(0)
	for _, h := range now {
		if h.priority < math.MaxInt32 {
			priority = max(priority, h.priority+1)
		}
	}
	return priority
}

// raise returns the transaction that replaces whatever there is. The chains come before the elements: the longer the new ones
// have been there when the old ones end, the less likely is a packet that has seen only the old.
func raise(addrs []netip.Addr, names []string, priority int32) *batch {
	t := newBatch()
	t.deleteTable()
	t.add("table", unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, func(b []byte) []byte {
		return nlmsg.AppendAttr(appendTable(b), nftaTableUserdata, userdata.AppendString(nil, userdata.TypeComment, comment))
	})

	sets := sets(addrs)
	for _, s := range sets {
		t.add("set", unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE, func(b []byte) []byte {
			b = nlmsg.AppendString(b, unix.NFTA_SET_TABLE, Table)
			b = nlmsg.AppendString(b, unix.NFTA_SET_NAME, s.set)
			b = appendUint32(b, unix.NFTA_SET_ID, s.id)
			b = appendUint32(b, unix.NFTA_SET_KEY_TYPE, s.typ)
			b = appendUint32(b, unix.NFTA_SET_KEY_LEN, s.len)
			if len(s.addrs) == 0 {
				return b
			}
			// A known size lets the kernel pick a hash table that it need not grow.
			return nlmsg.AppendNested(b, unix.NFTA_SET_DESC, func(b []byte) []byte {
				return appendUint32(b, unix.NFTA_SET_DESC_SIZE, uint32(len(s.addrs)))
			})
		})
	}
	i := 0
	for some := range slices.Chunk(names, chainLinks) {
		name := chainName(i)
		i++
		t.add("chain", unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, func(b []byte) []byte {
			b = nlmsg.AppendString(b, unix.NFTA_CHAIN_TABLE, Table)
			b = nlmsg.AppendString(b, unix.NFTA_CHAIN_NAME, name)
			b = nlmsg.AppendString(b, unix.NFTA_CHAIN_TYPE, "filter")
			return nlmsg.AppendNested(b, unix.NFTA_CHAIN_HOOK, func(b []byte) []byte {
				b = appendUint32(b, unix.NFTA_HOOK_HOOKNUM, unix.NF_NETDEV_EGRESS)
				b = appendUint32(b, unix.NFTA_HOOK_PRIORITY, uint32(priority))
				return nlmsg.AppendNested(b, nftaHookDevs, func(b []byte) []byte {
					for _, name := range some {
						b = nlmsg.AppendString(b, nftaDeviceName, name)
					}
					return b
				})
			})
		})
		for _, r := range rules {
			t.add("rule", unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, func(b []byte) []byte {
				b = nlmsg.AppendString(b, unix.NFTA_RULE_TABLE, Table)
				b = nlmsg.AppendString(b, unix.NFTA_RULE_CHAIN, name)
				b = nlmsg.AppendAttr(b, unix.NFTA_RULE_USERDATA, r.userdata())
				return nlmsg.AppendNested(b, unix.NFTA_RULE_EXPRESSIONS, func(b []byte) []byte {
					for _, e := range r.exprs {
						b = appendExpr(b, e)
					}
					return b
				})
			})
		}
	}

	for _, s := range sets {
		for some := range slices.Chunk(s.addrs, messageElements) {
			t.add("addresses", unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, func(b []byte) []byte {
				b = nlmsg.AppendString(b, unix.NFTA_SET_ELEM_LIST_TABLE, Table)
				b = nlmsg.AppendString(b, unix.NFTA_SET_ELEM_LIST_SET, s.set)
				return nlmsg.AppendNested(b, unix.NFTA_SET_ELEM_LIST_ELEMENTS, func(b []byte) []byte {
					for _, ip := range some {
						b = appendElement(b, ip)
					}
					return b
				})
			})
		}
	}
	t.end()
	return t
}

// deleteTable makes the table go whether it is there or not. Deleting one that is not there would be refused, and a refusal
// costs an RCU grace period, 10 ms or so.
func (t *batch) deleteTable() {
	t.add("table", unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, appendTable)
	t.add("table", unix.NFT_MSG_DELTABLE, 0, appendTable)
}

func appendTable(b []byte) []byte { return nlmsg.AppendString(b, unix.NFTA_TABLE_NAME, Table) }

func (r rule) userdata() []byte { return userdata.AppendString(nil, userdata.TypeComment, r.name) }

func appendElement(b []byte, ip netip.Addr) []byte {
	return nlmsg.AppendNested(b, unix.NFTA_LIST_ELEM, func(b []byte) []byte {
		return nlmsg.AppendNested(b, unix.NFTA_SET_ELEM_KEY, func(b []byte) []byte {
			if ip.Is4() {
				key := ip.As4()
				return nlmsg.AppendAttr(b, unix.NFTA_DATA_VALUE, key[:])
			}
			key := ip.As16()
			return nlmsg.AppendAttr(b, unix.NFTA_DATA_VALUE, key[:])
		})
	})
}

// appendExpr panics when the library cannot marshal one of the constant expressions above.
func appendExpr(b []byte, e expr.Any) []byte {
	data, err := expr.Marshal(unix.NFPROTO_NETDEV, e)
	if err != nil {
		panic(err)
	}
	return nlmsg.AppendAttr(b, unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, data)
}

// hook is what one of our chains is bound to.
type hook struct {
	priority int32
	links    []string
}

func (g *Guard) hooks() ([]hook, error) {
	var found []hook
	err := g.nft.dump(unix.NFT_MSG_GETCHAIN, nil, func() { found = nil }, func(b []byte) {
		if nlmsg.String(nlmsg.Attr(b, unix.NFTA_CHAIN_TABLE)) != Table {
			return
		}
		var h hook
		egress := false
		for typ, v := range nlmsg.Attrs(nlmsg.Attr(b, unix.NFTA_CHAIN_HOOK)) {
			switch {
			case typ == unix.NFTA_HOOK_HOOKNUM && len(v) == 4:
				egress = binary.BigEndian.Uint32(v) == unix.NF_NETDEV_EGRESS
			case typ == unix.NFTA_HOOK_PRIORITY && len(v) == 4:
				h.priority = int32(binary.BigEndian.Uint32(v))
			case typ == nftaHookDevs:
				for typ, name := range nlmsg.Attrs(v) {
					if typ == nftaDeviceName {
						h.links = append(h.links, nlmsg.String(name))
					}
				}
			}
		}
		if egress {
			found = append(found, h)
		}
	})
	return found, err
}

// covers reports whether the chains hook all these links. More is fine: since Linux 6.16 a chain remembers links that went.
func covers(now []hook, links []string) bool {
	hooked := map[string]bool{}
	for _, h := range now {
		for _, name := range h.links {
			hooked[name] = true
		}
	}
	return !slices.ContainsFunc(links, func(name string) bool { return !hooked[name] })
}

// hasRules reports whether the table has our rules, in order, in that many chains, and no other.
func (g *Guard) hasRules(chains int) (bool, error) {
	var found [][]byte
	err := g.nft.dump(unix.NFT_MSG_GETRULE, func(b []byte) []byte {
		return nlmsg.AppendString(b, unix.NFTA_RULE_TABLE, Table)
	}, func() { found = nil }, func(b []byte) {
		if nlmsg.String(nlmsg.Attr(b, unix.NFTA_RULE_TABLE)) == Table {
			found = append(found, bytes.Clone(nlmsg.Attr(b, unix.NFTA_RULE_USERDATA)))
		}
	})
	if err != nil {
		return false, err
	}
	if len(found) != chains*len(rules) {
		return false, nil
	}
	for i, u := range found {
		if !bytes.Equal(u, rules[i%len(rules)].userdata()) {
			return false, nil
		}
	}
	return true, nil
}

// holds reports whether the set has exactly its addresses, which are sorted.
func (g *Guard) holds(s family) (bool, error) {
	found := make([]netip.Addr, 0, len(s.addrs))
	err := g.nft.dump(unix.NFT_MSG_GETSETELEM, func(b []byte) []byte {
		b = nlmsg.AppendString(b, unix.NFTA_SET_ELEM_LIST_TABLE, Table)
		return nlmsg.AppendString(b, unix.NFTA_SET_ELEM_LIST_SET, s.set)
	}, func() { found = found[:0] }, func(b []byte) {
		for _, element := range nlmsg.Attrs(nlmsg.Attr(b, unix.NFTA_SET_ELEM_LIST_ELEMENTS)) {
			if ip, ok := netip.AddrFromSlice(nlmsg.Attr(nlmsg.Attr(element, unix.NFTA_SET_ELEM_KEY), unix.NFTA_DATA_VALUE)); ok {
				found = append(found, ip)
			}
		}
	})
	if err != nil {
		return false, err
	}
	slices.SortFunc(found, netip.Addr.Compare)
	return slices.Equal(found, s.addrs), nil
}
