package fileset

import (
	"bytes"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// oddTree makes a tree of names that try every rule, in several depths, and
// returns all its paths, directories with a slash at the end. All files have that content.
func oddTree(t *testing.T, top, content string) []string {
	t.Helper()
	names := []string{
		"if_eth0_conf", "if_eth0.100_conf", "if_eth0:1_conf", "if_eth0.100:web_conf", "if__conf", "if_:_conf",
		"if_conf", "if_eth0_conf.bak", "xif_eth0_conf", "if_a_conf_conf", "a", "b", "ab", "abc", "a.c", "a*c", "a[b]c",
		"a\\c", "a?c", "[", "]", "-", "!", "^", "- a", "+ a", " a ", "#a", "local.conf", "line\nend", "tab\tab", `quote"s'`, "-rf", "--delete",
		"not\xffutf8", "\xc3\xa4", "Z", "7", "\\#123", "*", "**",
	}
	dirs := []string{
		".", "a", "a/b", "a/b/a", "a/b/a/c", "local", "local/a", "a/local", TempName, TempName + "/a", "a/" + TempName, StageName, "a/b/" + StageName, "b", "b/a", "c", "c/a[b]c", "if_dir_conf", "if_dir:1_conf", "new\nline",
	}
	for _, dir := range dirs {
		if err := os.MkdirAll(filepath.Join(top, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range dirs {
		use := names
		if dir != "." && dir != "a/b" {
			use = names[:14]
		}
		for _, n := range use {
			p := filepath.Join(top, dir) + "/" + n
			if _, err := os.Lstat(p); err == nil {
				continue
			}
			if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.Symlink("a", filepath.Join(top, "c/link")); err != nil {
		t.Fatal(err)
	}
	return walk(t, top)
}

func walk(t *testing.T, top string) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == top {
			return err
		}
		p = p[len(top)+1:]
		if d.IsDir() {
			p += "/"
		}
		all = append(all, p)
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	slices.Sort(all)
	return all
}

func rsync(args ...string) ([]byte, error) {
	cmd := exec.Command("rsync", args...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("rsync %q: %w\n%s", args, err, errs.String())
	}
	return out, nil
}

func needRsync(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("rsync"); err != nil {
		t.Skip("no rsync here")
	}
}

// listed is what rsync would send of the tree with these options.
func listed(top string, options []string) ([]string, error) {
	out, err := rsync(slices.Concat([]string{"-nrl", "--out-format=%i %n"}, options, []string{top + "/", top + ".nowhere/"})...)
	if err != nil {
		return nil, err
	}
	var all []string
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSuffix(line, "\n")
		if !strings.Contains(line, "+++++") {
			continue // "created directory …"
		}
		_, name, _ := strings.Cut(line, " ")
		if name = unescape(name); name != "./" {
			all = append(all, name)
		}
	}
	slices.Sort(all)
	return all, nil
}

// unescape undoes rsync's \#ooo.
func unescape(s string) string {
	var b []byte
	for i := 0; i < len(s); i++ {
		if strings.HasPrefix(s[i:], `\#`) && i+5 <= len(s) {
			if n, err := strconv.ParseUint(s[i+2:i+5], 8, 8); err == nil {
				b = append(b, byte(n))
				i += 4
				continue
			}
		}
		b = append(b, s[i])
	}
	return string(b)
}

// kept is what the set lets through.
func kept(s *Set, all []string) []string {
	var in []string
	for _, p := range all {
		if name, dir := strings.CutSuffix(p, "/"); !s.Excluded(name, dir) {
			in = append(in, p)
		}
	}
	return in
}

func difference(got, want []string) string {
	var b strings.Builder
	for _, p := range got {
		if !slices.Contains(want, p) {
			fmt.Fprintf(&b, "\n  only we keep  %q", p)
		}
	}
	for _, p := range want {
		if !slices.Contains(got, p) {
			fmt.Fprintf(&b, "\n  only rsync keeps %q", p)
		}
	}
	return b.String()
}

var patterns = []string{
	"a", "/a", "a/", "/a/", "b/a", "/b/a", "a/b/a", "b/a/", "*", "/*", "*/", "**", "/**", "***", "a*", "*a", "?", "??", "a?c", `a\?c`, `a\*c`, `a\c`,
	`a\\c`, `a\\c*`, `a\c*`, "[ab]", "[!ab]", "[^ab]", "[a-c]", "[]]", "[]-]", "[!]]", "[a", "a[", "[[]", `[\]]`, `[\a-\c]`, "[[:alpha:]]", "[[:digit:]]*",
	"[[:nothing:]]", "[[:alpha]", "[[:]", "[![:alnum:]]*", "[[:upper:][:digit:]]", "[a-", "[a-]", "[-a]", "[--/]", "a[b]c", `a\[b]c`, `a\[b\]c`, "a/*", "a/**", "a/***", "/a/***", "/a/b/***",
	"a/**/a", "a/**/c", "/a/**/a", "**/a", "**/b/a", "**a", "**/a/", "a**", "a**c", "*/a", "*/*/a", "/*/a", "/*/*/a", "a/*/a", "*/***", "b/***", "b***", "***/a", "a/***/a",
	"if_*_conf", "if_*:*_conf", "/if_eth0_conf", "if_eth0_conf", "if_eth0.*", "*_conf", "line\nend", "line*", "new\nline/", "tab\t*", `quote"s'`, "-rf", "--delete",
	"not\xffutf8", "not?utf8", "not[\x80-\xff]utf8", "\xc3\xa4", "?\xa4", "\xc3*", "[[:alpha:]][[:alpha:]]", "#a", ";", " a ", " a", "!", "a//", "//a", "/", "//", "c/link", "c/link/", "link", "c/a[b]c/a",
	`c/a\[b\]c/*`, `\a*`, `*\`, `\**`, `a\**`, `\\#123`, `\#123`, "local", "local/", "/local/", "a/local", "*l/a", "?/?", "?/**", "*b*", "a*b*c", "a/?/a/?", "**/", "/**/a", "**/**/a", "*/**/a",
}

func TestPatternsAgainstRsync(t *testing.T) {
	needRsync(t)
	top := filepath.Join(t.TempDir(), "src")
	all := oddTree(t, top, "")
	var cases [][]rule
	for _, p := range patterns {
		cases = append(cases, []rule{newRule(false, p)})
	}
	cases = append(cases,
		[]rule{newRule(true, "*/"), newRule(true, "a"), newRule(false, "*")},
		[]rule{newRule(true, "/a/***"), newRule(false, "/a"), newRule(false, "/b/*")},
		[]rule{newRule(true, "a/b/"), newRule(true, "a/"), newRule(false, "*/"), newRule(true, "[ab]"), newRule(false, "if_*")},
	)
	random := rand.New(rand.NewPCG(3, 1))
	n := 120
	if testing.Short() {
		n = 20
	}
	for range n {
		cases = append(cases, randomRules(random))
	}
	together(cases, func(rules []rule) {
		// Not New: the node's own rules would hide what a pattern does.
		s := &Set{lists: []List{{rules: rules}}}
		sent, err := listed(top, s.Args())
		if err != nil {
			t.Error(err)
		} else if d := difference(kept(s, all), sent); d != "" {
			t.Errorf("%q:%s", s.Args(), d)
		}
	})
}

func randomRules(random *rand.Rand) []rule {
	parts := []string{
		"a", "b", "c", "*", "**", "***", "?", "/", "/", "[ab]", "[!a]", "[a-c", `\`, "if_", ":", "_conf", "local", ".", "[[:alpha:]]", "]", "\n", "\xff",
	}
	var rules []rule
	for range 1 + random.IntN(3) {
		var p string
		for range 1 + random.IntN(6) {
			p += parts[random.IntN(len(parts))]
		}
		rules = append(rules, newRule(random.IntN(3) == 0, p))
	}
	return rules
}

// together does the work for all items, several at a time: an rsync waits more than it works.
func together[T any](items []T, work func(T)) {
	var wait sync.WaitGroup
	room := make(chan struct{}, 8)
	for _, item := range items {
		room <- struct{}{}
		wait.Go(func() {
			work(item)
			<-room
		})
	}
	wait.Wait()
}

// A plain rsync with Args makes of the peer's tree: what of ours is replicated, beside what of the peer's is not.
func TestArgsAgainstRsync(t *testing.T) {
	needRsync(t)
	ours := filepath.Join(t.TempDir(), "ours")
	inOurs := oddTree(t, ours, "ours")
	list := func(text string) List {
		l, notices, err := ParseList(text, nil)
		if err != nil || len(notices) > 0 {
			t.Fatal(text, notices, err)
		}
		return l
	}
	type test struct {
		name   string
		set    *Set
		exact  bool
		passes string // a file that is replicated
		peer   string // the peer's tree
	}
	tests := []test{
		{"no list", New(), true, "if_eth0:1_conf", ""},
		{"usual list", New(list("--exclude if_eth0_conf")), true, "a/b/if_eth0.100:web_conf", ""},
		{"same lists", New(list("--exclude a --include '*'"), list("--exclude a --include '*'")), true, "b/if_eth0:1_conf", ""},
		{"virtual one excluded", New(list("--exclude if_eth0:1_conf")), true, "if_:_conf", ""},
		{"all virtual ones excluded", New(list("--exclude='if_*:*'")), true, "a.c", ""},
		{"node's own included", New(list("--include if_eth0_conf --include local/ --include='/local/**'")), true, "a/b/if_eth0:1_conf", ""},
		{"everything included", New(list("--include='*'")), true, "if_dir:1_conf/if_:_conf", ""},
		{"include before exclude", New(list("--include='if_eth0*' --exclude='if_*'")), true, "if_eth0:1_conf", ""},
		{"only some", New(list("--include='*/' --include='if_*' --exclude='*'")), true, "a/b/if_eth0:1_conf", ""},
		{"two lists", New(list("--exclude=b"), list("--exclude='*.c'")), true, "a*c", ""},
		{"include beside exclude", New(list("--include=a/b --exclude=b"), list("--exclude='a*c'")), true, "a/b/ab", ""},
		{"the other way round", New(list("--exclude='a*c'"), list("--include=a/b --exclude=b")), true, "a/b/ab", ""},
		{"common includes", New(list("--include='*/' --include=ab --include=abc --exclude='*'"), list("--include=ab --include='*/' --exclude='*'")), true, "a/ab", ""},
		{"include beside a later include", New(list("--include=ab --exclude='a*'"), list("--exclude=Z --include=7 --exclude='[0-9]'")), false, "ab", ""},
		{"different includes", New(list("--include=ab --exclude='a*'"), list("--include=b --exclude='*b'")), false, "Z", ""},
		{"one file", Only("Z"), true, "Z", ""},
		{"one odd file", Only("a[b]c"), true, "a[b]c", ""},
		{"one odder file", Only("a*c"), true, "a*c", ""},
		{"one file with a backslash", Only(`a\c`), true, `a\c`, ""},
	}
	for i := range tests {
		peer := filepath.Join(t.TempDir(), "peer")
		tests[i].peer = peer
		oddTree(t, peer, "the peer's")
		for _, p := range []string{"gone/if_eth1_conf", "gone/x", "gone/deep/x", "if_eth2.7_conf", "if_eth2:7_conf", "local/mine", "local/deep/mine"} {
			if err := os.MkdirAll(filepath.Dir(filepath.Join(peer, p)), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(peer, p), []byte("the peer's"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	together(tests, func(tt test) {
		peer := tt.peer
		inPeer := walk(t, peer)
		if _, err := rsync(slices.Concat([]string{"-rlI", "--delete", "--inplace"}, tt.set.Args(), []string{ours + "/", peer + "/"})...); err != nil {
			t.Errorf("%s: %v", tt.name, err)
			return
		}
		var want []string
		add := func(p string) {
			for i := range p {
				if p[i] == '/' {
					want = append(want, p[:i+1])
				}
			}
			want = append(want, p)
		}
		for _, p := range kept(tt.set, inOurs) {
			add(p)
		}
		for _, p := range inPeer {
			if name, dir := strings.CutSuffix(p, "/"); tt.set.Excluded(name, dir) {
				add(p)
			}
		}
		slices.Sort(want)
		want = slices.Compact(want)
		after := walk(t, peer)
		if d := difference(want, after); d != "" && tt.exact {
			t.Errorf("%s:%s", tt.name, d)
		}
		for _, p := range after {
			if strings.HasSuffix(p, "/") || p == "c/link" {
				continue
			}
			b, err := os.ReadFile(filepath.Join(peer, p))
			if err != nil {
				t.Error(err)
			}
			sent := string(b) != "the peer's"
			if excluded := tt.set.Excluded(p, false); sent && excluded || !sent && !excluded && tt.exact {
				t.Errorf("%s: %q sent: %v, excluded: %v", tt.name, p, sent, excluded)
			}
			if p == tt.passes && !sent {
				t.Errorf("%s: %q was not sent", tt.name, p)
			}
		}
		for _, p := range inPeer { // whatever the lists say, the node keeps its own
			name := strings.TrimSuffix(p, "/")
			if New().Excluded(name, name != p) && !slices.Contains(after, p) && tt.set.node {
				t.Errorf("%s: %q was deleted", tt.name, p)
			}
		}
		if !slices.Contains(after, tt.passes) {
			t.Errorf("%s: %q is not there", tt.name, tt.passes)
		}
	})
}
