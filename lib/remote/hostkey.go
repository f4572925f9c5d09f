package remote

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/shell"
	"github.com/skudonet/skudonet-ce-cluster/lib/smallfile"
)

// knownHosts is what all known_hosts files say together.
type knownHosts struct {
	lines   []knownLine
	check   ssh.HostKeyCallback // knows lines by their number, from 1
	notices []string
}

type knownLine struct {
	file   string
	number int
	text   string
}

func (l knownLine) String() string { return fmt.Sprintf("%s:%d", l.file, l.number) }

// readKnownHosts leaves out, with a notice, files that it cannot read and lines
// that it does not understand, as ssh does: a key on them is unknown. Missing
// files are empty.
func readKnownHosts(files []string) *knownHosts {
	k := &knownHosts{}
	for _, file := range files {
		if file == os.DevNull {
			continue
		}
		data, err := smallfile.Read(file, maxKnown)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			k.notices = append(k.notices, fmt.Sprintf("known hosts are left out: %v", err))
			continue
		}
		for i, text := range strings.Split(string(data), "\n") {
			k.lines = append(k.lines, knownLine{file, i + 1, text})
		}
	}
	var err error
	if k.check, err = database(k.lines); err == nil {
		return k
	}
	k.lines = slices.DeleteFunc(k.lines, func(l knownLine) bool {
		_, err := database([]knownLine{l})
		if err != nil {
			why := err.Error()
			if _, after, ok := strings.Cut(why, ":1: "); ok {
				why = after // without the library's name of the file
			}
			k.notices = append(k.notices, fmt.Sprintf("%s: this line of known hosts is ignored: %s", l, why))
		}
		return err != nil
	})
	if k.check, err = database(k.lines); err != nil {
		k.lines = nil
		k.notices = append(k.notices, fmt.Sprintf("known hosts are left out: %v", err))
		k.check = func(string, net.Addr, ssh.PublicKey) error { return &knownhosts.KeyError{} }
	}
	return k
}

// database is the library's view of the lines. It reads files only, so it gets
// one in memory.
func database(lines []knownLine) (ssh.HostKeyCallback, error) {
	fd, err := unix.MemfdCreate("known_hosts", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memory for known hosts: %w", err)
	}
	f := os.NewFile(uintptr(fd), "known_hosts")
	defer f.Close()
	var b strings.Builder
	for _, l := range lines {
		b.WriteString(l.text)
		b.WriteByte('\n')
	}
	if _, err := f.WriteString(b.String()); err != nil {
		return nil, fmt.Errorf("memory for known hosts: %w", err)
	}
	check, err := knownhosts.New(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return nil, fmt.Errorf("known hosts: %w", err)
	}
	return check, nil
}

// noKey asks known_hosts for what there is, as no host has it.
type noKey struct{}

func (noKey) Type() string                        { return "none" }
func (noKey) Marshal() []byte                     { return nil }
func (noKey) Verify([]byte, *ssh.Signature) error { return errors.New("not a key") }

// somewhere is an address for the library, which looks at it only without a name.
var somewhere = &net.TCPAddr{IP: net.IPv4zero}

// entry is one key that is known for a host.
type entry struct {
	knownLine
	key       ssh.PublicKey
	authority bool // of certificates
}

// entries lists what is known for an address.
func (k *knownHosts) entries(address string) []entry {
	wrong, ok := errors.AsType[*knownhosts.KeyError](k.check(address, somewhere, noKey{}))
	if !ok {
		return nil
	}
	var all []entry
	for _, w := range wrong.Want {
		l := k.lines[w.Line-1]
		all = append(all, entry{l, w.Key, strings.HasPrefix(strings.TrimLeft(l.text, " \t"), "@cert-authority")})
	}
	return all
}

// hostCheck is the check of one peer's host key.
type hostCheck struct {
	known  *knownHosts
	target target
	alias  string // HostKeyAlias

	failed *Error // what check has found
}

// addresses are the names of the peer in known_hosts. As in ssh, a host on
// another port may also be known without the port; an alias has none.
func (h *hostCheck) addresses() []string {
	if h.alias != "" {
		return []string{hostPort(h.alias, 22)}
	}
	all := []string{hostPort(h.target.host, h.target.port)}
	if h.target.port != 22 {
		all = append(all, hostPort(h.target.host, 22))
	}
	return all
}

func (h *hostCheck) entries() []entry {
	for _, a := range h.addresses() {
		if all := h.known.entries(a); len(all) > 0 {
			return all
		}
	}
	return nil
}

// algorithms is what we offer: first those of the keys that are known, so that
// a server with several keys shows one of them. Spec is HostKeyAlgorithms of
// ssh_config, which is followed where it lists algorithms.
func (h *hostCheck) algorithms(spec string) []string {
	return algorithms(spec, h.entries())
}

func algorithms(spec string, known []entry) []string {
	supported := ssh.SupportedAlgorithms().HostKeys
	usual := slices.DeleteFunc(slices.Clone(supported), isCertificate)
	var first []string
	if slices.ContainsFunc(known, func(e entry) bool { return e.authority }) {
		first = slices.DeleteFunc(slices.Clone(supported), func(a string) bool { return !isCertificate(a) })
	}
	for _, e := range known {
		if !e.authority {
			first = append(first, signatures(e.key.Type())...)
		}
	}

	every := slices.Concat(supported, ssh.InsecureAlgorithms().HostKeys)
	operator := byte(0)
	if spec != "" && strings.IndexByte("+-^", spec[0]) >= 0 {
		operator, spec = spec[0], spec[1:]
	}
	var named []string
	for pattern := range strings.SplitSeq(spec, ",") {
		for _, a := range every {
			if ok, err := path.Match(strings.TrimSpace(pattern), a); ok && err == nil {
				named = append(named, a)
			}
		}
	}
	var list []string
	switch {
	case operator == '+':
		list = slices.Concat(first, usual, named)
	case operator == '-':
		list = slices.DeleteFunc(slices.Concat(first, usual), func(a string) bool { return slices.Contains(named, a) })
	case operator == '^':
		list = slices.Concat(named, first, usual)
	case len(named) > 0:
		list = named
	default:
		list = slices.Concat(first, usual)
	}
	var once []string
	for _, a := range list {
		if slices.Contains(every, a) && !slices.Contains(once, a) {
			once = append(once, a)
		}
	}
	return once
}

func isCertificate(algorithm string) bool { return strings.Contains(algorithm, "-cert-v0") }

// signatures are the algorithms of a type of key.
func signatures(keyType string) []string {
	if keyType == ssh.KeyAlgoRSA {
		return []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256, ssh.KeyAlgoRSA}
	}
	return []string{keyType}
}

// check accepts a known key. Otherwise it notes why not.
func (h *hostCheck) check(_ string, _ net.Addr, key ssh.PublicKey) error {
	var err error
	for i, address := range h.addresses() {
		if i > 0 && len(h.known.entries(h.addresses()[0])) > 0 {
			break
		}
		if err = h.known.check(address, somewhere, key); err == nil {
			return nil
		}
		// A certificate that does not count still has a key that may.
		if c, ok := key.(*ssh.Certificate); ok && !isRevoked(err) {
			if h.known.check(address, somewhere, c.Key) == nil {
				return nil
			}
		}
		if isRevoked(err) {
			break
		}
	}
	h.failed = h.explain(key, err)
	return h.failed
}

func isRevoked(err error) bool {
	_, ok := errors.AsType[*knownhosts.RevokedError](err)
	return ok
}

// explain says what is wrong with a key.
func (h *hostCheck) explain(key ssh.PublicKey, err error) *Error {
	why := ""
	if c, ok := key.(*ssh.Certificate); ok {
		why = fmt.Sprintf("; its certificate does not count: %v", err)
		key = c.Key
	}
	name := fmt.Sprintf("%s key %s", keyName(key), ssh.FingerprintSHA256(key))
	compare := fmt.Sprintf("on %s compare the fingerprint: "+
		"for k in /etc/ssh/ssh_host_*_key.pub; do ssh-keygen -lf $k; done; then once by hand: ssh%s true",
		h.target.host, h.target.options())
	if revoked, ok := errors.AsType[*knownhosts.RevokedError](err); ok {
		return &Error{Kind: HostKeyRevoked, Err: err,
			Text:   fmt.Sprintf("%s: its host %s is revoked in %s", h.target, name, h.known.lines[revoked.Revoked.Line-1]),
			Remedy: fmt.Sprintf("give %s a new host key, or take the line away if it is wrong", h.target.host)}
	}
	var others []string
	for _, e := range h.entries() {
		if e.authority {
			continue
		}
		if e.key.Type() == key.Type() {
			return &Error{Kind: HostKeyChanged, Err: err,
				Text: fmt.Sprintf("%s: its host key has changed, or somebody is in between: it shows the %s, %s has %s%s",
					h.target, name, e, ssh.FingerprintSHA256(e.key), why),
				Remedy: fmt.Sprintf("if you know why it changed: ssh-keygen -R %s -f %s; %s",
					shell.Quote(knownhosts.Normalize(h.addresses()[0])), shell.Quote(e.file), compare)}
		}
		others = append(others, fmt.Sprintf("%s at %s", keyName(e.key), e))
	}
	text := fmt.Sprintf("%s: its host %s is not in known_hosts", h.target, name)
	if len(others) > 0 {
		text += ", only " + strings.Join(others, ", ")
	}
	return &Error{Kind: HostKeyUnknown, Err: err, Text: text + why, Remedy: compare}
}

// keyName is a type of key as ssh-keygen calls it.
func keyName(key ssh.PublicKey) string {
	t := key.Type()
	switch {
	case strings.Contains(t, "ed25519"):
		return "ED25519"
	case strings.Contains(t, "ecdsa"):
		return "ECDSA"
	case strings.Contains(t, "rsa"):
		return "RSA"
	}
	return t
}
