package usernet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/devvm/devvm/pkg/usernet/internal/socket"
)

// A relay joins a TCP connection of the guest and a stream socket of the host.
// Bytes go from the socket straight into the stack's buffers and back: there
// are no buffers in between, so what a slow reader can make us hold is what
// the stack holds, and [relays] bounds that.

// streamConn is a socket of the host: a *net.TCPConn or a *net.UnixConn.
type streamConn interface {
	net.Conn
	syscall.Conn
	CloseWrite() error
}

// The stack's buffers of all relays together, in each direction, and the
// share of one. A connection that is alone has the largest, enough for
// 100 MB/s at 5 ms, a slow emulated guest's round trip.
const (
	bufferBudget = 4 << 20
	minBuffer    = 4 << 10
	maxBuffer    = 512 << 10
)

// relays are those that run. All have buffers of the same size, half of it whenever
// there are twice as many: what one holds does not depend on when it began.
type relays struct {
	mu    sync.Mutex
	conns map[*socket.TCP]bool // whether the guest has opened it
	size  int64                // of the buffers; 0: as at first
}

// share is what the budget leaves to each of n relays.
func share(n int) int64 {
	size := int64(maxBuffer)
	for size > minBuffer && size*int64(n) > bufferBudget {
		size /= 2
	}
	return size
}

func (r *relays) add(c *socket.TCP, byGuest bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conns == nil {
		r.conns, r.size = map[*socket.TCP]bool{}, maxBuffer
	}
	r.conns[c] = byGuest
	if size := share(len(r.conns)); size < r.size {
		r.resize(size)
	} else {
		setBuffers(c.Endpoint, r.size)
	}
}

func (r *relays) remove(c *socket.TCP) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.conns, c)
	// Not at once, or one that comes and goes would resize all.
	if size := share(4 * len(r.conns)); size > r.size {
		r.resize(size)
	}
}

// resize gives all relays buffers of another size. The caller has the lock.
func (r *relays) resize(size int64) {
	r.size = size
	for c := range r.conns {
		setBuffers(c.Endpoint, size)
	}
}

// len says how many there are.
func (r *relays) len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.conns)
}

// abort ends all relays that the guest has opened, and says how many that are.
func (r *relays) abort() int {
	r.mu.Lock()
	var conns []*socket.TCP
	for c, byGuest := range r.conns {
		if byGuest {
			conns = append(conns, c)
		}
	}
	r.mu.Unlock()
	for _, c := range conns {
		c.Abort()
	}
	return len(conns)
}

// join carries bytes both ways until both directions have ended, or ctx has.
// The end of one direction is passed on as such; what breaks one side breaks
// the other. Both connections are closed in the end. byGuest says who has opened it.
func (r *relays) join(ctx context.Context, guest *socket.TCP, host streamConn, byGuest bool) error {
	r.add(guest, byGuest)
	defer r.remove(guest)
	defer guest.Close()

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(ctx, func() { abort(guest); abort(host) })()
	// A reset by the guest ends a direction that waits for the host, too.
	broken := waiter.NewFunctionEntry(waiter.EventErr, func(waiter.EventMask) {
		if tcp.EndpointState(guest.Endpoint.State()) == tcp.StateError {
			cancel(syscall.ECONNRESET)
		}
	})
	guest.Queue.EventRegister(&broken)
	defer guest.Queue.EventUnregister(&broken)

	raw, err := host.SyscallConn()
	if err != nil {
		cancel(err)
		return err
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := toHost(guest, raw); err != nil {
			cancel(fmt.Errorf("from the VM: %w", err))
		} else if err := host.CloseWrite(); err != nil {
			cancel(err)
		}
	})
	if err := toGuest(guest, raw); err != nil {
		cancel(fmt.Errorf("to the VM: %w", err))
	} else if err := guest.CloseWrite(); err != nil {
		cancel(err)
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	_ = host.Close()
	// What the guest has not taken yet stays in the stack, and so this counts until then.
	return finish(ctx, guest)
}

// abort ends a connection at once, so that the peer sees that it broke and did
// not just end.
func abort(c net.Conn) {
	switch c := c.(type) {
	case interface{ Abort() }:
		c.Abort()
	case interface{ SetLinger(int) error }:
		_ = c.SetLinger(0) // the close below says the rest
	}
	_ = c.Close()
}

// toHost carries what the guest sends, up to its end.
func toHost(guest *socket.TCP, host syscall.RawConn) error {
	entry, readable := waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventErr | waiter.EventHUp)
	guest.Queue.EventRegister(&entry)
	defer guest.Queue.EventUnregister(&entry)
	for {
		var (
			w    socketWriter
			res  tcpip.ReadResult
			rerr tcpip.Error
		)
		err := host.Write(func(fd uintptr) bool {
			w = socketWriter{fd: int(fd)}
			res, rerr = guest.Endpoint.Read(&w, tcpip.ReadOptions{})
			return !errors.Is(w.err, unix.EAGAIN) || res.Count > 0 // else wait for the socket
		})
		if err != nil {
			return err
		}
		if res.Count > 0 {
			guest.Endpoint.ModerateRecvBuf(res.Count)
		}
		if w.err != nil && !errors.Is(w.err, unix.EAGAIN) {
			return os.NewSyscallError("write", w.err)
		}
		if w.err != nil {
			continue // Read calls a full socket a bad buffer
		}
		switch rerr.(type) {
		case nil:
		case *tcpip.ErrWouldBlock:
			<-readable
		case *tcpip.ErrClosedForReceive:
			return nil
		default:
			return os.NewSyscallError("read", socket.Errno(rerr))
		}
	}
}

// socketWriter writes to a socket as far as that goes without waiting.
type socketWriter struct {
	fd  int
	err error // EAGAIN: the socket is full
}

func (w *socketWriter) Write(b []byte) (int, error) {
	done := 0
	for done < len(b) && w.err == nil {
		n, err := unix.Write(w.fd, b[done:])
		switch {
		case err == unix.EINTR:
		case err != nil:
			w.err = err
		default:
			done += n
		}
	}
	return done, w.err
}

// toGuest carries what the host's side sends, up to its end.
func toGuest(guest *socket.TCP, host syscall.RawConn) error {
	entry, writable := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventErr | waiter.EventHUp)
	guest.Queue.EventRegister(&entry)
	defer guest.Queue.EventUnregister(&entry)
	for {
		var (
			r    socketReader
			werr tcpip.Error
			err  error
		)
		wait := host.Read(func(fd uintptr) bool {
			r = socketReader{fd: int(fd)}
			if r.left, err = readableBytes(r.fd); err != nil || r.left == 0 {
				return !errors.Is(err, unix.EAGAIN)
			}
			// Without Atomic the stack releases its lock while it reads. If the buffer
			// shrinks meanwhile, it drops what no longer fits: a hole in the stream.
			_, werr = guest.Endpoint.Write(&r, tcpip.WriteOptions{Atomic: true})
			return true
		})
		switch {
		case wait != nil:
			return wait
		case err != nil:
			return os.NewSyscallError("read", err)
		case r.err != nil:
			return os.NewSyscallError("read", r.err)
		case r.left == 0 && !r.used:
			return nil // the end
		}
		switch werr.(type) {
		case nil:
		case *tcpip.ErrWouldBlock:
			<-writable
		default:
			return os.NewSyscallError("write", socket.Errno(werr))
		}
	}
}

// readableBytes says how many bytes can be read from a stream socket: EAGAIN
// if none yet, 0 at the end.
func readableBytes(fd int) (int, error) {
	n, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
	if err != nil || n > 0 {
		return n, err
	}
	var b [1]byte
	for {
		n, _, err := unix.Recvfrom(fd, b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		if err != unix.EINTR {
			return max(n, 0), err
		}
	}
}

// socketReader is a tcpip.Payloader of bytes that wait in a socket.
type socketReader struct {
	fd   int
	left int
	used bool
	err  error
}

// Len implements tcpip.Payloader.
func (r *socketReader) Len() int { return r.left }

// Read implements tcpip.Payloader. The stack asks for no more than Len.
func (r *socketReader) Read(b []byte) (int, error) {
	switch {
	case r.left == 0:
		return 0, io.EOF
	case len(b) == 0:
		return 0, nil
	}
	for {
		r.used = true
		n, err := unix.Read(r.fd, b[:min(len(b), r.left)])
		switch {
		case err == unix.EINTR:
			continue
		case err == nil && n == 0:
			err = errShort
		}
		if err != nil {
			r.err = err
			return 0, err
		}
		r.left -= n
		return n, nil
	}
}

// errShort says that a socket had less to read than it announced.
var errShort = errors.New("socket ended early")
