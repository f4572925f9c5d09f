package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/auth"
	"github.com/skudonet/skudonet-ce-cluster/lib/election"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
	"github.com/skudonet/skudonet-ce-cluster/lib/transport"
	"github.com/skudonet/skudonet-ce-cluster/lib/vrrp"
	"github.com/skudonet/skudonet-ce-cluster/test/lab"
)

var (
	local = netip.MustParseAddr("192.168.77.11")
	peer  = netip.MustParseAddr("192.168.77.12")
)

// code measures what is done for every packet and every tick.
func (b *bench) code() error {
	testing.Init()
	benchtime := "200ms"
	if b.quick {
		benchtime = "20ms"
	}
	if err := flag.Set("test.benchtime", benchtime); err != nil {
		return err
	}
	key, err := auth.NewKey(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		return err
	}
	message := vrrp.Advertisement{VRID: 1, Priority: 100, Interval: time.Second, Addrs: []netip.Addr{lab.ClusterIP}}
	plain, err := message.Append(nil, peer, transport.Group, vrrp.PseudoHeader)
	if err != nil {
		return err
	}
	signed := key.Append(bytes.Clone(plain), auth.KeyID, peer, 1)

	t := table{title: "code", headings: []string{"ns", "allocations"}}
	free := true
	for _, row := range []struct {
		name string
		step func() func() error
	}{
		{"receive an advert: parse, verify", func() func() error {
			var heard vrrp.Advertisement
			return func() error {
				trailer, _, err := heard.Unmarshal(signed, peer, transport.Group)
				if err == nil {
					_, err = key.Verify(signed[:len(signed)-len(trailer)], trailer, peer)
				}
				return err
			}
		}},
		{"receive an advert without a password: parse", func() func() error {
			var heard vrrp.Advertisement
			return func() error {
				_, _, err := heard.Unmarshal(plain, peer, transport.Group)
				return err
			}
		}},
		{"send an advert: make, number, sign", func() func() error {
			var frame []byte
			sequence, since := auth.NewSequence(time.Now(), 0), time.Duration(0)
			return func() (err error) {
				since += time.Millisecond
				if frame, err = message.Append(frame[:0], local, transport.Group, vrrp.PseudoHeader); err == nil {
					frame = key.Append(frame, auth.KeyID, local, sequence.Next(since))
				}
				return err
			}
		}},
		{"election: one step of a master (its timer)", electionStep(election.Resume, election.Event{Kind: election.Tick}, election.Master)},
		{"election: one step of a backup (an advert)", electionStep(election.Start,
			election.Event{Kind: election.Advert, From: peer, Priority: 100, Interval: time.Second}, election.Backup)},
	} {
		var ns samples
		var allocations int64
		for range b.repeats {
			step := row.step()
			var failed error
			result := testing.Benchmark(func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if failed = step(); failed != nil {
						b.Fatal(failed)
					}
				}
			})
			if failed != nil {
				return fmt.Errorf("%s: %w", row.name, failed)
			}
			ns = append(ns, float64(result.T.Nanoseconds())/float64(result.N))
			allocations = max(allocations, result.AllocsPerOp())
		}
		free = free && allocations == 0
		t.add(row.name, ns.String(), fmt.Sprint(allocations))
	}
	t.write(b.out)
	b.aim(free, "packets and election steps without allocations")
	return nil
}

// electionStep repeats one event in the state that begins with first.
func electionStep(first election.EventKind, ev election.Event, want election.State) func() func() error {
	return func() func() error {
		m := election.New(election.Config{Priority: 100, Interval: time.Second, DeadRatio: 3, Local: local, Peer: peer, Signed: true})
		now := time.Duration(0)
		m.Handle(now, election.Event{Kind: first})
		return func() error {
			now += time.Second
			m.Handle(now, ev)
			if m.State() != want {
				return fmt.Errorf("the node is %s now", m.State())
			}
			return nil
		}
	}
}

// prompt measures the program that runs at every prompt, beside the least that a program can be.
func (b *bench) prompt() error {
	starts := 100
	if b.quick {
		starts = 20
	}
	dir, err := os.MkdirTemp("", "skd-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "status")
	if err := status.Write(file, status.Master); err != nil {
		return err
	}
	commands := [][]string{{filepath.Join(b.bin, "skd-prompt"), "--status-file", file}, {"/bin/true"}}
	took := make([]samples, len(commands))
	for range b.repeats {
		sum := make([]time.Duration, len(commands))
		for range starts {
			for i, c := range commands {
				began := time.Now()
				if err := exec.Command(c[0], c[1:]...).Run(); err != nil {
					return errors.Join(fmt.Errorf("run %s", c[0]), err)
				}
				sum[i] += time.Since(began)
			}
		}
		for i := range commands {
			took[i] = append(took[i], sum[i].Seconds()*1e3/float64(starts))
		}
	}
	t := table{title: fmt.Sprintf("prompt: a process from start to end, mean of %d", starts), headings: []string{"ms", "/bin/true"}}
	t.add("skd-prompt", took[0].String(), ratio(took[0], took[1]))
	t.add("/bin/true", took[1].String(), "")
	t.write(b.out)
	return nil
}
