package conf

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
)

// render writes a Config as a file, every key set.
func render(c *Config) string {
	var b strings.Builder
	for _, k := range table(c) {
		if k.Name == "ucarp" {
			continue
		}
		fmt.Fprintf(&b, "$%s=\"%s\";\n", k.Name, escape(fieldOf(c, k.Name)))
	}
	return b.String()
}

// fieldOf finds the field behind a key: the one that differs when the key is
// set to a value that nothing else has.
func fieldOf(c *Config, name string) string {
	var probe Config
	for _, k := range table(&probe) {
		if k.Name != name {
			continue
		}
		for _, v := range []string{"/x", "10.9.8.7", "7", "77", "true", "udp", "ignore", "vrrp"} {
			if k.set(v) == nil {
				break
			}
		}
	}
	got, fields := reflect.ValueOf(probe), reflect.ValueOf(*c)
	for i := range got.NumField() {
		if got.Field(i).IsZero() {
			continue
		}
		switch v := fields.Field(i).Interface().(type) {
		case Secret:
			return string(v)
		case time.Duration:
			return fmt.Sprintf("%.2f", v.Seconds())
		default:
			return fmt.Sprint(v)
		}
	}
	panic("no field for " + name)
}

func escape(s string) string {
	var b strings.Builder
	for i := range len(s) {
		switch c := s[i]; {
		case strings.IndexByte("\\\"$@", c) >= 0:
			b.WriteString("\\" + string(c))
		case c < ' ':
			fmt.Fprintf(&b, "\\x%02x", c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

func FuzzParse(f *testing.F) {
	data, err := os.ReadFile(example)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	for _, s := range []string{
		"", "1;", "\ufeff" + minimal, strings.ReplaceAll(minimal, "\n", "\r\n"), strings.ReplaceAll(minimal, ";\n", "; "),
		minimal + `$password_next='a$b@c\n\'\\"d'; $exclude=qq{a{b}$interface};`,
		minimal + `$exclude="\\\"\$\@\n\t\x41\x{20ac}\101é${interface}"; my $priority = 7`,
		minimal + `$cluster_ip=$local_ip; $advert_interval=.05; $garp_refresh="0"; $dead_ratio=1;`,
		minimal + "$configdir=\"/usr/local/zevenet/config\";\n$priority=1\n$x='\xff';$x=\"$y@z",
		"$a='0123456789abcdef';\n$a=\"$a$a$a$a\";\n$a=\"$a$a$a$a\";\n$a=\"$a$a$a$a\";\n$a=\"$a$a$a$a\";\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		cfg, notices, err := Parse(name, data)
		lines := []int{}
		for _, n := range notices {
			oneLine(t, n.String())
			lines = append(lines, n.Line)
		}
		if !slices.IsSortedFunc(lines, byLine) {
			t.Errorf("notices out of order: %v", lines)
		}
		if err != nil {
			errs := Errors{}
			if !errors.As(err, &errs) || len(errs) == 0 || cfg != (Config{}) {
				t.Fatalf("%#v beside %+v", err, cfg)
			}
			for _, e := range errs {
				oneLine(t, e.Error())
			}
			if !slices.IsSortedFunc(errs, func(a, b Error) int { return byLine(a.Line, b.Line) }) {
				t.Errorf("errors out of order:\n%v", err)
			}
			return
		}
		again, _, err := Parse(name, []byte(render(&cfg)))
		if err != nil {
			t.Fatalf("%v in\n%s", err, render(&cfg))
		}
		if d := diff(again, cfg); d != "" {
			t.Errorf("%sfrom\n%s", d, render(&cfg))
		}
	})
}

func oneLine(t *testing.T, s string) {
	if !strings.HasPrefix(s, "skudonet-cluster.conf:") || strings.ContainsFunc(s, unicode.IsControl) {
		t.Errorf("message %q", s)
	}
}

// FuzzPasswordHidden puts a password into whatever surroundings, well formed or
// not, and looks for it in every message.
func FuzzPasswordHidden(f *testing.F) {
	const hush = "Zq7Xv9"
	for _, before := range []string{"", minimal, "$a=\"x", "$cluster_id='9999';"} {
		for _, around := range [][2]string{
			{`"`, `";`}, {`'`, `';`}, {`"`, ``}, {`q(`, `);`}, {``, `;`}, {`"$`, `";`}, {`"${`, `}";`}, {`"a" . "`, `";`}, {`"\x{`, `}";`},
			{`"x`, `$";`}, {`"x`, `"; $cluster_id="$password";`}, {`'`, `'; $local_ip="a${password}b"; $password="x";`}, {`"@`, `"; $x="$password"; $up_script="$x";`},
		} {
			f.Add(before, around[0], around[1], "")
			f.Add(before, around[0], around[1], "$password_next=\"$password\";\n$priority=\"$password\";\n$interface=\"$password_next\";")
		}
	}
	f.Fuzz(func(t *testing.T, before, prefix, suffix, after string) {
		// A semicolon in front could make the marker the value of another key.
		if strings.ContainsAny(prefix, ";\n") || strings.Contains(before+prefix+suffix+after, hush) {
			t.Skip()
		}
		cfg, notices, err := Parse(name, []byte(before+"\n$password ="+prefix+hush+suffix+"\n"+after))
		// Not the whole Config: a key may name $password, and then holds it.
		text := fmt.Sprintf("%v\n%v\n%+v", err, notices, cfg.Password)
		if strings.Contains(text, hush) {
			t.Errorf("shown in:\n%s", text)
		}
	})
}
