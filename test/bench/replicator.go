package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/status"
	"github.com/skudonet/skudonet-ce-cluster/test/lab"
)

// replicator is a program that mirrors what Skudonet is configured with from lb1 to lb2.
type replicator struct {
	name    string
	install func(l *lab.Lab) error // before it starts for the first time
	spec    func(l *lab.Lab) lab.DaemonSpec
	log     string // in the machine
	started string // in the log when everything that was there at the start is on the peer, once for each of:
	starts  int
	runs    func(m *mirrored) (int, error) // of rsync, so far
}

const (
	replicatorLog = "/var/log/skdinotify.log"
	// confirmed is in its log when a change is on the peer and the digests of both trees are the same.
	confirmed = "replicated "
)

var inotify = &replicator{
	name: "skd-inotify",
	install: func(l *lab.Lab) error {
		return errors.Join(l.LB1.WriteFile(lab.StatusPath, status.Master+"\n", 0o644), l.LB2.WriteFile(lab.StatusPath, status.Backup+"\n", 0o644))
	},
	spec: func(*lab.Lab) lab.DaemonSpec {
		return lab.DaemonSpec{Name: "skd-inotify", Args: []string{"skd-inotify"}}
	},
	log: replicatorLog, started: "in step with the peer", starts: 1,
	runs: func(m *mirrored) (int, error) {
		r, err := status.ReadReplicator(filepath.Join(m.lab.LB1.Root(status.RunDir), status.ReplicatorFile))
		return int(r.Runs), err
	},
}

// lsyncdConfig is as quick as lsyncd can be: no delay, and a connection that is open. The excludes are those that ours
// has built in.
const lsyncdConfig = `settings { nodaemon = true, maxProcesses = 1 }
local rsync = {
	archive = true,
	rsh = "/usr/bin/ssh -o ControlMaster=auto -o ControlPath=%[2]s -o ControlPersist=yes",
}
sync { default.rsync, source = "%[3]s", target = "root@%[1]s:%[3]s", delay = 0, rsync = rsync, exclude = { "/local/", "if_eth0_conf" } }
sync { default.rsync, source = "%[4]s", target = "root@%[1]s:%[4]s", delay = 0, rsync = rsync }
`

const controlPath = "/run/ssh-open"

var lsyncd = &replicator{
	name: "lsyncd",
	install: func(l *lab.Lab) error {
		config := fmt.Sprintf(lsyncdConfig, l.LB2.Addr(0), controlPath, lab.TreePath, filepath.Dir(lab.RTTablesPath))
		if err := l.LB1.WriteFile("/etc/lsyncd.lua", config, 0o644); err != nil {
			return err
		}
		return openConnection(l)
	},
	spec: func(*lab.Lab) lab.DaemonSpec {
		return lab.DaemonSpec{Name: "lsyncd", Args: []string{"lsyncd", "/etc/lsyncd.lua"}}
	},
	log: "/var/log/lsyncd.log", started: " finished.", starts: 2,
	// Every one of its rsyncs is a session of the peer's sshd.
	runs: func(m *mirrored) (int, error) {
		text, err := m.lab.LB2.ReadFile("/var/log/sshd.log")
		return strings.Count(text, "Starting session: command for root"), err
	},
}

// openConnection opens the connection that ssh shares from then on.
func openConnection(l *lab.Lab) error {
	_, err := l.LB1.Start(lab.DaemonSpec{Name: "ssh", Args: append([]string{"ssh", "-N", "-o", "ControlMaster=yes"}, shared(l)...)})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return lab.Await(ctx, "the shared ssh connection", func() (bool, string) {
		out, err := l.LB1.Run("ssh", append([]string{"-O", "check"}, shared(l)...)...)
		return err == nil, out
	})
}

func shared(l *lab.Lab) []string {
	return []string{"-o", "ControlPath=" + controlPath, "root@" + l.LB2.Addr(0).String()}
}

func (b *bench) replicators() []*replicator {
	if b.lsyncd {
		return []*replicator{inotify, lsyncd}
	}
	return []*replicator{inotify}
}

// mirrored is a pair of nodes with a replicator, in a lab of its own. Changes are made and seen from outside of both,
// by way of their trees.
type mirrored struct {
	*replicator
	lab         *lab.Lab
	daemon      *lab.Daemon
	here, there string // the trees
	open        [2]*os.File
	logged      int // how much of the log is old
	startsSeen  int
}

// newMirrored makes the pair; fill writes what both nodes have from the beginning.
func (b *bench) newMirrored(r *replicator, fill func(top string) error) (*mirrored, error) {
	b.progress("%s: a pair of nodes", r.name)
	l, err := lab.New(lab.Options{BinDir: b.bin})
	if err != nil {
		return nil, err
	}
	m := &mirrored{replicator: r, lab: l}
	if err := m.prepare(fill); err != nil {
		m.close()
		return nil, fmt.Errorf("%s: %w", r.name, err)
	}
	return m, nil
}

func (m *mirrored) prepare(fill func(top string) error) (err error) {
	for i, n := range m.lab.Nodes() {
		if m.open[i], err = os.OpenFile(n.Root(lab.TreePath), unix.O_PATH|unix.O_DIRECTORY, 0); err != nil {
			return err
		}
		if err := fill(fmt.Sprintf("/proc/self/fd/%d", m.open[i].Fd())); err != nil {
			return err
		}
	}
	m.here, m.there = fmt.Sprintf("/proc/self/fd/%d", m.open[0].Fd()), fmt.Sprintf("/proc/self/fd/%d", m.open[1].Fd())
	if err := m.lab.ConnectSSH(); err != nil {
		return err
	}
	if err := m.install(m.lab); err != nil {
		return err
	}
	_, err = m.start()
	return err
}

// start returns when the replicator says that the peer has everything, and how long that took.
func (m *mirrored) start() (took time.Duration, err error) {
	began := time.Now()
	if m.daemon, err = m.lab.LB1.Start(m.spec(m.lab)); err != nil {
		return 0, err
	}
	m.startsSeen += m.starts
	err = soon(m.name+" in step", startLimit, func() bool { return strings.Count(m.logText(0), m.started) >= m.startsSeen })
	if err != nil {
		return 0, fmt.Errorf("%w; its log: %s", err, m.logText(0))
	}
	took = time.Since(began)
	return took, m.quiet()
}

func (m *mirrored) close() {
	for _, f := range m.open {
		f.Close()
	}
	m.lab.Close()
}

const startLimit = 2 * time.Minute

// look is the pause between two looks at what is waited for.
const look = 200 * time.Microsecond

// soon waits until seen, and looks often.
func soon(what string, limit time.Duration, seen func() bool) error {
	pause := unix.NsecToTimespec(int64(look))
	for deadline := time.Now().Add(limit); ; {
		if seen() {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: not within %s", what, limit)
		}
		unix.Nanosleep(&pause, nil)
	}
}

// logText is the log from an offset.
func (m *mirrored) logText(from int) string {
	f, err := os.Open(m.lab.LB1.Root(m.log))
	if err != nil {
		return "" // It has not begun to write.
	}
	defer f.Close()
	f.Seek(int64(from), io.SeekStart)
	text, _ := io.ReadAll(f)
	return string(text)
}

// markLog makes everything in the log old.
func (m *mirrored) markLog() { m.logged = len(m.logText(0)) }

// confirms waits until the log says that a file is the same on both sides. A replicator that does not compare never does.
func (m *mirrored) confirms(file string) error {
	return soon(m.name+" confirms "+file, patience, func() bool {
		text := m.logText(m.logged)
		i := strings.Index(text, confirmed)
		return i >= 0 && strings.Contains(text[i:], file)
	})
}

// same waits until an independent walk finds the same on both nodes.
func (m *mirrored) same(limit time.Duration) error { return m.sameBut(nil, limit) }

func (m *mirrored) sameBut(skip []string, limit time.Duration) error {
	const pause = 2 * time.Millisecond
	for deadline := time.Now().Add(limit); ; time.Sleep(pause) {
		here, err := m.lab.LB1.TreeDigest(skip...)
		if err != nil {
			return err
		}
		there, err := m.lab.LB2.TreeDigest(skip...)
		switch {
		case err != nil:
			return err
		case maps.Equal(here, there):
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("%s: the trees differ after %s", m.name, limit)
		}
	}
}

// quiet waits until both nodes have done nothing for a while.
func (m *mirrored) quiet() error {
	const (
		window = 400 * time.Millisecond
		idle   = 15 * time.Millisecond // of processor time in the window
	)
	for deadline := time.Now().Add(startLimit); time.Now().Before(deadline); {
		before, err := m.processors()
		if err != nil {
			return err
		}
		time.Sleep(window)
		after, err := m.processors()
		if err != nil {
			return err
		}
		if after-before < idle && len(family(m.daemon.PID())) == 1 {
			return nil
		}
	}
	return fmt.Errorf("%s does not come to rest within %s", m.name, startLimit)
}

// resting waits until no rsync runs.
func (m *mirrored) resting() error {
	return soon(m.name+" to be done", patience, func() bool { return len(family(m.daemon.PID())) == 1 })
}

// processors is the processor time of everything that ever ran in the two machines and was waited for there, or runs.
func (m *mirrored) processors() (sum time.Duration, err error) {
	for _, n := range m.lab.Nodes() {
		t, err := machineTime(n)
		if err != nil {
			return 0, err
		}
		sum += t
	}
	return sum, nil
}

// inhabitants lists the processes of a machine by the host's numbers.
func inhabitants(n *lab.Node) ([]int, error) {
	space, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", n.PID()))
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var list []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if of, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid)); err == nil && of == space {
			list = append(list, pid)
		}
	}
	return list, nil
}

// tick is the unit of /proc/PID/stat, on every Linux.
const tick = time.Second / 100

// machineTime adds up the time of each process of a machine, and of its children that it has waited for. The first
// process waits for orphans.
func machineTime(n *lab.Node) (sum time.Duration, err error) {
	pids, err := inhabitants(n)
	if err != nil {
		return 0, err
	}
	for _, pid := range pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		// Behind the name the third field comes; cutime and cstime are the 16th and 17th.
		fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
		for _, field := range fields[16-3 : 18-3] {
			ticks, _ := strconv.Atoi(string(field))
			sum += time.Duration(ticks) * tick
		}
		own, err := processorTime(pid)
		if err == nil {
			sum += own
		}
	}
	return sum, nil
}

// memory is what the replicator's lasting processes have, in MB: the daemon on lb1, and what it has on lb2.
type memory struct{ rss, pss [2]float64 }

func (m *mirrored) memory() (mem memory, err error) {
	for i, n := range m.lab.Nodes() {
		pids, err := inhabitants(n)
		if err != nil {
			return mem, err
		}
		for _, pid := range pids {
			// Sshd has its processes for both, and ssh is what skd-inotify has built in.
			command, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
			if !slices.Contains([]string{m.name, "ssh"}, strings.TrimSpace(string(command))) {
				continue
			}
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
			if err != nil {
				return mem, err
			}
			mem.rss[i] += megabytes(text, "Rss")
			mem.pss[i] += megabytes(text, "Pss")
		}
	}
	return mem, nil
}
