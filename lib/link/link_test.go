package link

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var local = netip.MustParseAddr("10.9.0.1")

func TestFault(t *testing.T) {
	here := []Local{{Addr: local, Use: Usable}}
	good := State{Name: "eth0", Index: 2, Up: true, Carrier: true, Local: here}
	local6, linkLocal := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("fe80::1")
	both := func(six, link Use, carrier bool) State {
		s := good
		s.Carrier, s.Local = carrier, append(slices.Clone(here), Local{Addr: local6, Use: six})
		s.LinkLocal = &Local{Addr: linkLocal, Use: link}
		return s
	}
	with := func(change func(*State)) State {
		s := good
		change(&s)
		return s
	}
	for _, row := range []struct {
		name    string
		state   State
		want    string // "" is none
		carrier bool
	}{
		{"all is well", good, "", false},
		{"no interface", State{Name: "eth7", Local: here}, "there is no interface eth7", false},
		{"down", with(func(s *State) { s.Up, s.Carrier = false, false }), "ip link set eth0 up", false},
		{"no carrier", with(func(s *State) { s.Carrier = false }), "no carrier", true},
		{"no address at all", with(func(s *State) { s.Local = []Local{{Addr: local}} }), "has no IPv4 address", false},
		{"another address", with(func(s *State) {
			s.Local = []Local{{Addr: local, Others: []netip.Addr{netip.MustParseAddr("10.9.0.9")}}}
		}), "not on eth0, which has 10.9.0.9", false},
		{"no address and no carrier", with(func(s *State) { s.Local, s.Carrier = []Local{{Addr: local}}, false }), "has no IPv4 address", false},
		{"both families", both(Usable, Usable, true), "", false},
		{"both families, no carrier", both(Usable, Usable, false), "no carrier", true},
		{"no address of IPv6", both(Absent, Usable, true), "eth0 has no IPv6 address, $local_ip 2001:db8::1 is expected there", false},
		{"a tentative one", both(Tentative, Usable, true), "$local_ip 2001:db8::1 is not usable on eth0 yet", false},
		{"tentative for want of a carrier", both(Tentative, Tentative, false), "no carrier", false},
		{"a duplicate", both(Duplicate, Usable, true), "$local_ip 2001:db8::1 is not usable on eth0, because another host has it", false},
		{"no link-local address", both(Usable, Absent, true), "eth0 has no link-local IPv6 address", false},
		{"a tentative link-local address", both(Usable, Tentative, true), "the link-local address fe80::1 is not usable on eth0 yet", false},
	} {
		words, carrierOnly := row.state.Fault()
		if (words == "") != (row.want == "") || !strings.Contains(words, row.want) || carrierOnly != row.carrier {
			t.Errorf("%s: %q, carrier only %v; want %q, %v", row.name, words, carrierOnly, row.want, row.carrier)
		}
	}
}

// seen collects what a Watcher reports.
type seen struct {
	mu      sync.Mutex
	state   State
	states  int
	removed map[netip.Addr]bool
	trouble []string
}

func (s *seen) eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		s.mu.Lock()
		good := ok()
		s.mu.Unlock()
		if good {
			return
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t.Fatalf("%s: not within 5 s; last state %+v, removed %v, trouble %v", what, s.state, s.removed, s.trouble)
}

func has(s *seen) bool { return len(s.state.Local) > 0 && s.state.Local[0].Has() }

// watch lets a Watcher work in a network namespace of its own. do runs a shell's commands in there.
func watch(t *testing.T, want Want) (s *seen, do func(string)) {
	t.Helper()
	commands := make(chan string)
	results := make(chan error)
	ready := make(chan error)
	ctx, cancel := context.WithCancel(context.Background())
	s = &seen{removed: map[netip.Addr]bool{}}
	ended := make(chan struct{})
	// Both the watcher and the commands run on threads of one new namespace.
	go func() {
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNET)
		ready <- err
		if err != nil {
			return
		}
		for c := range commands {
			var out []byte
			if c == "watch" {
				ns, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
				go func() {
					defer close(ended)
					defer unix.Close(ns)
					runtime.LockOSThread()
					if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
						return
					}
					Watcher{
						State:   func(st State) { s.mu.Lock(); s.state = st; s.states++; s.mu.Unlock() },
						Removed: func(ip netip.Addr) { s.mu.Lock(); s.removed[ip] = true; s.mu.Unlock() },
						Links:   func() {},
						Trouble: func(err error) { s.mu.Lock(); s.trouble = append(s.trouble, err.Error()); s.mu.Unlock() },
					}.Watch(ctx, want)
				}()
				results <- err
				continue
			}
			out, err := exec.Command("sh", "-euc", c).CombinedOutput()
			if err != nil {
				err = fmt.Errorf("%s: %w: %s", c, err, out)
			}
			results <- err
		}
	}()
	if err := <-ready; err != nil {
		t.Skipf("no network namespace here (needs root): %v", err)
	}
	do = func(c string) {
		t.Helper()
		commands <- c
		if err := <-results; err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { cancel(); <-ended; close(commands) })

	do("watch")
	s.eventually(t, "no interface yet", func() bool { return s.states == 1 && s.state.Index == 0 })
	return s, do
}

func TestWatch(t *testing.T) {
	s, do := watch(t, Want{Name: "eth0", Local: []netip.Addr{local}})
	do("ip link add eth0 type veth peer name far; ip link set far up; ip link set eth0 up")
	s.eventually(t, "an interface with a carrier", func() bool { return s.state.Index != 0 && s.state.Carrier && !has(s) })
	do("ip addr add 10.9.0.77/24 dev eth0; ip addr add 10.9.0.1/24 dev eth0")
	s.eventually(t, "the local address", func() bool { return has(s) && s.state.Local[0].Prefix.Bits() == 24 })
	do("ip link set far down")
	s.eventually(t, "no carrier", func() bool { _, only := s.state.Fault(); return only })
	do("ip link set far up")
	s.eventually(t, "a carrier", func() bool { words, _ := s.state.Fault(); return words == "" })
	do("ip addr del 10.9.0.1/24 dev eth0")
	s.eventually(t, "the address removed", func() bool { return !has(s) && s.removed[local] })
	do("ip addr add 10.9.0.1/24 dev eth0")
	s.eventually(t, "the address back", func() bool { return has(s) })
	s.mu.Lock()
	old := s.state.Index
	s.mu.Unlock()
	do("ip link del eth0")
	s.eventually(t, "the interface deleted", func() bool { return s.state.Index == 0 })
	do("ip link add eth0 type veth peer name far; ip link set far up; ip link set eth0 up; ip addr add 10.9.0.1/24 dev eth0")
	s.eventually(t, "recreated", func() bool { words, _ := s.state.Fault(); return words == "" && s.state.Index != old })
	do("ip link set eth0 down; ip link set eth0 name eth9")
	s.eventually(t, "renamed", func() bool { return s.state.Index == 0 })
	do("ip link set eth9 name eth0; ip link set eth0 up")
	s.eventually(t, "renamed back", func() bool { words, _ := s.state.Fault(); return words == "" }) // with its carrier, which is told later
	// What others do does not disturb.
	s.mu.Lock()
	states := s.states
	s.mu.Unlock()
	do("for i in $(seq 200); do echo addr add 10.8.0.$i/32 dev far; done | ip -batch -; ip addr flush dev far")
	s.eventually(t, "a foreign removal", func() bool { return s.removed[netip.MustParseAddr("10.8.0.200")] })
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.states != states || len(s.trouble) != 0 {
		t.Errorf("%d reports about another interface, trouble %v", s.states-states, s.trouble)
	}
}

func TestWatchIPv6(t *testing.T) {
	local6, vip := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("fe80::100")
	s, do := watch(t, Want{Name: "eth0", Local: []netip.Addr{local, local6}, LinkLocal: true, Not: []netip.Addr{vip}})
	fault := func(words string) func() bool {
		return func() bool {
			got, _ := s.state.Fault()
			return (got == "") == (words == "") && strings.Contains(got, words)
		}
	}
	do(`ip link add eth0 type veth peer name far; echo 0 > /proc/sys/net/ipv6/conf/eth0/addr_gen_mode
		ip addr add 10.9.0.1/24 dev eth0; ip addr add 2001:db8::1/64 dev eth0; ip addr add fe80::100/64 dev eth0 nodad; ip link set eth0 up`)
	s.eventually(t, "tentative for want of a carrier", fault("no carrier"))
	do("ip link set far up")
	s.eventually(t, "duplicates looked for", fault("is not usable on eth0 yet"))
	s.eventually(t, "both families", fault(""))
	s.mu.Lock()
	if got := s.state; !got.Local[1].Has() || got.Local[1].Prefix != netip.MustParsePrefix("2001:db8::1/64") || got.LinkLocal.Addr == vip || !got.LinkLocal.Has() {
		t.Errorf("%+v, link-local %+v", got, got.LinkLocal)
	}
	first := s.state.LinkLocal.Addr
	s.mu.Unlock()
	do("ip addr add fe80::1:1/64 dev eth0 nodad; ip addr add 2001:db8::7/64 dev eth0 nodad; ip addr del 2001:db8::1/64 dev eth0")
	s.eventually(t, "the IPv6 address removed", fault("$local_ip 2001:db8::1 is not on eth0, which has 2001:db8::7"))
	// The state is that of now, while a message of a removal may still wait behind others.
	s.eventually(t, "the removal told", func() bool { return s.removed[local6] })
	s.mu.Lock()
	if s.state.LinkLocal.Addr != first {
		t.Errorf("link-local %v, was %v", s.state.LinkLocal.Addr, first)
	}
	s.mu.Unlock()
	do("ip addr add 2001:db8::1/64 dev eth0 nodad")
	s.eventually(t, "it is back", fault(""))
	do("ip addr del " + first.String() + "/64 dev eth0")
	s.eventually(t, "the other link-local address", func() bool { return s.state.LinkLocal.Addr == netip.MustParseAddr("fe80::1:1") })
	do("ip addr del fe80::1:1/64 dev eth0")
	s.eventually(t, "no link-local address", fault("no link-local IPv6 address"))
}

// Who looks for the first time, as after a restart, finds the node's own address among those of virtual interfaces.
func TestOwnLinkLocalAddress(t *testing.T) {
	for name, commands := range map[string]string{
		"added by Skudonet": "ip addr add fe80::a/64 dev eth0 nodad; ip addr add fe80::1/64 dev eth0 nodad",
		"added by us":       "ip addr add fe80::1/64 dev eth0 nodad preferred_lft 0; ip addr add fe80::a/64 dev eth0 nodad",
	} {
		t.Run(name, func(t *testing.T) {
			runtime.LockOSThread() // for good: the thread ends with the test
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				t.Skipf("no network namespace here (needs root): %v", err)
			}
			out, err := exec.Command("sh", "-euc", `ip link add eth0 type veth peer name far
				echo 1 > /proc/sys/net/ipv6/conf/eth0/addr_gen_mode; ip link set far up; ip link set eth0 up
				`+commands).CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			got, err := Look(Want{Name: "eth0", Local: []netip.Addr{local}, LinkLocal: true})
			if err != nil || got.LinkLocal.Addr != netip.MustParseAddr("fe80::a") {
				t.Errorf("%+v, %v", got.LinkLocal, err)
			}
		})
	}
}
