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
		Name: program, HelpName: program, Usage: "elects the master of a Skudonet CE cluster (VRRPv3, signed; CARP beside ucarp)",
		UsageText: "skd-vrrpd [-c FILE] [-n] [options]\nskd-vrrpd [-c FILE] [options] pid|handover|guard|clean|forget-peer", Description: description, Version: version.Version,
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
		Commands: []*cli.Command{
			command("pid", "print the process number of the running daemon: 0 it runs, 1 it is dead, 3 it is stopped", printPID),
			command("handover", "hand over to the peer, and say how it went", handOver),
			command("guard", "keep this node silent from boot until a daemon runs", func(c *cli.Context) error { return logged(c, raiseGuard) }),
			command("clean", "do away with what a daemon has left that ended for good", func(c *cli.Context) error { return logged(c, clean) },
				&cli.BoolFlag{Name: "failed", Usage: "the guard stays, because the service will be mended", DisableDefaultText: true},
				&cli.BoolFlag{Name: "disabled", Usage: "the guard goes, because this node is none of the cluster any more", DisableDefaultText: true}),
			command("forget-peer", "hear a peer again that lost its state while its clock is behind, or that runs version 2.0 again", func(c *cli.Context) error { return forgetPeer(places(c)) }),
		},
		OnUsageError: cmdline.OnUsageError(program), ExitErrHandler: cmdline.KeepErrors,
	}
	cmdline.End(app.Run(os.Args))
}

// command is one without arguments. The options that say where things are stand before it.
func command(name, text string, run cli.ActionFunc, flags ...cli.Flag) *cli.Command {
	return &cli.Command{
		Name: name, Usage: text, Flags: flags, HideHelpCommand: true, OnUsageError: cmdline.OnUsageError(program),
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return cmdline.UsageError(program, fmt.Errorf("%s: %q: want no argument", name, c.Args().First()))
			}
			return run(c)
		},
	}
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
