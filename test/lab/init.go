package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// bootEnv carries a bootSpec to the program that is executed again as the first process of a machine.
const bootEnv = "SKD_LAB_BOOT"

// File descriptors of a first process.
const (
	leashFD  = 3 + iota // end of file here: whoever wanted this machine is gone
	reportFD            // "ready", or what went wrong
	nameFD              // the lab's name: a bound unix socket, free again when the last machine is gone
	heldFD              // only the switch: the other end of the nodes' leash
)

const ready = "ready"

type bootSpec struct {
	Host   string
	Disks  []string // only the switch: make these
	BinDir string   // only the switch
	Copies bool     // no overlay, as where the kernel will not have one
}

// views are the directories of which each machine has its own.
var views = []string{"etc", "usr/local", "var/lib", "var/log", "var/tmp", "root", "tmp"}

func init() {
	text := os.Getenv(bootEnv)
	if text == "" {
		return
	}
	var spec bootSpec
	err := json.Unmarshal([]byte(text), &spec)
	if err == nil {
		err = spec.setUp()
	}
	report := os.NewFile(reportFD, "report")
	if err != nil {
		fmt.Fprint(report, err)
		syscall.Exit(1)
	}
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGTERM)
	go obeyLeash()
	io.WriteString(report, ready)
	report.Close()
	for {
		for pid := 1; pid > 0; {
			pid, _ = unix.Wait4(-1, nil, unix.WNOHANG, nil)
		}
		<-children
	}
}

// obeyLeash ends the machine at the end of file, unless it was told before that it may stay.
func obeyLeash() {
	if n, _ := os.NewFile(leashFD, "leash").Read(make([]byte, 1)); n == 0 {
		syscall.Exit(0) // os.Exit would linger a second under the race detector.
	}
}

func (s bootSpec) setUp() error {
	if err := unix.Sethostname([]byte(s.Host)); err != nil {
		return fmt.Errorf("hostname: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	if s.Disks != nil {
		return s.setUpSwitch()
	}
	return s.setUpNode()
}

// setUpSwitch makes what the machines share (the host's files, read-only) and their disks, in a mount namespace from
// which they get their own. It listens at the lab's name, so that a later lab of that name finds whom to end.
func (s bootSpec) setUpSwitch() error {
	readOnly := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(unix.AT_FDCWD, "/", unix.AT_RECURSIVE, &readOnly); err != nil {
		return fmt.Errorf("the host's files read-only: %w", err)
	}
	// BinDir and this program may lie where the machines' own directories will be.
	program, err := os.Executable()
	if err != nil {
		return err
	}
	var kept []int
	for _, source := range []string{program, s.BinDir} {
		if source == "" {
			continue
		}
		fd, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return fmt.Errorf("%s: %w", source, err)
		}
		kept = append(kept, fd)
	}
	steps := []mount{
		{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=755"},
		{"proc", "/proc", "proc", 0, ""},
		{"sysfs", "/sys", "sysfs", 0, ""},
	}
	if err := mountAll(steps); err != nil {
		return err
	}
	if err := os.WriteFile("/run/init", nil, 0o755); err != nil {
		return err
	}
	if err := os.MkdirAll("/run/bin", 0o755); err != nil {
		return err
	}
	for i, fd := range kept {
		target := []string{"/run/init", "/run/bin"}[i]
		if err := unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return fmt.Errorf("%s: %w", target, err)
		}
		unix.Close(fd)
	}
	if err := s.layer("/run/sbin", "", "/run/bin", "/usr/sbin"); err != nil {
		return err
	}
	for _, name := range s.Disks {
		if err := s.makeDisk("/run/" + name); err != nil {
			return fmt.Errorf("disk of %s: %w", name, err)
		}
	}
	if err := unix.Listen(nameFD, 1); err != nil {
		return fmt.Errorf("listen at the lab's name: %w", err)
	}
	return nil
}

func (s bootSpec) makeDisk(disk string) error {
	for _, dir := range views {
		mode := fs.FileMode(0o755)
		switch dir {
		case "root":
			mode = 0o700
		case "tmp", "var/tmp":
			mode = fs.ModeSticky | 0o777
		}
		full := filepath.Join(disk, dir)
		if err := os.MkdirAll(full, 0o755); err != nil {
			return err
		}
		if err := os.Chmod(full, mode); err != nil {
			return err
		}
	}
	return s.layer(disk+"/etc", disk+"/.etc", "/etc")
}

// layer lays an overlay of the lower directories, the first on top, over target; what is written goes to scratch, if
// there is one. Where the kernel will not have it (a host that is a container on an overlay itself), target gets copies.
func (s bootSpec) layer(target, scratch string, lower ...string) error {
	options := "lowerdir=" + strings.Join(lower, ":")
	dirs := []string{target}
	if scratch != "" {
		dirs = append(dirs, scratch+"/upper", scratch+"/work")
		options += ",upperdir=" + dirs[1] + ",workdir=" + dirs[2]
	}
	for _, dir := range dirs {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if !s.Copies && unix.Mount("overlay", target, "overlay", 0, options) == nil {
		return nil
	}
	for _, dir := range slices.Backward(lower) {
		if err := copyTree(target, dir); err != nil {
			return fmt.Errorf("copy %s: %w", dir, err)
		}
	}
	return nil
}

// copyTree copies directories, files and links, with modes and owners, over what is there.
func copyTree(to, from string) error {
	return filepath.WalkDir(from, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		target := to + name[len(from):]
		switch mode := info.Mode(); {
		case mode.IsDir():
			if err := os.Mkdir(target, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
		case mode.IsRegular():
			data, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			os.Remove(target) // It may be a link to somewhere else.
			if err := os.WriteFile(target, data, 0o600); err != nil {
				return err
			}
		case mode&fs.ModeSymlink != 0:
			link, err := os.Readlink(name)
			if err != nil {
				return err
			}
			os.Remove(target)
			return os.Symlink(link, target)
		default:
			return nil
		}
		owner := info.Sys().(*syscall.Stat_t)
		if err := os.Chown(target, int(owner.Uid), int(owner.Gid)); err != nil {
			return err
		}
		return os.Chmod(target, info.Mode())
	})
}

type mount struct {
	source, target, kind string
	flags                uintptr
	options              string
}

func mountAll(list []mount) error {
	for _, m := range list {
		if err := unix.Mount(m.source, m.target, m.kind, m.flags, m.options); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.source, m.target, err)
		}
	}
	return nil
}

// setUpNode starts in a copy of the switch's mount namespace.
func (s bootSpec) setUpNode() error {
	steps := []mount{
		{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"sysfs", "/sys", "sysfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"/run/sbin", "/usr/sbin", "", unix.MS_BIND, ""},
		{"", "/usr/sbin", "", unix.MS_REMOUNT | unix.MS_BIND | unix.MS_RDONLY, ""},
	}
	for _, dir := range views {
		steps = append(steps, mount{"/run/" + s.Host + "/" + dir, "/" + dir, "", unix.MS_BIND, ""})
	}
	if err := mountAll(steps); err != nil {
		return err
	}
	if err := makeDev(); err != nil {
		return fmt.Errorf("/dev: %w", err)
	}
	// The other machines' disks are no business of this one.
	if err := unix.Unmount("/run", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the disks: %w", err)
	}
	steps = []mount{{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=755"}}
	if err := mountAll(steps); err != nil {
		return err
	}
	if err := setSysctls(); err != nil {
		return err
	}
	return serveName(s.Host)
}

// makeDev gives the machine a /dev of its own, so that a /dev/log there is not the host's.
func makeDev() error {
	const stage = "/run/dev"
	if err := os.MkdirAll(stage, 0o755); err != nil {
		return err
	}
	steps := []mount{{"tmpfs", stage, "tmpfs", unix.MS_NOSUID, "mode=755"}}
	// No terminal shows the console of a machine; Skudonet writes to it.
	devices := map[string]string{"console": "null"}
	for _, name := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
		devices[name] = name
	}
	for name, device := range devices {
		steps = append(steps, mount{"/dev/" + device, stage + "/" + name, "", unix.MS_BIND, ""})
	}
	steps = append(steps,
		mount{"devpts", stage + "/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5"},
		mount{"tmpfs", stage + "/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		mount{stage, "/dev", "", unix.MS_MOVE, ""})
	if err := mountAll(steps[:1]); err != nil {
		return err
	}
	for name := range devices {
		if err := os.WriteFile(stage+"/"+name, nil, 0o666); err != nil {
			return err
		}
	}
	for _, dir := range []string{"pts", "shm"} {
		if err := os.Mkdir(stage+"/"+dir, 0o755); err != nil {
			return err
		}
	}
	for name, to := range map[string]string{
		"ptmx": "pts/ptmx", "fd": "/proc/self/fd",
		"stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(to, stage+"/"+name); err != nil {
			return err
		}
	}
	return mountAll(steps[1:])
}

// setSysctls undoes what a new network namespace may inherit from the host.
func setSysctls() error {
	values := map[string]string{"ip_forward": "0"}
	for _, scope := range []string{"all", "default"} {
		for _, key := range []string{"arp_ignore", "arp_announce", "arp_filter", "arp_notify", "arp_accept", "rp_filter"} {
			values["conf/"+scope+"/"+key] = "0"
		}
	}
	for key, value := range values {
		if err := os.WriteFile("/proc/sys/net/ipv4/"+key, []byte(value), 0); err != nil {
			return err
		}
	}
	return nil
}

// serveName is the service that a client probes: it answers every connection with the machine's name. The client resets
// the connection, so that none stays in TIME_WAIT.
func serveName(host string) error {
	listener, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Bind(listener, &unix.SockaddrInet4{Port: ServicePort})
	}
	if err == nil {
		err = unix.Listen(listener, 4096)
	}
	if err != nil {
		return fmt.Errorf("service: %w", err)
	}
	// The calls are raw: on a busy host, a thread that comes back to Go from a system call waits for threads that nobody
	// favours, for 100 ms at times. So Go believes that this one never waits, and could not stop it to collect garbage,
	// of which a first process makes none.
	debug.SetGCPercent(-1)
	name := []byte(host)
	go onThread(func() error {
		favour()
		for {
			conn, _, errno := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(listener), 0, 0, unix.SOCK_CLOEXEC, 0, 0)
			if errno != 0 {
				continue // The client has given up.
			}
			unix.RawSyscall(unix.SYS_WRITE, conn, uintptr(unsafe.Pointer(&name[0])), uintptr(len(name)))
			unix.RawSyscall(unix.SYS_CLOSE, conn, 0, 0)
		}
	})
	return nil
}
