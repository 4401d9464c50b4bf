// Package socket opens sockets of a gVisor netstack in the shapes of package
// net, with what gonet hides: the end of a connection by RST, the endpoint
// below it, and errors that compare with syscall.Errno.
//
// Only pkg/usernet and below may import it.
package socket

import (
	"context"
	"errors"
	"net/netip"
	"syscall"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// NIC is the number of the one network card that the stacks here have.
const NIC = tcpip.NICID(1)

// TCP is a TCP connection of a netstack. It has CloseRead and CloseWrite.
type TCP struct {
	*gonet.TCPConn
	Endpoint tcpip.Endpoint
	Queue    *waiter.Queue
}

// NewTCP wraps a connected endpoint.
func NewTCP(wq *waiter.Queue, ep tcpip.Endpoint) *TCP {
	return &TCP{gonet.NewTCPConn(wq, ep), ep, wq}
}

// Abort ends the connection with a RST.
func (c *TCP) Abort() { c.Endpoint.Abort() }

// UDP is a connected UDP socket of a netstack.
type UDP struct {
	*gonet.UDPConn
	Endpoint tcpip.Endpoint
	Queue    *waiter.Queue
}

// NewUDP wraps a connected endpoint.
func NewUDP(wq *waiter.Queue, ep tcpip.Endpoint) *UDP {
	return &UDP{gonet.NewUDPConn(wq, ep), ep, wq}
}

// DialTCP connects from an address, and a port unless it is 0, to another. If
// ctx ends meanwhile it returns its cause.
func DialTCP(ctx context.Context, s *stack.Stack, from, to netip.AddrPort) (*TCP, error) {
	var wq waiter.Queue
	ep, err := s.NewEndpoint(tcp.ProtocolNumber, Protocol(to.Addr()), &wq)
	if err != nil {
		return nil, Errno(err)
	}
	entry, done := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventErr | waiter.EventHUp)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	if err := ep.Bind(Full(from)); err != nil {
		ep.Close()
		return nil, Errno(err)
	}
	err = ep.Connect(Full(to))
	if _, started := err.(*tcpip.ErrConnectStarted); !started {
		ep.Close()
		return nil, Errno(err)
	}
	select {
	case <-done:
	case <-ctx.Done():
		ep.Abort()
		return nil, context.Cause(ctx)
	}
	if err := ep.LastError(); err != nil {
		ep.Close()
		return nil, Errno(err)
	}
	return NewTCP(&wq, ep), nil
}

// DialUDP connects a socket.
func DialUDP(s *stack.Stack, from, to netip.AddrPort) (*UDP, error) {
	var wq waiter.Queue
	ep, err := s.NewEndpoint(udp.ProtocolNumber, Protocol(to.Addr()), &wq)
	if err != nil {
		return nil, Errno(err)
	}
	if err = ep.Bind(Full(from)); err == nil {
		err = ep.Connect(Full(to))
	}
	if err != nil {
		ep.Close()
		return nil, Errno(err)
	}
	return NewUDP(&wq, ep), nil
}

// backlog is how many connections wait to be accepted; gonet's own ListenTCP
// has 10.
const backlog = 1024

// ListenTCP accepts connections.
func ListenTCP(s *stack.Stack, at netip.AddrPort) (*gonet.TCPListener, error) {
	var wq waiter.Queue
	ep, err := s.NewEndpoint(tcp.ProtocolNumber, Protocol(at.Addr()), &wq)
	if err != nil {
		return nil, Errno(err)
	}
	if err = ep.Bind(Full(at)); err == nil {
		err = ep.Listen(backlog)
	}
	if err != nil {
		ep.Close()
		return nil, Errno(err)
	}
	return gonet.NewTCPListener(s, &wq, ep), nil
}

// ListenUDP receives datagrams.
func ListenUDP(s *stack.Stack, at netip.AddrPort) (*gonet.UDPConn, error) {
	var wq waiter.Queue
	ep, err := s.NewEndpoint(udp.ProtocolNumber, Protocol(at.Addr()), &wq)
	if err != nil {
		return nil, Errno(err)
	}
	ep.SocketOptions().SetBroadcast(true)
	if err := ep.Bind(Full(at)); err != nil {
		ep.Close()
		return nil, Errno(err)
	}
	return gonet.NewUDPConn(&wq, ep), nil
}

// Full turns an address and port into gVisor's form. An invalid address
// means any.
func Full(a netip.AddrPort) tcpip.FullAddress {
	full := tcpip.FullAddress{NIC: NIC, Port: a.Port()}
	if a.Addr().IsValid() {
		full.Addr = Address(a.Addr())
	}
	return full
}

// Address turns an address into gVisor's form.
func Address(a netip.Addr) tcpip.Address { return tcpip.AddrFromSlice(a.AsSlice()) }

// Protocol is the version of IP of an address; an invalid one is of IPv4.
func Protocol(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is6() {
		return ipv6.ProtocolNumber
	}
	return ipv4.ProtocolNumber
}

// Errno names an error of the stack as the kernel would.
func Errno(err tcpip.Error) error {
	switch err.(type) {
	case nil:
		return nil
	case *tcpip.ErrConnectionRefused:
		return syscall.ECONNREFUSED
	case *tcpip.ErrConnectionReset, *tcpip.ErrConnectionAborted, *tcpip.ErrAborted:
		return syscall.ECONNRESET
	case *tcpip.ErrHostUnreachable, *tcpip.ErrHostDown:
		return syscall.EHOSTUNREACH
	case *tcpip.ErrNetworkUnreachable:
		return syscall.ENETUNREACH
	case *tcpip.ErrTimeout:
		return syscall.ETIMEDOUT
	case *tcpip.ErrMessageTooLong:
		return syscall.EMSGSIZE
	case *tcpip.ErrNoPortAvailable:
		return syscall.EADDRNOTAVAIL
	case *tcpip.ErrPortInUse:
		return syscall.EADDRINUSE
	}
	return errors.New(err.String())
}
