package remote

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/crypto/ssh/knownhosts"
)

const sshdProgram = "/usr/sbin/sshd"

func TestMain(m *testing.M) {
	os.Unsetenv("SSH_AUTH_SOCK") // of whoever runs the tests
	made := os.Mkdir("/run/sshd", 0o755) == nil
	code := m.Run()
	if made {
		os.Remove("/run/sshd")
	}
	os.Exit(code)
}

// hostKeys are made once: RSA takes its time.
var hostKeys = sync.OnceValue(func() map[string]any {
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	ec, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	rs, _ := rsa.GenerateKey(rand.Reader, 2048)
	return map[string]any{"ed25519": ed, "ecdsa": ec, "rsa": rs}
})

// lab is an sshd on loopback and the home of a client that may log in there.
type lab struct {
	t       *testing.T
	dir     string
	home    string
	port    uint16
	process *os.Process // the listener
	stop    func()      // kills it and its sessions
	keys    map[string]ssh.Signer
}

// newLab starts an sshd with the named host keys and further lines of
// configuration. The client has id_ed25519, which is authorized, and knows all
// host keys.
func newLab(t *testing.T, host string, lines ...string) *lab {
	t.Helper()
	if _, err := os.Stat(sshdProgram); err != nil {
		t.Skipf("no %s: apt-get install openssh-server", sshdProgram)
	}
	if os.Getuid() != 0 {
		t.Skip("sshd wants root")
	}
	l := &lab{t: t, dir: t.TempDir(), home: t.TempDir(), keys: map[string]ssh.Signer{}}
	os.Mkdir(filepath.Join(l.home, ".ssh"), 0o700)
	config := []string{"ListenAddress 127.0.0.1", "UsePAM no", "StrictModes no", "PidFile none", "PermitRootLogin yes",
		"PasswordAuthentication no", "KbdInteractiveAuthentication no", "LogLevel ERROR",
		"AuthorizedKeysFile " + filepath.Join(l.dir, "authorized_keys")}
	for name := range strings.FieldsSeq(host) {
		l.keys[name] = writeKey(t, filepath.Join(l.dir, name), hostKeys()[name], "")
		config = append(config, "HostKey "+filepath.Join(l.dir, name))
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.port = uint16(listener.Addr().(*net.TCPAddr).Port)
	listener.Close()
	config = append(config, fmt.Sprintf("Port %d", l.port))
	write(t, filepath.Join(l.dir, "sshd_config"), strings.Join(append(lines, config...), "\n"), 0o600)
	l.start()

	_, private, _ := ed25519.GenerateKey(rand.Reader)
	l.authorize(writeKey(t, l.ssh("id_ed25519"), private, ""))
	l.know(l.keys)
	l.config("")
	return l
}

// start runs the server, in place of one that runs already.
func (l *lab) start() {
	l.t.Helper()
	if l.stop != nil {
		l.stop()
	}
	var said bytes.Buffer
	cmd := exec.Command(sshdProgram, "-D", "-e", "-f", filepath.Join(l.dir, "sshd_config"))
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	l.process = cmd.Process
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	l.stop = sync.OnceFunc(func() {
		for _, pid := range l.sessions() {
			syscall.Kill(pid, syscall.SIGKILL)
		}
		l.process.Kill()
		<-ended
		if l.t.Failed() && said.Len() > 0 {
			l.t.Logf("sshd: %s", said.String())
		}
	})
	l.t.Cleanup(l.stop)
	waitFor(l.t, "sshd listens", func() bool {
		select {
		case <-ended:
			l.t.Fatalf("sshd: %s", said.String())
		default:
		}
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", l.port))
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

// ssh is a path in the client's ~/.ssh.
func (l *lab) ssh(name string) string { return filepath.Join(l.home, ".ssh", name) }

func (l *lab) authorize(keys ...ssh.Signer) {
	var b []byte
	for _, k := range keys {
		b = append(b, ssh.MarshalAuthorizedKey(k.PublicKey())...)
	}
	write(l.t, filepath.Join(l.dir, "authorized_keys"), string(b), 0o600)
}

// address is how known_hosts names the server.
func (l *lab) address() string { return fmt.Sprintf("[127.0.0.1]:%d", l.port) }

func (l *lab) know(keys map[string]ssh.Signer) {
	var b strings.Builder
	for _, k := range keys {
		b.WriteString(knownhosts.Line([]string{l.address()}, k.PublicKey()) + "\n")
	}
	write(l.t, l.ssh("known_hosts"), b.String(), 0o600)
}

// config writes ~/.ssh/config; the machine's own known hosts do not count.
func (l *lab) config(text string) {
	write(l.t, l.ssh("config"), text+"\nHost *\nGlobalKnownHostsFile none\n", 0o600)
}

func (l *lab) client() Config {
	return Config{Host: netip.MustParseAddr("127.0.0.1"), Port: l.port, Home: l.home, ConfigFiles: []string{l.ssh("config")}}
}

func (l *lab) dial() *Conn {
	l.t.Helper()
	return l.dialAs(l.client())
}

func (l *lab) dialAs(c Config) *Conn {
	l.t.Helper()
	conn, err := Dial(l.t.Context(), c)
	if err != nil {
		l.t.Fatalf("Dial: %v", describe(err))
	}
	l.t.Cleanup(func() { conn.Close() })
	return conn
}

// refuse dials and wants an error of this kind, with these words in its text
// and, after "remedy:", in its remedy.
func (l *lab) refuse(c Config, kind Kind, words ...string) *Error {
	l.t.Helper()
	return refuse(l.t, c, kind, words...)
}

func refuse(t *testing.T, c Config, kind Kind, words ...string) *Error {
	t.Helper()
	conn, err := Dial(t.Context(), c)
	if err == nil {
		conn.Close()
		t.Fatalf("Dial worked, want an error: %s", kind)
	}
	e, ok := errors.AsType[*Error](err)
	if !ok {
		t.Fatalf("Dial: %T %v, want *Error", err, err)
	}
	if e.Kind != kind {
		t.Fatalf("Dial: %s, want kind %s", describe(err), kind)
	}
	for _, w := range words {
		where := e.Text
		if rest, ok := strings.CutPrefix(w, "remedy:"); ok {
			where, w = e.Remedy, rest
		}
		if !strings.Contains(where, w) {
			t.Errorf("%s: %q is missing", describe(err), w)
		}
	}
	if strings.Contains(e.Text+e.Remedy, "\n") {
		t.Errorf("%s: has a line break", describe(err))
	}
	return e
}

func describe(err error) string {
	if e, ok := errors.AsType[*Error](err); ok {
		return fmt.Sprintf("kind: %s\ntext: %s\nremedy: %s\ncause: %v\nnotices: %q", e.Kind, e.Text, e.Remedy, e.Err, e.Notices)
	}
	return err.Error()
}

// sessions lists the processes that sshd runs for connections.
func (l *lab) sessions() []int {
	var all []int
	var below func(pid int)
	below = func(pid int) {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
		for word := range strings.FieldsSeq(string(b)) {
			if child, err := strconv.Atoi(word); err == nil {
				all = append(all, child)
				below(child)
			}
		}
	}
	below(l.process.Pid)
	return all
}

func (l *lab) signal(s syscall.Signal) {
	l.t.Helper()
	pids := l.sessions()
	if len(pids) == 0 {
		l.t.Fatal("sshd has no session")
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, s); err != nil && err != syscall.ESRCH {
			l.t.Fatal(err)
		}
	}
}

// serveAgent runs an agent and returns its socket.
func serveAgent(t *testing.T, a agent.Agent) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "agent")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { agent.ServeAgent(a, c); c.Close() })
		}
	})
	return socket
}

// writeKey writes a private key and its public half beside it.
func writeKey(t *testing.T, file string, private any, passphrase string) ssh.Signer {
	t.Helper()
	var block *pem.Block
	var err error
	if passphrase == "" {
		block, err = ssh.MarshalPrivateKey(private, "")
	} else {
		block, err = ssh.MarshalPrivateKeyWithPassphrase(private, "", []byte(passphrase))
	}
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	write(t, file, string(pem.EncodeToMemory(block)), 0o600)
	write(t, file+".pub", string(ssh.MarshalAuthorizedKey(signer.PublicKey())), 0o644)
	return signer
}

func write(t *testing.T, file, text string, mode os.FileMode) string {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	return file
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 1000 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("waited in vain: %s", what)
}

func closesSoon(t *testing.T, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(10 * time.Second):
		t.Fatalf("waited in vain: %s", what)
	}
}
