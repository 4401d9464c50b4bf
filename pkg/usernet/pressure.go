package usernet

import (
	"context"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync/atomic"
	"time"
)

// What the guest can make this process hold is bounded by the limits of all that queues:
// connections, their buffers, flows, questions, frames. But the stack keeps whole frames
// for the few bytes in them that it still needs, and counts the bytes. So the sum is
// measured as well: when it is too much, the goroutine that reads frames waits for the
// collector, and if that does not help, the guest loses its connections.

const (
	// memoryLimit makes the collector work harder near what the process may hold.
	memoryLimit = 44 << 20
	// heapLimit is what may be in use after a collection.
	heapLimit = 28 << 20
	// looksEvery is how much the guest sends between two looks at the heap, and
	// frameCost what a frame is held to cost beside its bytes.
	looksEvery = 2 << 20
	frameCost  = 1 << 10
)

// pressure watches the memory of the process.
type pressure struct {
	watched atomic.Bool // only a process that does nothing else is
	since   int         // bytes since the last look; the reading goroutine's
}

// note counts a frame, and relieves the process if need be. The reading goroutine calls it.
func (s *Stack) notePressure(frame []byte) {
	p := &s.pressure
	if p.since += len(frame) + frameCost; p.since < looksEvery || !p.watched.Load() {
		return
	}
	p.since = 0
	if heapInUse() <= heapLimit {
		return
	}
	runtime.GC()
	if held := heapInUse(); held > heapLimit {
		s.relieve(held)
		runtime.GC()
	}
}

// relieve ends all connections and flows of the guest's.
func (s *Stack) relieve(held uint64) {
	ended := s.relays.abort() + s.out.udpFlows.abort()
	s.log.Warn("the VM's connections hold too much memory and are ended", "bytes", held, "connections", ended)
}

// heapInUse is what objects take, those that nobody needs any more among them.
func heapInUse() uint64 {
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

const (
	// gcPercent trades a little of the processor for a small process.
	gcPercent = 50
	// A process that holds more than trimAbove bytes gives back, every
	// trimEvery, what a burst of connections has left: without it an idle
	// process would keep that for minutes.
	trimAbove = 12 << 20
	trimEvery = 10 * time.Second
)

// keepSmall returns memory that the process does not need until ctx ends.
func keepSmall(ctx context.Context) {
	held := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	tick := time.NewTicker(trimEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			metrics.Read(held)
			if held[0].Value.Uint64()-held[1].Value.Uint64() > trimAbove {
				debug.FreeOSMemory()
			}
		}
	}
}
