package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/skudonet/skudonet-ce-cluster/lib/shell"
	"github.com/skudonet/skudonet-ce-cluster/lib/smallfile"
)

// keyring is what we can show to the peer.
type keyring struct {
	keys    []key
	locked  []string // files that need a passphrase
	missing []string // why others are of no use
	notices []string
	close   func() // the agent
}

type key struct {
	from   string // file, or "agent"
	signer ssh.Signer
	failed *error // of its last signature
}

func (k key) String() string {
	text := fmt.Sprintf("%s %s (%s)", keyName(k.signer.PublicKey()), ssh.FingerprintSHA256(k.signer.PublicKey()), k.from)
	if *k.failed != nil {
		text += fmt.Sprintf(", which the peer takes, but it cannot sign: %v", *k.failed)
	}
	return text
}

// noting keeps the error of a signature, which the handshake does not tell.
type noting struct {
	ssh.AlgorithmSigner
	failed *error
}

// SignWithAlgorithm signs, and notes an error.
func (n noting) SignWithAlgorithm(rand io.Reader, data []byte, algorithm string) (*ssh.Signature, error) {
	s, err := n.AlgorithmSigner.SignWithAlgorithm(rand, data, algorithm)
	*n.failed = err
	return s, err
}

// newKey makes a key to show. RSA does not sign with SHA-1.
func newKey(from string, signer ssh.Signer) key {
	k := key{from, signer, new(error)}
	s, ok := signer.(ssh.AlgorithmSigner)
	if !ok {
		return k
	}
	s = noting{s, k.failed}
	k.signer = s
	if t := signer.PublicKey().Type(); t == ssh.KeyAlgoRSA || t == ssh.CertAlgoRSAv01 {
		if m, err := ssh.NewSignerWithAlgorithms(s, []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256}); err == nil {
			k.signer = m
		}
	}
	return k
}

// identity is one key file.
type identity struct {
	file   string
	public ssh.PublicKey // nil where the file does not tell
	signer ssh.Signer    // nil without the private key
	locked bool
}

// readKeys reads the key files and asks the agent. The order is that of trying:
// the files as configured (by the agent, where it has the key), then what else
// the agent has.
func (s *settings) readKeys(ctx context.Context, deadline time.Time) *keyring {
	r := &keyring{close: func() {}}
	held := r.askAgent(ctx, s.agent, deadline)
	var used []string
	add := func(from string, signer ssh.Signer) {
		if blob := string(signer.PublicKey().Marshal()); !slices.Contains(used, blob) {
			used = append(used, blob)
			r.keys = append(r.keys, newKey(from, signer))
		}
	}
	for _, file := range s.keyFiles {
		id, err := readIdentity(file)
		if err != nil {
			if !s.usualKeys || !errors.Is(err, fs.ErrNotExist) {
				r.useless(err.Error())
			}
			continue
		}
		at := -1
		if id.public != nil {
			at = slices.IndexFunc(held, func(h ssh.Signer) bool {
				return bytes.Equal(h.PublicKey().Marshal(), id.public.Marshal())
			})
		}
		switch {
		case at >= 0:
			id.signer = held[at]
		case id.locked:
			r.locked = append(r.locked, file)
		case id.signer == nil:
			r.useless(file + ": has the public key only, and the agent has not the other half")
		}
		if id.signer == nil {
			continue
		}
		if c := readCertificate(file, id.signer); c != nil {
			add(file+"-cert.pub", c)
		}
		add(file, id.signer)
	}
	if !s.identitiesOnly {
		for _, h := range held {
			add("agent", h)
		}
	}
	if s.usualKeys {
		for _, name := range []string{"id_ed25519_sk", "id_ecdsa_sk"} {
			file := filepath.Join(filepath.Dir(s.keyFiles[0]), name)
			if _, err := os.Stat(file); err == nil {
				r.useless(file + ": a security key works only by an agent")
			}
		}
	}
	return r
}

func (r *keyring) useless(why string) {
	r.missing = append(r.missing, why)
	r.notices = append(r.notices, "key left out: "+why)
}

// askAgent lists the agent's keys. The connection stays open for signing.
func (r *keyring) askAgent(ctx context.Context, socket string, deadline time.Time) []ssh.Signer {
	if socket == "" {
		return nil
	}
	conn, err := (&net.Dialer{Deadline: deadline}).DialContext(ctx, "unix", socket)
	if err != nil {
		r.useless(fmt.Sprintf("ssh-agent: %v", err))
		return nil
	}
	conn.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	r.close = func() { stop(); conn.Close() }
	signers, err := agent.NewClient(conn).Signers()
	if err != nil {
		r.useless(fmt.Sprintf("ssh-agent at %s: %v", socket, err))
	}
	return signers
}

// readIdentity reads a private key, or a public one whose other half an agent has.
func readIdentity(file string) (identity, error) {
	id := identity{file: file}
	data, err := smallfile.Read(file, maxKeyFile)
	if err != nil {
		return id, err
	}
	id.signer, err = ssh.ParsePrivateKey(data)
	if err == nil {
		if !private(file) {
			return id, fmt.Errorf("%s: others can read the private key: chmod 600 %s", file, shell.Quote(file))
		}
		id.public = id.signer.PublicKey()
		return id, nil
	}
	locked, ok := errors.AsType[*ssh.PassphraseMissingError](err)
	if ok || bytes.Contains(data, []byte("BEGIN ENCRYPTED PRIVATE KEY")) {
		id.locked = true
		if ok {
			id.public = locked.PublicKey
		}
		if id.public == nil {
			id.public = readPublic(file + ".pub")
		}
		return id, nil
	}
	if id.public = parsePublic(data); id.public != nil {
		return id, nil
	}
	if id.public = readPublic(file + ".pub"); id.public != nil {
		return id, nil // as that of a security key: the agent may have it
	}
	return id, fmt.Errorf("%s: not a usable private key: %w", file, err)
}

// private tells whether ssh would take a private key of this mode.
func private(file string) bool {
	info, err := os.Stat(file)
	if err != nil {
		return true
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	return !ok || int(owner.Uid) != os.Getuid() || info.Mode().Perm()&0o077 == 0
}

func readPublic(file string) ssh.PublicKey {
	data, err := smallfile.Read(file, maxKeyFile)
	if err != nil {
		return nil
	}
	return parsePublic(data)
}

func parsePublic(data []byte) ssh.PublicKey {
	public, _, _, _, err := ssh.ParseAuthorizedKey(data)
	if err != nil {
		return nil
	}
	return public
}

// readCertificate returns a signer with the certificate beside a key, or nil.
func readCertificate(file string, signer ssh.Signer) ssh.Signer {
	certificate, ok := readPublic(file + "-cert.pub").(*ssh.Certificate)
	if !ok {
		return nil
	}
	certified, err := ssh.NewCertSigner(certificate, signer)
	if err != nil {
		return nil
	}
	return certified
}

// dialogue is how far the authentication got.
type dialogue struct {
	begun   bool
	allowed []string // methods of the peer
	partial bool     // a key was right, but something else is wanted too
	tried   []key
}

const publicKey = "publickey"

// next offers one key after the other. One that cannot sign, as by an agent
// that says no, does not keep the others from being tried.
func (r *keyring) next(d *dialogue) ssh.ClientAuthCallback {
	return func(c *ssh.ClientAuthContext) (ssh.AuthMethod, error) {
		d.begun, d.allowed = true, c.AllowedMethods
		d.partial = len(c.PartialSuccessMethods) > 0
		if len(d.tried) == len(r.keys) || !slices.Contains(d.allowed, publicKey) {
			return nil, nil
		}
		k := r.keys[len(d.tried)]
		d.tried = append(d.tried, k)
		return ssh.PublicKeys(k.signer), nil
	}
}

// refused says why the peer does not let us in.
func (s *settings) refused(err error, d *dialogue, r *keyring) error {
	t := s.target
	e := &Error{Kind: KeyRefused, Err: err}
	authorized := "~" + t.user + "/.ssh/authorized_keys"
	if t.user == "root" {
		authorized = "/root/.ssh/authorized_keys"
	}
	try := "; try: " + t.command()
	switch {
	case d.partial:
		e.Text = fmt.Sprintf("%s wants more than a key: %s", t, strings.Join(d.allowed, ", "))
		e.Remedy = fmt.Sprintf("on %s, let a key suffice (AuthenticationMethods publickey) for this node%s", t.host, try)
	case !slices.Contains(d.allowed, publicKey):
		e.Text = fmt.Sprintf("%s takes no keys, only: %s", t, strings.Join(d.allowed, ", "))
		e.Remedy = fmt.Sprintf("on %s, set in /etc/ssh/sshd_config: PubkeyAuthentication yes, "+
			"and for root PermitRootLogin prohibit-password%s", t.host, try)
	case len(r.locked) > 0:
		e.Kind = KeyLocked
		e.Text = fmt.Sprintf("%s: the key %s has a passphrase, and no agent has it%s",
			t, strings.Join(r.locked, ", "), offers(err, d, r))
		e.Remedy = "add it to an ssh-agent and name its socket in ssh_config as IdentityAgent, " +
			"or make a key without passphrase for this: ssh-keygen -t ed25519 -N '' -f FILE, $ssh_key = 'FILE'; " +
			"append FILE.pub to " + authorized + " on " + t.host
	case len(d.tried) == 0:
		e.Text = fmt.Sprintf("%s: we have no key to offer%s", t, offers(err, d, r))
		e.Remedy = fmt.Sprintf("ssh-keygen -t ed25519 -N '' -f %s; append %s to %s on %s%s",
			shell.Quote(s.keyFile()), shell.Quote(s.keyFile()+".pub"), authorized, t.host, try)
	case len(d.tried) < len(r.keys):
		e.Text = fmt.Sprintf("%s takes none of our first keys%s", t, offers(err, d, r))
		e.Remedy = "name the right key in ssh_config: IdentityFile with IdentitiesOnly yes, " +
			"or raise MaxAuthTries on " + t.host
	default:
		var files []string
		for _, k := range d.tried {
			if k.from != "agent" && !strings.HasSuffix(k.from, "-cert.pub") {
				files = append(files, shell.Quote(strings.TrimSuffix(k.from, ".pub")+".pub"))
			}
		}
		what := "the public key (ssh-add -L)"
		if len(files) > 0 {
			what = strings.Join(files, " or ")
		}
		e.Text = fmt.Sprintf("%s takes none of our keys%s", t, offers(err, d, r))
		permit := ""
		if t.user == "root" {
			permit = ", where sshd_config must let root in with a key (PermitRootLogin prohibit-password)"
		}
		e.Remedy = fmt.Sprintf("append %s to %s on %s%s%s", what, authorized, t.host, permit, try)
	}
	return e
}

// keyFile is where a new key would be found.
func (s *settings) keyFile() string {
	if len(s.keyFiles) > 0 {
		return s.keyFiles[0]
	}
	return "FILE"
}

// offers lists what was offered, and what could not be.
func offers(err error, d *dialogue, r *keyring) string {
	var b strings.Builder
	for i, k := range d.tried {
		b.WriteString([]string{"; offered: ", ", "}[min(i, 1)])
		b.WriteString(k.String())
	}
	if n := len(r.keys) - len(d.tried); n > 0 && len(d.tried) > 0 {
		fmt.Fprintf(&b, "; then it broke off, %d more untried: %v", n, errors.Unwrap(err))
	}
	for _, why := range r.missing {
		b.WriteString("; " + why)
	}
	return b.String()
}
