// Package peer is how the replicator of the master talks to the backup: over
// the standard input and output of one ssh session in which the backup runs
// "skd-inotify peer". Open is the master's side, Serve the backup's.
//
// One lasting session instead of a command for each question keeps the costs of
// ssh's key exchange and of a starting program out of every change, and lets the
// backup keep its manifest between two questions.
//
// # Frames
//
// The server begins with the line "\x00skd-inotify peer 1\n". What a shell's
// start-up files print before it is skipped; text does not begin a line with a
// NUL. The number is that of the framing and stays when the protocol changes.
// Everything after it, in both directions, is frames:
//
//	1 byte    type, an ASCII letter
//	4 bytes   length of the body, big endian
//	n bytes   body: at most 64 KiB for data, 1 MiB for everything else
//
// A capital letter asks or answers, a small letter is a part of what is under
// way. All capitals' bodies are JSON objects, in which a path is base64, because
// a path need not be UTF-8.
//
//	client   H  hello: the protocols it speaks, its version, its $exclude
//	         D  digest: remove, look again, answer the digests; commit
//	         M  manifest of one root
//	         R  rsync: run the server half of an rsync in a root, to write or to fetch
//	         S  the role of this node, as its status file has it
//	         V  vector: what this node knows of the configuration that it holds
//	         K  keep: archive all there is, as a conflict that waits
//	         N  a new identity for this node
//	         n  paths that an rsync may write, each with a NUL behind it
//	         i  data for rsync's standard input
//	         c  end of rsync's standard input (no body)
//	         x  end the rsync (no body)
//	         w  window: so many bytes of o were taken (4 bytes)
//	server   H  hello: the chosen protocol and what the client must know
//	         A  the answer to the request
//	         E  the request failed: kind, text, remedy
//	         m  a piece of the manifest, data
//	         o  rsync's standard output, data
//	         e  rsync's standard error, data, at most 64 KiB in all
//	         w  window: so many bytes of i were taken (4 bytes)
//
// The client asks one thing at a time, and each request gets one A or E, which
// ends it. E leaves the session usable, unless its kind is "ended" or nothing was
// asked: then it says why the server ends.
//
// # Windows
//
// Of i and of o at most 512 KiB are under way: who sends more than was granted
// breaks the protocol. So both sides can always take what comes, in a bounded
// queue, and never wait for an rsync that does not read. The two directions
// cannot block each other, and x, or the end of the session, is seen at once.
//
// The paths that an rsync may write come before it begins, as n, because they may
// be more than fit into R; R says how many bytes they take.
//
// # Growing
//
// A later version may add fields to an object: unknown ones are ignored. It may
// add requests: a capital that the server does not know is answered with an E of
// kind "unknown" (ErrUnknown), and the session goes on, so that a client asks and
// does without. It may add parts: an unknown small letter is ignored. What cannot
// be done in these ways is a new protocol; the client offers all that it speaks,
// the server takes the highest it speaks too, or refuses with kind "version".
//
// # What the server guards
//
// A master is nobody's mirror: while the server's own status file says master,
// everything that changes something is refused (ErrMaster): removals, an rsync
// that writes, commit, keep, a new identity. A running rsync that writes is ended
// as soon as it says so. Reading is always granted: role, vector, digests,
// manifest, an rsync that fetches. Paths never lead through a symbolic link, out
// of a root, or to what is not replicated. Only one server runs at a time; a
// newer one ends the older, which may be the rest of a connection that is already
// dead, and waits until its rsync is gone as well.
//
// # Nothing is replaced that nobody can bring back
//
// A request to write or remove may carry a Keeping. What is replaced or removed
// is then archived first (package archive), unless it can be accounted for. A
// path is accounted for while it is as the record (package ledger) has it, or as
// this session has put it: the master has or had that, and needs no copy. The
// server looks at the paths anew before each such request.
//
// Between that look and the removal, or rsync's rename, lie milliseconds in which
// somebody may still write. So nothing is dropped before it was compared: what is
// removed is renamed into the directory "replaced" in that for temporary files, and
// rsync puts there what it replaces (--backup-dir; by a hard link, so a file is
// never missing). When all is done, or was ended, that is sifted: a file that
// somebody has open for writing is waited for, half a second at most; what looks as
// it did before the look is dropped; what was changed just before that look is read,
// because a stamp says too little of it; and what is not what was known of it is
// archived. Where there is no room for the archive, it stays, the request fails,
// and so do all that would replace something, until there is. What an interruption leaves is
// sifted by the next session, or by this node's own daemon if it is promoted (Sift):
// without stamps, so all of it is archived that is neither in the tree nor the
// record's. What remains: who puts a new file in the place of one, by a rename,
// between rsync's link and its rename, some microseconds, loses that new file.
//
// How it is known which paths those are, when a session begins:
//
//   - The digest of the tree is the record's: all of them. Digests are comparable
//     only if they are of the same set of files. The master names the set, in a
//     word that means nothing here, with each request for digests; a record with
//     another word, and a session without one, account for nothing.
//   - It is not, but the intent explains it. This is a small file, intent-ROOT,
//     written before an rsync or a removal: the paths, the digest of all others,
//     and which of these were not accounted for. If the others still have that
//     digest, a push was interrupted, and its paths are accounted for whatever
//     they are. After the push it is written again without paths; after a commit
//     it is blank.
//   - Neither. Somebody has changed something. Where that is, known-ROOT tells:
//     what the tree consisted of at the latest commits, or when this node ended
//     to be master (Remember). It counts if its digest is the record's.
//   - Else nothing is accounted for, and all that is replaced is archived.
//
// Both files are hints that are checked by a digest, belong to one state of the
// record, and may be lost: they are not synced. In the session, only the paths
// are remembered that are not accounted for (or those that are, if the rule is
// the opposite): what a look finds changed and no push of this session explains.
// The answer to D says whether there are any (Touched).
//
// # Order of writes
//
// Each line begins when the one before it is done.
//
//  1. Archive: files and names are on the disk, before anything of them is
//     replaced. If it cannot be made, the request is refused, and nothing was
//     changed.
//  2. Intent: written, not synced.
//  3. Removals; or rsync, each file by a rename from the directory for temporary
//     files. Then what they replaced is sifted, its archive as durable as in 1,
//     and dropped.
//  4. Sync (fsync of each file and its directory, syncfs if they are many): with
//     the commit, after the digests of the whole trees, without exceptions, were
//     found to be those of the master.
//  5. The record is stored, durably, under its lock.
//  6. The intent is blanked. From 5 on it belongs to a record that is no more; if
//     the record stays as it was, that is synced.
//  7. Conflicts that wait no more on the master are marked resolved.
//
// An interruption, by SIGKILL or by a power cut, after 1 leaves an archive of
// what is still there, no more. During 2 and 3 the record is the old one, so the
// vector claims nothing of the half that has come; the next session finds the
// tree changed, and the intent tells it that this was the master. If a power cut
// took the intent, or left an older one, its digest does not fit, and what the
// known manifest cannot account for is archived once more. The same holds between
// 3 and 5. As files are synced before the record, the new vector never stands for
// content that a power cut takes away. After 5 a conflict may still wait; the
// next commit ends that. Who does not get the answer to a commit sends it again:
// it is then nothing but a comparison.
//
// An adoption or a restore that this node's own daemon has begun (package
// journal) is finished before the server looks at the tree.
package peer
