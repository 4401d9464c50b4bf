package usernet

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
)

func TestStaticRefusal(t *testing.T) {
	for _, c := range []struct {
		addr string
		want refusal
	}{
		{"198.51.100.7", allowed},
		{"8.8.8.8", allowed},
		{"10.0.0.1", allowed}, // a LAN or VPN; what of it is the host's own is not static
		{"172.17.0.2", allowed},
		{"192.168.1.1", allowed},
		{"100.64.0.1", allowed},
		{"192.0.0.171", allowed},
		{"2606:4700::1111", allowed},
		{"fd12:3456::1", allowed},

		{"0.0.0.0", refuseUnspecified}, // Linux connects it to loopback
		{"0.1.2.3", refuseUnspecified},
		{"::", refuseUnspecified},
		{"127.0.0.1", refuseLoopback},
		{"127.0.0.2", refuseLoopback},
		{"127.255.255.254", refuseLoopback},
		{"::1", refuseLoopback},
		{"169.254.0.1", refuseLinkLocal},
		{"fe80::1", refuseLinkLocal},
		{"fe80::1%eth0", refuseLinkLocal},
		{"fec0::1", refuseLinkLocal},
		{"224.0.0.251", refuseMulticast},
		{"239.255.255.250", refuseMulticast},
		{"ff02::fb", refuseMulticast},
		{"ff05::2", refuseMulticast},
		{"255.255.255.255", refuseBroadcast},
		{"169.254.169.254", refuseMetadata},
		{"169.254.170.2", refuseMetadata},
		{"100.100.100.200", refuseMetadata},
		{"168.63.129.16", refuseMetadata},
		{"192.0.0.192", refuseMetadata},
		{"fd00:ec2::254", refuseMetadata},
		{"fd20:ce::254", refuseMetadata},
		{"fd00:c1::a9fe:a9fe", refuseMetadata},
		{"fd00:42::42", refuseMetadata},
		{"fd00:a9fe:a9fe::1", refuseMetadata},
		{"fd00:100::100:200", refuseMetadata},
		{"192.0.2.0", refuseVMNetwork},
		{"192.0.2.1", refuseVMNetwork},
		{"192.0.2.2", refuseVMNetwork},
		{"192.0.2.77", refuseVMNetwork},
		{"192.0.2.254", refuseVMNetwork},
		{"192.0.2.255", refuseVMNetwork},

		// The same addresses in IPv6's clothes.
		{"::ffff:127.0.0.1", refuseLoopback},
		{"::ffff:0.0.0.0", refuseUnspecified},
		{"::ffff:169.254.169.254", refuseMetadata},
		{"::ffff:192.0.2.1", refuseVMNetwork},
		{"::ffff:8.8.8.8", allowed},
		{"::127.0.0.1", refuseLoopback},
		{"64:ff9b::127.0.0.1", refuseLoopback},
		{"64:ff9b::169.254.169.254", refuseMetadata},
		{"64:ff9b::8.8.8.8", allowed},
		{"::ffff:0:127.0.0.1", refuseLoopback},
		{"2002:7f00:0001::1", refuseLoopback},
		{"2002:a9fe:a9fe::", refuseMetadata},
		{"64:ff9b:1::127.0.0.1", refuseLoopback},
		{"64:ff9b:1::8.8.8.8", allowed},
		{"64:ff9b:1:0:1::8.8.8.8", refuseTranslation},
		{"64:ff9b:1:7f00:0:100::", refuseTranslation}, // 127.0.0.1 where the whole /48 translates (RFC 6052, 2.2)
		{"64:ff9b:1:ffff:ffff:ffff:ffff:ffff", refuseTranslation},
		{"2001:0:808:808::80ff:fffe", refuseLoopback}, // Teredo, of 127.0.0.1
		{"fe80::1", refuseLinkLocal},
		{"fd64:6576:766d::2", refuseVMNetwork},
		{"fd64:6576:766d:1::2", allowed},
		{"fd00::1", allowed},
	} {
		if got := staticRefusal(netip.MustParseAddr(c.addr)); got != c.want {
			t.Errorf("%s: %q, want %q", c.addr, got, c.want)
		}
	}
	if got := staticRefusal(netip.Addr{}); got != refuseInvalid {
		t.Errorf("no address: %q", got)
	}
}

func TestHostRefusal(t *testing.T) {
	host := []netip.Prefix{
		netip.MustParsePrefix("127.0.0.1/8"),
		netip.MustParsePrefix("192.168.7.5/24"),
		netip.MustParsePrefix("10.9.9.9/32"),
		netip.MustParsePrefix("10.8.0.2/31"),
		netip.MustParsePrefix("2001:db8::5/64"),
	}
	for _, c := range []struct {
		addr  string
		route routeKind
		want  refusal
	}{
		{"192.168.7.6", routeUnicast, allowed},
		{"192.168.7.5", routeLocal, refuseHost},
		{"192.168.7.5", routeUnicast, refuseHost}, // a rule routes it away: still ours
		{"192.168.7.5", routeNone, refuseHost},
		{"10.9.9.9", routeUnicast, refuseHost},
		{"192.168.7.255", routeUnicast, refuseBroadcast},
		{"192.168.7.0", routeUnicast, refuseBroadcast},
		{"10.8.0.3", routeUnicast, allowed},     // the other end of a /31
		{"203.0.113.9", routeLocal, refuseHost}, // ip route add local 203.0.113.0/24 dev lo
		{"203.0.113.255", routeBroadcast, refuseBroadcast},
		{"203.0.113.9", routeMulticast, refuseMulticast},
		{"203.0.113.9", routeNone, allowed}, // the dial says that there is no way
		{"2001:db8::5", routeUnicast, refuseHost},
		{"2001:db8::6", routeUnicast, allowed},
		{"::ffff:192.168.7.5", routeUnicast, refuseHost},
		{"2001:db8:1::9", routeLocal, refuseHost},
	} {
		if got := hostRefusal(netip.MustParseAddr(c.addr), hostView{Addrs: host, Route: c.route}); got != c.want {
			t.Errorf("%s, route %d: %q, want %q", c.addr, c.route, got, c.want)
		}
	}
}

// An address that holds one of IPv4 is judged by the host's view of both.
func TestCheckHostEmbedded(t *testing.T) {
	var asked []netip.Addr
	look := func(_ context.Context, a netip.Addr) (hostView, error) {
		asked = append(asked, a)
		host := hostView{Addrs: []netip.Prefix{netip.MustParsePrefix("192.168.7.5/24")}}
		switch a.String() {
		case "203.0.113.9", "64:ff9b::cb00:710a": // ip route add local 203.0.113.9 dev lo
			host.Route = routeLocal
		case "203.0.113.255":
			host.Route = routeBroadcast
		case "203.0.113.11":
			host.Route = routeMulticast
		}
		return host, nil
	}
	for _, c := range []struct {
		addr string
		want refusal
	}{
		{"64:ff9b::192.168.7.6", allowed},
		{"64:ff9b::192.168.7.5", refuseHost},
		{"64:ff9b::192.168.7.255", refuseBroadcast},
		{"64:ff9b:1::192.168.7.5", refuseHost},
		{"2002:c0a8:0705::1", refuseHost},
		{"2001:0:808:808::3f57:f8fa", refuseHost}, // Teredo, of 192.168.7.5
		{"64:ff9b::203.0.113.9", refuseHost},
		{"64:ff9b:1::203.0.113.9", refuseHost},
		{"::ffff:0:203.0.113.9", refuseHost},
		{"2002:cb00:7109::1", refuseHost},
		{"2001:0:808:808::34ff:8ef6", refuseHost}, // Teredo, of 203.0.113.9
		{"64:ff9b::203.0.113.255", refuseBroadcast},
		{"64:ff9b::203.0.113.11", refuseMulticast},
		{"64:ff9b::203.0.113.10", refuseHost}, // itself
		{"64:ff9b::203.0.113.12", allowed},
	} {
		if got, err := checkHost(t.Context(), netip.MustParseAddr(c.addr), look); got != c.want || err != nil {
			t.Errorf("%s: %q, %v, want %q", c.addr, got, err, c.want)
		}
	}
	asked = nil
	if _, err := checkHost(t.Context(), netip.MustParseAddr("2001:db8::7"), look); err != nil || len(asked) != 1 {
		t.Errorf("asked for %v, %v", asked, err)
	}
}

// The rule holds when the kernel does not answer.
func TestCheckHostFailsClosed(t *testing.T) {
	broken := errors.New("no netlink")
	for _, c := range []struct{ addr, fails string }{
		{"198.51.100.7", "198.51.100.7"},
		{"64:ff9b::198.51.100.7", "64:ff9b::198.51.100.7"},
		{"64:ff9b::198.51.100.7", "198.51.100.7"},
	} {
		r, err := checkHost(t.Context(), netip.MustParseAddr(c.addr), func(_ context.Context, a netip.Addr) (hostView, error) {
			if a == netip.MustParseAddr(c.fails) {
				return hostView{}, broken
			}
			return hostView{}, nil
		})
		if r != refuseUnknown || !errors.Is(err, broken) {
			t.Errorf("%s without a view of %s: %q, %v", c.addr, c.fails, r, err)
		}
	}
}

// Each address that this host has is refused by asking the kernel.
func TestLookHost(t *testing.T) {
	kernel, err := openKernel()
	if err != nil {
		t.Fatal(err)
	}
	defer kernel.Close()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err != nil {
			t.Fatal(err)
		}
		host, err := lookHost(kernel, p.Addr())
		if err != nil {
			t.Fatal(err)
		}
		if r := hostRefusal(p.Addr(), host); r != refuseHost {
			t.Errorf("%s: %q, want %q", p.Addr(), r, refuseHost)
		}
		if host.Route != routeLocal {
			t.Errorf("%s: route %d, want local", p.Addr(), host.Route)
		}
	}
}

func TestConnectedToHost(t *testing.T) {
	us, them := netip.MustParseAddr("192.168.7.5"), netip.MustParseAddr("198.51.100.7")
	for _, c := range []struct {
		local, remote, asked netip.Addr
		want                 bool
	}{
		{us, them, them, false},
		{us, us, us, true},
		{them, them, them, true},
		{us, netip.MustParseAddr("127.0.0.1"), them, true},
		{us, netip.Addr{}, them, true},
		{netip.Addr{}, them, them, true},
	} {
		if got := connectedToHost(c.local, c.remote, c.asked); got != c.want {
			t.Errorf("%s to %s, asked for %s: %v", c.local, c.remote, c.asked, got)
		}
	}
}
