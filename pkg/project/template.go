package project

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/devvm/devvm/pkg/state"

	"golang.org/x/sync/errgroup"

	"github.com/devvm/devvm/pkg/disk"
	"github.com/devvm/devvm/pkg/file"
	"github.com/devvm/devvm/pkg/guest"
	"github.com/devvm/devvm/pkg/image"
	"github.com/devvm/devvm/pkg/template"
	"github.com/devvm/devvm/pkg/ui"
	"github.com/devvm/devvm/pkg/usernet"
	"github.com/devvm/devvm/pkg/vm"
)

// A template is made in a project of its own, whose directory is one in the
// template store that need not exist. It is an ordinary VM up to the moment when it
// is sealed and its memory saved.

// sealedMarker is what a guest prints on its console when it can be saved.
const sealedMarker = "devvm: sealed"

// patienceSeal is how long a guest may take to seal itself: it trims its disk.
const patienceSeal = 2 * time.Minute

// errNoTemplate says that the VM of a template booted but could not be saved: a
// project's VM can boot, too.
var errNoTemplate = errors.New("no template could be made")

// shape is what the memory of the project's VM will depend on.
func (b *boot) shape(img image.Image) template.Shape {
	s := template.Shape{
		Image:   img.Digest,
		CPUs:    b.cfg.CPUs,
		Memory:  b.cfg.Memory,
		Disk:    b.cfg.Disk,
		Accel:   string(b.accel),
		Kernel:  b.host.Kernel,
		QEMU:    b.host.QEMU,
		Libvirt: b.host.Libvirt,
		URI:     b.host.URI,
		Daemon:  string(b.daemonJSON()),
		Zone:    b.Zone,
		MTU:     usernet.DefaultMTU,
	}
	if b.accel == vm.AccelKVM {
		s.CPU = b.host.CPU
	}
	if len(provisionSteps(b.cfg.Packages, b.cfg.Script)) > 0 {
		s.Provision = b.cfg.ProvisionHash()
	}
	return s
}

// template finds the template of the VM's shape, or makes it. Of several that need
// it at once one makes it.
func (b *boot) template(ctx context.Context, img image.Image) (template.Template, error) {
	shape := b.shape(img)
	t, err := b.Templates.Find(shape)
	if !errors.Is(err, template.ErrNotFound) {
		return t, err
	}
	p := state.Identify(filepath.Join(b.Templates.Dir(), shape.Key()))
	if err := b.Dirs.Secure(p.Name); err != nil {
		return t, err
	}
	m := boot{
		Env: b.Env, hv: b.hv, host: b.host, project: p, cfg: b.cfg,
		files: b.Dirs.Files(p.Name), progress: b.progress, accel: b.accel, cold: true, pools: b.pools,
	}
	lock, err := m.files.Acquire(ctx, "template", func(who string) {
		b.progress.Note("waiting for another devvm (%s) that makes the template of this VM", who)
	})
	if err != nil {
		return t, err
	}
	defer lock.Close()
	t, err = b.Templates.Find(shape)
	if !errors.Is(err, template.ErrNotFound) {
		return t, errors.Join(err, state.RemoveAll(m.files.Root))
	}
	if err := m.discard(ctx); err != nil { // what a killed run left
		return t, err
	}
	if err := b.makeDirs(m.files); err != nil {
		return t, err
	}
	t, err = m.make(ctx, img, shape, b.files.Logs)
	b.accel = m.accel // KVM may have shown not to work
	// Also after Ctrl-C: nobody sees this VM in a list.
	after, cancel := context.WithTimeout(context.WithoutCancel(ctx), patienceOff)
	defer cancel()
	if derr := m.discard(after); err == nil {
		err = derr
	}
	return t, errors.Join(err, m.files.Remove())
}

// make boots or forks the template's VM, does to it what the shape says, and saves
// it. What provisioning prints goes into logs.
func (b *boot) make(ctx context.Context, img image.Image, shape template.Shape, logs string) (template.Template, error) {
	var none template.Template
	parent := ""
	if shape.Provision == "" {
		b.progress.Note("first VM of this shape: booting it once to make a template; the next ones take seconds")
		if err := b.start(ctx, false); err != nil {
			return none, err
		}
		shape = b.shape(img) // with the accelerator that it runs with
	} else {
		bare := *b
		bare.cfg.Packages, bare.cfg.Script = nil, ""
		t, err := bare.template(ctx, img)
		if err != nil {
			return none, err
		}
		parent, b.accel = t.ID, bare.accel
		shape.Accel = string(b.accel)
		if err := bare.forkFrom(ctx, img, t); err != nil {
			return none, fmt.Errorf("%w: %w", errNoTemplate, err)
		}
		files := b.files
		b.files.Logs = logs
		err = b.provision(ctx)
		b.files = files
		if err != nil {
			return none, err
		}
	}
	memory := filepath.Join(b.files.VM, "memory")
	if err := b.freeze(ctx, memory); err != nil {
		return none, fmt.Errorf("%w: %w", errNoTemplate, err)
	}
	t, err := b.Templates.Add(ctx, shape, parent, b.files.Disk(), memory)
	if err != nil {
		return none, fmt.Errorf("%w: %w", errNoTemplate, err)
	}
	return t, nil
}

// freeze seals the running VM and saves its memory.
func (b *boot) freeze(ctx context.Context, memory string) error {
	b.progress.Start("seal", "save the template")
	console, err := follow(b.files.Console(), sealedMarker)
	if err != nil {
		return err
	}
	defer console.Close()
	// Nothing may hold a connection when the memory is saved.
	if err := b.daemons(b.project).StopSupervisor(ctx); err != nil {
		return err
	}
	dom := vm.Domain{Name: b.project.Name, Accel: b.accel}
	if err := b.inGuest(ctx, b.project, dom, patienceSSH, "/usr/lib/devvm/seal"); err != nil {
		return fmt.Errorf("seal the VM: %w", err)
	}
	patient, cancel := context.WithTimeout(ctx, patienceSeal)
	defer cancel()
	for tick := time.NewTicker(50 * time.Millisecond); !console.shows(); {
		select {
		case <-tick.C:
		case <-patient.Done():
			tick.Stop()
			return fmt.Errorf("wait for the guest to seal itself: %w", context.Cause(patient))
		}
	}
	return b.hv.Freeze(ctx, b.project.Name, memory)
}

// fork gives the project a VM that goes on from a template.
func (b *boot) fork(ctx context.Context, img image.Image) error {
	t, err := b.template(ctx, img)
	if err != nil {
		return err
	}
	err = b.forkFrom(ctx, img, t)
	if err != nil && !errors.Is(err, syscall.ENOSPC) { // a full disk fails a boot, too
		return fmt.Errorf("%w: %w", errNoTemplate, err)
	}
	return err
}

// forkFrom makes the project's VM from a template and waits for its engine.
func (b *boot) forkFrom(ctx context.Context, img image.Image, t template.Template) error {
	b.progress.Start("fork", "fork the template "+t.ID)
	if err := b.files.MarkNew(); err != nil {
		return err
	}
	b.forked = t.Provision == "" // which may have started containers
	b.backing = append([]string{t.Disk()}, b.parents(t, img)...)
	if _, err := guest.GenerateKeys(b.files.Keys()); err != nil {
		return fmt.Errorf("make keys: %w", err)
	}
	if err := b.writeCredentials(img); err != nil {
		return err
	}
	scratch := filepath.Join(b.files.VM, "memory")
	if err := b.Templates.Lend(t, scratch); err != nil {
		return err
	}
	var unprepared error // what the template is not to blame for
	var beside errgroup.Group
	err := b.hv.Fork(ctx, b.spec(img), t.Memory(), scratch, func(prepare context.Context) error {
		group, prepare := errgroup.WithContext(prepare)
		group.Go(func() error {
			return b.Templates.Use(prepare, t, func() error { return disk.CreateOverlay(prepare, b.files.Disk(), t.Disk(), 0) })
		})
		group.Go(func() error {
			if err := b.daemons(b.project).StartNetwork(prepare, b.cfg.Policy(), b.host); err != nil {
				return err
			}
			// The VM can start without.
			beside.Go(func() error { return b.daemons(b.project).StartSupervisor(ctx, b.accel == vm.AccelTCG, "--forked") })
			return nil
		})
		unprepared = group.Wait()
		return unprepared
	})
	if serr := beside.Wait(); serr != nil && unprepared == nil {
		unprepared = serr
		err = errors.Join(err, serr)
	}
	if err != nil {
		_ = os.Remove(scratch)
		if serr := b.daemons(b.project).Stop(context.WithoutCancel(ctx)); serr != nil {
			b.Log.Warn("stop the helpers of a fork that failed", "err", serr)
		}
		if unprepared != nil {
			return err
		}
		return b.blame(ctx, t, err)
	}
	if err := b.Templates.Keep(t, scratch); err != nil { // the next fork copies
		b.Log.Warn("template", "err", err)
	}
	if t.Provision != "" {
		if err := file.Replace(b.files.Provisioned(), []byte(b.cfg.ProvisionHash()), 0o600); err != nil {
			return err
		}
	}
	return b.await(ctx, nil)
}

// blame sees to it that a template which cannot be restored is made anew. What the
// host lacked, or a connection that broke, is not the template's fault.
func (b *boot) blame(ctx context.Context, t template.Template, err error) error {
	for _, other := range []error{syscall.ENOSPC, syscall.EDQUOT, syscall.ENOMEM, vm.ErrConnectionLost, vm.ErrRunning, vm.ErrDiskInUse} {
		if errors.Is(err, other) {
			return err
		}
	}
	if ctx.Err() != nil {
		return err
	}
	b.Log.Warn("template is not used again", "id", t.ID, "err", err)
	return errors.Join(err, b.Templates.Distrust(t))
}

// parents are the disks that a template's own lies on.
func (b *boot) parents(t template.Template, img image.Image) []string {
	if t.Parent == "" {
		return []string{img.Disk()}
	}
	return []string{template.Template{Dir: filepath.Join(b.Templates.Dir(), t.Parent)}.Disk(), img.Disk()}
}

// discard removes the VM of a fork or template that did not come to be, for another
// try.
func (b *boot) discard(ctx context.Context) error {
	dom, err := b.hv.Get(ctx, b.project.Name)
	if err == nil || errors.Is(err, vm.ErrForeign) {
		err = errOthers(b.project, dom, err)
	}
	switch {
	case err == nil:
		if err := b.hv.Destroy(ctx, b.project.Name); err != nil {
			return err
		}
		if err := forget(ctx, b.hv, b.project); err != nil {
			return err
		}
	case !errors.Is(err, vm.ErrNotFound):
		return err
	}
	if err := b.daemons(b.project).Stop(ctx); err != nil {
		return err
	}
	return b.files.RemoveVM()
}

// isTemplate tells whether a directory is not a project's but a template's.
func (e *Env) isTemplate(dir string) bool {
	return strings.HasPrefix(dir, e.Templates.Dir()+string(filepath.Separator))
}

// checkBacking refuses a disk that lies on what is no image and no template. It says
// itself what it lies on, a QEMU that its guest has taken over can write that, and the
// next one may read it.
func (e *Env) checkBacking(backing []string) error {
	for _, path := range backing {
		if dir := filepath.Dir(filepath.Dir(path)); dir != e.Images.Dir() && dir != e.Templates.Dir() {
			return &ui.Error{
				Msg:  fmt.Sprintf("the VM's disk says that it lies on %s, which is no image or template of devvm's: somebody has changed it", ui.Escape(path)),
				Hint: "keep a copy of it if you want to know more, and start afresh with: devvm nuke",
			}
		}
	}
	return nil
}

// buildTemplate makes the template of the VM's shape, unless there is one, and returns its ID.
func (b *boot) buildTemplate(ctx context.Context) (string, error) {
	img, err := b.newImage(ctx)
	if err != nil {
		return "", err
	}
	if err := errors.Join(b.checkRoomForVM(), b.cfg.CheckDisk(img.DiskSize)); err != nil {
		return "", err
	}
	if !img.Forks {
		return "", &ui.Error{
			Msg:  fmt.Sprintf("VMs of image %s cannot be forked", img.Name),
			Hint: "build the image anew if it is an old one of devvm's: devvm image build",
		}
	}
	t, err := b.template(ctx, img)
	return t.ID, err
}
