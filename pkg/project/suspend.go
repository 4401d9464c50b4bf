package project

import (
	"context"
	"fmt"

	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/ui"
	"github.com/devvm/devvm/pkg/vm"
)

// Suspend saves the memory of the project's running VM and stops it. The next up resumes it. The
// supervisor stays, to tell clients that the VM is suspended. It is no error if it is suspended
// already.
func (s *Service) Suspend(ctx context.Context, p state.Project, pr *ui.Progress) error {
	return s.locked(ctx, p, "suspend", func(hv vm.Hypervisor, dom vm.Domain) error {
		dom, err := s.outlast(ctx, hv, p, dom, pr)
		if err != nil {
			return err
		}
		switch dom.State {
		case vm.StateSaved:
			return nil
		case vm.StateRunning:
			if isStopping(s.Dirs.Files(p.Name), dom) {
				return errStopping(p)
			}
		default:
			return errNotRunning(p, dom.State)
		}
		host, err := hv.Host(ctx)
		if err != nil {
			return err
		}
		if err := s.CheckRoomForMemory(host.SaveDir, dom); err != nil {
			return err
		}
		phase := pr.Start("suspend", "save the VM's memory")
		// A connection in the saved memory would have no other end after the resume.
		if err := s.syncGuest(ctx, p, dom); err != nil {
			s.Log.Info("sync the guest's disk", "err", err)
		}
		if err := s.Daemons(p).Rest(ctx); err != nil {
			return err
		}
		if err := hv.Save(ctx, p.Name); err != nil {
			_ = s.Daemons(p).Supervisor().Resume(context.WithoutCancel(ctx)) // the VM runs on
			return fmt.Errorf("suspend the VM: %w", err)
		}
		if ctx.Err() != nil {
			pr.Note("too late to cancel: the memory is saved, and the VM is suspended")
		}
		phase.Done()
		return nil
	})
}
