package installed

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// bare is a machine without systemd: a process, network and mount namespace of its own, on a disk of the test bed's
// cache.
type bare struct {
	t   *testing.T
	pid string // of its first process, as seen here
}

// newBare starts one, with an eth0 that has a carrier.
func newBare(t *testing.T) *bare {
	t.Helper()
	if impossible != "" {
		t.Skip(impossible)
	}
	t.Parallel()
	base, err := output(testbed(newID(), "prepare"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	debs := filepath.Join(dir, "debs")
	if out, err := exec.Command("../testbed/mkskudonet", debs).CombinedOutput(); err != nil {
		t.Fatalf("mkskudonet: %v\n%s", err, out)
	}
	text, err := os.ReadFile(deb)
	if err == nil {
		err = os.WriteFile(filepath.Join(debs, "cluster.deb"), text, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	// The first process is a shell, because that is one that buries the dead. It ends when its input does.
	cmd := exec.Command("unshare", "--mount", "--net", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "bash", "-ec", `
		dir=$0 base=$1 address=$2
		mkdir "$dir/top" "$dir/root"
		mount -t tmpfs tmpfs "$dir/top"
		mkdir "$dir/top/upper" "$dir/top/work"
		mount -t overlay overlay -o "lowerdir=$base,upperdir=$dir/top/upper,workdir=$dir/top/work" "$dir/root"
		cd "$dir/root"
		mount -t proc proc proc
		mount -t sysfs sysfs sys
		mount -t tmpfs tmpfs run
		mount -t tmpfs tmpfs dev
		for device in null zero full random urandom tty; do : > dev/$device; mount --bind /dev/$device dev/$device; done
		ln -s null dev/console
		ln -s /proc/self/fd dev/fd
		hostname bare
		ip link set lo up
		ip link add eth0 type veth peer name port
		ip link set port up
		ip link set eth0 up
		printf 'auto eth0\niface eth0 inet static\n\taddress %s\n\tnetmask 255.255.255.0\n' "$address" > etc/network/interfaces
		mkdir srv/debs
		cp "$dir"/debs/*.deb srv/debs/
		exec chroot . bash -c 'echo ready; read -r; exit 0'`, dir, base, addresses[lb1])
	hold, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	ready, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		hold.Close()
		cmd.Wait()
	})
	if _, err := ready.Read(make([]byte, 6)); err != nil {
		t.Fatalf("the bare machine does not start: %v\n%s", err, complaints.Bytes())
	}
	child, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	return &bare{t, strings.TrimSpace(string(child))}
}

func (m *bare) try(script string) (string, int) {
	m.t.Helper()
	cmd := exec.Command("nsenter", "-t", m.pid, "-a", "-r", "--wdns=/root", "env", "-i", "HOME=/root", "LANG=C.UTF-8", "DEBIAN_FRONTEND=noninteractive",
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "sh", "-c", script)
	// What is started there may keep the output open.
	file, err := os.CreateTemp(m.t.TempDir(), "output")
	if err != nil {
		m.t.Fatal(err)
	}
	defer file.Close()
	cmd.Stdout, cmd.Stderr = file, file
	cmd.Run()
	out, err := os.ReadFile(file.Name())
	if err != nil || cmd.ProcessState == nil {
		m.t.Fatalf("%s: %v", script, err)
	}
	return strings.TrimSpace(string(out)), cmd.ProcessState.ExitCode()
}

func (m *bare) exits(want int, script string) string {
	m.t.Helper()
	out, code := m.try(script)
	if code != want {
		m.t.Fatalf("%s: exit status %d, want %d; it printed:\n%s", script, code, want, out)
	}
	return out
}

// The init script alone does the whole job where there is no systemd.
func TestBare(t *testing.T) {
	m := newBare(t)
	b := &bed{t: t} // for its words
	m.exits(0, "dpkg --install /srv/debs/skudonet_*.deb")
	b.says(m.exits(0, "dpkg --install /srv/debs/cluster.deb"), "Completing the Skudonet CE Cluster installation...")
	m.exits(3, script+" status")
	b.says(m.exits(0, script+" start"), "not enabled")
	m.exits(3, script+" status")

	m.exits(0, fmt.Sprintf(`printf '[%s]\naddr=%s\nmask=255.255.255.0\nname=%[1]s\nstatus=up\n' > %[3]s/if_%[1]s_conf`, device, virtual, tree))
	m.exits(0, fmt.Sprintf(`sed -i -e 's/^\$local_ip=.*/$local_ip="%s";/' -e 's/^\$remote_ip=.*/$remote_ip="%s";/' `+
		`-e 's/^\$password=.*/$password="three small words";/' -e 's/^\$cluster_ip=.*/$cluster_ip="%s";/' %s`,
		addresses[lb1], addresses[lb2], virtual, conffile))
	m.exits(0, `sed -i 's/$enable_cluster="false";/$enable_cluster="true";/' `+script)

	// A broken configuration starts nothing.
	m.exits(0, breakIt)
	b.says(m.exits(6, script+" start"), complaint...)
	m.exits(3, script+" status")
	m.exits(0, mendIt)

	master := func() {
		t.Helper()
		b.eventually("master", func() (bool, string) {
			out, _ := m.try("cat " + statusFile + "; ip -4 addr show dev eth0; pgrep -x skd-inotify; cat /run/nftlb.pid")
			return strings.HasPrefix(out, "master\n") && strings.Contains(out, virtual+"/") && m.tries("pgrep -x skd-inotify") == 0, out
		})
	}
	pid := func() string { return m.exits(0, "skd-vrrpd pid") }

	m.exits(0, script+" start")
	master()
	m.exits(0, script+" status")
	first := pid()
	m.exits(0, script+" start")
	m.exits(0, script+" force-reload")
	m.exits(1, script+" handover") // there is nobody
	if now := pid(); now != first {
		t.Errorf("process %s, it was %s: start, force-reload and handover leave it", now, first)
	}
	master()
	m.exits(0, script+" restart")
	if now := pid(); now == first {
		t.Error("a restart left the process")
	}
	master()

	m.exits(0, script+" stop")
	m.exits(3, script+" status")
	gone := func(processes string) {
		t.Helper()
		b.eventually("nothing of it left", func() (bool, string) {
			out, code := m.try("! { ps -ef | grep -v grep | grep -E '" + processes + "'; } && ! ip addr | grep -F " + virtual + " && ! ls " + statusFile)
			return code == 0, out
		})
	}
	gone("skd-|skdinotify|stubd")
	m.exits(0, script+" stop")
	m.exits(7, script+" force-reload")
	m.exits(7, script+" handover")

	// A dead daemon whose number somebody else has by now.
	m.exits(0, script+" start")
	master()
	crash := func() {
		t.Helper()
		m.exits(0, "kill -KILL $(skd-vrrpd pid)")
		b.eventually("its end", func() (bool, string) {
			out, code := m.try(script + " status")
			return code == 1, fmt.Sprintf("exit status %d: %s", code, out)
		})
	}
	crash()
	stranger := m.exits(0, "setsid sleep 1000 > /dev/null 2>&1 & echo $!")
	m.exits(0, "echo "+stranger+" > /run/skudonet-ce-cluster/vrrpd.pid")
	m.exits(1, script+" status")
	m.exits(7, script+" force-reload")
	m.exits(0, script+" start")
	master()
	if now := pid(); now == stranger {
		t.Error("the stranger is taken for the daemon")
	}
	crash()
	m.exits(0, "echo "+stranger+" > /run/skudonet-ce-cluster/vrrpd.pid")
	m.exits(0, script+" stop")
	m.exits(3, script+" status")
	m.exits(0, "kill -0 "+stranger)
	m.exits(0, "kill "+stranger)
	if out, code := m.try("ip addr | grep -F " + virtual); code == 0 {
		t.Errorf("the address of the dead daemon is still there after a stop: %s", out)
	}

	m.exits(0, script+" start")
	master()
	m.exits(0, "dpkg --purge skudonet-ce-cluster")
	gone("skd-|skdinotify")
}

func (m *bare) tries(script string) int {
	m.t.Helper()
	_, code := m.try(script)
	return code
}
