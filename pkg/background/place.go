package background

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/gofrs/flock"
)

// Place makes a process the only one of its kind, and found, by the flock of a file.
type Place struct {
	lock *flock.Flock
	path string
}

// ErrTaken says that another process has the place.
var ErrTaken = errors.New("another process has its place")

const (
	// patiencePlace is how long the process before may take to leave the place.
	patiencePlace = 5 * time.Second
	// placeEvery is how often Held looks.
	placeEvery = 2 * time.Second
)

// Take takes a place, or fails with [ErrTaken] after 5 s. It returns the error of ctx when that
// ends.
func Take(ctx context.Context, path string) (*Place, error) {
	lock := flock.New(path, flock.SetPermissions(0o600))
	patient, cancel := context.WithTimeout(ctx, patiencePlace)
	defer cancel()
	ok, err := lock.TryLockContext(patient, 50*time.Millisecond)
	switch {
	case ctx.Err() != nil:
		return nil, errors.Join(ctx.Err(), lock.Close())
	case errors.Is(err, context.DeadlineExceeded), err == nil && !ok:
		return nil, ErrTaken
	case err != nil:
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return &Place{lock, path}, nil
}

// Close gives the place up.
func (p *Place) Close() error { return p.lock.Close() }

// Held waits until this process can no longer be found, and returns false, or until ctx ends, and
// returns true. If the file is removed, by a cleaner of temporary files for example, the next
// process makes and locks another one.
func (p *Place) Held(ctx context.Context) bool {
	tick := time.NewTicker(placeEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return true
		}
		ours, err := p.lock.Stat()
		if err != nil {
			continue
		}
		now, err := os.Stat(p.path)
		if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(ours, now) {
			return false
		}
	}
}
