package usernet_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/miekg/dns"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/devvm/devvm/pkg/usernet"
	"github.com/devvm/devvm/pkg/usernet/usernettest"
	"github.com/devvm/devvm/pkg/vmnet"
)

// FuzzFrames: whatever bytes come from QEMU, through the cable, the stack and what is
// behind it, nothing breaks and no forbidden address is dialled.
func FuzzFrames(f *testing.F) {
	at := func(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
	guest := at("192.0.2.2:40000")
	query, err := new(dns.Msg).SetQuestion("host.docker.internal.", dns.TypeA).Pack()
	if err != nil {
		f.Fatal(err)
	}
	discover, err := dhcpv4.NewDiscovery(usernettest.MAC)
	if err != nil {
		f.Fatal(err)
	}
	arp := header.ARP(make([]byte, header.ARPSize))
	arp.SetIPv4OverEthernet()
	arp.SetOp(header.ARPReply)
	copy(arp.HardwareAddressSender(), usernettest.MAC)
	copy(arp.ProtocolAddressSender(), vmnet.Guest.AsSlice())
	hello := ethernetFrame(header.ARPProtocolNumber, arp) // with it answers come at once
	fragment := udpFrame(guest, at("198.51.100.7:53"), make([]byte, 64))
	ip := header.IPv4(fragment[header.EthernetMinimumSize:])
	ip.SetFlagsFragmentOffset(header.IPv4FlagMoreFragments, 0)
	guest6, outside6 := at("[fd64:6576:766d::2]:40000"), at("[2001:db8::7]:80")
	echo6 := func(kind header.ICMPv6Type, rest ...byte) []byte {
		return ipFrame(header.ICMPv6ProtocolNumber, guest6.Addr(), outside6.Addr(), append([]byte{byte(kind), 0, 0, 0, 0, 1, 0, 1}, rest...))
	}
	discovery := func(kind header.ICMPv6Type, from, to string, rest []byte) []byte {
		frame := ipFrame(header.ICMPv6ProtocolNumber, netip.MustParseAddr(from), netip.MustParseAddr(to), append([]byte{byte(kind), 0, 0, 0, 0, 0, 0, 0}, rest...))
		header.IPv6(frame[header.EthernetMinimumSize:]).SetHopLimit(header.NDPHopLimit)
		return frame
	}
	for _, frames := range [][][]byte{
		{hello, tcpFrame(guest6, outside6, 1, 0, header.TCPFlagSyn, 65535, nil), tcpFrame(guest6, outside6, 2, 0, header.TCPFlagAck, 0, []byte("GET /"))},
		{hello, udpFrame(guest6, at("[2001:db8::7]:53"), []byte("x")), echo6(header.ICMPv6EchoRequest), echo6(header.ICMPv6PacketTooBig, make([]byte, 48)...)},
		{hello, tcpFrame(guest6, at("[::1]:22"), 1, 0, header.TCPFlagSyn, 65535, nil), tcpFrame(guest6, at("[64:ff9b::10.66.0.1]:22"), 1, 0, header.TCPFlagSyn, 65535, nil), tcpFrame(guest6, at("[::ffff:10.66.0.1]:22"), 1, 0, header.TCPFlagSyn, 65535, nil)},
		{hello, discovery(header.ICMPv6RouterSolicit, "::", "ff02::2", nil), discovery(header.ICMPv6NeighborSolicit, "fe80::2", "ff02::1:ff00:1", vmnet.Gateway6.AsSlice()), discovery(header.ICMPv6NeighborSolicit, "::", "ff02::1:ff00:1", vmnet.Gateway6.AsSlice())},
		{hello, ipFrame(44, guest6.Addr(), outside6.Addr(), append([]byte{17, 0, 0, 1, 0, 0, 0, 1}, make([]byte, 64)...)), ipFrame(0, guest6.Addr(), outside6.Addr(), append([]byte{6, 0, 1, 4, 0, 0, 0, 0}, make([]byte, 20)...))},
		{hello, tcpFrame(guest, at("198.51.100.7:80"), 1, 0, header.TCPFlagSyn, 65535, nil), tcpFrame(guest, at("198.51.100.7:80"), 2, 0, header.TCPFlagAck, 0, []byte("GET /"))},
		{hello, tcpFrame(guest, at("192.0.2.1:13"), 1, 0, header.TCPFlagSyn, 0, nil), tcpFrame(guest, at("192.0.2.1:53"), 1, 0, header.TCPFlagSyn, 0, nil)},
		{hello, udpFrame(guest, at("198.51.100.7:53"), []byte("x")), udpFrame(guest, at("198.51.100.7:53"), nil)},
		{hello, udpFrame(guest, at("192.0.2.1:53"), query), udpFrame(at("0.0.0.0:68"), at("255.255.255.255:67"), discover.ToBytes())},
		{hello, tcpFrame(guest, at("127.0.0.1:22"), 1, 0, header.TCPFlagSyn, 65535, nil), tcpFrame(guest, at("10.66.0.1:22"), 1, 0, header.TCPFlagSyn, 65535, nil), udpFrame(at("10.1.1.1:5"), at("169.254.169.254:80"), []byte("x"))},
		{hello, fragment, fragment, ipFrame(header.ICMPv4ProtocolNumber, vmnet.Guest, vmnet.Gateway, []byte{8, 0, 0, 0, 0, 1, 0, 1})},
	} {
		var stream []byte
		for _, frame := range frames {
			stream = append(binary.BigEndian.AppendUint32(stream, uint32(len(frame))), frame...)
		}
		f.Add(stream)
	}
	host := netip.MustParseAddr("10.66.0.1")
	f.Fuzz(func(t *testing.T, stream []byte) {
		var dials atomic.Int64
		s, err := usernet.New(usernet.Config{
			MaxFlows: 16,
			DialOut: func(_ context.Context, network string, to netip.AddrPort) (net.Conn, error) {
				if usernet.Forbidden(to.Addr()) || to.Addr() == host {
					t.Errorf("%s %s was dialled", network, to)
				}
				if dials.Add(1)%2 == 0 {
					return nil, syscall.ECONNREFUSED
				}
				return halfPair(network)
			},
			DialDNS: func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("no nameserver") },
		})
		if err != nil {
			t.Fatal(err)
		}
		s.SetHost(func(a netip.Addr) bool { return a == host })
		qemu, theirs := net.Pipe()
		served := make(chan error, 1)
		go func() { served <- s.Serve(t.Context(), theirs) }()
		go io.Copy(io.Discard, qemu)
		qemu.SetWriteDeadline(time.Now().Add(5 * time.Second))
		qemu.Write(stream) // an end in the middle, or too long a frame, ends it
		qemu.Close()
		<-served // broken framing is an error
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

// What a VM begins while its network ends is waited for, or does not begin: the race detector
// tells if it does both.
func TestCloseWhileFramesCome(t *testing.T) {
	var stream []byte
	for port := range uint16(64) {
		from := netip.AddrPortFrom(vmnet.Guest, 40000+port)
		for _, frame := range [][]byte{
			tcpFrame(from, netip.MustParseAddrPort("198.51.100.7:80"), 1, 0, header.TCPFlagSyn, 65535, nil),
			udpFrame(from, netip.MustParseAddrPort("198.51.100.7:53"), []byte("x")),
		} {
			stream = append(binary.BigEndian.AppendUint32(stream, uint32(len(frame))), frame...)
		}
	}
	for range 50 {
		s, err := usernet.New(usernet.Config{DialOut: func(context.Context, string, netip.AddrPort) (net.Conn, error) {
			return nil, syscall.ECONNREFUSED
		}})
		if err != nil {
			t.Fatal(err)
		}
		qemu, theirs := net.Pipe()
		served := make(chan error, 1)
		go func() { served <- s.Serve(t.Context(), theirs) }()
		go io.Copy(io.Discard, qemu)
		if _, err := qemu.Write(stream[:len(stream)/2]); err != nil {
			t.Fatal(err)
		}
		go qemu.Write(stream[len(stream)/2:])
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		<-served
		qemu.Close()
	}
}

// halfPair is a socket whose other end has gone.
func halfPair(network string) (net.Conn, error) {
	kind := syscall.SOCK_STREAM
	if network == "udp" {
		kind = syscall.SOCK_DGRAM
	}
	fds, err := syscall.Socketpair(syscall.AF_UNIX, kind|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	syscall.Close(fds[1])
	file := os.NewFile(uintptr(fds[0]), "pair")
	defer file.Close()
	return net.FileConn(file)
}
