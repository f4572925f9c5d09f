package main

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/carp"
	"github.com/skudonet/skudonet-ce-cluster/lib/cmdline"
	"github.com/skudonet/skudonet-ce-cluster/lib/conf"
	"github.com/skudonet/skudonet-ce-cluster/lib/election"
	"github.com/skudonet/skudonet-ce-cluster/lib/process"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
	"github.com/skudonet/skudonet-ce-cluster/lib/transport"
)

// What version 2.0 of the package ran.
const (
	ucarp     = "ucarp"         // elected the master
	oldScript = "skdinotify.pl" // replicated, in Perl
)

// retire ends what version 2.0 has left running on this node. It takes no lock:
// the down script of ucarp may be ours, which does.
func retire(c *cli.Context) error {
	// Twice, because an up script that was at work may start the replicator.
	for range 2 {
		replicators, ucarps, err := old()
		if err != nil {
			return err
		}
		// The replicator first, so that a node that is master no more pushes nothing.
		err = errors.Join(each(replicators, runsOldScript, func(h *process.Handle) error { return endReplicator(c.Context, h) }),
			each(ucarps, runsOurUcarp, func(h *process.Handle) error { return endUcarp(c, h) }))
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return cli.Exit("", cmdline.Failed)
		}
		if len(ucarps) == 0 {
			break
		}
	}
	return nil
}

// old returns what belongs to version 2.0. This runs at each start of the service,
// also between a crash and the next life, so most are told apart by their short
// names, which is quick.
func old() (replicators, ucarps []process.ID, err error) {
	all, err := process.All()
	for _, id := range all {
		switch name := id.Name(); {
		case name == ucarp:
			if runsOurUcarp(id) {
				ucarps = append(ucarps, id)
			}
		case name == oldScript, strings.HasPrefix(name, "perl"):
			if runsOldScript(id) {
				replicators = append(replicators, id)
			}
		}
	}
	return process.WithoutChildren(replicators), process.WithoutChildren(ucarps), err
}

// each has do end the processes of the list for which is says true.
func each(list []process.ID, is func(process.ID) bool, do func(*process.Handle) error) error {
	found, err := process.Find(list, is)
	failed := []error{err}
	for _, h := range found {
		failed = append(failed, do(h))
		h.Close()
	}
	return errors.Join(failed...)
}

// runsOldScript tells whether a process is the replicator of version 2.0.
func runsOldScript(id process.ID) bool {
	return strings.HasPrefix(path.Base(id.Executable()), "perl") && isOldScript(id.Arguments()) && here(id)
}

// runsOurUcarp tells whether a process is the ucarp of this node's cluster.
func runsOurUcarp(id process.ID) bool {
	return path.Base(id.Executable()) == ucarp && isOurUcarp(id.Arguments()) && here(id)
}

func here(id process.ID) bool { return id.SameNamespace() && id.SameRoot() }

// isOldScript tells whether perl with these arguments runs the script. Perl's
// options stand in front of it; a script may overwrite the whole ($0).
func isOldScript(argv []string) bool {
	for i, arg := range argv {
		switch {
		case path.Base(arg) == oldScript:
			return true
		case strings.HasPrefix(arg, "-e"), strings.HasPrefix(arg, "-E"): // what follows are arguments of a program in the command line
			return false
		case i > 0 && !strings.HasPrefix(arg, "-"):
			return false
		}
	}
	return false
}

// isOurUcarp tells whether ucarp with these arguments calls the hook scripts of
// the package, now or when it was called Zevenet: as --upscript=PATH,
// --upscript PATH or -u PATH, see ucarp(8).
func isOurUcarp(argv []string) bool {
	for i, arg := range argv {
		name, value, inOne := strings.Cut(arg, "=")
		switch {
		case name == "--upscript" || name == "--downscript":
		case strings.HasPrefix(arg, "-u"), strings.HasPrefix(arg, "-d"):
			value, inOne = arg[2:], len(arg) > 2
		default:
			continue
		}
		if !inOne && i+1 < len(argv) {
			value = argv[i+1]
		}
		switch path.Base(value) {
		case "skudonet-ce-cluster-start", "skudonet-ce-cluster-stop", "zevenet-ce-cluster-start", "zevenet-ce-cluster-stop":
			return true
		}
		// Scripts of the admin's, in the directory for them.
		if dir := path.Dir(value); dir == "/usr/local/skudonet/app/ucarp/sbin" || dir == "/usr/local/zevenet/app/ucarp/sbin" {
			return true
		}
	}
	return false
}

// endReplicator ends the replicator, and the rsync and ssh that it may be running.
func endReplicator(ctx context.Context, h *process.Handle) error {
	const grace = 5 * time.Second
	helpers, err := process.Find(h.Descendants(), func(process.ID) bool { return true })
	defer func() {
		for _, helper := range helpers {
			helper.Close()
		}
	}()
	if err == nil {
		err = end(ctx, "replicator", h, grace, "")
	}
	for _, helper := range helpers {
		_, failed := helper.End(ctx, grace)
		err = errors.Join(err, failed)
	}
	return err
}

// endUcarp ends ucarp. By SIGTERM alone it would leave a master's address up, for
// version 2.0 starts it without --shutdown: by SIGUSR2 it first becomes backup,
// runs its down script for that, and then sleeps for three seconds before it
// would take part again. ucarp never says goodbye; we do, when it is silent.
func endUcarp(c *cli.Context, h *process.Handle) error {
	const patience = 10 * time.Second
	ctx, note := c.Context, ""
	if h.Catches(unix.SIGUSR2) && h.Signal(unix.SIGUSR2) == nil {
		ended := idle(ctx, h, patience)
		// Its down script may be ours by now, which leaves that to the daemon.
		if err := status.Remove(cmdline.Option(c, "status-file")); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		if !ended {
			note = "; its script goes on by itself"
		} else if cfg, _, err := conf.Load(cmdline.Option(c, "config")); err == nil {
			if err := farewell(cfg); err != nil {
				note = fmt.Sprintf("; the peer was not told: %v", err)
			}
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return end(ctx, ucarp, h, patience, note)
}

// farewell tells the peer, in CARP, that this node's master leaves: a backup takes
// over at once, whatever it runs, and a master announces its address again. Without
// it a backup takes over when it has missed enough advertisements.
func farewell(c conf.Config) error {
	key, err := carp.NewKey(string(c.Password), c.ClusterIP)
	if err != nil {
		return err
	}
	link, err := net.InterfaceByName(c.Interface)
	if err != nil {
		return err
	}
	conn, err := transport.Open(transport.Config{Kind: transport.Multicast, Interface: link.Name, Index: link.Index, Local: c.LocalIP, Peer: c.RemoteIP, VRID: c.VRID})
	if err != nil {
		return err
	}
	var counter [8]byte
	rand.Read(counter[:])
	return errors.Join(conn.Send(key.Append(nil, carp.Advertisement{VHID: c.VRID, Base: election.Goodbye.Base, Skew: election.Goodbye.Skew,
		Counter: binary.BigEndian.Uint64(counter[:])})), conn.Close())
}

// idle waits until a process has no children, and for long enough to know that it
// is not about to start one. It tells whether that came about.
func idle(ctx context.Context, h *process.Handle, patience time.Duration) bool {
	const quiet, pause = 500 * time.Millisecond, 20 * time.Millisecond
	began := time.Now()
	for since := began; time.Since(since) < quiet; {
		if h.Wait(ctx, pause) {
			return true
		}
		if len(h.Children()) > 0 {
			since = time.Now()
		}
		if ctx.Err() != nil || time.Since(began) > patience {
			return false
		}
	}
	return true
}

// end ends a process, and says so.
func end(ctx context.Context, name string, h *process.Handle, grace time.Duration, note string) error {
	killed, err := h.End(ctx, grace)
	switch {
	case err != nil:
		return fmt.Errorf("%s: failed: version 2.0 of it still runs: %w", name, err)
	case killed:
		fmt.Printf("%s: killed %v, left running by version 2.0: no answer to SIGTERM for %v%s\n", name, h.ID, grace, note)
	default:
		fmt.Printf("%s: stopped %v, left running by version 2.0%s\n", name, h.ID, note)
	}
	return nil
}
