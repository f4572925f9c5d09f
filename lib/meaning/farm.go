package meaning

import (
	"bytes"
	"encoding/json"
	"slices"
	"unicode/utf8"
)

// Where in the farm's file the walk is.
type place int

const (
	elsewhere place = iota
	top             // the object that everything is in
	farms           // its "farms"
	farm            // one of them
	backends        // its "backends"
	backend         // one of them
)

// member is the place of an object's member.
func (p place) member(key string) place {
	switch {
	case p == top && key == "farms":
		return farms
	case p == farm && key == "backends":
		return backends
	}
	return elsewhere
}

// element is the place of an array's elements.
func (p place) element() place {
	switch p {
	case farms:
		return farm
	case backends:
		return backend
	}
	return elsewhere
}

// normalValue is a member's value, or what stands for those that come and go by themselves.
func (p place) normalValue(key string, value []byte) []byte {
	text := string(value)
	switch {
	case p == backend && key == "state" && (text == `"down"` || text == `"available"` || text == `"config_error"`),
		p == farm && key == "state" && text == `"config_error"`:
		return []byte(`"up"`)
	case p == farm && key == "priority" && len(text) > 2 && text[0] == '"' && isNumber(value[1:len(value)-1]):
		return []byte(`"1"`)
	}
	return value
}

// deepest is how far objects and arrays may be in each other; those of a farm are four deep.
const deepest = 16

// normalFarm is an L4 farm's JSON with its members in order and without white
// space; every value but those of normalValue is what it was, letter by letter.
// It is false for what is no JSON, which has to be UTF-8 (RFC 8259 section 8.1),
// or not clear: where a key is there twice or is written with escapes.
func normalFarm(content []byte) (normal []byte, ok bool) {
	if !utf8.Valid(content) || !json.Valid(content) {
		return nil, false
	}
	w := walk{rest: content, out: make([]byte, 0, len(content))}
	ok = w.value(top, 0)
	return w.out, ok
}

// walk goes through valid JSON and writes it again.
type walk struct{ rest, out []byte }

func (w *walk) value(at place, depth int) (ok bool) {
	if depth > deepest {
		return false
	}
	switch w.next() {
	case '{':
		return w.object(at, depth)
	case '[':
		return w.array(at, depth)
	}
	w.out = append(w.out, w.scalar()...)
	return true
}

// next is the first byte after white space.
func (w *walk) next() byte {
	w.rest = bytes.TrimLeft(w.rest, " \t\r\n")
	return w.rest[0]
}

// scalar takes a string with its quotes, a number or a word.
func (w *walk) scalar() (text []byte) {
	end := 1
	if w.rest[0] == '"' {
		for ; w.rest[end] != '"'; end++ {
			if w.rest[end] == '\\' {
				end++
			}
		}
		end++
	} else {
		for end < len(w.rest) && bytes.IndexByte([]byte(",]} \t\r\n"), w.rest[end]) < 0 {
			end++
		}
	}
	text, w.rest = w.rest[:end], w.rest[end:]
	return text
}

// member is one of an object, as it is to be written.
type member struct{ key, text []byte }

func (w *walk) object(at place, depth int) (ok bool) {
	w.rest = w.rest[1:]
	var members []member
	begin := len(w.out)
	for w.next() != '}' {
		if w.rest[0] == ',' {
			w.rest = w.rest[1:]
			w.next()
		}
		quoted := w.scalar()
		if bytes.IndexByte(quoted, '\\') >= 0 {
			return false
		}
		key := string(quoted[1 : len(quoted)-1])
		w.next()
		w.rest = w.rest[1:] // the colon
		from := len(w.out)
		if !w.value(at.member(key), depth+1) {
			return false
		}
		text := at.normalValue(key, w.out[from:])
		members = append(members, member{quoted, slices.Clone(text)})
		w.out = w.out[:from]
	}
	w.rest = w.rest[1:]
	slices.SortFunc(members, func(a, b member) int { return bytes.Compare(a.key, b.key) })
	w.out = append(w.out[:begin], '{')
	for i, m := range members {
		if i > 0 {
			if bytes.Equal(m.key, members[i-1].key) {
				return false
			}
			w.out = append(w.out, ',')
		}
		w.out = append(append(append(w.out, m.key...), ':'), m.text...)
	}
	w.out = append(w.out, '}')
	return true
}

func (w *walk) array(at place, depth int) (ok bool) {
	w.rest = w.rest[1:]
	w.out = append(w.out, '[')
	for first := true; w.next() != ']'; first = false {
		if !first {
			w.out = append(w.out, ',')
			w.rest = w.rest[1:]
		}
		if !w.value(at.element(), depth+1) {
			return false
		}
	}
	w.rest = w.rest[1:]
	w.out = append(w.out, ']')
	return true
}
