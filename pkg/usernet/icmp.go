package usernet

import (
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// quotedBytes is how much of a packet behind its IP header an ICMP error
// quotes: enough for the ports and TCP's sequence number.
const quotedBytes = 8

// icmpError makes the frame that answers a frame with "destination
// unreachable", in the name of its destination. It returns nil for packets
// that get no such answer (RFC 1122, 3.2.2): fragments but the first, ICMP
// errors, and those from no single host.
func icmpError(frame []byte, code header.ICMPv4Code) []byte {
	eth := header.Ethernet(frame)
	b := frame[header.EthernetMinimumSize:]
	ip := header.IPv4(b)
	if len(b) < header.IPv4MinimumSize || !ip.IsValid(len(b)) || ip.FragmentOffset() != 0 {
		return nil
	}
	src := netip.AddrFrom4(ip.SourceAddress().As4())
	if src.IsUnspecified() || src.IsMulticast() || src.IsLoopback() || src == broadcast4 ||
		header.IsMulticastEthernetAddress(eth.SourceAddress()) {
		return nil
	}
	if ip.TransportProtocol() == header.ICMPv4ProtocolNumber {
		if p := ip.Payload(); len(p) < header.ICMPv4MinimumSize || header.ICMPv4(p).Type() != header.ICMPv4Echo {
			return nil
		}
	}
	quote := b[:min(int(ip.HeaderLength())+quotedBytes, int(ip.TotalLength()))]
	return unreachable(eth.DestinationAddress(), eth.SourceAddress(), ip.DestinationAddress(), ip.SourceAddress(), code, quote)
}

// sendUnreachable sends the guest an ICMP "destination unreachable" about one
// of its flows, in the name of where that went.
func (s *Stack) sendUnreachable(id stack.TransportEndpointID, code header.ICMPv4Code, quote []byte) {
	if mac, ok := s.guestMAC.Load().(tcpip.LinkAddress); ok {
		s.cable.WriteFrame(unreachable(tcpip.LinkAddress(GatewayMAC), mac, id.LocalAddress, id.RemoteAddress, code, quote))
	}
}

// unreachable makes the frame of an ICMP "destination unreachable" that quotes
// the start of a packet.
func unreachable(fromMAC, toMAC tcpip.LinkAddress, from, to tcpip.Address, code header.ICMPv4Code, quote []byte) []byte {
	size := header.IPv4MinimumSize + header.ICMPv4MinimumSize + len(quote)
	frame := make([]byte, header.EthernetMinimumSize+size)
	if header.IsMulticastEthernetAddress(fromMAC) {
		fromMAC = tcpip.LinkAddress(GatewayMAC)
	}
	header.Ethernet(frame).Encode(&header.EthernetFields{
		SrcAddr: fromMAC, DstAddr: toMAC, Type: header.IPv4ProtocolNumber,
	})
	ip := header.IPv4(frame[header.EthernetMinimumSize:])
	ip.Encode(&header.IPv4Fields{
		TotalLength: uint16(size),
		TTL:         64,
		Protocol:    uint8(header.ICMPv4ProtocolNumber),
		SrcAddr:     from,
		DstAddr:     to,
	})
	ip.SetChecksum(^ip.CalculateChecksum())
	icmp := header.ICMPv4(ip[header.IPv4MinimumSize:])
	icmp.SetType(header.ICMPv4DstUnreachable)
	icmp.SetCode(code)
	copy(icmp[header.ICMPv4MinimumSize:], quote)
	icmp.SetChecksum(^checksum.Checksum(icmp, 0))
	return frame
}
