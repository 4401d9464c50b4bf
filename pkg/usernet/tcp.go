package usernet

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/devvm/devvm/pkg/usernet/internal/socket"
)

// handleTCP answers one connection request of the guest, on a goroutine of its
// own: the world outside is dialled first, and only if it answers does the
// guest's handshake complete.
func (o *outbound) handleTCP(r *tcp.ForwarderRequest) {
	id := r.ID()
	to := destinationOf(id)
	if !o.s.begin() {
		r.Complete(true)
		return
	}
	defer o.s.wg.Done()
	if v := o.s.gateway.stream(to); v != nil {
		o.handleService(r, v)
		return
	}
	select {
	case o.tcpSlots <- struct{}{}:
		defer func() { <-o.tcpSlots }()
	default:
		o.s.policy.count(refuseLimit, "tcp", to)
		o.syns.take(id)
		r.Complete(true)
		return
	}

	ctx, cancel := context.WithTimeout(o.s.ctx, dialTimeout)
	outside, decided, err := o.open(ctx, "tcp", to)
	cancel()
	syn := o.syns.take(id)
	stream, ok := outside.(streamConn)
	if err == nil && !ok {
		err = fmt.Errorf("a %T is not a stream socket", outside)
	}
	if err != nil {
		if decided.refusal == allowed {
			o.s.log.Debug("outbound connection failed", "to", to.String(), "error", err)
		}
		if silent := isUnreachable(err) && syn != nil; silent {
			r.Complete(false)
			o.s.sendUnreachable(id, noHost, syn)
		} else {
			r.Complete(true)
		}
		return
	}
	ctx, cut := context.WithCancelCause(o.s.ctx)
	defer cut(nil)
	f := &flow{decided, func() { cut(errCut) }}
	if o.s.policy.enter("tcp", f) != allowed {
		r.Complete(true)
		abort(outside)
		return
	}
	defer o.s.policy.leave(f)
	var wq waiter.Queue
	ep, nerr := r.CreateEndpoint(&wq)
	r.Complete(false)
	if nerr != nil {
		abort(outside)
		return
	}
	if err := o.s.relays.join(ctx, socket.NewTCP(&wq, ep), stream, true); err != nil {
		o.s.log.Debug("outbound connection broke", "to", to.String(), "error", err)
	}
}

// errCut says that a connection is not allowed any more.
var errCut = errors.New("cut: " + string(refuseEgress))

// synQuotes keeps the start of each connection request under way, which an
// ICMP error about it must quote: the guest checks TCP's sequence number.
type synQuotes struct {
	mu    sync.Mutex
	limit int
	start map[stack.TransportEndpointID][]byte
}

// note keeps the start of a packet if it is a connection request.
func (q *synQuotes) note(id stack.TransportEndpointID, p *stack.PacketBuffer) {
	segment := header.TCP(p.TransportHeader().Slice())
	if len(segment) < header.TCPMinimumSize || segment.Flags()&(header.TCPFlagSyn|header.TCPFlagAck) != header.TCPFlagSyn {
		return
	}
	quote := append(append([]byte(nil), p.NetworkHeader().Slice()...), segment[:quotedBytes]...)
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.start) < q.limit {
		q.start[id] = quote
	}
}

// take returns what was noted, or nil, and forgets it.
func (q *synQuotes) take(id stack.TransportEndpointID) []byte {
	q.mu.Lock()
	defer q.mu.Unlock()
	quote := q.start[id]
	delete(q.start, id)
	return quote
}
