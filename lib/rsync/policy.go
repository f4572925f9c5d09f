package rsync

import (
	"fmt"
	"slices"
	"strings"

	"github.com/skudonet/skudonet-ce-cluster/lib/fileset"
)

// Policy is what is left of $rsync_args once it may not harm the mirror.
type Policy struct {
	Args    []string // options for rsync, each one word
	Notices []string // what is ignored and why, one sentence each: "-u: would leave …"
	Direct  bool     // keeps what a copy does not carry (ACLs, hard links …): rsync must read the tree itself
}

// ParseArgs reads the value of $rsync_args. What the replicator does anyway
// (-a, --delete) and mere verbosity are dropped without a word. Known harmless
// options are kept, in their order. All others are dropped with a notice. The
// error is a quote that is never closed.
func ParseArgs(text string) (Policy, error) {
	words, err := fileset.Split(text)
	if err != nil {
		return Policy{}, err
	}
	var p Policy
	for i := 0; i < len(words); i++ {
		word := words[i]
		// next gives an option its value: the rest of its word, or the next word.
		next := func(name, rest string, has bool) (string, bool) {
			if has {
				return rest, true
			}
			if i+1 < len(words) {
				i++
				return words[i], true
			}
			p.notice(name, "its value is missing")
			return "", false
		}
		switch {
		case word == "--":
			for _, w := range words[i+1:] {
				p.notice(show(w), noOption)
			}
			return p, nil
		case len(word) < 2 || word[0] != '-':
			p.notice(show(word), noOption)
		case word[1] == '-':
			name, value, has := strings.Cut(word[2:], "=")
			if base, no := strings.CutPrefix(name, "no-"); no && !has {
				p.negated(base)
				continue
			}
			o := find(name)
			switch {
			case o == nil || len(name) == 1:
				p.notice("--"+show(name), notKnown)
			case !o.value && has:
				p.notice("--"+name, "takes no value")
			case o.value:
				if value, ok := next("--"+name, value, has); ok {
					p.take(o, "--"+name, value)
				}
			default:
				p.take(o, "--"+name, "")
			}
		default:
			for j, c := range []byte(word[1:]) {
				name := "-" + string(rune(c))
				o := find(name[1:])
				if o == nil {
					p.notice(show(name), notKnown)
					continue
				}
				if !o.value {
					p.take(o, name, "")
					continue
				}
				rest := word[j+2:]
				if value, ok := next(name, strings.TrimPrefix(rest, "="), rest != ""); ok {
					p.take(o, name, value)
				}
				break
			}
		}
	}
	return p, nil
}

// take decides about one option as it was written.
func (p *Policy) take(o *option, written, value string) {
	switch {
	case o.why != "":
		p.notice(written, o.why)
	case !o.keep && !o.direct:
	case !o.value:
		p.Args = append(p.Args, written)
		p.Direct = p.Direct || o.direct
	case value == "":
		p.notice(written, "its value is missing")
	case o == find("log-file") && value[0] != '/':
		p.notice(written, "wants an absolute path, because rsync runs in a directory of the replicator")
	default:
		names := strings.Fields(o.names)
		if len(written) > 2 {
			p.Args = append(p.Args, written+"="+value)
		} else {
			p.Args = append(p.Args, "--"+names[len(names)-1]+"="+value)
		}
	}
}

// negated decides about --no-NAME.
func (p *Policy) negated(name string) {
	written := "--no-" + name
	o := find(name)
	switch {
	case o == nil:
		p.notice(show(written), notKnown)
	case o.without != "":
		p.notice(written, o.without)
	case slices.Contains(strings.Fields(canBeNegated), name):
		p.Args = append(p.Args, written)
	}
}

func (p *Policy) notice(name, why string) {
	if n := name + ": " + why; !slices.Contains(p.Notices, n) {
		p.Notices = append(p.Notices, n)
	}
}

// show makes a foreign word fit for one line of the log.
func show(word string) string {
	const most = 80
	if len(word) > most {
		word = word[:most] + "…"
	}
	if q := fmt.Sprintf("%q", word); q != `"`+word+`"` || word == "" {
		return q
	}
	return word
}

func find(name string) *option { return byName[name] }
