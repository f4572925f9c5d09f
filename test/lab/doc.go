// Package lab makes the machines of an end-to-end test out of Linux namespaces: two nodes with a stand-in for Skudonet,
// a client and a switch, up in a fifth of a second, several labs side by side.
//
//	lb1 192.168.77.11 ─ eth0 ──┐            ┌── eth0 ─ 192.168.77.50 client
//	                           ├─ switch br0┤
//	lb2 192.168.77.12 ─ eth0 ──┘     │.1    └ · · $cluster_ip 192.168.77.100, held by one of the nodes
//
// With [Options].Nodes there are lb3 and lb4, .13 and .14, besides. With Links = 2 every machine has eth1 on a second switch, br1, with 192.168.177.x.
//
// A machine is a process 1 in pid, mount, network, UTS and IPC namespaces of its own: this very program, executed again
// (an init function takes over, so any program that imports the package can make a lab). The host's files are there
// read-only; /etc, /usr/local, /var/lib, /var/log, /var/tmp, /root and /tmp are the machine's own, on a "disk" that
// survives [Node.PowerOff]; /run and /dev are fresh at each [Node.PowerOn]. /etc begins as the host's, the others empty.
// The programs of [Options].BinDir appear in /usr/sbin, the hooks and skudonet-cluster.conf where the package puts them.
// There is no systemd: systemctl says "offline". Nothing of this can be seen on the host but the processes, skd-ID-lb1
// and so on, so nothing can be left behind: when the program ends, however it ends, the lab is gone, unless
// [Options].Keep was asked for.
//
//	func TestFailover(t *testing.T) {
//		l := lab.Test(t, lab.Options{})
//		for _, n := range l.Nodes() {
//			n.Start(lab.DaemonSpec{Args: []string{"skd-vrrpd", "-c", lab.ConfigPath}, Restart: true})
//		}
//		probe, _ := l.Client.ProbeAddress(lab.ClusterIP)
//		lab.Eventually(t, 10*time.Second, "a master", func() (bool, string) {
//			return probe.Answering(), l.LB1.Status() + "/" + l.LB2.Status()
//		})
//		l.LB1.PowerOff()
//		...
//		t.Log(probe.Stop().Longest())
//	}
//
// For the replication there are [Lab.ConnectSSH] with a real sshd on both nodes, [SameTrees], which compares what two nodes
// have by means of its own, and [Node.RecordTree], which sees what somebody on a node could see meanwhile. Disks that are
// full or read-only need no more than Run: a machine's mounts are its own, and [Node.Root] sees them.
//
//	l.LB2.Run("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", lab.TreePath+"/certificates")
//	l.LB2.Run("mount", "--bind", lab.TreePath, lab.TreePath)
//	l.LB2.Run("mount", "-o", "remount,bind,ro", lab.TreePath)
//	l.LB2.Run("umount", lab.TreePath)
//
// What a namespace cannot give: the wall clock is the host's (a step of it cannot be staged here), and so is the load.
// The stand-in for Skudonet is in stub/, and says what it copies.
package lab
