package address

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/nlmsg"
)

// namespace moves the test to a network namespace of its own, with v0 and v1 joined and up and 10.1.255.254/16 on v0. It ends
// with the thread, which dies with the test because it stays locked.
func namespace(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for a network namespace")
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skipf("no network namespace here: %v", err)
	}
	run(t, `ip link set lo up
		ip link add v0 type veth peer name v1; ip link set v0 up; ip link set v1 up
		ip addr add 10.1.255.254/16 broadcast + dev v0
		echo 0 > /proc/sys/net/ipv4/conf/all/promote_secondaries; echo 0 > /proc/sys/net/ipv4/conf/v0/promote_secondaries
		until [ "$(ip -o link show up | grep -c ' state UP ')" = 2 ]; do sleep 0.01; done; ip link set v0 up`) // IPv6 has made its routes then
}

func run(t testing.TB, script string) string {
	t.Helper()
	out, err := exec.Command("sh", "-euc", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
	return string(out)
}

// standing lists the IPv4 addresses of v0 in the words of ip(8).
func standing(t *testing.T) []string {
	t.Helper()
	var list []string
	for line := range strings.Lines(run(t, "ip -4 -o addr show dev v0")) {
		_, line, _ = strings.Cut(line, "inet ")
		line, _, _ = strings.Cut(line, `\`)
		list = append(list, line)
	}
	return list
}

func wantStanding(t *testing.T, want ...string) {
	t.Helper()
	if got := standing(t); !slices.Equal(got, want) {
		t.Fatalf("on v0 stands\n got %q\nwant %q", got, want)
	}
}

const nicStands = "10.1.255.254/16 brd 10.1.255.255 scope global v0"

func addr(prefix, label string) Address { return Address{netip.MustParsePrefix(prefix), "v0", label} }

// many returns n addresses in the NIC's own prefix, which is how Skudonet adds them.
func many(n int) []Address {
	want := make([]Address, n)
	for i := range want {
		ip := netip.AddrFrom4([4]byte{10, 1, byte(i / 250), byte(i%250 + 1)})
		want[i] = Address{netip.PrefixFrom(ip, 16), "v0", fmt.Sprintf("v0:%d", i)}
	}
	return want
}

func wantUp(t testing.TB, want []Address, added int) {
	t.Helper()
	if n, failed := Up(want); n != added || len(failed) > 0 {
		t.Fatalf("Up: %d added, failed %v; want %d and none", n, failed, added)
	}
}

func wantDown(t testing.TB, want []Address, removed int) {
	t.Helper()
	if n, failed := Down(want); n != removed || len(failed) > 0 {
		t.Fatalf("Down: %d removed, failed %v; want %d and none", n, failed, removed)
	}
}

func TestUpMakesWhatSkudonetMakes(t *testing.T) {
	namespace(t)
	for _, prefix := range []string{"10.1.0.7/16", "10.2.0.7/24", "10.3.0.7/30", "10.3.0.6/31", "10.4.0.7/32", "10.0.0.7/1"} {
		wantUp(t, []Address{addr(prefix, "v0:web")}, 1)
		ours := standing(t)
		routes := run(t, "ip -4 route show table all") // IPv6 makes one later, when it has looked for duplicates
		wantDown(t, []Address{addr(prefix, "v0:web")}, 1)
		run(t, "ip addr add "+prefix+" broadcast + dev v0 label v0:web noprefixroute")
		if theirs := standing(t); !slices.Equal(ours, theirs) {
			t.Errorf("%s stands as\n%q, by ip addr add as\n%q", prefix, ours, theirs)
		}
		if theirs := run(t, "ip -4 route show table all"); routes != theirs {
			t.Errorf("%s: routes\n%s\nby ip addr add\n%s", prefix, routes, theirs)
		}
		run(t, "ip addr del "+prefix+" dev v0")
	}
	wantStanding(t, nicStands)
}

func TestUpAndDownOfThousands(t *testing.T) {
	namespace(t)
	want := many(4000)
	wantUp(t, want[:100], 100)
	wantUp(t, want, 3900)
	wantUp(t, want, 0)
	if got := standing(t); len(got) != 4001 || got[4000] != "10.1.15.250/16 brd 10.1.255.255 scope global secondary noprefixroute v0:3999" {
		t.Fatalf("%d addresses stand, the last as %q", len(got), got[len(got)-1])
	}
	if missing, err := Missing(want); err != nil || missing != nil {
		t.Fatalf("missing %v, %v; want none", missing, err)
	}
	wantDown(t, want[100:], 3900)
	if missing, err := Missing(want); err != nil || !reflect.DeepEqual(missing, want[100:]) {
		t.Fatalf("%d missing, %v; want 3900", len(missing), err)
	}
	wantDown(t, want, 100)
	wantDown(t, want, 0)
	wantStanding(t, nicStands)
}

// Two who add at the same time, Skudonet and we, get EEXIST for each address that the other was first with.
func TestRefusalsOfAFullBatchAreRead(t *testing.T) {
	namespace(t)
	want := many(4000)
	wantUp(t, want, 4000)
	c, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	now, err := c.look(want)
	if err != nil {
		t.Fatal(err)
	}
	refused, err := c.batch(len(want), unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, func(b []byte, i int) []byte {
		return appendNew(b, want[i], now.links["v0"].index)
	})
	if err != nil || len(refused) != len(want) || refused[3999] != unix.EEXIST {
		t.Errorf("%d refused, the last by %v, %v; want all, by EEXIST", len(refused), refused[3999], err)
	}
}

func TestAnotherFormCountsAndGoes(t *testing.T) {
	namespace(t)
	want := []Address{addr("10.1.0.7/16", "v0:web"), addr("10.1.0.8/16", "v0:db"), addr("10.1.0.9/16", "")}
	run(t, `ip addr add 10.1.0.7/32 dev v0
		ip addr add 10.1.0.8/24 dev v0 label v0:other; ip addr add 10.1.0.8/32 dev v0; ip addr add 10.1.0.10/24 dev v0
		ip addr add 10.1.0.9 peer 10.9.9.9/32 dev v0
		ip addr add 10.1.0.7/16 dev v1`)
	wantUp(t, want, 0)
	if missing, err := Missing(want); err != nil || missing != nil {
		t.Fatalf("missing %v, %v; want none", missing, err)
	}
	wantDown(t, want, 3)
	wantStanding(t, nicStands, "10.1.0.10/24 scope global v0")
	if left := run(t, "ip -4 -o addr show dev v1"); !strings.Contains(left, "10.1.0.7/16") {
		t.Errorf("v1 lost its address: %s", left)
	}
}

func TestDownLeavesTheOthersOfAPrefix(t *testing.T) {
	for _, tt := range []struct{ name, add, down, promote string }{
		{"a NIC's own address that came second", "10.5.0.1/24 10.5.0.254/24", "10.5.0.1/24", "0"},
		{"another virtual address", "10.5.0.1/24 10.5.0.2/24 10.5.0.3/24 10.5.0.254/24", "10.5.0.1/24 10.5.0.3/24", "0"},
		{"promotion was on", "10.5.0.1/24 10.5.0.254/24", "10.5.0.1/24", "1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			namespace(t)
			run(t, "echo "+tt.promote+" > /proc/sys/net/ipv4/conf/v0/promote_secondaries")
			down := strings.Fields(tt.down)
			wantStays := []string{nicStands}
			for i, p := range strings.Fields(tt.add) {
				run(t, "ip addr add "+p+" dev v0")
				if !slices.Contains(down, p) {
					secondary := ""
					if i == 3 {
						secondary = " secondary"
					}
					wantStays = append(wantStays, p+" scope global"+secondary+" v0")
				}
			}
			var want []Address
			for _, p := range down {
				want = append(want, addr(p, ""))
			}
			wantDown(t, want, len(want))
			wantStanding(t, wantStays...)
			if got := strings.TrimSpace(run(t, "cat /proc/sys/net/ipv4/conf/v0/promote_secondaries")); got != tt.promote {
				t.Errorf("promote_secondaries is %s afterwards, was %s", got, tt.promote)
			}
			if routes := run(t, "ip route show dev v0"); !strings.Contains(routes, "10.5.0.0/24") {
				t.Errorf("the route of the promoted address is missing: %s", routes)
			}
		})
	}
}

func TestFailuresHaveNames(t *testing.T) {
	namespace(t)
	run(t, "ip addr add 10.6.0.1/24 scope link dev v0")
	nolink := Address{netip.MustParsePrefix("10.1.0.7/16"), "eth9", "eth9:web"}
	refused := addr("10.6.0.2/24", "v0:web") // another scope than that of its prefix
	invalid := Address{Link: "v0", Label: "v0:none"}
	good := []Address{addr("10.1.0.8/16", "v0:a"), addr("10.1.0.9/16", "v0:b")}
	added, failed := Up([]Address{nolink, good[0], refused, invalid, good[1]})
	if added != 2 || len(failed) != 3 {
		t.Fatalf("%d added, failed %v; want 2 and 3", added, failed)
	}
	for i, want := range []Failure{{nolink, ErrNoLink}, {invalid, unix.EINVAL}, {refused, unix.EINVAL}} {
		if failed[i].Address != want.Address || !errors.Is(failed[i], want.Err) {
			t.Errorf("failure %d: %v, want %v", i, failed[i], want)
		}
	}
	if missing, err := Missing([]Address{nolink, good[0]}); err != nil || len(missing) != 1 || missing[0] != nolink {
		t.Errorf("missing %v, %v; want %v", missing, err, nolink)
	}
	wantDown(t, []Address{nolink, good[0], good[1]}, 2)
}

func TestUpOnALinkThatIsDown(t *testing.T) {
	namespace(t)
	run(t, "ip link set v0 down")
	wantUp(t, many(3), 3)
	wantDown(t, many(3), 3)
}

// standing6 lists the IPv6 addresses of v0 that are not link-local, without their lifetimes.
func standing6(t *testing.T) []string {
	t.Helper()
	var list []string
	for line := range strings.Lines(run(t, "ip -6 -o addr show dev v0 scope global")) {
		_, line, _ = strings.Cut(line, "inet6 ")
		line, _, _ = strings.Cut(line, `\`)
		list = append(list, strings.TrimSpace(line))
	}
	return list
}

func TestUpOfIPv6(t *testing.T) {
	namespace(t)
	web, single := addr("2001:db8::7/64", "v0:web"), addr("2001:db8:1::7/128", "")
	routes := run(t, "ip -6 route show table main")
	wantUp(t, []Address{web, single, addr("10.1.0.7/16", "v0:old")}, 3)
	want := []string{"2001:db8:1::7/128 scope global nodad deprecated noprefixroute", "2001:db8::7/64 scope global nodad deprecated noprefixroute"}
	got := standing6(t)
	if slices.Sort(got); !slices.Equal(got, want) {
		t.Errorf("stands as\n%q, want\n%q", got, want)
	}
	if now := run(t, "ip -6 route show table main"); now != routes {
		t.Errorf("routes\n%s\nwere\n%s", now, routes)
	}
	if missing, err := Missing([]Address{web, single}); err != nil || missing != nil {
		t.Errorf("missing %v, %v", missing, err)
	}
	wantUp(t, []Address{web, single}, 0)
	wantDown(t, []Address{web, single}, 2)
	if got := standing6(t); got != nil {
		t.Errorf("left standing: %q", got)
	}
	wantStanding(t, nicStands, "10.1.0.7/16 brd 10.1.255.255 scope global secondary noprefixroute v0:old")
}

// What a node is asked to open from an address in the prefix of a virtual one comes from its own.
func TestIPv6OfOursIsNoSource(t *testing.T) {
	namespace(t)
	run(t, "ip addr add 2001:db8::1/64 dev v0 nodad")
	wantUp(t, []Address{addr("2001:db8::7/64", "v0:web")}, 1)
	if out := run(t, "ip -6 route get 2001:db8::6"); !strings.Contains(out, "src 2001:db8::1 ") {
		t.Errorf("the source is another: %s", out)
	}
}

// Skudonet, or an admin, may have raised the address before, with duplicate address detection or without.
func TestUnusableIPv6IsReplaced(t *testing.T) {
	web := []Address{addr("2001:db8::7/64", "v0:web")}
	for name, script := range map[string]string{
		"tentative": "ip addr add 2001:db8::7/64 dev v0",
		"duplicate": `ip addr add 2001:db8::7/64 dev v1 nodad; ip addr add 2001:db8::7/64 dev v0
			for i in $(seq 500); do ip -6 addr show dev v0 dadfailed | grep -q 2001 && break; sleep .01; done
			ip -6 addr show dev v0 dadfailed | grep -q 2001; ip addr del 2001:db8::7/64 dev v1`,
	} {
		t.Run(name, func(t *testing.T) {
			namespace(t)
			run(t, script)
			if missing, err := Missing(web); err != nil || len(missing) != 1 {
				t.Errorf("missing %v, %v", missing, err)
			}
			if gone, err := Gone(web); err != nil || len(gone) != 0 {
				t.Errorf("gone %v, %v", gone, err)
			}
			wantUp(t, web, 1)
			if got := standing6(t); !slices.Equal(got, []string{"2001:db8::7/64 scope global nodad deprecated noprefixroute"}) {
				t.Errorf("stands as %q", got)
			}
			wantDown(t, web, 1)
			run(t, "ip addr add 2001:db8::7/64 dev v0")
			wantDown(t, web, 1) // whatever it is good for
			if gone, err := Gone(web); err != nil || len(gone) != 1 {
				t.Errorf("gone at last %v, %v", gone, err)
			}
		})
	}
	t.Run("by Skudonet", func(t *testing.T) {
		namespace(t)
		run(t, "ip addr add 2001:db8::7/64 dev v0 label v0:web noprefixroute nodad")
		before := standing6(t)
		wantUp(t, web, 0)
		if got := standing6(t); !slices.Equal(got, before) {
			t.Errorf("was %q, is %q", before, got)
		}
		wantDown(t, web, 1)
	})
}

func TestUpAndDownOfThousandsOfIPv6(t *testing.T) {
	namespace(t)
	want := make([]Address, 2000)
	for i := range want {
		ip := netip.MustParseAddr("2001:db8::").As16()
		ip[14], ip[15] = byte(i>>8)+1, byte(i)
		want[i] = Address{netip.PrefixFrom(netip.AddrFrom16(ip), 64), "v0", fmt.Sprintf("v0:%d", i)}
	}
	wantUp(t, want, 2000)
	wantDown(t, want, 2000)
}

// BenchmarkUpDown adds and removes in the NIC's own prefix, as Skudonet does.
func BenchmarkUpDown(b *testing.B) {
	for _, n := range []int{1, 100, 1000, 4000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			namespace(b)
			want := many(n)
			var up, down time.Duration
			for b.Loop() {
				start := time.Now()
				wantUp(b, want, n)
				added := time.Now()
				wantDown(b, want, n)
				up += added.Sub(start)
				down += time.Since(added)
			}
			b.ReportMetric(float64(up.Microseconds())/float64(b.N), "up-µs/op")
			b.ReportMetric(float64(down.Microseconds())/float64(b.N), "down-µs/op")
		})
	}
}

func BenchmarkMissing(b *testing.B) {
	for _, n := range []int{1, 4000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			namespace(b)
			want := many(n)
			wantUp(b, want, n)
			for b.Loop() {
				if missing, err := Missing(want); err != nil || missing != nil {
					b.Fatal(missing, err)
				}
			}
		})
	}
}

func FuzzMessages(f *testing.F) {
	c := &rtnl{}
	c.request(unix.RTM_NEWADDR, 0, func(b []byte) []byte { return appendNew(b, cluster, 2) })
	c.request(unix.RTM_NEWADDR, 0, func(b []byte) []byte { return appendNew(b, cluster6, 2) })
	c.request(unix.RTM_NEWLINK, 0, func(b []byte) []byte {
		return nlmsg.AppendString(append(b, make([]byte, unix.SizeofIfInfomsg)...), unix.IFLA_IFNAME, "eth0")
	})
	f.Add(c.out)
	f.Add([]byte{4, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		s := state{links: map[string]link{}, standing: map[place]bool{}}
		for m := range nlmsg.Parse(b) {
			_ = m.Errno()
			s.addLink(m.Body)
			s.addEntry(m.Body)
		}
		s.removal(func(place) bool { return false })
	})
}
