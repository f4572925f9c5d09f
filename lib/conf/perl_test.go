package conf

import (
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"
)

// TestAgainstPerl puts literals to Perl itself: what is accepted here, Perl
// reads the same. Only what is accepted is shown to Perl, and the alphabet has
// nothing that could make it run code.
func TestAgainstPerl(t *testing.T) {
	perl, err := exec.LookPath("perl")
	if err != nil {
		t.Skip("no perl to compare with")
	}
	version, _ := exec.Command(perl, "-e", "print $^V").Output()
	t.Logf("perl %s", version)

	literals := []string{
		`""`, `''`, `"\\\"\$\@\n\t\r\f\b\a\e"`, `'\\\'\n\"$v@v'`, `"\x41\x4g\x{41}\x{ 41 }\x{20ac}"`, `"\0\1\12\101\1011\400\777"`,
		`"\8\9\g\h\i\j\k\m\p\q\s\v\w\y\z\d\A\B\C\D\%\#\;\'\ \é"`, `"$v${v}${ v }|$v: $v'"`, `"${v}[0]${v}{x}${v}->[0]$v->x $v-"`,
		`"é\xc3\xa9€"`, `q{a{b}\}\{\n\\}`, `qq{a{b}\}\{\t$v\\}`, `q(a\(b)`, `qq<$v<x>\>>`, `q|a\|b\\|`, `qq/a\/$v/`, `q!\!a!`, `qq~\x{41}~`, `q[[]]`,
		`1.50`, `.5`, `1.`, `0`, `0.00001`, `123456789012345678`, `1234567890.123456789`, `-7`, `-7.50`, `0.1`, `100000000000000000.5`, `true`, `7#x`,
	}
	fixed := len(literals)
	alphabet := []string{"a", "_", "::", "$v::", "n", "x", "x4", "1", "07", "é", "€", " ", "#", ";", ":", "'", `"`, `\`, `\\`, "$", "$v", "${v}", "-", "->", "(", ")", "{", "}", "q", ".", "!", "\t"}
	open := []string{`"`, `'`, "q(", "qq(", "q{", "qq{", "qq|", ""}
	end := []string{`"`, `'`, ")", ")", "}", "}", "|", ""}
	random := rand.New(rand.NewPCG(1, 2))
	for range 20000 {
		i := random.IntN(len(open))
		s := open[i]
		for range random.IntN(9) {
			s += alphabet[random.IntN(len(alphabet))]
		}
		literals = append(literals, s+end[i])
	}

	lookup := func(name string) (string, error) {
		if name != "v" {
			return "", fmt.Errorf("%s undefined", name)
		}
		return "[v]", nil
	}
	var input strings.Builder
	var sources, values []string
	for i, s := range literals {
		l, rest, err := parseLiteral(s, lookup)
		if err != nil {
			if i < fixed {
				t.Errorf("%s: %v", s, err)
			}
			continue
		}
		s = strings.TrimSuffix(s, rest)
		sources, values = append(sources, s), append(values, l.value)
		fmt.Fprintf(&input, "%x\n", s)
	}
	if len(sources) < 2000 {
		t.Fatalf("only %d literals were accepted", len(sources))
	}
	cmd := exec.Command(perl, "-e", `
		while (<STDIN>) {
			chomp; my $code = pack "H*", $_; our $v = "[v]"; our $r = undef;
			my $ok = eval "\$r = $code\n;1";
			utf8::encode($r) if $ok && $r =~ /[^\x00-\xff]/;
			print $ok ? "=".unpack("H*", $r) : "error $@" =~ s/\n/ /gr, "\n";
		}`)
	cmd.Stdin = strings.NewReader(input.String())
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	answers := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
	if len(answers) != len(sources) {
		t.Fatalf("%d answers to %d literals", len(answers), len(sources))
	}
	for i, a := range answers {
		if a != "="+hex.EncodeToString([]byte(values[i])) {
			b, _ := hex.DecodeString(strings.TrimPrefix(a, "="))
			t.Errorf("%s: %q here, %q (%s) in Perl", sources[i], values[i], b, a)
		}
	}
	t.Logf("%d literals read alike", len(sources))
}
