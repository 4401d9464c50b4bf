package usernet

import (
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/devvm/devvm/pkg/usernet/internal/socket"
	"github.com/devvm/devvm/pkg/vmnet"
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
	fd, err := pingSocket(vmnet.Gateway)
	if err != nil {
		return false
	}
	_ = unix.Close(fd)
	return true
}

// pingSocket opens one of the version of an address.
func pingSocket(to netip.Addr) (int, error) {
	family, proto := unix.AF_INET, unix.IPPROTO_ICMP
	if to.Is6() {
		family, proto = unix.AF_INET6, unix.IPPROTO_ICMPV6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
	if err != nil {
		return 0, os.NewSyscallError("socket", err)
	}
	return fd, nil
}

// dialPing opens a ping socket that is deaf to this host. Its datagrams are ICMP messages.
func dialPing(to netip.Addr) (net.Conn, error) {
	fd, err := pingSocket(to)
	if err != nil {
		return nil, err
	}
	var peer unix.Sockaddr
	if to.Is6() {
		peer = &unix.SockaddrInet6{Addr: to.As16(), Port: pingPort}
	} else {
		peer = &unix.SockaddrInet4{Addr: to.As4(), Port: pingPort}
	}
	f := os.NewFile(uintptr(fd), "ping")
	defer f.Close()
	raw, err := f.SyscallConn()
	if err == nil {
		err = deafen(raw)
	}
	if err == nil {
		err = os.NewSyscallError("connect", unix.Connect(fd, peer))
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

// echoRequest and echoReply are the types of a ping and of its answer in the version of an
// address.
func echoRequest(a netip.Addr) byte {
	if a.Is6() {
		return byte(header.ICMPv6EchoRequest)
	}
	return byte(header.ICMPv4Echo)
}

func echoReply(a netip.Addr) byte {
	if a.Is6() {
		return byte(header.ICMPv6EchoReply)
	}
	return byte(header.ICMPv4EchoReply)
}

// ping takes an echo request of the guest's, on the goroutine that reads from the VM. The
// error says why it does not leave.
func (o *outbound) ping(p packet) error {
	id := stack.TransportEndpointID{
		LocalAddress: socket.Address(p.dst), RemoteAddress: socket.Address(p.src),
		RemotePort: header.ICMPv4(p.payload).Ident(), // at the same place in both
	}
	f := o.pings.find(id)
	if f == nil {
		var err error
		if f, err = o.openUDP(o.pings, pingNetwork, id); err != nil {
			return err
		}
	}
	o.sendUDP(f, p.payload)
	return nil
}

// sendEcho sends the guest the answer to an echo request, by its own identifier.
func sendEcho(route *stack.Route, id stack.TransportEndpointID, message []byte) {
	from, to := fromNet(id.LocalAddress), fromNet(id.RemoteAddress)
	if len(message) < header.ICMPv4MinimumSize || len(message) > vmnet.MaxDatagram || message[0] != echoReply(to) {
		return
	}
	header.ICMPv4(message).SetIdent(id.RemotePort)
	setICMPChecksum(message, from, to)
	proto := icmpProtocol(to)
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: header.ICMPv4MinimumSize + int(route.MaxHeaderLength()),
		Payload:            buffer.MakeWithData(message[header.ICMPv4MinimumSize:]),
	})
	defer p.DecRef()
	copy(p.TransportHeader().Push(header.ICMPv4MinimumSize), message)
	p.TransportProtocolNumber = proto
	_ = route.WritePacket(stack.NetworkHeaderParams{Protocol: proto, TTL: route.DefaultTTL(), TOS: stack.DefaultTOS}, p)
}

// quoteEcho is the start of an echo request, for an answer that quotes it. The sequence number
// is lost, and ping(8) goes by the identifier.
func quoteEcho(id stack.TransportEndpointID) []byte {
	from, to := fromNet(id.RemoteAddress), fromNet(id.LocalAddress)
	message := make([]byte, header.ICMPv4MinimumSize)
	message[0] = echoRequest(to)
	header.ICMPv4(message).SetIdent(id.RemotePort)
	setICMPChecksum(message, from, to)
	return append(ipHeader(icmpProtocol(to), from, to, defaultHops, len(message)), message...)
}
