package rsync

import "strings"

// option is one option of rsync and what becomes of it. Without keep, direct
// and why it is dropped in silence: it is what we do anyway, or only talk.
type option struct {
	names   string // the short one first, the usual long one last
	value   bool   // takes a value
	keep    bool
	direct  bool   // kept, and rsync must read the tree itself
	why     string // dropped: why, said to the admin
	without string // --no-NAME is dropped: why
}

const (
	notKnown = "not known to be safe for a mirror"
	noOption = "not an option; the replicator names the files itself"

	always     = "turns off what a mirror needs"
	ownConn    = "the connection is the replicator's own; ports, users and keys belong into root's ~/.ssh/config"
	daemonOnly = "is for connections to an rsync daemon; there is none here"
	rules      = "rules for what is left out belong into $exclude"
	newer      = "would leave newer files on the peer as they are; a mirror needs none"
	backups    = "would leave backup copies in the peer's tree"
	torn       = "would show half-written files on the peer"
	ownTemp    = "temporary files stay outside the peer's tree, where the replicator says"
	bySize     = "would leave files out by their size"
	noDevices  = "devices, sockets and FIFOs are not replicated"
	targets    = "would copy what symlinks point to; they are replicated as symlinks"
	otherMode  = "would give files another mode on the peer"
	otherOwner = "would give files another owner on the peer"
	baseDir    = "the peer's tree is compared with nothing but the tree here"
	batch      = "batch files do not change the peer"
	shortTime  = "would end a transfer in the middle"
	missing    = "what is missing is the replicator's to decide"
	paths      = "the paths are the replicator's own"
	noTransfer = "would transfer nothing"
)

// canBeNegated lists the kept options of which rsync knows a --no- form.
const canBeNegated = "c checksum z compress W whole-file y fuzzy S sparse bwlimit open-noatime " +
	"A acls X xattrs H hard-links N crtimes U atimes"

var known = []option{
	// What the replicator does anyway.
	{names: "a archive", without: always},
	{names: "r recursive", without: always},
	{names: "l links", without: always},
	{names: "p perms", without: always},
	{names: "t times", without: always},
	{names: "g group", without: always},
	{names: "o owner", without: always},
	{names: "d dirs"},
	{names: "old-d old-dirs"},
	{names: "i-r inc-recursive"},
	{names: "i-d implied-dirs"},
	{names: "E executability"},
	{names: "I ignore-times"},
	{names: "O omit-dir-times"},
	{names: "J omit-link-times"},
	{names: "numeric-ids", without: "names of users may have other numbers on the peer"},
	{names: "s protect-args secluded-args", without: "names with blanks would be taken apart"},
	{names: "0 from0"},
	{names: "super", without: "the peer's files would not get their owners"},
	{names: "force"},
	{names: "delete", without: always},
	{names: "delete-before"},
	{names: "del delete-during"},
	{names: "delete-delay"},
	{names: "delete-after"},
	{names: "mkpath"},
	{names: "drop-D"},
	{names: "trust-sender"},
	{names: "qsort"},
	{names: "4 ipv4"},
	{names: "6 ipv6"},

	// Talk.
	{names: "v verbose"},
	{names: "q quiet"},
	{names: "progress"},
	{names: "h human-readable"},
	{names: "i itemize-changes"},
	{names: "stats"},
	{names: "8 8-bit-output"},
	{names: "motd"},
	{names: "msgs2stderr"},
	{names: "info", value: true},
	{names: "debug", value: true},
	{names: "stderr", value: true},
	{names: "outbuf", value: true},
	{names: "log-format out-format", value: true},

	// Harmless.
	{names: "z compress", keep: true},
	{names: "old-compress", keep: true},
	{names: "new-compress", keep: true},
	{names: "zc compress-choice", value: true, keep: true},
	{names: "zl compress-level", value: true, keep: true},
	{names: "zt compress-threads", value: true, keep: true},
	{names: "skip-compress", value: true, keep: true},
	{names: "W whole-file", keep: true},
	{names: "y fuzzy", keep: true},
	{names: "S sparse", keep: true},
	{names: "preallocate", keep: true},
	{names: "fsync", keep: true},
	{names: "c checksum", keep: true},
	{names: "cc checksum-choice", value: true, keep: true},
	{names: "checksum-seed", value: true, keep: true},
	{names: "B block-size", value: true, keep: true},
	{names: "bwlimit", value: true, keep: true},
	{names: "max-alloc", value: true, keep: true},
	{names: "open-noatime", keep: true},
	{names: "log-file", value: true, keep: true},
	{names: "log-file-format", value: true, keep: true},

	// Attributes that a copy of the file does not carry.
	{names: "A acls", direct: true},
	{names: "X xattrs", direct: true},
	{names: "H hard-links", direct: true},
	{names: "N crtimes", direct: true},
	{names: "U atimes", direct: true},
	{names: "fake-super", direct: true},

	// What would make the peer's tree another one than ours.
	{names: "u update", why: newer},
	{names: "n dry-run", why: noTransfer},
	{names: "list-only", why: noTransfer},
	{names: "V version", why: noTransfer},
	{names: "help", why: noTransfer},
	{names: "size-only", why: "would not see changes that leave the size as it is"},
	{names: "@ modify-window", value: true, why: "would not see changes that follow each other closely"},
	{names: "existing ignore-non-existing", why: "would leave out new files"},
	{names: "ignore-existing", why: "would leave changed files on the peer as they are"},
	{names: "max-size", value: true, why: bySize},
	{names: "min-size", value: true, why: bySize},
	{names: "max-delete", value: true, why: "would leave removed files on the peer"},
	{names: "delete-excluded", why: "would remove what belongs to the peer itself"},
	{names: "ignore-errors", why: "would remove from the peer what could not be read here"},
	{names: "remove-sent-files remove-source-files", why: "would remove the files here"},
	{names: "m prune-empty-dirs", why: "would leave out empty directories"},
	{names: "x one-file-system", why: "would leave out what is mounted in the tree"},
	{names: "b backup", why: backups},
	{names: "backup-dir", value: true, why: backups},
	{names: "suffix", value: true, why: backups},
	{names: "L copy-links", why: targets},
	{names: "copy-unsafe-links", why: targets},
	{names: "k copy-dirlinks", why: targets},
	{names: "safe-links", why: "would leave out symlinks that point out of the tree"},
	{names: "munge-links", why: "would change where symlinks point to"},
	{names: "K keep-dirlinks", why: "would write through symlinks on the peer"},
	{names: "insecure-links", why: "would write through symlinks on the peer"},
	{names: "chmod", value: true, why: otherMode},
	{names: "chown", value: true, why: otherOwner},
	{names: "usermap", value: true, why: otherOwner},
	{names: "groupmap", value: true, why: otherOwner},
	{names: "copy-as", value: true, why: otherOwner},
	{names: "iconv", value: true, why: "would change the names of files"},
	{names: "D", why: noDevices},
	{names: "devices", why: noDevices},
	{names: "specials", why: noDevices},
	{names: "copy-devices", why: noDevices},
	{names: "write-devices", why: noDevices},
	{names: "R relative", why: "would put the files below their full path on the peer"},
	{names: "C cvs-exclude", why: rules},
	{names: "F", why: rules},
	{names: "f filter", value: true, why: rules},
	{names: "exclude", value: true, why: rules},
	{names: "exclude-from", value: true, why: rules},
	{names: "include", value: true, why: rules},
	{names: "include-from", value: true, why: rules},

	// What would clash with our own options.
	{names: "P", why: torn},
	{names: "partial", why: torn},
	{names: "partial-dir", value: true, why: ownTemp},
	{names: "delay-updates", why: ownTemp},
	{names: "T temp-dir", value: true, why: ownTemp},
	{names: "inplace", why: torn},
	{names: "append", why: torn},
	{names: "append-verify", why: torn},
	{names: "compare-dest", value: true, why: baseDir},
	{names: "copy-dest", value: true, why: baseDir},
	{names: "link-dest", value: true, why: baseDir},
	{names: "write-batch", value: true, why: batch},
	{names: "only-write-batch", value: true, why: batch},
	{names: "read-batch", value: true, why: batch},
	{names: "files-from", value: true, why: paths},
	{names: "confine-root", value: true, why: paths},
	{names: "ignore-missing-args", why: missing},
	{names: "delete-missing-args", why: missing},
	{names: "stop-after time-limit", value: true, why: shortTime},
	{names: "stop-at", value: true, why: shortTime},
	{names: "timeout", value: true, why: "the replicator has a limit of its own"},
	{names: "protocol", value: true, why: "the two rsyncs agree on it by themselves"},
	{names: "old-args", why: "names with blanks would be taken apart"},
	{names: "e rsh", value: true, why: ownConn},
	{names: "rsync-path", value: true, why: "the peer's $rsync names its rsync"},
	{names: "M remote-option", value: true, why: "options for the peer's rsync alone are the replicator's"},
	{names: "blocking-io", why: ownConn},
	{names: "contimeout", value: true, why: daemonOnly},
	{names: "address", value: true, why: daemonOnly},
	{names: "port", value: true, why: daemonOnly},
	{names: "sockopts", value: true, why: daemonOnly},
	{names: "password-file", value: true, why: daemonOnly},
	{names: "early-input", value: true, why: daemonOnly},
}

var byName = func() map[string]*option {
	m := make(map[string]*option)
	for i := range known {
		for _, name := range strings.Fields(known[i].names) {
			m[name] = &known[i]
		}
	}
	return m
}()
