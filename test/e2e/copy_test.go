package e2e

import (
	"strings"
	"testing"

	"github.com/skudonet/skudonet-ce-cluster/lib/status"
)

// A cloned node: both have the address of lb1 on eth0. Linux hides the adverts of
// each from the other's socket, so both are master; each must say why.
func TestTheSameAddressOnBothNodes(t *testing.T) {
	p := newPair(t)
	p.run(p.LB2, "ip", "addr", "flush", "dev", "eth0")
	p.run(p.LB2, "ip", "addr", "add", p.LB1.Addr(0).String()+"/24", "dev", "eth0")
	p.configure(p.LB2, keys{"local_ip": p.LB1.Addr(0).String(), "remote_ip": p.LB2.Addr(0).String()})
	p.start(p.LB1)
	p.start(p.LB2)
	for _, n := range p.Nodes() {
		p.logged(n, "it carries our own address: is $local_ip the same on two nodes")
		p.eventually("the fault in the report of "+n.Name, func() (bool, string) {
			faults := p.fresh(n).Faults
			return len(faults) == 1 && strings.Contains(faults[0].Text, "another node advertises from our address"), strings.Join(texts(faults), "; ")
		})
	}
	p.saidOnce(p.LB1, "it carries our own address")
	p.saidOnce(p.LB2, "it carries our own address")
}

func texts(problems []status.Problem) (list []string) {
	for _, p := range problems {
		list = append(list, p.Text)
	}
	return list
}
