package tree

// Paths returns at most limit of the paths that wait, in no order.
func (s *Settler) Paths(limit int) []string {
	some := make([]string, 0, min(limit, len(s.queue)))
	for _, u := range s.queue[:min(limit, len(s.queue))] {
		some = append(some, u.path)
	}
	return some
}

// Waits tells whether the path has changed since it was taken.
func (s *Settler) Waits(path string) bool { return s.paths[path] != nil }
