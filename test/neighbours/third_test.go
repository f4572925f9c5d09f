package neighbours

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/election"
	"github.com/skudonet/skudonet-ce-cluster/test/lab"
)

// mixed is two of ours and a keepalived, all routers of one virtual router. Ours have each other as $remote_ip.
type mixed struct {
	*cluster
	vip      netip.Addr
	priority uint8 // keepalived's; ours have 100
	ours     []*lab.Node
	client   *lab.Probe
	before   map[*lab.Node]int // promotions that a node has logged in this life, when rule returned
}

func newMixed(t *testing.T, families lab.Families, kept int, priority uint8) *mixed {
	t.Helper()
	const every = 200 * time.Millisecond
	l := newWire(t, lab.Options{Nodes: 3, Families: families}, keys{"password": "", "advert_interval": fmt.Sprint(every.Seconds())})
	vip := lab.ClusterIP
	if families == lab.IPv6 {
		vip = lab.ClusterIP6
	}
	m := &mixed{cluster: newCluster(t, l, vip, l.Nodes()...), vip: vip, priority: priority}
	m.every, m.kept = every, m.nodes[kept-1]
	m.down = election.DownInterval(max(100, priority), every, 3) // the shortest of the three
	m.ours = without(m.nodes, m.kept)
	for i, n := range m.ours {
		peer := m.ours[1-i].Addr(0)
		if families == lab.IPv6 {
			peer = m.ours[1-i].Addr6(0)
		}
		m.check(n.Configure(keys{"remote_ip": peer.String()}))
	}
	return m
}

func without(nodes []*lab.Node, n *lab.Node) []*lab.Node {
	return slices.DeleteFunc(slices.Clone(nodes), func(other *lab.Node) bool { return other == n })
}

// start returns when each of them, ours or not, takes part in the election.
func (m *mixed) start(nodes ...*lab.Node) {
	m.t.Helper()
	m.cluster.start(slices.DeleteFunc(slices.Clone(nodes), func(n *lab.Node) bool { return n == m.kept })...)
	if !slices.Contains(nodes, m.kept) {
		return
	}
	const dir = "/etc/keepalived"
	bits := map[bool]int{false: 24, true: 64}[m.vip.Is6()]
	m.check(os.MkdirAll(m.kept.Root(dir), 0o755))
	m.check(m.kept.WriteFile(dir+"/keepalived.conf", fmt.Sprintf("global_defs {\n  router_id third\n  vrrp_version 3\n}\n"+
		"vrrp_instance third {\n  state BACKUP\n  nopreempt\n  interface eth0\n  virtual_router_id 1\n  priority %d\n  advert_int %v\n"+
		"  virtual_ipaddress {\n    %s/%d dev eth0\n  }\n}\n", m.priority, m.every.Seconds(), m.vip, bits), 0o644))
	m.lives++ // a log for each life
	d, err := m.kept.Start(lab.DaemonSpec{Name: fmt.Sprintf("keepalived-%d", m.lives),
		Args: []string{"nice", "-n", "-15", "keepalived", "--dont-fork", "--log-console", "--log-detail", "--vrrp"}})
	m.check(err)
	m.daemons[m.kept] = d
	m.logged(m.kept, "Entering BACKUP STATE (init)")
}

// rule makes a node master: the others leave until it is, and return.
func (m *mixed) rule(n *lab.Node) {
	m.t.Helper()
	var away []*lab.Node
	for now := m.only(); now != n; now = m.only() {
		m.stop(now)
		away = append(away, now)
		m.eventually(now.Name+" without the address", func() (bool, string) { return !slices.Contains(m.masters(), now), m.roles() })
	}
	m.start(away...)
	if m.only(); n == m.kept {
		m.calm() // ours follow it
	}
	m.before = map[*lab.Node]int{}
	for _, n := range m.nodes {
		m.before[n] = m.promotions(n)
	}
}

func (m *mixed) promotions(n *lab.Node) int {
	log := m.daemons[n].Log()
	return strings.Count(log, "Entering MASTER STATE") + strings.Count(log, "master on eth0")
}

// skew is what the slowest of the others waits that hears a goodbye.
func (m *mixed) skew() time.Duration { return election.SkewTime(min(100, m.priority), m.every) }

// again is when a master of ours announces once more. Until then a client may believe who announced last of two that met.
const again = time.Second

// succeeded waits until one of the others is the only master, and fails the test if the client was without an answer for longer
// than that, and than two that were promoted together confuse it.
func (m *mixed) succeeded(from *lab.Node, since time.Time, atMost time.Duration) (successor *lab.Node) {
	m.t.Helper()
	rest := *m.cluster
	rest.nodes = without(m.nodes, from)
	successor = rest.only()
	promoted := 0
	for _, n := range rest.nodes {
		if m.promotions(n) > m.before[n] {
			promoted++
		}
	}
	if promoted > 1 {
		atMost += again
	}
	gap := m.outage(m.client, since, atMost)
	m.t.Logf("%s is master after %s, %d promoted; the client was without it for %v, bound %v", successor.Name, from.Name, promoted, gap, atMost)
	return successor
}

// A keepalived that belongs to the virtual router, beside a pair of ours that has never heard of it.
func TestThirdIsKeepalived(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		families lab.Families
		kept     int // whose address it has: ties go by them
		first    bool
		priority uint8
	}{
		{lab.IPv4, 3, true, 90},
		{lab.IPv4, 1, true, 100},
		{lab.IPv4, 2, true, 110},
		{lab.IPv4, 1, false, 90},
		{lab.IPv6, 3, false, 100},
		{lab.IPv4, 1, false, 110},
	} {
		order := "last"
		if row.first {
			order = "first"
		}
		name := fmt.Sprintf("lb%d with priority %d is %s", row.kept, row.priority, order)
		if row.families == lab.IPv6 {
			name += ", over IPv6"
		}
		t.Run(name, func(t *testing.T) {
			m := newMixed(t, row.families, row.kept, row.priority)
			began := time.Now()
			order := append(slices.Clone(m.ours), m.kept)
			if row.first {
				slices.Reverse(order)
			}
			first := order[0]
			t.Log("who is first stays")
			m.start(first)
			m.only(first)
			m.start(order[1:]...)
			m.calm()
			m.neverTwo(began, 0)
			probe, err := m.Client.ProbeAddress(m.vip)
			m.check(err)
			m.client = probe
			m.eventually("answers from the address", func() (bool, string) { return probe.Answering(), m.roles() })

			t.Log("the master stops, of either kind")
			for _, master := range []*lab.Node{m.kept, m.ours[0]} {
				m.rule(master)
				since := time.Now()
				m.stop(master)
				m.succeeded(master, since, m.skew())
				m.only()
				m.neverTwo(since, slack)
				m.start(master)
				m.calm()
			}

			t.Log("its power is cut")
			m.rule(first)
			cut := time.Now()
			m.check(first.PowerOff())
			successor := m.succeeded(first, cut, m.down)
			m.neverTwo(cut, slack)
			if at, _ := m.watch.Last(successor, func(c lab.Claim) bool { return c.Address }); at.Sub(cut) < m.down-2*m.every {
				m.watch.Excuse(t, m.every) // its next advert may have been late
				t.Errorf("%s has taken over %v after the power cut", successor.Name, at.Sub(cut))
			}
			m.boot(first)
			m.start(first)
			m.calm()
			if now := m.only(); now != successor {
				t.Errorf("%s is master when %s is back, it was %s", now.Name, first.Name, successor.Name)
			}

			t.Log("a silent cut of the master: of two the higher priority stays, or the higher address")
			m.rule(first)
			since := time.Now()
			m.check(first.Isolate())
			rival := m.succeeded(first, since, m.down)
			healed := time.Now()
			m.check(first.Heal())
			winner := m.higher(first, rival)
			if now := m.only(); now != winner {
				t.Errorf("%s is master, want %s", now.Name, winner.Name)
			}
			m.neverTwo(healed, m.every+slack)
			m.outage(probe, healed, m.every+again)
			m.calm()

			t.Log("a hand-over by the admin")
			m.rule(m.ours[1])
			since = time.Now()
			m.check(m.daemons[m.ours[1]].Signal(unix.SIGUSR2))
			m.succeeded(m.ours[1], since, 0)
			m.neverTwo(since, slack)
			m.logged(m.ours[1], "handed over to ")
			m.calm()
			for _, n := range m.ours {
				if r := m.report(n); len(r.Drops) > 0 || len(r.Faults) > 0 || strings.Contains(m.daemons[n].Log(), "refused") {
					t.Errorf("%s has refused %v, and complains of %v:\n%s", n.Name, r.Drops, r.Faults, m.daemons[n].Log())
				}
			}
		})
	}
}

// higher is who wins when both are master.
func (m *mixed) higher(a, b *lab.Node) *lab.Node {
	rank := func(n *lab.Node) int {
		priority := 100
		if n == m.kept {
			priority = int(m.priority)
		}
		return priority*10 + slices.Index(m.nodes, n)
	}
	if rank(a) > rank(b) {
		return a
	}
	return b
}
