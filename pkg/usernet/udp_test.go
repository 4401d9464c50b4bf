package usernet_test

import (
	"context"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/devvm/devvm/pkg/condition"
	"github.com/devvm/devvm/pkg/usernet"
	"github.com/devvm/devvm/pkg/usernet/usernettest"
	"github.com/devvm/devvm/pkg/vmnet"
)

// localUDP echoes datagrams on a port of the host.
func localUDP(t *testing.T) net.Addr {
	t.Helper()
	p, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	go func() {
		buf := make([]byte, 65535)
		for {
			n, from, err := p.ReadFrom(buf)
			if err != nil {
				return
			}
			p.WriteTo(buf[:n], from)
		}
	}()
	return p.LocalAddr()
}

func TestUDPOut(t *testing.T) {
	s, g := network(t, usernet.Config{DialOut: dialTo(localUDP(t))})
	c, err := g.Dial(testContext(t), "udp", outside+":123")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	echoDatagrams(t, c)
	if n := s.Status().UDPFlows; n != 1 {
		t.Errorf("%d flows", n)
	}
}

// A port that refuses datagrams refuses the guest's.
func TestUDPRefused(t *testing.T) {
	p, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := p.LocalAddr()
	p.Close()
	s := newStack(t, usernet.Config{DialOut: dialTo(closed)})
	r := newRoot(t, s)
	frame := r.packet(udpProto, netip.AddrPortFrom(vmnet.Guest, 30000), netip.MustParseAddrPort(outside+":123"))
	r.WriteFrame(frame)
	if got := r.answer(frame, 10*time.Second); got != "unreachable 3" {
		t.Errorf("got %s", got)
	}
}

func TestUDPIdle(t *testing.T) {
	t.Parallel()
	const idle = 2 * time.Second
	s, g := network(t, usernet.Config{DialOut: dialTo(localUDP(t)), UDPIdle: idle})
	c, err := g.Dial(testContext(t), "udp", outside+":123")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	start := time.Now()
	echoDatagrams(t, c)
	condition.Wait(t, "the flow ends", func() bool { return s.Status().UDPFlows == 0 })
	if d := time.Since(start); d < 4*idle {
		t.Errorf("a flow with answers ended after %v", d)
	}
	echoDatagrams(t, c) // the next datagram begins another
}

// The flow that has been silent longest makes room.
func TestUDPFlowCap(t *testing.T) {
	const limit = 8
	s, g := network(t, usernet.Config{DialOut: dialTo(localUDP(t)), MaxFlows: limit})
	ctx := testContext(t)
	for range 3 * limit {
		c, err := g.Dial(ctx, "udp", outside+":123")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		echoDatagrams(t, c)
		if n := s.Status().UDPFlows; n > limit {
			t.Fatalf("%d flows", n)
		}
	}
}

// A flow ends when the host gets the address that it goes to.
func TestUDPRecheck(t *testing.T) {
	t.Parallel()
	var own atomic.Bool
	s := newStack(t, usernet.Config{DialOut: dialTo(localUDP(t))})
	s.SetHost(func(netip.Addr) bool { return own.Load() })
	g := plug(t, s, usernettest.Options{})
	c, err := g.Dial(testContext(t), "udp", outside+":123")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	echoDatagrams(t, c)
	own.Store(true)
	condition.Wait(t, "the flow ends", func() bool {
		c.Write([]byte("x"))
		return s.Status().Refused["address of the host"] > 0 && s.Status().UDPFlows == 0
	})
}

// A stack that closes with flows open closes them.
func TestUDPClose(t *testing.T) {
	conns := make(chan net.Conn, 1)
	s, g := network(t, usernet.Config{DialOut: func(ctx context.Context, network string, a netip.AddrPort) (net.Conn, error) {
		c, err := dialTo(localUDP(t))(ctx, network, a)
		conns <- c
		return c, err
	}})
	c, err := g.Dial(testContext(t), "udp", outside+":123")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	echoDatagrams(t, c)
	s.Close()
	if _, err := (<-conns).Write([]byte("x")); err == nil {
		t.Error("the socket outside is open")
	}
}
