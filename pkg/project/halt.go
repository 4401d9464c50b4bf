package project

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/devvm/devvm/pkg/machine"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/ui"
	"github.com/devvm/devvm/pkg/vm"
)

// A verb that was killed may have left libvirt saving the VM, or the guest powering off. The next
// verb waits until that has ended, and continues from there.

// patienceHalt is how long devvm waits for what ends by itself: saving a large memory to a slow
// disk takes minutes.
const patienceHalt = 10 * time.Minute

// patienceJob is how long a libvirt job may run before devvm asks libvirt to resume the VM. A
// libvirtd that exits during a job can leave the VM paused for good. While the job still runs,
// libvirt refuses to resume the VM.
const patienceJob = 30 * time.Second

// haltPoll is how often to check a VM that will soon be in another state.
const haltPoll = 100 * time.Millisecond

// outlast waits until the VM is in a stable state: libvirt's job has ended, and QEMU is not stopped
// by a signal. It returns the VM as it is then.
func (s *Service) outlast(ctx context.Context, hv vm.Hypervisor, p state.Project, dom vm.Domain, pr *ui.Progress) (vm.Domain, error) {
	var phase *ui.Phase
	patience := s.Halt
	if patience == 0 {
		patience = patienceHalt
	}
	tick := time.NewTicker(haltPoll)
	defer tick.Stop()
	start, asked := time.Now(), time.Now()
	for {
		switch dom.Halt {
		case vm.HaltSignal:
			pr.Note("QEMU (pid %d) was stopped by a signal: resuming it", dom.PID)
			if err := hv.Proceed(ctx, p.Name, vm.HaltSignal); err != nil {
				return dom, err
			}
		case vm.HaltPassing:
			if phase == nil {
				phase = pr.Start("settle", "wait for the VM: "+dom.Reason)
			}
			if time.Since(asked) > min(patienceJob, patience/2) {
				asked = time.Now()
				if err := hv.Proceed(ctx, p.Name, vm.HaltPassing); err != nil {
					s.Log.Info("let the VM go on", "reason", dom.Reason, "err", err)
				}
			}
		default:
			if phase != nil {
				phase.Done()
			}
			return dom, nil
		}
		if time.Since(start) > patience {
			return dom, &ui.Error{
				Msg:  fmt.Sprintf("the VM is still %s%s after %s", dom.State, machine.Because(dom.Reason), patience),
				Hint: "wait and try again, or pull the plug, which keeps the disk: devvm down (what libvirt is doing: virsh domjobinfo " + vm.DomainPrefix + p.Name + ")",
				Kind: errHalt,
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return dom, context.Cause(ctx)
		}
		var err error
		if dom, err = s.find(ctx, hv, p); err != nil {
			return dom, err
		}
	}
}

// errHalt says that outlast waited in vain.
var errHalt = errors.New("the VM stays in a state that should pass")

// isStopping reports whether a running VM is powering off.
func isStopping(f state.Files, dom vm.Domain) bool {
	return dom.State == vm.StateRunning && f.IsStopping(dom.PID)
}

// finishDown finishes an interrupted down.
func (s *Service) finishDown(ctx context.Context, hv vm.Hypervisor, p state.Project, dom vm.Domain, pr *ui.Progress) (vm.Domain, error) {
	pr.Note("the VM is powering off because of an interrupted devvm down: waiting until it is off")
	if err := s.down(ctx, hv, p, dom, pr); err != nil {
		return dom, err
	}
	return s.find(ctx, hv, p)
}

// errStopping says that nothing can be done with a VM that is powering off.
func errStopping(p state.Project) error {
	return &ui.Error{
		Code: ui.ExitNotRunning,
		Msg:  fmt.Sprintf("the VM of project %s is powering off because of an interrupted devvm down", p.Name),
		Hint: "wait until it is off with: devvm down, or start it again with: devvm up",
		Kind: vm.ErrNotRunning,
	}
}
