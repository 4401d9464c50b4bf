package guest

import (
	"context"
	"fmt"
	"time"
)

// SilenceLimit is how long a guest may be silent before its connection is closed.
//
// Silence is not death. A guest that is out of memory, a host that stalls and a VM that QEMU
// has paused resume after a while, and so does everything that runs over the connection. A real
// end shows without a limit: the connection closes when QEMU or the VM's network process ends,
// and a guest that has rebooted resets it. The limit is for the rest, such as a kernel that
// hangs. It is longer than the stalls that people have sat out and shorter than TCP's own
// timeout (pkg/usernet).
const SilenceLimit = 5 * time.Minute

// Silence says how to treat a guest that is silent.
type Silence struct {
	Every time.Duration // time between two keepalives
	Slow  time.Duration // without an answer for this long, the guest is slow
	Limit time.Duration // after this long the connection is closed; 0: [SilenceLimit]
	// Changed, if set, is called with the time when the guest was last heard when it becomes
	// slow, and with the zero time when it is heard again.
	Changed func(since time.Time)
}

// Keepalive asks the guest for a sign of life at intervals, and blocks until the connection or
// ctx ends. If nothing arrives for [Silence].Limit, it closes the connection and returns an
// error that wraps [ErrUnreachable].
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

// alive sends one keepalive and waits for its answer. Anything else that the guest sends
// meanwhile also shows that it is not silent.
func (c *Client) alive(ctx context.Context, s Silence) error {
	answer := make(chan error, 1)
	go func() {
		// Any answer will do; sshd rejects a request that it does not know.
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
			timer.Reset(min(s.Limit-quiet, s.Every)) // to notice other signs of life
		} else {
			timer.Reset(s.Slow - quiet)
		}
	}
}
