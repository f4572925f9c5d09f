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
//	         D  digest: remove, look again, answer the digests
//	         M  manifest of one root
//	         R  rsync: run the server half of an rsync in a root
//	         S  the role of this node, as its status file has it
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
// removals and rsync are refused (ErrMaster), and a running rsync is ended as
// soon as it says so. Paths never lead through a symbolic link, out of a root, or
// to what is not replicated. Only one server runs at a time; a newer one ends
// the older, which may be the rest of a connection that is already dead, and
// waits until its rsync is gone as well.
package peer
