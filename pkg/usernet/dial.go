package usernet

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"github.com/devvm/devvm/pkg/usernet/internal/socket"
	"github.com/devvm/devvm/pkg/vmnet"
)

// Dial opens a connection into the VM, to a port of Guest, GuestLoopback or
// Management; the VM sees the gateway as its peer. The network is "tcp", whose connections have
// CloseWrite, or "udp". While the VM boots Dial waits some seconds for its
// network. Errors: ErrNoGuest at once if there is no VM, ErrNotGuest,
// syscall.ECONNREFUSED if nobody listens, or what ctx says.
func (s *Stack) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := s.dialGuest(ctx, network, address)
	if err != nil {
		return nil, fmt.Errorf("dial %s in the VM: %w", address, err)
	}
	return conn, nil
}

func (s *Stack) dialGuest(ctx context.Context, network, address string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", vmnet.ErrNotGuest, err)
	}
	if to.Addr() != vmnet.Guest && to.Addr() != vmnet.GuestLoopback && to.Addr() != vmnet.Management || to.Port() == 0 {
		return nil, vmnet.ErrNotGuest
	}
	if s.ctx.Err() != nil {
		return nil, vmnet.ErrClosed
	}
	if !s.cable.Plugged() {
		return nil, vmnet.ErrNoGuest
	}
	from := netip.AddrPortFrom(vmnet.Gateway, 0)
	switch network {
	case "tcp":
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		defer context.AfterFunc(s.ctx, func() { cancel(vmnet.ErrClosed) })()
		return orNil(socket.DialTCP(ctx, s.net, from, to))
	case "udp":
		return orNil(socket.DialUDP(s.net, from, to))
	}
	return nil, net.UnknownNetworkError(network)
}

// orNil keeps a nil pointer from becoming a non-nil interface.
func orNil[C net.Conn](c C, err error) (net.Conn, error) {
	if err != nil {
		return nil, err
	}
	return c, nil
}
