// Package ui is how devvm talks to people and scripts: streams, progress, tables, JSON,
// questions and errors with a hint and an exit code.
//
// Standard output holds only the answer; progress, notes and questions go to standard error.
// Everything shown on a terminal passes [Escape] or [Clean], so no file name and no program in
// a VM can control the terminal.
//
// It knows nothing about VMs, projects or Docker and imports no other package of devvm. It
// fails only if writing fails. [Confirm] also fails if there is nobody to ask.
package ui

import (
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

// Streams are the three standard streams of a command, with their properties. Make them with
// [System] or [Test].
type Streams struct {
	In  io.Reader
	Out io.Writer // the answer, nothing else
	Err io.Writer // progress, notes, log lines; does not disturb a running display

	InTerminal  bool
	OutTerminal bool
	ErrTerminal bool

	// Columns is the width of Out's terminal; 0: Out is not a terminal, or has no size.
	Columns int

	// ErrColumns is the same for Err.
	ErrColumns int

	Color   bool // Err supports colours and the user wants them
	Unicode bool // Err shows UTF-8
	Dumb    bool // Err cannot move its cursor: no animation

	// Now is the clock of progress displays; nil: time.Now.
	Now func() time.Time

	errFile *os.File
}

// System returns the process's own streams. It reads the environment (NO_COLOR, TERM, LC_ALL,
// LC_CTYPE, LANG) through getenv.
func System(getenv func(string) string) *Streams {
	s := &Streams{
		In:          os.Stdin,
		Out:         &answer{w: os.Stdout},
		Err:         &screen{out: os.Stderr},
		InTerminal:  term.IsTerminal(int(os.Stdin.Fd())),
		OutTerminal: term.IsTerminal(int(os.Stdout.Fd())),
		ErrTerminal: term.IsTerminal(int(os.Stderr.Fd())),
		errFile:     os.Stderr,
	}
	if w, _, err := term.GetSize(int(os.Stdout.Fd())); err == nil && s.OutTerminal {
		s.Columns = w
	}
	if w, _, err := term.GetSize(int(os.Stderr.Fd())); err == nil && s.ErrTerminal {
		s.ErrColumns = w
	}
	s.environment(getenv)
	return s
}

// answer records whether a write to standard output failed.
type answer struct {
	w  io.Writer
	mu sync.Mutex
	// err is the first error.
	err error
}

// Write implements io.Writer.
func (a *answer) Write(b []byte) (int, error) {
	n, err := a.w.Write(b)
	if err != nil {
		a.mu.Lock()
		if a.err == nil {
			a.err = err
		}
		a.mu.Unlock()
	}
	return n, err
}

// Unanswered returns why part of the answer could not be written, nil if all was.
func (s *Streams) Unanswered() error {
	a, ok := s.Out.(*answer)
	if !ok {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.err
}

func (s *Streams) environment(getenv func(string) string) {
	s.Dumb = !s.ErrTerminal || getenv("TERM") == "" || getenv("TERM") == "dumb"
	s.Color = !s.Dumb && getenv("NO_COLOR") == ""
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v := getenv(name); v != "" {
			v = strings.ToLower(v)
			s.Unicode = strings.HasSuffix(v, "utf-8") || strings.HasSuffix(v, "utf8")
			break
		}
	}
}

// Interactive reports whether there is a user who can answer a question.
func (s *Streams) Interactive() bool { return s.InTerminal && s.ErrTerminal }

func (s *Streams) now() time.Time {
	if s.Now != nil {
		return s.Now()
	}
	return time.Now()
}

// paint wraps text in an SGR sequence if the terminal wants colours.
func (s *Streams) paint(sgr, text string) string {
	if !s.Color || sgr == "" || text == "" {
		return text
	}
	return "\x1b[" + sgr + "m" + text + "\x1b[0m"
}

const (
	red    = "31"
	green  = "32"
	yellow = "33"
	dim    = "2"
	bold   = "1"
)
