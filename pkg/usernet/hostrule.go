package usernet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/vmnet"
)

// The first rule of this network: nothing that comes from the VM ever reaches
// the host itself. It is checked for each connection, before the dial and once
// more after it, against what the kernel says at that moment, and it is not
// configurable: the ports that devvm.toml opens are reached at [HostAlias] alone,
// which is no address of the host's. What an address is by its own nature stands in [staticRefusal]
// and needs no host; [hostRefusal] judges it by what the host is now. Addresses that
// the host's rules translate to its own are outside.go's matter.

// A refusal says why a destination is out of reach. The empty one allows.
type refusal string

const (
	allowed           refusal = ""
	refuseInvalid     refusal = "invalid address"
	refuseUnspecified refusal = "unspecified address"
	refuseLoopback    refusal = "loopback address"
	refuseLinkLocal   refusal = "link-local address"
	refuseMulticast   refusal = "multicast address"
	refuseBroadcast   refusal = "broadcast address"
	refuseMetadata    refusal = "cloud metadata address"
	refuseVMNetwork   refusal = "address of the VM's own network"
	refuseHost        refusal = "address of the host"
	refuseTranslated  refusal = "led to the host by its own rules"
	refuseTranslation refusal = "leads to an unknown IPv4 address"
	refuseUnknown     refusal = "host's addresses could not be read"
	refuseOffline     refusal = "the VM is offline"
	refuseEgress      refusal = "not in egress of devvm.toml"
	refuseHostPort    refusal = "not in host_ports of devvm.toml"
	refuseSource      refusal = "source is not the VM's address"
	refuseProtocol    refusal = "protocol is not carried"
	refusePing        refusal = vmnet.NoPing
	refuseLimit       refusal = "too many connections"
)

// metadata lists services of clouds that give out credentials to whoever asks
// from the right machine. Those in link-local ranges are refused anyway; they
// are named because the reason is worth more than the range.
var metadata = map[netip.Addr]bool{
	netip.MustParseAddr("169.254.169.254"): true, // AWS, Azure, Google, OpenStack, Oracle, …
	netip.MustParseAddr("169.254.170.2"):   true, // AWS ECS task credentials
	netip.MustParseAddr("169.254.170.23"):  true, // AWS EKS pod identity
	netip.MustParseAddr("100.100.100.200"): true, // Alibaba
	netip.MustParseAddr("168.63.129.16"):   true, // Azure's wire server
	netip.MustParseAddr("192.0.0.192"):     true, // Oracle
	netip.MustParseAddr("169.254.42.42"):   true, // Scaleway
	// The same of IPv6. OpenStack's is link-local.
	netip.MustParseAddr("fd00:ec2::254"):      true, // AWS
	netip.MustParseAddr("fd00:ec2::23"):       true, // AWS EKS pod identity
	netip.MustParseAddr("fd20:ce::254"):       true, // Google
	netip.MustParseAddr("fd00:c1::a9fe:a9fe"): true, // Oracle
	netip.MustParseAddr("fd00:42::42"):        true, // Scaleway
	netip.MustParseAddr("fd00:a9fe:a9fe::1"):  true, // Akamai (Linode)
	netip.MustParseAddr("fd00:100::100:200"):  true, // Alibaba
}

var (
	thisNetwork = netip.MustParsePrefix("0.0.0.0/8")
	broadcast4  = netip.MustParseAddr("255.255.255.255")
	siteLocal6  = netip.MustParsePrefix("fec0::/10") // deprecated, but kernels route it
	compatible6 = netip.MustParsePrefix("::/96")
	sixToFour   = netip.MustParsePrefix("2002::/16")
	teredo      = netip.MustParsePrefix("2001::/32")
	// A site translates with any part of localUse6 (RFC 8215), and where the IPv4 address is in
	// it depends on that part's length (RFC 6052, 2.2). Most take localNAT64.
	localUse6     = netip.MustParsePrefix("64:ff9b:1::/48")
	localNAT64    = netip.MustParsePrefix("64:ff9b:1::/96")
	translations6 = []netip.Prefix{ // the last 32 bits are an IPv4 address
		netip.MustParsePrefix("64:ff9b::/96"),
		localNAT64,
		netip.MustParsePrefix("::ffff:0:0:0/96"),
	}
)

// staticRefusal judges an address by itself. IPv6 forms that carry an IPv4
// address are judged by that one.
func staticRefusal(a netip.Addr) refusal {
	a = a.WithZone("").Unmap()
	switch {
	case !a.IsValid():
		return refuseInvalid
	case a.IsUnspecified(), thisNetwork.Contains(a):
		return refuseUnspecified
	case a.IsLoopback():
		return refuseLoopback
	case metadata[a]:
		return refuseMetadata
	case a.IsLinkLocalUnicast(), siteLocal6.Contains(a):
		return refuseLinkLocal
	case a.IsMulticast():
		return refuseMulticast
	case a == broadcast4:
		return refuseBroadcast
	case vmnet.Network.Contains(a), vmnet.Network6.Contains(a):
		return refuseVMNetwork
	case localUse6.Contains(a) && !localNAT64.Contains(a):
		return refuseTranslation
	}
	if v4, ok := embedded4(a); ok {
		return staticRefusal(v4)
	}
	return allowed
}

// embedded4 returns the IPv4 address within an IPv6 address of a transition
// mechanism.
func embedded4(a netip.Addr) (netip.Addr, bool) {
	if !a.Is6() {
		return netip.Addr{}, false
	}
	b := a.As16()
	if sixToFour.Contains(a) {
		return netip.AddrFrom4([4]byte(b[2:6])), true
	}
	if teredo.Contains(a) { // RFC 4380, 4
		return netip.AddrFrom4([4]byte{^b[12], ^b[13], ^b[14], ^b[15]}), true
	}
	for _, p := range append(translations6, compatible6) {
		if p.Contains(a) {
			return netip.AddrFrom4([4]byte(b[12:16])), true
		}
	}
	return netip.Addr{}, false
}

// routeKind is what the kernel's routing says of a destination.
type routeKind int

const (
	routeUnicast   routeKind = iota // leaves the host
	routeLocal                      // ends at the host, AnyIP included
	routeBroadcast                  // also directed broadcast
	routeMulticast
	routeNone // no route: the dial will say so
)

// hostView is what [hostRefusal] needs to know of the host, for one address.
type hostView struct {
	Addrs []netip.Prefix // of all interfaces, with their networks
	Route routeKind      // of the address in question
	From  netip.Addr     // what the host would send from, on that route; invalid: unknown
}

// hostRefusal judges an address by what the host is now. It says nothing of
// what [staticRefusal] refuses, nor of an IPv4 address within.
func hostRefusal(a netip.Addr, host hostView) refusal {
	a = a.WithZone("").Unmap()
	for _, p := range host.Addrs {
		own := p.Addr().WithZone("").Unmap()
		if own == a {
			return refuseHost
		}
		if a.Is4() && own.Is4() && p.Bits() < 31 && p.Masked().Contains(a) &&
			(a == lastAddr(p) || a == p.Masked().Addr()) {
			return refuseBroadcast // directed; the first address is its old form
		}
	}
	switch host.Route {
	case routeLocal:
		return refuseHost
	case routeBroadcast:
		return refuseBroadcast
	case routeMulticast:
		return refuseMulticast
	}
	return allowed
}

// lastAddr is the highest address of an IPv4 prefix.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	return netip.AddrFrom4(b)
}

// checkHost applies the whole first rule to one address, now, and to the IPv4
// address that it holds, if any: a translator, maybe the host itself, sends there
// what is sent to it. If the kernel does not answer, the address is refused.
func checkHost(ctx context.Context, a netip.Addr, look func(context.Context, netip.Addr) (hostView, error)) (refusal, error) {
	if r := staticRefusal(a); r != allowed {
		return r, nil
	}
	leads := []netip.Addr{a.WithZone("").Unmap()}
	if v4, ok := embedded4(leads[0]); ok {
		leads = append(leads, v4)
	}
	for _, to := range leads {
		host, err := look(ctx, to)
		if err != nil {
			return refuseUnknown, fmt.Errorf("look up %s on the host: %w", to, err)
		}
		if r := hostRefusal(to, host); r != allowed {
			return r, nil
		}
	}
	return allowed, nil
}

// lookTimeout bounds each answer of the kernel. The library's own limit is a
// minute, for which one lost answer would stop all new connections.
const lookTimeout = 2 * time.Second

// openKernel opens the socket on which lookHost asks (rtnetlink(7)).
func openKernel() (*netlink.Handle, error) {
	kernel, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	if err := kernel.SetSocketTimeout(lookTimeout); err != nil {
		kernel.Close()
		return nil, fmt.Errorf("set the netlink socket's time limit: %w", err)
	}
	return kernel, nil
}

// lookHost asks the kernel, once more if it does not answer.
func lookHost(kernel *netlink.Handle, a netip.Addr) (hostView, error) {
	host, err := askHost(kernel, a)
	if errors.Is(err, unix.EAGAIN) {
		host, err = askHost(kernel, a)
	}
	return host, err
}

// askHost asks the kernel: the addresses of all interfaces, and the route
// that a connection to a would take, which also finds `ip route add local …`.
func askHost(kernel *netlink.Handle, a netip.Addr) (hostView, error) {
	var host hostView
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		if family == netlink.FAMILY_V6 && a.Is4() {
			continue
		}
		// A dump that a change interrupts is still made of true entries, and
		// the route below is asked after it.
		addrs, err := kernel.AddrList(nil, family)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return hostView{}, fmt.Errorf("list addresses: %w", err)
		}
		for _, addr := range addrs {
			if ip, ok := netip.AddrFromSlice(addr.IP); ok {
				bits, _ := addr.Mask.Size()
				host.Addrs = append(host.Addrs, netip.PrefixFrom(ip.Unmap(), bits))
			}
		}
	}
	routes, err := kernel.RouteGet(net.IP(a.AsSlice()))
	switch {
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH),
		errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EINVAL):
		host.Route = routeNone // none, or of the types unreachable, prohibit, blackhole
		return host, nil
	case err != nil:
		return hostView{}, fmt.Errorf("look up route: %w", err)
	}
	for _, r := range routes {
		if from, ok := netip.AddrFromSlice(r.Src); ok {
			host.From = from
		}
		switch r.Type {
		case unix.RTN_LOCAL, unix.RTN_ANYCAST:
			host.Route = routeLocal
		case unix.RTN_BROADCAST:
			host.Route = routeBroadcast
		case unix.RTN_MULTICAST:
			host.Route = routeMulticast
		}
	}
	return host, nil
}
