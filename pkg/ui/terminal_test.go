package ui

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/condition"
)

// terminal is a pseudo-terminal with a small emulator, which supports what a progress display
// uses: newline, carriage return, cursor up, erase to the end of the screen, colours. It fails
// the test on anything else.
type terminal struct {
	t    *testing.T
	tty  *os.File
	pty  *os.File
	cols int
	done chan struct{}

	mu       sync.Mutex
	raw      strings.Builder
	lines    [][]rune
	row, col int
	esc      string
}

func newTerminal(t *testing.T, cols, rows int) *terminal {
	t.Helper()
	pty, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no pseudo-terminals here: %v", err)
	}
	if err := unix.IoctlSetPointerInt(int(pty.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(pty.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudo-terminals here: %v", err)
	}
	if err := unix.IoctlSetWinsize(int(pty.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: uint16(cols), Row: uint16(rows)}); err != nil {
		t.Fatal(err)
	}
	v := &terminal{t: t, tty: tty, pty: pty, cols: cols, done: make(chan struct{})}
	go func() {
		defer close(v.done)
		b := make([]byte, 4096)
		var rest []byte
		for {
			n, err := pty.Read(b)
			rest = append(rest, b[:n]...)
			rest = v.feed(rest)
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		_ = tty.Close()
		_ = pty.Close()
	})
	return v
}

// feed interprets the complete characters of b and returns the rest.
func (v *terminal) feed(b []byte) []byte {
	v.mu.Lock()
	defer v.mu.Unlock()
	i := len(b)
	for i > 0 && i > len(b)-4 && b[i-1] >= 0x80 {
		i-- // an incomplete character: wait for the rest
	}
	v.raw.Write(b[:i])
	for _, r := range string(b[:i]) {
		v.rune(r)
	}
	return b[i:]
}

func (v *terminal) rune(r rune) {
	switch {
	case v.esc != "":
		v.esc += string(r)
		if v.esc == "\x1b[" || r < 0x40 {
			return
		}
		arg, _ := strconv.Atoi(strings.TrimRight(v.esc[2:], string(r)))
		switch r {
		case 'A':
			v.row = max(v.row-max(arg, 1), 0)
		case 'J':
			v.grow()
			v.lines = v.lines[:v.row+1]
			v.lines[v.row] = v.lines[v.row][:min(v.col, len(v.lines[v.row]))]
		case 'm':
		default:
			v.t.Errorf("unexpected sequence %q", v.esc)
		}
		v.esc = ""
	case r == 0x1b:
		v.esc = "\x1b"
	case r == '\r':
		v.col = 0
	case r == '\n':
		v.row++
		v.grow()
	case r < 0x20:
		v.t.Errorf("unexpected control character %q", r)
	default:
		if v.col >= v.cols {
			v.row, v.col = v.row+1, 0
		}
		v.grow()
		l := v.lines[v.row]
		for len(l) <= v.col {
			l = append(l, ' ')
		}
		l[v.col] = r
		v.lines[v.row] = l
		v.col++
	}
}

func (v *terminal) grow() {
	for len(v.lines) <= v.row {
		v.lines = append(v.lines, nil)
	}
}

func (v *terminal) screen() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	var b strings.Builder
	for _, l := range v.lines {
		b.WriteString(strings.TrimRight(string(l), " ") + "\n")
	}
	return strings.TrimRight(b.String(), "\n") + "\n"
}

// sync waits until everything that was written has been interpreted.
func (v *terminal) sync() {
	v.t.Helper()
	mark := fmt.Sprintf("<%d>", time.Now().UnixNano())
	_, _ = v.tty.WriteString("\r\n" + mark + "\r\x1b[1A")
	condition.Wait(v.t, "the screen shows it", func() bool { return strings.Contains(v.screen(), mark) })
	// The marker's line is the test's own, so drop it.
	v.mu.Lock()
	defer v.mu.Unlock()
	v.lines = v.lines[:len(v.lines)-1]
}

func (v *terminal) atLineStart() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.col == 0 && (v.row >= len(v.lines) || len(v.lines[v.row]) == 0)
}

func (v *terminal) streams(env map[string]string) *Streams {
	s := &Streams{
		In: v.tty, Out: v.tty, Err: &screen{out: v.tty},
		InTerminal: true, OutTerminal: true, ErrTerminal: true, errFile: v.tty,
	}
	s.environment(func(k string) string { return env[k] })
	return s
}

var utf8Terminal = map[string]string{"TERM": "xterm", "LANG": "de_DE.UTF-8"}

func TestTerminal(t *testing.T) {
	v := newTerminal(t, 80, 24)
	s := v.streams(utf8Terminal)
	c := newClock()
	s.Now = c.Now
	scenario(t.Context(), s, c, FormatText)
	v.sync()
	want := `✓ start the network                 40ms
  KVM does not work here, so the CPU is emulated
✓ connect over SSH                  12.3s
  Get:1 red
  progress 100%
! the directory\x1b]0;x\a is odd
  no newline
✗ wait for the engine               1m05s
`
	if diff := cmp.Diff(want, v.screen()); diff != "" {
		t.Error(diff)
	}
	if !v.atLineStart() {
		t.Error("the cursor is not at the start of a line")
	}
}

func TestTerminalASCIINoColor(t *testing.T) {
	v := newTerminal(t, 80, 24)
	s := v.streams(map[string]string{"TERM": "xterm", "NO_COLOR": "1", "LC_ALL": "C", "LANG": "de_DE.UTF-8"})
	c := newClock()
	s.Now = c.Now
	scenario(t.Context(), s, c, FormatText)
	v.sync()
	for _, want := range []string{"+ start the network", "x wait for the engine"} {
		if !strings.Contains(v.screen(), want) {
			t.Errorf("no %q in:\n%s", want, v.screen())
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, r := range v.raw.String() {
		if r > 0x7e {
			t.Fatalf("%q is not ASCII", r)
		}
	}
	if strings.Contains(v.raw.String(), "m") && strings.Contains(v.raw.String(), "\x1b[3") {
		t.Error("colours in spite of NO_COLOR")
	}
}

func TestTerminalRunningLine(t *testing.T) {
	v := newTerminal(t, 60, 24)
	s := v.streams(utf8Terminal)
	c := newClock()
	s.Now = c.Now
	p := s.Progress(t.Context(), FormatText)
	defer p.Close()
	ph := p.Start("ssh", "connect over SSH")
	c.Add(2500 * time.Millisecond)
	condition.Wait(t, "the screen shows it", func() bool { return strings.Contains(v.screen(), "connect over SSH                  2s") })
	ph.Detail("a detail that is much too long for a terminal of sixty columns, %s", strings.Repeat("x", 100))
	condition.Wait(t, "the screen shows it", func() bool { return strings.Contains(v.screen(), "a detail that is") })
	if n := strings.Count(v.screen(), "\n"); n != 1 {
		t.Errorf("%d lines:\n%s", n, v.screen())
	}
	ph.Detail("")
	ph.Advance(512<<20, 1<<30)
	condition.Wait(t, "the screen shows it", func() bool { return strings.Contains(v.screen(), "━━━━━━━━━━━━──") })
	// Other writers' lines do not disturb the display, not even incomplete ones.
	_, _ = fmt.Fprint(s.Err, "a log li")
	_, _ = fmt.Fprint(s.Err, "ne\nhalf")
	condition.Wait(t, "the screen shows it", func() bool { return strings.HasPrefix(v.screen(), "a log line\n") })
	ph.Done()
	_, _ = fmt.Fprint(s.Err, "after\n")
	v.sync()
	want := "a log line\n✓ connect over SSH                  2.5s\nhalf\nafter\n"
	if diff := cmp.Diff(want, v.screen()); diff != "" {
		t.Error(diff)
	}
}

func TestTerminalCancel(t *testing.T) {
	v := newTerminal(t, 80, 24)
	s := v.streams(utf8Terminal)
	ctx, cancel := context.WithCancel(t.Context())
	p := s.Progress(ctx, FormatText)
	p.Start("ssh", "connect over SSH")
	condition.Wait(t, "the screen shows it", func() bool { return strings.Contains(v.screen(), "connect over SSH") })
	_, _ = v.tty.WriteString("^C") // as the terminal echoes the key
	cancel()
	// The display ends by itself, before Close. Nothing may write to the terminal until it has.
	clean := func() bool {
		return strings.HasPrefix(v.screen(), "✗ connect over SSH") && strings.Count(v.screen(), "\n") == 1 && v.atLineStart()
	}
	condition.Wait(t, "the screen shows it", clean)
	p.Close()
	v.sync()
	if !clean() {
		t.Errorf("not clean after Close:\n%s", v.screen())
	}
}

// A killed process leaves its last frame, with the cursor below it.
func TestTerminalKilled(t *testing.T) {
	v := newTerminal(t, 80, 24)
	s := v.streams(utf8Terminal)
	p := s.Progress(t.Context(), FormatText)
	defer p.Close()
	p.Start("ssh", "connect over SSH")
	condition.Wait(t, "the screen shows it", func() bool { return strings.Contains(v.screen(), "connect over SSH") })
	if !v.atLineStart() {
		t.Error("the cursor is in the display")
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if strings.Contains(v.raw.String(), "?25l") {
		t.Error("the cursor is hidden")
	}
}

func TestTerminalManyGoroutines(t *testing.T) {
	v := newTerminal(t, 100, 200)
	s := v.streams(utf8Terminal)
	p := s.Progress(t.Context(), FormatText)
	hammer(p, s)
	p.Close()
	v.sync()
	got := v.screen()
	for i := range 8 {
		for j := range 10 {
			for _, want := range []string{
				fmt.Sprintf("\n✓ phase %d.%d ", i, j),
				fmt.Sprintf("\n  note %d.%d\n", i, j),
				fmt.Sprintf("\n  out %d.%d\n", i, j),
				fmt.Sprintf("\nlog %d.%d\n", i, j),
			} {
				if n := strings.Count("\n"+got, want); n != 1 {
					t.Fatalf("%q is there %d times in:\n%s", want, n, got)
				}
			}
		}
	}
	if n := strings.Count(got, "\n"); n != 8*10*4 {
		t.Errorf("%d lines:\n%s", n, got)
	}
}

func TestTerminalWithoutSize(t *testing.T) {
	v := newTerminal(t, 0, 0)
	v.cols = 80
	s := v.streams(utf8Terminal)
	p := s.Progress(t.Context(), FormatText)
	p.Start("a", "something").Done()
	p.Close()
	v.sync()
	if !strings.Contains(v.screen(), "something: done") {
		t.Errorf("got:\n%s", v.screen())
	}
}

func TestDumbTerminal(t *testing.T) {
	v := newTerminal(t, 80, 24)
	s := v.streams(map[string]string{"TERM": "dumb", "LANG": "C.UTF-8"})
	p := s.Progress(t.Context(), FormatText)
	p.Start("a", "something").Done()
	p.Warn("odd")
	p.Close()
	v.sync()
	v.mu.Lock()
	defer v.mu.Unlock()
	if raw, _, _ := strings.Cut(v.raw.String(), "<"); strings.Contains(raw, "\x1b") {
		t.Errorf("escape sequences on a dumb terminal: %q", raw)
	}
}
