package usernet

import (
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// A verdict says what happens to a frame from the VM.
type verdict int

const (
	drop    verdict = iota // not ours: multicast chatter, IPv6, what is malformed
	deliver                // to the stack
	reject                 // answered with an ICMP error
	echo                   // an echo request to somebody outside
)

// inspect judges one frame from the VM before the stack sees it. The stack is
// promiscuous, so everything that it must not do in other addresses' names is
// stopped here:
//   - ARP: it answers for its own two addresses and for other ones on the
//     network (their connections are refused at once instead of after the
//     guest's ARP time-out), never for the address of who asks, which would find
//     it taken, nor for the guest's.
//   - IPv4: the source is the guest, or nobody yet for DHCP, or, towards the
//     gateway alone, the guest's loopback or its management address. Loopback, zero and
//     multicast destinations, which the stack drops in silence, are answered
//     or known to be chatter.
//   - ICMP: it speaks for the gateway only. An echo request to somebody outside
//     is for ping.go.
//
// frame has at least an Ethernet header.
func inspect(frame []byte) (verdict, refusal) {
	eth := header.Ethernet(frame)
	payload := frame[header.EthernetMinimumSize:]
	if header.IsMulticastEthernetAddress(eth.SourceAddress()) {
		return drop, allowed // nobody can answer there
	}
	switch eth.Type() {
	case header.ARPProtocolNumber:
		return inspectARP(payload)
	case header.IPv4ProtocolNumber:
		return inspectIPv4(payload)
	}
	return drop, allowed
}

func inspectARP(b []byte) (verdict, refusal) {
	arp := header.ARP(b)
	if !arp.IsValid() {
		return drop, allowed
	}
	sender := netip.AddrFrom4([4]byte(arp.ProtocolAddressSender()))
	target := netip.AddrFrom4([4]byte(arp.ProtocolAddressTarget()))
	switch {
	case sender != Guest && sender != Management:
		return drop, allowed // also the probe for its own address (RFC 5227)
	case arp.Op() == header.ARPReply:
		return deliver, allowed
	case arp.Op() == header.ARPRequest && Network.Contains(target) && target != Guest && target != sender:
		return deliver, allowed
	}
	return drop, allowed
}

func inspectIPv4(b []byte) (verdict, refusal) {
	ip := header.IPv4(b)
	if len(b) < header.IPv4MinimumSize || !ip.IsValid(len(b)) {
		return drop, allowed
	}
	src := netip.AddrFrom4(ip.SourceAddress().As4())
	dst := netip.AddrFrom4(ip.DestinationAddress().As4())

	if dhcp := isDHCP(ip); dhcp && (src == Guest || src.IsUnspecified()) && (dst == Gateway || dst == broadcast4) {
		return deliver, allowed
	}
	if dst.IsMulticast() || dst == broadcast4 || dst == lastAddr(Network) {
		return drop, allowed // mDNS, SSDP and the like; nobody waits for an answer
	}
	if src != Guest && (src != GuestLoopback && src != Management || dst != Gateway) {
		return reject, refuseSource
	}
	switch r := staticRefusal(dst); r {
	case allowed, refuseLinkLocal, refuseMetadata:
		// The forwarders refuse what must be, as the host's own addresses.
	case refuseVMNetwork:
		if dst == Guest || dst == GuestLoopback || dst == Management || dst == Network.Addr() {
			return reject, r
		}
	default:
		return reject, r
	}
	switch ip.TransportProtocol() {
	case header.TCPProtocolNumber, header.UDPProtocolNumber:
		return deliver, allowed
	case header.ICMPv4ProtocolNumber:
		if dst == Gateway || dst == HostAlias {
			return deliver, allowed
		}
		if isPing(ip) && !Network.Contains(dst) {
			return echo, allowed
		}
	}
	return reject, refuseProtocol
}

// isDHCP says whether an IPv4 packet goes to a DHCP server.
func isDHCP(ip header.IPv4) bool {
	if ip.TransportProtocol() != header.UDPProtocolNumber || ip.FragmentOffset() != 0 {
		return false
	}
	udp := ip.Payload()
	return len(udp) >= header.UDPMinimumSize && header.UDP(udp).DestinationPort() == dhcpServerPort
}

// ingress takes each frame from the VM; the stack gets those that it accepts.
func (s *Stack) ingress(frame []byte) bool {
	s.notePressure(frame)
	v, r := inspect(frame)
	if v == echo {
		s.echo(frame)
		return false
	}
	if mac := header.Ethernet(frame).SourceAddress(); v == deliver && s.guestMAC.Load() != mac && !fromManagement(frame) {
		s.guestMAC.Store(mac)
	}
	if v == reject {
		ip := header.IPv4(frame[header.EthernetMinimumSize:])
		s.policy.count(r, protocolName(ip), destination(ip))
		if answer := icmpError(frame, header.ICMPv4AdminProhibited); answer != nil {
			s.cable.WriteFrame(answer)
		}
	}
	return v == deliver
}

// echo sends a ping on its way, or answers why it does not go.
func (s *Stack) echo(frame []byte) {
	ip := header.IPv4(frame[header.EthernetMinimumSize:])
	code := header.ICMPv4AdminProhibited
	if s.pings {
		err := s.out.ping(ip)
		if err == nil {
			return
		}
		if isUnreachable(err) {
			code = header.ICMPv4HostUnreachable
		}
	} else {
		s.policy.count(refusePing, pingNetwork, destination(ip))
	}
	if answer := icmpError(frame, code); answer != nil {
		s.cable.WriteFrame(answer)
	}
}

// fromManagement tells whether a frame that is delivered comes from the card of the
// management address.
func fromManagement(frame []byte) bool {
	payload := frame[header.EthernetMinimumSize:]
	switch header.Ethernet(frame).Type() {
	case header.ARPProtocolNumber:
		return netip.AddrFrom4([4]byte(header.ARP(payload).ProtocolAddressSender())) == Management
	case header.IPv4ProtocolNumber:
		return netip.AddrFrom4(header.IPv4(payload).SourceAddress().As4()) == Management
	}
	return false
}

// protocolName and destination describe a packet for the log.
func protocolName(ip header.IPv4) string {
	switch ip.TransportProtocol() {
	case header.TCPProtocolNumber:
		return "tcp"
	case header.UDPProtocolNumber:
		return "udp"
	case header.ICMPv4ProtocolNumber:
		return "icmp"
	}
	return "ip"
}

func destination(ip header.IPv4) netip.AddrPort {
	var port uint16
	switch ip.TransportProtocol() {
	case header.TCPProtocolNumber, header.UDPProtocolNumber:
		if b := ip.Payload(); ip.FragmentOffset() == 0 && len(b) >= 4 {
			port = header.UDP(b).DestinationPort() // at the same place in both
		}
	}
	return netip.AddrPortFrom(netip.AddrFrom4(ip.DestinationAddress().As4()), port)
}
