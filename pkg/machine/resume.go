package machine

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/devvm/devvm/pkg/guest"
	"github.com/devvm/devvm/pkg/image"
	"github.com/devvm/devvm/pkg/ui"
	"github.com/devvm/devvm/pkg/vm"
)

// resume resumes a suspended VM and waits for its engine. On any error but errNoResume its
// memory is kept.
func (m *Machine) resume(ctx context.Context, img image.Image) error {
	m.Progress.Start("resume", "resume the suspended VM")
	if err := m.checkKeys("devvm down --discard; devvm up"); err != nil {
		return err
	}
	// QEMU reads them again. The guest does not: its engine keeps its settings.
	if err := m.writeCredentials(img, credentialDaemon); err != nil {
		return err
	}
	if err := m.Daemons(m.Project).StartNetwork(ctx, m.Config.Policy(), m.Host); err != nil {
		return err
	}
	if err := m.Hypervisor.Start(ctx, m.Project.Name); err != nil {
		_ = m.Daemons(m.Project).StopNetwork(context.WithoutCancel(ctx))
		if errors.Is(err, vm.ErrMemory) {
			return fmt.Errorf("%w: %w", errNoResume, err)
		}
		return errKept(err)
	}
	if err := m.Daemons(m.Project).StartSupervisor(ctx, m.Accel == vm.AccelTCG); err != nil {
		return err
	}
	if err := m.WaitReady(ctx, nil); err != nil {
		return err
	}
	m.NoteClashes(ctx)
	return nil
}

// errKept explains why a VM stays suspended.
func errKept(err error) error {
	hint := "fix that, then: devvm up"
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		hint = "make room (devvm df, devvm prune), then: devvm up"
	case errors.Is(err, syscall.ENOMEM):
		hint = "free some of this host's memory, then: devvm up"
	case errors.Is(err, vm.ErrConnectionLost), errors.Is(err, vm.ErrNoLibvirt):
		hint = "try again: devvm up (what this host lacks: devvm doctor)"
	case errors.Is(err, vm.ErrAccel):
		hint = "get KVM to work again (devvm doctor), then: devvm up"
	}
	return &ui.Error{
		Msg:  "the VM could not be resumed; it stays suspended, with its memory",
		Hint: hint + "\nor boot it without its memory, as after a power cut: devvm down --discard; devvm up",
		Err:  err,
	}
}

// checkKeys returns an error if nobody could log in to the guest, which has the keys of its
// boot. afresh has the commands that boot it.
func (m *Machine) checkKeys(afresh string) error {
	if _, err := guest.LoadKeys(m.Files.Keys()); err != nil {
		return &ui.Error{
			Msg:  "the SSH keys of the existing VM cannot be read, and it accepts no others: " + m.Files.Keys(),
			Hint: "put them back, or boot it with new ones: " + afresh,
			Err:  err,
		}
	}
	return nil
}

// errNoResume says that the memory of a suspended VM is no longer of use.
var errNoResume = errors.New("the VM's saved memory cannot be resumed")
