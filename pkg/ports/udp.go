package ports

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxSessions bounds the peers of one UDP port; the one that was silent longest
	// makes room.
	maxSessions = 1024
	// maxWaiting bounds the datagrams that wait for a session to be dialled.
	maxWaiting = 16
	// answeredFor is how much longer a session lives whose container has answered.
	answeredFor = 4
	// maxDatagram is larger than any datagram's payload.
	maxDatagram = 65535
)

type peer = netip.AddrPort

// udpSocket relays the datagrams of one UDP port: each peer has a session, a connection
// of its own into the VM.
type udpSocket struct {
	table *Table
	key   Key
	conn  *net.UDPConn

	mu       sync.Mutex
	sessions map[peer]*session
}

// session is one peer of a UDP port.
type session struct {
	end     context.CancelFunc
	idle    *time.Timer
	last    atomic.Int64 // when the peer sent, by its order
	replied atomic.Bool

	mu      sync.Mutex
	vm      net.Conn // nil while it is dialled
	waiting [][]byte
}

// serve relays until the socket is closed.
func (u *udpSocket) serve(ctx context.Context, line Line, c *counters) {
	defer func() { _ = u.conn.Close() }()
	raw, err := u.conn.SyscallConn()
	if err != nil {
		return
	}
	for order := int64(0); ctx.Err() == nil; order++ {
		err := receive(raw, func(b []byte, from peer) {
			if !u.table.admit(u.key, from.Addr()) {
				return
			}
			s := u.session(ctx, from, line, c)
			s.last.Store(order)
			if s.send(b, u.table.o.UDPIdle) {
				c.Sent.Add(int64(len(b)))
			}
		})
		if err != nil && gone(err) {
			return
		}
	}
}

// buffers hold one datagram each, and are lent while one is at hand: a hundred ports
// that wait hold none.
var buffers = sync.Pool{New: func() any { return new([maxDatagram]byte) }}

// receive waits for a datagram and lends it to use.
func receive(raw syscall.RawConn, use func([]byte, peer)) error {
	var (
		n      int
		sender unix.Sockaddr
		err    error
		buf    *[maxDatagram]byte
	)
	wait := raw.Read(func(fd uintptr) bool {
		buf = buffers.Get().(*[maxDatagram]byte)
		for {
			n, sender, err = unix.Recvfrom(int(fd), buf[:], unix.MSG_DONTWAIT)
			if !errors.Is(err, unix.EINTR) {
				break
			}
		}
		if err != nil {
			buffers.Put(buf)
		}
		return !errors.Is(err, unix.EAGAIN)
	})
	switch {
	case wait != nil:
		return wait
	case err != nil:
		return err
	}
	defer buffers.Put(buf)
	switch a := sender.(type) {
	case *unix.SockaddrInet4:
		use(buf[:n], netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)))
	case *unix.SockaddrInet6:
		from := netip.AddrFrom16(a.Addr)
		if a.ZoneId != 0 {
			from = from.WithZone(strconv.Itoa(int(a.ZoneId)))
		}
		use(buf[:n], netip.AddrPortFrom(from, uint16(a.Port)))
	}
	return nil
}

// session finds the session of a peer, or begins one.
func (u *udpSocket) session(ctx context.Context, from peer, line Line, c *counters) *session {
	u.mu.Lock()
	defer u.mu.Unlock()
	if s := u.sessions[from]; s != nil {
		return s
	}
	if len(u.sessions) >= maxSessions {
		u.drop(u.oldest())
	}
	ctx, cancel := context.WithCancel(ctx)
	s := &session{end: cancel}
	s.idle = time.AfterFunc(u.table.o.UDPIdle, cancel)
	u.sessions[from] = s
	u.table.run.Go(func() {
		c.now.Add(1)
		c.total.Add(1)
		defer c.now.Add(-1)
		defer u.forget(from, s)
		if err := u.relay(ctx, s, from, line, c); err != nil && ctx.Err() == nil {
			u.table.log.Debug("UDP session ended", "address", u.key.String(), "error", err)
		}
	})
	return s
}

// oldest is the peer that has been silent longest. The caller holds the lock.
func (u *udpSocket) oldest() peer {
	var found peer
	for p, s := range u.sessions {
		if o := u.sessions[found]; o == nil || s.last.Load() < o.last.Load() {
			found = p
		}
	}
	return found
}

// drop ends a session. The caller holds the lock.
func (u *udpSocket) drop(p peer) {
	if s := u.sessions[p]; s != nil {
		s.end()
		delete(u.sessions, p)
	}
}

// forget removes a session that has ended.
func (u *udpSocket) forget(p peer, s *session) {
	s.end()
	s.idle.Stop()
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.sessions[p] == s {
		delete(u.sessions, p)
	}
}

// relay dials the VM and carries its answers back, until ctx ends.
func (u *udpSocket) relay(ctx context.Context, s *session, from peer, line Line, c *counters) error {
	dialling, cancel := context.WithTimeout(ctx, dialTimeout)
	vm, err := u.table.o.Dial(dialling, "udp", line.Target.String())
	cancel()
	if err != nil {
		return err
	}
	defer func() { _ = vm.Close() }()
	defer context.AfterFunc(ctx, func() { _ = vm.Close() })()
	s.dialled(vm)
	return datagrams(answers{u, s, from, c}, vm)
}

// dialled takes the connection into the VM and sends what waits.
func (s *session) dialled(vm net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.waiting {
		_, _ = vm.Write(b)
	}
	s.vm, s.waiting = vm, nil
}

// send sends a datagram into the VM, or keeps it until that is dialled. What there is
// no room for is lost, as datagrams are.
func (s *session) send(b []byte, idle time.Duration) bool {
	s.alive(idle)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.vm == nil {
		if len(s.waiting) >= maxWaiting {
			return false
		}
		s.waiting = append(s.waiting, slices.Clone(b))
		return true
	}
	if _, err := s.vm.Write(b); err != nil {
		s.end()
		return false
	}
	return true
}

// alive puts the end of the session off.
func (s *session) alive(idle time.Duration) {
	if s.replied.Load() {
		idle *= answeredFor
	}
	s.idle.Reset(idle)
}

// answers takes the VM's datagrams for one peer.
type answers struct {
	u    *udpSocket
	s    *session
	peer peer
	c    *counters
}

// Write implements io.Writer, one datagram at a time.
func (a answers) Write(b []byte) (int, error) {
	a.s.replied.Store(true)
	a.s.alive(a.u.table.o.UDPIdle)
	n, err := a.u.conn.WriteToUDPAddrPort(b, a.peer)
	a.c.Received.Add(int64(n))
	if err != nil && gone(err) {
		return n, err
	}
	return len(b), nil
}

// datagrams writes each datagram of a connection until that ends.
func datagrams(w io.Writer, vm net.Conn) error {
	if from, ok := vm.(io.WriterTo); ok {
		_, err := from.WriteTo(w)
		return err
	}
	buf := make([]byte, maxDatagram)
	for {
		n, err := vm.Read(buf)
		if err != nil {
			return err
		}
		if _, err := w.Write(buf[:n]); err != nil {
			return err
		}
	}
}
