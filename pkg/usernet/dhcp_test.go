package usernet_test

import (
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/devvm/devvm/pkg/usernet"
	"github.com/devvm/devvm/pkg/usernet/usernettest"
	"github.com/devvm/devvm/pkg/vmnet"
)

func TestDHCP(t *testing.T) {
	s := newStack(t, usernet.Config{MTU: 4000})
	for _, mac := range []string{"52:54:00:12:34:56", "52:54:00:aa:bb:cc"} { // the address is the same for all
		hw, err := net.ParseMAC(mac)
		if err != nil {
			t.Fatal(err)
		}
		t.Run(mac, func(t *testing.T) { testDHCP(t, s, hw) })
	}
}

func testDHCP(t *testing.T, s *usernet.Stack, mac net.HardwareAddr) {
	g := plug(t, s, usernettest.Options{MAC: mac})
	c, err := g.ListenPacket(68)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// exchange sends a message as a client without an address does, and
	// returns the answer.
	exchange := func(m *dhcpv4.DHCPv4, err error) *dhcpv4.DHCPv4 {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		g.WriteFrame(broadcast(mac, m.ToBytes()))
		b := make([]byte, 1500)
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		n, from, err := c.ReadFrom(b)
		if err != nil {
			t.Fatal(err)
		}
		if from.String() != "192.0.2.1:67" {
			t.Errorf("answer from %s", from)
		}
		answer, err := dhcpv4.FromBytes(b[:n])
		if err != nil {
			t.Fatal(err)
		}
		return answer
	}
	lease := func(m *dhcpv4.DHCPv4) string {
		return fmt.Sprintf("%s %s/%s via %s dns %s mtu %x for %s from %s", m.MessageType(), m.YourIPAddr, net.IP(m.SubnetMask()),
			m.Router(), m.DNS(), m.Options.Get(dhcpv4.OptionInterfaceMTU), m.IPAddressLeaseTime(0), m.ServerIdentifier())
	}
	const terms = " 192.0.2.2/255.255.255.0 via [192.0.2.1] dns [192.0.2.1] mtu 0fa0 for 24h0m0s from 192.0.2.1"
	offer := exchange(dhcpv4.NewDiscovery(mac))
	if got := lease(offer); got != "OFFER"+terms {
		t.Errorf("offer: %s", got)
	}
	if got := lease(exchange(dhcpv4.NewRequestFromOffer(offer))); got != "ACK"+terms {
		t.Errorf("request: %s", got)
	}
	if got := lease(exchange(dhcpv4.NewRenewFromAck(offer))); got != "ACK"+terms {
		t.Errorf("renewal: %s", got)
	}
	elsewhere := dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.IPv4(10, 0, 0, 5)))
	if got := exchange(dhcpv4.New(dhcpv4.WithHwAddr(mac), dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest), elsewhere)); got.MessageType() != dhcpv4.MessageTypeNak {
		t.Errorf("an address of another network: %s", lease(got))
	}
	inform := exchange(dhcpv4.NewInform(mac, vmnet.Guest.AsSlice()))
	if inform.MessageType() != dhcpv4.MessageTypeAck || !inform.YourIPAddr.IsUnspecified() || inform.IPAddressLeaseTime(0) != 0 {
		t.Errorf("inform: %s", lease(inform))
	}
	// What needs no answer gets none, nonsense does no harm.
	for _, b := range [][]byte{nil, []byte("nonsense"), make([]byte, 1400)} {
		g.WriteFrame(broadcast(mac, b))
	}
	other, err := dhcpv4.NewRequestFromOffer(offer, dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IPv4(192, 0, 2, 9))))
	if err != nil {
		t.Fatal(err)
	}
	g.WriteFrame(broadcast(mac, other.ToBytes()))
	release, err := dhcpv4.NewReleaseFromACK(offer)
	if err != nil {
		t.Fatal(err)
	}
	g.WriteFrame(broadcast(mac, release.ToBytes()))
	if got := lease(exchange(dhcpv4.NewDiscovery(mac))); got != "OFFER"+terms {
		t.Errorf("after nonsense: %s", got)
	}
}

// broadcast makes the frame of a DHCP client that has no address.
func broadcast(mac net.HardwareAddr, payload []byte) []byte {
	size := header.IPv4MinimumSize + header.UDPMinimumSize + len(payload)
	frame := make([]byte, header.EthernetMinimumSize+size)
	header.Ethernet(frame).Encode(&header.EthernetFields{
		SrcAddr: tcpip.LinkAddress(mac), DstAddr: header.EthernetBroadcastAddress, Type: header.IPv4ProtocolNumber,
	})
	ip := header.IPv4(frame[header.EthernetMinimumSize:])
	ip.Encode(&header.IPv4Fields{
		TotalLength: uint16(size), TTL: 64, Protocol: uint8(header.UDPProtocolNumber), DstAddr: header.IPv4Broadcast,
	})
	ip.SetChecksum(^ip.CalculateChecksum())
	header.UDP(ip.Payload()).Encode(&header.UDPFields{SrcPort: 68, DstPort: 67, Length: uint16(header.UDPMinimumSize + len(payload))})
	copy(ip.Payload()[header.UDPMinimumSize:], payload)
	return frame
}
