// Command picture draws README's picture: the last screen of a recorded session, dark and light.
//
//	picture [DIRECTORY]    from session.cast there make dark.svg and light.svg
//
// An emulator replays what the terminal got; nothing of it is changed. The text stays text. The
// picture shows colours, bold and faint; a recording with any other style is an error.
package main

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"image/color"
	"io"
	"os"
	"path/filepath"
	"strings"

	uv "github.com/charmbracelet/ultraviolet"
	"github.com/charmbracelet/x/ansi"
	"github.com/charmbracelet/x/vt"
)

// Pixels of a picture that is shown at its own size. GitHub's column is 830 wide or more.
const (
	fontSize = 14
	cellW    = 8.4 // what most monospace fonts have at this size; textLength stretches the others
	cellH    = 20
	margin   = 16
)

// A theme is the file to write and its colours.
type theme struct {
	file, background, border, text string
	colours                        [16]string // by SGR 30-37 and 90-97
}

// GitHub's own colours for terminals (Primer), on its own backgrounds.
var themes = []theme{
	{
		"dark.svg", "#0d1117", "#30363d", "#e6edf3",
		[16]string{
			"#484f58", "#ff7b72", "#3fb950", "#d29922", "#58a6ff", "#bc8cff", "#39c5cf", "#b1bac4",
			"#6e7681", "#ffa198", "#56d364", "#e3b341", "#79c0ff", "#d2a8ff", "#56d4dd", "#ffffff",
		},
	},
	{
		"light.svg", "#ffffff", "#d0d7de", "#1f2328",
		[16]string{
			"#24292f", "#cf222e", "#116329", "#4d2d00", "#0969da", "#8250df", "#1b7c83", "#6e7781",
			"#57606a", "#a40e26", "#1a7f37", "#633c01", "#218bff", "#a475f9", "#3192aa", "#8c959f",
		},
	},
}

func main() {
	dir := "."
	if len(os.Args) > 1 {
		dir = os.Args[1]
	}
	if err := run(dir); err != nil {
		fmt.Fprintln(os.Stderr, "picture:", err)
		os.Exit(1) //nolint:forbidigo // a program of its own
	}
}

func run(dir string) error {
	cast, err := os.ReadFile(filepath.Join(dir, "session.cast"))
	if err != nil {
		return err
	}
	pictures, err := draw(cast)
	if err != nil {
		return fmt.Errorf("session.cast: %w", err)
	}
	for name, svg := range pictures {
		if err := os.WriteFile(filepath.Join(dir, name), svg, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// draw makes the pictures of a recording, by their files' names.
func draw(cast []byte) (map[string][]byte, error) {
	screen, err := replay(cast)
	if err != nil {
		return nil, err
	}
	pictures := map[string][]byte{}
	for _, t := range themes {
		if pictures[t.file], err = t.svg(screen); err != nil {
			return nil, err
		}
	}
	return pictures, nil
}

// replay returns the terminal as a recording leaves it. The recording is in asciinema's format:
// https://docs.asciinema.org/manual/asciicast/v2/
func replay(cast []byte) (*vt.Emulator, error) {
	lines := bytes.Split(bytes.TrimSpace(cast), []byte("\n"))
	var header struct{ Version, Width, Height int }
	if err := json.Unmarshal(lines[0], &header); err != nil {
		return nil, err
	}
	if header.Version != 2 {
		return nil, fmt.Errorf("this is version %d, want 2", header.Version)
	}
	screen := vt.NewEmulator(header.Width, header.Height)
	defer screen.Close()
	go func() { _, _ = io.Copy(io.Discard, screen) }() // what it answers to a program's questions
	for i, line := range lines[1:] {
		var at float64
		var kind, data string
		if err := json.Unmarshal(line, &[]any{&at, &kind, &data}); err != nil {
			return nil, fmt.Errorf("line %d: %w", i+2, err)
		}
		if kind != "o" {
			continue
		}
		if _, err := screen.WriteString(data); err != nil {
			return nil, err
		}
	}
	if screen.ScrollbackLen() > 0 || screen.IsAltScreen() {
		return nil, errors.New("the session does not fit on one screen")
	}
	return screen, nil
}

func (t theme) svg(screen *vt.Emulator) ([]byte, error) {
	cursor := screen.CursorPosition()
	rows := cursor.Y + 1
	var text strings.Builder
	for y := range screen.Height() {
		line, err := t.line(screen, y)
		if err != nil {
			return nil, fmt.Errorf("row %d: %w", y+1, err)
		}
		if line != "" {
			rows = max(rows, y+1)
			text.WriteString(line)
		}
	}
	w, h := 2*margin+float64(screen.Width())*cellW, 2*margin+rows*cellH
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%g" height="%d" viewBox="0 0 %g %d">
<rect x=".5" y=".5" width="%g" height="%d" rx="6" fill="%s" stroke="%s"/>
<g font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', 'Liberation Mono', monospace" font-size="%d" fill="%s" xml:space="preserve">
`, w, h, w, h, w-1, h-1, t.background, t.border, fontSize, t.text)
	b.WriteString(text.String())
	fmt.Fprintf(&b, "<rect x=\"%.1f\" y=\"%d\" width=\"%g\" height=\"%d\"/>\n</g>\n</svg>\n",
		margin+float64(cursor.X)*cellW, margin+cursor.Y*cellH+2, cellW, cellH-4)
	return b.Bytes(), nil
}

// line is a row of the screen: a text element for each run of cells of one style.
func (t theme) line(screen *vt.Emulator, y int) (string, error) {
	var line strings.Builder
	for x := 0; x < screen.Width(); {
		first, style := x, screen.CellAt(x, y).Style
		var run strings.Builder
		for x < screen.Width() {
			cell := screen.CellAt(x, y)
			if !cell.Style.Equal(&style) {
				break
			}
			run.WriteString(cell.Content)
			x += max(1, cell.Width)
		}
		attributes, err := t.attributes(style)
		if err != nil {
			return "", err
		}
		said := strings.TrimRight(run.String(), " ")
		if said == "" {
			continue
		}
		cells := x - first - (run.Len() - len(said)) // a blank is one byte and one cell
		fmt.Fprintf(&line, `<text x="%.1f" y="%d" textLength="%.1f"%s>`, margin+float64(first)*cellW, margin+y*cellH+cellH*3/4, float64(cells)*cellW, attributes)
		if err := xml.EscapeText(&line, []byte(said)); err != nil {
			return "", err
		}
		line.WriteString("</text>\n")
	}
	return line.String(), nil
}

func (t theme) attributes(s uv.Style) (string, error) {
	var a string
	if s.Attrs&uv.AttrBold != 0 {
		a += ` font-weight="bold"`
	}
	if s.Attrs&uv.AttrFaint != 0 {
		a += ` opacity=".7"`
	}
	if s.Attrs&^(uv.AttrBold|uv.AttrFaint) != 0 || s.Bg != nil || s.Underline != 0 {
		return "", fmt.Errorf("cannot draw the style %+v", s)
	}
	colour, err := t.colour(s.Fg)
	if err != nil || colour == "" {
		return a, err
	}
	return a + fmt.Sprintf(` fill="%s"`, colour), nil
}

// colour is that of the theme; "" for the text's own.
func (t theme) colour(c color.Color) (string, error) {
	switch c := c.(type) {
	case nil:
		return "", nil
	case ansi.BasicColor:
		return t.colours[c], nil
	default:
		return "", fmt.Errorf("cannot draw the colour %#v: it is not one of the terminal's 16", c)
	}
}
