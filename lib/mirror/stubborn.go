package mirror

import (
	"maps"
	"slices"
)

// repairs is how often a file of the peer that nobody changed here is repaired.
// Something there that keeps changing it would otherwise go on for ever.
const repairs = 2

// stubborn are the files of the peer that are left alone, until something
// changes here.
type stubborn struct {
	tries map[string]map[string]int  // repairs in a row, by root and path
	alone map[string]map[string]bool // given up
}

func newStubborn() stubborn {
	return stubborn{map[string]map[string]int{}, map[string]map[string]bool{}}
}

// leaveStubborn takes those files out of what is wanted that were repaired often
// enough, unless an admin asks for it, or that another version of Skudonet may
// have changed.
func (r *round) leaveStubborn(parts []*part, skewed, asked bool) {
	for _, p := range parts {
		tries, alone := map[string]int{}, map[string]bool{}
		for path := range p.repairs {
			before := r.stubborn.tries[p.Name][path]
			tries[path] = min(before+1, repairs)
			if before >= repairs && !asked || skewed {
				alone[path] = true
				p.giveUp(path)
			}
		}
		r.stubborn.tries[p.Name], r.stubborn.alone[p.Name] = tries, alone
	}
	r.sayStubborn()
}

// giveUp leaves a path alone.
func (p *part) giveUp(path string) {
	p.except[path] = true
	delete(p.wanted, path)
	delete(p.repairs, path)
	delete(p.changes, path)
}

// unrepaired notes a path that was not the same after its repairs in one round.
func (r *round) unrepaired(p *part, path string) {
	if r.stubborn.alone[p.Name] == nil {
		r.stubborn.tries[p.Name], r.stubborn.alone[p.Name] = map[string]int{}, map[string]bool{}
	}
	r.stubborn.tries[p.Name][path], r.stubborn.alone[p.Name][path] = repairs, true
	p.giveUp(path)
	r.sayStubborn()
}

// noStubborn begins anew, with all that was given up.
func (r *round) noStubborn(parts []*part) {
	for _, p := range parts {
		for path := range r.stubborn.alone[p.Name] {
			if !p.same {
				delete(p.except, path)
				p.wanted[path] = true
			}
		}
		delete(r.stubborn.tries, p.Name)
		delete(r.stubborn.alone, p.Name)
	}
	r.sayStubborn()
}

// leftAlone names what was given up.
func (r *round) leftAlone() (list []string) {
	for _, root := range r.cfg.Roots {
		for _, path := range slices.Sorted(maps.Keys(r.stubborn.alone[root.Name])) {
			list = append(list, name(path))
		}
	}
	return list
}

func (r *round) sayStubborn() {
	list := r.leftAlone()
	if len(list) == 0 {
		r.cfg.Troubles.Clear("stubborn")
		return
	}
	r.cfg.Troubles.Advise("stubborn", "differs on the peer, and is left alone there, because something there changes it again: "+sentence(list),
		"find out what changes it there; it is sent again when something changes here, or by skd-inotify sync")
}
