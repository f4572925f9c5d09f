package main

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/test/lab"
)

// What a machine with two processors may add while it is busy with other things. A quiet one adds a millisecond or two.
const (
	late  = 400 * time.Millisecond // to a down interval, and to a takeover during which the old master still answers
	short = 100 * time.Millisecond // to an outage of nothing
)

var story = []struct {
	title string
	play  func(*demo, context.Context) error
}{
	{"Election", (*demo).election},
	{"Changes of the configuration", (*demo).replication},
	{"A change while the backup is off", (*demo).away},
	{"Power cut of the master", (*demo).powerCut},
	{"The old master comes back", (*demo).comeBack},
	{"Crash of the master's daemon", (*demo).crash},
	{"Hand-over", (*demo).handOver},
	{"Graceful stop", (*demo).stop},
}

// election gives lb1 a head start: equal nodes go by who has waited longer.
func (d *demo) election(ctx context.Context) error {
	began := d.mark()
	if err := d.start(d.lb1, "skd-vrrpd starts"); err != nil {
		return err
	}
	listens, err := d.logs(ctx, d.lb1, began, "backup on ")
	if err != nil {
		return err
	}
	if err := d.start(d.lb2, "skd-vrrpd starts, a moment later"); err != nil {
		return err
	}
	if _, err := d.logs(ctx, d.lb2, began, "backup on "); err != nil {
		return err
	}
	d.flush()
	promoted, err := d.logs(ctx, d.lb1, began, "master on ")
	if err != nil {
		return err
	}
	advert, err := d.advertised(ctx, d.lb1, began)
	if err != nil {
		return err
	}
	if err := d.answering(ctx, promoted); err != nil {
		return err
	}
	report := d.service.Report()
	d.event(report.Turns[0].From, "client", fmt.Sprintf("%s answers for the first time: it is %s", lab.ClusterIP, report.Turns[0].Name))
	theory, took := d.down+d.tie, advert.Sub(listens)
	d.note("theory", fmt.Sprintf("%s (down interval) + %s (lower address) = %s; it took %s",
		ms(d.down), ms(d.tie), ms(theory), ms(took)))
	d.check("election", fmt.Sprintf("lb1 in %s (+ %d)", ms(theory), late.Milliseconds()), "lb1 in "+ms(took),
		took > theory-late && took <= theory+late)
	if err := d.prompts(ctx, state{d.lb1, "master"}, state{d.lb2, "backup"}); err != nil {
		return err
	}
	_, err = d.logs(ctx, d.lb1, promoted, "start hook ended")
	return err
}

// powerCut comes right behind an advertisement, when the backup has longest to wait. What the old master then has on
// its disk, the new one should have too, with a change of the last moments.
func (d *demo) powerCut(ctx context.Context) error {
	const farm, text = "shop_l7.cfg", "Address 192.168.77.100\nPort 443\n"
	changed, err := d.write(d.lb1, " is new: a farm", farm, text)
	if err != nil {
		return err
	}
	arrived, err := d.mirror.arrival(ctx, patience, farm, text)
	if err != nil {
		return err
	}
	d.event(arrived, d.lb2.Name, "has it, "+ms(arrived.Sub(changed))+" later")
	last, err := d.advertised(ctx, d.lb1, time.Now())
	if err != nil {
		return err
	}
	cut := d.mark()
	if err := d.lb1.PowerOff(); err != nil {
		return err
	}
	delete(d.shells, d.lb1)
	d.event(cut, d.lb1.Name, fmt.Sprintf("power off, %s after an advertisement: the worst moment", ms(cut.Sub(last))))
	d.flush()
	promoted, err := d.logs(ctx, d.lb2, cut, "master on ")
	if err != nil {
		return err
	}
	if err := d.answering(ctx, promoted); err != nil {
		return err
	}
	address, service := d.address.Report().LongestSince(cut), d.service.Report().LongestSince(cut)
	d.event(address.To, "client", fmt.Sprintf("is answered again: address silent for %s, TCP service for %s", ms(address.Length()), ms(service.Length())))
	reaction := func(g lab.Gap) time.Duration { return g.To.Sub(last.Add(d.down)) }
	d.note("theory", fmt.Sprintf("at most %s (down interval) + %s (reaction, as measured) = %s",
		ms(d.down), ms(reaction(address)), ms(d.down+reaction(address))))
	for _, probed := range []struct {
		what string
		lab.Gap
	}{{"outage, address", address}, {"outage, TCP service", service}} {
		d.check(probed.what, fmt.Sprintf("%s (+ %d)", ms(d.down), late.Milliseconds()),
			fmt.Sprintf("%s, reaction %s", ms(probed.Length()), ms(reaction(probed.Gap))),
			probed.Length() > d.down-late && probed.Length() <= d.down+late && reaction(probed.Gap) <= late)
	}
	if err := d.prompts(ctx, state{d.lb2, "master"}); err != nil {
		return err
	}
	if _, err = d.logs(ctx, d.lb2, promoted, "start hook ended"); err != nil {
		return err
	}
	d.checkSame("old master's disk", d.lb1, d.lb2)
	if err := d.mirror.Stop(); err != nil {
		return err
	}
	d.checkWhole()
	return nil
}

// comeBack watches the old master for longer than the time after which a deaf one would take over.
func (d *demo) comeBack(ctx context.Context) error {
	on := d.mark()
	d.event(on, d.lb1.Name, "power on")
	if err := d.lb1.PowerOn(); err != nil {
		return err
	}
	if _, err := d.lb1.StartSSH(); err != nil {
		return err
	}
	if err := d.start(d.lb1, "sshd and skd-vrrpd start"); err != nil {
		return err
	}
	listens, err := d.logs(ctx, d.lb1, on, "backup on ")
	if err != nil {
		return err
	}
	if err := d.prompts(ctx, state{d.lb1, "backup"}); err != nil {
		return err
	}
	d.flush()
	const margin = 300 * time.Millisecond
	if err := pause(ctx, listens.Add(d.down+d.tie+margin)); err != nil {
		return err
	}
	one, two := d.lb1.Status(), d.lb2.Status()
	d.event(time.Now(), d.lb1.Name, fmt.Sprintf("is still %s, more than a down interval later; lb2 goes on as %s", one, two))
	if err := d.replicatorLogs(ctx, d.lb2, on, "in step with the peer"); err != nil {
		return err
	}
	d.checkSame("both trees", d.lb2, d.lb1)
	d.sayMissed(on)
	d.check("roles", "lb1 backup, lb2 master", fmt.Sprintf("lb1 %s, lb2 %s", one, two), one == "backup" && two == "master")
	d.checkMissed(on)
	return nil
}

// crash kills the master's daemon and lets two advertisements of the next process pass.
func (d *demo) crash(ctx context.Context) error {
	lives, known := d.daemons[d.lb2].Starts(), len(parseLog(d.daemons[d.lb1].Log()))
	killed := d.mark()
	if err := d.daemons[d.lb2].Signal(unix.SIGKILL); err != nil {
		return err
	}
	d.event(killed, d.lb2.Name, "kill -KILL: skd-vrrpd dies without a word; its supervisor starts it again")
	d.flush()
	resumed, err := d.logs(ctx, d.lb2, killed, "master on ")
	if err != nil {
		return err
	}
	if err := d.twoAdverts(ctx, d.lb2, resumed); err != nil {
		return err
	}
	peer, lines := d.lb1.Status(), len(parseLog(d.daemons[d.lb1].Log()))-known
	d.event(time.Now(), d.lb1.Name, fmt.Sprintf("is %s, with %d new lines in its log", peer, lines))
	d.sayMissed(killed)
	d.check("daemon", "goes on as master", fmt.Sprintf("%s again after %s", d.lb2.Status(), ms(resumed.Sub(killed))),
		d.lb2.Status() == "master" && d.daemons[d.lb2].Starts() == lives+1)
	d.check("the peer", "notices nothing", fmt.Sprintf("%s, %d new lines in its log", peer, lines), peer == "backup" && lines == 0)
	d.checkMissed(killed)
	return nil
}

func (d *demo) handOver(ctx context.Context) error {
	asked := d.mark()
	d.event(asked, d.lb2.Name, "kill -USR2: hand over to the peer")
	if err := d.daemons[d.lb2].Signal(unix.SIGUSR2); err != nil {
		return err
	}
	if _, err := d.logs(ctx, d.lb1, asked, "master on "); err != nil {
		return err
	}
	if _, err := d.logs(ctx, d.lb2, asked, "backup on "); err != nil {
		return err
	}
	if err := d.prompts(ctx, state{d.lb1, "master"}, state{d.lb2, "backup"}); err != nil {
		return err
	}
	if err := d.settle(ctx, asked, d.lb1, d.lb2); err != nil {
		return err
	}
	return d.replicatorOnly(d.lb1, d.lb2)
}

func (d *demo) stop(ctx context.Context) error {
	asked := d.mark()
	d.event(asked, d.lb1.Name, "kill -TERM: stop the service")
	if err := d.daemons[d.lb1].Stop(); err != nil {
		return err
	}
	if _, err := d.logs(ctx, d.lb1, asked, "stopped"); err != nil {
		return err
	}
	if _, err := d.logs(ctx, d.lb2, asked, "master on "); err != nil {
		return err
	}
	if err := d.prompts(ctx, state{d.lb1, ""}, state{d.lb2, "master"}); err != nil {
		return err
	}
	return d.settle(ctx, asked, d.lb2, d.lb1)
}

// settle ends a planned change: when the hooks are done and the new master advertises, it says what the client has missed.
func (d *demo) settle(ctx context.Context, asked time.Time, master, before *lab.Node) error {
	if _, err := d.logs(ctx, before, asked, "stop hook ended"); err != nil {
		return err
	}
	hooked, err := d.logs(ctx, master, asked, "start hook ended")
	if err != nil {
		return err
	}
	advert, err := d.advertised(ctx, master, asked)
	if err != nil {
		return err
	}
	d.flush()
	if err := d.twoAdverts(ctx, master, hooked); err != nil {
		return err
	}
	d.sayMissed(asked)
	d.check("takeover", fmt.Sprintf("%s at once (+ %d)", master.Name, late.Milliseconds()),
		fmt.Sprintf("%s, %s after the signal", master.Name, ms(advert.Sub(asked))), advert.Sub(asked) <= late)
	d.checkMissed(asked)
	return nil
}

// missed is for how long the client was without an answer since t. A gap does not count for more than what was asked in
// it: the probe, too, may have had to wait for a busy machine.
func (d *demo) missed(t time.Time) (address, service time.Duration) {
	length := func(p *lab.Probe) time.Duration {
		g := p.Report().LongestSince(t)
		if g.Lost < 2 {
			return 0 // One late answer is none that is missing.
		}
		return min(g.Length(), time.Duration(g.Lost+1)*lab.ProbeInterval)
	}
	return length(d.address), length(d.service)
}

func (d *demo) sayMissed(t time.Time) {
	address, service := d.missed(t)
	d.event(time.Now(), "client", fmt.Sprintf("address silent for %s, TCP service for %s", ms(address), ms(service)))
}

// checkMissed holds what the client has missed since t against nothing.
func (d *demo) checkMissed(t time.Time) {
	address, service := d.missed(t)
	d.check("outage", fmt.Sprintf("0 ms (+ %d)", short.Milliseconds()), fmt.Sprintf("address %s, TCP service %s", ms(address), ms(service)),
		address <= short && service <= short)
}
