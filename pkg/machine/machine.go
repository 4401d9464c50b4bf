// Package machine brings a VM to the state that its project's configuration asks for: its image,
// disk, keys and credentials, then a fork of a template, a boot or a resume, and the wait for its
// engine.
//
// Package project has the verbs: it decides whether to start a VM at all, takes the lock, and
// knows what the user has agreed to. [Env] is what all VMs of a user share, [Machine] is one VM.
package machine

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/devvm/devvm/pkg/config"
	"github.com/devvm/devvm/pkg/daemon"
	"github.com/devvm/devvm/pkg/disk"
	"github.com/devvm/devvm/pkg/guest"
	"github.com/devvm/devvm/pkg/image"
	"github.com/devvm/devvm/pkg/share"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/subnet"
	"github.com/devvm/devvm/pkg/ui"
	"github.com/devvm/devvm/pkg/vm"
	"github.com/devvm/devvm/pkg/vmnet"
)

// Machine is a VM that is being brought up.
type Machine struct {
	*Env
	Hypervisor vm.Hypervisor
	Host       vm.Host // what Hypervisor says of this host
	Project    state.Project
	Config     config.Config // to which the user has agreed
	Files      state.Files   // of Project
	Progress   *Steps
	Accel      vm.Accel       // that it runs with, or will
	Exports    []share.Export // directories of the host that it gets at its next start
	Notes      []string       // to the user, about Exports
	Cold       bool           // boot, do not fork a template
	forked     bool           // the VM is new and has no containers
	wasRunning bool           // the VM was already running
	backing    []string       // backing files of the disk, uppermost first
	pools      subnet.Pools   // of the engine's networks; nil: not chosen yet
}

// Start takes a VM from the state it was found in to an engine that answers.
func (m *Machine) Start(ctx context.Context, dom vm.Domain) error {
	switch dom.State {
	case vm.StateSaved:
		m.noteChanges(ctx)
		return m.startStopped(ctx, true)
	case vm.StateRunning:
		return m.reattach(ctx, dom)
	case vm.StatePaused:
		return m.unpause(ctx, dom)
	}
	return m.startStopped(ctx, false)
}

// reattach starts the helpers of a running VM if they have ended, and waits for its engine.
func (m *Machine) reattach(ctx context.Context, dom vm.Domain) error {
	if err := m.checkKeys("devvm down; devvm up"); err != nil {
		return err
	}
	m.wasRunning = true
	m.noteChanges(ctx)
	if img, err := m.Images.Resolve(ctx, dom.Image); err == nil {
		m.noteImage(img)
		if err := noteAddress(m.Files, img); err != nil {
			return err
		}
	}
	var net vmnet.Status
	err := daemon.Outwait(ctx, m.Files.NetLock(), errBusy, func() (err error) {
		net, err = m.askNet(ctx)
		return err
	})
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case err == nil:
		err = m.enforce(ctx, net)
	default:
		err = m.replaceNetwork(ctx)
	}
	if err != nil {
		return err
	}
	if err := m.Daemons(m.Project).StartSupervisor(ctx, dom.Accel == vm.AccelTCG); err != nil {
		return err
	}
	if err := m.WaitReady(ctx, nil); err != nil {
		return err
	}
	m.NoteClashes(ctx)
	return nil
}

// errBusy says that the VM's network process runs but does not answer.
var errBusy = errors.New("the VM's network process is busy")

// askNet asks the VM's network process for its status. It fails with errBusy, or with
// vmnet.ErrNoNetwork if nobody listens.
func (m *Machine) askNet(ctx context.Context) (vmnet.Status, error) {
	status, err := vmnet.NewDialer(m.Files.DialSocket()).Status(ctx)
	if err != nil && !errors.Is(err, vmnet.ErrNoNetwork) {
		err = fmt.Errorf("%w: %w", errBusy, err)
	}
	return status, err
}

// unpause resumes a VM that QEMU has paused, most often because the host's disk was full.
func (m *Machine) unpause(ctx context.Context, dom vm.Domain) error {
	if dom.Halt == vm.HaltIO {
		if err := m.ErrFull(m.Files); err != nil {
			// The supervisor resumes it, so it must run.
			if err := m.Daemons(m.Project).StartSupervisor(ctx, dom.Accel == vm.AccelTCG); err != nil {
				m.Log.Warn("start the supervisor of a paused VM", "err", err)
			}
			return err
		}
	}
	m.Progress.Start("resume", "resume the paused VM"+Because(dom.Reason))
	if err := m.Hypervisor.Start(ctx, m.Project.Name); err != nil {
		return &ui.Error{
			Msg:  "the VM is paused" + Because(dom.Reason) + " and does not resume",
			Hint: "make room if the host's disk is full and try again, or restart it with: devvm down && devvm up",
			Err:  err,
		}
	}
	return m.reattach(ctx, dom)
}

// replaceNetwork gives a running VM a new network process. QEMU 8.0 and later reconnects to the
// socket by itself. An older one must be saved and restored.
func (m *Machine) replaceNetwork(ctx context.Context) error {
	m.Progress.Start("network", "the VM's network process does not answer: starting another")
	if err := m.Daemons(m.Project).StopNetwork(ctx); err != nil {
		return err
	}
	if err := m.Daemons(m.Project).StartNetwork(ctx, m.Config.Policy(), m.Host); err != nil {
		return err
	}
	if vm.Reconnects(m.Host) {
		return nil
	}
	m.Progress.Note("this QEMU cannot reconnect: saving and resuming the VM, which takes a few seconds")
	if err := m.Hypervisor.Save(ctx, m.Project.Name); err != nil {
		return err
	}
	// The network process may have ended with the old QEMU, which never connected to it. The
	// new QEMU needs one.
	if _, err := vmnet.NewDialer(m.Files.DialSocket()).Status(ctx); err != nil {
		if err := m.Daemons(m.Project).StartNetwork(ctx, m.Config.Policy(), m.Host); err != nil {
			return err
		}
	}
	if err := m.Hypervisor.Start(ctx, m.Project.Name); err != nil {
		return err
	}
	return nil
}

// startStopped gives the project a running VM: it forks a new one, or boots or resumes the one
// that it has.
func (m *Machine) startStopped(ctx context.Context, saved bool) error {
	m.wasRunning = false
	img, err := m.prepareStart(ctx, saved)
	if err != nil {
		return err
	}
	if saved {
		err := m.resume(ctx, img)
		if !isOf(ctx, err, errNoResume) {
			return err
		}
		if err := m.dropMemory(ctx, err); err != nil {
			return err
		}
	}
	if !state.Exists(m.Files.Disk()) {
		if err := m.CheckRoomForVM(); err != nil {
			return err
		}
	}
	verdict := m.Accelerators.Choose(m.Host)
	if verdict.Note != "" && !m.IsTemplate(m.Project.Dir) { // for a template's VM it is already said
		m.Progress.Note("%s", verdict.Note)
	}
	m.Accel = verdict.Accel
	if !state.Exists(m.Files.Disk()) && !m.Cold && img.Forks {
		if err := m.Config.CheckDisk(img.DiskSize); err != nil {
			return err
		}
		err := m.fork(ctx, img)
		if !isOf(ctx, err, errNoTemplate) || state.Exists(m.Files.Disk()) && !m.Files.IsBegun() {
			return err
		}
		m.Progress.Fail(err)
		m.Progress.Warn("%v: booting instead, which takes longer", err)
		m.forked = false
		if err := errors.Join(m.Discard(ctx), m.MakeDirs(m.Files)); err != nil {
			return err
		}
	}
	return m.boot(ctx, img, verdict.Proven)
}

// isOf reports whether err has a reason after which another way can be tried.
func isOf(ctx context.Context, err, reason error) bool {
	return ctx.Err() == nil && errors.Is(err, reason)
}

// prepareStart does what precedes every start, and returns the VM's image.
func (m *Machine) prepareStart(ctx context.Context, saved bool) (image.Image, error) {
	if state.Exists(m.Files.Disk()) {
		if err := m.CheckRoomToRun(m.Files); err != nil {
			return image.Image{}, err
		}
	}
	if err := state.Unmark(m.Files.Stopping()); err != nil {
		return image.Image{}, err
	}
	if err := m.Files.NoteDir(m.Project.Dir); err != nil {
		return image.Image{}, err
	}
	settle := m.noteStart
	if saved {
		settle = m.checkShares // a resumed VM keeps its mounts
	}
	if err := settle(); err != nil {
		return image.Image{}, err
	}
	img, err := m.image(ctx)
	if err != nil {
		return img, err
	}
	return img, m.stopFormer(ctx, saved)
}

// dropMemory discards the memory of a suspended VM that cannot be resumed.
func (m *Machine) dropMemory(ctx context.Context, why error) error {
	m.Progress.Fail(why)
	m.Progress.Warn("%v: booting it instead", why)
	if err := m.Hypervisor.DropSaved(ctx, m.Project.Name); err != nil {
		return err
	}
	return errors.Join(m.Daemons(m.Project).Stop(ctx), m.noteStart())
}

// boot creates what is missing of the VM and boots it: a second time if its kernel does not come
// up, and without KVM if KVM is to blame. proven says that KVM has run a VM on this host.
func (m *Machine) boot(ctx context.Context, img image.Image, proven bool) error {
	if !state.Exists(m.Files.Disk()) { // libvirt's domain belongs to a VM that is gone
		if err := Forget(ctx, m.Hypervisor, m.Project); err != nil {
			return err
		}
	}
	if err := m.prepare(ctx, img); err != nil {
		return err
	}
	untried := m.Accel == vm.AccelKVM && !proven
	err := m.bootOnce(ctx, img)
	if errors.Is(err, ErrNoKernel) && !untried {
		m.Progress.Fail(err)
		m.Progress.Warn("%v: starting the VM again", err)
		err = m.bootAgain(ctx, img)
	}
	if hung := errors.Is(err, ErrNoKernel); m.Accel == vm.AccelKVM && (hung || errors.Is(err, vm.ErrAccel)) {
		why := err.Error()
		if _, words, found := strings.Cut(why, vm.ErrAccel.Error()+": "); found {
			why = words
		}
		m.Progress.Fail(err)
		m.Progress.Warn("KVM does not work here (%s): using software emulation, which is much slower", why)
		m.Accel = vm.AccelTCG
		if err = m.bootAgain(ctx, img); err == nil && (untried || !hung) {
			if rerr := m.Accelerators.Record(m.Host, false, why); rerr != nil {
				m.Log.Warn("remember that KVM does not work", "err", rerr)
			}
		}
	}
	if err != nil {
		return err
	}
	if m.Accel == vm.AccelKVM {
		if err := m.Accelerators.Record(m.Host, true, ""); err != nil {
			m.Log.Warn("remember that KVM works", "err", err)
		}
	}
	return nil
}

// stopFormer ends the processes of the VM's previous run: a network process that waits for a
// QEMU that is gone, and a supervisor that may not know yet that its link is dead. The supervisor
// of a suspended VM stays, to tell clients that the VM is suspended.
func (m *Machine) stopFormer(ctx context.Context, saved bool) error {
	if !saved {
		return m.Daemons(m.Project).Stop(ctx)
	}
	if err := m.Daemons(m.Project).Rest(ctx); err != nil {
		return err
	}
	return m.Daemons(m.Project).StopNetwork(ctx)
}

// prepare creates what is missing of the VM's files: disk, keys, credentials.
func (m *Machine) prepare(ctx context.Context, img image.Image) error {
	size := m.Config.Disk
	if state.Exists(m.Files.Disk()) {
		info, err := disk.Stat(ctx, m.Files.Disk())
		if err != nil {
			return err
		}
		switch {
		case size > info.VirtualSize:
			m.Progress.Note("growing the disk from %s to %s", ui.Size(info.VirtualSize), ui.Size(size))
			if err := disk.Grow(ctx, m.Files.Disk(), size); err != nil {
				return err
			}
		case size < info.VirtualSize:
			m.noteDisk(info.VirtualSize)
		}
	} else {
		if err := m.Config.CheckDisk(img.DiskSize); err != nil {
			return err
		}
		if err := m.Files.MarkNew(); err != nil {
			return err
		}
		m.Progress.Start("disk", "making a disk of "+ui.Size(size))
		m.backing = []string{img.Disk()}
		if err := disk.CreateOverlay(ctx, m.Files.Disk(), img.Disk(), size); err != nil {
			return err
		}
	}
	if _, err := guest.LoadKeys(m.Files.Keys()); err != nil {
		if _, err := guest.GenerateKeys(m.Files.Keys()); err != nil {
			return fmt.Errorf("make keys: %w", err)
		}
	}
	return m.writeCredentials(img)
}

// bootOnce defines and starts the VM and waits for its engine. An error wraps
// vm.ErrAccel when the accelerator is to blame.
func (m *Machine) bootOnce(ctx context.Context, img image.Image) error {
	m.Progress.Start("define", "define the VM")
	if err := m.Hypervisor.Define(ctx, m.spec(img)); err != nil {
		return err
	}
	m.Progress.Start("start", "start the VM")
	if err := m.Daemons(m.Project).StartNetwork(ctx, m.Config.Policy(), m.Host); err != nil {
		return err
	}
	console, err := follow(m.Files.Console(), kernelMarker)
	if err != nil {
		return err
	}
	defer console.Close()
	if err := m.Hypervisor.Start(ctx, m.Project.Name); err != nil {
		_ = m.Daemons(m.Project).StopNetwork(context.WithoutCancel(ctx))
		return err
	}
	if err := m.Daemons(m.Project).StartSupervisor(ctx, m.Accel == vm.AccelTCG); err != nil {
		return err
	}
	return m.WaitReady(ctx, console)
}

// bootAgain removes what is left of a failed boot, and boots once more.
func (m *Machine) bootAgain(ctx context.Context, img image.Image) error {
	if err := m.Hypervisor.Destroy(ctx, m.Project.Name); err != nil {
		return err
	}
	if err := m.Daemons(m.Project).Stop(ctx); err != nil {
		return err
	}
	return m.bootOnce(ctx, img)
}

// Because puts a reason in brackets, if there is one.
func Because(reason string) string {
	if reason == "" {
		return ""
	}
	return " (" + reason + ")"
}

// ErrWentOff says that a running VM powered off while up was at work on it.
var ErrWentOff = errors.New("the VM went off")

// Forget makes libvirt forget the VM, if it knows it.
func Forget(ctx context.Context, hv vm.Hypervisor, p state.Project) error {
	if err := hv.Undefine(ctx, p.Name); err != nil && !errors.Is(err, vm.ErrNotFound) {
		return err
	}
	return nil
}
