package status

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestReplication(t *testing.T) {
	now := Moment{Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Boot: time.Hour}
	before := func(d time.Duration) Moment { return Moment{Time: now.Time.Add(-d), Boot: now.Boot - d} }
	good := Replicator{Version: "3.0", PID: 17, State: InStep, Since: before(time.Minute), Updated: before(time.Second), InStepAt: before(time.Second), Runs: 4,
		Roots: []ReplicatedRoot{{"config", "/usr/local/skudonet/config", 12, "abcdef0123456789"}},
		Last:  &Transfer{before(time.Minute), Seconds(24 * time.Millisecond), 1, "a new"}}
	good.Peer.Address, good.Peer.Version, good.Peer.Since = "192.168.1.251", "3.0", before(time.Hour)
	behind := good
	behind.State, behind.Pending, behind.Paths, behind.Oldest = Waiting, 3, []string{"a", "b"}, before(5*time.Second)
	behind.Problems = []Problem{{"no space left on the peer", "free space there"}}
	cut := good
	cut.State, cut.Peer.Since, cut.Problems = Connecting, Moment{}, []Problem{{"no route to host", ""}}
	weak := good
	weak.State, weak.Peer.Weak, weak.Progress = Waiting, true, "sending everything"
	for _, c := range []struct {
		name, word string
		file       *Replicator
		alive      bool
		health     Health
		says       []string
	}{
		{"in step", Master, &good, true, Healthy, []string{"in step since", "192.168.1.251, skd-inotify 3.0", "12 entries, digest abcdef012345", "took 24ms: a new", "nothing"}},
		{"behind", Master, &behind, true, Degraded, []string{"waiting since", "3, the oldest since", "(5.0 s ago): a, b and 1 more", "no space left on the peer", "-> free space there"}},
		{"cut off", Master, &cut, true, Degraded, []string{"connecting", "192.168.1.251, not connected", "no route to host"}},
		{"weak", Master, &weak, true, Healthy, []string{"it cannot compare", "sending everything"}},
		{"dead on a master", Master, &good, false, Degraded, []string{"skd-inotify is not running: changes do not reach the backup", "skd-hooks start"}},
		{"backup", Backup, nil, false, Down, []string{"this node is backup, the replicator runs on the master"}},
		{"stopped", "", nil, false, Down, []string{"stopped"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			file := filepath.Join(dir, "status")
			if c.word != "" {
				if err := Write(file, c.word); err != nil {
					t.Fatal(err)
				}
			}
			if c.file != nil {
				if err := c.file.WriteFile(filepath.Join(dir, ReplicatorFile)); err != nil {
					t.Fatal(err)
				}
			}
			r := inspectReplication(file, dir, now, func(Replicator) bool { return c.alive })
			var text strings.Builder
			if err := r.WriteText(&text); err != nil {
				t.Fatal(err)
			}
			if r.Health != c.health {
				t.Errorf("health %v, want %v", r.Health, c.health)
			}
			for _, words := range c.says {
				if !strings.Contains(text.String(), words) {
					t.Errorf("%q is not in\n%s", words, &text)
				}
			}
		})
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, ReplicatorFile), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if r := InspectReplication(filepath.Join(dir, "status"), dir); r.Health != Degraded || !strings.Contains(r.Problems[0].Text, "cannot be read") {
		t.Errorf("%+v", r)
	}
}
