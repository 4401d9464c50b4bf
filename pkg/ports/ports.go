// Package ports gives the ports that containers publish in a VM their sockets on this
// host: on 127.0.0.1 and ::1, on the project's own loopback address, and, while an
// exposure lasts, on an address that others reach.
//
// What is wanted is pure ([Plan]); a [Table] makes the sockets so. It relays TCP and
// UDP over a dial function that it is given, holds ports for containers that are about
// to start, and names who has a port that is taken. It imports neither guest, vm,
// usernet nor dockerproxy.
//
// A port that cannot be had is a state that [Table.Report] shows and that is tried
// again, not an error; only [Table.Reserve] fails, with a [*TakenError].
package ports

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"github.com/moby/moby/api/types/network"
)

// Protocols that are relayed.
const (
	TCP = "tcp"
	UDP = "udp"
)

// Who gets the shared addresses 127.0.0.1 and ::1.
const (
	PreferShared = "shared" // this project wants them: a clash there is an error
	PreferOwn    = "own"    // its own address is enough: a clash there is a note
)

// Published is a port that a running container publishes in the VM.
type Published struct {
	Container string     // name
	ID        string     // of the container
	Protocol  string     // "tcp", "udp" or "sctp"
	Port      uint16     // the container's own
	IP        netip.Addr // address in the VM that it is published on; invalid: all
	HostPort  uint16     // port in the VM that it is published on
}

// VM is where a VM's published ports are dialled.
type VM struct {
	Addr     netip.Addr // the VM's address: reaches what is published on all addresses
	Loopback netip.Addr // stands for the VM's 127.0.0.1
	// SSH is the TCP port that no container can publish, because the VM's own sshd has it;
	// 0: there is none.
	SSH uint16
}

// Line is a published port with its counterpart on the host.
type Line struct {
	Container string
	ID        string
	Protocol  string
	Port      uint16         // the container's own
	HostPort  uint16         // on the host
	Target    netip.AddrPort // to dial in the VM; invalid: it cannot be reached
	Why       string         // it cannot be reached
}

// route is a line without its container's name, which can change under way.
func (l Line) route() Line {
	l.Container = ""
	return l
}

// Plan turns what is published into lines, in a fixed order. The mapping says which
// ports have another number on the host. A port that the engine lists once for IPv4 and
// once for IPv6 is one line.
func Plan(published []Published, vm VM, mapping map[uint16]uint16) []Line {
	type port struct {
		id, protocol    string
		port, published uint16
	}
	reached, known := map[port]bool{}, map[Line]bool{}
	var lines []Line
	add := func(p Published, target netip.Addr, why string) {
		key := port{p.ID, p.Protocol, p.Port, p.HostPort}
		if p.HostPort == 0 || !target.IsValid() && reached[key] {
			return
		}
		l := Line{Container: p.Container, ID: p.ID, Protocol: p.Protocol, Port: p.Port, HostPort: Mapped(p.HostPort, mapping), Why: why}
		if target.IsValid() {
			reached[key] = true
			l.Target = netip.AddrPortFrom(target, p.HostPort)
		}
		if !known[l] {
			known[l] = true
			lines = append(lines, l)
		}
	}
	for _, p := range published {
		if target := vm.target(p); target.IsValid() {
			add(p, target, "")
		}
	}
	for _, p := range published {
		switch {
		case p.Protocol != TCP && p.Protocol != UDP:
			add(p, netip.Addr{}, fmt.Sprintf("%s is not carried to the host, only TCP and UDP are", p.Protocol))
		case !vm.target(p).IsValid() && p.IP.Is6() && !p.IP.Is4In6():
			add(p, netip.Addr{}, "it is published for IPv6 alone, which the VM's network does not carry")
		case !vm.target(p).IsValid():
			add(p, netip.Addr{}, fmt.Sprintf("it is published on %s, which only the VM itself reaches", p.IP))
		}
	}
	slices.SortStableFunc(lines, func(a, b Line) int {
		return cmp.Or(cmp.Compare(a.Container, b.Container), cmp.Compare(a.ID, b.ID), cmp.Compare(a.Port, b.Port),
			cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.HostPort, b.HostPort), a.Target.Compare(b.Target))
	})
	return lines
}

// How many ports of the host a project may have.
const (
	DefaultMost = 256
	MaxMost     = 4096
)

// maxBeyond is how many lines are kept that have no port.
const maxBeyond = 100

// number is what a line takes of the host: a port of one protocol, on up to three
// addresses.
type number struct {
	protocol string
	port     uint16
}

func (l Line) number() number { return number{l.Protocol, l.HostPort} }

// limit lets a project have so many ports of the host, of which those that are open stay.
// Lines that get none say why, and of those only some are kept; more is how many are not.
func limit(lines []Line, most int, open map[number]bool) (kept []Line, more int) {
	granted := map[number]bool{}
	for _, wanted := range []bool{true, false} {
		for _, l := range lines {
			if l.Target.IsValid() && open[l.number()] == wanted && len(granted) < most {
				granted[l.number()] = true
			}
		}
	}
	beyond := 0
	for _, l := range lines {
		if l.Target.IsValid() && !granted[l.number()] {
			l.Target = netip.AddrPort{}
			l.Why = fmt.Sprintf("a project may have %d ports of this host; for more: %s", most, raise(most))
		}
		if !l.Target.IsValid() {
			if beyond++; beyond > maxBeyond {
				more++
				continue
			}
		}
		kept = append(kept, l)
	}
	return kept, more
}

// raise says how to have more ports.
func raise(most int) string {
	return fmt.Sprintf("[ports] most = %d in devvm.toml, then devvm up", min(MaxMost, max(1, 2*most)))
}

// target is the address to dial for a published port, invalid if there is none.
func (vm VM) target(p Published) netip.Addr {
	ip := p.IP.Unmap()
	switch {
	case p.Protocol != TCP && p.Protocol != UDP:
		return netip.Addr{}
	case !ip.IsValid(), ip == netip.IPv4Unspecified(), ip == vm.Addr:
		return vm.Addr
	case ip == loopback4:
		return vm.Loopback
	}
	return netip.Addr{}
}

// Mapped is the port on the host of a port that is published in the VM.
func Mapped(port uint16, mapping map[uint16]uint16) uint16 {
	if host, ok := mapping[port]; ok {
		return host
	}
	return port
}

// The shared addresses.
var (
	loopback4 = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	loopback6 = netip.IPv6Loopback()
)

// Want is a port that a container is going to publish.
type Want struct {
	Protocol string
	HostPort uint16 // in the VM
}

// Wants are the ports whose numbers are known before the container starts, and how many
// there are whose numbers are not: the engine is to choose them, freely or from a range.
// bindings are HostConfig.PortBindings.
func Wants(bindings network.PortMap, vm VM) (list []Want, chosen int) {
	known := map[Want]bool{}
	for port, wishes := range bindings {
		for _, b := range wishes {
			protocol, reached := vm.reaches(port, b)
			n, err := strconv.ParseUint(b.HostPort, 10, 16)
			_, _, isRange := parseRange(b.HostPort)
			w := Want{Protocol: protocol, HostPort: uint16(n)}
			switch {
			case !reached || known[w]:
			case err == nil && n > 0:
				known[w] = true
				list = append(list, w)
			case err == nil || b.HostPort == "" || isRange:
				chosen++
			}
		}
	}
	slices.SortFunc(list, func(a, b Want) int {
		return cmp.Or(cmp.Compare(a.HostPort, b.HostPort), cmp.Compare(a.Protocol, b.Protocol))
	})
	return list, chosen
}

// Key is a socket of the host.
type Key struct {
	Protocol string
	Addr     netip.AddrPort
}

// String names the socket as people write it: "127.0.0.1:8080/tcp".
func (k Key) String() string { return k.Addr.String() + "/" + k.Protocol }

// shared tells whether all projects want the address.
func (k Key) shared() bool { return k.Addr.Addr() == loopback4 || k.Addr.Addr() == loopback6 }

// keys are the sockets of a port of this host alone.
func keys(protocol string, port uint16, own netip.Addr) []Key {
	list := []Key{
		{protocol, netip.AddrPortFrom(loopback4, port)},
		{protocol, netip.AddrPortFrom(loopback6, port)},
	}
	if own.IsValid() {
		list = append(list, Key{protocol, netip.AddrPortFrom(own, port)})
	}
	return list
}

// assign says which line each socket serves. extra are further addresses of a line.
// Two lines can want one socket, by a mapping or when containers publish one port on
// two addresses of the VM: the line that has it keeps it, else the first one gets it.
func assign(lines []Line, own netip.Addr, extra func(Line) []netip.Addr, have map[Key]Line) map[Key]Line {
	want := map[Key]Line{}
	for _, l := range lines {
		if !l.Target.IsValid() {
			continue
		}
		list := keys(l.Protocol, l.HostPort, own)
		if extra != nil {
			for _, a := range extra(l) {
				list = append(list, Key{l.Protocol, netip.AddrPortFrom(a, l.HostPort)})
			}
		}
		for _, k := range list {
			if _, taken := want[k]; !taken || have[k].route() == l.route() {
				want[k] = l
			}
		}
	}
	return want
}

// diff says which sockets to close and which to open so that those that there are
// become those that are wanted, each list in a fixed order. A socket whose line is
// another one now is in both: its connections belong to the former.
func diff(have, want map[Key]Line) (shut, open []Key) {
	for k, l := range have {
		if w, ok := want[k]; !ok || w.route() != l.route() {
			shut = append(shut, k)
		}
	}
	for k, l := range want {
		if h, ok := have[k]; !ok || h.route() != l.route() {
			open = append(open, k)
		}
	}
	order := func(a, b Key) int {
		return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Protocol, b.Protocol))
	}
	slices.SortFunc(shut, order)
	slices.SortFunc(open, order)
	return shut, open
}

// OwnAddress derives a project's own loopback address from the hash of its identity.
// It lies in 127.64.0.0/10, away from what other programs take of 127.0.0.0/8, and never
// ends in 0 or 255. Linux has all of 127.0.0.0/8 without set-up. Of a hundred projects
// two share one with a chance of 1 in 800: their ports can then clash.
func OwnAddress(identity []byte) netip.Addr {
	return netip.AddrFrom4([4]byte{127, 64 + identity[0]%64, identity[1], 1 + identity[2]%254})
}
