package usernet_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/devvm/devvm/pkg/condition"
	"github.com/devvm/devvm/pkg/egress"
	"github.com/devvm/devvm/pkg/usernet"
	"github.com/devvm/devvm/pkg/usernet/usernettest"
	"github.com/devvm/devvm/pkg/vmnet"
)

// TestIPv6: IPv6 leaves under the same rule and policy as IPv4, and a VM has a way out by it
// while its host has. The VM is this machine's kernel, in a namespace of its own behind a tap
// device.
func TestIPv6(t *testing.T) {
	runInNamespace(t, "TestIPv6InNamespace")
}

func TestIPv6InNamespace(t *testing.T) {
	if os.Getenv("USERNET_TEST_NAMESPACE") != "host" {
		t.Skip("runs within TestIPv6")
	}
	if _, err := os.Stat("/proc/net/if_inet6"); err != nil {
		t.Skip("no IPv6 on this machine")
	}
	startOutside(t)
	if err := os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 0"), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp6", at("::")) // the host's services, on all its addresses
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go echoServer(l)
	s := newStack(t, usernet.Config{})
	r := newRoot(t, s)
	// The guest's card is known by what comes from it.
	query, err := new(dns.Msg).SetQuestion("host.docker.internal.", dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	r.WriteFrame(udpFrame(netip.AddrPortFrom(vmnet.Guest, 5), netip.MustParseAddrPort("192.0.2.1:53"), query))

	// Without a default route of the host's the VM is told of none, and what it tries fails at once.
	if life := r.advert(t); life != 0 || s.Status().IPv6 {
		t.Errorf("a route for %d s, and the host has none", life)
	}
	r.wants(t, "no route", tcpProto, at("2001:db8::7"), "unreachable 3")
	r.wants(t, "no route", udpProto, at("2001:db8::7"), "unreachable 4")
	r.wants(t, "no route", icmp6Proto, at("2001:db8::7"), "unreachable 3")
	// The host's own link is another matter.
	r.wants(t, "outside", tcpProto, at(outsideAddr6), "syn-ack")
	r.wants(t, "outside", udpProto, at(outsideAddr6), "udp")
	r.wants(t, "outside", icmp6Proto, at(outsideAddr6), "echo")
	if n := s.Status().Refused; len(n) != 0 {
		t.Errorf("refused: %v", n)
	}

	route := &netlink.Route{Dst: prefix("::/0"), Gw: net.ParseIP(outsideAddr6)}
	if err := netlink.RouteAdd(route); err != nil {
		t.Fatal(err)
	}
	// A unique local address is none that others answer to.
	if s.HasRoute6(t.Context()) {
		t.Error("a host with a unique local address alone has a way out")
	}
	if err := up("veth0", "2001:db8:77::1/64"); err != nil {
		t.Fatal(err)
	}
	if life := r.advert(t); life == 0 || !s.Status().IPv6 {
		t.Error("the VM is not told that there is a route")
	}

	// Never the host, whatever it is called.
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		address, tcp, udp, ping string
		change                  func() error
	}{
		{hostAddr6, "rst", "unreachable 4", "unreachable 1", nil},
		{"fd88::1", "rst", "unreachable 4", "unreachable 1", func() error {
			return netlink.AddrAdd(lo, &netlink.Addr{IPNet: prefix("fd88::1/128"), Flags: unix.IFA_F_NODAD})
		}},
		{"fd99::3:4", "rst", "unreachable 4", "unreachable 1", func() error { // AnyIP
			return netlink.RouteAdd(&netlink.Route{Dst: prefix("fd99::/64"), LinkIndex: lo.Attrs().Index, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL})
		}},
		{"::1", "unreachable 1", "unreachable 1", "unreachable 1", nil},
	} {
		if step.change != nil {
			if err := step.change(); err != nil {
				t.Fatalf("%s: %v", step.address, err)
			}
		}
		c, err := net.Dial("tcp", at(step.address)) // the control
		for deadline := time.Now().Add(10 * time.Second); errors.Is(err, syscall.ENETUNREACH) && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond) // the kernel is about to add the address's route
			c, err = net.Dial("tcp", at(step.address))
		}
		if err != nil {
			t.Fatalf("%s: the host itself cannot reach it: %v", step.address, err)
		}
		echoes(t, c)
		c.Close()
		r.wants(t, "the host", tcpProto, at(step.address), step.tcp)
		r.wants(t, "the host", udpProto, at(step.address), step.udp)
		r.wants(t, "the host", icmp6Proto, at(step.address), step.ping)
	}
	for _, address := range []string{linkLocal(t), "fe80::1", "64:ff9b::127.0.0.1", "64:ff9b:1:0:1::8.8.8.8", "::127.0.0.1", "fd64:6576:766d::1"} {
		r.wants(t, "no destination", tcpProto, at(address), "unreachable 1")
		r.wants(t, "no destination", udpProto, at(address), "unreachable 1")
	}
	if err := netlink.RouteAdd(&netlink.Route{
		Dst: prefix("10.99.0.0/16"), LinkIndex: lo.Attrs().Index, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST,
	}); err != nil {
		t.Fatal(err)
	}
	for _, address := range []string{"64:ff9b::" + hostAddr, "64:ff9b::10.99.3.4", "2002:a4d:1::1", "fd00:ec2::254"} {
		r.wants(t, "the host, or metadata, by another name", tcpProto, at(address), "rst")
		r.wants(t, "the host, or metadata, by another name", udpProto, at(address), "unreachable 4")
	}
	for _, source := range []string{outsideAddr6, hostAddr6, "fe80::2", "fd64:6576:766d::"} {
		r.wantsFrom(t, "forged", netip.MustParseAddr(source), tcpProto, at(outsideAddr6), "unreachable 1")
		r.wantsFrom(t, "forged", netip.MustParseAddr(source), icmp6Proto, at(outsideAddr6), "unreachable 1")
	}

	// The same policy and the same journal.
	s.SetPolicy(*policyOf(t, "[fd77::]/64:7", "["+hostAddr6+"]"))
	r.wants(t, "listed", tcpProto, at(outsideAddr6), "syn-ack")
	r.wants(t, "listed", udpProto, at(outsideAddr6), "udp")
	r.wants(t, "a port is no ping", icmp6Proto, at(outsideAddr6), "unreachable 1")
	r.wants(t, "listed, and the host", tcpProto, at(hostAddr6), "rst")
	r.wants(t, "not listed", tcpProto, at("2001:db8::7"), "rst")
	s.SetPolicy(egress.Policy{All: true})
	if !slices.ContainsFunc(s.Egress().Attempts, func(a vmnet.Attempt) bool { return a.Protocol == "icmp" && a.Allowed && a.Address == outsideAddr6 }) ||
		!slices.ContainsFunc(s.Egress().Attempts, func(a vmnet.Attempt) bool {
			return a.Protocol == "tcp" && !a.Allowed && a.Address == "2001:db8::7" && a.Port == 7
		}) {
		t.Errorf("%+v", s.Egress().Attempts)
	}

	// A guest of ever other addresses has no more of the host than there may be.
	for i := range 2000 {
		from := netip.MustParseAddr(fmt.Sprintf("fd64:6576:766d::%x:1", i+1))
		r.WriteFrame(udpFrame(netip.AddrPortFrom(from, 9), netip.MustParseAddrPort("["+outsideAddr6+"]"+echoPort), []byte("x")))
		r.WriteFrame(echo6(from, netip.MustParseAddr(outsideAddr6), uint16(i)))
	}
	r.wants(t, "after a flood", udpProto, at(outsideAddr6), "udp")
	if st := s.Status(); st.UDPFlows > 256 || st.Pings > 64 {
		t.Errorf("%d flows, %d pings", st.UDPFlows, st.Pings)
	}

	// An offline VM has no route, nor has one whose host lost its own.
	s.SetPolicy(egress.Policy{Offline: true})
	if life := r.advert(t); life != 0 {
		t.Error("an offline VM has a route")
	}
	s.SetPolicy(egress.Policy{All: true})
	if life := r.advert(t); life == 0 {
		t.Error("a VM that is offline no more has no route")
	}

	kernelGuest(t, route)
}

// kernelGuest is the part with a kernel. The host has a default route.
func kernelGuest(t *testing.T, route *netlink.Route) {
	s := newStack(t, usernet.Config{})
	k := startKernel(t, s)
	k.wants(t, "ping "+vmnet.Gateway.String(), "ok") // as a booting VM looks up names
	k.waits(t, "route", "ok")
	for _, network := range []string{"tcp", "udp"} {
		k.wants(t, network+" ["+outsideAddr6+"]"+echoPort, "ok")
	}
	k.wants(t, "large ["+outsideAddr6+"]"+echoPort, "ok")
	k.wants(t, "ping "+outsideAddr6, "ok")
	k.wants(t, "tcp ["+outsideAddr6+"]:9", "connection refused")
	k.wants(t, "udp ["+outsideAddr6+"]:9", "connection refused")
	k.wants(t, "tcp ["+hostAddr6+"]"+echoPort, "connection refused")
	k.wants(t, "udp ["+hostAddr6+"]"+echoPort, "connection refused")
	k.wants(t, "ping "+hostAddr6, "permission denied")
	k.wants(t, "tcp [::ffff:127.0.0.1]:9", "connection refused") // its own
	s.SetPolicy(*policyOf(t, "["+outsideAddr6+"]"))
	k.wants(t, "tcp ["+outsideAddr6+"]"+echoPort, "ok")
	k.wants(t, "tcp [2001:db8::7]"+echoPort, "connection refused")

	// The VM's route goes with the host's.
	if err := netlink.RouteDel(route); err != nil {
		t.Fatal(err)
	}
	s.SetPolicy(egress.Policy{All: true})
	k.wants(t, "tcp [2001:db8::7]"+echoPort, "no route to host", "network is unreachable")
	k.waits(t, "route", "none")
	k.wants(t, "tcp [2001:db8::7]"+echoPort, "network is unreachable")
	if err := netlink.RouteAdd(route); err != nil {
		t.Fatal(err)
	}
	k.waits(t, "route", "ok")
	k.wants(t, "tcp ["+outsideAddr6+"]"+echoPort, "ok")
}

// TestAdvertiseAgain: a VM that is plugged in again hears at once whether there is a route. It may
// have slept for longer than the last word holds.
func TestAdvertiseAgain(t *testing.T) {
	s := newStack(t, usernet.Config{})
	s.SetWayOut6(netip.MustParseAddr("2001:db8:77::1"))
	r := newRoot(t, s)
	r.WriteFrame(r.packet(udpProto, netip.AddrPortFrom(vmnet.Guest, 5), netip.MustParseAddrPort("192.0.2.1:9")))
	if life := r.advert(t); life == 0 {
		t.Error("the VM's first word is that there is no route")
	}
	r.Close()
	condition.Wait(t, "the VM is gone", func() bool { return !s.Status().Connected })
	r = newRoot(t, s)
	if life := r.advert(t); life == 0 {
		t.Error("there is no route any more")
	}
}

// linkLocal is the host's link-local address.
func linkLocal(t *testing.T) string {
	t.Helper()
	link, err := netlink.LinkByName("veth0")
	if err != nil {
		t.Fatal(err)
	}
	addrs, err := netlink.AddrList(link, netlink.FAMILY_V6)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if a.IP.IsLinkLocalUnicast() {
			return a.IP.String()
		}
	}
	t.Fatal("the host has no link-local address")
	return ""
}

// at is the echo port of an address.
func at(address string) string { return "[" + address + "]" + echoPort }

// echo6 makes an echo request.
func echo6(from, to netip.Addr, ident uint16) []byte {
	message := make([]byte, 16)
	message[0] = byte(header.ICMPv6EchoRequest)
	binary.BigEndian.PutUint16(message[4:], ident)
	return ipFrame(icmp6Proto, from, to, message)
}

// advert waits for a router advertisement to the guest's card, checks it, and returns for how
// many seconds there is a route.
func (r *root) advert(t *testing.T) uint16 {
	t.Helper()
	for timeout := time.After(20 * time.Second); ; {
		var frame []byte
		select {
		case frame = <-r.frames:
		case <-timeout:
			t.Fatal("no advertisement")
		}
		ip := ipOf(frame[header.EthernetMinimumSize:])
		if ip.proto != icmp6Proto || ip.payload[0] != byte(header.ICMPv6RouterAdvert) {
			continue
		}
		if to := header.Ethernet(frame).DestinationAddress(); to != tcpip.LinkAddress(usernettest.MAC) {
			t.Errorf("an advertisement went to %s", to)
		}
		advert := header.NDPRouterAdvert(header.ICMPv6(ip.payload).MessageBody())
		options, err := advert.Options().Iter(true)
		if err != nil {
			t.Fatal(err)
		}
		for {
			option, done, err := options.Next()
			if err != nil {
				t.Fatal(err)
			}
			if done {
				break
			}
			if p, ok := option.(header.NDPPrefixInformation); ok && (p.OnLinkFlag() || p.ValidLifetime() != advert.RouterLifetime() || p.PreferredLifetime() != p.ValidLifetime()) {
				t.Errorf("prefix %s, route %s", p, advert.RouterLifetime())
			}
		}
		return uint16(advert.RouterLifetime() / time.Second)
	}
}
