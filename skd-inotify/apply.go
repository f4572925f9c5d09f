package main

import (
	"os/exec"
	"strings"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/smallfile"
	"github.com/skudonet/skudonet-ce-cluster/lib/tail"
)

// giveUp is how long a new master waits for the first comparison with its peer.
// One that starts later than this is taken for one that was cut off.
const giveUp = time.Minute

// machine is what systemd calls this system; empty where there is no such file.
func machine() string {
	b, err := smallfile.Read("/etc/machine-id", 4096)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// apply has Skudonet apply a configuration that was replaced under it. Nothing waits
// for that: it takes seconds, and whoever stops this program may have to be
// through first.
func (d *service) apply(why string) {
	d.log.Info("Skudonet is started again, because " + why)
	go func() {
		said := tail.New(4096)
		cmd := exec.Command("skd-hooks", "-c", d.config, "--status-file", d.statusFile, "--run-dir", d.runDir, "--state-dir", d.stateDir, "apply")
		cmd.Stdout, cmd.Stderr = said, said
		if err := cmd.Run(); err != nil {
			d.log.Error("Skudonet could not be started again: "+said.LastLine(), "why", err, "remedy", "skd-hooks apply")
			return
		}
		d.log.Info("Skudonet has the configuration that was replaced")
	}()
}
