package main

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/status"
	"github.com/skudonet/skudonet-ce-cluster/test/lab"
)

// event is what happens to a master.
type event string

const (
	powerCut event = "power cut"
	stop     event = "graceful stop"
	handOver event = "hand-over"
	crash    event = "daemon crash"
)

var events = []event{handOver, stop, crash, powerCut}

// plannedAim is the longest outage that something planned may cost, in ms.
const plannedAim = 10

// outage is one event as it was seen.
type outage struct {
	length      time.Duration // of the address, by a client; 0 when nothing was lost for 3 ms
	sinceAdvert time.Duration // from the last advert that the backup got to the client's first answer
	moved       bool          // another node is master
	stall       time.Duration // by as much the client may be wrong
}

// outages measures each event on each product, by turns.
func (b *bench) outages(every time.Duration) error {
	products := b.products(every)
	pairs := make([]*pair, len(products))
	defer func() {
		for _, p := range pairs {
			if p != nil {
				p.lab.Close()
			}
		}
	}()
	lengths := map[event][]samples{}
	sinceAdvert := make([]samples, len(products))
	for _, e := range events {
		lengths[e] = make([]samples, len(products))
	}
	var stall time.Duration
	var failures []error
	moved := 0
	for round := range b.repeats {
		for i, p := range products {
			for _, e := range events {
				if e == handOver && p.handOver == 0 {
					continue
				}
				b.progress("%s every %s: round %d, %s", p.name, every, round+1, e)
				var o outage
				var err error
				if pairs[i] == nil {
					pairs[i], err = b.newPair(p, every)
				}
				if err == nil {
					o, err = pairs[i].suffer(e)
				}
				if err != nil {
					failures = append(failures, fmt.Errorf("%s, %s: %w", p.name, e, err))
					if pairs[i] != nil {
						pairs[i].lab.Close()
						pairs[i] = nil
					}
					continue
				}
				lengths[e][i] = append(lengths[e][i], o.length.Seconds()*1e3)
				stall = max(stall, o.stall)
				switch {
				case e == powerCut:
					sinceAdvert[i] = append(sinceAdvert[i], o.sinceAdvert.Seconds()*1e3)
				case e == crash && p == skudonet && o.moved:
					moved++
				}
			}
		}
	}

	t := compare(fmt.Sprintf("outage of the address in ms, adverts every %g s", every.Seconds()), products)
	for _, e := range []event{powerCut, stop, handOver, crash} {
		t.row(string(e), lengths[e])
		if e == powerCut {
			t.row("  since last advert", sinceAdvert)
		}
	}
	bounds := ""
	for _, p := range products {
		bounds += fmt.Sprintf(" %s %s,", p.name, number(p.down(every).Seconds()*1e3))
	}
	t.note("power cut right after an advert; the down interval in theory:%s ms", bounds[:len(bounds)-1])
	t.note("“0”: no answer was lost for 3 ms; the client itself was held up for %s ms at most", number(stall.Seconds()*1e3))
	for _, err := range failures {
		t.note("failed: %v", err)
	}
	t.write(b.out)
	b.outageAims(every, products, lengths, sinceAdvert, moved)
	return nil
}

func (b *bench) outageAims(every time.Duration, products []*product, lengths map[event][]samples, sinceAdvert []samples, moved int) {
	when := fmt.Sprintf("adverts every %g s", every.Seconds())
	if i := slices.Index(products, keepalived); i > 0 && len(sinceAdvert[0]) > 0 && len(sinceAdvert[i]) > 0 {
		ours, theirs := sinceAdvert[0].median(), sinceAdvert[i].median()
		b.aim(ours <= theirs+resolution, "%s: power cut, since the last advert, at keepalived's figure (and %g ms) or under: %s and %s ms",
			when, resolution, number(ours), number(theirs))
	}
	for _, e := range []event{stop, handOver} {
		if all := lengths[e][0]; len(all) > 0 {
			b.aim(all.median() < plannedAim, "%s: %s under %d ms: %s ms", when, e, plannedAim, number(all.median()))
		}
	}
	if all := lengths[crash][0]; len(all) > 0 {
		b.aim(all.median() == 0, "%s: daemon crash without outage: %s ms, and %d of %d went on as master", when, number(all.median()),
			len(all)-moved, len(all))
	}
}

// resolution of the client's clock, in ms.
var resolution = lab.ProbeInterval.Seconds() * 1e3

// suffer lets an event happen to the pair, watches what a client sees of it, and makes the pair whole again.
func (p *pair) suffer(e event) (o outage, err error) {
	master, backup, err := p.settle()
	if err != nil {
		return o, err
	}
	capture, err := p.lab.Capture(backup, lab.Delivered, lab.VRRP)
	if err != nil {
		return o, err
	}
	defer capture.Stop()
	probe, err := p.lab.Client.ProbeAddress(lab.ClusterIP)
	if err != nil {
		return o, err
	}
	defer probe.Stop()
	if err := answer(probe, time.Now()); err != nil {
		return o, err
	}
	// Always at the same point between two adverts, or luck would decide who is better.
	if _, err := p.nextAdvert(master, 1); err != nil {
		return o, err
	}
	began := time.Now()
	mend, err := p.happen(e, master)
	if err != nil {
		return o, err
	}
	switch e {
	case crash:
		// Whatever comes of it has come by then.
		time.Sleep(time.Until(began.Add(p.down(p.every)*3/2 + time.Second)))
	case powerCut:
		err = answer(probe, time.Now())
	default:
		err = p.await(backup)
	}
	if err == nil {
		time.Sleep(max(2*p.every, 300*time.Millisecond))
		err = answer(probe, time.Now())
	}
	if err != nil {
		return o, err
	}
	report := probe.Stop()
	gap := report.LongestSince(began)
	o = outage{length: gap.Length(), stall: report.Stall, moved: p.state(master, p.daemons[master]) != status.Master}
	adverts, err := capture.Stop()
	for _, a := range adverts {
		if ip, ok := a.IPv4(); ok && ip.Source == master.Addr(0) {
			o.sinceAdvert = gap.To.Sub(a.Time)
		}
	}
	return o, errors.Join(err, report.Err, mend())
}

// answer waits until a client was answered after a time.
func answer(probe *lab.Probe, since time.Time) error {
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if probe.AnsweredAfter(since) {
			return nil
		}
	}
	return fmt.Errorf("the address did not answer for %s", patience)
}

// happen lets it happen, and returns what is to be done about it afterwards.
func (p *pair) happen(e event, n *lab.Node) (mend func() error, err error) {
	d := p.daemons[n]
	none := func() error { return nil }
	switch e {
	case powerCut:
		return func() error { return errors.Join(n.PowerOn(), p.start(n)) }, n.PowerOff()
	case stop:
		var stopping sync.WaitGroup
		var failed error
		stopping.Go(func() { failed = d.Stop() })
		return func() error {
			stopping.Wait()
			return errors.Join(failed, p.start(n))
		}, nil
	case handOver:
		return none, d.Signal(p.handOver)
	}
	pid := p.worker(d)
	if pid <= 0 {
		return none, fmt.Errorf("no process of %s to kill on %s", p.name, n.Name)
	}
	return none, unix.Kill(pid, unix.SIGKILL)
}
