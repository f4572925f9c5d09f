package remote

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kevinburke/ssh_config"

	"github.com/skudonet/skudonet-ce-cluster/lib/smallfile"
)

const (
	maxConfig    = 256 << 10 // bytes of one ssh_config
	maxIncludes  = 16        // deep, as in OpenSSH
	maxKnown     = 4 << 20   // bytes of one known_hosts
	maxKeyFile   = 64 << 10
	included     = "included" // stands for Include in what the library reads
	neverMatches = "!*"
)

// settings is what holds for one Dial.
type settings struct {
	target target

	keyFiles       []string // in the order of trying
	usualKeys      bool     // keyFiles are just the usual names
	identitiesOnly bool
	agent          string // socket; "" for none

	hostKeyAlgorithms      string // as in the file
	hostKeyAlias           string
	userKnown, globalKnown []string
	connectTimeout         time.Duration // 0: not set
	notices                []string
}

// setting is one line that counts for the host.
type setting struct {
	key   string // lower case
	name  string // as in the file
	value string
	file  string
	line  int
}

func (s setting) where() string { return fmt.Sprintf("%s:%d: %s", s.file, s.line, s.name) }

// settings reads the files. What it returns with an error has notices only.
func (c Config) settings() (*settings, error) {
	files := c.ConfigFiles
	if files == nil {
		files = []string{filepath.Join(c.home(), ".ssh", "config"), "/etc/ssh/ssh_config"}
	}
	var all []setting
	var notices []string
	for _, file := range files {
		r := reader{host: c.Host.Unmap().String(), home: c.home(), top: file}
		found, err := r.read(file, 0)
		notices = append(notices, r.notices...)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return &settings{notices: notices}, broken(err)
		}
		all = append(all, found...)
	}
	s, err := resolve(c, all, os.Getenv)
	s.notices = append(notices, s.notices...)
	if err != nil {
		return s, broken(err)
	}
	return s, nil
}

func broken(err error) error {
	return &Error{Kind: Settings, Text: "ssh configuration: " + err.Error(), Err: err,
		Remedy: "correct the file; ssh -G shows what ssh makes of it"}
}

// reader reads one configuration file with all that it includes.
type reader struct {
	host, home string
	top        string // where it began: relative Includes are beside it
	notices    []string
}

func (r *reader) read(file string, depth int) ([]setting, error) {
	if depth > maxIncludes {
		return nil, fmt.Errorf("%s: Include goes deeper than %d files: does a file include itself?", file, maxIncludes)
	}
	text, err := smallfile.Read(file, maxConfig)
	if err != nil {
		return nil, err
	}
	found, notices, err := parse(file, text, r.host, func(pattern string) ([]setting, error) {
		return r.include(pattern, depth+1)
	})
	r.notices = append(r.notices, notices...)
	return found, err
}

func (r *reader) include(pattern string, depth int) ([]setting, error) {
	path := tilde(pattern, r.home)
	if !filepath.IsAbs(path) {
		path = filepath.Join(filepath.Dir(r.top), path)
	}
	files, err := filepath.Glob(path)
	if err != nil {
		return nil, err
	}
	var all []setting
	for _, file := range files {
		found, err := r.read(file, depth)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	return all, nil
}

// parse returns the lines of a configuration file that count for host, in
// order, with those that include brings for a pattern. Notices name the Match
// blocks that are left out.
func parse(
	file string, text []byte, host string, include func(pattern string) ([]setting, error),
) (found []setting, notices []string, err error) {
	if i := bytes.IndexByte(text, 0); i >= 0 {
		line := 1 + bytes.Count(text[:i], []byte("\n"))
		return nil, nil, fmt.Errorf("%s:%d: has a NUL byte: not a configuration file", file, line)
	}
	lines := strings.Split(string(text), "\n")
	for i, line := range lines {
		if unsupported := adapt(&lines[i]); unsupported {
			notices = append(notices, fmt.Sprintf("%s:%d: %s: not supported here, the block is ignored",
				file, i+1, strings.TrimSpace(line)))
		}
	}
	blocks, err := ssh_config.DecodeBytes([]byte(strings.Join(lines, "\n")))
	if err != nil {
		return nil, notices, fmt.Errorf("%s: %w", file, err)
	}
	for _, block := range blocks.Hosts {
		if !block.Matches(host) {
			continue
		}
		for _, node := range block.Nodes {
			kv, ok := node.(*ssh_config.KV)
			if !ok {
				continue // a comment
			}
			s := setting{strings.ToLower(kv.Key), kv.Key, kv.Value, file, kv.Pos().Line}
			if s.key == included {
				s.name = "Include"
			}
			if s.value == "" {
				return nil, notices, fmt.Errorf("%s: has no value", s.where())
			}
			if strings.Count(s.value, `"`)%2 != 0 {
				return nil, notices, fmt.Errorf("%s: the quote is not closed", s.where())
			}
			if s.key != included {
				found = append(found, s)
				continue
			}
			for _, pattern := range words(s.value) {
				if _, err := filepath.Match(pattern, ""); err != nil {
					return nil, notices, fmt.Errorf("%s %q: %w", s.where(), pattern, err)
				}
				more, err := include(pattern)
				if err != nil {
					return nil, notices, err
				}
				found = append(found, more...)
			}
		}
	}
	return found, notices, nil
}

// adapt makes a line digestible for the library, which takes what it does not
// know of Match for an error, and would look for included files by itself. It
// tells whether that left out a block.
func adapt(line *string) (unsupported bool) {
	rest := strings.TrimLeft(*line, " \t\r")
	end := strings.IndexAny(rest, " \t\r=")
	if end < 0 {
		end = len(rest)
	}
	key, rest := rest[:end], strings.TrimLeft(rest[end:], " \t")
	rest = strings.TrimLeft(strings.TrimPrefix(rest, "="), " \t")
	args := words(rest)
	switch strings.ToLower(key) {
	case "include":
		*line = included + " " + rest
	case "host":
		*line = "Host " + strings.Join(args, " ")
	case "match":
		patterns := neverMatches
		switch {
		case len(args) == 1 && strings.EqualFold(args[0], "all"):
			patterns = "*"
		case len(args) == 2 && (strings.EqualFold(args[0], "host") || strings.EqualFold(args[0], "originalhost")):
			patterns = strings.ReplaceAll(args[1], ",", " ")
		default:
			unsupported = true
		}
		*line = "Host " + patterns
	}
	return unsupported
}

// words splits a value at blanks; double quotes keep them. A comment ends it.
func words(text string) []string {
	var all []string
	var word strings.Builder
	quoted, inside := false, false
	flush := func() {
		if inside {
			all = append(all, word.String())
		}
		word.Reset()
		inside = false
	}
loop:
	for _, c := range text {
		switch {
		case c == '"':
			quoted, inside = !quoted, true
		case !quoted && (c == ' ' || c == '\t' || c == '\r'):
			flush()
		case !quoted && c == '#' && !inside:
			break loop
		default:
			word.WriteRune(c)
			inside = true
		}
	}
	flush()
	return all
}

// What would change the connection and is not done here. Some values mean that
// nothing is asked for.
var notHonoured = map[string][]string{
	"proxyjump":                {"none"},
	"proxycommand":             {"none"},
	"bindaddress":              {},
	"bindinterface":            {},
	"canonicalizehostname":     {"no"},
	"certificatefile":          {"none"},
	"ciphers":                  {},
	"kexalgorithms":            {},
	"knownhostscommand":        {"none"},
	"macs":                     {},
	"pkcs11provider":           {"none"},
	"pubkeyacceptedalgorithms": {},
	"pubkeyauthentication":     {"yes", "unbound", "host-bound"},
	"revokedhostkeys":          {"none"},
	"securitykeyprovider":      {"internal", "none"},
	"stricthostkeychecking":    {"yes", "ask"},
}

// resolve takes the first value of each key.
func resolve(c Config, all []setting, env func(string) string) (*settings, error) {
	s := &settings{target: target{user: "root", host: c.Host.Unmap().String(), port: 22}}
	s.target.name = s.target.host
	if c.Port != 0 {
		s.target.port = c.Port
	}
	first := map[string]setting{}
	var keyFiles []setting
	for _, line := range all {
		if line.key == "identityfile" {
			keyFiles = append(keyFiles, line)
			continue
		}
		if _, ok := first[line.key]; ok {
			continue
		}
		first[line.key] = line
		if harmless, ok := notHonoured[line.key]; ok && !slices.Contains(harmless, strings.ToLower(line.value)) {
			text := "not honoured here"
			if line.key == "stricthostkeychecking" {
				text += ": a host key must be known"
			}
			s.notices = append(s.notices, fmt.Sprintf("%s %s: %s", line.where(), line.value, text))
		}
	}

	if v, ok := first["port"]; ok {
		port, err := strconv.ParseUint(v.value, 10, 16)
		if err != nil || port == 0 {
			return s, fmt.Errorf("%s %q: want a port, 1 to 65535", v.where(), v.value)
		}
		s.target.port = uint16(port)
	}
	if v, ok := first["user"]; ok {
		s.target.user = v.value
	}
	local := "root"
	if u, err := user.Current(); err == nil {
		local = u.Username
	}
	tokens := map[byte]string{
		'%': "%", 'd': c.home(), 'h': s.target.host, 'n': s.target.name, 'k': s.target.host,
		'p': fmt.Sprint(s.target.port), 'r': s.target.user, 'u': local, 'i': fmt.Sprint(os.Getuid()),
	}
	expand := func(v setting, word string) (string, error) {
		text, err := percent(word, tokens)
		if err != nil {
			return "", fmt.Errorf("%s: %w", v.where(), err)
		}
		return tilde(text, c.home()), nil
	}
	var err error
	if v, ok := first["hostname"]; ok {
		if s.target.host, err = expand(v, v.value); err != nil {
			return s, err
		}
		s.target.host = strings.ToLower(s.target.host)
		tokens['h'], tokens['k'] = s.target.host, s.target.host
	}
	if v, ok := first["hostkeyalias"]; ok {
		s.hostKeyAlias = strings.ToLower(v.value)
		tokens['k'] = s.hostKeyAlias
	}
	if v, ok := first["connecttimeout"]; ok && !strings.EqualFold(v.value, "none") {
		seconds, err := strconv.ParseUint(v.value, 10, 16)
		if err != nil {
			return s, fmt.Errorf("%s %q: want seconds", v.where(), v.value)
		}
		s.connectTimeout = time.Duration(seconds) * time.Second
	}
	if v, ok := first["identitiesonly"]; ok {
		switch strings.ToLower(v.value) {
		case "yes", "true":
			s.identitiesOnly = true
		case "no", "false":
		default:
			return s, fmt.Errorf("%s %q: want yes or no", v.where(), v.value)
		}
	}
	s.hostKeyAlgorithms = first["hostkeyalgorithms"].value

	s.agent = env("SSH_AUTH_SOCK")
	if v, ok := first["identityagent"]; ok {
		switch name, variable := strings.CutPrefix(v.value, "$"); {
		case strings.EqualFold(v.value, "none"):
			s.agent = ""
		case v.value == "SSH_AUTH_SOCK":
		case variable:
			s.agent = env(strings.Trim(name, "{}"))
		default:
			if s.agent, err = expand(v, v.value); err != nil {
				return s, err
			}
		}
	}

	for _, v := range keyFiles {
		if strings.EqualFold(v.value, "none") {
			continue
		}
		file, err := expand(v, v.value)
		if err != nil {
			return s, err
		}
		if !slices.Contains(s.keyFiles, file) {
			s.keyFiles = append(s.keyFiles, file)
		}
	}
	switch {
	case len(keyFiles) > 0:
	case c.KeyFile != "":
		s.keyFiles = []string{tilde(c.KeyFile, c.home())}
		s.target.key = s.keyFiles[0]
	default:
		s.usualKeys = true
		for _, name := range []string{"id_ed25519", "id_ecdsa", "id_rsa"} {
			s.keyFiles = append(s.keyFiles, filepath.Join(c.home(), ".ssh", name))
		}
	}

	knownFiles := func(key string, usual ...string) ([]string, error) {
		v, ok := first[key]
		if !ok {
			return usual, nil
		}
		var files []string
		for _, word := range words(v.value) {
			file, err := expand(v, word)
			if err != nil {
				return nil, err
			}
			if !strings.EqualFold(file, "none") {
				files = append(files, file)
			}
		}
		return files, nil
	}
	ssh := filepath.Join(c.home(), ".ssh")
	if s.userKnown, err = knownFiles("userknownhostsfile",
		filepath.Join(ssh, "known_hosts"), filepath.Join(ssh, "known_hosts2")); err != nil {
		return s, err
	}
	s.globalKnown, err = knownFiles("globalknownhostsfile", "/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")
	return s, err
}

// percent replaces %x by its value.
func percent(text string, tokens map[byte]string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] != '%' {
			b.WriteByte(text[i])
			continue
		}
		i++
		if i == len(text) {
			return "", fmt.Errorf("%q ends in a single %%: write %%%%", text)
		}
		value, ok := tokens[text[i]]
		if !ok {
			return "", fmt.Errorf("%q: %%%c is not known here: write the name in full", text, text[i])
		}
		b.WriteString(value)
	}
	return b.String(), nil
}

// tilde replaces the ~ of "~/x".
func tilde(path, home string) string {
	if path == "~" {
		return home
	}
	if rest, ok := strings.CutPrefix(path, "~/"); ok {
		return filepath.Join(home, rest)
	}
	return path
}
