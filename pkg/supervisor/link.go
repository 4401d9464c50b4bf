package supervisor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/devvm/devvm/pkg/dockerproxy"
	"github.com/devvm/devvm/pkg/guest"
)

// unavailable is the message for a client that waited in vain.
func (s *supervisor) unavailable() string {
	status, _ := s.current()
	if status.Paused != "" {
		return fmt.Sprintf("devvm: the VM of project %q is paused: %s; it resumes by itself when it can write again (make room: devvm df, devvm prune)", s.Name, status.Paused)
	}
	if status.EngineFailed != "" {
		return fmt.Sprintf("devvm: Docker Engine does not start in the VM of project %q; see: devvm up", s.Name)
	}
	switch status.State {
	case StateSSH, StateReady:
		if !status.SlowSince.IsZero() {
			return fmt.Sprintf("devvm: the VM of project %q is slow: it has not answered for %s. What runs in it continues, but new requests are not passed on; try again, or see: devvm status",
				s.Name, time.Since(status.SlowSince).Round(time.Second))
		}
	default:
	}
	switch status.State {
	case StateStopped:
		return fmt.Sprintf("devvm: the VM of project %q is not running; start it with: devvm up", s.Name)
	case StateSuspended:
		return fmt.Sprintf("devvm: the VM of project %q is suspended; resume it with: devvm up", s.Name)
	case StateLost:
		return fmt.Sprintf("devvm: the VM of project %q does not answer (%s); see: devvm status", s.Name, status.Error)
	default:
		return fmt.Sprintf("devvm: the VM of project %q is still starting; wait with: devvm up", s.Name)
	}
}

// dialEngine opens a channel to the engine's socket over the link. It waits for the link as long as
// ctx allows, but not if the VM is gone. It does not ask a slow VM, which has enough to do.
func (s *supervisor) dialEngine(ctx context.Context) (net.Conn, error) {
	s.call()
	for {
		s.mu.Lock()
		link, state, changed, slow := s.link, s.status.State, s.changed, !s.status.SlowSince.IsZero()
		paused := s.status.Paused != ""
		s.mu.Unlock()
		switch {
		case paused:
			return nil, dockerproxy.ErrDown
		case slow:
			return nil, errSlow // dockerproxy tries again
		case link != nil:
			return link.DialUnix(ctx, engineSocket)
		case state == StateStopped, state == StateSuspended:
			return nil, dockerproxy.ErrDown
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// errSlow says that the VM is silent.
var errSlow = errors.New("the VM is slow")

// keepLink keeps the SSH link up until ctx ends.
func (s *supervisor) keepLink(ctx context.Context) {
	wait := firstRedial
	wasReady := false
	for ctx.Err() == nil {
		s.awaitResume(ctx)
		err := s.connect(ctx, func() { wasReady, wait = true, firstRedial })
		switch {
		case ctx.Err() != nil:
			return
		case s.resting():
			wait = firstRedial
			continue
		case s.Gone(err):
			s.set(StateStopped, nil, errors.New("the VM is not running"))
		case wasReady:
			s.set(StateLost, nil, err)
		default:
			s.set(StateConnecting, nil, err)
		}
		pause := wait
		if _, failed := errors.AsType[*engineError](err); failed {
			pause = lastRedial // only somebody in the VM can mend that
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		if wasReady { // a boot is polled eagerly, a lost link with back-off
			wait = min(2*wait, lastRedial)
		}
	}
}

// connect makes a link and keeps it until it breaks.
func (s *supervisor) connect(ctx context.Context, ready func()) error {
	hello, cancel := context.WithTimeout(ctx, handshakeTimeout)
	link, err := guest.Connect(hello, s.Target)
	cancel()
	if err != nil {
		return err
	}
	defer link.Close()

	ctx, cancel = context.WithCancel(ctx)
	defer cancel()
	var owned sync.WaitGroup
	defer owned.Wait()
	defer cancel()
	var dead error
	owned.Go(func() {
		silence := s.Silence
		silence.Changed = s.setSlow
		dead = link.Keepalive(ctx, silence)
		cancel()
	})

	s.set(StateSSH, nil, nil)
	clock := make(chan struct{})
	owned.Go(func() {
		defer close(clock)
		s.setClock(ctx, link)
	})
	if err := s.mountShares(ctx, link); err != nil {
		s.makeRoom(ctx, link) // a full disk may be to blame
		return err
	}
	s.use(link)
	asking, done := context.WithTimeout(ctx, pingTimeout)
	err = s.askEngine(asking)
	done()
	if err != nil {
		if words := engineFailure(ctx, link); words != "" && !s.revive(ctx, link, words) {
			return &engineError{words}
		}
		return fmt.Errorf("ask the engine: %w", err)
	}
	if !s.Forked || s.links > 0 { // a VM that was resumed has the time of its saving
		<-clock
	}
	ready()
	s.revivals = 0
	s.mu.Lock()
	s.status.Redials = s.links
	s.links++
	s.mu.Unlock()
	s.set(StateReady, link, nil)
	owned.Go(func() { s.followPorts(ctx, link) })
	owned.Go(func() { s.mirror(ctx, link) })
	owned.Go(func() { s.keepRoom(ctx, link) })
	s.keepClock(ctx, link) // until the link dies
	owned.Wait()
	return dead
}

// askEngine waits for the engine's answer. If the VM is silent meanwhile, it asks again.
func (s *supervisor) askEngine(ctx context.Context) error {
	for {
		before := s.awaitVoice(ctx)
		err := s.Ping(ctx)
		if err == nil || ctx.Err() != nil || s.awaitVoice(ctx) == before {
			return err
		}
	}
}

// awaitVoice blocks while the VM is slow, and returns how often it has been slow.
func (s *supervisor) awaitVoice(ctx context.Context) int {
	for {
		s.mu.Lock()
		silences, slow, changed := s.silences, !s.status.SlowSince.IsZero(), s.changed
		s.mu.Unlock()
		if !slow {
			return silences
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return silences
		}
	}
}
