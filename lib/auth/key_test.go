package auth

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestKeyLength(t *testing.T) {
	for n, ok := range map[int]bool{0: false, 31: false, 32: true, 64: true, 65: false} {
		k, err := NewKey(make([]byte, n))
		if (err == nil) != ok || k.IsZero() == ok {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

// The derivation is part of the wire format. The expected key was computed with
// Python's hashlib.
func TestDeriveKey(t *testing.T) {
	k := DeriveKey("secret", 1, lb1, lb2)
	want := unhex(t, "484cb49d5e01cbe4221302fbc7da74fe37c15f43a0c74e23cece2d9bf79366b4")
	if !bytes.Equal(*k.state.secret, want) {
		t.Error("the key is not the one that nodes of other versions derive")
	}
	if !bytes.Equal(salt(1, lb1, lb2), salt(1, netip.AddrFrom16(lb2.As16()), lb1)) {
		t.Error("the peer, with the addresses swapped, derives another key")
	}
}

// Every input counts: a neighbour with the same password is still a stranger.
func TestSaltTellsClustersApart(t *testing.T) {
	lb3 := netip.MustParseAddr("192.168.1.252")
	salts := [][]byte{salt(1, lb1, lb2), salt(2, lb1, lb2), salt(1, lb1, lb3), salt(1, lb3, lb2)}
	for i, a := range salts {
		for _, b := range salts[:i] {
			if bytes.Equal(a, b) {
				t.Errorf("two clusters share the salt %x", a)
			}
		}
	}
}

func TestKeyHidesItself(t *testing.T) {
	k, err := NewKey([]byte("0123456789abcdefghijklmnopqrstuv"))
	if err != nil {
		t.Fatal(err)
	}
	type open struct{ Key Key }
	type closed struct{ key Key }
	var out strings.Builder
	for _, v := range []any{k, &k, open{k}, &open{k}, closed{k}, &closed{k}, []Key{k}, map[string]Key{"k": k}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%c"} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		out.Write(b)
		slog.New(slog.NewTextHandler(&out, nil)).Info("key", "v", v)
		slog.New(slog.NewJSONHandler(&out, nil)).Info("key", "v", v)
	}
	fmt.Fprint(&out, k.String(), k.LogValue())
	got := strings.ToLower(out.String())
	for _, leak := range []string{"0123456789", "303132", "48 49 50", "0x30", `\x30`} {
		if strings.Contains(got, leak) {
			t.Errorf("the key shows, as %q, in\n%s", leak, got)
		}
	}
	if !strings.Contains(got, hidden) {
		t.Errorf("no sign of a hidden key in\n%s", got)
	}
}

func TestKeyCache(t *testing.T) {
	k := newKey(t, secret)
	lb3 := netip.MustParseAddr("192.168.1.252")
	cache := k.MarshalCache("secret", 1, lb1, lb2)
	if bytes.Contains(bytes.ReplaceAll(cache, []byte(hidden), nil), []byte("secret")) {
		t.Errorf("the password is in the cache:\n%s", cache)
	}
	for _, pair := range [][2]netip.Addr{{lb1, lb2}, {lb2, lb1}} {
		got, err := ParseCache(cache, "secret", 1, pair[0], pair[1])
		if err != nil || !bytes.Equal(*got.state.secret, *k.state.secret) {
			t.Errorf("%v: %v", pair, err)
		}
	}

	flipped := func(i int) []byte { b := slices.Clone(cache); b[i] ^= 1; return b }
	for _, tt := range []struct {
		name     string
		cache    []byte
		password string
		vrid     uint8
		a, b     netip.Addr
	}{
		{"another password", cache, "Secret", 1, lb1, lb2},
		{"no password", cache, "", 1, lb1, lb2},
		{"another VRID", cache, "secret", 2, lb1, lb2},
		{"another peer", cache, "secret", 1, lb1, lb3},
		{"empty", nil, "secret", 1, lb1, lb2},
		{"cut off", cache[:len(cache)-1], "secret", 1, lb1, lb2},
		{"longer", append(slices.Clone(cache), '\n'), "secret", 1, lb1, lb2},
		{"upper case", bytes.ToUpper(cache), "secret", 1, lb1, lb2},
		{"other rounds", bytes.Replace(cache, []byte("600000"), []byte("100000"), 1), "secret", 1, lb1, lb2},
		{"another key", flipped(len(cache) - 70), "secret", 1, lb1, lb2},
		{"another tag", flipped(len(cache) - 2), "secret", 1, lb1, lb2},
	} {
		if got, err := ParseCache(tt.cache, tt.password, tt.vrid, tt.a, tt.b); err != ErrCache || !got.IsZero() {
			t.Errorf("%s: %v, want %v", tt.name, err, ErrCache)
		}
	}
}

func FuzzParseCache(f *testing.F) {
	k := newKey(f, secret)
	good := k.MarshalCache("secret", 1, lb1, lb2)
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add([]byte(cacheHeader + "\n00\n00\n"))
	f.Add([]byte("\n\n\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := ParseCache(data, "secret", 1, lb1, lb2)
		if err != nil {
			if err != ErrCache || !got.IsZero() {
				t.Fatalf("refused with %v", err)
			}
			return
		}
		if !bytes.Equal(got.MarshalCache("secret", 1, lb1, lb2), data) {
			t.Fatalf("accepted another spelling:\n%s", data)
		}
	})
}

func BenchmarkDeriveKey(b *testing.B) {
	for b.Loop() {
		DeriveKey("secret", 1, lb1, lb2)
	}
}

func BenchmarkParseCache(b *testing.B) {
	k := newKey(b, secret)
	cache := k.MarshalCache("secret", 1, lb1, lb2)
	for b.Loop() {
		if _, err := ParseCache(cache, "secret", 1, lb1, lb2); err != nil {
			b.Fatal(err)
		}
	}
}
