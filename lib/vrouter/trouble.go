package vrouter

import (
	"log/slog"
	"maps"
	"slices"
	"sync"
)

// Troubles are the conditions that an admin should know of while they last:
// each is logged when it begins, changes and ends, and shown by skd-hooks status.
type Troubles struct {
	log   *slog.Logger
	mu    sync.Mutex
	words map[string]string
}

// NewTroubles returns an empty list that logs to log.
func NewTroubles(log *slog.Logger) *Troubles {
	return &Troubles{log: log, words: map[string]string{}}
}

// Set begins a condition, or changes its words. Key tells it from others.
func (t *Troubles) Set(key, words string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.words[key] != words {
		t.words[key] = words
		t.log.Warn(words)
	}
}

// Show begins a condition that somebody else has logged.
func (t *Troubles) Show(key, words string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.words[key] = words
}

// Clear ends a condition.
func (t *Troubles) Clear(key string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if words, ok := t.words[key]; ok {
		delete(t.words, key)
		t.log.Info("over: " + words)
	}
}

// Check sets the condition to the error's words, or clears it for nil.
func (t *Troubles) Check(key, prefix string, err error) {
	if err == nil {
		t.Clear(key)
		return
	}
	t.Set(key, prefix+err.Error())
}

// List returns the words of all conditions, ordered by key.
func (t *Troubles) List() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	list := make([]string, 0, len(t.words))
	for _, key := range slices.Sorted(maps.Keys(t.words)) {
		list = append(list, t.words[key])
	}
	return list
}
