package project

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/gofrs/flock"
	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/file"
	"github.com/devvm/devvm/pkg/lock"
	"github.com/devvm/devvm/pkg/ui"
)

// holder is what the owner of a lock writes into it, for messages only: the
// kernel, not this text, decides who holds it.
type holder struct {
	PID  int    `json:"pid"`
	Verb string `json:"verb"`
}

// lockPoll is how often a waiting command looks whether the lock is free.
const lockPoll = 100 * time.Millisecond

// acquire makes this process the only one that changes the project. If another
// one is at work it calls waiting once and waits, or, without waiting, fails
// with exit code 6.
func (f paths) acquire(ctx context.Context, verb string, waiting func(who string)) (*flock.Flock, error) {
	for {
		if err := os.MkdirAll(f.root, 0o711); err != nil {
			return nil, fmt.Errorf("make project directory: %w", err)
		}
		l := flock.New(f.lock, flock.SetPermissions(0o600))
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
				if pid := lock.Stopped(f.lock); pid != 0 {
					return nil, errStopped(who, &lock.StoppedError{PID: pid, Path: f.lock})
				}
				return nil, &ui.Error{
					Code: ui.ExitBusy,
					Msg:  fmt.Sprintf("another devvm (%s) is at work on this project", who),
					Hint: "wait until it is done, then run the command again",
				}
			}
			waiting(who)
			err := lock.Wait(ctx, l, false, lockPoll)
			if errors.Is(err, fs.ErrNotExist) {
				continue // that other one was an rm
			}
			if stopped, ok := errors.AsType[*lock.StoppedError](err); ok {
				return nil, errStopped(who, stopped)
			}
			if err != nil {
				return nil, fmt.Errorf("wait for %s: %w", who, err)
			}
		}
		if !sameFile(l, f.lock) { // rm removed the file while we waited: lock the new one
			_ = l.Close()
			continue
		}
		if err := f.checkMoved(verb); err != nil {
			_ = l.Close()
			return nil, err
		}
		b, _ := json.Marshal(holder{os.Getpid(), verb})
		_ = os.WriteFile(f.lock, b, 0o600) // words for others: a full disk is no reason not to remove a VM
		return l, nil
	}
}

// errStopped says that another devvm, who, is at work on the project and does not go on.
func errStopped(who string, err *lock.StoppedError) error {
	return &ui.Error{
		Code: ui.ExitBusy,
		Msg:  fmt.Sprintf("another devvm (%s) that is at work on this project is stopped by a signal (Ctrl-Z, SIGSTOP)", who),
		Hint: err.Hint(),
	}
}

// holder describes who holds the lock.
func (f paths) holder() string {
	var h holder
	b, err := os.ReadFile(f.lock)
	if err != nil || json.Unmarshal(b, &h) != nil {
		return "of unknown pid"
	}
	return fmt.Sprintf("%s, pid %d", h.Verb, h.PID)
}

// sameFile tells whether the locked file is still the one at the path.
func sameFile(l *flock.Flock, path string) bool {
	locked, err := l.Stat()
	if err != nil {
		return false
	}
	now, err := os.Stat(path)
	return err == nil && os.SameFile(locked, now)
}

// record is the content of project.json: which directory the files belong to
// when no domain says it. Dir is bytes, since a path need not be UTF-8.
type record struct {
	Dir   []byte `json:"dir"`
	Being string `json:"being,omitempty"` // see beingOf
	// Adopts is the name of the project whose VM this one is taking over, see Move; From is its
	// directory, and Same says that this is the same directory.
	Adopts string `json:"adopts,omitempty"`
	From   []byte `json:"from,omitempty"`
	Same   bool   `json:"same,omitempty"`
}

// beingOf is what a directory keeps when it is renamed, and a copy of it does not have: its
// number, and when it was made, where the file system knows (statx(2)). It is "" if there is none.
// A link to a directory is not the directory.
func beingOf(dir string) string {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, dir, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_INO|unix.STATX_BTIME, &st); err != nil {
		return ""
	}
	return fmt.Sprintf("%d %d.%09d", st.Ino, st.Btime.Sec, st.Btime.Nsec)
}

// isSure tells whether what beingOf has returned is of one directory alone: numbers are given again.
func isSure(being string) bool { return being != "" && !strings.HasSuffix(being, " 0.000000000") }

// writeRecord notes the directory beside the project's files.
func (f paths) writeRecord(dir string) error {
	return f.write(record{Dir: []byte(dir), Being: beingOf(dir)})
}

// noteDir is writeRecord, unless the VM was made for another directory, which has gone from this
// path: that one may come for its VM.
func (f paths) noteDir(dir string) error {
	if f.isReplaced(dir) {
		return nil
	}
	return f.writeRecord(dir)
}

// isReplaced tells whether a directory is known not to be the one that the VM was made for.
func (f paths) isReplaced(dir string) bool {
	_, being := f.recorded()
	now := beingOf(dir)
	return f.isUsed() && isSure(being) && now != "" && now != being
}

// writeAdopts notes that the project is taking over another one's VM.
func (f paths) writeAdopts(dir string, from Former) error {
	return f.write(record{Dir: []byte(dir), Being: beingOf(dir), Adopts: from.Name, From: []byte(from.Dir), Same: from.Same})
}

func (f paths) write(r record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("write %s: %w", f.record, err)
	}
	return file.Replace(f.record, b, 0o600)
}

// adopts is the name of the project whose VM this one is taking over; "": none.
func (f paths) adopts() string {
	r, err := f.read()
	if err != nil {
		return ""
	}
	return r.Adopts
}

// readRecord returns the directory noted, or "".
func (f paths) readRecord() string {
	dir, _ := f.recorded()
	return dir
}

// recorded returns the directory noted, and its being then.
func (f paths) recorded() (dir, being string) {
	r, err := f.read()
	if err != nil {
		return "", ""
	}
	return string(r.Dir), r.Being
}

func (f paths) read() (record, error) {
	var r record
	b, err := os.ReadFile(f.record)
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	return r, err
}
