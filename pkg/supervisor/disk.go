package supervisor

import (
	"context"
	"time"
)

// A VM that writes while the host's disk is full is paused by QEMU, and nothing is lost. Nobody
// in the VM can say so: the supervisor looks, tells clients, and lets the VM go on when there is
// room again.

// Disk is how a supervisor learns of the host's disk, and of a VM that waits for room on it. The
// zero value does not look.
type Disk struct {
	// Full tells whether there is no room for what the VM writes. It is asked all the time.
	Full func() bool
	// Paused tells whether QEMU has paused the VM because it could not write.
	Paused func(context.Context) (bool, error)
	// Proceed lets such a VM go on.
	Proceed func(context.Context) error
}

const (
	// diskEvery is how often the disk is looked at, and libvirt is asked at most.
	diskEvery = 2 * time.Second
	// lastAsk is how long libvirt is not asked while nothing changes.
	lastAsk = 30 * time.Second
	// lastProceed is the longest that a VM stays paused if it keeps being paused although there
	// seems to be room.
	lastProceed = time.Minute
)

// Words for a VM that is paused, of Status.Paused.
const (
	pausedFull  = "the host's disk is full"
	pausedWrite = "a write to its disk has failed on the host"
)

// watchDisk looks after a VM that is paused, until ctx ends.
func (s *supervisor) watchDisk(ctx context.Context) {
	if s.Disk.Full == nil {
		return
	}
	tick := time.NewTicker(diskEvery)
	defer tick.Stop()
	wait, next := diskEvery, time.Time{}
	var asks asks
	called := false
	for {
		select {
		case <-tick.C:
		case <-s.called:
			called = true
		case <-s.Alone: // there is nobody to ask
			return
		case <-ctx.Done():
			return
		}
		full := s.Disk.Full()
		status, _ := s.current()
		silent := !status.SlowSince.IsZero() || status.State == StateLost
		if !full && status.Paused == "" && !silent {
			wait = diskEvery
			continue
		}
		if !asks.due(time.Now(), full, silent, called) {
			continue
		}
		called = false
		if !s.lookPaused(ctx, full) || full || time.Now().Before(next) {
			continue
		}
		if err := s.Disk.Proceed(ctx); err != nil {
			s.Log.Warn("let the paused VM go on", "err", err)
		} else {
			s.Log.Info("there is room: the paused VM goes on")
		}
		next = time.Now().Add(wait)
		wait = min(2*wait, lastProceed)
		s.lookPaused(ctx, full)
	}
}

// asks says when to ask libvirt about a VM. Every project asks when the host's disk is full, and
// that can last.
type asks struct {
	last         time.Time
	wait         time.Duration // from then on
	full, silent bool          // what was known then
}

// due tells whether to ask now: when what is known has changed, when a client has called, and
// ever more rarely else.
func (a *asks) due(now time.Time, full, silent, called bool) bool {
	changed := full != a.full || silent != a.silent
	since := now.Sub(a.last)
	if since < diskEvery || !changed && !called && since < a.wait {
		return false
	}
	a.wait = min(2*a.wait, lastAsk)
	if changed || a.wait == 0 {
		a.wait = diskEvery
	}
	a.last, a.full, a.silent = now, full, silent
	return true
}

// call lets a client's call be a reason to look.
func (s *supervisor) call() {
	select {
	case s.called <- struct{}{}:
	default:
	}
}

// awaitAlone says so when nobody is left to look outside of the sandbox. All else goes on.
func (s *supervisor) awaitAlone(ctx context.Context) {
	select {
	case <-s.Alone:
	case <-ctx.Done():
		return
	}
	s.Log.Warn("the process outside of the sandbox has ended: who holds a port is unknown, and a paused VM does not resume by itself", "next", "devvm up")
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status.Alone, s.status.Paused = true, ""
	s.tell()
}

// lookPaused looks whether the VM is paused, and notes it.
func (s *supervisor) lookPaused(ctx context.Context, full bool) bool {
	paused, err := s.Disk.Paused(ctx)
	if err != nil { // not known: then clients are not turned away
		s.Log.Debug("look whether the VM is paused", "err", err)
	}
	why := ""
	switch {
	case paused && full:
		why = pausedFull
	case paused:
		why = pausedWrite
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.status.Paused != why && !s.status.Alone {
		s.Log.Info("paused", "why", why)
		s.status.Paused = why
		s.tell()
	}
	return paused
}
