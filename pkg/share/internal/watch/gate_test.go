package watch_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/devvm/devvm/pkg/share/internal/watch"
)

// gated watches a directory behind a gate and counts the names that it is told of.
func gated(t *testing.T, dir string) (*watch.Gate, func(name string) bool) {
	t.Helper()
	var gate watch.Gate
	var told atomic.Pointer[map[string]bool]
	told.Store(&map[string]bool{})
	ready := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- watch.Watch(ctx, watch.Options{
			Root: dir, Log: slog.New(slog.DiscardHandler), Budget: watch.NewBudget("", 0), Gate: &gate, Ready: func() { close(ready) },
			Open: func(d string) (*os.File, error) { return os.Open(filepath.Join(dir, d)) },
		}, func(events []watch.Event) {
			next := map[string]bool{}
			for name := range *told.Load() {
				next[name] = true
			}
			for _, e := range events {
				next[e.Path], next[e.To] = true, true
			}
			told.Store(&next)
		})
	}()
	<-ready
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	// The gate is open a moment after the watch is ready.
	for deadline := time.Now().Add(10 * time.Second); !(*told.Load())["first"]; {
		if time.Now().After(deadline) {
			t.Fatal("the watch does not begin")
		}
		_ = os.Remove(filepath.Join(dir, "first"))
		if err := os.WriteFile(filepath.Join(dir, "first"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		gate.Wait(t.Context())
	}
	return &gate, func(name string) bool { return (*told.Load())[name] }
}

// What was changed before somebody waits has been told when the wait ends, whatever the
// watch was at.
func TestGate(t *testing.T) {
	dir := t.TempDir()
	gate, told := gated(t, dir)
	if err := os.Mkdir(filepath.Join(dir, "d"), 0o700); err != nil {
		t.Fatal(err)
	}
	for i := range 500 {
		name := fmt.Sprint(i)
		if i%3 == 0 {
			name = filepath.Join("d", name)
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path+".new", nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			gate.Wait(t.Context())
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
		gate.Wait(t.Context())
		if !told(name) {
			t.Fatalf("round %d: %s was not told", i, name)
		}
	}
}

// A wait ends with its context, and with the watch.
func TestGateEnds(t *testing.T) {
	var gate watch.Gate
	gate.Wait(t.Context()) // nothing watches
	dir := t.TempDir()
	block, blocked := make(chan struct{}), make(chan struct{})
	ready := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- watch.Watch(ctx, watch.Options{
			Root: dir, Log: slog.New(slog.DiscardHandler), Budget: watch.NewBudget("", 0), Gate: &gate, Ready: func() { close(ready) },
			Open: func(d string) (*os.File, error) { return os.Open(filepath.Join(dir, d)) },
		}, func([]watch.Event) { close(blocked); <-block })
	}()
	<-ready
	if err := os.WriteFile(filepath.Join(dir, "f"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	<-blocked
	short, end := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer end()
	gate.Wait(short)
	if short.Err() == nil {
		t.Error("the wait ended while the change was being told")
	}
	waited := make(chan struct{})
	go func() { defer close(waited); gate.Wait(t.Context()) }()
	cancel()
	close(block)
	<-waited
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func BenchmarkGateAtRest(b *testing.B) {
	dir := b.TempDir()
	var gate watch.Gate
	ready := make(chan struct{})
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() {
		done <- watch.Watch(ctx, watch.Options{
			Root: dir, Log: slog.New(slog.DiscardHandler), Budget: watch.NewBudget("", 0), Gate: &gate, Ready: func() { close(ready) },
			Open: func(d string) (*os.File, error) { return os.Open(filepath.Join(dir, d)) },
		}, func([]watch.Event) {})
	}()
	<-ready
	for b.Loop() {
		gate.Wait(ctx)
	}
	cancel()
	<-done
}
