package ui

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"
	"time"
)

// Format chooses how progress is shown.
type Format int

// The possible formats.
const (
	FormatText Format = iota // on Err: animated on a terminal, else plain lines
	FormatJSON               // one JSON object per line, on Out
)

// State is the state of a phase, as scripts see it.
type State string

// The possible states. A phase has one start, then either done or fail.
const (
	StateStart State = "start"
	StateDone  State = "done"
	StateFail  State = "fail"
)

// renderer shows events. Its methods are called one at a time.
type renderer interface {
	begin(ph *Phase)
	end(ph *Phase, state State, err error, elapsed time.Duration)
	detail(ph *Phase)
	advance(ph *Phase)
	line(kind lineKind, text string)
	close()
}

type lineKind int

const (
	lineNote lineKind = iota
	lineWarn
	lineOutput
)

// Progress shows the phases of a long operation and how long each took. Phases usually run one
// after another, but may overlap. It is safe for concurrent use.
//
// When its context is cancelled, running phases fail at once and the animation stops, so that
// the terminal is in order whatever comes next.
type Progress struct {
	now func() time.Time
	ctx context.Context

	mu      sync.Mutex
	r       renderer
	running []*Phase
	closed  bool
	stop    func() bool

	out lineWriter
}

// Phase is one step of the operation.
type Phase struct {
	Name string // stable identifier for scripts: "ssh"
	Text string // text for people: "connect over SSH"

	p     *Progress
	start time.Time

	mu      sync.Mutex // guards the fields below, which the animation reads
	detail  string
	current int64
	total   int64 // 0: unknown
	ended   bool
}

// Progress starts a display in the format. The caller must close it.
func (s *Streams) Progress(ctx context.Context, format Format) *Progress {
	p := &Progress{now: s.now, ctx: ctx}
	switch {
	case format == FormatJSON:
		p.r = &jsonRenderer{w: s.Out}
	case s.animated():
		p.r = &terminalRenderer{s: s, screen: s.Err.(*screen)}
	default:
		p.r = &plainRenderer{s: s}
	}
	p.out.line = func(text string) { p.emit(lineOutput, Clean(text)) }
	p.stop = context.AfterFunc(ctx, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.failAll(ctx.Err())
	})
	return p
}

// animated reports whether Err is a terminal that can show a moving line.
func (s *Streams) animated() bool {
	_, ok := s.Err.(*screen)
	return ok && s.ErrTerminal && !s.Dumb && s.errFile != nil && s.hasSize()
}

// Start begins a phase.
func (p *Progress) Start(name, text string) *Phase {
	p.mu.Lock()
	defer p.mu.Unlock()
	ph := &Phase{Name: name, Text: text, p: p, start: p.now()}
	if p.closed {
		ph.ended = true
		return ph
	}
	p.running = append(p.running, ph)
	p.r.begin(ph)
	return ph
}

// Run runs fn as a phase, which succeeds or fails with fn.
func (p *Progress) Run(ctx context.Context, name, text string, fn func(ctx context.Context, ph *Phase) error) error {
	ph := p.Start(name, text)
	err := fn(ctx, ph)
	if err != nil {
		ph.Fail(err)
		return err
	}
	ph.Done()
	return nil
}

// Done ends the phase successfully. Only the first end of a phase counts.
func (ph *Phase) Done() { ph.end(StateDone, nil) }

// Fail ends the phase as failed. The display marks the phase; the caller shows err itself.
func (ph *Phase) Fail(err error) { ph.end(StateFail, err) }

func (ph *Phase) end(state State, err error) {
	ph.p.mu.Lock()
	defer ph.p.mu.Unlock()
	ph.p.end(ph, state, err)
}

// end ends the phase. The caller holds p.mu.
func (p *Progress) end(ph *Phase, state State, err error) {
	ph.mu.Lock()
	ended := ph.ended
	ph.ended = true
	ph.mu.Unlock()
	if ended {
		return
	}
	for i, r := range p.running {
		if r == ph {
			p.running = append(p.running[:i], p.running[i+1:]...)
			break
		}
	}
	p.r.end(ph, state, err, p.now().Sub(ph.start))
}

func (p *Progress) failAll(err error) {
	for len(p.running) > 0 {
		p.end(p.running[0], StateFail, err)
	}
}

// Detail sets what the phase is doing now: "install docker.io".
func (ph *Phase) Detail(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	ph.update(func() bool {
		changed := ph.detail != text
		ph.detail = text
		return changed
	}, func(r renderer) { r.detail(ph) })
}

// Advance sets how far the phase is, in bytes. A total of 0 means unknown.
func (ph *Phase) Advance(current, total int64) {
	ph.update(func() bool {
		ph.current, ph.total = current, total
		return true
	}, func(r renderer) { r.advance(ph) })
}

func (ph *Phase) update(change func() bool, show func(renderer)) {
	ph.p.mu.Lock()
	defer ph.p.mu.Unlock()
	ph.mu.Lock()
	changed := !ph.ended && change()
	ph.mu.Unlock()
	if changed {
		show(ph.p.r)
	}
}

// status returns a consistent copy of the changing fields.
func (ph *Phase) status() (detail string, current, total int64) {
	ph.mu.Lock()
	defer ph.mu.Unlock()
	return ph.detail, ph.current, ph.total
}

// Note shows a line of useful information.
func (p *Progress) Note(format string, args ...any) {
	p.emit(lineNote, fmt.Sprintf(format, args...))
}

// Warn shows a line that the user should act on.
func (p *Progress) Warn(format string, args ...any) {
	p.emit(lineWarn, fmt.Sprintf(format, args...))
}

// Output takes the output of a foreign program and shows it line by line, made safe by [Clean].
func (p *Progress) Output() io.Writer { return &p.out }

func (p *Progress) emit(kind lineKind, text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.r.line(kind, text)
	}
}

// Close ends the display and marks phases that still run as failed. It may be called twice.
func (p *Progress) Close() {
	p.stop()
	p.out.flush()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	p.failAll(p.ctx.Err())
	p.closed = true
	p.r.close()
}

// lineWriter splits a stream of bytes into lines.
type lineWriter struct {
	mu   sync.Mutex
	rest []byte
	line func(string)
}

// Write passes on the complete lines of b.
func (w *lineWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rest = append(w.rest, b...)
	for {
		i := bytes.IndexByte(w.rest, '\n')
		if i < 0 {
			break
		}
		w.line(string(w.rest[:i]))
		w.rest = w.rest[i+1:]
	}
	if len(w.rest) > maxPartialLine {
		w.line(string(w.rest))
		w.rest = nil
	}
	return len(b), nil
}

// Foreign returns a writer to w for output of the VM. If w is a terminal, each line is cleaned
// (see [Clean]) before it is shown, and Close shows an incomplete last line.
func Foreign(w io.Writer, terminal bool) io.WriteCloser {
	if !terminal {
		return foreign{w, func() {}}
	}
	lines := &lineWriter{line: func(text string) { _, _ = io.WriteString(w, Clean(text)+"\n") }}
	return foreign{lines, lines.flush}
}

type foreign struct {
	io.Writer
	flush func()
}

// Close implements [io.Closer].
func (f foreign) Close() error {
	f.flush()
	return nil
}

func (w *lineWriter) flush() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.rest) > 0 {
		w.line(string(w.rest))
		w.rest = nil
	}
}
