// Package subnet chooses addresses for the engine's networks that hide nothing of what this
// host reaches: a VM does not see the host's routes, and its engine would take a range of a
// LAN or VPN for its own.
//
// What to choose is pure; [HostRoutes] asks the kernel. It imports no other package of
// devvm. Where no choice is free of overlaps the first one stays, and [Clashes] says what it
// hides.
package subnet

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Pool is a range of addresses of which each network gets a part, as in
// default-address-pools of the engine's configuration.
type Pool struct {
	Base netip.Prefix `json:"base"`
	Size int          `json:"size"` // of a part, in bits of its prefix
}

// Pools are what an engine gives networks from, in this order. Docker's own bridge gets the
// first part.
type Pools []Pool

// plans are the choices, the best first. They are few, because each makes templates of its own.
var plans = []Pools{
	// As Docker does it, but for what comes after the first fifteen networks: Docker goes on
	// with 192.168.0.0/16, which most LANs are in. 198.18.0.0/15 is for benchmarks (RFC 2544).
	{
		pool("172.17.0.0/16", 16), pool("172.18.0.0/16", 16), pool("172.19.0.0/16", 16),
		pool("172.20.0.0/14", 16), pool("172.24.0.0/14", 16), pool("172.28.0.0/14", 16),
		pool("198.18.0.0/15", 24),
	},
	{pool("10.208.0.0/12", 20)},
	{pool("192.168.0.0/16", 24)},
	{pool("198.18.0.0/15", 24)},
}

func pool(base string, size int) Pool { return Pool{netip.MustParsePrefix(base), size} }

// Default is the choice for a host that has no route of its kind.
func Default() Pools { return slices.Clone(plans[0]) }

// docker are the pools of an engine that was told of none (ipamutils in libnetwork).
var docker = Pools{pool("172.16.0.0/12", 16), pool("192.168.0.0/16", 20)}

// Route is a range of addresses that this host reaches.
type Route struct {
	To   netip.Prefix `json:"to"`
	Link string       `json:"link"` // by which; empty: by several
}

// String names the route for people.
func (r Route) String() string {
	if r.Link == "" {
		return r.To.String()
	}
	return fmt.Sprintf("%s (%s)", r.To, r.Link)
}

// Choose returns what the engine is to give networks from. A VM that has pools keeps them while
// they overlap with no route; nil: it has none yet. The route is one that overlaps with the
// default, or with all.
func Choose(routes []Route, had Pools) (Pools, Route) {
	var why Route
	choices := plans
	if had != nil && slices.ContainsFunc(plans, had.equal) {
		choices = append([]Pools{had}, plans...)
	}
	for _, p := range choices {
		r, overlaps := p.Overlap(routes)
		if !overlaps {
			return slices.Clone(p), why
		}
		if why == (Route{}) {
			why = r
		}
	}
	return slices.Clone(choices[0]), why
}

func (p Pools) equal(q Pools) bool { return slices.Equal(p, q) }

// Overlap returns a route with which the pools overlap, if there is one.
func (p Pools) Overlap(routes []Route) (Route, bool) {
	for _, r := range routes {
		if slices.ContainsFunc(p, func(o Pool) bool { return o.Base.Overlaps(r.To) }) {
			return r, true
		}
	}
	return Route{}, false
}

// Settings are what an engine's configuration says of its networks' addresses.
type Settings struct {
	Pools  Pools          // nil: none, and the engine has its own
	Bridge []netip.Prefix // of Docker's own bridge
}

// Read takes the settings from an engine's configuration, as far as it is understood.
func Read(daemonJSON []byte) Settings {
	var d struct {
		Pools Pools  `json:"default-address-pools"`
		Bip   string `json:"bip"`
		Fixed string `json:"fixed-cidr"`
	}
	if err := json.Unmarshal(daemonJSON, &d); err != nil {
		return Settings{}
	}
	s := Settings{Pools: d.Pools}
	for _, text := range []string{d.Bip, d.Fixed} {
		if p, err := netip.ParsePrefix(text); err == nil {
			s.Bridge = append(s.Bridge, p.Masked())
		}
	}
	return s
}

// Own are the settings without what devvm has chosen.
func (s Settings) Own() Settings {
	if slices.ContainsFunc(plans, s.Pools.equal) {
		s.Pools = nil
	}
	return s
}

// Network is one of the engine's.
type Network struct {
	Name   string
	Subnet netip.Prefix
	// Asked says that whoever made the network asked for the subnet. Without it, nobody may
	// know.
	Asked bool
}

// Source is what gave a network its addresses: where to give it others.
type Source string

// The sources of addresses.
const (
	SourceDevvm  Source = "devvm"  // devvm's choice, which would be another one now
	SourcePools  Source = "pools"  // default-address-pools, or devvm has no other choice
	SourceBridge Source = "bridge" // what is said of Docker's own bridge: bip, fixed-cidr
	SourceSubnet Source = "subnet" // whoever made the network
)

// Clash is a network of the engine's that hides what this host reaches by a route.
type Clash struct {
	Network string       `json:"network"`
	Subnet  netip.Prefix `json:"subnet"`
	Route   Route        `json:"route"`
	Source  Source       `json:"source"`
}

// String says it in a sentence's part.
func (c Clash) String() string {
	return fmt.Sprintf("network %s (%s) hides %s of this host", c.Network, c.Subnet, c.Route)
}

// Overlaps lists the networks that overlap with a route, each with the first that does, and
// without the source.
func Overlaps(routes []Route, networks []Network) []Clash {
	var list []Clash
	for _, n := range networks {
		i := slices.IndexFunc(routes, func(r Route) bool { return r.To.Overlaps(n.Subnet) })
		if i >= 0 {
			list = append(list, Clash{Network: n.Name, Subnet: n.Subnet, Route: routes[i]})
		}
	}
	return list
}

// defaultBridge is the name of the engine's network that is there by itself.
const defaultBridge = "bridge"

// Clashes is [Overlaps], with the sources. now are the settings that the engine runs with, own
// are those that the user has for its next start.
func Clashes(routes []Route, networks []Network, now, own Settings) []Clash {
	next := own.Pools
	if next == nil {
		next, _ = Choose(routes, now.Pools)
	}
	list := Overlaps(routes, networks)
	for i, c := range list {
		asked := slices.ContainsFunc(networks, func(n Network) bool { return n.Name == c.Network && n.Subnet == c.Subnet && n.Asked })
		_, again := next.Overlap([]Route{c.Route})
		switch {
		case c.Network == defaultBridge && len(own.Bridge) > 0:
			list[i].Source = SourceDevvm
			if slices.ContainsFunc(own.Bridge, c.Route.To.Overlaps) {
				list[i].Source = SourceBridge
			}
		case c.Network != defaultBridge && (asked || !given(c.Subnet, now.Pools, own.Pools)):
			list[i].Source = SourceSubnet
		case again:
			list[i].Source = SourcePools
		default:
			list[i].Source = SourceDevvm
		}
	}
	return list
}

// given tells whether an engine can have given out a subnet by itself, with these pools or with
// devvm's choices of before.
func given(subnet netip.Prefix, pools ...Pools) bool {
	return slices.ContainsFunc(append(append(pools, docker), plans...), func(p Pools) bool {
		return slices.ContainsFunc(p, func(o Pool) bool { return o.Size == subnet.Bits() && o.Base.Contains(subnet.Addr()) })
	})
}

// leastBits is the length of the shortest prefix that counts: a shorter one is the way to
// everywhere, as VPNs have it in two halves or more, and not to somebody's network.
const leastBits = 8

// bridge is the name of one of Docker's own on this host, whose containers are not a LAN.
var bridge = regexp.MustCompile(`^(docker0|docker_gwbridge|br-[0-9a-f]{12})$`)

// counts tells whether a route leads to a network that a container may want to reach.
func counts(to netip.Prefix, link string) bool {
	return to.Addr().Is4() && to.Bits() >= leastBits && !to.Addr().IsLoopback() && !to.Addr().IsLinkLocalUnicast() &&
		!to.Addr().IsMulticast() && link != "lo" && !bridge.MatchString(link)
}

// HostRoutes returns the IPv4 networks that this host reaches now, by any of its routing tables.
func HostRoutes() ([]Route, error) {
	kernel, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	defer kernel.Close()
	var all []netlink.Route
	for range 5 { // they may change meanwhile, as when a VPN comes up; then some are better than none
		all, err = kernel.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_UNSPEC, Type: unix.RTN_UNICAST},
			netlink.RT_FILTER_TABLE|netlink.RT_FILTER_TYPE)
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list the host's routes: %w", err)
	}
	names := map[int]string{}
	var list []Route
	for _, r := range all {
		if r.Dst == nil || r.Flags&unix.RTNH_F_LINKDOWN != 0 {
			continue
		}
		addr, ok := netip.AddrFromSlice(r.Dst.IP)
		bits, _ := r.Dst.Mask.Size()
		to := netip.PrefixFrom(addr.Unmap(), bits).Masked()
		if !ok || !to.IsValid() {
			continue
		}
		name, known := names[r.LinkIndex]
		if !known && r.LinkIndex != 0 {
			if link, err := kernel.LinkByIndex(r.LinkIndex); err == nil {
				name = link.Attrs().Name
			}
			names[r.LinkIndex] = name
		}
		if next := (Route{to, name}); counts(to, name) && !slices.Contains(list, next) {
			list = append(list, next)
		}
	}
	return list, nil
}
