package daemon_test

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/gofrs/flock"

	"github.com/devvm/devvm/pkg/daemon"
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
	asked := 0
	ask := func(errs ...error) func() error {
		asked = 0
		return func() error {
			asked++
			return errs[min(asked, len(errs))-1]
		}
	}
	if err := daemon.Outwait(t.Context(), path, busy, ask(busy, busy, busy, nil)); err != nil || asked != 4 {
		t.Errorf("a busy one: %v after %d questions", err, asked)
	}
	if err := daemon.Outwait(t.Context(), path, busy, ask(busy, gone)); !errors.Is(err, gone) || asked != 2 {
		t.Errorf("one that goes: %v after %d questions", err, asked)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := daemon.Outwait(ctx, path, busy, ask(busy)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Ctrl-C: %v", err)
	}
	if daemon.Lost(path, time.Now()) || !daemon.Lost(path, time.Now().Add(-time.Minute)) {
		t.Error("the time that it has counts")
	}
	if err := l.Unlock(); err != nil {
		t.Fatal(err)
	}
	if err := daemon.Outwait(t.Context(), path, busy, ask(busy)); !errors.Is(err, busy) || asked != 1 {
		t.Errorf("one without its lock: %v after %d questions", err, asked)
	}
	if !daemon.Lost(filepath.Join(t.TempDir(), "none"), time.Now()) {
		t.Error("one without a file for a lock")
	}
}
