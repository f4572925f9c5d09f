package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/skudonet/skudonet-ce-cluster/lib/durable"
	"github.com/skudonet/skudonet-ce-cluster/lib/vrouter"
)

const (
	recordName  = "vrrpd.state"   // in the run directory
	lastingName = "sequence.json" // in the state directory
)

const maxRecord = 64 << 10 // bytes

// recordFile holds a vrouter.Record on a tmpfs: rewritten in place by one
// write, which a kill cannot cut in two, and padded so that nothing of a longer
// one stays behind.
type recordFile struct {
	file    *os.File
	longest int
}

func openRecord(runDir string) (*recordFile, vrouter.Record, error) {
	f, err := os.OpenFile(filepath.Join(runDir, recordName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, vrouter.Record{}, err
	}
	buf := make([]byte, maxRecord)
	n, _ := f.ReadAt(buf, 0)
	var r vrouter.Record
	if json.Unmarshal(buf[:n], &r) != nil {
		r = vrouter.Record{} // of no use, as after a reboot
	}
	return &recordFile{file: f, longest: n}, r, nil
}

func (f *recordFile) write(r vrouter.Record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	for len(b) < f.longest {
		b = append(b, ' ')
	}
	f.longest = len(b)
	_, err = f.file.WriteAt(b, 0)
	return err
}

// ReadLasting reads what survives a reboot. That there is nothing yet is no error.
func ReadLasting(stateDir string) (vrouter.Lasting, error) {
	var l vrouter.Lasting
	b, err := os.ReadFile(filepath.Join(stateDir, lastingName))
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err != nil {
		return l, err
	}
	if err := json.Unmarshal(b, &l); err != nil {
		return vrouter.Lasting{}, fmt.Errorf("%s: %w", lastingName, err)
	}
	return l, nil
}

// WriteLasting replaces what survives a reboot, and returns when it is on the disk.
func WriteLasting(stateDir string, l vrouter.Lasting) error {
	b, err := json.Marshal(l)
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(stateDir, lastingName), append(b, '\n'), 0o600)
}
