// Command node is one end of replication in a directory of its own: what
// skd-inotify is on a machine, with a unix socket in the place of ssh. The history
// test starts and kills it.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/skudonet/skudonet-ce-cluster/lib/peer"
	"github.com/skudonet/skudonet-ce-cluster/lib/rsync"
)

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "want: node master DIR, node peer DIR, or node rsh ARGS")
		os.Exit(2)
	}
	var err error
	switch dir := os.Args[2]; os.Args[1] {
	case "rsh":
		os.Exit(rsync.Rsh(os.Args[2:]))
	case "peer":
		err = answer(dir)
	case "master":
		err = reign(dir)
	default:
		err = fmt.Errorf("unknown: %s", os.Args[1])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// Names in a node's directory.
const (
	confName   = "skudonet-cluster.conf"
	statusName = "status"
	runName    = "run"
	stateName  = "state"
	wireName   = "wire" // the socket that leads to the other node
)

// answer serves the master on standard input and output.
func answer(dir string) error {
	return peer.Serve(context.Background(), os.Stdin, os.Stdout, peer.Host{
		ConfigPath: filepath.Join(dir, confName), StatusFile: filepath.Join(dir, statusName),
		RunDir: filepath.Join(dir, runName), StateDir: filepath.Join(dir, stateName), Machine: filepath.Base(dir),
		Log: func(text string) { fmt.Fprintln(os.Stderr, "peer:", text) },
	})
}
