package mirror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/control"
	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"github.com/skudonet/skudonet-ce-cluster/lib/peer"
	"github.com/skudonet/skudonet-ce-cluster/lib/remote"
	"github.com/skudonet/skudonet-ce-cluster/lib/rsync"
	"github.com/skudonet/skudonet-ce-cluster/lib/tail"
	"github.com/skudonet/skudonet-ce-cluster/lib/vector"
)

// Carrier connects to the peer over ssh, and rsync to the peer over that.
type Carrier struct {
	SSH     remote.Config
	Rsync   rsync.Runner
	Command string // starts our program on the peer
	Exclude string
	Roots   []Root
	Notice  func(string) // what of ssh_config is not honoured

	Connect func(context.Context) (Line, error) // nil: over ssh

	checked bool // our rsync; Dial's alone

	mu sync.Mutex
	at *pushing
}

// pushing is the run of rsync under way.
type pushing struct {
	ctx   context.Context
	conn  *connection
	root  string
	why   peer.RsyncOptions
	calls sync.WaitGroup // of -e programs
	early *early         // for the first of them; the Carrier's mu guards this and the next
	args  []string       // of the latest of them
	said  *tail.Buffer   // standard error of the other half
	err   error          // what carrying met; the Carrier's mu guards it
}

// keptStderr is how much of a program's standard error on the peer is kept.
const keptStderr = 4096

// beginLimit is the time in which the peer's program must begin to speak.
const beginLimit = 20 * time.Second

// absentExit is a shell's exit status for a program that is not there.
const absentExit = 127

// Dial connects and starts our program there. If there is none the Peer is a
// Legacy one.
func (c *Carrier) Dial(ctx context.Context) (Peer, error) {
	if err := c.checkOurs(ctx); err != nil {
		return nil, err
	}
	connect := c.Connect
	if connect == nil {
		connect = c.overSSH
	}
	line, err := connect(ctx)
	if err != nil {
		return nil, err
	}
	p := &connection{carrier: c, line: line, stderr: tail.New(keptStderr), words: map[string][]string{}}
	if err := p.begin(ctx); err != nil {
		line.Close()
		return nil, err
	}
	return p, nil
}

// checkOurs looks once whether rsync is there and new enough.
func (c *Carrier) checkOurs(ctx context.Context) error {
	if c.checked {
		return nil
	}
	version, err := rsync.Version(ctx, c.Rsync.Program)
	if err == nil {
		err = rsync.CheckVersion(version)
	}
	c.checked = err == nil
	return err
}

func (c *Carrier) notices(list []string) {
	for _, text := range list {
		c.Notice(text)
	}
}

// Rsh serves rsync's -e program: it takes its pipes and carries them to the peer.
//
// The program may end at once: rsync asks for its end last of all, and if it has
// to wait for that it sleeps for 20 ms. What becomes of the other half is told
// to Push.
func (c *Carrier) Rsh(call *control.Call) {
	defer call.Close()
	c.mu.Lock()
	at := c.at
	var early *early
	if at != nil {
		at.calls.Add(1)
		early, at.early, at.args = at.early, nil, call.Args
	}
	c.mu.Unlock()
	if at == nil {
		call.Reply(control.Reply{Text: "no transfer is under way", Exit: 255, Done: true})
		return
	}
	defer at.calls.Done()
	if len(call.Files) < 2 || len(call.Args) < 2 {
		early.end()
		call.Reply(control.Reply{Text: "want the pipes and the command of an rsync", Exit: 255, Done: true})
		return
	}
	in, out := call.Files[0], call.Files[1]
	call.Files = nil
	defer in.Close()
	defer out.Close()
	call.Reply(control.Reply{Done: true})
	exit, err, ok := early.take(call.Args, in, out)
	if !ok {
		run := at.conn.rsync
		if at.conn.Legacy() {
			run = at.conn.plain
		}
		exit, err = run(at, call.Args, in, out)
	}
	if err == nil && exit != 0 {
		text, remedy := rsync.Explain(exit, at.said.String())
		err = &rsync.Failure{Exit: exit, Text: "rsync on the peer: " + text, Remedy: remedy}
	}
	if err != nil {
		c.mu.Lock()
		at.err = err
		c.mu.Unlock()
	}
}

// connection is a Peer over a Line.
type connection struct {
	carrier *Carrier
	line    Line
	session *Program
	client  *peer.Client // nil: legacy
	hello   peer.Hello
	stderr  *tail.Buffer
	words   map[string][]string // of rsync's -e, by root; the Carrier's mu guards them
}

func (p *connection) begin(ctx context.Context) error {
	session, err := p.line.Start(p.carrier.Command)
	if err != nil {
		return err
	}
	p.session = session
	var reading sync.WaitGroup
	reading.Go(func() { io.Copy(p.stderr, session.Stderr) })
	limited, cancel := context.WithTimeout(ctx, beginLimit)
	defer cancel()
	p.client, p.hello, err = peer.Open(limited, session.Stdout, session.Stdin, p.carrier.Exclude)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, peer.ErrAbsent):
		defer context.AfterFunc(limited, func() { session.Close() })()
		exit, werr := session.Wait()
		if werr != nil {
			return werr
		}
		if exit == absentExit {
			p.client = nil
			session.Close()
			return nil
		}
		reading.Wait()
		session.Close()
		return &Trouble{fmt.Sprintf("skd-inotify peer ended there with exit status %d: %s", exit, p.stderr.LastLine()),
			"run it there by hand to see why: " + p.carrier.Command}
	case limited.Err() != nil && ctx.Err() == nil:
		session.Close()
		return &Trouble{fmt.Sprintf("skd-inotify peer does not begin to speak within %s", beginLimit),
			"see whether root's .bashrc on the peer waits for something"}
	case errors.Is(err, peer.ErrVersion):
		session.Close()
		return &Trouble{err.Error(), ""}
	}
	session.Close()
	return err
}

func (p *connection) Hello() peer.Hello { return p.hello }
func (p *connection) Legacy() bool      { return p.client == nil }

func (p *connection) Digest(ctx context.Context, r peer.DigestRequest) (peer.DigestAnswer, error) {
	return p.client.Digest(ctx, r)
}

func (p *connection) Standing(ctx context.Context) (peer.Standing, error) {
	return p.client.Standing(ctx)
}

func (p *connection) Renew(ctx context.Context, why string) (vector.ID, error) {
	return p.client.Renew(ctx, why)
}

func (p *connection) Keep(ctx context.Context, r peer.KeepRequest) (peer.Kept, error) {
	return p.client.Keep(ctx, r)
}

func (p *connection) Manifest(ctx context.Context, root string) (*manifest.Manifest, error) {
	return p.client.Manifest(ctx, root)
}

// Done is that of the session, which ends with the connection.
func (p *connection) Done() <-chan struct{} {
	if p.Legacy() {
		return p.line.Done()
	}
	return p.client.Done()
}

func (p *connection) Err() error {
	if err := p.line.Err(); err != nil {
		return err
	}
	if p.client != nil {
		if err := p.client.Err(); err != nil {
			if said := p.stderr.LastLine(); said != "" {
				return fmt.Errorf("%w; it said: %s", err, said)
			}
			return err
		}
	}
	return nil
}

func (p *connection) Close() error {
	if p.client != nil {
		p.client.Close()
		p.session.Close()
	}
	return p.line.Close()
}

// farewell is the time that the other half has to end by itself after ours has failed.
const farewell = time.Second

// Push runs rsync to the peer.
func (p *connection) Push(ctx context.Context, t Transfer) error {
	job := rsync.Job{Source: t.Source, Files: t.Files, Whole: t.Whole}
	if job.Whole {
		job.Filters, job.TempDir = t.Set.Args(), p.carrier.temp(t.Root)
	}
	return p.transfer(ctx, t.Root, job, peer.RsyncOptions{Keep: t.Keep})
}

// Fetch runs rsync from the peer.
func (p *connection) Fetch(ctx context.Context, root string, files []string, into string) error {
	return p.transfer(ctx, root, rsync.Job{Source: into, Files: files, Fetch: true}, peer.RsyncOptions{Fetch: true})
}

// transfer runs rsync, whose -e program finds this connection. When our half has
// ended well, everything is in its place, for it has heard the other half's last
// word; that one would go on sleeping for a moment, so it is ended.
func (p *connection) transfer(ctx context.Context, root string, job rsync.Job, why peer.RsyncOptions) error {
	carrying, end := context.WithCancel(ctx)
	defer end()
	at := &pushing{ctx: carrying, conn: p, root: root, why: why, said: tail.New(keptStderr)}
	c := p.carrier
	c.mu.Lock()
	if !p.Legacy() && !job.Fetch {
		at.early = p.ahead(at)
	}
	c.at = at
	c.mu.Unlock()
	_, err := c.Rsync.Run(ctx, job)
	c.mu.Lock()
	early := at.early // nobody took it
	c.at, at.early = nil, nil
	c.mu.Unlock()
	early.end()
	switch {
	case err == nil && !p.Legacy():
		end()
	case err == nil:
		defer time.AfterFunc(beginLimit, end).Stop()
	default:
		defer time.AfterFunc(farewell, end).Stop()
	}
	at.calls.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil && p.Legacy() {
		return at.err // Nobody ended it, so its own exit status counts.
	} else if err == nil {
		if !job.Fetch {
			p.words[root] = at.args
		}
		var refusal *peer.Error
		if errors.As(at.err, &refusal) {
			return refusal // It is not about rsync, but about what that has replaced.
		}
		return nil
	}
	if at.err != nil && !errors.Is(at.err, context.Canceled) {
		var ours, theirs *rsync.Failure
		if errors.As(err, &ours) && errors.As(at.err, &theirs) && ours.Exit != lostPipes {
			return err // It has heard from the other half.
		}
		return at.err
	}
	return err
}

// lostPipes is rsync's exit status for a connection that was closed: the other
// half knows why.
const lostPipes = 12

func (p *connection) rsync(at *pushing, args []string, in io.Reader, out io.Writer) (int, error) {
	return p.client.Rsync(at.ctx, at.root, args, at.why, in, out, at.said)
}
