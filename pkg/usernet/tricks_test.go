package usernet_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/devvm/devvm/pkg/egress"
	"github.com/devvm/devvm/pkg/usernet"
	"github.com/devvm/devvm/pkg/usernet/usernettest"
	"github.com/devvm/devvm/pkg/vmnet"
)

// root is a guest that makes frames by hand and hears all that comes back.
type root struct {
	*usernettest.Guest
	frames chan []byte
	port   uint16 // of the last packet sent by wants, less 20000
}

func newRoot(t *testing.T, s *usernet.Stack) *root {
	r := &root{frames: make(chan []byte, 1000)}
	r.Guest = plug(t, s, usernettest.Options{Frames: func(f []byte) { r.frames <- f }})
	return r
}

// packet makes an IP packet in an Ethernet frame to the gateway, with a TCP
// SYN, a UDP datagram or an echo request.
func (r *root) packet(proto tcpip.TransportProtocolNumber, src, dst netip.AddrPort) []byte {
	b := make([]byte, header.TCPMinimumSize)
	from, to := tcpip.AddrFromSlice(src.Addr().AsSlice()), tcpip.AddrFromSlice(dst.Addr().AsSlice())
	sum := header.PseudoHeaderChecksum(proto, from, to, uint16(len(b)))
	switch proto {
	case tcpProto:
		tcp := header.TCP(b)
		tcp.Encode(&header.TCPFields{
			SrcPort: src.Port(), DstPort: dst.Port(), SeqNum: 1000, DataOffset: header.TCPMinimumSize,
			Flags: header.TCPFlagSyn, WindowSize: 65535,
		})
		tcp.SetChecksum(^tcp.CalculateChecksum(sum))
	case udpProto:
		udp := header.UDP(b)
		udp.Encode(&header.UDPFields{SrcPort: src.Port(), DstPort: dst.Port(), Length: uint16(len(b))})
		udp.SetChecksum(^udp.CalculateChecksum(checksum.Checksum(udp.Payload(), sum)))
	case icmpProto:
		icmp := header.ICMPv4(b)
		icmp.SetType(header.ICMPv4Echo)
		icmp.SetIdent(src.Port())
		icmp.SetChecksum(^checksum.Checksum(icmp, 0))
	case icmp6Proto:
		icmp := header.ICMPv6(b)
		icmp.SetType(header.ICMPv6EchoRequest)
		icmp.SetIdent(src.Port())
		icmp.SetChecksum(header.ICMPv6Checksum(header.ICMPv6ChecksumParams{Header: icmp, Src: from, Dst: to}))
	}
	return ipFrame(proto, src.Addr(), dst.Addr(), b)
}

// ipPacket is a packet of either version.
type ipPacket struct {
	src, dst tcpip.Address
	proto    tcpip.TransportProtocolNumber
	payload  []byte
}

// ipOf reads the packet that begins b. The rest of one that an ICMP error quotes is missing.
func ipOf(b []byte) ipPacket {
	switch {
	case len(b) >= header.IPv4MinimumSize && b[0]>>4 == 4:
		ip := header.IPv4(b)
		return ipPacket{ip.SourceAddress(), ip.DestinationAddress(), ip.TransportProtocol(), b[ip.HeaderLength():]}
	case len(b) >= header.IPv6MinimumSize && b[0]>>4 == 6:
		ip := header.IPv6(b)
		return ipPacket{ip.SourceAddress(), ip.DestinationAddress(), tcpip.TransportProtocolNumber(ip.NextHeader()), b[header.IPv6MinimumSize:]}
	}
	return ipPacket{} // ARP
}

// answer waits for what comes back for a packet: "rst", "syn-ack", "udp",
// "echo", "unreachable N" with ICMP's code, or "nothing".
func (r *root) answer(sent []byte, wait time.Duration) string {
	ip := ipOf(sent[header.EthernetMinimumSize:])
	port := binary.BigEndian.Uint16(ip.payload)
	timeout := time.After(wait)
	for {
		var frame []byte
		select {
		case frame = <-r.frames:
		case <-timeout:
			return "nothing"
		}
		got := ipOf(frame[header.EthernetMinimumSize:])
		b := got.payload
		if got.dst != ip.src || got.src != ip.dst {
			continue
		}
		switch got.proto {
		case tcpProto:
			tcp := header.TCP(b)
			if tcp.DestinationPort() != port {
				continue
			}
			if tcp.Flags().Contains(header.TCPFlagRst) {
				return "rst"
			}
			return "syn-ack"
		case udpProto:
			if header.UDP(b).DestinationPort() == port {
				return "udp"
			}
		case icmpProto, icmp6Proto:
			switch b[0] {
			case byte(header.ICMPv4EchoReply), byte(header.ICMPv6EchoReply):
				if got.proto == ip.proto {
					return "echo"
				}
			case byte(header.ICMPv4DstUnreachable), byte(header.ICMPv6DstUnreachable):
				quoted := ipOf(b[header.ICMPv4MinimumSize:])
				if quoted.dst == ip.dst && binary.BigEndian.Uint16(quoted.payload) == port {
					return fmt.Sprint("unreachable ", b[1])
				}
			}
		}
	}
}

const (
	tcpProto  = header.TCPProtocolNumber
	udpProto  = header.UDPProtocolNumber
	icmpProto = header.ICMPv4ProtocolNumber

	icmp6Proto = header.ICMPv6ProtocolNumber
)

var protoNames = map[tcpip.TransportProtocolNumber]string{tcpProto: "tcp", udpProto: "udp", icmpProto: "icmp", icmp6Proto: "icmp"}

// TestRootsTricks: whatever root in the VM sends, no connection to the host is
// even tried, and each attempt is answered at once.
func TestRootsTricks(t *testing.T) {
	// A service of the host on all its addresses, and on loopback's second.
	var hostPorts []uint16
	for _, at := range []string{"0.0.0.0:0", "127.0.0.2:0"} {
		l, err := net.Listen("tcp4", at)
		if err != nil {
			t.Fatal(err)
		}
		serveTCP(t, l, func(c net.Conn) { t.Errorf("%s was reached from %s", c.LocalAddr(), c.RemoteAddr()) })
		hostPorts = append(hostPorts, l.Addr().(*net.TCPAddr).AddrPort().Port())
	}
	var mu sync.Mutex
	var dialled []string
	s := newStack(t, usernet.Config{
		DialOut: func(_ context.Context, network string, to netip.AddrPort) (net.Conn, error) {
			mu.Lock()
			dialled = append(dialled, network+" "+to.String())
			mu.Unlock()
			return nil, errors.New("not in this test")
		},
		DialDNS: func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("not in this test") },
	})
	r := newRoot(t, s)

	type trick struct {
		name     string
		src, dst string
		port     uint16
		want     map[tcpip.TransportProtocolNumber]string
	}
	refused := map[tcpip.TransportProtocolNumber]string{tcpProto: "rst", udpProto: "unreachable 3", icmpProto: "unreachable 13"}
	filtered := map[tcpip.TransportProtocolNumber]string{tcpProto: "unreachable 13", udpProto: "unreachable 13", icmpProto: "unreachable 13"}
	silent := map[tcpip.TransportProtocolNumber]string{tcpProto: "nothing", udpProto: "nothing", icmpProto: "nothing"}
	gateway := map[tcpip.TransportProtocolNumber]string{tcpProto: "rst", udpProto: "unreachable 3", icmpProto: "echo"}
	guest := vmnet.Guest.String()
	tricks := []trick{
		{"loopback", guest, "127.0.0.1", hostPorts[0], filtered},
		{"loopback's second", guest, "127.0.0.2", hostPorts[1], filtered},
		{"zero", guest, "0.0.0.0", hostPorts[0], filtered},
		{"this network", guest, "0.0.0.1", hostPorts[0], filtered},
		{"metadata", guest, "169.254.169.254", 80, refused},
		{"container credentials", guest, "169.254.170.2", 80, refused},
		{"Alibaba's metadata", guest, "100.100.100.200", 80, refused},
		{"Azure's wire server", guest, "168.63.129.16", 32526, refused},
		{"Oracle's metadata", guest, "192.0.0.192", 80, refused},
		{"link-local", guest, "169.254.1.1", 22, refused},
		{"gateway's port 80", guest, "192.0.2.1", 80, gateway},
		{"gateway's port 22", guest, "192.0.2.1", 22, gateway},
		{"gateway with a host's port", guest, "192.0.2.1", hostPorts[0], gateway},
		{"DHCP by TCP", guest, "192.0.2.1", 68, gateway},
		{"host.docker.internal", guest, "192.0.2.254", hostPorts[0], gateway},
		{"host.docker.internal's DNS", guest, "192.0.2.254", 53, gateway},
		{"neighbour", guest, "192.0.2.77", 80, refused},
		{"itself", guest, guest, 22, filtered},
		{"network address", guest, "192.0.2.0", 80, filtered},
		{"broadcast", guest, "255.255.255.255", 80, silent},
		{"directed broadcast", guest, "192.0.2.255", 80, silent},
		{"multicast", guest, "239.255.255.250", 1900, silent},
		{"spoofed source", "10.1.2.3", "198.51.100.7", 80, filtered},
		{"spoofed neighbour", "192.0.2.3", "198.51.100.7", 80, filtered},
		{"spoofed gateway", "192.0.2.1", "198.51.100.7", 80, filtered},
		{"spoofed source for DNS", "10.1.2.3", "192.0.2.1", 53, filtered},
		{"spoofed loopback", "127.0.0.1", "192.0.2.1", 53, silent},
		{"spoofed loopback to the host", "127.0.0.1", "127.0.0.1", hostPorts[0], silent},
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		// TEST-NET-1 belongs to documentation, but there are hosts in it.
		if p := netip.MustParsePrefix(a.String()); p.Addr().Is4() && !p.Addr().IsLoopback() && !vmnet.Network.Contains(p.Addr()) {
			tricks = append(tricks, trick{"host's " + p.String(), guest, p.Addr().String(), hostPorts[0], refused})
		}
	}
	from := uint16(20000)
	var silences []func()
	for _, trick := range tricks {
		for proto, want := range trick.want {
			from++
			frame := r.packet(proto, netip.AddrPortFrom(netip.MustParseAddr(trick.src), from),
				netip.AddrPortFrom(netip.MustParseAddr(trick.dst), trick.port))
			if want == "nothing" {
				silences = append(silences, func() { r.WriteFrame(frame) })
				continue
			}
			r.WriteFrame(frame)
			if got := r.answer(frame, 5*time.Second); got != want {
				t.Errorf("%s, %s: %s, want %s", trick.name, protoNames[proto], got, want)
			}
		}
	}
	// What is dropped in silence is followed by something that is answered.
	for _, send := range silences {
		send()
	}
	frame := r.packet(icmpProto, netip.AddrPortFrom(vmnet.Guest, 1), netip.AddrPortFrom(vmnet.Gateway, 0))
	r.WriteFrame(frame)
	if got := r.answer(frame, 5*time.Second); got != "echo" {
		t.Errorf("the gateway: %s", got)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(dialled) != 0 {
		t.Errorf("dialled %q", dialled)
	}
	counted := s.Status().Refused
	for _, reason := range []string{"loopback address", "cloud metadata address", "address of the VM's own network", "source is not the VM's address"} {
		if counted[reason] == 0 {
			t.Errorf("not counted: %s; have %v", reason, counted)
		}
	}
}

// The control of TestRootsTricks: the same guest reaches what it may.
func TestRootsAllowed(t *testing.T) {
	server := localTCP(t, echo)
	s := newStack(t, usernet.Config{DialOut: dialTo(server)})
	r := newRoot(t, s)
	frame := r.packet(tcpProto, netip.AddrPortFrom(vmnet.Guest, 30000), netip.MustParseAddrPort(outside+":80"))
	r.WriteFrame(frame)
	if got := r.answer(frame, 5*time.Second); got != "syn-ack" {
		t.Errorf("got %s", got)
	}
}

// An address that the host gets between the check and the dial is refused
// after the dial, before a byte has passed.
func TestRecheckAfterDial(t *testing.T) {
	ended := make(chan int, 1)
	server := localTCP(t, func(c net.Conn) {
		b, _ := io.ReadAll(c)
		ended <- len(b)
	})
	var dialled atomic.Bool
	s := newStack(t, usernet.Config{DialOut: func(ctx context.Context, network string, a netip.AddrPort) (net.Conn, error) {
		dialled.Store(true)
		return dialTo(server)(ctx, network, a)
	}})
	s.SetHost(func(netip.Addr) bool { return dialled.Load() })
	g := plug(t, s, usernettest.Options{})
	if _, err := g.Dial(testContext(t), "tcp", outside+":80"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("got %v", err)
	}
	if n := <-ended; n != 0 {
		t.Errorf("%d bytes reached the host", n)
	}
	if n := s.Status().Refused["address of the host"]; n != 1 {
		t.Errorf("refused: %d", n)
	}
}

func TestARP(t *testing.T) {
	s := newStack(t, usernet.Config{})
	r := newRoot(t, s)
	for _, c := range []struct {
		sender, target string
		answered       bool
	}{
		{"0.0.0.0", "192.0.2.2", false}, // address conflict detection
		{"192.0.2.2", "192.0.2.2", false},
		{"192.0.2.2", "10.0.0.1", false},
		{"192.0.2.2", "192.0.2.77", true},
		{"192.0.2.2", "192.0.2.254", true},
		{"192.0.2.2", "192.0.2.1", true},
	} {
		frame := make([]byte, header.EthernetMinimumSize+header.ARPSize)
		header.Ethernet(frame).Encode(&header.EthernetFields{
			SrcAddr: tcpip.LinkAddress(r.MAC()), DstAddr: header.EthernetBroadcastAddress, Type: header.ARPProtocolNumber,
		})
		arp := header.ARP(frame[header.EthernetMinimumSize:])
		arp.SetIPv4OverEthernet()
		arp.SetOp(header.ARPRequest)
		copy(arp.HardwareAddressSender(), r.MAC())
		copy(arp.ProtocolAddressSender(), netip.MustParseAddr(c.sender).AsSlice())
		copy(arp.ProtocolAddressTarget(), netip.MustParseAddr(c.target).AsSlice())
		r.WriteFrame(frame)
		if !c.answered {
			continue // an answer to it would meet the next question
		}
		if got := r.arp(5 * time.Second); got == nil || got.Op() != header.ARPReply || netip.AddrFrom4([4]byte(got.ProtocolAddressSender())).String() != c.target {
			t.Errorf("%s: answered with %x", c.target, got)
		}
	}
}

// arp waits for the next frame of ARP; nil: none comes.
func (r *root) arp(wait time.Duration) header.ARP {
	for timeout := time.After(wait); ; {
		select {
		case frame := <-r.frames:
			if header.Ethernet(frame).Type() == header.ARPProtocolNumber {
				return header.ARP(frame[header.EthernetMinimumSize:])
			}
		case <-timeout:
			return nil
		}
	}
}

func TestOffline(t *testing.T) {
	s := newStack(t, usernet.Config{Policy: &egress.Policy{Offline: true}, DialOut: func(context.Context, string, netip.AddrPort) (net.Conn, error) {
		t.Error("something was dialled")
		return nil, errors.New("offline")
	}})
	r := newRoot(t, s)
	to := netip.MustParseAddrPort(outside + ":80")
	for proto, want := range map[tcpip.TransportProtocolNumber]string{tcpProto: "rst", udpProto: "unreachable 3"} {
		frame := r.packet(proto, netip.AddrPortFrom(vmnet.Guest, 30000), to)
		r.WriteFrame(frame)
		if got := r.answer(frame, 5*time.Second); got != want {
			t.Errorf("%s: %s, want %s", protoNames[proto], got, want)
		}
	}
	if n := s.Status().Refused["the VM is offline"]; n != 2 {
		t.Errorf("refused: %d", n)
	}
	// The way in stays open.
	guestTCP(t, r.Guest, 22, echo)
	c, err := s.Dial(testContext(t), "tcp", "192.0.2.2:22")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	roundTrip(t, c, []byte("hello"))
}
