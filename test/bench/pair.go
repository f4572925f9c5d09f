package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/carp"
	"github.com/skudonet/skudonet-ce-cluster/lib/election"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
	"github.com/skudonet/skudonet-ce-cluster/test/lab"
)

// product is a program that elects a master, and how it is handled in a lab.
type product struct {
	name     string        // in the tables
	program  string        // its executable
	carp     bool          // elects with CARP, at least beside ucarp, and not with VRRPv3
	fastest  time.Duration // shortest interval between adverts that it knows
	handOver unix.Signal   // 0: it cannot
	retires  bool          // skd-hooks retire ends it
	// install writes the configuration of one node, for a pair that carries these addresses; the first is $cluster_ip.
	install func(n *lab.Node, every time.Duration, addrs []netip.Addr) error
	args    func(n *lab.Node) []string
	// state is status.Master or status.Backup when the node is that and has nothing else to do, else another word.
	state func(n *lab.Node, d *lab.Daemon) string
	// worker is the process that holds the election.
	worker func(d *lab.Daemon) (pid int)
	// down is after how long without an advert a backup takes over, by the product's own formula.
	down func(every time.Duration) time.Duration
	late time.Duration // up to which it notices that later
}

const (
	priority  = 100 // of both nodes; none preempts
	deadRatio = 3
)

func vrrpDown(every time.Duration) time.Duration {
	return election.DownInterval(priority, every, deadRatio)
}

// carpDown is how long a backup of ours waits for a master that it hears with CARP: ucarp's formula, and half an interval
// more, because the master's next advert is due at the very end of that.
func carpDown(every time.Duration) time.Duration {
	t := election.TimingOf(priority, every)
	return t.Down(deadRatio) + t.Interval()/2
}

// Ours: a pair of it, one that speaks CARP alone, the upgraded node beside ucarp, and the one beside a keepalived, which
// takes no signed adverts.
var (
	skudonet     = ours("skd-vrrpd", nil)
	skudonetCARP = ours("skd-vrrpd (CARP)", map[string]string{"protocol": "carp"})
	upgraded     = ours("skd-vrrpd", map[string]string{"protocol": "auto"})
	unsigned     = ours("skd-vrrpd", map[string]string{"password": ""})
)

// ours is skd-vrrpd with these keys in its configuration.
func ours(name string, keys map[string]string) *product {
	p := &product{name: name, program: "skd-vrrpd", fastest: 10 * time.Millisecond, handOver: unix.SIGUSR2, down: vrrpDown}
	if keys["protocol"] != "" {
		p.carp, p.fastest, p.down = true, time.Second, carpDown
	}
	p.install = func(n *lab.Node, every time.Duration, addrs []netip.Addr) error {
		all := map[string]string{"advert_interval": strconv.FormatFloat(every.Seconds(), 'f', -1, 64)}
		maps.Copy(all, keys)
		if len(addrs) > 1 {
			// How long Skudonet, or what stands in for it, takes for so many interfaces is not the matter here.
			all["up_script"], all["down_script"] = "/bin/true", "/bin/true"
		}
		for i, addr := range addrs[1:] {
			if err := n.WriteInterface(fmt.Sprintf("eth0:v%d", i+1), addr, true); err != nil {
				return err
			}
		}
		return n.Configure(all)
	}
	p.args = func(*lab.Node) []string { return []string{"skd-vrrpd", "-c", lab.ConfigPath} }
	p.state = func(n *lab.Node, _ *lab.Daemon) string {
		d, err := status.ReadDaemon(n.Root(filepath.Join(status.RunDir, status.DaemonFile)))
		if err != nil {
			return err.Error()
		}
		for _, h := range d.Hooks {
			if h.State == status.HookRunning {
				return d.State + ", hook " + h.Name
			}
		}
		if word := n.Status(); word != d.State {
			return d.State + ", status " + word
		}
		return d.State
	}
	p.worker = (*lab.Daemon).PID
	return p
}

var keepalived = &product{
	name: "keepalived", program: "keepalived", fastest: 10 * time.Millisecond, down: vrrpDown,
	install: func(n *lab.Node, every time.Duration, addrs []netip.Addr) error {
		var text strings.Builder
		fmt.Fprintf(&text, "global_defs {\n  vrrp_version 3\n}\nvrrp_instance bench {\n  state BACKUP\n  nopreempt\n  interface eth0\n"+
			"  virtual_router_id 1\n  priority %d\n  advert_int %g\n  virtual_ipaddress {\n    %s/24 dev eth0\n  }\n", priority, every.Seconds(), addrs[0])
		if len(addrs) > 1 {
			text.WriteString("  virtual_ipaddress_excluded {\n")
			for _, addr := range addrs[1:] {
				fmt.Fprintf(&text, "    %s/24 dev eth0\n", addr)
			}
			text.WriteString("  }\n")
		}
		text.WriteString("}\n")
		if err := os.MkdirAll(n.Root("/etc/keepalived"), 0o755); err != nil {
			return err
		}
		return n.WriteFile("/etc/keepalived/keepalived.conf", text.String(), 0o644)
	},
	args:  func(*lab.Node) []string { return []string{"keepalived", "--dont-fork", "--log-console", "--vrrp"} },
	state: lastInLog(regexp.MustCompile(`Entering (MASTER|BACKUP) STATE`)),
	worker: func(d *lab.Daemon) int {
		// The parent only starts the child again.
		if family := family(d.PID()); len(family) == 2 {
			return family[1]
		}
		return 0
	},
}

const (
	// ucarpHooks are where skd-hooks retire looks, to tell which ucarp it may end.
	ucarpHooks = "/usr/local/skudonet/app/ucarp/sbin/skudonet-ce-cluster-"
	// retired keeps a ucarp that was ended by skd-hooks retire from being started again.
	retired = "/run/retired"
)

var ucarp = &product{
	name: "ucarp", program: "ucarp", carp: true, fastest: time.Second, handOver: unix.SIGUSR2, retires: true,
	down: func(every time.Duration) time.Duration { return election.TimingOf(priority, every).Down(deadRatio) },
	// It reads packets up to a second late, and looks at the clock once a second.
	late: 2 * time.Second,
	install: func(n *lab.Node, _ time.Duration, addrs []netip.Addr) error {
		if err := os.MkdirAll(n.Root("/etc/ucarp"), 0o755); err != nil {
			return err
		}
		return errors.Join(
			n.WriteFile("/etc/ucarp/password", lab.Password+"\n", 0o600),
			n.WriteFile(ucarpHooks+"start", "#!/bin/sh\nexec ip address add \"$2/24\" dev \"$1\"\n", 0o755),
			n.WriteFile(ucarpHooks+"stop", "#!/bin/sh\nip address del \"$2/24\" dev \"$1\" 2>/dev/null\nexit 0\n", 0o755))
	},
	args: func(n *lab.Node) []string {
		return []string{"sh", "-c", "test ! -e " + retired + ` && exec ucarp "$@"`, "sh",
			"--interface=eth0", "--srcip=" + n.Addr(0).String(), "--vhid=1", "--passfile=/etc/ucarp/password",
			"--addr=" + lab.ClusterIP.String(), "--upscript=" + ucarpHooks + "start", "--downscript=" + ucarpHooks + "stop", "--shutdown",
			"--advbase=1", "--deadratio=" + strconv.Itoa(deadRatio)}
	},
	state:  lastInLog(regexp.MustCompile(`Switching to state: (MASTER|BACKUP)`)),
	worker: (*lab.Daemon).PID,
}

// lastInLog finds the present state of a daemon that writes each into its log.
func lastInLog(line *regexp.Regexp) func(*lab.Node, *lab.Daemon) string {
	return func(_ *lab.Node, d *lab.Daemon) string {
		all := line.FindAllStringSubmatch(d.Log(), -1)
		if all == nil {
			return "nothing yet"
		}
		return strings.ToLower(all[len(all)-1][1])
	}
}

// match is what runs on the first and on the second node: twice the same, or ours beside another.
type match [2]*product

func (m match) String() string {
	if m[0] == m[1] {
		return m[0].name
	}
	return m[0].name + " beside " + m[1].name
}

// pair is a match in a lab of its own.
type pair struct {
	match
	lab     *lab.Lab
	every   time.Duration
	daemons map[*lab.Node]*lab.Daemon
}

// newPair makes a lab and starts both in it.
func (b *bench) newPair(m match, every time.Duration, addrs ...netip.Addr) (*pair, error) {
	l, err := lab.New(lab.Options{BinDir: b.bin})
	if err != nil {
		return nil, err
	}
	pr := &pair{match: m, lab: l, every: every, daemons: map[*lab.Node]*lab.Daemon{}}
	for _, n := range l.Nodes() {
		err = pr.on(n).install(n, every, append([]netip.Addr{lab.ClusterIP}, addrs...))
		if err == nil {
			err = pr.start(n)
		}
		if err != nil {
			l.Close()
			return nil, fmt.Errorf("%s: %w", m, err)
		}
	}
	return pr, nil
}

// on is the product of a node.
func (p *pair) on(n *lab.Node) *product {
	if n == p.lab.LB2 {
		return p.match[1]
	}
	return p.match[0]
}

func (p *pair) start(n *lab.Node) error {
	program := p.on(n).program
	// What an earlier life wrote is not its state.
	if err := n.WriteFile("/var/log/"+program+".log", "", 0o644); err != nil {
		return err
	}
	d, err := n.Start(lab.DaemonSpec{Name: program, Args: p.on(n).args(n), Restart: true})
	p.daemons[n] = d
	return err
}

func (p *pair) state(n *lab.Node) string { return p.on(n).state(n, p.daemons[n]) }

// patience is for whatever should happen at once, on a machine that does something else as well.
const patience = 30 * time.Second

// settle waits until one node is master, the other one has heard it, and both are quiet.
func (p *pair) settle() (master, backup *lab.Node, err error) {
	slower := max(p.match[0].down(p.every), p.match[1].down(p.every))
	ctx, cancel := context.WithTimeout(context.Background(), patience+4*slower)
	defer cancel()
	err = lab.Await(ctx, p.String()+": a master and a backup", func() (bool, string) {
		var seen string
		if master, backup, seen = p.roles(); master == nil || backup == nil {
			return false, seen
		}
		// Two that start together may both be master at first, until one hears the other.
		if _, err := p.nextAdvert(master, 3); err != nil {
			return false, err.Error()
		}
		m, b, seen := p.roles()
		return m == master && b == backup, seen
	})
	return master, backup, err
}

// lead settles with this product as the master.
func (p *pair) lead(want *product) (master, backup *lab.Node, err error) {
	master, backup, err = p.settle()
	if err != nil || p.on(master) == want {
		return master, backup, err
	}
	mend, err := p.happen(stop, master)
	if err == nil {
		err = errors.Join(p.await(backup), mend())
	}
	if err != nil {
		return nil, nil, err
	}
	return p.settle()
}

func (p *pair) roles() (master, backup *lab.Node, seen string) {
	states := map[string]*lab.Node{}
	for _, n := range p.lab.Nodes() {
		state := p.state(n)
		states[state] = n
		seen += n.Name + " " + state + "; "
	}
	return states[status.Master], states[status.Backup], seen
}

// nextAdvert waits for so many adverts of a node and returns at once after the last.
func (p *pair) nextAdvert(n *lab.Node, count int) (time.Time, error) {
	capture, err := p.lab.Capture(n, lab.Sent, lab.VRRP)
	if err != nil {
		return time.Time{}, err
	}
	defer capture.Stop()
	limit := time.Second + time.Duration(count+1)*p.every
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); time.Sleep(200 * time.Microsecond) {
		seen := capture.Select(func(packet lab.Packet) bool { return p.isAdvert(packet, n) })
		if len(seen) >= count {
			return seen[count-1].Time, nil
		}
	}
	return time.Time{}, fmt.Errorf("%s: fewer than %d adverts of the master within %s", p, count, limit)
}

// isAdvert tells whether a packet is an advert of this node that the other one reads: beside ucarp ours says each in
// VRRPv3 too.
func (p *pair) isAdvert(packet lab.Packet, n *lab.Node) bool {
	ip, ok := packet.IPv4()
	return ok && ip.Source == n.Addr(0) && carp.Looks(ip.Payload) == p.match[0].carp
}

// await waits until the address is with this node.
func (p *pair) await(n *lab.Node) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return lab.Await(ctx, p.String()+": "+n.Name+" master", func() (bool, string) {
		state := p.state(n)
		return strings.HasPrefix(state, status.Master), state
	})
}

// family lists a process and its descendants, the eldest first.
func family(pid int) []int {
	list := []int{pid}
	for i := 0; i < len(list); i++ {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", list[i]))
		for _, field := range strings.Fields(string(text)) {
			if child, err := strconv.Atoi(field); err == nil {
				list = append(list, child)
			}
		}
	}
	return list
}
