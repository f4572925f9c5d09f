package peer

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/skudonet/skudonet-ce-cluster/lib/archive"
	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
	"github.com/skudonet/skudonet-ce-cluster/lib/vector"
)

// of makes a session with a tree of n files that the record holds.
func of(b testing.TB, n int) (*session, *root) {
	b.Helper()
	dir := b.TempDir()
	check := func(err error) {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
	}
	tree := filepath.Join(dir, "tree/config")
	for i := range n {
		path := filepath.Join(tree, fmt.Sprintf("d%d/farm-%d_l4xnat.cfg", i/100, i))
		check(os.MkdirAll(filepath.Dir(path), 0o755))
		check(os.WriteFile(path, fmt.Appendf(nil, "content %d\n", i), 0o600))
	}
	h := hostIn(dir)
	check(os.MkdirAll(filepath.Join(dir, "etc"), 0o755))
	check(os.WriteFile(h.ConfigPath, fmt.Appendf(nil, "$interface=%q;\n$local_ip=%q;\n$remote_ip=%q;\n$cluster_ip=%q;\n$cluster_id=%q;\n$configdir=%q;\n$rttables=%q;\n",
		"eth0", "192.0.2.2", "192.0.2.1", "192.0.2.9", "1", tree, filepath.Join(dir, "etc/rt_tables")), 0o600))
	check(status.Write(h.StatusFile, status.Backup))
	s := &session{host: h, sender: newSender(nil)}
	check(s.openRoots(b.Context(), greeting{}, &hello{}))
	r := s.roots[0]
	if _, refusal := s.digest(b.Context(), DigestRequest{Roots: []Look{{Root: ConfigRoot, Full: true}}, Set: someSet}); refusal != nil {
		b.Fatal(refusal)
	}
	s.mustCommit(b, 1)
	return s, r
}

func (s *session) mustCommit(b testing.TB, count uint64, paths ...string) {
	b.Helper()
	// What the tree has after its files were looked at is what the master has.
	if _, err := s.roots[0].look(b.Context(), append(paths, "d0/farm-0_l4xnat.cfg")); err != nil {
		b.Fatal(err)
	}
	a, refusal := s.digest(b.Context(), DigestRequest{Roots: []Look{{Root: ConfigRoot, Paths: names(paths...)}}, Set: someSet, Commit: &Commit{
		Vector: vector.Vector{someID: count}, Set: someSet, Digests: map[string]manifest.Digest{ConfigRoot: s.roots[0].tree.Manifest().Digest()}}})
	if refusal != nil || !a.(DigestAnswer).Committed {
		b.Fatalf("%+v, %v", a, refusal)
	}
}

// What is done on the backup for one changed file, beside rsync.
func BenchmarkChange(b *testing.B) {
	for _, n := range []int{300, 20_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s, r := of(b, n)
			const path = "d1/farm-100_l4xnat.cfg"
			b.Run("prepare", func(b *testing.B) {
				for b.Loop() {
					if refusal := s.prepare(context.Background(), r, []string{path}, keepAs(archive.Repair)); refusal != nil {
						b.Fatal(refusal)
					}
				}
			})
			count := uint64(1)
			b.Run("commit", func(b *testing.B) {
				for b.Loop() {
					count++
					if err := os.WriteFile(filepath.Join(r.dir, path), fmt.Appendf(nil, "%d", count), 0o600); err != nil {
						b.Fatal(err)
					}
					if refusal := s.prepare(context.Background(), r, []string{path}, keepAs(archive.Repair)); refusal != nil {
						b.Fatal(refusal)
					}
					s.mustCommit(b, count, path)
				}
			})
		})
	}
}
