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
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/archive"
	"github.com/skudonet/skudonet-ce-cluster/lib/cmdline"
	"github.com/skudonet/skudonet-ce-cluster/lib/conf"
	"github.com/skudonet/skudonet-ce-cluster/lib/control"
	"github.com/skudonet/skudonet-ce-cluster/lib/fileset"
	"github.com/skudonet/skudonet-ce-cluster/lib/logfile"
	"github.com/skudonet/skudonet-ce-cluster/lib/mirror"
	"github.com/skudonet/skudonet-ce-cluster/lib/peer"
	"github.com/skudonet/skudonet-ce-cluster/lib/pidfile"
	"github.com/skudonet/skudonet-ce-cluster/lib/reign"
	"github.com/skudonet/skudonet-ce-cluster/lib/remote"
	"github.com/skudonet/skudonet-ce-cluster/lib/rsync"
	"github.com/skudonet/skudonet-ce-cluster/lib/shell"
	"github.com/skudonet/skudonet-ce-cluster/lib/skudonet"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
	"github.com/skudonet/skudonet-ce-cluster/lib/tree"
	"github.com/skudonet/skudonet-ce-cluster/lib/trouble"
	"github.com/skudonet/skudonet-ce-cluster/lib/version"
)

const (
	// shownAs is how admins find the daemon in ps, on the master and only there.
	shownAs = "/usr/local/skudonet/app/skdinotify/skdinotify"
	// there is our program on the peer, where the package puts it.
	there      = "/usr/sbin/skd-inotify"
	pidName    = "inotify.pid"
	stageName  = "outgoing"
	heapGrowth = 50 // percent: what lives is small, and collected cheaply
)

// serve mirrors until a signal ends it, or the node is master no more.
func serve(c *cli.Context) error {
	stop, hangup := make(chan os.Signal, 1), make(chan os.Signal, 1)
	signal.Notify(stop, unix.SIGTERM, unix.SIGINT)
	signal.Notify(hangup, unix.SIGHUP)
	if os.Args[0] != shownAs {
		if self, err := os.Executable(); err == nil {
			err = unix.Exec(self, append([]string{shownAs}, os.Args[1:]...), os.Environ())
			fmt.Fprintln(os.Stderr, "skd-inotify: ps will not show it as skdinotify:", err)
		}
	}
	debug.SetGCPercent(heapGrowth)
	d := &service{config: c.String("config"), statusFile: c.String("status-file"), runDir: c.String("run-dir"), stateDir: c.String("state-dir")}
	if word, err := status.Read(d.statusFile); word != status.Master {
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("skd-inotify: %w", err)
		}
		fmt.Fprintln(os.Stderr, "skd-inotify: this node is not master, so there is nothing to do")
		daemon.SdNotify(false, daemon.SdNotifyReady)
		return nil
	}
	cfg, notices, err := conf.Load(d.config)
	var said []string
	if err == nil {
		for _, n := range notices {
			said = append(said, n.String())
		}
		var more []string
		d.rules, more, err = readRules(cfg)
		said = append(said, more...)
	}
	if err != nil {
		return cli.Exit(err, cmdline.Usage)
	}
	d.conf = cfg
	pid, err := d.claim()
	if err != nil {
		return err
	}
	defer pid.Close()
	defer os.Truncate(pid.Name(), 0) // not removed: another one may wait for its lock
	file := logfile.Open(cfg.ReplicatorLog, terminalOrNil())
	defer file.Flush(time.Second)
	d.log = file.Logger()
	for _, text := range said {
		d.log.Warn(text)
	}
	go func() {
		for range hangup {
			file.Reopen()
		}
	}()
	return d.run(stop)
}

func terminalOrNil() io.Writer {
	if isTerminal(os.Stderr) {
		return os.Stderr
	}
	return nil
}

// rules are what $rsync_args and $exclude mean here.
type rules struct {
	policy  rsync.Policy
	exclude fileset.List
}

// readRules reads them, and says what of them is not honoured.
func readRules(c conf.Config) (r rules, said []string, err error) {
	file := filepath.Base(c.Path)
	if r.policy, err = rsync.ParseArgs(c.RsyncArgs); err != nil {
		return r, nil, fmt.Errorf("%s: $rsync_args: %w", file, err)
	}
	if c.RsyncArgs != defaultOf("rsync_args") { // what nobody wrote needs no comment
		for _, text := range r.policy.Notices {
			said = append(said, file+": $rsync_args: "+text)
		}
	}
	var notices []string
	if r.exclude, notices, err = fileset.ParseList(c.Exclude, peer.ReadRules); err != nil {
		return r, said, fmt.Errorf("%s: $exclude: %w", file, err)
	}
	for _, text := range notices {
		said = append(said, file+": $exclude: "+text)
	}
	return r, said, nil
}

// defaultOf is the default of a key of the configuration.
func defaultOf(name string) string {
	for _, k := range conf.Keys() {
		if k.Name == name {
			return k.Default
		}
	}
	return ""
}

// service is one run of the daemon.
type service struct {
	config, statusFile, runDir, stateDir string

	conf   conf.Config
	rules  rules
	log    *slog.Logger
	engine *mirror.Engine
}

func (d *service) claim() (*os.File, error) {
	if err := os.MkdirAll(d.runDir, 0o755); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(d.stateDir, 0o700); err != nil {
		return nil, err
	}
	f, err := pidfile.Claim(filepath.Join(d.runDir, pidName))
	var held *pidfile.Held
	if errors.As(err, &held) {
		return nil, fmt.Errorf("another skd-inotify runs here already, %w", err)
	}
	return f, err
}

// dial connects to the peer, and tells the daemon if skd-vrrpd runs there: by
// itself it may not know that the peer was upgraded and speaks CARP no more.
func (d *service) dial(carrier *mirror.Carrier) func(context.Context) (mirror.Peer, error) {
	return func(ctx context.Context) (mirror.Peer, error) {
		p, err := carrier.Dial(ctx)
		if err == nil && p.Hello().Elects {
			if err := status.NotePeerUpgraded(d.runDir, d.conf.RemoteIP); err != nil {
				d.log.Warn(fmt.Sprintf("skd-vrrpd cannot be told that the peer is upgraded: %v", err))
			}
		}
		return p, err
	}
}

func (d *service) run(stop <-chan os.Signal) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	socket := filepath.Join(d.runDir, control.SocketName)
	listener, err := control.Listen(socket)
	if err != nil {
		return err
	}
	defer listener.Close()

	roots := []mirror.Root{
		{Name: peer.ConfigRoot, Dir: d.conf.ConfigDir},
		{Name: peer.RTTablesRoot, Dir: filepath.Dir(d.conf.RTTables), Only: filepath.Base(d.conf.RTTables)},
	}
	host := d.conf.RemoteIP
	if host.Is6() && host.IsLinkLocalUnicast() {
		host = host.WithZone(d.conf.Interface)
	}
	carrier := &mirror.Carrier{
		SSH:     remote.Config{Host: host, Port: d.conf.SSHPort, KeyFile: d.conf.SSHKey},
		Rsync:   rsync.Runner{Program: d.conf.Rsync, Shell: []string{self, "rsh"}, Socket: socket, Policy: d.rules.policy},
		Command: d.peerCommand(), Exclude: d.conf.Exclude, Roots: roots, Notice: once(d.log.Warn),
	}
	troubles := trouble.New(d.log)
	watcher := &watcher{}
	node := reign.Node{StateDir: d.stateDir, RunDir: d.runDir, StatusFile: d.statusFile, Machine: machine(), Conf: d.conf, Apply: d.apply, Log: d.log}
	settings, release, err := node.Begin(context.Background(), mirror.Config{
		Roots: roots, Exclude: d.conf.Exclude, Peer: d.conf.RemoteIP.String(), Local: d.conf.LocalIP.String(), Version: version.Version,
		MemoryStage: filepath.Join(d.runDir, stageName), DiskStage: filepath.Join(d.stateDir, stageName), Direct: d.rules.policy.Direct, Verify: d.conf.VerifyInterval,
		Dial: d.dial(carrier), Blind: watcher.blind, Refresh: watcher.refresh, Publish: d.publish(troubles),
		Skudonet: skudonet.Version(context.Background()), GiveUp: giveUp,
		Log: d.log, Troubles: troubles,
	})
	if err != nil {
		return err
	}
	defer release()
	d.engine = mirror.New(settings)
	ctx, end := context.WithCancelCause(context.Background())
	defer end(nil)
	watcher.open(roots, d.rules.exclude, d.engine.Changed)
	defer watcher.close()
	defer node.Watch(ctx, end, d.engine.Poke)()
	var work sync.WaitGroup
	work.Go(func() { d.accept(ctx, listener, carrier) })
	work.Go(func() { d.engine.Run(ctx) })
	compare := make(chan os.Signal, 1)
	signal.Notify(compare, unix.SIGUSR1)
	defer signal.Stop(compare)
	work.Go(func() {
		for {
			select {
			case <-compare:
				d.log.Info("comparing everything, because of SIGUSR1")
				d.engine.Compare()
			case <-ctx.Done():
				return
			}
		}
	})
	d.log.Info("started: this node is master, mirroring to "+d.conf.RemoteIP.String(), "version", version.Version)
	daemon.SdNotify(false, daemon.SdNotifyReady)
	select {
	case sig := <-stop:
		end(fmt.Errorf("received %v", sig))
	case <-ctx.Done():
	}
	daemon.SdNotify(false, daemon.SdNotifyStopping)
	listener.Close()
	work.Wait()
	d.log.Info("stopped: " + context.Cause(ctx).Error())
	return nil
}

// peerCommand starts our program on the peer. Places that are not the usual ones
// here are not the usual ones there.
func (d *service) peerCommand() string {
	words := []string{there, "peer"}
	for _, o := range [][3]string{
		{"-c", d.config, conf.DefaultPath}, {"--status-file", d.statusFile, status.StatusFile},
		{"--run-dir", d.runDir, status.RunDir}, {"--state-dir", d.stateDir, status.StateDir},
	} {
		if o[1] != o[2] {
			words = append(words, o[0], shell.Quote(o[1]))
		}
	}
	return strings.Join(words, " ")
}

// publish returns what writes the state for status and for systemd.
func (d *service) publish(troubles *trouble.List) func(status.Replicator) {
	path := filepath.Join(d.runDir, status.ReplicatorFile)
	return func(r status.Replicator) {
		r.PID = os.Getpid()
		troubles.Check("state", "skd-inotify status shows old news: ", r.WriteFile(path))
		daemon.SdNotify(false, "STATUS="+r.State)
	}
}

// accept serves rsync's -e program and the commands of admins and hooks.
func (d *service) accept(ctx context.Context, l *control.Listener, carrier *mirror.Carrier) {
	var calls sync.WaitGroup
	defer calls.Wait()
	for {
		call, err := l.Accept()
		if err != nil {
			return
		}
		calls.Go(func() {
			switch call.Command {
			case "rsh":
				carrier.Rsh(call)
			case "sync", "flush":
				d.wait(ctx, call)
			case "restore", "resolve":
				d.change(ctx, call)
			default:
				call.Reply(control.Reply{Text: "unknown command " + call.Command, Exit: cmdline.Usage, Done: true})
				call.Close()
			}
		})
	}
}

// wait serves who wants to know when both nodes have the same.
func (d *service) wait(ctx context.Context, call *control.Call) {
	defer call.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-call.Gone():
			cancel()
		case <-ctx.Done():
		}
	}()
	err := error(nil)
	if call.Command == "flush" {
		err = d.engine.Flush(ctx)
	} else {
		err = d.engine.Sync(ctx, slices.Contains(call.Args, confirmArg), func(words string) { call.Reply(control.Reply{Text: words}) })
	}
	if errors.Is(err, mirror.ErrNotCompared) {
		call.Reply(control.Reply{Text: err.Error(), Done: true})
		return
	}
	if err != nil {
		call.Reply(control.Reply{Text: "not in step with " + d.conf.RemoteIP.String() + ": " + err.Error(), Exit: cmdline.Failed, Done: true})
		return
	}
	call.Reply(control.Reply{Text: "both nodes have the same configuration", Done: true})
}

// change serves an admin who wants replaced files back.
func (d *service) change(ctx context.Context, call *control.Call) {
	defer call.Close()
	var words string
	err := fmt.Errorf("%s: want more arguments", call.Command)
	switch {
	case call.Command == "restore" && len(call.Args) >= 1:
		words, err = d.engine.Restore(ctx, call.Args[0], call.Args[1:])
	case call.Command == "resolve" && len(call.Args) == 2:
		words, err = d.engine.Resolve(ctx, call.Args[1], call.Args[0] == archive.Theirs)
	}
	if err != nil {
		call.Reply(control.Reply{Text: err.Error(), Exit: cmdline.Failed, Done: true})
		return
	}
	call.Reply(control.Reply{Text: words, Done: true})
}

// watcher sees the changes of the trees, or knows why it cannot.
type watcher struct {
	trees  *tree.Watcher
	failed error
}

func (w *watcher) open(roots []mirror.Root, exclude fileset.List, sink func(tree.Event)) {
	var watched []tree.Root
	for _, r := range roots {
		watched = append(watched, tree.Root{Dir: r.Dir, Skip: fileset.New(exclude).Skip, File: r.Only})
	}
	w.trees, w.failed = tree.Watch(watched, sink, func(error) { sink(tree.Event{All: true}) }) // after which Blind tells why
}

func (w *watcher) close() {
	if w.trees != nil {
		w.trees.Close()
	}
}

func (w *watcher) blind() error {
	if w.trees == nil {
		return w.failed
	}
	return w.trees.Blind()
}

func (w *watcher) refresh() {
	if w.trees != nil {
		w.trees.Refresh()
	}
}

// once passes each text on once.
func once(say func(string, ...any)) func(string) {
	var mu sync.Mutex
	said := map[string]bool{}
	return func(text string) {
		mu.Lock()
		defer mu.Unlock()
		if !said[text] {
			said[text] = true
			say(text)
		}
	}
}
