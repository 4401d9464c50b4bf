package usernet_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/devvm/devvm/pkg/egress"
	"github.com/devvm/devvm/pkg/usernet"
	"github.com/devvm/devvm/pkg/vmnet"
)

// TestPings: a ping leaves under the same rule and policy as all else, where the host lets
// users send any.
func TestPings(t *testing.T) {
	t.Parallel()
	runInNamespace(t, "TestPingsInNamespace")
}

func TestPingsInNamespace(t *testing.T) {
	if os.Getenv("USERNET_TEST_NAMESPACE") != "host" {
		t.Skip("runs within TestPings")
	}
	startOutside(t)
	allow := func(groups string) {
		if err := os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte(groups), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ident := uint16(1000)
	wants := func(r *root, to, want string) {
		t.Helper()
		ident++
		r.WriteFrame(r.packet(header.ICMPv4ProtocolNumber, netip.AddrPortFrom(vmnet.Guest, ident), netip.MustParseAddrPort(to+":0")))
		if got := r.pong(ident, 10*time.Second); got != want {
			t.Errorf("ping of %s: %s, want %s", to, got, want)
		}
	}

	// A host that lets nobody send them.
	allow("1 0")
	s := newStack(t, usernet.Config{})
	wants(newRoot(t, s), outsideAddr, "unreachable 13")
	if st := s.Status(); !st.NoPings || st.PingsRefused() != 1 {
		t.Errorf("%+v", st)
	}

	allow("0 0")
	s = newStack(t, usernet.Config{})
	r := newRoot(t, s)
	wants(r, outsideAddr, "echo")
	wants(r, hostAddr, "unreachable 13")
	wants(r, "127.0.0.2", "unreachable 13")
	wants(r, "10.77.0.255", "unreachable 13")
	wants(r, "169.254.169.254", "unreachable 13")
	wants(r, vmnet.Guest.String(), "unreachable 13")
	wants(r, "203.0.113.1", "unreachable 1")
	if st := s.Status(); st.NoPings || st.Pings != 1 {
		t.Errorf("%+v", st)
	}

	// What comes back is what was sent, by the guest's own identifier.
	message := append(make([]byte, header.ICMPv4MinimumSize), bytes.Repeat([]byte("abc"), 9000)...)
	icmp := header.ICMPv4(message)
	icmp.SetType(header.ICMPv4Echo)
	icmp.SetIdent(0xbeef)
	icmp.SetSequence(77)
	icmp.SetChecksum(^checksum.Checksum(icmp, 0))
	r.WriteFrame(ipFrame(header.ICMPv4ProtocolNumber, vmnet.Guest, netip.MustParseAddr(outsideAddr), message))
	for timeout := time.After(10 * time.Second); ; {
		var frame []byte
		select {
		case frame = <-r.frames:
		case <-timeout:
			t.Fatal("no answer")
		}
		ip := header.IPv4(frame[header.EthernetMinimumSize:])
		if header.Ethernet(frame).Type() != header.IPv4ProtocolNumber || ip.TransportProtocol() != header.ICMPv4ProtocolNumber {
			continue
		}
		got := header.ICMPv4(ip.Payload())
		if got.Type() != header.ICMPv4EchoReply || got.Ident() != 0xbeef || got.Sequence() != 77 ||
			!bytes.Equal(got.Payload(), icmp.Payload()) || checksum.Checksum(got, 0) != 0xffff {
			t.Errorf("%x, %d bytes", got[:header.ICMPv4MinimumSize], len(got))
		}
		break
	}
	// Nothing but a whole echo request leaves.
	for kind, frame := range map[string][]byte{
		"a reply": ipFrame(header.ICMPv4ProtocolNumber, vmnet.Guest, netip.MustParseAddr(outsideAddr), []byte{0, 0, 0, 0, 0, 1, 0, 1}),
		"a part": func() []byte {
			frame := ipFrame(header.ICMPv4ProtocolNumber, vmnet.Guest, netip.MustParseAddr(outsideAddr), message)
			ip := header.IPv4(frame[header.EthernetMinimumSize:])
			ip.SetFlagsFragmentOffset(header.IPv4FlagMoreFragments, 0)
			ip.SetChecksum(0)
			ip.SetChecksum(^ip.CalculateChecksum())
			return frame
		}(),
	} {
		before := s.Status().Refused["protocol is not carried"]
		r.WriteFrame(frame)
		deadline := time.Now().Add(10 * time.Second)
		for s.Status().Refused["protocol is not carried"] == before {
			if time.Now().After(deadline) {
				t.Fatalf("%s is not refused", kind)
			}
			time.Sleep(time.Millisecond)
		}
	}

	// A rule with a port is not about pings. One that is taken away ends what it let out.
	s.SetPolicy(*policyOf(t, outsideAddr+":443"))
	for deadline := time.Now().Add(10 * time.Second); s.Status().Pings != 0; {
		if time.Now().After(deadline) {
			t.Fatalf("%d pings go on", s.Status().Pings)
		}
		time.Sleep(time.Millisecond)
	}
	wants(r, outsideAddr, "unreachable 13")
	s.SetPolicy(*policyOf(t, outsideAddr))
	wants(r, outsideAddr, "echo")
	s.SetPolicy(egress.Policy{All: true})
	seen := false
	for _, a := range s.Egress().Attempts {
		seen = seen || a.Protocol == "icmp" && a.Allowed && a.Address == outsideAddr
	}
	if !seen {
		t.Errorf("the journal has no ping: %+v", s.Egress().Attempts)
	}

	// A guest that never tires has no more sockets of the host than there may be.
	for i := range 500 {
		icmp.SetIdent(uint16(i))
		r.WriteFrame(ipFrame(header.ICMPv4ProtocolNumber, vmnet.Guest, netip.MustParseAddr(outsideAddr), message[:64]))
	}
	wants(r, "203.0.113.1", "unreachable 1") // the last one was taken
	if n := s.Status().Pings; n == 0 || n > 64 {
		t.Errorf("%d pings", n)
	}
}

// pong waits for what comes back for the echo request with an identifier: "echo",
// "unreachable N" with ICMP's code, or "nothing".
func (r *root) pong(ident uint16, wait time.Duration) string {
	for timeout := time.After(wait); ; {
		var frame []byte
		select {
		case frame = <-r.frames:
		case <-timeout:
			return "nothing"
		}
		ip := header.IPv4(frame[header.EthernetMinimumSize:])
		if header.Ethernet(frame).Type() != header.IPv4ProtocolNumber || ip.TransportProtocol() != header.ICMPv4ProtocolNumber {
			continue
		}
		switch icmp := header.ICMPv4(ip.Payload()); icmp.Type() {
		case header.ICMPv4EchoReply:
			if icmp.Ident() == ident {
				return "echo"
			}
		case header.ICMPv4DstUnreachable:
			if quoted := icmp[header.ICMPv4MinimumSize+header.IPv4MinimumSize:]; quoted.Ident() == ident {
				return fmt.Sprint("unreachable ", icmp.Code())
			}
		}
	}
}
