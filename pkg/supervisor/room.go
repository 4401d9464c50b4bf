package supervisor

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/devvm/devvm/pkg/guest"
)

// How often, and how long, to ask for the VM's memory and disk.
const (
	lookEvery    = time.Minute
	lookFresh    = 2 * time.Second // a look is as good as new for so long
	lookPatience = 10 * time.Second
	askPatience  = 2 * time.Second // of who asks for the status, and of a client whose call waits
)

// Room is the memory and disk that the VM has, as it says itself.
type Room struct {
	guest.Room
	At time.Time `json:"at"`
}

// room is the last known Room. One look runs at a time.
type room struct {
	turn   chan struct{} // full while somebody looks
	last   Room
	wanted chan struct{} // somebody waits for a look
}

// errNoLink says that there is no link to ask over.
var errNoLink = errors.New("the VM does not answer")

// keepRoom watches the VM's disk until ctx ends: it keeps a reserve while there is room, and knows
// how much is left.
func (s *supervisor) keepRoom(ctx context.Context, link *guest.Client) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		r, err := s.measure(ctx, link, lookFresh)
		if err == nil {
			err = s.keepReserve(ctx, link, r)
		}
		if err != nil && ctx.Err() == nil {
			s.Log.Debug("the VM's memory and disk", "err", err)
		}
		select {
		case <-tick.C:
		case <-s.room.wanted:
		case <-ctx.Done():
			return
		}
	}
}

// awaitLook makes keepRoom look, and waits a little for the result.
func (s *supervisor) awaitLook(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	start := time.Now()
	for {
		s.mu.Lock()
		known, changed := s.status.Room, s.changed
		idle := s.status.State != StateReady || !s.status.SlowSince.IsZero()
		s.mu.Unlock()
		if idle || known != nil && start.Sub(known.At) < lookFresh {
			return
		}
		select {
		case s.room.wanted <- struct{}{}:
		default:
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// measure asks the VM, unless the last answer is no older than age.
func (s *supervisor) measure(ctx context.Context, link *guest.Client, age time.Duration) (Room, error) {
	if err := s.takeTurn(ctx); err != nil {
		return Room{}, err
	}
	defer s.giveTurn()
	if last := s.lastRoom(); !last.At.IsZero() && time.Since(last.At) < age {
		return last, nil
	}
	return s.ask(ctx, link.Room)
}

// takeTurn waits until nobody else asks the VM, which may take long over it.
func (s *supervisor) takeTurn(ctx context.Context) error {
	select {
	case s.room.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s *supervisor) giveTurn() { <-s.room.turn }

// lastRoom is what the VM said last.
func (s *supervisor) lastRoom() Room {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.room.last
}

// keepReserve makes what is missing of the reserve, if there is room for it.
func (s *supervisor) keepReserve(ctx context.Context, link *guest.Client, r Room) error {
	if !r.Spares() {
		return nil
	}
	_, err := s.act(ctx, link.KeepReserve)
	return err
}

// act is measure by a command that changes something.
func (s *supervisor) act(ctx context.Context, command func(context.Context) (guest.Room, error)) (Room, error) {
	if err := s.takeTurn(ctx); err != nil {
		return Room{}, err
	}
	defer s.giveTurn()
	return s.ask(ctx, command)
}

// ask asks the VM and notes the answer. The caller has the turn.
func (s *supervisor) ask(ctx context.Context, command func(context.Context) (guest.Room, error)) (Room, error) {
	ctx, cancel := context.WithTimeout(ctx, lookPatience)
	defer cancel()
	answer, err := command(ctx)
	if err != nil {
		return Room{}, err
	}
	r := Room{answer, time.Now()}
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.Full() && !s.room.last.Full() {
		s.Log.Warn("the VM's disk is full", "free", r.DiskFree, "inodes", r.InodesFree, "reserve", r.Reserve)
	}
	s.room.last = r
	s.status.Room = &r
	s.tell()
	return r, nil
}

// lookNow is measure over the link that is up, if it says anything. A client's call waits for
// it: what is not known in 2 s is not known.
func (s *supervisor) lookNow(ctx context.Context, age time.Duration) (Room, *guest.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	s.mu.Lock()
	link, slow := s.link, !s.status.SlowSince.IsZero()
	s.mu.Unlock()
	if link == nil || slow {
		return Room{}, nil, errNoLink
	}
	r, err := s.measure(ctx, link, age)
	return r, link, err
}

// makeRoomNow is makeRoom for a client whose call waits.
func (s *supervisor) makeRoomNow(ctx context.Context, link *guest.Client) (full bool, r Room) {
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	return s.makeRoom(ctx, link)
}

// makeRoom releases a part of the reserve if the VM's disk is full. It says whether the disk
// was, and what it has now.
func (s *supervisor) makeRoom(ctx context.Context, link *guest.Client) (full bool, r Room) {
	r, err := s.measure(ctx, link, lookFresh)
	if err != nil || !r.Full() {
		return false, r
	}
	if r.Reserve == 0 {
		return true, r
	}
	released, err := s.act(ctx, link.ReleaseReserve)
	if err != nil {
		s.Log.Warn("the reserve of the VM's disk stays", "err", err)
		return true, r
	}
	s.Log.Warn("a part of the reserve of the VM's disk is released", "left", released.Reserve, "free", released.DiskFree)
	return true, released
}

// noSpace is how a program in the VM says that its disk is full (strerror(3) of ENOSPC).
const noSpace = "no space left on device"

// explain says more of an error of the engine's that comes from a full disk, and sees to it
// that the next call finds room. It delays the error by some seconds at most. If the VM
// does not answer in time, its last recent answer is used; if there is none, the error is unchanged.
func (s *supervisor) explain(ctx context.Context, message string) string {
	if !lacksSpace(message) {
		return message
	}
	r, link, err := s.lookNow(ctx, 0)
	full := r.Full()
	switch {
	case err != nil:
		r = s.lastRoom()
		full = r.Full() && time.Since(r.At) < 2*lookEvery
	case full:
		full, r = s.makeRoomNow(ctx, link)
	}
	if !full {
		return message
	}
	return message + "\n\ndevvm: " + s.adviseRoom(r)
}

// lacksSpace tells whether words of the VM's are about a full disk.
func lacksSpace(words string) bool { return strings.Contains(strings.ToLower(words), noSpace) }

// failed is told how an answer has ended that had begun well. What the engine has said by then
// cannot be explained any more: status does.
func (s *supervisor) failed(ctx context.Context, message string) {
	if !lacksSpace(message) {
		return
	}
	s.Log.Warn("the engine has failed for want of room", "said", message)
	s.mu.Lock()
	s.status.ShortAt = time.Now()
	s.tell()
	s.mu.Unlock()
	s.admitRoom(ctx, 0)
}

// adviseRoom says that the VM's disk is full and how to get out.
func (s *supervisor) adviseRoom(r Room) string {
	what := "has no room left"
	if r.Files() {
		what = "can hold no more files"
	}
	reserve := "A reserve of devvm's has been given up, so that you can"
	if r.Full() && r.Reserve == 0 {
		reserve = "There is no reserve left; to get room"
	}
	return fmt.Sprintf("the disk of the VM of project %q %s. %s remove what is not needed (docker system prune, docker volume prune, files by devvm ssh), or set a larger disk in devvm.toml, then: devvm down; devvm up",
		s.Name, what, reserve)
}

// admitRoom lets the next call find some room: one that removes things needs it. A look that
// is not older than age will do.
func (s *supervisor) admitRoom(ctx context.Context, age time.Duration) {
	if r, link, err := s.lookNow(ctx, age); err == nil && r.Full() {
		s.makeRoomNow(ctx, link)
	}
}

// mostRevivals is how often in a row an engine is started again that a full disk has ended.
const mostRevivals = 2 * guest.ReserveParts

// reviveCommand starts an engine that systemd has given up.
const reviveCommand = `systemctl reset-failed containerd.service docker.service; systemctl start --no-block docker.service`

// revive gives an engine that has ended because of a full disk some room and starts it
// again, unless that has been tried often enough.
func (s *supervisor) revive(ctx context.Context, link *guest.Client, words string) bool {
	full, r := s.makeRoom(ctx, link)
	if r.Full() || !full && !lacksSpace(words) || s.revivals >= mostRevivals {
		return false
	}
	s.revivals++
	ctx, cancel := context.WithTimeout(ctx, patienceFailure)
	defer cancel()
	code, err := link.Run(ctx, guest.Command{Argv: []string{"sh", "-c", reviveCommand}})
	s.Log.Warn("the engine has some room again and is started", "free", r.DiskFree, "code", code, "err", err)
	return err == nil && code == 0
}
