package ui

import (
	"io"
	"strings"
	"time"

	"github.com/mattn/go-runewidth"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"
)

const (
	refresh    = 100 * time.Millisecond
	textColumn = 34 // column of the times, unless a text is longer
	barWidth   = 24
)

// marks are the signs in front of a phase.
type marks struct {
	frames     []string
	done, fail string
	full, open string
	sep        string
}

func (s *Streams) marks() marks {
	if s.Unicode {
		return marks{
			frames: []string{"⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"},
			done:   "✓", fail: "✗", full: "━", open: "─", sep: " · ",
		}
	}
	return marks{frames: []string{"-", "\\", "|", "/"}, done: "+", fail: "x", full: "#", open: ".", sep: " - "}
}

// hasSize reports whether the terminal knows its size. Some pseudo-terminals do not, and
// nothing can be drawn on 0 columns.
func (s *Streams) hasSize() bool {
	w, h, err := term.GetSize(int(s.errFile.Fd()))
	return err == nil && w > 0 && h > 0
}

// terminalRenderer keeps a moving line for each running phase at the bottom and puts permanent
// lines above. The cursor is never hidden and always at the start of an empty line, so that a
// kill at any moment leaves the terminal usable.
type terminalRenderer struct {
	s      *Streams
	screen *screen
	bars   map[*Phase]*mpb.Bar
}

func (r *terminalRenderer) begin(ph *Phase) {
	r.screen.mu.Lock()
	defer r.screen.mu.Unlock()
	if r.screen.live == nil {
		r.screen.live = mpb.New(mpb.WithOutput(r.s.errFile), mpb.WithRefreshRate(refresh))
		r.bars = map[*Phase]*mpb.Bar{}
	}
	m := r.s.marks()
	frame := 0
	fill := mpb.BarFillerFunc(func(w io.Writer, st decor.Statistics) error {
		mark := m.frames[frame%len(m.frames)]
		frame++
		_, err := io.WriteString(w, r.running(ph, mark, m, st.AvailableWidth))
		return err
	})
	if bar, err := r.screen.live.Add(0, fill, mpb.BarFillerTrim(), mpb.BarRemoveOnComplete()); err == nil {
		r.bars[ph] = bar
	}
}

// running renders the moving line. It must not be wider than the terminal, because the display
// counts lines.
func (r *terminalRenderer) running(ph *Phase, mark string, m marks, width int) string {
	detail, current, total := ph.status()
	elapsed := r.s.now().Sub(ph.start)
	var b strings.Builder
	text := Escape(ph.Text)
	if total > 0 {
		part := min(max(float64(current)/float64(total), 0), 1)
		n := int(part * barWidth)
		text = pad(text) + strings.Repeat(m.full, n) + strings.Repeat(m.open, barWidth-n) +
			" " + Size(current) + " of " + Size(total)
	} else if current > 0 {
		text = pad(text) + Size(current)
	}
	if detail != "" {
		text += m.sep + Escape(detail)
	}
	b.WriteString(text)
	// Tenths of a second would flicker; whole seconds show that it is alive.
	var tail string
	if elapsed >= time.Second {
		tail = Duration(elapsed.Truncate(time.Second))
		tail = strings.Replace(tail, ".0s", "s", 1)
	}
	room := width - runewidth.StringWidth(mark) - 1
	if tail != "" {
		line := pad(b.String())
		if runewidth.StringWidth(line)+len(tail) > room {
			line = runewidth.Truncate(line, max(room-len(tail)-1, 0), "")
			line = runewidth.FillRight(line, max(room-len(tail), 0))
		}
		if runewidth.StringWidth(line)+len(tail) <= room {
			return r.s.paint(bold, mark) + " " + line + r.s.paint(dim, tail)
		}
	}
	return runewidth.Truncate(mark+" "+b.String(), max(width, 0), "")
}

func (r *terminalRenderer) end(ph *Phase, state State, _ error, elapsed time.Duration) {
	r.screen.mu.Lock()
	defer r.screen.mu.Unlock()
	m := r.s.marks()
	mark := r.s.paint(green, m.done)
	if state == StateFail {
		mark = r.s.paint(red, m.fail)
	}
	r.screen.line(mark + " " + pad(Escape(ph.Text)) + r.s.paint(dim, Duration(elapsed)))
	if bar := r.bars[ph]; bar != nil {
		bar.Abort(true)
		delete(r.bars, ph)
	}
	if len(r.bars) == 0 {
		r.screen.endLive()
	}
}

// pad fills text up to the column of the times.
func pad(text string) string {
	if w := runewidth.StringWidth(text); w >= textColumn {
		return text + "  "
	}
	return runewidth.FillRight(text, textColumn)
}

func (r *terminalRenderer) detail(*Phase)  {} // the next frame shows it
func (r *terminalRenderer) advance(*Phase) {}

func (r *terminalRenderer) line(kind lineKind, text string) {
	switch kind {
	case lineNote:
		text = wrap("  "+Escape(text), r.s.ErrColumns, 2)
	case lineWarn:
		text = strings.TrimSuffix(r.s.labelled(yellow, "!", Escape(text)), "\n")
	case lineOutput:
		text = r.s.paint(dim, "  "+text)
	}
	r.screen.mu.Lock()
	defer r.screen.mu.Unlock()
	r.screen.line(text)
}

func (r *terminalRenderer) close() {
	r.screen.mu.Lock()
	defer r.screen.mu.Unlock()
	for ph, bar := range r.bars {
		bar.Abort(true)
		delete(r.bars, ph)
	}
	r.screen.endLive()
}
