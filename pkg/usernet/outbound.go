package usernet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

const (
	// dialTimeout is longer than a guest's own patience (Linux: 127 s for all
	// SYNs), so that a destination that says nothing times out there.
	dialTimeout = 135 * time.Second
	// spareFiles are kept for what is not an outbound flow: sockets of the
	// process itself, dial-in, DNS.
	spareFiles = 256
	// firstWindow is what a guest may send before its connection has a share
	// of the buffers.
	firstWindow = 8 << 10
	// manyFlows bounds memory: a flow costs some 30 KB.
	manyFlows = 768
	// manyUDPFlows bounds the UDP flows. The one that has been silent longest
	// makes room for a new one.
	manyUDPFlows = 256
)

// defaultMaxFlows leaves half of the open-file limit to TCP. Go's runtime has
// raised the soft limit to the hard one.
func defaultMaxFlows() int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 256
	}
	return int(max(64, min(manyFlows, (min(limit.Cur, 1<<20)-min(limit.Cur, spareFiles))/2)))
}

// outbound carries the guest's connections to the world outside.
type outbound struct {
	s    *Stack
	dial func(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error)

	tcpSlots chan struct{}
	syns     synQuotes
	udpFlows *udpFlows
	pings    *udpFlows
}

func newOutbound(s *Stack) *outbound {
	o := &outbound{
		s: s, dial: s.cfg.DialOut,
		tcpSlots: make(chan struct{}, s.cfg.MaxFlows),
		udpFlows: newUDPFlows(min(s.cfg.MaxFlows, manyUDPFlows)),
		pings:    newUDPFlows(min(s.cfg.MaxFlows, manyPings)),
	}
	if o.dial == nil {
		o.dial = dialOutside
	}
	// The forwarder's own limit drops requests in silence; ours, half of it,
	// answers them.
	requests := 2 * s.cfg.MaxFlows
	o.syns = synQuotes{limit: requests, start: map[stack.TransportEndpointID][]byte{}}
	forwarder := tcp.NewForwarder(s.net, firstWindow, requests, o.handleTCP)
	s.net.SetTransportProtocolHandler(tcp.ProtocolNumber, func(id stack.TransportEndpointID, p *stack.PacketBuffer) bool {
		o.syns.note(id, p)
		taken := forwarder.HandlePacket(id, p)
		if !taken {
			o.syns.take(id)
		}
		return taken
	})
	s.net.SetTransportProtocolHandler(udp.ProtocolNumber, o.handleUDP)
	return o
}

// dialSocket opens a socket that hears everybody, this host too.
func dialSocket(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	d := newDialer()
	return d.DialContext(ctx, network, to.String())
}

// open makes an outbound connection if policy allows it; the decision says so.
func (o *outbound) open(ctx context.Context, network string, to netip.AddrPort) (net.Conn, decision, error) {
	d := o.s.policy.check(ctx, network, to)
	switch {
	case d.refusal != allowed:
		return nil, d, refusedError(d.refusal)
	case d.host:
		conn, err := dialLoopback(ctx, to.Port())
		return conn, d, err
	}
	conn, err := o.dial(ctx, network, to)
	if errors.Is(err, errTranslated) {
		d.refusal = refuseTranslated
		o.s.policy.count(d.refusal, network, to)
	}
	if err != nil {
		return nil, d, err
	}
	// The host may have got this address between the check and the dial.
	if d.refusal = o.recheck(ctx, network, to, conn); d.refusal != allowed {
		abort(conn)
		return nil, d, refusedError(d.refusal)
	}
	return conn, d, nil
}

// recheck holds the first rule against a connection that exists. What
// devvm.toml says is not its matter: a name's answer may grow old, and when the
// policy changes it cuts by itself.
func (o *outbound) recheck(ctx context.Context, network string, to netip.AddrPort, conn net.Conn) refusal {
	r := refuseHost
	if o.s.cfg.DialOut != nil || !connectedToHost(addrOf(conn.LocalAddr()), addrOf(conn.RemoteAddr()), to.Addr()) {
		r = o.s.policy.firstRule(ctx, to.Addr())
	}
	if r != allowed {
		o.s.policy.count(r, network, to)
	}
	return r
}

// dialLoopback connects to a port of the host: of its IPv6 loopback only if
// nobody listens on the other.
func dialLoopback(ctx context.Context, port uint16) (net.Conn, error) {
	conn, err := dialSocket(ctx, "tcp", netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port))
	if errors.Is(err, syscall.ECONNREFUSED) {
		if conn, err6 := dialSocket(ctx, "tcp", netip.AddrPortFrom(netip.IPv6Loopback(), port)); err6 == nil {
			return conn, nil
		}
	}
	return conn, err
}

// connectedToHost judges a socket by its own addresses, whatever the tables
// say: one that is connected to its own address is connected to its host, and
// one that is connected elsewhere than asked is not trusted.
func connectedToHost(local, remote, asked netip.Addr) bool {
	return !local.IsValid() || !remote.IsValid() || local == remote || remote != asked
}

func addrOf(a net.Addr) netip.Addr {
	switch a := a.(type) {
	case *net.TCPAddr:
		return a.AddrPort().Addr().Unmap()
	case *net.UDPAddr:
		return a.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

func refusedError(r refusal) error { return fmt.Errorf("refused: %s", string(r)) }

// destinationOf names where the guest wants to go.
func destinationOf(id stack.TransportEndpointID) netip.AddrPort {
	return netip.AddrPortFrom(fromNet(id.LocalAddress), id.LocalPort)
}

// isUnreachable says whether an error means "no way there" rather than "nobody at
// that port"; the guest hears of them by ICMP.
func isUnreachable(err error) bool {
	var timeout net.Error
	return errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.ENETUNREACH) ||
		errors.Is(err, syscall.ETIMEDOUT) || errors.As(err, &timeout) && timeout.Timeout()
}
