package peer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/control"
	"github.com/skudonet/skudonet-ce-cluster/lib/fileset"
	"github.com/skudonet/skudonet-ce-cluster/lib/manifest"
	"github.com/skudonet/skudonet-ce-cluster/lib/rsync"
	"github.com/skudonet/skudonet-ce-cluster/lib/scan"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
)

// The test binary is also the two programs that are run beside it.
func TestMain(m *testing.M) {
	switch os.Getenv("PEER_TEST") {
	case "serve":
		dir := os.Getenv("PEER_TEST_DIR")
		if os.Getenv("PEER_TEST_DEAF") != "" {
			// One that does not end by itself: it has the lock and hears no signal.
			signal.Ignore(unix.SIGTERM) // which may come before it has stopped
			l, err := takeLock(context.Background(), hostIn(dir).RunDir)
			fmt.Println(l, err)
			unix.Kill(os.Getpid(), unix.SIGSTOP)
		}
		if err := Serve(context.Background(), os.Stdin, os.Stdout, hostIn(dir)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	case "rsh":
		os.Exit(rsync.Rsh(os.Args[1:]))
	}
	exit := m.Run()
	os.RemoveAll(steps.dir)
	os.Exit(exit)
}

func hostIn(dir string) Host {
	return Host{ConfigPath: filepath.Join(dir, "skudonet-cluster.conf"), StatusFile: filepath.Join(dir, "status"), RunDir: filepath.Join(dir, "run"),
		StateDir: filepath.Join(dir, "state"), Machine: "the backup", Skudonet: func() string { return "7.1.0" }}
}

// backup is the backup's machine in a directory.
type backup struct {
	t    *testing.T
	dir  string
	tree string
}

func newBackup(t *testing.T, conf ...string) *backup {
	t.Helper()
	b := &backup{t: t, dir: t.TempDir()}
	b.tree = filepath.Join(b.dir, "tree/config")
	must(t, os.MkdirAll(b.tree, 0o755))
	b.configure(conf...)
	must(t, status.Write(hostIn(b.dir).StatusFile, status.Backup))
	return b
}

func (b *backup) configure(conf ...string) {
	b.t.Helper()
	lines := []string{`$interface="eth0";`, `$local_ip="192.0.2.2";`, `$remote_ip="192.0.2.1";`, `$cluster_ip="192.0.2.9";`, `$cluster_id="1";`,
		fmt.Sprintf("$configdir=%q;", b.tree), fmt.Sprintf("$rttables=%q;", filepath.Join(b.dir, "etc/iproute2/rt_tables"))}
	must(b.t, os.MkdirAll(filepath.Join(b.dir, "etc"), 0o755))
	b.write(hostIn(b.dir).ConfigPath, strings.Join(append(lines, conf...), "\n")+"\n")
}

func (b *backup) write(path, text string) {
	b.t.Helper()
	if !filepath.IsAbs(path) {
		path = filepath.Join(b.tree, path)
	}
	must(b.t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(b.t, os.WriteFile(path, []byte(text), 0o600))
}

func (b *backup) exists(path string) bool {
	_, err := os.Lstat(filepath.Join(b.tree, path))
	return err == nil
}

// served is a session with a Serve in this process.
type served struct {
	*Client
	hello Hello
	ended chan error // what Serve returned
	stop  context.CancelFunc
}

func (b *backup) open(exclude string) *served {
	b.t.Helper()
	s, err := b.tryOpen(exclude)
	must(b.t, err)
	return s
}

func (b *backup) tryOpen(exclude string) (*served, error) {
	b.t.Helper()
	inR, inW, err := os.Pipe()
	must(b.t, err)
	outR, outW, err := os.Pipe()
	must(b.t, err)
	ctx, stop := context.WithCancel(context.Background())
	s := &served{ended: make(chan error, 1), stop: stop}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.ended <- Serve(ctx, inR, outW, hostIn(b.dir))
		outW.Close()
		inR.Close()
	}()
	s.Client, s.hello, err = Open(b.t.Context(), outR, inW, exclude)
	b.t.Cleanup(func() {
		stop()
		if s.Client != nil {
			s.Client.Close()
		}
		wait(b.t, done)
	})
	return s, err
}

func wait(t *testing.T, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(20 * time.Second):
		t.Fatal("not within 20 s")
	}
}

func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func names(list ...string) []Name {
	var n []Name
	for _, s := range list {
		n = append(n, Name(s))
	}
	return n
}

func removals(kind manifest.Kind, list ...string) []Removal {
	var r []Removal
	for _, s := range list {
		r = append(r, Removal{Name(s), byte(kind)})
	}
	return r
}

// digest asks for one root.
func (s *served) digest(t *testing.T, l Look) RootDigest {
	t.Helper()
	if l.Root == "" {
		l.Root = ConfigRoot
	}
	d, err := s.Digest(t.Context(), DigestRequest{Roots: []Look{l}})
	must(t, err)
	return d.Roots[0]
}

func (s *served) root(t *testing.T, name string) Root {
	t.Helper()
	i := slices.IndexFunc(s.hello.Roots, func(r Root) bool { return r.Name == name })
	if i < 0 {
		t.Fatalf("no root %s in %+v", name, s.hello)
	}
	return s.hello.Roots[i]
}

// local is the manifest of a directory as this process sees it.
func local(t *testing.T, dir string, exclude string) *manifest.Manifest {
	t.Helper()
	list, _, err := fileset.ParseList(exclude, os.ReadFile)
	must(t, err)
	tree := scan.New(scan.Root{Dir: dir, Set: fileset.New(list)})
	_, err = tree.Scan(t.Context(), true)
	must(t, err)
	return tree.Manifest()
}

// transfer is a local rsync under way, whose other half the peer runs.
type transfer struct {
	exit   int // of the other half
	err    error
	stderr strings.Builder
	local  error
	ended  chan struct{}
}

// rsync starts the local half of an rsync of named files from src.
func (s *served) rsync(ctx context.Context, t *testing.T, root, src, files string, options ...string) *transfer {
	return s.carry(ctx, t, root, src, files, RsyncOptions{}, options...)
}

// carry is rsync with options of ours. With Fetch it goes from the peer to src.
func (s *served) carry(ctx context.Context, t *testing.T, root, src, files string, o RsyncOptions, options ...string) *transfer {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	socket := filepath.Join(t.TempDir(), "socket")
	l, err := control.Listen(socket)
	must(t, err)
	args := []string{"-rlpogD", "--files-from=-", "--from0", "-e", self}
	if !o.Fetch {
		args = append(args, "--temp-dir="+s.root(t, root).Temp)
	}
	from, to := src+"/", "peer:./"
	if o.Fetch {
		from, to = to, from
	}
	cmd := exec.Command("rsync", append(append(args, options...), from, to)...)
	cmd.Env = append(os.Environ(), "PEER_TEST=rsh", rsync.SocketVariable+"="+socket)
	cmd.Stdin = strings.NewReader(files)
	x := &transfer{ended: make(chan struct{})}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	called := make(chan struct{})
	go func() {
		defer close(called)
		call, err := l.Accept()
		if err != nil {
			x.err = err
			return
		}
		defer call.Close()
		in, out := call.Files[0], call.Files[1]
		x.exit, x.err = s.Rsync(ctx, root, call.Args, o, in, out, &x.stderr)
		in.Close()
		out.Close()
		call.Reply(control.Reply{Exit: x.exit, Done: true})
	}()
	must(t, cmd.Start())
	go func() {
		defer close(x.ended)
		x.local = cmd.Wait()
		if x.local != nil {
			x.local = fmt.Errorf("%w: %s", x.local, stderr.String())
		}
		l.Close()
		<-called
	}()
	return x
}

func (x *transfer) wait(t *testing.T) {
	t.Helper()
	wait(t, x.ended)
}

func noTemp(t *testing.T, dirs ...string) {
	t.Helper()
	for _, dir := range dirs {
		if list, err := os.ReadDir(dir); err == nil && len(list) > 0 {
			t.Errorf("%s holds %v", dir, list)
		}
	}
}

func TestHello(t *testing.T) {
	rules := filepath.Join(t.TempDir(), "rules")
	must(t, os.WriteFile(rules, []byte("from-\xff-file\n"), 0o600))
	b := newBackup(t, `$exclude="--exclude ours --exclude-from=`+rules+`";`)
	s := b.open("--exclude theirs")
	h := s.hello
	if h.Protocol != Protocol || h.Version == "" || h.Role != status.Backup || h.Problem != "" || h.Rsync == "" {
		t.Errorf("hello: %+v", h)
	}
	if h.Elects {
		t.Error("hello: skd-vrrpd runs, where none does")
	}
	if want := "--exclude ours --exclude-from=" + rules; h.Exclude != want {
		t.Errorf("exclude %q, want %q", h.Exclude, want)
	}
	if text, err := h.ReadFile(rules); err != nil || string(text) != "from-\xff-file\n" {
		t.Errorf("rules: %q, %v", text, err)
	}
	if _, err := h.ReadFile("/etc/passwd"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("another file: %v", err)
	}
	if r := s.root(t, ConfigRoot); r.Dir != b.tree || r.Temp != filepath.Join(b.dir, "tree", fileset.TempName) {
		t.Errorf("config: %+v", r)
	}
	if r := s.root(t, RTTablesRoot); r.Dir != filepath.Join(b.dir, "etc/iproute2") || r.Temp != filepath.Join(b.dir, "etc", fileset.TempName) {
		t.Errorf("rt_tables: %+v", r)
	}
	for _, r := range h.Roots {
		if info, err := os.Stat(r.Temp); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v %v", r.Temp, info, err)
		}
	}
	// Both sides' rules hold.
	for _, f := range []string{"ours", "theirs", "from-\xff-file", "if_eth0_conf", "kept", fileset.TempName + "/x"} {
		b.write(f, f)
	}
	m, err := s.Manifest(t.Context(), ConfigRoot)
	must(t, err)
	if got := m.Below("."); !slices.Equal(got, []string{"kept"}) {
		t.Errorf("in the file set: %q", got)
	}
	s.Close()
	if err := <-s.ended; err != nil {
		t.Errorf("Serve: %v", err)
	}
	for _, r := range h.Roots {
		if _, err := os.Lstat(r.Temp); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s after the end: %v", r.Temp, err)
		}
	}
}

func TestLeftoversOfAnOlderSession(t *testing.T) {
	b := newBackup(t)
	b.write(filepath.Join(b.dir, "tree", fileset.TempName, "a/b"), "torn")
	s := b.open("")
	noTemp(t, s.root(t, ConfigRoot).Temp)
}

func TestProblem(t *testing.T) {
	for name, c := range map[string]struct {
		conf    []string
		exclude string
		mend    func(b *backup)
		want    string
	}{
		"wrong":       {[]string{`$remote_ip="nobody";`}, "", nil, "skudonet-cluster.conf:8: $remote_ip"},
		"missing":     {nil, "", func(b *backup) { os.Remove(hostIn(b.dir).ConfigPath) }, "no such file"},
		"tree":        {nil, "", func(b *backup) { os.Remove(b.tree) }, "tree/config"},
		"our exclude": {[]string{`$exclude="--exclude 'a";`}, "", nil, "$exclude"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBackup(t, c.conf...)
			if c.mend != nil {
				c.mend(b)
			}
			s := b.open(c.exclude)
			if !strings.Contains(s.hello.Problem, c.want) || len(s.hello.Roots) > 0 {
				t.Errorf("%+v", s.hello)
			}
			if _, err := os.Lstat(filepath.Join(b.dir, "tree", fileset.TempName)); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the directory for temporary files: %v", err)
			}
			if _, err := s.Manifest(t.Context(), ConfigRoot); err == nil || errors.Is(err, ErrClosed) {
				t.Errorf("manifest: %v", err)
			}
			if role, err := s.Role(t.Context()); err != nil || role != status.Backup {
				t.Errorf("role: %q %v", role, err)
			}
		})
	}
}

func TestRole(t *testing.T) {
	b := newBackup(t)
	s := b.open("")
	file := hostIn(b.dir).StatusFile
	for _, c := range []struct {
		set  func() error
		want string
	}{
		{func() error { return status.Write(file, status.Master) }, status.Master},
		{func() error { return status.Write(file, status.Backup) }, status.Backup},
		{func() error { return status.Remove(file) }, RoleStopped},
		{func() error { return os.WriteFile(file, []byte("?"), 0o600) }, RoleUnknown},
	} {
		must(t, c.set())
		if got, err := s.Role(t.Context()); err != nil || got != c.want {
			t.Errorf("%q, %v; want %q", got, err, c.want)
		}
	}
}

func TestDigest(t *testing.T) {
	b := newBackup(t)
	s := b.open("")
	b.write("a/b", "1")
	b.write(filepath.Join(b.dir, "etc/iproute2/rt_tables"), "1 table_eth0\n")
	b.write(filepath.Join(b.dir, "etc/iproute2/rt_protos"), "not ours")
	both, err := s.Digest(t.Context(), DigestRequest{Roots: []Look{{Root: ConfigRoot}, {Root: RTTablesRoot}}})
	must(t, err)
	list := both.Roots
	if want := local(t, b.tree, ""); list[0].Digest != want.Digest() || list[0].Entries != want.Len() || !list[0].Walked || list[0].Role != status.Backup {
		t.Errorf("config: %+v", list[0])
	}
	m, err := s.Manifest(t.Context(), RTTablesRoot)
	must(t, err)
	if got := m.Below("."); !slices.Equal(got, []string{"rt_tables"}) || list[1].Digest != m.Digest() {
		t.Errorf("rt_tables: %q", got)
	}
	b.write("a/c", "2")
	if d := s.digest(t, Look{Paths: names("a/c")}); d.Digest != local(t, b.tree, "").Digest() {
		t.Error("the named path was not looked at")
	}
	if d := s.digest(t, Look{Full: true, Except: names("a/c")}); d.Digest == local(t, b.tree, "").Digest() || d.Digest != local(t, b.tree, "--exclude c").Digest() {
		t.Error("what is excepted counts")
	}
	for _, l := range []Look{{Root: "nowhere"}, {Root: ConfigRoot, Paths: names("../x")}, {Root: ConfigRoot, Except: names("/x")}} {
		if _, err := s.Digest(t.Context(), DigestRequest{Roots: []Look{l}}); err == nil || errors.Is(err, ErrClosed) {
			t.Errorf("%+v: %v", l, err)
		}
	}
	if _, err := s.Digest(t.Context(), DigestRequest{Roots: []Look{{Root: ConfigRoot}, {Root: ConfigRoot}}}); err == nil {
		t.Error("a root twice: no error")
	}
}

func TestWalkRule(t *testing.T) {
	r := &root{}
	if !r.due() {
		t.Error("never walked: not due")
	}
	r.walked, r.took = time.Now(), time.Hour
	if r.due() {
		t.Error("walked just now, takes an hour: due")
	}
	r.walked = time.Now().Add(-10 * time.Hour)
	if !r.due() {
		t.Error("walked ten hours ago, takes an hour: not due")
	}
	r.took = time.Second
	if !r.due() {
		t.Error("a small tree: not due")
	}

	// Over the session: only what is named is looked at meanwhile.
	b := newBackup(t)
	in, out := io.Pipe()
	t.Cleanup(func() { in.Close(); out.Close() })
	s := &session{host: hostIn(b.dir), sender: newSender(nil)}
	must(t, s.openRoots(t.Context(), greeting{}, &hello{}))
	big := s.roots[0]
	if _, err := s.look(t.Context(), big, Look{}); err != nil {
		t.Fatal(err)
	}
	big.took = time.Hour
	b.write("named", "1")
	b.write("other", "1")
	d, _ := s.look(t.Context(), big, Look{Paths: names("named")})
	if _, ok := big.tree.Manifest().Get("other"); d.Walked || ok || d.Entries != 2 {
		t.Errorf("%+v", d)
	}
	d, _ = s.look(t.Context(), big, Look{Full: true})
	if !d.Walked || d.Entries != 3 {
		t.Errorf("%+v", d)
	}
}

func TestRemove(t *testing.T) {
	b := newBackup(t, `$exclude="--exclude *.keep";`)
	outside := filepath.Join(b.dir, "outside")
	b.write(outside+"/file", "precious")
	odd := "-rf\n\xff'\""
	b.write("d/e/f", "1")
	b.write("d/g", "1")
	b.write(odd, "1")
	b.write("left/if_eth0_conf", "1")
	b.write("strange/x", "1")
	b.write("file-as-dir", "1")
	b.write("a.keep", "1")
	b.write("local/x", "1")
	must(t, os.MkdirAll(filepath.Join(b.tree, "dir-as-file"), 0o755))
	b.write("full-dir-as-file/x", "1")
	must(t, os.Symlink(outside, filepath.Join(b.tree, "link")))
	must(t, os.Symlink(outside, filepath.Join(b.tree, "away")))
	must(t, unix.Mkfifo(filepath.Join(b.tree, "fifo"), 0o600))
	s := b.open("")
	remove := slices.Concat(
		removals(manifest.Dir, "d", "d/e", "left", "strange", "file-as-dir", "local"),
		removals(manifest.File, "d/g", "d/e/f", odd, "gone", "gone/below", "dir-as-file", "full-dir-as-file", "away/file", "a.keep", "fifo"),
		removals(manifest.Link, "link"))
	d := s.digest(t, Look{Remove: remove})
	for _, p := range []string{"d", odd, "file-as-dir", "dir-as-file", "link"} {
		if b.exists(p) {
			t.Errorf("%q is still there", p)
		}
	}
	for _, p := range []string{"left/if_eth0_conf", "strange/x", "full-dir-as-file/x", "a.keep", "local/x", "fifo"} {
		if !b.exists(p) {
			t.Errorf("%q is gone", p)
		}
	}
	if text, err := os.ReadFile(outside + "/file"); err != nil || string(text) != "precious" {
		t.Errorf("outside: %q, %v", text, err)
	}
	problems := map[string]string{}
	for _, p := range d.Problems {
		problems[string(p.Path)] = p.Text
	}
	for path, want := range map[string]string{
		"left": `"if_eth0_conf", which is not replicated`, "strange": `"x"`, "full-dir-as-file": "not empty",
		"a.keep": "not replicated", "local": "not replicated"} {
		if !strings.Contains(problems[path], want) {
			t.Errorf("%s: %q, want %q", path, problems[path], want)
		}
		delete(problems, path)
	}
	if len(problems) > 0 {
		t.Errorf("other problems: %q", problems)
	}
	if want := local(t, b.tree, "--exclude *.keep").Digest(); d.Digest != want {
		t.Error("the digest is not that of the tree after the removals")
	}
}

func TestRemovalsRefused(t *testing.T) {
	b := newBackup(t)
	b.write("first", "1")
	s := b.open("")
	for _, bad := range []Removal{{Name("."), 'd'}, {Name("../tree"), 'd'}, {Name("/etc"), 'd'}, {Name("a/../../b"), 'f'}, {Name(""), 'f'}, {Name("a\x00"), 'f'}, {Name("a"), 'p'}, {Name("a//b"), 'f'}} {
		l := Look{Root: ConfigRoot, Remove: []Removal{{Name("first"), 'f'}, bad}}
		if _, err := s.Digest(t.Context(), DigestRequest{Roots: []Look{l}}); err == nil || errors.Is(err, ErrClosed) {
			t.Errorf("%q: %v", bad.Path, err)
		}
		if !b.exists("first") {
			t.Fatalf("%q: a part of a refused request was carried out", bad.Path)
		}
	}
	must(t, status.Write(hostIn(b.dir).StatusFile, status.Master))
	l := Look{Root: ConfigRoot, Remove: removals(manifest.File, "first")}
	_, err := s.Digest(t.Context(), DigestRequest{Roots: []Look{l}})
	if !errors.Is(err, ErrMaster) || !b.exists("first") {
		t.Errorf("from a master: %v", err)
	}
	if d := s.digest(t, Look{}); d.Role != status.Master {
		t.Errorf("without removals: %+v", d)
	}
	must(t, os.WriteFile(hostIn(b.dir).StatusFile, []byte("?"), 0o600))
	if _, err := s.Digest(t.Context(), DigestRequest{Roots: []Look{l}}); err == nil || errors.Is(err, ErrMaster) || !b.exists("first") {
		t.Errorf("with an unreadable status: %v", err)
	}
}

func TestManyNames(t *testing.T) {
	t.Parallel()
	b := newBackup(t)
	var all []string
	long := strings.Repeat("x", 200)
	for i := range 20 {
		dir := fmt.Sprintf("%s%02d", long, i)
		all = append(all, dir)
		for j := range 40 {
			all = append(all, fmt.Sprintf("%s/%s%d", dir, long, j))
			b.write(all[len(all)-1], "")
		}
	}
	s := b.open("")
	d := s.digest(t, Look{Remove: removals(manifest.File, all...), Paths: names(all...)})
	if list, _ := os.ReadDir(b.tree); len(list) > 0 || len(d.Problems) > 0 || d.Entries != 1 {
		t.Errorf("%d left, %+v", len(list), d)
	}
}

func TestManyProblems(t *testing.T) {
	t.Parallel()
	b := newBackup(t)
	var all []string
	for i := range 1200 {
		all = append(all, fmt.Sprintf("%s%d", strings.Repeat("\x01", 200), i))
		b.write(all[i]+"/if_eth0_conf", "")
	}
	s := b.open("")
	d := s.digest(t, Look{Remove: removals(manifest.Dir, all...)})
	if len(d.Problems) != maxProblems || d.More != len(all)-maxProblems {
		t.Errorf("%d problems and %d more", len(d.Problems), d.More)
	}
}

func TestLargeManifest(t *testing.T) {
	t.Parallel()
	b := newBackup(t)
	for i := range 600 {
		b.write(fmt.Sprintf("d%d/%s%d", i%7, strings.Repeat("n", 100), i), "x")
	}
	s := b.open("")
	m, err := s.Manifest(t.Context(), ConfigRoot)
	must(t, err)
	if want := local(t, b.tree, ""); m.Digest() != want.Digest() || m.Len() != want.Len() {
		t.Errorf("%d entries, want %d", m.Len(), want.Len())
	}
}

func TestRootGone(t *testing.T) {
	b := newBackup(t)
	s := b.open("")
	must(t, os.Remove(b.tree))
	answer, err := s.Digest(t.Context(), DigestRequest{Roots: []Look{{Root: ConfigRoot, Full: true}, {Root: RTTablesRoot}}})
	must(t, err)
	list := answer.Roots
	if list[0].Failed == "" || list[1].Failed != "" {
		t.Errorf("%+v", list)
	}
	if _, err := s.Manifest(t.Context(), ConfigRoot); err == nil || errors.Is(err, ErrClosed) {
		t.Errorf("manifest: %v", err)
	}
}

func TestUnknownRequestLeavesTheSession(t *testing.T) {
	s := newBackup(t).open("")
	var a json.RawMessage
	if err := s.ask(t.Context(), 'Z', struct{ Later bool }{true}, &a, nil); !errors.Is(err, ErrUnknown) {
		t.Errorf("unknown request: %v", err)
	}
	s.sender.send(frame{'z', []byte("a part of a later version")})
	if err := s.ask(t.Context(), frameRole, struct{ Later bool }{true}, &a, nil); err != nil {
		t.Errorf("unknown field: %v", err)
	}
}

// What tells a node that its peer is upgraded is the daemon that runs there, not the program that answers.
func TestHelloTellsOfTheDaemon(t *testing.T) {
	b := newBackup(t, "")
	file := filepath.Join(hostIn(b.dir).RunDir, status.DaemonFile)
	must(t, os.MkdirAll(hostIn(b.dir).RunDir, 0o755))
	must(t, status.Daemon{PID: os.Getpid(), Updated: status.Now()}.WriteFile(file))
	if s := b.open(""); !s.hello.Elects {
		t.Error("hello: no skd-vrrpd runs, where one does")
	}
}
