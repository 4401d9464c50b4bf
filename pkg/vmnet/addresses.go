// Package vmnet is a VM's network as its users see it: the addresses in it, and a client of the
// process that serves it ([Dialer]), which opens connections into the VM and says what the VM has
// asked for. Package usernet is that process.
package vmnet

import (
	"errors"
	"net"
	"net/netip"
)

// The VM's private network. It is TEST-NET-1 (RFC 5737): documentation owns
// it, so no LAN or VPN of the host has it and none ever clashes with it.
var (
	Network = netip.MustParsePrefix("192.0.2.0/24")
	// Gateway is the VM's router; it serves DNS (port 53), DHCP,
	// the time (port 13) and the files that are shared (usernet.Config.Services), nothing else.
	Gateway = netip.MustParseAddr("192.0.2.1")
	// Guest is the VM's own address.
	Guest = netip.MustParseAddr("192.0.2.2")
	// GuestLoopback stands for 127.0.0.1 of the VM, towards the gateway alone: the
	// VM's own rule (/usr/lib/devvm/loopback in its image) leads there what comes for it.
	// It is on no network card, and nothing that the VM runs can use it.
	GuestLoopback = netip.MustParseAddr("192.0.2.3")
	// Management is the VM's second address. It is on a card of its own in a network
	// namespace of its own (/usr/lib/devvm/setup in the image): sshd listens there and the
	// kernel mounts from there, so that neither takes a port that a container can publish.
	// It talks to the gateway alone, and nothing else in the VM reaches it.
	Management = netip.MustParseAddr("192.0.2.4")
	// HostAlias is what host.docker.internal resolves to. It refuses all but
	// the host's ports that the policy opens.
	HostAlias = netip.MustParseAddr("192.0.2.254")

	// Network6 is where the VM has its addresses of IPv6, while the host has a way out by
	// it: a unique local prefix (RFC 4193), so that programs in the VM prefer IPv4 where a
	// name has both (RFC 6724). The VM chooses. Nothing else is there.
	Network6 = netip.MustParsePrefix("fd64:6576:766d::/64")
	// Gateway6 is the VM's router. It has no services: these are on Gateway.
	Gateway6 = netip.MustParseAddr("fe80::1")
)

// GatewayMAC is the gateway's link address: locally administered, and the same
// in each VM, so that a fork of a saved VM finds the neighbour that it knows.
var GatewayMAC = net.HardwareAddr{0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xdd}

// DefaultMTU is the largest IP packet between the VM and its gateway, in bytes.
const DefaultMTU = 65520

// Errors that callers tell apart with errors.Is. They pass through a [Dialer]
// as they are; a guest that refuses is syscall.ECONNREFUSED.
var (
	// ErrNoGuest says that no VM is plugged in.
	ErrNoGuest = errors.New("no VM is connected to this network")
	// ErrNotGuest says that an address to dial is not the VM's.
	ErrNotGuest = errors.New("not an address of the VM")
	// ErrClosed says that the network was stopped.
	ErrClosed = errors.New("network is stopped")
)
