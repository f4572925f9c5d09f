// Package step marks the places in the code at which a test may kill the
// process: between two writes that must be right in this order. In a program
// that is built as usual, At is nothing. Built with the tag "steps", it sends
// SIGKILL to its own process when the environment variable SKD_STEP is the name
// of the step; "name:3" is the third time that the step is reached. SKD_STOP is for
// SIGSTOP in the same way: a test can change something at the step.
//
// # Steps of lib/peer, on the backup
//
//	peer.renewed            a new identity is on the disk, the master does not know it
//	peer.kept               the archive of a conflict is made, the master does not know it
//	peer.archived           what is going to be replaced or removed is archived
//	peer.intent             what is going to be written or removed is noted
//	peer.rsync.started      rsync runs, nothing has reached it
//	peer.rsync.ended        rsync has ended, the master does not know it
//	peer.removing           some, but not all of the removals of a request are done
//	peer.removed            the removals of a request are done
//	peer.sifted             what was replaced is compared, and archived if need be, but not dropped
//	peer.looked             the trees are looked at, the answer is not given
//	peer.commit.synced      the files are on the disk, the record is not stored
//	peer.commit.stored      the record is stored, what was noted of pushes is not removed
//	peer.commit.forgotten   that is gone, conflicts are not marked resolved
//	peer.commit.resolved    all is done, the master does not know it
//
// # Steps of lib/mirror, on the master
//
//	mirror.synced             changed files are on the disk, the record is not stored
//	mirror.recorded           the record is stored, the peer does not know it
//	mirror.adopt.archived     what an adoption replaces is archived
//	mirror.adopt.fetched      the peer's files are staged
//	mirror.conflict.kept      the peer has archived its configuration whole
//	mirror.conflict.archived  so has this node
//	mirror.restore.archived   what a restoration replaces is archived
//	mirror.restore.staged     the archived files are staged
//
// # Steps of lib/swap, on either node
//
//	swap.begun     the journal is on the disk, nothing has been changed
//	swap.applied   the tree is changed, the record is not stored
//	swap.recorded  the record is stored, the journal has not ended
package step
