package usernet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"github.com/devvm/devvm/pkg/background"
)

// Errors of [Run].
var (
	// ErrLocked says that another process serves this VM's network.
	ErrLocked = errors.New("another network process serves this VM")
	// ErrNoQEMU says that QEMU did not come.
	ErrNoQEMU = errors.New("QEMU did not connect to the network")
)

const defaultWaitQEMU = 60 * time.Second

// Options of the network process.
type Options struct {
	Config

	NetSocket  string // unix socket that QEMU connects to
	DialSocket string // unix socket that a Dialer connects to
	Lock       string // file whose flock makes this process the only one

	// QEMU, unless nil, is the user that QEMU runs as, to whom NetSocket is given. Only root can.
	QEMU *background.Owner

	// WaitQEMU is how long to wait for QEMU to come; 0: 60 s.
	WaitQEMU time.Duration
	// Confine, if any, is called once both sockets are there: from then on the process
	// opens no file but ResolvConf and Hosts, connects to the sockets of Services, and
	// may not be able to remove NetSocket at its end. Its error ends the process.
	Confine func() error
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
	place, err := background.Take(ctx, o.Lock)
	switch {
	case ctx.Err() != nil:
		return nil
	case errors.Is(err, background.ErrTaken):
		return ErrLocked
	case err != nil:
		return err
	}
	defer place.Close()
	debug.SetGCPercent(gcPercent)
	debug.SetMemoryLimit(memoryLimit)

	s, err := New(o.Config)
	if err != nil {
		return err
	}
	defer s.Close()
	s.pressure.watched.Store(true)
	qemu, err := background.Listen(o.NetSocket, o.QEMU)
	if err != nil {
		return err
	}
	defer qemu.Close()
	dialin, err := background.Listen(o.DialSocket, nil)
	if err != nil {
		return err
	}
	defer dialin.Close()

	if o.Confine != nil {
		if err := o.Confine(); err != nil {
			return err
		}
	}
	if o.Ready != nil { // before anything is answered: a client waits until it is
		if err := o.Ready(); err != nil {
			return err
		}
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { s.keepSmall(ctx) })
	wg.Go(func() {
		if !place.Held(ctx) {
			stop(errReplaced)
		}
	})
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

// errReplaced says that nobody can find this process any more: its files were removed, perhaps
// by a cleaner of temporary files. Another one takes its place, see [Run].
var errReplaced = errors.New("the lock of this process has been removed")

// errStopped says that the process was asked to end.
var errStopped = errors.New("stopped")

// serveQEMU serves the first QEMU that comes, until it ends; others are turned away.
func serveQEMU(ctx context.Context, s *Stack, l *background.Listener, o Options) error {
	if err := l.SetDeadline(time.Now().Add(o.WaitQEMU)); err != nil {
		return fmt.Errorf("accept QEMU: %w", err)
	}
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	conn, err := l.Accept()
	switch {
	case ctx.Err() != nil:
		if err == nil {
			_ = conn.Close()
		}
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return ErrNoQEMU
	case err != nil:
		return fmt.Errorf("accept QEMU: %w", err)
	}
	if err := l.SetDeadline(time.Time{}); err != nil && ctx.Err() == nil {
		_ = conn.Close()
		return fmt.Errorf("accept QEMU: %w", err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer l.Close()
	wg.Go(func() {
		for {
			other, err := l.Accept()
			if err != nil {
				return
			}
			s.log.Warn("a second QEMU was turned away")
			_ = other.Close()
		}
	})
	if err := s.Serve(ctx, conn); err != nil {
		s.log.Warn("QEMU's connection broke", "error", err)
	}
	return nil
}
