// Bench prints one table that compares the cluster's programs with what else elects a master on Debian, keepalived and
// ucarp, and mirrors a directory, lsyncd, on this machine and in this hour: packets, the prompt, idle cost, outages as a
// client sees them, of pairs and of ours beside keepalived and ucarp, takeovers of many addresses, changes of the
// configuration until the backup has them. At its end stands which of the project's aims hold. It changes nothing outside
// its labs, which end with it, and exits 0 whatever it measures.
package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/test/lab"
)

const (
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	var err error
	if dir := os.Getenv(holdTree); dir != "" {
		err = hold(dir)
	} else {
		err = run(os.Args[1:], os.Stdout)
	}
	switch {
	case errors.Is(err, flag.ErrHelp):
	case errors.As(err, new(usageError)):
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(exitUsage)
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(exitFailed)
	}
}

type usageError struct{ error }

// bench is one run.
type bench struct {
	out     io.Writer
	quick   bool
	repeats int
	only    *regexp.Regexp
	bin     string // directory of our programs
	rivals  []*product
	lsyncd  bool // is installed
	aims    []aim
}

// aim is something that the project wants to hold, and whether it did.
type aim struct {
	text  string
	holds bool
}

func run(args []string, out io.Writer) error {
	b := &bench{out: out}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(out)
	flags.BoolVar(&b.quick, "quick", false, "a minute's worth: every part once, with fewer intervals and addresses")
	flags.IntVar(&b.repeats, "n", 5, "repeat every measurement `N` times")
	flags.StringVar(&b.bin, "bin", "", "`DIR` with the programs to measure (default: bin of this module)")
	only := flags.String("only", "", "only the parts whose name fits the `REGEXP`: "+strings.Join(names(b.parts()), ", "))
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return usageError{err}
	}
	var err error
	if b.only, err = regexp.Compile(*only); err != nil {
		return usageError{fmt.Errorf("-only: %w", err)}
	}
	if b.repeats < 1 || flags.NArg() > 0 {
		return usageError{errors.New("want -n of 1 or more, and no argument; see -help")}
	}
	if b.quick {
		b.repeats = 1
	}
	if err := b.findPrograms(); err != nil {
		return err
	}
	b.head()
	for _, p := range b.parts() {
		if !b.only.MatchString(p.name) {
			continue
		}
		if err := p.run(); err != nil {
			fmt.Fprintf(b.out, "  %s: %v\n", p.name, err)
		}
		fmt.Fprintln(b.out)
	}
	b.foot()
	return nil
}

// part is a group of measurements that -only can choose.
type part struct {
	name string
	run  func() error
}

func names(parts []part) []string {
	var list []string
	for _, p := range parts {
		list = append(list, p.name)
	}
	return list
}

func (b *bench) parts() []part {
	parts := []part{{"code", b.code}, {"prompt", b.prompt}, {"digest", b.digests}, {"idle", b.idle}}
	intervals := []time.Duration{time.Second, time.Second / 10, time.Second / 100}
	if b.quick {
		intervals = intervals[1:2]
	}
	for _, every := range intervals {
		parts = append(parts, part{fmt.Sprintf("outage-%gs", every.Seconds()), func() error { return b.outages(every) }})
	}
	return append(parts, part{"takeover", b.takeovers},
		part{"replication-change", b.singleChanges}, part{"replication-kinds", b.kinds}, part{"replication-burst", b.bursts},
		part{"replication-rate", b.rates}, part{"replication-20000", b.manyFiles})
}

func (b *bench) findPrograms() error {
	if b.bin == "" {
		module, err := lab.ModuleDir()
		if err != nil {
			return err
		}
		b.bin = filepath.Join(module, "bin")
	}
	for _, name := range []string{"skd-vrrpd", "skd-inotify", "skd-hooks", "skd-prompt"} {
		if _, err := os.Stat(filepath.Join(b.bin, name)); err != nil {
			return fmt.Errorf("%w; run make build first", err)
		}
	}
	for _, p := range []*product{keepalived, ucarp} {
		if _, err := exec.LookPath(p.program); err == nil {
			b.rivals = append(b.rivals, p)
		}
	}
	_, err := exec.LookPath(lsyncd.name)
	b.lsyncd = err == nil
	return nil
}

// products are ours and those rivals that can be had at this interval.
func (b *bench) products(every time.Duration) []*product {
	list := []*product{skudonet}
	for _, p := range b.rivals {
		if every >= p.fastest {
			list = append(list, p)
		}
	}
	return list
}

// matches are the pairs that can be had at this interval: of each product, and of ours beside the others.
func (b *bench) matches(every time.Duration) []match {
	return slices.DeleteFunc([]match{{skudonet, skudonet}, {skudonetCARP, skudonetCARP}, {keepalived, keepalived}, {ucarp, ucarp},
		{upgraded, ucarp}, {unsigned, keepalived}}, func(m match) bool {
		return slices.ContainsFunc(m[:], func(p *product) bool {
			return every < p.fastest || p.program != skudonet.program && !slices.Contains(b.rivals, p)
		})
	})
}

// head says on what all this was measured.
func (b *bench) head() {
	var name unix.Utsname
	unix.Uname(&name)
	version := func(program string, args ...string) string {
		out, err := exec.Command(program, args...).CombinedOutput()
		if err != nil && len(out) == 0 {
			return program + " not installed"
		}
		number := regexp.MustCompile(`v?\d+\.[\w.+~-]+|[0-9a-f]{7,}\S*|dev`).FindString(string(out))
		return filepath.Base(program) + " " + strings.TrimPrefix(number, "v")
	}
	fmt.Fprintf(b.out, "%s, %d × %s, Linux %s\n", time.Now().Format("2006-01-02 15:04"), runtime.NumCPU(), processor(),
		unix.ByteSliceToString(name.Release[:]))
	fmt.Fprintf(b.out, "%s, %s, %s, %s, %s\n", version(filepath.Join(b.bin, "skd-vrrpd"), "--version"),
		version("keepalived", "--version"), version("ucarp", "--help"), version("lsyncd", "--version"), version("rsync", "--version"))
	fmt.Fprintf(b.out, "load average %s\n", load())
	fmt.Fprintf(b.out, "numbers with brackets: median of %d (smallest–largest)\n\n", b.repeats)
}

// foot says what became of the aims.
func (b *bench) foot() {
	for _, a := range b.aims {
		fmt.Fprintf(b.out, "%-3s %s\n", map[bool]string{true: "ok", false: "no"}[a.holds], a.text)
	}
	fmt.Fprintf(b.out, "load average at the end %s\n", load())
}

func (b *bench) aim(holds bool, format string, args ...any) {
	b.aims = append(b.aims, aim{fmt.Sprintf(format, args...), holds})
}

func processor() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	match := regexp.MustCompile(`(?m)^model name\s*: (.*)$`).FindSubmatch(text)
	if match == nil {
		return runtime.GOARCH
	}
	return string(match[1])
}

func load() string {
	text, _ := os.ReadFile("/proc/loadavg")
	fields := strings.Fields(string(text))
	return cmp.Or(strings.Join(fields[:min(3, len(fields))], " "), "unknown")
}

// progress says on a terminal what is being measured.
func (b *bench) progress(format string, args ...any) {
	if _, err := unix.IoctlGetTermios(int(os.Stderr.Fd()), unix.TCGETS); err == nil {
		fmt.Fprintf(os.Stderr, "\r\x1b[K… "+format+"\r", args...)
	}
}
