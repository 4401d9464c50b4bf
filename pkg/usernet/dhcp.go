package usernet

import (
	"errors"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/devvm/devvm/pkg/vmnet"
)

const (
	dhcpServerPort = 67
	dhcpClientPort = 68
	dhcpLease      = 24 * time.Hour
)

// serveDHCP gives the one guest its one address, whatever its link address.
func (s *Stack) serveDHCP(id stack.TransportEndpointID, b []byte) {
	answer, to, err := dhcpAnswer(b, sourceIn(id), s.cfg.MTU)
	if err == nil {
		err = s.answer(id, to, answer)
	}
	if err != nil {
		s.log.Debug("DHCP request not answered", "error", err)
	}
}

// dhcpAnswer answers a datagram that came to a DHCP server, and says where that goes.
func dhcpAnswer(b []byte, from netip.AddrPort, mtu int) ([]byte, netip.AddrPort, error) {
	request, err := dhcpv4.FromBytes(b)
	if err != nil {
		return nil, netip.AddrPort{}, err
	}
	reply, err := dhcpReply(request, mtu)
	if err != nil {
		return nil, netip.AddrPort{}, err
	}
	return reply.ToBytes(), dhcpDestination(from, reply), nil
}

// errNoReply says that a DHCP message needs no answer.
var errNoReply = errors.New("message needs no answer")

// dhcpReply answers one request.
func dhcpReply(request *dhcpv4.DHCPv4, mtu int) (*dhcpv4.DHCPv4, error) {
	if request.OpCode != dhcpv4.OpcodeBootRequest {
		return nil, errNoReply
	}
	options := []dhcpv4.Modifier{
		dhcpv4.WithServerIP(vmnet.Gateway.AsSlice()),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(vmnet.Gateway.AsSlice())),
	}
	var answer dhcpv4.MessageType
	switch t := request.MessageType(); t {
	case dhcpv4.MessageTypeDiscover:
		answer = dhcpv4.MessageTypeOffer
	case dhcpv4.MessageTypeRequest:
		if other := request.ServerIdentifier(); other != nil && !other.Equal(vmnet.Gateway.AsSlice()) {
			return nil, errNoReply // it took another server's offer
		}
		answer = dhcpv4.MessageTypeAck
		if !wantsGuestAddress(request) {
			answer = dhcpv4.MessageTypeNak
		}
	case dhcpv4.MessageTypeInform:
		answer = dhcpv4.MessageTypeAck
	default:
		return nil, errNoReply
	}
	options = append(options, dhcpv4.WithMessageType(answer))
	if answer != dhcpv4.MessageTypeNak {
		options = append(options,
			dhcpv4.WithNetmask(net.CIDRMask(vmnet.Network.Bits(), 32)),
			dhcpv4.WithRouter(vmnet.Gateway.AsSlice()),
			dhcpv4.WithDNS(vmnet.Gateway.AsSlice()),
			dhcpv4.WithOption(dhcpv4.Option{Code: dhcpv4.OptionInterfaceMTU, Value: dhcpv4.Uint16(mtu)}),
		)
		if request.MessageType() != dhcpv4.MessageTypeInform {
			options = append(options, dhcpv4.WithYourIP(vmnet.Guest.AsSlice()), dhcpv4.WithLeaseTime(uint32(dhcpLease/time.Second)))
		}
	}
	return dhcpv4.NewReplyFromRequest(request, options...)
}

// wantsGuestAddress says whether a request is for the address that there is.
func wantsGuestAddress(request *dhcpv4.DHCPv4) bool {
	want := request.RequestedIPAddress()
	if want == nil {
		want = request.ClientIPAddr // renewal
	}
	return want.Equal(vmnet.Guest.AsSlice())
}

// dhcpDestination is where an answer goes (RFC 2131, 4.1): to the client if it
// has its address, else to all; the one client of this network hears both.
func dhcpDestination(from netip.AddrPort, reply *dhcpv4.DHCPv4) netip.AddrPort {
	if from.Addr() == vmnet.Guest && reply.MessageType() != dhcpv4.MessageTypeNak {
		return from
	}
	return netip.AddrPortFrom(broadcast4, dhcpClientPort)
}
