package background

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"time"

	"github.com/gofrs/flock"
)

// placeEvery is how often HoldsPlace looks.
const placeEvery = 2 * time.Second

// HoldsPlace waits until this process can no longer be found by its lock, and returns
// false, or until ctx ends, and returns true. A process is found by the lock on the file at
// path; if that file is removed, by a cleaner of temporary files for example, the next
// process makes and locks another one.
func HoldsPlace(ctx context.Context, lock *flock.Flock, path string) bool {
	tick := time.NewTicker(placeEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return true
		}
		ours, err := lock.Stat()
		if err != nil {
			continue
		}
		now, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(ours, now) {
			return false
		}
	}
}
