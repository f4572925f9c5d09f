// Skd-vrrpd elects the master of a pair of load balancers and moves the virtual
// addresses.
package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/conf"
	"github.com/skudonet/skudonet-ce-cluster/lib/link"
	"github.com/skudonet/skudonet-ce-cluster/lib/node"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
	"github.com/skudonet/skudonet-ce-cluster/lib/version"
)

const (
	exitFailed = 1
	exitUsage  = 2 // also a wrong configuration
)

const description = `Runs in the foreground. Signals: TERM leaves gracefully, USR1 writes the state
to the log and the run directory, USR2 hands over to the peer, HUP executes
the program anew, which keeps its state (a master stays master).

Exit status: 0 done, 1 failed, 2 usage or configuration.`

func main() {
	// No core file and no /proc/PID/mem of a process that holds a password.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, "skd-vrrpd: cannot keep the password out of core files:", err)
		os.Exit(exitFailed)
	}
	app := &cli.App{
		Name: "skd-vrrpd", HelpName: "skd-vrrpd", Usage: "elects the master of a Skudonet CE cluster (VRRPv3, signed)",
		UsageText: "skd-vrrpd [-c FILE] [-n] [options]\nskd-vrrpd [-c FILE] [options] forget-peer", Description: description, Version: version.Version,
		HideHelpCommand: true,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "config", Aliases: []string{"c"}, Value: conf.DefaultPath, Usage: "configuration `FILE`"},
			&cli.BoolFlag{Name: "check", Aliases: []string{"n"}, Usage: "check the configuration and exit: 0 right, 2 wrong"},
			&cli.StringFlag{Name: "status-file", Value: status.StatusFile, Usage: "`FILE` that says master or backup"},
			&cli.StringFlag{Name: "run-dir", Value: status.RunDir, Usage: "`DIR` for what a reboot may forget"},
			&cli.StringFlag{Name: "state-dir", Value: status.StateDir, Usage: "`DIR` for what a reboot must not forget"},
		},
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return usage(fmt.Errorf("unknown command %q; see skd-vrrpd --help", c.Args().First()))
			}
			if c.Bool("check") {
				return check(c.String("config"))
			}
			return serve(c.String("config"), places(c))
		},
		Commands: []*cli.Command{{
			Name: "forget-peer", Usage: "hear a peer again that lost its state while its clock is behind",
			HideHelpCommand: true, OnUsageError: onUsageError,
			Action: func(c *cli.Context) error {
				if c.Args().Present() {
					return usage(fmt.Errorf("forget-peer: %q: want no argument", c.Args().First()))
				}
				return forgetPeer(places(c))
			},
		}},
		OnUsageError: onUsageError, ExitErrHandler: func(*cli.Context, error) {},
	}
	err := app.Run(os.Args)
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, err)
	var coded cli.ExitCoder
	if errors.As(err, &coded) {
		os.Exit(coded.ExitCode())
	}
	os.Exit(exitFailed)
}

func usage(err error) error { return cli.Exit(fmt.Errorf("skd-vrrpd: %w", err), exitUsage) }

func onUsageError(_ *cli.Context, err error, _ bool) error { return usage(err) }

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
		return cli.Exit(err, exitUsage)
	}
	fmt.Println(path + ": the configuration is right")
	return nil
}
