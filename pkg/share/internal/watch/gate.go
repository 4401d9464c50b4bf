package watch

import (
	"context"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Gate lets others wait until a Watch has passed on what has changed so far. The zero
// Gate is ready for use, by one Watch at a time.
type Gate struct {
	mu      sync.Mutex
	f       *os.File // of inotify; nil: nothing watches
	fd      int
	busy    bool // something was read and is not passed on yet
	waiting []chan struct{}
}

// Wait returns when all changes that were made before it was called have been passed on,
// and use has returned, or when ctx ends. Where nothing has changed it costs one system
// call.
func (g *Gate) Wait(ctx context.Context) {
	g.mu.Lock()
	if g.f == nil {
		g.mu.Unlock()
		return
	}
	queued, err := unix.IoctlGetInt(g.fd, unix.TIOCINQ) // FIONREAD, see inotify(7)
	if err == nil && queued == 0 && !g.busy {
		g.mu.Unlock()
		return
	}
	passed := make(chan struct{})
	g.waiting = append(g.waiting, passed)
	_ = g.f.SetReadDeadline(time.Unix(1, 0)) // ends the batch
	g.mu.Unlock()
	select {
	case <-passed:
	case <-ctx.Done():
	}
}

// open says what is watched by, close that nothing is.
func (g *Gate) open(f *os.File, fd int) {
	g.mu.Lock()
	g.f, g.fd, g.busy = f, fd, false
	g.mu.Unlock()
}

func (g *Gate) close() {
	g.mu.Lock()
	g.f = nil
	g.mu.Unlock()
	g.pass(g.take())
}

// wait sets how long to wait for more changes: not at all if somebody waits for those
// that are there.
func (g *Gate) wait(until time.Time) {
	g.mu.Lock()
	if len(g.waiting) > 0 {
		until = time.Unix(1, 0)
	}
	if g.f != nil {
		_ = g.f.SetReadDeadline(until)
	}
	g.mu.Unlock()
}

// read reads what there is, and returns EAGAIN if there is nothing.
func (g *Gate) read(fd uintptr, b []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for {
		n, err := unix.Read(int(fd), b)
		if err == unix.EINTR {
			continue
		}
		g.busy = g.busy || n > 0
		return n, err
	}
}

// take returns those who wait for what was changed until now.
func (g *Gate) take() []chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	waiting := g.waiting
	g.waiting = nil
	return waiting
}

// pass lets them go on.
func (g *Gate) pass(waiting []chan struct{}) {
	for _, passed := range waiting {
		close(passed)
	}
}

// idle says that all that was read has been passed on.
func (g *Gate) idle() {
	g.mu.Lock()
	g.busy = false
	g.mu.Unlock()
}
