// Package lock waits for flocks (flock(2)) and says who has one.
//
// A lock ends with its holder, so that a wait for it needs no end of its own, but for one: a
// holder that is stopped by a signal (Ctrl-Z, SIGSTOP) never comes to its end. [Wait] finds it
// and fails with [StoppedError].
//
// It imports no other package of devvm.
package lock

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/gofrs/flock"
)

// StoppedError says that a signal has stopped the process that has a lock.
type StoppedError struct {
	PID  int
	Path string
}

// Error implements error.
func (e *StoppedError) Error() string {
	return fmt.Sprintf("process %d, which holds %s, is stopped by a signal (Ctrl-Z, SIGSTOP)", e.PID, e.Path)
}

// Hint is what to do about it.
func (e *StoppedError) Hint() string {
	return fmt.Sprintf("resume it (fg in its shell, or kill -CONT %d) or kill it (kill -9 %d), then run the command again", e.PID, e.PID)
}

// patienceStopped is how long the holder must be stopped: one that is stopped and goes on is
// worth waiting for.
const patienceStopped = 3 * time.Second

// Wait takes the lock, shared or for itself alone, and looks each retry whether it can. It
// fails when ctx ends or with a StoppedError.
func Wait(ctx context.Context, l *flock.Flock, shared bool, retry time.Duration) error {
	try := l.TryLock
	if shared {
		try = l.TryRLock
	}
	tick := time.NewTicker(retry)
	defer tick.Stop()
	var looked, since time.Time
	for {
		got, err := try()
		if got || err != nil {
			return err
		}
		if now := time.Now(); now.Sub(looked) > patienceStopped/6 {
			looked = now
			pid := Stopped(l.Path())
			switch {
			case pid == 0:
				since = time.Time{}
			case since.IsZero():
				since = now
			case now.Sub(since) > patienceStopped:
				return &StoppedError{pid, l.Path()}
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Stopped returns a process that holds the lock and is stopped by a signal; 0 if there is none,
// or it cannot be seen from here. One of several that share the lock is enough to hold it.
func Stopped(path string) int {
	pids, err := holders(path)
	if err != nil {
		return 0
	}
	if i := slices.IndexFunc(pids, stopped); i >= 0 {
		return pids[i]
	}
	return 0
}

// stopped tells whether a signal has stopped a process (proc_pid_stat(5)).
func stopped(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	// The command's name is in brackets and may hold anything.
	return strings.HasPrefix(string(b[strings.LastIndexByte(string(b), ')')+1:]), " T ")
}

// Holder returns a process that has the file locked, 0 if none that can be seen from here does.
func Holder(path string) (int, error) {
	pids, err := holders(path)
	if err != nil || len(pids) == 0 {
		return 0, err
	}
	return pids[0], nil
}

// holders returns the processes that have the file locked: those that /proc/locks names
// (proc_locks(5)) and that have it open. The device stands there in a form that not every file
// system shares with stat(2).
func holders(path string) ([]int, error) {
	file, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	st, ok := file.Sys().(*syscall.Stat_t)
	if !ok {
		return nil, nil
	}
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		return nil, err
	}
	suffix := ":" + strconv.FormatUint(st.Ino, 10)
	var pids []int
	for line := range strings.Lines(string(locks)) {
		f := strings.Fields(line) // 1: FLOCK ADVISORY WRITE 1234 fe:00:5678 0 EOF
		if len(f) < 6 || f[1] != "FLOCK" || !strings.HasSuffix(f[5], suffix) {
			continue
		}
		pid, err := strconv.Atoi(f[4])
		if err == nil && pid > 0 && pid != os.Getpid() && opens(pid, file) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// opens tells whether a process has the file open.
func opens(pid int, file fs.FileInfo) bool {
	open, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		return false
	}
	for _, fd := range open {
		if info, err := os.Stat(fd); err == nil && os.SameFile(info, file) {
			return true
		}
	}
	return false
}
