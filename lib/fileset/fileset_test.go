package fileset

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// What a shell makes of a text without expansions, operators and comments.
func TestSplitAgainstShell(t *testing.T) {
	texts := []string{
		"", " ", "a", " a  b\tc ", `'a b'`, `"a b"`, `a\ b`, `''`, `"" a ''`, `a''b`, `'a'"b"c`, `"a\"b"`, `"a\\b"`, `"a\xb"`, `"a\'b"`, `'a\'b`, `'a"b'`, `a\\b`, `\a`,
		"a\\\nb", "\"a\\\nb\"", "'a\\\nb'", "'a\nb'", "\"a\nb\"", `a\`, `\`, `"a\$b"`, "\"a\\`b\"", `\'a`, `\"a\ b"c d"`, "--exclude 'if_*:*_conf' --exclude=a\\ b", "\\\n", "a \\\n b", "\\\n''",
		"\xff 'ä\xfe'", "a\rb", "'a\rb\vc\fd'", `"\\\""`, `"\\" \\`, "=", "-e 'ssh -p 22'",
	}
	random := rand.New(rand.NewPCG(3, 2))
	pieces := []string{"a", "b", " ", "\t", "'", "'", `"`, `"`, `\`, `\`, "x\\\n", "=", "-", "\xff"}
	for range 300 {
		var text string
		for range random.IntN(9) {
			text += pieces[random.IntN(len(pieces))]
		}
		texts = append(texts, text)
	}
	// One shell for all: each text is evaluated on its own, in a subshell.
	var script strings.Builder
	for i, text := range texts {
		fmt.Fprintf(&script, "( eval 'show() { printf \"%%s\\0\" ok \"$@\"; }'; eval '%s' ) 2>/dev/null || printf 'error\\0'; printf 'end %d\\0'\n",
			strings.ReplaceAll("show "+text, "'", `'\''`), i)
	}
	cmd := exec.Command("/bin/sh")
	cmd.Stdin = strings.NewReader(script.String())
	cmd.Env = []string{"LC_ALL=C"}
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	rest := string(out)
	for i, text := range texts {
		answer, after, found := strings.Cut(rest, fmt.Sprintf("end %d\x00", i))
		if !found {
			t.Fatalf("the shell has no answer to %q: %q", text, rest)
		}
		rest = after
		want := strings.Split(strings.TrimSuffix(answer, "\x00"), "\x00")
		got, err := Split(text)
		switch {
		case want[0] == "error":
			if err == nil {
				t.Errorf("%q: %q, the shell has an error", text, got)
			}
		case err != nil:
			t.Errorf("%q: %v, the shell has %q", text, err, want[1:])
		case !slices.Equal(got, want[1:]):
			t.Errorf("%q: %q, the shell has %q", text, got, want[1:])
		}
	}
}

func TestSplitLiterally(t *testing.T) {
	for text, want := range map[string][]string{
		`* ~ $HOME $(x) #a a;b >c | & {a,b}`: {"*", "~", "$HOME", "$(x)", "#a", "a;b", ">c", "|", "&", "{a,b}"},
		"a\nb":                               {"a", "b"},
	} {
		if got, err := Split(text); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
	for text, want := range map[string]string{
		`a "b`:                         `quote " is never closed`,
		`'`:                            `quote ' is never closed`,
		`"\`:                           "never closed",
		`"` + strings.Repeat("x", 999): "…",
		"a\x00b":                       "NUL",
	} {
		if _, err := Split(text); err == nil || !strings.Contains(err.Error(), want) || len(err.Error()) > 200 {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestParseList(t *testing.T) {
	files := map[string]string{
		"/rules": "# comment\n; comment\n*.pem\r\n\n+ a b\n- c\n!x\n #d",
		"/clear": "a\n!\nb",
		"/empty": "",
	}
	read := func(path string) ([]byte, error) {
		if content, ok := files[path]; ok {
			return []byte(content), nil
		}
		return nil, errors.New("no such file")
	}
	for _, tt := range []struct {
		text    string
		rules   string // joined with |
		notices []string
	}{
		{text: ""},
		{text: "--exclude if_eth0_conf", rules: "- if_eth0_conf"},
		{text: "--exclude=a --include 'b c' --include=d --exclude e", rules: "- a|+ b c|+ d|- e"},
		{text: `--exclude '- a' --include '- b' --exclude '+ c' --exclude '-_d' --exclude=" e"`, rules: "- a|- b|+ c|- -_d|-  e"},
		{text: `-f '- a' --filter='+ b' -f-_c -f=+_d '--filter=exclude e' --filter include_f`, rules: "- a|+ b|- c|+ d|- e|+ f"},
		{text: "--exclude a --exclude ! --exclude b", rules: "- b"},
		{text: "--exclude a -f ! --exclude b -f clear --include c", rules: "+ c"},
		{text: "--exclude-from /rules --include-from=/rules", rules: "- *.pem|+ a b|- c|- !x|-  #d|+ *.pem|+ a b|- c|+ !x|+  #d"},
		{text: "--exclude x --exclude-from=/clear --include-from /empty", rules: "- b"},
		{text: "--exclude a b -v --delete-excluded -C", rules: "- a", notices: []string{"b: ", "-v: ", "--delete-excluded: ", "-C: "}},
		{text: "--exclude", notices: []string{"--exclude: ignored: its value"}},
		{text: "--exclude '' --exclude '- '", notices: []string{`--exclude "": ignored: the pattern is empty`, "--exclude - : ignored: the pattern is empty"}},
		{text: "-f 'P a' -f -foo -f ': x' -f '-p x' --filter='.'", notices: []string{"-f P a: ", "-f -foo: ", "-f : x: ", "-f -p x: ", "--filter .: "}},
		{text: "'a\nb'", notices: []string{`"a\nb": ignored`}},
		{text: "--exclude " + strings.Repeat("x", 5000), notices: []string{"--exclude xxxx"}},
	} {
		l, notices, err := ParseList(tt.text, read)
		if err != nil {
			t.Errorf("%q: %v", tt.text, err)
		}
		var rules []string
		for _, r := range l.rules {
			rules = append(rules, map[bool]string{false: "- ", true: "+ "}[r.include]+r.text)
		}
		if got := strings.Join(rules, "|"); got != tt.rules {
			t.Errorf("%q: %q, want %q", tt.text, got, tt.rules)
		}
		same := len(notices) == len(tt.notices)
		for i := 0; same && i < len(notices); i++ {
			same = strings.HasPrefix(notices[i], tt.notices[i]) && !strings.Contains(notices[i], "\n")
		}
		if !same {
			t.Errorf("%q: notices %q, want %q", tt.text, notices, tt.notices)
		}
	}
	for text, want := range map[string]string{
		"--exclude 'a":                "never closed",
		"--exclude-from /nowhere":     "/nowhere: no such file; make it readable",
		"--include-from=-":            "not a file",
		"--exclude a --exclude-from=": "not a file",
	} {
		if _, _, err := ParseList(text, read); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if _, _, err := ParseList("--exclude-from /rules", nil); err == nil {
		t.Error("a file without a way to read it is no error")
	}
}

func TestSet(t *testing.T) {
	l, _, err := ParseList("--exclude if_eth1:2_conf --exclude=/tmp/ --include=*.keep --exclude=secret.*", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		set            *Set
		path           string
		dir            bool
		excluded, skip bool
	}{
		{New(), ".", true, false, false},
		{New(), "if_eth0_conf", false, true, true},
		{New(), "if_eth0.100_conf", false, true, true},
		{New(), "a/b/if_eth0_conf", false, true, true},
		{New(), "if_eth0:1_conf", false, false, false},
		{New(), "if_eth0_conf/x", false, true, false},
		{New(), "if_conf", false, false, false},
		{New(), "if__conf", false, true, true},
		{New(), "if_eth0_conf.bak", false, false, false},
		{New(), "local", true, true, true},
		{New(), TempName, true, true, true},
		{New(), "a/" + TempName, true, true, true},
		{New(), TempName + "/a", false, true, false},
		{New(), StageName, true, true, true},
		{New(), "a/" + StageName, false, true, true},
		{New(), StageName + "/a", false, true, false},
		{New(), "local", false, true, true},
		{New(), "local/a/b", false, true, false},
		{New(), "a/local", true, false, false},
		{New(), "locals", true, false, false},
		{New(l), "if_eth1:2_conf", false, true, true},
		{New(l), "if_eth0_conf", false, true, true},
		{New(l), "tmp", true, true, true},
		{New(l), "tmp", false, false, false},
		{New(l), "tmp/a", false, true, false},
		{New(l), "a/tmp", true, false, false},
		{New(l), "secret.pem", false, true, true},
		{New(l), "secret.keep", false, false, false},
		{New(List{}, l), "secret.pem", false, true, true},
		{Only("rt_tables"), "rt_tables", false, false, false},
		{Only("rt_tables"), ".", true, false, false},
		{Only("rt_tables"), "rt_tables.d", true, true, true},
		{Only("rt_tables"), "a/rt_tables", false, true, true},
		{Only("rt_tables"), "if_eth0:1_conf", false, true, true},
	} {
		if got := tt.set.Excluded(tt.path, tt.dir); got != tt.excluded {
			t.Errorf("%q of %q: excluded %v", tt.path, tt.set.Args(), got)
		}
		if got := tt.set.Skip(tt.path, tt.dir); got != tt.skip {
			t.Errorf("%q of %q: skip %v", tt.path, tt.set.Args(), got)
		}
	}
}

// One list for two excludes at least what either does, and exactly that if only one of them includes.
func TestUnionOfRandomLists(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 3))
	patterns := []string{"a", "b", "*", "a*", "*b", "/a", "a/", "b/a", "**/b", "?", "ab"}
	paths := []string{"a", "b", "ab", "ba", "a/a", "a/b", "b/a", "b/ab", "a/b/a", "c"}
	exact := 0
	for range 5000 {
		var lists [2]List
		including := 0
		for i := range lists {
			includes := false
			for range random.IntN(5) {
				r := newRule(random.IntN(3) == 0, patterns[random.IntN(len(patterns))])
				includes = includes || r.include
				lists[i].rules = append(lists[i].rules, r)
			}
			if includes {
				including++
			}
		}
		one := List{rules: union(lists[:])}
		if including < 2 {
			exact++
		}
		for _, p := range paths {
			for _, dir := range []bool{false, true} {
				either := lists[0].excludes(p, dir) || lists[1].excludes(p, dir)
				if got := one.excludes(p, dir); either && !got || got != either && including < 2 {
					t.Fatalf("%q (%v) is excluded: %v by the union of %v and %v, %v", p, dir, got, lists[0], lists[1], one)
				}
			}
		}
	}
	if exact < 1000 {
		t.Errorf("only %d pairs with includes in one list", exact)
	}
}

// Patterns of foreign making must not take long.
func TestMatchingTakesNoTime(t *testing.T) {
	path := strings.Repeat("a", 250) + "/" + strings.Repeat("a", 250)
	for _, p := range []string{strings.Repeat("a*", 300) + "b", strings.Repeat("**a", 300) + "b", strings.Repeat("*a**?", 200) + "[b", "/" + strings.Repeat("*", 4000) + "b"} {
		r := newRule(false, p)
		if r.matches(path, false) {
			t.Errorf("%.20q… matches", p)
		}
	}
}

func FuzzSplit(f *testing.F) {
	for _, s := range []string{"--exclude a", `'a b' "c\"d" e\ f`, "\\\n", `"`, "\xff\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		words, err := Split(text)
		if err != nil {
			if words != nil || strings.ContainsAny(err.Error(), "\n\x00") {
				t.Errorf("%q: %q, %v", text, words, err)
			}
			return
		}
		size := 0
		quoted := make([]string, len(words))
		for i, w := range words {
			size += len(w)
			quoted[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
		if size > len(text) {
			t.Errorf("%q: longer words: %q", text, words)
		}
		if again, err := Split(strings.Join(quoted, " ")); err != nil || !slices.Equal(words, again) {
			t.Errorf("%q: %q, quoted again %q, %v", text, words, again, err)
		}
	})
}

func FuzzParseList(f *testing.F) {
	for _, s := range []string{"--exclude if_eth0_conf", "-f '- a/**' --include-from x", "--exclude '[[:alpha:]-\\]*?' b", "--exclude=a/ --include=***", "--exclude ! -f"} {
		f.Add(s, "a\n- b\n#c\r\n!", "a/b/if_eth0:1_conf")
	}
	f.Fuzz(func(t *testing.T, text, file, path string) {
		l, notices, err := ParseList(text, func(string) ([]byte, error) { return []byte(file), nil })
		if err != nil {
			return
		}
		for _, n := range notices {
			if strings.ContainsAny(n, "\n\r\x00") {
				t.Errorf("%q: notice %q", text, n)
			}
		}
		s := New(l)
		for _, a := range s.Args() {
			rule, ok := strings.CutPrefix(a, "--filter=")
			if !ok || len(rule) < 3 || rule[:2] != "- " && rule[:2] != "+ " || strings.IndexByte(a, 0) >= 0 {
				t.Errorf("%q: argument %q", text, a)
			}
		}
		for _, dir := range []bool{false, true} {
			if s.Skip(path, dir) && !s.Excluded(path, dir) {
				t.Errorf("%q: %q is skipped and not excluded", text, path)
			}
			if New().Excluded(path, dir) && !s.Excluded(path, dir) {
				t.Errorf("%q: %q belongs to the node and is not excluded", text, path)
			}
		}
		if s.Excluded(".", true) {
			t.Errorf("%q: the top is excluded", text)
		}
	})
}
