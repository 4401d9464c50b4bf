package aide_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/devvm/devvm/pkg/aide"
)

// echo answers what it is asked.
func echo(_ context.Context, q json.RawMessage) (any, error) { return q, nil }

// TestMain lets the test binary be an aide.
func TestMain(m *testing.M) {
	if os.Getenv("AIDE_TEST") != "" {
		if aide.Serve(context.Background(), os.Stdin, os.Stdout, map[string]aide.Handler{"echo": echo}) != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// start serves the handlers in this process. ended has what became of that.
func start(t *testing.T, handlers map[string]aide.Handler) (c *aide.Client, questions *os.File, ended <-chan error) {
	t.Helper()
	qr, qw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	ar, aw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() {
		err := aide.Serve(t.Context(), qr, aw, handlers)
		qr.Close()
		aw.Close()
		served <- err
	}()
	c = aide.New(qw, ar)
	t.Cleanup(func() { _ = c.Close() })
	return c, qw, served
}

// TestAsk: answers find who asked, whatever their order, and one that takes long holds up
// nobody.
func TestAsk(t *testing.T) {
	release := make(chan struct{})
	c, _, _ := start(t, map[string]aide.Handler{
		"echo": echo,
		"hang": func(ctx context.Context, q json.RawMessage) (any, error) {
			select {
			case <-release:
			case <-ctx.Done():
			}
			return q, nil
		},
		"fail": func(context.Context, json.RawMessage) (any, error) { return nil, errors.New("no idea") },
		"long": func(context.Context, json.RawMessage) (any, error) { return strings.Repeat("x", 5000), nil },
	})
	late := make(chan error, 1)
	go func() {
		var got string
		err := c.Ask(t.Context(), "hang", "late", &got)
		if err == nil && got != "late" {
			err = errors.New(got)
		}
		late <- err
	}()
	var wait sync.WaitGroup
	for n := range 50 {
		wait.Go(func() {
			var got int
			if err := c.Ask(t.Context(), "echo", n, &got); err != nil || got != n {
				t.Errorf("%d: got %d, %v", n, got, err)
			}
		})
	}
	wait.Wait()
	for name, want := range map[string]string{"fail": "no idea", "long": "the answer is too long", "what": `unknown question "what"`} {
		if err := c.Ask(t.Context(), name, nil, new(string)); err == nil || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
	if err := c.Ask(t.Context(), "echo", strings.Repeat("x", 5000), new(string)); err == nil || !strings.Contains(err.Error(), "the question is too long") {
		t.Errorf("a long question: %v", err)
	}
	close(release)
	if err := <-late; err != nil {
		t.Error(err)
	}
}

// TestAskGivesUp: a question ends with its context, whether nobody answers or nobody reads, and
// the next one gets its own answer.
func TestAskGivesUp(t *testing.T) {
	release := make(chan struct{})
	var asked atomic.Int32
	c, _, _ := start(t, map[string]aide.Handler{
		"echo": echo,
		"hang": func(_ context.Context, q json.RawMessage) (any, error) {
			asked.Add(1)
			<-release
			return q, nil
		},
	})
	// Eight fill the aide, the rest the pipe, and then not even a write comes to its end.
	big := strings.Repeat("x", 3000)
	for range 40 {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		if err := c.Ask(ctx, "hang", big, new(string)); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("got %v", err)
		}
		cancel()
	}
	if n := asked.Load(); n > 8 {
		t.Errorf("%d questions at once", n)
	}
	close(release)
	var got string
	if err := c.Ask(t.Context(), "echo", "mine", &got); err != nil || got != "mine" {
		t.Errorf("got %q, %v", got, err)
	}
}

// TestHostileQuestions: whoever asks cannot fill the aide's memory, and what is no question
// ends it.
func TestHostileQuestions(t *testing.T) {
	for name, said := range map[string]string{
		"long":      strings.Repeat("x", 64<<10),
		"long JSON": `{"Ask":"echo","Body":"` + strings.Repeat("x", 8<<10) + "\"}\n",
		"no JSON":   "who is there?\n",
	} {
		c, questions, served := start(t, map[string]aide.Handler{"echo": echo})
		if _, err := io.Copy(questions, strings.NewReader(said)); err != nil && !errors.Is(err, os.ErrClosed) && !strings.Contains(err.Error(), "broken pipe") {
			t.Errorf("%s: %v", name, err)
		}
		if err := <-served; err == nil {
			t.Errorf("%s: it was taken for a question", name)
		}
		<-c.Ended()
		if err := c.Ask(t.Context(), "echo", 1, new(int)); !errors.Is(err, aide.ErrEnded) {
			t.Errorf("%s: asked after its end: %v", name, err)
		}
	}
}

// TestHostileAnswers: an answer that is none, or without end, ends the client.
func TestHostileAnswers(t *testing.T) {
	for _, said := range []string{"junk\n", strings.Repeat("y", 64<<10)} {
		r, w := io.Pipe()
		c := aide.New(nopCloser{new(bytes.Buffer)}, r)
		go func() { _, _ = io.WriteString(w, said) }()
		if err := c.Ask(t.Context(), "echo", 1, new(int)); !errors.Is(err, aide.ErrEnded) {
			t.Errorf("%.10q: %v", said, err)
		}
		_ = r.Close()
	}
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// TestStart: a process that ends is known to have, and Close ends one that has not.
func TestStart(t *testing.T) {
	for _, killed := range []bool{true, false} {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), "AIDE_TEST=1")
		c, err := aide.Start(cmd)
		if err != nil {
			t.Fatal(err)
		}
		var got int
		if err := c.Ask(t.Context(), "echo", 7, &got); err != nil || got != 7 {
			t.Fatalf("got %d, %v", got, err)
		}
		select {
		case <-c.Ended():
			t.Error("it has ended")
		default:
		}
		if killed {
			_ = cmd.Process.Kill()
			<-c.Ended()
			if err := c.Ask(t.Context(), "echo", 7, &got); !errors.Is(err, aide.ErrEnded) {
				t.Errorf("asked after its end: %v", err)
			}
		}
		_ = c.Close()
		if cmd.ProcessState == nil {
			t.Error("it runs on")
		}
	}
}

// TestEnd: when nobody asks any more, what is under way is given up.
func TestEnd(t *testing.T) {
	asked := make(chan struct{})
	c, _, served := start(t, map[string]aide.Handler{"hang": func(ctx context.Context, _ json.RawMessage) (any, error) {
		close(asked)
		<-ctx.Done()
		return nil, ctx.Err()
	}})
	go func() { _ = c.Ask(t.Context(), "hang", nil, new(string)) }()
	<-asked
	_ = c.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
}
