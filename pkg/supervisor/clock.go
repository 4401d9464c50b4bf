package supervisor

import (
	"context"
	"errors"
	"time"

	"github.com/devvm/devvm/pkg/guest"
)

// keepClock keeps the guest's clock right until ctx ends. The clock stops while the host sleeps or
// the VM is paused, and it drifts.
func (s *supervisor) keepClock(ctx context.Context, link *guest.Client) {
	tick := time.NewTicker(clockLook)
	defer tick.Stop()
	last, wait := time.Now(), clockSoon
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		now := time.Now()
		stepped := hasStepped(now.Round(0).Sub(last.Round(0)), now.Sub(last))
		if now.Sub(last) < wait && !stepped {
			continue
		}
		wait = min(2*wait, clockEvery)
		if s.setClock(ctx, link) || stepped {
			wait = clockSoon
		}
		last = now
	}
}

// clockStep is more than NTP adjusts a clock between two looks.
const clockStep = 10 * time.Millisecond

// hasStepped reports whether the host's clock was set or the host has slept. clock is the time that
// has passed by the clock, count by the monotonic clock, which shows neither.
func hasStepped(clock, count time.Duration) bool { return (clock - count).Abs() > clockStep }

// strayed reports whether a guest's clock must be set. It may be a little ahead, but not behind:
// files that the host has just created would be in the guest's future, and make complains. If the
// guest was too busy for a precise answer, the clock must certainly be behind.
func strayed(c guest.Clock) bool {
	exact := c.Most-c.Least < clockTolerance
	return c.Most < 0 || c.Least < 0 && exact || c.Least > clockTolerance
}

// setClock sets the guest's clock if it has strayed, and reports whether it had.
func (s *supervisor) setClock(ctx context.Context, link *guest.Client) bool {
	ctx, cancel := context.WithTimeout(ctx, clockTimeout)
	defer cancel()
	clock, err := link.Clock(ctx)
	if err == nil {
		s.noteBoot(clock.Boot)
	}
	off := err == nil && strayed(clock)
	if off {
		s.Log.Info("guest's clock was off", "least", clock.Least, "most", clock.Most)
		_, err = link.SetClock(ctx)
	}
	if err != nil && !errors.Is(ctx.Err(), context.Canceled) {
		s.Log.Warn("guest's clock", "err", err)
	}
	return off
}

// noteBoot notes when the VM has booted by itself. Its containers have ended, and status shows
// why.
func (s *supervisor) noteBoot(boot string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.boot != "" && s.boot != boot {
		s.status.Rebooted = time.Now()
		s.Log.Warn("the VM has booted again, by a crash or a command in it", "more", "devvm logs --console")
	}
	s.boot = boot
}
