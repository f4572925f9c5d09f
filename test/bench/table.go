package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"
)

// samples are repeated measurements of one thing.
type samples []float64

func (s samples) median() float64 {
	sorted := slices.Sorted(slices.Values(s))
	n := len(sorted)
	if n == 0 {
		return 0
	}
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// percentile 95 is what 95 of 100 do not exceed.
func (s samples) percentile(p int) samples {
	if len(s) == 0 {
		return nil
	}
	sorted := slices.Sorted(slices.Values(s))
	return samples{sorted[(len(s)*p+99)/100-1]}
}

// one is the median alone.
func (s samples) one() samples {
	if len(s) == 0 {
		return nil
	}
	return samples{s.median()}
}

// String is the median, with the range if there is one.
func (s samples) String() string {
	switch len(s) {
	case 0:
		return "–"
	case 1:
		return number(s[0])
	}
	return fmt.Sprintf("%s (%s–%s)", number(s.median()), number(slices.Min(s)), number(slices.Max(s)))
}

// number has three digits that mean something.
func number(v float64) string {
	switch {
	case v == 0:
		return "0"
	case v < 1:
		return fmt.Sprintf("%.2g", v)
	case v < 9.995:
		return fmt.Sprintf("%.2f", v)
	case v < 99.95:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.0f", v)
}

// ratio of two medians, in words of a column.
func ratio(of, to samples) string {
	if len(of) == 0 || len(to) == 0 || to.median() == 0 {
		return "–"
	}
	return number(of.median()/to.median()) + "×"
}

// table is a title, a line of headings and rows. The first column is to the left, numbers are to the right.
type table struct {
	title    string
	headings []string // of the columns after the first
	rows     [][]string
	notes    []string
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

func (t *table) note(format string, args ...any) {
	t.notes = append(t.notes, fmt.Sprintf(format, args...))
}

const indent = "  "

func (t *table) write(w io.Writer) {
	lines := append([][]string{append([]string{""}, t.headings...)}, t.rows...)
	widths := make([]int, 1+len(t.headings))
	for _, line := range lines {
		for column, cell := range line {
			widths[column] = max(widths[column], utf8.RuneCountInString(cell))
		}
	}
	fmt.Fprintln(w, t.title)
	for _, line := range lines {
		text := ""
		for column, cell := range line {
			pad := strings.Repeat(" ", widths[column]-utf8.RuneCountInString(cell))
			if column == 0 {
				cell, pad = pad, cell
			}
			text += indent + pad + cell
		}
		fmt.Fprintln(w, strings.TrimRight(text, " "))
	}
	for _, note := range t.notes {
		fmt.Fprintln(w, indent+note)
	}
}

// comparison is a table with a column for each product, and one for each rival that says how many times its figure ours
// is.
type comparison struct{ table }

func compare(title string, products []*product) *comparison {
	var names []string
	for _, p := range products {
		names = append(names, p.name)
	}
	return compareNames(title, names)
}

func compareNames(title string, names []string) *comparison {
	c := &comparison{table{title: title, headings: slices.Clone(names)}}
	for _, name := range names[1:] {
		c.headings = append(c.headings, "/"+name)
	}
	return c
}

// row has the figures in the order of the products.
func (c *comparison) row(name string, figures []samples) {
	cells := []string{name}
	for _, s := range figures {
		cells = append(cells, s.String())
	}
	for _, s := range figures[1:] {
		cells = append(cells, ratio(figures[0], s))
	}
	c.add(cells...)
}
