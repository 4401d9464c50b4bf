package usernet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/devvm/devvm/pkg/usernet/internal/socket"
	"github.com/devvm/devvm/pkg/vmnet"
)

// The gateway's own services listen nowhere: a listener of the stack's would queue
// connections, each with a buffer that the guest can fill, and a connection that the
// service has closed would live for as long as the guest does not take its last bytes.
// Instead each connection request, and each datagram, is looked at first, and what is
// more than a service carries is refused.

// gateway holds the services, by port.
type gateway struct {
	tcp map[uint16]*streamService
	udp map[uint16]func(from stack.TransportEndpointID, b []byte)
}

// streamService is a TCP service of the gateway's.
type streamService struct {
	slots    chan struct{} // of the connections that exist
	buffer   int64         // of one, in each direction; 0: as relays have it
	reserved bool          // only for those who can send from a port below reservedPorts

	// serve carries a connection to its end. It calls accept at most once; without that
	// the guest is refused. After an error the guest sees a reset.
	serve func(ctx context.Context, accept func() (*socket.TCP, error)) error
}

// reservedPorts are those below: what only root in the VM, and its kernel, can send
// from.
const reservedPorts = 1024

// Connections that a service carries at a time.
const (
	manyDaytime = 16
	manyDNS     = 64
	manyService = 64 // of Config.Services, each; Linux' NFS client makes 1, at most 16
)

// newGateway makes the gateway of a stack whose resolver exists.
func newGateway(s *Stack) *gateway {
	g := &gateway{
		tcp: map[uint16]*streamService{
			daytimePort: {slots: make(chan struct{}, manyDaytime), buffer: minBuffer, serve: serveDaytime},
			dnsPort:     {slots: make(chan struct{}, manyDNS), buffer: dnsBuffer, serve: s.dns.serveStream},
		},
		udp: map[uint16]func(stack.TransportEndpointID, []byte){dhcpServerPort: s.serveDHCP, dnsPort: s.dns.serveDatagram},
	}
	for port, path := range s.cfg.Services {
		g.tcp[port] = &streamService{slots: make(chan struct{}, manyService), reserved: true, serve: s.serveUnix(path)}
	}
	return g
}

// stream is the service that a connection request asks for, or nil.
func (g *gateway) stream(to netip.AddrPort) *streamService {
	if to.Addr() != vmnet.Gateway {
		return nil
	}
	return g.tcp[to.Port()]
}

// datagrams is the service that takes a datagram, or nil. DHCP has none of the addresses
// yet.
func (g *gateway) datagrams(id stack.TransportEndpointID) func(stack.TransportEndpointID, []byte) {
	to := destinationOf(id)
	if to.Addr() != vmnet.Gateway && (to.Addr() != broadcast4 || to.Port() != dhcpServerPort) {
		return nil
	}
	return g.udp[to.Port()]
}

// handleService answers a connection request for a service of the gateway's.
func (o *outbound) handleService(r *tcp.ForwarderRequest, v *streamService) {
	id := r.ID()
	o.syns.take(id)
	to := destinationOf(id)
	if v.reserved && id.RemotePort >= reservedPorts {
		o.s.log.Debug("service refused", "port", to.Port(), "from", id.RemotePort)
		r.Complete(true)
		return
	}
	select {
	case v.slots <- struct{}{}:
		defer func() { <-v.slots }()
	default:
		o.s.policy.count(refuseLimit, "tcp", to)
		r.Complete(true)
		return
	}
	var conn *socket.TCP
	accepted := false
	err := v.serve(o.s.ctx, func() (*socket.TCP, error) {
		accepted = true
		var wq waiter.Queue
		ep, nerr := r.CreateEndpoint(&wq)
		r.Complete(false)
		if nerr != nil {
			return nil, socket.Errno(nerr)
		}
		if v.buffer > 0 {
			setBuffers(ep, v.buffer)
		}
		conn = socket.NewTCP(&wq, ep)
		return conn, nil
	})
	if err != nil {
		o.s.log.Debug("connection to the gateway broke", "port", to.Port(), "error", err)
	}
	switch {
	case !accepted:
		r.Complete(true)
	case conn == nil:
	case err != nil:
		abort(conn)
	default:
		_ = conn.Close()
	}
}

func setBuffers(ep tcpip.Endpoint, size int64) {
	ep.SocketOptions().SetSendBufferSize(size, true)
	ep.SocketOptions().SetReceiveBufferSize(size, true)
}

// finish ends a connection in order: the guest gets what it has not taken yet, and the
// end, until ctx is done.
func finish(ctx context.Context, c *socket.TCP) error {
	gone, hup := waiter.NewChannelEntry(waiter.EventHUp)
	c.Queue.EventRegister(&gone)
	defer c.Queue.EventUnregister(&gone)
	_ = c.CloseWrite() // it may have broken
	for c.Endpoint.Readiness(waiter.EventHUp) == 0 {
		select {
		case <-hup:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// serveUnix joins connections with a unix socket of the host's. When nobody serves it,
// they are refused.
func (s *Stack) serveUnix(path string) func(context.Context, func() (*socket.TCP, error)) error {
	return func(ctx context.Context, accept func() (*socket.TCP, error)) error {
		dialling, cancel := context.WithTimeout(ctx, dialTimeout)
		var d net.Dialer
		outside, err := d.DialContext(dialling, "unix", path)
		cancel()
		if err != nil {
			return err
		}
		conn, err := accept()
		if err != nil {
			abort(outside)
			return err
		}
		return s.relays.join(ctx, conn, outside.(*net.UnixConn), true)
	}
}

// daytimePort is RFC 867's.
const daytimePort = 13

// daytimeLife bounds a connection that asks for the time. A VM under emulation can be
// slow to take it.
const daytimeLife = 20 * time.Second

// daytimeLead is about what the start of date takes under emulation.
const daytimeLead = 30 * time.Millisecond

// serveDaytime tells the guest the host's time: to each TCP connection to the
// gateway's port 13 (RFC 867, which leaves the form open) the seconds since 1970 with
// nine decimals, on a line, and a little ahead: to set a clock takes the guest a moment,
// and one that is behind finds the host's new files made in the future. A VM that goes on from saved memory sets its clock by it
// before anything else happens, with nothing but a shell.
func serveDaytime(ctx context.Context, accept func() (*socket.TCP, error)) error {
	ctx, cancel := context.WithTimeout(ctx, daytimeLife)
	defer cancel()
	conn, err := accept()
	if err != nil {
		return err
	}
	now := time.Now().Add(daytimeLead)
	if _, err := fmt.Fprintf(conn, "%d.%09d\n", now.Unix(), now.Nanosecond()); err != nil {
		return err // it fits into the buffer: no wait for the guest
	}
	return finish(ctx, conn)
}

// answer sends a datagram of a gateway's service to who has asked; to everybody, if
// that is nobody's address.
func (s *Stack) answer(from stack.TransportEndpointID, to netip.AddrPort, b []byte) error {
	route, err := s.net.FindRoute(nic, socket.Address(vmnet.Gateway), socket.Address(to.Addr()), socket.Protocol(vmnet.Gateway), false)
	if err != nil {
		return errors.New(err.String())
	}
	defer route.Release()
	sendDatagram(route, from.LocalPort, to.Port(), b)
	return nil
}

// sourceIn names where a datagram of the guest's comes from.
func sourceIn(id stack.TransportEndpointID) netip.AddrPort {
	return netip.AddrPortFrom(fromNet(id.RemoteAddress), id.RemotePort)
}
