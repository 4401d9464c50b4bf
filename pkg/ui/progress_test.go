package ui

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/devvm/devvm/pkg/condition"
)

// clock is a clock that tests set by hand.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock() *clock { return &clock{t: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) Add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// scenario is a run in which everything that can happen does.
func scenario(ctx context.Context, s *Streams, c *clock, format Format) {
	p := s.Progress(ctx, format)
	defer p.Close()
	ph := p.Start("network", "start the network")
	c.Add(40 * time.Millisecond)
	ph.Done()
	ph = p.Start("ssh", "connect over SSH")
	p.Note("KVM does not work here, so the CPU is emulated")
	ph.Detail("attempt %d", 2)
	ph.Detail("attempt %d", 2)
	c.Add(12300 * time.Millisecond)
	ph.Done()
	ph.Fail(errors.New("too late to count"))
	_, _ = io.WriteString(p.Output(), "Get:1 \x1b[31mred\x1b[0m\r\nprogress 1%\rprogress 100%\nno newline")
	p.Warn("the directory\x1b]0;x\x07 is odd")
	p.Start("engine", "wait for the engine")
	c.Add(65 * time.Second)
}

func TestPlain(t *testing.T) {
	s, _, out, errs := Test()
	c := newClock()
	s.Now = c.Now
	scenario(t.Context(), s, c, FormatText)
	want := `start the network ...
start the network: done (40ms)
connect over SSH ...
KVM does not work here, so the CPU is emulated
connect over SSH: attempt 2
connect over SSH: done (12.3s)
  Get:1 red
  progress 100%
warning: the directory\x1b]0;x\a is odd
wait for the engine ...
  no newline
wait for the engine: failed (1m05s)
`
	if diff := cmp.Diff(want, errs.String()); diff != "" {
		t.Error(diff)
	}
	if out.String() != "" {
		t.Errorf("stdout: %q", out)
	}
}

func TestJSONLines(t *testing.T) {
	s, _, out, errs := Test()
	c := newClock()
	s.Now = c.Now
	scenario(t.Context(), s, c, FormatJSON)
	want := `{"type":"phase","phase":"network","state":"start","elapsed_ms":0,"text":"start the network"}
{"type":"phase","phase":"network","state":"done","elapsed_ms":40,"text":"start the network"}
{"type":"phase","phase":"ssh","state":"start","elapsed_ms":0,"text":"connect over SSH"}
{"type":"note","text":"KVM does not work here, so the CPU is emulated"}
{"type":"detail","phase":"ssh","detail":"attempt 2"}
{"type":"phase","phase":"ssh","state":"done","elapsed_ms":12300,"text":"connect over SSH"}
{"type":"output","text":"Get:1 red"}
{"type":"output","text":"progress 100%"}
{"type":"warning","text":"the directory\u001b]0;x\u0007 is odd"}
{"type":"phase","phase":"engine","state":"start","elapsed_ms":0,"text":"wait for the engine"}
{"type":"output","text":"no newline"}
{"type":"phase","phase":"engine","state":"fail","elapsed_ms":65000,"text":"wait for the engine"}
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
	for line := range strings.SplitSeq(strings.TrimSpace(out.String()), "\n") {
		var v struct{ Type string }
		if err := json.Unmarshal([]byte(line), &v); err != nil || v.Type == "" {
			t.Errorf("%q: %v", line, err)
		}
	}
	if errs.String() != "" {
		t.Errorf("stderr: %q", errs)
	}
}

func TestCancelEndsPhases(t *testing.T) {
	s, _, _, errs := Test()
	ctx, cancel := context.WithCancel(t.Context())
	p := s.Progress(ctx, FormatText)
	p.Start("ssh", "connect over SSH")
	cancel()
	condition.Wait(t, "the screen shows it", func() bool { return strings.Contains(errs.String(), "connect over SSH: failed") })
	p.Start("clean", "clean up").Done() // shown even after the cancel
	p.Close()
	p.Close()
	if !strings.Contains(errs.String(), "clean up: done") {
		t.Errorf("got %q", errs)
	}
	p.Note("late")
	p.Start("late", "late").Done()
	if strings.Contains(errs.String(), "late") {
		t.Errorf("shown after Close: %q", errs)
	}
}

func TestRun(t *testing.T) {
	s, _, _, errs := Test()
	p := s.Progress(t.Context(), FormatText)
	defer p.Close()
	boom := errors.New("boom")
	if err := p.Run(t.Context(), "a", "first", func(context.Context, *Phase) error { return nil }); err != nil {
		t.Error(err)
	}
	if err := p.Run(t.Context(), "b", "second", func(context.Context, *Phase) error { return boom }); !errors.Is(err, boom) {
		t.Error(err)
	}
	for _, want := range []string{"first: done", "second: failed"} {
		if !strings.Contains(errs.String(), want) {
			t.Errorf("no %q in %q", want, errs)
		}
	}
}

func TestProgressManyGoroutines(t *testing.T) {
	for _, format := range []Format{FormatText, FormatJSON} {
		s, _, _, _ := Test()
		p := s.Progress(t.Context(), format)
		hammer(p, s)
		p.Close()
	}
}

// hammer uses everything of p concurrently.
func hammer(p *Progress, s *Streams) {
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 10 {
				ph := p.Start("x", fmt.Sprintf("phase %d.%d", i, j))
				ph.Detail("d%d", j)
				ph.Advance(int64(j), 10)
				p.Note("note %d.%d", i, j)
				_, _ = fmt.Fprintf(p.Output(), "out %d.%d\n", i, j)
				_, _ = fmt.Fprintf(s.Err, "log %d.%d\n", i, j)
				ph.Done()
			}
		})
	}
	wg.Wait()
}

func TestForeign(t *testing.T) {
	const said = "a \x1b]0;title\x07b\nrest\x1b[2J"
	for terminal, want := range map[bool]string{true: "a b\nrest\n", false: said} {
		var out bytes.Buffer
		w := Foreign(&out, terminal)
		for _, part := range []string{said[:5], said[5:]} {
			if _, err := io.WriteString(w, part); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil || out.String() != want {
			t.Errorf("%q, %v", &out, err)
		}
	}
}
