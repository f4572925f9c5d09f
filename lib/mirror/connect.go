package mirror

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/peer"
	"github.com/skudonet/skudonet-ce-cluster/lib/remote"
	"github.com/skudonet/skudonet-ce-cluster/lib/rsync"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
)

// Waits between attempts to connect. A peer that is away returns within seconds;
// one that refuses us needs an admin.
const (
	awayMin, awayMax = 500 * time.Millisecond, 5 * time.Second
	refusedMax       = time.Minute
	lasting          = 10 * time.Second // a connection of this length was a good one
)

// connect keeps a connection to the peer until ctx ends.
func (e *Engine) connect(ctx context.Context) {
	away := remote.Backoff{Min: awayMin, Max: awayMax}
	refused := remote.Backoff{Min: awayMin, Max: refusedMax}
	for ctx.Err() == nil {
		select {
		case <-e.poked:
		default:
		}
		p, err := e.cfg.Dial(ctx)
		if err == nil {
			err = acceptable(p)
		}
		began := time.Now()
		if err != nil {
			if p != nil {
				p.Close()
			}
			if ctx.Err() != nil {
				return
			}
			e.post(disconnected{nil, err})
		} else {
			e.post(connected{p})
			select {
			case <-p.Done():
			case <-ctx.Done():
			}
			err = p.Err()
			p.Close()
			e.post(disconnected{p, err})
		}
		if time.Since(began) > lasting {
			away.Reset()
			refused.Reset()
			continue
		}
		wait := &away
		if needsAdmin(err) {
			wait = &refused
		}
		select {
		case <-time.After(wait.Next(rand.Float64())):
		case <-e.poked:
		case <-ctx.Done():
		}
	}
}

// acceptable tells whether the node at the other end may be pushed to.
func acceptable(p Peer) error {
	h := p.Hello()
	switch {
	case p.Legacy():
		return nil
	case h.Role == status.Master:
		return peer.ErrMaster
	case h.Problem != "":
		return &Trouble{"it takes nothing: " + strings.ReplaceAll(h.Problem, "\n", "; "), "mend it there; skd-inotify -n checks the configuration"}
	}
	if h.Rsync == "" {
		return &Trouble{"it has no rsync that runs", "install it there (Debian: apt-get install rsync), or correct $rsync in its skudonet-cluster.conf"}
	}
	if err := rsync.CheckVersion(h.Rsync); err != nil {
		return &Trouble{"its rsync is too old: " + err.Error(), ""}
	}
	return nil
}

func needsAdmin(err error) bool {
	var r *remote.Error
	if errors.As(err, &r) {
		return r.Kind != remote.Unreachable && r.Kind != remote.Lost
	}
	var t *Trouble
	var f *rsync.Failure
	return errors.As(err, &t) || errors.As(err, &f)
}
