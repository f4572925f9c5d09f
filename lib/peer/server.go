package peer

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/archive"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
	"github.com/skudonet/skudonet-ce-cluster/lib/version"
)

// Host is where the server finds what it needs on its machine.
type Host struct {
	ConfigPath string // skudonet-cluster.conf
	StatusFile string
	RunDir     string // for the lock; it is made if it is missing
	StateDir   string // for the record, the archives and the intent; it is made if it is missing

	Machine  string        // contents of /etc/machine-id, "" if there is none
	Skudonet func() string // version of Skudonet, "" if unknown; nil: unknown
	Log      func(string)  // what this node's admin should know; nil: nobody is told
}

func (h Host) skudonet() string {
	if h.Skudonet == nil {
		return ""
	}
	return h.Skudonet()
}

func (h Host) log(text string) {
	if h.Log != nil {
		h.Log(text)
	}
}

// role is what the status file says at this moment.
func (h Host) role() string {
	s, err := status.Read(h.StatusFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return RoleStopped
	case err != nil:
		return RoleUnknown
	}
	return s
}

// elects tells whether skd-vrrpd runs on this machine, and speaks VRRPv3.
func (h Host) elects() bool {
	d, err := status.ReadDaemon(filepath.Join(h.RunDir, status.DaemonFile))
	return err == nil && d.Alive() && d.Speaks != status.SpeaksCARP
}

// mayChange refuses what changes the tree of a master.
func (h Host) mayChange() *Error {
	switch h.role() {
	case status.Master:
		return &Error{Kind: kindMaster, Text: "this node is master: it takes no changes from another",
			Remedy: "if there should be one master only, see skd-hooks status on both nodes"}
	case RoleUnknown:
		return &Error{Kind: kindFailed, Text: h.StatusFile + ": says neither master nor backup: no changes are taken",
			Remedy: "restart skudonet-ce-cluster on this node"}
	}
	return nil
}

var (
	errReplaced = errors.New("a signal ended it, perhaps of a newer skd-inotify peer")
	errBroken   = errors.New("the client broke the protocol")
)

// flushLimit is how long the last words may take when the client is slow.
const flushLimit = time.Second

// Serve answers one client until in ends, ctx ends, or a SIGTERM, SIGINT or SIGHUP
// comes. It is nearly all of "skd-inotify peer": it takes charge of these signals,
// of SIGPIPE and of the umask. When it returns, rsync has ended and no temporary
// file is left; a Read of in and a Write to out may still hang. Nil is an orderly
// end.
func Serve(ctx context.Context, in io.Reader, out io.Writer, h Host) error {
	// Writing to a broken standard output must be an error, not the end of us.
	broken := make(chan os.Signal, 1)
	signal.Notify(broken, unix.SIGPIPE)
	defer signal.Stop(broken)
	ctx, stop := signal.NotifyContext(ctx, unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	defer stop()
	unix.Umask(0o022)

	over := make(chan struct{})
	s := &session{host: h, requests: make(chan request, 1), sender: newSender(over), over: over}
	last := make(chan struct{})
	go func() { s.fail(s.writeAll(out, last)) }()
	go func() { s.fail(s.read(in)) }()
	err := s.serve(ctx)
	if ctx.Err() != nil && err == nil {
		err = errReplaced
	}
	var e *Error
	if err != nil && !errors.As(err, &e) {
		e = &Error{Kind: kindEnded, Text: "skd-inotify peer ends: " + err.Error()}
	}
	if e != nil {
		s.say(frameError, e)
	}
	close(last)
	select {
	case <-s.sender.ended:
	case <-time.After(flushLimit):
	}
	s.fail(io.EOF)
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// session is one client being served.
type session struct {
	host     Host
	sender   *sender
	requests chan request
	over     chan struct{} // nothing can be read or written any more

	mu   sync.Mutex
	err  error // why over is closed
	busy bool  // a request has not been answered yet
	run  *run  // takes the small letters

	roots []*root
	rsync string // program
	aside bool   // which would write errors to its standard error
	lock  *lock

	clusterIPs []netip.Addr
	remote     string // address of the other node
	archives   *archive.Store
	limits     archive.Limits
	set        string // which files both nodes look at; "": not said yet
	waiting    bool   // there may be conflicts that wait
}

// request is a capital; run belongs to those for rsync.
type request struct {
	frame
	run *run
}

func (s *session) writeAll(out io.Writer, last <-chan struct{}) error {
	if _, err := io.WriteString(out, magic); err != nil {
		close(s.sender.ended)
		return err
	}
	return s.sender.run(out, last)
}

// fail ends the session; the first reason counts.
func (s *session) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil && s.err == nil {
		s.err = err
		close(s.over)
	}
}

// cause is why the session is over; nil: it is not, or not by itself.
func (s *session) cause() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// read is the goroutine that reads until the session is over. It never waits for
// what it hands on.
func (s *session) read(in io.Reader) error {
	r := bufio.NewReaderSize(in, maxData)
	for {
		f, err := readFrame(r)
		if err != nil {
			return err
		}
		if !isRequest(f.kind) {
			s.mu.Lock()
			run := s.run
			s.mu.Unlock()
			if err := run.take(f); err != nil {
				return fmt.Errorf("%w: %w", errBroken, err)
			}
			continue
		}
		q := request{frame: f}
		if f.kind == frameRsync {
			q.run = newRun()
		}
		s.mu.Lock()
		second := s.busy
		s.busy, s.run = true, q.run
		s.mu.Unlock()
		if second {
			return fmt.Errorf("%w: two requests at a time", errBroken)
		}
		s.requests <- q // has room for one
	}
}

func (s *session) say(kind byte, v any) {
	f, err := encode(kind, v)
	if err != nil {
		f, _ = encode(frameError, &Error{Kind: kindFailed, Text: "the answer: " + err.Error()})
	}
	s.sender.send(f)
}

// answer ends the request under way.
func (s *session) answer(kind byte, v any) {
	s.mu.Lock()
	s.busy, s.run = false, nil
	s.mu.Unlock()
	s.say(kind, v)
}

// serve answers requests; io.EOF is the orderly end.
func (s *session) serve(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-s.over:
			cancel(s.cause())
		case <-ctx.Done():
		}
	}()
	q, err := s.next(ctx)
	if err != nil {
		return err
	}
	if q.kind != frameHello {
		return fmt.Errorf("%w: it did not say hello", errBroken)
	}
	hello, err := s.open(ctx, q.frame)
	defer s.close()
	if err != nil {
		return err
	}
	s.answer(frameHello, hello)
	for {
		q, err := s.next(ctx)
		if err != nil {
			return err
		}
		a, refusal := s.handle(ctx, q)
		switch {
		case ctx.Err() != nil:
			return s.cause()
		case refusal != nil:
			s.answer(frameError, refusal)
		default:
			s.answer(frameAnswer, a)
		}
	}
}

func (s *session) next(ctx context.Context) (request, error) {
	select {
	case q := <-s.requests:
		return q, nil
	case <-ctx.Done():
		return request{}, s.cause()
	}
}

// handle carries out one request, and gives its answer or why there is none.
func (s *session) handle(ctx context.Context, q request) (any, *Error) {
	switch q.kind {
	case frameDigest, frameManifest, frameRsync, frameKeep:
		if refusal := s.recover(ctx); refusal != nil {
			return nil, refusal
		}
	}
	switch q.kind {
	case frameDigest:
		return object(q, func(r DigestRequest) (any, *Error) { return s.digest(ctx, r) })
	case frameManifest:
		return object(q, func(r manifestRequest) (any, *Error) { return s.manifest(ctx, r) })
	case frameRsync:
		return object(q, func(r rsyncRequest) (any, *Error) { return s.runRsync(ctx, r, q.run) })
	case frameRole:
		return roleAnswer{s.host.role()}, nil
	case frameVector:
		return s.standing()
	case frameRenew:
		return object(q, func(r renewRequest) (any, *Error) { return s.renew(ctx, r) })
	case frameKeep:
		return object(q, func(r KeepRequest) (any, *Error) { return s.keep(ctx, r) })
	}
	return nil, &Error{Kind: kindUnknown, Text: fmt.Sprintf("skd-inotify %s does not know the request %q", version.Version, q.kind), Remedy: upgrade}
}

// object calls f with the JSON object of a request.
func object[T any](q request, f func(T) (any, *Error)) (any, *Error) {
	var r T
	if err := decode(q.frame, &r); err != nil {
		return nil, refused("%v", err)
	}
	return f(r)
}

// open makes the session ready for a client that has said hello.
func (s *session) open(ctx context.Context, f frame) (*hello, error) {
	var g greeting
	if err := json.Unmarshal(f.body, &g); err != nil {
		return nil, fmt.Errorf("%w: its hello: %w", errBroken, err)
	}
	if !slices.Contains(g.Protocols, Protocol) {
		return nil, &Error{Kind: kindVersion, Remedy: upgrade, Text: fmt.Sprintf("the peer's skd-inotify %s speaks protocol %d, this one (%.40s) %v",
			version.Version, Protocol, g.Version, g.Protocols[:min(len(g.Protocols), 8)])}
	}
	var err error
	if s.lock, err = takeLock(ctx, s.host.RunDir); err != nil {
		return nil, err
	}
	h := &hello{Hello: Hello{Protocol: Protocol, Version: version.Version, Role: s.host.role(), Elects: s.host.elects()}}
	if err := s.openRoots(ctx, g, h); err != nil {
		h.Problem = err.Error()
		s.closeRoots()
		h.Roots, s.roots = nil, nil
	}
	return h, nil
}

// close leaves the machine as it was.
func (s *session) close() {
	s.closeRoots()
	if s.lock != nil {
		s.lock.release()
	}
}

func (s *session) closeRoots() {
	for _, r := range s.roots {
		empty(r.temp)
		os.Remove(r.temp) // unless something of what was replaced is still there
		if r.stand.Known && r.tree.Manifest().Digest() == r.stand.Tree.Digest {
			r.remember(s.host.StateDir, true)
		}
	}
}

// manifest walks a root and sends what it holds.
func (s *session) manifest(ctx context.Context, r manifestRequest) (any, *Error) {
	root, refusal := s.root(r.Root)
	if refusal != nil {
		return nil, refusal
	}
	if _, err := root.walk(ctx, false); err != nil {
		return nil, root.unreadable(err)
	}
	m := root.tree.Manifest()
	data, err := m.AppendBinary(nil)
	if err != nil {
		return nil, &Error{Kind: kindFailed, Text: fmt.Sprintf("manifest of %s: %v", root.dir, err)}
	}
	for piece := range slices.Chunk(data, maxData) {
		if !s.sender.send(frame{framePiece, piece}) {
			break
		}
	}
	return manifestAnswer{m.Digest()}, nil
}
