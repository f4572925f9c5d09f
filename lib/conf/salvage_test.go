package conf

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestSalvage(t *testing.T) {
	defaults := func() Config {
		c := want()
		c.Interface, c.Password, c.VRID = "", "", 0
		c.LocalIP, c.RemoteIP, c.ClusterIP = Config{}.LocalIP, Config{}.RemoteIP, Config{}.ClusterIP
		return c
	}
	for what, c := range map[string]struct {
		text   string
		errors int
		change func(*Config)
	}{
		"a right one": {minimal, 0, func(c *Config) { *c = want() }},
		"empty":       {"", 5, func(*Config) {}},
		"other lines are broken": {minimal + "$priority=\"300\";\n$hook_timeout=\"7\";\nhalf a li", 2, func(c *Config) {
			*c = want()
			c.HookTimeout = 7 * time.Second
		}},
		"not text": {"\xff\xfe$\x00i\x00", 1, func(*Config) {}},
		"$cluster_ip cannot be told from the node's own": {strings.Replace(minimal, `"192.168.1.250"`, `192.168.1.250"`, 1), 1, func(c *Config) {
			*c = want()
			c.LocalIP, c.ClusterIP = Config{}.LocalIP, Config{}.ClusterIP
		}},
		"$cluster_ip is the node's own": {strings.Replace(minimal, "1.252", "1.250", 1), 1, func(c *Config) {
			*c = want()
			c.ClusterIP = Config{}.ClusterIP
		}},
		"of IPv6 $cluster_ip is the node's own": {strings.NewReplacer("1.250", "1.250 fd00::1", "1.251", "1.251 fd00::2", "1.252", "1.252 fd00::1").Replace(minimal), 1, func(c *Config) {
			*c = want()
			c.Second.LocalIP, c.Second.RemoteIP = ip("fd00::1"), ip("fd00::2")
		}},
		"hooks and places": {"$down_script=\"/opt/stop\";\n$configdir=\"/opt/tree\";\n$up_script=\"start\";\n", 6, func(c *Config) {
			c.StopHook, c.ConfigDir = "/opt/stop", "/opt/tree"
		}},
	} {
		path := filepath.Join(t.TempDir(), "skudonet-cluster.conf")
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := Salvage(path)
		var wrong Errors
		if errors.As(err, &wrong); len(wrong) != c.errors {
			t.Errorf("%s: %d errors, want %d: %v", what, len(wrong), c.errors, err)
		}
		expect := defaults()
		c.change(&expect)
		expect.Path, expect.interfaceLine, expect.localIPLine = path, got.interfaceLine, got.localIPLine
		if !reflect.DeepEqual(got, expect) {
			t.Errorf("%s:\n%+v, want\n%+v", what, got, expect)
		}
		if _, _, strict := Load(path); (strict == nil) != (err == nil) || err != nil && strict.Error() != err.Error() {
			t.Errorf("%s: %v, but Load says %v", what, err, strict)
		}
	}
}

func TestSalvageOfNothing(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(dir, "missing")
	for _, path := range []string{missing, dir, fifo} {
		got, err := Salvage(path)
		if err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, want an error that names it", path, err)
		}
		if (path == missing) != errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", path, err)
		}
		if got.Path != path || got.StopHook != want().StopHook || got.HookTimeout != 2*time.Minute || got.ClusterIP.IsValid() {
			t.Errorf("%s: %+v", path, got)
		}
	}
}
