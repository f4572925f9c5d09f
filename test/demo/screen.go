package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/conf"
	"github.com/skudonet/skudonet-ce-cluster/test/lab"
)

// width of the screen, in columns. No line is longer.
const width = 100

// screen is where the story is told.
type screen struct {
	out     io.Writer
	colour  bool
	began   time.Time
	pending []event
}

func newScreen(f *os.File) *screen {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return &screen{out: f, began: time.Now(), colour: err == nil && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"}
}

// paint is one of the few colours.
type paint string

const (
	bold  paint = "1"
	faint paint = "2"
	green paint = "32"
	red   paint = "1;31"
)

func (s *screen) paint(p paint, text string) string {
	if !s.colour || text == "" {
		return text
	}
	return "\x1b[" + string(p) + "m" + text + "\x1b[0m"
}

func (s *screen) say(format string, args ...any) { fmt.Fprintf(s.out, format+"\n", args...) }

func (s *screen) begin() {
	s.began = time.Now()
	s.say("%s", s.paint(bold, "Skudonet CE cluster: two nodes, one address, one configuration"))
}

func (s *screen) picture(l *lab.Lab, c conf.Config, down time.Duration) {
	s.say("")
	s.say("  %-6s %s ──┐", l.LB1.Name, l.LB1.Addr(0))
	s.say("  %-6s %s ──┼── switch     one of them holds %s", l.LB2.Name, l.LB2.Addr(0), lab.ClusterIP)
	s.say("  %-6s %s ──┘     asks there every millisecond: ping, and TCP port %d", l.Client.Name, l.Client.Addr(0), lab.ServicePort)
	s.say("")
	s.say("  The plain configuration file of version 2.0: an advertisement every %g s, priority %d.", c.AdvertInterval.Seconds(), c.Priority)
	s.say("  A backup takes over when it heard nothing for the down interval: %s.", ms(down))
	s.say("  The master mirrors its configuration, %s, to the backup.", lab.TreePath)
}

func (s *screen) heading(text string) {
	s.say("")
	s.say("%s", s.paint(bold, text))
}

// event is a line of the timeline.
type event struct {
	at        time.Time
	who, text string
	note      bool // shows no time
}

// event tells what happened at a time. Flush shows it.
func (s *screen) event(at time.Time, who, text string) {
	s.pending = append(s.pending, event{at, who, text, false})
}

// note explains the latest event.
func (s *screen) note(who, text string) {
	at := time.Now()
	if len(s.pending) > 0 {
		at = s.pending[len(s.pending)-1].at
	}
	s.pending = append(s.pending, event{at, who, text, true})
}

// textColumn is where the text of the timeline begins, behind time and who.
const textColumn = 18

// flush shows the events so far, in the order in which they happened: they became known in another one.
func (s *screen) flush() {
	slices.SortStableFunc(s.pending, func(a, b event) int { return a.at.Compare(b.at) })
	for _, e := range s.pending {
		at := ""
		if !e.note {
			at = fmt.Sprintf("%.3f", e.at.Sub(s.began).Seconds())
		}
		for i, part := range wrap(e.text, width-textColumn) {
			if i > 0 {
				at, e.who = "", ""
			}
			s.say("%s  %-6s  %s", s.paint(faint, fmt.Sprintf("%8s", at)), e.who, part)
		}
	}
	s.pending = nil
}

// output shows what a command printed: a name and, from a column on, words. Long lines are broken there.
func (s *screen) output(text string, column int) {
	const indent = "  "
	for line := range strings.Lines(text) {
		runes := []rune(strings.TrimRight(line, "\n"))
		name := string(runes[:min(column, len(runes))])
		for _, part := range wrap(string(runes[len([]rune(name)):]), width-len(indent)-column) {
			s.say("%s%-*s%s", indent, column, name, part)
			name = ""
		}
	}
}

// wrap breaks a text at its spaces into lines of at most so many columns; a word that is longer is broken too.
func wrap(text string, columns int) []string {
	lines := []string{""}
	for word := range strings.FieldsSeq(text) {
		last := &lines[len(lines)-1]
		switch {
		case *last == "":
			*last = word
		case utf8.RuneCountInString(*last)+1+utf8.RuneCountInString(word) <= columns:
			*last += " " + word
		default:
			lines = append(lines, word)
		}
		for last = &lines[len(lines)-1]; utf8.RuneCountInString(*last) > columns; last = &lines[len(lines)-1] {
			runes := []rune(*last)
			*last = string(runes[:columns])
			lines = append(lines, string(runes[columns:]))
		}
	}
	return lines
}

// ms writes a duration in milliseconds with one decimal, and none at all as such.
func ms(t time.Duration) string {
	if t == 0 {
		return "0 ms"
	}
	return fmt.Sprintf("%.1f ms", float64(t)/float64(time.Millisecond))
}

// entry is a line of a daemon's log.
type entry struct {
	at   time.Time
	text string
}

// parseLog reads what a daemon wrote: lines of TIME PROGRAM: TEXT. Others, such as the trace of a crash, are left out.
func parseLog(log string) (entries []entry) {
	for line := range strings.Lines(log) {
		stamp, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		_, text, ok := strings.Cut(rest, ": ")
		if at, err := time.Parse(time.RFC3339Nano, stamp); err == nil && ok {
			entries = append(entries, entry{at, text})
		}
	}
	return entries
}

// parseReplicatorLog reads what the replicator wrote: lines of TIME LEVEL TEXT.
func parseReplicatorLog(log string) (entries []entry) {
	for line := range strings.Lines(log) {
		stamp, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		_, text, ok := strings.Cut(rest, " ")
		if at, err := time.Parse(time.RFC3339Nano, stamp); err == nil && ok {
			entries = append(entries, entry{at, text})
		}
	}
	return entries
}

// mark is a moment in the chart.
type mark struct {
	at   time.Time
	text string
}

// inTurn names who answered, in order. When the address moves, an answer or two of the old master may still be on the
// way behind the first ones of the new: what does not last is left out.
func inTurn(turns []lab.Turn) (list []string) {
	for _, t := range turns {
		if t.To.Sub(t.From) > short && (len(list) == 0 || list[len(list)-1] != t.Name) {
			list = append(list, t.Name)
		}
	}
	return list
}

// whoAnswered draws the turns of the nodes over time.
func (s *screen) whoAnswered(r lab.Report, marks []mark) {
	s.heading("Who answered the client")
	for _, row := range chart(r, s.began, marks, width-textColumn) {
		s.say("%s  %s", s.paint(faint, fmt.Sprintf("%*s", textColumn-2, row.title)), row.cells)
	}
}

type row struct{ title, cells string }

// chart has a row for the marks, one for each node that has answered, and one for the time, from zero on.
func chart(r lab.Report, zero time.Time, marks []mark, columns int) []row {
	span := r.End.Sub(zero)
	column := func(t time.Time) int {
		return min(columns-1, int(float64(t.Sub(zero))/float64(span)*float64(columns)))
	}
	put := func(cells []rune, at int, text string) {
		if at+len(text) <= len(cells) {
			copy(cells[at:], []rune(text))
		}
	}
	line := func(fill rune) []rune { return slices.Repeat([]rune{fill}, columns) }

	top := line(' ')
	for _, m := range marks {
		put(top, column(m.at), m.text)
	}
	rows := []row{{"step", string(top)}}
	nodes := inTurn(r.Turns)
	slices.Sort(nodes)
	for _, name := range slices.Compact(nodes) {
		cells := line('·')
		for i := range cells {
			from, to := zero.Add(span*time.Duration(i)/time.Duration(columns)), zero.Add(span*time.Duration(i+1)/time.Duration(columns))
			if answered(r, name, from, to) > to.Sub(from)/2 {
				cells[i] = '█'
			}
		}
		rows = append(rows, row{name, string(cells)})
	}
	bottom := line(' ')
	step := 5 * time.Second
	for span/step > 10 {
		step *= 2
	}
	for t := time.Duration(0); t <= span; t += step {
		put(bottom, column(zero.Add(t)), fmt.Sprint(int(t.Seconds())))
	}
	rows = append(rows, row{"second", string(bottom)})
	for i := range rows {
		rows[i].cells = strings.TrimRight(rows[i].cells, " ")
	}
	return rows
}

// answered is for how much of a time a node was answering.
func answered(r lab.Report, node string, from, to time.Time) (sum time.Duration) {
	for _, turn := range r.Turns {
		if turn.Name != node {
			continue
		}
		sum += overlap(turn.From, turn.To, from, to)
		for _, g := range r.Gaps {
			if !g.From.Before(turn.From) && !g.To.After(turn.To) {
				sum -= overlap(g.From, g.To, from, to)
			}
		}
	}
	return sum
}

// overlap is how long two times have in common.
func overlap(from, to, otherFrom, otherTo time.Time) time.Duration {
	if from.Before(otherFrom) {
		from = otherFrom
	}
	if to.After(otherTo) {
		to = otherTo
	}
	return max(0, to.Sub(from))
}

// line of the summary. Step 0 is all of them.
type line struct {
	step                 int
	what, expected, seen string
	ok                   bool
}

func (l line) verdict() string {
	if l.ok {
		return "ok"
	}
	return "NOT OK"
}

// summary prints the table and tells whether every line held.
func (s *screen) summary(lines []line) bool {
	s.heading("Summary")
	rows := table(lines)
	wrong := 0
	for i, cells := range rows {
		verdict := s.paint(faint, cells[1])
		switch {
		case i == 0:
		case lines[i-1].ok:
			verdict = s.paint(green, cells[1])
		default:
			verdict = s.paint(red, cells[1])
			wrong++
		}
		text := cells[0]
		if i == 0 {
			text = s.paint(faint, text)
		}
		s.say("%s", strings.TrimRight(text+verdict, " "))
	}
	s.say("")
	s.say("  An outage is the longest time without an answer; what is shorter than 3 ms shows as 0 ms.")
	s.say("  In parentheses: how many milliseconds more a busy machine may take.")
	took := time.Since(s.began).Seconds()
	if wrong > 0 {
		s.say("  %s after %.0f s", s.paint(red, fmt.Sprintf("%d of %d lines did not hold", wrong, len(lines))), took)
		return false
	}
	s.say("  %s after %.0f s", s.paint(green, fmt.Sprintf("All %d lines hold", len(lines))), took)
	return true
}

// table aligns the summary: for each row what stands left of the verdict, and the verdict. The first row is the head.
// What is seen gives way when the line would be too long.
func table(lines []line) [][2]string {
	const sep, verdict = 2, 6
	cells := [][5]string{{"", "what", "expected", "seen", ""}}
	before := -1
	for _, l := range lines {
		step := ""
		if l.step != before && l.step > 0 {
			step = fmt.Sprint(l.step)
		}
		before = l.step
		cells = append(cells, [5]string{step, l.what, l.expected, l.seen, l.verdict()})
	}
	var widths [4]int
	for _, c := range cells {
		for i := range widths {
			widths[i] = max(widths[i], utf8.RuneCountInString(c[i]))
		}
	}
	widths[3] = min(widths[3], width-verdict-5*sep-widths[0]-widths[1]-widths[2])
	var rows [][2]string
	for _, c := range cells {
		text := ""
		for i, w := range widths {
			cell := c[i]
			if runes := []rune(cell); len(runes) > w {
				cell = string(runes[:max(w-1, 0)]) + "…"
			}
			text += strings.Repeat(" ", sep) + cell + strings.Repeat(" ", w-utf8.RuneCountInString(cell))
		}
		rows = append(rows, [2]string{text + strings.Repeat(" ", sep), c[4]})
	}
	return rows
}

// instructions say how to get into a lab that stays.
func (s *screen) instructions(l *lab.Lab) {
	s.heading("The lab stays")
	s.say("  To enter:")
	for _, n := range []*lab.Node{l.LB1, l.LB2, l.Client, l.Switch} {
		if pid := n.PID(); pid != 0 {
			s.say("    %-7s nsenter -t %d -m -u -i -n -p --wd=/ env HOME=/root bash", n.Name, pid)
		}
	}
	s.say("  On a node, for instance:")
	s.say("    skd-hooks status")
	s.say("    skd-inotify status")
	s.say("    kill -USR2 $(cat /run/skudonet-ce-cluster/vrrpd.pid)")
	s.say("    tail -f /var/log/skd-vrrpd.log %s", replicatorLog)
	s.say("  Nothing restarts the daemons any more: after a kill -KILL, or a stop, it is up to you:")
	s.say("    setsid skd-vrrpd >>/var/log/skd-vrrpd.log 2>&1 &")
	s.say("  To end it, all of it:")
	s.say("    kill -KILL %d", l.Switch.PID())
}
