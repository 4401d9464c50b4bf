package vmnet

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/devvm/devvm/pkg/egress"
)

// Dialer reaches a VM through the dial socket of its network process. Its
// methods are safe for concurrent use and keep no connection.
type Dialer struct{ socket string }

// NewDialer returns a Dialer for the socket that usernet.Options.DialSocket named.
func NewDialer(dialSocket string) *Dialer { return &Dialer{socket: dialSocket} }

// Dial opens a connection to a port of the VM, like usernet.Stack.Dial, whose errors
// it has. In addition, a network process that does not run shows as
// fs.ErrNotExist or syscall.ECONNREFUSED of its socket, wrapped in ErrNoNetwork.
// A "tcp" connection has CloseWrite. Each Read and Write of a "udp" one is a
// datagram, and so is each Write of its WriteTo. The deadline of ctx ends with the dial.
func (d *Dialer) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	var request *http.Request
	switch network {
	case "tcp":
		request = &http.Request{Method: http.MethodConnect, URL: &url.URL{Host: address}, Host: address}
	case "udp":
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			return nil, fmt.Errorf("dial %s in the VM: %w: %w", address, ErrNotGuest, err)
		}
		request = &http.Request{
			Method: http.MethodGet, Host: "devvm",
			URL:    &url.URL{Path: UDPPath + host + "/" + port + "/"},
			Header: http.Header{"Connection": {"Upgrade"}, "Upgrade": {UDPProtocol}, "Capsule-Protocol": {"?1"}},
		}
	default:
		return nil, fmt.Errorf("dial %s in the VM: %w", address, net.UnknownNetworkError(network))
	}
	conn, response, err := d.do(ctx, request)
	if err != nil {
		return nil, fmt.Errorf("dial %s in the VM: %w", address, err)
	}
	if network == "udp" {
		return NewDatagramConn(conn, response), nil
	}
	return withBuffered(conn, response), nil
}

// ErrNoNetwork says that the VM's network process does not run.
var ErrNoNetwork = errors.New("the VM's network process does not answer")

// do sends a request that takes over its connection, and returns that with
// what was read of it beyond the answer.
func (d *Dialer) do(ctx context.Context, request *http.Request) (net.Conn, *bufio.Reader, error) {
	conn, err := d.connect(ctx)
	if err != nil {
		return nil, nil, err
	}
	// Closing tells the other side to give up; the deadline of a finished dial
	// must not outlive it.
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	response := bufio.NewReader(conn)
	err = request.Write(conn)
	var answer *http.Response
	if err == nil {
		answer, err = http.ReadResponse(response, request) //nolint:bodyclose // the body is the connection, which the caller gets
	}
	if err == nil && answer.StatusCode != http.StatusOK && answer.StatusCode != http.StatusSwitchingProtocols {
		err = answerFailure(answer)
	}
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = conn.Close()
		return nil, nil, err
	}
	return conn, response, nil
}

func (d *Dialer) connect(ctx context.Context) (net.Conn, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", d.socket)
	switch {
	case ctx.Err() != nil && err != nil:
		return nil, context.Cause(ctx)
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrNoNetwork, err)
	}
	return conn, nil
}

// Status asks the network process how it is.
func (d *Dialer) Status(ctx context.Context) (Status, error) {
	var status Status
	err := d.call(ctx, http.MethodGet, "/status", nil, func(answer *http.Response) error {
		return json.NewDecoder(answer.Body).Decode(&status)
	})
	if err != nil {
		return Status{}, fmt.Errorf("ask for the network's status: %w", err)
	}
	return status, nil
}

// SetPolicy gives the network process another policy, which is in force when it
// returns. It returns how many connections that has cut.
func (d *Dialer) SetPolicy(ctx context.Context, p egress.Policy) (int, error) {
	body, err := json.Marshal(p)
	if err != nil {
		return 0, fmt.Errorf("change the network's policy: %w", err)
	}
	var answer PolicyAnswer
	err = d.call(ctx, http.MethodPut, "/policy", body, func(r *http.Response) error {
		return json.NewDecoder(r.Body).Decode(&answer)
	})
	if err != nil {
		return 0, fmt.Errorf("change the network's policy: %w", err)
	}
	return answer.Cut, nil
}

// Egress asks the network process what the VM has asked for.
func (d *Dialer) Egress(ctx context.Context) (Egress, error) {
	var e Egress
	err := d.call(ctx, http.MethodGet, "/egress", nil, func(answer *http.Response) error {
		return json.NewDecoder(answer.Body).Decode(&e)
	})
	if err != nil {
		return Egress{}, fmt.Errorf("ask what the VM has asked for: %w", err)
	}
	return e, nil
}

// FollowEgress is [Stack.FollowEgress] of the network process. It returns nil
// when that ends.
func (d *Dialer) FollowEgress(ctx context.Context, use func(Attempt) error) error {
	err := d.request(ctx, http.MethodGet, "/egress?follow", nil, func(answer *http.Response) error {
		for lines := json.NewDecoder(answer.Body); ; {
			var a Attempt
			switch err := lines.Decode(&a); {
			case ctx.Err() != nil:
				return context.Cause(ctx)
			case err != nil:
				return nil //nolint:nilerr // the process has ended, however
			}
			if err := use(a); err != nil {
				return err
			}
		}
	})
	if err != nil {
		return fmt.Errorf("follow what the VM asks for: %w", err)
	}
	return nil
}

// patience is how long a network process may leave a call without an answer, or fail to
// take the order to end.
const patience = 5 * time.Second

// ErrHung says that the VM's network process does not end when it is told to.
var ErrHung = errors.New("the VM's network process does not end")

// Stop ends the network process and waits until its socket is closed, or ctx
// ends. That it does not run is no error; ErrHung says that it runs on after 5 s.
func (d *Dialer) Stop(ctx context.Context) error {
	start := time.Now()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		// The order can be given twice, and fails when the process is ending.
		err := d.call(ctx, http.MethodPost, "/stop", nil, func(*http.Response) error { return nil })
		switch {
		case errors.Is(err, ErrNoNetwork):
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("stop the network: %w", context.Cause(ctx))
		case time.Since(start) > patience:
			return errors.Join(ErrHung, err)
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

// call is request for what is answered at once.
func (d *Dialer) call(ctx context.Context, method, path string, body []byte, read func(*http.Response) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return d.request(ctx, method, path, body, read)
}

func (d *Dialer) request(ctx context.Context, method, path string, body []byte, read func(*http.Response) error) error {
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return d.connect(ctx) },
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://devvm"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	answer, err := transport.RoundTrip(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode >= 300 {
		return answerFailure(answer)
	}
	return read(answer)
}

// withBuffered returns conn, with what r has read ahead of it in front.
func withBuffered(conn net.Conn, r *bufio.Reader) net.Conn {
	if r.Buffered() == 0 {
		return conn
	}
	ahead, _ := r.Peek(r.Buffered())
	return &aheadConn{Conn: conn, ahead: ahead}
}

// aheadConn is a connection some of whose bytes have been read already.
type aheadConn struct {
	net.Conn
	mu    sync.Mutex
	ahead []byte
}

func (c *aheadConn) Read(b []byte) (int, error) {
	c.mu.Lock()
	if n := copy(b, c.ahead); n > 0 {
		c.ahead = c.ahead[n:]
		c.mu.Unlock()
		return n, nil
	}
	c.mu.Unlock()
	return c.Conn.Read(b)
}

// CloseWrite passes the half-close on.
func (c *aheadConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}
