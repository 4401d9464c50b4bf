package guest

import (
	"context"
	"errors"
	"fmt"
	"net"
)

// Occupy has the guest listen on TCP ports of its loopback addresses, so that nothing else
// there can have them, on all addresses or on those. release gives them up, as the end of the
// connection does. It is an error that wraps [ErrRefused] if the guest cannot, which is so if
// somebody has one of them already.
//
// It is done by SSH's own means, "tcpip-forward" (RFC 4254, 7.1). Who connects finds nobody.
func (c *Client) Occupy(ctx context.Context, ports []uint16) (release func(), err error) {
	var all []net.Listener
	release = func() {
		go func() { // the link may be stuck
			for _, l := range all {
				_ = l.Close()
			}
		}()
	}
	for _, port := range ports {
		l, err := c.listen(ctx, port)
		if err != nil {
			release()
			return nil, fmt.Errorf("listen on port %d in the VM: %w", port, err)
		}
		all = append(all, l)
	}
	return release, nil
}

// listen is one listener of Occupy's.
func (c *Client) listen(ctx context.Context, port uint16) (net.Listener, error) {
	type listening struct {
		l   net.Listener
		err error
	}
	result := make(chan listening, 1)
	go func() {
		l, err := c.ssh.ListenTCP(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(port)})
		result <- listening{l, err}
	}()
	select {
	case r := <-result:
		switch {
		case r.err == nil:
		case c.link.broken.Load():
			return nil, c.lost()
		default: // the package has no error of its own for a refusal
			return nil, errors.Join(ErrRefused, r.err)
		}
		go func() {
			for {
				conn, err := r.l.Accept()
				if err != nil {
					return
				}
				_ = conn.Close()
			}
		}()
		return r.l, nil
	case <-ctx.Done():
		go func() {
			if r := <-result; r.err == nil {
				_ = r.l.Close()
			}
		}()
		return nil, ctx.Err()
	}
}
