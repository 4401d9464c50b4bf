package usernet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"time"

	"github.com/gofrs/flock"
)

// Errors of [Run].
var (
	// ErrLocked says that another process serves this VM's network.
	ErrLocked = errors.New("another network process serves this VM")
	// ErrNoQEMU says that QEMU did not come.
	ErrNoQEMU = errors.New("QEMU did not connect to the network")
)

const (
	defaultWaitQEMU = 60 * time.Second
	// lockTimeout is how long a new process waits for the one before it to
	// end.
	lockTimeout = 5 * time.Second
	// handover is how long a second QEMU may wait for the first to go: a
	// restored VM can come a moment before the end of the saved one is seen.
	handover = 2 * time.Second
)

// Options of the network process.
type Options struct {
	Config

	NetSocket  string // unix socket that QEMU connects to
	DialSocket string // unix socket that a Dialer connects to
	Lock       string // file whose flock makes this process the only one

	// OwnNetSocket gives NetSocket to NetUID and NetGID, for a QEMU that runs
	// as another user. Only root can.
	OwnNetSocket   bool
	NetUID, NetGID int

	// WaitQEMU is how long to wait for QEMU to come for the first time; 0: 60 s.
	WaitQEMU time.Duration
	// Reconnect is how long to wait for QEMU to come back after its connection
	// ended; 0: not at all.
	Reconnect time.Duration
	// Ready, if any, is called once both sockets take connections. Its error ends
	// the process.
	Ready func() error
}

// Run serves one VM's network: the body of the process `devvm net`. It removes
// what a killed predecessor left, listens on both sockets, and returns nil
// when QEMU has gone, when [Dialer.Stop] asks, or when ctx ends. ErrLocked and
// ErrNoQEMU are the failures that need no bug to happen.
//
// It sets the garbage collector of its process, which should do nothing else.
func Run(ctx context.Context, o Options) error {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.WaitQEMU == 0 {
		o.WaitQEMU = defaultWaitQEMU
	}
	lock := flock.New(o.Lock, flock.SetPermissions(0o600))
	locking, cancel := context.WithTimeout(ctx, lockTimeout)
	ok, err := lock.TryLockContext(locking, 50*time.Millisecond)
	cancel()
	switch {
	case ctx.Err() != nil:
		return nil
	case errors.Is(err, context.DeadlineExceeded), err == nil && !ok:
		return ErrLocked
	case err != nil:
		return fmt.Errorf("lock %s: %w", o.Lock, err)
	}
	defer lock.Close()
	debug.SetGCPercent(gcPercent)

	s, err := New(o.Config)
	if err != nil {
		return err
	}
	defer s.Close()
	qemu, err := listenUnix(o.NetSocket, o.OwnNetSocket, o.NetUID, o.NetGID)
	if err != nil {
		return err
	}
	defer qemu.Close()
	dialin, err := listenUnix(o.DialSocket, false, 0, 0)
	if err != nil {
		return err
	}
	defer dialin.Close()

	if o.Ready != nil { // before anything is answered: a client waits until it is
		if err := o.Ready(); err != nil {
			return err
		}
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { trimMemory(ctx) })
	wg.Go(func() {
		if err := s.serveDialIn(ctx, dialin, func() { stop(errStopped) }); err != nil {
			stop(err)
		}
	})
	err = serveQEMU(ctx, s, qemu, o)
	stop(errStopped) // ends the dial-in side
	if cause := context.Cause(ctx); err == nil && !errors.Is(cause, errStopped) && !errors.Is(cause, context.Canceled) {
		err = cause
	}
	return err
}

// errStopped says that the process was asked to end.
var errStopped = errors.New("stopped")

const (
	// gcPercent trades a little of the processor for a small process.
	gcPercent = 50
	// A process that holds more than trimAbove bytes gives back, every
	// trimEvery, what a burst of connections has left: without it an idle
	// process would keep that for minutes.
	trimAbove = 12 << 20
	trimEvery = 10 * time.Second
)

// trimMemory keeps the process small until ctx ends.
func trimMemory(ctx context.Context) {
	held := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	tick := time.NewTicker(trimEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			metrics.Read(held)
			if held[0].Value.Uint64()-held[1].Value.Uint64() > trimAbove {
				debug.FreeOSMemory()
			}
		}
	}
}

// serveQEMU serves one QEMU after another until one ends and none follows.
func serveQEMU(ctx context.Context, s *Stack, l net.Listener, o Options) error {
	ctx, cancel := context.WithCancel(ctx)
	conns := make(chan net.Conn)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(conns)
		for {
			conn, err := l.Accept()
			if err != nil {
				if ctx.Err() == nil {
					s.log.Error("accept QEMU", "error", err)
				}
				return
			}
			wg.Go(func() { offer(ctx, s, conn, conns) })
		}
	})
	defer wg.Wait()
	defer l.Close()
	defer cancel()

	wait, gone := o.WaitQEMU, ErrNoQEMU
	for {
		timeout := time.NewTimer(wait)
		var conn net.Conn
		select {
		case <-ctx.Done():
			timeout.Stop()
			return nil
		case <-timeout.C:
			return gone
		case conn = <-conns:
			timeout.Stop()
		}
		if conn == nil {
			return fmt.Errorf("accept QEMU on %s: %w", o.NetSocket, net.ErrClosed)
		}
		if err := s.Serve(ctx, conn); err != nil {
			s.log.Warn("QEMU's connection broke", "error", err)
		}
		if o.Reconnect == 0 {
			return nil
		}
		wait, gone = o.Reconnect, nil
	}
}

// offer hands over a connection, or closes it if another QEMU stays.
func offer(ctx context.Context, s *Stack, conn net.Conn, conns chan<- net.Conn) {
	timeout := time.NewTimer(handover)
	defer timeout.Stop()
	select {
	case conns <- conn:
	case <-ctx.Done():
		_ = conn.Close()
	case <-timeout.C:
		s.log.Warn("a second QEMU was turned away", "error", ErrBusy)
		_ = conn.Close()
	}
}
