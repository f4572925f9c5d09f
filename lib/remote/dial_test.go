package remote

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/crypto/ssh/knownhosts"
)

func newEd25519() ed25519.PrivateKey {
	_, private, _ := ed25519.GenerateKey(rand.Reader)
	return private
}

func TestHostKeys(t *testing.T) {
	t.Parallel()
	l := newLab(t, "ed25519 ecdsa rsa")
	line := func(name string) string {
		return knownhosts.Line([]string{l.address()}, l.keys[name].PublicKey()) + "\n"
	}
	other, _ := ssh.NewSignerFromKey(newEd25519())
	changed := knownhosts.Line([]string{l.address()}, other.PublicKey()) + "\n"
	hashed := knownhosts.HashHostname(l.address()) + strings.TrimPrefix(line("ecdsa"), l.address())
	withoutPort := knownhosts.Line([]string{"127.0.0.1"}, l.keys["rsa"].PublicKey())
	fingerprint := ssh.FingerprintSHA256(l.keys["ed25519"].PublicKey())

	known := func(text string) Config { write(t, l.ssh("known_hosts"), text, 0o600); return l.client() }
	// A server with three keys shows the one that is known.
	for name, text := range map[string]string{
		"ed25519":      line("ed25519"),
		"ecdsa":        line("ecdsa"),
		"rsa":          line("rsa"),
		"hashed":       hashed,
		"without port": withoutPort,
		"one of two":   changed + line("ed25519"),
		"odd lines":    "# comment\n\nold.example 1024 35 1234567\n127.0.0.1 ssh-ed25519 !!!\n" + line("rsa"),
		"CRLF":         strings.ReplaceAll(line("rsa"), "\n", "\r\n"),
	} {
		conn, err := Dial(t.Context(), known(text))
		if err != nil {
			t.Errorf("%s: %s", name, describe(err))
			continue
		}
		if odd := len(conn.Notices()) > 0; odd != (name == "odd lines") {
			t.Errorf("%s: notices %q", name, conn.Notices())
		}
		if name == "odd lines" && (len(conn.Notices()) != 2 || !strings.HasPrefix(conn.Notices()[0], l.ssh("known_hosts")+":3: ") ||
			strings.Contains(conn.Notices()[0], "/proc/")) {
			t.Errorf("notices %q", conn.Notices())
		}
		conn.Close()
	}

	again := "remedy:ssh-keygen -lf"
	byHand := fmt.Sprintf("remedy:ssh -p %d root@127.0.0.1", l.port)
	l.refuse(known(""), HostKeyUnknown, "not in known_hosts", "SHA256:", again, byHand)
	os.Remove(l.ssh("known_hosts"))
	l.refuse(l.client(), HostKeyUnknown, "root@127.0.0.1")
	l.refuse(known("\n"+changed), HostKeyChanged, fingerprint, l.ssh("known_hosts")+":2", again,
		fmt.Sprintf("remedy:ssh-keygen -R '%s' -f %s", l.address(), l.ssh("known_hosts")))
	l.refuse(known("@revoked * "+strings.SplitN(line("ed25519"), " ", 2)[1]+line("ed25519")), HostKeyRevoked,
		l.ssh("known_hosts")+":1", fingerprint)

	// Another file comes after it, and its lines are told as its own.
	global := write(t, filepath.Join(l.dir, "global"), "\n\n"+changed, 0o644)
	l.config("GlobalKnownHostsFile /nowhere " + global)
	l.refuse(known("# nothing\n"), HostKeyChanged, global+":3")
	l.config("UserKnownHostsFile " + os.DevNull)
	l.refuse(known(line("rsa")), HostKeyUnknown)
	l.config("HostKeyAlgorithms rsa-sha2-512")
	l.refuse(known(line("ed25519")), HostKeyUnknown, "RSA key SHA256:", "only ED25519 at "+l.ssh("known_hosts")+":1")
	l.config("HostKeyAlias the-peer")
	l.refuse(known(line("rsa")), HostKeyUnknown)
	l.dialAs(known("the-peer " + strings.SplitN(line("ecdsa"), " ", 2)[1]))
}

// A certificate counts by its authority; where that is not known, by its key.
func TestHostCertificate(t *testing.T) {
	t.Parallel()
	l := newLab(t, "ed25519")
	authority, _ := ssh.NewSignerFromKey(newEd25519())
	certify := func(principal string) {
		c := &ssh.Certificate{Key: l.keys["ed25519"].PublicKey(), CertType: ssh.HostCert, KeyId: "lab",
			ValidPrincipals: []string{principal}, ValidBefore: ssh.CertTimeInfinity}
		if err := c.SignCert(rand.Reader, authority); err != nil {
			t.Fatal(err)
		}
		file := write(t, filepath.Join(l.dir, "ed25519-cert.pub"), string(ssh.MarshalAuthorizedKey(c)), 0o644)
		l.restart("HostCertificate " + file)
	}
	trusted := "@cert-authority " + knownhosts.Line([]string{l.address()}, authority.PublicKey()) + "\n"
	certify("127.0.0.1")
	l.dial().Close() // by its key
	write(t, l.ssh("known_hosts"), trusted, 0o600)
	l.dial().Close()
	l.config("HostKeyAlgorithms ssh-ed25519")
	l.refuse(l.client(), HostKeyUnknown)
	l.config("")
	certify("192.0.2.99")
	l.refuse(l.client(), HostKeyUnknown, "its certificate does not count", "192.0.2.99")
	write(t, l.ssh("known_hosts"), trusted+knownhosts.Line([]string{l.address()}, l.keys["ed25519"].PublicKey()), 0o600)
	l.dial().Close()
}

func TestKeys(t *testing.T) {
	t.Parallel()
	l := newLab(t, "ed25519")
	l.dial().Close()
	write(t, filepath.Join(l.dir, "authorized_keys"), "", 0o600)
	e := l.refuse(l.client(), KeyRefused, "takes none of our keys; offered: ED25519 SHA256:", l.ssh("id_ed25519"),
		"remedy:append "+l.ssh("id_ed25519.pub")+" to /root/.ssh/authorized_keys on 127.0.0.1",
		fmt.Sprintf("remedy:try: ssh -o BatchMode=yes -p %d root@127.0.0.1 true", l.port))
	if strings.Contains(e.Text, "id_rsa") {
		t.Errorf("%s: a usual name that is not there is no news", e)
	}

	os.Remove(l.ssh("id_ed25519"))
	l.refuse(l.client(), KeyRefused, "we have no key to offer", "remedy:ssh-keygen -t ed25519 -N '' -f "+l.ssh("id_ed25519"))

	ec, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	l.authorize(writeKey(t, l.ssh("id_ecdsa"), ec, ""))
	l.dial().Close()
	// The second of two is right.
	r := hostKeys()["rsa"].(*rsa.PrivateKey)
	l.authorize(writeKey(t, l.ssh("id_rsa"), r, ""))
	l.dial().Close()
	os.Chmod(l.ssh("id_rsa"), 0o640)
	l.refuse(l.client(), KeyRefused, "others can read", "chmod 600")
	os.Chmod(l.ssh("id_rsa"), 0o600)

	c := l.client()
	c.KeyFile = l.ssh("id_ecdsa")
	l.refuse(c, KeyRefused, "id_ecdsa", fmt.Sprintf("remedy:-i %s root@", l.ssh("id_ecdsa")))
	c.KeyFile = "~/.ssh/id_rsa"
	l.dialAs(c).Close()
	c.KeyFile = "~/nokey"
	l.refuse(c, KeyRefused, l.home+"/nokey: no such file", "no key to offer")
	// ssh_config comes first.
	l.config("IdentityFile %d/.ssh/id_ecdsa\nIdentityFile " + l.home + "/.ssh/id_%u")
	u, err := exec.Command("id", "-un").Output()
	if err != nil {
		t.Fatal(err)
	}
	os.Rename(l.ssh("id_rsa"), l.ssh("id_"+strings.TrimSpace(string(u))))
	conn := l.dialAs(c)
	conn.Close()

	l.config("IdentityFile ~/.ssh/garbage")
	write(t, l.ssh("garbage"), "what is this", 0o600)
	l.refuse(l.client(), KeyRefused, "garbage: not a usable private key")
}

func TestUserCertificate(t *testing.T) {
	t.Parallel()
	authority, _ := ssh.NewSignerFromKey(newEd25519())
	trusted := write(t, filepath.Join(t.TempDir(), "ca.pub"), string(ssh.MarshalAuthorizedKey(authority.PublicKey())), 0o644)
	l := newLab(t, "ed25519", "TrustedUserCAKeys "+trusted)
	r := hostKeys()["rsa"].(*rsa.PrivateKey)
	k := writeKey(t, l.ssh("id_rsa"), r, "")
	os.Remove(l.ssh("id_ed25519"))
	l.refuse(l.client(), KeyRefused)
	c := &ssh.Certificate{Key: k.PublicKey(), CertType: ssh.UserCert, ValidPrincipals: []string{"root"}, ValidBefore: ssh.CertTimeInfinity}
	if err := c.SignCert(rand.Reader, authority); err != nil {
		t.Fatal(err)
	}
	write(t, l.ssh("id_rsa-cert.pub"), string(ssh.MarshalAuthorizedKey(c)), 0o644)
	l.dial()
}

func TestPassphraseAndAgent(t *testing.T) {
	t.Parallel()
	l := newLab(t, "ed25519")
	private := newEd25519()
	signer := writeKey(t, l.ssh("id_ed25519"), private, "secret")
	l.authorize(signer)
	l.refuse(l.client(), KeyLocked, l.ssh("id_ed25519"), "passphrase", "remedy:IdentityAgent", "remedy:$ssh_key")

	ring := agent.NewKeyring()
	socket := serveAgent(t, ring)
	l.config("IdentityAgent " + socket)
	l.refuse(l.client(), KeyLocked)
	r := hostKeys()["rsa"].(*rsa.PrivateKey)
	ring.Add(agent.AddedKey{PrivateKey: r})
	ring.Add(agent.AddedKey{PrivateKey: &private})
	l.dial().Close()
	// Old keys do not tell the public half inside; the file beside it does.
	l.config("IdentityAgent " + socket + "\nIdentitiesOnly yes")
	l.dial().Close()
	l.config("IdentityAgent " + socket + "\nIdentitiesOnly yes\nIdentityFile ~/.ssh/id_ed25519.pub")
	l.dial().Close()

	// RSA by the agent, which no file names.
	rs, _ := ssh.NewSignerFromKey(r)
	l.authorize(rs)
	l.refuse(l.client(), KeyRefused)
	l.config("IdentityAgent " + socket)
	l.dial().Close()
	// The agent's keys beside a file that is refused.
	os.Remove(l.ssh("id_ed25519"))
	writeKey(t, l.ssh("id_ed25519"), newEd25519(), "")
	l.dial().Close()

	l.config("IdentityAgent /nowhere/agent")
	l.refuse(l.client(), KeyRefused, "/nowhere/agent")

	// An agent that lists a key but does not sign does not stop the others.
	os.Remove(l.ssh("id_ed25519"))
	l.config("IdentityAgent " + serveAgent(t, unwilling{ring}))
	l.refuse(l.client(), KeyRefused, "cannot sign")
	good := newEd25519()
	l.authorize(rs, writeKey(t, l.ssh("id_rsa"), good, ""))
	l.dial().Close()
}

// unwilling is an agent that is asked in vain.
type unwilling struct{ agent.Agent }

func (unwilling) Sign(ssh.PublicKey, []byte) (*ssh.Signature, error) { return nil, errors.New("no") }

// An agent that never answers costs time, not the connection.
func TestSilentAgent(t *testing.T) {
	t.Parallel()
	l := newLab(t, "ed25519")
	socket := filepath.Join(t.TempDir(), "agent")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	l.config("IdentityAgent " + socket)
	c := l.client()
	c.pace = &pace{usual.connect, 5 * time.Second, usual.ask, usual.patience}
	conn := l.dialAs(c)
	if n := conn.Notices(); len(n) != 1 || !strings.Contains(n[0], "ssh-agent") {
		t.Errorf("notices %q", n)
	}
}

func TestServerWantsOtherThanKeys(t *testing.T) {
	t.Parallel()
	l := newLab(t, "ed25519", "PubkeyAuthentication no", "PasswordAuthentication yes")
	l.refuse(l.client(), KeyRefused, "takes no keys, only: password", "remedy:PubkeyAuthentication yes")
	l = newLab(t, "ed25519", "PasswordAuthentication yes", "AuthenticationMethods publickey,password")
	l.refuse(l.client(), KeyRefused, "wants more than a key: password", "remedy:AuthenticationMethods")
	l = newLab(t, "ed25519", "MaxAuthTries 1")
	l.config("IdentityFile ~/.ssh/one\nIdentityFile ~/.ssh/id_ed25519")
	writeKey(t, l.ssh("one"), newEd25519(), "")
	l.refuse(l.client(), KeyRefused, "one", "1 more untried", "Too many authentication failures", "remedy:IdentitiesOnly")
	l = newLab(t, "ed25519", "HostKeyAlgorithms ssh-ed25519", "KexAlgorithms diffie-hellman-group18-sha512")
	l.refuse(l.client(), Protocol, "no key exchange algorithm in common", "diffie-hellman-group18-sha512")
}

func TestUnreachable(t *testing.T) {
	t.Parallel()
	known := func(c net.Listener) Config {
		return Config{Host: netip.MustParseAddr("127.0.0.1"), Port: uint16(c.Addr().(*net.TCPAddr).Port), Home: t.TempDir(),
			ConfigFiles: []string{}}
	}
	silent, err := net.Listen("tcp", "127.0.0.1:0") // the kernel accepts; nobody speaks
	if err != nil {
		t.Fatal(err)
	}
	c := known(silent)
	c.pace = &pace{usual.connect, 200 * time.Millisecond, usual.ask, usual.patience}
	e := refuse(t, c, Unreachable, "no answer within 200ms", "remedy:firewall")
	if !errors.Is(e, os.ErrDeadlineExceeded) {
		t.Errorf("cause: %v", e.Err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	stopped := errors.New("stopped")
	time.AfterFunc(50*time.Millisecond, func() { cancel(stopped) })
	if _, err := Dial(ctx, known(silent)); !errors.Is(err, stopped) {
		t.Errorf("Dial: %v", err)
	}
	silent.Close()
	refuse(t, known(silent), Unreachable, "connection refused", "remedy:systemctl start ssh")

	for _, said := range []string{"", "HTTP/1.1 400 Bad Request\r\n\r\n" + strings.Repeat("x", 1000)} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			if c, err := l.Accept(); err == nil {
				c.Write([]byte(said))
				b := make([]byte, 1000)
				c.Read(b)
				c.Close()
			}
		}()
		if said == "" {
			refuse(t, known(l), Unreachable, "closed the connection", "remedy:journalctl")
		} else {
			refuse(t, known(l), Protocol, "does not speak ssh", "remedy:is port")
		}
		l.Close()
		<-done
	}
}

func TestSSHConfig(t *testing.T) {
	t.Parallel()
	l := newLab(t, "ed25519")
	// The address is one that nobody has: all comes from the file.
	key := fmt.Sprintf("peer.%%h.%d", l.port)
	os.Rename(l.ssh("id_ed25519"), l.ssh(fmt.Sprintf("peer.localhost.%d", l.port)))
	know := strings.SplitN(knownhosts.Line([]string{"x"}, l.keys["ed25519"].PublicKey()), " ", 2)[1]
	write(t, l.ssh("other_known"), "twin "+know, 0o600)
	l.config(fmt.Sprintf(`
Host 192.0.2.*
	HostName = localhost
	Port %d
	User root
	HostKeyAlias Twin
	UserKnownHostsFile ~/.ssh/other_known
	IdentityFile "~/.ssh/%s"
	IdentitiesOnly yes
	ProxyJump none
Match exec "true"
	ProxyCommand nc %%h %%p
Host *
	ProxyJump bastion
	Port 1
	StrictHostKeyChecking accept-new
	BindAddress 192.0.2.77
`, l.port, key))
	c := l.client()
	c.Host, c.Port, c.KeyFile = netip.MustParseAddr("192.0.2.44"), 9, "/nowhere"
	conn := l.dialAs(c)
	want := []string{
		fmt.Sprintf(`%s:11: Match exec "true": not supported here, the block is ignored`, l.ssh("config")),
		fmt.Sprintf("%s:16: StrictHostKeyChecking accept-new: not honoured here: a host key must be known", l.ssh("config")),
		fmt.Sprintf("%s:17: BindAddress 192.0.2.77: not honoured here", l.ssh("config")),
	}
	if got := conn.Notices(); !slices.Equal(got, want) {
		t.Errorf("notices:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	conn.Close()

	// Notices also come with an error, where they may explain it.
	l.config("ProxyJump bastion\nPort 1")
	e := l.refuse(l.client(), Unreachable, "root@127.0.0.1 port 1")
	if len(e.Notices) != 1 || !strings.Contains(e.Notices[0], "ProxyJump bastion") {
		t.Errorf("notices %q", e.Notices)
	}
	l.config("HostName no-such-host.invalid")
	l.refuse(l.client(), Unreachable, "no-such-host.invalid", "remedy:HostName")
	l.config("User nobody-here")
	l.refuse(l.client(), KeyRefused, "nobody-here@127.0.0.1", "remedy:~nobody-here/.ssh/authorized_keys")

	l.config("Port many")
	l.refuse(l.client(), Settings, l.ssh("config")+`:1: Port "many": want a port`, "remedy:ssh -G")
	os.Remove(l.ssh("config"))
	os.Mkdir(l.ssh("config"), 0o700)
	l.refuse(l.client(), Settings, l.ssh("config")+": not a regular file")
}

// restart starts the server anew with further lines of configuration.
func (l *lab) restart(lines ...string) {
	l.t.Helper()
	file := filepath.Join(l.dir, "sshd_config")
	old, err := os.ReadFile(file)
	if err != nil {
		l.t.Fatal(err)
	}
	kept := slices.DeleteFunc(strings.Split(string(old), "\n"), func(s string) bool { return strings.HasPrefix(s, "HostCertificate") })
	write(l.t, file, strings.Join(append(lines, kept...), "\n"), 0o600)
	l.start()
}
