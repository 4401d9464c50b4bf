// Package dockerproxy serves a Docker Engine's unix socket on this host by
// passing each connection on, byte for byte, over a dial function that it is
// given.
//
// It imports neither guest nor vm, and changes nothing on its own: hijacked
// streams, half-close in both directions and back-pressure work because the
// bytes and the ends of the two streams are all there is to it. Memory per
// connection is bounded.
//
// Where it is given an explainer, it changes the messages of the engine's own failures.
//
// Where it is given a judge ([Options].Admit) it reads the calls that create and start
// containers and create volumes. It answers those that are refused in the engine's place,
// and can change strings in them ([Edit]), no other byte. It can hold the answer to such a call
// back for a moment ([Verdict]). It follows the other requests and
// answers only to see where they end.
//
// When the engine cannot be reached a client gets an HTTP answer that says so
// in the Docker API's own form, after a bounded wait; it never hangs. Running
// out of file descriptors delays new connections and breaks none.
package dockerproxy

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/devvm/devvm/pkg/relay"
)

// ErrDown in the chain of a [DialFunc]'s error says that waiting is pointless,
// for example because the VM has stopped: clients are told at once.
var ErrDown = errors.New("the VM is not running")

// DialFunc opens a connection to the engine. It must return when ctx ends.
//
// The connection must be able to close its two directions apart: it has
// CloseWrite() error. It may have two more methods: Done() <-chan struct{},
// closed when nothing can be sent any more, and Err() error, not nil after Done
// if the connection was lost rather than closed.
type DialFunc func(ctx context.Context) (net.Conn, error)

// Options configure a [Proxy].
type Options struct {
	// Dial opens the engine's side of each connection. Required.
	Dial DialFunc
	// Log takes what goes wrong; nil discards it.
	Log *slog.Logger
	// WaitReady is how long a new connection waits while Dial fails: the time
	// in which a lost link usually comes back.
	WaitReady time.Duration
	// DialTimeout is how much longer than WaitReady a Dial that neither fails
	// nor succeeds may take. Zero means 10 s.
	DialTimeout time.Duration
	// Admit judges the calls that create and start containers and create volumes; nil:
	// no request is looked at.
	Admit AdmitFunc
	// Changing is called before anything is passed on but requests that only read; its
	// error is the answer, or the connection's end. Nil: nobody wants to know.
	Changing func() error
	// Explain, if any, is given the message of each failure of the engine's, and returns
	// what the client gets to read. It is asked only where there is an Admit.
	Explain func(ctx context.Context, message string) string
	// Failed, if any, is told the message with which an answer has ended that had begun well:
	// that of a pull, a build or a load. The client has it by then, as the engine said it. It
	// is asked only where there is an Admit.
	Failed func(ctx context.Context, message string)
	// Unavailable gives the message for clients that cannot be served: what
	// happened and what to do. Nil or an empty message leaves it to the proxy.
	Unavailable func() string
}

// Proxy passes connections on. It has no state besides its connections.
type Proxy struct {
	opts   Options
	log    *slog.Logger
	active atomic.Int64
}

// New makes a proxy.
func New(opts Options) *Proxy {
	if opts.DialTimeout <= 0 {
		opts.DialTimeout = 10 * time.Second
	}
	log := opts.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Proxy{opts: opts, log: log}
}

// Active is the number of connections that clients hold now.
func (p *Proxy) Active() int { return int(p.active.Load()) }

// Serve accepts connections until ctx ends or the listener is closed, then
// closes the listener and every connection, and returns when their clients are
// gone: nil, or the listener's error.
func (p *Proxy) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	closeListener := sync.OnceFunc(func() { _ = l.Close() })
	context.AfterFunc(ctx, closeListener)
	var handlers sync.WaitGroup
	defer func() {
		cancel()
		closeListener() // and wait for it: it removes the socket
		handlers.Wait()
	}()

	const firstDelay, maxDelay = 5 * time.Millisecond, time.Second
	delay := firstDelay
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			if !transient(err) {
				return err
			}
			p.log.Warn("cannot accept a connection for now", "err", err, "active", p.Active(), "retry", delay)
			if !sleep(ctx, delay) {
				return nil
			}
			delay = min(2*delay, maxDelay)
			continue
		}
		delay = firstDelay
		p.active.Add(1)
		handlers.Go(func() {
			defer p.active.Add(-1)
			p.handle(ctx, conn)
		})
	}
}

// handle serves one client.
func (p *Proxy) handle(ctx context.Context, client net.Conn) {
	defer func() { _ = client.Close() }()
	defer context.AfterFunc(ctx, func() { _ = client.Close() })()

	engine, err := p.dial(ctx)
	if err != nil {
		if ctx.Err() == nil {
			p.log.Info("client could not be served", "err", err)
			p.refuse(client, err)
		}
		return
	}
	if p.opts.Admit == nil {
		err = relay.Join(ctx, client, engine, nil)
	} else {
		x := newExchange(p.opts.Admit, p.opts.Changing, client, engine)
		x.explain, x.failed = p.opts.Explain, p.opts.Failed
		life, end := context.WithCancel(ctx)
		defer end()
		x.life = life
		err = relay.JoinBy(ctx, client, engine, func() error { return x.up(ctx) }, func() error { return x.down(ctx) })
	}
	if err != nil && ctx.Err() == nil {
		p.log.Debug("connection ended early", "err", err)
	}
}

// dial opens the engine's side, trying again for as long as WaitReady says.
func (p *Proxy) dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, p.opts.WaitReady+p.opts.DialTimeout)
	defer cancel()
	start := time.Now()
	for delay := 20 * time.Millisecond; ; delay = min(2*delay, 500*time.Millisecond) {
		conn, err := p.opts.Dial(ctx)
		if err == nil {
			return conn, nil
		}
		left := p.opts.WaitReady - time.Since(start)
		if errors.Is(err, ErrDown) || left <= 0 || !sleep(ctx, min(delay, left)) {
			return nil, err
		}
	}
}

// sleep waits for d and says whether ctx has left it undisturbed.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
