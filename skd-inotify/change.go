package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/urfave/cli/v2"

	"github.com/skudonet/skudonet-ce-cluster/lib/archive"
	"github.com/skudonet/skudonet-ce-cluster/lib/cmdline"
	"github.com/skudonet/skudonet-ce-cluster/lib/control"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
)

// confirmArg, with sync, is an admin's consent to what looks like an accident.
const confirmArg = "confirm"

// restore has the daemon bring back what an archive holds.
func restore(c *cli.Context) error {
	if !c.Args().Present() {
		return cmdline.UsageError(program, errors.New("restore: want the TIME of an archive, as skd-inotify history shows it, and perhaps FILEs"))
	}
	text, err := ask(c, control.Request{Command: "restore", Args: c.Args().Slice()}, nil)
	if err != nil {
		return err
	}
	fmt.Println(text)
	fmt.Println("Skudonet applies restored files when it, or the farm in question, is started again: skd-hooks apply")
	return nil
}

// resolve has the daemon end a conflict.
func resolve(c *cli.Context) error {
	how := c.Args().First()
	if n := c.NArg(); n < 1 || n > 2 || how != archive.Ours && how != archive.Theirs {
		return cmdline.UsageError(program, errors.New("resolve: want ours (all stays as it is) or theirs (the archived configuration comes back), and perhaps the TIME of the conflict"))
	}
	text, err := ask(c, control.Request{Command: "resolve", Args: []string{how, c.Args().Get(1)}}, nil)
	if err != nil {
		return err
	}
	fmt.Println(text)
	return nil
}

// ask has the daemon do something, and returns its last words.
func ask(c *cli.Context, r control.Request, progress func(string)) (string, error) {
	ctx, stop := signal.NotifyContext(c.Context, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	last, err := control.Do(ctx, filepath.Join(cmdline.Option(c, "run-dir"), control.SocketName), r, func(r control.Reply) {
		if progress != nil {
			progress(r.Text)
		}
	})
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return "", notRunning(cmdline.Option(c, "status-file"))
	case errors.Is(err, io.ErrUnexpectedEOF):
		return "", errors.New("skd-inotify: the daemon ended meanwhile; see its log")
	case err != nil:
		return "", fmt.Errorf("skd-inotify: %w", err)
	case last.Exit != 0:
		return "", cli.Exit("skd-inotify: "+last.Text, last.Exit)
	}
	return last.Text, nil
}

func notRunning(statusFile string) error {
	switch word, _ := status.Read(statusFile); word {
	case status.Master:
		return errors.New("skd-inotify: not running, although this node is master: skd-hooks start")
	case status.Backup:
		return errors.New("skd-inotify: this node is backup; run this on the master")
	}
	return errors.New("skd-inotify: not running, because the cluster service is stopped")
}

// withArguments gives a command its own say about its arguments.
func withArguments(command *cli.Command, run cli.ActionFunc, usage string) *cli.Command {
	command.ArgsUsage, command.Action = usage, run
	return command
}
