package usernet

import (
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// A packet is what this network reads of an IP packet of the guest's, of either version,
// before the stack does. The slices are those of the frame.
type packet struct {
	src, dst netip.Addr
	// proto is what the payload is. Of IPv6 it is what comes first behind the fixed header, so
	// that what has an extension header is of a protocol that is not carried.
	proto         tcpip.TransportProtocolNumber
	head, payload []byte
	hops          uint8
	part, later   bool // a fragment, and one that is not the first
}

// parsePacket reads the packet in a frame, which has an Ethernet header. It is false if that
// is none, or a malformed one.
func parsePacket(frame []byte) (packet, bool) {
	b := frame[header.EthernetMinimumSize:]
	switch header.Ethernet(frame).Type() {
	case header.IPv4ProtocolNumber:
		ip := header.IPv4(b)
		if len(b) < header.IPv4MinimumSize || !ip.IsValid(len(b)) {
			return packet{}, false
		}
		return packet{
			src: netip.AddrFrom4(ip.SourceAddress().As4()), dst: netip.AddrFrom4(ip.DestinationAddress().As4()),
			proto: ip.TransportProtocol(), hops: ip.TTL(),
			head: b[:ip.HeaderLength()], payload: ip.Payload(),
			part: ip.More() || ip.FragmentOffset() != 0, later: ip.FragmentOffset() != 0,
		}, true
	case header.IPv6ProtocolNumber:
		ip := header.IPv6(b)
		if len(b) < header.IPv6MinimumSize || !ip.IsValid(len(b)) {
			return packet{}, false
		}
		return packet{
			src: netip.AddrFrom16(ip.SourceAddress().As16()), dst: netip.AddrFrom16(ip.DestinationAddress().As16()),
			proto: tcpip.TransportProtocolNumber(ip.NextHeader()), hops: ip.HopLimit(),
			head: b[:header.IPv6MinimumSize], payload: b[header.IPv6MinimumSize:][:ip.PayloadLength()],
		}, true
	}
	return packet{}, false
}

// icmpType is the type of a message of either version, which the first fragment has, too; it is
// false for what is none.
func (p packet) icmpType() (byte, bool) {
	if p.proto != icmpProtocol(p.dst) || p.later || len(p.payload) < header.ICMPv4MinimumSize {
		return 0, false
	}
	return p.payload[0], true
}

// isPing tells whether a packet is a whole echo request.
func (p packet) isPing() bool {
	kind, ok := p.icmpType()
	return ok && !p.part && kind == echoRequest(p.dst) && p.payload[1] == 0
}

// isDHCP says whether a packet goes to a DHCP server.
func (p packet) isDHCP() bool {
	return p.dst.Is4() && p.proto == header.UDPProtocolNumber && !p.later &&
		len(p.payload) >= header.UDPMinimumSize && header.UDP(p.payload).DestinationPort() == dhcpServerPort
}

// protocolName and destination describe a packet for the log.
func (p packet) protocolName() string {
	switch p.proto {
	case header.TCPProtocolNumber:
		return "tcp"
	case header.UDPProtocolNumber:
		return "udp"
	case icmpProtocol(p.dst):
		return pingNetwork
	}
	return "ip"
}

func (p packet) destination() netip.AddrPort {
	var port uint16
	switch p.proto {
	case header.TCPProtocolNumber, header.UDPProtocolNumber:
		if !p.later && len(p.payload) >= 4 {
			port = header.UDP(p.payload).DestinationPort() // at the same place in both
		}
	}
	return netip.AddrPortFrom(p.dst, port)
}
