package main

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/test/lab"
)

const (
	// takeoverInterval is short, so that every delay would hit an advert.
	takeoverInterval = 100 * time.Millisecond
	// announcing is how long the announcements that belong to a promotion go on: to 5 s after it, here and at keepalived.
	announcing = 5500 * time.Millisecond

	manyAim = 4000
	tookAim = 200 // ms
	lateAim = 10  // ms, the protocol's unit of time
)

// takeover is one promotion of a backup with many addresses.
type takeover struct {
	announced time.Duration // from the first advert of the new master to the last first announcement of an address
	since     time.Duration // the same from the last advert of the old one
	late      time.Duration // worst lateness of an advert of the new master
}

// takeovers measures promotions by power cut, with more and more addresses.
func (b *bench) takeovers() error {
	counts := []int{1, 100, 1000, manyAim}
	if b.quick {
		counts = counts[2:3]
	}
	products := b.products(takeoverInterval)
	t := compare(fmt.Sprintf("takeover of many addresses in ms, by power cut, adverts every %g s", takeoverInterval.Seconds()), products)
	for _, count := range counts {
		announced, since, late := make([]samples, len(products)), make([]samples, len(products)), make([]samples, len(products))
		for i, p := range products {
			err := b.takeoversOf(p, count, func(seen takeover) {
				announced[i] = append(announced[i], seen.announced.Seconds()*1e3)
				since[i] = append(since[i], seen.since.Seconds()*1e3)
				late[i] = append(late[i], seen.late.Seconds()*1e3)
			})
			if err != nil {
				t.note("failed: %d addresses, %s: %v", count, p.name, err)
			}
		}
		t.row(fmt.Sprintf("%d announced", count), announced)
		t.row("  since last advert", since)
		t.row("  latest advert late by", late)
		if count == manyAim && len(late[0]) > 0 {
			b.aim(announced[0].median() <= tookAim, "%d addresses announced within %d ms: %s ms", count, tookAim, number(announced[0].median()))
			b.aim(slices.Max(late[0]) < lateAim, "no advert more than %d ms late meanwhile: %s ms", lateAim, number(slices.Max(late[0])))
		}
	}
	t.note("from the new master's first advert until every address was announced (ours: as request and as reply).")
	t.note("Adverts are watched until the announcements of the promotion have ended, 5 s later.")
	t.note("Skudonet's own start is left out: the start and stop hooks do nothing.")
	t.write(b.out)
	return nil
}

// manyAddresses gives n addresses beside the cluster's own.
func manyAddresses(n int) []netip.Addr {
	list := make([]netip.Addr, n)
	for i := range list {
		list[i] = netip.AddrFrom4([4]byte{10, 77, byte(i / 250), byte(1 + i%250)})
	}
	return list
}

func (b *bench) takeoversOf(p *product, count int, seen func(takeover)) error {
	more := manyAddresses(count - 1)
	pr, err := b.newPair(match{p, p}, takeoverInterval, more...)
	if err != nil {
		return err
	}
	defer pr.lab.Close()
	for round := range b.repeats {
		b.progress("%s takes over %d addresses: round %d", p.name, count, round+1)
		if !b.quick {
			time.Sleep(announcing) // not in the middle of the last promotion's announcements
		}
		one, err := pr.takeOver(append(more, lab.ClusterIP))
		if err != nil {
			return err
		}
		seen(one)
	}
	return nil
}

// takeOver cuts the master's power, watches the backup become master, and makes the pair whole again.
func (p *pair) takeOver(addrs []netip.Addr) (takeover, error) {
	var seen takeover
	master, backup, err := p.settle()
	if err != nil {
		return seen, err
	}
	capture, err := p.lab.Capture(p.lab.Client, lab.Delivered, lab.VRRP|lab.ARP)
	if err != nil {
		return seen, err
	}
	defer capture.Stop()
	if _, err := p.nextAdvert(master, 1); err != nil {
		return seen, err
	}
	if err := master.PowerOff(); err != nil {
		return seen, err
	}
	if err := p.await(backup); err != nil {
		return seen, err
	}
	time.Sleep(announcing)
	packets, err := capture.Stop()
	if err != nil {
		return seen, err
	}
	if seen, err = p.read(packets, master, backup, addrs); err != nil {
		return seen, err
	}
	return seen, errors.Join(master.PowerOn(), p.start(master))
}

// read finds in the packets of a promotion when every address had been announced, and the latest advert.
func (p *pair) read(packets []lab.Packet, old, now *lab.Node, addrs []netip.Addr) (takeover, error) {
	type form struct {
		addr    netip.Addr
		request bool
	}
	var seen takeover
	var oldLast, first, last time.Time
	announced := map[form]time.Time{}
	for _, packet := range packets {
		if ip, ok := packet.IPv4(); ok {
			switch {
			case ip.Source == old.Addr(0):
				oldLast = packet.Time
			case ip.Source != now.Addr(0):
			case first.IsZero():
				first, last = packet.Time, packet.Time
			default:
				seen.late = max(seen.late, packet.Time.Sub(last)-p.every)
				last = packet.Time
			}
		}
		// Before that advert, it was the old master who announced.
		if arp, ok := packet.ARP(); ok && arp.Gratuitous() && !first.IsZero() {
			f := form{arp.Sender, arp.Request}
			if _, known := announced[f]; !known {
				announced[f] = packet.Time
			}
		}
	}
	missing := 0
	for _, addr := range addrs {
		at, ok := announced[form{addr, true}]
		if reply := announced[form{addr, false}]; reply.After(at) {
			at = reply
		}
		if !ok {
			missing++
			continue
		}
		seen.announced = max(seen.announced, at.Sub(first))
		seen.since = max(seen.since, at.Sub(oldLast))
	}
	if missing > 0 {
		return seen, fmt.Errorf("%d of %d addresses were not announced", missing, len(addrs))
	}
	return seen, nil
}
