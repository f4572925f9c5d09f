package replication

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/skudonet/skudonet-ce-cluster/test/lab"
)

// spell is a history of a realm, by chance, and what must have survived it.
type spell struct {
	*realm
	random *rand.Rand
	master *ruler          // never nil; its peer may be off, cut off or a master, too
	cut    bool            // the cable
	off    bool            // the other node's power
	torn   bool            // both nodes have been master apart, or somebody touched the backup
	made   map[string]bool // names, which are the texts, of files that were recorded and that nobody removed
	lost   map[string]bool // of files that may be in the trees, or in an archive
	gone   []string        // removed
	n      int
	tale   []string
}

// alone tells whether the master has no peer.
func (s *spell) alone() bool { return s.cut || s.off }

// sync waits until the master says that the peer has everything.
func (s *spell) sync() {
	s.t.Helper()
	s.eventually("sync", func() (bool, string) {
		out, err := s.master.Run("skd-inotify", "sync")
		return err == nil, out
	})
}

func (s *spell) heal() {
	s.t.Helper()
	s.run(s.b.Node, "nft", "delete", "table", "ip", "cut")
	s.cut = false
}

// edit makes a file, and perhaps removes one. It returns when that is recorded.
func (s *spell) edit(on *ruler) (name string) {
	s.n++
	name = fmt.Sprint("e", s.n)
	script := fmt.Sprintf("mkdir -p d%[1]d; echo %[2]s >d%[1]d/%[2]s; echo %[2]s >farm; chmod 6%[1]d4 farm", s.n%4, name)
	if names := slices.Sorted(maps.Keys(s.made)); !s.torn && len(names) > 3 && s.random.IntN(3) == 0 {
		away := names[s.random.IntN(len(names))]
		script += "; rm d*/" + away
		delete(s.made, away)
		s.gone = append(s.gone, away)
	}
	on.edit(script)
	return name
}

// turns are what can happen. Each returns what did, "" if it could not.
var turns = []func(*spell) string{
	func(s *spell) string {
		name := s.edit(s.master)
		s.made[name] = true
		return "edit " + name
	},
	func(s *spell) string { // handed over
		if s.alone() {
			return ""
		}
		words := "hand-over"
		if s.random.IntN(2) == 0 {
			s.sync()
			words += ", in step"
		}
		s.master.demote()
		s.master = s.master.other()
		s.master.promote()
		s.master.inStep("both nodes were master")
		return words
	},
	func(s *spell) string { // the master's power goes
		if s.alone() {
			return ""
		}
		s.sync()
		s.master.off()
		s.off = true
		s.master = s.master.other()
		s.master.rule()
		return "power of the master"
	},
	func(s *spell) string { // that of the backup
		if s.alone() {
			return ""
		}
		s.master.other().off()
		s.off = true
		return "power of the backup"
	},
	func(s *spell) string {
		if !s.off {
			return ""
		}
		s.master.other().on()
		s.off = false
		return "power is back"
	},
	func(s *spell) string {
		if s.alone() {
			return ""
		}
		// As a cable that is cut, but each end hears of it at once.
		s.run(s.b.Node, "sh", "-euc", `nft add table ip cut
			nft add chain ip cut in '{ type filter hook input priority 0; }'
			nft add chain ip cut out '{ type filter hook output priority 0; }'
			nft add rule ip cut in tcp dport 22 reject with tcp reset
			nft add rule ip cut in tcp sport 22 reject with tcp reset
			nft add rule ip cut out tcp dport 22 reject with tcp reset`)
		s.cut = true
		return "cut"
	},
	func(s *spell) string { // both rule, with edits on both
		if !s.cut || s.off || s.torn && s.random.IntN(2) == 0 {
			return ""
		}
		s.torn = true
		other := s.master.other()
		other.rule()
		name, theirs := s.edit(s.master), s.edit(other)
		s.made[name], s.lost[theirs] = true, true
		other.demote()
		return "both rule: edits " + name + ", " + theirs
	},
	func(s *spell) string {
		if !s.cut {
			return ""
		}
		s.heal()
		return "heal"
	},
	func(s *spell) string { // the replicator is killed
		s.master.kill()
		s.master.start()
		return "kill of the replicator"
	},
	func(s *spell) string {
		if s.off {
			return ""
		}
		pids := s.sessions(s.master.other())
		if len(pids) == 0 {
			return ""
		}
		s.master.other().Run("kill", append([]string{"-KILL"}, pids...)...) // some may have ended by themselves
		return "kill of the session"
	},
	func(s *spell) string { // somebody edits the backup
		if s.off || s.random.IntN(3) > 0 {
			return ""
		}
		s.torn = true
		s.n++
		name := fmt.Sprint("t", s.n)
		s.master.other().sh("echo " + name + " >" + name)
		s.lost[name] = true
		return "touch " + name
	},
	func(s *spell) string { // Skudonet rewrites what it has
		for _, n := range s.both() {
			if n == s.master || !s.off {
				s.run(n.Node, "sh", "-c", "/usr/local/skudonet/bin/skudonet start; /usr/local/skudonet/bin/skudonet stop")
			}
		}
		return "Skudonet starts and stops"
	},
}

// holds checks that the master, or an archive, has what was recorded.
func (s *spell) holds() {
	s.t.Helper()
	s.honest()
	there := strings.Fields(s.master.sh("find . -type f -printf '%f\\n'"))
	if s.torn { // The configuration of a node that ruled apart is archived.
		for _, n := range s.both() {
			if n == s.master || !s.off {
				// One that is being made goes from under find's hands, to its name.
				there = append(there, strings.Fields(n.sh("find "+stateDir+"/archive -path '*/archive/.*' -prune -o -type f -printf '%f\\n' 2>/dev/null || true"))...)
			}
		}
	}
	for name := range s.made {
		if !slices.Contains(there, name) {
			s.t.Errorf("%s is lost: there are %q", name, there)
		}
	}
	if s.torn {
		return
	}
	for _, name := range s.gone {
		if out, err := s.master.Run("sh", "-c", "ls "+lab.TreePath+"/d*/"+name); err == nil {
			s.t.Errorf("removed, and back: %s", out)
		}
	}
}

// end brings both nodes together, and looks for everything.
func (s *spell) end() {
	s.t.Helper()
	if s.off {
		s.master.other().on()
	}
	if s.cut {
		s.heal()
	}
	s.off = false
	s.sync()
	s.master.inStep("both nodes were master")
	s.holds()
	for _, w := range s.master.waiting() {
		s.master.ask("resolve", "ours", w.Named)
	}
	s.master.inStep()
	s.nothingWaits()
	s.clean()
	archived := map[string]bool{}
	for _, n := range s.both() {
		for _, one := range n.history() {
			for path := range n.files(one) {
				archived[path[strings.LastIndexByte(path, '/')+1:]] = true
			}
		}
	}
	for name := range s.lost {
		_, err := s.master.Run("sh", "-c", "cd "+lab.TreePath+"; ls "+name+" d*/"+name+" 2>/dev/null | grep -q .")
		if err != nil && !archived[name] {
			s.t.Errorf("%s is neither in the tree nor in an archive", name)
		}
	}
	if !s.torn && len(archived) > 0 {
		s.t.Errorf("archived, although neither node has ruled apart: %v", slices.Sorted(maps.Keys(archived)))
	}
}

// A smaller sibling of the histories in test/history, over ssh.
func TestHistoriesOverSSH(t *testing.T) {
	const length = 15
	seeds := []uint64{rand.Uint64(), rand.Uint64(), rand.Uint64()}
	if text := os.Getenv("SPELL"); text != "" {
		var one uint64
		fmt.Sscan(text, &one)
		seeds = []uint64{one}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			s := &spell{realm: newRealm(t, lab.Options{}), random: rand.New(rand.NewPCG(seed, 0)), made: map[string]bool{}, lost: map[string]bool{}}
			t.Cleanup(func() {
				if t.Failed() {
					t.Logf("again: SPELL=%d go test -run %s\n%s", seed, "TestHistoriesOverSSH", strings.Join(s.tale, "\n"))
				}
			})
			s.master = s.a
			s.a.promote()
			s.a.inStep()
			for len(s.tale) < length {
				turn := turns[s.random.IntN(len(turns))]
				if words := turn(s); words != "" {
					s.tale = append(s.tale, s.master.Name+": "+words)
					s.holds()
				}
				if t.Failed() {
					return
				}
			}
			s.end()
		})
	}
}
