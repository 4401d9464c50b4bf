package link

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const readBuffer = 64 << 10

// ErrBusy is returned by Serve while another connection is served.
var ErrBusy = errors.New("the cable is plugged in already")

// Counters of an endpoint. All count from its creation.
type Counters struct {
	FramesIn, BytesIn   uint64 // received from the peer
	FramesOut, BytesOut uint64 // written to the peer
	Dropped             uint64 // not written: no peer, or one that does not read
}

// Endpoint is one end of the cable, a stack.LinkEndpoint without a link header
// of its own: wrap it in gVisor's ethernet.New. It outlives its connections.
type Endpoint struct {
	mac tcpip.LinkAddress
	mtu atomic.Uint32
	out *outQueue

	mu         sync.Mutex
	dispatcher stack.NetworkDispatcher

	framesIn, bytesIn atomic.Uint64
}

// New returns an unplugged endpoint. mtu counts the bytes of an IP packet.
//
// queue bounds the bytes of the frames that wait for the peer to read. Senders
// block when so many wait, which is the back-pressure that TCP needs here:
// nothing is lost between two programs on one machine. The sender can be the
// goroutine that reads, when the stack answers a frame on the spot; so at one
// end of a cable between two of these endpoints the queue must be larger than
// all that is ever under way. QEMU reads whether or not it can write.
func New(mac tcpip.LinkAddress, mtu uint32, queue int) *Endpoint {
	e := &Endpoint{mac: mac, out: newOutQueue(queue)}
	e.mtu.Store(mtu + header.EthernetMinimumSize)
	return e
}

// Serve carries frames between conn and the stack until conn ends or ctx is
// done, and closes conn; while another is served it returns ErrBusy and leaves
// conn alone. It calls plugged once frames can be sent. accept sees each received frame
// of at least MinFrame bytes before the stack does; the stack gets it only if accept says
// true. accept runs on the reading goroutine and must not keep the slice.
//
// A conn that the peer closed between two frames, or with frames unread, is no
// error.
func (e *Endpoint) Serve(ctx context.Context, conn net.Conn, plugged func(), accept func(frame []byte) bool) error {
	if !e.out.plug(conn) {
		return ErrBusy
	}
	plugged()

	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	written := make(chan struct{})
	go func() {
		defer close(written)
		if e.out.write(ctx, conn) != nil {
			cancel()
		}
	}()
	err := e.readLoop(conn, accept)
	ended := ctx.Err() != nil && !isFramingError(err)
	cancel()
	stop()
	conn.Close()
	<-written

	e.out.unplug()
	if ended || errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
		return nil
	}
	return err
}

func isFramingError(err error) bool {
	var length FrameLengthError
	return errors.As(err, &length)
}

func (e *Endpoint) readLoop(conn net.Conn, accept func([]byte) bool) error {
	r := bufio.NewReaderSize(conn, readBuffer)
	for {
		n, err := readLength(r)
		if err != nil {
			return err
		}
		if n < MinFrame {
			if _, err := r.Discard(n); err != nil {
				return err
			}
			continue
		}
		v := buffer.NewViewSize(n)
		if _, err := io.ReadFull(r, v.AsSlice()); err != nil {
			v.Release()
			return err
		}
		e.framesIn.Add(1)
		e.bytesIn.Add(uint64(n))
		if !accept(v.AsSlice()) {
			v.Release()
			continue
		}
		e.mu.Lock()
		d := e.dispatcher
		e.mu.Unlock()
		if d == nil {
			v.Release()
			continue
		}
		pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(v)})
		d.DeliverNetworkPacket(0, pkt) // the wrapping ethernet endpoint reads the type
		pkt.DecRef()
	}
}

// WriteFrame sends a whole Ethernet frame past the stack. The bytes are copied.
func (e *Endpoint) WriteFrame(frame []byte) {
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(frame)})
	e.out.send(p)
	p.DecRef()
}

// Plugged says whether a connection is being served.
func (e *Endpoint) Plugged() bool {
	e.out.mu.Lock()
	defer e.out.mu.Unlock()
	return e.out.plugged
}

// Counters returns the traffic so far.
func (e *Endpoint) Counters() Counters {
	return Counters{
		FramesIn: e.framesIn.Load(), BytesIn: e.bytesIn.Load(),
		FramesOut: e.out.sentFrames.Load(), BytesOut: e.out.sentBytes.Load(),
		Dropped: e.out.dropped.Load(),
	}
}

// WritePackets implements stack.LinkWriter. It never fails: a cable does not
// tell whether anybody listens.
func (e *Endpoint) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	for _, p := range pkts.AsSlice() {
		e.out.send(p)
	}
	return pkts.Len(), nil
}

// The rest implements stack.NetworkLinkEndpoint.

// MTU implements stack.NetworkLinkEndpoint: with the Ethernet header, which
// the wrapping endpoint subtracts.
func (e *Endpoint) MTU() uint32 { return e.mtu.Load() }

// SetMTU implements stack.NetworkLinkEndpoint.
func (e *Endpoint) SetMTU(mtu uint32) { e.mtu.Store(mtu) }

// MaxHeaderLength implements stack.NetworkLinkEndpoint.
func (e *Endpoint) MaxHeaderLength() uint16 { return 0 }

// LinkAddress implements stack.NetworkLinkEndpoint.
func (e *Endpoint) LinkAddress() tcpip.LinkAddress { return e.mac }

// SetLinkAddress implements stack.NetworkLinkEndpoint; the address is fixed.
func (e *Endpoint) SetLinkAddress(tcpip.LinkAddress) {}

// Capabilities implements stack.NetworkLinkEndpoint. Frames cross no wire, so
// received checksums need no check; the guest checks ours, so we make them.
func (e *Endpoint) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload
}

// Attach implements stack.NetworkLinkEndpoint.
func (e *Endpoint) Attach(d stack.NetworkDispatcher) {
	e.mu.Lock()
	e.dispatcher = d
	e.mu.Unlock()
}

// IsAttached implements stack.NetworkLinkEndpoint.
func (e *Endpoint) IsAttached() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.dispatcher != nil
}

// Wait implements stack.NetworkLinkEndpoint; Serve has goroutines of its own.
func (e *Endpoint) Wait() {}

// ARPHardwareType implements stack.NetworkLinkEndpoint; the wrapping endpoint
// knows it.
func (e *Endpoint) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }

// AddHeader implements stack.NetworkLinkEndpoint.
func (e *Endpoint) AddHeader(*stack.PacketBuffer) {}

// ParseHeader implements stack.NetworkLinkEndpoint.
func (e *Endpoint) ParseHeader(*stack.PacketBuffer) bool { return true }

// Close implements stack.NetworkLinkEndpoint.
func (e *Endpoint) Close() {}

// SetOnCloseAction implements stack.NetworkLinkEndpoint.
func (e *Endpoint) SetOnCloseAction(func()) {}
