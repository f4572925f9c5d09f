package manifest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"
)

func file(path, content string) Entry {
	e := Entry{Path: path, Kind: File, Mode: 0o644, Size: int64(len(content))}
	copy(e.Hash[:], content)
	return e
}

func dir(path string) Entry { return Entry{Path: path, Kind: Dir, Mode: 0o755} }

func of(entries ...Entry) *Manifest {
	m := New()
	for _, e := range entries {
		m.Set(e)
	}
	return m
}

func TestCheckPath(t *testing.T) {
	long := strings.Repeat("x", 255)
	for _, path := range []string{".", "a", "a/b", "-rf", "a\nb", "\xff\xfe", "...", ".a", "a..", long, long + "/" + long, "a b/'\""} {
		if err := CheckPath(path); err != nil {
			t.Errorf("%q: %v", path, err)
		}
	}
	for _, path := range []string{"", "/", "/a", "a/", "a//b", "./a", "a/.", "a/./b", "..", "../a", "a/..", "a/../b", "a\x00b", long + "x", strings.Repeat("x/", 2047) + "xx"} {
		if CheckPath(path) == nil {
			t.Errorf("%q is accepted", path)
		}
	}
}

func TestSetRemoveGet(t *testing.T) {
	m := New()
	if !m.Set(dir(".")) || !m.Set(file("a", "1")) || !m.Set(Entry{Path: "l", Kind: Link, Target: "a"}) {
		t.Error("Set says that a new entry changes nothing")
	}
	if m.Set(file("a", "1")) || !m.Set(file("a", "2")) {
		t.Error("Set is wrong about whether it changed something")
	}
	if m.Len() != 3 || m.Files() != 2 {
		t.Errorf("Len %d, Files %d; want 3, 2", m.Len(), m.Files())
	}
	if e, ok := m.Get("a"); !ok || e != file("a", "2") {
		t.Errorf("Get: %+v, %v", e, ok)
	}
	if _, ok := m.Get("b"); ok {
		t.Error("Get finds what is not there")
	}
	if !m.Set(dir("a")) || m.Files() != 1 {
		t.Error("a file that became a directory is still counted as a file")
	}
	if !m.Remove("a") || m.Remove("a") || m.Len() != 2 {
		t.Error("Remove is wrong")
	}
	if got := m.Below("."); !slices.Equal(got, []string{"l"}) {
		t.Errorf("Below . is %q", got)
	}
	// Fields of other kinds do not count.
	link := Entry{Path: "l", Kind: Link, Target: "a", Mode: 0o777, Size: 7, Hash: Hash{1}}
	if m.Set(link) {
		t.Error("a symlink has a mode, a size or a hash")
	}
}

func TestBelow(t *testing.T) {
	m := of(dir("."), dir("a"), file("a.b", ""), dir("a/b"), file("a/b/c", ""), file("a/d", ""), file("ab", ""), file("-", ""), file("\xff", ""))
	for dir, want := range map[string][]string{
		"a":   {"a/b", "a/b/c", "a/d"},
		"a/b": {"a/b/c"},
		"a/d": nil,
		"ab":  nil,
		".":   {"-", "a", "a.b", "a/b", "a/b/c", "a/d", "ab", "\xff"},
		"no":  nil,
	} {
		if got := m.Below(dir); !slices.Equal(got, want) {
			t.Errorf("Below(%q) is %q, want %q", dir, got, want)
		}
	}
	// The answer is the caller's own.
	m.Below("a")[0] = "spoilt"
	if got := m.Below("a")[0]; got != "a/b" {
		t.Errorf("Below gives out its own memory: %q", got)
	}
}

// TestAgainstModel makes random changes to a manifest and to a plain map and
// compares what they say, and that the digest depends on nothing but the content.
func TestAgainstModel(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var names []string
	for _, a := range []string{"a", "a.b", "ab", "b", "-", "\xff"} {
		names = append(names, a, a+"/x", a+"/x/y", a+"/y")
	}
	m, model := New(), map[string]Entry{}
	for range 5000 {
		path := names[random.IntN(len(names))]
		if random.IntN(3) == 0 {
			_, had := model[path]
			if m.Remove(path) != had {
				t.Fatalf("Remove(%q), though had is %v", path, had)
			}
			delete(model, path)
		} else {
			e := file(path, fmt.Sprint(random.IntN(3)))
			if random.IntN(4) == 0 {
				e = dir(path)
			}
			old, had := model[path]
			if m.Set(e) == (had && old == e) {
				t.Fatalf("Set(%+v) over %+v, %v", e, old, had)
			}
			model[path] = e
		}
		if random.IntN(4) > 0 {
			continue
		}
		paths := slices.Sorted(maps.Keys(model))
		var got []string
		for e := range m.All() {
			got = append(got, e.Path)
			if e != model[e.Path] {
				t.Fatalf("%+v, want %+v", e, model[e.Path])
			}
		}
		if !slices.Equal(got, paths) || m.Len() != len(paths) {
			t.Fatalf("paths %q, want %q", got, paths)
		}
		except := []string{names[random.IntN(len(names))], names[random.IntN(len(names))], "nothing", "a/x"}[:random.IntN(5)]
		fresh, rest, files := New(), New(), 0
		random.Shuffle(len(paths), func(i, j int) { paths[i], paths[j] = paths[j], paths[i] })
		for _, path := range paths {
			fresh.Set(model[path])
			if model[path].Kind != Dir {
				files++
			}
			if !slices.ContainsFunc(except, func(x string) bool { return path == x || strings.HasPrefix(path, x+"/") }) {
				rest.Set(model[path])
			}
		}
		if m.Digest() != fresh.Digest() || m.Files() != files {
			t.Fatal("the digest or the number of files depends on the way to the same entries")
		}
		if m.DigestExcept(except) != rest.Digest() {
			t.Fatalf("DigestExcept(%q) is not that of the rest", except)
		}
		if len(Diff(m, fresh)) > 0 {
			t.Fatalf("Diff: %v", Diff(m, fresh))
		}
	}
}

func TestDigestSeesEveryField(t *testing.T) {
	seen := map[Digest]string{New().Digest(): "empty"}
	add := func(what string, m *Manifest) {
		if other, is := seen[m.Digest()]; is {
			t.Errorf("%s has the digest of %s", what, other)
		}
		seen[m.Digest()] = what
	}
	add("plain", of(file("a", "x")))
	add("path", of(file("b", "x")))
	add("content", of(file("a", "y")))
	add("directory", of(dir("a")))
	for what, change := range map[string]func(*Entry){
		"mode":  func(e *Entry) { e.Mode = 0o4644 },
		"user":  func(e *Entry) { e.UID = 1 },
		"group": func(e *Entry) { e.GID = 1 },
		"size":  func(e *Entry) { e.Size++ },
		"hash":  func(e *Entry) { e.Hash[31]++ },
	} {
		e := file("a", "x")
		change(&e)
		add(what, of(e))
	}
	add("link", of(Entry{Path: "a", Kind: Link, Target: "x"}))
	add("link elsewhere", of(Entry{Path: "a", Kind: Link, Target: "y"}))
	add("link owner", of(Entry{Path: "a", Kind: Link, Target: "x", UID: 1}))
	add("link with the border moved", of(Entry{Path: "ax", Kind: Link, Target: "x"}))
	add("two", of(file("a", "x"), file("b", "x")))
	add("two, swapped content", of(file("a", "x"), file("b", "y")))
	add("two, swapped the other way", of(file("a", "y"), file("b", "x")))
}

// TestDigestStays fixes the digest: it is compared between releases.
func TestDigestStays(t *testing.T) {
	m := of(dir("."), file("a", "x"), Entry{Path: "l", Kind: Link, Target: "a", UID: 1, GID: 2})
	const want = "0769d71865de72eda2f959454910915c4eef4f44d7be691e701a50ad580bc84d"
	if got := m.Digest().String(); got != want {
		t.Errorf("digest %s, want %s: this release would never agree with another one", got, want)
	}
}

func TestDigestText(t *testing.T) {
	d := of(file("a", "x")).Digest()
	b, err := json.Marshal(d)
	if err != nil || string(b) != `"`+d.String()+`"` {
		t.Fatalf("%s, %v", b, err)
	}
	var back Digest
	if err := json.Unmarshal(b, &back); err != nil || back != d {
		t.Errorf("%v, %v", back, err)
	}
	for _, bad := range []string{`""`, `"12"`, `"` + strings.Repeat("g", 64) + `"`, `"` + strings.Repeat("0", 66) + `"`} {
		if json.Unmarshal([]byte(bad), &back) == nil {
			t.Errorf("%s is accepted", bad)
		}
	}
}

func TestDiff(t *testing.T) {
	mode, owner, both := file("mode", ""), file("owner", ""), file("both", "")
	mode.Mode, owner.GID, both.Mode, both.Size = 0o600, 9, 0o600, 4
	from := of(dir("."), file("same", ""), file("gone", ""), file("mode", ""), file("owner", ""), file("both", ""),
		file("kind", ""), Entry{Path: "link", Kind: Link, Target: "a"}, file("content", "1"))
	to := of(dir("."), file("same", ""), file("new", ""), mode, owner, both,
		dir("kind"), file("kind/in", ""), Entry{Path: "link", Kind: Link, Target: "b"}, file("content", "2"))
	var got []string
	for _, c := range Diff(from, to) {
		got = append(got, c.Path+": "+c.What())
		if e := c.From; e != nil && (e.Path != c.Path || *e != must(from.Get(c.Path))) {
			t.Errorf("%v: From is %+v", c, e)
		}
		if e := c.To; e != nil && (e.Path != c.Path || *e != must(to.Get(c.Path))) {
			t.Errorf("%v: To is %+v", c, e)
		}
	}
	want := []string{"both: content, mode", "content: content", "gone: removed", "kind: kind", "kind/in: new",
		"link: target", "mode: mode", "new: new", "owner: owner"}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if d := Diff(New(), from); len(d) != from.Len() {
		t.Errorf("from nothing: %v", d)
	}
}

func must(e Entry, ok bool) Entry {
	if !ok {
		panic("not there")
	}
	return e
}

// many is a tree of n files in n/20 directories.
func many(n int) *Manifest {
	m := of(dir("."))
	for i := range n {
		if i%20 == 0 {
			m.Set(dir(fmt.Sprintf("directory-%d", i/20)))
		}
		m.Set(file(fmt.Sprintf("directory-%d/some-farm-%d_proxy.cfg", i/20, i), fmt.Sprint(i)))
	}
	return m
}

func TestBinary(t *testing.T) {
	m := of(dir("."), file("-x\n\xff", "1"), dir("d"), Entry{Path: "d/l", Kind: Link, Target: "../..", UID: 1 << 31},
		Entry{Path: "d/s", Kind: File, Mode: 0o7777, GID: 1<<32 - 1, Size: 1<<63 - 1})
	for _, m := range []*Manifest{New(), m, many(1000)} {
		b, err := m.AppendBinary([]byte("before"))
		if err != nil {
			t.Fatal(err)
		}
		b, found := bytes.CutPrefix(b, []byte("before"))
		if !found {
			t.Fatal("AppendBinary does not append")
		}
		back, err := Parse(b)
		if err != nil {
			t.Fatal(err)
		}
		if back.Digest() != m.Digest() || back.Len() != m.Len() || back.Files() != m.Files() || len(Diff(m, back)) > 0 {
			t.Error("not the same after Parse")
		}
		for i := range min(len(b), 300) {
			if _, err := Parse(b[:i]); err == nil {
				t.Fatalf("the first %d of %d bytes are accepted", i, len(b))
			}
		}
		if _, err := Parse(append(b, 0)); err == nil {
			t.Error("a byte too many is accepted")
		}
	}
}

func TestParseIsStrict(t *testing.T) {
	if _, err := of(file("../a", "")).AppendBinary(nil); err == nil {
		t.Error("AppendBinary writes a path that leads outside")
	}
	one := func(b ...byte) string { return header + "\x01" + string(b) }
	for name, text := range map[string]string{
		"empty":                "",
		"another program":      "#!/bin/sh\n",
		"another version":      "skdm\x02\x00",
		"no count":             header,
		"huge count":           header + "\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
		"count above 63 bits":  header + "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
		"long zero":            header + "\x80\x00",
		"unknown kind":         one('x', 1, 'a', 0, 0, 0),
		"path outside":         one('d', 2, '.', '.', 0, 0, 0),
		"absolute":             one('d', 2, '/', 'a', 0, 0, 0),
		"mode too big":         one('d', 1, 'a', 0, 0, 0x80, 0x20),
		"owner too big":        one('d', 1, 'a', 0x80, 0x80, 0x80, 0x80, 0x10, 0, 0),
		"empty target":         one('l', 1, 'a', 0, 0, 0),
		"top is a link":        one('l', 1, '.', 0, 0, 1, 'a'),
		"twice":                header + "\x02" + "d\x01a\x00\x00\x00" + "d\x01a\x00\x00\x00",
		"not in order":         header + "\x02" + "d\x01b\x00\x00\x00" + "d\x01a\x00\x00\x00",
		"path longer than all": one('d', 200),
		"path of 4 GB":         one('d', 0xff, 0xff, 0xff, 0xff, 0x0f),
	} {
		if m, err := Parse([]byte(text)); err == nil {
			t.Errorf("%s: accepted, %d entries", name, m.Len())
		} else if !strings.HasPrefix(err.Error(), "manifest: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Parse([]byte(one('d', 1, 'a', 0, 0, 0))); err != nil {
		t.Errorf("the rows above are wrong for another reason than they say: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	for _, m := range []*Manifest{New(), many(3), of(dir("."), Entry{Path: "l", Kind: Link, Target: "a", UID: 300})} {
		b, _ := m.AppendBinary(nil)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Parse(b)
		if err != nil {
			return
		}
		again, err := m.AppendBinary(nil)
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%q was read as %q, %v", b, again, err)
		}
		for e := range m.All() {
			if CheckPath(e.Path) != nil {
				t.Fatalf("path %q", e.Path)
			}
		}
	})
}

func FuzzCheckPath(f *testing.F) {
	f.Add("a/../b")
	f.Fuzz(func(t *testing.T, p string) {
		if CheckPath(p) == nil && (p == "" || p[0] == '/' || strings.Contains("/"+p+"/", "/../") || strings.Contains(p, "//")) {
			t.Fatalf("%q", p)
		}
	})
}

func TestMemory(t *testing.T) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	m := many(20000)
	m.Below("nothing") // makes the order
	runtime.GC()
	runtime.ReadMemStats(&after)
	used := int64(after.HeapAlloc) - int64(before.HeapAlloc)
	t.Logf("%d entries: %.1f MB", m.Len(), float64(used)/1e6)
	if used > 8e6 {
		t.Errorf("%d entries take %d bytes", m.Len(), used)
	}
	runtime.KeepAlive(m)
}

func BenchmarkSetContent(b *testing.B) {
	m := many(20000)
	e := file("directory-7/some-farm-140_proxy.cfg", "")
	for i := 0; b.Loop(); i++ {
		e.Size = int64(i)
		m.Set(e)
		m.Digest()
	}
}

func BenchmarkDigestExceptAfterNewFile(b *testing.B) {
	m := many(20000)
	for i := 0; b.Loop(); i++ {
		path := fmt.Sprintf("directory-7/new-%d", i%2)
		m.Set(file(path, ""))
		m.DigestExcept([]string{"directory-7", path})
		m.Remove(path)
	}
}

func BenchmarkParse(b *testing.B) {
	data, _ := many(20000).AppendBinary(nil)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if _, err := Parse(data); err != nil {
			b.Fatal(err)
		}
	}
}
