package rsync

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/tail"
)

// oldest is the first rsync that can do what we ask of it.
var oldest = [3]int{3, 1, 0}

const (
	askLimit   = 5 * time.Second
	installNew = "install rsync 3.1.0 or newer (Debian: apt-get install rsync)"
)

// Version asks a program, $rsync, for its version: "3.2.7". It takes at most
// five seconds. "" is rsync from PATH.
func Version(ctx context.Context, program string) (string, error) {
	r := Runner{Program: program}
	ctx, cancel := context.WithTimeoutCause(ctx, askLimit, fmt.Errorf("no answer within %v", askLimit))
	defer cancel()
	out := tail.New(keptStderr)
	cmd := &exec.Cmd{
		Args: []string{r.program(), "--version"}, Env: r.env(), Dir: "/",
		Stdout: out, Stderr: io.Discard, WaitDelay: grace,
		SysProcAttr: ownGroup(),
	}
	var err error
	if cmd.Path, err = exec.LookPath(r.program()); err == nil {
		err = run(ctx, cmd)
	}
	if cmd.ProcessState == nil && !errors.Is(err, errSurvived) {
		return "", notRun(r.program(), err)
	}
	v, ok := parseVersion(out.String())
	if !ok {
		if err == nil {
			err = errors.New("it says no version")
		}
		return "", fmt.Errorf("%s --version: %w; correct $rsync in skudonet-cluster.conf, or %s", r.program(), err, installNew)
	}
	return v, nil
}

var versionLine = later(`(?m)^rsync +version v?(\d+\.\d+\S*)`)

// parseVersion finds the version in "rsync  version 3.2.7  protocol version 31".
func parseVersion(text string) (string, bool) {
	found := versionLine().FindStringSubmatch(text)
	if found == nil || len(found[1]) > 64 {
		return "", false
	}
	return found[1], true
}

// CheckVersion tells why a version of rsync will not do: older than 3.1.0, or
// none at all. Words behind the numbers ("3.2.0pre1") do not count.
func CheckVersion(v string) error {
	have, err := numbers(v)
	if err != nil {
		return err
	}
	if slices.Compare(have[:], oldest[:]) < 0 {
		return fmt.Errorf("rsync %s cannot leave the times of symlinks alone (--omit-link-times); %s", clean(v), installNew)
	}
	return nil
}

// ErrorsAside tells whether the server half of that version writes what fails to
// its standard error, and not to the client, unless it gets --no-msgs2stderr.
func ErrorsAside(v string) bool {
	have, err := numbers(v)
	return err == nil && slices.Compare(have[:], []int{3, 2, 3}) >= 0
}

// numbers are those of a version.
func numbers(v string) (have [3]int, err error) {
	for i, part := range strings.SplitN(v, ".", 3) {
		digits := len(part) - len(strings.TrimLeft(part, "0123456789"))
		n, err := strconv.Atoi(part[:digits])
		if err != nil && (i < 2 || digits > 0) {
			return have, fmt.Errorf("%q is not a version of rsync; %s", clean(v), installNew)
		}
		have[i] = n
	}
	return have, nil
}
