package rsync

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/control"
)

// rshFailed is what ssh exits with, too, when it cannot do its work.
const rshFailed = 255

// Rsh is what rsync calls instead of ssh: args are the host's name and the
// command for it. It hands standard input and output to the daemon, with the
// command "rsh", and waits until that tells the exit status. It ends when the
// daemon does.
func Rsh(args []string) int {
	socket := os.Getenv(SocketVariable)
	if socket == "" {
		return rshError("rsync calls this program; by hand there is nothing to do here (" + SocketVariable + " is not set)")
	}
	r := control.Request{Command: "rsh", Args: args, Files: []*os.File{os.Stdin, os.Stdout}}
	last, err := control.Do(context.Background(), socket, r, say)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ECONNREFUSED):
		return rshError("no daemon listens on " + socket)
	case err != nil:
		return rshError(err.Error())
	}
	say(last)
	return last.Exit
}

// say hands on what the daemon has to say: the other side's standard error.
func say(r control.Reply) {
	if r.Text != "" {
		fmt.Fprintln(os.Stderr, strings.TrimSuffix(r.Text, "\n"))
	}
}

func rshError(text string) int {
	fmt.Fprintln(os.Stderr, "skd-inotify rsh:", text)
	return rshFailed
}
