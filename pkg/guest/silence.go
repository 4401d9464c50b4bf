package guest

import (
	"context"
	"fmt"
	"time"
)

// SilenceLimit is how long a guest may say nothing before its connection is closed.
//
// Silence is not death: a guest that is out of memory, a host that stalls and a VM that
// QEMU has paused go on after a while, and so does all that runs over the connection. What
// really ends shows without any limit: QEMU's end closes the connection, and so does the end
// of the VM's network process; a guest that has booted again resets it. This is for what is
// left, such as a kernel that hangs. It is longer than the stalls that people have sat out
// and shorter than TCP's own patience (pkg/usernet).
const SilenceLimit = 5 * time.Minute

// Silence says what to make of a guest that says nothing.
type Silence struct {
	Every time.Duration // between two questions
	Slow  time.Duration // without an answer for so long, the guest is slow
	Limit time.Duration // and after so long the connection is closed; 0: [SilenceLimit]
	// Changed, if any, is told when the guest becomes slow, with the time when it was
	// last heard, and when it is heard again, with the zero time.
	Changed func(since time.Time)
}

// Keepalive asks the guest for a sign of life now and then, and blocks until the connection
// ends or ctx does. It closes a connection over which nothing has come for [Silence].Limit
// and returns an error that wraps [ErrUnreachable].
func (c *Client) Keepalive(ctx context.Context, s Silence) error {
	if s.Limit <= 0 {
		s.Limit = SilenceLimit
	}
	if s.Changed == nil {
		s.Changed = func(time.Time) {}
	}
	tick := time.NewTicker(s.Every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c.done:
			return c.lost()
		case <-tick.C:
		}
		if err := c.alive(ctx, s); err != nil {
			return err
		}
	}
}

// alive sends one keepalive and waits for its answer. Whatever else the guest sends
// meanwhile shows that it is not silent.
func (c *Client) alive(ctx context.Context, s Silence) error {
	answer := make(chan error, 1)
	go func() {
		// Any answer will do; sshd says no to a request it does not know.
		_, _, err := c.ssh.SendRequest("keepalive@openssh.com", true, nil)
		answer <- err
	}()
	asked, slow := time.Now(), false
	defer func() {
		if slow {
			s.Changed(time.Time{})
		}
	}()
	timer := time.NewTimer(s.Slow)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-answer:
			if err != nil {
				_ = c.Close()
				return c.lost()
			}
			return nil
		case <-timer.C:
		}
		quiet := min(time.Since(asked), c.link.quiet())
		if quiet >= s.Limit {
			_ = c.Close()
			return fmt.Errorf("%w: silent for %s", ErrUnreachable, quiet.Round(time.Millisecond))
		}
		if now := quiet >= s.Slow; now != slow {
			slow = now
			if slow {
				s.Changed(time.Now().Add(-quiet))
			} else {
				s.Changed(time.Time{})
			}
		}
		if slow {
			timer.Reset(min(s.Limit-quiet, s.Every)) // to hear of other signs of life
		} else {
			timer.Reset(s.Slow - quiet)
		}
	}
}
