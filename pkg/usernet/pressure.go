package usernet

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"sync/atomic"
	"time"
)

// What the guest can make this process hold is bounded by the limits of all that queues:
// connections, their buffers, flows, questions, frames. But the stack keeps whole frames
// for the few bytes in them that it still needs, and counts the bytes. So the sum is
// measured as well: when it is too much, no more frames are read for a second, and if that
// does not help, the guest loses its connections.

const (
	// memoryLimit makes the collector work harder near what the process may hold.
	memoryLimit = 28 << 20
	// mostHeld is what it may hold: heap, stacks, and what is kept of both for later. The
	// program itself, as far as it is in memory, comes on top, and so does heldByDialIn
	// for each connection that the host has opened, which the guest cannot.
	mostHeld     = 34 << 20
	heldByDialIn = 48 << 10
	// looksEvery is how much the guest sends between two looks at that, and frameCost
	// what a frame is held to cost beside its bytes.
	looksEvery = 1 << 20
	frameCost  = 1 << 10
	// drainTime is how long the guest waits before it loses its connections.
	drainTime = time.Second
)

// pressure watches the memory of the process.
type pressure struct {
	watched atomic.Bool // only a process that does nothing else is
	since   int         // bytes since the last look; the reading goroutine's
}

// notePressure counts a frame, and relieves the process if need be. The reading goroutine
// calls it.
func (s *Stack) notePressure(frame []byte) {
	p := &s.pressure
	if p.since += len(frame) + frameCost; p.since < looksEvery || !p.watched.Load() {
		return
	}
	p.since = 0
	// While nothing comes in, what is under way to the host's sockets goes there.
	for start := time.Now(); held() > s.mayHold(); {
		debug.FreeOSMemory()
		now := held()
		if now > s.mayHold() && time.Since(start) > drainTime {
			s.relieve(now)
			debug.FreeOSMemory()
			return
		}
	}
}

// mayHold is what the process may hold now.
func (s *Stack) mayHold() uint64 { return mostHeld + s.dialInShare() }

// dialInShare is what of it is for the host's connections into the VM.
func (s *Stack) dialInShare() uint64 { return uint64(max(0, s.dialIns.Load())) * heldByDialIn }

// relieve ends all connections and flows that the guest has opened.
func (s *Stack) relieve(held uint64) {
	ended := s.relays.abort() + s.out.udpFlows.abort() + s.out.pings.abort()
	s.log.Warn("the VM's connections hold too much memory and are ended", "bytes", held, "connections", ended)
}

// held is what the process has of the host's memory, beside its program.
func held() uint64 {
	samples := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(samples)
	return samples[0].Value.Uint64() - samples[1].Value.Uint64()
}

const (
	// gcPercent trades a little of the processor for a small process.
	gcPercent = 50
	// A process that holds more than trimAbove bytes gives back, every
	// trimEvery, what a burst of connections has left: without it an idle
	// process would keep that for minutes.
	trimAbove = 12 << 20
	trimEvery = 10 * time.Second
	// lookAgain is between two looks for more than mostHeld, whoever causes it.
	lookAgain = 200 * time.Millisecond
)

// keepSmall sets the collector's limit, and returns memory that the process does not need,
// until ctx ends.
func (s *Stack) keepSmall(ctx context.Context) {
	const step = 4 << 20
	tick := time.NewTicker(lookAgain)
	defer tick.Stop()
	share := uint64(0)
	for last := time.Now(); ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if next := s.dialInShare() / step * step; next != share {
			share = next
			debug.SetMemoryLimit(memoryLimit + int64(share))
		}
		if now := held(); now > s.mayHold() || now > trimAbove && time.Since(last) >= trimEvery {
			debug.FreeOSMemory()
			last = time.Now()
		}
	}
}
