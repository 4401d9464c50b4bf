package share

import (
	"bytes"
	"context"
	"hash/maphash"
	"sync"
)

// After its connection broke, a VM sends the calls again to which it had no answer. A call that
// must not be carried out twice gets the answer of the first time. If the first is still under
// way, the second waits for it, so that it cannot end after what the VM does next.
type replays struct {
	seed maphash.Seed
	mu   sync.Mutex
	past map[replayKey]*replay
	ring []replayKey // in the order in which they came
	next int
}

type replayKey struct {
	xid, proc uint32
	size      int
	hash      uint64
}

type replay struct {
	done chan struct{} // closed when there is an answer
	data []byte
}

// manyReplays is more than all connections can have under way.
const manyReplays = 4096

// replayBytes is how much of a call tells it from another with the same number.
const replayBytes = 512

func newReplays() *replays {
	return &replays{seed: maphash.MakeSeed(), past: map[replayKey]*replay{}, ring: make([]replayKey, manyReplays)}
}

// do carries out a call. A call that must be carried out once, and was, gets the first answer
// again: do returns it.
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
			return []byte{} // nobody reads it
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
