package fileset

import "strings"

// rule is one include or exclude rule with its pattern, ready to match.
type rule struct {
	include bool
	text    string // as written

	pattern  string // without leading and trailing slash
	anchored bool   // a leading slash: from the top of the tree
	dirOnly  bool   // a trailing slash
	full     bool   // matched against the whole path, else against the base name
	elements int    // of the path's end that the pattern describes; 0: see any
	any      bool   // "**" inside: may begin after any slash
	prefix   bool   // "**" in front: may match the slash before the path too
	tree     bool   // "***" at the end: a directory and all below
	wild     []token
}

// token is one element of a wildcard pattern.
type token struct {
	kind tokenKind
	set  byteSet // of kind one
}

type tokenKind byte

const (
	one     tokenKind = iota // a byte of the set
	star                     // any number of bytes, no slash
	anyStar                  // any number of bytes
)

type byteSet [4]uint64

func (s *byteSet) add(c byte)      { s[c>>6] |= 1 << (c & 63) }
func (s *byteSet) remove(c byte)   { s[c>>6] &^= 1 << (c & 63) }
func (s *byteSet) has(c byte) bool { return s[c>>6]&(1<<(c&63)) != 0 }

func (s *byteSet) invert() {
	for i := range s {
		s[i] = ^s[i]
	}
}

// newRule reads a pattern as rsync does, which looks for its special forms in
// the plain text: escaped stars count for what a pattern is matched against.
func newRule(include bool, text string) rule {
	r := rule{include: include, text: text, pattern: text}
	if len(text) > 1 && strings.HasSuffix(text, "/") {
		r.dirOnly = true
		r.pattern = text[:len(text)-1]
	}
	slashes := strings.Count(r.pattern, "/")
	wild := strings.ContainsAny(r.pattern, "*?[")
	crosses := wild && strings.Contains(r.pattern, "**")
	r.full = slashes > 0 || crosses
	r.prefix = crosses && strings.HasPrefix(r.pattern, "**")
	r.tree = crosses && strings.HasSuffix(r.pattern, "***")
	r.pattern, r.anchored = strings.CutPrefix(r.pattern, "/")
	if !r.anchored {
		r.any = crosses && !r.prefix
		if slashes > 0 && !crosses {
			r.elements = slashes + 1
		}
	}
	if wild {
		r.wild = compile(r.pattern)
	}
	return r
}

// matches tells whether the rule's pattern matches a clean relative path.
func (r *rule) matches(path string, dir bool) bool {
	if r.dirOnly && !dir {
		return false
	}
	if !r.full {
		path = path[strings.LastIndexByte(path, '/')+1:]
	}
	if r.wild == nil {
		if r.anchored {
			return path == r.pattern
		}
		rest, ok := strings.CutSuffix(path, r.pattern)
		return ok && (rest == "" || strings.HasSuffix(rest, "/"))
	}
	if r.elements > 0 {
		at := len(path)
		for n := r.elements; n > 0; n-- {
			if at < 0 {
				return false // fewer elements than the pattern has
			}
			at = strings.LastIndexByte(path[:at], '/')
		}
		path = path[at+1:]
	}
	if r.prefix {
		path = "/" + path
	}
	if r.tree && dir {
		path += "/"
	}
	if wildMatch(r.wild, path) {
		return true
	}
	if r.any {
		for i := 0; i < len(path); i++ {
			if path[i] == '/' && wildMatch(r.wild, path[i+1:]) {
				return true
			}
		}
	}
	return false
}

// wildMatch tries the last star of each kind again, one byte longer, when the
// rest does not match. Going further back than that cannot help: what stands
// between two stars is found at its first place.
func wildMatch(p []token, s string) bool {
	type place struct{ p, s int }
	none := place{-1, -1}
	lastStar, lastAny := none, none
	i, j := 0, 0
	for {
		switch {
		case i < len(p) && p[i].kind == anyStar:
			i++
			lastStar, lastAny = none, place{i, j}
			continue
		case i < len(p) && p[i].kind == star:
			i++
			lastStar = place{i, j}
			continue
		case i < len(p) && j < len(s) && p[i].set.has(s[j]):
			i, j = i+1, j+1
			continue
		case i == len(p) && j == len(s):
			return true
		}
		if lastStar != none && lastStar.s < len(s) && s[lastStar.s] != '/' {
			lastStar.s++
			i, j = lastStar.p, lastStar.s
			continue
		}
		if lastAny == none || lastAny.s == len(s) {
			return false
		}
		lastAny.s++
		lastStar = none
		i, j = lastAny.p, lastAny.s
	}
}

// compile makes tokens of a pattern that has a wildcard. What is malformed (an
// open bracket, an unknown class, a last backslash) matches nothing.
func compile(p string) []token {
	var tokens []token
	never := token{kind: one}
	for i := 0; i < len(p); i++ {
		t := token{kind: one}
		switch p[i] {
		case '*':
			t.kind = star
			for i+1 < len(p) && p[i+1] == '*' {
				i++
				t.kind = anyStar
			}
		case '?':
			t.set.add('/')
			t.set.invert()
		case '[':
			n := 0
			if t.set, n = class(p[i+1:]); n < 0 {
				return append(tokens, never)
			}
			i += n
		case '\\':
			if i++; i == len(p) {
				return append(tokens, never)
			}
			t.set.add(p[i])
		default:
			t.set.add(p[i])
		}
		tokens = append(tokens, t)
	}
	return tokens
}

// class reads what follows an opening bracket, and returns its length with the
// closing one, or -1 if it is malformed.
func class(p string) (set byteSet, n int) {
	at := func(i int) byte { // 0 past the end; patterns have no NUL
		if i < len(p) {
			return p[i]
		}
		return 0
	}
	i := 0
	negated := at(0) == '!' || at(0) == '^'
	if negated {
		i++
	}
	var prev byte // what a range may begin with
	for first := true; first || at(i) != ']'; first = false {
		c := at(i)
		switch {
		case c == 0:
			return set, -1
		case c == '\\':
			i++
			if c = at(i); c == 0 {
				return set, -1
			}
			set.add(c)
		case c == '-' && prev != 0 && at(i+1) != 0 && at(i+1) != ']':
			i++
			if at(i) == '\\' {
				i++
			}
			last := at(i)
			if last == 0 {
				return set, -1
			}
			for b := int(prev); b <= int(last); b++ {
				set.add(byte(b))
			}
			c = 0
		case c == '[' && at(i+1) == ':':
			end := strings.IndexByte(p[i+2:], ']')
			if end < 0 {
				return set, -1
			}
			name, ok := strings.CutSuffix(p[i+2:i+2+end], ":")
			if !ok { // an ordinary bracket in a set
				set.add(c)
				break
			}
			in, known := classes[name]
			if !known {
				return set, -1
			}
			for b := byte(0); b < 128; b++ {
				if in(b) {
					set.add(b)
				}
			}
			i += 2 + end
			c = 0
		default:
			set.add(c)
		}
		prev = c
		i++
	}
	if negated {
		set.invert()
	}
	set.remove('/')
	return set, i + 1
}

// classes are C's, for ASCII: bytes above belong to none of them.
var classes = map[string]func(byte) bool{
	"alnum":  func(c byte) bool { return isAlpha(c) || isDigit(c) },
	"alpha":  isAlpha,
	"blank":  func(c byte) bool { return c == ' ' || c == '\t' },
	"cntrl":  func(c byte) bool { return c < 32 || c == 127 },
	"digit":  isDigit,
	"graph":  isGraph,
	"lower":  func(c byte) bool { return 'a' <= c && c <= 'z' },
	"print":  func(c byte) bool { return c == ' ' || isGraph(c) },
	"punct":  func(c byte) bool { return isGraph(c) && !isAlpha(c) && !isDigit(c) },
	"space":  func(c byte) bool { return c == ' ' || 9 <= c && c <= 13 },
	"upper":  func(c byte) bool { return 'A' <= c && c <= 'Z' },
	"xdigit": func(c byte) bool { return isDigit(c) || 'a' <= c|32 && c|32 <= 'f' },
}

func isAlpha(c byte) bool { return 'a' <= c|32 && c|32 <= 'z' }
func isDigit(c byte) bool { return '0' <= c && c <= '9' }
func isGraph(c byte) bool { return 32 < c && c < 127 }
