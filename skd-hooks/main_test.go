package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/hook"
	"github.com/skudonet/skudonet-ce-cluster/lib/pidfile"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
)

// deadline is how long a test waits for something that takes no time.
const deadline = 30 * time.Second

// program is skd-hooks as users run it.
var program string

func TestMain(m *testing.M) {
	if name := filepath.Base(os.Args[0]); name == "skd-inotify" || name == "skdinotify" {
		replicate()
	}
	dir, err := os.MkdirTemp("", "skd-hooks")
	if err != nil {
		panic(err)
	}
	program = filepath.Join(dir, "skd-hooks")
	code := 1
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "%s", out)
	} else if err := exec.Command("cp", os.Args[0], filepath.Join(dir, "skd-inotify")).Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
	} else {
		code = m.Run()
	}
	os.RemoveAll(dir)
	os.Exit(code)
}

// replicate is the stand-in for skd-inotify: this program under its name. Like
// it, it executes itself anew under the name that scripts look for and writes
// its pid file. In /run/replicator it notes its life, beside Skudonet's calls.
// NO_REPLICATOR has it fail, DEAF not listen to SIGTERM.
func replicate() {
	behave, _ := os.ReadFile("/run/behave")
	note := func(text string) {
		calls, _ := os.ReadFile("/run/calls")
		f, err := os.OpenFile("/run/replicator", os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
		if err != nil {
			os.Exit(1)
		}
		fmt.Fprintf(f, "%s; calls: %s\n", text, strings.ReplaceAll(strings.TrimSpace(string(calls)), "\n", ", "))
		f.Close()
	}
	if os.Args[0] != shownAs {
		self, err := os.Executable()
		if err == nil {
			err = syscall.Exec(self, append([]string{shownAs}, os.Args[1:]...), os.Environ())
		}
		note(err.Error())
		os.Exit(1)
	}
	if bytes.Contains(behave, []byte("NO_REPLICATOR")) {
		os.Exit(1)
	}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM)
	note(strings.Join(os.Args[1:], " "))
	file := filepath.Join(os.Args[slices.Index(os.Args, "--run-dir")+1], "inotify.pid")
	f, err := pidfile.Claim(file)
	if err != nil {
		os.Exit(1)
	}
	defer f.Close()
	<-ended
	for bytes.Contains(behave, []byte("DEAF")) {
		<-ended
	}
	note("ended")
	os.Exit(0)
}

const shownAs = "/usr/local/skudonet/app/skdinotify/skdinotify"

// standIn does what Skudonet's control program does to a node, as far as it
// matters here, and logs its calls. SLOW, SLOW_STOP, HANG, FAIL and STUCK make it misbehave.
const standIn = `#!/bin/sh
# Stand-in for the load balancer.
home=/usr/local/skudonet
conf=$home/config
[ ! -e /run/behave ] || . /run/behave
echo "$1" >> /run/calls
serve() { # NAME ARGUMENT...: leaves a daemon behind that holds on to all it got
	name=$1; shift
	setsid "$home/app/$name/sbin/$name" "$@" 3>&2 &
	echo $! >> /run/daemons
}
case $1 in
start)
	sleep "${SLOW:-0}"
	[ -z "${FAIL-}" ] || { echo "Cannot open file" >&2; exit 0; }
	for f in "$conf"/if_*_conf; do
		n=${f##*/if_} n=${n%_conf}
		case $n in
		*:*) ip addr add "$(sed -n s/^addr=//p "$f")/24" dev "${n%%:*}" label "$n" noprefixroute 2>/dev/null ;;
		*) ip link set "$n" up; ip link show "$n" | grep -q LOWER_UP || ip link set "$n" down ;;
		esac
	done
	for f in "$conf"/*_l4xnat.cfg; do [ ! -e "$f" ] || serve nftlb infinity; break; done
	for f in "$conf"/*_proxy.cfg; do [ ! -e "$f" ] || serve pound -c 'sleep infinity; :' -f "$f"; done
	sleep "${HANG:-0}"
	echo started >> /run/calls
	;;
stop)
	[ -n "${STUCK-}" ] || for p in $(cat /run/daemons); do kill "$p" 2>/dev/null; done
	[ -n "${STUCK-}" ] || : > /run/daemons
	for f in "$conf"/if_*:*_conf; do
		n=${f##*/if_} n=${n%_conf}
		ip addr del "$(sed -n s/^addr=//p "$f")/24" dev "${n%%:*}" 2>/dev/null
	done
	sleep "${SLOW_STOP:-0}"
	;;
esac
exit 0
`

// fakeSystemctl runs the init script as the generated unit does, and remembers
// what systemd would believe.
const fakeSystemctl = `#!/bin/sh
case $1 in cat | is-failed) ;; *) echo "systemctl $*" >> /run/calls ;; esac
[ ! -e /run/behave ] || . /run/behave
state=$(cat /run/unit-state 2>/dev/null || echo inactive)
case $1 in
show) echo "LoadState=${LOAD:-loaded}"; echo "ActiveState=$state" ;;
start) [ -z "${REFUSE-}" ] || { echo "Transaction is destructive." >&2; exit 4; }
	[ "$state" = active ] || /etc/init.d/skudonet start; echo active > /run/unit-state ;;
restart) /etc/init.d/skudonet stop; /etc/init.d/skudonet start; echo active > /run/unit-state ;;
cat) [ -n "${UNIT-}" ] || { echo "No files found for $2." >&2; exit 1; } ;;
is-failed) [ -n "${UNIT_FAILED-}" ] ;;
--no-block) [ -z "${REFUSE-}" ] || { echo "Transaction is destructive." >&2; exit 4; }
	[ "$2" != start ] || eval "${UNIT-}" ;;
stop) echo inactive > /run/unit-state
	[ "$state" = inactive ] || setsid sh -c 'sleep 0.05; /etc/init.d/skudonet stop' >/dev/null 2>&1 & ;;
esac
`

const setup = `set -eu
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /usr/local
mount -t tmpfs tmpfs /etc/init.d
mount -t tmpfs tmpfs /mnt
home=/usr/local/skudonet
mkdir -p $home/bin $home/config $home/app/nftlb/sbin $home/app/pound/sbin /usr/local/bin /run/skudonet-ce-cluster
cp /bin/sleep $home/app/nftlb/sbin/nftlb
cp /bin/sh $home/app/pound/sbin/pound
printf '%s' "$STAND_IN" > $home/bin/skudonet
printf '#!/bin/sh\n/usr/local/skudonet/bin/skudonet "$1" > /dev/null\nexit 0\n' > /etc/init.d/skudonet
printf '%s' "$SYSTEMCTL" > /usr/local/bin/systemctl
chmod 755 $home/bin/skudonet /etc/init.d/skudonet /usr/local/bin/systemctl
: > /run/daemons; : > /run/calls
ip link set lo up
for n in 0 1; do
	ip link add eth$n type veth peer name cable$n
	ip link set eth$n up; ip link set cable$n up
	printf '[eth%s]\naddr=192.168.%s.250\nmask=255.255.255.0\nstatus=up\n' $n $n > $home/config/if_eth${n}_conf
done
ip addr add 192.168.0.250/24 dev eth0
printf '[eth0:web]\naddr=192.168.0.252\nmask=255.255.255.0\nstatus=up\n' > $home/config/if_eth0:web_conf
echo '{"farms": [{"name": "dns", "state": "up"}]}' > $home/config/dns_l4xnat.cfg
printf 'End\n' > $home/config/shop_proxy.cfg
cat > /mnt/skudonet-cluster.conf <<'EOC'
$interface="eth0";
$local_ip="192.168.0.250";
$remote_ip="192.168.0.251";
$password="a good long one";
$cluster_id="1";
$cluster_ip="192.168.0.252";
EOC
chmod 600 /mnt/skudonet-cluster.conf
echo ready
exec sleep infinity
`

// node is a machine with Skudonet: mounts, network and processes of its own,
// which all go when its first process does.
type node struct {
	t   *testing.T
	pid string
}

func newNode(t *testing.T) *node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: namespaces")
	}
	cmd := exec.Command("unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child", "/bin/sh", "-c", setup)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // also when a test panics
	cmd.Env = append(os.Environ(), "STAND_IN="+standIn, "SYSTEMCTL="+fakeSystemctl)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Skipf("needs namespaces: %v", err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	ready := make([]byte, 16)
	if n, _ := out.Read(ready); string(ready[:n]) != "ready\n" {
		t.Fatalf("the node does not come up: %s", &errs)
	}
	first, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", cmd.Process.Pid, cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	return &node{t, strings.TrimSpace(string(first))}
}

func (n *node) command(args ...string) *exec.Cmd {
	cmd := exec.Command("nsenter", append([]string{"-t", n.pid, "-m", "-n", "-p", "--"}, args...)...)
	cmd.Env = []string{"PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}
	return cmd
}

func (n *node) sh(script string) string {
	n.t.Helper()
	out, err := n.command("/bin/sh", "-euc", script).CombinedOutput()
	if err != nil {
		n.t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return strings.TrimSpace(string(out))
}

// hooks runs skd-hooks by hand and returns what it prints.
func (n *node) hooks(want int, args ...string) string {
	n.t.Helper()
	return n.finish(want, n.command(append([]string{program, "-c", "/mnt/skudonet-cluster.conf", "--status-file", "/mnt/status"}, args...)...))
}

func (n *node) finish(want int, cmd *exec.Cmd) string {
	n.t.Helper()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &out, &out, deadline
	timer := time.AfterFunc(2*deadline, func() { cmd.Process.Kill() })
	defer timer.Stop()
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || cmd.ProcessState.ExitCode() != want {
		n.t.Errorf("%q: %v, want exit status %d\n%s", cmd.Args[8:], err, want, &out)
	}
	return out.String()
}

// calls returns how Skudonet was called since the last look.
func (n *node) calls() string {
	n.t.Helper()
	return strings.Join(strings.Split(n.sh("cat /run/calls; : > /run/calls"), "\n"), ", ")
}

// daemons returns the names of Skudonet's daemons that run.
func (n *node) daemons() string {
	n.t.Helper()
	return n.sh(`for p in $(cat /run/daemons); do
		[ ! -e /proc/$p ] || grep -q '^State:.Z' /proc/$p/status || cat /proc/$p/comm; done | sort | xargs`)
}

func (n *node) contains(got string, parts ...string) {
	n.t.Helper()
	for _, want := range parts {
		if !strings.Contains(got, want) {
			n.t.Errorf("it says\n%swithout %q", got, want)
		}
	}
}

func (n *node) equal(what, got, want string) {
	n.t.Helper()
	if got != want {
		n.t.Errorf("%s: %q, want %q", what, got, want)
	}
}

// wait waits until script succeeds.
func (n *node) wait(script string) {
	n.t.Helper()
	for end := time.Now().Add(deadline); ; time.Sleep(5 * time.Millisecond) {
		if n.command("/bin/sh", "-c", script).Run() == nil {
			return
		}
		if time.Now().After(end) {
			n.t.Fatalf("never: %s", script)
		}
	}
}

func TestStartAndStop(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.contains(n.hooks(0, "start"), "skudonet: started by /etc/init.d/skudonet start in ", "nftlb (pid ", "pound of farm shop (pid ")
	n.equal("calls", n.calls(), "start, started")
	n.equal("daemons", n.daemons(), "nftlb pound")
	n.contains(n.sh("ip -4 addr show eth0"), "192.168.0.252/24")

	n.contains(n.hooks(0, "start"), "skudonet: is up already: nftlb")
	n.equal("calls when it is up", n.calls(), "")

	n.sh("kill $(tail -1 /run/daemons)")
	n.wait("! grep -qs pound /proc/$(tail -1 /run/daemons)/comm || grep -q '^State:.Z' /proc/$(tail -1 /run/daemons)/status")
	n.contains(n.hooks(0, "start"), "skudonet: started by")
	n.equal("calls when a proxy is gone", n.calls(), "start, started")

	n.sh("ip addr del 192.168.0.252/24 dev eth0")
	n.hooks(0, "start")
	n.equal("calls when an address is gone", n.calls(), "start, started")

	n.contains(n.hooks(0, "stop"), "skudonet: stopped in ")
	n.equal("calls", n.calls(), "stop")
	n.equal("daemons", n.daemons(), "")
	n.contains(n.hooks(0, "stop"), "skudonet: stopped in ")
	n.equal("calls of a second stop", n.calls(), "stop")
}

// Without a farm nothing tells whether Skudonet is up: once more is harmless.
func TestWithoutFarms(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.sh("rm /usr/local/skudonet/config/*.cfg")
	for range 2 {
		n.contains(n.hooks(0, "start"), "no farm is configured that a daemon would run for")
	}
	n.equal("calls", n.calls(), "start, started, start, started")
}

func TestStartThatFails(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.sh("echo FAIL=1 > /run/behave")
	n.contains(n.hooks(1, "start"), "skudonet: /etc/init.d/skudonet start: Cannot open file",
		"skudonet: failed: started by /etc/init.d/skudonet start, but ", "192.168.0.252/24", "is not up",
		"no nftlb runs for farm dns", "no proxy runs for farm shop", "/var/log/syslog")
	n.sh("rm /etc/init.d/skudonet")
	n.contains(n.hooks(1, "start"), "no /etc/init.d/skudonet: is the package skudonet installed?")
	n.contains(n.hooks(0, "stop"), "skudonet: is not installed")
}

func TestStopThatFails(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.hooks(0, "start")
	n.sh("echo STUCK=1 > /run/behave")
	n.contains(n.hooks(1, "stop"), "skudonet: failed: still running after /etc/init.d/skudonet stop: nftlb (pid ", "pound of farm shop (pid ")
}

func TestNoCarrierOnTheClusterInterface(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.sh("ip link set cable0 down")
	n.contains(n.hooks(1, "start"), "skudonet: failed: eth0 has no carrier", "check the cable, then run skd-hooks start")
	n.sh("ip link del eth0")
	n.contains(n.hooks(1, "start"), "skudonet: failed: interface eth0: ")
	n.equal("calls", n.calls(), "")
}

func TestNoCarrierElsewhere(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.sh("ip link set cable1 down; ip link add eth2 type veth peer name cable2; printf '[eth2]\\nstatus=down\\n' > /usr/local/skudonet/config/if_eth2_conf")
	n.contains(n.hooks(0, "start"), "links: set up again, where Skudonet found no carrier: eth1\n")
	n.sh("ip link set cable1 up")
	n.wait("ip link show eth1 | grep -q LOWER_UP")
	n.sh("ip link show eth2 | grep -q 'state DOWN'")
	// Skudonet has set nothing down where it was not started.
	n.sh("ip link set eth1 down")
	n.contains(n.hooks(0, "start"), "is up already")
	n.sh("ip link show eth1 | grep -q 'state DOWN'")
}

func TestSystemd(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	const show = "systemctl show --property=LoadState,ActiveState skudonet.service --no-ask-password, "
	const stop = "stop, " + show + "systemctl stop --no-block skudonet.service --no-ask-password"
	start := func(verb string) string {
		return show + "systemctl " + verb + " skudonet.service --no-ask-password, "
	}
	n.sh("mkdir -p /run/systemd/system")
	// That of systemd, which skd-hooks waits for, but not for long.
	secondStop := func() {
		t.Helper()
		n.wait("test $(grep -c '^stop$' /run/calls) = 2 && ! pgrep -f 'skudonet[ ]stop'")
	}
	n.contains(n.hooks(0, "start"), "started by systemctl start skudonet in ")
	n.equal("first start", n.calls(), start("start")+"start, started")
	n.hooks(0, "stop")
	secondStop()
	n.equal("stop", n.calls(), stop+", stop")
	n.equal("daemons", n.daemons(), "")
	n.hooks(0, "start")
	n.equal("second start", n.calls(), start("start")+"start, started")

	n.sh("/etc/init.d/skudonet stop; : > /run/calls")
	n.contains(n.hooks(0, "start"), "started by systemctl restart skudonet in ")
	n.equal("start behind systemd's back", n.calls(), start("restart")+"stop, start, started")
	n.equal("daemons", n.daemons(), "nftlb pound")

	n.hooks(0, "stop")
	secondStop()
	n.calls()
	n.sh("/etc/init.d/skudonet start >/dev/null 2>&1; : > /run/calls")
	n.contains(n.hooks(0, "start"), "is up already")
	n.hooks(0, "stop")
	n.equal("stop behind systemd's back", n.calls(), stop)
	n.equal("daemons", n.daemons(), "")

	n.sh("echo REFUSE=1 > /run/behave")
	n.contains(n.hooks(1, "start"), "skudonet: failed: systemctl start skudonet: exit status 4: Transaction is destructive.")
	n.sh("echo LOAD=not-found > /run/behave; : > /run/calls")
	n.contains(n.hooks(0, "start"), "started by /etc/init.d/skudonet start")
}

func TestReplicator(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	out := n.hooks(0, "start")
	pid := n.sh("cat /run/skudonet-ce-cluster/inotify.pid")
	n.contains(out, "\nreplicator: started as process "+pid+"\n")
	n.equal("its arguments and time", n.sh("cat /run/replicator"), "--config /mnt/skudonet-cluster.conf "+
		"--run-dir /run/skudonet-ce-cluster --state-dir /var/lib/skudonet-ce-cluster --status-file /mnt/status; calls: start, started")
	n.contains(n.sh("ps -eo pid,args"), pid+" "+shownAs+" --config ")
	n.equal("what it holds", n.sh("readlink /proc/"+pid+"/cwd /proc/"+pid+"/fd/[012] | xargs"), "/ /dev/null /dev/null /dev/null")
	n.contains(n.hooks(0, "start"), "replicator: runs already, as process "+pid)
	n.equal("its lives", n.sh("wc -l < /run/replicator"), "1")

	if out := n.hooks(0, "stop"); !strings.HasPrefix(out, "replicator: stopped\nskudonet: stopped in ") {
		t.Errorf("stop says\n%s", out)
	}
	n.equal("its end", n.sh("tail -n 1 /run/replicator"), "ended; calls: start, started")
	if out := n.hooks(0, "stop"); strings.Contains(out, "replicator") {
		t.Errorf("a second stop says\n%s", out)
	}
}

func TestReplicatorThatFails(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.sh("echo NO_REPLICATOR=1 > /run/behave")
	n.contains(n.hooks(1, "start"), "skudonet: started by", "replicator: failed: started, but not running after 2s; its log says why")
	n.sh("mkdir /usr/local/sbin; cp " + program + " /usr/local/sbin/")
	n.contains(n.finish(1, n.command("/usr/local/sbin/skd-hooks", "-c", "/mnt/skudonet-cluster.conf", "start")),
		"skudonet: is up already", "replicator: failed: no /usr/local/sbin/skd-inotify, so nothing reaches the backup")
	n.finish(0, n.command("/usr/local/sbin/skd-hooks", "stop"))

	n.sh("echo DEAF=1 > /run/behave")
	n.hooks(0, "start")
	pid := n.sh("cat /run/skudonet-ce-cluster/inotify.pid")
	n.contains(n.hooks(0, "stop"), "replicator: stopped\n")
	n.wait("! readlink /proc/" + pid + "/exe")
}

// The pid file of another life, whose number somebody else has got.
func TestReplicatorOfAnotherLife(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	const file = "/run/skudonet-ce-cluster/inotify.pid"
	for _, old := range []string{"1", "99999", "-1", "", "no number"} {
		n.sh("echo '" + old + "' > " + file)
		if out := n.hooks(0, "stop"); strings.Contains(out, "replicator") {
			t.Errorf("stop with pid file %q says\n%s", old, out)
		}
	}
	// Another process of the same program, such as one that serves the peer.
	n.hooks(0, "start")
	other := n.sh("cat " + file)
	local := func(verb string) string {
		return n.finish(0, n.command(program, "-c", "/mnt/skudonet-cluster.conf", "--run-dir", "/mnt", verb))
	}
	for _, old := range []string{"1", other} {
		n.sh("echo " + old + " > /mnt/inotify.pid")
		if out := local("stop"); strings.Contains(out, "replicator") {
			t.Errorf("stop with pid file %q says\n%s", old, out)
		}
		n.sh("echo " + old + " > /mnt/inotify.pid")
		n.contains(local("start"), "replicator: started as process ")
		n.contains(local("stop"), "replicator: stopped")
	}
	n.sh("readlink /proc/" + other + "/exe")

	// An upgrade puts another file in the place of the program.
	n.sh("mkdir /usr/local/sbin; cp " + filepath.Dir(program) + "/skd-* /usr/local/sbin/")
	local = func(verb string) string {
		return n.finish(0, n.command("/usr/local/sbin/skd-hooks", "-c", "/mnt/skudonet-cluster.conf", "--run-dir", "/mnt", verb))
	}
	local("start")
	pid := n.sh("cat /mnt/inotify.pid")
	n.sh("cd /usr/local/sbin; cp skd-inotify new; mv new skd-inotify")
	n.contains(local("start"), "replicator: runs already, as process "+pid)
	n.contains(local("stop"), "replicator: stopped")
	n.wait("! readlink /proc/" + pid + "/exe")
	n.sh("readlink /proc/$(cat " + file + ")/exe") // that of another program
}

func TestReplicatorOfSystemd(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.sh("mkdir -p /run/systemd/system")
	unit := func(command string) {
		n.sh("cat > /run/behave <<'E'\nLOAD=not-found; UNIT='" + command + "'\nE\n: > /run/calls")
	}
	told := func(verb string) {
		t.Helper()
		n.contains(n.calls()+"\n", "systemctl --no-block "+verb+" skdinotify.service")
	}
	unit("start-stop-daemon --start --background --exec " + filepath.Dir(program) + "/skd-inotify -- --run-dir /run/skudonet-ce-cluster")
	n.contains(n.hooks(0, "start"), "replicator: started as process ")
	told("start")
	const file = "/run/skudonet-ce-cluster/skdinotify.env"
	n.equal("its environment", n.sh("cat "+file), `SKD_CONFIG="/mnt/skudonet-cluster.conf"
SKD_RUN_DIR="/run/skudonet-ce-cluster"
SKD_STATE_DIR="/var/lib/skudonet-ce-cluster"
SKD_STATUS_FILE="/mnt/status"`)
	n.equal("that file's mode", n.sh("stat -c %a "+file), "644")
	n.equal("its arguments", n.sh("cut -d';' -f1 /run/replicator"), "--run-dir /run/skudonet-ce-cluster")
	n.contains(n.hooks(0, "start"), "replicator: runs already")
	n.contains(n.hooks(0, "stop"), "replicator: stopped\n")
	told("stop")
	n.hooks(0, "stop")
	told("stop") // A start may be waiting there.

	unit(":")
	n.contains(n.hooks(0, "start"), "replicator: systemd starts it later; see systemctl status skdinotify.service\n")
	n.sh("echo UNIT_FAILED=1 >> /run/behave")
	n.contains(n.hooks(1, "start"), "replicator: failed: started, but not running after 2s")
	n.sh("echo REFUSE=1 >> /run/behave")
	n.contains(n.hooks(1, "start"), "replicator: failed: systemctl: exit status 4: Transaction is destructive.")
}

func TestQuote(t *testing.T) {
	for text, want := range map[string]string{
		"":                     `""`,
		"/etc/skd.conf":        `"/etc/skd.conf"`,
		"/a b/ü'#;=%n\t":       "\"/a b/ü'#;=%n\t\"",
		"/a\"b\\c$d`e`":        "\"/a\\\"b\\\\c\\$d\\`e\\`\"",
		"/two\nSKD_RUN_DIR=/x": "\"/two\nSKD_RUN_DIR=/x\"",
	} {
		if got, err := quote(text); err != nil || got != want {
			t.Errorf("%q: %s, %v; want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"/a\rb", "/\x1b[31m", "/\x7f", "/\xff", "/caf\xe9"} {
		if got, err := quote(text); err == nil {
			t.Errorf("%q is quoted as %s, but systemd refuses it", text, got)
		}
	}
}

// A start hook that is ended in the middle of a start, and the stop hook of the
// demotion behind it.
func TestStopDuringAStart(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.sh("echo SLOW=3 > /run/behave")
	start := n.command(program, "-c", "/mnt/skudonet-cluster.conf", "--status-file", "/mnt/status", "start")
	var out bytes.Buffer
	start.Stdout, start.Stderr = &out, &out
	if err := start.Start(); err != nil {
		t.Fatal(err)
	}
	n.wait("grep -q start /run/calls")
	n.sh("kill $(pidof skd-hooks)")
	start.Wait()
	n.contains(out.String(), "interrupted; /etc/init.d/skudonet start goes on by itself")
	n.contains(n.hooks(0, "stop"), "another start or stop of Skudonet is under way", "skudonet: stopped in ")
	n.equal("calls", n.calls(), "start, started, stop")
	n.equal("daemons", n.daemons(), "")
}

func TestStopDuringAStartThatHangs(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.sh("echo HANG=600 > /run/behave; setsid /etc/init.d/skudonet start >/dev/null 2>&1 &")
	n.wait("test $(wc -l < /run/daemons) = 2")
	n.contains(n.hooks(0, "stop"), "is at it for more than 15s: sending SIGTERM")
	n.equal("calls", n.calls(), "start, stop")
	n.equal("daemons", n.daemons(), "")
}

func TestOneAtATime(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.sh("echo SLOW=3 > /run/behave")
	results := make(chan string, 2)
	for range 2 {
		go func() { results <- n.hooks(0, "start") }()
	}
	n.contains(<-results+<-results, "another skd-hooks is at work; waiting for it", "started by", "is up already")
	n.equal("calls", n.calls(), "start, started")
}

func TestConfigurationThatIsWrong(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.sh(`sed -i 's/^.cluster_id.*/$cluster_id="300";/; /^.local_ip/d' /mnt/skudonet-cluster.conf`)
	n.contains(n.hooks(2, "start"), `skudonet-cluster.conf:4: $cluster_id: "300": want 1 to 255`, "$local_ip")
	n.hooks(2, "-c", "/none", "start")
	n.equal("calls", n.calls(), "")
	n.contains(n.hooks(0, "stop"), "skudonet: stopped in ")
	n.calls()
	// The daemon goes on with what it has read.
	cmd := n.command(program, "start")
	cmd.Env = append(cmd.Env, hook.Environment{Interface: "eth0", ClusterIP: netip.MustParseAddr("192.168.0.252"),
		Config: "/mnt/skudonet-cluster.conf", ConfigDir: "/usr/local/skudonet/config", StatusFile: "/mnt/status"}.For(hook.Start)[1:]...)
	n.contains(n.finish(0, cmd), "skudonet: started by ")
	n.equal("calls", n.calls(), "start, started")
}

// The admin's scripts as they are shipped, as the daemon runs them.
func TestHookScripts(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.sh("echo master > /mnt/status")
	run := func(k hook.Kind) string {
		t.Helper()
		script, err := filepath.Abs("../hooks/skudonet-ce-cluster-" + k.String())
		if err != nil {
			t.Fatal(err)
		}
		cmd := n.command(script)
		cmd.Env = hook.Environment{Programs: filepath.Dir(program), Interface: "eth0", ClusterIP: netip.MustParseAddr("192.168.0.252"),
			Config: "/mnt/skudonet-cluster.conf", ConfigDir: "/usr/local/skudonet/config", StatusFile: "/mnt/status"}.For(k)
		return n.finish(0, cmd)
	}
	n.contains(run(hook.Start), "skudonet: started by /etc/init.d/skudonet start")
	n.contains(run(hook.Advertisement), "announced 1 of 1 addresses")
	n.contains(run(hook.Stop), "skudonet: stopped in ")
	n.equal("calls", n.calls(), "start, started, stop")

	if _, err := exec.LookPath("shellcheck"); err != nil {
		t.Skip("shellcheck is not installed")
	}
	scripts, _ := filepath.Glob("../hooks/*")
	if out, err := exec.Command("shellcheck", scripts...).CombinedOutput(); err != nil || len(scripts) != 3 {
		t.Errorf("%d scripts: %v\n%s", len(scripts), err, out)
	}
}

func TestUsage(t *testing.T) {
	for _, tc := range []struct {
		args string
		want int
		says string
	}{
		{"", 2, "want a command"},
		{"restart", 2, `unknown command "restart"`},
		{"start now", 2, `start: "now": want no argument`},
		{"--bogus", 2, "skd-hooks: flag provided but not defined: -bogus"},
		{"start --bogus", 2, "skd-hooks: flag provided but not defined: -bogus"},
		{"--version", 0, "skd-hooks version "},
		{"--help", 0, "Exit status: 0 done, 1 a step failed, 2 usage or configuration."},
		{"status --help", 0, "--json"},
	} {
		out, err := exec.Command(program, strings.Fields(tc.args)...).CombinedOutput()
		var exit *exec.ExitError
		code := 0
		if errors.As(err, &exit) {
			code = exit.ExitCode()
		}
		if code != tc.want || !strings.Contains(string(out), tc.says) || strings.Count(string(out), "\n") > 40 {
			t.Errorf("skd-hooks %s: exit status %d, want %d, and %q:\n%s", tc.args, code, tc.want, tc.says, out)
		}
	}
}

func TestStatus(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "status")
	run := func(want int, args ...string) []byte {
		t.Helper()
		cmd := exec.Command(program, append([]string{"--status-file", file, "--run-dir", dir}, args...)...)
		out, _ := cmd.CombinedOutput()
		if got := cmd.ProcessState.ExitCode(); got != want {
			t.Errorf("%q: exit status %d, want %d\n%s", args, got, want, out)
		}
		return out
	}
	if out := run(3, "status"); !strings.Contains(string(out), "stopped") {
		t.Errorf("stopped: %s", out)
	}
	status.Write(file, status.Backup)
	d := status.Daemon{PID: os.Getpid(), Updated: status.Now(), State: status.Backup, Since: status.Now(), Reason: "started",
		Peer: status.Peer{Address: "192.168.0.251"}}
	d.WriteFile(filepath.Join(dir, status.DaemonFile))
	if out := run(0, "status"); !strings.Contains(string(out), "backup since") || !strings.Contains(string(out), "because") {
		t.Errorf("backup: %s", out)
	}
	var r struct {
		State, Health string
		Daemon        struct{ Reason string }
	}
	if err := json.Unmarshal(run(0, "status", "--json"), &r); err != nil || r.State != "backup" || r.Health != "healthy" || r.Daemon.Reason != "started" {
		t.Errorf("%+v, %v", r, err)
	}
	// The places may be given before the command or behind it.
	run(3, "status", "--status-file", filepath.Join(dir, "none"), "--run-dir", dir+"/none")
	status.Remove(file)
	run(1, "status")
}

func TestAdvertisement(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.contains(n.hooks(0, "advertisement"), "this node is stopped: nothing to announce")
	n.sh("echo backup > /mnt/status")
	n.contains(n.hooks(0, "advertisement"), "this node is backup: nothing to announce")
	n.sh("echo master > /mnt/status")
	n.contains(n.hooks(1, "advertisement"), "announced 0 of 1 addresses", "192.168.0.252/24 on eth0", "not announced, because it is not up")

	n.sh("ip addr add 192.168.0.252/24 dev eth0 noprefixroute")
	frames := n.listen("cable0")
	n.contains(n.hooks(0, "advertisement"), "announced 1 of 1 addresses")
	mac, err := net.ParseMAC(n.sh(`ip -o link show eth0 | sed 's/.*ether \([^ ]*\).*/\1/'`))
	if err != nil {
		t.Fatal(err)
	}
	for _, op := range []byte{1, 2} { // request and reply
		f := frames(op)
		if !bytes.Equal(f[6:12], mac) || !bytes.Equal(f[28:32], []byte{192, 168, 0, 252}) || !bytes.Equal(f[28:32], f[38:42]) {
			t.Errorf("ARP with operation %d: % x", op, f)
		}
	}
}

// listen returns a function that waits for an ARP frame with an operation.
func (n *node) listen(link string) func(op byte) []byte {
	n.t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	here, err := netns.Get()
	if err != nil {
		n.t.Fatal(err)
	}
	defer here.Close()
	pid, _ := strconv.Atoi(n.pid)
	there, err := netns.GetFromPid(pid)
	if err != nil {
		n.t.Fatal(err)
	}
	defer there.Close()
	if err := netns.Set(there); err != nil {
		n.t.Fatal(err)
	}
	defer netns.Set(here)
	ifi, err := net.InterfaceByName(link)
	if err != nil {
		n.t.Fatal(err)
	}
	const arp = unix.ETH_P_ARP>>8 | unix.ETH_P_ARP&0xff<<8
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, arp)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: arp, Ifindex: ifi.Index})
	}
	if err == nil {
		err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10})
	}
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { unix.Close(fd) })
	return func(op byte) []byte {
		n.t.Helper()
		for b := make([]byte, 1500); ; {
			size, _, err := unix.Recvfrom(fd, b, 0)
			if err == unix.EINTR { // despite SA_RESTART, because of SO_RCVTIMEO
				continue
			}
			if err != nil {
				n.t.Fatalf("no ARP with operation %d: %v", op, err)
			}
			if size >= 42 && b[21] == op {
				return b[:size]
			}
		}
	}
}
