#!/usr/bin/perl
# Stand-in for the replicator of version 2.0: there, and replicates nothing.
open(my $log, ">>", "/var/log/skdinotify.log") or die "skdinotify.log: $!\n";
print $log "stand-in replicator of version 2.0 started\n";
close($log);
sleep(1) while 1;
