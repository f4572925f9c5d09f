package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/systemd"
)

// leaveReplicator moves this process out of the replicator's service, if it was
// started there, into a scope of its own. The replicator ends when the node is
// demoted, and systemd then ends all that is in its service: also a stop of
// Skudonet, in the middle of a file that it rewrites in place. Where that does
// not succeed we go on as we are.
func leaveReplicator(ctx context.Context) {
	if !systemd.Booted() || !inUnit(ownGroups(), replicatorUnit) {
		return
	}
	const limit, pause = 2 * time.Second, 10 * time.Millisecond
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	pid := strconv.Itoa(os.Getpid())
	err := command(ctx, "busctl", "--quiet", "call", "org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager",
		"StartTransientUnit", "ssa(sv)a(sa(sv))", "skudonet-ce-cluster-apply-"+pid+".scope", "fail", "4",
		"PIDs", "au", "1", pid,
		"Description", "s", "Skudonet CE Cluster: Skudonet is restarted for another configuration",
		"DefaultDependencies", "b", "false", // so that a shutdown leaves it alone, too
		"CollectMode", "s", "inactive-or-failed",
		"0")
	for err == nil && inUnit(ownGroups(), replicatorUnit) {
		select {
		case <-time.After(pause): // the job is queued
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	if err != nil {
		fmt.Printf("still in %s, which may end before this does: %v\n", replicatorUnit, err)
	}
}

// ownGroups is the text of cgroups(7) about this process.
func ownGroups() string {
	b, _ := os.ReadFile("/proc/self/cgroup")
	return string(b)
}

// inUnit tells whether that text says that a process is in a unit of systemd's:
// in the one hierarchy, or in systemd's own of older layouts.
func inUnit(groups, unit string) bool {
	for line := range strings.Lines(groups) {
		_, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		controllers, path, _ := strings.Cut(rest, ":")
		if (controllers == "" || controllers == "name=systemd") && strings.HasSuffix(path, "/"+unit) {
			return true
		}
	}
	return false
}
