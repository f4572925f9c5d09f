package rsync

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"unicode"
)

// Explain makes of rsync's exit status and its messages one sentence for an
// admin, and what to do about it. A run that a signal ended has 128 and the
// signal's number. Without anything to do the remedy is "".
func Explain(exit int, stderr string) (text, remedy string) {
	m := readMessages(stderr)
	for _, e := range explanations {
		if e.exit != 0 && e.exit != exit {
			continue
		}
		if found := e.pattern().FindStringSubmatch(m.text); found != nil {
			return expand(e.text, found), expand(e.remedy, found)
		}
	}
	if f := m.worst(); f != nil && exit != 20 {
		return f.explain(m.more(f))
	}
	switch {
	case exit == 20 || exit == 19:
		return "rsync was told to end (SIGTERM or the like) " + m.where(), ""
	case exit > 128 && exit <= 128+64:
		s := syscall.Signal(exit - 128)
		if s == syscall.SIGKILL {
			return "rsync was killed", "see with dmesg whether memory ran out; " + again
		}
		return fmt.Sprintf("rsync was ended by signal %d (%v)", int(s), s), again
	case exit == 23 && m.last != "":
		return "rsync could not transfer everything: " + m.last, again
	}
	if e, ok := exits[exit]; ok {
		return e[0] + m.detail(exit), e[1]
	}
	return fmt.Sprintf("rsync ended with status %d", exit) + m.detail(exit), again
}

const (
	again   = "it is tried again by itself"
	options = "correct $rsync_args in skudonet-cluster.conf"
	install = "install the same rsync on both nodes"

	installThere = "install it there (Debian: apt-get install rsync), or correct $$rsync in the peer's skudonet-cluster.conf"
)

// explanations are found in the messages, first match wins. An exit of 0 is any.
var explanations = []struct {
	exit         int
	pattern      func() *regexp.Regexp
	text, remedy string
}{
	{0, later(`(?m)^skd-inotify rsh: (.*)$`),
		"rsync did not reach the daemon: $1", again},
	{0, later(`(?m)is your shell clean`),
		"on the peer something is printed before rsync speaks",
		"root's shell start files there (~/.bashrc) must print nothing without a terminal"},
	{0, later(`(?m)^(?:rsync: )?(?:on remote machine: )?(\S+): unknown option[\s\S]*connection unexpectedly closed`),
		"the peer's rsync does not know the option $1",
		"take it out of $$rsync_args, or " + install},
	{0, later(`(?m)^(?:rsync: )?(\S+): unknown option`),
		"rsync does not know the option $1",
		"take it out of $$rsync_args, or " + install},
	{0, later(`(?m)^The temp-dir does not exist: (.*)$`),
		"the directory for temporary files is missing on the peer: $1",
		"mkdir -m 700 it there, or restart skd-inotify there; " + again},
	{0, later(`(?m)could not make way for .*: (.*)$`),
		"on the peer a directory that is not empty is where something else belongs: $1",
		"it holds files of the peer's own; move them away there"},
	{127, later(``),
		"there is no rsync on the peer",
		installThere},
	{0, later(`(?m)rsync: (?:command )?not found$`),
		"there is no rsync on the peer",
		installThere},
	{126, later(``),
		"the peer's rsync cannot be executed",
		"check $$rsync in the peer's skudonet-cluster.conf, and chmod 755 that file"},
	{24, later(`(?m)^file has vanished: (".*")`),
		"files vanished while they were sent: $1 and maybe more",
		""},
	{12, later(`\(0 bytes received so far\) \[sender\]`),
		"the peer's rsync did not start, or ended at once",
		"see the peer's log; " + again},
}

// later compiles a pattern when it is first needed: Rsh is started with each run
// of rsync, and needs none.
func later(pattern string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(pattern) })
}

// expand puts what a pattern found into a text: $1, and $$ for a dollar.
func expand(text string, found []string) string {
	for i, f := range found {
		if i > 0 {
			text = strings.ReplaceAll(text, "$"+strconv.Itoa(i), f)
		}
	}
	return strings.ReplaceAll(text, "$$", "$")
}

// exits are the statuses of rsync(1) that say something by themselves.
var exits = map[int][2]string{
	1:  {"rsync does not accept its options", options},
	2:  {"the two rsyncs do not speak the same protocol", install},
	3:  {"rsync cannot use the source or destination directory", again},
	4:  {"one of the two rsyncs cannot do what it is asked to", options + ", or " + install},
	5:  {"the peer's rsync did not begin to speak", again},
	6:  {"rsync cannot write its log file", options},
	10: {"the connection broke", again},
	11: {"rsync cannot read or write a file", again},
	12: {"the connection to the peer's rsync was lost in the middle", "see the peer's log if it goes on; " + again},
	13: {"rsync cannot write its messages", again},
	14: {"rsync cannot run or reach its other half", again},
	15: {"a process of rsync crashed", "see the log for segfault; " + install},
	16: {"a process of rsync was killed", "see with dmesg whether memory ran out; " + again},
	21: {"rsync lost one of its processes", again},
	22: {"there is not enough memory for rsync", "free memory on both nodes; " + again},
	23: {"rsync could not transfer everything", again},
	24: {"files vanished while they were sent", ""},
	25: {"rsync stopped deleting at a limit", "take --max-delete out of $rsync_args"},
	30: {"nothing came from the peer for too long", "see whether the peer or its disk hangs; " + again},
	35: {"the peer did not answer in time", again},

	255: {"the connection to the peer failed", again},
}

// fault is one message with an error number.
type fault struct {
	peer  bool
	what  string // "mkstemp"
	path  string // with its quotes; or ""
	errno syscall.Errno
	words string // of that error
}

// messages is rsync's standard error, taken apart.
type messages struct {
	text   string
	faults []fault
	last   string // the last line that says more than that there was an error
	roles  string // the last "[generator=3.5.0]"
}

var (
	faultLine = later(`^(?:rsync: )?(?:\[(\w+)\] )?(.*): ([^:]*) \((\d+)\)$`)
	// A temporary file has another name each time; the same fault shall have the same words.
	temporary = later(`^(?:mkstemp|rename|copy) (".*)\.\w{6}"(?: -> (".*"))?(?: failed)?$`)
	finalLine = later(`^rsync (?:error|warning): .*\(code \d+\) at .* \[(\w+)=`)
)

func readMessages(stderr string) messages {
	var m messages
	var lines []string
	for line := range strings.Lines(stderr) {
		if line = clean(line); line != "" {
			lines = append(lines, line)
		}
	}
	m.text = strings.Join(lines, "\n")
	for _, line := range lines {
		if found := finalLine().FindStringSubmatch(line); found != nil {
			m.roles = found[1]
			continue
		}
		if !strings.HasPrefix(line, "***") {
			m.last = strings.TrimPrefix(line, "rsync: ")
		}
		found := faultLine().FindStringSubmatch(line)
		if found == nil {
			continue
		}
		n, err := strconv.Atoi(found[4])
		if err != nil || n <= 0 || n > 4095 {
			continue
		}
		f := fault{what: found[2], errno: syscall.Errno(n), words: found[3]}
		if made := temporary().FindStringSubmatch(f.what); made != nil {
			f.path = first(made[2], made[1]+`"`)
		} else if i, j := strings.IndexByte(f.what, '"'), strings.LastIndexByte(f.what, '"'); i < j {
			f.path = f.what[i : j+1]
		}
		f.peer = onPeer(found[1], f.what)
		m.faults = append(m.faults, f)
	}
	return m
}

// onPeer tells where a message comes from: its role, or in older versions of
// rsync what failed.
func onPeer(role, what string) bool {
	switch strings.ToLower(role) {
	case "sender", "client":
		return false
	case "":
		for _, ours := range []string{"send_files", "link_stat", "readlink_stat", "readlink", "opendir", "change_dir", "read errors", "Failed to exec"} {
			if strings.HasPrefix(what, ours) {
				return false
			}
		}
	}
	return true
}

// worst is the first fault that is not just a consequence of others.
func (m *messages) worst() *fault {
	var first *fault
	for i := range m.faults {
		f := &m.faults[i]
		switch f.errno {
		case syscall.EPIPE, syscall.ECONNRESET: // the other side has the reason
			continue
		case syscall.ENOENT: // a missing directory may be one that could not be made
			if first == nil {
				first = f
			}
			continue
		}
		return f
	}
	return first
}

// more counts the other faults with the same number.
func (m *messages) more(f *fault) int {
	n := -1
	for i := range m.faults {
		if m.faults[i].errno == f.errno {
			n++
		}
	}
	return n
}

func (m *messages) where() string {
	switch strings.ToLower(m.roles) {
	case "receiver", "generator", "server":
		return "on the peer"
	}
	return "here"
}

// detail is what rsync said itself, for a sentence that says little.
func (m *messages) detail(exit int) string {
	if m.last == "" || exit == 12 || exit == 30 || exit == 24 {
		return ""
	}
	return ": " + m.last
}

// causes are the errors for which there is more to say than their name. The
// remedy goes on with "there" or "here".
var causes = map[syscall.Errno]struct{ text, remedy string }{
	syscall.ENOSPC:       {"no space left", "free space (and inodes: df -i) %s; " + again},
	syscall.EDQUOT:       {"disk quota exceeded", "raise the quota or free space %s; " + again},
	syscall.EROFS:        {"the filesystem is read-only", "see with dmesg %s whether the disk fails, then mount it writable; " + again},
	syscall.EACCES:       {"permission denied", "skd-inotify must run as root %s; see ls -ld, and the log of AppArmor or SELinux"},
	syscall.EPERM:        {"operation not permitted", "see with lsattr %s whether the file or its directory is immutable (chattr -i)"},
	syscall.ENAMETOOLONG: {"the name is too long", "give it a shorter name"},
	syscall.EILSEQ:       {"the filesystem does not take this name", "rename the file"},
	syscall.EIO:          {"input/output error", "see with dmesg %s whether the disk fails"},
	syscall.EFBIG:        {"the file is too large", "see ulimit -f and the filesystem's limits %s"},
	syscall.EMFILE:       {"too many open files", "raise LimitNOFILE %s; " + again},
	syscall.ENFILE:       {"too many open files in the whole system", "raise fs.file-max %s; " + again},
	syscall.ENOMEM:       {"not enough memory", "free memory %s; " + again},
	syscall.ENOTEMPTY:    {"a directory is not empty", "see what is left in it %s"},
	syscall.ENOENT:       {"missing", again},
	syscall.EOPNOTSUPP:   {"the filesystem does not have this", "take -A and -X out of $rsync_args, or use a filesystem with ACLs and attributes %s"},
}

func (f *fault) explain(more int) (text, remedy string) {
	at, adverb := "here", "here"
	if f.peer {
		at, adverb = "on the peer", "there"
	}
	c, known := causes[f.errno]
	if !known {
		c.text, c.remedy = f.words, again
	}
	subject := f.path
	if subject == "" {
		subject = f.what
	}
	text = fmt.Sprintf("%s %s: %s", c.text, at, subject)
	if more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text, strings.ReplaceAll(c.remedy, "%s", adverb)
}

// clean makes a foreign line fit for one line of the log, at most 400 bytes.
func clean(line string) string {
	const most = 400
	line = strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, strings.TrimSpace(line))
	if len(line) > most {
		// The end has the reason; the beginning where it is from.
		line = strings.ToValidUTF8(line[:most/2], "") + "…" + strings.ToValidUTF8(line[len(line)-most/2:], "")
	}
	return line
}
