package main

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/conf"
	"github.com/skudonet/skudonet-ce-cluster/lib/election"
	"github.com/skudonet/skudonet-ce-cluster/lib/vrrp"
	"github.com/skudonet/skudonet-ce-cluster/test/lab"
)

// patience is how long anything may take that is not the down interval.
const patience = 15 * time.Second

// bashrc is root's on both nodes. The search path is for those who enter a kept lab from a shell that has a shorter one.
const bashrc = `PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
PS1='root@\h> '
. <(skd-prompt bash)
`

// demo is one run.
type demo struct {
	*screen
	lab      *lab.Lab
	lb1, lb2 *lab.Node
	down     time.Duration // down interval of either node, in theory
	tie      time.Duration // by how much lb1 waits longer at a start
	daemons  map[*lab.Node]*lab.Daemon
	shells   map[*lab.Node]*lab.Terminal
	address  *lab.Probe
	service  *lab.Probe
	adverts  *lab.Capture
	mirror   watched // the tree of lb2, while that is backup
	step     int
	marks    []mark
	lines    []line
}

func prepare(l *lab.Lab, s *screen) (*demo, error) {
	d := &demo{screen: s, lab: l, lb1: l.LB1, lb2: l.LB2,
		daemons: map[*lab.Node]*lab.Daemon{}, shells: map[*lab.Node]*lab.Terminal{}}
	text, err := d.lb1.ReadFile(lab.ConfigPath)
	if err != nil {
		return nil, err
	}
	c, _, err := conf.Parse(lab.ConfigPath, []byte(text))
	if err != nil {
		return nil, err
	}
	d.down = election.DownInterval(c.Priority, c.AdvertInterval, c.DeadRatio)
	d.tie = c.AdvertInterval / 512
	s.picture(l, c, d.down)
	for _, n := range l.Nodes() {
		if err := n.WriteFile("/root/.bashrc", bashrc, 0o644); err != nil {
			return nil, err
		}
	}
	if err := l.ConnectSSH(); err != nil {
		return nil, err
	}
	if d.adverts, err = l.Capture(nil, lab.Sent, lab.VRRP); err != nil {
		return nil, err
	}
	if d.address, err = l.Client.ProbeAddress(lab.ClusterIP); err != nil {
		return nil, err
	}
	d.service, err = l.Client.ProbeService(netip.AddrPortFrom(lab.ClusterIP, lab.ServicePort))
	return d, err
}

// play goes through the story and tells whether everything was as expected.
func (d *demo) play(ctx context.Context) bool {
	complete := true
	for i, step := range story {
		d.step = i + 1
		d.heading(fmt.Sprintf("%d  %s", d.step, step.title))
		err := step.play(d, ctx)
		d.flush()
		if ctx.Err() == context.Canceled {
			return false
		}
		if err != nil {
			complete = false
			d.event(time.Now(), "demo", err.Error())
			d.flush()
			for _, n := range d.lab.Nodes() {
				d.tail(n)
			}
			d.flush()
			d.check("the step", "to be completed", "see the timeline", false)
			break
		}
	}
	report := d.service.Stop()
	d.whoAnswered(report, d.marks)
	if complete {
		const expected = "lb1, lb2, lb1, lb2"
		turns := strings.Join(inTurn(report.Turns), ", ")
		d.step = 0
		d.check("who answered", expected, turns, turns == expected)
	}
	return d.summary(d.lines)
}

// mark notes that now something is done to the cluster.
func (d *demo) mark() time.Time {
	now := time.Now()
	d.marks = append(d.marks, mark{now, fmt.Sprint(d.step)})
	return now
}

func (d *demo) check(what, expected, seen string, ok bool) {
	d.lines = append(d.lines, line{d.step, what, expected, seen, ok})
}

// await waits until look says true, for a limit beyond which it does not happen.
func await(ctx context.Context, limit time.Duration, what string, look func() (bool, string)) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return lab.Await(ctx, what, look)
}

func pause(ctx context.Context, until time.Time) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Until(until)):
		return nil
	}
}

// start starts the daemon, supervised, as its unit would.
func (d *demo) start(n *lab.Node, how string) error {
	d.event(time.Now(), n.Name, how)
	daemon, err := n.Start(lab.DaemonSpec{Args: []string{"skd-vrrpd"}, Restart: true})
	if err == nil {
		d.daemons[n] = daemon
	}
	return err
}

// logs waits for a line of the daemon's log that begins in this way, shows it, and gives its time.
func (d *demo) logs(ctx context.Context, n *lab.Node, since time.Time, beginning string) (time.Time, error) {
	var found entry
	err := await(ctx, patience, fmt.Sprintf("%s to log %q", n.Name, beginning), func() (bool, string) {
		entries := parseLog(d.daemons[n].Log())
		for _, e := range entries {
			if !e.at.Before(since) && strings.HasPrefix(e.text, beginning) {
				found = e
				return true, ""
			}
		}
		if len(entries) == 0 {
			return false, "nothing"
		}
		return false, entries[len(entries)-1].text
	})
	if err == nil {
		d.event(found.at, n.Name, "log: "+found.text)
	}
	return found.at, err
}

// tail shows the end of a node's logs, for a run that went wrong.
func (d *demo) tail(n *lab.Node) {
	const few = 8
	if d.daemons[n] == nil {
		return
	}
	entries := parseLog(d.daemons[n].Log())
	for _, e := range entries[max(0, len(entries)-few):] {
		d.event(e.at, n.Name, "log: "+e.text)
	}
	entries = d.replicated(n)
	for _, e := range entries[max(0, len(entries)-few):] {
		d.event(e.at, n.Name, "log of the replicator: "+e.text)
	}
}

// prompt presses Enter in an interactive bash of the node and gives what bash then shows.
func (d *demo) prompt(n *lab.Node) (string, error) {
	const end = "> "
	shell := d.shells[n]
	if shell == nil {
		var err error
		if shell, err = n.Terminal("bash"); err != nil {
			return "", err
		}
		d.shells[n] = shell
		if _, err := shell.Expect(patience, end); err != nil {
			return "", fmt.Errorf("%s: %w", n.Name, err)
		}
	}
	if err := shell.Type(""); err != nil {
		return "", err
	}
	shown, err := shell.Expect(patience, end)
	if err != nil {
		return "", fmt.Errorf("%s: %w", n.Name, err)
	}
	shown = shown[strings.LastIndexAny(shown, "\r\n")+1:] + end
	d.event(time.Now(), n.Name, shown)
	return shown, nil
}

// state is what the prompt of a node should say.
type state struct {
	node *lab.Node
	word string // master, backup, or nothing for a service that is stopped
}

// prompts checks what both shells, or one, show.
func (d *demo) prompts(ctx context.Context, states ...state) error {
	ok := true
	var expected, seen []string
	for _, s := range states {
		err := await(ctx, patience, "the status file", func() (bool, string) {
			return s.node.Status() == s.word, fmt.Sprintf("%q on %s", s.node.Status(), s.node.Name)
		})
		if err != nil {
			return err
		}
		shown, err := d.prompt(s.node)
		if err != nil {
			return err
		}
		ok = ok && shown == fmt.Sprintf("[%s] root@%s> ", s.word, s.node.Name)
		word := s.word
		if word == "" {
			word = "stopped"
		}
		expected = append(expected, s.node.Name+" "+word)
		seen = append(seen, strings.TrimSpace(shown))
	}
	what := "prompt"
	if len(states) > 1 {
		what = "prompts"
	}
	d.check(what, strings.Join(expected, ", "), strings.Join(seen, "  "), ok)
	return nil
}

// answering waits until the client has an answer to both probes that is younger than t.
func (d *demo) answering(ctx context.Context, t time.Time) error {
	return await(ctx, patience, "the client to be answered", func() (bool, string) {
		return d.address.AnsweredAfter(t) && d.service.AnsweredAfter(t),
			fmt.Sprintf("last answer %v ago", time.Since(d.address.Report().LastAnswer))
	})
}

// advertised waits for the first advertisement of a node, with a priority above 0, at or after t.
func (d *demo) advertised(ctx context.Context, n *lab.Node, t time.Time) (at time.Time, err error) {
	err = await(ctx, patience, "an advertisement of "+n.Name, func() (bool, string) {
		for _, p := range d.adverts.Packets() {
			if p.Node == n.Name && !p.Time.Before(t) && priority(p) > 0 {
				at = p.Time
				return true, ""
			}
		}
		return false, "none"
	})
	return at, err
}

// twoAdverts lets two regular advertisements of a node pass.
func (d *demo) twoAdverts(ctx context.Context, n *lab.Node, t time.Time) (err error) {
	for range 2 {
		if t, err = d.advertised(ctx, n, t.Add(time.Millisecond)); err != nil {
			return err
		}
	}
	return nil
}

// priority is that of an advertisement, and 0 of what is none.
func priority(p lab.Packet) uint8 {
	var a vrrp.Advertisement
	packet, ok := p.IPv4()
	if !ok {
		return 0
	}
	if _, _, err := a.Unmarshal(packet.Payload, packet.Source, packet.Destination); err != nil {
		return 0
	}
	return a.Priority
}

// leave brings lb1 into service again and says how to get at everything.
func (d *demo) leave(ctx context.Context) {
	if d.lb1.PID() != 0 && d.lb1.Status() == "" {
		if daemon, err := d.lb1.Start(lab.DaemonSpec{Args: []string{"skd-vrrpd"}}); err == nil {
			d.daemons[d.lb1] = daemon
			await(ctx, patience, "lb1 to be backup", func() (bool, string) { return d.lb1.Status() != "", "" })
		}
	}
	d.instructions(d.lab)
}
