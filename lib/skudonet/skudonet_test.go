package skudonet

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
	"time"
)

func TestRole(t *testing.T) {
	const pound = "/usr/local/skudonet/app/pound/sbin/pound"
	for _, tc := range []struct{ cmdline, daemon, control string }{
		{"/usr/local/skudonet/app/nftlb/sbin/nftlb -l 5 -H 127.0.0.1 -k K -P 27", "nftlb", ""},
		{pound + " -f /usr/local/skudonet/config/web_proxy.cfg -p /var/run/web_proxy.pid", "pound of farm web", ""},
		{pound + " -V", "", ""},
		{pound + " -f", "", ""},
		{"/usr/bin/perl /usr/local/skudonet/bin/farmguardian web -l", "farmguardian of farm web", ""},
		{"/usr/bin/perl -w /usr/local/skudonet/bin/farmguardian web", "farmguardian of farm web", ""},
		{"/usr/bin/perl /usr/local/skudonet/bin/skudonet start", "", control + " start"},
		{"/usr/bin/perl /usr/local/skudonet/bin/skudonet stop", "", control + " stop"},
		{"/bin/bash /etc/init.d/skudonet restart", "", initScript + " restart"},
		{"/etc/init.d/skudonet start", "", initScript + " start"},
		{"/usr/bin/perl /usr/local/skudonet/bin/skudonet", "", ""},
		{"vi /usr/local/skudonet/bin/skudonet", "", ""},
		{"gdb /usr/local/skudonet/app/nftlb/sbin/nftlb", "", ""},
		{"/usr/local/skudonet/app/cherokee/sbin/cherokee -d", "", ""},
		{"tail -f /usr/local/skudonet/config/web_proxy.cfg", "", ""},
		{"/usr/sbin/nftlb", "", ""},
	} {
		d, c := role(strings.Split(tc.cmdline, " "))
		switch {
		case tc.daemon != "" && (d == nil || d.name != tc.daemon || c != nil):
		case tc.control != "" && (c == nil || c.name != tc.control || d != nil):
		case tc.daemon == "" && tc.control == "" && (d != nil || c != nil):
		default:
			continue
		}
		t.Errorf("%s: daemon %v, control program %v; want %q, %q", tc.cmdline, d, c, tc.daemon, tc.control)
	}
	role([]string{""})
}

func TestTree(t *testing.T) {
	file := func(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text)} }
	tree := fstest.MapFS{
		"web_l4xnat.cfg":     file(`{"farms": [{"name": "web", "state": "up", "backends": [{"name": "b", "state": "down"}]}]}`),
		"old_l4xnat.cfg":     file(`{"farms": [{"name": "old", "state": "down", "backends": [{"state": "up"}]}]}`),
		"broken_l4xnat.cfg":  file(`{"farms": [`),
		"none_l4xnat.cfg":    file(`{"farms": []}`),
		"shop_proxy.cfg":     file("User \"root\"\n#HTTP(S) LISTENERS\nEnd\n"),
		"closed_proxy.cfg":   file("User \"root\"\nEnd\n#down\n\n"),
		"empty_proxy.cfg":    file(""),
		"shop_status.cfg":    file("-b 0 0\n"),
		"route_datalink.cfg": file("route;192.168.1.5;eth0;weight;up\n"),
		"if_eth0_conf":       file("[eth0]\naddr=192.168.1.250\nstatus=up\n"),
		"if_eth1_conf":       file("[eth1]\r\nstatus = up\r\n"),
		"if_eth2_conf":       file("[eth2]\nstatus=down\n"),
		"if_eth3_conf":       file("[other]\nstatus=up\n[eth3]\naddr=\n"),
		"if_eth0.20_conf":    file("[eth0.20]\nstatus=up\n"),
		"if_eth0:web_conf":   file("[eth0:web]\nstatus=up\n"),
	}
	if got, want := farms(tree), []farm{{"web", nftlb}, {"shop", proxy}}; !slices.Equal(got, want) {
		t.Errorf("farms %v, want %v", got, want)
	}
	if got, want := links(tree), []string{"eth0.20", "eth0", "eth1"}; !slices.Equal(got, want) {
		t.Errorf("links %v, want %v", got, want)
	}
	if got := farms(fstest.MapFS{}); len(got) > 0 {
		t.Errorf("an empty tree has farms %v", got)
	}
	if got := farms(os.DirFS("/no/such/tree")); len(got) > 0 {
		t.Errorf("no tree has farms %v", got)
	}
	for _, tc := range []struct {
		f    farm
		d    daemon
		want bool
	}{
		{farm{"web", nftlb}, daemon{kind: nftlb}, true},
		{farm{"shop", proxy}, daemon{kind: proxy, farm: "shop"}, true},
		{farm{"shop", proxy}, daemon{kind: proxy, farm: "web"}, false},
		{farm{"shop", proxy}, daemon{kind: guardian, farm: "shop"}, false},
		{farm{"web", nftlb}, daemon{kind: proxy, farm: "web"}, false},
	} {
		if got := tc.f.runs(tc.d); got != tc.want {
			t.Errorf("%v served by %v: %v", tc.f, tc.d, got)
		}
	}
}

func TestPidFiles(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	pid := strconv.Itoa(cmd.Process.Pid)
	for name, text := range map[string]string{
		"nftlb.pid": pid + "\n", "web_proxy.pid": pid + " 1", "web_guardian.pid": "", "x_proxy.pid": "-1",
		"y_proxy.pid": "all", "z_proxy.pid": "99999999", "other.pid": pid, "my-nftlb.pid": pid,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	os.Mkdir(filepath.Join(dir, "d_proxy.pid"), 0o755)
	want := []daemon{{cmd.Process.Pid, nftlb, "", "nftlb"}, {cmd.Process.Pid, proxy, "web", "web_proxy"}}
	if got := fromPidFiles(dir); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	// The file is older than the process: somebody else has the number now.
	past := time.Now().Add(-time.Hour)
	os.Chtimes(filepath.Join(dir, "nftlb.pid"), past, past)
	if got := fromPidFiles(dir); !slices.Equal(got, want[1:]) {
		t.Errorf("then %v, want %v", got, want[1:])
	}
}

func FuzzTree(f *testing.F) {
	f.Add([]byte(`{"farms": [{"state": "up"}]}`))
	f.Add([]byte("[eth0]\nstatus=up\n#down"))
	f.Fuzz(func(t *testing.T, text []byte) {
		tree := fstest.MapFS{"a_l4xnat.cfg": {Data: text}, "a_proxy.cfg": {Data: text}, "if_eth0_conf": {Data: text}}
		if len(farms(tree)) > 2 || len(links(tree)) > 1 {
			t.Errorf("%q has %v, %v", text, farms(tree), links(tree))
		}
	})
}
