package usernet

import (
	"net/netip"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/devvm/devvm/pkg/usernet/internal/socket"
	"github.com/devvm/devvm/pkg/vmnet"
)

var guestLink = tcpip.LinkAddress("\x52\x54\x00\x12\x34\x56")

// ethernetFrame makes a frame from the guest to the gateway.
func ethernetFrame(t tcpip.NetworkProtocolNumber, payload []byte) []byte {
	b := make([]byte, header.EthernetMinimumSize, header.EthernetMinimumSize+len(payload))
	header.Ethernet(b).Encode(&header.EthernetFields{SrcAddr: guestLink, DstAddr: tcpip.LinkAddress(vmnet.GatewayMAC), Type: t})
	return append(b, payload...)
}

// ipFrame makes a frame with an IP packet whose first four payload bytes are
// the ports 40000 and port, or those of an echo request.
func ipFrame(proto tcpip.TransportProtocolNumber, src, dst string, port uint16) []byte {
	from, to := netip.MustParseAddr(src), netip.MustParseAddr(dst)
	payload := make([]byte, header.TCPMinimumSize)
	if proto == icmpProtocol(to) {
		payload[0] = echoRequest(to)
	} else {
		udp := header.UDP(payload)
		udp.SetSourcePort(40000)
		udp.SetDestinationPort(port)
	}
	return ethernetFrame(socket.Protocol(to), append(ipHeader(proto, from, to, 64, len(payload)), payload...))
}

// fragment makes the packet of IPv4 in a frame a part of a larger one.
func fragment(frame []byte, flags uint8, offset uint16) []byte {
	header.IPv4(frame[header.EthernetMinimumSize:]).SetFlagsFragmentOffset(flags, offset)
	return frame
}

// discoveryFrame makes one of neighbour discovery, for a target, if any.
func discoveryFrame(kind header.ICMPv6Type, hops uint8, src, dst, target string) []byte {
	message := make([]byte, 8)
	message[0] = byte(kind)
	if target != "" {
		message = append(message, netip.MustParseAddr(target).AsSlice()...)
	}
	return icmpFrame(guestLink, tcpip.LinkAddress(vmnet.GatewayMAC), netip.MustParseAddr(src), netip.MustParseAddr(dst), hops, message)
}

func arpFrame(op header.ARPOp, sender, target string) []byte {
	b := make([]byte, header.ARPSize)
	arp := header.ARP(b)
	arp.SetIPv4OverEthernet()
	arp.SetOp(op)
	copy(arp.HardwareAddressSender(), guestLink)
	copy(arp.ProtocolAddressSender(), netip.MustParseAddr(sender).AsSlice())
	copy(arp.ProtocolAddressTarget(), netip.MustParseAddr(target).AsSlice())
	return ethernetFrame(header.ARPProtocolNumber, b)
}

func TestInspect(t *testing.T) {
	const (
		tcp, udp    = header.TCPProtocolNumber, header.UDPProtocolNumber
		icmp, icmp6 = header.ICMPv4ProtocolNumber, header.ICMPv6ProtocolNumber
		guest6      = "fd64:6576:766d::2"
	)
	for _, c := range []struct {
		name   string
		frame  []byte
		want   verdict
		reason refusal
	}{
		{"TCP out", ipFrame(tcp, "192.0.2.2", "198.51.100.7", 80), deliver, allowed},
		{"UDP out", ipFrame(udp, "192.0.2.2", "198.51.100.7", 53), deliver, allowed},
		{"DNS", ipFrame(udp, "192.0.2.2", "192.0.2.1", 53), deliver, allowed},
		{"ping of the gateway", ipFrame(icmp, "192.0.2.2", "192.0.2.1", 0), deliver, allowed},
		{"ping of the host's alias", ipFrame(icmp, "192.0.2.2", "192.0.2.254", 0), deliver, allowed},
		{"ping out", ipFrame(icmp, "192.0.2.2", "198.51.100.7", 0), echo, allowed},
		{"the first part of a ping", fragment(ipFrame(icmp, "192.0.2.2", "198.51.100.7", 0), header.IPv4FlagMoreFragments, 0), reject, refuseProtocol},
		{"ping of a neighbour", ipFrame(icmp, "192.0.2.2", "192.0.2.77", 0), reject, refuseProtocol},
		{"ping from elsewhere", ipFrame(icmp, "10.1.2.3", "198.51.100.7", 0), reject, refuseSource},
		{"ping from the management address", ipFrame(icmp, "192.0.2.4", "198.51.100.7", 0), reject, refuseSource},
		{"GRE", ipFrame(47, "192.0.2.2", "198.51.100.7", 0), reject, refuseProtocol},
		{"SCTP", ipFrame(132, "192.0.2.2", "192.0.2.1", 80), reject, refuseProtocol},

		{"DHCP without an address", ipFrame(udp, "0.0.0.0", "255.255.255.255", 67), deliver, allowed},
		{"DHCP renewal", ipFrame(udp, "192.0.2.2", "192.0.2.1", 67), deliver, allowed},
		{"DHCP rebinding", ipFrame(udp, "192.0.2.2", "255.255.255.255", 67), deliver, allowed},
		{"DHCP from elsewhere", ipFrame(udp, "10.0.0.9", "192.0.2.1", 67), reject, refuseSource},
		{"DHCP to elsewhere", ipFrame(udp, "0.0.0.0", "198.51.100.7", 67), reject, refuseSource},
		{"no address, TCP", ipFrame(tcp, "0.0.0.0", "192.0.2.1", 67), reject, refuseSource},

		{"spoofed source", ipFrame(tcp, "10.1.2.3", "198.51.100.7", 80), reject, refuseSource},
		{"answer of the loopback", ipFrame(tcp, "192.0.2.3", "192.0.2.1", 40000), deliver, allowed},
		{"loopback outbound", ipFrame(tcp, "192.0.2.3", "198.51.100.7", 80), reject, refuseSource},
		{"to its own loopback", ipFrame(tcp, "192.0.2.2", "192.0.2.3", 80), reject, refuseVMNetwork},
		{"ARP of the loopback", arpFrame(header.ARPReply, "192.0.2.3", "192.0.2.1"), drop, allowed},
		{"answer of the management address", ipFrame(tcp, "192.0.2.4", "192.0.2.1", 40000), deliver, allowed},
		{"management address outbound", ipFrame(tcp, "192.0.2.4", "198.51.100.7", 80), reject, refuseSource},
		{"management address to the guest", ipFrame(tcp, "192.0.2.4", "192.0.2.2", 80), reject, refuseSource},
		{"to the management address", ipFrame(tcp, "192.0.2.2", "192.0.2.4", 22), reject, refuseVMNetwork},
		{"spoofed neighbour", ipFrame(tcp, "192.0.2.5", "198.51.100.7", 80), reject, refuseSource},
		{"spoofed gateway", ipFrame(tcp, "192.0.2.1", "192.0.2.2", 80), reject, refuseSource},
		{"spoofed loopback", ipFrame(tcp, "127.0.0.1", "192.0.2.1", 53), reject, refuseSource},
		{"spoofed broadcast", ipFrame(udp, "255.255.255.255", "192.0.2.1", 53), reject, refuseSource},
		{"container without NAT", ipFrame(tcp, "172.17.0.2", "192.0.2.1", 53), reject, refuseSource},

		{"loopback", ipFrame(tcp, "192.0.2.2", "127.0.0.1", 80), reject, refuseLoopback},
		{"loopback's second", ipFrame(tcp, "192.0.2.2", "127.0.0.2", 80), reject, refuseLoopback},
		{"zero", ipFrame(tcp, "192.0.2.2", "0.0.0.0", 80), reject, refuseUnspecified},
		{"itself", ipFrame(tcp, "192.0.2.2", "192.0.2.2", 80), reject, refuseVMNetwork},
		{"the network", ipFrame(tcp, "192.0.2.2", "192.0.2.0", 80), reject, refuseVMNetwork},
		{"mDNS", ipFrame(udp, "192.0.2.2", "224.0.0.251", 5353), drop, allowed},
		{"broadcast", ipFrame(udp, "192.0.2.2", "255.255.255.255", 137), drop, allowed},
		{"directed broadcast", ipFrame(udp, "192.0.2.2", "192.0.2.255", 137), drop, allowed},
		// These reach the forwarders, which refuse them with a RST.
		{"neighbour", ipFrame(tcp, "192.0.2.2", "192.0.2.77", 80), deliver, allowed},
		{"host's alias", ipFrame(tcp, "192.0.2.2", "192.0.2.254", 80), deliver, allowed},
		{"metadata", ipFrame(tcp, "192.0.2.2", "169.254.169.254", 80), deliver, allowed},

		{"ARP for the gateway", arpFrame(header.ARPRequest, "192.0.2.2", "192.0.2.1"), deliver, allowed},
		{"ARP for a neighbour", arpFrame(header.ARPRequest, "192.0.2.2", "192.0.2.77"), deliver, allowed},
		{"ARP for itself", arpFrame(header.ARPRequest, "192.0.2.2", "192.0.2.2"), drop, allowed},
		{"ARP for the management address", arpFrame(header.ARPRequest, "192.0.2.2", "192.0.2.4"), deliver, allowed},
		{"ARP of the management address for itself", arpFrame(header.ARPRequest, "192.0.2.4", "192.0.2.4"), drop, allowed},
		{"ARP of the management address for the guest", arpFrame(header.ARPRequest, "192.0.2.4", "192.0.2.2"), drop, allowed},
		{"ARP of the management address", arpFrame(header.ARPRequest, "192.0.2.4", "192.0.2.1"), deliver, allowed},
		{"ARP reply of the management address", arpFrame(header.ARPReply, "192.0.2.4", "192.0.2.1"), deliver, allowed},
		{"ARP probe for its address", arpFrame(header.ARPRequest, "0.0.0.0", "192.0.2.2"), drop, allowed},
		{"ARP for another network", arpFrame(header.ARPRequest, "192.0.2.2", "10.0.0.1"), drop, allowed},
		{"ARP of the gateway's address", arpFrame(header.ARPReply, "192.0.2.1", "192.0.2.1"), drop, allowed},
		{"ARP reply", arpFrame(header.ARPReply, "192.0.2.2", "192.0.2.1"), deliver, allowed},

		{"TCP by IPv6", ipFrame(tcp, guest6, "2001:db8::7", 80), deliver, allowed},
		{"UDP by IPv6", ipFrame(udp, guest6, "2001:db8::7", 53), deliver, allowed},
		{"ping by IPv6", ipFrame(icmp6, guest6, "2001:db8::7", 0), echo, allowed},
		{"another address of the guest's", ipFrame(tcp, "fd64:6576:766d::1:2:3:4", "2001:db8::7", 80), deliver, allowed},
		{"the network's own address", ipFrame(tcp, "fd64:6576:766d::", "2001:db8::7", 80), reject, refuseSource},
		{"spoofed source of IPv6", ipFrame(tcp, "2001:db8::5", "2001:db8::7", 80), reject, refuseSource},
		{"spoofed ping of IPv6", ipFrame(icmp6, "fd64:6576:766d:1::2", "2001:db8::7", 0), reject, refuseSource},
		{"link-local outbound", ipFrame(tcp, "fe80::2", "2001:db8::7", 80), reject, refuseSource},
		{"no address of IPv6", ipFrame(udp, "::", "2001:db8::7", 67), reject, refuseSource},
		{"loopback of IPv6 as source", ipFrame(udp, "::1", "2001:db8::7", 67), reject, refuseSource},
		{"mapped source", ipFrame(tcp, "::ffff:192.0.2.2", "2001:db8::7", 80), reject, refuseSource},
		{"mapped destination", ipFrame(tcp, guest6, "::ffff:198.51.100.7", 80), reject, refuseInvalid},
		{"loopback of IPv6", ipFrame(tcp, guest6, "::1", 80), reject, refuseLoopback},
		{"unspecified of IPv6", ipFrame(tcp, guest6, "::", 80), reject, refuseUnspecified},
		{"the router by its link-local address", ipFrame(tcp, guest6, "fe80::1", 53), reject, refuseLinkLocal},
		{"site-local", ipFrame(udp, guest6, "fec0::1", 53), reject, refuseLinkLocal},
		{"NAT64 of loopback", ipFrame(tcp, guest6, "64:ff9b::127.0.0.1", 80), reject, refuseLoopback},
		{"neighbour of IPv6", ipFrame(tcp, guest6, "fd64:6576:766d::9", 80), reject, refuseVMNetwork},
		{"ping of a neighbour of IPv6", ipFrame(icmp6, guest6, "fd64:6576:766d::9", 0), reject, refuseVMNetwork},
		{"metadata by IPv6", ipFrame(tcp, guest6, "fd00:ec2::254", 80), deliver, allowed},
		{"mDNS by IPv6", ipFrame(udp, "fe80::2", "ff02::fb", 5353), drop, allowed},
		{"hop-by-hop", ipFrame(0, guest6, "2001:db8::7", 0), reject, refuseProtocol},
		{"routing header", ipFrame(43, guest6, "2001:db8::7", 0), reject, refuseProtocol},
		{"fragment of IPv6", ipFrame(44, guest6, "2001:db8::7", 0), reject, refuseProtocol},
		{"destination options", ipFrame(60, guest6, "2001:db8::7", 0), reject, refuseProtocol},
		{"ICMP of IPv4 by IPv6", ipFrame(icmp, guest6, "2001:db8::7", 0), reject, refuseProtocol},
		{"ICMP of IPv6 by IPv4", ipFrame(icmp6, "192.0.2.2", "198.51.100.7", 0), reject, refuseProtocol},
		{"packet too big", discoveryFrame(header.ICMPv6PacketTooBig, 64, guest6, "2001:db8::7", ""), reject, refuseProtocol},
		{"router solicitation", discoveryFrame(header.ICMPv6RouterSolicit, 255, "fe80::2", "ff02::2", ""), discover, allowed},
		{"router solicitation without an address", discoveryFrame(header.ICMPv6RouterSolicit, 255, "::", "ff02::2", ""), discover, allowed},
		{"router solicitation from afar", discoveryFrame(header.ICMPv6RouterSolicit, 64, "fe80::2", "ff02::2", ""), drop, allowed},
		{"neighbour solicitation", discoveryFrame(header.ICMPv6NeighborSolicit, 255, guest6, "ff02::1:ff00:1", "fe80::1"), discover, allowed},
		{"neighbour solicitation, unicast", discoveryFrame(header.ICMPv6NeighborSolicit, 255, "fe80::2", "fe80::1", "fe80::1"), discover, allowed},
		{"neighbour solicitation from afar", discoveryFrame(header.ICMPv6NeighborSolicit, 254, guest6, "ff02::1:ff00:1", "fe80::1"), drop, allowed},
		{"neighbour solicitation for itself", discoveryFrame(header.ICMPv6NeighborSolicit, 255, "::", "ff02::1:ff00:2", guest6), drop, allowed},
		{"neighbour solicitation for somebody outside", discoveryFrame(header.ICMPv6NeighborSolicit, 255, guest6, "ff02::1:ff00:7", "2001:db8::7"), drop, allowed},
		{"half a neighbour solicitation", discoveryFrame(header.ICMPv6NeighborSolicit, 255, guest6, "ff02::1:ff00:1", ""), drop, allowed},
		{"neighbour advertisement", discoveryFrame(header.ICMPv6NeighborAdvert, 255, guest6, "ff02::1", guest6), drop, allowed},
		{"router advertisement", discoveryFrame(header.ICMPv6RouterAdvert, 255, "fe80::2", "ff02::1", ""), drop, allowed},
		{"redirect", discoveryFrame(header.ICMPv6RedirectMsg, 255, "fe80::1", guest6, "2001:db8::7"), reject, refuseSource},
		{"zeros", ethernetFrame(header.IPv6ProtocolNumber, make([]byte, 60)), drop, allowed},
		{"half a header of IPv6", ipFrame(tcp, guest6, "2001:db8::7", 80)[:40], drop, allowed},
		{"longer than the frame by IPv6", ipFrame(tcp, guest6, "2001:db8::7", 80)[:60], drop, allowed},
		{"nothing", ethernetFrame(header.IPv4ProtocolNumber, nil), drop, allowed},
		{"half a header", ethernetFrame(header.IPv4ProtocolNumber, []byte{0x45, 0, 0, 20}), drop, allowed},
		{"half ARP", ethernetFrame(header.ARPProtocolNumber, []byte{0, 1, 8, 0}), drop, allowed},
		{"longer than the frame", ipFrame(tcp, "192.0.2.2", "198.51.100.7", 80)[:40], drop, allowed},
	} {
		v, r := inspect(c.frame)
		if v != c.want || r != c.reason {
			t.Errorf("%s: verdict %d, %q; want %d, %q", c.name, v, r, c.want, c.reason)
		}
	}
}

func TestICMPError(t *testing.T) {
	frame := ipFrame(header.TCPProtocolNumber, "192.0.2.2", "127.0.0.2", 80)
	answer := icmpError(frame, prohibited)
	if answer == nil {
		t.Fatal("no answer")
	}
	eth := header.Ethernet(answer)
	if eth.DestinationAddress() != guestLink || eth.SourceAddress() != tcpip.LinkAddress(vmnet.GatewayMAC) {
		t.Errorf("from %s to %s", eth.SourceAddress(), eth.DestinationAddress())
	}
	ip := header.IPv4(answer[header.EthernetMinimumSize:])
	if !ip.IsValid(len(ip)) || ip.CalculateChecksum() != 0xffff {
		t.Error("IP header is not valid")
	}
	if fromNet(ip.SourceAddress()).String() != "127.0.0.2" || fromNet(ip.DestinationAddress()) != vmnet.Guest {
		t.Errorf("from %s to %s", ip.SourceAddress(), ip.DestinationAddress())
	}
	icmp := header.ICMPv4(ip.Payload())
	if icmp.Type() != header.ICMPv4DstUnreachable || icmp.Code() != header.ICMPv4AdminProhibited {
		t.Errorf("type %d, code %d", icmp.Type(), icmp.Code())
	}
	if checksum.Checksum(icmp, 0) != 0xffff {
		t.Error("ICMP checksum is wrong")
	}
	quoted := icmp[header.ICMPv4MinimumSize:]
	if want := frame[header.EthernetMinimumSize:][:header.IPv4MinimumSize+8]; string(quoted) != string(want) {
		t.Errorf("quotes %x, want %x", quoted, want)
	}

	message := func(kind header.ICMPv4Type) []byte {
		frame := ipFrame(header.ICMPv4ProtocolNumber, "192.0.2.2", "198.51.100.7", 0)
		frame[header.EthernetMinimumSize+header.IPv4MinimumSize] = byte(kind)
		return frame
	}
	const more = header.IPv4FlagMoreFragments
	for _, c := range []struct {
		name  string
		frame []byte
		want  bool
	}{
		{"a ping", message(header.ICMPv4Echo), true},
		{"the first fragment of a ping", fragment(message(header.ICMPv4Echo), more, 0), true},
		{"a later fragment of a ping", fragment(message(header.ICMPv4Echo), more, 64), false},
		{"the last fragment of a ping", fragment(message(header.ICMPv4Echo), 0, 64), false},
		{"an answer to a ping", message(header.ICMPv4EchoReply), false},
		{"the first fragment of an error", fragment(message(header.ICMPv4DstUnreachable), more, 0), false},
		{"the first fragment of a datagram", fragment(ipFrame(header.UDPProtocolNumber, "192.0.2.2", "198.51.100.7", 80), more, 0), true},
		{"a later fragment of a segment", fragment(ipFrame(header.TCPProtocolNumber, "192.0.2.2", "127.0.0.2", 80), 0, 64), false},
	} {
		if got := icmpError(c.frame, prohibited) != nil; got != c.want {
			t.Errorf("%s: answered %v, want %v", c.name, got, c.want)
		}
	}
	if icmpError(answer, prohibited) != nil {
		t.Error("an ICMP error was answered")
	}
	answer6 := icmpError(ipFrame(header.TCPProtocolNumber, "fd64:6576:766d::2", "::1", 80), prohibited)
	p, ok := parsePacket(answer6)
	if !ok || p.src != netip.IPv6Loopback() || p.dst.String() != "fd64:6576:766d::2" || len(p.payload) != 8+header.IPv6MinimumSize+8 ||
		p.payload[0] != byte(header.ICMPv6DstUnreachable) || p.payload[1] != byte(header.ICMPv6Prohibited) {
		t.Errorf("%+v", p)
	}
	if icmpError(answer6, prohibited) != nil {
		t.Error("an ICMP error of IPv6 was answered")
	}
	for _, src := range []string{"::", "::1", "ff02::1", "::ffff:192.0.2.2"} {
		if icmpError(ipFrame(header.TCPProtocolNumber, src, "2001:db8::7", 80), prohibited) != nil {
			t.Errorf("a packet from %s was answered", src)
		}
	}
	for _, src := range []string{"0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"} {
		if icmpError(ipFrame(header.TCPProtocolNumber, src, "198.51.100.7", 80), prohibited) != nil {
			t.Errorf("a packet from %s was answered", src)
		}
	}
}

// FuzzInspect: no frame of a guest breaks the process, and none reaches the
// stack from an address that is not the guest's, DHCP and what talks to the gateway apart.
func FuzzInspect(f *testing.F) {
	f.Add(ipFrame(header.TCPProtocolNumber, "192.0.2.2", "127.0.0.2", 80))
	f.Add(ipFrame(header.UDPProtocolNumber, "0.0.0.0", "255.255.255.255", 67))
	f.Add(ipFrame(header.ICMPv4ProtocolNumber, "192.0.2.2", "192.0.2.1", 0))
	f.Add(arpFrame(header.ARPRequest, "192.0.2.2", "192.0.2.1"))
	f.Add(ipFrame(header.TCPProtocolNumber, "fd64:6576:766d::2", "2001:db8::7", 80))
	f.Add(ipFrame(header.ICMPv6ProtocolNumber, "fd64:6576:766d::2", "2001:db8::7", 0))
	f.Add(ipFrame(44, "fd64:6576:766d::2", "2001:db8::7", 0))
	f.Add(discoveryFrame(header.ICMPv6NeighborSolicit, 255, "fe80::2", "ff02::1:ff00:1", "fe80::1"))
	f.Add(discoveryFrame(header.ICMPv6RouterSolicit, 255, "::", "ff02::2", ""))
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) < header.EthernetMinimumSize {
			return
		}
		v, r := inspect(frame)
		if v == reject {
			if r == allowed {
				t.Fatal("rejected without a reason")
			}
			p, ok := parsePacket(frame)
			if !ok {
				t.Fatal("rejected what is no packet")
			}
			p.protocolName()
			p.destination()
			icmpError(frame, prohibited)
		}
		if p, ok := parsePacket(frame); ok && (v == deliver || v == echo) {
			inward := (p.src == vmnet.GuestLoopback || p.src == vmnet.Management) && p.dst == vmnet.Gateway
			if p.src != vmnet.Guest && !inward && !vmnet.Network6.Contains(p.src) && !(p.src.IsUnspecified() && p.isDHCP()) {
				t.Fatalf("packet from %s to %s was let in", p.src, p.dst)
			}
			if p.src.Is6() != p.dst.Is6() || p.dst.Is6() && p.proto != header.TCPProtocolNumber && p.proto != header.UDPProtocolNumber && v != echo {
				t.Fatalf("packet of protocol %d to %s was let in", p.proto, p.dst)
			}
			fromCard(frame)
		}
	})
}
