// Package installed tests the Debian package on machines as users have them: two booted Debian 12 systems (test/testbed)
// in which apt-get installs it from a signed repository. What is asserted is what an admin, a client or the switch
// sees.
//
// The package is built by "make deb", or is the file that SKD_DEB names. SOAK=1 runs more.
package installed

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/test/lab"
)

const (
	script     = "/etc/init.d/skudonet-ce-cluster"
	service    = "skudonet-ce-cluster"
	conffile   = "/usr/local/skudonet/app/ucarp/etc/skudonet-cluster.conf"
	tree       = "/usr/local/skudonet/config"
	statusFile = "/etc/skudonet-ce-cluster.status"
	guardTable = "netdev skudonet-ce-cluster"
)

var (
	impossible string // why no test bed can be booted here
	deb        string // the package under test
)

// Most tests wait most of the time.
const bedsAtOnce = 3

func TestMain(m *testing.M) {
	if impossible = whyNot(); impossible != "" {
		fmt.Fprintln(os.Stderr, "test/package is skipped:", impossible)
		os.Exit(lab.RunTests(m, 1))
	}
	var err error
	if deb, err = build(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(lab.RunTests(m, bedsAtOnce))
}

// whyNot boots a test bed with nothing in it, and says what stands in the way.
func whyNot() string {
	if os.Geteuid() != 0 {
		return "booting systems needs root"
	}
	for program, name := range map[string]string{"tcpdump": "tcpdump", "arping": "iputils-arping", "nft": "nftables", "unshare": "util-linux"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Sprintf("no %s here (test/install-deps package installs %s)", program, name)
		}
	}
	id := newID()
	up := testbed(id, "up", "--skudonet", "none")
	out, err := up.CombinedOutput()
	testbed(id, "down").Run()
	if err != nil {
		return fmt.Sprintf("no system can be booted here: testbed up: %v\n%s", err, out)
	}
	return ""
}

// build gives the file of the package under test.
func build() (string, error) {
	if file := os.Getenv("SKD_DEB"); file != "" {
		return filepath.Abs(file)
	}
	if out, err := exec.Command("make", "-C", "../..", "deb").CombinedOutput(); err != nil {
		return "", fmt.Errorf("make deb: %w\n%s", err, out)
	}
	arch, err := output(exec.Command("dpkg", "--print-architecture"))
	if err != nil {
		return "", err
	}
	files, _ := filepath.Glob("../../dist/skudonet-ce-cluster_*_" + arch + ".deb")
	if len(files) != 1 {
		return "", errors.New("make deb should leave one package for " + arch + " in dist/, has left: " + strings.Join(files, " "))
	}
	return filepath.Abs(files[0])
}

// soak skips a test that is too long for every change.
func soak(t *testing.T) {
	t.Helper()
	if os.Getenv("SOAK") == "" {
		t.Skip("only with SOAK=1")
	}
}

// status is what a node's status file says.
func (b *bed) status(node string) string {
	if _, off := b.off.Load(node); off {
		return "off"
	}
	return strings.TrimSuffix(b.read(node, statusFile), "\n")
}

// settled waits until the node is master and has the address, and the other one is backup and has it not.
func (b *bed) settled(master string) {
	b.t.Helper()
	backup := other[master]
	b.eventually(master+" as the only master", func() (bool, string) {
		words := fmt.Sprintf("status %s %q, %s %q", lb1, b.status(lb1), lb2, b.status(lb2))
		if b.status(master) != "master" || b.status(backup) != "backup" {
			return false, words
		}
		has, hasNot := b.holds(master), !b.holds(backup)
		return has && hasNot, fmt.Sprintf("%s, address on %s: %v, on %s: %v", words, master, has, backup, !hasNot)
	})
}

// holds says whether a node has the virtual address on an interface.
func (b *bed) holds(node string) bool {
	out, err := output(testbed(b.id, "net", node, "ip", "-4", "-o", "addr", "show"))
	return err == nil && strings.Contains(out, " "+virtual+"/")
}

// guarded says whether a node's guard stands.
func (b *bed) guarded(node string) bool {
	out, _ := output(testbed(b.id, "net", node, "nft", "list", "tables"))
	return strings.Contains(out, "table "+guardTable)
}

// answers fails the test unless the virtual address answers the client.
func (b *bed) answers() {
	b.t.Helper()
	b.eventually("a ping of "+virtual, func() (bool, string) {
		err := b.client("ping", "-c1", "-W1", virtual)
		return err == nil, fmt.Sprint(err)
	})
}

// mainPID is the daemon's, as systemd sees it.
func (b *bed) mainPID(node string) string {
	b.t.Helper()
	return b.run(node, "systemctl show -P MainPID "+service)
}

// setUp does the how-to's editing on a node.
func (b *bed) setUp(node string) {
	b.t.Helper()
	b.run(node, fmt.Sprintf(`sed -i -e 's/^\$local_ip=.*/$local_ip="%s";/' -e 's/^\$remote_ip=.*/$remote_ip="%s";/' `+
		`-e 's/^\$password=.*/$password="three small words";/' -e 's/^\$cluster_ip=.*/$cluster_ip="%s";/' %s`,
		addresses[node], addresses[other[node]], virtual, conffile))
}

// virtualInterface creates $cluster_ip in Skudonet on a node, with status UP.
func (b *bed) virtualInterface(node string) {
	b.t.Helper()
	b.write(node, tree+"/if_"+device+"_conf", fmt.Sprintf(
		"[%s]\naddr=%s\ndhcp=false\ngateway=\nmac=\nmask=255.255.255.0\nname=%s\nstatus=up\n", device, virtual, device))
	b.run(node, "/etc/init.d/skudonet start")
}

func (b *bed) enable(node string) {
	b.t.Helper()
	b.run(node, `sed -i 's/^\$enable_cluster=.*/$enable_cluster="true";/' `+script)
	b.run(node, "systemctl enable "+service)
}

// cluster boots a pair that is set up and runs: lb1 is master, and the backup has its configuration.
func cluster(t *testing.T) *bed {
	t.Helper()
	b := boot(t, "--install", service)
	b.do("ssh-keys")
	b.virtualInterface(lb1)
	for _, node := range nodes {
		b.setUp(node)
		b.enable(node)
		b.run(node, script+" start")
		if node == lb1 {
			b.eventually("master on lb1", func() (bool, string) { return b.status(lb1) == "master", b.status(lb1) })
		}
	}
	b.settled(lb1)
	b.inStep(lb1)
	return b
}

// inStep waits until the master's replicator says that the backup has its configuration, now and not once.
func (b *bed) inStep(master string) {
	b.t.Helper()
	b.until(master, "replication in step", "skd-inotify status | grep 'in step since'")
}

// replicates changes a file on the master, and waits until the backup has it.
func (b *bed) replicates(master string) {
	b.t.Helper()
	text := fmt.Sprintf("# %s %v\n", master, time.Now().UnixNano())
	b.write(master, tree+"/farmguardian.conf", text)
	b.eventually("an edit on "+master+" visible on "+other[master], func() (bool, string) {
		there := b.read(other[master], tree+"/farmguardian.conf")
		return there == text, there
	})
}
