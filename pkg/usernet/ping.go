package usernet

import (
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// Pings leave by the host's own ping sockets (icmp(7)), which many hosts let each user open
// (net.ipv4.ping_group_range). The kernel lets through nothing but echo requests and their
// answers, and gives them an identifier of its own. A flow is one destination and one
// identifier of the guest's; it is decided about, counted and cut like one of UDP. It has no
// port, so that only a rule of egress without one lets it out.

// pingNetwork is the name of pings for policy and log.
const pingNetwork = "icmp"

// manyPings bounds the flows of pings. The one that has been silent longest makes room.
const manyPings = 64

// pingPort means nothing to a ping socket, but without a port the kernel does not say to whom it
// is connected, and who does not say is not trusted (connectedToHost).
const pingPort = 7

// pingsAllowed tells whether this process may open ping sockets.
func pingsAllowed() bool {
	fd, err := pingSocket()
	if err != nil {
		return false
	}
	_ = unix.Close(fd)
	return true
}

func pingSocket() (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_ICMP)
	if err != nil {
		return 0, os.NewSyscallError("socket", err)
	}
	return fd, nil
}

// dialPing opens a ping socket that is deaf to this host. Its datagrams are ICMP messages.
func dialPing(to netip.Addr) (net.Conn, error) {
	fd, err := pingSocket()
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "ping")
	defer f.Close()
	raw, err := f.SyscallConn()
	if err == nil {
		err = deafen(raw)
	}
	if err == nil {
		err = os.NewSyscallError("connect", unix.Connect(fd, &unix.SockaddrInet4{Addr: to.As4(), Port: pingPort}))
	}
	if err != nil {
		return nil, fmt.Errorf("ping %s: %w", to, err)
	}
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("ping %s: %w", to, err)
	}
	return conn, nil
}

// isPing tells whether an IPv4 packet is a whole echo request.
func isPing(ip header.IPv4) bool {
	p := ip.Payload()
	return ip.TransportProtocol() == header.ICMPv4ProtocolNumber && !ip.More() && ip.FragmentOffset() == 0 &&
		len(p) >= header.ICMPv4MinimumSize && header.ICMPv4(p).Type() == header.ICMPv4Echo && header.ICMPv4(p).Code() == 0
}

// ping takes an echo request of the guest's, on the goroutine that reads from the VM. The
// error says why it does not leave.
func (o *outbound) ping(ip header.IPv4) error {
	message := ip.Payload()
	id := stack.TransportEndpointID{
		LocalAddress: ip.DestinationAddress(), RemoteAddress: ip.SourceAddress(), RemotePort: header.ICMPv4(message).Ident(),
	}
	f := o.pings.find(id)
	if f == nil {
		var err error
		if f, err = o.openUDP(o.pings, pingNetwork, id); err != nil {
			return err
		}
	}
	o.sendUDP(f, message)
	return nil
}

// sendEcho sends the guest the answer to an echo request, by its own identifier.
func sendEcho(route *stack.Route, ident uint16, message []byte) {
	if len(message) < header.ICMPv4MinimumSize || len(message) > maxDatagram || header.ICMPv4(message).Type() != header.ICMPv4EchoReply {
		return
	}
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: header.ICMPv4MinimumSize + int(route.MaxHeaderLength()),
		Payload:            buffer.MakeWithData(message[header.ICMPv4MinimumSize:]),
	})
	defer p.DecRef()
	h := header.ICMPv4(p.TransportHeader().Push(header.ICMPv4MinimumSize))
	p.TransportProtocolNumber = header.ICMPv4ProtocolNumber
	copy(h, message)
	h.SetIdent(ident)
	h.SetChecksum(0)
	h.SetChecksum(header.ICMPv4Checksum(h, p.Data().Checksum()))
	_ = route.WritePacket(stack.NetworkHeaderParams{
		Protocol: header.ICMPv4ProtocolNumber, TTL: route.DefaultTTL(), TOS: stack.DefaultTOS,
	}, p)
}

// quoteEcho is the start of an echo request, for an answer that quotes it. The sequence number
// is lost, and ping(8) goes by the identifier.
func quoteEcho(id stack.TransportEndpointID) []byte {
	quote := make([]byte, header.IPv4MinimumSize+header.ICMPv4MinimumSize)
	header.IPv4(quote).Encode(&header.IPv4Fields{
		TotalLength: uint16(len(quote)), TTL: 64, Protocol: uint8(header.ICMPv4ProtocolNumber),
		SrcAddr: id.RemoteAddress, DstAddr: id.LocalAddress,
	})
	icmp := header.ICMPv4(quote[header.IPv4MinimumSize:])
	icmp.SetType(header.ICMPv4Echo)
	icmp.SetIdent(id.RemotePort)
	icmp.SetChecksum(^checksum.Checksum(icmp, 0))
	return quote
}
