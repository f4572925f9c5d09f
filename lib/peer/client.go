package peer

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"github.com/skudonet/skudonet-ce-cluster/lib/vector"
	"github.com/skudonet/skudonet-ce-cluster/lib/version"
)

// Client is the master's side of a session. Its methods may be called from
// several goroutines; one request is under way at a time.
type Client struct {
	in  io.Reader
	out io.WriteCloser

	turn   chan struct{} // holds a token while nobody asks
	sender *sender
	done   chan struct{}

	mu   sync.Mutex
	call *call // under way
	err  error // why done is closed
}

// call is a request under way.
type call struct {
	part   func(frame) error // takes the small letters; must not wait
	answer chan frame        // room for one
}

// Open begins a session over the standard output (in) and input (out) of
// "skd-inotify peer", and tells it this node's $exclude. Output of a shell
// before the session begins is skipped. The error wraps ErrAbsent if there is no
// such program, ErrVersion if there is no common protocol. When ctx ends before
// Open is through, in and out are closed; afterwards ctx has no meaning. in is
// closed with the session if it is an io.Closer; if it is none, the caller must
// see to it that its Read returns once out was closed.
func Open(ctx context.Context, in io.Reader, out io.WriteCloser, exclude string) (*Client, Hello, error) {
	c := &Client{in: in, out: out, turn: make(chan struct{}, 1), done: make(chan struct{})}
	_, rules, err := readRules(exclude)
	if err != nil {
		c.fail(err)
		return nil, Hello{}, fmt.Errorf("$exclude: %w", err)
	}
	c.sender = newSender(c.done)
	greeted := &call{answer: make(chan frame, 1)}
	c.call = greeted
	began := make(chan struct{})
	go c.read(began)
	select {
	case <-began:
	case <-c.done:
		select {
		case <-began: // and ended at once: what it said may tell why
		default:
			return nil, Hello{}, c.Err()
		}
	case <-ctx.Done():
		c.fail(ctx.Err())
		return nil, Hello{}, fmt.Errorf("waiting for skd-inotify peer to begin: %w", context.Cause(ctx))
	}
	go func() { c.fail(c.sender.run(out, nil)) }()
	h, err := c.greet(ctx, greeted, greeting{[]int{Protocol}, version.Version, Name(exclude), rules})
	if err != nil {
		c.fail(err)
		return nil, Hello{}, err
	}
	c.turn <- struct{}{}
	return c, h, nil
}

func (c *Client) greet(ctx context.Context, greeted *call, g greeting) (Hello, error) {
	f, err := encode(frameHello, g)
	if err != nil {
		return Hello{}, fmt.Errorf("$exclude: %w", err)
	}
	c.sender.send(f)
	f, err = c.wait(ctx, greeted)
	if err != nil {
		return Hello{}, err
	}
	var h hello
	if err := decode(f, &h); err != nil {
		return Hello{}, err
	}
	if h.Protocol != Protocol {
		return Hello{}, &Error{Kind: kindVersion, Remedy: upgrade, Text: fmt.Sprintf(
			"the peer's skd-inotify %s chose protocol %d, this one (%s) speaks %d", h.Version, h.Protocol, version.Version, Protocol)}
	}
	if h.ID != "" {
		if err := errors.Join(h.ID.Check(), h.Vector.Check()); err != nil {
			return Hello{}, fmt.Errorf("the peer's hello: %w", err)
		}
	}
	h.Hello.Exclude, h.Hello.rules = string(h.Exclude), h.Rules
	return h.Hello, nil
}

const upgrade = "install the same version of skudonet-ce-cluster on both nodes"

// read is the goroutine that reads until the session ends.
func (c *Client) read(began chan<- struct{}) {
	r := bufio.NewReaderSize(c.in, maxData)
	if tail, err := skipNoise(r); err != nil {
		c.fail(absent(tail, err))
		return
	}
	close(began)
	for {
		f, err := readFrame(r)
		if err == nil {
			err = c.dispatch(f)
		}
		if err != nil {
			c.fail(err)
			return
		}
	}
}

// absent is the error for a session that did not begin with the magic line.
func absent(noise []byte, err error) error {
	lines := strings.Split(strings.TrimSpace(strings.ToValidUTF8(string(noise), "?")), "\n")
	last := strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, strings.TrimSpace(lines[len(lines)-1]))
	switch {
	case !errors.Is(err, io.EOF):
		return fmt.Errorf("waiting for skd-inotify peer to begin: %w", err)
	case last == "":
		return ErrAbsent
	}
	return fmt.Errorf("%w: the last that was said is %q", ErrAbsent, last)
}

func (c *Client) dispatch(f frame) error {
	c.mu.Lock()
	call := c.call
	if isRequest(f.kind) {
		c.call = nil
	}
	c.mu.Unlock()
	var e *Error
	switch {
	case f.kind == frameError && errors.As(asError(f), &e) && (call == nil || e.Kind == kindEnded):
		return e
	case isRequest(f.kind) && call == nil:
		return fmt.Errorf("frame %q from the peer: nothing was asked", f.kind)
	case isRequest(f.kind):
		call.answer <- f
	case call != nil && call.part != nil:
		return call.part(f)
	}
	return nil
}

// fail ends the session for a reason, the first of which counts.
func (c *Client) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	if err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = ErrClosed
	}
	if !errors.Is(err, ErrClosed) && !errors.Is(err, ErrAbsent) && !errors.Is(err, ErrVersion) {
		err = fmt.Errorf("%w: %w", ErrClosed, err)
	}
	c.err = err
	close(c.done)
	c.out.Close()
	if in, ok := c.in.(io.Closer); ok {
		in.Close()
	}
}

// Done is closed when the session has ended.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err returns why Done is closed, nil as long as it is not. It wraps ErrClosed
// unless the session never began.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the session.
func (c *Client) Close() { c.fail(nil) }

// begin waits for this goroutine's turn and sends the request. finish gives
// the turn on.
func (c *Client) begin(ctx context.Context, kind byte, request any, part func(frame) error) (*call, error) {
	f, err := encode(kind, request)
	if err != nil {
		return nil, err
	}
	select {
	case <-c.turn:
	case <-c.done:
		return nil, c.Err()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	k := &call{part: part, answer: make(chan frame, 1)}
	c.mu.Lock()
	c.call = k
	c.mu.Unlock()
	select {
	case c.sender.frames <- f:
	case <-c.done:
		return nil, c.Err()
	case <-ctx.Done():
		c.fail(context.Cause(ctx))
		return nil, context.Cause(ctx)
	}
	return k, nil
}

func (c *Client) finish() { c.turn <- struct{}{} }

// wait waits for the answer, which an end of ctx makes useless: the session ends.
func (c *Client) wait(ctx context.Context, k *call) (frame, error) {
	select {
	case f := <-k.answer:
		return f, asError(f)
	case <-c.done:
		select { // answered, and ended at once
		case f := <-k.answer:
			return f, asError(f)
		default:
			return frame{}, c.Err()
		}
	case <-ctx.Done():
		c.fail(context.Cause(ctx))
		return frame{}, context.Cause(ctx)
	}
}

func asError(f frame) error {
	if f.kind != frameError {
		return nil
	}
	var e Error
	if err := decode(f, &e); err != nil {
		return err
	}
	return &e
}

// ask carries out a request whose answer is a JSON object.
func (c *Client) ask(ctx context.Context, kind byte, request, answer any, part func(frame) error) error {
	k, err := c.begin(ctx, kind, request, part)
	if err != nil {
		return err
	}
	f, err := c.wait(ctx, k)
	c.finish()
	if err != nil {
		return err
	}
	return decode(f, answer)
}

// Role returns what the server's status file says: status.Master, status.Backup,
// RoleStopped or RoleUnknown.
func (c *Client) Role(ctx context.Context) (string, error) {
	var a roleAnswer
	err := c.ask(ctx, frameRole, struct{}{}, &a, nil)
	return a.Role, err
}

// Standing returns what the server's node knows of its configuration.
func (c *Client) Standing(ctx context.Context) (Standing, error) {
	var a Standing
	err := c.ask(ctx, frameVector, struct{}{}, &a, nil)
	if err == nil {
		err = errors.Join(a.ID.Check(), a.Vector.Check())
	}
	if err != nil {
		return Standing{}, err
	}
	return a, nil
}

// Renew has the server's node take a new identity, because of why, and returns it.
// The error wraps ErrMaster if the peer is master.
func (c *Client) Renew(ctx context.Context, why string) (vector.ID, error) {
	var a renewAnswer
	if err := c.ask(ctx, frameRenew, renewRequest{why}, &a, nil); err != nil {
		return "", err
	}
	return a.ID, a.ID.Check()
}

// Keep has the server archive all it has, as a conflict that waits to be
// resolved. The error wraps ErrMaster if the peer is master.
func (c *Client) Keep(ctx context.Context, r KeepRequest) (Kept, error) {
	var a Kept
	err := c.ask(ctx, frameKeep, r, &a, nil)
	return a, err
}

// maxNames bounds the names in one digest request, in bytes: in base64, with
// what stands around them, they fit into a message.
const maxNames = 256 << 10

// Digest removes, looks and walks as the request says and returns the digest of
// each of its roots, in its order. The error wraps ErrMaster if there are removals
// or a Commit, and the peer is master.
func (c *Client) Digest(ctx context.Context, r DigestRequest) (DigestAnswer, error) {
	var all DigestAnswer
	for _, part := range split(r) {
		var a DigestAnswer
		if err := c.ask(ctx, frameDigest, part, &a, nil); err != nil {
			return DigestAnswer{}, err
		}
		if !slices.EqualFunc(part.Roots, a.Roots, func(l Look, d RootDigest) bool { return l.Root == d.Root }) {
			return DigestAnswer{}, errors.New("the peer answered for other roots than it was asked for")
		}
		all.Roots = merge(all.Roots, a.Roots)
		all.Committed, all.NotCommitted = a.Committed, a.NotCommitted
	}
	return all, nil
}

// split makes requests that fit into a message each. Only the last one has
// whole looks; those before it remove and look at what does not fit.
func split(r DigestRequest) []DigestRequest {
	var parts []DigestRequest
	last := r
	last.Roots = slices.Clone(r.Roots)
	for i := range last.Roots {
		l := &last.Roots[i]
		l.Remove = slices.Clone(l.Remove)
		slices.SortFunc(l.Remove, childrenFirst)
		budget := maxNames / len(last.Roots)
		for tooLong(l, budget) {
			part := Look{Root: l.Root, Keep: l.Keep}
			n := 0
			for n < budget && len(l.Remove) > 0 {
				part.Remove = append(part.Remove, l.Remove[0])
				n += cost(l.Remove[0].Path)
				l.Remove = l.Remove[1:]
			}
			for n < budget && len(l.Paths) > 0 {
				part.Paths = append(part.Paths, l.Paths[0])
				n += cost(l.Paths[0])
				l.Paths = l.Paths[1:]
			}
			parts = append(parts, DigestRequest{Roots: []Look{part}, Set: r.Set})
		}
	}
	return append(parts, last)
}

func tooLong(l *Look, budget int) bool {
	n := 0
	for _, r := range l.Remove {
		n += cost(r.Path)
	}
	for _, p := range l.Paths {
		n += cost(p)
	}
	return n > budget
}

// cost is about what a name takes in a message, before base64.
func cost(n Name) int { return len(n) + 24 }

// childrenFirst orders paths so that all below a directory comes before it.
func childrenFirst(a, b Removal) int { return bytes.Compare(b.Path, a.Path) }

// merge puts the answers of a later part in the place of earlier ones, whose
// problems are kept.
func merge(before, now []RootDigest) []RootDigest {
	for i := range now {
		d := &now[i]
		at := slices.IndexFunc(before, func(b RootDigest) bool { return b.Root == d.Root })
		if at < 0 {
			continue
		}
		b := before[at]
		list := slices.Concat(b.Problems, d.Problems)
		d.More += b.More + max(0, len(list)-maxProblems)
		d.Problems = list[:min(len(list), maxProblems)]
		d.Walked = d.Walked || b.Walked
		before = slices.Delete(before, at, at+1)
	}
	return append(before, now...)
}

// maxManifest is more than any manifest takes that this program can hold.
const maxManifest = 64 << 20

// Manifest walks a root of the server and returns its manifest.
func (c *Client) Manifest(ctx context.Context, root string) (*manifest.Manifest, error) {
	var data []byte
	var a manifestAnswer
	err := c.ask(ctx, frameManifest, manifestRequest{root}, &a, func(f frame) error {
		if f.kind != framePiece {
			return nil
		}
		if data = append(data, f.body...); len(data) > maxManifest {
			return fmt.Errorf("a manifest of more than %d MiB", maxManifest>>20)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	m, err := manifest.Parse(data)
	switch {
	case err != nil:
		return nil, fmt.Errorf("the peer's manifest of %s: %w", root, err)
	case m.Digest() != a.Digest:
		return nil, fmt.Errorf("the peer's manifest of %s does not have the digest that was sent with it", root)
	}
	return m, nil
}

const (
	cancelGrace = 2 * time.Second
	maxStderr   = 64 << 10 // of one run of rsync
)

// Rsync runs rsync's server half in a root of the peer. args are the words that
// the local rsync gives to its -e program: host, "rsync", "--server" and so on. What
// comes from in goes to its standard input, its standard output to out, its
// standard error to errs, at the end and cut after 64 KiB. Rsync returns its exit
// status, 128 and the signal if one ended it. The error wraps ErrMaster if the
// peer is master, or became it meanwhile. When ctx ends the peer's rsync is
// ended; the session goes on if its exit status comes within two seconds.
//
// in and out should know deadlines, as pipes do: so a Read or a Write under way is
// ended when rsync has. Where they do not, and are an io.Closer, they are closed.
func (c *Client) Rsync(ctx context.Context, root string, args []string, o RsyncOptions, in io.Reader, out, errs io.Writer) (exit int, err error) {
	request := rsyncRequest{Root: root, Fetch: o.Fetch, Keep: o.Keep}
	var names []byte
	if o.Keep != nil {
		names = joined(o.Keep.Paths)
		request.Names = len(names)
	}
	for _, a := range args {
		request.Args = append(request.Args, Name(a))
	}
	stdin, stdout, stderr := newOutflow(), newInflow(), new(collected)
	k, err := c.begin(ctx, frameRsync, request, func(f frame) error {
		switch f.kind {
		case frameWindow:
			return stdin.grant(f.body)
		case frameStdout:
			return stdout.put(f.body)
		case frameStderr:
			return stderr.add(f.body)
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	stop := make(chan struct{})
	send := func(f frame) bool { return c.sendUntil(stop, f) }
	for part := range slices.Chunk(names, maxData) {
		c.sender.send(frame{frameNames, part})
	}
	read, written := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(read)
		stdin.pump(in, frameStdin, stop, send)
		send(frame{kind: frameClose})
	}()
	go func() {
		defer close(written)
		stdout.drain(out, stop, send)
	}()
	f, err := c.waitRsync(ctx, k)
	if err == nil {
		// All output came before the exit status; let out take it.
		stdout.end()
		select {
		case <-written:
		case <-ctx.Done():
			err = context.Cause(ctx)
		case <-c.done:
			err = c.Err()
		}
	}
	close(stop)
	interrupt(in, read)
	interrupt(out, written)
	if errs != nil {
		errs.Write(stderr.take())
	}
	c.finish()
	if err != nil {
		return 0, err
	}
	var a rsyncAnswer
	err = decode(f, &a)
	return a.Exit, err
}

// collected is rsync's standard error as far as it came.
type collected struct {
	mu   sync.Mutex
	text []byte
}

func (c *collected) add(b []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.text)+len(b) > 2*maxStderr {
		return errors.New("the peer sent more of rsync's standard error than it may")
	}
	c.text = append(c.text, b...)
	return nil
}

func (c *collected) take() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text
}

func (c *Client) sendUntil(stop <-chan struct{}, f frame) bool {
	select {
	case <-stop:
		return false
	default:
	}
	select {
	case c.sender.frames <- f:
		return true
	case <-stop:
		return false
	case <-c.done:
		return false
	}
}

// waitRsync waits for the exit status, also for a moment after ctx has ended.
func (c *Client) waitRsync(ctx context.Context, k *call) (frame, error) {
	select {
	case <-ctx.Done():
	case f := <-k.answer:
		return f, asError(f)
	case <-c.done:
		return c.wait(ctx, k)
	}
	grace, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), cancelGrace, context.Cause(ctx))
	defer cancel()
	c.sendUntil(grace.Done(), frame{kind: frameCancel})
	f, err := c.wait(grace, k)
	if err == nil {
		err = context.Cause(ctx)
	}
	return f, err
}

// interrupt ends a Read or Write under way, and waits until its goroutine has
// ended; not for ever, as a file in blocking mode cannot be interrupted.
func interrupt(stream any, ended <-chan struct{}) {
	select {
	case <-ended:
		return
	default:
	}
	d, ok := stream.(interface{ SetDeadline(time.Time) error })
	if !ok || d.SetDeadline(time.Unix(1, 0)) != nil {
		if f, ok := stream.(io.Closer); ok {
			f.Close()
		}
	}
	select {
	case <-ended:
	case <-time.After(time.Second):
	}
}
