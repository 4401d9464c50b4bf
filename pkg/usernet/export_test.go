package usernet

import (
	"context"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// SetHost replaces what the policy sees of the host: whether an address is the
// host's own. It is for a stack that no guest is plugged into yet.
func (s *Stack) SetHost(own func(netip.Addr) bool) {
	s.policy.look = func(_ context.Context, a netip.Addr) (hostView, error) {
		if own(a) {
			return hostView{Route: routeLocal}, nil
		}
		return hostView{}, nil
	}
}

// SetWayOut6 makes the host one that reaches everybody by IPv6, and sends from that address
// there.
func (s *Stack) SetWayOut6(from netip.Addr) {
	s.policy.look = func(context.Context, netip.Addr) (hostView, error) { return hostView{From: from}, nil }
}

// HasRoute6 looks whether the host has a way out by IPv6, as the stack does now and then.
func (s *Stack) HasRoute6(ctx context.Context) bool {
	s.lookRoute(ctx)
	return s.route6.Load()
}

// ParseHosts parses a hosts file.
var ParseHosts = parseHosts

// Relays says how many connections are being carried.
func (s *Stack) Relays() int { return s.relays.len() }

// HearHost makes connections out hear this host, as ordinary sockets do: the control of
// what outside.go is for.
func (s *Stack) HearHost() { s.out.dial = dialSocket }

// WithoutFilters makes connections out as on a kernel that lets nobody filter what a TCP
// socket hears.
func (s *Stack) WithoutFilters() {
	s.out.dial = func(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
		return dialDeaf(ctx, network, to, func(c syscall.RawConn) error {
			if network == "tcp" {
				return unix.EPERM
			}
			return deafen(c)
		})
	}
}

// Forbidden says whether the first rule refuses an address, whatever the host is.
func Forbidden(a netip.Addr) bool { return staticRefusal(a) != allowed }
