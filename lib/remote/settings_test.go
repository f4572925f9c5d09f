package remote

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// place writes files below a new home and returns it. A name ends at the first
// line break.
func place(t *testing.T, files ...string) string {
	t.Helper()
	home := t.TempDir()
	for _, f := range files {
		name, text, _ := strings.Cut(f, "\n")
		file := filepath.Join(home, name)
		os.MkdirAll(filepath.Dir(file), 0o700)
		write(t, file, text, 0o600)
	}
	return home
}

func readSettings(t *testing.T, c Config, files ...string) (*settings, string, error) {
	t.Helper()
	c.Home = place(t, files...)
	c.ConfigFiles = []string{filepath.Join(c.Home, ".ssh/config"), filepath.Join(c.Home, "etc/ssh_config")}
	if !c.Host.IsValid() {
		c.Host = netip.MustParseAddr("192.0.2.1")
	}
	s, err := c.settings()
	return s, c.Home, err
}

func TestSettings(t *testing.T) {
	s, home, err := readSettings(t, Config{})
	if err != nil {
		t.Fatal(err)
	}
	in := func(names ...string) []string {
		for i := range names {
			names[i] = filepath.Join(home, names[i])
		}
		return names
	}
	want := &settings{
		target:      target{user: "root", host: "192.0.2.1", port: 22, name: "192.0.2.1"},
		keyFiles:    in(".ssh/id_ed25519", ".ssh/id_ecdsa", ".ssh/id_rsa"),
		usualKeys:   true,
		userKnown:   in(".ssh/known_hosts", ".ssh/known_hosts2"),
		globalKnown: []string{"/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2"},
	}
	if !reflect.DeepEqual(s, want) {
		t.Errorf("without files: %+v\nwant %+v", s, want)
	}

	s, home, err = readSettings(t, Config{Port: 2022, KeyFile: "/key"}, ".ssh/config\n"+`
# comment
Include sub/*.conf ~/more
	user	admin   # a comment
ConnectTimeout=7
IdentityFile "~/.ssh/a key"
IdentityFile %d/k-%r-%h-%p-%%
UserKnownHostsFile /a   "/b c" none ~/.ssh/%h
IdentityAgent ~/sock
HostKeyAlgorithms +ssh-rsa
Host * !192.0.2.1
	Port 1
Host "192.0.2.?"
	HostName Peer.%h.Example
`, ".ssh/sub/2.conf\nUser second\nIdentityFile /two\n", ".ssh/sub/1.conf\nHost 198.51.100.1\nUser wrong\nHost *\r\nIdentityFile /one\r\n",
		"more\nMatch originalhost 198.51.*,192.0.2.*\nIdentitiesOnly yes\nMatch all\nHostKeyAlias X\n",
		"etc/ssh_config\nInclude extra\nUser system\nIdentityFile /system\nConnectTimeout 99\n", "etc/extra\nGlobalKnownHostsFile none\nIdentityFile /one\n")
	if err != nil {
		t.Fatal(err)
	}
	want = &settings{
		target: target{user: "second", host: "peer.192.0.2.1.example", port: 2022, name: "192.0.2.1"},
		keyFiles: append([]string{"/one", "/two"}, append(in(".ssh/a key",
			"k-second-peer.192.0.2.1.example-2022-%"), "/system")...),
		identitiesOnly:    true,
		agent:             in("sock")[0],
		hostKeyAlgorithms: "+ssh-rsa",
		hostKeyAlias:      "x",
		userKnown:         []string{"/a", "/b c", in(".ssh/peer.192.0.2.1.example")[0]},
		connectTimeout:    7 * time.Second,
	}
	if !reflect.DeepEqual(s, want) {
		t.Errorf("with files: %+v\nwant %+v", s, want)
	}

	if s, _, err := readSettings(t, Config{Port: 2022, KeyFile: "~/key"}, ".ssh/config\nPort 3033\n"); err != nil || s.target.port != 3033 ||
		len(s.keyFiles) != 1 || !strings.HasSuffix(s.keyFiles[0], "/key") || s.usualKeys || s.target.key != s.keyFiles[0] {
		t.Errorf("Port before Config.Port: %+v %v", s, err)
	}
	if s, _, err := readSettings(t, Config{Host: netip.MustParseAddr("::ffff:192.0.2.9")}, ".ssh/config\nHost 192.0.2.9\nPort 5\n"); err != nil || s.target.address() != "192.0.2.9:5" {
		t.Errorf("mapped address: %+v %v", s, err)
	}
	if s, _, err := readSettings(t, Config{Host: netip.MustParseAddr("2001:db8::1")}); err != nil || s.target.address() != "[2001:db8::1]:22" {
		t.Errorf("IPv6: %+v %v", s, err)
	}
}

func TestIdentityAgent(t *testing.T) {
	env := func(name string) string { return map[string]string{"SSH_AUTH_SOCK": "/usual", "OTHER": "/other"}[name] }
	for value, want := range map[string]string{"": "/usual", "none": "", "SSH_AUTH_SOCK": "/usual", "$OTHER": "/other", "${OTHER}": "/other", "~/a": "/h/a"} {
		var lines []setting
		if value != "" {
			lines = []setting{{"identityagent", "IdentityAgent", value, "f", 1}}
		}
		if s, err := resolve(Config{Home: "/h"}, lines, env); err != nil || s.agent != want {
			t.Errorf("IdentityAgent %q: %q %v, want %q", value, s.agent, err, want)
		}
	}
}

func TestBrokenSettings(t *testing.T) {
	for text, want := range map[string]string{
		"Port 0":                           `config:1: Port "0": want a port, 1 to 65535`,
		"\nPort":                           "config:2: Port: has no value",
		"Port=70000":                       "want a port",
		"IdentitiesOnly maybe":             `config:1: IdentitiesOnly "maybe": want yes or no`,
		"ConnectTimeout soon":              "want seconds",
		`IdentityFile "/a`:                 "config:1: IdentityFile: the quote is not closed",
		"IdentityFile /a%q":                `config:1: IdentityFile: "/a%q": %q is not known here`,
		"IdentityFile /a%":                 "ends in a single %",
		"UserKnownHostsFile /%z":           "%z is not known",
		"HostName %x":                      "%x is not known",
		"# x\nHost *\n\x00":                "config:3: has a NUL byte",
		"Include config":                   "does a file include itself?",
		"Include [":                        `config:1: Include "[": syntax error in pattern`,
		strings.Repeat("# long\n", 100000): "larger than 256 KiB",
	} {
		s, _, err := readSettings(t, Config{}, ".ssh/config\n"+text)
		e, ok := err.(*Error)
		if !ok || e.Kind != Settings || !strings.Contains(e.Text, want) || e.Remedy == "" {
			t.Errorf("%.40q: %v, want %q", text, err, want)
		}
		if s == nil {
			t.Errorf("%.40q: no settings with the error", text)
		}
	}
}

func TestAlgorithms(t *testing.T) {
	key := func(name string, authority bool) entry {
		s, _ := ssh.NewSignerFromKey(hostKeys()[name])
		return entry{key: s.PublicKey(), authority: authority}
	}
	for _, c := range []struct {
		spec  string
		known []entry
		first []string // what the list begins with
		has   []string
		not   []string
	}{
		{"", nil, nil, []string{ssh.KeyAlgoED25519, ssh.KeyAlgoRSASHA512}, []string{ssh.KeyAlgoRSA, ssh.CertAlgoED25519v01}},
		{"", []entry{key("rsa", false)}, []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256, ssh.KeyAlgoRSA}, []string{ssh.KeyAlgoED25519}, nil},
		{"", []entry{key("ecdsa", false), key("ed25519", false)}, []string{ssh.KeyAlgoECDSA256, ssh.KeyAlgoED25519}, nil, nil},
		{"", []entry{key("ecdsa", true)}, nil, []string{ssh.CertAlgoED25519v01, ssh.CertAlgoRSASHA512v01, ssh.KeyAlgoED25519}, nil},
		{"ssh-ed25519,nonsense", []entry{key("rsa", false)}, []string{ssh.KeyAlgoED25519}, nil, []string{ssh.KeyAlgoRSASHA512}},
		{"nonsense", nil, nil, []string{ssh.KeyAlgoED25519}, nil},
		{"+ssh-rsa", []entry{key("ecdsa", false)}, []string{ssh.KeyAlgoECDSA256}, []string{ssh.KeyAlgoRSA}, nil},
		{"-rsa-*,ssh-rsa", []entry{key("rsa", false)}, nil, []string{ssh.KeyAlgoED25519}, []string{ssh.KeyAlgoRSA, ssh.KeyAlgoRSASHA256}},
		{"^rsa-sha2-256", []entry{key("ecdsa", false)}, []string{ssh.KeyAlgoRSASHA256, ssh.KeyAlgoECDSA256}, []string{ssh.KeyAlgoED25519}, nil},
	} {
		got := algorithms(c.spec, c.known)
		if len(got) < len(c.first) || !slices.Equal(got[:len(c.first)], c.first) {
			t.Errorf("%q: %q begins not with %q", c.spec, got, c.first)
		}
		for _, a := range c.has {
			if !slices.Contains(got, a) {
				t.Errorf("%q: %q has no %s", c.spec, got, a)
			}
		}
		for _, a := range c.not {
			if slices.Contains(got, a) {
				t.Errorf("%q: %q has %s", c.spec, got, a)
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"Host *\nPort 22\n", "Match host a,b\nUser x", "match exec \"x y\"\r\nUser x", "Include a b\n", "=\n= =\nHost\nMatch\n",
		"Host \"a b\" !c\n\tIdentityFile \"~/x y\" # c\n", "Port", "Host \\ [ ( ?\n\xff\xfe 1\n", "\r\r\nMatch\rall\n", "Include=\"x\"\n#\n",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		include := func(pattern string) ([]setting, error) {
			if pattern == "" {
				return nil, fmt.Errorf("empty")
			}
			return []setting{{"user", "User", "included", "other", 1}}, nil
		}
		found, _, err := parse("file", []byte(text), "192.0.2.1", include)
		lines := strings.Count(text, "\n") + 1
		for _, s := range found {
			if s.file == "file" && (s.line < 1 || s.line > lines) {
				t.Errorf("line %d of %d: %+v", s.line, lines, s)
			}
			if s.value == "" || s.key == "match" || s.key == "host" || s.key == "include" {
				t.Errorf("not a setting: %+v", s)
			}
		}
		if err != nil {
			return
		}
		if s, err := resolve(Config{Home: "/h"}, found, func(string) string { return "" }); err == nil && s.target.port == 0 {
			t.Error("port 0")
		}
	})
}

func FuzzKnownHosts(f *testing.F) {
	signer, _ := ssh.NewSignerFromKey(newEd25519())
	key := string(ssh.MarshalAuthorizedKey(signer.PublicKey()))
	for _, seed := range []string{"", "192.0.2.1 " + key, "@revoked * " + key, "@cert-authority *.x,!y " + key, "|1|a|b " + key, "[::1]:2 " + key,
		"@what x " + key, "a ssh-rsa AAAA\n192.0.2.1 " + key} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		k := readKnownHosts([]string{write(t, filepath.Join(t.TempDir(), "known_hosts"), text, 0o600)})
		h := hostCheck{known: k, target: target{user: "root", host: "192.0.2.1", port: 2222, name: "192.0.2.1"}}
		if len(h.algorithms("")) == 0 {
			t.Error("nothing to offer")
		}
		if err := h.check("", nil, signer.PublicKey()); err != nil && h.failed.Text == "" {
			t.Error("no text")
		}
		for _, n := range k.notices {
			if strings.Contains(n, "%!") && !strings.Contains(text, "%!") {
				t.Error(n)
			}
		}
	})
}
