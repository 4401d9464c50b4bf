package project

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/devvm/devvm/pkg/config"
	"github.com/devvm/devvm/pkg/daemon"
	"github.com/devvm/devvm/pkg/disk"
	"github.com/devvm/devvm/pkg/guest"
	"github.com/devvm/devvm/pkg/image"
	"github.com/devvm/devvm/pkg/machine"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/subnet"
	"github.com/devvm/devvm/pkg/ui"
	"github.com/devvm/devvm/pkg/usernet"
	"github.com/devvm/devvm/pkg/vm"
)

// boot is one run of up.
type boot struct {
	*Env
	hv       vm.Hypervisor
	host     vm.Host
	project  state.Project
	cfg      config.Config
	files    state.Files
	progress *steps
	accel    vm.Accel
	sharing  sharing      // nil: the VM has nothing of the host's
	cold     bool         // boot, do not fork a template
	forked   bool         // the VM has just been made without any container
	attends  bool         // the VM ran before
	backing  []string     // what the disk lies on, the uppermost first
	pools    subnet.Pools // of the engine's networks; nil: not chosen yet
}

// run brings a VM that was found in some state to where its engine answers.
func (b *boot) run(ctx context.Context, dom vm.Domain) error {
	switch dom.State {
	case vm.StateSaved:
		b.noteChanges(ctx, dom)
		return b.start(ctx, true)
	case vm.StateRunning:
		return b.attend(ctx, dom)
	case vm.StatePaused:
		return b.unpause(ctx, dom)
	}
	return b.start(ctx, false)
}

// attend brings a running VM's helpers back to life and waits for its engine.
func (b *boot) attend(ctx context.Context, dom vm.Domain) error {
	if err := b.checkKeys("devvm down; devvm up"); err != nil {
		return err
	}
	b.attends = true
	b.noteChanges(ctx, dom)
	if img, err := b.Images.Resolve(ctx, dom.Image); err == nil {
		b.noteImage(img)
		if err := noteAddress(b.files, img); err != nil {
			return err
		}
	}
	var net usernet.Status
	err := daemon.Outwait(ctx, b.files.NetLock(), errBusy, func() (err error) {
		net, err = b.askNet(ctx)
		return err
	})
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case err == nil:
		err = b.enforce(ctx, net)
	default:
		err = b.rewire(ctx)
	}
	if err != nil {
		return err
	}
	if err := b.daemons(b.project).StartSupervisor(ctx, dom.Accel == vm.AccelTCG); err != nil {
		return err
	}
	if err := b.await(ctx, nil); err != nil {
		return err
	}
	b.tellClashes(ctx)
	return nil
}

// errBusy says that the VM's network process runs and does not answer.
var errBusy = errors.New("the VM's network process is busy")

// askNet asks the VM's network process how it is: errBusy, or usernet.ErrNoNetwork if nobody
// listens.
func (b *boot) askNet(ctx context.Context) (usernet.Status, error) {
	status, err := usernet.NewDialer(b.files.DialSocket()).Status(ctx)
	if err != nil && !errors.Is(err, usernet.ErrNoNetwork) {
		err = fmt.Errorf("%w: %w", errBusy, err)
	}
	return status, err
}

// unpause lets a VM go on that QEMU has stopped, most often because the host's
// disk was full.
func (b *boot) unpause(ctx context.Context, dom vm.Domain) error {
	if dom.Halt == vm.HaltIO {
		if err := b.errFull(b.files); err != nil {
			// Who lets it go on must be there.
			if err := b.daemons(b.project).StartSupervisor(ctx, dom.Accel == vm.AccelTCG); err != nil {
				b.Log.Warn("start the supervisor of a paused VM", "err", err)
			}
			return err
		}
	}
	b.progress.Start("resume", "resume the paused VM"+because(dom.Reason))
	if err := b.hv.Start(ctx, b.project.Name); err != nil {
		return &ui.Error{
			Msg:  "the VM is paused" + because(dom.Reason) + " and does not go on",
			Hint: "make room on the disk if it is full and try again, or start it afresh with: devvm down && devvm up",
			Err:  err,
		}
	}
	return b.attend(ctx, dom)
}

// noteChanges says which settings a VM that goes on as it is does not have yet.
func (b *boot) noteChanges(ctx context.Context, dom vm.Domain) {
	if dom.Config == b.cfg.StartHash() {
		return
	}
	if changes := b.changes(ctx, dom); len(changes) > 0 {
		b.progress.Note("changed settings take effect at the next start (devvm down && devvm up): %s", strings.Join(changes, ", "))
	}
}

// changes names the settings in which a VM differs from devvm.toml.
func (b *boot) changes(ctx context.Context, dom vm.Domain) []string {
	var out []string
	if dom.CPUs != b.cfg.CPUs {
		out = append(out, fmt.Sprintf("cpus %d → %d", dom.CPUs, b.cfg.CPUs))
	}
	if dom.Memory != b.cfg.Memory {
		out = append(out, fmt.Sprintf("memory %s → %s", ui.Size(dom.Memory), ui.Size(b.cfg.Memory)))
	}
	if info, err := disk.Stat(ctx, b.files.Disk()); err == nil {
		switch has := info.VirtualSize; {
		case has > b.cfg.Disk:
			b.noteDisk(has)
		case has < b.cfg.Disk:
			out = append(out, fmt.Sprintf("disk %s → %s", ui.Size(has), ui.Size(b.cfg.Disk)))
		}
	}
	daemon, err := os.ReadFile(filepath.Join(b.files.Credentials(), credentialDaemon))
	pools, _ := subnet.Of(daemon) // others are no change of devvm.toml's
	if err == nil && !bytes.Equal(daemon, b.engineConfig(pools)) {
		out = append(out, "docker.daemon")
	}
	if err != nil && len(out) == 0 { // a cloud image's has it elsewhere
		out = append(out, "perhaps docker.daemon")
	}
	has, err := readShares(b.files)
	next, nerr := b.wantedShares()
	if err == nil && nerr == nil {
		if !slices.Equal(has.Exports, next.Exports) {
			out = append(out, "mounts")
		}
		if has.Durable != next.Durable || !slices.Equal(has.Ignore, next.Ignore) {
			out = append(out, "share")
		}
	}
	return out
}

// noteDisk says that a disk which is larger than devvm.toml wants it stays so.
func (b *boot) noteDisk(has int64) {
	b.progress.Note("the disk stays at %s: disks only grow (devvm nuke makes a new one)", ui.Size(has))
}

// rewire gives a running VM a new network process. QEMU 8.0 and later comes
// back to the socket by itself; an older one must be saved and restored.
func (b *boot) rewire(ctx context.Context) error {
	b.progress.Start("network", "the VM's network process does not answer: starting another")
	if err := b.daemons(b.project).StopNetwork(ctx); err != nil {
		return err
	}
	if err := b.daemons(b.project).StartNetwork(ctx, b.cfg.Policy(), b.host); err != nil {
		return err
	}
	if vm.Reconnects(b.host) {
		return nil
	}
	b.progress.Note("this QEMU cannot reconnect: saving and resuming the VM, which takes some seconds")
	if err := b.hv.Save(ctx, b.project.Name); err != nil {
		return err
	}
	// The network process ended with the QEMU that it never saw, or waits; the
	// new QEMU must find one.
	if _, err := usernet.NewDialer(b.files.DialSocket()).Status(ctx); err != nil {
		if err := b.daemons(b.project).StartNetwork(ctx, b.cfg.Policy(), b.host); err != nil {
			return err
		}
	}
	if err := b.hv.Start(ctx, b.project.Name); err != nil {
		return err
	}
	return nil
}

// start gives the project a running VM: it forks a new one, and boots or resumes
// one that is there.
func (b *boot) start(ctx context.Context, saved bool) error {
	b.attends = false
	if state.Exists(b.files.Disk()) {
		if err := b.checkRoomToRun(b.files); err != nil {
			return err
		}
	}
	if err := state.Unmark(b.files.Stopping()); err != nil {
		return err
	}
	if err := b.files.NoteDir(b.project.Dir); err != nil {
		return err
	}
	settle := b.settleShares
	if saved {
		settle = b.checkShares // a resumed VM has mounted what it has
	}
	if err := settle(); err != nil {
		return err
	}
	img, err := b.image(ctx)
	if err != nil {
		return err
	}
	if err := b.detach(ctx, saved); err != nil {
		return err
	}
	if saved {
		err := b.resume(ctx, img)
		if err == nil || ctx.Err() != nil || !errors.Is(err, errNoResume) {
			return err
		}
		b.progress.Fail(err)
		b.progress.Warn("%v: booting it afresh", err)
		if err := b.hv.DropSaved(ctx, b.project.Name); err != nil {
			return err
		}
		if err := errors.Join(b.daemons(b.project).Stop(ctx), b.settleShares()); err != nil {
			return err
		}
	}
	if !state.Exists(b.files.Disk()) {
		if err := b.checkRoomForVM(); err != nil {
			return err
		}
	}
	verdict := b.Accel.Choose(b.host)
	if verdict.Note != "" && !b.isTemplate(b.project.Dir) { // said already
		b.progress.Note("%s", verdict.Note)
	}
	b.accel = verdict.Accel
	if !state.Exists(b.files.Disk()) && !b.cold && img.Forks {
		if err := b.cfg.CheckDisk(img.DiskSize); err != nil {
			return err
		}
		err := b.fork(ctx, img)
		if err == nil || ctx.Err() != nil || !errors.Is(err, errNoTemplate) || state.Exists(b.files.Disk()) && !b.files.IsBegun() {
			return err
		}
		b.progress.Fail(err)
		b.progress.Warn("%v: booting instead, which takes longer", err)
		b.forked = false
		if err := errors.Join(b.discard(ctx), b.makeDirs(b.files)); err != nil {
			return err
		}
	}
	if !state.Exists(b.files.Disk()) { // what libvirt still knows is of a VM that is gone
		if err := forget(ctx, b.hv, b.project); err != nil {
			return err
		}
	}
	if err := b.prepare(ctx, img); err != nil {
		return err
	}
	untried := b.accel == vm.AccelKVM && !verdict.Proven
	err = b.launch(ctx, img)
	if errors.Is(err, machine.ErrNoKernel) && !untried {
		b.progress.Fail(err)
		b.progress.Warn("%v: starting the VM again", err)
		err = b.relaunch(ctx, img)
	}
	if hung := errors.Is(err, machine.ErrNoKernel); b.accel == vm.AccelKVM && (hung || errors.Is(err, vm.ErrAccel)) {
		why := err.Error()
		if _, words, found := strings.Cut(why, vm.ErrAccel.Error()+": "); found {
			why = words
		}
		b.progress.Fail(err)
		b.progress.Warn("KVM does not work here (%s): using software emulation, which is much slower", why)
		b.accel = vm.AccelTCG
		if err = b.relaunch(ctx, img); err == nil && (untried || !hung) {
			if rerr := b.Accel.Record(b.host, false, why); rerr != nil {
				b.Log.Warn("remember that KVM does not work", "err", rerr)
			}
		}
	}
	if err != nil {
		return err
	}
	if b.accel == vm.AccelKVM {
		if err := b.Accel.Record(b.host, true, ""); err != nil {
			b.Log.Warn("remember that KVM works", "err", err)
		}
	}
	return nil
}

// detach ends what served the VM's former run: a network process that waits for a QEMU
// that is gone, and a supervisor that may not know yet that its link is dead. That of
// a suspended VM stays, to tell clients so.
func (b *boot) detach(ctx context.Context, saved bool) error {
	if !saved {
		return b.daemons(b.project).Stop(ctx)
	}
	if err := b.daemons(b.project).Rest(ctx); err != nil {
		return err
	}
	return b.daemons(b.project).StopNetwork(ctx)
}

// prepare makes sure that the VM's files are there: disk, keys, credentials.
func (b *boot) prepare(ctx context.Context, img image.Image) error {
	size := b.cfg.Disk
	if state.Exists(b.files.Disk()) {
		info, err := disk.Stat(ctx, b.files.Disk())
		if err != nil {
			return err
		}
		switch {
		case size > info.VirtualSize:
			b.progress.Note("growing the disk from %s to %s", ui.Size(info.VirtualSize), ui.Size(size))
			if err := disk.Grow(ctx, b.files.Disk(), size); err != nil {
				return err
			}
		case size < info.VirtualSize:
			b.noteDisk(info.VirtualSize)
		}
	} else {
		if err := b.cfg.CheckDisk(img.DiskSize); err != nil {
			return err
		}
		if err := b.files.MarkNew(); err != nil {
			return err
		}
		b.progress.Start("disk", "making a disk of "+ui.Size(size))
		b.backing = []string{img.Disk()}
		if err := disk.CreateOverlay(ctx, b.files.Disk(), img.Disk(), size); err != nil {
			return err
		}
	}
	if _, err := guest.LoadKeys(b.files.Keys()); err != nil {
		if _, err := guest.GenerateKeys(b.files.Keys()); err != nil {
			return fmt.Errorf("make keys: %w", err)
		}
	}
	return b.writeCredentials(img)
}

// launch defines and starts the VM and waits for its engine. An error wraps
// vm.ErrAccel when the accelerator is to blame.
func (b *boot) launch(ctx context.Context, img image.Image) error {
	b.progress.Start("define", "define the VM")
	if err := b.hv.Define(ctx, b.spec(img)); err != nil {
		return err
	}
	b.progress.Start("start", "start the VM")
	if err := b.daemons(b.project).StartNetwork(ctx, b.cfg.Policy(), b.host); err != nil {
		return err
	}
	console, err := follow(b.files.Console(), kernelMarker)
	if err != nil {
		return err
	}
	defer console.Close()
	if err := b.hv.Start(ctx, b.project.Name); err != nil {
		_ = b.daemons(b.project).StopNetwork(context.WithoutCancel(ctx))
		return err
	}
	if err := b.daemons(b.project).StartSupervisor(ctx, b.accel == vm.AccelTCG); err != nil {
		return err
	}
	return b.await(ctx, console)
}

// relaunch is launch, after what a launch that came to nothing has left.
func (b *boot) relaunch(ctx context.Context, img image.Image) error {
	if err := b.hv.Destroy(ctx, b.project.Name); err != nil {
		return err
	}
	if err := b.daemons(b.project).Stop(ctx); err != nil {
		return err
	}
	return b.launch(ctx, img)
}

// resume lets a suspended VM go on and waits for its engine. Whatever fails, the memory
// stays, unless it is errNoResume.
func (b *boot) resume(ctx context.Context, img image.Image) error {
	b.progress.Start("resume", "resume the suspended VM")
	if err := b.checkKeys("devvm down --discard; devvm up"); err != nil {
		return err
	}
	// QEMU reads them again. The guest has read them; its engine's settings are still those.
	if err := b.writeCredentials(img, credentialDaemon); err != nil {
		return err
	}
	if err := b.daemons(b.project).StartNetwork(ctx, b.cfg.Policy(), b.host); err != nil {
		return err
	}
	if err := b.hv.Start(ctx, b.project.Name); err != nil {
		_ = b.daemons(b.project).StopNetwork(context.WithoutCancel(ctx))
		if errors.Is(err, vm.ErrMemory) {
			return fmt.Errorf("%w: %w", errNoResume, err)
		}
		return errKept(err)
	}
	if err := b.daemons(b.project).StartSupervisor(ctx, b.accel == vm.AccelTCG); err != nil {
		return err
	}
	if err := b.await(ctx, nil); err != nil {
		return err
	}
	b.tellClashes(ctx)
	return nil
}

// errKept explains why a suspended VM stays so.
func errKept(err error) error {
	hint := "mend that, then: devvm up"
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		hint = "make room (devvm df, devvm prune), then: devvm up"
	case errors.Is(err, syscall.ENOMEM):
		hint = "end what else takes this host's memory, then: devvm up"
	case errors.Is(err, vm.ErrConnectionLost), errors.Is(err, vm.ErrNoLibvirt):
		hint = "try again: devvm up (what this host lacks: devvm doctor)"
	case errors.Is(err, vm.ErrAccel):
		hint = "let KVM work again (devvm doctor), then: devvm up"
	}
	return &ui.Error{
		Msg:  "the VM could not be resumed; it stays suspended, with its memory",
		Hint: hint + "\nor boot it without its memory, as after a power cut: devvm down --discard; devvm up",
		Err:  err,
	}
}

// checkKeys refuses to go on with a guest that nobody could log in to: it has the keys of its
// boot. Afresh are the commands that boot it.
func (b *boot) checkKeys(afresh string) error {
	if _, err := guest.LoadKeys(b.files.Keys()); err != nil {
		return &ui.Error{
			Msg:  "the SSH keys of the VM that is there cannot be read, and it has no others: " + b.files.Keys(),
			Hint: "put them back, or boot it with new ones: " + afresh,
			Err:  err,
		}
	}
	return nil
}

// errNoResume says that a suspended VM's memory is of no use any more.
var errNoResume = errors.New("the VM's saved memory cannot be resumed")

// because puts a reason in brackets, if there is one.
func because(reason string) string {
	if reason == "" {
		return ""
	}
	return " (" + reason + ")"
}

// errWentOff says that a VM that ran has ended in good order while up looked after it.
var errWentOff = errors.New("the VM has gone off meanwhile")

// forget makes libvirt forget the VM, if it knows it.
func forget(ctx context.Context, hv vm.Hypervisor, p state.Project) error {
	if err := hv.Undefine(ctx, p.Name); err != nil && !errors.Is(err, vm.ErrNotFound) {
		return err
	}
	return nil
}
