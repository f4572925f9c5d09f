// Package man_test holds the manual pages against the programs they describe.
package man_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/skudonet/skudonet-ce-cluster/lib/conf"
	"github.com/skudonet/skudonet-ce-cluster/lib/fileset"
	"github.com/skudonet/skudonet-ce-cluster/lib/hook"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
)

const (
	guide    = "skudonet-ce-cluster.7"
	confPage = "skudonet-cluster.conf.5"
	readme   = "../README.md"
	debian   = "../debian/skudonet-ce-cluster."
)

// programs have one page each.
var programs = map[string]string{"skd-vrrpd": "skd-vrrpd.8", "skd-inotify": "skd-inotify.8", "skd-hooks": "skd-hooks.8", "skd-prompt": "skd-prompt.1"}

func pages() []string { return append(slices.Sorted(maps.Values(programs)), confPage, guide) }

// text returns a file.
func text(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// read returns the source of a page with mdoc's escapes replaced.
func read(t *testing.T, page string) string {
	t.Helper()
	return strings.NewReplacer(`\e`, `\`, `\(dq`, `"`, `\&`, "").Replace(text(t, page))
}

// section returns one .Sh section of a page.
func section(t *testing.T, text, name string) string {
	t.Helper()
	_, text, ok := strings.Cut(text, "\n.Sh "+name+"\n")
	if !ok {
		t.Fatalf("no section %s", name)
	}
	text, _, _ = strings.Cut(text, "\n.Sh ")
	return text
}

// marked returns the words that follow a macro, and those after commas with
// them: .Va state , since
func marked(text, macro string) (words []string) {
	for line := range strings.Lines(text) {
		fields, on := strings.Fields(line), false
		if len(fields) == 0 || !strings.HasPrefix(fields[0], ".") {
			continue
		}
		fields[0] = fields[0][1:]
		for _, f := range fields {
			switch {
			case f == macro:
				on = true
			case len(f) == 2 && 'A' <= f[0] && f[0] <= 'Z':
				on = false
			case on && strings.Trim(f, ",.;:|()") != "":
				words = append(words, f)
			}
		}
	}
	return words
}

func set(words []string) []string {
	return slices.Compact(slices.Sorted(slices.Values(words)))
}

// differ says what one list has and the other has not.
func differ(t *testing.T, what string, page, program []string) {
	t.Helper()
	for _, w := range page {
		if !slices.Contains(program, w) {
			t.Errorf("%s: the page names %q, which does not exist", what, w)
		}
	}
	for _, w := range program {
		if !slices.Contains(page, w) {
			t.Errorf("%s: the page says nothing of %q", what, w)
		}
	}
}

var (
	helpFlags   = regexp.MustCompile(`(?m)^ +((?:--?[a-z][a-z-]*(?: [A-Z]+)?(?:, )?)+)`)
	helpDefault = regexp.MustCompile(`\(default: "(.+?)"\)`)
	helpCommand = regexp.MustCompile(`(?m)^   ([a-z][a-z-]*)  +[a-z]`)
	word        = regexp.MustCompile(`^[a-z][a-z-]*$`)
	flag        = regexp.MustCompile(`--?[a-z][a-z-]*`)
	toType      = regexp.MustCompile("(?ms)^\\.Bd -literal.*?^\\.Ed$|^\\.(?:Ql|Dl) [^\n]*$|^    [^\n]*$|`[^`\n]*`")
	called      = regexp.MustCompile(`\b(skd-(?:vrrpd|inotify|hooks|prompt))((?: +[^\s|;()&<>"'\x60]+)+)`)
)

// help is what --help of a program, and of its commands, lists.
type help struct{ flags, commands, defaults []string }

func askHelp(t *testing.T, program string) (h help) {
	t.Helper()
	ask := func(args ...string) string {
		out, err := exec.Command(program, append(args, "--help")...).Output()
		if err != nil {
			t.Fatalf("%s %q --help: %v", program, args, err)
		}
		for _, m := range helpFlags.FindAllStringSubmatch(string(out), -1) {
			h.flags = append(h.flags, flag.FindAllString(m[1], -1)...)
		}
		for _, m := range helpDefault.FindAllStringSubmatch(string(out), -1) {
			h.defaults = append(h.defaults, m[1])
		}
		return string(out)
	}
	for _, m := range helpCommand.FindAllStringSubmatch(ask(), -1) {
		h.commands = append(h.commands, m[1])
	}
	for _, c := range h.commands {
		ask(c)
	}
	return help{set(h.flags), set(h.commands), set(h.defaults)}
}

// TestFlags holds each page against the --help of its program, and the command
// lines in all pages against the programs that they run.
func TestFlags(t *testing.T) {
	bin := t.TempDir()
	// As make build does it, so that the cache has the packages already.
	build := exec.Command("go", "build", "-trimpath", "-o", bin+"/", "../skd-vrrpd", "../skd-inotify", "../skd-hooks", "../skd-prompt")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	helps := map[string]help{}
	for name, page := range programs {
		h := askHelp(t, filepath.Join(bin, name))
		helps[name] = h
		if len(h.flags) < 4 || len(h.commands) == 0 {
			t.Fatalf("%s: understood only %q of its help", name, h)
		}
		text := read(t, page)
		dashed := func(words []string) (flags []string) {
			for _, w := range words {
				flags = append(flags, "-"+w)
			}
			return set(flags)
		}
		differ(t, page+": OPTIONS", dashed(marked(section(t, text, "OPTIONS"), "Fl")), h.flags)
		differ(t, page, dashed(marked(text, "Fl")), h.flags)
		var commands []string
		for line := range strings.Lines(section(t, text, "COMMANDS")) {
			if c, ok := strings.CutPrefix(line, ".It Cm "); ok {
				commands = append(commands, strings.Fields(c)[0]) // its options may follow
			}
		}
		differ(t, page+": COMMANDS", commands, h.commands)
		differ(t, page+": SYNOPSIS", set(marked(section(t, text, "SYNOPSIS"), "Cm")), h.commands)
		for _, d := range h.defaults {
			if !strings.Contains(section(t, text, "OPTIONS"), d) {
				t.Errorf("%s: OPTIONS does not name the default %s", page, d)
			}
		}
	}
	for _, page := range append(pages(), readme) {
		for _, m := range called.FindAllStringSubmatch(read(t, page), -1) {
			for _, word := range strings.Fields(m[2]) {
				if strings.HasPrefix(word, "-") && !slices.Contains(helps[m[1]].flags, word) {
					t.Errorf("%s: %q: %s has no %s", page, m[0], m[1], word)
				}
			}
		}
		for _, line := range toType.FindAllString(read(t, page), -1) {
			for _, m := range called.FindAllStringSubmatch(line, -1) {
				command := strings.Fields(m[2])[0]
				if word.MatchString(command) && !slices.Contains(helps[m[1]].commands, command) {
					t.Errorf("%s: %q: %s has no command %q", page, m[0], m[1], command)
				}
			}
		}
	}
}

// TestKeys holds the manual of the file against the parser's own list.
func TestKeys(t *testing.T) {
	var documented []string
	entries := strings.Split("\n"+section(t, read(t, confPage), "KEYS"), "\n.It Va $")[1:]
	keys := map[string]conf.Key{}
	var known []string
	for _, k := range conf.Keys() {
		keys[k.Name] = k
		known = append(known, k.Name)
	}
	for _, entry := range entries {
		name, text, _ := strings.Cut(entry, "\n")
		documented = append(documented, name)
		k, ok := keys[name]
		if !ok {
			continue
		}
		first := "Default: empty.\n"
		switch {
		case k.Required:
			first = "Required.\n"
		case k.Default != "":
			first = fmt.Sprintf("Default:\n.Ql %s .\n", k.Default)
		}
		if want := fmt.Sprintf("%sValues: %s.\n.Pp\n", first, k.Range); !strings.HasPrefix(text, want) {
			t.Errorf("$%s: want the entry to begin with\n%s", name, want)
		}
	}
	differ(t, confPage, documented, known)
	if !t.Failed() && !slices.Equal(documented, known) {
		t.Errorf("%s has the keys in the order %q, want %q", confPage, documented, known)
	}
	for _, page := range append(pages(), readme) {
		for _, name := range regexp.MustCompile(`\$[a-z][a-z_]*`).FindAllString(read(t, page), -1) {
			if name != "$enable_cluster" && !slices.Contains(known, name[1:]) {
				t.Errorf("%s: there is no key %s", page, name)
			}
		}
	}
}

// TestExamples reads what a reader may paste into the file.
func TestExamples(t *testing.T) {
	literal := regexp.MustCompile(`(?s)\n\.Bd -literal[^\n]*\n(\$.*?)\.Ed\n`)
	blocks := literal.FindAllStringSubmatch(read(t, confPage), -1)
	whole := slices.IndexFunc(blocks, func(b []string) bool { return strings.HasPrefix(b[1], "$interface") })
	if whole < 0 {
		t.Fatal("no complete example")
	}
	if _, notices, err := conf.Parse("example", []byte(blocks[whole][1])); err != nil || len(notices) > 0 {
		t.Errorf("the complete example: %v, %v", err, notices)
	}
	for _, b := range blocks {
		c, _, err := conf.Parse("example", []byte(blocks[whole][1]+b[1]))
		if err != nil {
			t.Errorf("%s\n%v", b[1], err)
			continue
		}
		if _, notices, err := fileset.ParseList(c.Exclude, os.ReadFile); err != nil || len(notices) > 0 {
			t.Errorf("%s\n%q: %q, %v", b[1], c.Exclude, notices, err)
		}
	}
}

var (
	perlAction = regexp.MustCompile(`(?m)^\t"([a-z-]+)" +=>|\$action eq "([a-z-]+)"`)
	initAction = regexp.MustCompile(`/etc/init\.d/skudonet-ce-cluster ([a-z-]+)`)
	runCluster = regexp.MustCompile(`(?ms)^sub run_cluster \{$.*?^}$`)
)

// TestInitScript holds what the pages say of the init script against it.
func TestInitScript(t *testing.T) {
	page, script := read(t, guide), text(t, debian+"init")
	var actions, documented []string
	for _, m := range perlAction.FindAllStringSubmatch(script, -1) {
		actions = append(actions, m[1]+m[2])
	}
	for line := range strings.Lines(section(t, page, "EVERYDAY COMMANDS")) {
		if c, ok := strings.CutPrefix(line, ".It Cm "); ok {
			documented = append(documented, strings.Fields(c)[0])
		}
	}
	differ(t, guide+": EVERYDAY COMMANDS", set(documented), set(actions))
	for _, page := range append(pages(), readme) {
		for _, m := range initAction.FindAllStringSubmatch(read(t, page), -1) {
			if !slices.Contains(actions, m[1]) {
				t.Errorf("%s: %q: there is no such action", page, m[0])
			}
		}
	}

	// The two edits of it that the guide tells, done to a copy that runs something harmless.
	sed := regexp.MustCompile(`(?m)^sed -i .*init\.d/skudonet-ce-cluster$`).FindString(page)
	example := runCluster.FindString(page)
	if sed == "" || example == "" {
		t.Fatalf("%s: no sed command or no run_cluster()", guide)
	}
	edited := filepath.Join(t.TempDir(), "init")
	harmless := strings.NewReplacer("/usr/sbin/skd-vrrpd", "/bin/echo")
	script = runCluster.ReplaceAllLiteralString(script, example)
	if err := os.WriteFile(edited, []byte(harmless.Replace(script)), 0o755); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) string {
		out, err := exec.Command("perl", append([]string{edited}, args...)...).CombinedOutput()
		if err != nil {
			out = append(out, err.Error()...)
		}
		return string(out)
	}
	if got, want := run("run", "-n"), "--config=/etc/my-cluster.conf -n\n"; got != want {
		t.Errorf("run -n with the guide's run_cluster(): %q, want %q", got, want)
	}
	if got := run("enabled"); !strings.Contains(got, "not enabled") {
		t.Errorf("enabled, before the guide's sed: %q", got)
	}
	if out, err := exec.Command("sh", "-c", strings.ReplaceAll(sed, "/etc/init.d/skudonet-ce-cluster", edited)).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", sed, err, out)
	}
	if got := run("enabled"); got != "" {
		t.Errorf("enabled, after the guide's sed: %q", got)
	}
	if !strings.Contains(text(t, edited), "\n$enable_cluster=\"true\";\n") {
		t.Errorf("%s leaves no line $enable_cluster=\"true\";", sed)
	}
}

// TestFiles holds the guide's list of files against what the package installs.
func TestFiles(t *testing.T) {
	files := section(t, read(t, guide), "FILES")
	var units []string
	found, _ := filepath.Glob(debian + "*service")
	for _, f := range found {
		name := strings.TrimPrefix(f, debian)
		if name == "service" {
			name = "skudonet-ce-cluster.service"
		}
		units = append(units, name)
	}
	documented := slices.DeleteFunc(marked(files, "Pa"), func(w string) bool { return !strings.HasSuffix(w, ".service") })
	differ(t, guide+": FILES", set(documented), set(units))
	for file := range strings.Lines(text(t, debian+"conffiles")) {
		if file = strings.TrimSpace(file); !slices.Contains(marked(files, "Pa"), file) {
			t.Errorf("%s: FILES says nothing of %s, which belongs to the admin", guide, file)
		}
	}
}

// elsewhere are the pages of others that ours refer to.
var elsewhere = strings.Fields(`arping(8) bash(1) cron(8) dmesg(1) jq(1) logrotate(8) lsattr(1) nft(8) ps(1) rsync(1)
	ssh(1) ssh_config(5) start-stop-daemon(8) sysctl(8) syslog(3) systemctl(1) systemd(1) tcpdump(8)`)

// TestReferences looks for what the pages refer to: pages, and sections of their own.
func TestReferences(t *testing.T) {
	var own, referred []string
	for _, page := range pages() {
		own = append(own, strings.TrimSuffix(page, filepath.Ext(page))+"("+filepath.Ext(page)[1:]+")")
	}
	reference := regexp.MustCompile(`(?m)^\.(?:.* )?Xr (\S+) (\d)`)
	for _, page := range pages() {
		text := read(t, page)
		for _, m := range reference.FindAllStringSubmatch(text, -1) {
			r := m[1] + "(" + m[2] + ")"
			if !slices.Contains(own, r) && !slices.Contains(elsewhere, r) {
				t.Errorf("%s refers to %s: is there such a page?", page, r)
			}
			referred = append(referred, r)
		}
		for _, m := range regexp.MustCompile(`(?m)^\.(?:.* )?Sx (.*?)(?: [,.;:)]+)*$`).FindAllStringSubmatch(text, -1) {
			if name := m[1]; !strings.Contains(text, "\n.Sh "+name+"\n") && !strings.Contains(text, "\n.Ss "+name+"\n") {
				t.Errorf("%s refers to a section %q, which it has not", page, name)
			}
		}
	}
	for _, r := range elsewhere {
		if !slices.Contains(referred, r) {
			t.Errorf("no page refers to %s any more", r)
		}
	}
	also := section(t, read(t, guide), "SEE ALSO")
	for _, page := range own {
		name, number, _ := strings.Cut(strings.TrimSuffix(page, ")"), "(")
		if page != "skudonet-ce-cluster(7)" && !strings.Contains(also, ".Xr "+name+" "+number) {
			t.Errorf("%s does not refer to %s", guide, page)
		}
	}
}

// TestNames holds the names that scripts and monitoring rely on against the code.
func TestNames(t *testing.T) {
	fields := func(of any) []string {
		var names []string
		var walk func(reflect.Type)
		walk = func(typ reflect.Type) {
			switch {
			case typ == reflect.TypeFor[status.Moment]():
				names = append(names, "time", "boot_s")
			case typ.Kind() == reflect.Pointer || typ.Kind() == reflect.Slice:
				walk(typ.Elem())
			case typ.Kind() == reflect.Struct:
				for f := range typ.Fields() {
					if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" {
						names = append(names, name)
						if name != "daemon" { // has a page of its own
							walk(f.Type)
						}
					}
				}
			}
		}
		walk(reflect.TypeOf(of))
		return set(names)
	}
	noKeys := func(words []string) []string {
		return slices.DeleteFunc(set(words), func(w string) bool { return strings.HasPrefix(w, "$") })
	}
	differ(t, "skd-vrrpd.8", noKeys(marked(read(t, "skd-vrrpd.8"), "Va")), fields(status.Daemon{}))
	differ(t, "skd-hooks.8", noKeys(marked(read(t, "skd-hooks.8"), "Va")), fields(status.Report{}))
	differ(t, "skd-inotify.8", noKeys(marked(read(t, "skd-inotify.8"), "Va")), fields(status.Replication{}))

	var told []string
	for _, v := range (hook.Environment{Interface: "x", ClusterIP: netip.IPv4Unspecified(), ClusterIP6: netip.IPv6Unspecified(), Config: "x", ConfigDir: "x",
		StatusFile: "x", RunDir: "x", StateDir: "x"}).For(hook.Start) {
		name, _, _ := strings.Cut(v, "=")
		told = append(told, name)
	}
	differ(t, "skd-hooks.8: ENVIRONMENT", set(marked(section(t, read(t, "skd-hooks.8"), "ENVIRONMENT"), "Ev")), set(told))
}

// source is all of the programs, constants joined.
func source(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, pattern := range []string{"../lib/*/*.go", "../skd-*/*.go"} {
		files, _ := filepath.Glob(pattern)
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			all.Write(b)
		}
	}
	text := regexp.MustCompile(`" \+\s*"`).ReplaceAllString(all.String(), "")
	return strings.ReplaceAll(text, `\"`, `"`)
}

// says tells whether a program has these words, or the two halves of them: an error that is wrapped, or a text that
// another package completes.
func says(text, words string) bool {
	const half = 6 // bytes, at least
	if strings.Contains(text, words) {
		return true
	}
	for i := half; i <= len(words)-half; i++ {
		if words[i] == ' ' && strings.Contains(text, words[:i]) && strings.Contains(text, words[i+1:]) {
			return true
		}
	}
	return false
}

// TestDiagnostics looks for each message in the programs, so that a reader who
// searches a page for what the log says finds it.
func TestDiagnostics(t *testing.T) {
	text := source(t)
	for _, page := range pages() {
		name := "DIAGNOSTICS"
		if page == guide {
			name = "TROUBLESHOOTING"
		}
		for line := range strings.Lines(section(t, read(t, page), name)) {
			message, ok := strings.CutPrefix(strings.TrimSpace(line), ".It Sy ")
			if !ok {
				continue
			}
			for part := range strings.SplitSeq(message, "...") {
				// What is put between the parts may be a constant or an argument.
				if !says(text, strings.Trim(part, ": ")) {
					t.Errorf("%s: %q: no program says %q", page, message, part)
				}
			}
		}
	}

	var documented []string
	refused := section(t, read(t, "skd-vrrpd.8"), "DIAGNOSTICS")
	for line := range strings.Lines(refused) {
		if strings.HasPrefix(line, ".It Cm ") {
			documented = append(documented, marked(line, "Cm")...)
		}
	}
	reasons := []string{"rival"}
	for file, pattern := range map[string]string{
		"../lib/vrrp/errors.go": `\{Err\w+, +"([a-z0-9-]+)"\}`, "../lib/auth/auth.go": `\{Err\w+, +"([a-z0-9-]+)"\}`,
		"../lib/carp/carp.go":     `\{Err\w+, +"([a-z0-9-]+)"\}`,
		"../lib/vrouter/drops.go": `(?m)^\treason\w+ += "([a-z0-9-]+)"$`,
	} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(pattern).FindAllSubmatch(b, -1) {
			reasons = append(reasons, string(m[1]))
		}
	}
	reasons = set(reasons) // two codecs have some in common
	// The one refusal that is about what is sent.
	reasons = slices.DeleteFunc(reasons, func(r string) bool { return r == "bad-family" })
	differ(t, "Refused adverts", documented, reasons)
}

// messages collects what the replicator can say: the first words of each text
// that a Go file logs, or puts into an error with a remedy.
func messages(t *testing.T, file string) (all []string) {
	t.Helper()
	tree, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	// texts are the literals of an expression, those of format strings in pieces.
	texts := func(e ast.Expr) (found []string) {
		ast.Inspect(e, func(n ast.Node) bool {
			if l, ok := n.(*ast.BasicLit); ok && l.Kind == token.STRING {
				text, err := strconv.Unquote(l.Value)
				if err != nil {
					t.Fatal(err)
				}
				found = append(found, regexp.MustCompile(`%[a-z]|\$[0-9]`).Split(text, -1)...)
			}
			return true
		})
		return found
	}
	add := func(e ast.Expr) {
		longest := ""
		for _, text := range texts(e) {
			if text = strings.Trim(text, " :;,"); len(text) > len(longest) {
				longest = text
			}
		}
		if len(longest) > 5 {
			all = append(all, longest)
		}
	}
	// Where the text is, by the name of what has it.
	calls := map[string]int{"Advise": 1, "Set": 1, "Info": 0, "Warn": 0, "problem": 0}
	ast.Inspect(tree, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CallExpr:
			if s, ok := n.Fun.(*ast.SelectorExpr); ok {
				if at, ok := calls[s.Sel.Name]; ok && at < len(n.Args) {
					add(n.Args[at])
				}
			}
		case *ast.CompositeLit:
			name, _ := n.Type.(*ast.Ident)
			for i, e := range n.Elts {
				kv, keyed := e.(*ast.KeyValueExpr)
				switch {
				case keyed && fmt.Sprint(kv.Key) == "Text" && name != nil && (name.Name == "Error" || name.Name == "Failure"):
					add(kv.Value)
				case !keyed && i == 0 && name != nil && name.Name == "Trouble":
					add(e)
				}
			}
		case *ast.AssignStmt: // e.Text = …
			for i, l := range n.Lhs {
				if s, ok := l.(*ast.SelectorExpr); ok && s.Sel.Name == "Text" && i < len(n.Rhs) {
					add(n.Rhs[i])
				}
			}
		}
		return true
	})
	return all
}

// TestReplicatorsMessages is the other way round: what the replicator says is in
// its page.
func TestReplicatorsMessages(t *testing.T) {
	page := section(t, read(t, "skd-inotify.8"), "DIAGNOSTICS")
	files := []string{"../lib/status/replicator.go"}
	for _, pattern := range []string{"../lib/mirror/*.go", "../lib/reign/*.go", "../lib/remote/*.go", "../lib/rsync/*.go", "../skd-inotify/*.go"} {
		found, _ := filepath.Glob(pattern)
		files = append(files, found...)
	}
	var all []string
	for _, file := range files {
		if !strings.HasSuffix(file, "_test.go") {
			all = append(all, messages(t, file)...)
		}
	}
	// What rsync's errors mean is in tables.
	b, err := os.ReadFile("../lib/rsync/explain.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range []string{`(?m)^\t\t"([a-zA-Z' ]{6,}).*",$`, `(?m)^\t(?:[0-9]+|syscall\.\w+): +\{"([a-zA-Z/' ]{6,})`} {
		for _, m := range regexp.MustCompile(table).FindAllSubmatch(b, -1) {
			all = append(all, string(m[1]))
		}
	}
	if len(all) < 80 {
		t.Fatalf("found only %d messages: %q", len(all), all)
	}
	const first = 30 // bytes; a page may leave out the rest
	for _, message := range all {
		if !strings.Contains(page, strings.TrimSpace(message[:min(first, len(message))])) {
			t.Errorf("skd-inotify.8 says nothing of %q", message)
		}
	}
}
