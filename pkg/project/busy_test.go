package project

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/gofrs/flock"
)

// TestOutwait: a process that is slow to answer is not replaced while it has its lock; one that
// has lost that is.
func TestOutwait(t *testing.T) {
	busy, gone := errors.New("busy"), errors.New("gone")
	path := filepath.Join(t.TempDir(), "lock")
	l := flock.New(path)
	if ok, err := l.TryLock(); err != nil || !ok {
		t.Fatal(ok, err)
	}
	s := &Service{}
	asked := 0
	ask := func(errs ...error) func() error {
		asked = 0
		return func() error {
			asked++
			return errs[min(asked, len(errs))-1]
		}
	}
	if err := s.outwait(t.Context(), path, busy, ask(busy, busy, busy, nil)); err != nil || asked != 4 {
		t.Errorf("a busy one: %v after %d questions", err, asked)
	}
	if err := s.outwait(t.Context(), path, busy, ask(busy, gone)); !errors.Is(err, gone) || asked != 2 {
		t.Errorf("one that goes: %v after %d questions", err, asked)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := s.outwait(ctx, path, busy, ask(busy)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Ctrl-C: %v", err)
	}
	if s.lost(path, time.Now()) || !s.lost(path, time.Now().Add(-patienceBusy)) {
		t.Error("the time that it has counts")
	}
	if err := l.Unlock(); err != nil {
		t.Fatal(err)
	}
	if err := s.outwait(t.Context(), path, busy, ask(busy)); !errors.Is(err, busy) || asked != 1 {
		t.Errorf("one without its lock: %v after %d questions", err, asked)
	}
	if !s.lost(filepath.Join(t.TempDir(), "none"), time.Now()) {
		t.Error("one without a file for a lock")
	}
}
