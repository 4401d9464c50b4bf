package ports_test

import (
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/moby/moby/api/types/network"

	"github.com/devvm/devvm/pkg/ports"
)

func TestRanges(t *testing.T) {
	got := ports.Ranges(ports.PortMap(`{
		"80/tcp":  [{"HostPort": "80"}, {"HostPort": "8180-8183"}, {"HostIp": "127.0.0.1", "HostPort": "1-1"}],
		"53/udp":  [{"HostIp": "::", "HostPort": "5000-5001"}],
		"9":       [{"HostIp": "0.0.0.0", "HostPort": "1-65535"}],
		"1/tcp":   [{"HostPort": "0-5"}, {"HostPort": "9-8"}, {"HostPort": "1-99999"}, {"HostPort": "-"}, {"HostPort": "1-2-3"}],
		"2/tcp":   [{"HostIp": "127.0.0.9", "HostPort": "1-2"}, {"HostIp": "::1", "HostPort": "1-2"}],
		"80/sctp": [{"HostPort": "1-2"}, {}],
		"3/tcp":   [{}, {"HostIp": "127.0.0.1", "HostPort": "0"}, {"HostIp": "127.0.0.9"}, {"HostPort": "00"}, {"HostPort": "54600-54783"}, {"HostPort": "54600-54784"}]
	}`), vm, netip.MustParseAddr("127.83.14.201"))
	free := ports.Range{Protocol: "tcp", First: 54528, Last: 54783}
	want := []ports.RangeBinding{
		{Port: network.MustParsePort("3/tcp"), Range: free, Free: true},
		{Port: network.MustParsePort("3/tcp"), Index: 1, Range: free, Free: true},
		{Port: network.MustParsePort("3/tcp"), Index: 4, Range: ports.Range{Protocol: "tcp", First: 54600, Last: 54783}, Free: true},
		{Port: network.MustParsePort("3/tcp"), Index: 5, Range: ports.Range{Protocol: "tcp", First: 54600, Last: 54784}},
		{Port: network.MustParsePort("53/udp"), Range: ports.Range{Protocol: "udp", First: 5000, Last: 5001}},
		{Port: network.MustParsePort("80/tcp"), Index: 1, Range: ports.Range{Protocol: "tcp", First: 8180, Last: 8183}},
		{Port: network.MustParsePort("80/tcp"), Index: 2, Range: ports.Range{Protocol: "tcp", First: 1, Last: 1}},
		{Port: network.MustParsePort("9"), Range: ports.Range{Protocol: "tcp", First: 1, Last: 65535}},
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(network.Port{})); diff != "" {
		t.Error(diff)
	}
	for r, want := range map[ports.Range]string{{First: 8180, Last: 8183}: "8180-8183", {First: 5, Last: 5}: "5"} {
		if r.String() != want {
			t.Error(r.String())
		}
	}
}

// TestRangesOfProjects: projects choose from parts of their own, as far as there are some.
func TestRangesOfProjects(t *testing.T) {
	parts := map[uint16]bool{}
	for n := range 1000 {
		own := ports.OwnAddress([]byte{byte(n), byte(n >> 8), byte(n * 7)})
		list := ports.Ranges(ports.PortMap(`{"80/tcp": [{}]}`), vm, own)
		if len(list) != 1 || list[0].First < 32768 || list[0].Last > 60999 || list[0].Len() != 256 {
			t.Fatalf("%s: %+v", own, list)
		}
		parts[list[0].First] = true
	}
	if len(parts) != 110 {
		t.Errorf("%d parts", len(parts))
	}
}

// freeRange is the first of some ports in a row that nobody has.
func freeRange(t *testing.T, n uint16) uint16 {
	t.Helper()
	for first := freePort(t); first < 60000; first++ {
		free := true
		for port := first; port < first+n && free; port++ {
			for _, host := range hosts(t) {
				l, err := net.Listen("tcp", at(host, port))
				if err != nil {
					free = false
					break
				}
				_ = l.Close()
			}
		}
		if free {
			return first
		}
	}
	t.Fatal("no free ports")
	return 0
}

// TestNarrow: what is left of a range has no port that somebody else has, and of several parts
// it is the one with the most room.
func TestNarrow(t *testing.T) {
	var hours atomic.Int64
	began := time.Now()
	table := newTable(t, ports.Options{Dial: newGuest().dial, Now: func() time.Time { return began.Add(time.Duration(hours.Load()) * time.Hour) }})
	first := freeRange(t, 6)
	all := ports.Range{Protocol: "tcp", First: first, Last: first + 5}
	check := func(when string, want ports.Range, taken uint16) {
		t.Helper()
		part, err := table.Narrow(all)
		if diff := cmp.Diff(want, part); diff != "" {
			t.Errorf("%s: %s", when, diff)
		}
		switch {
		case err == nil && taken == 0:
		case err == nil || err.Key.Addr.Port() != taken:
			t.Errorf("%s: %+v, want port %d", when, err, taken)
		}
		if part != all {
			table.Promise(part)
		}
	}
	part := func(from, to uint16) ports.Range {
		return ports.Range{Protocol: "tcp", First: first + from, Last: first + to}
	}
	check("all are free", all, 0)
	_, release := occupy(t, at("127.0.0.1", first))
	check("the first is taken", part(1, 5), first)
	release()
	check("free again", all, 0)

	// With one in the middle taken, containers that are to be made spread over what is left.
	hours.Add(1)
	occupy(t, at("127.0.0.1", first+3))
	check("one in the middle", part(0, 2), first+3) // 3 and 2 are left
	check("a second container", part(0, 2), first+3)
	check("a third", part(4, 5), first+3)
	check("a fourth", part(0, 2), first+3)
	check("a fifth", part(4, 5), first+3)
	hours.Add(1)
	check("they never started", part(0, 2), first+3)
	hours.Add(1)

	// Containers that start have one each, and every port is had before one is refused.
	var has []ports.Published
	for i, next := range []struct {
		part ports.Range
		port uint16
	}{{part(0, 2), 0}, {part(0, 2), 1}, {part(4, 5), 4}, {part(0, 2), 2}, {part(4, 5), 5}} {
		check(fmt.Sprint("after ", i, " have started"), next.part, first+3)
		p := published(first+next.port, "tcp")
		p.IP = netip.IPv4Unspecified()
		six := p
		six.IP = netip.IPv6Unspecified()
		has = append(has, p, six)
		table.Set(has, 0)
	}
	table.Set(nil, 0)
	hours.Add(1)

	// Ports that the project has are no obstacle, and no room.
	table.Set([]ports.Published{published(first, "tcp"), published(first+1, "tcp")}, 0)
	check("two in use", part(4, 5), first+3)
	hours.Add(1)
	if _, err := table.Reserve(t.Context(), []ports.Want{{Protocol: "tcp", HostPort: first + 4}, {Protocol: "tcp", HostPort: first + 5}}, 0, 24*time.Hour); err != nil {
		t.Fatal(err)
	}
	check("two reserved", part(0, 2), first+3)

	table.Configure(ports.Settings{Deny: []uint16{first + 1, first + 2}, Map: map[uint16]uint16{first + 5: first + 3}})
	hours.Add(1)
	table.Set(nil, 0)
	check("denied and mapped to one that is taken", part(0, 0), first+1)
	if got, err := table.Narrow(part(1, 3)); err == nil || got != (ports.Range{}) {
		t.Errorf("all are denied or taken: %v, %v", got, err)
	}
	long := ports.Range{Protocol: "udp", First: 10000, Last: 60000}
	if got, _ := table.Narrow(long); got.Len() > 2*ports.DefaultMost || got.First < long.First {
		t.Errorf("a long range: %v", got)
	}
}
