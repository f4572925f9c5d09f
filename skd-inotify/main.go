// Skd-inotify mirrors the configuration of the master of a pair of load
// balancers to the backup.
package main

import (
	"fmt"
	"os"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/cmdline"
	"github.com/skudonet/skudonet-ce-cluster/lib/conf"
	"github.com/skudonet/skudonet-ce-cluster/lib/control"
	"github.com/skudonet/skudonet-ce-cluster/lib/peer"
	"github.com/skudonet/skudonet-ce-cluster/lib/rsync"
	"github.com/skudonet/skudonet-ce-cluster/lib/skudonet"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
	"github.com/skudonet/skudonet-ce-cluster/lib/syslog"
	"github.com/skudonet/skudonet-ce-cluster/lib/version"
)

const program = "skd-inotify"

const description = `Runs in the foreground, and only while the status file says master. Signals:
TERM ends it, HUP opens the log anew.

Exit status: 0 done, 1 failed, 2 usage or configuration.
Of status: 0 running well, 1 something is wrong, 3 not running.`

func main() {
	// What rsync calls for each transfer has no time for more.
	if len(os.Args) > 1 && os.Args[1] == "rsh" {
		os.Exit(rsync.Rsh(os.Args[2:]))
	}
	cmdline.End(app().Run(os.Args))
}

func app() *cli.App {
	command := func(name, text string, run func(*cli.Context) error, flags ...cli.Flag) *cli.Command {
		return cmdline.Command(program, name, text, run, flags...)
	}
	return &cli.App{
		Name: program, HelpName: program, Usage: "mirrors the configuration of a Skudonet CE cluster's master to the backup",
		UsageText:   "skd-inotify [-c FILE] [-n] [options]\nskd-inotify [options] status|sync|history|restore|resolve|peer",
		Description: description, Version: version.Version, HideHelpCommand: true,
		Flags:        append(cmdline.Places(cmdline.DaemonEnv), &cli.BoolFlag{Name: "check", Aliases: []string{"n"}, Usage: "check the configuration and exit: 0 right, 2 wrong"}),
		OnUsageError: cmdline.OnUsageError(program), ExitErrHandler: cmdline.KeepErrors,
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return cmdline.UsageError(program, fmt.Errorf("unknown command %q; see skd-inotify --help", c.Args().First()))
			}
			if c.Bool("check") {
				return check(c.String("config"))
			}
			return serve(c)
		},
		Commands: []*cli.Command{
			command("status", "say whether the backup has the same, or how far it is behind", report, cmdline.JSON()),
			command("sync", "compare everything now, and wait until both nodes have the same", synchronize,
				&cli.BoolFlag{Name: "confirm", Usage: "send also what was held back until you say that you want it: see status"}),
			historyCommand(),
			withArguments(command("restore", "bring back files that were replaced, on the master", restore), restore, "TIME [FILE...]"),
			withArguments(command("resolve", "end a conflict: keep ours, or bring theirs back, on the master", resolve), resolve, "ours|theirs [TIME]"),
			command("peer", "answer the master; started by it through ssh", answer),
		},
	}
}

// check reads the configuration as the replicator would.
func check(path string) error {
	c, notices, err := conf.Load(path)
	for _, n := range notices {
		fmt.Fprintln(os.Stderr, n)
	}
	if err != nil {
		return cli.Exit(err, cmdline.Usage)
	}
	_, said, err := readRules(c)
	for _, text := range said {
		fmt.Fprintln(os.Stderr, text)
	}
	if err != nil {
		return cli.Exit(err, cmdline.Usage)
	}
	fmt.Println(path + ": the configuration is right")
	return nil
}

// report prints what the files say about replication.
func report(c *cli.Context) error {
	r := status.InspectReplication(cmdline.Option(c, "status-file"), cmdline.Option(c, "run-dir"))
	return cmdline.Show(c, r, int(r.Health))
}

// synchronize has the daemon compare everything.
func synchronize(c *cli.Context) error {
	r := control.Request{Command: "sync"}
	if c.Bool("confirm") {
		r.Args = []string{confirmArg}
	}
	terminal := isTerminal(os.Stdout)
	text, err := ask(c, r, func(words string) {
		if terminal {
			fmt.Printf("\r\033[K%s", words)
		}
	})
	if terminal {
		fmt.Print("\r\033[K")
	}
	if err != nil {
		return err
	}
	fmt.Println(text)
	return nil
}

// answer serves the master on standard input and output.
func answer(c *cli.Context) error {
	sink := syslog.Open(program)
	defer sink.Flush(time.Second)
	log := sink.Logger()
	return peer.Serve(c.Context, os.Stdin, os.Stdout, peer.Host{
		ConfigPath: cmdline.Option(c, "config"), StatusFile: cmdline.Option(c, "status-file"), RunDir: cmdline.Option(c, "run-dir"),
		StateDir: cmdline.Option(c, "state-dir"), Machine: machine(), Skudonet: func() string { return skudonet.Version(c.Context) },
		Log: func(text string) { log.Info(text) },
	})
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
