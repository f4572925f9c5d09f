package node

import (
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/address"
	"github.com/skudonet/skudonet-ce-cluster/lib/auth"
	"github.com/skudonet/skudonet-ce-cluster/lib/vrouter"
)

func TestLaneKeepsOrder(t *testing.T) {
	var l lane
	var got []int
	slow := make(chan struct{})
	l.do(func() { <-slow })
	for i := range 100 {
		l.do(func() {
			got = append(got, i)
			if i == 50 {
				l.do(func() { got = append(got, 1000) }) // what work queues is waited for too
			}
		})
	}
	if !l.busy() {
		t.Error("not busy with work in the queue")
	}
	close(slow)
	l.wait()
	if l.busy() {
		t.Error("busy when all is done")
	}
	if len(got) != 101 || !slices.IsSorted(got) {
		t.Errorf("order %v", got)
	}
	l.wait() // an idle lane does not block
}

func TestRecordSurvives(t *testing.T) {
	dir := t.TempDir()
	f, r, err := openRecord(dir)
	if err != nil || r.Identity != "" {
		t.Fatalf("a new directory holds %+v, %v", r, err)
	}
	long := vrouter.Record{Identity: "eth0 vrid 1", BootID: "boot", Master: true, Started: true, Sent: time.Hour, Since: time.Unix(1e9, 5).UTC(),
		Reason: strings.Repeat("x", 500), Sequence: 1<<63 + 7, Marks: map[netip.Addr]auth.Sequence{netip.MustParseAddr("10.0.0.2"): 1<<64 - 1}}
	short := long
	short.Reason, short.Marks = "y", nil
	for _, want := range []vrouter.Record{long, short} {
		if err := f.write(want); err != nil {
			t.Fatal(err)
		}
		again, got, err := openRecord(dir)
		if err != nil {
			t.Fatal(err)
		}
		again.file.Close()
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v\nwant %+v", got, want)
		}
	}
	info, err := os.Stat(filepath.Join(dir, recordName))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", info.Mode(), err)
	}
	if err := os.WriteFile(filepath.Join(dir, recordName), []byte("{\"identity\":\"eth0\",\"seq"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, got, err := openRecord(dir); err != nil || got.Identity != "" {
		t.Errorf("half a record reads as %+v, %v", got, err)
	}
}

func TestLastingSurvives(t *testing.T) {
	dir := t.TempDir()
	if got, err := ReadLasting(dir); err != nil || got.Floor != 0 {
		t.Fatalf("a new directory holds %+v, %v", got, err)
	}
	want := vrouter.Lasting{Floor: 1 << 60, Marks: map[netip.Addr]auth.Sequence{netip.MustParseAddr("10.0.0.2"): 42}}
	if err := WriteLasting(dir, want); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadLasting(dir); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
	if err := os.WriteFile(filepath.Join(dir, lastingName), []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadLasting(dir); err == nil || !strings.Contains(err.Error(), lastingName) {
		t.Errorf("garbage is read without an error that names the file: %v", err)
	}
	if err := WriteLasting(filepath.Join(dir, "missing"), want); err == nil {
		t.Error("writing into a missing directory succeeds")
	}
}

func TestRecordResumes(t *testing.T) {
	good := vrouter.Record{Identity: "i", BootID: "b", Master: true, Sent: 100 * time.Second, Interval: time.Second}
	change := func(f func(*vrouter.Record)) vrouter.Record { r := good; f(&r); return r }
	for _, row := range []struct {
		name   string
		record vrouter.Record
		now    time.Duration
		want   bool
	}{
		{"within two intervals", good, 102 * time.Second, true},
		{"later", good, 102*time.Second + 1, false},
		{"was backup", change(func(r *vrouter.Record) { r.Master = false }), 101 * time.Second, false},
		{"another virtual router", change(func(r *vrouter.Record) { r.Identity = "j" }), 101 * time.Second, false},
		{"another boot", change(func(r *vrouter.Record) { r.BootID = "c" }), 101 * time.Second, false},
		{"from the future", good, 99 * time.Second, false},
	} {
		if got := row.record.Resumes("i", "b", row.now); got != row.want {
			t.Errorf("%s: %v", row.name, got)
		}
	}
}

// An unmounted tree, or a file that is being written, takes no address away.
func TestWhatCannotBeReadStaysWanted(t *testing.T) {
	cluster := []netip.Prefix{netip.MustParsePrefix("10.0.0.100/24")}
	file := func(name, addr string) *fstest.MapFile {
		return &fstest.MapFile{Data: []byte("[" + name + "]\naddr=" + addr + "\nstatus=up\n")}
	}
	whole := fstest.MapFS{"if_eth0:a_conf": file("eth0:a", "10.0.0.101"), "if_eth0:b_conf": file("eth0:b", "10.0.0.102")}
	before, _ := address.Wanted(whole, cluster, "eth0")
	for _, row := range []struct {
		name   string
		tree   fs.FS
		want   int
		unread bool
	}{
		{"nothing changed", whole, 3, false},
		{"a file was deleted", fstest.MapFS{"if_eth0:a_conf": whole["if_eth0:a_conf"]}, 2, false},
		{"a file is empty, as while it is written", fstest.MapFS{"if_eth0:a_conf": whole["if_eth0:a_conf"], "if_eth0:b_conf": {}}, 3, true},
		{"an interface is down", fstest.MapFS{"if_eth0:a_conf": whole["if_eth0:a_conf"],
			"if_eth0:b_conf": {Data: []byte("[eth0:b]\naddr=10.0.0.102\nstatus=down\n")}}, 2, false},
		{"the tree is gone", os.DirFS(filepath.Join(t.TempDir(), "missing")), 3, true},
	} {
		want, notices := address.Wanted(row.tree, cluster, "eth0")
		want, unread := keepUnread(want, before, notices)
		if len(want) != row.want || (unread != nil) != row.unread {
			t.Errorf("%s: %v, unread %v", row.name, want, unread)
		}
	}
}
