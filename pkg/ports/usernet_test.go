package ports_test

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/devvm/devvm/pkg/condition"
	"github.com/devvm/devvm/pkg/ports"
	"github.com/devvm/devvm/pkg/usernet"
	"github.com/devvm/devvm/pkg/usernet/usernettest"
	"github.com/devvm/devvm/pkg/vmnet"
)

// startNetwork runs the network of a VM, and a guest in it, as the process `devvm net` does.
func startNetwork(t testing.TB) (*vmnet.Dialer, *usernettest.Guest) {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "dv") //nolint:usetesting // sockets need a short path
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- usernet.Run(ctx, usernet.Options{
			Config:    usernet.Config{Log: slog.New(slog.DiscardHandler)},
			NetSocket: filepath.Join(dir, "net"), DialSocket: filepath.Join(dir, "dial"), Lock: filepath.Join(dir, "lock"),
			Ready: func() error { close(ready); return nil },
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		_ = os.RemoveAll(dir)
	})
	<-ready
	cable, err := net.Dial("unix", filepath.Join(dir, "net"))
	if err != nil {
		t.Fatal(err)
	}
	g, err := usernettest.NewGuest(cable, usernettest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Close() })
	if err := g.AddAddress(vmnet.GuestLoopback, 32); err != nil { // in place of the VM's rule
		t.Fatal(err)
	}
	dialer := vmnet.NewDialer(filepath.Join(dir, "dial"))
	condition.Wait(t, "the network has its VM", func() bool {
		s, err := dialer.Status(ctx)
		return err == nil && s.Connected
	})
	return dialer, g
}

// The whole road of a published port: the host's socket, the relay, the network process,
// the VM.
func TestThroughTheNetwork(t *testing.T) {
	dialer, g := startNetwork(t)
	table := newTable(t, ports.Options{Dial: dialer.Dial, UDPIdle: 2 * time.Second})
	all, loopback := freePort(t), freePort(t)
	accept := func(l net.Listener, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					echo(c)
				}()
			}
		}()
	}
	accept(g.Listen(int(all)))
	accept(g.ListenOn(vmnet.GuestLoopback, int(loopback)))
	p, err := g.ListenPacket(int(all))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	go func() {
		for b := make([]byte, 65535); ; {
			n, from, err := p.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = p.WriteTo(b[:n], from)
		}
	}()
	onLoopback := published(loopback, "tcp")
	onLoopback.ID, onLoopback.IP = "other", netip.MustParseAddr("127.0.0.1")
	table.Set([]ports.Published{published(all, "tcp"), published(all, "udp"), onLoopback}, 0)
	for _, host := range hosts(t) {
		for _, port := range []uint16{all, loopback} {
			c := dialTCP(t, at(host, port))
			roundTrip(t, c, "hello")
			_ = c.Close()
		}
		c, err := net.Dial("udp", at(host, all))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		for _, text := range []string{"a", "", "bc"} {
			_, _ = c.Write([]byte(text))
			b := make([]byte, 10)
			if n, err := c.Read(b); err != nil || string(b[:n]) != text {
				t.Errorf("%s: %q, %v", host, b[:n], err)
			}
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	condition.Wait(t, "tunnels end", func() bool {
		s, err := dialer.Status(ctx)
		return err == nil && s.DialIns == 0
	})
}
