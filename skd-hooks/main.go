// Skd-hooks is what the three hook scripts of a cluster node call: it starts and
// stops what a master runs, announces its addresses, and tells how the node is.
package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"syscall"

	"github.com/urfave/cli/v2"

	"github.com/skudonet/skudonet-ce-cluster/lib/cmdline"
	"github.com/skudonet/skudonet-ce-cluster/lib/conf"
	"github.com/skudonet/skudonet-ce-cluster/lib/hook"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
	"github.com/skudonet/skudonet-ce-cluster/lib/version"
)

const name = "skd-hooks"

const description = `Every step of start and stop may be repeated. One that fails is reported, and
the others still run. Run by skd-vrrpd, the SKD_ variables of its environment
say where to look; by hand, the options and the configuration do.

Exit status: 0 done, 1 a step failed, 2 usage or configuration.
Of status: 0 running well, 1 something is wrong, 3 stopped.`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	cmdline.End(app().RunContext(ctx, os.Args))
}

func app() *cli.App {
	command := func(verb, text string, run func(*cli.Context) error, flags ...cli.Flag) *cli.Command {
		return cmdline.Command(name, verb, text, run, flags...)
	}
	return &cli.App{
		Name: name, HelpName: name, Usage: "the slow part of a promotion or demotion in a Skudonet CE cluster",
		UsageText: "skd-hooks [options] start|stop|apply|advertisement|status|retire", Description: description, Version: version.Version,
		HideHelpCommand: true,
		Flags:           cmdline.Places(cmdline.DaemonEnv),
		OnUsageError:    cmdline.OnUsageError(name), ExitErrHandler: cmdline.KeepErrors,
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return cmdline.UsageError(name, fmt.Errorf("unknown command %q; see skd-hooks --help", c.Args().First()))
			}
			return cmdline.UsageError(name, errors.New("want a command: start, stop, apply, advertisement, status or retire; see skd-hooks --help"))
		},
		Commands: []*cli.Command{
			command("start", "start Skudonet and the replicator, as a master does", func(c *cli.Context) error { return transition(c, startSteps) }),
			command("stop", "stop the replicator and Skudonet, as a backup does", func(c *cli.Context) error { return transition(c, stopSteps) }),
			command("apply", "restart Skudonet for a configuration that was replaced, on a master", apply),
			command("advertisement", "send gratuitous ARP for every virtual address, on a master", announce),
			command("status", "say what the node is, since when and why, and what is wrong", report, cmdline.JSON()),
			command("retire", "stop what version 2.0 of the package has left running", retire),
		},
	}
}

// cluster is what start, apply and advertisement need to know of it.
type cluster struct {
	iface string
	ips   []netip.Prefix // $cluster_ip
	tree  string         // Skudonet's configuration tree
}

// load asks the environment when the daemon runs us: it knows what it works
// with, and a file that is being edited must not cost a new master its farms.
func load(c *cli.Context) (cluster, error) {
	ip, err := netip.ParseAddr(os.Getenv(hook.EnvClusterIP))
	iface, tree := os.Getenv(hook.EnvInterface), os.Getenv(hook.EnvConfigDir)
	if err == nil && iface != "" && tree != "" && cmdline.Option(c, "config") == os.Getenv(hook.EnvConfig) {
		ip6, _ := netip.ParseAddr(os.Getenv(hook.EnvClusterIP6))
		return cluster{iface, hosts(ip, ip6), tree}, nil
	}
	cfg, _, err := conf.Load(cmdline.Option(c, "config"))
	if err != nil {
		return cluster{}, cli.Exit(err, cmdline.Usage)
	}
	return cluster{cfg.Interface, hosts(cfg.ClusterIP, cfg.Second.ClusterIP), cfg.ConfigDir}, nil
}

// hosts are the addresses without a mask: neither who looks for one nor who
// announces it minds that.
func hosts(ips ...netip.Addr) (list []netip.Prefix) {
	for _, ip := range ips {
		if ip.IsValid() {
			list = append(list, netip.PrefixFrom(ip, ip.BitLen()))
		}
	}
	return list
}

// report prints what the files say about the node.
func report(c *cli.Context) error {
	r := status.Inspect(cmdline.Option(c, "status-file"), cmdline.Option(c, "run-dir"))
	return cmdline.Show(c, r, int(r.Health))
}
