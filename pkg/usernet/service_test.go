package usernet_test

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/devvm/devvm/pkg/usernet"
	"github.com/devvm/devvm/pkg/vmnet"
)

// A service is a unix socket of the host's behind a port of the gateway, for those in
// the VM who can send from a reserved port, while somebody listens.
func TestService(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	_, g := network(t, usernet.Config{Services: map[uint16]string{2049: path}})
	ctx := testContext(t)
	to := netip.AddrPortFrom(vmnet.Gateway, 2049)
	root := netip.AddrPortFrom(vmnet.Guest, 700)

	if _, err := g.DialFrom(ctx, "tcp", root, to.String()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Fatalf("nobody listens: %v", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := g.DialFrom(ctx, "tcp", netip.AddrPortFrom(vmnet.Guest, 1024), to.String()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("from a port that anybody can have: %v", err)
	}
	if _, err := g.DialFrom(ctx, "tcp", root, netip.AddrPortFrom(vmnet.HostAlias, 2049).String()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("another address: %v", err)
	}
	conn, err := g.DialFrom(ctx, "tcp", root, to.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	host, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	for _, way := range [][2]net.Conn{{conn, host}, {host, conn}} {
		go way[0].Write([]byte("hello"))
		b := make([]byte, 5)
		if _, err := io.ReadFull(way[1], b); err != nil || string(b) != "hello" {
			t.Errorf("got %q, %v", b, err)
		}
	}
}
