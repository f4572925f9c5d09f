// Skd-vrrpd elects the master of a pair of load balancers and moves the virtual
// addresses.
package main

import (
	"fmt"
	"os"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/cmdline"
	"github.com/skudonet/skudonet-ce-cluster/lib/conf"
	"github.com/skudonet/skudonet-ce-cluster/lib/link"
	"github.com/skudonet/skudonet-ce-cluster/lib/node"
	"github.com/skudonet/skudonet-ce-cluster/lib/version"
)

const program = "skd-vrrpd"

const description = `Runs in the foreground. Signals: TERM leaves gracefully, USR1 writes the state
to the log and the run directory, USR2 hands over to the peer, HUP executes
the program anew, which keeps its state (a master stays master).

Exit status: 0 done, 1 failed, 2 usage or configuration.`

func main() {
	// No core file and no /proc/PID/mem of a process that holds a password.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, "skd-vrrpd: cannot keep the password out of core files:", err)
		os.Exit(cmdline.Failed)
	}
	app := &cli.App{
		Name: program, HelpName: program, Usage: "elects the master of a Skudonet CE cluster (VRRPv3, signed)",
		UsageText: "skd-vrrpd [-c FILE] [-n] [options]\nskd-vrrpd [-c FILE] [options] forget-peer", Description: description, Version: version.Version,
		HideHelpCommand: true,
		Flags: append(cmdline.Places(cmdline.NoEnv),
			&cli.BoolFlag{Name: "check", Aliases: []string{"n"}, Usage: "check the configuration and exit: 0 right, 2 wrong"}),
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return cmdline.UsageError(program, fmt.Errorf("unknown command %q; see skd-vrrpd --help", c.Args().First()))
			}
			if c.Bool("check") {
				return check(c.String("config"))
			}
			return serve(c.String("config"), places(c))
		},
		Commands: []*cli.Command{{
			Name: "forget-peer", Usage: "hear a peer again that lost its state while its clock is behind",
			HideHelpCommand: true, OnUsageError: cmdline.OnUsageError(program),
			Action: func(c *cli.Context) error {
				if c.Args().Present() {
					return cmdline.UsageError(program, fmt.Errorf("forget-peer: %q: want no argument", c.Args().First()))
				}
				return forgetPeer(places(c))
			},
		}},
		OnUsageError: cmdline.OnUsageError(program), ExitErrHandler: cmdline.KeepErrors,
	}
	cmdline.End(app.Run(os.Args))
}

func places(c *cli.Context) node.Places {
	return node.Places{StatusFile: c.String("status-file"), RunDir: c.String("run-dir"), StateDir: c.String("state-dir")}
}

// check reads the configuration as the daemon would, and asks this host whether
// it fits.
func check(path string) error {
	c, notices, err := conf.Load(path)
	for _, n := range notices {
		fmt.Fprintln(os.Stderr, n)
	}
	if err == nil {
		err = c.CheckHost(link.Addresses)
	}
	if err != nil {
		return cli.Exit(err, cmdline.Usage)
	}
	fmt.Println(path + ": the configuration is right")
	return nil
}
