package usernet

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/devvm/devvm/pkg/egress"
)

// The host has a way out by IPv6 if it has a default route and an address that others answer to.
func TestHasRoute6(t *testing.T) {
	s, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, c := range []struct {
		from  string
		route routeKind
		want  bool
	}{
		{"2001:db8:77::1", routeUnicast, true},
		{"2001:db8:77::1", routeNone, false},
		{"2001:db8:77::1", routeLocal, false},
		{"fd77::1", routeUnicast, false}, // nobody outside of the site answers there
		{"fc77::1", routeUnicast, false},
		{"fe80::1", routeUnicast, false},
		{"fec0::1", routeUnicast, false},
		{"::1", routeUnicast, false},
		{"::", routeUnicast, false},
		{"192.168.7.5", routeUnicast, false},
		{"", routeUnicast, false},
	} {
		from, _ := netip.ParseAddr(c.from)
		s.policy.look = func(context.Context, netip.Addr) (hostView, error) { return hostView{Route: c.route, From: from}, nil }
		if s.lookRoute(t.Context()); s.route6.Load() != c.want {
			t.Errorf("from %q, route %d: %v", c.from, c.route, !c.want)
		}
	}

	// What the kernel does not say leaves what is known, and an offline VM has none.
	s.route6.Store(true)
	s.policy.look = func(context.Context, netip.Addr) (hostView, error) { return hostView{}, errors.New("no netlink") }
	if s.lookRoute(t.Context()) || !s.route6.Load() {
		t.Error("the kernel's silence is taken for no route")
	}
	s.policy.set(egress.Policy{Offline: true})
	if !s.lookRoute(t.Context()) || s.route6.Load() {
		t.Error("an offline VM has a way out")
	}
}

// The address that has been silent longest makes room for a new one.
func TestLearn(t *testing.T) {
	s, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	address := func(i int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("fd64:6576:766d::%x", i)) }
	known := func() (all []int) {
		t.Helper()
		neighbours, err := s.net.Neighbors(nic, header.IPv6ProtocolNumber)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range neighbours {
			all = append(all, int(n.Addr.AsSlice()[15]))
		}
		slices.Sort(all)
		return all
	}
	for i := range manyNeighbours {
		s.learn(address(i+1), guestLink)
	}
	for i := range 3 * manyNeighbours {
		s.learn(address(1), guestLink)
		s.learn(address(100+i), guestLink)
		if !slices.Contains(known(), 1) {
			t.Fatalf("the address that sends all the time made room for new one %d", i+1)
		}
	}
	want := []int{1}
	for i := 2*manyNeighbours + 1; i < 3*manyNeighbours; i++ {
		want = append(want, 100+i)
	}
	if got := known(); !slices.Equal(got, want) {
		t.Errorf("known: %d, want %d", got, want)
	}
	// Who comes back is known again, from another card, too.
	other := tcpip.LinkAddress("\x52\x54\x00\x12\x34\x57")
	s.learn(address(2), guestLink)
	s.learn(address(2), other)
	s.learn(address(1), other)
	neighbours, nerr := s.net.Neighbors(nic, header.IPv6ProtocolNumber)
	if nerr != nil {
		t.Fatal(nerr)
	}
	found := 0
	for _, n := range neighbours {
		if last := n.Addr.AsSlice()[15]; last == 1 || last == 2 {
			found++
			if n.LinkAddr != other {
				t.Errorf("%s is at %s", n.Addr, n.LinkAddr)
			}
		}
	}
	if found != 2 || len(neighbours) != manyNeighbours || len(s.neighbours) != manyNeighbours {
		t.Errorf("%+v", neighbours)
	}
}

// An advertisement of what held before never comes after one of what holds, whoever sends them: the
// VM hears of each change once.
func TestAdvertiseOrder(t *testing.T) {
	s, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.guestMAC.Store(guestLink)
	ours, theirs := unixPair(t)
	served, plugged := make(chan error, 1), make(chan struct{})
	go func() {
		served <- s.cable.Serve(t.Context(), ours, func() { close(plugged) }, func([]byte) bool { return false })
	}()
	<-plugged

	const changes = 20000
	heard := make(chan int)
	go func() {
		n := 0
		defer func() { heard <- n }()
		last := uint16(0)
		for r := bufio.NewReader(theirs); ; {
			length := make([]byte, 4)
			if _, err := io.ReadFull(r, length); err != nil {
				return
			}
			frame := make([]byte, binary.BigEndian.Uint32(length))
			if _, err := io.ReadFull(r, frame); err != nil {
				return
			}
			p, ok := parsePacket(frame)
			if !ok {
				return // the last one
			}
			if life := binary.BigEndian.Uint16(p.payload[6:]); life != last {
				n, last = n+1, life
			}
		}
	}()
	var others sync.WaitGroup
	done := make(chan struct{})
	for range 3 {
		others.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					s.advertise()
				}
			}
		})
	}
	for i := range changes {
		s.route6.Store(i%2 == 0)
		s.advertise()
	}
	close(done)
	others.Wait()
	s.cable.WriteFrame(arpFrame(header.ARPRequest, "192.0.2.1", "192.0.2.2"))
	if n := <-heard; n != changes {
		t.Errorf("the VM has heard of %d changes of %d", n, changes)
	}
	if n := s.cable.Counters().Dropped; n > 0 {
		t.Errorf("%d frames were lost", n)
	}
	theirs.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
}
