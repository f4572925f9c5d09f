// Package fileset decides which paths are replicated: all, but for what the two
// nodes' $exclude name and what belongs to each node itself. Rules and patterns
// mean what the FILTER RULES of rsync(1) say, so that the replicator's own walk
// and a plain rsync agree. Nothing here reads a file or a clock.
//
// Paths are relative to the tree's top, clean, "/"-separated, raw bytes.
package fileset

import (
	"slices"
	"strings"
)

// nodeDir is the directory at the top that is each node's own.
const nodeDir = "local"

// Names of directories that stand beside a tree, or in it where the tree is a
// file system of its own (package beside). They are part of no set.
const (
	TempName  = ".skudonet-ce-cluster.tmp" // for rsync's temporary files
	StageName = ".skudonet-ce-cluster.new" // for what is to be put into the tree (package journal)
)

// nodeConf tells whether name is if_*_conf without a colon: a NIC's or VLAN's
// own configuration. With a colon it is a virtual interface, which moves.
func nodeConf(name string) bool {
	return len(name) >= len(confPrefix+confSuffix) && strings.HasPrefix(name, confPrefix) &&
		strings.HasSuffix(name, confSuffix) && strings.IndexByte(name, ':') < 0
}

const (
	confPrefix = "if_"
	confSuffix = "_conf"
	nameMax    = 255 // bytes in a file name, on every Linux filesystem that counts
)

// Set is the effective file set. It does not change once it is made.
type Set struct {
	lists []List
	node  bool // what belongs to the node is left out
}

// New is the set of the configuration tree. A path is left out if any list
// excludes it, or if it belongs to the node: "local" at the top, whatever it
// is, and at any depth if_*_conf without a colon in the name, TempName and
// StageName.
func New(lists ...List) *Set {
	s := &Set{node: true}
	for _, l := range lists {
		if len(l.rules) > 0 && !slices.ContainsFunc(s.lists, l.equal) {
			s.lists = append(s.lists, l)
		}
	}
	return s
}

// Only is the set of a single file at the top.
func Only(name string) *Set {
	if strings.ContainsAny(name, "*?[") {
		name = strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(name)
	}
	return &Set{lists: []List{{rules: []rule{newRule(true, "/"+name), newRule(false, "*")}}}}
}

// Excluded tells whether the path or one of its parents is left out. The top,
// ".", never is.
func (s *Set) Excluded(path string, dir bool) bool {
	for i := 0; i < len(path); i++ {
		if path[i] == '/' && s.Skip(path[:i], true) {
			return true
		}
	}
	return s.Skip(path, dir)
}

// Skip is Excluded for a walk that has not entered an excluded directory: it
// looks at the path itself.
func (s *Set) Skip(path string, dir bool) bool {
	if path == "." || path == "" {
		return false
	}
	name := path[strings.LastIndexByte(path, '/')+1:]
	if s.node && (path == nodeDir || name == TempName || name == StageName || nodeConf(name)) {
		return true
	}
	for i := range s.lists {
		if s.lists[i].excludes(path, dir) {
			return true
		}
	}
	return false
}

// Args is the set as options for a plain rsync of the whole tree with --delete.
// What is excluded is neither sent nor deleted on the receiver. There is one
// difference: where two different lists both include, a path that only one of
// them includes by an earlier rule may be left out, never the other way round.
func (s *Set) Args() []string {
	rules := union(s.lists)
	if s.node {
		rules = slices.Concat([]rule{newRule(false, "/"+nodeDir), newRule(false, TempName), newRule(false, StageName)}, s.nodeRules(rules))
	}
	args := make([]string, 0, len(rules))
	for _, r := range rules {
		sign := "- "
		if r.include {
			sign = "+ "
		}
		args = append(args, "--filter="+sign+r.text)
	}
	return args
}

// nodeRules adds the rules for the node's own files. Excludes may simply come
// first, in any order. But a user's include would let a NIC's file pass, and an
// include for the virtual interfaces in front of it would let pass what the
// user excludes. A pattern cannot say "no colon anywhere" but for a given
// length: so then there is one rule for each length that a name can have.
func (s *Set) nodeRules(rules []rule) []rule {
	if !slices.ContainsFunc(rules, func(r rule) bool { return r.include }) {
		return append(rules, newRule(true, confPrefix+"*:*"+confSuffix), newRule(false, confPrefix+"*"+confSuffix))
	}
	var first []rule
	for n := 0; n <= nameMax-len(confPrefix+confSuffix); n++ {
		first = append(first, newRule(false, confPrefix+strings.Repeat("[!:]", n)+confSuffix))
	}
	return append(first, rules...)
}

// union is one list that excludes what any of the lists does.
func union(lists []List) []rule {
	var all []rule
	for _, l := range lists {
		all = unite(all, l.rules)
	}
	return all
}

// unite keeps both orders and takes excludes first. Where includes meet, those
// that both have hold. The others of b are dropped then: without an include a
// list excludes more, not less.
func unite(a, b []rule) []rule {
	var out []rule
	for len(a) > 0 && len(b) > 0 {
		switch {
		case !a[0].include:
			out, a = append(out, a[0]), a[1:]
		case !b[0].include:
			out, b = append(out, b[0]), b[1:]
		default:
			n, m := includes(a), includes(b)
			var rest []rule
			for _, r := range a[:n] {
				if slices.ContainsFunc(b[:m], r.same) {
					out = append(out, r)
				} else {
					rest = append(rest, r)
				}
			}
			a, b = slices.Concat(rest, a[n:]), b[m:]
		}
	}
	return slices.Concat(out, a, b)
}

// includes counts the includes at the head.
func includes(rules []rule) int {
	for i, r := range rules {
		if !r.include {
			return i
		}
	}
	return len(rules)
}
