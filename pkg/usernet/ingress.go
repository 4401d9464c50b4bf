package usernet

import (
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/devvm/devvm/pkg/vmnet"
)

// A verdict says what happens to a frame from the VM.
type verdict int

const (
	drop     verdict = iota // not ours: multicast chatter, what is malformed
	deliver                 // to the stack
	reject                  // answered with an ICMP error
	echo                    // an echo request to somebody outside
	discover                // a question of IPv6's neighbour discovery, see router.go
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
//   - IPv6: the source is of [Network6], of which the guest chooses its addresses, and
//     nothing is between the header and TCP, UDP or ICMP: no fragment and no option. Of
//     neighbour discovery the stack sees nothing, see router.go.
//   - ICMP: it speaks for the gateway only. An echo request to somebody outside
//     is for ping.go.
//
// frame has at least an Ethernet header.
func inspect(frame []byte) (verdict, refusal) {
	eth := header.Ethernet(frame)
	if header.IsMulticastEthernetAddress(eth.SourceAddress()) {
		return drop, allowed // nobody can answer there
	}
	if eth.Type() == header.ARPProtocolNumber {
		return inspectARP(frame[header.EthernetMinimumSize:])
	}
	if p, ok := parsePacket(frame); ok {
		return p.inspect()
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
	case sender != vmnet.Guest && sender != vmnet.Management:
		return drop, allowed // also the probe for its own address (RFC 5227)
	case arp.Op() == header.ARPReply:
		return deliver, allowed
	case arp.Op() == header.ARPRequest && vmnet.Network.Contains(target) && target != vmnet.Guest && target != sender:
		return deliver, allowed
	}
	return drop, allowed
}

func (p packet) inspect() (verdict, refusal) {
	if p.isDHCP() && (p.src == vmnet.Guest || p.src.IsUnspecified()) && (p.dst == vmnet.Gateway || p.dst == broadcast4) {
		return deliver, allowed
	}
	if p.isDiscovery() {
		return discover, allowed
	}
	if p.dst.IsMulticast() || p.dst == broadcast4 || p.dst == lastAddr(vmnet.Network) {
		return drop, allowed // mDNS, SSDP and the like; nobody waits for an answer
	}
	if !p.fromGuest() {
		return reject, refuseSource
	}
	switch r := staticRefusal(p.dst); {
	case p.dst.Is4In6():
		return reject, refuseInvalid // it would leave as IPv4
	case r == allowed, r == refuseMetadata, r == refuseLinkLocal && p.dst.Is4():
		// The forwarders refuse what must be, as the host's own addresses.
	case r == refuseVMNetwork && p.dst.Is4():
		if p.dst == vmnet.Guest || p.dst == vmnet.GuestLoopback || p.dst == vmnet.Management || p.dst == vmnet.Network.Addr() {
			return reject, r
		}
	default:
		return reject, r
	}
	switch p.proto {
	case header.TCPProtocolNumber, header.UDPProtocolNumber:
		return deliver, allowed
	case header.ICMPv4ProtocolNumber:
		if p.dst == vmnet.Gateway || p.dst == vmnet.HostAlias {
			return deliver, allowed
		}
	}
	if p.isPing() && !vmnet.Network.Contains(p.dst) {
		return echo, allowed
	}
	return reject, refuseProtocol
}

// fromGuest tells whether a packet has a source that the guest may send from.
func (p packet) fromGuest() bool {
	switch p.src {
	case vmnet.Guest:
		return true
	case vmnet.GuestLoopback, vmnet.Management:
		return p.dst == vmnet.Gateway
	}
	return vmnet.Network6.Contains(p.src) && p.src != vmnet.Network6.Addr()
}

// ingress takes each frame from the VM; the stack gets those that it accepts.
func (s *Stack) ingress(frame []byte) bool {
	s.notePressure(frame)
	v, r := inspect(frame)
	if v == drop {
		return false
	}
	mac := header.Ethernet(frame).SourceAddress()
	if v == deliver && s.guestMAC.Load() != mac && fromCard(frame) {
		s.guestMAC.Store(mac)
		s.advertise()
	}
	p, ok := parsePacket(frame)
	if !ok {
		return v == deliver // ARP
	}
	if p.src.Is6() && (v == deliver || v == echo) {
		s.learn(p.src, mac)
	}
	switch v {
	case discover:
		s.discover(p, mac)
	case echo:
		s.echo(frame, p)
	case reject:
		s.policy.count(r, p.protocolName(), p.destination())
		s.answerError(frame, prohibited)
	}
	return v == deliver
}

// echo sends a ping on its way, or answers why it does not go.
func (s *Stack) echo(frame []byte, p packet) {
	code := prohibited
	if s.pings {
		err := s.out.ping(p)
		if err == nil {
			return
		}
		if isUnreachable(err) {
			code = noHost
		}
	} else {
		s.policy.count(refusePing, pingNetwork, p.destination())
	}
	s.answerError(frame, code)
}

// fromCard tells whether a frame that is delivered comes from the guest's own card, and not
// from that of the management address. IPv4 and ARP alone can tell.
func fromCard(frame []byte) bool {
	payload := frame[header.EthernetMinimumSize:]
	switch header.Ethernet(frame).Type() {
	case header.ARPProtocolNumber:
		return netip.AddrFrom4([4]byte(header.ARP(payload).ProtocolAddressSender())) != vmnet.Management
	case header.IPv4ProtocolNumber:
		return netip.AddrFrom4(header.IPv4(payload).SourceAddress().As4()) != vmnet.Management
	}
	return false
}
