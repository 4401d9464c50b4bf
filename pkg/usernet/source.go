package usernet

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/devvm/devvm/pkg/usernet/internal/socket"
	"github.com/devvm/devvm/pkg/vmnet"
)

// A source of datagrams waits for one without holding a buffer, so that a
// thousand idle flows cost no buffers.
type source interface {
	// next waits for a datagram and lends it to use; io.EOF is the end.
	next(use func([]byte) error) error
}

// datagrams are the buffers that sources lend; each holds the largest.
var datagrams = sync.Pool{New: func() any { return new([65535]byte) }}

func sourceOf(c net.Conn) source {
	switch c := c.(type) {
	case *socket.UDP:
		return &endpointSource{c}
	case *vmnet.DatagramConn:
		return tunnelSource{c}
	case syscall.Conn:
		if raw, err := c.SyscallConn(); err == nil {
			return &socketSource{raw}
		}
	}
	return &connSource{c}
}

// tunnelSource reads from a client of the dial socket.
type tunnelSource struct{ *vmnet.DatagramConn }

func (s tunnelSource) next(use func([]byte) error) error { return s.Next(use) }

// endpointSource reads from the stack.
type endpointSource struct{ *socket.UDP }

func (s *endpointSource) next(use func([]byte) error) error {
	n, buf, err := s.read()
	if isWouldBlock(err) {
		entry, ready := waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventErr | waiter.EventHUp)
		s.Queue.EventRegister(&entry)
		for {
			if n, buf, err = s.read(); !isWouldBlock(err) {
				break
			}
			<-ready
		}
		s.Queue.EventUnregister(&entry)
	}
	switch err.(type) {
	case nil:
	case *tcpip.ErrClosedForReceive:
		return io.EOF
	default:
		return os.NewSyscallError("read", socket.Errno(err))
	}
	defer datagrams.Put(buf)
	return use(buf[:n])
}

func (s *endpointSource) read() (int, *[65535]byte, tcpip.Error) {
	buf := datagrams.Get().(*[65535]byte)
	w := tcpip.SliceWriter(buf[:])
	res, err := s.Endpoint.Read(&w, tcpip.ReadOptions{})
	if err != nil {
		datagrams.Put(buf)
		return 0, nil, err
	}
	return res.Count, buf, nil
}

func isWouldBlock(err tcpip.Error) bool {
	_, ok := err.(*tcpip.ErrWouldBlock)
	return ok
}

// socketSource reads from a socket of the host.
type socketSource struct{ raw syscall.RawConn }

func (s *socketSource) next(use func([]byte) error) error {
	var (
		n   int
		err error
		buf *[65535]byte
	)
	wait := s.raw.Read(func(fd uintptr) bool {
		buf = datagrams.Get().(*[65535]byte)
		for {
			n, err = unix.Read(int(fd), buf[:])
			if err != unix.EINTR {
				break
			}
		}
		if err != nil {
			datagrams.Put(buf)
		}
		return err != unix.EAGAIN
	})
	switch {
	case wait != nil:
		return wait
	case err != nil:
		return os.NewSyscallError("read", err)
	}
	defer datagrams.Put(buf)
	return use(buf[:n])
}

// connSource reads from a connection whose Read returns one datagram.
type connSource struct{ conn net.Conn }

func (s *connSource) next(use func([]byte) error) error {
	buf := datagrams.Get().(*[65535]byte)
	defer datagrams.Put(buf)
	n, err := s.conn.Read(buf[:])
	if err != nil {
		return err
	}
	return use(buf[:n])
}
