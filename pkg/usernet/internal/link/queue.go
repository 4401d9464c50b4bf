package link

import (
	"context"
	"encoding/binary"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const (
	// QueueBytes is a good limit for the frames that wait for the peer to read.
	QueueBytes = 512 << 10
	// StallTimeout is how long senders wait for a peer that does not read (a
	// paused VM) before its frames are dropped instead.
	StallTimeout = 2 * time.Second
	// batchFrames bounds one write to the peer; it keeps a batch within the
	// 1024 buffers of one writev.
	batchFrames = 128
	// ackDelay is how long an acknowledgement waits for data to go with it.
	ackDelay = time.Millisecond
)

// outQueue writes frames to a connection, if there is one. A sender writes its
// frame by itself while the peer keeps up, which saves a switch of goroutines
// per frame; what the socket does not take at once is left to a goroutine that
// writes many frames at a time.
type outQueue struct {
	limit int // of queued

	mu      sync.Mutex
	plugged bool
	raw     syscall.RawConn // nil: nobody but the goroutine writes
	busy    bool            // the goroutine is writing, or has been told to
	rest    []byte          // of a frame that the socket took half of
	frames  []*stack.PacketBuffer
	queued  int           // bytes in frames
	stalled bool          // the peer has not read for StallTimeout
	space   chan struct{} // closed when frames has been taken
	work    chan struct{} // capacity 1: wakes the goroutine

	ackDelay time.Duration
	ack      *stack.PacketBuffer // that waits for a frame to go with it, or nil
	ackSince time.Time           // when it began to
	ackTimer *time.Timer
	ackArmed bool // the timer runs

	sentFrames, sentBytes, dropped atomic.Uint64
}

func newOutQueue(limit int) *outQueue {
	q := &outQueue{limit: limit, ackDelay: ackDelay, space: make(chan struct{}), work: make(chan struct{}, 1)}
	q.ackTimer = time.AfterFunc(time.Hour, q.ackLate)
	q.ackTimer.Stop()
	return q
}

// plug makes conn the one that frames go to, unless there is one.
func (q *outQueue) plug(conn net.Conn) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.plugged {
		return false
	}
	q.plugged, q.raw = true, nil
	if c, ok := conn.(syscall.Conn); ok {
		if raw, err := c.SyscallConn(); err == nil {
			q.raw = raw
		}
	}
	return true
}

// unplug forgets the connection and what waits for it. No goroutine runs.
func (q *outQueue) unplug() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.plugged, q.raw, q.busy, q.rest = false, nil, false, nil
	if q.ack != nil {
		q.ack.DecRef()
		q.ack = nil
	}
	q.dropped.Add(uint64(len(q.frames)))
	for _, p := range q.frames {
		p.DecRef()
	}
	clear(q.frames)
	q.frames = q.frames[:0]
	q.taken()
	select {
	case <-q.work:
	default:
	}
}

// taken notes that the queue is empty.
func (q *outQueue) taken() {
	q.queued, q.stalled = 0, false
	close(q.space)
	q.space = make(chan struct{})
}

// send writes a frame or takes a reference to it, or drops it if nobody reads.
// It blocks while the queue is full and the peer reads.
//
// gVisor acknowledges at once whatever comes. A guest that asks and waits for an answer
// would be interrupted twice for each, and an emulated one notices; so an acknowledgement
// waits a moment for the answer, which says the same. The next one of its connection
// sends it on its way, as Linux acknowledges each second segment.
func (q *outQueue) send(p *stack.PacketBuffer) {
	q.mu.Lock()
	defer q.mu.Unlock()
	second := false
	if ack := q.ack; ack != nil {
		q.ack = nil
		if second = supersedes(p, ack); !second {
			q.put(ack)
		}
		ack.DecRef()
	}
	if q.plugged && q.ack == nil && !second && loneAck(p) { // put may have let others in
		q.ack, q.ackSince = p.IncRef(), time.Now()
		if !q.ackArmed {
			q.ackArmed = true
			q.ackTimer.Reset(q.ackDelay)
		}
		return
	}
	q.put(p)
}

// ackLate sends an acknowledgement that has waited in vain.
func (q *outQueue) ackLate() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ackArmed = false
	ack := q.ack
	if ack == nil {
		return
	}
	if rest := q.ackDelay - time.Since(q.ackSince); rest > 0 { // it is another one
		q.ackArmed = true
		q.ackTimer.Reset(rest)
		return
	}
	q.ack = nil
	q.put(ack)
	ack.DecRef()
}

// loneAck tells whether a frame has nothing but an acknowledgement of TCP's.
func loneAck(p *stack.PacketBuffer) bool {
	if p.NetworkProtocolNumber != header.IPv4ProtocolNumber || p.TransportProtocolNumber != header.TCPProtocolNumber || p.Data().Size() > 0 {
		return false
	}
	t := header.TCP(p.TransportHeader().Slice())
	return len(t) >= header.TCPMinimumSize && t.Flags() == header.TCPFlagAck
}

// supersedes tells whether a frame says what an acknowledgement does, and more.
func supersedes(p, ack *stack.PacketBuffer) bool {
	t, was := header.TCP(p.TransportHeader().Slice()), header.TCP(ack.TransportHeader().Slice())
	if p.NetworkProtocolNumber != header.IPv4ProtocolNumber || p.TransportProtocolNumber != header.TCPProtocolNumber || len(t) < header.TCPMinimumSize ||
		t.SourcePort() != was.SourcePort() || t.DestinationPort() != was.DestinationPort() || !t.Flags().Contains(header.TCPFlagAck) {
		return false
	}
	from, to := header.IPv4(p.NetworkHeader().Slice()), header.IPv4(ack.NetworkHeader().Slice())
	if from.SourceAddress() != to.SourceAddress() || from.DestinationAddress() != to.DestinationAddress() {
		return false
	}
	// The same number twice and nothing else is a sign of a loss.
	more := int32(t.AckNumber() - was.AckNumber()) // sequence numbers wrap
	return more > 0 || more == 0 && p.Data().Size() > 0
}

// put is send for a frame that waits for no other. The caller holds mu.
func (q *outQueue) put(p *stack.PacketBuffer) {
	q.awaitSpace()
	if !q.plugged || q.queued >= q.limit {
		q.dropped.Add(1)
		return
	}
	if !q.busy && q.raw != nil && q.sendNow(p) {
		return
	}
	q.frames = append(q.frames, p.IncRef())
	q.queued += p.Size()
	q.wake()
}

// wake lets the goroutine write.
func (q *outQueue) wake() {
	if !q.busy {
		q.busy = true
		q.work <- struct{}{} // empty, as it is filled only here
	}
}

// awaitSpace waits, with mu held before and after, while the queue is full and
// the peer reads.
func (q *outQueue) awaitSpace() {
	var timeout *time.Timer
	for q.plugged && !q.stalled && q.queued >= q.limit {
		space := q.space
		q.mu.Unlock()
		if timeout == nil {
			timeout = time.NewTimer(StallTimeout)
			defer timeout.Stop()
		} else {
			timeout.Reset(StallTimeout) // the peer has read something
		}
		select {
		case <-space:
			q.mu.Lock()
		case <-timeout.C:
			q.mu.Lock()
			q.stalled = q.space == space
		}
	}
}

// sendNow writes a frame without waiting. False means that none of it went.
func (q *outQueue) sendNow(p *stack.PacketBuffer) bool {
	var (
		length [lengthSize]byte
		iov    [8][]byte
		n      int
		err    error
	)
	size := p.Size()
	binary.BigEndian.PutUint32(length[:], uint32(size))
	parts := append(append(iov[:0], length[:]), p.AsSlices()...)
	wait := q.raw.Write(func(fd uintptr) bool {
		n, err = unix.Writev(int(fd), parts)
		return true // whatever it was
	})
	if wait != nil || err != nil || n <= 0 {
		return false // the goroutine meets the error
	}
	q.sentFrames.Add(1)
	q.sentBytes.Add(uint64(size))
	if n < lengthSize+size {
		q.rest = slices.Concat(parts...)[n:]
		q.wake()
	}
	return true
}

// write writes what is queued until ctx ends or the connection does.
func (q *outQueue) write(ctx context.Context, conn net.Conn) error {
	var (
		spare   []*stack.PacketBuffer
		iov     net.Buffers
		lengths [batchFrames][lengthSize]byte
	)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-q.work:
		}
		for {
			q.mu.Lock()
			if len(q.frames) == 0 && len(q.rest) == 0 {
				q.busy = false
				q.mu.Unlock()
				break
			}
			batch, rest := q.frames, q.rest
			q.frames, q.rest = spare[:0], nil
			q.taken()
			q.mu.Unlock()

			var err error
			if len(rest) > 0 {
				_, err = conn.Write(rest)
			}
			for todo := batch; len(todo) > 0 && err == nil; {
				some := todo[:min(len(todo), batchFrames)]
				todo = todo[len(some):]
				iov = iov[:0]
				bytes := 0
				for i, p := range some {
					size := p.Size()
					bytes += size
					binary.BigEndian.PutUint32(lengths[i][:], uint32(size))
					iov = append(append(iov, lengths[i][:]), p.AsSlices()...)
				}
				b := iov // WriteTo consumes its receiver
				if _, err = b.WriteTo(conn); err == nil {
					q.sentFrames.Add(uint64(len(some)))
					q.sentBytes.Add(uint64(bytes))
				}
			}
			for _, p := range batch {
				p.DecRef()
			}
			clear(batch)
			clear(iov)
			spare = batch
			if err != nil {
				return err
			}
		}
	}
}
