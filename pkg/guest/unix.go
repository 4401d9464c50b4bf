package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"
)

// UnixConn is a connection to a unix socket in the guest. Each direction can be closed
// separately. It has no deadlines: setting one is an error.
type UnixConn struct {
	ch     ssh.Channel
	link   *link
	path   string
	closed atomic.Bool

	done chan struct{}
	lost bool // read after done
}

// DialUnix connects to the unix socket at path in the guest. The connection is a *[UnixConn].
// If ctx ends before the guest answers, DialUnix returns at once, and closes the connection if
// it arrives later.
func (c *Client) DialUnix(ctx context.Context, path string) (net.Conn, error) {
	ch, reqs, err := c.open(ctx, "direct-streamlocal@openssh.com", ssh.Marshal(struct {
		Path      string
		Reserved0 string
		Reserved1 uint32
	}{Path: path}))
	if err != nil {
		return nil, fmt.Errorf("connect to %s in the VM: %w", path, err)
	}
	u := &UnixConn{ch: ch, link: c.link, path: path, done: make(chan struct{})}
	go func() {
		ssh.DiscardRequests(reqs) // ends when the channel is closed in both directions
		u.lost = u.link.broken.Load()
		close(u.done)
	}()
	return u, nil
}

// Read implements [net.Conn].
func (u *UnixConn) Read(p []byte) (int, error) {
	n, err := u.ch.Read(p)
	if errors.Is(err, io.EOF) {
		switch {
		case u.closed.Load():
			err = net.ErrClosed
		case u.link.broken.Load():
			// The ssh package reports a lost connection as a clean end.
			err = fmt.Errorf("%w: connection lost", ErrUnreachable)
		}
	}
	return n, err
}

// Write implements [net.Conn].
func (u *UnixConn) Write(p []byte) (int, error) {
	n, err := u.ch.Write(p)
	if err != nil {
		switch {
		case u.closed.Load():
			err = net.ErrClosed
		case u.link.broken.Load():
			err = fmt.Errorf("%w: connection lost", ErrUnreachable)
		default:
			err = io.ErrClosedPipe
		}
	}
	return n, err
}

// CloseWrite tells the peer that no more data will come. Reading still works.
func (u *UnixConn) CloseWrite() error { return u.ch.CloseWrite() }

// Close closes both directions. It does not wait for the guest, even if the
// link is stuck.
func (u *UnixConn) Close() error {
	if u.closed.Swap(true) {
		return net.ErrClosed
	}
	go func() { _ = u.ch.Close() }()
	return nil
}

// Done is closed when the peer has closed both directions or the connection to the guest has
// ended. Nothing more can be sent, and everything that can still be read has arrived.
func (u *UnixConn) Done() <-chan struct{} { return u.done }

// Err reports, after Done, whether the connection to the guest was lost (an error that wraps
// [ErrUnreachable]) or the peer closed it cleanly (nil).
func (u *UnixConn) Err() error {
	select {
	case <-u.done:
		if u.lost {
			return fmt.Errorf("%w: connection lost", ErrUnreachable)
		}
	default:
	}
	return nil
}

// LocalAddr implements [net.Conn].
func (u *UnixConn) LocalAddr() net.Addr { return &net.UnixAddr{Name: "@", Net: "unix"} }

// RemoteAddr implements [net.Conn]; its name is the path in the guest.
func (u *UnixConn) RemoteAddr() net.Addr { return &net.UnixAddr{Name: u.path, Net: "unix"} }

// SetDeadline implements [net.Conn]; it always fails.
func (u *UnixConn) SetDeadline(time.Time) error { return errNoDeadline }

// SetReadDeadline implements [net.Conn]; it always fails.
func (u *UnixConn) SetReadDeadline(time.Time) error { return errNoDeadline }

// SetWriteDeadline implements [net.Conn]; it always fails.
func (u *UnixConn) SetWriteDeadline(time.Time) error { return errNoDeadline }

var errNoDeadline = fmt.Errorf("deadline on a connection into the VM: %w", errors.ErrUnsupported)
