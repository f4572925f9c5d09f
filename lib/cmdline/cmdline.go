// Package cmdline is what the command lines of the programs have in common:
// where they find things, how they show a status, and how they end.
package cmdline

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/urfave/cli/v2"

	"github.com/skudonet/skudonet-ce-cluster/lib/conf"
	"github.com/skudonet/skudonet-ce-cluster/lib/hook"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
)

// Exit statuses of all programs.
const (
	Failed = 1
	Usage  = 2 // also a wrong configuration
)

// Places are the options that say where things are. They may stand before a
// command and behind it (Option finds them). env gives the environment variable
// behind an option's name, or nothing.
func Places(env func(option string) []string) []cli.Flag {
	flag := func(name, value, text string, aliases ...string) cli.Flag {
		return &cli.StringFlag{Name: name, Aliases: aliases, Value: value, Usage: text, EnvVars: env(name)}
	}
	return []cli.Flag{
		flag("config", conf.DefaultPath, "configuration `FILE`", "c"),
		flag("status-file", status.StatusFile, "`FILE` that says master or backup"),
		flag("run-dir", status.RunDir, "`DIR` for what a reboot may forget"),
		flag("state-dir", status.StateDir, "`DIR` for what a reboot must not forget"),
	}
}

// NoEnv is for Places without environment variables.
func NoEnv(string) []string { return nil }

// DaemonEnv is for Places of programs that work for the daemon: unless told
// otherwise they look where it says that things are.
func DaemonEnv(option string) []string { return []string{Variables[option]} }

// Variables are those in which the daemon says where things are, by option.
var Variables = map[string]string{
	"config": hook.EnvConfig, "status-file": hook.EnvStatusFile, "run-dir": hook.EnvRunDir, "state-dir": hook.EnvStateDir,
}

// Option is the value of an option that may stand before the command or behind it.
func Option(c *cli.Context, name string) string {
	for _, level := range c.Lineage() {
		if level.Command != nil && slices.Contains(level.LocalFlagNames(), name) {
			return level.String(name)
		}
	}
	return c.String(name)
}

// Command is one without arguments, with Places behind it.
func Command(program, name, text string, run func(*cli.Context) error, flags ...cli.Flag) *cli.Command {
	return &cli.Command{
		Name: name, Usage: text, Flags: append(Places(NoEnv), flags...), HideHelpCommand: true, OnUsageError: OnUsageError(program),
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return UsageError(program, fmt.Errorf("%s: %q: want no argument", name, c.Args().First()))
			}
			return run(c)
		}}
}

// JSON is the option that Show minds.
func JSON() cli.Flag { return &cli.BoolFlag{Name: "json", Usage: "as JSON"} }

// Show prints what a status command has found out, for people or as JSON, and
// ends the program with exit status health.
func Show(c *cli.Context, report interface{ WriteText(io.Writer) error }, health int) error {
	err := error(nil)
	if c.Bool("json") {
		out := json.NewEncoder(os.Stdout)
		out.SetIndent("", "  ")
		err = out.Encode(report)
	} else {
		err = report.WriteText(os.Stdout)
	}
	if err != nil {
		return err
	}
	return cli.Exit("", health)
}

// UsageError is an error that ends the program with status Usage.
func UsageError(program string, err error) error {
	return cli.Exit(fmt.Errorf("%s: %w", program, err), Usage)
}

// OnUsageError makes the library's errors ones of the program.
func OnUsageError(program string) cli.OnUsageErrorFunc {
	return func(_ *cli.Context, err error, _ bool) error { return UsageError(program, err) }
}

// KeepErrors is an ExitErrHandler that leaves the end of the program to End.
func KeepErrors(*cli.Context, error) {}

// End ends the program: it says what is wrong and exits with the status that the
// error has, else Failed.
func End(err error) {
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
	os.Exit(Failed)
}
