package hook

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// play is an Exec in virtual time: a hook takes a while, and time to die.
type play struct {
	mu    sync.Mutex
	took  map[string]time.Duration
	dying time.Duration
	fail  map[string]error
	story []string
	begin time.Time
}

func (p *play) tell(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.story = append(p.story, fmt.Sprintf("%s ", time.Since(p.begin))+fmt.Sprintf(format, args...))
}

func (p *play) exec(ctx context.Context, script string, env []string, line func(string)) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	line(strings.Join(env, " "))
	select {
	case <-time.After(p.took[script]):
		return p.fail[script]
	case <-ctx.Done():
		time.Sleep(p.dying)
		return errors.New("signal: terminated")
	}
}

func (p *play) runner() *Runner {
	p.begin = time.Now()
	return NewRunner(Options{
		Scripts: map[Kind]string{Start: "/start", Stop: "/stop", Advertisement: "/advert"},
		Env:     func(k Kind) []string { return []string{"SKD=" + k.String()} },
		Timeout: 2 * time.Minute,
		Exec:    p.exec,
		Began:   func(k Kind) { p.tell("%s begins", k) },
		Done: func(c Completion) {
			switch {
			case errors.Is(c.Err, ErrSuperseded):
				p.tell("%s superseded", c.Kind)
			case errors.Is(c.Err, ErrTimeout):
				p.tell("%s too long", c.Kind)
			case errors.Is(c.Err, ErrCancelled):
				p.tell("%s cancelled", c.Kind)
			case c.Err != nil:
				p.tell("%s failed: %v", c.Kind, c.Err)
			default:
				p.tell("%s done after %s", c.Kind, c.Took)
			}
		},
	})
}

func TestRunner(t *testing.T) {
	type wish struct {
		at time.Duration
		k  Kind
	}
	const s = time.Second
	for _, tc := range []struct {
		name   string
		wishes []wish
		want   []string
		last   Kind
	}{
		{"promotion", []wish{{0, Start}}, []string{"0s start begins", "2s start done after 2s"}, Start},
		{"demotion while the start hook runs ends it and runs stop",
			[]wish{{0, Start}, {s, Stop}},
			[]string{"0s start begins", "1.5s start superseded", "1.5s stop begins", "2.5s stop done after 1s"}, Stop},
		{"promoted, demoted, promoted quickly ends in start",
			[]wish{{0, Start}, {s, Stop}, {s, Start}},
			[]string{"0s start begins", "1.5s start superseded", "1.5s start begins", "3.5s start done after 2s"}, Start},
		{"demotion, promotion, demotion while the first start hook dies ends in one stop",
			[]wish{{0, Start}, {s, Stop}, {s + s/10, Start}, {s + s/5, Stop}},
			[]string{"0s start begins", "1.5s start superseded", "1.5s stop begins", "2.5s stop done after 1s"}, Stop},
		{"a promotion does not end the stop hook",
			[]wish{{0, Stop}, {s / 2, Start}},
			[]string{"0s stop begins", "1s stop done after 1s", "1s start begins", "3s start done after 2s"}, Start},
		{"what runs is what is wanted again",
			[]wish{{0, Stop}, {s / 4, Start}, {s / 2, Stop}, {s * 3 / 4, Stop}},
			[]string{"0s stop begins", "1s stop done after 1s"}, Stop},
		{"a wish after the end runs again", []wish{{0, Stop}, {2 * s, Stop}},
			[]string{"0s stop begins", "1s stop done after 1s", "2s stop begins", "3s stop done after 1s"}, Stop},
		{"announcements: one runs, one waits", []wish{{0, Advertisement}, {s, Advertisement}, {2 * s, Advertisement}},
			[]string{"0s advertisement begins", "3s advertisement done after 3s", "3s advertisement begins", "6s advertisement done after 3s"}, Advertisement},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &play{took: map[string]time.Duration{"/start": 2 * s, "/stop": s, "/advert": 3 * s}, dying: s / 2}
				r := p.runner()
				for _, w := range tc.wishes {
					time.Sleep(time.Until(p.begin.Add(w.at)))
					r.Want(w.k)
					synctest.Wait()
				}
				if err := r.Wait(t.Context()); err != nil {
					t.Fatal(err)
				}
				if !slices.Equal(p.story, tc.want) {
					t.Errorf("got\n  %s\nwant\n  %s", strings.Join(p.story, "\n  "), strings.Join(tc.want, "\n  "))
				}
				if got := r.Completed(); got.Kind != tc.last || got.Err != nil {
					t.Errorf("last completed %v, %v; want %v", got.Kind, got.Err, tc.last)
				}
			})
		})
	}
}

func TestHookThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &play{took: map[string]time.Duration{"/start": time.Hour, "/stop": time.Second}, dying: 3 * time.Second}
		r := p.runner()
		r.Want(Start)
		r.Wait(t.Context())
		err := r.Completed().Err
		if !errors.Is(err, ErrTimeout) || !strings.Contains(err.Error(), "/start") || !strings.Contains(err.Error(), "$hook_timeout") {
			t.Errorf("error %q: want the script's path and $hook_timeout", err)
		}
		r.Want(Stop)
		r.Wait(t.Context())
		if want := "2m4s stop done after 1s"; p.story[len(p.story)-1] != want {
			t.Errorf("story %q: want its end to be %q", p.story, want)
		}
	})
}

func TestHookThatFailsIsReportedAndTheNextOneRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &play{fail: map[string]error{"/start": errors.New("exit status 1")}}
		r := p.runner()
		r.Want(Start)
		synctest.Wait()
		if got, want := fmt.Sprint(r.Completed().Err), "/start: exit status 1"; got != want {
			t.Errorf("error %q, want %q", got, want)
		}
		r.Want(Stop)
		synctest.Wait()
		if got := r.Completed(); got.Kind != Stop || got.Err != nil {
			t.Errorf("then %+v, want a stop without error", got)
		}
	})
}

// The callback is the daemon's loop posting to itself; a wish from within it,
// or while it is still busy, must not get lost.
func TestWishDuringDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r *Runner
		var runs []Kind
		r = NewRunner(Options{
			Scripts: map[Kind]string{Start: "/start"},
			Exec:    func(context.Context, string, []string, func(string)) error { return nil },
			Done: func(c Completion) {
				if runs = append(runs, c.Kind); len(runs) == 1 {
					r.Want(c.Kind)
				}
			},
		})
		r.Want(Start)
		r.Wait(t.Context())
		if !slices.Equal(runs, []Kind{Start, Start}) {
			t.Errorf("ran %v, want start twice", runs)
		}
	})
}

func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &play{took: map[string]time.Duration{"/start": time.Minute}, dying: time.Second}
		r := p.runner()
		if err := r.Wait(t.Context()); err != nil {
			t.Errorf("an idle runner: %v", err)
		}
		r.Want(Start)
		synctest.Wait()
		r.Want(Stop)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second/2)
		defer cancel()
		if err := r.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Close before the hook has died: %v", err)
		}
		if running, pending := r.Running(); running != Start || pending != None {
			t.Errorf("running %v, pending %v; want start, none", running, pending)
		}
		r.Want(Stop)
		if err := r.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if want := []string{"0s start begins", "1s start superseded"}; !slices.Equal(p.story, want) {
			t.Errorf("got %q, want %q", p.story, want)
		}
	})
}

func TestMissingScriptIsDoneAtOnce(t *testing.T) {
	r := NewRunner(Options{Exec: func(context.Context, string, []string, func(string)) error {
		return errors.New("must not be called")
	}})
	r.Want(Stop)
	if err := r.Close(t.Context()); err != nil || r.Completed().Kind != Stop || r.Completed().Err != nil {
		t.Errorf("%v, %+v", err, r.Completed())
	}
}

func TestEnvironment(t *testing.T) {
	e := Environment{Programs: "/opt/bin", Interface: "eth0", ClusterIP: netip.MustParseAddr("192.168.1.252"), Config: "/c", StatusFile: "/s", RunDir: "/r"}
	want := []string{"PATH=/opt/bin:" + Path, "HOME=/root", "LANG=C.UTF-8", "SKD_STATE=backup", "SKD_INTERFACE=eth0",
		"SKD_CLUSTER_IP=192.168.1.252", "SKD_CONFIG=/c", "SKD_STATUS_FILE=/s", "SKD_RUN_DIR=/r"}
	if got := e.For(Stop); !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
	e.Programs = "/usr/sbin"
	if got := e.For(Start); got[0] != "PATH="+Path || got[3] != "SKD_STATE=master" {
		t.Errorf("got %q", got)
	}
}
