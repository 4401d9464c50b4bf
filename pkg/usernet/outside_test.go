package usernet_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/devvm/devvm/pkg/condition"
	"github.com/devvm/devvm/pkg/usernet"
	"github.com/devvm/devvm/pkg/usernet/usernettest"
	"github.com/devvm/devvm/pkg/vmnet"
)

// TestTranslated: what the host's own rules lead to a service of its own is cut before a
// byte passes.
func TestTranslated(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("nft is not installed")
	}
	runInNamespace(t, "TestTranslatedInNamespace")
}

// translations are rules of the host for addresses that are nobody's. 10.43.0.1 to .9
// lead to the host in different ways, 10.43.0.10 leads outside.
const translations = `
table ip nat {
	chain output {
		type nat hook output priority -100
		ip daddr 10.43.0.1 tcp dport 443 redirect to :7
		ip daddr 10.43.0.1 udp dport 443 redirect to :7
		ip daddr 10.43.0.2 tcp dport 443 dnat to 10.77.0.1:7
		ip daddr 10.43.0.2 udp dport 443 dnat to 10.77.0.1:7
		ip daddr 10.43.0.3 tcp dport 443 dnat to 127.0.0.1:7
		ip daddr 10.43.0.3 udp dport 443 dnat to 127.0.0.1:7
		ip daddr 10.43.0.4 tcp dport 443 dnat to 10.77.0.1:8
		ip daddr 10.43.0.5 tcp dport 443 dnat to 10.77.0.1:11
		ip daddr 10.43.0.6 tcp dport 443 dnat to 10.77.0.1:12
		ip daddr 10.43.0.7 tcp dport 443 dnat to 10.77.0.1:13
		ip daddr 10.43.0.10 tcp dport 443 dnat to 10.77.0.2:7
		ip daddr 10.43.0.10 udp dport 443 dnat to 10.77.0.2:7
	}
	chain postrouting {
		type nat hook postrouting priority 100
		ip daddr 10.77.0.1 tcp dport 8 masquerade random
	}
}`

// TestTranslatedInNamespace is the host.
func TestTranslatedInNamespace(t *testing.T) {
	if os.Getenv("USERNET_TEST_NAMESPACE") != "host" {
		t.Skip("runs within TestTranslated")
	}
	startOutside(t)
	via := &netlink.Route{Dst: prefix("10.43.0.0/16"), Gw: net.ParseIP(outsideAddr)}
	if err := netlink.RouteAdd(via); err != nil {
		t.Fatal(err)
	}
	nft := exec.Command("nft", "-f", "-")
	nft.Stdin = strings.NewReader(translations)
	if out, err := nft.CombinedOutput(); err != nil {
		if os.Geteuid() == 0 && strings.Contains(string(out), "not supported") {
			t.Skipf("no NAT in this kernel: %s", out)
		}
		t.Fatalf("nft: %v\n%s", err, out)
	}

	// Services of the host: each counts the bytes that it has had.
	var bytes, conns, datagrams atomic.Int64
	count := func(c net.Conn) {
		conns.Add(1)
		buf := make([]byte, 100)
		for {
			n, err := c.Read(buf)
			bytes.Add(int64(n))
			if err != nil {
				return
			}
			c.Write(buf[:n])
		}
	}
	listen := func(network, at string) net.Listener {
		l, err := net.Listen(network, at)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	serveTCP(t, listen("tcp4", "0.0.0.0:7"), count)
	serveTCP(t, listen("tcp4", "0.0.0.0:8"), count)
	serveTCP(t, listen("tcp", "[::]:11"), count)                 // takes IPv4 too
	serveTCP(t, listen("tcp4", "0.0.0.0:12"), func(c net.Conn) { // speaks first, and ends
		conns.Add(1)
		c.Write([]byte("hello"))
	})
	silent := listen("tcp4", "0.0.0.0:13") // accepts nothing
	defer silent.Close()
	for _, at := range []string{"127.0.0.1:7", hostAddr + ":7"} { // each answers from its own address
		p, err := net.ListenPacket("udp4", at)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		go func() {
			for buf := make([]byte, 1500); ; {
				n, from, err := p.ReadFrom(buf)
				if err != nil {
					return
				}
				datagrams.Add(1)
				p.WriteTo(buf[:n], from)
			}
		}()
	}

	ctx := testContext(t)
	target := func(n int) string { return fmt.Sprintf("10.43.0.%d:443", n) }
	const reason = "led to the host by its own rules"
	for _, network := range []string{"tcp", "udp"} {
		ways := 7
		if network == "udp" {
			ways = 3
		}
		// The control: a network whose sockets hear the host.
		control := newStack(t, usernet.Config{})
		g := plug(t, control, usernettest.Options{})
		control.HearHost()
		for n := 1; n <= ways; n++ {
			c, err := g.Dial(ctx, network, target(n))
			if err != nil {
				t.Fatalf("control: %s to %s: %v", network, target(n), err)
			}
			switch n {
			case 7: // a connection is all there is to see
			case 6:
				b := make([]byte, 5)
				c.SetDeadline(time.Now().Add(10 * time.Second))
				if _, err := io.ReadFull(c, b); err != nil || string(b) != "hello" {
					t.Errorf("control: %s: %q, %v", target(n), b, err)
				}
			default:
				echoes(t, c)
			}
			c.Close()
		}
		control.Close()
		condition.Wait(t, "the control's connections have ended", func() bool { return control.Relays() == 0 })
		bytes.Store(0)
		conns.Store(0)
		datagrams.Store(0)

		s := newStack(t, usernet.Config{})
		r := newRoot(t, s)
		for n := 1; n <= ways; n++ {
			refused := func() uint64 { return s.Status().Refused[reason] }
			before := refused()
			start := time.Now()
			switch network {
			case "tcp":
				if _, err := r.Dial(ctx, network, target(n)); !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("tcp to %s: %v", target(n), err)
				}
			case "udp":
				c, err := r.Dial(ctx, network, target(n))
				if err != nil {
					t.Fatal(err)
				}
				c.Write([]byte("hello"))
				condition.Wait(t, "the flow to "+target(n)+" is seen to lead to the host", func() bool { return refused() > before })
				c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
				if n, err := c.Read(make([]byte, 100)); n > 0 {
					t.Errorf("udp to %s: %d bytes came back, %v", target(n), n, err)
				}
				condition.Wait(t, "the flow has ended", func() bool { return s.Status().UDPFlows == 0 })
				// From then on not even the first datagram passes.
				r.wants(t, "again", udpProto, target(n), "unreachable 3")
				c.Close()
			}
			if d := time.Since(start); d > 5*time.Second {
				t.Errorf("%s to %s took %v", network, target(n), d)
			}
			if refused() == before {
				t.Errorf("%s to %s was not counted: %v", network, target(n), s.Status().Refused)
			}
		}
		if bytes.Load() != 0 || conns.Load() != 0 {
			t.Errorf("%s: %d connections and %d bytes have reached the host", network, conns.Load(), bytes.Load())
		}
		if n := datagrams.Load(); network == "udp" && n != int64(ways) {
			t.Errorf("%d datagrams have reached the host in %d flows", n, ways)
		}
		// Where the rules lead elsewhere, all is as it should be.
		for _, to := range []string{target(10), outsideAddr + echoPort} {
			c, err := r.Dial(ctx, network, to)
			if err != nil {
				t.Fatalf("%s to %s: %v", network, to, err)
			}
			echoes(t, c)
			c.Close()
		}
		attempts := 0
		for _, a := range s.Egress().Attempts {
			if a.Protocol == network && a.Reason == reason {
				attempts++
			}
		}
		if attempts != ways {
			t.Errorf("%s: %d attempts are in the journal: %+v", network, attempts, s.Egress().Attempts)
		}
		// Ports of the host that devvm.toml opens are meant.
		if network == "tcp" {
			policy := policyOf(t, outsideAddr+echoPort)
			policy.HostPorts = []uint16{7}
			s.SetPolicy(*policy)
			c, err := r.Dial(ctx, network, netip.AddrPortFrom(vmnet.HostAlias, 7).String())
			if err != nil {
				t.Fatal(err)
			}
			echoes(t, c)
			c.Close()
		}
		r.Close()
	}

	// Where the kernel lets nobody filter, its list of sockets tells the same of TCP, but for
	// a source that the rules change as well (4).
	bytes.Store(0)
	s := newStack(t, usernet.Config{})
	r := newRoot(t, s)
	s.WithoutFilters()
	for _, n := range []int{1, 2, 3, 5, 6, 7} {
		if _, err := r.Dial(ctx, "tcp", target(n)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("without filters: tcp to %s: %v", target(n), err)
		}
	}
	if n := s.Status().Refused[reason]; n != 6 || bytes.Load() != 0 {
		t.Errorf("without filters: %d refusals, %d bytes have reached the host", n, bytes.Load())
	}
	for _, to := range []string{target(10), outsideAddr + echoPort} {
		c, err := r.Dial(ctx, "tcp", to)
		if err != nil {
			t.Fatalf("without filters: tcp to %s: %v", to, err)
		}
		echoes(t, c)
		c.Close()
	}
	r.Close()
}
