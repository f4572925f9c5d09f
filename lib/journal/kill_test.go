package journal

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
)

// What the process that is killed is told.
const (
	killState = "JOURNAL_TEST_STATE"
	killPlan  = "JOURNAL_TEST_PLAN" // a file; empty: there is nothing to begin
	killStep  = "JOURNAL_TEST_STEP"
)

// TestMain is also the process that is killed.
func TestMain(m *testing.M) {
	if os.Getenv(killState) == "" {
		os.Exit(m.Run())
	}
	if err := victim(os.Getenv(killState), os.Getenv(killPlan), os.Getenv(killStep)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// victim finishes what is pending or begins the plan, and kills itself when it
// comes to the step. It prints its steps.
func victim(state, plan, last string) error {
	rest, err := strconv.Atoi(last)
	if err != nil {
		return err
	}
	Step = func(name string) {
		fmt.Printf("%q\n", name)
		if rest--; rest == 0 {
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}
	j, err := Pending(state, nil)
	if err == nil && j == nil {
		if plan == "" {
			return nil
		}
		var p Plan
		if p, err = read(plan); err == nil {
			j, err = Begin(state, p)
		}
	}
	if err != nil {
		return err
	}
	problems, err := j.Apply(context.Background(), func(_, path string, e manifest.Entry) error {
		return fmt.Errorf("%s: %+v counts as unexpected", path, e)
	})
	if err != nil || len(problems) > 0 {
		return fmt.Errorf("%v, %v", problems, err)
	}
	return j.End()
}

// never is a step that no change comes to.
const never = 1 << 30

// process runs a victim and returns the last step that it came to, and whether
// it came to its end.
func (w *world) process(plan string, step int) (last string, ended bool) {
	w.Helper()
	self, err := os.Executable()
	must(w.TB, err)
	c := exec.Command(self)
	c.Env = append(os.Environ(), killState+"="+w.state, killPlan+"="+plan, killStep+"="+strconv.Itoa(step))
	var stderr strings.Builder
	c.Stderr = &stderr
	out, err := c.Output()
	var exit *exec.ExitError
	if err != nil && !(errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL) {
		w.Fatalf("at step %d: %v: %s", step, err, stderr.String())
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	last, _ = strconv.Unquote(lines[len(lines)-1])
	return last, err == nil
}

func TestKilledAtEveryStep(t *testing.T) {
	killEverywhere(t, after, func() *world { return newWorld(t, before, after) })
}

func TestKilledAtEveryStepWithMounts(t *testing.T) {
	killEverywhere(t, remade, func() *world {
		top := t.TempDir()
		small(t, top+"/tree/in", "size=1m,mode=755")
		return newWorldIn(t, top, top+"/tree", mounted, remade)
	})
}

// killEverywhere kills the process at each step, then the one that finishes its
// work, at an early step, and lets a third one finish.
func killEverywhere(t *testing.T, want files, make func() *world) {
	const (
		begun = "write"        // the last step at which there is no journal yet
		ended = "clear config" // the only one at which there is none any more
	)
	open := false
	for step := 1; ; step++ {
		w := make()
		plan := w.plan()
		b, err := plan.encode()
		must(t, err)
		file := w.top + "/plan"
		must(t, os.WriteFile(file, b, 0o600))
		last, end := w.process(file, step)
		if end {
			t.Logf("%d steps", step-1)
			if last != ended || !open {
				t.Errorf("the last step is %s; a journal was seen: %v", last, open)
			}
			return
		}
		pending, err := Pending(w.state, nil)
		if is := open && last != ended; err != nil || (pending != nil) != is {
			t.Errorf("killed at %d, %s: a journal: %v, %v, want %v", step, last, pending != nil, err, is)
		}
		if !open {
			w.untouched()
			open = last == begun // so the next one has a journal
		} else {
			if _, end := w.process("", 1+step%9); !end {
				w.process("", 1+step%5)
			}
			if _, end := w.process("", never); !end {
				t.Errorf("killed at %d, %s: the next one did not end", step, last)
			}
			if d := differ(describe(t, w.tree), want); d != "" {
				t.Errorf("killed at %d, %s, and finished:\n%s", step, last, d)
			}
		}
		must(t, Undo(w.state, w.stage))
		if _, err := os.Lstat(filepath.Dir(w.stage)); !os.IsNotExist(err) {
			t.Errorf("killed at %d, %s: the stage is still there: %v", step, last, err)
		}
		if t.Failed() {
			return
		}
	}
}
