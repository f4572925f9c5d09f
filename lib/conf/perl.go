package conf

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync"
)

// literal is what one Perl literal says.
type literal struct {
	value string
	at    bool // holds an @ that Perl would have taken for an array
}

var (
	// Numbers whose text in Perl is certain: no octal, no hex, no v-string
	// (192.168.1.1 without quotes is four characters), few enough digits.
	bareNumber = later(`^(?:(?:-?[1-9][0-9]{0,17}|0)(?:\.[0-9]{0,15})?|\.[0-9]{1,15})$`)
	bareWord   = later(`^(?:true|false|yes|no)$`)
	identifier = later(`^[A-Za-z_][A-Za-z0-9_]*`)
	// Inside a string Perl reads packages too, also by the old separator:
	// "$interface's" is the variable s of the package interface.
	qualified = later(`^[A-Za-z_][A-Za-z0-9_]*(?:::[A-Za-z0-9_]*|'[A-Za-z_][A-Za-z0-9_]*)*`)
	braced    = later(`^\{\s*([A-Za-z_][A-Za-z0-9_]*)\s*\}`)
	hexBraces = later(`^\{\s*([0-9A-Fa-f]{1,8})\s*\}`)
	hexPlain  = later(`^[0-9A-Fa-f]{1,2}`)
	octal     = later(`^[0-7]{1,3}`)
)

// later compiles a pattern when it is first needed. Programs that read no
// configuration start faster then.
func later(pattern string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(pattern) })
}

var pairs = map[byte]byte{'(': ')', '[': ']', '{': '}', '<': '>', '|': '|', '/': '/', '!': '!', '~': '~'}

// parseLiteral reads the string or number at the start of s and returns what
// stands behind it. lookup gives the value of a variable named in a string. No
// error tells anything of what is between the quotes, except through lookup.
func parseLiteral(s string, lookup func(name string) (string, error)) (literal, string, error) {
	l := lexer{rest: s, lookup: lookup}
	var err error
	switch {
	case strings.HasPrefix(s, `"`):
		err = l.quoted(1, '"', '"', true)
	case strings.HasPrefix(s, "'"):
		err = l.quoted(1, '\'', '\'', false)
	case len(s) > 2 && s[:2] == "qq" && pairs[s[2]] != 0:
		err = l.quoted(3, s[2], pairs[s[2]], true)
	case len(s) > 1 && s[0] == 'q' && pairs[s[1]] != 0:
		err = l.quoted(2, s[1], pairs[s[1]], false)
	default:
		err = l.bare()
	}
	return literal{string(l.value), l.at}, l.rest, err
}

type lexer struct {
	rest   string
	value  []byte
	at     bool
	lookup func(name string) (string, error)
}

// bare reads a value without quotes.
func (l *lexer) bare() error {
	word := l.rest
	if end := strings.IndexAny(word, " \t;#"); end >= 0 {
		word = word[:end]
	}
	switch {
	case bareWord().MatchString(word), bareNumber().MatchString(word) && !strings.Contains(word, "."):
		l.value = []byte(word)
	case bareNumber().MatchString(word):
		// Perl shows a fraction with %.15g: 1.50 is "1.5".
		f, _ := strconv.ParseFloat(word, 64) // the pattern lets no other text through
		l.value = strconv.AppendFloat(nil, f, 'g', 15, 64)
	default:
		return errors.New(`want the value in straight quotes, "…" or '…'`)
	}
	l.rest = l.rest[len(word):]
	return nil
}

// quoted reads a string after the first skip bytes, which open it.
func (l *lexer) quoted(skip int, open, end byte, interpolate bool) error {
	l.rest = l.rest[skip:]
	for depth := 0; l.rest != ""; {
		if len(l.value) > maxValue {
			return fmt.Errorf("longer than %d bytes", maxValue)
		}
		c := l.rest[0]
		l.rest = l.rest[1:]
		switch {
		case c == end && depth == 0:
			return nil
		case c == '\\' && l.rest != "":
			if !interpolate {
				l.backslash(open, end)
			} else if err := l.escape(); err != nil {
				return err
			}
			continue
		case c == '$' && interpolate:
			if err := l.variable(); err != nil {
				return err
			}
			continue
		case c == '@' && interpolate:
			l.at = true
		case c == end:
			depth--
		case c == open:
			depth++
		}
		l.value = append(l.value, c)
	}
	return fmt.Errorf("the closing %c is missing on this line", end)
}

// backslash reads what follows \ in a string that does not interpolate.
func (l *lexer) backslash(open, end byte) {
	c := l.rest[0]
	if c != '\\' && c != open && c != end {
		l.value = append(l.value, '\\')
	}
	l.value = append(l.value, c)
	l.rest = l.rest[1:]
}

// escape reads what follows \ in a string that interpolates. A character up to
// \xFF is a byte, as in Perl, so that "\xc3\xa9" is é; above that it is UTF-8.
func (l *lexer) escape() error {
	c := l.rest[0]
	l.rest = l.rest[1:]
	if i := strings.IndexByte("ntrfbae", c); i >= 0 {
		l.value = append(l.value, "\n\t\r\f\b\a\x1b"[i])
		return nil
	}
	var digits string
	base := 16
	switch {
	case c == 'x' && hexBraces().MatchString(l.rest):
		m := hexBraces().FindStringSubmatch(l.rest)
		digits, l.rest = m[1], l.rest[len(m[0]):]
	case c == 'x' && hexPlain().MatchString(l.rest):
		digits = hexPlain().FindString(l.rest)
		l.rest = l.rest[len(digits):]
	case c == 'x':
		return errors.New(`\x without a hexadecimal number`)
	case '0' <= c && c <= '7':
		base = 8
		digits = octal().FindString(string(c) + l.rest)
		l.rest = l.rest[len(digits)-1:]
	case strings.IndexByte("luLUQEFNoc", c) >= 0:
		return errors.New(`an escape that is not read here (\l \u \L \U \Q \E \F \N \o \c): write the characters themselves, \\ for a backslash`)
	default:
		l.value = append(l.value, c)
		return nil
	}
	n, err := strconv.ParseUint(digits, base, 32)
	switch {
	case err != nil || n > 0x10ffff || 0xd800 <= n && n < 0xe000:
		return errors.New(`\x with a number that is no character`)
	case n > 0xff:
		l.value = append(l.value, string(rune(n))...)
	default:
		l.value = append(l.value, byte(n))
	}
	return nil
}

// variable reads what follows $ in a string that interpolates.
func (l *lexer) variable() error {
	var name string
	if m := braced().FindStringSubmatch(l.rest); m != nil {
		name, l.rest = m[1], l.rest[len(m[0]):]
	} else if name = qualified().FindString(l.rest); name == "" {
		return errors.New(`a $ that begins no name: write \$, or use single quotes`)
	} else {
		l.rest = l.rest[len(name):]
		if element := strings.TrimPrefix(l.rest, "->"); element != "" && (element[0] == '[' || element[0] == '{') {
			return errors.New(`a name followed by [ or {, to Perl the element of an array or hash: write ${name} before it, or \$ for the character`)
		}
	}
	v, err := l.lookup(name)
	l.value = append(l.value, v...)
	return err
}
