package ui

import (
	"io"
	"time"
)

// plainRenderer writes lines that read well in a log and in grep.
type plainRenderer struct{ s *Streams }

func (r *plainRenderer) begin(ph *Phase) {
	r.print(Escape(ph.Text) + " ...\n")
}

func (r *plainRenderer) end(ph *Phase, state State, _ error, elapsed time.Duration) {
	word := "done"
	if state == StateFail {
		word = "failed"
	}
	r.print(Escape(ph.Text) + ": " + word + " (" + Duration(elapsed) + ")\n")
}

func (r *plainRenderer) detail(ph *Phase) {
	if detail, _, _ := ph.status(); detail != "" {
		r.print(Escape(ph.Text) + ": " + Escape(detail) + "\n")
	}
}

func (r *plainRenderer) advance(*Phase) {}

func (r *plainRenderer) line(kind lineKind, text string) {
	switch kind {
	case lineNote:
		r.print(wrap(Escape(text), r.s.ErrColumns, 2) + "\n")
	case lineWarn:
		r.s.Warning("%s", text)
	case lineOutput:
		r.print("  " + text + "\n")
	}
}

func (r *plainRenderer) close() {}

func (r *plainRenderer) print(line string) {
	_, _ = io.WriteString(r.s.Err, line)
}
