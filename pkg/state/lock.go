package state

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/gofrs/flock"

	"github.com/devvm/devvm/pkg/lock"
	"github.com/devvm/devvm/pkg/ui"
)

// holder is what the holder of a lock writes into it. It is for messages only: the kernel decides
// who holds the lock.
type holder struct {
	PID  int    `json:"pid"`
	Verb string `json:"verb"`
}

// lockPoll is how often a waiting command tries to take the lock.
const lockPoll = 100 * time.Millisecond

// Acquire takes the lock that lets one process change the project. If another one holds it,
// Acquire calls waiting once and waits. If waiting is nil, it fails with exit code 6.
func (f Files) Acquire(ctx context.Context, verb string, waiting func(who string)) (*flock.Flock, error) {
	for {
		if err := os.MkdirAll(f.Root, 0o711); err != nil {
			return nil, fmt.Errorf("make project directory: %w", err)
		}
		l := flock.New(f.Lock, flock.SetPermissions(0o600))
		got, err := l.TryLock()
		if errors.Is(err, fs.ErrNotExist) {
			continue // an rm has just removed the directory
		}
		if err != nil {
			return nil, fmt.Errorf("lock project: %w", err)
		}
		if !got {
			who := f.holder()
			if waiting == nil {
				if pid := lock.Stopped(f.Lock); pid != 0 {
					return nil, errStopped(who, &lock.StoppedError{PID: pid, Path: f.Lock})
				}
				return nil, &ui.Error{
					Code: ui.ExitBusy,
					Msg:  fmt.Sprintf("another devvm command (%s) is running for this project", who),
					Hint: "wait until it is done, then run the command again",
				}
			}
			waiting(who)
			err := lock.Wait(ctx, l, false, lockPoll)
			if errors.Is(err, fs.ErrNotExist) {
				continue // it was an rm that held it
			}
			if stopped, ok := errors.AsType[*lock.StoppedError](err); ok {
				return nil, errStopped(who, stopped)
			}
			if err != nil {
				return nil, fmt.Errorf("wait for %s: %w", who, err)
			}
		}
		if !sameFile(l, f.Lock) { // rm removed the file while we waited: lock the new one
			_ = l.Close()
			continue
		}
		if err := f.checkMoved(verb); err != nil {
			_ = l.Close()
			return nil, err
		}
		b, _ := json.Marshal(holder{os.Getpid(), verb})
		_ = os.WriteFile(f.Lock, b, 0o600) // for messages only: a full disk must not prevent an rm
		return l, nil
	}
}

// errStopped says that another devvm, who, holds the lock and has been stopped by a signal.
func errStopped(who string, err *lock.StoppedError) error {
	return &ui.Error{
		Code: ui.ExitBusy,
		Msg:  fmt.Sprintf("another devvm command (%s) for this project is stopped by a signal (Ctrl-Z, SIGSTOP)", who),
		Hint: err.Hint(),
	}
}

// holder describes who holds the lock.
func (f Files) holder() string {
	var h holder
	b, err := os.ReadFile(f.Lock)
	if err != nil || json.Unmarshal(b, &h) != nil {
		return "of unknown pid"
	}
	return fmt.Sprintf("%s, pid %d", h.Verb, h.PID)
}

// sameFile reports whether the locked file is still the one at the path.
func sameFile(l *flock.Flock, path string) bool {
	locked, err := l.Stat()
	if err != nil {
		return false
	}
	now, err := os.Stat(path)
	return err == nil && os.SameFile(locked, now)
}
