package main

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/status"
	"github.com/skudonet/skudonet-ce-cluster/test/lab"
)

// The aims of an idle node.
const (
	cpuAim = 4  // times keepalived's
	pssAim = 12 // MB
)

// usage is what a node's daemon cost in the windows of an idle measurement.
type usage struct{ cpu, pss, rss samples }

// idle measures all products at once, each pair in a lab of its own, because they do not wake each other up there.
func (b *bench) idle() error {
	window := 30 * time.Second
	if b.quick {
		window = 3 * time.Second
	}
	products := b.products(time.Second)
	used := make([]map[string]*usage, len(products))
	failed := make([]error, len(products))
	var all sync.WaitGroup
	for i, p := range products {
		all.Go(func() { used[i], failed[i] = b.idlePair(p, window) })
	}
	b.progress("idle: %d times %s", b.repeats, window)
	all.Wait()

	t := compare(fmt.Sprintf("idle for %s, adverts every 1 s", window), products)
	states := []string{status.Master, status.Backup}
	for _, kind := range []struct {
		name string
		of   func(*usage) samples
	}{
		{"CPU ms", func(u *usage) samples { return u.cpu }},
		{"PSS MB", func(u *usage) samples { return u.pss }},
		{"RSS MB", func(u *usage) samples { return u.rss }},
	} {
		for _, state := range states {
			figures := make([]samples, len(products))
			for i := range products {
				if failed[i] == nil {
					figures[i] = kind.of(used[i][state])
				}
			}
			t.row(kind.name+" as "+state, figures)
		}
	}
	t.note("CPU time of all its processes but hooks: once a minute ($garp_refresh) a master of ours announces and")
	t.note("runs the advertisement hook. Two nodes share a program's pages here; alone, a node's PSS is between")
	t.note("PSS and RSS.")
	for _, err := range failed {
		if err != nil {
			t.note("failed: %v", err)
		}
	}
	t.write(b.out)
	if i := slices.Index(products, keepalived); i > 0 && failed[0] == nil && failed[i] == nil {
		for _, state := range states {
			ours, theirs := used[0][state].cpu.median(), used[i][state].cpu.median()
			b.aim(ours <= cpuAim*theirs, "idle CPU as %s within %d times keepalived's: %s times", state, cpuAim, number(ours/theirs))
		}
	}
	if failed[0] == nil {
		most := max(used[0][status.Master].pss.median(), used[0][status.Backup].pss.median())
		b.aim(most < pssAim, "proportional set size under %d MB: %s MB", pssAim, number(most))
	}
	return nil
}

// afterPromotion is how long a promotion has its own work to do: the schedule of announcements ends after 5 s.
const afterPromotion = 7 * time.Second

func (b *bench) idlePair(p *product, window time.Duration) (map[string]*usage, error) {
	pr, err := b.newPair(match{p, p}, time.Second)
	if err != nil {
		return nil, err
	}
	defer pr.lab.Close()
	master, backup, err := pr.settle()
	if err != nil {
		return nil, err
	}
	time.Sleep(afterPromotion)
	nodes := map[string]*lab.Node{status.Master: master, status.Backup: backup}
	used := map[string]*usage{}
	before := map[string]map[int]time.Duration{}
	for state := range nodes {
		used[state] = &usage{}
	}
	for range b.repeats {
		for state, n := range nodes {
			if before[state], err = processorTimes(pr.daemons[n].PID()); err != nil {
				return nil, fmt.Errorf("%s: %w", p.name, err)
			}
		}
		time.Sleep(window)
		for state, n := range nodes {
			if is := p.state(n, pr.daemons[n]); is != state {
				return nil, fmt.Errorf("%s on %s: was %s and is %s, so that nothing was idle", p.name, n.Name, state, is)
			}
			u := used[state]
			cpu, pss, rss, err := cost(before[state])
			if err != nil {
				return nil, fmt.Errorf("%s: %w", p.name, err)
			}
			u.cpu, u.pss, u.rss = append(u.cpu, cpu), append(u.pss, pss), append(u.rss, rss)
		}
	}
	return used, nil
}

// processorTimes asks each process of a family for its processor time, to the nanosecond.
func processorTimes(pid int) (map[int]time.Duration, error) {
	times := map[int]time.Duration{}
	for _, pid := range family(pid) {
		t, err := processorTime(pid)
		if err != nil {
			return nil, err
		}
		times[pid] = t
	}
	return times, nil
}

// processorTime reads the clock of another process, as clock_getcpuclockid(3) makes it.
func processorTime(pid int) (time.Duration, error) {
	const scheduled = 2
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^pid)<<3|scheduled, &t); err != nil {
		return 0, fmt.Errorf("processor time of process %d: %w", pid, err)
	}
	return time.Duration(t.Nano()), nil
}

// cost is what the processes have used since, in ms, and the memory they have now, in MB.
func cost(before map[int]time.Duration) (cpu, pss, rss float64, err error) {
	for pid, then := range before {
		now, timeErr := processorTime(pid)
		text, readErr := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err := errors.Join(timeErr, readErr); err != nil {
			return 0, 0, 0, err
		}
		cpu += (now - then).Seconds() * 1e3
		pss += megabytes(text, "Pss")
		rss += megabytes(text, "Rss")
	}
	return cpu, pss, rss, nil
}

func megabytes(rollup []byte, key string) float64 {
	match := regexp.MustCompile(`(?m)^` + key + `:\s+(\d+) kB$`).FindSubmatch(rollup)
	if match == nil {
		return 0
	}
	kilobytes, _ := strconv.ParseFloat(string(match[1]), 64)
	return kilobytes / 1024
}
