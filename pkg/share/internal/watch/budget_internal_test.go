package watch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// roleClaim has this test binary claim what it gets in the directory that follows, say how
// much that is, and wait for the end of its input.
const roleClaim = "WATCH_TEST_CLAIM"

func TestMain(m *testing.M) {
	if dir := os.Getenv(roleClaim); dir != "" {
		b, n := NewBudget(dir, testMost), 0
		for b.take() {
			n++
		}
		fmt.Println(n)
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0) // as if killed: nothing is given back
	}
	os.Exit(m.Run())
}

const testMost = 64 << 10

func takeAll(b *Budget) (n int) {
	for b.take() {
		n++
	}
	return n
}

// All of a user's processes share one half of the user's watches, none takes what it would
// leave nothing of, and what a killed one had is free again.
func TestBudget(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "watches")
	claim := func() (int, func()) {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), roleClaim+"="+dir)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var n int
		if _, err := fmt.Fscan(out, &n); err != nil {
			t.Fatal(err)
		}
		return n, func() { _ = in.Close(); _ = cmd.Wait() }
	}
	first, endFirst := claim()
	second, endSecond := claim()
	if first != testMost/2 || second != testMost/4 {
		t.Errorf("the first process has %d watches, the second %d", first, second)
	}
	b := NewBudget(dir, testMost)
	defer b.Close()
	third := takeAll(b)
	if third != testMost/8 || first+second+third > testMost {
		t.Errorf("the third has %d", third)
	}
	endFirst()
	if b.take() {
		t.Error("a refusal does not hold for a while")
	}
	b.refused = time.Time{}
	if n := third + takeAll(b); n != (testMost-second)/2 {
		t.Errorf("when the first has ended, the third has %d", n)
	}
	b.give(b.used)
	endSecond()
	b.refused = time.Time{}
	if n := takeAll(b); n != testMost/2 {
		t.Errorf("alone, the third has %d", n)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	left, _ := filepath.Glob(filepath.Join(dir, "claim-*"))
	if len(left) > 0 {
		t.Errorf("claims of ended processes: %v", left)
	}
	if n := takeAll(NewBudget("", 10)); n != 5 {
		t.Errorf("alone: %d", n)
	}
}

// The lock stays while somebody has a claim, whatever the directory is called.
func TestBudgetKeepsLock(t *testing.T) {
	for _, name := range []string{"watches", "[no pattern", "[a]"} {
		dir := filepath.Join(t.TempDir(), name)
		stays, goes := NewBudget(dir, testMost), NewBudget(dir, testMost)
		if !stays.take() || !goes.take() {
			t.Fatal("nothing is left")
		}
		if err := goes.Close(); err != nil {
			t.Fatal(err)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) != 2 {
			t.Errorf("%s: %v, %v are left, want a claim and the lock", name, left, err)
		}
		if err := stays.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: the last claim has left the directory: %v", name, err)
		}
	}
}

// Several exports share a budget: a tree that is too large is watched in part, which is
// told, and gives all back in the end.
func TestBudgetExhausted(t *testing.T) {
	dir := t.TempDir()
	for i := range 30 {
		if err := os.MkdirAll(filepath.Join(dir, fmt.Sprint(i), "sub"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b := NewBudget("", 40)
	watch := func() (held int, full bool) {
		ctx, cancel := context.WithCancel(t.Context())
		var log strings.Builder
		err := Watch(ctx, Options{
			Root: dir, Budget: b, Log: slog.New(slog.NewTextHandler(&log, nil)),
			Open:  func(d string) (*os.File, error) { return os.Open(filepath.Join(dir, d)) },
			Full:  func(is bool) { full = is },
			Ready: func() { held = b.used; cancel() },
		}, func([]Event) {})
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(log.String(), "not all directories"); full != (n == 1) {
			t.Errorf("it is said %d times", n)
		}
		return held, full
	}
	if held, full := watch(); held != 20 || !full || b.used != 0 {
		t.Errorf("%d watches, full: %v; %d afterwards", held, full, b.used)
	}
	b = NewBudget("", 400)
	if held, full := watch(); held != 61 || full || b.used != 0 {
		t.Errorf("%d watches, full: %v; %d afterwards", held, full, b.used)
	}
}
