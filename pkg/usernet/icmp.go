package usernet

import (
	"net/netip"
	"slices"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/devvm/devvm/pkg/usernet/internal/socket"
	"github.com/devvm/devvm/pkg/vmnet"
)

// quotedBytes is how much of a packet behind its IP header an ICMP error
// quotes: enough for the ports and TCP's sequence number.
const quotedBytes = 8

// A reason is a code of "destination unreachable" in both versions of ICMP.
type reason struct {
	v4 header.ICMPv4Code
	v6 header.ICMPv6Code
}

var (
	prohibited = reason{header.ICMPv4AdminProhibited, header.ICMPv6Prohibited}
	noHost     = reason{header.ICMPv4HostUnreachable, header.ICMPv6AddressUnreachable}
	noPort     = reason{header.ICMPv4PortUnreachable, header.ICMPv6PortUnreachable}
)

// answerError answers a frame with an ICMP error, if it is one that gets any.
func (s *Stack) answerError(frame []byte, code reason) {
	if answer := icmpError(frame, code); answer != nil {
		s.cable.WriteFrame(answer)
	}
}

// icmpError makes the frame that answers a frame with "destination
// unreachable", in the name of its destination. It returns nil for packets
// that get no such answer (RFC 1122, 3.2.2; RFC 4443, 2.4): fragments but the first, ICMP
// errors, and those from or to no single host.
func icmpError(frame []byte, code reason) []byte {
	eth := header.Ethernet(frame)
	p, ok := parsePacket(frame)
	if !ok || p.later || !isHost(p.src) || p.dst.IsMulticast() || header.IsMulticastEthernetAddress(eth.SourceAddress()) {
		return nil
	}
	if p.protocolName() == pingNetwork {
		if kind, ok := p.icmpType(); !ok || kind != echoRequest(p.dst) {
			return nil
		}
	}
	quote := slices.Concat(p.head, p.payload[:min(len(p.payload), quotedBytes)])
	return unreachable(eth.DestinationAddress(), eth.SourceAddress(), p.dst, p.src, code, quote)
}

// isHost tells whether an address can be that of one host on a network.
func isHost(a netip.Addr) bool {
	return !a.IsUnspecified() && !a.IsMulticast() && !a.IsLoopback() && !a.Is4In6() && a != broadcast4
}

// sendUnreachable sends the guest an ICMP "destination unreachable" about one
// of its flows, in the name of where that went.
func (s *Stack) sendUnreachable(id stack.TransportEndpointID, code reason, quote []byte) {
	if mac, ok := s.guestMAC.Load().(tcpip.LinkAddress); ok {
		s.cable.WriteFrame(unreachable(tcpip.LinkAddress(vmnet.GatewayMAC), mac, fromNet(id.LocalAddress), fromNet(id.RemoteAddress), code, quote))
	}
}

// unreachable makes the frame of an ICMP "destination unreachable" that quotes
// the start of a packet.
func unreachable(fromMAC, toMAC tcpip.LinkAddress, from, to netip.Addr, code reason, quote []byte) []byte {
	if header.IsMulticastEthernetAddress(fromMAC) {
		fromMAC = tcpip.LinkAddress(vmnet.GatewayMAC)
	}
	message := make([]byte, header.ICMPv4MinimumSize, header.ICMPv4MinimumSize+len(quote))
	message[0], message[1] = byte(header.ICMPv4DstUnreachable), byte(code.v4)
	if to.Is6() {
		message[0], message[1] = byte(header.ICMPv6DstUnreachable), byte(code.v6)
	}
	return icmpFrame(fromMAC, toMAC, from, to, defaultHops, append(message, quote...))
}

// defaultHops is how far a packet goes of which nothing else is asked.
const defaultHops = 64

// icmpFrame makes the frame of an ICMP message of either version, with its checksum.
func icmpFrame(fromMAC, toMAC tcpip.LinkAddress, from, to netip.Addr, hops uint8, message []byte) []byte {
	frame := make([]byte, header.EthernetMinimumSize)
	header.Ethernet(frame).Encode(&header.EthernetFields{SrcAddr: fromMAC, DstAddr: toMAC, Type: socket.Protocol(to)})
	setICMPChecksum(message, from, to)
	return slices.Concat(frame, ipHeader(icmpProtocol(to), from, to, hops, len(message)), message)
}

// icmpProtocol is the number of ICMP in the version of an address.
func icmpProtocol(a netip.Addr) tcpip.TransportProtocolNumber {
	if a.Is6() {
		return header.ICMPv6ProtocolNumber
	}
	return header.ICMPv4ProtocolNumber
}

// setICMPChecksum puts the checksum of a whole ICMP message into it.
func setICMPChecksum(message []byte, from, to netip.Addr) {
	if to.Is6() {
		icmp := header.ICMPv6(message)
		icmp.SetChecksum(header.ICMPv6Checksum(header.ICMPv6ChecksumParams{Header: icmp, Src: socket.Address(from), Dst: socket.Address(to)}))
		return
	}
	icmp := header.ICMPv4(message)
	icmp.SetChecksum(0)
	icmp.SetChecksum(^checksum.Checksum(icmp, 0))
}

// ipHeader makes the header of a packet of either version.
func ipHeader(proto tcpip.TransportProtocolNumber, from, to netip.Addr, hops uint8, payload int) []byte {
	if to.Is6() {
		ip := header.IPv6(make([]byte, header.IPv6MinimumSize))
		ip.Encode(&header.IPv6Fields{
			PayloadLength: uint16(payload), TransportProtocol: proto, HopLimit: hops,
			SrcAddr: socket.Address(from), DstAddr: socket.Address(to),
		})
		return ip
	}
	ip := header.IPv4(make([]byte, header.IPv4MinimumSize))
	ip.Encode(&header.IPv4Fields{
		TotalLength: uint16(header.IPv4MinimumSize + payload), TTL: hops, Protocol: uint8(proto),
		SrcAddr: socket.Address(from), DstAddr: socket.Address(to),
	})
	ip.SetChecksum(^ip.CalculateChecksum())
	return ip
}
