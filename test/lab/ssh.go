package lab

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

// sshServer is what a node's sshd is, for the whole life of the lab.
type sshServer struct {
	mu     sync.Mutex
	public []ssh.PublicKey // of its host keys; nil before they are made
	daemon *Daemon         // the last one
}

const sshdConfig = `HostKey /etc/ssh/ssh_host_ed25519_key
HostKey /etc/ssh/ssh_host_ecdsa_key
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
LogLevel VERBOSE
PidFile /run/sshd.pid
Subsystem sftp internal-sftp
`

// StartSSH starts a real sshd on port 22 of all addresses, with root's login by key only, and returns when it listens.
// Its log is /var/log/sshd.log. The first call makes host keys of the machine's own (ed25519 and ecdsa; an RSA key
// would take longer to make than the lab) and /etc/ssh/sshd_config; later ones leave both as they are, so a test may
// change them in between. After [Node.PowerOn] it has to be called again. As on a Debian host, Stop ends the listener
// only: sessions go on.
func (n *Node) StartSSH() (*Daemon, error) {
	if missing := Missing("sshd"); len(missing) > 0 {
		return nil, fmt.Errorf("%s: sshd: apt-get install %s", n.Name, strings.Join(missing, " "))
	}
	if _, err := n.hostKeys(); err != nil {
		return nil, fmt.Errorf("%s: host keys: %w", n.Name, err)
	}
	// For the privilege separation of sshd.
	if err := os.Mkdir(n.Root("/run/sshd"), 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	d, err := n.Start(DaemonSpec{Name: "sshd", Args: []string{"/usr/sbin/sshd", "-D", "-e"}})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	go func() {
		select {
		case <-d.Done():
			cancel()
		case <-ctx.Done():
		}
	}()
	err = Await(ctx, "sshd to listen", func() (bool, string) { return listens(d.PID(), 22), d.Log() })
	if err != nil {
		d.Stop()
		return nil, fmt.Errorf("%s: %w", n.Name, err)
	}
	n.ssh.mu.Lock()
	defer n.ssh.mu.Unlock()
	n.ssh.daemon = d
	return d, nil
}

// SSHD is the daemon of the last StartSSH, nil without one.
func (n *Node) SSHD() *Daemon {
	n.ssh.mu.Lock()
	defer n.ssh.mu.Unlock()
	return n.ssh.daemon
}

// listens tells whether somebody listens at a TCP port in the network of a process.
func listens(pid int, port uint16) bool {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/net/tcp", pid))
	for line := range strings.Lines(string(text)) {
		// Number, local address, remote address, state: 0A is LISTEN.
		f := strings.Fields(line)
		if len(f) > 3 && f[3] == "0A" && strings.HasSuffix(f[1], fmt.Sprintf(":%04X", port)) {
			return true
		}
	}
	return false
}

// hostKeys gives the public keys of the machine's sshd, which it makes when they are first needed.
func (n *Node) hostKeys() ([]ssh.PublicKey, error) {
	n.ssh.mu.Lock()
	defer n.ssh.mu.Unlock()
	if n.ssh.public != nil {
		return n.ssh.public, nil
	}
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(n.Root("/etc/ssh"), 0o755); err != nil {
		return nil, err
	}
	var public []ssh.PublicKey
	for _, key := range []struct {
		name string
		key  crypto.Signer
	}{{"ed25519", edwards}, {"ecdsa", curve}} {
		p, err := n.writeKey("/etc/ssh/ssh_host_"+key.name+"_key", key.key)
		if err != nil {
			return nil, err
		}
		public = append(public, p)
	}
	if err := n.WriteFile("/etc/ssh/sshd_config", sshdConfig, 0o644); err != nil {
		return nil, err
	}
	// Without PAM, sshd refuses an account whose password is locked, as root's is on some hosts.
	if shadow, err := n.ReadFile("/etc/shadow"); err == nil && strings.HasPrefix(shadow, "root:!") {
		if err := n.WriteFile("/etc/shadow", strings.Replace(shadow, "root:!", "root:*", 1), 0o600); err != nil {
			return nil, err
		}
	}
	n.ssh.public = public
	return public, nil
}

// writeKey writes a private key and, with .pub behind the name, its public one.
func (n *Node) writeKey(file string, key crypto.Signer) (ssh.PublicKey, error) {
	block, err := ssh.MarshalPrivateKey(key, "root@"+n.Name)
	if err != nil {
		return nil, err
	}
	public, err := ssh.NewPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	return public, errors.Join(
		n.WriteFile(file, string(pem.EncodeToMemory(block)), 0o600),
		n.WriteFile(file+".pub", string(ssh.MarshalAuthorizedKey(public)), 0o644))
}

// ConnectSSH does what an admin does once for the replication: root of lb1 and lb2 gets a key pair without a passphrase,
// which the other node lets in, and knows the other one's host keys at its first address, or first of IPv6, hashed as Debian's ssh
// writes them. Then it starts sshd on both.
func (l *Lab) ConnectSSH() error {
	pair := []*Node{l.LB1, l.LB2}
	for i, n := range pair {
		peer := pair[1-i]
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return err
		}
		for _, node := range pair {
			if err := os.MkdirAll(node.Root("/root/.ssh"), 0o700); err != nil {
				return err
			}
		}
		public, err := n.writeKey("/root/.ssh/id_ed25519", key)
		if err != nil {
			return err
		}
		if err := peer.WriteFile("/root/.ssh/authorized_keys", string(ssh.MarshalAuthorizedKey(public)), 0o600); err != nil {
			return err
		}
		hostKeys, err := peer.hostKeys()
		if err != nil {
			return fmt.Errorf("%s: host keys: %w", peer.Name, err)
		}
		known, address := "", peer.Addr(0)
		if l.options.Families == IPv6 {
			address = peer.Addr6(0)
		}
		for _, k := range hostKeys {
			known += knownhosts.HashHostname(address.String()) + " " + string(ssh.MarshalAuthorizedKey(k))
		}
		if err := n.WriteFile("/root/.ssh/known_hosts", known, 0o600); err != nil {
			return err
		}
	}
	for _, n := range pair {
		if _, err := n.StartSSH(); err != nil {
			return err
		}
	}
	return nil
}
