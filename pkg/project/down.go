package project

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/devvm/devvm/pkg/applied"
	"github.com/devvm/devvm/pkg/machine"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/ui"
	"github.com/devvm/devvm/pkg/vm"
	"github.com/devvm/devvm/pkg/vmnet"
)

// Patience of the verbs that stop a VM.
const (
	patienceStuck = 30 * time.Second // the same, if the guest waits in vain for files of the host
	patienceSync  = 20 * time.Second // for the guest to write its caches to the disk
)

// Down shuts the guest down cleanly. It is no error if the VM is off already. With discard it
// discards the memory of a suspended VM.
func (s *Service) Down(ctx context.Context, p state.Project, discard bool, pr *ui.Progress) error {
	return s.locked(ctx, p, "down", func(hv vm.Hypervisor, dom vm.Domain) error {
		dom, err := s.outlast(ctx, hv, p, dom, pr)
		if err != nil && !errors.Is(err, errHalt) { // that ends below
			return err
		}
		if dom.State == vm.StateSaved && discard {
			phase := pr.Start("stop", "discard the VM's memory")
			if err := hv.DropSaved(ctx, p.Name); err != nil {
				return err
			}
			if err := s.Daemons(p).Stop(ctx); err != nil {
				return err
			}
			phase.Done()
			return nil
		}
		return s.down(ctx, hv, p, dom, pr)
	})
}

// locked runs f under the lock of a project that has a VM.
func (s *Service) locked(ctx context.Context, p state.Project, verb string, f func(vm.Hypervisor, vm.Domain) error) error {
	files := s.Dirs.Files(p.Name)
	if !state.Exists(files.Root) {
		return s.errNoVM(p)
	}
	lock, err := files.Acquire(ctx, verb, nil)
	if err != nil {
		return err
	}
	defer lock.Close()
	hv, err := s.Open(ctx)
	if err != nil {
		return err
	}
	defer hv.Close()
	dom, err := s.find(ctx, hv, p)
	if err != nil {
		return err
	}
	return f(hv, dom)
}

// down stops the VM and its helpers, under the lock.
func (s *Service) down(ctx context.Context, hv vm.Hypervisor, p state.Project, dom vm.Domain, pr *ui.Progress) error {
	if dom.State == vm.StateSaved {
		return errSuspended()
	}
	phase := pr.Start("stop", "stop the containers and the VM")
	if dom.Halt == vm.HaltIO && s.ErrFull(s.Dirs.Files(p.Name)) == nil {
		// If it were stopped at once, it would lose what it has not written yet.
		if err := hv.Proceed(ctx, p.Name, vm.HaltIO); err != nil {
			s.Log.Info("let the paused VM go on", "err", err)
		} else {
			dom.State = vm.StateRunning
		}
	}
	if dom.State == vm.StateRunning {
		if err := s.powerOff(ctx, hv, p, dom, pr); err != nil {
			return err
		}
	} else if err := hv.Destroy(ctx, p.Name); err != nil { // paused or crashed: nothing left to ask
		return err
	}
	if err := s.Daemons(p).Stop(ctx); err != nil {
		return err
	}
	phase.Done()
	return nil
}

// errSuspended says that a VM cannot be stopped cleanly.
func errSuspended() error {
	return &ui.Error{
		Code: ui.ExitNotRunning,
		Msg:  "the VM is suspended; only a running VM can be shut down",
		Hint: "resume it and shut it down (devvm up && devvm down), leave it suspended, or give up its memory, as in a power cut: devvm down --discard",
	}
}

// powerOff asks the guest to power off, and stops it at once if it does not.
func (s *Service) powerOff(ctx context.Context, hv vm.Hypervisor, p state.Project, dom vm.Domain, pr *ui.Progress) error {
	f := s.Dirs.Files(p.Name)
	patience := machine.PatienceOff
	// The guest unmounts its directories of the host, and needs the server for that.
	if has, err := applied.Read(f.Applied()); err == nil && len(has.Exports()) > 0 {
		if err := s.Daemons(p).StartSupervisor(ctx, dom.Accel == vm.AccelTCG); err != nil {
			s.Log.Info("start the supervisor", "err", err)
			patience = patienceStuck
		}
	}
	// Without its network process the VM cannot reach the server, and nobody can log in.
	_, unreachable := vmnet.NewDialer(f.DialSocket()).Status(ctx)
	if !errors.Is(unreachable, vmnet.ErrNoNetwork) {
		unreachable = nil // it is there, and slow perhaps
	} else {
		patience = patienceStuck
	}
	if err := f.MarkStopping(dom.PID); err != nil { // the disk may be full
		s.Log.Warn("note that the VM powers off", "err", err)
	}
	err := unreachable
	if err == nil {
		err = s.RunInGuest(ctx, p, dom, machine.PatienceSSH, "sh", "-c", "timeout 5 fstrim / ; exec systemctl --no-block poweroff")
	}
	if err != nil {
		s.Log.Info("power off over SSH", "err", err)
		s.pressPower(ctx, hv, p)
	}
	patient, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	off, err := s.awaitOff(patient, hv, p)
	switch {
	case err == nil && off.State == vm.StateSaved: // by a suspend that was killed
		return errors.Join(errSuspended(), state.Unmark(f.Stopping()))
	case err == nil && off.State == vm.StatePaused:
		pr.Note("the VM was paused during its shutdown%s: pulling the plug", machine.Because(off.Reason))
		return errors.Join(hv.Destroy(ctx, p.Name), state.Unmark(f.Stopping()))
	case err == nil:
		return state.Unmark(f.Stopping())
	case ctx.Err() != nil:
		return ctx.Err()
	case patient.Err() == nil:
		return fmt.Errorf("wait for the VM to stop: %w", err)
	}
	if off.Halt == vm.HaltIO {
		pr.Note("the host's disk has been full for %s: pulling the plug; what the VM has not written is lost", patience)
	} else {
		pr.Note("the guest did not power off within %s: pulling the plug", patience)
	}
	return errors.Join(hv.Destroy(ctx, p.Name), state.Unmark(f.Stopping()))
}

// pressPower asks the guest to power off by ACPI.
func (s *Service) pressPower(ctx context.Context, hv vm.Hypervisor, p state.Project) {
	if err := hv.Shutdown(ctx, p.Name); err != nil && !errors.Is(err, vm.ErrNotRunning) {
		s.Log.Info("power off by ACPI", "err", err)
	}
}

// offPoll is how often to check a VM that is paused while it powers off.
const offPoll = 500 * time.Millisecond

// awaitOff waits until a VM that powers off is off, or suspended. If it is paused meanwhile, it is
// resumed as soon as possible, so that it does not lose what it has not written yet. It is then
// asked again to power off, because it may not have heard.
func (s *Service) awaitOff(ctx context.Context, hv vm.Hypervisor, p state.Project) (vm.Domain, error) {
	tick := time.NewTicker(offPoll)
	defer tick.Stop()
	for {
		dom, err := hv.Wait(ctx, p.Name, vm.StateStopped, vm.StateCrashed, vm.StateSaved, vm.StatePaused)
		if err != nil || dom.State != vm.StatePaused {
			return dom, err
		}
		goesOn := false
		switch dom.Halt {
		case vm.HaltSignal:
			goesOn = true
		case vm.HaltIO:
			goesOn = s.ErrFull(s.Dirs.Files(p.Name)) == nil
		case vm.HaltPassing:
		default:
			return dom, nil
		}
		if goesOn {
			if err := hv.Proceed(ctx, p.Name, dom.Halt); err != nil {
				s.Log.Info("let the VM go on, which is to power off", "err", err)
			} else {
				s.pressPower(ctx, hv, p)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return dom, context.Cause(ctx)
		}
	}
}

// syncGuest makes the guest write its caches, over the supervisor's connection, which exists
// already, or else over a new one.
func (s *Service) syncGuest(ctx context.Context, p state.Project, dom vm.Domain) error {
	return s.finishSync(ctx, p, dom, s.beginSync(ctx, p))
}

// beginSync has the supervisor sync the guest. The channel yields one result, after
// patienceSync at the latest, or when ctx ends.
func (s *Service) beginSync(ctx context.Context, p state.Project) <-chan error {
	synced := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(ctx, patienceSync)
		defer cancel()
		err := s.Daemons(p).Supervisor().Sync(ctx)
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		synced <- err
	}()
	return synced
}

// finishSync waits for the result of beginSync. If the supervisor failed, it uses a new connection.
func (s *Service) finishSync(ctx context.Context, p state.Project, dom vm.Domain, synced <-chan error) error {
	err := <-synced
	if err == nil || errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
		return err
	}
	return s.RunInGuest(ctx, p, dom, patienceSync, "sync")
}

// unplug stops the VM at once, but waits until the guest has written its caches (beginSync): its
// disk may be wanted again.
func (s *Service) unplug(ctx context.Context, hv vm.Hypervisor, p state.Project, dom vm.Domain, synced <-chan error) error {
	if dom.State == vm.StateRunning {
		if err := s.finishSync(ctx, p, dom, synced); err != nil {
			s.Log.Info("sync the guest's disk", "err", err)
		}
	}
	if err := hv.Destroy(ctx, p.Name); err != nil {
		return err
	}
	return s.Daemons(p).Stop(ctx)
}
