package project

import (
	"context"
	"errors"

	"github.com/devvm/devvm/pkg/engine"
	"github.com/devvm/devvm/pkg/file"
	"github.com/devvm/devvm/pkg/machine"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/ui"
	"github.com/devvm/devvm/pkg/vm"
)

// Loss is what nuke or rm would destroy.
type Loss struct {
	VM    bool // there is one that somebody has used
	Known bool // the engine has answered
	// TooMuch says that the engine lists more than devvm reads.
	TooMuch bool
	Usage   engine.Usage
	Disk    int64 // bytes that the VM's disk takes on this host
	// Snapshots is how many there are; they belong to the VM and go with it.
	Snapshots int
	Undo      int64 // bytes of the disk kept as undo, which is lost for good
}

// Loss asks the engine what the project's VM holds.
func (s *Service) Loss(ctx context.Context, p state.Project) (Loss, error) {
	f := s.Dirs.Files(p.Name)
	if !state.Exists(f.VM) && !state.Exists(f.Undo) {
		if _, err := s.get(ctx, p); err != nil { // the domain may be all that is left
			return Loss{}, err
		}
	}
	loss := Loss{VM: f.IsUsed(), Disk: file.Used(f.VM), Undo: file.Used(f.Undo)}
	if all, err := s.Snapshots(ctx, p); err == nil {
		loss.Snapshots = len(all)
	}
	ctx, cancel := context.WithTimeout(ctx, machine.PatienceSSH)
	defer cancel()
	usage, err := engine.GetUsage(ctx, f.DockerSocket())
	if err != nil {
		s.Log.Info("ask the engine what it holds", "err", err)
		loss.TooMuch = errors.Is(err, engine.ErrTooMuch)
		return loss, nil
	}
	loss.Known, loss.Usage = true, usage
	return loss, nil
}

// NukeOptions of [Service.Nuke].
type NukeOptions struct {
	NoUp bool // leave the project without a VM
	Undo bool // bring back the VM that the last nuke replaced
	// Unused says that the user was not asked, because nobody has used the VM. If somebody has by
	// now, Nuke fails.
	Unused bool
	// Plan is the plan for the new VM; nil: Nuke reads devvm.toml.
	Plan *Plan
}

// Nuke destroys the project's VM and brings up a new one. The old disk is kept as the undo, and
// the previous undo is removed.
func (s *Service) Nuke(ctx context.Context, p state.Project, o NukeOptions, pr *ui.Progress) error {
	f := s.Dirs.Files(p.Name)
	if err := s.checkNuked(ctx, p, o); err != nil {
		return err
	}
	lock, err := f.Acquire(ctx, "nuke", nil)
	if err != nil {
		return err
	}
	defer lock.Close()
	syncing, stop := context.WithCancel(ctx)
	defer stop()
	synced := s.beginSync(syncing, p) // while libvirt is asked
	hv, err := s.Open(ctx)
	if err != nil {
		return err
	}
	defer hv.Close()
	var plan Plan
	if !o.NoUp { // a bad devvm.toml, or none, must show before anything is lost
		if plan, err = s.checkNewVM(ctx, p, o); err != nil {
			return err
		}
	}
	show := &machine.Steps{Progress: pr}
	dom, err := s.find(ctx, hv, p)
	// After the QEMU of a running VM has ended, libvirt still has work to do. The next VM waits for
	// that only before it takes the name.
	overtakes := err == nil && dom.State == vm.StateRunning && !o.NoUp && !o.Undo
	switch {
	case err == nil:
		if err := s.destroy(ctx, hv, p, dom, synced, !overtakes, show); err != nil {
			return err
		}
	case !errors.Is(err, vm.ErrNotFound):
		return err
	}
	if err := replaceDisk(f, o); err != nil {
		return err
	}
	show.Done()
	if o.NoUp {
		return nil
	}
	if overtakes {
		err = s.upFrom(ctx, hv, p, plan, vm.Domain{}, show)
		if err != nil && !state.Exists(f.Disk()) { // it has not come to the new VM
			err = errors.Join(err, machine.Forget(context.WithoutCancel(ctx), hv, p))
		}
	} else {
		err = s.up(ctx, hv, p, plan, show)
	}
	if err != nil && !o.Undo && state.Exists(f.Undo) {
		show.Note("the old VM is kept; to get it back: devvm nuke --undo")
	}
	return err
}

// destroy stops the VM at once, with its disk synced. If forget is set, it makes libvirt forget it.
func (s *Service) destroy(ctx context.Context, hv vm.Hypervisor, p state.Project, dom vm.Domain, synced <-chan error, forget bool, show *machine.Steps) error {
	show.Start("destroy", "destroy the VM")
	err := s.unplug(ctx, hv, p, dom, synced)
	if err == nil && forget {
		err = machine.Forget(ctx, hv, p)
	}
	if err != nil && ctx.Err() != nil {
		show.Note("nothing was replaced: the VM is as it was, or stopped; to keep using it: devvm up")
	}
	return err
}

// checkNuked returns an error if there is nothing that a nuke could replace or bring back.
func (s *Service) checkNuked(ctx context.Context, p state.Project, o NukeOptions) error {
	f := s.Dirs.Files(p.Name)
	if !state.Exists(f.Root) {
		if _, err := s.get(ctx, p); err != nil { // the domain may be all that is left
			return err
		}
	}
	if o.Undo && !state.Exists(f.Undo) {
		return &ui.Error{
			Msg:  "there is nothing to undo: no old disk of this project is kept",
			Hint: "see the project's state with: devvm status",
		}
	}
	return nil
}

// checkNewVM returns the plan for a new VM in the place of the present one, or why it cannot be made.
func (s *Service) checkNewVM(ctx context.Context, p state.Project, o NukeOptions) (Plan, error) {
	var plan Plan
	var err error
	if o.Plan != nil {
		plan = *o.Plan
	} else {
		plan, err = s.Plan(p)
	}
	if err == nil && !o.Undo {
		err = plan.config.CheckProvision()
	}
	if err == nil && !o.Undo {
		err = s.checkImage(ctx, plan.config)
	}
	if err == nil {
		err = s.checkAgreed(p, plan)
	}
	switch {
	case errors.Is(err, errNotAgreed):
		err = &ui.Error{Err: err, Hint: "to remove the VM without making a new one: devvm nuke --no-up"}
	case err != nil:
	case o.Undo:
		err = s.CheckRoomToRun(s.Dirs.Files(p.Name))
	default:
		err = s.CheckRoomToNuke(s.Dirs.Files(p.Name))
	}
	return plan, err
}

// replaceDisk sets the stopped VM aside, or brings the previous one back.
func replaceDisk(f state.Files, o NukeOptions) error {
	switch {
	case o.Unused && f.IsUsed():
		return &ui.Error{
			Msg:  "the VM was used while nuke ran: nothing was replaced, and the VM is stopped",
			Hint: "keep using it: devvm up, or run devvm nuke again",
		}
	case o.Undo:
		return f.Swap()
	}
	return f.SetAside()
}

// Rm removes the project's VM, its undo and all other traces, even if parts are missing already.
// If there was nothing at all, it returns errNoVM.
func (s *Service) Rm(ctx context.Context, p state.Project, pr *ui.Progress) error {
	f := s.Dirs.Files(p.Name)
	hv, err := s.Open(ctx)
	if err != nil {
		return err
	}
	defer hv.Close()
	if !state.Exists(f.Root) { // the domain may be all that is left
		if _, err := s.find(ctx, hv, p); err != nil {
			return err
		}
	}
	lock, err := f.Acquire(ctx, "rm", nil)
	if err != nil {
		return err
	}
	defer lock.Close()
	phase := pr.Start("remove", "remove the VM and its files")
	_, err = s.find(ctx, hv, p)
	switch {
	case err == nil:
		if err := hv.Destroy(ctx, p.Name); err != nil {
			return err
		}
		if err := machine.Forget(ctx, hv, p); err != nil {
			return err
		}
	case !errors.Is(err, vm.ErrNotFound):
		return err
	}
	if err := s.Daemons(p).Stop(ctx); err != nil {
		return err
	}
	if err := f.Remove(); err != nil {
		return err
	}
	phase.Done()
	return nil
}
