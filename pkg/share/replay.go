package share

import (
	"bytes"
	"context"
	"hash/maphash"
	"sync"
)

// A VM whose connection broke sends again what it had no answer to. A call that must
// not be carried out twice is answered as it was the first time, and while the first
// is still under way, so that it cannot end after what the VM does next.
type replays struct {
	seed maphash.Seed
	mu   sync.Mutex
	past map[replayKey]*replay
	ring []replayKey // in the order of their coming
	next int
}

type replayKey struct {
	xid, proc uint32
	size      int
	hash      uint64
}

type replay struct {
	done chan struct{} // closed when the answer is there
	data []byte
}

// manyReplays is more than all connections can have under way.
const manyReplays = 4096

// replayBytes of a call tell it from another with the same number.
const replayBytes = 512

func newReplays() *replays {
	return &replays{seed: maphash.MakeSeed(), past: map[replayKey]*replay{}, ring: make([]replayKey, manyReplays)}
}

// do carries out a call, unless it is one to be done once and was: then it returns
// what it was answered.
func (r *replays) do(ctx context.Context, xid uint32, c *call, once bool, first func() []byte) []byte {
	if !once {
		first()
		return nil
	}
	body := c.rest()
	key := replayKey{xid: xid, proc: c.proc, size: len(body), hash: maphash.Bytes(r.seed, body[:min(len(body), replayBytes)])}
	r.mu.Lock()
	if past, ok := r.past[key]; ok {
		r.mu.Unlock()
		select {
		case <-past.done:
			return past.data
		case <-ctx.Done():
			return []byte{} // nobody is there to read it
		}
	}
	now := &replay{done: make(chan struct{})}
	delete(r.past, r.ring[r.next])
	r.ring[r.next], r.past[key] = key, now
	r.next = (r.next + 1) % len(r.ring)
	r.mu.Unlock()
	now.data = bytes.Clone(first())
	close(now.done)
	return nil
}
