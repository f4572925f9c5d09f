// Skd-inotify mirrors the configuration of the master of a pair of load
// balancers to the backup.
package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/cmdline"
	"github.com/skudonet/skudonet-ce-cluster/lib/conf"
	"github.com/skudonet/skudonet-ce-cluster/lib/control"
	"github.com/skudonet/skudonet-ce-cluster/lib/peer"
	"github.com/skudonet/skudonet-ce-cluster/lib/rsync"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
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
		UsageText:   "skd-inotify [-c FILE] [-n] [options]\nskd-inotify [options] status|sync|peer",
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
			command("sync", "compare everything now, and wait until both nodes have the same", synchronize),
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
	ctx, stop := signal.NotifyContext(c.Context, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	terminal := isTerminal(os.Stdout)
	last, err := control.Do(ctx, filepath.Join(cmdline.Option(c, "run-dir"), control.SocketName), control.Request{Command: "sync"}, func(r control.Reply) {
		if terminal {
			fmt.Printf("\r\033[K%s", r.Text)
		}
	})
	if terminal {
		fmt.Print("\r\033[K")
	}
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		word, _ := status.Read(cmdline.Option(c, "status-file"))
		switch word {
		case status.Master:
			return errors.New("skd-inotify: not running, although this node is master: skd-hooks start")
		case status.Backup:
			return errors.New("skd-inotify: this node is backup; run this on the master")
		}
		return errors.New("skd-inotify: not running, because the cluster service is stopped")
	case errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("skd-inotify: the daemon ended meanwhile; see its log")
	case err != nil:
		return fmt.Errorf("skd-inotify: %w", err)
	case last.Exit != 0:
		return cli.Exit("skd-inotify: "+last.Text, last.Exit)
	}
	fmt.Println(last.Text)
	return nil
}

// answer serves the master on standard input and output.
func answer(c *cli.Context) error {
	return peer.Serve(c.Context, os.Stdin, os.Stdout, peer.Host{
		ConfigPath: cmdline.Option(c, "config"), StatusFile: cmdline.Option(c, "status-file"), RunDir: cmdline.Option(c, "run-dir"),
	})
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
