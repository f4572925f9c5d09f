package mirror

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/skudonet/skudonet-ce-cluster/lib/peer"
	"github.com/skudonet/skudonet-ce-cluster/lib/remote"
	"github.com/skudonet/skudonet-ce-cluster/lib/rsync"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
)

// Trouble is an error with what to do about it.
type Trouble struct{ Text, Remedy string }

// Error gives the text alone.
func (t *Trouble) Error() string { return t.Text }

// explain gives an error's words, and what to do.
func explain(err error) (words, remedy string) {
	var t *Trouble
	var r *remote.Error
	var f *rsync.Failure
	switch {
	case err == nil:
		return "closed", ""
	case errors.Is(err, peer.ErrMaster):
		return "it says that it is master too", "see skd-hooks status on both nodes: each should hear the other; nothing is sent meanwhile"
	case errors.As(err, &t):
		return t.Text, t.Remedy
	case errors.As(err, &r):
		return r.Text, r.Remedy
	case errors.As(err, &f):
		return f.Text, f.Remedy
	}
	return err.Error(), ""
}

func andRemedy(remedy string) string {
	if remedy == "" {
		return ""
	}
	return "; " + remedy
}

// reason is an error without the path, which is said already.
func reason(err error) string {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err.Error()
	}
	return err.Error()
}

func noSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EROFS)
}

const shownNames = 10

// sentence joins what can be many.
func sentence(list []string) string {
	if more := len(list) - shownNames; more > 0 {
		return strings.Join(list[:shownNames], ", ") + fmt.Sprintf(" and %d more", more)
	}
	return strings.Join(list, ", ")
}

func words(changes []change) string {
	var list []string
	for _, c := range changes {
		text := name(c.Path)
		if c.root != "config" {
			text = c.root
		}
		what := c.What()
		if what == "" && c.To != nil { // seen before, while it was being written
			what = "content"
		}
		if what != "" {
			text += " " + what
		}
		list = append(list, text)
	}
	return sentence(list)
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// report logs what a round did, and what is wrong.
func (e *Engine) report(r result) {
	took := r.took.Round(100 * time.Microsecond)
	if len(r.changes) > 0 {
		text := words(r.changes)
		switch {
		case r.peer == nil:
			e.cfg.Log.Info(fmt.Sprintf("recorded %s, which the peer gets when it is back: %s", count(len(r.changes), "change"), text))
		case e.state.Peer.Weak:
			e.cfg.Log.Info(fmt.Sprintf("sent, not compared: %s: %s", count(len(r.changes), "change"), text), "took", took)
		default:
			e.cfg.Log.Info(fmt.Sprintf("replicated %s: %s", count(len(r.changes), "change"), text), "took", took)
		}
		if r.peer != nil {
			e.state.Last = &status.Transfer{At: status.Now(), Took: status.Seconds(took), Changes: len(r.changes), Words: text}
		}
	}
	if len(r.fixed) > 0 {
		e.cfg.Log.Warn(fmt.Sprintf("the peer differed in %s, made the same again: %s", count(len(r.fixed), "file"), words(r.fixed)), "took", took)
	}
	if r.full && r.fresh && !e.state.Peer.Weak && !r.failedAny() {
		entries := 0
		for _, root := range r.roots {
			entries += root.entries
		}
		e.cfg.Log.Info("in step with the peer "+e.cfg.Peer, "entries", entries, "took", took)
	}
	if err := e.cfg.Blind(); err != nil {
		e.cfg.Troubles.Advise("blind", err.Error(), fmt.Sprintf("until then changes are found by a comparison every %v", blindEvery))
	} else {
		e.cfg.Troubles.Clear("blind")
	}
	failed := e.failures()
	if len(failed) > 0 {
		e.cfg.Troubles.Advise("failed", "not the same on the peer: "+sentence(failed), "tried again by itself; skd-inotify sync tries at once")
	} else {
		e.cfg.Troubles.Clear("failed")
	}
	if r.full {
		e.seen = map[string]bool{}
	}
	for _, special := range r.special {
		e.seen[special] = true
	}
	if len(e.seen) > 0 {
		e.cfg.Troubles.Set("special", "not replicated, because neither file nor directory nor link: "+sentence(slices.Sorted(maps.Keys(e.seen))))
	} else {
		e.cfg.Troubles.Clear("special")
	}
}

func (r result) failedAny() bool {
	for _, root := range r.roots {
		if root.trouble != nil || len(root.failed)+len(root.left)+len(root.busy) > 0 {
			return true
		}
	}
	return false
}

// name shows a path in words, whatever is in it. Of a long one the middle is left out.
func name(p string) string {
	const part = 100
	if len(p) > 2*part {
		p = strings.ToValidUTF8(p[:part], "") + "…" + strings.ToValidUTF8(p[len(p)-part:], "")
	}
	odd := func(r rune) bool { return r == ' ' || r == '"' || r == utf8.RuneError || !unicode.IsPrint(r) }
	if strings.ContainsFunc(p, odd) {
		return strconv.Quote(p)
	}
	return p
}
