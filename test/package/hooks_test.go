package installed

import (
	"os/exec"
	"strings"
	"testing"
)

// The tests of lib/hook that need a systemd, in a node: with the bus, and without it, as late in a shutdown.
func TestHooksAsServices(t *testing.T) {
	b := boot(t, "--no-install")
	build := exec.Command("go", "test", "-c", "-o", b.root[lb1]+"/root/hook.test", "../../lib/hook")
	build.Env = append(build.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go test -c: %v\n%s", err, out)
	}
	for _, bus := range []string{"start", "stop"} {
		b.run(lb1, "systemctl "+bus+" dbus.socket dbus.service")
		out := b.run(lb1, "cd /root && ./hook.test -test.v -test.timeout=100s")
		if strings.Contains(out, "needs systemd") {
			t.Errorf("a test did not see the node's systemd:\n%s", out)
		}
	}
}
