package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/archive"
	"github.com/skudonet/skudonet-ce-cluster/lib/conf"
	"github.com/skudonet/skudonet-ce-cluster/lib/control"
	"github.com/skudonet/skudonet-ce-cluster/lib/fileset"
	"github.com/skudonet/skudonet-ce-cluster/lib/mirror"
	"github.com/skudonet/skudonet-ce-cluster/lib/peer"
	"github.com/skudonet/skudonet-ce-cluster/lib/reign"
	"github.com/skudonet/skudonet-ce-cluster/lib/rsync"
	"github.com/skudonet/skudonet-ce-cluster/lib/skudonet"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
	"github.com/skudonet/skudonet-ce-cluster/lib/tree"
	"github.com/skudonet/skudonet-ce-cluster/lib/trouble"
)

const giveUpVariable = "HISTORY_GIVEUP"

// daemon is skd-inotify on a master.
type daemon struct {
	dir, run, state, statusFile string
	conf                        conf.Config
	log                         *slog.Logger
	engine                      *mirror.Engine
}

// serve mirrors until a signal ends it, or the node is master no more.
func serve(dir string) error {
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
	limit, err := time.ParseDuration(os.Getenv(giveUpVariable))
	if err != nil {
		return err
	}
	settings := mirror.Config{
		Roots: roots, Exclude: d.conf.Exclude, Peer: d.conf.RemoteIP.String(), Local: d.conf.LocalIP.String(),
		MemoryStage: filepath.Join(d.run, "outgoing"), DiskStage: filepath.Join(d.state, "outgoing"), Verify: time.Hour, GiveUp: limit,
		Dial: carrier.Dial, Blind: func() error { return trees.Blind() }, Refresh: func() { trees.Refresh() },
		Publish: func(r status.Replicator) {
			r.PID = os.Getpid()
			r.WriteFile(filepath.Join(d.run, status.ReplicatorFile))
		},
		Log: d.log, Troubles: troubles,
	}
	node := reign.Node{StateDir: d.state, RunDir: d.run, StatusFile: d.statusFile, Machine: filepath.Base(d.dir), Conf: d.conf, Apply: d.apply, Log: d.log}
	settings, release, err := node.Begin(context.Background(), settings)
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
	defer node.Watch(ctx, end, d.engine.Poke)()
	var work sync.WaitGroup
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

// apply is Skudonet started again, which is quick here.
func (d *daemon) apply(why string) {
	d.log.Info("Skudonet is started again, because " + why)
	if err := skudonet.Settle(d.run); err != nil {
		d.log.Error("settle", "why", err)
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
