// Package systemd tells whether there is one.
package systemd

import "os"

// Booted tells whether systemd is the first process of this system, as
// sd_booted(3) does.
func Booted() bool {
	info, err := os.Lstat("/run/systemd/system")
	return err == nil && info.IsDir()
}
