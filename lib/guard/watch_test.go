package guard

import (
	"context"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// watch runs Watch in the namespace of the test until the test ends. It returns the calls as they come, which wait for the test.
func watch(t *testing.T) (calls <-chan struct{}) {
	t.Helper()
	here, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	c := make(chan struct{})
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread goes with its namespace
		if err := unix.Setns(here, unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- Watch(ctx, func() {
			select {
			case c <- struct{}{}:
			case <-ctx.Done():
			}
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Watch: %v", err)
		}
		unix.Close(here)
	})
	wantCall(t, c) // it listens
	return c
}

func wantCall(t *testing.T, calls <-chan struct{}) {
	t.Helper()
	select {
	case <-calls:
	case <-time.After(5 * time.Second):
		t.Fatal("Watch did not call")
	}
}

func TestWatchSeesTheTableChange(t *testing.T) {
	namespace(t)
	g := open(t)
	calls := watch(t)
	raiseIt(t, g, vip)
	wantCall(t, calls)
	lowerIt(t, g)
	wantCall(t, calls)
}

func TestWatchIgnoresOtherTables(t *testing.T) {
	namespace(t)
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("no nft here to make other tables")
	}
	calls := watch(t)
	run(t, "nft add table netdev other; nft add table ip skudonet-ce-cluster; nft add set ip skudonet-ce-cluster s '{ type ipv4_addr; }'; nft flush ruleset")
	select {
	case <-calls:
		t.Error("called for the tables of others")
	default:
	}
	run(t, "nft add table netdev skudonet-ce-cluster")
	wantCall(t, calls)
}

func TestWatchOutlivesMoreThanItsQueueHolds(t *testing.T) {
	namespace(t)
	g := open(t)
	calls := watch(t)
	raiseIt(t, g, vip)
	for range 3 { // megabytes of notifications, while nobody takes a call
		raiseIt(t, g, many(20000)...)
	}
	wantCall(t, calls)
	lowerIt(t, g)
	wantCall(t, calls)
}

// An owner that follows the rule of Watch repairs each damage with one Raise, although its own Raise is a change as well.
func TestOneRaiseRepairsOneDamage(t *testing.T) {
	namespace(t)
	g, other := open(t), open(t)
	addrs := append(many(4000), vip)
	calls := watch(t)
	raiseIt(t, g, addrs...)
	const damages = 10
	raises := 0
	for damage := range damages {
		lowerIt(t, other)
		for raises == damage {
			wantCall(t, calls)
			ok, err := g.Standing(addrs)
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				raises++
				raiseIt(t, g, addrs...)
			}
		}
	}
	if raises != damages {
		t.Errorf("raised %d times for %d damages", raises, damages)
	}
}

func TestWatchEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := Watch(ctx, func() {}); err != nil {
		t.Errorf("Watch with a context that is done: %v", err)
	}
}
