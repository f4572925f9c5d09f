package guard

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skudonet/skudonet-ce-cluster/lib/nlmsg"
)

// Watch calls changed once when it has begun to listen, so that nothing is missed before, and then whenever somebody has changed
// the guard's table, until ctx is done. Changes that come together make one call. Other tables do not concern it.
//
// Our own Raise and Lower are changes too. The owner therefore does not raise on each call, but asks Standing and raises only if
// it says false while the guard should stand: that ends after one round.
//
// Watch returns nil when ctx is done. Links that come are not its business; the owner hears of them elsewhere and asks Standing.
func Watch(ctx context.Context, changed func()) error {
	c, err := dial(1 << (unix.NFNLGRP_NFTABLES - 1))
	if err != nil {
		return fmt.Errorf("guard: watch: %w", err)
	}
	if err := unix.SetNonblock(c.fd, true); err != nil {
		c.close()
		return fmt.Errorf("guard: watch: %w", err)
	}
	f := os.NewFile(uintptr(c.fd), "nfnetlink")
	defer f.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("guard: watch: %w", err)
	}
	defer context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) })()

	for ctx.Err() == nil {
		changed()
		var readErr error
		err := raw.Read(func(uintptr) bool {
			var hit bool
			hit, readErr = c.drain()
			return hit || readErr != nil
		})
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Join(err, readErr) != nil:
			return fmt.Errorf("guard: watch: %w", errors.Join(err, readErr))
		}
	}
	return nil
}

// drain reads all that is queued and reports whether our table was in it.
func (c *nfnetlink) drain() (hit bool, err error) {
	for {
		b, err := c.receive(0)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return hit, nil
		case errors.Is(err, unix.ENOBUFS):
			hit = true // notifications were lost, ours may be among them
			continue
		case err != nil:
			return hit, err
		}
		for m := range nlmsg.Parse(b) {
			// The table's name is the first attribute of all that can be in a table.
			hit = hit || len(m.Body) >= genmsgLen && m.Body[0] == unix.NFPROTO_NETDEV && nlmsg.String(nlmsg.Attr(m.Body[genmsgLen:], unix.NFTA_TABLE_NAME)) == Table
		}
	}
}
