package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/status"
	"github.com/skudonet/skudonet-ce-cluster/test/lab"
)

const (
	replicatorLog = "/var/log/skdinotify.log"
	// back is in how much time a node that has come back should have what it missed: the master looks for it at least
	// every five seconds.
	back = 10 * time.Second
	// glance is the time between two looks for what the recorder does not tell.
	glance = 100 * time.Microsecond
)

// hash is what a file holds.
type hash = [sha256.Size]byte

// watched is the backup's tree, as somebody there could see it.
type watched struct {
	*lab.Recorder
	node  *lab.Node
	names []string          // those that should ever be there
	whole map[string][]hash // what the files that are changed should ever hold
}

func (d *demo) watch(n *lab.Node) (err error) {
	d.mirror = watched{node: n, whole: map[string][]hash{}}
	if d.mirror.Recorder, err = n.RecordTree(); err == nil {
		d.mirror.names = d.mirror.Names()
	}
	return err
}

// expect tells that a file with this text is going to be there.
func (w *watched) expect(file, text string) {
	for name := file; name != "."; name = path.Dir(name) {
		w.names = append(w.names, name)
	}
	if w.whole[file] == nil {
		for _, c := range w.Contents(file) {
			w.whole[file] = append(w.whole[file], c.SHA256)
		}
	}
	w.whole[file] = append(w.whole[file], sha256.Sum256([]byte(text)))
}

// strange is what should never have been there: temporary files, and half ones.
func (w *watched) strange() (list []string) {
	for _, name := range w.Names() {
		if !slices.Contains(w.names, name) {
			list = append(list, name)
		}
	}
	for file, whole := range w.whole {
		for _, c := range w.Contents(file) {
			if !slices.Contains(whole, c.SHA256) {
				list = append(list, fmt.Sprintf("%s with %d bytes", file, c.Size))
			}
		}
	}
	return list
}

// arrival waits until a file with this text is there, and gives the time at which it was.
func (w *watched) arrival(ctx context.Context, limit time.Duration, file, text string) (at time.Time, err error) {
	want := sha256.Sum256([]byte(text))
	err = await(ctx, limit, file+" on "+w.node.Name, func() (bool, string) {
		for _, c := range w.Contents(file) {
			if c.SHA256 == want {
				at = c.At
				return true, ""
			}
		}
		return false, "not there"
	})
	return at, err
}

// gone waits until a file is not there any more.
func (w *watched) gone(limit time.Duration, file string) (time.Time, error) {
	full := w.node.Root(path.Join(lab.TreePath, file))
	for began := time.Now(); time.Since(began) < limit; time.Sleep(glance) {
		if _, err := os.Lstat(full); os.IsNotExist(err) {
			return time.Now(), nil
		}
	}
	return time.Time{}, fmt.Errorf("%s is still on %s after %v", file, w.node.Name, limit)
}

// write puts a file into a node's tree, with its directories, and gives the time at which it stood there.
func (d *demo) write(n *lab.Node, how, file, text string) (time.Time, error) {
	full := path.Join(lab.TreePath, file)
	if err := os.MkdirAll(filepath.Dir(n.Root(full)), 0o755); err != nil {
		return time.Time{}, err
	}
	d.mirror.expect(file, text)
	err := n.WriteFile(full, text, 0o644)
	now := time.Now()
	d.event(now, n.Name, file+how)
	return now, err
}

// seen shows that a change of a file has arrived, and what the master's log says of it.
func (d *demo) seen(ctx context.Context, what, file string, changed, arrived time.Time) error {
	took := arrived.Sub(changed)
	d.event(arrived, d.mirror.node.Name, "has it, "+ms(took)+" later")
	d.check(what, fmt.Sprintf("on lb2 at once (+ %d)", late.Milliseconds()), "on lb2 after "+ms(took), took <= late)
	return d.replicatorLogs(ctx, d.lb1, changed, "replicated ", file)
}

// replication changes the master's tree in three ways and watches the backup's.
func (d *demo) replication(ctx context.Context) error {
	began := d.mark()
	if err := d.replicatorLogs(ctx, d.lb1, d.began, "in step with the peer"); err != nil {
		return err
	}
	if err := d.watch(d.lb2); err != nil {
		return err
	}
	const edited, deep, renamed = "global.conf", "ipds/waf/sets/shop/rules/extra.conf", "ipds/waf/sets/shop/rules/extra.off"
	const rule = "SecRule ARGS \"@contains <script>\" \"id:1,deny\"\n"
	text, err := d.lb1.ReadFile(path.Join(lab.TreePath, edited))
	if err != nil {
		return err
	}
	text += "# a line that an admin added\n"
	changed, err := d.write(d.lb1, " is edited", edited, text)
	if err != nil {
		return err
	}
	arrived, err := d.mirror.arrival(ctx, patience, edited, text)
	if err != nil {
		return err
	}
	if err := d.seen(ctx, "edited file", edited, changed, arrived); err != nil {
		return err
	}
	if changed, err = d.write(d.lb1, " is new, in two new directories", deep, rule); err != nil {
		return err
	}
	if arrived, err = d.mirror.arrival(ctx, patience, deep, rule); err != nil {
		return err
	}
	if err := d.seen(ctx, "new deep file", deep, changed, arrived); err != nil {
		return err
	}
	d.mirror.expect(renamed, rule)
	if err := os.Rename(d.lb1.Root(path.Join(lab.TreePath, deep)), d.lb1.Root(path.Join(lab.TreePath, renamed))); err != nil {
		return err
	}
	changed = time.Now()
	d.event(changed, d.lb1.Name, "it is renamed to "+path.Base(renamed))
	left, err := d.mirror.gone(patience, deep)
	if err != nil {
		return err
	}
	if arrived, err = d.mirror.arrival(ctx, patience, renamed, rule); err != nil {
		return err
	}
	if left.After(arrived) {
		arrived = left
	}
	if err := d.seen(ctx, "renamed file", renamed, changed, arrived); err != nil {
		return err
	}
	d.flush()
	err = await(ctx, patience, "lb1 to know that lb2 is in step", func() (bool, string) {
		r := d.replicator(d.lb1)
		return r.State == status.InStep && r.Pending == 0 && r.InStepAt.Time.After(changed), r.State
	})
	if err != nil {
		return err
	}
	shown, err := d.lb1.Run("skd-inotify", "status")
	d.event(time.Now(), d.lb1.Name, "skd-inotify status")
	d.flush()
	if err != nil {
		return err
	}
	const healthy = "in step, healthy"
	column := strings.Index(shown, "in step since ")
	d.output(shown, max(column, 0))
	seen := "something else"
	if column > 0 && strings.Contains(shown, "healthy\n") {
		seen = healthy
	}
	d.check("skd-inotify status", healthy, seen, seen == healthy)
	d.checkSame("both trees", d.lb1, d.lb2)
	d.checkWhole()
	delete(d.mirror.whole, edited) // Skudonet on lb2 writes it too, whenever it starts or stops.
	d.checkMissed(began)
	return nil
}

// away changes the master's tree while the backup is off.
func (d *demo) away(ctx context.Context) error {
	off := d.mark()
	if err := d.lb2.PowerOff(); err != nil {
		return err
	}
	delete(d.shells, d.lb2)
	d.event(off, d.lb2.Name, "power off")
	const file, text = "certificates/shop.pem", "-----BEGIN CERTIFICATE-----\n"
	changed, err := d.write(d.lb1, " is new", file, text)
	if err != nil {
		return err
	}
	if err := pause(ctx, changed.Add(time.Second)); err != nil {
		return err
	}
	r := d.replicator(d.lb1)
	d.event(time.Now(), d.lb1.Name, fmt.Sprintf("skd-inotify status: %s, pending: %d", r.State, r.Pending))
	d.check("while lb2 is off", "not in step, 1 pending", fmt.Sprintf("%s, %d pending", r.State, r.Pending),
		r.State != status.InStep && r.Pending == 1)
	d.flush()
	if err := d.lb2.PowerOn(); err != nil {
		return err
	}
	on := time.Now()
	d.event(on, d.lb2.Name, "power on")
	if _, err := d.lb2.StartSSH(); err != nil {
		return err
	}
	if err := d.start(d.lb2, "sshd and skd-vrrpd start"); err != nil {
		return err
	}
	arrived, err := d.mirror.arrival(ctx, patience, file, text)
	if err != nil {
		return err
	}
	d.event(arrived, d.lb2.Name, "has it, "+ms(arrived.Sub(on))+" after it is back")
	d.check("when it is back", fmt.Sprintf("on lb2 within %g s", back.Seconds()), "on lb2 after "+ms(arrived.Sub(on)), arrived.Sub(on) <= back)
	if err := d.replicatorLogs(ctx, d.lb1, on, "connected to the peer"); err != nil {
		return err
	}
	if err := d.replicatorLogs(ctx, d.lb1, on, "replicated ", file); err != nil {
		return err
	}
	if _, err := d.logs(ctx, d.lb2, on, "backup on "); err != nil {
		return err
	}
	if _, err := d.logs(ctx, d.lb2, on, "stop hook ended"); err != nil {
		return err
	}
	d.checkSame("both trees", d.lb1, d.lb2)
	d.sayMissed(off)
	d.checkMissed(off)
	return nil
}

// checkWhole checks that nobody on the backup could see a temporary or half-written file since the watch began.
func (d *demo) checkWhole() {
	seen := "none on lb2"
	if strange := d.mirror.strange(); len(strange) > 0 {
		seen = "on lb2: " + strings.Join(strange, ", ")
	}
	d.check("half or temp. files", "none on lb2", seen, seen == "none on lb2")
}

// checkSame compares what two nodes have, by a walk that has nothing in common with the programs.
func (d *demo) checkSame(what string, a, b *lab.Node) {
	same := func(count int) string { return fmt.Sprintf("the same %d entries", count) }
	one, err := a.TreeDigest()
	if err == nil {
		var two map[string]string
		if two, err = b.TreeDigest(); err == nil {
			seen := same(len(two))
			for _, name := range slices.Sorted(maps.Keys(both(one, two))) {
				if one[name] != two[name] {
					seen = "different: " + name
					break
				}
			}
			d.event(time.Now(), "demo", fmt.Sprintf("walks over the trees of %s and %s: %s", a.Name, b.Name, seen))
			d.check(what, same(len(one)), seen, maps.Equal(one, two))
			return
		}
	}
	d.check(what, "the same", err.Error(), false)
}

func both(a, b map[string]string) map[string]string {
	all := maps.Clone(a)
	maps.Copy(all, b)
	return all
}

// replicator is what that of a node says of itself.
func (d *demo) replicator(n *lab.Node) (r status.Replicator) {
	text, err := n.ReadFile(path.Join(status.RunDir, status.ReplicatorFile))
	if err == nil {
		err = json.Unmarshal([]byte(text), &r)
	}
	if err != nil {
		r.State = err.Error()
	}
	return r
}

// replicatorLogs waits for a line of the replicator's log that has all these words, and shows it.
func (d *demo) replicatorLogs(ctx context.Context, n *lab.Node, since time.Time, words ...string) error {
	since = since.Truncate(time.Millisecond) // as the log's times
	var found entry
	err := await(ctx, patience, fmt.Sprintf("%s to log %q", n.Name, words), func() (bool, string) {
		entries := d.replicated(n)
		for _, e := range entries {
			missing := func(word string) bool { return !strings.Contains(e.text, word) }
			if !e.at.Before(since) && !slices.ContainsFunc(words, missing) {
				found = e
				return true, ""
			}
		}
		if len(entries) == 0 {
			return false, "nothing"
		}
		return false, entries[len(entries)-1].text
	})
	if err == nil {
		d.event(found.at, n.Name, "log: "+found.text)
	}
	return err
}

// replicated is the replicator's log.
func (d *demo) replicated(n *lab.Node) []entry {
	text, _ := n.ReadFile(replicatorLog)
	return parseReplicatorLog(text)
}

// replicatorOnly checks that one node has a replicator, and the other none.
func (d *demo) replicatorOnly(on, other *lab.Node) error {
	var found []string
	for _, n := range []*lab.Node{on, other} {
		list, err := n.Run("ps", "-ef")
		if err != nil {
			return err
		}
		if strings.Contains(list, "skdinotify") {
			found = append(found, n.Name)
		}
	}
	d.event(time.Now(), on.Name, "ps -ef | grep skdinotify: on "+strings.Join(found, " and "))
	d.check("skdinotify in ps", "on "+on.Name+" only", "on "+strings.Join(found, " and "), slices.Equal(found, []string{on.Name}))
	return nil
}
