// Package usernettest is a guest for tests: a TCP/IP stack in Go behind a
// network card that speaks the framing of QEMU's "stream" netdev, so that
// pkg/usernet and what is built on it can be tested without a VM. A fake VM
// uses it as its network card.
//
// It may import gVisor and usernet's cable, and nothing else of devvm but
// usernet's addresses.
package usernettest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/link/ethernet"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"github.com/devvm/devvm/pkg/usernet/internal/link"
	"github.com/devvm/devvm/pkg/usernet/internal/socket"
	"github.com/devvm/devvm/pkg/vmnet"
)

const nic = socket.NIC

// queueBytes is more than all connections of a test have under way: like QEMU,
// the guest reads whether or not it can write.
const queueBytes = 1 << 30

// MAC is the guest's link address unless Options say otherwise: QEMU's prefix.
var MAC = net.HardwareAddr{0x52, 0x54, 0x00, 0x12, 0x34, 0x56}

// Options of a Guest. The zero value is the VM that devvm makes.
type Options struct {
	Addr netip.Addr       // invalid: usernet.Guest
	MAC  net.HardwareAddr // nil: MAC
	MTU  int              // 0: usernet.DefaultMTU
	// Frames, if any, sees a copy of each frame that arrives, before the
	// guest's stack does.
	Frames func(frame []byte)
}

// Guest is a small machine with one network card. Its methods are safe for
// concurrent use.
type Guest struct {
	mac   net.HardwareAddr
	addr  netip.Addr
	net   *stack.Stack
	cable *link.Endpoint

	cancel context.CancelFunc
	done   chan struct{}
	err    error
	close  sync.Once
}

// NewGuest plugs a guest into conn, the connection to a usernet.Stack or to
// the NetSocket of usernet.Run, and closes conn in the end.
func NewGuest(conn net.Conn, o Options) (*Guest, error) {
	if !o.Addr.IsValid() {
		o.Addr = vmnet.Guest
	}
	if o.MAC == nil {
		o.MAC = MAC
	}
	if o.MTU == 0 {
		o.MTU = vmnet.DefaultMTU
	}
	g := &Guest{mac: o.MAC, addr: o.Addr, done: make(chan struct{})}
	g.cable = link.New(tcpip.LinkAddress(o.MAC), uint32(o.MTU), queueBytes)
	g.net = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})
	if err := g.setUp(); err != nil {
		return nil, fmt.Errorf("make guest: %w", err)
	}
	var ctx context.Context
	ctx, g.cancel = context.WithCancel(context.Background())
	plugged := make(chan struct{})
	go func() {
		defer close(g.done)
		g.err = g.cable.Serve(ctx, conn, func() { close(plugged) }, func(frame []byte) bool {
			if o.Frames != nil {
				o.Frames(append([]byte(nil), frame...))
			}
			return true
		})
	}()
	<-plugged
	return g, nil
}

func (g *Guest) setUp() error {
	if err := g.net.CreateNIC(nic, ethernet.New(g.cable)); err != nil {
		return errors.New(err.String())
	}
	if err := g.AddAddress(g.addr, vmnet.Network.Bits()); err != nil {
		return err
	}
	// Like root in a VM, it may send from any address that it names.
	if err := g.net.SetSpoofing(nic, true); err != nil {
		return errors.New(err.String())
	}
	subnet, err := tcpip.NewSubnet(socket.Address(vmnet.Network.Addr()),
		tcpip.MaskFromBytes(net.CIDRMask(vmnet.Network.Bits(), 32)))
	if err != nil {
		return err
	}
	all, err := tcpip.NewSubnet(tcpip.AddrFrom4([4]byte{}), tcpip.MaskFromBytes(make([]byte, 4)))
	if err != nil {
		return err
	}
	g.net.SetRouteTable([]tcpip.Route{
		{Destination: subnet, NIC: nic},
		{Destination: all, Gateway: socket.Address(vmnet.Gateway), NIC: nic},
	})
	sack := tcpip.TCPSACKEnabled(true)
	if err := g.net.SetTransportProtocolOption(tcp.ProtocolNumber, &sack); err != nil {
		return errors.New(err.String())
	}
	return nil
}

// AddAddress gives the card one more address, with a prefix of so many bits.
func (g *Guest) AddAddress(a netip.Addr, bits int) error {
	err := g.net.AddProtocolAddress(nic, tcpip.ProtocolAddress{
		Protocol:          ipv4.ProtocolNumber,
		AddressWithPrefix: tcpip.AddressWithPrefix{Address: socket.Address(a), PrefixLen: bits},
	}, stack.AddressProperties{})
	if err != nil {
		return fmt.Errorf("add address %s: %s", a, err)
	}
	return nil
}

// MAC returns the guest's link address.
func (g *Guest) MAC() net.HardwareAddr { return g.mac }

// Listen accepts TCP connections on a port of the guest; 0 chooses one. The
// connections have CloseWrite.
func (g *Guest) Listen(port int) (net.Listener, error) { return g.ListenOn(g.addr, port) }

// ListenOn is Listen on one of the addresses that AddAddress gave it.
func (g *Guest) ListenOn(a netip.Addr, port int) (net.Listener, error) {
	l, err := socket.ListenTCP(g.net, netip.AddrPortFrom(a, uint16(port)))
	if err != nil {
		return nil, fmt.Errorf("listen on %s port %d of the guest: %w", a, port, err)
	}
	return l, nil
}

// ListenPacket receives UDP datagrams on a port of the guest, broadcasts too.
func (g *Guest) ListenPacket(port int) (net.PacketConn, error) {
	c, err := socket.ListenUDP(g.net, netip.AddrPortFrom(netip.Addr{}, uint16(port)))
	if err != nil {
		return nil, fmt.Errorf("listen on UDP port %d of the guest: %w", port, err)
	}
	return c, nil
}

// Dial connects from the guest to an address and port, by "tcp" or "udp".
// Errors compare with syscall.Errno.
func (g *Guest) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return g.DialFrom(ctx, network, netip.AddrPort{}, address)
}

// DialFrom is Dial from an address of the caller's choice, be it the guest's
// or not; the zero AddrPort leaves the choice to the stack.
func (g *Guest) DialFrom(ctx context.Context, network string, from netip.AddrPort, address string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, fmt.Errorf("dial from the guest: %w", err)
	}
	if !from.IsValid() {
		from = netip.AddrPortFrom(g.addr, 0)
	}
	var c net.Conn
	switch network {
	case "tcp":
		c, err = socket.DialTCP(ctx, g.net, from, to)
	case "udp":
		c, err = socket.DialUDP(g.net, from, to)
	default:
		err = net.UnknownNetworkError(network)
	}
	if err != nil {
		return nil, fmt.Errorf("dial %s from the guest: %w", address, err)
	}
	return c, nil
}

// WriteFrame sends an Ethernet frame as it is, whatever it holds.
func (g *Guest) WriteFrame(frame []byte) { g.cable.WriteFrame(frame) }

// Done is closed when the connection has ended.
func (g *Guest) Done() <-chan struct{} { return g.done }

// Close pulls the plug and waits until the connection has ended.
func (g *Guest) Close() error {
	g.close.Do(func() {
		g.cancel()
		<-g.done
		g.net.Destroy()
	})
	return g.err
}

// Address joins an address of the private network and a port.
func Address(a netip.Addr, port int) string {
	return net.JoinHostPort(a.String(), strconv.Itoa(port))
}

// Abort ends a TCP connection of a Guest with a RST.
func Abort(c net.Conn) {
	if t, ok := c.(*socket.TCP); ok {
		t.Abort()
	}
	_ = c.Close()
}
