package mirror

import (
	"context"
	"errors"
	"io"

	"github.com/skudonet/skudonet-ce-cluster/lib/remote"
)

// Line is a connection to the peer: ssh's, or that of a test.
type Line interface {
	// Start runs a shell command there.
	Start(command string) (*Program, error)
	// Done is closed when the connection is lost; Err tells why.
	Done() <-chan struct{}
	Err() error
	Close() error
}

// Program is a command that runs on the peer, as in a remote.Session.
type Program struct {
	Stdin          io.WriteCloser
	Stdout, Stderr io.Reader
	Wait           func() (exit int, err error)
	Close          func() error
}

// overSSH is how a Carrier connects that is not told another way.
func (c *Carrier) overSSH(ctx context.Context) (Line, error) {
	conn, err := remote.Dial(ctx, c.SSH)
	var refused *remote.Error
	if errors.As(err, &refused) {
		c.notices(refused.Notices)
	}
	if err != nil {
		return nil, err
	}
	c.notices(conn.Notices())
	return sshLine{conn}, nil
}

type sshLine struct{ *remote.Conn }

func (l sshLine) Start(command string) (*Program, error) {
	s, err := l.Conn.Start(command)
	if err != nil {
		return nil, err
	}
	return &Program{s.Stdin, s.Stdout, s.Stderr, s.Wait, s.Close}, nil
}
