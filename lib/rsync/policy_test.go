package rsync

import (
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestParseArgs(t *testing.T) {
	for _, tt := range []struct {
		text    string
		args    string   // joined with |
		notices []string // each: the option, and a word of the reason
		direct  bool
	}{
		{text: ""},
		{text: "-auzv --delete", args: "-z", notices: []string{"-u: newer"}},
		{text: "-auzv --delete --update --progress -q", args: "-z", notices: []string{"-u: newer", "--update: newer"}},
		{text: "-rlptgo -I --numeric-ids -s -0 -d -E -O --del --delete-after --force --stats -h --info=all2 --debug NONE -i"},
		{text: "-az --no-o --no-perms --no-D --no-v --no-W", args: "-z|--no-W", notices: []string{"--no-o: mirror", "--no-perms: mirror"}},
		{text: "--no-delete --no-numeric-ids --no-such", notices: []string{"--no-delete: mirror", "--no-numeric-ids: peer", "--no-such: not known"}},
		{text: "--bwlimit=100 --compress-level 9 --zc=zstd -B 1024 -B2048 -W -y --skip-compress=gz/zip",
			args: "--bwlimit=100|--compress-level=9|--zc=zstd|--block-size=1024|--block-size=2048|-W|-y|--skip-compress=gz/zip"},
		{text: "-AHXNU --fake-super --no-X", args: "-A|-H|-X|-N|-U|--fake-super|--no-X", direct: true},
		{text: "--no-acls", args: "--no-acls"},
		{text: "-e 'ssh -p 2222' -z", args: "-z", notices: []string{"-e: .ssh/config"}},
		{text: "-ze 'ssh -p 2222' --rsh ssh --rsync-path='sudo rsync' -T /tmp", notices: []string{"-e: own", "--rsh: own", "--rsync-path: $rsync", "-T: temporary"}, args: "-z"},
		{text: "-aessh", notices: []string{"-e: own"}},
		{text: "--exclude a --include=b -f '- c' -C -FF", notices: []string{"--exclude: $exclude", "--include: $exclude", "-f: $exclude", "-C: $exclude", "-F: $exclude"}},
		{text: "-nP --partial --inplace --append --size-only --ignore-existing --existing --max-size 1m --min-size=1",
			notices: []string{"-n: nothing", "-P: half", "--partial: half", "--inplace: half", "--append: half", "--size-only: size",
				"--ignore-existing: changed", "--existing: new", "--max-size: size", "--min-size: size"}},
		{text: "-bLkKxmR --backup-dir=/b --suffix x --copy-unsafe-links --safe-links --remove-source-files",
			notices: []string{"-b: backup", "-L: symlinks", "-k: symlinks", "-K: symlinks", "-x: mounted", "-m: empty", "-R: path", "--backup-dir: backup",
				"--suffix: backup", "--copy-unsafe-links: symlinks", "--safe-links: symlinks", "--remove-source-files: remove"}},
		{text: "--chmod=F640 --chown a:b --usermap=a:b --files-from /x --timeout 3 --delete-excluded --max-delete=3 -D",
			notices: []string{"--chmod: mode", "--chown: owner", "--usermap: owner", "--files-from: paths", "--timeout: limit", "--delete-excluded: peer", "--max-delete: removed", "-D: FIFOs"}},
		{text: "--frobnicate -aQz --z --u", args: "-z", notices: []string{"--frobnicate: not known", "-Q: not known", "--z: not known", "--u: not known"}},
		{text: "--bwlimit", notices: []string{"--bwlimit: missing"}},
		{text: "-zB", args: "-z", notices: []string{"-B: missing"}},
		{text: "--bwlimit= --compress=9", notices: []string{"--bwlimit: missing", "--compress: takes no value"}},
		{text: "host:/x -z -- -u", args: "-z", notices: []string{"host:/x: not an option", "-u: not an option"}},
		{text: "- ''", notices: []string{"-: not an option", `"": not an option`}},
		{text: "-u -u -uu", notices: []string{"-u: newer"}},
		{text: "--log-file=/var/log/rsync.log --log-file x", args: "--log-file=/var/log/rsync.log", notices: []string{"--log-file: absolute"}},
		{text: "'--\nx' -\xff", notices: []string{`--"\nx": not known`, "-"}},
	} {
		p, err := ParseArgs(tt.text)
		if err != nil {
			t.Errorf("%q: %v", tt.text, err)
			continue
		}
		if got := strings.Join(p.Args, "|"); got != tt.args || p.Direct != tt.direct {
			t.Errorf("%q: args %q, direct %v, want %q, %v", tt.text, got, p.Direct, tt.args, tt.direct)
		}
		same := len(p.Notices) == len(tt.notices)
		for i := 0; same && i < len(p.Notices); i++ {
			option, word, _ := strings.Cut(tt.notices[i], ": ")
			same = strings.HasPrefix(p.Notices[i], option) && strings.Contains(p.Notices[i], word)
		}
		if !same {
			t.Errorf("%q: notices %q, want %q", tt.text, p.Notices, tt.notices)
		}
	}
	if _, err := ParseArgs("-a 'x"); err == nil {
		t.Error("an open quote is no error")
	}
}

// Every option that rsync's own help names is known here, with or without a value as there.
func TestOptionsOfThisRsync(t *testing.T) {
	help, err := exec.Command("rsync", "--help").Output()
	if err != nil {
		t.Skip("no rsync here")
	}
	for _, found := range regexp.MustCompile(`(?m)^--([a-z0-9D-]+)(=\S+)?(?:, --?(\S+))?  `).FindAllStringSubmatch(string(help), -1) {
		if strings.HasPrefix(found[1], "no-") {
			continue
		}
		for _, name := range []string{found[1], found[3]} {
			o := byName[name]
			switch {
			case name == "":
			case o == nil: // a newer rsync; it is dropped with a notice
				t.Logf("%s is not in the table", name)
			case o.value != (found[2] != ""):
				t.Errorf("%s: takes a value: %v", name, o.value)
			}
		}
	}
}

// What is kept must be what rsync takes, or nothing would be replicated any more.
func TestKeptOptionsRun(t *testing.T) {
	version, err := exec.Command("rsync", "--version").Output()
	if err != nil {
		t.Skip("no rsync here")
	}
	for _, text := range []string{
		"-auzv --delete --no-z --no-compress --no-W --no-whole-file --no-c --no-checksum --no-y --no-fuzzy --no-S --no-sparse --no-bwlimit --no-open-noatime",
		"-zWySc -B 2048 --preallocate --fsync --bwlimit=10000 --max-alloc=1g --open-noatime --skip-compress=gz --compress-level=1 --checksum-seed=1",
		"--old-compress --cc=md5 --zl 2", "--new-compress", "-z --zc=zlib", "-H --no-H --no-hard-links --no-A --no-acls --no-X --no-xattrs --no-U --no-atimes",
		"-A", "-X --fake-super", "-U",
	} {
		p, err := ParseArgs(text)
		if err != nil {
			t.Fatal(err)
		}
		args := slices.Concat(p.Args, []string{"-rlptgo", "--numeric-ids", "--no-D", "-s", t.TempDir() + "/", t.TempDir() + "/"})
		if out, err := exec.Command("rsync", args...).CombinedOutput(); err != nil {
			if strings.Contains(string(out), "not support") || strings.Contains(string(version), "no ACLs") {
				t.Logf("%q: %s", text, out)
				continue
			}
			t.Errorf("%q: %v\n%s", args, err, out)
		}
	}
}

func FuzzParseArgs(f *testing.F) {
	for _, s := range []string{"-auzv --delete", "-e 'ssh -p 2' -B1 --bwlimit 3", "--no-o -AXH -- x", "-\xff --=", `"`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		p, err := ParseArgs(text)
		if err != nil {
			return
		}
		for _, n := range p.Notices {
			if strings.ContainsAny(n, "\n\r\x00") {
				t.Errorf("%q: notice %q", text, n)
			}
		}
		for _, a := range p.Args {
			name := strings.TrimLeft(a, "-")
			name, _, _ = strings.Cut(name, "=")
			o := byName[strings.TrimPrefix(name, "no-")]
			if !strings.HasPrefix(a, "-") || o == nil || !o.keep && !o.direct {
				t.Errorf("%q: %q is kept", text, a)
			}
		}
		// What was kept is kept again, without a word.
		var quoted []string
		for _, a := range p.Args {
			quoted = append(quoted, "'"+strings.ReplaceAll(a, "'", `'\''`)+"'")
		}
		again, err := ParseArgs(strings.Join(quoted, " "))
		if err != nil || !slices.Equal(again.Args, p.Args) || again.Direct != p.Direct || len(again.Notices) > 0 {
			t.Errorf("%q: %+v, then %+v, %v", text, p, again, err)
		}
	})
}
