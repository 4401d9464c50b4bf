package usernet

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/devvm/devvm/pkg/usernet/internal/socket"
	"github.com/devvm/devvm/pkg/vmnet"
)

// The gateway is the VM's router of IPv6 as far as the VM needs one (RFC 4861): it answers who
// looks for it, and advertises [Network6], of which the VM makes its addresses (RFC 4862), and
// a default route, while the host has a way out itself. Without one the VM has no route, so
// that what it tries fails at once and not after a time-out.
//
// The stack has no part in that: it would answer for each address there is. What it needs to
// know, the card behind each of the VM's addresses, is learned from what comes from there.

// outside6 is where the host's default route leads, and no other: nobody has been given it.
var outside6 = netip.MustParseAddr("2000::1")

var allNodes = netip.MustParseAddr("ff02::1")

const (
	// lookEvery is between two looks at the host's way out.
	lookEvery = 5 * time.Second
	// advertiseEvery is between two advertisements if nothing changes, and routeLife how long
	// one holds for the VM.
	advertiseEvery = 10 * time.Minute
	routeLife      = time.Hour
	// manyNeighbours bounds the addresses that the VM can send from at a time. The one that has
	// been silent longest makes room. What comes for it is lost until it sends again: nobody asks
	// the VM where it is.
	manyNeighbours = 16
)

// keepRoute tells the VM when the host gets or loses its way out, until ctx ends.
func (s *Stack) keepRoute(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for last := time.Now(); ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if s.lookRoute(ctx) || time.Since(last) >= advertiseEvery {
			s.advertise()
			last = time.Now()
		}
	}
}

// lookRoute looks whether the VM can reach everybody by IPv6: the host has a default route, and an
// address for it that everybody can answer to, so no unique local one. It tells whether that has
// changed. If the kernel does not answer, what was known holds.
func (s *Stack) lookRoute(ctx context.Context) bool {
	has := false
	if !s.policy.now().Offline {
		host, err := s.policy.look(ctx, outside6)
		if err != nil {
			return false
		}
		has = host.Route == routeUnicast && isGlobal6(host.From)
	}
	return s.route6.Swap(has) != has
}

// isGlobal6 tells whether an address is one of IPv6 that everybody can answer to.
func isGlobal6(a netip.Addr) bool {
	return a.Is6() && a.IsGlobalUnicast() && !a.IsPrivate() && !siteLocal6.Contains(a)
}

// advertise sends a router advertisement to the VM's card alone: the management address has no
// use for IPv6. Before the card is known there is nobody to send one to. One at a time looks and
// sends, so that none of what held before overtakes it.
func (s *Stack) advertise() {
	s.advertising.Lock()
	defer s.advertising.Unlock()
	if mac, ok := s.guestMAC.Load().(tcpip.LinkAddress); ok {
		s.cable.WriteFrame(icmpFrame(tcpip.LinkAddress(vmnet.GatewayMAC), mac, vmnet.Gateway6, allNodes, header.NDPHopLimit, routerAdvert(s.route6.Load())))
	}
}

// routerAdvert makes the message (RFC 4861, 4.2) that there is a default route, or none any
// more. Nothing but the gateway is on the link: the VM has no neighbours to look for.
func routerAdvert(route bool) []byte {
	life := uint32(0)
	if route {
		life = uint32(routeLife / time.Second)
	}
	m := []byte{byte(header.ICMPv6RouterAdvert), 0, 0, 0, defaultHops, 0}
	m = binary.BigEndian.AppendUint16(m, uint16(life))
	m = append(m, make([]byte, 8)...) // times, unspecified
	m = append(m, 1, 1)               // source link-layer address
	m = append(m, vmnet.GatewayMAC...)
	m = append(m, 3, 4, byte(vmnet.Network6.Bits()), 0x40) // prefix information: autonomous, not on-link
	m = binary.BigEndian.AppendUint32(m, life)             // valid
	m = binary.BigEndian.AppendUint32(m, life)             // preferred
	m = append(m, make([]byte, 4)...)
	return append(m, vmnet.Network6.Addr().AsSlice()...)
}

// isDiscovery tells whether a packet is one that the router answers: a solicitation of routers,
// or of the gateway's card, that has crossed no router.
func (p packet) isDiscovery() bool {
	kind, ok := p.icmpType()
	if !ok || !p.dst.Is6() || p.hops != header.NDPHopLimit || p.payload[1] != 0 {
		return false
	}
	switch header.ICMPv6Type(kind) {
	case header.ICMPv6RouterSolicit:
		return true
	case header.ICMPv6NeighborSolicit:
		const target = 8
		return len(p.payload) >= target+header.IPv6AddressSize && netip.AddrFrom16([16]byte(p.payload[target:])) == vmnet.Gateway6
	}
	return false
}

// discover answers such a packet.
func (s *Stack) discover(p packet, mac tcpip.LinkAddress) {
	if header.ICMPv6Type(p.payload[0]) == header.ICMPv6RouterSolicit {
		s.advertise()
		return
	}
	// A router's advertisement (RFC 4861, 4.4), asked for, which replaces what was known. Who has
	// no address yet wants the gateway's, and all are told that it is taken.
	flags, to := byte(0xe0), p.src
	if !isHost(to) {
		flags, to = 0xa0, allNodes
	}
	m := append([]byte{byte(header.ICMPv6NeighborAdvert), 0, 0, 0, flags, 0, 0, 0}, vmnet.Gateway6.AsSlice()...)
	m = append(m, 2, 1) // target link-layer address
	m = append(m, vmnet.GatewayMAC...)
	s.cable.WriteFrame(icmpFrame(tcpip.LinkAddress(vmnet.GatewayMAC), mac, vmnet.Gateway6, to, header.NDPHopLimit, m))
}

// A neighbour is an address of IPv6 of the VM's, and the card that it is on.
type neighbour struct {
	addr netip.Addr
	mac  tcpip.LinkAddress
}

// learn tells the stack where an address is. The goroutine that reads from the VM calls it.
func (s *Stack) learn(a netip.Addr, mac tcpip.LinkAddress) {
	i := slices.IndexFunc(s.neighbours, func(n neighbour) bool { return n.addr == a })
	known := i >= 0 && s.neighbours[i].mac == mac
	switch {
	case i >= 0:
		s.neighbours = slices.Delete(s.neighbours, i, i+1)
	case len(s.neighbours) == manyNeighbours:
		_ = s.net.RemoveNeighbor(nic, socket.Protocol(a), socket.Address(s.neighbours[0].addr))
		s.neighbours = slices.Delete(s.neighbours, 0, 1)
	}
	s.neighbours = append(s.neighbours, neighbour{a, mac})
	if known {
		return
	}
	if err := s.net.AddStaticNeighbor(nic, socket.Protocol(a), socket.Address(a), mac); err != nil {
		s.log.Debug("the VM's address is lost", "address", a, "error", err.String())
	}
}

// subnet turns a network into gVisor's form.
func subnet(p netip.Prefix) tcpip.Subnet {
	s, err := tcpip.NewSubnet(socket.Address(p.Addr()), tcpip.MaskFromBytes(net.CIDRMask(p.Bits(), p.Addr().BitLen())))
	if err != nil {
		panic(err) // a constant
	}
	return s
}
