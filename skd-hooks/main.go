// Skd-hooks is what the three hook scripts of a cluster node call: it starts and
// stops what a master runs, announces its addresses, and tells how the node is.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/urfave/cli/v2"

	"github.com/skudonet/skudonet-ce-cluster/lib/conf"
	"github.com/skudonet/skudonet-ce-cluster/lib/hook"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
	"github.com/skudonet/skudonet-ce-cluster/lib/version"
)

const (
	exitFailed = 1
	exitUsage  = 2 // also a wrong configuration
)

const description = `Every step of start and stop may be repeated. One that fails is reported, and
the others still run. Run by skd-vrrpd, the SKD_ variables of its environment
say where to look; by hand, the options and the configuration do.

Exit status: 0 done, 1 a step failed, 2 usage or configuration.
Of status: 0 running well, 1 something is wrong, 3 stopped.`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	err := app().RunContext(ctx, os.Args)
	if err == nil {
		return
	}
	if text := err.Error(); text != "" {
		fmt.Fprintln(os.Stderr, text)
	}
	var coded cli.ExitCoder
	if errors.As(err, &coded) {
		os.Exit(coded.ExitCode())
	}
	os.Exit(exitFailed)
}

func app() *cli.App {
	// The places may stand before the command and behind it.
	places := func(env bool) []cli.Flag {
		vars := func(name string) []string {
			if env {
				return []string{name}
			}
			return nil
		}
		return []cli.Flag{
			&cli.StringFlag{Name: "config", Aliases: []string{"c"}, Value: conf.DefaultPath, Usage: "configuration `FILE`", EnvVars: vars(hook.EnvConfig)},
			&cli.StringFlag{Name: "status-file", Value: status.StatusFile, Usage: "`FILE` that says master or backup", EnvVars: vars(hook.EnvStatusFile)},
			&cli.StringFlag{Name: "run-dir", Value: status.RunDir, Usage: "`DIR` for what a reboot may forget", EnvVars: vars(hook.EnvRunDir)},
			&cli.StringFlag{Name: "state-dir", Value: status.StateDir, Usage: "`DIR` for what a reboot must not forget", EnvVars: vars(hook.EnvStateDir)},
		}
	}
	usage := func(_ *cli.Context, err error, _ bool) error { return usage(err) }
	command := func(name, text string, run func(*cli.Context) error, flags ...cli.Flag) *cli.Command {
		return &cli.Command{Name: name, Usage: text, Flags: append(places(false), flags...), OnUsageError: usage, HideHelpCommand: true,
			Action: func(c *cli.Context) error {
				if c.Args().Present() {
					return usage(c, fmt.Errorf("%s: %q: want no argument", name, c.Args().First()), true)
				}
				return run(c)
			}}
	}
	return &cli.App{
		Name: "skd-hooks", HelpName: "skd-hooks", Usage: "the slow part of a promotion or demotion in a Skudonet CE cluster",
		UsageText: "skd-hooks [options] start|stop|advertisement|status", Description: description, Version: version.Version,
		HideHelpCommand: true, Flags: places(true), OnUsageError: usage, ExitErrHandler: func(*cli.Context, error) {},
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return usage(c, fmt.Errorf("unknown command %q; see skd-hooks --help", c.Args().First()), false)
			}
			return usage(c, errors.New("want a command: start, stop, advertisement or status; see skd-hooks --help"), false)
		},
		Commands: []*cli.Command{
			command("start", "start Skudonet and the replicator, as a master does", func(c *cli.Context) error { return transition(c, startSteps) }),
			command("stop", "stop the replicator and Skudonet, as a backup does", func(c *cli.Context) error { return transition(c, stopSteps) }),
			command("advertisement", "send gratuitous ARP for every virtual address, on a master", announce),
			command("status", "say what the node is, since when and why, and what is wrong", report,
				&cli.BoolFlag{Name: "json", Usage: "as JSON"}),
		},
	}
}

func usage(err error) error { return cli.Exit(fmt.Errorf("skd-hooks: %w", err), exitUsage) }

// option is the value of a flag that may stand before the command or behind it.
func option(c *cli.Context, name string) string {
	for _, level := range c.Lineage() {
		if level.Command != nil && slices.Contains(level.LocalFlagNames(), name) {
			return level.String(name)
		}
	}
	return c.String(name)
}

// cluster is what start, stop and advertisement need to know of it.
type cluster struct {
	iface string
	ip    netip.Addr
	tree  string // Skudonet's configuration tree
}

// load asks the environment when the daemon runs us: it knows what it works
// with, and a file that is being edited must not cost a new master its farms.
func load(c *cli.Context) (cluster, error) {
	ip, err := netip.ParseAddr(os.Getenv(hook.EnvClusterIP))
	iface, tree := os.Getenv(hook.EnvInterface), os.Getenv(hook.EnvConfigDir)
	if err == nil && iface != "" && tree != "" && option(c, "config") == os.Getenv(hook.EnvConfig) {
		return cluster{iface, ip, tree}, nil
	}
	cfg, _, err := conf.Load(option(c, "config"))
	if err != nil {
		return cluster{}, cli.Exit(err, exitUsage)
	}
	return cluster{cfg.Interface, cfg.ClusterIP, cfg.ConfigDir}, nil
}

// report prints what the files say about the node.
func report(c *cli.Context) error {
	r := status.Inspect(option(c, "status-file"), option(c, "run-dir"))
	err := error(nil)
	if c.Bool("json") {
		out := json.NewEncoder(os.Stdout)
		out.SetIndent("", "  ")
		err = out.Encode(r)
	} else {
		err = r.WriteText(os.Stdout)
	}
	if err != nil {
		return err
	}
	return cli.Exit("", int(r.Health))
}
