package conf

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/skudonet/skudonet-ce-cluster/lib/carp"
)

// Parse reads the text of a configuration file. path is kept in the Config, and
// its last element stands in every message. When the error is not nil it is
// Errors with all that is wrong, and the Config is empty; the notices are there
// in either case, in the order of the lines.
func Parse(path string, data []byte) (Config, []Notice, error) {
	cfg, notices, errs := parse(path, data)
	if len(errs) > 0 {
		return Config{}, notices, errs
	}
	return cfg, notices, nil
}

// parse is Parse, with what is right of a file that has errors.
func parse(path string, data []byte) (Config, []Notice, Errors) {
	cfg := Config{Path: path}
	p := &parser{
		file:  filepath.Base(path),
		table: table(&cfg),
		known: map[string]Key{},
		vars:  map[string]*assignment{},
	}
	for _, k := range p.table {
		p.known[k.Name] = k.Key
	}
	if i := bytes.IndexByte(data, 0); i >= 0 {
		line := 1 + bytes.Count(data[:i], []byte("\n"))
		cfg, _, _ := parse(path, nil)
		return cfg, nil, Errors{{File: p.file, Line: line, Text: "a NUL byte: not a text file, or one saved as UTF-16: save it as UTF-8"}}
	}
	for text := range strings.Lines(strings.TrimPrefix(string(data), "\ufeff")) {
		p.line++
		p.readLine(strings.TrimRight(text, "\r\n"))
	}
	p.fill()
	p.compare(&cfg)
	p.carryable(&cfg)
	p.advise(&cfg)
	slices.SortStableFunc(p.notices, func(a, b Notice) int { return byLine(a.Line, b.Line) })
	slices.SortStableFunc(p.errs, func(a, b Error) int { return byLine(a.Line, b.Line) })
	cfg.interfaceLine, cfg.localIPLine = p.lineOf("interface"), p.lineOf("local_ip")
	return cfg, p.notices, p.errs
}

// byLine puts what has no line last.
func byLine(a, b int) int { return cmp.Compare(uint(a-1), uint(b-1)) }

type parser struct {
	file  string
	table []key
	known map[string]Key

	line    int
	open    *assignment            // lacks its semicolon, which only the last statement may
	vars    map[string]*assignment // the assignment that holds for each name, so far
	order   []*assignment
	hidden  []string // values of passwords, which no message may show
	errs    Errors
	notices []Notice
}

type assignment struct {
	name  string
	line  int
	value string
	ok    bool // false: the reason is in errs
	again bool // not the first one of its name
	used  bool // named in a later value
}

func (p *parser) fail(line int, key, text string) {
	p.errs = append(p.errs, Error{File: p.file, Line: line, Key: key, Text: text})
}

func (p *parser) note(line int, key, text string) {
	p.notices = append(p.notices, Notice{line, key, text, p.file})
}

func (p *parser) lineOf(name string) int {
	if a := p.vars[name]; a != nil {
		return a.line
	}
	return 0
}

// show quotes a value for a message.
func (p *parser) show(value string) string {
	if slices.ContainsFunc(p.hidden, func(h string) bool { return strings.Contains(value, h) }) {
		return mask
	}
	if cut := 64; len(value) > cut {
		for !utf8.RuneStart(value[cut]) && cut > 60 {
			cut--
		}
		return strconv.Quote(value[:cut]) + "…"
	}
	return strconv.Quote(value)
}

// readLine reads the statements of one line. It gives the line up at the first
// error: what follows cannot be told from the inside of a string.
func (p *parser) readLine(s string) {
	for {
		s = strings.TrimLeft(s, " \t\f\v")
		switch {
		case s == "" || s[0] == '#':
			return
		case s[0] == ';':
			s, p.open = s[1:], nil
			continue
		case p.open != nil:
			p.fail(p.open.line, p.open.name, "the ; at the end is missing")
			p.open = nil
		}
		var ok bool
		if s, ok = p.statement(s); !ok {
			return
		}
	}
}

// statement reads one statement at the start of s, up to its semicolon.
func (p *parser) statement(s string) (rest string, ok bool) {
	// The 1; that ends a file which Perl requires.
	if rest, ok := strings.CutPrefix(s, "1"); ok && isEnd(rest) {
		p.open = &assignment{line: p.line}
		return rest, true
	}
	for _, declare := range []string{"my", "our"} {
		if rest, ok := strings.CutPrefix(s, declare); ok && strings.TrimLeft(rest, " \t") != rest {
			s = strings.TrimLeft(rest, " \t")
			break
		}
	}
	name := ""
	if rest, ok := strings.CutPrefix(s, "$"); ok {
		name = identifier().FindString(rest)
	}
	if name == "" {
		p.fail(p.line, "", `want $name="value"; or a comment that starts with #`)
		return "", false
	}
	a := &assignment{name: name, line: p.line}
	if before := p.vars[name]; before != nil {
		a.again, a.used = true, before.used
		if _, known := p.known[name]; known {
			p.note(a.line, name, fmt.Sprintf("set again: line %d no longer counts", before.line))
		}
	}
	// Only now, and not before the value is read: it may name the old one.
	defer func() {
		p.vars[name] = a
		p.order = append(p.order, a)
	}()

	s, ok = strings.CutPrefix(strings.TrimLeft(s[1+len(name):], " \t"), "=")
	if !ok {
		p.fail(a.line, name, "want = after the name")
		return "", false
	}
	lit, rest, err := parseLiteral(strings.TrimLeft(s, " \t"), p.lookup(a))
	if err == nil && !isEnd(rest) {
		err = errors.New(`want ; after the value (a quote inside it is written \" or \')`)
	}
	if err == nil && strings.Contains(lit.value, "\x00") {
		err = errors.New("holds a NUL character")
	}
	if err != nil {
		if err != errReported {
			p.fail(a.line, name, err.Error())
		}
		return "", false
	}
	a.value, a.ok = lit.value, true
	if p.known[name].Secret && a.value != "" {
		p.hidden = append(p.hidden, a.value)
	}
	if lit.at {
		p.note(a.line, name, `@ is taken literally; Perl would see an array there: write \@, or use single quotes`)
	}
	if !utf8.ValidString(a.value) {
		p.note(a.line, name, "not UTF-8: its bytes are used as they stand, so have the same ones on both nodes")
	}
	p.open = a
	return rest, true
}

// isEnd tells whether nothing of a statement is left in s.
func isEnd(s string) bool {
	s = strings.TrimLeft(s, " \t\f\v")
	return s == "" || s[0] == ';' || s[0] == '#'
}

var errReported = errors.New("reported already")

// lookup gives the values of earlier assignments to the value of a. In a
// password even the name that is not found is part of what must not be shown.
func (p *parser) lookup(a *assignment) func(string) (string, error) {
	return func(name string) (string, error) {
		switch v := p.vars[name]; {
		case v != nil && v.ok:
			v.used = true
			return v.value, nil
		case v != nil:
			return "", errReported
		case p.known[a.name].Secret:
			return "", errors.New(`a $ begins a name that no earlier line sets: write \$, or use single quotes`)
		default:
			return "", fmt.Errorf(`$%s is not set on an earlier line (the character $ is written \$)`, name)
		}
	}
}

// fill gives every key its value or default, and says what became of the rest.
func (p *parser) fill() {
	var renamed []string
	first := 0
	for _, k := range p.table {
		a := p.vars[k.Name]
		if !k.Required {
			k.set(k.Default)
		}
		if a == nil {
			if k.Required {
				p.fail(0, k.Name, "not set: want "+k.want)
			}
			continue
		}
		if !a.ok {
			continue
		}
		value := a.value
		if k.path {
			var was bool
			if value, was = moved(value); was {
				renamed = append(renamed, "$"+k.Name)
				if first == 0 || a.line < first {
					first = a.line
				}
			}
		}
		err := k.set(value)
		switch a.ok = err == nil; err {
		case nil:
		case errRange:
			p.fail(a.line, k.Name, fmt.Sprintf("%s: want %s", p.show(value), k.want))
		default:
			p.fail(a.line, k.Name, fmt.Sprintf("%s: %v: want %s", p.show(value), err, k.want))
		}
	}
	if renamed != nil {
		p.note(first, "", "/usr/local/zevenet is now /usr/local/skudonet: changed for "+strings.Join(renamed, ", "))
	}
	if a := p.vars["ucarp"]; a != nil {
		p.note(a.line, "ucarp", "ignored: skd-vrrpd holds the election now")
	}
	for _, a := range p.order {
		if _, known := p.known[a.name]; known || a.again {
			continue
		}
		if p.vars[a.name].used {
			p.note(a.line, a.name, "unknown key, only used in the values that name it")
		} else {
			p.note(a.line, a.name, "unknown key, ignored")
		}
	}
}

// compare makes sure that the three addresses of a family are three, one that
// was refused being the zero Addr, that each key has the same families, and that
// UDP, which hosts of other networks can send too, is signed.
func (p *parser) compare(c *Config) {
	for _, f := range c.Families() {
		p.differ("local_ip", "remote_ip", f.LocalIP, f.RemoteIP, "the address of the other node")
		p.differ("local_ip", "cluster_ip", f.LocalIP, f.ClusterIP, "an address apart from those of the nodes")
		p.differ("remote_ip", "cluster_ip", f.RemoteIP, f.ClusterIP, "an address apart from those of the nodes")
		if f.LocalIP.IsValid() && f.RemoteIP.IsValid() && f.LocalIP.IsLinkLocalUnicast() != f.RemoteIP.IsLinkLocalUnicast() && f.LocalIP.Is6() {
			p.fail(p.lineOf("remote_ip"), "remote_ip", fmt.Sprintf("%s: want a link-local address where $local_ip is one, and none where it is none", p.show(p.vars["remote_ip"].value)))
		}
	}
	for _, k := range []struct {
		name          string
		first, second netip.Addr
	}{{"remote_ip", c.RemoteIP, c.Second.RemoteIP}, {"cluster_ip", c.ClusterIP, c.Second.ClusterIP}} {
		if have, want := families(k.first, k.second), families(c.LocalIP, c.Second.LocalIP); have != "" && want != "" && have != want {
			p.fail(p.lineOf(k.name), k.name, fmt.Sprintf("%s: want the same as in $local_ip, %s", p.show(p.vars[k.name].value), want))
		}
	}
	if password := p.vars["password"]; c.Transport == UDP && c.Password == "" && (password == nil || password.ok) {
		p.fail(p.lineOf("transport"), "transport", `"udp": want a $password with it, because hosts of any network can send to a UDP port`)
	}
}

// carryable makes sure that CARP, where it is spoken, can say what the file wants.
func (p *parser) carryable(c *Config) {
	if c.Protocol == VRRP || c.Protocol == "" {
		return
	}
	want := fmt.Sprintf("with $protocol %q", c.Protocol)
	if c.Protocol == Auto {
		want += `, or $protocol "vrrp" once both nodes are upgraded`
	}
	check := func(name string, s Secret) {
		if err := carp.CheckPassword(string(s)); err != nil && (p.vars[name] == nil || p.vars[name].ok) {
			p.fail(p.lineOf(name), name, fmt.Sprintf("%v: want another one %s", err, want))
		}
	}
	check("password", c.Password)
	if c.PasswordNext != "" {
		check("password_next", c.PasswordNext)
	}
	for _, k := range []struct {
		name          string
		first, second netip.Addr
	}{{"local_ip", c.LocalIP, c.Second.LocalIP}, {"remote_ip", c.RemoteIP, c.Second.RemoteIP}, {"cluster_ip", c.ClusterIP, c.Second.ClusterIP}} {
		if k.first.Is6() || k.second.IsValid() {
			p.fail(p.lineOf(k.name), k.name, fmt.Sprintf("%s: CARP is of IPv4, as ucarp has it: want an IPv4 address alone %s", p.show(p.vars[k.name].value), want))
			break // the others must have the same families
		}
	}
	if c.Transport != Multicast && c.Transport != "" {
		p.fail(p.lineOf("transport"), "transport", fmt.Sprintf(`%q: CARP is multicast: want "multicast" %s`, c.Transport, want))
	}
	if c.AdvertInterval%time.Second != 0 {
		p.fail(p.lineOf("advert_interval"), "advert_interval", fmt.Sprintf("%q: CARP counts whole seconds: want 1 to 40 %s",
			strconv.FormatFloat(c.AdvertInterval.Seconds(), 'f', -1, 64), want))
	}
}

func (p *parser) differ(a, b string, ofA, ofB netip.Addr, want string) {
	if !ofA.IsValid() || ofA != ofB {
		return
	}
	first, second := p.vars[a], p.vars[b]
	if first.line > second.line {
		first, second = second, first
	}
	p.fail(second.line, second.name, fmt.Sprintf("%s: the same as $%s: want %s", p.show(second.value), first.name, want))
}

// families says of which family the addresses of a key are, "" if there are none.
func families(first, second netip.Addr) string {
	switch {
	case !first.IsValid():
		return ""
	case second.IsValid():
		return "an IPv4 and an IPv6 address"
	case first.Is4():
		return "an IPv4 address"
	}
	return "an IPv6 address"
}

// advise says what works, but not well.
func (p *parser) advise(c *Config) {
	p.judge("password", c.Password)
	if c.PasswordNext != "" {
		p.judge("password_next", c.PasswordNext)
	}
	if c.AdvertInterval < 100*time.Millisecond {
		p.note(p.lineOf("advert_interval"), "advert_interval", "under 0.1 seconds a node that is only busy can count as dead")
	}
	if c.DeadRatio == 1 {
		p.note(p.lineOf("dead_ratio"), "dead_ratio", "a single lost advert makes the backup take over: 2 or more is advised")
	}
}

// judge warns of a password that protects little.
func (p *parser) judge(name string, s Secret) {
	text := ""
	switch {
	case p.vars[name] != nil && !p.vars[name].ok:
		return
	case s == "":
		text = "empty: adverts go unsigned, and any host in the network can take the addresses"
	case s == "secret":
		text = "that of the example, which everybody knows: choose your own, of 8 characters or more"
	case utf8.RuneCountInString(string(s)) < 8:
		text = "short enough to be guessed: choose one of 8 characters or more"
	default:
		return
	}
	p.note(p.lineOf(name), name, text)
}
