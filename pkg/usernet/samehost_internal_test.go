package usernet

import (
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// A connection within this host is known by its other end, and one whose other end is gone
// is not.
func TestEndsHere(t *testing.T) {
	for _, network := range []string{"tcp4", "tcp6"} {
		l, err := net.Listen(network, "localhost:0")
		if err != nil {
			t.Skipf("%s: %v", network, err)
		}
		c, err := net.Dial(network, l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		here, err := endsHere(netip.MustParseAddrPort(c.LocalAddr().String()))
		if err != nil || !here {
			t.Errorf("%s: %v, %v", network, here, err)
		}
		_ = l.Close()
		here, err = endsHere(netip.AddrPortFrom(netip.MustParseAddr("192.0.2.77"), 1))
		if err != nil || here {
			t.Errorf("%s: nobody's address: %v, %v", network, here, err)
		}
		_ = c.Close()
	}
}

// What the kernel says is read within its bounds.
func TestParsePeers(t *testing.T) {
	peer := netip.MustParseAddrPort("10.0.0.1:80")
	for _, b := range [][]byte{
		{}, make([]byte, 15), make([]byte, 16), // a size of 0
		{255, 255, 255, 255, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},          // longer than it is
		{16, 0, 0, 0, unix.NLMSG_ERROR, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},   // without an error
		{16, 0, 0, 0, unix.SOCK_DIAG_BY_FAMILY, 0, 0, 0, 0, 0, 0, 0, 0, 0}, // cut off
	} {
		if found, done, _ := parsePeers(b, peer); found || done {
			t.Errorf("%v: found %v, done %v", b, found, done)
		}
	}
}

func BenchmarkEndsHere(b *testing.B) {
	peer := netip.MustParseAddrPort("192.0.2.77:1")
	for b.Loop() {
		if _, err := endsHere(peer); err != nil {
			b.Fatal(err)
		}
	}
}
