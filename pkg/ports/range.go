package ports

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/network"
)

// Range is a wish for one port of several. The engine in the VM chooses it, and knows nothing
// of who has which port of this host.
type Range struct {
	Protocol    string
	First, Last uint16 // in the VM
}

// String writes the range as the Docker API does: "8180-8183", or "8180" for one port.
func (r Range) String() string {
	if r.First == r.Last {
		return strconv.Itoa(int(r.First))
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

// Len is how many ports the range has.
func (r Range) Len() int { return int(r.Last) - int(r.First) + 1 }

// has tells whether the range is about a port.
func (r Range) has(port uint16) bool { return r.First <= port && port <= r.Last }

// RangeBinding is a binding that lets the engine choose.
type RangeBinding struct {
	Port  network.Port // the container's own
	Index int          // among the bindings of that
	Range              // from which to choose
	// Free says that the binding names none, or only such as the project takes then.
	Free bool
}

// Ranges are the bindings that let the engine choose, from a range or freely, in a fixed order.
// own is the project's own address. See Wants.
func Ranges(bindings network.PortMap, vm VM, own netip.Addr) []RangeBinding {
	var list []RangeBinding
	for port, wishes := range bindings {
		for i, b := range wishes {
			protocol, reached := vm.reaches(port, b)
			r := RangeBinding{Port: port, Index: i, Range: Range{Protocol: protocol}}
			first, last := dynamic(own)
			switch b.HostPort {
			case "", "0":
				r.First, r.Last, r.Free = first, last, true
			default:
				var ok bool
				if r.First, r.Last, ok = parseRange(b.HostPort); !ok {
					continue
				}
				r.Free = first <= r.First && r.Last <= last
			}
			if reached && r.First > 0 && r.First <= r.Last && (protocol == TCP || protocol == UDP) {
				list = append(list, r)
			}
		}
	}
	slices.SortFunc(list, func(a, b RangeBinding) int {
		return cmp.Or(cmp.Compare(a.Port.String(), b.Port.String()), cmp.Compare(a.Index, b.Index))
	})
	return list
}

// reaches says which protocol a binding of a container's port is about, and whether what is
// published there is reached from this host.
func (vm VM) reaches(port network.Port, b network.PortBinding) (protocol string, ok bool) {
	protocol, ip := string(port.Proto()), b.HostIP
	if ip.Is6() && ip.IsUnspecified() {
		ip = netip.Addr{}
	}
	return protocol, vm.target(Published{Protocol: protocol, IP: ip}).IsValid()
}

// Ports that an engine chooses freely: Linux's own (ip_local_port_range in ip(7)), in parts.
const (
	firstDynamic = 32768
	lastDynamic  = 60999
	partDynamic  = 256
)

// dynamic is the part of these ports from which a project's engine chooses. All engines begin
// with the same number, and on this host only one of them can have it.
func dynamic(own netip.Addr) (first, last uint16) {
	const parts = (lastDynamic + 1 - firstDynamic) / partDynamic
	sum := 0
	for _, b := range own.AsSlice() {
		sum = (sum<<8 + int(b)) % parts
	}
	first = uint16(firstDynamic + sum*partDynamic)
	return first, first + partDynamic - 1
}

// parseRange reads a range from which the engine is to choose ("8000-8010").
func parseRange(s string) (first, last uint16, ok bool) {
	a, b, found := strings.Cut(s, "-")
	n, err1 := strconv.ParseUint(a, 10, 16)
	m, err2 := strconv.ParseUint(b, 10, 16)
	return uint16(n), uint16(m), found && err1 == nil && err2 == nil
}

// promiseTime is how long a part of a range counts as given to a container that is yet to start.
const promiseTime = time.Minute

// promise is a part of a range that a container was given, of which it will have one port. It
// ends when the container has it.
type promise struct {
	Range
	until time.Time
}

// Narrow finds the part of a range whose ports the project can have on this host. Of several
// parts it is the one with the most room. It is the whole range if all can be had, and the zero
// Range if none can. A container that is made with a part gets it by [Table.Promise]. taken is
// the first port that cannot, without its owner: see FindOwner. Of a long range it is enough to
// find as many ports as the project may have; MaxMost are tried.
func (t *Table) Narrow(r Range) (best Range, taken *TakenError) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.o.Now()
	t.promises = slices.DeleteFunc(t.promises, func(p promise) bool { return !now.Before(p.until) })
	var run Range
	var unused, room, mostUnused, most int // room is what is unused and not promised
	end := func() {
		for _, p := range t.promises {
			if run.Protocol == p.Protocol && run.has(p.First) {
				room--
			}
		}
		if run != (Range{}) && (best == Range{} || min(unused, 1) > min(mostUnused, 1) || min(unused, 1) == min(mostUnused, 1) && room > most) {
			best, most, mostUnused = run, room, unused
		}
		run, unused, room = Range{}, 0, 0
	}
	for n := int(r.First); n <= min(int(r.Last), int(r.First)+MaxMost-1); n++ {
		port := uint16(n)
		k, used, err := t.try(r.Protocol, Mapped(port, t.settings.Map))
		if err != nil {
			if taken == nil {
				taken = &TakenError{Key: k, Published: port, First: t.first, Own: t.o.Own, Err: err}
			}
			end()
			continue
		}
		if run == (Range{}) {
			run = Range{r.Protocol, port, port}
		}
		run.Last = port
		if !used {
			unused++
			room++
		}
		if room > t.settings.Most {
			break
		}
	}
	end()
	return best, taken
}

// Promise gives a container that is about to be made a part of a range.
func (t *Table) Promise(r Range) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.promises = append(t.promises, promise{r, t.o.Now().Add(promiseTime)})
}

// redeem ends the promises of containers that now have a port. The caller holds the lock.
func (t *Table) redeem(now []Published) {
	known := map[number]bool{} // a port can be there for IPv4 and for IPv6
	for _, p := range t.published {
		known[number{p.Protocol, p.HostPort}] = true
	}
	for _, p := range now {
		if known[number{p.Protocol, p.HostPort}] {
			continue
		}
		known[number{p.Protocol, p.HostPort}] = true
		i := slices.IndexFunc(t.promises, func(r promise) bool { return r.Protocol == p.Protocol && r.has(p.HostPort) })
		if i >= 0 {
			t.promises = slices.Delete(t.promises, i, i+1)
		}
	}
}

// FindOwner looks for who has the port.
func (t *Table) FindOwner(ctx context.Context, taken *TakenError) {
	taken.Owner = t.owner(ctx, taken.Key, taken.Err)
}

// try finds out whether the project can have a port of this host, and whether it has it in use
// or reserved. The caller holds the lock.
func (t *Table) try(protocol string, port uint16) (failed Key, used bool, err error) {
	for _, k := range keys(protocol, port, t.o.Own) {
		if slices.Contains(t.settings.Deny, port) {
			return k, false, &RefusedError{denied(port)}
		}
		if t.sockets[k] != nil {
			used = true
			continue
		}
		s, err := t.open(k)
		if err == nil {
			s.close()
		} else if t.blocks(k, err) {
			return k, false, err
		}
	}
	return Key{}, used, nil
}

// blocks tells whether a container may not have a port because one of its sockets fails.
func (t *Table) blocks(k Key, err error) bool {
	if _, ok := errors.AsType[*RefusedError](err); ok {
		return true
	}
	state := stateOf(err)
	return state != StateUnavailable && (state == StateDenied || t.must(k))
}
