package usernet

import (
	"bytes"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/link/loopback"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"github.com/devvm/devvm/pkg/usernet/internal/socket"
	"github.com/devvm/devvm/pkg/vmnet"
)

// A buffer that becomes smaller while a relay reads from the host's socket loses nothing,
// neither what no longer fits nor what comes after it.
func TestResizeWhileReading(t *testing.T) {
	guest, peer := stackPair(t)
	host, client := unixPair(t)
	const larger = 16 * minBuffer
	setBuffers(guest.Endpoint, larger)
	want := make([]byte, larger)
	for i := range want {
		want[i] = byte(i / 100)
	}
	if _, err := client.Write(want); err != nil {
		t.Fatal(err)
	}
	if err := client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	raw, err := host.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	relayed := *guest
	relayed.Endpoint = &shrinkingEndpoint{Endpoint: guest.Endpoint}
	end := make(chan error, 1)
	go func() {
		err := toGuest(&relayed, raw)
		_ = guest.CloseWrite()
		end <- err
	}()
	_ = peer.SetReadDeadline(time.Now().Add(20 * time.Second))
	got, err := io.ReadAll(peer)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d of %d bytes arrived, %v", len(got), len(want), err)
	}
	if err := <-end; err != nil {
		t.Error(err)
	}
	if size := guest.Endpoint.SocketOptions().GetSendBufferSize(); size != minBuffer {
		t.Errorf("the buffer has %d bytes, want %d: it did not become smaller", size, minBuffer)
	}
}

// shrinkingEndpoint makes its send buffer smaller in each Write, after that has found how
// much room there is.
type shrinkingEndpoint struct{ tcpip.Endpoint }

func (e *shrinkingEndpoint) Write(p tcpip.Payloader, o tcpip.WriteOptions) (int64, tcpip.Error) {
	return e.Endpoint.Write(&shrinkingPayload{p, e.SocketOptions()}, o)
}

type shrinkingPayload struct {
	tcpip.Payloader
	options *tcpip.SocketOptions
}

func (p *shrinkingPayload) Read(b []byte) (int, error) {
	// The size changes at once. What follows may need a lock that the Write holds.
	go p.options.SetSendBufferSize(minBuffer, true)
	for p.options.GetSendBufferSize() != minBuffer {
		time.Sleep(time.Millisecond)
	}
	return p.Payloader.Read(b)
}

// stackPair is a TCP connection within a netstack that is tuned like a VM's.
func stackPair(t *testing.T) (*socket.TCP, net.Conn) {
	t.Helper()
	n := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol},
	})
	t.Cleanup(n.Destroy)
	if err := n.CreateNIC(nic, loopback.New()); err != nil {
		t.Fatal(err)
	}
	address := tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: socket.Address(vmnet.Guest).WithPrefix()}
	if err := n.AddProtocolAddress(nic, address, stack.AddressProperties{}); err != nil {
		t.Fatal(err)
	}
	n.SetRouteTable([]tcpip.Route{{Destination: address.AddressWithPrefix.Subnet(), NIC: nic}})
	if err := tuneTCP(n); err != nil {
		t.Fatal(err)
	}
	at := netip.AddrPortFrom(vmnet.Guest, 7)
	l, err := socket.ListenTCP(n, at)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := socket.DialTCP(t.Context(), n, netip.AddrPortFrom(vmnet.Guest, 0), at)
	if err != nil {
		t.Fatal(err)
	}
	peer, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { abort(c); _ = peer.Close() })
	return c, peer
}

// unixPair is a connection between two unix sockets.
func unixPair(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	at := &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"}
	l, err := net.ListenUnix("unix", at)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = net.DialUnix("unix", nil, at); err != nil {
		t.Fatal(err)
	}
	if b, err = l.AcceptUnix(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close(); _ = b.Close() })
	return a, b
}
