package usernet

import (
	"container/list"
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/devvm/devvm/pkg/usernet/internal/socket"
)

// recheckEvery is how long a verdict on a UDP flow holds. The socket of a flow
// follows the host's routes as they change, and the host may get the address
// that the flow goes to.
const recheckEvery = time.Second

// answeredFactor is how much longer a flow lives that had an answer.
const answeredFactor = 4

// udpFlow is one pair of addresses that the guest sends from and to.
type udpFlow struct {
	flow
	id             stack.TransportEndpointID
	guest, outside net.Conn
	last           atomic.Int64 // of any datagram, in nanoseconds since the epoch
	answered       atomic.Bool
	once           sync.Once
	place          *list.Element // in udpFlows
}

func (f *udpFlow) close() {
	f.once.Do(func() {
		_ = f.guest.Close()
		_ = f.outside.Close()
	})
}

// udpFlows holds the flows that exist, the one used last in front.
type udpFlows struct {
	mu    *sync.Mutex
	limit int
	order *list.List
}

func newUDPFlows(limit int) udpFlows {
	return udpFlows{mu: new(sync.Mutex), limit: limit, order: list.New()}
}

func (u udpFlows) add(f *udpFlow) {
	u.mu.Lock()
	defer u.mu.Unlock()
	f.place = u.order.PushFront(f)
	for u.order.Len() > u.limit {
		u.order.Remove(u.order.Back()).(*udpFlow).close()
	}
}

func (u udpFlows) touch(f *udpFlow) {
	f.last.Store(time.Now().UnixNano())
	u.mu.Lock()
	u.order.MoveToFront(f.place)
	u.mu.Unlock()
}

func (u udpFlows) remove(f *udpFlow) {
	u.mu.Lock()
	u.order.Remove(f.place)
	u.mu.Unlock()
	f.close()
}

func (u udpFlows) len() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.order.Len()
}

// handleUDP takes the first datagram of a flow, on the goroutine that reads
// from the VM. False makes the stack answer "port unreachable".
func (o *outbound) handleUDP(r *udp.ForwarderRequest) bool {
	to := destinationOf(r.ID())
	if o.s.ctx.Err() != nil {
		return true
	}
	outside, decided, err := o.open(o.s.ctx, "udp", to)
	if err != nil {
		if decided.refusal == allowed {
			o.s.log.Debug("outbound flow failed", "to", to.String(), "error", err)
		}
		return false
	}
	var wq waiter.Queue
	ep, nerr := r.CreateEndpoint(&wq)
	if nerr != nil {
		_ = outside.Close()
		return true
	}
	f := &udpFlow{id: r.ID(), guest: socket.NewUDP(&wq, ep), outside: outside}
	f.last.Store(time.Now().UnixNano())
	f.flow = flow{decided, func() { o.unreachable(f); f.close() }}
	if o.s.policy.enter("udp", &f.flow) != allowed {
		f.close()
		return false
	}
	o.udpFlows.add(f)
	o.s.wg.Go(func() { o.sendUDP(f) })
	o.s.wg.Go(func() { o.receiveUDP(f) })
	return true
}

// sendUDP carries datagrams out of the VM. It ends when the flow is closed.
func (o *outbound) sendUDP(f *udpFlow) {
	defer f.close()
	src := sourceOf(f.guest)
	checked := time.Now()
	for {
		err := src.next(func(b []byte) error {
			if now := time.Now(); now.Sub(checked) >= recheckEvery {
				if r := o.recheck(o.s.ctx, "udp", f.to, f.outside); r != allowed {
					o.unreachable(f)
					return refusedError(r)
				}
				checked = now
			}
			o.udpFlows.touch(f)
			if _, err := f.outside.Write(b); errors.Is(err, net.ErrClosed) {
				return err
			} else if err != nil {
				o.refusedUDP(f, err)
			}
			return nil
		})
		if err != nil {
			return
		}
	}
}

// receiveUDP carries the answers, and closes the flow when it has been idle.
func (o *outbound) receiveUDP(f *udpFlow) {
	defer o.s.policy.leave(&f.flow)
	defer o.udpFlows.remove(f)
	defer context.AfterFunc(o.s.ctx, f.close)()
	src := sourceOf(f.outside)
	for {
		idle := o.s.cfg.UDPIdle
		if f.answered.Load() {
			idle *= answeredFactor
		}
		end := time.Unix(0, f.last.Load()).Add(idle)
		if !time.Now().Before(end) {
			return
		}
		_ = f.outside.SetReadDeadline(end) // a closed flow shows in the read
		err := src.next(func(b []byte) error {
			f.answered.Store(true)
			o.udpFlows.touch(f)
			_, err := f.guest.Write(b)
			if errors.Is(err, net.ErrClosed) {
				return err
			}
			return nil // a datagram may be lost
		})
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
		case errors.Is(err, syscall.ECONNREFUSED), err != nil && isUnreachable(err):
			o.refusedUDP(f, err)
		case err != nil:
			return
		}
	}
}

// refusedUDP passes on that the other side's host or port does not exist.
func (o *outbound) refusedUDP(f *udpFlow, err error) {
	o.s.log.Debug("outbound flow failed", "to", f.to.String(), "error", err)
	if errors.Is(err, syscall.ECONNREFUSED) || isUnreachable(err) {
		o.unreachable(f)
	}
}

// unreachable tells the guest that a flow leads nowhere.
func (o *outbound) unreachable(f *udpFlow) {
	quote := make([]byte, header.IPv4MinimumSize+header.UDPMinimumSize)
	header.IPv4(quote).Encode(&header.IPv4Fields{
		TotalLength: uint16(len(quote)), TTL: 64, Protocol: uint8(header.UDPProtocolNumber),
		SrcAddr: f.id.RemoteAddress, DstAddr: f.id.LocalAddress,
	})
	header.UDP(quote[header.IPv4MinimumSize:]).Encode(&header.UDPFields{
		SrcPort: f.id.RemotePort, DstPort: f.id.LocalPort, Length: header.UDPMinimumSize,
	})
	o.s.sendUnreachable(f.id, header.ICMPv4PortUnreachable, quote)
}
