package share

import (
	"sync"
	"time"
)

// underway holds the calls that are changing something for the VM. The host's kernel reports
// a change before the server has noted that it made it itself. So whoever asks who made a
// change first waits for the calls that were under way when it came.
type underway struct {
	mu    sync.Mutex
	calls map[chan struct{}]struct{}
}

// begin notes that a call may change something, until end is called.
func (u *underway) begin() (end func()) {
	call := make(chan struct{})
	u.mu.Lock()
	if u.calls == nil {
		u.calls = map[chan struct{}]struct{}{}
	}
	u.calls[call] = struct{}{}
	u.mu.Unlock()
	return func() {
		u.mu.Lock()
		delete(u.calls, call)
		u.mu.Unlock()
		close(call)
	}
}

// wait waits until the calls that are under way now have ended, but not longer than limit: a
// call on a slow disk must not hold up the news of all others.
func (u *underway) wait(limit time.Duration) {
	u.mu.Lock()
	calls := make([]chan struct{}, 0, len(u.calls))
	for call := range u.calls {
		calls = append(calls, call)
	}
	u.mu.Unlock()
	if len(calls) == 0 {
		return
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for _, call := range calls {
		select {
		case <-call:
		case <-timer.C:
			return
		}
	}
}
