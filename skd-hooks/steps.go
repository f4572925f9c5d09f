package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/address"
	garp "github.com/skudonet/skudonet-ce-cluster/lib/announce"
	"github.com/skudonet/skudonet-ce-cluster/lib/cmdline"
	"github.com/skudonet/skudonet-ce-cluster/lib/skudonet"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
)

// step is one thing that a master has and a backup has not. Run says in words
// what it did, or nothing if there was nothing to do.
type step struct {
	name string
	run  func(context.Context) (string, error)
}

// do takes the step and says what came of it, but for an error.
func (st step) do(ctx context.Context) error {
	text, err := st.run(ctx)
	if text != "" {
		fmt.Println(st.name + ": " + text)
	}
	if err != nil {
		return fmt.Errorf("%s: failed: %w", st.name, err)
	}
	return nil
}

// startSteps are what makes a master, in their order.
func startSteps(s *skudonet.Service, r replicator) []step {
	return []step{
		{"skudonet", func(ctx context.Context) (string, error) { return startAsOwed(ctx, s, r.runDir()) }},
		linksStep(s),
		{"replicator", r.start},
	}
}

// linksStep sets up again what a start of Skudonet has set down.
func linksStep(s *skudonet.Service) step {
	return step{"links", func(context.Context) (string, error) {
		names, err := s.RestoreLinks()
		if len(names) == 0 {
			return "", err
		}
		return "set up again, where Skudonet found no carrier: " + strings.Join(names, ", "), err
	}}
}

// stopSteps are what unmakes one, in their order.
func stopSteps(s *skudonet.Service, r replicator) []step {
	return []step{{"replicator", r.stop}, {"skudonet", func(ctx context.Context) (string, error) { return stopForGood(ctx, s, r.runDir()) }}}
}

// transition runs all steps, whatever becomes of each. Stop needs no
// configuration: a broken one must not keep a backup from becoming one.
func transition(c *cli.Context, steps func(*skudonet.Service, replicator) []step) error {
	s := &skudonet.Service{Say: say}
	if c.Command.Name == "start" {
		cl, err := load(c)
		if err != nil {
			return err
		}
		s = cl.skudonet()
		if word, _ := status.Read(cmdline.Option(c, "status-file")); word == status.Backup {
			fmt.Println("this node is backup: until it is master, its virtual addresses stay unheard")
		}
	}
	r, err := newReplicator(c)
	if err != nil {
		return err
	}
	unlock, err := lock(c.Context, cmdline.Option(c, "run-dir"))
	if err != nil {
		return err
	}
	defer unlock()
	failed := 0
	for _, step := range steps(s, r) {
		if err := step.do(c.Context); err != nil {
			fmt.Fprintln(os.Stderr, err)
			failed++
		}
	}
	if failed > 0 {
		return cli.Exit("", cmdline.Failed)
	}
	return nil
}

func say(text string) { fmt.Println("skudonet: " + text) }

// skudonet is the load balancer as this node should have it.
func (cl cluster) skudonet() *skudonet.Service {
	return &skudonet.Service{Tree: os.DirFS(cl.tree), Interface: cl.iface, Missing: cl.missing, Say: say}
}

// lock keeps start, stop and apply apart, of whoever: the daemon of this life or
// of an earlier one, and an admin. Without a run directory there is no daemon.
func lock(ctx context.Context, dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, "hooks.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if errors.Is(err, os.ErrNotExist) {
		return func() {}, nil
	} else if err != nil {
		return nil, err
	}
	const patience, pause = time.Minute, 20 * time.Millisecond
	for began, said := time.Now(), false; ; {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return func() { f.Close() }, nil
		case !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR), time.Since(began) > patience:
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
		case !said:
			fmt.Println("another skd-hooks is at work; waiting for it")
			said = true
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("lock %s: interrupted", f.Name())
		}
	}
}

func (cl cluster) addresses() []address.Address {
	want, _ := address.Wanted(os.DirFS(cl.tree), cl.ips, cl.iface)
	return want
}

func (cl cluster) missing() ([]string, error) {
	missing, err := address.Missing(cl.addresses())
	names := make([]string, len(missing))
	for i, a := range missing {
		names[i] = a.String()
	}
	return names, err
}

// role is what the status file says that the node is.
func role(file string) (string, error) {
	word, err := status.Read(file)
	if errors.Is(err, os.ErrNotExist) {
		return status.Stopped, nil
	}
	return word, err
}

// announce sends gratuitous ARP or neighbour advertisements for all virtual addresses. On a backup nobody
// may hear them, so that is no failure: the node may just have been demoted.
func announce(c *cli.Context) error {
	file := cmdline.Option(c, "status-file")
	word, err := role(file)
	if err != nil {
		return err
	}
	if word != status.Master {
		fmt.Printf("this node is %s: nothing to announce\n", word)
		return nil
	}
	cl, err := load(c)
	if err != nil {
		return err
	}
	targets, err := cl.targets()
	sent, failed := garp.Send(targets, func() bool {
		word, _ := status.Read(file)
		return word != status.Master || c.Context.Err() != nil
	})
	fmt.Printf("announced %d of %d addresses\n", sent, len(cl.addresses()))
	return errors.Join(err, failed)
}

// targets are the addresses that are up, and where. The error names the others.
func (cl cluster) targets() (targets []garp.Target, err error) {
	missing, err := address.Missing(cl.addresses())
	if err != nil {
		return nil, err
	}
	var failed []error
	for _, a := range missing {
		failed = append(failed, fmt.Errorf("%s: not announced, because it is not up", a))
	}
	targets, err = garp.Targets(slices.DeleteFunc(cl.addresses(), func(a address.Address) bool { return slices.Contains(missing, a) }))
	return targets, errors.Join(append(failed, err)...)
}
