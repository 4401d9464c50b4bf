package audit

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// dumps is how often to ask for a listing that changes while the kernel lists it.
const dumps = 5

// dump asks the kernel for a list until it gets a consistent one.
func dump[T any](list func() ([]T, error)) ([]T, error) {
	var err error
	for range dumps {
		var all []T
		all, err = list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, err
		}
	}
	return nil, err
}

// network reads links, addresses, routes and rules (rtnetlink(7)).
func network() ([]Part, error) {
	kernel, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	defer kernel.Close()
	links, err := dump(kernel.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	out := []Part{{Name: PartLinks}, {Name: PartAddresses}, {Name: PartRoutes}, {Name: PartRules}}
	for _, l := range links {
		out[0].Lines = append(out[0].Lines, linkLine(l, names))
	}
	addrs, err := dump(func() ([]netlink.Addr, error) { return kernel.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		if line := addrLine(a, names); line != "" {
			out[1].Lines = append(out[1].Lines, line)
		}
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := dump(func() ([]netlink.Route, error) {
			return kernel.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, r := range routes {
			if line := routeLine(r, family, names); line != "" {
				out[2].Lines = append(out[2].Lines, line)
			}
		}
		rules, err := dump(func() ([]netlink.Rule, error) { return kernel.RuleList(family) })
		if err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EAFNOSUPPORT) {
			return nil, fmt.Errorf("list routing rules: %w", err)
		}
		for _, r := range rules {
			out[3].Lines = append(out[3].Lines, ruleLine(r, family))
		}
	}
	for i := range out {
		slices.Sort(out[i].Lines)
	}
	return out, nil
}

// linkLine describes a link, without properties that change with its cable.
func linkLine(l netlink.Link, names map[int]string) string {
	a := l.Attrs()
	state := "down"
	if a.Flags&net.FlagUp != 0 {
		state = "up"
	}
	line := fmt.Sprintf("%s type %s %s mtu %d", a.Name, l.Type(), state, a.MTU)
	if a.MasterIndex != 0 {
		line += " master " + name(a.MasterIndex, names)
	}
	if a.Promisc > 0 {
		line += " promiscuous"
	}
	return line
}

// addrLine describes an address without its lifetime. It is "" for IPv6's temporary addresses
// (RFC 8981), which come and go.
func addrLine(a netlink.Addr, names map[int]string) string {
	if a.IPNet == nil || a.IP.To4() == nil && a.Flags&unix.IFA_F_TEMPORARY != 0 {
		return ""
	}
	line := fmt.Sprintf("%s dev %s", a.IPNet, name(a.LinkIndex, names))
	if a.Peer != nil && a.Peer.String() != a.IPNet.String() {
		line += " peer " + a.Peer.String()
	}
	return line
}

// routeLine describes a route. It is "" for the routes that the kernel keeps for each address:
// the address has its own line.
func routeLine(r netlink.Route, family int, names map[int]string) string {
	if r.Protocol == unix.RTPROT_REDIRECT || r.Table == unix.RT_TABLE_LOCAL && r.Protocol == unix.RTPROT_KERNEL {
		return ""
	}
	dst := "default"
	if r.Dst != nil {
		if ones, _ := r.Dst.Mask.Size(); ones > 0 || !r.Dst.IP.IsUnspecified() {
			dst = r.Dst.String()
		}
	}
	b := &strings.Builder{}
	fmt.Fprintf(b, "%s %s", inet(family), dst)
	if kind, known := routeTypes[r.Type]; known {
		b.WriteString(" type " + kind)
	}
	if r.Gw != nil {
		b.WriteString(" via " + r.Gw.String())
	}
	if r.Via != nil {
		b.WriteString(" via " + r.Via.String())
	}
	for _, hop := range r.MultiPath {
		fmt.Fprintf(b, " hop via %v dev %s", hop.Gw, name(hop.LinkIndex, names))
	}
	if r.LinkIndex != 0 {
		b.WriteString(" dev " + name(r.LinkIndex, names))
	}
	if r.Src != nil {
		b.WriteString(" src " + r.Src.String())
	}
	if r.Priority != 0 {
		fmt.Fprintf(b, " metric %d", r.Priority)
	}
	if r.Table != unix.RT_TABLE_MAIN {
		b.WriteString(" table " + table(r.Table))
	}
	fmt.Fprintf(b, " proto %v", r.Protocol)
	return b.String()
}

// routeTypes are the types of routes (rtnetlink(7)), without the usual one.
var routeTypes = map[int]string{
	unix.RTN_LOCAL: "local", unix.RTN_BROADCAST: "broadcast", unix.RTN_ANYCAST: "anycast", unix.RTN_MULTICAST: "multicast",
	unix.RTN_BLACKHOLE: "blackhole", unix.RTN_UNREACHABLE: "unreachable", unix.RTN_PROHIBIT: "prohibit",
	unix.RTN_THROW: "throw", unix.RTN_NAT: "nat",
}

// ruleLine describes a rule of ip-rule(8).
func ruleLine(r netlink.Rule, family int) string {
	b := &strings.Builder{}
	fmt.Fprintf(b, "%s %d:", inet(family), r.Priority)
	if r.Invert {
		b.WriteString(" not")
	}
	for _, f := range []struct {
		word  string
		value any
		there bool
	}{
		{"from", r.Src, r.Src != nil},
		{"to", r.Dst, r.Dst != nil},
		{"tos", r.Tos, r.Tos != 0},
		{"fwmark", fmt.Sprintf("%#x", r.Mark), r.Mark != 0},
		{"mask", mask(r.Mask), r.Mask != nil && r.Mark != 0},
		{"iif", r.IifName, r.IifName != ""},
		{"oif", r.OifName, r.OifName != ""},
		{"ipproto", r.IPProto, r.IPProto != 0},
		{"sport", r.Sport, r.Sport != nil},
		{"dport", r.Dport, r.Dport != nil},
		{"uidrange", r.UIDRange, r.UIDRange != nil},
		{"suppress_prefixlength", r.SuppressPrefixlen, r.SuppressPrefixlen >= 0},
		{"goto", r.Goto, r.Goto > 0},
		{"lookup", table(r.Table), r.Table != 0},
	} {
		if f.there {
			fmt.Fprintf(b, " %s %v", f.word, f.value)
		}
	}
	return b.String()
}

// table returns the kernel's name of a routing table, or its number.
func table(n int) string {
	switch n {
	case unix.RT_TABLE_LOCAL:
		return "local"
	case unix.RT_TABLE_MAIN:
		return "main"
	case unix.RT_TABLE_DEFAULT:
		return "default"
	}
	return strconv.Itoa(n)
}

func mask(m *uint32) string {
	if m == nil {
		return ""
	}
	return fmt.Sprintf("%#x", *m)
}

func inet(family int) string {
	if family == netlink.FAMILY_V6 {
		return "inet6"
	}
	return "inet"
}

// name returns the name of a link.
func name(index int, names map[int]string) string {
	if n := names[index]; n != "" {
		return n
	}
	return fmt.Sprintf("#%d", index)
}
