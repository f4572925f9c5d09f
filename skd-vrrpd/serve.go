package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/address"
	"github.com/skudonet/skudonet-ce-cluster/lib/auth"
	"github.com/skudonet/skudonet-ce-cluster/lib/bootclock"
	"github.com/skudonet/skudonet-ce-cluster/lib/carp"
	"github.com/skudonet/skudonet-ce-cluster/lib/cmdline"
	"github.com/skudonet/skudonet-ce-cluster/lib/conf"
	"github.com/skudonet/skudonet-ce-cluster/lib/control"
	"github.com/skudonet/skudonet-ce-cluster/lib/election"
	"github.com/skudonet/skudonet-ce-cluster/lib/hook"
	"github.com/skudonet/skudonet-ce-cluster/lib/ledger"
	"github.com/skudonet/skudonet-ce-cluster/lib/link"
	"github.com/skudonet/skudonet-ce-cluster/lib/node"
	"github.com/skudonet/skudonet-ce-cluster/lib/pidfile"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
	"github.com/skudonet/skudonet-ce-cluster/lib/syslog"
	"github.com/skudonet/skudonet-ce-cluster/lib/transport"
	"github.com/skudonet/skudonet-ce-cluster/lib/trouble"
	"github.com/skudonet/skudonet-ce-cluster/lib/version"
	"github.com/skudonet/skudonet-ce-cluster/lib/vrouter"
)

// A small heap that is collected often costs less here than a large one: what
// lives is a few hundred kilobytes.
const heapGrowth = 50

// serve runs the election until a signal ends it.
func serve(path string, places node.Places) error {
	// First of all: a signal that came before would have its default action.
	stop, hangups := make(chan os.Signal, 4), make(chan os.Signal, 4)
	signal.Notify(stop, unix.SIGTERM, unix.SIGINT)
	signal.Notify(hangups, unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2)
	if os.Getenv(stopEnv) != "" { // meant for the process that executed us
		os.Unsetenv(stopEnv)
		stop <- unix.SIGTERM
	}
	if os.Getenv(handOverEnv) != "" {
		os.Unsetenv(handOverEnv)
		hangups <- unix.SIGUSR2
	}
	debug.SetGCPercent(heapGrowth)
	started := time.Now()
	c, notices, err := conf.Load(path)
	sink := syslog.Open("skd-vrrpd")
	defer sink.Flush(time.Second)
	log := sink.Logger()
	if err == nil {
		d := &service{conf: c, places: places, log: log, sink: sink, stop: stop, hangups: hangups}
		for _, n := range notices {
			log.Warn(n.String())
			d.warnings = append(d.warnings, n.String())
		}
		if err = d.claim(); err == nil {
			err = d.run(started)
		}
		if err == nil {
			return nil
		}
	} else {
		err = cli.Exit(err, cmdline.Usage)
	}
	if !sink.OnStderr() { // where main prints it
		sayAll(log, err)
	}
	return err
}

// sayAll logs each line of an error as one of its own: a configuration has
// several.
func sayAll(log *slog.Logger, err error) {
	for line := range strings.Lines(err.Error()) {
		log.Error(strings.TrimSuffix(line, "\n"))
	}
}

// service is one run of the daemon.
type service struct {
	conf     conf.Config
	places   node.Places
	warnings []string
	log      *slog.Logger
	sink     *syslog.Sink
	pidFile  *os.File
	node     *node.Node
	router   *vrouter.Router
	stop     chan os.Signal
	hangups  chan os.Signal // and the other two
	stopping atomic.Bool    // asked to
	renewing atomic.Bool    // a restart is being prepared
	handOver atomic.Bool    // asked to, meanwhile
}

// What the next process is told of which this one was asked too late.
const (
	stopEnv     = "SKD_VRRPD_STOP"
	handOverEnv = "SKD_VRRPD_HANDOVER"
)

// claim makes the directories and takes the pid file, whose lock tells a living
// daemon from a dead one.
func (d *service) claim() error {
	if err := os.MkdirAll(d.places.RunDir, 0o755); err != nil {
		return err
	}
	if err := os.MkdirAll(d.places.StateDir, 0o700); err != nil {
		d.log.Warn(fmt.Sprintf("nothing will survive a reboot: %v", err))
	}
	f, err := pidfile.Claim(pidPath(d.places))
	var held *pidfile.Held
	if errors.As(err, &held) {
		return fmt.Errorf("another skd-vrrpd runs here already, %w", err)
	} else if err != nil {
		return err
	}
	d.pidFile = f
	return nil
}

func (d *service) run(started time.Time) error {
	troubles := trouble.New(d.log)
	n, record, err := node.Open(d.conf, d.places, d.warnings, d.log, troubles)
	if err != nil {
		return err
	}
	d.node = n
	tell := notifier()
	n.Notify = func(line string) { tell("STATUS=" + line) }
	lasting, err := node.ReadLasting(d.places.StateDir)
	if err != nil {
		d.log.Warn(fmt.Sprintf("starting without what was stored, from the clock alone: %v", err))
	}
	if d.forgotten() {
		record, lasting = vrouter.Forget(record, lasting)
	}
	cfg := virtualRouter(d.conf)
	cfg.Keys, cfg.Started, cfg.Hesitant = d.keys(d.conf), started, d.hesitant()
	if cfg.CARPKeys, err = carpKeys(d.conf); err != nil {
		return err
	}
	d.router = vrouter.New(cfg, n, func(s link.State, f vrouter.Family) (vrouter.Conn, error) { return d.open(cfg, s, f) }, bootclock.Now,
		d.log, troubles, record, lasting)

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	closing, hurry := context.WithCancel(context.Background())
	defer hurry()
	go d.signals(hurry)
	go n.Run(ctx)
	if d.conf.Protocol == conf.Auto {
		go d.awaitUpgrade(ctx)
	}
	go link.Watcher{
		State: d.router.Link, Removed: n.Removed, Links: n.Links,
		Trouble: func(err error) { d.log.Warn(err.Error()) },
	}.Watch(ctx, wanted(cfg))

	for _, f := range cfg.Families() {
		d.log.Info(fmt.Sprintf("started on %s vrid %d for %s", d.conf.Interface, d.conf.VRID, f.ClusterIP),
			"version", version.Version, "local", f.Local, "peer", f.Peer, "protocol", d.conf.Protocol, "transport", d.conf.Transport,
			"interval", d.conf.AdvertInterval, "signed", len(cfg.Keys) > 0)
	}
	watchdog, _ := daemon.SdWatchdogEnabled(false)
	daemon.SdNotify(false, daemon.SdNotifyReady)
	if d.router.Run(ctx, func() { tell(daemon.SdNotifyWatchdog) }, watchdog/2) {
		return d.execute()
	}
	limited, done := context.WithTimeout(closing, d.conf.HookTimeout+hook.Grace)
	defer done()
	n.Close(limited)
	os.Remove(d.pidFile.Name())
	d.log.Info("stopped")
	return nil
}

// notifier returns a function that tells systemd something without waiting for
// it: who does not read its socket must not stop an election.
func notifier() func(string) {
	lines := make(chan string, 8)
	go func() {
		for line := range lines {
			daemon.SdNotify(false, line)
		}
	}()
	return func(line string) {
		select {
		case lines <- line:
		default:
		}
	}
}

// virtualRouter turns the configuration into the election's terms.
func virtualRouter(c conf.Config) vrouter.Config {
	dialects := map[conf.Protocol]election.Dialect{conf.VRRP: election.VRRP, conf.CARP: election.CARP, conf.Auto: election.Both}
	kinds := map[conf.Transport]transport.Kind{conf.Multicast: transport.Multicast, conf.Unicast: transport.Unicast, conf.UDP: transport.UDP}
	_, anyones := c.Password.Key()
	cfg := vrouter.Config{
		Election: election.Config{Priority: c.Priority, Interval: c.AdvertInterval, DeadRatio: c.DeadRatio, Preempt: c.Preempt,
			Local: c.LocalIP, Peer: c.RemoteIP, Signed: c.Password != "", Foreign: c.Password == "" || anyones, Dialect: dialects[c.Protocol]},
		Interface: c.Interface, VRID: c.VRID, ClusterIP: c.ClusterIP, Kind: kinds[c.Transport],
		Second:     vrouter.Family{Local: c.Second.LocalIP, Peer: c.Second.RemoteIP, ClusterIP: c.Second.ClusterIP},
		IgnoreLink: c.LinkLoss == conf.LinkLossIgnore,
	}
	return cfg
}

// hesitant tells whether this node is to leave the first promotion to the other
// one: it never took part in a replication, and $cluster_ip, of either family, is
// no virtual interface here, which an admin makes on the node that has the
// configuration.
func (d *service) hesitant() bool {
	record, _, err := ledger.Peek(d.places.StateDir)
	if err != nil {
		d.log.Warn(fmt.Sprintf("whether this node took part in a cluster before cannot be told: %v", err))
	}
	return len(record.Vector) == 0 && !address.Holds(os.DirFS(d.conf.ConfigDir), d.conf.ClusterIPs()...)
}

// wanted is what the interface must have for that.
func wanted(cfg vrouter.Config) link.Want {
	want := link.Want{Name: cfg.Interface}
	for _, f := range cfg.Families() {
		want.Local = append(want.Local, f.Local)
		want.LinkLocal = want.LinkLocal || cfg.FromLinkLocal(f)
		want.Not = append(want.Not, f.ClusterIP)
	}
	return want
}

func (d *service) open(cfg vrouter.Config, s link.State, f vrouter.Family) (vrouter.Conn, error) {
	c := transport.Config{Kind: cfg.Kind, Interface: s.Name, Index: s.Index,
		Local: f.Local, Peer: f.Peer, Port: d.conf.UDPPort, VRID: cfg.VRID, Copied: d.router.Copied}
	if cfg.FromLinkLocal(f) {
		c.Local = s.LinkLocal.Addr
	}
	if d.conf.Protocol != conf.VRRP {
		c.InUDP = d.router.CARPInUDP
	}
	return transport.Open(c)
}

// keys derives the key of each password, or reads it from a file of the run
// directory that only root can read, so that a restart takes no time.
func (d *service) keys(c conf.Config) []vrouter.Key {
	var keys []vrouter.Key
	for _, p := range []struct {
		secret conf.Secret
		file   string
	}{{c.Password, "password.key"}, {c.PasswordNext, "password_next.key"}} {
		path := filepath.Join(d.places.RunDir, p.file)
		if p.secret == "" || c.Password == "" {
			os.Remove(path)
			continue
		}
		if secret, ok := p.secret.Key(); ok {
			os.Remove(path)
			key, err := auth.NewKey(secret)
			if err != nil {
				panic(err) // package conf lets no other lengths through
			}
			keys = append(keys, vrouter.Key{Key: key, Anyones: true})
			continue
		}
		if b, err := os.ReadFile(path); err == nil {
			if key, err := auth.ParseCache(b, string(p.secret), c.VRID, c.LocalIP, c.RemoteIP); err == nil {
				keys = append(keys, vrouter.Key{Key: key})
				continue
			}
		}
		key := auth.DeriveKey(string(p.secret), c.VRID, c.LocalIP, c.RemoteIP)
		keys = append(keys, vrouter.Key{Key: key})
		if err := writePrivate(path, key.MarshalCache(string(p.secret), c.VRID, c.LocalIP, c.RemoteIP)); err != nil {
			d.log.Warn(fmt.Sprintf("a restart will take longer: %v", err))
		}
	}
	return keys
}

// carpKeys are those of CARP, which has the password itself for a key.
func carpKeys(c conf.Config) (keys []carp.Key, err error) {
	if c.Protocol == conf.VRRP {
		return nil, nil
	}
	for _, p := range []conf.Secret{c.Password, c.PasswordNext} {
		if p == "" {
			continue
		}
		key, err := carp.NewKey(string(p), c.ClusterIP)
		if err != nil {
			return nil, err
		}
		keys = append(keys, key)
	}
	return keys, nil
}

// awaitUpgrade waits for word from the replicator that the other node runs this
// program, too. The election decides what that is worth.
func (d *service) awaitUpgrade(ctx context.Context) {
	for tick := time.NewTicker(upgradePoll); ; {
		select {
		case <-tick.C:
			if status.PeerUpgraded(d.places.RunDir, d.conf.RemoteIP) {
				d.router.PeerUpgraded()
			}
		case <-ctx.Done():
			tick.Stop()
			return
		}
	}
}

const upgradePoll = 2 * time.Second

// writePrivate writes a file that was never readable by others, also when one
// with other permissions stood there.
func writePrivate(path string, b []byte) error {
	os.Remove(path + ".new")
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// signals are the admin's words to the daemon.
func (d *service) signals(hurry func()) {
	for {
		select {
		case s := <-d.stop:
			if d.stopping.Swap(true) {
				d.log.Warn("asked twice to stop; not waiting for the hooks")
				hurry()
				continue
			}
			d.log.Info(fmt.Sprintf("asked to stop by SIG%s", name(s)))
			go daemon.SdNotify(false, leaving(d.conf))
			go d.leave(vrouter.Stop)
		case s := <-d.hangups:
			switch s {
			case unix.SIGUSR1:
				d.router.Do(vrouter.Tell)
			case unix.SIGUSR2:
				if d.renewing.Load() {
					d.handOver.Store(true)
				} else {
					go d.leave(vrouter.HandOver)
				}
			case unix.SIGHUP:
				if !d.stopping.Load() && d.renewing.CompareAndSwap(false, true) {
					go d.restart()
				}
			}
		}
	}
}

// leaving tells systemd that the service stops, and how long that may take
// whatever its TimeoutStopSec: the replicator's time, the successor's, and then
// the stop hook's, after a start hook that has to be ended first.
func leaving(c conf.Config) string {
	const slack = 10 * time.Second
	limit := flushLimit + virtualRouter(c).Election.LongestLeave() + c.HookTimeout + 4*hook.Grace + slack
	return fmt.Sprintf("%s\nEXTEND_TIMEOUT_USEC=%d", daemon.SdNotifyStopping, limit.Microseconds())
}

// flushLimit is how long a planned hand-over waits for the replicator.
const flushLimit = 2 * time.Second

// leave lets the replicator send what it has seen, so that the successor begins
// with it, and then leaves. Where no replicator runs, as on a backup, that takes no time.
func (d *service) leave(how vrouter.Command) {
	ctx, cancel := context.WithTimeout(context.Background(), flushLimit)
	defer cancel()
	last, err := control.Do(ctx, filepath.Join(d.places.RunDir, control.SocketName), control.Request{Command: "flush"}, nil)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ECONNREFUSED):
	case err != nil:
		d.log.Warn(fmt.Sprintf("leaving although the peer may not have the last changes: the replicator does not answer: %v", err))
	case last.Exit != 0:
		d.log.Warn("leaving although the peer may not have the last changes: " + last.Text)
	}
	d.router.Do(how)
}

func name(s os.Signal) string {
	if s == unix.SIGINT {
		return "INT"
	}
	return "TERM"
}

// restart prepares to execute the program anew: only with a configuration that
// fits, and only between hooks, whose end is reported to this process.
func (d *service) restart() {
	executing := false
	defer func() {
		if executing {
			return
		}
		d.renewing.Store(false)
		if d.handOver.Swap(false) {
			go d.leave(vrouter.HandOver)
		}
	}()
	if !d.fits() {
		return
	}
	waited := false
	for ; !d.node.Idle(); waited = true {
		if !waited {
			d.log.Info("executing anew when the running hook has ended")
		}
		time.Sleep(hookPoll)
		if d.stopping.Load() {
			return
		}
	}
	if waited && !d.fits() { // somebody has edited it meanwhile
		return
	}
	executing = true
	d.router.Do(vrouter.Leave)
}

// fits tells whether the configuration file is right and describes the same
// virtual router: a new process could do nothing with another one but end.
func (d *service) fits() bool {
	c, _, err := conf.Load(d.conf.Path)
	if err != nil {
		sayAll(d.log, err)
		d.log.Error("the configuration is wrong; going on with the old one")
		return false
	}
	if was, will := virtualRouter(d.conf).Identity(), virtualRouter(c).Identity(); was != will {
		d.log.Error(fmt.Sprintf("the configuration describes another virtual router (%s, was %s); going on with the old one: restart the service to change it", will, was))
		return false
	}
	if self, err := os.Executable(); err != nil || unix.Access(self, unix.X_OK) != nil {
		d.log.Error(fmt.Sprintf("the program %s cannot be executed; going on with the one that runs", self))
		return false
	}
	d.keys(c) // derived now, not while nobody advertises
	return true
}

const hookPoll = 50 * time.Millisecond

// execute replaces this process by a new one of the same number.
func (d *service) execute() error {
	d.node.Flush()
	d.log.Info("executing anew")
	d.sink.Flush(time.Second)
	self, err := os.Executable()
	if err != nil {
		return err
	}
	// What arrives from here on is for the next process: a stop is handed over,
	// the others are ignored until it listens.
	signal.Ignore(unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2)
	daemon.SdNotify(false, fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", monotonic().Microseconds()))
	if d.stopping.Load() || len(d.stop) > 0 {
		os.Setenv(stopEnv, "1")
	}
	if d.handOver.Load() {
		os.Setenv(handOverEnv, "1")
	}
	return fmt.Errorf("execute %s: %w", self, unix.Exec(self, os.Args, os.Environ()))
}

// monotonic is the clock by which systemd orders reloads.
func monotonic() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

const forgetName = "forget-peer"

// forgotten tells, once, that the admin asked for the peer to be forgotten.
func (d *service) forgotten() bool {
	if os.Remove(filepath.Join(d.places.RunDir, forgetName)) != nil {
		return false
	}
	if err := status.ForgetPeerUpgraded(d.places.RunDir); err != nil {
		d.log.Warn(fmt.Sprintf("the peer still counts as upgraded: %v", err))
	}
	d.log.Info("forgot which sequence the peer used last, and whether it was upgraded, as asked")
	return true
}

// forgetPeer leaves word for the daemon, and has it execute itself anew if it runs.
func forgetPeer(places node.Places) error {
	if err := os.MkdirAll(places.RunDir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(places.RunDir, forgetName), nil, 0o600); err != nil {
		return err
	}
	p, err := look(places)
	switch {
	case err != nil:
		return err
	case p.life != running:
		fmt.Println("skd-vrrpd does not run; it will forget what it knows of the peer when it starts, unless the machine reboots before")
		return nil
	}
	if err := unix.Kill(p.pid, unix.SIGHUP); err != nil {
		return fmt.Errorf("tell process %d: %w", p.pid, err)
	}
	fmt.Println("skd-vrrpd was told to forget what it knows of the peer; when it has, it says so in the log, and the peer is heard again")
	return nil
}
