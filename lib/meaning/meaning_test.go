package meaning

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"testing/iotest"
)

// farmFile is an L4 farm as Skudonet 7.1 saves it.
const farmFile = `{
        "farms": [
                {
                        "name": "web",
                        "family": "ipv4",
                        "virtual-addr": "192.168.77.250",
                        "virtual-ports": "80",
                        "source-addr": "",
                        "mode": "snat",
                        "protocol": "tcp",
                        "scheduler": "weight",
                        "priority": "1",
                        "state": "up",
                        "limits-ttl": "120",
                        "backends": [
                                {
                                        "name": "bck0",
                                        "ip-addr": "192.168.77.21",
                                        "port": "80",
                                        "weight": "5",
                                        "priority": "1",
                                        "mark": "0x200",
                                        "est-connlimit": "0",
                                        "state": "up"
                                },
                                {
                                        "name": "bck1",
                                        "ip-addr": "192.168.77.22",
                                        "port": "80",
                                        "weight": "5",
                                        "priority": "2",
                                        "mark": "0x201",
                                        "est-connlimit": "0",
                                        "state": "available"
                                }
                        ]
                }
        ]
}
`

// edited is text with the n-th old (from 0) replaced.
func edited(t *testing.T, text, old, now string, n int) string {
	t.Helper()
	parts := strings.SplitN(text, old, n+2)
	if len(parts) < n+2 {
		t.Fatalf("no %q", old)
	}
	return strings.Join(parts[:n+1], old) + now + parts[n+1]
}

// means is the size and hash of the meaning of a file at the top of the configuration.
func means(name, content string) string {
	var s Sum
	s.Begin(Of("config", name))
	for piece := range bytes.SplitAfterSeq([]byte(content), []byte("e")) {
		s.Write(piece)
	}
	size, sum := s.End()
	return fmt.Sprintf("%d %x", size, sum)
}

// plainly is that of content as it is.
func plainly(content string) string { return means("global.conf", content) }

// skudonet.md: "farmguardian flips backend `state` in it by itself".
func TestFarmguardianFlipsBackendState(t *testing.T) {
	before := means("web_l4xnat.cfg", farmFile)
	for _, state := range []string{"down", "available", "config_error"} {
		if means("web_l4xnat.cfg", edited(t, farmFile, `"state": "up"`, `"state": "`+state+`"`, 1)) != before {
			t.Errorf("backend %s: another meaning", state)
		}
	}
	// bck0 goes down, the other one is used instead.
	flipped := edited(t, farmFile, `"state": "up"`, `"state": "down"`, 1)
	flipped = edited(t, flipped, `"available"`, `"up"`, 0)
	flipped = edited(t, flipped, `"priority": "1"`, `"priority": "2"`, 0)
	if means("web_l4xnat.cfg", flipped) != before {
		t.Error("another meaning when a backend of lower precedence steps in")
	}
	// nftlb's network was not there yet.
	if means("web_l4xnat.cfg", edited(t, farmFile, `"state": "up"`, `"state": "config_error"`, 0)) != before {
		t.Error("another meaning of a farm that could not be carried out yet")
	}
}

// skudonet.md: "start rewrites it for farms with farmguardian, stop when a backend was down".
func TestStartAndStopRewriteFarm(t *testing.T) {
	before := means("web_l4xnat.cfg", farmFile)
	var v any
	if err := json.Unmarshal([]byte(farmFile), &v); err != nil {
		t.Fatal(err)
	}
	otherOrder, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{farmFile, string(otherOrder), strings.ReplaceAll(farmFile, "        ", "\t"), strings.TrimSpace(farmFile)} {
		if means("web_l4xnat.cfg", text) != before {
			t.Errorf("rewritten as %q: another meaning", text)
		}
	}
}

// skudonet.md: "JSON of an L4 farm | the admin".
func TestAdminChangesFarm(t *testing.T) {
	for _, change := range []struct {
		what, old, now string
		n              int
	}{
		{"backend to maintenance", `"state": "up"`, `"state": "off"`, 1},
		{"the other to maintenance", `"available"`, `"off"`, 0},
		{"farm stopped", `"state": "up"`, `"state": "down"`, 0},
		{"address", "192.168.77.250", "192.168.77.251", 0},
		{"weight", `"weight": "5"`, `"weight": "6"`, 0},
		{"precedence of a backend", `"priority": "2"`, `"priority": "1"`, 0},
		{"state that nobody knows", `"state": "up"`, `"state": "UP"`, 1},
		{"state that is a list", `"state": "up"`, `"state": ["up"]`, 1},
		{"state taken out", `"est-connlimit": "0",` + "\n" + strings.Repeat(" ", 40) + `"state": "up"`, `"est-connlimit": "0"`, 0},
		{"farm's priority taken out", `"priority": "1",` + "\n", "", 0},
		{"number for a string", `"120"`, `120`, 0},
		{"name that looks like a state", `"name": "web"`, `"name": "down"`, 0},
		{"member beside", `"farms"`, `"state": "up", "farms"`, 0},
		{"backend's state where none is", `"limits-ttl": "120"`, `"limits-ttl": {"state": "down"}`, 0},
	} {
		now := edited(t, farmFile, change.old, change.now, change.n)
		if means("web_l4xnat.cfg", now) == means("web_l4xnat.cfg", farmFile) {
			t.Errorf("%s: the same meaning", change.what)
		}
	}
	// Places in which the same words are the admin's.
	for _, pair := range [][2]string{
		{`{"farms":[{"backends":[{"name":"down"}]}]}`, `{"farms":[{"backends":[{"name":"up"}]}]}`},
		{`{"farms":[{"policies":[{"state":"down"}]}]}`, `{"farms":[{"policies":[{"state":"up"}]}]}`},
		{`{"farms":{"":{"backends":[{"state":"down"}]}}}`, `{"farms":{"":{"backends":[{"state":"up"}]}}}`},
		{`{"backends":[{"state":"down"}]}`, `{"backends":[{"state":"up"}]}`},
		{`[1,2]`, `[2,1]`}, {`[1.0]`, `[1]`}, {`"\u0061"`, `"a"`}, {`["a b"]`, `["ab"]`}, {`[]`, `{}`},
	} {
		if means("web_l4xnat.cfg", pair[0]) == means("web_l4xnat.cfg", pair[1]) {
			t.Errorf("%s means the same as %s", pair[0], pair[1])
		}
	}
}

// skudonet.md: "`X_status.cfg` | an HTTP farm | the admin's web page"; farmguardian writes there, too.
func TestFarmguardianWritesStatus(t *testing.T) {
	const before = "-b 0 0 1 maintenance\n-b 0 1 0 maintenance\n"
	for _, text := range []string{
		before + "-b 0 0 0 fgDOWN\n",
		"-b 0 0 0 fgDOWN\n-b 0 0 1 maintenance\n-b 0 2 11 fgDOWN\n-b 0 1 0 maintenance\n",
	} {
		if means("web_status.cfg", text) != means("web_status.cfg", before) {
			t.Errorf("%q: another meaning", text)
		}
	}
	for _, text := range []string{
		"-b 0 0 1 maintenance\n", "", "-b 0 1 0 maintenance\n-b 0 0 1 maintenance\n", before + "-b 0 0 0 maintenance\n",
		before + "-b 0 0 x fgDOWN\n", before + "# -b 0 0 0 fgDOWN\n", before + "-b 0 0 0 fgDOWN maintenance\n", before + "-b 0 0 fgDOWN\n",
	} {
		if means("web_status.cfg", text) == means("web_status.cfg", before) {
			t.Errorf("%q: the same meaning", text)
		}
	}
}

// skudonet.md: `global.conf` is "rewritten by every start and stop, even when
// nothing changes"; what else is there counts letter by letter.
func TestOtherFilesCountAsTheyAre(t *testing.T) {
	for _, file := range [][2]string{
		{"config", "global.conf"}, {"config", "if_eth0:1_conf"}, {"config", "web_proxy.cfg"}, {"config", "web_sessions.cfg"},
		{"config", "web_l4xnat.cfg.bak"}, {"config", "certificates/web_l4xnat.cfg"}, {"config", "x/web_status.cfg"},
		{"rt_tables", "web_l4xnat.cfg"}, {"rt_tables", "rt_tables"}, {"", "web_l4xnat.cfg"},
	} {
		var s Sum
		s.Begin(Of(file[0], file[1]))
		s.Write([]byte(farmFile))
		if size, sum := s.End(); size != int64(len(farmFile)) || sum != sha256.Sum256([]byte(farmFile)) {
			t.Errorf("%s: not as it is", file)
		}
	}
}

func TestDamagedFarmIsTakenAsItIs(t *testing.T) {
	for _, text := range []string{
		"", "{", farmFile + "x", farmFile[:len(farmFile)/2], "\xef\xbb\xbf" + farmFile, "{\"a\": \"\x01\"}", `{"a": 1,}`,
		`{"state": "up", "state": "off"}`, `{"farms": [{"state": "up", "state": "up"}]}`, `{"st\u0061te": "up", "state": "off"}`,
		strings.Repeat("[", 20) + strings.Repeat("]", 20), strings.Repeat("[", 20000),
		`{"farms": [ ` + strings.Repeat(" ", Limit) + `]}`,
	} {
		if means("web_l4xnat.cfg", text) != plainly(text) {
			t.Errorf("%.50q (%d bytes) is changed", text, len(text))
		}
	}
	full := strings.Replace(farmFile, "\n", "\n"+strings.Repeat(" ", Limit-len(farmFile)), 1)
	if len(full) != Limit || means("web_l4xnat.cfg", full) != means("web_l4xnat.cfg", farmFile) {
		t.Error("a file of the largest size is taken as it is")
	}
	if full += " "; means("web_l4xnat.cfg", full) != plainly(full) {
		t.Error("a file that is too large is not taken as it is")
	}
}

func TestRead(t *testing.T) {
	sum, size, err := Read("config", "web_l4xnat.cfg", strings.NewReader(farmFile))
	if got := fmt.Sprintf("%d %x", size, sum); got != means("web_l4xnat.cfg", farmFile) || err != nil {
		t.Errorf("%s, %v", got, err)
	}
	broken := errors.New("broken disk")
	if _, _, err := Read("config", "web_l4xnat.cfg", io.MultiReader(strings.NewReader(farmFile), iotest.ErrReader(broken))); err != broken {
		t.Errorf("error %v, want %v", err, broken)
	}
}

// A Sum is used for one file after the other.
func TestSumIsUsedAgain(t *testing.T) {
	var s Sum
	large := bytes.Repeat([]byte("[1]\n"), Limit)
	for range 2 {
		for name, content := range map[string][]byte{"a_l4xnat.cfg": []byte(farmFile), "b_l4xnat.cfg": large, "c": []byte("c"), "d_status.cfg": []byte("-b 0 0 0 fgDOWN\n")} {
			s.Begin(Of("config", name))
			for rest := content; len(rest) > 0; rest = rest[min(len(rest), 1000):] {
				s.Write(rest[:min(len(rest), 1000)])
			}
			if s.Len() != int64(len(content)) {
				t.Errorf("%s: %d bytes read, want %d", name, s.Len(), len(content))
			}
			want := Of("config", name).Normal(content)
			if size, sum := s.End(); size != int64(len(want)) || sum != sha256.Sum256(want) {
				t.Errorf("%s: not the hash of %.40q", name, want)
			}
		}
	}
}

// reading is a farm's JSON as another reader has it, with what comes and goes made alike; false if it is none.
func reading(content []byte) (v any, ok bool) {
	d := json.NewDecoder(bytes.NewReader(content))
	d.UseNumber()
	if d.Decode(&v) != nil || !json.Valid(content) {
		return nil, false
	}
	object, _ := v.(map[string]any)
	farms, _ := object["farms"].([]any)
	for _, f := range farms {
		farm, _ := f.(map[string]any)
		if farm["state"] == "config_error" {
			farm["state"] = "up"
		}
		if p, is := farm["priority"].(string); is && regexp.MustCompile(`^[0-9]+$`).MatchString(p) {
			farm["priority"] = "1"
		}
		backends, _ := farm["backends"].([]any)
		for _, b := range backends {
			backend, _ := b.(map[string]any)
			if s := backend["state"]; s == "down" || s == "available" || s == "config_error" {
				backend["state"] = "up"
			}
		}
	}
	return v, true
}

// FuzzNormal: normal content stays as it is, flips of states do not count, and
// what has the same meaning differs in nothing else.
func FuzzNormal(f *testing.F) {
	flipped := strings.Replace(farmFile, "available", "down", 1)
	f.Add([]byte(farmFile), []byte(flipped))
	f.Add([]byte(farmFile), []byte(strings.Replace(farmFile, `"state": "up"`, `"state": "off"`, 2)))
	f.Add([]byte(`{"farms":[{"state":"up","priority":"12"}]}`), []byte(`{"farms":[{"priority":"1","state":"config_error"}]}`))
	f.Add([]byte(`{"a":1,"a":2}`), []byte(`{"a":2}`))
	f.Add([]byte(`{"farms":[{"backends":[{"st\u0061te":"down"}]}]}`), []byte(`[ "\"", "\\" , -1e5 ]`))
	f.Add([]byte("-b 0 0 0 fgDOWN\n"), []byte("-b 0 0 0 maintenance\n"))
	f.Add([]byte("{\"\xff\":1,\"\xd3\":2}"), []byte("{\"\xd3\":2,\"\xff\":1}")) // one key for a reader that replaces what is no UTF-8
	f.Fuzz(func(t *testing.T, a, b []byte) {
		for _, form := range []Form{plain, l4Farm, backendStatus} {
			for _, content := range [][]byte{a, b} {
				kept := bytes.Clone(content)
				normal := form.Normal(content)
				if !bytes.Equal(content, kept) {
					t.Fatalf("the content itself was changed to %q", content)
				}
				if again := form.Normal(normal); !bytes.Equal(again, normal) {
					t.Fatalf("%q becomes %q, then %q", content, normal, again)
				}
			}
		}
		same := func(a, b []byte) bool { return bytes.Equal(l4Farm.Normal(a), l4Farm.Normal(b)) }
		// A backend's state is flipped wherever it is written as in a farm's file.
		if _, ok := normalFarm(a); ok {
			template := []byte(`{"farms":[{"x":`)
			template = append(append(template, a...), `,"backends":[{"state":"up"},{"state":"down"}]}]}`...)
			flipped := bytes.Replace(template, []byte(`[{"state":"up"},{"state":"down"}]}]}`), []byte(`[{"state":"available"},{"state":"up"}]}]}`), 1)
			if _, ok := normalFarm(template); ok && bytes.HasSuffix(flipped, []byte(`"up"}]}]}`)) && !same(template, flipped) {
				t.Fatalf("%q: a flip has another meaning", template)
			}
		}
		x, isX := reading(a)
		y, isY := reading(b)
		if same(a, b) && !bytes.Equal(a, b) && (!isX || !isY || !reflect.DeepEqual(x, y)) {
			t.Fatalf("%q and %q have the same meaning", a, b)
		}
		// What was made normal still says the same.
		if isX {
			if z, ok := reading(l4Farm.Normal(a)); !ok || !reflect.DeepEqual(x, z) {
				t.Fatalf("%q became %q", a, l4Farm.Normal(a))
			}
		}
	})
}
