package ui

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// Table is rows of text in aligned columns, for people and for grep. Scripts
// take JSON.
type Table struct{ w *tabwriter.Writer }

// Table begins a table on Out with a line of headings, if there are any.
func (s *Streams) Table(headings ...string) *Table {
	t := &Table{tabwriter.NewWriter(s.Out, 0, 8, 2, ' ', 0)}
	if len(headings) > 0 {
		t.Row(headings...)
	}
	return t
}

// Row adds a row. Empty cells become "-", so that every row has the same
// number of words for awk.
func (t *Table) Row(cells ...string) {
	for i, c := range cells {
		if c == "" {
			c = "-"
		}
		cells[i] = Escape(c)
	}
	_, _ = io.WriteString(t.w, strings.Join(cells, "\t")+"\n")
}

// Flush writes the table.
func (t *Table) Flush() error {
	if err := t.w.Flush(); err != nil {
		return fmt.Errorf("write table: %w", err)
	}
	return nil
}
