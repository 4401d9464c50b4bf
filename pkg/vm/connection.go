package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"

	libvirt "github.com/digitalocean/go-libvirt"
)

// link is one connection to the daemon. go-libvirt's calls know neither context
// nor deadline, so a call is broken by closing the connection under it; that is
// why each call has a link to itself.
type link struct {
	*libvirt.Libvirt
	conn *watchedConn
	dir  string // where the daemon has its sockets
}

func (l *link) lost() bool {
	select {
	case <-l.conn.lost:
		return true
	default:
		return false
	}
}

// watchedConn tells when the connection is gone. go-libvirt's own channel for
// this is not set yet while it connects.
type watchedConn struct {
	net.Conn
	lost    chan struct{}
	once    sync.Once
	settled chan struct{} // closed when go-libvirt has connected, or given up
}

// connectTime is how long go-libvirt may take between the last answer that it
// needs to connect and being connected.
const connectTime = time.Second

func (c *watchedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil {
		c.once.Do(func() { close(c.lost) })
		// An end that go-libvirt sees while it is connecting is a data race of
		// its own (ConnectToURI with waitAndDisconnect). The wait is bounded,
		// since it may be waiting for an answer that will not come any more.
		select {
		case <-c.settled:
		case <-time.After(connectTime):
		}
	}
	return n, err
}

func (c *watchedConn) Close() error {
	c.once.Do(func() { close(c.lost) })
	return c.Conn.Close()
}

// Dial implements go-libvirt's dialer.
func (c *watchedConn) Dial() (net.Conn, error) { return c, nil }

// connect makes a new link, starting the daemon when needed.
func (h *hypervisor) connect(ctx context.Context) (*link, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, h.timeout, fmt.Errorf("%w: no answer within %v", ErrNoLibvirt, h.timeout))
	defer cancel()
	for {
		l, err := h.connectOnce(ctx)
		if err == nil {
			return l, nil
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("connect to %s: %w", h.uri, errors.Join(context.Cause(ctx), err))
		}
		var refused libvirt.Error
		switch {
		case connectionLost(err):
		case errors.As(err, &refused) && strings.Contains(refused.Message, "no connection driver"):
			return nil, fmt.Errorf("connect to %s: %w: libvirt's QEMU driver is not installed (Debian and Ubuntu: package libvirt-daemon-driver-qemu): %w", h.uri, ErrNoLibvirt, err)
		case errors.As(err, &refused): // for example by polkit
			return nil, fmt.Errorf("connect to %s: %w: it refuses: %w", h.uri, ErrNoLibvirt, err)
		default:
			return nil, fmt.Errorf("connect to %s: %w", h.uri, err)
		}
		// The daemon was on its way out (it leaves after two minutes of
		// nothing to do) or was killed: there will be another.
		if err := pause(ctx, retryDial); err != nil {
			return nil, fmt.Errorf("connect to %s: %w", h.uri, err)
		}
	}
}

func (h *hypervisor) connectOnce(ctx context.Context) (*link, error) {
	raw, dir, err := h.daemon.dial(ctx)
	if err != nil {
		return nil, err
	}
	conn := &watchedConn{Conn: raw, lost: make(chan struct{}), settled: make(chan struct{})}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	lv := libvirt.NewWithDialer(conn)
	err = lv.ConnectToURI(libvirt.ConnectURI(h.uri))
	close(conn.settled)
	if err != nil {
		conn.Close()
		return nil, err
	}
	// One more call: it proves the link, and it orders go-libvirt's writes
	// before those of its goroutine that waits for the end.
	if _, err := lv.ConnectGetLibVersion(); err != nil {
		conn.Close()
		return nil, err
	}
	return &link{Libvirt: lv, conn: conn, dir: dir}, nil
}

// take returns an idle link that still lives, or a new one.
func (h *hypervisor) take(ctx context.Context) (*link, error) {
	for {
		h.mu.Lock()
		if h.closed {
			h.mu.Unlock()
			return nil, net.ErrClosed
		}
		n := len(h.idle)
		if n == 0 {
			h.mu.Unlock()
			return h.connect(ctx)
		}
		l := h.idle[n-1]
		h.idle = h.idle[:n-1]
		h.mu.Unlock()
		if !l.lost() {
			return l, nil
		}
		l.conn.Close()
		h.forget()
	}
}

// put returns a link after use.
func (h *hypervisor) put(l *link) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed || l.lost() || len(h.idle) >= maxIdle {
		l.conn.Close()
		return
	}
	h.idle = append(h.idle, l)
}

// maxIdle is how many links stay open between calls; concurrent callers may
// have more.
const maxIdle = 4

// do runs one or more RPCs on a link of their own and breaks them when ctx
// ends. It makes errors of lost connections recognisable.
func (h *hypervisor) do(ctx context.Context, f func(*link) error) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	l, err := h.take(ctx)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { l.conn.Close() })
	hung := h.guard(ctx, l)
	err = f(l)
	if hung() && err != nil {
		stop()
		h.forget()
		return fmt.Errorf("%w: its daemon runs, but has not answered for %v (stopped, or stuck? restart it, and try again)", ErrNoLibvirt, unasked(h.timeout)+h.timeout)
	}
	if stop() {
		h.put(l)
	} else if err != nil {
		return context.Cause(ctx)
	}
	if connectionLost(err) {
		l.conn.Close()
		h.forget()
		return fmt.Errorf("%w (%w)", ErrConnectionLost, err)
	}
	return err
}

// doWith is do for a call about one VM, which waits for its QEMU: it ends with ErrStopped when
// that is stopped. libvirt would wait for ever.
func (h *hypervisor) doWith(ctx context.Context, name string, f func(*link) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel(nil)
	return h.do(ctx, func(l *link) error {
		watching.Go(func() {
			for was := false; pause(ctx, unasked(h.timeout)/3) == nil; {
				qemu, _ := findProcess(h.pidFile(l.dir, name), name)
				is := qemu.stopped()
				if was && is {
					cancel(ErrStopped)
					return
				}
				was = is
			}
		})
		return f(l)
	})
}

// unasked is how long a call may take until the daemon is asked whether it is there.
func unasked(timeout time.Duration) time.Duration { return timeout / 3 }

// guard breaks the link when the daemon falls silent. Some calls take minutes, so their time
// says nothing: whether the daemon answers somebody else does. The function that it returns
// ends the guard, and tells whether it broke the link.
func (h *hypervisor) guard(ctx context.Context, l *link) func() bool {
	ctx, cancel := context.WithCancel(ctx)
	var guarding sync.WaitGroup
	hung := false
	guarding.Go(func() {
		for pause(ctx, unasked(h.timeout)) == nil {
			patient, stop := context.WithTimeout(ctx, h.timeout)
			other, err := h.connectOnce(patient)
			silent := patient.Err() != nil && ctx.Err() == nil
			stop()
			if err == nil {
				other.conn.Close()
				continue
			}
			if silent {
				hung = true
				l.conn.Close()
				return
			}
		}
	})
	return func() bool {
		cancel()
		guarding.Wait()
		return hung
	}
}

// read is do for calls that change nothing: they are repeated when the daemon
// goes away under them.
func (h *hypervisor) read(ctx context.Context, f func(*link) error) error {
	const attempts = 5
	for n := 1; ; n++ {
		err := h.do(ctx, f)
		if !errors.Is(err, ErrConnectionLost) || n == attempts {
			return err
		}
		if err := pause(ctx, time.Duration(n)*retryDial); err != nil {
			return err
		}
	}
}

// connectionLost recognises what go-libvirt returns when the connection broke
// before or during a call.
func connectionLost(err error) bool {
	var fromDaemon libvirt.Error
	switch {
	case err == nil:
		return false
	case errors.As(err, &fromDaemon):
		return fromDaemon.Code == uint32(libvirt.ErrRPC)
	}
	return errors.Is(err, syscall.EINVAL) || // go-libvirt's word for "not connected"
		errors.Is(err, libvirt.ErrInterrupted) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, net.ErrClosed) ||
		errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) ||
		errors.Is(err, syscall.EAGAIN) // its queue of connections is full
}

// pause waits, unless ctx ends first.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
