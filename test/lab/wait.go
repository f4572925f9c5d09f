package lab

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"
)

// RunTests is for the TestMain of a package whose tests run in labs: it runs them, atOnce side by side unless -parallel
// says otherwise, and returns the exit status. Most tests wait most of the time, so that may be more than processors.
func RunTests(m interface{ Run() int }, atOnce int) int {
	flag.Parse()
	chosen := false
	flag.Visit(func(f *flag.Flag) { chosen = chosen || f.Name == "test.parallel" })
	if !chosen {
		flag.Set("test.parallel", strconv.Itoa(atOnce))
	}
	return m.Run()
}

// TB is the part of testing.TB that is used here.
type TB interface {
	Helper()
	Name() string
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Skipf(format string, args ...any)
	Failed() bool
	Cleanup(func())
}

// Test makes a lab for a test and closes it at the end. If the test has failed by then, its log gets what the daemons
// wrote. It is skipped where no lab is possible; programs that can be installed are not a reason.
func Test(t TB, options Options) *Lab {
	t.Helper()
	l, err := New(options)
	if errors.Is(err, ErrUnsupported) {
		t.Skipf("%v", err)
	}
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			l.logDaemons(t)
		}
		if err := l.Close(); err != nil {
			t.Errorf("close the lab: %v", err)
		}
	})
	return l
}

func (l *Lab) logDaemons(t TB) {
	for _, n := range l.Nodes() {
		logs, _ := filepath.Glob(n.Root("/var/log/*.log"))
		for _, file := range logs {
			text, err := os.ReadFile(file)
			if err != nil {
				text = []byte(err.Error())
			}
			if len(text) > 20_000 {
				text = slices.Concat([]byte("...\n"), text[len(text)-20_000:])
			}
			t.Logf("%s %s:\n%s", n.Name, filepath.Base(file), text)
		}
	}
}

// Await waits until look says true. When ctx ends before, the error has what look saw last.
func Await(ctx context.Context, what string, look func() (bool, string)) error {
	begin := time.Now()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, seen := look()
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited %v for %s, saw last: %s", time.Since(begin).Round(time.Millisecond), what, seen)
		case <-tick.C:
		}
	}
}

// Eventually waits until look says true, and fails the test when it does not within the limit.
func Eventually(t TB, limit time.Duration, what string, look func() (bool, string)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if err := Await(ctx, what, look); err != nil {
		t.Fatalf("%v", err)
	}
}

// packages has the programs that Debian keeps under another name.
var packages = map[string]string{
	"ip": "iproute2", "bridge": "iproute2", "ss": "iproute2", "arping": "iputils-arping", "ping": "iputils-ping",
	"nft": "nftables", "ssh": "openssh-client", "sshd": "openssh-server", "logger": "bsdutils", "script": "bsdutils",
	"setsid": "util-linux", "nsenter": "util-linux", "ps": "procps",
	"start-stop-daemon": "dpkg",
}

// Missing names the Debian packages that have to be installed for the lab, with its stand-in for Skudonet, and for the
// given programs.
func Missing(programs ...string) []string {
	var missing []string
	for _, program := range append([]string{"ip", "bash", "setsid"}, programs...) {
		if _, err := lookPath(program); err == nil {
			continue
		}
		name := program
		if p, ok := packages[program]; ok {
			name = p
		}
		missing = append(missing, name)
	}
	slices.Sort(missing)
	return slices.Compact(missing)
}
