package machine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/devvm/devvm/pkg/disk"
	"github.com/devvm/devvm/pkg/file"
	"github.com/devvm/devvm/pkg/guest"
	"github.com/devvm/devvm/pkg/image"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/template"
	"github.com/devvm/devvm/pkg/ui"
	"github.com/devvm/devvm/pkg/vm"
	"github.com/devvm/devvm/pkg/vmnet"
)

// A template is made in a project of its own. The project's directory is in the template store
// and need not exist. Its VM is an ordinary one until it is sealed and its memory is saved.

// sealedMarker is the line that a guest prints on its console when it can be saved.
const sealedMarker = "devvm: sealed"

// patienceSeal is how long a guest may take to seal itself, which trims its disk.
const patienceSeal = 2 * time.Minute

// errNoTemplate says that the VM of a template booted but could not be saved. The project's own
// VM can then boot, too.
var errNoTemplate = errors.New("no template could be made")

// shape is everything that the memory of the project's VM depends on.
func (m *Machine) shape(img image.Image) template.Shape {
	s := template.Shape{
		Image:   img.Digest,
		CPUs:    m.Config.CPUs,
		Memory:  m.Config.Memory,
		Disk:    m.Config.Disk,
		Accel:   string(m.Accel),
		Kernel:  m.Host.Kernel,
		QEMU:    m.Host.QEMU,
		Libvirt: m.Host.Libvirt,
		URI:     m.Host.URI,
		Daemon:  string(m.daemonJSON()),
		Zone:    m.Zone,
		MTU:     vmnet.DefaultMTU,
	}
	if m.Accel == vm.AccelKVM {
		s.CPU = m.Host.CPU
	}
	if len(provisionSteps(m.Config.Packages, m.Config.Script)) > 0 {
		s.Provision = m.Config.ProvisionHash()
	}
	return s
}

// template finds the template of the VM's shape, or makes it. If several commands need it at
// once, one of them makes it.
func (m *Machine) template(ctx context.Context, img image.Image) (template.Template, error) {
	shape := m.shape(img)
	t, err := m.Templates.Find(shape)
	if !errors.Is(err, template.ErrNotFound) {
		return t, err
	}
	p := state.Identify(filepath.Join(m.Templates.Dir(), shape.Key()))
	if err := m.Dirs.Secure(p.Name); err != nil {
		return t, err
	}
	own := Machine{
		Env: m.Env, Hypervisor: m.Hypervisor, Host: m.Host, Project: p, Config: m.Config,
		Files: m.Dirs.Files(p.Name), Progress: m.Progress, Accel: m.Accel, Cold: true, pools: m.pools,
	}
	lock, err := own.Files.Acquire(ctx, "template", func(who string) {
		m.Progress.Note("waiting for another devvm (%s) that makes the template of this VM", who)
	})
	if err != nil {
		return t, err
	}
	defer lock.Close()
	t, err = m.Templates.Find(shape)
	if !errors.Is(err, template.ErrNotFound) {
		return t, errors.Join(err, state.RemoveAll(own.Files.Root))
	}
	if err := own.Discard(ctx); err != nil { // left by a killed run
		return t, err
	}
	if err := m.MakeDirs(own.Files); err != nil {
		return t, err
	}
	t, err = own.makeTemplate(ctx, img, shape, m.Files.Logs)
	m.Accel = own.Accel // KVM may have turned out not to work
	// Also after Ctrl-C: no list shows this VM.
	after, cancel := context.WithTimeout(context.WithoutCancel(ctx), PatienceOff)
	defer cancel()
	if derr := own.Discard(after); err == nil {
		err = derr
	}
	return t, errors.Join(err, own.Files.Remove())
}

// makeTemplate boots or forks the template's VM, does what the shape says, and saves it. The
// output of provisioning goes into logs.
func (m *Machine) makeTemplate(ctx context.Context, img image.Image, shape template.Shape, logs string) (template.Template, error) {
	var none template.Template
	parent := ""
	if shape.Provision == "" {
		m.Progress.Note("first VM of this shape: booting it once to make a template; the next ones take seconds")
		if err := m.startStopped(ctx, false); err != nil {
			return none, err
		}
		shape = m.shape(img) // has the accelerator that the VM ended up with
	} else {
		bare := *m
		bare.Config.Packages, bare.Config.Script = nil, ""
		t, err := bare.template(ctx, img)
		if err != nil {
			return none, err
		}
		parent, m.Accel = t.ID, bare.Accel
		shape.Accel = string(m.Accel)
		if err := bare.forkFrom(ctx, img, t); err != nil {
			return none, fmt.Errorf("%w: %w", errNoTemplate, err)
		}
		files := m.Files
		m.Files.Logs = logs
		err = m.Provision(ctx)
		m.Files = files
		if err != nil {
			return none, err
		}
	}
	memory := filepath.Join(m.Files.VM, "memory")
	if err := m.freeze(ctx, memory); err != nil {
		return none, fmt.Errorf("%w: %w", errNoTemplate, err)
	}
	t, err := m.Templates.Add(ctx, shape, parent, m.Files.Disk(), memory)
	if err != nil {
		return none, fmt.Errorf("%w: %w", errNoTemplate, err)
	}
	return t, nil
}

// freeze seals the running VM and saves its memory.
func (m *Machine) freeze(ctx context.Context, memory string) error {
	m.Progress.Start("seal", "save the template")
	console, err := follow(m.Files.Console(), sealedMarker)
	if err != nil {
		return err
	}
	defer console.Close()
	// Nothing may hold a connection when the memory is saved.
	if err := m.Daemons(m.Project).StopSupervisor(ctx); err != nil {
		return err
	}
	dom := vm.Domain{Name: m.Project.Name, Accel: m.Accel}
	if err := m.RunInGuest(ctx, m.Project, dom, PatienceSSH, "/usr/lib/devvm/seal"); err != nil {
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
	return m.Hypervisor.Freeze(ctx, m.Project.Name, memory)
}

// fork gives the project a VM that is a fork of a template.
func (m *Machine) fork(ctx context.Context, img image.Image) error {
	t, err := m.template(ctx, img)
	if err != nil {
		return err
	}
	err = m.forkFrom(ctx, img, t)
	if err != nil && !errors.Is(err, syscall.ENOSPC) { // on a full disk a boot would fail, too
		return fmt.Errorf("%w: %w", errNoTemplate, err)
	}
	return err
}

// forkFrom makes the project's VM from a template and waits for its engine.
func (m *Machine) forkFrom(ctx context.Context, img image.Image, t template.Template) error {
	m.Progress.Start("fork", "fork the template "+t.ID)
	if err := m.Files.MarkNew(); err != nil {
		return err
	}
	m.forked = t.Provision == "" // provisioning may have started containers
	m.backing = append([]string{t.Disk()}, m.parents(t, img)...)
	if _, err := guest.GenerateKeys(m.Files.Keys()); err != nil {
		return fmt.Errorf("make keys: %w", err)
	}
	if err := m.writeCredentials(img); err != nil {
		return err
	}
	scratch := filepath.Join(m.Files.VM, "memory")
	if err := m.Templates.Lend(t, scratch); err != nil {
		return err
	}
	var unprepared error // an error that is not the template's fault
	var beside errgroup.Group
	err := m.Hypervisor.Fork(ctx, m.spec(img), t.Memory(), scratch, func(prepare context.Context) error {
		group, prepare := errgroup.WithContext(prepare)
		group.Go(func() error {
			return m.Templates.Use(prepare, t, func() error { return disk.CreateOverlay(prepare, m.Files.Disk(), t.Disk(), 0) })
		})
		group.Go(func() error {
			if err := m.Daemons(m.Project).StartNetwork(prepare, m.Config.Policy(), m.Host); err != nil {
				return err
			}
			// The VM can start without the supervisor.
			beside.Go(func() error { return m.Daemons(m.Project).StartSupervisor(ctx, m.Accel == vm.AccelTCG, "--forked") })
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
		if serr := m.Daemons(m.Project).Stop(context.WithoutCancel(ctx)); serr != nil {
			m.Log.Warn("stop the helpers of a fork that failed", "err", serr)
		}
		if unprepared != nil {
			return err
		}
		return m.blame(ctx, t, err)
	}
	if err := m.Templates.Keep(t, scratch); err != nil { // then the next fork makes its own copy
		m.Log.Warn("template", "err", err)
	}
	if t.Provision != "" {
		if err := file.Replace(m.Files.Provisioned(), []byte(m.Config.ProvisionHash()), 0o600); err != nil {
			return err
		}
	}
	return m.WaitReady(ctx, nil)
}

// blame removes a template that cannot be restored, so that it is made again. What the host
// lacked, or a broken connection, is not the template's fault.
func (m *Machine) blame(ctx context.Context, t template.Template, err error) error {
	for _, other := range []error{syscall.ENOSPC, syscall.EDQUOT, syscall.ENOMEM, vm.ErrConnectionLost, vm.ErrRunning, vm.ErrDiskInUse} {
		if errors.Is(err, other) {
			return err
		}
	}
	if ctx.Err() != nil {
		return err
	}
	m.Log.Warn("template is not used again", "id", t.ID, "err", err)
	return errors.Join(err, m.Templates.Distrust(t))
}

// parents returns the backing files of a template's disk.
func (m *Machine) parents(t template.Template, img image.Image) []string {
	if t.Parent == "" {
		return []string{img.Disk()}
	}
	return []string{template.Template{Dir: filepath.Join(m.Templates.Dir(), t.Parent)}.Disk(), img.Disk()}
}

// Discard removes what there is of a fork or template that failed, for another try.
func (m *Machine) Discard(ctx context.Context) error {
	dom, err := m.Hypervisor.Get(ctx, m.Project.Name)
	if err == nil || errors.Is(err, vm.ErrForeign) {
		err = CheckOwner(m.Project, dom, err)
	}
	switch {
	case err == nil:
		if err := m.Hypervisor.Destroy(ctx, m.Project.Name); err != nil {
			return err
		}
		if err := Forget(ctx, m.Hypervisor, m.Project); err != nil {
			return err
		}
	case !errors.Is(err, vm.ErrNotFound):
		return err
	}
	if err := m.Daemons(m.Project).Stop(ctx); err != nil {
		return err
	}
	return m.Files.RemoveVM()
}

// IsTemplate reports whether a directory belongs to a template, not to a project.
func (e *Env) IsTemplate(dir string) bool {
	return strings.HasPrefix(dir, e.Templates.Dir()+string(filepath.Separator))
}

// checkBacking returns an error if a backing file of a disk is neither an image nor a template. The
// name of the backing file is in the disk. A QEMU that its guest has taken over can write it, and
// the next QEMU would open that file.
func (e *Env) checkBacking(backing []string) error {
	for _, path := range backing {
		if dir := filepath.Dir(filepath.Dir(path)); dir != e.Images.Dir() && dir != e.Templates.Dir() {
			return &ui.Error{
				Msg:  fmt.Sprintf("the backing file of the VM's disk is %s, which is not an image or template of devvm's: someone has changed the disk", ui.Escape(path)),
				Hint: "keep a copy if you want to know more, and start over with: devvm nuke",
			}
		}
	}
	return nil
}

// BuildTemplate makes the template of the VM's shape, unless it exists, and returns its ID.
func (m *Machine) BuildTemplate(ctx context.Context) (string, error) {
	img, err := m.newImage(ctx)
	if err != nil {
		return "", err
	}
	if err := errors.Join(m.CheckRoomForVM(), m.Config.CheckDisk(img.DiskSize)); err != nil {
		return "", err
	}
	if !img.Forks {
		return "", &ui.Error{
			Msg:  fmt.Sprintf("VMs of image %s cannot be forked", img.Name),
			Hint: "if it is an old image of devvm's, build it again: devvm image build",
		}
	}
	t, err := m.template(ctx, img)
	return t.ID, err
}
