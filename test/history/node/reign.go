package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/address"
	"github.com/skudonet/skudonet-ce-cluster/lib/archive"
	"github.com/skudonet/skudonet-ce-cluster/lib/conf"
	"github.com/skudonet/skudonet-ce-cluster/lib/control"
	"github.com/skudonet/skudonet-ce-cluster/lib/fileset"
	"github.com/skudonet/skudonet-ce-cluster/lib/ledger"
	"github.com/skudonet/skudonet-ce-cluster/lib/mirror"
	"github.com/skudonet/skudonet-ce-cluster/lib/peer"
	"github.com/skudonet/skudonet-ce-cluster/lib/rsync"
	"github.com/skudonet/skudonet-ce-cluster/lib/skudonet"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
	"github.com/skudonet/skudonet-ce-cluster/lib/tree"
	"github.com/skudonet/skudonet-ce-cluster/lib/trouble"
)

const (
	lockLimit       = 10 * time.Second
	pollStatus      = 100 * time.Millisecond
	establishedName = "inotify.established"
	giveUpVariable  = "HISTORY_GIVEUP"
)

// daemon is skd-inotify on a master.
type daemon struct {
	dir, run, state, statusFile string
	conf                        conf.Config
	log                         *slog.Logger
	engine                      *mirror.Engine
}

// reign mirrors until a signal ends it, or the node is master no more.
func reign(dir string) error {
	stop, compare := make(chan os.Signal, 1), make(chan os.Signal, 1)
	signal.Notify(stop, unix.SIGTERM)
	signal.Notify(compare, unix.SIGUSR1)
	d := &daemon{dir: dir, run: filepath.Join(dir, runName), state: filepath.Join(dir, stateName), statusFile: filepath.Join(dir, statusName),
		log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	if word, _ := status.Read(d.statusFile); word != status.Master {
		return nil
	}
	var err error
	if d.conf, _, err = conf.Load(filepath.Join(dir, confName)); err != nil {
		return err
	}
	for _, dir := range []string{d.run, d.state} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	return d.mirror(stop, compare)
}

func (d *daemon) mirror(stop, compare <-chan os.Signal) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	socket := filepath.Join(d.run, control.SocketName)
	listener, err := control.Listen(socket)
	for began := time.Now(); err != nil && time.Since(began) < time.Second; time.Sleep(time.Millisecond) {
		// What a killed one was just starting may not have closed its socket yet.
		listener, err = control.Listen(socket)
	}
	if err != nil {
		return err
	}
	defer listener.Close()
	policy, err := rsync.ParseArgs(d.conf.RsyncArgs)
	if err != nil {
		return err
	}
	roots := []mirror.Root{
		{Name: peer.ConfigRoot, Dir: d.conf.ConfigDir},
		{Name: peer.RTTablesRoot, Dir: filepath.Dir(d.conf.RTTables), Only: filepath.Base(d.conf.RTTables)},
	}
	carrier := &mirror.Carrier{
		Rsync:   rsync.Runner{Program: d.conf.Rsync, Shell: []string{self, "rsh"}, Socket: socket, Policy: policy},
		Exclude: d.conf.Exclude, Roots: roots, Notice: func(string) {},
		Connect: func(ctx context.Context) (mirror.Line, error) { return dialWire(ctx, filepath.Join(d.dir, wireName)) },
	}
	troubles := trouble.New(d.log)
	var trees *tree.Watcher
	settings := mirror.Config{
		Roots: roots, Exclude: d.conf.Exclude, Peer: d.conf.RemoteIP.String(), Local: d.conf.LocalIP.String(),
		MemoryStage: filepath.Join(d.run, "outgoing"), DiskStage: filepath.Join(d.state, "outgoing"), Verify: time.Hour,
		Dial: carrier.Dial, Blind: func() error { return trees.Blind() }, Refresh: func() { trees.Refresh() },
		Publish: func(r status.Replicator) {
			r.PID = os.Getpid()
			r.WriteFile(filepath.Join(d.run, status.ReplicatorFile))
		},
		Log: d.log, Troubles: troubles,
	}
	release, err := d.ascend(&settings)
	if err != nil {
		return err
	}
	defer release()
	d.engine = mirror.New(settings)
	ctx, end := context.WithCancelCause(context.Background())
	defer end(nil)
	exclude, _, err := fileset.ParseList(d.conf.Exclude, peer.ReadRules)
	if err != nil {
		return err
	}
	var watched []tree.Root
	for _, r := range roots {
		watched = append(watched, tree.Root{Dir: r.Dir, Skip: fileset.New(exclude).Skip, File: r.Only})
	}
	if trees, err = tree.Watch(watched, d.engine.Changed, func(error) { d.engine.Changed(tree.Event{All: true}) }); err != nil {
		return err
	}
	defer trees.Close()
	var work sync.WaitGroup
	work.Go(func() { d.watchStatus(ctx, end) })
	work.Go(func() { d.accept(ctx, listener, carrier) })
	work.Go(func() { d.engine.Run(ctx) })
	go func() { // Whoever started this program is gone when its standard input ends.
		io.Copy(io.Discard, os.Stdin)
		os.Exit(3)
	}()
	d.log.Info("started", "pid", os.Getpid())
	for ctx.Err() == nil {
		select {
		case <-compare:
			d.engine.Compare()
		case sig := <-stop:
			end(fmt.Errorf("received %v", sig))
		case <-ctx.Done():
		}
	}
	listener.Close()
	work.Wait()
	d.log.Info("stopped: " + context.Cause(ctx).Error())
	return nil
}

// ascend takes the record, finishes what was interrupted, and adds what a master
// needs to know.
func (d *daemon) ascend(c *mirror.Config) (release func(), err error) {
	ctx, cancel := context.WithTimeoutCause(context.Background(), lockLimit, errors.New("it does not end"))
	defer cancel()
	unlock, err := ledger.Lock(ctx, d.state)
	if err != nil {
		return nil, err
	}
	c.StateDir = d.state
	c.Store = func(r ledger.Record) error { return ledger.Store(d.state, r) }
	c.Limits = archive.Limits{Keep: 10_000, Age: 24 * time.Hour, Bytes: 1 << 30}
	c.Holder = func() bool { return address.Holds(os.DirFS(d.conf.ConfigDir), d.conf.ClusterIP) }
	c.Established, c.OnEstablish = d.established()
	if c.GiveUp, err = time.ParseDuration(os.Getenv(giveUpVariable)); err != nil {
		return nil, err
	}
	c.Owe, c.Apply = func() error { return skudonet.Owe(d.run) }, d.apply
	changed := false
	if c.Archives, err = archive.Open(d.state); err == nil {
		changed, err = mirror.Recover(ctx, *c)
	}
	if err == nil {
		c.Record, _, err = ledger.Load(d.state, filepath.Base(d.dir))
	}
	if err != nil {
		unlock()
		return nil, err
	}
	if changed || skudonet.Pending(d.run) {
		d.apply("the configuration was replaced before an interruption")
	}
	return unlock, nil
}

// established tells whether an earlier run was compared with the peer in this reign.
func (d *daemon) established() (before bool, note func()) {
	path := filepath.Join(d.run, establishedName)
	since := ""
	if r, err := status.ReadDaemon(filepath.Join(d.run, status.DaemonFile)); err == nil && r.State == status.Master {
		since = fmt.Sprint(r.Since.Boot)
	}
	text, err := os.ReadFile(path)
	before = err == nil && since != "" && string(text) == since
	return before, func() { os.WriteFile(path, []byte(since), 0o644) }
}

// apply is Skudonet started again, which is quick here.
func (d *daemon) apply(why string) {
	d.log.Info("Skudonet is started again, because " + why)
	if err := skudonet.Settle(d.run); err != nil {
		d.log.Error("settle", "why", err)
	}
}

// watchStatus ends ctx when the node is master no more, and pokes the engine when
// the peer is heard again.
func (d *daemon) watchStatus(ctx context.Context, end context.CancelCauseFunc) {
	tick := time.NewTicker(pollStatus)
	defer tick.Stop()
	var heard time.Duration
	for {
		if word, err := status.Read(d.statusFile); word != status.Master && (err == nil || errors.Is(err, fs.ErrNotExist)) {
			end(fmt.Errorf("the status file says %q", word))
			return
		}
		if r, err := status.ReadDaemon(filepath.Join(d.run, status.DaemonFile)); err == nil && r.Peer.LastHeard.Boot > heard {
			if heard > 0 {
				d.engine.Poke()
			}
			heard = r.Peer.LastHeard.Boot
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// accept serves rsync's -e program and an admin.
func (d *daemon) accept(ctx context.Context, l *control.Listener, carrier *mirror.Carrier) {
	var calls sync.WaitGroup
	defer calls.Wait()
	for {
		call, err := l.Accept()
		if err != nil {
			return
		}
		calls.Go(func() {
			if call.Command == "rsh" {
				carrier.Rsh(call)
				return
			}
			defer call.Close()
			words, err := "", fmt.Errorf("unknown command %s", call.Command)
			if call.Command == "resolve" && len(call.Args) == 2 {
				words, err = d.engine.Resolve(ctx, call.Args[1], call.Args[0] == archive.Theirs)
			}
			if err != nil {
				call.Reply(control.Reply{Text: err.Error(), Exit: 1, Done: true})
				return
			}
			call.Reply(control.Reply{Text: words, Done: true})
		})
	}
}
