package usernet_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/devvm/devvm/pkg/condition"
	"github.com/devvm/devvm/pkg/usernet"
	"github.com/devvm/devvm/pkg/usernet/usernettest"
	"github.com/devvm/devvm/pkg/vmnet"
)

// outside is an address that no host has (TEST-NET-2); tests lead it to
// listeners of their own.
const outside = "198.51.100.7"

// socketPair returns the two ends of a unix stream socket, as QEMU's netdev
// has it.
func socketPair(t testing.TB) (net.Conn, net.Conn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		conns[i], err = net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
	}
	return conns[0], conns[1]
}

func testLog(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// testContext ends before the test's own time does.
func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func newStack(t testing.TB, cfg usernet.Config) *usernet.Stack {
	t.Helper()
	if cfg.Log == nil {
		cfg.Log = testLog(t)
	}
	s, err := usernet.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// plug puts a guest into the network until the test ends.
func plug(t testing.TB, s *usernet.Stack, options usernettest.Options) *usernettest.Guest {
	t.Helper()
	ours, theirs := socketPair(t)
	served := make(chan error, 1)
	go func() { served <- s.Serve(context.Background(), ours) }()
	g, err := usernettest.NewGuest(theirs, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		g.Close()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	condition.Wait(t, "the network serves the guest", func() bool { return s.Status().Connected })
	return g
}

// network is a Stack with a guest in it.
func network(t testing.TB, cfg usernet.Config) (*usernet.Stack, *usernettest.Guest) {
	t.Helper()
	s := newStack(t, cfg)
	return s, plug(t, s, usernettest.Options{})
}

// listen accepts connections and serves each on a goroutine until the test
// ends.
func serveTCP(t testing.TB, l net.Listener, serve func(net.Conn)) {
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				serve(c)
			}()
		}
	}()
}

func echo(c net.Conn) { io.Copy(c, c) }

// localTCP serves on a port of the host.
func localTCP(t testing.TB, serve func(net.Conn)) net.Addr {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serveTCP(t, l, serve)
	return l.Addr()
}

// guestTCP serves on a port of the guest.
func guestTCP(t testing.TB, g *usernettest.Guest, port int, serve func(net.Conn)) {
	t.Helper()
	l, err := g.Listen(port)
	if err != nil {
		t.Fatal(err)
	}
	serveTCP(t, l, serve)
}

// dialTo leads all outbound connections to one address.
func dialTo(a net.Addr) func(context.Context, string, netip.AddrPort) (net.Conn, error) {
	return func(ctx context.Context, network string, _ netip.AddrPort) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, a.String())
	}
}

type halfCloser interface{ CloseWrite() error }

// roundTrip sends data, ends its direction, and wants the data back.
func roundTrip(t testing.TB, c net.Conn, data []byte) {
	t.Helper()
	go func() {
		c.Write(data)
		c.(halfCloser).CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil {
		t.Errorf("read: %v", err)
	}
	if !bytes.Equal(got, data) {
		t.Errorf("got %d bytes back, want %d", len(got), len(data))
	}
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(n)}).Read(b)
	return b
}

func TestDialIn(t *testing.T) {
	s, g := network(t, usernet.Config{})
	ctx := testContext(t)
	peers := make(chan net.Addr, 1)
	guestTCP(t, g, 22, func(c net.Conn) {
		peers <- c.RemoteAddr()
		echo(c)
	})
	c, err := s.Dial(ctx, "tcp", "192.0.2.2:22")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	roundTrip(t, c, randomBytes(1<<20))
	if peer := (<-peers).(*net.TCPAddr); peer.AddrPort().Addr() != vmnet.Gateway {
		t.Errorf("the guest saw %s", peer)
	}
}

// What is for the VM's loopback goes to the VM's card without a question for its
// neighbour, and its answers come from there.
func TestDialInLoopback(t *testing.T) {
	s, g := network(t, usernet.Config{})
	if err := g.AddAddress(vmnet.GuestLoopback, 32); err != nil { // in place of the VM's rule
		t.Fatal(err)
	}
	guestTCP(t, g, 80, echo)
	l, err := g.ListenOn(vmnet.GuestLoopback, 80)
	if err != nil {
		t.Fatal(err)
	}
	serveTCP(t, l, func(c net.Conn) { io.WriteString(c, "loopback") })
	c, err := s.Dial(testContext(t), "tcp", usernettest.Address(vmnet.GuestLoopback, 80))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if b, err := io.ReadAll(c); string(b) != "loopback" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
}

// The sshd of the VM has a card and an address of its own. Port 22 of the VM is a container's,
// and nothing in the VM reaches the other one.
func TestDialInManagement(t *testing.T) {
	s, g := network(t, usernet.Config{})
	l, err := g.ListenOn(vmnet.Guest, 22)
	if err != nil {
		t.Fatal(err)
	}
	serveTCP(t, l, func(c net.Conn) { io.WriteString(c, "container") })
	if err := g.AddAddress(vmnet.Management, 32); err != nil {
		t.Fatal(err)
	}
	if l, err = g.ListenOn(vmnet.Management, 22); err != nil {
		t.Fatal(err)
	}
	serveTCP(t, l, func(c net.Conn) { io.WriteString(c, "sshd") })
	for at, want := range map[netip.Addr]string{vmnet.Guest: "container", vmnet.Management: "sshd"} {
		c, err := s.Dial(testContext(t), "tcp", usernettest.Address(at, 22))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if b, err := io.ReadAll(c); string(b) != want || err != nil {
			t.Errorf("%s: %q, %v", at, b, err)
		}
	}
	if c, err := g.DialFrom(testContext(t), "tcp", netip.AddrPortFrom(vmnet.Management, 0), "198.51.100.7:80"); err == nil {
		c.Close()
		t.Error("the management address reaches others than the gateway")
	}
}

func TestDialInErrors(t *testing.T) {
	s := newStack(t, usernet.Config{})
	ctx := testContext(t)
	if _, err := s.Dial(ctx, "tcp", "192.0.2.2:22"); !errors.Is(err, vmnet.ErrNoGuest) {
		t.Errorf("without a guest: %v", err)
	}
	plug(t, s, usernettest.Options{})
	if _, err := s.Dial(ctx, "tcp", "192.0.2.2:23"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("closed port: %v", err)
	}
	for _, address := range []string{"192.0.2.1:53", "192.0.2.254:80", "198.51.100.7:80", "127.0.0.1:22", "[::1]:22", "192.0.2.2:0", "192.0.2.2", "vm:22", ""} {
		for _, network := range []string{"tcp", "udp"} {
			if _, err := s.Dial(ctx, network, address); !errors.Is(err, vmnet.ErrNotGuest) {
				t.Errorf("%s %q: %v", network, address, err)
			}
		}
	}
	if _, err := s.Dial(ctx, "tcp6", "192.0.2.2:22"); err == nil {
		t.Error("tcp6 was dialled")
	}
	s.Close()
	if _, err := s.Dial(ctx, "tcp", "192.0.2.2:22"); !errors.Is(err, vmnet.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// A guest that is there but does not answer costs no more than the deadline.
func TestDialInDeadline(t *testing.T) {
	s := newStack(t, usernet.Config{})
	ours, theirs := socketPair(t)
	defer theirs.Close()
	go s.Serve(context.Background(), ours)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	for {
		_, err := s.Dial(ctx, "tcp", "192.0.2.2:22")
		if errors.Is(err, vmnet.ErrNoGuest) {
			continue // Serve has not begun
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		return
	}
}

// A connection that waits for a booting guest is made when the guest comes up.
func TestDialInBeforeBoot(t *testing.T) {
	s := newStack(t, usernet.Config{})
	ours, theirs := socketPair(t)
	go s.Serve(context.Background(), ours)
	ctx := testContext(t)
	for !s.Status().Connected {
		if ctx.Err() != nil {
			t.Fatal("not connected")
		}
	}
	dialled := make(chan error, 1)
	go func() {
		c, err := s.Dial(ctx, "tcp", "192.0.2.2:22")
		if err == nil {
			c.Close()
		}
		dialled <- err
	}()
	// The first question for its address goes unheard.
	if _, err := io.ReadFull(theirs, make([]byte, 4+14+28)); err != nil {
		t.Fatal(err)
	}
	g, err := usernettest.NewGuest(theirs, usernettest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	guestTCP(t, g, 22, echo)
	if err := <-dialled; err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
		t.Error(err)
	}
}

func TestDialInUDP(t *testing.T) {
	s, g := network(t, usernet.Config{})
	ctx := testContext(t)
	p, err := g.ListenPacket(53)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
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
	c, err := s.Dial(ctx, "udp", "192.0.2.2:53")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	echoDatagrams(t, c)
}

// echoDatagrams wants datagrams of several sizes back from c.
func echoDatagrams(t *testing.T, c net.Conn) {
	t.Helper()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	buf := make([]byte, 65535)
	for _, size := range []int{0, 1, 1000, 1472, 8000, 40000} {
		data := randomBytes(size)
		if _, err := c.Write(data); err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
		n, err := c.Read(buf)
		if err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
		if !bytes.Equal(buf[:n], data) {
			t.Errorf("%d bytes came back as %d", size, n)
		}
	}
}

func TestOutbound(t *testing.T) {
	var to atomic.Value
	server := localTCP(t, echo)
	_, g := network(t, usernet.Config{DialOut: func(ctx context.Context, network string, a netip.AddrPort) (net.Conn, error) {
		to.Store(network + " " + a.String())
		return dialTo(server)(ctx, network, a)
	}})
	c, err := g.Dial(testContext(t), "tcp", outside+":80")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	roundTrip(t, c, randomBytes(1<<20))
	if got := to.Load(); got != "tcp 198.51.100.7:80" {
		t.Errorf("dialled %v", got)
	}
}

// Each direction ends by itself.
func TestOutboundHalfClose(t *testing.T) {
	done := make(chan struct{})
	server := localTCP(t, func(c net.Conn) {
		defer close(done)
		c.Write([]byte("greeting"))
		c.(halfCloser).CloseWrite()
		b, _ := io.ReadAll(c)
		if string(b) != "late answer" {
			t.Errorf("the server got %q", b)
		}
	})
	_, g := network(t, usernet.Config{DialOut: dialTo(server)})
	c, err := g.Dial(testContext(t), "tcp", outside+":80")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if b, err := io.ReadAll(c); err != nil || string(b) != "greeting" {
		t.Fatalf("got %q, %v", b, err)
	}
	if _, err := c.Write([]byte("late answer")); err != nil {
		t.Fatal(err)
	}
	c.(halfCloser).CloseWrite()
	<-done
}

// What the world outside says of a connection attempt reaches the guest as it
// would from a kernel.
func TestOutboundRefused(t *testing.T) {
	for _, c := range []struct{ err, want error }{
		{syscall.ECONNREFUSED, syscall.ECONNREFUSED},
		{syscall.EHOSTUNREACH, syscall.EHOSTUNREACH},
		{syscall.ENETUNREACH, syscall.EHOSTUNREACH},
		{context.DeadlineExceeded, syscall.EHOSTUNREACH},
	} {
		_, g := network(t, usernet.Config{DialOut: func(context.Context, string, netip.AddrPort) (net.Conn, error) {
			return nil, &net.OpError{Op: "dial", Err: c.err}
		}})
		if _, err := g.Dial(testContext(t), "tcp", outside+":80"); !errors.Is(err, c.want) {
			t.Errorf("%v: the guest sees %v, want %v", c.err, err, c.want)
		}
	}
}

// A guest can use a port again for the same destination when the other side
// has closed first.
func TestPortReuse(t *testing.T) {
	server := localTCP(t, func(c net.Conn) { io.ReadFull(c, make([]byte, 5)) })
	_, g := network(t, usernet.Config{DialOut: dialTo(server)})
	from := netip.AddrPortFrom(vmnet.Guest, 1023)
	for range 3 {
		start := time.Now()
		var c net.Conn
		condition.Wait(t, "the port is free and the connection made", func() (ok bool) {
			var err error
			c, err = g.DialFrom(testContext(t), "tcp", from, outside+":80")
			if err != nil && !errors.Is(err, syscall.EADDRINUSE) {
				t.Fatal(err)
			}
			return err == nil
		})
		if d := time.Since(start); d > 20*time.Second {
			t.Errorf("connected after %v", d)
		}
		io.WriteString(c, "close")
		if _, err := io.ReadAll(c); err != nil {
			t.Error(err)
		}
		c.Close()
	}
}

// The guest's handshake waits for the one outside.
func TestOutboundDialsFirst(t *testing.T) {
	server := localTCP(t, echo)
	dialling, proceed := make(chan struct{}), make(chan struct{})
	_, g := network(t, usernet.Config{DialOut: func(ctx context.Context, network string, a netip.AddrPort) (net.Conn, error) {
		close(dialling)
		<-proceed
		return dialTo(server)(ctx, network, a)
	}})
	connected := make(chan error, 1)
	go func() {
		c, err := g.Dial(testContext(t), "tcp", outside+":80")
		if err == nil {
			c.Close()
		}
		connected <- err
	}()
	<-dialling
	select {
	case err := <-connected:
		t.Errorf("connected too early: %v", err)
	default:
	}
	close(proceed)
	if err := <-connected; err != nil {
		t.Error(err)
	}
}

// A reset crosses in both directions, not disguised as an end.
func TestOutboundReset(t *testing.T) {
	ended := make(chan error, 1)
	server := localTCP(t, func(c net.Conn) {
		b := make([]byte, 1)
		io.ReadFull(c, b)
		if b[0] == 'r' { // reset me
			c.(*net.TCPConn).SetLinger(0)
			return
		}
		c.Write(b)
		_, err := c.Read(b)
		ended <- err
	})
	_, g := network(t, usernet.Config{DialOut: dialTo(server)})
	ctx := testContext(t)
	c, err := g.Dial(ctx, "tcp", outside+":80")
	if err != nil {
		t.Fatal(err)
	}
	c.Write([]byte("r"))
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("the guest saw %v", err)
	}
	c.Close()

	c, err = g.Dial(ctx, "tcp", outside+":80")
	if err != nil {
		t.Fatal(err)
	}
	c.Write([]byte("x"))
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	usernettest.Abort(c)
	if err := <-ended; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the server saw %v", err)
	}
}

func TestManyConnections(t *testing.T) {
	const many = 500
	var gate sync.WaitGroup // all exist at the same time
	gate.Add(many)
	serve := func(c net.Conn) {
		gate.Done()
		gate.Wait()
		echo(c)
	}
	server := localTCP(t, serve)
	s, g := network(t, usernet.Config{DialOut: dialTo(server), Log: slog.New(slog.DiscardHandler)})
	guestTCP(t, g, 22, serve)
	ctx := testContext(t)
	var wg sync.WaitGroup
	for i := range many {
		wg.Go(func() {
			dial, address := g.Dial, outside+":443"
			if i%2 == 0 {
				dial, address = s.Dial, "192.0.2.2:22"
			}
			c, err := dial(ctx, "tcp", address)
			if err != nil {
				t.Errorf("dial %s: %v", address, err)
				gate.Done()
				return
			}
			defer c.Close()
			roundTrip(t, c, randomBytes(2000+i))
		})
	}
	wg.Wait()
}

// Beyond the limit a connection is refused, not left waiting.
func TestFlowLimit(t *testing.T) {
	server := localTCP(t, echo)
	s, g := network(t, usernet.Config{DialOut: dialTo(server), MaxFlows: 2})
	ctx := testContext(t)
	var held []net.Conn
	for range 2 {
		c, err := g.Dial(ctx, "tcp", outside+":80")
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, c)
	}
	if _, err := g.Dial(ctx, "tcp", outside+":80"); err == nil {
		t.Fatal("a third connection was made")
	}
	if n := s.Status().Refused["too many connections"]; n != 1 {
		t.Errorf("refused: %d", n)
	}
	for _, c := range held {
		roundTrip(t, c, []byte("still there"))
		c.Close()
	}
}

// A guest that does not read stops the sender outside, and loses nothing.
func TestBackPressure(t *testing.T) {
	var sent atomic.Int64
	const total = 16 << 20
	chunk := randomBytes(64 << 10)
	server := localTCP(t, func(c net.Conn) {
		c.(*net.TCPConn).SetWriteBuffer(64 << 10)
		for sent.Load() < total {
			n, err := c.Write(chunk)
			sent.Add(int64(n))
			if err != nil {
				return
			}
		}
	})
	_, g := network(t, usernet.Config{DialOut: dialTo(server)})
	c, err := g.Dial(testContext(t), "tcp", outside+":80")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// It stands still when nothing has moved for a while.
	last := int64(-1)
	for tick := time.NewTicker(200 * time.Millisecond); ; <-tick.C {
		now := sent.Load()
		if now == last && now > 0 {
			break
		}
		last = now
	}
	if last > total/2 {
		t.Errorf("%d bytes were sent to a reader that reads none", last)
	}
	got := make([]byte, len(chunk))
	for n := 0; n < total; n += len(got) {
		if _, err := io.ReadFull(c, got); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, chunk) {
			t.Fatalf("bytes from %d on differ", n)
		}
	}
	if b, err := io.ReadAll(c); err != nil || len(b) != 0 {
		t.Errorf("after the end: %d bytes, %v", len(b), err)
	}
}

// What the guest has not taken counts as long as it is kept for it, though both sides
// have said all.
func TestLeftovers(t *testing.T) {
	var gate sync.RWMutex
	ended, answer, closed := make(chan struct{}), make(chan struct{}), make(chan struct{})
	data := randomBytes(10 << 10)
	server := localTCP(t, func(c net.Conn) {
		io.Copy(io.Discard, c)
		close(ended)
		<-answer
		c.Write(data)
	})
	dial := dialTo(server)
	s := newStack(t, usernet.Config{DialOut: func(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
		c, err := dial(ctx, network, to)
		if err != nil {
			return nil, err
		}
		return &noted{c.(*net.TCPConn), sync.OnceFunc(func() { close(closed) })}, nil
	}})
	g := plug(t, s, usernettest.Options{Frames: func([]byte) {
		gate.RLock()
		defer gate.RUnlock()
	}})
	c, err := g.Dial(testContext(t), "tcp", outside+":80")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.(halfCloser).CloseWrite()
	<-ended
	gate.Lock() // the guest hears nothing more
	close(answer)
	<-closed
	for range 20 {
		time.Sleep(5 * time.Millisecond) // nothing to wait for: it must not happen
		if s.Relays() != 1 {
			t.Error("a connection ended that has bytes for the guest")
			break
		}
	}
	gate.Unlock()
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, data) {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
	condition.Wait(t, "the connection has ended", func() bool { return s.Relays() == 0 })
}

// noted says when it is closed.
type noted struct {
	*net.TCPConn
	note func()
}

func (c *noted) Close() error {
	c.note()
	return c.TCPConn.Close()
}

// A VM that goes and comes back within the same network keeps its connections.
func TestReplug(t *testing.T) {
	server := localTCP(t, echo)
	s := newStack(t, usernet.Config{DialOut: dialTo(server)})
	ours, theirs := socketPair(t)
	ctx, unplug := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, ours) }()

	// The guest is one machine with a cable that can be moved.
	guestSide, far := socketPair(t)
	g, err := usernettest.NewGuest(guestSide, usernettest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	moving := make(chan net.Conn, 1)
	moving <- theirs
	go splice(far, moving)

	c, err := g.Dial(testContext(t), "tcp", outside+":80")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.Write([]byte("before"))
	if _, err := io.ReadFull(c, make([]byte, 6)); err != nil {
		t.Fatal(err)
	}

	unplug()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if _, err := s.Dial(t.Context(), "tcp", "192.0.2.2:22"); !errors.Is(err, vmnet.ErrNoGuest) {
		t.Errorf("unplugged: %v", err)
	}
	again, theirs := socketPair(t)
	go s.Serve(t.Context(), again)
	moving <- theirs
	roundTrip(t, c, randomBytes(100_000))
}

// splice carries frames between a guest and one connection after another.
func splice(far net.Conn, conns <-chan net.Conn) {
	defer far.Close()
	var mu sync.Mutex
	var present net.Conn
	go func() {
		for b := make([]byte, 1<<16); ; {
			frame, err := readFrame(far, b)
			if err != nil {
				return
			}
			mu.Lock()
			if present != nil {
				present.Write(frame)
			}
			mu.Unlock()
		}
	}()
	for c := range conns {
		mu.Lock()
		present = c
		mu.Unlock()
		for b := make([]byte, 1<<16); ; {
			frame, err := readFrame(c, b)
			if err != nil {
				break
			}
			far.Write(frame)
		}
	}
}

// readFrame reads one frame with its length in front.
func readFrame(r io.Reader, b []byte) ([]byte, error) {
	if _, err := io.ReadFull(r, b[:4]); err != nil {
		return nil, err
	}
	n := 4 + (int(b[2])<<8 | int(b[3]))
	_, err := io.ReadFull(r, b[4:n])
	return b[:n], err
}

// Close ends a network that has hardly begun.
func TestCloseAtOnce(t *testing.T) {
	for range 50 {
		s, err := usernet.New(usernet.Config{})
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() { s.Close() })
		}
		wg.Wait()
	}
}

func TestConfig(t *testing.T) {
	for _, mtu := range []int{1, 1279, 65522, -1} {
		if _, err := usernet.New(usernet.Config{MTU: mtu}); err == nil {
			t.Errorf("MTU %d was taken", mtu)
		}
	}
	s := newStack(t, usernet.Config{})
	if got := s.Status(); got.MTU != vmnet.DefaultMTU || got.Connected || got.Guest != "192.0.2.2" {
		t.Errorf("status: %+v", got)
	}
	s.Close()
	ours, _ := socketPair(t)
	if err := s.Serve(t.Context(), ours); !errors.Is(err, vmnet.ErrClosed) {
		t.Errorf("serve after Close: %v", err)
	}
}
