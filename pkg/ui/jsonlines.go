package ui

import (
	"io"
	"time"
)

// jsonRenderer writes one object per line. Fields are only ever added;
// docs/scripting.md describes them.
type jsonRenderer struct{ w io.Writer }

type phaseEvent struct {
	Type    string `json:"type"` // "phase"
	Phase   string `json:"phase"`
	State   State  `json:"state"`
	Elapsed int64  `json:"elapsed_ms"`
	Text    string `json:"text"`
	Error   string `json:"error,omitempty"`
}

func (r *jsonRenderer) begin(ph *Phase) {
	r.write(phaseEvent{Type: "phase", Phase: ph.Name, State: StateStart, Text: ph.Text})
}

func (r *jsonRenderer) end(ph *Phase, state State, err error, elapsed time.Duration) {
	e := phaseEvent{Type: "phase", Phase: ph.Name, State: state, Elapsed: elapsed.Milliseconds(), Text: ph.Text}
	if err != nil {
		e.Error = err.Error()
	}
	r.write(e)
}

func (r *jsonRenderer) detail(ph *Phase) {
	detail, _, _ := ph.status()
	r.write(struct {
		Type   string `json:"type"`
		Phase  string `json:"phase"`
		Detail string `json:"detail"`
	}{"detail", ph.Name, detail})
}

func (r *jsonRenderer) advance(*Phase) {}

func (r *jsonRenderer) line(kind lineKind, text string) {
	r.write(struct {
		Type string `json:"type"`
		Text string `json:"text"`
	}{[]string{lineNote: "note", lineWarn: "warning", lineOutput: "output"}[kind], text})
}

func (r *jsonRenderer) close() {}

func (r *jsonRenderer) write(v any) { _ = writeJSONLine(r.w, v) }
