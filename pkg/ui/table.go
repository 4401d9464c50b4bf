package ui

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/mattn/go-runewidth"
)

// Table is rows of text in aligned columns, for people and grep. Scripts use JSON.
//
// On a terminal that is too narrow, cells are broken at blanks and after commas. If that is not
// enough, the last columns get their own lines below their rows.
type Table struct {
	s    *Streams
	rows [][]string
}

// Table begins a table on Out with a line of headings, if there are any.
func (s *Streams) Table(headings ...string) *Table {
	t := &Table{s: s}
	if len(headings) > 0 {
		t.Row(headings...)
	}
	return t
}

// Row adds a row. An empty cell becomes "-", so that every row has the same number of words for
// awk.
func (t *Table) Row(cells ...string) {
	row := make([]string, len(cells))
	for i, c := range cells {
		if c == "" {
			c = "-"
		}
		row[i] = Escape(c)
	}
	t.rows = append(t.rows, row)
}

// Flush writes the table.
func (t *Table) Flush() error {
	var b strings.Builder
	widths, beside := t.layout()
	for _, row := range t.rows {
		writeRow(&b, row[:min(beside, len(row))], widths)
		for _, cell := range row[min(beside, len(row)):] {
			b.WriteString(wrap("  "+cell, t.s.Columns, 4) + "\n")
		}
	}
	t.rows = nil
	if _, err := io.WriteString(t.s.Out, b.String()); err != nil {
		return fmt.Errorf("write table: %w", err)
	}
	return nil
}

// gap is the space between columns.
const gap = 2

// layout returns the widths of the columns, and how many of them are side by side.
func (t *Table) layout() (widths []int, beside int) {
	var least []int // width without breaking a word
	for _, row := range t.rows {
		for i, cell := range row {
			if i == len(widths) {
				widths, least = append(widths, 0), append(least, 0)
			}
			widths[i] = max(widths[i], runewidth.StringWidth(cell))
			for _, piece := range pieces(cell) {
				least[i] = max(least[i], runewidth.StringWidth(strings.TrimRight(piece, " ")))
			}
		}
	}
	beside = len(widths)
	if t.s.Columns <= 0 {
		return widths, beside
	}
	for ; beside > 1 && sum(least[:beside])+gap*(beside-1) > t.s.Columns; beside-- {
	}
	widths = widths[:beside]
	for sum(widths)+gap*(beside-1) > t.s.Columns {
		widest := -1
		for i, w := range widths {
			if w > least[i] && (widest < 0 || w > widths[widest]) {
				widest = i
			}
		}
		if widest < 0 {
			break
		}
		widths[widest]--
	}
	return widths, beside
}

func sum(all []int) int {
	n := 0
	for _, one := range all {
		n += one
	}
	return n
}

// pieces splits a cell where it may be broken.
func pieces(cell string) []string {
	var all []string
	for cell != "" {
		i := strings.IndexAny(cell, " ,")
		if i < 0 {
			return append(all, cell)
		}
		end := i + 1
		for end < len(cell) && cell[end] == ' ' {
			end++
		}
		all, cell = append(all, cell[:end]), cell[end:]
	}
	return all
}

// writeRow writes one row, on as many lines as its cells need.
func writeRow(b *strings.Builder, row []string, widths []int) {
	cells := make([][]string, len(row))
	height := 1
	for i, cell := range row {
		cells[i] = broken(cell, widths[i])
		height = max(height, len(cells[i]))
	}
	for n := range height {
		var line strings.Builder
		for i, parts := range cells {
			part := ""
			if n < len(parts) {
				part = parts[n]
			}
			line.WriteString(part)
			if i < len(cells)-1 {
				line.WriteString(strings.Repeat(" ", max(0, widths[i]-runewidth.StringWidth(part))+gap))
			}
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
}

// broken breaks a cell into lines no wider than width.
func broken(cell string, width int) []string {
	if runewidth.StringWidth(cell) <= width {
		return []string{cell}
	}
	var out []string
	line := ""
	for _, piece := range pieces(cell) {
		if line != "" && runewidth.StringWidth(strings.TrimRight(line+piece, " ")) > width {
			out, line = append(out, strings.TrimRight(line, " ")), ""
		}
		line += piece
	}
	return slices.DeleteFunc(append(out, strings.TrimRight(line, " ")), func(s string) bool { return s == "" })
}
