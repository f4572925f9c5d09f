package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
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
	retire   event = "retired"
)

var events = []event{handOver, stop, retire, crash, powerCut}

// plannedAim is the longest outage that something planned may cost, in ms.
const plannedAim = 10

// outage is one event as it was seen.
type outage struct {
	length      time.Duration // of the address, by a client; 0 when nothing was lost for 3 ms
	sinceAdvert time.Duration // from the last advert that the backup got to the client's first answer
	moved       bool          // another node is master
	stall       time.Duration // by as much the client may be wrong
}

// passage is the way of the address: one product is master and leaves, the other one takes over.
type passage struct {
	from, to    *product
	lengths     map[event]samples
	sinceAdvert samples
	moved       int // crashes after which another node was master
}

func (p *passage) String() string {
	if p.from == p.to {
		return p.from.name
	}
	return p.from.name + " → " + p.to.name
}

// passages are one for two of the same, and one in each direction for others.
func (m match) passages() []*passage {
	list := []*passage{{from: m[0], to: m[1], lengths: map[event]samples{}}}
	if m[0] != m[1] {
		list = append(list, &passage{from: m[1], to: m[0], lengths: map[event]samples{}})
	}
	return list
}

// can tells whether there is such a thing for a product; any may stop, crash or lose its power.
func (p *product) can(e event) bool {
	switch e {
	case handOver:
		return p.handOver != 0
	case retire:
		return p.retires
	}
	return true
}

// outages measures each event on each pair, by turns.
func (b *bench) outages(every time.Duration) error {
	matches := b.matches(every)
	pairs, passages := make([]*pair, len(matches)), make([][]*passage, len(matches))
	defer func() {
		for _, p := range pairs {
			if p != nil {
				p.lab.Close()
			}
		}
	}()
	for i, m := range matches {
		passages[i] = m.passages()
	}
	once := func(i int, way *passage, e event) (o outage, err error) {
		if pairs[i] == nil {
			if pairs[i], err = b.newPair(matches[i], every); err != nil {
				return o, err
			}
		}
		if o, err = pairs[i].suffer(e, way); err != nil {
			pairs[i].lab.Close()
			pairs[i] = nil
		}
		return o, err
	}
	var stall time.Duration
	var failures []error
	for round := range b.repeats {
		for i := range matches {
			for _, e := range events {
				for _, way := range passages[i] {
					if !way.from.can(e) {
						continue
					}
					b.progress("%s every %s: round %d, %s", way, every, round+1, e)
					o, err := once(i, way, e)
					if err != nil {
						failures = append(failures, fmt.Errorf("%s, %s: %w", way, e, err))
						continue
					}
					stall = max(stall, o.stall)
					way.add(e, o)
				}
			}
		}
	}
	all := slices.Concat(passages...)
	b.writePowerCuts(every, all)
	b.writeDepartures(every, all, stall, failures)
	b.outageAims(every, all)
	return nil
}

func (b *bench) writePowerCuts(every time.Duration, passages []*passage) {
	t := table{title: fmt.Sprintf("outage of the address in ms by a power cut, adverts every %g s", every.Seconds()),
		headings: []string{string(powerCut), "since last advert", "in theory"}}
	for _, p := range passages {
		t.add(p.String(), p.lengths[powerCut].String(), p.sinceAdvert.String(), p.theory(every))
	}
	t.note("a → b: a is master and goes, b takes over. The power is cut right after an advert;")
	late := ""
	if slices.ContainsFunc(passages, func(p *passage) bool { return p.to.late > 0 }) {
		late = ", which ucarp notices late"
	}
	t.note("in theory: the down interval of who takes over%s.", late)
	t.write(b.out)
	fmt.Fprintln(b.out)
}

func (b *bench) writeDepartures(every time.Duration, passages []*passage, stall time.Duration, failures []error) {
	t := table{title: fmt.Sprintf("outage of the address in ms by a departure, adverts every %g s", every.Seconds())}
	departures := []event{stop, handOver, retire, crash}
	if slices.ContainsFunc(passages, func(p *passage) bool { return p.from.retires }) {
		t.note("retired: ended by skd-hooks retire, as an upgrade does, which tells the peer. By its stop and its hand-over")
		t.note("ucarp tells it nothing.")
	} else {
		departures = slices.DeleteFunc(departures, func(e event) bool { return e == retire })
	}
	for _, e := range departures {
		t.headings = append(t.headings, string(e))
	}
	for _, p := range passages {
		cells := []string{p.String()}
		for _, e := range departures {
			cells = append(cells, p.lengths[e].String())
		}
		t.add(cells...)
	}
	t.note("A crashed daemon is started again at once, and may be the next master itself. “–”: it cannot do that.")
	t.note("“0”: no answer was lost for 3 ms; the client itself was held up for %s ms at most", number(stall.Seconds()*1e3))
	for _, err := range failures {
		t.note("failed: %v", err)
	}
	t.write(b.out)
}

// add adds what was seen of an event.
func (p *passage) add(e event, o outage) {
	p.lengths[e] = append(p.lengths[e], o.length.Seconds()*1e3)
	switch {
	case e == powerCut:
		p.sinceAdvert = append(p.sinceAdvert, o.sinceAdvert.Seconds()*1e3)
	case e == crash && o.moved:
		p.moved++
	}
}

// theory is when who takes over does, after the last advert, in ms.
func (p *passage) theory(every time.Duration) string {
	down := p.to.down(every)
	text := number(down.Seconds() * 1e3)
	if p.to.late > 0 {
		text += "–" + number((down+p.to.late).Seconds()*1e3)
	}
	return text
}

func (b *bench) outageAims(every time.Duration, passages []*passage) {
	when := fmt.Sprintf("adverts every %g s", every.Seconds())
	of := func(product *product) *passage {
		i := slices.IndexFunc(passages, func(p *passage) bool { return p.from == product && p.to == product })
		if i < 0 {
			return &passage{}
		}
		return passages[i]
	}
	if ours, theirs := of(skudonet).sinceAdvert, of(keepalived).sinceAdvert; len(ours) > 0 && len(theirs) > 0 {
		b.aim(ours.median() <= theirs.median()+resolution, "%s: power cut, since the last advert, at keepalived's figure (and %g ms) or under: %s and %s ms",
			when, resolution, number(ours.median()), number(theirs.median()))
	}
	for _, p := range passages {
		if p.from.program != skudonet.program {
			continue
		}
		for _, e := range []event{stop, handOver} {
			if all := p.lengths[e]; len(all) > 0 {
				b.aim(all.median() < plannedAim, "%s, %s: %s under %d ms: %s ms", when, p, e, plannedAim, number(all.median()))
			}
		}
		if all := p.lengths[crash]; len(all) > 0 {
			b.aim(all.median() == 0, "%s, %s: daemon crash without outage: %s ms, and %d of %d went on as master", when, p, number(all.median()),
				len(all)-p.moved, len(all))
		}
	}
	ordinary := of(ucarp).lengths[powerCut]
	for _, p := range passages {
		if all := p.lengths[retire]; p.to == upgraded && len(all) > 0 && len(ordinary) > 0 {
			b.aim(all.median() <= ordinary.median(), "%s, %s: retired for no longer than a power cut of a pair of ucarp: %s and %s ms", when, p,
				number(all.median()), number(ordinary.median()))
		}
	}
}

// resolution of the client's clock, in ms.
var resolution = lab.ProbeInterval.Seconds() * 1e3

// suffer lets an event happen to the pair, watches what a client sees of it, and makes the pair whole again.
func (p *pair) suffer(e event, way *passage) (o outage, err error) {
	master, backup, err := p.lead(way.from)
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
		time.Sleep(time.Until(began.Add(way.to.down(p.every)*3/2 + way.to.late + time.Second)))
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
	o = outage{length: gap.Length(), stall: report.Stall, moved: p.state(master) != status.Master}
	adverts, err := capture.Stop()
	for _, a := range adverts {
		if p.isAdvert(a, master) {
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
	case stop, retire:
		var stopping sync.WaitGroup
		var failed error
		end := d.Stop
		if e == retire {
			end = func() error { return p.retire(n) }
		}
		stopping.Go(func() { failed = end() })
		return func() error {
			stopping.Wait()
			return errors.Join(failed, p.start(n))
		}, nil
	case handOver:
		return none, d.Signal(p.on(n).handOver)
	}
	pid := p.on(n).worker(d)
	if pid <= 0 {
		return none, fmt.Errorf("no process of %s to kill on %s", p.on(n).program, n.Name)
	}
	return none, unix.Kill(pid, unix.SIGKILL)
}

// retire ends a node's program as the start of the upgraded service does.
func (p *pair) retire(n *lab.Node) error {
	err := n.WriteFile(retired, "", 0o644)
	if err == nil {
		var said string
		// What follows these words is what did not go as it should.
		if said, err = n.Run("skd-hooks", "retire"); err == nil && !strings.HasSuffix(said, "left running by version 2.0\n") {
			err = fmt.Errorf("skd-hooks retire on %s says %q", n.Name, said)
		}
	}
	return errors.Join(err, p.daemons[n].Stop(), os.Remove(n.Root(retired)))
}
