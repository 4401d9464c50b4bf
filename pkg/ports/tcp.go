package ports

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/relay"
)

// open opens the socket of k. Nothing is accepted or read before it is served.
func (t *Table) open(k Key) (*socket, error) {
	if err := t.privileged(k); err != nil {
		return nil, err
	}
	network := k.Protocol + "4"
	if k.Addr.Addr().Is6() {
		network = k.Protocol + "6"
	}
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	if k.Addr.Addr().IsLoopback() {
		config.Control = onLoopback
	}
	ctx, cancel := context.WithCancel(t.ctx)
	if k.Protocol == UDP {
		conn, err := config.ListenPacket(ctx, network, k.Addr.String())
		if err != nil {
			cancel()
			return nil, err
		}
		u := &udpSocket{table: t, key: k, conn: conn.(*net.UDPConn), sessions: map[peer]*session{}}
		return &socket{
			serve: func(l Line, c *counters) { t.run.Go(func() { u.serve(ctx, l, c) }) },
			close: func() { cancel(); _ = conn.Close() },
		}, nil
	}
	l, err := config.Listen(ctx, network, k.Addr.String())
	if err != nil {
		cancel()
		return nil, err
	}
	return &socket{
		serve: func(line Line, c *counters) { t.run.Go(func() { t.serveTCP(ctx, l, k, line, c) }) },
		close: func() { cancel(); _ = l.Close() },
	}, nil
}

// privileged refuses what only root may open, although this process may: a VM of root's is
// no more to be trusted with the port of a service of the host's that does not run just
// now than another user's. A mapping to the port says that it is meant.
func (t *Table) privileged(k Key) error {
	if os.Geteuid() != 0 {
		return nil // the kernel does
	}
	for _, to := range t.settings.Map {
		if to == k.Addr.Port() {
			return nil
		}
	}
	if k.Addr.Port() < firstFree() {
		return fmt.Errorf("listen %s: %w", k, syscall.EACCES)
	}
	return nil
}

// firstFree is the first port that every user may open (ip(7), ip_unprivileged_port_start).
func firstFree() uint16 {
	const usual = 1024
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
	if err != nil {
		return usual
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 16)
	if err != nil {
		return usual
	}
	return uint16(n)
}

// onLoopback ties a socket to the loopback interface. An address of 127.0.0.0/8 is not
// enough: a host whose route_localnet is on (kube-proxy sets it) takes packets for it
// from the network. Before Linux 5.7 only root may do this, and the address must do.
func onLoopback(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) { _ = unix.BindToDevice(int(fd), "lo") })
}

// serveTCP accepts connections and relays them until ctx ends, which cuts them.
func (t *Table) serveTCP(ctx context.Context, l net.Listener, k Key, line Line, c *counters) {
	const firstDelay, maxDelay = 5 * time.Millisecond, time.Second
	delay := firstDelay
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			if err == nil {
				abort(conn)
			}
			return
		}
		if err != nil { // of one connection, or no room for it now
			t.log.Warn("cannot accept a connection for now", "address", k.String(), "error", err)
			select {
			case <-time.After(delay):
			case <-ctx.Done():
				return
			}
			delay = min(2*delay, maxDelay)
			continue
		}
		delay = firstDelay
		if from := conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr(); !t.admit(k, from) {
			t.log.Warn("connection refused: the port is not exposed to its sender", "address", k.String(), "from", from.String())
			abort(conn)
			continue
		}
		t.run.Go(func() {
			c.now.Add(1)
			c.total.Add(1)
			defer c.now.Add(-1)
			if err := t.relayTCP(ctx, conn, line, c); err != nil && ctx.Err() == nil {
				t.log.Debug("connection ended early", "address", k.String(), "error", err)
			}
		})
	}
}

// relayTCP relays one connection. What breaks one side breaks the other, so that an
// end is never taken for a good one.
func (t *Table) relayTCP(ctx context.Context, conn net.Conn, line Line, c *counters) error {
	defer context.AfterFunc(ctx, func() { abort(conn) })()
	dialling, cancel := context.WithTimeout(ctx, dialTimeout)
	vm, err := t.o.Dial(dialling, "tcp", line.Target.String())
	cancel()
	if err != nil {
		abort(conn)
		return err
	}
	if err := relay.Join(ctx, conn, vm, &c.Count); err != nil {
		abort(conn)
		return fmt.Errorf("relay: %w", err)
	}
	return conn.Close()
}

// abort closes a connection so that its peer sees that it broke.
func abort(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = c.Close()
}

// gone says that an error of reading datagrams is not one of a single datagram.
func gone(err error) bool {
	return !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.EMSGSIZE)
}
