package supervisor

import (
	"context"
	"time"
)

// If the VM writes while the host's disk is full, QEMU pauses it, and nothing is lost. Nothing in
// the VM can report that. So the supervisor checks for it, tells clients, and resumes the VM when
// there is room again.

// Disk is how a supervisor checks the host's disk, and a VM that waits for room on it. The zero
// value checks nothing.
type Disk struct {
	// Full reports whether there is no room for what the VM writes. It is called often.
	Full func() bool
	// Paused reports whether QEMU has paused the VM because a write failed.
	Paused func(context.Context) (bool, error)
	// Proceed resumes such a VM.
	Proceed func(context.Context) error
}

const (
	// diskEvery is how often the disk is checked, and how often libvirt is asked at most.
	diskEvery = 2 * time.Second
	// lastAsk is the longest time between two questions to libvirt while nothing changes.
	lastAsk = 30 * time.Second
	// lastProceed is the longest that a VM stays paused if QEMU keeps pausing it although there
	// seems to be room.
	lastProceed = time.Minute
)

// Values of Status.Paused.
const (
	pausedFull  = "the host's disk is full"
	pausedWrite = "a write to its disk has failed on the host"
)

// watchDisk checks for a paused VM, and resumes it, until ctx ends.
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

// asks decides when to ask libvirt about a VM. All projects ask while the host's disk is full,
// which can take long.
type asks struct {
	last         time.Time
	wait         time.Duration // from then on
	full, silent bool          // what was known then
}

// due reports whether to ask now: when the arguments have changed, when a client has called, and
// otherwise less and less often.
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

// call notes that a client has called, which is a reason to check.
func (s *supervisor) call() {
	select {
	case s.called <- struct{}{}:
	default:
	}
}

// awaitAlone notes when the aide, which looks outside of the sandbox, has ended. Everything else
// goes on.
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

// lookPaused checks whether the VM is paused, and notes it.
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
