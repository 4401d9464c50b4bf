// Package relay joins two stream connections: bytes pass both ways unchanged, with
// half-close in both directions and back-pressure, in fixed memory per connection.
//
// It imports no other package of devvm and knows nothing of what passes. It fails
// as its connections do; a connection that is stuck holds one goroutine until it is
// closed, and nobody who waits.
package relay

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Count counts the bytes that pass; both fields may be shared by connections.
type Count struct {
	Sent     atomic.Int64 // from clients to servers
	Received atomic.Int64
}

// Join passes bytes between client and server until both directions have ended
// or one has failed. The end of one direction is passed on as such. In the end
// the server is closed, and the client is the caller's to close.
//
// The server must have CloseWrite() error. It may have two more methods: Done()
// <-chan struct{}, closed when nothing can be sent any more, and Err() error, not
// nil after Done if the connection was lost rather than closed. The client may be
// read with a deadline.
func Join(ctx context.Context, client, server net.Conn, count *Count) error {
	if count == nil {
		count = new(Count)
	}
	return JoinBy(ctx, client, server,
		func() error { return pass(server, client, &count.Sent) },
		func() error { return pass(client, server, &count.Received) })
}

// JoinBy is Join with the two directions carried by the caller: up returns when
// the client has nothing more to send, or with a [*WriteError] when the server takes no
// more; down when the server has nothing more to send.
func JoinBy(ctx context.Context, client, server net.Conn, up, down func() error) error {
	defer func() { _ = server.Close() }()
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()

	// The server's reader has a goroutine that is not waited for: a Read from
	// a link that is stuck cannot be interrupted, and the client is not to
	// wait for it.
	fromServer := make(chan error, 1)
	fromClient := make(chan error, 1)
	go func() {
		err := down()
		if err == nil {
			_ = CloseWrite(client)
		}
		fromServer <- err
	}()
	go func() {
		err := up()
		if err == nil {
			if HungUp(client) {
				// Nobody is left to read the answer.
				err = errHungUp
			} else {
				_ = CloseWrite(server)
			}
		}
		fromClient <- err
	}()
	return watch(ctx, client, server, fromClient, fromServer)
}

// watch waits until both directions have ended, or one has failed.
func watch(ctx context.Context, client, server net.Conn, up, down <-chan error) error {
	var done <-chan struct{}
	if d, ok := server.(interface{ Done() <-chan struct{} }); ok {
		done = d.Done()
	}
	for up != nil || down != nil {
		select {
		case err := <-down:
			if err != nil {
				return err
			}
			down = nil
		case err := <-up:
			var write *WriteError
			if err != nil && !errors.As(err, &write) {
				return err
			}
			// The server does not read any more, but its answer may still be
			// on the way: that direction ends by itself.
			up = nil
		case <-done:
			if e, ok := server.(interface{ Err() error }); ok && e.Err() != nil {
				return e.Err()
			}
			// Closed in good order: deliver what has arrived, take no more.
			done = nil
			_ = client.SetReadDeadline(time.Unix(1, 0))
			up = nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

var errHungUp = errors.New("client hung up")

// WriteError is an error that came from the destination of a direction: the other
// direction may go on.
type WriteError struct{ Err error }

// Error implements error.
func (e *WriteError) Error() string { return e.Err.Error() }

// Unwrap gives the cause.
func (e *WriteError) Unwrap() error { return e.Err }

// Buffer sizes. A connection that is idle or chats holds the small one; a bulk
// transfer borrows a large one.
const (
	smallBuffer = 4 << 10
	largeBuffer = 64 << 10
)

var largeBuffers = sync.Pool{New: func() any { return new([largeBuffer]byte) }}

// Pass copies from src to dst until src ends (nil) or one of them fails. It
// never holds more than one buffer: a slow reader stops the writer.
func Pass(dst io.Writer, src io.Reader) error { return pass(dst, src, nil) }

func pass(dst io.Writer, src io.Reader, count *atomic.Int64) error {
	small := make([]byte, smallBuffer)
	var large *[largeBuffer]byte
	defer func() {
		if large != nil {
			largeBuffers.Put(large)
		}
	}()
	for {
		buf := small
		if large != nil {
			buf = large[:]
		}
		n, err := src.Read(buf)
		if n > 0 {
			m, err := dst.Write(buf[:n])
			if count != nil {
				count.Add(int64(m))
			}
			if err != nil {
				return &WriteError{err}
			}
		}
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
		switch {
		case large == nil && n == len(small):
			large = largeBuffers.Get().(*[largeBuffer]byte)
		case large != nil && n <= len(small):
			largeBuffers.Put(large)
			large = nil
		}
	}
}

// CloseWrite ends the sending direction of a connection.
func CloseWrite(c net.Conn) error {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return errors.ErrUnsupported
}

// HungUp says that a peer which has closed its sending direction has closed
// the other as well.
func HungUp(c net.Conn) bool {
	s, ok := c.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return false
	}
	gone := false
	err = raw.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd)}}
		n, err := unix.Poll(fds, 0)
		gone = err == nil && n == 1 && fds[0].Revents&unix.POLLHUP != 0
	})
	return err == nil && gone
}
