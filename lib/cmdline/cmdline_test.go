package cmdline_test

import (
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"github.com/skudonet/skudonet-ce-cluster/lib/cmdline"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
)

// The daemon's variables are defaults: what stands in the command line wins,
// before the command or behind it.
func TestPlaces(t *testing.T) {
	for _, tc := range []struct {
		set        bool // the variable
		args       string
		want, bare string // with DaemonEnv, and with NoEnv
	}{
		{false, "show", status.RunDir, status.RunDir},
		{true, "show", "/from/daemon", status.RunDir},
		{true, "--run-dir /given show", "/given", "/given"},
		{true, "show --run-dir /given", "/given", "/given"},
		{true, "--run-dir /early show --run-dir /late", "/late", "/late"},
	} {
		if tc.set {
			t.Setenv("SKD_RUN_DIR", "/from/daemon")
		}
		for _, places := range []struct {
			env  func(string) []string
			want string
		}{{cmdline.DaemonEnv, tc.want}, {cmdline.NoEnv, tc.bare}} {
			got := ""
			app := &cli.App{Flags: cmdline.Places(places.env), Commands: []*cli.Command{
				cmdline.Command("test", "show", "", func(c *cli.Context) error { got = cmdline.Option(c, "run-dir"); return nil }),
			}}
			if err := app.Run(append([]string{"test"}, strings.Fields(tc.args)...)); err != nil || got != places.want {
				t.Errorf("%s (variable set: %v): %q, %v; want %q", tc.args, tc.set, got, err, places.want)
			}
		}
	}
}
