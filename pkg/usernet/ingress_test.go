package usernet

import (
	"net/netip"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/devvm/devvm/pkg/usernet/internal/socket"
)

var guestLink = tcpip.LinkAddress("\x52\x54\x00\x12\x34\x56")

// ethernetFrame makes a frame from the guest to the gateway.
func ethernetFrame(t tcpip.NetworkProtocolNumber, payload []byte) []byte {
	b := make([]byte, header.EthernetMinimumSize, header.EthernetMinimumSize+len(payload))
	header.Ethernet(b).Encode(&header.EthernetFields{SrcAddr: guestLink, DstAddr: tcpip.LinkAddress(GatewayMAC), Type: t})
	return append(b, payload...)
}

// ipFrame makes a frame with an IPv4 packet whose first four payload bytes are
// the ports 40000 and port.
func ipFrame(proto tcpip.TransportProtocolNumber, src, dst string, port uint16) []byte {
	const size = header.IPv4MinimumSize + header.TCPMinimumSize
	b := make([]byte, size)
	ip := header.IPv4(b)
	ip.Encode(&header.IPv4Fields{
		TotalLength: size, TTL: 64, Protocol: uint8(proto),
		SrcAddr: socket.Address(netip.MustParseAddr(src)), DstAddr: socket.Address(netip.MustParseAddr(dst)),
	})
	ip.SetChecksum(^ip.CalculateChecksum())
	switch proto {
	case header.ICMPv4ProtocolNumber:
		header.ICMPv4(ip.Payload()).SetType(header.ICMPv4Echo)
	default:
		udp := header.UDP(ip.Payload())
		udp.SetSourcePort(40000)
		udp.SetDestinationPort(port)
	}
	return ethernetFrame(header.IPv4ProtocolNumber, b)
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
	const tcp, udp, icmp = header.TCPProtocolNumber, header.UDPProtocolNumber, header.ICMPv4ProtocolNumber
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

		{"IPv6", ethernetFrame(header.IPv6ProtocolNumber, make([]byte, 60)), drop, allowed},
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
	answer := icmpError(frame, header.ICMPv4AdminProhibited)
	if answer == nil {
		t.Fatal("no answer")
	}
	eth := header.Ethernet(answer)
	if eth.DestinationAddress() != guestLink || eth.SourceAddress() != tcpip.LinkAddress(GatewayMAC) {
		t.Errorf("from %s to %s", eth.SourceAddress(), eth.DestinationAddress())
	}
	ip := header.IPv4(answer[header.EthernetMinimumSize:])
	if !ip.IsValid(len(ip)) || ip.CalculateChecksum() != 0xffff {
		t.Error("IP header is not valid")
	}
	if fromNet(ip.SourceAddress()).String() != "127.0.0.2" || fromNet(ip.DestinationAddress()) != Guest {
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

	fragment := ipFrame(header.TCPProtocolNumber, "192.0.2.2", "127.0.0.2", 80)
	header.IPv4(fragment[header.EthernetMinimumSize:]).SetFlagsFragmentOffset(0, 64)
	if icmpError(fragment, header.ICMPv4AdminProhibited) != nil {
		t.Error("a later fragment was answered")
	}
	if icmpError(answer, header.ICMPv4AdminProhibited) != nil {
		t.Error("an ICMP error was answered")
	}
	for _, src := range []string{"0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"} {
		if icmpError(ipFrame(header.TCPProtocolNumber, src, "198.51.100.7", 80), header.ICMPv4AdminProhibited) != nil {
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
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) < header.EthernetMinimumSize {
			return
		}
		v, r := inspect(frame)
		if v == reject {
			if r == allowed {
				t.Fatal("rejected without a reason")
			}
			ip := header.IPv4(frame[header.EthernetMinimumSize:])
			protocolName(ip)
			destination(ip)
			icmpError(frame, header.ICMPv4AdminProhibited)
		}
		if v == deliver && header.Ethernet(frame).Type() == header.IPv4ProtocolNumber {
			ip := header.IPv4(frame[header.EthernetMinimumSize:])
			src, dst := fromNet(ip.SourceAddress()), fromNet(ip.DestinationAddress())
			inward := (src == GuestLoopback || src == Management) && dst == Gateway
			if src != Guest && !inward && !(src.IsUnspecified() && isDHCP(ip)) {
				t.Fatalf("packet from %s to %s was let in", src, dst)
			}
			fromManagement(frame)
		}
	})
}
