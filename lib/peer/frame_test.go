package peer

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/archive"
	"github.com/skudonet/skudonet-ce-cluster/lib/ledger"
	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
	"github.com/skudonet/skudonet-ce-cluster/lib/vector"
)

func TestFrame(t *testing.T) {
	var b []byte
	list := []frame{{frameStdin, []byte("data")}, {frameClose, []byte{}}, {frameStdout, make([]byte, maxData)}, {'Z', make([]byte, maxControl)}}
	for _, f := range list {
		b = appendFrame(b, f)
	}
	r := bytes.NewReader(b)
	for _, want := range list {
		f, err := readFrame(r)
		if err != nil || f.kind != want.kind || !bytes.Equal(f.body, want.body) {
			t.Errorf("%q %d bytes, %v", f.kind, len(f.body), err)
		}
	}
	if _, err := readFrame(r); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
	for _, bad := range [][]byte{
		{'i', 0, 1, 0, 1}, {'Z', 0, 16, 0, 1}, {'D', 255, 255, 255, 255}, {'c', 0, 0, 0, 1, 0}, {0, 0, 0, 0, 0}, {'1', 0, 0, 0, 0}, {'D', 0}, {'D', 0, 0, 0, 2, '{'},
	} {
		if f, err := readFrame(bytes.NewReader(bad)); err == nil || err == io.EOF {
			t.Errorf("%v: %v, %v", bad, f, err)
		}
	}
}

func TestSkipNoise(t *testing.T) {
	for noise, fine := range map[string]bool{
		"": true, "Welcome\r\nto this machine\n": true, "\x00skd-inotify pee": true, "\x00\x00\x00skd": true,
		strings.Repeat("x", maxNoise): true, strings.Repeat("x", maxNoise+1): false, strings.Repeat("\x00skd", maxNoise/4+1): false,
	} {
		r := bufio.NewReader(strings.NewReader(noise + magic + "rest"))
		_, err := skipNoise(r)
		if (err == nil) != fine {
			t.Errorf("%.20q: %v", noise, err)
		}
		if rest, _ := io.ReadAll(r); fine && string(rest) != "rest" {
			t.Errorf("%.20q: then %q", noise, rest)
		}
	}
}

// openOn opens a session with a server that says script.
func openOn(t *testing.T, script string) (*Client, Hello, error) {
	t.Helper()
	in, w := io.Pipe()
	r, out := io.Pipe()
	go io.Copy(io.Discard, r)
	go func() { io.WriteString(w, script); w.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c, h, err := Open(ctx, in, out, "")
	if c != nil {
		t.Cleanup(c.Close)
	}
	return c, h, err
}

func say(kind byte, v any) string {
	f, err := encode(kind, v)
	if err != nil {
		panic(err)
	}
	return string(appendFrame(nil, f))
}

func TestOpenFails(t *testing.T) {
	for name, c := range map[string]struct {
		script string
		is     error
		words  string
	}{
		"nothing":    {"", ErrAbsent, "no skd-inotify peer"},
		"not found":  {"Welcome\nbash: line 1: skd-inotify: command not found\n", ErrAbsent, "command not found"},
		"not text":   {"\x1b[1mWelcome\xff\x00skd", ErrAbsent, "?[1mWelcome"},
		"noise":      {strings.Repeat("y\n", maxNoise), ErrClosed, "64 KiB"},
		"end":        {magic, ErrClosed, ""},
		"half":       {magic + "H\x00\x00", ErrClosed, ""},
		"absurd":     {magic + "H\xff\xff\xff\xff", ErrClosed, "4294967295"},
		"no JSON":    {magic + "H\x00\x00\x00\x01x", nil, "invalid character"},
		"newer":      {magic + say(frameHello, Hello{Protocol: 7, Version: "9.0"}), ErrVersion, "9.0 chose protocol 7"},
		"refused":    {magic + say(frameError, &Error{Kind: kindVersion, Text: "2 and 1", Remedy: "upgrade"}), ErrVersion, "2 and 1: upgrade"},
		"ended":      {magic + say(frameError, &Error{Kind: kindEnded, Text: "no room"}), ErrClosed, "no room"},
		"out of law": {magic + say(frameHello, Hello{Protocol: Protocol}) + say(frameAnswer, struct{}{}), nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			client, _, err := openOn(t, c.script)
			if client != nil { // it came after the hello
				wait(t, client.Done())
				err = client.Err()
			}
			if err == nil || c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.words) {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestOpenSkipsNoise(t *testing.T) {
	_, h, err := openOn(t, "You have mail.\n"+magic+say(frameHello, Hello{Protocol: Protocol, Version: "x"}))
	if err != nil || h.Version != "x" {
		t.Errorf("%+v, %v", h, err)
	}
}

func TestOpenEndsWithContext(t *testing.T) {
	in, _ := io.Pipe()
	r, out := io.Pipe()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, _, err := Open(ctx, in, out, ""); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if _, err := r.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("out is not closed: %v", err)
	}
}

func TestOpenWithAWrongExclude(t *testing.T) {
	in, _ := io.Pipe()
	_, out := io.Pipe()
	if _, _, err := Open(t.Context(), in, out, "--exclude 'open"); err == nil || !strings.Contains(err.Error(), "$exclude") {
		t.Error(err)
	}
}

func TestOlderClient(t *testing.T) {
	b := newBackup(t)
	var out bytes.Buffer
	in := say(frameHello, greeting{Protocols: []int{7, 8}, Version: "9.0"})
	err := Serve(t.Context(), strings.NewReader(in), &out, hostIn(b.dir))
	if !errors.Is(err, ErrVersion) {
		t.Errorf("Serve: %v", err)
	}
	if !strings.Contains(err.Error(), "9.0") || !strings.Contains(err.Error(), "[7 8]") {
		t.Errorf("%v", err)
	}
}

// One that speaks newer protocols as well is served.
func TestNewerClient(t *testing.T) {
	b := newBackup(t)
	r, w := io.Pipe()
	answers, out := io.Pipe()
	go io.WriteString(w, say(frameHello, greeting{Protocols: []int{7, Protocol}}))
	ended := make(chan error, 1)
	go func() { ended <- Serve(t.Context(), r, out, hostIn(b.dir)) }()
	in := bufio.NewReader(answers)
	_, err := skipNoise(in)
	must(t, err)
	if f, err := readFrame(in); err != nil || f.kind != frameHello {
		t.Errorf("%q, %v", f.kind, err)
	}
	w.Close()
	must(t, <-ended)
}

func TestContextEndsTheSession(t *testing.T) {
	c, _, err := openOn2(t)
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := c.Role(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	wait(t, c.Done())
	if _, err := c.Role(t.Context()); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

// openOn2 opens a session with a server that says no more than hello.
func openOn2(t *testing.T) (*Client, Hello, error) {
	in, w := io.Pipe()
	r, out := io.Pipe()
	go io.Copy(io.Discard, r)
	go io.WriteString(w, magic+say(frameHello, Hello{Protocol: Protocol}))
	c, h, err := Open(t.Context(), in, out, "")
	if c != nil {
		t.Cleanup(c.Close)
	}
	return c, h, err
}

func TestRsyncGivesUpOnASilentServer(t *testing.T) {
	t.Parallel()
	c, _, err := openOn2(t)
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second) // long enough to ask
	defer cancel()
	in, inW := io.Pipe()
	defer inW.Close()
	began := time.Now()
	if _, err := c.Rsync(ctx, ConfigRoot, server, RsyncOptions{}, in, io.Discard, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if took := time.Since(began); took < cancelGrace {
		t.Errorf("gave up after %v", took)
	}
	wait(t, c.Done())
}

func TestServerEndsOnABrokenProtocol(t *testing.T) {
	hello := say(frameHello, greeting{Protocols: []int{Protocol}})
	flood := string(appendFrame(nil, frame{frameStdin, make([]byte, maxData)}))
	run := say(frameRsync, rsyncRequest{Root: ConfigRoot, Args: names(server...)})
	for name, in := range map[string]string{
		"no hello": say(frameRole, struct{}{}), "text": "GET / HTTP/1.1\r\n", "flood": hello + run + strings.Repeat(flood, window/maxData+1),
		"two at a time": hello + run + run, "window": hello + run + string(appendFrame(nil, windowFrame(1))),
	} {
		t.Run(name, func(t *testing.T) {
			b := newBackup(t)
			b.configure(fmt.Sprintf("$rsync=%q;", b.program("sleep 60\n")))
			r, w := io.Pipe()
			defer w.Close()
			go io.WriteString(w, in)
			if err := Serve(t.Context(), r, io.Discard, hostIn(b.dir)); err == nil {
				t.Error("no error")
			}
			r.Close()
			if left := b.rsyncs(); len(left) > 0 {
				t.Errorf("rsync is still there: %v", left)
			}
		})
	}
}

func TestSplit(t *testing.T) {
	small := DigestRequest{Roots: []Look{{Root: "a", Remove: removals('f', "d", "d/e", "d/e/f"), Full: true}, {Root: "b"}}}
	parts := split(small)
	if len(parts) != 1 || string(parts[0].Roots[0].Remove[0].Path) != "d/e/f" || string(small.Roots[0].Remove[0].Path) != "d" {
		t.Errorf("%+v", parts)
	}
	var all []string
	for i := range 3000 {
		all = append(all, fmt.Sprintf("%0*d", manifestPath, i))
	}
	parts = split(DigestRequest{Roots: []Look{{Root: "a", Remove: removals('f', all...), Full: true}, {Root: "b", Paths: names(all...)}}})
	seen := map[string]int{}
	for i, p := range parts {
		if _, err := encode(frameDigest, p); err != nil {
			t.Error(err)
		}
		if last := i == len(parts)-1; p.Roots[0].Full != last || last != (len(p.Roots) == 2) {
			t.Errorf("part %d of %d: %d roots", i, len(parts), len(p.Roots))
		}
		for _, l := range p.Roots {
			for _, x := range l.Remove {
				seen["-"+string(x.Path)]++
			}
			for _, x := range l.Paths {
				seen["+"+string(x)]++
			}
		}
	}
	for _, p := range all {
		if seen["-"+p] != 1 || seen["+"+p] != 1 {
			t.Fatalf("%d and %d times", seen["-"+p], seen["+"+p])
		}
	}
}

const manifestPath = 1000

func TestLockFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run/deep")
	l, err := takeLock(t.Context(), dir)
	must(t, err)
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("%v %v", info, err)
	}
	must(t, l.note(4242))
	if h := l.holder(); h.pid != os.Getpid() || h.group != 4242 || h.asOf == 0 {
		t.Errorf("%+v", h)
	}
	if _, err := takeLock(t.Context(), dir); err == nil {
		t.Error("taken twice by one process")
	}
	l.release()
	l, err = takeLock(t.Context(), dir)
	must(t, err)
	for _, text := range []string{"", "x", "1 0 5\n", "-1 0 5\n", "77 -2 5\n", "77 1 5\n", "99999999999999999999 0 0\n"} {
		must(t, os.WriteFile(filepath.Join(dir, lockName), []byte(text), 0o600))
		if h := l.holder(); h != (holder{}) {
			t.Errorf("%q: %+v", text, h)
		}
	}
	l.release()
}

func FuzzFrame(f *testing.F) {
	f.Add(appendFrame(appendFrame(nil, frame{'D', []byte("{}")}), frame{'c', nil}))
	f.Add([]byte{'i', 255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		var again []byte
		for {
			fr, err := readFrame(r)
			if err != nil {
				break
			}
			again = appendFrame(again, fr)
		}
		if !bytes.HasPrefix(b, again) {
			t.Errorf("%q read as %q", b, again)
		}
	})
}

// Whatever a client says: no panic, and nothing changes outside of the tree.
func FuzzServer(f *testing.F) {
	hello := say(frameHello, greeting{Protocols: []int{Protocol}, Exclude: Name("--exclude x")})
	f.Add([]byte(hello + say(frameRole, struct{}{})))
	f.Add([]byte(hello + say(frameManifest, manifestRequest{ConfigRoot})))
	f.Add([]byte(hello + say(frameDigest, DigestRequest{Roots: []Look{{Root: ConfigRoot, Remove: removals('f', "in", "link/out"), Paths: names("a"), Except: names("b"), Full: true}}})))
	f.Add([]byte(hello + say(frameDigest, DigestRequest{Roots: []Look{{Root: ConfigRoot, Remove: removals('f', "../../outside/out")}}})))
	f.Add([]byte(hello + say(frameRsync, rsyncRequest{Root: ConfigRoot, Args: names(server...)}) + string(appendFrame(nil, frame{'i', []byte("x")})) + string(appendFrame(nil, frame{'c', nil}))))
	keep := &Keeping{Reason: archive.Repair, Peer: "192.0.2.1"}
	f.Add([]byte(hello + say(frameRsync, rsyncRequest{Root: ConfigRoot, Args: names(server...), Keep: keep, Names: 3}) + string(appendFrame(nil, frame{frameNames, []byte("in\x00")})) + string(appendFrame(nil, frame{'c', nil}))))
	f.Add([]byte(hello + say(frameRsync, rsyncRequest{Root: ConfigRoot, Args: names(fetching...), Fetch: true}) + string(appendFrame(nil, frame{'c', nil}))))
	f.Add([]byte(hello + say(frameDigest, DigestRequest{Set: "all", Roots: []Look{{Root: ConfigRoot, Remove: removals('f', "in"), Keep: keep}},
		Commit: &Commit{Vector: vector.Vector{someID: 1}, Digests: map[string]manifest.Digest{ConfigRoot: {}}, Set: "all"}})))
	f.Add([]byte(hello + say(frameVector, struct{}{})))
	f.Add([]byte(hello + say(frameRenew, renewRequest{"a copy"})))
	f.Add([]byte(hello + say(frameKeep, KeepRequest{ID: "1", Reason: archive.Conflict, Ours: vector.Vector{someID: 1}})))
	f.Add(binary.BigEndian.AppendUint32([]byte{'H'}, 1<<31))
	f.Fuzz(func(t *testing.T, in []byte) {
		b := newBackup(t, `$rsync="/bin/true";`)
		b.write(filepath.Join(b.dir, "outside/out"), "precious")
		b.write("in", "1")
		must(t, os.Symlink("../../outside", filepath.Join(b.tree, "link")))
		var out bytes.Buffer
		Serve(t.Context(), bytes.NewReader(in), &out, hostIn(b.dir))
		if text, err := os.ReadFile(filepath.Join(b.dir, "outside/out")); err != nil || string(text) != "precious" {
			t.Errorf("outside: %q, %v", text, err)
		}
		var left []string
		for _, dir := range []string{b.dir, filepath.Join(b.dir, "tree"), filepath.Join(b.dir, "outside")} {
			list, err := os.ReadDir(dir)
			must(t, err)
			for _, e := range list {
				left = append(left, e.Name())
			}
		}
		want := []string{"config", "etc", "out", "outside", "skudonet-cluster.conf", "status", "tree"}
		left = slices.DeleteFunc(left, func(s string) bool { return s == "run" || s == "state" })
		slices.Sort(left)
		if !slices.Equal(left, want) {
			t.Errorf("%q", left)
		}
		for _, name := range stateNames(t, b.dir) {
			if !slices.Contains([]string{"archive", ledger.Name, "ledger.lock", "intent-config", "intent-rt_tables", "known-config", "known-rt_tables"}, name) {
				t.Errorf("in the state directory: %q", name)
			}
		}
	})
}

// Whatever a server says, instead of hello or of an answer: no panic, and the
// client comes to an end.
func FuzzClient(f *testing.F) {
	hello := magic + say(frameHello, Hello{Protocol: Protocol, Role: status.Backup})
	data, err := manifest.New().AppendBinary(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(say(frameAnswer, roleAnswer{status.Backup})), byte(0))
	f.Add([]byte(say(frameAnswer, DigestAnswer{Roots: []RootDigest{{Root: ConfigRoot}}})), byte(1))
	f.Add([]byte(string(appendFrame(nil, frame{framePiece, data}))+say(frameAnswer, manifestAnswer{manifest.New().Digest()})), byte(2))
	f.Add([]byte(string(appendFrame(nil, frame{frameStdout, []byte("x")}))+string(appendFrame(nil, frame{frameStderr, []byte("x")}))+
		string(appendFrame(nil, windowFrame(5)))+say(frameAnswer, rsyncAnswer{3})), byte(3))
	f.Add([]byte(say(frameError, &Error{Kind: kindMaster})), byte(3))
	f.Add([]byte(say(frameAnswer, Standing{ID: someID, Vector: vector.Vector{someID: 1}, Trees: map[string]ledger.Tree{ConfigRoot: {}}})), byte(4))
	f.Add([]byte(say(frameAnswer, renewAnswer{someID})), byte(5))
	f.Add([]byte(say(frameAnswer, Kept{"2026-11-22T065301.123Z-conflict", 3})), byte(6))
	f.Add([]byte("noise"+hello), byte(7))
	f.Fuzz(func(t *testing.T, script []byte, what byte) {
		in, w := io.Pipe()
		r, out := io.Pipe()
		defer r.Close()
		go func() {
			defer w.Close()
			if what%8 < 7 {
				io.WriteString(w, hello)
				readFrame(r)
				readFrame(r) // the request
			}
			go io.Copy(io.Discard, r)
			w.Write(script)
		}()
		c, _, err := Open(t.Context(), in, out, "")
		if err != nil {
			return
		}
		defer c.Close()
		switch what % 8 {
		case 0:
			c.Role(t.Context())
		case 1:
			c.Digest(t.Context(), DigestRequest{Roots: []Look{{Root: ConfigRoot}}})
		case 2:
			c.Manifest(t.Context(), ConfigRoot)
		case 3:
			c.Rsync(t.Context(), ConfigRoot, server, RsyncOptions{Keep: &Keeping{Paths: names("a", "b")}}, strings.NewReader("input"), io.Discard, io.Discard)
		case 4:
			if a, err := c.Standing(t.Context()); err == nil && (a.ID.Check() != nil || a.Vector.Check() != nil) {
				t.Errorf("%+v", a)
			}
		case 5:
			c.Renew(t.Context(), "a copy")
		case 6:
			c.Keep(t.Context(), KeepRequest{ID: "1"})
		}
	})
}
