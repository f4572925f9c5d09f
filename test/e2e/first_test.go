package e2e

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skudonet/skudonet-ce-cluster/lib/ledger"
	"github.com/skudonet/skudonet-ce-cluster/lib/status"
	"github.com/skudonet/skudonet-ce-cluster/lib/vector"
	"github.com/skudonet/skudonet-ce-cluster/test/lab"
)

// Both nodes are new, and the admin has made $cluster_ip a virtual interface on
// lb1. It becomes master, although lb2 is started first and has the higher address.
func TestFirstStart(t *testing.T) {
	const words = "first start: $cluster_ip is not a virtual interface here, so this node waits "
	p := newPair(t, keys{"advert_interval": "0.5"})
	p.run(p.LB2, "rm", lab.TreePath+"/if_eth0:1_conf")
	since := time.Now()
	p.start(p.LB2)
	p.logged(p.LB2, "backup on eth0 vrid 1: the service started; "+words+"5.414s")
	p.start(p.LB1)
	p.waitMaster(p.LB1)
	if got := p.changes(p.LB2, since); !slices.Equal(got, []string{"backup"}) {
		t.Errorf("the status of lb2 was %q", got)
	}
	p.neverTwo(since, 0)
	if p.timesLogged(p.LB1, words) > 0 {
		t.Error("lb1 has the virtual interface, and says that it has not")
	}
	p.saidOnce(p.LB2, "vrid 1: the service started; "+words)
	if _, found, err := ledger.Peek(p.LB2.Root(status.StateDir)); found || err != nil {
		t.Errorf("the election has made a record of the replication's: %v, %v", found, err)
	}

	t.Log("alone, it becomes master in the end")
	p.stop(p.LB2)
	p.stop(p.LB1)
	p.start(p.LB2)
	p.waitStatus(p.LB2, "master")
	p.logged(p.LB2, "no advertisement from anybody for 5.414s")
	p.stop(p.LB2)

	t.Log("a node that took part in a replication is not new")
	id := vector.NewID()
	p.check(ledger.Store(p.LB2.Root(status.StateDir), ledger.Record{ID: id, Machine: "m", Vector: vector.Vector{}.Raised(id)}))
	p.start(p.LB2)
	p.waitStatus(p.LB2, "master")
	p.logged(p.LB2, "no advertisement from anybody for 1.805s")
	p.stop(p.LB2)

	t.Log("a record that cannot be read says nothing of that")
	p.check(p.LB2.WriteFile(status.StateDir+"/"+ledger.Name, "{", 0o600))
	p.start(p.LB2)
	p.logged(p.LB2, "whether this node took part in a cluster before cannot be told: ")
	p.awaitReport(p.LB2, "as a new node", func(r status.Daemon) (bool, string) {
		return r.State == status.Backup && strings.HasPrefix(r.Reason, "the service started; "+words), r.Reason
	})
}
