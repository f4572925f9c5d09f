package hook

import (
	"bytes"
	"fmt"
	"regexp"
	"strings"
	"time"
)

// What of a script's output is handed on: lines of maxLine bytes, burst of them
// at once and then perSecond.
const (
	maxLine   = 500
	burst     = 200
	perSecond = 10
)

// output cuts what is written to it into lines fit for a log.
type output struct {
	line    func(string)
	buf     []byte
	skip    bool // the rest of a line that was too long
	tokens  float64
	last    time.Time
	dropped int
}

func newOutput(line func(string)) *output {
	return &output{line: line, tokens: burst, last: time.Now()}
}

func (o *output) Write(b []byte) (int, error) {
	n := len(b)
	for len(b) > 0 {
		var part []byte
		end := false
		if i := bytes.IndexByte(b, '\n'); i >= 0 {
			part, b, end = b[:i], b[i+1:], true
		} else {
			part, b = b, nil
		}
		if room := maxLine - len(o.buf); !o.skip && len(part) > room {
			o.buf = append(o.buf, part[:room]...)
			o.flush("…")
			o.skip = true
		} else if !o.skip {
			o.buf = append(o.buf, part...)
		}
		if end {
			if !o.skip {
				o.flush("")
			}
			o.skip = false
		}
	}
	return n, nil
}

// finish hands on what no newline has ended.
func (o *output) finish() {
	o.flush("")
	o.report()
}

func (o *output) flush(more string) {
	text := clean(string(o.buf))
	o.buf = o.buf[:0]
	if text == "" {
		return
	}
	now := time.Now()
	o.tokens = min(burst, o.tokens+now.Sub(o.last).Seconds()*perSecond)
	o.last = now
	if o.tokens < 1 {
		o.dropped++
		return
	}
	o.tokens--
	o.report()
	o.line(text + more)
}

func (o *output) report() {
	if o.dropped > 0 {
		o.line(fmt.Sprintf("(%d lines not shown: too many at once)", o.dropped))
		o.dropped = 0
	}
}

// escapes are what programs write to colour a terminal.
var escapes = regexp.MustCompile(`\x1b(\[[0-9;?]*[@-~]|[@-Z\\-_])`)

// clean makes a line harmless for a log and a terminal.
func clean(s string) string {
	s = strings.ToValidUTF8(escapes.ReplaceAllString(s, ""), "?")
	s = strings.Map(func(c rune) rune {
		switch {
		case c == '\t':
			return ' '
		case c == '\r':
			return -1
		case c < ' ' || c >= 0x7f && c < 0xa0:
			return '?'
		}
		return c
	}, s)
	return strings.TrimRight(s, " ")
}
