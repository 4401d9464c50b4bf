package share

import (
	"sync"
	"time"
)

// underway are the calls that are changing something for the VM. The host's kernel tells
// of a change before the server has noted that it was its own, so who asks whose a change
// was first lets the calls end that were under way by then.
type underway struct {
	mu    sync.Mutex
	calls map[chan struct{}]struct{}
}

// begin notes that a call may change something, until the function that it returns is
// called.
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

// wait waits until the calls that are under way now have ended, or for a time: a call
// on a slow disk does not hold up the news of all others.
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
