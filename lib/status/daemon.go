package status

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/bootclock"
	"github.com/skudonet/skudonet-ce-cluster/lib/smallfile"
)

// DaemonFile is the name of the Daemon file in the run directory.
const DaemonFile = "vrrpd.json"

// maxJSON bounds what is read of a JSON file.
const maxJSON = 16 << 20

// States of a Daemon beside Master and Backup.
const (
	Init  = "init"  // not taking part yet, or not any more
	Fault = "fault" // the interface cannot carry the election; the status file says backup
)

// What a Daemon speaks.
const (
	SpeaksVRRP = "vrrpv3"
	SpeaksCARP = "carp"
	SpeaksBoth = "vrrpv3 and carp" // the peer is known to be ucarp
)

// Daemon is what skd-vrrpd knows, as it stands in its JSON file. The names of
// the fields in the file are an interface to monitoring: they stay.
type Daemon struct {
	Version string `json:"version"` // of skd-vrrpd
	PID     int    `json:"pid"`     // in the daemon's pid namespace
	Started Moment `json:"started"` // the daemon, or its last re-execution
	Updated Moment `json:"updated"` // this file: everything in it is as of then

	State  string `json:"state"`  // Master, Backup, Fault or Init
	Since  Moment `json:"since"`  // when that state was entered
	Reason string `json:"reason"` // why it was entered, in words: "no advertisement from … for 3.6s"

	Interface      string  `json:"interface"`
	VRID           uint8   `json:"vrid"`
	Priority       uint8   `json:"priority"`
	Preempt        bool    `json:"preempt"`
	Protocol       string  `json:"protocol"`  // as configured: vrrp, carp or auto
	Speaks         string  `json:"speaks"`    // in force: SpeaksVRRP, SpeaksCARP or SpeaksBoth
	Transport      string  `json:"transport"` // multicast, unicast or udp
	Signed         bool    `json:"signed"`    // a password is configured
	AdvertInterval Seconds `json:"advert_interval_s"`
	DeadRatio      int     `json:"dead_ratio"`
	DownInterval   Seconds `json:"down_interval_s"`   // in force: a backup has learned it from the master
	HandOverLimit  Seconds `json:"hand_over_limit_s"` // for which a master that hands over waits for a successor

	Addresses []Address `json:"addresses,omitempty"` // the virtual addresses
	Guard     string    `json:"guard,omitempty"`     // "up", "down", or "failed" and Faults says why
	Peer      Peer      `json:"peer"`

	Sent     uint64            `json:"sent"`            // advertisements since Started
	Received uint64            `json:"received"`        // advertisements of the peer that counted, since Started
	Drops    map[string]uint64 `json:"drops,omitempty"` // packets that did not count, by reason, since Started

	Hooks    []Hook    `json:"hooks,omitempty"`    // those that have run, each once, the last run of it
	Faults   []Problem `json:"faults,omitempty"`   // what keeps the node from doing its work: status exits 1
	Warnings []Problem `json:"warnings,omitempty"` // what an admin should know or mend some day
}

// Address is one virtual address.
type Address struct {
	Prefix string `json:"prefix"` // 192.168.1.252/24
	Label  string `json:"label"`  // eth0:NAME, the virtual interface
	Up     bool   `json:"up"`     // on the interface at this moment
}

// Peer is what was heard from the other node. A backup is silent, so that on a
// master a long silence is the rule.
type Peer struct {
	Address   string  `json:"address"`
	Second    string  `json:"second_address,omitempty"` // of IPv6, where there are both families
	LastHeard Moment  `json:"last_heard,omitzero"`      // last advertisement that counted; absent if none did
	Priority  uint8   `json:"priority,omitempty"`
	Interval  Seconds `json:"advert_interval_s,omitempty"`
	Spoke     string  `json:"spoke,omitempty"` // SpeaksVRRP or SpeaksCARP: that advertisement
	Verified  bool    `json:"verified"`        // it was signed with our password
	Key       string  `json:"key,omitempty"`   // password or password_next: which one it was signed with
}

// States of a Hook.
const (
	HookRunning = "running"
	HookDone    = "done"
	HookFailed  = "failed"
)

// Hook is the last run of one of the admin's scripts.
type Hook struct {
	Name  string  `json:"name"`            // start, stop or advertisement
	State string  `json:"state"`           // HookRunning, HookDone or HookFailed
	Since Moment  `json:"since"`           // when that state was entered
	Took  Seconds `json:"took_s,omitzero"` // how long it ran, once it has ended
	Error string  `json:"error,omitempty"` // why it failed
}

// Problem is something that is wrong, and what to do about it.
type Problem struct {
	Text   string `json:"text"`
	Remedy string `json:"remedy,omitempty"`
}

// Moment is a point in time by the wall clock, for people, and by the boot
// clock, for whoever wants to know how long ago it was although the wall clock
// was set in between.
type Moment struct {
	Time time.Time     // RFC 3339 in the file, key "time"
	Boot time.Duration // since the machine booted, suspensions included; seconds in the file, key "boot_s"
}

type momentJSON struct {
	Time time.Time `json:"time"`
	Boot Seconds   `json:"boot_s"`
}

// Now is this moment.
func Now() Moment {
	return Moment{Time: time.Now().Truncate(time.Millisecond), Boot: bootclock.Now().Truncate(time.Millisecond)}
}

// Age is the time from m to now, both of this boot.
func (m Moment) Age(now Moment) time.Duration { return now.Boot - m.Boot }

// IsZero tells whether m is no moment at all.
func (m Moment) IsZero() bool { return m.Time.IsZero() && m.Boot == 0 }

func (m Moment) MarshalJSON() ([]byte, error) {
	return json.Marshal(momentJSON{m.Time, Seconds(m.Boot)})
}

func (m *Moment) UnmarshalJSON(b []byte) error {
	var j momentJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return err
	}
	*m = Moment{j.Time, time.Duration(j.Boot)}
	return nil
}

// Seconds is a duration that stands in the file as a decimal number of seconds.
type Seconds time.Duration

func (s Seconds) MarshalJSON() ([]byte, error) {
	return strconv.AppendFloat(nil, time.Duration(s).Seconds(), 'f', -1, 64), nil
}

func (s *Seconds) UnmarshalJSON(b []byte) error {
	f, err := strconv.ParseFloat(string(b), 64)
	if err != nil || !(f > -1e9 && f < 1e9) {
		return fmt.Errorf("%s: want a number of seconds", b)
	}
	*s = Seconds(f * float64(time.Second))
	return nil
}

func (s Seconds) String() string { return time.Duration(s).String() }

// WriteFile puts d at path by rename, mode 0644.
func (d Daemon) WriteFile(path string) error {
	b, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return err
	}
	return replace(path, append(b, '\n'))
}

// ReadDaemon reads what WriteFile wrote. Without a file the error wraps
// fs.ErrNotExist: the daemon has not run since the machine booted.
func ReadDaemon(path string) (Daemon, error) {
	var d Daemon
	b, err := smallfile.Read(path, maxJSON)
	if err != nil {
		return d, err
	}
	if err := json.Unmarshal(b, &d); err != nil {
		return Daemon{}, fmt.Errorf("%s: %w", path, err)
	}
	return d, nil
}

// Alive tells whether the daemon that wrote d is running.
func (d Daemon) Alive() bool { return Alive(d.PID, d.Updated.Boot) }

// Alive tells whether pid is a running process that was there at asOf, by the
// boot clock. It is how to trust a pid from a file: whoever got the number later
// started later than the file was written.
func Alive(pid int, asOf time.Duration) bool {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return false
	}
	// The name in the second field may hold anything, closing parentheses too.
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return false
	}
	ticks, err := strconv.ParseInt(fields[19], 10, 64)
	started := time.Duration(ticks) * (time.Second / 100) // USER_HZ is 100 on every Linux that Go runs on
	return err == nil && started <= asOf
}
