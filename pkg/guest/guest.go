// Package guest talks to the inside of a VM over SSH. It makes the keys, opens and watches the
// connection, runs commands, copies files and dials unix sockets in the guest.
//
// It is the only package that imports golang.org/x/crypto/ssh. It knows nothing about libvirt,
// Docker or projects, nor how to reach the guest: [Target] carries a dial function.
//
// The guest is not trusted. Its host key is generated on the host before the VM exists and is
// pinned, never learned. Names and sizes that the guest sends cannot lead a copy out of its
// destination.
//
// Failures wrap one of [ErrUnreachable], [ErrAuth], [ErrHostKey] or [ErrRefused], so that
// callers can tell a VM that is down (try again) from one that is not ours (stop). No call
// waits for the guest after its context ends, except [Client.Run], which gives a command 4 s to
// end.
package guest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"
)

// Errors that callers tell apart with errors.Is.
var (
	// ErrUnreachable says that the guest's SSH server does not answer, or has
	// stopped answering. Trying again later makes sense.
	ErrUnreachable = errors.New("the VM does not answer over SSH")
	// ErrAuth says that the guest answered and refused our key.
	ErrAuth = errors.New("the VM refused devvm's SSH key")
	// ErrHostKey says that the server that answered does not hold the VM's host key.
	ErrHostKey = errors.New("the VM's SSH host key is not the one devvm gave it")
	// ErrRefused says that the connection works but the guest refused this one request, for
	// example because a socket does not exist in the guest.
	ErrRefused = errors.New("the VM refused the request")
)

// DefaultUser is the user that devvm logs in as. The VM is the boundary, so there is no other
// account.
const DefaultUser = "root"

// handshakeTimeout bounds [Connect] when the caller's context does not. Under
// emulation a cold handshake takes up to 3 s.
const handshakeTimeout = 30 * time.Second

// Target says how to reach a guest and how to recognize it.
type Target struct {
	// Dial opens a byte stream to the guest's SSH server.
	Dial func(ctx context.Context) (net.Conn, error)
	// User in the guest; empty means [DefaultUser].
	User string
	// Keys of this VM: ours to log in with, and the host key to expect.
	Keys Keys
	// Emulated says that the guest's CPU is emulated in software. The fastest ciphers on real
	// hardware are the slowest there.
	Emulated bool
}

// Client is a connection to one guest. All methods are safe for concurrent use. When the
// connection ends, for whatever reason, every operation and every connection made with DialUnix
// ends with it.
type Client struct {
	ssh  *ssh.Client
	link *link

	done chan struct{} // closed after err is set
	err  error
}

// Connect opens an SSH connection to the guest: dial, key exchange with the pinned host key,
// authentication. The context bounds all of it (30 s at most) and has no effect after Connect
// returns.
func Connect(ctx context.Context, t Target) (*Client, error) {
	config, hostKey, err := clientConfig(t)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()

	conn, err := t.Dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("dial the VM: %w: %w", ErrUnreachable, err)
	}
	l := &link{Conn: conn, start: time.Now()}
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	sc, chans, reqs, err := ssh.NewClientConn(l, "devvm", config)
	if !stop() {
		// The context ended first and closed the connection.
		if err == nil {
			_ = sc.Close()
		}
		return nil, fmt.Errorf("SSH handshake: %w: %w", ErrUnreachable, context.Cause(ctx))
	}
	if err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("SSH handshake: %w: %w", hostKey.classify(err), err)
	}

	c := &Client{ssh: ssh.NewClient(sc, chans, reqs), link: l, done: make(chan struct{})}
	go func() {
		c.err = c.ssh.Wait()
		l.broken.Store(true)
		close(c.done)
	}()
	return c, nil
}

// Close ends the connection and everything that runs over it.
func (c *Client) Close() error {
	// Close the socket first: closing must not wait for a peer that is gone.
	err := c.link.Close()
	_ = c.ssh.Close()
	return err
}

// Done is closed when the connection has ended, whichever side ended it.
func (c *Client) Done() <-chan struct{} { return c.done }

// lost is the error of an operation that was cut short by the end of the connection.
func (c *Client) lost() error {
	select {
	case <-c.done:
		if c.err != nil {
			return fmt.Errorf("%w: connection lost: %w", ErrUnreachable, c.err)
		}
	default:
	}
	return fmt.Errorf("%w: connection lost", ErrUnreachable)
}

// open opens a channel. If ctx ends first, open returns at once, and the channel is closed if
// it still arrives.
func (c *Client) open(ctx context.Context, kind string, payload []byte) (ssh.Channel, <-chan *ssh.Request, error) {
	type opened struct {
		ch   ssh.Channel
		reqs <-chan *ssh.Request
		err  error
	}
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	result := make(chan opened, 1)
	go func() {
		ch, reqs, err := c.ssh.OpenChannel(kind, payload)
		result <- opened{ch, reqs, err}
	}()
	select {
	case r := <-result:
		if r.err == nil {
			return r.ch, r.reqs, nil
		}
		var refused *ssh.OpenChannelError
		if errors.As(r.err, &refused) {
			return nil, nil, fmt.Errorf("%w: %s", ErrRefused, refused.Message)
		}
		return nil, nil, c.lost()
	case <-ctx.Done():
		go func() {
			if r := <-result; r.err == nil {
				_ = r.ch.Close()
				ssh.DiscardRequests(r.reqs)
			}
		}()
		return nil, nil, ctx.Err()
	}
}

// clientConfig chooses algorithms by what they cost the guest.
func clientConfig(t Target) (*ssh.ClientConfig, *pinnedKey, error) {
	if t.Keys.user == nil || t.Keys.host == nil {
		return nil, nil, errors.New("SSH connection without keys")
	}
	if t.User == "" {
		t.User = DefaultUser
	}
	pinned := &pinnedKey{check: ssh.FixedHostKey(t.Keys.host.PublicKey())}
	config := &ssh.ClientConfig{
		User:              t.User,
		Auth:              []ssh.AuthMethod{ssh.PublicKeys(t.Keys.user)},
		HostKeyCallback:   pinned.callback,
		HostKeyAlgorithms: []string{ssh.KeyAlgoED25519},
		ClientVersion:     "SSH-2.0-devvm",
	}
	// The link never leaves this machine, so the cheapest modern exchange will do.
	config.KeyExchanges = []string{ssh.KeyExchangeCurve25519}
	config.Ciphers = ciphers(t.Emulated)
	// Only counter mode needs a MAC. Without SHA instructions the longer hash is faster; with
	// them, counter mode is not chosen.
	config.MACs = []string{ssh.HMACSHA512ETM, ssh.HMACSHA256ETM}
	return config, pinned, nil
}

// ciphers returns the ciphers in order of preference. With AES instructions GCM is by far the
// fastest. Under emulation its carry-less multiplication dominates the cost, and counter mode
// with an encrypt-then-MAC hash wins.
func ciphers(emulated bool) []string {
	if emulated {
		return []string{ssh.CipherAES128CTR, ssh.CipherChaCha20Poly1305, ssh.CipherAES128GCM}
	}
	return []string{ssh.CipherAES128GCM, ssh.CipherChaCha20Poly1305, ssh.CipherAES128CTR}
}

// pinnedKey is a host key check that remembers how far the handshake got.
type pinnedKey struct {
	check   ssh.HostKeyCallback
	refused atomic.Bool
	trusted atomic.Bool
}

func (p *pinnedKey) callback(host string, remote net.Addr, key ssh.PublicKey) error {
	err := p.check(host, remote, key)
	p.refused.Store(err != nil)
	p.trusted.Store(err == nil)
	return err
}

// classify maps a handshake's error to one of the package's own.
func (p *pinnedKey) classify(err error) error {
	switch {
	case p.refused.Load():
		return ErrHostKey
	case p.trusted.Load() && strings.Contains(err.Error(), "unable to authenticate"):
		// x/crypto has no error value for this. The host key was accepted, so the guest refused
		// our key.
		return ErrAuth
	default:
		return ErrUnreachable
	}
}

// link is the byte stream under SSH. It records when the peer was last heard and whether the
// stream has failed, before the layers above notice.
type link struct {
	net.Conn
	start  time.Time
	heard  atomic.Int64 // time since start, ns
	broken atomic.Bool
}

// Read implements [net.Conn].
func (l *link) Read(p []byte) (int, error) {
	n, err := l.Conn.Read(p)
	if n > 0 {
		l.heard.Store(int64(time.Since(l.start)))
	}
	if err != nil {
		l.broken.Store(true)
	}
	return n, err
}

// Write implements [net.Conn].
func (l *link) Write(p []byte) (int, error) {
	n, err := l.Conn.Write(p)
	if err != nil {
		l.broken.Store(true)
	}
	return n, err
}

// Close implements [net.Conn].
func (l *link) Close() error {
	l.broken.Store(true)
	return l.Conn.Close()
}

// quiet is the time since the peer was last heard.
func (l *link) quiet() time.Duration {
	return time.Since(l.start) - time.Duration(l.heard.Load())
}
