package ui

import (
	"fmt"
	"io"
	"strings"

	"github.com/mattn/go-runewidth"
)

// wrap breaks a line between words so that no part is wider than width, unless a single word
// is. Parts after the first are indented by hang; the line keeps its own indentation. A width
// of 0 leaves the line unchanged.
func wrap(line string, width, hang int) string {
	if width <= 0 || runewidth.StringWidth(line) <= width {
		return line
	}
	text := strings.TrimLeft(line, " ")
	at := len(line) - len(text)
	var b strings.Builder
	b.WriteString(line[:at])
	for first := true; text != ""; first = false {
		words := strings.TrimLeft(text, " ")
		blanks := len(text) - len(words)
		word, _, _ := strings.Cut(words, " ")
		n := runewidth.StringWidth(word)
		if !first && at+blanks+n > width && at+blanks > hang { // only if the word then starts further left
			b.WriteString("\n")
			at, blanks = 0, hang
		}
		b.WriteString(strings.Repeat(" ", blanks) + word)
		at, text = at+blanks+n, words[len(word):]
	}
	return b.String()
}

// Lines returns a writer to Out for whole lines of text. Lines wider than the terminal are
// broken between words, and continue indented by hang.
func (s *Streams) Lines(hang int) io.Writer { return lines{s.Out, s.Columns, hang} }

// ErrLines is [Streams.Lines] for Err.
func (s *Streams) ErrLines(hang int) io.Writer { return lines{s.Err, s.ErrColumns, hang} }

type lines struct {
	w             io.Writer
	columns, hang int
}

// Write implements io.Writer.
func (l lines) Write(p []byte) (int, error) {
	if _, err := io.WriteString(l.w, wrapLines(string(p), l.columns, l.hang)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// wrapLines wraps each line of a text. The parts of an indented line are also indented.
func wrapLines(text string, width, hang int) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		line, end := strings.CutSuffix(line, "\n")
		indent := len(line) - len(strings.TrimLeft(line, " "))
		b.WriteString(wrap(line, width, max(hang, min(indent, width/2))))
		if end {
			b.WriteString("\n")
		}
	}
	return b.String()
}

// labelled makes a line for Err that begins with a coloured label. Text that does not fit
// continues below the text.
func (s *Streams) labelled(sgr, label, text string) string {
	line := wrap(label+" "+text, s.ErrColumns, len(label)+1)
	return s.paint(sgr, label) + line[len(label):] + "\n"
}

// Note shows useful information on Err. It escapes the text.
func (s *Streams) Note(format string, args ...any) {
	_, _ = io.WriteString(s.Err, s.labelled("", "note:", Escape(fmt.Sprintf(format, args...))))
}

// Warning shows a possible mistake on Err. It escapes the text.
func (s *Streams) Warning(format string, args ...any) {
	_, _ = io.WriteString(s.Err, s.labelled(yellow, "warning:", Escape(fmt.Sprintf(format, args...))))
}

// Fill rewraps each paragraph of a text to the given columns. Indented lines stay as they are.
func Fill(text string, columns int) string {
	var out, paragraph []string
	flush := func() {
		if len(paragraph) > 0 {
			out = append(out, wrap(strings.Join(paragraph, " "), columns, 0))
		}
		paragraph = nil
	}
	for line := range strings.SplitSeq(text, "\n") {
		if line == "" || strings.HasPrefix(line, " ") {
			flush()
			out = append(out, line)
			continue
		}
		paragraph = append(paragraph, line)
	}
	flush()
	return strings.Join(out, "\n")
}
