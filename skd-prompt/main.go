// Command skd-prompt prints what the node is, for the prompt of a shell:
// "[master] ", "[backup] ", or "[] " when the service is stopped.
//
// It runs after every command that root types: it reads one small file, once,
// waits for nothing, and never fails.
package main

import (
	"os"
	"strings"

	"github.com/skudonet/skudonet-ce-cluster/lib/status"
	"github.com/skudonet/skudonet-ce-cluster/lib/version"
)

const usage = `usage: skd-prompt [--status-file FILE] [bash]

Prints [master], [backup] or, when the service is stopped, [], and a space.

   bash                print the lines that make this part of the prompt of an
                       interactive bash; for .bashrc: eval "$(skd-prompt bash)"
   --status-file FILE  read FILE instead of ` + status.StatusFile + `
   --help, -h          show this
   --version, -v       show the version

The exit status is always 0.
`

func main() {
	file, command := status.StatusFile, []string{self()}
	show := func() { os.Stdout.WriteString(prompt(file)) }
	for args := os.Args[1:]; len(args) > 0; args = args[1:] {
		// One dash or two, as in the other programs.
		flag, value, ok := strings.Cut(strings.Replace(args[0], "--", "-", 1), "=")
		switch {
		case flag == "-status-file" && (ok || len(args) > 1):
			if !ok {
				value, args = args[1], args[1:]
			}
			file, command = value, append(command[:1], "--status-file", value)
		case flag == "-help" || flag == "-h":
			show = func() { os.Stdout.WriteString(usage) }
		case flag == "-version" || flag == "-v":
			show = func() { os.Stdout.WriteString("skd-prompt version " + version.Version + "\n") }
		case args[0] == "bash":
			show = func() { os.Stdout.WriteString(snippet(command)) }
		default:
			os.Stderr.WriteString("skd-prompt: " + args[0] + ": unknown; see skd-prompt --help\n")
		}
	}
	show()
}

// prompt is the node's state for people. Whatever is wrong with the status file,
// nobody can act on it from a prompt; skd-hooks status says it.
func prompt(file string) string {
	word, _ := status.Read(file)
	return "[" + word + "] "
}

// self is the path of this program, so that a later PATH, alias or function
// does not matter.
func self() string {
	if path, err := os.Executable(); err == nil {
		return path
	}
	return "skd-prompt"
}
