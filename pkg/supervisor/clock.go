package supervisor

import (
	"context"
	"errors"
	"time"

	"github.com/devvm/devvm/pkg/guest"
)

// keepClock looks after the guest's clock until ctx ends: it stands still while the
// host sleeps or the VM is paused, and drifts.
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

// clockStep is more than a clock that is kept by NTP moves between two looks.
const clockStep = 10 * time.Millisecond

// hasStepped tells whether the host's clock was set, or the host has slept, by the time
// that has passed by its clock and by its count, which leaves both out.
func hasStepped(clock, count time.Duration) bool { return (clock - count).Abs() > clockStep }

// strayed tells whether a guest's clock must be set. Ahead it may be a little. Behind it
// must not be, for then files that the host has just made are of the guest's future, and
// make complains. Of a guest that is too busy to say, it must be known.
func strayed(c guest.Clock) bool {
	exact := c.Most-c.Least < clockTolerance
	return c.Most < 0 || c.Least < 0 && exact || c.Least > clockTolerance
}

// setClock sets the guest's clock if it has strayed, and tells whether it had.
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

// noteBoot tells when the VM has booted by itself: its containers have ended, and who
// wonders why learns it from status.
func (s *supervisor) noteBoot(boot string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.boot != "" && s.boot != boot {
		s.status.Rebooted = time.Now()
		s.Log.Warn("the VM has booted again, by a crash or a command in it", "more", "devvm logs --console")
	}
	s.boot = boot
}
