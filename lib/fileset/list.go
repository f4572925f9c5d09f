package fileset

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// maxPattern is what rsync takes for one pattern (its MAXPATHLEN), in bytes.
const maxPattern = 4095

// List is one $exclude: rules in rsync's order, of which the first that matches
// decides. The zero List leaves nothing out.
type List struct {
	rules []rule
}

// ParseList reads the value of $exclude: --exclude, --include (with "=" or the
// next word), --exclude-from, --include-from, and -f or --filter with plain "-",
// "+" and "!" rules. read gives the content of the files that are named. The
// notices tell what is ignored and why. The errors: an open quote, and a file
// that cannot be read, because without it too much would be replicated.
func ParseList(text string, read func(path string) ([]byte, error)) (List, []string, error) {
	words, err := Split(text)
	if err != nil {
		return List{}, nil, err
	}
	var l List
	var notices []string
	notice := func(format string, args ...any) { notices = append(notices, fmt.Sprintf(format, args...)) }
	for i := 0; i < len(words); i++ {
		word := words[i]
		name, value, hasValue := strings.Cut(word, "=")
		if !strings.HasPrefix(word, "--") && strings.HasPrefix(word, "-f") {
			name, value = "-f", strings.TrimPrefix(word[2:], "=")
			hasValue = len(word) > 2
		}
		switch name {
		case "--exclude", "--include", "--exclude-from", "--include-from", "--filter", "-f":
		default:
			if strings.HasPrefix(word, "-") {
				notice("%s: ignored: $exclude takes --exclude, --include, --exclude-from, --include-from and --filter", quote(word))
			} else {
				notice("%s: ignored: not an option; it is left out only behind --exclude", quote(word))
			}
			continue
		}
		if !hasValue {
			if i++; i == len(words) {
				notice("%s: ignored: its value is missing", name)
				break
			}
			value = words[i]
		}
		include := strings.HasPrefix(name, "--include")
		var why string
		switch name {
		case "--exclude", "--include":
			why = l.addPattern(include, value)
		case "--filter", "-f":
			why = l.addFilter(value)
		default:
			content, err := readFile(value, read)
			if err != nil {
				return List{}, nil, fmt.Errorf("%s %s: %w; make it readable, or take it out of $exclude", name, quote(value), err)
			}
			for _, line := range strings.FieldsFunc(string(content), func(r rune) bool { return r == '\n' || r == '\r' }) {
				if line[0] == '#' || line[0] == ';' {
					continue
				}
				if why := l.addPattern(include, line); why != "" {
					notice("%s %s: %s: ignored: %s", name, quote(value), quote(line), why)
				}
			}
		}
		if why != "" {
			notice("%s %s: ignored: %s", name, quote(value), why)
		}
	}
	return l, notices, nil
}

func readFile(path string, read func(string) ([]byte, error)) ([]byte, error) {
	if path == "-" || path == "" || read == nil {
		return nil, errors.New("not a file that can be read here")
	}
	return read(path)
}

// addPattern takes the value of --exclude or --include, which may begin with
// "- " or "+ " and then means that. It returns why it is ignored, or "".
func (l *List) addPattern(include bool, p string) string {
	switch {
	case p == "!":
		l.rules = nil
		return ""
	case strings.HasPrefix(p, "- "):
		include, p = false, p[2:]
	case strings.HasPrefix(p, "+ "):
		include, p = true, p[2:]
	}
	return l.add(include, p)
}

// addFilter takes a filter rule.
func (l *List) addFilter(text string) string {
	if text == "!" || text == "clear" {
		l.rules = nil
		return ""
	}
	for _, f := range []struct {
		prefix  string
		include bool
	}{{"-", false}, {"exclude", false}, {"+", true}, {"include", true}} {
		rest, ok := strings.CutPrefix(text, f.prefix)
		if ok && rest != "" && (rest[0] == ' ' || rest[0] == '_') {
			return l.add(f.include, rest[1:])
		}
	}
	return `only "- PATTERN", "+ PATTERN" and "!" are understood`
}

func (l *List) add(include bool, p string) string {
	switch {
	case p == "":
		return "the pattern is empty"
	case len(p) > maxPattern:
		return fmt.Sprintf("the pattern is longer than %d bytes", maxPattern)
	case strings.IndexByte(p, 0) >= 0:
		return "there is a NUL byte in it"
	}
	l.rules = append(l.rules, newRule(include, p))
	return ""
}

// excludes tells what the first rule that matches says about the path itself.
func (l *List) excludes(path string, dir bool) bool {
	for i := range l.rules {
		if l.rules[i].matches(path, dir) {
			return !l.rules[i].include
		}
	}
	return false
}

func (l List) equal(m List) bool {
	return slices.EqualFunc(l.rules, m.rules, rule.same)
}

func (r rule) same(s rule) bool { return r.include == s.include && r.text == s.text }

// quote shows a foreign word so that it cannot break a line of the log.
func quote(s string) string {
	const most = 80
	if len(s) > most {
		s = s[:most] + "…"
	}
	if q := fmt.Sprintf("%q", s); s == "" || q != `"`+s+`"` {
		return q
	}
	return s
}
