package usernet

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/devvm/devvm/pkg/usernet/internal/socket"
	"github.com/devvm/devvm/pkg/vmnet"
)

// A datagram of the guest's is sent on by the goroutine that has read its frame, and what
// a socket of the host does not take at once is lost. So nothing queues here, whatever
// the guest sends: the stack's own sockets count the bytes that wait and not the packets.

// recheckEvery is how long a verdict on a UDP flow holds. The socket of a flow
// follows the host's routes as they change, and the host may get the address
// that the flow goes to.
const recheckEvery = time.Second

// answeredFactor is how much longer a flow lives that had an answer.
const answeredFactor = 4

// translatedFor is how long a destination stays refused that the host has answered for:
// each new flow would carry one datagram to a service of the host before it is seen.
const (
	translatedFor  = 30 * time.Second
	manyTranslated = 256
)

// udpFlow is one pair of addresses that the guest sends from and to, or one of its pings (see
// ping.go).
type udpFlow struct {
	flow
	network  string // "udp" or "icmp"
	in       *udpFlows
	id       stack.TransportEndpointID
	outside  net.Conn
	raw      syscall.RawConn // of outside
	checked  time.Time       // by the reading goroutine alone
	last     atomic.Int64    // of any datagram, in nanoseconds since the epoch
	answered atomic.Bool
	once     sync.Once
	place    *list.Element // in udpFlows
}

func (f *udpFlow) close() {
	f.once.Do(func() { _ = f.outside.Close() })
}

// udpFlows holds the flows that exist, the one used last in front.
type udpFlows struct {
	limit int
	slots chan struct{} // of flows and of those that are ending

	mu         sync.Mutex
	order      *list.List
	byID       map[stack.TransportEndpointID]*udpFlow
	translated map[stack.TransportEndpointID]time.Time // destinations that lead to the host, and until when that holds
}

func newUDPFlows(limit int) *udpFlows {
	return &udpFlows{
		limit: limit, slots: make(chan struct{}, limit+max(1, limit/8)), order: list.New(),
		byID:       map[stack.TransportEndpointID]*udpFlow{},
		translated: map[stack.TransportEndpointID]time.Time{},
	}
}

func (u *udpFlows) find(id stack.TransportEndpointID) *udpFlow {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.byID[id]
}

func (u *udpFlows) add(f *udpFlow) {
	u.mu.Lock()
	defer u.mu.Unlock()
	f.place = u.order.PushFront(f)
	u.byID[f.id] = f
	for u.order.Len() > u.limit {
		oldest := u.order.Back().Value.(*udpFlow)
		u.forget(oldest)
		oldest.close()
	}
}

// forget drops a flow. The caller has the lock.
func (u *udpFlows) forget(f *udpFlow) {
	u.order.Remove(f.place)
	if u.byID[f.id] == f {
		delete(u.byID, f.id)
	}
}

func (u *udpFlows) touch(f *udpFlow) {
	f.last.Store(time.Now().UnixNano())
	u.mu.Lock()
	u.order.MoveToFront(f.place)
	u.mu.Unlock()
}

func (u *udpFlows) remove(f *udpFlow) {
	u.mu.Lock()
	u.forget(f)
	u.mu.Unlock()
	f.close()
}

// abort ends all flows, and says how many that are.
func (u *udpFlows) abort() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	n := u.order.Len()
	for _, f := range u.byID {
		f.close()
	}
	return n
}

func (u *udpFlows) len() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.order.Len()
}

// leadsToHost notes that the host itself answers for where a flow goes.
func (u *udpFlows) leadsToHost(id stack.TransportEndpointID, now time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.translated) >= manyTranslated {
		clear(u.translated)
	}
	u.translated[destinationKey(id)] = now.Add(translatedFor)
}

// ledToHost tells whether that was noted.
func (u *udpFlows) ledToHost(id stack.TransportEndpointID, now time.Time) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	until, noted := u.translated[destinationKey(id)]
	return noted && now.Before(until)
}

func destinationKey(id stack.TransportEndpointID) stack.TransportEndpointID {
	return stack.TransportEndpointID{LocalAddress: id.LocalAddress, LocalPort: id.LocalPort}
}

// handleUDP takes a datagram of the guest's, on the goroutine that reads from the VM.
// False makes the stack answer "port unreachable".
func (o *outbound) handleUDP(id stack.TransportEndpointID, p *stack.PacketBuffer) bool {
	if o.s.ctx.Err() != nil {
		return true
	}
	h := header.UDP(p.TransportHeader().Slice())
	if int(h.Length()) < header.UDPMinimumSize || int(h.Length()) > header.UDPMinimumSize+p.Data().Size() {
		return true
	}
	var payload []byte
	if p.Data().Size() > 0 { // there is no view of nothing
		view := p.Data().AsRange().ToView()
		defer view.Release()
		payload = view.AsSlice()[:h.Length()-header.UDPMinimumSize]
	}
	if serve := o.s.gateway.datagrams(id); serve != nil {
		serve(id, payload)
		return true
	}
	f := o.udpFlows.find(id)
	if f == nil {
		var err error
		if f, err = o.openUDP(o.udpFlows, "udp", id); err != nil {
			return false
		}
	}
	o.sendUDP(f, payload)
	return true
}

// openUDP begins a flow, unless it must not be.
func (o *outbound) openUDP(in *udpFlows, network string, id stack.TransportEndpointID) (*udpFlow, error) {
	to := destinationOf(id)
	if in.ledToHost(id, time.Now()) {
		o.s.policy.count(refuseTranslated, network, to)
		return nil, refusedError(refuseTranslated)
	}
	select { // those that make room end at once, unless the guest takes no frames
	case in.slots <- struct{}{}:
	case <-o.s.ctx.Done():
		return nil, vmnet.ErrClosed
	}
	if !o.s.begin() {
		<-in.slots
		return nil, vmnet.ErrClosed
	}
	f, err := o.makeUDP(in, network, id)
	if err != nil {
		o.s.wg.Done()
		<-in.slots
		o.s.log.Debug("outbound flow failed", "network", network, "to", to.String(), "error", err)
		return nil, err
	}
	in.add(f)
	go func() {
		defer o.s.wg.Done()
		defer func() { <-in.slots }()
		o.receiveUDP(f)
	}()
	return f, nil
}

func (o *outbound) makeUDP(in *udpFlows, network string, id stack.TransportEndpointID) (*udpFlow, error) {
	outside, decided, err := o.open(o.s.ctx, network, destinationOf(id))
	if err != nil {
		return nil, err
	}
	f := &udpFlow{network: network, in: in, id: id, outside: outside, checked: time.Now()}
	f.last.Store(f.checked.UnixNano())
	c, ok := outside.(syscall.Conn)
	if !ok {
		f.close()
		return nil, fmt.Errorf("a %T is not a socket", outside)
	}
	if f.raw, err = c.SyscallConn(); err != nil {
		f.close()
		return nil, err
	}
	f.flow = flow{decided, func() { o.unreachable(f); f.close() }}
	if r := o.s.policy.enter(network, &f.flow); r != allowed {
		f.close()
		return nil, refusedError(r)
	}
	return f, nil
}

// sendUDP sends a datagram out of the VM.
func (o *outbound) sendUDP(f *udpFlow, b []byte) {
	if now := time.Now(); now.Sub(f.checked) >= recheckEvery {
		if o.recheck(o.s.ctx, f.network, f.to, f.outside) != allowed {
			o.unreachable(f)
			f.close()
			return
		}
		f.checked = now
	}
	f.in.touch(f)
	var err error
	wait := f.raw.Write(func(fd uintptr) bool {
		for {
			if _, err = unix.Write(int(fd), b); !errors.Is(err, unix.EINTR) {
				return true // what does not go at once is lost
			}
		}
	})
	if wait == nil && err != nil && !errors.Is(err, unix.EAGAIN) {
		o.refusedUDP(f, err)
	}
}

// cutTranslated ends a flow for which the host has answered. The receiving goroutine
// calls it, which knows that there was no other answer.
func (o *outbound) cutTranslated(f *udpFlow) bool {
	if f.answered.Load() || f.host || o.s.cfg.DialOut != nil || !heardHost(f.raw, false) {
		return false
	}
	f.in.leadsToHost(f.id, time.Now())
	o.s.policy.count(refuseTranslated, f.network, f.to)
	o.unreachable(f)
	f.close()
	return true
}

// receiveUDP carries the answers, and closes the flow when it has been idle.
func (o *outbound) receiveUDP(f *udpFlow) {
	defer o.s.policy.leave(&f.flow)
	defer f.in.remove(f)
	defer context.AfterFunc(o.s.ctx, f.close)()
	route, nerr := o.s.net.FindRoute(nic, f.id.LocalAddress, f.id.RemoteAddress, socket.Protocol(f.to.Addr()), false)
	if nerr != nil {
		o.s.log.Debug("no route for answers", "to", f.to.String(), "error", nerr.String())
		return
	}
	defer route.Release()
	src := sourceOf(f.outside)
	for look := firstLook; ; {
		now := time.Now()
		idle := o.s.cfg.UDPIdle
		if f.answered.Load() {
			idle *= answeredFactor
		}
		end := time.Unix(0, f.last.Load()).Add(idle)
		if !now.Before(end) {
			return
		}
		if !f.answered.Load() { // an answer of the host's wakes nobody
			if o.cutTranslated(f) {
				return
			}
			if next := now.Add(look); next.Before(end) {
				end = next
			}
			look = min(2*look, lastLook)
		}
		_ = f.outside.SetReadDeadline(end) // a closed flow shows in the read
		err := src.next(func(b []byte) error {
			f.answered.Store(true)
			f.in.touch(f)
			if f.network == pingNetwork {
				sendEcho(route, f.id, b)
			} else {
				sendDatagram(route, f.id.LocalPort, f.id.RemotePort, b)
			}
			return nil // it may be lost
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

// sendDatagram sends the guest a datagram.
func sendDatagram(route *stack.Route, from, to uint16, b []byte) {
	if len(b) > vmnet.MaxDatagram {
		return
	}
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: header.UDPMinimumSize + int(route.MaxHeaderLength()),
		Payload:            buffer.MakeWithData(b),
	})
	defer p.DecRef()
	h := header.UDP(p.TransportHeader().Push(header.UDPMinimumSize))
	p.TransportProtocolNumber = header.UDPProtocolNumber
	h.Encode(&header.UDPFields{SrcPort: from, DstPort: to, Length: uint16(p.Size())})
	sum := route.PseudoHeaderChecksum(header.UDPProtocolNumber, h.Length())
	sum = h.CalculateChecksum(checksum.Combine(sum, p.Data().Checksum()))
	if sum != math.MaxUint16 { // RFC 768: zero would mean that there is none
		sum = ^sum
	}
	h.SetChecksum(sum)
	_ = route.WritePacket(stack.NetworkHeaderParams{
		Protocol: header.UDPProtocolNumber, TTL: route.DefaultTTL(), TOS: stack.DefaultTOS,
	}, p)
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
	if f.network == pingNetwork {
		o.s.sendUnreachable(f.id, noHost, quoteEcho(f.id))
		return
	}
	datagram := header.UDP(make([]byte, header.UDPMinimumSize))
	datagram.Encode(&header.UDPFields{SrcPort: f.id.RemotePort, DstPort: f.id.LocalPort, Length: header.UDPMinimumSize})
	quote := ipHeader(header.UDPProtocolNumber, fromNet(f.id.RemoteAddress), f.to.Addr(), defaultHops, len(datagram))
	o.s.sendUnreachable(f.id, noPort, append(quote, datagram...))
}
