package mirror

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/skudonet/skudonet-ce-cluster/lib/fileset"
	"github.com/skudonet/skudonet-ce-cluster/lib/shell"
)

// plain runs rsync's other half in a session of its own, on a peer without our
// program.
func (p *connection) plain(at *pushing, args []string, in io.Reader, out io.Writer) (int, error) {
	var words []string
	for _, a := range args[1:] { // without the host
		words = append(words, shell.Quote(a))
	}
	dir, temp := shell.Quote(p.carrier.dir(at.root)), shell.Quote(p.carrier.temp(at.root))
	session, err := p.line.Start(fmt.Sprintf("cd %s && mkdir -p -m 700 %s && echo && echo %s && { %s; e=$?; rm -rf %[2]s; exit $e; }",
		dir, temp, shell.Quote(plainMark), strings.Join(words, " ")))
	if err != nil {
		return 0, err
	}
	defer session.Close()
	defer context.AfterFunc(at.ctx, func() { session.Close() })()
	go func() {
		io.Copy(session.Stdin, in)
		session.Stdin.Close()
	}()
	var copying sync.WaitGroup
	copying.Go(func() { io.Copy(at.said, session.Stderr) })
	copying.Go(func() { io.Copy(out, marked(session.Stdout)) })
	exit, err := session.Wait()
	copying.Wait()
	return exit, err
}

// dir is the directory of a root, on the peer as here.
func (c *Carrier) dir(root string) string {
	i := slices.IndexFunc(c.Roots, func(r Root) bool { return r.Name == root })
	return c.Roots[i].Dir // The engine sends no others, and a wrong directory would be emptied.
}

// temp is the directory for rsync's temporary files on a peer without our program.
func (c *Carrier) temp(root string) string {
	return path.Join(path.Dir(c.dir(root)), fileset.TempName)
}

const (
	// plainMark is the line that tells where the output of a shell's start-up files ends.
	plainMark = "skd-inotify: rsync begins"
	// mostNoise is how much of that is skipped. rsync complains about more.
	mostNoise = 64 << 10
)

// marked is what comes after plainMark.
func marked(from io.Reader) io.Reader {
	r := bufio.NewReader(from)
	begins := true // what is read next begins a line
	for seen := 0; seen < mostNoise; {
		line, err := r.ReadSlice('\n') // or a piece of a long one
		seen += len(line)
		if begins && string(line) == plainMark+"\n" || err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			break
		}
		begins = err == nil
	}
	return r
}
