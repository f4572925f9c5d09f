// Package skudonet starts and stops the load balancer that the cluster carries
// from node to node, and finds out whether it is up.
//
// It looks at what Skudonet CE 7 leaves on the machine: daemons, addresses, its
// own control program at work. Nobody can be asked instead: the exit status of
// its init script is always 0, the script knows no "status", and systemd is
// wrong about it whenever somebody has used the script (SKUDONET/skdlb,
// etc/init.d/skudonet and usr/local/skudonet/bin/skudonet). Where the traces
// leave a doubt, Skudonet is started or stopped once more: that is harmless,
// once too few is not.
//
// The package never ends Skudonet's control program in the middle of a stop, and
// in the middle of a start only if that hangs: it rewrites its configuration in
// place. For the same reason two of them never run at once if we can help it.
package skudonet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/systemd"
)

// Where Skudonet is.
const (
	home       = "/usr/local/skudonet/"
	control    = home + "bin/skudonet"
	initScript = "/etc/init.d/skudonet"
	unit       = "skudonet.service"
)

// How long is waited.
const (
	forOthers  = 15 * time.Second       // until a start or stop that somebody else began has ended
	forTraces  = 5 * time.Second        // until what was started or stopped shows it
	forDeath   = 2 * time.Second        // of a start that hangs, after SIGTERM
	forSystemd = 300 * time.Millisecond // until it runs what it was told, if it may
	between    = 20 * time.Millisecond
)

// Service is Skudonet on this node.
type Service struct {
	Tree      fs.FS                    // configuration tree, /usr/local/skudonet/config
	Interface string                   // of the cluster: without a carrier there, Skudonet is not started
	Missing   func() ([]string, error) // the virtual addresses that should be up and are not
	Say       func(string)             // what the admin may want to know meanwhile

	started bool
}

// Start starts Skudonet unless it is up, and verifies that it then is. It
// returns in words what was done. When ctx ends meanwhile it returns, but
// Skudonet's own start goes on; Stop waits for it.
func (s *Service) Start(ctx context.Context) (string, error) {
	if err := s.Ready(); err != nil {
		return "", err
	}
	if err := s.wait(ctx, forOthers, quiet, "another start or stop of Skudonet is under way; waiting for it"); err != nil && ctx.Err() != nil {
		return "", err
	}
	running, _, err := look()
	if err != nil {
		return "", err
	}
	lacking, err := s.lacking(running)
	if err != nil {
		return "", err
	}
	if len(running) > 0 && len(lacking) == 0 {
		return "is up already: " + names(running), nil
	}
	began := time.Now()
	how, err := s.launch(ctx)
	s.started = true
	if err != nil {
		return "", err
	}
	err = s.wait(ctx, forTraces, func() (bool, error) {
		if running, _, err = look(); err != nil {
			return false, err
		}
		lacking, err = s.lacking(running)
		return len(lacking) == 0, err
	}, "")
	switch {
	case err == nil && len(running) == 0:
		return fmt.Sprintf("started by %s in %s; no farm is configured that a daemon would run for", how, since(began)), nil
	case err == nil:
		return fmt.Sprintf("started by %s in %s: %s", how, since(began), names(running)), nil
	case errors.Is(err, errTooLong):
		return "", fmt.Errorf("started by %s, but %s; see /var/log/syslog, and the farm or interface in Skudonet's web page",
			how, strings.Join(lacking, ", "))
	}
	return "", err
}

// Stop stops Skudonet and verifies that its daemons are gone. It never waits for
// a job of systemd: within a stop of our own unit that job may wait for us.
func (s *Service) Stop(ctx context.Context) (string, error) {
	err := s.wait(ctx, forOthers, quiet, "another start or stop of Skudonet is under way; waiting for it")
	if errors.Is(err, errTooLong) {
		err = s.endStart(ctx)
	}
	if err != nil && ctx.Err() != nil {
		return "", err
	}
	began := time.Now()
	installed := true
	if err := s.runInit(ctx, "stop"); errors.Is(err, fs.ErrNotExist) {
		installed = false
	} else if err != nil {
		return "", err
	}
	if systemd.Booted() {
		s.tellSystemd(ctx)
	}
	var left []daemon
	err = s.wait(ctx, forTraces, func() (bool, error) {
		var err error
		left, _, err = look()
		return len(left) == 0, err
	}, "")
	switch {
	case errors.Is(err, errTooLong):
		return "", fmt.Errorf("still running after %s stop: %s; see /var/log/syslog, or end them by kill", initScript, names(left))
	case err != nil:
		return "", err
	case !installed:
		return "is not installed (no " + initScript + "), and nothing of it runs", nil
	}
	return "stopped in " + since(began), nil
}

// tellSystemd makes systemd believe that Skudonet is stopped, and takes back a
// start that waits there. It comes after our own stop, because it runs the
// script again. That second run would take the addresses from a node that is
// master again, so it is waited for, unless systemd holds it back: it may be
// waiting for us.
func (s *Service) tellSystemd(ctx context.Context) {
	before, _ := systemctl(ctx, "show", "--property=LoadState,ActiveState", unit)
	if strings.Contains(before, "LoadState=not-found") {
		return
	}
	if out, err := systemctl(ctx, "stop", "--no-block", unit); err != nil {
		s.say("systemctl stop --no-block " + unit + ": " + out)
		return
	}
	if strings.Contains(before, "ActiveState=inactive") {
		return
	}
	begun := func() (bool, error) {
		idle, err := quiet()
		return !idle, err
	}
	if s.wait(ctx, forSystemd, begun, "") == nil {
		s.wait(ctx, forTraces, quiet, "")
	}
}

// RestoreLinks sets up the NICs and VLANs that should be up and that a Start has
// set down: that is what Skudonet does to one without a carrier, and it would
// stay so when the cable is back. It returns their names.
func (s *Service) RestoreLinks() ([]string, error) {
	if !s.started {
		return nil, nil
	}
	var restored []string
	var errs []error
	for _, name := range links(s.Tree) {
		l, err := netlink.LinkByName(name)
		if err != nil || l.Attrs().RawFlags&unix.IFF_UP != 0 {
			continue // no such NIC on this node, or as it should be
		}
		if err := netlink.LinkSetUp(l); err != nil {
			errs = append(errs, fmt.Errorf("ip link set %s up: %w", name, err))
			continue
		}
		restored = append(restored, name)
	}
	return restored, errors.Join(errs...)
}

// Ready tells whether Skudonet can be started: not without a carrier, when that
// would cut the node off. Who restarts it asks before the stop.
func (s *Service) Ready() error {
	l, err := netlink.LinkByName(s.Interface)
	if err != nil {
		return fmt.Errorf("interface %s: %w", s.Interface, err)
	}
	if l.Attrs().RawFlags&unix.IFF_LOWER_UP == 0 {
		return fmt.Errorf("%s has no carrier, and Skudonet's start would set it down for good: not started; check the cable, then run skd-hooks start",
			s.Interface)
	}
	return nil
}

// lacking says what a Skudonet that is up has and this node does not.
func (s *Service) lacking(running []daemon) ([]string, error) {
	var lacking []string
	missing, err := s.Missing()
	for _, address := range missing {
		lacking = append(lacking, address+" is not up")
	}
	for _, f := range farms(s.Tree) {
		if !slices.ContainsFunc(running, f.runs) {
			lacking = append(lacking, fmt.Sprintf("no %s runs for farm %s", f.daemon, f.name))
		}
	}
	return lacking, err
}

// launch starts Skudonet and returns how. By systemd where there is one: the
// daemons must not live in our control group and die with it.
func (s *Service) launch(ctx context.Context) (how string, err error) {
	if systemd.Booted() {
		out, err := systemctl(ctx, "show", "--property=LoadState,ActiveState", unit)
		if err != nil {
			s.say("systemctl show " + unit + ": " + out)
		}
		if !strings.Contains(out, "LoadState=not-found") {
			verb := "start"
			if strings.Contains(out, "ActiveState=active") {
				verb = "restart" // a start would do nothing
			}
			how = "systemctl " + verb + " skudonet"
			out, err := systemctl(ctx, verb, unit)
			if err != nil && ctx.Err() == nil {
				// A node that changes roles often is not one that tries in vain, for which systemd takes it.
				systemctl(ctx, "reset-failed", unit)
				out, err = systemctl(ctx, verb, unit)
			}
			if ctx.Err() != nil {
				return "", fmt.Errorf("interrupted; the job of %s goes on", how)
			} else if err != nil {
				return "", fmt.Errorf("%s: %w: %s", how, err, out)
			}
			return how, nil
		}
	}
	err = s.runInit(ctx, "start")
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("no %s: is the package skudonet installed?", initScript)
	}
	return initScript + " start", err
}

// runInit runs the init script in a session of its own, out of reach of who
// ends us: see the package comment. Its exit status says nothing.
func (s *Service) runInit(ctx context.Context, action string) error {
	errs, err := newScratch()
	if err != nil {
		return err
	}
	defer errs.Close()
	cmd := &exec.Cmd{Path: initScript, Args: []string{initScript, action}, Dir: "/", Env: os.Environ(), Stderr: errs,
		SysProcAttr: &syscall.SysProcAttr{Setsid: true}}
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan struct{})
	go func() { cmd.Wait(); close(done) }()
	select {
	case <-done:
		if text := seal(errs); text != "" {
			s.say(initScript + " " + action + ": " + text)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("interrupted; %s %s goes on by itself", initScript, action)
	}
}

// endStart ends a start that hangs, so that it cannot go on behind a stop.
func (s *Service) endStart(ctx context.Context) error {
	signal := func(sig syscall.Signal) {
		_, controls, _ := look()
		for _, c := range controls {
			if c.action != "stop" {
				s.say(fmt.Sprintf("%s: process %d is at it for more than %s: sending %s", c.name, c.pid, forOthers, unix.SignalName(sig)))
				syscall.Kill(c.pid, sig)
			}
		}
	}
	signal(syscall.SIGTERM)
	err := s.wait(ctx, forDeath, quiet, "")
	if errors.Is(err, errTooLong) {
		signal(syscall.SIGKILL)
	}
	return err
}

// quiet tells whether no control program of Skudonet is at work.
func quiet() (bool, error) {
	_, controls, err := look()
	return len(controls) == 0, err
}

var errTooLong = errors.New("took too long")

// wait waits until done, and says why if that is not at once.
func (s *Service) wait(ctx context.Context, limit time.Duration, done func() (bool, error), why string) error {
	tick := time.NewTicker(between)
	defer tick.Stop()
	for deadline := time.Now().Add(limit); ; {
		if ok, err := done(); ok || err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return errTooLong
		}
		if why != "" {
			s.say(why)
			why = ""
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("interrupted: %w", ctx.Err())
		}
	}
}

func (s *Service) say(text string) {
	if s.Say != nil {
		s.Say(text)
	}
}

func systemctl(ctx context.Context, args ...string) (string, error) {
	out, err := newScratch()
	if err != nil {
		return "", err
	}
	defer out.Close()
	cmd := exec.CommandContext(ctx, "systemctl", append(args, "--no-ask-password")...)
	cmd.Stdout, cmd.Stderr = out, out
	err = cmd.Run()
	return seal(out), err
}

// newScratch returns a file in memory for output. Not a pipe: a daemon that
// keeps it open would hold up who reads it, and die when nobody does.
func newScratch() (*os.File, error) {
	fd, err := unix.MemfdCreate("output", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "output")
	// A limit, that it cannot fill the memory either.
	if err = f.Truncate(64 << 10); err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_GROW)
	}
	return f, err
}

// seal returns what was written, in one line, and makes later writes fail.
func seal(f *os.File) string {
	unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE)
	n, err := f.Seek(0, 1)
	if err != nil {
		return ""
	}
	b := make([]byte, min(n, 1000))
	f.ReadAt(b, 0)
	return strings.Join(strings.Fields(strings.ToValidUTF8(string(b), "?")), " ")
}

func names(daemons []daemon) string {
	text := make([]string, len(daemons))
	for i, d := range daemons {
		text[i] = fmt.Sprintf("%s (pid %d)", d.name, d.pid)
	}
	return strings.Join(text, ", ")
}

func since(began time.Time) string {
	return fmt.Sprintf("%.1f s", time.Since(began).Seconds())
}
