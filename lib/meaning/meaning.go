// Package meaning is what a configuration file means: its content without what
// Skudonet writes into it by itself, so that a backend that goes down for a
// minute is no change of the configuration. Facts are from Skudonet CE 7's and nftlb's
// source.
//
// NAME_l4xnat.cfg, at the top of the configuration tree, is what nftlb answers when Skudonet asks
// for an L4 farm: JSON. Skudonet saves the answer after each change, also after farmguardian's.
//   - A backend's "state" is "up", "down" (farmguardian: it does not answer),
//     "available" (nftlb: another one has precedence) or "config_error" (nftlb: no
//     route to it yet). They come and go by themselves, and nftlb reads the last two back as "up". The admin's
//     maintenance is "off", in the same field: that one counts.
//   - A farm's "priority" is computed by nftlb from the states of its backends.
//   - A farm's "state" is the admin's, "up" or "down"; "config_error" is an "up"
//     that nftlb could not carry out yet.
//
// NAME_status.cfg, beside it, has a line for each backend of an HTTP farm that is out of use. Lines that end with
// "fgDOWN" are farmguardian's, those with "maintenance" are the admin's.
//
// Everything else counts as it is. global.conf is rewritten by each start and stop, with the same content unless
// something was changed; interface files and an HTTP farm's X_proxy.cfg are written for the admin only. The weights of a farm with
// the algorithm "leastconn", which a daemon of Skudonet adapts, count too: the admin's are in the same place and look
// the same.
//
// It is pure. Two nodes agree on a tree only if both have the same idea of what
// it means.
package meaning

import (
	"crypto/sha256"
	"hash"
	"strings"
)

// Limit is the size in bytes above which a file is taken as it is. An L4 farm of
// a thousand backends has half of it.
const Limit = 512 << 10

// configRoot is the name of the tree of Skudonet's configuration.
const configRoot = "config"

// Form is a sort of file of which not every byte is the admin's. The zero Form
// is any other file.
type Form int

const (
	plain Form = iota
	l4Farm
	backendStatus
)

// Of is the form of the file path in the tree that is named root.
func Of(root, path string) Form {
	if root != configRoot || !strings.HasSuffix(path, ".cfg") || strings.IndexByte(path, '/') >= 0 {
		return plain
	}
	switch {
	case strings.HasSuffix(path, "_l4xnat.cfg"):
		return l4Farm
	case strings.HasSuffix(path, "_status.cfg"):
		return backendStatus
	}
	return plain
}

// Normal is content as it would be if Skudonet had written nothing by itself:
// equal for files that mean the same, different for any others. What is
// damaged or larger than Limit is returned as it is. Normal content stays as it
// is, too.
func (f Form) Normal(content []byte) []byte {
	if len(content) > Limit {
		return content
	}
	switch f {
	case l4Farm:
		if normal, ok := normalFarm(content); ok {
			return normal
		}
	case backendStatus:
		return normalStatus(content)
	}
	return content
}

// Sum makes the hash of a file's meaning while the file is read. It begins with
// Begin and may be used again.
type Sum struct {
	form Form
	kept []byte // the content so far, if there is a form
	size int64
	hash hash.Hash
}

// Begin is for a file of the form f.
func (s *Sum) Begin(f Form) {
	if s.hash == nil {
		s.hash = sha256.New()
	}
	s.hash.Reset()
	s.form, s.size, s.kept = f, 0, s.kept[:0]
}

// Write takes the next piece of the content. There is no error.
func (s *Sum) Write(piece []byte) (int, error) {
	s.size += int64(len(piece))
	switch {
	case s.form == plain:
		s.hash.Write(piece)
	case s.size <= Limit:
		s.kept = append(s.kept, piece...)
	default:
		s.form = plain
		s.hash.Write(s.kept)
		s.hash.Write(piece)
		s.kept = nil
	}
	return len(piece), nil
}

// Len is how many bytes were written.
func (s *Sum) Len() int64 { return s.size }

// End is the size of the meaning in bytes and its SHA-256.
func (s *Sum) End() (size int64, sum [sha256.Size]byte) {
	size = s.size
	if s.form != plain {
		normal := s.form.Normal(s.kept)
		size = int64(len(normal))
		s.hash.Write(normal)
		s.form = plain
	}
	s.hash.Sum(sum[:0])
	return size, sum
}
