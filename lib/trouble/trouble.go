// Package trouble keeps the conditions that an admin should know of while they
// last: each is logged when it begins, changes and ends, and listed meanwhile.
// So a thing that goes wrong again and again is said once.
package trouble

import (
	"log/slog"
	"maps"
	"slices"
	"sync"
)

// Item is one condition: what is wrong, and what to do about it.
type Item struct{ Words, Remedy string }

// List holds conditions by key. It may be used by several goroutines.
type List struct {
	log   *slog.Logger
	mu    sync.Mutex
	items map[string]Item
}

// New returns an empty list that logs to log.
func New(log *slog.Logger) *List { return &List{log: log, items: map[string]Item{}} }

// Set begins a condition, or changes its words. Key tells it from others.
func (l *List) Set(key, words string) { l.Advise(key, words, "") }

// Advise is Set with a remedy, which is logged behind the words.
func (l *List) Advise(key, words, remedy string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	item := Item{words, remedy}
	if l.items[key] == item {
		return
	}
	l.items[key] = item
	if remedy != "" {
		words += "; " + remedy
	}
	l.log.Warn(words)
}

// Show begins a condition that somebody else has logged.
func (l *List) Show(key, words string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.items[key] = Item{Words: words}
}

// Clear ends a condition.
func (l *List) Clear(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if item, ok := l.items[key]; ok {
		delete(l.items, key)
		l.log.Info("over: " + item.Words)
	}
}

// Check sets the condition to the error's words, or clears it for nil.
func (l *List) Check(key, prefix string, err error) {
	if err == nil {
		l.Clear(key)
		return
	}
	l.Set(key, prefix+err.Error())
}

// Items returns all conditions, ordered by key.
func (l *List) Items() []Item {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := make([]Item, 0, len(l.items))
	for _, key := range slices.Sorted(maps.Keys(l.items)) {
		list = append(list, l.items[key])
	}
	return list
}

// Words returns the words of all conditions, ordered by key.
func (l *List) Words() []string {
	var list []string
	for _, item := range l.Items() {
		list = append(list, item.Words)
	}
	return list
}
